//! What a link decides without a socket: when it dials again, and how much may wait for the peer.
//!
//! Pure, so that a simulator runs the same decisions. Owner: one link. Times are [`Duration`]s, and
//! chance is an argument.

use std::time::Duration;

/// The shortest time between the beginnings of two attempts.
pub const DIAL_GAP: Duration = Duration::from_millis(20);
/// The first pause before another attempt; it doubles with each.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A connection that was up for this long was a good one: the next pause is the shortest one again.
const GOOD_AFTER: Duration = Duration::from_secs(1);

/// The pauses between attempts to connect.
#[derive(Clone, Copy, Debug)]
pub struct Redial {
    backoff: Duration,
}

impl Default for Redial {
    fn default() -> Self {
        Self { backoff: BACKOFF_MIN }
    }
}

impl Redial {
    /// Notes the end of an attempt, or of the connection to which it led and which was up for
    /// `up_for`. Returns how long to wait before the next attempt, unless a request or the peer's
    /// arrival asks for it earlier. `chance` is any number: the pause is half to all of its full
    /// length, so that the nodes of a cluster do not dial in step.
    pub fn ended(&mut self, up_for: Option<Duration>, chance: u32) -> Duration {
        if up_for.is_some_and(|up| up >= GOOD_AFTER) {
            self.backoff = BACKOFF_MIN;
        }
        let half = self.backoff / 2;
        let pause = half + half.mul_f64(f64::from(chance) / f64::from(u32::MAX));
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        pause
    }

    /// How long the next attempt must wait in any case, if the last one began this long ago.
    #[must_use]
    pub const fn gap(begun_ago: Duration) -> Duration {
        DIAL_GAP.saturating_sub(begun_ago)
    }
}

/// Whether one more request may be queued behind `queued` bytes: one frame more than `max` is the
/// most that waits.
#[must_use]
#[inline]
pub const fn has_room(queued: usize, max: usize) -> bool {
    queued < max
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_second_and_begin_small_after_a_good_connection() {
        let mut redial = Redial::default();
        let most: Vec<u128> = (0..7).map(|_| redial.ended(None, u32::MAX).as_millis()).collect();
        assert_eq!(most, [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(redial.ended(Some(Duration::from_millis(999)), 0).as_millis(), 500, "half, and no good connection");
        assert_eq!(redial.ended(Some(GOOD_AFTER), 0).as_millis(), 25);
        assert_eq!(redial.ended(None, 0).as_millis(), 50);
    }

    #[test]
    fn attempts_keep_their_distance_and_a_queue_its_bound() {
        assert_eq!(Redial::gap(Duration::from_millis(15)), Duration::from_millis(5));
        assert_eq!(Redial::gap(Duration::from_millis(21)), Duration::ZERO);
        assert!(has_room(0, 10) && has_room(9, 10) && !has_room(10, 10));
    }
}

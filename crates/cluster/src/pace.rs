//! How fast missed writes are replayed to a peer that is back: fast enough to catch up in seconds,
//! slow enough that nobody notices.
//!
//! Additive increase, multiplicative decrease on the time that a window of hints takes, as
//! congestion control does (Jain and Chiu, 1989). Owner: whoever replays to one peer. Bounds:
//! [`WINDOW_MIN`] to [`WINDOW_MAX`] hints in flight.

/// Fewest hints sent before their confirmations are awaited.
pub const WINDOW_MIN: u32 = 8;
/// Most.
pub const WINDOW_MAX: u32 = 512;
/// A window that takes longer than this, in µs, and than [`SLOW_FACTOR`] times the quickest so far,
/// says that the peer has enough to do.
pub const SLOW_MICROS: u64 = 5_000;
/// See there: a distant peer is not a busy one.
pub const SLOW_FACTOR: u64 = 3;
/// Share of the time that replay leaves to others: after a window that took `t`, it rests for `t`
/// times this.
pub const REST_SHARE: u64 = 1;
/// The longest rest, in µs.
pub const REST_MAX_MICROS: u64 = 50_000;

/// The pace of replay to one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    window: u32,
    /// The quickest window so far, in µs: about the network's round trip.
    quickest: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { window: WINDOW_MIN, quickest: u64::MAX }
    }
}

impl Pace {
    /// Hints that may be in flight now.
    #[must_use]
    pub const fn window(self) -> u32 {
        self.window
    }

    /// A window of hints was confirmed after `micros`. Returns how long to rest before the next, in
    /// µs.
    pub fn confirmed(&mut self, micros: u64) -> u64 {
        self.quickest = self.quickest.min(micros);
        self.window = if micros > SLOW_MICROS.max(self.quickest.saturating_mul(SLOW_FACTOR)) {
            (self.window / 2).max(WINDOW_MIN)
        } else {
            (self.window + WINDOW_MIN).min(WINDOW_MAX)
        };
        (micros * REST_SHARE).min(REST_MAX_MICROS)
    }

    /// The peer did not answer, or refused: begin again slowly.
    pub fn failed(&mut self) {
        self.window = WINDOW_MIN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_while_the_peer_is_quick_and_halves_when_it_is_not() {
        let mut pace = Pace::default();
        for _ in 0..1000 {
            assert!(pace.confirmed(500) <= 500);
        }
        assert_eq!(pace.window(), WINDOW_MAX);
        assert_eq!(pace.confirmed(1_000_000), REST_MAX_MICROS);
        assert_eq!(pace.window(), WINDOW_MAX / 2);
        pace.failed();
        assert_eq!(pace.window(), WINDOW_MIN);
        pace.confirmed(SLOW_MICROS + 1);
        assert_eq!(pace.window(), WINDOW_MIN);
    }

    #[test]
    fn a_distant_peer_is_not_a_busy_one() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.confirmed(40_000);
        }
        assert_eq!(pace.window(), WINDOW_MAX);
        pace.confirmed(121_000);
        assert_eq!(pace.window(), WINDOW_MAX / 2);
    }
}

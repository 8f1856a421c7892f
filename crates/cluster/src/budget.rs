//! The most bytes a second that a node sends and writes to bring replicas together, whoever does
//! it.
//!
//! A token bucket in which what is spent is paid for afterwards: whoever has a piece to send sends
//! it, and then rests as long as [`Budget::spend`] says. So nobody holds a place in a queue that it
//! has to give back, those who share the bucket take turns, and a piece of any size can go.
//!
//! Owner: shared by all threads that spend. Bounds: over any time t, all together spend at most
//! `rate · t`, what [`BURST_MICROS`] saves up, and one piece for each of them. Time is the
//! caller's: all who share a bucket count it from the same moment.

use std::sync::atomic::{AtomicU64, Ordering};

/// What was not spent is saved up for this long, in µs.
pub const BURST_MICROS: u64 = 100_000;

const BURST_NANOS: u64 = BURST_MICROS * 1_000;
const NANOS_A_SECOND: u128 = 1_000_000_000;

/// A token bucket; see the module.
#[derive(Debug)]
pub struct Budget {
    bytes_a_second: u64,
    /// Until when everything is paid for, in ns, plus the burst.
    paid_until: AtomicU64,
}

impl Budget {
    /// A bucket that is full, of so many bytes a second.
    #[must_use]
    pub const fn new(bytes_a_second: u64) -> Self {
        assert!(bytes_a_second > 0, "somebody would wait for ever");
        Self { bytes_a_second, paid_until: AtomicU64::new(0) }
    }

    /// One without a bound.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// Bytes a second.
    #[must_use]
    pub const fn bytes_a_second(&self) -> u64 {
        self.bytes_a_second
    }

    /// So many bytes are spent now. Returns for how long the caller must not spend any more, in µs.
    #[must_use = "whoever does not rest is not bounded"]
    pub fn spend(&self, now: u64, bytes: u64) -> u64 {
        let cost = u128::from(bytes) * NANOS_A_SECOND / u128::from(self.bytes_a_second);
        let cost = u64::try_from(cost).unwrap_or(u64::MAX);
        let now = now.saturating_mul(1_000);
        let paid_until = |before: u64| before.max(now).saturating_add(cost);
        let spent = self.paid_until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |it| Some(paid_until(it)));
        let (Ok(before) | Err(before)) = spent;
        paid_until(before).saturating_sub(now.saturating_add(BURST_NANOS)).div_ceil(1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SECOND: u64 = 1_000_000;

    #[test]
    fn all_who_share_it_keep_the_rate_together_and_take_turns() {
        let budget = Budget::new(64 * MIB);
        let (mut next, mut spent) = ([0_u64; 3], [0_u64; 3]);
        for now in (0..10 * SECOND).step_by(500) {
            for (at, next) in next.iter_mut().enumerate().filter(|(_, next)| **next <= now) {
                // One sends small pieces, another large ones.
                let piece = MIB >> (2 * at);
                spent[at] += piece;
                *next = now + budget.spend(now, piece).max(1);
            }
        }
        let all: u64 = spent.iter().sum();
        let most = 64 * MIB * 10 + 64 * MIB / 10 + 3 * MIB;
        assert!(all <= most && all > most * 9 / 10, "{all} of {most}");
        assert!(spent.iter().all(|&spent| spent > 10 * MIB), "{spent:?}");
    }

    #[test]
    fn a_tenth_of_a_second_is_saved_up_and_no_more() {
        let budget = Budget::new(10 * MIB);
        for idle in [0, 60 * SECOND, 120 * SECOND] {
            assert_eq!(budget.spend(idle, MIB), 0);
            assert_eq!(budget.spend(idle, MIB), SECOND / 10);
        }
    }

    #[test]
    fn a_piece_larger_than_the_bucket_goes_and_is_paid_for() {
        let budget = Budget::new(MIB);
        assert_eq!(budget.spend(0, 32 * MIB), 32 * SECOND - BURST_MICROS);
        assert_eq!(budget.spend(SECOND, 0), 31 * SECOND - BURST_MICROS, "the others pay with it");
        assert_eq!(budget.spend(32 * SECOND, 0), 0);
    }

    #[test]
    fn sums_of_any_size_are_no_surprise() {
        assert_eq!(Budget::unlimited().spend(7, u64::MAX), SECOND - BURST_MICROS);
        let budget = Budget::new(1);
        assert!(budget.spend(u64::MAX, u64::MAX) == 0 || budget.spend(0, u64::MAX) > 0);
        assert!(budget.spend(0, 1) > 0);
    }
}

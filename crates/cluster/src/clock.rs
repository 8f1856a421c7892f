//! A hybrid logical clock over the wall clock (Kulkarni et al., *Logical Physical Clocks*, 2014).
//!
//! A reading has the units of [`WallTime`]: 48 bits of milliseconds since the Unix epoch and 16
//! bits of their fraction, then `max(now, last + 1)`. Two writes one after the other, through
//! different nodes, are ordered as well as their wall clocks agree.
//!
//! Owner: one for the process, shared by all cores; two words, on one cache line.
//!
//! In a cluster, what a node gave out may live on at its peers only, so its own log does not say
//! where to go on after a restart. Therefore no reading above a *bound* is given out, and the
//! caller persists a higher bound before it is raised.
//!
//! Invariants:
//! 1. Every reading given out is greater than all given out or observed before, whatever the wall
//!    clock does.
//! 2. No reading is greater than the bound at that moment.
//! 3. Only [`HybridClock::lower`], for a clean end, lets the bound go back.

use std::sync::atomic::{AtomicU64, Ordering};

use koltso_model::WallTime;

/// The next reading would be this one, and it is above the bound: persist a bound that covers it,
/// raise the clock's, and ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeyondBound(pub u64);

/// The clock; see the module.
#[derive(Debug)]
pub struct HybridClock {
    last: AtomicU64,
    /// Beside `last`: whoever takes a reading has this cache line anyway.
    bound: AtomicU64,
}

impl Default for HybridClock {
    /// A clock at the beginning of time whose readings nobody persists.
    fn default() -> Self {
        Self::bounded(0, u64::MAX)
    }
}

impl HybridClock {
    /// A clock that goes on above `last`, and gives out nothing above `bound`.
    #[must_use]
    pub const fn bounded(last: u64, bound: u64) -> Self {
        Self { last: AtomicU64::new(last), bound: AtomicU64::new(bound) }
    }

    /// Goes on above a reading that was seen: in the log, or at a peer. The bound is looked at when
    /// a reading is given out.
    #[inline]
    pub fn observe(&self, clock: u64) {
        // A plain look first: what is seen is mostly older, and the line need not be taken from the
        // other cores.
        if clock > self.last.load(Ordering::Relaxed) {
            self.last.fetch_max(clock, Ordering::AcqRel);
        }
    }

    /// The greatest reading given out or observed.
    #[must_use]
    #[inline]
    pub fn last(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    /// What no reading is above.
    #[must_use]
    pub fn bound(&self) -> u64 {
        self.bound.load(Ordering::Acquire)
    }

    /// A new, greatest reading. Where it runs ahead of the wall clock, it counts in its smallest
    /// unit.
    ///
    /// # Errors
    /// [`BeyondBound`]; nothing was given out then.
    #[inline]
    pub fn next(&self, now: WallTime) -> Result<u64, BeyondBound> {
        let mut last = self.last.load(Ordering::Relaxed);
        loop {
            let next = now.0.max(last + 1);
            if next > self.bound.load(Ordering::Acquire) {
                return Err(BeyondBound(next));
            }
            match self.last.compare_exchange_weak(last, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(next),
                Err(current) => last = current,
            }
        }
    }

    /// Raises the bound, which the caller has persisted. A lower one changes nothing.
    pub fn raise(&self, bound: u64) {
        self.bound.fetch_max(bound, Ordering::AcqRel);
    }

    /// Sets the bound to what was persisted at a clean end, when nobody takes readings any more, or
    /// at the start.
    pub fn lower(&self, bound: u64) {
        self.bound.store(bound, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_only_goes_forward_whatever_the_wall_clock_does() {
        let clock = HybridClock::default();
        let mut last = 0;
        for now in [5, 5, 5, 4, 0, 6, 1] {
            let next = clock.next(WallTime::from_ms(now)).expect("no bound");
            assert!(next > last && next >= now << 16);
            last = next;
        }
        clock.observe(1 << 40);
        assert_eq!(clock.next(WallTime::from_ms(1)), Ok((1 << 40) + 1));
        assert_eq!(clock.last(), (1 << 40) + 1);
        clock.observe(7);
        assert_eq!(clock.last(), (1 << 40) + 1);
    }

    #[test]
    fn two_readings_within_a_millisecond_are_ordered_by_the_wall_clock() {
        let (one, other) = (HybridClock::default(), HybridClock::default());
        let at = |micros: u64| WallTime::since_epoch(std::time::Duration::from_micros(1_700_000_000_000_000 + micros));
        for micros in (0..100_000).step_by(100) {
            let first = one.next(at(micros)).expect("no bound");
            let second = other.next(at(micros + 50)).expect("no bound");
            assert!(second > first, "50 µs later, at {micros}");
        }
    }

    #[test]
    fn nothing_above_the_bound_is_given_out() {
        let clock = HybridClock::bounded(10, 12);
        assert_eq!((clock.next(WallTime(0)), clock.next(WallTime(0))), (Ok(11), Ok(12)));
        assert_eq!(clock.next(WallTime(0)), Err(BeyondBound(13)));
        assert_eq!(clock.last(), 12, "a refusal gives out nothing");
        clock.raise(11);
        assert_eq!(clock.bound(), 12);
        clock.raise(100);
        assert_eq!(clock.next(WallTime(50)), Ok(50));
        clock.observe(500);
        assert_eq!(clock.next(WallTime(0)), Err(BeyondBound(501)), "what was only seen is not covered either");
    }
}

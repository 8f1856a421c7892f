//! Time and versions: the wall clock in milliseconds, and a hybrid logical clock over it.
//!
//! Kulkarni et al., *Logical Physical Clocks* (2014): 48 bits of milliseconds since the Unix epoch, 16 bits of counter.
//! Owner: one for the process, shared by all cores. Invariant: every version given out is greater than all given out or
//! observed before, also when the wall clock stands still or goes back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch. (The kernel's coarse clock is cheaper by 15 ns and up to 4 ms late: keys would
/// expire before their time.)
#[inline]
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A hybrid logical clock.
#[derive(Debug, Default)]
pub struct Clock {
    last: AtomicU64,
}

impl Clock {
    /// Goes on above a clock that was seen: in the log, or at a peer.
    pub fn observe(&self, clock: u64) {
        self.last.fetch_max(clock, Ordering::AcqRel);
    }

    /// A new, greatest time. The counter overflows into the milliseconds, which is only the future lent a little.
    #[inline]
    pub fn next(&self, now_ms: u64) -> u64 {
        let physical = now_ms << 16;
        let mut last = self.last.load(Ordering::Relaxed);
        loop {
            let next = physical.max(last + 1);
            match self.last.compare_exchange_weak(last, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return next,
                Err(current) => last = current,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_only_goes_forward_whatever_the_wall_clock_does() {
        let clock = Clock::default();
        let mut last = 0;
        for now in [5, 5, 5, 4, 0, 6, 1] {
            let next = clock.next(now);
            assert!(next > last && next >= now << 16);
            last = next;
        }
        clock.observe(1 << 40);
        assert_eq!(clock.next(1), (1 << 40) + 1);
    }
}

//! What a connection has received of requests that are not complete: what its body takes of the
//! core's memory, and whether the rest comes fast enough.
//!
//! ```text
//! sweep ─▶ look ─┬─ fewer than LEAST_RATE bytes a second for WINDOW ─▶ TooSlow, 408
//!                └─ since when nothing has come ─▶ a body of which nothing has come for STALLED
//!                                                 gives way when others need its memory, 503
//! ```
//!
//! Owner: the connection's seat; the sweeper looks, the connection counts. A read costs one
//! addition and no reading of the clock. Tested below and in `tests/bodies_in_memory.rs`.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::connections::Wake;

/// The least rate of a request that is coming in, in bytes a second: a thousandth of what a slow
/// line carries.
pub(super) const LEAST_RATE: u64 = 1024;
/// The time over which the rate is judged: a line that is lost for a moment has its retries in it.
pub(super) const WINDOW: Duration = Duration::from_secs(5);
/// A body of which nothing has come for this long gives way to others if the memory for bodies is
/// full.
pub(super) const STALLED: Duration = Duration::from_secs(3);

/// Why a connection's input was ended before its request was complete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Why {
    /// The request took longer than it may.
    #[default]
    Late,
    /// It came at less than [`LEAST_RATE`].
    TooSlow,
    /// Its body gave way.
    GaveWay,
}

/// See the module.
pub(crate) struct Receiving {
    /// Bytes received, of all requests.
    came: Cell<u64>,
    /// Bytes of the core's memory for bodies that this connection's takes.
    pub(super) held: Cell<usize>,
    pub(super) why: Cell<Why>,
    /// What `came` was at the last look, and since when it has been that.
    quiet: Cell<(u64, Instant)>,
    /// What `came` was when the window began.
    window: Cell<(u64, Instant)>,
}

impl Wake for Receiving {
    /// Whoever waits for a request waits for its socket only.
    fn wake(&self) {}
}

impl Receiving {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            came: Cell::new(0),
            held: Cell::new(0),
            why: Cell::new(Why::Late),
            quiet: Cell::new((0, now)),
            window: Cell::new((0, now)),
        }
    }

    /// More bytes have come.
    #[inline]
    pub(super) fn came(&self, more: usize) {
        self.came.set(self.came.get() + more as u64);
    }

    /// Looks at a request that has been coming in since `since`; whether it comes too slowly. Must be
    /// called several times a second.
    pub(super) fn look(&self, now: Instant, since: Instant) -> bool {
        let came = self.came.get();
        if came != self.quiet.get().0 || self.quiet.get().1 < since {
            self.quiet.set((came, now));
        }
        let (before, begun) = self.window.get();
        if begun < since {
            self.window.set((came, now));
            return false;
        }
        if now.saturating_duration_since(begun) < WINDOW {
            return false;
        }
        self.window.set((came, now));
        came - before < LEAST_RATE * WINDOW.as_secs()
    }

    /// For how long nothing has come, as far as the sweeper has seen.
    pub(super) fn quiet_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.quiet.get().1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks five times a second at a request of which `came` bytes come before each look, until it
    /// is too slow; after how many ms that is, `None` if not within a minute.
    fn judged(mut came: impl FnMut(u64) -> usize) -> Option<u64> {
        let begun = Instant::now();
        let receiving = Receiving::new(begun);
        (0..60_000).step_by(200).find(|&ms| {
            receiving.came(came(ms));
            receiving.look(begun + Duration::from_millis(ms), begun)
        })
    }

    #[test]
    fn what_comes_at_the_least_rate_is_waited_for_and_what_comes_slower_is_not() {
        assert_eq!(judged(|_| 0), Some(5_000));
        assert_eq!(judged(|_| 100), Some(5_000));
        assert_eq!(judged(|_| 210), None);
        // A long pause is none of a request that was fast before it, and ends it all the same.
        assert_eq!(judged(|ms| if ms < 11_000 { 10_000 } else { 0 }), Some(20_000));
        // In one piece every four seconds.
        assert_eq!(judged(|ms| if ms.is_multiple_of(4_000) { 6_000 } else { 0 }), None);
    }

    #[test]
    fn each_request_has_a_window_of_its_own() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let receiving = Receiving::new(begun);
        assert!(!receiving.look(at(100), begun));
        // Another one, a minute later.
        assert!(!receiving.look(at(60_200), at(60_000)) && !receiving.look(at(65_000), at(60_000)));
        assert_eq!(receiving.quiet_for(at(65_000)), Duration::from_millis(4_800));
        assert!(receiving.look(at(65_200), at(60_000)));
    }
}

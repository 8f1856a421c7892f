//! How much of a turn a core spent waiting for a processor, though it could have run.
//!
//! The kernel keeps a sum for each thread (`RunDelay`), and reading it is a system call, too much
//! for each turn. So a core reads it when a stall ends and then, for [`ATTENTIVE`], also when turns
//! begin, once in [`EVERY`]; beside that, the watcher reads it when it first sees a turn open. What
//! is said is a lower bound: waits of the time between a reading and the turn are taken for waits
//! outside of the turn.
//!
//! Owner: the core's thread. Tested below and in `tests/stalls.rs`.

use std::cell::Cell;

use crate::threads::{self, RunDelay};

/// Nanoseconds for which a core reads the sum after a stall: stalls come in crowds.
const ATTENTIVE: u64 = 10_000_000_000;
/// Nanoseconds between two readings then. A reading takes about a microsecond.
const EVERY: u64 = 1_000_000;

/// What the core knows at the end of a stall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Waited {
    /// The sum at the end of the turn; `None` if the kernel does not keep one.
    pub(super) sum_ns: Option<u64>,
    /// How much of the turn was waiting, at least, as far as the core knows.
    pub(super) least_ns: u64,
}

impl Waited {
    /// How much of a turn was waiting, at least, if the sum was `before_ns` at some time in it.
    pub(super) fn with(self, before_ns: Option<u64>) -> u64 {
        let seen = self.sum_ns.zip(before_ns).map_or(0, |(sum, before)| sum.saturating_sub(before));
        self.least_ns.max(seen)
    }
}

/// A core's waits: see the head of the file. Times are those of the core's turns.
pub(super) struct Delay {
    sum: Option<RunDelay>,
    attentive_until_ns: Cell<u64>,
    /// When the sum was read, and what it was.
    read: Cell<Option<(u64, u64)>>,
}

impl Delay {
    pub(super) fn of_this_thread() -> Self {
        Self { sum: RunDelay::of(threads::own_tid()), attentive_until_ns: Cell::new(0), read: Cell::new(None) }
    }

    /// A turn begins.
    #[inline]
    pub(super) fn began(&self, now_ns: u64) {
        if now_ns < self.attentive_until_ns.get() {
            self.look(now_ns);
        }
    }

    #[cold]
    fn look(&self, now_ns: u64) {
        if self.read.get().is_none_or(|(at_ns, _)| now_ns.saturating_sub(at_ns) >= EVERY) {
            self.note(now_ns);
        }
    }

    fn note(&self, now_ns: u64) -> Option<u64> {
        let sum_ns = self.sum.as_ref().and_then(RunDelay::ns);
        self.read.set(sum_ns.map(|sum_ns| (now_ns, sum_ns)));
        sum_ns
    }

    /// A turn that was a stall ends.
    pub(super) fn stalled(&self, began_ns: u64, now_ns: u64) -> Waited {
        let before = self.read.get();
        let sum_ns = self.note(now_ns);
        self.attentive_until_ns.set(now_ns + ATTENTIVE);
        let least_ns = sum_ns.zip(before).map_or(0, |(sum, before)| least(before, began_ns, sum));
        Waited { sum_ns, least_ns }
    }
}

/// How much was waited since `began_ns`, at least, if the sum is `sum` now and was `before` at a
/// time.
fn least((at_ns, before): (u64, u64), began_ns: u64, sum: u64) -> u64 {
    sum.saturating_sub(before).saturating_sub(began_ns.saturating_sub(at_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_between_a_reading_and_the_turn_do_not_count() {
        assert_eq!(least((100, 7), 100, 47), 40);
        assert_eq!(least((100, 7), 110, 47), 30);
        assert_eq!(least((100, 7), 200, 47), 0);
        // Read in the turn, or a sum that went back.
        assert_eq!((least((150, 7), 100, 47), least((100, 50), 100, 47)), (40, 0));
    }

    #[test]
    fn the_larger_of_two_lower_bounds_is_taken() {
        let waited = Waited { sum_ns: Some(90), least_ns: 20 };
        assert_eq!(
            (waited.with(None), waited.with(Some(80)), waited.with(Some(50)), waited.with(Some(95))),
            (20, 20, 40, 20)
        );
        assert_eq!(Waited::default().with(Some(5)), 0);
    }

    #[test]
    fn a_core_is_attentive_after_a_stall() {
        let delay = Delay::of_this_thread();
        delay.began(5);
        assert_eq!(delay.read.get(), None);
        let waited = delay.stalled(5, 1000);
        assert_eq!((waited.least_ns, waited.sum_ns.is_some()), (0, delay.sum.is_some()));
        if delay.sum.is_none() {
            return;
        }
        let read = || delay.read.get().map(|(at_ns, _)| at_ns);
        delay.began(1001);
        assert_eq!(read(), Some(1000));
        delay.began(1000 + EVERY);
        assert_eq!(read(), Some(1000 + EVERY));
        delay.began(1000 + ATTENTIVE);
        assert_eq!(read(), Some(1000 + EVERY));
    }
}

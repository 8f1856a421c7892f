//! The bound of a queue that never makes anybody wait: what does not fit is dropped, and counted,
//! so that somebody else sees to it.
//!
//! Owner: shared by those who fill the queue and the one who empties it; the queue itself is the
//! caller's.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Counts what is queued, and what was not.
#[derive(Debug)]
pub struct Backlog {
    count_max: usize,
    bytes_max: usize,
    count: AtomicUsize,
    bytes: AtomicUsize,
    overflowed: AtomicU64,
}

impl Backlog {
    /// Room for so many items, of so many bytes together.
    #[must_use]
    pub const fn new(count_max: usize, bytes_max: usize) -> Self {
        Self {
            count_max,
            bytes_max,
            count: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            overflowed: AtomicU64::new(0),
        }
    }

    /// Counts an item in, which is to be queued then. `false`: it does not fit, and was counted as
    /// dropped.
    #[must_use]
    pub fn admit(&self, bytes: usize) -> bool {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let held = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = count < self.count_max && held + bytes <= self.bytes_max;
        if !fits {
            self.drop_admitted(bytes);
        }
        fits
    }

    /// An item that was admitted could not be queued.
    pub fn drop_admitted(&self, bytes: usize) {
        self.taken(1, bytes);
        self.overflowed.fetch_add(1, Ordering::Relaxed);
    }

    /// Items have left the queue.
    pub fn taken(&self, count: usize, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.count.fetch_sub(count, Ordering::Release);
    }

    /// Items in the queue.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Items that were dropped so far.
    #[must_use]
    pub fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted_as_dropped() {
        let backlog = Backlog::new(2, 100);
        assert!(backlog.admit(60) && !backlog.admit(41) && backlog.admit(40));
        assert!(!backlog.admit(0), "there are two");
        assert_eq!((backlog.count(), backlog.overflowed()), (2, 2));
        backlog.taken(1, 60);
        assert!(backlog.admit(60));
        backlog.drop_admitted(60);
        assert_eq!((backlog.count(), backlog.overflowed()), (1, 3));
    }
}

//! How long a record is kept that only says "absent".

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::record::Record;

/// Tombstones and expired records are kept for the grace time, and beyond it while somebody may
/// still bring older versions.
pub(crate) struct Retention {
    grace: Duration,
    kept: AtomicBool,
    /// A segment lies in the folder that this store does not know.
    left_behind: AtomicBool,
}

impl Retention {
    pub(crate) const fn new(grace: Duration) -> Self {
        Self { grace, kept: AtomicBool::new(false), left_behind: AtomicBool::new(false) }
    }

    /// See [`crate::Store::keep_tombstones`].
    pub(crate) fn keep(&self, keep: bool) {
        self.kept.store(keep, Ordering::Relaxed);
    }

    /// A segment could not be removed or not be read, and the next start may find what is in it.
    /// Until then nothing may be dropped that is newer.
    pub(crate) fn segment_left_behind(&self) {
        self.left_behind.store(true, Ordering::Relaxed);
    }

    /// Whether a record only says "absent", and that for longer than it has to.
    pub(crate) fn is_over(&self, record: &Record<'_>, now_ms: u64) -> bool {
        if self.kept.load(Ordering::Relaxed) || self.left_behind.load(Ordering::Relaxed) {
            return false;
        }
        let grace = self.grace.as_millis() as u64;
        record.absent_since_ms(now_ms).is_some_and(|since| since.saturating_add(grace) <= now_ms)
    }
}

//! How the disk is: whether a sync failed, after which nothing is acknowledged, and what else it
//! refused.
//!
//! After a failed sync the kernel may have dropped the pages that it could not write, and the next
//! sync succeeds. So a failure is for good, until the store is opened again and has read what is
//! there.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use koltso_instrument::Mutex;

use crate::error::WriteError;
use crate::stats::Stats;

/// Refused writes are logged once in this time.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct Health {
    failed: AtomicBool,
    io_errors: AtomicU64,
    resource_errors: AtomicU64,
    said: Mutex<Said>,
}

/// When a refusal was logged last, and how many were not since.
#[derive(Default)]
struct Said {
    last: Option<Instant>,
    left_out: u64,
}

impl Said {
    /// How many were left out, if it is time for a line again.
    fn is_time(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < LOG_EVERY) {
            self.left_out += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            failed: AtomicBool::new(false),
            io_errors: AtomicU64::new(0),
            resource_errors: AtomicU64::new(0),
            said: Mutex::new(&"refused writes", Said::default()),
        }
    }
}

impl Health {
    /// Whether a sync failed.
    #[inline]
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// An error if a sync failed.
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.has_failed() { Err(io::Error::other("the disk failed before")) } else { Ok(()) }
    }

    /// A sync failed.
    pub(crate) fn fail(&self, error: &io::Error) {
        if !self.failed.swap(true, Ordering::SeqCst) {
            tracing::error!("the disk failed, nothing is written until the server is started again: {error}");
        }
    }

    /// What a write is answered for which the system refused something. Counted, and logged at a
    /// bounded rate; a full disk is logged where it is noticed. After a failed sync that is the
    /// answer, whatever else is refused.
    pub(crate) fn refuse(&self, error: io::Error) -> WriteError {
        if self.has_failed() {
            return WriteError::Failed;
        }
        let refusal = WriteError::of(error);
        let count = match refusal {
            WriteError::Io(_) => &self.io_errors,
            WriteError::Resources(_) => &self.resource_errors,
            _ => return refusal,
        };
        count.fetch_add(1, Ordering::Relaxed);
        if let Some(left_out) = self.said.lock().is_time(Instant::now()) {
            tracing::error!("a write was refused, and {left_out} more since this was logged last: {refusal}");
        }
        refusal
    }

    pub(crate) fn copy_to(&self, stats: &mut Stats) {
        stats.failed = self.has_failed();
        stats.io_errors = self.io_errors.load(Ordering::Relaxed);
        stats.resource_errors = self.resource_errors.load(Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_all_counted_and_seldom_logged() {
        let health = Health::default();
        for _ in 0..1_000 {
            assert!(matches!(health.refuse(io::Error::from_raw_os_error(libc::EIO)), WriteError::Io(_)));
        }
        assert!(matches!(health.refuse(io::Error::from_raw_os_error(libc::EMFILE)), WriteError::Resources(_)));
        assert!(matches!(health.refuse(io::ErrorKind::StorageFull.into()), WriteError::DiskFull));
        let mut stats = Stats::default();
        health.copy_to(&mut stats);
        assert_eq!((stats.io_errors, stats.resource_errors, stats.failed), (1_000, 1, false));

        let (mut said, start) = (Said::default(), Instant::now());
        let mut lines = Vec::new();
        for ms in 0..25_000 {
            lines.extend(said.is_time(start + Duration::from_millis(ms)));
        }
        assert_eq!(lines, [0, 9_999, 9_999], "one line each ten seconds, and none is forgotten");
    }
}

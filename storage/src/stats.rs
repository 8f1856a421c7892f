//! Figures of a store, and the counters behind some of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::scrub_state::ScrubStats;

/// Figures of a store. Bytes are bytes of records, padding included.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Keys that have a value (or had one whose time ran out and that was not compacted yet).
    pub records: u64,
    /// Keys that are known to be deleted.
    pub tombstones: u64,
    /// Bytes that the index points to.
    pub live_bytes: u64,
    /// Bytes that wait for compaction.
    pub dead_bytes: u64,
    /// Bytes that the segment files occupy on disk.
    pub disk_bytes: u64,
    /// Segment files.
    pub segments: u64,
    /// Places in the log that were found damaged since the store was opened.
    pub damaged_records: u64,
    /// Of these, records that stand for nothing any more: they were repaired, overwritten, or
    /// dropped.
    pub repaired_records: u64,
    /// Of the damaged ones, segments without an intact header: each counts once, whatever is in it. Their
    /// files are in none of the other figures.
    pub unreadable_segments: u64,
    /// Pages of segments and sidecars that could not be had since the store was opened, because
    /// somebody cut a file short or the disk cannot read them. The records there are damaged.
    pub lost_pages: u64,
    /// Records that were skipped when the store was opened, because sectors of them had never got
    /// to the disk while later records had: see [`Recovered`](crate::Recovered).
    pub torn_records: u64,
    /// How the scrub is.
    pub scrub: ScrubStats,
    /// How the check of the digests against the log is.
    pub digests: DigestStats,
    /// Bytes appended since the store was opened.
    pub appended_bytes: u64,
    /// Segments that compaction has given back.
    pub compacted_segments: u64,
    /// Bytes that compaction has moved.
    pub compacted_bytes: u64,
    /// Times that a writer had to allocate for itself.
    pub stalls: u64,
    /// Syncs done by the engine, and how long they took in all and at most.
    pub syncs: u64,
    /// Microseconds that these took together.
    pub sync_us_total: u64,
    /// Microseconds of the slowest one.
    pub sync_us_max: u64,
    /// The disk has no room for new records.
    pub disk_full: bool,
    /// Writes refused because the disk answered with an error.
    pub io_errors: u64,
    /// Writes refused because there were no file descriptors or no memory.
    pub resource_errors: u64,
    /// The disk failed: nothing is written any more.
    pub failed: bool,
}

/// How the check of the digests against the log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DigestStats {
    /// Rounds over all partitions since the start.
    pub rounds: u64,
    /// When a round ended last, in ms since the Unix epoch; 0 if none has.
    pub last_ended_ms: u64,
    /// Leaves that were not what the log says, and were put right.
    pub corrected: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) stalls: AtomicU64,
    pub(crate) compacted_segments: AtomicU64,
    pub(crate) compacted_bytes: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) sync_us_total: AtomicU64,
    pub(crate) sync_us_max: AtomicU64,
    digest_rounds: AtomicU64,
    digest_round_ended_ms: AtomicU64,
    digest_leaves_corrected: AtomicU64,
}

impl Counters {
    /// A sync of a log ended well after `took`.
    pub(crate) fn synced(&self, took: Duration) {
        let took_us = took.as_micros() as u64;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.sync_us_total.fetch_add(took_us, Ordering::Relaxed);
        self.sync_us_max.fetch_max(took_us, Ordering::Relaxed);
    }

    /// A writer has to allocate for itself.
    pub(crate) fn stalled(&self) {
        self.stalls.fetch_add(1, Ordering::Relaxed);
    }

    /// A round of the check of the digests is over.
    pub(crate) fn digests_checked(&self, now_ms: u64) {
        self.digest_rounds.fetch_add(1, Ordering::Relaxed);
        self.digest_round_ended_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Leaves of the digests were put right.
    pub(crate) fn leaves_corrected(&self, count: u64) {
        self.digest_leaves_corrected.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn copy_to(&self, stats: &mut Stats) {
        stats.digests = DigestStats {
            rounds: self.digest_rounds.load(Ordering::Relaxed),
            last_ended_ms: self.digest_round_ended_ms.load(Ordering::Relaxed),
            corrected: self.digest_leaves_corrected.load(Ordering::Relaxed),
        };
        stats.compacted_segments = self.compacted_segments.load(Ordering::Relaxed);
        stats.compacted_bytes = self.compacted_bytes.load(Ordering::Relaxed);
        stats.stalls = self.stalls.load(Ordering::Relaxed);
        stats.syncs = self.syncs.load(Ordering::Relaxed);
        stats.sync_us_total = self.sync_us_total.load(Ordering::Relaxed);
        stats.sync_us_max = self.sync_us_max.load(Ordering::Relaxed);
    }
}

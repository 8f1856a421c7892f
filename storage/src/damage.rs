//! Places in the log that were found damaged: counted once each, and said once each in the log. A
//! whole segment, whose header is damaged, is one of them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use koltso_instrument::Mutex;

use crate::indexed::IndexedSegment;

/// Remembered places; beyond this many, a place that is found again is counted again.
const REMEMBERED_MAX: usize = 65_536;

#[derive(Debug)]
pub(crate) struct DamageLog {
    seen: Mutex<HashSet<(u64, u32)>>,
    count: AtomicU64,
    unreadable_segments: AtomicU64,
    torn_records: AtomicU64,
    lost_pages: AtomicU64,
}

impl Default for DamageLog {
    fn default() -> Self {
        Self {
            seen: Mutex::new(&"damaged records", HashSet::new()),
            count: AtomicU64::new(0),
            unreadable_segments: AtomicU64::new(0),
            torn_records: AtomicU64::new(0),
            lost_pages: AtomicU64::new(0),
        }
    }
}

impl DamageLog {
    /// A record of `segment` is damaged: compaction does not move it, so that the damage stays
    /// visible.
    pub(crate) fn found(&self, segment: &IndexedSegment, offset: u32) {
        segment.quarantine();
        self.report(segment.sequence, offset);
    }

    /// A segment has no intact header, so none of its records can be told from garbage. Its file
    /// stays where it is: another read may find it whole, and so may who repairs it.
    pub(crate) fn found_unreadable(&self, sequence: u64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.unreadable_segments.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            "the segment {sequence:016x}.log has no intact header: none of its records is served, and the file is left where it is"
        );
    }

    /// Recovery took `count` places of a segment for records that a power loss kept from being
    /// written whole, and skipped them. Bits that flipped in a value with zeros in it can look the
    /// same, so this is said, too.
    pub(crate) fn skipped(&self, sequence: u64, count: u32) {
        self.torn_records.fetch_add(u64::from(count), Ordering::Relaxed);
        tracing::warn!(
            "{count} records lack sectors that never got to the disk, and are skipped: segment {sequence:016x}.log"
        );
    }

    /// Pages of a segment or its sidecar could not be had. The records there answer as damaged ones,
    /// and compaction leaves the segment alone.
    pub(crate) fn lost_pages(&self, segment: &IndexedSegment, count: u32) {
        segment.quarantine();
        self.lost_pages.fetch_add(u64::from(count), Ordering::Relaxed);
        tracing::error!(
            "{count} pages of the segment {:016x}.log, or of its sidecar, cannot be read: the file was cut short, or the disk \
             fails; the records there are not served",
            segment.sequence
        );
    }

    fn report(&self, sequence: u64, offset: u32) {
        let mut seen = self.seen.lock();
        if seen.contains(&(sequence, offset)) {
            return;
        }
        if seen.len() < REMEMBERED_MAX {
            seen.insert((sequence, offset));
        }
        drop(seen);
        self.count.fetch_add(1, Ordering::Relaxed);
        tracing::error!("a record is damaged and is not served: segment {sequence:016x}.log, offset {offset}");
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Records that recovery skipped as half written.
    pub(crate) fn torn_records(&self) -> u64 {
        self.torn_records.load(Ordering::Relaxed)
    }

    /// Pages of the log that could not be had.
    pub(crate) fn lost_page_count(&self) -> u64 {
        self.lost_pages.load(Ordering::Relaxed)
    }

    /// Of the damaged ones, whole segments.
    pub(crate) fn unreadable_segments(&self) -> u64 {
        self.unreadable_segments.load(Ordering::Relaxed)
    }
}

//! Places in the log that were found damaged: counted once each, and said once each in the log. A
//! whole segment, whose header is damaged, is one of them. Those of records wait in a queue for
//! whoever has a replica to repair them from ([`crate::mending`]).
//!
//! Bounds: [`REMEMBERED_MAX`] places, of which [`WAITING_MAX`] wait. One that finds no room waits
//! when it is found again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use koltso_instrument::Mutex;

use crate::indexed::IndexedSegment;

/// Remembered places; beyond this many, a place that is found again is counted again.
const REMEMBERED_MAX: usize = 65_536;

/// Places that wait to be repaired.
const WAITING_MAX: usize = 4096;
/// A place that still stands for its key waits again after this long: whoever took it may have found
/// no replica that could be asked.
const AGAIN: Duration = Duration::from_secs(10);

/// Where a record lies: the sequence of its segment, and its offset there.
pub(crate) type Spot = (u64, u32);

/// What is known of a damaged place.
#[derive(Debug)]
struct Seen {
    waits: bool,
    /// Since when it has waited, or was taken.
    since: Instant,
}

#[derive(Debug, Default)]
struct Spots {
    seen: BTreeMap<Spot, Seen>,
    waiting: VecDeque<Spot>,
    /// Where [`DamageLog::some`] goes on.
    next: Spot,
}

impl Spots {
    fn wait(&mut self, spot: Spot) {
        let waits = self.waiting.len() < WAITING_MAX;
        if waits {
            self.waiting.push_back(spot);
        }
        self.seen.insert(spot, Seen { waits, since: Instant::now() });
    }
}

#[derive(Debug)]
pub(crate) struct DamageLog {
    spots: Mutex<Spots>,
    count: AtomicU64,
    repaired: AtomicU64,
    unreadable_segments: Mutex<Vec<u64>>,
    torn_records: AtomicU64,
    lost_pages: AtomicU64,
}

impl Default for DamageLog {
    fn default() -> Self {
        Self {
            spots: Mutex::new(&"damaged records", Spots::default()),
            count: AtomicU64::new(0),
            repaired: AtomicU64::new(0),
            unreadable_segments: Mutex::new(&"unreadable segments", Vec::new()),
            torn_records: AtomicU64::new(0),
            lost_pages: AtomicU64::new(0),
        }
    }
}

impl DamageLog {
    /// A record of `segment` is damaged: compaction does not move it, so that the damage stays
    /// visible, and whoever has a replica is asked for it.
    pub(crate) fn found(&self, segment: &IndexedSegment, offset: u32) {
        segment.quarantine();
        self.report(segment.sequence, offset);
    }

    /// A segment has no intact header, so none of its records can be told from garbage. Its file
    /// stays where it is: another read may find it whole, and so may who repairs it.
    pub(crate) fn found_unreadable(&self, sequence: u64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.unreadable_segments.lock().push(sequence);
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
        let spot = (sequence, offset);
        let mut spots = self.spots.lock();
        if let Some(seen) = spots.seen.get(&spot) {
            if !seen.waits && seen.since.elapsed() >= AGAIN {
                spots.wait(spot);
            }
            return;
        }
        if spots.seen.len() < REMEMBERED_MAX {
            spots.wait(spot);
        }
        drop(spots);
        self.count.fetch_add(1, Ordering::Relaxed);
        tracing::error!("a record is damaged and is not served: segment {sequence:016x}.log, offset {offset}");
    }

    /// The place that has waited longest.
    pub(crate) fn take(&self) -> Option<Spot> {
        let mut spots = self.spots.lock();
        let spot = spots.waiting.pop_front()?;
        if let Some(seen) = spots.seen.get_mut(&spot) {
            *seen = Seen { waits: false, since: Instant::now() };
        }
        Some(spot)
    }

    /// Up to `count` of the damaged places, others at each call.
    pub(crate) fn some(&self, count: usize) -> Vec<Spot> {
        let mut spots = self.spots.lock();
        let found: Vec<Spot> = spots.seen.range(spots.next..).take(count).map(|(&spot, _)| spot).collect();
        spots.next =
            if found.len() < count { (0, 0) } else { found.last().map_or((0, 0), |last| (last.0, last.1 + 1)) };
        found
    }

    /// What was damaged at a place still stands for its key: it waits again, in a while.
    pub(crate) fn wait_again(&self, spot: Spot) {
        let mut spots = self.spots.lock();
        if spots.seen.get(&spot).is_some_and(|seen| !seen.waits && seen.since.elapsed() >= AGAIN) {
            spots.wait(spot);
        }
    }

    /// What was damaged at a place stands for nothing any more.
    pub(crate) fn repaired(&self, spot: Spot) {
        if self.spots.lock().seen.remove(&spot).is_some() {
            self.repaired.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Places that were damaged and stand for nothing any more.
    pub(crate) fn repaired_count(&self) -> u64 {
        self.repaired.load(Ordering::Relaxed)
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
        self.unreadable_segments.lock().len() as u64
    }

    /// Their sequence numbers.
    pub(crate) fn unreadable(&self) -> Vec<u64> {
        self.unreadable_segments.lock().clone()
    }
}

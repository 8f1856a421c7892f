//! Giving space back: what is live in a segment moves to compaction's own log, and the segment
//! goes.
//!
//! A segment is chosen when enough of it is dead, or when many small ones lie about (each start
//! leaves some). Records are copied with their versions; an entry moves only if it still names the
//! old place, under the lock of its stripe.
//!
//! A tombstone (or an expired record) is dropped once it is older than the grace time and no other
//! segment holds an older version of its key, which would come back at the next start otherwise.
//!
//! Invariants:
//! 1. A segment is removed only after what replaces its records is synced: the copies, and the
//!    newer versions elsewhere.
//! 2. A damaged live record is not moved: its segment is kept, so that the damage stays visible
//!    until a newer version is written.
//!
//! Bounds: `compaction_rate` bytes a second are read; one segment at a time, 16 bytes of memory a
//! record of it; on a full disk, the reserve that only this log may use.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use koltso_instrument::waiting;

use crate::entry::Entry;
use crate::error::{self, WriteError};
use crate::hash::IndexHash;
use crate::index::Find;
use crate::indexed::IndexedSegment;
use crate::log::Writer;
use crate::parts::Parts;
use crate::record::Record;
use crate::segment::SEGMENT_HEADER;
use crate::syncing::{self, Syncer};

/// How often candidates are looked for when there was none.
const LOOK: Duration = Duration::from_millis(200);
/// This many segments that are less than a quarter full are brought together.
const SMALL_MANY: usize = 8;
/// What it counts for the rate to look at a record and at what may be its older version in another
/// segment.
const LOOK_COST: u64 = 64;
/// Segments that are given back together: one sync for all of them.
const BATCH: usize = 16;
/// The rate is kept over pieces of this many bytes.
const PIECE: u64 = 256 << 10;

/// Keeps a bounded rate.
struct Pace {
    rate: u64,
    since_pause: u64,
}

impl Pace {
    fn spend(&mut self, parts: &Parts, bytes: u64) {
        self.since_pause += bytes;
        if self.since_pause >= PIECE {
            parts.threads.pause(Duration::from_secs_f64(self.since_pause as f64 / self.rate as f64));
            self.since_pause = 0;
        }
    }
}

pub(crate) fn run(parts: &Arc<Parts>) {
    let mut writer: Option<Writer> = None;
    let mut pace = Pace { rate: parts.options.compaction_rate.max(1), since_pause: 0 };
    let mut reaped = Instant::now();
    while !parts.threads.is_closing() {
        let mut candidates = choose(parts);
        let hurry = parts.room.is_full();
        let interval = if hurry { LOOK } else { parts.options.reap_interval };
        if candidates.is_empty() && reaped.elapsed() >= interval {
            candidates = reapable(parts, &mut pace);
            reaped = Instant::now();
        }
        let mut done = false;
        while !candidates.is_empty() {
            // Taken out, so that what is given back is not held here any longer.
            let batch: Vec<_> = candidates.drain(..BATCH.min(candidates.len())).collect();
            let mut empty = Vec::new();
            let mut failed = None;
            for segment in batch {
                match evacuate(parts, &mut writer, &segment, &mut pace) {
                    Ok(true) => {
                        done = true;
                        empty.push(segment);
                    }
                    Ok(false) => {}
                    Err(e) => {
                        tracing::warn!("compaction of segment {:016x}.log has to wait: {e}", segment.sequence);
                        failed = Some(e);
                        break;
                    }
                }
                if parts.threads.is_closing() || parts.room.is_full() {
                    break;
                }
            }
            if let Err(e) = give_back(parts, empty) {
                tracing::warn!("compacted segments cannot be given back: {e}");
                failed = Some(e);
            }
            if parts.threads.is_closing() {
                return;
            }
            if failed.is_some() {
                parts.threads.pause(Duration::from_secs(1));
            }
        }
        if !done {
            parts.threads.pause(LOOK);
        }
    }
}

/// Sealed segments worth compacting, the emptiest first.
fn choose(parts: &Parts) -> Vec<Arc<IndexedSegment>> {
    let sealed: Vec<Arc<IndexedSegment>> = parts.segments.all().into_iter().filter(|s| s.sidecar().is_some()).collect();
    let share = |s: &IndexedSegment| s.dead_bytes() as f64 / s.used_bytes().max(1) as f64;
    let mut chosen: Vec<Arc<IndexedSegment>> =
        sealed.iter().filter(|s| s.is_free() || share(s) >= parts.options.compaction_dead_share).cloned().collect();
    let small: Vec<_> = sealed.iter().filter(|s| s.used_bytes() < parts.room.roll_at() / 4).cloned().collect();
    if chosen.is_empty() && small.len() >= SMALL_MANY {
        chosen = small;
    }
    chosen.retain(|s| s.is_free() || !s.is_quarantined());
    chosen.sort_by(|a, b| share(b).total_cmp(&share(a)));
    chosen
}

/// Segments in which enough could be dropped if they were compacted now, though the index still
/// names it.
fn reapable(parts: &Parts, pace: &mut Pace) -> Vec<Arc<IndexedSegment>> {
    let now_ms = parts.env().now_ms();
    let segments = parts.segments.all();
    let mut chosen = Vec::new();
    for segment in &segments {
        let Some(sidecar) = segment.sidecar() else {
            continue;
        };
        if sidecar.tombstones + sidecar.expiring == 0 || segment.is_quarantined() {
            continue;
        }
        let mut droppable = segment.dead_bytes();
        for entry in sidecar.entries().filter(|e| e.says_absent()) {
            if parts.threads.is_closing() {
                return Vec::new();
            }
            pace.spend(parts, LOOK_COST);
            let Ok(record) = segment.record(entry.offset) else {
                continue;
            };
            if !parts.retention.is_over(&record, now_ms) {
                continue;
            }
            pace.spend(parts, LOOK_COST * segments.len() as u64);
            let named = parts.index.lock(entry.hash).names(entry.hash, segment, entry.offset);
            if named && !older_elsewhere(parts, segment, &record, |_| true) {
                droppable += record.size() as u64;
            }
        }
        let share = droppable as f64 / segment.used_bytes().max(1) as f64;
        if share >= parts.options.compaction_dead_share {
            chosen.push(segment.clone());
        }
    }
    chosen
}

/// Whether one of the `asked` segments beside `home` has, or may have, an older version of the
/// record's key.
fn older_elsewhere(
    parts: &Parts,
    home: &IndexedSegment,
    record: &Record<'_>,
    asked: impl Fn(&IndexedSegment) -> bool,
) -> bool {
    let segments = parts.segments.all();
    let (key, version) = (record.key(), record.version());
    let mut others =
        segments.iter().filter(|s| s.sequence != home.sequence && s.oldest_clock() <= version.clock && asked(s));
    others.any(|other| match other.sidecar() {
        Some(sidecar) => {
            let at = sidecar.lower_bound(other, key);
            at < sidecar.len() && !other.record(sidecar.entry(at).offset).is_ok_and(|r| r.key() != key)
        }
        None => !other.order.lacks(other, key),
    })
}

/// Moves what is live elsewhere; `false` if something has to stay.
fn evacuate(
    parts: &Arc<Parts>,
    writer: &mut Option<Writer>,
    segment: &Arc<IndexedSegment>,
    pace: &mut Pace,
) -> Result<bool, WriteError> {
    let now_ms = parts.env().now_ms();
    let mut moved = 0;
    let mut stays = 0;
    if !segment.is_free() {
        let sidecar = segment.sidecar().expect("only sealed segments are chosen");
        // What can be dropped goes first: the copies made after it would stand in the way of that
        // decision.
        for entry in sidecar.entries().filter(|e| e.says_absent()) {
            drop_absent(parts, segment, entry.hash, entry.offset, now_ms);
        }
        // As they lie: in the order of their keys every single one would wait for memory, or for
        // the disk.
        let mut places: Vec<(u32, u32, IndexHash)> = sidecar.entries().map(|e| (e.offset, e.size, e.hash)).collect();
        places.sort_unstable_by_key(|&(offset, ..)| offset);
        for (offset, size, hash) in places {
            if parts.threads.is_closing() {
                return Ok(false);
            }
            pace.spend(parts, u64::from(size));
            if !parts.index.lock(hash).names(hash, segment, offset) {
                continue;
            }
            let record = segment.record(offset).ok().filter(|r| segment.header_intact(offset, r) && r.value_intact());
            let Some(record) = record else {
                parts.damage.found(segment, offset);
                stays += 1;
                continue;
            };
            if record.size() > (parts.options.segment_size - SEGMENT_HEADER) as usize {
                // From a time of larger segments.
                stays += 1;
                continue;
            }
            if writer.is_none() {
                *writer = Some(Writer::new(parts.clone(), true).map_err(|e| parts.health.refuse(e))?);
            }
            let Some(writer) = writer.as_mut() else {
                continue;
            };
            let to = writer.append(&record.draft())?;
            relocate(parts, hash, &record, (segment, offset), (writer.segment(), to));
            moved += record.size() as u64;
        }
    }
    parts.counters.compacted_bytes.fetch_add(moved, Ordering::Relaxed);
    if stays > 0 || !segment.is_free() {
        // To come again would find the same. (Beside what was counted: a record that was damaged
        // before it was sealed.)
        segment.quarantine();
        return Ok(false);
    }
    Ok(true)
}

/// Removes segments in which nothing is live, after one sync for all of them.
fn give_back(parts: &Arc<Parts>, empty: Vec<Arc<IndexedSegment>>) -> Result<(), WriteError> {
    if empty.is_empty() {
        return Ok(());
    }
    // Invariant 1. What recovery found unsealed was written by a process that did not come to sync
    // it.
    for segment in parts.seal_queue.all().iter().filter(|s| s.sidecar().is_none()) {
        segment.settle(parts.env()).map_err(|e| parts.health.refuse(e))?;
        let synced = waiting(&"sync of an unsealed segment", || syncing::sync_segment(parts, segment));
        synced.map_err(|_| WriteError::Failed)?;
    }
    for log in parts.logs.all() {
        syncing::sync_log(parts, &log, Syncer::Engine).map_err(|_| WriteError::Failed)?;
    }
    // The names of the copies' segments survive from here on, which in the mode "os" nobody else
    // has seen to. And names that were removed before stay away: or an older version could be back,
    // whose tombstone was dropped since and goes now.
    parts.folder.sync(parts.env()).map_err(|e| {
        // A folder has to be opened for that, and without a descriptor nothing was synced that
        // could have failed.
        if !error::is_shortage(&e) {
            parts.health.fail(&e);
        }
        parts.health.refuse(e)
    })?;
    for segment in empty {
        // The blocks come back when nobody holds the segment any more, so it is let go at once.
        parts.retire(&segment);
        parts.counters.compacted_segments.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Forgets a record that says "absent", if it may be forgotten.
fn drop_absent(parts: &Parts, segment: &IndexedSegment, hash: IndexHash, offset: u32, now_ms: u64) {
    let intact = segment.record(offset).ok().filter(|r| segment.header_intact(offset, r));
    let Some(record) = intact.filter(|record| parts.retention.is_over(record, now_ms)) else {
        return;
    };
    // Most segments do not change, so they are asked without the lock.
    let newest = parts.segments.newest();
    if older_elsewhere(parts, segment, &record, |_| true) {
        return;
    }
    let mut stripe = parts.index.lock(hash);
    // A version that came late in between lost against this record and lies in a log now: it would
    // come back at the next start. Under the lock of the stripe none can be published, so those
    // that can have got it are asked again.
    if older_elsewhere(parts, segment, &record, |s| s.sidecar().is_none() || s.sequence > newest) {
        return;
    }
    if stripe.remove(Entry::new(hash, segment.slot, offset), record.is_tombstone()) {
        segment.sub_live(record.size() as u64);
    }
}

/// Lets the index name the copy, if it still names the original.
fn relocate(
    parts: &Parts,
    hash: IndexHash,
    record: &Record<'_>,
    from: (&IndexedSegment, u32),
    to: (&IndexedSegment, u32),
) {
    let (old, new) = (Entry::new(hash, from.0.slot, from.1), Entry::new(hash, to.0.slot, to.1));
    let mut stripe = parts.index.lock(hash);
    if !stripe.names(hash, from.0, from.1) {
        return;
    }
    debug_assert!(matches!(stripe.find(hash, record.key()), Find::Hit(_)));
    let size = record.size() as u64;
    stripe.replace(old, new, record.is_tombstone(), record.is_tombstone());
    from.0.sub_live(size);
    to.0.add_live(size);
}

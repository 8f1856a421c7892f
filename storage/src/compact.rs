//! Giving space back: what is live in a segment moves to compaction's own log, and the segment goes.
//!
//! A segment is chosen when enough of it is dead, or when many small ones lie about (each start leaves some). Records
//! are copied with their versions; an entry moves only if it still names the old place, under the lock of its stripe.
//!
//! A tombstone (or an expired record) is dropped once it is older than the grace time and no other segment holds an
//! older version of its key, which would come back at the next start otherwise.
//!
//! Invariants:
//! 1. A segment is removed only after what replaces its records is synced: the copies, and the newer versions elsewhere.
//! 2. A damaged live record is not moved: its segment is kept, so that the damage stays visible until a newer version
//!    is written.
//!
//! Bounds: `compaction_rate` bytes a second are read; one segment at a time, 16 bytes of memory a record of it; on a full
//! disk, the reserve that only this log may use.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use koltso_instrument::waiting;

use crate::WriteError;
use crate::disk::sync_folder;
use crate::hash::KeyHash;
use crate::index::{Entry, Find};
use crate::log::Writer;
use crate::record::Record;
use crate::segment::{SEGMENT_HEADER, Segment};
use crate::store::{Shared, SyncMode};

/// How often candidates are looked for when there was none.
const LOOK: Duration = Duration::from_millis(200);
/// This many segments that are less than a quarter full are brought together.
const SMALL_MANY: usize = 8;
/// What it counts for the rate to look at a record and at what may be its older version in another segment.
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
    fn spend(&mut self, shared: &Shared, bytes: u64) {
        self.since_pause += bytes;
        if self.since_pause >= PIECE {
            shared.pause(Duration::from_secs_f64(self.since_pause as f64 / self.rate as f64));
            self.since_pause = 0;
        }
    }
}

pub(crate) fn run(shared: &Arc<Shared>) {
    let mut writer: Option<Writer> = None;
    let mut pace = Pace { rate: shared.options.compaction_rate.max(1), since_pause: 0 };
    let mut reaped = Instant::now();
    while !shared.is_closing() {
        let mut candidates = choose(shared);
        let hurry = shared.disk_full.load(Ordering::Relaxed);
        let interval = if hurry { LOOK } else { shared.options.reap_interval };
        if candidates.is_empty() && reaped.elapsed() >= interval {
            candidates = reapable(shared, &mut pace);
            reaped = Instant::now();
        }
        let mut done = false;
        while !candidates.is_empty() {
            // Taken out, so that what is given back is not held here any longer.
            let batch: Vec<_> = candidates.drain(..BATCH.min(candidates.len())).collect();
            let mut empty = Vec::new();
            let mut failed = None;
            for segment in batch {
                match evacuate(shared, &mut writer, &segment, &mut pace) {
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
                if shared.is_closing() || shared.disk_full.load(Ordering::Relaxed) {
                    break;
                }
            }
            if let Err(e) = give_back(shared, empty) {
                tracing::warn!("compacted segments cannot be given back: {e}");
                failed = Some(e);
            }
            if shared.is_closing() {
                return;
            }
            if failed.is_some() {
                shared.pause(Duration::from_secs(1));
            }
        }
        if !done {
            shared.pause(LOOK);
        }
    }
}

/// Sealed segments worth compacting, the emptiest first.
fn choose(shared: &Shared) -> Vec<Arc<Segment>> {
    let sealed: Vec<Arc<Segment>> = shared.segments.lock().iter().filter(|s| s.sidecar().is_some()).cloned().collect();
    let share = |s: &Segment| s.dead_bytes() as f64 / s.used_bytes().max(1) as f64;
    let mut chosen: Vec<Arc<Segment>> =
        sealed.iter().filter(|s| is_free(s) || share(s) >= shared.options.compaction_dead_share).cloned().collect();
    let small: Vec<_> = sealed.iter().filter(|s| s.used_bytes() < shared.roll_at / 4).cloned().collect();
    if chosen.is_empty() && small.len() >= SMALL_MANY {
        chosen = small;
    }
    chosen.retain(|s| is_free(s) || !s.quarantined.load(Ordering::Relaxed));
    chosen.sort_by(|a, b| share(b).total_cmp(&share(a)));
    chosen
}

/// Nothing in it is live.
fn is_free(segment: &Segment) -> bool {
    segment.live_bytes.load(Ordering::Relaxed) == 0
}

/// Segments in which enough could be dropped if they were compacted now, though the index still names it.
fn reapable(shared: &Shared, pace: &mut Pace) -> Vec<Arc<Segment>> {
    let now_ms = (shared.options.now_ms)();
    let segments = shared.segments.lock().clone();
    let mut chosen = Vec::new();
    for segment in &segments {
        let Some(sidecar) = segment.sidecar() else {
            continue;
        };
        if sidecar.tombstones + sidecar.expiring == 0 || segment.quarantined.load(Ordering::Relaxed) {
            continue;
        }
        let mut droppable = segment.dead_bytes();
        for entry in sidecar.entries().filter(|e| e.tombstone || e.expires) {
            if shared.is_closing() {
                return Vec::new();
            }
            pace.spend(shared, LOOK_COST);
            let Ok(record) = segment.record(entry.offset) else {
                continue;
            };
            if !is_old_enough(shared, &record, now_ms) {
                continue;
            }
            pace.spend(shared, LOOK_COST * segments.len() as u64);
            let named = shared.index.lock(entry.hash).names(entry.hash, segment, entry.offset);
            if named && !older_elsewhere(shared, segment, &record, |_| true) {
                droppable += record.size() as u64;
            }
        }
        let share = droppable as f64 / segment.used_bytes().max(1) as f64;
        if share >= shared.options.compaction_dead_share {
            chosen.push(segment.clone());
        }
    }
    chosen
}

/// Whether a record only says "absent", and that for longer than the grace time.
fn is_old_enough(shared: &Shared, record: &Record<'_>, now_ms: u64) -> bool {
    if shared.tombstones_kept.load(Ordering::Relaxed) {
        return false;
    }
    let grace = shared.options.tombstone_grace.as_millis() as u64;
    record.absent_since_ms(now_ms).is_some_and(|since| since.saturating_add(grace) <= now_ms)
}

/// Whether one of the `asked` segments beside `home` has, or may have, an older version of the record's key.
fn older_elsewhere(shared: &Shared, home: &Segment, record: &Record<'_>, asked: impl Fn(&Segment) -> bool) -> bool {
    let segments = shared.segments.lock().clone();
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
    shared: &Arc<Shared>,
    writer: &mut Option<Writer>,
    segment: &Arc<Segment>,
    pace: &mut Pace,
) -> Result<bool, WriteError> {
    let now_ms = (shared.options.now_ms)();
    let mut moved = 0;
    let mut stays = 0;
    if !is_free(segment) {
        let sidecar = segment.sidecar().expect("only sealed segments are chosen");
        // What can be dropped goes first: the copies made after it would stand in the way of that decision.
        for entry in sidecar.entries().filter(|e| e.tombstone || e.expires) {
            drop_absent(shared, segment, entry.hash, entry.offset, now_ms);
        }
        // As they lie: in the order of their keys every single one would wait for memory, or for the disk.
        let mut places: Vec<(u32, u32, KeyHash)> = sidecar.entries().map(|e| (e.offset, e.size, e.hash)).collect();
        places.sort_unstable_by_key(|&(offset, ..)| offset);
        for (offset, size, hash) in places {
            if shared.is_closing() {
                return Ok(false);
            }
            pace.spend(shared, u64::from(size));
            if !shared.index.lock(hash).names(hash, segment, offset) {
                continue;
            }
            let record = segment.record(offset).ok().filter(|r| segment.header_intact(offset, r) && r.value_intact());
            let Some(record) = record else {
                shared.report_damage(segment, offset);
                stays += 1;
                continue;
            };
            if record.size() > (shared.options.segment_size - SEGMENT_HEADER) as usize {
                // From a time of larger segments.
                stays += 1;
                continue;
            }
            if writer.is_none() {
                *writer = Some(shared.new_writer(true).map_err(|e| shared.write_error(&e))?);
            }
            let Some(writer) = writer.as_mut() else {
                continue;
            };
            let to = writer.append(&record.draft())?;
            relocate(shared, hash, &record, (segment, offset), (writer.segment(), to));
            moved += record.size() as u64;
        }
    }
    shared.stats.compacted_bytes.fetch_add(moved, Ordering::Relaxed);
    if stays > 0 || !is_free(segment) {
        // To come again would find the same. (Beside what was counted: a record that was damaged before it was sealed.)
        segment.quarantined.store(true, Ordering::Relaxed);
        return Ok(false);
    }
    Ok(true)
}

/// Removes segments in which nothing is live, after one sync for all of them.
fn give_back(shared: &Arc<Shared>, empty: Vec<Arc<Segment>>) -> Result<(), WriteError> {
    if empty.is_empty() {
        return Ok(());
    }
    // Invariant 1. What recovery found unsealed was written by a process that did not come to sync it.
    let unsealed = shared.sealing.lock().clone();
    for segment in unsealed.iter().filter(|s| s.sidecar().is_none()) {
        waiting(&"sync of an unsealed segment", || shared.options.disk.sync(&segment.file)).map_err(|e| {
            shared.fail(&e);
            WriteError::Failed
        })?;
    }
    let logs = shared.logs.lock().clone();
    for log in &logs {
        shared.sync_log(log).map_err(|_| WriteError::Failed)?;
    }
    for segment in empty {
        // The blocks come back when nobody holds the segment any more, so it is let go at once.
        shared.retire(&segment);
        shared.stats.compacted_segments.fetch_add(1, Ordering::Relaxed);
    }
    if shared.options.sync != SyncMode::Os {
        sync_folder(shared.folder.path()).map_err(|e| {
            shared.fail(&e);
            WriteError::Failed
        })?;
    }
    Ok(())
}

/// Forgets a record that says "absent", if it may be forgotten.
fn drop_absent(shared: &Shared, segment: &Segment, hash: KeyHash, offset: u32, now_ms: u64) {
    let intact = segment.record(offset).ok().filter(|r| segment.header_intact(offset, r));
    let Some(record) = intact.filter(|record| is_old_enough(shared, record, now_ms)) else {
        return;
    };
    // Most segments do not change, so they are asked without the lock.
    let newest = shared.segments.lock().iter().map(|s| s.sequence).max().unwrap_or(0);
    if older_elsewhere(shared, segment, &record, |_| true) {
        return;
    }
    let mut stripe = shared.index.lock(hash);
    // A version that came late in between lost against this record and lies in a log now: it would come back at the next
    // start. Under the lock of the stripe none can be published, so those that can have got it are asked again.
    if older_elsewhere(shared, segment, &record, |s| s.sidecar().is_none() || s.sequence > newest) {
        return;
    }
    if stripe.remove(Entry::new(hash, segment.slot, offset), record.is_tombstone()) {
        segment.live_bytes.fetch_sub(record.size() as u64, Ordering::Relaxed);
    }
}

/// Lets the index name the copy, if it still names the original.
fn relocate(shared: &Shared, hash: KeyHash, record: &Record<'_>, from: (&Segment, u32), to: (&Segment, u32)) {
    let (old, new) = (Entry::new(hash, from.0.slot, from.1), Entry::new(hash, to.0.slot, to.1));
    let mut stripe = shared.index.lock(hash);
    if !stripe.names(hash, from.0, from.1) {
        return;
    }
    debug_assert!(matches!(stripe.find(hash, record.key()), Find::Hit(_)));
    let size = record.size() as u64;
    stripe.replace(old, new, record.is_tombstone(), record.is_tombstone());
    from.0.live_bytes.fetch_sub(size, Ordering::Relaxed);
    to.0.live_bytes.fetch_add(size, Ordering::Relaxed);
}

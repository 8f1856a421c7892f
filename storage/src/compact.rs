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
//! Bounds: `compaction_rate` bytes a second are read; one segment at a time; the log's own reserve on a full disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::hash::KeyHash;
use crate::index::{Entry, Find};
use crate::log::Writer;
use crate::record::Record;
use crate::segment::{SEGMENT_HEADER, Segment};
use crate::store::Shared;

/// How often candidates are looked for when there was none.
const LOOK: Duration = Duration::from_millis(200);
/// How often segments are searched for tombstones and expired records that can go.
const REAP: Duration = Duration::from_secs(5);
/// This many segments that are less than a quarter full are brought together.
const SMALL_MANY: usize = 8;
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
        if candidates.is_empty() && reaped.elapsed() >= REAP.min(shared.options.tombstone_grace.max(LOOK)) {
            candidates = reapable(shared);
            reaped = Instant::now();
        }
        let mut done = false;
        for segment in candidates {
            match compact(shared, &mut writer, &segment, &mut pace) {
                Ok(freed) => done |= freed,
                Err(e) => {
                    tracing::warn!("compaction of segment {:016x}.log has to wait: {e}", segment.sequence);
                    shared.pause(Duration::from_secs(1));
                }
            }
            if shared.is_closing() {
                return;
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
fn reapable(shared: &Shared) -> Vec<Arc<Segment>> {
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
            let Ok(record) = segment.record(entry.offset) else {
                continue;
            };
            let named = shared.index.lock(entry.hash).names(entry.hash, segment.slot, entry.offset);
            if named && can_drop(shared, segment, &record, now_ms) {
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

/// Whether a record that only says "absent" may be forgotten.
fn can_drop(shared: &Shared, home: &Segment, record: &Record<'_>, now_ms: u64) -> bool {
    let grace = shared.options.tombstone_grace.as_millis() as u64;
    let old_enough = record.absent_since_ms(now_ms).is_some_and(|since| since.saturating_add(grace) <= now_ms);
    if !old_enough {
        return false;
    }
    let segments = shared.segments.lock().clone();
    let (key, version) = (record.key(), record.version());
    let older = segments.iter().filter(|s| s.sequence != home.sequence && s.oldest_clock() <= version.clock);
    older.into_iter().all(|other| match other.sidecar() {
        Some(sidecar) => {
            let at = sidecar.lower_bound(other, key);
            at >= sidecar.len() || other.record(sidecar.entry(at).offset).is_ok_and(|r| r.key() != key)
        }
        None => other.order.lacks(other, key),
    })
}

/// Moves what is live and removes the segment; `false` if something in it has to stay.
fn compact(
    shared: &Arc<Shared>,
    writer: &mut Option<Writer>,
    segment: &Arc<Segment>,
    pace: &mut Pace,
) -> Result<bool, crate::WriteError> {
    let now_ms = (shared.options.now_ms)();
    let mut moved = 0;
    let mut stays = 0;
    if !is_free(segment) {
        let sidecar = segment.sidecar().expect("only sealed segments are chosen");
        // What can be dropped goes first: the copies made after it would stand in the way of that decision.
        for entry in sidecar.entries().filter(|e| e.tombstone || e.expires) {
            drop_absent(shared, segment, entry.hash, entry.offset, now_ms);
        }
        for entry in sidecar.entries() {
            if shared.is_closing() {
                return Ok(false);
            }
            pace.spend(shared, u64::from(entry.size));
            let (hash, offset) = (entry.hash, entry.offset);
            if !shared.index.lock(hash).names(hash, segment.slot, offset) {
                continue;
            }
            let record = segment.record(offset).ok().filter(|r| segment.header_intact(offset, r) && r.value_intact());
            let Some(record) = record else {
                shared.report_damage(segment, offset);
                stays += 1;
                continue;
            };
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
        return Ok(false);
    }
    // Invariant 1.
    let logs = shared.logs.lock().clone();
    for log in &logs {
        shared.sync_log(log).map_err(|e| {
            shared.fail(&e);
            crate::WriteError::Failed
        })?;
    }
    shared.retire(segment);
    shared.stats.compacted_segments.fetch_add(1, Ordering::Relaxed);
    Ok(true)
}

/// Forgets a record that says "absent", if it may be forgotten.
fn drop_absent(shared: &Shared, segment: &Segment, hash: KeyHash, offset: u32, now_ms: u64) {
    let intact = segment.record(offset).ok().filter(|r| segment.header_intact(offset, r));
    let Some(record) = intact.filter(|record| can_drop(shared, segment, record, now_ms)) else {
        return;
    };
    let mut stripe = shared.index.lock(hash);
    if stripe.remove(Entry::new(hash, segment.slot, offset), record.is_tombstone()) {
        segment.live_bytes.fetch_sub(record.size() as u64, Ordering::Relaxed);
    }
}

/// Lets the index name the copy, if it still names the original.
fn relocate(shared: &Shared, hash: KeyHash, record: &Record<'_>, from: (&Segment, u32), to: (&Segment, u32)) {
    let (old, new) = (Entry::new(hash, from.0.slot, from.1), Entry::new(hash, to.0.slot, to.1));
    let mut stripe = shared.index.lock(hash);
    if !stripe.names(hash, from.0.slot, from.1) {
        return;
    }
    debug_assert!(matches!(stripe.find(hash, record.key()), Find::Hit(_)));
    let size = record.size() as u64;
    stripe.replace(old, new, record.is_tombstone(), record.is_tombstone());
    from.0.live_bytes.fetch_sub(size, Ordering::Relaxed);
    to.0.live_bytes.fetch_add(size, Ordering::Relaxed);
}

const _: () = assert!(SEGMENT_HEADER > 0, "offset 0 is never a record, so an entry is never 0");

//! Giving space back: what is live in a segment moves to compaction's own log, and the segment
//! goes.
//!
//! A segment is chosen when enough of it is dead, or when many small ones lie about (each start
//! leaves some). Records are copied with their versions; an entry moves only if it still names the
//! old place, under the lock of its stripe.
//!
//! What has no use any more is dropped first ([`crate::dropping`]).
//!
//! Invariants:
//! 1. A segment is removed only after what replaces its records is synced: the copies, and the
//!    newer versions elsewhere.
//! 2. A damaged live record is not moved: its segment is kept, so that the damage stays visible
//!    until it is repaired, or a newer version is written.
//!
//! On a disk that is short of room, what is expired or dead goes at once: nothing is waited for that
//! only looks or drops, and on a full one a segment is worth it for little. Where expired records
//! have to be remembered, their values are not kept: the copy has none. It is another thread that
//! works then, which is not nice; what the nice one has begun it leaves as it is.
//!
//! Bounds: `compaction_rate` bytes a second are read; one segment at a time, 16 bytes of memory a
//! record of it; on a full disk, the reserve that only this log may use; looking for what has
//! expired takes a fifth of a processor at most.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use koltso_instrument::{Mutex, waiting};

use crate::dropping::{self, Mortal, Others, dated, mortals, older_elsewhere};
use crate::entry::Entry;
use crate::error::{self, WriteError};
use crate::hash::IndexHash;
use crate::index::Find;
use crate::indexed::IndexedSegment;
use crate::log::Writer;
use crate::mending;
use crate::pace::{BATCH, HURRIED, Pace};
use crate::parts::Parts;
use crate::read_ahead::ReadAhead;
use crate::record::Record;
use crate::segment::SEGMENT_HEADER;
use crate::syncing::{self, Syncer};
use crate::threads::Urgency;

/// How often candidates are looked for when there was none.
const LOOK: Duration = Duration::from_millis(200);
/// How often damaged places are looked at, whether they still stand for anything.
const SETTLE: Duration = Duration::from_secs(1);
/// This many segments that are less than a quarter full are brought together.
const SMALL_MANY: usize = 8;
/// Every so many searches look into what is not sealed, too.
const UNSEALED_EVERY: u32 = 6;
/// What it counts for the rate to look at a record and at what may be its older version in another
/// segment.
const LOOK_COST: u64 = 64;
/// On a full disk this share of dead bytes makes a segment worth compacting.
const FULL_DEAD_SHARE: f64 = 0.05;

/// When to look next for what has expired, and when also in what is not sealed.
struct Reaping {
    next: Instant,
    unsealed: Instant,
    fruitless: u32,
}

impl Reaping {
    /// A search that began then has found so many segments. If these are as many as it looks for, the
    /// next one follows. Else, on a disk that is short of room, it comes soon, but not if it finds
    /// nothing, or takes long.
    fn done(&mut self, began: Instant, found: usize, pace: &Pace, usual: Duration) {
        self.fruitless = if found > 0 { 0 } else { self.fruitless + 1 };
        let soon = LOOK.saturating_mul(1 << self.fruitless.min(10)).min(usual);
        self.next = match (found >= pace.most(), pace.hurry) {
            (true, _) => began,
            (_, true) => Instant::now() + soon.max(began.elapsed() * 4),
            (_, false) => Instant::now() + usual,
        };
    }
}

/// What whoever compacts goes on with.
pub(crate) struct Reclaiming {
    /// Made when the first record is moved.
    writer: Option<Writer>,
    reaping: Reaping,
    was_hurry: bool,
    /// When it was last looked whether damage is settled.
    settled: Instant,
}

impl Reclaiming {
    /// With so long from one search for expired records to the next.
    pub(crate) fn new(usual: Duration) -> Self {
        let now = Instant::now();
        let reaping = Reaping { next: now + usual, unsealed: now + usual * UNSEALED_EVERY, fruitless: 0 };
        Self { writer: None, reaping, was_hurry: false, settled: now }
    }
}

/// A compacting thread.
pub(crate) fn run(parts: &Arc<Parts>, reclaiming: &Mutex<Reclaiming>, urgency: Urgency) {
    let mut pace = Pace::new(parts.options.compaction_rate, urgency);
    while parts.wait_for_turn(urgency) {
        pace.look_at_room(parts);
        let mut reclaiming = reclaiming.lock();
        let done = !pace.hands_over(parts) && reclaiming.reclaim(parts, &mut pace);
        drop(reclaiming);
        if !done {
            parts.threads.pause(LOOK);
        }
    }
}

impl Reclaiming {
    /// Compacts what is worth it now; `false` if that is nothing.
    fn reclaim(&mut self, parts: &Arc<Parts>, pace: &mut Pace) -> bool {
        if self.settled.elapsed() >= SETTLE {
            mending::settle(parts);
            self.settled = Instant::now();
        }
        if pace.hurry && !self.was_hurry {
            self.reaping.next = Instant::now();
        }
        self.was_hurry = pace.hurry;
        let mut candidates = choose(parts);
        if candidates.is_empty() && Instant::now() >= self.reaping.next {
            let began = Instant::now();
            let unsealed = began >= self.reaping.unsealed;
            if unsealed {
                self.reaping.unsealed = began + parts.options.reap_interval * UNSEALED_EVERY;
            }
            candidates = reapable(parts, pace, unsealed && parts.index.counts().1 > 0);
            if pace.stops(parts) {
                return false;
            }
            self.reaping.done(began, candidates.len(), pace, parts.options.reap_interval);
            if unsealed
                && candidates.is_empty()
                && let Some(writer) = &mut self.writer
            {
                writer.roll_if_dead();
            }
        }
        if pace.hurry {
            // Soon there may be better ones.
            candidates.truncate(HURRIED);
        }
        let mut done = false;
        while !candidates.is_empty() {
            // Taken out, so that what is given back is not held here any longer.
            let most = if parts.room.is_full() { 1 } else { BATCH };
            let batch: Vec<_> = candidates.drain(..most.min(candidates.len())).collect();
            let mut empty = Vec::new();
            let mut failed = None;
            for segment in batch {
                match evacuate(parts, &mut self.writer, &segment, pace) {
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
                if pace.stops(parts) {
                    break;
                }
            }
            if pace.hands_over(parts) {
                // Nothing is live in the empty ones: they are the first that the other one chooses.
                return done;
            }
            if let Err(e) = give_back(parts, empty) {
                tracing::warn!("compacted segments cannot be given back: {e}");
                failed = Some(e);
            }
            if failed.is_some() {
                parts.threads.pause(Duration::from_secs(1));
            }
            if pace.stops(parts) {
                return done;
            }
        }
        done
    }
}

/// The share of bytes that are or could be dead which makes a segment worth compacting.
fn worth(parts: &Parts) -> f64 {
    let usual = parts.options.compaction_dead_share;
    // (A share above 1 says that no segment ever is.)
    if parts.room.is_full() && usual <= 1.0 { usual.min(FULL_DEAD_SHARE) } else { usual }
}

/// Sealed segments worth compacting, the emptiest first.
fn choose(parts: &Parts) -> Vec<Arc<IndexedSegment>> {
    let sealed: Vec<Arc<IndexedSegment>> = parts.segments.all().into_iter().filter(|s| s.sidecar().is_some()).collect();
    let share = |s: &IndexedSegment| s.dead_bytes() as f64 / s.used_bytes().max(1) as f64;
    let worth = worth(parts);
    let mut chosen: Vec<Arc<IndexedSegment>> =
        sealed.iter().filter(|s| s.is_free() || share(s) >= worth).cloned().collect();
    let small: Vec<_> = sealed.iter().filter(|s| s.used_bytes() < parts.room.roll_at() / 4).cloned().collect();
    if chosen.is_empty() && small.len() >= SMALL_MANY {
        chosen = small;
    }
    chosen.retain(|s| s.is_free() || !s.is_quarantined());
    chosen.sort_by(|a, b| share(b).total_cmp(&share(a)));
    chosen
}

/// Segments in which enough could be dropped if they were compacted now, though the index still
/// names it. Where it is not enough, what says "absent" is forgotten all the same, and in unsealed ones
/// if asked for.
fn reapable(parts: &Parts, pace: &mut Pace, unsealed: bool) -> Vec<Arc<IndexedSegment>> {
    let now_ms = parts.env().now_ms();
    let worth = worth(parts);
    let strays = parts.retention.may_drop_strays(parts.index.digests());
    let mut chosen = Vec::new();
    let others = Others::of(parts);
    // On a disk that is short of room only what gives space back counts.
    if unsealed && !pace.hurry {
        for segment in others.all.iter().filter(|segment| segment.sidecar().is_none()) {
            dropping::forget_unsealed(parts, segment, now_ms, |looks| in_place(parts, pace, looks));
        }
    }
    for segment in &others.all {
        let Some(sidecar) = segment.sidecar() else {
            continue;
        };
        if sidecar.tombstones + sidecar.expiring == 0 && !strays {
            continue;
        }
        let (mut droppable, mut forgettable) = (segment.dead_bytes(), false);
        let mut read_ahead = ReadAhead::default();
        for Mortal { offset, hash, leaf } in mortals(parts, sidecar, strays) {
            if pace.stops(parts) {
                return Vec::new();
            }
            pace.look(parts, LOOK_COST);
            if !parts.index.lock(hash).names(hash, segment, offset) {
                continue;
            }
            read_ahead.at(segment, offset);
            let Ok(record) = segment.record(offset) else {
                continue;
            };
            let dated = dated(&record, leaf, now_ms);
            let goes = parts.retention.is_over(&dated, now_ms) && {
                let asked = Cell::new(0);
                let stays = older_elsewhere(&others.all, segment, &record, |_| {
                    asked.set(asked.get() + 1);
                    true
                });
                pace.look(parts, LOOK_COST * asked.get());
                !stays
            };
            forgettable |= goes && dated.absent;
            droppable += match (goes, dated.absent) {
                (true, _) => record.size() as u64,
                (false, true) => record.value().len() as u64,
                (false, false) => 0,
            };
        }
        let share = droppable as f64 / segment.used_bytes().max(1) as f64;
        if share >= worth && !segment.is_quarantined() {
            chosen.push(segment.clone());
        } else if forgettable && !pace.hurry {
            dropping::drop_mortals(parts, (segment, sidecar), false, now_ms, |looks| in_place(parts, pace, looks));
        }
        // The oldest come first, and for each of them fewer others can have an older version.
        pace.look_at_room(parts);
        if chosen.len() >= pace.most() {
            break;
        }
    }
    chosen
}

/// So much was looked at for what can be forgotten where it lies; whether to go on.
fn in_place(parts: &Parts, pace: &mut Pace, looks: u64) -> bool {
    pace.look(parts, LOOK_COST * looks);
    !pace.stops(parts) && !pace.hurry
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
        let strays = parts.retention.may_drop_strays(parts.index.digests());
        if !dropping::drop_mortals(parts, (segment, sidecar), strays, now_ms, |_| !pace.stops(parts)) {
            return Ok(false);
        }
        // As they lie: in the order of their keys every single one would wait for memory, or for
        // the disk.
        let mut places: Vec<(u32, u32, IndexHash)> = sidecar.entries().map(|e| (e.offset, e.size, e.hash)).collect();
        places.sort_unstable_by_key(|&(offset, ..)| offset);
        let mut read_ahead = ReadAhead::default();
        for (offset, size, hash) in places {
            if pace.stops(parts) {
                return Ok(false);
            }
            pace.look(parts, LOOK_COST);
            if !parts.index.lock(hash).names(hash, segment, offset) {
                continue;
            }
            pace.look(parts, u64::from(size));
            read_ahead.at(segment, offset);
            let faults = segment.faults();
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
            let mut draft = record.draft();
            if !record.is_tombstone() && record.is_absent(now_ms) {
                // It stays for a while, without what nobody gets to see any more.
                draft.value = &[];
            }
            let size = draft.size() as u64;
            if pace.hurry {
                pace.spend(parts, size);
            }
            let to = writer.append(&draft)?;
            if segment.faults() != faults {
                // The copy may be of zeros that a page was replaced with meanwhile.
                stays += 1;
                continue;
            }
            relocate(parts, hash, &record, (segment, offset), (writer.segment(), to), size);
            moved += size;
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

/// Lets the index name the copy of this size, if it still names the original.
fn relocate(
    parts: &Parts,
    hash: IndexHash,
    record: &Record<'_>,
    from: (&IndexedSegment, u32),
    to: (&IndexedSegment, u32),
    copied: u64,
) {
    let (old, new) = (Entry::new(hash, from.0.slot, from.1), Entry::new(hash, to.0.slot, to.1));
    let mut stripe = parts.index.lock(hash);
    if !stripe.names(hash, from.0, from.1) {
        return;
    }
    debug_assert!(matches!(stripe.find(hash, record.key()), Find::Hit(_)));
    stripe.replace(old, new, record.is_tombstone(), record.is_tombstone());
    from.0.sub_live(record.size() as u64);
    to.0.add_live(copied);
}

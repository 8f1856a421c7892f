//! Dropping records that have no use any more: those that say "absent", once all replicas have agreed
//! on a state that has them, and those that other nodes should have instead of this one
//! ([`crate::agreements`]).
//!
//! Invariants:
//! 1. A record is dropped only if no other segment holds an older version of its key, which would
//!    come back at the next start otherwise.
//! 2. How new anything is that is dropped and says "absent" is on disk before
//!    ([`crate::forgotten`]).
//!
//! Usually a record is dropped when its segment is compacted. What says "absent" in a segment of which
//! too little is dead for that, or which is not sealed yet, is forgotten where it lies: the index names
//! it no more, and its bytes are dead. A start finds it again, as what replicas have agreed on once.
//!
//! Owner: compaction's thread. Bounds: 16 bytes of memory a record that can be dropped one day.

use std::cell::Cell;
use std::sync::Arc;

use koltso_model::KeyHash;

use crate::digest::Leaf;
use crate::entry::Entry;
use crate::hash::IndexHash;
use crate::indexed::IndexedSegment;
use crate::parts::Parts;
use crate::read_ahead::ReadAhead;
use crate::record::Record;
use crate::retention::Dated;
use crate::scan::BEHIND_MAX;
use crate::sidecar::{self, Sidecar};

/// A record that can be dropped one day.
pub(crate) struct Mortal {
    pub(crate) offset: u32,
    pub(crate) leaf: Leaf,
    pub(crate) hash: IndexHash,
}

/// The records of a sidecar that say "absent" or will, and the strays if asked for, as they lie.
pub(crate) fn mortals(parts: &Parts, sidecar: &Sidecar, strays: bool) -> Vec<Mortal> {
    let is_one = |e: &sidecar::Entry| e.says_absent() || (strays && parts.retention.is_stray(e.leaf, e.flags));
    let of = |e: sidecar::Entry| Mortal { offset: e.offset, leaf: e.leaf, hash: e.hash };
    let mut found: Vec<_> = sidecar.entries().filter(is_one).map(of).collect();
    found.sort_unstable_by_key(|mortal| mortal.offset);
    found
}

/// What decides about a record.
pub(crate) fn dated(record: &Record<'_>, leaf: Leaf, now_ms: u64) -> Dated {
    Dated { leaf, version: record.version(), flags: record.flags(), absent: record.is_absent(now_ms) }
}

/// Puts on disk how new those of these records are that may be dropped, and say "absent". Whether that
/// is done, so that they may be.
fn remembers(parts: &Parts, records: impl Iterator<Item = Dated>, now_ms: u64) -> bool {
    let may_go = records.filter(|dated| dated.absent && parts.retention.is_over(dated, now_ms));
    let newest = may_go.map(|dated| dated.version.clock).max().unwrap_or(0);
    let written = parts.retention.forget_up_to(parts.env(), parts.folder.path(), newest);
    if let Err(e) = &written {
        tracing::warn!("deletes cannot be forgotten, since what is forgotten cannot be written down: {e}");
    }
    written.is_ok()
}

/// The segments that an older version of a record could be in. To be held shortly: it keeps the
/// space of what is given back meanwhile.
pub(crate) struct Others {
    made: u64,
    pub(crate) all: Vec<Arc<IndexedSegment>>,
}

impl Others {
    pub(crate) fn of(parts: &Parts) -> Self {
        let made = parts.segments.made();
        Self { made, all: parts.segments.all() }
    }

    /// Brings it up to date, if a segment was made since.
    fn refresh(&mut self, parts: &Parts) {
        if self.made != parts.segments.made() {
            *self = Self::of(parts);
        }
    }
}

/// Whether one of the `asked` segments beside `home` has, or may have, an older version of the
/// record's key.
pub(crate) fn older_elsewhere(
    others: &[Arc<IndexedSegment>],
    home: &IndexedSegment,
    record: &Record<'_>,
    asked: impl Fn(&IndexedSegment) -> bool,
) -> bool {
    let (key, version) = (record.key(), record.version());
    let mut others =
        others.iter().filter(|s| s.sequence != home.sequence && s.oldest_clock() <= version.clock && asked(s));
    others.any(|other| {
        let found = match other.sidecar() {
            Some(sidecar) => {
                let at = sidecar.lower_bound(other, key);
                at < sidecar.len() && !other.record(sidecar.entry(at).offset).is_ok_and(|r| r.key() != key)
            }
            None => !other.order.lacks(other, key),
        };
        // Asked last: the search may be what met a page that is gone.
        found || other.all_faults() > 0
    })
}

/// Drops those records of a segment that may be, strays if asked for. `goes_on` hears how many records
/// and segments were looked at, and says whether to go on; `false` if it was to stop.
pub(crate) fn drop_mortals(
    parts: &Parts,
    (segment, sidecar): (&IndexedSegment, &Sidecar),
    strays: bool,
    now_ms: u64,
    mut goes_on: impl FnMut(u64) -> bool,
) -> bool {
    let of = |e: sidecar::Entry| Dated { leaf: e.leaf, version: e.version, flags: e.flags, absent: true };
    if !remembers(parts, sidecar.entries().filter(sidecar::Entry::says_absent).map(of), now_ms) {
        return true;
    }
    let (mut read_ahead, mut others) = (ReadAhead::default(), Others::of(parts));
    for mortal in mortals(parts, sidecar, strays) {
        let mut looks = 1;
        if parts.index.lock(mortal.hash).names(mortal.hash, segment, mortal.offset) {
            read_ahead.at(segment, mortal.offset);
            looks += drop_mortal(parts, &mut others, segment, &mortal, now_ms);
        }
        if !goes_on(looks) {
            return false;
        }
    }
    true
}

/// Forgets what says "absent", and may be forgotten, in a segment that is not sealed; `goes_on` as
/// above.
pub(crate) fn forget_unsealed(
    parts: &Parts,
    segment: &IndexedSegment,
    now_ms: u64,
    mut goes_on: impl FnMut(u64) -> bool,
) {
    let Some(runs) = segment.order.snapshot(segment, BEHIND_MAX) else { return };
    let mut found = Vec::new();
    for run in &runs {
        for &offset in run.iter() {
            let Ok(record) = segment.record(offset) else { continue };
            if !record.is_absent(now_ms) {
                continue;
            }
            let leaf = Leaf::of(KeyHash::of(record.key()));
            let (dated, hash) = (dated(&record, leaf, now_ms), parts.index.hash(record.key()));
            if parts.retention.is_over(&dated, now_ms) && parts.index.lock(hash).names(hash, segment, offset) {
                found.push((Mortal { offset, leaf, hash }, dated));
            }
        }
        if !goes_on(run.len() as u64 / 8) {
            return;
        }
    }
    if found.is_empty() || !remembers(parts, found.iter().map(|(_, dated)| *dated), now_ms) {
        return;
    }
    let mut others = Others::of(parts);
    for (mortal, _) in &found {
        let looks = drop_mortal(parts, &mut others, segment, mortal, now_ms);
        if !goes_on(1 + looks) {
            return;
        }
    }
}

/// Forgets a record, if it may be forgotten. How many other segments were looked at.
fn drop_mortal(parts: &Parts, others: &mut Others, segment: &IndexedSegment, mortal: &Mortal, now_ms: u64) -> u64 {
    let &Mortal { offset, leaf, hash } = mortal;
    let asked = Cell::new(0);
    let asks = |_: &IndexedSegment| {
        asked.set(asked.get() + 1);
        true
    };
    let intact = segment.record(offset).ok().filter(|r| segment.header_intact(offset, r));
    let Some(record) = intact else { return 0 };
    let dated = dated(&record, leaf, now_ms);
    // What was agreed on since is not on disk yet.
    let remembered = !dated.absent || dated.version.clock <= parts.retention.forgotten().clock();
    if !remembered || !parts.retention.is_over(&dated, now_ms) {
        return 0;
    }
    loop {
        others.refresh(parts);
        // Most segments do not change, so they are asked without the lock.
        let changing: Vec<_> = others.all.iter().filter(|other| other.sidecar().is_none()).cloned().collect();
        // Those first that are likely to stand in the way.
        if older_elsewhere(&changing, segment, &record, asks) || older_elsewhere(&others.all, segment, &record, asks) {
            return asked.get();
        }
        let mut stripe = parts.index.lock(hash);
        // A version that came late in between lost against this record and lies in a log now: it
        // would come back at the next start. Under the lock of the stripe none can be published, so
        // those that can have got it are asked again. (All the others would hold up who waits for the
        // lock.)
        if others.made != parts.segments.made() {
            continue;
        }
        if older_elsewhere(&changing, segment, &record, |_| true) {
            return asked.get();
        }
        // The record itself may have come late, which is counted under this lock.
        if parts.retention.is_over(&dated, now_ms) && stripe.remove(Entry::new(hash, segment.slot, offset), &record) {
            segment.sub_live(record.size() as u64);
        }
        return asked.get();
    }
}

//! A sorted range as a cursor: a merge of the key orders of all segments, each key checked against
//! the index.
//!
//! A cursor sees the segments of the moment it was opened and holds them. What it returns for a key
//! is what the index names when it comes to that key. So a record that was live when the cursor was
//! opened and is not overwritten appears exactly once, also when compaction moves it meanwhile; an
//! overwritten one appears once, with some version of it. Holding old segments costs disk space, so
//! a cursor that is kept long should be [`Cursor::refresh`]ed.
//!
//! Bounds: some 100 bytes a segment, plus the sort of at most 32 768 records a log when it is
//! opened. A record that is damaged is left out and reported.

use std::sync::Arc;

use koltso_instrument::breathe;

use crate::damage::DamageLog;
use crate::hash::IndexHash;
use crate::index::{Find, Hit};
use crate::indexed::IndexedSegment;
use crate::lookup::{Lookup, Value, lookup};
use crate::order::Run;
use crate::parts::Parts;
use crate::record::Record;
use crate::sidecar::lower_bound;
use crate::wanted::Wanted;

/// Records a log that a cursor sorts itself when it is opened, in about 5 ms; with more, the
/// sealing thread has to catch up.
pub(crate) const BEHIND_MAX: usize = 32 << 10;
/// Records are asked for from memory this many entries ahead.
const PREFETCH: u32 = 6;

/// Why a range cannot be read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// The newest part of the log is still being sorted; it takes well below a second.
    #[error("the newest records are still being sorted")]
    NotReady,
}

/// What a step of a cursor came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<R> {
    /// A live record was read.
    Record(R),
    /// As many records were looked at as allowed; there may be more.
    Pause,
    /// There is nothing more.
    End,
}

#[derive(Debug)]
enum Keys {
    Sidecar,
    /// Some of a sidecar's entries, by their numbers.
    Entries(Vec<u32>),
    Run(Run),
}

/// A record that the index names, and where it lies.
pub(crate) struct Place<'a> {
    pub(crate) segment: &'a IndexedSegment,
    pub(crate) offset: u32,
    pub(crate) record: Record<'a>,
}

/// One sorted list of records, and where the cursor is in it.
#[derive(Debug)]
struct Source {
    segment: Arc<IndexedSegment>,
    keys: Keys,
    next: u32,
    len: u32,
    /// Of the current record.
    hash: Option<IndexHash>,
    offset: u32,
    key_len: u16,
    prefix: u64,
}

/// A range that is being read, see the module.
pub struct Cursor {
    parts: Arc<Parts>,
    /// A binary heap, the least key at the root.
    heap: Vec<Source>,
    end: Option<Vec<u8>>,
    /// The key returned last.
    last: Vec<u8>,
    started: bool,
}

impl Source {
    fn open(parts: &Parts, segment: &Arc<IndexedSegment>, keys: Keys, start: &[u8]) -> Option<Self> {
        let (len, next) = match &keys {
            Keys::Sidecar => {
                let sidecar = segment.sidecar()?;
                (sidecar.len(), sidecar.lower_bound(segment, start))
            }
            Keys::Entries(numbers) => (numbers.len() as u32, 0),
            Keys::Run(run) => {
                let len = run.len() as u32;
                (len, lower_bound(segment, len, |index| run[index as usize], start))
            }
        };
        let mut source =
            Self { segment: segment.clone(), keys, next, len, hash: None, offset: 0, key_len: 0, prefix: 0 };
        source.advance(parts).then_some(source)
    }

    #[inline]
    fn offset_at(&self, index: u32) -> (u32, Option<IndexHash>) {
        let number = match &self.keys {
            Keys::Run(run) => return (run[index as usize], None),
            Keys::Sidecar => index,
            Keys::Entries(numbers) => numbers[index as usize],
        };
        let entry = self.segment.sidecar().expect("a sidecar stays attached").entry(number);
        (entry.offset, Some(entry.hash))
    }

    /// Goes to the next intact record; `false` at the end. A damaged one that the index names is
    /// reported.
    fn advance(&mut self, parts: &Parts) -> bool {
        while self.next < self.len {
            breathe();
            (self.offset, self.hash) = self.offset_at(self.next);
            self.next += 1;
            if self.next + PREFETCH < self.len {
                self.segment.prefetch(self.offset_at(self.next + PREFETCH).0);
            }
            if let Ok(record) = self.segment.record(self.offset)
                && self.segment.header_intact(self.offset, &record)
            {
                let (mut bytes, key) = ([0; 8], record.key());
                let len = key.len().min(8);
                bytes[..len].copy_from_slice(&key[..len]);
                self.prefix = u64::from_be_bytes(bytes);
                self.key_len = key.len() as u16;
                return true;
            }
            if self.hash.is_some_and(|hash| parts.index.lock(hash).names(hash, &self.segment, self.offset)) {
                parts.damage.found(&self.segment, self.offset);
            }
        }
        false
    }

    fn key(&self) -> &[u8] {
        self.segment.key_at(self.offset, self.key_len)
    }

    fn is_before(&self, other: &Self) -> bool {
        match self.prefix.cmp(&other.prefix) {
            std::cmp::Ordering::Equal => self.key() < other.key(),
            unequal => unequal.is_lt(),
        }
    }
}

/// The key orders of all segments from `start` on; of some leaves only, if so asked, and then
/// from the first key on.
fn sources(parts: &Parts, start: &[u8], wanted: Option<&Wanted>) -> Result<Vec<Source>, ScanError> {
    let sealed = |segment: &Arc<IndexedSegment>| {
        let keys = match (wanted, segment.sidecar()) {
            (Some(wanted), Some(sidecar)) => Keys::Entries(sidecar.numbers_of(wanted)),
            _ => Keys::Sidecar,
        };
        Source::open(parts, segment, keys, start)
    };
    let unsealed = |segment: &Arc<IndexedSegment>, run: Run| {
        let run = match wanted {
            Some(wanted) => run.iter().copied().filter(|&offset| is_in(wanted, segment, offset)).collect(),
            None => run,
        };
        Source::open(parts, segment, Keys::Run(run), start)
    };
    // The list is taken whole under its lock. A segment made after that holds only what is written,
    // or moved by compaction, later: moved records are also in the segment they were moved from,
    // which the list has.
    let segments = parts.segments.all();
    let mut sources = Vec::with_capacity(segments.len() + 8);
    for segment in &segments {
        breathe();
        if segment.sidecar().is_some() {
            sources.extend(sealed(segment));
            continue;
        }
        match segment.order.snapshot(segment, BEHIND_MAX) {
            Some(runs) => sources.extend(runs.into_iter().filter_map(|run| unsealed(segment, run))),
            // Sealed between the two looks.
            None if segment.sidecar().is_some() => sources.extend(sealed(segment)),
            None => return Err(ScanError::NotReady),
        }
    }
    Ok(sources)
}

/// Whether a record's key is in one of the wanted leaves.
fn is_in(wanted: &Wanted, segment: &IndexedSegment, offset: u32) -> bool {
    breathe();
    segment.record(offset).is_ok_and(|record| wanted.has_key(record.key()))
}

impl Cursor {
    pub(crate) fn open(parts: Arc<Parts>, start: &[u8], end: Option<&[u8]>) -> Result<Self, ScanError> {
        let sources = sources(&parts, start, None)?;
        let mut cursor =
            Self { parts, heap: sources, end: end.map(<[u8]>::to_vec), last: start.to_vec(), started: false };
        cursor.heapify();
        Ok(cursor)
    }

    /// Over the keys of some leaves, all of them.
    pub(crate) fn open_leaves(parts: Arc<Parts>, wanted: &Wanted) -> Result<Self, ScanError> {
        let sources = sources(&parts, &[], Some(wanted))?;
        let mut cursor = Self { parts, heap: sources, end: None, last: Vec::new(), started: false };
        cursor.heapify();
        Ok(cursor)
    }

    /// Goes on after the last returned key with the segments of this moment, and lets the old ones
    /// go.
    ///
    /// # Errors
    /// [`ScanError::NotReady`]; the cursor is as before then.
    pub fn refresh(&mut self) -> Result<(), ScanError> {
        let mut start = self.last.clone();
        if self.started {
            start.push(0);
        }
        self.heap = sources(&self.parts, &start, None)?;
        self.heapify();
        Ok(())
    }

    /// The next live record: its key and value go to `read`, under the lock of the key's stripe.
    /// `None` at the end.
    pub fn next<R>(&mut self, now_ms: u64, mut read: impl FnMut(&[u8], Value<'_>) -> R) -> Option<R> {
        loop {
            let mut looks = u32::MAX;
            match self.step(now_ms, &mut looks, &mut read) {
                Step::Record(result) => return Some(result),
                Step::Pause => {}
                Step::End => return None,
            }
        }
    }

    /// As [`Cursor::next`], but pauses once `looks` records were looked at, live or not; each look
    /// counts it down.
    pub fn step<R>(&mut self, now_ms: u64, looks: &mut u32, mut read: impl FnMut(&[u8], Value<'_>) -> R) -> Step<R> {
        self.next_named(looks, |damage, Place { segment, offset, record }| {
            match lookup(damage, segment, offset, &record, now_ms) {
                Lookup::Found(found) => Some(read(record.key(), found.value)),
                Lookup::Absent(_) | Lookup::Damaged => None,
            }
        })
    }

    /// Goes from key to key until `give` makes something of a record that the index names. It is
    /// called under the lock of the key's stripe.
    #[inline]
    pub(crate) fn next_named<R>(
        &mut self,
        looks: &mut u32,
        mut give: impl FnMut(&Arc<DamageLog>, Place<'_>) -> Option<R>,
    ) -> Step<R> {
        loop {
            let Some(source) = self.heap.first() else {
                return Step::End;
            };
            if *looks == 0 {
                return Step::Pause;
            }
            *looks -= 1;
            let (segment, offset) = (&*source.segment, source.offset);
            let given = match segment.record(offset) {
                Ok(record) if !self.started || record.key() != self.last => {
                    let key = record.key();
                    if self.end.as_deref().is_some_and(|end| key >= end) {
                        return Step::End;
                    }
                    self.started = true;
                    self.last.clear();
                    self.last.extend_from_slice(key);
                    let hash = source.hash.unwrap_or_else(|| self.parts.index.hash(key));
                    let stripe = self.parts.index.lock(hash);
                    if stripe.names(hash, segment, offset) {
                        give(&self.parts.damage, Place { segment, offset, record })
                    } else if let Find::Hit(Hit { segment, entry, record }) = stripe.find(hash, key) {
                        give(&self.parts.damage, Place { segment, offset: entry.offset(), record })
                    } else {
                        None
                    }
                }
                _ => None,
            };
            self.advance();
            if let Some(given) = given {
                return Step::Record(given);
            }
        }
    }

    /// Moves the source at the root on and puts it where it belongs.
    fn advance(&mut self) {
        if !self.heap[0].advance(&self.parts) {
            self.heap.swap_remove(0);
        }
        self.sift_down(0);
    }

    fn heapify(&mut self) {
        for at in (0..self.heap.len() / 2).rev() {
            self.sift_down(at);
        }
    }

    fn sift_down(&mut self, mut at: usize) {
        loop {
            let mut least = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.heap.len() && self.heap[child].is_before(&self.heap[least]) {
                    least = child;
                }
            }
            if least == at {
                return;
            }
            self.heap.swap(at, least);
            at = least;
        }
    }
}

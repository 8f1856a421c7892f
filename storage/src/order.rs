//! The key order of a segment that has no sidecar yet: sorted runs of record offsets, grown while
//! the log grows.
//!
//! The sealing thread sorts each megabyte soon after it was written, while it is in the cache, so a
//! range that starts at any moment sorts at most the last megabyte itself. Sealing sorts the whole
//! segment once more, reading it from front to back: merging the runs instead was tried, and its
//! scattered reads took a third of all user time of a PUT.
//!
//! Owner: whoever seals, one thread at a time, grows it; anybody takes a snapshot. Bounds: 4 bytes a record, a run a
//! megabyte of log, 24 bytes a record while sealing. Invariant: a run holds offsets of intact
//! records, by key, the newest of each key.

use std::cmp::Ordering;
use std::sync::Arc;

use koltso_instrument::Mutex;

use crate::record::ALIGN;
use crate::segment::{SEGMENT_HEADER, Segment};
use crate::sidecar::lower_bound;

/// Records are sorted in runs of this many bytes of log.
const RUN: u32 = 1 << 20;

/// Records that are read one after another are asked for from memory this many ahead.
const PREFETCH: usize = 8;

/// Offsets of records, sorted.
pub(crate) type Run = Arc<[u32]>;

#[derive(Debug)]
pub(crate) struct Order {
    state: Mutex<State>,
}

impl Default for Order {
    fn default() -> Self {
        Self { state: Mutex::new(&"order of a segment", State::default()) }
    }
}

#[derive(Debug, Default)]
struct State {
    /// With the offset that each begins at. The last may be short, and is sorted again together
    /// with what follows.
    runs: Vec<(u32, Run)>,
    /// Everything below was taken into a run. 0 before the first.
    ordered: u32,
    /// Found by recovery, to be sorted first: a recovered segment may have gaps, so it is not
    /// walked again.
    recovered: Option<Run>,
    damaged: u32,
}

/// A record to be sorted by its key: what decides most comparisons without touching the log.
#[derive(Clone, Copy)]
struct Keyed {
    /// The first [`PREFIX`] bytes of the key as numbers, zeros behind a shorter one.
    prefix: [u64; 2],
    offset: u32,
    key_len: u16,
}

const PREFIX: usize = 16;

impl Keyed {
    fn new(segment: &Segment, offset: u32) -> Option<Self> {
        let record = segment.record(offset).ok()?;
        let (mut bytes, key) = ([0; PREFIX], record.key());
        let len = key.len().min(PREFIX);
        bytes[..len].copy_from_slice(&key[..len]);
        let all = u128::from_be_bytes(bytes);
        Some(Self { prefix: [(all >> 64) as u64, all as u64], offset, key_len: key.len() as u16 })
    }

    /// By the bytes of the key.
    fn cmp(&self, other: &Self, segment: &Segment) -> Ordering {
        self.prefix.cmp(&other.prefix).then_with(|| {
            if usize::from(self.key_len.min(other.key_len)) <= PREFIX {
                // One of them is all in its prefix, and the other begins with it.
                return self.key_len.cmp(&other.key_len);
            }
            segment.key_at(self.offset, self.key_len).cmp(segment.key_at(other.offset, other.key_len))
        })
    }
}

/// Offsets by key, the newest of each key. A record that the disk damaged since it was found is
/// left out.
fn sort(segment: &Segment, offsets: impl Iterator<Item = u32>) -> Run {
    // With room for all at once: a vector that grows is there twice for a while.
    let mut keyed: Vec<Keyed> = Vec::with_capacity(offsets.size_hint().1.unwrap_or(0));
    keyed.extend(offsets.filter_map(|offset| Keyed::new(segment, offset)));
    let version = |keyed: &Keyed| segment.record(keyed.offset).ok().map(|record| record.version());
    keyed.sort_unstable_by(|a, b| {
        // Of a version that arrived twice the index names the first.
        a.cmp(b, segment).then_with(|| version(b).cmp(&version(a))).then_with(|| a.offset.cmp(&b.offset))
    });
    keyed.dedup_by(|b, a| a.cmp(b, segment).is_eq());
    keyed.iter().map(|keyed| keyed.offset).collect()
}

/// Offsets and ends of the intact records that begin from `start` to `end`. They lie without a gap,
/// unless memory or disk damaged one since it was written: what follows that one is found again.
fn walk(segment: &Segment, start: u32, end: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
    let mut next = start.max(SEGMENT_HEADER);
    std::iter::from_fn(move || {
        while next < end {
            let at = next;
            match segment.record(at) {
                Ok(record) if segment.header_intact(at, &record) => {
                    next += record.size() as u32;
                    return Some((at, next));
                }
                _ => next += ALIGN as u32,
            }
        }
        None
    })
}

impl Order {
    /// Takes over what recovery found in a segment without a sidecar.
    pub(crate) fn recover(&self, segment: &Segment, offsets: Vec<u32>, damaged: u32) {
        let mut state = self.state.lock();
        state.recovered = Some(offsets.into());
        state.ordered = segment.written();
        state.damaged = damaged;
    }

    /// Number of records that recovery found here.
    pub(crate) fn recovered_len(&self) -> u64 {
        self.state.lock().recovered.as_ref().map_or(0, |offsets| offsets.len() as u64)
    }

    /// The records that recovery found here, ascending.
    pub(crate) fn recovered(&self) -> Option<Run> {
        self.state.lock().recovered.clone()
    }

    pub(crate) fn damaged(&self) -> u32 {
        self.state.lock().damaged
    }

    /// Sorts what was written since the last call, if that is a run's worth or `all` is asked for;
    /// `true` if it did.
    pub(crate) fn extend(&self, segment: &Segment, all: bool) -> bool {
        let (recovered, mut ordered, last) = {
            let state = self.state.lock();
            (state.recovered.clone(), state.ordered.max(SEGMENT_HEADER), state.runs.last().map(|(from, _)| *from))
        };
        if let Some(offsets) = recovered {
            let run = sort(segment, offsets.iter().copied());
            let mut state = self.state.lock();
            state.runs.push((SEGMENT_HEADER, run));
            state.recovered = None;
            return true;
        }
        // Only who seals changes the runs, so the last one is still the last below.
        let mut again = last.filter(|from| ordered.saturating_sub(*from) < RUN);
        let mut sorted = false;
        loop {
            let pending = segment.written().saturating_sub(ordered);
            if pending == 0 || (pending < RUN && !all) {
                return sorted;
            }
            let from = again.unwrap_or(ordered);
            let end = (from + RUN).min(segment.written());
            let mut next = end;
            let offsets: Vec<u32> = walk(segment, from, end)
                .map(|(at, after)| {
                    next = after;
                    at
                })
                .collect();
            let run = sort(segment, offsets.into_iter());
            ordered = next.max(end);
            let mut state = self.state.lock();
            if again.take().is_some() {
                state.runs.pop();
            }
            state.runs.push((from, run));
            state.ordered = ordered;
            sorted = true;
        }
    }

    /// The runs, with the rest sorted now. `None` while recovered records wait for their first
    /// sort, or the sealing thread is more than `behind_max` records behind: come again.
    pub(crate) fn snapshot(&self, segment: &Segment, behind_max: usize) -> Option<Vec<Run>> {
        let (mut runs, ordered, written) = {
            let state = self.state.lock();
            if state.recovered.is_some() {
                return None;
            }
            let runs: Vec<Run> = state.runs.iter().map(|(_, run)| run.clone()).collect();
            (runs, state.ordered.max(SEGMENT_HEADER), segment.written())
        };
        // After `clear`, `ordered` is beyond everything.
        if written < ordered {
            return None;
        }
        if written > ordered {
            let rest: Vec<u32> = walk(segment, ordered, written).map(|(at, _)| at).take(behind_max + 1).collect();
            if rest.len() > behind_max {
                return None;
            }
            runs.push(sort(segment, rest.into_iter()));
        }
        Some(runs)
    }

    /// Whether no record of `key` is in the sorted part, and there is no unsorted one. `false` also
    /// means "not known".
    pub(crate) fn lacks(&self, segment: &Segment, key: &[u8]) -> bool {
        let state = self.state.lock();
        state.recovered.is_none()
            && state.ordered.max(SEGMENT_HEADER) == segment.written()
            && state.runs.iter().all(|(_, run)| {
                let at = lower_bound(segment, run.len() as u32, |index| run[index as usize], key);
                run.get(at as usize).is_none_or(|&at| segment.record(at).is_ok_and(|r| r.key() != key))
            })
    }

    /// Everything in one run, for the sidecar. Only once the segment has no tail.
    pub(crate) fn finish(&self, segment: &Segment) -> Run {
        self.extend(segment, true);
        let runs: Vec<Run> = self.state.lock().runs.iter().map(|(_, run)| run.clone()).collect();
        if let [only] = runs.as_slice() {
            return only.clone();
        }
        let mut offsets = runs.concat();
        drop(runs);
        offsets.sort_unstable();
        let with_prefetch = offsets.iter().enumerate().map(|(number, &at)| {
            if let Some(&soon) = offsets.get(number + PREFETCH) {
                segment.prefetch(soon);
            }
            at
        });
        sort(segment, with_prefetch)
    }

    /// Lets the memory go, once the sidecar serves in its place.
    pub(crate) fn clear(&self) {
        *self.state.lock() = State { ordered: u32::MAX, ..State::default() };
    }
}

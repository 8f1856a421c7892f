//! The key order of a segment that has no sidecar yet: sorted runs of record offsets, grown while the log grows.
//!
//! The sealing thread sorts each megabyte as it is written and merges runs of equal size, so the work of sealing is
//! spread out, and a range that starts at any moment sorts at most the last megabyte itself.
//!
//! Owner: the sealing thread grows it; anybody takes a snapshot. Bounds: 4 bytes a record, at most about
//! log2(segment / 1 MiB) runs. Invariant: a run holds offsets of intact records, by key and then newest first, one a key.

use std::cmp::Reverse;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::Version;
use crate::record::ALIGN;
use crate::segment::{SEGMENT_HEADER, Segment};
use crate::sidecar::lower_bound;

/// Records are sorted in runs of this many bytes of log.
pub(crate) const RUN: u32 = 1 << 20;

/// Offsets of records, sorted.
pub(crate) type Run = Arc<[u32]>;

#[derive(Debug, Default)]
pub(crate) struct Order {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// With the number of merges that made each; strictly falling.
    runs: Vec<(u32, Run)>,
    /// Everything below was taken into a run. 0 before the first.
    ordered: u32,
    /// Found by recovery, to be sorted first: a recovered segment may have gaps, so it is not walked again.
    recovered: Option<Run>,
    damaged: u32,
}

/// A record's key with its first bytes as a number, which decides most comparisons without touching the log.
fn prefix(key: &[u8]) -> u128 {
    let mut bytes = [0; 16];
    let len = key.len().min(16);
    bytes[..len].copy_from_slice(&key[..len]);
    u128::from_be_bytes(bytes)
}

/// What a sort compares, read once. A record that the disk damaged since it was found is left out.
fn sort(segment: &Segment, offsets: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut keyed: Vec<(u128, &[u8], Reverse<Version>, u32)> = offsets
        .filter_map(|at| {
            let record = segment.record(at).ok()?;
            Some((prefix(record.key()), record.key(), Reverse(record.version()), at))
        })
        .collect();
    keyed.sort_unstable();
    keyed.dedup_by(|b, a| a.1 == b.1);
    keyed.into_iter().map(|(.., at)| at).collect()
}

fn merge(segment: &Segment, a: &[u32], b: &[u32]) -> Vec<u32> {
    let mut merged = Vec::with_capacity(a.len() + b.len());
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        let (Ok(left), Ok(right)) = (segment.record(a[i]), segment.record(b[j])) else {
            // Damaged since: leave it out and go on with the other.
            if segment.record(a[i]).is_err() {
                i += 1
            } else {
                j += 1
            }
            continue;
        };
        let order = left.key().cmp(right.key());
        let left_first = order.then_with(|| right.version().cmp(&left.version())).is_le();
        merged.push(if left_first { a[i] } else { b[j] });
        i += usize::from(left_first || order.is_eq());
        j += usize::from(!left_first || order.is_eq());
    }
    merged.extend_from_slice(&a[i..]);
    merged.extend_from_slice(&b[j..]);
    merged
}

/// Offsets and ends of the intact records that begin from `start` to `end`. They lie without a gap, unless memory or disk
/// damaged one since it was written: what follows that one is found again.
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

    pub(crate) fn for_each_recovered(&self, visit: impl FnMut(u32)) {
        let recovered = self.state.lock().recovered.clone();
        recovered.iter().flat_map(|offsets| offsets.iter().copied()).for_each(visit);
    }

    pub(crate) fn damaged(&self) -> u32 {
        self.state.lock().damaged
    }

    /// Sorts what was written since the last call, if that is a run's worth or `all` is asked for; `true` if it did.
    pub(crate) fn extend(&self, segment: &Segment, all: bool) -> bool {
        let mut sorted = false;
        let (recovered, mut ordered) = {
            let state = self.state.lock();
            (state.recovered.clone(), state.ordered.max(SEGMENT_HEADER))
        };
        if let Some(offsets) = recovered {
            let run = sort(segment, offsets.iter().copied());
            let mut state = self.state.lock();
            state.runs.push((u32::MAX, run.into()));
            state.recovered = None;
            return true;
        }
        loop {
            let written = segment.written();
            let pending = written.saturating_sub(ordered);
            if pending == 0 || (pending < RUN && !all) {
                return sorted;
            }
            let mut next = (ordered + RUN).min(written);
            let walked = walk(segment, ordered, next).inspect(|&(_, end)| next = next.max(end));
            let offsets: Vec<u32> = walked.map(|(at, _)| at).collect();
            let run = sort(segment, offsets.into_iter());
            ordered = next;
            self.push(segment, run, ordered);
            sorted = true;
        }
    }

    fn push(&self, segment: &Segment, run: Vec<u32>, ordered: u32) {
        {
            let mut state = self.state.lock();
            state.runs.push((0, run.into()));
            state.ordered = ordered;
        }
        // Only this thread changes the runs, so they can be merged outside the lock and swapped in.
        loop {
            let last_two = {
                let state = self.state.lock();
                match state.runs.as_slice() {
                    [.., (x, a), (y, b)] if x == y => Some((*x, a.clone(), b.clone())),
                    _ => None,
                }
            };
            let Some((level, a, b)) = last_two else {
                return;
            };
            let merged: Run = merge(segment, &a, &b).into();
            let mut state = self.state.lock();
            let keep = state.runs.len() - 2;
            state.runs.truncate(keep);
            state.runs.push((level + 1, merged));
        }
    }

    /// The runs, with the rest sorted now. `None` while recovered records wait for their first sort, or the sealing
    /// thread is more than `behind_max` bytes behind: come again.
    pub(crate) fn snapshot(&self, segment: &Segment, behind_max: u32) -> Option<Vec<Run>> {
        let (mut runs, ordered, written) = {
            let state = self.state.lock();
            if state.recovered.is_some() {
                return None;
            }
            let runs: Vec<Run> = state.runs.iter().map(|(_, run)| run.clone()).collect();
            (runs, state.ordered.max(SEGMENT_HEADER), segment.written())
        };
        // After `clear`, `ordered` is beyond everything.
        if written.checked_sub(ordered).is_none_or(|behind| behind > behind_max) {
            return None;
        }
        if written > ordered {
            runs.push(sort(segment, walk(segment, ordered, written).map(|(at, _)| at)).into());
        }
        Some(runs)
    }

    /// Whether no record of `key` is in the sorted part, and there is no unsorted one. `false` also means "not known".
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
        loop {
            let (a, b) = {
                let state = self.state.lock();
                match state.runs.as_slice() {
                    [] => return Arc::from([]),
                    [(_, only)] => return only.clone(),
                    [.., (_, a), (_, b)] => (a.clone(), b.clone()),
                }
            };
            let merged: Run = merge(segment, &a, &b).into();
            let mut state = self.state.lock();
            let keep = state.runs.len() - 2;
            state.runs.truncate(keep);
            state.runs.push((0, merged));
        }
    }

    /// Lets the memory go, once the sidecar serves in its place.
    pub(crate) fn clear(&self) {
        *self.state.lock() = State { ordered: u32::MAX, ..State::default() };
    }
}

//! Allocations over time, for a heatmap: what the counted stacks gained in each cell of
//! [`CELL_MS`].
//!
//! Allocating costs no more than without a timeline: a thread reads the counters again and again,
//! one cache line for each stack that has been seen (some 0.1 ms a second for a hundred stacks). A
//! sample's time is therefore that of its cell, and cells are longer when this thread has to wait
//! for a processor.
//!
//! Owner: the thread that calls [`timeline`], which should not be a core's. Bounds:
//! [`SECONDS_MAX`]; [`SAMPLES_MAX`] changes of a stack, more of which are counted as dropped.
//! Invariant: the sum over all cells is the difference of the counters over the whole time. Tested
//! in `tests/allocs.rs`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use koltso_instrument::table::{OVERFLOW, Row};

use super::TABLE;
use super::snapshot::{OWN_FRAMES, Stacks, Symbolise, empty, snapshot, values};
use crate::capture::{Capture, Event, SAMPLES_MAX, Sample, ThreadIndex};

/// Milliseconds between two readings of the counters: a cell of a heatmap.
pub const CELL_MS: u64 = 20;
/// The longest capture, in seconds.
pub const SECONDS_MAX: u32 = 300;

/// What one stack gained in one cell.
struct Gain {
    at_ns: u64,
    slot: u32,
    values: [i64; 4],
}

/// Captures the allocations of the next seconds with their times. Blocks until then, or until
/// `stop` is set.
pub fn timeline(seconds: u32, stop: &AtomicBool, symbolise: &mut impl Symbolise) -> Capture {
    let before = snapshot();
    let began = before.at;
    let until = began + Duration::from_secs(seconds.min(SECONDS_MAX).into());
    // The counts of each slot at the start: parts of an object are rounded over the whole time, not
    // in each cell.
    let mut first: HashMap<u32, [u64; 4]> = HashMap::new();
    let mut known = Vec::new();
    TABLE.changes(&mut known, |slot, _, now| _ = first.insert(slot, now));
    let (mut gains, mut dropped) = (Vec::new(), 0);
    let mut read = began;
    while read < until && !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        std::thread::sleep((read + Duration::from_millis(CELL_MS)).min(until).saturating_duration_since(now));
        let now = Instant::now();
        // The middle of the cell.
        let at_ns = ((read - began) + (now - read) / 2).as_nanos() as u64;
        TABLE.changes(&mut known, |slot, old, new| {
            let from = first.get(&slot).copied().unwrap_or_default();
            let since = |counts: [u64; 4]| values(std::array::from_fn(|i| counts[i].wrapping_sub(from[i]) as i64));
            let (old, new) = (since(old), since(new));
            if gains.len() < SAMPLES_MAX {
                gains.push(Gain { at_ns, slot, values: std::array::from_fn(|i| new[i] - old[i]) });
            } else {
                dropped += 1;
            }
        });
        read = now;
    }

    let after = snapshot();
    let mut capture = empty(Event::Allocs, before.unix_ms, (read - began).as_nanos() as u64);
    capture.engine += &format!("; read every {CELL_MS} ms");
    capture.dropped = dropped;
    let rows: HashMap<u32, &Row> = after.rows.iter().map(|row| (row.slot, row)).collect();
    let mut stacks = Stacks::new(symbolise, OWN_FRAMES);
    let mut ids = HashMap::new();
    for Gain { at_ns, slot, values } in gains {
        // A slot without words is part of what had no room.
        let row = rows.get(&slot).unwrap_or_else(|| &rows[&OVERFLOW]);
        let id =
            *ids.entry(row.slot).or_insert_with(|| stacks.stack(&mut capture, row.slot == OVERFLOW, &row.words, None));
        if row.slot == OVERFLOW {
            capture.dropped += values[0].unsigned_abs();
        }
        match id {
            Some(stack) => capture.push(Sample { at_ns, thread: ThreadIndex(0), cpu: u16::MAX, stack, values }),
            None => capture.dropped += 1,
        }
    }
    capture
}

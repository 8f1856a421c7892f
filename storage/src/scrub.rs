//! The scrub: once in `scrub_interval` each sealed segment is read from the disk from its start to
//! its end, and what stands for a key is compared with its checksums, as is the sidecar.
//!
//! A record that is damaged on disk and not in memory is written again from there. One that is
//! damaged in memory, too, goes to [`crate::damage`], and so to whoever can repair it. A damaged
//! sidecar is made again in the same way, or at the next start.
//!
//! The rate is even: after each piece the scrub waits until as much of the interval is over as of the
//! round's bytes. It goes on where it was after a restart ([`crate::scrub_state`]), and nothing that
//! it reads stays in memory ([`crate::past_cache`]). What is written during a round is younger than
//! it, and read in the next one.
//!
//! Owner: a nice thread. Bounds: [`RATE_MAX`] bytes a second, [`HURRIED_RATE`] when told to hurry;
//! memory of 16 bytes a record of a segment, its sidecar, and its largest record.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::hash::IndexHash;
use crate::indexed::IndexedSegment;
use crate::parts::Parts;
use crate::past_cache::{PIECE, PastCache};
use crate::record::Record;
use crate::scrub_state::Round;
use crate::segment::path_of;
use crate::sidecar::Sidecar;
use crate::syncing;
use crate::threads::TICK;

/// The most that is read in a second, where the interval is short or a node was away.
const RATE_MAX: u64 = 16 << 20;
/// The same for a round that somebody waits for.
const HURRIED_RATE: u64 = 128 << 20;

/// Where a record lies that may stand for a key.
struct Spot {
    offset: u32,
    size: u32,
    hash: IndexHash,
}

/// Why the scrub of a segment stops.
enum Stop {
    /// The store closes, or a new round was asked for.
    Round,
    /// Compaction has given the segment back: its space is free once nobody holds it.
    SegmentGone,
}

pub(crate) fn run(parts: &Arc<Parts>) {
    let mut round = Round::read(parts.env(), parts.folder.path()).unwrap_or_default();
    // Whether this round is one that somebody waits for.
    let mut hurried = false;
    while !parts.threads.is_closing() {
        let interval = parts.options.scrub_interval;
        let asked = parts.scrub.hurry.load(Ordering::Relaxed);
        if (interval.is_zero() && !asked) || parts.scrub.paused.load(Ordering::Relaxed) {
            parts.threads.pause(TICK);
            continue;
        }
        if asked && !hurried {
            // All of it, from the beginning.
            round = Round { before_ended_ms: round.before_ended_ms, ..Round::default() };
            hurried = true;
        }
        let sealed = sealed(parts);
        let Some(last) = sealed.last().map(|segment| segment.sequence) else {
            // Nothing to read, and nothing to write down.
            parts.scrub.hurry.store(false, Ordering::Relaxed);
            hurried = false;
            parts.threads.pause(TICK);
            continue;
        };
        // No other segment is held: the space of one that compaction gives back would not be free.
        let is_next = |segment: &Arc<IndexedSegment>| segment.sequence > round.done && segment.sequence <= round.last;
        let Some(segment) = sealed.into_iter().find(is_next) else {
            if hurried && round.last > 0 {
                parts.scrub.hurry.store(false, Ordering::Relaxed);
                hurried = false;
            }
            round = ended(parts, round, last);
            continue;
        };
        match scrub(parts, &segment, (&mut round, hurried)) {
            Err(Stop::Round) => continue,
            Err(Stop::SegmentGone) | Ok(Ok(())) => {}
            Ok(Err(e)) => {
                tracing::warn!("the scrub cannot read the segment {:016x}.log: {e}", segment.sequence);
                parts.threads.pause(Duration::from_secs(1));
            }
        }
        round.done = segment.sequence;
        note(parts, &round);
    }
}

fn sealed(parts: &Parts) -> Vec<Arc<IndexedSegment>> {
    let mut sealed = parts.segments.all();
    sealed.retain(|segment| segment.sidecar().is_some());
    sealed.sort_unstable_by_key(|segment| segment.sequence);
    sealed
}

/// Ends a round, if it was one, and begins the next.
fn ended(parts: &Parts, round: Round, last: u64) -> Round {
    let now_ms = parts.env().now_ms();
    let was_round = round.bytes > 0;
    if was_round {
        tracing::info!("the scrub has read {} bytes of the log", round.bytes);
    }
    let before_ended_ms = if was_round { now_ms } else { round.before_ended_ms };
    let next = Round { began_ms: now_ms, done: 0, last, bytes: 0, before_ended_ms };
    note(parts, &next);
    next
}

fn note(parts: &Parts, round: &Round) {
    parts.scrub.show(round, left(parts, round));
    if let Err(e) = round.write(parts.env(), parts.folder.path()) {
        tracing::warn!("how far the scrub is cannot be written down: {e}");
    }
}

/// Bytes that the round has left to read.
fn left(parts: &Parts, round: &Round) -> u64 {
    let of = |segment: &Arc<IndexedSegment>| u64::from(segment.written()) + sidecar_len(segment);
    sealed(parts).iter().filter(|s| s.sequence > round.done && s.sequence <= round.last).map(of).sum()
}

fn sidecar_len(segment: &IndexedSegment) -> u64 {
    segment.sidecar().map_or(0, |sidecar| sidecar.bytes().len() as u64)
}

/// Waits until it is time for what follows `more` bytes of a segment that were read.
fn pace(
    parts: &Parts,
    sequence: u64,
    (round, hurried): (&mut Round, bool),
    left: &mut u64,
    more: u64,
) -> Result<(), Stop> {
    round.bytes += more;
    *left = left.saturating_sub(more);
    parts.scrub.show(round, *left);
    let rate = if hurried { HURRIED_RATE } else { RATE_MAX };
    parts.threads.pause(Duration::from_secs_f64(more as f64 / rate as f64));
    // A clock that was ahead when the round began would have it rest until that time.
    round.began_ms = round.began_ms.min(parts.env().now_ms());
    let share = round.bytes as f64 / (round.bytes + *left).max(1) as f64;
    let due_ms = round.began_ms.saturating_add((parts.options.scrub_interval.as_millis() as f64 * share) as u64);
    loop {
        if parts.threads.is_closing() || (!hurried && parts.scrub.hurry.load(Ordering::Relaxed)) {
            return Err(Stop::Round);
        }
        if parts.segments.find(sequence).is_none() {
            return Err(Stop::SegmentGone);
        }
        let paused = parts.scrub.paused.load(Ordering::Relaxed);
        if !paused && (hurried || parts.env().now_ms() >= due_ms) {
            return Ok(());
        }
        parts.threads.pause(TICK);
    }
}

/// Reads a segment and its sidecar.
fn scrub(
    parts: &Parts,
    segment: &Arc<IndexedSegment>,
    (round, hurried): (&mut Round, bool),
) -> Result<io::Result<()>, Stop> {
    let mut left = left(parts, round);
    let Some(sidecar) = segment.sidecar() else { return Ok(Ok(())) };
    if let Err(e) = scrub_sidecar(parts, segment, sidecar) {
        return Ok(Err(e));
    }
    pace(parts, segment.sequence, (round, hurried), &mut left, sidecar.bytes().len() as u64)?;
    let of = |entry: crate::sidecar::Entry| Spot { offset: entry.offset, size: entry.size, hash: entry.hash };
    let mut spots: Vec<Spot> = sidecar.entries().map(of).collect();
    spots.sort_unstable_by_key(|spot| spot.offset);
    let mut spots = spots.into_iter().peekable();
    let mut file = match PastCache::open(parts.env(), &path_of(parts.folder.path(), segment.sequence, "log")) {
        Ok(file) => file,
        Err(e) => return Ok(gone_or(parts, segment, e)),
    };
    // What was read and is still needed, and where it begins.
    let (mut window, mut start) = (Vec::new(), 0_usize);
    for at in (0..segment.written() as usize).step_by(PIECE) {
        match file.read(at as u64) {
            Ok(piece) => window.extend_from_slice(piece),
            Err(e) => tracing::warn!("the disk cannot read {:016x}.log at {at}: {e}", segment.sequence),
        }
        // What the disk did not give is as good as zeros.
        let end = at + PIECE;
        window.resize(end - start, 0);
        while let Some(spot) = spots.next_if(|spot| spot.offset as usize + spot.size as usize <= end) {
            let (offset, size) = (spot.offset as usize, spot.size as usize);
            check(parts, segment, &spot, window.get(offset - start..offset - start + size).unwrap_or_default());
        }
        let next = spots.peek().map_or(end, |spot| (spot.offset as usize).min(end));
        window.drain(..next - start);
        start = next;
        pace(
            parts,
            segment.sequence,
            (round, hurried),
            &mut left,
            (segment.written() as usize - at).min(PIECE) as u64,
        )?;
    }
    Ok(Ok(()))
}

/// An error is none if compaction gave the segment back meanwhile.
fn gone_or(parts: &Parts, segment: &IndexedSegment, error: io::Error) -> io::Result<()> {
    if parts.segments.find(segment.sequence).is_none() { Ok(()) } else { Err(error) }
}

/// Compares a record, as it is on disk, with its checksums, if it stands for its key.
fn check(parts: &Parts, segment: &Arc<IndexedSegment>, spot: &Spot, bytes: &[u8]) {
    let is_intact = |record: &Record<'_>| segment.header_intact(spot.offset, record) && record.value_intact();
    if Record::view(bytes).is_ok_and(|record| is_intact(&record))
        || !parts.index.lock(spot.hash).names(spot.hash, segment, spot.offset)
    {
        return;
    }
    if !segment.record(spot.offset).is_ok_and(|record| is_intact(&record)) {
        parts.damage.found(segment, spot.offset);
        return;
    }
    let written = segment.write_range_again(parts.env(), spot.offset, spot.offset + spot.size);
    match written.and_then(|()| syncing::sync_segment(parts, segment)) {
        Ok(()) => {
            parts.scrub.healed.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                "a record was damaged on disk, and was written again from memory: segment {:016x}.log, offset {}",
                segment.sequence,
                spot.offset
            );
        }
        Err(e) => tracing::error!(
            "a record is damaged on disk and cannot be written again from memory: segment {:016x}.log, offset {}: {e}",
            segment.sequence,
            spot.offset
        ),
    }
}

fn scrub_sidecar(parts: &Parts, segment: &Arc<IndexedSegment>, sidecar: &Sidecar) -> io::Result<()> {
    let (env, folder) = (parts.env(), parts.folder.path());
    let mut file = match PastCache::open(env, &path_of(folder, segment.sequence, "idx")) {
        Ok(file) => file,
        Err(e) => return gone_or(parts, segment, e),
    };
    let mut bytes = Vec::with_capacity(sidecar.bytes().len());
    while bytes.len() < sidecar.bytes().len() {
        let piece = file.read(bytes.len() as u64)?;
        if piece.is_empty() {
            break;
        }
        bytes.extend_from_slice(piece);
    }
    if bytes == sidecar.bytes() {
        // Both are the same, so both are damaged or neither.
        if !sidecar.is_intact() {
            tracing::error!("the sidecar {:016x}.idx is damaged: a start makes it anew", segment.sequence);
        }
        return Ok(());
    }
    if parts.segments.find(segment.sequence).is_none() || !sidecar.is_intact() {
        tracing::error!("the sidecar {:016x}.idx is damaged: a start makes it anew", segment.sequence);
        return Ok(());
    }
    sidecar.write_again(env, folder, segment)?;
    parts.scrub.healed.fetch_add(1, Ordering::Relaxed);
    tracing::warn!("the sidecar {:016x}.idx was damaged on disk, and was written again from memory", segment.sequence);
    Ok(())
}

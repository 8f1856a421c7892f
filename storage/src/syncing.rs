//! Putting logs on disk: one at a time when asked, and all of them every so often in the mode
//! `Every`.
//!
//! Linux reports that a page could not be written once to each open file description. So if two
//! synced the same one, the first could get the error and be interrupted before it says so, and the
//! second succeed and acknowledge what is lost. Invariant: the owner of a log has a description of
//! its own, and of those who share one, each knows of the failures of the others before it syncs.

use std::io;
use std::time::{Duration, Instant};

use koltso_instrument::waiting;

use crate::logs::{LogState, SyncBatch};
use crate::parts::Parts;
use crate::provision::AHEAD_MAX;
use crate::segment::Segment;

/// After a sync, at least this much is made writable again.
const REPOPULATE_MIN: u64 = 64 << 10;

/// Notes that a batch is on disk. Nothing becomes durable by that after a sync failed.
///
/// # Errors
/// If one did.
pub(crate) fn complete(parts: &Parts, log: &LogState, batch: &SyncBatch) -> io::Result<()> {
    parts.health.check()?;
    log.complete_sync(batch);
    Ok(())
}

/// Who syncs a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Syncer {
    /// The one who writes it, on one thread.
    Owner,
    /// A thread of the engine.
    Engine,
}

/// Syncs a segment for the engine. After a failed sync it only fails.
pub(crate) fn sync_segment(parts: &Parts, segment: &Segment) -> io::Result<()> {
    let _turn = segment.syncing.lock();
    parts.health.check()?;
    segment.sync(parts.env()).inspect_err(|e| parts.health.fail(e))
}

/// Syncs one log, and times it. After a failed sync it only fails: what the kernel dropped then is
/// not on disk.
pub(crate) fn sync_log(parts: &Parts, log: &LogState, syncer: Syncer) -> io::Result<()> {
    parts.health.check()?;
    let batch = log.begin_sync();
    if batch.position() <= log.durable() {
        return Ok(());
    }
    let started = Instant::now();
    for segment in batch.in_order() {
        waiting(&"sync of the log", || {
            let by_owner = if syncer == Syncer::Owner { segment.sync_as_owner(parts.env()) } else { None };
            match by_owner {
                Some(synced) => synced.inspect_err(|e| parts.health.fail(e)),
                None => sync_segment(parts, segment),
            }
        })?;
    }
    complete(parts, log, &batch)?;
    parts.counters.synced(started.elapsed());
    Ok(())
}

/// The syncing thread of the mode [`Every`](crate::SyncMode::Every).
pub(crate) fn run(parts: &Parts, interval: Duration) {
    while !parts.threads.is_closing() {
        let started = Instant::now();
        let logs = parts.logs.all();
        for log in &logs {
            let before = log.durable();
            if sync_log(parts, log, Syncer::Engine).is_err() {
                return;
            }
            if log.durable() != before {
                // Writing back made the pages read-only; what comes until the next time should not
                // fault on them.
                let written_since = log.durable() - before;
                let Some(segment) = log.active.lock().clone() else { continue };
                let (start, ready) = (segment.written(), segment.ready());
                let ahead = written_since.saturating_mul(2).clamp(REPOPULATE_MIN, u64::from(AHEAD_MAX)) as u32;
                segment.populate(start, start.saturating_add(ahead).min(ready));
            }
        }
        let took = started.elapsed();
        if took > interval {
            tracing::warn!(
                "syncing the log took {} ms, longer than the interval of {} ms",
                took.as_millis(),
                interval.as_millis()
            );
        }
        parts.threads.pause(interval.saturating_sub(took));
    }
}

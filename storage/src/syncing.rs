//! Putting logs on disk: one at a time when asked, and all of them every so often in the mode
//! `Every`.

use std::io;
use std::time::{Duration, Instant};

use koltso_instrument::waiting;

use crate::logs::{LogState, SyncBatch};
use crate::parts::Parts;
use crate::provision::AHEAD_MAX;

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

/// Syncs one log, and times it. After a failed sync it only fails: what the kernel dropped then is
/// not on disk.
pub(crate) fn sync_log(parts: &Parts, log: &LogState) -> io::Result<()> {
    parts.health.check()?;
    let batch = log.begin_sync();
    if batch.position() <= log.durable() {
        return Ok(());
    }
    let started = Instant::now();
    for (_, file) in batch.files() {
        waiting(&"sync of the log", || parts.env().sync(file)).inspect_err(|e| parts.health.fail(e))?;
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
            if sync_log(parts, log).is_err() {
                return;
            }
            if log.durable() != before {
                // Writing back made the pages read-only; what comes until the next time should not
                // fault on them.
                let written_since = log.durable() - before;
                let segment = log.active.lock().clone();
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

//! Sealing: sorts what was written, and gives rolled segments their sidecars.
//!
//! Invariant: a sidecar is written only after its segment was synced, and never after a sync
//! failed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use koltso_instrument::{Mutex, waiting};

use crate::indexed::IndexedSegment;
use crate::parts::Parts;
use crate::sidecar::Sidecar;
use crate::syncing;
use crate::threads::{TICK, Urgency};

/// After this long without sorting, the memory that sorting took is given back.
const QUIET: Duration = Duration::from_secs(1);
/// A log that has not grown for this long is sorted to its end.
const STILL: Duration = Duration::from_secs(1);

/// What whoever seals has to know of before.
#[derive(Default)]
pub(crate) struct Sorting {
    /// Since when there has been nothing to sort, after there was.
    quiet_since: Option<Instant>,
    /// How far each log was written, by its segment, and since when.
    written: Vec<(u64, u32, Instant)>,
}

/// What to do after a look at what there is to sort and to seal.
enum Next {
    Look,
    WaitToBeCalled,
    TryLater,
}

/// A sealing thread.
pub(crate) fn run(parts: &Parts, sorting: &Mutex<Sorting>, urgency: Urgency) {
    while parts.wait_for_turn(urgency) {
        let mut sorting = sorting.lock();
        if !parts.has_turn(urgency) {
            continue;
        }
        let next = sorting.look(parts);
        drop(sorting);
        match next {
            Next::Look => {}
            Next::WaitToBeCalled => thread::park_timeout(TICK),
            Next::TryLater => parts.threads.pause(Duration::from_secs(1)),
        }
    }
}

impl Sorting {
    fn look(&mut self, parts: &Parts) -> Next {
        // Not in the head of the loop, or the lock would be held until its end, and the
        // provisioning thread wait for the sorting.
        let logs = parts.logs.all();
        let before = std::mem::take(&mut self.written);
        for log in logs {
            // Compaction's log is kept sorted to its end, as is one that stands still, so that they
            // can tell which keys they do not have: a delete is not forgotten before.
            let Some(segment) = log.active.lock().clone() else { continue };
            let known = before.iter().find(|known| (known.0, known.1) == (segment.sequence, segment.written()));
            let known = known.copied().unwrap_or((segment.sequence, segment.written(), Instant::now()));
            self.written.push(known);
            let stands_still = known.2.elapsed() >= STILL;
            if segment.order.extend(&segment, log.privileged || stands_still) {
                self.quiet_since = Some(Instant::now());
            }
        }
        let next = parts.seal_queue.first();
        if let Some(segment) = next {
            return match seal(parts, &segment) {
                Ok(()) => {
                    parts.seal_queue.remove(&segment);
                    Next::Look
                }
                Err(e) => {
                    // It stays as it is, sorted in memory, as are those behind it: ranges need them. A
                    // full disk gets better.
                    for behind in parts.seal_queue.all() {
                        behind.order.extend(&behind, true);
                    }
                    tracing::warn!("a segment cannot be sealed yet: {e}");
                    Next::TryLater
                }
            };
        }
        if self.quiet_since.is_some_and(|since| since.elapsed() >= QUIET) {
            self.quiet_since = None;
            (parts.options.memory_freed)();
        }
        Next::WaitToBeCalled
    }
}

/// Sorts, syncs and writes the sidecar of a segment that has no tail any more.
fn seal(parts: &Parts, segment: &Arc<IndexedSegment>) -> io::Result<()> {
    segment.order.extend(segment, true);
    let run = segment.order.finish(segment);
    segment.settle(parts.env())?;
    // Not to be tried again: after a failed sync the kernel may have dropped the pages, and the
    // next one succeeds.
    waiting(&"sync of a sealed segment", || syncing::sync_segment(parts, segment))?;
    parts.health.check()?;
    for log in parts.logs.all() {
        log.was_synced(segment);
    }
    // Before a file is made beside it, since on a full disk this is what there is room for it in.
    segment.release_rest(parts.env());
    let (env, folder, secret) = (parts.env(), parts.folder.path(), parts.folder.secret());
    Sidecar::write(env, folder, secret, segment, &run, segment.order.damaged())?;
    let Some(sidecar) = Sidecar::open(env, folder, secret, segment) else {
        return Err(io::Error::other("the sidecar that was just written cannot be read back"));
    };
    segment.attach(sidecar);
    segment.order.clear();
    drop(run);
    (parts.options.memory_freed)();
    Ok(())
}

/// Seals every open segment, at the end. What a writer that was not dropped still holds, and what
/// there is no room for a sidecar of, stays as after a crash: it is on disk, and read through at the
/// next start.
pub(crate) fn seal_everything(parts: &Parts) -> io::Result<()> {
    let mut held = Vec::new();
    for log in parts.logs.all() {
        if log.closed.load(Ordering::Acquire) {
            drop(log.spare.lock().take());
        } else {
            tracing::warn!("the store closes while a writer is left: its segment is read through at the next start");
            held.extend(log.active.lock().clone());
            held.extend(log.spare.lock().as_ref().map(|tail| tail.segment().clone()));
        }
    }
    let mut open = parts.segments.all();
    open.retain(|s| s.sidecar().is_none() && !held.iter().any(|h| Arc::ptr_eq(h, s)));
    for segment in open {
        if segment.used_bytes() == 0 {
            let _ = segment.unlink(parts.env());
        } else if let Err(e) = seal(parts, &segment) {
            parts.health.check()?;
            tracing::warn!("a segment cannot be sealed, and is read through at the next start: {e}");
        }
    }
    parts.folder.sync(parts.env())
}

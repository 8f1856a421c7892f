//! The engine's threads, each with one task, so that none waits for another's disk:
//!
//! - `provision` keeps allocated, populated space ahead of each writer, a spare segment where one is soon needed, and memory for
//!   the index to grow into;
//! - `seal` sorts what was written, and gives rolled segments their sidecars;
//! - `sync` puts the logs on disk in the mode "every so often";
//! - `compact` gives space back.
//!
//! Sealing and compaction are nice; the other two have little to do, and writers wait when they are late. None is pinned
//! (a thread inherits its maker's affinity: open the store from an unpinned thread). They stop within about 100 ms of
//! being asked, compaction in the middle of a segment.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use koltso_instrument::{Mutex, waiting};

use crate::WriteError;
use crate::compact;
use crate::log::LogState;
use crate::schedule;
use crate::segment::{SLICE, Segment, Tail};
use crate::sidecar::Sidecar;
use crate::store::{Need, Shared, SyncMode};

/// Least and most that is kept ready ahead of a writer.
const AHEAD_MIN: u32 = SLICE;
const AHEAD_MAX: u32 = 16 << 20;
/// How far ahead in time: what was written in this long is kept ready.
const AHEAD_MS: u64 = 250;
/// A spare segment is made when less than this is left of the active one: 100 ms of writing at 160 MB/s.
const SPARE_BELOW: u64 = 16 << 20;
/// After a sync, at least this much is made writable again.
const REPOPULATE_MIN: u64 = 64 << 10;
/// After this long without sorting, the memory that sorting took is given back.
const QUIET: Duration = Duration::from_secs(1);
/// How often the threads look without being called.
const TICK: Duration = Duration::from_millis(100);

pub(crate) struct Background {
    joins: Mutex<Vec<JoinHandle<()>>>,
    provision: Mutex<Option<Thread>>,
    seal: Mutex<Option<Thread>>,
}

impl Default for Background {
    fn default() -> Self {
        Self {
            joins: Mutex::new(&"storage threads", Vec::new()),
            provision: Mutex::new(&"provisioning thread", None),
            seal: Mutex::new(&"sealing thread", None),
        }
    }
}

impl Background {
    pub(crate) fn start(shared: &Arc<Shared>) -> std::io::Result<()> {
        let spawn = |name: &str, nice: bool, body: fn(&Arc<Shared>)| {
            let shared = shared.clone();
            thread::Builder::new().name(format!("koltso-{name}")).spawn(move || {
                if nice {
                    schedule::be_nice();
                }
                body(&shared);
            })
        };
        let threads = &shared.threads;
        let mut joins = threads.joins.lock();
        let provision = spawn("provision", false, provision)?;
        *threads.provision.lock() = Some(provision.thread().clone());
        let seal = spawn("seal", true, seal)?;
        *threads.seal.lock() = Some(seal.thread().clone());
        joins.extend([provision, seal, spawn("compact", true, compact::run)?]);
        if let SyncMode::Every(_) = shared.options.sync {
            joins.push(spawn("sync", false, sync)?);
        }
        Ok(())
    }
}

impl Shared {
    pub(crate) fn wake_provisioning(&self) {
        if let Some(thread) = &*self.threads.provision.lock() {
            thread.unpark();
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Waits a while, or less if the store closes.
    pub(crate) fn pause(&self, mut time: Duration) {
        while !time.is_zero() && !self.is_closing() {
            let step = time.min(TICK);
            thread::park_timeout(step);
            time -= step;
        }
    }

    /// Stops the background threads. More than once is fine.
    pub(crate) fn stop(&self) {
        self.closing.store(true, Ordering::SeqCst);
        for join in self.threads.joins.lock().drain(..) {
            join.thread().unpark();
            // In the server a panic ends the process; elsewhere it must not pass unnoticed.
            assert!(join.join().is_ok() || thread::panicking(), "a storage thread had panicked");
        }
    }

    /// Takes a rolled segment for sealing. Its tail ends here, so nobody writes to it any more.
    pub(crate) fn hand_to_sealing(&self, tail: Tail) {
        self.sealing.lock().push(tail.segment().clone());
        drop(tail);
        if let Some(thread) = &*self.threads.seal.lock() {
            thread.unpark();
        }
    }

    /// Sorts, syncs and writes the sidecar of a segment that has no tail any more.
    fn seal(&self, segment: &Arc<Segment>) -> std::io::Result<()> {
        segment.order.extend(segment, true);
        let run = segment.order.finish(segment);
        // Not to be tried again: after a failed sync the kernel may have dropped the pages, and the next one succeeds.
        waiting(&"sync of a sealed segment", || self.options.disk.sync(&segment.file)).inspect_err(|e| self.fail(e))?;
        if self.failed.load(Ordering::SeqCst) {
            return Err(std::io::Error::other("the disk failed before"));
        }
        for log in self.logs.lock().iter() {
            log.unsynced.lock().retain(|s| !Arc::ptr_eq(s, segment));
        }
        Sidecar::write(self.folder.path(), segment, &run, segment.order.damaged())?;
        let Some(sidecar) = Sidecar::open(self.folder.path(), segment) else {
            return Err(std::io::Error::other("the sidecar that was just written cannot be read back"));
        };
        segment.attach(sidecar);
        segment.order.clear();
        drop(run);
        (self.options.memory_freed)();
        segment.release_rest(&*self.options.disk);
        Ok(())
    }

    /// Seals every open segment, at the end. What a writer that was not dropped still holds stays as after a crash.
    pub(crate) fn seal_everything(&self) -> std::io::Result<()> {
        let mut held = Vec::new();
        for log in self.logs.lock().iter() {
            if log.closed.load(Ordering::Acquire) {
                drop(log.spare.lock().take());
            } else {
                tracing::warn!(
                    "the store closes while a writer is left: its segment is read through at the next start"
                );
                held.push(log.active.lock().clone());
                held.extend(log.spare.lock().as_ref().map(|tail| tail.segment().clone()));
            }
        }
        let mut open = self.segments.lock().clone();
        open.retain(|s| s.sidecar().is_none() && !held.iter().any(|h| Arc::ptr_eq(h, s)));
        for segment in open {
            if segment.used_bytes() == 0 {
                let _ = segment.unlink();
            } else {
                self.seal(&segment)?;
            }
        }
        crate::disk::sync_folder(self.folder.path())
    }

    /// Syncs one log, and times it. After a failed sync it only fails: what the kernel dropped then is not on disk.
    pub(crate) fn sync_log(&self, log: &LogState) -> std::io::Result<()> {
        let failed = || std::io::Error::other("the disk failed before");
        if self.failed.load(Ordering::SeqCst) {
            return Err(failed());
        }
        let batch = log.begin_sync();
        if batch.position() <= log.durable.load(Ordering::Acquire) {
            return Ok(());
        }
        let started = Instant::now();
        for (_, file) in batch.files() {
            waiting(&"sync of the log", || self.options.disk.sync(file)).inspect_err(|e| self.fail(e))?;
        }
        if !self.complete_sync(log, &batch) {
            return Err(failed());
        }
        let took = started.elapsed().as_micros() as u64;
        self.stats.syncs.fetch_add(1, Ordering::Relaxed);
        self.stats.sync_us_total.fetch_add(took, Ordering::Relaxed);
        self.stats.sync_us_max.fetch_max(took, Ordering::Relaxed);
        Ok(())
    }
}

fn provision(shared: &Arc<Shared>) {
    let mut rates: Vec<(u64, Instant, u32)> = Vec::new();
    while !shared.is_closing() {
        let logs = shared.logs.lock().clone();
        rates.resize_with(logs.len(), || (0, Instant::now(), AHEAD_MIN));
        let mut more = false;
        for (log, (last, since, ahead)) in logs.iter().zip(&mut rates) {
            let appended = log.appended.load(Ordering::Relaxed);
            let elapsed = since.elapsed().as_millis() as u64;
            if elapsed >= 50 {
                let wanted = (appended - *last).saturating_mul(AHEAD_MS) / elapsed;
                *ahead = (wanted.min(u64::from(AHEAD_MAX)) as u32).max(AHEAD_MIN);
                (*last, *since) = (appended, Instant::now());
            }
            log.nudged.store(false, Ordering::Release);
            more |= provide(shared, log, *ahead);
        }
        shared.index.provide();
        if !more {
            if let Some(thread) = &*shared.threads.seal.lock() {
                thread.unpark();
            }
            thread::park_timeout(TICK);
        }
    }
}

/// Makes one slice ready where one is wanted; `true` if there may be more to do.
fn provide(shared: &Shared, log: &LogState, ahead: u32) -> bool {
    let segment = log.active.lock().clone();
    let (written, ready) = (segment.written(), segment.ready());
    let need = if log.privileged { Need::Compaction } else { Need::Value };
    let left = shared.roll_at.saturating_sub(u64::from(written));
    if left < SPARE_BELOW.min(shared.roll_at / 4) && log.spare.lock().is_none() {
        match shared.create_segment(need) {
            Ok(tail) => *log.spare.lock() = Some(tail),
            Err(e) => tracing::debug!("no spare segment: {e}"),
        }
    }
    let wanted = ready < segment.capacity() && u64::from(ready) < shared.roll_at && ready - written < ahead;
    // While the disk is full, asking is what notices that there is room again.
    if !wanted && !shared.disk_full.load(Ordering::Relaxed) {
        return false;
    }
    match shared.room_for(u64::from(SLICE), need) {
        Ok(()) if wanted => segment.extend_ahead(&*shared.options.disk).unwrap_or(false),
        Ok(()) | Err(WriteError::DiskFull) => false,
        Err(_) => false,
    }
}

fn seal(shared: &Arc<Shared>) {
    // Since when there has been nothing to sort, after there was.
    let mut quiet_since: Option<Instant> = None;
    while !shared.is_closing() {
        // Not in the head of the loop, or the lock would be held until its end, and the provisioning thread wait for the sorting.
        let logs = shared.logs.lock().clone();
        for log in logs {
            // Compaction's log is kept sorted to its end, so that it can tell which keys it does not have.
            let segment = log.active.lock().clone();
            if segment.order.extend(&segment, log.privileged) {
                quiet_since = Some(Instant::now());
            }
        }
        let next = shared.sealing.lock().first().cloned();
        if let Some(segment) = next {
            match shared.seal(&segment) {
                Ok(()) => shared.sealing.lock().retain(|s| !Arc::ptr_eq(s, &segment)),
                Err(e) => {
                    // It stays as it is, sorted in memory; a full disk gets better.
                    tracing::warn!("a segment cannot be sealed yet: {e}");
                    shared.pause(Duration::from_secs(1));
                }
            }
            continue;
        }
        if quiet_since.is_some_and(|since| since.elapsed() >= QUIET) {
            quiet_since = None;
            (shared.options.memory_freed)();
        }
        thread::park_timeout(TICK);
    }
}

fn sync(shared: &Arc<Shared>) {
    let SyncMode::Every(interval) = shared.options.sync else {
        return;
    };
    while !shared.is_closing() {
        let started = Instant::now();
        let logs = shared.logs.lock().clone();
        for log in &logs {
            let before = log.durable.load(Ordering::Relaxed);
            if shared.sync_log(log).is_err() {
                return;
            }
            if log.durable.load(Ordering::Relaxed) != before {
                // Writing back made the pages read-only; what comes until the next time should not fault on them.
                let written_since = log.durable.load(Ordering::Relaxed) - before;
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
        shared.pause(interval.saturating_sub(took));
    }
}

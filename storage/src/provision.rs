//! The provisioning thread: keeps allocated, populated space ahead of each writer, a spare segment
//! where one is soon needed, and memory for the index to grow into. Writers wait when it is late.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use crate::logs::LogState;
use crate::parts::Parts;
use crate::room::Need;
use crate::segment::SLICE;
use crate::threads::TICK;

/// Least and most that is kept ready ahead of a writer.
const AHEAD_MIN: u32 = SLICE;
pub(crate) const AHEAD_MAX: u32 = 16 << 20;
/// How far ahead in time: what was written in this long is kept ready.
const AHEAD_MS: u64 = 250;
/// A spare segment is made when less than this is left of the active one: 100 ms of writing at 160
/// MB/s.
const SPARE_BELOW: u64 = 16 << 20;

pub(crate) fn run(parts: &Parts) {
    let mut faults_seen = 0;
    let mut rates: Vec<(u64, Instant, u32)> = Vec::new();
    while !parts.threads.is_closing() {
        let logs = parts.logs.all();
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
            more |= provide(parts, log, *ahead);
        }
        parts.index.provide();
        parts.report_faults(&mut faults_seen);
        if !more {
            parts.wake_sealing();
            thread::park_timeout(TICK);
        }
    }
}

/// Makes one slice ready where one is wanted; `true` if there may be more to do.
fn provide(parts: &Parts, log: &LogState, ahead: u32) -> bool {
    let need = if log.privileged { Need::Compaction } else { Need::Value };
    let Some(segment) = log.active.lock().clone() else {
        // The disk was full when the log began. This is also what notices that it is no more.
        if log.spare.lock().is_none()
            && let Ok(tail) = parts.create_segment(need)
        {
            *log.spare.lock() = Some(tail);
        }
        return false;
    };
    segment.look_at_length(parts.env());
    let (written, ready) = (segment.written(), segment.ready());
    let left = parts.room.roll_at().saturating_sub(u64::from(written));
    if left < SPARE_BELOW.min(parts.room.roll_at() / 4) && log.spare.lock().is_none() {
        match parts.create_segment(need) {
            Ok(tail) => *log.spare.lock() = Some(tail),
            Err(e) => tracing::debug!("no spare segment: {e}"),
        }
    }
    let wanted = ready < segment.capacity() && u64::from(ready) < parts.room.roll_at() && ready - written < ahead;
    // While the disk is full, asking is what notices that there is room again.
    if !wanted && !parts.room.is_full() {
        return false;
    }
    let has_room = parts.ask_for_room(u64::from(SLICE), need).is_ok();
    wanted && has_room && segment.extend_ahead(parts.env()).unwrap_or(false)
}

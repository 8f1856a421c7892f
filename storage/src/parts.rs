//! The parts of the engine, which all its threads share. Each part has its own file, its own state
//! and its own methods; here is only what takes several of them.

use std::io;
use std::sync::Arc;
use std::thread;

use crate::damage::DamageLog;
use crate::env::Env;
use crate::fault;
use crate::folder::Folder;
use crate::health::Health;
use crate::index::Index;
use crate::indexed::{IndexedSegment, Tail};
use crate::logs::Logs;
use crate::options::{Options, SyncMode};
use crate::retention::Retention;
use crate::room::{Need, Room};
use crate::scrub_state::ScrubState;
use crate::seal_queue::SealQueue;
use crate::segment::SLICE;
use crate::segments::{SegmentContext, Segments};
use crate::stats::{Counters, Stats};
use crate::threads::{TICK, Threads, Urgency};

/// See the module.
pub(crate) struct Parts {
    pub(crate) options: Options,
    pub(crate) folder: Folder,
    pub(crate) index: Index,
    pub(crate) segments: Segments,
    pub(crate) logs: Logs,
    pub(crate) seal_queue: SealQueue,
    pub(crate) damage: Arc<DamageLog>,
    pub(crate) counters: Counters,
    pub(crate) health: Health,
    pub(crate) room: Room,
    pub(crate) retention: Retention,
    pub(crate) scrub: ScrubState,
    pub(crate) threads: Threads,
}

impl Parts {
    /// The outside world.
    #[inline]
    pub(crate) fn env(&self) -> &dyn Env {
        &*self.options.env
    }

    /// Whether names in the folder have to survive a power loss.
    pub(crate) fn keeps_names(&self) -> bool {
        self.options.sync != SyncMode::Os
    }

    fn segment_context(&self) -> SegmentContext<'_> {
        SegmentContext { env: self.env(), folder: &self.folder, index: &self.index }
    }

    /// Whether `bytes` more may be allocated; `StorageFull` if not.
    pub(crate) fn ask_for_room(&self, bytes: u64, need: Need) -> io::Result<()> {
        self.room.ask(self.env(), self.folder.path(), bytes, need)
    }

    /// A new, installed segment whose name is durable.
    pub(crate) fn create_segment(&self, need: Need) -> io::Result<Tail> {
        self.ask_for_room(u64::from(SLICE), need)?;
        self.segments.create(&self.segment_context(), self.options.segment_size, self.keeps_names())
    }

    /// Reports what the handler of faults has found since the last look, when `seen` were counted.
    /// One thread at a time.
    pub(crate) fn report_faults(&self, seen: &mut u64) {
        let total = fault::total();
        if total == std::mem::replace(seen, total) {
            return;
        }
        for segment in self.segments.all() {
            match segment.new_faults() {
                0 => {}
                count => self.damage.lost_pages(&segment, count),
            }
        }
    }

    /// Gives a segment back that no index entry names.
    pub(crate) fn retire(&self, segment: &Arc<IndexedSegment>) {
        if let Err(e) = self.segments.retire(&self.segment_context(), segment) {
            tracing::warn!("a compacted segment cannot be removed, it will be found again at the next start: {e}");
            self.retention.segment_left_behind();
        }
    }

    /// Takes a rolled segment for sealing. Its tail ends here, so nobody writes to it any more.
    pub(crate) fn hand_to_sealing(&self, tail: Tail) {
        let segment = tail.segment().clone();
        drop(tail);
        if self.room.rolls_early(segment.capacity()) {
            // A slice that is hardly begun: on a small disk that is much, and sealing may take its time.
            segment.release_rest(self.env());
        }
        self.seal_queue.push(segment);
        self.wake_sealing();
    }

    pub(crate) fn wake_sealing(&self) {
        self.threads.wake_sealing(self.on_turn());
    }

    /// Which of the two threads that a task has works now: on a disk that is short of room the
    /// prompt one.
    fn on_turn(&self) -> Urgency {
        if self.room.is_short() { Urgency::Prompt } else { Urgency::Nice }
    }

    /// Whether a thread works, of two that have the same task.
    pub(crate) fn has_turn(&self, urgency: Urgency) -> bool {
        self.on_turn() == urgency
    }

    /// Waits until a thread works, of two that have the same task; `false` if the store closes. The
    /// other one may be at it still: a lock around the task keeps them apart.
    pub(crate) fn wait_for_turn(&self, urgency: Urgency) -> bool {
        while !self.threads.is_closing() {
            if self.has_turn(urgency) {
                return true;
            }
            match urgency {
                Urgency::Nice => thread::park_timeout(TICK),
                // It is called when the disk becomes short of room.
                Urgency::Prompt => thread::park(),
            }
        }
        false
    }

    /// Figures of all parts. Walks all stripes and segments.
    pub(crate) fn stats(&self) -> Stats {
        let (entries, tombstones) = self.index.counts();
        let mut stats = Stats {
            records: entries.saturating_sub(tombstones),
            tombstones,
            damaged_records: self.damage.count(),
            scrub: self.scrub.stats(),
            repaired_records: self.damage.repaired_count(),
            torn_records: self.damage.torn_records(),
            unreadable_segments: self.damage.unreadable_segments(),
            lost_pages: self.damage.lost_page_count(),
            disk_full: self.room.is_full(),
            ..Stats::default()
        };
        self.counters.copy_to(&mut stats);
        self.health.copy_to(&mut stats);
        for segment in self.segments.all() {
            stats.segments += 1;
            stats.live_bytes += segment.live();
            stats.dead_bytes += segment.dead_bytes();
            stats.disk_bytes += segment.disk_bytes(self.env());
        }
        stats.appended_bytes = self.logs.all().iter().filter(|log| !log.privileged).map(|log| log.position()).sum();
        stats
    }
}

//! Room on the disk: who may still have how much of it, and where segments are rolled on a small
//! one.
//!
//! A reserve is kept so that a full disk can be emptied: half of it for deletes, half for
//! compaction. Before values get to it, the disk is short of room, and what is expired or dead has
//! to go at once: whoever finds that out first calls the threads that do it then.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;

use koltso_instrument::Mutex;

use crate::env::{Env, Space};

/// The least at which a segment is rolled, unless it is smaller itself.
const ROLL_MIN: u64 = 1 << 20;

/// The most by which the free space that makes compaction hurry exceeds the reserve: seconds of
/// writing, however large the disk is.
const SHORT_MAX: u64 = 1 << 30;

/// Who asks for room. On a full disk the order is: no values any more, then no deletes any more,
/// and compaction last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Value,
    Tombstone,
    Compaction,
}

/// See the module.
pub(crate) struct Room {
    /// A segment is rolled here: its size, or less on a small file system.
    roll_at: u64,
    /// Free bytes that are kept.
    reserve: u64,
    /// With less free than this, compaction hurries.
    short_below: u64,
    full: AtomicBool,
    /// As found by the last look.
    short: AtomicBool,
    /// Whom to call when it becomes short.
    called: Mutex<Vec<Thread>>,
}

impl Room {
    /// For a file system with this space and segments of this size.
    pub(crate) fn new(space: Space, segment_size: u32) -> Self {
        let reserve = (space.total / 16).min(u64::from(segment_size));
        let short_below = reserve + (space.total / 8).min(SHORT_MAX);
        Self {
            roll_at: (space.total / 64).max(ROLL_MIN).min(u64::from(segment_size)),
            reserve,
            short_below,
            full: AtomicBool::new(false),
            short: AtomicBool::new(space.free < short_below),
            called: Mutex::new(&"called when the disk is short of room", Vec::new()),
        }
    }

    /// Where a segment is rolled, in bytes.
    #[inline]
    pub(crate) const fn roll_at(&self) -> u64 {
        self.roll_at
    }

    /// Whether segments of this size are rolled before they are full.
    pub(crate) fn rolls_early(&self, segment_size: u32) -> bool {
        self.roll_at < u64::from(segment_size)
    }

    /// Whether values were refused when room was asked for last.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Whether values will soon be refused, or are, unless space comes back: as somebody found when
    /// looking last.
    #[inline]
    pub(crate) fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// Looks whether the disk is short of room.
    pub(crate) fn look(&self, env: &dyn Env, folder: &Path) -> bool {
        self.note(env.space(folder).ok());
        self.is_short()
    }

    fn note(&self, space: Option<Space>) {
        let short = self.is_full() || space.is_some_and(|space| space.free < self.short_below);
        if self.is_short() != short && self.short.swap(short, Ordering::Relaxed) != short && short {
            self.called.lock().iter().for_each(Thread::unpark);
        }
    }

    /// Has a thread unparked whenever the disk becomes short of room, and once now.
    pub(crate) fn calls_when_short(&self, thread: Thread) {
        let mut called = self.called.lock();
        thread.unpark();
        called.push(thread);
    }

    /// Whether `bytes` more may be allocated; `StorageFull` if not.
    pub(crate) fn ask(&self, env: &dyn Env, folder: &Path, bytes: u64, need: Need) -> io::Result<()> {
        let space = env.space(folder)?;
        let reserve = match need {
            Need::Value => self.reserve,
            Need::Tombstone => self.reserve / 2,
            Need::Compaction => 0,
        };
        let refused = space.free < bytes + reserve;
        if refused {
            if need == Need::Value && !self.full.swap(true, Ordering::Relaxed) {
                tracing::error!("the disk is full ({} bytes free): writes are refused until there is room", space.free);
            }
        } else if need == Need::Value && self.full.swap(false, Ordering::Relaxed) {
            tracing::info!("there is room on the disk again ({} bytes free): writes are accepted", space.free);
        }
        self.note(Some(space));
        if refused { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

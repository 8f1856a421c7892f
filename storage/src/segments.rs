//! The set of segments: which there are, which sequence and slot the next one gets, how one is made
//! and given back.
//!
//! Invariants: a sequence is never used twice in the life of a folder; a slot holds one segment at
//! a time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use koltso_instrument::Mutex;

use crate::entry::SLOTS;
use crate::env::Env;
use crate::folder::Folder;
use crate::index::Index;
use crate::indexed::{IndexedSegment, Tail};
use crate::segment::Segment;

/// See the module.
pub(crate) struct Segments {
    /// By sequence. Changed when one is made or given back.
    all: Mutex<Vec<Arc<IndexedSegment>>>,
    /// How many were made since the store was opened; moves when one is in the list.
    made: AtomicU64,
    next_sequence: AtomicU64,
    slots: Mutex<Slots>,
    /// Somebody was told that the file system cannot allocate ahead.
    said_zeros: AtomicBool,
}

/// Which slots have no segment.
struct Slots {
    /// Some that had one.
    free: Vec<u32>,
    /// All from here on.
    never_used: u32,
}

impl Slots {
    /// Those that the segments of `taken` do not have.
    fn beside(taken: &[Arc<IndexedSegment>]) -> Self {
        let mut taken: Vec<u32> = taken.iter().map(|segment| segment.slot).collect();
        taken.sort_unstable();
        let never_used = taken.last().map_or(0, |last| last + 1);
        let free = (0..never_used).rev().filter(|slot| taken.binary_search(slot).is_err()).collect();
        Self { free, never_used }
    }

    fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            let slot = self.never_used;
            (slot < SLOTS as u32).then(|| {
                self.never_used += 1;
                slot
            })
        })
    }
}

/// What is needed to make and to remove a segment.
pub(crate) struct SegmentContext<'a> {
    pub(crate) env: &'a dyn Env,
    pub(crate) folder: &'a Folder,
    pub(crate) index: &'a Index,
}

impl Segments {
    /// Those that recovery found and installed.
    pub(crate) fn new(found: Vec<Arc<IndexedSegment>>, next_sequence: u64) -> Self {
        let slots = Slots::beside(&found);
        Self {
            all: Mutex::new(&"segments", found),
            made: AtomicU64::new(0),
            next_sequence: AtomicU64::new(next_sequence),
            slots: Mutex::new(&"free segment slots", slots),
            said_zeros: AtomicBool::new(false),
        }
    }

    /// All at this moment, by sequence.
    pub(crate) fn all(&self) -> Vec<Arc<IndexedSegment>> {
        self.all.lock().clone()
    }

    /// The one with this sequence, if it is there.
    pub(crate) fn find(&self, sequence: u64) -> Option<Arc<IndexedSegment>> {
        self.all.lock().iter().find(|segment| segment.sequence == sequence).cloned()
    }

    /// How many were made. While it stays, so does the list, except for those that are given back:
    /// what was published since lies in one that was there.
    pub(crate) fn made(&self) -> u64 {
        self.made.load(Ordering::Acquire)
    }

    /// A new, installed segment of `size` bytes; with `durable_name`, its name survives a power
    /// loss.
    pub(crate) fn create(&self, context: &SegmentContext<'_>, size: u32, durable_name: bool) -> io::Result<Tail> {
        let Some(slot) = self.slots.lock().take() else {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "all segment slots are taken"));
        };
        let made = self.make(context, size, durable_name).map(|segment| Arc::new(IndexedSegment::new(segment, slot)));
        let segment = made.inspect_err(|_| self.slots.lock().free.push(slot))?;
        context.index.install(segment.clone());
        let mut all = self.all.lock();
        all.push(segment.clone());
        self.made.fetch_add(1, Ordering::Release);
        drop(all);
        Ok(Tail::new(segment))
    }

    fn make(&self, context: &SegmentContext<'_>, size: u32, durable_name: bool) -> io::Result<Segment> {
        let sequence = self.next_sequence.fetch_add(1, Ordering::Relaxed);
        // Differs between segments and between lives of a folder, so that bytes of one never pass
        // as another's.
        let salt = context.env.random() as u32;
        let segment = Segment::create(context.env, context.folder.path(), sequence, salt, size)?;
        if !segment.allocates() && !self.said_zeros.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the file system of the data folder {} has no fallocate: room for the log is made by writing zeros, and what \
                 is written goes to the disk twice",
                context.folder.path().display()
            );
        }
        if durable_name {
            context.folder.sync(context.env).inspect_err(|_| {
                let _ = segment.unlink(context.env);
            })?;
        }
        Ok(segment)
    }

    /// Gives a segment back that no index entry names. An error means that its files are still
    /// there.
    pub(crate) fn retire(&self, context: &SegmentContext<'_>, segment: &Arc<IndexedSegment>) -> io::Result<()> {
        let retired = context.index.retire(segment.slot);
        assert!(Arc::ptr_eq(&retired, segment));
        self.all.lock().retain(|other| !Arc::ptr_eq(other, segment));
        let removed = segment.unlink(context.env);
        self.slots.lock().free.push(segment.slot);
        removed
    }
}

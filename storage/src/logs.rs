//! What each writer's log shares with the background threads, and the list of all logs.
//!
//! Invariants: positions only grow; everything below `durable` was synced.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use koltso_instrument::Mutex;

use crate::indexed::{IndexedSegment, Tail};

/// All logs, one for each writer that was ever made.
pub(crate) struct Logs(Mutex<Vec<Arc<LogState>>>);

impl Default for Logs {
    fn default() -> Self {
        Self(Mutex::new(&"logs", Vec::new()))
    }
}

impl Logs {
    pub(crate) fn add(&self, log: Arc<LogState>) {
        self.0.lock().push(log);
    }

    /// All at this moment.
    pub(crate) fn all(&self) -> Vec<Arc<LogState>> {
        self.0.lock().clone()
    }
}

/// What a log shares with the background threads.
pub(crate) struct LogState {
    /// `None` until there was room for the first.
    pub(crate) active: Mutex<Option<Arc<IndexedSegment>>>,
    /// Made ahead, so that rolling costs nothing.
    pub(crate) spare: Mutex<Option<Tail>>,
    /// IndexedSegments with bytes that were not synced, oldest first; the active one is last.
    unsynced: Mutex<Vec<Arc<IndexedSegment>>>,
    /// Bytes appended since the store was opened.
    pub(crate) appended: AtomicU64,
    durable: AtomicU64,
    /// Called the provisioning thread, and it has not answered yet.
    pub(crate) nudged: AtomicBool,
    /// This is compaction's log: it may use the reserve that keeps a full disk from staying full.
    pub(crate) privileged: bool,
    /// The writer is gone, so the active segment has no tail any more.
    pub(crate) closed: AtomicBool,
}

impl LogState {
    pub(crate) fn new(segment: Option<&Arc<IndexedSegment>>, privileged: bool) -> Self {
        Self {
            active: Mutex::new(&"active segment", segment.cloned()),
            spare: Mutex::new(&"spare segment", None),
            unsynced: Mutex::new(&"unsynced segments", segment.cloned().into_iter().collect()),
            appended: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            nudged: AtomicBool::new(false),
            privileged,
            closed: AtomicBool::new(false),
        }
    }
}

/// What is to be on disk before a write is acknowledged in the mode "always": sync the files of
/// these segments (`fdatasync`), then tell the writer.
///
/// Each file is taken from the first batch that has it, and kept as long as batches do. It was
/// opened for this alone, so an error that the kernel reports to a background thread is reported
/// here as well; and no descriptor is needed when there may be none.
#[derive(Debug)]
pub struct SyncBatch {
    segments: Vec<Arc<IndexedSegment>>,
    position: u64,
}

impl SyncBatch {
    /// The position that is durable once all files are synced.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Identifiers of the segments whose files are to be synced. None is ever reused.
    pub fn segments(&self) -> impl Iterator<Item = u64> {
        self.segments.iter().map(|segment| segment.sequence)
    }

    /// The file of one of the segments; `None` if it was sealed meanwhile, and so is on disk.
    ///
    /// # Panics
    /// If it was taken before, or is not in the batch.
    #[must_use]
    pub fn take_file(&self, segment: u64) -> Option<File> {
        let found = self.segments.iter().find(|other| other.sequence == segment);
        found.expect("a segment of the batch").take_owners_file()
    }

    /// For the engine's own syncs.
    pub(crate) fn in_order(&self) -> &[Arc<IndexedSegment>] {
        &self.segments
    }
}

impl LogState {
    /// Bytes appended since the store was opened.
    pub(crate) fn position(&self) -> u64 {
        self.appended.load(Ordering::Relaxed)
    }

    /// Bytes of these that are known to be on disk.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// What is to be synced so that everything appended so far is durable.
    pub(crate) fn begin_sync(&self) -> SyncBatch {
        // The order matters: what was appended before this line lies in segments that the next line
        // lists.
        let position = self.appended.load(Ordering::Acquire);
        SyncBatch { segments: self.unsynced.lock().clone(), position }
    }

    /// All files of the batch are on disk.
    pub(crate) fn complete_sync(&self, batch: &SyncBatch) {
        let mut unsynced = self.unsynced.lock();
        // Each but the last had been rolled before the batch began, so nothing was added to it
        // since.
        for done in batch.segments.iter().rev().skip(1) {
            unsynced.retain(|segment| !Arc::ptr_eq(segment, done));
        }
        self.durable.fetch_max(batch.position, Ordering::AcqRel);
    }
}

impl LogState {
    /// A segment was synced after it had been rolled: no sync of the log has to do that again.
    pub(crate) fn was_synced(&self, segment: &Arc<IndexedSegment>) {
        self.unsynced.lock().retain(|other| !Arc::ptr_eq(other, segment));
    }

    /// Takes over a new segment as the active one.
    pub(crate) fn goes_on_in(&self, segment: &Arc<IndexedSegment>) {
        self.unsynced.lock().push(segment.clone());
        *self.active.lock() = Some(segment.clone());
    }
}

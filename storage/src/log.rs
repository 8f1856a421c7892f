//! Writing: one log a writer, each a chain of segments of its own, so that writers never wait for one another.
//!
//! A [`Writer`] appends a record, then publishes it in the index; both happen in one call, so a segment that was rolled
//! holds no unpublished record (compaction relies on that). Space is allocated and populated ahead of it by the
//! provisioning thread; a writer that outruns it allocates inline and counts a stall.
//!
//! Owner: one thread a writer. Bounds: a log has one active and one spare segment. Invariant: positions only grow;
//! everything below `durable` was synced.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use koltso_instrument::{Mutex, waiting};

use crate::hash::KeyHash;
use crate::index::Place;
use crate::record::{self, Draft};
use crate::segment::{SLICE, Segment, Tail};
use crate::store::{Need, Shared};
use crate::{Applied, KEY_MAX, Version, WriteError};

/// The provisioning thread is called when less than this is ready ahead of the writer.
const LOW_WATER: u32 = 512 << 10;

/// What a log shares with the background threads.
pub(crate) struct LogState {
    pub(crate) active: Mutex<Arc<Segment>>,
    /// Made ahead, so that rolling costs nothing.
    pub(crate) spare: Mutex<Option<Tail>>,
    /// Segments with bytes that were not synced, oldest first; the active one is last.
    pub(crate) unsynced: Mutex<Vec<Arc<Segment>>>,
    /// Bytes appended since the store was opened.
    pub(crate) appended: AtomicU64,
    /// Bytes of these that are known to be on disk.
    pub(crate) durable: AtomicU64,
    /// Called the provisioning thread, and it has not answered yet.
    pub(crate) nudged: AtomicBool,
    /// This is compaction's log: it may use the reserve that keeps a full disk from staying full.
    pub(crate) privileged: bool,
    /// The writer is gone, so the active segment has no tail any more.
    pub(crate) closed: AtomicBool,
}

impl LogState {
    pub(crate) fn new(segment: &Arc<Segment>, privileged: bool) -> Self {
        Self {
            active: Mutex::new(&"active segment", segment.clone()),
            spare: Mutex::new(&"spare segment", None),
            unsynced: Mutex::new(&"unsynced segments", vec![segment.clone()]),
            appended: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            nudged: AtomicBool::new(false),
            privileged,
            closed: AtomicBool::new(false),
        }
    }
}

/// Appends to the store. Make one for each thread that writes.
pub struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) log: Arc<LogState>,
    tail: Tail,
}

/// What is to be on disk before a write is acknowledged in the mode "always": sync these files, then tell the writer.
#[derive(Debug)]
pub struct SyncBatch {
    segments: Vec<Arc<Segment>>,
    position: u64,
}

impl SyncBatch {
    /// The position that is durable once all files are synced.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// The files to sync (`fdatasync`), with an identifier that is never reused.
    pub fn files(&self) -> impl Iterator<Item = (u64, &std::fs::File)> {
        self.segments.iter().map(|segment| (segment.sequence, &segment.file))
    }
}

impl LogState {
    pub(crate) fn begin_sync(&self) -> SyncBatch {
        // The order matters: what was appended before this line lies in segments that the next line lists.
        let position = self.appended.load(Ordering::Acquire);
        SyncBatch { segments: self.unsynced.lock().clone(), position }
    }

    fn complete_sync(&self, batch: &SyncBatch) {
        let mut unsynced = self.unsynced.lock();
        // Each but the last had been rolled before the batch began, so nothing was added to it since.
        for done in batch.segments.iter().rev().skip(1) {
            unsynced.retain(|segment| !Arc::ptr_eq(segment, done));
        }
        self.durable.fetch_max(batch.position, Ordering::AcqRel);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.log.closed.store(true, Ordering::Release);
    }
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, log: Arc<LogState>, tail: Tail) -> Self {
        Self { shared, log, tail }
    }

    /// Writes a value. `expires_at_ms` is in milliseconds since the Unix epoch, 0 for never.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing was written then.
    ///
    /// # Panics
    /// If the version's clock is 0.
    pub fn put(
        &mut self,
        key: &[u8],
        value: &[u8],
        version: Version,
        expires_at_ms: u64,
    ) -> Result<Applied, WriteError> {
        self.apply(&Draft { key, value, version, expires_at_ms, tombstone: false })
    }

    /// Writes a tombstone.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing was written then.
    ///
    /// # Panics
    /// If the version's clock is 0.
    pub fn delete(&mut self, key: &[u8], version: Version) -> Result<Applied, WriteError> {
        self.apply(&Draft { key, value: &[], version, expires_at_ms: 0, tombstone: true })
    }

    fn apply(&mut self, draft: &Draft<'_>) -> Result<Applied, WriteError> {
        if draft.key.is_empty() || draft.key.len() > KEY_MAX {
            return Err(WriteError::Key { len: draft.key.len(), max: KEY_MAX });
        }
        if draft.value.len() > self.shared.options.value_max {
            return Err(WriteError::Value { len: draft.value.len(), max: self.shared.options.value_max });
        }
        assert!(draft.version.clock != 0, "version clocks begin at 1");
        // What deletes are given on a full disk is not for values, though it is ready.
        if !draft.tombstone && self.shared.disk_full.load(Ordering::Relaxed) {
            self.shared.room_for(u64::from(SLICE), Need::Value)?;
        }
        let offset = self.append(draft)?;
        let hash = KeyHash::of(draft.key);
        Ok(self.shared.publish(hash, draft, self.tail.segment(), offset))
    }

    /// Appends without publishing: for compaction, which moves an entry only if it still names the old place. The record
    /// fits a segment.
    pub(crate) fn append(&mut self, draft: &Draft<'_>) -> Result<u32, WriteError> {
        if self.shared.failed.load(Ordering::Relaxed) {
            return Err(WriteError::Failed);
        }
        let size = draft.size();
        let full = u64::from(self.tail.position()) >= self.shared.roll_at;
        if full || !self.tail.fits(size) {
            self.roll(self.need(draft))?;
        }
        if !self.tail.is_ready(size) {
            self.make_ready(size, self.need(draft))?;
        }
        let offset = self.tail.append(draft);
        let log = &self.log;
        // Only this thread adds, so a load and a store will do.
        log.appended.store(log.appended.load(Ordering::Relaxed) + size as u64, Ordering::Release);
        let ahead = self.tail.segment().ready() - self.tail.position();
        if ahead < LOW_WATER && !log.nudged.swap(true, Ordering::AcqRel) {
            self.shared.wake_provisioning();
        }
        Ok(offset)
    }

    /// The segment that [`Writer::append`] wrote to last.
    pub(crate) fn segment(&self) -> &Arc<Segment> {
        self.tail.segment()
    }

    fn need(&self, draft: &Draft<'_>) -> Need {
        match (self.log.privileged, draft.tombstone) {
            (true, _) => Need::Compaction,
            (false, true) => Need::Tombstone,
            (false, false) => Need::Value,
        }
    }

    /// Goes on in a new segment; the old one goes to the sealing thread.
    fn roll(&mut self, need: Need) -> Result<(), WriteError> {
        let spare = self.log.spare.lock().take();
        let tail = match spare {
            Some(tail) => tail,
            None => {
                self.shared.stats.stalls.fetch_add(1, Ordering::Relaxed);
                waiting(&"new segment", || self.shared.create_segment(need)).map_err(|e| self.shared.write_error(&e))?
            }
        };
        let old = std::mem::replace(&mut self.tail, tail);
        self.log.unsynced.lock().push(self.tail.segment().clone());
        *self.log.active.lock() = self.tail.segment().clone();
        self.shared.hand_to_sealing(old);
        self.shared.wake_provisioning();
        Ok(())
    }

    #[cold]
    fn make_ready(&mut self, size: usize, need: Need) -> Result<(), WriteError> {
        while !self.tail.is_ready(size) {
            self.shared.stats.stalls.fetch_add(1, Ordering::Relaxed);
            let segment = self.tail.segment();
            match self.shared.room_for(u64::from(SLICE), need) {
                // The provisioning thread took the last room, for this segment.
                Err(_) if self.tail.is_ready(size) => return Ok(()),
                room => room?,
            }
            let wanted = self.tail.position() + size as u32;
            let more = waiting(&"space for the log", || segment.extend(&*self.shared.options.disk, wanted))
                .map_err(|e| self.shared.write_error(&e))?;
            // `more` is false, too, when the provisioning thread has made the rest ready since it was asked above.
            assert!(more || self.tail.is_ready(size), "a record that fits a segment fits its ready part in the end");
        }
        Ok(())
    }

    /// Bytes appended so far: what must be durable before the last write is.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.log.appended.load(Ordering::Relaxed)
    }

    /// Bytes known to be on disk.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.log.durable.load(Ordering::Acquire)
    }

    /// What has to be synced for everything written so far. The caller syncs the files as it likes (io_uring, a thread).
    #[must_use]
    pub fn begin_sync(&self) -> SyncBatch {
        self.log.begin_sync()
    }

    /// All files of the batch are on disk.
    ///
    /// Nothing becomes durable by that after a failure, see [`Writer::fail`].
    pub fn complete_sync(&self, batch: &SyncBatch) {
        self.shared.complete_sync(&self.log, batch);
    }

    /// A file of a batch could not be synced: nothing is written any more until the store is opened again, because the
    /// kernel may have dropped the pages that it could not write.
    pub fn fail(&self, error: &io::Error) {
        self.shared.fail(error);
    }

    /// Syncs everything written so far, blocking.
    ///
    /// # Errors
    /// [`WriteError::Failed`] if the disk refused.
    pub fn sync(&self) -> Result<(), WriteError> {
        self.shared.sync_log(&self.log).map_err(|_| WriteError::Failed)
    }
}

impl Shared {
    /// Notes that a batch is on disk, unless a sync failed meanwhile: then `false`, and nothing becomes durable.
    pub(crate) fn complete_sync(&self, log: &LogState, batch: &SyncBatch) -> bool {
        let failed = self.failed.load(Ordering::SeqCst);
        if !failed {
            log.complete_sync(batch);
        }
        !failed
    }

    /// Makes an appended record the one that readers find, if none is newer.
    pub(crate) fn publish(&self, hash: KeyHash, draft: &Draft<'_>, segment: &Segment, offset: u32) -> Applied {
        let place =
            Place { hash, version: draft.version, segment, offset, size: draft.size(), tombstone: draft.tombstone };
        self.index.lock(hash).offer(draft.key, &place)
    }
}

const _: () = assert!(record::size(KEY_MAX, 0) < LOW_WATER as usize);

//! Writing: one log a writer, each a chain of segments of its own, so that writers never wait for
//! one another.
//!
//! A [`Writer`] appends a record, then publishes it in the index; both happen in one call, so a
//! segment that was rolled holds no unpublished record (compaction relies on that). Space is
//! allocated and populated ahead of it by the provisioning thread; a writer that outruns it
//! allocates inline and counts a stall.
//!
//! Owner: one thread a writer. Bounds: a log has one active and one spare segment.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use koltso_instrument::waiting;
use koltso_model::{ATTRIBUTES_MAX, Flags, KEY_MAX, KeyHash, Record, Version};

use crate::digest::{Item, Leaf};
use crate::error::WriteError;
use crate::hash::IndexHash;
use crate::index::{Applied, Place};
use crate::indexed::{IndexedSegment, Tail};
use crate::logs::{LogState, SyncBatch};
use crate::parts::Parts;
use crate::record::{self, Draft};
use crate::room::Need;
use crate::segment::{PIECE, SLICE};
use crate::syncing::{self, Syncer};

/// The provisioning thread is called when less than this is ready ahead of the writer.
const LOW_WATER: u32 = 512 << 10;

/// Appends to the store. Make one for each thread that writes.
pub struct Writer {
    parts: Arc<Parts>,
    log: Arc<LogState>,
    /// `None` until there was room for the first segment.
    tail: Option<Tail>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.log.closed.store(true, Ordering::Release);
    }
}

impl Writer {
    /// Makes a log; a privileged one is compaction's.
    pub(crate) fn new(parts: Arc<Parts>, privileged: bool) -> io::Result<Self> {
        // From the reserve, too: what was killed on a full disk has to start on it.
        let tail = parts.create_segment(Need::Compaction)?;
        Ok(Self::with(parts, Some(tail), privileged))
    }

    /// Makes a log without a segment, which its first write makes as soon as there is room.
    pub(crate) fn waiting(parts: Arc<Parts>) -> Self {
        // Says that the disk is full, and has the provisioning thread look for when it is not.
        let _ = parts.ask_for_room(u64::from(SLICE), Need::Value);
        Self::with(parts, None, false)
    }

    fn with(parts: Arc<Parts>, tail: Option<Tail>, privileged: bool) -> Self {
        let log = Arc::new(LogState::new(tail.as_ref().map(Tail::segment), privileged));
        parts.logs.add(log.clone());
        Self { parts, log, tail }
    }

    fn tail(&self) -> &Tail {
        self.tail.as_ref().expect("a write has made a segment first")
    }

    /// Writes a record with everything that it has; a tombstone if its flags say so.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing was written then.
    ///
    /// # Panics
    /// If the version's clock is 0.
    #[inline]
    pub fn apply(&mut self, record: &Record<&[u8]>) -> Result<Applied, WriteError> {
        self.apply_draft(&Draft::of(record), record.key.hash())
    }

    /// Writes a value that one replica is to have, without attributes. `expires_at_ms` is in
    /// milliseconds since the Unix epoch, 0 for never.
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
        let flags = Flags::new(1);
        self.apply_draft(&Draft { key, value, version, expires_at_ms, flags, attributes: &[] }, KeyHash::of(key))
    }

    /// Writes a tombstone that one replica is to have.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing was written then.
    ///
    /// # Panics
    /// If the version's clock is 0.
    pub fn delete(&mut self, key: &[u8], version: Version) -> Result<Applied, WriteError> {
        let flags = Flags::new(1).tombstone();
        let draft = Draft { key, value: &[], version, expires_at_ms: 0, flags, attributes: &[] };
        self.apply_draft(&draft, KeyHash::of(key))
    }

    fn apply_draft(&mut self, draft: &Draft<'_>, key_hash: KeyHash) -> Result<Applied, WriteError> {
        draft.check(self.parts.options.value_max)?;
        assert!(draft.version.clock != 0, "version clocks begin at 1");
        // What deletes are given on a full disk is not for values, though it is ready.
        if !draft.flags.is_tombstone() && self.parts.room.is_full() {
            self.ask_for(SLICE, Need::Value)?;
        }
        let item = Item::of(Leaf::of(key_hash), draft.version, draft.flags);
        self.parts.index.digests().prefetch(item);
        let offset = self.append(draft)?;
        let hash = self.parts.index.hash(draft.key);
        Ok(self.publish(hash, draft, offset, item))
    }

    /// A record is published that replicas may have agreed to lack.
    #[cold]
    fn count_late(&self, draft: &Draft<'_>, item: Item) {
        let (leaf, retention) = (item.leaf(), &self.parts.retention);
        if draft.flags.is_tombstone() || draft.expires_at_ms != 0 || retention.is_stray(leaf, draft.flags) {
            retention.agreements().came_late(item.from(), leaf.partition());
        }
    }

    /// Makes an appended record the one that readers find, if none is newer.
    fn publish(&self, hash: IndexHash, draft: &Draft<'_>, offset: u32, item: Item) -> Applied {
        let (segment, version, size) = (self.tail().segment(), draft.version, draft.size());
        let place = Place { hash, version, segment, offset, size, tombstone: draft.flags.is_tombstone(), item };
        let mut stripe = self.parts.index.lock(hash);
        let applied = stripe.offer(draft.key, &place);
        // Under the lock: who drops it has it, too, and looks at what was agreed on.
        if self.parts.retention.agreements().may_be_late(draft.version.clock) && applied == Applied::Newest {
            self.count_late(draft, item);
        }
        applied
    }

    /// Whether there is room for so many bytes more of the log.
    fn ask_for(&self, bytes: u32, need: Need) -> Result<(), WriteError> {
        self.parts.ask_for_room(u64::from(bytes), need).map_err(|e| self.parts.health.refuse(e))
    }

    /// Appends without publishing: for compaction, which moves an entry only if it still names the
    /// old place. The record fits a segment.
    pub(crate) fn append(&mut self, draft: &Draft<'_>) -> Result<u32, WriteError> {
        if self.parts.health.has_failed() {
            return Err(WriteError::Failed);
        }
        let size = draft.size();
        let roll_at = self.parts.room.roll_at();
        if self.tail.as_ref().is_none_or(|tail| tail.is_full(size, roll_at)) {
            let need = self.need(draft);
            match self.roll(need) {
                // On a full disk a delete goes on where it can, a little at a time: a whole slice for
                // each log may be more than there is for deletes.
                Err(WriteError::DiskFull)
                    if need == Need::Tombstone && self.tail.as_ref().is_some_and(|tail| tail.fits(size)) => {}
                rolled => rolled?,
            }
        }
        let offset = match self.append_here(draft, size)? {
            Some(offset) => offset,
            None => self.append_elsewhere(draft, size)?,
        };
        let log = &self.log;
        // Only this thread adds, so a load and a store will do.
        log.appended.store(log.appended.load(Ordering::Relaxed) + size as u64, Ordering::Release);
        let ahead = self.tail().segment().ready() - self.tail().position();
        if ahead < LOW_WATER && !log.nudged.swap(true, Ordering::AcqRel) {
            self.parts.threads.wake_provisioning();
        }
        Ok(offset)
    }

    /// Appends to the present segment, which the record fits; `None` if its file lacks a page there.
    #[inline]
    fn append_here(&mut self, draft: &Draft<'_>, size: usize) -> Result<Option<u32>, WriteError> {
        if !self.tail().is_ready(size) {
            self.make_ready(size, self.need(draft))?;
        }
        Ok(self.tail.as_mut().and_then(|tail| tail.append(draft)))
    }

    /// Leaves a segment whose file was cut short, or under which the disk fails, for a new one.
    #[cold]
    fn append_elsewhere(&mut self, draft: &Draft<'_>, size: usize) -> Result<u32, WriteError> {
        self.roll(self.need(draft))?;
        let appended = self.append_here(draft, size)?;
        appended.ok_or_else(|| self.parts.health.refuse(io::Error::other("a new segment cannot be written to")))
    }

    /// The segment that [`Writer::append`] wrote to last.
    pub(crate) fn segment(&self) -> &Arc<IndexedSegment> {
        self.tail().segment()
    }

    fn need(&self, draft: &Draft<'_>) -> Need {
        match (self.log.privileged, draft.flags.is_tombstone()) {
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
                self.parts.counters.stalled();
                let made = waiting(&"new segment", || self.parts.create_segment(need));
                made.map_err(|e| self.parts.health.refuse(e))?
            }
        };
        self.log.goes_on_in(tail.segment());
        if let Some(old) = self.tail.replace(tail) {
            self.parts.hand_to_sealing(old);
        }
        self.parts.threads.wake_provisioning();
        Ok(())
    }

    /// Goes on in another segment where enough of the present one is dead for compaction to have it:
    /// what is dead in there keeps deletes of its keys from being forgotten. For logs that may stand
    /// still for long.
    pub fn roll_if_dead(&mut self) {
        let Some(tail) = &self.tail else { return };
        let (used, dead) = (tail.segment().used_bytes(), tail.segment().dead_bytes());
        if dead > 0
            && dead as f64 >= self.parts.options.compaction_dead_share * used as f64
            && !self.parts.room.is_full()
            && let Err(e) = self.roll(Need::Value)
        {
            tracing::debug!("a log of which much is dead goes on in its segment: {e}");
        }
    }

    #[cold]
    fn make_ready(&self, size: usize, need: Need) -> Result<(), WriteError> {
        let tail = self.tail();
        let by = if need == Need::Tombstone { PIECE } else { SLICE };
        while !tail.is_ready(size) {
            self.parts.counters.stalled();
            match self.ask_for(by, need) {
                // The provisioning thread took the last room, for this segment.
                Err(_) if tail.is_ready(size) => return Ok(()),
                room => room?,
            }
            let wanted = tail.position() + size as u32;
            let more = waiting(&"space for the log", || tail.segment().extend(self.parts.env(), wanted, by))
                .map_err(|e| self.parts.health.refuse(e))?;
            // `more` is false, too, when the provisioning thread has made the rest ready since it
            // was asked above.
            assert!(more || tail.is_ready(size), "a record that fits a segment fits its ready part in the end");
        }
        Ok(())
    }

    /// Bytes appended so far: what must be durable before the last write is.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.log.position()
    }

    /// Bytes known to be on disk.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.log.durable()
    }

    /// What has to be synced for everything written so far. The caller syncs the files as it likes
    /// (io_uring, a thread).
    #[must_use]
    pub fn begin_sync(&self) -> SyncBatch {
        self.log.begin_sync()
    }

    /// All files of the batch are on disk.
    ///
    /// Nothing becomes durable by that after a failure, see [`Writer::fail`].
    pub fn complete_sync(&self, batch: &SyncBatch) {
        let _ = syncing::complete(&self.parts, &self.log, batch);
    }

    /// A file of a batch could not be synced: nothing is written any more until the store is opened
    /// again, because the kernel may have dropped the pages that it could not write.
    pub fn fail(&self, error: &io::Error) {
        self.parts.health.fail(error);
    }

    /// Syncs everything written so far, blocking.
    ///
    /// # Errors
    /// [`WriteError::Failed`] if the disk refused.
    pub fn sync(&self) -> Result<(), WriteError> {
        syncing::sync_log(&self.parts, &self.log, Syncer::Owner).map_err(|_| WriteError::Failed)
    }
}

const _: () = assert!(record::size(KEY_MAX, ATTRIBUTES_MAX, 0) < LOW_WATER as usize);

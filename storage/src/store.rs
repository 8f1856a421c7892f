//! The engine as others see it: opening, reading, statistics, closing. Writing is in
//! [`crate::log`], the background threads in [`crate::background`].

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use koltso_model::LeafSet;

use crate::agreements::Agreements;
use crate::background;
use crate::damage::DamageLog;
use crate::digest::Digests;
use crate::error::OpenError;
use crate::folder::Folder;
use crate::forgotten::Forgotten;
use crate::health::Health;
use crate::index::{Find, Index, Locked};
use crate::log::Writer;
use crate::logs::Logs;
use crate::lookup::{INLINE_MAX, Lookup, Newest, lookup, newest};
use crate::lost;
use crate::mending::{self, DamagedRecord};
use crate::options::Options;
use crate::partition::PartitionEntries;
use crate::parts::Parts;
use crate::recovery::{self, Recovered};
use crate::retention::Retention;
use crate::room::Room;
use crate::scan::{Cursor, ScanError};
use crate::scrub_state::ScrubState;
use crate::seal_queue::SealQueue;
use crate::sealing;
use crate::segments::Segments;
use crate::stats::{Counters, Stats};
use crate::syncing::{self, Syncer};
use crate::threads::Threads;
use crate::wanted::Wanted;

/// An open store. Dropping it stops the background threads; [`Store::close`] also seals and syncs.
pub struct Store {
    pub(crate) parts: Arc<Parts>,
}

impl Store {
    /// Takes the folder, brings the index back and starts the background threads.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(options: Options) -> Result<(Self, Recovered), OpenError> {
        options.check()?;
        let folder = Folder::take_in(&*options.env, &options.folder)?;
        Self::open_in(folder, options)
    }

    /// As [`Store::open`], in a folder that was taken before.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_in(folder: Folder, options: Options) -> Result<(Self, Recovered), OpenError> {
        options.check()?;
        let io_error = |error| OpenError::Io { folder: options.folder.clone(), error };
        let env = &*options.env;
        let space = env.space(folder.path()).map_err(io_error)?;
        let index = Index::new(folder.secret().clone());
        let damage = DamageLog::default();
        let mut found = recovery::recover(env, &folder, &index, &damage)?;
        // Before a segment is sealed without its damage: after that nothing says so any more.
        found.summary.nameless = lost::remember(env, folder.path(), found.summary.nameless);
        let forgotten = Forgotten::open(env, folder.path(), found.summary.newest_clock).map_err(io_error)?;
        let parts = Arc::new(Parts {
            room: Room::new(space, options.segment_size),
            folder,
            index,
            segments: Segments::new(found.segments, found.next_sequence),
            logs: Logs::default(),
            seal_queue: SealQueue::new(found.unsealed),
            damage: Arc::new(damage),
            counters: Counters::default(),
            health: Health::default(),
            retention: Retention::new(options.agreed_after, forgotten),
            scrub: ScrubState::default(),
            threads: Threads::new(options.env.clone()),
            options,
        });
        if found.summary.unreadable_segments > 0 {
            parts.retention.segment_left_behind();
        }
        background::start(&parts).map_err(|error| OpenError::Io { folder: parts.options.folder.clone(), error })?;
        Ok((Self { parts }, found.summary))
    }

    /// A writer with a log of its own. Make one for each thread that writes.
    ///
    /// # Errors
    /// When there is no room for its first segment.
    pub fn writer(&self) -> io::Result<Writer> {
        Writer::new(self.parts.clone(), false)
    }

    /// As [`Store::writer`], but a full disk is no error: the first write that there is room for
    /// makes the segment, and those before it are [`crate::WriteError::DiskFull`].
    ///
    /// # Errors
    /// When the first segment cannot be made for another reason.
    pub fn writer_on_a_full_disk(&self) -> io::Result<Writer> {
        self.writer().or_else(|e| match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Ok(Writer::waiting(self.parts.clone())),
            _ => Err(e),
        })
    }

    /// Looks `key` up and gives what was found to `read`, under the lock of the key's stripe: be
    /// short in there.
    #[inline]
    pub fn get<R>(&self, key: &[u8], now_ms: u64, read: impl FnOnce(Lookup<'_>) -> R) -> R {
        let hash = self.parts.index.hash(key);
        let stripe = self.parts.index.lock(hash);
        match stripe.find(hash, key) {
            Find::Hit(hit) => read(lookup(&self.parts.damage, hit.segment, hit.entry.offset(), &hit.record, now_ms)),
            Find::Damaged(entry, segment) => {
                self.parts.damage.found(segment, entry.offset());
                read(Lookup::Damaged)
            }
            Find::Miss => read(Lookup::Absent(None)),
        }
    }

    /// The live records with `start <= key`, and `key < end` where there is an end, by key bytes.
    ///
    /// # Errors
    /// [`ScanError::NotReady`] while the sealing thread is behind, for example right after a crash:
    /// try again soon.
    pub fn scan(&self, start: &[u8], end: Option<&[u8]>) -> Result<Cursor, ScanError> {
        Cursor::open(self.parts.clone(), start, end)
    }

    /// The newest record of each key in `partitions` (of the [`koltso_model::PARTITIONS`] that
    /// placement uses), tombstones included, by key bytes. What is not sealed yet is read through,
    /// so ask for neighbours together.
    ///
    /// # Errors
    /// [`ScanError::NotReady`], as [`Store::scan`].
    pub fn partition_entries(&self, partitions: Range<usize>) -> Result<PartitionEntries, ScanError> {
        PartitionEntries::open(self.parts.clone(), &Wanted::partitions(&partitions))
    }

    /// As [`Store::partition_entries`], of some leaves of the digests; partitions ascend.
    ///
    /// # Errors
    /// [`ScanError::NotReady`], as [`Store::scan`].
    pub fn leaf_entries(&self, leaves: &[(u16, LeafSet)]) -> Result<PartitionEntries, ScanError> {
        PartitionEntries::open(self.parts.clone(), &Wanted::leaves(leaves))
    }

    /// What tells cheaply whether replicas have the same records.
    #[must_use]
    pub fn digests(&self) -> &Digests {
        self.parts.index.digests()
    }

    /// What replicas have agreed on, which decides what may be dropped.
    #[must_use]
    pub fn agreements(&self) -> &Agreements {
        self.parts.retention.agreements()
    }

    /// The newest clock of a record that said "absent" and was dropped; 0 if there was none. It
    /// may be that of a record which is about to be dropped.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.parts.retention.forgotten().clock()
    }

    /// Looks up the newest record of `key` for whoever copies it elsewhere: with its value and all
    /// else, deletes and what has expired included. `read` may be called under the lock of the key's
    /// stripe: be short in there.
    pub fn newest<R>(&self, key: &[u8], read: impl FnOnce(Newest<'_>) -> R) -> R {
        let hash = self.parts.index.hash(key);
        let (segment, offset) = {
            let stripe = self.parts.index.lock(hash);
            match stripe.find(hash, key) {
                Find::Hit(hit) if hit.record.value().len() <= INLINE_MAX => {
                    return read(newest(&self.parts.damage, hit.segment, hit.entry.offset()));
                }
                Find::Hit(hit) => (Locked::pin(hit.segment), hit.entry.offset()),
                Find::Damaged(entry, segment) => {
                    self.parts.damage.found(segment, entry.offset());
                    return read(Newest::Damaged);
                }
                Find::Miss => return read(Newest::None),
            }
        };
        read(newest(&self.parts.damage, &segment, offset))
    }

    /// The sequence numbers of the segments that have no intact header, of which nothing is served.
    #[must_use]
    pub fn unreadable_segments(&self) -> Vec<u64> {
        self.parts.damage.unreadable()
    }

    /// It is remembered elsewhere that records of unknown keys are lost ([`Recovered::nameless`]): the
    /// next start does not say so again.
    pub fn loss_is_known(&self) {
        lost::forget(self.parts.env(), self.parts.folder.path());
    }

    /// The damaged record that has waited longest to be repaired, see [`DamagedRecord`]. Whoever
    /// takes it sees to it; it waits again when it is found again, but not within ten seconds.
    #[must_use]
    pub fn next_damaged(&self) -> Option<DamagedRecord> {
        mending::next(&self.parts)
    }

    /// Has the scrub pause, or go on.
    pub fn pause_scrub(&self, pause: bool) {
        self.parts.scrub.paused.store(pause, Ordering::Relaxed);
    }

    /// Has the scrub read everything once more, as fast as it may, also where it is off otherwise.
    pub fn scrub_now(&self) {
        self.parts.scrub.paused.store(false, Ordering::Relaxed);
        self.parts.scrub.hurry.store(true, Ordering::Relaxed);
    }

    /// Current figures. Walks all stripes and segments: for the control plane, not for each
    /// request.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.parts.stats()
    }

    /// Whether the disk failed, see [`WriteError::Failed`](crate::WriteError::Failed).
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.parts.health.has_failed()
    }

    /// Stops the background threads, syncs, and seals what is open so that the next start is quick.
    /// All writers must have been dropped.
    ///
    /// # Errors
    /// What the disk said; nothing that was acknowledged is lost to a process's end by that.
    pub fn close(&self) -> io::Result<()> {
        self.parts.threads.stop();
        for log in self.parts.logs.all() {
            syncing::sync_log(&self.parts, &log, Syncer::Engine)?;
        }
        sealing::seal_everything(&self.parts)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.parts.threads.stop();
    }
}

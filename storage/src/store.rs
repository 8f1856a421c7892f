//! The engine as others see it: opening, reading, statistics, closing. Writing is in [`crate::log`], the background
//! threads in [`crate::background`].

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use koltso_instrument::Mutex;

use crate::background::Background;
use crate::damage::DamageLog;
use crate::disk::{Disk, RealDisk, sync_folder};
use crate::folder::{Folder, FolderError};
use crate::hash::KeyHash;
use crate::index::{Find, Index, Locked, SLOTS};
use crate::log::{LogState, Writer};
use crate::record::Record;
use crate::scan::{Cursor, ScanError};
use crate::segment::{SEGMENT_HEADER, SEGMENT_MAX, SLICE, Segment, Tail};
use crate::{VALUE_MAX_LIMIT, Version, recovery};

/// Values up to this many bytes are read where they lie, under the stripe's lock; larger ones are pinned.
pub const INLINE_MAX: usize = 16 << 10;

/// When the engine itself syncs the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// Never: the kernel writes back when it likes.
    Os,
    /// This long after a write at the latest.
    Every(Duration),
    /// Not by the engine: the writer's owner syncs before it acknowledges, see [`Writer::begin_sync`].
    Always,
}

/// How to open a store.
#[derive(Clone)]
pub struct Options {
    /// The data folder. It is made if it does not exist.
    pub folder: PathBuf,
    /// When the log is synced.
    pub sync: SyncMode,
    /// The largest value, in bytes, up to [`VALUE_MAX_LIMIT`].
    pub value_max: usize,
    /// Size of a segment file, in bytes: a multiple of 4096, up to 64 MiB, and large enough for the largest record.
    pub segment_size: u32,
    /// Compaction reads at most this many bytes a second.
    pub compaction_rate: u64,
    /// A segment with at least this share of dead bytes is compacted, 0..1.
    pub compaction_dead_share: f64,
    /// How long tombstones and expired records are kept, so that an older version which arrives late still loses.
    pub tombstone_grace: Duration,
    /// How often segments are searched for tombstones and expired records that can go; five times a second while the disk
    /// is full.
    pub reap_interval: Duration,
    /// Milliseconds since the Unix epoch: background work has to know what has expired.
    pub now_ms: fn() -> u64,
    /// Called on a background thread after it has freed several megabytes: the place to have the allocator give them back
    /// to the system, which most keep for later otherwise.
    pub memory_freed: fn(),
    /// The disk, for tests to break.
    pub disk: Arc<dyn Disk>,
}

impl Options {
    /// The usual options for a folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            sync: SyncMode::Every(Duration::from_secs(1)),
            value_max: 16 << 20,
            segment_size: SEGMENT_MAX,
            compaction_rate: 64 << 20,
            compaction_dead_share: 0.33,
            tombstone_grace: Duration::from_secs(60),
            reap_interval: Duration::from_secs(5),
            now_ms: unix_ms,
            memory_freed: || {},
            disk: Arc::new(RealDisk),
        }
    }
}

fn unix_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// Why a store cannot be opened. Nothing on disk was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// An option is out of its range.
    #[error("{0}")]
    Option(String),
    /// A segment was written by a newer build.
    #[error("the segment {segment:016x}.log cannot be read: {reason}")]
    NewerSegment {
        /// Its sequence number.
        segment: u64,
        /// What is in the way.
        reason: String,
    },
    /// The system refused something.
    #[error("the data folder {folder} cannot be used: {error}")]
    Io {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Why a write was not done. Nothing was written, and reads go on.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The key is empty or too long.
    #[error("the key has {len} bytes, and a key has 1 to {max}")]
    Key {
        /// Its length.
        len: usize,
        /// The longest.
        max: usize,
    },
    /// The value is too long.
    #[error("the value has {len} bytes, and a value has at most {max}")]
    Value {
        /// Its length.
        len: usize,
        /// The longest.
        max: usize,
    },
    /// There is no room; try again when there is.
    #[error("the disk is full")]
    DiskFull,
    /// The disk failed before: the store must be opened again.
    #[error("the disk failed, and nothing is written until the store is opened again")]
    Failed,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It is the newest version of its key.
    Newest,
    /// This version was there, which is as new or newer. Its record may be damaged: what it was is known all the same.
    Superseded(Version),
}

/// What a look-up found.
#[derive(Debug)]
pub enum Lookup<'a> {
    /// No value: never written, deleted or expired. The version of the tombstone or expired record, if there is one.
    Absent(Option<Version>),
    /// The only record of the key is damaged. It was reported and is not served.
    Damaged,
    /// The newest version and its value.
    Found(Version, Value<'a>),
}

/// A value that was found.
#[derive(Debug)]
pub enum Value<'a> {
    /// A small one, verified.
    Inline(&'a [u8]),
    /// A large one, pinned and not verified yet.
    Large(Unverified),
}

impl Value<'_> {
    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Inline(bytes) => bytes.len(),
            Self::Large(pin) => pin.0.len as usize,
        }
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A large value of which nobody has compared the checksum. [`Unverified::verify`] is its only exit.
pub struct Unverified(Pinned, Arc<Shared>);

impl std::fmt::Debug for Unverified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Unverified").field(&self.0).finish()
    }
}

impl Unverified {
    /// Compares the checksum (about 0.1 ms a megabyte; hold no lock). `None` if the value is damaged, which is reported.
    #[must_use]
    pub fn verify(self) -> Option<Pinned> {
        let Self(pin, shared) = self;
        let intact = pin.segment.record(pin.record).is_ok_and(|record| record.value_intact());
        if !intact {
            shared.report_damage(&pin.segment, pin.record);
            return None;
        }
        Some(pin)
    }
}

/// A value in the log that stays where it is while this exists, also when compaction has moved on.
#[derive(Debug)]
pub struct Pinned {
    segment: Arc<Segment>,
    record: u32,
    start: u32,
    len: u32,
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        &self.segment.tail_bytes(self.start)[..self.len as usize]
    }
}

/// Figures of a store. Bytes are bytes of records, padding included.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Keys that have a value (or had one whose time ran out and that was not compacted yet).
    pub records: u64,
    /// Keys that are known to be deleted.
    pub tombstones: u64,
    /// Bytes that the index points to.
    pub live_bytes: u64,
    /// Bytes that wait for compaction.
    pub dead_bytes: u64,
    /// Bytes that the segment files occupy on disk.
    pub disk_bytes: u64,
    /// Segment files.
    pub segments: u64,
    /// Places in the log that were found damaged since the store was opened.
    pub damaged_records: u64,
    /// Bytes appended since the store was opened.
    pub appended_bytes: u64,
    /// Segments that compaction has given back.
    pub compacted_segments: u64,
    /// Bytes that compaction has moved.
    pub compacted_bytes: u64,
    /// Times that a writer had to allocate for itself.
    pub stalls: u64,
    /// Syncs done by the engine, and how long they took in all and at most.
    pub syncs: u64,
    /// Microseconds that these took together.
    pub sync_us_total: u64,
    /// Microseconds of the slowest one.
    pub sync_us_max: u64,
    /// The disk has no room for new records.
    pub disk_full: bool,
    /// The disk failed: nothing is written any more.
    pub failed: bool,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) stalls: AtomicU64,
    pub(crate) compacted_segments: AtomicU64,
    pub(crate) compacted_bytes: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) sync_us_total: AtomicU64,
    pub(crate) sync_us_max: AtomicU64,
}

/// Who asks for room. On a full disk the order is: no values any more, then no deletes any more, and compaction last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Value,
    Tombstone,
    Compaction,
}

/// What all parts of the engine share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) folder: Folder,
    pub(crate) index: Index,
    /// All segments, by sequence. Changed when one is made or given back.
    pub(crate) segments: Mutex<Vec<Arc<Segment>>>,
    pub(crate) logs: Mutex<Vec<Arc<LogState>>>,
    /// Rolled segments that have no sidecar yet.
    pub(crate) sealing: Mutex<Vec<Arc<Segment>>>,
    pub(crate) damage: DamageLog,
    pub(crate) stats: Counters,
    pub(crate) failed: AtomicBool,
    pub(crate) disk_full: AtomicBool,
    pub(crate) closing: AtomicBool,
    /// See [`Store::keep_tombstones`].
    pub(crate) tombstones_kept: AtomicBool,
    /// A segment is rolled here: its size, or less on a small file system.
    pub(crate) roll_at: u64,
    /// Free bytes that are kept so that a full disk can be emptied: half for deletes, half for compaction.
    reserve: u64,
    next_sequence: AtomicU64,
    free_slots: Mutex<Vec<u32>>,
    pub(crate) threads: Background,
}

/// An open store. Dropping it stops the background threads; [`Store::close`] also seals and syncs.
pub struct Store {
    pub(crate) shared: Arc<Shared>,
}

/// What opening found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recovered {
    /// Segments opened, and how many of these had to be read through because they had no sidecar.
    pub segments: u64,
    /// See there.
    pub scanned: u64,
    /// Keys found, tombstones included.
    pub keys: u64,
    /// Places found damaged.
    pub damaged: u64,
    /// Bytes of half-written records cut off.
    pub torn_bytes: u64,
    /// The newest version's clock, 0 in an empty store: the caller's clock must go on above it.
    pub newest_clock: u64,
}

fn check(options: &Options) -> Result<(), OpenError> {
    let record_max = crate::record::size(crate::KEY_MAX, options.value_max) as u64;
    if options.value_max > VALUE_MAX_LIMIT {
        return Err(OpenError::Option(format!(
            "the largest value can be up to {VALUE_MAX_LIMIT} bytes, not {}",
            options.value_max
        )));
    }
    if !options.segment_size.is_multiple_of(4096)
        || options.segment_size > SEGMENT_MAX
        || record_max + u64::from(SEGMENT_HEADER) > u64::from(options.segment_size)
    {
        return Err(OpenError::Option(format!(
            "a segment of {} bytes does not do: it must be a multiple of 4096, at most {SEGMENT_MAX}, and have room for \
             a record of {record_max}",
            options.segment_size
        )));
    }
    Ok(())
}

impl Store {
    /// Takes the folder, brings the index back and starts the background threads.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(options: Options) -> Result<(Self, Recovered), OpenError> {
        check(&options)?;
        let folder = Folder::take(&options.folder)?;
        Self::open_in(folder, options)
    }

    /// As [`Store::open`], in a folder that was taken before.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_in(folder: Folder, options: Options) -> Result<(Self, Recovered), OpenError> {
        check(&options)?;
        let io_error = |error| OpenError::Io { folder: options.folder.clone(), error };
        let space = options.disk.space(folder.path()).map_err(io_error)?;
        let index = Index::new();
        let damage = DamageLog::default();
        let found = recovery::recover(&folder, &index, &damage)?;
        let taken: HashSet<u32> = found.segments.iter().map(|segment| segment.slot).collect();
        let free_slots = (0..SLOTS as u32).rev().filter(|slot| !taken.contains(slot)).collect();
        let next_sequence = found.next_sequence;
        let shared = Arc::new(Shared {
            roll_at: (space.total / 64).max(1 << 20).min(u64::from(options.segment_size)),
            reserve: (space.total / 16).min(u64::from(options.segment_size)),
            folder,
            index,
            segments: Mutex::new(&"segments", found.segments),
            logs: Mutex::new(&"logs", Vec::new()),
            sealing: Mutex::new(&"segments to seal", found.unsealed),
            damage,
            stats: Counters::default(),
            failed: AtomicBool::new(false),
            disk_full: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            tombstones_kept: AtomicBool::new(false),
            next_sequence: AtomicU64::new(next_sequence),
            free_slots: Mutex::new(&"free segment slots", free_slots),
            threads: Background::default(),
            options,
        });
        Background::start(&shared).map_err(|error| OpenError::Io { folder: shared.options.folder.clone(), error })?;
        Ok((Self { shared }, found.summary))
    }

    /// A writer with a log of its own. Make one for each thread that writes.
    ///
    /// # Errors
    /// When there is no room for its first segment.
    pub fn writer(&self) -> io::Result<Writer> {
        self.shared.new_writer(false)
    }

    /// Looks `key` up and gives what was found to `read`, under the lock of the key's stripe: be short in there.
    #[inline]
    pub fn get<R>(&self, key: &[u8], now_ms: u64, read: impl FnOnce(Lookup<'_>) -> R) -> R {
        self.get_record(key, now_ms, |found, _| read(found))
    }

    /// As [`Store::get`], with the record's expiry, in ms since the Unix epoch; 0 for never, and where nothing was found.
    #[inline]
    pub fn get_record<R>(&self, key: &[u8], now_ms: u64, read: impl FnOnce(Lookup<'_>, u64) -> R) -> R {
        let hash = KeyHash::of(key);
        let stripe = self.shared.index.lock(hash);
        match stripe.find(hash, key) {
            Find::Hit(hit) => {
                let found = self.shared.lookup(hit.segment, hit.entry.offset(), &hit.record, now_ms);
                read(found, hit.record.expires_at_ms())
            }
            Find::Damaged(entry, segment) => {
                self.shared.report_damage(segment, entry.offset());
                read(Lookup::Damaged, 0)
            }
            Find::Miss => read(Lookup::Absent(None), 0),
        }
    }

    /// The live records with `start <= key`, and `key < end` where there is an end, by key bytes.
    ///
    /// # Errors
    /// [`ScanError::NotReady`] while the sealing thread is behind, for example right after a crash: try again soon.
    pub fn scan(&self, start: &[u8], end: Option<&[u8]>) -> Result<Cursor, ScanError> {
        Cursor::open(self.shared.clone(), start, end)
    }

    /// Whether tombstones and expired records are kept beyond [`Options::tombstone_grace`]: while somebody may still bring older
    /// versions, however late.
    pub fn keep_tombstones(&self, keep: bool) {
        self.shared.tombstones_kept.store(keep, Ordering::Relaxed);
    }

    /// Current figures. Walks all stripes and segments: for the control plane, not for each request.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Whether the disk failed, see [`WriteError::Failed`].
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Stops the background threads, syncs, and seals what is open so that the next start is quick. All writers must
    /// have been dropped.
    ///
    /// # Errors
    /// What the disk said; nothing that was acknowledged is lost to a process's end by that.
    pub fn close(&self) -> io::Result<()> {
        self.shared.stop();
        for log in self.shared.logs.lock().iter() {
            self.shared.sync_log(log)?;
        }
        self.shared.seal_everything()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl Shared {
    /// What a reader at `now_ms` gets from a record that the index names.
    #[inline]
    pub(crate) fn lookup<'a>(
        self: &Arc<Self>,
        segment: &'a Segment,
        offset: u32,
        record: &Record<'a>,
        now_ms: u64,
    ) -> Lookup<'a> {
        let version = record.version();
        if record.is_absent(now_ms) {
            return Lookup::Absent(Some(version));
        }
        let value = record.value();
        if value.len() > INLINE_MAX {
            let start = offset + record.value_start() as u32;
            let pin = Pinned { segment: Locked::pin(segment), record: offset, start, len: value.len() as u32 };
            return Lookup::Found(version, Value::Large(Unverified(pin, self.clone())));
        }
        if !record.value_intact() {
            self.report_damage(segment, offset);
            return Lookup::Damaged;
        }
        Lookup::Found(version, Value::Inline(value))
    }

    pub(crate) fn report_damage(&self, segment: &Segment, offset: u32) {
        segment.quarantined.store(true, Ordering::Relaxed);
        self.damage.report(segment.sequence, offset);
    }

    pub(crate) fn new_writer(self: &Arc<Self>, privileged: bool) -> io::Result<Writer> {
        // From the reserve, too: what was killed on a full disk has to start on it.
        let tail = self.create_segment(Need::Compaction)?;
        let log = Arc::new(LogState::new(tail.segment(), privileged));
        self.logs.lock().push(log.clone());
        Ok(Writer::new(self.clone(), log, tail))
    }

    /// Whether `bytes` more may be allocated; remembers the answer for `/status` and for the sealing of small disks.
    pub(crate) fn room_for(&self, bytes: u64, need: Need) -> Result<(), WriteError> {
        let space = self.options.disk.space(self.folder.path()).map_err(|e| self.write_error(&e))?;
        let reserve = match need {
            Need::Value => self.reserve,
            Need::Tombstone => self.reserve / 2,
            Need::Compaction => 0,
        };
        if space.free < bytes + reserve {
            if need == Need::Value && !self.disk_full.swap(true, Ordering::Relaxed) {
                tracing::error!("the disk is full ({} bytes free): writes are refused until there is room", space.free);
            }
            return Err(WriteError::DiskFull);
        }
        if need == Need::Value && self.disk_full.swap(false, Ordering::Relaxed) {
            tracing::info!("there is room on the disk again ({} bytes free): writes are accepted", space.free);
        }
        Ok(())
    }

    pub(crate) fn write_error(&self, error: &io::Error) -> WriteError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => WriteError::DiskFull,
            _ => {
                tracing::error!("a segment cannot be written: {error}");
                WriteError::DiskFull
            }
        }
    }

    /// A new, installed segment whose name is durable.
    pub(crate) fn create_segment(&self, need: Need) -> io::Result<Tail> {
        self.room_for(u64::from(SLICE), need).map_err(|_| io::Error::from(io::ErrorKind::StorageFull))?;
        let Some(slot) = self.free_slots.lock().pop() else {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "all segment slots are taken"));
        };
        let sequence = self.next_sequence.fetch_add(1, Ordering::Relaxed);
        let salt = salt(sequence);
        let made =
            Segment::create(&*self.options.disk, self.folder.path(), slot, sequence, salt, self.options.segment_size);
        let tail = match made {
            Ok(tail) => tail,
            Err(e) => {
                self.free_slots.lock().push(slot);
                return Err(e);
            }
        };
        if self.options.sync != SyncMode::Os
            && let Err(e) = sync_folder(self.folder.path())
        {
            let _ = tail.segment().unlink();
            self.free_slots.lock().push(slot);
            return Err(e);
        }
        self.index.install(tail.segment().clone());
        self.segments.lock().push(tail.segment().clone());
        Ok(tail)
    }

    /// Gives a segment back that no index entry names.
    pub(crate) fn retire(&self, segment: &Arc<Segment>) {
        let retired = self.index.retire(segment.slot);
        assert!(Arc::ptr_eq(&retired, segment));
        self.segments.lock().retain(|s| !Arc::ptr_eq(s, segment));
        if let Err(e) = segment.unlink() {
            tracing::warn!("a compacted segment cannot be removed, it will be found again at the next start: {e}");
        }
        self.free_slots.lock().push(segment.slot);
    }

    pub(crate) fn fail(&self, error: &io::Error) {
        if !self.failed.swap(true, Ordering::SeqCst) {
            tracing::error!("the disk failed, nothing is written until the server is started again: {error}");
        }
    }

    fn stats(&self) -> Stats {
        let (entries, tombstones) = self.index.counts();
        let mut stats = Stats {
            records: entries.saturating_sub(tombstones),
            tombstones,
            damaged_records: self.damage.count(),
            compacted_segments: self.stats.compacted_segments.load(Ordering::Relaxed),
            compacted_bytes: self.stats.compacted_bytes.load(Ordering::Relaxed),
            stalls: self.stats.stalls.load(Ordering::Relaxed),
            syncs: self.stats.syncs.load(Ordering::Relaxed),
            sync_us_total: self.stats.sync_us_total.load(Ordering::Relaxed),
            sync_us_max: self.stats.sync_us_max.load(Ordering::Relaxed),
            disk_full: self.disk_full.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            ..Stats::default()
        };
        for segment in self.segments.lock().iter() {
            stats.segments += 1;
            stats.live_bytes += segment.live();
            stats.dead_bytes += segment.dead_bytes();
            stats.disk_bytes += segment.disk_bytes();
        }
        for log in self.logs.lock().iter().filter(|log| !log.privileged) {
            stats.appended_bytes += log.appended.load(Ordering::Relaxed);
        }
        stats
    }
}

/// A salt that differs between segments and between lives of a folder, so that bytes of one never pass as another's.
fn salt(sequence: u64) -> u32 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(sequence);
    hasher.finish() as u32
}

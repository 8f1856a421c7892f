//! One file of the log, mapped into memory.
//!
//! ```text
//! 0   8 bytes  "KOLTSOSG"            16  u64  sequence, also the file's name
//! 8   u32      format version, 2     24  u32  salt, random
//! 12  u32      CRC-32C of the others 28  u32  capacity: the file's size
//! 32..64       zeros                 64       records, each at a multiple of 8, then zeros
//! ```
//!
//! Owner: one tail writes ([`crate::indexed::Tail`]), on one thread; anybody reads what was
//! written. Invariants:
//! 1. Bytes below `written` never change again while the mapping lives; the tail only writes at and
//!    above it, and moves it (release) after a whole record is there.
//! 2. The tail writes only below `ready`, where blocks are allocated: a full disk is an error
//!    value, never SIGBUS. Nobody else writes there: zeros are written ahead only at and above it,
//!    under the lock that moves it. Where the file system cannot allocate ahead (no `fallocate`,
//!    as ext3), writing the zeros is what makes it do so.
//! 3. We never truncate the file. A page that is gone all the same, because somebody else did or
//!    the disk cannot read it, reads as zeros from then on ([`crate::fault`]), and the segment takes
//!    no more records. (Another program that writes the file breaks 1: the folder lock keeps our own
//!    processes out, nothing else can.)
//! 4. An unlinked segment lives on in its mapping until the last reader lets go.
//! 5. The header is on disk before anything is written behind it. So a file without a header that
//!    has anything behind it has lost it, and is not one that a power loss kept from being written.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use koltso_instrument::Mutex;
use memmap2::{Advice, MmapRaw};

use crate::env::Env;
use crate::fault::Watched;
use crate::header::{self, HeaderError, PAGE};
use crate::record::{self, Draft, Fault, Record};

pub(crate) use crate::header::{SEGMENT_HEADER, SEGMENT_MAX};

/// Blocks are allocated in slices of this many bytes.
pub(crate) const SLICE: u32 = 1 << 20;
/// Brought into memory at once, which takes 15 us; where the host of a virtual machine has to find
/// each page, 400. A kernel that does not preempt itself holds the processor for so long.
pub(crate) const PIECE: u32 = 64 << 10;
/// Kernel ABI, since Linux 5.14; libc has the name only in newer versions.
const MADV_POPULATE_WRITE: i32 = 23;

#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) sequence: u64,
    salt: u32,
    capacity: u32,
    path: PathBuf,
    file: File,
    /// Held while somebody syncs `file`, and until a failure of that is known to all: the kernel
    /// reports an error once to each open file description.
    pub(crate) syncing: Mutex<()>,
    /// For syncs of the log's owner, who does not wait for those of the background threads.
    owners_file: Mutex<OwnersFile>,
    /// Whether the file system reserves blocks without writing to them.
    allocates: bool,
    /// Before `map`, so that it is dropped before that is.
    watched: Watched,
    map: MmapRaw,
    written: AtomicU32,
    ready: AtomicU32,
    /// Held by whoever moves `ready`.
    extending: Mutex<()>,
    /// Clock of the oldest version here; `u64::MAX` while there is none.
    oldest_clock: AtomicU64,
}

/// An open file description of a segment's file that is not that of the background threads. It was
/// opened before anything was written, so no error passes it by.
#[derive(Debug)]
enum OwnersFile {
    Here(File),
    /// The owner syncs it by itself.
    Taken,
    /// Nobody has anything to sync any more.
    Sealed,
}

pub(crate) fn path_of(folder: &Path, sequence: u64, extension: &str) -> PathBuf {
    folder.join(format!("{sequence:016x}.{extension}"))
}

/// Whether blocks were reserved: `false` where the file system has no way to do that but writing.
fn allocates(allocated: io::Result<()>) -> io::Result<bool> {
    match allocated {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(false),
        Err(e) => Err(e),
    }
}

/// Has the page cache hold the zeros of a range that nothing was written to, so that nobody has to
/// read them: at most [`PIECE`] bytes. Where blocks were not reserved before, this does that.
fn write_zeros(env: &dyn Env, file: &File, start: u32, end: u32) -> io::Result<()> {
    static ZEROS: [u8; PIECE as usize] = [0; PIECE as usize];
    env.write_at(file, &ZEROS[..(end - start) as usize], u64::from(start))
}

impl Segment {
    /// Makes the file with one slice ready. The name is durable only after [`Env::sync_folder`].
    pub(crate) fn create(env: &dyn Env, folder: &Path, sequence: u64, salt: u32, capacity: u32) -> io::Result<Self> {
        assert!(capacity.is_multiple_of(PAGE) && (PAGE..=SEGMENT_MAX).contains(&capacity));
        let path = path_of(folder, sequence, "log");
        let file = env.create_new(&path)?;
        let prepare = || -> io::Result<(MmapRaw, File, bool)> {
            let owners_file = env.open(&path)?;
            env.set_len(&file, u64::from(capacity))?;
            let allocates = allocates(env.allocate(&file, 0, u64::from(SLICE.min(capacity))))?;
            if !allocates {
                for start in (0..SLICE.min(capacity)).step_by(PIECE as usize) {
                    write_zeros(env, &file, start, (start + PIECE).min(capacity))?;
                }
            }
            env.write_durably(&file, &header::encode(sequence, salt, capacity), 0)?;
            let map = env.map(&file, capacity as usize)?;
            // Or a fault on a page that is not there yet has the kernel "read" what was never
            // written, which clears as much as the disk's read-ahead is long: 8 MiB in one go, 14
            // to 36 ms, on the disk of a virtual machine.
            _ = map.advise(Advice::Random);
            Ok((map, owners_file, allocates))
        };
        let (map, owners_file, allocates) = prepare().inspect_err(|_| {
            let _ = env.remove(&path);
        })?;
        let mut segment = Self::assemble(sequence, salt, capacity, path, file, map);
        *segment.owners_file.get_mut() = OwnersFile::Here(owners_file);
        segment.allocates = allocates;
        segment.ready.store(SLICE.min(capacity), Ordering::Release);
        for start in (0..SLICE.min(capacity)).step_by(PIECE as usize) {
            let end = (start + PIECE).min(capacity);
            _ = write_zeros(env, &segment.file, start.max(SEGMENT_HEADER), end);
            segment.populate(start, end);
        }
        Ok(segment)
    }

    /// Opens an existing file for reading. Nothing counts as written until
    /// [`Segment::set_written`].
    pub(crate) fn open(env: &dyn Env, folder: &Path, sequence: u64) -> Result<Self, HeaderError> {
        let path = path_of(folder, sequence, "log");
        let file = env.open(&path)?;
        let (salt, capacity) = header::read(env, &file, sequence)?;
        // A file cut short gets its size back; the rest reads as zeros, which is where the records
        // end.
        if env.len(&file)? < u64::from(capacity) {
            env.set_len(&file, u64::from(capacity))?;
        }
        let map = env.map(&file, capacity as usize)?;
        Ok(Self::assemble(sequence, salt, capacity, path, file, map))
    }

    /// Opens an existing file of a folder that is not to be changed: as [`Segment::open`], but what a
    /// file that was cut short lacks is a fault.
    pub(crate) fn open_unchanged(env: &dyn Env, folder: &Path, sequence: u64) -> Result<Self, HeaderError> {
        let path = path_of(folder, sequence, "log");
        let file = env.open_to_read(&path)?;
        let (salt, capacity) = header::read(env, &file, sequence)?;
        let map = env.map_to_read(&file, capacity as usize)?;
        Ok(Self::assemble(sequence, salt, capacity, path, file, map))
    }

    /// Whether the file is shorter than it was made.
    pub(crate) fn was_cut_short(&self, env: &dyn Env) -> bool {
        env.len(&self.file).is_ok_and(|len| len < u64::from(self.capacity))
    }

    fn assemble(sequence: u64, salt: u32, capacity: u32, path: PathBuf, file: File, map: MmapRaw) -> Self {
        Self {
            sequence,
            salt,
            capacity,
            path,
            file,
            syncing: Mutex::new(&"sync of a segment", ()),
            owners_file: Mutex::new(&"sync of a log by its owner", OwnersFile::Sealed),
            allocates: true,
            watched: Watched::new(map.as_ptr(), capacity as usize),
            map,
            written: AtomicU32::new(SEGMENT_HEADER),
            ready: AtomicU32::new(SEGMENT_HEADER),
            extending: Mutex::new(&"room in a segment", ()),
            oldest_clock: AtomicU64::new(u64::MAX),
        }
    }

    /// Gives the owner's file to the owner; `None` once the segment is sealed, and so on disk.
    pub(crate) fn take_owners_file(&self) -> Option<File> {
        let mut file = self.owners_file.lock();
        match std::mem::replace(&mut *file, OwnersFile::Taken) {
            OwnersFile::Here(file) => Some(file),
            OwnersFile::Taken => panic!("a segment's file is taken once"),
            OwnersFile::Sealed => {
                *file = OwnersFile::Sealed;
                None
            }
        }
    }

    /// The owner has no use for its file any more.
    pub(crate) fn close_owners_file(&self) {
        *self.owners_file.lock() = OwnersFile::Sealed;
    }

    /// Puts what was written on stable storage, as the owner of the log; `None` if that is not for
    /// the owner to do here.
    pub(crate) fn sync_as_owner(&self, env: &dyn Env) -> Option<io::Result<()>> {
        match &*self.owners_file.lock() {
            OwnersFile::Here(file) => Some(env.sync(file)),
            OwnersFile::Taken | OwnersFile::Sealed => None,
        }
    }

    /// Writes what was written once more, so that the kernel has to put it on disk at the next sync
    /// whatever it believes.
    pub(crate) fn write_again(&self, env: &dyn Env) -> io::Result<()> {
        self.write_range_again(env, 0, self.written())
    }

    /// The same of a range below what was written.
    pub(crate) fn write_range_again(&self, env: &dyn Env, start: u32, end: u32) -> io::Result<()> {
        let mut buffer = vec![0; PIECE as usize];
        for start in (start..end).step_by(buffer.len()) {
            let piece = self.bytes(start, (start + PIECE).min(end));
            let copy = &mut buffer[..piece.len()];
            copy.copy_from_slice(piece);
            env.write_at(&self.file, copy, u64::from(start))?;
        }
        Ok(())
    }

    /// Puts what was written on stable storage. Only with `syncing` held.
    pub(crate) fn sync(&self, env: &dyn Env) -> io::Result<()> {
        env.sync(&self.file)
    }

    /// End of the last whole record.
    #[inline]
    pub(crate) fn written(&self) -> u32 {
        self.written.load(Ordering::Acquire)
    }

    /// States where the records of a recovered segment end.
    pub(crate) fn set_written(&self, end: u32) {
        assert!(end >= SEGMENT_HEADER && end <= self.capacity);
        self.written.store(end, Ordering::Release);
    }

    pub(crate) fn ready(&self) -> u32 {
        self.ready.load(Ordering::Acquire)
    }

    pub(crate) const fn capacity(&self) -> u32 {
        self.capacity
    }

    pub(crate) const fn salt(&self) -> u32 {
        self.salt
    }

    /// Clock of the oldest version here, `u64::MAX` in an empty segment.
    pub(crate) fn oldest_clock(&self) -> u64 {
        self.oldest_clock.load(Ordering::Acquire)
    }

    /// Notes a version that is here. One thread at a time: the tail's, or recovery's.
    pub(crate) fn note_clock(&self, clock: u64) {
        if clock < self.oldest_clock.load(Ordering::Relaxed) {
            self.oldest_clock.store(clock, Ordering::Release);
        }
    }

    /// The file is about to be read from its start to its end.
    pub(crate) fn advise_sequential(&self) {
        _ = self.map.advise(Advice::Sequential);
    }

    /// Records are read here and there from now on. With data larger than memory, what the kernel
    /// reads around each of them would push out what is read often: 190 reads/s instead of 9 900.
    /// Who reads on says so ([`Segment::will_need`]).
    pub(crate) fn advise_random(&self) {
        _ = self.map.advise(Advice::Random);
    }

    /// Has the kernel begin to read a range that will be read soon, and does not wait for it.
    pub(crate) fn will_need(&self, start: u32, end: u32) {
        let (start, end) = (start & !(PAGE - 1), end.min(self.capacity));
        if start < end {
            _ = self.map.advise_range(Advice::WillNeed, start as usize, (end - start) as usize);
        }
    }

    /// Whether the file system reserves blocks without writing to them.
    pub(crate) const fn allocates(&self) -> bool {
        self.allocates
    }

    /// Pages that could not be had: the file was cut short, or the disk cannot read them.
    #[inline]
    pub(crate) fn faults(&self) -> u32 {
        self.watched.faults()
    }

    /// Finds out whether somebody cut the file short, and counts that as a fault, once: what is
    /// written into the rest of its last page would fault nowhere, and be lost.
    pub(crate) fn look_at_length(&self, env: &dyn Env) {
        if self.faults() == 0 && self.was_cut_short(env) {
            self.watched.found();
        }
    }

    /// The first `end` bytes, of which the caller knows that they will not change.
    #[allow(unsafe_code)]
    #[inline]
    fn bytes(&self, start: u32, end: u32) -> &[u8] {
        assert!(start <= end && end <= self.capacity);
        // SAFETY: within the mapping by the assertion; callers pass `end <= written`, below which
        // invariant 1 says nothing changes, or hold a recovered segment that has no tail. Does not
        // cover invariant 3's exceptions.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(start as usize), (end - start) as usize) }
    }

    /// What was written, from `start` on.
    #[inline]
    pub(crate) fn tail_bytes(&self, start: u32) -> &[u8] {
        let end = self.written();
        self.bytes(start.min(end), end)
    }

    /// Everything in the file, for recovery: only while the segment has no tail.
    pub(crate) fn recovery_bytes(&self) -> &[u8] {
        self.bytes(0, self.capacity)
    }

    /// The record at `offset`, its lengths checked.
    #[inline]
    pub(crate) fn record(&self, offset: u32) -> Result<Record<'_>, Fault> {
        Record::view(self.tail_bytes(offset))
    }

    /// The key of a record at `offset` that was viewed before and has a key of that length.
    #[inline]
    pub(crate) fn key_at(&self, offset: u32, key_len: u16) -> &[u8] {
        let start = offset + record::HEADER as u32;
        self.bytes(start, start + u32::from(key_len))
    }

    pub(crate) fn seed(&self, offset: u32) -> u32 {
        record::seed(self.salt, offset)
    }

    pub(crate) fn header_intact(&self, offset: u32, record: &Record<'_>) -> bool {
        record.header_intact(self.seed(offset))
    }

    /// Asks the processor for the cache line of a record that will be read soon.
    #[allow(unsafe_code)]
    #[inline]
    pub(crate) fn prefetch(&self, offset: u32) {
        #[cfg(target_arch = "x86_64")]
        if offset < self.capacity {
            // SAFETY: a hint; the address is within the mapping.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                let at = self.map.as_ptr().add(offset as usize).cast::<i8>();
                _mm_prefetch(at, _MM_HINT_T0);
                _mm_prefetch(at.wrapping_add(64), _MM_HINT_T0);
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = offset;
    }

    /// Faults pages in for writing, so that the tail does not have to. A hint: an old kernel that
    /// lacks it only costs time.
    #[allow(unsafe_code)]
    pub(crate) fn populate(&self, start: u32, end: u32) {
        let mut start = start & !(PAGE - 1);
        let end = if end > self.capacity { 0 } else { end };
        while start < end {
            let next = (start + PIECE).min(end);
            // SAFETY: the range lies within the mapping, and populating changes no byte of it.
            let _ = unsafe {
                libc::madvise(
                    self.map.as_mut_ptr().add(start as usize).cast(),
                    (next - start) as usize,
                    MADV_POPULATE_WRITE,
                )
            };
            start = next;
        }
    }

    /// Makes the next slice ready, allocated and in memory. `false` when the whole segment is.
    ///
    /// Piece by piece: a writer that runs out of room meanwhile waits for one of them, and may then
    /// go on by itself.
    pub(crate) fn extend_ahead(&self, env: &dyn Env) -> io::Result<bool> {
        let mut start = self.ready();
        if start >= self.capacity {
            return Ok(false);
        }
        let end = (start + SLICE).min(self.capacity);
        if self.allocates {
            env.allocate(&self.file, u64::from(start), u64::from(end - start))?;
        }
        while start < end {
            let next = (start + PIECE).min(end);
            let _turn = self.extending.lock();
            if self.ready() != start {
                // The writer went on by itself: there may be records.
                break;
            }
            let zeros = write_zeros(env, &self.file, start, next);
            if !self.allocates {
                zeros?;
            }
            self.populate(start, next);
            self.ready.store(next, Ordering::Release);
            start = next;
        }
        Ok(true)
    }

    /// The same for a writer that waits for the bytes below `wanted`: `by` more are allocated, and
    /// only if they are not ready by now.
    pub(crate) fn extend(&self, env: &dyn Env, wanted: u32, by: u32) -> io::Result<bool> {
        let _turn = self.extending.lock();
        let ready = self.ready();
        if ready < wanted && ready < self.capacity {
            let end = (ready + by).min(self.capacity);
            if self.allocates {
                env.allocate(&self.file, u64::from(ready), u64::from(end - ready))?;
            } else {
                for start in (ready..end).step_by(PIECE as usize) {
                    write_zeros(env, &self.file, start, (start + PIECE).min(end))?;
                }
            }
            self.ready.store(end, Ordering::Release);
        }
        Ok(ready < self.capacity)
    }

    /// Gives the blocks after the last record back. Only once no tail exists.
    pub(crate) fn release_rest(&self, env: &dyn Env) {
        let end = self.written().next_multiple_of(PAGE);
        if end < self.capacity {
            let _ = env.release(&self.file, u64::from(end), u64::from(self.capacity - end));
        }
    }

    /// Where the last bytes that the file system knows of end; what follows is a hole and reads as
    /// zeros.
    pub(crate) fn data_end(&self, env: &dyn Env) -> u32 {
        env.data_end(&self.file, u64::from(self.capacity)).min(u64::from(self.capacity)) as u32
    }

    /// Bytes that the file occupies on disk.
    pub(crate) fn disk_bytes(&self, env: &dyn Env) -> u64 {
        env.occupied(&self.file).unwrap_or(0)
    }

    /// Removes the files. Readers that still hold the segment keep its bytes.
    pub(crate) fn unlink(&self, env: &dyn Env) -> io::Result<()> {
        env.remove(&self.path)?;
        match env.remove(&self.path.with_extension("idx")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Writes a record at `offset` and counts it as written; `false` if the file lacks a page there,
    /// so that what was written is nowhere.
    ///
    /// # Safety
    /// `offset` is [`Segment::written`], the record ends at or below [`Segment::ready`], and no
    /// other thread does this to the same segment (invariants 1 and 2): a tail sees to that.
    #[allow(unsafe_code)]
    #[inline]
    pub(crate) unsafe fn append_at(&self, offset: u32, draft: &Draft<'_>) -> bool {
        let size = draft.size();
        // SAFETY: within the mapping, since `ready` is; nobody else has access at and above
        // `written`.
        let out = unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(offset as usize), size) };
        draft.write(out, self.seed(offset));
        if self.faults() > 0 {
            return false;
        }
        self.note_clock(draft.version.clock);
        self.written.store(offset + size as u32, Ordering::Release);
        true
    }

    /// Pages of the segment that are in memory.
    #[cfg(test)]
    #[allow(unsafe_code)]
    pub(crate) fn resident_pages(&self) -> usize {
        let mut pages = vec![0_u8; (self.capacity / PAGE) as usize];
        // SAFETY: the whole mapping, and a byte for each of its pages.
        let result = unsafe { libc::mincore(self.map.as_mut_ptr().cast(), self.capacity as usize, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|&&page| page & 1 == 1).count()
    }
}

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
//!    under the lock that moves it.
//! 3. The file is never truncated, so no mapped page goes away. (An I/O error under the mapping is
//!    still SIGBUS, and another program that writes the file breaks 1: the folder lock keeps our
//!    own processes out, nothing else can.)
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
use crate::record::{self, Draft, Fault, Record};

const MAGIC: &[u8; 8] = b"KOLTSOSG";
const FORMAT: u32 = 2;
/// Bytes before the first record.
pub(crate) const SEGMENT_HEADER: u32 = 64;
/// The largest segment: an index entry has 23 bits for an offset in units of 8 bytes.
pub(crate) const SEGMENT_MAX: u32 = 1 << 26;
/// Blocks are allocated in slices of this many bytes.
pub(crate) const SLICE: u32 = 1 << 20;
/// Brought into memory at once, which takes 15 us; where the host of a virtual machine has to find
/// each page, 400. A kernel that does not preempt itself holds the processor for so long.
const PIECE: u32 = 64 << 10;
/// Kernel ABI, since Linux 5.14; libc has the name only in newer versions.
const MADV_POPULATE_WRITE: i32 = 23;
const PAGE: u32 = 4096;

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

/// Why a file is not a segment of ours.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("it has no intact segment header")]
    Damaged,
    /// It was being made when the process ended or the power was lost, and there is nothing in it.
    #[error("its header was not written")]
    Unwritten,
    #[error("its segment format is {0}, and this build knows formats up to {FORMAT}")]
    Newer(u32),
    #[error(transparent)]
    Io(#[from] io::Error),
}

pub(crate) fn path_of(folder: &Path, sequence: u64, extension: &str) -> PathBuf {
    folder.join(format!("{sequence:016x}.{extension}"))
}

fn header(sequence: u64, salt: u32, capacity: u32) -> [u8; SEGMENT_HEADER as usize] {
    let mut header = [0; SEGMENT_HEADER as usize];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    header[16..24].copy_from_slice(&sequence.to_le_bytes());
    header[24..28].copy_from_slice(&salt.to_le_bytes());
    header[28..32].copy_from_slice(&capacity.to_le_bytes());
    let crc = header_crc(&header);
    header[12..16].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Of everything but the checksum itself. All formats have it at this place, so that one flipped
/// bit does not make a newer format, which would keep the store from opening.
fn header_crc(header: &[u8; SEGMENT_HEADER as usize]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..])
}

/// Whether a file has nothing but zeros from `start` on.
fn is_blank(env: &dyn Env, file: &File, start: u64) -> io::Result<bool> {
    let end = env.data_end(file, env.len(file)?);
    let mut buffer = vec![0; PIECE as usize];
    for at in (start..end).step_by(buffer.len()) {
        let piece = (end - at).min(buffer.len() as u64) as usize;
        env.read_at(file, &mut buffer[..piece], at)?;
        if buffer[..piece].iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Segment {
    /// Makes the file with one slice ready. The name is durable only after [`Env::sync_folder`].
    pub(crate) fn create(env: &dyn Env, folder: &Path, sequence: u64, salt: u32, capacity: u32) -> io::Result<Self> {
        assert!(capacity.is_multiple_of(PAGE) && (PAGE..=SEGMENT_MAX).contains(&capacity));
        let path = path_of(folder, sequence, "log");
        let file = env.create_new(&path)?;
        let prepare = || -> io::Result<(MmapRaw, File)> {
            let owners_file = env.open(&path)?;
            env.set_len(&file, u64::from(capacity))?;
            env.allocate(&file, 0, u64::from(SLICE.min(capacity)))?;
            env.write_durably(&file, &header(sequence, salt, capacity), 0)?;
            let map = env.map(&file, capacity as usize)?;
            // Or a fault on a page that is not there yet has the kernel "read" what was never
            // written, which clears as much as the disk's read-ahead is long: 8 MiB in one go, 14
            // to 36 ms, on the disk of a virtual machine.
            _ = map.advise(Advice::Random);
            Ok((map, owners_file))
        };
        let (map, owners_file) = prepare().inspect_err(|_| {
            let _ = env.remove(&path);
        })?;
        let mut segment = Self::assemble(sequence, salt, capacity, path, file, map);
        *segment.owners_file.get_mut() = OwnersFile::Here(owners_file);
        segment.ready.store(SLICE.min(capacity), Ordering::Release);
        for start in (0..SLICE.min(capacity)).step_by(PIECE as usize) {
            let end = (start + PIECE).min(capacity);
            segment.write_zeros(env, start.max(SEGMENT_HEADER), end);
            segment.populate(start, end);
        }
        Ok(segment)
    }

    /// Opens an existing file for reading. Nothing counts as written until
    /// [`Segment::set_written`].
    pub(crate) fn open(env: &dyn Env, folder: &Path, sequence: u64) -> Result<Self, HeaderError> {
        let path = path_of(folder, sequence, "log");
        let file = env.open(&path)?;
        let mut bytes = [0; SEGMENT_HEADER as usize];
        if env.len(&file)? < u64::from(SEGMENT_HEADER) {
            return Err(HeaderError::Unwritten);
        }
        env.read_at(&file, &mut bytes, 0)?;
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (format, salt, capacity) = (u32_at(8), u32_at(24), u32_at(28));
        if &bytes[..8] == MAGIC && format > FORMAT && u32_at(12) == header_crc(&bytes) {
            return Err(HeaderError::Newer(format));
        }
        let size_fits = (PAGE..=SEGMENT_MAX).contains(&capacity) && capacity.is_multiple_of(PAGE);
        if !size_fits || bytes != header(sequence, salt, capacity) {
            // None of these words is zero in a header. That alone says nothing of what is behind
            // it: a disk may give back zeros for what it has lost.
            let lacks_words = bytes[..32].chunks_exact(8).any(|word| word == [0; 8]);
            let is_unwritten = lacks_words && is_blank(env, &file, 32)?;
            return Err(if is_unwritten { HeaderError::Unwritten } else { HeaderError::Damaged });
        }
        // A file cut short gets its size back; the rest reads as zeros, which is where the records
        // end.
        if env.len(&file)? < u64::from(capacity) {
            env.set_len(&file, u64::from(capacity))?;
        }
        let map = env.map(&file, capacity as usize)?;
        Ok(Self::assemble(sequence, salt, capacity, path, file, map))
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
        let mut buffer = vec![0; PIECE as usize];
        for start in (0..self.written()).step_by(buffer.len()) {
            let piece = self.bytes(start, (start + PIECE).min(self.written()));
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

    /// Reading ahead is worth it from now on: nothing is written any more, and compaction reads
    /// from one end to the other.
    pub(crate) fn advise_sequential(&self) {
        _ = self.map.advise(Advice::Normal);
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

    /// Has the page cache hold the zeros of a range that nothing was written to, so that nobody has
    /// to read them. A hint, too.
    fn write_zeros(&self, env: &dyn Env, start: u32, end: u32) {
        static ZEROS: [u8; PIECE as usize] = [0; PIECE as usize];
        _ = env.write_at(&self.file, &ZEROS[..(end - start) as usize], u64::from(start));
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
        env.allocate(&self.file, u64::from(start), u64::from(end - start))?;
        while start < end {
            let next = (start + PIECE).min(end);
            let _turn = self.extending.lock();
            if self.ready() != start {
                // The writer went on by itself: there may be records.
                break;
            }
            self.write_zeros(env, start, next);
            self.populate(start, next);
            self.ready.store(next, Ordering::Release);
            start = next;
        }
        Ok(true)
    }

    /// The same for a writer that waits for the bytes below `wanted`: allocated, no more, and only
    /// if they are not ready by now.
    pub(crate) fn extend(&self, env: &dyn Env, wanted: u32) -> io::Result<bool> {
        let _turn = self.extending.lock();
        let ready = self.ready();
        if ready < wanted && ready < self.capacity {
            let end = (ready + SLICE).min(self.capacity);
            env.allocate(&self.file, u64::from(ready), u64::from(end - ready))?;
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

    /// Writes a record at `offset` and counts it as written.
    ///
    /// # Safety
    /// `offset` is [`Segment::written`], the record ends at or below [`Segment::ready`], and no
    /// other thread does this to the same segment (invariants 1 and 2): a tail sees to that.
    #[allow(unsafe_code)]
    #[inline]
    pub(crate) unsafe fn append_at(&self, offset: u32, draft: &Draft<'_>) {
        let size = draft.size();
        // SAFETY: within the mapping, since `ready` is; nobody else has access at and above
        // `written`.
        let out = unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(offset as usize), size) };
        draft.write(out, self.seed(offset));
        self.note_clock(draft.version.clock);
        self.written.store(offset + size as u32, Ordering::Release);
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

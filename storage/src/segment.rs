//! One file of the log, mapped into memory.
//!
//! ```text
//! 0   8 bytes  "KOLTSOSG"            16  u64  sequence, also the file's name
//! 8   u32      format version, 1     24  u32  salt, random
//! 12  u32      CRC-32C of the others 28  u32  capacity: the file's size
//! 32..64       zeros                 64       records, each at a multiple of 8, then zeros
//! ```
//!
//! Owner: one [`Tail`] writes, on one thread; anybody reads what was written.
//! Invariants:
//! 1. Bytes below `written` never change again while the mapping lives; the tail only writes at and above it, and moves
//!    it (release) after a whole record is there.
//! 2. The tail writes only below `ready`, where blocks are allocated: a full disk is an error value, never SIGBUS. Nobody else writes
//!    there: zeros are written ahead only at and above it, under the lock that moves it.
//! 3. The file is never truncated, so no mapped page goes away. (An I/O error under the mapping is still SIGBUS, and
//!    another program that writes the file breaks 1: the folder lock keeps our own processes out, nothing else can.)
//! 4. An unlinked segment lives on in its mapping until the last reader lets go.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use koltso_instrument::Mutex;
use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::disk::Disk;
use crate::order::Order;
use crate::record::{self, Draft, Fault, Record};
use crate::sidecar::Sidecar;

const MAGIC: &[u8; 8] = b"KOLTSOSG";
const FORMAT: u32 = 1;
/// Bytes before the first record.
pub(crate) const SEGMENT_HEADER: u32 = 64;
/// The largest segment: an index entry has 23 bits for an offset in units of 8 bytes.
pub(crate) const SEGMENT_MAX: u32 = 1 << 26;
/// Blocks are allocated in slices of this many bytes.
pub(crate) const SLICE: u32 = 1 << 20;
/// Brought into memory at once, which takes 15 us; where the host of a virtual machine has to find each page, 400. A kernel that does not
/// preempt itself holds the processor for so long.
const PIECE: u32 = 64 << 10;
/// Kernel ABI, since Linux 5.14; libc has the name only in newer versions.
const MADV_POPULATE_WRITE: i32 = 23;
const PAGE: u32 = 4096;

#[derive(Debug)]
pub(crate) struct Segment {
    /// Place in the segment table, as index entries name it.
    pub(crate) slot: u32,
    pub(crate) sequence: u64,
    salt: u32,
    capacity: u32,
    path: PathBuf,
    pub(crate) file: File,
    map: MmapRaw,
    written: AtomicU32,
    ready: AtomicU32,
    /// Held by whoever moves `ready`.
    extending: Mutex<()>,
    /// Bytes of records that the index points to.
    pub(crate) live_bytes: AtomicU64,
    /// Clock of the oldest version here; `u64::MAX` while there is none.
    oldest_clock: AtomicU64,
    /// A live record here is damaged or cannot be moved: compaction leaves the segment alone.
    pub(crate) quarantined: AtomicBool,
    /// Sorted runs of what was written, until the sidecar takes over.
    pub(crate) order: Order,
    sidecar: OnceLock<Sidecar>,
}

/// The right to append to one segment. There is one a segment, and it is not `Clone`.
#[derive(Debug)]
pub(crate) struct Tail {
    segment: Arc<Segment>,
    position: u32,
}

/// Why a file is not a segment of ours.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("it has no intact segment header")]
    Damaged,
    #[error("its segment format is {0}, and this build knows formats up to {FORMAT}")]
    Newer(u32),
    #[error(transparent)]
    Io(#[from] io::Error),
}

pub(crate) fn path_of(folder: &Path, sequence: u64, extension: &str) -> PathBuf {
    folder.join(format!("{sequence:016x}.{extension}"))
}

#[allow(unsafe_code)]
fn map(file: &File, capacity: u32) -> io::Result<MmapRaw> {
    MmapOptions::new().len(capacity as usize).map_raw(file)
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

/// Of everything but the checksum itself. All formats have it at this place, so that one flipped bit does not make a newer
/// format, which would keep the store from opening.
fn header_crc(header: &[u8; SEGMENT_HEADER as usize]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..])
}

impl Segment {
    /// Makes the file with one slice ready. The name is durable only after [`crate::disk::sync_folder`].
    pub(crate) fn create(
        disk: &dyn Disk,
        folder: &Path,
        slot: u32,
        sequence: u64,
        salt: u32,
        capacity: u32,
    ) -> io::Result<Tail> {
        assert!(capacity.is_multiple_of(PAGE) && (PAGE..=SEGMENT_MAX).contains(&capacity));
        let path = path_of(folder, sequence, "log");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        let prepare = || -> io::Result<MmapRaw> {
            use std::os::unix::fs::FileExt;
            file.set_len(u64::from(capacity))?;
            disk.allocate(&file, 0, u64::from(SLICE.min(capacity)))?;
            file.write_all_at(&header(sequence, salt, capacity), 0)?;
            let map = map(&file, capacity)?;
            // Or a fault on a page that is not there yet has the kernel "read" what was never written, which clears as much as the disk's
            // read-ahead is long: 8 MiB in one go, 14 to 36 ms, on the disk of a virtual machine.
            _ = map.advise(Advice::Random);
            Ok(map)
        };
        let map = prepare().inspect_err(|_| {
            let _ = std::fs::remove_file(&path);
        })?;
        let segment = Self::assemble(slot, sequence, salt, capacity, path, file, map, SEGMENT_HEADER);
        segment.ready.store(SLICE.min(capacity), Ordering::Release);
        for start in (0..SLICE.min(capacity)).step_by(PIECE as usize) {
            let end = (start + PIECE).min(capacity);
            segment.write_zeros(start.max(SEGMENT_HEADER), end);
            segment.populate(start, end);
        }
        Ok(Tail { segment: Arc::new(segment), position: SEGMENT_HEADER })
    }

    /// Opens an existing file for reading. Nothing counts as written until [`Segment::set_written`].
    pub(crate) fn open(folder: &Path, slot: u32, sequence: u64) -> Result<Self, HeaderError> {
        use std::os::unix::fs::FileExt;
        let path = path_of(folder, sequence, "log");
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut bytes = [0; SEGMENT_HEADER as usize];
        if file.metadata()?.len() < u64::from(SEGMENT_HEADER) {
            return Err(HeaderError::Damaged);
        }
        file.read_exact_at(&mut bytes, 0)?;
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (format, salt, capacity) = (u32_at(8), u32_at(24), u32_at(28));
        if &bytes[..8] == MAGIC && format > FORMAT && u32_at(12) == header_crc(&bytes) {
            return Err(HeaderError::Newer(format));
        }
        let size_fits = (PAGE..=SEGMENT_MAX).contains(&capacity) && capacity.is_multiple_of(PAGE);
        if !size_fits || bytes != header(sequence, salt, capacity) {
            return Err(HeaderError::Damaged);
        }
        // A file cut short gets its size back; the rest reads as zeros, which is where the records end.
        if file.metadata()?.len() < u64::from(capacity) {
            file.set_len(u64::from(capacity))?;
        }
        let map = map(&file, capacity)?;
        Ok(Self::assemble(slot, sequence, salt, capacity, path, file, map, SEGMENT_HEADER))
    }

    #[allow(clippy::too_many_arguments)]
    fn assemble(
        slot: u32,
        sequence: u64,
        salt: u32,
        capacity: u32,
        path: PathBuf,
        file: File,
        map: MmapRaw,
        written: u32,
    ) -> Self {
        Self {
            slot,
            sequence,
            salt,
            capacity,
            path,
            file,
            map,
            written: AtomicU32::new(written),
            ready: AtomicU32::new(written),
            extending: Mutex::new(&"room in a segment", ()),
            live_bytes: AtomicU64::new(0),
            oldest_clock: AtomicU64::new(u64::MAX),
            quarantined: AtomicBool::new(false),
            order: Order::default(),
            sidecar: OnceLock::new(),
        }
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

    /// Bytes of records, live or dead.
    pub(crate) fn used_bytes(&self) -> u64 {
        u64::from(self.written() - SEGMENT_HEADER)
    }

    /// Bytes of records that the index points to. Between the steps of a change, and with a sidecar whose contents lie, the
    /// count can be off: it is never more than there is.
    pub(crate) fn live(&self) -> u64 {
        self.live_bytes.load(Ordering::Relaxed).min(self.used_bytes())
    }

    pub(crate) fn dead_bytes(&self) -> u64 {
        self.used_bytes().saturating_sub(self.live())
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

    pub(crate) fn sidecar(&self) -> Option<&Sidecar> {
        self.sidecar.get()
    }

    /// States that it is sealed. Compaction reads it from one end to the other, perhaps from the disk.
    pub(crate) fn attach(&self, sidecar: Sidecar) {
        _ = self.map.advise(Advice::Normal);
        let attached = self.sidecar.set(sidecar);
        assert!(attached.is_ok(), "a segment is sealed once");
    }

    /// The first `end` bytes, of which the caller knows that they will not change.
    #[allow(unsafe_code)]
    #[inline]
    fn bytes(&self, start: u32, end: u32) -> &[u8] {
        assert!(start <= end && end <= self.capacity);
        // SAFETY: within the mapping by the assertion; callers pass `end <= written`, below which invariant 1 says
        // nothing changes, or hold a recovered segment that has no tail. Does not cover invariant 3's exceptions.
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

    /// Faults pages in for writing, so that the tail does not have to. A hint: an old kernel that lacks it only costs time.
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

    /// Has the page cache hold the zeros of a range that nothing was written to, so that nobody has to read them. A hint, too.
    fn write_zeros(&self, start: u32, end: u32) {
        use std::os::unix::fs::FileExt;
        static ZEROS: [u8; PIECE as usize] = [0; PIECE as usize];
        _ = self.file.write_all_at(&ZEROS[..(end - start) as usize], u64::from(start));
    }

    /// Makes the next slice ready, allocated and in memory. `false` when the whole segment is.
    ///
    /// Piece by piece: a writer that runs out of room meanwhile waits for one of them, and may then go on by itself.
    pub(crate) fn extend_ahead(&self, disk: &dyn Disk) -> io::Result<bool> {
        let mut start = self.ready();
        if start >= self.capacity {
            return Ok(false);
        }
        let end = (start + SLICE).min(self.capacity);
        disk.allocate(&self.file, u64::from(start), u64::from(end - start))?;
        while start < end {
            let next = (start + PIECE).min(end);
            let _turn = self.extending.lock();
            if self.ready() != start {
                // The writer went on by itself: there may be records.
                break;
            }
            self.write_zeros(start, next);
            self.populate(start, next);
            self.ready.store(next, Ordering::Release);
            start = next;
        }
        Ok(true)
    }

    /// The same for a writer that waits for the bytes below `wanted`: allocated, no more, and only if they are not ready by now.
    pub(crate) fn extend(&self, disk: &dyn Disk, wanted: u32) -> io::Result<bool> {
        let _turn = self.extending.lock();
        let ready = self.ready();
        if ready < wanted && ready < self.capacity {
            let end = (ready + SLICE).min(self.capacity);
            disk.allocate(&self.file, u64::from(ready), u64::from(end - ready))?;
            self.ready.store(end, Ordering::Release);
        }
        Ok(ready < self.capacity)
    }

    /// Gives the blocks after the last record back. Only once no tail exists.
    pub(crate) fn release_rest(&self, disk: &dyn Disk) {
        let end = self.written().next_multiple_of(PAGE);
        if end < self.capacity {
            let _ = disk.release(&self.file, u64::from(end), u64::from(self.capacity - end));
        }
    }

    /// Where the last bytes that the file system knows of end; what follows is a hole and reads as zeros.
    #[allow(unsafe_code)]
    pub(crate) fn data_end(&self) -> u32 {
        let mut end: i64 = 0;
        while end < i64::from(self.capacity) {
            // SAFETY: plain system calls on a descriptor that `self.file` keeps open.
            let data = unsafe { libc::lseek(self.file.as_raw_fd(), end, libc::SEEK_DATA) };
            if data < 0 {
                let hole = io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO);
                return if hole { end as u32 } else { self.capacity };
            }
            // SAFETY: as above.
            end = unsafe { libc::lseek(self.file.as_raw_fd(), data, libc::SEEK_HOLE) };
            if end < 0 {
                return self.capacity;
            }
        }
        self.capacity
    }

    /// Bytes that the file occupies on disk.
    pub(crate) fn disk_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.file.metadata().map_or(0, |m| m.blocks() * 512)
    }

    /// Removes the files. Readers that still hold the segment keep its bytes.
    pub(crate) fn unlink(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path)?;
        match std::fs::remove_file(self.path.with_extension("idx")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

impl Tail {
    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    pub(crate) const fn position(&self) -> u32 {
        self.position
    }

    /// Whether a record of `size` bytes fits into the segment at all.
    #[inline]
    pub(crate) fn fits(&self, size: usize) -> bool {
        size <= (self.segment.capacity - self.position) as usize
    }

    /// Whether it fits into what is ready.
    #[inline]
    pub(crate) fn is_ready(&self, size: usize) -> bool {
        size <= self.segment.ready().saturating_sub(self.position) as usize
    }

    /// Writes the record and returns its offset. The caller made sure of [`Tail::is_ready`].
    #[allow(unsafe_code)]
    #[inline]
    pub(crate) fn append(&mut self, draft: &Draft<'_>) -> u32 {
        let size = draft.size();
        assert!(self.is_ready(size));
        let offset = self.position;
        // SAFETY: within the mapping and below `ready` by the assertion; at and above `written` only this tail has
        // access (invariants 1 and 2), and `&mut self` makes it one at a time.
        let out = unsafe { std::slice::from_raw_parts_mut(self.segment.map.as_mut_ptr().add(offset as usize), size) };
        draft.write(out, self.segment.seed(offset));
        self.position += size as u32;
        self.segment.note_clock(draft.version.clock);
        self.segment.written.store(self.position, Ordering::Release);
        offset
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::Version;
    use crate::disk::{RealDisk, Space};

    const VALUE: &[u8] = &[7; 5000];
    const CAPACITY: u32 = 8 << 20;

    fn create(folder: &Path) -> Tail {
        Segment::create(&RealDisk, folder, 0, 1, 5, CAPACITY).expect("a segment")
    }

    /// Writes records as a writer does that has nobody to provide for it, until `end` bytes are written; where they are.
    fn write_until(tail: &mut Tail, end: u32) -> Vec<u32> {
        let version = Version::new(77, 3);
        let draft = Draft { key: b"key", value: VALUE, version, expires_at_ms: 0, tombstone: false };
        let mut offsets = Vec::new();
        while tail.position() + draft.size() as u32 <= end {
            if !tail.is_ready(draft.size()) {
                let wanted = tail.position() + draft.size() as u32;
                tail.segment().extend(&RealDisk, wanted).expect("room");
            }
            offsets.push(tail.append(&draft));
        }
        offsets
    }

    fn assert_intact(segment: &Segment, offsets: &[u32]) {
        for &offset in offsets {
            let intact = segment.record(offset).is_ok_and(|record| record.value() == VALUE && record.value_intact());
            assert!(intact, "the record at {offset} is not what was written");
        }
    }

    /// A disk on which a writer is faster than who provides for it: it goes on while blocks are allocated.
    struct Overtaken {
        tail: Mutex<(Tail, Vec<u32>)>,
    }

    impl Disk for Overtaken {
        fn allocate(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
            RealDisk.allocate(file, offset, len)?;
            let (tail, offsets) = &mut *self.tail.lock();
            let end = tail.segment().ready() + SLICE / 2;
            offsets.extend(write_until(tail, end));
            Ok(())
        }

        fn release(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
            RealDisk.release(file, offset, len)
        }

        fn sync(&self, file: &File) -> io::Result<()> {
            RealDisk.sync(file)
        }

        fn space(&self, folder: &Path) -> io::Result<Space> {
            RealDisk.space(folder)
        }
    }

    #[test]
    fn zeros_never_go_over_what_a_writer_wrote_that_overtook() {
        let folder = tempfile::tempdir().expect("a folder");
        let tail = create(folder.path());
        let segment = tail.segment().clone();
        let disk = Overtaken { tail: Mutex::new(&"test", (tail, Vec::new())) };
        for _ in 0..3 {
            assert!(segment.extend_ahead(&disk).expect("room"));
        }
        let offsets = disk.tail.lock().1.clone();
        assert!(offsets.len() > 3 * 100, "{}", offsets.len());
        assert_intact(&segment, &offsets);
    }

    #[test]
    fn who_writes_and_who_provides_may_race() {
        for _ in 0..20 {
            let folder = tempfile::tempdir().expect("a folder");
            let mut tail = create(folder.path());
            let segment = tail.segment().clone();
            let (begin, begun) = mpsc::channel();
            let provider = thread::spawn({
                let segment = segment.clone();
                move || {
                    begin.send(()).expect("the test is there");
                    while segment.extend_ahead(&RealDisk).expect("room") {}
                }
            });
            begun.recv().expect("it has begun");
            let offsets = write_until(&mut tail, CAPACITY);
            provider.join().expect("no panic");
            assert_eq!(segment.ready(), CAPACITY);
            assert_intact(&segment, &offsets);
        }
    }

    /// Pages of the segment that are in memory.
    #[allow(unsafe_code)]
    fn resident(segment: &Segment) -> usize {
        let mut pages = vec![0_u8; (CAPACITY / PAGE) as usize];
        // SAFETY: the whole mapping, and a byte for each of its pages.
        let result = unsafe { libc::mincore(segment.map.as_mut_ptr().cast(), CAPACITY as usize, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|&&page| page & 1 == 1).count()
    }

    #[test]
    fn nothing_is_brought_into_memory_beyond_what_is_ready() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut tail = create(folder.path());
        let segment = tail.segment().clone();
        let pages = |bytes: u32| (bytes / PAGE) as usize;
        assert_eq!(resident(&segment), pages(SLICE));
        assert!(segment.extend_ahead(&RealDisk).expect("room"));
        assert_eq!((segment.ready(), resident(&segment)), (2 * SLICE, pages(2 * SLICE)));
        // Nor does a writer without anybody who provides have more read than it writes.
        let offsets = write_until(&mut tail, 2 * SLICE + SLICE / 2);
        assert_intact(&segment, &offsets);
        let resident = resident(&segment);
        assert!(resident <= pages(2 * SLICE + SLICE / 2) + 16, "{resident} pages");
    }
}

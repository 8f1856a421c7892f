//! A segment as the index and compaction know it: its place in the segment table, how much of it is
//! live, and its key order.
//!
//! Owner: shared; each figure says who changes it. Invariant: a segment is sealed once, and only
//! when it has no [`Tail`].

use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use koltso_instrument::Mutex;

use crate::env::Env;
use crate::order::Order;
use crate::record::Draft;
use crate::segment::{SEGMENT_HEADER, Segment};
use crate::sidecar::Sidecar;

const NOT_QUARANTINED: u64 = u64::MAX;

/// Bytes come from the [`Segment`] inside, to which this derefs.
#[derive(Debug)]
pub(crate) struct IndexedSegment {
    segment: Segment,
    /// Place in the segment table, as index entries name it.
    pub(crate) slot: u32,
    /// Bytes of records that the index points to.
    live_bytes: AtomicU64,
    /// A live record here is damaged or cannot be moved: compaction leaves the segment alone while
    /// this much is live, in bytes. [`NOT_QUARANTINED`] if there is none.
    quarantined_at: AtomicU64,
    /// Sorted runs of what was written, until the sidecar takes over.
    pub(crate) order: Order,
    sidecar: OnceLock<Sidecar>,
    /// Pages that could not be had, of those the ones that were reported.
    faults_reported: AtomicU32,
    /// Another process wrote it and did not seal it: see [`IndexedSegment::settle`].
    unsettled: Mutex<bool>,
}

impl Deref for IndexedSegment {
    type Target = Segment;

    #[inline]
    fn deref(&self) -> &Segment {
        &self.segment
    }
}

impl IndexedSegment {
    pub(crate) fn new(segment: Segment, slot: u32) -> Self {
        Self {
            segment,
            slot,
            live_bytes: AtomicU64::new(0),
            quarantined_at: AtomicU64::new(NOT_QUARANTINED),
            order: Order::default(),
            sidecar: OnceLock::new(),
            faults_reported: AtomicU32::new(0),
            unsettled: Mutex::new(&"unsettled segment", false),
        }
    }

    /// States that recovery had to read it through.
    pub(crate) fn was_found_unsealed(&mut self) {
        *self.unsettled.get_mut() = true;
    }

    /// Makes sure that the next sync covers everything in it. If a sync failed in the process that
    /// wrote it, the kernel may take pages for clean that are not on disk, and the next sync would
    /// succeed without them.
    pub(crate) fn settle(&self, env: &dyn Env) -> io::Result<()> {
        let mut unsettled = self.unsettled.lock();
        if *unsettled {
            self.write_again(env)?;
            *unsettled = false;
        }
        Ok(())
    }

    /// Bytes of records, live or dead.
    pub(crate) fn used_bytes(&self) -> u64 {
        u64::from(self.written() - SEGMENT_HEADER)
    }

    /// The index points to `bytes` more of it.
    #[inline]
    pub(crate) fn add_live(&self, bytes: u64) {
        self.live_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The index points to `bytes` less of it.
    #[inline]
    pub(crate) fn sub_live(&self, bytes: u64) {
        self.live_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes of records that the index points to. Between the steps of a change, and with a sidecar
    /// whose contents lie, the count can be off: it is never more than there is.
    pub(crate) fn live(&self) -> u64 {
        self.live_bytes.load(Ordering::Relaxed).min(self.used_bytes())
    }

    /// Whether nothing in it is live.
    pub(crate) fn is_free(&self) -> bool {
        self.live_bytes.load(Ordering::Relaxed) == 0
    }

    pub(crate) fn dead_bytes(&self) -> u64 {
        self.used_bytes().saturating_sub(self.live())
    }

    /// Has compaction leave it alone, until less is live: it may be the damaged record that was
    /// overwritten or repaired then.
    pub(crate) fn quarantine(&self) {
        self.quarantined_at.store(self.live_bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(crate) fn is_quarantined(&self) -> bool {
        let at = self.quarantined_at.load(Ordering::Relaxed);
        at != NOT_QUARANTINED && self.live_bytes.load(Ordering::Relaxed) >= at
    }

    /// Pages of the segment and its sidecar that could not be had. What is looked for there and not
    /// found may be there all the same.
    pub(crate) fn all_faults(&self) -> u32 {
        self.faults() + self.sidecar().map_or(0, Sidecar::faults)
    }

    /// How many of these nobody has reported yet; they count as reported now. One thread at a time.
    pub(crate) fn new_faults(&self) -> u32 {
        let faults = self.all_faults();
        faults.saturating_sub(self.faults_reported.swap(faults, Ordering::Relaxed))
    }

    /// `None` until it is sealed.
    pub(crate) fn sidecar(&self) -> Option<&Sidecar> {
        self.sidecar.get()
    }

    /// States that it is sealed.
    pub(crate) fn attach(&self, sidecar: Sidecar) {
        self.advise_random();
        self.close_owners_file();
        let attached = self.sidecar.set(sidecar);
        assert!(attached.is_ok(), "a segment is sealed once");
    }
}

/// The right to append to one segment. There is one a segment, and it is not `Clone`.
#[derive(Debug)]
pub(crate) struct Tail {
    segment: Arc<IndexedSegment>,
    position: u32,
}

impl Tail {
    /// For a segment that was just made.
    pub(crate) fn new(segment: Arc<IndexedSegment>) -> Self {
        assert_eq!(segment.written(), SEGMENT_HEADER, "a segment has one tail, from its beginning");
        Self { segment, position: SEGMENT_HEADER }
    }

    pub(crate) fn segment(&self) -> &Arc<IndexedSegment> {
        &self.segment
    }

    pub(crate) const fn position(&self) -> u32 {
        self.position
    }

    /// Whether a record of `size` bytes fits into the segment at all.
    #[inline]
    pub(crate) fn fits(&self, size: usize) -> bool {
        size <= (self.segment.capacity() - self.position) as usize
    }

    /// Whether a record of `size` bytes goes into another segment, where these are rolled at
    /// `roll_at`.
    #[inline]
    pub(crate) fn is_full(&self, size: usize, roll_at: u64) -> bool {
        u64::from(self.position) >= roll_at || !self.fits(size)
    }

    /// Whether it fits into what is ready.
    #[inline]
    pub(crate) fn is_ready(&self, size: usize) -> bool {
        size <= self.segment.ready().saturating_sub(self.position) as usize
    }

    /// Writes the record and returns its offset; `None` if the file lacks a page there: nothing more
    /// can be written to the segment then. The caller made sure of [`Tail::is_ready`].
    #[allow(unsafe_code)]
    #[inline]
    pub(crate) fn append(&mut self, draft: &Draft<'_>) -> Option<u32> {
        let size = draft.size();
        assert!(self.is_ready(size));
        let offset = self.position;
        // SAFETY: below `ready` by the assertion; `position` is what was written, as only this tail
        // appends to its segment, and `&mut self` makes it one at a time.
        if !unsafe { self.segment.append_at(offset, draft) } {
            return None;
        }
        self.position += size as u32;
        Some(offset)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::env::RealEnv;
    use crate::segment::SLICE;
    use koltso_model::{Flags, Version};

    const VALUE: &[u8] = &[7; 5000];
    const CAPACITY: u32 = 8 << 20;

    fn create(folder: &Path) -> Tail {
        Tail::new(Arc::new(IndexedSegment::new(
            Segment::create(&RealEnv, folder, 1, 5, CAPACITY).expect("a segment"),
            0,
        )))
    }

    /// Writes records as a writer does that has nobody to provide for it, until `end` bytes are
    /// written; where they are.
    fn write_until(tail: &mut Tail, end: u32) -> Vec<u32> {
        let version = Version::new(77, 3);
        let flags = Flags::new(1);
        let draft = Draft { key: b"key", value: VALUE, version, expires_at_ms: 0, flags, attributes: &[] };
        let mut offsets = Vec::new();
        while tail.position() + draft.size() as u32 <= end {
            if !tail.is_ready(draft.size()) {
                let wanted = tail.position() + draft.size() as u32;
                tail.segment().extend(&RealEnv, wanted, SLICE).expect("room");
            }
            offsets.push(tail.append(&draft).expect("the file is whole"));
        }
        offsets
    }

    fn assert_intact(segment: &Segment, offsets: &[u32]) {
        for &offset in offsets {
            let intact = segment.record(offset).is_ok_and(|record| record.value() == VALUE && record.value_intact());
            assert!(intact, "the record at {offset} is not what was written");
        }
    }

    /// An environment in which a writer is faster than who provides for it: it goes on while blocks
    /// are allocated.
    struct Overtaken {
        tail: Mutex<(Tail, Vec<u32>)>,
    }

    impl Env for Overtaken {
        fn allocate(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
            RealEnv.allocate(file, offset, len)?;
            let (tail, offsets) = &mut *self.tail.lock();
            let end = tail.segment().ready() + SLICE / 2;
            offsets.extend(write_until(tail, end));
            Ok(())
        }
    }

    #[test]
    fn zeros_never_go_over_what_a_writer_wrote_that_overtook() {
        let folder = tempfile::tempdir().expect("a folder");
        let tail = create(folder.path());
        let segment = tail.segment().clone();
        let env = Overtaken { tail: Mutex::new(&"test", (tail, Vec::new())) };
        for _ in 0..3 {
            assert!(segment.extend_ahead(&env).expect("room"));
        }
        let offsets = env.tail.lock().1.clone();
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
                    while segment.extend_ahead(&RealEnv).expect("room") {}
                }
            });
            begun.recv().expect("it has begun");
            let offsets = write_until(&mut tail, CAPACITY);
            provider.join().expect("no panic");
            assert_eq!(segment.ready(), CAPACITY);
            assert_intact(&segment, &offsets);
        }
    }

    #[test]
    fn nothing_is_brought_into_memory_beyond_what_is_ready() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut tail = create(folder.path());
        let segment = tail.segment().clone();
        let pages = |bytes: u32| (bytes / 4096) as usize;
        assert_eq!(segment.resident_pages(), pages(SLICE));
        assert!(segment.extend_ahead(&RealEnv).expect("room"));
        assert_eq!((segment.ready(), segment.resident_pages()), (2 * SLICE, pages(2 * SLICE)));
        // Nor does a writer without anybody who provides have more read than it writes.
        let offsets = write_until(&mut tail, 2 * SLICE + SLICE / 2);
        assert_intact(&segment, &offsets);
        let resident = segment.resident_pages();
        assert!(resident <= pages(2 * SLICE + SLICE / 2) + 16, "{resident} pages");
    }
}

//! Bringing the index back: sealed segments from their sidecars, the others by reading them
//! through.
//!
//! What a place that is no intact record means depends on what follows it in the segment:
//!
//! | header and key | value | an intact record follows | verdict |
//! |---|---|---|---|
//! | intact | intact | | a record |
//! | intact | not | yes, and sectors are missing | torn: skipped |
//! | intact | not | yes | damaged: the index names it, so that it answers "damaged" and not with an older version |
//! | intact | not | no | torn: cut off |
//! | not | | yes, and sectors are missing | torn: skipped |
//! | not | | yes | damaged, and nobody can say which key: counted, skipped |
//! | not, or zeros | | no | the end; what is not zero there is torn and cut off |
//!
//! "Cut off" means that it does not count as written. Nobody appends to a recovered segment, so it
//! is never reached again. Bounds: one pass over each unsealed segment; two threads or as many as
//! there are cores, each with 8 MiB to sort in.

use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use koltso_instrument::Mutex;
use koltso_model::{KeyHash, Version};

use crate::damage::DamageLog;
use crate::digest::{Item, Leaf};
use crate::entry::SLOTS;
use crate::env::Env;
use crate::error::OpenError;
use crate::folder::Folder;
use crate::hash::{IndexHash, STRIPES};
use crate::header::HeaderError;
use crate::index::{Index, Locked, Place};
use crate::indexed::IndexedSegment;
use crate::record::{ALIGN, Record};
use crate::segment::{SEGMENT_HEADER, Segment, path_of};
use crate::sidecar::Sidecar;

/// Records that a thread takes in hand at once: 8 MiB while it sorts them.
const PIECE: u32 = 128 << 10;

/// What a disk writes at once, in bytes.
const SECTOR: usize = 512;

/// What opening found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recovered {
    /// Segments opened, and how many of these had to be read through because they had no sidecar.
    pub segments: u64,
    /// See there.
    pub scanned: u64,
    /// Keys found, tombstones included.
    pub keys: u64,
    /// Places found damaged, segments without an intact header among them.
    pub damaged: u64,
    /// Of these, segments: their files are left where they are, and nothing in them is served.
    pub unreadable_segments: u64,
    /// Damaged places of which nobody can say whose they were: what stands for those keys now is older,
    /// or nothing. (Segments without an intact header are not among them.) It is told at each start until
    /// [`crate::Store::loss_is_known`].
    pub nameless: u64,
    /// Bytes of half-written records cut off or skipped.
    pub torn_bytes: u64,
    /// Places skipped because sectors are missing there, though whole records follow. What stands
    /// for their keys is older.
    pub torn_records: u64,
    /// The newest version's clock, 0 in an empty store: the caller's clock must go on above it.
    pub newest_clock: u64,
}

pub(crate) struct Found {
    pub(crate) segments: Vec<Arc<IndexedSegment>>,
    pub(crate) unsealed: Vec<Arc<IndexedSegment>>,
    pub(crate) next_sequence: u64,
    pub(crate) summary: Recovered,
}

/// What reading a segment through found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    /// Offsets of records with an intact header, ascending.
    pub(crate) offsets: Vec<u32>,
    /// Of these, the ones whose value is damaged, and places where a header is.
    pub(crate) damaged: Vec<u32>,
    /// Where the records end.
    pub(crate) end: u32,
    /// Bytes after the end that are not zero, as far as a torn record reaches, and those of torn
    /// records before it.
    pub(crate) torn: u32,
    /// Torn records before the end, or neighbours of which no header is intact.
    pub(crate) skipped: u32,
}

/// Reads `bytes`, the file from its start, through as records that begin below `limit`; `salt` is
/// the segment's.
pub(crate) fn scan(bytes: &[u8], limit: usize, salt: u32) -> Scan {
    let mut scan = Scan { end: SEGMENT_HEADER, ..Scan::default() };
    // Since the last intact record: what is only damage if another intact one follows.
    let mut doubtful: Vec<(u32, bool)> = Vec::new();
    let mut at = SEGMENT_HEADER as usize;
    while at < limit {
        match Record::checked(&bytes[at..], crate::record::seed(salt, at as u32)) {
            Ok(record) => {
                let end = at + record.size();
                if record.value_intact() {
                    let doubted = std::mem::take(&mut doubtful);
                    for (number, &(offset, header_intact)) in doubted.iter().enumerate() {
                        let end = doubted.get(number + 1).map_or(at as u32, |&(next, _)| next);
                        if lacks_a_write(bytes, offset as usize..end as usize, header_intact) {
                            scan.torn += end - offset;
                            scan.skipped += 1;
                            continue;
                        }
                        if header_intact {
                            scan.offsets.push(offset);
                        }
                        scan.damaged.push(offset);
                    }
                    scan.offsets.push(at as u32);
                    scan.end = end.min(bytes.len()) as u32;
                } else {
                    doubtful.push((at as u32, true));
                }
                at = end;
            }
            Err(_) => {
                if doubtful.last().is_none_or(|&(_, header_intact)| header_intact) {
                    doubtful.push((at as u32, false));
                }
                at = next_candidate(&bytes[..limit], at + ALIGN);
            }
        }
    }
    let rest = &bytes[(scan.end as usize).min(limit)..limit];
    let torn_end = rest.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
    scan.torn += torn_end as u32;
    scan
}

/// Whether a place of an unsealed segment that is no intact record looks as if the power had been
/// lost before all its sectors were written: in one of these the first words of 8 bytes are still
/// zeros, or the last ones, and bytes that are in doubt are among them.
///
/// Such a record was not acknowledged in the mode "always", since no sync of it had completed, and
/// what was before it stands. Words that are zeros because they were written so look the same. So
/// only zeros count that a lost write can have left: they begin where the sector or the place does,
/// or reach to the end of the sector, whatever lies there, since a log is written forwards.
fn lacks_a_write(bytes: &[u8], place: Range<usize>, header_intact: bool) -> bool {
    let doubt = in_doubt(&bytes[..place.end], place.start, header_intact);
    let is_zero = |at: &usize| bytes[*at..].first_chunk() == Some(&[0; ALIGN]);
    (doubt.start / SECTOR..doubt.end.div_ceil(SECTOR)).any(|sector| {
        let (begin, end) = ((sector * SECTOR).max(place.start), ((sector + 1) * SECTOR).min(bytes.len()));
        let first = (begin..end).step_by(ALIGN).take_while(is_zero).count() * ALIGN;
        let last = (begin..end).step_by(ALIGN).rev().take_while(is_zero).count() * ALIGN;
        (first > 0 && begin + first > doubt.start) || (last > 0 && end - last < doubt.end)
    })
}

/// Which bytes of a place are not known to be what was written; the place ends with `bytes`.
fn in_doubt(bytes: &[u8], start: usize, header_intact: bool) -> Range<usize> {
    match Record::view(&bytes[start..]) {
        // Its checksum covers all but the value.
        Ok(record) if header_intact => start + record.value_start()..bytes.len(),
        // Lengths and value fit, so it is in what is before the value.
        Ok(record) if start + record.size() == bytes.len() && !record.value().is_empty() && record.value_intact() => {
            start..start + record.value_start()
        }
        _ => start..bytes.len(),
    }
}

/// The next place that is not zeros.
fn next_candidate(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while at + ALIGN <= bytes.len() && bytes[at..at + ALIGN] == [0; ALIGN] {
        at += ALIGN;
    }
    // A header may begin with zeros in theory; its checksum is in the first four bytes, and both
    // checksums being zero takes an empty value and a one in 2^32 chance. Going back one unit would
    // not help then: the clock follows.
    at
}

/// Which segment a file of the folder belongs to, and its extension.
fn sequence_of(name: &OsStr) -> Option<(u64, &str)> {
    let (stem, extension) = name.to_str()?.split_once('.')?;
    Some((u64::from_str_radix(stem, 16).ok().filter(|_| stem.len() == 16)?, extension))
}

/// The segments of a folder, ascending.
pub(crate) fn sequences(env: &dyn Env, folder: &Path) -> io::Result<Vec<u64>> {
    let entries = env.list(folder)?;
    let all = entries.iter().filter_map(|entry| sequence_of(&entry.name));
    let mut found: Vec<u64> = all.filter(|&(_, extension)| extension == "log").map(|(sequence, _)| sequence).collect();
    found.sort_unstable();
    Ok(found)
}

/// Removes what a crash left between two steps: half-written sidecars, and sidecars whose segment
/// is gone.
fn tidy(env: &dyn Env, folder: &Folder, sequences: &[u64]) -> io::Result<()> {
    for entry in env.list(folder.path())? {
        let left_over = match sequence_of(&entry.name) {
            Some((_, "idx-new")) => true,
            Some((sequence, "idx")) => sequences.binary_search(&sequence).is_err(),
            _ => false,
        };
        let path = folder.path().join(&entry.name);
        if left_over && let Err(e) = env.remove(&path) {
            tracing::warn!("the left-over file {} cannot be removed: {e}", path.display());
        }
    }
    Ok(())
}

/// Whether a segment was sealed. What cannot be found out counts as yes.
pub(crate) fn has_sidecar(env: &dyn Env, folder: &Path, sequence: u64) -> bool {
    let opened = env.open_to_read(&path_of(folder, sequence, "idx"));
    !opened.is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}

struct Opened {
    segment: Arc<IndexedSegment>,
    scan: Option<Scan>,
    /// Damaged places of unknown keys.
    nameless: u64,
    newest_clock: u64,
}

fn open_one(
    env: &dyn Env,
    folder: &Folder,
    slot: u32,
    sequence: u64,
    damage: &DamageLog,
) -> Result<Option<Opened>, OpenError> {
    let mut segment = match Segment::open(env, folder.path(), sequence) {
        Ok(segment) => IndexedSegment::new(segment, slot),
        // Made just before a crash or a power loss: not even the header had arrived, and there is
        // nothing behind it. (What was sealed had records. Then it is damage.)
        Err(HeaderError::Unwritten) if !has_sidecar(env, folder.path(), sequence) => {
            tracing::warn!("the segment {sequence:016x}.log has nothing in it, not even a header, and is removed");
            let _ = env.remove(&path_of(folder.path(), sequence, "log"));
            return Ok(None);
        }
        Err(HeaderError::Damaged | HeaderError::Unwritten) => {
            damage.found_unreadable(sequence);
            return Ok(None);
        }
        Err(newer @ HeaderError::Newer(_)) => {
            return Err(OpenError::NewerSegment { segment: sequence, reason: newer.to_string() });
        }
        Err(HeaderError::Io(error)) => {
            return Err(OpenError::Io { folder: folder.path().to_path_buf(), error });
        }
    };
    if let Some(sidecar) = Sidecar::open(env, folder.path(), folder.secret(), &segment) {
        segment.set_written(sidecar.data_end.max(SEGMENT_HEADER));
        let newest_clock = sidecar.newest_clock;
        segment.note_clock(sidecar.oldest_clock);
        if sidecar.damaged > 0 {
            tracing::warn!("segment {sequence:016x}.log had {} damaged records when it was sealed", sidecar.damaged);
        }
        segment.attach(sidecar);
        return Ok(Some(Opened { segment: Arc::new(segment), scan: None, nameless: 0, newest_clock }));
    }
    segment.was_found_unsealed();
    segment.advise_sequential();
    let end = segment.data_end(env);
    let mut scan = scan(segment.recovery_bytes(), end as usize, segment.salt());
    segment.advise_random();
    segment.set_written(scan.end);
    let mut newest_clock = 0;
    for &offset in &scan.offsets {
        if let Ok(record) = segment.record(offset) {
            newest_clock = newest_clock.max(record.version().clock);
            segment.note_clock(record.version().clock);
        }
    }
    for &offset in &scan.damaged {
        damage.found(&segment, offset);
    }
    if scan.skipped > 0 {
        damage.skipped(sequence, scan.skipped);
    }
    let nameless = scan.damaged.iter().filter(|offset| scan.offsets.binary_search(offset).is_err()).count() as u64;
    segment.order.recover(&segment, std::mem::take(&mut scan.offsets), scan.damaged.len() as u32);
    Ok(Some(Opened { segment: Arc::new(segment), scan: Some(scan), nameless, newest_clock }))
}

/// Runs `work` for each number below `count` on all cores.
fn in_parallel(count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 16).min(count.max(1));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    work(number);
                }
            });
        }
    });
}

pub(crate) fn recover(env: &dyn Env, folder: &Folder, index: &Index, damage: &DamageLog) -> Result<Found, OpenError> {
    let io_error = |error| OpenError::Io { folder: folder.path().to_path_buf(), error };
    let sequences = sequences(env, folder.path()).map_err(io_error)?;
    if sequences.len() >= SLOTS {
        return Err(OpenError::Option(format!(
            "{} segments are more than the {SLOTS} a node can hold",
            sequences.len()
        )));
    }
    let next_sequence = sequences.last().map_or(1, |last| last + 1);
    let opened = Mutex::new(&"recovered segments", Vec::new());
    let failed = Mutex::new(&"failed recovery", None);
    in_parallel(sequences.len(), |number| match open_one(env, folder, number as u32, sequences[number], damage) {
        Ok(Some(one)) => opened.lock().push(one),
        Ok(None) => {}
        Err(e) => *failed.lock() = Some(e),
    });
    if let Some(error) = failed.into_inner() {
        return Err(error);
    }
    tidy(env, folder, &sequences).map_err(io_error)?;
    let mut opened = opened.into_inner();
    opened.sort_unstable_by_key(|one| one.segment.sequence);
    // Nothing in it: as good as never made.
    opened.retain(|one| {
        let empty = one.segment.written() == SEGMENT_HEADER && !one.segment.is_quarantined();
        if empty && let Err(e) = one.segment.unlink(env) {
            tracing::warn!("an empty segment cannot be removed: {e}");
        }
        !empty
    });
    let keys: u64 = opened
        .iter()
        .map(|one| one.segment.sidecar().map_or(one.segment.order.recovered_len(), |s| u64::from(s.len())))
        .sum();
    index.reserve(keys);
    for one in &opened {
        index.install(one.segment.clone());
    }
    // The places of an unsealed segment stay in their order: of a version that is there twice, the
    // first counts.
    let pieces: Vec<(&Arc<IndexedSegment>, Range<u32>)> = opened
        .iter()
        .flat_map(|Opened { segment, .. }| {
            let (len, step) = segment.sidecar().map_or((1, 1), |sidecar| (sidecar.len(), PIECE));
            (0..len).step_by(step as usize).map(move |from| (segment, from..len.min(from + step)))
        })
        .collect();
    in_parallel(pieces.len(), |number| load(index, pieces[number].0, pieces[number].1.clone()));
    // What is live is known only now.
    for one in opened.iter().filter(|one| one.segment.is_quarantined()) {
        one.segment.quarantine();
    }

    let mut summary = Recovered {
        segments: opened.len() as u64,
        damaged: damage.count(),
        unreadable_segments: damage.unreadable_segments(),
        torn_records: damage.torn_records(),
        ..Recovered::default()
    };
    let mut unsealed = Vec::new();
    for one in &opened {
        summary.newest_clock = summary.newest_clock.max(one.newest_clock);
        summary.nameless += one.nameless;
        if let Some(scan) = &one.scan {
            summary.scanned += 1;
            summary.torn_bytes += u64::from(scan.torn);
            unsealed.push(one.segment.clone());
        }
    }
    summary.keys = index.counts().0;
    let segments = opened.into_iter().map(|one| one.segment).collect();
    Ok(Found { segments, unsealed, next_sequence, summary })
}

/// What the index has to know of a record, with the stripe to sort by.
#[derive(Clone, Copy, Default)]
struct Light {
    hash: IndexHash,
    offset: u32,
    /// In bytes; the lowest bit says tombstone.
    size: u32,
    item: Item,
}

/// Puts a segment's records into the index, where they are the newest: of a sidecar those of
/// `range`, else all.
fn load(index: &Index, segment: &IndexedSegment, range: Range<u32>) {
    let mut piece: Vec<Light> = Vec::with_capacity(PIECE as usize);
    if let Some(sidecar) = segment.sidecar() {
        piece.extend(range.map(|number| sidecar.entry(number)).filter_map(|entry| {
            // Only from an intact sidecar with wrong contents, but nothing may name a place outside
            // the records.
            let end = u64::from(entry.offset) + u64::from(entry.size);
            let inside = entry.offset >= SEGMENT_HEADER && end <= u64::from(segment.written());
            let size = entry.size | u32::from(entry.flags.is_tombstone());
            let item = Item::of(entry.leaf, entry.version, entry.flags);
            inside.then_some(Light { hash: entry.hash, offset: entry.offset, size, item })
        }));
        load_piece(index, segment, &piece);
        return;
    }
    for offsets in segment.order.recovered().iter().flat_map(|offsets| offsets.chunks(PIECE as usize)) {
        piece.clear();
        piece.extend(offsets.iter().filter_map(|&offset| {
            let record = segment.record(offset).ok()?;
            let size = record.size() as u32 | u32::from(record.is_tombstone());
            let item = Item::of(Leaf::of(KeyHash::of(record.key())), record.version(), record.flags());
            Some(Light { hash: index.hash(record.key()), offset, size, item })
        }));
        load_piece(index, segment, &piece);
    }
}

/// Sorts by stripe first: each stripe is locked once and its table is in the cache for all that
/// goes there, where record by record every single one would wait for memory.
fn load_piece(index: &Index, segment: &IndexedSegment, piece: &[Light]) {
    let mut starts = vec![0_u32; STRIPES + 1];
    for light in piece {
        starts[light.hash.stripe() + 1] += 1;
    }
    for stripe in 0..STRIPES {
        starts[stripe + 1] += starts[stripe];
    }
    let mut sorted = vec![Light::default(); piece.len()];
    let mut next = starts.clone();
    for light in piece {
        let place = &mut next[light.hash.stripe()];
        sorted[*place as usize] = *light;
        *place += 1;
    }
    for bounds in starts.windows(2) {
        let lights = &sorted[bounds[0] as usize..bounds[1] as usize];
        let Some(first) = lights.first() else {
            continue;
        };
        lights.iter().for_each(|light| index.digests().prefetch(light.item));
        let mut stripe = index.lock(first.hash);
        for light in lights {
            admit(&mut stripe, segment, light);
        }
    }
}

fn admit(stripe: &mut Locked<'_>, segment: &IndexedSegment, light: &Light) {
    let mut place = Place {
        hash: light.hash,
        version: Version::default(),
        segment,
        offset: light.offset,
        size: (light.size & !1) as usize,
        tombstone: light.size & 1 != 0,
        item: light.item,
    };
    // Only a key whose tag is there already has to be read: most are new, and their records stay
    // untouched on disk.
    if !stripe.has_tag(place.hash) {
        stripe.insert_new(&place);
        return;
    }
    match segment.record(place.offset) {
        Ok(record) if segment.header_intact(place.offset, &record) => {
            place.version = record.version();
            stripe.offer(record.key(), &place);
        }
        _ => {
            let known = segment.sidecar().and_then(|sidecar| sidecar.known_at(place.offset));
            place.version = known.map_or(Version::default(), |known| known.entry.version);
            stripe.offer_damaged(&place, known.as_ref());
        }
    }
}

/// Reads arbitrary bytes through as a segment, for fuzzing: offsets found, damaged, end.
#[doc(hidden)]
#[must_use]
pub fn fuzz_scan(bytes: &[u8], salt: u32) -> (usize, usize, u32) {
    if bytes.len() < SEGMENT_HEADER as usize {
        return (0, 0, 0);
    }
    let scan = scan(bytes, bytes.len(), salt);
    assert!(scan.end as usize <= bytes.len());
    assert!(scan.offsets.windows(2).all(|pair| pair[0] < pair[1]));
    (scan.offsets.len(), scan.damaged.len(), scan.end)
}

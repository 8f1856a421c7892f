//! The hint log of one peer: a folder of append-only segment files, and the position up to which
//! the peer has confirmed.
//!
//! Owner: one thread, the only one that appends, reads and removes. (The lock of the data folder
//! ensures that no other process uses the hint folder.) The bytes are those of `entry`, the files
//! those of `docs/hint-format.md`.
//!
//! Bounds: `bytes_max` of files and `age_max`. Beyond either, the oldest segments are dropped as a
//! whole, whatever is in them.
//!
//! Invariants:
//! 1. Nothing is appended to an old segment after a restart, and no sequence number is used twice
//!    while a position names it: a position never comes to mean other entries than those that were
//!    confirmed.
//! 2. A segment's file ends with its last entry: what a failed write has left is cut off before
//!    anything else is written.
//! 3. Entries are confirmed in order. Only the first segment can be partly confirmed; a segment
//!    that is confirmed as a whole is unlinked.
//! 4. If a hint that was appended is lost, the peer has been marked as needing repair.
//!
//! Tested in `log/tests.rs` beside a model, with kills, cuts, flipped bits and failed writes.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use koltso_instrument::waiting;
use koltso_model::Record;

use crate::entry::{self, FORMAT, HEADER, Header, Position, Scanner};

/// The file that says that the peer missed more than its hints contain. An operator removes it
/// after a repair.
const NEEDS_REPAIR: &str = "needs-repair";
const CONFIRMED: &str = "confirmed";
const SUFFIX: &str = ".hints";
/// Files are their owner's alone.
const FILE_MODE: u32 = 0o600;
const READ_BUFFER: usize = 64 << 10;
/// A segment counts as full as soon as its oldest entry is older than `age_max` divided by this, so
/// that hints outlive `age_max` by no more than that share.
const AGE_ROLL_SHARE: u64 = 8;
/// At least this many segments fit into `bytes_max`, so that dropping one does not drop everything.
const SEGMENTS_MIN: u64 = 4;

/// Why the hints cannot be used. Nothing on disk was changed.
#[derive(Debug, thiserror::Error)]
pub enum HintError {
    /// A newer build wrote the hints.
    #[error("the hints in {file} have format {format}, and this build reads formats up to {FORMAT}")]
    NewerFormat {
        /// The path of the segment.
        file: PathBuf,
        /// The format in its header.
        format: u32,
    },
    /// The folder cannot be created, read or written.
    #[error("the hint folder {folder} cannot be used: {error}")]
    Io {
        /// The peer's folder.
        folder: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// The bounds of a log; see `Options`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub bytes_max: u64,
    pub age_max_ms: u64,
    pub segment_size: u64,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    sequence: u64,
    salt: u32,
    /// The length of the file, where the next entry goes.
    end: u64,
    /// How many entries are not confirmed.
    pending: u64,
    oldest_ms: u64,
    newest_ms: u64,
}

/// Hints that were read back, to be sent and then confirmed.
#[derive(Debug, Default)]
pub(crate) struct Window {
    sequence: u64,
    pub records: Vec<Record<Bytes>>,
    /// For each record, where its entry ends and when it was written.
    ends: Vec<(u64, u64)>,
}

/// Lets one message a minute through.
#[derive(Debug, Default)]
pub(crate) struct OncePerMinute(Option<Instant>);

impl OncePerMinute {
    pub(crate) fn due(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() >= Duration::from_secs(60));
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

pub(crate) struct Log {
    folder: PathBuf,
    /// There was no room for the folder when it was to be made.
    lacks_folder: bool,
    /// The peer's name in messages.
    peer: String,
    bounds: Bounds,
    /// The segments, oldest first.
    segments: VecDeque<Segment>,
    /// The file of the last segment; `None` unless entries are being appended to it.
    active: Option<File>,
    reader: Option<(u64, File)>,
    /// The offset in the first segment up to which everything is confirmed.
    confirmed: u64,
    /// When the last confirmed hint was written, in milliseconds since the Unix epoch.
    confirmed_ms: u64,
    position_changed: bool,
    bytes_dirty: bool,
    names_dirty: bool,
    next_sequence: u64,
    bytes: u64,
    pending: u64,
    dropped: u64,
    needs_repair: bool,
    marker_on_disk: bool,
    drop_was_said: bool,
    cannot_append: OncePerMinute,
    cannot_sync: OncePerMinute,
    buffer: Vec<u8>,
    /// `FileExt::write_all_at`, or a function that a test puts in its place.
    write: fn(&File, &[u8], u64) -> io::Result<()>,
    /// `File::sync_data`, or a function that a test puts in its place.
    sync: fn(&File) -> io::Result<()>,
    /// The segments that `open` has found and `load` has not read yet.
    unread: Vec<u64>,
    position_found: Option<Position>,
}

fn sequence_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let sequence = u64::from_str_radix(digits, 16).ok()?;
    (name == name_of(sequence)).then_some(sequence)
}

fn name_of(sequence: u64) -> String {
    format!("{sequence:016x}{SUFFIX}")
}

/// A number that differs from run to run, made from the standard library's random hasher keys.
fn random() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) as u32
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Makes a peer's folder and those above it, for their owner only, where they are not there yet.
fn make_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).recursive(true).create(folder)
}

/// The names of the files in a folder. Something else in the place of a file of ours, such as a
/// symbolic link, is an error: nothing that lies outside of the data folder is read or written.
fn list(folder: &Path) -> io::Result<Vec<OsString>> {
    let is_foreign = |name: &OsString, is_file: bool| {
        !is_file && name.to_str().is_some_and(|it| it.ends_with(SUFFIX) || [CONFIRMED, NEEDS_REPAIR].contains(&it))
    };
    let is_link = |path: &Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    if is_link(folder) || folder.parent().is_some_and(is_link) {
        return Err(io::Error::other("it is a symbolic link, and none is followed in a data folder"));
    }
    let entry = |entry: io::Result<fs::DirEntry>| {
        let entry = entry?;
        let name = entry.file_name();
        if is_foreign(&name, entry.file_type()?.is_file()) {
            return Err(io::Error::other(format!("{} in it is not a file", name.display())));
        }
        Ok(name)
    };
    fs::read_dir(folder)?.map(entry).collect()
}

fn read_header(file: &File, sequence: u64) -> io::Result<Header> {
    let mut bytes = [0; HEADER as usize];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(entry::read_segment_header(&bytes, sequence)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(Header::Damaged),
        Err(e) => Err(e),
    }
}

impl Log {
    /// Opens the folder and creates it if it does not exist. Reads only the headers; [`Self::load`]
    /// reads the entries.
    pub(crate) fn open(folder: &Path, peer: &str, bounds: Bounds) -> Result<Self, HintError> {
        let io_error = |error| HintError::Io { folder: folder.to_path_buf(), error };
        let (entries, lacks_folder) = match make_folder(folder).and_then(|()| list(folder)) {
            Ok(entries) => (entries, false),
            // There is nothing to read then, and with room it is made for the first hint.
            Err(error) if is_full(&error) => (Vec::new(), true),
            Err(error) => return Err(io_error(error)),
        };
        let mut unread = Vec::new();
        for name in entries {
            let Some(sequence) = name.to_str().and_then(sequence_of) else { continue };
            let file = folder.join(name);
            let header = File::open(&file).and_then(|file| read_header(&file, sequence)).map_err(io_error)?;
            if let Header::Newer(format) = header {
                return Err(HintError::NewerFormat { file, format });
            }
            unread.push(sequence);
        }
        unread.sort_unstable();
        let position_found = match fs::read(folder.join(CONFIRMED)) {
            Ok(bytes) => entry::read_confirmed(&bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(io_error(e)),
        };
        let marked = fs::exists(folder.join(NEEDS_REPAIR)).map_err(io_error)?;
        let last = unread.last().copied().max(position_found.map(|at| at.sequence)).unwrap_or(0);
        Ok(Self {
            folder: folder.to_path_buf(),
            lacks_folder,
            peer: peer.to_owned(),
            bounds: Bounds { segment_size: bounds.segment_size.min(bounds.bytes_max / SEGMENTS_MIN), ..bounds },
            segments: VecDeque::new(),
            active: None,
            reader: None,
            confirmed: HEADER,
            confirmed_ms: 0,
            position_changed: false,
            bytes_dirty: false,
            names_dirty: false,
            next_sequence: last.saturating_add(1),
            bytes: 0,
            pending: 0,
            dropped: 0,
            needs_repair: marked,
            marker_on_disk: marked,
            drop_was_said: false,
            cannot_append: OncePerMinute::default(),
            cannot_sync: OncePerMinute::default(),
            buffer: Vec::new(),
            write: FileExt::write_all_at,
            sync: File::sync_data,
            unread,
            position_found,
        })
    }

    /// Reads every segment, counts the pending hints, and drops what follows damage. Must be called
    /// before anything else.
    pub(crate) fn load(&mut self) {
        for sequence in std::mem::take(&mut self.unread) {
            if let Err(error) = self.load_segment(sequence) {
                self.lose(0, &format!("{} cannot be read: {error}", name_of(sequence)));
            }
        }
    }

    fn load_segment(&mut self, sequence: u64) -> io::Result<()> {
        let path = self.path(sequence);
        // The position is in a later segment, so this one was confirmed: its removal had not
        // reached the disk.
        if self.position_found.is_some_and(|at| sequence < at.sequence) {
            return fs::remove_file(path);
        }
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let file_end = file.metadata()?.len();
        let position = self.position_found.filter(|at| at.sequence == sequence).map_or(HEADER, |at| at.offset);
        let Header::Ours { salt } = read_header(&file, sequence)? else {
            if file_end > 0 {
                self.say_damage(sequence, 0, file_end);
            }
            return fs::remove_file(path);
        };
        let mut segment = Segment { sequence, salt, end: HEADER, pending: 0, oldest_ms: 0, newest_ms: 0 };
        // How many entries are before the position, and whether one ends at it.
        let (mut before, mut is_boundary, mut first_pending_ms) = (0, position == HEADER, 0);
        let mut entries = 0;
        (&file).seek(SeekFrom::Start(HEADER))?;
        let mut scanner = Scanner::new(BufReader::with_capacity(READ_BUFFER, &file), HEADER, file_end, salt);
        let ended = loop {
            match scanner.next() {
                Ok(Some(found)) => {
                    if entries == 0 {
                        segment.oldest_ms = found.written_ms;
                    }
                    entries += 1;
                    segment.newest_ms = segment.newest_ms.max(found.written_ms);
                    if found.end <= position {
                        before += 1;
                        first_pending_ms = found.written_ms;
                    }
                    is_boundary |= found.end == position;
                }
                Ok(None) => break Ok(()),
                Err(e) => break Err(e),
            }
        };
        segment.end = scanner.offset();
        if segment.end < file_end {
            self.say_damage(sequence, segment.end, file_end - segment.end);
            // A disk that cannot be read now may work again later; for this run the rest is lost
            // all the same.
            if ended.is_ok() {
                file.set_len(segment.end)?;
            }
        }
        // A position inside an entry is ignored; one behind the end says that all the entries that
        // are left were confirmed.
        if position < segment.end && !is_boundary {
            before = 0;
        }
        segment.pending = entries - before;
        if segment.pending == 0 {
            return fs::remove_file(path);
        }
        if self.segments.is_empty() && before > 0 {
            self.confirmed = position;
            self.confirmed_ms = first_pending_ms;
        }
        self.pending += segment.pending;
        self.bytes += segment.end;
        self.segments.push_back(segment);
        Ok(())
    }

    /// How many hints are not confirmed.
    pub(crate) fn pending(&self) -> u64 {
        self.pending
    }

    /// Bytes of all segment files.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many hints were given to this log and are lost.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    pub(crate) fn needs_repair(&self) -> bool {
        self.needs_repair
    }

    /// About when the oldest pending hint was written, in milliseconds since the Unix epoch; 0 if
    /// there is none.
    pub(crate) fn oldest_ms(&self) -> u64 {
        match self.segments.front() {
            Some(first) if self.pending > 0 => first.oldest_ms.max(self.confirmed_ms),
            _ => 0,
        }
    }

    /// Whether [`Self::tick`] would do anything.
    pub(crate) fn wants_tick(&self) -> bool {
        self.bytes_dirty || self.names_dirty || self.position_changed || self.needs_repair || !self.segments.is_empty()
    }

    /// Appends records in order, with one write for all that fit into a segment. Records that
    /// cannot be appended are lost.
    pub(crate) fn append(&mut self, records: &[Record<Bytes>], now_ms: u64) {
        let mut rest = records;
        while !rest.is_empty() {
            match self.append_some(rest, now_ms) {
                Ok(count) => rest = &rest[count..],
                Err(error) => {
                    if self.cannot_append.due() {
                        tracing::error!("hints for {} cannot be written and are dropped: {error}", self.peer);
                    }
                    return self.lose(rest.len() as u64, &error.to_string());
                }
            }
        }
    }

    /// Appends at least one record, all to one segment.
    fn append_some(&mut self, records: &[Record<Bytes>], now_ms: u64) -> io::Result<usize> {
        let fits = |record| entry::size(record).filter(|size| HEADER + size <= self.bounds.bytes_max);
        let Some(first_size) = fits(&records[0]) else {
            self.lose(1, "a record does not fit the hint log");
            return Ok(1);
        };
        let segment = self.segment_for(first_size, now_ms)?;
        self.buffer.clear();
        let mut count = 0;
        for record in records {
            let offset = segment.end + self.buffer.len() as u64;
            let has_room = |size| count == 0 || offset + size <= self.bounds.segment_size;
            if !entry::size(record).is_some_and(has_room) {
                break;
            }
            entry::encode(&mut self.buffer, record, now_ms, segment.salt, offset);
            count += 1;
        }
        let len = self.buffer.len() as u64;
        while self.bytes + len > self.bounds.bytes_max {
            assert!(self.segments.len() > 1, "a segment is smaller than all of them may be");
            let limit = self.bounds.bytes_max;
            self.drop_first(&format!("they take more than {limit} bytes"));
        }
        let file = self.active.as_ref().expect("segment_for made it");
        if let Err(error) = waiting(&"write of hints", || (self.write)(file, &self.buffer, segment.end)) {
            // A part of the entries may be in the file: invariant 2.
            if file.set_len(segment.end).is_err() {
                self.active = None;
                self.remove_confirmed();
            }
            return Err(error);
        }
        self.bytes_dirty = true;
        self.bytes += len;
        self.pending += count as u64;
        let segment = self.segments.back_mut().expect("the active one");
        if segment.end == HEADER {
            segment.oldest_ms = now_ms;
        }
        segment.end += len;
        segment.pending += count as u64;
        segment.newest_ms = segment.newest_ms.max(now_ms);
        self.buffer.clear();
        self.buffer.shrink_to(crate::BATCH_BYTES);
        Ok(count)
    }

    /// The segment for an entry of `size` bytes: the active one, or a new one.
    fn segment_for(&mut self, size: u64, now_ms: u64) -> io::Result<Segment> {
        if let (Some(_), Some(&segment)) = (&self.active, self.segments.back()) {
            let is_old = now_ms.saturating_sub(segment.oldest_ms) > self.bounds.age_max_ms / AGE_ROLL_SHARE;
            if segment.end == HEADER || (segment.end + size <= self.bounds.segment_size && !is_old) {
                return Ok(segment);
            }
        }
        self.roll();
        let sequence = self.next_sequence;
        self.next_sequence = sequence.saturating_add(1);
        let (path, salt) = (self.path(sequence), random());
        self.make_folder()?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(&path)?;
        if let Err(error) = (self.write)(&file, &entry::segment_header(sequence, salt), 0) {
            let _ = fs::remove_file(path);
            return Err(error);
        }
        if self.segments.is_empty() {
            (self.confirmed, self.confirmed_ms) = (HEADER, 0);
        }
        let segment = Segment { sequence, salt, end: HEADER, pending: 0, oldest_ms: now_ms, newest_ms: 0 };
        self.segments.push_back(segment);
        self.bytes += HEADER;
        self.active = Some(file);
        (self.bytes_dirty, self.names_dirty) = (true, true);
        Ok(segment)
    }

    /// Ends appending to the active segment.
    fn roll(&mut self) {
        if self.active.is_some() {
            self.sync();
            self.active = None;
            self.remove_confirmed();
        }
    }

    /// The oldest hints, up to `count_max` and `bytes_max`, at least one if there is any. Drops
    /// damage that it meets.
    ///
    /// # Errors
    /// The segment cannot be opened now.
    pub(crate) fn window(&mut self, count_max: u32, bytes_max: u64) -> io::Result<Window> {
        while self.pending > 0 {
            let segment = *self.segments.front().expect("pending hints are in a segment");
            let (window, damage) = match self.read(&segment, count_max, bytes_max) {
                Ok(window) => (window, "damage".to_owned()),
                Err(e) if e.kind() == io::ErrorKind::NotFound => (Window::default(), e.to_string()),
                Err(e) => return Err(e),
            };
            if !window.records.is_empty() {
                return Ok(window);
            }
            self.say_damage(segment.sequence, self.confirmed, segment.end - self.confirmed);
            self.drop_first(&damage);
        }
        Ok(Window::default())
    }

    /// Reads hints from the position on. Returns errors of opening only; an entry that cannot be
    /// read ends the window.
    fn read(&mut self, segment: &Segment, count_max: u32, bytes_max: u64) -> io::Result<Window> {
        if self.reader.as_ref().is_none_or(|(sequence, _)| *sequence != segment.sequence) {
            self.reader = Some((segment.sequence, File::open(self.path(segment.sequence))?));
        }
        let (_, file) = self.reader.as_ref().expect("just opened");
        let mut input = file;
        input.seek(SeekFrom::Start(self.confirmed))?;
        let input = BufReader::with_capacity(READ_BUFFER, input.take(segment.end - self.confirmed));
        let mut scanner = Scanner::new(input, self.confirmed, segment.end, segment.salt);
        let mut window = Window { sequence: segment.sequence, ..Window::default() };
        while window.records.len() < count_max as usize {
            let Ok(Some(found)) = scanner.next() else { break };
            if found.end - self.confirmed > bytes_max && !window.records.is_empty() {
                break;
            }
            window.records.push(found.record);
            window.ends.push((found.end, found.written_ms));
        }
        Ok(window)
    }

    /// Notes that the peer has the first `count` records of the window, which must be the last one
    /// that was read.
    pub(crate) fn confirm(&mut self, window: &Window, count: usize) {
        let Some(&(end, written_ms)) = count.checked_sub(1).and_then(|last| window.ends.get(last)) else { return };
        let segment = self.segments.front_mut().expect("the window's segment");
        assert!(segment.sequence == window.sequence && end > self.confirmed, "confirmed in order");
        segment.pending -= count as u64;
        self.pending -= count as u64;
        (self.confirmed, self.confirmed_ms, self.position_changed) = (end, written_ms, true);
        self.remove_confirmed();
    }

    /// Unlinks the segments that are confirmed as a whole, except the active one.
    fn remove_confirmed(&mut self) {
        while let Some(first) = self.segments.front() {
            if first.pending > 0 || (self.active.is_some() && self.segments.len() == 1) {
                return;
            }
            self.remove_first();
        }
    }

    fn remove_first(&mut self) {
        let Some(segment) = self.segments.pop_front() else { return };
        if self.segments.is_empty() {
            self.active = None;
            self.bytes_dirty = false;
        }
        self.reader = None;
        self.bytes -= segment.end;
        self.pending -= segment.pending;
        (self.confirmed, self.position_changed) = (HEADER, true);
        if let Err(e) = fs::remove_file(self.path(segment.sequence))
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("a file of hints cannot be removed and may be replayed again: {e}");
        }
    }

    /// Gives up the oldest segment.
    fn drop_first(&mut self, reason: &str) {
        let pending = self.segments.front().map_or(0, |segment| segment.pending);
        self.remove_first();
        if pending > 0 {
            self.lose(pending, reason);
        }
    }

    /// Counts hints as lost. The peer needs repair from now on, until an operator declares it
    /// repaired.
    pub(crate) fn lose(&mut self, count: u64, reason: &str) {
        self.dropped += count;
        if !self.drop_was_said {
            self.drop_was_said = true;
            tracing::warn!("hints for {} were dropped, so it needs repair: {reason}", self.peer);
        }
        self.needs_repair = true;
        if !self.marker_on_disk {
            // On a full disk this may fail; `tick` tries again every second.
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(FILE_MODE);
            let made = self.make_folder().and_then(|()| options.open(self.folder.join(NEEDS_REPAIR)));
            self.marker_on_disk = made.is_ok();
            self.names_dirty = true;
        }
    }

    fn say_damage(&mut self, sequence: u64, offset: u64, bytes: u64) {
        let file = self.path(sequence);
        tracing::warn!("damaged hints were dropped: {}, offset {offset}, {bytes} bytes", file.display());
        self.drop_was_said = true;
        self.lose(0, "damage");
    }

    /// Does what is due about once a second: the bound by age, the sync, the position, the mark.
    pub(crate) fn tick(&mut self, now_ms: u64) {
        while let Some(first) = self.segments.front()
            && first.pending > 0
            && now_ms.saturating_sub(first.newest_ms) > self.bounds.age_max_ms
        {
            let limit = self.bounds.age_max_ms / 1000;
            self.drop_first(&format!("they are older than {limit} s"));
        }
        if self.pending == 0 {
            while !self.segments.is_empty() {
                self.remove_first();
            }
        }
        self.sync();
        self.persist_position();
        if self.needs_repair && !self.marker_on_disk {
            self.lose(0, "");
        } else if self.needs_repair && fs::exists(self.folder.join(NEEDS_REPAIR)).is_ok_and(|exists| !exists) {
            tracing::info!("{} is marked as repaired", self.peer);
            (self.needs_repair, self.marker_on_disk, self.drop_was_said) = (false, false, false);
        }
    }

    /// Ends the log: all entries and the position are on disk then.
    pub(crate) fn close(&mut self) {
        self.roll();
        self.sync();
        self.persist_position();
    }

    fn sync(&mut self) {
        let mut result = Ok(());
        if std::mem::take(&mut self.bytes_dirty)
            && let Some(file) = &self.active
        {
            result = waiting(&"sync of hints", || (self.sync)(file));
        }
        if self.names_dirty {
            match File::open(&self.folder) {
                Ok(folder) => {
                    self.names_dirty = false;
                    let synced = waiting(&"sync of a folder", || (self.sync)(&folder));
                    result = result.and(synced);
                }
                // Without a descriptor, for example. No sync has failed by that, and the next tick
                // tries again.
                Err(error) if self.cannot_sync.due() => {
                    tracing::warn!("the folder of the hints for {} cannot be synced yet: {error}", self.peer);
                }
                Err(_) => {}
            }
        }
        if let Err(error) = result {
            // The kernel may have dropped the pages. What is read back is verified anyway.
            if self.cannot_sync.due() {
                tracing::error!("hints for {} may not survive a power loss, the sync failed: {error}", self.peer);
            }
            self.lose(0, "a sync failed");
        }
    }

    /// Writes the position without a sync: if it is lost, more is replayed than necessary.
    fn persist_position(&mut self) {
        if !std::mem::take(&mut self.position_changed) {
            return;
        }
        // If no segment is left, the position names the last number, so that it is not used for
        // another segment.
        let sequence = self.segments.front().map_or(self.next_sequence - 1, |first| first.sequence);
        let offset = if self.segments.is_empty() { HEADER } else { self.confirmed };
        let bytes = entry::confirmed(Position { sequence, offset });
        let written = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(FILE_MODE)
            .open(self.folder.join(CONFIRMED))
            .and_then(|file| file.write_all_at(&bytes, 0));
        if let Err(e) = written {
            tracing::debug!("the position in the hints for {} cannot be written: {e}", self.peer);
        }
    }

    /// Makes the folder, if there was no room for it before.
    fn make_folder(&mut self) -> io::Result<()> {
        if self.lacks_folder {
            make_folder(&self.folder)?;
            self.lacks_folder = false;
        }
        Ok(())
    }

    fn path(&self, sequence: u64) -> PathBuf {
        self.folder.join(name_of(sequence))
    }
}

#[cfg(test)]
mod tests;

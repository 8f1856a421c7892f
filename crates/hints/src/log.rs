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
//! Nothing here waits for a disk to sync: `sync.rs` says what is to be synced, and somebody else
//! does it. What a start does with the files that it finds is in `start.rs`, what is read back for the
//! peer in `read.rs`.
//!
//! Tested in `log/tests.rs` beside a model, with kills, cuts, flipped bits and failed writes.

mod read;
mod start;
mod sync;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use koltso_instrument::waiting;
use koltso_model::Record;

use crate::entry::{self, FORMAT, HEADER, Position};

pub(crate) use self::read::Window;
pub(crate) use self::sync::{Batch, Synced};

/// The file that says that the peer missed more than its hints contain.
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
    /// No pending record has an older clock.
    oldest_clock: u64,
    oldest_ms: u64,
    newest_ms: u64,
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
    active: Option<Arc<File>>,
    /// Segments that were filled and not synced since.
    rolled: Vec<u64>,
    reader: Option<(u64, File)>,
    /// The offset in the first segment up to which everything is confirmed.
    confirmed: u64,
    /// When the last confirmed hint was written, in milliseconds since the Unix epoch.
    confirmed_ms: u64,
    position_changed: bool,
    bytes_dirty: bool,
    names_dirty: bool,
    next_sequence: u64,
    /// Segments below this number are of an earlier process.
    first_own: u64,
    bytes: u64,
    pending: u64,
    dropped: u64,
    /// How often something was lost.
    losses: u64,
    needs_repair: bool,
    marker_on_disk: bool,
    drop_was_said: bool,
    cannot_append: OncePerMinute,
    cannot_sync: OncePerMinute,
    buffer: Vec<u8>,
    /// `FileExt::write_all_at`, or a function that a test puts in its place.
    write: fn(&File, &[u8], u64) -> io::Result<()>,
    /// `File::sync_data`, or a function that a test puts in its place.
    pub(crate) sync: fn(&File) -> io::Result<()>,
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

impl Log {
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

    /// How often something was lost, so that the peer needs repair.
    pub(crate) fn losses(&self) -> u64 {
        self.losses
    }

    /// A clock that no pending record's is older than; `None` if nothing is pending.
    pub(crate) fn oldest_clock(&self) -> Option<u64> {
        if !self.unread.is_empty() {
            return Some(0);
        }
        self.segments.iter().filter(|segment| segment.pending > 0).map(|segment| segment.oldest_clock).min()
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
        self.is_unsynced() || self.position_changed || self.needs_repair || !self.segments.is_empty()
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
        let (mut count, mut oldest_clock) = (0, u64::MAX);
        for record in records {
            let offset = segment.end + self.buffer.len() as u64;
            let has_room = |size| count == 0 || offset + size <= self.bounds.segment_size;
            if !entry::size(record).is_some_and(has_room) {
                break;
            }
            entry::encode(&mut self.buffer, record, now_ms, segment.salt, offset);
            oldest_clock = oldest_clock.min(record.version.clock);
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
        let others = if segment.pending > 0 { segment.oldest_clock } else { u64::MAX };
        segment.oldest_clock = others.min(oldest_clock);
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
        let segment =
            Segment { sequence, salt, end: HEADER, pending: 0, oldest_clock: 0, oldest_ms: now_ms, newest_ms: 0 };
        self.segments.push_back(segment);
        self.bytes += HEADER;
        self.active = Some(Arc::new(file));
        (self.bytes_dirty, self.names_dirty) = (true, true);
        Ok(segment)
    }

    /// Ends appending to the active segment.
    fn roll(&mut self) {
        if self.active.take().is_some() {
            if std::mem::take(&mut self.bytes_dirty) {
                self.rolled.extend(self.segments.back().map(|segment| segment.sequence));
            }
            self.remove_confirmed();
        }
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

    /// Whether there are hints of an earlier process.
    pub(crate) fn has_found(&self) -> bool {
        self.segments.front().is_some_and(|first| first.sequence < self.first_own)
    }

    /// Gives these up.
    pub(crate) fn give_up_found(&mut self) {
        while self.has_found() {
            self.drop_first("this node's folder is an older copy, or was another's");
        }
    }

    /// Counts hints as lost. The peer needs repair from now on, until [`Self::repaired`].
    pub(crate) fn lose(&mut self, count: u64, reason: &str) {
        self.dropped += count;
        self.losses += 1;
        if !self.drop_was_said {
            self.drop_was_said = true;
            tracing::warn!(
                "hints for {} were dropped: {reason}; what it lacks is found by comparing, and repaired by itself",
                self.peer
            );
        }
        self.needs_repair = true;
        self.mark();
    }

    /// The peer has what the lost hints contained.
    pub(crate) fn repaired(&mut self) {
        if !self.needs_repair {
            return;
        }
        match fs::remove_file(self.folder.join(NEEDS_REPAIR)) {
            Ok(()) => self.names_dirty = true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return tracing::debug!("the mark of {} cannot be removed yet: {error}", self.peer),
        }
        tracing::info!("{} has what its dropped hints contained", self.peer);
        (self.needs_repair, self.marker_on_disk, self.drop_was_said) = (false, false, false);
    }

    fn mark(&mut self) {
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

    /// Does what is due about once a second: the bound by age, the position, the mark. What is to
    /// be synced is said by [`Self::begin_sync`].
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
        self.persist_position();
        if self.needs_repair && !self.marker_on_disk {
            self.mark();
        } else if self.needs_repair && fs::exists(self.folder.join(NEEDS_REPAIR)).is_ok_and(|exists| !exists) {
            tracing::info!("{} is marked as repaired", self.peer);
            (self.needs_repair, self.marker_on_disk, self.drop_was_said) = (false, false, false);
        }
    }

    /// Ends the log, and waits for the disk: all entries and the position are on it then.
    pub(crate) fn close(&mut self) {
        self.roll();
        if let Some(batch) = self.begin_sync() {
            self.synced(batch.sync());
        }
        self.persist_position();
    }

    /// Writes the position without a sync: if it is lost, more is replayed than necessary.
    pub(crate) fn persist_position(&mut self) {
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

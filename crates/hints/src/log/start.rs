//! What a start does with the files that it finds: the table in `docs/hint-format.md`.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{
    Bounds, CONFIRMED, HintError, Log, NEEDS_REPAIR, OncePerMinute, READ_BUFFER, SEGMENTS_MIN, SUFFIX, Segment,
    is_full, make_folder, name_of, sequence_of,
};
use crate::entry::{self, HEADER, Header, Scanner};

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
            rolled: Vec::new(),
            reader: None,
            confirmed: HEADER,
            confirmed_ms: 0,
            position_changed: false,
            bytes_dirty: false,
            names_dirty: false,
            next_sequence: last.saturating_add(1),
            first_own: last.saturating_add(1),
            bytes: 0,
            pending: 0,
            dropped: 0,
            losses: 0,
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
        for sequence in self.unread.clone() {
            if let Err(error) = self.load_segment(sequence) {
                self.lose(0, &format!("{} cannot be read: {error}", name_of(sequence)));
            }
        }
        self.unread.clear();
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
        let mut segment =
            Segment { sequence, salt, end: HEADER, pending: 0, oldest_clock: 0, oldest_ms: 0, newest_ms: 0 };
        // How many entries are before the position, and whether one ends at it.
        let (mut before, mut is_boundary, mut first_pending_ms) = (0, position == HEADER, 0);
        let mut entries = 0;
        // The oldest clocks of all entries, and of those behind the position.
        let (mut oldest, mut oldest_pending) = (u64::MAX, u64::MAX);
        (&file).seek(SeekFrom::Start(HEADER))?;
        let mut scanner = Scanner::new(BufReader::with_capacity(READ_BUFFER, &file), HEADER, file_end, salt);
        let ended = loop {
            match scanner.next() {
                Ok(Some(found)) => {
                    if entries == 0 {
                        segment.oldest_ms = found.written_ms;
                    }
                    entries += 1;
                    oldest = oldest.min(found.record.version.clock);
                    segment.newest_ms = segment.newest_ms.max(found.written_ms);
                    if found.end <= position {
                        before += 1;
                        first_pending_ms = found.written_ms;
                    } else {
                        oldest_pending = oldest_pending.min(found.record.version.clock);
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
        segment.oldest_clock = if before > 0 { oldest_pending } else { oldest };
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
}

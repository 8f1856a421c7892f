//! The files of a member: its log, and the state that the log has led to.
//!
//! ```text
//! lock       held for as long as the folder is open
//! log        lines `CRC32C JSON`: format and whose it is, then votes, entries, cuts, in order
//! document   one such line: the state up to an entry, that entry's id, Raft's members then
//! *.new      a file that was not finished before it was renamed to its name: removed
//! ```
//!
//! What is written together is one line, written at once and synced before anybody hears of it. A
//! last line without its end, or with bytes that never arrived (zeros), is a write that a crash has
//! torn: nobody has heard of it, and it is cut off. Any other line whose checksum is wrong is
//! damage, which is an error: what follows it, or it itself, may have been promised to others.
//!
//! The log is written anew, into another file that then takes its name, when entries are purged
//! that the document file has, and when votes and cuts have made it [`WASTE_BYTES_MAX`] larger than
//! it must be. Files are 0600 and the folder 0700.
//!
//! Owner: one process (`lock`), in it [`SharedStore`]. Bounds: [`FILE_BYTES_MAX`] a file; the
//! entries are in memory, of which a compaction ([`crate::COMPACT_AFTER`]) keeps the last.
//! Invariants: the vote is no older than the last applied entry; entries follow each other without
//! a hole, after the one purged last; after a failed write nothing is written until the folder is
//! opened again. Tested in `tests/damage.rs`, and in all other tests there by kills.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use koltso_model::NodeId;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::raft::{Entry, LogId, Outcome, State, StoredMembership, Vote};
use crate::wire;

/// No file of a member becomes so large; one that is was not written by it.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// So many bytes of votes and cuts that are over lie in the log before it is written anew.
const WASTE_BYTES_MAX: u64 = 256 << 10;
/// The version of the files' format.
const FORMAT: u32 = 1;

const LOCK: &str = "lock";
const LOG: &str = "log";
const DOCUMENT: &str = "document";

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system says no.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// Of which file.
        path: PathBuf,
        /// What it says.
        error: io::Error,
    },
    /// Another process has it open.
    #[error("{path} is used by another process: stop that first", path = .0.display())]
    InUse(PathBuf),
    /// What is in a file is not what was written there.
    #[error(
        "{path} is damaged ({what}): remove this member, empty its data folder and let it join again; never put an older \
         copy of the file in its place, which has forgotten what this member has promised",
        path = path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where, and what about it.
        what: String,
    },
    /// It was written by a later version.
    #[error("{path} has the format {format}, and this version knows {FORMAT} only: start the version that wrote it", path = path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// The folder has been closed.
    #[error("the council has been stopped")]
    Closed,
    /// A write has failed before.
    #[error("an earlier write failed ({0}): start this node again")]
    Broken(String),
}

/// Whose the files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub number: u16,
    #[serde(with = "wire::identity")]
    pub id: NodeId,
}

/// A line of the log.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Format {
        version: u32,
        owner: Owner,
    },
    Vote(Vote),
    Entries(Vec<Entry>),
    /// The entries from this index on are no more.
    Truncated(u64),
    /// The entries up to this one are in the document file, or were before a snapshot came.
    Purged(LogId),
}

/// The document file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Applied {
    pub last: Option<LogId>,
    pub members: StoredMembership,
    pub state: State,
}

/// The folder, open.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    /// Held, never read.
    _lock: File,
    /// The log, as long as somebody owns it.
    log: Option<File>,
    bytes: u64,
    /// Of these, what would be left in a log written anew, about.
    live_bytes: u64,
    owner: Option<Owner>,
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
    applied: Applied,
    broken: Option<String>,
}

/// The store that all parts of a council use; `None` once it is closed.
#[derive(Clone, Debug)]
pub(crate) struct SharedStore(Arc<Mutex<Option<Store>>>);

impl SharedStore {
    pub(crate) fn new(store: Store) -> Self {
        Self(Arc::new(Mutex::new(Some(store))))
    }

    /// Closes the files. Whoever still comes gets an error.
    pub(crate) fn close(&self) {
        *self.0.lock() = None;
    }

    pub(crate) fn is_open(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Does something with the store.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Store) -> Result<T, StoreError>) -> Result<T, StoreError> {
        work(self.0.lock().as_mut().ok_or(StoreError::Closed)?)
    }
}

fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, StoreError> {
    result.map_err(|error| StoreError::Io { path: path.to_owned(), error })
}

/// A line of a file.
fn line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(value)?;
    let mut line = format!("{:08x} ", crc32c::crc32c(&json)).into_bytes();
    line.extend_from_slice(&json);
    line.push(b'\n');
    Ok(line)
}

/// The JSON of a line without its end, if the checksum is right.
fn json_of(line: &[u8]) -> Option<&[u8]> {
    let (sum, json) = line.split_at_checked(9)?;
    // As it is written: digits in upper case would have the same value, and be damage.
    (sum == format!("{:08x} ", crc32c::crc32c(json)).as_bytes()).then_some(json)
}

fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    at(folder, File::open(folder).and_then(|folder| folder.sync_all()))
}

/// Writes a file anew, and gives it its name once it is on disk.
fn replace(folder: &Path, name: &str, content: &[u8]) -> Result<File, StoreError> {
    let (new, path) = (folder.join(format!("{name}.new")), folder.join(name));
    let mut options = OpenOptions::new();
    let mut file = at(&new, options.write(true).create(true).truncate(true).mode(0o600).open(&new))?;
    at(&new, file.write_all(content).and_then(|()| file.sync_all()))?;
    at(&path, std::fs::rename(&new, &path))?;
    sync_folder(folder)?;
    Ok(file)
}

/// A whole file, or `None` if there is none.
fn content(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let length = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => at(path, found)?.len(),
    };
    if length > FILE_BYTES_MAX {
        let what = format!("it has {length} bytes, more than {FILE_BYTES_MAX}");
        return Err(StoreError::Damaged { path: path.to_owned(), what });
    }
    at(path, std::fs::read(path)).map(Some)
}

impl Store {
    /// Opens a folder, which is made if there is none, and reads what is in it.
    pub(crate) fn open(folder: &Path) -> Result<Self, StoreError> {
        if !folder.exists() {
            at(folder, DirBuilder::new().recursive(true).mode(0o700).create(folder))?;
            if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                sync_folder(parent)?;
            }
        }
        let path = folder.join(LOCK);
        let lock = at(&path, OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(StoreError::InUse(folder.to_owned())),
            Err(std::fs::TryLockError::Error(error)) => return Err(StoreError::Io { path, error }),
        }
        for name in [LOG, DOCUMENT] {
            match std::fs::remove_file(folder.join(format!("{name}.new"))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::Io { path: folder.join(format!("{name}.new")), error });
                }
                _ => {}
            }
        }
        let mut store = Self {
            folder: folder.to_owned(),
            _lock: lock,
            log: None,
            bytes: 0,
            live_bytes: 0,
            owner: None,
            vote: None,
            purged: None,
            entries: BTreeMap::new(),
            applied: Applied::default(),
            broken: None,
        };
        store.read_log()?;
        store.read_document()?;
        store.sync()?;
        Ok(store)
    }

    /// What was read may be in the page cache only, if the process before this one was killed before
    /// its sync; from now on this member stands by it.
    fn sync(&self) -> Result<(), StoreError> {
        for name in [LOG, DOCUMENT] {
            let path = self.folder.join(name);
            match File::open(&path) {
                Ok(file) => at(&path, file.sync_all())?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::Io { path, error }),
            }
        }
        sync_folder(&self.folder)
    }

    fn damaged(&self, name: &str, what: impl Into<String>) -> StoreError {
        StoreError::Damaged { path: self.folder.join(name), what: what.into() }
    }

    fn read_log(&mut self) -> Result<(), StoreError> {
        let path = self.folder.join(LOG);
        let Some(bytes) = content(&path)? else { return Ok(()) };
        let (mut start, mut number) = (0, 0);
        while start < bytes.len() {
            number += 1;
            let end = bytes[start..].iter().position(|&byte| byte == b'\n').map(|length| start + length);
            let text = &bytes[start..end.unwrap_or(bytes.len())];
            let is_last = end.is_none_or(|end| end + 1 == bytes.len());
            let Some(json) = end.and_then(|_| json_of(text)) else {
                // The first line is never torn: the file got its name when it was on disk.
                if number > 1 && is_last && (end.is_none() || text.contains(&0)) {
                    tracing::warn!("{}: cut off {} bytes of a torn write", path.display(), bytes.len() - start);
                    break;
                }
                return Err(self.damaged(LOG, format!("line {number}, at byte {start}: the checksum is wrong")));
            };
            let line = match serde_json::from_slice::<Line>(json) {
                Ok(Line::Format { version, .. }) if version != FORMAT => {
                    return Err(StoreError::Format { path, format: version });
                }
                Ok(line) => line,
                Err(e) => return Err(self.damaged(LOG, format!("line {number}, at byte {start}: {e}"))),
            };
            self.take(number, line).map_err(|what| self.damaged(LOG, format!("line {number}: {what}")))?;
            start = end.map_or(bytes.len(), |end| end + 1);
        }
        if self.owner.is_none() {
            return Err(self.damaged(LOG, "it is empty"));
        }
        let file = at(&path, OpenOptions::new().append(true).open(&path))?;
        if start < bytes.len() {
            at(&path, file.set_len(start as u64).and_then(|()| file.sync_all()))?;
        }
        self.log = Some(file);
        self.bytes = start as u64;
        Ok(())
    }

    /// Takes in a line of the log.
    fn take(&mut self, number: usize, line: Line) -> Result<(), String> {
        match line {
            Line::Format { owner, .. } if number == 1 => self.owner = Some(owner),
            Line::Format { .. } => return Err("a second beginning".to_owned()),
            _ if number == 1 => return Err("it does not say whose it is".to_owned()),
            Line::Vote(vote) => self.vote = Some(vote),
            Line::Truncated(from) => drop(self.entries.split_off(&from)),
            Line::Purged(id) => self.forget(id),
            Line::Entries(entries) => {
                for entry in entries {
                    let follows = self.last_id().map_or(0, |id| id.index + 1);
                    if entry.log_id.index != follows {
                        return Err(format!("the entry {} where {follows} follows", entry.log_id.index));
                    }
                    self.entries.insert(follows, entry);
                }
            }
        }
        Ok(())
    }

    fn read_document(&mut self) -> Result<(), StoreError> {
        let Some(bytes) = content(&self.folder.join(DOCUMENT))? else {
            return match self.purged {
                None => Ok(()),
                Some(_) => Err(self.damaged(DOCUMENT, "it is missing, and the log has no beginning")),
            };
        };
        let Some(json) = bytes.strip_suffix(b"\n").and_then(json_of) else {
            return Err(self.damaged(DOCUMENT, "the checksum is wrong"));
        };
        let applied = serde_json::from_slice::<Applied>(json).map_err(|e| self.damaged(DOCUMENT, e.to_string()))?;
        if self.owner.is_none() {
            return Err(self.damaged(LOG, "it is missing, and there is a document"));
        }
        if self.purged > applied.last {
            return Err(self.damaged(DOCUMENT, "it is older than the log's beginning"));
        }
        // Whoever has an entry of a leader knows of that leader. (A recovery that was interrupted
        // between its two files has a document only.)
        if let Some(last) = applied.last
            && self.vote.is_none_or(|vote| vote.leader_id < last.leader_id)
        {
            self.vote = Some(Vote { leader_id: last.leader_id, committed: false });
        }
        self.applied = applied;
        Ok(())
    }

    fn forget(&mut self, id: LogId) {
        self.entries = self.entries.split_off(&(id.index + 1));
        // Entries of an older leader behind it are of another log: that of a snapshot has none of
        // them.
        if self.entries.values().next().is_some_and(|entry| entry.log_id.leader_id < id.leader_id) {
            self.entries.clear();
        }
        self.purged = Some(id);
    }

    pub(crate) fn owner(&self) -> Option<Owner> {
        self.owner
    }

    pub(crate) fn vote(&self) -> Option<Vote> {
        self.vote
    }

    pub(crate) fn purged_id(&self) -> Option<LogId> {
        self.purged
    }

    pub(crate) fn last_id(&self) -> Option<LogId> {
        self.entries.values().next_back().map(|entry| entry.log_id).or(self.purged)
    }

    pub(crate) fn entries(&self) -> &BTreeMap<u64, Entry> {
        &self.entries
    }

    pub(crate) fn applied(&self) -> &Applied {
        &self.applied
    }

    /// Whether no write has failed.
    pub(crate) fn is_usable(&self) -> Result<(), StoreError> {
        self.broken.as_ref().map_or(Ok(()), |broken| Err(StoreError::Broken(broken.clone())))
    }

    /// Does something to the files, and nothing more after it has failed once.
    fn write<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.is_usable()?;
        work(self).inspect_err(|error| self.broken = Some(error.to_string()))
    }

    /// Appends a line to the log. It is on disk when this returns.
    fn append_line(&mut self, value: &Line) -> Result<(), StoreError> {
        self.write(|store| {
            let path = store.folder.join(LOG);
            let line = at(&path, line(value))?;
            let file = store
                .log
                .as_mut()
                .ok_or_else(|| StoreError::Damaged { path: path.clone(), what: "it is nobody's".to_owned() })?;
            at(&path, file.write_all(&line).and_then(|()| file.sync_data()))?;
            store.bytes += line.len() as u64;
            if matches!(value, Line::Entries(_)) {
                store.live_bytes += line.len() as u64;
            }
            Ok(())
        })
    }

    /// Writes the log anew.
    fn rewrite(&mut self) -> Result<(), StoreError> {
        self.write(|store| {
            let path = store.folder.join(LOG);
            let Some(owner) = store.owner else { return Ok(()) };
            let mut lines = at(&path, line(&Line::Format { version: FORMAT, owner }))?;
            for value in store.purged.map(Line::Purged).into_iter().chain(store.vote.map(Line::Vote)) {
                lines.extend(at(&path, line(&value))?);
            }
            for entry in store.entries.values() {
                lines.extend(at(&path, line(&Line::Entries(vec![entry.clone()])))?);
            }
            drop(replace(&store.folder, LOG, &lines)?);
            store.log = Some(at(&path, OpenOptions::new().append(true).open(&path))?);
            store.bytes = lines.len() as u64;
            store.live_bytes = store.bytes;
            Ok(())
        })
    }

    fn rewrite_if_wasteful(&mut self) -> Result<(), StoreError> {
        if self.bytes > self.live_bytes + WASTE_BYTES_MAX { self.rewrite() } else { Ok(()) }
    }

    /// Says whose the files are, once.
    pub(crate) fn take_ownership(&mut self, owner: Owner) -> Result<(), StoreError> {
        self.owner = Some(owner);
        self.rewrite()
    }

    pub(crate) fn save_vote(&mut self, vote: Vote) -> Result<(), StoreError> {
        self.append_line(&Line::Vote(vote))?;
        self.vote = Some(vote);
        self.rewrite_if_wasteful()
    }

    pub(crate) fn append(&mut self, entries: Vec<Entry>) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        let line = Line::Entries(entries);
        self.append_line(&line)?;
        if let Line::Entries(entries) = line {
            self.entries.extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
        }
        Ok(())
    }

    pub(crate) fn truncate(&mut self, from: u64) -> Result<(), StoreError> {
        self.append_line(&Line::Truncated(from))?;
        drop(self.entries.split_off(&from));
        self.rewrite_if_wasteful()
    }

    pub(crate) fn purge(&mut self, upto: LogId) -> Result<(), StoreError> {
        self.forget(upto);
        self.rewrite()
    }

    /// Keeps a state. It is on disk when this returns.
    pub(crate) fn save_applied(&mut self, applied: Applied) -> Result<(), StoreError> {
        self.write(|store| {
            let content = at(&store.folder.join(DOCUMENT), line(&applied))?;
            replace(&store.folder, DOCUMENT, &content).map(drop)
        })?;
        self.applied = applied;
        Ok(())
    }

    /// Replaces everything: for a recovery.
    pub(crate) fn restart_from(&mut self, applied: Applied, vote: Vote) -> Result<(), StoreError> {
        let last = applied.last;
        self.save_applied(applied)?;
        self.entries.clear();
        self.purged = last;
        self.vote = Some(vote);
        self.rewrite()
    }
}

impl Applied {
    /// Does what an entry says.
    pub(crate) fn apply(&mut self, entry: &Entry) -> Outcome {
        self.last = Some(entry.log_id);
        match &entry.payload {
            openraft::EntryPayload::Blank => Outcome::Nothing,
            openraft::EntryPayload::Membership(members) => {
                self.members = StoredMembership::new(Some(entry.log_id), members.clone());
                Outcome::Nothing
            }
            openraft::EntryPayload::Normal(command) => self.state.apply(command),
        }
    }
}

//! Whether a data folder is what was written: every byte of it is read, while nobody uses it, and
//! nothing is changed.
//!
//! Of each segment: its header, every record with its checksums, and of a sealed one its sidecar, and
//! whether the two say the same. A record that a loss of power kept from being written whole is
//! torn, not damaged, as for recovery ([`crate::recovery`]).
//!
//! Bounds: one segment at a time, mapped; [`LISTED_MAX`] places are listed, and all are counted.

use std::io;
use std::path::{Path, PathBuf};

use koltso_model::{Flags, KeyHash};

use crate::digest::Leaf;
use crate::env::Env;
use crate::folder::{Folder, FolderError};
use crate::forgotten::{self, FORGOTTEN_FILE};
use crate::header::HeaderError;
use crate::record::Record;
use crate::recovery::{self, Scan, scan};
use crate::secret::{SECRET_FILE, Secret};
use crate::segment::{SEGMENT_HEADER, Segment};
use crate::sidecar::{self, Sidecar};

/// Places that are listed.
const LISTED_MAX: usize = 1000;

/// Something in a data folder that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// The file's name in the folder.
    pub file: String,
    /// Where in the file, in bytes, if it is a place.
    pub offset: Option<u64>,
    /// What is wrong, as a sentence without an end.
    pub what: String,
}

/// What was found in a data folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Segments, and how many of them are sealed.
    pub segments: u64,
    /// See there.
    pub sealed: u64,
    /// Intact records, those that newer ones have replaced included.
    pub records: u64,
    /// Bytes of segments that were compared with their checksums.
    pub bytes: u64,
    /// Bytes of records that were being written when the power or the process went.
    pub torn_bytes: u64,
    /// How many flaws there are.
    pub flaw_count: u64,
    /// The first of them, by file.
    pub flaws: Vec<Flaw>,
}

impl Verified {
    /// Notes something that is wrong.
    pub fn note(&mut self, file: impl Into<String>, offset: Option<u64>, what: impl Into<String>) {
        self.flaw_count += 1;
        if self.flaws.len() < LISTED_MAX {
            self.flaws.push(Flaw { file: file.into(), offset, what: what.into() });
        }
    }
}

/// Why a folder cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It is in use, or none of ours, or of another format.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// One of its segments is of a newer format.
    #[error("the segment {segment:016x}.log cannot be read: {reason}")]
    NewerSegment {
        /// Its sequence number.
        segment: u64,
        /// What is in the way.
        reason: String,
    },
    /// The system refused something.
    #[error("the data folder {folder} cannot be read: {error}")]
    Io {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Reads everything in a data folder that the engine wrote. Nobody else can use the folder meanwhile.
///
/// # Errors
/// See [`VerifyError`].
pub fn verify(env: &dyn Env, path: &Path) -> Result<Verified, VerifyError> {
    let io_error = |error| VerifyError::Io { folder: path.to_path_buf(), error };
    let _held = Folder::hold_unchanged(env, path)?;
    let mut verified = Verified::default();
    let secret = Secret::read(env, path).ok();
    let sequences = recovery::sequences(env, path).map_err(io_error)?;
    for &sequence in &sequences {
        verify_segment(env, path, secret.as_ref(), sequence, &mut verified)?;
    }
    if secret.is_none() && verified.sealed > 0 {
        verified.note(SECRET_FILE, None, "it is missing or damaged, so no sidecar can be compared with its segment");
    }
    match forgotten::read(env, path) {
        Ok(Some(_)) => {}
        Ok(None) => verified.note(FORGOTTEN_FILE, None, "it is damaged"),
        Err(e) => verified.note(FORGOTTEN_FILE, None, format!("it cannot be read: {e}")),
    }
    Ok(verified)
}

fn verify_segment(
    env: &dyn Env,
    folder: &Path,
    secret: Option<&Secret>,
    sequence: u64,
    verified: &mut Verified,
) -> Result<(), VerifyError> {
    let (name, sidecar_name) = (format!("{sequence:016x}.log"), format!("{sequence:016x}.idx"));
    let is_sealed = recovery::has_sidecar(env, folder, sequence);
    verified.segments += 1;
    verified.sealed += u64::from(is_sealed);
    let segment = match Segment::open_unchanged(env, folder, sequence) {
        Ok(segment) => segment,
        // Made just before a crash: there is nothing in it.
        Err(HeaderError::Unwritten) if !is_sealed => return Ok(()),
        Err(newer @ HeaderError::Newer(_)) => {
            return Err(VerifyError::NewerSegment { segment: sequence, reason: newer.to_string() });
        }
        Err(e) => {
            verified.note(name, None, e.to_string());
            return Ok(());
        }
    };
    let sidecar = secret.and_then(|secret| Sidecar::open(env, folder, secret, &segment));
    if is_sealed && sidecar.is_none() && secret.is_some() {
        verified.note(&sidecar_name, None, "it is damaged; a start makes it anew");
    }
    let end = sidecar.as_ref().map_or_else(|| segment.data_end(env), |sidecar| sidecar.data_end);
    segment.set_written(end.clamp(SEGMENT_HEADER, segment.capacity()));
    segment.advise_sequential();
    let found = scan(segment.recovery_bytes(), end as usize, segment.salt());
    verified.records +=
        found.offsets.iter().filter(|offset| found.damaged.binary_search(offset).is_err()).count() as u64;
    verified.bytes += u64::from(found.end - SEGMENT_HEADER);
    for &offset in &found.damaged {
        let what = match found.offsets.binary_search(&offset) {
            Ok(_) => "the value of a record is damaged",
            Err(_) => "a record is damaged, and nobody can say whose it was",
        };
        verified.note(&name, Some(u64::from(offset)), what);
    }
    match (&sidecar, secret) {
        (Some(sidecar), Some(secret)) => compare(&segment, sidecar, secret, &found, (&name, &sidecar_name), verified),
        _ => verified.torn_bytes += u64::from(found.torn),
    }
    if segment.was_cut_short(env) {
        verified.note(&name, None, "the file was cut short");
    } else if segment.faults() > 0 {
        verified.note(&name, None, format!("{} pages cannot be read", segment.faults()));
    }
    Ok(())
}

/// Compares a sidecar with what is in its segment.
fn compare(
    segment: &Segment,
    sidecar: &Sidecar,
    secret: &Secret,
    found: &Scan,
    (name, sidecar_name): (&str, &str),
    verified: &mut Verified,
) {
    if !sidecar.has_directory() {
        verified.note(sidecar_name, None, "its directory of partitions is damaged; entries are looked at one by one");
    }
    let mut last: Option<&[u8]> = None;
    let mut lacks_order = false;
    for entry in sidecar.entries() {
        let offset = entry.offset;
        if found.offsets.binary_search(&offset).is_err() {
            // (What is damaged before an intact record was noted.)
            if found.damaged.binary_search(&offset).is_err() {
                verified.note(name, Some(u64::from(offset)), "the record that the sidecar names here is damaged");
            }
            continue;
        }
        let Ok(record) = segment.record(offset) else { continue };
        if !says_the_same(&entry, &record, secret) {
            verified.note(sidecar_name, None, format!("what it says of the record at {offset} is not what is there"));
        }
        lacks_order |= last.is_some_and(|last| last >= record.key());
        last = Some(record.key());
    }
    if lacks_order {
        verified.note(sidecar_name, None, "its keys are not in order");
        return;
    }
    for &offset in &found.offsets {
        let Ok(record) = segment.record(offset) else { continue };
        let at = sidecar.lower_bound(segment, record.key());
        let newest = (at < sidecar.len()).then(|| segment.record(sidecar.entry(at).offset).ok()).flatten();
        // A damaged neighbour hides the place, and was noted.
        let is_there = newest.is_none_or(|it| it.key() == record.key() && it.version() >= record.version());
        if !is_there && found.damaged.is_empty() {
            verified.note(sidecar_name, None, format!("it lacks the record at {offset}"));
        }
    }
}

fn says_the_same(entry: &sidecar::Entry, record: &Record<'_>, secret: &Secret) -> bool {
    let flags = Flags::from_bits(record.flags().bits() & Flags::KNOWN);
    entry.hash == secret.hash(record.key())
        && entry.leaf == Leaf::of(KeyHash::of(record.key()))
        && (entry.version, entry.flags) == (record.version(), flags)
        && entry.size as usize == record.size()
        && entry.expires == (record.expires_at_ms() != 0)
}

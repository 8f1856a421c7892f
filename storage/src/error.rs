//! What can be wrong, sorted by who has to act: whoever opens the store, or whoever writes to it.

use std::io;
use std::path::PathBuf;

use koltso_model::AttributeError;

use crate::folder::FolderError;

/// Why a store cannot be opened. Nothing on disk was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// An option is out of its range.
    #[error("{0}")]
    Option(String),
    /// A segment was written by a newer build.
    #[error("the segment {segment:016x}.log cannot be read: {reason}")]
    NewerSegment {
        /// Its sequence number.
        segment: u64,
        /// What is in the way.
        reason: String,
    },
    /// The system refused something.
    #[error("the data folder {folder} cannot be used: {error}")]
    Io {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Why a write was not done. Nothing was written, and reads go on.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The key is empty or too long.
    #[error("the key has {len} bytes, and a key has 1 to {max}")]
    Key {
        /// Its length.
        len: usize,
        /// The longest.
        max: usize,
    },
    /// The value is too long.
    #[error("the value has {len} bytes, and a value has at most {max}")]
    Value {
        /// Its length.
        len: usize,
        /// The longest.
        max: usize,
    },
    /// The attributes are malformed or too long.
    #[error(transparent)]
    Attributes(#[from] AttributeError),
    /// There is no room; try again when there is.
    #[error("the disk is full")]
    DiskFull,
    /// The system has no file descriptors or no memory left for a new segment; try again when it
    /// has.
    #[error("no segment can be made: {0}")]
    Resources(io::Error),
    /// The disk answered with an error, which may pass.
    #[error("the disk does not take the write: {0}")]
    Io(io::Error),
    /// The disk failed before: the store must be opened again.
    #[error("the disk failed, and nothing is written until the store is opened again")]
    Failed,
}

impl WriteError {
    /// What it means for a write that the system refused something. A full disk, a lack of
    /// resources and a disk that does not work call for different people.
    pub(crate) fn of(error: io::Error) -> Self {
        match (error.kind(), error.raw_os_error()) {
            (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, _) => Self::DiskFull,
            _ if is_shortage(&error) => Self::Resources(error),
            _ => Self::Io(error),
        }
    }
}

/// Whether the system lacked file descriptors or memory: that passes, and no disk has failed.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::OutOfMemory || matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_missing_resources_and_a_broken_disk_are_told_apart() {
        let of = |code| WriteError::of(io::Error::from_raw_os_error(code));
        for code in [libc::ENOSPC, libc::EDQUOT] {
            assert!(matches!(of(code), WriteError::DiskFull), "{code}");
        }
        for code in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            let error = of(code);
            assert!(matches!(error, WriteError::Resources(_)), "{code}");
            assert!(!error.to_string().contains("full"), "{error}");
        }
        for code in [libc::EIO, libc::EROFS, libc::EACCES] {
            let error = of(code);
            assert!(matches!(error, WriteError::Io(_)), "{code}");
            assert!(!error.to_string().contains("full"), "{error}");
        }
    }
}

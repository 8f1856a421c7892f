//! The data folder: who may use it, and which format it has.
//!
//! `LOCK` is held with `flock` while a process uses the folder; `FORMAT` holds `koltso 1`. Nothing is written before a
//! folder is known to be ours, free and of a format that this build reads.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::disk::sync_folder;

/// The format of the folder that this build writes.
pub const FOLDER_FORMAT: u32 = 1;
const FORMAT_FILE: &str = "FORMAT";
const LOCK_FILE: &str = "LOCK";

/// Why a data folder cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another process has it open.
    #[error("the data folder {0} is in use by another process")]
    InUse(PathBuf),
    /// Written by a newer build.
    #[error("the data folder {folder} has format {format}, and this build reads formats up to {FOLDER_FORMAT}")]
    NewerFormat {
        /// The folder.
        folder: PathBuf,
        /// What its `FORMAT` file says.
        format: u32,
    },
    /// There are files in it, and none of them says that they are ours.
    #[error("the folder {0} is not empty and holds no koltso data (no intact FORMAT file)")]
    Foreign(PathBuf),
    /// It cannot be made, read or written.
    #[error("the data folder {folder} cannot be used: {error}")]
    Io {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// A data folder that this process holds.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

fn format_of(content: &str) -> Option<u32> {
    content.strip_prefix("koltso ")?.trim_end().parse().ok()
}

/// Whether a folder with this entry is in use by somebody. The lock file, an empty `FORMAT` (killed while it was made) and
/// what `mkfs` leaves on a fresh file system do not count.
fn says_something(entry: &fs::DirEntry) -> bool {
    let name = entry.file_name();
    let unfinished = name == FORMAT_FILE && entry.metadata().is_ok_and(|m| m.len() == 0);
    name != LOCK_FILE && name != "lost+found" && !unfinished
}

impl Folder {
    /// Takes the folder, making it when it does not exist.
    ///
    /// # Errors
    /// When it is in use, foreign, newer or unusable; it is untouched then.
    pub fn take(path: &Path) -> Result<Self, FolderError> {
        let io_error = |error| FolderError::Io { folder: path.to_path_buf(), error };
        let foreign = || FolderError::Foreign(path.to_path_buf());
        let existing = match fs::read_dir(path) {
            Ok(entries) => entries.filter_map(Result::ok).any(|entry| says_something(&entry)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(io_error(e)),
        };
        if existing {
            match fs::read_to_string(path.join(FORMAT_FILE)) {
                Ok(content) => match format_of(&content) {
                    Some(format) if format > FOLDER_FORMAT => {
                        return Err(FolderError::NewerFormat { folder: path.to_path_buf(), format });
                    }
                    Some(_) => {}
                    None => return Err(foreign()),
                },
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(foreign()),
                Err(e) => return Err(io_error(e)),
            }
        }
        fs::create_dir_all(path).map_err(io_error)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK_FILE)).map_err(io_error)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FolderError::InUse(path.to_path_buf())),
            Err(TryLockError::Error(e)) => return Err(io_error(e)),
        }
        if !existing {
            let write = || -> io::Result<()> {
                let mut file = File::create(path.join(FORMAT_FILE))?;
                file.write_all(format!("koltso {FOLDER_FORMAT}\n").as_bytes())?;
                file.sync_all()?;
                sync_folder(path)
            };
            write().map_err(io_error)?;
        }
        Ok(Self { path: path.to_path_buf(), _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_taken_once_and_only_if_it_is_ours() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a/b");
        let held = Folder::take(&path).expect("made");
        assert!(matches!(Folder::take(&path), Err(FolderError::InUse(_))));
        drop(held);
        drop(Folder::take(&path).expect("taken again"));
        fs::write(path.join(FORMAT_FILE), "").expect("written");
        drop(Folder::take(&path).expect("a start that was killed at once is no obstacle"));
        fs::write(path.join(FORMAT_FILE), "koltso 2\n").expect("written");
        assert!(matches!(Folder::take(&path), Err(FolderError::NewerFormat { format: 2, .. })));
        fs::write(path.join(FORMAT_FILE), "something").expect("written");
        assert!(matches!(Folder::take(&path), Err(FolderError::Foreign(_))));
        let other = dir.path().join("other");
        fs::create_dir(&other).expect("made");
        fs::write(other.join("holiday.jpg"), "x").expect("written");
        assert!(matches!(Folder::take(&other), Err(FolderError::Foreign(_))));
        assert_eq!(fs::read_dir(&other).expect("read").count(), 1, "nothing was added");
    }
}

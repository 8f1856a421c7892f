//! The data folder: who may use it, and which format it has.
//!
//! `LOCK` is held with `flock` while a process uses the folder; `FORMAT` holds `koltso 2` and is
//! written last, after `SECRET` ([`crate::secret`]). Nothing is written before a folder is known to
//! be ours, free and of a format that this build reads.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use koltso_instrument::waiting;

use crate::env::{self, Env, FolderEntry, RealEnv};
use crate::secret::{NoSecret, SECRET_FILE, SECRET_NEW_FILE, Secret};

/// The format of the folder that this build writes.
pub const FOLDER_FORMAT: u32 = 2;
const FORMAT_FILE: &str = "FORMAT";
/// What `FORMAT` is called until its content is on disk.
const NEW_FORMAT_FILE: &str = "FORMAT-new";
const LOCK_FILE: &str = "LOCK";

/// Why a data folder cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another process has it open.
    #[error("the data folder {0} is in use by another process")]
    InUse(PathBuf),
    /// Written by a newer build.
    #[error(
        "the data folder {folder} has format {format}, and this build reads format {FOLDER_FORMAT}: use a newer build"
    )]
    NewerFormat {
        /// The folder.
        folder: PathBuf,
        /// What its `FORMAT` file says.
        format: u32,
    },
    /// Written by a build from before the first release.
    #[error(
        "the data folder {folder} has format {format}, which nothing converts: start with an empty folder, or use the build \
         that wrote it"
    )]
    OlderFormat {
        /// The folder.
        folder: PathBuf,
        /// What its `FORMAT` file says.
        format: u32,
    },
    /// There are files in it, and none of them says that they are ours.
    #[error("the folder {0} is not empty and holds no koltso data (no intact FORMAT file)")]
    Foreign(PathBuf),
    /// Its secret is gone, and its sidecars need it.
    #[error(
        "the data folder {0} lacks its file {SECRET_FILE}: put it back from a copy of the folder, or remove the files *.idx \
         as well, and the next start makes all of them anew from the log"
    )]
    SecretMissing(PathBuf),
    /// Its secret is cut short or damaged.
    #[error(
        "the file {SECRET_FILE} in the data folder {0} is damaged: put it back from a copy of the folder, or remove it and the \
         files *.idx, and the next start makes all of them anew from the log"
    )]
    SecretDamaged(PathBuf),
    /// Others than the owner may read its secret.
    #[error(
        "others than its owner may read the file {SECRET_FILE} in the data folder {0}, which is to keep clients from choosing \
         keys that are slow: take their permissions away (chmod 600)"
    )]
    SecretOpen(PathBuf),
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
    secret: Secret,
    _lock: File,
}

fn format_of(content: &str) -> Option<u32> {
    content.strip_prefix("koltso ")?.trim_end().parse().ok()
}

/// Whether a folder with this entry is in use by somebody. What is left of a start that ended
/// before there was a `FORMAT`, the lock file and a secret among it, and what `mkfs` leaves on a
/// fresh file system do not count.
fn says_something(entry: &FolderEntry) -> bool {
    let name = &entry.name;
    let unfinished = name == FORMAT_FILE && entry.len == 0;
    let ours = [LOCK_FILE, NEW_FORMAT_FILE, SECRET_FILE, SECRET_NEW_FILE, "lost+found"];
    !unfinished && !ours.iter().any(|ours| name == ours)
}

/// The folder that a folder lies in.
fn parent_of(path: &Path) -> Option<&Path> {
    path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

/// Makes a folder, and those above it where there are none. Their names survive a power loss as
/// well, or what is in the folder would go with it.
fn create(env: &dyn Env, path: &Path) -> io::Result<()> {
    let parent = parent_of(path);
    let made = env.create_folder(path).or_else(|e| match parent {
        Some(parent) if e.kind() == io::ErrorKind::NotFound => {
            create(env, parent)?;
            env.create_folder(path)
        }
        _ => Err(e),
    });
    match (made, parent) {
        (Ok(()), Some(parent)) => env.sync_folder(parent),
        (Err(e), _) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        (made, _) => made,
    }
}

/// Whether a folder with something in it is one of ours, and of this format.
fn check_format(env: &dyn Env, path: &Path) -> Result<(), FolderError> {
    let folder = path.to_path_buf();
    match env::read(env, &path.join(FORMAT_FILE)) {
        Ok(content) => match std::str::from_utf8(&content).ok().and_then(format_of) {
            Some(format) if format > FOLDER_FORMAT => Err(FolderError::NewerFormat { folder, format }),
            Some(format) if format < FOLDER_FORMAT => Err(FolderError::OlderFormat { folder, format }),
            Some(_) => Ok(()),
            None => Err(FolderError::Foreign(folder)),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(FolderError::Foreign(folder)),
        Err(error) => Err(FolderError::Io { folder, error }),
    }
}

fn is_sidecar(entry: &FolderEntry) -> bool {
    Path::new(&entry.name).extension().is_some_and(|extension| extension == "idx")
}

impl Folder {
    /// Takes the folder, making it when it does not exist.
    ///
    /// # Errors
    /// When it is in use, foreign, newer or unusable; it is untouched then.
    pub fn take(path: &Path) -> Result<Self, FolderError> {
        Self::take_in(&RealEnv, path)
    }

    /// As [`Folder::take`], in the environment that the store is opened with.
    ///
    /// # Errors
    /// See there.
    pub fn take_in(env: &dyn Env, path: &Path) -> Result<Self, FolderError> {
        let io_error = |error| FolderError::Io { folder: path.to_path_buf(), error };
        let foreign = || FolderError::Foreign(path.to_path_buf());
        let entries = match env.list(path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(io_error(e)),
        };
        let existing = entries.iter().any(says_something);
        if existing {
            check_format(env, path)?;
        }
        let secret = match Secret::read(env, path) {
            Ok(secret) => Some(secret),
            Err(NoSecret::Missing) if entries.iter().any(is_sidecar) => {
                return Err(FolderError::SecretMissing(path.to_path_buf()));
            }
            // Nothing that is there depends on it.
            Err(NoSecret::Missing) => None,
            Err(NoSecret::Io(e)) => return Err(io_error(e)),
            // Without a FORMAT file it is some file of somebody.
            Err(_) if !existing => return Err(foreign()),
            Err(NoSecret::Damaged) => return Err(FolderError::SecretDamaged(path.to_path_buf())),
            Err(NoSecret::Open) => return Err(FolderError::SecretOpen(path.to_path_buf())),
        };
        create(env, path).map_err(io_error)?;
        let lock = match env.lock(&path.join(LOCK_FILE)) {
            Ok(lock) => lock,
            Err(TryLockError::WouldBlock) => return Err(FolderError::InUse(path.to_path_buf())),
            Err(TryLockError::Error(e)) => return Err(io_error(e)),
        };
        let secret = match secret {
            Some(secret) => secret,
            None => {
                if existing {
                    tracing::warn!("the data folder had no file {SECRET_FILE} and no sidecars: a new secret is made");
                }
                Secret::make(env, path).map_err(io_error)?
            }
        };
        match env.restrict(path) {
            Ok(0) => {}
            Ok(_) if !existing => {}
            Ok(count) => tracing::warn!(
                "others than the owner could read or write {count} files and folders of the data folder {}: these permissions \
                 were taken away",
                path.display()
            ),
            Err(e) => tracing::warn!(
                "others may be able to read the data folder {}, whose permissions cannot be changed: {e}",
                path.display()
            ),
        }
        let folder = Self { path: path.to_path_buf(), secret, _lock: lock };
        if !existing {
            let write = || -> io::Result<()> {
                // Under another name until it is whole, or a loss of power could leave a folder
                // that seems to be another's.
                let unfinished = path.join(NEW_FORMAT_FILE);
                let file = env.create(&unfinished)?;
                env.write_at(&file, format!("koltso {FOLDER_FORMAT}\n").as_bytes(), 0)?;
                env.sync(&file)?;
                // Whoever made the folder may have been killed before it did this.
                parent_of(path).map_or(Ok(()), |parent| env.sync_folder(parent))?;
                env.rename(&unfinished, &path.join(FORMAT_FILE))
            };
            write().map_err(io_error)?;
        }
        // Also where there is a FORMAT: whoever wrote it may have ended, or have met an error, before
        // its name was durable, and segments whose names are would be taken for somebody else's.
        folder.sync(env).map_err(io_error)?;
        Ok(folder)
    }

    /// Keeps others from using a folder of ours for as long as what it returns lives, and changes
    /// nothing in it. (A copy may lack the file that is locked. Then nobody uses it.)
    ///
    /// # Errors
    /// When there is no folder, or it is in use, foreign, newer or unusable.
    pub(crate) fn hold_unchanged(env: &dyn Env, path: &Path) -> Result<Option<File>, FolderError> {
        let io_error = |error| FolderError::Io { folder: path.to_path_buf(), error };
        env.list(path).map_err(io_error)?;
        check_format(env, path)?;
        let lock = match env.open_to_read(&path.join(LOCK_FILE)) {
            Ok(lock) => lock,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error(e)),
        };
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(TryLockError::WouldBlock) => Err(FolderError::InUse(path.to_path_buf())),
            Err(TryLockError::Error(e)) => Err(io_error(e)),
        }
    }

    /// Makes new, removed and renamed names in it survive a power loss.
    pub(crate) fn sync(&self, env: &dyn Env) -> io::Result<()> {
        waiting(&"sync of a folder", || env.sync_folder(&self.path))
    }

    /// What the hashes in its sidecars are keyed with.
    pub(crate) const fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

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
        fs::write(path.join(FORMAT_FILE), "koltso 3\n").expect("written");
        assert!(matches!(Folder::take(&path), Err(FolderError::NewerFormat { format: 3, .. })));
        fs::write(path.join(FORMAT_FILE), "koltso 1\n").expect("written");
        assert!(matches!(Folder::take(&path), Err(FolderError::OlderFormat { format: 1, .. })));
        fs::write(path.join(FORMAT_FILE), "something").expect("written");
        assert!(matches!(Folder::take(&path), Err(FolderError::Foreign(_))));
        let other = dir.path().join("other");
        fs::create_dir(&other).expect("made");
        fs::write(other.join("holiday.jpg"), "x").expect("written");
        assert!(matches!(Folder::take(&other), Err(FolderError::Foreign(_))));
        assert_eq!(fs::read_dir(&other).expect("read").count(), 1, "nothing was added");
    }
}

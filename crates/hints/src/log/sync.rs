//! What of a log is to be synced, and what came of it.
//!
//! The owner of the log makes a [`Batch`], somebody else syncs it, however long the disk takes, and
//! the owner gets the result back. Meanwhile it appends and removes as ever: a file that is gone by
//! then needs no sync. Owner: the log's. Bounds: one batch at a time; the files of full segments are
//! named and opened one after the other, so that a slow disk costs no descriptors.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use koltso_instrument::waiting;

use super::Log;

/// Files to be synced.
pub(crate) struct Batch {
    /// The segment to which entries are appended, if it has new ones.
    active: Option<Arc<File>>,
    /// Segments that were filled.
    rolled: Vec<(u64, PathBuf)>,
    /// The folder, if a name in it is new.
    folder: Option<PathBuf>,
    sync: fn(&File) -> io::Result<()>,
}

/// What came of a batch.
#[derive(Debug, Default)]
pub(crate) struct Synced {
    failed: Option<io::Error>,
    /// What could not be opened, for want of a descriptor for example: no sync has failed by that.
    unopened: Option<io::Error>,
    rolled: Vec<u64>,
    folder: bool,
}

impl Batch {
    /// Syncs the files, and waits for the disk.
    pub(crate) fn sync(self) -> Synced {
        let mut synced = Synced::default();
        let mut result = Ok(());
        if let Some(file) = &self.active {
            result = waiting(&"sync of hints", || (self.sync)(file));
        }
        for (sequence, path) in self.rolled {
            match File::open(path) {
                Ok(file) => result = result.and(waiting(&"sync of hints", || (self.sync)(&file))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    synced.unopened = Some(error);
                    synced.rolled.push(sequence);
                }
            }
        }
        if let Some(folder) = self.folder {
            match File::open(folder) {
                Ok(folder) => result = result.and(waiting(&"sync of a folder", || (self.sync)(&folder))),
                Err(error) => (synced.unopened, synced.folder) = (Some(error), true),
            }
        }
        synced.failed = result.err();
        synced
    }
}

impl Log {
    pub(super) fn is_unsynced(&self) -> bool {
        self.bytes_dirty || self.names_dirty || !self.rolled.is_empty()
    }

    /// What has changed since the last batch; `None` if nothing has. [`Self::synced`] gets what
    /// comes of it, before the next batch.
    pub(crate) fn begin_sync(&mut self) -> Option<Batch> {
        if !self.is_unsynced() {
            return None;
        }
        let is_dirty = std::mem::take(&mut self.bytes_dirty);
        let rolled = std::mem::take(&mut self.rolled);
        Some(Batch {
            active: self.active.clone().filter(|_| is_dirty),
            rolled: rolled.into_iter().map(|sequence| (sequence, self.path(sequence))).collect(),
            folder: std::mem::take(&mut self.names_dirty).then(|| self.folder.clone()),
            sync: self.sync,
        })
    }

    /// A batch was synced, or not.
    pub(crate) fn synced(&mut self, synced: Synced) {
        self.rolled.extend(synced.rolled);
        self.names_dirty |= synced.folder;
        if let Some(error) = synced.failed {
            // The kernel may have dropped the pages. What is read back is verified anyway.
            if self.cannot_sync.due() {
                tracing::error!("hints for {} may not survive a power loss, the sync failed: {error}", self.peer);
            }
            self.lose(0, "a sync failed");
        } else if let Some(error) = synced.unopened
            && self.cannot_sync.due()
        {
            tracing::warn!("the hints for {} cannot all be synced yet: {error}", self.peer);
        }
    }
}

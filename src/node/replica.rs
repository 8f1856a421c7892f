//! A core's hold on the engine: reads of everything, writes to the core's own log, and the wait for the disk in the mode
//! "always".
//!
//! Owner: one core; the API, the coordinator and the replica service of that core share it. After [`Engine::close`]
//! nothing is written.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use koltso_storage::{Applied, Store, SyncMode, Version, WriteError, Writer};

use crate::node::commit::{self, Commit, NotDurable, SharedWriter};

/// See above.
pub struct Engine {
    store: Arc<Store>,
    /// `None` once the core has drained.
    writer: SharedWriter,
    /// In the mode "always".
    commit: Option<Rc<Commit>>,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is the newest version of its key, or was there already.
    Applied,
    /// A newer version was there.
    Superseded(Version),
}

impl Engine {
    /// Takes a core's writer; in the mode "always" also starts its group commit. On the core's runtime.
    pub fn new(store: Arc<Store>, writer: Writer, sync: SyncMode) -> Self {
        let writer = Rc::new(RefCell::new(Some(writer)));
        let commit = (sync == SyncMode::Always).then(|| {
            let commit = Rc::new(Commit::default());
            monoio::spawn(commit::run(commit.clone(), writer.clone()));
            commit
        });
        Self { store, writer, commit }
    }

    /// The store, for reads.
    #[inline]
    pub const fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Writes a value, or a tombstone where there is none.
    ///
    /// # Errors
    /// See [`WriteError`].
    #[inline]
    pub fn write(
        &self,
        key: &[u8],
        value: Option<&[u8]>,
        version: Version,
        expires_at_ms: u64,
    ) -> Result<Written, WriteError> {
        let mut writer = self.writer.borrow_mut();
        let writer = writer.as_mut().ok_or(WriteError::Failed)?;
        let applied = match value {
            Some(value) => writer.put(key, value, version, expires_at_ms)?,
            None => writer.delete(key, version)?,
        };
        Ok(match applied {
            Applied::Newest => Written::Applied,
            Applied::Superseded(standing) if standing > version => Written::Superseded(standing),
            Applied::Superseded(_) => Written::Applied,
        })
    }

    /// In the mode "always": until everything written so far is on disk.
    #[inline]
    pub fn durable(&self) -> Option<impl Future<Output = Result<(), NotDurable>> + use<>> {
        let commit = self.commit.as_ref()?;
        // Without a writer nothing was written that could wait.
        let position = self.writer.borrow().as_ref().map_or(0, Writer::position);
        Some(commit.durable(position))
    }

    /// Lets go of the writer, so that the store can be closed.
    pub fn close(&self) {
        self.writer.borrow_mut().take();
        if let Some(commit) = &self.commit {
            commit.stop();
        }
    }
}

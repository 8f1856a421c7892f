//! The store as openraft wants it: a log, and a machine that applies it.
//!
//! The calls block while the disk writes: a document is small, and changes are rare. The state
//! after each batch of entries is on disk before anybody hears of it, so a member that is started
//! again knows its document without asking anybody. A snapshot is that state, in memory.
//!
//! Owner: openraft's tasks. Invariant: a document is published after it is on disk. Tested through
//! the council, in `tests/`.

#![allow(clippy::result_large_err, reason = "the error is openraft's")]

use std::fmt::Debug;
use std::ops::RangeBounds;
use std::sync::Arc;

use openraft::storage::{LogFlushed, LogState, RaftLogStorage, RaftStateMachine};
use openraft::{ErrorSubject, ErrorVerb, OptionalSend, RaftLogReader, RaftSnapshotBuilder};
use tokio::sync::watch;

use crate::document::Document;
use crate::messages::ENTRIES_BYTES_MAX;
use crate::raft::{Config, Entry, LogId, Outcome, Snapshot, SnapshotMeta, State, StorageError, StoredMembership, Vote};
use crate::store::{Applied, SharedStore, Store, StoreError};

/// The newest document that is applied here.
pub(crate) type Published = Arc<watch::Sender<Option<Arc<Document>>>>;

fn failed(subject: ErrorSubject<u64>, verb: ErrorVerb) -> impl FnOnce(StoreError) -> StorageError {
    move |error| StorageError::from_io_error(subject, verb, std::io::Error::other(error))
}

/// The log.
#[derive(Clone)]
pub(crate) struct Log(pub SharedStore);

impl RaftLogReader<Config> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, StorageError> {
        let entries = self.0.with(|store| Ok(store.entries().range(range).map(|(_, entry)| entry.clone()).collect()));
        entries.map_err(failed(ErrorSubject::Logs, ErrorVerb::Read))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        let mut entries = self.try_get_log_entries(start..end).await?;
        let mut bytes = 0;
        // The one that goes beyond is sent, too: no entry is larger than a document.
        let fit = entries.iter().take_while(|entry| {
            let is_within = bytes < ENTRIES_BYTES_MAX;
            bytes += serde_json::to_vec(entry).map_or(0, |json| json.len());
            is_within
        });
        let fit = fit.count();
        entries.truncate(fit);
        Ok(entries)
    }
}

impl RaftLogStorage<Config> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Config>, StorageError> {
        let state =
            self.0.with(|store| Ok(LogState { last_purged_log_id: store.purged_id(), last_log_id: store.last_id() }));
        state.map_err(failed(ErrorSubject::Logs, ErrorVerb::Read))
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.0.with(|store| store.save_vote(*vote)).map_err(failed(ErrorSubject::Vote, ErrorVerb::Write))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.0.with(|store| Ok(store.vote())).map_err(failed(ErrorSubject::Vote, ErrorVerb::Read))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Config>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().collect();
        self.0.with(|store| store.append(entries)).map_err(failed(ErrorSubject::Logs, ErrorVerb::Write))?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, id: LogId) -> Result<(), StorageError> {
        self.0.with(|store| store.truncate(id.index)).map_err(failed(ErrorSubject::Logs, ErrorVerb::Delete))
    }

    async fn purge(&mut self, id: LogId) -> Result<(), StorageError> {
        // openraft purges what a snapshot covers without waiting until the machine has it, which is
        // another task. A crash between the two would leave neither the entries nor the snapshot.
        let is_covered = |store: &mut Store| store.is_usable().map(|()| store.applied().last >= Some(id));
        while !self.0.with(is_covered).map_err(failed(ErrorSubject::Logs, ErrorVerb::Delete))? {
            tokio::task::yield_now().await;
        }
        self.0.with(|store| store.purge(id)).map_err(failed(ErrorSubject::Logs, ErrorVerb::Delete))
    }
}

/// The machine.
pub(crate) struct Machine {
    store: SharedStore,
    published: Published,
    /// The last snapshot, for members that are far behind.
    snapshot: Arc<parking_lot::Mutex<Option<Snapshot>>>,
}

impl Machine {
    pub(crate) fn new(store: SharedStore, published: Published) -> Self {
        Self { store, published, snapshot: Arc::default() }
    }

    fn applied(&self) -> Result<Applied, StorageError> {
        let applied = self.store.with(|store| Ok(store.applied().clone()));
        applied.map_err(failed(ErrorSubject::StateMachine, ErrorVerb::Read))
    }

    fn save(&self, applied: Applied) -> Result<(), StorageError> {
        let saved = self.store.with(|store| store.save_applied(applied));
        saved.map_err(failed(ErrorSubject::StateMachine, ErrorVerb::Write))
    }

    fn publish(&self, document: &Document) {
        self.published.send_replace(Some(Arc::new(document.clone())));
    }
}

/// Makes a snapshot of the state at one moment.
pub(crate) struct Builder {
    applied: Result<Applied, StorageError>,
    snapshot: Arc<parking_lot::Mutex<Option<Snapshot>>>,
}

impl RaftSnapshotBuilder<Config> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let applied = self.applied.clone()?;
        let snapshot_id = applied.last.map_or_else(|| "empty".to_owned(), |last| last.to_string());
        let meta = SnapshotMeta { last_log_id: applied.last, last_membership: applied.members, snapshot_id };
        let snapshot = Snapshot { meta, snapshot: Box::new(applied.state) };
        *self.snapshot.lock() = Some(snapshot.clone());
        Ok(snapshot)
    }
}

impl RaftStateMachine<Config> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        self.applied().map(|applied| (applied.last, applied.members))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut applied = self.applied()?;
        let outcomes: Vec<Outcome> = entries.into_iter().map(|entry| applied.apply(&entry)).collect();
        self.save(applied)?;
        for outcome in &outcomes {
            if let Outcome::Made(document) = outcome {
                self.publish(document);
            }
        }
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { applied: self.applied(), snapshot: self.snapshot.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<State>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, state: Box<State>) -> Result<(), StorageError> {
        let (last, members) = (meta.last_log_id, meta.last_membership.clone());
        self.save(Applied { last, members, state: (*state).clone() })?;
        if let Some(document) = &state.document {
            self.publish(document);
        }
        *self.snapshot.lock() = Some(Snapshot { meta: meta.clone(), snapshot: state });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        Ok(self.snapshot.lock().clone())
    }
}

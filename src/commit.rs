//! Group commit of one core, for `--sync always`: one sync of the log confirms every write that was in flight.
//!
//! Writes append and wait; a task of the core syncs what has been appended whenever somebody waits, through io_uring
//! where there is one. While a sync runs, further writes gather for the next.
//!
//! Owner: one core. Bounds: waiters are requests in flight, which are bounded. Invariants: a wait ends with `Ok` only
//! after a sync that began after its record was appended; after a failed sync every wait ends with an error, for good.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use koltso_storage::{SyncBatch, Writer};
use monoio::fs::File;

/// The core's writer, until it has drained.
pub type SharedWriter = Rc<RefCell<Option<Writer>>>;

/// The group commit of a core.
#[derive(Default)]
pub struct Commit {
    durable: Cell<u64>,
    wanted: Cell<u64>,
    failed: Cell<bool>,
    stopped: Cell<bool>,
    waiters: RefCell<Vec<Waker>>,
    committer: Cell<Option<Waker>>,
}

/// The log could not be synced: the write is not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotDurable;

impl Commit {
    /// Waits until everything up to `position` of the core's log is on disk. The request is made at once, not when the
    /// future is first polled.
    pub fn durable(self: &Rc<Self>, position: u64) -> impl Future<Output = Result<(), NotDurable>> + use<> {
        if position > self.wanted.get() {
            self.wanted.set(position);
            if let Some(waker) = self.committer.take() {
                waker.wake();
            }
        }
        let commit = self.clone();
        poll_fn(move |cx| {
            if commit.durable.get() >= position {
                return Poll::Ready(Ok(()));
            }
            if commit.failed.get() {
                return Poll::Ready(Err(NotDurable));
            }
            commit.waiters.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
    }

    /// Ends [`run`] once nobody waits.
    pub fn stop(&self) {
        self.stopped.set(true);
        if let Some(waker) = self.committer.take() {
            waker.wake();
        }
    }

    /// Until a write wants to be synced; `false` to stop.
    async fn wanted(&self) -> bool {
        poll_fn(|cx| {
            if self.wanted.get() > self.durable.get() && !self.failed.get() {
                return Poll::Ready(true);
            }
            if self.stopped.get() {
                return Poll::Ready(false);
            }
            self.committer.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    fn wake_all(&self) {
        let waiters = std::mem::take(&mut *self.waiters.borrow_mut());
        waiters.into_iter().for_each(Waker::wake);
    }
}

/// Syncs the core's log whenever somebody waits for it. A task of the core.
pub async fn run(commit: Rc<Commit>, writer: SharedWriter) {
    // Descriptors of the segments that are being written, which are one or two.
    let mut files: HashMap<u64, File> = HashMap::new();
    while commit.wanted().await {
        let Some(batch) = writer.borrow().as_ref().map(Writer::begin_sync) else {
            return;
        };
        let synced = sync(&batch, &mut files).await;
        if let Some(writer) = writer.borrow().as_ref() {
            match synced {
                Ok(()) => {
                    writer.complete_sync(&batch);
                    if writer.durable() >= batch.position() {
                        commit.durable.set(batch.position());
                    } else {
                        commit.failed.set(true);
                    }
                }
                Err(e) => {
                    writer.fail(&e);
                    commit.failed.set(true);
                }
            }
        }
        commit.wake_all();
    }
}

async fn sync(batch: &SyncBatch, files: &mut HashMap<u64, File>) -> std::io::Result<()> {
    files.retain(|id, _| batch.files().any(|(wanted, _)| wanted == *id));
    for (id, file) in batch.files() {
        let file = match files.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(File::from_std(file.try_clone()?)?),
        };
        file.sync_data().await?;
    }
    Ok(())
}

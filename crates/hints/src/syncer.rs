//! The thread that syncs the logs of all peers, so that none of their owners waits for a disk while
//! there are hints to append.
//!
//! Owner: the keeper. It ends when nobody can ask for a sync any more. Bounds: one batch of each
//! peer waits for it.

use std::io;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender};

use crate::log::Batch;
use crate::queue::Item;

/// A batch, and whose queue gets what came of it.
pub(crate) struct Job {
    pub batch: Batch,
    pub answer: Sender<Item>,
}

/// Starts the thread. The second value is closed when it has ended.
pub(crate) fn start(jobs: Receiver<Job>) -> io::Result<(JoinHandle<()>, Receiver<()>)> {
    let (ended, has_ended) = crossbeam_channel::bounded(0);
    let thread = thread::Builder::new().name("koltso-hintsync".to_owned()).spawn(move || {
        for Job { batch, answer } in jobs {
            // Whoever has ended meanwhile has synced the rest itself.
            let _ = answer.send(Item::Synced(batch.sync()));
        }
        drop(ended);
    })?;
    Ok((thread, has_ended))
}

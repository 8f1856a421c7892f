//! What the callers of a keeper and the thread of a peer share: the queue of hints, and what is
//! known of those in it.
//!
//! Bounds: [`QUEUE_MAX`] and [`QUEUE_BYTES_MAX`] for hints, beyond which one is dropped and the peer
//! needs repair; of everything else there is one of a kind at a time, but for the marks of callers.
//!
//! Invariants:
//! 1. A hint is counted, in [`Shared::backlog`] and in [`Shared::oldest_clock`], from before it is in
//!    the queue until the log that it is in was published: whoever reads the queue first and then
//!    the log may see it twice, but never not at all.
//! 2. [`Shared::generation`] grows with each loss.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use koltso_cluster::backlog::Backlog;
use koltso_cluster::replay::Verdict;
use koltso_instrument::Mutex;
use koltso_model::Record;

use crate::keeper::Figures;
use crate::log::Synced;

/// The most hints that wait to be appended for one peer: a second of a fast node's writes, while
/// the disk holds up the thread.
pub const QUEUE_MAX: usize = 64 << 10;
/// The most bytes of keys and values that wait to be appended for one peer.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Everything that can wake the thread of a peer.
pub(crate) enum Item {
    Hint(Record<Bytes>),
    /// The peer has missed more than its hints say, for this reason.
    Mark(String),
    /// The peer has all that was lost up to this generation.
    Repaired(u64),
    /// The courier has a connection, or cannot get one.
    Dialled(Result<(), String>),
    /// What the peer said to the window that is on its way, and how long that took.
    Answered(Result<Vec<Verdict>, String>, Duration),
    /// What came of the batch that is being synced.
    Synced(Synced),
    Stop,
}

/// See the module.
pub(crate) struct Shared {
    pub backlog: Backlog,
    pub stopping: AtomicBool,
    sender: Sender<Item>,
    oldest: Mutex<Oldest>,
    pub published: Mutex<Published>,
}

/// The oldest clocks of hints that are not in the log yet; `u64::MAX` where there is none.
struct Oldest {
    queued: u64,
    /// Of those that the thread is appending.
    taken: u64,
}

/// What the thread reports about itself, after each turn.
#[derive(Default)]
pub(crate) struct Published {
    pub figures: Figures,
    /// A clock that no hint's in the log is older than.
    pub oldest_clock: Option<u64>,
    /// How often something was lost.
    pub losses: u64,
    /// How many of those that did not fit into the queue are included in the figures.
    pub overflow_seen: u64,
}

impl Shared {
    /// An empty queue, and the end at which the thread takes from it.
    pub(crate) fn new() -> (Self, Receiver<Item>) {
        let (sender, queue) = crossbeam_channel::unbounded();
        let shared = Self {
            backlog: Backlog::new(QUEUE_MAX, QUEUE_BYTES_MAX),
            stopping: AtomicBool::new(false),
            sender,
            oldest: Mutex::new(&"queue of hints", Oldest { queued: u64::MAX, taken: u64::MAX }),
            published: Mutex::new(&"figures of hints", Published::default()),
        };
        (shared, queue)
    }

    /// The end at which others put things into the queue.
    pub(crate) fn sender(&self) -> Sender<Item> {
        self.sender.clone()
    }

    /// Queues a hint, or drops and counts it.
    pub(crate) fn keep(&self, record: Record<Bytes>) {
        let bytes = record.len();
        if !self.backlog.admit(bytes) {
            return;
        }
        let mut oldest = self.oldest.lock();
        oldest.queued = oldest.queued.min(record.version.clock);
        let is_queued = !self.stopping.load(Ordering::Relaxed) && self.sender.send(Item::Hint(record)).is_ok();
        drop(oldest);
        if !is_queued {
            self.backlog.drop_admitted(bytes);
        }
    }

    /// The thread has taken one item and takes all that are behind it now, so many.
    pub(crate) fn take_all(&self, queue: &Receiver<Item>) -> usize {
        let mut oldest = self.oldest.lock();
        oldest.taken = oldest.taken.min(oldest.queued);
        oldest.queued = u64::MAX;
        queue.len()
    }

    /// They are in the log, which was published.
    pub(crate) fn all_taken(&self) {
        self.oldest.lock().taken = u64::MAX;
    }

    /// A clock that no hint's in the queue or in the log is older than; `None` if there is no hint.
    pub(crate) fn oldest_clock(&self) -> Option<u64> {
        let queued = {
            let oldest = self.oldest.lock();
            oldest.queued.min(oldest.taken)
        };
        let in_log = self.published.lock().oldest_clock;
        [Some(queued).filter(|&clock| clock < u64::MAX), in_log].into_iter().flatten().min()
    }

    /// Counts what was lost.
    pub(crate) fn generation(&self, losses: u64) -> u64 {
        losses + self.backlog.overflowed()
    }

    /// The state of the hints.
    pub(crate) fn figures(&self) -> Figures {
        let queued = self.backlog.count();
        let published = self.published.lock();
        let mut figures = published.figures.clone();
        let unseen = self.backlog.overflowed() - published.overflow_seen;
        drop(published);
        figures.pending += queued as u64;
        figures.dropped += unseen;
        figures.needs_repair |= unseen > 0;
        figures
    }

    /// Which losses the peer needs repair for; `None` if there are none.
    pub(crate) fn needs_repair(&self) -> Option<u64> {
        let published = self.published.lock();
        // What does not fit after this is another generation.
        let overflowed = self.backlog.overflowed();
        let needs = published.figures.needs_repair || overflowed > published.overflow_seen;
        needs.then_some(published.losses + overflowed)
    }
}

//! What callers see: the keeper, its options, and what it reports.
//!
//! ```text
//! any thread ── keep ──▶ queue ──▶ koltso-hints-N ◀──▶ log (files) ── batch ──▶ koltso-hintsync
//!                                       │  ▲                                     (all peers)
//!                              window ──▼  └── answers
//!                                  koltso-replay-N                Dial, Target: the caller's
//! ```
//!
//! The thread that owns a peer's log waits for no disk to sync and for no peer to answer: a hint is
//! in the page cache about a millisecond after it was kept, and what is killed then loses no more.
//!
//! Bounds: those of the queue (`queue.rs`); [`Options`] for the files; `koltso_cluster::replay` for
//! what a replay sends, and when; [`Options::budget`] for its bytes a second.
//!
//! Invariants: hints are appended in the order of the queue and sent in the order of the log.
//! [`Replay`](koltso_cluster::replay::Replay) decides what a peer's answers mean for them.
//!
//! Tested in `tests/keeper.rs`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use koltso_cluster::budget::Budget;
use koltso_cluster::replay::Verdict;
use koltso_instrument::Mutex;
use koltso_model::{Record, WallTime};

use crate::log::{Bounds, Log};
use crate::queue::{Item, Shared};
use crate::syncer::{self, Job};
use crate::worker::Worker;

/// The shortest pause after a failure, so that a thread that keeps failing does not spin.
const RETRY_MIN: Duration = Duration::from_millis(1);
/// How long [`Keeper::stop`] waits: for a target's reply, for the hints in the queue, and for the
/// disk.
pub(crate) const STOP_MAX: Duration = Duration::from_secs(2);

/// A node that can miss writes.
#[derive(Clone, Debug)]
pub struct PeerAddress {
    /// The node's index in the topology.
    pub node: usize,
    /// The node's HTTP address, which names its folder.
    pub url: String,
}

/// Makes connections to peers.
pub trait Dial: Send + Sync + 'static {
    /// Connects to a peer within about half a second.
    ///
    /// # Errors
    /// One sentence that says why it cannot be reached.
    fn dial(&self, node: usize) -> Result<Box<dyn Target>, String>;

    /// Whether the hints that an earlier process left are still good, as far as the dials and others
    /// have found out. Those of a folder that is an older copy are not: what they contain may have
    /// been deleted since, and the delete forgotten. They are given up then, and none is sent.
    fn are_found_hints_good(&self) -> bool {
        true
    }
}

/// A connection to a peer with deadlines of its own (at most half a second for a reply).
pub trait Target: Send {
    /// Sends all records, then waits for all answers: one for each record, in their order.
    ///
    /// # Errors
    /// One sentence. The connection is then dropped, and none of the records counts as answered.
    fn write(&mut self, records: &[Record<Bytes>]) -> Result<Vec<Verdict>, String>;
}

/// How hints are kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// The most bytes of hint files for one peer; beyond it, the oldest are dropped.
    pub bytes_max: u64,
    /// Hints older than this by `now_ms` are dropped, up to an eighth of it late.
    pub age_max: Duration,
    /// About the size of a segment file, in bytes; at most a quarter of `bytes_max` is used.
    pub segment_size: u64,
    /// Reads the time of day, in milliseconds since the Unix epoch.
    pub now_ms: fn() -> u64,
    /// The pause after a failed dial or write, which doubles up to
    /// `koltso_cluster::replay::RETRY_MAX_MICROS`.
    pub retry: Duration,
    /// What the replays to all peers, and others, may send together.
    pub budget: Arc<Budget>,
    /// The moment from which those who share the budget count their time.
    pub origin: Instant,
    /// Syncs the data of a file or the names of a folder: [`File::sync_data`], or what a test puts
    /// in its place.
    pub sync: fn(&File) -> io::Result<()>,
}

impl Options {
    /// 1 GiB and 3 hours for each peer, in segments of 8 MiB, a first pause of 200 ms, and no bound
    /// of what is sent a second.
    #[must_use]
    pub fn new(now_ms: fn() -> u64) -> Self {
        Self {
            bytes_max: 1 << 30,
            age_max: Duration::from_secs(3 * 60 * 60),
            segment_size: 8 << 20,
            now_ms,
            retry: Duration::from_millis(200),
            budget: Arc::new(Budget::unlimited()),
            origin: Instant::now(),
            sync: File::sync_data,
        }
    }
}

/// The state of a peer's hints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// How many hints the peer has not confirmed, including those in the queue.
    pub pending: u64,
    /// Bytes of its hint files.
    pub bytes: u64,
    /// Whether it missed more than its hints contain; until [`Keeper::repaired`].
    pub needs_repair: bool,
    /// How many hints it has confirmed since the start.
    pub replayed: u64,
    /// How many hints were lost since the start: beyond a bound, on a full disk, damaged, refused
    /// by the peer for good, or of a build that knew more than this one.
    pub dropped: u64,
    /// About when the oldest pending hint was written, in milliseconds since the Unix epoch; 0 if
    /// there is none.
    pub oldest_ms: u64,
    /// Why the last attempt at replaying failed; `None` after one that succeeded.
    pub last_error: Option<String>,
}

/// A thread, and what is closed when it has ended.
type Thread = Mutex<Option<(JoinHandle<()>, Receiver<()>)>>;

struct Queue {
    node: usize,
    url: String,
    shared: Arc<Shared>,
    thread: Thread,
}

/// What the queue of another peer is made with.
struct Making {
    folder: PathBuf,
    dial: Arc<dyn Dial>,
    options: Options,
    jobs: Sender<Job>,
}

/// Keeps hints for peers. Dropping it also stops the threads, but waits for nothing.
pub struct Keeper {
    /// Changed when the members are others; a node that keeps a hint waits for nobody who reads it.
    queues: RwLock<Vec<Arc<Queue>>>,
    /// It ends after the threads of the peers.
    syncer: Thread,
    /// `None` after a stop.
    making: Mutex<Option<Making>>,
}

impl Queue {
    /// Takes a peer's folder, and starts its thread.
    fn start(peer: PeerAddress, Making { folder, dial, options, jobs }: &Making) -> io::Result<Self> {
        let bounds = Bounds {
            bytes_max: options.bytes_max,
            age_max_ms: options.age_max.as_millis().try_into().unwrap_or(u64::MAX),
            segment_size: options.segment_size,
        };
        let PeerAddress { node, url } = peer;
        let mut log = Log::open(&folder.join(folder_name(&url)), &url, bounds).map_err(io::Error::other)?;
        log.sync = options.sync;
        let (shared, queue) = Shared::new();
        let shared = Arc::new(shared);
        let (ended, has_ended) = crossbeam_channel::bounded(0);
        let address = (node, url.clone());
        let worker = Worker::new(address, (queue, shared.clone()), log, (dial.clone(), jobs.clone()), options)?;
        let thread = thread::Builder::new().name(format!("koltso-hints-{node}")).spawn(move || {
            worker.run();
            drop(ended);
        })?;
        Ok(Self { node, url, shared, thread: Mutex::new(&"threads of hints", Some((thread, has_ended))) })
    }

    fn tell_to_stop(&self) {
        if !self.shared.stopping.swap(true, Ordering::SeqCst) {
            let _ = self.shared.sender().send(Item::Stop);
        }
    }

    fn wait(&self, deadline: Instant) {
        if !join(&self.thread, deadline) {
            tracing::warn!("the hints for {} are not all on disk yet: their thread is left behind", self.url);
        }
    }
}

/// The name of the folder for a peer's hints: its URL's host and port, with `_` for anything
/// unusual.
#[must_use]
pub fn folder_name(url: &str) -> String {
    let address = url.split_once("://").map_or(url, |(_, rest)| rest);
    let address = address.split(['/', '?', '#']).next().unwrap_or_default();
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c.to_ascii_lowercase() } else { '_' };
    address.chars().map(safe).collect()
}

impl Keeper {
    /// Takes the peers' folders in `folder` (`hints` in the data folder, which this process must
    /// have taken before, since the engine does not take a folder with files that it does not
    /// know), and starts their threads, which read and replay the hints that the previous process
    /// left.
    ///
    /// # Errors
    /// One sentence, if a folder cannot be used, contains hints of a newer format (which are left
    /// alone), or would be shared by two peers.
    pub fn start(
        folder: &Path,
        peers: Vec<PeerAddress>,
        dial: Arc<dyn Dial>,
        options: Options,
    ) -> io::Result<Arc<Self>> {
        let options = Options { retry: options.retry.max(RETRY_MIN), ..options };
        let (jobs, to_sync) = crossbeam_channel::unbounded();
        let syncer = Mutex::new(&"threads of hints", Some(syncer::start(to_sync)?));
        let making = Some(Making { folder: folder.to_path_buf(), dial, options, jobs });
        let making = Mutex::new(&"what hints are kept with", making);
        let keeper = Arc::new(Self { queues: RwLock::default(), syncer, making });
        keeper.peers_are(peers)?;
        Ok(keeper)
    }

    /// The peers are these from now on. The hints for others stay in their folders, and their threads end;
    /// those of new ones start.
    ///
    /// # Errors
    /// As [`Keeper::start`]; hints for those of the peers of before that stay are kept on, and the others'
    /// are dropped and counted until a call succeeds. After [`Self::stop`] nothing happens.
    pub fn peers_are(&self, peers: Vec<PeerAddress>) -> io::Result<()> {
        let making = self.making.lock();
        let Some(making) = &*making else { return Ok(()) };
        let before = self.queues().clone();
        // (One that was stopped takes no hints any more: a call before this one has failed.)
        let stays = |queue: &Queue| {
            let is_peer = peers.iter().any(|peer| (peer.node, &peer.url) == (queue.node, &queue.url));
            is_peer && !queue.shared.stopping.load(Ordering::Relaxed)
        };
        let (mut queues, gone): (Vec<_>, Vec<_>) = before.iter().cloned().partition(|queue| stays(queue));
        let mut names: Vec<String> = queues.iter().map(|queue| folder_name(&queue.url)).collect();
        let is_new = |peer: &PeerAddress| queues.iter().all(|queue| (peer.node, &peer.url) != (queue.node, &queue.url));
        let new: Vec<PeerAddress> = peers.iter().filter(|peer| is_new(peer)).cloned().collect();
        for peer in &new {
            let name = folder_name(&peer.url);
            if name.bytes().all(|byte| byte == b'.') || names.contains(&name) {
                let sentence = format!("hints for {} have no folder of their own: `{name}`", peer.url);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, sentence));
            }
            names.push(name);
        }
        // One of them may come back at another place.
        let deadline = Instant::now() + STOP_MAX;
        gone.iter().for_each(|queue| queue.tell_to_stop());
        gone.iter().for_each(|queue| queue.wait(deadline));
        let kept = queues.len();
        for peer in new {
            match Queue::start(peer, making) {
                Ok(queue) => queues.push(Arc::new(queue)),
                Err(error) => {
                    queues[kept..].iter().for_each(|queue| queue.tell_to_stop());
                    return Err(error);
                }
            }
        }
        *self.queues.write().unwrap_or_else(PoisonError::into_inner) = queues;
        Ok(())
    }

    fn queues(&self) -> RwLockReadGuard<'_, Vec<Arc<Queue>>> {
        self.queues.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self, node: usize) -> Option<Arc<Queue>> {
        self.queues().iter().find(|queue| queue.node == node).cloned()
    }

    /// Keeps a record that a peer missed. Any thread may call it, and it never blocks. If the
    /// peer's queue is full, or after [`Self::stop`], the hint is dropped and counted, and the peer
    /// needs repair.
    ///
    /// The record's buffers live until it is appended, normally for about a millisecond. Nothing is
    /// kept for a node that is not a peer.
    pub fn keep(&self, node: usize, record: Record<Bytes>) {
        if let Some(queue) = self.queues().iter().find(|queue| queue.node == node) {
            queue.shared.keep(record);
        }
    }

    /// Marks a peer as needing repair, for a reason that this crate cannot know, such as that it
    /// was away for longer than hints are kept.
    pub fn mark(&self, node: usize, reason: &str) {
        self.tell(node, Item::Mark(reason.to_owned()));
    }

    /// Which losses a peer needs repair for, as a number that grows with each; `None` if it needs
    /// none. To be read before a comparison with the peer begins.
    #[must_use]
    pub fn needs_repair(&self, node: usize) -> Option<u64> {
        self.queue(node).and_then(|queue| queue.shared.needs_repair())
    }

    /// A peer has all that was lost up to what [`Self::needs_repair`] said. Nothing changes if more
    /// was lost since.
    pub fn repaired(&self, node: usize, generation: u64) {
        self.tell(node, Item::Repaired(generation));
    }

    fn tell(&self, node: usize, item: Item) {
        if let Some(queue) = self.queue(node) {
            // After a stop there is no thread to note it.
            let _ = queue.shared.sender().send(item);
        }
    }

    /// The state of a peer's hints; empty for a node that is not a peer.
    #[must_use]
    pub fn figures(&self, node: usize) -> Figures {
        self.queue(node).map(|queue| queue.shared.figures()).unwrap_or_default()
    }

    /// A time that no hint for any peer is older than, in milliseconds since the Unix epoch, by the
    /// clocks of their records; `None` if there are no hints. Hints that are not on disk yet count,
    /// and as long as those of an earlier process have not been read, it is 0.
    #[must_use]
    pub fn oldest_ms(&self) -> Option<u64> {
        let queues = self.queues();
        let clocks = queues.iter().filter_map(|queue| queue.shared.oldest_clock());
        clocks.min().map(|clock| WallTime(clock).ms())
    }

    fn tell_to_stop(&self) {
        *self.making.lock() = None;
        self.queues().iter().for_each(|queue| queue.tell_to_stop());
    }

    /// Appends the hints in the queues, syncs, writes the positions, and ends the threads, within
    /// about two seconds; a thread whose disk or target hangs is left behind. It may be called more
    /// than once. Call it when nobody keeps hints any more.
    pub fn stop(&self) {
        self.tell_to_stop();
        let deadline = Instant::now() + STOP_MAX;
        self.queues().iter().for_each(|queue| queue.wait(deadline));
        join(&self.syncer, deadline);
    }
}

/// Waits for the end of a thread. `false`: it has not ended.
fn join(thread: &Thread, deadline: Instant) -> bool {
    let Some((thread, has_ended)) = thread.lock().take() else { return true };
    if has_ended.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout) {
        return false;
    }
    // In the server a panic ends the process; elsewhere it must not go unnoticed.
    assert!(thread.join().is_ok() || thread::panicking(), "a thread of hints had panicked");
    true
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.tell_to_stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_folder_is_its_host_and_port() {
        assert_eq!(folder_name("http://127.0.0.1:1338"), "127.0.0.1_1338");
        assert_eq!(folder_name("http://Node-1.example:80/v0?x"), "node-1.example_80");
        assert_eq!(folder_name("http://[::1]:1338"), "___1__1338");
        assert_eq!(folder_name("10.0.0.1:1"), "10.0.0.1_1");
        assert_eq!(folder_name("http://../../etc"), "..");
    }

    #[test]
    fn peers_without_a_folder_of_their_own_are_refused() {
        struct Nobody;
        impl Dial for Nobody {
            fn dial(&self, _: usize) -> Result<Box<dyn Target>, String> {
                Err("nobody is there".to_owned())
            }
        }
        let dir = tempfile::tempdir().expect("a folder");
        for urls in [["http://a:1", "http://A:1/"], ["http://a:1", "http://.."], ["http://a:1", ""]] {
            let peers =
                urls.iter().enumerate().map(|(node, url)| PeerAddress { node, url: (*url).to_owned() }).collect();
            let refused = Keeper::start(dir.path(), peers, Arc::new(Nobody), Options::new(|| 0));
            assert_eq!(refused.err().map(|e| e.kind()), Some(io::ErrorKind::InvalidInput));
        }
    }
}

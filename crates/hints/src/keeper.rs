//! One thread for each peer, which owns the peer's hint log: it appends the hints in its queue, and
//! replays them while the peer takes them.
//!
//! ```text
//! any thread ── keep ──▶ queue ──▶ koltso-hints-N ──▶ log (files)
//!                                       │  ▲
//!                              window ──┘  └── confirmed        Dial, Target: the caller's
//! ```
//!
//! Bounds: [`QUEUE_MAX`] and [`QUEUE_BYTES_MAX`] for the queue, beyond which a hint is dropped and
//! the peer needs repair; [`Options`] for the files; `koltso_cluster::replay` for what a replay
//! sends, and when. While a target does not answer, hints wait in the queue: a target's deadline is
//! part of the bound.
//!
//! Invariants: hints are appended in the order of the queue and sent in the order of the log.
//! [`Replay`] decides what a peer's answers mean for them.
//!
//! Tested in `tests/keeper.rs`.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use koltso_cluster::backlog::Backlog;
use koltso_cluster::budget::Budget;
use koltso_cluster::replay::{Replay, Settled, Step, Verdict};
use koltso_instrument::{Mutex, waiting};
use koltso_model::Record;

use crate::log::{Bounds, Log, OncePerMinute, Window};

/// The most hints that wait to be appended for one peer: a second of a fast node's writes, while
/// the disk or the peer holds up the thread.
pub const QUEUE_MAX: usize = 64 << 10;
/// The most bytes of keys and values that wait to be appended for one peer.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// About how many bytes are appended in one write.
pub const BATCH_BYTES: usize = 1 << 20;
/// The shortest pause after a failure, so that a thread that keeps failing does not spin.
const RETRY_MIN: Duration = Duration::from_millis(1);
/// How often the log is synced, its position written and its bounds checked, if there is a reason
/// to.
const TICK: Duration = Duration::from_secs(1);
/// After the first hint the thread waits this long for others: one write and one wake-up then serve
/// many.
const GATHER: Duration = Duration::from_millis(1);
/// How long [`Keeper::stop`] waits: for a target's reply, and for the hints in the queue.
const STOP_MAX: Duration = Duration::from_secs(2);

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
    /// Whether it missed more than its hints contain; until an operator removes the file
    /// `needs-repair`.
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

enum Item {
    Hint(Record<Bytes>),
    /// The peer has missed more than its hints say, for this reason.
    Mark(String),
    Stop,
}

/// What a peer's thread and the callers share.
struct QueueState {
    backlog: Backlog,
    stopping: AtomicBool,
    published: Mutex<Published>,
}

impl Default for QueueState {
    fn default() -> Self {
        Self {
            backlog: Backlog::new(QUEUE_MAX, QUEUE_BYTES_MAX),
            stopping: AtomicBool::new(false),
            published: Mutex::new(&"figures of hints", Published::default()),
        }
    }
}

/// What the thread reports about itself, after each turn.
#[derive(Default)]
struct Published {
    figures: Figures,
    /// How many of `overflowed` are included in the figures.
    overflow_seen: u64,
}

struct Queue {
    node: usize,
    url: String,
    sender: Sender<Item>,
    shared: Arc<QueueState>,
    thread: Mutex<Option<(JoinHandle<()>, Receiver<()>)>>,
}

/// Keeps hints for peers. Dropping it also stops the threads, but waits for nothing.
pub struct Keeper {
    queues: Vec<Queue>,
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
        let mut names: Vec<String> = Vec::new();
        let mut logs = Vec::new();
        for peer in peers {
            let name = folder_name(&peer.url);
            if name.bytes().all(|byte| byte == b'.') || names.contains(&name) {
                let sentence = format!("hints for {} have no folder of their own: `{name}`", peer.url);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, sentence));
            }
            let bounds = Bounds {
                bytes_max: options.bytes_max,
                age_max_ms: options.age_max.as_millis().try_into().unwrap_or(u64::MAX),
                segment_size: options.segment_size,
            };
            logs.push((Log::open(&folder.join(&name), &peer.url, bounds).map_err(io::Error::other)?, peer));
            names.push(name);
        }
        let mut queues = Vec::new();
        for (log, peer) in logs {
            let (sender, queue) = crossbeam_channel::unbounded();
            let (ended, has_ended) = crossbeam_channel::bounded(0);
            let shared = Arc::new(QueueState::default());
            shared.published.lock().figures.needs_repair = log.needs_repair();
            let worker = Worker {
                node: peer.node,
                url: peer.url.clone(),
                queue,
                shared: shared.clone(),
                dial: dial.clone(),
                options: options.clone(),
                log,
                target: None,
                replay: Replay::new(0, options.retry.as_micros() as u64),
                // It is due at once: hints that grew too old while this node was away must be
                // dropped before any is replayed.
                next_tick: Instant::now(),
                overflow_seen: 0,
                last_error: None,
                caught_up: OncePerMinute::default(),
            };
            let thread = thread::Builder::new().name(format!("koltso-hints-{}", peer.node)).spawn(move || {
                worker.run();
                drop(ended);
            })?;
            let thread = Mutex::new(&"threads of hints", Some((thread, has_ended)));
            queues.push(Queue { node: peer.node, url: peer.url, sender, shared, thread });
        }
        Ok(Arc::new(Self { queues }))
    }

    fn queue(&self, node: usize) -> Option<&Queue> {
        self.queues.iter().find(|queue| queue.node == node)
    }

    /// Keeps a record that a peer missed. Any thread may call it, and it never blocks. If the
    /// peer's queue is full, or after [`Self::stop`], the hint is dropped and counted, and the peer
    /// needs repair.
    ///
    /// The record's buffers live until it is appended, normally for about a millisecond. Nothing is
    /// kept for a node that is not a peer.
    pub fn keep(&self, node: usize, record: Record<Bytes>) {
        let Some(Queue { sender, shared, .. }) = self.queue(node) else {
            debug_assert!(false, "node {node} is no peer");
            return;
        };
        let bytes = record.len();
        if !shared.backlog.admit(bytes) {
            return;
        }
        if shared.stopping.load(Ordering::Relaxed) || sender.send(Item::Hint(record)).is_err() {
            shared.backlog.drop_admitted(bytes);
        }
    }

    /// Marks a peer as needing repair, for a reason that this crate cannot know, such as that it
    /// was away for longer than hints are kept.
    pub fn mark(&self, node: usize, reason: &str) {
        if let Some(queue) = self.queue(node) {
            // After a stop there is no thread to note it.
            let _ = queue.sender.send(Item::Mark(reason.to_owned()));
        }
    }

    /// The state of a peer's hints; empty for a node that is not a peer.
    #[must_use]
    pub fn figures(&self, node: usize) -> Figures {
        let Some(Queue { shared, .. }) = self.queue(node) else {
            return Figures::default();
        };
        // The queue is read first: a hint is published before it leaves the queue, so for a moment
        // it may be counted twice, but never not at all.
        let queued = shared.backlog.count();
        let published = shared.published.lock();
        let mut figures = published.figures.clone();
        let unseen = shared.backlog.overflowed() - published.overflow_seen;
        drop(published);
        figures.pending += queued as u64;
        figures.dropped += unseen;
        figures.needs_repair |= unseen > 0;
        figures
    }

    /// Appends the hints in the queues, syncs, writes the positions, and ends the threads, within
    /// about two seconds; a thread whose disk or target hangs is left behind. It may be called more
    /// than once. Call it when nobody keeps hints any more.
    pub fn stop(&self) {
        for queue in &self.queues {
            if !queue.shared.stopping.swap(true, Ordering::SeqCst) {
                let _ = queue.sender.send(Item::Stop);
            }
        }
        let deadline = Instant::now() + STOP_MAX;
        for queue in &self.queues {
            let Some((thread, has_ended)) = queue.thread.lock().take() else { continue };
            if has_ended.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout) {
                tracing::warn!("the hints for {} are not all on disk yet: their thread is left behind", queue.url);
                continue;
            }
            // In the server a panic ends the process; elsewhere it must not go unnoticed.
            assert!(thread.join().is_ok() || thread::panicking(), "a thread of hints had panicked");
        }
    }
}

/// The thread of a peer.
struct Worker {
    node: usize,
    url: String,
    queue: Receiver<Item>,
    shared: Arc<QueueState>,
    dial: Arc<dyn Dial>,
    options: Options,
    log: Log,
    target: Option<Box<dyn Target>>,
    replay: Replay,
    next_tick: Instant,
    overflow_seen: u64,
    last_error: Option<String>,
    caught_up: OncePerMinute,
}

impl Worker {
    fn run(mut self) {
        self.log.load();
        self.publish();
        loop {
            let received = match self.wakes_at() {
                Some(at) => self.queue.recv_deadline(at),
                None => self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let goes_on = match received {
                Ok(item) => self.take(item),
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => false,
            };
            if !goes_on {
                break;
            }
            self.see_overflow();
            let now = Instant::now();
            if now >= self.next_tick {
                self.log.tick((self.options.now_ms)());
                self.next_tick = now + TICK;
            }
            self.replay();
            self.publish();
        }
        self.see_overflow();
        self.log.close();
        self.publish();
    }

    /// When the thread must wake up; `None` if only something in the queue needs to wake it.
    fn wakes_at(&self) -> Option<Instant> {
        let replay = self.replay.wakes_at(self.log.pending());
        let replay = replay.map(|micros| self.options.origin + Duration::from_micros(micros));
        let tick = self.log.wants_tick().then_some(self.next_tick);
        [replay, tick].into_iter().flatten().min()
    }

    /// Appends an item and all that is queued behind it. Returns `false` if the thread must end.
    fn take(&mut self, item: Item) -> bool {
        // While a peer is down its hints come one at a time; while they are replayed, the replay
        // itself gathers them.
        if self.queue.is_empty() && matches!(item, Item::Hint(_)) && !self.replay.is_due(self.micros()) {
            thread::sleep(GATHER);
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        // Items that come meanwhile are for the next time; otherwise a flood would keep the replay
        // from its turn.
        let mut left = self.queue.len();
        let mut next = Some(item);
        let mut goes_on = true;
        while let Some(item) = next {
            match item {
                Item::Hint(record) => {
                    bytes += record.len();
                    batch.push(record);
                }
                Item::Mark(reason) => self.log.lose(0, &reason),
                Item::Stop => goes_on = false,
            }
            if bytes >= BATCH_BYTES {
                self.append(&mut batch, &mut bytes);
            }
            next = if left > 0 { self.queue.try_recv().ok() } else { None };
            left = left.saturating_sub(1);
        }
        self.append(&mut batch, &mut bytes);
        goes_on
    }

    fn append(&mut self, batch: &mut Vec<Record<Bytes>>, bytes: &mut usize) {
        self.log.append(batch, (self.options.now_ms)());
        self.publish();
        self.shared.backlog.taken(batch.len(), *bytes);
        batch.clear();
        *bytes = 0;
    }

    /// Marks the peer if hints did not fit into the queue.
    fn see_overflow(&mut self) {
        let overflowed = self.shared.backlog.overflowed();
        if overflowed > self.overflow_seen {
            self.log.lose(overflowed - self.overflow_seen, "they came faster than the disk takes them");
            self.overflow_seen = overflowed;
        }
    }

    /// The replay's time.
    fn micros(&self) -> u64 {
        self.options.origin.elapsed().as_micros() as u64
    }

    /// Does what the replay wants, up to one window.
    fn replay(&mut self) {
        loop {
            match self.replay.step(self.micros(), self.log.pending()) {
                Step::Wait(_) => return,
                Step::HangUp => self.target = None,
                Step::Dial => match waiting(&"connection for hints", || self.dial.dial(self.node)) {
                    Ok(target) => {
                        self.target = Some(target);
                        self.replay.connected();
                    }
                    Err(sentence) => return self.broke(sentence),
                },
                Step::Send { count_max, bytes_max } => {
                    return match self.log.window(count_max, bytes_max) {
                        Ok(window) => self.send(&window).unwrap_or_else(|sentence| self.broke(sentence)),
                        Err(error) => {
                            self.replay.unreadable(self.micros());
                            self.complain(format!("the hints cannot be read now: {error}"));
                        }
                    };
                }
            }
        }
    }

    /// Sends a window, and does what the peer's answers ask for. An error is one of the connection,
    /// and ends it.
    fn send(&mut self, window: &Window) -> Result<(), String> {
        let (Some(target), false) = (&mut self.target, window.records.is_empty()) else {
            return Ok(());
        };
        let now = self.options.origin.elapsed().as_micros() as u64;
        self.replay.sent(now);
        let bytes = window.records.iter().map(|record| record.len() as u64).sum();
        self.replay.rest(now + self.options.budget.spend(now, bytes));
        let verdicts = waiting(&"replies to hints", || target.write(&window.records))?;
        if verdicts.len() != window.records.len() {
            return Err(format!("{} hints were answered with {} confirmations", window.records.len(), verdicts.len()));
        }
        let Settled { forget, lost } = self.replay.answered(self.micros(), &verdicts);
        self.log.confirm(window, forget);
        if lost > 0 {
            self.log.lose(lost as u64, "the peer will never take them: they are larger than its format allows, or of a build that knew more than this one");
        }
        if forget < verdicts.len() {
            self.complain("the peer refuses its hints now".to_owned());
            return Ok(());
        }
        self.last_error = None;
        if self.log.pending() == 0 && self.caught_up.due() {
            tracing::info!("{} has what it missed: {} hints replayed so far", self.url, self.replay.replayed());
        }
        Ok(())
    }

    /// The connection has failed, or could not be made.
    fn broke(&mut self, sentence: String) {
        self.target = None;
        self.replay.failed(self.micros());
        self.complain(sentence);
    }

    fn complain(&mut self, sentence: String) {
        tracing::debug!("hints for {} wait: {sentence}", self.url);
        self.last_error = Some(sentence);
    }

    fn publish(&self) {
        let mut published = self.shared.published.lock();
        published.overflow_seen = self.overflow_seen;
        let figures = &mut published.figures;
        figures.pending = self.log.pending();
        figures.bytes = self.log.bytes();
        figures.needs_repair = self.log.needs_repair();
        figures.replayed = self.replay.replayed();
        figures.dropped = self.log.dropped();
        figures.oldest_ms = self.log.oldest_ms();
        if figures.last_error != self.last_error {
            figures.last_error.clone_from(&self.last_error);
        }
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

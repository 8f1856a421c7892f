//! The thread that owns a peer's hint log: it appends what is in the queue, at once, and has the
//! courier send the oldest hints and the syncer sync what is new.
//!
//! It waits for nothing but its queue, in which the answers of both come, too: for a disk only
//! where a write or a read of the page cache does, and where it removes a file.
//!
//! Invariants:
//! 1. One order is with the courier at a time, and one batch with the syncer.
//! 2. A window is confirmed in the log before the next is read. Bounds may take its hints meanwhile.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use koltso_cluster::replay::{Replay, Settled, Step, Verdict};
use koltso_model::Record;

use crate::courier::{self, Order};
use crate::keeper::{Dial, Options, STOP_MAX};
use crate::log::{Log, OncePerMinute, Window};
use crate::queue::{Item, Shared};
use crate::syncer::Job;

/// About how many bytes are appended in one write.
pub const BATCH_BYTES: usize = 1 << 20;
/// How often the log is synced, its position written and its bounds checked, if there is a reason
/// to.
const TICK: Duration = Duration::from_secs(1);
/// After the first hint the thread waits this long for others: one write and one wake-up then serve
/// many.
const GATHER: Duration = Duration::from_millis(1);

/// What the courier does.
enum Away {
    Dials,
    /// It sends this window, whose records it has.
    Sends(Window, usize),
}

/// The thread of a peer.
pub(crate) struct Worker {
    url: String,
    queue: Receiver<Item>,
    shared: Arc<Shared>,
    options: Options,
    log: Log,
    dial: Arc<dyn Dial>,
    courier: (JoinHandle<()>, Sender<Order>),
    away: Option<Away>,
    jobs: Sender<Job>,
    /// The syncer has a batch.
    syncing: bool,
    replay: Replay,
    next_tick: Instant,
    overflow_seen: u64,
    last_error: Option<String>,
    caught_up: OncePerMinute,
}

impl Worker {
    /// A worker for the peer with this index and URL, and its courier.
    ///
    /// # Errors
    /// The courier's thread cannot be started.
    pub(crate) fn new(
        (node, url): (usize, String),
        (queue, shared): (Receiver<Item>, Arc<Shared>),
        log: Log,
        (dial, jobs): (Arc<dyn Dial>, Sender<Job>),
        options: &Options,
    ) -> io::Result<Self> {
        let (orders, taken) = crossbeam_channel::bounded(1);
        let courier = courier::start(node, dial.clone(), taken, shared.sender())?;
        let worker = Self {
            url,
            queue,
            shared,
            log,
            dial,
            courier: (courier, orders),
            away: None,
            jobs,
            syncing: false,
            replay: Replay::new(0, options.retry.as_micros() as u64),
            // It is due at once: hints that grew too old while this node was away must be
            // dropped before any is replayed.
            next_tick: Instant::now(),
            overflow_seen: 0,
            last_error: None,
            caught_up: OncePerMinute::default(),
            options: options.clone(),
        };
        worker.publish();
        Ok(worker)
    }

    pub(crate) fn run(mut self) {
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
                self.sync();
                self.next_tick = now + TICK;
            }
            self.replay();
            self.publish();
        }
        self.end();
    }

    /// All that is known is on disk then, unless that takes too long.
    fn end(mut self) {
        self.see_overflow();
        let deadline = Instant::now() + STOP_MAX;
        while self.syncing && self.settle(deadline) {}
        self.log.close();
        self.publish();
        while self.away.is_some() && self.settle(deadline) {}
        self.log.persist_position();
        self.publish();
        let (courier, orders) = self.courier;
        drop(orders);
        // Otherwise its target hangs, and it ends when that does.
        if self.away.is_none() {
            assert!(courier.join().is_ok() || thread::panicking(), "a courier of hints had panicked");
        }
    }

    /// Waits for an answer of the courier or the syncer. `false`: the time is over.
    fn settle(&mut self, deadline: Instant) -> bool {
        match self.queue.recv_deadline(deadline) {
            Ok(Item::Hint(record)) => {
                // It came after the stop.
                self.shared.backlog.drop_admitted(record.len());
                self.see_overflow();
            }
            Ok(item) => {
                self.note(item);
            }
            Err(_) => return false,
        }
        true
    }

    /// When the thread must wake up; `None` if only something in the queue needs to wake it.
    fn wakes_at(&self) -> Option<Instant> {
        let replay = if self.away.is_some() { None } else { self.replay.wakes_at(self.log.pending()) };
        let replay = replay.map(|micros| self.options.origin + Duration::from_micros(micros));
        let tick = self.log.wants_tick().then_some(self.next_tick);
        [replay, tick].into_iter().flatten().min()
    }

    /// Appends an item and all that is queued behind it. Returns `false` if the thread must end.
    fn take(&mut self, item: Item) -> bool {
        // While a peer is down, or a window is on its way, hints come one at a time; while they are
        // replayed, the replay itself gathers them.
        let is_idle = self.away.is_some() || !self.replay.is_due(self.micros());
        if self.queue.is_empty() && matches!(item, Item::Hint(_)) && is_idle {
            thread::sleep(GATHER);
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        // Items that come meanwhile are for the next time; otherwise a flood would keep the replay
        // from its turn.
        let mut left = self.shared.take_all(&self.queue);
        let mut next = Some(item);
        let mut goes_on = true;
        while let Some(item) = next {
            if let Item::Hint(record) = item {
                bytes += record.len();
                batch.push(record);
            } else {
                goes_on &= self.note(item);
            }
            if bytes >= BATCH_BYTES {
                self.append(&mut batch, &mut bytes);
            }
            next = if left > 0 { self.queue.try_recv().ok() } else { None };
            left = left.saturating_sub(1);
        }
        self.append(&mut batch, &mut bytes);
        self.shared.all_taken();
        goes_on
    }

    /// Takes note of what is no hint. Returns `false` if the thread must end.
    fn note(&mut self, item: Item) -> bool {
        match item {
            Item::Hint(_) => unreachable!("the caller has it"),
            Item::Mark(reason) => self.log.lose(0, &reason),
            Item::Repaired(generation) => {
                self.see_overflow();
                if self.shared.generation(self.log.losses()) == generation {
                    self.log.repaired();
                }
            }
            Item::Dialled(Ok(())) => {
                self.away = None;
                self.replay.connected();
            }
            Item::Dialled(Err(sentence)) => self.broke(sentence),
            Item::Answered(answer, took) => {
                if let Some(Away::Sends(window, count)) = self.away.take() {
                    // What the threads waited for a processor is not the peer's time.
                    self.replay.sent(self.micros().saturating_sub(took.as_micros() as u64));
                    let settled = answer.and_then(|verdicts| self.answered(&window, count, &verdicts));
                    settled.unwrap_or_else(|sentence| self.broke(sentence));
                }
            }
            Item::Synced(synced) => {
                self.syncing = false;
                self.log.synced(synced);
            }
            Item::Stop => return false,
        }
        true
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

    /// Gives what is new to the syncer, unless it has a batch.
    fn sync(&mut self) {
        if !self.syncing
            && let Some(batch) = self.log.begin_sync()
        {
            let job = Job { batch, answer: self.shared.sender() };
            self.syncing = self.jobs.send(job).is_ok();
        }
    }

    /// The replay's time.
    fn micros(&self) -> u64 {
        self.options.origin.elapsed().as_micros() as u64
    }

    /// Does what the replay wants, up to one window.
    fn replay(&mut self) {
        while self.away.is_none() {
            if self.log.has_found() && !self.dial.are_found_hints_good() {
                self.log.give_up_found();
            }
            match self.replay.step(self.micros(), self.log.pending()) {
                Step::Wait(_) => return,
                Step::HangUp => self.order(Order::HangUp, None),
                Step::Dial => self.order(Order::Dial, Some(Away::Dials)),
                Step::Send { count_max, bytes_max } => match self.log.window(count_max, bytes_max) {
                    Ok(window) if window.records.is_empty() => return,
                    Ok(window) => self.send(window),
                    Err(error) => {
                        self.replay.unreadable(self.micros());
                        self.complain(format!("the hints cannot be read now: {error}"));
                    }
                },
            }
        }
    }

    fn order(&mut self, order: Order, away: Option<Away>) {
        match self.courier.1.send(order) {
            Ok(()) => self.away = away,
            // It lives as long as this end, unless it has panicked.
            Err(_) => self.broke("the thread that talks to it has ended".to_owned()),
        }
    }

    fn send(&mut self, mut window: Window) {
        let now = self.micros();
        self.replay.sent(now);
        let bytes = window.records.iter().map(|record| record.len() as u64).sum();
        self.replay.rest(now + self.options.budget.spend(now, bytes));
        let records = std::mem::take(&mut window.records);
        let count = records.len();
        self.order(Order::Send(records), Some(Away::Sends(window, count)));
    }

    /// Does what the peer's answers to a window ask for. An error is one of the connection, and ends
    /// it.
    fn answered(&mut self, window: &Window, count: usize, verdicts: &[Verdict]) -> Result<(), String> {
        if verdicts.len() != count {
            return Err(format!("{count} hints were answered with {} confirmations", verdicts.len()));
        }
        let Settled { forget, lost } = self.replay.answered(self.micros(), verdicts);
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

    /// The connection has failed, or could not be made. (The courier has dropped it, or does so
    /// before it dials again.)
    fn broke(&mut self, sentence: String) {
        self.away = None;
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
        published.oldest_clock = self.log.oldest_clock();
        published.losses = self.log.losses();
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

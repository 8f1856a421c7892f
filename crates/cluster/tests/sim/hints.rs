//! The keeper of a node's hints: a log that survives crashes, filled and replayed as the program's
//! keeper does it.
//!
//! The bound of the queue is [`Backlog`], what is sent when and what the answers mean is
//! [`Replay`]. Only the log itself is the simulator's: a queue in memory, of which nothing is lost
//! once a hint was appended. As in the program, nothing is appended while the thread waits for a
//! peer.

use std::collections::VecDeque;

use bytes::Bytes;
use koltso_cluster::backlog::Backlog;
use koltso_cluster::replay::{Replay, Step, Verdict};
use koltso_model::{Outcome, Record};

use super::network::{Lane, Msg, Via};
use super::plan::{Mutation, Plan};
use super::world::{MS, World};

/// How long a peer may take for the confirmations of a window.
const WINDOW_PATIENCE: u64 = 500 * MS;
const RETRY: u64 = 200 * MS;

struct SentWindow {
    number: u64,
    verdicts: Vec<Option<Verdict>>,
    deadline: u64,
}

/// What a node keeps for one peer.
pub struct PeerHints {
    backlog: Backlog,
    /// With the moment at which each will have been appended.
    queue: VecDeque<(u64, Record<Bytes>)>,
    log: VecDeque<Record<Bytes>>,
    replay: Replay,
    dialing: bool,
    window: Option<SentWindow>,
    windows: u64,
    overflow_seen: u64,
    pub needs_repair: bool,
}

impl PeerHints {
    pub fn new(plan: &Plan, now: u64) -> Self {
        Self {
            backlog: Backlog::new(plan.hints_max, usize::MAX / 2),
            queue: VecDeque::new(),
            log: VecDeque::new(),
            replay: Replay::new(now, RETRY),
            dialing: false,
            window: None,
            windows: 0,
            overflow_seen: 0,
            needs_repair: false,
        }
    }

    /// The process has ended: what was appended stays.
    pub fn crash(&mut self, plan: &Plan, now: u64) {
        let fresh = Self::new(plan, now);
        let before = std::mem::replace(self, fresh);
        (self.log, self.needs_repair, self.windows) = (before.log, before.needs_repair, before.windows);
    }

    /// What is in its log.
    pub fn appended(&self) -> Vec<Record<Bytes>> {
        self.log.iter().cloned().collect()
    }

    /// A log of an earlier time takes the place of this one.
    pub fn put_back(&mut self, records: Vec<Record<Bytes>>) {
        self.log = records.into();
    }

    /// The oldest clock of what is kept.
    pub fn oldest(&self) -> Option<u64> {
        self.queue.iter().map(|(_, record)| record).chain(&self.log).map(|record| record.version.clock).min()
    }

    pub fn waiting(&self) -> usize {
        self.queue.len() + self.log.len()
    }
}

impl World {
    /// All that a node kept for others is gone.
    pub fn lose_hints(&mut self, node: usize) {
        for peer in self.peers(node) {
            let hints = &mut self.nodes[node].hints[peer];
            for (_, record) in std::mem::take(&mut hints.queue) {
                hints.backlog.taken(1, record.len());
            }
            hints.log.clear();
            if hints.window.is_some() {
                self.hang_up(node, peer);
                self.hints_failed(node, peer);
            }
        }
    }

    pub fn hints_wait(&self) -> bool {
        self.nodes.iter().any(|node| node.hints.iter().any(|hints| hints.waiting() > 0))
    }

    /// A member keeps a hint.
    pub fn hint(&mut self, node: usize, to: usize, record: Record<Bytes>) {
        let key = self.key_index[record.key.shared()];
        match self.history.writer(key, &record) {
            Ok(token) => {
                let from = usize::from(self.history.ops[token].from);
                if !self.may_hold(to, key, from) || to == node {
                    self.fail("no replica beyond from", Some(key), format!("{node} keeps a hint of {token} for {to}"));
                }
                if usize::from(record.flags.from()) != from {
                    self.fail("a record knows its from", Some(key), format!("a hint of {token}: {record:?}"));
                }
            }
            Err(failure) => self.must(Err(failure)),
        }
        self.say(Some(key), || format!("{node} keeps a hint for {to}: {:?}", record.version));
        let appended = self.now + self.random.below(5 * MS);
        let hints = &mut self.nodes[node].hints[to];
        if hints.backlog.admit(record.len()) {
            self.stats.hints += 1;
            hints.queue.push_back((appended, record));
        } else {
            self.stats.hints_dropped += 1;
        }
    }

    /// What the keeper's threads of a node do.
    pub fn keep_hints(&mut self, node: usize) {
        for peer in self.peers(node) {
            self.keep(node, peer);
        }
    }

    fn keep(&mut self, node: usize, peer: usize) {
        let (now, mutation) = (self.now, self.plan.mutation);
        let hints = &mut self.nodes[node].hints[peer];
        if hints.window.as_ref().is_some_and(|window| now >= window.deadline) {
            self.hang_up(node, peer);
            self.hints_failed(node, peer);
        }
        let hints = &mut self.nodes[node].hints[peer];
        if hints.dialing || hints.window.is_some() {
            return;
        }
        while hints.queue.front().is_some_and(|(appended, _)| *appended <= now) {
            if let Some((_, record)) = hints.queue.pop_front() {
                hints.backlog.taken(1, record.len());
                hints.log.push_back(record);
            }
        }
        let overflowed = hints.backlog.overflowed();
        if overflowed > hints.overflow_seen {
            hints.overflow_seen = overflowed;
            hints.needs_repair |= mutation != Mutation::HidesOverflow;
        }
        match hints.replay.step(now, hints.log.len() as u64) {
            Step::Wait(_) => {}
            Step::HangUp => self.hang_up(node, peer),
            Step::Dial => {
                hints.dialing = true;
                self.dial_for_hints(node, peer);
            }
            Step::Send { count_max, bytes_max } => self.send_hints(node, peer, count_max, bytes_max),
        }
    }

    fn send_hints(&mut self, node: usize, peer: usize, count_max: u32, bytes_max: u64) {
        let now = self.now;
        let hints = &mut self.nodes[node].hints[peer];
        let mut bytes = 0;
        let fits = |record: &&Record<Bytes>| {
            bytes += record.len() as u64;
            bytes <= bytes_max
        };
        let records: Vec<_> = hints.log.iter().take(count_max as usize).take_while(fits).cloned().collect();
        hints.windows += 1;
        let number = hints.windows;
        hints.window =
            Some(SentWindow { number, verdicts: vec![None; records.len()], deadline: now + WINDOW_PATIENCE });
        hints.replay.sent(now);
        if self.plan.mutation == Mutation::ForgetsUnconfirmedHints {
            hints.log.drain(..records.len());
        }
        let epoch = self.link(node, peer, Lane::Hints).epoch;
        let via = Via { asker: node, peer, lane: Lane::Hints, epoch };
        for (at, record) in records.into_iter().enumerate() {
            self.transmit(via, Msg::Hint { window: number, at, record });
        }
    }

    /// A peer's answer to one hint.
    pub fn hint_answered(&mut self, node: usize, peer: usize, number: u64, at: usize, outcome: &Outcome<Bytes>) {
        let (now, mutation) = (self.now, self.plan.mutation);
        let verdict = match Verdict::of(outcome) {
            Ok(verdict) => verdict,
            Err(sentence) => return self.fail("a hint is a write", None, format!("{peer} to {node}: {sentence}")),
        };
        let hints = &mut self.nodes[node].hints[peer];
        let Some(window) = hints.window.as_mut().filter(|window| window.number == number) else {
            return;
        };
        window.verdicts[at] = Some(verdict);
        let Some(mut verdicts) = window.verdicts.iter().copied().collect::<Option<Vec<Verdict>>>() else {
            return;
        };
        hints.window = None;
        match mutation {
            Mutation::ConfirmsTheWrongHints => verdicts.reverse(),
            Mutation::PassesRefusedHints => verdicts.fill(Verdict::Taken),
            _ => {}
        }
        let settled = hints.replay.answered(now, &verdicts);
        if mutation != Mutation::ForgetsUnconfirmedHints {
            hints.log.drain(..settled.forget);
        }
        hints.needs_repair |= settled.lost > 0;
        self.stats.replayed += settled.forget as u64;
        self.keep(node, peer);
    }

    pub fn hints_connected(&mut self, node: usize, peer: usize) {
        let hints = &mut self.nodes[node].hints[peer];
        hints.dialing = false;
        hints.replay.connected();
        self.keep(node, peer);
    }

    /// The keeper's connection, or its dial, has failed.
    pub fn hints_failed(&mut self, node: usize, peer: usize) {
        let now = self.now;
        let hints = &mut self.nodes[node].hints[peer];
        hints.dialing = false;
        hints.window = None;
        hints.replay.failed(now);
    }
}

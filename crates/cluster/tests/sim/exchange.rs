//! The exchange between two nodes: the machines that ship, over connections of their own.
//!
//! Each node has one connection to each peer for what it asks, as in the program. What was damaged
//! is asked for before anything is compared.

use std::sync::Arc;

use bytes::Bytes;
use koltso_cluster::Now;
use koltso_cluster::exchange::answering::Answering;
use koltso_cluster::exchange::board::Board;
use koltso_cluster::exchange::comparison::{Comparison, Step};
use koltso_cluster::exchange::pair::Pair;
use koltso_cluster::placement::{NodeIndex, Topology};
use koltso_model::{ExchangeReply, ExchangeRequest, Operation, Record, Standing, Told};

use super::holdings::SimHoldings;
use super::network::{Lane, Msg, Phase, Via};
use super::plan::Mutation;
use super::world::{SECOND, Work, World};

/// Between a connection that ended and the next.
const REDIAL: u64 = SECOND;
/// How long an answer may take.
const ANSWER_PATIENCE: u64 = 10 * SECOND;

/// A node's part of the exchange, of one process.
pub struct Exchange {
    board: Board,
    /// By peer.
    sides: Vec<Side>,
}

struct Side {
    comparison: Comparison,
    answering: Answering,
    /// When the next step is due.
    due: u64,
    /// When the present answer is late.
    late_at: u64,
    redial_at: u64,
    /// When it may be asked again for what is damaged here.
    lookup_at: u64,
}

impl World {
    fn pair(&self, node: usize, peer: usize) -> Pair {
        Pair::new(self.nodes[node].topology.clone(), NodeIndex(peer as u8))
    }

    /// A process begins to exchange.
    pub fn start_exchange(&mut self, node: usize) {
        self.recover(node);
        let micros = self.clocks(node).micros;
        let side = |peer| Side {
            comparison: Comparison::new(self.pair(node, peer), micros),
            answering: Answering::new(self.pair(node, peer)),
            due: u64::MAX,
            late_at: u64::MAX,
            redial_at: 0,
            lookup_at: 0,
        };
        let sides = (0..self.plan.nodes).map(side).collect();
        let board = Board::new(self.nodes[node].topology.clone());
        self.nodes[node].exchange = Some(Box::new(Exchange { board, sides }));
        let standing = self.nodes[node].memory.standing();
        self.stands(node, standing);
        for peer in self.peers(node) {
            let at = self.now + self.random.below(SECOND);
            self.exchange_at(node, peer, at);
        }
    }

    /// How a node's data stands has changed.
    pub fn stands(&mut self, node: usize, standing: Standing) {
        let wall = self.clocks(node).wall;
        if let Some(exchange) = &mut self.nodes[node].exchange {
            exchange.board.stands(standing, wall);
        }
        // The others are to know at once whom they have to remember.
        if standing == Standing::Whole {
            for peer in self.peers(node) {
                self.with_exchange(node, peer, |side, _, now, _| side.comparison.wake(now.micros));
                let now = self.now;
                self.exchange_at(node, peer, now);
            }
        }
    }

    fn side(&mut self, node: usize, peer: usize) -> &mut Side {
        &mut self.nodes[node].exchange.as_mut().expect("the exchange is driven by one event at a time").sides[peer]
    }

    fn with_exchange<R>(
        &mut self,
        node: usize,
        peer: usize,
        event: impl FnOnce(&mut Side, &mut Board, Now, &mut SimHoldings<'_>) -> R,
    ) -> R {
        let now = self.clocks(node);
        let mut exchange = self.nodes[node].exchange.take().expect("the exchange is driven by one event at a time");
        let Exchange { board, sides } = &mut *exchange;
        let result = event(&mut sides[peer], board, now, &mut SimHoldings { world: self, node });
        self.nodes[node].exchange = Some(exchange);
        result
    }

    fn exchange_at(&mut self, node: usize, peer: usize, at: u64) {
        let side = self.side(node, peer);
        if at < side.due {
            side.due = at;
            self.on(node, at, Work::Exchange(peer));
        }
    }

    /// The time of a step has come.
    pub fn exchange(&mut self, node: usize, peer: usize) {
        let now = self.now;
        let side = self.side(node, peer);
        // An earlier time was set for it since.
        if now < side.due {
            return;
        }
        side.due = u64::MAX;
        if now >= side.late_at {
            self.link(node, peer, Lane::Exchange).forget();
            return self.exchange_lost(node, peer);
        }
        let redial_at = side.redial_at;
        match self.link(node, peer, Lane::Exchange).phase {
            Phase::Dialing => {}
            Phase::Down if now < redial_at => self.exchange_at(node, peer, redial_at),
            Phase::Down => self.dial_for_exchange(node, peer),
            Phase::Up => self.exchange_step(node, peer),
        }
    }

    fn exchange_step(&mut self, node: usize, peer: usize) {
        let Side { late_at, lookup_at, .. } = *self.side(node, peer);
        if late_at != u64::MAX {
            return self.exchange_at(node, peer, late_at);
        }
        if self.now >= lookup_at
            && let Some(key) = self.damaged_of(node, peer)
        {
            return self.ask(node, peer, Msg::Lookup(key));
        }
        loop {
            let step =
                self.with_exchange(node, peer, |side, board, now, holdings| side.comparison.step(now, board, holdings));
            match step {
                Step::Wait(u64::MAX) => return,
                Step::Wait(until) => {
                    let at = self.now + until.saturating_sub(self.clocks(node).micros).max(1);
                    return self.exchange_at(node, peer, at);
                }
                Step::Ask(ExchangeRequest::Agreed { .. }) if self.plan.mutation == Mutation::NeverTellsAgreed => {
                    let noted = ExchangeReply::Noted;
                    let _ = self.with_exchange(node, peer, |side, board, now, holdings| {
                        side.comparison.answered(now, noted, board, holdings)
                    });
                }
                Step::Ask(request) => {
                    self.say_unless_usual(node, peer, &request);
                    let epoch = self.nodes[node].topology.epoch();
                    return self.ask(node, peer, Msg::Exchange(epoch, request));
                }
            }
        }
    }

    fn say_unless_usual(&mut self, node: usize, peer: usize, request: &ExchangeRequest) {
        if !matches!(request, ExchangeRequest::Roots { .. }) {
            self.say(None, || format!("{node} asks {peer} to compare: {request:?}"));
        }
    }

    fn ask(&mut self, node: usize, peer: usize, msg: Msg) {
        let epoch = self.link(node, peer, Lane::Exchange).epoch;
        let late_at = self.now + ANSWER_PATIENCE;
        self.side(node, peer).late_at = late_at;
        self.exchange_at(node, peer, late_at);
        self.transmit(Via { asker: node, peer, lane: Lane::Exchange, epoch }, msg);
    }

    /// A damaged record that the peer should have.
    fn damaged_of(&self, node: usize, peer: usize) -> Option<Bytes> {
        let damaged = |key: &&Bytes| self.nodes[node].store.is_damaged(key);
        let theirs = |key: &&Bytes| {
            let record = self.nodes[node].store.record(key);
            record.is_some_and(|record| self.is_replica(peer, super::holdings::place(record)))
        };
        self.keys.iter().filter(damaged).find(theirs).cloned()
    }

    pub fn exchange_connected(&mut self, node: usize, peer: usize) {
        let answering = Answering::new(self.pair(peer, node));
        self.side(peer, node).answering = answering;
        self.with_exchange(node, peer, |side, _, now, _| side.comparison.wake(now.micros));
        self.exchange_step(node, peer);
    }

    /// A connection for the exchange, or the attempt to get one, has ended.
    pub fn exchange_lost(&mut self, node: usize, peer: usize) {
        let redial_at = self.now + REDIAL / 2 + self.random.below(REDIAL);
        self.with_exchange(node, peer, |side, board, now, _| {
            side.late_at = u64::MAX;
            side.redial_at = redial_at;
            side.comparison.lost(now.micros);
            board.lost(NodeIndex(peer as u8));
        });
        self.exchange_at(node, peer, redial_at);
    }

    /// The peer is there: no pause is worth while.
    pub fn exchange_now(&mut self, node: usize, peer: usize) {
        let now = self.now;
        if self.link(node, peer, Lane::Exchange).phase == Phase::Down {
            self.side(node, peer).redial_at = now;
            self.exchange_at(node, peer, now);
        }
    }

    // ---- messages ----

    /// A peer asks.
    pub fn exchange_asked(&mut self, node: usize, via: Via, (epoch, request): (u64, &ExchangeRequest)) {
        let told = match request {
            ExchangeRequest::Roots { told, .. } => Some(*told),
            _ => None,
        };
        let mut request = request.clone();
        let mut dropped = false;
        if let ExchangeRequest::Give(records) = &mut request
            && self.plan.mutation == Mutation::DropsTheLastGiven
        {
            records.pop();
            dropped = true;
        }
        let reply = self.with_exchange(node, via.asker, |side, board, now, holdings| {
            side.answering.answer(now.wall, (epoch, &request), board, holdings)
        });
        self.heard_told(node, via.asker, told);
        match reply {
            Ok(mut reply) => {
                if let ExchangeReply::Given(given) = &mut reply {
                    given.extend(dropped.then_some(true));
                }
                self.transmit(via, Msg::ExchangeReply(reply));
            }
            Err(sentence) => {
                self.fail("nobody lies", None, format!("{node} says of {}: {sentence}: {request:?}", via.asker));
            }
        }
    }

    /// A peer answers.
    pub fn exchange_answered(&mut self, node: usize, peer: usize, reply: ExchangeReply) {
        let told = match &reply {
            ExchangeReply::Roots { told, .. } => Some(*told),
            _ => None,
        };
        if !matches!(reply, ExchangeReply::Noted) {
            self.say(None, || format!("{node} hears of {peer}: {reply:?}"));
        }
        let result = self.with_exchange(node, peer, |side, board, now, holdings| {
            side.late_at = u64::MAX;
            side.due = u64::MAX;
            side.comparison.answered(now, reply, board, holdings)
        });
        self.heard_told(node, peer, told);
        if let Err(sentence) = result {
            self.fail("nobody lies", None, format!("{node} says of {peer}: {sentence}"));
        }
        self.exchange_step(node, peer);
    }

    fn heard_told(&mut self, node: usize, peer: usize, told: Option<Told>) {
        if let Some(told) = told {
            self.standing_told(node, peer, &told);
        }
    }

    /// A peer asks for the record of a key.
    pub fn looked_up(&mut self, node: usize, via: Via, key: &Bytes) {
        let store = &self.nodes[node].store;
        let record = store.record(key).filter(|_| !store.is_damaged(key)).cloned();
        self.transmit(via, Msg::Found(record));
    }

    pub fn damage_answered(&mut self, node: usize, peer: usize, record: Option<Record<Bytes>>) {
        let lookup_at = self.now + SECOND;
        let side = self.side(node, peer);
        (side.late_at, side.due) = (u64::MAX, u64::MAX);
        // It has none that can be read, or this node cannot write: another peer has, or this one later.
        side.lookup_at = lookup_at;
        if let Some(record) = record {
            self.take_over(node, &Operation::Write(record));
        }
        self.exchange_step(node, peer);
    }

    /// The members have changed, or what they hold.
    pub fn exchange_adopts(&mut self, node: usize, topology: &Arc<Topology>) {
        let (micros, now) = (self.clocks(node).micros, self.now);
        let Some(exchange) = &mut self.nodes[node].exchange else { return };
        exchange.board.adopt(topology.clone());
        for side in &mut exchange.sides {
            side.comparison.adopt(topology.clone(), micros);
            side.answering.adopt(topology.clone());
        }
        for peer in self.peers(node) {
            self.exchange_at(node, peer, now);
        }
    }

    /// Whether a node has what it is on the way to in a batch.
    pub fn has_received(&self, node: usize, batch: usize) -> bool {
        let exchange = self.nodes[node].exchange.as_ref().expect("nobody looks at one that is driven");
        exchange.board.has_received(batch, self.froms(node))
    }

    // ---- progress ----

    /// Whether a node that is not whole has compared with enough others.
    pub fn may_be_whole(&mut self, node: usize) -> bool {
        let froms = self.froms(node);
        let exchange = self.nodes[node].exchange.as_ref().expect("the exchange is driven by one event at a time");
        let progress = exchange.board.progress(froms);
        let rebuilding = self.nodes[node].memory.standing() == Standing::Rebuilding;
        rebuilding && (progress.is_done() || self.plan.mutation == Mutation::WholeTooSoon && progress.done > 0)
    }

    /// Notes up to when a node has agreed with all on everything, as a clock.
    pub fn note_agreed(&mut self, node: usize) -> u64 {
        let froms = self.froms(node);
        let exchange = self.nodes[node].exchange.as_ref().expect("the exchange is driven by one event at a time");
        let agreed = exchange.board.agreed(froms);
        self.nodes[node].agreements.agreed = agreed;
        agreed
    }
}

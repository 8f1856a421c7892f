//! The thread that compares with one peer: it carries out what the comparison asks for.
//!
//! ```text
//! wait ─▶ dial, if need be ─▶ ask ─▶ take in what was answered, rest for the rate ─▶ wait …
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use koltso_cluster::Now;
use koltso_cluster::exchange::comparison::{Comparison, Figures, Step};
use koltso_cluster::exchange::pair::Pair;
use koltso_cluster::placement::NodeIndex;
use koltso_cluster::skew::SKEW_MAX_MS;
use koltso_instrument::waiting;
use koltso_model::{ExchangeReply, ExchangeRequest, VALUE_MAX_LIMIT, WallTime};
use koltso_net::replica::blocking::{Connection, DialConfig};
use koltso_net::replica::{Identity, Purpose};

use super::Repair;
use super::holdings::{self, Here};
use crate::replica::clock::{now_wall, told_ms};

/// How long a peer may take to begin an answer: it may have to list a lot.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a peer's name may take to be found out.
const NAME_PATIENCE: Duration = Duration::from_millis(500);
/// After a connection that failed, before the next.
const RETRY: Duration = Duration::from_secs(1);
/// A repair that others noted is over when the peer has agreed on all up to this much after the last
/// hint was dropped, in ms: clocks differ.
const AFTER_DROP_MS: u64 = 2_000;
/// How often it is looked at how many keys there are.
const COUNT_EVERY: Duration = Duration::from_secs(60);

pub(super) struct Asking {
    repair: Arc<Repair>,
    pair: Pair,
    here: Here,
    identity: Identity,
    connection: Option<Connection>,
    /// The last drop of hints for the peer that was noticed, and when.
    dropped: Option<(u64, WallTime)>,
    /// What was shown of the comparison.
    shown: Figures,
    counted: Option<Instant>,
}

impl Asking {
    pub(super) fn new(repair: Arc<Repair>, pair: Pair) -> Self {
        let (here, identity) = (repair.here(), repair.cluster.identity());
        Self { repair, pair, here, identity, connection: None, dropped: None, shown: Figures::default(), counted: None }
    }

    fn now(&self) -> Now {
        Now { micros: self.repair.micros(), wall: now_wall() }
    }

    pub(super) fn run(mut self) {
        let mut comparison = Comparison::new(self.pair.clone(), self.repair.micros());
        let mut told = 0;
        while !self.repair.stopped() {
            // A peer that does not know yet would doubt this node again at the next handshake.
            let became_whole = self.repair.became_whole.load(Ordering::Relaxed);
            if std::mem::replace(&mut told, became_whole) != became_whole {
                comparison.wake(self.repair.micros());
            }
            self.note_dropped_hints();
            let step = comparison.step(self.now(), &mut self.repair.board(), &mut self.here);
            self.publish(&comparison);
            match step {
                Step::Wait(until) => {
                    let left = until.saturating_sub(self.repair.micros());
                    self.repair.rest(Duration::from_micros(left).min(super::STEP), &self.repair.stop);
                }
                Step::Ask(request) => {
                    let asked = self.ask(&request).and_then(|reply| {
                        comparison.answered(self.now(), reply, &mut self.repair.board(), &mut self.here)
                    });
                    if let Err(sentence) = asked {
                        self.lost(sentence);
                        comparison.lost(self.repair.micros() + RETRY.as_micros() as u64);
                    }
                    self.repair.pay(comparison.take_spent());
                }
            }
        }
    }

    fn ask(&mut self, request: &ExchangeRequest) -> Result<ExchangeReply, String> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none
                .insert(waiting(&"connection for comparing", || dial(&self.repair, self.pair.peer(), &self.identity))?),
        };
        let reply =
            waiting(&"answer of a comparison", || connection.exchange(request)).map_err(|lost| lost.to_string())?;
        if let (ExchangeReply::Roots { told, .. }, Some(standing)) = (&reply, self.repair.cluster.standing()) {
            standing.told(connection.peer(), told);
            self.repair.look_at_standing();
        }
        Ok(reply)
    }

    fn lost(&mut self, sentence: String) {
        self.connection = None;
        self.repair.board.lock().lost(self.pair.peer());
        let sentence = self.repair.cluster.translated(&sentence);
        tracing::debug!("comparing with {} ended: {sentence}", self.repair.cluster.peers.url(self.pair.peer()));
        self.repair.cluster.repairs.of(self.pair.peer()).error = Some(sentence);
    }

    /// What is dropped for the peer is repaired when it says that it has all.
    fn note_dropped_hints(&mut self) {
        let (Some(hints), peer) = (self.repair.cluster.hints(), self.pair.peer()) else { return };
        let Some(generation) = hints.needs_repair(peer.at()) else {
            self.dropped = None;
            return;
        };
        match self.dropped {
            Some((of, at)) if of == generation => {
                let enough = WallTime::from_ms(at.ms() + AFTER_DROP_MS).0;
                let told = self.repair.board.lock().told(peer);
                if told.is_some_and(|told| told.agreed >= enough) {
                    hints.repaired(peer.at(), generation);
                }
            }
            _ => self.dropped = Some((generation, now_wall())),
        }
    }

    /// What the round has come to, once it is over.
    fn publish(&mut self, comparison: &Comparison) {
        let figures = comparison.figures();
        if figures.rounds == self.shown.rounds {
            return;
        }
        let before = std::mem::replace(&mut self.shown, figures);
        if self.counted.is_none_or(|at| at.elapsed() >= COUNT_EVERY) {
            self.counted = Some(Instant::now());
            let keys = holdings::guess(self.repair.store.stats().records);
            self.repair.keys_a_partition.store(keys, Ordering::Relaxed);
        }
        let froms = self.here.froms();
        self.repair.conclude(froms);
        let peer = self.pair.peer();
        let (told, (done, all)) = {
            let board = self.repair.board.lock();
            (board.told(peer), board.equal_with(peer, froms))
        };
        let mut shown = self.repair.cluster.repairs.of(peer);
        shown.standing = told.map(|told| told.standing);
        (shown.partitions_done, shown.partitions_all) = (done, all);
        shown.rounds = figures.rounds;
        shown.differing += figures.differing;
        shown.records_received += figures.received - before.received;
        shown.bytes_received += figures.bytes_received - before.bytes_received;
        shown.records_sent += figures.sent - before.sent;
        shown.bytes_sent += figures.bytes_sent - before.bytes_sent;
        shown.error = None;
        if figures.differing == 0 {
            shown.last_equal = Some(Instant::now());
        }
    }
}

/// Connects to a peer for comparing with it.
pub(super) fn dial(repair: &Repair, peer: NodeIndex, identity: &Identity) -> Result<Connection, String> {
    let cluster = &repair.cluster;
    let acquaintances = cluster.acquaintances();
    let config = DialConfig {
        address: cluster.names[peer.at()].wait(NAME_PATIENCE)?,
        identity,
        acquaintances: &*acquaintances,
        peer_number: cluster.topology.number(peer),
        purpose: Purpose::Exchange,
        value_max: VALUE_MAX_LIMIT,
        wall_ms: told_ms,
        skew_max: Duration::from_millis(SKEW_MAX_MS),
        timeout: PATIENCE,
        stop: Some(repair.stop.clone()),
    };
    let connection = Connection::dial(&config).map_err(|lost| lost.to_string())?;
    cluster.met(connection.peer());
    repair.look_at_standing();
    Ok(connection)
}

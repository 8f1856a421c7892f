//! What this node knows of its peers, for `/status`, `/metrics` and the log.
//!
//! Cores publish ten times a second what their coordinators know; troubles with a connection are
//! told at once. Owner: the process, behind an `Arc`. Bounds: a page a peer and core. A sentence
//! about a peer is logged when it changes, and then again after a minute at the earliest, however
//! often a link tries.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use koltso_cluster::coordinator::{Coordinator, Counters};
use koltso_cluster::health::RoundTrips;
use koltso_cluster::placement::NodeIndex;
use koltso_instrument::Mutex;
use koltso_net::replica::Introduction;

use super::urls::UrlsByNumber;

/// The same sentence about a peer is logged again after this.
const REPEAT: Duration = Duration::from_secs(60);
/// Nodes that are started together find each other in this time, and nothing is said about it.
const PATIENCE_AT_START: Duration = Duration::from_secs(3);
/// Trouble that is older than this, with no connection to blame, is over.
const REFUSAL_LASTS: Duration = Duration::from_secs(10);

/// How a peer is, as its cores see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// All cores are connected to it, and it answers.
    Up,
    /// It was silent under load for some core, which probes it.
    Open,
    /// Some core has no connection to it.
    Down,
}

impl PeerState {
    /// As `/status` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Open => "open",
            Self::Down => "down",
        }
    }
}

/// What one core has published of one peer.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeerFigures {
    pub connected: bool,
    pub open: bool,
    pub unanswered: u64,
    pub latency_us: u64,
    pub p95_us: u64,
    pub requests: u64,
    pub hedges: u64,
    pub repairs: u64,
    pub hints: u64,
    pub opened: u64,
    pub round_trips: RoundTrips,
}

struct Peer {
    url: String,
    cores: Vec<Mutex<PeerFigures>>,
    connected: Vec<AtomicBool>,
    /// What the process said of itself to which a core connected last.
    process: Mutex<Option<Introduction>>,
    /// Connections that it has made to this node.
    arrivals: AtomicU64,
    trouble: Mutex<Option<Trouble>>,
    /// Since when some core has no connection to it.
    away_since: Mutex<Option<Instant>>,
    /// What was logged last about it.
    logged: Mutex<Option<(String, Instant)>>,
    skew_ms: AtomicI64,
    skew_error_ms: AtomicU64,
    /// Until when it has lived, by its own clock, in ms since the Unix epoch.
    lived_ms: AtomicU64,
}

/// What one core did for peers that coordinate.
#[derive(Debug, Default)]
pub struct Served {
    pub requests: AtomicU64,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
}

struct Trouble {
    sentence: String,
    since: Instant,
}

/// All peers; this node's own place is empty.
pub struct Peers {
    peers: Vec<Peer>,
    names: UrlsByNumber,
    me: NodeIndex,
    counters: Vec<Mutex<Counters>>,
    served: Vec<Served>,
    /// Somebody who wanted to connect and was refused; not always a peer.
    refused: Mutex<Option<Trouble>>,
    refused_logged: Mutex<Option<(String, Instant)>>,
    refusals: AtomicU64,
    crowded_out: AtomicU64,
    started: Instant,
}

/// Whether a sentence is worth a line: it is new, or a minute has passed.
pub(super) fn worth_a_line(logged: &Mutex<Option<(String, Instant)>>, sentence: &str) -> bool {
    let mut logged = logged.lock();
    let worth = logged.as_ref().is_none_or(|(last, when)| last != sentence || when.elapsed() > REPEAT);
    if worth {
        *logged = Some((sentence.to_owned(), Instant::now()));
    }
    worth
}

impl Peers {
    /// Peers of whom nothing is known.
    pub fn new(urls: Vec<String>, numbers: &[u16], me: NodeIndex, cores: usize) -> Self {
        let names = UrlsByNumber::new(numbers.iter().copied().zip(urls.iter().cloned()));
        let peer = |url| Peer {
            url,
            cores: (0..cores).map(|_| Mutex::new(&"figures of a peer", PeerFigures::default())).collect(),
            connected: (0..cores).map(|_| AtomicBool::new(false)).collect(),
            process: Mutex::new(&"process of a peer", None),
            arrivals: AtomicU64::new(0),
            trouble: Mutex::new(&"trouble with a peer", None),
            away_since: Mutex::new(&"absence of a peer", Some(Instant::now())),
            logged: Mutex::new(&"log lines about a peer", None),
            skew_ms: AtomicI64::new(0),
            skew_error_ms: AtomicU64::new(u64::MAX),
            lived_ms: AtomicU64::new(0),
        };
        Self {
            peers: urls.into_iter().map(peer).collect(),
            names,
            me,
            counters: (0..cores).map(|_| Mutex::new(&"counters of a coordinator", Counters::default())).collect(),
            served: (0..cores).map(|_| Served::default()).collect(),
            refused: Mutex::new(&"refusals", None),
            refused_logged: Mutex::new(&"log lines about refusals", None),
            refusals: AtomicU64::new(0),
            crowded_out: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    /// Takes over what a core's coordinator knows.
    pub fn publish(&self, core: usize, coordinator: &Coordinator) {
        *self.counters[core].lock() = coordinator.counters();
        for (at, shared) in self.peers.iter().enumerate().filter(|&(at, _)| at != self.me.at()) {
            let peer = coordinator.health().peer(NodeIndex(at as u8));
            *shared.cores[core].lock() = PeerFigures {
                connected: peer.connected(),
                open: peer.open(),
                unanswered: peer.unanswered().into(),
                latency_us: peer.latency_micros(),
                p95_us: peer.p95_micros(),
                requests: peer.requests,
                hedges: peer.hedges,
                repairs: peer.repairs,
                hints: peer.hints,
                opened: peer.opened,
                round_trips: peer.round_trips,
            };
        }
    }

    /// A peer has connected to this node: it lives, and a link to it need not wait.
    pub fn arrived(&self, node: NodeIndex) {
        self.peers[node.at()].arrivals.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it has.
    pub fn arrivals(&self, node: NodeIndex) -> u64 {
        self.peers[node.at()].arrivals.load(Ordering::Relaxed)
    }

    /// A core has a connection to a peer, which has said this of itself.
    pub fn connected(&self, node: NodeIndex, core: usize, process: &Introduction) {
        let peer = &self.peers[node.at()];
        *peer.process.lock() = Some(*process);
        peer.connected[core].store(true, Ordering::Relaxed);
        if peer.connected.iter().all(|connected| connected.load(Ordering::Relaxed)) {
            *peer.trouble.lock() = None;
            *peer.away_since.lock() = None;
            if peer.logged.lock().take().is_some() {
                tracing::info!("{} is connected again", peer.url);
            }
        }
    }

    /// Whether this process has the folder of another one that is there as this peer and answers:
    /// some core is connected to it, and to none it is silent.
    pub fn lives_elsewhere(&self, node: NodeIndex, process: &Introduction) -> bool {
        let peer = &self.peers[node.at()];
        let is_other = |known: &Introduction| known.id == process.id && known.process != process.process;
        (*peer.process.lock()).as_ref().is_some_and(is_other)
            && peer.connected.iter().any(|connected| connected.load(Ordering::Relaxed))
            && peer.cores.iter().all(|core| !core.lock().open)
    }

    /// A core's connection to a peer, or its attempt to get one, has ended. `absent`: nobody
    /// listens there.
    pub fn lost(&self, node: NodeIndex, core: usize, sentence: &str, absent: bool) {
        let sentence = self.names.translated(sentence);
        let peer = &self.peers[node.at()];
        peer.connected[core].store(false, Ordering::Relaxed);
        peer.away_since.lock().get_or_insert_with(Instant::now);
        let mut trouble = peer.trouble.lock();
        match &mut *trouble {
            Some(trouble) if trouble.sentence == sentence => {}
            trouble => *trouble = Some(Trouble { sentence: sentence.clone(), since: Instant::now() }),
        }
        drop(trouble);
        let early = absent && self.started.elapsed() < PATIENCE_AT_START;
        if !early && worth_a_line(&peer.logged, &sentence) {
            tracing::warn!("no connection to {}: {sentence}", peer.url);
        }
    }

    /// How far a peer's clock is ahead, and how far that may be wrong, in ms.
    pub fn skew_seen(&self, node: NodeIndex, skew_ms: i64, error_ms: u64) {
        let peer = &self.peers[node.at()];
        peer.skew_ms.store(skew_ms, Ordering::Relaxed);
        peer.skew_error_ms.store(error_ms, Ordering::Relaxed);
    }

    /// A peer has said what its clock says, in ms since the Unix epoch.
    pub fn lived_until(&self, node: NodeIndex, ms: u64) {
        self.peers[node.at()].lived_ms.store(ms, Ordering::Relaxed);
    }

    /// Until when a peer has lived, as it said last; 0 if it has not said so.
    pub fn lived_ms(&self, node: NodeIndex) -> u64 {
        self.peers[node.at()].lived_ms.load(Ordering::Relaxed)
    }

    /// Somebody connected here and was refused, or broke the protocol.
    pub fn refused(&self, sentence: &str) {
        let sentence = self.names.translated(sentence);
        self.refusals.fetch_add(1, Ordering::Relaxed);
        if worth_a_line(&self.refused_logged, &sentence) {
            tracing::warn!("a replica connection was refused: {sentence}");
        }
        *self.refused.lock() = Some(Trouble { sentence, since: Instant::now() });
    }

    /// How many cores this node has.
    pub fn cores(&self) -> usize {
        self.served.len()
    }

    /// A stranger was shown out in favour of another.
    pub fn crowd_out(&self) {
        self.crowded_out.fetch_add(1, Ordering::Relaxed);
        self.refused("too many connections did not say who they are");
    }

    /// How often that happened.
    pub fn crowded_out(&self) -> u64 {
        self.crowded_out.load(Ordering::Relaxed)
    }

    /// Connections to this node that were refused.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// Why the last one was, while that is news.
    pub fn refusal(&self) -> Option<String> {
        let refused = self.refused.lock();
        refused
            .as_ref()
            .filter(|trouble| trouble.since.elapsed() < REFUSAL_LASTS)
            .map(|trouble| trouble.sentence.clone())
    }

    /// The peers, without this node.
    pub fn nodes(&self) -> impl Iterator<Item = NodeIndex> + '_ {
        (0..self.peers.len() as u8).map(NodeIndex).filter(|&node| node != self.me)
    }

    /// A peer's address.
    pub fn url(&self, node: NodeIndex) -> &str {
        &self.peers[node.at()].url
    }

    /// How a peer is.
    pub fn state(&self, node: NodeIndex) -> PeerState {
        let peer = &self.peers[node.at()];
        if !peer.connected.iter().all(|connected| connected.load(Ordering::Relaxed)) {
            PeerState::Down
        } else if peer.cores.iter().any(|core| core.lock().open) {
            PeerState::Open
        } else {
            PeerState::Up
        }
    }

    /// For how long some core has had no connection to it.
    pub fn away(&self, node: NodeIndex) -> Duration {
        self.peers[node.at()].away_since.lock().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Why there is no connection to it.
    pub fn trouble(&self, node: NodeIndex) -> Option<String> {
        self.peers[node.at()].trouble.lock().as_ref().map(|trouble| trouble.sentence.clone())
    }

    /// How far its clock is ahead, in ms, once it was read.
    pub fn skew_ms(&self, node: NodeIndex) -> Option<i64> {
        let peer = &self.peers[node.at()];
        let known = peer.skew_error_ms.load(Ordering::Relaxed) != u64::MAX;
        known.then(|| peer.skew_ms.load(Ordering::Relaxed))
    }

    /// What all cores know of a peer: sums, and the worst of the latencies.
    pub fn figures(&self, node: NodeIndex) -> PeerFigures {
        let mut all = PeerFigures { connected: true, ..PeerFigures::default() };
        for core in &self.peers[node.at()].cores {
            let one = *core.lock();
            all.connected &= one.connected;
            all.open |= one.open;
            all.unanswered += one.unanswered;
            all.latency_us = all.latency_us.max(one.latency_us);
            all.p95_us = all.p95_us.max(one.p95_us);
            all.requests += one.requests;
            all.hedges += one.hedges;
            all.repairs += one.repairs;
            all.hints += one.hints;
            all.opened += one.opened;
            all.round_trips.sum_micros += one.round_trips.sum_micros;
            for (sum, count) in all.round_trips.buckets.iter_mut().zip(one.round_trips.buckets) {
                *sum += count;
            }
        }
        all
    }

    /// A core's counters of what it did for others.
    pub fn served(&self, core: usize) -> &Served {
        &self.served[core]
    }

    /// Requests served for others, bytes received from them and bytes sent to them, by all cores.
    pub fn served_in_all(&self) -> [u64; 3] {
        let sum = |of: fn(&Served) -> &AtomicU64| self.served.iter().map(|core| of(core).load(Ordering::Relaxed)).sum();
        [sum(|core| &core.requests), sum(|core| &core.bytes_in), sum(|core| &core.bytes_out)]
    }

    /// What the coordinators counted.
    pub fn counters(&self) -> Counters {
        self.counters.iter().fold(Counters::default(), |all, core| {
            let one = *core.lock();
            Counters {
                renewed: all.renewed + one.renewed,
                not_enough: all.not_enough + one.not_enough,
                repairs_waited_for: all.repairs_waited_for + one.repairs_waited_for,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use koltso_model::NodeId;

    use super::*;

    #[test]
    fn the_skew_of_a_peer_is_known_once_it_was_seen() {
        let peers = Peers::new(vec!["http://a:1".into(), "http://b:1".into()], &[7, 8], NodeIndex(0), 1);
        assert_eq!(peers.skew_ms(NodeIndex(1)), None);
        peers.skew_seen(NodeIndex(1), 400, 1);
        assert_eq!(peers.skew_ms(NodeIndex(1)), Some(400));
    }

    #[test]
    fn of_two_processes_with_one_folder_the_first_is_there_as_long_as_it_answers() {
        let (peers, node) =
            (Peers::new(vec!["http://a:1".into(), "http://b:1".into()], &[7, 8], NodeIndex(0), 2), NodeIndex(1));
        let of = |id, process| Introduction { id: NodeId(id), starts: 3, lived_ms: 4, process };
        assert!(!peers.lives_elsewhere(node, &of(1, 2)), "nobody is there yet");
        peers.connected(node, 0, &of(1, 1));
        peers.connected(node, 1, &of(1, 1));
        assert!(peers.lives_elsewhere(node, &of(1, 2)));
        assert!(!peers.lives_elsewhere(node, &of(1, 1)), "itself");
        assert!(!peers.lives_elsewhere(node, &of(2, 2)), "another folder");
        peers.lost(node, 0, "gone", false);
        assert!(peers.lives_elsewhere(node, &of(1, 2)), "one core still has it");
        peers.lost(node, 1, "gone", false);
        assert!(!peers.lives_elsewhere(node, &of(1, 2)), "it may have been started again");
        peers.connected(node, 0, &of(1, 2));
        assert!(peers.lives_elsewhere(node, &of(1, 1)), "now the other one is there");
        peers.peers[node.at()].cores[1].lock().open = true;
        assert!(!peers.lives_elsewhere(node, &of(1, 1)), "it is silent: perhaps it has gone without a word");
    }

    #[test]
    fn a_sentence_is_logged_once_and_a_new_one_again() {
        let logged = Mutex::new(&"log lines", None);
        assert!(worth_a_line(&logged, "one"));
        assert!(!worth_a_line(&logged, "one"));
        assert!(worth_a_line(&logged, "two"));
    }
}

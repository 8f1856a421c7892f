//! How each peer is: its latency, its silence, and what may be asked of it.
//!
//! ```text
//!            connected                     120 ms of silence
//!   Down ───────────────▶ Up, circuit closed ───────────────▶ Up, circuit open
//!    ▲                        ▲     │                            │    │
//!    └────────── lost ────────┼─────┘       a prompt pong        │    │
//!    └────────────────────────┴──────────────────────────────────┘    │
//!    └──────────────────────────── lost ──────────────────────────────┘
//! ```
//!
//! A peer that is not *usable* (down, or its circuit is open) is asked only where a request cannot
//! have enough replicas without it, and with a probe now and then. *Silence* is: something is
//! unanswered, and nothing at all has come from the peer since. Answers on one connection come in
//! any order, one for each request: a pong says that the peer lives, and nothing of the requests
//! before its ping, which may wait for a disk.
//!
//! A replica that refuses reads since it is *rebuilding* is well for all else: its circuit stays
//! closed, and for a while reads prefer others.
//!
//! Owner: one coordinator. Bounds: a few words a peer. Invariants:
//! 1. A core that was itself asleep blames nobody: time in which it did not tick is not counted as
//!    a peer's silence.
//! 2. Hedges are at most [`HEDGE_SHARE`] of the reads, whatever the latencies, plus a burst of
//!    [`HEDGE_BURST`].
//!
//! Tested below and by the simulator.

use crate::placement::NodeIndex;

/// Silence under load after which a peer's circuit opens, in µs.
pub const SILENCE_MICROS: u64 = 120_000;
/// Between probes of a peer whose circuit is open.
pub const PROBE_MICROS: u64 = 100_000;
/// A probe is given up after this.
pub const PROBE_PATIENCE_MICROS: u64 = 1_000_000;
/// Between pings of a peer that is well: latency, clock, and its silence where nothing else is
/// asked.
pub const PING_MICROS: u64 = 1_000_000;
/// A tick that is later than this says that this core was asleep.
pub const ASLEEP_MICROS: u64 = 40_000;
/// A replica that refused a read because it is rebuilding is asked last for this long.
pub const REFUSED_READ_MICROS: u64 = 1_000_000;
/// One read in so many may be hedged.
pub const HEDGE_SHARE: u32 = 20;
/// Hedges that can be saved up for a bad moment.
pub const HEDGE_BURST: u32 = 400;
const HEDGES_AT_START: u32 = 50;
/// Bounds of the time after which a read is hedged, and what it begins with.
const HEDGE_AFTER_MIN: u64 = 2_000;
const HEDGE_AFTER_MAX: u64 = 50_000;
const LATENCY_AT_START: u64 = 1_000;

/// Upper bounds of the buckets of [`RoundTrips`], in µs.
pub const ROUND_TRIP_BOUNDS: [u64; 14] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000];

/// A histogram of round trips.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundTrips {
    /// Below each of the [`ROUND_TRIP_BOUNDS`] (and not below the one before), and the rest.
    pub buckets: [u64; ROUND_TRIP_BOUNDS.len() + 1],
    /// All together, in µs.
    pub sum_micros: u64,
}

/// What this core knows of one peer.
#[derive(Clone, Debug)]
pub struct PeerHealth {
    connected: bool,
    open: bool,
    unanswered: u32,
    /// Since when nothing was heard, while something is unanswered.
    waiting_since: u64,
    probe_sent: Option<u64>,
    /// Probes sent so far: the number of the last one. A pong of an earlier one, which stalled on
    /// its way, tells no round trip.
    probes: u32,
    next_probe: u64,
    /// Until when reads prefer others, because it refused one: it is rebuilding.
    refuses_until: u64,
    /// Moving average of the round trips, in µs.
    latency: u64,
    /// Estimate of their 95th percentile, in µs.
    p95: u64,
    /// Its round trips.
    pub round_trips: RoundTrips,
    /// How often its circuit opened.
    pub opened: u64,
    /// Requests sent to it.
    pub requests: u64,
    /// Reads sent to it because another peer was slow.
    pub hedges: u64,
    /// Writes sent to it because it was stale or damaged.
    pub repairs: u64,
    /// Writes that it missed.
    pub hints: u64,
}

impl Default for PeerHealth {
    fn default() -> Self {
        Self {
            connected: false,
            open: false,
            unanswered: 0,
            waiting_since: 0,
            probe_sent: None,
            probes: 0,
            next_probe: 0,
            refuses_until: 0,
            latency: LATENCY_AT_START,
            p95: 2 * LATENCY_AT_START,
            round_trips: RoundTrips::default(),
            opened: 0,
            requests: 0,
            hedges: 0,
            repairs: 0,
            hints: 0,
        }
    }
}

impl PeerHealth {
    /// It is connected and answers.
    #[must_use]
    #[inline]
    pub const fn usable(&self) -> bool {
        self.connected && !self.open
    }

    /// There is a connection.
    #[must_use]
    pub const fn connected(&self) -> bool {
        self.connected
    }

    /// Its circuit is open: it was silent under load.
    #[must_use]
    pub const fn open(&self) -> bool {
        self.open
    }

    /// Requests that were sent and not answered.
    #[must_use]
    pub const fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// Moving average of its round trips, in µs.
    #[must_use]
    pub const fn latency_micros(&self) -> u64 {
        self.latency
    }

    /// Estimate of the 95th percentile of its round trips, in µs.
    #[must_use]
    pub const fn p95_micros(&self) -> u64 {
        self.p95
    }

    /// How long a read would wait for it: its usual time, or that of its present silence.
    #[inline]
    pub(crate) fn score(&self, now: u64) -> u64 {
        let silence = if self.unanswered > 0 { now.saturating_sub(self.waiting_since) } else { 0 };
        self.latency.max(silence)
    }

    /// After how long a read that waits for it is hedged.
    pub(crate) fn hedge_after(&self) -> u64 {
        self.p95.clamp(HEDGE_AFTER_MIN, HEDGE_AFTER_MAX)
    }

    #[inline]
    pub(crate) fn sent(&mut self, now: u64) {
        if self.unanswered == 0 && self.probe_sent.is_none() {
            self.waiting_since = now;
        }
        self.unanswered += 1;
        self.requests += 1;
    }

    /// What was counted as sent was not.
    pub(crate) fn unsent(&mut self) {
        self.unanswered = self.unanswered.saturating_sub(1);
        self.requests = self.requests.saturating_sub(1);
    }

    /// Something came from it.
    #[inline]
    pub(crate) fn heard(&mut self, now: u64) {
        self.waiting_since = now;
    }

    #[inline]
    pub(crate) fn replied(&mut self, now: u64, latency: Option<u64>) {
        self.heard(now);
        self.unanswered = self.unanswered.saturating_sub(1);
        if let Some(latency) = latency {
            self.measured(latency);
        }
    }

    /// Frugal streaming (Ma, Muthukrishnan and Sandler, 2013) with a step in proportion: up by 19,
    /// down by 1.
    #[inline]
    fn measured(&mut self, latency: u64) {
        let bucket = ROUND_TRIP_BOUNDS.iter().position(|&bound| latency < bound).unwrap_or(ROUND_TRIP_BOUNDS.len());
        self.round_trips.buckets[bucket] += 1;
        self.round_trips.sum_micros += latency;
        self.latency = (self.latency * 7 + latency) / 8;
        let step = self.p95 / 1024 + 1;
        self.p95 = if latency > self.p95 { self.p95 + 19 * step } else { self.p95.saturating_sub(step) };
    }

    pub(crate) fn connected_now(&mut self, now: u64) {
        self.connected = true;
        self.open = false;
        self.refuses_until = 0;
        self.unanswered = 0;
        self.probe_sent = None;
        self.next_probe = now + PING_MICROS;
        self.heard(now);
    }

    pub(crate) fn lost(&mut self) {
        self.connected = false;
        self.unanswered = 0;
        self.probe_sent = None;
    }

    /// The number of the last probe.
    pub(crate) const fn last_probe(&self) -> u32 {
        self.probes
    }

    /// A pong. Requests that were sent before its ping may still be unanswered.
    pub(crate) fn probed(&mut self, now: u64, number: u32) -> Option<u64> {
        self.heard(now);
        if number != self.probes {
            return None;
        }
        let sent = self.probe_sent.take()?;
        let round_trip = now.saturating_sub(sent);
        if round_trip <= SILENCE_MICROS {
            self.open = false;
            self.measured(round_trip);
            self.next_probe = now + PING_MICROS;
        } else {
            // It is back, or slow: another one will tell.
            self.next_probe = now;
        }
        Some(round_trip)
    }

    /// What the passing of time brings; `asleep` is time in which this core did not look.
    pub(crate) fn tick(&mut self, now: u64, asleep: u64) -> Tick {
        if !self.connected {
            return Tick { probe: false, opened: false };
        }
        self.waiting_since = (self.waiting_since + asleep).min(now);
        let waits = self.unanswered > 0 || self.probe_sent.is_some();
        let opened = !self.open && waits && now - self.waiting_since > SILENCE_MICROS;
        if opened {
            self.open = true;
            self.opened += 1;
            self.next_probe = now;
        }
        if self.probe_sent.is_some_and(|sent| now.saturating_sub(sent) > PROBE_PATIENCE_MICROS) {
            self.probe_sent = None;
        }
        let probe = self.probe_sent.is_none() && now >= self.next_probe;
        if probe {
            if self.unanswered == 0 {
                self.waiting_since = now;
            }
            self.probe_sent = Some(now);
            self.probes = self.probes.wrapping_add(1);
            self.next_probe = now + if self.open { PROBE_MICROS } else { PING_MICROS };
        }
        Tick { probe, opened }
    }
}

/// What is to be done about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tick {
    pub(crate) probe: bool,
    /// Its circuit opened just now.
    pub(crate) opened: bool,
}

/// What a replica is worth to a read, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ReadRank {
    /// It answers.
    Usable,
    /// It said lately that it is rebuilding; it costs a round trip to hear that again.
    Refuses,
    /// It is silent, or there is no connection to it.
    Unusable,
}

/// All peers of a node, as one core sees them.
#[derive(Debug)]
pub struct Health {
    peers: Vec<PeerHealth>,
    me: NodeIndex,
    last_tick: u64,
    /// In units of 1/[`HEDGE_SHARE`].
    hedge_tokens: u32,
}

impl Health {
    pub(crate) fn new(nodes: usize, me: NodeIndex) -> Self {
        Self {
            peers: vec![PeerHealth::default(); nodes],
            me,
            last_tick: 0,
            hedge_tokens: HEDGES_AT_START * HEDGE_SHARE,
        }
    }

    /// There are peers up to this place, of the new ones of which nothing is known.
    pub(crate) fn make_room(&mut self, places: usize) {
        if self.peers.len() < places {
            self.peers.resize(places, PeerHealth::default());
        }
    }

    /// What is known of a peer.
    #[must_use]
    pub fn peer(&self, node: NodeIndex) -> &PeerHealth {
        &self.peers[node.at()]
    }

    /// What is known of a peer; `None` if this core does not know that there is one.
    #[must_use]
    pub fn known(&self, node: NodeIndex) -> Option<&PeerHealth> {
        self.peers.get(node.at())
    }

    pub(crate) fn peer_mut(&mut self, node: NodeIndex) -> &mut PeerHealth {
        &mut self.peers[node.at()]
    }

    /// Whether a node is asked without need. This one always is.
    #[inline]
    pub(crate) fn usable(&self, node: NodeIndex) -> bool {
        node == self.me || self.peers[node.at()].usable()
    }

    /// Whether a node is asked to read without need: it is usable, and has not said lately that it
    /// is rebuilding.
    #[inline]
    pub(crate) fn answers_reads(&self, node: NodeIndex, now: u64) -> bool {
        self.usable(node) && self.peers[node.at()].refuses_until <= now
    }

    /// A node, perhaps this one, has refused a read because it is rebuilding.
    pub(crate) fn refused_read(&mut self, node: NodeIndex, now: u64) {
        self.peers[node.at()].refuses_until = now + REFUSED_READ_MICROS;
    }

    /// Lower is better: what reads go by.
    #[inline]
    pub(crate) fn order(&self, node: NodeIndex, now: u64) -> (ReadRank, u64) {
        let peer = &self.peers[node.at()];
        let (is_usable, score) = if node == self.me { (true, 0) } else { (peer.usable(), peer.score(now) + 1) };
        let rank = match (is_usable, peer.refuses_until > now) {
            (true, false) => ReadRank::Usable,
            (true, true) => ReadRank::Refuses,
            (false, _) => ReadRank::Unusable,
        };
        (rank, score)
    }

    /// A read begins: a part of a hedge more.
    #[inline]
    pub(crate) fn earn_hedge(&mut self) {
        self.hedge_tokens = (self.hedge_tokens + 1).min(HEDGE_BURST * HEDGE_SHARE);
    }

    /// Takes a hedge from the budget, if there is one.
    pub(crate) fn spend_hedge(&mut self) -> bool {
        let enough = self.hedge_tokens >= HEDGE_SHARE;
        if enough {
            self.hedge_tokens -= HEDGE_SHARE;
        }
        enough
    }

    /// How long this core was asleep before `now`, beyond what is usual.
    pub(crate) fn asleep(&mut self, now: u64) -> u64 {
        let since = now.saturating_sub(std::mem::replace(&mut self.last_tick, now));
        if since > ASLEEP_MICROS { since } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    fn connected() -> PeerHealth {
        let mut peer = PeerHealth::default();
        peer.connected_now(0);
        peer
    }

    #[test]
    fn a_silent_peer_is_open_after_the_silence_and_closed_by_a_prompt_pong_only() {
        let mut peer = connected();
        peer.sent(10 * MS);
        assert_eq!(peer.tick(10 * MS + SILENCE_MICROS, 0), Tick { probe: false, opened: false });
        assert_eq!(peer.tick(11 * MS + SILENCE_MICROS, 0), Tick { probe: true, opened: true });
        assert!(!peer.usable());
        // The pong of a peer that was stopped for a while comes late, and asks for another probe.
        peer.probed(900 * MS, peer.last_probe());
        assert!(!peer.usable());
        assert!(peer.tick(900 * MS, 0).probe);
        peer.probed(901 * MS, peer.last_probe());
        assert!(peer.usable());
    }

    #[test]
    fn a_pong_overtakes_what_waits_for_a_disk() {
        let mut peer = connected();
        peer.sent(0);
        peer.sent(0);
        assert!(peer.tick(1000 * MS, 0).probe);
        peer.probed(1001 * MS, peer.last_probe());
        assert!(peer.usable() && peer.unanswered() == 2);
        peer.replied(1002 * MS, None);
        assert_eq!(peer.unanswered(), 1);
        // What is still missing makes it silent, without a probe.
        assert!(peer.tick(1003 * MS + SILENCE_MICROS, 0).opened);
    }

    /// Found by the simulation: the pong of a probe that was given up came with that of the next,
    /// and its clock seemed late.
    #[test]
    fn a_pong_of_an_earlier_probe_tells_no_round_trip() {
        let mut peer = connected();
        assert!(peer.tick(1000 * MS, 0).probe);
        let first = peer.last_probe();
        assert!(peer.tick(2001 * MS + PROBE_MICROS, 0).probe, "the first was given up");
        let second = peer.last_probe();
        assert_ne!(first, second);
        assert_eq!(peer.probed(2150 * MS, first), None);
        assert!(!peer.usable(), "it is back, or slow");
        assert_eq!(peer.probed(2151 * MS + PROBE_MICROS, second), Some(150 * MS));
    }

    #[test]
    fn a_replica_that_refuses_reads_is_asked_last_for_a_while_and_stays_well() {
        let mut health = Health::new(3, NodeIndex(0));
        for node in [1, 2] {
            health.peer_mut(NodeIndex(node)).connected_now(0);
        }
        for node in [0, 1] {
            health.refused_read(NodeIndex(node), MS);
            assert!(health.usable(NodeIndex(node)) && !health.answers_reads(NodeIndex(node), 2 * MS));
            assert!(health.order(NodeIndex(2), 2 * MS) < health.order(NodeIndex(node), 2 * MS));
            assert!(health.answers_reads(NodeIndex(node), MS + REFUSED_READ_MICROS));
        }
        // One that is down is no better, and one that was started again may be whole.
        health.peer_mut(NodeIndex(2)).lost();
        assert!(health.order(NodeIndex(1), 2 * MS) < health.order(NodeIndex(2), 2 * MS));
        health.peer_mut(NodeIndex(1)).connected_now(3 * MS);
        assert!(health.answers_reads(NodeIndex(1), 3 * MS));
    }

    #[test]
    fn a_peer_that_answers_something_is_not_silent() {
        let mut peer = connected();
        for step in 1..100 {
            peer.sent(step * 50 * MS);
            peer.sent(step * 50 * MS);
            peer.replied(step * 50 * MS + 1, None);
            assert!(!peer.tick(step * 50 * MS + 40 * MS, 0).opened);
        }
    }

    #[test]
    fn a_core_that_slept_blames_nobody() {
        let mut health = Health::new(2, NodeIndex(0));
        health.asleep(0);
        health.peer_mut(NodeIndex(1)).connected_now(0);
        health.peer_mut(NodeIndex(1)).sent(MS);
        let asleep = health.asleep(500 * MS);
        assert!(!health.peer_mut(NodeIndex(1)).tick(500 * MS, asleep).opened);
        let asleep = health.asleep(510 * MS);
        assert_eq!(asleep, 0);
        for at in (510..800).step_by(10) {
            let asleep = health.asleep(at * MS);
            let opened = health.peer_mut(NodeIndex(1)).tick(at * MS, asleep).opened;
            assert_eq!(opened, at == 630, "at {at} ms");
        }
    }

    #[test]
    fn an_idle_peer_is_pinged_and_found_silent() {
        let mut peer = connected();
        assert!(!peer.tick(999 * MS, 0).probe);
        assert!(peer.tick(1000 * MS, 0).probe);
        assert!(peer.tick(1000 * MS + SILENCE_MICROS + 1, 0).opened);
    }

    #[test]
    fn the_percentile_is_found() {
        let mut peer = connected();
        for i in 0..200_000_u64 {
            // 0..10 ms, evenly, in a scrambled order.
            peer.measured(i.wrapping_mul(7919) % 10_000);
        }
        assert!((8_500..10_000).contains(&peer.p95_micros()), "{}", peer.p95_micros());
    }

    #[test]
    fn hedges_are_a_share_of_the_reads() {
        let mut health = Health::new(2, NodeIndex(0));
        while health.spend_hedge() {}
        let mut hedges = 0;
        for _ in 0..10_000 {
            health.earn_hedge();
            hedges += u32::from(health.spend_hedge());
        }
        assert_eq!(hedges, 10_000 / HEDGE_SHARE);
        (0..1_000_000).for_each(|_| health.earn_hedge());
        assert_eq!((0..1_000).filter(|_| health.spend_hedge()).count(), HEDGE_BURST as usize);
    }
}

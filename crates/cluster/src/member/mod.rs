//! One core's part in a cluster, as a machine without I/O: everything that a member of a cluster
//! decides.
//!
//! ```text
//!   clients ──write, read──▶ ┌──────────────────────┐ ──execute─▶ this node's own replica
//!   peers ──reply, pong────▶ │ Member               │ ──send, ping─▶ peers
//!   links ──connected, lost▶ │  coordinator, clock, │ ──answer─▶ clients
//!   timer ──tick───────────▶ │  plausibility, room  │ ──hint─▶ what a peer missed
//!                            └──────────────────────┘ ──persist_clock─▶ the clock's bound
//! ```
//!
//! The program drives it with sockets and a store (`src/member/driver.rs`), the simulator with a
//! virtual network and one seed (`tests/simulation.rs`): the same loop in both, which carries out
//! what the coordinator wants and what comes of that, until nothing is left to do.
//!
//! Owner: one core. Bounds: those of the [`Coordinator`], and of the [`ValueRoom`]. A host must not
//! call the member it serves.
//!
//! Invariants:
//! 1. Every version that this node gives out is above all that it has seen: in replies, in what it
//!    served, in pings.
//! 2. What a peer says is checked before anything is made of it ([`plausibility`]).
//! 3. Whatever an event leads to is done when [`Member::carry_out`] returns.

mod room;

use std::sync::Arc;

use bytes::Bytes;
use koltso_model::{Found, Key, KeyHash, Operation, Outcome, Quorum, Record, Refused, Version, WallTime, Want};

pub use self::room::{SMALL_MAX, ValueRoom};
use crate::Now;
use crate::clock::{BeyondBound, HybridClock};
use crate::coordinator::{Action, Answer, Coordinator, Full, RequestId, Settings, Token};
use crate::placement::{NodeIndex, Topology};
use crate::plausibility;
use crate::skew::ClockSkew;

/// A request was not queued: too much waits for the peer, or there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

/// What a node says of its clocks in a ping or pong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// The wall clock, in milliseconds since the Unix epoch.
    pub wall_ms: u64,
    /// The hybrid logical clock.
    pub clock: u64,
}

/// What a member needs done. The calls come from within the member's own methods, so a host must
/// not call it back.
pub trait Host {
    /// Does an operation on this node's own replica. `None`: its outcome comes later, through
    /// [`Member::executed`].
    fn execute(&mut self, now: Now, id: RequestId, operation: &Operation<Bytes>) -> Option<Outcome<Bytes>>;

    /// Sends a request; its reply comes back through [`Member::replied`] with the same `id`.
    ///
    /// # Errors
    /// [`QueueFull`]: it was not sent, and will not be.
    fn send(&mut self, to: NodeIndex, id: RequestId, operation: &Operation<Bytes>) -> Result<(), QueueFull>;

    /// Sends a ping, if that can be done: a queue that is full says as much as a missing answer.
    /// Its pong comes back through [`Member::ponged`] with the same `id`.
    fn ping(&mut self, to: NodeIndex, id: RequestId, clocks: Clocks);

    /// Answers a client.
    fn answer(&mut self, token: Token, answer: Answer);

    /// Keeps a record for a peer that missed it.
    fn hint(&mut self, to: NodeIndex, record: Record<Bytes>);

    /// Persists a bound of the clock that covers `needed`, and raises the clock's bound to it.
    fn persist_clock(&mut self, needed: u64);
}

/// What a node does with what it sees of its peers' clocks, on whichever thread it sees it.
#[derive(Clone, Debug)]
pub struct Observer(Arc<HybridClock>);

impl Observer {
    /// Of the process's clock.
    #[must_use]
    pub const fn new(clock: Arc<HybridClock>) -> Self {
        Self(clock)
    }

    /// A peer asks for a write. `Ok`: it is to be done, and its outcome is the answer. (Reads tell
    /// nothing new.)
    ///
    /// # Errors
    /// The answer, where it is not to be done.
    #[inline]
    pub fn admit<B>(&self, now: WallTime, record: &Record<B>) -> Result<(), Refused> {
        let clock = record.version.clock;
        if clock == 0 || !plausibility::is_plausible(clock, now) {
            return Err(Refused::Failed);
        }
        self.0.observe(clock);
        Ok(())
    }

    /// A peer's clock, from a ping or a pong. Returns this node's, to answer a ping with.
    #[inline]
    pub fn exchanged(&self, now: WallTime, clock: u64) -> Clocks {
        if plausibility::is_plausible(clock, now) {
            self.0.observe(clock);
        }
        Clocks { wall_ms: now.ms(), clock: self.0.last() }
    }
}

/// The machine; see the module.
#[derive(Debug)]
pub struct Member {
    topology: Arc<Topology>,
    coordinator: Coordinator,
    clock: Arc<HybridClock>,
    observer: Observer,
    /// This node's number in versions.
    number: u16,
    room: ValueRoom,
    /// What events have led to, until it is carried out.
    gathered: Vec<Action>,
    /// Room for what comes of that.
    spare: Vec<Action>,
}

impl Member {
    /// A member whose peers are all down.
    #[must_use]
    pub fn new(topology: Arc<Topology>, settings: Settings, clock: Arc<HybridClock>) -> Self {
        let number = topology.number(topology.me());
        Self {
            coordinator: Coordinator::new(topology.clone(), settings),
            topology,
            observer: Observer::new(clock.clone()),
            clock,
            number,
            room: ValueRoom::new(settings.in_flight_bytes_max),
            gathered: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// What is known of the peers, and what was counted.
    #[must_use]
    pub const fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    /// Whether this node is one of the first `from` for a key whose partition does not move, and so can do
    /// something about it alone.
    #[must_use]
    #[inline]
    pub fn is_replica(&self, key: KeyHash, from: u8) -> bool {
        self.topology.is_own(key, from)
    }

    /// The members have changed, or what they hold. From now on nothing begins by an earlier membership.
    pub fn adopt(&mut self, now: Now, topology: Arc<Topology>, host: &mut impl Host) {
        self.topology = topology.clone();
        self.coordinator.adopt(now, topology, &mut self.gathered);
        self.carry_out(now, host);
    }

    // ---- clients ----

    /// Writes a record to `from` replicas and answers after `ack`. Its version is given here.
    ///
    /// # Errors
    /// [`Full`]; nothing was sent then.
    pub fn write(
        &mut self,
        now: Now,
        token: Token,
        mut record: Record<Bytes>,
        quorum: Quorum,
        host: &mut impl Host,
    ) -> Result<(), Full> {
        record.version = self.next_version(now, host);
        let begun = self.coordinator.write(now, token, record, quorum, &mut self.gathered);
        self.carry_out(now, host);
        begun
    }

    /// Reads a key from `ack` of `from` replicas.
    ///
    /// # Errors
    /// [`Full`]; nothing was sent then.
    pub fn read(
        &mut self,
        now: Now,
        token: Token,
        key: Key<Bytes>,
        want: Want,
        quorum: Quorum,
        host: &mut impl Host,
    ) -> Result<(), Full> {
        let begun = self.coordinator.read(now, token, key, want, quorum, &mut self.gathered);
        self.carry_out(now, host);
        begun
    }

    fn next_version(&self, now: Now, host: &mut impl Host) -> Version {
        loop {
            match self.clock.next(now.wall) {
                Ok(clock) => return Version::new(clock, self.number),
                Err(BeyondBound(needed)) => host.persist_clock(needed),
            }
        }
    }

    // ---- replies ----

    /// A peer's reply. What comes of it is done by the next [`Member::carry_out`], so that a batch
    /// of replies is one. A large value that lies in a `buffer` of its own is not copied.
    ///
    /// # Errors
    /// A sentence, if the peer is not to be believed any more: its connection is to be closed.
    pub fn replied(
        &mut self,
        now: Now,
        from: NodeIndex,
        id: RequestId,
        key_hash: KeyHash,
        outcome: Outcome<&[u8]>,
        buffer: Option<&Bytes>,
    ) -> Result<(), String> {
        // What is not in flight any more was asked about some key; nobody knows which.
        let asked = self.coordinator.key_hash(id).unwrap_or(key_hash);
        plausibility::check(asked, key_hash, &outcome, now.wall)?;
        if let Some(version) = outcome.version() {
            self.clock.observe(version.clock);
        }
        let outcome = self.hold(outcome, buffer);
        self.coordinator.replied(now, from, id, outcome, &mut self.gathered);
        Ok(())
    }

    /// The same outcome with bytes of its own, or "busy" where there is no room for its value.
    fn hold(&self, outcome: Outcome<&[u8]>, buffer: Option<&Bytes>) -> Outcome<Bytes> {
        let Outcome::Found(Found { version, expires_at_ms, flags, attributes, value_len, value }) = outcome else {
            return outcome.owned();
        };
        let value = match value.map(|value| self.room.hold(value, buffer)) {
            Some(None) => return Outcome::Refused(Refused::Busy),
            Some(value) => value,
            None => None,
        };
        let attributes = if attributes.is_empty() { Bytes::new() } else { Bytes::copy_from_slice(attributes) };
        Outcome::Found(Found { version, expires_at_ms, flags, attributes, value_len, value })
    }

    /// The outcome of an operation that [`Host::execute`] did not have at once.
    pub fn executed(&mut self, now: Now, id: RequestId, outcome: Outcome<Bytes>, host: &mut impl Host) {
        self.replied_myself(now, id, outcome);
        self.carry_out(now, host);
    }

    fn replied_myself(&mut self, now: Now, id: RequestId, outcome: Outcome<Bytes>) {
        if let Some(version) = outcome.version() {
            self.clock.observe(version.clock);
        }
        self.coordinator.replied(now, self.topology.me(), id, outcome, &mut self.gathered);
    }

    /// A peer's pong. Returns what the round trip says of its wall clock, if the ping was still
    /// awaited.
    pub fn ponged(&mut self, now: Now, from: NodeIndex, id: RequestId, clocks: Clocks) -> Option<ClockSkew> {
        self.observer.exchanged(now.wall, clocks.clock);
        let round_trip = self.coordinator.probed(now, from, id)?;
        Some(ClockSkew::measured(clocks.wall_ms, now.wall.ms(), round_trip))
    }

    // ---- peers and time ----

    /// There is a connection to a peer.
    pub fn connected(&mut self, now: Now, peer: NodeIndex) {
        self.coordinator.connected(now, peer);
    }

    /// Something came from a peer, or was taken by it.
    pub fn heard(&mut self, now: Now, peer: NodeIndex) {
        self.coordinator.heard(now, peer);
    }

    /// A connection to a peer, or an attempt to get one, has ended, and with it all that was asked
    /// over it.
    pub fn lost(&mut self, now: Now, peer: NodeIndex, host: &mut impl Host) {
        self.coordinator.lost(now, peer, &mut self.gathered);
        self.carry_out(now, host);
    }

    /// Deadlines, hedges, silence, probes. To be called every few milliseconds.
    pub fn tick(&mut self, now: Now, host: &mut impl Host) {
        self.coordinator.tick(now, &mut self.gathered);
        self.carry_out(now, host);
    }

    /// Ends all operations as their deadlines would, for a node that stops: what was written gets
    /// its hints.
    pub fn finish(&mut self, now: Now, host: &mut impl Host) {
        self.coordinator.finish(&mut self.gathered);
        self.carry_out(now, host);
    }

    /// Does what the coordinator wants, and what comes of that.
    pub fn carry_out(&mut self, now: Now, host: &mut impl Host) {
        while !self.gathered.is_empty() {
            // Both keep what they have allocated.
            let mut actions = std::mem::replace(&mut self.gathered, std::mem::take(&mut self.spare));
            for action in actions.drain(..) {
                match action {
                    Action::Send { to, id, operation } if to == self.topology.me() => {
                        if let Some(outcome) = host.execute(now, id, &operation) {
                            self.replied_myself(now, id, outcome);
                        }
                    }
                    Action::Send { to, id, operation } => {
                        if host.send(to, id, &operation).is_err() {
                            self.coordinator.failed(now, to, id, &mut self.gathered);
                        }
                    }
                    Action::Probe { to, id } => {
                        host.ping(to, id, Clocks { wall_ms: now.wall.ms(), clock: self.clock.last() });
                    }
                    Action::Renew { id, above } => {
                        self.clock.observe(above.clock);
                        let version = self.next_version(now, host);
                        self.coordinator.renew(now, id, version, &mut self.gathered);
                    }
                    Action::Answer { token, answer } => host.answer(token, answer),
                    Action::Hint { to, record } => host.hint(to, record),
                }
            }
            self.spare = actions;
        }
    }
}

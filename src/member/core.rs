//! One core's part in the cluster: its coordinator, its links to the peers, and the clients that wait for answers.
//!
//! The coordinator decides; this carries out: messages to links, local work to the engine, answers to clients, hints to
//! their keeper. Actions that come of actions are carried out in turn, until there are none.
//!
//! Owner: one core, behind an `Rc`. Bounds: operations (`--max-in-flight`), a link's queue, one client an operation, and
//! `--max-in-flight-bytes` of large values from peers, from their arrival until the last client has taken them.
//! Invariants:
//! 1. No `RefCell` is borrowed across an `await`, nor while a link or the engine is called.
//! 2. A client's place is given back when its future is gone, answered or not; a late answer finds nobody and is dropped.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use koltso_cluster::Now;
use koltso_cluster::coordinator::{Action, Answer, Coordinator, Full, RequestId, Settings, Token};
use koltso_cluster::placement::NodeIndex;
use koltso_model::{Key, KeyHash, Operation, Outcome, Quorum, Record, Refused, VALUE_MAX_LIMIT, Version, Want};
use koltso_net::replica::frame::ReplyFrame;
use koltso_net::replica::{self as wire, Link, LinkConfig, LinkHandler, LostReason};
use monoio::task::JoinHandle;

use super::{Cluster, SKEW_MAX_MS, believe, replica};
use crate::member::clock::{now_ms, now_wall};
use crate::node::Node;
use crate::node::replica::{Contents, Executed, Replica};
use crate::node::stalls::Turn;

/// Between ticks while something is in flight.
const TICK_BUSY: Duration = Duration::from_millis(2);
/// Between ticks otherwise.
const TICK_IDLE: Duration = Duration::from_millis(20);
/// How long a node that stops waits for replicas: its clients have their answers by then, and its drain is bounded.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// How long it then answers what peers had asked.
const SERVE_MAX: Duration = Duration::from_secs(1);
/// How often figures are published.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);
/// Values beyond this are not copied into a link's queue.
const COPY_MAX: usize = 16 << 10;
/// The request number of pings; no operation has it, since generations begin at 0 and places end before.
const PING: u64 = u64::MAX;

/// See above.
pub struct Core {
    node: Arc<Node>,
    cluster: Arc<Cluster>,
    core: usize,
    replica: Rc<Replica>,
    /// Unless nobody looks for stalls.
    turn: Option<Rc<Turn>>,
    coordinator: RefCell<Coordinator>,
    /// By node; none to this one, and none at all once the core is closed.
    links: RefCell<Vec<Option<Rc<Link<Self>>>>>,
    clients: RefCell<Clients>,
    /// What a batch of replies has led to, until the batch ends.
    gathered: RefCell<Vec<Action>>,
    /// Room for what comes of that.
    spare: RefCell<Vec<Action>>,
    origin: Instant,
    /// Bytes of large values that came from peers and are not sent yet.
    held: Arc<AtomicUsize>,
    closed: Cell<bool>,
    /// What this core does for peers.
    serving: Cell<Option<JoinHandle<()>>>,
    this: Weak<Self>,
}

/// The places of clients that wait. A token is a place and its generation.
#[derive(Default)]
struct Clients {
    places: Vec<Client>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Client {
    generation: u32,
    state: Waiting,
}

#[derive(Default)]
enum Waiting {
    #[default]
    Nobody,
    Started,
    Parked(Waker),
    Answered(Answer),
}

impl Clients {
    fn enter(&mut self) -> Token {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(Client::default());
            self.places.len() as u32 - 1
        });
        let client = &mut self.places[place as usize];
        client.state = Waiting::Started;
        u64::from(client.generation) << 32 | u64::from(place)
    }

    fn client(&mut self, token: Token) -> Option<&mut Client> {
        let client = self.places.get_mut(token as u32 as usize)?;
        (client.generation == (token >> 32) as u32).then_some(client)
    }

    fn leave(&mut self, token: Token) -> Waiting {
        let Some(client) = self.client(token) else {
            return Waiting::Nobody;
        };
        client.generation = client.generation.wrapping_add(1);
        let state = std::mem::take(&mut client.state);
        self.free.push(token as u32);
        state
    }
}

/// An operation that was given to the coordinator.
pub enum Submitted {
    /// It is answered already.
    Answered(Answer),
    /// It will be.
    Waits(Ticket),
}

/// A client's place in the queue: a future of its answer.
pub struct Ticket {
    core: Weak<Core>,
    token: Token,
}

impl Future for Ticket {
    type Output = Answer;

    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Answer> {
        // Without a core, or when it was answered before, nobody polls again.
        let Some(core) = self.core.upgrade() else {
            return Poll::Pending;
        };
        let mut clients = core.clients.borrow_mut();
        let Some(client) = clients.client(self.token) else {
            return Poll::Pending;
        };
        match std::mem::take(&mut client.state) {
            Waiting::Answered(answer) => Poll::Ready(answer),
            _ => {
                client.state = Waiting::Parked(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            core.clients.borrow_mut().leave(self.token);
        }
    }
}

/// A large value from a peer, counted as long as it is held.
struct Held {
    value: Box<[u8]>,
    held: Arc<AtomicUsize>,
}

impl Held {
    fn bytes(value: &[u8], held: &Arc<AtomicUsize>) -> Bytes {
        // The smaller ones are bounded by the number of operations and of connections.
        if value.len() <= COPY_MAX {
            return Bytes::copy_from_slice(value);
        }
        held.fetch_add(value.len(), Ordering::Relaxed);
        Bytes::from_owner(Self { value: value.into(), held: held.clone() })
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.value
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.held.fetch_sub(self.value.len(), Ordering::Relaxed);
    }
}

impl Core {
    /// Joins the cluster with one core: links to all peers, and the listener for theirs. On the core's runtime.
    ///
    /// # Errors
    /// If the listener cannot listen.
    pub fn start(
        node: &Arc<Node>,
        cluster: &Arc<Cluster>,
        core: usize,
        replica: Rc<Replica>,
        turn: Option<Rc<Turn>>,
    ) -> std::io::Result<Rc<Self>> {
        let config = &node.config;
        let settings = Settings {
            deadline_micros: cluster.config.replica_timeout.as_micros() as u64,
            in_flight_max: config.max_in_flight,
            in_flight_bytes_max: config.max_in_flight_bytes,
        };
        let number = cluster.number();
        let clock_of = node.clone();
        let next_version = Box::new(move |above, wall| {
            clock_of.clock.observe(above);
            Version::new(clock_of.clock.next(wall), number)
        });
        let this = Rc::new_cyclic(|this| Self {
            node: node.clone(),
            cluster: cluster.clone(),
            core,
            replica,
            turn,
            coordinator: RefCell::new(Coordinator::new(cluster.topology.clone(), settings, next_version)),
            links: RefCell::new(Vec::new()),
            clients: RefCell::default(),
            gathered: RefCell::default(),
            spare: RefCell::default(),
            origin: Instant::now(),
            held: Arc::default(),
            closed: Cell::new(false),
            serving: Cell::new(None),
            this: this.clone(),
        });
        let identity = Rc::new(cluster.identity());
        for (at, member) in cluster.config.nodes.iter().enumerate() {
            let peer = NodeIndex(at as u8);
            if peer == cluster.topology.me() {
                this.links.borrow_mut().push(None);
                continue;
            }
            let link_config = LinkConfig {
                peer: at,
                address: member.replica,
                peer_number: cluster.topology.number(peer),
                identity: identity.clone(),
                value_max: VALUE_MAX_LIMIT,
                wall_ms: now_ms,
                skew_max: Duration::from_millis(SKEW_MAX_MS),
            };
            let link = Link::new(link_config, this.clone());
            monoio::spawn(link.clone().run());
            this.links.borrow_mut().push(Some(link));
        }
        monoio::spawn(this.clone().tick());
        if let Some(listener) = cluster.listen(core)? {
            let served = (cluster.clone(), this.replica.clone(), this.turn.clone());
            let serving = replica::serve(node.clone(), served, core, listener, identity);
            this.serving.set(Some(monoio::spawn(serving)));
        }
        Ok(this)
    }

    fn now(&self) -> Now {
        self.at(Instant::now())
    }

    fn at(&self, instant: Instant) -> Now {
        Now { micros: instant.saturating_duration_since(self.origin).as_micros() as u64, wall: now_wall() }
    }

    /// Whether this node is one of the first `from` for a key, and so can do something about it alone.
    #[inline]
    pub fn is_replica(&self, key: KeyHash, from: u8) -> bool {
        let topology = &self.cluster.topology;
        topology.ranked(key)[..usize::from(from)].contains(&topology.me())
    }

    /// Writes a record to `from` replicas.
    ///
    /// # Errors
    /// [`Full`] if too much is in flight.
    pub fn write(&self, record: Record<Bytes>, quorum: Quorum) -> Result<Submitted, Full> {
        self.submit(|coordinator, now, token, actions| coordinator.write(now, token, record, quorum, actions))
    }

    /// Reads a key from `ack` of `from` replicas.
    ///
    /// # Errors
    /// [`Full`] if too much is in flight.
    pub fn read(&self, key: Key<Bytes>, want: Want, quorum: Quorum) -> Result<Submitted, Full> {
        self.submit(|coordinator, now, token, actions| coordinator.read(now, token, key, want, quorum, actions))
    }

    fn submit(
        &self,
        begin: impl FnOnce(&mut Coordinator, Now, Token, &mut Vec<Action>) -> Result<(), Full>,
    ) -> Result<Submitted, Full> {
        let now = self.now();
        let token = self.clients.borrow_mut().enter();
        let mut actions = self.gathered.take();
        let begun = begin(&mut self.coordinator.borrow_mut(), now, token, &mut actions);
        self.carry_out(now, actions);
        if begun.is_err() {
            self.clients.borrow_mut().leave(token);
            return Err(Full);
        }
        let mut clients = self.clients.borrow_mut();
        if let Some(Client { state: Waiting::Answered(_), .. }) = clients.client(token)
            && let Waiting::Answered(answer) = clients.leave(token)
        {
            return Ok(Submitted::Answered(answer));
        }
        drop(clients);
        Ok(Submitted::Waits(Ticket { core: self.this.clone(), token }))
    }

    /// Does what the coordinator wants, and what comes of that.
    fn carry_out(&self, now: Now, mut actions: Vec<Action>) {
        let mut more = self.spare.take();
        while !actions.is_empty() {
            for action in actions.drain(..) {
                match action {
                    Action::Send { to, id, operation } if to == self.cluster.topology.me() => {
                        self.serve_myself(now, id, &operation, &mut more);
                    }
                    Action::Send { to, id, operation } => {
                        if !self.send(to, id, &operation) {
                            self.coordinator.borrow_mut().failed(now, to, id, &mut more);
                        }
                    }
                    Action::Probe { to } => {
                        let ping = wire::Request::Ping { wall_ms: now.wall.ms(), clock: self.node.clock.last() };
                        if let Some(Some(link)) = self.links.borrow().get(to.at()) {
                            // A queue that is full says as much as a missing answer.
                            let _ = link.request(PING, &ping);
                        }
                    }
                    Action::Answer { token, answer } => self.answer(token, answer),
                    Action::Hint { to, record } => {
                        if let Some(hints) = self.cluster.hints() {
                            hints.keep(to.at(), record);
                        }
                    }
                }
            }
            std::mem::swap(&mut actions, &mut more);
        }
        // Both are empty: the next ones need not be allocated.
        self.spare.replace(more);
        let mut kept = self.gathered.borrow_mut();
        if kept.capacity() == 0 {
            *kept = actions;
        }
    }

    fn answer(&self, token: Token, answer: Answer) {
        let mut clients = self.clients.borrow_mut();
        if let Some(client) = clients.client(token)
            && let Waiting::Parked(waker) = std::mem::replace(&mut client.state, Waiting::Answered(answer))
        {
            drop(clients);
            waker.wake();
        }
    }

    /// Whether a value from a peer may be held. A single one always may.
    fn has_room(&self, len: usize) -> bool {
        let held = self.held.load(Ordering::Relaxed);
        len <= COPY_MAX || held == 0 || held.saturating_add(len) <= self.node.config.max_in_flight_bytes
    }

    /// `false` if it cannot be sent.
    fn send(&self, to: NodeIndex, id: RequestId, operation: &Operation<Bytes>) -> bool {
        let links = self.links.borrow();
        let Some(Some(link)) = links.get(to.at()) else {
            return false;
        };
        link.execute(id.0, operation).is_ok()
    }

    /// This node is a replica, too.
    fn serve_myself(&self, now: Now, id: RequestId, operation: &Operation<Bytes>, more: &mut Vec<Action>) {
        let kept = |outcome: Outcome<Contents<'_>>| outcome.map(Contents::into_bytes);
        match self.replica.execute(&operation.borrowed(), now.wall.ms(), kept) {
            Executed::Now(outcome) => {
                let me = self.cluster.topology.me();
                self.coordinator.borrow_mut().replied(now, me, id, outcome, more);
            }
            Executed::Later(later) => {
                let this = self.this.clone();
                monoio::spawn(async move {
                    let outcome = later.await;
                    if let Some(core) = this.upgrade() {
                        core.replied_myself(id, outcome);
                    }
                });
            }
        }
    }

    fn replied_myself(&self, id: RequestId, outcome: Outcome<Bytes>) {
        let (now, me) = (self.now(), self.cluster.topology.me());
        let mut actions = self.gathered.take();
        self.coordinator.borrow_mut().replied(now, me, id, outcome, &mut actions);
        self.carry_out(now, actions);
    }

    /// A peer has answered a probe.
    fn pong(&self, peer: NodeIndex, now: Now, wall_ms: u64, clock: u64) -> Result<(), String> {
        if believe::credible(clock, now.wall.ms()) {
            self.node.clock.observe(clock);
        }
        let round_trip = self.coordinator.borrow_mut().probed(now, peer);
        match round_trip {
            Some(micros) => self.cluster.peers.clock_seen(peer, wall_ms, now.wall.ms(), micros),
            None => Ok(()),
        }
    }

    /// Deadlines, hedges, probes and figures, until the core is closed.
    async fn tick(self: Rc<Self>) {
        let mut published = Instant::now();
        let mut arrivals = vec![0; self.links.borrow().len()];
        while !self.closed.get() {
            let busy = self.coordinator.borrow().in_flight() > 0;
            monoio::time::sleep(if busy { TICK_BUSY } else { TICK_IDLE }).await;
            let instant = Instant::now();
            if let Some(turn) = &self.turn {
                turn.begin_quietly(instant);
            }
            let now = self.at(instant);
            let mut actions = self.gathered.take();
            self.coordinator.borrow_mut().tick(now, &mut actions);
            if let Some(turn) = self.turn.as_ref().filter(|_| busy) {
                turn.busy();
            }
            self.carry_out(now, actions);
            for link in self.links.borrow().iter().flatten() {
                link.release();
            }
            for node in self.cluster.peers.nodes() {
                let seen = self.cluster.peers.arrivals(node);
                if std::mem::replace(&mut arrivals[node.at()], seen) != seen
                    && let Some(Some(link)) = self.links.borrow().get(node.at())
                {
                    link.dial_now();
                }
            }
            if instant.duration_since(published) >= PUBLISH_EVERY {
                published = instant;
                let coordinator = self.coordinator.borrow();
                self.cluster.peers.publish(self.core, &coordinator);
            }
        }
    }

    /// Waits for the last replicas of what is in flight, sees that those that miss something get their hints, and ends.
    pub async fn close(&self) {
        let patience = CLOSE_MAX.min(self.cluster.config.replica_timeout + Duration::from_millis(100));
        let begun = Instant::now();
        while self.coordinator.borrow().in_flight() > 0 && begun.elapsed() < patience {
            monoio::time::sleep(TICK_BUSY).await;
        }
        self.closed.set(true);
        let mut actions = self.gathered.take();
        self.coordinator.borrow_mut().finish(&mut actions);
        self.carry_out(self.now(), actions);
        self.cluster.shared.drain();
        for link in self.links.take().into_iter().flatten() {
            link.close();
        }
        // What peers have asked already is still answered, while there is a log to write to.
        if let Some(serving) = self.serving.take() {
            let _ = monoio::time::timeout(SERVE_MAX, serving).await;
        }
    }
}

/// What a link tells its core.
impl LinkHandler for Core {
    #[inline]
    fn resumed(&self, now: Instant) {
        if let Some(turn) = &self.turn {
            turn.begin_quietly(now);
        }
    }

    fn connected(&self, peer: usize, now: Instant) {
        self.coordinator.borrow_mut().connected(self.at(now), NodeIndex(peer as u8));
        self.cluster.peers.connected(NodeIndex(peer as u8), self.core);
        let link = self.links.borrow().get(peer).and_then(Clone::clone);
        if let Some(skew) = link.and_then(|link| link.skew()) {
            self.cluster.peers.skew_seen(NodeIndex(peer as u8), skew.offset_ms, skew.error_ms);
        }
    }

    fn reply(&self, peer: usize, now: Instant, frame: ReplyFrame<'_>) -> Result<(), String> {
        let (node, now) = (NodeIndex(peer as u8), self.at(now));
        let outcome = match frame.reply {
            wire::Reply::Outcome(outcome) => outcome,
            wire::Reply::Pong { wall_ms, clock } => return self.pong(node, now, wall_ms, clock),
        };
        if let Some(turn) = &self.turn {
            turn.busy();
        }
        let id = RequestId(frame.number);
        let mut coordinator = self.coordinator.borrow_mut();
        // (What is not in flight any more was asked about some key; nobody knows which.)
        let asked = coordinator.key_hash(id).unwrap_or(frame.key_hash);
        believe::outcome(asked, frame.key_hash, &outcome, now.wall.ms())?;
        if let Outcome::Superseded(newer) = &outcome {
            self.node.clock.observe(newer.clock);
        }
        let outcome = match &outcome {
            Outcome::Found(found) if found.value.is_some_and(|value| !self.has_room(value.len())) => {
                Outcome::Refused(Refused::Busy)
            }
            _ => outcome.map(|bytes| Held::bytes(bytes, &self.held)),
        };
        coordinator.replied(now, node, id, outcome, &mut self.gathered.borrow_mut());
        Ok(())
    }

    fn batch_end(&self, _peer: usize, now: Instant) {
        let actions = self.gathered.take();
        self.carry_out(self.at(now), actions);
    }

    fn progress(&self, peer: usize, now: Instant) {
        self.coordinator.borrow_mut().heard(self.at(now), NodeIndex(peer as u8));
    }

    fn lost(&self, peer: usize, why: &LostReason) {
        let (now, node) = (self.now(), NodeIndex(peer as u8));
        let mut actions = self.gathered.take();
        self.coordinator.borrow_mut().lost(now, node, &mut actions);
        let absent = matches!(why, LostReason::ConnectRefused);
        self.cluster.peers.lost(node, self.core, &why.to_string(), absent);
        self.carry_out(now, actions);
    }
}

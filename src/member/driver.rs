//! One core's part in the cluster: drives a [`Member`] with links to the peers, this core's
//! replica, a timer, and the clients that wait for answers.
//!
//! The member decides; this carries out, as its [`Host`]: requests to links, local work to the
//! replica, answers to clients, hints to their keeper, the clock's bound to its file.
//!
//! Owner: one core, behind an `Rc`. Bounds: those of the member (`--max-in-flight`,
//! `--max-in-flight-bytes`), a link's queue, one client an operation. Invariants:
//! 1. No `RefCell` is borrowed across an `await`. While the member is borrowed, nothing that a
//!    link, the replica or a waker does calls back.
//! 2. A client's place is given back when its future is gone, answered or not; a late answer finds
//!    nobody and is dropped.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use koltso_cluster::Now;
use koltso_cluster::coordinator::{Answer, Full, RequestId, Settings, Token};
use koltso_cluster::member::{Clocks, Host, Member, Observer, QueueFull};
use koltso_cluster::placement::NodeIndex;
use koltso_cluster::skew::{ClockSkew, SKEW_MAX_MS};
use koltso_model::{Key, KeyHash, Operation, Outcome, Quorum, Record, VALUE_MAX_LIMIT, WallTime, Want};
use koltso_net::replica::frame::ReplyFrame;
use koltso_net::replica::{self as wire, Link, LinkConfig, LinkHandler, LostReason, PeerIdentity};
use monoio::task::JoinHandle;

use super::{Cluster, replica};
use crate::replica::clock::{self, Clock, now_wall, told_ms};
use crate::replica::{Contents, Executed, Replica};
use crate::settings::Config;
use crate::stalls::Turn;

/// Between ticks while something is in flight.
const TICK_BUSY: Duration = Duration::from_millis(2);
/// Between ticks otherwise.
const TICK_IDLE: Duration = Duration::from_millis(20);
/// How long a node that stops waits for replicas: its clients have their answers by then, and its
/// drain is bounded.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// How long it then answers what peers had asked.
const SERVE_MAX: Duration = Duration::from_secs(1);
/// How often figures are published.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);

/// See the module.
pub struct MemberDriver {
    clock: Arc<Clock>,
    cluster: Arc<Cluster>,
    core: usize,
    replica: Rc<Replica>,
    /// Unless nobody looks for stalls.
    turn: Option<Rc<Turn>>,
    member: RefCell<Member>,
    /// By node; none to this one, and none at all once the core is closed.
    links: RefCell<Vec<Option<Rc<Link<Self>>>>>,
    clients: RefCell<Clients>,
    origin: Instant,
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

/// An operation that was given to the member.
pub enum Submitted {
    /// It is answered already.
    Answered(Answer),
    /// It will be.
    Waits(Ticket),
}

/// A client's place in the queue: a future of its answer.
pub struct Ticket {
    driver: Weak<MemberDriver>,
    token: Token,
}

impl Future for Ticket {
    type Output = Answer;

    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Answer> {
        // Without a driver, or when it was answered before, nobody polls again.
        let Some(driver) = self.driver.upgrade() else {
            return Poll::Pending;
        };
        let mut clients = driver.clients.borrow_mut();
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
        if let Some(driver) = self.driver.upgrade() {
            driver.clients.borrow_mut().leave(self.token);
        }
    }
}

/// Where a member's wishes are carried out.
struct CoreHost<'a>(&'a MemberDriver);

impl Host for CoreHost<'_> {
    fn execute(&mut self, now: Now, id: RequestId, operation: &Operation<Bytes>) -> Option<Outcome<Bytes>> {
        let kept = |outcome: Outcome<Contents<'_>>| outcome.map(Contents::into_bytes);
        match self.0.replica.execute(&operation.borrowed(), now.wall.ms(), kept) {
            Executed::Now(outcome) => Some(outcome),
            Executed::Later(later) => {
                let driver = self.0.this.clone();
                monoio::spawn(async move {
                    let outcome = later.await;
                    if let Some(driver) = driver.upgrade() {
                        driver.drive(|member, now, host| member.executed(now, id, outcome, host));
                    }
                });
                None
            }
        }
    }

    fn send(&mut self, to: NodeIndex, id: RequestId, operation: &Operation<Bytes>) -> Result<(), QueueFull> {
        let links = self.0.links.borrow();
        let Some(Some(link)) = links.get(to.at()) else {
            return Err(QueueFull);
        };
        link.execute(id.0, operation).map_err(|_| QueueFull)
    }

    fn ping(&mut self, to: NodeIndex, id: RequestId, Clocks { clock, .. }: Clocks) {
        if let Some(Some(link)) = self.0.links.borrow().get(to.at()) {
            let _ = link.request(id.0, &wire::Request::Ping { wall_ms: told_ms(), clock });
        }
    }

    fn answer(&mut self, token: Token, answer: Answer) {
        let mut clients = self.0.clients.borrow_mut();
        if let Some(client) = clients.client(token)
            && let Waiting::Parked(waker) = std::mem::replace(&mut client.state, Waiting::Answered(answer))
        {
            drop(clients);
            waker.wake();
        }
    }

    fn hint(&mut self, to: NodeIndex, record: Record<Bytes>) {
        if let Some(hints) = self.0.cluster.hints() {
            hints.keep(to.at(), record);
        }
    }

    fn persist_clock(&mut self, needed: u64) {
        self.0.clock.extend(needed);
    }
}

impl MemberDriver {
    /// Joins the cluster with one core: links to all peers, and the listener for theirs. On the
    /// core's runtime.
    ///
    /// # Errors
    /// If the listener cannot listen.
    pub fn start(
        (config, clock): (&Config, &Arc<Clock>),
        cluster: &Arc<Cluster>,
        core: usize,
        replica: Rc<Replica>,
        turn: Option<Rc<Turn>>,
    ) -> std::io::Result<Rc<Self>> {
        let settings = Settings {
            deadline_micros: cluster.config.replica_timeout.as_micros() as u64,
            in_flight_max: config.max_in_flight,
            in_flight_bytes_max: config.max_in_flight_bytes,
        };
        let member = Member::new(cluster.topology.clone(), settings, clock.hybrid().clone());
        let this = Rc::new_cyclic(|this| Self {
            clock: clock.clone(),
            cluster: cluster.clone(),
            core,
            replica,
            turn,
            member: RefCell::new(member),
            links: RefCell::new(Vec::new()),
            clients: RefCell::default(),
            origin: Instant::now(),
            closed: Cell::new(false),
            serving: Cell::new(None),
            this: this.clone(),
        });
        let identity = Rc::new(cluster.identity());
        for (at, name) in cluster.names.iter().enumerate() {
            let peer = NodeIndex(at as u8);
            if peer == cluster.topology.me() {
                this.links.borrow_mut().push(None);
                continue;
            }
            let link_config = LinkConfig {
                peer: at,
                address: name.clone(),
                peer_number: cluster.topology.number(peer),
                identity: identity.clone(),
                acquaintances: cluster.acquaintances(),
                value_max: VALUE_MAX_LIMIT,
                wall_ms: told_ms,
                skew_max: Duration::from_millis(SKEW_MAX_MS),
            };
            let link = Link::new(link_config, this.clone());
            monoio::spawn(link.clone().run());
            this.links.borrow_mut().push(Some(link));
        }
        monoio::spawn(this.clone().tick());
        if let Some(listener) = cluster.listen(core)? {
            let served = (cluster.clone(), this.replica.clone(), this.turn.clone());
            let observer = Observer::new(clock.hybrid().clone());
            let serving = replica::serve(observer, served, core, listener, identity);
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

    /// Whether this node is one of the first `from` for a key, and so can do something about it
    /// alone.
    #[inline]
    pub fn is_replica(&self, key: KeyHash, from: u8) -> bool {
        self.member.borrow().is_replica(key, from)
    }

    /// A round trip has measured how far a peer's wall clock is off the machine's.
    fn skew_measured(&self, node: NodeIndex, skew: ClockSkew) {
        self.cluster.peers.skew_seen(node, skew.offset_ms, skew.error_ms);
        if skew.agrees() {
            clock::agreed(node.at());
        }
    }

    /// Gives the member an event, and a host to carry out what comes of it.
    #[inline]
    fn drive<R>(&self, event: impl FnOnce(&mut Member, Now, &mut CoreHost<'_>) -> R) -> R {
        let now = self.now();
        event(&mut self.member.borrow_mut(), now, &mut CoreHost(self))
    }

    /// Writes a record to `from` replicas, with a version that the member gives it.
    ///
    /// # Errors
    /// [`Full`] if too much is in flight.
    pub fn write(&self, record: Record<Bytes>, quorum: Quorum) -> Result<Submitted, Full> {
        self.submit(|member, now, token, host| member.write(now, token, record, quorum, host))
    }

    /// Reads a key from `ack` of `from` replicas.
    ///
    /// # Errors
    /// [`Full`] if too much is in flight.
    pub fn read(&self, key: Key<Bytes>, want: Want, quorum: Quorum) -> Result<Submitted, Full> {
        self.submit(|member, now, token, host| member.read(now, token, key, want, quorum, host))
    }

    fn submit(
        &self,
        begin: impl FnOnce(&mut Member, Now, Token, &mut CoreHost<'_>) -> Result<(), Full>,
    ) -> Result<Submitted, Full> {
        let token = self.clients.borrow_mut().enter();
        if let Err(full) = self.drive(|member, now, host| begin(member, now, token, host)) {
            self.clients.borrow_mut().leave(token);
            return Err(full);
        }
        let mut clients = self.clients.borrow_mut();
        if let Some(Client { state: Waiting::Answered(_), .. }) = clients.client(token)
            && let Waiting::Answered(answer) = clients.leave(token)
        {
            return Ok(Submitted::Answered(answer));
        }
        drop(clients);
        Ok(Submitted::Waits(Ticket { driver: self.this.clone(), token }))
    }

    /// Deadlines, hedges, probes and figures, until the core is closed.
    async fn tick(self: Rc<Self>) {
        let mut published = Instant::now();
        let mut arrivals = vec![0; self.links.borrow().len()];
        while !self.closed.get() {
            let busy = self.member.borrow().coordinator().in_flight() > 0;
            monoio::time::sleep(if busy { TICK_BUSY } else { TICK_IDLE }).await;
            let instant = Instant::now();
            if let Some(turn) = &self.turn {
                turn.begin_quietly(instant);
            }
            let now = self.at(instant);
            if let Some(turn) = self.turn.as_ref().filter(|_| busy) {
                turn.busy();
            }
            self.member.borrow_mut().tick(now, &mut CoreHost(&self));
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
                self.cluster.peers.publish(self.core, self.member.borrow().coordinator());
            }
        }
    }

    /// Waits for the last replicas of what is in flight, sees that those that miss something get
    /// their hints, and ends.
    pub async fn close(&self) {
        let patience = CLOSE_MAX.min(self.cluster.config.replica_timeout + Duration::from_millis(100));
        let begun = Instant::now();
        while self.member.borrow().coordinator().in_flight() > 0 && begun.elapsed() < patience {
            monoio::time::sleep(TICK_BUSY).await;
        }
        self.closed.set(true);
        self.drive(|member, now, host| member.finish(now, host));
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

/// What a link tells its driver.
impl LinkHandler for MemberDriver {
    #[inline]
    fn resumed(&self, now: Instant) {
        if let Some(turn) = &self.turn {
            turn.begin_quietly(now);
        }
    }

    fn connected(&self, peer: usize, identity: &PeerIdentity, now: Instant) {
        self.cluster.met(identity);
        self.member.borrow_mut().connected(self.at(now), NodeIndex(peer as u8));
        self.cluster.peers.connected(NodeIndex(peer as u8), self.core, &identity.introduction);
        let link = self.links.borrow().get(peer).and_then(Clone::clone);
        if let Some(skew) = link.and_then(|link| link.skew()) {
            let skew = ClockSkew { offset_ms: skew.offset_ms, error_ms: skew.error_ms };
            self.skew_measured(NodeIndex(peer as u8), skew);
        }
    }

    fn reply(&self, peer: usize, now: Instant, frame: ReplyFrame<'_>, buffer: Option<&Bytes>) -> Result<(), String> {
        let (node, now) = (NodeIndex(peer as u8), self.at(now));
        let mut member = self.member.borrow_mut();
        match frame.reply {
            wire::Reply::Outcome(outcome) => {
                if let Some(turn) = &self.turn {
                    turn.busy();
                }
                member.replied(now, node, RequestId(frame.number), frame.key_hash, outcome, buffer)
            }
            wire::Reply::Pong { wall_ms, clock } => {
                // (The clock of versions stands still where nobody writes.)
                self.cluster.peers.lived_until(node, wall_ms.max(WallTime(clock).ms()));
                let Some(skew) = member.ponged(now, node, RequestId(frame.number), Clocks { wall_ms, clock }) else {
                    return Ok(());
                };
                // What the machine's clock says counts between nodes, as it does in what they are told.
                let skew = skew.beside(clock::jump_ms());
                self.skew_measured(node, skew);
                skew.check()
            }
        }
    }

    fn batch_end(&self, _peer: usize, now: Instant) {
        self.member.borrow_mut().carry_out(self.at(now), &mut CoreHost(self));
    }

    fn progress(&self, peer: usize, now: Instant) {
        self.member.borrow_mut().heard(self.at(now), NodeIndex(peer as u8));
    }

    fn lost(&self, peer: usize, why: &LostReason) {
        let node = NodeIndex(peer as u8);
        let absent = matches!(why, LostReason::ConnectRefused);
        self.cluster.peers.lost(node, self.core, &why.to_string(), absent);
        self.drive(|member, now, host| member.lost(now, node, host));
    }
}

//! The event loop: nodes, the network between them, faults, clients.
//!
//! Events are ordered by (virtual µs, sequence). Everything that is a node's own work (messages, ticks, news of its
//! connections, clients' requests) waits while the node is paused, and is gone if it crashes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use koltso_cluster::Now;
use koltso_cluster::coordinator::{Action, Answer, Coordinator, RequestId, Settings};
use koltso_cluster::health::{HEDGE_BURST, HEDGE_SHARE};
use koltso_cluster::pace::{Pace, WINDOW_MAX};
use koltso_cluster::placement::{NodeIndex, Topology};
use koltso_model::{
    Flags, Found, Key, KeyHash, Operation, Outcome, Quorum, Record, Refused, Tombstone, Version, WallTime, Want,
};

use super::check::{Failure, History, Op, What, value_of};
use super::engine::{Clock, EPOCH_MS, Engine};
use super::plan::{Kind, Mode, Mutation, Plan};
use super::rng::{Rng, mix};

const MS: u64 = 1_000;
const SECOND: u64 = 1_000 * MS;
const TICK: u64 = 5 * MS;
pub const DEADLINE: u64 = SECOND;
/// Messages of one direction on their way; more are refused, as a full queue does.
const LINK_MAX: usize = 1024;
/// After the faults: time until operations must succeed.
const GRACE: u64 = 2 * SECOND;
/// Until hints must have been replayed.
const PATIENCE: u64 = 30 * SECOND;
/// After a node's fault: time until it counts as well.
const WELL_AFTER: u64 = 500 * MS;

#[derive(Clone, Debug)]
enum Msg {
    Request { id: RequestId, operation: Operation<Bytes> },
    Reply { id: RequestId, reply: Outcome<Bytes> },
    Ping,
    Pong,
    Replay { hint: u64, record: Record<Bytes> },
    Replayed { hint: u64, reply: Outcome<Bytes> },
}

impl Msg {
    fn is_answer(&self) -> bool {
        matches!(self, Self::Reply { .. } | Self::Pong | Self::Replayed { .. })
    }
}

/// Where a message travels: the connection that `asker` made to `peer`, in its life number `epoch`.
#[derive(Clone, Copy, Debug)]
struct Via {
    asker: usize,
    peer: usize,
    epoch: u32,
}

#[derive(Clone, Debug)]
enum Work {
    Deliver(Via, Msg),
    /// A request's turn has come at a slow node.
    Serve(Via, Msg),
    ServeSelf(RequestId, Operation<Bytes>),
    Tick,
    Connected(Via),
    Lost(Via),
    Begin(usize),
}

#[derive(Clone, Debug)]
enum Event {
    Node { node: usize, life: u32, work: Work },
    Client(usize),
    Arrival(usize),
    Fault,
    EndFault(usize),
    Heal,
    Scrub,
    FinalReads,
    Judge,
}

#[derive(Clone, Debug)]
struct Fault {
    kind: Kind,
    node: usize,
    other: usize,
    running: bool,
}

#[derive(Default)]
struct Link {
    epoch: u32,
    /// It works.
    up: bool,
    /// The asker believes in this life of it.
    known: Option<u32>,
    next_attempt: u64,
    /// When the last message of each direction arrives.
    last: [u64; 2],
    in_flight: usize,
    stalled: VecDeque<Msg>,
}

struct Hint {
    number: u64,
    record: Record<Bytes>,
    durable_at: u64,
}

/// What a peer has missed.
#[derive(Default)]
struct Missed {
    hints: VecDeque<Hint>,
    next: u64,
    pace: Pace,
    /// Sent at, with these numbers not confirmed, and whether one was refused.
    window: Option<(u64, Vec<u64>, bool)>,
    rest_until: u64,
}

struct Node {
    up: bool,
    life: u32,
    paused: bool,
    backlog: Vec<Work>,
    coordinator: Coordinator,
    clock: Rc<RefCell<Clock>>,
    engine: Engine,
    missed: Vec<Missed>,
    /// µs for each request, and when it is done with those it has.
    service: u64,
    busy_until: u64,
    full: bool,
    ailing: u32,
    /// When it has recovered from its last fault.
    well_at: u64,
    open: BTreeSet<usize>,
    reads: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub events: u64,
    pub answered: u64,
    pub not_enough: u64,
    pub lost_with_node: u64,
    pub refused_full: u64,
    pub renewed: u64,
    pub waited_repairs: u64,
    pub hints: u64,
    pub hints_dropped: u64,
    pub replayed: u64,
    pub hedges: u64,
    pub repairs: u64,
    pub opened: u64,
    pub faults: u64,
    /// Writes that were seen twice, with another between.
    pub twice: u64,
    /// Of operations at nodes that were well, in µs.
    pub latencies: Vec<u64>,
}

pub struct Report {
    pub failure: Option<Failure>,
    /// Of all that happened, in order.
    pub hash: u64,
    pub stats: Stats,
    pub trace: Vec<(Option<usize>, String)>,
}

pub struct World {
    plan: Plan,
    rng: Rng,
    now: u64,
    sequence: u64,
    events: BTreeMap<(u64, u64), Event>,
    nodes: Vec<Node>,
    links: Vec<Link>,
    cut: Vec<u32>,
    keys: Vec<Bytes>,
    key_index: HashMap<Bytes, usize>,
    ranked: Vec<Vec<usize>>,
    history: History,
    /// Which operation a request belongs to: by node, life, and the id without its stage.
    owners: HashMap<(usize, u32, u64), usize>,
    faults: Vec<Fault>,
    healed: bool,
    clients_stop: u64,
    scrubs: Vec<usize>,
    finals: Vec<usize>,
    failure: Option<Failure>,
    tracing: bool,
    trace: Vec<(Option<usize>, String)>,
    hash: u64,
    stats: Stats,
}

/// Topologies take milliseconds to make, and depend on nothing but the number of nodes.
fn topology(nodes: usize, me: usize) -> Arc<Topology> {
    type Cache = BTreeMap<(usize, usize), Arc<Topology>>;
    static CACHE: Mutex<Cache> = Mutex::new(BTreeMap::new());
    let made = CACHE.lock().unwrap().get(&(nodes, me)).cloned();
    made.unwrap_or_else(|| {
        let names: Vec<String> = (0..nodes).map(|node| format!("http://node-{node}:1337")).collect();
        let topology = Arc::new(Topology::new(&names, &names[me]).unwrap());
        CACHE.lock().unwrap().insert((nodes, me), topology.clone());
        topology
    })
}

fn coordinator(plan: &Plan, me: usize) -> Coordinator {
    let settings =
        Settings { deadline_micros: DEADLINE, in_flight_max: plan.in_flight_max, in_flight_bytes_max: 64 << 20 };
    Coordinator::new(topology(plan.nodes, me), settings)
}

fn quorum(ack: u8, from: u8) -> Quorum {
    Quorum::new(ack, from).unwrap()
}

/// One run.
pub fn run(plan: &Plan, tracing: bool) -> Report {
    let mut world = World::new(plan.clone(), tracing);
    while world.failure.is_none()
        && let Some(((at, sequence), event)) = world.events.pop_first()
    {
        world.now = at;
        world.stats.events += 1;
        world.note(at ^ sequence << 40);
        if matches!(event, Event::Judge) {
            world.judge();
            break;
        }
        world.step(event);
    }
    for node in 0..world.nodes.len() {
        world.count(node);
    }
    world.stats.twice = world.history.twice();
    Report { failure: world.failure, hash: world.hash, stats: world.stats, trace: world.trace }
}

impl World {
    fn new(plan: Plan, tracing: bool) -> Self {
        let count = plan.nodes;
        let keys: Vec<Bytes> = (0..plan.keys).map(|key| Bytes::from(format!("{:x}-{key}", mix(plan.seed)))).collect();
        let order = topology(count, 0);
        let ranks = |key: &Bytes| order.ranked(KeyHash::of(key)).iter().map(|node| node.at()).collect();
        let nodes = (0..count).map(|me| {
            let clock = Rc::new(RefCell::new(Clock::default()));
            Node {
                up: true,
                life: 0,
                paused: false,
                backlog: Vec::new(),
                coordinator: coordinator(&plan, me),
                clock,
                engine: Engine::new(plan.storage),
                missed: (0..count).map(|_| Missed::default()).collect(),
                service: 0,
                busy_until: 0,
                full: false,
                ailing: 0,
                well_at: 0,
                open: BTreeSet::new(),
                reads: 0,
            }
        });
        let mut world = Self {
            rng: Rng::new(plan.seed),
            now: 0,
            sequence: 0,
            events: BTreeMap::new(),
            nodes: nodes.collect(),
            links: (0..count * count).map(|_| Link::default()).collect(),
            cut: vec![0; count * count],
            key_index: keys.iter().cloned().enumerate().map(|(index, key)| (key, index)).collect(),
            ranked: keys.iter().map(ranks).collect(),
            history: History::new(keys.len(), count),
            keys,
            owners: HashMap::new(),
            faults: Vec::new(),
            healed: false,
            clients_stop: plan.faults_until + if plan.writes_only { 0 } else { GRACE + 400 * MS },
            scrubs: Vec::new(),
            finals: Vec::new(),
            failure: None,
            tracing,
            trace: Vec::new(),
            hash: plan.seed,
            stats: Stats::default(),
            plan,
        };
        for node in 0..count {
            let at = world.rng.below(TICK);
            world.on(node, at, Work::Tick);
        }
        for client in 0..world.plan.clients {
            let at = 100 * MS + world.rng.below(50 * MS);
            world.at(at, Event::Client(client));
        }
        if world.plan.mode == Mode::Steady {
            for node in 0..count {
                world.at(200 * MS + node as u64, Event::Arrival(node));
            }
        }
        let until = world.plan.faults_until;
        if !world.plan.faults.is_empty() {
            for chain in 0..world.plan.ailing_max as u64 {
                world.at(250 * MS + chain * 37 * MS, Event::Fault);
            }
        }
        world.at(until, Event::Heal);
        world.at(until + SECOND, Event::Scrub);
        world.at(until + GRACE + 1_900 * MS, Event::FinalReads);
        world
    }

    fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((at.max(self.now), self.sequence), event);
    }

    fn on(&mut self, node: usize, at: u64, work: Work) {
        let life = self.nodes[node].life;
        self.at(at, Event::Node { node, life, work });
    }

    fn note(&mut self, what: u64) {
        self.hash = mix(self.hash.rotate_left(1) ^ what);
    }

    fn say(&mut self, key: Option<usize>, text: impl FnOnce() -> String) {
        if self.tracing {
            self.trace.push((key, format!("{:>10} {}", self.now, text())));
        }
    }

    fn fail(&mut self, check: &'static str, key: Option<usize>, text: String) {
        self.say(key, || format!("FAILED {check}: {text}"));
        self.failure.get_or_insert(Failure { check, key, text });
    }

    fn must(&mut self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.fail(failure.check, failure.key, failure.text);
        }
    }

    /// The clocks of a node: a monotonic one with an origin of its own, and a wall clock that is off.
    fn clocks(&self, node: usize) -> Now {
        let (offset, drift) = self.plan.clocks[node];
        let drifted = self.now as i64 + self.now as i64 * drift / 1_000_000;
        let wall =
            WallTime::since_epoch(Duration::from_micros((EPOCH_MS as i64 * 1000 + offset * 1000 + drifted) as u64));
        Now { micros: self.now + 7 * SECOND * (node as u64 + 1), wall }
    }

    fn link(&mut self, asker: usize, peer: usize) -> &mut Link {
        let index = asker * self.plan.nodes + peer;
        &mut self.links[index]
    }

    fn is_cut(&self, one: usize, other: usize) -> bool {
        self.cut[one * self.plan.nodes + other] > 0
    }

    // ---- the network ----

    /// Gives a message to a connection. `false` if there is none, or too much is on its way.
    fn send(&mut self, via: Via, msg: Msg) -> bool {
        let harsh = self.plan.mode == Mode::Harsh && !self.healed;
        let link = self.link(via.asker, via.peer);
        if !msg.is_answer() && (link.known != Some(via.epoch) || link.in_flight >= LINK_MAX) {
            return false;
        }
        if !link.up || link.epoch != via.epoch {
            return true;
        }
        let times = if harsh && self.rng.ppm(self.plan.lost) {
            0
        } else if harsh && self.rng.ppm(self.plan.doubled) {
            2
        } else {
            1
        };
        for _ in 0..times {
            self.travel(via, msg.clone());
        }
        true
    }

    fn travel(&mut self, via: Via, msg: Msg) {
        let (least, mean, tail) = self.plan.delay;
        let mut at = self.now + least + self.rng.around(mean);
        if self.rng.ppm(tail) && !self.healed {
            // A round trip beyond the silence that opens a circuit is an ailing peer: one more than `Available` allows.
            let longest = if self.plan.mode == Mode::Available { 40 * MS } else { 80 * MS };
            at += self.rng.below(longest);
        }
        let harsh = self.plan.mode == Mode::Harsh && !self.healed;
        let back = msg.is_answer();
        let link = self.link(via.asker, via.peer);
        link.in_flight += usize::from(!back);
        if !harsh {
            at = at.max(link.last[usize::from(back)]);
        }
        link.last[usize::from(back)] = at.max(link.last[usize::from(back)]);
        let to = if back { via.asker } else { via.peer };
        self.on(to, at, Work::Deliver(via, msg));
    }

    /// The connection is gone, with everything in flight. The asker learns of it in `notice` µs.
    fn break_link(&mut self, asker: usize, peer: usize, notice: u64) {
        let link = self.link(asker, peer);
        if !link.up {
            return;
        }
        let via = Via { asker, peer, epoch: link.epoch };
        link.up = false;
        link.stalled.clear();
        link.in_flight = 0;
        self.note(3 ^ (asker as u64) << 8 ^ (peer as u64) << 16);
        self.say(None, || format!("the connection {asker}→{peer} breaks, noticed in {notice}"));
        if self.nodes[asker].up {
            let at = self.now + notice;
            self.on(asker, at, Work::Lost(via));
        }
    }

    fn notice(&mut self) -> u64 {
        match self.rng.below(4) {
            0 => self.rng.range(500 * MS, 3 * SECOND),
            1 => self.rng.below(50 * MS),
            _ => 0,
        }
    }

    /// A peer that is back answers what it gets over a dead connection with a reset. In the modes with one fault at a time,
    /// that is at once, so that one does not outlast itself.
    fn unless_answered(&self, notice: u64, lasts: u64) -> u64 {
        if matches!(self.plan.mode, Mode::Available | Mode::Steady) { notice.min(lasts) } else { notice }
    }

    fn attempt(&mut self, asker: usize, peer: usize) {
        let reachable = self.nodes[peer].up && !self.nodes[peer].paused && !self.is_cut(asker, peer);
        let now = self.now;
        let pause = self.rng.range(10 * MS, 150 * MS);
        let link = self.link(asker, peer);
        link.next_attempt = now + pause;
        if !reachable || link.up {
            // (One that is up was not told of yet.)
            if !link.up {
                let clocks = self.clocks(asker);
                let mut actions = Vec::new();
                self.nodes[asker].coordinator.lost(clocks, NodeIndex(peer as u8), &mut actions);
                self.perform(asker, actions);
            }
            return;
        }
        link.epoch += 1;
        link.up = true;
        link.last = [now; 2];
        link.in_flight = 0;
        let via = Via { asker, peer, epoch: link.epoch };
        let at = now + 2 * self.plan.delay.0 + self.rng.around(self.plan.delay.1);
        self.on(asker, at, Work::Connected(via));
    }

    // ---- events ----

    fn step(&mut self, event: Event) {
        match event {
            Event::Node { node, life, work } => {
                if !self.nodes[node].up || self.nodes[node].life != life {
                    return;
                }
                if self.nodes[node].paused {
                    self.nodes[node].backlog.push(work);
                    return;
                }
                self.work(node, work);
            }
            Event::Client(client) => self.client(client),
            Event::Arrival(node) => self.arrival(node),
            Event::Fault => self.fault(),
            Event::EndFault(index) => self.end_fault(index),
            Event::Heal => self.heal(),
            Event::Scrub if self.plan.writes_only => {}
            Event::Scrub => self.scrubs = self.read_all(),
            Event::FinalReads if self.hints_wait() && self.now < self.plan.faults_until + PATIENCE => {
                let at = self.now + 100 * MS;
                self.at(at, Event::FinalReads);
            }
            Event::FinalReads => {
                if self.plan.writes_only && self.stats.hints_dropped == 0 {
                    self.converged();
                }
                self.finals = self.read_all();
                let at = self.now + 400 * MS;
                self.at(at, Event::Judge);
            }
            Event::Judge => {}
        }
    }

    fn work(&mut self, node: usize, work: Work) {
        match work {
            Work::Deliver(via, msg) => self.deliver(node, via, msg),
            Work::Serve(via, msg) => self.serve(node, via, msg),
            Work::ServeSelf(id, operation) => {
                let actions = self.serve_self(node, id, &operation);
                self.perform(node, actions);
            }
            Work::Tick => self.tick(node),
            Work::Connected(via) => {
                let clocks = self.clocks(node);
                let link = self.link(via.asker, via.peer);
                if link.up && link.epoch == via.epoch {
                    link.known = Some(via.epoch);
                    self.nodes[node].coordinator.connected(clocks, NodeIndex(via.peer as u8));
                    self.say(None, || format!("{node} is connected to {}", via.peer));
                }
            }
            Work::Lost(via) => {
                let link = self.link(via.asker, via.peer);
                if link.known == Some(via.epoch) {
                    link.known = None;
                    let missed = &mut self.nodes[node].missed[via.peer];
                    missed.window = None;
                    missed.pace.failed();
                    self.say(None, || format!("{node} notices that it lost {}", via.peer));
                    let clocks = self.clocks(node);
                    let mut actions = Vec::new();
                    self.nodes[node].coordinator.lost(clocks, NodeIndex(via.peer as u8), &mut actions);
                    self.perform(node, actions);
                }
            }
            Work::Begin(token) => self.begin(node, token),
        }
    }

    fn deliver(&mut self, node: usize, via: Via, msg: Msg) {
        let cut = self.is_cut(via.asker, via.peer);
        let link = self.link(via.asker, via.peer);
        if !link.up || link.epoch != via.epoch {
            return;
        }
        if cut {
            link.stalled.push_back(msg);
            return;
        }
        if !msg.is_answer() {
            let service = self.nodes[node].service;
            if service > 0 {
                let at = self.nodes[node].busy_until.max(self.now) + self.rng.around(service);
                self.nodes[node].busy_until = at;
                self.on(node, at, Work::Serve(via, msg));
            } else {
                self.serve(node, via, msg);
            }
            return;
        }
        if self.link(via.asker, via.peer).known != Some(via.epoch) {
            return;
        }
        let (clocks, peer) = (self.clocks(node), NodeIndex(via.peer as u8));
        let mut actions = Vec::new();
        match msg {
            Msg::Reply { id, reply } => {
                self.note(4 ^ id.0.rotate_left(8) ^ node as u64);
                self.trace_reply(node, id, via.peer, &reply);
                let reply = self.learn(node, reply);
                self.nodes[node].coordinator.replied(clocks, peer, id, reply, &mut actions);
            }
            Msg::Pong => {
                self.nodes[node].coordinator.probed(clocks, peer);
            }
            Msg::Replayed { hint, reply } => {
                self.nodes[node].coordinator.heard(clocks, peer);
                self.replayed(node, via.peer, hint, &reply);
            }
            _ => unreachable!("the others are requests"),
        }
        self.perform(node, actions);
    }

    fn trace_reply(&mut self, node: usize, id: RequestId, peer: usize, reply: &Outcome<Bytes>) {
        if self.tracing {
            let life = self.nodes[node].life;
            let owner = self.owners.get(&(node, life, id.0 >> 8)).copied();
            let key = owner.map(|token| self.history.ops[token].key);
            self.say(key, || format!("{node} hears of {peer} for {owner:?} stage {}: {reply:?}", id.0 as u8));
        }
    }

    /// What the driver does with a reply on its way to the coordinator.
    fn learn(&mut self, node: usize, reply: Outcome<Bytes>) -> Outcome<Bytes> {
        let version = match &reply {
            Outcome::Superseded(version)
            | Outcome::Found(Found { version, .. })
            | Outcome::Absent(Some(Tombstone { version, .. })) => Some(*version),
            _ => None,
        };
        if let Some(version) = version
            && self.plan.observes
        {
            self.nodes[node].clock.borrow_mut().observe(version.clock);
        }
        match reply {
            Outcome::Superseded(_) if self.plan.mutation == Mutation::SupersededIsApplied => Outcome::Applied,
            reply => reply,
        }
    }

    /// What a replica does.
    fn apply(&mut self, node: usize, id: Option<RequestId>, from: usize, request: &Operation<Bytes>) -> Outcome<Bytes> {
        let (mutation, now) = (self.plan.mutation, self.now);
        match request {
            Operation::Read { key, want } => self.nodes[node].engine.read(key.bytes(), *want),
            Operation::Write(record) => {
                if self.nodes[node].full && !record.flags.is_tombstone() {
                    return Outcome::Refused(Refused::DiskFull);
                }
                if mutation == Mutation::ConfirmsWithoutApplying && node == from
                    || mutation == Mutation::IgnoresHints && id.is_none()
                    || mutation == Mutation::IgnoresRepairs && id.is_some_and(|id| id.0 as u8 >= 3)
                {
                    return Outcome::Applied;
                }
                if self.plan.observes {
                    self.nodes[node].clock.borrow_mut().observe(record.version.clock);
                }
                let reply = self.nodes[node].engine.write(record, now, mutation);
                let key = self.key_index[record.key.shared()];
                self.say(Some(key), || format!("{node} takes {:?} of {from}: {reply:?}", record.version));
                reply
            }
        }
    }

    fn serve(&mut self, node: usize, via: Via, msg: Msg) {
        let link = self.link(via.asker, via.peer);
        if link.up && link.epoch == via.epoch {
            link.in_flight -= 1;
        }
        let answer = match msg {
            Msg::Request { id, operation } => {
                let reply = self.apply(node, Some(id), via.asker, &operation);
                Msg::Reply { id, reply }
            }
            Msg::Ping => Msg::Pong,
            Msg::Replay { hint, record } => {
                let reply = self.apply(node, None, via.asker, &Operation::Write(record));
                Msg::Replayed { hint, reply }
            }
            _ => unreachable!("the others are answers"),
        };
        self.send(via, answer);
    }

    fn serve_self(&mut self, node: usize, id: RequestId, request: &Operation<Bytes>) -> Vec<Action> {
        let reply = self.apply(node, Some(id), node, request);
        self.trace_reply(node, id, node, &reply);
        let reply = self.learn(node, reply);
        let mut actions = Vec::new();
        let clocks = self.clocks(node);
        self.nodes[node].coordinator.replied(clocks, NodeIndex(node as u8), id, reply, &mut actions);
        actions
    }

    // ---- the driver of a node ----

    fn perform(&mut self, node: usize, actions: Vec<Action>) {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            if self.failure.is_some() {
                return;
            }
            match action {
                Action::Send { to, id, operation } => {
                    self.check_send(node, to.at(), id, &operation);
                    if to.at() == node {
                        let service = self.nodes[node].service;
                        if service > 0 {
                            let at = self.nodes[node].busy_until.max(self.now) + self.rng.around(service);
                            self.nodes[node].busy_until = at;
                            self.on(node, at, Work::ServeSelf(id, operation));
                        } else {
                            queue.extend(self.serve_self(node, id, &operation));
                        }
                        continue;
                    }
                    let known = self.link(node, to.at()).known;
                    let via = known.map(|epoch| Via { asker: node, peer: to.at(), epoch });
                    if !via.is_some_and(|via| self.send(via, Msg::Request { id, operation })) {
                        let clocks = self.clocks(node);
                        let mut more = Vec::new();
                        self.nodes[node].coordinator.failed(clocks, to, id, &mut more);
                        queue.extend(more);
                    }
                }
                Action::Probe { to } => {
                    if let Some(epoch) = self.link(node, to.at()).known {
                        self.send(Via { asker: node, peer: to.at(), epoch }, Msg::Ping);
                    }
                }
                Action::Renew { id, above } => {
                    let clocks = self.clocks(node);
                    let number = topology(self.plan.nodes, node).number(NodeIndex(node as u8));
                    self.nodes[node].clock.borrow_mut().observe(above.clock);
                    let version = Version::new(self.nodes[node].clock.borrow_mut().next(clocks.wall), number);
                    let mut more = Vec::new();
                    self.nodes[node].coordinator.renew(clocks, id, version, &mut more);
                    queue.extend(more);
                }
                Action::Answer { token, answer } => self.answered(node, token as usize, answer),
                Action::Hint { to, record } => self.hint(node, to.at(), record),
            }
        }
        let in_flight = self.nodes[node].coordinator.in_flight();
        if in_flight > self.plan.in_flight_max {
            self.fail("bounds", None, format!("{node} has {in_flight} operations in flight"));
        }
    }

    fn check_send(&mut self, node: usize, to: usize, id: RequestId, request: &Operation<Bytes>) {
        self.note(5 ^ id.0.rotate_left(8) ^ (to as u64) << 4 ^ node as u64);
        let life = self.nodes[node].life;
        let Some(&token) = self.owners.get(&(node, life, id.0 >> 8)) else {
            return self.fail("no replica beyond from", None, format!("{id:?} of {node} belongs to no operation"));
        };
        let (key, from, what) = {
            let op = &self.history.ops[token];
            (op.key, usize::from(op.from), op.what)
        };
        self.say(Some(key), || format!("{node} asks {to} for {token} stage {}: {request:?}", id.0 as u8));
        if *request.key().shared() != self.keys[key] || !self.ranked[key][..from].contains(&to) {
            self.fail("no replica beyond from", Some(key), format!("{node} asks {to} for {token}: {request:?}"));
        }
        if let Operation::Write(record) = request {
            if matches!(what, What::Put | What::Delete) {
                let done = self.history.versioned(token, record.version);
                self.must(done);
            }
            let writer = self.history.writer(key, record).map(|_| ());
            self.must(writer);
        }
    }

    fn hint(&mut self, node: usize, to: usize, record: Record<Bytes>) {
        let key = self.key_index[record.key.shared()];
        match self.history.writer(key, &record) {
            Ok(token) => {
                let from = usize::from(self.history.ops[token].from);
                if !self.ranked[key][..from].contains(&to) || to == node {
                    self.fail("no replica beyond from", Some(key), format!("{node} keeps a hint of {token} for {to}"));
                }
            }
            Err(failure) => self.must(Err(failure)),
        }
        self.say(Some(key), || format!("{node} keeps a hint for {to}: {:?}", record.version));
        let durable_at = self.now + self.rng.below(5 * MS);
        let max = self.plan.hints_max;
        let missed = &mut self.nodes[node].missed[to];
        if missed.hints.len() >= max {
            self.stats.hints_dropped += 1;
            return;
        }
        self.stats.hints += 1;
        missed.next += 1;
        missed.hints.push_back(Hint { number: missed.next, record, durable_at });
    }

    /// Sends the next window of what each peer has missed.
    fn replay(&mut self, node: usize) {
        for peer in 0..self.plan.nodes {
            let usable = peer != node && self.nodes[node].coordinator.health().peer(NodeIndex(peer as u8)).usable();
            let now = self.now;
            let missed = &mut self.nodes[node].missed[peer];
            if missed.window.as_ref().is_some_and(|(sent, ..)| now - sent > 2 * SECOND) {
                missed.window = None;
                missed.pace.failed();
            }
            if !usable || missed.window.is_some() || now < missed.rest_until || missed.hints.is_empty() {
                continue;
            }
            let count = missed.pace.window();
            assert!(count <= WINDOW_MAX);
            let window: Vec<_> =
                missed.hints.iter().take(count as usize).map(|h| (h.number, h.record.clone())).collect();
            missed.window = Some((now, window.iter().map(|(number, _)| *number).collect(), false));
            let Some(epoch) = self.link(node, peer).known else {
                continue;
            };
            for (hint, record) in window {
                self.send(Via { asker: node, peer, epoch }, Msg::Replay { hint, record });
            }
        }
    }

    fn replayed(&mut self, node: usize, peer: usize, hint: u64, reply: &Outcome<Bytes>) {
        let now = self.now;
        let missed = &mut self.nodes[node].missed[peer];
        let Some((sent, waiting, refused)) = &mut missed.window else {
            return;
        };
        let Some(place) = waiting.iter().position(|&number| number == hint) else {
            return;
        };
        waiting.remove(place);
        if matches!(reply, Outcome::Applied | Outcome::Superseded(_)) {
            missed.hints.retain(|kept| kept.number != hint);
            self.stats.replayed += 1;
        } else {
            *refused = true;
        }
        if waiting.is_empty() {
            if *refused {
                missed.pace.failed();
                missed.rest_until = now + 100 * MS;
            } else {
                missed.rest_until = now + missed.pace.confirmed(now - *sent);
            }
            missed.window = None;
        }
    }

    fn tick(&mut self, node: usize) {
        let at = self.now + TICK;
        self.on(node, at, Work::Tick);
        let clocks = self.clocks(node);
        let mut actions = Vec::new();
        self.nodes[node].coordinator.tick(clocks, &mut actions);
        self.perform(node, actions);
        for peer in 0..self.plan.nodes {
            let link = self.link(node, peer);
            if peer != node && link.known.is_none() && self.now >= self.link(node, peer).next_attempt {
                self.attempt(node, peer);
            }
        }
        self.replay(node);
        self.check_node(node);
    }

    // ---- checks of a node ----

    fn check_node(&mut self, node: usize) {
        for &token in &self.nodes[node].open {
            let op = &self.history.ops[token];
            if op.begun.is_some_and(|begun| self.now - begun >= DEADLINE) {
                let key = op.key;
                return self.fail("answered by the deadline", Some(key), format!("{token} is not, at {node}"));
            }
        }
        let health = self.nodes[node].coordinator.health();
        let (mut unanswered, mut hedges) = (0, 0);
        for peer in 0..self.plan.nodes {
            unanswered = unanswered.max(health.peer(NodeIndex(peer as u8)).unanswered());
            hedges += health.peer(NodeIndex(peer as u8)).hedges;
        }
        // A few requests of each operation, and those of operations that are gone.
        let most = LINK_MAX + self.plan.in_flight_max * 4;
        if unanswered as usize > most {
            self.fail("bounds", None, format!("{node} counts {unanswered} unanswered requests"));
        }
        let reads = self.nodes[node].reads;
        if hedges > reads / u64::from(HEDGE_SHARE) + u64::from(HEDGE_BURST) {
            self.fail("bounds", None, format!("{node} hedged {hedges} of {reads} reads"));
        }
    }

    /// Operations at a node that wait for their answer.
    fn open(&self, node: usize) -> Vec<usize> {
        self.nodes[node].open.iter().copied().collect()
    }

    fn count(&mut self, node: usize) {
        let coordinator = &self.nodes[node].coordinator;
        self.stats.renewed += coordinator.counters().renewed;
        self.stats.waited_repairs += coordinator.counters().repairs_waited_for;
        for peer in 0..self.plan.nodes {
            let peer = coordinator.health().peer(NodeIndex(peer as u8));
            self.stats.hedges += peer.hedges;
            self.stats.repairs += peer.repairs;
            self.stats.opened += peer.opened;
        }
    }

    // ---- clients ----

    fn pick_quorum(&mut self) -> Quorum {
        if matches!(self.plan.mode, Mode::Available | Mode::Steady) {
            return if self.plan.ailing_max == 2 { quorum(3, 5) } else { quorum(2, 3) };
        }
        let nodes = self.plan.nodes as u64;
        let usual = self.plan.writes_only || self.rng.below(10) < 7;
        let from = if usual { nodes.min(3) } else { self.rng.range(1, nodes) };
        let ack = if self.rng.below(10) < 8 { from / 2 + 1 } else { self.rng.range(1, from) };
        quorum(ack as u8, from as u8)
    }

    fn invoke(&mut self, client: Option<usize>, node: usize, key: usize, what: What, quorum: Quorum) -> usize {
        self.invoke_at(self.now, client, node, key, what, quorum)
    }

    fn invoke_at(
        &mut self,
        at: u64,
        client: Option<usize>,
        node: usize,
        key: usize,
        what: What,
        quorum: Quorum,
    ) -> usize {
        let excused = self.nodes[node].ailing > 0 || self.now < self.nodes[node].well_at;
        let token = self.history.invoke(Op {
            client,
            node,
            key,
            what,
            ack: quorum.ack(),
            from: quorum.from(),
            invoked: self.now,
            begun: None,
            ended: None,
            abandoned: false,
            floor: Version::default(),
            version: Version::default(),
            first: None,
            excused,
            unsure: false,
        });
        self.say(Some(key), || format!("{token} begins at {node}: {what:?} {quorum:?}"));
        self.nodes[node].open.insert(token);
        self.on(node, at, Work::Begin(token));
        token
    }

    fn client(&mut self, client: usize) {
        if self.now >= self.clients_stop {
            return;
        }
        let live: Vec<usize> = (0..self.plan.nodes).filter(|&node| self.nodes[node].up).collect();
        if live.is_empty() {
            let at = self.now + 10 * MS;
            return self.at(at, Event::Client(client));
        }
        let node = self.rng.pick(&live);
        let key = self.rng.below(self.plan.keys as u64) as usize;
        let what = self.pick_what();
        let quorum = self.pick_quorum();
        self.invoke(Some(client), node, key, what, quorum);
    }

    fn pick_what(&mut self) -> What {
        match self.rng.below(if self.plan.writes_only { 11 } else { 20 }) {
            0..9 => What::Put,
            9 | 10 => What::Delete,
            11 => What::Get(Want::Version),
            _ => What::Get(Want::Value),
        }
    }

    fn arrival(&mut self, node: usize) {
        if self.now >= self.clients_stop {
            return;
        }
        if self.nodes[node].up {
            let key = self.rng.below(self.plan.keys as u64) as usize;
            let what = self.pick_what();
            self.invoke(None, node, key, what, quorum(2, 3));
        }
        let at = self.now + SECOND / self.plan.rate;
        self.at(at, Event::Arrival(node));
    }

    fn client_goes_on(&mut self, client: Option<usize>) {
        if let Some(client) = client {
            let at = self.now + self.rng.around(self.plan.think);
            self.at(at, Event::Client(client));
        }
    }

    fn begin(&mut self, node: usize, token: usize) {
        let clocks = self.clocks(node);
        let op = &mut self.history.ops[token];
        op.begun = Some(self.now);
        let (key, quorum, client, excused) = (op.key, quorum(op.ack, op.from), op.client, op.excused);
        let mut actions = Vec::new();
        let begun = match op.what {
            What::Get(want) => {
                self.nodes[node].reads += 1;
                let key = Key::new(self.keys[key].clone());
                self.nodes[node].coordinator.read(clocks, token as u64, key, want, quorum, &mut actions)
            }
            what => {
                let number = topology(self.plan.nodes, node).number(NodeIndex(node as u8));
                let version = Version::new(self.nodes[node].clock.borrow_mut().next(clocks.wall), number);
                let tombstone = what == What::Delete;
                let value = if tombstone { Bytes::new() } else { value_of(token) };
                let flags = Flags::new(quorum.from());
                let record = Record {
                    key: Key::new(self.keys[key].clone()),
                    value,
                    version,
                    expires_at_ms: 0,
                    flags: if tombstone { flags.tombstone() } else { flags },
                    attributes: Bytes::new(),
                };
                self.nodes[node].coordinator.write(clocks, token as u64, record, quorum, &mut actions)
            }
        };
        if begun.is_err() {
            self.stats.refused_full += 1;
            if !excused && self.plan.mode == Mode::Steady {
                self.fail("one ailing node costs nothing", Some(key), format!("{token} is refused for want of room"));
            }
            if !actions.is_empty() || self.nodes[node].coordinator.in_flight() < self.plan.in_flight_max {
                self.fail("bounds", Some(key), format!("{token} was refused with room, or after it was begun"));
            }
            let op = &mut self.history.ops[token];
            op.ended = Some(self.now);
            self.nodes[node].open.remove(&token);
            return self.client_goes_on(client);
        }
        let id = actions.iter().find_map(|action| match action {
            Action::Send { id, .. } => Some(id.0 >> 8),
            _ => None,
        });
        let life = self.nodes[node].life;
        match id {
            Some(id) => {
                self.owners.insert((node, life, id), token);
            }
            None => self.fail("answered by the deadline", Some(key), format!("{token} asks nobody")),
        }
        self.perform(node, actions);
    }

    fn answered(&mut self, node: usize, token: usize, answer: Answer) {
        let op = self.history.ops[token].clone();
        self.say(Some(op.key), || format!("{token} is answered at {node}: {answer:?}"));
        self.note(6 ^ (token as u64) << 4 ^ u64::from(answer.answered));
        if !op.open() || op.node != node {
            return self.fail("answered once", Some(op.key), format!("{token} at {node}: {answer:?}, {op:?}"));
        }
        self.history.ops[token].ended = Some(self.now);
        self.nodes[node].open.remove(&token);
        self.stats.answered += 1;
        let took = self.now - op.invoked;
        if !op.excused {
            self.stats.latencies.push(took);
        }
        let judged = match (&answer.result, op.what) {
            (Ok(Outcome::Applied), What::Put | What::Delete) => {
                self.look_inside(token, op.ack, self.history.ops[token].version);
                self.history.written(token)
            }
            (Ok(Outcome::Found(Found { version, value, .. })), What::Get(_)) => {
                if op.quorum() {
                    self.look_inside(token, op.from / 2 + 1, *version);
                }
                self.history.found(token, *version, value.as_ref())
            }
            (Ok(Outcome::Absent(_)), What::Get(_)) => self.history.absent(token),
            (Err(shortage), _) => {
                self.stats.not_enough += 1;
                self.history.ops[token].unsure = true;
                let replicas = &self.ranked[op.key][..usize::from(op.from)];
                let foreign = shortage.missing.iter().any(|missing| !replicas.contains(&missing.at()));
                let alone = matches!(self.plan.mode, Mode::Available | Mode::Steady) && !op.excused;
                let grace = self.healed && op.invoked > self.plan.faults_until + GRACE;
                if foreign || shortage.needed != u32::from(op.ack) {
                    self.fail("says what is missing", Some(op.key), format!("{token}: {shortage:?}"));
                } else if alone {
                    self.fail("one ailing node costs nothing", Some(op.key), format!("{token}: {shortage:?}"));
                } else if grace && !self.scrubs.contains(&token) && !self.finals.contains(&token) {
                    self.fail("a healthy cluster succeeds", Some(op.key), format!("{token}: {shortage:?}"));
                }
                Ok(())
            }
            (Ok(outcome), what) => Err(Failure {
                check: "answered once",
                key: Some(op.key),
                text: format!("{token} was {what:?} and got {outcome:?}"),
            }),
        };
        self.must(judged);
        self.client_goes_on(op.client);
    }

    /// So many of the replicas have this version now, or a newer one.
    fn look_inside(&mut self, token: usize, needed: u8, version: Version) {
        if !self.plan.looks_inside {
            return;
        }
        let op = &self.history.ops[token];
        let key = op.key;
        let replicas = &self.ranked[key][..usize::from(op.from)];
        let have = |&&node: &&usize| self.nodes[node].engine.version(&self.keys[key]) >= Some(version);
        let holders = replicas.iter().filter(have).count();
        if holders < usize::from(needed) {
            let text = format!("{token} is answered, and {holders} of {needed} replicas have {version:?}");
            self.fail("enough replicas have it", Some(key), text);
        }
    }

    // ---- faults ----

    fn fault(&mut self) {
        let alone = self.plan.mode == Mode::Available;
        let pause = if alone { WELL_AFTER } else { 0 };
        let mut next = self.now + pause + self.rng.around(self.plan.fault_every);
        let kind = self.rng.pick(&self.plan.faults.clone());
        let now = self.now;
        let well = |&node: &usize| !alone || self.nodes[node].ailing == 0 && self.nodes[node].well_at <= now;
        let candidates: Vec<usize> = (0..self.plan.nodes).filter(well).collect();
        let node = self.rng.pick(&candidates);
        let other = (node + 1 + self.rng.below(self.plan.nodes as u64 - 1) as usize) % self.plan.nodes;
        let lasts = match self.rng.below(3) {
            0 => self.rng.range(10 * MS, 100 * MS),
            1 => self.rng.range(50 * MS, 600 * MS),
            _ => self.rng.range(200 * MS, 3 * SECOND),
        };
        let node = if self.plan.mode == Mode::Steady { 2 } else { node };
        let lasts = if self.plan.mode == Mode::Steady { 3 * SECOND } else { lasts };
        if alone {
            next += lasts;
        }
        if self.plan.mode != Mode::Steady && next < self.plan.faults_until {
            self.at(next, Event::Fault);
        }
        self.begin_fault(kind, node, other, lasts);
    }

    fn begin_fault(&mut self, kind: Kind, node: usize, other: usize, lasts: u64) {
        self.stats.faults += 1;
        self.note(7 ^ (kind as u64) << 8 ^ (node as u64) << 16);
        self.say(None, || format!("FAULT {kind:?} of {node} (and {other}) for {lasts}"));
        let running = match kind {
            Kind::Pause if self.nodes[node].up && !self.nodes[node].paused => {
                self.nodes[node].paused = true;
                true
            }
            Kind::Crash | Kind::Vanish if self.nodes[node].up => {
                self.crash(node, kind == Kind::Crash, lasts);
                true
            }
            Kind::CutNode => {
                for peer in (0..self.plan.nodes).filter(|&peer| peer != node) {
                    self.cut(node, peer, lasts);
                }
                true
            }
            Kind::CutPair => {
                self.cut(node, other, lasts);
                true
            }
            Kind::CutLink => {
                self.cut_link(node, other, lasts);
                true
            }
            Kind::Slow if self.nodes[node].service == 0 => {
                self.nodes[node].service = self.rng.pick(&[300, 5 * MS, 40 * MS]);
                true
            }
            Kind::Full if !self.nodes[node].full => {
                self.nodes[node].full = true;
                true
            }
            Kind::Damage => {
                self.damage(node);
                false
            }
            Kind::Break => {
                let notice = self.notice();
                self.break_link(node, other, notice);
                false
            }
            _ => false,
        };
        if running {
            self.nodes[node].ailing += 1;
            for token in self.open(node) {
                self.history.ops[token].excused = true;
            }
            self.faults.push(Fault { kind, node, other, running });
            let (index, at) = (self.faults.len() - 1, self.now + lasts);
            self.at(at, Event::EndFault(index));
        }
    }

    fn end_fault(&mut self, index: usize) {
        let fault = self.faults[index].clone();
        if !std::mem::take(&mut self.faults[index].running) {
            return;
        }
        self.say(None, || format!("the end of {:?} of {} (and {})", fault.kind, fault.node, fault.other));
        let Fault { kind, node, other, .. } = fault;
        match kind {
            Kind::Pause => self.resume(node),
            Kind::Crash | Kind::Vanish => self.restart(node),
            Kind::CutNode => {
                for peer in (0..self.plan.nodes).filter(|&peer| peer != node) {
                    self.uncut(node, peer);
                }
            }
            Kind::CutPair => self.uncut(node, other),
            Kind::CutLink => self.uncut_link(node, other),
            Kind::Slow => self.nodes[node].service = 0,
            Kind::Full => self.nodes[node].full = false,
            Kind::Damage | Kind::Break => {}
        }
        // It has a backlog to work off, and connections to make, before it counts as well.
        self.nodes[node].ailing -= 1;
        self.nodes[node].well_at = self.now + WELL_AFTER;
        for token in self.open(node) {
            self.history.ops[token].excused = true;
        }
    }

    fn resume(&mut self, node: usize) {
        if !std::mem::take(&mut self.nodes[node].paused) {
            return;
        }
        let mut backlog = std::mem::take(&mut self.nodes[node].backlog);
        // The loop may look at its timers before its sockets.
        if self.rng.one_in(2) {
            backlog.sort_by_key(|work| !matches!(work, Work::Tick));
        }
        for work in backlog {
            if self.nodes[node].up && self.failure.is_none() {
                self.work(node, work);
            }
        }
    }

    fn crash(&mut self, node: usize, resets: bool, lasts: u64) {
        self.count(node);
        for peer in (0..self.plan.nodes).filter(|&peer| peer != node) {
            let notice = if resets { self.rng.below(2 * MS) } else { self.rng.range(500 * MS, 4 * SECOND) };
            let notice = self.unless_answered(notice, lasts);
            self.break_link(peer, node, notice);
            self.break_link(node, peer, 0);
            self.link(node, peer).known = None;
        }
        for token in self.open(node) {
            self.history.ops[token].abandoned = true;
            self.history.ops[token].unsure = true;
            self.stats.lost_with_node += 1;
            let client = self.history.ops[token].client;
            self.client_goes_on(client);
        }
        let now = self.now;
        let loses = self.plan.mutation == Mutation::LosesWhatItConfirmed;
        let node = &mut self.nodes[node];
        if loses {
            node.engine.forget(now.saturating_sub(20 * MS));
        }
        node.up = false;
        node.paused = false;
        node.backlog.clear();
        node.open.clear();
        node.life += 1;
        for missed in &mut node.missed {
            missed.hints.retain(|hint| hint.durable_at <= now);
            (missed.window, missed.pace) = (None, Pace::default());
        }
    }

    fn restart(&mut self, index: usize) {
        let forgets = self.plan.mutation == Mutation::ForgetsClock;
        let node = &mut self.nodes[index];
        let offset = &mut self.plan.clocks[index].0;
        if *offset != 0 {
            // The wall clock was set meanwhile.
            *offset = self.rng.range(0, 800) as i64 - 400;
        }
        node.clock.borrow_mut().restart(forgets);
        node.coordinator = coordinator(&self.plan, index);
        node.engine.reopen();
        node.up = true;
        node.busy_until = 0;
        node.reads = 0;
        let now = self.now;
        self.on(index, now, Work::Tick);
    }

    fn cut(&mut self, one: usize, other: usize, lasts: u64) {
        self.cut_link(one, other, lasts);
        self.cut_link(other, one, lasts);
    }

    fn cut_link(&mut self, asker: usize, peer: usize, lasts: u64) {
        self.cut[asker * self.plan.nodes + peer] += 1;
        // Some die of it, and that is noticed only when something was not acknowledged for seconds.
        if self.rng.one_in(3) {
            let notice = self.rng.range(SECOND, 5 * SECOND);
            let notice = self.unless_answered(notice, lasts);
            self.break_link(asker, peer, notice);
        }
    }

    fn uncut(&mut self, one: usize, other: usize) {
        self.uncut_link(one, other);
        self.uncut_link(other, one);
    }

    fn uncut_link(&mut self, asker: usize, peer: usize) {
        let index = asker * self.plan.nodes + peer;
        self.cut[index] -= 1;
        if self.cut[index] > 0 {
            return;
        }
        let link = &mut self.links[index];
        let (epoch, stalled) = (link.epoch, std::mem::take(&mut link.stalled));
        link.in_flight -= stalled.iter().filter(|msg| !msg.is_answer()).count();
        for msg in stalled {
            self.travel(Via { asker, peer, epoch }, msg);
        }
    }

    /// Damages a record, unless it is the last readable one of its version or another of its key is damaged.
    fn damage(&mut self, node: usize) {
        let key = self.rng.below(self.plan.keys as u64) as usize;
        let name = self.keys[key].clone();
        let replicas = self.ranked[key].clone();
        let version = self.nodes[node].engine.version(&name);
        let damaged = replicas.iter().any(|&other| self.nodes[other].engine.is_damaged(&name));
        let held = replicas.iter().any(|&other| other != node && self.nodes[other].engine.version(&name) >= version);
        if version.is_some() && held && !damaged {
            self.nodes[node].engine.damage(&name);
            self.say(Some(key), || format!("the record of {node} is damaged, {version:?}"));
        }
    }

    fn heal(&mut self) {
        self.healed = true;
        self.say(None, || "all is well from here".to_owned());
        for index in 0..self.faults.len() {
            self.end_fault(index);
        }
        // Connections that died and were not noticed yet: by now they are.
        for asker in 0..self.plan.nodes {
            for peer in (0..self.plan.nodes).filter(|&peer| peer != asker) {
                let link = self.link(asker, peer);
                let (up, epoch, known) = (link.up, link.epoch, link.known);
                if let Some(known) = known
                    && (!up || known != epoch)
                {
                    self.work(asker, Work::Lost(Via { asker, peer, epoch: known }));
                }
            }
        }
    }

    // ---- the end ----

    /// Reads every key from all of its replicas: what no hint brings is found so.
    fn read_all(&mut self) -> Vec<usize> {
        let mut tokens = Vec::new();
        for key in 0..self.plan.keys {
            let widest = self.history.widest[key];
            if widest > 0 {
                let node = self.rng.below(self.plan.nodes as u64) as usize;
                // Not all at once, or there would be no room for them.
                let at = self.now + key as u64 * 200;
                let what = What::Get(Want::Value);
                let token = self.invoke_at(at, None, node, key, what, quorum(widest, widest));
                self.history.ops[token].excused = true;
                tokens.push(token);
            }
        }
        tokens
    }

    fn finals_are_done(&self) -> bool {
        self.finals.iter().any(|&token| !self.history.ops[token].open())
    }

    fn hints_wait(&self) -> bool {
        self.nodes.iter().any(|node| node.missed.iter().any(|missed| !missed.hints.is_empty()))
    }

    fn judge(&mut self) {
        for token in 0..self.history.ops.len() {
            if self.history.ops[token].open() {
                let key = self.history.ops[token].key;
                return self.fail("answered once", Some(key), format!("{token} never was"));
            }
        }
        for node in 0..self.plan.nodes {
            for name in self.nodes[node].engine.keys() {
                let key = self.key_index[&name];
                let widest = usize::from(self.history.widest[key]);
                if !self.ranked[key][..widest].contains(&node) {
                    return self.fail("no replica beyond from", Some(key), format!("{node} holds it"));
                }
                if let Some(record) = self.nodes[node].engine.record(&name).cloned() {
                    let known = self.history.writer(key, &record).map(|_| ());
                    self.must(known);
                }
            }
            let waiting: usize = self.nodes[node].missed.iter().map(|missed| missed.hints.len()).sum();
            if waiting > 0 {
                return self.fail("what was missed is sent", None, format!("{node} still keeps {waiting} hints"));
            }
            let in_flight = self.nodes[node].coordinator.in_flight();
            if in_flight > 0 {
                return self.fail("bounds", None, format!("{node} has {in_flight} operations in flight at the end"));
            }
        }
        self.converged();
    }

    fn converged(&mut self) {
        for key in 0..self.plan.keys {
            // What was confirmed by nobody has no hints, though a replica may have it.
            let unsure = |op: &Op| op.key == key && op.unsure;
            if !self.finals_are_done() && self.history.ops.iter().any(unsure) {
                continue;
            }
            let replicas = &self.ranked[key][..usize::from(self.history.widest[key])];
            let engines: Vec<_> = replicas.iter().map(|&node| &self.nodes[node].engine).collect();
            let versions: Vec<_> = engines.iter().map(|engine| engine.version(&self.keys[key])).collect();
            let damaged = engines.iter().any(|engine| engine.is_damaged(&self.keys[key]));
            if versions.windows(2).any(|pair| pair[0] != pair[1]) || damaged {
                let text = format!("at {replicas:?}: {versions:?}, damaged: {damaged}");
                return self.fail("replicas converge", Some(key), text);
            }
        }
    }
}

impl Stats {
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.answered += other.answered;
        self.not_enough += other.not_enough;
        self.lost_with_node += other.lost_with_node;
        self.refused_full += other.refused_full;
        self.renewed += other.renewed;
        self.waited_repairs += other.waited_repairs;
        self.hints += other.hints;
        self.hints_dropped += other.hints_dropped;
        self.replayed += other.replayed;
        self.hedges += other.hedges;
        self.repairs += other.repairs;
        self.opened += other.opened;
        self.faults += other.faults;
        self.twice += other.twice;
        self.latencies.extend(&other.latencies);
    }

    pub fn summary(&self) -> String {
        let slow = self.latencies.iter().filter(|&&took| took > 300 * MS).count();
        let short = Self { latencies: Vec::new(), ..self.clone() };
        format!("{short:?}, {slow} of {} took more than 300 ms", self.latencies.len())
    }
}

//! The event loop: what happens when, to whom. What it means is in the files beside this one.
//!
//! Events are ordered by (virtual µs, sequence). Everything that is a node's own work (messages,
//! ticks, news of its connections, clients' requests) waits while the node is paused, and is gone
//! if it crashes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use koltso_cluster::Now;
use koltso_cluster::coordinator::RequestId;
use koltso_cluster::membership::Membership;
use koltso_cluster::mover::Telling;
use koltso_cluster::placement::{NodeIndex, NodeSet, Topology};
use koltso_cluster::plan::{BATCHES, Stage};
use koltso_cluster::wall::{BothClocks, WallWatch};
use koltso_model::{KeyHash, Operation, Quorum, WallTime};
use koltso_testkit::Random;
use koltso_testkit::random::mixed;

use super::check::{Failure, History};
use super::council::Council;
use super::faults::Fault;
use super::network::{Lane, Link, Msg, Via};
use super::node::Node;
use super::plan::{Mode, Mutation, Plan};
use super::stats::Stats;
use super::store::EPOCH_MS;

pub const MS: u64 = 1_000;
pub const SECOND: u64 = 1_000 * MS;
pub const TICK: u64 = 5 * MS;
/// Of a node that has nothing to do, in long runs.
pub const IDLE_TICK: u64 = 400 * MS;
pub const DEADLINE: u64 = SECOND;
/// After the faults: time until operations must succeed.
pub const GRACE: u64 = 2 * SECOND;
/// After the faults, with exchange: until all replicas must be equal, and until deletes must be
/// forgotten.
const EQUAL_WITHIN: u64 = 60 * SECOND;
const FORGOTTEN_WITHIN: u64 = 240 * SECOND;
/// Until hints must have been replayed.
const PATIENCE: u64 = 30 * SECOND;

/// A node's own work.
#[derive(Clone, Debug)]
pub enum Work {
    Deliver(Via, Msg),
    /// A request's turn has come at a slow node.
    Serve(Via, Msg),
    /// With the epoch in which it was asked for.
    ServeSelf(u64, RequestId, Operation<Bytes>),
    Tick,
    /// A link's pause is over, unless it was cut short: then the attempt has another number.
    Dial {
        peer: usize,
        attempt: u64,
    },
    Connected(Via),
    /// A connection, or an attempt to get one, has ended.
    Lost(Via),
    Begin(usize),
    /// The next step of the exchange with a peer.
    Exchange(usize),
    /// What is done every few seconds.
    LookAfter,
    /// What the council has decided last is known to the node.
    Adopt,
    /// It tells the mover how far it is.
    Tell,
}

#[derive(Clone, Debug)]
pub enum Event {
    Node {
        node: usize,
        life: u32,
        work: Work,
    },
    Client(usize),
    Arrival(usize),
    Fault,
    EndFault(usize),
    Heal,
    Council,
    /// What a node has told comes to the mover.
    Told(usize, Telling),
    Scrub,
    Equal,
    Forgotten,
    FinalReads,
    Judge,
}

pub struct Report {
    pub failure: Option<Failure>,
    /// Of all that happened, in order.
    pub hash: u64,
    pub stats: Stats,
    pub trace: Vec<(Option<usize>, String)>,
}

pub struct World {
    pub plan: Plan,
    pub random: Random,
    pub now: u64,
    sequence: u64,
    events: BTreeMap<(u64, u64), Event>,
    pub nodes: Vec<Node>,
    pub links: Vec<Link>,
    /// How many faults cut a connection, by asker and peer.
    pub cut: Vec<u32>,
    pub keys: Vec<Bytes>,
    pub key_index: HashMap<Bytes, usize>,
    pub ranked: Vec<Vec<usize>>,
    pub council: Council,
    /// By key and `from`: who may ever have been asked about it.
    pub allowed: Vec<Vec<NodeSet>>,
    pub history: History,
    /// Which operation a request belongs to: by node, life, and the id without its stage.
    pub owners: HashMap<(usize, u32, u64), usize>,
    /// The operation that is being given to its member: the first request with a new id is its own.
    pub beginning: Option<usize>,
    pub faults: Vec<Fault>,
    /// Who was emptied or put back and is not whole again.
    pub lacking: Option<usize>,
    /// Who was put back and has not met anybody yet: it cannot know.
    pub undoubted: Option<usize>,
    pub healed: bool,
    pub clients_stop: u64,
    pub scrubs: Vec<usize>,
    pub finals: Vec<usize>,
    pub failure: Option<Failure>,
    pub tracing: bool,
    trace: Vec<(Option<usize>, String)>,
    hash: u64,
    pub stats: Stats,
}

/// Topologies take milliseconds to make, and depend on nothing but the number of nodes and who holds data.
pub fn topology(plan: &Plan, me: usize) -> Arc<Topology> {
    type Cache = BTreeMap<(usize, usize, u64, usize), Arc<Topology>>;
    static CACHE: Mutex<Cache> = Mutex::new(BTreeMap::new());
    let (nodes, partitions, holders) = (plan.nodes, plan.partitions, plan.holders);
    let known = (nodes, partitions, holders.0, me);
    let made = CACHE.lock().unwrap().get(&known).cloned();
    made.unwrap_or_else(|| {
        let names: Vec<String> = (0..nodes).map(|node| format!("http://node-{node}:1337")).collect();
        let mut members = Membership::first(&names).unwrap();
        if holders != members.holders() {
            members = members.planned(holders).unwrap();
            for stage in [Stage::Copying, Stage::Joint, Stage::Moved] {
                let all: Vec<_> = (0..BATCHES).map(|batch| (batch, stage)).collect();
                members = members.advanced(&all).unwrap();
            }
        }
        let topology = Arc::new(Topology::of_partitions(&members, &names[me], partitions));
        CACHE.lock().unwrap().insert(known, topology.clone());
        topology
    })
}

pub fn quorum(ack: u8, from: u8) -> Quorum {
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
        let names = (0..).map(|key| Bytes::from(format!("{:x}-{key}", mixed(plan.seed))));
        let keys: Vec<Bytes> =
            names.filter(|name| KeyHash::of(name).partition() < plan.partitions).take(plan.keys).collect();
        let order = topology(&plan, 0);
        let rank = |key: &Bytes| order.readers(KeyHash::of(key), order.replicas_max() as u8).nodes;
        let ranks = |key: &Bytes| rank(key).iter().map(|node| node.at()).collect();
        let mut world = Self {
            random: Random::seeded(mixed(plan.seed ^ 0x6b6f_6c74_736f)),
            now: 0,
            sequence: 0,
            events: BTreeMap::new(),
            nodes: Vec::new(),
            links: (0..count * count * Lane::COUNT).map(|_| Link::default()).collect(),
            cut: vec![0; count * count],
            key_index: keys.iter().cloned().enumerate().map(|(index, key)| (key, index)).collect(),
            ranked: keys.iter().map(ranks).collect(),
            council: Council::new(order.as_seen_by(NodeIndex(0)), &plan),
            allowed: vec![vec![NodeSet::default(); usize::from(plan.from_max) + 1]; keys.len()],
            history: History::new(keys.len(), count),
            keys,
            owners: HashMap::new(),
            beginning: None,
            faults: Vec::new(),
            lacking: None,
            undoubted: None,
            healed: false,
            clients_stop: plan.faults_until + if plan.writes_only || plan.exchanges { 0 } else { GRACE + 400 * MS },
            scrubs: Vec::new(),
            finals: Vec::new(),
            failure: None,
            tracing,
            trace: Vec::new(),
            hash: plan.seed,
            stats: Stats::default(),
            plan,
        };
        world.nodes = (0..count).map(|me| Node::new(&world.plan, me, world.clocks(me).wall)).collect();
        if world.plan.jumps() {
            for node in 0..count {
                world.nodes[node].watch = Some(WallWatch::starting(world.machine_clocks(node)));
            }
        }
        for node in if world.plan.exchanges { 0..count } else { 0..0 } {
            world.start_process(node);
        }
        for node in 0..count {
            let at = world.random.below(TICK);
            world.on(node, at, Work::Tick);
            world.dial_all(node);
        }
        for client in 0..world.plan.clients {
            let at = 100 * MS + world.random.below(50 * MS);
            world.at(at, Event::Client(client));
        }
        if world.plan.mode == Mode::Steady {
            for node in 0..count {
                world.at(200 * MS + node as u64, Event::Arrival(node));
            }
        }
        world.allow();
        if world.plan.moves {
            world.at(SECOND, Event::Council);
            for node in 0..count {
                let at = world.random.below(SECOND);
                world.on(node, at, Work::Tell);
            }
        }
        let until = world.plan.faults_until;
        if !world.plan.faults.is_empty() {
            for chain in 0..world.plan.ailing_max as u64 {
                world.at(250 * MS + chain * 37 * MS, Event::Fault);
            }
        }
        world.at(until, Event::Heal);
        if world.plan.exchanges {
            world.at(until + EQUAL_WITHIN, Event::Equal);
            world.at(until + FORGOTTEN_WITHIN, Event::Forgotten);
            world.at(until + FORGOTTEN_WITHIN + SECOND, Event::FinalReads);
            return world;
        }
        world.at(until + SECOND, Event::Scrub);
        world.at(until + GRACE + 1_900 * MS, Event::FinalReads);
        world
    }

    pub fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((at.max(self.now), self.sequence), event);
    }

    pub fn on(&mut self, node: usize, at: u64, work: Work) {
        let life = self.nodes[node].life;
        self.at(at, Event::Node { node, life, work });
    }

    /// A node that was slow serves at once what waits for its turn.
    pub fn catch_up(&mut self, node: usize) {
        let waits = |event: &Event| match event {
            Event::Node { node: at, work, .. } => *at == node && matches!(work, Work::Serve(..) | Work::ServeSelf(..)),
            _ => false,
        };
        let waiting: Vec<_> = self.events.iter().filter(|(_, event)| waits(event)).map(|(&at, _)| at).collect();
        for at in waiting {
            if let Some(event) = self.events.remove(&at) {
                self.at(self.now, event);
            }
        }
        self.nodes[node].busy_until = self.now;
    }

    /// The true time, in ms since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        EPOCH_MS + self.now / MS
    }

    pub fn note(&mut self, what: u64) {
        self.hash = mixed(self.hash.rotate_left(1) ^ what);
    }

    pub fn say(&mut self, key: Option<usize>, text: impl FnOnce() -> String) {
        if self.tracing {
            self.trace.push((key, format!("{:>10} {}", self.now, text())));
        }
    }

    pub fn fail(&mut self, check: &'static str, key: Option<usize>, text: String) {
        self.say(key, || format!("FAILED {check}: {text}"));
        self.failure.get_or_insert(Failure { check, key, text });
    }

    pub fn must(&mut self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.fail(failure.check, failure.key, failure.text);
        }
    }

    /// The clocks of a node: a monotonic one with an origin of its own, and a wall clock that is
    /// off.
    pub fn clocks(&self, node: usize) -> Now {
        let machine = self.machine_clocks(node);
        let watch = self.nodes.get(node).and_then(|node| node.watch.as_ref());
        let wall = match watch.filter(|_| self.plan.mutation != Mutation::FollowsJumps) {
            Some(watch) => machine.monotonic.saturating_add_signed(watch.offset()),
            None => machine.wall,
        };
        let wall = Duration::from_nanos(wall);
        Now { micros: self.now + 7 * SECOND * (node as u64 + 1), wall: WallTime::since_epoch(wall) }
    }

    /// The clocks of a node's machine, jumps included.
    pub fn machine_clocks(&self, node: usize) -> BothClocks {
        let (offset, drift) = self.plan.clocks[node];
        let drifted = self.now as i64 + self.now as i64 * drift / 1_000_000;
        let jump_ms = self.nodes.get(node).map_or(0, |node| node.jump_ms);
        let wall = ((EPOCH_MS as i64 + offset + jump_ms) * 1000 + drifted) as u64 * 1000;
        BothClocks { monotonic: self.now * 1000, wall, error: 0 }
    }

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
            Event::Council => self.council(),
            Event::Told(node, telling) => self.council_hears(node, telling),
            Event::Equal => self.all_equal(),
            Event::Forgotten => self.all_forgotten(),
            Event::Scrub if self.plan.writes_only => {}
            Event::Scrub => self.scrubs = self.read_all(),
            Event::FinalReads if self.hints_wait() && self.now < self.plan.faults_until + PATIENCE => {
                let at = self.now + 100 * MS;
                self.at(at, Event::FinalReads);
            }
            Event::FinalReads => {
                if self.plan.writes_only {
                    self.converged();
                }
                self.finals = self.read_all();
                let at = self.now + 400 * MS;
                self.at(at, Event::Judge);
            }
            Event::Judge => {}
        }
    }

    pub fn work(&mut self, node: usize, work: Work) {
        match work {
            Work::Deliver(via, msg) => self.deliver(node, via, msg),
            Work::Serve(via, msg) => self.take(node, via, msg),
            Work::ServeSelf(epoch, id, operation) => {
                let outcome = self.execute(node, (epoch, id), &operation);
                self.with_member(node, |member, now, host| member.executed(now, id, outcome, host));
            }
            Work::Tick => self.tick(node),
            Work::Dial { peer, attempt } => self.dial(node, peer, attempt),
            Work::Connected(via) => self.connected(via),
            Work::Lost(via) => self.lost(via),
            Work::Begin(token) => self.begin(node, token),
            Work::Exchange(peer) => self.exchange(node, peer),
            Work::LookAfter => self.look_after(node),
            Work::Adopt => self.adopt(node),
            Work::Tell => self.tell(node),
        }
    }
}

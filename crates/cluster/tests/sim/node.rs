//! A node: the member that ships, and the host that carries out what it decides in this world.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use koltso_cluster::Now;
use koltso_cluster::clock::HybridClock;
use koltso_cluster::coordinator::{Answer, RequestId, Settings, Token};
use koltso_cluster::health::{HEDGE_BURST, HEDGE_SHARE};
use koltso_cluster::member::{Clocks, Host, Member, Observer, QueueFull};
use koltso_cluster::placement::{NodeIndex, Topology};
use koltso_cluster::standing::{Memory, Process};
use koltso_cluster::wall::{WallWatch, Witnesses};
use koltso_model::{KeyHash, Operation, Outcome, Record, Refused, Version, WallTime};
use koltso_testkit::random::mixed;

use super::check::What;
use super::exchange::Exchange;
use super::folder::{Copy, Folder};
use super::hints::PeerHints;
use super::holdings::Agreements;
use super::network::{Msg, Via};
use super::plan::{Mutation, Plan};
use super::store::SimStore;
use super::world::{DEADLINE, IDLE_TICK, MS, TICK, Work, World, topology};

/// How far a clock may be ahead without a jump, in ms: skew, small steps, and the bounds of crashes.
const DRAGGED_MAX_MS: u64 = 20_000;

pub struct Node {
    pub up: bool,
    /// It is down as a machine without power is: it answers nothing.
    pub vanished: bool,
    pub life: u32,
    pub paused: bool,
    pub backlog: Vec<Work>,
    /// Away while it is driven.
    pub member: Option<Box<Member>>,
    /// As it knows the members, also after a crash.
    pub topology: Arc<Topology>,
    clock: Arc<HybridClock>,
    observer: Observer,
    /// The clock's bound, as its file has it.
    pub bound: u64,
    /// The greatest clock that its member saw in this life, and that it ever gave out.
    seen: u64,
    pub given: u64,
    /// Its folder was emptied, or replaced by a copy.
    pub lost_once: bool,
    pub store: SimStore,
    pub folder: Folder,
    pub memory: Memory,
    pub process: Process,
    pub agreements: Agreements,
    /// Away while it is driven.
    pub exchange: Option<Box<Exchange>>,
    /// An earlier copy of its folder, if somebody made one.
    pub copy: Option<Box<Copy>>,
    /// When its next tick is due.
    tick_at: u64,
    /// By peer.
    pub hints: Vec<PeerHints>,
    /// Peers that have connected to it since its last tick, as bits.
    pub arrivals: u64,
    /// µs for each request, and when it is done with those it has.
    pub service: u64,
    pub busy_until: u64,
    pub full: bool,
    /// Of a million writes, those that its disk answers with an error.
    pub disk_errors: u64,
    /// How far the wall clock of its machine has jumped, in ms.
    pub jump_ms: i64,
    /// What it makes of its machine's wall clock, where clocks jump.
    pub watch: Option<WallWatch>,
    /// Peers whose clock agrees with its machine's since its last tick, as bits.
    agree: u64,
    pub ailing: u32,
    /// When it has recovered from its last fault.
    pub well_at: u64,
    pub open: BTreeSet<usize>,
    pub reads: u64,
}

/// A clock that goes on above what its file and log say, with a new bound, which the file has then.
fn clock(plan: &Plan, bound: &mut u64, newest: u64, wall: WallTime) -> Arc<HybridClock> {
    let last = newest.max(*bound);
    *bound = last.max(wall.0) + plan.clock_ahead;
    Arc::new(HybridClock::bounded(last, *bound))
}

fn member(plan: &Plan, topology: &Arc<Topology>, clock: &Arc<HybridClock>) -> Option<Box<Member>> {
    let settings =
        Settings { deadline_micros: DEADLINE, in_flight_max: plan.in_flight_max, in_flight_bytes_max: 64 << 20 };
    Some(Box::new(Member::new(topology.clone(), settings, clock.clone())))
}

impl Node {
    pub fn new(plan: &Plan, me: usize, wall: WallTime) -> Self {
        let mut bound = 0;
        let clock = clock(plan, &mut bound, 0, wall);
        let mut folder = Folder::made(mixed(plan.seed ^ me as u64), wall.ms());
        let (process, memory) = folder.started(plan, me, 0, wall.ms());
        let topology = topology(plan, me);
        Self {
            up: true,
            vanished: false,
            life: 0,
            paused: false,
            backlog: Vec::new(),
            member: member(plan, &topology, &clock),
            topology,
            observer: Observer::new(clock.clone()),
            clock,
            bound,
            seen: 0,
            given: 0,
            lost_once: false,
            store: SimStore::new(plan.storage),
            folder,
            memory,
            process,
            agreements: Agreements::default(),
            exchange: None,
            copy: None,
            tick_at: 0,
            hints: (0..plan.nodes).map(|_| PeerHints::new(plan, 0)).collect(),
            arrivals: 0,
            service: 0,
            busy_until: 0,
            full: false,
            disk_errors: 0,
            jump_ms: 0,
            watch: None,
            agree: 0,
            ailing: 0,
            well_at: 0,
            open: BTreeSet::new(),
            reads: 0,
        }
    }

    pub fn member(&self) -> &Member {
        self.member.as_ref().expect("nobody looks at a member that is driven")
    }

    pub fn crash(&mut self, plan: &Plan, now: u64, vanished: bool) {
        if plan.mutation == Mutation::LosesWhatItConfirmed {
            self.store.forget(now.saturating_sub(20_000));
        }
        self.up = false;
        self.vanished = vanished;
        self.paused = false;
        self.backlog.clear();
        self.open.clear();
        self.life += 1;
        for hints in &mut self.hints {
            hints.crash(plan, now);
        }
    }

    pub fn restart(&mut self, plan: &Plan, wall: WallTime) {
        self.store.reopen();
        let forgets = plan.mutation == Mutation::ForgetsClock;
        let newest = if forgets { 0 } else { self.store.newest_clock() };
        if forgets {
            self.bound = 0;
        }
        self.clock = clock(plan, &mut self.bound, newest, wall);
        self.observer = Observer::new(self.clock.clone());
        self.member = member(plan, &self.topology, &self.clock);
        self.up = true;
        self.vanished = false;
        self.seen = 0;
        self.arrivals = 0;
        self.busy_until = 0;
        self.reads = 0;
        self.tick_at = 0;
    }
}

/// What a member's decisions lead to in this world.
pub struct SimHost<'a> {
    world: &'a mut World,
    node: usize,
}

impl Host for SimHost<'_> {
    fn execute(&mut self, _now: Now, id: RequestId, operation: &Operation<Bytes>) -> Option<Outcome<Bytes>> {
        let node = self.node;
        self.world.check_send(node, node, id, operation);
        if let Some(at) = self.world.service(node) {
            let epoch = self.world.nodes[node].topology.epoch();
            self.world.on(node, at, Work::ServeSelf(epoch, id, operation.clone()));
            return None;
        }
        Some(self.world.execute(node, (u64::MAX, id), operation))
    }

    fn send(&mut self, to: NodeIndex, id: RequestId, operation: &Operation<Bytes>) -> Result<(), QueueFull> {
        self.world.check_send(self.node, to.at(), id, operation);
        let epoch = self.world.nodes[self.node].topology.epoch();
        self.world.queue(self.node, to.at(), Msg::Request { epoch, id, operation: operation.clone() })
    }

    fn ping(&mut self, to: NodeIndex, id: RequestId, clocks: Clocks) {
        // A queue that is full says as much as a missing pong.
        let _ = self.world.queue(self.node, to.at(), Msg::Ping { id, clocks });
    }

    fn answer(&mut self, token: Token, answer: Answer) {
        self.world.answered(self.node, token as usize, answer);
    }

    fn hint(&mut self, to: NodeIndex, record: Record<Bytes>) {
        self.world.hint(self.node, to.at(), record);
    }

    fn persist_clock(&mut self, needed: u64) {
        let bound = needed + self.world.plan.clock_ahead;
        self.world.stats.bounds += 1;
        let persists = self.world.plan.mutation != Mutation::BoundNotPersisted;
        let node = &mut self.world.nodes[self.node];
        if persists {
            node.bound = bound;
        }
        node.clock.raise(bound);
    }
}

impl World {
    /// How far the node's machine is ahead of the time that the node goes by, in ms.
    fn jumped_ms(&self, node: usize) -> i64 {
        let jump = self.nodes[node].watch.as_ref().and_then(WallWatch::jump);
        jump.map_or(0, |nanos| nanos / 1_000_000)
    }

    /// Gives a node's member an event, and a host to carry out what comes of it.
    pub fn with_member<R>(&mut self, node: usize, event: impl FnOnce(&mut Member, Now, &mut SimHost<'_>) -> R) -> R {
        let now = self.clocks(node);
        let mut member = self.nodes[node].member.take().expect("a member is driven by one event at a time");
        let result = event(&mut member, now, &mut SimHost { world: self, node });
        let in_flight = member.coordinator().in_flight();
        self.nodes[node].member = Some(member);
        if in_flight > self.plan.in_flight_max {
            self.fail("bounds", None, format!("{node} has {in_flight} operations in flight"));
        }
        result
    }

    /// When a slow node is done with one more request; `None` if it is not slow.
    pub fn service(&mut self, node: usize) -> Option<u64> {
        let service = self.nodes[node].service;
        if service == 0 {
            return None;
        }
        let at = self.nodes[node].busy_until.max(self.now) + self.random.around(service);
        self.nodes[node].busy_until = at;
        Some(at)
    }

    // ---- requests ----

    /// A peer's request.
    pub fn serve(&mut self, node: usize, via: Via, msg: Msg) {
        let wall = self.clocks(node).wall;
        let answer = match msg {
            Msg::Request { epoch, id, operation } => {
                let key_hash = operation.key().hash();
                let outcome = match self.is_behind(node, epoch, key_hash) {
                    true => Outcome::Refused(Refused::Behind),
                    false => self.admit(node, wall, Some(id), via.asker, &operation),
                };
                Msg::Reply { id, key_hash, outcome }
            }
            Msg::Hint { window, at, record } => {
                let outcome = self.admit(node, wall, None, via.asker, &Operation::Write(record));
                Msg::HintReply { window, at, outcome }
            }
            Msg::Ping { id, clocks } => {
                self.nodes[node].seen = self.nodes[node].seen.max(clocks.clock);
                let Clocks { wall_ms, clock } = self.nodes[node].observer.exchanged(wall, clocks.clock);
                // What the machine's clock says.
                let wall_ms = wall_ms.saturating_add_signed(self.jumped_ms(node));
                Msg::Pong { id, clocks: Clocks { wall_ms, clock } }
            }
            Msg::Exchange(epoch, request) => return self.exchange_asked(node, via, (epoch, &request)),
            Msg::Lookup(key) => return self.looked_up(node, via, &key),
            Msg::Reply { .. } | Msg::HintReply { .. } | Msg::Pong { .. } | Msg::ExchangeReply(_) | Msg::Found(_) => {
                unreachable!("these are answers")
            }
        };
        self.transmit(via, answer);
    }

    /// Whether whoever asked with this epoch may have other replicas in mind.
    fn is_behind(&self, node: usize, epoch: u64, hash: KeyHash) -> bool {
        epoch < self.nodes[node].topology.fence(hash) && self.plan.mutation != Mutation::AnswersThoseBehind
    }

    fn admit(
        &mut self,
        node: usize,
        wall: WallTime,
        id: Option<RequestId>,
        asker: usize,
        operation: &Operation<Bytes>,
    ) -> Outcome<Bytes> {
        if let Operation::Write(record) = operation
            && self.plan.mutation != Mutation::IgnoresServedClocks
            && let Err(why) = self.nodes[node].observer.admit(wall, record)
        {
            let key = self.key_index[record.key.shared()];
            self.fail("versions are plausible", Some(key), format!("{node} refuses {record:?}: {why:?}"));
        }
        if let Operation::Write(record) = operation {
            self.nodes[node].seen = self.nodes[node].seen.max(record.version.clock);
        }
        self.apply(node, id, asker, operation)
    }

    /// What a node writes because of an exchange.
    pub fn take_over(&mut self, node: usize, operation: &Operation<Bytes>) -> Outcome<Bytes> {
        let wall = self.clocks(node).wall;
        self.admit(node, wall, None, node, operation)
    }

    /// What a node's own replica does for its member.
    pub fn execute(
        &mut self,
        node: usize,
        (epoch, id): (u64, RequestId),
        operation: &Operation<Bytes>,
    ) -> Outcome<Bytes> {
        let outcome = match self.is_behind(node, epoch, operation.key().hash()) {
            true => Outcome::Refused(Refused::Behind),
            false => self.apply(node, Some(id), node, operation),
        };
        self.trace_reply(node, id, node, &outcome);
        self.learn(node, outcome)
    }

    /// What a replica does.
    fn apply(
        &mut self,
        node: usize,
        id: Option<RequestId>,
        asker: usize,
        operation: &Operation<Bytes>,
    ) -> Outcome<Bytes> {
        let (mutation, now) = (self.plan.mutation, self.now);
        let record = match operation {
            Operation::Read { .. } if !self.is_whole(node) && mutation != Mutation::ReadsWhileRebuilding => {
                return Outcome::Refused(Refused::Rebuilding);
            }
            Operation::Read { key, want } => {
                let now_ms = self.clocks(node).wall.ms();
                return self.nodes[node].store.read(key.bytes(), *want, now_ms);
            }
            Operation::Write(record) => record,
        };
        if self.nodes[node].full && !record.flags.is_tombstone() {
            return Outcome::Refused(Refused::DiskFull);
        }
        let disk_errors = self.nodes[node].disk_errors;
        if self.random.per_million(disk_errors) {
            return Outcome::Refused(Refused::DiskError);
        }
        if mutation == Mutation::ConfirmsWithoutApplying && node == asker
            || mutation == Mutation::IgnoresHints && id.is_none()
            || mutation == Mutation::IgnoresRepairs && id.is_some_and(|id| id.0 as u8 >= 3)
        {
            return Outcome::Applied;
        }
        self.arrives(node, record);
        let outcome = self.nodes[node].store.write(record, now, mutation);
        let key = self.key_index[record.key.shared()];
        self.say(Some(key), || format!("{node} takes {:?} of {asker}: {outcome:?}", record.version));
        outcome
    }

    // ---- replies ----

    /// An outcome on its way to the member, which will have seen its version.
    fn learn(&mut self, node: usize, outcome: Outcome<Bytes>) -> Outcome<Bytes> {
        if self.plan.mutation == Mutation::SupersededIsApplied && matches!(outcome, Outcome::Superseded(_)) {
            return Outcome::Applied;
        }
        let clock = outcome.version().map_or(0, |version| version.clock);
        self.nodes[node].seen = self.nodes[node].seen.max(clock);
        outcome
    }

    /// An answer of a peer.
    pub fn heard(&mut self, node: usize, via: Via, msg: Msg) {
        let peer = NodeIndex(via.peer as u8);
        match msg {
            Msg::Reply { id, key_hash, outcome } => {
                self.note(4 ^ id.0.rotate_left(8) ^ node as u64);
                self.trace_reply(node, id, via.peer, &outcome);
                if matches!(outcome, Outcome::Refused(Refused::Behind)) {
                    self.stats.behind += 1;
                    let at = self.now + MS + self.random.below(MS);
                    self.on(node, at, Work::Adopt);
                }
                let outcome = self.learn(node, outcome);
                let other = self.credited_too(node, via.peer, id);
                let done = self.with_member(node, |member, now, host| {
                    let mut done = member.replied(now, peer, id, key_hash, outcome.borrowed(), None);
                    if let Some(other) = other {
                        done = done.and(member.replied(now, other, id, key_hash, outcome.borrowed(), None));
                    }
                    member.carry_out(now, host);
                    done
                });
                if let Err(sentence) = done {
                    self.fail("replies are believed", None, format!("{node} of {}: {sentence}", via.peer));
                }
            }
            Msg::Pong { id, clocks } => {
                self.nodes[node].seen = self.nodes[node].seen.max(clocks.clock);
                let now_ms = self.clocks(node).wall.ms();
                let lived_ms = clocks.wall_ms.max(WallTime(clocks.clock).ms()).min(now_ms);
                self.nodes[node].memory.heard(via.peer as u16, lived_ms);
                let skew = self.with_member(node, |member, now, _| member.ponged(now, peer, id, clocks));
                let jump_ms = self.jumped_ms(node);
                let skew = skew.map(|skew| skew.beside(jump_ms));
                if skew.is_some_and(|skew| skew.agrees()) {
                    self.nodes[node].agree |= 1 << via.peer;
                }
                if let Some(Err(sentence)) = skew.map(|skew| skew.check()) {
                    if self.plan.jumps() {
                        return self.break_link(node, via.peer, 0);
                    }
                    self.fail("clocks are judged right", None, format!("{node} of {}: {sentence}", via.peer));
                }
            }
            Msg::HintReply { window, at, outcome } => self.hint_answered(node, via.peer, window, at, &outcome),
            Msg::ExchangeReply(reply) => self.exchange_answered(node, via.peer, reply),
            Msg::Found(record) => self.damage_answered(node, via.peer, record),
            Msg::Request { .. } | Msg::Hint { .. } | Msg::Ping { .. } | Msg::Exchange(..) | Msg::Lookup(_) => {
                unreachable!("these are requests")
            }
        }
    }

    /// A defect: a reply counts for another replica, too.
    fn credited_too(&self, node: usize, peer: usize, id: RequestId) -> Option<NodeIndex> {
        if self.plan.mutation != Mutation::CountsRepliesTwice {
            return None;
        }
        let token = self.owners.get(&(node, self.nodes[node].life, id.operation()))?;
        let op = &self.history.ops[*token];
        let replicas = &self.ranked[op.key][..usize::from(op.from)];
        replicas.iter().find(|&&other| other != peer && other != node).map(|&other| NodeIndex(other as u8))
    }

    fn trace_reply(&mut self, node: usize, id: RequestId, peer: usize, outcome: &Outcome<Bytes>) {
        if self.tracing {
            let life = self.nodes[node].life;
            let owner = self.owners.get(&(node, life, id.operation())).copied();
            let key = owner.map(|token| self.history.ops[token].key);
            self.say(key, || format!("{node} hears of {peer} for {owner:?} stage {}: {outcome:?}", id.0 as u8));
        }
    }

    // ---- time ----

    /// A node that has nothing to do ticks seldom where a run is long: it must come to its end.
    fn pause_of(&self, node: usize) -> u64 {
        let Node { hints, arrivals, .. } = &self.nodes[node];
        let idle = self.plan.exchanges && *arrivals == 0 && self.nodes[node].member().coordinator().in_flight() == 0;
        match idle {
            true if hints.iter().any(|hints| hints.waiting() > 0) => 20 * TICK,
            true => IDLE_TICK,
            false => TICK,
        }
    }

    /// A node ticks soon, whatever it had planned.
    pub fn tick_soon(&mut self, node: usize) {
        let at = self.now + TICK;
        if self.nodes[node].tick_at > at {
            self.nodes[node].tick_at = at;
            self.on(node, at, Work::Tick);
        }
    }

    pub fn tick(&mut self, node: usize) {
        if self.now < self.nodes[node].tick_at {
            return;
        }
        let at = self.now + self.pause_of(node);
        self.nodes[node].tick_at = at;
        self.on(node, at, Work::Tick);
        let (clocks, agree) = (self.machine_clocks(node), std::mem::take(&mut self.nodes[node].agree));
        let witnesses = Witnesses::Peers { nodes: self.plan.nodes as u32, agree };
        if let Some(watch) = &mut self.nodes[node].watch {
            watch.look(clocks, witnesses);
        }
        self.with_member(node, |member, now, host| member.tick(now, host));
        let arrivals = std::mem::take(&mut self.nodes[node].arrivals);
        for peer in self.peers(node).filter(|peer| arrivals >> peer & 1 == 1) {
            self.dial_now(node, peer);
        }
        self.keep_hints(node);
        self.check_node(node);
    }

    // ---- checks ----

    pub fn check_send(&mut self, node: usize, to: usize, id: RequestId, operation: &Operation<Bytes>) {
        self.note(5 ^ id.0.rotate_left(8) ^ (to as u64) << 4 ^ node as u64);
        let name = (node, self.nodes[node].life, id.operation());
        let beginning = self.beginning;
        let token = match self.owners.get(&name) {
            Some(&token) => token,
            None => {
                let Some(token) = beginning else {
                    return self.fail("no replica beyond from", None, format!("{id:?} of {node} belongs to nothing"));
                };
                self.beginning = None;
                self.owners.insert(name, token);
                token
            }
        };
        let (key, from, what, known) = {
            let op = &self.history.ops[token];
            (op.key, usize::from(op.from), op.what, op.version)
        };
        self.say(Some(key), || format!("{node} asks {to} for {token} stage {}: {operation:?}", id.0 as u8));
        if *operation.key().shared() != self.keys[key] || !self.may_hold(to, key, from) {
            self.fail("no replica beyond from", Some(key), format!("{node} asks {to} for {token}: {operation:?}"));
        }
        let Operation::Write(record) = operation else { return };
        if matches!(what, What::Put | What::Delete) {
            if record.version != known {
                self.check_version(node, token, record.version);
            }
            if usize::from(record.flags.from()) != from {
                self.fail("a record knows its from", Some(key), format!("{token}: {record:?}"));
            }
            let done = self.history.versioned(token, record.version);
            self.must(done);
        }
        let writer = self.history.writer(key, record).map(|_| ());
        self.must(writer);
    }

    /// A version that a node gives out is above all that it gave out in any life, and above all
    /// that it saw in this one.
    fn check_version(&mut self, node: usize, token: usize, version: Version) {
        let key = self.history.ops[token].key;
        let Node { seen, given, .. } = self.nodes[node];
        if version.clock <= given {
            let text = format!("{node} gives {token} {version:?}, and gave out {given} before");
            self.fail("a clock goes forward", Some(key), text);
        } else if version.clock <= seen {
            let text = format!("{node} gives {token} {version:?}, and has seen {seen}");
            self.fail("a clock goes on above what it saw", Some(key), text);
        }
        self.nodes[node].given = version.clock;
    }

    /// A jump is in no clock, nor in what was made by one.
    fn check_jumps(&mut self, node: usize) {
        let last = WallTime(self.nodes[node].clock.last()).ms();
        let right = self.machine_clocks(node).wall / 1_000_000;
        let right = right.saturating_add_signed(-self.nodes[node].jump_ms);
        if self.plan.looks_inside && last > right + DRAGGED_MAX_MS {
            self.fail("jumps drag no clock", None, format!("{node} is at {last} ms, and it is {right}"));
        }
    }

    fn check_node(&mut self, node: usize) {
        if self.plan.jumps() {
            self.check_jumps(node);
        }
        for &token in &self.nodes[node].open {
            let op = &self.history.ops[token];
            if op.begun.is_some_and(|begun| self.now - begun >= DEADLINE) {
                let key = op.key;
                return self.fail("answered by the deadline", Some(key), format!("{token} is not, at {node}"));
            }
        }
        let health = self.nodes[node].member().coordinator().health();
        let (mut unanswered, mut hedges) = (0, 0);
        for peer in 0..self.plan.nodes {
            unanswered = unanswered.max(health.peer(NodeIndex(peer as u8)).unanswered());
            hedges += health.peer(NodeIndex(peer as u8)).hedges;
        }
        // What outbox and kernels hold, a few requests of each operation, and those of operations
        // that are gone.
        let most = 1024 + self.plan.in_flight_max * 4;
        if unanswered as usize > most {
            self.fail("bounds", None, format!("{node} counts {unanswered} unanswered requests"));
        }
        let reads = self.nodes[node].reads;
        if hedges > reads / u64::from(HEDGE_SHARE) + u64::from(HEDGE_BURST) {
            self.fail("bounds", None, format!("{node} hedged {hedges} of {reads} reads"));
        }
    }

    /// Adds what a member counted in its life.
    pub fn count(&mut self, node: usize) {
        let coordinator = self.nodes[node].member().coordinator();
        self.stats.renewed += coordinator.counters().renewed;
        self.stats.waited_repairs += coordinator.counters().repairs_waited_for;
        for peer in 0..self.plan.nodes {
            let peer = coordinator.health().peer(NodeIndex(peer as u8));
            self.stats.hedges += peer.hedges;
            self.stats.repairs += peer.repairs;
            self.stats.opened += peer.opened;
        }
    }
}

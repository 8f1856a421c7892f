//! Nodes that only exchange: whatever they have at first, they end with the same.
//!
//! The nodes are lists in memory, which forget deletes as the engine does; messages take no time,
//! and the asker's steps are mixed with writes. `KOLTSO_SEED=n` repeats a run.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use koltso_cluster::Now;
use koltso_cluster::exchange::answering::Answering;
use koltso_cluster::exchange::board::{self, Board};
use koltso_cluster::exchange::comparison::{Comparison, Step};
use koltso_cluster::exchange::pair::Pair;
use koltso_cluster::exchange::{Holdings, Listed, NotReady};
use koltso_cluster::placement::{NodeIndex, Topology};
use koltso_model::{
    Flags, Item, Key, KeyHash, LEAVES, LeafSet, Record, Standing, Told, Version, WallTime, digest_word,
};
use koltso_testkit::random::{Random, seed_or};

const BEGIN_MS: u64 = 1_700_000_000_000;
/// Real keys have hashes that nobody chooses; these lie in few partitions, so that they meet.
const KEYS: u64 = 300;

fn wall(now: u64) -> WallTime {
    WallTime::from_ms(BEGIN_MS + now / 1000)
}

fn leaf_of(hash: KeyHash) -> usize {
    (hash.0 >> 44) as usize % LEAVES
}

fn is_absent(record: &Record<Bytes>, now_ms: u64) -> bool {
    record.flags.is_tombstone() || (record.expires_at_ms != 0 && record.expires_at_ms <= now_ms)
}

struct Store {
    now: u64,
    number: usize,
    topology: Arc<Topology>,
    records: BTreeMap<Bytes, Record<Bytes>>,
    leaves: HashMap<(u8, u16), Box<[u64; LEAVES]>>,
    standing: Standing,
    forgotten: u64,
    horizon: u64,
    arrivals: HashMap<(u8, u16), u32>,
    bounds: HashMap<(u8, u16), u64>,
    agreed: u64,
    /// Hints of this node for others are as old as this.
    hints: u64,
    /// A partition that it cannot list.
    unlisted: Option<u16>,
}

impl Store {
    fn is_mine(&self, from: u8, partition: u16) -> bool {
        self.topology.replicas_of(usize::from(partition), from).contains(NodeIndex(self.number as u8))
    }

    fn count(&mut self, record: &Record<Bytes>) {
        let (from, hash) = (record.flags.from(), record.key.hash());
        let leaves = self.leaves.entry((from, hash.partition() as u16)).or_insert_with(|| Box::new([0; LEAVES]));
        leaves[leaf_of(hash)] ^= digest_word(record.version);
    }

    /// What compaction does.
    fn forget(&mut self) {
        let now_ms = wall(self.now).ms();
        let gone: Vec<Bytes> = self
            .records
            .values()
            .filter(|record| {
                let (from, partition) = (record.flags.from(), record.key.hash().partition() as u16);
                let bound = self.bounds.get(&(from, partition)).copied().unwrap_or(0);
                let goes = is_absent(record, now_ms) || !self.is_mine(from, partition);
                goes && record.version.clock <= bound
            })
            .map(|record| record.key.shared().clone())
            .collect();
        for key in gone {
            let record = self.records.remove(&key).unwrap();
            self.count(&record);
            if is_absent(&record, now_ms) {
                self.forgotten = self.forgotten.max(record.version.clock);
            }
        }
    }
}

impl Holdings for Store {
    fn told(&self) -> Told {
        let mut froms = 0;
        for record in self.records.values() {
            froms |= 1 << (record.flags.from() - 1);
        }
        let settled = board::settled(wall(self.now)).min(self.hints);
        Told { standing: self.standing, settled, forgotten: self.forgotten, agreed: self.agreed, froms }
    }

    fn root(&self, from: u8, partition: u16) -> u64 {
        self.leaves(from, partition).iter().fold(0, |all, leaf| all ^ leaf)
    }

    fn leaves(&self, from: u8, partition: u16) -> [u64; LEAVES] {
        self.leaves.get(&(from, partition)).map_or([0; LEAVES], |leaves| **leaves)
    }

    fn arrivals(&self, from: u8, partition: u16) -> u32 {
        self.arrivals.get(&(from, partition)).copied().unwrap_or(0)
    }

    fn looks_up_to(&mut self, clock: u64) {
        self.horizon = self.horizon.max(clock);
    }

    fn agreed(&mut self, from: u8, partition: u16, arrivals: u32, clock: u64) {
        if self.arrivals(from, partition) == arrivals {
            self.bounds.insert((from, partition), clock);
        }
    }

    fn list(&mut self, leaves: &[(u16, LeafSet)], bytes_max: usize) -> Result<Vec<Vec<Listed>>, NotReady> {
        let now_ms = wall(self.now).ms();
        let mut lists = Vec::new();
        let mut bytes = 0;
        if leaves.first().is_some_and(|(partition, _)| self.unlisted == Some(*partition)) {
            return Err(NotReady);
        }
        for (partition, set) in leaves {
            if bytes > bytes_max || self.unlisted == Some(*partition) {
                break;
            }
            let mut list = Vec::new();
            for (key, record) in &self.records {
                let (hash, leaf) = (record.key.hash(), leaf_of(record.key.hash()));
                if hash.partition() == usize::from(*partition) && set[leaf / 64] & (1 << (leaf % 64)) != 0 {
                    let (version, from) = (record.version, record.flags.from());
                    let item = Item { hash: hash.0 as u32, version, from, absent: is_absent(record, now_ms) };
                    bytes += key.len();
                    list.push(Listed { item, key: key.clone() });
                }
            }
            lists.push(list);
        }
        Ok(lists)
    }

    fn newest(&mut self, key: &[u8]) -> Option<Record<Bytes>> {
        self.records.get(key).cloned()
    }

    fn apply(&mut self, record: &Record<Bytes>) -> bool {
        let (from, partition) = (record.flags.from(), record.key.hash().partition() as u16);
        if record.version.clock <= self.horizon {
            *self.arrivals.entry((from, partition)).or_default() += 1;
            self.bounds.remove(&(from, partition));
        }
        let key = record.key.shared().clone();
        if self.records.get(&key).is_none_or(|standing| standing.version < record.version) {
            self.count(record);
            if let Some(old) = self.records.insert(key, record.clone()) {
                self.count(&old);
            }
        }
        true
    }
}

struct Node {
    store: Store,
    board: Board,
    comparisons: Vec<Option<(Comparison, Answering)>>,
}

struct World {
    now: u64,
    nodes: Vec<Node>,
    rng: Random,
}

impl World {
    fn new(seed: u64, nodes: usize) -> Self {
        let names: Vec<String> = (0..nodes).map(|n| format!("http://node-{n}:1337")).collect();
        let node = |number: usize| {
            let topology = Arc::new(Topology::new(&names, &names[number]).unwrap());
            let pair = |peer| Pair::new(topology.clone(), NodeIndex(peer as u8));
            let comparison =
                |peer| (peer != number).then(|| (Comparison::new(pair(peer), 0), Answering::new(pair(peer))));
            let store = Store {
                now: 0,
                number,
                topology: topology.clone(),
                records: BTreeMap::new(),
                leaves: HashMap::new(),
                standing: Standing::Whole,
                forgotten: 0,
                horizon: 0,
                arrivals: HashMap::new(),
                bounds: HashMap::new(),
                agreed: 0,
                hints: u64::MAX,
                unlisted: None,
            };
            Node { store, board: Board::new(topology.clone()), comparisons: (0..nodes).map(comparison).collect() }
        };
        Self { now: 0, nodes: (0..nodes).map(node).collect(), rng: Random::seeded(seed) }
    }

    fn now(&self) -> Now {
        Now { micros: self.now, wall: wall(self.now) }
    }

    /// One step of one pair, if it has one to make; when the next is due otherwise.
    fn step(&mut self, asker: usize, peer: usize, is_up: bool) -> Option<u64> {
        let now = self.now();
        let Node { store, board, comparisons } = &mut self.nodes[asker];
        store.now = self.now;
        let (comparison, _) = comparisons[peer].as_mut().unwrap();
        let request = match comparison.step(now, board, store) {
            Step::Wait(until) => return Some(until),
            Step::Ask(request) => request,
        };
        if !is_up {
            comparison.lost(self.now + 1_000_000);
            board.lost(NodeIndex(peer as u8));
            return None;
        }
        let Node { store, board, comparisons } = &mut self.nodes[peer];
        store.now = self.now;
        let (_, answering) = comparisons[asker].as_mut().unwrap();
        let reply = answering.answer(now.wall, (1, &request), board, store).unwrap();
        let Node { store, board, comparisons } = &mut self.nodes[asker];
        comparisons[peer].as_mut().unwrap().0.answered(now, reply, board, store).unwrap();
        None
    }

    fn run(&mut self, seconds: u64, down: &[usize]) {
        let until = self.now + seconds * 1_000_000;
        while self.now < until {
            let mut next = until;
            for asker in 0..self.nodes.len() {
                for peer in (0..self.nodes.len()).filter(|&peer| peer != asker) {
                    if down.contains(&asker) {
                        continue;
                    }
                    match self.step(asker, peer, !down.contains(&peer)) {
                        Some(at) => next = next.min(at),
                        None => next = self.now,
                    }
                }
            }
            for node in &mut self.nodes {
                if node.store.standing != Standing::Whole && node.board.progress(node.store.told().froms).is_done() {
                    node.store.standing = Standing::Whole;
                    node.board.stands(Standing::Whole, wall(self.now));
                }
            }
            self.now = next.max(self.now + 1_000);
        }
        for node in &mut self.nodes {
            node.store.now = self.now;
            node.store.forget();
        }
    }

    fn record(&mut self, from_max: u64) -> Record<Bytes> {
        let key = Bytes::from(format!("key {}", self.rng.below(KEYS)));
        let clock = WallTime::from_ms(wall(self.now).ms()).0 + self.rng.below(65_536);
        let version = Version::new(clock, self.rng.below(3) as u16);
        let flags = Flags::new(1 + self.rng.below(from_max) as u8);
        let deleted = self.rng.one_in(4);
        let value = if deleted { Bytes::new() } else { Bytes::from(format!("value {}", self.rng.below(1 << 30))) };
        let expires_at_ms =
            if !deleted && self.rng.one_in(6) { wall(self.now).ms() + self.rng.below(200_000) } else { 0 };
        let flags = if deleted { flags.tombstone() } else { flags };
        Record { key: Key::new(key), value, version, expires_at_ms, flags, attributes: Bytes::new() }
    }

    /// Writes a record to some of its replicas, at least one, and returns it.
    fn write(&mut self, from_max: u64, down: &[usize]) -> Option<Record<Bytes>> {
        let record = self.record(from_max);
        let replicas = self.nodes[0].store.topology.replicas_of(record.key.hash().partition(), record.flags.from());
        let mut up: Vec<usize> = replicas.iter().map(|node| node.at()).filter(|node| !down.contains(node)).collect();
        // Clients hear of a write that a quorum of those has that are up.
        if up.len() * 2 <= replicas.len() {
            return None;
        }
        let keep = up.len() - self.rng.below(up.len() as u64) as usize;
        for at in (1..up.len()).rev() {
            up.swap(at, self.rng.below(at as u32 + 1) as usize);
        }
        for &node in &up[..keep.max(replicas_needed(record.flags.from()))] {
            self.nodes[node].store.apply(&record);
        }
        Some(record)
    }

    /// All replicas of a record have the same, and it is `newest`.
    fn must_have(&self, newest: &BTreeMap<Bytes, Record<Bytes>>, when: &str) {
        let now_ms = wall(self.now).ms();
        for record in newest.values() {
            let replicas = self.nodes[0].store.topology.replicas_of(record.key.hash().partition(), record.flags.from());
            for node in replicas.iter() {
                let found = self.nodes[node.at()].store.records.get(record.key.bytes());
                let found = found.filter(|found| !is_absent(found, now_ms));
                let wanted = (!is_absent(record, now_ms)).then_some(record);
                assert_eq!(found, wanted, "{when}: node {node:?}, {record:?}");
            }
        }
    }

    /// Nobody has a value that was deleted, or an older one, also where it should have none.
    fn nothing_is_back(&self, newest: &BTreeMap<Bytes, Record<Bytes>>, when: &str) {
        for (number, node) in self.nodes.iter().enumerate() {
            for (key, record) in &node.store.records {
                assert_eq!(Some(record), newest.get(key), "{when}: node {number}");
            }
        }
    }

    fn nothing_says_absent(&self, when: &str) {
        let now_ms = wall(self.now).ms();
        for Node { store, .. } in &self.nodes {
            if let Some(record) = store.records.values().find(|record| is_absent(record, now_ms)) {
                let place = (record.flags.from(), record.key.hash().partition() as u16);
                panic!(
                    "{when}: node {} has {record:?} of {place:?}, agreed {:?}",
                    store.number,
                    store.bounds.get(&place)
                );
            }
        }
    }
}

fn replicas_needed(from: u8) -> usize {
    usize::from(from) / 2 + 1
}

fn note(newest: &mut BTreeMap<Bytes, Record<Bytes>>, record: Record<Bytes>) {
    let key = record.key.shared().clone();
    if newest.get(&key).is_none_or(|standing| standing.version < record.version) {
        newest.insert(key, record);
    }
}

#[test]
fn whatever_replicas_have_they_end_equal_and_forget_deletes() {
    for seed in 0..12_u64 {
        let seed = seed_or("whatever_replicas_have", seed);
        let nodes = 2 + (seed % 4) as usize;
        let mut world = World::new(seed, nodes);
        let mut newest = BTreeMap::new();
        for phase in 0..4 {
            let when = format!("KOLTSO_SEED={seed} phase {phase}");
            let away: Vec<usize> = (0..nodes).filter(|_| nodes > 2 && world.rng.one_in(nodes as u64)).take(1).collect();
            for _ in 0..60 {
                if let Some(record) = world.write(nodes.min(3) as u64, &away) {
                    note(&mut newest, record);
                }
                if world.rng.one_in(5) {
                    world.run(3, &away);
                }
                world.now += 1_000 + world.rng.below(1_000_000);
            }
            world.run(60, &away);
            world.run(60, &[]);
            world.must_have(&newest, &when);
            for _ in 0..5 {
                world.run(60, &[]);
            }
            world.must_have(&newest, &when);
            world.nothing_is_back(&newest, &when);
            world.nothing_says_absent(&when);
        }
    }
}

/// A client can choose keys of which one partition has too many to be listed.
#[test]
fn a_partition_that_cannot_be_listed_holds_up_no_other() {
    for seed in 0..4_u64 {
        let seed = seed_or("a_partition_that_cannot_be_listed", seed);
        let mut world = World::new(seed, 2);
        let mut newest = BTreeMap::new();
        while newest.len() < 60 {
            let record = world.record(2);
            if record.flags.from() == 2 && !is_absent(&record, u64::MAX >> 20) {
                world.nodes[newest.len() % 2].store.apply(&record);
                note(&mut newest, record);
            }
        }
        let partition = newest.values().next().unwrap().key.hash().partition() as u16;
        let unlisting = world.rng.below(2_usize);
        world.nodes[unlisting].store.unlisted = Some(partition);
        world.run(120, &[]);
        let of_it = |record: &Record<Bytes>| record.key.hash().partition() as u16 == partition;
        let others =
            newest.iter().filter(|(_, record)| !of_it(record)).map(|(key, record)| (key.clone(), record.clone()));
        world.must_have(&others.collect(), &format!("KOLTSO_SEED={seed}"));
        let alone = newest.keys().next().unwrap();
        assert!(world.nodes.iter().any(|node| !node.store.records.contains_key(alone)), "nobody could list it");
        world.nodes[unlisting].store.unlisted = None;
        world.run(120, &[]);
        world.must_have(&newest, &format!("KOLTSO_SEED={seed}, all can be listed"));
    }
}

fn value_of_both(world: &World, key: &str, age_ms: u64) -> Record<Bytes> {
    let clock = WallTime::from_ms(wall(world.now).ms() - age_ms).0;
    let (version, flags) = (Version::new(clock, 1), Flags::new(2));
    let (key, value) = (Key::new(Bytes::from(key.to_owned())), Bytes::from_static(b"value"));
    Record { key, value, version, expires_at_ms: 0, flags, attributes: Bytes::new() }
}

/// Found in review: the handshake that told it so came after the round had begun, which went on as
/// that of a node that is sure of itself.
#[test]
fn a_node_that_is_doubted_when_it_dials_brings_nothing_back() {
    let mut world = World::new(11, 2);
    world.now += 3_600_000_000;
    let record = value_of_both(&world, "deleted since", 600_000);
    world.nodes[0].store.apply(&record);
    // The other has deleted it, and forgotten that.
    world.nodes[1].store.forgotten = record.version.clock + 1;
    let now = world.now();
    let Node { store, board, comparisons } = &mut world.nodes[0];
    store.now = now.micros;
    let (comparison, _) = comparisons[1].as_mut().unwrap();
    let Step::Ask(introduction) = comparison.step(now, board, store) else { panic!("it introduces itself") };
    store.standing = Standing::Rebuilding;
    board.doubts(now.wall);
    board.stands(Standing::Rebuilding, now.wall);
    let Node { store, board, comparisons } = &mut world.nodes[1];
    store.now = now.micros;
    let reply = comparisons[0].as_mut().unwrap().1.answer(now.wall, (1, &introduction), board, store).unwrap();
    let Node { store, board, comparisons } = &mut world.nodes[0];
    comparisons[1].as_mut().unwrap().0.answered(now, reply, board, store).unwrap();
    world.run(120, &[]);
    let key = record.key.shared();
    assert_eq!(world.nodes[1].store.records.get(key), None, "it came back");
    assert!(
        world.nodes[0].store.records.get(key).is_none_or(|found| is_absent(found, u64::MAX >> 20)),
        "it is still there"
    );
    assert_eq!(world.nodes[0].store.standing, Standing::Whole);
}

/// The standing may change between any two steps.
#[test]
fn what_was_planned_by_a_node_that_was_sure_of_itself_is_not_sent() {
    for steps in 1..12 {
        let mut world = World::new(12, 2);
        world.now += 3_600_000_000;
        let record = value_of_both(&world, "deleted since", 600_000);
        let other = value_of_both(&world, "never deleted", 600_000);
        for node in 0..2 {
            world.nodes[node].store.apply(&other);
        }
        world.nodes[0].store.apply(&record);
        world.nodes[1].store.forgotten = record.version.clock + 1;
        for _ in 0..steps {
            if let Some(until) = world.step(0, 1, true) {
                world.now = world.now.max(until);
            }
        }
        if world.nodes[1].store.records.contains_key(record.key.shared()) {
            continue;
        }
        world.nodes[0].store.standing = Standing::Rebuilding;
        let now = world.now();
        world.nodes[0].board.doubts(now.wall);
        world.nodes[0].board.stands(Standing::Rebuilding, now.wall);
        world.run(120, &[]);
        assert!(!world.nodes[1].store.records.contains_key(record.key.shared()), "it came back after {steps} steps");
    }
}

/// Two looks at a key that is written all the time are never at the same moment.
#[test]
fn a_key_that_is_written_all_the_time_holds_up_no_agreement() {
    let mut world = World::new(13, 2);
    world.now += 3_600_000_000;
    let began = clock_of(&world);
    let mut number = 0;
    while world.now < 3_600_000_000 + 400_000_000 {
        // The one that asks has always one write more.
        let record = value_of_both(&world, "hot", 0);
        let record = Record { version: Version::new(record.version.clock + number, 1), ..record };
        number += 1;
        let (first, second) = if number % 2 == 0 { (0, 1) } else { (1, 0) };
        world.nodes[first].store.apply(&record);
        let until = world.now + 400_000;
        for (asker, peer) in [(0, 1), (1, 0)] {
            while world.now < until && world.step(asker, peer, true).is_none() {}
        }
        world.nodes[second].store.apply(&record);
        world.now = until;
    }
    let partition = value_of_both(&world, "hot", 0).key.hash().partition() as u16;
    for node in &world.nodes {
        let bound = node.store.bounds.get(&(2, partition)).copied().unwrap_or(0);
        assert!(bound > began, "node {} has agreed on nothing", node.store.number);
    }
}

fn clock_of(world: &World) -> u64 {
    WallTime::from_ms(wall(world.now).ms()).0
}

//! What a node has, as the exchange sees it: digests, late arrivals, agreements, and the compaction
//! that drops what all have agreed on.

use std::collections::HashMap;

use bytes::Bytes;
use koltso_cluster::exchange::board;
use koltso_cluster::exchange::{Holdings, Listed, NotReady};
use koltso_cluster::placement::NodeIndex;
use koltso_model::{Item, KeyHash, LEAVES, LeafSet, Operation, Outcome, Record, Standing, Told, WallTime, digest_word};

use super::plan::Mutation;
use super::world::World;

/// What an agreement is worth less than its moment.
const MARGIN_MS: u64 = board::MARGIN_S as u64 * 1000;

/// What a process knows of agreements; a start knows of none.
#[derive(Default)]
pub struct Agreements {
    horizon: u64,
    arrivals: HashMap<(u8, u16), u32>,
    bounds: HashMap<(u8, u16), u64>,
    /// The `from`s of which there were records, a bit each.
    froms: u64,
    /// As [`Told::agreed`].
    pub agreed: u64,
    /// For a mutation: roots as they were first.
    first_roots: HashMap<(u8, u16), u64>,
}

pub fn place(record: &Record<Bytes>) -> (u8, u16) {
    (record.flags.from(), record.key.hash().partition() as u16)
}

pub fn is_absent(record: &Record<Bytes>, now_ms: u64) -> bool {
    record.flags.is_tombstone() || (record.expires_at_ms != 0 && record.expires_at_ms <= now_ms)
}

fn leaf_of(hash: KeyHash) -> usize {
    (hash.0 >> 44) as usize % LEAVES
}

impl World {
    pub fn is_replica(&self, node: usize, (from, partition): (u8, u16)) -> bool {
        self.nodes[node].topology.replicas_of(usize::from(partition), from).contains(NodeIndex(node as u8))
    }

    /// A record is about to be taken in: what may be dropped some day and comes late takes the
    /// agreement on its partition back.
    pub fn arrives(&mut self, node: usize, record: &Record<Bytes>) {
        let place = place(record);
        let droppable = record.flags.is_tombstone() || record.expires_at_ms != 0 || !self.is_replica(node, place);
        let agreements = &mut self.nodes[node].agreements;
        agreements.froms |= 1 << (place.0 - 1);
        if droppable && record.version.clock <= agreements.horizon {
            *agreements.arrivals.entry(place).or_default() += 1;
            agreements.bounds.remove(&place);
        }
    }

    /// A process begins, with the records that are there.
    pub fn recover(&mut self, node: usize) {
        let froms = self.nodes[node].store.records().fold(0, |all, record| all | 1 << (record.flags.from() - 1));
        self.nodes[node].agreements = Agreements { froms, ..Agreements::default() };
    }

    /// Up to which clock a node may forget what says "absent".
    pub fn bound(&self, node: usize, place: (u8, u16)) -> Option<u64> {
        self.nodes[node].agreements.bounds.get(&place).copied()
    }

    pub fn froms(&self, node: usize) -> u64 {
        self.nodes[node].agreements.froms
    }

    /// Drops what says "absent", and what belongs to other nodes, where all have agreed on it.
    pub fn compact(&mut self, node: usize) {
        let now = self.clocks(node).wall;
        let alone = self.plan.mutation == Mutation::ForgetsAlone;
        let may_go = |record: &Record<Bytes>| {
            let place = place(record);
            let bound = self.nodes[node].agreements.bounds.get(&place).copied().unwrap_or(0);
            let bound = if alone { WallTime::from_ms(now.ms() - 20_000).0 } else { bound };
            (is_absent(record, now.ms()) || !self.is_replica(node, place)) && record.version.clock <= bound
        };
        let gone: Vec<Record<Bytes>> =
            self.nodes[node].store.records().filter(|&record| may_go(record)).cloned().collect();
        for record in gone {
            let key = self.key_index[record.key.shared()];
            self.say(Some(key), || format!("{node} forgets {:?}", record.version));
            self.stats.forgotten += 1;
            if is_absent(&record, now.ms()) {
                let forgotten = &mut self.nodes[node].folder.forgotten;
                *forgotten = record.version.clock.max(*forgotten);
            }
            self.nodes[node].store.remove(record.key.bytes());
        }
    }
}

/// A node's records and agreements, for the machines of the exchange.
pub struct SimHoldings<'a> {
    pub world: &'a mut World,
    pub node: usize,
}

impl SimHoldings<'_> {
    fn records(&self, from: u8, partition: u16) -> impl Iterator<Item = &Record<Bytes>> {
        self.world.nodes[self.node].store.records().filter(move |record| place(record) == (from, partition))
    }
}

impl Holdings for SimHoldings<'_> {
    fn told(&self) -> Told {
        let node = &self.world.nodes[self.node];
        let mut settled = board::settled(self.world.clocks(self.node).wall);
        for oldest in node.hints.iter().filter_map(|hints| hints.oldest()) {
            settled = settled.min(WallTime::from_ms(WallTime(oldest).ms().saturating_sub(MARGIN_MS)).0);
        }
        let standing = node.memory.standing();
        let standing = if self.world.plan.mutation == Mutation::IgnoresDoubts { Standing::Whole } else { standing };
        let Agreements { froms, agreed, .. } = node.agreements;
        Told { standing, settled, forgotten: node.folder.forgotten, agreed, froms }
    }

    fn root(&self, from: u8, partition: u16) -> u64 {
        let first = self.world.nodes[self.node].agreements.first_roots.get(&(from, partition));
        let root = self.records(from, partition).fold(0, |root, record| root ^ digest_word(record.version));
        first.copied().unwrap_or(root)
    }

    fn leaves(&self, from: u8, partition: u16) -> [u64; LEAVES] {
        let mut leaves = [0; LEAVES];
        for record in self.records(from, partition) {
            leaves[leaf_of(record.key.hash())] ^= digest_word(record.version);
        }
        leaves
    }

    fn arrivals(&self, from: u8, partition: u16) -> u32 {
        self.world.nodes[self.node].agreements.arrivals.get(&(from, partition)).copied().unwrap_or(0)
    }

    fn looks_up_to(&mut self, clock: u64) {
        if self.world.plan.mutation == Mutation::DigestsMissWrites {
            for place in (1..=8).flat_map(|from| (0..self.world.plan.partitions as u16).map(move |at| (from, at))) {
                let root = self.root(place.0, place.1);
                self.world.nodes[self.node].agreements.first_roots.insert(place, root);
            }
        }
        let agreements = &mut self.world.nodes[self.node].agreements;
        agreements.horizon = agreements.horizon.max(clock);
    }

    fn agreed(&mut self, from: u8, partition: u16, arrivals: u32, clock: u64) {
        let same = self.arrivals(from, partition) == arrivals;
        let agreements = &mut self.world.nodes[self.node].agreements;
        if clock > agreements.horizon {
            let text = format!("{} agrees on {clock}, and looked up to {}", self.node, agreements.horizon);
            self.world.fail("an agreement is begun before it is reached", None, text);
        } else if same {
            let bound = agreements.bounds.entry((from, partition)).or_default();
            *bound = clock.max(*bound);
        }
    }

    fn list(&mut self, leaves: &[(u16, LeafSet)], _bytes_max: usize) -> Result<Vec<Vec<Listed>>, NotReady> {
        // A listing may be refused, or say less than was asked for.
        if !self.world.healed && self.world.random.one_in(30_u64) {
            return Err(NotReady);
        }
        let partitions = self.world.random.between(1, leaves.len());
        let now_ms = self.world.clocks(self.node).wall.ms();
        let listed = |(partition, set): &(u16, LeafSet)| {
            let records = self.world.nodes[self.node].store.records();
            let of = records.filter(|record| {
                let (hash, leaf) = (record.key.hash(), leaf_of(record.key.hash()));
                hash.partition() == usize::from(*partition) && set[leaf / 64] & (1 << (leaf % 64)) != 0
            });
            let listed = of.map(|record| {
                let (hash, from) = (record.key.hash().0 as u32, record.flags.from());
                let item = Item { hash, version: record.version, from, absent: is_absent(record, now_ms) };
                Listed { item, key: record.key.shared().clone() }
            });
            listed.collect()
        };
        Ok(leaves[..partitions].iter().map(listed).collect())
    }

    fn newest(&mut self, key: &[u8]) -> Option<Record<Bytes>> {
        let store = &self.world.nodes[self.node].store;
        if store.is_damaged(key) { None } else { store.record(key).cloned() }
    }

    fn apply(&mut self, record: &Record<Bytes>) -> bool {
        let outcome = self.world.take_over(self.node, &Operation::Write(record.clone()));
        matches!(outcome, Outcome::Applied | Outcome::Superseded(_))
    }
}

//! Where keys live: key → partition → nodes, ranked. The replicas of a key for `from` copies are the
//! first `from`.
//!
//! Rendezvous hashing (Thaler and Ravishankar, 1998): each node gives each of the 4096 partitions a
//! weight that depends on nothing but the two, and the heaviest come first. So a node that comes or
//! goes changes no order among the others, replica sets are nested, and about 1/N of the keys move.
//!
//! Weights here are *stratified*: a node's weights for the 4096 partitions are the numbers 0..4096
//! in an order that is its own (its partitions sorted by a hash), in place of independent hashes.
//! No node has luck in all its draws then, which brings the spread between nodes down by about
//! 40 %.
//!
//! Where nodes have *zones*, they come in rounds: first the heaviest of each zone, then the second of
//! each, and so on. So the first replicas lie in different zones as far as there are zones, and a node that
//! comes or goes moves others of its own zone by a round at most.
//!
//! While partitions move ([`crate::plan`]), each has two rankings.
//!
//! Owner: made at the start and with each change of the members, shared. Bounds:
//! [`NODES_MAX`](koltso_model::NODES_MAX) nodes, 4096 × nodes bytes, twice while partitions move.
//! Invariants: depends only on the membership, on every machine; each row is a permutation of the nodes
//! that hold data. Tested below by properties.

use std::sync::Arc;

use koltso_model::{KeyHash, PARTITIONS};
use smallvec::SmallVec;

use crate::membership::{Membership, MembershipError, mix};
use crate::plan::{Batch, Stage};

/// A node, as its place among the members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex(pub u8);

impl NodeIndex {
    /// For use as an index.
    #[must_use]
    pub const fn at(self) -> usize {
        self.0 as usize
    }
}

/// A set of places, all below 64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeSet(pub u64);

const _: () = assert!(koltso_model::NODES_MAX <= 64);

impl NodeSet {
    /// Whether a node is in it.
    #[must_use]
    #[inline]
    pub const fn contains(self, node: NodeIndex) -> bool {
        self.0 & (1 << node.0) != 0
    }

    /// With another one.
    #[must_use]
    #[inline]
    pub const fn with(self, node: NodeIndex) -> Self {
        Self(self.0 | (1 << node.0))
    }

    /// Those of both.
    #[must_use]
    #[inline]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that the other does not have.
    #[must_use]
    #[inline]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether nobody is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many are.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Those in it, ascending.
    pub fn iter(self) -> impl Iterator<Item = NodeIndex> + use<> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let place = left.trailing_zeros();
            left &= left.wrapping_sub(1);
            (place < 64).then_some(NodeIndex(place as u8))
        })
    }
}

impl FromIterator<NodeIndex> for NodeSet {
    fn from_iter<I: IntoIterator<Item = NodeIndex>>(nodes: I) -> Self {
        nodes.into_iter().fold(Self::default(), Self::with)
    }
}

/// Who is asked to do something with a key, and how many of them have to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replicas {
    /// By rank.
    pub nodes: SmallVec<[NodeIndex; 16]>,
    /// Sets of ranks, of each of which `ack` have to answer. The second is empty unless the key's partition
    /// is on its way from one to the other.
    pub sets: [u64; 2],
}

impl Replicas {
    /// The ranks of all of them.
    #[must_use]
    #[inline]
    pub const fn every(&self) -> u64 {
        self.sets[0] | self.sets[1]
    }

    /// How many of each set are among these ranks: the least.
    #[must_use]
    #[inline]
    pub const fn count(&self, ranks: u64) -> u32 {
        let first = (ranks & self.sets[0]).count_ones();
        if self.sets[1] == 0 {
            return first;
        }
        let second = (ranks & self.sets[1]).count_ones();
        if first < second { first } else { second }
    }

    /// How many of each set are lacking, if it needs so many and has these ranks.
    #[must_use]
    #[inline]
    pub const fn lacking(&self, ranks: u64, needed: u32) -> [u32; 2] {
        let first = needed.saturating_sub((ranks & self.sets[0]).count_ones());
        let is_joint = self.sets[1] != 0;
        [first, if is_joint { needed.saturating_sub((ranks & self.sets[1]).count_ones()) } else { 0 }]
    }

    /// The first of these ranks of which so many of each set are lacking.
    #[must_use]
    #[inline]
    pub fn chosen(&self, order: impl Iterator<Item = usize>, mut lacking: [u32; 2]) -> u64 {
        let mut chosen = 0;
        for rank in order {
            if lacking == [0; 2] {
                break;
            }
            let has = self.sets.map(|set| u32::from(set & (1 << rank) != 0));
            if (0..2).any(|set| has[set] > 0 && lacking[set] > 0) {
                chosen |= 1 << rank;
                lacking = [lacking[0].saturating_sub(has[0]), lacking[1].saturating_sub(has[1])];
            }
        }
        chosen
    }
}

/// The order in which partitions prefer the nodes that hold data.
#[derive(Debug)]
pub(crate) struct Rows {
    /// Whom they are of: place, seed and zone.
    of: Vec<(NodeIndex, u64, String)>,
    /// How many these are.
    width: usize,
    /// `ranking[partition * width ..][..width]`.
    ranking: Box<[NodeIndex]>,
}

/// A node's weight for each partition.
fn weights(seed: u64) -> Vec<u16> {
    let mut order: Vec<u16> = (0..PARTITIONS as u16).collect();
    order.sort_by_key(|&partition| (mix(seed ^ mix(u64::from(partition) + 1)), partition));
    let mut weights = vec![0; PARTITIONS];
    for (weight, &partition) in order.iter().enumerate() {
        weights[usize::from(partition)] = weight as u16;
    }
    weights
}

/// Puts nodes, the heaviest first, into rounds in which each zone comes once.
fn by_rounds<'a>(row: &mut [u8], zone: impl Fn(u8) -> &'a str) {
    let mut seen: SmallVec<[(&str, u16); 8]> = SmallVec::new();
    let mut rounds: SmallVec<[(u16, u8); 64]> = SmallVec::new();
    for &node in &*row {
        let zone = zone(node);
        let round = match seen.iter_mut().find(|(known, _)| *known == zone) {
            Some((_, rounds)) => {
                *rounds += 1;
                *rounds
            }
            None => {
                seen.push((zone, 0));
                0
            }
        };
        rounds.push((round, node));
    }
    // Stable: within a round the heaviest first.
    rounds.sort_by_key(|&(round, _)| round);
    for (place, (_, node)) in row.iter_mut().zip(rounds) {
        *place = node;
    }
}

impl Rows {
    fn new(of: Vec<(NodeIndex, u64, String)>, partitions: usize) -> Self {
        let weighted: Vec<(u64, Vec<u16>)> = of.iter().map(|&(_, seed, _)| (seed, weights(seed))).collect();
        let has_zones = of.windows(2).any(|pair| pair[0].2 != pair[1].2);
        let mut ranking = Vec::with_capacity(partitions * of.len());
        let mut row: Vec<u8> = Vec::new();
        for partition in 0..partitions {
            row.clear();
            row.extend(0..of.len() as u8);
            // The seed, which does not change with the others, decides between equal weights.
            row.sort_by_key(|&node| {
                let (seed, weights) = &weighted[usize::from(node)];
                std::cmp::Reverse((weights[partition], mix(seed ^ partition as u64)))
            });
            if has_zones {
                by_rounds(&mut row, |node| &of[usize::from(node)].2);
            }
            ranking.extend(row.iter().map(|&node| of[usize::from(node)].0));
        }
        Self { width: of.len(), of, ranking: ranking.into() }
    }

    /// Of some members of a membership. What is known of the same ones is not made again.
    pub(crate) fn among(membership: &Membership, of: NodeSet, partitions: usize, known: &[Arc<Self>]) -> Arc<Self> {
        let of = membership.nodes().iter().filter(|node| of.contains(node.place));
        let of: Vec<_> = of.map(|node| (node.place, node.seed, node.zone.clone())).collect();
        let same = known.iter().find(|rows| rows.of == of && rows.ranking.len() == rows.width * partitions);
        same.cloned().unwrap_or_else(|| Arc::new(Self::new(of, partitions)))
    }

    /// All of them for a partition, by rank.
    #[inline]
    pub(crate) fn of(&self, partition: usize) -> &[NodeIndex] {
        &self.ranking[partition * self.width..][..self.width]
    }

    /// All of them, if these are fewer than `from`.
    pub(crate) fn first(&self, partition: usize, from: u8) -> &[NodeIndex] {
        let row = self.of(partition);
        &row[..usize::from(from).min(row.len())]
    }
}

/// Where the keys of a membership live, as one of its nodes sees it.
#[derive(Clone, Debug)]
pub struct Topology {
    membership: Arc<Membership>,
    me: NodeIndex,
    names: Vec<String>,
    numbers: Vec<u16>,
    id: u64,
    current: Arc<Rows>,
    /// Of the target of a plan, while one is under way.
    target: Option<Arc<Rows>>,
    partitions: usize,
}

impl Topology {
    /// The topology of the nodes with these addresses, in any order, at their first start; `me` is
    /// one of them.
    ///
    /// # Errors
    /// See [`MembershipError`].
    ///
    /// # Panics
    /// If `me` is not among the names.
    pub fn new(names: &[String], me: &str) -> Result<Self, MembershipError> {
        Ok(Self::of(&Membership::first(names)?, me))
    }

    /// The topology of a membership; `me` is the address of one of its nodes.
    ///
    /// # Panics
    /// If `me` is not.
    #[must_use]
    pub fn of(membership: &Membership, me: &str) -> Self {
        Self::of_partitions(membership, me, PARTITIONS)
    }

    /// As [`Topology::of`], with the first so many partitions only: for a simulation that has no keys
    /// in others, and no time to compare them.
    ///
    /// # Panics
    /// As [`Topology::of`]; when asked for a key of another partition.
    #[must_use]
    pub fn of_partitions(membership: &Membership, me: &str, partitions: usize) -> Self {
        let me = membership.at(me).expect("the caller has looked this node up in the list").place;
        Self::made(Arc::new(membership.clone()), me, partitions, &[])
    }

    /// The topology of a later membership of the same cluster.
    ///
    /// # Panics
    /// If this node is not a member of it.
    #[must_use]
    pub fn followed_by(&self, membership: Arc<Membership>) -> Self {
        assert!(membership.members().contains(self.me), "the caller has looked this node up");
        let known: Vec<Arc<Rows>> = std::iter::once(&self.current).chain(&self.target).cloned().collect();
        Self::made(membership, self.me, self.partitions, &known)
    }

    /// The same, as another of its nodes sees it.
    ///
    /// # Panics
    /// If that is not a member.
    #[must_use]
    pub fn as_seen_by(&self, me: NodeIndex) -> Self {
        assert!(self.membership.members().contains(me), "one of its nodes");
        Self { me, ..self.clone() }
    }

    fn made(membership: Arc<Membership>, me: NodeIndex, partitions: usize, known: &[Arc<Rows>]) -> Self {
        let nodes = membership.nodes();
        let rows = |of: NodeSet| Rows::among(&membership, of, partitions, known);
        let current = rows(membership.holders());
        let target = membership.plan().map(|plan| rows(plan.target));
        let places = nodes.last().map_or(0, |node| node.place.at() + 1);
        let (mut names, mut numbers) = (vec![String::new(); places], vec![0; places]);
        for node in nodes {
            names[node.place.at()].clone_from(&node.url);
            numbers[node.place.at()] = node.number;
        }
        let mut urls: Vec<&str> = nodes.iter().map(|node| &node.url[..]).collect();
        urls.sort_unstable();
        let id = urls.iter().fold(urls.len() as u64, |id, url| mix(id ^ KeyHash::of(url.as_bytes()).0));
        Self { me, names, numbers, id, current, target, partitions, membership }
    }

    /// The membership that it is of.
    #[must_use]
    pub const fn membership(&self) -> &Arc<Membership> {
        &self.membership
    }

    /// The number of the membership.
    #[must_use]
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.membership.epoch()
    }

    /// Above all places of members.
    #[must_use]
    pub fn places(&self) -> usize {
        self.names.len()
    }

    /// Number of nodes.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.membership.nodes().len()
    }

    /// The most replicas that a key can have: nodes that hold data, and will when a plan is done.
    #[must_use]
    #[inline]
    pub fn replicas_max(&self) -> usize {
        self.target.as_ref().map_or(self.current.width, |target| target.width.min(self.current.width))
    }

    /// Whether there are as many nodes that hold data, or are to.
    #[must_use]
    pub fn is_narrow(&self, from: u8) -> bool {
        let widest = self.target.as_ref().map_or(0, |target| target.width).max(self.current.width);
        usize::from(from) <= widest
    }

    /// Number of partitions that have keys: [`PARTITIONS`], except in simulations.
    #[must_use]
    pub const fn partitions(&self) -> usize {
        self.partitions
    }

    /// This node.
    #[must_use]
    pub const fn me(&self) -> NodeIndex {
        self.me
    }

    /// All nodes but this one.
    pub fn peers(&self) -> impl Iterator<Item = NodeIndex> + use<> {
        self.membership.members().without(NodeSet::default().with(self.me)).iter()
    }

    /// Whether both have the same node at a place, or none.
    #[must_use]
    pub fn has_same(&self, other: &Self, node: NodeIndex) -> bool {
        let number = |topology: &Self| topology.numbers.get(node.at()).copied();
        let is_member = |topology: &Self| topology.membership.members().contains(node);
        is_member(self) == is_member(other) && (!is_member(self) || number(self) == number(other))
    }

    /// A node's address.
    #[must_use]
    pub fn name(&self, node: NodeIndex) -> &str {
        &self.names[node.at()]
    }

    /// A node's number in versions and on the wire, as its membership assigned it.
    #[must_use]
    pub fn number(&self, node: NodeIndex) -> u16 {
        self.numbers[node.at()]
    }

    /// The node with a number.
    #[must_use]
    pub fn by_number(&self, number: u16) -> Option<NodeIndex> {
        self.membership.nodes().iter().find(|node| node.number == number).map(|node| node.place)
    }

    /// The numbers of all nodes.
    pub fn numbers(&self) -> impl Iterator<Item = u16> + '_ {
        self.membership.nodes().iter().map(|node| node.number)
    }

    /// Equal on nodes that were given the same list, and on others only by a chance of 2^-64.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Whether a partition has two rankings, and which stage it is at.
    #[inline]
    fn rows_of(&self, partition: usize) -> (&Rows, Option<&Rows>, Batch) {
        let Some((target, plan)) = self.target.as_deref().zip(self.membership.plan()) else {
            return (&self.current, None, Batch::default());
        };
        let batch = plan.of(partition);
        match batch.stage {
            Stage::Current => (&self.current, None, batch),
            Stage::Copying | Stage::Joint => (&self.current, Some(target), batch),
            Stage::Moved => (target, None, batch),
        }
    }

    /// What a coordinator has to know to be answered about a key: no earlier epoch than this.
    #[must_use]
    #[inline]
    pub fn fence(&self, hash: KeyHash) -> u64 {
        let began = self.membership.plan().map_or(0, |plan| plan.of(hash.partition()).began);
        began.max(self.membership.fence())
    }

    /// Who is asked to write a key with `from` replicas.
    ///
    /// # Panics
    /// If there are fewer nodes.
    #[must_use]
    #[inline]
    pub fn writers(&self, hash: KeyHash, from: u8) -> Replicas {
        let (current, target, _) = self.rows_of(hash.partition());
        Self::replicas(hash, from, current, target)
    }

    /// Who is asked to read a key with `from` replicas.
    ///
    /// # Panics
    /// If there are fewer nodes.
    #[must_use]
    #[inline]
    pub fn readers(&self, hash: KeyHash, from: u8) -> Replicas {
        let (current, target, batch) = self.rows_of(hash.partition());
        Self::replicas(hash, from, current, target.filter(|_| batch.stage == Stage::Joint))
    }

    #[inline]
    fn replicas(hash: KeyHash, from: u8, current: &Rows, target: Option<&Rows>) -> Replicas {
        let (partition, count) = (hash.partition(), usize::from(from));
        let mut nodes = SmallVec::from_slice(&current.of(partition)[..count]);
        let mut sets = [if from >= 64 { u64::MAX } else { (1 << from) - 1 }, 0];
        for &node in target.map_or(&[][..], |target| &target.of(partition)[..count]) {
            let rank = nodes.iter().position(|&known| known == node).unwrap_or_else(|| {
                nodes.push(node);
                nodes.len() - 1
            });
            sets[1] |= 1 << rank;
        }
        // The same nodes, perhaps in another order: nothing moves.
        if sets[0] == sets[1] {
            sets[1] = 0;
        }
        Replicas { nodes, sets }
    }

    /// Whether this node is a replica of a key, and the key has no others than these.
    #[must_use]
    #[inline]
    pub fn is_own(&self, hash: KeyHash, from: u8) -> bool {
        let (current, target, _) = self.rows_of(hash.partition());
        target.is_none() && current.first(hash.partition(), from).contains(&self.me)
    }

    /// Who holds a partition's records with this `from`, or is on the way to it: all nodes, if these are
    /// fewer.
    ///
    /// # Panics
    /// Unless `partition` is below [`Topology::partitions`].
    #[must_use]
    pub fn replicas_of(&self, partition: usize, from: u8) -> NodeSet {
        let (current, target, _) = self.rows_of(partition);
        let target = target.map_or(&[][..], |target| target.first(partition, from));
        current.first(partition, from).iter().chain(target).copied().collect()
    }

    /// Those of [`Topology::replicas_of`] that have what was confirmed.
    #[must_use]
    pub fn sources_of(&self, partition: usize, from: u8) -> NodeSet {
        self.rows_of(partition).0.first(partition, from).iter().copied().collect()
    }

    /// The epoch with which a partition's stage began, where some of its replicas are not sources yet.
    #[must_use]
    pub fn moves_since(&self, partition: usize) -> Option<u64> {
        let (_, target, batch) = self.rows_of(partition);
        target.map(|_| batch.began)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::MemberNode;
    use koltso_model::NODES_MAX;
    use proptest::prelude::*;

    fn names(count: usize, seed: u64) -> Vec<String> {
        (0..count).map(|i| format!("http://10.{}.0.{i}:{}", seed % 251, 1337 + seed % 10_000)).collect()
    }

    fn topology(names: &[String]) -> Topology {
        Topology::new(names, &names[0]).expect("valid")
    }

    fn row(topology: &Topology, partition: usize) -> Vec<String> {
        let hash = KeyHash((partition as u64) << 52);
        assert_eq!(hash.partition(), partition);
        let nodes = topology.readers(hash, topology.nodes() as u8).nodes;
        nodes.iter().map(|&node| topology.name(node).to_owned()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn a_node_less_changes_no_order_among_the_others_and_moves_its_share(count in 2_usize..=16, seed: u64, gone: prop::sample::Index) {
            let all = names(count, seed);
            let gone = gone.index(count);
            let mut fewer = all.clone();
            let removed = fewer.remove(gone);
            let (before, after) = (topology(&all), topology(&fewer));
            let mut moved = 0;
            for partition in 0..PARTITIONS {
                let mut kept = row(&before, partition);
                moved += usize::from(kept[0] == removed);
                kept.retain(|name| *name != removed);
                prop_assert_eq!(kept, row(&after, partition));
            }
            let share = moved as f64 / PARTITIONS as f64 * count as f64;
            prop_assert!((0.75..1.25).contains(&share), "{share} of its share moved");
        }

        #[test]
        fn each_row_is_a_permutation_and_the_order_of_the_list_does_not_matter(count in 1_usize..=NODES_MAX, seed: u64) {
            let all = names(count, seed);
            let mut turned = all.clone();
            turned.reverse();
            let (one, other) = (topology(&all), Topology::new(&turned, &all[0]).expect("valid"));
            prop_assert_eq!(one.id(), other.id());
            prop_assert_eq!(&one.current.ranking, &other.current.ranking);
            for partition in (0..PARTITIONS).step_by(97) {
                let mut nodes: Vec<u8> = one.current.of(partition).iter().map(|n| n.0).collect();
                nodes.sort_unstable();
                prop_assert_eq!(nodes, (0..count as u8).collect::<Vec<_>>());
            }
            let mut numbers: Vec<u16> = one.numbers().collect();
            numbers.sort_unstable();
            numbers.dedup();
            prop_assert_eq!(numbers.len(), count);
        }
    }

    /// Nodes in zones: some of them hold data. `drawn` says of each node in which zone it is.
    fn zoned(drawn: &[u8], holders: impl Fn(usize) -> bool) -> Topology {
        let nodes = names(drawn.len(), 7).into_iter().zip(drawn).enumerate().map(|(number, (url, zone))| {
            MemberNode::listed(koltso_model::NodeId::NONE, number as u16, url, format!("zone {zone}"))
        });
        let all = Membership::from_parts(1, nodes.collect(), Vec::new()).expect("valid");
        let me = all.nodes()[0].url.clone();
        let holders: NodeSet = all.nodes().iter().filter(|node| holders(node.number.into())).map(|n| n.place).collect();
        Topology::of(&moved(&all, holders), &me)
    }

    /// When others have come to hold the data.
    fn moved(membership: &Membership, holders: NodeSet) -> Membership {
        let planned = membership.planned(holders).expect("valid");
        [Stage::Copying, Stage::Joint, Stage::Moved].into_iter().fold(planned, |members, stage| {
            let all: Vec<_> = (0..crate::plan::BATCHES).map(|batch| (batch, stage)).collect();
            members.advanced(&all).expect("the next stage")
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn the_first_replicas_lie_in_different_zones_and_a_node_less_replaces_nobody_but_itself(
            zones in prop::collection::vec(0_u8..5, 2..12),
            gone: prop::sample::Index,
        ) {
            let gone = gone.index(zones.len());
            let (before, after) = (zoned(&zones, |_| true), zoned(&zones, |number| number != gone));
            let mut all = zones.clone();
            all.sort_unstable();
            all.dedup();
            let members = before.membership().nodes();
            let gone = members.iter().find(|node| usize::from(node.number) == gone).expect("listed").place;
            for partition in (0..PARTITIONS).step_by(5) {
                let row = before.current.of(partition);
                let zone = |node: &NodeIndex| &members.iter().find(|member| member.place == *node).expect("listed").zone;
                let mut first: Vec<&String> = row[..all.len()].iter().map(zone).collect();
                first.sort_unstable();
                first.dedup();
                prop_assert_eq!(first.len(), all.len(), "the first of each zone come first");
                for from in 1..zones.len() as u8 {
                    let (old, new) = (before.replicas_of(partition, from), after.replicas_of(partition, from));
                    let lost = NodeSet::default().with(gone);
                    prop_assert!(old.without(new).without(lost).is_empty(), "{:?} became {:?}", old, new);
                    prop_assert_eq!(new.without(old).len(), usize::from(old.contains(gone)));
                }
            }
        }
    }

    #[test]
    fn while_a_partition_moves_it_has_the_replicas_of_both_and_the_fence_of_its_stage() {
        let before = zoned(&[0, 0, 0, 0, 0], |number| number < 3);
        let all = before.membership();
        let places = |numbers: &[u16]| -> NodeSet {
            all.nodes().iter().filter(|node| numbers.contains(&node.number)).map(|node| node.place).collect()
        };
        let planned = all.planned(places(&[2, 3, 4])).expect("valid");
        let hash = KeyHash(0);
        let of = |members: &Membership| before.followed_by(Arc::new(members.clone()));
        let (old, fence) = (before.readers(hash, 2), planned.epoch());
        let topology = of(&planned);
        assert_eq!((topology.readers(hash, 2), topology.writers(hash, 2)), (old.clone(), old.clone()));
        assert_eq!((topology.fence(hash), topology.moves_since(0), topology.replicas_max()), (fence, None, 3));
        let copying = planned.advanced(&[(0, Stage::Copying)]).expect("the next stage");
        let topology = of(&copying);
        assert_eq!(topology.readers(hash, 2), old);
        let new = of(&moved(all, places(&[2, 3, 4]))).readers(hash, 2);
        let both = topology.writers(hash, 2);
        let named = |set: u64| -> NodeSet {
            both.nodes.iter().enumerate().filter(|&(rank, _)| set & (1 << rank) != 0).map(|(_, &node)| node).collect()
        };
        let set = |replicas: &Replicas| -> NodeSet { replicas.nodes.iter().copied().collect() };
        assert_eq!((named(both.sets[0]), named(both.sets[1])), (set(&old), set(&new)));
        assert_eq!(topology.replicas_of(0, 2), set(&old).and(set(&new)));
        assert_eq!(topology.sources_of(0, 2), set(&old));
        assert_eq!((topology.fence(hash), topology.moves_since(0)), (copying.epoch(), Some(copying.epoch())));
        assert_eq!(topology.fence(KeyHash(1 << 52)), fence, "another partition, which has not begun");
        let joint = copying.advanced(&[(0, Stage::Joint)]).expect("the next stage");
        let topology = of(&joint);
        assert_eq!((topology.readers(hash, 2), topology.writers(hash, 2)), (both.clone(), both.clone()));
        let done = joint.advanced(&[(0, Stage::Moved)]).expect("the next stage");
        let topology = of(&done);
        assert_eq!((topology.readers(hash, 2), topology.writers(hash, 2)), (new.clone(), new));
        assert_eq!((topology.sources_of(0, 2), topology.fence(hash)), (topology.replicas_of(0, 2), done.epoch()));
    }

    #[test]
    fn a_set_of_replicas_is_counted_by_the_set_that_has_fewest() {
        let one = Replicas { nodes: SmallVec::new(), sets: [0b0111, 0] };
        assert_eq!((one.count(0b1011), one.lacking(0b0001, 2), one.every()), (2, [1, 0], 0b0111));
        let two = Replicas { nodes: SmallVec::new(), sets: [0b0111, 0b1110] };
        assert_eq!((two.count(0b0011), two.count(0b0110), two.every()), (1, 2, 0b1111));
        assert_eq!(two.lacking(0b0001, 2), [1, 2]);
        assert_eq!(two.chosen([0, 1, 2, 3].into_iter(), [1, 1]), 0b0011, "one more is needed of the second");
        assert_eq!(two.chosen([1, 0, 2, 3].into_iter(), [1, 1]), 0b0010, "one that counts for both");
        assert_eq!(two.chosen([0, 3].into_iter(), [2, 2]), 0b1001);
        assert_eq!(one.chosen([2, 1, 0].into_iter(), [2, 0]), 0b0110);
    }

    /// Each node's share of the copies, as a multiple of the even share: the least and the
    /// greatest.
    fn spread(count: usize, from: usize, seed: u64) -> (f64, f64) {
        let topology = topology(&names(count, seed));
        let mut held = vec![0_u32; count];
        for partition in 0..PARTITIONS {
            for node in topology.current.first(partition, from as u8) {
                held[node.at()] += 1;
            }
        }
        let even = (PARTITIONS * from) as f64 / count as f64;
        let shares = held.iter().map(|&count| f64::from(count) / even);
        shares.fold((f64::MAX, 0.0), |(least, most), share| (least.min(share), most.max(share)))
    }

    #[test]
    fn nodes_hold_about_the_same() {
        for (count, from, bound) in
            [(2, 1, 0.05), (3, 1, 0.07), (3, 2, 0.035), (5, 3, 0.06), (10, 3, 0.10), (64, 3, 0.35)]
        {
            for seed in 0..20 {
                let (least, most) = spread(count, from, seed);
                assert!(least > 1.0 - bound && most < 1.0 + bound, "{count} nodes, {from} copies: {least} to {most}");
            }
        }
    }

    #[test]
    fn a_duplicate_and_an_empty_list_are_refused() {
        let twice = vec!["http://a:1".to_owned(), "http://a:1".to_owned()];
        assert_eq!(Topology::new(&twice, "http://a:1").err(), Some(MembershipError::Duplicate("http://a:1".into())));
        assert_eq!(Topology::new(&[], "").err(), Some(MembershipError::Count(0)));
    }
}

//! Where keys live: key → partition → all nodes, ranked. The replicas of a key for `from` copies
//! are the first `from`.
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
//! Owner: made once at start, shared. Bounds: [`NODES_MAX`](koltso_model::NODES_MAX) nodes, 4096 ×
//! nodes bytes. Invariants: depends only on the set of addresses, on every machine; each row is a
//! permutation of the nodes. Tested below by properties.

use koltso_model::{KeyHash, PARTITIONS};

use crate::membership::{Membership, MembershipError, mix};

/// A node, as its place among the sorted addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex(pub u8);

impl NodeIndex {
    /// For use as an index.
    #[must_use]
    pub const fn at(self) -> usize {
        self.0 as usize
    }
}

/// The nodes of a cluster and the order in which each partition prefers them.
#[derive(Debug)]
pub struct Topology {
    names: Vec<String>,
    numbers: Vec<u16>,
    me: NodeIndex,
    id: u64,
    /// `ranking[partition * nodes ..][..nodes]`.
    ranking: Vec<NodeIndex>,
    partitions: usize,
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
        let names: Vec<String> = membership.nodes().iter().map(|node| node.url.clone()).collect();
        let numbers = membership.nodes().iter().map(|node| node.number).collect();
        let me = names.iter().position(|name| name == me).expect("the caller has looked this node up in the list");
        let seeds: Vec<u64> = names.iter().map(|name| KeyHash::of(name.as_bytes()).0).collect();
        let weighted: Vec<(u64, Vec<u16>)> = seeds.iter().map(|&seed| (seed, weights(seed))).collect();
        let mut ranking = Vec::with_capacity(partitions * names.len());
        let mut row: Vec<u8> = Vec::new();
        for partition in 0..partitions {
            row.clear();
            row.extend(0..names.len() as u8);
            // The seed, which does not change with the others, decides between equal weights.
            row.sort_by_key(|&node| {
                let (seed, weights) = &weighted[usize::from(node)];
                std::cmp::Reverse((weights[partition], mix(seed ^ partition as u64)))
            });
            ranking.extend(row.iter().map(|&node| NodeIndex(node)));
        }
        let mut id = names.len() as u64;
        for &seed in &seeds {
            id = mix(id ^ seed);
        }
        Self { names, numbers, me: NodeIndex(me as u8), id, ranking, partitions }
    }

    /// Number of nodes.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.names.len()
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
    pub fn peers(&self) -> impl Iterator<Item = NodeIndex> + '_ {
        (0..self.names.len() as u8).map(NodeIndex).filter(|&node| node != self.me)
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

    /// All numbers, by node.
    #[must_use]
    pub fn numbers(&self) -> &[u16] {
        &self.numbers
    }

    /// Equal on nodes that were given the same list, and on others only by a chance of 2^-64.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// All nodes in the order in which a key prefers them; its replicas for `from` copies are the
    /// first `from`.
    #[must_use]
    #[inline]
    pub fn ranked(&self, hash: KeyHash) -> &[NodeIndex] {
        self.ranked_for(hash.partition())
    }

    fn ranked_for(&self, partition: usize) -> &[NodeIndex] {
        let nodes = self.names.len();
        &self.ranking[partition * nodes..][..nodes]
    }

    /// The replicas of a partition's records with this `from`: all nodes, if these are fewer.
    ///
    /// # Panics
    /// Unless `partition` is below [`Topology::partitions`].
    #[must_use]
    pub fn replicas_of(&self, partition: usize, from: u8) -> &[NodeIndex] {
        let ranked = self.ranked_for(partition);
        &ranked[..usize::from(from).min(ranked.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        topology.ranked(hash).iter().map(|&node| topology.name(node).to_owned()).collect()
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
            prop_assert_eq!(&one.ranking, &other.ranking);
            for partition in (0..PARTITIONS).step_by(97) {
                let mut nodes: Vec<u8> = one.ranked(KeyHash((partition as u64) << 52)).iter().map(|n| n.0).collect();
                nodes.sort_unstable();
                prop_assert_eq!(nodes, (0..count as u8).collect::<Vec<_>>());
            }
            let mut numbers = one.numbers().to_vec();
            numbers.sort_unstable();
            numbers.dedup();
            prop_assert_eq!(numbers.len(), count);
        }
    }

    /// Each node's share of the copies, as a multiple of the even share: the least and the
    /// greatest.
    fn spread(count: usize, from: usize, seed: u64) -> (f64, f64) {
        let topology = topology(&names(count, seed));
        let mut held = vec![0_u32; count];
        for partition in 0..PARTITIONS {
            for node in &topology.ranked(KeyHash((partition as u64) << 52))[..from] {
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

//! Which partitions two nodes share, and who of them asks.

use std::sync::Arc;

use koltso_model::Standing;

use crate::membership::mix;
use crate::placement::{NodeIndex, Topology};

/// This node and one peer.
#[derive(Clone, Debug)]
pub struct Pair {
    topology: Arc<Topology>,
    peer: NodeIndex,
}

impl Pair {
    /// Of this node and a peer.
    #[must_use]
    pub const fn new(topology: Arc<Topology>, peer: NodeIndex) -> Self {
        Self { topology, peer }
    }

    /// The members have changed, or what they hold; the peer is still one.
    pub fn adopt(&mut self, topology: Arc<Topology>) {
        self.topology = topology;
    }

    /// The topology that it goes by.
    #[must_use]
    pub const fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    /// Of the membership by which both have the same partitions in common.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.topology.epoch()
    }

    /// The peer.
    #[must_use]
    pub const fn peer(&self) -> NodeIndex {
        self.peer
    }

    /// The largest number of replicas.
    pub(super) fn widest(&self) -> u8 {
        self.topology.replicas_max().clamp(1, 64) as u8
    }

    pub(super) fn partitions(&self) -> usize {
        self.topology.partitions()
    }

    /// Whether a node is a replica of a partition's records with this `from`.
    fn is_replica(&self, node: NodeIndex, from: u8, partition: u16) -> bool {
        self.topology.replicas_of(usize::from(partition), from).contains(node)
    }

    /// Whether one is on the way to being one, and does not have all that was confirmed yet.
    fn receives(&self, node: NodeIndex, from: u8, partition: u16) -> bool {
        let partition = usize::from(partition);
        self.topology.moves_since(partition).is_some()
            && self.topology.replicas_of(partition, from).contains(node)
            && !self.topology.sources_of(partition, from).contains(node)
    }

    /// Whether this node is on the way to being a replica of a partition's records with this `from`.
    #[must_use]
    pub fn is_receiving(&self, from: u8, partition: u16) -> bool {
        self.receives(self.topology.me(), from, partition)
    }

    /// Whether the peer is.
    #[must_use]
    pub fn are_receiving(&self, from: u8, partition: u16) -> bool {
        self.receives(self.peer, from, partition)
    }

    /// Whether this node is one.
    #[must_use]
    pub fn is_mine(&self, from: u8, partition: u16) -> bool {
        self.is_replica(self.topology.me(), from, partition)
    }

    /// Whether the peer is one.
    #[must_use]
    pub fn is_theirs(&self, from: u8, partition: u16) -> bool {
        self.is_replica(self.peer, from, partition)
    }

    /// The partitions of which both are replicas, ascending. Both nodes of a pair get the same.
    #[must_use]
    pub fn shared(&self, from: u8) -> Vec<u16> {
        let all = 0..self.partitions() as u16;
        all.filter(|&partition| self.is_mine(from, partition) && self.is_theirs(from, partition)).collect()
    }

    /// The partitions of the peer's that this node is no replica of, ascending.
    pub fn strange(&self, from: u8) -> impl Iterator<Item = u16> + '_ {
        let all = 0..self.partitions() as u16;
        all.filter(move |&partition| !self.is_mine(from, partition) && self.is_theirs(from, partition))
    }

    /// Whether this node is the one that asks about a partition that both share. Where just one of the two
    /// lacks something for certain, that one does.
    #[must_use]
    pub fn asks(&self, (mine, theirs): (Standing, Standing), from: u8, partition: u16) -> bool {
        let lacking = [mine != Standing::Whole, theirs != Standing::Whole];
        let receiving = [self.is_receiving(from, partition), self.are_receiving(from, partition)];
        match [lacking, receiving].into_iter().find(|[mine, theirs]| mine != theirs) {
            Some([mine, _]) => mine,
            None => self.topology.number(self.topology.me()) < self.topology.number(self.peer),
        }
    }

    /// A number that orders the batches of a round: each pair has another order in each round, so
    /// that two peers seldom bring a third the same at the same time.
    #[must_use]
    pub fn order(&self, round: u64, batch: usize) -> u64 {
        let pair = (u64::from(self.topology.me().0) << 8) | u64::from(self.peer.0);
        mix(mix(round ^ (pair << 40)) ^ batch as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(nodes: usize) -> Vec<Vec<Option<Pair>>> {
        let names: Vec<String> = (0..nodes).map(|n| format!("http://node-{n}:1337")).collect();
        let pair = |me: usize, peer: usize| {
            let topology = Topology::new(&names, &names[me]).expect("a cluster");
            (me != peer).then(|| Pair::new(Arc::new(topology), NodeIndex(peer as u8)))
        };
        (0..nodes).map(|me| (0..nodes).map(|peer| pair(me, peer)).collect()).collect()
    }

    #[test]
    fn both_nodes_of_a_pair_see_the_same_and_one_of_them_asks() {
        let pairs = pairs(5);
        for (me, of_me) in pairs.iter().enumerate() {
            for (peer, one) in of_me.iter().enumerate().filter(|&(peer, _)| peer != me) {
                let (Some(one), Some(other)) = (one, &pairs[peer][me]) else { panic!("a pair") };
                for from in 1..=5 {
                    assert_eq!(one.shared(from), other.shared(from));
                    assert_eq!(one.shared(from).is_empty(), from == 1, "from {from}");
                }
                for mine in [Standing::New, Standing::Whole, Standing::Rebuilding] {
                    for theirs in [Standing::New, Standing::Whole, Standing::Rebuilding] {
                        assert_ne!(one.asks((mine, theirs), 2, 0), other.asks((theirs, mine), 2, 0));
                    }
                }
                assert!(one.asks((Standing::Rebuilding, Standing::Whole), 2, 0));
            }
        }
    }
}

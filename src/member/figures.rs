//! What comparing replicas with each peer has come to, for `/status` and `/metrics`.
//!
//! The thread that compares with a peer writes them, the control plane reads them. Owner: the
//! process, behind an `Arc`. Bounds: one entry a peer.

use std::time::Instant;

use koltso_cluster::placement::NodeIndex;
use koltso_instrument::{Mutex, MutexGuard};
use koltso_model::Standing;

/// What comparing with one peer has come to since this node was started.
#[derive(Clone, Debug, Default)]
pub struct RepairFigures {
    /// How the peer's data stands, as it said last; `None` until it has said so.
    pub standing: Option<Standing>,
    /// Partitions, each counted for every number of replicas in use, that both nodes keep and that
    /// were equal when they were compared last; while this node is rebuilding, since that began.
    pub partitions_done: u64,
    /// All of these partitions.
    pub partitions_all: u64,
    /// Records that came from the peer.
    pub records_received: u64,
    /// Records that the peer was given.
    pub records_sent: u64,
    /// Bytes of the records that came.
    pub bytes_received: u64,
    /// Bytes of the records that were given.
    pub bytes_sent: u64,
    /// Comparisons that were completed.
    pub rounds: u64,
    /// Keys that were found to differ.
    pub differing: u64,
    /// When a comparison last found everything equal.
    pub last_equal: Option<Instant>,
    /// Why the last comparison was given up; `None` if it was not.
    pub error: Option<String>,
}

/// The figures of all peers; this node's own place is empty.
pub struct Repairs(Vec<Mutex<RepairFigures>>);

impl Repairs {
    /// Nothing has been compared with any of so many nodes.
    pub fn new(nodes: usize) -> Self {
        Self((0..nodes).map(|_| Mutex::new(&"figures of repairs", RepairFigures::default())).collect())
    }

    /// What is known of one peer, to be read or changed; nobody waits long for it.
    pub fn of(&self, node: NodeIndex) -> MutexGuard<'_, RepairFigures> {
        self.0[node.at()].lock()
    }

    /// How many of the partitions that this node shares with whole peers were found equal, of how
    /// many.
    pub fn progress(&self) -> (u64, u64) {
        let figures = self.0.iter().map(|figures| figures.lock());
        figures.filter(|figures| figures.standing == Some(Standing::Whole)).fold((0, 0), |(done, all), figures| {
            (done + figures.partitions_done.min(figures.partitions_all), all + figures.partitions_all)
        })
    }
}

/// As `/status` has it.
pub const fn standing_name(standing: Standing) -> &'static str {
    match standing {
        Standing::New => "new",
        Standing::Whole => "whole",
        Standing::Rebuilding => "rebuilding",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_is_that_with_whole_peers() {
        let repairs = Repairs::new(3);
        assert_eq!(repairs.progress(), (0, 0));
        for (node, standing, partitions_done) in [(0, Standing::Whole, 3), (1, Standing::Rebuilding, 9)] {
            let mut figures = repairs.of(NodeIndex(node));
            (figures.standing, figures.partitions_done, figures.partitions_all) = (Some(standing), partitions_done, 10);
        }
        assert_eq!(repairs.progress(), (3, 10));
    }
}

//! Replicas become equal by themselves: real processes, no read of a key that would repair it. What
//! a node has is looked at by ranges, which ask nobody else.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod damage;
mod deletes;
mod full_disk;
mod lost_hints;
mod random;
mod strays;

use std::time::Duration;

use koltso_testkit::cluster::{Cluster, Quorum, Records};
use koltso_testkit::eventually;

/// Two of three.
pub const QUORUM: Quorum = (2, 3);
/// How long a difference may last that nothing tells of, after the nodes see each other.
pub const CONVERGED_WITHIN: Duration = Duration::from_secs(60);

/// All running nodes have exactly these records.
#[track_caller]
pub fn all_have(cluster: &Cluster, prefix: &str, records: &Records, what: &str) {
    for index in cluster.running() {
        cluster.wait_records(index, prefix, records, CONVERGED_WITHIN, what);
    }
}

/// Starts three nodes which know each other.
pub fn three() -> Cluster {
    let cluster = Cluster::of(3);
    cluster.wait_up();
    let is_whole = |index: usize| cluster.status(index)["standing"] == "whole";
    eventually("a new cluster is whole", CONVERGED_WITHIN, || (0..3).all(is_whole));
    cluster
}

/// Kills a node and forgets what it keeps for others.
pub fn lose_hints(cluster: &mut Cluster, index: usize) {
    cluster.kill(index);
    std::fs::remove_dir_all(cluster.hints(index)).unwrap();
}

/// Stores records of which every replica confirms.
pub fn store(cluster: &Cluster, records: &Records) {
    cluster.client(0).store_all_of(records, (3, 3));
}

/// Stores records of which a quorum confirms.
pub fn store_at_quorum(cluster: &Cluster, index: usize, records: &Records) {
    cluster.client(index).store_all_of(records, QUORUM);
}

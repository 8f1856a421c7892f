//! SPEC.md section 5 from outside, a scenario a promise: real processes on loopback, stopped,
//! killed, paused and restarted.
//!
//! Faults under load are in `cluster_faults.rs`, bad input in `cluster_hostile/`, cut networks in
//! `cluster_netns.rs`.
#![allow(missing_docs, clippy::unwrap_used)]

mod absences;
mod answers;
mod pipelines;
mod placement;
mod repair;
mod values;
mod versions;

use std::time::{Duration, Instant};

use koltso_testkit::cluster::{Quorum, Records, entity_of};
use koltso_testkit::{Client, Cluster};

const QUORUM: Quorum = (2, 3);

/// How soon a node that returns has what it missed.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(10);

/// How long an answer may take that waits for a node which does not answer (`--replica-timeout` is
/// 1 s).
const TIMED_OUT_WITHIN: Duration = Duration::from_millis(2500);

/// For what may take its time: values of many MiB, which three nodes write beside other tests.
const PATIENTLY: &str = "--replica-timeout 10s";

/// Stops a node in one way or another.
type End = fn(&mut Cluster, usize);

const ENDS: [(&str, End); 2] = [("killed", Cluster::kill), ("terminated", Cluster::terminate)];

fn some(records: &Records) -> impl Iterator<Item = (&Vec<u8>, Option<&Vec<u8>>)> {
    records.iter().map(|(key, value)| (key, Some(value)))
}

fn none(records: &Records) -> impl Iterator<Item = (&Vec<u8>, Option<&Vec<u8>>)> {
    records.keys().map(|key| (key, None))
}

fn delete_all(client: &mut Client, records: &Records, quorum: Quorum) {
    let requests = records.keys().map(|key| (key, "DELETE", entity_of(key, quorum), None));
    client.batch(requests, 64, |key, answer| {
        answer.expect(202, &format!("DELETE {quorum:?} of {}", String::from_utf8_lossy(key)));
    });
}

/// Deletes what nodes keep for their peers, behind their backs.
fn forget_hints(cluster: &Cluster, index: usize) {
    let hints = cluster.hints(index);
    if hints.exists() {
        std::fs::remove_dir_all(hints).unwrap();
    }
}

#[track_caller]
fn quickly<T>(what: &str, ask: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = ask();
    let took = start.elapsed();
    assert!(took < TIMED_OUT_WITHIN, "{what} took {took:?}");
    result
}

/// A key whose only copy with from=1 is on `owner`.
#[track_caller]
fn key_of(cluster: &Cluster, owner: usize, value: &[u8]) -> String {
    let mut client = cluster.client(0);
    for index in 0..200 {
        let key = format!("owned-{owner}-{index}");
        client.put_of(&key, value, (1, 1)).expect(201, "PUT 1/1");
        if cluster.holders(&key) == [owner] {
            return key;
        }
        client.delete_of(&key, (1, 1)).expect(202, "DELETE 1/1");
    }
    panic!("of 200 keys none is on node {owner}");
}

fn pending_of(cluster: &Cluster, peer: usize) -> u64 {
    cluster.others(peer).into_iter().map(|index| cluster.hints_pending(index, peer)).sum()
}

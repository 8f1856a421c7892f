//! Which nodes hold a key.

use std::collections::BTreeMap;

use crate::some;
use koltso_testkit::Cluster;
use koltso_testkit::cluster::numbered;

/// Writes keys with from=1, 2, … n, each time through other coordinators, and returns the holders
/// after each round.
fn placements(cluster: &Cluster, keys: usize) -> Vec<BTreeMap<Vec<u8>, Vec<usize>>> {
    let count = cluster.count();
    let mut rounds = Vec::new();
    for from in 1..=count {
        let quorum = (u32::try_from(from).unwrap(), u32::try_from(from).unwrap());
        for coordinator in 0..count {
            cluster.client(coordinator).store_all_of(&numbered("place", keys, &format!("{from}")), quorum);
        }
        rounds.push(cluster.holders_of_all("place"));
    }
    rounds
}

#[test]
fn replicas_for_a_smaller_from_are_the_first_part_of_those_for_a_larger_one() {
    for count in [3, 5] {
        let cluster = Cluster::of(count);
        let rounds = placements(&cluster, 60);
        // Every coordinator wrote every key in every round, so a copy in another place would be
        // seen as one too many.
        for (from, holders) in (1..).zip(&rounds) {
            assert_eq!(holders.len(), 60, "{count} nodes, from={from}: keys");
            for (key, nodes) in holders {
                let key = String::from_utf8_lossy(key);
                assert_eq!(nodes.len(), from, "{count} nodes, from={from}: {key} is on {nodes:?}");
            }
        }
        for (smaller, larger) in rounds.iter().zip(&rounds[1..]) {
            for (key, nodes) in smaller {
                assert!(nodes.iter().all(|node| larger[key].contains(node)), "{nodes:?} and then {:?}", larger[key]);
            }
        }
        let mut first = vec![0; count];
        rounds[0].values().for_each(|nodes| first[nodes[0]] += 1);
        assert!(first.iter().all(|&keys| keys > 0), "keys on each of {count} nodes with from=1: {first:?}");
    }
}

#[test]
fn keys_are_spread_evenly() {
    const KEYS: usize = 6000;
    let cluster = Cluster::of(3);
    cluster.client(0).store_all_of(&numbered("even", KEYS, ""), (1, 1));
    let held: Vec<usize> = (0..3).map(|index| cluster.records(index, "even").len()).collect();
    assert_eq!(held.iter().sum::<usize>(), KEYS, "{held:?}");
    for &keys in &held {
        assert!(keys.abs_diff(KEYS / 3) < KEYS / 3 * 12 / 100, "keys on the nodes: {held:?}");
    }
}

#[test]
fn placement_is_stable_through_restarts_and_the_order_of_the_list() {
    let mut cluster = Cluster::of(3);
    let records = numbered("stable", 200, "first");
    cluster.client(0).store_all_of(&records, (1, 1));
    let before = cluster.holders_of_all("stable");
    let urls = cluster.urls();
    for (index, order) in [[2, 1, 0], [1, 2, 0], [2, 0, 1]].iter().enumerate() {
        cluster.terminate(index);
        let list: Vec<String> = order.iter().map(|&node| urls[node].clone()).collect();
        cluster.change(index, |launch| launch.only_flags(&Cluster::flags_of(&list)));
    }
    cluster.start_all();
    cluster.wait_up();
    let again = numbered("stable", 200, "again");
    for index in 0..3 {
        cluster.client(index).expect_all_of(some(if index == 0 { &records } else { &again }), (1, 1), "after restarts");
        cluster.client(index).store_all_of(&again, (1, 1));
    }
    assert_eq!(cluster.holders_of_all("stable"), before);
}

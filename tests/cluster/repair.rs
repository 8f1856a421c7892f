//! Reads repair replicas that are stale or damaged.

use std::time::{Duration, Instant};

use crate::{CAUGHT_UP_WITHIN, ENDS, QUORUM, delete_all, forget_hints, key_of, none, some};
use koltso_testkit::cluster::{Records, numbered};
use koltso_testkit::{Cluster, Random, eventually, files};

#[test]
fn a_stale_replica_is_repaired_by_quorum_reads() {
    let mut cluster = Cluster::of(3);
    let (old, new) = (numbered("stale", 30, "old"), numbered("stale", 30, "new"));
    let gone = numbered("gone", 30, "old");
    cluster.client(0).store_all_of(&old, (3, 3));
    cluster.client(0).store_all_of(&gone, (3, 3));
    cluster.kill(2);
    cluster.client(0).store_all_of(&new, QUORUM);
    delete_all(&mut cluster.client(1), &gone, QUORUM);
    for index in [0, 1] {
        cluster.terminate(index);
        forget_hints(&cluster, index);
    }
    cluster.start_all();
    cluster.wait_up();
    let start = Instant::now();
    loop {
        // The stale node is among those that answer the reads which it coordinates.
        let mut client = cluster.client(2);
        client.expect_all_of(some(&new), QUORUM, "through the stale node");
        client.expect_all_of(none(&gone), QUORUM, "deleted keys, through the stale node");
        if cluster.records(2, "stale") == new && cluster.records(2, "gone").is_empty() {
            break;
        }
        assert!(start.elapsed() < CAUGHT_UP_WITHIN, "quorum reads do not repair: {:?}", cluster.records(2, "stale"));
        std::thread::sleep(Duration::from_millis(50));
    }
    cluster.kill(0);
    cluster.kill(1);
    let mut client = cluster.client(2);
    client.expect_all_of(some(&new), (1, 3), "alone after the repair");
    client.expect_all_of(none(&gone), (1, 3), "alone after the repair, deleted keys");
}

#[test]
fn a_damaged_record_is_repaired_from_a_replica_and_never_served() {
    let mut random = Random::announced("a_damaged_record_is_repaired_from_a_replica_and_never_served");
    for (way, end) in ENDS {
        let mut cluster = Cluster::of(3);
        let records: Records =
            (0..40).map(|index| (format!("damaged{index:02}").into_bytes(), random.bytes(2000))).collect();
        cluster.client(0).store_all_of(&records, (3, 3));
        end(&mut cluster, 1);
        let bad: Vec<Vec<u8>> = records.keys().skip(10).step_by(7).cloned().collect();
        for key in &bad {
            let places = files::find_in_logs(cluster.data(1), &records[key][..64]);
            assert_eq!(places.len(), 1, "one copy of the value is in the log");
            let (log, at) = &places[0];
            files::flip(log, at + random.next() % 2000, 1 << random.below(8));
        }
        cluster.start(1);
        cluster.wait_up();
        let what = format!("damaged after node 1 was {way}");
        for index in 0..3 {
            // Wherever a read goes, there is a replica that has it whole.
            cluster.client(index).expect_all_of(some(&records), (1, 3), &what);
            cluster.client(index).expect_all_of(some(&records), QUORUM, &what);
        }
        eventually("damaged records are repaired", CAUGHT_UP_WITHIN, || {
            cluster.client(1).expect_all_of(some(&records), QUORUM, &what);
            cluster.records(1, "damaged") == records
        });
        cluster.kill(0);
        cluster.kill(2);
        cluster.client(1).expect_all_of(some(&records), (1, 3), "alone after the repair");
    }
}

#[test]
fn a_damaged_record_with_no_other_copy_is_504_and_never_404() {
    let mut random = Random::announced("a_damaged_record_with_no_other_copy_is_504_and_never_404");
    let mut cluster = Cluster::of(3);
    let value = random.bytes(2000);
    let key = key_of(&cluster, 1, &value);
    cluster.terminate(1);
    let (log, at) = files::find_in_logs(cluster.data(1), &value[..64])[0].clone();
    files::flip(&log, at + 1000, 4);
    cluster.start(1);
    cluster.wait_up();
    for index in 0..3 {
        cluster.client(index).get_of(&key, (1, 1)).expect(504, &format!("GET 1/1 through node {index}"));
    }
}

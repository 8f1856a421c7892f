//! Nodes that were away get what they missed, and bring nothing back.

use std::time::{Duration, Instant};

use crate::{CAUGHT_UP_WITHIN, ENDS, PATIENTLY, QUORUM, delete_all, none, pending_of, quickly, some};
use koltso_testkit::cluster::{Records, numbered};
use koltso_testkit::{Cluster, Random, eventually, files, volume};

#[test]
fn a_node_that_returns_serves_what_it_missed_although_its_peers_have_gone() {
    let count = volume(300, 100_000);
    for (way, end) in ENDS {
        let mut cluster = Cluster::of(3);
        let (old, new) = (numbered("missed", count, "old"), numbered("missed", count, "new"));
        let gone = numbered("gone", count.min(1000), "old");
        cluster.client(0).store_all_of(&old, (3, 3));
        cluster.client(0).store_all_of(&gone, (3, 3));
        end(&mut cluster, 2);
        // Half through each of the others, so both have something for it.
        for coordinator in [0, 1] {
            let odd = |record: &(usize, (&Vec<u8>, &Vec<u8>))| record.0 % 2 == coordinator;
            let half = new.iter().enumerate().filter(odd).map(|(_, record)| record);
            cluster.client(coordinator).store_all_of(half, QUORUM);
        }
        delete_all(&mut cluster.client(0), &gone, QUORUM);
        let start = Instant::now();
        cluster.start(2);
        cluster.wait_records(2, "missed", &new, CAUGHT_UP_WITHIN, &format!("writes missed while {way}"));
        cluster.wait_records(2, "gone", &Records::new(), CAUGHT_UP_WITHIN, &format!("deletes missed while {way}"));
        if koltso_testkit::long() {
            println!("{} missed writes arrived within {:?} of the start", 2 * count, start.elapsed());
        }
        cluster.kill(0);
        cluster.kill(1);
        let mut client = cluster.client(2);
        client.expect_all_of(some(&new), (1, 3), "alone after its return");
        client.expect_all_of(none(&gone), (1, 3), "alone after its return, deleted keys");
    }
}

#[test]
fn missed_values_arrive_whatever_their_size() {
    let mut random = Random::announced("missed_values_arrive_whatever_their_size");
    let mut cluster = Cluster::with(3, PATIENTLY);
    cluster.kill(1);
    let records: Records = [0, 1, 5000, 1 << 20, 16 << 20]
        .into_iter()
        .map(|size| (format!("sized{size}").into_bytes(), random.bytes(size)))
        .collect();
    let mut client = cluster.client(2);
    for (key, value) in &records {
        client.put_of(key, value, QUORUM).expect(201, "PUT 2/3");
    }
    let long = vec![b'k'; 4096];
    client.put_of(&long, "value", QUORUM).expect(201, "PUT 2/3 of a key of 4096 bytes");
    cluster.start(1);
    cluster.wait_records(1, "sized", &records, CAUGHT_UP_WITHIN, "missed values");
    eventually("the long key has arrived", CAUGHT_UP_WITHIN, || cluster.holders(&long).contains(&1));
    cluster.kill(0);
    cluster.kill(2);
    cluster.client(1).expect_all_of(some(&records), (1, 3), "alone after its return");
}

#[test]
fn a_paused_node_gets_what_it_missed() {
    let mut cluster = Cluster::of(3);
    let (old, new) = (numbered("paused", 100, "old"), numbered("paused", 100, "new"));
    let gone = numbered("gone", 50, "old");
    cluster.client(0).store_all_of(&old, (3, 3));
    cluster.client(0).store_all_of(&gone, (3, 3));
    cluster.pause(2);
    let mut client = cluster.client(0);
    quickly("100 PUT 2/3 with a paused node", || client.store_all_of(&new, QUORUM));
    quickly("50 DELETE 2/3 with a paused node", || delete_all(&mut client, &gone, QUORUM));
    // Long enough for everybody to have given it up.
    eventually("a silent node is noticed", Duration::from_secs(3), || {
        client.store_all_of(&numbered("other", 1, ""), QUORUM);
        !cluster.sees(0, 2)
    });
    std::thread::sleep(Duration::from_millis(1200));
    cluster.resume(2);
    cluster.wait_records(2, "paused", &new, CAUGHT_UP_WITHIN, "writes missed in a pause");
    cluster.wait_records(2, "gone", &Records::new(), CAUGHT_UP_WITHIN, "deletes missed in a pause");
    cluster.wait_up();
}

#[test]
fn a_deleted_key_does_not_come_back_from_a_node_that_slept() {
    for (way, end) in ENDS {
        let mut cluster = Cluster::of(3);
        let gone = numbered("asleep", 60, "value");
        cluster.client(0).store_all_of(&gone, (3, 3));
        end(&mut cluster, 1);
        delete_all(&mut cluster.client(2), &gone, QUORUM);
        cluster.start(1);
        // Reads from the first moment on, hints or not; they repair, they do not bring it back.
        for index in 0..3 {
            cluster.client(index).expect_all_of(none(&gone), QUORUM, &format!("after node 1 was {way}"));
        }
        cluster.wait_up();
        for index in 0..3 {
            cluster.wait_records(index, "asleep", &Records::new(), CAUGHT_UP_WITHIN, &format!("node 1 was {way}"));
        }
        // Nor through restarts of those that know of the delete.
        cluster.kill(0);
        cluster.kill(2);
        cluster.client(1).expect_all_of(none(&gone), (1, 3), "the one that slept, alone");
        cluster.start_all();
        cluster.wait_up();
        for index in 0..3 {
            cluster.client(index).expect_all_of(none(&gone), (1, 3), "after restarts");
            assert_eq!(cluster.records(index, "asleep"), Records::new());
        }
    }
}

#[test]
fn hints_survive_restarts_of_their_holders() {
    for (way, end) in ENDS {
        let mut cluster = Cluster::of(3);
        let (old, new) = (numbered("hinted", 200, "old"), numbered("hinted", 200, "new"));
        cluster.client(0).store_all_of(&old, (3, 3));
        cluster.kill(2);
        let (first, second): (Records, Records) =
            new.clone().into_iter().partition(|(key, _)| key[key.len() - 1] % 2 == 0);
        cluster.client(0).store_all_of(&first, QUORUM);
        cluster.client(1).store_all_of(&second, QUORUM);
        let pending = || cluster.hints_pending(0, 2) + cluster.hints_pending(1, 2);
        eventually("every missed write is a hint", Duration::from_secs(3), || pending() == 200);
        // The last of them are counted while they still wait for their file.
        let folders = [cluster.hints(0), cluster.hints(1)];
        eventually("every hint is in a file", Duration::from_secs(3), || {
            let files = folders.iter().flat_map(|folder| files::listing(folder)).filter(|(path, ..)| path.is_file());
            let bytes: Vec<u8> = files.flat_map(|(path, ..)| std::fs::read(path).unwrap_or_default()).collect();
            new.keys().all(|key| bytes.windows(key.len()).any(|window| window == &key[..]))
        });
        end(&mut cluster, 0);
        end(&mut cluster, 1);
        cluster.start(0);
        cluster.start(1);
        let pending = || cluster.hints_pending(0, 2) + cluster.hints_pending(1, 2);
        eventually("hints are there after a restart", Duration::from_secs(3), || pending() == 200);
        cluster.start(2);
        cluster.wait_records(2, "hinted", &new, CAUGHT_UP_WITHIN, &format!("holders {way}"));
        eventually("delivered hints are gone", CAUGHT_UP_WITHIN, || pending_of(&cluster, 2) == 0);
    }
}

#[test]
fn a_hint_that_is_older_than_what_the_node_has_changes_nothing() {
    let mut cluster = Cluster::of(3);
    let (old, new) = (numbered("outdated", 50, "old"), numbered("outdated", 50, "new"));
    cluster.kill(2);
    cluster.client(0).store_all_of(&old, QUORUM);
    cluster.kill(0);
    cluster.start(2);
    // Node 0 sleeps with its hints; the keys go on without it.
    eventually("node 1 sees node 2", Duration::from_secs(10), || cluster.sees(1, 2) && cluster.sees(2, 1));
    cluster.client(1).store_all_of(&new, QUORUM);
    cluster.start(0);
    cluster.wait_up();
    eventually("old hints are delivered", CAUGHT_UP_WITHIN, || pending_of(&cluster, 2) == 0);
    for index in 0..3 {
        cluster.client(index).expect_all_of(some(&new), QUORUM, "after old hints");
        cluster.wait_records(index, "outdated", &new, CAUGHT_UP_WITHIN, "after old hints");
    }
}

#[test]
fn nodes_may_be_restarted_in_any_order() {
    let mut random = Random::announced("nodes_may_be_restarted_in_any_order");
    let mut cluster = Cluster::of(3);
    for round in 0..volume(3, 15) {
        let records = numbered("order", 50, &format!("round {round}"));
        cluster.client(random.below(3)).store_all_of(&records, QUORUM);
        let mut order = vec![0, 1, 2];
        order.swap(random.below(3), random.below(3));
        order.swap(0, random.below(3));
        for &index in &order {
            random.choose(&ENDS).1(&mut cluster, index);
        }
        order.swap(random.below(3), random.below(3));
        for &index in &order {
            cluster.start(index);
        }
        cluster.wait_up();
        for index in 0..3 {
            cluster.client(index).expect_all_of(
                some(&records),
                QUORUM,
                &format!("round {round}, started as {order:?}"),
            );
        }
    }
}

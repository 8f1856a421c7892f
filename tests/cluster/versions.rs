//! What survives one replica, and which of several writes is read.

use crate::{QUORUM, delete_all, forget_hints, none, some};
use koltso_testkit::cluster::{Records, entity_of, numbered};
use koltso_testkit::{Client, Cluster, volume};
use std::time::{Duration, Instant};

// --- what survives one replica ---

#[test]
fn put_2_of_2_is_seen_by_get_1_of_2_with_one_replica_down() {
    let mut cluster = Cluster::of(3);
    for down in 0..3 {
        let (kept, gone) = (numbered("kept", 60, &format!("{down}")), numbered("gone", 60, ""));
        let mut client = cluster.client((down + 1) % 3);
        client.store_all_of(&kept, (2, 2));
        client.store_all_of(&gone, (2, 2));
        delete_all(&mut client, &gone, (2, 2));
        if down == 1 {
            cluster.pause(down)
        } else {
            cluster.kill(down)
        }
        for index in cluster.others(down) {
            let mut client = cluster.client(index);
            client.expect_all_of(some(&kept), (1, 2), &format!("node {down} is down, PUT 2/2"));
            client.expect_all_of(none(&gone), (1, 2), &format!("node {down} is down, DELETE 2/2"));
        }
        if down == 1 {
            cluster.resume(down)
        } else {
            cluster.start(down)
        }
        cluster.wait_up();
    }
}

#[test]
fn put_2_of_3_is_seen_by_get_2_of_3_with_each_node_down_in_turn() {
    let mut cluster = Cluster::of(3);
    for down in 0..3 {
        let before = numbered("before", 40, &format!("before {down}"));
        let during = numbered("during", 40, &format!("during {down}"));
        let (gone_before, gone_during) = (numbered("gone-before", 40, ""), numbered("gone-during", 40, ""));
        let mut client = cluster.client((down + 1) % 3);
        for records in [&before, &gone_before, &gone_during] {
            client.store_all_of(records, QUORUM);
        }
        delete_all(&mut client, &gone_before, QUORUM);
        cluster.kill(down);
        client.store_all_of(&during, QUORUM);
        delete_all(&mut client, &gone_during, QUORUM);
        let check = |cluster: &Cluster, what: &str| {
            for index in cluster.running() {
                let mut client = cluster.client(index);
                client.expect_all_of(some(&before), QUORUM, &format!("{what}: PUT before"));
                client.expect_all_of(some(&during), QUORUM, &format!("{what}: PUT during"));
                client.expect_all_of(none(&gone_before), QUORUM, &format!("{what}: DELETE before"));
                client.expect_all_of(none(&gone_during), QUORUM, &format!("{what}: DELETE during"));
            }
        };
        check(&cluster, &format!("node {down} is down"));
        cluster.start(down);
        // At once, hints or not: a quorum is up all the time.
        check(&cluster, &format!("node {down} has just returned"));
        cluster.wait_up();
        // One of the two that took the writes goes; the one that slept is part of every quorum now.
        let next = (down + 1) % 3;
        cluster.kill(next);
        check(&cluster, &format!("node {down} has returned, node {next} is down"));
        cluster.start(next);
        cluster.wait_up();
    }
}

// --- versions ---

#[test]
fn the_later_write_wins_whichever_node_coordinates() {
    let cluster = Cluster::of(3);
    for quorum in [QUORUM, (3, 3), (2, 2), (1, 1)] {
        for (first, second, reader) in [(0, 1, 2), (2, 0, 1), (1, 2, 0)] {
            let old = numbered("later", 100, &format!("{quorum:?} old {first}"));
            let new = numbered("later", 100, &format!("{quorum:?} new {second}"));
            cluster.client(first).store_all_of(&old, quorum);
            cluster.client(second).store_all_of(&new, quorum);
            cluster.client(reader).expect_all_of(some(&new), quorum, &format!("via {first}, then via {second}"));
            delete_all(&mut cluster.client(first), &old, quorum);
            cluster.client(reader).expect_all_of(none(&new), quorum, "deleted");
            cluster.client(second).store_all_of(&new, quorum);
            cluster.client(first).expect_all_of(some(&new), quorum, "written after a delete");
        }
    }
}

#[test]
fn the_last_of_alternating_writes_is_what_is_read() {
    let cluster = Cluster::of(3);
    let mut clients: Vec<Client> = (0..3).map(|index| cluster.client(index)).collect();
    for (quorum, read) in [(QUORUM, QUORUM), ((1, 3), (3, 3)), ((1, 1), (1, 1)), ((2, 2), (1, 2))] {
        for turn in 0..150_usize {
            let value = format!("{quorum:?} {turn}");
            clients[turn % 3].put_of("alternating", &value, quorum).expect(201, "PUT");
            let reader = &mut clients[(turn / 3 + turn) % 3];
            let got = reader.value_of("alternating", read).map(|got| String::from_utf8_lossy(&got).into_owned());
            assert_eq!(got.as_deref(), Some(value.as_str()), "after a PUT {quorum:?} through node {}", turn % 3);
        }
    }
}

#[test]
fn a_read_that_was_answered_by_a_quorum_binds_all_later_ones() {
    let mut cluster = Cluster::of(3);
    let (old, gone) = (numbered("bound", 40, "old"), numbered("bound-gone", 40, "old"));
    let new = numbered("bound", 40, "new");
    cluster.client(0).store_all_of(&old, (3, 3));
    cluster.client(0).store_all_of(&gone, (3, 3));
    // Only node 2 gets the new versions, and nobody has a hint of them.
    cluster.kill(0);
    cluster.kill(1);
    cluster.client(2).store_all_of(&new, (1, 3));
    delete_all(&mut cluster.client(2), &gone, (1, 3));
    cluster.terminate(2);
    forget_hints(&cluster, 2);
    cluster.start_all();
    cluster.wait_up();
    // Node 2 takes part in the reads that it coordinates, so they return what it has.
    cluster.client(2).expect_all_of(some(&new), (3, 3), "the first read");
    let mut client = cluster.client(2);
    client.expect_all_of(none(&gone), (3, 3), "the first read of deleted keys");
    cluster.kill(2);
    for index in [0, 1] {
        cluster.client(index).expect_all_of(some(&new), QUORUM, "later reads, without the node that had it");
        cluster.client(index).expect_all_of(none(&gone), QUORUM, "later reads of deleted keys");
    }
}

#[test]
fn a_failed_write_that_a_quorum_read_returned_stays() {
    let mut cluster = Cluster::of(3);
    let old = numbered("failed", 20, "old");
    cluster.client(0).store_all_of(&old, (3, 3));
    cluster.kill(0);
    cluster.kill(1);
    let mut client = cluster.client(2);
    let requests = old.keys().map(|key| (key, "PUT", entity_of(key, QUORUM), Some(b"new".to_vec())));
    client.batch(requests, 20, |_, answer| {
        answer.expect(504, "PUT 2/3 with two nodes down");
    });
    cluster.terminate(2);
    forget_hints(&cluster, 2);
    cluster.start_all();
    cluster.wait_up();
    // Whether the write took place is open until a quorum read decides it.
    let mut decided = Records::new();
    for key in old.keys() {
        let value = cluster.client(0).value_of(key, QUORUM).expect("the key was never deleted");
        assert!(value == b"new" || value == old[key], "{:?}", String::from_utf8_lossy(&value));
        if value == b"new" {
            decided.insert(key.clone(), value);
        }
    }
    cluster.kill(2);
    for index in [0, 1] {
        cluster.client(index).expect_all_of(some(&decided), QUORUM, "what a quorum read returned");
    }
}

/// 100 000 pairs with `KOLTSO_TEST_LONG=1`. All nodes have the clock of this machine, and neither
/// has seen the other's write when the second one comes: the fraction of the millisecond decides.
#[test]
fn the_second_of_two_writes_fifty_microseconds_apart_is_read() {
    let cluster = Cluster::of(3);
    let mut clients: Vec<Client> = (0..3).map(|index| cluster.client(index)).collect();
    for pair in 0..volume(300, 100_000) {
        let (key, first) = (format!("pair-{}", pair % 50), pair % 3);
        let second = (first + 1 + pair % 2) % 3;
        clients[first].put_of(&key, format!("first {pair}"), (1, 3)).expect(201, "the first PUT");
        let answered = Instant::now();
        while answered.elapsed() < Duration::from_micros(50) {
            std::hint::spin_loop();
        }
        clients[second].put_of(&key, format!("second {pair}"), (1, 3)).expect(201, "the second PUT");
        let read = clients[pair % 3].value_of(&key, (3, 3));
        assert_eq!(read, Some(format!("second {pair}").into_bytes()), "pair {pair}, through {first} and {second}");
    }
}

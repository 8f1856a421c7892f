//! Values and keys of all sizes through every node, tags, and times to live.

use std::time::{Duration, Instant};

use crate::{CAUGHT_UP_WITHIN, PATIENTLY, QUORUM, key_of, pending_of, quickly, some};
use koltso_testkit::client::{Framing, request_bytes};
use koltso_testkit::cluster::{Records, entity_of, numbered};
use koltso_testkit::{Cluster, Launch, Random, entity, eventually};

#[test]
fn large_and_empty_values_pass_through_a_node_that_does_not_own_them() {
    let mut random = Random::announced("large_and_empty_values");
    let cluster = Cluster::with(3, PATIENTLY);
    let key = key_of(&cluster, 2, b"value");
    for size in [0, 1, 16 << 10, 64 << 10, 1 << 20, (16 << 20) - 1, 16 << 20] {
        let value = random.bytes(size);
        cluster.client(0).put_of(&key, &value, (1, 1)).expect(201, &format!("PUT of {size} bytes"));
        assert_eq!(cluster.holders(&key), [2]);
        for index in [1, 2] {
            let mut client = cluster.client(index);
            let answer = client.get_of(&key, (1, 1)).expect(200, &format!("GET of {size} bytes"));
            assert!(answer.body == value, "{size} bytes through node {index}: {} came", answer.body.len());
            assert_eq!(answer.framing, Framing::Length(size));
        }
        cluster.client(1).put_of("everywhere", &value, (3, 3)).expect(201, &format!("PUT 3/3 of {size} bytes"));
        for index in 0..3 {
            let got = cluster.client(index).value_of("everywhere", QUORUM);
            assert!(got.as_ref() == Some(&value), "{size} bytes with a quorum through node {index}");
        }
    }
    let too_large = vec![b'v'; (16 << 20) + 1];
    let mut client = cluster.client(0);
    // The refusal may come before all of the body was taken.
    let _ = client.send(&request_bytes("PUT", &entity_of(&key, (1, 1)), &[], Some(&too_large)));
    client.read("PUT").expect(413, "PUT of 16 MiB and a byte");
}

#[test]
fn keys_of_any_bytes_and_4096_of_them() {
    let cluster = Cluster::of(3);
    let long = vec![b'k'; 4096];
    for (turn, key) in [&b"\0"[..], b"\xff\xfe", b"a b+c%&=/?#", "кольцо".as_bytes(), &long].iter().enumerate() {
        cluster.client(turn % 3).put_of(key, key, QUORUM).expect(201, "PUT");
        for index in 0..3 {
            assert_eq!(cluster.client(index).value_of(key, QUORUM).as_deref(), Some(*key));
        }
    }
    cluster.client(0).put_of([&long[..], b"k"].concat(), "value", QUORUM).expect(400, "a key of 4097 bytes");
}

#[test]
fn tags_and_head_are_the_same_through_every_node() {
    let cluster = Cluster::of(3);
    let key = key_of(&cluster, 1, &[b'v'; 5000]);
    cluster.client(0).put_of("shared", [b's'; 3000], (3, 3)).expect(201, "PUT");
    for (key, quorum, size) in [(key.as_str(), (1, 1), "5000"), ("shared", QUORUM, "3000")] {
        let mut tags = Vec::new();
        for index in 0..3 {
            let mut client = cluster.client(index);
            let target = entity_of(key, quorum);
            let got = client.get_of(key, quorum).expect(200, "GET");
            let tag = got.header("etag").expect("an ETag").to_owned();
            assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() > 2, "{tag}");
            let head = client.request("HEAD", &target, &[], None).expect(200, "HEAD");
            assert_eq!(head.header("content-length"), Some(size), "HEAD through node {index}");
            assert_eq!(head.header("etag"), Some(tag.as_str()));
            let same = client.request("GET", &target, &[("If-None-Match", &tag)], None).expect(304, "the same tag");
            assert!(same.body.is_empty());
            client.request("GET", &target, &[("If-None-Match", "\"another\"")], None).expect(200, "another tag");
            tags.push(tag);
        }
        assert!(tags.iter().all(|tag| *tag == tags[0]), "one version has the tags {tags:?}");
        cluster.client(2).put_of(key, "other", quorum).expect(201, "PUT");
        for index in 0..3 {
            let answer = cluster.client(index).get_of(key, quorum).expect(200, "GET");
            assert_ne!(answer.header("etag"), Some(tags[0].as_str()), "the tag of another version");
            let headers = [("If-None-Match", tags[0].as_str())];
            cluster.client(index).request("GET", &entity_of(key, quorum), &headers, None).expect(200, "an old tag");
        }
    }
    for index in 0..3 {
        let head = cluster.client(index).request("HEAD", &entity("absent"), &[], None).expect(404, "HEAD of nothing");
        assert!(head.body.is_empty());
    }
}

#[test]
fn a_ttl_ends_a_value_on_every_node() {
    let mut cluster = Cluster::of(3);
    let ttl = Duration::from_millis(2500);
    cluster.kill(2);
    let keys: Vec<String> = (0..10).map(|index| format!("passing{index}")).collect();
    let start = Instant::now();
    for key in &keys {
        let target = format!("{}&ttl={}", entity_of(key, QUORUM), ttl.as_millis());
        cluster.client(0).request("PUT", &target, &[], Some(b"passing")).expect(201, "PUT with ttl");
    }
    let accepted = start.elapsed();
    cluster.start(2);
    for key in &keys {
        for index in 0..3 {
            let value = cluster.client(index).value_of(key, QUORUM);
            assert!(value.is_some() || start.elapsed() > ttl, "{key} has gone too early through node {index}");
        }
    }
    // Counted from when it was accepted, not from when a hint brought it.
    std::thread::sleep((accepted + ttl + Duration::from_millis(5)).saturating_sub(start.elapsed()));
    for index in 0..3 {
        for key in &keys {
            assert_eq!(cluster.client(index).value_of(key, (1, 3)), None, "{key} through node {index}");
        }
        assert_eq!(cluster.records(index, "passing"), Records::new(), "node {index}");
    }
    // Nor does it come back with a node that returns after its end.
    cluster.kill(1);
    let target = format!("{}&ttl=300", entity_of("short", QUORUM));
    cluster.client(0).request("PUT", &target, &[], Some(b"passing")).expect(201, "PUT with ttl");
    std::thread::sleep(Duration::from_millis(310));
    cluster.start(1);
    cluster.wait_up();
    eventually("hints of the passing value are done with", CAUGHT_UP_WITHIN, || pending_of(&cluster, 1) == 0);
    assert_eq!(cluster.client(1).value_of("short", (1, 3)), None);
    assert!(cluster.holders("short").is_empty());
}

#[test]
fn the_largest_value_binds_clients_and_not_replicas() {
    let limited = |launch: Launch, max: &str| launch.usual_environment().environment("KOLTSO_MAX_VALUE", max);
    let mut cluster = Cluster::planned(3, |_, launch, _| Some(limited(launch, "4MiB")));
    cluster.wait_up();
    let large = vec![7; 3 << 20];
    cluster.kill(2);
    cluster.client(0).put_of("large", &large, QUORUM).expect(201, "PUT 2/3 of 3 MiB");
    cluster.terminate(0);
    cluster.terminate(1);
    for index in 0..3 {
        cluster.change(index, |launch| limited(launch, "1MiB"));
    }
    cluster.start_all();
    cluster.wait_up();
    eventually("the replica that was away has what it missed", CAUGHT_UP_WITHIN, || {
        cluster.holders("large").contains(&2) && pending_of(&cluster, 2) == 0
    });
    for index in 0..3 {
        assert_eq!(cluster.client(index).value_of("large", (3, 3)).as_deref(), Some(&large[..]));
        assert_eq!(cluster.client(index).put_of("other", &large, QUORUM).status, 413);
    }
    for index in [0, 1] {
        assert_eq!(cluster.peer(index, 2)["needs_repair"], false);
        assert_eq!(cluster.peer(index, 2)["hints_dropped"], 0);
    }
}

#[test]
fn two_nodes_are_a_cluster_too() {
    let mut cluster = Cluster::of(2);
    let (old, new) = (numbered("pair", 50, "old"), numbered("pair", 50, "new"));
    cluster.client(0).store_all_of(&old, (2, 2));
    cluster.kill(1);
    let mut client = cluster.client(0);
    quickly("PUT 2/2", || client.put_of("pair-fails", "value", (2, 2))).expect(504, "PUT 2/2 with one of two down");
    client.expect_all_of(some(&old), (1, 2), "one of two");
    client.store_all_of(&new, (1, 2));
    cluster.start(1);
    cluster.wait_up();
    cluster.client(1).expect_all_of(some(&new), (2, 2), "both again");
    cluster.wait_records(1, "pair0", &new, CAUGHT_UP_WITHIN, "what the other one missed");
    cluster.kill(0);
    cluster.client(1).expect_all_of(some(&new), (1, 2), "the other one alone");
}

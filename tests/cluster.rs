//! SPEC.md section 5 from outside, a scenario a promise: real processes on loopback, stopped, killed, paused and restarted.
//!
//! Faults under load are in `cluster_faults.rs`, bad input in `cluster_hostile.rs`, cut networks in `cluster_netns.rs`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use koltso_testkit::client::{Framing, request_bytes};
use koltso_testkit::cluster::{Quorum, Records, entity_of, numbered, replicas};
use koltso_testkit::{Client, Cluster, Random, Response, entity, eventually, files, volume};

const QUORUM: Quorum = (2, 3);

/// How soon a node that returns has what it missed.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(10);

/// How long an answer may take that waits for a node which does not answer (`--replica-timeout` is 1 s).
const TIMED_OUT_WITHIN: Duration = Duration::from_millis(2500);

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

// --- placement ---

/// Writes keys with from=1, 2, … n, each time through other coordinators, and returns the holders after each round.
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
        // Every coordinator wrote every key in every round, so a copy in another place would be seen as one too many.
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

// --- ack, from and the answers ---

#[test]
fn ack_and_from_have_their_defaults() {
    // With one node down, `answered` in the answer of a write shows what was asked, and 504 what was needed.
    for (count, from, ack) in [(2, 2, 2), (3, 3, 2)] {
        let mut cluster = Cluster::of(count);
        let put = |client: &mut Client, query: &str| {
            client.request("PUT", &format!("/v0/entity?id=defaults{query}"), &[], Some(b"value"))
        };
        for index in 0..count {
            let mut client = cluster.client(index);
            let (answered, asked) = replicas(&put(&mut client, "").expect(201, "PUT without parameters"));
            assert_eq!(asked, from, "{count} nodes: the default of from");
            assert!(answered >= ack, "{count} nodes: the default of ack is {ack}, {answered} answered");
            assert_eq!(replicas(&put(&mut client, "&from=1").expect(201, "PUT from=1")), (1, 1));
            assert_eq!(replicas(&put(&mut client, "&from=2").expect(201, "PUT from=2")), (2, 2), "ack of from=2 is 2");
            assert_eq!(replicas(&put(&mut client, "&ack=1").expect(201, "PUT ack=1")).1, from, "from with ack=1");
        }
        cluster.kill(count - 1);
        let mut client = cluster.client(0);
        let status = if count == 2 { 504 } else { 201 };
        put(&mut client, "").expect(status, "PUT without parameters and one node down");
        put(&mut client, &format!("&ack={count}")).expect(504, "PUT ack=all with one node down");
        put(&mut client, "&ack=1").expect(201, "PUT ack=1 with one node down");
        let status = if count == 2 { 504 } else { 200 };
        client.get("defaults").expect(status, "GET without parameters and one node down");
    }
}

#[test]
fn ack_and_from_out_of_range_are_400() {
    for count in [2_u32, 3] {
        let cluster = Cluster::of(usize::try_from(count).unwrap());
        let mut client = cluster.client(0);
        let (over, beyond) = (count + 1, format!("ack=1&from={}", count + 1));
        let bad = [
            "ack=0",
            "from=0",
            "ack=0&from=0",
            "ack=0&from=2",
            "ack=2&from=1",
            &format!("ack={over}"),
            &format!("from={over}"),
            &format!("ack={over}&from={over}"),
            &beyond,
            "ack=-1",
            "from=-1",
            "ack=x",
            "from=x",
            "ack=",
            "from=",
            "ack=1.5",
            "ack=1&from=99999999999999999999999",
            "ack=99999999999999999999999",
        ];
        for query in bad {
            for method in ["GET", "PUT", "DELETE", "HEAD"] {
                let body = (method == "PUT").then_some(&b"value"[..]);
                let answer = client.request(method, &format!("/v0/entity?id=key&{query}"), &[], body);
                let answer = answer.expect(400, &format!("{method} with {query} on {count} nodes"));
                assert!(method == "HEAD" || answer.text().len() > 10, "{query}: {:?}", answer.text());
            }
        }
        client.get_of("key", (1, count)).expect(404, "nothing was written");
    }
}

#[test]
fn any_node_takes_any_request() {
    let cluster = Cluster::of(3);
    for owner in 0..3 {
        for coordinator in 0..3 {
            let mut client = cluster.client(coordinator);
            let key = key_of(&cluster, owner, b"value");
            for index in 0..3 {
                assert_eq!(cluster.client(index).value_of(&key, (1, 1)).as_deref(), Some(&b"value"[..]));
            }
            client.put_of(&key, "other", (1, 1)).expect(201, "PUT");
            assert_eq!(cluster.holders(&key), [owner]);
            client.delete_of(&key, (1, 1)).expect(202, "DELETE");
            client.delete_of(&key, (1, 1)).expect(202, "DELETE of a key that is not there");
            for index in 0..3 {
                assert_eq!(cluster.client(index).value_of(&key, (1, 1)), None);
            }
        }
    }
}

#[test]
fn answers_say_how_many_replicas_answered() {
    let mut cluster = Cluster::of(3);
    let fits = |answer: &Response, (ack, from): Quorum, what: &str| {
        let (answered, asked) = replicas(answer);
        assert!(
            ack <= answered && answered <= asked && asked <= from,
            "{what}: {answered}/{asked} for {ack} of {from}"
        );
    };
    for quorum in [(1, 1), (1, 2), (2, 2), (1, 3), (2, 3), (3, 3)] {
        let mut client = cluster.client(usize::try_from(quorum.0 % 3).unwrap());
        let key = format!("header-{}-{}", quorum.0, quorum.1);
        let put = client.put_of(&key, "value", quorum).expect(201, "PUT");
        fits(&put, quorum, "PUT");
        assert_eq!(replicas(&put).1, quorum.1, "a write asks all of from");
        fits(&client.get_of(&key, quorum).expect(200, "GET"), quorum, "GET");
        fits(&client.request("HEAD", &entity_of(&key, quorum), &[], None).expect(200, "HEAD"), quorum, "HEAD");
        fits(&client.delete_of(&key, quorum).expect(202, "DELETE"), quorum, "DELETE");
        fits(&client.get_of(&key, quorum).expect(404, "GET of nothing"), quorum, "GET of nothing");
    }
    cluster.kill(2);
    for index in [0, 1] {
        let mut client = cluster.client(index);
        assert_eq!(replicas(&client.put_of("one-less", "value", (3, 3)).expect(504, "PUT 3/3")), (2, 3));
        assert_eq!(replicas(&client.get_of("one-less", (3, 3)).expect(504, "GET 3/3")), (2, 3));
        assert_eq!(replicas(&client.delete_of("one-less", (3, 3)).expect(504, "DELETE 3/3")), (2, 3));
        assert_eq!(replicas(&client.put_of("one-less", "value", QUORUM).expect(201, "PUT 2/3")), (2, 3));
    }
}

#[test]
fn too_few_replicas_is_504_soon_and_names_who_is_silent() {
    let mut cluster = Cluster::of(3);
    let ways: [(&str, End, End); 2] =
        [("killed", Cluster::kill, Cluster::start), ("paused", Cluster::pause, Cluster::resume)];
    for (way, end, back) in ways {
        end(&mut cluster, 1);
        let silent = cluster.url(1);
        for coordinator in [0, 2] {
            let mut client = cluster.client(coordinator);
            for turn in 0..3 {
                let answers = [
                    quickly("PUT 3/3", || client.put_of("silent", "value", (3, 3))),
                    quickly("GET 3/3", || client.get_of("silent", (3, 3))),
                    quickly("DELETE 3/3", || client.delete_of("silent", (3, 3))),
                ];
                for answer in answers {
                    let what = format!("{way}, through node {coordinator}, turn {turn}");
                    let answer = answer.expect(504, &what);
                    assert_eq!(answer.reason, "Not Enough Replicas", "{what}");
                    let text = answer.text();
                    assert!(text.contains(&silent), "{what}: the body does not name {silent}: {text:?}");
                    for other in [0, 2] {
                        let url = cluster.url(other);
                        assert!(!text.contains(&url), "{what}: {url} did answer: {text:?}");
                    }
                    let rest = text.replace(&silent, "");
                    assert!(rest.contains('2'), "{what}: the body does not say that 2 answered: {text:?}");
                }
            }
        }
        back(&mut cluster, 1);
        cluster.wait_up();
        cluster.client(0).put_of("silent", "value", (3, 3)).expect(201, &format!("PUT 3/3 after node 1 was {way}"));
    }
}

#[test]
fn a_key_whose_only_owner_is_down_is_504_and_never_404() {
    let mut cluster = Cluster::of(3);
    let key = key_of(&cluster, 2, b"value");
    for (way, end) in ENDS {
        end(&mut cluster, 2);
        for coordinator in [0, 1] {
            let mut client = cluster.client(coordinator);
            let answer = quickly("GET 1/1", || client.get_of(&key, (1, 1))).expect(504, &format!("GET, owner {way}"));
            assert_eq!(replicas(&answer), (0, 1));
            quickly("PUT 1/1", || client.put_of(&key, "other", (1, 1))).expect(504, &format!("PUT, owner {way}"));
        }
        cluster.start(2);
        cluster.wait_up();
        let value = cluster.client(0).value_of(&key, (1, 1));
        // A write that was answered 504 may still arrive, through a hint; a lost value may not.
        assert!(value.is_some(), "the value is gone after the owner was {way}");
    }
}

#[test]
fn status_and_metrics_show_the_cluster() {
    let mut cluster = Cluster::of(3);
    cluster.client(0).store_all_of(&numbered("metrics", 10, ""), (3, 3));
    for index in 0..3 {
        let status = cluster.status(index);
        let nodes: Vec<&str> =
            status["cluster"]["nodes"].as_array().unwrap().iter().flat_map(|url| url.as_str()).collect();
        assert!(cluster.urls().iter().all(|url| nodes.contains(&url.as_str())) && nodes.len() == 3, "{nodes:?}");
        assert_eq!(status["cluster"]["peers"].as_array().unwrap().len(), 2, "{status}");
        let metrics = cluster.metrics(index);
        for peer in cluster.others(index) {
            let entry = cluster.peer(index, peer);
            assert!(
                entry["refused"].is_null() && entry["hints_pending"] == 0 && entry["circuit"] == "closed",
                "{entry}"
            );
            assert!(entry["clock_skew_ms"].as_f64().is_some_and(|skew| skew.abs() < 500.0), "{entry}");
            let label = format!("peer=\"{}\"", cluster.url(peer));
            for name in ["koltso_replica_", "koltso_hints_"] {
                let found = metrics.lines().any(|line| line.starts_with(name) && line.contains(&label));
                assert!(found, "no {name}… with {label} in the metrics of node {index}");
            }
        }
    }
    cluster.kill(1);
    let mut client = cluster.client(0);
    client.store_all_of(&numbered("metrics", 10, "again"), QUORUM);
    eventually("a dead node is not up in /status", Duration::from_secs(3), || !cluster.sees(0, 1));
    assert!(cluster.sees(0, 2), "{}", cluster.peer(0, 2));
    eventually("missed writes are counted", Duration::from_secs(3), || cluster.hints_pending(0, 1) == 10);
    assert!(cluster.peer(0, 1)["hints_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{}", cluster.peer(0, 1));
    cluster.start(1);
    cluster.wait_up();
    eventually("delivered writes are not pending", CAUGHT_UP_WITHIN, || cluster.hints_pending(0, 1) == 0);
}

#[test]
fn a_node_serves_before_its_peers_have_come() {
    let mut cluster = Cluster::planned(3, |index, launch, _| (index == 1).then_some(launch));
    let mut client = cluster.client(1);
    quickly("PUT 1/3 alone", || client.put_of("alone", "value", (1, 3))).expect(201, "PUT 1/3 alone");
    quickly("PUT 2/3 alone", || client.put_of("alone", "value", QUORUM)).expect(504, "PUT 2/3 alone");
    cluster.start(2);
    eventually("two of three make a quorum", Duration::from_secs(5), || {
        cluster.client(1).put_of("alone", "two", QUORUM).status == 201
    });
    assert_eq!(cluster.client(2).value_of("alone", QUORUM).as_deref(), Some(&b"two"[..]));
    cluster.start(0);
    cluster.wait_up();
    eventually("the last one has it too", CAUGHT_UP_WITHIN, || cluster.holders("alone") == [0, 1, 2]);
}

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

// --- nodes that were away ---

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
    let mut cluster = Cluster::of(3);
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

fn pending_of(cluster: &Cluster, peer: usize) -> u64 {
    cluster.others(peer).into_iter().map(|index| cluster.hints_pending(index, peer)).sum()
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

// --- repair ---

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

// --- values ---

#[test]
fn large_and_empty_values_pass_through_a_node_that_does_not_own_them() {
    let mut random = Random::announced("large_and_empty_values");
    let cluster = Cluster::of(3);
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

#[test]
fn a_peer_that_is_away_for_longer_than_hints_are_kept_needs_repair() {
    // Hints are kept for half of the grace time.
    let mut cluster = Cluster::with(3, "--tombstone-grace 12s");
    let mut client = cluster.client(0);
    client.put_of("deleted", "value", (3, 3)).expect(201, "PUT 3/3");
    cluster.kill(2);
    client.delete_of("deleted", QUORUM).expect(202, "DELETE 2/3");
    for index in [0, 1] {
        eventually("an absence is noticed by all", Duration::from_secs(20), || {
            cluster.peer(index, 2)["needs_repair"].as_bool() == Some(true)
        });
        let folder = cluster.data(index).join("hints");
        let marks = std::fs::read_dir(folder)
            .unwrap()
            .filter(|peer| peer.as_ref().unwrap().path().join("needs-repair").exists());
        assert_eq!(marks.count(), 1, "the mark is on disk");
    }
    cluster.start(2);
    cluster.wait_up();
    assert_eq!(cluster.client(2).value_of("deleted", QUORUM), None);
    eventually("a read has repaired it", CAUGHT_UP_WITHIN, || cluster.holders("deleted").is_empty());
}

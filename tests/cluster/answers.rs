//! `ack`, `from`, and what the answers say.

use std::time::Duration;

use crate::{CAUGHT_UP_WITHIN, ENDS, End, QUORUM, key_of, quickly};
use koltso_testkit::client::request_bytes;
use koltso_testkit::cluster::{Quorum, entity_of, numbered, replicas};
use koltso_testkit::{Client, Cluster, Response, eventually};

#[test]
fn ack_and_from_have_their_defaults() {
    // With one node down, `answered` in the answer of a write shows what was asked, and 504 what
    // was needed.
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
    let on_disk = || cluster.peer(0, 1)["hints_bytes"].as_u64().is_some_and(|bytes| bytes > 0);
    eventually("and their bytes, once they are on disk", Duration::from_secs(3), on_disk);
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

#[test]
fn answers_to_put_carry_the_tag_that_any_node_gives_back() {
    let cluster = Cluster::of(3);
    for quorum in [(1, 1), (2, 3), (3, 3)] {
        for size in [10, 200_000] {
            let mut client = cluster.client(0);
            let put = client.put_of("tagged", vec![b'v'; size], quorum).expect(201, "PUT");
            let tag = put.header("etag").expect("201 carries an ETag").to_owned();
            for index in 0..3 {
                let got = cluster.client(index).get_of("tagged", quorum).expect(200, "GET");
                assert_eq!(got.header("etag"), Some(&*tag), "node {index}, {quorum:?}");
            }
        }
    }
}

#[test]
fn content_type_and_encoding_reach_every_replica_also_by_hints_and_repair() {
    let mut cluster = Cluster::of(3);
    let headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Encoding", "gzip")];
    let assert_kept = |answer: Response, what: &str| {
        assert_eq!(answer.header("content-type"), Some(headers[0].1), "{what}");
        assert_eq!(answer.header("content-encoding"), Some(headers[1].1), "{what}");
    };
    let sizes = [0, 100, 200_000];
    let put = |client: &mut Client, key: &str, size: usize, quorum: Quorum| {
        client.request("PUT", &entity_of(key, quorum), &headers, Some(&vec![b'v'; size])).expect(201, key);
    };
    for size in sizes {
        put(&mut cluster.client(0), &format!("all-{size}"), size, (3, 3));
    }
    cluster.kill(2);
    for size in sizes {
        put(&mut cluster.client(0), &format!("hint-{size}"), size, QUORUM);
    }
    cluster.start(2);
    for size in sizes {
        let key = format!("hint-{size}");
        eventually("the missed value has arrived", CAUGHT_UP_WITHIN, || cluster.holders(&key).contains(&2));
    }
    // Written to one, then repaired by a read that asks all.
    for size in sizes {
        let key = format!("read-{size}");
        put(&mut cluster.client(0), &key, size, (1, 3));
        let read = cluster.client(1).get_of(&key, (3, 3)).expect(200, &key);
        assert_kept(read, &key);
        let part = cluster.client(2).request("GET", &entity_of(&key, (3, 3)), &[("Range", "bytes=0-0")], None);
        let part = part.expect(if size == 0 { 416 } else { 206 }, &key);
        if size > 0 {
            assert_kept(part, &key);
        }
    }
    for alone in 0..3 {
        for other in (0..3).filter(|&other| other != alone) {
            cluster.kill(other);
        }
        for way in ["all", "hint", "read"] {
            for size in sizes {
                let key = format!("{way}-{size}");
                for method in ["GET", "HEAD"] {
                    let answer = cluster.client(alone).request(method, &entity_of(&key, (1, 3)), &[], None);
                    assert_kept(answer.expect(200, &key), &format!("{method} {key} of node {alone} alone"));
                }
            }
        }
        cluster.start_all();
        cluster.wait_up();
    }
}

#[test]
fn pipelined_requests_of_a_connection_take_effect_in_their_order() {
    let mut cluster = Cluster::of(3);
    let records = numbered("piped", 40, "old");
    cluster.client(0).store_all_of(&records, (3, 3));
    // A peer that stalls makes reads ask another, which may have the writes behind them by then.
    cluster.pause(2);
    let mut batch = Vec::new();
    for key in records.keys() {
        let target = entity_of(key, QUORUM);
        batch.extend_from_slice(&request_bytes("GET", &target, &[], None));
        batch.extend_from_slice(&request_bytes("PUT", &target, &[], Some(b"new")));
        batch.extend_from_slice(&request_bytes("GET", &target, &[], None));
        batch.extend_from_slice(&request_bytes("DELETE", &target, &[], None));
        batch.extend_from_slice(&request_bytes("GET", &target, &[], None));
    }
    let mut client = cluster.client(0);
    client.send(&batch).unwrap();
    for (key, old) in &records {
        let shown = String::from_utf8_lossy(key);
        assert!(client.read("GET").expect(200, &shown).body == *old, "{shown}: a read saw the write behind it");
        client.read("PUT").expect(201, &shown);
        assert_eq!(client.read("GET").expect(200, &shown).body, b"new", "{shown}: a read missed the write before it");
        client.read("DELETE").expect(202, &shown);
        client.read("GET").expect(404, &shown);
    }
    cluster.resume(2);
}

//! `GET /v0/entities`: order, bounds, streaming, and what it promises while writers, compaction and
//! restarts go on.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use koltso_testkit::client::{Framing, request_bytes, split_record};
use koltso_testkit::{Client, Random, Server, encode, eventually, volume};

fn keys(client: &mut Client, query: &str) -> Vec<String> {
    client.range(query).into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect()
}

#[test]
fn records_come_in_the_order_of_their_keys_bytes() {
    let server = Server::fresh("");
    let mut client = server.connect();
    let mut all: Vec<Vec<u8>> = [
        &b"a"[..],
        b"aa",
        b"a\0",
        b"ab",
        b"b",
        b"B",
        b"a\xff",
        b"\x01",
        b"\xff",
        b"\xff\xff",
        b"a/b",
        b"a b",
        b"~",
        "ключ".as_bytes(),
    ]
    .iter()
    .map(|key| key.to_vec())
    .collect();
    for key in &all {
        client.store(key, [b"value of ", &key[..]].concat());
    }
    all.sort();
    let got = client.range("start=%00");
    assert_eq!(got.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), all);
    for (key, value) in got {
        assert_eq!(value, [b"value of ", &key[..]].concat());
    }
}

#[test]
fn the_start_is_included_and_the_end_is_not() {
    let server = Server::fresh("");
    let mut client = server.connect();
    for key in ["a", "b", "b0", "c", "d"] {
        client.store(key, "v");
    }
    let cases: &[(&str, &[&str])] = &[
        ("start=b&end=c", &["b", "b0"]),
        ("start=b&end=c0", &["b", "b0", "c"]),
        ("start=b", &["b", "b0", "c", "d"]),
        ("start=aa&end=bb", &["b", "b0"]),
        ("start=a&end=a", &[]),
        ("start=c&end=b", &[]),
        ("start=e", &[]),
        ("start=0&end=a", &[]),
        ("start=d&end=zzz", &["d"]),
        ("end=c&start=b", &["b", "b0"]),
        ("start=b%30&end=%64", &["b0", "c"]),
        ("start=a&&end=b", &["a"]),
    ];
    for (query, expected) in cases {
        assert_eq!(keys(&mut client, query), *expected, "{query}");
    }
}

#[test]
fn the_limit_is_a_number_of_records() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store_all((0..50).map(|index| (format!("k{index:02}"), "v")), 50);
    for limit in [1_usize, 2, 49, 50, 51, 1_000_000] {
        let got = keys(&mut client, &format!("start=k&limit={limit}"));
        let expected: Vec<_> = (0..limit.min(50)).map(|index| format!("k{index:02}")).collect();
        assert_eq!(got, expected, "limit={limit}");
    }
    assert_eq!(keys(&mut client, "start=k1&end=k2&limit=3"), ["k10", "k11", "k12"]);
    // The limit counts live records only.
    for index in 0..10 {
        client.delete(format!("k{index:02}")).expect(202, "DELETE");
    }
    assert_eq!(keys(&mut client, "start=k&limit=2"), ["k10", "k11"]);
}

#[test]
fn a_wrong_start_end_or_limit_is_400() {
    let server = Server::fresh("");
    let queries = [
        "",
        "?",
        "?start=",
        "?start",
        "?end=a",
        "?limit=3",
        "?start=a&limit=0",
        "?start=a&limit=",
        "?start=a&limit=x",
        "?start=a&limit=-1",
        "?start=a&limit=1.5",
        "?start=a&limit=99999999999999999999999",
        "?start=%",
        "?start=a&end=%zz",
    ];
    for query in queries {
        let mut client = server.connect();
        let response = client.request("GET", &format!("/v0/entities{query}"), &[], None).expect(400, query);
        assert!(response.text().ends_with('\n'), "{query}: {:?}", response.text());
    }
    let long = "k".repeat(4097);
    server.ask("GET", &format!("/v0/entities?start={long}")).expect(400, "a start of 4097 bytes");
}

#[test]
fn an_empty_range_is_200_without_a_chunk() {
    let server = Server::fresh("");
    let mut client = server.connect();
    let got = client.request("GET", "/v0/entities?start=a", &[], None).expect(200, "a range of an empty store");
    assert_eq!(got.framing, Framing::Chunked);
    assert!(got.body.is_empty());
    client.get("absent").expect(404, "the connection is kept after a range");
}

#[test]
fn one_chunk_is_one_record() {
    let server = Server::fresh("");
    let mut client = server.connect();
    // Values that look like records or chunks, keys with a line end: the chunk says where a record
    // ends.
    let big = Random::seeded(7).bytes(2 << 20);
    let records: BTreeMap<&[u8], &[u8]> = BTreeMap::from([
        (&b"a"[..], &b""[..]),
        (b"b", b"\n\n\n"),
        (b"c\nd", b"value"),
        (b"d", b"0\r\n\r\n"),
        (b"e", b"f\nnot a record"),
        (b"g", &big[..]),
        (b"\n", b"\n"),
        (b"h\r\n", b"\0"),
    ]);
    for (key, value) in &records {
        client.store(key, value);
    }
    let expected: Vec<Vec<u8>> = records.iter().map(|(key, value)| [key, &b"\n"[..], value].concat()).collect();
    let got = client.request("GET", "/v0/entities?start=%00", &[], None).expect(200, "a range");
    assert!(got.chunks == expected, "{} chunks for {} records", got.chunks.len(), expected.len());
}

#[test]
fn a_range_over_http_1_0_is_raw_and_ends_with_the_connection() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store("a", "1");
    client.store("b", "2");
    client.send(b"GET /v0/entities?start=a HTTP/1.0\r\n\r\n").unwrap();
    let got = client.read("GET").expect(200, "a range over HTTP/1.0");
    assert_eq!(got.framing, Framing::UntilClose);
    assert_eq!(got.body, b"a\n1b\n2");
}

#[test]
fn ranges_may_be_pipelined_among_other_requests() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store_all((0..200).map(|index| (format!("k{index:03}"), vec![b'v'; 1000])), 50);
    let range = request_bytes("GET", "/v0/entities?start=k", &[], None);
    let batch = [
        &range[..],
        &koltso_testkit::client::get_bytes("k007"),
        &koltso_testkit::client::put_bytes("k200", b"new"),
        &range,
    ]
    .concat();
    client.send(&batch).unwrap();
    assert_eq!(client.read("GET").expect(200, "a range").chunks.len(), 200);
    assert_eq!(client.read("GET").expect(200, "a GET after it").body.len(), 1000);
    client.read("PUT").expect(201, "a PUT after it");
    assert_eq!(client.read("GET").expect(200, "a range that sees the PUT before it").chunks.len(), 201);
}

#[test]
fn deleted_expired_and_overwritten_records_are_listed_as_they_are_now() {
    let mut server = Server::fresh("");
    let mut client = server.connect();
    client.store_all((0..100).map(|index| (format!("k{index:02}"), "old")), 50);
    for index in 0..100 {
        let key = format!("k{index:02}");
        match index % 4 {
            0 => drop(client.delete(&key).expect(202, "DELETE")),
            1 => client.store(&key, "new"),
            2 => {
                let target = format!("/v0/entity?id={key}&ttl=1");
                client.request("PUT", &target, &[], Some(b"passing")).expect(201, "PUT with ttl");
            }
            _ => {}
        }
    }
    std::thread::sleep(Duration::from_millis(5));
    let expected: Vec<(Vec<u8>, Vec<u8>)> = (0..100)
        .filter(|index| index % 2 == 1)
        .map(|index| {
            (format!("k{index:02}").into_bytes(), if index % 4 == 1 { b"new".to_vec() } else { b"old".to_vec() })
        })
        .collect();
    assert_eq!(client.range("start=k"), expected);
    server.kill();
    server.start_again();
    assert_eq!(server.connect().range("start=k"), expected, "after kill -9 and a restart");
    server.terminate();
    server.start_again();
    assert_eq!(server.connect().range("start=k"), expected, "after a clean restart");
}

#[test]
fn each_stable_record_appears_exactly_once_while_others_are_overwritten_and_compacted() {
    const STABLE: usize = 5000;
    const HOT: usize = 200;
    let mut random = Random::announced("each_stable_record_appears_exactly_once");
    let server = Server::fresh("--sync os");
    let mut client = server.connect();
    let stable: BTreeMap<Vec<u8>, Vec<u8>> =
        (0..STABLE).map(|index| (format!("k{index:05}").into_bytes(), random.bytes(index % 300))).collect();
    client.store_all(stable.iter(), 100);
    let hot_key = |index: usize| format!("k{:05}-hot", index * (STABLE / HOT));
    let hot_value = |thread: usize, version: u64, size: usize| {
        let mut value = format!("{thread} {version} ").into_bytes();
        value.resize(value.len() + size, b'h');
        value
    };
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let ranges = std::thread::scope(|scope| {
        for thread in 0..2 {
            let mut client = server.connect();
            let mut random = random.fork();
            let (stop, written, server) = (&stop, &written, &server);
            scope.spawn(move || {
                let mut version = 0;
                while !stop.load(Ordering::Relaxed) {
                    let mut batch = Vec::new();
                    for _ in 0..16 {
                        version += 1;
                        let key = hot_key(random.below(HOT));
                        if random.one_in(10) {
                            batch.push(request_bytes("DELETE", &koltso_testkit::entity(key), &[], None));
                        } else {
                            let size = random.between(0, 16_000);
                            batch.push(koltso_testkit::client::put_bytes(key, &hot_value(thread, version, size)));
                        }
                    }
                    written.fetch_add(
                        u64::try_from(batch.iter().map(Vec::len).sum::<usize>()).unwrap(),
                        Ordering::Relaxed,
                    );
                    client.send(&batch.concat()).unwrap();
                    for _ in 0..16 {
                        let answer = client.read("PUT");
                        assert!(
                            matches!(answer.status, 201 | 202),
                            "{} {}\n{}",
                            answer.status,
                            answer.text(),
                            server.log()
                        );
                    }
                }
            });
        }
        let start = Instant::now();
        let mut ranges = 0;
        let mut check = || {
            let mut listed = client.range("start=k&end=l");
            for pair in listed.windows(2) {
                let (a, b) = (String::from_utf8_lossy(&pair[0].0), String::from_utf8_lossy(&pair[1].0));
                assert!(pair[0].0 < pair[1].0, "out of order or twice: {a} before {b}");
            }
            listed.retain(|(key, value)| {
                let hot = key.ends_with(b"-hot");
                assert!(
                    !hot || value.len() < 17_000 && value.iter().filter(|&&byte| byte == b' ').count() == 2,
                    "no value of a hot key"
                );
                !hot
            });
            assert_eq!(listed.len(), stable.len(), "stable records in a range during writes");
            assert!(
                listed.iter().zip(&stable).all(|(got, (key, value))| got.0 == *key && got.1 == *value),
                "another value"
            );
            ranges += 1;
        };
        // A panic in a check must not leave the writers running for ever.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while start.elapsed() < volume(Duration::from_secs(8), Duration::from_secs(60)) {
                check();
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        ranges
    });
    println!(
        "{ranges} ranges during {} MB of overwrites; {}",
        written.load(Ordering::Relaxed) / 1_000_000,
        server.status()
    );
    assert!(ranges >= 3, "only {ranges} ranges in the whole time");
}

/// Files of segments that have not been sealed.
fn segments_without_sidecar(folder: &Path) -> BTreeSet<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|it| it == "log") && !path.with_extension("idx").exists())
        .collect()
}

#[test]
fn a_large_range_is_complete_and_takes_no_memory() {
    let records = volume(200_000, 2_000_000);
    let mut server = Server::fresh("--sync os");
    let value = [b'v'; 150];
    std::thread::scope(|scope| {
        for part in 0..2 {
            let mut client = server.connect();
            scope.spawn(move || {
                client.store_all(
                    (0..records).filter(|index| index % 2 == part).map(|index| (format!("{index:08}"), value)),
                    256,
                );
            });
        }
    });
    for restarted in [false, true] {
        if restarted {
            server.kill();
            let left = segments_without_sidecar(server.data());
            server.start_again();
            // Sealing what was not sealed takes memory of its own for a while; it is not what is measured
            // here.
            eventually("what the first process left is sealed", Duration::from_secs(60), || {
                left.is_disjoint(&segments_without_sidecar(server.data()))
            });
        }
        let mut rest = (Instant::now(), server.anonymous_kib());
        eventually("memory is at rest", Duration::from_secs(30), || {
            let now = server.anonymous_kib();
            if now.abs_diff(rest.1) > 64 {
                rest = (Instant::now(), now);
            }
            rest.0.elapsed() > Duration::from_millis(700)
        });
        let before = server.anonymous_kib();
        let mut peak = before;
        let mut client = server.connect();
        client.send(&request_bytes("GET", "/v0/entities?start=0", &[], None)).unwrap();
        client.read_head("GET").unwrap().unwrap().expect(200, "a large range");
        let (mut count, start) = (0, Instant::now());
        while let Some(chunk) = client.read_chunk().unwrap() {
            let (key, value) = split_record(&chunk);
            assert_eq!(key, format!("{count:08}").into_bytes());
            assert_eq!(value.len(), 150);
            count += 1;
            if count % 1000 == 0 {
                peak = peak.max(server.anonymous_kib());
            }
        }
        assert_eq!(count, records);
        println!("{records} records in {:?}; anonymous memory {before} KiB -> at most {peak} KiB", start.elapsed());
        // The range itself is over 30 MB: a tenth of that is room for buffers, not for the answer.
        assert!(peak < before + 8 * 1024, "memory grew from {before} to {peak} KiB during a range");
        // From the middle, without reading what comes before it.
        assert_eq!(keys(&mut client, "start=00100000&limit=2"), ["00100000", "00100001"]);
    }
}

#[test]
fn a_slow_reader_slows_down_nobody_and_still_gets_everything() {
    const RECORDS: usize = 20_000;
    let server = Server::fresh("--threads 1");
    server.connect().store_all((0..RECORDS).map(|index| (format!("s{index:06}"), vec![b'v'; 1000])), 100);
    let mut slow = server.connect();
    slow.send(&request_bytes("GET", "/v0/entities?start=s&end=t", &[], None)).unwrap();
    slow.read_head("GET").unwrap().unwrap().expect(200, "a range");
    let mut count = 0;
    let mut take = |slow: &mut Client, most: usize| {
        for _ in 0..most {
            let Some(chunk) = slow.read_chunk().unwrap() else { return false };
            assert_eq!(split_record(&chunk).0, format!("s{count:06}").into_bytes());
            count += 1;
        }
        true
    };
    let mut other = server.connect();
    let (start, mut slowest) = (Instant::now(), Duration::ZERO);
    while start.elapsed() < Duration::from_secs(3) {
        assert!(take(&mut slow, 20), "the range was over too soon");
        let sent = Instant::now();
        other.store("other", "value");
        other.get("other").expect(200, "GET");
        assert_eq!(keys(&mut other, "start=s&limit=1"), ["s000000"]);
        slowest = slowest.max(sent.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    while take(&mut slow, 1000) {}
    assert_eq!(count, RECORDS);
    assert!(slowest < Duration::from_millis(700), "three requests took {slowest:?} beside a slow reader");
}

#[test]
fn readers_of_ranges_that_stop_reading_cost_no_memory() {
    let mut server = Server::fresh("--request-timeout 2s --idle-timeout 2s");
    server.connect().store_all((0..2000).map(|index| (format!("s{index:06}"), vec![b'v'; 20_000])), 50);
    let stuck: Vec<Client> = (0..100)
        .map(|_| {
            let mut client = server.connect();
            client.send(&request_bytes("GET", "/v0/entities?start=s", &[], None)).unwrap();
            client
        })
        .collect();
    let start = Instant::now();
    let mut other = server.connect();
    while start.elapsed() < Duration::from_millis(1800) {
        other.store("a", "value");
        let kib = server.anonymous_kib();
        assert!(kib < 150_000, "{kib} KiB of anonymous memory for 100 stuck ranges");
    }
    drop(other);
    eventually("stuck ranges are ended within the request timeout", Duration::from_secs(8), || {
        server.established() == 0
    });
    drop(stuck);
    server.assert_serves();
}

#[test]
fn a_store_behaves_as_a_sorted_map_through_restarts() {
    let mut random = Random::announced("a_store_behaves_as_a_sorted_map_through_restarts");
    let mut server = Server::fresh("");
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut touched: BTreeSet<Vec<u8>> = BTreeSet::new();
    let key = |random: &mut Random| -> Vec<u8> {
        let length = random.between(1, 4);
        (0..length).map(|_| *random.choose(b"ab\0\xffc")).collect()
    };
    for round in 0..volume(8, 40) {
        let mut clients: Vec<Client> = (0..4).map(|_| server.connect()).collect();
        for _ in 0..volume(400, 2000) {
            let client = &mut clients[random.below(4)];
            match random.below(20) {
                0..=8 => {
                    let key = key(&mut random);
                    let length = *random.choose(&[0, 1, 20, 300, 5000]);
                    let value = random.bytes(length);
                    client.store(&key, &value);
                    touched.insert(key.clone());
                    model.insert(key, value);
                }
                9..=12 => {
                    let key = key(&mut random);
                    client.delete(&key).expect(202, "DELETE");
                    touched.insert(key.clone());
                    model.remove(&key);
                }
                13..=17 => {
                    let key = key(&mut random);
                    assert_eq!(client.value(&key).as_ref(), model.get(&key), "round {round}, GET of {key:?}");
                }
                _ => {
                    let (start, end) = (key(&mut random), key(&mut random));
                    let limit = random.one_in(2).then(|| random.between(1, 30));
                    let mut query = format!("start={}", encode(&start));
                    if random.one_in(3) {
                        query.push_str("&end=%ff%ff%ff%ff%ff");
                    } else {
                        query.push_str(&format!("&end={}", encode(&end)));
                    }
                    if let Some(limit) = limit {
                        query.push_str(&format!("&limit={limit}"));
                    }
                    let end = if query.contains("%ff%ff%ff%ff%ff") { vec![255; 5] } else { end };
                    let expected: Vec<Vec<u8>> = model
                        .iter()
                        .filter(|(key, _)| **key >= start && **key < end)
                        .take(limit.unwrap_or(usize::MAX))
                        .map(|(key, value)| [key, &b"\n"[..], value].concat())
                        .collect();
                    let got = client.request("GET", &format!("/v0/entities?{query}"), &[], None).expect(200, &query);
                    assert!(
                        got.chunks == expected,
                        "round {round}, {query}: {} chunks, not {}",
                        got.chunks.len(),
                        expected.len()
                    );
                }
            }
        }
        if random.one_in(2) {
            server.kill();
        } else {
            server.terminate();
        }
        server.start_again();
        let mut client = server.connect();
        for key in &touched {
            assert_eq!(client.value(key).as_ref(), model.get(key), "round {round}, {key:?} after a restart");
        }
        let listed = client.request("GET", "/v0/entities?start=%00", &[], None).expect(200, "the whole range");
        assert_eq!(listed.chunks.len(), model.len(), "round {round}, the whole range after a restart");
        let figure = server.storage_figure("records");
        assert_eq!(figure, u64::try_from(model.len()).unwrap(), "round {round}, records in /status");
    }
}

/// The records of an answer in which their lengths stand in front of them.
fn split_by_lengths(mut body: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut records = Vec::new();
    while let Some((lengths, rest)) = body.split_first_chunk::<8>() {
        let length = |at: usize| u32::from_le_bytes(lengths[at..at + 4].try_into().unwrap()) as usize;
        let (key, rest) = rest.split_at(length(0));
        let (value, rest) = rest.split_at(length(4));
        records.push((key.to_vec(), value.to_vec()));
        body = rest;
    }
    assert!(body.is_empty(), "{} bytes are left", body.len());
    records
}

#[test]
fn records_with_their_lengths_are_told_apart_whatever_their_bytes_are() {
    let server = Server::fresh("");
    let mut client = server.connect();
    let large = vec![b'\n'; 200_000];
    let records: Vec<(Vec<u8>, Vec<u8>)> =
        [(&b"\0\n\xff"[..], &b"\n\nvalue"[..]), (b"a", b""), (b"a\n", b"\n"), (b"a\nb", b"c"), (b"large\n", &large)]
            .map(|(key, value)| (key.to_vec(), value.to_vec()))
            .to_vec();
    client.store_all(records.iter().cloned(), 5);
    let answer = client.request("GET", "/v0/entities?start=%00&format=lengths", &[], None).expect(200, "lengths");
    assert_eq!(answer.header("content-type"), Some("application/vnd.koltso.records"));
    assert!(split_by_lengths(&answer.body) == records);
    // Without chunks, too, over HTTP/1.0.
    let mut old = server.connect();
    old.send(b"GET /v0/entities?start=%00&format=lengths HTTP/1.0\r\n\r\n").unwrap();
    assert!(split_by_lengths(&old.read("GET").expect(200, "HTTP/1.0").body) == records);
    let lines = client.request("GET", "/v0/entities?start=a&end=a%0a&format=lines", &[], None).expect(200, "lines");
    assert_eq!((lines.body.as_slice(), lines.header("content-type")), (&b"a\n"[..], Some("application/octet-stream")));
    let wrong = client.request("GET", "/v0/entities?start=a&format=json", &[], None).expect(400, "json");
    assert!(wrong.text().contains("format is lines or lengths"), "{}", wrong.text());
}

//! Hints that are damaged, and values that nobody reads.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{CAUGHT_UP_WITHIN, QUORUM, SAID_WITHIN, assert_no_panic, lines_with};
use koltso_testkit::client::request_bytes;
use koltso_testkit::cluster::{Records, entity_of, numbered};
use koltso_testkit::{Cluster, Random, eventually, files};

/// The file of a hint folder that holds the most.
fn largest_file(folder: &Path) -> PathBuf {
    let all = files::listing(folder);
    let largest = all.into_iter().filter(|(path, ..)| path.is_file()).max_by_key(|(_, size, _)| *size);
    largest.expect("a file of hints").0
}

/// Where the last hint lies in a file of hints: its key, or None where keys are not in it.
fn last_hint(path: &Path, records: &Records) -> Option<u64> {
    let bytes = std::fs::read(path).unwrap();
    let find = |key: &Vec<u8>| bytes.windows(key.len()).rposition(|window| window == &key[..]);
    records.keys().filter_map(find).max().map(|at| u64::try_from(at).unwrap())
}

/// One connection, a few hundred bytes of requests: 128 of them in a batch, each with a value of up
/// to 32 MiB from a peer.
#[test]
fn clients_that_do_not_read_large_values_of_peers_are_bounded() {
    // Thirty values of 8 MiB are asked for at once.
    let cluster = Cluster::with(2, "--max-in-flight-bytes 32MiB --replica-timeout 10s");
    let value = vec![7; 8 << 20];
    cluster.client(0).put_of("large", &value, (1, 1)).expect(201, "PUT");
    let other = cluster.others(cluster.holders("large")[0])[0];
    let mut lazy = cluster.client(other);
    let get = request_bytes("GET", &entity_of("large", (1, 1)), &[], None);
    let before = cluster.server(other).anonymous_kib();
    lazy.send(&get.repeat(30)).unwrap();
    let mut most = before;
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(100));
        most = most.max(cluster.server(other).anonymous_kib());
    }
    // The bound, what is being read and sent, and what the allocator keeps.
    assert!(most - before < 100 << 10, "{} MiB for values that nobody reads", (most - before) >> 10);
    let answers: Vec<_> = (0..30).map(|_| lazy.read("GET")).collect();
    for answer in &answers {
        assert!(answer.status == 503 || (answer.status == 200 && answer.body == value), "{}", answer.status);
    }
    assert!(answers.iter().filter(|answer| answer.status == 200).count() >= 2);
    let refused = answers.iter().find(|answer| answer.status == 503).expect("some are refused");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(cluster.client(other).value_of("large", (1, 1)), Some(value), "once they are gone");
}

#[test]
fn damaged_hints_cost_no_more_than_themselves() {
    let mut random = Random::announced("damaged_hints_cost_no_more_than_themselves");
    for damage in ["the last hint cut", "garbage after the end", "a bit flipped", "an empty file more"] {
        let mut cluster = Cluster::of(3);
        let records = numbered("hint", 100, "value");
        cluster.kill(2);
        // In order and one at a time, so that the last key is the last hint.
        let mut client = cluster.client(0);
        for (key, value) in &records {
            client.put_of(key, value, QUORUM).expect(201, "PUT 2/3");
        }
        eventually("every missed write is a hint", Duration::from_secs(3), || cluster.hints_pending(0, 2) == 100);
        cluster.terminate(0);
        let path = largest_file(&cluster.hints(0));
        let size = path.metadata().unwrap().len();
        let last = last_hint(&path, &records);
        // How many hints may be lost with it, and whether it is to be said.
        let (lost, said) = match damage {
            "the last hint cut" => {
                files::cut(&path, last.map_or(size - 5, |at| at + 4));
                (1, true)
            }
            "garbage after the end" => {
                let mut bytes = std::fs::read(&path).unwrap();
                bytes.extend_from_slice(&random.bytes(1000));
                std::fs::write(&path, bytes).unwrap();
                (0, true)
            }
            "a bit flipped" => {
                files::flip(&path, last.map_or(size / 2, |at| at + 2), 4);
                (1, true)
            }
            _ => {
                std::fs::write(path.with_file_name("not-a-hint"), b"").unwrap();
                (0, false)
            }
        };
        cluster.start(0);
        if said {
            eventually("damaged hints are in the log", SAID_WITHIN, || {
                !lines_with(cluster.server(0).log().as_str(), &["hint"]).is_empty()
            });
        }
        // What the hints bring, and nothing else: no reads that would repair.
        cluster.start(2);
        let arrived = || cluster.records(2, "hint");
        eventually("intact hints arrive", CAUGHT_UP_WITHIN, || arrived().len() >= 100 - lost);
        for (key, value) in arrived() {
            assert_eq!(records.get(&key), Some(&value), "{damage}: a value that nobody wrote");
        }
        // Nothing that was acknowledged is lost: a quorum has it.
        let expected = records.iter().map(|(key, value)| (key, Some(value)));
        cluster.client(2).expect_all_of(expected, QUORUM, damage);
        assert!(cluster.log(0).lines().count() < 60, "{damage}: a flood:\n{}", cluster.log(0));
        assert_no_panic(&cluster);
    }
}

#[test]
fn a_hint_folder_full_of_rubbish_does_not_stop_a_start() {
    let mut random = Random::announced("a_hint_folder_full_of_rubbish_does_not_stop_a_start");
    let mut cluster = Cluster::of(3);
    cluster.kill(2);
    cluster.client(0).store_all_of(&numbered("rubbish", 20, "value"), QUORUM);
    eventually("missed writes are hints", Duration::from_secs(3), || cluster.hints_pending(0, 2) == 20);
    cluster.kill(0);
    for (path, size, _) in files::listing(&cluster.hints(0)) {
        if path.is_file() {
            std::fs::write(&path, random.bytes(usize::try_from(size.min(100_000)).unwrap())).unwrap();
        }
    }
    cluster.start_all();
    cluster.wait_up();
    let expected = numbered("rubbish", 20, "value");
    let some = expected.iter().map(|(key, value)| (key, Some(value)));
    cluster.client(2).expect_all_of(some, QUORUM, "with rubbish for hints");
    // Hints are taken and delivered again.
    cluster.kill(2);
    let more = numbered("more", 20, "value");
    cluster.client(0).store_all_of(&more, QUORUM);
    cluster.start(2);
    cluster.wait_records(2, "more", &more, CAUGHT_UP_WITHIN, "hints after rubbish");
    assert_no_panic(&cluster);
}

//! Nodes that lack what they once confirmed: an emptied folder at a known address, an older copy of
//! one, a copy of another node's. They take writes, answer no reads, and nobody reads what is not
//! so.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::{QUORUM, SAID_WITHIN, assert_no_panic};
use koltso_testkit::cluster::{Records, numbered};
use koltso_testkit::random::{Random, seed};
use koltso_testkit::server::{Launch, free_port, program};
use koltso_testkit::{Client, Cluster, eventually, files};

/// How long a node may take to meet the others and hear what they think of it.
const NOTICED_WITHIN: Duration = Duration::from_secs(10);
/// How long a node may take until it has some thousand records again, on a busy machine.
const REBUILT_WITHIN: Duration = Duration::from_secs(90);

fn standing(cluster: &Cluster, index: usize) -> String {
    cluster.status(index)["standing"].as_str().unwrap_or_default().to_owned()
}

#[track_caller]
fn wait_standing(cluster: &Cluster, index: usize, expected: &str) {
    let begun = Instant::now();
    while standing(cluster, index) != expected {
        let (now, log) = (standing(cluster, index), cluster.log(index));
        assert!(begun.elapsed() < NOTICED_WITHIN, "node {index} is {now} and not {expected}:\n{log}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
fn wait_all_whole(cluster: &Cluster) {
    cluster.wait_up();
    for index in cluster.running() {
        wait_standing(cluster, index, "whole");
    }
}

/// How often a node has said that it may lack something.
fn lacks_something(cluster: &Cluster, index: usize) -> u64 {
    cluster.log(index).matches("may lack what it once confirmed").count() as u64
}

/// Nodes that give each other so little a second that one which lacks [`large_records`] rebuilds for
/// longer than any test looks.
fn that_rebuild_slowly(count: usize) -> Cluster {
    let cluster = Cluster::with(count, "--repair-rate 64KiB");
    wait_all_whole(&cluster);
    cluster
}

/// 8 MiB of records.
fn large_records() -> Records {
    let padded = |(key, value): (Vec<u8>, Vec<u8>)| (key, [value, vec![b'.'; 128 << 10]].concat());
    numbered("key", 64, "first").into_iter().map(padded).collect()
}

/// The node ends and comes back with an empty folder.
#[track_caller]
fn empty(cluster: &mut Cluster, index: usize) {
    cluster.kill(index);
    remove(cluster.data(index));
    cluster.start(index);
}

fn remove(folder: &Path) {
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_cluster_is_whole_after_its_first_start_and_after_each_other() {
    let mut cluster = Cluster::of(3);
    wait_all_whole(&cluster);
    cluster.client(0).put_of("key", "value", QUORUM).expect(201, "PUT 2/3");
    for killed in [true, false] {
        for index in 0..3 {
            if killed {
                cluster.kill(index);
            } else {
                cluster.terminate(index);
            }
        }
        cluster.start_all();
        wait_all_whole(&cluster);
        for index in 0..3 {
            assert_eq!(cluster.client(index).value_of("key", QUORUM).as_deref(), Some(&b"value"[..]), "node {index}");
        }
    }
    // One that is alone again is what it was.
    cluster.kill(0);
    cluster.kill(1);
    cluster.kill(2);
    cluster.start(2);
    wait_standing(&cluster, 2, "whole");
    assert_no_panic(&cluster);
}

#[test]
fn an_emptied_node_answers_no_reads_and_the_others_answer_for_it() {
    for count in [2_u32, 3, 5] {
        let quorum = (count / 2 + 1, count);
        let mut cluster = that_rebuild_slowly(count as usize);
        let records = large_records();
        cluster.client(0).store_all_of(&records, quorum);
        let last = count as usize - 1;
        empty(&mut cluster, last);
        wait_standing(&cluster, last, "rebuilding");
        assert_eq!(lacks_something(&cluster, last), 1, "{}", cluster.log(last));
        for index in 0..count as usize {
            let mut client = cluster.client(index);
            for (key, value) in &records {
                // With two nodes, a majority is both of them.
                let answer = client.get_of(key, quorum);
                if count > 2 {
                    answer.expect(200, "GET with a majority");
                } else {
                    let text = answer.expect(504, "GET 2/2 with one that rebuilds").text();
                    assert!(text.contains("one replica is rebuilding"), "{text}");
                }
                assert_eq!(client.value_of(key, (1, count)).as_ref(), Some(value), "GET 1 through node {index}");
            }
            assert_eq!(client.get_of("key-that-never-was", (1, count)).status, 404, "node {index}");
        }
        let range = cluster.client(last).request("GET", "/v0/entities?start=a", &[], None);
        assert!(range.expect(503, "a range of a node that may lack records").text().contains("another one"));
        // What is written meanwhile it has, and says so.
        cluster.client(last).put_of("new", "value", (count, count)).expect(201, "PUT to all");
        assert_eq!(cluster.status(last)["state"], "serving");
        cluster.client(last).request("GET", "/health", &[], None).expect(200, "/health");
        assert_no_panic(&cluster);
    }
}

#[test]
fn a_node_that_rebuilds_goes_on_with_that_after_a_restart() {
    let mut cluster = that_rebuild_slowly(3);
    cluster.client(0).store_all_of(&large_records(), (3, 3));
    empty(&mut cluster, 2);
    wait_standing(&cluster, 2, "rebuilding");
    // By itself, it knows it from its folder.
    for index in 0..3 {
        cluster.kill(index);
    }
    cluster.start(2);
    wait_standing(&cluster, 2, "rebuilding");
    let refused = cluster.client(2).get_of("key00000", (1, 3)).expect(504, "GET 1/3 at an emptied node");
    assert!(refused.text().contains("rebuilding"), "{}", refused.text());
}

#[test]
fn a_folder_of_last_week_is_noticed_whenever_it_was_copied() {
    for stopped in [true, false] {
        let mut cluster = Cluster::of(3);
        wait_all_whole(&cluster);
        let keys = numbered("key", 50, "first");
        cluster.client(0).store_all_of(&keys, (3, 3));
        let copies = tempfile::tempdir().unwrap();
        let copy = copies.path().join("copy");
        if stopped {
            cluster.terminate(2);
            files::copy_folder(cluster.data(2), &copy);
            cluster.start(2);
            cluster.wait_up();
        } else {
            files::copy_folder(cluster.data(2), &copy);
            // Within the seconds that a clock's file may be old, only a restart tells.
            cluster.kill(2);
            cluster.start(2);
            cluster.wait_up();
        }
        for key in keys.keys() {
            cluster.client(1).delete_of(key, (3, 3)).expect(202, "DELETE 3/3");
        }
        cluster.client(1).put_of("after", "value", (3, 3)).expect(201, "PUT 3/3");
        cluster.kill(2);
        remove(cluster.data(2));
        files::copy_folder(&copy, cluster.data(2));
        let before = lacks_something(&cluster, 2);
        cluster.start(2);
        eventually("it is noticed", NOTICED_WITHIN, || lacks_something(&cluster, 2) > before);
        for index in 0..3 {
            for quorum in [QUORUM, (1, 3)] {
                let mut client = cluster.client(index);
                for key in keys.keys() {
                    assert_eq!(client.value_of(key, quorum), None, "a deleted key came back, {quorum:?} at {index}");
                }
                assert_eq!(client.value_of("after", quorum).as_deref(), Some(&b"value"[..]), "{quorum:?} at {index}");
            }
        }
        assert_no_panic(&cluster);
    }
}

#[test]
fn a_folder_that_is_copied_to_two_nodes_is_refused() {
    let mut cluster = that_rebuild_slowly(3);
    cluster.client(0).put_of("key", "value", (3, 3)).expect(201, "PUT 3/3");
    cluster.terminate(1);
    cluster.terminate(2);
    remove(cluster.data(2));
    files::copy_folder(cluster.data(1), cluster.data(2));
    // With the list of members, the start is refused. Without, the others notice.
    std::fs::remove_file(cluster.data(2).join("members")).unwrap();
    cluster.start(1);
    cluster.start(2);
    for index in [0, 1] {
        eventually("one identity at two places is refused", SAID_WITHIN, || {
            let said = cluster.peer(index, 2)["refused"].as_str().map(str::to_owned);
            said.is_some_and(|said| said.contains("one identity, two places"))
        });
    }
    eventually("the right one is met again", NOTICED_WITHIN, || cluster.sees(0, 1) && cluster.sees(1, 0));
    assert_eq!(cluster.client(0).value_of("key", QUORUM).as_deref(), Some(&b"value"[..]));
    assert_no_panic(&cluster);
}

#[test]
fn a_copy_that_is_started_beside_its_original_is_refused() {
    let mut cluster = Cluster::of(3);
    wait_all_whole(&cluster);
    cluster.client(0).put_of("key", "value", (3, 3)).expect(201, "PUT 3/3");
    let copies = tempfile::tempdir().unwrap();
    let copy = copies.path().join("copy");
    files::copy_folder(cluster.data(2), &copy);
    let place = format!("--node {} --replica-listen 127.0.0.1:{}", cluster.url(2), free_port());
    let launch = Launch::on(&copy).port(free_port()).flags(&Cluster::flags_of(&cluster.urls())).flags(&place);
    let mut second = launch.start();
    for index in [0, 1] {
        eventually("one identity at two places is refused", SAID_WITHIN, || {
            cluster.log(index).contains("one identity, two places")
        });
    }
    eventually("it says why it is refused", SAID_WITHIN, || {
        second.log().contains("it refused: one identity, two places")
    });
    // The first one goes on, and nobody thinks that it lacks something.
    for index in 0..3 {
        assert_eq!(cluster.client(index).value_of("key", QUORUM).as_deref(), Some(&b"value"[..]));
        assert_eq!(lacks_something(&cluster, index), 0, "{}", cluster.log(index));
    }
    second.kill();
    // It may be started again at once, whoever had been refused in between.
    cluster.kill(2);
    cluster.start(2);
    wait_all_whole(&cluster);
    assert_eq!(lacks_something(&cluster, 2), 0, "{}", cluster.log(2));
    assert_no_panic(&cluster);
}

#[test]
fn two_emptied_nodes_of_three_answer_nothing_as_if_they_were_whole() {
    let mut cluster = that_rebuild_slowly(3);
    let records = numbered("key", 50, "first");
    cluster.client(0).store_all_of(&records, QUORUM);
    for index in [1, 2] {
        cluster.kill(index);
        remove(cluster.data(index));
    }
    cluster.start_all();
    for index in [1, 2] {
        wait_standing(&cluster, index, "rebuilding");
    }
    for index in 0..3 {
        let mut client = cluster.client(index);
        for key in records.keys() {
            let answer = client.get_of(key, QUORUM).expect(504, "GET 2/3 with two that rebuild");
            assert!(answer.text().contains("2 replicas are rebuilding"), "{}", answer.text());
            let one = client.get_of(key, (1, 3));
            assert!([200, 404].contains(&one.status), "GET 1/3: {}", one.status);
        }
    }
    assert_eq!(standing(&cluster, 0), "whole");
    let shown = Command::new(program()).args(["status", "--url", &cluster.url(1)]).output().unwrap();
    let text = String::from_utf8_lossy(&shown.stdout);
    assert_eq!(shown.status.code(), Some(1), "{text}");
    assert!(text.contains("koltso cluster recover") && text.contains("rebuilding"), "{text}");
    assert_no_panic(&cluster);
}

/// What was acknowledged for each key: a number that only grows.
struct Acknowledged(Vec<AtomicU64>);

fn number_in(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

/// Writes and reads with a majority, through a node, until it is told to stop. Returns how many
/// reads were answered.
fn load(cluster: &Cluster, node: usize, seed: u64, (done, stop): (&Acknowledged, &AtomicBool)) -> u64 {
    let mut random = Random::seeded(seed);
    let mut client: Option<Client> = None;
    let mut answered = 0;
    while !stop.load(Ordering::Relaxed) {
        let Some(connected) = &mut client else {
            client = Client::connect(cluster.address(node)).ok();
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        // Each key has one writer, so that its numbers grow.
        let at = random.below(done.0.len() as u64) as usize;
        let key = format!("loaded{at:04}");
        let before = done.0[at].load(Ordering::SeqCst);
        if at % 2 == node && random.below(2) == 0 {
            let put = connected.put_of(&key, (before + 1).to_string(), QUORUM);
            if put.status == 201 {
                done.0[at].store(before + 1, Ordering::SeqCst);
            }
            continue;
        }
        let got = connected.get_of(&key, QUORUM);
        match got.status {
            200 => assert!(number_in(&got.body) >= before, "{key}: {} after {before}", number_in(&got.body)),
            404 => assert_eq!(before, 0, "{key} was acknowledged"),
            // The node that was killed was asked: nobody knows.
            503 | 504 => continue,
            status => panic!("{key}: {status} {}", got.text()),
        }
        answered += 1;
    }
    answered
}

#[test]
fn under_load_every_quorum_read_is_right_at_every_moment_around_an_emptied_node() {
    let mut cluster = Cluster::of(3);
    wait_all_whole(&cluster);
    let done = Acknowledged((0..200).map(|_| AtomicU64::new(0)).collect());
    let seed = seed("under_load_every_quorum_read_is_right");
    for round in 0..3 {
        let stop = AtomicBool::new(false);
        let victim = 2;
        cluster.kill(victim);
        remove(cluster.data(victim));
        let served: u64 = std::thread::scope(|scope| {
            let (cluster, done, stop) = (&cluster, &done, &stop);
            let loads: Vec<_> = (0..2)
                .map(|node| {
                    scope.spawn(move || load(cluster, node, seed.wrapping_add(round * 2 + node as u64), (done, stop)))
                })
                .collect();
            std::thread::sleep(Duration::from_millis(300));
            stop.store(true, Ordering::Relaxed);
            loads.into_iter().map(|load| load.join().unwrap()).sum()
        });
        assert!(served > 0, "no read was answered while the node was away");
        cluster.start(victim);
        let stop = AtomicBool::new(false);
        let served: u64 = std::thread::scope(|scope| {
            let (cluster, done, stop) = (&cluster, &done, &stop);
            let loads: Vec<_> = (0..2)
                .map(|node| {
                    scope.spawn(move || load(cluster, node, seed.wrapping_add(round * 2 + node as u64), (done, stop)))
                })
                .collect();
            eventually("it is noticed", NOTICED_WITHIN, || lacks_something(cluster, victim) > round);
            std::thread::sleep(Duration::from_millis(500));
            stop.store(true, Ordering::Relaxed);
            loads.into_iter().map(|load| load.join().unwrap()).sum()
        });
        assert!(served > 0, "no read was answered with an emptied node");
    }
    assert_no_panic(&cluster);
}

#[test]
fn a_rebuilt_node_has_all_that_was_acknowledged_and_is_remembered() {
    let mut cluster = Cluster::of(3);
    wait_all_whole(&cluster);
    let (kept, deleted) = (numbered("kept", 2000, "first"), numbered("deleted", 200, "first"));
    cluster.client(0).store_all_of(&kept, QUORUM);
    cluster.client(0).store_all_of(&deleted, QUORUM);
    for key in deleted.keys() {
        cluster.client(1).delete_of(key, QUORUM).expect(202, "DELETE 2/3");
    }
    empty(&mut cluster, 2);
    eventually("it is noticed", NOTICED_WITHIN, || lacks_something(&cluster, 2) > 0);
    let during = numbered("during", 200, "second");
    cluster.client(2).store_all_of(&during, QUORUM);
    eventually("it is whole again", REBUILT_WITHIN, || standing(&cluster, 2) == "whole");
    // A node that has not been told yet would doubt it once more after a restart.
    let is_told = |index: usize| cluster.peer(index, 2)["standing"] == "whole";
    eventually("the others are told", REBUILT_WITHIN, || is_told(0) && is_told(1));
    // With one of the others gone, every majority has it.
    cluster.kill(0);
    for index in [1, 2] {
        let mut client = cluster.client(index);
        let present = kept.iter().chain(&during).map(|(key, value)| (key, Some(value)));
        client.expect_all_of(present, QUORUM, "after the rebuild");
        client.expect_all_of(deleted.keys().map(|key| (key, None)), QUORUM, "after the rebuild");
    }
    cluster.start(0);
    // All remember the new folder, and nobody is taken for another any more.
    for index in 0..3 {
        cluster.kill(index);
    }
    cluster.start_all();
    wait_all_whole(&cluster);
    assert_eq!(lacks_something(&cluster, 2), 1, "{}", cluster.log(2));
    assert_no_panic(&cluster);
}

//! Lists of nodes that are wrong or differ.

use std::time::{Duration, Instant};

use crate::{SAID_WITHIN, assert_no_panic, assert_refused, lines_with};
use koltso_testkit::cluster::replicas;
use koltso_testkit::server::free_port;
use koltso_testkit::{Cluster, eventually};

#[test]
fn a_list_that_cannot_be_right_is_refused_at_the_start() {
    let (port, other) = (free_port(), free_port());
    let own = format!("http://127.0.0.1:{port}");
    let peer = format!("http://127.0.0.1:{other}");
    assert_refused(port, &format!("--cluster {own},{peer},{peer}"), &["twice", "duplicate", "more than once"]);
    assert_refused(port, &format!("--cluster {own},{own}"), &["twice", "duplicate", "more than once"]);
    assert_refused(port, &format!("--cluster {peer}"), &["--cluster", "--node"]);
    assert_refused(port, &format!("--cluster {own},{peer} --node http://127.0.0.1:1"), &["--cluster", "--node"]);
    for bad in ["nonsense", "http://", "http://127.0.0.1:99999", "ftp://127.0.0.1:80", "http://127.0.0.1:80/path"] {
        assert_refused(port, &format!("--cluster {own},{bad}"), &["--cluster", bad]);
    }
}

#[test]
fn lists_that_differ_are_said_once_and_crash_nobody() {
    let third = free_port();
    let cluster = Cluster::planned(2, |index, launch, urls| {
        let mut list = urls.to_vec();
        if index == 1 {
            list.push(format!("http://127.0.0.1:{third}"));
        }
        Some(launch.only_flags(&Cluster::flags_of(&list)))
    });
    for index in [0, 1] {
        eventually("a list that differs is in the log", SAID_WITHIN, || {
            !lines_with(&cluster.log(index), &["--cluster"]).is_empty()
        });
        let refused = |index: usize| cluster.peer(index, 1 - index)["refused"].as_str().map(str::to_owned);
        eventually("a list that differs is in /status", SAID_WITHIN, || {
            refused(index).is_some_and(|sentence| sentence.contains("--cluster"))
        });
    }
    // What cannot be agreed on is refused, and quickly; what a node can do alone it does.
    let start = Instant::now();
    let mut client = cluster.client(0);
    let answer = client.put_of("key", "value", (2, 2)).expect(504, "PUT 2/2 between nodes with other lists");
    assert_eq!(replicas(&answer), (1, 2));
    client.put_of("key", "value", (1, 2)).expect(201, "PUT 1/2");
    assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());
    let before: Vec<usize> = (0..2).map(|index| cluster.log(index).lines().count()).collect();
    std::thread::sleep(Duration::from_secs(2));
    for (index, nodes) in [(0, 2), (1, 3)] {
        let more = cluster.log(index).lines().count() - before[index];
        assert!(more <= 8, "{more} lines in two seconds:\n{}", cluster.log(index));
        // One of all the nodes that it knows, so that it is one of them itself.
        cluster.client(index).put_of("alive", "value", (1, nodes)).expect(201, "PUT 1 of all");
    }
    assert_no_panic(&cluster);
}

#[test]
fn the_order_of_the_list_does_not_matter() {
    let cluster = Cluster::planned(3, |index, launch, urls| {
        let mut list = urls.to_vec();
        list.rotate_left(index);
        Some(launch.only_flags(&Cluster::flags_of(&list)))
    });
    cluster.wait_up();
    cluster.client(0).put_of("key", "value", (3, 3)).expect(201, "PUT 3/3");
}

#[test]
fn nodes_of_two_clusters_do_not_mix() {
    // The same list, but another name: somebody else's cluster at an address that was ours once.
    let cluster = Cluster::planned(2, |index, launch, _| Some(launch.flags(&format!("--cluster-name name{index}"))));
    let refused = |index: usize| cluster.peer(index, 1 - index)["refused"].is_string();
    eventually("a peer of another cluster is refused", SAID_WITHIN, || refused(0) || refused(1));
    cluster.client(0).put_of("key", "value", (2, 2)).expect(504, "PUT 2/2 over two clusters");
    eventually("it is in a log", SAID_WITHIN, || {
        (0..2).any(|index| !lines_with(&cluster.log(index), &["name"]).is_empty())
    });
    assert_no_panic(&cluster);
}

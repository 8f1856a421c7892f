//! The cluster's secret.

use std::time::Duration;

use crate::{QUORUM, SAID_WITHIN, assert_no_panic, assert_refused, lines_with, secret_file};
use koltso_testkit::cluster::numbered;
use koltso_testkit::server::free_port;
use koltso_testkit::{Cluster, Launch, eventually};

#[test]
fn a_replica_listener_beyond_loopback_needs_a_secret() {
    let (port, other) = (free_port(), free_port());
    let list = format!("--cluster http://127.0.0.1:{port},http://127.0.0.1:{other}");
    assert_refused(port, &format!("{list} --replica-listen 0.0.0.0:{}", port + 10_000), &["secret"]);
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    assert_refused(port, &format!("{list} --cluster-secret-file {}", missing.display()), &["secret", "missing"]);
    let empty = secret_file(folder.path(), "empty", "");
    assert_refused(port, &format!("{list} --cluster-secret-file {}", empty.display()), &["secret", "empty"]);
}

#[test]
fn nodes_with_the_same_secret_work_together() {
    let folder = tempfile::tempdir().unwrap();
    let secret = "correct horse battery staple, and some more of it";
    let plain = secret_file(folder.path(), "plain", secret);
    let with_line_end = secret_file(folder.path(), "line", &format!("{secret}\n"));
    let cluster = Cluster::planned(3, |index, launch, _| {
        let file = if index == 1 { &with_line_end } else { &plain };
        Some(launch.flags(&format!("--cluster-secret-file {}", file.display())))
    });
    cluster.wait_up();
    for index in 0..3 {
        cluster.client(index).put_of("key", format!("{index}"), (3, 3)).expect(201, "PUT 3/3");
        assert!(!cluster.log(index).contains(secret), "the secret is in the log");
        assert!(!cluster.status(index).to_string().contains(secret), "the secret is in /status");
    }
}

#[test]
fn a_secret_is_replaced_node_by_node_while_the_cluster_serves() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = ("the secret that is to be replaced", "the secret that takes its place");
    let file = |index: usize, content: &str| secret_file(folder.path(), &format!("secret{index}"), content);
    let mut cluster = Cluster::planned(3, |index, launch, _| {
        Some(launch.flags(&format!("--cluster-secret-file {}", file(index, old).display())))
    });
    cluster.wait_up();
    let records = numbered("secret", 20, "value");
    for lines in [format!("{old}\n{new}\n"), format!("{new}\n{old}\n"), format!("{new}\n")] {
        for index in 0..3 {
            file(index, &lines);
            cluster.terminate(index);
            let other = (index + 1) % 3;
            cluster.client(other).store_all_of(&records, QUORUM);
            cluster.start(index);
            cluster.wait_up();
            cluster.client(index).put_of("all", "value", (3, 3)).expect(201, "PUT 3/3 after each restart");
        }
    }
    for index in 0..3 {
        assert!(lines_with(&cluster.log(index), &["secret"]).is_empty(), "{}", cluster.log(index));
    }
}

/// Whether a text calls a node by a number: `node 24539`.
fn names_a_number(text: &str) -> bool {
    text.split("node ").skip(1).any(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
}

#[test]
fn a_node_with_another_secret_or_none_is_refused() {
    for other in [Some("another secret that is just as long as it is"), None] {
        let folder = tempfile::tempdir().unwrap();
        let right = secret_file(folder.path(), "right", "the secret that the first two nodes have got");
        let wrong = other.map(|secret| secret_file(folder.path(), "wrong", secret));
        let mut cluster = Cluster::planned(3, |index, launch, _| {
            let file = if index == 2 { wrong.as_ref() } else { Some(&right) };
            Some(match file {
                Some(file) => launch.flags(&format!("--cluster-secret-file {}", file.display())),
                None => launch,
            })
        });
        eventually("the right ones see each other", Duration::from_secs(10), || {
            cluster.sees(0, 1) && cluster.sees(1, 0)
        });
        let mentions = |index: usize| lines_with(&cluster.log(index), &["secret"]).len();
        eventually("a refused secret is in a log", SAID_WITHIN, || mentions(0) + mentions(1) + mentions(2) > 0);
        let refused = |index: usize, peer: usize| cluster.peer(index, peer)["refused"].is_string();
        eventually("and in a /status", SAID_WITHIN, || refused(0, 2) || refused(2, 0));
        // By their URLs, which people know, and not by the numbers of versions.
        for (index, line) in (0..3)
            .flat_map(|index| lines_with(&cluster.log(index), &["secret"]).into_iter().map(move |line| (index, line)))
        {
            assert!(!names_a_number(&line), "node {index}: {line}");
            let both = [index, 2].map(|index| cluster.url(index));
            let named = line.matches("http://").count() >= 2 && both.iter().all(|url| line.contains(url));
            assert!(named || index == 2, "node {index}: {both:?}: {line}");
        }
        for (index, peer) in [(0, 2), (2, 0)] {
            let refused = cluster.peer(index, peer)["refused"].as_str().unwrap_or_default().to_owned();
            assert!(!names_a_number(&refused), "node {index}: {refused}");
        }
        let records = numbered("secret", 50, "value");
        cluster.client(0).store_all_of(&records, QUORUM);
        let expected = records.iter().map(|(key, value)| (key, Some(value)));
        cluster.client(1).expect_all_of(expected, QUORUM, "between the right ones");
        cluster.client(0).put_of("all", "value", (3, 3)).expect(504, "PUT 3/3 with a node that is refused");
        cluster.client(2).put_of("all", "value", QUORUM).expect(504, "PUT 2/3 through the node that is refused");
        for index in 0..3 {
            assert!(mentions(index) <= 20, "a flood:\n{}", cluster.log(index));
        }
        assert_no_panic(&cluster);
        // It has met nobody and lists nothing. By itself it says what it has.
        cluster.terminate(2);
        let alone = Launch::on(cluster.data(2)).start();
        assert_eq!(alone.connect().range("start=secret&end=secret~"), [], "a node without the secret got records");
    }
}

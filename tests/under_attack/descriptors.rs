//! Few file descriptors: clients get what files, peers and pages leave, and nobody is told that the
//! disk is full.

use std::time::Duration;

use crate::{hits, limited, silent};
use koltso_testkit::cluster::Quorum;
use koltso_testkit::json::json_number;
use koltso_testkit::{Client, Cluster, Launch, Server, eventually};

/// Processor time of a process so far.
fn processor_time(server: &Server) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn lines_about_connections(server: &Server) -> Vec<String> {
    server.log().lines().filter(|line| line.contains("--max-connections")).map(str::to_owned).collect()
}

#[test]
fn idle_connections_leave_descriptors_for_files_and_pages() {
    // With the fewest, what five segments need while they wait to be sealed is all there is.
    for (limit, puts) in [(64, 40), (48, 40), (32, 16)] {
        let folder = tempfile::tempdir().unwrap();
        let mut server = limited(&folder.path().join("data"), limit, limit, "").start();
        let mut client = server.connect();
        let idle = silent(server.address(), 150);
        let value = vec![b'v'; 8 << 20];
        for index in 0..puts {
            let answer = client.put(format!("key{}", index % 10), &value);
            assert_eq!(answer.status, 201, "PUT {index} with {limit} descriptors: {}\n{}", answer.text(), server.log());
        }
        let status = client.request("GET", "/status", &[], None).expect(200, "GET /status").text();
        let taken = json_number(&status, "max_connections");
        assert!((1..u64::from(limit)).contains(&taken), "{taken}");
        assert_eq!(json_number(&status, "resource_errors"), 0, "{status}");
        let said = lines_about_connections(&server);
        assert_eq!(said.len(), 1, "{said:?}");
        for word in [format!("at most {taken} connections"), "10000".to_owned(), format!("may open {limit} files")] {
            assert!(said[0].contains(&word), "{word} is not in {}", said[0]);
        }
        drop(idle);
        eventually("the idle ones are gone", Duration::from_secs(10), || server.established() <= 1);
        server.assert_serves();
        server.terminate();
    }
}

#[test]
fn the_soft_limit_is_raised_and_then_nothing_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = limited(&folder.path().join("data"), 64, 4096, "--max-connections 500").start();
    let mut clients: Vec<Client> = (0..200).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.get("absent").expect(404, "one of 200 connections");
    }
    assert!(lines_about_connections(&server).is_empty(), "{}", server.log());
    server.assert_serves();
}

#[test]
fn too_few_descriptors_for_a_single_client_are_refused_and_nothing_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let Err(refusal) = limited(&data, 20, 20, "").try_start() else { panic!("20 descriptors are too few") };
    assert_eq!(refusal.status.code(), Some(2), "{}", refusal.stderr);
    let lines: Vec<&str> = refusal.stderr.lines().collect();
    assert!(lines.len() == 1 && lines[0].contains("may open 20 files and sockets (ulimit -n)"), "{lines:?}");
    assert!(!data.exists());
}

#[test]
fn an_accept_that_finds_no_descriptors_does_not_spin_and_those_who_wait_are_served_later() {
    let mut server = Server::fresh("--threads 1");
    let mut client = server.connect();
    client.store("key", "value");
    let allowed = server.limit_descriptors(1);
    let mut waiting: Vec<Client> = (0..5).map(|_| server.connect()).collect();
    let before = processor_time(&server);
    std::thread::sleep(Duration::from_secs(2));
    let spent = processor_time(&server).saturating_sub(before);
    assert!(spent < Duration::from_secs(1), "{spent:?} of processor time in 2 s for nothing");
    assert_eq!(client.value("key").as_deref(), Some(&b"value"[..]), "those who are there are served");
    server.limit_descriptors(allowed);
    for waiting in &mut waiting {
        waiting.get("key").expect(200, "a client that waited for a descriptor");
    }
    assert!(hits(server.address(), "descriptors") > 0);
    assert!(!server.status().contains("\"failed\": true"));
    server.assert_serves();
}

#[test]
fn a_cluster_with_few_descriptors_keeps_its_links_and_hints() {
    const ALL: Quorum = (3, 3);
    let mut cluster = Cluster::of(3);
    for node in 0..3 {
        cluster.terminate(node);
        cluster.change(node, |launch: Launch| launch.within(&["sh", "-c", "ulimit -n 64 && exec \"$0\" \"$@\""]));
    }
    cluster.start_all();
    cluster.wait_up();
    let mut client = cluster.client(0);
    let idle: Vec<_> = (0..3).flat_map(|node| silent(cluster.address(node), 150)).collect();
    let strangers: Vec<_> = (0..3).flat_map(|node| silent(cluster.replica_address(node), 150)).collect();
    client.put_of("before", "value", ALL).expect(201, "PUT 3/3 beside idle connections");
    cluster.kill(2);
    let value = vec![b'v'; 1 << 20];
    for index in 0..20 {
        client.put_of(format!("missed{index}"), &value, (2, 3)).expect(201, "PUT 2/3 with hints");
    }
    cluster.start(2);
    drop((idle, strangers));
    cluster.wait_up();
    eventually("the hints are replayed", Duration::from_secs(30), || cluster.hints_pending(0, 2) == 0);
    let mut client = cluster.client(2);
    for index in 0..20 {
        assert!(client.value_of(format!("missed{index}"), ALL).as_ref() == Some(&value), "{index}");
    }
}

//! Stalls of the real server: large values on a real core against a bound that they exceed.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use koltso_testkit::Cluster;
use koltso_testkit::json::{json_number, json_object, json_string};
use koltso_testkit::metrics::sample;
use koltso_testkit::server::Server;

/// A figure of `/metrics`.
fn metric(server: &Server, name: &str) -> f64 {
    sample(&server.ask("GET", "/metrics").expect(200, "metrics"), name)
}

fn count(server: &Server) -> u64 {
    json_number(json_object(&server.status(), "stalls"), "count")
}

#[test]
fn a_value_that_takes_longer_than_the_bound_is_counted_logged_and_told() {
    for refused in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let launch = koltso_testkit::Launch::on(folder.path()).flags("--threads 1 --stall-bound 1ms --max-value 32MiB");
        let server = if refused { launch.refuse_io_uring().start() } else { launch.start() };
        let mut client = server.connect();
        client.store("small", b"x");
        let before = count(&server);
        let value = vec![7; 32 << 20];
        let began = Instant::now();
        for _ in 0..5 {
            client.store("large", &value);
        }
        let elapsed = began.elapsed();
        // No machine takes the checksums of 32 MiB and copies them into the log within a
        // millisecond.
        let after = count(&server);
        assert!(after >= before + 5, "{before} and then {after} stalls in {elapsed:?}");
        let longest = metric(&server, "koltso_core_stall_longest_seconds");
        assert!(longest > 0.001 && longest < elapsed.as_secs_f64() + 1.0, "{longest} s in {elapsed:?}");
        assert!(metric(&server, "koltso_core_stalls_total") >= after as f64);
        let status = server.status();
        assert_eq!(json_string(json_object(&status, "stalls"), "bound"), "1ms");
        assert_eq!(json_string(json_object(&status, "config"), "stall_bound"), "1ms");

        let begun = Instant::now();
        let said = || {
            let log = server.log();
            let line = log.lines().find(|line| line.contains("core 0 stalled for"));
            line.map(ToOwned::to_owned)
        };
        while said().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(10), "nothing is logged:\n{}", server.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        let line = said().unwrap();
        assert!(line.contains("WARN") && line.contains("; see /debug/pprof/stalls"), "{line}");
        assert_eq!(server.log().matches("stalled for").count(), 1, "one line in 10 s");
    }
}

#[test]
fn nobody_looks_if_told_so() {
    let server = Server::fresh("--threads 1 --stall-bound 0");
    assert!(server.status().contains("\"stalls\": null"));
    assert!(!server.ask("GET", "/metrics").expect(200, "metrics").text().contains("koltso_core_stall"));
    assert_eq!(watcher(&server), None);
}

/// How often the watcher's thread has gone to sleep.
fn watcher(server: &Server) -> Option<u64> {
    for task in std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().flatten() {
        if std::fs::read_to_string(task.path().join("comm")).unwrap_or_default().trim() == "koltso-stalls" {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            return Some(line.trim().parse().unwrap());
        }
    }
    None
}

#[test]
fn an_idle_server_wakes_nobody_to_look_for_stalls() {
    let server = Server::fresh("--threads 2");
    let mut client = server.connect();
    client.store("key", b"value");
    std::thread::sleep(Duration::from_millis(1500));
    let before = watcher(&server).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let idle = watcher(&server).unwrap() - before;
    assert!(idle <= 1, "{idle} wake-ups in 3 s");
    // And it is there again when there is something to look at.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        client.store("key", b"value");
    }
    let busy = watcher(&server).unwrap() - before;
    assert!(busy > 20, "{busy} looks in half a second of load");
}

#[test]
fn nodes_that_only_ask_whether_the_others_live_are_idle() {
    let cluster = Cluster::of(3);
    cluster.wait_up();
    std::thread::sleep(Duration::from_millis(1500));
    let before: Vec<u64> = (0..3).map(|index| watcher(cluster.server(index)).unwrap()).collect();
    std::thread::sleep(Duration::from_secs(3));
    for (index, before) in before.into_iter().enumerate() {
        let idle = watcher(cluster.server(index)).unwrap() - before;
        assert!(idle <= 1, "{idle} wake-ups of node {index} in 3 s");
    }
}

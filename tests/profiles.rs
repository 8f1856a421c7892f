//! `/debug/pprof/`: the server's own profiles through the API's port.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::client::request_bytes;
use common::{Client, Launch, Response, Server, eventually};

fn ask(server: &Server, target: &str) -> Response {
    let mut client = server.connect().patience(Duration::from_secs(30));
    client.request("GET", &format!("/debug/pprof/{target}"), &[], None)
}

/// Requests that keep the server's core busy until the guard is dropped.
struct Load(std::sync::Arc<std::sync::atomic::AtomicBool>, Option<std::thread::JoinHandle<()>>);

impl Load {
    fn on(server: &Server) -> Load {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (stopped, mut client) = (stop.clone(), server.connect());
        let thread = std::thread::spawn(move || {
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                client.store("key", [7; 3000]);
                assert_eq!(client.value("key").unwrap().len(), 3000);
            }
        });
        Load(stop, Some(thread))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        self.1.take().unwrap().join().unwrap();
    }
}

#[test]
fn the_index_leads_to_every_profile() {
    let server = Server::fresh("--threads 1");
    for path in ["/debug/pprof/", "/debug/pprof"] {
        let page = server.ask("GET", path).expect(200, path);
        assert!(page.header("content-type").unwrap().starts_with("text/html"));
        for link in
            ["flamegraph?event=cpu", "heatmap?", "flamegraph?event=allocs", "flamegraph?event=heap", "event=offcpu"]
        {
            assert!(page.text().contains(link), "{link} is not in\n{}", page.text());
        }
    }
    let command = ask(&server, "cmdline").expect(200, "cmdline").text();
    assert!(command.contains("koltso\0serve"), "{command:?}");
}

#[test]
fn a_cpu_profile_shows_the_core_that_works() {
    let server = Server::fresh("--threads 1");
    let _load = Load::on(&server);
    let folded = ask(&server, "profile?seconds=1&hz=499&format=folded").expect(200, "folded").text();
    let total = |part: &str| -> u64 {
        let lines = folded.lines().filter(|line| line.contains(part));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    };
    assert!(total("koltso-core-0") * 10 > total("") * 5, "the core is not half of\n{folded}");
    let start = Instant::now();
    let proto = ask(&server, "profile?seconds=1").expect(200, "profile.proto");
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert_eq!(&proto.body[..2], b"\x1f\x8b", "gzipped");
    for (target, word) in [
        ("flamegraph?seconds=1", "<!doctype html>"),
        ("heatmap?seconds=1", "<!doctype html>"),
        ("profile?seconds=1&format=svg", "<svg"),
        ("profile?seconds=1&format=text", "koltso"),
    ] {
        let text = ask(&server, target).expect(200, target).text();
        assert!(text.to_lowercase().contains(word), "{target}: {}", &text[..text.len().min(300)]);
    }
}

#[test]
fn allocations_and_the_heap_are_always_there() {
    let server = Server::fresh("--threads 1");
    // Large bodies: each is a sample for sure.
    let mut client = server.connect();
    for turn in 0..20 {
        client.store(format!("large-{turn}"), vec![1; 4 << 20]);
    }
    for target in ["allocs?format=folded", "flamegraph?event=allocs&format=folded"] {
        let folded = ask(&server, target).expect(200, target).text();
        let bytes: u64 = folded.lines().map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        assert!(bytes > 40 << 20, "{target}: {bytes} bytes in\n{folded}");
        // Bodies are collected in `body.rs` of koltso-net.
        assert!(folded.contains("body::"), "{target}:\n{folded}");
    }
    for target in ["heap", "allocs", "allocs?seconds=1"] {
        assert_eq!(&ask(&server, target).expect(200, target).body[..2], b"\x1f\x8b", "{target}");
    }
}

#[test]
fn captures_are_kept_and_compared() {
    let server = Server::fresh("--threads 1");
    let id = |response: &Response| response.header("x-koltso-capture").unwrap().to_owned();
    let base = id(&ask(&server, "allocs").expect(200, "allocs"));
    let new = id(&ask(&server, "allocs").expect(200, "allocs"));
    let list = ask(&server, "captures").expect(200, "captures").text();
    assert!(list.contains(&format!("{base}\tallocs")) && list.contains(&format!("{new}\tallocs")), "{list}");
    let page = ask(&server, &format!("diff?base={base}&new={new}")).expect(200, "diff");
    assert!(page.text().contains("<!doctype html>"));
    ask(&server, &format!("captures?id={new}")).expect(200, "a capture again");
    let heap = id(&ask(&server, "heap").expect(200, "heap"));
    ask(&server, &format!("diff?base={base}&new={heap}")).expect(400, "two kinds");
    for _ in 0..20 {
        ask(&server, "heap").expect(200, "heap");
    }
    ask(&server, &format!("captures?id={base}")).expect(400, "one that was forgotten");
    assert_eq!(ask(&server, "captures").text().lines().count(), 16);
}

#[test]
fn what_is_wrong_is_said_in_a_way_that_go_prints() {
    let server = Server::fresh("--threads 1");
    for (target, status) in [
        ("profile?seconds=0", 400),
        ("profile?seconds=1&seconds=1", 400),
        ("profile?hz=1000", 400),
        ("profile?colour=red", 400),
        ("heap?seconds=301", 400),
        ("diff?base=1&new=2", 400),
        ("nonsense", 404),
    ] {
        let response = ask(&server, target).expect(status, target);
        assert_eq!(response.header("x-go-pprof"), Some("1"), "{target}");
        assert_eq!(response.text().lines().count(), 1, "{target}: {:?}", response.text());
    }
    let response = server.ask("POST", "/debug/pprof/profile").expect(405, "POST");
    assert_eq!(response.header("allow"), Some("GET"));
}

#[test]
fn two_captures_of_a_kind_run_and_a_client_that_goes_away_ends_its_own() {
    let server = Server::fresh("--threads 1");
    let begin = || {
        let mut client = server.connect();
        client.send(&request_bytes("GET", "/debug/pprof/profile?seconds=60", &[], None)).unwrap();
        client
    };
    let running = || ask(&server, "").text().matches("cpu").count();
    let idle = running();
    let clients: Vec<Client> = (0..2).map(|_| begin()).collect();
    eventually("two run", Duration::from_secs(5), || running() == idle + 2);
    let refused = ask(&server, "profile?seconds=1").expect(409, "a third");
    assert!(refused.header("retry-after").is_some());
    ask(&server, "profile?seconds=1&force=true").expect(200, "a third by force");
    drop(clients);
    eventually("none runs", Duration::from_secs(5), || {
        let page = ask(&server, "").text();
        page.contains("<p>none</p>")
    });
    ask(&server, "profile?seconds=1").expect(200, "there is room again");
}

#[test]
fn beyond_loopback_profiles_need_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let server = Launch::on(&folder.path().join("data")).host("0.0.0.0").flags("--threads 1").start();
    let mut client = Client::connect(([127, 0, 0, 1], server.port()).into()).unwrap();
    client.request("GET", "/debug/pprof/heap", &[], None).expect(403, "without a token");
}

//! `/debug/pprof/`: the server's own profiles through the API's port.
//!
//! - `index.rs`: the page with all of them, also in a browser.
//! - `privileges.rs`: what is seen with few privileges, and what nobody is to see.
#![allow(missing_docs, clippy::unwrap_used)]

mod index;
mod privileges;

use std::time::{Duration, Instant};

use koltso_testkit::client::request_bytes;
use koltso_testkit::skip;
use koltso_testkit::{Client, Launch, Response, Server, eventually, files};

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
        for event in ["cpu", "allocs", "heap", "mutex", "block", "offcpu", "stalls"] {
            assert!(page.text().contains(&format!("flamegraph?event={event}")), "{event} is not in\n{}", page.text());
        }
        for link in ["heatmap?event=cpu", "heatmap?event=allocs", "cmdline", "symbol", "captures"] {
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
    // On a busy machine the core may get nothing of a second.
    eventually("the core is half of what is sampled", Duration::from_secs(60), || {
        let folded = ask(&server, "profile?seconds=1&hz=499&format=folded").expect(200, "folded").text();
        let total = |part: &str| -> u64 {
            let lines = folded.lines().filter(|line| line.contains(part));
            lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
        };
        total("koltso-core-0") * 10 > total("") * 5
    });
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
    let picture = ask(&server, &format!("diff?base={base}&new={new}&format=svg")).expect(200, "diff");
    assert!(picture.header("content-type") == Some("image/svg+xml") && picture.text().contains("<svg"));
    ask(&server, &format!("diff?base={base}&new={new}&format=folded")).expect(200, "diff");
    for (format, word) in
        [("html", "<!doctype html>"), ("svg", "<svg"), ("text", "alloc_space"), ("folded", ""), ("perfscript", "")]
    {
        let again = ask(&server, &format!("captures?id={new}&format={format}")).expect(200, format);
        assert_eq!(id(&again), new);
        assert!(again.text().to_lowercase().contains(word), "{format}");
    }
    let refused = ask(&server, &format!("captures?id={new}&format=heatmap")).expect(400, "without times");
    assert!(refused.text().contains("no times"), "{}", refused.text());
    let timed = id(&ask(&server, "heatmap?event=allocs&seconds=1").expect(200, "with times"));
    ask(&server, &format!("captures?id={timed}&format=heatmap")).expect(200, "a heatmap again");
    ask(&server, &format!("captures?id={timed}&format=svg")).expect(200, "its flame graph");
    let heap = id(&ask(&server, "heap").expect(200, "heap"));
    ask(&server, &format!("diff?base={base}&new={heap}")).expect(400, "two kinds");
    for _ in 0..20 {
        ask(&server, "mutex").expect(200, "mutex");
    }
    ask(&server, &format!("captures?id={base}")).expect(400, "one that was forgotten");
    assert_eq!(ask(&server, "captures").text().lines().count(), 16);
}

#[test]
fn what_is_wrong_is_said_in_a_way_that_go_prints() {
    let server = Server::fresh("--threads 1");
    for (target, status) in [
        ("heatmap?event=heap", 400),
        ("mutex?seconds=0", 400),
        ("block?hz=9", 400),
        ("stalls?seconds=9", 400),
        ("offcpu?seconds=61", 400),
        ("flamegraph?event=nonsense", 400),
        ("profile?force=perhaps", 400),
        ("captures?id=999", 400),
        ("captures?id=x", 400),
        ("captures?page=2", 400),
        ("symbol?nonsense", 400),
        ("profile?seconds=0", 400),
        ("profile?seconds=1&seconds=1", 400),
        ("profile?hz=1000", 400),
        ("profile?colour=red", 400),
        ("heap?seconds=301", 400),
        ("diff?base=1&new=2", 400),
        ("nonsense", 404),
        ("heap/", 404),
        ("heap/of/all", 404),
    ] {
        let response = ask(&server, target).expect(status, target);
        assert_eq!(response.header("x-go-pprof"), Some("1"), "{target}");
        assert_eq!(response.text().lines().count(), 1, "{target}: {:?}", response.text());
    }
    for (target, status) in
        [("?x=1", 400), ("cmdline?x=1", 400), ("diff?base=1&new=2&base=3", 400), ("diff?colour=1", 400)]
    {
        let response = ask(&server, target).expect(status, target);
        assert_eq!(response.header("x-go-pprof"), Some("1"), "{target}");
    }
    for path in ["", "profile", "heap", "captures", "diff", "cmdline", "heatmap"] {
        // HEAD is wherever GET is but for captures.
        let captures = matches!(path, "profile" | "heap" | "heatmap");
        let allow = if captures { "GET" } else { "GET, HEAD" };
        for method in ["POST", "PUT", "DELETE", "HEAD"].into_iter().filter(|method| captures || *method != "HEAD") {
            let begun = Instant::now();
            let response = server.ask(method, &format!("/debug/pprof/{path}")).expect(405, path);
            assert_eq!(response.header("allow"), Some(allow), "{method} {path}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{method} {path} captured");
        }
    }
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
    let mut client = Client::connect(([127, 0, 0, 1], server.port()).into()).unwrap();
    let refused = client.request("GET", "/debug/pprof/heap", &[], None);
    assert_eq!(refused.header("x-go-pprof"), Some("1"), "or go tool pprof does not print why");
    drop(server);

    let file = folder.path().join("token");
    files::write_secret(&file, "open-sesame-please");
    let flags = format!("--threads 1 --admin-token-file {}", file.display());
    let server = Launch::on(&folder.path().join("data")).host("0.0.0.0").flags(&flags).start();
    for (value, status) in [("Bearer wrong", 401), ("Bearer open-sesame-please", 200)] {
        for path in ["", "heap", "cmdline", "symbol", "captures"] {
            let mut client = Client::connect(([127, 0, 0, 1], server.port()).into()).unwrap();
            let headers = [("Authorization", value)];
            client.request("GET", &format!("/debug/pprof/{path}"), &headers, None).expect(status, path);
        }
    }
    drop(server);

    // A listener of its own serves them without one, and is the only place.
    let admin = koltso_testkit::server::free_port();
    let flags = format!("--threads 1 --admin-listen 127.0.0.1:{admin}");
    let server = Launch::on(&folder.path().join("data")).host("0.0.0.0").flags(&flags).start();
    let mut client = Client::connect(([127, 0, 0, 1], admin).into()).unwrap();
    client.request("GET", "/debug/pprof/heap", &[], None).expect(200, "at its own listener");
    let mut client = Client::connect(([127, 0, 0, 1], server.port()).into()).unwrap();
    client.request("GET", "/debug/pprof/heap", &[], None).expect(403, "at the API's port");
}

/// The column of `/proc/PID/status`, in KiB.
fn memory_kib(server: &Server, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}

#[test]
fn a_hundred_captures_in_a_row_leave_sixteen_and_no_more_memory_than_these() {
    let server = Server::fresh("--threads 1");
    let _load = Load::on(&server);
    let hundred = || {
        for _ in 0..3 {
            ask(&server, "profile?seconds=1&hz=999").expect(200, "CPU");
        }
        for turn in 0..97 {
            ask(&server, ["heap", "allocs", "mutex", "block", "stalls"][turn % 5]).expect(200, "a capture");
        }
        memory_kib(&server, "RssAnon:")
    };
    // The first hundred reads symbols, and fills what is kept.
    let (mut before, mut after) = (hundred(), hundred());
    println!("{before} KiB after a hundred captures, {after} KiB after another");
    if after >= before + (32 << 10) {
        // The allocator keeps what a busy moment needed. What is lost is lost with each hundred.
        (before, after) = (after, hundred());
    }
    assert!(before.max(after) < 160 << 10, "{before} and {after} KiB, with 64 MiB of captures at most");
    assert!(after < before + (32 << 10), "{before} KiB became {after} KiB");
    assert_eq!(ask(&server, "captures").text().lines().count(), 16);
    let threads = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().count();
    assert!(threads < 20, "{threads} threads");
}

#[test]
fn locks_and_waits_are_there_and_empty_profiles_are_valid() {
    let server = Server::fresh("--threads 1");
    for name in ["mutex", "block", "stalls?format=pprof", "mutex?seconds=1", "block?seconds=1"] {
        assert_eq!(&ask(&server, name).expect(200, name).body[..2], b"\x1f\x8b", "{name}");
    }
    let list = ask(&server, "stalls").expect(200, "a list").text();
    assert!(list.starts_with("No turn of a core") || list.contains("  core 0  "), "{list}");
    let unwatched = Server::fresh("--threads 1 --stall-bound 0");
    let refused = ask(&unwatched, "stalls").expect(501, "not watched").text();
    assert!(refused.contains("--stall-bound"), "{refused}");
    for event in ["mutex", "block", "stalls"] {
        for format in ["html", "svg", "folded", "text"] {
            ask(&server, &format!("flamegraph?event={event}&format={format}")).expect(200, event);
        }
    }
}

#[test]
fn addresses_have_names_as_go_asks_for_them() {
    let server = Server::fresh("--threads 1");
    let _load = Load::on(&server);
    assert_eq!(ask(&server, "symbol").expect(200, "symbol").text(), "num_symbols: 1\n");
    // An address of the program, from a capture of it.
    let script = ask(&server, "profile?seconds=1&hz=499&format=perfscript").expect(200, "perfscript").text();
    let frame = script.lines().find(|line| line.starts_with('\t') && line.contains("koltso_net::")).unwrap();
    let (address, name) = frame.trim().split_once(' ').unwrap();
    let function = name.rsplit_once(" (").unwrap().0;
    let named = ask(&server, &format!("symbol?0x{address}")).expect(200, "by GET").text();
    assert!(named.lines().nth(1).unwrap().starts_with(&format!("0x{address}\t")), "{named}");
    let mut client = server.connect();
    let posted = client.request("POST", "/debug/pprof/symbol", &[], Some(format!("0x{address}+0x1").as_bytes()));
    let posted = posted.expect(200, "by POST").text();
    assert_eq!(posted.lines().count(), 3, "{posted}");
    // The symbol is that of the function there, of which a frame has the end at least.
    let last = |name: &str| name.rsplit("::").next().unwrap().trim_end_matches('_').to_owned();
    let symbol = named.lines().nth(1).unwrap().split_once('\t').unwrap().1;
    assert!(symbol.contains("koltso") && !last(function).is_empty(), "{function}: {named}");
    assert!(posted.lines().nth(1) == named.lines().nth(1), "{posted}, {named}");
    server.ask("PUT", "/debug/pprof/symbol").expect(405, "PUT");
    let mut client = server.connect();
    let long = "1+".repeat(5000);
    client.request("POST", "/debug/pprof/symbol", &[], Some(long.as_bytes())).expect(400, "too many");
}

/// `go tool pprof` and what it says on standard output; `None`, recorded as skipped, where there is
/// no go.
fn go_tool_pprof(arguments: &[&str], url: &str) -> Option<String> {
    let home = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new("go");
    command.args(["tool", "pprof"]).args(arguments).arg(url);
    command.env("PPROF_TMPDIR", home.path()).env("HOME", home.path()).env("GOFLAGS", "");
    skip::tool("go", "golang-go")?;
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{url}: {errors}");
    for line in errors.lines() {
        assert!(line.starts_with("Fetching profile over HTTP") || line.starts_with("Saved profile in"), "{line}");
    }
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn go_tool_pprof_reads_every_profile_with_the_right_units() {
    let server = Server::fresh("--threads 1 --sync always");
    let _load = Load::on(&server);
    // Somebody waits for a lock: two threads of the server for the list of captures, sooner or
    // later.
    for (profile, kind, units) in [
        ("profile?seconds=2", "Type: cpu", &["ms", "s"][..]),
        ("heap", "Type: inuse_space", &["kB", "MB"]),
        ("allocs", "Type: alloc_space", &["kB", "MB", "GB"]),
        ("mutex", "Type: delay", &["0", "ns", "us", "ms", "s"]),
        // With --sync always requests wait for the disk.
        ("block", "Type: delay", &["ms", "s", "mins"]),
        ("offcpu?seconds=1", "Type: delay", &["ms", "s"]),
    ] {
        let url = format!("http://127.0.0.1:{}/debug/pprof/{profile}", server.port());
        let Some(top) = go_tool_pprof(&["-top", "-cum", "-nodecount=60"], &url) else { return };
        println!("{profile}\n{top}");
        assert!(top.lines().any(|line| line == kind), "{profile}: {top}");
        // `Showing nodes accounting for 303.03ms, 46.15% of 656.57ms total`
        let total = top.lines().find_map(|line| line.strip_prefix("Showing nodes accounting for "));
        let total = total.and_then(|line| line.strip_suffix(" total")).and_then(|line| line.rsplit(' ').next());
        let total = total.unwrap_or_else(|| panic!("{profile}: {top}"));
        let unit = total.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        assert!(units.contains(&unit) || total == "0" && units.contains(&"0"), "{profile}: {total} in\n{top}");
        assert!(total == "0" || top.lines().any(|line| line.contains("koltso") && line.contains("::")), "{top}");
    }
    // What the server refuses, the tool prints.
    let url = format!("http://127.0.0.1:{}/debug/pprof/profile?seconds=999", server.port());
    let output = std::process::Command::new("go").args(["tool", "pprof", "-top", &url]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 to 300"), "{output:?}");
}

#[test]
fn scrapers_get_what_their_documentation_asks_for() {
    let server = Server::fresh("--threads 1");
    let _load = Load::on(&server);
    // Alloy's pyroscope.scrape and Parca's scrape configuration, by default paths; both send these
    // parameters and take the answer gzipped.
    for target in ["profile?seconds=1", "allocs", "heap", "mutex", "block", "allocs?seconds=1", "mutex?seconds=1"] {
        let mut client = server.connect().patience(Duration::from_secs(30));
        let headers = [("Accept-Encoding", "gzip"), ("User-Agent", "scraper")];
        let answer = client.request("GET", &format!("/debug/pprof/{target}"), &headers, None).expect(200, target);
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"), "{target}");
        // It is gzip by itself, and not once more.
        assert!(answer.header("content-encoding").is_none() && answer.body.starts_with(b"\x1f\x8b"), "{target}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{target}");
        // What they name their series after.
        let capture = koltso_profiling::proto::decode(&answer.body).unwrap();
        let types: Vec<String> = capture.types.iter().map(|of| format!("{}/{}", of.name, of.unit)).collect();
        let expected = match target.split('?').next().unwrap() {
            "profile" => "samples/count cpu/nanoseconds",
            "allocs" | "heap" => "alloc_objects/count alloc_space/bytes inuse_objects/count inuse_space/bytes",
            _ => "contentions/count delay/nanoseconds",
        };
        assert_eq!(types.join(" "), expected, "{target}");
        if let Some((period, bytes)) = capture.period.filter(|_| expected.starts_with("alloc")) {
            assert_eq!((&*period.name, &*period.unit, bytes), ("space", "bytes", 524_288));
        }
    }
}

#[test]
fn profiles_name_neither_the_machine_that_built_nor_where_the_program_lies() {
    let server = Server::fresh("--threads 1");
    let _load = Load::on(&server);
    for target in ["profile?seconds=1&hz=499", "allocs", "heap"] {
        let capture = koltso_profiling::proto::decode(&ask(&server, target).expect(200, target).body).unwrap();
        let files = capture.frames().iter().filter_map(|frame| frame.file.as_deref());
        let all: Vec<&str> = files.chain(capture.mappings.iter().map(|mapping| &*mapping.file)).collect();
        let ours = ["src/", "net/src/", "storage/src/"];
        assert!(all.contains(&"koltso"), "{target}: {:?}", capture.mappings);
        assert!(all.iter().any(|file| ours.iter().any(|of| file.starts_with(of))), "{target}: {all:?}");
        for file in all {
            let manifest = env!("CARGO_MANIFEST_DIR");
            assert!(!file.contains(manifest) && !file.contains("/registry/src/") && !file.contains(".cargo"), "{file}");
        }
    }
}

#[test]
fn captures_run_beside_the_cores_and_after_everybody_else() {
    let folder = tempfile::tempdir().unwrap();
    // Tests may have a higher priority, and their servers with them; this one has the usual.
    let usual = r#"renice -n 0 -p $$ >/dev/null; exec "$0" "$@""#;
    let server = Launch::on(&folder.path().join("data")).within(&["sh", "-c", usual]).flags("--threads 1").start();
    let threads = || -> Vec<(String, i64, String)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().flatten();
        let read = |task: std::fs::DirEntry| {
            let text = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let name = text("comm").trim().to_owned();
            let nice = text("stat").rsplit_once(") ")?.1.split(' ').nth(16)?.parse().ok()?;
            let allowed = text("status").lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t"))?.to_owned();
            Some((name, nice, allowed))
        };
        tasks.filter_map(read).collect()
    };
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let allowed = own.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).unwrap();
    for (target, name) in
        [("profile?seconds=2", "koltso-profiler"), ("heatmap?event=allocs&seconds=2", "koltso-capture")]
    {
        let mut client = server.connect().patience(Duration::from_secs(30));
        client.send(&request_bytes("GET", &format!("/debug/pprof/{target}"), &[], None)).unwrap();
        let who = || threads().into_iter().find(|thread| thread.0 == name);
        eventually(name, Duration::from_secs(2), || who().is_some_and(|(_, nice, cpus)| nice > 0 && cpus == allowed));
        client.read("GET").expect(200, target);
    }
}

#[test]
fn a_client_that_goes_away_ends_whatever_it_asked_for() {
    let server = Server::fresh("--threads 1");
    for target in [
        "heatmap?event=allocs&seconds=60",
        "heap?seconds=60",
        "mutex?seconds=60",
        "block?seconds=60",
        "offcpu?seconds=60",
        "heatmap?seconds=60",
    ] {
        let mut clients: Vec<Client> = (0..2).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.send(&request_bytes("GET", &format!("/debug/pprof/{target}"), &[], None)).unwrap();
        }
        let runs = || !ask(&server, "").text().contains("<p>none</p>");
        eventually("it runs", Duration::from_secs(5), runs);
        drop(clients);
        eventually("it has ended", Duration::from_secs(5), || !runs());
    }
    // Not a thread is left.
    eventually("no thread is left", Duration::from_secs(5), || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().flatten();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.contains("capture") || name.contains("profiler")).count() == 0
    });
}

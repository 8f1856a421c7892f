//! SPEC.md section 3, `koltso local`: a cluster of processes on this machine, started, watched and
//! ended as one.
//!
//! What the nodes do as a cluster is tested elsewhere; here they need only be alive, answer, and
//! never be left behind.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use koltso_testkit::json::{json_object, json_value};
use koltso_testkit::process::send_signal as send;
use koltso_testkit::server::free_port;
use koltso_testkit::{Client, eventually};

const BINARY: &str = env!("CARGO_BIN_EXE_koltso");

const READY_WITHIN: Duration = Duration::from_secs(60);
const ENDED_WITHIN: Duration = Duration::from_secs(20);

/// The first of `count` ports in a row that are free now, as are their replica ports, and that no
/// other test is given.
fn free_ports(count: u16) -> u16 {
    static CLAIM: Mutex<()> = Mutex::new(());
    let _claim = CLAIM.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut row = vec![free_port()];
    while row.len() < usize::from(count) {
        let port = free_port();
        if row.last().is_some_and(|last| last + 1 != port) {
            row.clear();
        }
        row.push(port);
    }
    row[0]
}

/// The process ids of those whose command line names this data folder, other than the parent. No
/// node escapes this, also when its parent is gone.
fn nodes_of(data: &Path) -> Vec<(u32, String)> {
    let needle = format!("--data={}/node-", data.display());
    let of = |entry: std::fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let arguments = std::fs::read(entry.path().join("cmdline")).ok()?;
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        arguments.contains(&needle).then_some((pid, arguments))
    };
    let mut found: Vec<_> = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).filter_map(of).collect();
    found.sort_by_key(|(_, arguments)| arguments.split(&needle).nth(1).unwrap_or_default().to_owned());
    found
}

/// `koltso local`, running. It and its nodes end with this guard.
struct Local {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
    count: u16,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Local {
    fn start(count: u16, flags: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), count, flags)
    }

    fn start_in(folder: tempfile::TempDir, count: u16, flags: &[&str]) -> Self {
        Self::start_with(folder, count, flags, &[])
    }

    fn start_with(folder: tempfile::TempDir, count: u16, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let port = free_ports(count);
        let mut child = Command::new(BINARY)
            .args(["local", "--nodes", &count.to_string(), &format!("--port={port}"), "--data"])
            .arg(folder.path())
            .args(["--threads", "1"])
            .args(flags)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, sink) = (child.stderr.take().unwrap(), log.clone());
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                *sink.lock().unwrap() += &(line + "\n");
            }
        });
        Self { child, folder, port, count, log, reader: Some(reader) }
    }

    #[track_caller]
    fn ready(count: u16, flags: &[&str]) -> Self {
        Self::start(count, flags).until_ready()
    }

    /// Waits for the line that says that all nodes serve.
    #[track_caller]
    fn until_ready(self) -> Self {
        let mut local = self;
        let count = local.count;
        let urls: Vec<String> = (0..count).map(|index| local.url(index)).collect();
        let line = format!("cluster ready {}", urls.join(","));
        let deadline = Instant::now() + READY_WITHIN;
        while !local.log().lines().any(|written| written == line) {
            assert!(local.child.try_wait().unwrap().is_none(), "it ended:\n{}", local.log());
            assert!(Instant::now() < deadline, "no line {line:?}:\n{}", local.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        local
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    fn address(&self, index: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port + index))
    }

    fn url(&self, index: u16) -> String {
        format!("http://{}", self.address(index))
    }

    #[track_caller]
    fn assert_healthy(&self, index: u16) {
        let mut client = Client::connect(self.address(index)).unwrap_or_else(|e| panic!("{}: {e}", self.url(index)));
        client.request("GET", "/health", &[], None).expect(200, "GET /health");
    }

    fn nodes(&self) -> Vec<(u32, String)> {
        nodes_of(self.folder.path())
    }

    /// Waits for the end of it, and of all that writes to its standard error.
    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + ENDED_WITHIN;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.reader.take().unwrap().join().unwrap();
                return status;
            }
            assert!(Instant::now() < deadline, "it did not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[track_caller]
    fn end_with(&mut self, signal: i32, code: i32) {
        send(self.child.id(), signal);
        let status = self.wait();
        assert_eq!(status.code(), Some(code), "after signal {signal}: {status}\n{}", self.log());
        assert!(self.nodes().is_empty(), "a node was left behind: {:?}", self.nodes());
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for (pid, _) in self.nodes() {
            send(pid, libc::SIGKILL);
        }
        if std::thread::panicking() {
            eprintln!("the log:\n{}", self.log());
        }
    }
}

#[test]
fn three_nodes_answer_and_end_together() {
    let mut local = Local::ready(3, &["--sync", "os", "--max-value=1KiB", "--replica-timeout", "250ms"]);
    for index in 0..3 {
        local.assert_healthy(index);
        let ready = format!("node {} | ready {}", index + 1, local.url(index));
        assert_eq!(local.log().lines().filter(|line| *line == ready).count(), 1, "{ready}:\n{}", local.log());
        assert!(local.folder.path().join(format!("node-{}/FORMAT", index + 1)).exists());
        let mut client = Client::connect(local.address(index)).unwrap();
        let status = client.request("GET", "/status", &[], None).text();
        let config = json_object(&status, "config");
        for (name, value) in [
            ("sync", "\"os\""),
            ("max_value", "\"1KiB\""),
            ("replica_timeout", "\"250ms\""),
            ("no_pin", "true"),
            ("cluster_secret", "false"),
            ("cluster", "["),
        ] {
            assert!(json_value(config, name).starts_with(value), "{name} is not {value} in {config}");
        }
        assert!(json_value(&status, "node").starts_with(&format!("\"{}\"", local.url(index))), "{status}");
    }
    let nodes = local.nodes();
    assert_eq!(nodes.len(), usize::from(local.count));
    for (pid, arguments) in nodes {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        assert_eq!(name.trim_end(), "koltso", "{arguments}");
    }
    local.end_with(libc::SIGTERM, 0);
    assert_eq!(local.log().matches("stopped").count(), 3, "every node drained:\n{}", local.log());
}

#[test]
fn variables_and_the_file_are_passed_on_and_addresses_of_the_environment_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "max-value = \"1KiB\"\nsync = \"os\"\nreplica-timeout = \"250ms\"\n").unwrap();
    let variables = [
        ("KOLTSO_CONFIG", file.path().to_str().unwrap()),
        ("KOLTSO_SYNC", "always"),
        ("KOLTSO_LISTEN", "192.0.2.1:1"),
        ("KOLTSO_CLUSTER", "nonsense"),
        ("KOLTSO_ADMIN_LISTEN", "127.0.0.1:1"),
        ("KOLTSO_DATA", "/nonexistent/data"),
        ("KOLTSO_THREADS", "2"),
    ];
    let mut local = Local::start_with(folder, 2, &[], &variables).until_ready();
    for index in 0..2 {
        let mut client = Client::connect(local.address(index)).unwrap();
        let status = client.request("GET", "/status", &[], None).text();
        let config = json_object(&status, "config");
        for (name, value) in [
            ("listen", format!("\"127.0.0.1:{}\"", local.port + index)),
            ("max_value", "\"1KiB\"".to_owned()),
            ("sync", "\"always\"".to_owned()),
            ("replica_timeout", "\"250ms\"".to_owned()),
            ("threads", "1,".to_owned()),
            ("admin_listen", "null".to_owned()),
        ] {
            assert!(json_value(config, name).starts_with(&value), "{name} is not {value} in {config}");
        }
    }
    for name in ["KOLTSO_LISTEN", "KOLTSO_CLUSTER", "KOLTSO_ADMIN_LISTEN"] {
        let said = local.log().lines().filter(|line| line.contains(&format!("{name} is ignored"))).count();
        assert_eq!(said, 1, "{name}:\n{}", local.log());
    }
    local.end_with(libc::SIGTERM, 0);
}

#[test]
fn one_node_is_a_node_alone() {
    let mut local = Local::ready(1, &[]);
    local.assert_healthy(0);
    let mut client = Client::connect(local.address(0)).unwrap();
    client.store("key", "value");
    assert_eq!(client.value("key").as_deref(), Some(&b"value"[..]));
    let status = client.request("GET", "/status", &[], None).text();
    assert!(json_value(json_object(&status, "config"), "cluster").starts_with("null"), "{status}");
    local.end_with(libc::SIGINT, 0);
}

#[test]
fn a_killed_node_is_reported_and_the_others_go_on() {
    let mut local = Local::ready(3, &[]);
    let (pid, arguments) = local.nodes()[1].clone();
    assert!(arguments.contains("/node-2 "), "{arguments}");
    send(pid, libc::SIGKILL);
    let report = format!("node 2 ({}) ended: signal 9; the others go on", local.url(1));
    eventually("the end of node 2 is reported", Duration::from_secs(10), || local.log().contains(&report));
    local.assert_healthy(0);
    local.assert_healthy(2);
    assert_eq!(local.nodes().len(), 2, "it is not started again");
    // The last one's end is the end.
    let mut others = local.nodes();
    let (last, _) = others.pop().unwrap();
    send(others[0].0, libc::SIGTERM);
    eventually("the end of node 1 is reported", Duration::from_secs(15), || {
        local.log().contains(&format!("node 1 ({}) ended: exit code 0; the others go on", local.url(0)))
    });
    send(last, libc::SIGKILL);
    assert_eq!(local.wait().code(), Some(1), "{}", local.log());
    assert!(local.log().ends_with("koltso: no node is left\n"), "{}", local.log());
}

#[test]
fn with_a_node_down_the_others_still_drain() {
    let mut local = Local::ready(2, &[]);
    send(local.nodes()[0].0, libc::SIGKILL);
    eventually("its end is reported", Duration::from_secs(10), || local.log().contains("ended: signal 9"));
    local.end_with(libc::SIGTERM, 0);
}

#[test]
fn no_node_outlives_it() {
    let mut local = Local::ready(2, &[]);
    local.child.kill().unwrap();
    eventually("the nodes end when it was killed", ENDED_WITHIN, || local.nodes().is_empty());
    local.wait();
    assert_eq!(local.log().matches("stopped").count(), 2, "they drained:\n{}", local.log());
}

#[test]
fn a_stop_before_it_is_ready_leaves_nobody() {
    for pause in [0, 5, 20, 60] {
        let mut local = Local::start(3, &[]);
        std::thread::sleep(Duration::from_millis(pause));
        send(local.child.id(), libc::SIGTERM);
        let status = local.wait();
        // At first there is no handler yet.
        use std::os::unix::process::ExitStatusExt;
        let unheard = status.signal() == Some(libc::SIGTERM);
        assert!(status.code() == Some(0) || unheard, "{pause} ms: {status}\n{}", local.log());
        eventually("all have ended", ENDED_WITHIN, || local.nodes().is_empty());
    }
}

/// Exit code 2, one sentence on standard error, no process left, no folder made.
#[track_caller]
fn assert_refused(flags: &[&str], named: &str) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut command = Command::new(BINARY);
    let output = command.arg("local").arg(format!("--data={}", data.display())).args(flags).output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{flags:?}: {}\n{log}", output.status);
    assert_eq!(log.lines().count(), 1, "{flags:?}: {log}");
    assert!(log.contains(named), "{flags:?}: {named} is not named: {log}");
    assert!(nodes_of(&data).is_empty(), "{flags:?}: a node was left behind");
    assert!(!data.exists(), "{flags:?}: the folder was made");
}

#[test]
fn what_it_chooses_itself_is_refused() {
    for flag in ["--listen", "--cluster", "--node", "--replica-listen", "--admin-listen"] {
        assert_refused(&["--nodes", "2", flag, "127.0.0.1:1400"], flag);
        assert_refused(&[&format!("{flag}=127.0.0.1:1400")], flag);
    }
}

#[test]
fn wrong_flags_are_one_sentence_before_any_node_is_started() {
    assert_refused(&["--nodes", "0"], "1 to 16");
    assert_refused(&["--nodes", "17"], "1 to 16");
    assert_refused(&["--nodes", "many"], "many");
    assert_refused(&["--port", "0"], "--port");
    assert_refused(&["--port", "55535", "--nodes", "2"], "--port 55535");
    assert_refused(&["--port", "65536"], "65536");
    assert_refused(&["--sync", "never"], "--sync never");
    assert_refused(&["--threads", "0"], "--threads 0");
    assert_refused(&["--cluster-secret-file", "/nonexistent"], "/nonexistent");
    assert_refused(&["--frobnicate"], "--frobnicate");
    assert_refused(&["surplus"], "surplus");
}

#[test]
fn a_port_in_use_is_exit_2_and_no_node_is_left() {
    let port = free_ports(3);
    for taken in [port + 1, port + 10_002] {
        let _held = TcpListener::bind(("127.0.0.1", taken)).unwrap();
        assert_refused(&["--nodes", "3", "--port", &port.to_string()], &format!("127.0.0.1:{taken}"));
    }
}

#[test]
fn a_node_that_cannot_start_ends_all_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let theirs = folder.path().join("node-2");
    std::fs::create_dir(&theirs).unwrap();
    std::fs::write(theirs.join("thesis.txt"), "ten years of work").unwrap();
    let mut local = Local::start_in(folder, 3, &[]);
    let status = local.wait();
    assert_eq!(status.code(), Some(2), "{status}\n{}", local.log());
    assert!(local.log().contains(&format!("node 2 ({}) did not start: exit code 2", local.url(1))), "{}", local.log());
    assert!(local.nodes().is_empty(), "a node was left behind");
}

#[test]
fn help_shows_the_flags_of_serve_as_well() {
    let output = Command::new(BINARY).args(["local", "--help"]).output().unwrap();
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for flag in ["--nodes", "--port", "--data", "--sync", "--replica-timeout", "--config"] {
        assert!(help.contains(flag), "{flag}: {help}");
    }
    // It lists none that it refuses.
    for flag in ["--listen", "--cluster ", "--node ", "--replica-listen", "--admin-listen"] {
        assert!(!help.contains(flag), "{flag}: {help}");
    }
}

//! SPEC.md section 3, "Logging is best effort": a log that is closed, full or stuck never stops,
//! slows or ends a node; what is lost is counted; no place logs without a bound, and nothing that a
//! stranger sends is repeated.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use koltso_testkit::client::request_bytes;
use koltso_testkit::cluster::{Quorum, entity_of};
use koltso_testkit::files::SmallDisk;
use koltso_testkit::json::{json_number, json_object, json_string};
use koltso_testkit::process::send_signal;
use koltso_testkit::server::{free_port, raise_descriptor_limit};
use koltso_testkit::wait::soon;
use koltso_testkit::{Client, Cluster, Launch, Remedy, Server, eventually, metrics, skip};

const BINARY: &str = env!("CARGO_BIN_EXE_koltso");
const QUORUM: Quorum = (2, 3);
const READY_WITHIN: Duration = Duration::from_secs(30);
/// A drain takes 10 s at most, a last sync and the log's last second come on top.
const DRAINED_WITHIN: Duration = Duration::from_secs(15);
/// The lines that one place may log in so many seconds (docs/ARCHITECTURE.md), with a summary each.
const fn lines_max(seconds: usize) -> usize {
    32 + 2 * seconds + 2
}

// --- processes whose standard error a test chooses ---

/// A process that ends with this guard.
struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn start(command: &mut Command, address: SocketAddr, stderr: impl Into<Stdio>) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        Self { child, address }
    }

    /// A node alone.
    fn node(data: &Path, stderr: impl Into<Stdio>) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = Command::new(BINARY);
        command.args(["serve", "--threads=1", "--no-pin", "--listen", &address.to_string(), "--data"]).arg(data);
        Self::start(&mut command, address, stderr)
    }

    /// A node of the cluster with these ports.
    fn member(data: &Path, ports: &[u16], index: usize, stderr: impl Into<Stdio>) -> Self {
        let urls: Vec<String> = ports.iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
        let address = SocketAddr::from(([127, 0, 0, 1], ports[index]));
        let mut command = Command::new(BINARY);
        command.args(["serve", "--threads=1", "--no-pin", "--cluster", &urls.join(","), "--node", &urls[index]]);
        command.arg("--data").arg(data.join(format!("node-{index}")));
        Self::start(&mut command, address, stderr)
    }

    fn client(&self) -> Client {
        Client::connect(self.address).unwrap_or_else(|e| panic!("{}: {e}", self.address))
    }

    fn is_healthy(&self) -> bool {
        let Ok(mut client) = Client::connect(self.address) else { return false };
        if client.send(&request_bytes("GET", "/health", &[], None)).is_err() {
            return false;
        }
        client.try_read("GET").is_ok_and(|answer| answer.is_some_and(|answer| answer.status == 200))
    }

    #[track_caller]
    fn until_healthy(mut self) -> Self {
        let deadline = Instant::now() + READY_WITHIN;
        while !self.is_healthy() {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it ended: {status}");
            }
            assert!(Instant::now() < deadline, "not healthy within {READY_WITHIN:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        self
    }

    fn lost(&self) -> f64 {
        let answer = self.client().request("GET", "/metrics", &[], None).expect(200, "GET /metrics");
        metrics::sample(&answer, "koltso_log_lines_lost_total")
    }

    #[track_caller]
    fn assert_lives(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("{} ended: {status}", self.address);
        }
    }

    #[track_caller]
    fn wait(&mut self, within: Duration) -> ExitStatus {
        wait(&mut self.child, within)
    }

    #[track_caller]
    fn terminate(&mut self) {
        send_signal(self.child.id(), libc::SIGTERM);
        let status = self.wait(DRAINED_WITHIN);
        assert_eq!(status.code(), Some(0), "after SIGTERM: {status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn wait(child: &mut Child, within: Duration) -> ExitStatus {
    let deadline = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("it did not end within {within:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Three ports in a row for a cluster, free as far as can be known.
fn ports() -> [u16; 3] {
    loop {
        let ports = [free_port(), free_port(), free_port()];
        if ports[2] == ports[0] + 2 {
            return ports;
        }
    }
}

fn full_device() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// A pipe of one page that nobody reads while the first of these lives.
fn stuck_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    #[allow(unsafe_code)]
    // SAFETY: fcntl with an integer argument touches no memory of this process.
    let size = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    assert_eq!(size, 4096, "{}", std::io::Error::last_os_error());
    (reader, writer)
}

/// The lines that come through a pipe, until its last writer has ended.
fn follow(reader: PipeReader) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::<Mutex<Vec<String>>>::default();
    let sink = lines.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(reader).lines().map_while(Result::ok) {
            sink.lock().unwrap().push(line);
        }
    });
    lines
}

fn put(client: &mut Client, key: &str, quorum: Quorum) {
    client.request("PUT", &entity_of(key, quorum), &[], Some(b"value")).expect(201, "PUT");
}

// --- closed, full, stuck ---

#[test]
fn nodes_serve_when_the_reader_of_their_logs_has_ended_and_count_what_is_lost() {
    let (folder, ports) = (tempfile::tempdir().unwrap(), ports());
    let (reader, writer) = std::io::pipe().unwrap();
    let node = |index| Process::member(folder.path(), &ports, index, writer.try_clone().unwrap());
    let mut nodes = [0, 1, 2].map(node).map(Process::until_healthy);
    soon("the cluster is whole", || {
        let status = nodes[0].client().request("GET", "/status", &[], None).text();
        status.matches("\"state\": \"up\"").count() == 2
    });
    drop((reader, writer));
    nodes[2].child.kill().unwrap();
    nodes[2].wait(Duration::from_secs(5));
    let [first, second, _] = &mut nodes;
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        for (number, node) in [(1, &mut *first), (2, &mut *second)] {
            node.assert_lives();
            put(&mut node.client(), &format!("key-{number}"), QUORUM);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for node in [&*first, &*second] {
        soon("lost lines are counted", || node.lost() > 0.0);
        let status = node.client().request("GET", "/status", &[], None).text();
        assert!(json_number(json_object(&status, "log"), "lines_lost") > 0, "{status}");
    }
    first.terminate();
    second.terminate();
}

#[test]
fn a_node_serves_and_drains_with_a_log_that_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Process::node(&folder.path().join("data"), full_device()).until_healthy();
    node.client().store("key", "value");
    soon("lost lines are counted", || node.lost() > 0.0);
    node.terminate();
}

#[test]
fn a_node_drains_with_exit_0_when_its_log_is_on_a_full_disk_and_tells_what_was_lost_when_there_is_room() {
    let Some(disk) = SmallDisk::mount(1) else { return };
    let (filling, log) = (disk.path().join("filling"), disk.path().join("log"));
    let fill = || {
        let mut file = File::options().create(true).append(true).open(&filling).unwrap();
        for block in [4096, 1] {
            while file.write_all(&vec![b'x'; block]).is_ok() {}
        }
    };
    let stderr = File::options().create(true).append(true).open(&log).unwrap();
    fill();
    let folder = tempfile::tempdir().unwrap();
    let mut node = Process::node(&folder.path().join("data"), stderr.try_clone().unwrap()).until_healthy();
    node.client().store("key", "value");
    soon("lost lines are counted", || node.lost() > 0.0);
    node.terminate();
    let mut node = Process::node(&folder.path().join("data"), stderr).until_healthy();
    soon("lost lines are counted again", || node.lost() > 0.0);
    let lost = node.lost();
    std::fs::remove_file(&filling).unwrap();
    node.terminate();
    let written = std::fs::read_to_string(&log).unwrap();
    let told = written.lines().find(|line| line.contains("lines of the log were lost")).unwrap_or_default();
    assert!(told.contains(&format!(" {lost} ")), "{lost} lines were lost, and it says:\n{written}");
    assert!(written.contains("stopped"), "the lines after it are there:\n{written}");
}

#[test]
fn a_node_whose_log_is_stuck_answers_as_always_and_drains_in_time() {
    let (folder, ports) = (tempfile::tempdir().unwrap(), ports());
    let (_reader, mut writer) = stuck_pipe();
    // Some of it is full, so that the rest of it soon is.
    writer.write_all(&[b'\n'; 3 << 10]).unwrap();
    let mut first = Process::member(folder.path(), &ports, 0, writer);
    let third = Process::member(folder.path(), &ports, 2, Stdio::null()).until_healthy();
    first = first.until_healthy();
    for round in 0..22 {
        let mut second = Process::member(folder.path(), &ports, 1, Stdio::null()).until_healthy();
        let url = format!("http://{}", second.address);
        soon("the peer is seen", || {
            let status = third.client().request("GET", "/status", &[], None).text();
            let at = status.find(&format!("\"node\": \"{url}\"")).unwrap();
            status[at..].find("\"state\": \"up\"").is_some_and(|up| up < 80)
        });
        second.child.kill().unwrap();
        second.wait(Duration::from_secs(5));
        let begun = Instant::now();
        put(&mut first.client(), &format!("key-{round}"), QUORUM);
        assert!(begun.elapsed() < Duration::from_secs(5), "a PUT took {:?}", begun.elapsed());
    }
    let status = first.client().request("GET", "/status", &[], None).expect(200, "GET /status").text();
    assert!(status.contains("\"log\""), "{status}");
    first.lost();
    first.terminate();
}

#[test]
fn a_log_that_does_not_block_is_written_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (reader, mut writer) = stuck_pipe();
    writer.write_all(&[b'\n'; 4096]).unwrap();
    #[allow(unsafe_code)]
    // SAFETY: fcntl with an integer argument touches no memory of this process.
    let set = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    let mut node = Process::node(&folder.path().join("data"), writer).until_healthy();
    let lines = follow(reader);
    node.terminate();
    soon("the last line comes", || lines.lock().unwrap().iter().any(|line| line.ends_with("stopped")));
    let ready = format!("ready http://{}", node.address);
    assert!(lines.lock().unwrap().contains(&ready), "{:?}", lines.lock().unwrap());
}

#[test]
fn refusals_keep_their_exit_code_whatever_becomes_of_their_sentence() {
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    let (_unread, mut stuck) = stuck_pipe();
    stuck.write_all(&[b'x'; 4096]).unwrap();
    for arguments in [
        &["serve", "--threads=0"][..],
        &["serve", "--frobnicate"],
        &["serve", "--data=/proc/nowhere", "--listen=127.0.0.1:0"],
        &["local", "--nodes=0"],
        &["get", "key", "--url=nonsense"],
        &["get", "key", "--url=http://127.0.0.1:1"],
        &["bench", "-R1", "-d1s", "nonsense"],
        &["profile", "/nowhere/at-all.pb.gz"],
        &["frobnicate"],
    ] {
        let streams: [(&str, Stdio); 3] =
            [("closed", closed().into()), ("full", full_device().into()), ("stuck", stuck.try_clone().unwrap().into())];
        for (what, stderr) in streams {
            let mut command = Command::new(BINARY);
            let mut child =
                command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
            let status = wait(&mut child, Duration::from_secs(10));
            assert_eq!(status.code(), Some(2), "{arguments:?} with a standard error that is {what}: {status}");
        }
    }
}

#[test]
fn a_client_whose_reader_has_seen_enough_ends_quietly() {
    let server = Server::fresh("--threads 1");
    let mut client = server.connect();
    client.store_all((0..20_000).map(|index| (format!("key-{index:06}"), vec![b'v'; 100])), 100);
    client.store("large", vec![b'v'; 1 << 20]);
    for arguments in [&["scan", "key"][..], &["scan", "key", "--values"], &["get", "large"], &["--help"]] {
        let (mut out, stdout) = std::io::pipe().unwrap();
        let (mut errors, stderr) = std::io::pipe().unwrap();
        let mut command = Command::new(BINARY);
        command.args(arguments).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        if arguments != ["--help"] {
            command.args(["--url", &server.url()]);
        }
        let mut child = command.spawn().unwrap();
        drop(command);
        out.read_exact(&mut [0; 8]).unwrap();
        drop(out);
        let status = wait(&mut child, Duration::from_secs(20));
        let mut said = String::new();
        errors.read_to_string(&mut said).unwrap();
        assert_eq!((status.code(), said.as_str()), (Some(0), ""), "{arguments:?}: {status}");
    }
}

// --- koltso local ---

/// The process ids of the nodes below a data folder.
fn nodes_of(data: &Path) -> Vec<(u32, String)> {
    let needle = format!("--data={}/node-", data.display());
    let of = |entry: std::fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let arguments = std::fs::read(entry.path().join("cmdline")).ok()?;
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        let (_, name) = arguments.split_once(&needle)?;
        Some((pid, name.split(' ').next()?.to_owned()))
    };
    std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).filter_map(of).collect()
}

/// `koltso local` with three nodes; all are killed with this guard.
struct Local {
    process: Process,
    folder: tempfile::TempDir,
    ports: [u16; 3],
}

impl Local {
    fn start(flags: &[&str], stderr: impl Into<Stdio>) -> Self {
        let (folder, ports) = (tempfile::tempdir().unwrap(), ports());
        let address = SocketAddr::from(([127, 0, 0, 1], ports[0]));
        let mut command = Command::new(BINARY);
        command.args(["local", "--nodes=3", "--threads=1", &format!("--port={}", ports[0])]).args(flags);
        command.arg("--data").arg(folder.path());
        Self { process: Process::start(&mut command, address, stderr), folder, ports }
    }

    fn url(&self, index: usize) -> String {
        format!("http://127.0.0.1:{}", self.ports[index])
    }

    fn client(&self, index: usize) -> Client {
        Client::connect(SocketAddr::from(([127, 0, 0, 1], self.ports[index]))).unwrap()
    }

    fn kill_node(&self, number: usize) {
        let name = number.to_string();
        let nodes = nodes_of(self.folder.path());
        let (pid, _) = nodes.iter().find(|(_, of)| *of == name).unwrap_or_else(|| panic!("{nodes:?}"));
        send_signal(*pid, libc::SIGKILL);
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let _ = self.process.child.kill();
        let _ = self.process.child.wait();
        for (pid, _) in nodes_of(self.folder.path()) {
            send_signal(pid, libc::SIGKILL);
        }
    }
}

#[test]
fn a_cluster_on_this_machine_goes_on_when_the_reader_of_its_lines_has_ended() {
    let (mut local, line) = (0..5)
        .map(|_| {
            let (reader, writer) = std::io::pipe().unwrap();
            let local = Local::start(&[], writer);
            let mut line = String::new();
            BufReader::new(reader).read_line(&mut line).unwrap();
            (local, line)
        })
        // Another program may have taken a port meanwhile.
        .find(|(_, line)| !line.contains("in use"))
        .expect("three free ports");
    assert!(line.starts_with("node "), "there is a first line, and nobody reads the others: {line}");
    soon("all three serve", || {
        local.process.assert_lives();
        (0..3).all(|index| {
            TcpStream::connect(("127.0.0.1", local.ports[index])).is_ok()
                && local.client(index).request("GET", "/health", &[], None).status == 200
        })
    });
    soon("a write is confirmed by two", || {
        local.client(0).request("PUT", &entity_of("key", QUORUM), &[], Some(b"value")).status == 201
    });
    // Nobody can read that it is ready; then it has no thread any more that asks for the nodes' health.
    soon("it knows that all serve", || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", local.process.child.id())).unwrap();
        let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default());
        !names.into_iter().any(|name| name.starts_with("koltso-health"))
    });
    std::thread::sleep(Duration::from_millis(500));
    local.kill_node(3);
    std::thread::sleep(Duration::from_secs(1));
    local.process.assert_lives();
    for index in [0, 1] {
        put(&mut local.client(index), "after", QUORUM);
    }
    local.process.terminate();
    assert!(nodes_of(local.folder.path()).is_empty());
}

#[test]
fn each_line_of_a_cluster_on_this_machine_says_whose_it_is_and_how_an_ended_node_comes_back() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut local = Local::start(&[], writer);
    let lines = follow(reader);
    let all = || lines.lock().unwrap().clone();
    let urls = [0, 1, 2].map(|index| local.url(index));
    let ready = format!("cluster ready {}", urls.join(","));
    eventually("the cluster is ready", READY_WITHIN, || all().contains(&ready));
    local.kill_node(2);
    let ended = format!("node 2 ({}) ended: signal 9; the others go on", urls[1]);
    soon("the end of node 2 is told", || all().iter().any(|line| line.contains(&ended)));
    soon("the others miss it", || {
        let misses = |line: &String| line.contains(&format!("no connection to {}", urls[1]));
        [1, 3]
            .iter()
            .all(|number| all().iter().any(|line| line.starts_with(&format!("node {number} | ")) && misses(line)))
    });
    // What the line says brings it back.
    let told = all().into_iter().find(|line| line.contains(&ended)).unwrap();
    let (_, command) = told.split_once("bring it back with: ").unwrap_or_else(|| panic!("no command: {told}"));
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec {command}")]);
    let mut back = Process::start(&mut shell, SocketAddr::from(([127, 0, 0, 1], local.ports[1])), Stdio::null());
    back = back.until_healthy();
    soon("its data folder is its own", || {
        let status = local.client(0).request("GET", "/status", &[], None).text();
        status.matches("\"state\": \"up\"").count() == 2
    });
    back.terminate();
    local.process.terminate();
    for line in all() {
        let of_a_node = (1..=3).any(|number| line.starts_with(&format!("node {number} | ")));
        let own = line == ready || line.contains(&ended);
        assert!(of_a_node || own, "whose line is this: {line}");
    }
    for (number, url) in (1..).zip(&urls) {
        assert!(all().contains(&format!("node {number} | ready {url}")), "{:#?}", all());
        let is_end = |line: &&String| line.starts_with(&format!("node {number} | ")) && line.ends_with("stopped");
        assert_eq!(all().iter().filter(is_end).count(), usize::from(number != 2), "{:#?}", all());
    }
}

// --- bounds ---

/// The first 16 bytes of a message of the handshake: docs/replica-protocol.md.
fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"KOLTSORP".to_vec();
    bytes.extend_from_slice(&2_u16.to_le_bytes());
    bytes.extend_from_slice(&[kind, 0]);
    bytes.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// A hello of a cluster with this name.
fn hello(cluster: &str) -> Vec<u8> {
    let mut body = vec![0; 88];
    body[84..86].copy_from_slice(&u16::try_from(cluster.len()).unwrap().to_le_bytes());
    body.extend_from_slice(cluster.as_bytes());
    handshake(1, &body)
}

#[test]
fn strangers_get_few_lines_and_none_of_their_text_into_the_log() {
    const MARK: &str = "xyzzy";
    let cluster = Cluster::of(2);
    cluster.wait_up();
    let address = cluster.replica_address(0);
    let before = cluster.log(0).lines().count();
    let begun = Instant::now();
    let until = begun + Duration::from_secs(10);
    let sent: u64 = std::thread::scope(|threads| {
        let stranger = |number: u64| {
            let mut sent = 0;
            while Instant::now() < until {
                // Each has a text of its own, so that none can be told from the last one.
                let text = format!("{MARK} {number} {sent} node 1 and node 2 have different secrets ");
                let refusal = handshake(3, &text.repeat(20).as_bytes()[..500]);
                let hello = hello(&format!("{MARK}{number}.{sent}"));
                let message = [refusal, hello][usize::from(sent % 2 == 1)].clone();
                if let Ok(mut stream) = TcpStream::connect(address) {
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
                    let _ = stream.write_all(&message);
                    let _ = stream.read(&mut [0; 600]);
                    sent += 1;
                }
            }
            sent
        };
        let strangers: Vec<_> = (0..4).map(|number| threads.spawn(move || stranger(number))).collect();
        let status = cluster.server(0).status();
        assert!(!status.contains(MARK), "{status}");
        strangers.into_iter().map(|stranger| stranger.join().unwrap()).sum()
    });
    assert!(sent > 200, "only {sent} strangers");
    assert!(!cluster.server(0).status().contains(MARK), "{}", cluster.server(0).status());
    std::thread::sleep(Duration::from_secs(2));
    let log = cluster.log(0);
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    let lines = log.lines().count() - before;
    assert!(lines <= lines_max(seconds), "{lines} lines for {sent} strangers in {seconds} s");
    assert!(log.contains("a replica connection was refused"), "the first ones are told:\n{log}");
    assert!(!log.contains(MARK), "a stranger's text is in the log:\n{log}");
    cluster.client(0).put_of("key", "value", (2, 2)).expect(201, "PUT 2/2 after the strangers");
}

#[test]
fn a_crowd_at_the_control_plane_is_no_line_each() {
    const CROWD: usize = 1800;
    let (limit, needed) = (raise_descriptor_limit(), 2 * CROWD as u64 + 200);
    if limit < needed {
        let remedy = Remedy::Machine("a limit of 4000 open files (ulimit -n)");
        return skip(format!("{limit} files may be open, and {needed} would be"), remedy);
    }
    let server = Server::fresh("--threads 1");
    let request = request_bytes("GET", "/status", &[], None);
    for _ in 0..3 {
        let crowd: Vec<TcpStream> = (0..CROWD)
            .flat_map(|_| TcpStream::connect(server.address()))
            .map(|mut stream| {
                let _ = stream.write_all(&request);
                stream
            })
            .collect();
        for mut stream in crowd {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
            let _ = stream.read(&mut [0; 64]);
        }
    }
    soon("it answers again", || server.ask("GET", "/status").status == 200);
    std::thread::sleep(Duration::from_millis(1500));
    let lines = server.log().lines().count();
    assert!(lines <= lines_max(20), "{lines} lines:\n{}", server.log());
}

// --- what the log says, and how ---

#[test]
fn before_the_ready_line_one_line_says_version_folder_engine_records_and_members() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut server = Launch::on(&data).flags("--threads 1").start();
    server.connect().store_all((0..12).map(|index| (format!("key-{index}"), b"value".to_vec())), 10);
    server.terminate();
    server.start_again();
    let log = server.log();
    let lines: Vec<&str> = log.lines().collect();
    let ready = lines.iter().position(|line| line.starts_with("ready ")).unwrap();
    let said = lines[..ready].iter().find(|line| line.contains(&format!("koltso {}", env!("CARGO_PKG_VERSION"))));
    let said = said.unwrap_or_else(|| panic!("no start line:\n{log}"));
    let status = server.status();
    for part in [data.to_str().unwrap(), "12 records", "1 member", json_string(&status, "runtime")] {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
}

#[test]
fn the_level_leaves_out_what_is_below_it_and_never_the_ready_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Launch::on(&folder.path().join("data")).flags("--threads 1 --log-level error").start();
    server.terminate();
    assert_eq!(server.log().trim_end(), format!("ready {}", server.url()));
    let mut server = Launch::on(&folder.path().join("data")).flags("--threads 1 --log-level info").start_after_an_end();
    server.terminate();
    assert!(server.log().contains("INFO") && server.log().trim_end().ends_with("stopped"), "{}", server.log());
}

#[test]
fn as_json_each_line_is_an_object_with_time_level_and_message() {
    let folder = tempfile::tempdir().unwrap();
    let data: PathBuf = folder.path().join("data");
    let mut server = Launch::on(&data).flags("--threads 1 --log-format json").start();
    server.terminate();
    let log = server.log();
    for line in log.lines() {
        let object: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        for name in ["ts", "level", "message"] {
            assert!(object[name].is_string(), "{name} in {line}");
        }
    }
    let ready = format!("\"message\":\"ready {}\"", server.url());
    assert_eq!(log.matches(&ready).count(), 1, "{log}");
    // A refusal, too.
    std::fs::write(data.join("FORMAT"), "koltso 99\n").unwrap();
    let refusal = Launch::on(&data).flags("--threads 1 --log-format json").try_start().err().unwrap();
    assert_eq!(refusal.status.code(), Some(2), "{}", refusal.stderr);
    let object: serde_json::Value = serde_json::from_str(refusal.stderr.trim_end()).unwrap();
    assert_eq!(object["level"], "error", "{object}");
}

#[test]
fn beyond_loopback_one_warning_says_who_can_read_and_write() {
    let warnings = |host: &str| {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Launch::on(&folder.path().join("data")).host(host).flags("--threads 1").start();
        server.terminate();
        server.log().lines().filter(|line| line.contains("can read and write")).count()
    };
    assert_eq!((warnings("0.0.0.0"), warnings("127.0.0.1")), (1, 0));
}

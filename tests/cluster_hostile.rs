//! What a cluster does with bad input: lists that do not fit, strangers and impostors at the replica port, secrets and clocks
//! that differ, damaged hints. Each gets one clear sentence, nothing crashes, nothing acknowledged is lost.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use koltso_testkit::client::request_bytes;
use koltso_testkit::cluster::{Quorum, Records, entity_of, numbered, replicas};
use koltso_testkit::server::free_port;
use koltso_testkit::{Client, Cluster, Launch, Random, Remedy, eventually, files, skip, volume};

const QUORUM: Quorum = (2, 3);
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(10);

/// What a sentence about a peer has to reach: the log, soon.
const SAID_WITHIN: Duration = Duration::from_secs(5);

fn lines_with(log: &str, words: &[&str]) -> Vec<String> {
    let fits = |line: &&str| words.iter().any(|word| line.to_lowercase().contains(&word.to_lowercase()));
    log.lines().filter(fits).map(str::to_owned).collect()
}

#[track_caller]
fn assert_no_panic(cluster: &Cluster) {
    for index in 0..cluster.count() {
        let log = cluster.log(index);
        assert!(!log.contains("panicked"), "node {index} panicked:\n{log}");
    }
}

/// A start that must be refused: exit code 2 and one sentence with one of the words; nothing is left on disk.
#[track_caller]
fn assert_refused(port: u16, flags: &str, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    match Launch::on(&data).port(port).flags("--threads 1 --no-pin").flags(flags).try_start() {
        Ok(_) => panic!("a start with {flags} was not refused"),
        Err(refusal) => {
            assert_eq!(refusal.status.code(), Some(2), "{flags}: {}", refusal.stderr);
            let lines: Vec<&str> = refusal.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
            assert_eq!(lines.len(), 1, "{flags}: one sentence, not {lines:?}");
            assert_eq!(lines_with(lines[0], words).len(), 1, "{flags}: {:?} says nothing of {words:?}", lines[0]);
        }
    }
    assert!(!data.exists(), "{flags}: the data folder was touched");
}

fn secret_file(folder: &Path, name: &str, secret: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(name);
    std::fs::write(&path, secret).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

// --- the list ---

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

// --- strangers at the replica port ---

/// Whether the other side ends this connection; reads and drops whatever it says.
fn is_ended(stream: &mut TcpStream, deadline: Instant) -> bool {
    let mut block = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        stream.set_read_timeout(Some(left)).unwrap();
        match stream.read(&mut block) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return false,
            Err(_) => return true,
        }
    }
}

/// Sends each of these on a connection of its own; all of them have to be ended by the server. A stranger that says nothing
/// gets 3 s; the rest is for a busy machine.
#[track_caller]
fn assert_all_ended(address: SocketAddr, messages: impl IntoIterator<Item = (String, Vec<u8>)>) {
    let mut open: Vec<(String, TcpStream)> = Vec::new();
    for (what, bytes) in messages {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        // It may be refused before it is whole.
        let _ = stream.write_all(&bytes);
        open.push((what, stream));
    }
    let deadline = Instant::now() + Duration::from_secs(6);
    let kept: Vec<&String> =
        open.iter_mut().filter_map(|(what, stream)| (!is_ended(stream, deadline)).then_some(&*what)).collect();
    assert!(kept.is_empty(), "{} connections of strangers were kept: {:?}", kept.len(), &kept[..kept.len().min(10)]);
}

#[test]
fn strangers_at_the_replica_port_are_shown_out() {
    let mut random = Random::announced("strangers_at_the_replica_port_are_shown_out");
    let cluster = Cluster::of(3);
    let before = cluster.server(0).anonymous_kib();
    let mut messages = vec![
        ("nothing".to_owned(), Vec::new()),
        ("a byte".to_owned(), vec![0]),
        ("an HTTP request".to_owned(), b"GET / HTTP/1.1\r\nHost: koltso\r\n\r\n".to_vec()),
        ("a TLS hello".to_owned(), vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]),
        ("zeros".to_owned(), vec![0; 4096]),
        ("a mebibyte of zeros".to_owned(), vec![0; 1 << 20]),
        ("the largest lengths".to_owned(), vec![0xff; 4096]),
        ("a signed length".to_owned(), [0xff, 0xff, 0xff, 0x7f].repeat(16)),
    ];
    for index in 0..volume(40, 1000) {
        let size = *random.choose(&[1, 4, 8, 16, 17, 64, 300, 5000]);
        messages.push((format!("garbage {index}, {size} bytes"), random.bytes(size)));
    }
    assert_all_ended(cluster.replica_address(0), messages);
    let grown = cluster.server(0).anonymous_kib().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB of memory for strangers");
    cluster.client(1).put_of("key", "value", (3, 3)).expect(201, "PUT 3/3 after the strangers");
    assert!(cluster.log(0).lines().count() < 60, "a flood:\n{}", cluster.log(0));
    assert_no_panic(&cluster);
}

#[test]
fn many_silent_connections_at_the_replica_port_keep_no_peer_out() {
    let mut cluster = Cluster::of(3);
    let address = cluster.replica_address(0);
    let mut silent: Vec<TcpStream> = (0..volume(300, 3000)).flat_map(|_| TcpStream::connect(address)).collect();
    assert!(!silent.is_empty(), "nothing listens at {address}");
    // A peer that comes now has to get in.
    cluster.kill(1);
    cluster.start(1);
    cluster.wait_up();
    cluster.client(1).put_of("key", "value", (3, 3)).expect(201, "PUT 3/3 beside silent strangers");
    let deadline = Instant::now() + Duration::from_secs(6);
    let kept = silent.iter_mut().map(|stream| is_ended(stream, deadline)).filter(|ended| !ended).count();
    assert_eq!(kept, 0, "silent connections that were kept");
}

/// The first bytes that a node sends to a peer which it connects to, as somebody at the peer's address sees them.
fn overheard_hello(listener: &TcpListener) -> Vec<u8> {
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        if let Ok((mut stream, _)) = listener.accept() {
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            let mut bytes = vec![0; 4096];
            let count = stream.read(&mut bytes).unwrap_or(0);
            bytes.truncate(count);
            return bytes;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Vec::new()
}

fn listen_as(cluster: &Cluster, index: usize) -> TcpListener {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match TcpListener::bind(cluster.replica_address(index)) {
            Ok(listener) => return listener,
            // The kernel lets go of what a killed process held a moment later.
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn half_and_twisted_hellos_are_shown_out() {
    let mut random = Random::announced("half_and_twisted_hellos_are_shown_out");
    let mut cluster = Cluster::of(3);
    cluster.kill(2);
    let listener = listen_as(&cluster, 2);
    // Something to say to the third node.
    cluster.client(0).put_of("key", "value", QUORUM).expect(201, "PUT 2/3");
    let hello = overheard_hello(&listener);
    drop(listener);
    assert!(!hello.is_empty(), "a node that connects does not speak first");
    let mut messages = Vec::new();
    let step = (hello.len() / volume(40, 400)).max(1);
    for length in (1..hello.len()).step_by(step) {
        messages.push((format!("{length} of {} bytes of a hello", hello.len()), hello[..length].to_vec()));
    }
    for at in (0..hello.len()).step_by(step) {
        let mut twisted = hello.clone();
        twisted[at] ^= 1 << random.below(8);
        messages.push((format!("a hello with another byte {at}"), twisted));
    }
    for length in [4, 64, 4096] {
        messages.push((
            format!("a hello and {length} bytes of the largest lengths"),
            [&hello[..], &vec![0xff; length]].concat(),
        ));
        messages.push((format!("a hello and {length} bytes of garbage"), [&hello[..], &random.bytes(length)].concat()));
    }
    // It was meant for node 2, so node 1 may take none of it for a peer, not even the true one.
    assert_all_ended(cluster.replica_address(1), messages);
    cluster.start(2);
    cluster.wait_up();
    cluster.client(1).put_of("key", "other", (3, 3)).expect(201, "PUT 3/3 afterwards");
    assert_eq!(cluster.client(2).value_of("key", (3, 3)).as_deref(), Some(&b"other"[..]));
    assert_no_panic(&cluster);
}

// --- impostors ---

/// Answers every connection to a peer's replica address in its own way until dropped.
struct Impostor {
    stop: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Impostor {
    fn at(listener: TcpListener, behave: impl Fn(TcpStream, &AtomicBool) + Send + Sync + 'static) -> Impostor {
        listener.set_nonblocking(true).unwrap();
        let (stop, connections) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stop_, connections_) = (Arc::clone(&stop), Arc::clone(&connections));
        let thread = std::thread::spawn(move || {
            std::thread::scope(|scope| {
                while !stop_.load(Ordering::SeqCst) {
                    if let Ok((stream, _)) = listener.accept() {
                        connections_.fetch_add(1, Ordering::SeqCst);
                        stream.set_nonblocking(false).unwrap();
                        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                        stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
                        let (behave, stop) = (&behave, &stop_);
                        scope.spawn(move || behave(stream, stop));
                    } else {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            });
        });
        Impostor { stop, connections, thread: Some(thread) }
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().unwrap().join();
    }
}

fn hand_on(mut stream: TcpStream, stop: &AtomicBool, answer: impl Fn(&[u8]) -> Vec<u8>) {
    let mut block = [0; 4096];
    while !stop.load(Ordering::SeqCst) {
        match stream.read(&mut block) {
            Ok(0) => return,
            Ok(count) => {
                if stream.write_all(&answer(&block[..count])).is_err() {
                    return;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

#[test]
fn an_impostor_at_a_peers_address_costs_the_others_nothing() {
    type Behaviour = Box<dyn Fn(TcpStream, &AtomicBool) + Send + Sync>;
    let garbage = |mut stream: TcpStream, stop: &AtomicBool| {
        let mut random = Random::seeded(7);
        while !stop.load(Ordering::SeqCst) && stream.write_all(&random.bytes(500)).is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let behaviours: Vec<(&str, Behaviour)> = vec![
        ("speaks garbage", Box::new(garbage)),
        ("answers with garbage", Box::new(|stream, stop| hand_on(stream, stop, |_| Random::seeded(9).bytes(64)))),
        ("echoes", Box::new(|stream, stop| hand_on(stream, stop, <[u8]>::to_vec))),
        ("never answers", Box::new(|stream, stop| hand_on(stream, stop, |_| Vec::new()))),
        ("closes at once", Box::new(|stream, _| drop(stream))),
        (
            "speaks HTTP",
            Box::new(|stream, stop| hand_on(stream, stop, |_| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())),
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    let secret = secret_file(folder.path(), "secret", "a secret that only the nodes of this cluster know");
    let flags = format!("--cluster-secret-file {}", secret.display());
    let mut cluster = Cluster::with(3, &flags);
    cluster.kill(2);
    for (what, behaviour) in behaviours {
        let impostor = Impostor::at(listen_as(&cluster, 2), behaviour);
        let mut clients: Vec<Client> = [0, 1].iter().map(|&index| cluster.client(index)).collect();
        let records = numbered("impostor", 100, what);
        let mut longest = Duration::ZERO;
        for (turn, (key, value)) in records.iter().enumerate() {
            let start = Instant::now();
            clients[turn % 2].put_of(key, value, QUORUM).expect(201, &format!("PUT beside a peer that {what}"));
            let got = clients[(turn + 1) % 2].value_of(key, QUORUM);
            assert_eq!(got.as_ref(), Some(value), "beside a peer that {what}");
            longest = longest.max(start.elapsed());
        }
        assert!(longest < Duration::from_millis(1500), "a PUT and a GET took {longest:?} beside a peer that {what}");
        let start = Instant::now();
        clients[0].put_of("all", "value", (3, 3)).expect(504, &format!("PUT 3/3 with a peer that {what}"));
        assert!(start.elapsed() < Duration::from_millis(2500), "{what}: {:?}", start.elapsed());
        assert!(!cluster.sees(0, 2), "a peer that {what} is up: {}", cluster.peer(0, 2));
        assert!(impostor.connections.load(Ordering::SeqCst) < 500, "a flood of connections to a peer that {what}");
    }
    for index in [0, 1] {
        let log = cluster.log(index);
        assert!(log.lines().count() < 200, "a flood of {} lines in the log of node {index}", log.lines().count());
    }
    cluster.start(2);
    cluster.wait_up();
    cluster.client(2).put_of("all", "value", (3, 3)).expect(201, "PUT 3/3 with the true peer");
    assert_no_panic(&cluster);
}

// --- the secret ---

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
fn a_node_with_another_secret_or_none_is_refused() {
    for other in [Some("another secret that is just as long as it is"), None] {
        let folder = tempfile::tempdir().unwrap();
        let right = secret_file(folder.path(), "right", "the secret that the first two nodes have got");
        let wrong = other.map(|secret| secret_file(folder.path(), "wrong", secret));
        let cluster = Cluster::planned(3, |index, launch, _| {
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
        let records = numbered("secret", 50, "value");
        cluster.client(0).store_all_of(&records, QUORUM);
        let expected = records.iter().map(|(key, value)| (key, Some(value)));
        cluster.client(1).expect_all_of(expected, QUORUM, "between the right ones");
        cluster.client(0).put_of("all", "value", (3, 3)).expect(504, "PUT 3/3 with a node that is refused");
        cluster.client(2).put_of("all", "value", QUORUM).expect(504, "PUT 2/3 through the node that is refused");
        assert_eq!(cluster.records(2, "secret"), Records::new(), "a node without the secret got records");
        for index in 0..3 {
            assert!(mentions(index) <= 20, "a flood:\n{}", cluster.log(index));
        }
        assert_no_panic(&cluster);
    }
}

// --- hints ---

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

/// One connection, a few hundred bytes of requests: 128 of them in a batch, each with a value of up to 32 MiB from a peer.
#[test]
fn clients_that_do_not_read_large_values_of_peers_are_bounded() {
    let cluster = Cluster::with(2, "--max-in-flight-bytes 32MiB");
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

// --- clocks ---

/// libfaketime, or None, recorded as skipped.
fn faketime() -> Option<&'static str> {
    const PLACES: [&str; 4] = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib64/faketime/libfaketimeMT.so.1",
        "/usr/lib/faketime/libfaketimeMT.so.1",
    ];
    let found = PLACES.into_iter().find(|place| Path::new(place).exists());
    if found.is_none() {
        skip("there is no libfaketime", Remedy::Package("faketime"));
    }
    found
}

/// The wall clock off by `offset`, such as `+1d` or `-0.4`; the monotonic one stays right.
fn off_by(launch: Launch, library: &str, offset: &str) -> Launch {
    launch
        .usual_environment()
        .environment("LD_PRELOAD", library)
        .environment("FAKETIME", offset)
        .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .environment("DONT_FAKE_MONOTONIC", "1")
}

#[test]
fn a_clock_that_is_a_day_off_is_refused_and_harms_nobody() {
    let Some(library) = faketime() else { return };
    for offset in ["+1d", "-1d"] {
        let cluster = Cluster::planned(3, |index, launch, _| {
            Some(if index == 2 { off_by(launch, library, offset) } else { launch })
        });
        eventually("the right ones see each other", Duration::from_secs(10), || {
            cluster.sees(0, 1) && cluster.sees(1, 0)
        });
        for index in [0, 1] {
            eventually("a clock that is off is in the log", SAID_WITHIN, || {
                !lines_with(&cluster.log(index), &["clock"]).is_empty()
            });
        }
        let refused = |index: usize, peer: usize| cluster.peer(index, peer)["refused"].is_string();
        eventually("and in /status", SAID_WITHIN, || refused(0, 2) || refused(2, 0));
        // Nothing that the node with the wrong clock says may reach the others' clocks: later writes still win.
        for turn in 0..50 {
            cluster.client(2).put_of("key", "from the wrong time", (1, 3)).expect(201, "PUT 1/3 at the node alone");
            let value = format!("{turn}");
            cluster.client(turn % 2).put_of("key", &value, QUORUM).expect(201, "PUT 2/3 beside it");
            let got = cluster.client((turn + 1) % 2).value_of("key", QUORUM);
            assert_eq!(got.as_deref(), Some(value.as_bytes()), "{offset}");
        }
        cluster.client(2).put_of("key", "value", QUORUM).expect(504, "PUT 2/3 through the node with the wrong clock");
        for index in 0..3 {
            let lines = lines_with(&cluster.log(index), &["clock"]).len();
            assert!(lines <= 20, "{lines} lines about clocks in the log of node {index}");
        }
        assert_no_panic(&cluster);
    }
}

#[test]
fn the_later_write_wins_although_clocks_differ_within_the_bound() {
    let Some(library) = faketime() else { return };
    let cluster = Cluster::planned(3, |index, launch, _| {
        Some(match index {
            0 => launch,
            1 => off_by(launch, library, "+0.15"),
            _ => off_by(launch, library, "-0.15"),
        })
    });
    cluster.wait_up();
    let mut clients: Vec<Client> = (0..3).map(|index| cluster.client(index)).collect();
    for turn in 0..150_usize {
        let value = format!("{turn}");
        clients[turn % 3].put_of("skewed", &value, QUORUM).expect(201, "PUT");
        let got = clients[(turn / 3 + turn) % 3].value_of("skewed", QUORUM);
        let got = got.map(|got| String::from_utf8_lossy(&got).into_owned());
        assert_eq!(got.as_deref(), Some(value.as_str()), "written through node {}", turn % 3);
    }
    // A write, then a delete by a node that is behind, then a write by the one that is further behind.
    for turn in 0..30 {
        let key = format!("skewed-{turn}");
        clients[1].put_of(&key, "first", QUORUM).expect(201, "PUT");
        clients[0].delete_of(&key, QUORUM).expect(202, "DELETE");
        assert_eq!(clients[1].value_of(&key, QUORUM), None, "{key}: deleted by a node that is behind");
        clients[2].put_of(&key, "last", QUORUM).expect(201, "PUT");
        assert_eq!(clients[1].value_of(&key, QUORUM).as_deref(), Some(&b"last"[..]), "{key}");
    }
}

#[test]
fn a_restart_never_takes_versions_back() {
    let Some(library) = faketime() else { return };
    // Node 0 coordinates writes of a key that it does not hold, so only its own persisted bound tells it where it was.
    let mut cluster = Cluster::of(2);
    let ends: [fn(&mut Cluster, usize); 2] = [Cluster::kill, Cluster::terminate];
    for (round, end) in ends.into_iter().enumerate() {
        let keys: Vec<String> = (0..60).map(|index| format!("bound-{round}-{index}")).collect();
        let mut client = cluster.client(0);
        for key in &keys {
            client.put_of(key, "first", (1, 1)).expect(201, "PUT");
        }
        end(&mut cluster, 0);
        cluster.change(0, |launch| off_by(launch, library, "-0.45"));
        cluster.start(0);
        // At once: the clock of the restarted process is behind what it was.
        let mut client = cluster.client(0);
        let mut written = 0;
        for key in &keys {
            if client.put_of(key, "second", (1, 1)).status == 201 {
                let got = client.value_of(key, (1, 1));
                assert_eq!(got.as_deref(), Some(&b"second"[..]), "{key} after a restart with a clock that went back");
                written += 1;
            }
        }
        assert!(written > 0, "no key could be written after the restart");
        end(&mut cluster, 0);
        cluster.change(0, Launch::usual_environment);
        cluster.start(0);
        cluster.wait_up();
    }
}

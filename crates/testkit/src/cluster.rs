//! Several `koltso serve` processes as one cluster on this machine.
//!
//! A node is named by its index. It can be killed, terminated, paused, resumed and started again at
//! the same address and on the same folder, by the guard that ends all of them. What it says
//! (`/status`, the log) and what it holds (its own records through `/v0/entities`) is read from
//! outside.
//!
//! Bounds: 20 s until all running nodes see each other; the bounds of `server` for each start and
//! end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::client::{encode, request_bytes, split_record};
use crate::server::free_port;
use crate::{Client, Launch, Response, Server};

const UP_WITHIN: Duration = Duration::from_secs(20);

/// `ack` of `from`.
pub type Quorum = (u32, u32);

/// A node's records, as `/v0/entities` lists them.
pub type Records = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Paused,
    Ended,
}

struct Node {
    launch: Launch,
    address: SocketAddr,
    server: Option<Server>,
    state: State,
    /// The logs of the processes before this one.
    past: String,
}

impl Node {
    #[track_caller]
    fn start(&mut self) {
        assert_eq!(self.state, State::Ended, "start of a node that runs");
        if let Some(server) = self.server.take() {
            self.past.push_str(&server.log());
            self.past.push('\n');
        }
        self.server = Some(self.launch.start_after_an_end());
        self.state = State::Running;
    }
}

pub struct Cluster {
    nodes: Vec<Node>,
    token: Option<String>,
    // Dropped after the nodes.
    _folder: TempDir,
}

impl Cluster {
    /// `count` nodes that see each other.
    #[track_caller]
    pub fn of(count: usize) -> Cluster {
        Cluster::with(count, "")
    }

    /// The same with further flags for each of them.
    #[track_caller]
    pub fn with(count: usize, flags: &str) -> Cluster {
        let cluster = Cluster::planned(count, |_, launch, _| Some(launch.flags(flags)));
        cluster.wait_up();
        cluster
    }

    /// `plan` changes how each node is started; it gets the index, the launch with the flags that
    /// every node needs, and the addresses of all. A node for which it answers None is not started
    /// yet. Does not wait until the nodes see each other.
    #[track_caller]
    pub fn planned(count: usize, plan: impl Fn(usize, Launch, &[String]) -> Option<Launch>) -> Cluster {
        Cluster::at(count, |_| SocketAddr::from(([127, 0, 0, 1], free_port())), plan)
    }

    /// The same at addresses of the caller's choice, called again when one of them was taken by
    /// somebody else meanwhile.
    #[track_caller]
    pub fn at(
        count: usize,
        mut address: impl FnMut(usize) -> SocketAddr,
        plan: impl Fn(usize, Launch, &[String]) -> Option<Launch>,
    ) -> Cluster {
        for attempt in 1.. {
            let folder = tempfile::tempdir().unwrap();
            let addresses: Vec<SocketAddr> = (0..count).map(&mut address).collect();
            let urls: Vec<String> = addresses.iter().map(|address| format!("http://{address}")).collect();
            let mut nodes = Vec::new();
            let mut wanted = Vec::new();
            for (index, &address) in addresses.iter().enumerate() {
                let launch = Launch::on(&folder.path().join(format!("node{index}")))
                    .host(&address.ip().to_string())
                    .port(address.port())
                    .flags(&Cluster::flags_of(&urls));
                let planned = plan(index, launch.clone(), &urls);
                wanted.push(planned.is_some());
                let launch = planned.unwrap_or(launch);
                nodes.push(Node { launch, address, server: None, state: State::Ended, past: String::new() });
            }
            let results: Vec<_> = std::thread::scope(|scope| {
                let starts: Vec<_> = nodes
                    .iter()
                    .zip(wanted)
                    .map(|(node, wanted)| scope.spawn(move || wanted.then(|| node.launch.try_start())))
                    .collect();
                starts.into_iter().map(|start| start.join().expect("starting a node")).collect()
            });
            let mut taken = false;
            for (node, result) in nodes.iter_mut().zip(results) {
                match result {
                    Some(Ok(server)) => {
                        node.server = Some(server);
                        node.state = State::Running;
                    }
                    Some(Err(refusal)) if refusal.is_address_in_use() && attempt < 5 => taken = true,
                    Some(Err(refusal)) => panic!("a node did not start: {}\n{}", refusal.status, refusal.stderr),
                    None => {}
                }
            }
            if !taken {
                return Cluster { nodes, token: None, _folder: folder };
            }
        }
        unreachable!("the last attempt returns or panics")
    }

    /// The flags that every node of these addresses is started with.
    pub fn flags_of(urls: &[String]) -> String {
        format!("--threads 1 --no-pin --cluster {}", urls.join(","))
    }

    /// The token that `/status` and `/metrics` ask for.
    pub fn set_token(&mut self, token: &str) {
        self.token = Some(token.to_owned());
    }

    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    pub fn address(&self, index: usize) -> SocketAddr {
        self.nodes[index].address
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.address).collect()
    }

    pub fn replica_address(&self, index: usize) -> SocketAddr {
        let address = self.address(index);
        SocketAddr::new(address.ip(), address.port() + 10_000)
    }

    pub fn url(&self, index: usize) -> String {
        format!("http://{}", self.address(index))
    }

    pub fn urls(&self) -> Vec<String> {
        (0..self.count()).map(|index| self.url(index)).collect()
    }

    pub fn data(&self, index: usize) -> &Path {
        self.nodes[index].launch.data()
    }

    pub fn hints(&self, index: usize) -> PathBuf {
        self.data(index).join("hints")
    }

    #[track_caller]
    pub fn server(&self, index: usize) -> &Server {
        self.nodes[index].server.as_ref().expect("a node that was started")
    }

    /// Indexes of the nodes that run and are not paused.
    pub fn running(&self) -> Vec<usize> {
        (0..self.count()).filter(|&index| self.nodes[index].state == State::Running).collect()
    }

    /// All nodes but one.
    pub fn others(&self, index: usize) -> Vec<usize> {
        (0..self.count()).filter(|&other| other != index).collect()
    }

    #[track_caller]
    pub fn client(&self, index: usize) -> Client {
        match Client::connect(self.address(index)) {
            Ok(client) => client,
            Err(error) => panic!("cannot connect to node {index}: {error}"),
        }
    }

    // --- ends, pauses, returns ---

    /// kill -9.
    #[track_caller]
    pub fn kill(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        assert_ne!(node.state, State::Ended, "kill of a node that does not run");
        node.server.as_mut().unwrap().kill();
        node.state = State::Ended;
    }

    /// SIGTERM, which has to end with exit code 0.
    #[track_caller]
    pub fn terminate(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        assert_eq!(node.state, State::Running, "SIGTERM for a node that does not run");
        node.server.as_mut().unwrap().terminate();
        node.state = State::Ended;
    }

    /// SIGSTOP: connections stay open, nothing answers.
    #[track_caller]
    pub fn pause(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        assert_eq!(node.state, State::Running, "SIGSTOP for a node that does not run");
        node.server.as_ref().unwrap().pause();
        node.state = State::Paused;
    }

    #[track_caller]
    pub fn resume(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        assert_eq!(node.state, State::Paused, "SIGCONT for a node that is not paused");
        node.server.as_ref().unwrap().signal(libc::SIGCONT);
        node.state = State::Running;
    }

    #[track_caller]
    pub fn start(&mut self, index: usize) {
        self.nodes[index].start();
    }

    /// Starts all nodes that do not run, at the same time.
    #[track_caller]
    pub fn start_all(&mut self) {
        std::thread::scope(|scope| {
            let ended = self.nodes.iter_mut().filter(|node| node.state == State::Ended);
            let starts: Vec<_> = ended.map(|node| scope.spawn(|| node.start())).collect();
            for start in starts {
                if let Err(panic) = start.join() {
                    std::panic::resume_unwind(panic);
                }
            }
        });
    }

    /// Changes how a node is started from now on.
    pub fn change(&mut self, index: usize, change: impl FnOnce(Launch) -> Launch) {
        let node = &mut self.nodes[index];
        node.launch = change(node.launch.clone());
    }

    // --- what a node says ---

    /// Everything that a node logged, through all its restarts.
    pub fn log(&self, index: usize) -> String {
        let node = &self.nodes[index];
        node.past.clone() + &node.server.as_ref().map(Server::log).unwrap_or_default()
    }

    fn administration(&self, index: usize, path: &str) -> std::io::Result<String> {
        let bearer = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let headers: Vec<(&str, &str)> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
        let mut client = Client::connect(self.address(index))?.patience(Duration::from_secs(5));
        client.send(&request_bytes("GET", path, &headers, None))?;
        let ended = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let response = client.try_read("GET")?.ok_or_else(ended)?;
        if response.status == 200 { Ok(response.text()) } else { Err(std::io::Error::other(response.text())) }
    }

    #[track_caller]
    pub fn metrics(&self, index: usize) -> String {
        self.administration(index, "/metrics").expect("GET /metrics")
    }

    /// A node's `/status`; Null when it gives none now.
    pub fn status(&self, index: usize) -> Value {
        let text = self.administration(index, "/status").unwrap_or_default();
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// What node `index` says about its peer `peer`; Null when it says nothing.
    pub fn peer(&self, index: usize, peer: usize) -> Value {
        let url = self.url(peer);
        let status = self.status(index);
        let peers = status["cluster"]["peers"].as_array().cloned().unwrap_or_default();
        let is_it = |entry: &Value| entry["node"].as_str().is_some_and(|node| node.trim_end_matches('/') == url);
        peers.into_iter().find(is_it).unwrap_or(Value::Null)
    }

    /// Whether node `index` takes its peer `peer` for one that can be asked.
    pub fn sees(&self, index: usize, peer: usize) -> bool {
        let entry = self.peer(index, peer);
        entry["state"] == "up" && entry["circuit"] != "open" && !entry["refused"].is_string()
    }

    /// Waits until every running node sees every other one.
    #[track_caller]
    pub fn wait_up(&self) {
        let running = self.running();
        let missing = || {
            running
                .iter()
                .flat_map(|&index| running.iter().map(move |&peer| (index, peer)))
                .find(|&(index, peer)| index != peer && !self.sees(index, peer))
        };
        let start = Instant::now();
        while let Some((index, peer)) = missing() {
            if start.elapsed() > UP_WITHIN {
                let said = self.peer(index, peer);
                panic!("node {index} does not see node {peer} within {UP_WITHIN:?}: {said}\n{}", self.log(index));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How many missed writes node `index` keeps for its peer `peer`.
    pub fn hints_pending(&self, index: usize, peer: usize) -> u64 {
        self.peer(index, peer)["hints_pending"].as_u64().unwrap_or(0)
    }

    // --- what a node holds ---

    /// The live records of a node itself whose keys begin with `prefix` (keys without a line end in
    /// them).
    #[track_caller]
    pub fn records(&self, index: usize, prefix: &str) -> Records {
        let end = encode([prefix.as_bytes(), &[0xff]].concat());
        let query = format!("start={}&end={end}", encode(prefix));
        self.client(index).range(&query).into_iter().collect()
    }

    /// The running nodes that hold a live record of this key.
    #[track_caller]
    pub fn holders(&self, key: impl AsRef<[u8]>) -> Vec<usize> {
        let key = key.as_ref();
        let end = encode([key, &[0]].concat());
        let target = format!("/v0/entities?start={}&end={end}", encode(key));
        let holds = |&index: &usize| {
            let answer = self.client(index).request("GET", &target, &[], None).expect(200, &target);
            answer.chunks.iter().any(|chunk| split_record(chunk).0 == key)
        };
        self.running().into_iter().filter(holds).collect()
    }

    /// The running nodes that hold each key of a prefix, from one range a node.
    #[track_caller]
    pub fn holders_of_all(&self, prefix: &str) -> BTreeMap<Vec<u8>, Vec<usize>> {
        let mut holders: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
        for index in self.running() {
            for key in self.records(index, prefix).into_keys() {
                holders.entry(key).or_default().push(index);
            }
        }
        holders
    }

    /// Waits until a node itself holds exactly these records of a prefix.
    #[track_caller]
    pub fn wait_records(&self, index: usize, prefix: &str, expected: &Records, within: Duration, what: &str) {
        let start = Instant::now();
        loop {
            let got = self.records(index, prefix);
            if got == *expected {
                return;
            }
            if start.elapsed() > within {
                let missing: Vec<_> = expected.keys().filter(|key| !got.contains_key(*key)).collect();
                let extra: Vec<_> = got.keys().filter(|key| !expected.contains_key(*key)).collect();
                let other = expected.iter().filter(|(key, value)| got.get(*key).is_some_and(|got| got != *value));
                let shown = |keys: &[&Vec<u8>]| {
                    let first = keys.first().map(|key| String::from_utf8_lossy(key).into_owned());
                    format!("{} ({})", keys.len(), first.unwrap_or_default())
                };
                panic!(
                    "{what}: not within {within:?} at node {index}: of {} records {} are missing, {} have another \
                     value, {} ought not to be there",
                    expected.len(),
                    shown(&missing),
                    other.count(),
                    shown(&extra),
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

// --- requests with ack and from ---

/// A target for `/v0/entity` with `ack` and `from`.
pub fn entity_of(key: impl AsRef<[u8]>, (ack, from): Quorum) -> String {
    format!("/v0/entity?id={}&ack={ack}&from={from}", encode(key))
}

/// `Koltso-Replicas: answered/asked` of an answer.
#[track_caller]
pub fn replicas(response: &Response) -> (u32, u32) {
    let header = response.header("koltso-replicas").unwrap_or_else(|| {
        panic!("no Koltso-Replicas in {} {:?} {:?}", response.status, response.headers, response.text())
    });
    let (answered, asked) = header.split_once('/').unwrap_or_else(|| panic!("Koltso-Replicas: {header:?}"));
    match (answered.parse(), asked.parse()) {
        (Ok(answered), Ok(asked)) => (answered, asked),
        _ => panic!("Koltso-Replicas: {header:?}"),
    }
}

impl Client {
    #[track_caller]
    pub fn put_of(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, quorum: Quorum) -> Response {
        self.request("PUT", &entity_of(key, quorum), &[], Some(value.as_ref()))
    }

    #[track_caller]
    pub fn get_of(&mut self, key: impl AsRef<[u8]>, quorum: Quorum) -> Response {
        self.request("GET", &entity_of(key, quorum), &[], None)
    }

    #[track_caller]
    pub fn delete_of(&mut self, key: impl AsRef<[u8]>, quorum: Quorum) -> Response {
        self.request("DELETE", &entity_of(key, quorum), &[], None)
    }

    /// The value that a read returns, None for 404; anything else fails the test.
    #[track_caller]
    pub fn value_of(&mut self, key: impl AsRef<[u8]>, quorum: Quorum) -> Option<Vec<u8>> {
        let key = key.as_ref();
        let response = self.get_of(key, quorum);
        match response.status {
            200 => Some(response.body),
            404 => None,
            status => panic!("GET {quorum:?} of {:?}: {status} {}", String::from_utf8_lossy(key), response.text()),
        }
    }

    /// Sends all requests, `depth` of them a write, and hands the answers to `check` in order.
    #[track_caller]
    pub fn batch<T>(
        &mut self,
        requests: impl IntoIterator<Item = (T, &'static str, String, Option<Vec<u8>>)>,
        depth: usize,
        mut check: impl FnMut(T, Response),
    ) {
        let mut requests = requests.into_iter();
        loop {
            let (mut bytes, mut sent) = (Vec::new(), Vec::new());
            for (tag, method, target, body) in requests.by_ref().take(depth) {
                bytes.extend_from_slice(&request_bytes(method, &target, &[], body.as_deref()));
                sent.push((tag, method));
            }
            if sent.is_empty() {
                return;
            }
            self.send(&bytes).expect("sending a batch");
            for (tag, method) in sent {
                let response = self.read(method);
                check(tag, response);
            }
        }
    }

    /// Puts all records; each has to be answered 201.
    #[track_caller]
    pub fn store_all_of<'a>(&mut self, records: impl IntoIterator<Item = (&'a Vec<u8>, &'a Vec<u8>)>, quorum: Quorum) {
        let requests =
            records.into_iter().map(|(key, value)| (key, "PUT", entity_of(key, quorum), Some(value.clone())));
        self.batch(requests, 64, |key, answer| {
            answer.expect(201, &format!("PUT {quorum:?} of {}", String::from_utf8_lossy(key)));
        });
    }

    /// Reads all keys and compares; None stands for 404.
    #[track_caller]
    pub fn expect_all_of<'a>(
        &mut self,
        records: impl IntoIterator<Item = (&'a Vec<u8>, Option<&'a Vec<u8>>)>,
        quorum: Quorum,
        what: &str,
    ) {
        let requests = records.into_iter().map(|(key, value)| ((key, value), "GET", entity_of(key, quorum), None));
        self.batch(requests, 64, |(key, value), answer| {
            let key = String::from_utf8_lossy(key);
            let answer =
                answer.expect(if value.is_some() { 200 } else { 404 }, &format!("{what}: GET {quorum:?} of {key}"));
            if let Some(value) = value {
                assert!(answer.body == *value, "{what}: GET {quorum:?} of {key}: another value");
            }
        });
    }
}

/// `count` records with keys `PREFIX00000…` and values that say which key and which round they are
/// of.
pub fn numbered(prefix: &str, count: usize, round: &str) -> Records {
    (0..count)
        .map(|index| {
            let key = format!("{prefix}{index:05}");
            let value = format!("{key} {round}").into_bytes();
            (key.into_bytes(), value)
        })
        .collect()
}

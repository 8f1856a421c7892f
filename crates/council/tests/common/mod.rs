//! A cluster of councils on one runtime, with a network between them that cuts, loses and delays.
//!
//! The clock is the paused one of tokio: it goes on when nobody has anything to do. So seconds pass
//! at once, and waits do not depend on the machine. Files are real.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test file uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use koltso_cluster::membership::{MemberNode, Membership};
use koltso_council::{
    COMPACT_AFTER, Change, Council, Document, First, Me, ProposeError, Settings, StartError, Timings, Transport,
};
use koltso_model::NodeId;
use koltso_testkit::random::Random;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

pub const SECOND: Duration = Duration::from_secs(1);

/// Runs a test on a current-thread runtime with a paused clock.
pub fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(test);
}

struct Network {
    up: BTreeMap<String, Weak<Council>>,
    /// Pairs between which nothing passes, in this direction.
    cut: BTreeSet<(String, String)>,
    /// Of a million messages so many are lost, on the way or on the way back.
    lost: u64,
    delay_max_ms: u64,
    random: Random,
    /// What runs inside of a node, to end with it.
    running: BTreeMap<String, Vec<JoinHandle<()>>>,
    /// Every document that any node has had, by its epoch.
    history: BTreeMap<u64, Arc<Document>>,
    /// The newest epoch that each node has had.
    newest: BTreeMap<String, u64>,
    /// Requests that were sent, at most [`TAPPED_MAX`].
    tapped: Vec<Vec<u8>>,
}

const TAPPED_MAX: usize = 2000;

struct Wire {
    network: Arc<Mutex<Network>>,
    from: String,
    from_number: Arc<Mutex<Option<u16>>>,
}

impl Transport for Wire {
    fn call(
        &self,
        _: u16,
        address: &str,
        request: Vec<u8>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, String>> + Send>> {
        let (network, from, to) = (self.network.clone(), self.from.clone(), address.to_owned());
        let number = *self.from_number.lock().unwrap();
        Box::pin(async move {
            let (delay, is_lost, is_lost_back, hangs) = {
                let mut network = network.lock().unwrap();
                if network.tapped.len() < TAPPED_MAX {
                    network.tapped.push(request.clone());
                }
                let (lost, delay) = (network.lost, network.delay_max_ms);
                let random = &mut network.random;
                (random.between(0, delay), random.per_million(lost), random.per_million(lost), random.one_in(2_u64))
            };
            let fail = async |why: &str| {
                if hangs {
                    sleep(60 * SECOND).await;
                }
                Err(why.to_owned())
            };
            sleep(Duration::from_millis(delay)).await;
            let passes =
                |from: &String, to: &String| !network.lock().unwrap().cut.contains(&(from.clone(), to.clone()));
            if is_lost || !passes(&from, &to) {
                return fail("lost on the way").await;
            }
            let (answer, answered) = tokio::sync::oneshot::channel();
            {
                let mut network = network.lock().unwrap();
                let Some(council) = network.up.get(&to).and_then(Weak::upgrade) else {
                    return Err(format!("nobody listens at {to}"));
                };
                let served = tokio::spawn(async move {
                    let bytes = council.serve(number, &request).await;
                    drop(council);
                    drop(answer.send(bytes));
                });
                let running = network.running.entry(to.clone()).or_default();
                running.retain(|task| !task.is_finished());
                running.push(served);
            }
            let bytes = answered.await.map_err(|_| "it was killed".to_owned())?;
            sleep(Duration::from_millis(delay)).await;
            if is_lost_back || !passes(&to, &from) {
                return fail("lost on the way back").await;
            }
            Ok(bytes)
        })
    }
}

pub struct Node {
    pub url: String,
    pub replica: String,
    pub zone: String,
    pub id: NodeId,
    pub folder: TempDir,
    pub council: Option<Arc<Council>>,
    pub is_first: bool,
}

pub struct Cluster {
    network: Arc<Mutex<Network>>,
    pub nodes: Vec<Node>,
    pub first: First,
    pub timings: Timings,
    pub compact_after: u64,
}

impl Cluster {
    /// Nodes in these zones, none of which runs; of them the first so many are in the first list.
    pub fn new(random: &mut Random, zones: &[&str], listed: usize) -> Self {
        let nodes: Vec<Node> = zones
            .iter()
            .enumerate()
            .map(|(at, zone)| Node {
                url: format!("http://node-{at}:1"),
                replica: format!("node-{at}:2"),
                zone: (*zone).to_owned(),
                id: NodeId(1000 + at as u128),
                folder: tempfile::tempdir().unwrap(),
                council: None,
                is_first: at < listed,
            })
            .collect();
        let members = nodes[..listed.max(1)]
            .iter()
            .enumerate()
            .map(|(at, node)| MemberNode::listed(NodeId::NONE, at as u16 + 1, node.url.clone(), node.zone.clone()));
        let membership = Membership::from_parts(1, members.collect(), Vec::new()).unwrap();
        let replica = |node: &MemberNode| nodes.iter().find(|listed| listed.url == node.url).unwrap().replica.clone();
        let replicas = membership.nodes().iter().map(|node| (node.number, replica(node))).collect();
        let network = Network {
            up: BTreeMap::new(),
            cut: BTreeSet::new(),
            lost: 0,
            delay_max_ms: 3,
            random: random.fork(),
            running: BTreeMap::new(),
            history: BTreeMap::new(),
            newest: BTreeMap::new(),
            tapped: Vec::new(),
        };
        let network = Arc::new(Mutex::new(network));
        Self {
            network,
            nodes,
            first: First { membership, replicas },
            timings: Timings::default(),
            compact_after: COMPACT_AFTER,
        }
    }

    /// As many nodes as that, all listed and started.
    pub async fn formed(random: &mut Random, zones: &[&str]) -> Self {
        let mut cluster = Self::new(random, zones, zones.len());
        cluster.start_all().await;
        cluster.settle().await;
        cluster
    }

    pub fn settings(&self, at: usize) -> Settings {
        let node = &self.nodes[at];
        Settings {
            folder: self.folder(at),
            me: Me {
                number: None,
                id: node.id,
                url: node.url.clone(),
                zone: node.zone.clone(),
                replica: node.replica.clone(),
            },
            first: node.is_first.then(|| self.first.clone()),
            timings: self.timings,
            compact_after: self.compact_after,
        }
    }

    pub fn folder(&self, at: usize) -> PathBuf {
        self.nodes[at].folder.path().join("council")
    }

    pub async fn try_start(&mut self, at: usize) -> Result<(), StartError> {
        let from_number = Arc::new(Mutex::new(None));
        let (from, replica) = (self.nodes[at].replica.clone(), self.nodes[at].replica.clone());
        let wire = Wire { network: self.network.clone(), from, from_number: from_number.clone() };
        let council = Arc::new(Council::start(self.settings(at), Arc::new(wire)).await?);
        let mut changes = council.changes();
        let (network, observed, of) = (self.network.clone(), Arc::downgrade(&council), replica.clone());
        let observer = tokio::spawn(async move {
            loop {
                if let Some(document) = changes.borrow_and_update().clone() {
                    seen(&network, &of, document.epoch());
                    record(&network, document);
                }
                *from_number.lock().unwrap() = observed.upgrade().and_then(|council| council.number());
                if changes.changed().await.is_err() {
                    return;
                }
            }
        });
        let mut network = self.network.lock().unwrap();
        network.up.insert(replica.clone(), Arc::downgrade(&council));
        network.running.entry(replica).or_default().push(observer);
        self.nodes[at].council = Some(council);
        Ok(())
    }

    pub async fn start(&mut self, at: usize) {
        self.try_start(at).await.unwrap();
    }

    pub async fn start_all(&mut self) {
        for at in 0..self.nodes.len() {
            if self.nodes[at].council.is_none() {
                self.start(at).await;
            }
        }
    }

    /// Ends a node without stopping it.
    pub async fn kill(&mut self, at: usize) {
        drop(self.taken(at).await);
    }

    /// Ends a node as a program does that is asked to end.
    pub async fn stop(&mut self, at: usize) {
        if let Some(council) = self.taken(at).await {
            Arc::into_inner(council).expect("nobody else has it").stop().await;
        }
    }

    /// Takes a node out of the network, with all that runs in it.
    async fn taken(&mut self, at: usize) -> Option<Arc<Council>> {
        let council = self.nodes[at].council.take()?;
        let tasks = {
            let mut network = self.network.lock().unwrap();
            network.up.remove(&self.nodes[at].replica);
            network.running.remove(&self.nodes[at].replica).unwrap_or_default()
        };
        tasks.iter().for_each(JoinHandle::abort);
        while Arc::strong_count(&council) > 1 {
            tokio::task::yield_now().await;
        }
        Some(council)
    }

    pub fn council(&self, at: usize) -> &Arc<Council> {
        self.nodes[at].council.as_ref().expect("it runs")
    }

    pub fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&at| self.nodes[at].council.is_some()).collect()
    }

    /// Runs a proposal as a part of a node, with which it ends.
    pub fn propose_at(
        &self,
        at: usize,
        base: u64,
        change: Change,
    ) -> tokio::sync::oneshot::Receiver<Result<Arc<Document>, ProposeError>> {
        let (council, (tell, told)) = (self.council(at).clone(), tokio::sync::oneshot::channel());
        let task = tokio::spawn(async move {
            let result = council.propose(base, change).await;
            drop(council);
            drop(tell.send(result));
        });
        self.network.lock().unwrap().running.entry(self.nodes[at].replica.clone()).or_default().push(task);
        told
    }

    pub fn faults(&self, lost: u64, delay_max_ms: u64) {
        let mut network = self.network.lock().unwrap();
        (network.lost, network.delay_max_ms) = (lost, delay_max_ms);
    }

    /// Lets nothing pass between those named and the others.
    pub fn cut_off(&self, some: &[usize]) {
        let mut network = self.network.lock().unwrap();
        for one in 0..self.nodes.len() {
            for other in 0..self.nodes.len() {
                if some.contains(&one) != some.contains(&other) {
                    network.cut.insert((self.nodes[one].replica.clone(), self.nodes[other].replica.clone()));
                }
            }
        }
    }

    pub fn heal(&self) {
        self.network.lock().unwrap().cut.clear();
    }

    pub fn record(&self, document: Arc<Document>) {
        record(&self.network, document);
    }

    /// What members have sent so far, the first of it.
    pub fn tapped(&self) -> Vec<Vec<u8>> {
        self.network.lock().unwrap().tapped.clone()
    }

    pub fn history(&self) -> BTreeMap<u64, Arc<Document>> {
        self.network.lock().unwrap().history.clone()
    }

    /// A leader that reaches a majority, among these.
    pub fn leader_among(&self, some: &[usize]) -> Option<usize> {
        some.iter().copied().find(|&at| self.nodes[at].council.as_ref().is_some_and(|council| council.is_leader()))
    }

    /// Waits for a leader among these, and has the time that took.
    pub async fn leader(&self, some: &[usize]) -> (usize, Duration) {
        let began = Instant::now();
        eventually("a leader", || self.leader_among(some).is_some()).await;
        (self.leader_among(some).unwrap(), began.elapsed())
    }

    /// Waits until all that run have one document, in which they have claimed their places.
    pub async fn settle(&self) {
        let is_settled = || {
            let running = self.running();
            let document = |at: usize| self.council(at).document();
            let Some(newest) = document(running[0]) else { return false };
            running.iter().all(|&at| {
                let node = &self.nodes[at];
                let is_claimed = newest.membership.nodes().iter().any(|member| {
                    member.id == node.id
                        && member.url == node.url
                        && newest.replicas.get(&member.number) == Some(&node.replica)
                });
                is_claimed && document(at).as_ref() == Some(&newest) && self.council(at).leader().is_some()
            })
        };
        eventually("all have one document", is_settled).await;
    }

    pub fn document(&self, at: usize) -> Arc<Document> {
        self.council(at).document().expect("a document")
    }

    pub fn join(&self, at: usize) -> Change {
        let node = &self.nodes[at];
        let (url, zone, replica) = (node.url.clone(), node.zone.clone(), node.replica.clone());
        Change::Join { id: node.id, url, zone, replica }
    }

    /// Proposes for the newest document until it is made.
    pub async fn change(&self, at: usize, change: Change) -> Arc<Document> {
        let began = Instant::now();
        loop {
            match self.council(at).propose(self.document(at).epoch(), change.clone()).await {
                Ok(document) => {
                    self.record(document.clone());
                    return document;
                }
                Err(ProposeError::Behind { .. } | ProposeError::NoMajority) if began.elapsed() < 60 * SECOND => {
                    sleep(SECOND / 10).await;
                }
                Err(error) => panic!("{change:?}: {error}"),
            }
        }
    }

    /// The numbers of nodes.
    pub fn numbers(&self, some: &[usize]) -> Vec<u16> {
        let mut numbers: Vec<u16> = some.iter().map(|&at| self.council(at).number().expect("a number")).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Waits until these vote, as a node knows it.
    pub async fn voters(&self, at: usize, expected: &[u16]) {
        eventually(&format!("{expected:?} vote"), || self.council(at).voters() == expected).await;
    }
}

/// Two documents never have one epoch.
/// Notes an epoch that a node has, which never goes back, not even after a crash. (A panic with the
/// lock held fails whatever uses the network next.)
fn seen(network: &Mutex<Network>, node: &str, epoch: u64) {
    let mut network = network.lock().unwrap();
    let newest = network.newest.entry(node.to_owned()).or_default();
    assert!(epoch >= *newest, "{node} went back from {newest} to {epoch}");
    *newest = epoch;
}

fn record(network: &Mutex<Network>, document: Arc<Document>) {
    let mut network = network.lock().unwrap();
    let known = network.history.entry(document.epoch()).or_insert_with(|| document.clone());
    assert_eq!(*known, document, "two documents with one epoch");
}

/// Waits for a condition, for a minute of the paused clock.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < 60 * SECOND, "not within a minute: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

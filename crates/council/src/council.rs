//! A member of the council: starts, answers the others, says where it is; `proposing.rs` proposes, and
//! `seating.rs`, while it leads, keeps Raft's own list of members in step with the document.
//!
//! ```text
//!  the folder knows its number ───────────────────────────┐
//!  a first list, and the folder is empty: number by URL ──┼─▶ Raft runs ─▶ document ─▶ claim
//!  neither: waits until a leader calls it by its identity ┘              (identity, addresses)
//! ```
//!
//! Owner: one runtime; [`Council`] may be shared. Dropping it ends its tasks and closes its files,
//! as a crash would; [`Council::stop`] waits for that. Bounds: one message to each member at a time
//! by Raft, one proposal by each call. Deliberately absent: a thread. Tested in `tests/`.

mod proposing;
mod seating;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use koltso_cluster::membership::Membership;
use koltso_model::NodeId;
use openraft::error::RaftError;
use openraft::{ServerState, SnapshotPolicy};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::document::{Change, Document};
use crate::machine::{Log, Machine, Published};
use crate::messages::{Answer, Body, ENTRIES_MAX, Request, checked, read};
use crate::network::{Peers, identity_of};
use crate::raft::{AppendResponse, Node, Seat, Snapshot};
use crate::store::{Owner, SharedStore, Store, StoreError};
use crate::voters::chosen;

pub use self::proposing::PROPOSE_MAX;

/// How often a member looks whether there is something for it to do.
const TICK: Duration = Duration::from_millis(100);
/// Before a member claims its place again that it could not claim.
const CLAIM_AGAIN: Duration = Duration::from_millis(500);
/// After so many entries the log is compacted, unless the settings say otherwise.
pub const COMPACT_AFTER: u64 = 512;
/// Of so many entries that a snapshot has, one is kept: a member that was away shortly needs no
/// snapshot.
const KEPT_ONE_IN: u64 = 8;
/// So many entries are sent at once, at most.
const PAYLOAD_ENTRIES: u64 = 300;

const _: () = assert!(PAYLOAD_ENTRIES <= ENTRIES_MAX as u64);

/// How messages reach the other members. They are authenticated: whoever serves one knows from whom
/// it is.
pub trait Transport: Send + Sync + 'static {
    /// Sends a request to a member, and has its answer ([`Council::serve`] there). The address is
    /// `HOST:PORT`, or empty if nobody has said it: then only the list by which the node was
    /// started may know it. An error is a sentence. The future may be dropped at any time.
    fn call(
        &self,
        to: u16,
        address: &str,
        request: Vec<u8>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, String>> + Send>>;
}

/// Who this node is.
#[derive(Clone, Debug)]
pub struct Me {
    /// Its number, if it is known; otherwise the folder, the first list or the leader says it.
    pub number: Option<u16>,
    /// The identity of its data folder.
    pub id: NodeId,
    /// Its HTTP address.
    pub url: String,
    /// Where it stands; empty if nobody said.
    pub zone: String,
    /// Where it listens to the other members, `HOST:PORT`.
    pub replica: String,
}

/// The list of a cluster's first start, which is the same on all its nodes.
#[derive(Clone, Debug)]
pub struct First {
    /// The members, all of whom hold data, with [`koltso_cluster::membership::FIRST_EPOCH`].
    pub membership: Membership,
    /// Where they listen to each other, `HOST:PORT` by number, as far as that is known.
    pub replicas: BTreeMap<u16, String>,
}

/// How fast the members notice that their leader is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// The leader says this often that it is there.
    pub heartbeat: Duration,
    /// A member waits a random time, at least this, before it wants to lead.
    pub election_min: Duration,
    /// And less than this. Nobody gets a vote before the last leader has been silent for as long.
    pub election_max: Duration,
}

impl Default for Timings {
    /// A new leader is there about 1.2 to 2 s after one is lost; if the first election fails, too,
    /// about 1 s later. (openraft waits for `election_max`, and then for the random time.)
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self { heartbeat: ms(150), election_min: ms(400), election_max: ms(800) }
    }
}

/// How a council is started.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of its files, which is made if there is none.
    pub folder: PathBuf,
    /// Who this node is.
    pub me: Me,
    /// The list of the cluster's first start. Ignored by a folder that knows a cluster already;
    /// `None` for a node that waits until it is joined.
    pub first: Option<First>,
    /// How fast a lost leader is noticed.
    pub timings: Timings,
    /// After so many entries the log is compacted: [`COMPACT_AFTER`].
    pub compact_after: u64,
}

/// Why a council does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its folder cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder is not this node's.
    #[error(
        "{folder} belongs to member {number} with the identity {id}, and this node is {me}: start it with its own \
         data folder",
        folder = folder.display()
    )]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// Whose it is.
        number: u16,
        /// Its identity.
        id: NodeId,
        /// This node's identity and number, as far as it is known.
        me: String,
    },
    /// The first list does not have it.
    #[error("{0} is not in the list of the cluster's first members: add it there, or let it join")]
    NotListed(String),
    /// The timings contradict each other.
    #[error("these timings are not possible: {0}")]
    Timings(String),
    /// Raft does not start.
    #[error("the council cannot start: {0}")]
    Raft(String),
}

/// Why a proposal was not made, or is not known to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nobody leads, or whoever does reaches no majority. Nothing was changed.
    #[error(
        "no majority of the voters can be reached, and nothing was changed: start them, or make them reachable, and \
         try again"
    )]
    NoMajority,
    /// The change was sent, and nobody has said what came of it. It may still be made.
    #[error(
        "no majority of the voters has answered in time: the change may have been made, or may still be; look at the \
         document before you try again"
    )]
    Unknown,
    /// The document is another than that which the change was for. Nothing was changed.
    #[error("the document is at epoch {epoch} by now: look at it, and decide again")]
    Behind {
        /// Its epoch.
        epoch: u64,
    },
    /// The change is not possible. Nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// This council has been stopped, or its disk has failed.
    #[error("the council of this node has stopped: start the node again")]
    Stopped,
}

/// When this member last knew of a leader.
struct Led {
    /// When a leader has last spoken to it.
    heard: Instant,
    /// When it has last led, or had one.
    led: Instant,
}

struct Inner {
    me: Me,
    first: Option<First>,
    timings: Timings,
    config: Arc<openraft::Config>,
    peers: Peers,
    raft: OnceLock<Node>,
    /// Held while Raft starts.
    starting: tokio::sync::Mutex<()>,
    led: Mutex<Led>,
}

/// A member of the council; see the module.
pub struct Council {
    inner: Arc<Inner>,
    tasks: Vec<JoinHandle<()>>,
    runtime: tokio::runtime::Handle,
}

impl Drop for Council {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.inner.peers.store.close();
        if let Some(raft) = self.inner.raft.get().cloned() {
            self.runtime.spawn(async move { drop(raft.shutdown().await) });
        }
    }
}

impl Council {
    /// Starts a member. Its folder knows what it is; or `first` says it, and forms the cluster; or
    /// it waits until a leader adds it, after somebody has proposed [`Change::Join`] with its
    /// identity.
    ///
    /// # Errors
    /// See [`StartError`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn start(settings: Settings, transport: Arc<dyn Transport>) -> Result<Self, StartError> {
        let Settings { folder, me, first, timings, compact_after } = settings;
        let config = raft_config(timings, compact_after)?;
        let mut store = Store::open(&folder)?;
        if let Some(Owner { number, id }) = store.owner() {
            if id != me.id || me.number.is_some_and(|expected| expected != number) {
                let me = me.number.map_or_else(|| me.id.to_string(), |number| format!("{number} with {}", me.id));
                return Err(StartError::Foreign { folder, number, id, me });
            }
        } else if let Some(first) = &first {
            let listed = first.membership.at(&me.url).ok_or_else(|| StartError::NotListed(me.url.clone()))?;
            store.take_ownership(Owner { number: listed.number, id: me.id })?;
        }
        let is_known = store.owner().is_some();
        let document = store.applied().state.document.clone().map(Arc::new);
        let published: Published = Arc::new(watch::Sender::new(document));
        let addresses = first.as_ref().map(|first| first.replicas.clone()).unwrap_or_default();
        let store = SharedStore::new(store);
        let peers = Peers { transport, store, published, id: me.id, first: Arc::new(addresses) };
        let now = Instant::now();
        let inner = Arc::new(Inner {
            me,
            first,
            timings,
            config,
            peers,
            raft: OnceLock::new(),
            starting: tokio::sync::Mutex::new(()),
            led: Mutex::new(Led { heard: now, led: now }),
        });
        if is_known {
            inner.start_raft().await?;
        }
        let tasks = vec![
            tokio::spawn(inner.clone().watch_the_leader()),
            tokio::spawn(inner.clone().claim_the_place()),
            tokio::spawn(inner.clone().keep_the_seats()),
        ];
        Ok(Self { inner, tasks, runtime: tokio::runtime::Handle::current() })
    }

    /// The newest document that is applied here; `None` before the first.
    #[must_use]
    pub fn document(&self) -> Option<Arc<Document>> {
        self.inner.peers.document()
    }

    /// Has each newest document. Of several that come at once, the last may be the only one seen.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Option<Arc<Document>>> {
        self.inner.peers.published.subscribe()
    }

    /// This node's number; `None` as long as it waits to be joined.
    #[must_use]
    pub fn number(&self) -> Option<u16> {
        self.inner.number()
    }

    /// Who leads, as far as this member knows: a leader that reaches a majority, or that it has
    /// heard of lately.
    #[must_use]
    pub fn leader(&self) -> Option<u16> {
        self.inner.leader()
    }

    /// Whether this member leads, and reaches a majority.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leader().is_some_and(|leader| Some(leader) == self.number())
    }

    /// Who votes, as far as this member knows: the numbers, ascending.
    #[must_use]
    pub fn voters(&self) -> Vec<u16> {
        let metrics = self.inner.raft.get().map(|raft| raft.metrics().borrow().membership_config.clone());
        metrics.iter().flat_map(|members| members.voter_ids().filter_map(|id| u16::try_from(id).ok())).collect()
    }

    /// Changes the document that has the epoch `base_epoch`, and has the document after it. A
    /// member that does not lead asks the leader. What is returned is on the disks of a majority of
    /// the voters.
    ///
    /// It takes [`PROPOSE_MAX`] at most. If the future is dropped, the change may be made or not.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(&self, base_epoch: u64, change: Change) -> Result<Arc<Document>, ProposeError> {
        self.inner.propose(base_epoch, change).await
    }

    /// Answers a message of another member. `from` is who it is by the transport's authentication,
    /// if that knows it. The bytes may be anything.
    pub async fn serve(&self, from: Option<u16>, request: &[u8]) -> Vec<u8> {
        self.inner.serve(from, request).await.unwrap_or_else(Answer::Error).written()
    }

    /// Ends it: its files are closed when this returns.
    pub async fn stop(self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        if let Some(raft) = self.inner.raft.get()
            && raft.shutdown().await.is_err()
        {
            tracing::warn!("the council's task had ended by itself");
        }
    }
}

fn raft_config(timings: Timings, compact_after: u64) -> Result<Arc<openraft::Config>, StartError> {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let config = openraft::Config {
        cluster_name: "koltso".to_owned(),
        heartbeat_interval: ms(timings.heartbeat),
        election_timeout_min: ms(timings.election_min),
        election_timeout_max: ms(timings.election_max),
        install_snapshot_timeout: 2000,
        max_payload_entries: PAYLOAD_ENTRIES,
        replication_lag_threshold: compact_after.saturating_mul(2),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(compact_after.max(1)),
        max_in_snapshot_log_to_keep: compact_after / KEPT_ONE_IN,
        ..openraft::Config::default()
    };
    config.validate().map(Arc::new).map_err(|e| StartError::Timings(e.to_string()))
}

impl Inner {
    fn number(&self) -> Option<u16> {
        self.peers.store.with(|store| Ok(store.owner())).ok().flatten().map(|owner| owner.number)
    }

    async fn start_raft(&self) -> Result<(), StartError> {
        let _only = self.starting.lock().await;
        if self.raft.get().is_some() {
            return Ok(());
        }
        let Some(number) = self.number() else { return Err(StoreError::Closed.into()) };
        let (store, published) = (self.peers.store.clone(), self.peers.published.clone());
        let raft = Node::new(
            number.into(),
            self.config.clone(),
            self.peers.clone(),
            Log(store.clone()),
            Machine::new(store, published),
        );
        let raft = raft.await.map_err(|e| StartError::Raft(e.to_string()))?;
        if let Some(first) = &self.first {
            let zones: Vec<(u16, &str)> =
                first.membership.nodes().iter().map(|node| (node.number, &node.zone[..])).collect();
            let voters = chosen(&zones, &BTreeSet::new(), |_| true);
            let seat = |number: &u16| Seat {
                replica: first.replicas.get(number).cloned().unwrap_or_default(),
                id: NodeId::NONE,
            };
            // All write the same first entry, so it does not matter who is the first. Whoever has
            // been asked for a vote before, or knows a cluster, is not allowed to, which is as
            // good.
            if voters.contains(&number) {
                let seats: BTreeMap<u64, Seat> =
                    voters.iter().map(|number| (u64::from(*number), seat(number))).collect();
                match raft.initialize(seats).await {
                    Ok(()) | Err(RaftError::APIError(_)) => {}
                    Err(RaftError::Fatal(e)) => return Err(StartError::Raft(e.to_string())),
                }
            }
        }
        drop(self.raft.set(raft));
        Ok(())
    }

    // ---- who leads ----

    fn leader(&self) -> Option<u16> {
        let metrics = self.raft.get()?.metrics();
        let metrics = metrics.borrow();
        if metrics.running_state.is_err() || !self.peers.store.is_open() {
            return None;
        }
        let leader = metrics.current_leader.and_then(|leader| u16::try_from(leader).ok())?;
        let is_known = if u64::from(leader) == metrics.id {
            let is_alone = metrics.membership_config.voter_ids().eq([metrics.id]);
            let acknowledged = metrics.millis_since_quorum_ack.map(Duration::from_millis);
            let is_followed = acknowledged.is_some_and(|since| since <= self.timings.election_max);
            metrics.state == ServerState::Leader && (is_alone || is_followed)
        } else {
            // A voter would have wanted to lead itself by now; others never do.
            self.led.lock().heard.elapsed() <= 2 * self.timings.election_max
        };
        is_known.then_some(leader)
    }

    /// For how long there may be no leader until it is known that there is none.
    fn patience(&self) -> Duration {
        2 * self.timings.election_max
    }

    async fn watch_the_leader(self: Arc<Self>) {
        loop {
            if self.leader().is_some() {
                self.led.lock().led = Instant::now();
            }
            sleep(TICK / 2).await;
        }
    }

    fn seat_of(&self, number: u16) -> Seat {
        let members = self.raft.get().map(|raft| raft.metrics().borrow().membership_config.clone());
        let seat = members.and_then(|members| members.membership().get_node(&number.into()).cloned());
        seat.unwrap_or_default()
    }

    // ---- messages ----

    async fn serve(&self, from: Option<u16>, bytes: &[u8]) -> Result<Answer, String> {
        let request: Request = read(bytes)?;
        if let Some(from) = from.filter(|&from| from != request.from) {
            return Err(format!("member {from} says that it is {}", request.from));
        }
        checked(&request)?;
        self.check_sender(&request)?;
        let raft = self.addressed(&request).await?;
        let stopped = |e: &dyn std::fmt::Display| format!("the council of this node has stopped: {e}");
        match request.body {
            Body::Ping => Ok(Answer::Pong),
            Body::Vote(vote) => raft.vote(vote).await.map(Answer::Vote).map_err(|e| stopped(&e)),
            Body::Append(append) => {
                let answer = raft.append_entries(append).await.map_err(|e| stopped(&e))?;
                if !matches!(answer, AppendResponse::HigherVote(_)) {
                    self.led.lock().heard = Instant::now();
                }
                Ok(Answer::Append(answer))
            }
            Body::Snapshot { vote, meta, state } => {
                let snapshot = Snapshot { meta, snapshot: state };
                let answer = raft.install_full_snapshot(vote, snapshot).await.map_err(|e| stopped(&e))?;
                if answer.vote == vote {
                    self.led.lock().heard = Instant::now();
                }
                Ok(Answer::Snapshot(answer))
            }
            Body::Propose(proposal) => Ok(self.serve_proposal(proposal).await),
        }
    }

    /// Whether there has been no leader for so long that it is known.
    fn is_forsaken(&self) -> bool {
        self.led.lock().led.elapsed() > self.patience()
    }

    /// Refuses whoever is no member any more, or is not who the document says, or of another
    /// cluster.
    fn check_sender(&self, request: &Request) -> Result<(), String> {
        let Some(document) = self.peers.document() else { return Ok(()) };
        if request.cluster != NodeId::NONE && request.cluster != document.cluster {
            return Err(format!("this is a member of the cluster {}, not of {}", document.cluster, request.cluster));
        }
        let number = request.from;
        // One that is not known at all may be newer than this document.
        match identity_of(&document, number) {
            Some(id) if id != NodeId::NONE && id != request.from_id => {
                Err(format!("member {number} has the identity {id}, not {}", request.from_id))
            }
            None if document.membership.former().iter().any(|node| node.number == number) => {
                Err(format!("{number} is no member any more"))
            }
            _ => Ok(()),
        }
    }

    /// Raft, if the message is for this node. One that waits to be joined learns its number by it.
    async fn addressed(&self, request: &Request) -> Result<&Node, String> {
        if request.to_id != NodeId::NONE && request.to_id != self.me.id {
            return Err(format!("the identity of this node is {}, not {}", self.me.id, request.to_id));
        }
        match self.number() {
            Some(number) if number != request.to => return Err(format!("this is member {number}")),
            Some(_) => {}
            None => {
                let is_of_a_leader = matches!(request.body, Body::Append(_) | Body::Snapshot { .. });
                if !is_of_a_leader || request.to_id != self.me.id {
                    return Err("this node waits until a leader has joined it".to_owned());
                }
                let owner = Owner { number: request.to, id: self.me.id };
                let owned = self.peers.store.with(|store| match store.owner() {
                    None => store.take_ownership(owner),
                    Some(_) => Ok(()),
                });
                owned.map_err(|e| e.to_string())?;
            }
        }
        self.start_raft().await.map_err(|e| e.to_string())?;
        self.raft.get().ok_or_else(|| "the council of this node has stopped".to_owned())
    }

    // ---- this member's own place in the document ----

    /// The change by which the document says where this member is and who.
    fn claim(&self) -> Option<(u64, Change)> {
        let document = self.peers.document()?;
        let nodes = document.membership.nodes();
        let mine = nodes.iter().find(|node| node.id == self.me.id);
        let listed = || nodes.iter().find(|node| node.id == NodeId::NONE && node.url == self.me.url);
        let node = mine.or_else(listed)?;
        let is_right = node.id == self.me.id
            && node.url == self.me.url
            && document.replicas.get(&node.number) == Some(&self.me.replica);
        let Me { id, url, replica, .. } = self.me.clone();
        (!is_right).then(|| (document.epoch(), Change::Readdress { id, url, replica }))
    }

    async fn claim_the_place(self: Arc<Self>) {
        let mut changes = self.peers.published.subscribe();
        loop {
            drop(changes.borrow_and_update());
            match self.claim() {
                None => {
                    if changes.changed().await.is_err() {
                        return;
                    }
                }
                Some((epoch, claim)) => match self.propose(epoch, claim).await {
                    Ok(_) | Err(ProposeError::Behind { .. }) => {
                        // Whoever was faster is applied here in a moment.
                        drop(timeout(TICK, changes.changed()).await);
                    }
                    Err(error) => {
                        tracing::debug!("this member has not said where it is: {error}");
                        sleep(CLAIM_AGAIN).await;
                    }
                },
            }
        }
    }
}

/// Random, and not none.
fn random_id() -> NodeId {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the kernel has random numbers");
    NodeId(u128::from_le_bytes(bytes) | 1)
}

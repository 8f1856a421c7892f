//! What this node does for peers that coordinate: applies their writes, answers their reads.
//!
//! Owner: one core. A request is served where it was read, under no lock but the index stripe's;
//! the replies of all requests of one read leave together. In the mode "always" writes are answered
//! later, those of one read after one sync of the log for all of them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use koltso_cluster::member::{Clocks, Observer};
use koltso_model::{Found, Key, Operation, Outcome, Record, Refused, VALUE_MAX_LIMIT, Want};
use koltso_net::replica::{
    self as wire, AcceptConfig, Acquaintances, DeferredReply, Identity, Introduction, Judged, MemberAddresses,
    PeerIdentity, ReplicaEvent, ReplicaService, Replies, Request,
};

use super::Cluster;
use super::peers::Served;
use crate::replica::clock::{now_ms, now_wall, told_ms};
use crate::replica::{Contents, Executed, Later, Replica};
use crate::stalls::Turn;

/// A disk that has not confirmed a batch after this time counts as stuck. From then on reads wait for
/// it, too: while they were answered, nobody would notice what becomes of the writes.
const STUCK: Duration = Duration::from_millis(50);

/// How many of the replies that waited for the disk are given before their connections send them: the
/// value of a read has up to 16 KiB that are held until then.
const ANSWERS_A_TURN: usize = 256;

/// Connections of peers to this node, beside those that have not said who they are and those of them
/// that are being shown out.
const CONNECTIONS_MAX: usize = 4096;

/// Where the members of a cluster are.
#[derive(Clone)]
struct Members(Arc<Cluster>);

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Members")
    }
}

impl MemberAddresses for Members {
    fn has(&self, address: IpAddr) -> bool {
        self.0.has_member_at(address)
    }
}

/// Whom this node remembers, and who is there now: of two processes that say they are the same
/// member, with copies of one folder, the one that was there first goes on.
struct Present(Arc<Cluster>);

impl std::fmt::Debug for Present {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Present")
    }
}

impl Acquaintances for Present {
    fn judge(&self, peer: u16, introduction: &Introduction) -> Judged {
        let Self(cluster) = self;
        if cluster.by_number(peer).is_some_and(|node| cluster.peers.lives_elsewhere(node, introduction)) {
            return Judged::TwoPlaces;
        }
        cluster.acquaintances().judge(peer, introduction)
    }

    fn heard_ms(&self, peer: u16) -> u64 {
        self.0.acquaintances().heard_ms(peer)
    }
}

struct PeerService {
    observer: Observer,
    cluster: Arc<Cluster>,
    replica: Rc<Replica>,
    /// Unless nobody looks for stalls.
    turn: Option<Rc<Turn>>,
    core: usize,
    /// What was written since the last [`ReplicaService::batch_end`] and waits for the disk.
    unsynced: RefCell<Vec<Unsynced>>,
    /// Since when batches are waiting for the disk, the oldest first.
    syncing: Rc<RefCell<VecDeque<Instant>>>,
}

/// A reply that waits until the disk has what was written before it.
enum Unsynced {
    /// The reply to a write, and the write's outcome.
    Write(DeferredReply, Later),
    /// The reply to a ping that came behind writes, and the clock that the ping said. It waits like
    /// them, so that a node whose disk is stuck is as silent as one that is stopped.
    Ping(DeferredReply, u64),
    /// The reply to a read that came when the disk had been stuck for [`STUCK`].
    Read(DeferredReply, Key<Bytes>, Want),
}

/// Only this core adds, so a load and a store will do.
fn add(count: &AtomicU64, more: u64) {
    count.store(count.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

impl PeerService {
    fn served(&self) -> &Served {
        self.cluster.peers.served(self.core)
    }

    fn write(&self, record: &Record<&[u8]>, replies: &mut Replies<'_>) {
        if let Err(why) = self.observer.admit(now_wall(), record) {
            return replies.answer(&Outcome::<Bytes>::Refused(why));
        }
        let write = Operation::Write(*record);
        if let Executed::Later(later) = self.replica.execute(&write, now_ms(), |outcome| replies.answer(&outcome)) {
            self.unsynced.borrow_mut().push(Unsynced::Write(replies.later(), later));
        }
    }

    fn read(&self, key: Key<&[u8]>, want: Want, replies: &mut Replies<'_>) {
        if self.syncing.borrow().front().is_some_and(|since| since.elapsed() >= STUCK) {
            return self.unsynced.borrow_mut().push(Unsynced::Read(replies.later(), key.owned(), want));
        }
        let executed = self.replica.execute(&Operation::Read { key, want }, now_ms(), |outcome| match outcome {
            Outcome::Found(Found { value: Some(Contents::Shared(ref value)), .. }) => {
                let value = value.clone();
                let Outcome::Found(found) = &outcome else { unreachable!("it was found") };
                replies.answer_shared(found, value);
            }
            outcome => replies.answer(&outcome),
        });
        assert!(matches!(executed, Executed::Now(())), "a read waits for no sync");
    }
}

impl ReplicaService for PeerService {
    fn request(&self, _from: u16, epoch: u64, request: Request<'_>, replies: &mut Replies<'_>) {
        add(&self.served().requests, 1);
        if let Request::Execute(operation) = &request
            && epoch < self.cluster.topology.fence(operation.key().hash())
        {
            return replies.answer(&Outcome::<Bytes>::Refused(Refused::Behind));
        }
        if let Some(turn) = self.turn.as_ref().filter(|_| !matches!(request, Request::Ping { .. })) {
            turn.busy();
        }
        match request {
            Request::Execute(Operation::Write(record)) => self.write(&record, replies),
            Request::Execute(Operation::Read { key, want }) => self.read(key, want, replies),
            Request::Ping { clock, .. } if !self.syncing.borrow().is_empty() || !self.unsynced.borrow().is_empty() => {
                self.unsynced.borrow_mut().push(Unsynced::Ping(replies.later(), clock));
            }
            Request::Ping { clock, .. } => {
                let Clocks { clock, .. } = self.observer.exchanged(now_wall(), clock);
                replies.pong(told_ms(), clock);
            }
        }
    }

    fn batch_end(&self) {
        if self.unsynced.borrow().is_empty() {
            return;
        }
        let unsynced = self.unsynced.take();
        let durable = self.replica.durable();
        let (observer, replica, syncing) = (self.observer.clone(), self.replica.clone(), self.syncing.clone());
        syncing.borrow_mut().push_back(Instant::now());
        monoio::spawn(async move {
            if let Some(durable) = durable {
                // Each write says for itself what became of it.
                let _ = durable.await;
            }
            // Batches end in the order in which they began.
            syncing.borrow_mut().pop_front();
            for (number, waiting) in unsynced.into_iter().enumerate() {
                if (number + 1).is_multiple_of(ANSWERS_A_TURN) {
                    // The connections send what they have before there is more.
                    monoio::spawn(std::future::ready(())).await;
                }
                match waiting {
                    Unsynced::Write(deferred, later) => deferred.answer(later.await),
                    Unsynced::Ping(deferred, clock) => {
                        let Clocks { clock, .. } = observer.exchanged(now_wall(), clock);
                        deferred.pong(told_ms(), clock);
                    }
                    Unsynced::Read(deferred, key, want) => {
                        let kept = |outcome: Outcome<Contents<'_>>| outcome.map(Contents::into_bytes);
                        let read = Operation::Read { key: key.borrowed(), want };
                        if let Executed::Now(outcome) = replica.execute(&read, now_ms(), kept) {
                            deferred.answer(outcome);
                        }
                    }
                }
            }
        });
    }

    fn exchange(&self, peer: PeerIdentity, socket: TcpStream, read_so_far: Vec<u8>) {
        if let Some(repair) = self.cluster.repair() {
            repair.answer(peer, socket, read_so_far);
        }
    }

    #[inline]
    fn resumed(&self, now: Instant) {
        if let Some(turn) = &self.turn {
            turn.begin_quietly(now);
        }
    }

    fn event(&self, event: ReplicaEvent) {
        match event {
            ReplicaEvent::Connected(peer) => {
                self.cluster.met(&peer);
                if let Some(node) = self.cluster.by_number(peer.node) {
                    self.cluster.peers.arrived(node);
                }
            }
            ReplicaEvent::NoResources => self.cluster.peers.refused("there were no file descriptors left for it"),
            ReplicaEvent::Limit => self.cluster.peers.crowd_out(),
            ReplicaEvent::BytesIn(bytes) => add(&self.served().bytes_in, bytes as u64),
            ReplicaEvent::BytesOut(bytes) => add(&self.served().bytes_out, bytes as u64),
            ReplicaEvent::Refused(sentence) => self.cluster.peers.refused(&sentence),
            ReplicaEvent::Violation { node, sentence } => {
                let name = self.cluster.by_number(node).map_or("a node", |node| self.cluster.topology.name(node));
                self.cluster.peers.refused(&format!("{name} broke the protocol: {sentence}"));
            }
            ReplicaEvent::Accepted | ReplicaEvent::Closed | ReplicaEvent::WriteTimeout => {}
        }
    }
}

/// Serves peers on one core until the cluster's connections are drained.
pub(super) async fn serve(
    observer: Observer,
    (cluster, replica, turn): (Arc<Cluster>, Rc<Replica>, Option<Rc<Turn>>),
    core: usize,
    listener: TcpListener,
    identity: Rc<Identity>,
) {
    let config = AcceptConfig {
        identity,
        members: Rc::new(RefCell::new(cluster.topology.numbers().collect())),
        acquaintances: Arc::new(Present(cluster.clone())),
        value_max: VALUE_MAX_LIMIT,
        wall_ms: told_ms,
        connections_max: CONNECTIONS_MAX + 2 * cluster.strangers_max * cluster.peers.cores(),
        strangers_max: cluster.strangers_max,
        addresses: Rc::new(Members(cluster.clone())),
    };
    let shared = cluster.shared.clone();
    let service = Rc::new(PeerService {
        observer,
        cluster,
        replica,
        turn,
        core,
        unsynced: RefCell::default(),
        syncing: Rc::default(),
    });
    if let Err(e) = wire::serve(listener, service, config, shared).await {
        tracing::error!("this node cannot accept replica connections: {e}");
    }
}

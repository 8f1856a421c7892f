//! What this node does for peers that coordinate: applies their writes, answers their reads.
//!
//! Owner: one core. A request is served where it was read, under no lock but the index stripe's; the replies of all
//! requests of one read leave together, in the mode "always" after one sync of the log for all of them.

use std::cell::Cell;
use std::net::TcpListener;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use koltso_model::{Flags, Found, Key, Operation, Outcome, Record, Refused, VALUE_MAX_LIMIT, Version, Want};
use koltso_net::replica::{
    self as wire, AcceptConfig, Identity, ReplicaEvent, ReplicaService, Replies, Reply, Request, Stamp,
};

use super::peers::Served;
use super::{Cluster, believe};
use crate::member::clock::now_ms;
use crate::node::Node;
use crate::node::replica::{Contents, Executed, Replica};
use crate::node::stalls::Turn;

/// Connections of peers to one core.
const CONNECTIONS_MAX: usize = 4096;

struct PeerService {
    node: Arc<Node>,
    cluster: Arc<Cluster>,
    replica: Rc<Replica>,
    /// Unless nobody looks for stalls.
    turn: Option<Rc<Turn>>,
    core: usize,
    /// Something was written since the last [`ReplicaService::settle`].
    written: Cell<bool>,
}

fn stamp(version: Version) -> Stamp {
    Stamp { clock: version.clock, node: version.node }
}

/// Only this core adds, so a load and a store will do.
fn add(count: &AtomicU64, more: u64) {
    count.store(count.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

impl PeerService {
    fn served(&self) -> &Served {
        self.cluster.peers.served(self.core)
    }

    fn write(&self, record: &Record<&[u8]>) -> Reply<'static> {
        if record.version.clock == 0 || !believe::credible(record.version.clock, now_ms()) {
            return Reply::Refused(wire::Refused::Failed);
        }
        self.node.clock.observe(record.version.clock);
        self.written.set(true);
        // Confirmed with all others of its batch, see `settle`.
        match self.replica.write(record) {
            Outcome::Applied => Reply::Applied,
            Outcome::Superseded(newer) => Reply::Superseded(stamp(newer)),
            Outcome::Refused(Refused::DiskFull) => Reply::Refused(wire::Refused::DiskFull),
            Outcome::Refused(Refused::TooLarge) => Reply::Refused(wire::Refused::TooLarge),
            _ => Reply::Refused(wire::Refused::Failed),
        }
    }

    fn read(&self, key: Key<&[u8]>, want: Want, replies: &mut Replies<'_>) {
        let hash = key.hash().0;
        let executed = self.replica.execute(&Operation::Read { key, want }, now_ms(), |outcome| match outcome {
            Outcome::Found(Found { version, expires_at_ms, value: Some(Contents::Shared(value)), .. }) => {
                replies.large(hash, stamp(version), expires_at_ms, value);
            }
            Outcome::Found(Found { version, expires_at_ms, value_len, value, .. }) => {
                let value = value.as_ref().map(AsRef::as_ref);
                replies.reply(hash, &Reply::Found { version: stamp(version), expires_at_ms, value_len, value });
            }
            Outcome::Absent(tombstone) => {
                replies.reply(hash, &Reply::Absent(tombstone.map(|tombstone| stamp(tombstone.version))));
            }
            _ => replies.reply(hash, &Reply::Damaged),
        });
        assert!(matches!(executed, Executed::Now(())), "a read waits for no sync");
    }
}

impl ReplicaService for PeerService {
    fn request(&self, _from: u16, _number: u64, request: Request<'_>, replies: &mut Replies<'_>) {
        add(&self.served().requests, 1);
        if let Some(turn) = self.turn.as_ref().filter(|_| !matches!(request, Request::Ping { .. })) {
            turn.busy();
        }
        match request {
            Request::Put { key, value, version, expires_at_ms } => {
                let (key, version) = (Key::new(key), Version::new(version.clock, version.node));
                let record = Record { key, value, version, expires_at_ms, flags: Flags::new(1), attributes: &[] };
                replies.reply(key.hash().0, &self.write(&record));
            }
            Request::Delete { key, version } => {
                let (key, version) = (Key::new(key), Version::new(version.clock, version.node));
                let flags = Flags::new(1).tombstone();
                let record = Record { key, value: &[], version, expires_at_ms: 0, flags, attributes: &[] };
                replies.reply(key.hash().0, &self.write(&record));
            }
            Request::Read { key, value } => {
                self.read(Key::new(key), if value { Want::Value } else { Want::Version }, replies);
            }
            Request::Ping { clock, .. } => {
                if believe::credible(clock, now_ms()) {
                    self.node.clock.observe(clock);
                }
                replies.reply(0, &Reply::Pong { wall_ms: now_ms(), clock: self.node.clock.last() });
            }
        }
    }

    fn settle(&self) -> Option<Pin<Box<dyn Future<Output = bool>>>> {
        if !self.written.take() {
            return None;
        }
        let durable = self.replica.durable()?;
        Some(Box::pin(async move { durable.await.is_ok() }))
    }

    #[inline]
    fn resumed(&self, now: Instant) {
        if let Some(turn) = &self.turn {
            turn.begin_quietly(now);
        }
    }

    fn event(&self, event: ReplicaEvent) {
        match event {
            ReplicaEvent::Connected(number) => {
                if let Some(node) = self.cluster.by_number(number) {
                    self.cluster.peers.arrived(node);
                }
            }
            ReplicaEvent::Limit => self.cluster.peers.refused("too many connections did not say who they are"),
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
    node: Arc<Node>,
    (cluster, replica, turn): (Arc<Cluster>, Rc<Replica>, Option<Rc<Turn>>),
    core: usize,
    listener: TcpListener,
    identity: Rc<Identity>,
) {
    let config = AcceptConfig {
        identity,
        members: cluster.topology.numbers().to_vec(),
        value_max: VALUE_MAX_LIMIT,
        wall_ms: now_ms,
        connections_max: CONNECTIONS_MAX,
    };
    let shared = cluster.shared.clone();
    let service = Rc::new(PeerService { node, cluster, replica, turn, core, written: Cell::new(false) });
    if let Err(e) = wire::serve(listener, service, config, shared).await {
        tracing::error!("this node cannot accept replica connections: {e}");
    }
}

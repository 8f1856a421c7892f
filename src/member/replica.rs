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

use bytes::Bytes;
use koltso_net::replica::{
    self as wire, AcceptConfig, Identity, ReplicaEvent, ReplicaService, Replies, Reply, Request, Stamp,
};
use koltso_storage::{KeyHash, Lookup, Unverified, VALUE_MAX_LIMIT, Value, Version};

use super::peers::Served;
use super::{Cluster, believe, core};
use crate::member::clock::now_ms;
use crate::node::Node;
use crate::node::replica::{Engine, Written};
use crate::node::stalls::Turn;

/// Connections of peers to one core.
const CONNECTIONS_MAX: usize = 4096;

struct Replica {
    node: Arc<Node>,
    cluster: Arc<Cluster>,
    engine: Rc<Engine>,
    /// Unless nobody looks for stalls.
    turn: Option<Rc<Turn>>,
    core: usize,
    /// Something was written since the last [`ReplicaService::settle`].
    written: Cell<bool>,
}

fn stamp(version: Version) -> Stamp {
    Stamp { clock: version.clock, node: version.node }
}

/// What a read found under the stripe's lock that has to be gone on with outside.
struct Large {
    version: Version,
    expires_at_ms: u64,
    value: Unverified,
}

/// Only this core adds, so a load and a store will do.
fn add(count: &AtomicU64, more: u64) {
    count.store(count.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

impl Replica {
    fn served(&self) -> &Served {
        self.cluster.peers.served(self.core)
    }

    fn write(&self, key: &[u8], value: Option<&[u8]>, version: Stamp, expires_at_ms: u64) -> Reply<'static> {
        let version = Version::new(version.clock, version.node);
        if version.clock == 0 || !believe::credible(version.clock, now_ms()) {
            return Reply::Refused(wire::Refused::Failed);
        }
        self.node.clock.observe(version.clock);
        self.written.set(true);
        match self.engine.write(key, value, version, expires_at_ms) {
            Ok(Written::Applied) => Reply::Applied,
            Ok(Written::Superseded(newer)) => Reply::Superseded(stamp(newer)),
            Err(error) => Reply::Refused(match core::refused(&error) {
                koltso_cluster::message::Refused::DiskFull => wire::Refused::DiskFull,
                koltso_cluster::message::Refused::TooLarge => wire::Refused::TooLarge,
                koltso_cluster::message::Refused::Failed | koltso_cluster::message::Refused::Busy => {
                    wire::Refused::Failed
                }
            }),
        }
    }

    fn read(&self, hash: u64, key: &[u8], wanted: bool, replies: &mut Replies<'_>) {
        let large = self.engine.store().get_record(key, now_ms(), |found, expires_at_ms| {
            let reply = match found {
                Lookup::Absent(version) => Reply::Absent(version.map(stamp)),
                Lookup::Damaged => Reply::Damaged,
                Lookup::Found(version, Value::Large(value)) if wanted => {
                    return Some(Large { version, expires_at_ms, value });
                }
                Lookup::Found(version, value) => {
                    let value_len = value.len() as u32;
                    let bytes = match value {
                        Value::Inline(bytes) if wanted => Some(bytes),
                        _ => None,
                    };
                    Reply::Found { version: stamp(version), expires_at_ms, value_len, value: bytes }
                }
            };
            replies.reply(hash, &reply);
            None
        });
        if let Some(Large { version, expires_at_ms, value }) = large {
            match value.verify() {
                Some(pinned) => replies.large(hash, stamp(version), expires_at_ms, Bytes::from_owner(pinned)),
                None => replies.reply(hash, &Reply::Damaged),
            }
        }
    }
}

impl ReplicaService for Replica {
    fn request(&self, _from: u16, _number: u64, request: Request<'_>, replies: &mut Replies<'_>) {
        add(&self.served().requests, 1);
        if let Some(turn) = self.turn.as_ref().filter(|_| !matches!(request, Request::Ping { .. })) {
            turn.busy();
        }
        match request {
            Request::Put { key, value, version, expires_at_ms } => {
                let reply = self.write(key, Some(value), version, expires_at_ms);
                replies.reply(KeyHash::of(key).0, &reply);
            }
            Request::Delete { key, version } => {
                let reply = self.write(key, None, version, 0);
                replies.reply(KeyHash::of(key).0, &reply);
            }
            Request::Read { key, value } => self.read(KeyHash::of(key).0, key, value, replies),
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
        let durable = self.engine.durable()?;
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
    (cluster, engine, turn): (Arc<Cluster>, Rc<Engine>, Option<Rc<Turn>>),
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
    let replica = Rc::new(Replica { node, cluster, engine, turn, core, written: Cell::new(false) });
    if let Err(e) = wire::serve(listener, replica, config, shared).await {
        tracing::error!("this node cannot accept replica connections: {e}");
    }
}

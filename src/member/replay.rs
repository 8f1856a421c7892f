//! The connections over which missed writes are replayed: blocking ones, on the threads of the hints' keeper, so that a data
//! core never waits for a file or for a peer that catches up.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use koltso_cluster::plausibility;
use koltso_cluster::skew::SKEW_MAX_MS;
use koltso_hints::{Dial, Keeper, Options, Peer, Target, Verdict};
use koltso_model::{KeyHash, Operation, Record, VALUE_MAX_LIMIT};
use koltso_net::replica::blocking::Connection;
use koltso_net::replica::frame::{ReplyFrame, encode_request};
use koltso_net::replica::{Identity, Reply, Request};

use super::Cluster;
use crate::member::clock_file::{now_ms, now_wall};

/// How long a peer may take for the handshake, and for the confirmations of a window.
const PATIENCE: Duration = Duration::from_millis(500);

struct Dialer {
    /// By node.
    addresses: Vec<(SocketAddr, u16)>,
    identity: Identity,
}

struct Line {
    connection: Connection,
    /// Of this node's membership.
    epoch: u64,
    buffer: Vec<u8>,
}

/// A hint must not outlive the memory of deletes: one of a write before a delete would bring the key back where the delete
/// is forgotten. (Hints are dropped up to an eighth of their time late.)
fn options(tombstone_grace: Duration) -> Options {
    let options = Options::new(now_ms);
    Options { age_max: options.age_max.min(tombstone_grace / 2), ..options }
}

/// How long a hint is kept.
pub(super) fn age_max(tombstone_grace: Duration) -> Duration {
    options(tombstone_grace).age_max
}

/// Starts the keeper of this node's hints.
pub(super) fn start(cluster: &Cluster, data: &Path) -> std::io::Result<Arc<Keeper>> {
    let members = cluster.config.nodes.iter().zip(cluster.topology.numbers());
    let addresses = members.map(|(member, &number)| (member.replica, number)).collect();
    let dialer = Dialer { addresses, identity: cluster.identity() };
    let peers = cluster.topology.peers();
    let peers = peers.map(|node| Peer { node: node.at(), url: cluster.topology.name(node).to_owned() }).collect();
    let options = options(cluster.config.tombstone_grace);
    Keeper::start(&data.join("hints"), peers, Arc::new(dialer), options)
}

impl Dial for Dialer {
    fn dial(&self, node: usize) -> Result<Box<dyn Target>, String> {
        let (address, number) = self.addresses[node];
        let skew_max = Duration::from_millis(SKEW_MAX_MS);
        let connection = Connection::dial(address, &self.identity, number, VALUE_MAX_LIMIT, now_ms, skew_max, PATIENCE)
            .map_err(|e| e.to_string())?;
        Ok(Box::new(Line { connection, epoch: self.identity.topology_number, buffer: Vec::new() }))
    }
}

impl Target for Line {
    fn write(&mut self, records: &[Record<Bytes>]) -> Result<Vec<Verdict>, String> {
        self.buffer.clear();
        for (number, record) in records.iter().enumerate() {
            let write = Request::Execute(Operation::Write(record.borrowed()));
            encode_request(&mut self.buffer, number as u64, self.epoch, &write);
        }
        self.connection.send(&self.buffer).map_err(|e| e.to_string())?;
        // Replies come in any order.
        let mut confirmed = vec![None; records.len()];
        for _ in records {
            let received = self.connection.receive(|frame| {
                let asked = usize::try_from(frame.number).ok().filter(|&at| confirmed.get(at) == Some(&None));
                let at = asked.ok_or("it answered a request that is not waiting for an answer")?;
                confirmed[at] = Some(confirmation(records[at].key.hash(), &frame)?);
                Ok::<(), String>(())
            });
            received.map_err(|e| e.to_string())??;
        }
        Ok(confirmed.into_iter().flatten().collect())
    }
}

/// What a peer says to the write of a key.
fn confirmation(asked: KeyHash, frame: &ReplyFrame<'_>) -> Result<Verdict, String> {
    let outcome = match &frame.reply {
        Reply::Outcome(outcome) => outcome,
        Reply::Pong { .. } => return Err("it answered a write as if it were a ping".to_owned()),
    };
    plausibility::check(asked, frame.key_hash, outcome, now_wall())?;
    Ok(Verdict::of(outcome)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_never_outlives_the_memory_of_deletes() {
        let day = Duration::from_secs(24 * 60 * 60);
        assert_eq!(options(day * 10).age_max, Options::new(now_ms).age_max);
        for grace in [Duration::from_secs(1), Duration::from_secs(3600), day / 6] {
            let age_max = options(grace).age_max;
            assert!(age_max + age_max / 8 < grace, "{age_max:?} of {grace:?}");
        }
    }
}

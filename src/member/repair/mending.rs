//! The thread that fetches from another replica what was found damaged here, by whomever: a read,
//! compaction, the scrub, a start.
//!
//! Not even the key of a damaged record may be known, so the replica is asked for the items of the
//! leaf first, and then for the one with the key or the version of the damaged record.
//!
//! Bounds: one record at a time; those of the comparison's connections.

use std::sync::Arc;

use koltso_cluster::exchange::answering::believe;
use koltso_cluster::exchange::{CREDIT, Holdings, leaf_set};
use koltso_cluster::placement::NodeIndex;
use koltso_model::{ExchangeReply, ExchangeRequest, KeyHash};
use koltso_net::replica::Identity;
use koltso_net::replica::blocking::Connection;
use koltso_storage::DamagedRecord;

use super::asking::dial;
use super::holdings::Here;
use super::{Repair, STEP};
use crate::replica::clock::now_wall;

pub(super) struct Mending {
    repair: Arc<Repair>,
    here: Here,
    identity: Identity,
    /// By node.
    connections: Vec<Option<Connection>>,
}

impl Mending {
    pub(super) fn new(repair: Arc<Repair>) -> Self {
        let (here, identity) = (repair.here(), repair.cluster.identity());
        let connections = (0..repair.cluster.topology.places()).map(|_| None).collect();
        Self { repair, here, identity, connections }
    }

    pub(super) fn run(mut self) {
        while !self.repair.stopped() {
            match self.repair.store.next_damaged() {
                Some(damaged) => self.mend(&damaged),
                None => {
                    self.connections.iter_mut().for_each(|connection| *connection = None);
                    self.repair.rest(STEP, &self.repair.stop);
                }
            }
        }
    }

    /// Asks one replica after the other until one has the record, or a newer one of its key.
    fn mend(&mut self, damaged: &DamagedRecord) {
        let topology = self.repair.cluster.topology.clone();
        let replicas = topology.replicas_of(damaged.partition, damaged.from);
        for node in replicas.iter().filter(|&node| node != topology.me()) {
            match self.fetch(node, damaged) {
                Ok(true) => return,
                Ok(false) => {}
                Err(sentence) => {
                    self.connections[node.at()] = None;
                    tracing::debug!("a damaged record cannot be fetched from {}: {sentence}", topology.name(node));
                }
            }
        }
    }

    /// Whether the replica had it, and it is here now.
    fn fetch(&mut self, node: NodeIndex, damaged: &DamagedRecord) -> Result<bool, String> {
        let connection = match &mut self.connections[node.at()] {
            Some(connection) => connection,
            none => none.insert(dial(&self.repair, node, &self.identity)?),
        };
        let mut leaves = leaf_set(false);
        leaves[damaged.leaf / 64] |= 1 << (damaged.leaf % 64);
        let items = ExchangeRequest::Items(vec![(damaged.partition as u16, leaves)]);
        let ExchangeReply::Items(lists) = connection.exchange(&items).map_err(|lost| lost.to_string())? else {
            return Ok(false);
        };
        let hash = damaged.key.as_ref().map(|key| KeyHash::of(key).0 as u32);
        let items = lists.iter().flatten();
        let found = items.into_iter().enumerate().find(|(_, item)| match hash {
            Some(hash) => item.hash == hash && item.version >= damaged.version,
            None => item.version == damaged.version,
        });
        let Some((place, item)) = found else { return Ok(false) };
        let fetch = ExchangeRequest::Fetch { places: vec![place as u32], credit: CREDIT };
        let ExchangeReply::Records(records) = connection.exchange(&fetch).map_err(|lost| lost.to_string())? else {
            return Ok(false);
        };
        let Some(record) = records.into_iter().flatten().next() else { return Ok(false) };
        let believed = believe(&record, (damaged.partition as u16, item.hash), now_wall());
        if let Err(sentence) = believed {
            self.repair.cluster.peers.refused(&format!("{} {sentence}", self.repair.cluster.peers.url(node)));
            return Err(sentence);
        }
        self.repair.pay(record.len() as u64);
        Ok(self.here.apply(&record))
    }
}

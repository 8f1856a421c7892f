//! The end of a run with exchange: all replicas are equal, and nobody has read anything.

use koltso_model::{Record, Version, WallTime};

use super::holdings::{is_absent, place};
use super::world::World;
use bytes::Bytes;

impl World {
    /// Since the last fault all nodes have compared all that they share, and found it equal, so that
    /// whoever is said to need repair needs none any more.
    fn nothing_to_repair(&mut self) {
        for node in 0..self.plan.nodes {
            if !self.is_whole(node) {
                let standing = self.nodes[node].memory.standing();
                return self.fail("a rebuilding node becomes whole", None, format!("{node} is {standing:?}"));
            }
            let agreed = WallTime(self.note_agreed(node)).ms();
            let offset = self.clocks(node).wall.ms() - self.now / 1000;
            let healed = offset + self.plan.faults_until / 1000;
            if agreed < healed {
                let text = format!("{node} has agreed up to {agreed} ms, and all is well since {healed} ms");
                return self.fail("the need for repair ends", None, text);
            }
        }
    }

    fn newest_of(&self, key: usize) -> Option<Record<Bytes>> {
        let records = self.nodes.iter().filter_map(|node| node.store.record(&self.keys[key]));
        records.max_by_key(|record| record.version).cloned()
    }

    /// All replicas of the newest record of each key have it, and nobody has another. What says
    /// "absent" may have been forgotten by some.
    pub fn all_equal(&mut self) {
        if let Some(plan) = self.council.topology.membership().plan() {
            let lacking = |batch: usize| -> Vec<usize> {
                let target = plan.target.iter().map(|node| node.at());
                target.filter(|&node| !self.has_received(node, batch)).collect()
            };
            let of = |batch: usize| (plan.batches[batch], lacking(batch));
            let text = format!("{:?} to {:?}", (0..self.plan.partitions).map(of).collect::<Vec<_>>(), plan.target);
            return self.fail("plans come to their end", None, text);
        }
        self.nothing_to_repair();
        for key in 0..self.plan.keys {
            let Some(newest) = self.newest_of(key) else { continue };
            for node in 0..self.plan.nodes {
                let now_ms = self.clocks(node).wall.ms();
                let store = &self.nodes[node].store;
                let found = store.record(&self.keys[key]);
                let damaged = store.is_damaged(&self.keys[key]);
                let lacks = found.is_none() && self.is_replica(node, place(&newest)) && !is_absent(&newest, now_ms);
                // What does not belong to a node goes later.
                let belongs = |found: &&Record<Bytes>| {
                    self.is_replica(node, place(found)) || self.is_replica(node, place(&newest))
                };
                let older = found
                    .filter(belongs)
                    .is_some_and(|found| found.version != newest.version && !is_absent(found, now_ms));
                if lacks || older || damaged {
                    let found = found.map(|found| (found.version, found.flags));
                    let text = format!("{node} has {found:?}, damaged: {damaged}, the newest is {newest:?}");
                    return self.fail("replicas converge", Some(key), text);
                }
            }
        }
    }

    /// What says "absent" is gone, and what belongs to other nodes.
    pub fn all_forgotten(&mut self) {
        self.all_equal();
        for node in 0..self.plan.nodes {
            let now_ms = self.clocks(node).wall.ms();
            let rest = |record: &&Record<Bytes>| {
                // What ran out lately has its time yet.
                let lately = record.expires_at_ms != 0 && record.expires_at_ms + 200_000 > now_ms;
                !lately && is_absent(record, now_ms) || !self.is_replica(node, place(record))
            };
            let rest = self.nodes[node].store.records().find(rest).cloned();
            if let Some(record) = rest {
                let (key, place) = (self.key_index[record.key.shared()], place(&record));
                let text = format!("{node} keeps {record:?} of {place:?}, agreed up to {:?}", self.bound(node, place));
                return self.fail("deletes are forgotten", Some(key), text);
            }
        }
        self.nothing_is_lost();
    }

    /// What clients were promised is there, as the replicas have it: a read of all of them would
    /// return nothing older.
    fn nothing_is_lost(&mut self) {
        for key in 0..self.plan.keys {
            let found = self.newest_of(key).map_or(Version::default(), |record| record.version);
            let now_ms = self.now_ms();
            if let Err(failure) = self.history.ends_with(key, found, now_ms) {
                return self.fail(failure.check, failure.key, failure.text);
            }
        }
    }
}

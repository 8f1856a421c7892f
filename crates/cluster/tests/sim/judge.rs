//! The end of a run: what must be true of all replicas when everything is well again.

use koltso_model::{Version, Want};

use super::check::{Op, What};
use super::world::{World, quorum};

impl World {
    /// Reads every key from all of its replicas: what no hint brings is found so.
    pub fn read_all(&mut self) -> Vec<usize> {
        let mut tokens = Vec::new();
        for key in 0..self.plan.keys {
            let widest = self.history.widest[key];
            if widest > 0 {
                let node = self.random.below(self.plan.nodes);
                // Not all at once, or there would be no room for them.
                let at = self.now + key as u64 * 200;
                let what = What::Get(Want::Value);
                let token = self.invoke_at(at, None, node, key, what, quorum(widest, widest));
                self.history.ops[token].excused = true;
                tokens.push(token);
            }
        }
        tokens
    }

    fn finals_are_done(&self) -> bool {
        self.finals.iter().any(|&token| !self.history.ops[token].open())
    }

    pub fn judge(&mut self) {
        for token in 0..self.history.ops.len() {
            if self.history.ops[token].open() {
                let key = self.history.ops[token].key;
                return self.fail("answered once", Some(key), format!("{token} never was"));
            }
        }
        for node in 0..self.plan.nodes {
            for name in self.nodes[node].store.keys() {
                let key = self.key_index[&name];
                let widest = usize::from(self.history.widest[key]);
                if !self.plan.exchanges && !self.ranked[key][..widest].contains(&node) {
                    return self.fail("no replica beyond from", Some(key), format!("{node} holds it"));
                }
                let record = self.nodes[node].store.record(&name).cloned();
                // What a node that doubted itself had, and nobody else, says "absent" as of nobody.
                if let Some(record) = record.filter(|record| record.version.node != u16::MAX) {
                    let known = self.history.writer(key, &record).map(|_| ());
                    self.must(known);
                }
            }
            let waiting: usize = self.nodes[node].hints.iter().map(|hints| hints.waiting()).sum();
            if waiting > 0 {
                return self.fail("what was missed is sent", None, format!("{node} still keeps {waiting} hints"));
            }
            let in_flight = self.nodes[node].member().coordinator().in_flight();
            if in_flight > 0 {
                return self.fail("bounds", None, format!("{node} has {in_flight} operations in flight at the end"));
            }
        }
        if self.plan.exchanges {
            return self.all_equal();
        }
        self.converged();
    }

    /// All replicas of a key have one version. A replica that its peers know to lack something,
    /// beyond what hints hold, may wait for the repair that they ask for.
    pub fn converged(&mut self) {
        for key in 0..self.plan.keys {
            // What was confirmed by nobody has no hints, though a replica may have it.
            let unsure = |op: &Op| op.key == key && op.unsure;
            if !self.finals_are_done() && self.history.ops.iter().any(unsure) {
                continue;
            }
            let replicas = &self.ranked[key][..usize::from(self.history.widest[key])];
            let versions: Vec<_> =
                replicas.iter().map(|&node| self.nodes[node].store.version(&self.keys[key])).collect();
            let newest = versions.iter().copied().max().flatten();
            let needs_repair = |replica: usize| self.nodes.iter().any(|node| node.hints[replica].needs_repair);
            // A node keeps no hint for itself: what its own disk refused comes with a read, or with
            // a repair.
            let refused_it =
                |node| newest.is_some_and(|newest: Version| self.history.is_coordinator(key, newest, node));
            let excused = |node| !self.finals_are_done() && (needs_repair(node) || refused_it(node));
            let lacks = replicas.iter().zip(&versions).any(|(&node, &version)| version != newest && !excused(node));
            let damaged = replicas.iter().any(|&node| self.nodes[node].store.is_damaged(&self.keys[key]));
            if lacks || damaged {
                let text = format!("at {replicas:?}: {versions:?}, damaged: {damaged}");
                return self.fail("replicas converge", Some(key), text);
            }
        }
    }
}

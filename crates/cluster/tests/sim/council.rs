//! Who holds data changes while the cluster serves: what the members agree on, as one value that each learns
//! at its own time, and whoever begins and ends the stages of a plan.
//!
//! The consensus itself is not simulated: there is one sequence of memberships. Stages go on as
//! [`koltso_cluster::plan`] says they may, often while some nodes do not know of the last one.

use std::sync::Arc;

use koltso_cluster::placement::{NodeIndex, NodeSet, Topology};
use koltso_cluster::plan::{BATCHES, Stage};

use super::plan::Mutation;
use super::world::{Event, MS, SECOND, Work, World};

/// After the faults: plans that are under way have so long to end.
const PLANS_END_WITHIN: u64 = 50 * SECOND;

pub struct Council {
    /// As its first node sees it.
    pub topology: Topology,
    /// When the last change was made, and when there may be a new plan.
    changed: u64,
    rests_until: u64,
}

impl Council {
    pub fn new(topology: Topology) -> Self {
        Self { topology, changed: 0, rests_until: 0 }
    }
}

impl World {
    /// The council looks after its plan.
    pub fn council(&mut self) {
        if self.now < self.plan.faults_until + PLANS_END_WITHIN {
            let at = self.now + self.random.between(100 * MS, 1_500 * MS);
            self.at(at, Event::Council);
        }
        // Mostly it waits until all that live know of the last change, and now and then not even a moment.
        let epoch = self.council.topology.epoch();
        let knows = |node: &super::node::Node| !node.up || node.paused || node.topology.epoch() == epoch;
        let patience = self.random.below(12 * SECOND);
        if !self.nodes.iter().all(knows) && self.now < self.council.changed + patience {
            return;
        }
        let membership = self.council.topology.membership().clone();
        let changed = match membership.plan() {
            None => self.new_plan(),
            Some(_) if self.now < self.plan.faults_until && self.random.one_in(25_u64) => membership.cancelled(),
            Some(plan) => {
                let mut batches = Vec::new();
                let mut starting = self.random.between(1, BATCHES as u64 / 2);
                for batch in 0..BATCHES {
                    // There are no others.
                    let is_empty = batch >= self.plan.partitions;
                    let next = match plan.batches[batch].stage {
                        Stage::Current if is_empty || starting > 0 => Stage::Copying,
                        Stage::Copying if self.is_received(batch) => Stage::Joint,
                        Stage::Joint if self.is_received(batch) => Stage::Moved,
                        _ => continue,
                    };
                    starting -= u64::from(next == Stage::Copying && !is_empty);
                    batches.push((batch, next));
                }
                if batches.is_empty() {
                    return;
                }
                membership.advanced(&batches)
            }
        };
        let changed = Arc::new(changed.expect("the council knows what it may do"));
        if changed.epoch() == epoch {
            return;
        }
        let stages = changed.plan().map(|plan| plan.batches[..self.plan.partitions].to_vec());
        self.say(None, || format!("epoch {}: {:?} {stages:?}", changed.epoch(), changed.holders()));
        if changed.plan().is_none() {
            self.stats.plans += 1;
            self.council.rests_until = self.now + self.random.below(20 * SECOND);
        }
        self.council.changed = self.now;
        self.council.topology = self.council.topology.followed_by(changed);
        self.allow();
        for node in 0..self.plan.nodes {
            let delay = if self.random.one_in(10_u64) { 5 * SECOND } else { 20 * MS };
            let at = self.now + self.random.below(delay);
            self.on(node, at, Work::Adopt);
        }
    }

    /// Other nodes than now are to hold data, or nothing happens.
    fn new_plan(
        &mut self,
    ) -> Result<koltso_cluster::membership::Membership, koltso_cluster::membership::MembershipError> {
        let membership = self.council.topology.membership().clone();
        let nodes = self.plan.nodes;
        let chosen =
            |world: &mut Self| (0..nodes as u8).filter(|_| world.random.one_in(2_u64)).map(NodeIndex).collect();
        let target: NodeSet = chosen(self);
        let rests = self.now < self.council.rests_until || self.now >= self.plan.faults_until;
        if rests || target.len() < usize::from(self.plan.from_max) || target == membership.holders() {
            return Ok((*membership).clone());
        }
        membership.planned(target)
    }

    /// Whether those to which a batch moves have what was confirmed to the others.
    fn is_received(&self, batch: usize) -> bool {
        if self.plan.mutation == Mutation::MovesTooSoon {
            return true;
        }
        let Some(plan) = self.council.topology.membership().plan() else { return false };
        let began = plan.batches[batch].began;
        plan.target.iter().all(|target| {
            let node = &self.nodes[target.at()];
            node.up && node.topology.epoch() >= began && self.has_received(target.at(), batch)
        })
    }

    /// A node learns what the others agreed on.
    pub fn adopt(&mut self, node: usize) {
        if self.nodes[node].topology.epoch() >= self.council.topology.epoch() {
            return;
        }
        let topology = Arc::new(self.council.topology.as_seen_by(NodeIndex(node as u8)));
        self.say(None, || format!("{node} knows of epoch {}", topology.epoch()));
        self.nodes[node].topology = topology.clone();
        self.with_member(node, |member, now, host| member.adopt(now, topology.clone(), host));
        self.exchange_adopts(node, &topology);
    }

    /// By now so many nodes may have been asked about keys.
    pub fn allow(&mut self) {
        for (key, name) in self.keys.iter().enumerate() {
            let partition = koltso_model::KeyHash::of(name).partition();
            for from in 1..=self.plan.from_max {
                let allowed = &mut self.allowed[key][usize::from(from)];
                *allowed = allowed.and(self.council.topology.replicas_of(partition, from));
            }
        }
    }

    /// Whether a node is a replica of a key, or was one in this run.
    pub fn may_hold(&self, node: usize, key: usize, from: usize) -> bool {
        self.allowed[key][from].contains(NodeIndex(node as u8))
    }
}

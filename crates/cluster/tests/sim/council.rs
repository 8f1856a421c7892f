//! Who holds data changes while the cluster serves: what the members agree on, as one value that each learns
//! at its own time, and the mover that ships, which says when the stages of a plan begin.
//!
//! The consensus itself is not simulated: there is one sequence of memberships. Members tell the mover
//! what they know now and then; a telling may be lost, come seconds late, and after its member has
//! crashed. In some runs no change waits for members that are behind, and some members learn of a change
//! only from a peer that refuses them. Plans are paused and cancelled, and a leader that is new knows of
//! no tellings.

use std::sync::Arc;

use koltso_cluster::membership::{Membership, MembershipError};
use koltso_cluster::mover::{Mover, MoverSettings, Telling};
use koltso_cluster::placement::{NodeIndex, NodeSet, Topology};
use koltso_cluster::plan::Stage;

use super::plan::{Mutation, Plan};
use super::world::{Event, MS, SECOND, Work, World};

/// After the faults: plans that are under way have so long to end.
const PLANS_END_WITHIN: u64 = 50 * SECOND;
/// A member tells the mover something about that often, at least.
const TELL_EVERY: u64 = 900 * MS;

pub struct Council {
    /// As its first node sees it.
    pub topology: Topology,
    mover: Mover,
    settings: MoverSettings,
    paused: bool,
    /// When there may be a new plan.
    rests_until: u64,
}

impl Council {
    pub fn new(topology: Topology, plan: &Plan) -> Self {
        let settings = plan.mover;
        let mover = Mover::of_partitions(settings, plan.partitions);
        Self { topology, mover, settings, paused: false, rests_until: 0 }
    }
}

impl World {
    /// The council looks after its plan.
    pub fn council(&mut self) {
        if self.now < self.plan.faults_until + PLANS_END_WITHIN {
            let at = self.now + self.random.between(20 * MS, 800 * MS);
            self.at(at, Event::Council);
        }
        let well = self.now >= self.plan.faults_until;
        if self.random.one_in(60_u64) {
            self.say(None, || "another leads the council".to_owned());
            self.council.mover = Mover::of_partitions(self.council.settings, self.plan.partitions);
        }
        let toggles = if self.council.paused { 10_u64 } else { 60 };
        self.council.paused = !well && self.council.paused != self.random.one_in(toggles);
        let membership = self.council.topology.membership().clone();
        let changed = match membership.plan() {
            None => self.new_plan(),
            Some(_) if !well && self.random.one_in(40_u64) => membership.cancelled().map(Some),
            Some(plan) => {
                let joint: Vec<_> = plan.at(Stage::Joint).map(|batch| (batch, Stage::Moved)).collect();
                let change = match self.plan.mutation {
                    Mutation::SkipsJoint if !joint.is_empty() => Some(joint),
                    _ => self.council.mover.next(self.now, &membership, self.council.paused),
                };
                change.map(|change| membership.advanced(&change)).transpose()
            }
        };
        let Some(mut changed) = changed.expect("the council knows what it may do") else { return };
        if self.plan.mutation == Mutation::ForgetsFence {
            let (nodes, former) = (changed.nodes().to_vec(), changed.former().to_vec());
            let data = (changed.holders(), changed.plan().cloned());
            changed = Membership::restored((changed.epoch(), 0), (nodes, former), data).expect("valid");
        }
        let changed = Arc::new(changed);
        let stages = changed.plan().map(|plan| plan.batches[..self.plan.partitions].to_vec());
        self.say(None, || format!("epoch {}: {:?} {stages:?}", changed.epoch(), changed.holders()));
        self.stats.changes += 1;
        if changed.plan().is_none() {
            self.stats.plans += 1;
            self.council.rests_until = self.now + self.random.below(20 * SECOND);
        }
        self.council.topology = self.council.topology.followed_by(changed);
        self.allow();
        for node in 0..self.plan.nodes {
            let delay = match self.random.below(30_u64) {
                // Cut off from the council, and not from its peers.
                0 if !well => 60 * SECOND,
                0..3 if !well => 5 * SECOND,
                _ => 20 * MS,
            };
            let at = self.now + self.random.below(delay);
            self.on(node, at, Work::Adopt);
        }
    }

    /// A node tells the mover what it knows, and will again.
    pub fn tell(&mut self, node: usize) {
        let at = self.now + self.random.between(TELL_EVERY / 10, TELL_EVERY);
        self.on(node, at, Work::Tell);
        if !self.healed && self.random.one_in(5_u64) {
            return;
        }
        let received = (0..self.plan.partitions).filter(|&batch| self.has_received(node, batch));
        let received = match self.plan.mutation {
            Mutation::MovesTooSoon => u64::MAX,
            _ => received.fold(0, |all, batch| all | 1 << batch),
        };
        let telling = Telling { epoch: self.nodes[node].topology.epoch(), received };
        let late = if !self.healed && self.random.one_in(20_u64) { 6 * SECOND } else { 10 * MS };
        let at = self.now + self.random.below(late);
        self.at(at, Event::Told(node, telling));
    }

    /// What a node has told comes to the mover, wherever the node is by now.
    pub fn council_hears(&mut self, node: usize, telling: Telling) {
        let number = self.council.topology.number(NodeIndex(node as u8));
        self.council.mover.told(self.now, number, telling);
    }

    /// Other nodes than now are to hold data, or nothing happens.
    fn new_plan(&mut self) -> Result<Option<Membership>, MembershipError> {
        let membership = self.council.topology.membership().clone();
        let nodes = self.plan.nodes;
        let chosen =
            |world: &mut Self| (0..nodes as u8).filter(|_| world.random.one_in(2_u64)).map(NodeIndex).collect();
        let target: NodeSet = chosen(self);
        let rests = self.now < self.council.rests_until || self.now >= self.plan.faults_until;
        if rests || target.len() < usize::from(self.plan.from_max) || target == membership.holders() {
            return Ok(None);
        }
        membership.planned(target).map(Some)
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

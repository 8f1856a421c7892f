//! When the next stage of a plan's batches begins: what the leader of the members' agreement asks, and the
//! only one who asks it.
//!
//! Each member tells what it knows ([`Telling`]); [`Mover::next`] says which batches go on, and whoever asks
//! has the others agree on that ([`Membership::advanced`]). That a change is safe is the matter of
//! [`crate::plan`]; the rules here are
//!
//! 1. *Copying* becomes *Joint*, and *Joint* becomes *Moved*, when each member that becomes a replica of any
//!    partition of the batch, for any number of replicas, has told that it has received the batch, by an
//!    epoch that is no earlier than that with which the stage began. What counts is what it told last:
//!    after a restart it knows less again. Nobody else needs to say anything, dead or alive.
//! 2. Before any change the mover waits until all members that live have told the present epoch, so that no
//!    request comes from further behind than one change. That is a courtesy, and has an end:
//!    [`MoverSettings::patience_micros`] after the epoch was first seen.
//! 3. Changes are few. What is ready waits for others of its stage, at most for [`GATHER_MICROS`]; and
//!    what begins does so with what ends. Batches in which nobody becomes a replica wait for nobody and
//!    make no change of their own while another batch is under way: their stages make no difference.
//! 4. While paused, no batch begins to be filled, and those that are being filled stay where they are,
//!    where cancelling costs nothing. *Joint* ends, as that is short, and reads ask twice as many meanwhile.
//!
//! Absent: I/O, a clock (time comes in), chance; and memory of the plan. A new leader begins with an empty
//! mover, and asks again what it was not told.
//!
//! A change goes by the epoch of the membership that was asked about: where the members have agreed on
//! another one since, it must be dropped.
//!
//! Owner: whoever leads. Bounds: [`TOLD_MAX`] members; the two rankings of a plan. Tested below by
//! properties, in `tests/simulation.rs` with members that fail, and in `tests/scale.rs` with many.

use std::collections::BTreeMap;
use std::sync::Arc;

use koltso_model::{NODES_MAX, PARTITIONS};

use crate::membership::Membership;
use crate::placement::{NodeIndex, NodeSet, Rows};
use crate::plan::{BATCHES, Batch, Plan, Stage, batch_of};

/// What is ready waits so long, in µs, for others of the same stage: a change costs each member a new
/// topology, and each request in flight a look at it.
pub const GATHER_MICROS: u64 = 300_000;
/// The tellings of so many are kept: all members, and as many that have left or are not known yet.
pub const TOLD_MAX: usize = 2 * NODES_MAX;

const _: () = assert!(BATCHES == u64::BITS as usize, "a telling has a bit for each batch");

/// What a member says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Telling {
    /// The epoch of the membership that all its cores go by, and by which it compares replicas.
    pub epoch: u64,
    /// A bit for each batch: it has what it is on the way to in this one, by that same epoch; see
    /// [`Board::has_received`](crate::exchange::board::Board::has_received).
    pub received: u64,
}

/// How a plan is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoverSettings {
    /// So many batches are filled at a time, one at least.
    pub at_once: usize,
    /// A change waits at most so long, in µs, for members that live and do not know the last one.
    pub patience_micros: u64,
    /// A member that has said nothing for so long, in µs, does not live.
    pub gone_micros: u64,
}

/// Why a plan waits for a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WaitReason {
    /// It is to receive data, and has said nothing for too long.
    Silent,
    /// It does not know the present epoch yet.
    Behind,
    /// It is receiving data.
    Receiving,
}

/// A member that a plan waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitedFor {
    /// Its number.
    pub number: u16,
    /// What it has not done.
    pub why: WaitReason,
    /// Batches under way that cannot go on without it.
    pub batches: u32,
}

/// How far a plan is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanProgress {
    /// Batches by [`Stage`], in its order.
    pub stages: [u32; 4],
    /// Batches that members have received, each counted for every one of these.
    pub filled: u32,
    /// Of so many that they have to.
    pub to_fill: u32,
    /// Who is waited for.
    pub waited_for: Vec<WaitedFor>,
}

impl PlanProgress {
    /// The share of what has to be copied that is, from 0 to 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        match self.to_fill {
            0 => f64::from(self.stages[Stage::Moved as usize]) / BATCHES as f64,
            all => f64::from(self.filled) / f64::from(all),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    /// When it was heard last, or known to be a member first, in µs.
    at: u64,
    telling: Telling,
}

/// The machine; see the module.
#[derive(Debug)]
pub struct Mover {
    settings: MoverSettings,
    partitions: usize,
    /// By number.
    heard: BTreeMap<u16, Heard>,
    /// The last epoch that it was asked about, and when it was so first.
    epoch: u64,
    since: u64,
    /// Since when a batch could go on, within this epoch.
    ready_since: Option<u64>,
    /// Of the plan: the present ranking and that of the target.
    rows: Vec<Arc<Rows>>,
    /// Of the plan: who becomes a replica of what it is none of, by batch.
    gaining: [NodeSet; BATCHES],
}

/// Who becomes a replica of a partition for some number of replicas for which it is none: whoever ranks
/// higher than before.
fn gaining(before: &[NodeIndex], after: &[NodeIndex]) -> NodeSet {
    let mut ranks = [usize::MAX; NODES_MAX];
    for (rank, node) in before.iter().enumerate() {
        ranks[node.at()] = rank;
    }
    after.iter().enumerate().filter(|&(rank, node)| rank < ranks[node.at()]).map(|(_, &node)| node).collect()
}

fn number_at(membership: &Membership, place: NodeIndex) -> Option<u16> {
    membership.nodes().iter().find(|node| node.place == place).map(|node| node.number)
}

/// What can be done about a plan at the moment.
#[derive(Default)]
struct Steps {
    /// Batches that have what the next stage needs.
    ready: Vec<(usize, Stage)>,
    /// Batches in which nothing moves.
    idle: Vec<(usize, Stage)>,
    /// Batches that may begin to be filled.
    begin: Vec<(usize, Stage)>,
    /// Batches that begin although none ends.
    is_free: bool,
    /// Some that are ready have others of their stage that are not.
    is_awaited: bool,
    /// Batches that are being compared and not ready.
    comparing: usize,
}

impl Mover {
    /// One that was told nothing yet.
    #[must_use]
    pub fn new(settings: MoverSettings) -> Self {
        Self::of_partitions(settings, PARTITIONS)
    }

    /// For a simulation that has keys in the first so many partitions only.
    #[must_use]
    pub fn of_partitions(settings: MoverSettings, partitions: usize) -> Self {
        Self {
            settings,
            partitions,
            heard: BTreeMap::new(),
            epoch: 0,
            since: 0,
            ready_since: None,
            rows: Vec::new(),
            gaining: [NodeSet::default(); BATCHES],
        }
    }

    /// A member has told this, at a time in µs.
    pub fn told(&mut self, now: u64, number: u16, telling: Telling) {
        if self.heard.len() < TOLD_MAX || self.heard.contains_key(&number) {
            self.heard.insert(number, Heard { at: now, telling });
        }
    }

    /// The batches that go on now, and to which stage; `None` if none does yet. `now` in µs.
    pub fn next(&mut self, now: u64, membership: &Membership, paused: bool) -> Option<Vec<(usize, Stage)>> {
        self.look(now, membership);
        let plan = membership.plan()?;
        if self.behind(now, membership).next().is_some() {
            return None;
        }
        let steps = self.steps(membership, plan, paused);
        if steps.ready.is_empty() {
            self.ready_since = None;
        } else {
            let since = *self.ready_since.get_or_insert(now);
            let waits = steps.is_awaited && now < since.saturating_add(GATHER_MICROS);
            if waits && !steps.is_free {
                return None;
            }
        }
        // Those in which nothing moves go alone only if there is nothing left that they could go with.
        if steps.ready.is_empty() && steps.begin.is_empty() && steps.comparing > 0 {
            return None;
        }
        let mut change = steps.ready;
        change.extend(steps.begin);
        change.extend(steps.idle);
        change.sort_unstable_by_key(|&(batch, _)| batch);
        (!change.is_empty()).then_some(change)
    }

    /// How far the plan of a membership is; `now` in µs.
    pub fn progress(&mut self, now: u64, membership: &Membership) -> PlanProgress {
        self.look(now, membership);
        let mut progress = PlanProgress::default();
        let Some(plan) = membership.plan() else { return progress };
        let mut lacking = [0_u32; NODES_MAX];
        for (number, batch) in plan.batches.iter().enumerate() {
            progress.stages[batch.stage as usize] += 1;
            for node in self.gaining[number].iter() {
                let has = number_at(membership, node).is_some_and(|of| self.has_received(of, number, batch.began));
                let was_filled = matches!(batch.stage, Stage::Joint | Stage::Moved);
                progress.to_fill += 1;
                progress.filled += u32::from(was_filled || batch.stage == Stage::Copying && has);
                let is_needed = matches!(batch.stage, Stage::Copying | Stage::Joint) && !has;
                lacking[node.at()] += u32::from(is_needed);
            }
        }
        let behind: Vec<u16> = self.behind(now, membership).collect();
        for node in membership.nodes() {
            let (number, batches) = (node.number, lacking[node.place.at()]);
            let knows = self.heard.get(&number).is_some_and(|heard| heard.telling.epoch >= membership.epoch());
            let why = match () {
                () if batches == 0 && !behind.contains(&number) => continue,
                () if !self.lives(now, number) => WaitReason::Silent,
                () if !knows => WaitReason::Behind,
                () => WaitReason::Receiving,
            };
            progress.waited_for.push(WaitedFor { number, why, batches });
        }
        progress
    }

    /// Notes what it is asked about.
    fn look(&mut self, now: u64, membership: &Membership) {
        if self.epoch == membership.epoch() {
            return;
        }
        (self.epoch, self.since, self.ready_since) = (membership.epoch(), now, None);
        let is_member = |number: u16| membership.nodes().iter().any(|node| node.number == number);
        self.heard.retain(|&number, _| is_member(number));
        for node in membership.nodes() {
            self.heard.entry(node.number).or_insert(Heard { at: now, telling: Telling::default() });
        }
        self.gaining = [NodeSet::default(); BATCHES];
        let Some(plan) = membership.plan() else {
            self.rows.clear();
            return;
        };
        let rows = |of| Rows::among(membership, of, self.partitions, &self.rows);
        let (before, after) = (rows(membership.holders()), rows(plan.target));
        for partition in 0..self.partitions {
            let all = &mut self.gaining[batch_of(partition)];
            *all = all.and(gaining(before.of(partition), after.of(partition)));
        }
        self.rows = vec![before, after];
    }

    fn lives(&self, now: u64, number: u16) -> bool {
        let heard = self.heard.get(&number);
        heard.is_some_and(|heard| now.saturating_sub(heard.at) < self.settings.gone_micros)
    }

    /// Whom a change waits for out of courtesy.
    fn behind<'a>(&'a self, now: u64, membership: &'a Membership) -> impl Iterator<Item = u16> + 'a {
        let is_patient = now.saturating_sub(self.since) < self.settings.patience_micros;
        let numbers = membership.nodes().iter().map(|node| node.number).filter(move |_| is_patient);
        numbers.filter(move |&number| {
            let knows = self.heard.get(&number).is_some_and(|heard| heard.telling.epoch >= membership.epoch());
            !knows && self.lives(now, number)
        })
    }

    /// Whether a member has told of a batch, whose stage began with an epoch, that it has received it.
    fn has_received(&self, number: u16, batch: usize, began: u64) -> bool {
        let telling = self.heard.get(&number).map(|heard| heard.telling);
        telling.is_some_and(|told| told.epoch >= began && told.received & (1 << batch) != 0)
    }

    fn steps(&self, membership: &Membership, plan: &Plan, paused: bool) -> Steps {
        let mut steps = Steps::default();
        // By stage: batches that are ready, and others that are not.
        let (mut ready, mut comparing) = ([0_usize; 4], [0_usize; 4]);
        for (number, &Batch { stage, began }) in plan.batches.iter().enumerate() {
            let next = match stage {
                Stage::Copying if !paused => Stage::Joint,
                Stage::Joint => Stage::Moved,
                Stage::Current if !paused && self.gaining[number].is_empty() => Stage::Copying,
                _ => continue,
            };
            if self.gaining[number].is_empty() {
                steps.idle.push((number, next));
                continue;
            }
            let has = |node| number_at(membership, node).is_some_and(|of| self.has_received(of, number, began));
            if self.gaining[number].iter().all(has) {
                ready[stage as usize] += 1;
                steps.ready.push((number, next));
            } else {
                comparing[stage as usize] += 1;
            }
        }
        steps.is_awaited = (0..4).any(|stage| ready[stage] > 0 && comparing[stage] > 0);
        steps.comparing = comparing.iter().sum();
        if !paused {
            let (at_once, copying) = (self.settings.at_once.max(1), Stage::Copying as usize);
            let room = at_once.saturating_sub(comparing[copying]);
            let waiting = plan.at(Stage::Current).filter(|&batch| !self.gaining[batch].is_empty());
            steps.begin = waiting.take(room).map(|batch| (batch, Stage::Copying)).collect();
            steps.is_free = !steps.begin.is_empty() && comparing[copying] + ready[copying] < at_once;
        }
        steps
    }
}

/// What a plan costs, in copies of partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanCost {
    /// For so many replicas.
    pub from: u8,
    /// Copies that each member has to be given, by its place; of all that have to be given any.
    pub copies: Vec<(NodeIndex, u32)>,
    /// The fewest with which any placement can give each member as many as it has in the end.
    pub least: u32,
}

impl PlanCost {
    /// All copies.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.copies.iter().map(|&(_, copies)| copies).sum()
    }
}

/// What it costs that the data comes to be held by others than by the present holders of a membership, for
/// keys with `from` replicas. Places of `target` that are nobody's count for nothing.
#[must_use]
pub fn cost(before: &Membership, target: NodeSet, from: u8) -> PlanCost {
    let old = Rows::among(before, before.holders(), PARTITIONS, &[]);
    let new = Rows::among(before, target, PARTITIONS, std::slice::from_ref(&old));
    let (mut had, mut has, mut given) = ([0_u32; NODES_MAX], [0_u32; NODES_MAX], [0_u32; NODES_MAX]);
    let mut lost = 0;
    for partition in 0..PARTITIONS {
        let [is, will] = [&old, &new].map(|rows| rows.first(partition, from).iter().copied().collect::<NodeSet>());
        is.iter().for_each(|node| had[node.at()] += 1);
        will.iter().for_each(|node| has[node.at()] += 1);
        will.without(is).iter().for_each(|node| given[node.at()] += 1);
        let stay = is.len() - is.without(target).len();
        lost += will.len().saturating_sub(stay) as u32;
    }
    let more: u32 = had.iter().zip(&has).map(|(had, has)| has.saturating_sub(*had)).sum();
    let copies = given.iter().zip((0..).map(NodeIndex)).filter(|&(&copies, _)| copies > 0);
    PlanCost { from, copies: copies.map(|(&copies, node)| (node, copies)).collect(), least: more.max(lost) }
}

#[cfg(test)]
mod tests;

//! What is counted of a run.

use super::world::MS;

#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub events: u64,
    pub answered: u64,
    pub not_enough: u64,
    pub lost_with_node: u64,
    pub refused_full: u64,
    pub renewed: u64,
    pub waited_repairs: u64,
    /// Requests that an outbox had no room for.
    pub outbox_full: u64,
    /// Times that a clock came to its bound.
    pub bounds: u64,
    pub hints: u64,
    pub hints_dropped: u64,
    pub replayed: u64,
    pub hedges: u64,
    pub repairs: u64,
    pub opened: u64,
    pub faults: u64,
    /// Nodes that became whole, and records that were forgotten.
    pub rebuilt: u64,
    pub forgotten: u64,
    /// Plans that came to their end, and requests of nodes that knew of an earlier membership.
    pub plans: u64,
    pub behind: u64,
    /// Changes of the membership.
    pub changes: u64,
    /// Writes that were seen twice, with another between.
    pub twice: u64,
    /// Of operations at nodes that were well, in µs; of one run.
    pub latencies: Vec<u64>,
    /// Of all runs: how many these were, and how many took more than 300 ms.
    pub timed: usize,
    pub slow: usize,
}

impl Stats {
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.answered += other.answered;
        self.not_enough += other.not_enough;
        self.lost_with_node += other.lost_with_node;
        self.refused_full += other.refused_full;
        self.renewed += other.renewed;
        self.waited_repairs += other.waited_repairs;
        self.outbox_full += other.outbox_full;
        self.bounds += other.bounds;
        self.hints += other.hints;
        self.hints_dropped += other.hints_dropped;
        self.replayed += other.replayed;
        self.hedges += other.hedges;
        self.repairs += other.repairs;
        self.opened += other.opened;
        self.faults += other.faults;
        self.rebuilt += other.rebuilt;
        self.forgotten += other.forgotten;
        self.plans += other.plans;
        self.behind += other.behind;
        self.changes += other.changes;
        self.twice += other.twice;
        self.timed += other.latencies.len();
        self.slow += other.latencies.iter().filter(|&&took| took > 300 * MS).count();
    }

    pub fn summary(&self) -> String {
        format!("{:?}", Self { latencies: Vec::new(), ..self.clone() })
    }
}

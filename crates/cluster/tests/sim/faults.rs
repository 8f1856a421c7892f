//! Faults: what begins, what it breaks, and how it ends.

use koltso_cluster::wall::WallWatch;

use super::holdings::place;
use super::network::unless_answered;
use super::plan::{Kind, Mode};
use super::world::{Event, MS, SECOND, Work, World};

/// After a node's fault: time until it counts as well. A dial that began before the end of a fault
/// fails half a second later.
const WELL_AFTER: u64 = 700 * MS;

#[derive(Clone, Debug)]
pub struct Fault {
    kind: Kind,
    node: usize,
    other: usize,
    running: bool,
}

impl World {
    fn notice(&mut self) -> u64 {
        match self.random.below(4) {
            0 => self.random.between(500 * MS, 3 * SECOND),
            1 => self.random.below(50 * MS),
            _ => 0,
        }
    }

    pub fn fault(&mut self) {
        let alone = self.plan.mode == Mode::Available;
        let pause = if alone { WELL_AFTER } else { 0 };
        let mut next = self.now + pause + self.random.around(self.plan.fault_every);
        let kind = *self.random.choose(&self.plan.faults);
        let now = self.now;
        let well = |&node: &usize| !alone || self.nodes[node].ailing == 0 && self.nodes[node].well_at <= now;
        let candidates: Vec<usize> = (0..self.plan.nodes).filter(well).collect();
        let node = *self.random.choose(&candidates);
        let other = (node + 1 + self.random.below(self.plan.nodes - 1)) % self.plan.nodes;
        let lasts = match self.random.below(3) {
            0 => self.random.between(10 * MS, 100 * MS),
            1 => self.random.between(50 * MS, 600 * MS),
            _ => self.random.between(200 * MS, 3 * SECOND),
        };
        let node = if self.plan.mode == Mode::Steady { 2 } else { node };
        let lasts = match self.random_of_exchanges(3).filter(|_| kind != Kind::Jump) {
            Some(1) => self.random.between(SECOND, 20 * SECOND),
            Some(2) => self.random.between(20 * SECOND, 120 * SECOND),
            _ => lasts,
        };
        let lasts = if self.plan.mode == Mode::Steady { 3 * SECOND } else { lasts };
        if alone {
            next += lasts;
        }
        if self.plan.mode != Mode::Steady && next < self.plan.faults_until {
            self.at(next, Event::Fault);
        }
        self.begin_fault(kind, node, other, lasts);
    }

    /// Long runs have long faults, too.
    fn random_of_exchanges(&mut self, kinds: u64) -> Option<u64> {
        self.plan.exchanges.then(|| self.random.below(kinds))
    }

    fn begin_fault(&mut self, kind: Kind, node: usize, other: usize, lasts: u64) {
        self.stats.faults += 1;
        self.note(7 ^ (kind as u64) << 8 ^ (node as u64) << 16);
        self.say(None, || format!("FAULT {kind:?} of {node} (and {other}) for {lasts}"));
        let running = match kind {
            Kind::Pause if self.nodes[node].up && !self.nodes[node].paused => {
                self.nodes[node].paused = true;
                true
            }
            Kind::Crash | Kind::Vanish if self.nodes[node].up => {
                self.crash(node, kind == Kind::Crash, lasts);
                true
            }
            Kind::Empty | Kind::PutBack if self.nodes[node].up && self.all_whole() => {
                let is_back = kind == Kind::PutBack && self.has_copy(node);
                let resets = self.random.one_in(2);
                self.crash(node, resets, lasts);
                if is_back {
                    self.put_back(node)
                } else {
                    self.empty_folder(node)
                }
                true
            }
            Kind::LoseHints => {
                self.lose_hints(node);
                false
            }
            Kind::CutNode => {
                for peer in self.peers(node) {
                    self.cut(node, peer, lasts);
                }
                true
            }
            Kind::CutPair => {
                self.cut(node, other, lasts);
                true
            }
            Kind::CutLink => {
                self.cut_link(node, other, lasts);
                true
            }
            Kind::Slow if self.nodes[node].service == 0 => {
                self.nodes[node].service = *self.random.choose(&[300, 5 * MS, 40 * MS]);
                true
            }
            Kind::Full if !self.nodes[node].full => {
                self.nodes[node].full = true;
                true
            }
            Kind::DiskErrors if self.nodes[node].disk_errors == 0 => {
                self.nodes[node].disk_errors = *self.random.choose(&[20_000, 200_000, 500_000]);
                true
            }
            Kind::Jump if self.nodes[node].jump_ms == 0 => {
                let by = *self.random.choose(&[2_000, 3_600_000, 30 * 86_400_000, 400 * 86_400_000]);
                self.nodes[node].jump_ms = if self.random.one_in(2_u64) { by } else { -by };
                true
            }
            Kind::Damage => {
                self.damage(node);
                false
            }
            Kind::Break => {
                let notice = self.notice();
                self.break_link(node, other, notice);
                false
            }
            _ => false,
        };
        if running {
            self.nodes[node].ailing += 1;
            for token in self.open(node) {
                self.history.ops[token].excused = true;
            }
            self.faults.push(Fault { kind, node, other, running });
            let (index, at) = (self.faults.len() - 1, self.now + lasts);
            self.at(at, Event::EndFault(index));
        }
    }

    pub fn end_fault(&mut self, index: usize) {
        let fault = self.faults[index].clone();
        if !std::mem::take(&mut self.faults[index].running) {
            return;
        }
        self.say(None, || format!("the end of {:?} of {} (and {})", fault.kind, fault.node, fault.other));
        let Fault { kind, node, other, .. } = fault;
        match kind {
            Kind::Pause => self.resume(node),
            Kind::Crash | Kind::Vanish | Kind::Empty | Kind::PutBack => self.restart(node),
            Kind::CutNode => {
                for peer in self.peers(node) {
                    self.uncut(node, peer);
                }
            }
            Kind::CutPair => self.uncut(node, other),
            Kind::CutLink => self.uncut_link(node, other),
            Kind::Slow => {
                self.nodes[node].service = 0;
                self.catch_up(node);
            }
            Kind::Full => self.nodes[node].full = false,
            Kind::DiskErrors => self.nodes[node].disk_errors = 0,
            Kind::Jump => self.nodes[node].jump_ms = 0,
            Kind::Damage | Kind::Break | Kind::LoseHints => {}
        }
        // It has a backlog to work off, and connections to make, before it counts as well.
        self.nodes[node].ailing -= 1;
        self.nodes[node].well_at = self.now + WELL_AFTER;
        for token in self.open(node) {
            self.history.ops[token].excused = true;
        }
    }

    fn resume(&mut self, node: usize) {
        if !std::mem::take(&mut self.nodes[node].paused) {
            return;
        }
        let mut backlog = std::mem::take(&mut self.nodes[node].backlog);
        // The loop may look at its timers before its sockets.
        if self.random.one_in(2) {
            backlog.sort_by_key(|work| !matches!(work, Work::Tick));
        }
        for work in backlog {
            if self.nodes[node].up && self.failure.is_none() {
                self.work(node, work);
            }
        }
        for peer in self.peers(node) {
            self.flush(node, peer);
        }
    }

    fn crash(&mut self, node: usize, resets: bool, lasts: u64) {
        self.count(node);
        for peer in self.peers(node) {
            let notice = if resets { self.random.below(2 * MS) } else { self.random.between(500 * MS, 4 * SECOND) };
            let notice = unless_answered(&self.plan, notice, lasts);
            self.break_link(peer, node, notice);
        }
        self.forget_links(node);
        for token in self.open(node) {
            self.history.ops[token].abandoned = true;
            self.history.ops[token].unsure = true;
            self.stats.lost_with_node += 1;
            let client = self.history.ops[token].client;
            self.client_goes_on(client);
        }
        let (plan, now) = (self.plan.clone(), self.now);
        self.nodes[node].crash(&plan, now, !resets);
    }

    fn restart(&mut self, node: usize) {
        let skew = self.plan.skew_max;
        let offset = &mut self.plan.clocks[node].0;
        if *offset != 0 {
            // The wall clock was set meanwhile.
            *offset = self.random.between(0, 2 * skew) as i64 - skew as i64;
        }
        if self.plan.jumps() {
            // Who starts has nothing to compare its wall clock with: it is right by then.
            self.nodes[node].jump_ms = 0;
            self.nodes[node].watch = Some(WallWatch::starting(self.machine_clocks(node)));
        }
        let (plan, wall, now) = (self.plan.clone(), self.clocks(node).wall, self.now);
        self.nodes[node].restart(&plan, wall);
        if plan.moves {
            let at = now + self.random.below(500 * MS);
            self.on(node, at, Work::Adopt);
        }
        if plan.exchanges {
            self.start_process(node);
        }
        if plan.moves {
            let at = now + self.random.below(SECOND);
            self.on(node, at, Work::Tell);
        }
        self.on(node, now, Work::Tick);
        self.dial_all(node);
    }

    fn cut(&mut self, one: usize, other: usize, lasts: u64) {
        self.cut_link(one, other, lasts);
        self.cut_link(other, one, lasts);
    }

    fn uncut(&mut self, one: usize, other: usize) {
        self.uncut_link(one, other);
        self.uncut_link(other, one);
    }

    /// Damages a record, unless it is the last readable one of its version or another of its key is
    /// damaged.
    fn damage(&mut self, node: usize) {
        let key = self.random.below(self.plan.keys);
        let name = self.keys[key].clone();
        let replicas = self.ranked[key].clone();
        let version = self.nodes[node].store.version(&name);
        let damaged = replicas.iter().any(|&other| self.nodes[other].store.is_damaged(&name));
        let place = self.nodes[node].store.record(&name).map(place);
        let keeps = |other: usize| {
            let is_replica = place.is_some_and(|place| self.is_replica(other, place));
            !self.plan.exchanges || self.is_whole(other) && is_replica
        };
        let holds = |other: usize| self.nodes[other].store.version(&name) >= version;
        let held = replicas.iter().any(|&other| other != node && keeps(other) && holds(other));
        if version.is_some() && held && !damaged {
            self.nodes[node].store.damage(&name);
            self.say(Some(key), || format!("the record of {node} is damaged, {version:?}"));
        }
    }

    pub fn heal(&mut self) {
        self.healed = true;
        self.say(None, || "all is well from here".to_owned());
        for index in 0..self.faults.len() {
            self.end_fault(index);
        }
        for node in if self.plan.moves { 0..self.plan.nodes } else { 0..0 } {
            let at = self.now + self.random.below(SECOND);
            self.on(node, at, Work::Adopt);
        }
        self.notice_all();
    }

    /// Operations at a node that wait for their answer.
    fn open(&self, node: usize) -> Vec<usize> {
        self.nodes[node].open.iter().copied().collect()
    }
}

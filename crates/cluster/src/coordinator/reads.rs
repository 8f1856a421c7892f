//! Reads: from the quickest replicas, the newest answer wins, and with a quorum it is answered when
//! a quorum has it.

use bytes::Bytes;
use koltso_model::{Flags, Found, Key, Operation, Outcome, Quorum, Record, Tombstone, Version, Want};
use smallvec::SmallVec;

use super::types::{Action, Stage};
use super::{Coordinator, Op, Work, bit, ranks};
use crate::Now;
use crate::health::ReadRank;

/// What a replica said it has.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) rank: u8,
    pub(super) live: bool,
    pub(super) version: Option<Version>,
    flags: Flags,
    value_len: u32,
    expires_at_ms: u64,
    attributes: Bytes,
}

impl Seen {
    pub(super) fn found(rank: usize, found: &Found<Bytes>) -> Self {
        Self {
            rank: rank as u8,
            live: true,
            version: Some(found.version),
            flags: found.flags,
            value_len: found.value_len,
            expires_at_ms: found.expires_at_ms,
            attributes: found.attributes.clone(),
        }
    }

    pub(super) fn absent(rank: usize, tombstone: Option<Tombstone>) -> Self {
        Self {
            rank: rank as u8,
            live: false,
            version: tombstone.map(|tombstone| tombstone.version),
            flags: tombstone.map_or(Flags::from_bits(0), |tombstone| tombstone.flags).tombstone(),
            value_len: 0,
            expires_at_ms: 0,
            attributes: Bytes::new(),
        }
    }
}

pub(super) struct Read {
    pub(super) key: Key<Bytes>,
    pub(super) want: Want,
    pub(super) hedged: bool,
    pub(super) seen: Vec<Seen>,
    /// The newest record with its value that has come.
    pub(super) data: Option<Record<Bytes>>,
    /// Sets of ranks.
    pub(super) fetching: u64,
    pub(super) fetch_failed: u64,
    pub(super) damaged: u64,
    /// The version that the next three are about, and the stage of its repairs: a confirmation of
    /// an older one is none.
    pub(super) repair_version: Version,
    pub(super) repair_stage: u8,
    pub(super) repair_sent: u64,
    pub(super) repaired: u64,
    pub(super) repair_failed: u64,
    /// Fell silent: waited for where nobody else is left.
    pub(super) silent: u64,
    pub(super) waited: bool,
}

impl Read {
    /// All that it was told.
    pub(super) fn forget(&mut self) {
        self.seen.clear();
        self.data = None;
        (self.fetching, self.fetch_failed, self.damaged, self.silent) = (0, 0, 0, 0);
        (self.repair_version, self.repair_stage) = (Version::default(), Stage::Repair as u8);
        (self.repair_sent, self.repaired, self.repair_failed) = (0, 0, 0);
        self.hedged = false;
    }

    pub(super) fn note(&mut self, seen: Seen) {
        match self.seen.iter_mut().find(|known| known.rank == seen.rank) {
            Some(known) if known.version <= seen.version => *known = seen,
            Some(_) => {}
            None => self.seen.push(seen),
        }
    }

    /// The newest of the answers.
    pub(super) fn newest(&self) -> Option<&Seen> {
        // Of two answers with one version, the one that says "gone" is right: its time has run out.
        self.seen.iter().max_by_key(|seen| (seen.version, !seen.live))
    }

    /// Ranks that answered with an older version, and those whose record is damaged.
    pub(super) fn stale(&self, version: Version) -> u64 {
        let older = self.seen.iter().filter(|seen| seen.version < Some(version));
        older.fold(self.damaged, |set, seen| set | bit(usize::from(seen.rank)))
    }

    /// Ranks that have the version, or a newer one.
    pub(super) fn holders(&self, version: Version) -> u64 {
        let holders = self.seen.iter().filter(|seen| seen.version >= Some(version));
        holders.fold(0, |set, seen| set | bit(usize::from(seen.rank)))
    }

    /// What a stale replica is to get, if it is here.
    pub(super) fn record(&self, newest: &Seen) -> Option<Record<Bytes>> {
        let version = newest.version?;
        if !newest.live {
            return Some(Record {
                key: self.key.clone(),
                value: Bytes::new(),
                version,
                expires_at_ms: 0,
                flags: newest.flags,
                attributes: Bytes::new(),
            });
        }
        self.data.clone().filter(|data| data.version == version)
    }
}

impl Coordinator {
    /// Asks as many replicas as have to answer.
    pub(super) fn ask_enough(&mut self, now: Now, slot: usize, want: Want, actions: &mut Vec<Action>) {
        if let Some(op) = &self.slots[slot].op {
            let lacking = op.lacking();
            self.ask_reads(now, slot, lacking, want, actions);
        }
    }

    /// Asks so many more replicas of each set, or as many as there are, the quickest first; the first of
    /// them for what is wanted, the others for the version. Whether there were any.
    pub(super) fn ask_reads(
        &mut self,
        now: Now,
        slot: usize,
        count: [u32; 2],
        want: Want,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(op) = &self.slots[slot].op else {
            return false;
        };
        let ranked = &op.replicas.nodes;
        let unasked = ranks(op.unasked());
        let mut order: SmallVec<[((ReadRank, u64), usize); 4]> =
            unasked.map(|rank| (self.health.order(ranked[rank], now.micros), rank)).collect();
        if order.len() > 1 {
            order.sort_unstable();
        }
        let key = match &op.work {
            Work::Read(read) => read.key.clone(),
            Work::Write(write) => write.record.key.clone(),
        };
        let chosen = op.replicas.chosen(order.iter().map(|&(_, rank)| rank), count);
        let ranks = order.iter().map(|&(_, rank)| rank).filter(|&rank| chosen & bit(rank) != 0);
        for (nth, rank) in ranks.enumerate() {
            if let Some(op) = self.op_mut(slot) {
                op.asked |= bit(rank);
            }
            let want = if nth == 0 { want } else { Want::Version };
            self.send(now, slot, rank, Stage::First as u8, Operation::Read { key: key.clone(), want }, actions);
        }
        chosen != 0
    }

    pub(super) fn hedge(&mut self, now: Now, slot: usize, actions: &mut Vec<Action>) {
        let Some(op) = &self.slots[slot].op else {
            return;
        };
        let waited = now.micros.saturating_sub(op.begun);
        let ranked = &op.replicas.nodes;
        let slow = ranks(op.pending())
            .any(|rank| ranked[rank] != self.topology.me() && waited > self.health.peer(ranked[rank]).hedge_after());
        let other = ranks(op.unasked()).any(|rank| self.health.answers_reads(ranked[rank], now.micros));
        if !slow || !other || !self.health.spend_hedge() {
            return;
        }
        let Some(Op { work: Work::Read(read), .. }) = self.slots[slot].op.as_mut() else {
            return;
        };
        read.hedged = true;
        let want = if read.data.is_none() { read.want } else { Want::Version };
        let before = actions.len();
        self.ask_reads(now, slot, [1; 2], want, actions);
        for action in &actions[before..] {
            if let Action::Send { to, .. } = action
                && *to != self.topology.me()
            {
                self.health.peer_mut(*to).hedges += 1;
            }
        }
    }

    pub(super) fn read_on(&mut self, now: Now, slot: usize, actions: &mut Vec<Action>) {
        let Some(op) = self.slots[slot].op.as_mut() else {
            return;
        };
        let (short, lacking, quorum, pending) = (op.is_short(), op.lacking(), op.quorum, op.pending());
        let Work::Read(read) = &mut op.work else {
            return;
        };
        if op.token.is_some() && short {
            let want = if read.data.is_none() { read.want } else { Want::Version };
            let asked = self.ask_reads(now, slot, lacking, want, actions);
            if !asked && pending == 0 {
                self.not_enough(slot, actions);
                // A damaged replica is repaired all the same, or the next read would find as
                // little.
                self.conclude(now, slot, 0, actions);
            }
        } else if op.token.is_none() || op.replicas.count(op.answered) >= u32::from(quorum.ack()) {
            let majority = u32::from(Quorum::majority(quorum.from()));
            let required = if quorum.is_majority() { majority } else { 0 };
            self.conclude(now, slot, required, actions);
        }
        let Some(op) = &self.slots[slot].op else {
            return;
        };
        let Work::Read(read) = &op.work else {
            return;
        };
        let repairs = read.repair_sent & !read.repaired & !read.repair_failed & !read.silent;
        if op.token.is_none() && op.pending() == 0 && read.fetching == 0 && repairs == 0 {
            self.end(slot, actions);
        }
    }

    /// Enough replicas have answered: takes the newest, gets its value, sees that enough have it,
    /// answers, repairs the rest.
    pub(super) fn conclude(&mut self, now: Now, slot: usize, required: u32, actions: &mut Vec<Action>) {
        let Some(op) = self.slots[slot].op.as_mut() else {
            return;
        };
        let (waits, unasked, pending) = (op.token.is_some(), op.unasked(), op.pending());
        let replicas = &op.replicas;
        let Work::Read(read) = &mut op.work else {
            return;
        };
        let newest = match read.newest() {
            Some(newest) if newest.version.is_some() => newest.clone(),
            _ => {
                self.answer(slot, Ok(Outcome::Absent(None)), actions);
                return;
            }
        };
        let version = newest.version.unwrap_or_default();
        if read.repair_version != version {
            read.repair_version = version;
            if read.repair_sent != 0 {
                read.repair_stage = read.repair_stage.checked_add(1).unwrap_or(Stage::Repair as u8);
            }
            (read.repair_sent, read.repaired, read.repair_failed) = (0, 0, 0);
        }
        let (stale, holders) = (read.stale(version), read.holders(version));
        let have_it = holders | read.repaired;
        let up_to_date = replicas.count(have_it);
        let record = read.record(&newest);
        let wanted = read.want == Want::Value && newest.live;
        let read_sent = read.repair_sent;
        if waits && record.is_none() && (wanted || up_to_date < required) {
            return self.fetch(now, slot, holders, actions);
        }
        if waits && up_to_date < required {
            if !std::mem::replace(&mut read.waited, true) {
                self.counters.repairs_waited_for += 1;
            }
            let waiting = stale & !read.repaired & !read.repair_failed;
            let coming = waiting | pending;
            // After a hedge or a refused repair, those that are still pending are late, or may be too few:
            // one that is slow and never silent must not keep the others from being asked.
            let doubted = if read.hedged || read.repair_failed != 0 { pending } else { 0 };
            let likely = have_it | (coming & !read.silent & !doubted);
            let (lacking, possible) = (replicas.lacking(likely, required), replicas.count(have_it | coming));
            // Another replica may have it already.
            if lacking != [0; 2] {
                let asked = unasked != 0 && self.ask_reads(now, slot, lacking, Want::Version, actions);
                if !asked && possible < required {
                    return self.not_enough(slot, actions);
                }
            }
            return self.repair(now, slot, stale, record, actions);
        }
        if waits {
            let outcome = if newest.live {
                let value = record.as_ref().filter(|_| wanted).map(|record| record.value.clone());
                Outcome::Found(Found {
                    version,
                    expires_at_ms: newest.expires_at_ms,
                    flags: newest.flags,
                    attributes: newest.attributes,
                    value_len: newest.value_len,
                    value,
                })
            } else {
                Outcome::Absent(Some(Tombstone { version, flags: newest.flags }))
            };
            self.answer(slot, Ok(outcome), actions);
        }
        match record {
            // Nobody waits for it any more, but somebody is stale.
            None if stale & !read_sent != 0 => self.fetch(now, slot, holders, actions),
            record => self.repair(now, slot, stale, record, actions),
        }
    }

    /// Gets the value of the newest version from a replica that has it.
    pub(super) fn fetch(&mut self, now: Now, slot: usize, holders: u64, actions: &mut Vec<Action>) {
        let Some(op) = self.slots[slot].op.as_mut() else {
            return;
        };
        let ranked = &op.replicas.nodes;
        let Work::Read(read) = &mut op.work else {
            return;
        };
        if read.fetching & holders != 0 {
            return;
        }
        let candidates = ranks(holders & !read.fetch_failed);
        match candidates.min_by_key(|&rank| self.health.order(ranked[rank], now.micros)) {
            Some(rank) => {
                read.fetching |= bit(rank);
                let operation = Operation::Read { key: read.key.clone(), want: Want::Value };
                self.send(now, slot, rank, Stage::Fetch as u8, operation, actions);
            }
            // Those that said they have it are gone, or it is damaged there. Their answers do not
            // count: if a quorum had it, one of the others has it.
            None if op.token.is_some() => {
                read.seen.retain(|seen| holders & bit(usize::from(seen.rank)) == 0);
                op.answered &= !holders;
                op.failed |= holders;
                self.read_on(now, slot, actions);
            }
            None => {}
        }
    }

    /// Writes the newest record to stale replicas, once each.
    pub(super) fn repair(
        &mut self,
        now: Now,
        slot: usize,
        stale: u64,
        record: Option<Record<Bytes>>,
        actions: &mut Vec<Action>,
    ) {
        let Some(record) = record else {
            return;
        };
        let Some(Op { replicas, work: Work::Read(read), .. }) = self.slots[slot].op.as_mut() else {
            return;
        };
        let (to_repair, stage) = (stale & !read.repair_sent, read.repair_stage);
        read.repair_sent |= to_repair;
        for rank in ranks(to_repair) {
            self.health.peer_mut(replicas.nodes[rank]).repairs += 1;
        }
        for rank in ranks(to_repair) {
            self.send(now, slot, rank, stage, Operation::Write(record.clone()), actions);
        }
    }
}

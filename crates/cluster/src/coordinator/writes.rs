//! Writes: to all usable replicas at once, answered at the `ack`-th confirmation, done again above
//! a newer version once.

use bytes::Bytes;
use koltso_model::{Operation, Outcome, Record, Version};

use super::types::{Action, RequestId, Stage};
use super::{Coordinator, Op, Work, bit, ranks};
use crate::Now;
use crate::renewal::Renewal;

pub(super) struct Write {
    pub(super) record: Record<Bytes>,
    pub(super) renewal: Renewal,
    /// The version for doing it again is on its way.
    pub(super) awaits_version: bool,
    /// Replicas that have their hint already, by rank.
    pub(super) hinted: u64,
}

impl Coordinator {
    /// Asks all usable replicas, and as many of the others as `ack` cannot do without.
    pub(super) fn ask_writes(&mut self, now: Now, slot: usize, actions: &mut Vec<Action>) {
        let Some(op) = &self.slots[slot].op else {
            return;
        };
        let usable = op.replicas.nodes.iter().enumerate().filter(|&(_, &node)| self.health.usable(node));
        let mut to_ask = usable.fold(0, |set, (rank, _)| set | bit(rank)) & op.unasked();
        let lacking = op.replicas.lacking(op.answered | to_ask, op.quorum.ack().into());
        to_ask |= op.replicas.chosen(ranks(op.unasked() & !to_ask), lacking);
        self.send_writes(now, slot, to_ask, actions);
    }

    pub(super) fn send_writes(&mut self, now: Now, slot: usize, to_ask: u64, actions: &mut Vec<Action>) {
        let Some(op) = self.op_mut(slot) else {
            return;
        };
        op.asked |= to_ask;
        let Work::Write(write) = &op.work else {
            return;
        };
        let stage = if write.renewal.is_renewed() { Stage::Renewed } else { Stage::First };
        let record = write.record.clone();
        for rank in ranks(to_ask) {
            self.send(now, slot, rank, stage as u8, Operation::Write(record.clone()), actions);
        }
    }

    /// A version above the one that a write asked for it with, see [`Action::Renew`]. The write may
    /// be gone by now.
    pub fn renew(&mut self, now: Now, id: RequestId, version: Version, actions: &mut Vec<Action>) {
        let Some(Op { work: Work::Write(write), .. }) = self.live_op_mut(id) else {
            return;
        };
        if !std::mem::take(&mut write.awaits_version) {
            return;
        }
        debug_assert!(version > write.record.version);
        write.record.version = version;
        self.ask_writes(now, id.slot(), actions);
    }

    /// Replicas that are known to ail get their hints as soon as the write is done anywhere, not when
    /// the others have answered: who holds a hint may be killed in the next moment. One that is to be
    /// done again has another version then.
    fn hint_the_ailing(&mut self, slot: usize, actions: &mut Vec<Action>) {
        let Some(Op { work: Work::Write(write), token, answered, replicas, .. }) = &mut self.slots[slot].op else {
            return;
        };
        if *answered == 0 || (token.is_some() && write.renewal.is_due()) {
            return;
        }
        for rank in ranks(replicas.every() & !*answered & !write.hinted) {
            let to = replicas.nodes[rank];
            if !self.health.usable(to) {
                write.hinted |= bit(rank);
                self.health.peer_mut(to).hints += 1;
                actions.push(Action::Hint { to, record: write.record.clone() });
            }
        }
    }

    pub(super) fn write_on(&mut self, now: Now, slot: usize, actions: &mut Vec<Action>) {
        let entry = &mut self.slots[slot];
        let Some(op) = entry.op.as_mut() else {
            return;
        };
        let Work::Write(write) = &mut op.work else {
            return;
        };
        if write.awaits_version {
            return;
        }
        if op.token.is_some() && op.replicas.count(op.answered) >= u32::from(op.quorum.ack()) {
            if let Some(above) = write.renewal.again() {
                (write.awaits_version, write.hinted) = (true, 0);
                (op.asked, op.answered, op.failed, op.behind) = (0, 0, 0, 0);
                self.counters.renewed += 1;
                let id = RequestId::new((entry.generation, op.attempt), slot, Stage::Renewed as u8);
                actions.push(Action::Renew { id, above });
                return;
            }
            self.answer(slot, Ok(Outcome::Applied), actions);
        } else if op.token.is_some() && op.is_short() {
            let more = op.replicas.chosen(ranks(op.unasked()), op.lacking());
            // Those that can still answer are waited for, so that the client learns how many did.
            if more != 0 {
                self.send_writes(now, slot, more, actions);
            } else if op.pending() == 0 {
                self.not_enough(slot, actions);
            }
        }
        if self.slots[slot].op.as_ref().is_some_and(|op| op.token.is_none() && op.pending() == 0) {
            self.end(slot, actions);
        } else {
            self.hint_the_ailing(slot, actions);
        }
    }
}

//! Quorum coordination of one core: PUT, DELETE and GET with `ack` of `from`, as a machine that
//! takes events and returns actions.
//!
//! ```text
//!  write/read ─▶ Asking ──enough answers──▶ answered ──none pending, or deadline──▶ gone (hints)
//!                  │  ▲                        ▲
//!                  │  └─ a newer version was   │ reads: Fetching (the value of the newest),
//!                  │     there: once more,     │        Repairing (so that a quorum has it)
//!                  │     above it (Renewed)    │
//!                  └── too few can answer ─▶ Shortage
//! ```
//!
//! **Writes** go to all usable replicas of `from` at once; the `ack`-th confirmation answers. A
//! replica that has a newer version says so. It was written by somebody whose clock is ahead,
//! perhaps before this write began: the write is done again with a version above it, once. A
//! version that is newer even than that was written at the same time, and either may be last.
//! Replicas that did not confirm in the end get a hint, if any did; those that are known to ail get
//! it as soon as any has.
//!
//! **Reads** ask `ack` replicas, the quickest first (this node where it is one), one for the value
//! and the others for the version. The newest answer wins. With a quorum `ack`, the answer waits
//! until a quorum of replicas has that version, so that no later quorum read returns an older one;
//! stale replicas among the answers are written to for that. Others that were found stale or
//! damaged are repaired behind the answer.
//!
//! A replica that cannot be asked, falls silent, or refuses a read because it is rebuilding, is
//! replaced by another of `from` where there is one; where there is none, it is asked all the same. Every operation has a deadline.
//!
//! Owner: one core. Bounds: [`Settings::in_flight_max`] operations; a replica is asked at most once
//! a stage, and for a value or with a repair once for each version that comes to be the newest.
//! Invariants:
//! 1. Each token is answered exactly once, at its deadline (plus a tick) at the latest.
//! 2. `Applied` is answered only after `ack` replicas confirmed the same version, or have a newer
//!    one.
//! 3. With `ack` ≥ quorum, `Found` and `Absent` are answered only after a quorum has the version,
//!    or a newer one.
//! 4. No replica beyond the first `from` of the key's ranking is ever asked.
//!
//! Tested by `tests/coordinator/` (scenarios) and `tests/simulation.rs` (seeds). Left out: writes
//! that were confirmed by fewer than `ack` replicas are not undone; they may be seen later, as the
//! answer says.

mod reads;
mod types;
mod writes;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use koltso_model::{Key, KeyHash, Operation, Outcome, Quorum, Record, Refused, Version, Want};

use crate::Now;
use crate::health::{Health, PeerHealth};
use crate::placement::{NodeIndex, NodeSet, Replicas, Topology};
use crate::renewal::Renewal;

use self::reads::{Read, Seen};
pub use self::types::{Action, Answer, Counters, Full, RequestId, Settings, Shortage, Token, Useless};
use self::types::{PLACES_MAX, Stage};
use self::writes::Write;

/// One operation, until its last replica has answered or its deadline is over.
struct Op {
    token: Option<Token>,
    hash: KeyHash,
    /// Its replicas, of the membership with this epoch. Where its partition moves on before it is answered,
    /// it begins again with those that it has then.
    replicas: Replicas,
    epoch: u64,
    /// How often that was.
    attempt: u8,
    quorum: Quorum,
    begun: u64,
    /// Sets of ranks.
    asked: u64,
    answered: u64,
    failed: u64,
    /// They know of a later membership, in which it has others.
    behind: u64,
    disk_full: bool,
    busy: bool,
    /// What replicas said instead of doing it, by rank; at most one a replica.
    refused: Vec<(u8, Refused)>,
    work: Work,
}

#[allow(clippy::large_enum_variant, reason = "slots are used again; a box would be an allocation for each read")]
enum Work {
    Write(Write),
    Read(Read),
}

struct Slot {
    generation: u32,
    op: Option<Op>,
}

/// The coordinator of one core.
pub struct Coordinator {
    topology: Arc<Topology>,
    settings: Settings,
    health: Health,
    counters: Counters,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Empty lists for what the replicas of a read say, to be used again; at most one a slot.
    spare: Vec<Vec<Seen>>,
    /// Bytes of values that operations hold.
    bytes: usize,
    /// Operations that are answered and not gone.
    answered: usize,
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator").field("health", &self.health).field("in_flight", &self.in_flight()).finish()
    }
}

const fn bit(rank: usize) -> u64 {
    1 << rank
}

/// The ranks in a set.
fn ranks(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let rank = set.trailing_zeros() as usize;
        set &= set.wrapping_sub(1);
        (rank < 64).then_some(rank)
    })
}

impl Op {
    /// Asked, and neither answered nor given up.
    const fn pending(&self) -> u64 {
        self.asked & !self.answered & !self.failed
    }

    const fn unasked(&self) -> u64 {
        self.replicas.every() & !self.asked
    }

    const fn answers(&self) -> u32 {
        self.replicas.count(self.answered)
    }

    /// What was wrong with the replicas that answered, once each.
    fn useless(&self) -> Vec<(NodeIndex, Useless)> {
        let mut useless: Vec<(usize, Useless)> =
            self.refused.iter().map(|&(rank, why)| (rank.into(), Useless::Refused(why))).collect();
        if let Work::Read(read) = &self.work {
            let newest = read.newest().and_then(|seen| seen.version).unwrap_or_default();
            let stale = if !self.is_short() { read.stale(newest) & self.answered & !read.repaired } else { 0 };
            let without = read.holders(newest) & (read.fetching | read.fetch_failed);
            let sets = [(read.damaged, Useless::Damaged), (without, Useless::WithoutValue), (stale, Useless::Stale)];
            for (rank, why) in sets.into_iter().flat_map(|(set, why)| ranks(set).map(move |rank| (rank, why))) {
                if useless.iter().all(|&(other, _)| other != rank) {
                    useless.push((rank, why));
                }
            }
        }
        useless.into_iter().map(|(rank, why)| (self.replicas.nodes[rank], why)).collect()
    }

    /// How many more replicas of each set must be asked for `ack` answers to be possible.
    const fn lacking(&self) -> [u32; 2] {
        self.replicas.lacking(self.answered | self.pending(), self.quorum.ack() as u32)
    }

    /// Whether any must.
    const fn is_short(&self) -> bool {
        self.replicas.count(self.answered | self.pending()) < self.quorum.ack() as u32
    }

    fn rank_of(&self, node: NodeIndex) -> Option<usize> {
        self.replicas.nodes.iter().position(|&known| known == node)
    }
}

impl Coordinator {
    /// A coordinator without operations, whose peers are all down.
    #[must_use]
    pub fn new(topology: Arc<Topology>, settings: Settings) -> Self {
        assert!(settings.in_flight_max < PLACES_MAX);
        let health = Health::new(topology.places(), topology.me());
        let counters = Counters::default();
        let (slots, free, spare) = (Vec::new(), Vec::new(), Vec::new());
        Self { topology, settings, health, counters, slots, free, spare, bytes: 0, answered: 0 }
    }

    /// How the peers are.
    #[must_use]
    pub const fn health(&self) -> &Health {
        &self.health
    }

    /// What was counted.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Operations that are not gone.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The hash of the key that a request is about, while its operation is there: a reply must be
    /// about the same.
    #[must_use]
    #[inline]
    pub fn key_hash(&self, id: RequestId) -> Option<KeyHash> {
        self.op(id).map(|op| op.hash)
    }

    fn op(&self, id: RequestId) -> Option<&Op> {
        let slot = self.slots.get(id.slot()).filter(|slot| slot.generation == id.generation())?;
        slot.op.as_ref().filter(|op| op.attempt == id.attempt())
    }

    fn live_op_mut(&mut self, id: RequestId) -> Option<&mut Op> {
        let slot = self.slots.get_mut(id.slot()).filter(|slot| slot.generation == id.generation())?;
        slot.op.as_mut().filter(|op| op.attempt == id.attempt())
    }

    /// Writes a record (or a tombstone) to `from` replicas and answers after `ack`; `from` is at
    /// most the number of nodes.
    ///
    /// # Errors
    /// [`Full`]; nothing was sent then.
    pub fn write(
        &mut self,
        now: Now,
        token: Token,
        record: Record<Bytes>,
        quorum: Quorum,
        actions: &mut Vec<Action>,
    ) -> Result<(), Full> {
        let hash = record.key.hash();
        let bytes = record.value.len();
        let work = || Work::Write(Write { record, renewal: Renewal::default(), awaits_version: false, hinted: 0 });
        let replicas = |topology: &Topology| topology.writers(hash, quorum.from());
        let slot = self.begin(now, token, (hash, replicas), quorum, (bytes, work), actions)?;
        self.ask_writes(now, slot, actions);
        Ok(())
    }

    /// Reads a key with `ack` of `from` replicas; `from` is at most the number of nodes.
    ///
    /// # Errors
    /// [`Full`]; nothing was sent then.
    pub fn read(
        &mut self,
        now: Now,
        token: Token,
        key: Key<Bytes>,
        want: Want,
        quorum: Quorum,
        actions: &mut Vec<Action>,
    ) -> Result<(), Full> {
        let hash = key.hash();
        let seen = self.spare.pop().unwrap_or_default();
        let work = || {
            Work::Read(Read {
                key,
                want,
                hedged: false,
                seen,
                data: None,
                fetching: 0,
                fetch_failed: 0,
                damaged: 0,
                repair_version: Version::default(),
                repair_stage: Stage::Repair as u8,
                repair_sent: 0,
                repaired: 0,
                repair_failed: 0,
                silent: 0,
                waited: false,
            })
        };
        let replicas = |topology: &Topology| topology.readers(hash, quorum.from());
        let slot = self.begin(now, token, (hash, replicas), quorum, (0, work), actions)?;
        self.health.earn_hedge();
        self.ask_enough(now, slot, want, actions);
        Ok(())
    }

    /// Begins an operation with so many bytes of values, whose work is made where it stays: moving
    /// it costs as much as all else here.
    #[inline]
    fn begin(
        &mut self,
        now: Now,
        token: Token,
        (hash, replicas): (KeyHash, impl FnOnce(&Topology) -> Replicas),
        quorum: Quorum,
        (bytes, work): (usize, impl FnOnce() -> Work),
        actions: &mut Vec<Action>,
    ) -> Result<usize, Full> {
        assert!(usize::from(quorum.from()) <= self.topology.replicas_max(), "the caller checks `from`");
        if !self.has_room(bytes) {
            self.make_room(actions);
        }
        if !self.has_room(bytes) {
            return Err(Full);
        }
        self.bytes += bytes;
        let slot = match self.free.pop() {
            Some(slot) => slot as usize,
            None => {
                self.slots.push(Slot { generation: 0, op: None });
                self.slots.len() - 1
            }
        };
        self.slots[slot].op = Some(Op {
            token: Some(token),
            hash,
            replicas: replicas(&self.topology),
            epoch: self.topology.epoch(),
            attempt: 0,
            quorum,
            begun: now.micros,
            asked: 0,
            answered: 0,
            failed: 0,
            behind: 0,
            disk_full: false,
            busy: false,
            refused: Vec::new(),
            work: work(),
        });
        Ok(slot)
    }

    fn has_room(&self, bytes: usize) -> bool {
        let Settings { in_flight_max, in_flight_bytes_max, .. } = self.settings;
        self.in_flight() < in_flight_max && self.bytes.saturating_add(bytes) <= in_flight_bytes_max
    }

    /// Forgets the older half of the operations that are answered: a replica that is slow may not
    /// fill the room of those that can do without it. Not if they are too few for a search.
    fn make_room(&mut self, actions: &mut Vec<Action>) {
        let crowded = self.in_flight() >= self.settings.in_flight_max;
        if crowded && self.answered < (self.settings.in_flight_max / 8).max(1) {
            return;
        }
        let ops = self.slots.iter().enumerate().filter_map(|(slot, entry)| Some((entry.op.as_ref()?, slot)));
        let mut answered: Vec<_> = ops.filter(|(op, _)| op.token.is_none()).map(|(op, at)| (op.begun, at)).collect();
        answered.sort_unstable();
        answered.truncate(answered.len().div_ceil(2));
        for (_, slot) in answered {
            self.end(slot, actions);
        }
    }

    /// A reply of `node`, which may be this node.
    pub fn replied(
        &mut self,
        now: Now,
        node: NodeIndex,
        id: RequestId,
        outcome: Outcome<Bytes>,
        actions: &mut Vec<Action>,
    ) {
        let slot = id.slot();
        let entry = self.slots.get_mut(slot).filter(|slot| slot.generation == id.generation());
        let op = entry.and_then(|slot| slot.op.as_mut()).filter(|op| op.attempt == id.attempt());
        if node != self.topology.me() {
            let first = id.stage() == Stage::First as u8;
            let latency = op.as_ref().filter(|_| first).map(|op| now.micros.saturating_sub(op.begun));
            self.health.peer_mut(node).replied(now.micros, latency);
        }
        if matches!(outcome, Outcome::Refused(Refused::Rebuilding)) {
            self.health.refused_read(node, now.micros);
        }
        let Some(op) = op else {
            return;
        };
        let Some(rank) = op.rank_of(node) else {
            return;
        };
        let here = bit(rank);
        if matches!(outcome, Outcome::Refused(Refused::Behind)) {
            // It is asked again when this node knows what that one does.
            op.behind |= here;
            return;
        }
        op.disk_full |= matches!(outcome, Outcome::Refused(Refused::DiskFull));
        op.busy |= matches!(outcome, Outcome::Refused(Refused::Busy));
        if let Outcome::Refused(why) = outcome
            && op.refused.iter().all(|&(other, _)| usize::from(other) != rank)
        {
            op.refused.push((rank as u8, why));
        }
        match &mut op.work {
            Work::Write(write) => {
                if (id.stage() == Stage::Renewed as u8) != write.renewal.is_renewed() {
                    return;
                }
                match outcome {
                    Outcome::Applied => op.answered |= here,
                    Outcome::Superseded(version) => {
                        write.renewal.superseded(version);
                        op.answered |= here;
                    }
                    _ => op.failed |= here,
                }
                self.write_on(now, slot, actions);
            }
            Work::Read(read) => {
                read.silent &= !here;
                if id.stage() >= Stage::Repair as u8 {
                    match outcome {
                        _ if id.stage() != read.repair_stage => {}
                        Outcome::Applied | Outcome::Superseded(_) => read.repaired |= here & read.repair_sent,
                        _ => read.repair_failed |= here,
                    }
                } else {
                    let was_fetch = id.stage() == Stage::Fetch as u8;
                    if was_fetch {
                        read.fetching &= !here;
                    }
                    match outcome {
                        Outcome::Found(found) => {
                            let seen = Seen::found(rank, &found);
                            if let Some(value) = found.value
                                && read.data.as_ref().is_none_or(|data| data.version < found.version)
                            {
                                self.bytes += value.len();
                                self.bytes -= read.data.as_ref().map_or(0, |data| data.value.len());
                                read.data = Some(Record {
                                    key: read.key.clone(),
                                    value,
                                    version: found.version,
                                    expires_at_ms: found.expires_at_ms,
                                    flags: found.flags,
                                    attributes: found.attributes,
                                });
                            }
                            read.note(seen);
                            op.answered |= here;
                        }
                        Outcome::Absent(tombstone) => {
                            read.note(Seen::absent(rank, tombstone));
                            op.answered |= here;
                        }
                        other => {
                            if matches!(other, Outcome::Damaged) {
                                read.damaged |= here;
                            }
                            op.failed |= here & !op.answered;
                            read.fetch_failed |= here;
                        }
                    }
                    // Whoever does not send the value that it said it has is not asked for it again
                    // and again.
                    let held = read.seen.iter().find(|seen| usize::from(seen.rank) == rank && seen.live);
                    let data = read.data.as_ref().map(|data| data.version);
                    if was_fetch && held.is_some_and(|seen| seen.version > data) {
                        read.fetch_failed |= here;
                    }
                }
                self.read_on(now, slot, actions);
            }
        }
    }

    /// A request could not be sent.
    pub fn failed(&mut self, now: Now, node: NodeIndex, id: RequestId, actions: &mut Vec<Action>) {
        if node != self.topology.me() {
            self.health.peer_mut(node).unsent();
        }
        if self.op(id).is_some() {
            self.give_up_on(now, id.slot(), node, true, actions);
        }
    }

    /// There is a connection to a peer.
    pub fn connected(&mut self, now: Now, node: NodeIndex) {
        self.health.peer_mut(node).connected_now(now.micros);
    }

    /// A connection to a peer, or an attempt to get one, has ended, and with it all that was asked
    /// over it.
    pub fn lost(&mut self, now: Now, node: NodeIndex, actions: &mut Vec<Action>) {
        self.health.peer_mut(node).lost();
        for slot in 0..self.slots.len() {
            self.give_up_on(now, slot, node, true, actions);
        }
    }

    /// The members have changed, or what they hold. Operations that others know to have other replicas by
    /// now begin again; answered ones end as they began.
    pub fn adopt(&mut self, now: Now, topology: Arc<Topology>, actions: &mut Vec<Action>) {
        let before = std::mem::replace(&mut self.topology, topology);
        let gone: NodeSet =
            before.peers().filter(|&node| self.topology.by_number(before.number(node)) != Some(node)).collect();
        for node in gone.iter() {
            self.lost(now, node, actions);
            *self.health.peer_mut(node) = PeerHealth::default();
        }
        self.health.make_room(self.topology.places());
        for slot in 0..self.slots.len() {
            let Some(op) = &self.slots[slot].op else { continue };
            let is_over = op.behind == 0 && op.epoch >= self.topology.fence(op.hash);
            if op.token.is_none() || is_over {
                continue;
            }
            if usize::from(op.quorum.from()) <= self.topology.replicas_max() {
                self.begin_again(now, slot, gone, actions);
            } else {
                // It asks for more replicas than there are to be.
                self.expire(slot, actions);
            }
        }
    }

    /// `gone`: in these places is nobody now, or another node, who has confirmed nothing.
    fn begin_again(&mut self, now: Now, slot: usize, gone: NodeSet, actions: &mut Vec<Action>) {
        let Some(op) = self.slots[slot].op.as_mut() else { return };
        op.attempt = RequestId::next_attempt(op.attempt);
        op.epoch = self.topology.epoch();
        let (hash, from) = (op.hash, op.quorum.from());
        let replicas = match &op.work {
            Work::Write(_) => self.topology.writers(hash, from),
            Work::Read(_) => self.topology.readers(hash, from),
        };
        let before = std::mem::replace(&mut op.replicas, replicas);
        let nodes = &op.replicas.nodes;
        let kept = |set: u64| {
            let stayed = ranks(set).map(|rank| before.nodes[rank]).filter(|&node| !gone.contains(node));
            let ranks = stayed.filter_map(|stayed| nodes.iter().position(|&node| node == stayed));
            ranks.fold(0, |set, rank| set | bit(rank))
        };
        (op.behind, op.failed) = (0, 0);
        op.refused.clear();
        match &mut op.work {
            Work::Write(write) => {
                // What a replica has confirmed, it has.
                (op.answered, write.hinted) = (kept(op.answered), kept(write.hinted));
                op.asked = op.answered;
                if !write.awaits_version {
                    self.ask_writes(now, slot, actions);
                    self.write_on(now, slot, actions);
                }
            }
            Work::Read(read) => {
                (op.answered, op.asked) = (0, 0);
                self.bytes -= read.data.take().map_or(0, |data| data.value.len());
                read.forget();
                let want = read.want;
                self.ask_enough(now, slot, want, actions);
            }
        }
    }

    /// Something came from a peer, or was taken by it.
    pub fn heard(&mut self, now: Now, node: NodeIndex) {
        self.health.peer_mut(node).heard(now.micros);
    }

    /// The answer to a probe. Returns how long it took, in µs, if it was still awaited.
    pub fn probed(&mut self, now: Now, node: NodeIndex, id: RequestId) -> Option<u64> {
        self.health.peer_mut(node).probed(now.micros, id.number())
    }

    /// Deadlines, hedges, silence, probes. To be called every few milliseconds.
    pub fn tick(&mut self, now: Now, actions: &mut Vec<Action>) {
        let asleep = self.health.asleep(now.micros);
        for node in self.topology.peers() {
            let tick = self.health.peer_mut(node).tick(now.micros, asleep);
            if tick.probe {
                let id = RequestId::ping(self.health.peer(node).last_probe());
                actions.push(Action::Probe { to: node, id });
            }
            if tick.opened {
                for slot in 0..self.slots.len() {
                    self.give_up_on(now, slot, node, false, actions);
                }
            }
        }
        for slot in 0..self.slots.len() {
            let Some(op) = &self.slots[slot].op else {
                continue;
            };
            if now.micros.saturating_sub(op.begun) >= self.settings.deadline_micros {
                self.expire(slot, actions);
            } else if op.token.is_some() && matches!(&op.work, Work::Read(read) if !read.hedged) {
                self.hedge(now, slot, actions);
            }
        }
    }

    /// Ends all operations as their deadlines would, for a node that stops: what was written gets
    /// its hints.
    pub fn finish(&mut self, actions: &mut Vec<Action>) {
        for slot in 0..self.slots.len() {
            self.expire(slot, actions);
        }
    }

    fn send(
        &mut self,
        now: Now,
        slot: usize,
        rank: usize,
        stage: u8,
        operation: Operation<Bytes>,
        out: &mut Vec<Action>,
    ) {
        let entry = &self.slots[slot];
        let Some(op) = &entry.op else {
            return;
        };
        let to = op.replicas.nodes[rank];
        let id = RequestId::new((entry.generation, op.attempt), slot, stage);
        if to != self.topology.me() {
            self.health.peer_mut(to).sent(now.micros);
        }
        out.push(Action::Send { to, id, operation });
    }

    fn op_mut(&mut self, slot: usize) -> Option<&mut Op> {
        self.slots[slot].op.as_mut()
    }

    fn answer(&mut self, slot: usize, result: Result<Outcome<Bytes>, Shortage>, actions: &mut Vec<Action>) {
        let Some(op) = self.op_mut(slot) else {
            return;
        };
        let answered = op.answers();
        let (asked, written) = match &op.work {
            Work::Write(write) => (op.quorum.from().into(), Some(write.record.version)),
            Work::Read(_) => (op.asked.count_ones(), None),
        };
        if let Some(token) = op.token.take() {
            self.answered += 1;
            self.counters.not_enough += u64::from(result.is_err());
            actions.push(Action::Answer { token, answer: Answer { result, written, answered, asked } });
        }
    }

    fn not_enough(&mut self, slot: usize, actions: &mut Vec<Action>) {
        let Some(op) = &self.slots[slot].op else {
            return;
        };
        let concerned = if matches!(op.work, Work::Write(_)) { op.replicas.every() } else { op.asked };
        // Where enough answered, the value or a repair was what did not come.
        let missing = ranks(concerned & !op.answered).map(|rank| op.replicas.nodes[rank]).collect();
        let (disk_full, busy, useless) = (op.disk_full, op.busy, op.useless());
        let shortage = Shortage { needed: op.quorum.ack().into(), missing, disk_full, busy, useless };
        self.answer(slot, Err(shortage), actions);
    }

    /// Forgets an operation; what replicas missed becomes hints.
    fn end(&mut self, slot: usize, actions: &mut Vec<Action>) {
        let entry = &mut self.slots[slot];
        let Some(op) = &mut entry.op else {
            return;
        };
        self.answered -= usize::from(op.token.is_none());
        match &mut op.work {
            Work::Read(read) => {
                self.bytes -= read.data.as_ref().map_or(0, |data| data.value.len());
                let mut seen = std::mem::take(&mut read.seen);
                seen.clear();
                self.spare.push(seen);
            }
            Work::Write(write) => {
                self.bytes -= write.record.value.len();
                let every = op.replicas.every();
                let missed = if op.answered == 0 { 0 } else { every & !op.answered & !write.hinted };
                for to in ranks(missed).map(|rank| op.replicas.nodes[rank]).filter(|&to| to != self.topology.me()) {
                    self.health.peer_mut(to).hints += 1;
                    actions.push(Action::Hint { to, record: write.record.clone() });
                }
            }
        }
        entry.op = None;
        entry.generation = RequestId::next_generation(entry.generation);
        self.free.push(slot as u32);
    }

    fn expire(&mut self, slot: usize, actions: &mut Vec<Action>) {
        if self.op_mut(slot).is_some_and(|op| op.token.is_some()) {
            self.not_enough(slot, actions);
        }
        self.end(slot, actions);
    }

    /// Nothing more comes from `node` for this operation. Unless that is `certain`, it is still
    /// waited for where the usable replicas are too few without it.
    fn give_up_on(&mut self, now: Now, slot: usize, node: NodeIndex, certain: bool, actions: &mut Vec<Action>) {
        let Some(op) = self.slots[slot].op.as_mut() else {
            return;
        };
        let Some(rank) = op.rank_of(node) else {
            return;
        };
        let here = bit(rank);
        let mut as_well = 0;
        let is_read = matches!(op.work, Work::Read(_));
        let is_usable = |rank: &usize| match op.replicas.nodes[*rank] {
            node if is_read => self.health.answers_reads(node, now.micros),
            node => self.health.usable(node),
        };
        let usable = ranks(op.unasked()).filter(is_usable).fold(0, |set, rank| set | bit(rank));
        if op.pending() & here != 0 {
            let others = op.replicas.count(op.answered | (op.pending() & !here) | usable);
            if certain || op.token.is_none() {
                op.failed |= here;
            } else if op.answers() >= u32::from(op.quorum.ack()) {
                // A read whose value or repair is waited for. What it does with the silent is in
                // `conclude`.
            } else if others >= u32::from(op.quorum.ack()) {
                op.failed |= here;
            } else {
                // Those that are left are no better: whichever answers first.
                as_well = op.unasked();
            }
        }
        if as_well != 0 {
            match &op.work {
                Work::Write(_) => self.send_writes(now, slot, as_well, actions),
                Work::Read(read) => {
                    let want = if read.data.is_none() { read.want } else { Want::Version };
                    self.ask_reads(now, slot, [as_well.count_ones(); 2], want, actions);
                }
            }
        }
        let Some(op) = self.slots[slot].op.as_mut() else {
            return;
        };
        let pending = op.pending();
        match &mut op.work {
            Work::Write(_) => self.write_on(now, slot, actions),
            Work::Read(read) => {
                let certain = certain || op.token.is_none();
                if read.fetching & here != 0 {
                    // The value is elsewhere, or enough answers are without those that have it.
                    let holders = read.newest().and_then(|seen| seen.version).map_or(0, |newest| read.holders(newest));
                    let elsewhere = holders & !here & !read.fetch_failed != 0;
                    let without = op.replicas.count((op.answered & !holders) | (pending & !here) | usable);
                    if certain || elsewhere || without >= u32::from(op.quorum.ack()) {
                        read.fetching &= !here;
                        read.fetch_failed |= here;
                    }
                }
                if certain {
                    read.repair_failed |= here & read.repair_sent & !read.repaired;
                } else {
                    read.silent |= here;
                }
                self.read_on(now, slot, actions);
            }
        }
    }
}

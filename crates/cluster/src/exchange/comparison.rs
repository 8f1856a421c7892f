//! The side that asks: one peer's comparisons, a round after the other.
//!
//! A round is a queue of tasks, each a request whose answer may lead to more tasks in front of the
//! others. The caller sends what [`Comparison::step`] says and passes the answer to
//! [`Comparison::answered`]; time is its own, in µs.
//!
//! Owner: a thread a peer. Bounds: one request at a time; 64 partitions compared at once, one
//! list of their keys on each side; 8 bytes a partition and `from` in use for what makes no
//! difference. A round that repaired something is followed by the next after a pause, which doubles
//! up to [`INTERVAL_MICROS`] unless fewer partitions differ each time: a peer that only says that it
//! differs costs as much as one that does not.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use koltso_model::{ExchangeReply, ExchangeRequest, LEAVES, LeafSet, Record, Standing, Told, WallTime};

use super::answering::believe;
use super::board::{Look, all_of};
use super::decision::{Views, decide};
use super::pair::Pair;
use super::{Agreeing, CREDIT, Holdings, LISTING_BYTES, Listed, YOUNG_MS, differing, leaf_set};
use crate::Now;
use crate::placement::Topology;

/// Between the beginnings of two rounds that find nothing, in µs.
pub const INTERVAL_MICROS: u64 = 10_000_000;
/// Before roots that differ are looked at again, in µs: what was on its way has arrived then.
pub const PAUSE_MICROS: u64 = 1_000_000;
/// How often they are looked at before their leaves are.
const LOOKS: u8 = 3;
/// Where more partitions differ than this, it is no coincidence, and they are not looked at again.
const MANY: usize = 256;
/// Partitions whose leaves are compared at once.
const BATCH: usize = 64;
/// Records that are asked for at once.
const FETCH_MAX: usize = 4096;
/// Records that are given at once.
const GIVE_MAX: usize = 4096;
/// After so many rounds in which all that differed in a partition was young, it is listed whole: of a
/// key that is written all the time two looks are never at the same moment.
const BUSY: u8 = 3;
const YOUNG_MICROS: u64 = YOUNG_MS * 1_000;
/// So often a round halves what is too much for one list. (A node that cannot list anything for a
/// moment says the same.)
const HALVINGS_MAX: u32 = 64;

/// What the caller has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this, and call [`Comparison::answered`] or [`Comparison::lost`].
    Ask(ExchangeRequest),
    /// Nothing until then, unless the peer comes up ([`Comparison::wake`]).
    Wait(u64),
}

/// What was compared, and what came of it, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Rounds that came to their end.
    pub rounds: u64,
    /// Partitions that the last one found to differ.
    pub differing: u64,
    /// Records that were fetched.
    pub received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Records that were given.
    pub sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
}

/// What a list of items is compared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Both are to become equal in the records with this `from`.
    Equal(u8),
    /// The peer is to get what this node should not have, of this `from`.
    HandOver(u8),
}

#[derive(Debug)]
enum Task {
    Introduce,
    /// Roots, for the n-th time; `of` these partitions only, if this is not the first.
    Look {
        from: u8,
        nth: u8,
        of: Option<Vec<u16>>,
        not_before: u64,
    },
    /// Tell the peer what is equal.
    Tell {
        from: u8,
        partitions: Vec<u16>,
    },
    Leaves {
        from: u8,
        partitions: Vec<u16>,
    },
    /// `part`: these are not all leaves in which their partitions differ.
    Items {
        purpose: Purpose,
        leaves: Vec<(u16, LeafSet)>,
        part: bool,
    },
    /// What the peer has forgotten is asked once more, after it has listed what it has.
    Decide(Box<Listings>),
    Fetch(VecDeque<Wanted>),
    Give(VecDeque<Bytes>),
}

#[derive(Clone, Copy, Debug)]
struct Wanted {
    place: u32,
    partition: u16,
    hash: u32,
}

/// What an answer is awaited to.
#[derive(Debug)]
enum Asked {
    Introduce,
    Look { from: u8, nth: u8, of: Option<Vec<u16>>, look: Look },
    Tell,
    Leaves { from: u8, partitions: Vec<u16> },
    Items(ListAsked),
    Decide(Box<Listings>),
    Fetch { asked: usize, rest: VecDeque<Wanted> },
    Give { sent: usize, bytes: u64, rest: VecDeque<Bytes> },
}

/// Compares with one peer; see the module.
#[derive(Debug)]
pub struct Comparison {
    pair: Pair,
    tasks: VecDeque<Task>,
    asked: Option<Asked>,
    /// When the next round begins.
    next_at: u64,
    /// When the present one began.
    began_at: u64,
    /// The next one is to begin as soon as this is over.
    woken: bool,
    round: u64,
    pause: u64,
    /// What items explain of the differences of roots, by `from` and partition.
    harmless: BTreeMap<u8, Box<[u64]>>,
    /// Roots of what this node should not have, when the peer had all of that.
    handed: HashMap<(u8, u16), u64>,
    /// What the peer said of itself in this round.
    told: Told,
    doubts_itself: bool,
    /// How this node said that it stands, in this round.
    stood: Option<Standing>,
    /// Since when it doubts itself, in µs; `None` if it does not.
    doubts_since: Option<u64>,
    /// In how many rounds on end all that differed in a partition was young.
    busy: HashMap<(u8, u16), u8>,
    /// How often something was too much to be listed at once, in this round.
    halvings: u32,
    /// What this round found.
    differing: u64,
    repaired: u64,
    young: u64,
    figures: Figures,
    spent: u64,
}

impl Comparison {
    /// A comparison that begins at once.
    #[must_use]
    pub fn new(pair: Pair, now: u64) -> Self {
        Self {
            pair,
            tasks: VecDeque::new(),
            asked: None,
            next_at: now,
            began_at: now,
            woken: false,
            round: 0,
            pause: PAUSE_MICROS,
            harmless: BTreeMap::new(),
            handed: HashMap::new(),
            told: Told::default(),
            doubts_itself: false,
            stood: None,
            doubts_since: None,
            busy: HashMap::new(),
            halvings: 0,
            differing: 0,
            repaired: 0,
            young: 0,
            figures: Figures::default(),
            spent: 0,
        }
    }

    /// What came of it so far.
    #[must_use]
    pub const fn figures(&self) -> Figures {
        self.figures
    }

    /// Bytes that were sent and received since the last call: the caller holds the rate.
    pub fn take_spent(&mut self) -> u64 {
        std::mem::take(&mut self.spent)
    }

    /// The members have changed, or what they hold; the peer is still one. The next round begins now.
    pub fn adopt(&mut self, topology: Arc<Topology>, now: u64) {
        self.pair.adopt(topology);
        self.handed.clear();
        self.wake(now);
    }

    /// The peer is there again, or something else says that they may differ: the next round begins
    /// now.
    pub fn wake(&mut self, now: u64) {
        self.next_at = self.next_at.min(now);
        self.woken = true;
    }

    /// The connection is gone. The round begins anew at `next_at`.
    pub fn lost(&mut self, next_at: u64) {
        self.tasks.clear();
        self.asked = None;
        self.next_at = next_at;
    }

    /// What is to be done now.
    pub fn step(&mut self, now: Now, board: &mut dyn Agreeing, holdings: &mut dyn Holdings) -> Step {
        loop {
            if self.asked.is_some() {
                return Step::Wait(u64::MAX);
            }
            // A handshake has told this node what others think of it: what was planned before would
            // hand on what it has from the past.
            if self.stood.is_some_and(|stood| stood != holdings.told().standing) && !self.tasks.is_empty() {
                self.tasks.clear();
                self.stood = None;
                self.tasks.push_back(Task::Introduce);
            }
            let Some(task) = self.tasks.pop_front() else {
                if now.micros < self.next_at {
                    return Step::Wait(self.next_at);
                }
                self.begin(now.micros);
                continue;
            };
            if let Task::Look { not_before, .. } = &task
                && now.micros < *not_before
            {
                let until = *not_before;
                self.tasks.push_front(task);
                return Step::Wait(until);
            }
            let request = self.request(now.wall, task, board, holdings);
            if self.tasks.is_empty() && request.is_none() && self.asked.is_none() {
                self.end(now.micros);
            }
            if let Some(request) = request {
                self.spent += bytes_of_request(&request);
                return Step::Ask(request);
            }
        }
    }

    fn begin(&mut self, now: u64) {
        self.began_at = now;
        self.woken = false;
        self.round += 1;
        (self.differing, self.repaired, self.young) = (0, 0, 0);
        (self.stood, self.halvings) = (None, 0);
        // Until the round has come to its end.
        self.next_at = u64::MAX;
        self.tasks.push_back(Task::Introduce);
    }

    fn end(&mut self, now: u64) {
        self.figures.rounds += 1;
        let fewer = self.differing < self.figures.differing;
        self.figures.differing = self.differing;
        let again = self.repaired > 0 || self.young > 0;
        self.pause = match (again, fewer && self.repaired > 0) {
            (true, true) => PAUSE_MICROS,
            (true, false) => (self.pause * 2).min(INTERVAL_MICROS),
            (false, _) => PAUSE_MICROS,
        };
        self.next_at = if std::mem::take(&mut self.woken) {
            now
        } else if again {
            now + self.pause
        } else {
            now.max(self.began_at + INTERVAL_MICROS)
        };
    }

    /// Makes a task's request; `None` where there is nothing left to ask.
    fn request(
        &mut self,
        now: WallTime,
        task: Task,
        board: &mut dyn Agreeing,
        holdings: &mut dyn Holdings,
    ) -> Option<ExchangeRequest> {
        match task {
            Task::Introduce => {
                self.asked = Some(Asked::Introduce);
                Some(ExchangeRequest::Roots { told: holdings.told(), from: 0 })
            }
            Task::Look { from, nth, of, .. } => {
                self.asked = Some(Asked::Look { from, nth, of, look: board.look(now, holdings) });
                Some(ExchangeRequest::Roots { told: holdings.told(), from })
            }
            Task::Tell { from, partitions } => {
                self.asked = Some(Asked::Tell);
                Some(ExchangeRequest::Agreed { from, partitions })
            }
            Task::Leaves { from, partitions } => {
                self.asked = Some(Asked::Leaves { from, partitions: partitions.clone() });
                Some(ExchangeRequest::Leaves { from, byte: (self.round % 8) as u8, partitions })
            }
            Task::Items { purpose, leaves, part } => {
                let look = board.look(now, holdings);
                let (Purpose::Equal(from) | Purpose::HandOver(from)) = purpose;
                let before = |&(partition, _): &(u16, LeafSet)| {
                    // In this order: what comes late in between is in the root.
                    (holdings.arrivals(from, partition), holdings.root(from, partition))
                };
                let before = leaves.iter().map(before).collect();
                self.asked = Some(Asked::Items(ListAsked { purpose, leaves: leaves.clone(), part, look, before }));
                Some(ExchangeRequest::Items(leaves))
            }
            Task::Decide(listings) => {
                self.asked = Some(Asked::Decide(listings));
                Some(ExchangeRequest::Roots { told: holdings.told(), from: 0 })
            }
            Task::Fetch(mut wanted) => {
                let rest = wanted.split_off(wanted.len().min(FETCH_MAX));
                let places = wanted.iter().map(|wanted| wanted.place).collect();
                wanted.extend(rest);
                let asked = wanted.len().min(FETCH_MAX);
                self.asked = Some(Asked::Fetch { asked, rest: wanted });
                Some(ExchangeRequest::Fetch { places, credit: CREDIT })
            }
            Task::Give(mut keys) => {
                let (mut records, mut bytes) = (Vec::new(), 0);
                while bytes < u64::from(CREDIT) && records.len() < GIVE_MAX {
                    let Some(key) = keys.pop_front() else { break };
                    if let Some(record) = holdings.newest(&key) {
                        bytes += record.len() as u64;
                        records.push(record);
                    }
                }
                if records.is_empty() {
                    return None;
                }
                self.asked = Some(Asked::Give { sent: records.len(), bytes, rest: keys });
                Some(ExchangeRequest::Give(records))
            }
        }
    }

    /// The answer to what was asked.
    ///
    /// # Errors
    /// A sentence, if the peer is not to be believed any more: the connection is to be closed, and
    /// [`Comparison::lost`] to be called.
    pub fn answered(
        &mut self,
        now: Now,
        reply: ExchangeReply,
        board: &mut dyn Agreeing,
        holdings: &mut dyn Holdings,
    ) -> Result<(), String> {
        let Some(asked) = self.asked.take() else {
            return Err("it answered what it was not asked".to_owned());
        };
        self.spent += bytes_of_reply(&reply);
        let result = self.take(now, asked, reply, board, holdings);
        // A round that a lie ends has compared nothing.
        if result.is_ok() && self.tasks.is_empty() {
            self.end(now.micros);
        }
        result
    }

    fn take(
        &mut self,
        now: Now,
        asked: Asked,
        reply: ExchangeReply,
        board: &mut dyn Agreeing,
        holdings: &mut dyn Holdings,
    ) -> Result<(), String> {
        match (asked, reply) {
            // The first of them cannot be listed: it is for the next round. The others may be.
            (Asked::Items(ListAsked { purpose, leaves, part, .. }), ExchangeReply::NotReady) => {
                self.list_less(purpose, leaves, part);
                Ok(())
            }
            // What is left is for the next round.
            (_, ExchangeReply::NotReady) => {
                self.young += 1;
                Ok(())
            }
            (Asked::Introduce, ExchangeReply::Roots { told, roots }) if roots.is_empty() => {
                // Whatever its epoch is, it answers.
                board.heard(self.pair.peer(), told, 0);
                self.told = told;
                self.plan(now, board, holdings);
                Ok(())
            }
            (Asked::Look { from, nth, of, look }, ExchangeReply::Roots { told, roots }) => {
                // It answers only by the membership that it was asked by.
                board.heard(self.pair.peer(), told, look.epoch().min(self.pair.epoch()));
                self.told = told;
                self.compare_roots(now.micros, from, (nth, of), (look, &roots), board, holdings)
            }
            (Asked::Tell, ExchangeReply::Noted) => Ok(()),
            (Asked::Leaves { from, partitions }, ExchangeReply::Leaves(bytes)) => {
                self.compare_leaves(from, &partitions, &bytes, holdings)
            }
            (Asked::Items(asked), ExchangeReply::Items(theirs)) => {
                if theirs.is_empty() || theirs.len() > asked.leaves.len() {
                    return Err("it listed other partitions than it was asked for".to_owned());
                }
                let listings = Listings { asked, theirs };
                if self.doubts_itself || matches!(listings.asked.purpose, Purpose::HandOver(_)) {
                    // What it forgets between what it said last and this list is not among what it
                    // said.
                    self.tasks.push_front(Task::Decide(Box::new(listings)));
                } else {
                    self.compare_items(now, listings, board, holdings);
                }
                Ok(())
            }
            (Asked::Decide(listings), ExchangeReply::Roots { told, roots }) if roots.is_empty() => {
                board.heard(self.pair.peer(), told, 0);
                self.told = told;
                self.compare_items(now, *listings, board, holdings);
                Ok(())
            }
            (Asked::Fetch { asked, rest }, ExchangeReply::Records(records)) => {
                if records.is_empty() || records.len() > asked {
                    return Err("it sent other records than it was asked for".to_owned());
                }
                self.take_in(now.wall, records, rest, holdings)
            }
            (Asked::Give { sent, bytes, rest }, ExchangeReply::Given(given)) => {
                if given.len() != sent {
                    return Err("it confirmed other records than it was given".to_owned());
                }
                let taken = given.iter().filter(|&&taken| taken).count() as u64;
                self.figures.sent += taken;
                self.figures.bytes_sent += bytes;
                self.repaired += taken;
                // What it cannot take now is found again.
                if !rest.is_empty() && taken > 0 {
                    self.tasks.push_front(Task::Give(rest));
                }
                Ok(())
            }
            _ => Err("it answered something else than it was asked".to_owned()),
        }
    }

    /// What this round has to do, once the peer has said how it stands.
    fn plan(&mut self, now: Now, board: &mut dyn Agreeing, holdings: &mut dyn Holdings) {
        // Now, and not when the round began: the handshake came after that.
        let own = holdings.told();
        self.stood = Some(own.standing);
        self.doubts_itself = own.standing != Standing::Whole;
        self.doubts_since = self.doubts_itself.then(|| self.doubts_since.unwrap_or(now.micros));
        if self.told.standing != Standing::Whole {
            // What it had, it may have no more.
            self.handed.clear();
        }
        let mut froms = own.froms;
        if own.standing != Standing::Whole || self.told.standing != Standing::Whole {
            // So that something was compared also where nothing was written.
            froms |= 1 << (self.pair.widest() - 1);
        }
        // Of one replica there are two while it moves.
        for from in all_of(board.in_use(froms)) {
            let shared = self.pair.shared(from);
            if shared.iter().any(|&partition| self.asks(from, partition)) {
                self.tasks.push_back(Task::Look { from, nth: 1, of: None, not_before: 0 });
            }
        }
        let look = board.look(now.wall, holdings);
        board.equal_with_itself(look, holdings);
        for from in all_of(own.froms) {
            let (mut leaves, mut handed) = (Vec::new(), Vec::new());
            for partition in self.pair.strange(from) {
                let arrivals = holdings.arrivals(from, partition);
                let root = holdings.root(from, partition);
                if root == 0 {
                    continue;
                }
                if self.handed.get(&(from, partition)) == Some(&root) {
                    // What it has, it has still, or newer.
                    handed.push((partition, arrivals));
                    continue;
                }
                let own = holdings.leaves(from, partition);
                leaves.push((partition, differing(|leaf| own[leaf] == 0)));
            }
            board.equal(self.pair.peer(), from, &handed, look, holdings);
            if !leaves.is_empty() {
                self.tasks.push_back(Task::Items { purpose: Purpose::HandOver(from), leaves, part: false });
            }
        }
    }

    /// Whether this node asks about a partition, as both said that they stand in this round.
    fn asks(&self, from: u8, partition: u16) -> bool {
        self.pair.asks((self.stood.unwrap_or_default(), self.told.standing), from, partition)
    }

    fn harmless(&mut self, from: u8) -> &mut [u64] {
        let partitions = self.pair.partitions();
        self.harmless.entry(from).or_insert_with(|| vec![0; partitions].into())
    }

    fn compare_roots(
        &mut self,
        now: u64,
        from: u8,
        (nth, of): (u8, Option<Vec<u16>>),
        (look, roots): (Look, &[u64]),
        board: &mut dyn Agreeing,
        holdings: &mut dyn Holdings,
    ) -> Result<(), String> {
        if look.epoch() != self.pair.epoch() {
            // By now other partitions are in common.
            self.young += 1;
            return Ok(());
        }
        let shared = self.pair.shared(from);
        if roots.len() != shared.len() {
            return Err("it has other partitions in common with this node than this node with it".to_owned());
        }
        let asks: Vec<bool> = shared.iter().map(|&partition| self.asks(from, partition)).collect();
        let is_looked_at = |partition: &u16| of.as_ref().is_none_or(|of| of.binary_search(partition).is_ok());
        let (mut equal, mut differ) = (Vec::new(), Vec::new());
        let harmless = self.harmless(from);
        for ((&partition, &root), asks) in shared.iter().zip(roots).zip(asks) {
            if !asks || !is_looked_at(&partition) {
                continue;
            }
            let arrivals = holdings.arrivals(from, partition);
            let explained = &mut harmless[usize::from(partition)];
            let difference = holdings.root(from, partition) ^ root;
            if difference == 0 || difference == *explained {
                *explained = difference;
                equal.push((partition, arrivals));
            } else {
                differ.push(partition);
            }
        }
        board.equal(self.pair.peer(), from, &equal, look, holdings);
        if !differ.is_empty() {
            let moves =
                |&partition: &u16| self.pair.is_receiving(from, partition) || self.pair.are_receiving(from, partition);
            let is_sure = self.doubts_itself || self.told.standing != Standing::Whole || differ.iter().any(moves);
            let hurry = is_sure || differ.len() > MANY;
            if nth < LOOKS && !hurry {
                let not_before = now + PAUSE_MICROS;
                self.tasks.push_front(Task::Look { from, nth: nth + 1, of: Some(differ), not_before });
            } else {
                self.differing += differ.len() as u64;
                let mut batches: Vec<&[u16]> = differ.chunks(BATCH).collect();
                batches.sort_by_key(|batch| self.pair.order(self.round, usize::from(batch[0])));
                for batch in batches {
                    self.tasks.push_front(Task::Leaves { from, partitions: batch.to_vec() });
                }
            }
        }
        if !equal.is_empty() {
            let partitions = equal.into_iter().map(|(partition, _)| partition).collect();
            self.tasks.push_front(Task::Tell { from, partitions });
        }
        Ok(())
    }

    fn compare_leaves(
        &mut self,
        from: u8,
        partitions: &[u16],
        theirs: &[u8],
        holdings: &dyn Holdings,
    ) -> Result<(), String> {
        if theirs.len() != partitions.len() * LEAVES {
            return Err("it sent other leaves than it was asked for".to_owned());
        }
        let byte = (self.round % 8) as usize;
        let mut leaves = Vec::new();
        for (&partition, theirs) in partitions.iter().zip(theirs.chunks_exact(LEAVES)) {
            let own = holdings.leaves(from, partition);
            let set = differing(|leaf| own[leaf].to_le_bytes()[byte] == theirs[leaf]);
            if set != leaf_set(false) {
                let is_busy = self.busy.get(&(from, partition)).is_some_and(|&rounds| rounds >= BUSY);
                leaves.push((partition, if is_busy { leaf_set(true) } else { set }));
            }
        }
        if !leaves.is_empty() {
            self.tasks.push_front(Task::Items { purpose: Purpose::Equal(from), leaves, part: false });
        }
        Ok(())
    }

    /// One of the two cannot list the first of these partitions, perhaps since it has too many keys:
    /// half of its leaves at a time, and the others after that.
    fn list_less(&mut self, purpose: Purpose, mut leaves: Vec<(u16, LeafSet)>, part: bool) {
        // It is looked at again in the next round, in any case.
        self.young += 1;
        let (partition, set) = leaves.remove(0);
        if !leaves.is_empty() {
            self.tasks.push_front(Task::Items { purpose, leaves, part });
        }
        if self.halvings < HALVINGS_MAX
            && let Some(halves) = halves(&set)
        {
            self.halvings += 1;
            for half in halves {
                self.tasks.push_front(Task::Items { purpose, leaves: vec![(partition, half)], part: true });
            }
        }
    }

    fn note_busy(&mut self, place: (u8, u16), is_only_young: bool) {
        if is_only_young {
            let rounds = self.busy.entry(place).or_default();
            *rounds = rounds.saturating_add(1);
        } else {
            self.busy.remove(&place);
        }
    }

    fn compare_items(
        &mut self,
        now: Now,
        Listings { asked, theirs }: Listings,
        board: &mut dyn Agreeing,
        holdings: &mut dyn Holdings,
    ) {
        let ListAsked { purpose, mut leaves, part, look, before } = asked;
        let mut rest = leaves.split_off(theirs.len());
        let mut own: Vec<Vec<Listed>> = Vec::new();
        while own.len() < leaves.len() {
            match holdings.list(&leaves[own.len()..], LISTING_BYTES) {
                Ok(more) if !more.is_empty() => own.extend(more),
                _ => break,
            }
        }
        if own.len() < leaves.len() {
            let mut after = leaves.split_off(own.len());
            after.append(&mut rest);
            self.list_less(purpose, after, part);
        } else if !rest.is_empty() {
            self.tasks.push_front(Task::Items { purpose, leaves: rest, part });
        }
        let theirs = &theirs[..own.len()];
        let (mut wanted, mut given, mut first) = (VecDeque::new(), VecDeque::new(), 0);
        let mut told: BTreeMap<u8, Vec<u16>> = BTreeMap::new();
        for (at, theirs) in theirs.iter().enumerate() {
            let (partition, own) = (leaves[at].0, &own[at]);
            let views = Views {
                is_mine: &|from| self.pair.is_mine(from, partition),
                is_theirs: &|from| self.pair.is_theirs(from, partition),
                is_receiving: &|from| self.pair.is_receiving(from, partition),
                are_receiving: &|from| self.pair.are_receiving(from, partition),
                forgotten: holdings.told().forgotten,
                their_forgotten: self.told.forgotten,
                doubts_itself: self.doubts_itself && self.told.standing == Standing::Whole,
                wall: now.wall,
            };
            let decision = decide(own, theirs, &views);
            wanted.extend(decision.wanted.iter().map(|&place| {
                let hash = theirs[place as usize].hash;
                Wanted { place: first + place, partition, hash }
            }));
            given.extend(decision.given.iter().map(|&place| own[place as usize].key.clone()));
            first += theirs.len() as u32;
            self.young += u64::from(decision.young);
            for &place in &decision.returned {
                let Listed { item, key } = &own[place as usize];
                // Looked at again, in any case.
                self.young += 1;
                let gone = board.returned(self.pair.peer(), (key, partition), item.from, item.version);
                if gone.is_some_and(|gone| holdings.apply(&gone)) {
                    self.repaired += 1;
                }
            }
            self.young += u64::from(part);
            if let Purpose::Equal(from) = purpose {
                self.note_busy((from, partition), decision.is_only_young());
                let settled_long_ago = self.doubts_since.is_none_or(|since| now.micros >= since + YOUNG_MICROS * 2);
                if decision.is_only_young() && !part && leaves[at].1 == leaf_set(true) && settled_long_ago {
                    // All of it was listed, and what differs is younger than any agreement, and than
                    // what this node may lack.
                    board.equal(self.pair.peer(), from, &[(partition, before[at].0)], look, holdings);
                    told.entry(from).or_default().push(partition);
                }
            }
            if part || !decision.is_settled() {
                continue;
            }
            match purpose {
                Purpose::Equal(from) => {
                    let words = decision.harmless.iter().find(|(of, _)| *of == from).map_or(0, |(_, words)| *words);
                    let known = &mut self.harmless(from)[usize::from(partition)];
                    // What is explained now is to be told and agreed on by another look.
                    if std::mem::replace(known, words) != words {
                        self.repaired += 1;
                    }
                }
                Purpose::HandOver(from) => {
                    let (arrivals, root) = before[at];
                    self.handed.insert((from, partition), root);
                    board.equal(self.pair.peer(), from, &[(partition, arrivals)], look, holdings);
                }
            }
        }
        for (from, partitions) in told {
            self.tasks.push_front(Task::Tell { from, partitions });
        }
        if !given.is_empty() {
            self.tasks.push_front(Task::Give(given));
        }
        if !wanted.is_empty() {
            // Before anything else is listed there.
            self.tasks.push_front(Task::Fetch(wanted));
        }
    }

    fn take_in(
        &mut self,
        now: WallTime,
        records: Vec<Option<Record<Bytes>>>,
        mut rest: VecDeque<Wanted>,
        holdings: &mut dyn Holdings,
    ) -> Result<(), String> {
        let mut taken = Vec::with_capacity(records.len());
        for record in records {
            let Some(Wanted { partition, hash, .. }) = rest.pop_front() else { break };
            let Some(record) = record else { continue };
            believe(&record, (partition, hash), now)?;
            self.figures.received += 1;
            self.figures.bytes_received += record.len() as u64;
            taken.push(record);
        }
        let applied = holdings.apply_all(&taken).into_iter().filter(|&applied| applied).count();
        self.repaired += applied as u64;
        // A disk that is full takes nothing more: the next round asks again.
        if applied < taken.len() {
            self.young += 1;
        } else if !rest.is_empty() {
            self.tasks.push_front(Task::Fetch(rest));
        }
        Ok(())
    }
}

/// What was asked to be listed, and what had come late to each partition, and its root, before.
#[derive(Debug)]
struct ListAsked {
    purpose: Purpose,
    leaves: Vec<(u16, LeafSet)>,
    part: bool,
    look: Look,
    before: Vec<(u32, u64)>,
}

/// With what the peer has there.
#[derive(Debug)]
struct Listings {
    asked: ListAsked,
    theirs: Vec<Vec<koltso_model::Item>>,
}

/// Two halves of a set of several leaves.
fn halves(set: &LeafSet) -> Option<[LeafSet; 2]> {
    let has = |leaf: &usize| set[leaf / 64] & (1 << (leaf % 64)) != 0;
    let leaves: Vec<usize> = (0..LEAVES).filter(has).collect();
    let (first, second) = leaves.split_at(leaves.len() / 2);
    let of = |leaves: &[usize]| differing(|leaf| !leaves.contains(&leaf));
    (!first.is_empty()).then(|| [of(first), of(second)])
}

fn bytes_of_record(record: &Record<Bytes>) -> u64 {
    record.len() as u64 + 32
}

/// About how many bytes a request takes on the way.
fn bytes_of_request(request: &ExchangeRequest) -> u64 {
    40 + match request {
        ExchangeRequest::Roots { .. } => 40,
        ExchangeRequest::Leaves { partitions, .. } | ExchangeRequest::Agreed { partitions, .. } => {
            2 * partitions.len() as u64
        }
        ExchangeRequest::Items(leaves) => 34 * leaves.len() as u64,
        ExchangeRequest::Fetch { places, .. } => 4 * places.len() as u64,
        ExchangeRequest::Give(records) => records.iter().map(bytes_of_record).sum(),
    }
}

fn bytes_of_reply(reply: &ExchangeReply) -> u64 {
    40 + match reply {
        ExchangeReply::Roots { roots, .. } => 40 + 8 * roots.len() as u64,
        ExchangeReply::Leaves(bytes) => bytes.len() as u64,
        ExchangeReply::Items(items) => items.iter().map(|items| 15 * items.len() as u64).sum(),
        ExchangeReply::Records(records) => records.iter().flatten().map(bytes_of_record).sum(),
        ExchangeReply::Given(given) => given.len() as u64,
        ExchangeReply::Noted | ExchangeReply::NotReady => 0,
    }
}

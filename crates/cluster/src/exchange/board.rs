//! What a node has agreed on, with whom, and up to when.
//!
//! Two replicas agree on a partition when they were seen with equal roots (or with a difference that
//! is none). From that follow
//!
//! - how far deletes are forgotten: up to the moment up to which all replicas of a partition have
//!   agreed, while nobody holds anything older that could still come (all members say up to where
//!   that is so: [`Told::settled`]);
//! - when a rebuilding node is whole: all its partitions agree with all whole replicas that live,
//!   and these are so many that each quorum that the node was missed in has one of them;
//! - up to when a node has all that it should have ([`Told::agreed`]), which ends the need for repair
//!   that others noted.
//!
//! Owner: one a node, shared by the threads that exchange. Bounds: 12 bytes a partition and peer for
//! each `from` in use; [`RETURNED_MAX`] records that may have been deleted elsewhere.
//!
//! Times are whole seconds of the wall clock that the node goes by. An agreement is worth
//! [`MARGIN_S`] less than its moment: what a replica confirmed is on its disk after that time, in
//! each mode of syncing, and no request is under way for longer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use koltso_model::{Flags, Key, Record, Standing, Told, Version, WallTime};

use super::Holdings;
use crate::placement::{NodeIndex, NodeSet, Topology};
use crate::plan::BATCHES;

/// By how much an agreement is worth less than its moment, in seconds.
pub const MARGIN_S: u32 = 60;
/// Looks of one round are no further apart than this, in seconds.
const ROUND_S: u32 = 30;
/// Records of a node that doubts itself that are remembered as possibly deleted elsewhere; more are
/// found by the next comparison.
pub const RETURNED_MAX: usize = 65_536;

/// The moment at which a comparison began to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// In seconds since the Unix epoch.
    at: u32,
    /// Of the membership then.
    epoch: u64,
}

impl Look {
    pub(super) const fn epoch(self) -> u64 {
        self.epoch
    }
}

/// When a partition was last seen to be equal with a peer.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// In seconds since the Unix epoch; 0 for never.
    at: u32,
    /// How many records had come late by then.
    arrivals: u32,
    /// Up to when nothing could come any more by then that the peer had not, in seconds; 0 for never.
    settled: u32,
    /// The epoch of the membership of both then, as far as it fits.
    epoch: u32,
}

fn epoch_of(epoch: u64) -> u32 {
    u32::try_from(epoch).unwrap_or(u32::MAX)
}

#[derive(Clone, Copy, Debug, Default)]
struct Member {
    told: Option<Told>,
    /// It told so by a membership with this epoch, or a later one.
    epoch: u64,
    lives: bool,
}

/// A record that may have been deleted elsewhere.
#[derive(Debug)]
struct Returned {
    partition: u16,
    from: u8,
    version: Version,
    /// Who lacks it, a bit a node.
    lacking: u64,
}

/// How far a node is with becoming whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Partitions, of all `from`s, that are compared.
    pub done: u32,
    /// Of so many.
    pub all: u32,
    /// Enough whole members live for it to end.
    pub possible: bool,
}

impl Progress {
    /// Whether nothing is left.
    #[must_use]
    pub const fn is_done(self) -> bool {
        self.possible && self.done == self.all
    }
}

/// The agreements; see the module.
#[derive(Debug)]
pub struct Board {
    topology: Arc<Topology>,
    members: Vec<Member>,
    /// By `from`: `seen[partition * nodes + node]`.
    seen: BTreeMap<u8, Box<[Seen]>>,
    returned: HashMap<Bytes, Returned>,
    /// Since when this node is not whole, if it is not, in seconds.
    doubts_since: Option<u32>,
}

fn seconds(wall: WallTime) -> u32 {
    u32::try_from(wall.ms() / 1000).unwrap_or(u32::MAX)
}

const fn clock_of(seconds: u32) -> u64 {
    WallTime::from_ms(seconds as u64 * 1000).0
}

/// The clock up to which writes are settled by themselves: no request of theirs is under way.
#[must_use]
pub fn settled(now: WallTime) -> u64 {
    clock_of(seconds(now).saturating_sub(MARGIN_S))
}

/// Until when a node that said this had lived at least, in ms since the Unix epoch, by its own clock.
#[must_use]
pub fn lived_ms(told: &Told) -> u64 {
    WallTime(told.settled).ms() + u64::from(MARGIN_S) * 1000
}

/// The `from`s of a set.
pub(super) fn all_of(set: u64) -> impl Iterator<Item = u8> {
    (1..=64_u8).filter(move |from| set & (1 << (from - 1)) != 0)
}

/// Those of which there are several replicas.
fn froms_of(set: u64) -> impl Iterator<Item = u8> {
    all_of(set).filter(|&from| from > 1)
}

impl Board {
    /// Nothing is agreed yet.
    #[must_use]
    pub fn new(topology: Arc<Topology>) -> Self {
        let members = vec![Member::default(); topology.places()];
        Self { topology, members, seen: BTreeMap::new(), returned: HashMap::new(), doubts_since: None }
    }

    /// The topology that it goes by.
    #[must_use]
    pub const fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    /// The members have changed, or what they hold. What was agreed with a node before it became a replica
    /// of something says nothing of that.
    pub fn adopt(&mut self, topology: Arc<Topology>) {
        let before = std::mem::replace(&mut self.topology, topology);
        let (places, partitions) = (self.topology.places().max(self.members.len()), self.topology.partitions());
        for seen in self.seen.values_mut() {
            let mut larger = vec![Seen::default(); places * partitions];
            let rows = larger.chunks_exact_mut(places).zip(seen.chunks_exact(self.members.len()));
            rows.for_each(|(to, from)| to[..from.len()].copy_from_slice(from));
            *seen = larger.into();
        }
        self.members.resize(places, Member::default());
        let others = before.peers().filter(|&node| self.topology.by_number(before.number(node)) != Some(node));
        let gone: NodeSet = others.collect();
        gone.iter().for_each(|node| self.members[node.at()] = Member::default());
        let me = self.topology.me();
        for (&from, seen) in &mut self.seen {
            for (partition, row) in seen.chunks_exact_mut(places).enumerate() {
                let were = before.replicas_of(partition, from).without(gone);
                let new = self.topology.replicas_of(partition, from).without(were);
                let forgotten = if new.contains(me) { NodeSet(u64::MAX) } else { new.and(gone) };
                let nodes = row.iter_mut().zip((0..).map(NodeIndex));
                nodes.filter(|&(_, node)| forgotten.contains(node)).for_each(|(seen, _)| *seen = Seen::default());
            }
        }
    }

    /// This node's data stands so from now on. What was agreed before a doubt counts no more for
    /// becoming whole.
    pub fn stands(&mut self, standing: Standing, now: WallTime) {
        match standing {
            Standing::Whole if self.doubts_since.is_none() => {}
            Standing::Whole => {
                self.doubts_since = None;
                self.returned.clear();
            }
            _ => self.doubts_since = self.doubts_since.or(Some(seconds(now))),
        }
    }

    /// This node's data is to be doubted from now on, whatever was agreed before.
    pub fn doubts(&mut self, now: WallTime) {
        self.doubts_since = Some(seconds(now));
        self.seen.clear();
    }

    /// A peer lives, and says this of itself, by a membership with this epoch or a later one.
    pub fn heard(&mut self, peer: NodeIndex, told: Told, epoch: u64) {
        let member = &mut self.members[peer.at()];
        *member = Member { told: Some(told), epoch: epoch.max(member.epoch), lives: true };
    }

    /// There is no connection to a peer.
    pub fn lost(&mut self, peer: NodeIndex) {
        self.members[peer.at()].lives = false;
    }

    /// What a peer last said of itself.
    #[must_use]
    pub fn told(&self, peer: NodeIndex) -> Option<Told> {
        self.members[peer.at()].told
    }

    /// A comparison begins to look at roots.
    pub fn look(&self, now: WallTime, holdings: &mut dyn Holdings) -> Look {
        let look = Look { at: seconds(now), epoch: self.topology.epoch() };
        holdings.looks_up_to(clock_of(look.at.saturating_sub(MARGIN_S)));
        look
    }

    /// Partitions were equal with a peer's since `look`; of the records of each so many had come late
    /// before it was read. (For those that are not this node's: the peer has all that this node has.)
    pub fn equal(
        &mut self,
        peer: NodeIndex,
        from: u8,
        partitions: &[(u16, u32)],
        look: Look,
        holdings: &mut dyn Holdings,
    ) {
        if partitions.is_empty() {
            return;
        }
        let settled = self.settled().min(holdings.told().settled);
        let nodes = self.members.len();
        let places = self.topology.partitions() * nodes;
        let seen = self.seen.entry(from).or_insert_with(|| vec![Seen::default(); places].into());
        let by_then = look.at.saturating_sub(MARGIN_S).min(seconds(WallTime(settled)));
        for &(partition, arrivals) in partitions {
            let seen = &mut seen[usize::from(partition) * nodes + peer.at()];
            *seen = Seen { at: look.at, arrivals, settled: by_then, epoch: epoch_of(look.epoch) };
        }
        let wider = self.wider(from, holdings.told().froms);
        for &(partition, arrivals) in partitions {
            let of_partition = &self.seen[&from][usize::from(partition) * nodes..][..nodes];
            let mut others = self.beside_me(from, usize::from(partition)).iter();
            if others.any(|node| of_partition[node.at()].arrivals != arrivals) {
                continue;
            }
            let (oldest, of_wider) = (self.oldest(from, partition), self.settled_by(&wider, partition));
            if oldest > 0 && of_wider > 0 {
                let clock = clock_of(oldest.saturating_sub(MARGIN_S).min(of_wider)).min(settled);
                holdings.agreed(from, partition, arrivals, clock);
            }
        }
    }

    /// The `from`s in use that are wider than this one. A delete with few replicas can be that of a
    /// value with more: it is forgotten when all of those agree, too, so that none has the value.
    fn wider(&self, from: u8, own: u64) -> Vec<u8> {
        self.froms(own).filter(|&wider| wider > from).collect()
    }

    /// When the replica that was seen least lately was equal; 0 if one never was.
    fn oldest(&self, from: u8, partition: u16) -> u32 {
        let others = self.beside_me(from, usize::from(partition)).iter();
        others.map(|node| self.at(from, usize::from(partition), node)).min().unwrap_or(u32::MAX)
    }

    /// Up to when nothing of wider `from`s that this node is a replica of can come any more, in seconds,
    /// 0 if that is not known. (A delete that it only has for others keeps such a value away, too.) What
    /// counts is what was settled when they were seen to be equal: a value that came to one of their
    /// other replicas since, as a hint, meets no delete there.
    fn settled_by(&self, wider: &[u8], partition: u16) -> u32 {
        let seen = |from: u8| {
            let others = self.others(from, usize::from(partition)).into_iter().flat_map(NodeSet::iter);
            others.map(move |node| self.seen_with(from, usize::from(partition), node).settled)
        };
        wider.iter().flat_map(|&from| seen(from)).min().unwrap_or(u32::MAX)
    }

    /// Of records with one replica, which is this node, only those count that may still come after
    /// `look`.
    pub fn equal_with_itself(&self, look: Look, holdings: &mut dyn Holdings) {
        let told = holdings.told();
        if told.froms & 1 == 0 {
            return;
        }
        let settled = self.settled().min(told.settled);
        let wider = self.wider(1, told.froms);
        for partition in 0..self.topology.partitions() as u16 {
            if self.topology.replicas_of(usize::from(partition), 1) == NodeSet::default().with(self.topology.me()) {
                let at = look.at.saturating_sub(MARGIN_S).min(self.settled_by(&wider, partition));
                let clock = clock_of(at).min(settled);
                let arrivals = holdings.arrivals(1, partition);
                holdings.agreed(1, partition, arrivals, clock);
            }
        }
    }

    /// Up to where no other member holds anything that may still come.
    fn settled(&self) -> u64 {
        let settled = |peer: NodeIndex| self.told(peer).map_or(0, |told| told.settled);
        self.topology.peers().map(settled).min().unwrap_or(u64::MAX)
    }

    /// The `from`s in use here or at any peer, of which there are several replicas. Each pair compares
    /// all of them, so that it is known of each.
    fn froms(&self, own: u64) -> impl Iterator<Item = u8> + use<> {
        froms_of(self.in_use(own))
    }

    /// The `from`s in use here, `own`, or at any peer, as in [`Told::froms`]. Where none has several
    /// replicas, the widest, so that something is compared and agreed on.
    #[must_use]
    pub fn in_use(&self, own: u64) -> u64 {
        let heard = self.members.iter().filter_map(|member| member.told);
        let all = heard.fold(own, |all, told| all | told.froms);
        if all > 1 { all } else { all | self.widest() }
    }

    fn widest(&self) -> u64 {
        1 << (self.topology.replicas_max().clamp(1, 64) - 1)
    }

    fn at(&self, from: u8, partition: usize, node: NodeIndex) -> u32 {
        self.seen_with(from, partition, node).at
    }

    fn seen_with(&self, from: u8, partition: usize, node: NodeIndex) -> Seen {
        let place = partition * self.members.len() + node.at();
        self.seen.get(&from).map_or(Seen::default(), |seen| seen[place])
    }

    fn not_me(&self, nodes: NodeSet) -> NodeSet {
        nodes.without(NodeSet::default().with(self.topology.me()))
    }

    /// The replicas of a partition, but this node.
    fn beside_me(&self, from: u8, partition: usize) -> NodeSet {
        self.not_me(self.topology.replicas_of(partition, from))
    }

    /// The replicas of a partition beside this node, if this is one.
    fn others(&self, from: u8, partition: usize) -> Option<NodeSet> {
        let is_here = self.topology.replicas_of(partition, from).contains(self.topology.me());
        is_here.then(|| self.beside_me(from, partition))
    }

    /// Those of whom it is known that they have what was confirmed, unless they rebuild; if this node is a
    /// replica.
    fn sources(&self, from: u8, partition: usize) -> Option<NodeSet> {
        let is_here = self.topology.replicas_of(partition, from).contains(self.topology.me());
        is_here.then(|| self.topology.sources_of(partition, from))
    }

    fn is_whole(&self, node: NodeIndex) -> bool {
        self.told(node).is_some_and(|told| told.standing == Standing::Whole)
    }

    /// How many of these replicas, of which this node may be one, have to be met so that no quorum without
    /// this node is missed.
    const fn needed(of: NodeSet) -> usize {
        of.len() - of.len() / 2
    }

    /// How far this node is with becoming whole; `own_froms` as in [`Told`].
    #[must_use]
    pub fn progress(&self, own_froms: u64) -> Progress {
        let since = self.doubts_since.unwrap_or(0);
        let mut progress = Progress { possible: true, ..Progress::default() };
        // A cluster in which nothing was written yet has no `from` in use.
        for from in self.froms(own_froms | self.widest()) {
            for partition in 0..self.topology.partitions() {
                let Some(sources) = self.sources(from, partition) else { continue };
                let (others, needed) = (self.not_me(sources), Self::needed(sources));
                progress.all += 1;
                let (mut whole, mut met, mut missing) = (0, 0, 0);
                for node in others.iter().filter(|&node| self.is_whole(node)) {
                    let is_met = self.at(from, partition, node) >= since.max(1);
                    whole += usize::from(is_met || self.members[node.at()].lives);
                    met += usize::from(is_met);
                    missing += usize::from(!is_met && self.members[node.at()].lives);
                }
                progress.done += u32::from(missing == 0 && met >= needed);
                progress.possible &= whole >= needed;
            }
        }
        progress
    }

    /// Whether this node has, of what it is on the way to in a batch of partitions, all that was confirmed
    /// to the present replicas before the batch's stage began. From then on those refuse what has
    /// other replicas in mind.
    ///
    /// That is so where this node was equal with enough of them since then, or where they said since then
    /// that they have never had a record with that number of replicas.
    #[must_use]
    pub fn has_received(&self, batch: usize, own_froms: u64) -> bool {
        let (me, in_use) = (self.topology.me(), self.in_use(own_froms));
        let froms = || (1..=64_u8).filter(|&from| self.topology.is_narrow(from) || in_use & (1 << (from - 1)) != 0);
        (batch..self.topology.partitions()).step_by(BATCHES).all(|partition| {
            let Some(since) = self.topology.moves_since(partition) else { return true };
            froms().all(|from| {
                let sources = self.topology.sources_of(partition, from);
                if sources.contains(me) || !self.topology.replicas_of(partition, from).contains(me) {
                    return true;
                }
                let has_none = |node: NodeIndex| {
                    let Member { told, epoch, .. } = self.members[node.at()];
                    epoch >= since && told.is_some_and(|told| told.froms & (1 << (from - 1)) == 0)
                };
                let is_met = |&node: &NodeIndex| {
                    let is_equal = self.seen_with(from, partition, node).epoch >= epoch_of(since);
                    self.is_whole(node) && (is_equal || has_none(node))
                };
                sources.iter().filter(is_met).count() >= Self::needed(sources)
            })
        })
    }

    /// Of the partitions that this node shares with a peer, each counted for every `from` in use, so
    /// many were equal when they were looked at last (since this node doubts itself, if it does), of
    /// how many.
    #[must_use]
    pub fn equal_with(&self, peer: NodeIndex, own_froms: u64) -> (u64, u64) {
        let since = self.doubts_since.unwrap_or(0).max(1);
        let (mut equal, mut all) = (0, 0);
        for from in self.froms(own_froms) {
            let at = |partition| self.at(from, partition, peer);
            let last = (0..self.topology.partitions()).map(at).max().unwrap_or(0);
            for partition in 0..self.topology.partitions() {
                if self.others(from, partition).is_some_and(|others| others.contains(peer)) {
                    all += 1;
                    equal += u64::from(at(partition) >= since && at(partition) + ROUND_S >= last);
                }
            }
        }
        (equal, all)
    }

    /// Up to when this node has agreed with all living replicas on all that is its own, as a clock;
    /// see [`Told::agreed`]. Where nothing is, it has it all.
    #[must_use]
    pub fn agreed(&self, own_froms: u64) -> u64 {
        let (mut oldest, mut is_replica) = (None, false);
        for from in self.froms(own_froms) {
            for partition in 0..self.topology.partitions() {
                for node in self.others(from, partition).into_iter().flat_map(NodeSet::iter) {
                    is_replica = true;
                    if self.members[node.at()].lives {
                        let at = self.at(from, partition, node);
                        oldest = Some(oldest.map_or(at, |oldest: u32| oldest.min(at)));
                    }
                }
            }
        }
        if is_replica { oldest.map_or(0, clock_of) } else { u64::MAX }
    }

    /// A whole peer lacks a record that this node has and doubts. Where all whole replicas that live
    /// lack it, and these are enough to become whole with, it was deleted while this node had an older
    /// copy of its folder: what is to be written here then, a delete just above it.
    pub fn returned(
        &mut self,
        peer: NodeIndex,
        (key, partition): (&Bytes, u16),
        from: u8,
        version: Version,
    ) -> Option<Record<Bytes>> {
        if self.returned.len() >= RETURNED_MAX && !self.returned.contains_key(key) {
            return None;
        }
        let new = || Returned { partition, from, version, lacking: 0 };
        let entry = self.returned.entry(key.clone()).or_insert_with(new);
        if entry.version != version {
            *entry = new();
        }
        entry.lacking |= 1 << peer.at();
        let (lacking, partition, of) = (entry.lacking, usize::from(entry.partition), entry.from);
        let sources = self.topology.sources_of(partition, of);
        let others = self.not_me(sources);
        let whole = others.iter().filter(|&node| self.is_whole(node));
        let (mut met, mut missing) = (0, 0);
        for node in whole {
            let lacks = lacking & (1 << node.at()) != 0;
            met += usize::from(lacks);
            missing += usize::from(!lacks && self.members[node.at()].lives);
        }
        if missing > 0 || met < Self::needed(sources) {
            return None;
        }
        self.returned.remove(key);
        Some(Record {
            key: Key::new(key.clone()),
            value: Bytes::new(),
            // Above that one and below all later ones; no write of a node has its number.
            version: match version.node {
                u16::MAX => Version { clock: version.clock + 1, ..version },
                _ => Version { node: u16::MAX, ..version },
            },
            expires_at_ms: 0,
            flags: Flags::new(from).tombstone(),
            attributes: Bytes::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Membership;

    #[test]
    fn while_fewer_come_to_hold_data_a_rebuilding_asks_as_many_as_ever() {
        let urls: Vec<String> = (1..=5).map(|node| format!("http://node-{node}:1337")).collect();
        let five = Membership::first(&urls).expect("valid");
        let first = |from| Topology::of_partitions(&five, &urls[0], 1).sources_of(0, from);
        let planned = five.planned(first(3)).expect("valid");
        let me = five.nodes().iter().find(|node| first(1).contains(node.place)).expect("the first replica");
        let mut board = Board::new(Arc::new(Topology::of_partitions(&planned, &me.url, 1)));
        board.stands(Standing::Rebuilding, WallTime::from_ms(1_000_000));
        let mut is_possible_with = |peers: NodeSet| {
            let told = Told { standing: Standing::Whole, ..Told::default() };
            peers.iter().for_each(|peer| board.heard(peer, told, 1));
            board.progress(1 << 4).possible
        };
        let of_both = first(3).without(first(1));
        assert!(!is_possible_with(of_both), "this node and the other two may have confirmed a write");
        assert!(is_possible_with(first(4).without(first(3))));
    }
}

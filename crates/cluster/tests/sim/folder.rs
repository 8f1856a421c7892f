//! What a node's folder says of the node, how its peers meet it, and how it is lost or put back.
//!
//! The rules are [`koltso_cluster::standing`]; here are its files (values that survive a crash), the
//! handshake (both ends judge each other at the moment when a connection is made), and what happens
//! to folders: emptied, or replaced by a copy of an earlier time.

use std::collections::BTreeMap;

use bytes::Bytes;
use koltso_cluster::exchange::board;
use koltso_cluster::standing::{Judged, Memory, News, Process, Remembered};
use koltso_model::{NodeId, Record, Standing, Told};

use super::network::Via;
use super::node::Node;
use super::plan::{Mutation, Plan};
use super::store::SimStore;
use super::world::{SECOND, Work, World};

/// How often a node writes down until when it lived and whom it heard of, and compacts.
const LOOK_EVERY: u64 = 8 * SECOND;
/// A copy that is younger is not told from the folder itself (`OLDER_BY_MS`, and what lies between
/// two times at which it is written down).
const COPY_AGE: u64 = 45 * SECOND;

/// As it is on disk, beside records, hints and the clock's bound.
#[derive(Clone)]
pub struct Folder {
    id: NodeId,
    starts: u32,
    lived_ms: u64,
    standing: (Standing, u64),
    remembered: BTreeMap<u16, Remembered>,
    /// The newest clock of anything that said "absent" and was dropped.
    pub forgotten: u64,
}

/// A copy of a folder.
pub struct Copy {
    at: u64,
    folder: Folder,
    store: SimStore,
    hints: Vec<Vec<Record<Bytes>>>,
    bound: u64,
}

impl Folder {
    /// One that was just made, with an identity that no other has.
    pub fn made(id: u64, now_ms: u64) -> Self {
        Self {
            id: NodeId(u128::from(now_ms) << NodeId::RANDOM_BITS | u128::from(id)),
            starts: 0,
            lived_ms: 0,
            standing: (Standing::New, 0),
            remembered: BTreeMap::new(),
            forgotten: 0,
        }
    }

    /// A process starts on it. (Without exchange nobody asks who a node is, and it is whole.)
    pub fn started(&mut self, plan: &Plan, me: usize, run: u64, now_ms: u64) -> (Process, Memory) {
        self.starts += 1;
        let Self { id, starts, lived_ms, .. } = *self;
        // The clock's file is written before anything is served.
        self.lived_ms = now_ms;
        let others = (0..plan.nodes).filter(|&node| plan.exchanges && node != me).map(|node| node as u16);
        let memory = Memory::new(id, self.standing, others.collect(), self.remembered.clone());
        (Process { id, starts, lived_ms, run }, memory)
    }
}

impl World {
    /// A process starts on a node's folder.
    pub fn start_process(&mut self, node: usize) {
        let run = self.random.next();
        let now_ms = self.clocks(node).wall.ms();
        let (process, memory) = self.nodes[node].folder.started(&self.plan, node, run, now_ms);
        (self.nodes[node].process, self.nodes[node].memory) = (process, memory);
        if self.plan.exchanges {
            self.start_exchange(node);
            let at = self.now + self.random.below(LOOK_EVERY);
            self.on(node, at, Work::LookAfter);
        }
    }

    pub fn is_whole(&self, node: usize) -> bool {
        self.nodes[node].memory.standing() == Standing::Whole
    }

    /// Both ends of a connection tell each other who they are. Whether it stands.
    pub fn meet(&mut self, via: Via) -> bool {
        let (one, other) = (via.asker, via.peer);
        let judged = |judging: usize, of: usize| {
            let process = self.nodes[of].process;
            self.nodes[judging].memory.judge(of as u16, &process)
        };
        let (of_other, of_one) = (judged(one, other), judged(other, one));
        if [of_one, of_other].contains(&Judged::TwoPlaces) {
            self.fail("one folder, one place", None, format!("{one} and {other}"));
            return false;
        }
        // Each says until when it had heard of the other: before either has taken anything in.
        let heard_ms = [(one, other), (other, one)].map(|(by, of)| self.nodes[by].memory.heard_ms(of as u16));
        for (node, peer, judged) in [(one, other, of_one), (other, one, of_other)] {
            let doubts = judged == Judged::Changed && self.plan.mutation != Mutation::IgnoresDoubts;
            let doubt = doubts.then_some(heard_ms[usize::from(node == one)]);
            let (process, now_ms) = (self.nodes[peer].process, self.clocks(node).wall.ms());
            let news = self.nodes[node].memory.met(peer as u16, process, doubt, now_ms);
            self.noted(node, news);
        }
        true
    }

    /// A peer has told how its data stands.
    pub fn standing_told(&mut self, node: usize, peer: usize, told: &Told) {
        let (process, now_ms) = (self.nodes[peer].process, self.clocks(node).wall.ms());
        let lived_ms = board::lived_ms(told).min(now_ms);
        let news = self.nodes[node].memory.told(peer as u16, process, told.standing, lived_ms);
        self.noted(node, news);
    }

    fn noted(&mut self, node: usize, news: News) {
        if news == News::None {
            return;
        }
        let standing = self.nodes[node].memory.standing();
        let began = news == News::Standing && standing == Standing::Rebuilding;
        if news == News::Standing {
            self.say(None, || format!("{node} is {standing:?}"));
            self.note(11 ^ (node as u64) << 8 ^ (standing as u64) << 16);
            self.stands(node, standing);
            self.undoubted = self.undoubted.filter(|&undoubted| undoubted != node);
            if standing == Standing::Whole {
                self.stats.rebuilt += 1;
                self.lacking = self.lacking.filter(|&lacking| lacking != node);
            }
        }
        if began {
            // They may be of the past, as its records: what they would bring can be deleted by now.
            self.lose_hints(node);
        }
        self.write_down(node);
    }

    fn write_down(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        node.folder.standing = node.memory.kept();
        node.folder.remembered = node.memory.remembered().collect();
    }

    /// What a node does every few seconds.
    pub fn look_after(&mut self, node: usize) {
        let at = self.now + LOOK_EVERY / 2 + self.random.below(LOOK_EVERY / 2);
        self.on(node, at, Work::LookAfter);
        let now_ms = self.clocks(node).wall.ms();
        self.nodes[node].folder.lived_ms = now_ms;
        self.write_down(node);
        self.compact(node);
        if !self.is_whole(node) && self.may_be_whole(node) {
            let news = self.nodes[node].memory.became_whole();
            self.noted(node, news);
        }
        self.note_agreed(node);
        let is_old = self.nodes[node].copy.is_none() || self.random.one_in(6_u64);
        if is_old && self.random.one_in(3_u64) {
            let copy = self.copy(node);
            self.nodes[node].copy = Some(Box::new(copy));
        }
    }

    fn copy(&self, node: usize) -> Copy {
        let Node { folder, store, hints, .. } = &self.nodes[node];
        let hints = hints.iter().map(|hints| hints.appended()).collect();
        Copy { at: self.now, folder: folder.clone(), store: store.copy(), hints, bound: self.nodes[node].bound }
    }

    /// Whether all nodes have what they confirmed, and know it of each other: no more is promised
    /// than that one node at a time is emptied or put back.
    pub fn all_whole(&self) -> bool {
        let known = |node: usize| {
            self.peers(node).all(|peer| {
                let process = self.nodes[peer].process;
                self.nodes[node].memory.judge(peer as u16, &process) == Judged::Known
            })
        };
        let damaged = self.keys.iter().any(|key| self.nodes.iter().any(|node| node.store.is_damaged(key)));
        !damaged && self.lacking.is_none() && (0..self.plan.nodes).all(|node| self.is_whole(node) && known(node))
    }

    /// Whether a copy of a node's folder is there that it can be told from.
    pub fn has_copy(&self, node: usize) -> bool {
        self.nodes[node].copy.as_ref().is_some_and(|copy| copy.at + COPY_AGE < self.now)
    }

    /// A node that is down loses its folder. What it alone had confirmed is promised no more.
    pub fn empty_folder(&mut self, node: usize) {
        let (id, now_ms, plan) = (self.random.next(), self.clocks(node).wall.ms(), self.plan.clone());
        let empty = Folder::made(id, now_ms);
        let gone = &mut self.nodes[node];
        gone.folder = empty;
        gone.store = SimStore::new(plan.storage);
        gone.bound = 0;
        self.lose_hints(node);
        self.lacks(node);
    }

    /// A node that is down gets an earlier copy of its folder.
    pub fn put_back(&mut self, node: usize) {
        let Some(copy) = self.nodes[node].copy.take() else { return };
        let back = &mut self.nodes[node];
        (back.folder, back.store, back.bound) = (copy.folder, copy.store, copy.bound);
        for (hints, records) in back.hints.iter_mut().zip(copy.hints) {
            hints.put_back(records);
        }
        self.undoubted = Some(node);
        self.lacks(node);
    }

    fn lacks(&mut self, node: usize) {
        self.lacking = Some(node);
        // A copy from before that would remember the node as it was, and doubt it as it is.
        for other in &mut self.nodes {
            other.copy = None;
        }
        self.nodes[node].given = 0;
        for key in 0..self.plan.keys {
            let ranked = self.ranked[key].clone();
            let second_lost = ranked.get(1).is_some_and(|&second| self.nodes[second].lost_once);
            self.history.weaken(key, second_lost, |from| ranked[..from].contains(&node));
        }
        self.nodes[node].lost_once = true;
    }
}

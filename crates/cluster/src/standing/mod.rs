//! How a node's data stands to what it once confirmed, and whom it remembers: the rules by which a
//! folder that is empty, older than it should be, or at two places is told from the right one.
//!
//! ```text
//!         a majority was met, and nobody doubts        compared with enough others
//!   New ───────────────────────────────────▶ Whole ◀───────────────────────── Rebuilding
//!    │                                         │                                   ▲
//!    └──────────────── a member says: you are not whom I remember ─────────────────┘
//! ```
//!
//! Each member remembers of each other one the last process that it knew there: the identity of its
//! folder, how often that was started, until when the folder had lived before that start, and until
//! when the process was heard of. Two nodes that meet tell each other what they are; each judges
//! the other ([`Memory::judge`]) and is told how it was judged. A process that is not believed stays
//! forgotten until it says that it is whole ([`Memory::told`]).
//!
//! Owner: one for a node, behind a lock. Bounds: one entry a member. Invariants:
//! 1. A node that was doubted is not whole before [`Memory::became_whole`].
//! 2. What is remembered of a member is replaced only by a process that the memory itself believes,
//!    or by one that says it is whole after it was told of the doubt.
//! 3. A memory that is itself older than what it judges moves nobody: see [`Memory::met`].
//!
//! Deliberately absent: I/O and clocks, as everywhere in this crate; and what "compared with enough
//! others" is, which the exchange decides. Tested in `tests.rs` here, over orders of arrivals,
//! emptied folders and old copies.

use std::collections::{BTreeMap, BTreeSet};

use koltso_model::{NodeId, Standing};

/// A folder whose clock file is so much older than the time at which its node was heard of last is
/// an older copy. A power loss takes back what the clock's file and the memories of the others have
/// of the last seconds; they are synced every ten.
pub const OLDER_BY_MS: u64 = 30_000;

/// With how many other whole nodes one of so many must be compared to become whole: any majority that
/// is met without it has one of these.
#[must_use]
pub const fn whole_needed(nodes: usize) -> usize {
    nodes - (nodes / 2 + 1) + 1
}

/// One life of a node: a process on a data folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// The identity of the folder.
    pub id: NodeId,
    /// How often the folder was started, this time included.
    pub starts: u32,
    /// Until when the folder had lived before this start, in ms since the Unix epoch; 0 for never.
    pub lived_ms: u64,
    /// Drawn at each start, so that two processes on copies of one folder differ.
    pub run: u64,
}

/// What is remembered of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// The last process that was known there.
    pub process: Process,
    /// Until when it was heard of, in ms since the Unix epoch.
    pub heard_ms: u64,
}

/// What a node thinks of one that says who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// It is whom this node remembers, or nobody is remembered in its place.
    Known,
    /// It is not whom this node remembers: another folder, or an older copy of the one that was
    /// known.
    Changed,
    /// Its folder is also this node's own, or that of another member: one identity, two places.
    TwoPlaces,
}

/// What a meeting has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing that has to be kept at once.
    None,
    /// Who is remembered.
    Memory,
    /// This node's standing, which has to be kept before anything is answered.
    Standing,
}

/// When a folder was made: an identity begins with the time.
const fn born_ms(id: NodeId) -> u64 {
    (id.0 >> NodeId::RANDOM_BITS) as u64
}

/// What a node remembers of itself and of the others; see the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Of this node's own folder.
    own: NodeId,
    standing: Standing,
    /// When the last rebuilding began, which goes on if the standing says so, in ms since the Unix epoch; 0
    /// for never.
    began_ms: u64,
    /// What that was before this node was doubted in this life.
    began_before_ms: u64,
    /// The numbers of the other members.
    members: Vec<u16>,
    remembered: BTreeMap<u16, Remembered>,
    /// What the members that were met in this life said last.
    met: BTreeMap<u16, Process>,
    /// Who doubts this node, if it was whole until it was doubted in this life.
    doubters: BTreeSet<u16>,
}

impl Memory {
    /// The memory of a folder: its identity, its standing with the time at which the last rebuilding began
    /// (0 for never), and whom it remembers. `members` are the numbers of the other members; what is
    /// remembered of nodes that are none any more is forgotten.
    #[must_use]
    pub fn new(
        own: NodeId,
        (standing, began_ms): (Standing, u64),
        members: Vec<u16>,
        mut remembered: BTreeMap<u16, Remembered>,
    ) -> Self {
        remembered.retain(|number, _| members.contains(number));
        let standing = if members.is_empty() && standing == Standing::New { Standing::Whole } else { standing };
        let (began_before_ms, met, doubters) = (began_ms, BTreeMap::new(), BTreeSet::new());
        Self { own, standing, began_ms, began_before_ms, members, remembered, met, doubters }
    }

    /// The numbers of the other members are these from now on. What is remembered of nodes that are none any
    /// more is forgotten. A doubt of theirs stands: nobody else can take it back.
    pub fn members_are(&mut self, members: Vec<u16>) {
        self.remembered.retain(|number, _| members.contains(number));
        self.met.retain(|number, _| members.contains(number));
        self.members = members;
    }

    /// How this node's data stands.
    #[must_use]
    pub const fn standing(&self) -> Standing {
        self.standing
    }

    /// Since when this node is rebuilding, in ms since the Unix epoch; 0 unless it is.
    #[must_use]
    pub fn since_ms(&self) -> u64 {
        if self.standing == Standing::Rebuilding { self.began_ms } else { 0 }
    }

    /// What the folder has to keep of the standing, for [`Memory::new`].
    #[must_use]
    pub const fn kept(&self) -> (Standing, u64) {
        (self.standing, self.began_ms)
    }

    /// What is remembered of the members, by their numbers.
    pub fn remembered(&self) -> impl Iterator<Item = (u16, Remembered)> + '_ {
        self.remembered.iter().map(|(&number, &remembered)| (number, remembered))
    }

    /// What to think of a process that says it is the member with this number.
    #[must_use]
    pub fn judge(&self, number: u16, process: &Process) -> Judged {
        let elsewhere = self.remembered.iter().any(|(&other, known)| other != number && known.process.id == process.id);
        if process.id == self.own || elsewhere {
            return Judged::TwoPlaces;
        }
        let Some(Remembered { process: known, heard_ms }) = self.remembered.get(&number) else {
            return Judged::Known;
        };
        if process == known {
            return Judged::Known;
        }
        // On a full disk the number of starts cannot be written: then the same number comes again,
        // from a folder that has lived on.
        let is_later =
            process.starts > known.starts || (process.starts == known.starts && process.lived_ms > known.lived_ms);
        let lived_on = process.lived_ms.saturating_add(OLDER_BY_MS) >= *heard_ms;
        if process.id == known.id && is_later && lived_on { Judged::Known } else { Judged::Changed }
    }

    /// Until when the process was heard of that is remembered as a member; 0 if none is.
    #[must_use]
    pub fn heard_ms(&self, number: u16) -> u64 {
        self.remembered.get(&number).map_or(0, |known| known.heard_ms)
    }

    /// A handshake with a member is complete. `doubt`: it said that this node is not whom it remembers, and
    /// until when it had heard of that one, in ms since the Unix epoch.
    ///
    /// That counts for nothing where this node knows that the other is an older copy, of its folder or
    /// of the one before: it remembers this node as it was then, perhaps before its disk was replaced.
    /// If each thinks so of the other, the one that heard of the other later is right: the other one's
    /// memory is from before that. Nor does it count where the other last heard of whom it remembers before
    /// this node began to rebuild, and that is done: it has what that one had confirmed.
    pub fn met(&mut self, number: u16, process: Process, doubt: Option<u64>, now_ms: u64) -> News {
        let judged = self.judge(number, &process);
        if judged == Judged::TwoPlaces || !self.members.contains(&number) {
            return News::None;
        }
        self.met.insert(number, process);
        let known = self.remembered.get(&number).map(|known| known.process);
        let is_before = |known: Process| known.id == process.id || born_ms(process.id) < born_ms(known.id);
        let is_outdated = judged == Judged::Changed
            && known.is_some_and(is_before)
            && doubt.is_none_or(|heard_ms| heard_ms <= self.heard_ms(number));
        if judged == Judged::Known {
            self.remembered.insert(number, Remembered { process, heard_ms: now_ms });
        }
        // (A rebuilding that began by a clock that was ahead answers nothing.)
        let has_rebuilt = self.standing == Standing::Whole && self.began_ms <= now_ms;
        let is_answered = has_rebuilt && doubt.is_some_and(|heard_ms| heard_ms < self.began_ms);
        if doubt.is_some() && !is_outdated && !is_answered {
            return self.doubted(number, now_ms);
        }
        // This node and those that it has met.
        let nodes = self.members.len() + 1;
        if self.standing == Standing::New && self.met.len() + 1 > nodes / 2 {
            self.standing = Standing::Whole;
            return News::Standing;
        }
        if judged == Judged::Known && known != Some(process) { News::Memory } else { News::None }
    }

    fn doubted(&mut self, by: u16, now_ms: u64) -> News {
        let was_whole = self.standing == Standing::Whole || !self.doubters.is_empty();
        if was_whole {
            self.doubters.insert(by);
        }
        if self.standing == Standing::Rebuilding {
            return News::None;
        }
        (self.standing, self.began_ms) = (Standing::Rebuilding, now_ms);
        News::Standing
    }

    /// The last process that was met as this member has lived until then, in ms since the Unix epoch: by what
    /// it said of its own clock. (What it said may have waited for this node for as long as that was paused.)
    pub fn heard(&mut self, number: u16, lived_ms: u64) {
        if let Some(known) = self.remembered.get_mut(&number)
            && self.met.get(&number) == Some(&known.process)
        {
            // A clock that was wrong and is set back counts, too: the others' go back with it.
            known.heard_ms = lived_ms;
        }
    }

    /// A member has told how its data stands, as this process, which has lived until `lived_ms` by that. Whoever is whole
    /// is remembered from then on, whoever was there before. Whoever is not may remember this node as it
    /// was before it was replaced: when nobody else doubts it, this node is whole again.
    pub fn told(&mut self, number: u16, process: Process, standing: Standing, lived_ms: u64) -> News {
        let is_last = self.met.get(&number) == Some(&process);
        if is_last {
            let known = self.remembered.get(&number).map_or(0, |known| known.heard_ms);
            self.heard(number, lived_ms.max(known));
        }
        if standing != Standing::Whole && is_last && self.doubters.remove(&number) && self.doubters.is_empty() {
            (self.standing, self.began_ms) = (Standing::Whole, self.began_before_ms);
            return News::Standing;
        }
        let known = self.remembered.get(&number).map(|known| known.process);
        if standing != Standing::Whole || !is_last || known == Some(process) {
            return News::None;
        }
        self.remembered.insert(number, Remembered { process, heard_ms: lived_ms });
        News::Memory
    }

    /// All that this node keeps was compared with enough others, and is equal.
    pub fn became_whole(&mut self) -> News {
        if self.standing == Standing::Whole {
            return News::None;
        }
        (self.standing, self.began_before_ms) = (Standing::Whole, self.began_ms);
        self.doubters.clear();
        News::Standing
    }
}

#[cfg(test)]
mod tests;

//! How replicas find out that they differ, and become equal again, without any read.
//!
//! ```text
//!   asker                                   answerer
//!     Roots(from) ──────────────────────────▶  8 bytes a partition, twice with a pause between
//!     Leaves ───────────────────────────────▶  a byte of each leaf, where roots differ
//!     Items ────────────────────────────────▶  the versions of the keys, where leaves differ
//!     Fetch ────────────────────────────────▶  records that the asker lacks
//!     Give(records) ────────────────────────▶  records that the answerer lacks
//!     Agreed(partitions) ───────────────────▶  what both have the same in
//! ```
//!
//! Of two nodes one asks: the one whose data is not whole, else the one with the lower number. It
//! repairs both. Newest wins; a record goes to the replicas of its own `from`, and to whoever has an
//! older version of its key. What a node has without being a replica of it ("strays": the `from` of
//! a key has changed, members have) it hands to those who are, also as the one that usually answers.
//!
//! Not every difference is one: what says "absent" is forgotten by each replica at its own time.
//! What the items of a partition explain of the difference of its roots is remembered, and is none
//! until it changes.
//!
//! - [`comparison`]: the asker's machine for one peer; [`answering`]: the other side.
//! - [`decision`]: who lacks what, of the items of one partition.
//! - [`board`]: what a node has agreed on with whom: when deletes are forgotten, when a rebuilding
//!   node is whole.
//! - [`pair`]: which partitions two nodes share.
//!
//! The program runs it on threads with blocking connections (`src/member/repair/`), the simulator
//! in `tests/sim/`; both through [`Holdings`].

pub mod answering;
pub mod board;
pub mod comparison;
pub mod decision;
pub mod pair;

use bytes::Bytes;
use koltso_model::{Item, LEAVES, LeafSet, Record, Told, Version, WallTime};

use self::board::{Board, Look};
use crate::placement::NodeIndex;

/// The items of more than this many bytes of keys are listed in several steps.
pub const LISTING_BYTES: usize = 4 << 20;
/// About how many bytes of records travel in one message.
pub const CREDIT: u32 = 1 << 20;
/// A version from within this time of now may still be on its way to the other side, in ms.
pub const YOUNG_MS: u64 = 5_000;

/// One key that a listing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// What is compared.
    pub item: Item,
    /// Its key.
    pub key: Bytes,
}

/// The listing cannot be had now: try again in a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotReady;

/// What a node has, for the machines of this module.
pub trait Holdings {
    /// What the node says of itself.
    fn told(&self) -> Told;

    /// The root of a partition's records with this `from`.
    fn root(&self, from: u8, partition: u16) -> u64;

    /// Its leaves.
    fn leaves(&self, from: u8, partition: u16) -> [u64; LEAVES];

    /// How many records came late to this partition: with a version that an agreement may have
    /// covered already. To be read before the root.
    fn arrivals(&self, from: u8, partition: u16) -> u32;

    /// An agreement up to this clock is being looked for: from now on older versions that come are
    /// late.
    fn looks_up_to(&mut self, clock: u64);

    /// All replicas have agreed on the records of this partition up to this clock, unless more than
    /// `arrivals` came late.
    fn agreed(&mut self, from: u8, partition: u16, arrivals: u32, clock: u64);

    /// The newest record of each key in these leaves, deletes included, by partition; of the leading
    /// partitions, at least one, as soon as their keys have more than `bytes_max` bytes.
    ///
    /// # Errors
    /// See [`NotReady`].
    fn list(&mut self, leaves: &[(u16, LeafSet)], bytes_max: usize) -> Result<Vec<Vec<Listed>>, NotReady>;

    /// A key's newest record, deletes and what has expired included; `None` if there is none, or
    /// none that can be read.
    fn newest(&mut self, key: &[u8]) -> Option<Record<Bytes>>;

    /// Takes a record in. Whether it or a newer one is there now.
    fn apply(&mut self, record: &Record<Bytes>) -> bool;

    /// The same of several, which may be put on disk together.
    fn apply_all(&mut self, records: &[Record<Bytes>]) -> Vec<bool> {
        records.iter().map(|record| self.apply(record)).collect()
    }
}

/// Where it is noted what was agreed on: a [`Board`], which a program may share.
pub trait Agreeing {
    /// See [`Board::heard`].
    fn heard(&mut self, peer: NodeIndex, told: Told, epoch: u64);

    /// See [`Board::look`].
    fn look(&mut self, now: WallTime, holdings: &mut dyn Holdings) -> Look;

    /// See [`Board::equal`].
    fn equal(&mut self, peer: NodeIndex, from: u8, partitions: &[(u16, u32)], look: Look, holdings: &mut dyn Holdings);

    /// See [`Board::equal_with_itself`].
    fn equal_with_itself(&mut self, look: Look, holdings: &mut dyn Holdings);

    /// See [`Board::in_use`].
    fn in_use(&mut self, own: u64) -> u64;

    /// See [`Board::returned`].
    fn returned(&mut self, peer: NodeIndex, place: (&Bytes, u16), from: u8, version: Version) -> Option<Record<Bytes>>;
}

impl Agreeing for Board {
    fn heard(&mut self, peer: NodeIndex, told: Told, epoch: u64) {
        Self::heard(self, peer, told, epoch);
    }

    fn look(&mut self, now: WallTime, holdings: &mut dyn Holdings) -> Look {
        Self::look(self, now, holdings)
    }

    fn equal(&mut self, peer: NodeIndex, from: u8, partitions: &[(u16, u32)], look: Look, holdings: &mut dyn Holdings) {
        Self::equal(self, peer, from, partitions, look, holdings);
    }

    fn equal_with_itself(&mut self, look: Look, holdings: &mut dyn Holdings) {
        Self::equal_with_itself(self, look, holdings);
    }

    fn in_use(&mut self, own: u64) -> u64 {
        Self::in_use(self, own)
    }

    fn returned(&mut self, peer: NodeIndex, place: (&Bytes, u16), from: u8, version: Version) -> Option<Record<Bytes>> {
        Self::returned(self, peer, place, from, version)
    }
}

/// All leaves, or none.
#[must_use]
pub const fn leaf_set(all: bool) -> LeafSet {
    [if all { u64::MAX } else { 0 }; LEAVES / 64]
}

/// The leaves in which two differ.
fn differing(same: impl Fn(usize) -> bool) -> LeafSet {
    let mut set = leaf_set(false);
    for leaf in (0..LEAVES).filter(|&leaf| !same(leaf)) {
        set[leaf / 64] |= 1 << (leaf % 64);
    }
    set
}

//! Digests of the newest records, by which replicas find out cheaply whether they have the same.
//!
//! For each `from` that records name there is a tree: 4096 partitions of 256 leaves of 8 bytes. The
//! public hash of a key says which leaf is its own. A leaf is the exclusive or of a word for each
//! record that the index names, made from the record's version. (Equal versions are the same write,
//! so the version says it all; clients cannot choose it.) The root of a partition is the exclusive
//! or of its leaves. Replicas with the same records have the same leaves, whatever the order in
//! which these came, and compaction changes none that does not drop a record.
//!
//! Owner: the index, which changes a leaf under the lock of the key's stripe, whenever it changes
//! what it names; without a lock for readers, so that a tree that is read during writes is one of no
//! moment: compare twice. (All of it is in one order with the horizon of [`crate::Agreements`], which
//! costs nothing on x86-64.) Bounds: 8 MiB a `from` in use, made at its first record and never given
//! back, nothing a key; a write costs two exclusive ors.
//!
//! What it cannot know: an entry that stays beside a damaged record of which not even the key is
//! known keeps its word, until [`crate::digest_check`] comes by.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use koltso_model::{Flags, KeyHash, LEAVES, NODES_MAX, PARTITIONS, Version, digest_word};

const LEAF_BITS: u32 = LEAVES.ilog2();
const PARTITION_BITS: u32 = PARTITIONS.ilog2();
/// Bits of a [`Leaf`].
pub(crate) const PLACE_BITS: u32 = PARTITION_BITS + LEAF_BITS;

/// A leaf among all of a tree: the partition, then the number among those of the partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Leaf(u32);

impl Leaf {
    /// The leaf of a key: the upper bits of its public hash.
    #[inline]
    pub(crate) const fn of(key_hash: KeyHash) -> Self {
        Self((key_hash.0 >> (64 - PLACE_BITS)) as u32)
    }

    /// From [`PLACE_BITS`] bits, as [`Leaf::bits`] gives them.
    #[inline]
    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self(bits & ((1 << PLACE_BITS) - 1))
    }

    #[inline]
    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    #[inline]
    pub(crate) const fn partition(self) -> usize {
        (self.0 >> LEAF_BITS) as usize
    }

    /// Among the leaves of its partition.
    #[inline]
    pub(crate) const fn number(self) -> usize {
        self.0 as usize & (LEAVES - 1)
    }
}

/// What a record adds to a digest, and takes out of it again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Item {
    word: u64,
    leaf: Leaf,
    /// The number of the tree: `from`, less one.
    tree: u8,
}

impl Item {
    #[inline]
    pub(crate) const fn leaf(self) -> Leaf {
        self.leaf
    }

    #[inline]
    pub(crate) const fn from(self) -> u8 {
        self.tree + 1
    }

    #[inline]
    pub(crate) const fn word(self) -> u64 {
        self.word
    }

    #[inline]
    pub(crate) const fn of(leaf: Leaf, version: Version, flags: Flags) -> Self {
        Self { word: digest_word(version), leaf, tree: flags.from() - 1 }
    }
}

/// The leaf of a key's partition that is the key's.
#[must_use]
#[inline]
pub const fn leaf_of(key_hash: KeyHash) -> usize {
    Leaf::of(key_hash).number()
}

/// The leaves of one `from`, partition by partition.
struct Tree(Box<[AtomicU64]>);

impl Tree {
    #[cold]
    #[allow(unsafe_code)]
    fn new() -> Self {
        // As plain numbers it comes from the kernel as zeros, and takes memory where it is used.
        let zeros = vec![0_u64; PARTITIONS * LEAVES].into_boxed_slice();
        // SAFETY: `AtomicU64` has the size, the alignment and the bit validity of `u64`, as its
        // documentation says, and nobody else has the box.
        Self(unsafe { Box::from_raw(Box::into_raw(zeros) as *mut [AtomicU64]) })
    }

    fn partition(&self, partition: usize) -> &[AtomicU64] {
        &self.0[partition * LEAVES..][..LEAVES]
    }
}

/// The digests of a store, see the module.
pub struct Digests {
    trees: [OnceLock<Tree>; NODES_MAX],
}

impl Default for Digests {
    fn default() -> Self {
        Self { trees: [const { OnceLock::new() }; NODES_MAX] }
    }
}

impl Digests {
    /// Has the processor bring in what [`Digests::add`] will change, which is rarely in its caches.
    #[inline]
    #[allow(unsafe_code)]
    pub(crate) fn prefetch(&self, item: Item) {
        #[cfg(target_arch = "x86_64")]
        if let Some(tree) = self.trees[usize::from(item.tree)].get() {
            let leaf = &raw const tree.0[item.leaf.0 as usize];
            // SAFETY: a prefetch reads nothing and does not fault.
            unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(leaf.cast()) };
        }
    }

    /// Adds the item of a record.
    #[inline]
    pub(crate) fn add(&self, item: Item) {
        let tree = self.trees[usize::from(item.tree)].get_or_init(Tree::new);
        tree.0[item.leaf.0 as usize].fetch_xor(item.word, Ordering::SeqCst);
    }

    /// Takes the item of a record out, which is there.
    #[inline]
    pub(crate) fn take_out(&self, item: Item) {
        self.add(item);
    }

    /// Puts an item in the place of another one of the same key.
    #[inline]
    pub(crate) fn replace(&self, old: Item, new: Item) {
        if (old.tree, old.leaf) == (new.tree, new.leaf) {
            self.add(Item { word: old.word ^ new.word, ..new });
        } else {
            self.take_out(old);
            self.add(new);
        }
    }

    /// Changes a leaf by what it was wrong by.
    pub(crate) fn put_right(&self, from: u8, leaf: Leaf, difference: u64) {
        self.add(Item { word: difference, leaf, tree: from - 1 });
    }

    /// The `from`s, 1 to [`NODES_MAX`], that any record has had since the start.
    pub fn in_use(&self) -> impl Iterator<Item = u8> + '_ {
        (1..).zip(&self.trees).filter(|(_, tree)| tree.get().is_some()).map(|(from, _)| from)
    }

    /// The leaves of a partition, of its records with this `from`; `None` where there have been no
    /// such records in any partition, which is as good as zeros.
    ///
    /// # Panics
    /// Unless 1 ≤ `from` ≤ [`NODES_MAX`] and `partition` < [`PARTITIONS`].
    #[must_use]
    pub fn leaves(&self, from: u8, partition: usize) -> Option<[u64; LEAVES]> {
        assert!(partition < PARTITIONS, "there are {PARTITIONS} partitions");
        let leaves = self.trees[usize::from(from) - 1].get()?.partition(partition);
        Some(std::array::from_fn(|leaf| leaves[leaf].load(Ordering::SeqCst)))
    }

    /// The root of a partition, of its records with this `from`; 0 where there are none.
    ///
    /// # Panics
    /// As [`Digests::leaves`].
    #[must_use]
    pub fn root(&self, from: u8, partition: usize) -> u64 {
        assert!(partition < PARTITIONS, "there are {PARTITIONS} partitions");
        let tree = self.trees[usize::from(from) - 1].get();
        tree.map_or(0, |tree| tree.partition(partition).iter().fold(0, |all, leaf| all ^ leaf.load(Ordering::SeqCst)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: u64, version: Version, from: u8) -> Item {
        Item::of(Leaf::of(KeyHash::of(&key.to_le_bytes())), version, Flags::new(from))
    }

    #[test]
    fn what_was_added_and_taken_out_again_leaves_nothing() {
        let digests = Digests::default();
        assert_eq!((digests.in_use().count(), digests.root(3, 7), digests.leaves(3, 7)), (0, 0, None));
        let items: Vec<_> = (1..1000).map(|n| item(n, Version::new(n, n as u16 % 3), 3)).collect();
        items.iter().for_each(|item| digests.add(*item));
        let roots = (0..PARTITIONS).filter(|&partition| digests.root(3, partition) != 0).count();
        assert!((600..1000).contains(&roots), "{roots}");
        for partition in 0..PARTITIONS {
            let leaves = digests.leaves(3, partition).expect("a tree");
            assert_eq!(leaves.iter().fold(0, |all, leaf| all ^ leaf), digests.root(3, partition));
        }
        items.iter().rev().for_each(|item| digests.take_out(*item));
        assert!((0..PARTITIONS).all(|partition| digests.leaves(3, partition) == Some([0; LEAVES])));
        assert_eq!(digests.in_use().collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn a_newer_version_takes_the_place_of_an_older_one_also_in_another_tree() {
        let (digests, fresh) = (Digests::default(), Digests::default());
        let (old, new) = (Version::new(5, 1), Version::new(6, 2));
        digests.add(item(1, old, 3));
        digests.replace(item(1, old, 3), item(1, new, 3));
        digests.add(item(2, old, 3));
        digests.replace(item(2, old, 3), item(2, new, 2));
        fresh.add(item(1, new, 3));
        fresh.add(item(2, new, 2));
        for from in [2, 3] {
            assert!((0..PARTITIONS).all(|partition| digests.leaves(from, partition) == fresh.leaves(from, partition)));
        }
    }

    #[test]
    fn first_and_last_places_exist() {
        let digests = Digests::default();
        let version = Version::new(5, 5);
        for (from, hash) in [(1, KeyHash(0)), (64, KeyHash(u64::MAX))] {
            let leaf = Leaf::of(hash);
            assert_eq!((leaf.partition(), Leaf::from_bits(leaf.bits())), (hash.partition(), leaf));
            digests.add(Item::of(leaf, version, Flags::new(from)));
            assert_eq!(digests.root(from, hash.partition()), digest_word(version));
            let leaves = digests.leaves(from, hash.partition()).expect("a tree");
            assert_eq!(leaves[leaf_of(hash)], digest_word(version));
        }
        assert_eq!(digests.in_use().collect::<Vec<_>>(), [1, 64]);
    }
}

//! Which leaves of the digests a listing is asked for.

use std::ops::Range;

use koltso_model::{KeyHash, LEAVES, LeafSet, PARTITIONS};

use crate::digest::Leaf;

/// Ranges of leaves, counted through all partitions: ascending, none empty, none beside another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted(Vec<Range<u32>>);

impl Wanted {
    /// All leaves of some partitions.
    pub(crate) fn partitions(partitions: &Range<usize>) -> Self {
        let of = |partition: usize| (partition.min(PARTITIONS) * LEAVES) as u32;
        let mut wanted = Self::default();
        wanted.push(of(partitions.start)..of(partitions.end));
        wanted
    }

    /// Leaves of partitions that ascend.
    pub(crate) fn leaves(leaves: &[(u16, LeafSet)]) -> Self {
        let mut wanted = Self::default();
        for (partition, set) in leaves {
            for leaf in (0..LEAVES).filter(|leaf| set[leaf / 64] & (1 << (leaf % 64)) != 0) {
                let number = u32::from(*partition) * LEAVES as u32 + leaf as u32;
                wanted.push(number..number + 1);
            }
        }
        wanted
    }

    /// Adds a range behind those that are there.
    fn push(&mut self, range: Range<u32>) {
        match self.0.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => self.0.push(range),
        }
    }

    /// The partitions that any of them is in, as ranges that are apart.
    pub(crate) fn in_partitions(&self) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for leaves in &self.0 {
            let of = leaves.start as usize / LEAVES..(leaves.end as usize).div_ceil(LEAVES);
            match ranges.last_mut() {
                Some(last) if last.end >= of.start => last.end = last.end.max(of.end),
                _ => ranges.push(of),
            }
        }
        ranges
    }

    /// Whether a key's leaf is among them.
    pub(crate) fn has(&self, leaf: Leaf) -> bool {
        let after = self.0.partition_point(|range| range.start <= leaf.bits());
        after > 0 && self.0[after - 1].contains(&leaf.bits())
    }

    pub(crate) fn has_key(&self, key: &[u8]) -> bool {
        self.has(Leaf::of(KeyHash::of(key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_that_follow_each_other_are_one_range() {
        let mut set = [0; LEAVES / 64];
        set[0] = 0b1011;
        set[3] = 1 << 63;
        let wanted = Wanted::leaves(&[(1, set), (2, [u64::MAX; LEAVES / 64]), (9, [0; LEAVES / 64])]);
        assert_eq!(wanted.0, [256..258, 259..260, 511..768]);
        assert_eq!(wanted.in_partitions().first(), Some(&(1..3)));
        assert_eq!(wanted.in_partitions().len(), 1);
        assert_eq!(Wanted::leaves(&[(1, set), (5, set)]).in_partitions(), [1..2, 5..6]);
        for leaf in 0..1024 {
            let is_wanted = matches!(leaf, 256 | 257 | 259 | 511..768);
            assert_eq!(wanted.has(Leaf::from_bits(leaf)), is_wanted, "{leaf}");
        }
    }

    #[test]
    fn partitions_are_all_their_leaves() {
        assert_eq!(Wanted::partitions(&(2..4)).0.first(), Some(&(512..1024)));
        assert!(Wanted::partitions(&(7..7)).0.is_empty());
        let all = Wanted::partitions(&(0..PARTITIONS + 9));
        assert_eq!(all.0.first(), Some(&(0..1 << 20)));
        assert!(all.has_key(b"any"));
    }
}

//! What two replicas ask and tell each other when they compare what they have.
//!
//! One side asks, step by step, and repairs both: roots, leaves of the partitions whose roots
//! differ, items of the leaves that differ, then records, in either direction. Where these values
//! come from and what is made of them is in `koltso_cluster::exchange`, their bytes are in
//! `koltso_net::replica`.

use bytes::Bytes;

use crate::{Record, Version};

/// Leaves of a partition in a digest.
pub const LEAVES: usize = 256;

/// How a node's data stands to what it once confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Its folder was made at this start, and no peer has said yet whom it remembers in its place.
    #[default]
    New,
    /// It has what it confirmed.
    Whole,
    /// It may lack what it confirmed: its answers do not count for reads until it has compared all
    /// with enough others.
    Rebuilding,
}

/// What a node tells of itself with each comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// How its data stands.
    pub standing: Standing,
    /// It holds hints, or has writes in flight, of no version with an older clock than this.
    pub settled: u64,
    /// The newest clock of a record that said "absent" and that it has dropped; 0 if it never has.
    pub forgotten: u64,
    /// Up to this clock it has agreed on all that it should have with all living replicas; 0 if it
    /// has not yet.
    pub agreed: u64,
    /// The `from`s of which it has had records: bit n − 1 for n.
    pub froms: u64,
}

/// What a record with this version adds to its leaf: a leaf is the exclusive or of these words, a
/// root that of its leaves. Equal versions are the same write, so the version says it all.
#[must_use]
#[inline]
pub const fn digest_word(version: Version) -> u64 {
    mix(version.clock ^ mix(version.node as u64 + 1))
}

/// The finalizer of `SplitMix64` (Steele, Lea and Flood, 2014): a permutation without patterns.
#[inline]
const fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The leaves of a partition that are meant, a bit each.
pub type LeafSet = [u64; LEAVES / 64];

/// One key of a leaf: what is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// The low 32 bits of the key's public hash. (The high ones say partition and leaf.)
    pub hash: u32,
    /// The version of its newest record.
    pub version: Version,
    /// How many replicas that is to have, 1 to 64.
    pub from: u8,
    /// It says "absent": a tombstone, or a value whose time has run out.
    pub absent: bool,
}

/// What the asking side wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExchangeRequest {
    /// The roots of the records with this `from`, of all partitions of which both nodes are
    /// replicas for it, ascending; none for `from` 0, which only introduces.
    Roots {
        /// What the asker says of itself.
        told: Told,
        /// 0 to 64.
        from: u8,
    },
    /// One byte of each leaf, of these partitions.
    Leaves {
        /// 1 to 64.
        from: u8,
        /// Which byte of the eight: 0 to 7.
        byte: u8,
        /// Ascending.
        partitions: Vec<u16>,
    },
    /// The items of these leaves, whatever their `from`, by partition, ascending.
    Items(Vec<(u16, LeafSet)>),
    /// Records of the last answer to [`ExchangeRequest::Items`], by their place in it, ascending.
    Fetch {
        /// Places, counted through all partitions from 0.
        places: Vec<u32>,
        /// About so many bytes of records at most; one record in any case.
        credit: u32,
    },
    /// Records that the answerer lacks or has older.
    Give(Vec<Record<Bytes>>),
    /// Both nodes have the same in these partitions, or what makes no difference: as they were when
    /// the last answer to [`ExchangeRequest::Roots`] was given.
    Agreed {
        /// 1 to 64, that of the last request for roots.
        from: u8,
        /// Ascending.
        partitions: Vec<u16>,
    },
}

/// What the other side says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExchangeReply {
    /// To `Roots`.
    Roots {
        /// What the answerer says of itself.
        told: Told,
        /// In the order of the partitions.
        roots: Vec<u64>,
    },
    /// To `Leaves`: [`LEAVES`] bytes a partition, in the order of the request.
    Leaves(Bytes),
    /// To `Items`: those of the leading partitions, at least one, by partition.
    Items(Vec<Vec<Item>>),
    /// To `Fetch`: the records of the leading places, as far as the credit goes. `None`: that place
    /// has none any more that can be read.
    Records(Vec<Option<Record<Bytes>>>),
    /// To `Give`: for each record, whether it or a newer one is there now.
    Given(Vec<bool>),
    /// To `Agreed`.
    Noted,
    /// To any: not now, ask again in a while.
    NotReady,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_differ_by_clock_and_by_node() {
        let versions = (1..=200).flat_map(|clock| (0..200).map(move |node| Version::new(clock, node)));
        let mut words: Vec<u64> = versions.map(digest_word).collect();
        words.sort_unstable();
        assert!(words.windows(2).all(|pair| pair[0] != pair[1]) && words[0] != 0);
    }
}

//! The parts of a key's hash that the index uses.
//!
//! The upper 12 bits choose the partition, the next 24 are the tag that an index entry keeps.

pub(crate) use koltso_model::{KeyHash, PARTITIONS};

pub(crate) const TAG_BITS: u32 = 24;
const PARTITION_BITS: u32 = PARTITIONS.trailing_zeros();

/// The bits of a hash that an index entry keeps, below 2^24.
pub(crate) const fn tag_of(hash: KeyHash) -> u32 {
    ((hash.0 >> (64 - PARTITION_BITS - TAG_BITS)) & ((1 << TAG_BITS) - 1)) as u32
}

//! The hash of a key and the two parts of it that the index uses.
//!
//! XXH3-64 without a seed, so that the value is the same on every node and in every sidecar. The upper 12 bits choose
//! the partition, the next 24 are the tag that an index entry keeps.

use xxhash_rust::xxh3::xxh3_64;

/// Number of partitions of the key space: the index's stripes, and the unit of placement in a cluster.
pub const PARTITIONS: usize = 1 << PARTITION_BITS;
const PARTITION_BITS: u32 = 12;
pub(crate) const TAG_BITS: u32 = 24;

/// XXH3-64 of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash(pub u64);

impl KeyHash {
    /// Hashes a key.
    #[must_use]
    pub fn of(key: &[u8]) -> Self {
        Self(xxh3_64(key))
    }

    /// The partition, below [`PARTITIONS`].
    #[must_use]
    pub const fn partition(self) -> usize {
        (self.0 >> (64 - PARTITION_BITS)) as usize
    }

    /// The bits that an index entry keeps, below 2^24.
    pub(crate) const fn tag(self) -> u32 {
        ((self.0 >> (64 - PARTITION_BITS - TAG_BITS)) & ((1 << TAG_BITS) - 1)) as u32
    }
}

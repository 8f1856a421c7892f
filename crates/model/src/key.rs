//! A key and its public hash.
//!
//! The hash is XXH3-64 without a seed, so that it is the same on every node: placement depends on
//! it. Since it is public, clients can make keys that collide in it; tables that must not degrade
//! use a hash of their own (`koltso-storage` has a keyed one).

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

/// The longest key, in bytes; the shortest has one.
pub const KEY_MAX: usize = 4096;
/// Number of partitions of the key space: the unit of placement, of moving keys and of comparing
/// replicas.
pub const PARTITIONS: usize = 1 << PARTITION_BITS;
const PARTITION_BITS: u32 = 12;

/// The public hash of a key: XXH3-64. The upper 12 bits are the key's partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub u64);

impl KeyHash {
    /// Hashes a key.
    #[must_use]
    #[inline]
    pub fn of(key: &[u8]) -> Self {
        Self(xxh3_64(key))
    }

    /// The partition, below [`PARTITIONS`].
    #[must_use]
    #[inline]
    pub const fn partition(self) -> usize {
        (self.0 >> (64 - PARTITION_BITS)) as usize
    }
}

/// A key with its hash, so that it is hashed once however many layers it passes.
///
/// A key has 1 to [`KEY_MAX`] bytes; whoever takes bytes from outside checks that before making
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key<B> {
    bytes: B,
    hash: KeyHash,
}

impl<B: AsRef<[u8]>> Key<B> {
    /// Hashes `bytes`.
    #[must_use]
    #[inline]
    pub fn new(bytes: B) -> Self {
        let hash = KeyHash::of(bytes.as_ref());
        Self { bytes, hash }
    }

    /// Its bytes.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// Its hash.
    #[must_use]
    #[inline]
    pub const fn hash(&self) -> KeyHash {
        self.hash
    }

    /// The same key, its bytes borrowed.
    #[must_use]
    #[inline]
    pub fn borrowed(&self) -> Key<&[u8]> {
        Key { bytes: self.bytes.as_ref(), hash: self.hash }
    }

    /// The same key with its bytes held in another way.
    #[must_use]
    #[inline]
    pub fn with_bytes<C: AsRef<[u8]>>(&self, bytes: C) -> Key<C> {
        debug_assert_eq!(bytes.as_ref(), self.bytes.as_ref(), "the hash belongs to the bytes");
        Key { bytes, hash: self.hash }
    }

    /// The same key with bytes of its own.
    #[must_use]
    pub fn owned(&self) -> Key<Bytes> {
        self.with_bytes(Bytes::copy_from_slice(self.bytes.as_ref()))
    }
}

impl Key<Bytes> {
    /// The shared bytes.
    #[must_use]
    pub const fn shared(&self) -> &Bytes {
        &self.bytes
    }
}

impl<'a> Key<&'a [u8]> {
    /// Its bytes, for as long as what it borrows from lives.
    #[must_use]
    #[inline]
    pub const fn slice(&self) -> &'a [u8] {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fixed_and_survives_every_change_of_holder() {
        let key = Key::new(&b"planet"[..]);
        // Placement in running clusters depends on this number.
        assert_eq!(key.hash().0, xxh3_64(b"planet"));
        assert_eq!(KeyHash::of(b"").0, 0x2d06_8005_38d3_94c2, "XXH3-64 of nothing, from its specification");
        assert!(key.hash().partition() < PARTITIONS);
        assert_eq!(key.owned().hash(), key.hash());
        assert_eq!(key.owned().borrowed(), key);
        assert_eq!(KeyHash(u64::MAX).partition(), PARTITIONS - 1);
    }
}

//! The hash of a key that the index uses. It is keyed, so that nobody can make keys that collide in
//! it: its only maker is [`Secret::hash`](crate::secret::Secret::hash). Placement uses another one,
//! which is public: [`koltso_model::KeyHash`].
//!
//! ```text
//! 63      52 51              28 27       0
//! stripe     tag                zeros
//! ```

/// Stripes of the index, each with a lock and a table of its own.
pub(crate) const STRIPES: usize = 1 << STRIPE_BITS;
const STRIPE_BITS: u32 = 12;
pub(crate) const TAG_BITS: u32 = 24;
const UNUSED_BITS: u32 = 64 - STRIPE_BITS - TAG_BITS;

/// The 36 bits of a keyed hash that the index uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct IndexHash(u64);

impl IndexHash {
    /// Bits of [`IndexHash::bits`] that are always 0: the lowest.
    pub(crate) const UNUSED: u64 = (1 << UNUSED_BITS) - 1;

    /// From 64 bits, of which the lowest 28 are not used.
    #[inline]
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits & !Self::UNUSED)
    }

    /// As [`IndexHash::from_bits`] takes it.
    #[inline]
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// Which stripe has the key, below [`STRIPES`].
    #[inline]
    pub(crate) const fn stripe(self) -> usize {
        (self.0 >> (64 - STRIPE_BITS)) as usize
    }

    /// What an index entry keeps, below 2^24.
    #[inline]
    pub(crate) const fn tag(self) -> u32 {
        ((self.0 >> UNUSED_BITS) & ((1 << TAG_BITS) - 1)) as u32
    }
}

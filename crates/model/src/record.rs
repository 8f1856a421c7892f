//! A key's state with everything about it that is stored and replicated.

use bytes::Bytes;

use crate::{Key, NODES_MAX, Version};

/// The largest value that the format has room for, in bytes. A server may take less from its
/// clients (`--max-value`); a replica takes whatever the format allows.
pub const VALUE_MAX_LIMIT: usize = 32 << 20;

/// What a record says of itself beside its version, in 16 bits.
///
/// ```text
/// bit 0     tombstone
/// bit 1     conditional: written by a conditional write
/// bits 2-7  replicas that the record is to have, less one
/// bits 8-14 without a meaning yet; kept as they are
/// bit 15    not a record's: a format sets it in the bytes of a record that has attributes
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flags(u16);

impl Flags {
    const TOMBSTONE: u16 = 1;
    const CONDITIONAL: u16 = 1 << 1;
    const FROM_SHIFT: u32 = 2;
    const FROM_MASK: u16 = 0x3f << Self::FROM_SHIFT;
    /// Set in the bytes of a record where its attributes follow its key, and nowhere else: whoever
    /// writes such bytes sets it after the attributes, and whoever reads them takes it out again.
    pub const ATTRIBUTES_FOLLOW: u16 = 1 << 15;
    /// The bits that have a meaning to a record.
    pub const KNOWN: u16 = Self::TOMBSTONE | Self::CONDITIONAL | Self::FROM_MASK;

    /// Of a value that is to have `from` replicas.
    ///
    /// # Panics
    /// Unless 1 ≤ `from` ≤ [`NODES_MAX`]: the caller has checked.
    #[must_use]
    #[inline]
    pub const fn new(from: u8) -> Self {
        assert!(from >= 1 && from as usize <= NODES_MAX, "a record has 1 to 64 replicas");
        Self((from as u16 - 1) << Self::FROM_SHIFT)
    }

    /// All 16 bits, as they are stored.
    #[must_use]
    #[inline]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// From all 16 bits, those without a meaning included.
    #[must_use]
    #[inline]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The same, of a tombstone.
    #[must_use]
    #[inline]
    pub const fn tombstone(self) -> Self {
        Self(self.0 | Self::TOMBSTONE)
    }

    /// The same, of a conditional write.
    #[must_use]
    #[inline]
    pub const fn conditional(self) -> Self {
        Self(self.0 | Self::CONDITIONAL)
    }

    /// The key is deleted, or its time has run out.
    #[must_use]
    #[inline]
    pub const fn is_tombstone(self) -> bool {
        self.0 & Self::TOMBSTONE != 0
    }

    /// A conditional write wrote it.
    #[must_use]
    #[inline]
    pub const fn is_conditional(self) -> bool {
        self.0 & Self::CONDITIONAL != 0
    }

    /// How many replicas the record is to have, 1 to [`NODES_MAX`].
    #[must_use]
    #[inline]
    pub const fn from(self) -> u8 {
        ((self.0 & Self::FROM_MASK) >> Self::FROM_SHIFT) as u8 + 1
    }

    /// Whether there are bits that this build gives no meaning to.
    #[must_use]
    #[inline]
    pub const fn has_unknown(self) -> bool {
        self.0 & !Self::KNOWN != 0
    }
}

/// A key's state: a value, or the memory of a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<B> {
    /// Whose state it is.
    pub key: Key<B>,
    /// 0 to [`VALUE_MAX_LIMIT`] bytes; empty in a tombstone.
    pub value: B,
    /// Newest wins; equal versions are the same write.
    pub version: Version,
    /// Milliseconds since the Unix epoch, below 2^48; 0 for never.
    pub expires_at_ms: u64,
    /// Tombstone or value, and its number of replicas.
    pub flags: Flags,
    /// What [`Attributes::parse`](crate::Attributes::parse) takes; empty for none.
    pub attributes: B,
}

impl<B: AsRef<[u8]>> Record<B> {
    /// The same record, its bytes borrowed.
    #[must_use]
    #[inline]
    pub fn borrowed(&self) -> Record<&[u8]> {
        Record {
            key: self.key.borrowed(),
            value: self.value.as_ref(),
            version: self.version,
            expires_at_ms: self.expires_at_ms,
            flags: self.flags,
            attributes: self.attributes.as_ref(),
        }
    }

    /// Bytes of key, attributes and value: what bounds on memory count.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.key.bytes().len() + self.attributes.as_ref().len() + self.value.as_ref().len()
    }

    /// Whether there are no bytes, which no valid record is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Record<&[u8]> {
    /// The same record with bytes of its own, in one allocation.
    #[must_use]
    pub fn owned(&self) -> Record<Bytes> {
        let (key, attributes) = (self.key.slice(), self.attributes);
        let mut bytes = Vec::with_capacity(self.len());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(attributes);
        bytes.extend_from_slice(self.value);
        let bytes = Bytes::from(bytes);
        let value_at = key.len() + attributes.len();
        Record {
            key: self.key.with_bytes(bytes.slice(..key.len())),
            value: bytes.slice(value_at..),
            version: self.version,
            expires_at_ms: self.expires_at_ms,
            flags: self.flags,
            attributes: bytes.slice(key.len()..value_at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_keep_what_they_were_made_of() {
        for from in 1..=NODES_MAX as u8 {
            let flags = Flags::new(from);
            assert_eq!((flags.from(), flags.is_tombstone(), flags.is_conditional()), (from, false, false));
            let flags = flags.tombstone().conditional();
            assert_eq!((flags.from(), flags.is_tombstone(), flags.is_conditional()), (from, true, true));
            assert!(!flags.has_unknown());
        }
        let unknown = Flags::from_bits(0x8001);
        assert!(unknown.has_unknown() && unknown.is_tombstone());
        assert_eq!(unknown.bits(), 0x8001);
    }

    #[test]
    fn an_owned_record_is_the_same_record() {
        let record = Record {
            key: Key::new(&b"key"[..]),
            value: &b"value"[..],
            version: Version::new(7, 1),
            expires_at_ms: 9,
            flags: Flags::new(3),
            attributes: &[1, 1, b'x'][..],
        };
        assert_eq!(record.owned().borrowed(), record);
        assert_eq!(record.len(), 11);
    }
}

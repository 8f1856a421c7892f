//! What a node understands of records, as it announces in its handshake.
//!
//! ```text
//! bit 0-15        the flag of a record with the same bit (koltso_model::Flags)
//! bit 16 + kind   attributes of this kind (koltso_model::Attribute), kinds up to 47
//! ```
//!
//! The frames of a node contain only what it has announced. It refuses frames of a peer that
//! contain more than that peer has announced: their sender does not know what it says. Tested
//! below.

use koltso_model::{Attribute, Attributes, Flags, Operation, Outcome};

/// The bit of the attributes of kind 0.
const ATTRIBUTES_AT: u32 = 16;

/// A set of flags and kinds of attributes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// The empty set, which does not even have tombstones.
    pub const NONE: Self = Self(0);
    /// The flags of records to which this build gives a meaning.
    pub const FLAGS: Self = Self(Flags::KNOWN as u64);
    /// Attributes with the media type of a value.
    pub const CONTENT_TYPE: Self = Self::of_attribute(Attribute::ContentType);
    /// Attributes with the codings of a value.
    pub const CONTENT_ENCODING: Self = Self::of_attribute(Attribute::ContentEncoding);
    /// Everything that this build understands.
    pub const KNOWN: Self = Self(Self::FLAGS.0 | Self::CONTENT_TYPE.0 | Self::CONTENT_ENCODING.0);

    const fn of_attribute(attribute: Attribute) -> Self {
        Self(1 << (ATTRIBUTES_AT + attribute as u32))
    }

    /// Whether all of these flags are in the set.
    #[inline]
    #[must_use]
    pub const fn has_flags(self, flags: Flags) -> bool {
        flags.bits() as u64 & !self.0 == 0
    }

    /// Whether attributes of this kind are in the set.
    #[must_use]
    pub const fn has_attribute(self, kind: u8) -> bool {
        let bit = ATTRIBUTES_AT + kind as u32;
        bit < u64::BITS && self.0 & 1 << bit != 0
    }

    /// Whether all flags and attributes of a record are in the set. Attributes that cannot be read
    /// are not.
    #[inline]
    #[must_use]
    pub fn cover(self, flags: Flags, attributes: &[u8]) -> bool {
        self.has_flags(flags) && (attributes.is_empty() || self.cover_attributes(attributes))
    }

    #[cold]
    fn cover_attributes(self, attributes: &[u8]) -> bool {
        Attributes::parse(attributes)
            .is_ok_and(|attributes| attributes.iter().all(|(kind, _)| self.has_attribute(kind)))
    }

    /// Whether everything in an operation is in the set.
    #[inline]
    #[must_use]
    pub fn cover_operation<B: AsRef<[u8]>>(self, operation: &Operation<B>) -> bool {
        match operation {
            Operation::Write(record) => self.cover(record.flags, record.attributes.as_ref()),
            Operation::Read { .. } => true,
        }
    }

    /// Whether everything in an outcome is in the set.
    #[inline]
    #[must_use]
    pub fn cover_outcome<B: AsRef<[u8]>>(self, outcome: &Outcome<B>) -> bool {
        match outcome {
            Outcome::Found(found) => self.cover(found.flags, found.attributes.as_ref()),
            Outcome::Absent(Some(tombstone)) => self.has_flags(tombstone.flags),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use koltso_model::encode_attribute;

    use super::*;

    #[test]
    fn what_this_build_knows_is_pinned() {
        // Nodes of other builds depend on these bits.
        assert_eq!(Features::FLAGS.0, 0xff);
        assert_eq!((Features::CONTENT_TYPE.0, Features::CONTENT_ENCODING.0), (1 << 17, 1 << 18));
        assert_eq!(Features::KNOWN.0, 0x6_00ff);
    }

    #[test]
    fn a_set_covers_what_is_in_it() {
        let known = Features::KNOWN;
        let mut attributes = Vec::new();
        encode_attribute(&mut attributes, Attribute::ContentType, b"text/plain");
        assert!(known.cover(Flags::new(64).tombstone().conditional(), &attributes));
        assert!(!Features(known.0 & !Features::CONTENT_TYPE.0).cover(Flags::new(1), &attributes));
        assert!(!Features::NONE.has_flags(Flags::new(2)) && Features::NONE.has_flags(Flags::new(1)));
        assert!(!known.has_flags(Flags::from_bits(1 << 8)));
        assert!(!known.cover(Flags::new(1), &[1]), "attributes that cannot be read");
        for kind in [0, 3, 47, 48, 255] {
            assert!(!known.has_attribute(kind), "{kind}");
            assert!(!known.cover(Flags::new(1), &[kind, 0]), "{kind}");
        }
        assert!(Features(u64::MAX).has_attribute(47) && !Features(u64::MAX).has_attribute(48));
    }
}

//! The identity of a node.

use std::fmt;

/// The identity of a node's data folder, whatever the node's number and address, given to the folder
/// when it is created: 48 bits of the time, in ms since the Unix epoch, and random ones. All zeros:
/// none, or none that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u128);

impl NodeId {
    /// No identity.
    pub const NONE: Self = Self(0);
    /// The low bits of an identity, which are random.
    pub const RANDOM_BITS: u32 = 80;

    /// Of a folder that is made at this time, with random bits of which enough are used.
    #[must_use]
    pub const fn made(ms: u64, random: u128) -> Self {
        // All zeros would say that there is none.
        Self((ms as u128) << Self::RANDOM_BITS | random >> (u128::BITS - Self::RANDOM_BITS) | 1)
    }

    /// From what [`fmt::Display`] writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        digits.then(|| u128::from_str_radix(text, 16).ok().map(Self))?
    }
}

impl fmt::Display for NodeId {
    /// 32 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_identity_begins_with_the_time_and_is_otherwise_random() {
        let ms = 1_700_000_000_000;
        let (one, other) = (NodeId::made(ms, u128::MAX), NodeId::made(ms, u128::MAX << 50));
        assert_ne!(one, other);
        assert!([one, other].iter().all(|id| (id.0 >> NodeId::RANDOM_BITS) as u64 == ms));
        assert!(NodeId::made(ms + 1, 0) > one && NodeId::made(0, 0) != NodeId::NONE);
    }

    #[test]
    fn an_identity_reads_back_from_its_digits_and_nothing_else_does() {
        for id in [NodeId::NONE, NodeId(0xabc), NodeId(u128::MAX)] {
            assert_eq!(NodeId::parse(&id.to_string()), Some(id));
        }
        for text in ["", "0", "+0000000000000000000000000000000", "ABCDEF00000000000000000000000000"] {
            assert_eq!(NodeId::parse(text), None, "{text}");
        }
    }
}

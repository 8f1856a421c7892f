//! The identity of a node.

use std::fmt;

/// The identity of a node's data folder, whatever the node's number and address: 128 random bits,
/// given to the folder when it is created. All zeros: none, or none that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u128);

impl NodeId {
    /// No identity.
    pub const NONE: Self = Self(0);

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
    fn an_identity_reads_back_from_its_digits_and_nothing_else_does() {
        for id in [NodeId::NONE, NodeId(0xabc), NodeId(u128::MAX)] {
            assert_eq!(NodeId::parse(&id.to_string()), Some(id));
        }
        for text in ["", "0", "+0000000000000000000000000000000", "ABCDEF00000000000000000000000000"] {
            assert_eq!(NodeId::parse(text), None, "{text}");
        }
    }
}

//! How many replicas must answer, of how many.

/// The most nodes of a cluster, and so the most replicas of a key: sets of replicas are bits of a
/// `u64`, and a record keeps the number of its replicas in 6 bits.
pub const NODES_MAX: usize = 64;

/// `ack` of `from`: 1 ≤ `ack` ≤ `from` ≤ [`NODES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quorum {
    ack: u8,
    from: u8,
}

impl Quorum {
    /// One copy, one answer.
    pub const SINGLE: Self = Self { ack: 1, from: 1 };

    /// `None` unless 1 ≤ `ack` ≤ `from` ≤ [`NODES_MAX`].
    #[must_use]
    pub const fn new(ack: u8, from: u8) -> Option<Self> {
        if ack >= 1 && ack <= from && from as usize <= NODES_MAX { Some(Self { ack, from }) } else { None }
    }

    /// Answers that are needed.
    #[must_use]
    #[inline]
    pub const fn ack(self) -> u8 {
        self.ack
    }

    /// Replicas that the key has for this operation.
    #[must_use]
    #[inline]
    pub const fn from(self) -> u8 {
        self.from
    }

    /// The least `ack` for which any two sets of answers of `from` replicas overlap: 1/1, 2/2, 2/3,
    /// 3/4, 3/5.
    #[must_use]
    #[inline]
    pub const fn majority(from: u8) -> u8 {
        from / 2 + 1
    }

    /// Whether `ack` is a majority, so that what it promises of reads and writes holds.
    #[must_use]
    #[inline]
    pub const fn is_majority(self) -> bool {
        self.ack >= Self::majority(self.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_met_is_a_quorum() {
        assert_eq!(Quorum::new(1, 1), Some(Quorum::SINGLE));
        assert!(Quorum::new(0, 1).is_none() && Quorum::new(3, 2).is_none() && Quorum::new(1, 65).is_none());
        let majorities: Vec<u8> = (1..=5).map(Quorum::majority).collect();
        assert_eq!(majorities, [1, 2, 2, 3, 3]);
        assert!(Quorum::new(2, 3).is_some_and(Quorum::is_majority));
        assert!(!Quorum::new(1, 3).is_some_and(Quorum::is_majority));
    }
}

//! Which of two records of a key is the newer one.
//!
//! Invariant: versions are totally ordered, and equal versions mean the same write, so applying records in any order,
//! any number of times, ends in the same state. Who makes versions (a hybrid logical clock) is not this crate's concern.

/// A version of a key: the time of a hybrid logical clock, then the node that gave it as the tie-break.
///
/// `clock` counts 1/65536 ms: milliseconds since the Unix epoch in the upper 48 bits, a logical counter in the lower 16
/// (Kulkarni et al., *Logical Physical Clocks*, 2014). It is never 0 in a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Hybrid logical time, see above.
    pub clock: u64,
    /// Number of the node that accepted the write.
    pub node: u16,
}

impl Version {
    /// A version from its parts.
    #[must_use]
    pub const fn new(clock: u64, node: u16) -> Self {
        Self { clock, node }
    }

    /// The physical part, in milliseconds since the Unix epoch.
    #[must_use]
    pub const fn unix_ms(self) -> u64 {
        self.clock >> 16
    }
}

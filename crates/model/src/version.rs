//! Which of two records of a key is the newer one.
//!
//! Invariant: versions are totally ordered, and equal versions mean the same write, so applying
//! records in any order, any number of times, ends in the same state. A hybrid logical clock makes
//! them (Kulkarni et al., *Logical Physical Clocks*, 2014), with a fraction of the physical clock
//! in place of a bare counter: two writes of one key one after the other, through different nodes,
//! are ordered as well as the nodes' clocks agree.

use std::time::Duration;

/// Bits of the fraction below the milliseconds.
const FRACTION_BITS: u32 = 16;

/// A reading of the wall clock, in units of 1/65 536 ms (about 15 ns) since the Unix epoch: 48 bits
/// of milliseconds, which last until the year 10889, and 16 bits of their fraction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime(pub u64);

impl WallTime {
    /// Of the time since the Unix epoch. Past the last time that there is, that one.
    #[must_use]
    #[inline]
    pub const fn since_epoch(elapsed: Duration) -> Self {
        let ms = elapsed.as_millis();
        if ms >= 1 << (64 - FRACTION_BITS) {
            return Self(u64::MAX);
        }
        let fraction = ((elapsed.subsec_nanos() % 1_000_000) as u64) << FRACTION_BITS;
        Self(((ms as u64) << FRACTION_BITS) | (fraction / 1_000_000))
    }

    /// A whole number of milliseconds since the Unix epoch.
    #[must_use]
    #[inline]
    pub const fn from_ms(ms: u64) -> Self {
        if ms >= 1 << (64 - FRACTION_BITS) { Self(u64::MAX) } else { Self(ms << FRACTION_BITS) }
    }

    /// Milliseconds since the Unix epoch, rounded down.
    #[must_use]
    #[inline]
    pub const fn ms(self) -> u64 {
        self.0 >> FRACTION_BITS
    }
}

/// A version of a key: the time of a hybrid logical clock, then the number of the node that gave it
/// as the tie-break.
///
/// `clock` has the units of [`WallTime`]. It is never 0 in a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Hybrid logical time.
    pub clock: u64,
    /// Number of the node that accepted the write, as its cluster's membership assigned it.
    pub node: u16,
}

impl Version {
    /// A version from its parts.
    #[must_use]
    #[inline]
    pub const fn new(clock: u64, node: u16) -> Self {
        Self { clock, node }
    }

    /// The physical part, in milliseconds since the Unix epoch.
    #[must_use]
    #[inline]
    pub const fn unix_ms(self) -> u64 {
        WallTime(self.clock).ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_time_keeps_a_fraction_of_a_millisecond() {
        let at = |nanos| WallTime::since_epoch(Duration::from_nanos(nanos));
        assert_eq!(at(0), WallTime(0));
        assert_eq!(at(1_000_000), WallTime(1 << 16));
        assert_eq!(at(1_500_000), WallTime((1 << 16) + (1 << 15)));
        assert_eq!(at(1_999_999).ms(), 1);
        assert!(at(5_000_050) > at(5_000_000), "50 ns are told apart");
        assert_eq!(WallTime::from_ms(7).ms(), 7);
        assert_eq!(WallTime::since_epoch(Duration::MAX), WallTime(u64::MAX));
        assert_eq!(WallTime::from_ms(u64::MAX), WallTime(u64::MAX));
    }

    #[test]
    fn the_clock_decides_and_then_the_node() {
        assert!(Version::new(2, 0) > Version::new(1, 9));
        assert!(Version::new(2, 1) > Version::new(2, 0));
        assert_eq!(Version::new(WallTime::from_ms(77).0 + 3, 1).unix_ms(), 77);
    }
}

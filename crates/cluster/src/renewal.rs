//! The rule "superseded, so again above it", in one place.
//!
//! A write that a newer version supersedes met somebody whose clock is ahead, perhaps before this
//! write began. It is later than that, so it is done again with a version above it, once. A version
//! that is newer even than the second was written at the same time, and either may be last.

use koltso_model::Version;

/// How far a write is with the rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renewal {
    /// The newest version that was there in place of this write's.
    newer: Option<Version>,
    renewed: bool,
}

impl Renewal {
    /// A replica has this version in place of the write's.
    #[inline]
    pub fn superseded(&mut self, by: Version) {
        self.newer = self.newer.max(Some(by));
    }

    /// The version above which the write has to be done again before it is confirmed. At most once.
    #[inline]
    pub fn again(&mut self) -> Option<Version> {
        if self.renewed {
            return None;
        }
        let above = self.newer?;
        self.renewed = true;
        Some(above)
    }

    /// It is to be done again.
    #[must_use]
    #[inline]
    pub const fn is_due(&self) -> bool {
        self.newer.is_some() && !self.renewed
    }

    /// It was done again, or is about to be.
    #[must_use]
    #[inline]
    pub const fn is_renewed(&self) -> bool {
        self.renewed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_done_again_above_the_newest_and_once() {
        let mut renewal = Renewal::default();
        assert_eq!(renewal.again(), None);
        renewal.superseded(Version::new(7, 1));
        renewal.superseded(Version::new(5, 9));
        assert!(!renewal.is_renewed() && renewal.is_due());
        assert_eq!(renewal.again(), Some(Version::new(7, 1)));
        assert!(renewal.is_renewed() && !renewal.is_due());
        renewal.superseded(Version::new(9, 1));
        assert_eq!(renewal.again(), None);
    }
}

//! How far a peer's wall clock is from this node's, judged by a round trip, less its error.

use std::cmp::Ordering;

/// Clocks of two nodes may differ by this much, in ms; a peer whose clock differs by more is
/// refused.
pub const SKEW_MAX_MS: u64 = 500;

/// What one round trip says of a peer's wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSkew {
    /// How far the peer's clock is ahead, in ms.
    pub offset_ms: i64,
    /// How far that may be wrong, in ms: half of the round trip.
    pub error_ms: u64,
}

impl ClockSkew {
    /// The peer's clock was read in the middle of a round trip that ended at `ours_ms`.
    #[must_use]
    pub const fn measured(theirs_ms: u64, ours_ms: u64, round_trip_micros: u64) -> Self {
        let middle = ours_ms.saturating_sub(round_trip_micros / 2_000);
        Self { offset_ms: theirs_ms as i64 - middle as i64, error_ms: (round_trip_micros / 2).div_ceil(1_000) }
    }

    /// The same round trip as a clock tells it that is `ms` ahead of the one that was compared.
    #[must_use]
    pub const fn beside(self, ms: i64) -> Self {
        Self { offset_ms: self.offset_ms.saturating_sub(ms), ..self }
    }

    /// Whether the difference is surely within [`SKEW_MAX_MS`].
    #[must_use]
    pub const fn agrees(self) -> bool {
        self.offset_ms.unsigned_abs().saturating_add(self.error_ms) <= SKEW_MAX_MS
    }

    /// Whether the difference is surely not above [`SKEW_MAX_MS`], as far as this round trip tells.
    ///
    /// # Errors
    /// A sentence about the peer, if it surely is.
    pub fn check(self) -> Result<(), String> {
        if self.offset_ms.unsigned_abs().saturating_sub(self.error_ms) <= SKEW_MAX_MS {
            return Ok(());
        }
        let direction = if self.offset_ms.cmp(&0) == Ordering::Greater { "ahead of" } else { "behind" };
        let ms = self.offset_ms.unsigned_abs();
        Err(format!("its clock is {ms} ms {direction} this node's, more than the {SKEW_MAX_MS} allowed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_agrees_does_so_for_sure() {
        let skew = ClockSkew::measured(10_400, 10_000, 100_000);
        assert!(skew.agrees() && !skew.beside(1_000).agrees());
        assert!(!ClockSkew::measured(10_000, 10_000, 1_002_000).agrees(), "too slow to tell");
        assert_eq!(skew.beside(skew.offset_ms).offset_ms, 0);
    }

    #[test]
    fn a_clock_beyond_the_bound_is_told_and_a_slow_answer_is_no_skew() {
        let skew = ClockSkew::measured(10_400, 10_000, 1_000);
        assert_eq!((skew.offset_ms, skew.check()), (400, Ok(())));
        // Its answer was on the way for two seconds: nothing is known for sure.
        assert!(ClockSkew::measured(10_400, 11_000, 2_000_000).check().is_ok());
        let day = 86_400_000;
        let sentence = ClockSkew::measured(10_000 + day, 10_000, 1_000).check().expect_err("a day off");
        assert!(sentence.contains("86400000 ms ahead"), "{sentence}");
        let sentence = ClockSkew::measured(10_000, 10_000 + day, 1_000).check().expect_err("a day off");
        assert!(sentence.contains("86400000 ms behind"), "{sentence}");
    }
}

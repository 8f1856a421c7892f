//! What is believed of a member that knows the secret and speaks the protocol: not everything.

use koltso_model::{KeyHash, Outcome, WallTime};

/// A version from further ahead than this is none. A day ahead can be the past of a clock that was
/// wrong once; a year cannot, and would take the clocks of all nodes along.
const FUTURE_MAX_MS: u64 = 366 * 24 * 3_600_000;

/// Whether a hybrid logical clock can be where it says it is.
#[must_use]
#[inline]
pub const fn is_plausible(clock: u64, now: WallTime) -> bool {
    WallTime(clock).ms() <= now.ms().saturating_add(FUTURE_MAX_MS)
}

/// Checks the outcome of an operation on the key `asked`, whoever asked: a core, or a replay of
/// hints.
///
/// # Errors
/// Why the connection is not to be used any more: a member that says such a thing says other untrue
/// things, too.
#[inline]
pub fn check<B>(asked: KeyHash, answered: KeyHash, outcome: &Outcome<B>, now: WallTime) -> Result<(), String> {
    if answered != asked {
        return Err("it answered about another key than the one it was asked for".to_owned());
    }
    match outcome.version() {
        Some(version) if !is_plausible(version.clock, now) => {
            Err("it has a version from more than a year ahead".to_owned())
        }
        Some(version) if version.clock == 0 => Err("it has a version of clock 0, which no write has".to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use koltso_model::{Flags, Found, Tombstone, Version};

    const NOW: WallTime = WallTime::from_ms(1_700_000_000_000);
    const KEY: KeyHash = KeyHash(7);

    fn said(ms: u64) -> [Outcome<&'static [u8]>; 3] {
        let version = Version::new(ms << 16, 1);
        let flags = Flags::new(1);
        let found = Found { version, expires_at_ms: 0, flags, attributes: &[][..], value_len: 3, value: None };
        [Outcome::Superseded(version), Outcome::Found(found), Outcome::Absent(Some(Tombstone { version, flags }))]
    }

    #[test]
    fn versions_of_up_to_a_year_ahead_are_believed() {
        for ahead in [0, 1, 24 * 3_600_000, FUTURE_MAX_MS] {
            for said in said(NOW.ms() + ahead) {
                assert_eq!(check(KEY, KEY, &said, NOW), Ok(()), "{said:?}");
            }
        }
        assert_eq!(check(KEY, KEY, &Outcome::<&[u8]>::Absent(None), NOW), Ok(()));
        let ahead = said(NOW.ms() + FUTURE_MAX_MS + 1);
        for said in ahead.into_iter().chain([Outcome::Superseded(Version::new(u64::MAX, 1))]) {
            let error = check(KEY, KEY, &said, NOW).expect_err("believed");
            assert!(error.contains("a year ahead"), "{error}");
        }
    }

    #[test]
    fn a_version_that_no_write_has_is_not_believed() {
        for said in said(0) {
            assert!(check(KEY, KEY, &said, NOW).is_err(), "{said:?}");
        }
    }

    #[test]
    fn an_answer_about_another_key_is_none() {
        for said in [Outcome::<&[u8]>::Applied, Outcome::Absent(None), Outcome::Damaged] {
            assert!(check(KEY, KeyHash(8), &said, NOW).is_err());
        }
    }
}

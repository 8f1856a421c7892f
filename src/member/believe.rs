//! What is believed of a member that knows the secret and speaks the protocol: not everything.

use koltso_model::{KeyHash, Outcome, Version};

/// A version from further ahead than this is none. A day ahead can be the past of a clock that was wrong once; a year cannot, and
/// would take the clocks of all nodes along.
const FUTURE_MAX_MS: u64 = 366 * 24 * 3_600_000;

/// Whether a hybrid logical clock can be where it says it is.
pub fn credible(clock: u64, now_ms: u64) -> bool {
    Version::new(clock, 0).unix_ms() <= now_ms.saturating_add(FUTURE_MAX_MS)
}

/// Checks what a peer says to a request that was about the key `asked`, whoever asked: a core, or a replay of hints.
///
/// # Errors
/// Why the connection is not to be used any more: a member that says such a thing says other untrue things, too.
pub fn outcome<B>(asked: KeyHash, answered: KeyHash, outcome: &Outcome<B>, now_ms: u64) -> Result<(), String> {
    if answered != asked {
        return Err("it answered about another key than the one it was asked for".to_owned());
    }
    match outcome.version() {
        Some(version) if !credible(version.clock, now_ms) => {
            Err("it has a version from more than a year ahead".to_owned())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use koltso_model::{Flags, Found, Tombstone};

    use super::*;

    const NOW: u64 = 1_700_000_000_000;
    const KEY: KeyHash = KeyHash(7);

    fn said(version: Version) -> [Outcome<&'static [u8]>; 3] {
        let flags = Flags::new(1);
        let found = Found { version, expires_at_ms: 0, flags, attributes: &[][..], value_len: 3, value: None };
        let gone = Tombstone { version, flags };
        [Outcome::Superseded(version), Outcome::Found(found), Outcome::Absent(Some(gone))]
    }

    #[test]
    fn versions_of_up_to_a_year_ahead_are_believed() {
        for ahead in [0, 1, 24 * 3_600_000, FUTURE_MAX_MS] {
            for said in said(Version::new((NOW + ahead) << 16, 1)) {
                assert_eq!(outcome(KEY, KEY, &said, NOW), Ok(()), "{said:?}");
            }
        }
        assert_eq!(outcome::<()>(KEY, KEY, &Outcome::Absent(None), NOW), Ok(()));
        for clock in [(NOW + FUTURE_MAX_MS + 1) << 16, u64::MAX] {
            for said in said(Version::new(clock, 1)) {
                let error = outcome(KEY, KEY, &said, NOW).expect_err("believed");
                assert!(error.contains("a year ahead"), "{error}");
            }
        }
    }

    #[test]
    fn an_answer_about_another_key_is_none() {
        for said in [Outcome::<()>::Applied, Outcome::Absent(None), Outcome::Damaged] {
            assert!(outcome(KEY, KeyHash(8), &said, NOW).is_err());
        }
    }
}

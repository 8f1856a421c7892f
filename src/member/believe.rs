//! What is believed of a member that knows the secret and speaks the protocol: not everything.

use koltso_net::replica::{Reply, Stamp};
use koltso_storage::{KeyHash, Version};

/// A version from further ahead than this is none. A day ahead can be the past of a clock that was wrong once; a year cannot, and
/// would take the clocks of all nodes along.
const FUTURE_MAX_MS: u64 = 366 * 24 * 3_600_000;

/// Whether a hybrid logical clock can be where it says it is.
pub fn credible(clock: u64, now_ms: u64) -> bool {
    Version::new(clock, 0).unix_ms() <= now_ms.saturating_add(FUTURE_MAX_MS)
}

/// Checks a reply to a request that was about the key `asked`, whoever asked: a core, or a replay of hints.
///
/// # Errors
/// Why the connection is not to be used any more: a member that says such a thing says other untrue things, too.
pub fn reply(asked: KeyHash, answered: u64, reply: &Reply<'_>, now_ms: u64) -> Result<(), String> {
    if answered != asked.0 {
        return Err("it answered about another key than the one it was asked for".to_owned());
    }
    match *reply {
        Reply::Superseded(Stamp { clock, .. })
        | Reply::Found { version: Stamp { clock, .. }, .. }
        | Reply::Absent(Some(Stamp { clock, .. }))
            if !credible(clock, now_ms) =>
        {
            Err("it has a version from more than a year ahead".to_owned())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn said(reply_clock_ms: u64) -> [Reply<'static>; 3] {
        let version = Stamp { clock: reply_clock_ms << 16, node: 1 };
        [
            Reply::Superseded(version),
            Reply::Found { version, expires_at_ms: 0, value_len: 3, value: None },
            Reply::Absent(Some(version)),
        ]
    }

    #[test]
    fn versions_of_up_to_a_year_ahead_are_believed() {
        for ahead in [0, 1, 24 * 3_600_000, FUTURE_MAX_MS] {
            for said in said(NOW + ahead) {
                assert_eq!(reply(KeyHash(7), 7, &said, NOW), Ok(()), "{said:?}");
            }
        }
        assert_eq!(reply(KeyHash(7), 7, &Reply::Absent(None), NOW), Ok(()));
        for said in
            said(NOW + FUTURE_MAX_MS + 1).into_iter().chain([Reply::Superseded(Stamp { clock: u64::MAX, node: 1 })])
        {
            let error = reply(KeyHash(7), 7, &said, NOW).expect_err("believed");
            assert!(error.contains("a year ahead"), "{error}");
        }
    }

    #[test]
    fn an_answer_about_another_key_is_none() {
        for said in [Reply::Applied, Reply::Absent(None), Reply::Damaged] {
            assert!(reply(KeyHash(7), 8, &said, NOW).is_err());
        }
    }
}

//! What a client's connection may be waiting for, and how long.
//!
//! ```text
//! Idle ─first byte─▶ Reading ─whole request─▶ Working ─socket full─▶ Writing ─▶ Working ─▶ Idle
//!                       └─ last answer ─▶ Lingering ─▶ closed
//! ```
//!
//! Tested below (the verdicts, as a table) and in `tests/limits.rs`.

use std::time::Duration;

use super::limits::Limits;
use super::service::Event;
use crate::connections::Verdict;

/// How long a client may be silent after its connection's last answer before the connection ends.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// What a connection is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It waits for the first byte of a request.
    Idle,
    /// It waits for the rest of a request.
    Reading,
    /// It waits for the service, which has deadlines of its own.
    Working,
    /// It waits for the client to take its answer, since the last progress.
    Writing,
    /// It waits for the end of the client's input after the last answer.
    Lingering,
}

/// What is to become of a connection that has been in `phase` for `age`.
pub(super) fn verdict(phase: Phase, age: Duration, limits: &Limits, draining: bool) -> Verdict<Event> {
    match phase {
        Phase::Idle if age >= limits.idle_timeout => Verdict::CutInput(Some(Event::IdleTimeout)),
        Phase::Idle if draining => Verdict::CutInput(None),
        Phase::Reading if age >= limits.request_timeout => Verdict::CutInput(Some(Event::RequestTimeout)),
        Phase::Writing if age >= limits.request_timeout => Verdict::CutAll(Some(Event::WriteTimeout)),
        Phase::Lingering if age >= LINGER => Verdict::CutInput(None),
        _ => Verdict::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let limits = Limits {
            request_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            ..Limits::default()
        };
        let (ms, wait) = (Duration::from_millis, Verdict::Wait);
        for (phase, age, draining, expected) in [
            (Phase::Idle, ms(59_999), false, wait),
            (Phase::Idle, ms(60_000), false, Verdict::CutInput(Some(Event::IdleTimeout))),
            (Phase::Idle, ms(0), true, Verdict::CutInput(None)),
            (Phase::Reading, ms(9_999), true, wait),
            (Phase::Reading, ms(10_000), false, Verdict::CutInput(Some(Event::RequestTimeout))),
            (Phase::Working, ms(1_000_000), true, wait),
            (Phase::Writing, ms(9_999), true, wait),
            (Phase::Writing, ms(10_000), true, Verdict::CutAll(Some(Event::WriteTimeout))),
            (Phase::Lingering, ms(999), true, wait),
            (Phase::Lingering, ms(1_000), false, Verdict::CutInput(None)),
        ] {
            assert_eq!(verdict(phase, age, &limits, draining), expected, "{phase:?} {age:?}");
        }
    }
}

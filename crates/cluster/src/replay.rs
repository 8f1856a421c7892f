//! The replay of what one peer missed: when to connect, how much to send, what its answers mean.
//!
//! ```text
//!            hints wait, the pause is over            connected
//!   Idle ──────────────────────────────────▶ Dial ──────────────▶ Send ──answers──▶ a rest
//!    ▲                                        │                    │ ▲                 │
//!    │          10 s without hints            └──── failed ────────┘ └─────────────────┘
//!    └──────────── hang up ◀───────────────────── a pause, which doubles
//! ```
//!
//! Hints go out in their order, a window at a time. Only the leading hints of a window that the
//! peer took, or will never take, are forgotten: nothing overtakes a hint that it cannot take now.
//! One that it will never take is lost, and the peer needs repair. A connection that failed once
//! is never used again.
//!
//! Owner: whoever keeps the hints of one peer. The caller reads hints, dials and sends; time is its
//! own, in µs. Bounds: a window by the [`Pace`] and [`WINDOW_BYTES`], the pause by
//! [`RETRY_MAX_MICROS`], bytes a second by the rest that the caller's budget asks for.

use koltso_model::{Outcome, Refused};

use crate::pace::Pace;

/// Most bytes of keys and values in one window, unless a single record is larger.
pub const WINDOW_BYTES: u64 = 1 << 20;
/// The longest pause after a failure, in µs.
pub const RETRY_MAX_MICROS: u64 = 2_000_000;
/// A connection without hints to send is dropped after this, in µs.
pub const IDLE_MICROS: u64 = 10_000_000;

/// What a peer says to one hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has the record, or a newer one.
    Taken,
    /// It cannot take it now (its disk is full): it is sent again later.
    NotNow,
    /// It will never take it: the record is larger than its format allows, or was made by a build
    /// that knew more than the node that has the hint.
    Never,
}

impl Verdict {
    /// What the outcome of a hint's write means.
    ///
    /// # Errors
    /// A sentence, if that is no outcome of a write: the peer broke the protocol.
    pub fn of<B>(outcome: &Outcome<B>) -> Result<Self, &'static str> {
        match outcome {
            Outcome::Applied | Outcome::Superseded(_) => Ok(Self::Taken),
            Outcome::Refused(Refused::TooLarge) => Ok(Self::Never),
            Outcome::Refused(_) => Ok(Self::NotNow),
            Outcome::Found(_) | Outcome::Absent(_) | Outcome::Damaged => {
                Err("it answered a write as if it were a read")
            }
        }
    }
}

/// What the caller has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until then; `None`: until a hint is kept or an answer comes.
    Wait(Option<u64>),
    /// Connect, and call [`Replay::connected`] or [`Replay::failed`].
    Dial,
    /// Read the oldest hints, so many at most, and send them; then call [`Replay::sent`].
    Send {
        /// Most hints.
        count_max: u32,
        /// Most bytes.
        bytes_max: u64,
    },
    /// Close the connection.
    HangUp,
}

/// What a window's answers mean for its hints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// So many leading hints are forgotten.
    pub forget: usize,
    /// So many of them are lost: the peer needs repair.
    pub lost: usize,
}

/// The machine; see the module.
#[derive(Clone, Debug)]
pub struct Replay {
    pace: Pace,
    /// The first pause after a failure, in µs.
    retry: u64,
    /// The next one.
    pause: u64,
    next_at: u64,
    /// When the connection was last of use.
    used_at: u64,
    connected: bool,
    /// Since when a window's answers are awaited.
    sent_at: Option<u64>,
    replayed: u64,
}

impl Replay {
    /// A replay that may begin at once, and whose first pause after a failure is `retry_micros`.
    #[must_use]
    pub fn new(now: u64, retry_micros: u64) -> Self {
        let retry = retry_micros.max(1);
        Self {
            pace: Pace::default(),
            retry,
            pause: retry,
            next_at: now,
            used_at: now,
            connected: false,
            sent_at: None,
            replayed: 0,
        }
    }

    /// Hints that the peer took.
    #[must_use]
    pub const fn replayed(&self) -> u64 {
        self.replayed
    }

    /// Whether a pause or a rest is over, if there was one.
    #[must_use]
    pub const fn is_due(&self, now: u64) -> bool {
        now >= self.next_at
    }

    /// Since when a window's answers are awaited, if one is.
    #[must_use]
    pub const fn sent_at(&self) -> Option<u64> {
        self.sent_at
    }

    /// When [`Replay::step`] has something to do, if nothing happens before.
    #[must_use]
    pub fn wakes_at(&self, pending: u64) -> Option<u64> {
        match (pending > 0, self.connected) {
            (true, _) => self.sent_at.is_none().then_some(self.next_at),
            (false, true) => Some(self.used_at + IDLE_MICROS),
            (false, false) => None,
        }
    }

    /// What is to be done now, with so many hints pending.
    pub fn step(&mut self, now: u64, pending: u64) -> Step {
        if pending > 0 {
            self.used_at = now;
            if self.sent_at.is_some() || !self.is_due(now) {
                return Step::Wait(self.wakes_at(pending));
            }
            if !self.connected {
                return Step::Dial;
            }
            return Step::Send { count_max: self.pace.window(), bytes_max: WINDOW_BYTES };
        }
        if self.connected && self.sent_at.is_none() && self.used_at + IDLE_MICROS <= now {
            self.connected = false;
            return Step::HangUp;
        }
        Step::Wait(self.wakes_at(pending))
    }

    /// The dial succeeded.
    pub fn connected(&mut self) {
        self.connected = true;
    }

    /// A window is on its way.
    pub fn sent(&mut self, now: u64) {
        self.sent_at = Some(now);
    }

    /// The hints could not be read now; the connection is still good.
    pub fn unreadable(&mut self, now: u64) {
        self.back_off(now);
    }

    /// The dial failed, or the connection did: it must not be used again, and nothing of the window
    /// counts as answered.
    pub fn failed(&mut self, now: u64) {
        self.connected = false;
        self.back_off(now);
    }

    /// All answers to the window are there, in its order.
    pub fn answered(&mut self, now: u64, verdicts: &[Verdict]) -> Settled {
        let forget = verdicts.iter().take_while(|&&verdict| verdict != Verdict::NotNow).count();
        let lost = verdicts[..forget].iter().filter(|&&verdict| verdict == Verdict::Never).count();
        self.replayed += (forget - lost) as u64;
        if forget > 0 {
            self.pause = self.retry;
        }
        if forget < verdicts.len() {
            self.back_off(now);
        } else {
            let took = now - self.sent_at.take().unwrap_or(now);
            self.next_at = self.next_at.max(now + self.pace.confirmed(took));
        }
        Settled { forget, lost }
    }

    /// Nothing is sent before `until`: what was sent has to be paid for first.
    pub fn rest(&mut self, until: u64) {
        self.next_at = self.next_at.max(until);
    }

    fn back_off(&mut self, now: u64) {
        self.sent_at = None;
        self.pace.failed();
        self.next_at = self.next_at.max(now + self.pause);
        self.pause = (self.pause * 2).min(RETRY_MAX_MICROS.max(self.retry));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Never, NotNow, Taken};

    const MS: u64 = 1_000;

    fn sending() -> Replay {
        let mut replay = Replay::new(0, 200 * MS);
        assert_eq!(replay.step(0, 5), Step::Dial);
        replay.connected();
        assert!(matches!(replay.step(0, 5), Step::Send { bytes_max: WINDOW_BYTES, .. }));
        replay.sent(0);
        assert_eq!(replay.step(MS, 5), Step::Wait(None), "one window at a time");
        replay
    }

    #[test]
    fn only_the_leading_hints_are_forgotten() {
        for (verdicts, forget, lost) in [
            (&[Taken, Taken, Taken][..], 3, 0),
            (&[Taken, NotNow, Taken], 1, 0),
            (&[NotNow, Taken, Taken], 0, 0),
            (&[Taken, Never, Taken, NotNow], 3, 1),
            (&[Never, Never], 2, 2),
        ] {
            let mut replay = sending();
            assert_eq!(replay.answered(MS, verdicts), Settled { forget, lost }, "{verdicts:?}");
            assert_eq!(replay.replayed(), (forget - lost) as u64);
        }
    }

    #[test]
    fn a_refusal_keeps_the_connection_and_pauses_longer_each_time() {
        let mut replay = sending();
        let mut now = MS;
        for pause in [200, 400, 800, 1600, 2000, 2000] {
            assert_eq!(replay.answered(now, &[NotNow]).forget, 0);
            assert_eq!(replay.step(now, 5), Step::Wait(Some(now + pause * MS)));
            now += pause * MS;
            assert!(matches!(replay.step(now, 5), Step::Send { .. }));
            replay.sent(now);
        }
        replay.answered(now + MS, &[Taken]);
        let Step::Wait(Some(rest)) = replay.step(now + MS, 5) else { panic!("it rests") };
        replay.step(rest, 5);
        replay.sent(rest);
        replay.answered(rest, &[NotNow]);
        assert_eq!(replay.step(rest, 5), Step::Wait(Some(rest + 200 * MS)), "the pauses begin small again");
    }

    #[test]
    fn a_connection_that_failed_is_not_used_again() {
        let mut replay = sending();
        replay.failed(MS);
        assert_eq!(replay.step(MS, 5), Step::Wait(Some(201 * MS)));
        assert_eq!(replay.step(201 * MS, 5), Step::Dial);
        replay.failed(201 * MS);
        assert_eq!(replay.step(202 * MS, 5), Step::Wait(Some(601 * MS)));
        let mut replay = sending();
        replay.answered(MS, &[Taken]);
        replay.unreadable(2 * MS);
        assert!(matches!(replay.step(300 * MS, 5), Step::Send { .. }), "the connection is still good");
    }

    #[test]
    fn what_was_sent_is_paid_for_before_more_is() {
        let mut replay = sending();
        replay.answered(MS, &[Taken]);
        replay.rest(700 * MS);
        replay.rest(600 * MS);
        assert_eq!(replay.step(MS, 5), Step::Wait(Some(700 * MS)));
        assert_eq!(replay.wakes_at(5), Some(700 * MS));
        assert!(matches!(replay.step(700 * MS, 5), Step::Send { .. }));
    }

    #[test]
    fn an_idle_connection_is_dropped() {
        let mut replay = sending();
        replay.answered(MS, &[Taken]);
        assert_eq!(replay.step(2 * MS, 0), Step::Wait(Some(MS + IDLE_MICROS)));
        assert_eq!(replay.step(MS + IDLE_MICROS, 0), Step::HangUp);
        assert_eq!(replay.step(MS + IDLE_MICROS, 0), Step::Wait(None));
        assert_eq!(replay.step(2 * IDLE_MICROS, 1), Step::Dial);
    }

    #[test]
    fn what_is_no_outcome_of_a_write_breaks_the_protocol() {
        assert_eq!(Verdict::of(&Outcome::<&[u8]>::Refused(Refused::TooLarge)), Ok(Never));
        assert_eq!(Verdict::of(&Outcome::<&[u8]>::Refused(Refused::NotReady)), Ok(NotNow));
        assert!(Verdict::of(&Outcome::<&[u8]>::Absent(None)).is_err());
    }
}

//! What each connection of a core is waiting for and since when, and the end of those that wait too
//! long.
//!
//! There are no timers: a connection notes its phase in two cells, and the core's sweeper checks
//! all of them a few times a second. A deadline shuts the socket down, so that the pending
//! operation ends by itself and its buffer comes back.
//!
//! ```text
//! Idle ─first byte─▶ Reading ─whole request─▶ Working ─socket full─▶ Writing ─▶ Working ─▶ Idle
//!                       └─ refused ─▶ Lingering ─▶ closed
//! ```
//!
//! Owner: each core has one table. Bound: `connections_max` entries. Invariant: an entry's
//! descriptor is open while it is in the table. Tested below (the verdicts, as a table) and in
//! `tests/limits.rs`.

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Event, Limits, sys};

/// How long a client may go on sending after its connection's last answer.
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
    /// It waits for the end of a refused client's input.
    Lingering,
}

/// One connection's entry.
#[derive(Debug)]
pub(crate) struct Deadline {
    fd: RawFd,
    phase: Cell<Phase>,
    since: Cell<Instant>,
    /// The phase that took too long; `None` if none did.
    expired: Cell<Option<Phase>>,
}

impl Deadline {
    #[inline]
    pub(crate) fn set(&self, phase: Phase, since: Instant) {
        self.phase.set(phase);
        self.since.set(since);
    }

    /// Whether the request did not arrive completely in time.
    pub(crate) fn request_expired(&self) -> bool {
        self.expired.get() == Some(Phase::Reading)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Wait,
    /// End the pending read.
    CutInput(Option<Event>),
    /// End the pending write.
    CutAll(Event),
}

fn verdict(phase: Phase, age: Duration, limits: &Limits, draining: bool) -> Verdict {
    match phase {
        Phase::Idle if age >= limits.idle_timeout => Verdict::CutInput(Some(Event::IdleTimeout)),
        Phase::Idle if draining => Verdict::CutInput(None),
        Phase::Reading if age >= limits.request_timeout => Verdict::CutInput(Some(Event::RequestTimeout)),
        Phase::Writing if age >= limits.request_timeout => Verdict::CutAll(Event::WriteTimeout),
        Phase::Lingering if age >= LINGER => Verdict::CutInput(None),
        _ => Verdict::Wait,
    }
}

/// The deadlines of all connections of a core.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    entries: RefCell<Vec<Option<Rc<Deadline>>>>,
    free: RefCell<Vec<usize>>,
}

impl Deadlines {
    /// Adds an idle connection; returns its place in the table.
    pub(crate) fn insert(&self, fd: RawFd, now: Instant) -> (usize, Rc<Deadline>) {
        let deadline =
            Rc::new(Deadline { fd, phase: Cell::new(Phase::Idle), since: Cell::new(now), expired: Cell::new(None) });
        let mut entries = self.entries.borrow_mut();
        let place = self.free.borrow_mut().pop().unwrap_or_else(|| {
            entries.push(None);
            entries.len() - 1
        });
        entries[place] = Some(Rc::clone(&deadline));
        (place, deadline)
    }

    /// Removes a connection, before its socket is closed.
    pub(crate) fn remove(&self, place: usize) {
        self.entries.borrow_mut()[place] = None;
        self.free.borrow_mut().push(place);
    }

    /// Ends the connections that have waited too long.
    pub(crate) fn sweep(&self, now: Instant, limits: &Limits, draining: bool, event: impl Fn(Event)) {
        for deadline in self.entries.borrow().iter().flatten() {
            let phase = deadline.phase.get();
            let age = now.saturating_duration_since(deadline.since.get());
            let happened = match verdict(phase, age, limits, draining) {
                Verdict::Wait => continue,
                Verdict::CutInput(happened) => {
                    sys::shutdown(deadline.fd, libc::SHUT_RD);
                    happened
                }
                Verdict::CutAll(happened) => {
                    sys::shutdown(deadline.fd, libc::SHUT_RDWR);
                    Some(happened)
                }
            };
            deadline.expired.set(Some(phase));
            // Nothing more is needed here: the connection's task ends it.
            deadline.phase.set(Phase::Working);
            if let Some(happened) = happened {
                event(happened);
            }
        }
    }

    /// Ends all connections, at the end of a drain.
    pub(crate) fn cut_all(&self) {
        for deadline in self.entries.borrow().iter().flatten() {
            sys::shutdown(deadline.fd, libc::SHUT_RDWR);
        }
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
            (Phase::Writing, ms(10_000), true, Verdict::CutAll(Event::WriteTimeout)),
            (Phase::Lingering, ms(999), true, wait),
            (Phase::Lingering, ms(1_000), false, Verdict::CutInput(None)),
        ] {
            assert_eq!(verdict(phase, age, &limits, draining), expected, "{phase:?} {age:?}");
        }
    }

    #[test]
    fn places_are_used_again() {
        let table = Deadlines::default();
        let (first, _) = table.insert(-1, Instant::now());
        let (second, _) = table.insert(-1, Instant::now());
        assert_ne!(first, second);
        table.remove(first);
        assert_eq!(table.insert(-1, Instant::now()).0, first);
        assert_eq!(table.entries.borrow().len(), 2);
    }
}

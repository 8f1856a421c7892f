//! The connections of one core, whatever protocol they speak: accepting, seats, deadlines and
//! drain.
//!
//! ```text
//! accept ─▶ SeatGuard::take ─▶ the protocol's task, which says what it waits for (Seat::set)
//!                │                      ▲
//!                └─ sweeper: Host::judge ─ CutInput, CutAll ─▶ the pending operation ends itself
//! drain: no more accepts ─▶ sweeps ─▶ everything is cut ─▶ given up
//! ```
//!
//! There are no timers: a connection notes its phase in two cells, and the core's sweeper checks
//! all of them a few times a second. A deadline shuts the socket down, so that the pending
//! operation ends by itself and its buffer comes back.
//!
//! Owner: one table for each protocol of a core, behind the `Rc` of its [`Host`]. Bounds: the
//! connections of all cores that share a [`Shared`], and the times in [`Times`].
//!
//! Invariants:
//! 1. The descriptor of a seat is open while the seat is in the table: a connection gives up its
//!    [`SeatGuard`] before it closes its socket.
//! 2. The sweeper runs exactly while there are connections.
//!
//! Deliberately absent: what a phase means and how long it may last, which the protocols decide.
//! Tested below, and through `tests/limits.rs`, `tests/drain.rs` and `tests/replica/`.

mod shared;

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use monoio::net::TcpStream;

pub use self::shared::Shared;
use crate::transport::sys;

/// The pause after a failed accept: long enough for descriptors to become free, too short to be
/// noticed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often a drain checks whether the last connection is gone.
const DRAIN_STEP: Duration = Duration::from_millis(5);
/// The time that connections get to end after they have been shut down hard.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// What a protocol decides about its connections on one core.
pub(crate) trait Host: Sized + 'static {
    /// What a connection is waiting for.
    type Phase: Copy + Eq + Debug;
    /// What a connection may wait for beside its socket.
    type Waits: Wake;
    /// What is reported when a deadline strikes.
    type Event;
    /// The name of the protocol in the log.
    const PROTOCOL: &'static str;

    /// The connections of the protocol on this core.
    fn connections(&self) -> &Connections<Self>;

    /// What must happen to a connection that has been in `phase` for `age`.
    fn judge(&self, phase: Self::Phase, age: Duration, draining: bool) -> Verdict<Self::Event>;

    /// A deadline has struck.
    fn event(&self, event: Self::Event);

    /// A connection has given up its seat.
    fn closed(&self);

    /// Called before each sweep, and when the sweeper begins to run.
    fn tick(&self) {}
}

/// Something that a connection may wait for beside its socket.
pub(crate) trait Wake {
    /// Wakes the connection's task, so that it sees that the connection was cut off.
    fn wake(&self);
}

/// For connections that wait for nothing else.
impl Wake for () {
    fn wake(&self) {}
}

/// What must happen to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict<E> {
    /// It may go on waiting.
    Wait,
    /// Its pending read ends. Bytes that have already come are still read.
    CutInput(Option<E>),
    /// Its pending read or write ends, and it ends whatever else it waits for.
    CutAll(Option<E>),
}

/// How often connections are swept, and how long a drain takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// The time between two sweeps.
    pub(crate) sweep_interval: Duration,
    /// How long requests in flight may take after a drain has begun; then their connections are
    /// shut down.
    pub(crate) drain_timeout: Duration,
}

/// The table of the connections of one core.
pub(crate) struct Connections<H: Host> {
    shared: Arc<Shared>,
    times: Times,
    seats: RefCell<Vec<Option<Rc<Seat<H>>>>>,
    /// Free seats of the table.
    free: RefCell<Vec<usize>>,
    count: Cell<usize>,
    sweeping: Cell<bool>,
}

/// What the sweeper knows about one connection.
pub(crate) struct Seat<H: Host> {
    fd: RawFd,
    phase: Cell<H::Phase>,
    since: Cell<Instant>,
    /// The phase that took too long; `None` if none did.
    expired: Cell<Option<H::Phase>>,
    cut: Cell<bool>,
    waits: H::Waits,
}

impl<H: Host> Seat<H> {
    /// Notes that the connection waits for something else, since `since`.
    #[inline]
    pub(crate) fn set(&self, phase: H::Phase, since: Instant) {
        self.phase.set(phase);
        self.since.set(since);
    }

    /// Notes progress in what the connection waits for.
    pub(crate) fn progressed(&self) {
        self.since.set(Instant::now());
    }

    /// Whether the connection's input was ended because this phase took too long.
    pub(crate) fn has_expired(&self, phase: H::Phase) -> bool {
        self.expired.get() == Some(phase)
    }

    /// Whether the connection was cut off in both directions.
    #[inline]
    pub(crate) fn is_cut(&self) -> bool {
        self.cut.get()
    }

    /// What the connection may wait for beside its socket.
    #[inline]
    pub(crate) const fn waits(&self) -> &H::Waits {
        &self.waits
    }

    /// Ends the connection, whatever it waits for.
    pub(crate) fn cut(&self) {
        sys::shutdown(self.fd, libc::SHUT_RDWR);
        self.cut.set(true);
        self.waits.wake();
    }
}

impl<H: Host> Connections<H> {
    /// A table without connections.
    pub(crate) fn new(shared: Arc<Shared>, times: Times) -> Self {
        Self {
            shared,
            times,
            seats: RefCell::default(),
            free: RefCell::default(),
            count: Cell::new(0),
            sweeping: Cell::new(false),
        }
    }

    /// What all cores share.
    #[inline]
    pub(crate) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn insert(&self, seat: Rc<Seat<H>>) -> usize {
        let mut seats = self.seats.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            seats.push(None);
            seats.len() - 1
        });
        seats[index] = Some(seat);
        self.count.set(self.count.get() + 1);
        index
    }

    fn remove(&self, index: usize) {
        self.seats.borrow_mut()[index] = None;
        self.free.borrow_mut().push(index);
        self.count.set(self.count.get() - 1);
    }

    /// Cuts all connections off.
    fn cut_all(&self) {
        self.seats.borrow().iter().flatten().for_each(|seat| seat.cut());
    }
}

/// Holds a connection's seat in the table of its core, from accept to drop.
pub(crate) struct SeatGuard<H: Host> {
    pub(crate) host: Rc<H>,
    pub(crate) seat: Rc<Seat<H>>,
    index: usize,
}

impl<H: Host> SeatGuard<H> {
    /// Takes a seat for an accepted connection. `None` if all cores together have `max`.
    pub(crate) fn take(
        host: &Rc<H>,
        stream: &TcpStream,
        max: usize,
        (phase, now): (H::Phase, Instant),
        waits: H::Waits,
    ) -> Option<Self> {
        let connections = host.connections();
        if !connections.shared.enter(max) {
            return None;
        }
        // Otherwise an answer may wait for an acknowledgement that the other side delays. A socket
        // that refuses this still works.
        let _ = stream.set_nodelay(true);
        let seat = Rc::new(Seat {
            fd: stream.as_raw_fd(),
            phase: Cell::new(phase),
            since: Cell::new(now),
            expired: Cell::new(None),
            cut: Cell::new(false),
            waits,
        });
        let index = connections.insert(Rc::clone(&seat));
        if !connections.sweeping.replace(true) {
            host.tick();
            monoio::spawn(sweep_while_connected(Rc::clone(host)));
        }
        Some(Self { host: Rc::clone(host), seat, index })
    }
}

impl<H: Host> Drop for SeatGuard<H> {
    fn drop(&mut self) {
        let connections = self.host.connections();
        connections.remove(self.index);
        connections.shared.leave();
        self.host.closed();
    }
}

async fn sweep_while_connected<H: Host>(host: Rc<H>) {
    let connections = host.connections();
    while connections.count.get() > 0 {
        monoio::time::sleep(connections.times.sweep_interval).await;
        sweep(&*host);
    }
    connections.sweeping.set(false);
}

/// Ends the connections that have waited too long.
fn sweep<H: Host>(host: &H) {
    host.tick();
    let connections = host.connections();
    let (now, draining) = (Instant::now(), connections.shared.draining());
    for seat in connections.seats.borrow().iter().flatten() {
        let phase = seat.phase.get();
        if seat.is_cut() || seat.has_expired(phase) {
            // The connection's task ends it.
            continue;
        }
        let age = now.saturating_duration_since(seat.since.get());
        let event = match host.judge(phase, age, draining) {
            Verdict::Wait => continue,
            Verdict::CutInput(event) => {
                sys::shutdown(seat.fd, libc::SHUT_RD);
                event
            }
            Verdict::CutAll(event) => {
                seat.cut();
                event
            }
        };
        seat.expired.set(Some(phase));
        if let Some(event) = event {
            host.event(event);
        }
    }
}

/// Accepts connections from `listener` until [`Shared::drain`] is called, then ends the remaining
/// ones in stages: those that wait for requests at once, those with requests in flight when these
/// are done or their time is over.
///
/// # Errors
/// Only if the listener cannot be used at all. If an accept fails, that is logged and the server
/// goes on.
pub(crate) async fn serve<H: Host>(
    host: &Rc<H>,
    listener: TcpListener,
    accepted: impl Fn(TcpStream),
) -> io::Result<()> {
    accept_until_drained(listener, &host.connections().shared, accepted).await?;
    drain(&**host).await;
    Ok(())
}

async fn accept_until_drained(listener: TcpListener, shared: &Shared, accepted: impl Fn(TcpStream)) -> io::Result<()> {
    // io_uring waits in a blocking accept, and reports EAGAIN from a non-blocking one; epoll is the
    // other way round.
    listener.set_nonblocking(monoio::utils::is_legacy())?;
    shared.register(&listener)?;
    let listener = monoio::net::TcpListener::from_std(listener)?;

    let mut complained: Option<Instant> = None;
    while !shared.draining() {
        match listener.accept().await {
            Ok((stream, _)) if !shared.draining() => accepted(stream),
            Ok(_) => {}
            Err(_) if shared.draining() => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if complained.is_none_or(|then| then.elapsed() >= Duration::from_secs(1)) {
                    tracing::warn!(%error, "cannot accept connections");
                    complained = Some(Instant::now());
                }
                monoio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    Ok(())
}

async fn drain<H: Host>(host: &H) {
    let connections = host.connections();
    let timeout = connections.times.drain_timeout;
    let begun = Instant::now();
    let mut hard = false;
    loop {
        sweep(host);
        if connections.count.get() == 0 {
            return;
        }
        if !hard && begun.elapsed() >= timeout {
            hard = true;
            connections.cut_all();
        }
        if begun.elapsed() >= timeout + DRAIN_GRACE {
            tracing::warn!(
                connections = connections.count.get(),
                "{} connections left unfinished by the drain",
                H::PROTOCOL
            );
            return;
        }
        monoio::time::sleep(DRAIN_STEP).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Phase {
        Asking,
        Answering,
        Done,
    }

    struct Test {
        connections: Connections<Self>,
        events: RefCell<Vec<&'static str>>,
        ticks: Cell<usize>,
    }

    #[derive(Default)]
    struct Woken(Cell<usize>);

    impl Wake for Woken {
        fn wake(&self) {
            self.0.set(self.0.get() + 1);
        }
    }

    impl Host for Test {
        type Phase = Phase;
        type Waits = Woken;
        type Event = &'static str;
        const PROTOCOL: &'static str = "test";

        fn connections(&self) -> &Connections<Self> {
            &self.connections
        }

        fn judge(&self, phase: Phase, age: Duration, draining: bool) -> Verdict<&'static str> {
            match phase {
                Phase::Asking if draining => Verdict::CutInput(None),
                Phase::Asking if age >= Duration::from_secs(2) => Verdict::CutInput(Some("asked too long")),
                Phase::Answering if age >= Duration::from_secs(2) => Verdict::CutAll(Some("answered too long")),
                _ => Verdict::Wait,
            }
        }

        fn event(&self, event: &'static str) {
            self.events.borrow_mut().push(event);
        }

        fn closed(&self) {}

        fn tick(&self) {
            self.ticks.set(self.ticks.get() + 1);
        }
    }

    impl Test {
        fn new() -> Self {
            let times = Times { sweep_interval: Duration::from_secs(1), drain_timeout: Duration::from_secs(1) };
            let connections = Connections::new(Shared::new(), times);
            Self { connections, events: RefCell::default(), ticks: Cell::new(0) }
        }

        /// A seat that has been in `phase` for `age`.
        fn seat(&self, socket: &UnixStream, phase: Phase, age: Duration) -> (usize, Rc<Seat<Self>>) {
            let since = Instant::now().checked_sub(age).unwrap();
            let seat = Rc::new(Seat {
                fd: socket.as_raw_fd(),
                phase: Cell::new(phase),
                since: Cell::new(since),
                expired: Cell::new(None),
                cut: Cell::new(false),
                waits: Woken::default(),
            });
            (self.connections.insert(Rc::clone(&seat)), seat)
        }
    }

    /// Whether the other end sees that this one has been shut down for reading (its writes fail),
    /// and for writing (its reads end).
    fn ends(other: &UnixStream) -> (bool, bool) {
        use std::io::{Read, Write};
        other.set_nonblocking(true).unwrap();
        let (mut write, mut read) = (other, other);
        (write.write(b"x").is_err(), matches!(read.read(&mut [0; 10]), Ok(0)))
    }

    #[test]
    fn a_deadline_strikes_once_and_ends_what_is_pending() {
        let test = Test::new();
        let sockets: Vec<_> = (0..4).map(|_| UnixStream::pair().unwrap()).collect();
        let long = Duration::from_secs(3);
        let (_, asking) = test.seat(&sockets[0].0, Phase::Asking, long);
        let (_, answering) = test.seat(&sockets[1].0, Phase::Answering, long);
        let (_, fresh) = test.seat(&sockets[2].0, Phase::Asking, Duration::ZERO);
        let (_, done) = test.seat(&sockets[3].0, Phase::Done, long);
        for _ in 0..2 {
            sweep(&test);
            assert_eq!(*test.events.borrow(), ["asked too long", "answered too long"]);
        }
        let seen: Vec<_> = sockets.iter().map(|(_, other)| ends(other)).collect();
        assert_eq!(seen, [(true, false), (true, true), (false, false), (false, false)]);
        assert!(asking.has_expired(Phase::Asking) && !asking.is_cut() && asking.waits().0.get() == 0);
        assert!(answering.is_cut() && answering.waits().0.get() == 1);
        assert!(!fresh.is_cut() && !done.is_cut());
        // A connection that goes on after that has deadlines again.
        asking.set(Phase::Answering, Instant::now().checked_sub(long).unwrap());
        sweep(&test);
        assert!(asking.is_cut() && test.events.borrow().len() == 3);
        assert_eq!(test.ticks.get(), 3);
    }

    #[test]
    fn a_drain_ends_what_waits_for_requests() {
        let test = Test::new();
        let (socket, other) = UnixStream::pair().unwrap();
        let (_, seat) = test.seat(&socket, Phase::Asking, Duration::ZERO);
        test.connections.shared.drain();
        sweep(&test);
        assert_eq!((ends(&other), seat.is_cut()), ((true, false), false));
        test.connections.cut_all();
        assert!(seat.is_cut() && seat.waits().0.get() == 1);
        assert!(test.events.borrow().is_empty());
    }

    #[test]
    fn seats_are_used_again() {
        let test = Test::new();
        let (socket, _other) = UnixStream::pair().unwrap();
        let (first, _) = test.seat(&socket, Phase::Done, Duration::ZERO);
        let (second, _) = test.seat(&socket, Phase::Done, Duration::ZERO);
        assert_ne!(first, second);
        test.connections.remove(first);
        assert_eq!(test.connections.count.get(), 1);
        assert_eq!(test.seat(&socket, Phase::Done, Duration::ZERO).0, first);
        assert_eq!(test.connections.seats.borrow().len(), 2);
    }
}

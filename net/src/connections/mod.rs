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
//! connections of all cores that share a [`Shared`] and those of one address ([`Room`]), and the
//! times in [`Times`].
//!
//! Invariants:
//! 1. The descriptor of a seat is open while the seat is in the table: a connection gives up its
//!    [`SeatGuard`] before it closes its socket.
//! 2. The sweeper runs exactly while there are connections.
//!
//! Deliberately absent: what a phase means and how long it may last, which the protocols decide.
//! Tested below, and through `tests/limits.rs`, `tests/drain.rs` and `tests/replica/`.

mod accept;
mod addresses;
mod shared;

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use monoio::net::TcpStream;

use self::accept::accept_until_drained;
pub(crate) use self::addresses::{Full, Origin, Room};
pub use self::shared::Shared;
use crate::transport::sys;

/// The most connections that a sweep looks at, and ends, before the others get their turn: a few tens
/// of microseconds. Thousands of connections that end at once must not be noticed by the rest.
const SEATS_A_TURN: usize = 512;
const CUTS_A_TURN: usize = 8;
/// The pause between two turns of a sweep.
const SWEEP_PAUSE: Duration = Duration::from_millis(1);
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

    /// What must happen to a connection that has been in its phase for `age`.
    fn judge(&self, seat: &Seat<Self>, now: Instant, age: Duration, draining: bool) -> Verdict<Self::Event>;

    /// A deadline has struck.
    fn event(&self, event: Self::Event);

    /// A connection has given up its seat.
    fn closed(&self);

    /// There were no descriptors, or no memory, for a connection; it waits in the kernel's queue.
    fn short(&self);

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

    /// What the connection waits for.
    pub(crate) fn phase(&self) -> H::Phase {
        self.phase.get()
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

    /// Ends the input, since the present phase took too long. Bytes that have come are still read.
    pub(crate) fn cut_input(&self) {
        sys::shutdown(self.fd, libc::SHUT_RD);
        self.expired.set(Some(self.phase.get()));
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

    /// Shows each seat to `look`.
    pub(crate) fn each(&self, look: impl FnMut(&Rc<Seat<H>>)) {
        self.seats.borrow().iter().flatten().for_each(look);
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
    /// The origin for which the connection counts.
    origin: Option<Origin>,
}

impl<H: Host> SeatGuard<H> {
    /// Takes a seat for an accepted connection.
    ///
    /// # Errors
    /// Nothing is counted if there is no [`Room`].
    pub(crate) fn take(
        host: &Rc<H>,
        stream: &TcpStream,
        room: Room,
        (phase, now): (H::Phase, Instant),
        waits: H::Waits,
    ) -> Result<Self, Full> {
        let connections = host.connections();
        connections.shared.enter(room)?;
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
        let origin = room.of_origin.map(|(origin, _)| origin);
        Ok(Self { host: Rc::clone(host), seat, index, origin })
    }
}

impl<H: Host> Drop for SeatGuard<H> {
    fn drop(&mut self) {
        let connections = self.host.connections();
        connections.remove(self.index);
        connections.shared.leave(self.origin);
        self.host.closed();
    }
}

async fn sweep_while_connected<H: Host>(host: Rc<H>) {
    let connections = host.connections();
    while connections.count.get() > 0 {
        monoio::time::sleep(connections.times.sweep_interval).await;
        host.tick();
        let mut next = Some(0);
        while let Some(at) = next {
            next = sweep_some(&*host, at, (SEATS_A_TURN, CUTS_A_TURN));
            if next.is_some() {
                monoio::time::sleep(SWEEP_PAUSE).await;
            }
        }
    }
    connections.sweeping.set(false);
}

/// Ends the connections that have waited too long.
fn sweep<H: Host>(host: &H) {
    host.tick();
    let all = sweep_some(host, 0, (usize::MAX, usize::MAX));
    debug_assert_eq!(all, None);
}

/// Looks at the connections from the seat `from` on, at most at so many, and ends at most so many of
/// them. Returns the seat to go on with.
fn sweep_some<H: Host>(host: &H, from: usize, (mut looks, mut cuts): (usize, usize)) -> Option<usize> {
    let connections = host.connections();
    let (now, draining) = (Instant::now(), connections.shared.draining());
    let seats = connections.seats.borrow();
    for (at, seat) in seats.iter().enumerate().skip(from) {
        if looks == 0 || cuts == 0 {
            return Some(at);
        }
        looks -= 1;
        let Some(seat) = seat else { continue };
        let phase = seat.phase.get();
        if seat.is_cut() || seat.has_expired(phase) {
            // The connection's task ends it.
            continue;
        }
        let age = now.saturating_duration_since(seat.since.get());
        let event = match host.judge(seat, now, age, draining) {
            Verdict::Wait => continue,
            Verdict::CutInput(event) => {
                seat.cut_input();
                event
            }
            Verdict::CutAll(event) => {
                seat.cut();
                seat.expired.set(Some(phase));
                event
            }
        };
        cuts -= 1;
        if let Some(event) = event {
            host.event(event);
        }
    }
    None
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
    accepted: impl Fn(TcpStream, IpAddr),
) -> io::Result<()> {
    accept_until_drained(listener, &host.connections().shared, accepted, || host.short()).await?;
    drain(&**host).await;
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
mod tests;

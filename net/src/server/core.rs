//! What the connections of one core share: service, limits, clock, date, output buffers, counters,
//! deadlines.
//!
//! Owner: one runtime, behind an `Rc`. Every counter has its maximum in [`Limits`].
//!
//! Invariants:
//! 1. `requests_in_flight` is the sum of the requests that the core's seats hold, and `body_bytes`
//!    that of its reservations. Both give their share back on drop, however a connection ends.
//! 2. The sweeper runs exactly while there are connections.
//!
//! Tested through `tests/limits.rs`.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use monoio::net::TcpStream;

use super::answers::Answers;
use super::connection::Connection;
use super::deadlines::{Deadline, Deadlines};
use super::{Event, Limits, Service, Shared};
use crate::http::Date;

/// How often deadlines are checked and the date is renewed, unless a limit is so short that it must
/// be more often.
const SWEEP_INTERVAL: Duration = Duration::from_millis(200);
/// The most output buffers that are kept for reuse.
const POOL_MAX: usize = 128;
/// One in this many yields also lets the timers run; see [`Core::yield_turn`].
const YIELDS_A_SLEEP: u32 = 32;

pub(crate) struct Core<S> {
    pub(crate) service: Rc<S>,
    pub(crate) limits: Limits,
    pub(crate) shared: Arc<Shared>,
    pub(crate) deadlines: Deadlines,
    /// Whether the driver is epoll, on which operations that are ready never give up the turn.
    pub(crate) legacy: bool,
    connections: Cell<usize>,
    requests_in_flight: Cell<usize>,
    body_bytes: Cell<usize>,
    date: Cell<Date>,
    pool: RefCell<Vec<Answers>>,
    sweeping: Cell<bool>,
    yields: Cell<u32>,
}

impl<S: Service> Core<S> {
    pub(crate) fn new(service: Rc<S>, limits: Limits, shared: Arc<Shared>) -> Self {
        Self {
            service,
            limits,
            shared,
            deadlines: Deadlines::default(),
            legacy: monoio::utils::is_legacy(),
            connections: Cell::new(0),
            requests_in_flight: Cell::new(0),
            body_bytes: Cell::new(0),
            date: Cell::new(Date::new(SystemTime::now())),
            pool: RefCell::default(),
            sweeping: Cell::new(false),
            yields: Cell::new(0),
        }
    }

    /// Takes in a new connection, or closes it if there are too many.
    pub(crate) fn accepted(self: &Rc<Self>, stream: TcpStream) {
        if !self.shared.enter(self.limits.connections_max) {
            self.service.event(Event::ConnectionLimit);
            return;
        }
        let seat = Seat::new(self, stream.as_raw_fd());
        // Otherwise an answer may wait for an acknowledgement that the client delays. A socket that
        // refuses this still works.
        let _ = stream.set_nodelay(true);
        self.service.event(Event::Accepted);
        if !self.sweeping.replace(true) {
            self.renew_date();
            monoio::spawn(Rc::clone(self).sweep_while_connected());
        }
        monoio::spawn(Connection::new(seat, stream).run());
    }

    async fn sweep_while_connected(self: Rc<Self>) {
        let limits = &self.limits;
        let interval =
            SWEEP_INTERVAL.min(limits.request_timeout / 4).min(limits.idle_timeout / 4).max(Duration::from_millis(5));
        while self.connections.get() > 0 {
            monoio::time::sleep(interval).await;
            self.sweep();
        }
        self.sweeping.set(false);
    }

    /// Renews the date and ends the connections that have waited too long.
    pub(crate) fn sweep(&self) {
        self.renew_date();
        let draining = self.shared.draining();
        self.deadlines.sweep(Instant::now(), &self.limits, draining, |event| self.service.event(event));
    }

    fn renew_date(&self) {
        let mut date = self.date.get();
        date.refresh(SystemTime::now());
        self.date.set(date);
    }

    #[inline]
    pub(crate) fn date(&self) -> Date {
        self.date.get()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.get()
    }

    /// Whether the core has as many requests in flight as it may have.
    #[inline]
    pub(crate) fn requests_full(&self) -> bool {
        self.requests_in_flight.get() >= self.limits.requests_in_flight_max
    }

    /// An empty output buffer, a used one if there is one.
    #[inline]
    pub(crate) fn take_answers(&self) -> Answers {
        self.pool.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes back an empty output buffer.
    #[inline]
    pub(crate) fn give_answers(&self, answers: Answers) {
        let mut pool = self.pool.borrow_mut();
        if pool.len() < POOL_MAX && answers.worth_keeping() {
            pool.push(answers);
        }
    }

    /// Lets all other tasks run once. `yield_now` of monoio 0.2 would put this task before them;
    /// and monoio checks no timer while the queue of tasks is never empty, which is why it sleeps
    /// now and then.
    pub(crate) async fn yield_turn(&self) {
        let yields = self.yields.get().wrapping_add(1);
        self.yields.set(yields);
        if yields.is_multiple_of(YIELDS_A_SLEEP) {
            monoio::time::sleep(Duration::from_millis(1)).await;
        } else {
            monoio::spawn(std::future::ready(())).await;
        }
    }
}

/// A connection's place on its core, taken at accept and given back on drop.
pub(crate) struct Seat<S: Service> {
    pub(crate) core: Rc<Core<S>>,
    pub(crate) deadline: Rc<Deadline>,
    place: usize,
    requests: usize,
}

impl<S: Service> Seat<S> {
    fn new(core: &Rc<Core<S>>, fd: RawFd) -> Self {
        core.connections.set(core.connections.get() + 1);
        let now = Instant::now();
        core.service.resumed(now);
        let (place, deadline) = core.deadlines.insert(fd, now);
        Self { core: Rc::clone(core), deadline, place, requests: 0 }
    }

    /// Counts a request that has been given to the service.
    #[inline]
    pub(crate) fn begin_request(&mut self) {
        self.requests += 1;
        let core = &self.core;
        core.requests_in_flight.set(core.requests_in_flight.get() + 1);
    }

    /// Counts `count` requests whose answers have been sent.
    #[inline]
    pub(crate) fn end_requests(&mut self, count: usize) {
        self.requests -= count;
        let core = &self.core;
        core.requests_in_flight.set(core.requests_in_flight.get() - count);
    }
}

impl<S: Service> Drop for Seat<S> {
    fn drop(&mut self) {
        self.end_requests(self.requests);
        let core = &self.core;
        core.deadlines.remove(self.place);
        core.connections.set(core.connections.get() - 1);
        core.shared.leave();
        core.service.event(Event::Closed);
    }
}

/// A share of the core's `body_bytes_max`, given back on drop.
pub(crate) struct Reservation<S> {
    core: Rc<Core<S>>,
    bytes: usize,
}

impl<S> Reservation<S> {
    pub(crate) fn new(core: &Rc<Core<S>>) -> Self {
        Self { core: Rc::clone(core), bytes: 0 }
    }

    /// Makes the share `bytes`; `false`, and no change, if the core does not have that many left.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let total = self.core.body_bytes.get().saturating_add(more);
        if total > self.core.limits.body_bytes_max {
            return false;
        }
        self.core.body_bytes.set(total);
        self.bytes += more;
        true
    }
}

impl<S> Drop for Reservation<S> {
    fn drop(&mut self) {
        self.core.body_bytes.set(self.core.body_bytes.get() - self.bytes);
    }
}

//! What the clients' connections of one core share: service, limits, date, output buffers and
//! counters.
//!
//! Owner: one runtime, behind an `Rc`. Every counter has its maximum in [`Limits`].
//!
//! Invariant: `requests_in_flight` is the sum of the requests that the core's seats hold, and
//! `body_bytes` that of its reservations. Both give their share back on drop, however a connection
//! ends.
//!
//! Tested through `tests/limits.rs`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use monoio::net::TcpStream;

use super::answers::Answers;
use super::deadlines::{self, Phase};
use super::limits::Limits;
use super::service::{Event, Service};
use crate::connections::{Connections, Host, SeatGuard, Shared, Times, Verdict};
use crate::http::Date;

/// How often deadlines are checked and the date is renewed, unless a limit is so short that it must
/// be more often.
const SWEEP_INTERVAL: Duration = Duration::from_millis(200);
/// The most output buffers that are kept for reuse.
const POOL_MAX: usize = 128;
/// One in this many yields also lets the timers run; see [`HttpCore::yield_turn`].
const YIELDS_A_SLEEP: u32 = 32;

pub(crate) struct HttpCore<S: Service> {
    pub(crate) service: Rc<S>,
    pub(crate) limits: Limits,
    connections: Connections<Self>,
    /// Whether the driver is epoll, on which operations that are ready never give up the turn.
    pub(crate) legacy: bool,
    requests_in_flight: Cell<usize>,
    body_bytes: Cell<usize>,
    date: Cell<Date>,
    pool: RefCell<Vec<Answers>>,
    yields: Cell<u32>,
}

impl<S: Service> HttpCore<S> {
    pub(crate) fn new(service: Rc<S>, limits: Limits, shared: Arc<Shared>) -> Self {
        let sweep_interval =
            SWEEP_INTERVAL.min(limits.request_timeout / 4).min(limits.idle_timeout / 4).max(Duration::from_millis(5));
        let times = Times { sweep_interval, drain_timeout: limits.drain_timeout };
        Self {
            service,
            limits,
            connections: Connections::new(shared, times),
            legacy: monoio::utils::is_legacy(),
            requests_in_flight: Cell::new(0),
            body_bytes: Cell::new(0),
            date: Cell::new(Date::new(SystemTime::now())),
            pool: RefCell::default(),
            yields: Cell::new(0),
        }
    }

    fn renew_date(&self) {
        let mut date = self.date.get();
        date.refresh(SystemTime::now());
        self.date.set(date);
    }

    /// Whether the server drains: connections end after their present answers.
    #[inline]
    pub(crate) fn draining(&self) -> bool {
        self.connections.shared().draining()
    }

    #[inline]
    pub(crate) fn date(&self) -> Date {
        self.date.get()
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

impl<S: Service> Host for HttpCore<S> {
    type Phase = Phase;
    type Waits = ();
    type Event = Event;
    const PROTOCOL: &'static str = "HTTP";

    fn connections(&self) -> &Connections<Self> {
        &self.connections
    }

    fn judge(&self, phase: Phase, age: Duration, draining: bool) -> Verdict<Event> {
        deadlines::verdict(phase, age, &self.limits, draining)
    }

    fn event(&self, event: Event) {
        self.service.event(event);
    }

    fn closed(&self) {
        self.service.event(Event::Closed);
    }

    fn tick(&self) {
        self.renew_date();
    }
}

/// A connection's seat on its core, and the requests that it has in flight.
pub(crate) struct HttpSeat<S: Service> {
    guard: SeatGuard<HttpCore<S>>,
    requests: usize,
}

impl<S: Service> HttpSeat<S> {
    /// Takes a seat for an accepted connection. `None`, which is reported, if there are too many.
    pub(crate) fn take(core: &Rc<HttpCore<S>>, stream: &TcpStream) -> Option<Self> {
        let now = Instant::now();
        let Some(guard) = SeatGuard::take(core, stream, core.limits.connections_max, (Phase::Idle, now), ()) else {
            core.service.event(Event::ConnectionLimit);
            return None;
        };
        core.service.resumed(now);
        core.service.event(Event::Accepted);
        Some(Self { guard, requests: 0 })
    }

    #[inline]
    pub(crate) fn core(&self) -> &Rc<HttpCore<S>> {
        &self.guard.host
    }

    /// The connection waits for something else, since `since`.
    #[inline]
    pub(crate) fn set(&self, phase: Phase, since: Instant) {
        self.guard.seat.set(phase, since);
    }

    /// Whether the request did not arrive completely in time.
    pub(crate) fn request_expired(&self) -> bool {
        self.guard.seat.has_expired(Phase::Reading)
    }

    /// Counts a request that has been given to the service.
    #[inline]
    pub(crate) fn begin_request(&mut self) {
        self.requests += 1;
        let core = self.core();
        core.requests_in_flight.set(core.requests_in_flight.get() + 1);
    }

    /// Counts `count` requests whose answers have been sent.
    #[inline]
    pub(crate) fn end_requests(&mut self, count: usize) {
        self.requests -= count;
        let core = self.core();
        core.requests_in_flight.set(core.requests_in_flight.get() - count);
    }
}

impl<S: Service> Drop for HttpSeat<S> {
    fn drop(&mut self) {
        self.end_requests(self.requests);
    }
}

/// A share of the core's `body_bytes_max`, given back on drop.
pub(crate) struct Reservation<S: Service> {
    core: Rc<HttpCore<S>>,
    bytes: usize,
}

impl<S: Service> Reservation<S> {
    pub(crate) fn new(core: &Rc<HttpCore<S>>) -> Self {
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

impl<S: Service> Drop for Reservation<S> {
    fn drop(&mut self) {
        self.core.body_bytes.set(self.core.body_bytes.get() - self.bytes);
    }
}

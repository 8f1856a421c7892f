//! What the clients' connections of one core share: service, limits, date, output buffers and
//! counters.
//!
//! Owner: one runtime, behind an `Rc`. Every counter has its maximum in [`Limits`].
//!
//! Invariant: `requests_in_flight` is the sum of the requests that the core's seats hold, as each
//! address's count is of its own. They give their share back on drop, however a connection ends.
//!
//! Tested through `tests/limits.rs` and `tests/addresses.rs`.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use monoio::net::TcpStream;

use super::answers::Answers;
use super::asker::{Asker, Askers};
use super::bodies::Bodies;
use super::deadlines::{self, Phase};
use super::limits::Limits;
use super::receiving::{Receiving, Why};
use super::service::{Event, Service};
use crate::connections::{Connections, Full, Host, Origin, Room, Seat, SeatGuard, Shared, Times, Verdict};
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
    askers: Askers,
    pub(super) bodies: Bodies,
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
            askers: Askers::default(),
            bodies: Bodies::default(),
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

    /// The connections, for whoever looks for one that gives way.
    pub(super) const fn seats(&self) -> &Connections<Self> {
        &self.connections
    }

    /// How many connections and requests an address may have.
    const fn address_max(&self, origin: Origin) -> usize {
        if origin.is_loopback() { self.limits.loopback_max } else { self.limits.address_max }
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
    type Waits = Receiving;
    type Event = Event;
    const PROTOCOL: &'static str = "HTTP";

    fn connections(&self) -> &Connections<Self> {
        &self.connections
    }

    fn judge(&self, seat: &Seat<Self>, now: Instant, age: Duration, draining: bool) -> Verdict<Event> {
        let phase = seat.phase();
        let verdict = deadlines::verdict(phase, age, &self.limits, draining);
        if phase == Phase::Reading && seat.waits().look(now, now - age) && verdict == Verdict::Wait {
            seat.waits().why.set(Why::TooSlow);
            return Verdict::CutInput(Some(Event::SlowRequest));
        }
        verdict
    }

    fn event(&self, event: Event) {
        self.service.event(event);
    }

    fn closed(&self) {
        self.service.event(Event::Closed);
    }

    fn short(&self) {
        self.service.event(Event::NoResources);
    }

    fn tick(&self) {
        self.renew_date();
    }
}

/// Why a request cannot be taken now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overload {
    /// The core has as many requests in flight as it may have.
    Requests,
    /// The client's address has.
    OfAddress,
    /// The bodies that the core has received take all the memory that they may take.
    Bodies,
    /// The same, and the body gave way to those that go on.
    Stalled,
    /// The system has no memory for the body.
    Memory,
}

/// A connection's seat on its core, and the requests that it has in flight.
pub(crate) struct HttpSeat<S: Service> {
    guard: SeatGuard<HttpCore<S>>,
    requests: usize,
    origin: Origin,
    asker: Rc<Asker>,
}

impl<S: Service> HttpSeat<S> {
    /// Takes a seat for an accepted connection. `None`, which is reported, if there are too many.
    pub(crate) fn take(core: &Rc<HttpCore<S>>, stream: &TcpStream, from: IpAddr) -> Option<Self> {
        let now = Instant::now();
        let (origin, max) = (Origin::of(from), core.limits.connections_max);
        let of_origin = core.address_max(origin);
        // An address that may have them all needs no count.
        let room = Room { max, of_origin: (of_origin < max).then_some((origin, of_origin)) };
        let guard = match SeatGuard::take(core, stream, room, (Phase::Idle, now), Receiving::new(now)) {
            Ok(guard) => guard,
            Err(full) => {
                core.service.event(if full == Full::All { Event::ConnectionLimit } else { Event::AddressConnections });
                return None;
            }
        };
        core.service.resumed(now);
        core.service.event(Event::Accepted);
        let asker = core.askers.enter(origin, of_origin);
        Some(Self { guard, requests: 0, origin, asker })
    }

    #[inline]
    pub(crate) fn core(&self) -> &Rc<HttpCore<S>> {
        &self.guard.host
    }

    /// What the sweeper knows about the connection.
    pub(super) const fn seat(&self) -> &Rc<Seat<HttpCore<S>>> {
        &self.guard.seat
    }

    /// The connection waits for something else, since `since`.
    #[inline]
    pub(crate) fn set(&self, phase: Phase, since: Instant) {
        self.guard.seat.set(phase, since);
    }

    /// Notes bytes that were received.
    #[inline]
    pub(super) fn received(&self, count: usize) {
        self.guard.seat.waits().came(count);
        self.core().service.event(Event::BytesIn(count));
    }

    /// Why the request did not arrive completely in time; `None` if it may still.
    pub(super) fn request_expired(&self) -> Option<Why> {
        let seat = &self.guard.seat;
        seat.has_expired(Phase::Reading).then(|| seat.waits().why.get())
    }

    /// Why no further request may be in flight; `None` if one may.
    #[inline]
    pub(super) fn overload(&self) -> Option<Overload> {
        let core = self.core();
        if core.requests_in_flight.get() >= core.limits.requests_in_flight_max {
            Some(Overload::Requests)
        } else if self.asker.requests.get() >= self.asker.requests_max {
            Some(Overload::OfAddress)
        } else {
            None
        }
    }

    /// How many requests the client's address may have in flight on the core.
    pub(super) fn address_max(&self) -> usize {
        self.asker.requests_max
    }

    /// Counts a request that has been given to the service.
    #[inline]
    pub(crate) fn begin_request(&mut self) {
        self.requests += 1;
        self.asker.requests.set(self.asker.requests.get() + 1);
        let core = self.core();
        core.requests_in_flight.set(core.requests_in_flight.get() + 1);
    }

    /// Counts `count` requests whose answers have been sent.
    #[inline]
    pub(crate) fn end_requests(&mut self, count: usize) {
        self.requests -= count;
        self.asker.requests.set(self.asker.requests.get() - count);
        let core = self.core();
        core.requests_in_flight.set(core.requests_in_flight.get() - count);
    }
}

impl<S: Service> Drop for HttpSeat<S> {
    fn drop(&mut self) {
        self.end_requests(self.requests);
        self.core().askers.leave(self.origin, &self.asker);
    }
}

//! The answering side: accept loop, handshakes, and connections that answer the requests they read.
//!
//! ```text
//! accepted ─ handshake ─▶ read ─▶ serve all whole frames ─▶ send what is answered ─▶ read
//!                          │ └─ a deferred reply is there ─▶ send ─▶ go on reading
//!                          └─ end, drain ─▶ wait for deferred replies ─▶ closed
//! ```
//!
//! Owner: [`serve`] runs on one core, and everything that it makes stays there.
//!
//! Bounds: `connections_max` of the process; [`STRANGERS_MAX`] connections of a core without a
//! handshake, and a second for each; a read buffer of up to the largest frame and 64 KiB;
//! [`REPLIES_MAX`] bytes of replies and one more; [`UNANSWERED_MAX`] deferred replies;
//! [`WRITE_TIMEOUT`] without progress in sending, and [`ANSWER_TIMEOUT`] for deferred replies at
//! the end. Nothing is read before the replies that are there have been sent. A node may take its
//! time over the rest of a frame: it holds one buffer.
//!
//! Invariants:
//! 1. Every request gets one reply, unless the connection ends.
//! 2. No read or write is dropped in flight: deadlines and the drain shut the socket down.
//! 3. A seat's descriptor is open while the seat is in the table.
//!
//! Deliberately absent: storage, deadlines of requests, a limit for one peer. Tested in
//! `tests/replica/`.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use monoio::io::{AsyncReadRent, AsyncWriteRent, Splitable};
use monoio::net::TcpStream;

use super::frame::{self, Limits, Parsed};
use super::handshake::{Acceptor, HandshakeError, Identity, NONCE, Peer, Progress};
use super::outbox::Outbox;
use super::service::{Desk, ReplicaEvent, ReplicaService, Replies, UNANSWERED_MAX};
use super::sys;
use super::wire::{HANDSHAKE_TIMEOUT, Inbox, USER_TIMEOUT, send_all};
use crate::server::{Shared, accept_until_drained};

/// The most connections of a core that have not completed a handshake.
pub const STRANGERS_MAX: usize = 64;
/// When there are this many bytes of replies, they are sent before more requests of a batch are
/// handled.
const REPLIES_MAX: usize = 1024 * 1024;
/// A peer that takes nothing of its replies for this long is cut off. It dials again if it is
/// alive.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a peer that has ended its side waits for the deferred replies; it does not get those
/// that take longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often deadlines are checked.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);
/// How often a drain checks whether the last connection is gone.
const DRAIN_STEP: Duration = Duration::from_millis(5);
/// How long requests in flight may take after a drain has begun; then their connections are shut
/// down.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The time that connections get to end after that.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// The settings of the answering side.
#[derive(Debug, Clone)]
pub struct AcceptConfig {
    /// The identity of this node.
    pub identity: Rc<Identity>,
    /// The numbers of all nodes.
    pub members: Vec<u16>,
    /// Bytes of the largest value; the same on all nodes, or more than any node sends.
    pub value_max: usize,
    /// Reads the wall clock, in milliseconds since the Unix epoch.
    pub wall_ms: fn() -> u64,
    /// The most connections of all that share the `Shared`; further ones are closed at accept.
    pub connections_max: usize,
}

/// Answers the connections of `listener` on the current runtime until [`Shared::drain`] is called
/// and the requests in flight are done. The replica listeners of all cores have one `shared`, which
/// is not that of the HTTP server. The timer of the runtime must be enabled.
///
/// # Errors
/// Only if the listener cannot be used at all. If an accept fails, that is logged and the server
/// goes on.
pub async fn serve<S: ReplicaService>(
    listener: TcpListener,
    service: Rc<S>,
    config: AcceptConfig,
    shared: Arc<Shared>,
) -> io::Result<()> {
    let core = Rc::new(ReplicaCore {
        service,
        config,
        shared: Arc::clone(&shared),
        seats: RefCell::default(),
        free: RefCell::default(),
        connections: Cell::new(0),
        strangers: Cell::new(0),
        sweeping: Cell::new(false),
    });
    accept_until_drained(listener, &shared, |stream| core.accepted(stream)).await?;
    core.drain().await;
    Ok(())
}

/// What the connections of a core share.
struct ReplicaCore<S> {
    service: Rc<S>,
    config: AcceptConfig,
    shared: Arc<Shared>,
    seats: RefCell<Vec<Option<Rc<Seat>>>>,
    free: RefCell<Vec<usize>>,
    connections: Cell<usize>,
    strangers: Cell<usize>,
    sweeping: Cell<bool>,
}

/// What a connection is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It waits for the handshake.
    Stranger,
    /// It waits for requests.
    Reading,
    /// It waits for the service.
    Working,
    /// It waits for the peer to take its replies, since the last progress.
    Writing,
    /// It waits for deferred replies, after which it ends.
    Ending,
    /// It waits for nothing: it has been cut off.
    Cut,
}

struct Seat {
    fd: RawFd,
    phase: Cell<Phase>,
    since: Cell<Instant>,
    desk: Rc<Desk>,
}

impl Seat {
    /// Enters `phase`, which began at `since`. A connection that was cut off stays so.
    #[inline]
    fn set(&self, phase: Phase, since: Instant) {
        if self.phase.get() != Phase::Cut {
            self.phase.set(phase);
            self.since.set(since);
        }
    }

    #[inline]
    fn is_cut(&self) -> bool {
        self.phase.get() == Phase::Cut
    }

    /// Ends the connection, whatever it is waiting for.
    fn cut(&self) {
        sys::shutdown(self.fd, libc::SHUT_RDWR);
        self.phase.set(Phase::Cut);
        self.desk.bell.ring();
    }
}

impl<S: ReplicaService> ReplicaCore<S> {
    fn accepted(self: &Rc<Self>, stream: TcpStream) {
        if self.strangers.get() >= STRANGERS_MAX || !self.shared.enter(self.config.connections_max) {
            self.service.event(ReplicaEvent::Limit);
            return;
        }
        let fd = stream.as_raw_fd();
        // Otherwise a reply may wait for an acknowledgement that the peer delays. A socket that
        // refuses this still works.
        let _ = stream.set_nodelay(true);
        sys::set_user_timeout(fd, USER_TIMEOUT);
        self.service.event(ReplicaEvent::Accepted);
        let connection = Connection { place: SeatGuard::new(self, fd), stream, fd };
        if !self.sweeping.replace(true) {
            monoio::spawn(Rc::clone(self).sweep_while_connected());
        }
        monoio::spawn(connection.run());
    }

    async fn sweep_while_connected(self: Rc<Self>) {
        while self.connections.get() > 0 {
            monoio::time::sleep(SWEEP_INTERVAL).await;
            self.sweep();
        }
        self.sweeping.set(false);
    }

    /// Ends connections that have waited too long and, in a drain, those that wait for more
    /// requests.
    fn sweep(&self) {
        let (now, draining) = (Instant::now(), self.shared.draining());
        for seat in self.seats.borrow().iter().flatten() {
            let age = now.saturating_duration_since(seat.since.get());
            match seat.phase.get() {
                Phase::Stranger if draining || age >= HANDSHAKE_TIMEOUT => seat.cut(),
                // Requests that have come already are still read and answered.
                Phase::Reading if draining => sys::shutdown(seat.fd, libc::SHUT_RD),
                Phase::Ending if age >= ANSWER_TIMEOUT => seat.cut(),
                Phase::Writing if age >= WRITE_TIMEOUT => {
                    seat.cut();
                    self.service.event(ReplicaEvent::WriteTimeout);
                }
                _ => {}
            }
        }
    }

    async fn drain(&self) {
        let begun = Instant::now();
        let mut hard = false;
        while self.connections.get() > 0 {
            self.sweep();
            if !hard && begun.elapsed() >= DRAIN_TIMEOUT {
                hard = true;
                self.seats.borrow().iter().flatten().for_each(|seat| seat.cut());
            }
            if begun.elapsed() >= DRAIN_TIMEOUT + DRAIN_GRACE {
                tracing::warn!(
                    connections = self.connections.get(),
                    "replica connections left unfinished by the drain"
                );
                return;
            }
            monoio::time::sleep(DRAIN_STEP).await;
        }
    }
}

/// A connection's place in the table of its core, taken at accept and given back on drop.
struct SeatGuard<S: ReplicaService> {
    core: Rc<ReplicaCore<S>>,
    seat: Rc<Seat>,
    index: usize,
    stranger: bool,
}

impl<S: ReplicaService> SeatGuard<S> {
    fn new(core: &Rc<ReplicaCore<S>>, fd: RawFd) -> Self {
        let identity = &core.config.identity;
        let desk = Desk::new(identity.topology_number, identity.features);
        let seat = Rc::new(Seat { fd, phase: Cell::new(Phase::Stranger), since: Cell::new(Instant::now()), desk });
        let mut seats = core.seats.borrow_mut();
        let index = core.free.borrow_mut().pop().unwrap_or_else(|| {
            seats.push(None);
            seats.len() - 1
        });
        seats[index] = Some(Rc::clone(&seat));
        core.connections.set(core.connections.get() + 1);
        core.strangers.set(core.strangers.get() + 1);
        Self { core: Rc::clone(core), seat, index, stranger: true }
    }

    fn known(&mut self) {
        if std::mem::replace(&mut self.stranger, false) {
            self.core.strangers.set(self.core.strangers.get() - 1);
        }
    }
}

impl<S: ReplicaService> Drop for SeatGuard<S> {
    fn drop(&mut self) {
        self.known();
        self.seat.desk.close();
        let core = &self.core;
        core.seats.borrow_mut()[self.index] = None;
        core.free.borrow_mut().push(self.index);
        core.connections.set(core.connections.get() - 1);
        core.shared.leave();
        core.service.event(ReplicaEvent::Closed);
    }
}

/// A connection in its handshake.
struct Connection<S: ReplicaService> {
    /// Before `stream`, so that the core forgets the descriptor before it is closed.
    place: SeatGuard<S>,
    stream: TcpStream,
    fd: RawFd,
}

impl<S: ReplicaService> Connection<S> {
    async fn run(mut self) {
        let mut inbox = Inbox::new();
        match self.shake_hands(&mut inbox).await {
            Ok(peer) => {
                self.place.known();
                self.place.core.service.event(ReplicaEvent::Connected(peer.node));
                let (reader, writer) = self.stream.into_split();
                let sending = Outbox::default();
                Answering { place: self.place, reader, writer, fd: self.fd, peer, inbox, sending }.run().await;
            }
            Err(Some(sentence)) => self.place.core.service.event(ReplicaEvent::Refused(sentence)),
            Err(None) => {}
        }
    }

    /// Makes the handshake. The error is the reason why there is none, or `None` if there is
    /// nothing to report.
    async fn shake_hands(&mut self, inbox: &mut Inbox) -> Result<Peer, Option<String>> {
        let core = Rc::clone(&self.place.core);
        let AcceptConfig { identity, members, wall_ms, .. } = &core.config;
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|error| Some(format!("there is no randomness: {error}")))?;
        let mut acceptor = Acceptor::new(identity, members, nonce);
        let mut out = Outbox::default();
        loop {
            match inbox.read(&mut self.stream, 0).await {
                Ok(count) if count > 0 => core.service.event(ReplicaEvent::BytesIn(count)),
                _ if self.place.seat.phase.get() == Phase::Cut && !core.shared.draining() => {
                    return Err(Some("there was no handshake in time".to_owned()));
                }
                _ => return Err(None),
            }
            let fed = acceptor.feed(inbox.bytes(), wall_ms(), &mut out.bytes);
            let (count, sent) = (out.len(), send_all(&mut self.stream, self.fd, &mut out, |_| {}).await);
            match fed {
                Ok(_) if sent.is_err() => return Err(None),
                Ok(Progress::More { consumed }) => inbox.consume(consumed),
                Ok(Progress::Done { consumed, peer }) => {
                    inbox.consume(consumed);
                    return Ok(peer);
                }
                // This is the sentence for our side, whether the one for the other side could be
                // sent or not.
                Err(error @ HandshakeError::Garbage) if inbox.bytes().starts_with(b"GET ") => {
                    return Err(Some(format!("{error}, but HTTP")));
                }
                Err(error) => return Err(Some(error.to_string())),
            }
            core.service.event(ReplicaEvent::BytesOut(count));
        }
    }
}

/// A connection whose handshake is complete.
struct Answering<S: ReplicaService, R, W> {
    /// Before the socket, so that the core forgets the descriptor before it is closed.
    place: SeatGuard<S>,
    reader: R,
    writer: W,
    fd: RawFd,
    peer: Peer,
    inbox: Inbox,
    /// The replies that are being sent.
    sending: Outbox,
}

/// Why a connection stops handling the requests it has read.
enum Pause {
    /// There is no further complete frame; the next one has at least this many bytes.
    Read(usize),
    /// Many replies wait to be sent.
    Send,
    /// [`UNANSWERED_MAX`] replies were deferred.
    Answers,
}

/// The connection cannot be used any more.
struct Over;

impl<S: ReplicaService, R: AsyncReadRent, W: AsyncWriteRent> Answering<S, R, W> {
    async fn run(mut self) {
        // The reason has been reported where it was found.
        let _ = self.answer().await;
    }

    async fn answer(&mut self) -> Result<(), Over> {
        let (core, seat) = (Rc::clone(&self.place.core), Rc::clone(&self.place.seat));
        loop {
            let now = Instant::now();
            core.service.resumed(now);
            seat.set(Phase::Working, now);
            let pause = self.serve()?;
            self.send(now).await?;
            match pause {
                Pause::Send => {}
                Pause::Answers => seat.desk.bell.wait().await,
                Pause::Read(_) if core.shared.draining() => return self.end().await,
                Pause::Read(need) => match self.read(need, now).await? {
                    0 => return self.end().await,
                    count => core.service.event(ReplicaEvent::BytesIn(count)),
                },
            }
        }
    }

    /// Passes all complete requests that were read to the service.
    fn serve(&mut self) -> Result<Pause, Over> {
        let (service, desk, peer) = (&*self.place.core.service, &self.place.seat.desk, self.peer);
        let limits = Limits { value_max: self.place.core.config.value_max, features: peer.features };
        let mut any = false;
        let pause = loop {
            if desk.unanswered.get() >= UNANSWERED_MAX {
                break Ok(Pause::Answers);
            }
            match frame::parse_request(self.inbox.bytes(), limits) {
                Parsed::Complete { frame, len } => {
                    any = true;
                    let mut replies = Replies::new(desk, frame.number, &frame.request);
                    service.request(peer.node, frame.epoch, frame.request, &mut replies);
                    assert!(replies.is_given(), "a request gets one reply");
                    self.inbox.consume(len);
                    if desk.reply_bytes() >= REPLIES_MAX {
                        break Ok(Pause::Send);
                    }
                }
                Parsed::Partial { need } => break Ok(Pause::Read(need)),
                Parsed::Bad(violation) => {
                    service.event(ReplicaEvent::Violation { node: peer.node, sentence: violation.to_string() });
                    break Err(Over);
                }
            }
        };
        if any {
            service.batch_end();
        }
        pause
    }

    /// Sends the replies that are ready.
    async fn send(&mut self, now: Instant) -> Result<(), Over> {
        send(&self.place, &mut self.writer, self.fd, &mut self.sending, now).await
    }

    /// Reads more, and meanwhile sends replies that become ready. Returns 0 at the end.
    async fn read(&mut self, need: usize, now: Instant) -> Result<usize, Over> {
        let Self { place, reader, writer, fd, inbox, sending, .. } = self;
        let seat = &place.seat;
        seat.set(Phase::Reading, now);
        let mut read = pin!(inbox.read(reader, need));
        loop {
            let read_or_rung = poll_fn(|context| match read.as_mut().poll(context) {
                Poll::Ready(read) => Poll::Ready(Some(read)),
                Poll::Pending => seat.desk.bell.poll_rung(context).map(|()| None),
            });
            if let Some(read) = read_or_rung.await {
                return read.map_err(|_| Over);
            }
            let now = Instant::now();
            place.core.service.resumed(now);
            if send(place, writer, *fd, sending, now).await.is_err() {
                seat.cut();
                let _ = read.await;
                return Err(Over);
            }
            seat.set(Phase::Reading, now);
        }
    }

    /// Sends the replies to all remaining requests, at the end.
    async fn end(&mut self) -> Result<(), Over> {
        let (core, seat) = (Rc::clone(&self.place.core), Rc::clone(&self.place.seat));
        let begun = Instant::now();
        while seat.desk.unanswered.get() > 0 && !seat.is_cut() {
            seat.set(Phase::Ending, begun);
            seat.desk.bell.wait().await;
            let now = Instant::now();
            core.service.resumed(now);
            self.send(now).await?;
        }
        Ok(())
    }
}

/// Sends the replies that are ready.
#[inline]
async fn send<S: ReplicaService>(
    place: &SeatGuard<S>,
    writer: &mut impl AsyncWriteRent,
    fd: RawFd,
    sending: &mut Outbox,
    now: Instant,
) -> Result<(), Over> {
    let seat = &place.seat;
    if seat.is_cut() || seat.desk.given_up.get() {
        return Err(Over);
    }
    if !seat.desk.take_replies(sending) {
        return Ok(());
    }
    let count = sending.len();
    seat.set(Phase::Writing, now);
    send_all(writer, fd, sending, |_| seat.since.set(Instant::now())).await.map_err(|_| Over)?;
    place.core.service.event(ReplicaEvent::BytesOut(count));
    Ok(())
}

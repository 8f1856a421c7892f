//! The answering side: accept loop, handshakes, and connections that answer whatever was read as one batch.
//!
//! ```text
//! accepted ─ handshake ─▶ read ─▶ answer all whole frames ─▶ settle ─▶ send ─▶ read
//!                           └─ end, violation, drain ─▶ closed
//! ```
//!
//! Owner: [`serve`] runs on one core and everything it makes stays there.
//!
//! Bounds: `connections_max` of the process, [`STRANGERS_MAX`] of a core without a handshake, a second for that; a read
//! buffer of up to the largest frame and 64 KiB, [`REPLIES_MAX`] bytes of replies and one more; [`WRITE_TIMEOUT`]
//! without progress in sending. Nothing is read before the replies to everything handled are sent. A node may take its
//! time over the rest of a frame: it holds one buffer.
//!
//! Invariants:
//! 1. Every request gets one reply, in order, unless the connection ends.
//! 2. No read or write is dropped in flight: deadlines and drain shut the socket down.
//! 3. A seat's descriptor is open while the seat is in the table.
//!
//! Deliberately absent: storage, deadlines of requests, a limit for one peer. Tested in `tests/replica.rs`.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use monoio::net::TcpStream;

use super::frame::{self, Limits, Parsed, Reply, Request, Stamp};
use super::handshake::{Acceptor, HandshakeError, Identity, NONCE, Peer, Progress};
use super::outbox::{COPY_MAX, Outbox};
use super::sys;
use super::wire::{HANDSHAKE_TIMEOUT, Inbox, USER_TIMEOUT, send_all};
use crate::server::{Shared, accept_until_drained};

/// Connections of a core that have not said who they are.
pub const STRANGERS_MAX: usize = 64;
/// Bytes of replies that are sent before more requests of a batch are handled.
const REPLIES_MAX: usize = 1024 * 1024;
/// A peer that takes nothing of its replies for this long is cut off. It dials again when it lives.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often deadlines are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);
/// How often a drain looks whether the last connection is gone.
const DRAIN_STEP: Duration = Duration::from_millis(5);
/// What is in flight when draining begins gets this long; then it is shut down.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// What connections get to end after that.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// The program behind the connections of one core.
pub trait ReplicaService: 'static {
    /// Serves one request of node `from`, with exactly one reply through `replies`.
    fn request(&self, from: u16, number: u64, request: Request<'_>, replies: &mut Replies<'_>);

    /// What must happen before the replies of this batch may leave (group commit); `None`: nothing. If it ends with
    /// `false` they must not leave, and the connection is closed.
    fn settle(&self) -> Option<Pin<Box<dyn Future<Output = bool>>>>;

    /// Something that metrics count or a log tells.
    fn event(&self, event: ReplicaEvent);

    /// A task of the core goes on after it has waited; `now` has just been read.
    #[inline]
    fn resumed(&self, now: Instant) {
        let _ = now;
    }
}

/// Something that metrics count or a log tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaEvent {
    /// A connection was accepted.
    Accepted,
    /// An accepted connection is gone.
    Closed,
    /// A connection was closed at accept: there were `connections_max` already, or [`STRANGERS_MAX`] without a
    /// handshake.
    Limit,
    /// The handshake of a connection of this node is complete.
    Connected(u16),
    /// There was no handshake, and why, in one sentence. Strangers can cause this as often as they like: a log has to
    /// bound it.
    Refused(String),
    /// A node broke the protocol and its connection is closed; in one sentence.
    Violation {
        /// The node.
        node: u16,
        /// What it did.
        sentence: String,
    },
    /// A node took nothing of its replies for too long; its connection is closed.
    WriteTimeout,
    /// Bytes received.
    BytesIn(usize),
    /// Bytes handed to the kernel.
    BytesOut(usize),
}

/// Takes the reply to one request.
pub struct Replies<'a> {
    out: &'a mut Outbox,
    number: u64,
    given: bool,
}

impl Replies<'_> {
    /// The reply. `key_hash` is the hash of the request's key, 0 for [`Reply::Pong`].
    ///
    /// # Panics
    /// If there has been a reply, or a value does not fit into a frame.
    #[inline]
    pub fn reply(&mut self, key_hash: u64, reply: &Reply<'_>) {
        self.give();
        frame::encode_reply(&mut self.out.bytes, self.number, key_hash, reply);
    }

    /// A [`Reply::Found`] whose value is not copied if it is large.
    ///
    /// # Panics
    /// As [`reply`](Self::reply).
    pub fn large(&mut self, key_hash: u64, version: Stamp, expires_at_ms: u64, value: Bytes) {
        self.give();
        if value.len() <= COPY_MAX {
            let value_len = value.len() as u32;
            let found = Reply::Found { version, expires_at_ms, value_len, value: Some(&value) };
            frame::encode_reply(&mut self.out.bytes, self.number, key_hash, &found);
        } else {
            frame::encode_found_head(&mut self.out.bytes, self.number, key_hash, version, expires_at_ms, &value);
            self.out.push_value(value);
        }
    }

    #[inline]
    fn give(&mut self) {
        assert!(!self.given, "a request gets one reply");
        self.given = true;
    }
}

/// What the answering side needs to know.
#[derive(Debug, Clone)]
pub struct AcceptConfig {
    /// Who we are.
    pub identity: Rc<Identity>,
    /// The numbers of all nodes.
    pub members: Vec<u16>,
    /// Bytes of the largest value; the same on all nodes, or more than any sends.
    pub value_max: usize,
    /// The wall clock, milliseconds since the Unix epoch.
    pub wall_ms: fn() -> u64,
    /// Connections of all that share the `Shared`; past it new ones are closed at accept.
    pub connections_max: usize,
}

/// Answers the connections of `listener` on the current runtime until [`Shared::drain`] and the end of what was in
/// flight. `shared` is one for the replica listeners of all cores, and not that of the HTTP server. The runtime must
/// have its timer enabled.
///
/// # Errors
/// Only if the listener cannot be used at all; failures to accept are logged and survived.
pub async fn serve<S: ReplicaService>(
    listener: TcpListener,
    service: Rc<S>,
    config: AcceptConfig,
    shared: Arc<Shared>,
) -> io::Result<()> {
    let core = Rc::new(Core {
        service,
        limits: Limits { value_max: config.value_max },
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
struct Core<S> {
    service: Rc<S>,
    config: AcceptConfig,
    limits: Limits,
    shared: Arc<Shared>,
    seats: RefCell<Vec<Option<Rc<Seat>>>>,
    free: RefCell<Vec<usize>>,
    connections: Cell<usize>,
    strangers: Cell<usize>,
    sweeping: Cell<bool>,
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// To hear who is there.
    Stranger,
    /// Requests.
    Reading,
    /// The service.
    Working,
    /// The peer to take its replies; since the last progress.
    Writing,
    /// Nothing: it has been cut off.
    Cut,
}

struct Seat {
    fd: RawFd,
    phase: Cell<Phase>,
    since: Cell<Instant>,
}

impl Seat {
    #[inline]
    fn set(&self, phase: Phase, since: Instant) {
        self.phase.set(phase);
        self.since.set(since);
    }
}

impl<S: ReplicaService> Core<S> {
    fn accepted(self: &Rc<Self>, stream: TcpStream) {
        if self.strangers.get() >= STRANGERS_MAX || !self.shared.enter(self.config.connections_max) {
            self.service.event(ReplicaEvent::Limit);
            return;
        }
        let fd = stream.as_raw_fd();
        // Without it a reply may wait for an acknowledgement that the peer delays; a socket that refuses still works.
        let _ = stream.set_nodelay(true);
        sys::set_user_timeout(fd, USER_TIMEOUT);
        self.service.event(ReplicaEvent::Accepted);
        let connection = Connection { place: Place::new(self, fd), stream, fd };
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

    /// Ends what has waited too long, and in a drain what waits for more.
    fn sweep(&self) {
        let (now, draining) = (Instant::now(), self.shared.draining());
        for seat in self.seats.borrow().iter().flatten() {
            let age = now.saturating_duration_since(seat.since.get());
            match seat.phase.get() {
                Phase::Stranger if draining || age >= HANDSHAKE_TIMEOUT => {
                    sys::shutdown(seat.fd, libc::SHUT_RDWR);
                    seat.phase.set(Phase::Cut);
                }
                // What has come already is still read and answered.
                Phase::Reading if draining => sys::shutdown(seat.fd, libc::SHUT_RD),
                Phase::Writing if age >= WRITE_TIMEOUT => {
                    sys::shutdown(seat.fd, libc::SHUT_RDWR);
                    seat.phase.set(Phase::Cut);
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
                for seat in self.seats.borrow().iter().flatten() {
                    sys::shutdown(seat.fd, libc::SHUT_RDWR);
                }
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

/// A connection's place on its core: entered at accept, given back on drop.
struct Place<S: ReplicaService> {
    core: Rc<Core<S>>,
    seat: Rc<Seat>,
    index: usize,
    stranger: bool,
}

impl<S: ReplicaService> Place<S> {
    fn new(core: &Rc<Core<S>>, fd: RawFd) -> Self {
        let seat = Rc::new(Seat { fd, phase: Cell::new(Phase::Stranger), since: Cell::new(Instant::now()) });
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

impl<S: ReplicaService> Drop for Place<S> {
    fn drop(&mut self) {
        self.known();
        let core = &self.core;
        core.seats.borrow_mut()[self.index] = None;
        core.free.borrow_mut().push(self.index);
        core.connections.set(core.connections.get() - 1);
        core.shared.leave();
        core.service.event(ReplicaEvent::Closed);
    }
}

struct Connection<S: ReplicaService> {
    /// Before `stream`, so that the core forgets the descriptor before it is closed.
    place: Place<S>,
    stream: TcpStream,
    fd: RawFd,
}

/// What to do when no more requests can be handled at once.
enum Next {
    Read(usize),
    Go,
}

impl<S: ReplicaService> Connection<S> {
    async fn run(mut self) {
        let mut inbox = Inbox::new();
        match self.shake_hands(&mut inbox).await {
            Ok(peer) => {
                self.place.known();
                self.place.core.service.event(ReplicaEvent::Connected(peer.node));
                self.answer(peer.node, inbox).await;
            }
            Err(Some(sentence)) => self.place.core.service.event(ReplicaEvent::Refused(sentence)),
            Err(None) => {}
        }
    }

    /// Who is there, or why not: `None` if there is nothing to be said.
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
                // Whether the sentence for the other side could be sent or not, there is ours.
                Err(error @ HandshakeError::Garbage) if inbox.bytes().starts_with(b"GET ") => {
                    return Err(Some(format!("{error}, but HTTP")));
                }
                Err(error) => return Err(Some(error.to_string())),
            }
            core.service.event(ReplicaEvent::BytesOut(count));
        }
    }

    async fn answer(&mut self, from: u16, mut inbox: Inbox) {
        let core = Rc::clone(&self.place.core);
        let seat = Rc::clone(&self.place.seat);
        let service = &*core.service;
        let mut out = Outbox::default();
        loop {
            let mut now = Instant::now();
            service.resumed(now);
            seat.phase.set(Phase::Working);
            let next = loop {
                match frame::parse_request(inbox.bytes(), core.limits) {
                    Parsed::Complete { frame: (number, request), len } => {
                        let mut replies = Replies { out: &mut out, number, given: false };
                        service.request(from, number, request, &mut replies);
                        assert!(replies.given, "a request gets one reply");
                        inbox.consume(len);
                        if out.len() >= REPLIES_MAX {
                            break Next::Go;
                        }
                    }
                    Parsed::Partial { need } => break Next::Read(need),
                    Parsed::Bad(violation) => {
                        return service.event(ReplicaEvent::Violation { node: from, sentence: violation.to_string() });
                    }
                }
            };
            if !out.is_empty() {
                if let Some(settled) = service.settle() {
                    if !settled.await {
                        return;
                    }
                    now = Instant::now();
                    service.resumed(now);
                }
                let count = out.len();
                // Else the batch has been read just now, so the clock need not be asked again.
                seat.set(Phase::Writing, now);
                let sent = send_all(&mut self.stream, self.fd, &mut out, |_| seat.since.set(Instant::now())).await;
                if sent.is_err() {
                    return;
                }
                service.event(ReplicaEvent::BytesOut(count));
            }
            if let Next::Read(need) = next {
                if core.shared.draining() {
                    return;
                }
                seat.phase.set(Phase::Reading);
                match inbox.read(&mut self.stream, need).await {
                    Ok(count) if count > 0 => service.event(ReplicaEvent::BytesIn(count)),
                    _ => return,
                }
            }
        }
    }
}

//! The asking side: one connection from one core to one peer, with many requests in flight.
//!
//! ```text
//!        ┌───────── backoff, or a request ─────────┐
//! Down ──┴▶ Dialing ─ handshake complete ─▶ Up ─ lost ─▶ Down
//!               └───── failed: lost ────────────────────▲
//! ```
//!
//! Requests are appended to an outbox. The first one of a turn wakes the flusher, which runs after
//! all tasks that are ready by then: all frames of a turn leave in one system call. While the
//! socket is full the flusher waits in the driver, and requests that are queued meanwhile leave in
//! the next call.
//!
//! Owner: one core. There are two tasks: [`Link::run`], which dials and then reads, and the flusher
//! of each connection.
//!
//! Bounds: [`OUTBOX_MAX`] bytes queued and one frame more, then [`Full`]; one attempt to connect
//! each [`DIAL_GAP`](redial::DIAL_GAP); [`LOCATE_TIMEOUT`] to find the peer's address,
//! [`CONNECT_TIMEOUT`] to connect and a second for the handshake; a read buffer of up to the largest frame and 64 KiB.
//!
//! Invariants:
//! 1. No read or write is dropped in flight: to end one, its socket is shut down. A connect is not
//!    an operation of the driver at all, but is polled.
//! 2. [`LinkHandler::lost`] is called once for every attempt; after that, nothing of the attempt is
//!    queued or answered.
//! 3. `fd` is set only while that socket is open.
//!
//! Deliberately absent: which request a reply belongs to, deadlines of requests, health. Tested in
//! `tests/replica/`.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};

use bytes::Bytes;
use koltso_model::Operation;
use monoio::net::TcpStream;
use socket2::{Domain, Protocol, Socket, Type};

use super::acquaintances::Acquaintances;
use super::frame::{self, Limits, Parsed, ReplyFrame, Request};
use super::handshake::{Dialer, Dialing, Identity, NONCE, PeerIdentity, Progress, Purpose, Skew};
use super::lost::LostReason;
use super::outbox::{COPY_MAX, Outbox};
use super::redial::{self, Redial};
use super::sys;
use super::wire::{Bell, HANDSHAKE_TIMEOUT, Inbox, USER_TIMEOUT, send_all};
use crate::transport::{Receive, Tcp, Transmit, Transport};

/// The most bytes of requests that wait for a peer: what a fast network takes in a quarter of a
/// second.
pub const OUTBOX_MAX: usize = 32 * 1024 * 1024;
/// If this many bytes are queued, requests do not wait for replies before they are sent.
pub const HOLD_MAX: usize = 8 * 1024;
/// How long an attempt waits for the peer's kernel.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// How long an attempt waits for the peer's address: what a resolver takes that asks a second name
/// server.
pub const LOCATE_TIMEOUT: Duration = Duration::from_secs(12);

/// The longest pause between two checks of a connect, or whether the address is there.
const LOOK_MAX: Duration = Duration::from_millis(10);

/// Is told by a link what happens. All calls come from the link's core; a handler may call the link
/// in any of them.
pub trait LinkHandler: 'static {
    /// The handshake with `peer` is complete, and `identity` is what it said of itself. Requests
    /// that were queued meanwhile leave after this call, and no reply has been passed on yet.
    fn connected(&self, peer: usize, identity: &PeerIdentity, now: Instant);

    /// One complete reply has come; those of one connection come in any order. `now` is the same
    /// for all replies of one read. A large reply lies in a `buffer` of its own: parts of it can be
    /// kept by [`Bytes::slice_ref`], without a copy.
    ///
    /// # Errors
    /// A sentence, if the peer broke the protocol (for example by answering about another key): the
    /// link closes the connection, and the sentence is the reason in [`lost`](Self::lost).
    fn reply(&self, peer: usize, now: Instant, frame: ReplyFrame<'_>, buffer: Option<&Bytes>) -> Result<(), String>;

    /// All complete replies of one read have been passed.
    fn batch_end(&self, peer: usize, now: Instant);

    /// The peer's kernel has taken bytes of a write that was blocked: the peer is slow, not dead.
    fn progress(&self, peer: usize, now: Instant);

    /// A task of the core continues after it has waited; `now` has just been read.
    #[inline]
    fn resumed(&self, now: Instant) {
        let _ = now;
    }

    /// The connection, or an attempt to make one, has ended. Whatever was queued or unanswered is
    /// lost.
    fn lost(&self, peer: usize, why: &LostReason);
}

/// Finds where a peer listens, on another thread: looking a name up blocks.
pub trait Locate: fmt::Debug + Send + Sync {
    /// Asks for the address as it is from now on; the number goes to [`found`](Self::found). Never
    /// waits.
    fn ask(&self) -> u64;

    /// The address that was asked for, or a sentence without the peer's name; `None` while it is
    /// looked for. Never waits.
    fn found(&self, ticket: u64) -> Option<Result<SocketAddr, String>>;
}

impl Locate for SocketAddr {
    fn ask(&self) -> u64 {
        0
    }

    fn found(&self, _: u64) -> Option<Result<SocketAddr, String>> {
        Some(Ok(*self))
    }
}

/// The settings of a link.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// The number by which the handler knows the peer.
    pub peer: usize,
    /// Finds the address at which the peer listens for replica connections, at each dial.
    pub address: Arc<dyn Locate>,
    /// The peer's number in the cluster, which its handshake must prove.
    pub peer_number: u16,
    /// The identity of this node.
    pub identity: Rc<Identity>,
    /// Whom this node remembers.
    pub acquaintances: Arc<dyn Acquaintances>,
    /// Bytes of the largest value; the same on all nodes, or more than any node sends.
    pub value_max: usize,
    /// Reads the wall clock, in milliseconds since the Unix epoch.
    pub wall_ms: fn() -> u64,
    /// How far the peer's wall clock may be off.
    pub skew_max: Duration,
}

/// Whether there is a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// There is none until the next attempt.
    Down,
    /// An attempt to connect is in progress.
    Dialing,
    /// The connection is up.
    Up,
}

/// [`OUTBOX_MAX`] bytes wait for the peer, or the link has been closed: the request was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many bytes wait for the peer")]
pub struct Full;

/// A connection to a peer that is made again when it is lost.
pub struct Link<H> {
    config: LinkConfig,
    handler: Rc<H>,
    state: Cell<LinkState>,
    outbox: RefCell<Outbox>,
    /// How many bytes the flusher has taken out of the outbox and still holds.
    sending: Cell<usize>,
    flush: Bell,
    redial: Bell,
    /// How many requests have no reply yet, sent and queued ones together.
    unanswered: Cell<u32>,
    skew: Cell<Option<Skew>>,
    fd: Cell<Option<RawFd>>,
    closed: Cell<bool>,
}

impl<H: LinkHandler> Link<H> {
    /// A link that is down until [`run`](Self::run) is spawned.
    #[must_use]
    pub fn new(config: LinkConfig, handler: Rc<H>) -> Rc<Self> {
        Rc::new(Self {
            config,
            handler,
            state: Cell::new(LinkState::Down),
            outbox: RefCell::default(),
            sending: Cell::new(0),
            flush: Bell::default(),
            redial: Bell::default(),
            unanswered: Cell::new(0),
            skew: Cell::new(None),
            fd: Cell::new(None),
            closed: Cell::new(false),
        })
    }

    /// Queues a request and copies it. If the link is down, the next attempt begins at once.
    ///
    /// # Errors
    /// [`Full`].
    ///
    /// # Panics
    /// If a part of it does not fit into a frame: the key is empty or too long, or the value is too
    /// long.
    #[inline]
    pub fn request(&self, number: u64, request: &Request<'_>) -> Result<(), Full> {
        let mut outbox = self.room()?;
        frame::encode_request(&mut outbox.bytes, number, self.epoch(), request);
        let bytes = outbox.len();
        drop(outbox);
        self.queued(bytes);
        Ok(())
    }

    /// Queues an operation; a large value is not copied.
    ///
    /// # Errors
    /// [`Full`]; also for a record that this node does not understand (see
    /// [`Features`](super::Features)), since the peer would have to refuse it.
    ///
    /// # Panics
    /// In the same cases as [`request`](Self::request).
    #[inline]
    pub fn execute(&self, number: u64, operation: &Operation<Bytes>) -> Result<(), Full> {
        if !self.config.identity.features.cover_operation(operation) {
            return Err(Full);
        }
        match operation {
            Operation::Write(record) if record.value.len() > COPY_MAX => {
                let mut outbox = self.room()?;
                frame::encode_write_head(&mut outbox.bytes, number, self.epoch(), &record.borrowed());
                outbox.push_value(record.value.clone());
                let bytes = outbox.len();
                drop(outbox);
                self.queued(bytes);
                Ok(())
            }
            operation => self.request(number, &Request::Execute(operation.borrowed())),
        }
    }

    /// The epoch of the frames.
    #[inline]
    fn epoch(&self) -> u64 {
        self.config.identity.epoch.now()
    }

    #[inline]
    fn room(&self) -> Result<std::cell::RefMut<'_, Outbox>, Full> {
        let outbox = self.outbox.borrow_mut();
        if !redial::has_room(outbox.len() + self.sending.get(), OUTBOX_MAX) || self.closed.get() {
            return Err(Full);
        }
        Ok(outbox)
    }

    #[inline]
    fn queued(&self, bytes: usize) {
        let unanswered = self.unanswered.get();
        self.unanswered.set(unanswered + 1);
        if unanswered == 0 || bytes >= HOLD_MAX {
            self.flush.ring();
        }
        if self.state.get() == LinkState::Down {
            self.redial.ring();
        }
    }

    /// Sends the requests that wait for replies. Call it every few milliseconds, for peers that do
    /// not reply.
    #[inline]
    pub fn release(&self) {
        if !self.outbox.borrow().is_empty() {
            self.flush.ring();
        }
    }

    /// Whether there is a connection.
    #[inline]
    #[must_use]
    pub fn state(&self) -> LinkState {
        self.state.get()
    }

    /// Ends the pause before the next attempt, if the link is in one.
    pub fn dial_now(&self) {
        if self.state.get() == LinkState::Down {
            self.redial.ring();
        }
    }

    /// Bytes of requests that the kernel has not taken yet; a write in progress counts as a whole.
    #[inline]
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.outbox.borrow().len() + self.sending.get()
    }

    /// How far the peer's wall clock was off at the last handshake; `None` before the first.
    #[must_use]
    pub fn skew(&self) -> Option<Skew> {
        self.skew.get()
    }

    /// Ends the connection for good; [`run`](Self::run) returns soon after. Requests in the queue
    /// are dropped.
    pub fn close(&self) {
        self.closed.set(true);
        if let Some(fd) = self.fd.get() {
            sys::shutdown(fd, libc::SHUT_RDWR);
        }
        self.redial.ring();
    }

    /// Keeps the connection up until [`close`](Self::close). Spawn it once, on a runtime with its
    /// timer enabled.
    pub async fn run(self: Rc<Self>) {
        let mut redial = Redial::default();
        while !self.closed.get() {
            let begun = Instant::now();
            self.state.set(LinkState::Dialing);
            let (why, up_for) = match self.connect().await {
                Ok((inbox, transport, peer)) => {
                    let up = Instant::now();
                    let why = self.converse(inbox, transport, peer).await;
                    (why, Some(up.elapsed()))
                }
                Err(why) => (why, None),
            };
            self.state.set(LinkState::Down);
            self.outbox.borrow_mut().clear();
            self.unanswered.set(0);
            self.redial.hush();
            self.handler.lost(self.config.peer, if self.closed.get() { &LostReason::Stopped } else { &why });
            if self.closed.get() {
                return;
            }
            let pause = redial.ended(up_for, getrandom::u32().unwrap_or(0));
            self.redial.wait_until(Instant::now() + pause).await;
            let gap = Redial::gap(begun.elapsed());
            if !gap.is_zero() {
                monoio::time::sleep(gap).await;
            }
        }
    }

    /// Makes a connection and completes its handshake; also returns what was read after that.
    async fn connect(&self) -> Result<(Inbox, Tcp, PeerIdentity), LostReason> {
        let socket = self.dial().await?;
        if self.closed.get() {
            return Err(LostReason::Stopped);
        }
        let fd = socket.as_raw_fd();
        let mut transport = Tcp::new(TcpStream::from_std(socket)?);
        self.fd.set(Some(fd));
        let mut inbox = Inbox::new();
        let fuse = Fuse::light(fd, HANDSHAKE_TIMEOUT);
        let shaken = self.shake_hands(&mut transport, &mut inbox).await;
        if fuse.put_out() {
            self.fd.set(None);
            return Err(LostReason::Timeout);
        }
        match shaken {
            Ok(peer) => Ok((inbox, transport, peer)),
            Err(why) => {
                self.fd.set(None);
                Err(why)
            }
        }
    }

    /// Connects without an operation of the driver, since such an operation could not be given up.
    async fn dial(&self) -> Result<std::net::TcpStream, LostReason> {
        let address = self.locate().await?;
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        sys::set_user_timeout(socket.as_raw_fd(), USER_TIMEOUT);
        let begun = Instant::now();
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            result => result?,
        }
        let mut pause = Duration::from_millis(1);
        while !sys::connect_ended(socket.as_raw_fd())? {
            if begun.elapsed() >= CONNECT_TIMEOUT || self.closed.get() {
                return Err(LostReason::Timeout);
            }
            monoio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_MAX);
        }
        if let Some(error) = socket.take_error()? {
            return Err(error.into());
        }
        if socket.local_addr()? == address.into() {
            // Nobody listens, and the kernel happened to give us that port: TCP connects such a
            // socket to itself.
            return Err(LostReason::ConnectRefused);
        }
        // io_uring waits in operations on a blocking socket, and reports EAGAIN from a non-blocking
        // one; epoll is the other way round.
        socket.set_nonblocking(monoio::utils::is_legacy())?;
        Ok(socket.into())
    }

    /// Where the peer is now.
    async fn locate(&self) -> Result<SocketAddr, LostReason> {
        let ticket = self.config.address.ask();
        let begun = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(found) = self.config.address.found(ticket) {
                return found.map_err(LostReason::Unresolved);
            }
            if begun.elapsed() >= LOCATE_TIMEOUT || self.closed.get() {
                return Err(LostReason::Unresolved("its name was not resolved in time".to_owned()));
            }
            monoio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_MAX);
        }
    }

    async fn shake_hands(&self, transport: &mut impl Transport, inbox: &mut Inbox) -> Result<PeerIdentity, LostReason> {
        let LinkConfig { identity, acquaintances, peer_number, skew_max, wall_ms, .. } = &self.config;
        let dialing = Dialing {
            identity,
            acquaintances: &**acquaintances,
            expected: *peer_number,
            purpose: Purpose::Requests,
            skew_max: *skew_max,
        };
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(io::Error::other)?;
        let mut out = Outbox::default();
        let begun = Instant::now();
        let mut dialer = Dialer::start(dialing, wall_ms(), &nonce, &mut out.bytes);
        loop {
            send_all(transport, &mut out, |_| {}).await?;
            if inbox.read(transport, 0).await? == 0 {
                return Err(LostReason::Closed);
            }
            match dialer.feed(inbox.bytes(), begun.elapsed(), &mut out.bytes) {
                Ok(Progress::More { consumed }) => inbox.consume(consumed),
                Ok(Progress::Done { consumed, peer }) => {
                    inbox.consume(consumed);
                    self.skew.set(peer.skew);
                    send_all(transport, &mut out, |_| {}).await?;
                    return Ok(peer);
                }
                Err(error) => {
                    // This is the sentence for the other side; if it cannot be sent, there is still
                    // the error on this side.
                    let _ = send_all(transport, &mut out, |_| {}).await;
                    return Err(error.into());
                }
            }
        }
    }

    /// Runs a connection until it is lost.
    async fn converse(self: &Rc<Self>, inbox: Inbox, transport: impl Transport, peer: PeerIdentity) -> LostReason {
        let fd = transport.fd();
        let (mut receiver, transmitter) = transport.split();
        self.state.set(LinkState::Up);
        self.handler.connected(self.config.peer, &peer, Instant::now());
        self.release();
        let ending = Rc::new(Cell::new(self.closed.get()));
        let flusher = monoio::spawn(Rc::clone(self).keep_flushing(transmitter, fd, Rc::clone(&ending)));
        let why = self.read_replies(&mut receiver, inbox, peer).await;
        ending.set(true);
        sys::shutdown(fd, libc::SHUT_RDWR);
        self.flush.ring();
        let unsent = flusher.await;
        self.fd.set(None);
        match (why, unsent) {
            // A write learns more than a read that just ends.
            (LostReason::Closed, Some(error)) => error.into(),
            (why, _) => why,
        }
    }

    async fn read_replies(&self, receiver: &mut impl Receive, mut inbox: Inbox, theirs: PeerIdentity) -> LostReason {
        let limits = Limits { value_max: self.config.value_max, features: theirs.features };
        let peer = self.config.peer;
        let mut need = 0;
        loop {
            let now = Instant::now();
            self.handler.resumed(now);
            let mut any = false;
            let outcome = loop {
                let buffer = inbox.take_large(need);
                need = 0;
                match frame::parse_reply(buffer.as_deref().unwrap_or(inbox.bytes()), limits) {
                    Parsed::Complete { frame, len } => {
                        any = true;
                        self.unanswered.set(self.unanswered.get().saturating_sub(1));
                        if let Err(sentence) = self.handler.reply(peer, now, frame, buffer.as_ref()) {
                            break Err(LostReason::Violation(sentence));
                        }
                        if buffer.is_none() {
                            inbox.consume(len);
                        }
                    }
                    Parsed::Partial { need } => break Ok(need),
                    Parsed::Bad(violation) => break Err(violation.into()),
                }
            };
            if any {
                self.handler.batch_end(peer, now);
                self.release();
            }
            need = match outcome {
                Ok(need) => need,
                Err(why) => return why,
            };
            match inbox.read(receiver, need).await {
                Ok(0) => return LostReason::Closed,
                Ok(_) => {}
                Err(error) => return error.into(),
            }
        }
    }

    /// Sends queued requests whenever there are any, until the connection ends.
    async fn keep_flushing(
        self: Rc<Self>,
        mut transmitter: impl Transmit,
        fd: RawFd,
        ending: Rc<Cell<bool>>,
    ) -> Option<io::Error> {
        let (peer, handler) = (self.config.peer, &self.handler);
        let mut sending = Outbox::default();
        loop {
            self.flush.wait().await;
            if ending.get() {
                return None;
            }
            std::mem::swap(&mut *self.outbox.borrow_mut(), &mut sending);
            self.sending.set(sending.len());
            let progress = |_| {
                let now = Instant::now();
                handler.resumed(now);
                handler.progress(peer, now);
            };
            let sent = send_all(&mut transmitter, &mut sending, progress).await;
            self.sending.set(0);
            if let Err(error) = sent {
                sys::shutdown(fd, libc::SHUT_RDWR);
                return Some(error);
            }
        }
    }
}

/// Shuts a socket down after a time, unless it is put out before.
struct Fuse(Rc<Cell<Option<RawFd>>>);

impl Fuse {
    fn light(fd: RawFd, time: Duration) -> Self {
        let burning = Rc::new(Cell::new(Some(fd)));
        let its = Rc::clone(&burning);
        monoio::spawn(async move {
            monoio::time::sleep(time).await;
            if let Some(fd) = its.take() {
                sys::shutdown(fd, libc::SHUT_RDWR);
            }
        });
        Self(burning)
    }

    /// Stops the fuse; returns `true` if it was too late.
    fn put_out(self) -> bool {
        self.0.take().is_none()
    }
}

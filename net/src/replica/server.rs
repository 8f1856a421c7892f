//! The answering side: accept loop, handshakes, and connections that answer the requests they read.
//!
//! ```text
//! accepted ─ handshake ─┬▶ read ─▶ serve all whole frames ─▶ send what is answered ─▶ read
//!                       │   │ └─ a deferred reply is there ─▶ send ─▶ go on reading
//!                       │   └─ end, drain ─▶ wait for deferred replies ─▶ closed
//!                       └▶ for comparing replicas: the service gets the socket
//! ```
//!
//! Owner: [`serve`] runs on one core, and everything that it makes stays there.
//!
//! Bounds: `connections_max` of the process; `strangers_max` connections of a core without a
//! handshake (`strangers.rs`), and a second for each; a read buffer of up to the largest frame and 64 KiB;
//! [`REPLIES_MAX`] bytes of replies and one more; [`UNANSWERED_MAX`] deferred replies;
//! [`WRITE_TIMEOUT`] without progress in sending, and [`ANSWER_TIMEOUT`] for deferred replies at
//! the end. Nothing is read before the replies that are there have been sent. A node may take its
//! time over the rest of a frame: it holds one buffer.
//!
//! Invariants:
//! 1. Every request gets one reply, unless the connection ends.
//! 2. No read or write is dropped in flight: deadlines and the drain shut the socket down.
//!
//! Deliberately absent: storage, deadlines of requests, a limit for one peer. Tested in
//! `tests/replica/`.

use std::cell::{OnceCell, RefCell};
use std::fmt::Debug;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use monoio::net::TcpStream;

use super::acquaintances::Acquaintances;
use super::frame::{self, Limits, Parsed};
use super::handshake::{Acceptor, HandshakeError, Identity, NONCE, PeerIdentity, Progress, Purpose};
use super::outbox::Outbox;
use super::service::{Desk, ReplicaEvent, ReplicaService, Replies, UNANSWERED_MAX};
use super::strangers::{Stranger, Strangers};
use super::sys;
use super::wire::{HANDSHAKE_TIMEOUT, Inbox, USER_TIMEOUT, send_all};
use crate::connections::{self, Connections, Host, Origin, Room, Seat, SeatGuard, Shared, Times, Verdict, Wake};
use crate::transport::{Receive, Tcp, Transmit, Transport};

/// The most connections of a core that have not completed a handshake, where there are enough
/// descriptors: a stranger among 16 000 a second has 16 ms to say hello.
pub const STRANGERS_MAX: usize = 256;
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
/// How long requests in flight may take after a drain has begun; then their connections are shut
/// down.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The addresses at which members are, which may change.
pub trait MemberAddresses: Debug {
    /// Whether a member is there.
    fn has(&self, address: IpAddr) -> bool;
}

impl MemberAddresses for Vec<IpAddr> {
    fn has(&self, address: IpAddr) -> bool {
        self.contains(&address)
    }
}

/// The settings of the answering side.
#[derive(Debug, Clone)]
pub struct AcceptConfig {
    /// The identity of this node.
    pub identity: Rc<Identity>,
    /// The numbers of all nodes, which may change.
    pub members: Rc<RefCell<Vec<u16>>>,
    /// Whom this node remembers in their places.
    pub acquaintances: Arc<dyn Acquaintances>,
    /// Bytes of the largest value; the same on all nodes, or more than any node sends.
    pub value_max: usize,
    /// Reads the wall clock, in milliseconds since the Unix epoch.
    pub wall_ms: fn() -> u64,
    /// The most connections of all that share the `Shared`; further ones are closed at accept.
    pub connections_max: usize,
    /// The most connections of a core that have not completed a handshake; past it one of them gives
    /// way.
    pub strangers_max: usize,
    /// Where the members are: nobody from elsewhere displaces who comes from there.
    pub addresses: Rc<dyn MemberAddresses>,
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
    serve_over(listener, service, config, shared, Tcp::new).await
}

/// As [`serve`], over what `carry` makes of accepted sockets.
pub(crate) async fn serve_over<S: ReplicaService, T: Transport>(
    listener: TcpListener,
    service: Rc<S>,
    config: AcceptConfig,
    shared: Arc<Shared>,
    carry: impl Fn(TcpStream) -> T,
) -> io::Result<()> {
    let times = Times { sweep_interval: SWEEP_INTERVAL, drain_timeout: DRAIN_TIMEOUT };
    let connections = Connections::new(shared, times);
    let strangers = Strangers::new(config.strangers_max);
    let core = Rc::new(ReplicaCore { service, config, connections, strangers });
    connections::serve(&core, listener, |stream, from| core.accepted(stream, from, &carry)).await
}

/// What the connections of a core share.
struct ReplicaCore<S: ReplicaService> {
    service: Rc<S>,
    config: AcceptConfig,
    connections: Connections<Self>,
    strangers: Strangers<Rc<Seat<Self>>>,
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
}

impl<S: ReplicaService> Host for ReplicaCore<S> {
    type Phase = Phase;
    type Waits = Rc<Desk>;
    type Event = ReplicaEvent;
    const PROTOCOL: &'static str = "replica";

    fn connections(&self) -> &Connections<Self> {
        &self.connections
    }

    fn judge(&self, seat: &Seat<Self>, _: Instant, age: Duration, draining: bool) -> Verdict<ReplicaEvent> {
        match seat.phase() {
            Phase::Stranger if draining || age >= HANDSHAKE_TIMEOUT => Verdict::CutAll(None),
            // Requests that have come already are still read and answered.
            Phase::Reading if draining => Verdict::CutInput(None),
            Phase::Ending if age >= ANSWER_TIMEOUT => Verdict::CutAll(None),
            Phase::Writing if age >= WRITE_TIMEOUT => Verdict::CutAll(Some(ReplicaEvent::WriteTimeout)),
            _ => Verdict::Wait,
        }
    }

    fn event(&self, event: ReplicaEvent) {
        self.service.event(event);
    }

    fn closed(&self) {
        self.service.event(ReplicaEvent::Closed);
    }

    fn short(&self) {
        self.service.event(ReplicaEvent::NoResources);
    }
}

impl Wake for Rc<Desk> {
    fn wake(&self) {
        self.bell.ring();
    }
}

impl<S: ReplicaService> ReplicaCore<S> {
    /// Takes in a new connection; closes it if there are too many. `carry` says what carries its
    /// bytes.
    fn accepted<T: Transport>(self: &Rc<Self>, stream: TcpStream, from: IpAddr, carry: impl Fn(TcpStream) -> T) {
        let (origin, is_at_member) = (Origin::of(from), self.config.addresses.has(from.to_canonical()));
        match self.strangers.make_room(origin, is_at_member) {
            Ok(None) => {}
            Ok(Some(gone)) => {
                gone.connection.cut();
                self.service.event(ReplicaEvent::Limit);
            }
            Err(()) => return self.service.event(ReplicaEvent::Limit),
        }
        let identity = &self.config.identity;
        let desk = Desk::new(identity.epoch.clone(), identity.features);
        let room = Room { max: self.config.connections_max, of_origin: None };
        let Ok(guard) = SeatGuard::take(self, &stream, room, (Phase::Stranger, Instant::now()), desk) else {
            return self.service.event(ReplicaEvent::Limit);
        };
        self.service.event(ReplicaEvent::Accepted);
        let stranger = self.strangers.enter(origin, is_at_member, Rc::clone(&guard.seat));
        let stranger = StrangerGuard { core: Rc::clone(self), stranger };
        monoio::spawn(Connection { stranger, guard, transport: carry(stream) }.run());
    }
}

/// Keeps a connection among the strangers until it is dropped.
struct StrangerGuard<S: ReplicaService> {
    core: Rc<ReplicaCore<S>>,
    stranger: Rc<Stranger<Rc<Seat<ReplicaCore<S>>>>>,
}

impl<S: ReplicaService> Drop for StrangerGuard<S> {
    fn drop(&mut self) {
        self.core.strangers.leave(&self.stranger);
    }
}

/// A connection in its handshake.
struct Connection<S: ReplicaService, T> {
    stranger: StrangerGuard<S>,
    /// Before `transport`, so that the core forgets the descriptor before it is closed.
    guard: SeatGuard<ReplicaCore<S>>,
    transport: T,
}

impl<S: ReplicaService, T: Transport> Connection<S, T> {
    async fn run(mut self) {
        let mut inbox = Inbox::of_stranger();
        match self.shake_hands(&mut inbox).await {
            Ok(peer) => {
                sys::set_user_timeout(self.transport.fd(), USER_TIMEOUT);
                self.guard.host.service.event(ReplicaEvent::Connected(peer));
                if peer.purpose != Purpose::Requests {
                    return self.give_away(peer, inbox);
                }
                drop(self.stranger);
                inbox.grow();
                let (receiver, transmitter) = self.transport.split();
                let sending = Outbox::default();
                Answering { guard: self.guard, receiver, transmitter, peer, inbox, sending }.run().await;
            }
            Err(Some(sentence)) => self.guard.host.service.event(ReplicaEvent::Refused(sentence)),
            Err(None) => {}
        }
    }

    /// Gives the socket to the service, so that no core compares replicas or waits for an agreement.
    fn give_away(self, peer: PeerIdentity, inbox: Inbox) {
        drop(self.stranger);
        let service = Rc::clone(&self.guard.host.service);
        let is_draining = self.guard.host.connections.shared().draining();
        drop(self.guard);
        let socket = self.transport.into_socket();
        if !is_draining && socket.set_nonblocking(false).is_ok() {
            match peer.purpose {
                Purpose::Council => service.council(peer, socket, inbox.bytes().to_vec()),
                _ => service.exchange(peer, socket, inbox.bytes().to_vec()),
            }
        }
    }

    /// Makes the handshake. The error is the reason why there is none, or `None` if there is
    /// nothing to report.
    async fn shake_hands(&mut self, inbox: &mut Inbox) -> Result<PeerIdentity, Option<String>> {
        let core = Rc::clone(&self.guard.host);
        let AcceptConfig { identity, members, acquaintances, wall_ms, .. } = &core.config;
        let known = OnceCell::new();
        let mut acceptor = None;
        let mut out = Outbox::default();
        loop {
            match inbox.read(&mut self.transport, 0).await {
                Ok(count) if count > 0 => core.service.event(ReplicaEvent::BytesIn(count)),
                _ if self.stranger.stranger.is_shown_out() => return Err(None),
                _ if self.guard.seat.is_cut() && !core.connections.shared().draining() => {
                    return Err(Some("there was no handshake in time".to_owned()));
                }
                _ => return Err(None),
            }
            let acceptor = match &mut acceptor {
                Some(acceptor) => acceptor,
                // Most strangers of a flood say nothing, and need no randomness.
                none => {
                    let mut nonce = [0; NONCE];
                    getrandom::fill(&mut nonce).map_err(|error| Some(format!("there is no randomness: {error}")))?;
                    let known = known.get_or_init(|| members.borrow().clone());
                    none.insert(Acceptor::new(identity, known, &**acquaintances, nonce))
                }
            };
            let fed = acceptor.feed(inbox.bytes(), wall_ms(), &mut out.bytes);
            if acceptor.knows_who() {
                self.stranger.stranger.said_hello();
            }
            let (count, sent) = (out.len(), send_all(&mut self.transport, &mut out, |_| {}).await);
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
struct Answering<S: ReplicaService, R, X> {
    /// Before the socket, so that the core forgets the descriptor before it is closed.
    guard: SeatGuard<ReplicaCore<S>>,
    receiver: R,
    transmitter: X,
    peer: PeerIdentity,
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

impl<S: ReplicaService, R: Receive, X: Transmit> Answering<S, R, X> {
    async fn run(mut self) {
        // The reason has been reported where it was found.
        let _ = self.answer().await;
    }

    async fn answer(&mut self) -> Result<(), Over> {
        let (core, seat) = (Rc::clone(&self.guard.host), Rc::clone(&self.guard.seat));
        loop {
            let now = Instant::now();
            core.service.resumed(now);
            seat.set(Phase::Working, now);
            let pause = self.serve()?;
            self.send(now).await?;
            match pause {
                Pause::Send => {}
                Pause::Answers => seat.waits().bell.wait().await,
                Pause::Read(_) if core.connections.shared().draining() => return self.end().await,
                Pause::Read(need) => match self.read(need, now).await? {
                    0 => return self.end().await,
                    count => core.service.event(ReplicaEvent::BytesIn(count)),
                },
            }
        }
    }

    /// Passes all complete requests that were read to the service.
    fn serve(&mut self) -> Result<Pause, Over> {
        let (service, desk, peer) = (&*self.guard.host.service, self.guard.seat.waits(), self.peer);
        let limits = Limits { value_max: self.guard.host.config.value_max, features: peer.features };
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
        send(&self.guard, &mut self.transmitter, &mut self.sending, now).await
    }

    /// Reads more, and meanwhile sends replies that become ready. Returns 0 at the end.
    async fn read(&mut self, need: usize, now: Instant) -> Result<usize, Over> {
        let Self { guard, receiver, transmitter, inbox, sending, .. } = self;
        let seat = &guard.seat;
        seat.set(Phase::Reading, now);
        let mut read = pin!(inbox.read(receiver, need));
        loop {
            let read_or_rung = poll_fn(|context| match read.as_mut().poll(context) {
                Poll::Ready(read) => Poll::Ready(Some(read)),
                Poll::Pending => seat.waits().bell.poll_rung(context).map(|()| None),
            });
            if let Some(read) = read_or_rung.await {
                return read.map_err(|_| Over);
            }
            let now = Instant::now();
            guard.host.service.resumed(now);
            if send(guard, transmitter, sending, now).await.is_err() {
                seat.cut();
                let _ = read.await;
                return Err(Over);
            }
            seat.set(Phase::Reading, now);
        }
    }

    /// Sends the replies to all remaining requests, at the end.
    async fn end(&mut self) -> Result<(), Over> {
        let (core, seat) = (Rc::clone(&self.guard.host), Rc::clone(&self.guard.seat));
        let begun = Instant::now();
        while seat.waits().unanswered.get() > 0 && !seat.is_cut() {
            seat.set(Phase::Ending, begun);
            seat.waits().bell.wait().await;
            let now = Instant::now();
            core.service.resumed(now);
            self.send(now).await?;
        }
        Ok(())
    }
}

impl<S: ReplicaService, R, X> Drop for Answering<S, R, X> {
    fn drop(&mut self) {
        self.guard.seat.waits().close();
    }
}

/// Sends the replies that are ready.
#[inline]
async fn send<S: ReplicaService>(
    guard: &SeatGuard<ReplicaCore<S>>,
    transmitter: &mut impl Transmit,
    sending: &mut Outbox,
    now: Instant,
) -> Result<(), Over> {
    let seat = &guard.seat;
    if seat.is_cut() || seat.waits().given_up.get() {
        return Err(Over);
    }
    if !seat.waits().take_replies(sending) {
        return Ok(());
    }
    let count = sending.len();
    seat.set(Phase::Writing, now);
    send_all(transmitter, sending, |_| seat.progressed()).await.map_err(|_| Over)?;
    guard.host.service.event(ReplicaEvent::BytesOut(count));
    Ok(())
}

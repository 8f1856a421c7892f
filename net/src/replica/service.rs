//! What a program gives the answering side: a [`ReplicaService`], and how it answers, now or later.
//!
//! ```text
//! request ─▶ Replies ─┬─ answer, answer_shared, pong ─▶ outbox of the connection
//!                     └─ later ─▶ DeferredReply ─ answer ─▶ the same outbox, whenever it is there
//!                                       └─ dropped ─▶ the connection ends
//! ```
//!
//! Replies of one connection leave in the order in which they are given, which may differ from that
//! of their requests. An answer that is given at once is written where it leaves from, without an
//! allocation; one that comes later costs a counted reference until then.
//!
//! Owner: one core. Bound: a connection has at most [`UNANSWERED_MAX`] deferred replies, and
//! nothing more is read from it meanwhile; the service must bound the memory of their values.
//!
//! Invariants:
//! 1. Every request gets one reply, unless its connection ends.
//! 2. A record that this node does not understand is not passed on to others: see [`Features`].

use std::cell::{Cell, RefCell};
use std::net::TcpStream;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use koltso_model::{Found, KeyHash, Outcome, Refused};

use super::epoch::Epoch;
use super::features::Features;
use super::frame::{self, Reply, Request};
use super::handshake::PeerIdentity;
use super::outbox::{COPY_MAX, Outbox};
use super::wire::Bell;

/// The most requests of a connection whose replies are deferred. A group commit of so many writes
/// costs its disk as little for each as one of more would; further requests wait in the socket.
pub const UNANSWERED_MAX: usize = 4096;

/// The program behind the connections of one core.
pub trait ReplicaService: 'static {
    /// Serves one request of node `from`, whose membership has this epoch, with exactly one reply
    /// through `replies`, now or later. The service must bound the time until a later reply, since
    /// nobody else does.
    fn request(&self, from: u16, epoch: u64, request: Request<'_>, replies: &mut Replies<'_>);

    /// All complete requests of one read have been passed: work that was deferred for all of them
    /// together (such as a group commit) can begin.
    fn batch_end(&self) {}

    /// Something has happened that metrics count or a log reports.
    fn event(&self, event: ReplicaEvent);

    /// Takes over a connection for comparing replicas: its socket, which blocks, and the bytes
    /// behind the handshake that were read already, for
    /// [`blocking::Answering`](super::blocking::Answering). It counts among the connections no
    /// more. One that is dropped is closed.
    fn exchange(&self, peer: PeerIdentity, socket: TcpStream, read_so_far: Vec<u8>) {
        drop((peer, socket, read_so_far));
    }

    /// Takes over a connection for agreeing on who the members are, as [`exchange`](Self::exchange) does one
    /// for comparing. Whoever takes it speaks its own protocol over it.
    fn council(&self, peer: PeerIdentity, socket: TcpStream, read_so_far: Vec<u8>) {
        drop((peer, socket, read_so_far));
    }

    /// A task of the core continues after it has waited; `now` has just been read.
    #[inline]
    fn resumed(&self, now: Instant) {
        let _ = now;
    }
}

/// Something that metrics count or a log reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaEvent {
    /// A connection was accepted.
    Accepted,
    /// An accepted connection has ended.
    Closed,
    /// A connection was closed in favour of another, or at accept: there were `connections_max`
    /// already, or `strangers_max` without a handshake.
    Limit,
    /// There were no descriptors, or no memory, for a connection, which waits in the kernel's queue.
    NoResources,
    /// The handshake of a connection from this node is complete. Nothing of what it asks has been
    /// passed on yet.
    Connected(PeerIdentity),
    /// There was no handshake, with the reason in one sentence. Strangers can cause this as often
    /// as they like: a log must limit it.
    Refused(String),
    /// A node broke the protocol and its connection is closed.
    Violation {
        /// The number of the node.
        node: u16,
        /// What it did, in one sentence.
        sentence: String,
    },
    /// A node took nothing of its replies for too long; its connection is closed.
    WriteTimeout,
    /// This many bytes were received.
    BytesIn(usize),
    /// This many bytes were handed to the kernel.
    BytesOut(usize),
}

/// Where the replies of one connection gather until its task sends them.
pub(super) struct Desk {
    outbox: RefCell<Outbox>,
    /// Rung when a deferred reply has been given or given up, and when the connection is cut off.
    pub(super) bell: Bell,
    /// How many requests have a deferred reply that has not come yet.
    pub(super) unanswered: Cell<usize>,
    /// Whether a deferred reply was given up.
    pub(super) given_up: Cell<bool>,
    /// Whether the connection has ended, so that no reply leaves any more.
    closed: Cell<bool>,
    /// The epoch of the frames.
    epoch: Epoch,
    /// What the frames may contain.
    features: Features,
}

impl Desk {
    pub(super) fn new(epoch: Epoch, features: Features) -> Rc<Self> {
        Rc::new(Self {
            outbox: RefCell::default(),
            bell: Bell::default(),
            unanswered: Cell::new(0),
            given_up: Cell::new(false),
            closed: Cell::new(false),
            epoch,
            features,
        })
    }

    /// Drops the replies that wait, and all that come from now on.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.outbox.take();
    }

    /// Moves the replies that are ready to `sending`, which must be empty; returns whether there
    /// were any.
    #[inline]
    pub(super) fn take_replies(&self, sending: &mut Outbox) -> bool {
        let mut outbox = self.outbox.borrow_mut();
        let any = !outbox.is_empty();
        if any {
            std::mem::swap(&mut *outbox, sending);
        }
        any
    }

    /// Bytes of the replies that are ready.
    #[inline]
    pub(super) fn reply_bytes(&self) -> usize {
        self.outbox.borrow().len()
    }

    #[inline]
    fn answer(&self, number: u64, key_hash: KeyHash, outcome: &Outcome<&[u8]>) {
        if self.features.cover_outcome(outcome) {
            self.encode(number, key_hash, &Reply::Outcome(*outcome));
        } else {
            self.not_understood(number, key_hash);
        }
    }

    fn answer_shared(&self, number: u64, key_hash: KeyHash, found: &Found<&[u8]>, value: Bytes) {
        if !self.features.cover(found.flags, found.attributes) {
            return self.not_understood(number, key_hash);
        }
        if value.len() <= COPY_MAX {
            let found = Found { value_len: value.len() as u32, value: Some(&value[..]), ..*found };
            return self.encode(number, key_hash, &Reply::Outcome(Outcome::Found(found)));
        }
        let mut outbox = self.outbox.borrow_mut();
        frame::encode_found_head(&mut outbox.bytes, number, self.epoch.now(), key_hash, found, &value);
        outbox.push_value(value);
    }

    #[inline]
    fn encode(&self, number: u64, key_hash: KeyHash, reply: &Reply<'_>) {
        frame::encode_reply(&mut self.outbox.borrow_mut().bytes, number, self.epoch.now(), key_hash, reply);
    }

    /// Refuses to pass on a record of a build that knew more, since this build cannot say what is
    /// in it.
    #[cold]
    fn not_understood(&self, number: u64, key_hash: KeyHash) {
        self.encode(number, key_hash, &Reply::Outcome(Outcome::Refused(Refused::Failed)));
    }
}

/// Takes the reply to one request.
pub struct Replies<'a> {
    desk: &'a Rc<Desk>,
    number: u64,
    /// The hash of the request's key; 0 if it has none.
    key_hash: KeyHash,
    given: bool,
}

impl<'a> Replies<'a> {
    #[inline]
    pub(super) fn new(desk: &'a Rc<Desk>, number: u64, request: &Request<'_>) -> Self {
        let key_hash = match request {
            Request::Execute(operation) => operation.key().hash(),
            Request::Ping { .. } => KeyHash(0),
        };
        Self { desk, number, key_hash, given: false }
    }

    /// Answers an operation, copying what was found.
    ///
    /// # Panics
    /// If there has been a reply, or the outcome does not fit into a frame.
    #[inline]
    pub fn answer<B: AsRef<[u8]>>(&mut self, outcome: &Outcome<B>) {
        self.give();
        self.desk.answer(self.number, self.key_hash, &outcome.borrowed());
    }

    /// Answers with a value that was found; a large one is not copied. `found` says everything else
    /// about it; a value in there is ignored.
    ///
    /// # Panics
    /// In the same cases as [`answer`](Self::answer).
    pub fn answer_shared<B: AsRef<[u8]>>(&mut self, found: &Found<B>, value: Bytes) {
        self.give();
        self.desk.answer_shared(self.number, self.key_hash, &found.borrowed(), value);
    }

    /// Answers a ping with the wall clock, in milliseconds since the Unix epoch, and the hybrid
    /// logical clock.
    ///
    /// # Panics
    /// If there has been a reply.
    pub fn pong(&mut self, wall_ms: u64, clock: u64) {
        self.give();
        self.desk.encode(self.number, self.key_hash, &Reply::Pong { wall_ms, clock });
    }

    /// Leaves the answer for later. Requests behind this one are served meanwhile.
    ///
    /// # Panics
    /// If there has been a reply.
    pub fn later(&mut self) -> DeferredReply {
        self.give();
        self.desk.unanswered.set(self.desk.unanswered.get() + 1);
        DeferredReply { desk: Rc::clone(self.desk), number: self.number, key_hash: self.key_hash, given: false }
    }

    /// Whether there has been a reply, or will be one.
    #[inline]
    pub(super) const fn is_given(&self) -> bool {
        self.given
    }

    #[inline]
    fn give(&mut self) {
        assert!(!self.given, "a request gets one reply");
        self.given = true;
    }
}

/// A request whose answer comes later. If this is dropped without an answer, the connection ends:
/// the asker must not wait for an answer that nobody will give. An answer to a connection that has
/// ended is dropped.
#[must_use]
pub struct DeferredReply {
    desk: Rc<Desk>,
    number: u64,
    key_hash: KeyHash,
    given: bool,
}

impl DeferredReply {
    /// Answers the request. All answers that are given before the connection's task runs leave in
    /// one system call.
    ///
    /// # Panics
    /// If the outcome does not fit into a frame.
    pub fn answer(mut self, outcome: Outcome<Bytes>) {
        self.given = true;
        if self.desk.closed.get() {
            return;
        }
        match outcome {
            Outcome::Found(mut found) if found.value.is_some() => {
                let value = found.value.take().unwrap_or_default();
                self.desk.answer_shared(self.number, self.key_hash, &found.borrowed(), value);
            }
            outcome => self.desk.answer(self.number, self.key_hash, &outcome.borrowed()),
        }
    }

    /// Answers a ping, see [`Replies::pong`].
    pub fn pong(mut self, wall_ms: u64, clock: u64) {
        self.given = true;
        if !self.desk.closed.get() {
            self.desk.encode(self.number, self.key_hash, &Reply::Pong { wall_ms, clock });
        }
    }
}

impl Drop for DeferredReply {
    fn drop(&mut self) {
        let desk = &self.desk;
        desk.unanswered.set(desk.unanswered.get() - 1);
        if !self.given {
            desk.given_up.set(true);
        }
        desk.bell.ring();
    }
}

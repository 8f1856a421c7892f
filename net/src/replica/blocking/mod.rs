//! The protocol on threads beside the data plane, with sockets that block.
//!
//! [`Connection`] asks: it replays to a peer the writes that the peer missed, and compares replicas.
//! [`Answering`] is the other end of a connection for comparing replicas; the cores answer all
//! others.
//!
//! Owner: one thread each. Bounds: the caller's timeout for the connect, the handshake, each reply,
//! and each pause of a send; see `line.rs` for the rest. A peer does not go on reading while its
//! replies are not taken, so a caller that sends a lot before it receives anything must leave no
//! more than about a thousand requests unanswered.
//!
//! Tested in `tests/replica/`.

mod answering;
mod line;

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bytes::Bytes;
use koltso_model::{ExchangeReply, ExchangeRequest, Operation, Outcome, Record};

pub use self::answering::{AnswerConfig, Answering, IDLE_MAX};
use self::line::Line;
use super::acquaintances::Acquaintances;
use super::epoch::Epoch;
use super::features::Features;
use super::frame::exchange::{ExchangeFrame, answers, encode_exchange, parse_exchange_reply};
use super::frame::{Limits, Parsed, Reply, ReplyFrame, Request, encode_request, parse_reply};
use super::handshake::{Dialer, Dialing, Identity, NONCE, PeerIdentity, Progress, Purpose, Skew};
use super::link::CONNECT_TIMEOUT;
use super::lost::LostReason;
use super::sys;
use super::wire::USER_TIMEOUT;

/// Output buffers larger than this many bytes are not kept.
const KEEP_MAX: usize = 256 * 1024;

/// How to connect to a peer. Sizes are as in [`LinkConfig`](super::LinkConfig).
#[derive(Debug, Clone)]
pub struct DialConfig<'a> {
    /// Where the peer listens.
    pub address: SocketAddr,
    /// The identity of this node.
    pub identity: &'a Identity,
    /// Whom this node remembers.
    pub acquaintances: &'a dyn Acquaintances,
    /// The peer's number in the cluster, which its handshake must prove.
    pub peer_number: u16,
    /// What the connection is for.
    pub purpose: Purpose,
    /// Bytes of the largest value.
    pub value_max: usize,
    /// Reads the wall clock, in milliseconds since the Unix epoch.
    pub wall_ms: fn() -> u64,
    /// How far the peer's wall clock may be off.
    pub skew_max: Duration,
    /// For the connect (which takes [`CONNECT_TIMEOUT`] at most), the handshake, the beginning of a reply, and each pause within a frame.
    pub timeout: Duration,
    /// Ends all waits soon after it is set; `None` where they are short anyway.
    pub stop: Option<Arc<AtomicBool>>,
}

/// A connection to a peer whose handshake is complete. After an error it cannot be used any more.
#[derive(Debug)]
pub struct Connection {
    line: Line,
    limits: Limits,
    peer: PeerIdentity,
    /// What this node has announced, and the epoch of its frames.
    features: Features,
    epoch: Epoch,
    /// The number of the last request of [`Connection::exchange`] and its like.
    number: u64,
    out: Vec<u8>,
}

impl Connection {
    /// Connects and makes the handshake.
    ///
    /// # Errors
    /// The reasons that [`LinkHandler::lost`](super::LinkHandler::lost) gets.
    pub fn dial(config: &DialConfig<'_>) -> Result<Self, LostReason> {
        // (Nothing ends it sooner.)
        let stream = TcpStream::connect_timeout(&config.address, config.timeout.min(CONNECT_TIMEOUT))?;
        stream.set_nodelay(true)?;
        sys::set_user_timeout(stream.as_raw_fd(), USER_TIMEOUT);
        let mut line = Line::new(stream, &[], config.timeout, config.stop.clone());
        let peer = shake_hands(&mut line, config)?;
        let limits = Limits { value_max: config.value_max, features: peer.features };
        let Identity { features, epoch, .. } = config.identity;
        Ok(Self { line, limits, peer, features: *features, epoch: epoch.clone(), number: 0, out: Vec::new() })
    }

    /// The socket, for another protocol than that of frames ([`Purpose::Council`]); and what the peer has
    /// sent already. Nothing may be unanswered.
    #[must_use]
    pub fn into_socket(self) -> (TcpStream, Vec<u8>) {
        self.line.into_socket()
    }

    /// What the peer said of itself, and what both sides think of each other.
    #[must_use]
    pub const fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// How far the peer's wall clock was off at the handshake.
    #[must_use]
    pub const fn skew(&self) -> Option<Skew> {
        self.peer.skew
    }

    /// Sends requests that [`encode_request`] has written.
    ///
    /// # Errors
    /// The connection is lost, or the peer took nothing within the timeout.
    pub fn send(&mut self, frames: &[u8]) -> Result<(), LostReason> {
        self.line.send(frames)
    }

    /// Waits for one reply and passes it to `with`. Replies come in any order: their numbers say to
    /// which request they belong.
    ///
    /// # Errors
    /// The connection is lost, the reply did not begin within the timeout or stopped half way, or
    /// the bytes are not a reply.
    pub fn receive<R>(&mut self, with: impl FnOnce(ReplyFrame<'_>) -> R) -> Result<R, LostReason> {
        let begun = Instant::now();
        loop {
            match parse_reply(self.line.bytes(), self.limits) {
                Parsed::Complete { frame, len } => {
                    let result = with(frame);
                    self.line.consume(len);
                    return Ok(result);
                }
                Parsed::Partial { need } => self.line.read(need, begun, begun + self.line.patience())?,
                Parsed::Bad(violation) => return Err(violation.into()),
            }
        }
    }

    /// Takes a step of a comparison, and waits for what comes of it; no other request may be
    /// unanswered. The reply is one to this request: of its kind, with as many parts. What a record
    /// in it says is the caller's to believe. A record that this node does not understand is not
    /// given, and so is not there.
    ///
    /// # Errors
    /// The connection is lost, the reply did not begin within the timeout or stopped half way, or
    /// it is none to this request.
    ///
    /// # Panics
    /// If the request does not fit into a frame.
    pub fn exchange(&mut self, request: &ExchangeRequest) -> Result<ExchangeReply, LostReason> {
        if let ExchangeRequest::Give(records) = request
            && !records.iter().all(|record| self.understands(record))
        {
            return self.give_some(records);
        }
        self.number += 1;
        encode_exchange(&mut self.out, self.number, self.epoch.now(), request);
        self.send_out()?;
        let begun = Instant::now();
        loop {
            match parse_exchange_reply(self.line.bytes(), self.limits) {
                Parsed::Complete { frame: ExchangeFrame { number, what, .. }, len } => {
                    self.line.consume(len);
                    if number != self.number || !answers(request, &what) {
                        return Err(LostReason::Violation("it answered a comparison with something else".to_owned()));
                    }
                    return Ok(what);
                }
                Parsed::Partial { need } => self.line.read(need, begun, begun + self.line.patience())?,
                Parsed::Bad(violation) => return Err(violation.into()),
            }
        }
    }

    fn understands(&self, record: &Record<Bytes>) -> bool {
        self.features.cover(record.flags, &record.attributes)
    }

    /// Gives those of the records that this node understands.
    #[cold]
    fn give_some(&mut self, records: &[Record<Bytes>]) -> Result<ExchangeReply, LostReason> {
        let some = records.iter().filter(|record| self.understands(record)).cloned().collect();
        match self.exchange(&ExchangeRequest::Give(some))? {
            ExchangeReply::Given(given) => {
                let mut given = given.into_iter();
                let of = |record| self.understands(record) && given.next().unwrap_or(false);
                Ok(ExchangeReply::Given(records.iter().map(of).collect()))
            }
            reply => Ok(reply),
        }
    }

    /// Asks the peer to execute an operation, and waits for the outcome; no other request may be
    /// unanswered. `None` if the operation writes a record that this node does not understand.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    ///
    /// # Panics
    /// If the operation does not fit into a frame.
    pub fn execute(&mut self, operation: &Operation<&[u8]>) -> Result<Option<Outcome<Bytes>>, LostReason> {
        if !self.features.cover_operation(operation) {
            return Ok(None);
        }
        let asked = operation.key().hash();
        self.ask(&Request::Execute(*operation), |frame| match frame.reply {
            Reply::Outcome(outcome) if frame.key_hash == asked => Ok(Some(outcome.owned())),
            _ => Err(LostReason::Violation("a reply is about another key".to_owned())),
        })
    }

    /// Tells the peer the wall clock, in milliseconds since the Unix epoch, and the hybrid logical
    /// clock, and returns what it says of its own. Keeps a connection alive that is not used; no
    /// other request may be unanswered.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    pub fn ping(&mut self, wall_ms: u64, clock: u64) -> Result<(u64, u64), LostReason> {
        self.ask(&Request::Ping { wall_ms, clock }, |frame| match frame.reply {
            Reply::Pong { wall_ms, clock } => Ok((wall_ms, clock)),
            Reply::Outcome(_) => Err(LostReason::Violation("it answered a ping with something else".to_owned())),
        })
    }

    fn ask<R>(
        &mut self,
        request: &Request<'_>,
        with: impl FnOnce(ReplyFrame<'_>) -> Result<R, LostReason>,
    ) -> Result<R, LostReason> {
        self.number += 1;
        let number = self.number;
        encode_request(&mut self.out, number, self.epoch.now(), request);
        self.send_out()?;
        self.receive(|frame| {
            if frame.number == number {
                with(frame)
            } else {
                Err(LostReason::Violation("it answered a request that is not waiting for an answer".to_owned()))
            }
        })?
    }

    /// Sends what was encoded, and keeps a buffer of moderate size.
    fn send_out(&mut self) -> Result<(), LostReason> {
        let sent = self.line.send(&self.out);
        self.out.clear();
        self.out.shrink_to(KEEP_MAX);
        sent
    }
}

fn shake_hands(line: &mut Line, config: &DialConfig<'_>) -> Result<PeerIdentity, LostReason> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).map_err(std::io::Error::other)?;
    let &DialConfig { identity, acquaintances, peer_number: expected, purpose, skew_max, .. } = config;
    let dialing = Dialing { identity, acquaintances, expected, purpose, skew_max };
    let (begun, mut out) = (Instant::now(), Vec::new());
    let mut dialer = Dialer::start(dialing, (config.wall_ms)(), &nonce, &mut out);
    loop {
        line.send(&out)?;
        out.clear();
        line.read(0, begun, begun + config.timeout)?;
        match dialer.feed(line.bytes(), begun.elapsed(), &mut out) {
            Ok(Progress::More { consumed }) => line.consume(consumed),
            Ok(Progress::Done { consumed, peer }) => {
                line.consume(consumed);
                line.send(&out)?;
                return Ok(peer);
            }
            Err(error) => {
                // This is the sentence for the other side; if it cannot be sent, there is still
                // the error on this side.
                let _ = line.send(&out);
                return Err(error.into());
            }
        }
    }
}

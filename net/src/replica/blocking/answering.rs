//! The answering end of a connection for comparing replicas, on a thread of its own.
//!
//! ```text
//! next_request ─▶ what is asked ─▶ reply, answer or pong ─▶ next_request …
//! ```
//!
//! Owner: one thread. Bounds: [`IDLE_MAX`] without a request, then the connection ends; for the
//! rest, those of `line.rs`, with [`PATIENCE`]. One request is answered after the other; what comes
//! meanwhile waits in the socket.
//!
//! Tested in `tests/replica/`.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bytes::Bytes;
use koltso_model::{ExchangeReply, KeyHash, Outcome, Refused};

use super::super::epoch::Epoch;
use super::super::features::Features;
use super::super::frame::exchange::{Asked, encode_exchange_reply, parse_asked};
use super::super::frame::{Limits, Parsed, Reply, encode_reply};
use super::super::handshake::{Identity, PeerIdentity};
use super::super::lost::LostReason;
use super::KEEP_MAX;
use super::line::Line;

/// A connection over which nothing is asked for this long ends.
pub const IDLE_MAX: Duration = Duration::from_secs(30);
/// The longest pause within a frame, in either direction.
const PATIENCE: Duration = Duration::from_secs(5);

/// The settings of an answering end.
#[derive(Debug, Clone)]
pub struct AnswerConfig<'a> {
    /// The identity of this node.
    pub identity: &'a Identity,
    /// Bytes of the largest value.
    pub value_max: usize,
    /// Ends all waits soon after it is set.
    pub stop: Arc<AtomicBool>,
}

/// A connection over which a peer compares replicas with this node. After an error it cannot be
/// used any more; dropped, it is closed.
#[derive(Debug)]
pub struct Answering {
    line: Line,
    limits: Limits,
    peer: PeerIdentity,
    features: Features,
    epoch: Epoch,
    /// The number of the request that has no reply yet, and the hash of its key.
    asked: Option<(u64, KeyHash)>,
    /// Of the peer's membership, when it made the last request.
    asker_epoch: u64,
    out: Vec<u8>,
}

impl Answering {
    /// Of a connection that [`ReplicaService::exchange`](super::super::ReplicaService::exchange)
    /// was given.
    #[must_use]
    pub fn new(peer: PeerIdentity, socket: TcpStream, read_so_far: &[u8], config: &AnswerConfig<'_>) -> Self {
        let line = Line::new(socket, read_so_far, PATIENCE, Some(Arc::clone(&config.stop)));
        let limits = Limits { value_max: config.value_max, features: peer.features };
        let Identity { features, epoch, .. } = config.identity;
        Self {
            line,
            limits,
            peer,
            features: *features,
            epoch: epoch.clone(),
            asked: None,
            asker_epoch: 0,
            out: Vec::new(),
        }
    }

    /// Who asks.
    #[must_use]
    pub const fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// The epoch of the peer's membership, by the last request.
    #[must_use]
    pub const fn asker_epoch(&self) -> u64 {
        self.asker_epoch
    }

    /// Waits for the next request.
    ///
    /// # Errors
    /// The connection is lost, nothing was asked for [`IDLE_MAX`], a request stopped half way, or
    /// the bytes are none.
    ///
    /// # Panics
    /// If the last request has no reply.
    pub fn next_request(&mut self) -> Result<Asked, LostReason> {
        assert!(self.asked.is_none(), "a request gets one reply");
        let mut begun = Instant::now();
        let idle_until = begun + IDLE_MAX;
        let mut is_idle = self.line.bytes().is_empty();
        loop {
            match parse_asked(self.line.bytes(), self.limits) {
                Parsed::Complete { frame, len } => {
                    self.line.consume(len);
                    let key_hash = match &frame.what {
                        Asked::Execute(operation) => operation.key().hash(),
                        Asked::Exchange(_) | Asked::Ping { .. } => KeyHash(0),
                    };
                    self.asked = Some((frame.number, key_hash));
                    self.asker_epoch = frame.epoch;
                    return Ok(frame.what);
                }
                Parsed::Partial { need } => self.line.read(need, begun, idle_until)?,
                Parsed::Bad(violation) => return Err(violation.into()),
            }
            if is_idle {
                // The time of a frame begins with its first byte.
                (is_idle, begun) = (false, Instant::now());
            }
        }
    }

    /// Answers a step of a comparison. A record that this node does not understand is told as none.
    ///
    /// # Errors
    /// The connection is lost, or the peer did not take the reply in time.
    ///
    /// # Panics
    /// If there is no request, or the reply does not fit into a frame.
    pub fn reply(&mut self, reply: &ExchangeReply) -> Result<(), LostReason> {
        let (number, _) = self.answered();
        encode_exchange_reply(&mut self.out, number, self.epoch.now(), self.features, reply);
        self.send_out()
    }

    /// Answers an operation. A record that this node does not understand is refused.
    ///
    /// # Errors
    /// As [`reply`](Self::reply).
    ///
    /// # Panics
    /// As [`reply`](Self::reply).
    pub fn answer(&mut self, outcome: &Outcome<Bytes>) -> Result<(), LostReason> {
        let (number, key_hash) = self.answered();
        let outcome =
            if self.features.cover_outcome(outcome) { outcome.borrowed() } else { Outcome::Refused(Refused::Failed) };
        encode_reply(&mut self.out, number, self.epoch.now(), key_hash, &Reply::Outcome(outcome));
        self.send_out()
    }

    /// Answers a ping with the wall clock, in milliseconds since the Unix epoch, and the hybrid
    /// logical clock.
    ///
    /// # Errors
    /// As [`reply`](Self::reply).
    ///
    /// # Panics
    /// If there is no request.
    pub fn pong(&mut self, wall_ms: u64, clock: u64) -> Result<(), LostReason> {
        let (number, key_hash) = self.answered();
        encode_reply(&mut self.out, number, self.epoch.now(), key_hash, &Reply::Pong { wall_ms, clock });
        self.send_out()
    }

    fn answered(&mut self) -> (u64, KeyHash) {
        self.asked.take().expect("a reply is one to a request")
    }

    fn send_out(&mut self) -> Result<(), LostReason> {
        let sent = self.line.send(&self.out);
        self.out.clear();
        self.out.shrink_to(KEEP_MAX);
        sent
    }
}

//! The handshake: hellos in both directions, then proofs that both sides know the cluster's secret.
//!
//! ```text
//! dialer                              acceptor
//!   HELLO ──────────────────────────────▶         version, cluster, topology, node numbers,
//!                                                 secret or none
//!         ◀────────────────────── HELLO, PROOF    HMAC-SHA256(secret,
//!                                                     "koltso acceptor" hello hello)
//!   PROOF, frames ──────────────────────▶         HMAC-SHA256(secret,
//!                                                     "koltso dialer" hello hello)
//!         ◀──────────────────────── frames
//! either: REFUSAL, one of a few sentences, and the end
//! ```
//!
//! The secret of a proof is the sender's first one; whoever reads it accepts any of his own, so that one can
//! take the place of the other ([`Secrets`]).
//!
//! Each hello contains a fresh nonce, so no proof is valid for another connection; the labels
//! differ, so none can be sent back. Every message begins with the same 16 bytes in all versions,
//! and a refusal is the same in all versions:
//!
//! ```text
//!  0 8 bytes KOLTSORP          HELLO    16 topology u64         24 epoch u64
//!  8 u16 version                        32 wall clock u64, ms   40 features u64
//! 10 u8  kind                           48 identity, 16 bytes   64 nonce, 32 bytes
//! 11 u8  flags                          96 lived until u64, ms 104 process u64
//! 12 u32 length of the rest            112 starts u32          116 own number u16
//!                                      118 number expected u16 120 length of the name u16
//!                                      122 purpose u16         124 heard until u64, ms
//!                                      132 the cluster's name
//!                              PROOF    16 32 bytes
//!                              REFUSAL  16 the sentence
//! flags  1 of a HELLO: the sender has a secret
//!        2 of an acceptor's HELLO, of a dialer's PROOF: you are not whom I remember
//! ```
//!
//! Features are announced, not compared: a node tells its peer what it understands. What it says of
//! its folder of data is judged by whoever remembers it ([`Acquaintances`]), the acceptor's side
//! when the hello has come, the dialer's when the proof has; neither goes on to frames without
//! having been told the other's verdict. Proofs cover all of it, their own flags included.
//!
//! Bounds: a message has at most [`MESSAGE_MAX`] bytes, and each side takes at most two. Nothing is
//! allocated for lengths that a message only claims.
//!
//! Deliberately absent: I/O, clocks and randomness (they come in as arguments), encryption, and a
//! defence against an attacker in the middle who changes frames after the handshake: see
//! `docs/replica-protocol.md`. Tested below.

mod message;
mod refusal;

use std::fmt;
use std::time::Duration;

use self::message::{
    DOUBTS, HELLO, MESSAGE_HEADER, OF_ACCEPTOR, OF_DIALER, PROOF, REFUSAL, SENTENCE_MAX, check_proof, hello, message,
    put_proof, read_hello,
};
use self::refusal::{refusal, telling};
use super::acquaintances::{Acquaintances, Introduction, Judged};
use super::epoch::Epoch;
use super::features::Features;
use super::secrets::Secrets;

/// The version of the protocol, frames included.
pub const VERSION: u16 = 2;
/// Bytes of the longest name of a cluster.
pub const CLUSTER_MAX: usize = 64;
/// Bytes of the longest message of a handshake.
pub const MESSAGE_MAX: usize = MESSAGE_HEADER + SENTENCE_MAX;
/// How many random bytes a hello has.
pub const NONCE: usize = 32;

/// What a connection is for. The side that has connected decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Operations of clients, pings, hints: a data core answers them.
    Requests,
    /// Comparing replicas: a thread beside the data plane answers.
    Exchange,
    /// Agreeing on who the members are: whoever gets the socket speaks its own protocol over it.
    Council,
}

impl Purpose {
    const fn code(self) -> u16 {
        match self {
            Self::Requests => 0,
            Self::Exchange => 1,
            Self::Council => 2,
        }
    }

    fn of_code(code: u16) -> Option<Self> {
        [Self::Requests, Self::Exchange, Self::Council].into_iter().find(|purpose| purpose.code() == code)
    }
}

/// What a node says about itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name of its cluster, at most [`CLUSTER_MAX`] bytes.
    pub cluster: String,
    /// A hash of the list of nodes with which the cluster was formed.
    pub topology: u64,
    /// The epoch of the frames that it sends.
    pub epoch: Epoch,
    /// The number of the node in the list.
    pub node: u16,
    /// Its data folder.
    pub introduction: Introduction,
    /// What it understands of records.
    pub features: Features,
    /// What all nodes of the cluster know.
    pub secrets: Secrets,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} of cluster {:?}, topology {:016x}", self.node, self.cluster, self.topology)
    }
}

/// How far another node's wall clock is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skew {
    /// The other clock minus ours, in milliseconds.
    pub offset_ms: i64,
    /// The true offset differs from `offset_ms` by no more than this, in milliseconds.
    pub error_ms: u64,
}

impl Skew {
    /// Computes the skew from a clock that was read at some moment within the `elapsed` time after
    /// ours was `sent_ms`.
    #[must_use]
    pub fn measure(sent_ms: u64, theirs_ms: u64, elapsed: Duration) -> Self {
        let error_ms = u64::try_from(elapsed.as_micros().div_ceil(2_000)).unwrap_or(u64::MAX);
        let midpoint = i128::from(sent_ms) + i128::try_from(elapsed.as_millis() / 2).unwrap_or(i128::MAX / 2);
        let offset = i128::from(theirs_ms) - midpoint;
        Self { offset_ms: offset.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64, error_ms }
    }

    /// Whether the clocks are certainly further apart than `max`.
    #[must_use]
    pub fn exceeds(&self, max: Duration) -> bool {
        u128::from(self.offset_ms.unsigned_abs().saturating_sub(self.error_ms)) > max.as_millis()
    }
}

/// The node at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its number.
    pub node: u16,
    /// Its data folder, as it announced it.
    pub introduction: Introduction,
    /// What it announced that it understands.
    pub features: Features,
    /// How far its clock is off; `None` on the accepting side, since only the dialer measures it.
    pub skew: Option<Skew>,
    /// What the connection is for.
    pub purpose: Purpose,
    /// It is not whom this node remembers ([`Judged::Changed`]), and has been told so.
    pub changed: bool,
    /// It has said the same of this node.
    pub doubts_us: bool,
    /// Until when it had heard of whom it remembers as this node ([`Acquaintances::heard_ms`]).
    pub heard_us_ms: u64,
    /// The epoch of its membership when it said hello.
    pub epoch: u64,
}

/// The result of feeding some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The first `consumed` bytes have been handled; feed the rest again, with more bytes behind
    /// it.
    More {
        /// How many bytes have been handled.
        consumed: usize,
    },
    /// The handshake is complete. The bytes after the first `consumed` ones are frames.
    Done {
        /// How many bytes have been handled.
        consumed: usize,
        /// The node at the other end.
        peer: PeerIdentity,
    },
}

/// Why the handshake failed. Bytes that were appended to the output should be sent before closing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The other side does not speak the protocol.
    #[error("the other side does not speak the replica protocol")]
    Garbage,
    /// This side refused.
    #[error("{0}")]
    Mismatch(String),
    /// This side refused because of the clocks.
    #[error("{0}")]
    Skew(String),
    /// The other side refused, with this sentence, which has only words that are written here.
    #[error("the other side refused: {0}")]
    Refusal(String),
}

/// What the side that connects needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Dialing<'a> {
    /// Who it is.
    pub identity: &'a Identity,
    /// Whom it remembers.
    pub acquaintances: &'a dyn Acquaintances,
    /// The number of the node that should be there.
    pub expected: u16,
    /// What the connection is for.
    pub purpose: Purpose,
    /// Clocks that are certainly further apart are refused.
    pub skew_max: Duration,
}

/// The side that has connected.
///
/// ```text
/// start ─▶ hello sent ─HELLO─▶ hello read ─PROOF─▶ done
/// ```
#[derive(Debug)]
pub struct Dialer<'a> {
    dialing: Dialing<'a>,
    wall_ms: u64,
    mine: Vec<u8>,
    /// The other side's hello, and what is known about it; `None` until it has come.
    theirs: Option<(Vec<u8>, PeerIdentity)>,
}

impl<'a> Dialer<'a> {
    /// Appends the hello to `out`. `wall_ms` is the wall clock in milliseconds since the Unix
    /// epoch, and `nonce` fresh randomness.
    ///
    /// # Panics
    /// If the cluster's name is longer than [`CLUSTER_MAX`].
    pub fn start(dialing: Dialing<'a>, wall_ms: u64, nonce: &[u8; NONCE], out: &mut Vec<u8>) -> Self {
        let heard_ms = dialing.acquaintances.heard_ms(dialing.expected);
        let mine = hello(dialing.identity, dialing.expected, wall_ms, nonce, dialing.purpose, (false, heard_ms));
        out.extend_from_slice(&mine);
        Self { dialing, wall_ms, mine, theirs: None }
    }

    /// Continues with `bytes`, which came `elapsed` after the start. The caller must send whatever
    /// this appends to `out`.
    ///
    /// # Errors
    /// If the other side has refused, or must be refused; what is in `out` should be sent before
    /// closing.
    pub fn feed(&mut self, bytes: &[u8], elapsed: Duration, out: &mut Vec<u8>) -> Result<Progress, HandshakeError> {
        let result = self.step(bytes, elapsed, out);
        telling(result, out)
    }

    fn step(&mut self, bytes: &[u8], elapsed: Duration, out: &mut Vec<u8>) -> Result<Progress, HandshakeError> {
        let Dialing { identity, acquaintances, .. } = self.dialing;
        let mut consumed = 0;
        while let Some(message) = message(&bytes[consumed..])? {
            let whole = &bytes[consumed..consumed + message.len];
            consumed += message.len;
            match (message.kind, &mut self.theirs) {
                (REFUSAL, _) => return Err(refusal(message.body)),
                (HELLO, None) => self.theirs = Some((whole.to_vec(), self.answered(&message, elapsed)?)),
                (PROOF, Some((theirs, peer))) => {
                    let hellos = [&self.mine[..], theirs];
                    check_proof(identity, peer.node, OF_ACCEPTOR, hellos, &message)?;
                    if message.flags != 0 {
                        return Err(HandshakeError::Garbage);
                    }
                    peer.changed = changed(identity, acquaintances, peer.node, &peer.introduction)?;
                    let flags = if peer.changed { DOUBTS } else { 0 };
                    put_proof(out, identity, OF_DIALER, hellos, flags);
                    return Ok(Progress::Done { consumed, peer: *peer });
                }
                _ => return Err(HandshakeError::Garbage),
            }
        }
        Ok(Progress::More { consumed })
    }

    /// Compares the acceptor's hello with what is expected of it.
    fn answered(&self, message: &message::Message<'_>, elapsed: Duration) -> Result<PeerIdentity, HandshakeError> {
        let Dialing { identity, expected, purpose, skew_max, .. } = self.dialing;
        let hello = read_hello(identity, message)?;
        let (node, us) = (hello.node, identity.node);
        if node != expected {
            let sentence = format!("node {us} expected node {expected} at this address, and not node {node}");
            return Err(HandshakeError::Mismatch(sentence));
        }
        if hello.purpose != purpose {
            return Err(HandshakeError::Garbage);
        }
        let skew = Skew::measure(self.wall_ms, hello.wall_ms, elapsed);
        if skew.exceeds(skew_max) {
            let (off, max) = (skew.offset_ms.unsigned_abs(), skew_max.as_millis());
            let direction = if skew.offset_ms > 0 { "ahead" } else { "behind" };
            return Err(HandshakeError::Skew(format!(
                "the clock of node {node} is {off} ms {direction}, more than the bound of {max} ms"
            )));
        }
        Ok(hello.peer(Some(skew)))
    }
}

/// Whether a node has another folder than this one remembers.
fn changed(
    identity: &Identity,
    acquaintances: &dyn Acquaintances,
    node: u16,
    introduction: &Introduction,
) -> Result<bool, HandshakeError> {
    match acquaintances.judge(node, introduction) {
        Judged::Known => Ok(false),
        Judged::Changed => Ok(true),
        Judged::TwoPlaces => {
            let us = identity.node;
            Err(HandshakeError::Mismatch(format!(
                "one identity, two places: node {node} has a copy of a data folder that node {us} knows elsewhere"
            )))
        }
    }
}

/// The side to which the other one has connected.
///
/// ```text
/// new ─HELLO─▶ hello and proof sent ─PROOF─▶ done
/// ```
#[derive(Debug)]
pub struct Acceptor<'a> {
    identity: &'a Identity,
    members: &'a [u16],
    acquaintances: &'a dyn Acquaintances,
    nonce: [u8; NONCE],
    /// What the dialer says about itself, and both hellos; `None` until the dialer's has come.
    said: Option<(PeerIdentity, Vec<u8>, Vec<u8>)>,
}

impl<'a> Acceptor<'a> {
    /// Waits for a hello of one of `members`, the numbers of all nodes. `acquaintances` are those
    /// whom this node remembers, and `nonce` is fresh randomness.
    #[must_use]
    pub fn new(
        identity: &'a Identity,
        members: &'a [u16],
        acquaintances: &'a dyn Acquaintances,
        nonce: [u8; NONCE],
    ) -> Self {
        Self { identity, members, acquaintances, nonce, said: None }
    }

    /// Whether the dialer has said which member it is, and only its proof is missing.
    #[must_use]
    pub const fn knows_who(&self) -> bool {
        self.said.is_some()
    }

    /// Continues with `bytes`. `wall_ms` is the wall clock now. The caller must send whatever this
    /// appends to `out`.
    ///
    /// # Errors
    /// If the other side has refused, or must be refused; what is in `out` should be sent before
    /// closing.
    ///
    /// # Panics
    /// If the cluster's name is longer than [`CLUSTER_MAX`].
    pub fn feed(&mut self, bytes: &[u8], wall_ms: u64, out: &mut Vec<u8>) -> Result<Progress, HandshakeError> {
        let result = self.step(bytes, wall_ms, out);
        telling(result, out)
    }

    fn step(&mut self, bytes: &[u8], wall_ms: u64, out: &mut Vec<u8>) -> Result<Progress, HandshakeError> {
        let mut consumed = 0;
        while let Some(message) = message(&bytes[consumed..])? {
            let whole = &bytes[consumed..consumed + message.len];
            consumed += message.len;
            match (message.kind, &mut self.said) {
                (REFUSAL, _) => return Err(refusal(message.body)),
                (HELLO, None) => {
                    let theirs = read_hello(self.identity, &message)?;
                    let (us, node) = (self.identity.node, theirs.node);
                    debug_assert_eq!(theirs.expected, us);
                    if theirs.doubts_us {
                        return Err(HandshakeError::Garbage);
                    }
                    if !self.members.contains(&node) {
                        return Err(HandshakeError::Mismatch(format!(
                            "node {node} is not in the --cluster list of node {us}"
                        )));
                    }
                    let changed = changed(self.identity, self.acquaintances, node, &theirs.introduction)?;
                    let verdict = (changed, self.acquaintances.heard_ms(node));
                    let mine = hello(self.identity, node, wall_ms, &self.nonce, theirs.purpose, verdict);
                    out.extend_from_slice(&mine);
                    put_proof(out, self.identity, OF_ACCEPTOR, [whole, &mine], 0);
                    self.said = Some((PeerIdentity { changed, ..theirs.peer(None) }, whole.to_vec(), mine));
                }
                (PROOF, Some((peer, theirs, mine))) => {
                    check_proof(self.identity, peer.node, OF_DIALER, [theirs, mine], &message)?;
                    if message.flags & !DOUBTS != 0 {
                        return Err(HandshakeError::Garbage);
                    }
                    peer.doubts_us = message.flags & DOUBTS != 0;
                    return Ok(Progress::Done { consumed, peer: *peer });
                }
                _ => return Err(HandshakeError::Garbage),
            }
        }
        Ok(Progress::More { consumed })
    }
}

#[cfg(test)]
mod tests;

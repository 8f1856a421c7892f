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
//! Each hello contains a fresh nonce, so no proof is valid for another connection; the labels
//! differ, so none can be sent back. Every message begins with the same 16 bytes in all versions,
//! and a refusal is the same in all versions:
//!
//! ```text
//!  0 8 bytes KOLTSORP          HELLO    16 topology u64         24 topology number u64
//!  8 u16 version                        32 wall clock u64, ms   40 features u64
//! 10 u8  kind                           48 identity, 16 bytes   64 nonce, 32 bytes
//! 11 u8  flags                          96 own number u16       98 number that is expected u16
//! 12 u32 length of the rest            100 length of the cluster's name u16
//!                                      102 u16 zero            104 the name
//!                              PROOF    16 32 bytes
//!                              REFUSAL  16 the sentence
//! ```
//!
//! Features and identity are announced, not compared: a node tells its peer what it understands,
//! and which folder of data it is. Proofs cover both.
//!
//! Whoever refuses has proved nothing yet, so a sentence is repeated only if it is one of
//! `SENTENCES`, of which but the numbers can vary; other text never leaves this file.
//!
//! Bounds: a message has at most [`MESSAGE_MAX`] bytes, and each side takes at most two. Nothing is
//! allocated for lengths that a message only claims.
//!
//! Deliberately absent: I/O, clocks and randomness (they come in as arguments), encryption, and a
//! defence against an attacker in the middle who changes frames after the handshake: see
//! `docs/replica-protocol.md`. Tested below.

use std::fmt;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use koltso_model::NodeId;
use sha2::Sha256;

use super::features::Features;

/// The version of the protocol, frames included.
pub const VERSION: u16 = 2;
/// Bytes of the longest name of a cluster.
pub const CLUSTER_MAX: usize = 64;
/// Bytes of the longest message of a handshake.
pub const MESSAGE_MAX: usize = MESSAGE_HEADER + SENTENCE_MAX;
/// How many random bytes a hello has.
pub const NONCE: usize = 32;

const MAGIC: [u8; 8] = *b"KOLTSORP";
const MESSAGE_HEADER: usize = 16;
/// Bytes of the longest sentence of a refusal.
const SENTENCE_MAX: usize = 512;
/// Bytes of a hello without its header and the cluster's name.
const HELLO_FIXED: usize = 88;
const PROOF_LEN: usize = 32;

const HELLO: u8 = 1;
const PROOF: u8 = 2;
const REFUSAL: u8 = 3;
const HAS_SECRET: u8 = 1;

/// What a node says about itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name of its cluster, at most [`CLUSTER_MAX`] bytes.
    pub cluster: String,
    /// A hash of the list of nodes.
    pub topology: u64,
    /// The number of that list, for lists that change; also the epoch of the frames that the node
    /// sends.
    pub topology_number: u64,
    /// The number of the node in the list.
    pub node: u16,
    /// The identity of its data folder.
    pub id: NodeId,
    /// What it understands of records.
    pub features: Features,
    /// The secret that all nodes of the cluster know; empty if there is none.
    pub secret: Vec<u8>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret must not be in any log.
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
    /// The identity of its data folder, as it announced it.
    pub id: NodeId,
    /// What it announced that it understands.
    pub features: Features,
    /// How far its clock is off; `None` on the accepting side, since only the dialer measures it.
    pub skew: Option<Skew>,
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

struct Hello {
    node: u16,
    id: NodeId,
    features: Features,
    expected: u16,
    wall_ms: u64,
}

impl Hello {
    const fn peer(&self, skew: Option<Skew>) -> PeerIdentity {
        PeerIdentity { node: self.node, id: self.id, features: self.features, skew }
    }
}

/// One complete message.
struct Message<'a> {
    kind: u8,
    flags: u8,
    version: u16,
    body: &'a [u8],
    len: usize,
}

fn message(bytes: &[u8]) -> Result<Option<Message<'_>>, HandshakeError> {
    let known = bytes.len().min(MAGIC.len());
    if bytes[..known] != MAGIC[..known] {
        return Err(HandshakeError::Garbage);
    }
    let Some((header, rest)) = bytes.split_first_chunk::<MESSAGE_HEADER>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
    if length > SENTENCE_MAX {
        return Err(HandshakeError::Garbage);
    }
    let (kind, flags, version) = (header[10], header[11], u16::from_le_bytes([header[8], header[9]]));
    Ok(rest.get(..length).map(|body| Message { kind, flags, version, body, len: MESSAGE_HEADER + length }))
}

fn begin(out: &mut Vec<u8>, kind: u8, flags: u8, length: usize) {
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&(length as u32).to_le_bytes());
}

fn hello(identity: &Identity, expected: u16, wall_ms: u64, nonce: &[u8; NONCE]) -> Vec<u8> {
    let cluster = identity.cluster.as_bytes();
    assert!(cluster.len() <= CLUSTER_MAX, "the name of a cluster has at most {CLUSTER_MAX} bytes");
    let mut out = Vec::with_capacity(MESSAGE_HEADER + HELLO_FIXED + cluster.len());
    begin(&mut out, HELLO, if identity.secret.is_empty() { 0 } else { HAS_SECRET }, HELLO_FIXED + cluster.len());
    for number in [identity.topology, identity.topology_number, wall_ms, identity.features.0] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&identity.id.0.to_le_bytes());
    out.extend_from_slice(nonce);
    for number in [identity.node, expected, cluster.len() as u16, 0] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(cluster);
    out
}

/// Reads a hello and compares it with our identity.
fn read_hello(identity: &Identity, message: &Message<'_>) -> Result<Hello, HandshakeError> {
    let us = identity.node;
    let refuse = |sentence: String| Err(HandshakeError::Mismatch(sentence));
    if message.version != VERSION {
        let theirs = message.version;
        return refuse(format!(
            "node {us} speaks version {VERSION} of the replica protocol, and the other side {theirs}"
        ));
    }
    let Some((fixed, cluster)) = message.body.split_first_chunk::<HELLO_FIXED>() else {
        return Err(HandshakeError::Garbage);
    };
    let u64_at = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("eight bytes"));
    let u16_at = |at: usize| u16::from_le_bytes([fixed[at], fixed[at + 1]]);
    let (node, expected) = (u16_at(80), u16_at(82));
    if cluster.len() != u16_at(84) as usize || cluster.len() > CLUSTER_MAX || message.flags & !HAS_SECRET != 0 {
        return Err(HandshakeError::Garbage);
    }
    if cluster != identity.cluster.as_bytes() {
        return refuse(format!("node {us} and node {node} have different cluster names (--cluster-name)"));
    }
    if node == us {
        return refuse(format!("node {us} is connected to itself, or two nodes have the number {us}"));
    }
    if u64_at(0) != identity.topology || u64_at(8) != identity.topology_number {
        return refuse(format!("the --cluster lists of node {us} and node {node} differ"));
    }
    if expected != us {
        return refuse(format!("this is node {us}, and node {node} expected node {expected} at its address"));
    }
    match (identity.secret.is_empty(), message.flags & HAS_SECRET == 0) {
        (true, false) => refuse(format!("node {us} has no secret, and node {node} has one")),
        (false, true) => refuse(format!("node {us} has a secret, and node {node} has none")),
        _ => {
            let id = NodeId(u128::from_le_bytes(fixed[32..48].try_into().expect("sixteen bytes")));
            Ok(Hello { node, id, features: Features(u64_at(24)), expected, wall_ms: u64_at(16) })
        }
    }
}

fn proof(identity: &Identity, label: &[u8], of_dialer: &[u8], of_acceptor: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&identity.secret).expect("a key may have any length");
    mac.update(label);
    mac.update(of_dialer);
    mac.update(of_acceptor);
    mac
}

const OF_ACCEPTOR: &[u8] = b"koltso acceptor";
const OF_DIALER: &[u8] = b"koltso dialer";

fn put_proof(out: &mut Vec<u8>, mac: Hmac<Sha256>) {
    begin(out, PROOF, 0, PROOF_LEN);
    out.extend_from_slice(&mac.finalize().into_bytes());
}

/// Verifies the proof of the other side, in constant time.
fn check_proof(identity: &Identity, node: u16, mac: Hmac<Sha256>, message: &Message<'_>) -> Result<(), HandshakeError> {
    let us = identity.node;
    mac.verify_slice(message.body)
        .map_err(|_| HandshakeError::Mismatch(format!("node {us} and node {node} have different secrets")))
}

fn put_refusal(out: &mut Vec<u8>, sentence: &str) {
    assert!(sentence.len() <= SENTENCE_MAX && sentence.is_ascii(), "a refusal that others can read");
    begin(out, REFUSAL, 0, sentence.len());
    out.extend_from_slice(sentence.as_bytes());
}

/// All sentences of refusals, `#` for a number.
const SENTENCES: [&str; 12] = [
    "node # speaks version # of the replica protocol, and the other side #",
    "node # and node # have different cluster names (--cluster-name)",
    "node # is connected to itself, or two nodes have the number #",
    "the --cluster lists of node # and node # differ",
    "this is node #, and node # expected node # at its address",
    "node # expected node # at this address, and not node #",
    "node # is not in the --cluster list of node #",
    "node # has no secret, and node # has one",
    "node # has a secret, and node # has none",
    "node # and node # have different secrets",
    "the clock of node # is # ms ahead, more than the bound of # ms",
    "the clock of node # is # ms behind, more than the bound of # ms",
];
/// Stands for any other sentence.
const UNKNOWN: &str = "for a reason that this version does not know";
/// The most digits of a `u64`.
const DIGITS_MAX: usize = 20;

/// Whether a text is a sentence with numbers for its `#`.
fn fits(text: &str, sentence: &str) -> bool {
    let mut pieces = sentence.split('#');
    let Some(mut rest) = pieces.next().and_then(|first| text.strip_prefix(first)) else { return false };
    for piece in pieces {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let behind = rest[digits..].strip_prefix(piece).filter(|_| (1..=DIGITS_MAX).contains(&digits));
        let Some(behind) = behind else { return false };
        rest = behind;
    }
    rest.is_empty()
}

/// What may be repeated of the sentence with which the other side refused.
fn refusal(bytes: &[u8]) -> HandshakeError {
    let known = |text: &&str| SENTENCES.iter().any(|sentence| fits(text, sentence));
    let sentence = std::str::from_utf8(bytes).ok().filter(known).unwrap_or(UNKNOWN);
    HandshakeError::Refusal(sentence.to_owned())
}

/// Appends the refusal that belongs to an error to the bytes to be sent.
fn telling<T>(result: Result<T, HandshakeError>, out: &mut Vec<u8>) -> Result<T, HandshakeError> {
    if let Err(HandshakeError::Mismatch(sentence) | HandshakeError::Skew(sentence)) = &result {
        put_refusal(out, sentence);
    }
    result
}

/// The side that has connected.
///
/// ```text
/// start ─▶ hello sent ─HELLO─▶ hello read ─PROOF─▶ done
/// ```
#[derive(Debug)]
pub struct Dialer<'a> {
    identity: &'a Identity,
    expected: u16,
    wall_ms: u64,
    skew_max: Duration,
    mine: Vec<u8>,
    /// The other side's hello, and what is known about it; `None` until it has come.
    theirs: Option<(Vec<u8>, PeerIdentity)>,
}

impl<'a> Dialer<'a> {
    /// Appends the hello to `out`. `expected` is the number of the node that should be there,
    /// `wall_ms` the wall clock in milliseconds since the Unix epoch, and `nonce` fresh randomness.
    ///
    /// # Panics
    /// If the cluster's name is longer than [`CLUSTER_MAX`].
    pub fn start(
        identity: &'a Identity,
        expected: u16,
        skew_max: Duration,
        wall_ms: u64,
        nonce: &[u8; NONCE],
        out: &mut Vec<u8>,
    ) -> Self {
        let mine = hello(identity, expected, wall_ms, nonce);
        out.extend_from_slice(&mine);
        Self { identity, expected, wall_ms, skew_max, mine, theirs: None }
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
        let mut consumed = 0;
        while let Some(message) = message(&bytes[consumed..])? {
            let whole = &bytes[consumed..consumed + message.len];
            consumed += message.len;
            match (message.kind, &self.theirs) {
                (REFUSAL, _) => return Err(refusal(message.body)),
                (HELLO, None) => {
                    let hello = read_hello(self.identity, &message)?;
                    let (node, us) = (hello.node, self.identity.node);
                    if node != self.expected {
                        let expected = self.expected;
                        let sentence =
                            format!("node {us} expected node {expected} at this address, and not node {node}");
                        return Err(HandshakeError::Mismatch(sentence));
                    }
                    let skew = Skew::measure(self.wall_ms, hello.wall_ms, elapsed);
                    if skew.exceeds(self.skew_max) {
                        let (off, max) = (skew.offset_ms.unsigned_abs(), self.skew_max.as_millis());
                        let direction = if skew.offset_ms > 0 { "ahead" } else { "behind" };
                        return Err(HandshakeError::Skew(format!(
                            "the clock of node {node} is {off} ms {direction}, more than the bound of {max} ms"
                        )));
                    }
                    self.theirs = Some((whole.to_vec(), hello.peer(Some(skew))));
                }
                (PROOF, Some((theirs, peer))) => {
                    let mac = proof(self.identity, OF_ACCEPTOR, &self.mine, theirs);
                    check_proof(self.identity, peer.node, mac, &message)?;
                    put_proof(out, proof(self.identity, OF_DIALER, &self.mine, theirs));
                    return Ok(Progress::Done { consumed, peer: *peer });
                }
                _ => return Err(HandshakeError::Garbage),
            }
        }
        Ok(Progress::More { consumed })
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
    nonce: [u8; NONCE],
    /// What the dialer says about itself, and both hellos; `None` until the dialer's has come.
    said: Option<(PeerIdentity, Vec<u8>, Vec<u8>)>,
}

impl<'a> Acceptor<'a> {
    /// Waits for a hello of one of `members`, the numbers of all nodes. `nonce` is fresh
    /// randomness.
    #[must_use]
    pub fn new(identity: &'a Identity, members: &'a [u16], nonce: [u8; NONCE]) -> Self {
        Self { identity, members, nonce, said: None }
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
            match (message.kind, &self.said) {
                (REFUSAL, _) => return Err(refusal(message.body)),
                (HELLO, None) => {
                    let theirs = read_hello(self.identity, &message)?;
                    let (us, node) = (self.identity.node, theirs.node);
                    debug_assert_eq!(theirs.expected, us);
                    if !self.members.contains(&node) {
                        return Err(HandshakeError::Mismatch(format!(
                            "node {node} is not in the --cluster list of node {us}"
                        )));
                    }
                    let mine = hello(self.identity, node, wall_ms, &self.nonce);
                    out.extend_from_slice(&mine);
                    put_proof(out, proof(self.identity, OF_ACCEPTOR, whole, &mine));
                    self.said = Some((theirs.peer(None), whole.to_vec(), mine));
                }
                (PROOF, Some((peer, theirs, mine))) => {
                    let mac = proof(self.identity, OF_DIALER, theirs, mine);
                    check_proof(self.identity, peer.node, mac, &message)?;
                    return Ok(Progress::Done { consumed, peer: *peer });
                }
                _ => return Err(HandshakeError::Garbage),
            }
        }
        Ok(Progress::More { consumed })
    }
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;

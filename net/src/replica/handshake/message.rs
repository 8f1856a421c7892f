//! The bytes of a handshake's messages: what they all begin with, hellos and proofs.
//!
//! The layouts are in the folder's `mod.rs`. Bound: lengths that a message claims are compared with
//! [`SENTENCE_MAX`] before anything else is read.

use koltso_model::NodeId;

use super::super::acquaintances::Introduction;
use super::super::features::Features;
use super::{CLUSTER_MAX, HandshakeError, Identity, NONCE, PeerIdentity, Purpose, Skew, VERSION};

const MAGIC: [u8; 8] = *b"KOLTSORP";
pub(super) const MESSAGE_HEADER: usize = 16;
/// Bytes of the longest sentence of a refusal, and of what follows the header of any message.
pub(super) const SENTENCE_MAX: usize = 512;
/// Bytes of a hello without its header and the cluster's name.
const HELLO_FIXED: usize = 116;
pub(super) const PROOF_LEN: usize = 32;

pub(super) const HELLO: u8 = 1;
pub(super) const PROOF: u8 = 2;
pub(super) const REFUSAL: u8 = 3;

/// Of a hello: the sender has a secret.
const HAS_SECRET: u8 = 1;
/// Of an acceptor's hello, and of a dialer's proof: the sender remembers another folder of data in
/// the other's place, or a later state of it.
pub(super) const DOUBTS: u8 = 2;

/// One complete message.
pub(super) struct Message<'a> {
    pub(super) kind: u8,
    pub(super) flags: u8,
    version: u16,
    pub(super) body: &'a [u8],
    pub(super) len: usize,
}

/// The message at the beginning of `bytes`; `None` if there is more to come.
pub(super) fn message(bytes: &[u8]) -> Result<Option<Message<'_>>, HandshakeError> {
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

/// Appends what every message begins with.
pub(super) fn begin(out: &mut Vec<u8>, kind: u8, flags: u8, length: usize) {
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&(length as u32).to_le_bytes());
}

/// What the hello of the other side says of it.
pub(super) struct Hello {
    pub(super) node: u16,
    pub(super) introduction: Introduction,
    pub(super) features: Features,
    pub(super) expected: u16,
    pub(super) wall_ms: u64,
    pub(super) purpose: Purpose,
    /// Its sender remembers another folder in the place of this node.
    pub(super) doubts_us: bool,
    /// Until when it heard of whom it remembers there.
    pub(super) heard_us_ms: u64,
    pub(super) epoch: u64,
}

impl Hello {
    /// The node that said it, of which nothing is remembered yet.
    pub(super) const fn peer(&self, skew: Option<Skew>) -> PeerIdentity {
        let Self { node, introduction, features, purpose, doubts_us, heard_us_ms, epoch, .. } = *self;
        PeerIdentity { node, introduction, features, skew, purpose, changed: false, doubts_us, heard_us_ms, epoch }
    }
}

/// The hello of a node to the one with number `expected`.
pub(super) fn hello(
    identity: &Identity,
    expected: u16,
    wall_ms: u64,
    nonce: &[u8; NONCE],
    purpose: Purpose,
    (doubts, heard_ms): (bool, u64),
) -> Vec<u8> {
    let cluster = identity.cluster.as_bytes();
    assert!(cluster.len() <= CLUSTER_MAX, "the name of a cluster has at most {CLUSTER_MAX} bytes");
    let mut out = Vec::with_capacity(MESSAGE_HEADER + HELLO_FIXED + cluster.len());
    let has_secret = if identity.secrets.is_empty() { 0 } else { HAS_SECRET };
    let flags = has_secret | if doubts { DOUBTS } else { 0 };
    begin(&mut out, HELLO, flags, HELLO_FIXED + cluster.len());
    for number in [identity.topology, identity.epoch.now(), wall_ms, identity.features.0] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    let Introduction { id, starts, lived_ms, process } = identity.introduction;
    out.extend_from_slice(&id.0.to_le_bytes());
    out.extend_from_slice(nonce);
    out.extend_from_slice(&lived_ms.to_le_bytes());
    out.extend_from_slice(&process.to_le_bytes());
    out.extend_from_slice(&starts.to_le_bytes());
    for number in [identity.node, expected, cluster.len() as u16, purpose.code()] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&heard_ms.to_le_bytes());
    out.extend_from_slice(cluster);
    out
}

/// Reads a hello and compares it with our identity.
pub(super) fn read_hello(identity: &Identity, message: &Message<'_>) -> Result<Hello, HandshakeError> {
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
    let (node, expected) = (u16_at(100), u16_at(102));
    let is_misshapen = cluster.len() != u16_at(104) as usize || cluster.len() > CLUSTER_MAX;
    if is_misshapen || message.flags & !(HAS_SECRET | DOUBTS) != 0 {
        return Err(HandshakeError::Garbage);
    }
    let purpose = Purpose::of_code(u16_at(106)).ok_or(HandshakeError::Garbage)?;
    if cluster != identity.cluster.as_bytes() {
        return refuse(format!("node {us} and node {node} have different cluster names (--cluster-name)"));
    }
    if node == us {
        return refuse(format!("node {us} is connected to itself, or two nodes have the number {us}"));
    }
    if u64_at(0) != identity.topology {
        return refuse(format!("the --cluster lists of node {us} and node {node} differ"));
    }
    if expected != us {
        return refuse(format!("this is node {us}, and node {node} expected node {expected} at its address"));
    }
    match (identity.secrets.is_empty(), message.flags & HAS_SECRET == 0) {
        (true, false) => return refuse(format!("node {us} has no secret, and node {node} has one")),
        (false, true) => return refuse(format!("node {us} has a secret, and node {node} has none")),
        _ => {}
    }
    let introduction = Introduction {
        id: NodeId(u128::from_le_bytes(fixed[32..48].try_into().expect("sixteen bytes"))),
        lived_ms: u64_at(80),
        process: u64_at(88),
        starts: u32::from_le_bytes(fixed[96..100].try_into().expect("four bytes")),
    };
    if introduction.id != NodeId::NONE && introduction.id == identity.introduction.id {
        return refuse(format!("one identity, two places: node {us} and node {node} have copies of one data folder"));
    }
    let (features, wall_ms, epoch) = (Features(u64_at(24)), u64_at(16), u64_at(8));
    let (doubts_us, heard_us_ms) = (message.flags & DOUBTS != 0, u64_at(108));
    Ok(Hello { node, introduction, features, expected, wall_ms, purpose, doubts_us, heard_us_ms, epoch })
}

pub(super) const OF_ACCEPTOR: &[u8] = b"koltso acceptor";
pub(super) const OF_DIALER: &[u8] = b"koltso dialer";

/// What a proof is over: both hellos and its own flags.
const fn proven<'a>(label: &'a [u8], [of_dialer, of_acceptor]: [&'a [u8]; 2], flags: &'a [u8; 1]) -> [&'a [u8]; 4] {
    [label, of_dialer, of_acceptor, flags]
}

/// Appends a proof. The hellos are the dialer's and the acceptor's.
pub(super) fn put_proof(out: &mut Vec<u8>, identity: &Identity, label: &[u8], hellos: [&[u8]; 2], flags: u8) {
    begin(out, PROOF, flags, PROOF_LEN);
    out.extend_from_slice(&identity.secrets.tag(&proven(label, hellos, &[flags])));
}

/// Verifies the proof of the other side, in constant time.
pub(super) fn check_proof(
    identity: &Identity,
    node: u16,
    label: &[u8],
    hellos: [&[u8]; 2],
    message: &Message<'_>,
) -> Result<(), HandshakeError> {
    let us = identity.node;
    if identity.secrets.accept(&proven(label, hellos, &[message.flags]), message.body) {
        return Ok(());
    }
    Err(HandshakeError::Mismatch(format!("node {us} and node {node} have different secrets")))
}

//! Frames of the replica protocol: bytes to requests and replies, and back.
//!
//! ```text
//!  0 u32 checksum: CRC-32C of all behind it     Write       clock u64, expires u48, length of
//!  4 u32 length of the body, after the header               the attributes u16, key,
//!  8 u64 number of the request                              attributes, value
//! 16 u64 hash of the key; 0 in requests         Read        key            mark 1: with the value
//! 24 u64 epoch of the sender's membership       Ping, Pong  wall clock u64, clock u64
//! 32 u8  kind                                   Superseded  clock u64
//! 33 u8  marks                                  Refused     -              marks: the reason
//! 34 u16 length of the key                      Found       clock u64, expires u48, length of
//! 36 u16 node of the version                                the attributes u16, length of the
//! 38 u16 flags of the record                                value u32, attributes, value
//!                                                                          mark 1: value follows
//!                                               Absent      clock u64 or nothing
//!                                                                          mark 1: a tombstone's
//! ```
//!
//! Numbers are little-endian. A field that a kind does not have is zero, so that a frame has only
//! one encoding.
//!
//! Bounds: a key has 1 to [`KEY_MAX`] bytes, attributes have at most [`ATTRIBUTES_MAX`], a value
//! has at most [`Limits::value_max`]. The lengths in the header are compared with these before
//! anything else is read, then the checksum is verified, then the rest. A frame costs no allocation
//! in either direction. A request's key is hashed when it is parsed, and nowhere after that.
//!
//! Invariant: what has been parsed has no record flag and no attribute that the sender did not
//! announce in its handshake ([`Limits::features`]).
//!
//! Deliberately absent: I/O, compression, the meaning of versions. Tested in `frame/tests.rs` and
//! by the `replica_frames` fuzz target.

mod encode;
pub mod exchange;
mod parse;

use koltso_model::{ATTRIBUTES_MAX, AttributeError, KEY_MAX, KeyHash, Operation, Outcome, Refused};

pub use self::encode::{encode_found_head, encode_reply, encode_request, encode_write_head};
#[doc(hidden)]
pub use self::parse::fuzz_frames;
pub use self::parse::{parse_reply, parse_request};
use super::features::Features;

/// Bytes of the header.
pub const HEADER: usize = 40;

/// The most bytes of a body that are neither key nor attributes nor value.
const FIXED_MAX: usize = 20;
/// An expiry has 48 bits; the length of the attributes is in the 16 bits above them.
const EXPIRY_BITS: u32 = 48;

const WRITE: u8 = 1;
const READ: u8 = 2;
const PING: u8 = 3;
const APPLIED: u8 = 129;
const SUPERSEDED: u8 = 130;
const REFUSED: u8 = 131;
const FOUND: u8 = 132;
const ABSENT: u8 = 133;
const DAMAGED: u8 = 134;
const PONG: u8 = 135;

/// What one node asks of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// Asks the node to execute this on its own copy of the key.
    Execute(Operation<&'a [u8]>),
    /// Asks whether the node is alive.
    Ping {
        /// The wall clock of the asker, milliseconds since the Unix epoch.
        wall_ms: u64,
        /// The hybrid logical clock of the asker.
        clock: u64,
    },
}

/// The answer to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply<'a> {
    /// What came of the operation.
    Outcome(Outcome<&'a [u8]>),
    /// The node is alive.
    Pong {
        /// The wall clock of the answerer, milliseconds since the Unix epoch.
        wall_ms: u64,
        /// The hybrid logical clock of the answerer.
        clock: u64,
    },
}

/// A request, with what else its frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestFrame<'a> {
    /// A number chosen by the asker, which the reply repeats.
    pub number: u64,
    /// The epoch of the asker's membership.
    pub epoch: u64,
    /// The request itself.
    pub request: Request<'a>,
}

/// A reply, with what else its frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyFrame<'a> {
    /// The number of the request.
    pub number: u64,
    /// The epoch of the answerer's membership.
    pub epoch: u64,
    /// The hash of the key in the request; 0 in a reply to a ping.
    pub key_hash: KeyHash,
    /// The answer.
    pub reply: Reply<'a>,
}

/// The code of a refusal's reason in a frame; `None` for a reason that no node gives to another.
const fn refusal_code(refused: Refused) -> Option<u8> {
    match refused {
        Refused::DiskFull => Some(1),
        Refused::Failed => Some(2),
        Refused::TooLarge => Some(3),
        Refused::NotReady => Some(4),
        Refused::DiskError => Some(5),
        Refused::NoResources => Some(6),
        Refused::Rebuilding => Some(7),
        Refused::Behind => Some(8),
        Refused::Busy => None,
    }
}

/// The reasons that a node can give to another.
const REFUSALS: [Refused; 8] = [
    Refused::DiskFull,
    Refused::Failed,
    Refused::TooLarge,
    Refused::NotReady,
    Refused::DiskError,
    Refused::NoResources,
    Refused::Rebuilding,
    Refused::Behind,
];

fn refusal_of(code: u8) -> Option<Refused> {
    REFUSALS.into_iter().find(|refused| refusal_code(*refused) == Some(code))
}

/// What a parser accepts from one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the largest value.
    pub value_max: usize,
    /// What the peer announced in its handshake.
    pub features: Features,
}

impl Limits {
    /// Bytes of the largest request with its header.
    #[must_use]
    pub fn request_max(&self) -> usize {
        HEADER + FIXED_MAX + KEY_MAX + ATTRIBUTES_MAX + self.value_max
    }

    /// Bytes of the largest reply with its header.
    #[must_use]
    pub fn reply_max(&self) -> usize {
        HEADER + FIXED_MAX + ATTRIBUTES_MAX + self.value_max
    }
}

/// What a parser found at the beginning of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<T> {
    /// A complete frame.
    Complete {
        /// The parsed frame.
        frame: T,
        /// How many bytes it takes.
        len: usize,
    },
    /// Only the beginning of a frame.
    Partial {
        /// How many bytes there must be before it is worth parsing again; more than there are, and
        /// never more than the longest frame has.
        need: usize,
    },
    /// Not a valid frame. What follows cannot be read either.
    Bad(Violation),
}

/// What is wrong with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The frame is longer than any valid one.
    #[error("a frame claims a body of {len} bytes, and the longest has {max}")]
    TooLong {
        /// The length that it claims.
        len: u32,
        /// The bound.
        max: usize,
    },
    /// The key is longer than any valid one.
    #[error("a frame claims a key of {0} bytes, and a key has at most {KEY_MAX}")]
    KeyTooLong(u16),
    /// Bytes were changed on their way, or this is not a frame.
    #[error("the checksum of a frame does not match its bytes")]
    Checksum,
    /// The kind is not known in this direction.
    #[error("a frame is of kind {0}, which is not one that is expected here")]
    Kind(u8),
    /// The kind does not have these marks.
    #[error("a frame of kind {kind} has marks {marks:#x}, which are not known")]
    Marks {
        /// The kind.
        kind: u8,
        /// The marks.
        marks: u8,
    },
    /// The fields contradict each other.
    #[error("a frame of kind {0} has fields that do not fit its length")]
    Shape(u8),
    /// The request has no key.
    #[error("a frame of kind {0} has an empty key")]
    EmptyKey(u8),
    /// The value is longer than any valid one.
    #[error("a frame has a value of {len} bytes, and a value has at most {max}")]
    ValueTooLong {
        /// The length of the value.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// A field that must be zero is not.
    #[error("a frame of kind {0} has something in a field that must be zero")]
    NotZero(u8),
    /// The record has flags that the sender did not announce in its handshake.
    #[error("a frame has a record with flags {0:#x}, and its sender did not announce that it knows them all")]
    UnknownFlags(u16),
    /// The record has an attribute that the sender did not announce in its handshake.
    #[error("a frame has an attribute of kind {0}, and its sender did not announce that it knows it")]
    UnknownAttribute(u8),
    /// The attributes of the record cannot be read.
    #[error("a frame has a record whose attributes cannot be read: {0}")]
    Attributes(AttributeError),
    /// A step of a comparison cannot be read.
    #[error("a frame for comparing replicas {0}")]
    Exchange(&'static str),
    /// A tombstone has a value.
    #[error("a frame of kind {0} has a tombstone and a value in one")]
    TombstoneWithValue(u8),
}

#[cfg(test)]
mod tests;

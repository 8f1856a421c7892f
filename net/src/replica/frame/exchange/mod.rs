//! Frames in which two nodes compare replicas: bytes to [`ExchangeRequest`] and [`ExchangeReply`],
//! and back.
//!
//! ```text
//! kind 4, marks: which       body
//!  1 Roots    told, from u8
//!  2 Leaves   from u8, byte u8, then u16 a partition
//!  3 Items    by partition: u16, 32 bytes of leaves
//!  4 Fetch    credit u32, then u32 a place
//!  5 Give     records
//!  6 Agreed   from u8, then u16 a partition
//! kind 136, marks: which
//!  1 Roots    told, then u64 a partition
//!  2 Leaves   256 bytes a partition
//!  3 Items    by partition: number of items u32, then each: low hash u32, clock u64, node u16,
//!             u8 from, 128 more if it says "absent"
//!  4 Records  by place: a record, or u16 0 for none
//!  5 Given    u8 a record, 1 or 0
//!  6 Noted    -
//!  7 NotReady -
//! told        standing u8 (0 new, 1 whole, 2 rebuilding), settled u64, forgotten u64, agreed u64,
//!             froms u64
//! record      length of the key u16, of the attributes u16, of the value u32, clock u64, node u16,
//!             flags u16, expires u48, key, attributes, value
//! ```
//!
//! They are only on connections for that; requests for data and pings may come there, too.
//!
//! Bounds: a body has at most [`EXCHANGE_BODY`] bytes and one record more, [`RECORDS_MAX`] records
//! or places, and no partition twice. Every number that a body claims is compared with the bytes
//! that are there before anything is allocated. What is read has one encoding.
//!
//! Invariants: those of the other frames. Partitions and places ascend, and a `from` is one that
//! there can be.
//!
//! Deliberately absent: whether a reply is one to its request, which
//! [`blocking::Connection`](super::super::blocking::Connection) checks, and whether what is told is
//! believable. Tested in `tests.rs` and by the fuzz target `replica_exchange`.

mod encode;
mod parse;

use bytes::Bytes;
use koltso_model::{ATTRIBUTES_MAX, ExchangeReply, ExchangeRequest, KEY_MAX, Operation, Record};

pub use self::encode::{encode_exchange, encode_exchange_reply};
pub use self::parse::{fuzz_exchange, parse_asked, parse_exchange_reply};
use super::{HEADER, Limits};

/// The most bytes of a body, beside one record: a sender adds no record to a body that has so many.
pub const EXCHANGE_BODY: usize = 4 << 20;
/// The most records of a body, and the most places that are asked for at once.
pub const RECORDS_MAX: usize = 1 << 16;
/// Bytes of a record without its key, its attributes and its value.
pub const RECORD_FIXED: usize = 26;
/// Bytes of an item.
pub const ITEM_BYTES: usize = 15;

const EXCHANGE: u8 = 4;
const EXCHANGED: u8 = 136;

/// Bytes of a partition and its leaves in a request for items.
const LEAVES_OF: usize = 34;
/// In an item's byte of `from`: it says "absent".
const ABSENT: u8 = 0x80;

/// The number of a request or a reply in the marks of its frame.
mod which {
    pub(super) const ROOTS: u8 = 1;
    pub(super) const LEAVES: u8 = 2;
    pub(super) const ITEMS: u8 = 3;
    pub(super) const FETCH: u8 = 4;
    pub(super) const GIVE: u8 = 5;
    pub(super) const AGREED: u8 = 6;
    pub(super) const RECORDS: u8 = 4;
    pub(super) const GIVEN: u8 = 5;
    pub(super) const NOTED: u8 = 6;
    pub(super) const NOT_READY: u8 = 7;
}

/// What a node asks over a connection for comparing replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// A step of a comparison.
    Exchange(ExchangeRequest),
    /// To execute this on its own copy of the key.
    Execute(Operation<Bytes>),
    /// Whether the node is alive.
    Ping {
        /// The wall clock of the asker, milliseconds since the Unix epoch.
        wall_ms: u64,
        /// The hybrid logical clock of the asker.
        clock: u64,
    },
}

/// What a frame says, and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExchangeFrame<T> {
    /// The number of the request.
    pub number: u64,
    /// The epoch of the sender's membership.
    pub epoch: u64,
    /// What it says.
    pub what: T,
}

/// How many bytes a record takes in a frame.
#[must_use]
pub fn record_bytes<B: AsRef<[u8]>>(record: &Record<B>) -> usize {
    RECORD_FIXED + record.len()
}

impl Limits {
    /// Bytes of the largest frame for comparing replicas, with its header.
    #[must_use]
    pub const fn exchange_max(&self) -> usize {
        HEADER + EXCHANGE_BODY + RECORD_FIXED + KEY_MAX + ATTRIBUTES_MAX + self.value_max
    }
}

/// Whether a reply is one to this request: the right kind, with as many parts as were asked for.
pub(in super::super) fn answers(request: &ExchangeRequest, reply: &ExchangeReply) -> bool {
    use ExchangeReply as Reply;
    use ExchangeRequest as Request;
    let leading = |parts: usize, asked: usize| parts <= asked && (parts > 0 || asked == 0);
    match (request, reply) {
        (_, Reply::NotReady) | (Request::Agreed { .. }, Reply::Noted) => true,
        (Request::Roots { from, .. }, Reply::Roots { roots, .. }) => *from > 0 || roots.is_empty(),
        (Request::Leaves { partitions, .. }, Reply::Leaves(bytes)) => {
            bytes.len() == partitions.len() * koltso_model::LEAVES
        }
        (Request::Items(leaves), Reply::Items(items)) => leading(items.len(), leaves.len()),
        (Request::Fetch { places, .. }, Reply::Records(records)) => leading(records.len(), places.len()),
        (Request::Give(records), Reply::Given(given)) => given.len() == records.len(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;

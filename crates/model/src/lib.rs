//! The vocabulary of Koltso, once: what the engine stores, what coordinators decide on and what
//! travels between nodes.
//!
//! Everything here is a value. There is no I/O, no clock and no thread; whoever has a key hashes it
//! once and passes the [`Key`] on. The types are generic over how bytes are held: `&[u8]` where
//! they lie in a buffer or in the log, [`bytes::Bytes`] where somebody keeps them.
//!
//! - [`Key`], [`KeyHash`]: a key and the public hash that placement uses.
//! - [`Version`], [`WallTime`]: which of two records is newer.
//! - [`Record`], [`Flags`]: a value or a tombstone with everything that is replicated.
//! - [`Operation`], [`Outcome`], [`Refused`]: what a replica is asked, and what it says.
//! - [`ExchangeRequest`], [`ExchangeReply`]: how two replicas compare what they have.
//! - [`Quorum`]: how many replicas answer, of how many; [`NodeId`]: which node is which.

mod attributes;
mod exchange;
mod key;
mod node_id;
mod operation;
mod quorum;
mod record;
mod version;

pub use attributes::{ATTRIBUTE_MAX, ATTRIBUTES_MAX, Attribute, AttributeError, Attributes, encode_attribute};
pub use exchange::{ExchangeReply, ExchangeRequest, Item, LEAVES, LeafSet, Standing, Told, digest_word};
pub use key::{KEY_MAX, Key, KeyHash, PARTITIONS};
pub use node_id::NodeId;
pub use operation::{Found, Operation, Outcome, Refused, Tombstone, Want};
pub use quorum::{NODES_MAX, Quorum};
pub use record::{Flags, Record, VALUE_MAX_LIMIT};
pub use version::{Version, WallTime};

//! What nodes say to each other, as values. The bytes on the wire are `koltso_net::replica`'s affair.
//!
//! Cloning a message counts references and copies no key or value.

use bytes::Bytes;
use koltso_storage::Version;

/// A key's state: a value, or the memory of a delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// 1 to 4096 bytes.
    pub key: Bytes,
    /// Empty in a tombstone.
    pub value: Bytes,
    /// Newest wins; equal versions are the same write.
    pub version: Version,
    /// Milliseconds since the Unix epoch, 0 for never.
    pub expires_at_ms: u64,
    /// The key is deleted (or its time has run out).
    pub tombstone: bool,
}

/// What a read asks a replica for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The newest version and its value.
    Value,
    /// Its version and length only.
    Version,
}

/// What a coordinator asks of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Take this record, unless a newer one is there.
    Write(Record),
    /// Say what is there.
    Read {
        /// The key.
        key: Bytes,
        /// How much of it.
        want: Want,
    },
}

/// What a replica says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The record is there now, or was there already.
    Applied,
    /// A newer version is there: this one.
    Superseded(Version),
    /// The write could not be done.
    Refused(Refused),
    /// The key has a value.
    Found {
        /// Its version.
        version: Version,
        /// See [`Record::expires_at_ms`].
        expires_at_ms: u64,
        /// Length of the value, in bytes.
        value_len: u32,
        /// The value, if it was asked for.
        value: Option<Bytes>,
    },
    /// The key has no value; the version of the delete, if that is remembered.
    Absent(Option<Version>),
    /// The record is there and its checksum is wrong.
    Damaged,
}

/// Why a replica did not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its disk is full.
    DiskFull,
    /// Its disk failed, or it is stopping, or it is not open yet.
    Failed,
    /// The value is larger than its `--max-value`.
    TooLarge,
    /// No replica says this: its answer came, and the node that asked has no room for the value.
    Busy,
}

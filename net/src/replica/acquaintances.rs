//! Whom a node remembers: the folders of data in which it has met the other members.
//!
//! A member is known by the identity of its data folder, and by how far that folder had lived when
//! it was last heard of. Each side of a handshake judges the other and tells it: whoever comes with
//! another folder, or with an older copy of the same, may lack what it once confirmed.
//!
//! Deliberately absent: the memory itself, and what follows from a verdict, which the program
//! decides. Tested with the handshake and in `tests/replica/`.

use std::fmt::Debug;

use koltso_model::NodeId;

/// What a node says of its data folder in a handshake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Introduction {
    /// The identity of the folder.
    pub id: NodeId,
    /// How often the folder has been started, with this start.
    pub starts: u32,
    /// Until when the folder says that it had lived before this start, in milliseconds since the
    /// Unix epoch; 0 for a new one.
    pub lived_ms: u64,
    /// A random number of the process, the same at each of its connections.
    pub process: u64,
}

/// How a member stands to what is remembered of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// It is whom this node remembers, or nobody is remembered in its place.
    Known,
    /// It has another folder than the remembered one, or an older copy of it.
    Changed,
    /// Its folder is also somewhere else: under another number, or in another process that is
    /// alive. The handshake is refused.
    TwoPlaces,
}

/// Whom a node remembers.
///
/// Of handshakes on all cores and threads at once. A verdict may be asked for before the other side
/// has proved who it is, and changes nothing.
pub trait Acquaintances: Debug + Send + Sync {
    /// Compares what the member with number `peer` says of itself with what is remembered of it.
    fn judge(&self, peer: u16, introduction: &Introduction) -> Judged;

    /// Until when the process was heard of that is remembered as the member with number `peer`, in
    /// milliseconds since the Unix epoch; 0 if none is. Of two that doubt each other, the one whose memory is
    /// older is told so by this.
    fn heard_ms(&self, peer: u16) -> u64;
}

/// Remembers nobody, so that whoever comes is known.
#[derive(Debug, Clone, Copy)]
pub struct NoMemory;

impl Acquaintances for NoMemory {
    fn judge(&self, _: u16, _: &Introduction) -> Judged {
        Judged::Known
    }

    fn heard_ms(&self, _: u16) -> u64 {
        0
    }
}

//! What the coordinator takes and gives: names of requests, actions, answers, settings.

use bytes::Bytes;
use koltso_model::{Operation, Outcome, Record, Refused, Version};

use crate::placement::NodeIndex;

/// The caller's name for the client that waits.
pub type Token = u64;

/// A request to a replica; its reply carries it back.
///
/// From the top: how often the operation began again (4 bits), generation of its slot (28), slot (24),
/// stage (8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub u64);

pub(super) const PLACES_MAX: usize = 1 << 24;
const GENERATION_BITS: u32 = 28;

impl RequestId {
    pub(super) fn new((generation, attempt): (u32, u8), slot: usize, stage: u8) -> Self {
        let number = u32::from(attempt) << GENERATION_BITS | generation;
        Self(u64::from(number) << 32 | (slot as u64) << 8 | u64::from(stage))
    }

    pub(super) const fn next_generation(generation: u32) -> u32 {
        (generation + 1) % (1 << GENERATION_BITS)
    }

    pub(super) const fn next_attempt(attempt: u8) -> u8 {
        (attempt + 1) % 16
    }

    /// The same for all requests of an operation.
    #[must_use]
    pub const fn operation(self) -> u64 {
        (self.0 << 4) >> 12
    }

    /// The name of a ping: no operation has its slot.
    pub(super) const fn ping(number: u32) -> Self {
        Self((number as u64) << 32 | ((PLACES_MAX as u64 - 1) << 8))
    }

    pub(super) const fn slot(self) -> usize {
        (self.0 >> 8) as usize & (PLACES_MAX - 1)
    }

    pub(super) const fn generation(self) -> u32 {
        self.number() & ((1 << GENERATION_BITS) - 1)
    }

    pub(super) const fn attempt(self) -> u8 {
        (self.number() >> GENERATION_BITS) as u8
    }

    /// Of a ping.
    pub(super) const fn number(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(super) const fn stage(self) -> u8 {
        self.0 as u8
    }
}

/// What a request was sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stage {
    /// The operation itself.
    First = 0,
    /// A write again, with a newer version.
    Renewed = 1,
    /// A value, of which only the version was known.
    Fetch = 2,
    /// A write to a stale replica, and from here on one with each newer version that comes to be
    /// known meanwhile.
    Repair = 3,
}

/// What the caller has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a request. If `to` is this node, do it here. Then call
    /// [`Coordinator::replied`](super::Coordinator::replied), or
    /// [`Coordinator::failed`](super::Coordinator::failed).
    Send {
        /// The replica.
        to: NodeIndex,
        /// Goes with the reply.
        id: RequestId,
        /// What is asked.
        operation: Operation<Bytes>,
    },
    /// Send a ping, and call [`Coordinator::probed`](super::Coordinator::probed) when its answer
    /// comes.
    Probe {
        /// The peer.
        to: NodeIndex,
        /// Goes with the pong.
        id: RequestId,
    },
    /// Answer the client.
    Answer {
        /// Who waits.
        token: Token,
        /// For what.
        answer: Answer,
    },
    /// Make a version above this one, and call [`Coordinator::renew`](super::Coordinator::renew)
    /// with it.
    Renew {
        /// The write that has to be done again.
        id: RequestId,
        /// The newest version that a replica had.
        above: Version,
    },
    /// Keep this record for a replica that missed it.
    Hint {
        /// The replica.
        to: NodeIndex,
        /// What it missed.
        record: Record<Bytes>,
    },
}

/// An operation's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What came of it: of a write `Applied`, of a read `Found` or `Absent`. Or fewer replicas than
    /// `ack` answered.
    pub result: Result<Outcome<Bytes>, Shortage>,
    /// The version that a write was given; `None` for a read.
    pub written: Option<Version>,
    /// Replicas that had answered.
    pub answered: u32,
    /// Replicas that were to answer: for a write all of `from`, for a read those that had been
    /// asked.
    pub asked: u32,
}

/// Why there were not enough answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Answers needed.
    pub needed: u32,
    /// Replicas that did not answer, or could not do it.
    pub missing: Vec<NodeIndex>,
    /// A replica's disk is full.
    pub disk_full: bool,
    /// This node has no room for a value that came.
    pub busy: bool,
    /// What was wrong with replicas that did answer.
    pub useless: Vec<(NodeIndex, Useless)>,
}

/// Why the answer of a replica was of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Useless {
    /// It did not do it.
    Refused(Refused),
    /// Its record of the key is damaged.
    Damaged,
    /// It has an older version, and was not brought up to date.
    Stale,
    /// It has the newest version, and did not give its value.
    WithoutValue,
}

/// What the coordinator is told at its start.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// An operation without enough answers is given up after this many µs.
    pub deadline_micros: u64,
    /// Operations at once, those included that are answered and wait for the last replicas. Where
    /// these are many, the oldest of them give way to new ones, and what their replicas may have
    /// missed becomes hints.
    pub in_flight_max: usize,
    /// Bytes of values that these hold at once.
    pub in_flight_bytes_max: usize,
}

/// There are [`Settings::in_flight_max`] operations already, or they hold
/// [`Settings::in_flight_bytes_max`], and nearly all of them wait for their answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Writes that were done again above a newer version.
    pub renewed: u64,
    /// Operations that had too few answers.
    pub not_enough: u64,
    /// Reads whose answer waited for a repair.
    pub repairs_waited_for: u64,
}

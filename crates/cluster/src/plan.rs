//! How the replicas of partitions move from some members to others while the cluster serves.
//!
//! ```text
//!              begin                copied                equal               all batches
//!  Current ───────────▶ Copying ───────────▶ Joint ───────────▶ Moved ───────────▶ no plan
//!     ▲                    │                   │                  │
//!     └───── cancelled ────┴──── cancelled ────┘                  └─ cancelled: moves back
//! ```
//!
//! | stage | writes reach `ack` of | reads ask `ack` of |
//! |---|---|---|
//! | Current | the current replicas | the current replicas |
//! | Copying | the current, and of the target | the current replicas |
//! | Joint | the current, and of the target | the current, and of the target |
//! | Moved | the target | the target |
//!
//! Partitions move in [`BATCHES`] batches, each with a stage of its own. Each change of a stage is a new
//! epoch, and a replica refuses requests of coordinators that do not know the stage of the partition that
//! they are about: whoever is behind learns the newer membership, and asks again. So
//!
//! - *Copying* becomes *Joint* once the target replicas have been compared with enough of the current
//!   ones since it began. That is no matter of safety: it keeps the next stage short.
//! - *Joint* becomes *Moved* once they were compared with enough of the current ones since *it* began.
//!   What a read has returned before was at a quorum of the current replicas, which refuse such
//!   reads from then on; "enough" meets every quorum, so the target replicas have it, too. What a read
//!   returns meanwhile is at a quorum of both.
//! - Requests of two neighbouring stages may be under way together: each quorum of one meets each of the
//!   other.
//!
//! A stage that is cancelled goes back to *Current* at once, from which nothing was taken away. A batch
//! that has moved moves back as it came: what was the target is current then.
//!
//! Owner: a value in the [`Membership`](crate::membership::Membership).

use koltso_model::PARTITIONS;

use crate::placement::NodeSet;

/// Into so many batches the partitions are divided.
pub const BATCHES: usize = 64;

const _: () = assert!(PARTITIONS.is_multiple_of(BATCHES));

/// The batch of a partition: each has some of every part of the keys.
#[must_use]
pub const fn batch_of(partition: usize) -> usize {
    partition % BATCHES
}

/// Where a partition is on its way from its current replicas to the target ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Nothing moves yet.
    #[default]
    Current,
    /// Writes go to both, reads to the current ones; the target ones are being filled.
    Copying,
    /// Writes and reads go to both.
    Joint,
    /// The target ones are the replicas.
    Moved,
}

/// What a batch is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Its stage.
    pub stage: Stage,
    /// The epoch with which that began.
    pub began: u64,
}

/// Who is to hold data, and how far that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The members that hold data in the end.
    pub target: NodeSet,
    /// By [`batch_of`].
    pub batches: [Batch; BATCHES],
}

impl Plan {
    /// A plan of which nothing has been done.
    #[must_use]
    pub fn new(target: NodeSet, epoch: u64) -> Self {
        Self { target, batches: [Batch { stage: Stage::Current, began: epoch }; BATCHES] }
    }

    /// The batch of a partition.
    #[must_use]
    #[inline]
    pub fn of(&self, partition: usize) -> Batch {
        self.batches[batch_of(partition)]
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.batches.iter().all(|batch| batch.stage == Stage::Moved)
    }

    /// The numbers of the batches at a stage.
    pub fn at(&self, stage: Stage) -> impl Iterator<Item = usize> + '_ {
        (0..BATCHES).filter(move |&batch| self.batches[batch].stage == stage)
    }
}

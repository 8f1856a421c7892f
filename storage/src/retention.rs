//! How long a record is kept that only says "absent", or that belongs to other nodes.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use koltso_model::{Flags, PARTITIONS, Version};

use crate::agreements::Agreements;
use crate::digest::{Digests, Leaf};
use crate::env::Env;
use crate::forgotten::Forgotten;

/// What decides about a record whether it may be dropped; its leaf says the partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dated {
    pub(crate) leaf: Leaf,
    pub(crate) version: Version,
    pub(crate) flags: Flags,
    /// It says "absent" at this moment.
    pub(crate) absent: bool,
}

/// A record that says "absent" is kept until all replicas have agreed on a state that has it; a
/// stray, until those that keep it have.
pub(crate) struct Retention {
    /// See [`crate::Options::agreed_after`].
    agreed_after: Option<Duration>,
    agreements: Agreements,
    forgotten: Forgotten,
    /// A segment lies in the folder that this store does not know.
    left_behind: AtomicBool,
}

impl Retention {
    pub(crate) fn new(agreed_after: Option<Duration>, forgotten: Forgotten) -> Self {
        Self { agreed_after, agreements: Agreements::default(), forgotten, left_behind: AtomicBool::new(false) }
    }

    pub(crate) const fn agreements(&self) -> &Agreements {
        &self.agreements
    }

    pub(crate) const fn forgotten(&self) -> &Forgotten {
        &self.forgotten
    }

    /// A segment could not be removed or not be read, and the next start may find what is in it.
    /// Until then nothing may be dropped that is newer.
    pub(crate) fn segment_left_behind(&self) {
        self.left_behind.store(true, Ordering::Relaxed);
    }

    /// Whether other nodes are the replicas of a record.
    pub(crate) fn is_stray(&self, leaf: Leaf, flags: Flags) -> bool {
        !self.agreements.keeps(flags.from(), leaf.partition())
    }

    /// Whether a record has no use any more, as far as replicas are concerned.
    pub(crate) fn is_over(&self, record: &Dated, now_ms: u64) -> bool {
        if self.left_behind.load(Ordering::Relaxed) || !(record.absent || self.is_stray(record.leaf, record.flags)) {
            return false;
        }
        match self.agreed_after {
            Some(after) => record.version.unix_ms().saturating_add(after.as_millis() as u64) <= now_ms,
            None => record.version.clock <= self.agreements.bound(record.flags.from(), record.leaf.partition()),
        }
    }

    /// Whether there may be strays that are over. (Looks at the digests, so as not to look at each
    /// record.)
    pub(crate) fn may_drop_strays(&self, digests: &Digests) -> bool {
        let is_droppable = |from, partition| {
            let agreed = self.agreed_after.is_some() || self.agreements.bound(from, partition) > 0;
            agreed && !self.agreements.keeps(from, partition) && digests.root(from, partition) != 0
        };
        self.agreements.may_have_strays()
            && digests.in_use().any(|from| (0..PARTITIONS).any(|partition| is_droppable(from, partition)))
    }

    /// Puts on disk, before records are dropped that say "absent", that none of them is newer than
    /// `clock`.
    pub(crate) fn forget_up_to(&self, env: &dyn Env, folder: &Path, clock: u64) -> io::Result<()> {
        self.forgotten.raise(env, folder, clock)
    }
}

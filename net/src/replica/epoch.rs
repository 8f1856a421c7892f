//! The epoch of the frames that a node sends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of the membership by which this node, or one of its cores, sends frames. It grows while
/// connections stand; each of them that shares it sends the number that holds when a frame is made.
///
/// Owner: a core, or a thread beside the data plane: whoever makes requests by a membership is the one that
/// says so, and not another core that has learned of a later one.
#[derive(Clone, Debug)]
pub struct Epoch(Arc<AtomicU64>);

impl Epoch {
    /// The epoch of frames that belong to no membership: those of hints, which are taken by whoever gets
    /// them, whatever the members are by then.
    pub const ANY: u64 = u64::MAX;

    /// An epoch that holds until another one is [`set`](Self::set).
    #[must_use]
    pub fn new(epoch: u64) -> Self {
        Self(Arc::new(AtomicU64::new(epoch)))
    }

    /// The one that holds now.
    #[must_use]
    #[inline]
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// From now on this one holds.
    pub fn set(&self, epoch: u64) {
        self.0.store(epoch, Ordering::Relaxed);
    }
}

impl PartialEq for Epoch {
    fn eq(&self, other: &Self) -> bool {
        self.now() == other.now()
    }
}

impl Eq for Epoch {}

//! How to open a store, and what each option may be.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use koltso_model::{ATTRIBUTES_MAX, KEY_MAX, VALUE_MAX_LIMIT};

use crate::env::{Env, RealEnv};
use crate::error::OpenError;
use crate::record;
use crate::segment::{SEGMENT_HEADER, SEGMENT_MAX};

/// When the engine itself syncs the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// Never: the kernel writes back when it likes. The names of new segments are left to it as
    /// well, so that a power loss may take even what [`crate::Writer::sync`] covered. What was
    /// there when the store was opened stays.
    Os,
    /// This long after a write at the latest.
    Every(Duration),
    /// Not by the engine: the writer's owner syncs before it acknowledges, see
    /// [`crate::Writer::begin_sync`].
    Always,
}

/// How to open a store.
#[derive(Clone)]
pub struct Options {
    /// The data folder. It is made if it does not exist.
    pub folder: PathBuf,
    /// When the log is synced.
    pub sync: SyncMode,
    /// The largest value, in bytes, up to [`VALUE_MAX_LIMIT`].
    pub value_max: usize,
    /// Size of a segment file, in bytes: a multiple of 4096, up to 64 MiB, and large enough for the
    /// largest record.
    pub segment_size: u32,
    /// Compaction reads at most this many bytes a second.
    pub compaction_rate: u64,
    /// A segment with at least this share of dead bytes is compacted, 0..1.
    pub compaction_dead_share: f64,
    /// How long after its version a record that says "absent" can go, where no other store has
    /// replicas: nothing older arrives later than that. `None` where others have some: then it stays
    /// until [`crate::Store::agreements`] has been told that they agree.
    pub agreed_after: Option<Duration>,
    /// How often segments are searched for tombstones and expired records that can go; five times a
    /// second while the disk is full.
    pub reap_interval: Duration,
    /// In this time everything is read once, and compared with its checksums; zero for never.
    pub scrub_interval: Duration,
    /// Called on a background thread after it has freed several megabytes: the place to have the
    /// allocator give them back to the system, which most keep for later otherwise.
    pub memory_freed: fn(),
    /// The outside world, for tests to break.
    pub env: Arc<dyn Env>,
}

impl Options {
    /// The usual options for a folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            sync: SyncMode::Every(Duration::from_secs(1)),
            value_max: 16 << 20,
            segment_size: SEGMENT_MAX,
            compaction_rate: 64 << 20,
            compaction_dead_share: 0.33,
            agreed_after: Some(Duration::from_secs(60)),
            reap_interval: Duration::from_secs(5),
            scrub_interval: Duration::ZERO,
            memory_freed: || {},
            env: Arc::new(RealEnv),
        }
    }

    /// Whether each option is in its range.
    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let record_max = record::size(KEY_MAX, ATTRIBUTES_MAX, self.value_max) as u64;
        if self.value_max > VALUE_MAX_LIMIT {
            return Err(OpenError::Option(format!(
                "the largest value can be up to {VALUE_MAX_LIMIT} bytes, not {}",
                self.value_max
            )));
        }
        if !self.segment_size.is_multiple_of(4096)
            || self.segment_size > SEGMENT_MAX
            || record_max + u64::from(SEGMENT_HEADER) > u64::from(self.segment_size)
        {
            return Err(OpenError::Option(format!(
                "a segment of {} bytes does not do: it must be a multiple of 4096, at most {SEGMENT_MAX}, and have room for \
             a record of {record_max}",
                self.segment_size
            )));
        }
        Ok(())
    }
}

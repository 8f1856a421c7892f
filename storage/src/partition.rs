//! The newest records of some partitions, or of some leaves of their digests: what comparing replicas
//! and moving partitions walk.
//!
//! A sealed segment's sidecar has its keys by partition, so only those of the wanted ones are
//! looked at; what is not sealed yet, at most the active segments, is read through. What is found
//! there is merged by key, as by a [`Cursor`], and each key is checked against the index.
//!
//! Bounds: 4 bytes a key of the wanted leaves. Invariant: a key that was there before the
//! listing began and is not written meanwhile is listed exactly once, tombstones and what has
//! expired included, also when compaction moves it. A key that is written meanwhile is listed once
//! at most. A record whose header is damaged is left out and reported.

use std::sync::Arc;

use koltso_model::{Flags, Version};

use crate::parts::Parts;
use crate::scan::{Cursor, Place, ScanError, Step};
use crate::wanted::Wanted;

/// A listing, see [`crate::Store::partition_entries`] and [`crate::Store::leaf_entries`].
pub struct PartitionEntries {
    cursor: Cursor,
}

impl PartitionEntries {
    pub(crate) fn open(parts: Arc<Parts>, wanted: &Wanted) -> Result<Self, ScanError> {
        Ok(Self { cursor: Cursor::open_leaves(parts, wanted)? })
    }

    /// The next record, by key bytes: its key, version, flags and expiry (in milliseconds since the
    /// Unix epoch, 0 for never) go to `read`, under the lock of the key's stripe. `None` at the end.
    pub fn next<R>(&mut self, read: impl FnOnce(&[u8], Version, Flags, u64) -> R) -> Option<R> {
        let mut read = Some(read);
        loop {
            let step = self.cursor.next_named(&mut { u32::MAX }, |_, Place { record, .. }| {
                read.take().map(|read| read(record.key(), record.version(), record.flags(), record.expires_at_ms()))
            });
            match step {
                Step::Record(result) => return Some(result),
                Step::Pause => {}
                Step::End => return None,
            }
        }
    }
}

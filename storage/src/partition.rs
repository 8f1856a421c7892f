//! The newest records of a range of partitions: what comparing replicas and moving partitions walk.
//!
//! A sealed segment's sidecar has its keys by partition, so only those of the wanted ones are looked at; what is not sealed
//! yet, at most the active segments, is read through. What is found there is merged by key, as by a [`Cursor`], and each key
//! is checked against the index.
//!
//! Bounds: 4 bytes a key of the wanted partitions. Invariant: a key that was there before the listing began and is not
//! written meanwhile is listed exactly once, tombstones and what has expired included, also when compaction moves it. A key
//! that is written meanwhile is listed once at most. A record whose header is damaged is left out and reported.

use std::ops::Range;
use std::sync::Arc;

use koltso_model::{Flags, PARTITIONS, Version};

use crate::index::Find;
use crate::parts::Parts;
use crate::record::Record;
use crate::scan::{Cursor, ScanError, Step};

/// A listing of partitions, see [`crate::Store::partition_entries`].
pub struct PartitionEntries {
    parts: Arc<Parts>,
    cursor: Cursor,
}

impl PartitionEntries {
    pub(crate) fn open(parts: Arc<Parts>, partitions: Range<usize>) -> Result<Self, ScanError> {
        let partitions = partitions.start.min(PARTITIONS)..partitions.end.min(PARTITIONS);
        Ok(Self { cursor: Cursor::open_partitions(parts.clone(), partitions)?, parts })
    }

    /// The next record, by key bytes: its key, version and flags go to `read`, under the lock of the key's stripe. `None` at the
    /// end.
    pub fn next<R>(&mut self, read: impl FnOnce(&[u8], Version, Flags) -> R) -> Option<R> {
        let give = |record: &Record<'_>| read(record.key(), record.version(), record.flags());
        loop {
            let mut looks = u32::MAX;
            let (segment, offset, known_hash) = match self.cursor.next_place(&mut looks) {
                Step::Record(place) => place,
                Step::Pause => continue,
                Step::End => return None,
            };
            let Ok(record) = segment.record(offset) else {
                continue;
            };
            let hash = known_hash.unwrap_or_else(|| self.parts.index.hash(record.key()));
            let stripe = self.parts.index.lock(hash);
            if stripe.names(hash, &segment, offset) {
                return Some(give(&record));
            }
            if let Find::Hit(hit) = stripe.find(hash, record.key()) {
                return Some(give(&hit.record));
            }
        }
    }
}

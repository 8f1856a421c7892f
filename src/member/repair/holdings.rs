//! What this node has, as the exchange looks at it.
//!
//! Owner: one thread. Bounds: a listing of about as many bytes as it is asked for, of [`LISTED_MAX`] in
//! any case.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use koltso_cluster::exchange::{Holdings, Listed, NotReady, board};
use koltso_instrument::breathe;
use koltso_model::{Item, KeyHash, LEAVES, LeafSet, PARTITIONS, Record, Standing, Told, WallTime};
use koltso_storage::Newest;

use super::Repair;
use crate::replica::clock::{now_ms, now_wall};

/// What a listed key takes beside its bytes, about.
const ENTRY_BYTES: u64 = 64;

/// The most that one listing takes, in bytes: that is one and a half million keys at most, for which a frame has
/// room.
const LISTED_MAX: u64 = 96 << 20;

pub(super) struct Here {
    repair: Arc<Repair>,
}

impl Here {
    pub(super) fn new(repair: Arc<Repair>) -> Self {
        Self { repair }
    }

    /// The `from`s of which there have been records.
    pub(super) fn froms(&self) -> u64 {
        self.repair.store.digests().in_use().fold(0, |froms, from| froms | 1 << (from - 1))
    }

    /// Older than this, nothing of this node's may still come to anybody.
    fn settled(&self) -> u64 {
        let oldest = self.repair.cluster.hints().and_then(|hints| hints.oldest_ms());
        // It is that of versions, which move with no clock, whenever the hint was kept.
        let hinted = oldest.map_or(u64::MAX, |oldest| WallTime::from_ms(oldest).0);
        board::settled(now_wall()).min(hinted)
    }

    /// How many of the leading partitions have keys of about this many bytes together.
    fn as_many_as_fit(&self, leaves: &[(u16, LeafSet)], bytes_max: usize) -> usize {
        let keys = self.repair.keys_a_partition.load(Ordering::Relaxed).max(1);
        let mut left = bytes_max as u64;
        let fit = leaves.iter().take_while(|(_, set)| {
            let share: u32 = set.iter().map(|word| word.count_ones()).sum();
            let bytes = keys * ENTRY_BYTES * 2 * u64::from(share) / LEAVES as u64;
            let fits = left >= bytes;
            left = left.saturating_sub(bytes);
            fits
        });
        fit.count().clamp(1, leaves.len().max(1)).min(leaves.len())
    }
}

impl Holdings for Here {
    fn told(&self) -> Told {
        let standing = self.repair.cluster.standing().map_or(Standing::New, |standing| standing.standing());
        Told {
            standing,
            settled: self.settled(),
            forgotten: self.repair.store.forgotten(),
            agreed: self.repair.agreed.load(Ordering::Relaxed),
            froms: self.froms(),
        }
    }

    fn root(&self, from: u8, partition: u16) -> u64 {
        breathe();
        self.repair.store.digests().root(from, usize::from(partition))
    }

    fn leaves(&self, from: u8, partition: u16) -> [u64; LEAVES] {
        self.repair.store.digests().leaves(from, usize::from(partition)).unwrap_or([0; LEAVES])
    }

    fn arrivals(&self, from: u8, partition: u16) -> u32 {
        self.repair.store.agreements().arrivals(from, usize::from(partition))
    }

    fn looks_up_to(&mut self, clock: u64) {
        self.repair.store.agreements().begin(clock);
    }

    fn agreed(&mut self, from: u8, partition: u16, arrivals: u32, clock: u64) {
        self.repair.store.agreements().reached(from, usize::from(partition), arrivals, clock);
    }

    fn list(&mut self, leaves: &[(u16, LeafSet)], bytes_max: usize) -> Result<Vec<Vec<Listed>>, NotReady> {
        let leaves = &leaves[..self.as_many_as_fit(leaves, bytes_max)];
        let mut lists: BTreeMap<u16, Vec<Listed>> =
            leaves.iter().map(|&(partition, _)| (partition, Vec::new())).collect();
        let (now_ms, mut size) = (now_ms(), 0_u64);
        let mut listing = self.repair.store.leaf_entries(leaves).map_err(|_| NotReady)?;
        while let Some((hash, listed)) = listing.next(|key, version, flags, expires_at_ms| {
            let hash = KeyHash::of(key);
            let absent = flags.is_tombstone() || (expires_at_ms != 0 && expires_at_ms <= now_ms);
            let item = Item { hash: hash.0 as u32, version, from: flags.from(), absent };
            (hash, Listed { item, key: Bytes::copy_from_slice(key) })
        }) {
            if let Some(list) = lists.get_mut(&(hash.partition() as u16)) {
                size += listed.key.len() as u64 + ENTRY_BYTES;
                list.push(listed);
            }
            if size > LISTED_MAX {
                // Whoever chooses keys can have very many in one partition: then its leaves have to be
                // listed a few at a time.
                return if leaves.len() > 1 { self.list(&leaves[..1], bytes_max) } else { Err(NotReady) };
            }
        }
        let lists: Vec<Vec<Listed>> = lists.into_values().collect();
        // Of partitions that are listed whole follows how many keys one has.
        let whole = leaves.iter().filter(|(_, set)| set.iter().all(|&word| word == u64::MAX)).count();
        if whole > 0 && whole == leaves.len() {
            let keys = lists.iter().map(Vec::len).sum::<usize>() / whole;
            self.repair.keys_a_partition.store(keys as u64, Ordering::Relaxed);
        }
        Ok(lists)
    }

    fn newest(&mut self, key: &[u8]) -> Option<Record<Bytes>> {
        breathe();
        self.repair.store.newest(key, |newest| match newest {
            Newest::Record(record) => Some(record.owned()),
            Newest::None | Newest::Damaged => None,
        })
    }

    fn apply(&mut self, record: &Record<Bytes>) -> bool {
        self.apply_all(std::slice::from_ref(record)) == [true]
    }

    fn apply_all(&mut self, records: &[Record<Bytes>]) -> Vec<bool> {
        let mut writer = self.repair.writer.lock();
        if writer.is_none() {
            *writer = self.repair.store.writer().ok();
        }
        let Some(writer) = writer.as_mut() else { return vec![false; records.len()] };
        let mut apply = |record: &Record<Bytes>| {
            breathe();
            self.repair.clock.observe(record.version.clock);
            writer.apply(&record.borrowed()).is_ok()
        };
        let applied = records.iter().map(&mut apply).collect();
        if self.repair.syncs && writer.sync().is_err() { vec![false; records.len()] } else { applied }
    }
}

/// Keys of a partition, as long as nobody has listed any.
pub(super) fn guess(records: u64) -> u64 {
    records / PARTITIONS as u64
}

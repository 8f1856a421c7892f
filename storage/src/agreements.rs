//! What replicas have agreed on: for each `from` and partition a clock, the bound, up to which all
//! replicas have the same records. What says "absent" and is not newer may go.
//!
//! Owner: whoever compares replicas tells it, for which [`Agreements::begin`],
//! [`Agreements::arrivals`] and [`Agreements::reached`] are called in this order; compaction asks.
//! A start knows of no agreements. Bounds: 12 bytes a partition of each `from` in use, nothing a
//! key; a write costs a load of the horizon, and a lock only if it comes late.
//!
//! Invariants:
//! 1. A record that can be dropped one day (it says "absent" or will, or belongs to other nodes)
//!    and whose version is not above the horizon came late: it is counted, and takes the bound of
//!    its partition back, under the lock of its key's stripe that it is published under. So compaction,
//!    which drops it under that lock, never sees it under a bound that does not cover it.
//! 2. The horizon rises before the roots are read that an agreement is about, in one order with
//!    what writes change in the digests. So a record is in the roots, or late, or newer than the
//!    bound.
//!
//! Tested in this file, and in `tests/agreements.rs` beside writers and compaction.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use koltso_instrument::Mutex;
use koltso_model::{NODES_MAX, PARTITIONS};

/// The partition of one `from`.
#[derive(Debug, Default)]
struct Side {
    bounds: Vec<AtomicU64>,
    arrivals: Vec<AtomicU32>,
}

impl Side {
    fn new() -> Self {
        Self {
            bounds: (0..PARTITIONS).map(|_| AtomicU64::new(0)).collect(),
            arrivals: (0..PARTITIONS).map(|_| AtomicU32::new(0)).collect(),
        }
    }
}

/// The partitions that a node keeps of one `from`, a bit each.
type Kept = [u64; PARTITIONS / 64];

/// See the module.
#[derive(Debug)]
pub struct Agreements {
    /// The highest clock that any agreement may come to.
    horizon: AtomicU64,
    sides: [OnceLock<Side>; NODES_MAX],
    /// By `from`; everything is kept before it is told.
    kept: OnceLock<Box<[Kept]>>,
    /// Held by whoever takes a bound back, and by whoever sets one.
    changing: Mutex<()>,
}

impl Default for Agreements {
    fn default() -> Self {
        Self {
            horizon: AtomicU64::new(0),
            sides: [const { OnceLock::new() }; NODES_MAX],
            kept: OnceLock::new(),
            changing: Mutex::new(&"agreements", ()),
        }
    }
}

impl Agreements {
    fn side(&self, from: u8) -> &Side {
        self.sides[usize::from(from) - 1].get_or_init(Side::new)
    }

    /// States which partitions of which `from` this node is a replica of. Records of others are
    /// strays, which go as soon as those that keep them agree with it. Once; until then nothing is a
    /// stray.
    ///
    /// # Panics
    /// When it is told twice.
    pub fn keep_only(&self, keeps: impl Fn(u8, usize) -> bool) {
        let of = |from: usize| {
            let mut kept: Kept = [0; PARTITIONS / 64];
            for partition in (0..PARTITIONS).filter(|&partition| keeps(from as u8, partition)) {
                kept[partition / 64] |= 1 << (partition % 64);
            }
            kept
        };
        let told = self.kept.set((1..=NODES_MAX).map(of).collect());
        assert!(told.is_ok(), "what a node keeps is told once");
    }

    /// Whether this node is a replica of a partition.
    ///
    /// # Panics
    /// Unless 1 ≤ `from` ≤ [`NODES_MAX`] and `partition` < [`PARTITIONS`].
    #[must_use]
    #[inline]
    pub fn keeps(&self, from: u8, partition: usize) -> bool {
        let kept = self.kept.get().map(|kept| &kept[usize::from(from) - 1]);
        kept.is_none_or(|kept| kept[partition / 64] & (1 << (partition % 64)) != 0)
    }

    /// Whether anything may be a stray.
    pub(crate) fn may_have_strays(&self) -> bool {
        self.kept.get().is_some()
    }

    /// Replicas are about to be compared, and may come to agree on what is not newer than `clock`:
    /// from now on, records that are not and arrive come late.
    pub fn begin(&self, clock: u64) {
        self.horizon.fetch_max(clock, Ordering::SeqCst);
    }

    /// How many records have come late to a partition. To be read after [`Agreements::begin`] and
    /// before the roots that are compared.
    ///
    /// # Panics
    /// As [`Agreements::keeps`].
    #[must_use]
    pub fn arrivals(&self, from: u8, partition: usize) -> u32 {
        let side = self.sides[usize::from(from) - 1].get();
        side.map_or(0, |side| side.arrivals[partition].load(Ordering::SeqCst))
    }

    /// All replicas have the same records of a partition as far as they are not newer than `clock`,
    /// and nobody brings others any more: unless some came late since there had been `arrivals`.
    /// Whether that is so.
    ///
    /// # Panics
    /// As [`Agreements::keeps`]; when `clock` is above what [`Agreements::begin`] was told.
    pub fn reached(&self, from: u8, partition: usize, arrivals: u32, clock: u64) -> bool {
        assert!(clock <= self.horizon.load(Ordering::SeqCst), "an agreement is begun before it is reached");
        let side = self.side(from);
        let _changing = self.changing.lock();
        let reached = side.arrivals[partition].load(Ordering::SeqCst) == arrivals;
        if reached {
            side.bounds[partition].fetch_max(clock, Ordering::Release);
        }
        reached
    }

    /// Up to which clock all replicas have the same records of a partition; 0 if nobody knows.
    ///
    /// # Panics
    /// As [`Agreements::keeps`].
    #[must_use]
    pub fn bound(&self, from: u8, partition: usize) -> u64 {
        let side = self.sides[usize::from(from) - 1].get();
        side.map_or(0, |side| side.bounds[partition].load(Ordering::Acquire))
    }

    /// Whether a version with this clock, which was just published, may have come late.
    #[inline]
    pub(crate) fn may_be_late(&self, clock: u64) -> bool {
        clock <= self.horizon.load(Ordering::SeqCst)
    }

    /// A record that can be dropped one day came late.
    #[cold]
    pub(crate) fn came_late(&self, from: u8, partition: usize) {
        let side = self.side(from);
        let _changing = self.changing.lock();
        side.arrivals[partition].fetch_add(1, Ordering::SeqCst);
        side.bounds[partition].store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_what_was_agreed_unless_something_came_late() {
        let agreements = Agreements::default();
        assert!(!agreements.may_be_late(1), "nobody has compared yet");
        agreements.begin(100);
        assert_eq!((agreements.arrivals(3, 7), agreements.bound(3, 7)), (0, 0));
        assert!(agreements.may_be_late(100) && !agreements.may_be_late(101));
        assert!(agreements.reached(3, 7, 0, 100));
        assert_eq!([6, 7, 8].map(|partition| agreements.bound(3, partition)), [0, 100, 0]);
        assert_eq!(agreements.bound(2, 7), 0, "another from");

        agreements.came_late(3, 7);
        assert_eq!((agreements.arrivals(3, 7), agreements.bound(3, 7)), (1, 0));
        agreements.begin(50);
        assert!(agreements.may_be_late(100), "the horizon does not fall");
        assert!(!agreements.reached(3, 7, 0, 90), "it was compared before something came");
        assert_eq!(agreements.bound(3, 7), 0);
        assert!(agreements.reached(3, 7, 1, 90));
        assert!(agreements.reached(3, 7, 1, 80), "an older one takes nothing back");
        assert_eq!(agreements.bound(3, 7), 90);
    }

    #[test]
    fn strays_are_what_others_keep() {
        let agreements = Agreements::default();
        assert!(agreements.keeps(1, 0) && agreements.keeps(64, PARTITIONS - 1) && !agreements.may_have_strays());
        agreements.keep_only(|from, partition| usize::from(from) > partition % 64);
        assert!(agreements.may_have_strays());
        for (from, partition, keeps) in
            [(1, 0, true), (1, 1, false), (64, 4095, true), (63, 4095, false), (2, 65, true)]
        {
            assert_eq!(agreements.keeps(from, partition), keeps, "from {from}, partition {partition}");
        }
    }
}

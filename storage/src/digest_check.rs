//! Whether the digests are what the log says: some partitions at a time, they are made anew from the
//! records that the index names, and compared.
//!
//! The digests follow each write by an exclusive or, so what once went wrong with them (a bit of memory, a
//! fault of this program) would last until the next start, and replicas that are equal would be taken
//! for different ones, or worse, the other way round.
//!
//! A leaf that is the same before and after the look, and is not what its records make, is looked at
//! again. The first look is cheap: it goes over the sidecars and reads no record, and so it can miss
//! one that compaction moves meanwhile. The second is a listing, which has each key exactly once. What
//! both say is put right, again by an exclusive or, which writes that come meanwhile do not disturb.
//! What replicas agreed on about such a partition is void.
//!
//! Owner: a nice thread. Bounds: two copies of the leaves of [`GROUP`] partitions (1 MiB a `from` in
//! use) while it looks; 1/[`REST`] of a core.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use koltso_model::{Flags, KeyHash, LEAVES, LeafSet, PARTITIONS, Version};

use crate::digest::{Item, Leaf};
use crate::hash::IndexHash;
use crate::indexed::IndexedSegment;
use crate::order::Run;
use crate::partition::PartitionEntries;
use crate::parts::Parts;
use crate::scan::{BEHIND_MAX, ScanError};
use crate::wanted::Wanted;

/// Partitions that are looked at together.
const GROUP: usize = 256;
/// How many times as long as a look takes the thread rests after it.
const REST: u32 = 400;
/// How long it rests at least.
const REST_MIN: Duration = Duration::from_secs(60);

const _: () = assert!(PARTITIONS.is_multiple_of(GROUP));

/// Leaves of a range of partitions, by `from`; a `from` that is not there has zeros.
struct Leaves {
    partitions: Range<usize>,
    by_from: BTreeMap<u8, Vec<u64>>,
}

impl Leaves {
    fn new(partitions: Range<usize>) -> Self {
        Self { partitions, by_from: BTreeMap::new() }
    }

    /// As the digests have them.
    fn told(parts: &Parts, partitions: &Range<usize>) -> Self {
        let digests = parts.index.digests();
        let all = |from| partitions.clone().flat_map(move |at| digests.leaves(from, at).unwrap_or([0; LEAVES]));
        let by_from = digests.in_use().map(|from| (from, all(from).collect())).collect();
        Self { partitions: partitions.clone(), by_from }
    }

    fn add(&mut self, item: Item) {
        let leaf = item.leaf();
        let len = self.partitions.len() * LEAVES;
        let leaves = self.by_from.entry(item.from()).or_insert_with(|| vec![0; len]);
        leaves[(leaf.partition() - self.partitions.start) * LEAVES + leaf.number()] ^= item.word();
    }

    fn at(&self, from: u8, number: usize) -> u64 {
        self.by_from.get(&from).map_or(0, |leaves| leaves[number])
    }

    /// What is missing in leaves that did not change between `self` and `after`, and are not what
    /// the records make.
    fn wrong(&self, records: &Self, after: &Self) -> BTreeMap<(u8, Leaf), u64> {
        let mut wrong = BTreeMap::new();
        let mut froms: Vec<u8> = [self, records, after].iter().flat_map(|of| of.by_from.keys().copied()).collect();
        froms.sort_unstable();
        froms.dedup();
        for from in froms {
            for number in 0..self.partitions.len() * LEAVES {
                let before = self.at(from, number);
                let difference = before ^ records.at(from, number);
                if difference != 0 && before == after.at(from, number) {
                    let leaf = Leaf::from_bits((self.partitions.start * LEAVES + number) as u32);
                    wrong.insert((from, leaf), difference);
                }
            }
        }
        wrong
    }
}

/// Goes round, a group after the other, until the store closes.
pub(crate) fn run(parts: &Arc<Parts>) {
    let mut next = 0;
    let mut rest = REST_MIN;
    loop {
        parts.threads.pause(rest);
        if parts.threads.is_closing() {
            return;
        }
        let began = Instant::now();
        // While the newest records are not sorted it comes again later.
        if check(parts, next..next + GROUP).is_ok() {
            next += GROUP;
        }
        rest = REST_MIN.max(began.elapsed() * REST);
        if next == PARTITIONS {
            next = 0;
            parts.counters.digests_checked(parts.env().now_ms());
        }
    }
}

/// Looks at some partitions, and puts right what is wrong: so many leaves.
fn check(parts: &Arc<Parts>, partitions: Range<usize>) -> Result<usize, ScanError> {
    let before = Leaves::told(parts, &partitions);
    let records = by_sidecars(parts, &partitions)?;
    let suspected = before.wrong(&records, &Leaves::told(parts, &partitions));
    if suspected.is_empty() {
        return Ok(0);
    }
    let before = Leaves::told(parts, &partitions);
    let records = by_listing(parts, &partitions, suspected.keys().map(|(_, leaf)| *leaf))?;
    let confirmed = before.wrong(&records, &Leaves::told(parts, &partitions));
    let mut corrected = 0_usize;
    for ((from, leaf), difference) in suspected {
        if confirmed.get(&(from, leaf)) == Some(&difference) {
            parts.index.digests().put_right(from, leaf, difference);
            parts.retention.agreements().came_late(from, leaf.partition());
            corrected += 1;
        }
    }
    if corrected > 0 {
        tracing::error!("{corrected} leaves of the digests were not what the log says, and were put right");
        parts.counters.leaves_corrected(corrected as u64);
    }
    Ok(corrected)
}

/// What the records that the index names make, from sidecars and what is not sealed yet.
fn by_sidecars(parts: &Parts, partitions: &Range<usize>) -> Result<Leaves, ScanError> {
    let wanted = Wanted::partitions(partitions);
    let mut leaves = Leaves::new(partitions.clone());
    // By their numbers, so that none is held that compaction gives back meanwhile.
    let sequences: Vec<u64> = parts.segments.all().iter().map(|segment| segment.sequence).collect();
    for segment in sequences.into_iter().filter_map(|sequence| parts.segments.find(sequence)) {
        if parts.threads.is_closing() {
            return Err(ScanError::NotReady);
        }
        if segment.sidecar().is_none() {
            match segment.order.snapshot(&segment, BEHIND_MAX) {
                Some(runs) => {
                    add_unsealed(parts, (&segment, &runs), &wanted, &mut leaves);
                    continue;
                }
                // Sealed between the two looks.
                None if segment.sidecar().is_some() => {}
                None => return Err(ScanError::NotReady),
            }
        }
        let Some(sidecar) = segment.sidecar() else { continue };
        for number in sidecar.numbers_of(&wanted) {
            let entry = sidecar.entry(number);
            // Also a sidecar that lies names no leaf of another group.
            if wanted.has(entry.leaf) {
                add(parts, (&segment, entry.offset, entry.hash), (entry.leaf, entry.version, entry.flags), &mut leaves);
            }
        }
    }
    Ok(leaves)
}

fn add_unsealed(parts: &Parts, (segment, runs): (&Arc<IndexedSegment>, &[Run]), wanted: &Wanted, leaves: &mut Leaves) {
    for &offset in runs.iter().flat_map(|run| run.iter()) {
        let Ok(record) = segment.record(offset) else { continue };
        let leaf = Leaf::of(KeyHash::of(record.key()));
        if wanted.has(leaf) {
            let hash = parts.index.hash(record.key());
            add(parts, (segment, offset, hash), (leaf, record.version(), record.flags()), leaves);
        }
    }
}

fn add(
    parts: &Parts,
    (segment, offset, hash): (&Arc<IndexedSegment>, u32, IndexHash),
    (leaf, version, flags): (Leaf, Version, Flags),
    leaves: &mut Leaves,
) {
    if parts.index.lock(hash).names(hash, segment, offset) {
        leaves.add(Item::of(leaf, version, flags));
    }
}

/// The same for some leaves, exactly, from their records.
fn by_listing(
    parts: &Arc<Parts>,
    partitions: &Range<usize>,
    of: impl Iterator<Item = Leaf>,
) -> Result<Leaves, ScanError> {
    let mut sets: BTreeMap<u16, LeafSet> = BTreeMap::new();
    for leaf in of {
        let set = sets.entry(leaf.partition() as u16).or_default();
        set[leaf.number() / 64] |= 1 << (leaf.number() % 64);
    }
    let sets: Vec<(u16, LeafSet)> = sets.into_iter().collect();
    let mut entries = PartitionEntries::open(parts.clone(), &Wanted::leaves(&sets))?;
    let mut leaves = Leaves::new(partitions.clone());
    let item = |key: &[u8], version, flags, _| Item::of(Leaf::of(KeyHash::of(key)), version, flags);
    while let Some(item) = entries.next(item) {
        leaves.add(item);
    }
    Ok(leaves)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use koltso_model::{Key, Record};

    use super::*;
    use crate::log::Writer;
    use crate::options::{Options, SyncMode};
    use crate::store::Store;

    fn open(folder: &std::path::Path) -> Store {
        let options = Options {
            sync: SyncMode::Os,
            value_max: 16 << 10,
            segment_size: 64 << 10,
            compaction_rate: 1 << 30,
            compaction_dead_share: 0.2,
            agreed_after: None,
            ..Options::new(folder)
        };
        Store::open(options).expect("opened").0
    }

    fn put(writer: &mut Writer, key: u64, clock: u64, from: u8) {
        let key = format!("key-{key}");
        let (version, flags, value) = (Version::new(clock << 16, 0), Flags::new(from), &[7; 300][..]);
        let key = Key::new(key.as_bytes());
        writer.apply(&Record { key, value, version, expires_at_ms: 0, flags, attributes: &[] }).expect("written");
    }

    /// All partitions; those that are not sorted yet again.
    fn check_all(store: &Store) -> usize {
        let groups = (0..PARTITIONS).step_by(GROUP).map(|first| first..first + GROUP);
        let of = |group: Range<usize>| loop {
            match check(&store.parts, group.clone()) {
                Ok(corrected) => return corrected,
                Err(ScanError::NotReady) => thread::sleep(Duration::from_millis(5)),
            }
        };
        groups.map(of).sum()
    }

    #[test]
    fn a_leaf_that_is_not_what_the_log_says_is_put_right() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = open(dir.path());
        let mut writer = store.writer().expect("a writer");
        // Sealed ones, unsealed ones, overwritten ones, deletes, and several froms.
        (0..2000).for_each(|key| put(&mut writer, key, key + 1, 1 + key as u8 % 3));
        (0..500).for_each(|key| put(&mut writer, key * 3, key + 10_000, 2));
        for key in 0..100 {
            writer.delete(format!("key-{key}").as_bytes(), Version::new((20_000 + key) << 16, 1)).expect("written");
        }
        assert_eq!((check_all(&store), store.stats().digests.corrected), (0, 0), "nothing is wrong");

        let roots = || -> Vec<u64> {
            (1..=3)
                .flat_map(|from| (0..PARTITIONS).map(move |at| (from, at)))
                .map(|(from, at)| store.digests().root(from, at))
                .collect()
        };
        let right = roots();
        let spoilt = [(1, 0_u32), (2, 77_777), (3, (1 << 20) - 1), (2, 500_000)];
        for (from, leaf) in spoilt {
            store.digests().put_right(from, Leaf::from_bits(leaf), 0x1234_5678);
        }
        assert_ne!(roots(), right);
        store.agreements().begin(5);
        let (partition, arrivals) = (77_777 / LEAVES, store.agreements().arrivals(2, 77_777 / LEAVES));
        assert!(store.agreements().reached(2, partition, arrivals, 5));
        assert_eq!((check_all(&store), store.stats().digests.corrected), (4, 4));
        assert_eq!(roots(), right);
        assert_eq!(store.agreements().bound(2, partition), 0, "it was agreed on something else");
        assert_eq!(check_all(&store), 0);
    }

    /// Writers, sealing and compaction at work are no reason to find anything wrong; and what is
    /// wrong all the same is found beside them.
    #[test]
    fn nothing_is_wrong_while_writers_and_compaction_are_at_work() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = open(dir.path());
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for number in 0..2 {
                let (store, stop) = (&store, &stop);
                scope.spawn(move || {
                    let mut writer = store.writer().expect("a writer");
                    let mut clock = 1;
                    while !stop.load(Ordering::Relaxed) {
                        clock += 1;
                        put(&mut writer, (clock * 7919 + number) % 3000, clock, 3);
                        // Compaction has to keep up.
                        if clock.is_multiple_of(200) {
                            thread::sleep(Duration::from_millis(2));
                        }
                    }
                });
            }
            let began = Instant::now();
            while began.elapsed() < Duration::from_secs(2) || store.stats().compacted_segments < 20 {
                assert_eq!(check_all(&store), 0);
            }
            store.digests().put_right(3, Leaf::from_bits(4711), 99);
            let began = Instant::now();
            while check_all(&store) == 0 {
                assert!(began.elapsed() < Duration::from_secs(60), "a wrong leaf is not found");
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!((check_all(&store), store.stats().digests.corrected), (0, 1));
    }
}

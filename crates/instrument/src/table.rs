//! Stacks and their sums in memory of a fixed size: threads write them from inside the allocator,
//! and a profile reads them.
//!
//! Layout: an open-addressing array of slots (64 bytes each: hash, place, four counters) and an
//! arena of words that holds the stacks and is filled from its start. Both are zero pages until
//! they are used. Owner: a static; every thread adds, nobody removes. Adding takes no lock, does
//! not allocate and never waits, so it may happen anywhere. Bounds: `SLOTS / 2` distinct stacks and
//! `WORDS` words of them. What exceeds either is added to one slot of its own ([`OVERFLOW`]), so
//! that totals stay right and only the stack is missing. Invariants: a slot's hash is set once; its
//! words are complete before its place is published; counters only grow; what a block adds to the
//! last two counters (freed) comes after what it added to the first two (allocated), so that a
//! reader who loads them backwards never sees more freed than allocated. Two stacks with the same
//! 64-bit hash would be counted as one: with 8192 stacks that happens to one program in 10^11.
//! Deliberately absent: removal (a stack that was seen may be seen again), unsafe code.

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

/// The slot that counts the stacks for which the table has no room.
pub const OVERFLOW: u32 = u32::MAX;
/// The place of a slot for whose words the arena had no room.
const NO_ROOM: u64 = u64::MAX;

#[derive(Debug)]
#[repr(align(64))]
struct Slot {
    /// Hash of the stack; 0 until a thread claims the slot.
    hash: AtomicU64,
    /// `start << 32 | count << 1 | 1`, where the two say which words of the arena hold the stack;
    /// [`NO_ROOM`], or 0 until it is published.
    place: AtomicU64,
    counts: [AtomicU64; 4],
}

impl Slot {
    const fn new() -> Self {
        Self { hash: AtomicU64::new(0), place: AtomicU64::new(0), counts: [const { AtomicU64::new(0) }; 4] }
    }

    /// Loads the counters, the last one first: see the invariants at the head of the file.
    fn counts(&self) -> [u64; 4] {
        let mut counts = [0; 4];
        for (count, counter) in counts.iter_mut().zip(&self.counts).rev() {
            *count = counter.load(Acquire);
        }
        counts
    }
}

/// Counts stacks: see the head of the file.
#[derive(Debug)]
pub struct Table<const SLOTS: usize, const WORDS: usize> {
    slots: [Slot; SLOTS],
    words: [AtomicU64; WORDS],
    overflow: Slot,
    words_used: AtomicU64,
    slots_used: AtomicU32,
}

/// One stack and its counts at the time of the snapshot.
#[derive(Clone, Debug)]
pub struct Row {
    /// The index of its slot, the same in all snapshots of one table.
    pub slot: u32,
    /// The words given to [`Table::slot`]; empty in [`OVERFLOW`].
    pub words: Box<[u64]>,
    /// The sums of what [`Table::add`] added.
    pub counts: [u64; 4],
}

impl<const SLOTS: usize, const WORDS: usize> Table<SLOTS, WORDS> {
    /// Size of the table in bytes.
    pub const BYTES: usize = size_of::<Self>();

    /// An empty table, all zeros.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "for statics: it is large for a stack")]
    pub const fn new() -> Self {
        assert!(SLOTS.is_power_of_two() && SLOTS >= 2 && WORDS < 1 << 31);
        Self {
            slots: [const { Slot::new() }; SLOTS],
            words: [const { AtomicU64::new(0) }; WORDS],
            overflow: Slot::new(),
            words_used: AtomicU64::new(0),
            slots_used: AtomicU32::new(0),
        }
    }

    /// The slot of a stack, claimed now if the stack is new; [`OVERFLOW`] if there is no room for
    /// it.
    #[must_use]
    pub fn slot(&self, words: &[u64]) -> u32 {
        let hash = hash(words);
        let mut at = hash as usize % SLOTS;
        for _ in 0..SLOTS {
            let slot = &self.slots[at];
            let mut seen = slot.hash.load(Relaxed);
            if seen == 0 {
                let room = self.words_used.load(Relaxed) + words.len() as u64 <= WORDS as u64;
                if !room || self.slots_used.load(Relaxed) as usize >= SLOTS / 2 {
                    return OVERFLOW;
                }
                match slot.hash.compare_exchange(0, hash, AcqRel, Relaxed) {
                    Ok(_) => {
                        self.publish(slot, words);
                        return at as u32;
                    }
                    Err(theirs) => seen = theirs,
                }
            }
            if seen == hash {
                return at as u32;
            }
            at = (at + 1) % SLOTS;
        }
        OVERFLOW
    }

    fn publish(&self, slot: &Slot, words: &[u64]) {
        self.slots_used.fetch_add(1, Relaxed);
        let start = self.words_used.fetch_add(words.len() as u64, Relaxed) as usize;
        let Some(room) = self.words.get(start..start + words.len()) else {
            slot.place.store(NO_ROOM, Release);
            return;
        };
        for (room, word) in room.iter().zip(words) {
            room.store(*word, Relaxed);
        }
        slot.place.store((start as u64) << 32 | (words.len() as u64) << 1 | 1, Release);
    }

    /// Adds to the counters of a slot that [`Self::slot`] returned.
    pub fn add(&self, slot: u32, counts: [u64; 4]) {
        let slot = self.slots.get(slot as usize).unwrap_or(&self.overflow);
        for (counter, count) in slot.counts.iter().zip(counts) {
            if count > 0 {
                counter.fetch_add(count, Release);
            }
        }
    }

    /// Brings the counters in `known` up to date and adds slots that are new; pass an empty vector
    /// at first. Calls `each` with the index of every slot that has changed, its counts before and
    /// its counts now. A pass over known slots reads one cache line for each; only when the number
    /// of slots in use has changed does it look at all of them.
    pub fn changes(&self, known: &mut Vec<(u32, [u64; 4])>, mut each: impl FnMut(u32, [u64; 4], [u64; 4])) {
        // A slot that is claimed but not yet published makes the next pass look at all of them
        // again.
        if known.len() != self.slots_used.load(Acquire) as usize + 1 {
            let old: std::collections::HashMap<u32, [u64; 4]> = known.drain(..).collect();
            let used = self.slots.iter().enumerate().filter(|(_, slot)| slot.place.load(Acquire) != 0);
            let used = used.map(|(index, _)| index as u32).chain([OVERFLOW]);
            known.extend(used.map(|slot| (slot, old.get(&slot).copied().unwrap_or_default())));
        }
        for (slot, before) in known {
            let now = self.slots.get(*slot as usize).unwrap_or(&self.overflow).counts();
            if now != *before {
                each(*slot, *before, now);
                *before = now;
            }
        }
    }

    /// All stacks in the order of their slots. The last row has [`OVERFLOW`] and no words: it
    /// counts what had no room.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::with_capacity(self.slots_used.load(Relaxed) as usize + 64);
        let mut beyond = self.overflow.counts();
        for (index, slot) in self.slots.iter().enumerate() {
            match slot.place.load(Acquire) {
                0 => {}
                NO_ROOM => beyond.iter_mut().zip(slot.counts()).for_each(|(sum, count)| *sum += count),
                place => {
                    let (start, count) = ((place >> 32) as usize, (place as u32 >> 1) as usize);
                    let words = self.words[start..start + count].iter().map(|word| word.load(Relaxed)).collect();
                    rows.push(Row { slot: index as u32, words, counts: slot.counts() });
                }
            }
        }
        rows.push(Row { slot: OVERFLOW, words: Box::new([]), counts: beyond });
        rows
    }
}

/// `after` minus `before`, two snapshots of one table, in the order in which [`Table::rows`]
/// returns them.
#[must_use]
pub fn difference(before: &[Row], after: &[Row]) -> Vec<(Row, [i64; 4])> {
    let mut before = before.iter().peekable();
    let less = |row: &Row| {
        while before.next_if(|old| old.slot < row.slot).is_some() {}
        let old = before.next_if(|old| old.slot == row.slot).map_or([0; 4], |old| old.counts);
        let counts = std::array::from_fn(|i| row.counts[i].wrapping_sub(old[i]) as i64);
        (row.clone(), counts)
    };
    after.iter().map(less).collect()
}

fn hash(words: &[u64]) -> u64 {
    let mut hash = 0x9E37_79B9_7F4A_7C15 ^ words.len() as u64;
    for word in words {
        let product = u128::from(hash ^ word) * 0xA076_1D64_78BD_642F;
        hash = (product as u64 ^ (product >> 64) as u64).rotate_left(23);
    }
    hash.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_counts_what_has_no_room() {
        // In the first table the slots run out first, in the second the words.
        for (table, stacks, kept) in
            [(&Table::<16, 64>::new() as &dyn Probe, 100, 8), (&Table::<64, 64>::new(), 100, 16)]
        {
            for round in 0..2 {
                for stack in 0..stacks {
                    table.count(&[stack, 1, 2, 3]);
                }
                let rows = table.read();
                assert_eq!(rows.len(), kept + 1);
                assert_eq!(rows.iter().map(|row| row.counts[0]).sum::<u64>(), (round + 1) * stacks);
                assert_eq!(rows[kept].slot, OVERFLOW);
                assert_eq!(rows[kept].counts[0], (round + 1) * (stacks - kept as u64));
                assert!(rows[..kept].iter().all(|row| row.words[1..] == [1, 2, 3]));
            }
        }
    }

    #[test]
    fn threads_that_meet_in_a_slot_all_count() {
        static TABLE: Table<64, 1024> = Table::new();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1000).for_each(|i| TABLE.count(&[i % 50, i % 50, 7])));
            }
        });
        let rows = TABLE.rows();
        assert_eq!(rows.iter().map(|row| row.counts[0]).sum::<u64>(), 8000);
        assert!(rows.len() == 33 && rows.iter().all(|row| row.slot == OVERFLOW || row.counts[0] == 160));
        let later = difference(&rows[3..], &TABLE.rows());
        assert_eq!(later.iter().map(|(_, counts)| counts[0]).sum::<i64>(), 480);
    }

    #[test]
    fn changes_are_told_once_also_of_slots_that_are_new() {
        let table = Table::<16, 16>::new();
        let mut known = Vec::new();
        let mut told = || {
            let mut told = Vec::new();
            table.changes(&mut known, |_, before, now| told.push(now[0] - before[0]));
            told.sort_unstable();
            told
        };
        assert_eq!(told(), []);
        table.count(&[1, 2]);
        table.add(table.slot(&[1, 2]), [4, 0, 0, 0]);
        table.count(&[3]);
        assert_eq!(told(), [1, 5]);
        assert_eq!(told(), []);
        table.count(&[3]);
        // These are more than the table has room for: one row counts what exceeds it.
        (10..30).for_each(|stack| table.count(&[stack, 0]));
        assert_eq!(told(), [1, 1, 1, 1, 1, 1, 1, 14]);
    }

    trait Probe {
        fn count(&self, words: &[u64]);
        fn read(&self) -> Vec<Row>;
    }

    impl<const SLOTS: usize, const WORDS: usize> Probe for Table<SLOTS, WORDS> {
        fn count(&self, words: &[u64]) {
            self.add(self.slot(words), [1, 0, 0, 0]);
        }

        fn read(&self) -> Vec<Row> {
            self.rows()
        }
    }
}

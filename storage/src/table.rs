//! The hash table of one stripe: buckets of one cache line, eight entries each.
//!
//! A look-up touches one line of the table as a rule. A general table keeps control bytes apart
//! from its entries, which is a second line, and at two million requests a second and more keys
//! than fit the caches, lines are what counts: in a profile of GET over 100 000 keys, four loads
//! made 45 % of the user time, and one of them was this.
//!
//! An entry knows 24 bits of its hash, its tag; the low bits of the tag choose its bucket, and a
//! full bucket overflows into the next. Several entries may have one tag: the caller tells them
//! apart.
//!
//! Bounds: 8 bytes an entry, at most 7/8 full, doubling; 9 to 18 bytes an entry. Growing moves
//! every entry of one stripe. Invariants:
//! 1. Empty places are 0, and no entry is.
//! 2. All buckets from an entry's own to the one it lies in, that one excluded, are full; so a
//!    search ends at a bucket with an empty place.
//!
//! Tested beside a plain list below.

use allocator_api2::vec::Vec;

use crate::entry::Entry;
use crate::slab::Slabs;

const PLACES: usize = 8;

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Bucket([u64; PLACES]);

/// Entries by tag.
#[derive(Debug)]
pub(crate) struct Table {
    /// A power of two of them, or none.
    buckets: Vec<Bucket, Slabs>,
    len: u32,
}

impl Bucket {
    const EMPTY: Self = Self([0; PLACES]);

    /// Places whose word has the tag, as bits. All eight are compared at once where the processor
    /// can.
    #[inline]
    fn with_tag(&self, tag: u32) -> u32 {
        let mut bits = 0;
        for (place, &word) in self.0.iter().enumerate() {
            bits |= u32::from(Entry::from_word(word).tag() == tag) << place;
        }
        bits
    }

    #[inline]
    fn has_room(&self) -> bool {
        self.0[PLACES - 1] == 0 || self.0.contains(&0)
    }
}

impl Table {
    pub(crate) fn new_in(slabs: Slabs) -> Self {
        Self { buckets: Vec::new_in(slabs), len: 0 }
    }

    pub(crate) const fn len(&self) -> u32 {
        self.len
    }

    fn mask(&self) -> usize {
        self.buckets.len() - 1
    }

    /// Where an entry's search begins.
    fn home(&self, entry: Entry) -> usize {
        entry.tag() as usize & self.mask()
    }

    /// The bucket and place of the first entry with `tag` that is `wanted`.
    #[inline]
    fn locate(&self, tag: u32, mut wanted: impl FnMut(Entry) -> bool) -> Option<(usize, usize)> {
        if self.buckets.is_empty() {
            return None;
        }
        let mut at = tag as usize & self.mask();
        loop {
            let bucket = &self.buckets[at];
            let mut same_tag = bucket.with_tag(tag);
            while same_tag != 0 {
                let place = same_tag.trailing_zeros() as usize;
                let word = bucket.0[place];
                if word != 0 && wanted(Entry::from_word(word)) {
                    return Some((at, place));
                }
                same_tag &= same_tag - 1;
            }
            if bucket.has_room() {
                return None;
            }
            at = (at + 1) & self.mask();
        }
    }

    /// The first entry with `tag` that is `wanted`.
    #[inline]
    pub(crate) fn find(&self, tag: u32, wanted: impl FnMut(Entry) -> bool) -> Option<Entry> {
        self.locate(tag, wanted).map(|(at, place)| Entry::from_word(self.buckets[at].0[place]))
    }

    /// Whether this very entry is there.
    pub(crate) fn contains(&self, entry: Entry) -> bool {
        self.locate(entry.tag(), |e| e == entry).is_some()
    }

    /// Puts `new`, which has the same tag, in the place of `old`; `false` if that is not there.
    pub(crate) fn replace(&mut self, old: Entry, new: Entry) -> bool {
        debug_assert_eq!(old.tag(), new.tag());
        let found = self.locate(old.tag(), |e| e == old);
        if let Some((at, place)) = found {
            self.buckets[at].0[place] = new.word();
        }
        found.is_some()
    }

    /// Makes room for `len` entries in all.
    pub(crate) fn reserve(&mut self, len: usize) {
        let places = (len * PLACES).div_ceil(PLACES - 1);
        let buckets = places.div_ceil(PLACES).next_power_of_two();
        if buckets <= self.buckets.len() {
            return;
        }
        let mut larger = Vec::with_capacity_in(buckets, self.buckets.allocator().clone());
        larger.resize(buckets, Bucket::EMPTY);
        let old = std::mem::replace(&mut self.buckets, larger);
        for word in old.iter().flat_map(|bucket| bucket.0).filter(|&word| word != 0) {
            self.place(Entry::from_word(word));
        }
    }

    /// Adds an entry.
    pub(crate) fn insert(&mut self, entry: Entry) {
        debug_assert_ne!(entry.word(), 0);
        self.reserve(self.len as usize + 1);
        self.place(entry);
        self.len += 1;
    }

    fn place(&mut self, entry: Entry) {
        let mut at = self.home(entry);
        loop {
            if let Some(free) = self.buckets[at].0.iter_mut().find(|word| **word == 0) {
                *free = entry.word();
                return;
            }
            at = (at + 1) & self.mask();
        }
    }

    /// Takes this very entry out; `false` if it is not there.
    pub(crate) fn remove(&mut self, entry: Entry) -> bool {
        let Some((mut hole, mut place)) = self.locate(entry.tag(), |e| e == entry) else {
            return false;
        };
        self.len -= 1;
        // Invariant 2: what had overflowed past the hole moves back into it, which makes the next
        // hole.
        let mut was_full = !self.buckets[hole].has_room();
        self.buckets[hole].0[place] = 0;
        let mut at = hole;
        while was_full {
            at = (at + 1) & self.mask();
            let overflowed = self.buckets[at].0.iter().position(|&word| {
                let home = self.home(Entry::from_word(word));
                let from_home = at.wrapping_sub(home) & self.mask();
                word != 0 && from_home >= (at.wrapping_sub(hole) & self.mask())
            });
            let full = !self.buckets[at].has_room();
            match overflowed {
                Some(found) => {
                    self.buckets[hole].0[place] = self.buckets[at].0[found];
                    self.buckets[at].0[found] = 0;
                    (hole, place, was_full) = (at, found, full);
                }
                None => was_full = full,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::IndexHash;

    fn check(table: &Table, model: &[Entry]) {
        assert_eq!(table.len() as usize, model.len());
        for &entry in model {
            assert!(table.contains(entry), "{entry:?} is lost");
        }
        let words = table.buckets.iter().flat_map(|bucket| bucket.0).filter(|&word| word != 0);
        assert_eq!(words.count(), model.len());
        for (at, bucket) in table.buckets.iter().enumerate() {
            for entry in bucket.0.iter().filter(|&&word| word != 0).map(|&word| Entry::from_word(word)) {
                let mut from = table.home(entry);
                while from != at {
                    assert!(!table.buckets[from].has_room(), "invariant 2");
                    from = (from + 1) & table.mask();
                }
            }
        }
    }

    #[test]
    fn it_does_what_a_list_does() {
        let mut random = 0x1234_5678_u64;
        let mut next = move |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        // Few tags, so that buckets overflow and wrap around; many, as in life.
        for tags in [3, 40, 1 << 24] {
            let mut table = Table::new_in(Slabs::default());
            let mut model: std::vec::Vec<Entry> = std::vec::Vec::new();
            for step in 0..if cfg!(miri) { 300 } else { 6_000_u32 } {
                // Tags from the top of the range, so that the last bucket overflows into the first.
                let hash = IndexHash::from_bits(((1 << 24) - 1 - next(tags)) << 28);
                let entry = Entry::new(hash, step >> 8, 64 + (step & 255) * 8);
                match next(5) {
                    0 | 1 if !model.is_empty() => {
                        let victim = model.swap_remove(next(model.len() as u64) as usize);
                        assert!(table.remove(victim));
                        assert!(!table.remove(victim));
                    }
                    2 if !model.is_empty() => {
                        let at = next(model.len() as u64) as usize;
                        let hash = IndexHash::from_bits(u64::from(model[at].tag()) << 28);
                        let moved = Entry::new(hash, step >> 8, 64 + (step & 255) * 8);
                        assert!(table.replace(model[at], moved));
                        model[at] = moved;
                    }
                    _ => {
                        table.insert(entry);
                        model.push(entry);
                    }
                }
                if step % 50 == 0 {
                    check(&table, &model);
                }
            }
            check(&table, &model);
        }
    }

    #[test]
    fn an_absent_tag_ends_the_search() {
        let mut table = Table::new_in(Slabs::default());
        assert!(table.find(7, |_| true).is_none());
        for offset in 1..200 {
            table.insert(Entry::new(IndexHash::from_bits(7 << 28), 0, offset * 8));
        }
        assert!(table.find(8, |_| true).is_none());
        assert_eq!(table.find(7, |e| e.offset() == 80), Some(Entry::new(IndexHash::from_bits(7 << 28), 0, 80)));
    }
}

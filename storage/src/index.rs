//! Where the newest record of each key lies: a striped hash table of 8-byte entries
//! ([`crate::entry`]), and the table of segments.
//!
//! The key itself stays in the log and is compared there. A key's stripe and its tag are bits of
//! its keyed hash, so nobody can choose keys that meet there; a stripe's lock is held for one
//! look-up or one change.
//!
//! Invariants:
//! 1. An entry names a slot that holds a segment, and an offset of a record that is wholly written
//!    there.
//! 2. A segment leaves its slot only when no entry names it: compaction moves every entry first,
//!    each under the lock of its stripe. So while a stripe's lock is held, the segments that its
//!    entries name stay.
//! 3. At most one entry a key, except beside an entry whose record's header is damaged, of which
//!    nobody can tell the key.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use koltso_instrument::{Mutex, MutexGuard};
use koltso_model::{KeyHash, Version};

use crate::digest::{Digests, Item, Leaf};
use crate::entry::{Entry, SLOTS};
use crate::hash::{IndexHash, STRIPES};
use crate::indexed::IndexedSegment;
use crate::record::Record;
use crate::secret::Secret;
use crate::sidecar::Known;
use crate::slab::Slabs;
use crate::table::Table;

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It is the newest version of its key.
    Newest,
    /// This version was there, which is as new or newer. Its record may be damaged: what it was is
    /// known all the same.
    Superseded(Version),
}

#[derive(Debug)]
struct Keys {
    entries: Table,
    tombstones: u32,
}

#[derive(Debug)]
#[repr(align(64))]
struct Stripe(Mutex<Keys>);

// Lock, name and table are one cache line: taking the lock brings in what a look-up needs next.
const _: () = assert!(size_of::<Stripe>() == 64);

pub(crate) struct Index {
    stripes: Box<[Stripe]>,
    segments: Box<[AtomicPtr<IndexedSegment>]>,
    /// What the stripes' tables lie in.
    slabs: Slabs,
    secret: Secret,
    digests: Digests,
}

/// A stripe under its lock.
pub(crate) struct Locked<'a> {
    index: &'a Index,
    keys: MutexGuard<'a, Keys>,
}

/// A key's entry and the record it names.
pub(crate) struct Hit<'a> {
    pub(crate) entry: Entry,
    pub(crate) segment: &'a IndexedSegment,
    /// Header and key are intact.
    pub(crate) record: Record<'a>,
}

/// A record that the index is to name.
pub(crate) struct Place<'a> {
    pub(crate) hash: IndexHash,
    pub(crate) version: Version,
    pub(crate) segment: &'a IndexedSegment,
    pub(crate) offset: u32,
    /// In bytes of log.
    pub(crate) size: usize,
    pub(crate) tombstone: bool,
    pub(crate) item: Item,
}

/// What an entry is replaced from.
struct Standing {
    entry: Entry,
    size: usize,
    tombstone: bool,
    item: Item,
}

impl Standing {
    fn of(entry: Entry, record: &Record<'_>, leaf: Leaf) -> Self {
        let item = Item::of(leaf, record.version(), record.flags());
        Self { entry, size: record.size(), tombstone: record.is_tombstone(), item }
    }
}

impl Hit<'_> {
    fn standing(&self, leaf: Leaf) -> Standing {
        Standing::of(self.entry, &self.record, leaf)
    }
}

pub(crate) enum Find<'a> {
    Hit(Hit<'a>),
    /// No intact record has this key, but a damaged one may: its entry.
    Damaged(Entry, &'a IndexedSegment),
    Miss,
}

impl Index {
    pub(crate) fn new(secret: Secret) -> Self {
        let slabs = Slabs::default();
        let stripe =
            || Stripe(Mutex::new(&"index stripe", Keys { entries: Table::new_in(slabs.clone()), tombstones: 0 }));
        Self {
            stripes: (0..STRIPES).map(|_| stripe()).collect(),
            segments: (0..SLOTS).map(|_| AtomicPtr::new(ptr::null_mut())).collect(),
            slabs,
            secret,
            digests: Digests::default(),
        }
    }

    /// Hashes a key.
    #[inline]
    pub(crate) fn hash(&self, key: &[u8]) -> IndexHash {
        self.secret.hash(key)
    }

    /// What replicas compare.
    pub(crate) const fn digests(&self) -> &Digests {
        &self.digests
    }

    /// Makes memory ready for tables that are about to grow.
    pub(crate) fn provide(&self) {
        self.slabs.provide();
    }

    /// Makes room for `keys` keys in all, so that loading them does not grow every table several
    /// times.
    pub(crate) fn reserve(&self, keys: u64) {
        // Stripes differ by the square root of their size; a twelfth more saves most of them the
        // growth.
        let each = keys / STRIPES as u64;
        let each = (each + each / 12 + 1) as usize;
        for stripe in &self.stripes {
            stripe.0.lock().entries.reserve(each);
        }
    }

    /// Puts a segment into its slot, which is empty.
    pub(crate) fn install(&self, segment: Arc<IndexedSegment>) {
        let slot = segment.slot as usize;
        let old = self.segments[slot].swap(Arc::into_raw(segment).cast_mut(), Ordering::AcqRel);
        assert!(old.is_null(), "slot {slot} is taken");
    }

    /// Empties a slot. The caller has moved every entry that named it (invariant 2).
    #[allow(unsafe_code)]
    pub(crate) fn retire(&self, slot: u32) -> Arc<IndexedSegment> {
        let old = self.segments[slot as usize].swap(ptr::null_mut(), Ordering::AcqRel);
        assert!(!old.is_null(), "slot {slot} is empty");
        // SAFETY: the pointer came from `Arc::into_raw` in `install`, and the swap took it out, so
        // this is done once.
        unsafe { Arc::from_raw(old) }
    }

    /// The stripe of a hash, locked.
    #[inline]
    pub(crate) fn lock(&self, hash: IndexHash) -> Locked<'_> {
        Locked { index: self, keys: self.stripes[hash.stripe()].0.lock() }
    }

    /// (entries, entries that are tombstones).
    pub(crate) fn counts(&self) -> (u64, u64) {
        self.stripes.iter().fold((0, 0), |(entries, tombstones), stripe| {
            let keys = stripe.0.lock();
            (entries + u64::from(keys.entries.len()), tombstones + u64::from(keys.tombstones))
        })
    }
}

impl Drop for Index {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        for slot in &mut self.segments {
            let segment = *slot.get_mut();
            if !segment.is_null() {
                // SAFETY: from `Arc::into_raw` in `install`; `&mut self` says that nobody looks any
                // more.
                drop(unsafe { Arc::from_raw(segment) });
            }
        }
    }
}

impl Locked<'_> {
    #[allow(unsafe_code)]
    #[inline]
    fn segment(&self, entry: Entry) -> &IndexedSegment {
        let segment = self.index.segments[entry.slot() as usize].load(Ordering::Acquire);
        assert!(!segment.is_null(), "an index entry names an empty slot");
        // SAFETY: `entry` is in this stripe and its lock is held: invariants 1 and 2 keep the
        // segment in its slot for as long as `self` is borrowed.
        unsafe { &*segment }
    }

    /// A reference of one's own to the segment of a hit, for reading on after the lock is gone.
    #[allow(unsafe_code)]
    pub(crate) fn pin(segment: &IndexedSegment) -> Arc<IndexedSegment> {
        // SAFETY: a `&IndexedSegment` from `Locked` points into the `Arc` that `install` was given,
        // which the slot keeps.
        unsafe {
            Arc::increment_strong_count(ptr::from_ref(segment));
            Arc::from_raw(ptr::from_ref(segment))
        }
    }

    /// Looks a key up.
    #[inline]
    pub(crate) fn find(&self, hash: IndexHash, key: &[u8]) -> Find<'_> {
        let tag = hash.tag();
        let mut damaged = None;
        let hit = self.keys.entries.find(tag, |entry| {
            let segment = self.segment(entry);
            let record = segment.record(entry.offset()).ok();
            if record.is_some_and(|record| record.key() == key && segment.header_intact(entry.offset(), &record)) {
                return true;
            }
            if !record.is_some_and(|record| segment.header_intact(entry.offset(), &record)) {
                damaged = Some(entry);
            }
            false
        });
        match (hit, damaged) {
            (Some(entry), _) => {
                let segment = self.segment(entry);
                match segment.record(entry.offset()) {
                    Ok(record) => Find::Hit(Hit { entry, segment, record }),
                    Err(_) => Find::Damaged(entry, segment),
                }
            }
            (None, Some(entry)) => Find::Damaged(entry, self.segment(entry)),
            (None, None) => Find::Miss,
        }
    }

    /// Whether any entry has the tag of this hash: if not, the key is new.
    pub(crate) fn has_tag(&self, hash: IndexHash) -> bool {
        let tag = hash.tag();
        self.keys.entries.find(tag, |_| true).is_some()
    }

    /// Whether this very place is what the index names. A cursor may ask for a segment that left
    /// its slot, and the slot may have another since, with the same key at the same offset: so the
    /// segment is compared too.
    #[inline]
    pub(crate) fn names(&self, hash: IndexHash, segment: &IndexedSegment, offset: u32) -> bool {
        let wanted = Entry::new(hash, segment.slot, offset);
        self.keys.entries.contains(wanted) && ptr::eq(self.segment(wanted), segment)
    }

    /// The newest-wins step: from now on the index names the record of `key` at `place`, unless
    /// what it names already is as new: then its version.
    pub(crate) fn offer(&mut self, key: &[u8], place: &Place<'_>) -> Applied {
        let standing = match self.find(place.hash, key) {
            Find::Hit(hit) => {
                let version = hit.record.version();
                // The same version again repairs a damaged value.
                if version > place.version || (version == place.version && hit.record.value_intact()) {
                    return Applied::Superseded(version);
                }
                Some(hit.standing(place.item.leaf()))
            }
            // Its key cannot be read, but a sidecar may know whose it was. If not, both entries
            // stay.
            Find::Damaged(entry, segment) => {
                let known = segment.sidecar().and_then(|sidecar| sidecar.known_at(entry.offset()));
                match known.filter(|known| known.is_of(key)).map(|known| known.entry) {
                    Some(known) if known.version > place.version => return Applied::Superseded(known.version),
                    Some(known) => {
                        let (size, tombstone) = (known.size as usize, known.flags.is_tombstone());
                        let item = Item::of(known.leaf, known.version, known.flags);
                        Some(Standing { entry, size, tombstone, item })
                    }
                    None => None,
                }
            }
            Find::Miss => None,
        };
        self.put(place, standing);
        Applied::Newest
    }

    /// As [`Locked::offer`], for a record whose key is damaged, so that there is only what a
    /// sidecar knows of it.
    pub(crate) fn offer_damaged(&mut self, place: &Place<'_>, known: Option<&Known>) {
        let tag = place.hash.tag();
        let of_same_key = |entry: Entry| {
            let segment = self.segment(entry);
            let record = segment.record(entry.offset()).ok();
            record.is_some_and(|r| segment.header_intact(entry.offset(), &r) && known.is_some_and(|k| k.is_of(r.key())))
        };
        let entry = self.keys.entries.find(tag, of_same_key);
        let standing = match entry {
            Some(entry) => match self.segment(entry).record(entry.offset()) {
                Ok(record) if record.version() >= place.version => return,
                Ok(record) => Some(Standing::of(entry, &record, place.item.leaf())),
                Err(_) => None,
            },
            None => None,
        };
        self.put(place, standing);
    }

    /// For a key whose tag is not there yet.
    pub(crate) fn insert_new(&mut self, place: &Place<'_>) {
        self.put(place, None);
    }

    fn put(&mut self, place: &Place<'_>, standing: Option<Standing>) {
        let entry = Entry::new(place.hash, place.segment.slot, place.offset);
        place.segment.add_live(place.size as u64);
        match standing {
            Some(old) => {
                self.segment(old.entry).sub_live(old.size as u64);
                self.index.digests.replace(old.item, place.item);
                self.replace(old.entry, entry, old.tombstone, place.tombstone);
            }
            None => {
                self.index.digests.add(place.item);
                self.insert(entry, place.tombstone);
            }
        }
    }

    fn insert(&mut self, entry: Entry, tombstone: bool) {
        self.keys.entries.insert(entry);
        self.keys.tombstones += u32::from(tombstone);
    }

    /// Puts `new` in the place of `old`, which is there.
    pub(crate) fn replace(&mut self, old: Entry, new: Entry, was_tombstone: bool, is_tombstone: bool) {
        assert!(self.keys.entries.replace(old, new), "the entry to replace is there, its stripe is locked");
        let tombstones = self.keys.tombstones + u32::from(is_tombstone);
        // A figure only; a sidecar may have lied about its records.
        self.keys.tombstones = tombstones.saturating_sub(u32::from(was_tombstone));
    }

    /// Takes the entry of a record out, if it is there.
    pub(crate) fn remove(&mut self, entry: Entry, record: &Record<'_>) -> bool {
        let removed = self.keys.entries.remove(entry);
        if removed {
            self.keys.tombstones = self.keys.tombstones.saturating_sub(u32::from(record.is_tombstone()));
            let leaf = Leaf::of(KeyHash::of(record.key()));
            self.index.digests.take_out(Item::of(leaf, record.version(), record.flags()));
        }
        removed
    }
}

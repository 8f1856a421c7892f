//! One entry of the index: where a record lies, and some bits of its key's hash.
//!
//! ```text
//! entry   63        40 39             23 22            0
//!         tag of hash  segment's slot    offset / 8
//! ```

use crate::hash::{IndexHash, TAG_BITS};
use crate::header::SEGMENT_MAX;
use crate::record::ALIGN;

const OFFSET_BITS: u32 = 23;
const SLOT_BITS: u32 = 17;
/// Segments that can exist at once: 8 TiB of 64 MiB.
pub(crate) const SLOTS: usize = 1 << SLOT_BITS;

const _: () = assert!(OFFSET_BITS + SLOT_BITS + TAG_BITS == 64);
const _: () = assert!(SEGMENT_MAX as u64 == (ALIGN as u64) << OFFSET_BITS);

/// One entry: tag, slot and offset, as the module says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry(u64);

impl Entry {
    pub(crate) fn new(hash: IndexHash, slot: u32, offset: u32) -> Self {
        debug_assert!((slot as usize) < SLOTS && offset.is_multiple_of(ALIGN as u32) && offset < SEGMENT_MAX);
        let place = (u64::from(slot) << OFFSET_BITS) | u64::from(offset / ALIGN as u32);
        Self((u64::from(hash.tag()) << (OFFSET_BITS + SLOT_BITS)) | place)
    }

    pub(crate) const fn tag(self) -> u32 {
        (self.0 >> (OFFSET_BITS + SLOT_BITS)) as u32
    }

    pub(crate) const fn slot(self) -> u32 {
        ((self.0 >> OFFSET_BITS) & ((1 << SLOT_BITS) - 1)) as u32
    }

    pub(crate) const fn offset(self) -> u32 {
        (self.0 & ((1 << OFFSET_BITS) - 1)) as u32 * ALIGN as u32
    }

    pub(crate) const fn word(self) -> u64 {
        self.0
    }

    pub(crate) const fn from_word(word: u64) -> Self {
        Self(word)
    }
}

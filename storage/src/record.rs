//! One record of the log: how a key, its version, its attributes and its value lie in bytes.
//!
//! ```text
//! 0   u32  header checksum: CRC-32C of bytes 4.. up to the value, started from the segment's salt
//!          and the record's offset
//! 4   u32  value checksum: CRC-32C of the value
//! 8   u64  version: hybrid logical clock, never 0
//! 16  u16  version: node
//! 18  u16  key length, 1..=4096
//! 20  u32  value length, 0..=2^25
//! 24  u64  bits 0..48: expiry in ms since the Unix epoch, 0 = never;
//!          bits 48..64: the flags of `koltso_model::Flags`
//! 32       key
//!          where bit 63 of the number at 24 is set: u16 length, 1..=1024, and so many bytes of
//!          attributes
//!          value, zeros up to a multiple of 8
//! ```
//!
//! All integers are little-endian. Invariants:
//! 1. The header checksum depends on where the record lies, so bytes that look like a record (a
//!    value that a client crafted, a block that the disk put elsewhere, an older life of the file)
//!    are not one.
//! 2. A view is only made after the lengths were compared with their maxima and with the bytes that
//!    are there.
//! 3. Everything but the value of a record with an intact header can be trusted, also where the
//!    value is damaged or was not read.
//! 4. Flags and attributes without a meaning to this build are part of the record: a copy has them,
//!    too.
//!
//! Tested in this file, in `tests/` beside a model, and by the `record` and `recovery` fuzz
//! targets.

use std::sync::atomic::{Ordering, compiler_fence};

use koltso_model::{ATTRIBUTES_MAX, Attributes, Flags, KEY_MAX, VALUE_MAX_LIMIT, Version};

use crate::bytes::{u32_at, u64_at};
use crate::error::WriteError;

/// Bytes before the key.
pub(crate) const HEADER: usize = 32;
/// Records begin at multiples of this.
pub(crate) const ALIGN: usize = 8;

/// Bytes of the length of the attributes, where there are any.
const BLOCK_HEADER: usize = 2;
const EXPIRY_BITS: u32 = 48;
const EXPIRY_MASK: u64 = (1 << EXPIRY_BITS) - 1;
const TOMBSTONE: u64 = (Flags::new(1).tombstone().bits() as u64) << EXPIRY_BITS;
const ATTRIBUTES: u64 = (Flags::ATTRIBUTES_FOLLOW as u64) << EXPIRY_BITS;

const _: () =
    assert!(HEADER.is_multiple_of(ALIGN) && KEY_MAX <= u16::MAX as usize && ATTRIBUTES_MAX <= u16::MAX as usize);
const _: () = assert!(TOMBSTONE.count_ones() == 1 && TOMBSTONE & ATTRIBUTES == 0);

/// What a record is written from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draft<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    pub(crate) version: Version,
    /// Milliseconds since the Unix epoch, 0 = never.
    pub(crate) expires_at_ms: u64,
    pub(crate) flags: Flags,
    /// Up to [`ATTRIBUTES_MAX`] bytes; empty for none.
    pub(crate) attributes: &'a [u8],
}

/// Bytes that a record takes in the log.
pub(crate) const fn size(key_len: usize, attributes_len: usize, value_len: usize) -> usize {
    (HEADER + key_len + block_size(attributes_len) + value_len).next_multiple_of(ALIGN)
}

/// Bytes between key and value.
const fn block_size(attributes_len: usize) -> usize {
    if attributes_len == 0 { 0 } else { BLOCK_HEADER + attributes_len }
}

impl<'a> Draft<'a> {
    /// The draft of a record from outside, of which the caller has checked the lengths.
    #[inline]
    pub(crate) fn of(record: &koltso_model::Record<&'a [u8]>) -> Self {
        Self {
            key: record.key.slice(),
            value: record.value,
            version: record.version,
            expires_at_ms: record.expires_at_ms,
            flags: record.flags,
            attributes: record.attributes,
        }
    }

    /// Compares every length with its maximum. This is the one place that knows what a writer
    /// takes.
    #[inline]
    pub(crate) fn check(&self, value_max: usize) -> Result<(), WriteError> {
        if self.key.is_empty() || self.key.len() > KEY_MAX {
            return Err(WriteError::Key { len: self.key.len(), max: KEY_MAX });
        }
        if self.value.len() > value_max {
            return Err(WriteError::Value { len: self.value.len(), max: value_max });
        }
        if !self.attributes.is_empty() {
            Attributes::parse(self.attributes)?;
        }
        Ok(())
    }

    pub(crate) const fn size(&self) -> usize {
        size(self.key.len(), self.attributes.len(), self.value.len())
    }

    /// Writes the record. `out` has exactly [`Draft::size`] bytes; `seed` belongs to the place, see
    /// [`seed`]. The first 8 bytes come last and at once: a page may go to disk at any moment, and a
    /// record that was not finished then has to be told from a damaged one.
    pub(crate) fn write(&self, out: &mut [u8], seed: u32) {
        assert_eq!(out.len(), self.size());
        let (head, rest) = out.split_at_mut(HEADER);
        let (key, rest) = rest.split_at_mut(self.key.len());
        let (block, rest) = rest.split_at_mut(block_size(self.attributes.len()));
        let (value, padding) = rest.split_at_mut(self.value.len());
        key.copy_from_slice(self.key);
        value.copy_from_slice(self.value);
        padding.fill(0);
        let mut last = (u64::from(self.flags.bits()) << EXPIRY_BITS) & !ATTRIBUTES;
        if let Some((len, attributes)) = block.split_first_chunk_mut::<BLOCK_HEADER>() {
            *len = (self.attributes.len() as u16).to_le_bytes();
            attributes.copy_from_slice(self.attributes);
            last |= ATTRIBUTES;
        }
        let mut made = [0; HEADER];
        made[4..8].copy_from_slice(&crc32c::crc32c(self.value).to_le_bytes());
        made[8..16].copy_from_slice(&self.version.clock.to_le_bytes());
        made[16..18].copy_from_slice(&self.version.node.to_le_bytes());
        made[18..20].copy_from_slice(&(self.key.len() as u16).to_le_bytes());
        made[20..24].copy_from_slice(&(self.value.len() as u32).to_le_bytes());
        made[24..32].copy_from_slice(&((self.expires_at_ms & EXPIRY_MASK) | last).to_le_bytes());
        let mut crc = crc32c::crc32c_append(crc32c::crc32c_append(seed, &made[4..]), self.key);
        if !block.is_empty() {
            crc = crc32c::crc32c_append(crc, block);
        }
        made[..4].copy_from_slice(&crc.to_le_bytes());
        head[8..].copy_from_slice(&made[8..]);
        // The processor keeps stores in order; this keeps the compiler from changing it.
        compiler_fence(Ordering::Release);
        head[..8].copy_from_slice(&made[..8]);
    }
}

/// Where the header checksum of a record starts from: the segment's salt mixed with the record's
/// offset.
pub(crate) const fn seed(salt: u32, offset: u32) -> u32 {
    salt ^ offset
}

/// Why there is no record at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Zeros: nothing was ever written here.
    Blank,
    /// Something is here, but not a record.
    Damaged,
}

/// A record whose lengths were checked; its checksums were not, unless it came from
/// [`Record::checked`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    bytes: &'a [u8],
    key_len: u16,
    /// Bytes between key and value.
    block_len: u16,
    value_len: u32,
}

impl<'a> Record<'a> {
    /// The record that begins at the start of `bytes`, which may go on beyond it. Checks the
    /// lengths only.
    #[inline]
    pub(crate) fn view(bytes: &'a [u8]) -> Result<Self, Fault> {
        if bytes.len() < HEADER {
            return Err(Fault::Blank);
        }
        let (key_len, value_len) = (u16::from_le_bytes([bytes[18], bytes[19]]), u32_at(bytes, 20));
        if key_len == 0 && value_len == 0 && bytes[..HEADER].iter().all(|&b| b == 0) {
            return Err(Fault::Blank);
        }
        if key_len == 0 || usize::from(key_len) > KEY_MAX || value_len > VALUE_MAX_LIMIT as u32 {
            return Err(Fault::Damaged);
        }
        let block_len =
            if u64_at(bytes, 24) & ATTRIBUTES == 0 { 0 } else { block_len(&bytes[HEADER..], usize::from(key_len))? };
        // None of the three is so long that their sum could overflow.
        let size = HEADER + usize::from(key_len) + usize::from(block_len) + value_len as usize;
        if size > bytes.len() {
            return Err(Fault::Damaged);
        }
        Ok(Self { bytes: &bytes[..size], key_len, block_len, value_len })
    }

    /// The record at the start of `bytes` if its header, key and attributes are what was written at
    /// this place.
    pub(crate) fn checked(bytes: &'a [u8], seed: u32) -> Result<Self, Fault> {
        let record = Self::view(bytes)?;
        if record.header_intact(seed) { Ok(record) } else { Err(Fault::Damaged) }
    }

    /// Whether header, key and attributes are what was written.
    #[inline]
    pub(crate) fn header_intact(&self, seed: u32) -> bool {
        crc32c::crc32c_append(seed, &self.bytes[4..self.value_start()]) == u32_at(self.bytes, 0)
            && self.version().clock != 0
    }

    /// Whether the value is what was written.
    #[inline]
    pub(crate) fn value_intact(&self) -> bool {
        crc32c::crc32c(self.value()) == self.value_crc()
    }

    pub(crate) fn value_crc(&self) -> u32 {
        u32_at(self.bytes, 4)
    }

    #[inline]
    pub(crate) fn key(&self) -> &'a [u8] {
        &self.bytes[HEADER..HEADER + usize::from(self.key_len)]
    }

    /// Empty where there are none.
    #[inline]
    pub(crate) fn attributes(&self) -> &'a [u8] {
        let block = &self.bytes[HEADER + usize::from(self.key_len)..self.value_start()];
        block.get(BLOCK_HEADER..).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn value(&self) -> &'a [u8] {
        &self.bytes[self.value_start()..]
    }

    #[inline]
    pub(crate) fn value_start(&self) -> usize {
        HEADER + usize::from(self.key_len) + usize::from(self.block_len)
    }

    #[inline]
    pub(crate) fn version(&self) -> Version {
        Version::new(u64_at(self.bytes, 8), u16::from_le_bytes([self.bytes[16], self.bytes[17]]))
    }

    /// As they were given to the draft; that attributes follow is not among them.
    #[inline]
    pub(crate) fn flags(&self) -> Flags {
        Flags::from_bits(((u64_at(self.bytes, 24) & !ATTRIBUTES) >> EXPIRY_BITS) as u16)
    }

    #[inline]
    pub(crate) fn is_tombstone(&self) -> bool {
        u64_at(self.bytes, 24) & TOMBSTONE != 0
    }

    /// Milliseconds since the Unix epoch, 0 = never.
    #[inline]
    pub(crate) fn expires_at_ms(&self) -> u64 {
        u64_at(self.bytes, 24) & EXPIRY_MASK
    }

    /// Whether a reader at `now_ms` finds no value here.
    #[inline]
    pub(crate) fn is_absent(&self, now_ms: u64) -> bool {
        let flags = u64_at(self.bytes, 24);
        let expiry = flags & EXPIRY_MASK;
        flags & TOMBSTONE != 0 || (expiry != 0 && expiry <= now_ms)
    }

    /// Bytes in the log, padding included.
    #[inline]
    pub(crate) fn size(&self) -> usize {
        (self.value_start() + self.value_len as usize).next_multiple_of(ALIGN)
    }

    /// The same record as a draft, for copying it elsewhere.
    pub(crate) fn draft(&self) -> Draft<'a> {
        Draft {
            key: self.key(),
            value: self.value(),
            version: self.version(),
            expires_at_ms: self.expires_at_ms(),
            flags: self.flags(),
            attributes: self.attributes(),
        }
    }
}

/// Bytes between a key of `key_len` bytes and its value, from their own length.
#[cold]
fn block_len(bytes: &[u8], key_len: usize) -> Result<u16, Fault> {
    let len = bytes.get(key_len..key_len + BLOCK_HEADER).ok_or(Fault::Damaged)?;
    let len = u16::from_le_bytes([len[0], len[1]]);
    if len == 0 || usize::from(len) > ATTRIBUTES_MAX {
        return Err(Fault::Damaged);
    }
    Ok(len + BLOCK_HEADER as u16)
}

/// Parses arbitrary bytes as a record, touches everything a reader would, and writes a record whose
/// value is intact again, for fuzzing. The lengths of its key, attributes and value.
#[doc(hidden)]
pub fn fuzz_record(bytes: &[u8], seed: u32) -> Option<(usize, usize, usize)> {
    let record = Record::checked(bytes, seed).ok()?;
    let _ = (record.version(), record.is_absent(1));
    let draft = record.draft();
    assert_eq!(draft.size(), record.size());
    if record.value_intact() {
        let mut copy = vec![0xff; draft.size()];
        draft.write(&mut copy, seed);
        assert_eq!(&copy[..record.bytes.len()], record.bytes, "what is read has one encoding");
    }
    Some((record.key().len(), record.attributes().len(), record.value().len()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64};
    use std::time::{Duration, Instant};

    use super::*;

    const SEED: u32 = seed(5, 64);

    const PLAIN: Draft<'_> = Draft {
        key: b"key",
        value: b"value!",
        version: Version::new(77, 3),
        expires_at_ms: 9,
        flags: Flags::new(3),
        attributes: &[],
    };
    /// A flag and an attribute of kind 200 that nothing has a meaning for.
    const UNKNOWN: Draft<'_> =
        Draft { flags: Flags::from_bits(0x4a0a), attributes: &[1, 1, b'x', 200, 2, 7, 7], ..PLAIN };

    fn written(draft: &Draft<'_>) -> Vec<u8> {
        let mut bytes = vec![0xff; draft.size()];
        draft.write(&mut bytes, SEED);
        bytes
    }

    /// Found by a power loss of the simulated disk, which had a header whose second four bytes were
    /// there and whose first were not.
    #[test]
    #[allow(unsafe_code)]
    fn whoever_sees_the_first_word_sees_all_of_it() {
        let size = PLAIN.size();
        let words: Vec<AtomicU64> = (0..size / 8).map(|_| AtomicU64::new(0)).collect();
        let stop = AtomicBool::new(false);
        let (mut seen, mut half) = ([0_u64; 2], None);
        let whole = u64::from_le_bytes(*written(&PLAIN).first_chunk().expect("a word"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: the words live until the scope ends, and only atomics look at them meanwhile.
                let out = unsafe { std::slice::from_raw_parts_mut(words.as_ptr().cast::<u8>().cast_mut(), size) };
                while !stop.load(Ordering::Relaxed) {
                    PLAIN.write(out, SEED);
                    std::hint::black_box(&out);
                    words[0].store(0, Ordering::Release);
                }
            });
            let began = Instant::now();
            while half.is_none() && began.elapsed() < Duration::from_secs(if seen.contains(&0) { 60 } else { 1 }) {
                let first = words[0].load(Ordering::Acquire);
                seen[usize::from(first != 0)] += 1;
                half = Some(first).filter(|&first| first != 0 && first != whole);
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(half.is_none() && !seen.contains(&0), "{half:016x?} of {whole:016x}, seen {seen:?}");
    }

    #[test]
    fn a_record_reads_back_as_written() {
        let bytes = written(&PLAIN);
        let record = Record::checked(&bytes, SEED).expect("intact");
        assert_eq!((record.key(), record.value()), (&b"key"[..], &b"value!"[..]));
        assert_eq!((record.version(), record.expires_at_ms()), (Version::new(77, 3), 9));
        assert!(record.value_intact() && !record.is_tombstone() && record.is_absent(9) && !record.is_absent(8));
        assert_eq!((record.flags(), record.attributes()), (Flags::new(3), &[][..]));
        assert_eq!(record.size(), 48);
    }

    #[test]
    fn unknown_flags_and_attributes_read_back_and_are_in_a_copy() {
        let bytes = written(&UNKNOWN);
        let record = Record::checked(&bytes, SEED).expect("intact");
        assert_eq!((record.key(), record.value()), (&b"key"[..], &b"value!"[..]));
        assert_eq!((record.flags(), record.attributes()), (UNKNOWN.flags, UNKNOWN.attributes));
        assert_eq!((record.size(), bytes.len()), (56, 56));
        assert_eq!(written(&record.draft()), bytes);
    }

    #[test]
    fn that_attributes_follow_is_told_by_the_attributes_alone() {
        let flags = Flags::from_bits(Flags::ATTRIBUTES_FOLLOW | 1);
        let bytes = written(&Draft { flags, ..PLAIN });
        let record = Record::checked(&bytes, SEED).expect("intact");
        assert_eq!((record.flags(), record.attributes()), (Flags::from_bits(1), &[][..]));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        for draft in [PLAIN, UNKNOWN] {
            let bytes = written(&draft);
            let end = HEADER + draft.key.len() + block_size(draft.attributes.len()) + draft.value.len();
            for bit in 0..end * 8 {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                let intact = Record::checked(&damaged, SEED).is_ok_and(|r| r.value_intact());
                assert!(!intact, "bit {bit} went unnoticed");
            }
        }
    }

    #[test]
    fn the_head_can_be_trusted_where_the_value_is_damaged() {
        let mut bytes = written(&UNKNOWN);
        let last = HEADER + UNKNOWN.key.len() + block_size(UNKNOWN.attributes.len()) + UNKNOWN.value.len() - 1;
        bytes[last] ^= 1;
        let record = Record::checked(&bytes, SEED).expect("an intact head");
        assert_eq!((record.attributes(), record.value_intact()), (UNKNOWN.attributes, false));
    }

    #[test]
    fn a_record_is_none_at_another_place_or_in_another_segment() {
        let bytes = written(&PLAIN);
        assert_eq!(Record::checked(&bytes, seed(5, 72)).err(), Some(Fault::Damaged));
        assert_eq!(Record::checked(&bytes, seed(6, 64)).err(), Some(Fault::Damaged));
    }

    #[test]
    fn zeros_are_blank_and_lengths_are_not_trusted() {
        assert_eq!(Record::view(&[0; 64]).err(), Some(Fault::Blank));
        let damaged = |at: usize, with: &[u8]| {
            let mut bytes = written(&UNKNOWN);
            // So that it is the maximum that is in the way, not the end of the bytes.
            bytes.resize(64 << 20, 0);
            bytes[at..at + with.len()].copy_from_slice(with);
            Record::view(&bytes).err() == Some(Fault::Damaged)
        };
        assert!(damaged(20, &u32::MAX.to_le_bytes()));
        assert!(damaged(20, &(VALUE_MAX_LIMIT as u32 + 1).to_le_bytes()));
        assert!(!damaged(20, &(VALUE_MAX_LIMIT as u32).to_le_bytes()));
        assert!(damaged(18, &(KEY_MAX as u16 + 1).to_le_bytes()));
        assert!(damaged(35, &(ATTRIBUTES_MAX as u16 + 1).to_le_bytes()));
        assert!(damaged(35, &[0, 0]), "attributes of no bytes are not written");
        let bytes = written(&UNKNOWN);
        for end in [HEADER - 1, HEADER + 3, HEADER + 4, HEADER + 5, HEADER + 10] {
            assert!(Record::view(&bytes[..end]).is_err(), "cut off at {end}");
        }
    }
}

//! One record of the log: how a key, its version and its value lie in bytes.
//!
//! ```text
//! 0   u32  header checksum: CRC-32C of bytes 4..32+key_len, started from the segment's salt and the record's offset
//! 4   u32  value checksum: CRC-32C of the value
//! 8   u64  version: hybrid logical clock, never 0
//! 16  u16  version: node
//! 18  u16  key length, 1..=4096
//! 20  u32  value length
//! 24  u64  bits 0..48: expiry in ms since the Unix epoch, 0 = never; bit 48: tombstone; bits 49..64: 0
//! 32       key, value, zeros up to a multiple of 8
//! ```
//!
//! All integers are little-endian. Invariants:
//! 1. The header checksum depends on where the record lies, so bytes that look like a record (a value that a client
//!    crafted, a block that the disk put elsewhere, an older life of the file) are not one.
//! 2. A view is only made after the lengths were compared with their maxima and with the bytes that are there.
//! 3. The key and the version of a record with an intact header can be trusted even where its value is damaged.
//!
//! Tested in this file, in `tests/` beside a model, and by the `record` and `recovery` fuzz targets.

use koltso_model::{KEY_MAX, Version};

/// Bytes before the key.
pub(crate) const HEADER: usize = 32;
/// Records begin at multiples of this.
pub(crate) const ALIGN: usize = 8;

const EXPIRY_MASK: u64 = (1 << 48) - 1;
const TOMBSTONE: u64 = 1 << 48;
const FLAGS_KNOWN: u64 = EXPIRY_MASK | TOMBSTONE;

const _: () = assert!(HEADER.is_multiple_of(ALIGN) && KEY_MAX <= u16::MAX as usize);

/// What a record is written from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draft<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    pub(crate) version: Version,
    /// Milliseconds since the Unix epoch, 0 = never.
    pub(crate) expires_at_ms: u64,
    pub(crate) tombstone: bool,
}

/// Bytes that a record takes in the log.
pub(crate) const fn size(key_len: usize, value_len: usize) -> usize {
    (HEADER + key_len + value_len).next_multiple_of(ALIGN)
}

impl Draft<'_> {
    pub(crate) const fn size(&self) -> usize {
        size(self.key.len(), self.value.len())
    }

    /// Writes the record. `out` has exactly [`Draft::size`] bytes; `seed` belongs to the place, see [`seed`].
    pub(crate) fn write(&self, out: &mut [u8], seed: u32) {
        assert_eq!(out.len(), self.size());
        let (head, rest) = out.split_at_mut(HEADER);
        let (key, rest) = rest.split_at_mut(self.key.len());
        let (value, padding) = rest.split_at_mut(self.value.len());
        key.copy_from_slice(self.key);
        value.copy_from_slice(self.value);
        padding.fill(0);
        let flags = if self.tombstone { TOMBSTONE } else { 0 };
        head[4..8].copy_from_slice(&crc32c::crc32c(self.value).to_le_bytes());
        head[8..16].copy_from_slice(&self.version.clock.to_le_bytes());
        head[16..18].copy_from_slice(&self.version.node.to_le_bytes());
        head[18..20].copy_from_slice(&(self.key.len() as u16).to_le_bytes());
        head[20..24].copy_from_slice(&(self.value.len() as u32).to_le_bytes());
        head[24..32].copy_from_slice(&((self.expires_at_ms & EXPIRY_MASK) | flags).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(seed, &head[4..]), self.key);
        head[..4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Where the header checksum of a record starts from: the segment's salt mixed with the record's offset.
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

/// A record whose lengths were checked; its checksums were not, unless it came from [`Record::checked`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    bytes: &'a [u8],
    key_len: u16,
    value_len: u32,
}

// Copied as a whole: from single bytes the compiler makes single loads.
#[inline]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut le = [0; 4];
    le.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(le)
}

#[inline]
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut le = [0; 8];
    le.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(le)
}

impl<'a> Record<'a> {
    /// The record that begins at the start of `bytes`, which may go on beyond it. Checks the lengths only.
    #[inline]
    pub(crate) fn view(bytes: &'a [u8]) -> Result<Self, Fault> {
        if bytes.len() < HEADER {
            return Err(Fault::Blank);
        }
        let (key_len, value_len) = (u16::from_le_bytes([bytes[18], bytes[19]]), u32_at(bytes, 20));
        if key_len == 0 && value_len == 0 && bytes[..HEADER].iter().all(|&b| b == 0) {
            return Err(Fault::Blank);
        }
        let size = HEADER as u64 + u64::from(key_len) + u64::from(value_len);
        if key_len == 0 || usize::from(key_len) > KEY_MAX || size > bytes.len() as u64 {
            return Err(Fault::Damaged);
        }
        Ok(Self { bytes: &bytes[..size as usize], key_len, value_len })
    }

    /// The record at the start of `bytes` if its header and key are what was written at this place.
    pub(crate) fn checked(bytes: &'a [u8], seed: u32) -> Result<Self, Fault> {
        let record = Self::view(bytes)?;
        if record.header_intact(seed) { Ok(record) } else { Err(Fault::Damaged) }
    }

    /// Whether header and key are what was written.
    #[inline]
    pub(crate) fn header_intact(&self, seed: u32) -> bool {
        let end = HEADER + usize::from(self.key_len);
        crc32c::crc32c_append(seed, &self.bytes[4..end]) == u32_at(self.bytes, 0)
            && self.version().clock != 0
            && u64_at(self.bytes, 24) & !FLAGS_KNOWN == 0
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

    #[inline]
    pub(crate) fn value(&self) -> &'a [u8] {
        &self.bytes[HEADER + usize::from(self.key_len)..]
    }

    pub(crate) fn value_start(&self) -> usize {
        HEADER + usize::from(self.key_len)
    }

    #[inline]
    pub(crate) fn version(&self) -> Version {
        Version::new(u64_at(self.bytes, 8), u16::from_le_bytes([self.bytes[16], self.bytes[17]]))
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

    /// Since when this record only says that the key is absent, in ms since the Unix epoch; `None` while it has a value.
    pub(crate) fn absent_since_ms(&self, now_ms: u64) -> Option<u64> {
        if self.is_tombstone() {
            return Some(self.version().unix_ms());
        }
        Some(self.expires_at_ms()).filter(|&expiry| expiry != 0 && expiry <= now_ms)
    }

    /// Bytes in the log, padding included.
    #[inline]
    pub(crate) fn size(&self) -> usize {
        size(usize::from(self.key_len), self.value_len as usize)
    }

    /// The same record as a draft, for copying it elsewhere.
    pub(crate) fn draft(&self) -> Draft<'a> {
        Draft {
            key: self.key(),
            value: self.value(),
            version: self.version(),
            expires_at_ms: self.expires_at_ms(),
            tombstone: self.is_tombstone(),
        }
    }
}

/// Parses arbitrary bytes as a record and touches everything a reader would, for fuzzing.
#[doc(hidden)]
pub fn fuzz_record(bytes: &[u8], seed: u32) -> Option<(usize, usize)> {
    let record = Record::checked(bytes, seed).ok()?;
    let _ = (record.version(), record.value_intact(), record.is_absent(1), record.size());
    Some((record.key().len(), record.value().len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let draft =
            Draft { key: b"key", value: b"value!", version: Version::new(77, 3), expires_at_ms: 9, tombstone: false };
        let mut bytes = vec![0xff; draft.size()];
        draft.write(&mut bytes, seed(5, 64));
        bytes
    }

    #[test]
    fn a_record_reads_back_as_written() {
        let bytes = sample();
        let record = Record::checked(&bytes, seed(5, 64)).expect("intact");
        assert_eq!((record.key(), record.value()), (&b"key"[..], &b"value!"[..]));
        assert_eq!((record.version(), record.expires_at_ms()), (Version::new(77, 3), 9));
        assert!(record.value_intact() && !record.is_tombstone() && record.is_absent(9) && !record.is_absent(8));
        assert_eq!(record.size(), 48);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = sample();
        for bit in 0..(HEADER + 9) * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let intact = Record::checked(&damaged, seed(5, 64)).is_ok_and(|r| r.value_intact());
            assert!(!intact, "bit {bit} went unnoticed");
        }
    }

    #[test]
    fn a_record_is_none_at_another_place_or_in_another_segment() {
        let bytes = sample();
        assert_eq!(Record::checked(&bytes, seed(5, 72)).err(), Some(Fault::Damaged));
        assert_eq!(Record::checked(&bytes, seed(6, 64)).err(), Some(Fault::Damaged));
    }

    #[test]
    fn zeros_are_blank_and_lengths_are_not_trusted() {
        assert_eq!(Record::view(&[0; 64]).err(), Some(Fault::Blank));
        let mut bytes = sample();
        bytes[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Record::view(&bytes).err(), Some(Fault::Damaged));
    }
}

//! The bytes of a hint log: the header of a segment, an entry, and the file `confirmed`. See
//! `docs/hint-format.md`.
//!
//! ```text
//! segment                        entry                            confirmed
//! 0   8 bytes  `KOLTSOHN`        0   u32  length of what          0   8 bytes  `KOLTSOHC`
//!                                         follows 8
//! 8   u32      format            4   u32  checksum                8   u32      format
//! 12  u32      checksum of the   8   u64  written, Unix ms        12  u32      checksum of
//!              header                                                          the rest
//! 16  u64      sequence, as in   16  u64  version, clock          16  u64      sequence of
//!              the name                                                        a segment
//! 24  u32      salt, random      24  u16  version, node           24  u64      offset in it
//! 28  u32      zero              26  u16  key length
//! 32  entries, without gaps      28  u16  flags, as in the record
//!                                30  u16  length of the attributes
//!                                32  u64  expiry, Unix ms, 0 never
//!                                40  key, attributes, value
//! ```
//!
//! An entry's checksum starts from the salt and the entry's offset, so bytes that only look like an
//! entry (a value that a client crafted, an older use of the block) are not taken for one. The only
//! I/O is through `Read`. Invariant: a length is compared with the maximum and with the rest of the
//! file before anything is reserved for it, then the checksum is verified, then the length is used
//! in arithmetic.

use std::io::{self, Read};

use bytes::Bytes;
use koltso_model::{ATTRIBUTES_MAX, Attributes, Flags, KEY_MAX, Key, Record, VALUE_MAX_LIMIT, Version};

/// The format of hint segments that this build writes, and the newest that it reads.
pub const FORMAT: u32 = 2;
/// The longest entry, in bytes.
pub const ENTRY_MAX: u64 = (ENTRY_HEADER + KEY_MAX + ATTRIBUTES_MAX + VALUE_MAX_LIMIT) as u64;

/// Bytes of a segment's header.
pub(crate) const HEADER: u64 = 32;
const ENTRY_HEADER: usize = 40;
/// Bytes at the beginning of an entry that its `length` does not count.
const PREFIX: usize = 8;
const MAGIC: [u8; 8] = *b"KOLTSOHN";
const MAGIC_CONFIRMED: [u8; 8] = *b"KOLTSOHC";

const _: () = assert!(KEY_MAX <= u16::MAX as usize && ENTRY_MAX <= u32::MAX as u64);

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// 32 bytes with a magic and a format. The checksum is at the same place in every format, so that
/// damage is not taken for a newer format.
fn frame(magic: [u8; 8], format: u32, first: u64, second: u64) -> [u8; HEADER as usize] {
    let mut bytes = [0; HEADER as usize];
    bytes[..8].copy_from_slice(&magic);
    bytes[8..12].copy_from_slice(&format.to_le_bytes());
    bytes[16..24].copy_from_slice(&first.to_le_bytes());
    bytes[24..32].copy_from_slice(&second.to_le_bytes());
    let crc = frame_crc(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn frame_crc(bytes: &[u8; HEADER as usize]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..])
}

pub(crate) fn segment_header(sequence: u64, salt: u32) -> [u8; HEADER as usize] {
    frame(MAGIC, FORMAT, sequence, u64::from(salt))
}

/// What the first bytes of a segment file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// The header of a segment in this format, with its salt.
    Ours { salt: u32 },
    /// The header of a segment in this newer format, which a later build wrote.
    Newer(u32),
    /// Not the header of a segment with this sequence number.
    Damaged,
}

pub(crate) fn read_segment_header(bytes: &[u8; HEADER as usize], sequence: u64) -> Header {
    let format = u32_at(bytes, 8);
    if bytes[..8] != MAGIC || u32_at(bytes, 12) != frame_crc(bytes) {
        return Header::Damaged;
    }
    match (format > FORMAT, u64_at(bytes, 16) == sequence && u32_at(bytes, 28) == 0) {
        (true, _) => Header::Newer(format),
        (false, true) if format == FORMAT => Header::Ours { salt: u32_at(bytes, 24) },
        (false, _) => Header::Damaged,
    }
}

/// A position in the log up to which everything is confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub sequence: u64,
    pub offset: u64,
}

pub(crate) fn confirmed(at: Position) -> [u8; HEADER as usize] {
    frame(MAGIC_CONFIRMED, FORMAT, at.sequence, at.offset)
}

/// Reads a position; `None` if it is torn, damaged or of another format, so that more is replayed
/// than necessary.
pub(crate) fn read_confirmed(bytes: &[u8]) -> Option<Position> {
    let bytes: &[u8; HEADER as usize] = bytes.try_into().ok()?;
    let intact = bytes[..8] == MAGIC_CONFIRMED && u32_at(bytes, 12) == frame_crc(bytes) && u32_at(bytes, 8) == FORMAT;
    intact.then(|| Position { sequence: u64_at(bytes, 16), offset: u64_at(bytes, 24) })
}

/// The bytes that a record's entry takes; `None` if the log cannot hold the record, which does not
/// happen to records of the API.
pub(crate) fn size(record: &Record<Bytes>) -> Option<u64> {
    let fits = (1..=KEY_MAX).contains(&record.key.bytes().len())
        && record.value.len() <= VALUE_MAX_LIMIT
        && record.version.clock != 0
        && (record.value.is_empty() || !record.flags.is_tombstone())
        && Attributes::parse(&record.attributes).is_ok();
    fits.then(|| (ENTRY_HEADER + record.len()) as u64)
}

fn checksum(salt: u32, offset: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(salt ^ offset as u32, &bytes[..4]), &bytes[PREFIX..])
}

/// Appends the entry that will be at `offset` of its segment. The record must have a [`size`].
pub(crate) fn encode(out: &mut Vec<u8>, record: &Record<Bytes>, written_ms: u64, salt: u32, offset: u64) {
    let begin = out.len();
    let length = ENTRY_HEADER - PREFIX + record.len();
    out.extend_from_slice(&(length as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&written_ms.to_le_bytes());
    out.extend_from_slice(&record.version.clock.to_le_bytes());
    out.extend_from_slice(&record.version.node.to_le_bytes());
    out.extend_from_slice(&(record.key.bytes().len() as u16).to_le_bytes());
    out.extend_from_slice(&record.flags.bits().to_le_bytes());
    out.extend_from_slice(&(record.attributes.len() as u16).to_le_bytes());
    out.extend_from_slice(&record.expires_at_ms.to_le_bytes());
    out.extend_from_slice(record.key.bytes());
    out.extend_from_slice(&record.attributes);
    out.extend_from_slice(&record.value);
    let crc = checksum(salt, offset, &out[begin..]);
    out[begin + 4..begin + 8].copy_from_slice(&crc.to_le_bytes());
}

/// An intact entry.
#[derive(Debug)]
pub(crate) struct Entry {
    pub record: Record<Bytes>,
    pub written_ms: u64,
    /// The offset at which the next entry begins.
    pub end: u64,
}

/// Reads one entry after another, from the beginning of an entry to the end of the file or the
/// first bytes that are not an entry.
pub(crate) struct Scanner<R> {
    input: R,
    offset: u64,
    file_end: u64,
    salt: u32,
}

impl<R: Read> Scanner<R> {
    /// Starts with `input` at `offset` of a file of `file_end` bytes.
    pub(crate) fn new(input: R, offset: u64, file_end: u64, salt: u32) -> Self {
        Self { input, offset, file_end, salt }
    }

    /// The offset at which the next entry would begin.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next entry; `None` at the end and at damage, which [`Self::offset`] tells apart.
    ///
    /// # Errors
    /// Errors of the reader, and its end before `file_end`.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        let left = self.file_end.saturating_sub(self.offset);
        if left < ENTRY_HEADER as u64 {
            return Ok(None);
        }
        let mut head = [0; ENTRY_HEADER];
        self.input.read_exact(&mut head)?;
        let length = u64::from(u32_at(&head, 0));
        let least = (ENTRY_HEADER - PREFIX) as u64;
        if length <= least || length > ENTRY_MAX - PREFIX as u64 || length > left - PREFIX as u64 {
            return Ok(None);
        }
        let mut body = vec![0; (length - least) as usize];
        self.input.read_exact(&mut body)?;
        let crc = crc32c::crc32c_append(checksum(self.salt, self.offset, &head), &body);
        if crc != u32_at(&head, 4) {
            return Ok(None);
        }
        let (key_len, attributes_len) = (usize::from(u16_at(&head, 26)), usize::from(u16_at(&head, 30)));
        if key_len + attributes_len > body.len() {
            return Ok(None);
        }
        let mut key = Bytes::from(body);
        let mut attributes = key.split_off(key_len);
        let value = attributes.split_off(attributes_len);
        let record = Record {
            key: Key::new(key),
            value,
            attributes,
            version: Version::new(u64_at(&head, 16), u16_at(&head, 24)),
            expires_at_ms: u64_at(&head, 32),
            flags: Flags::from_bits(u16_at(&head, 28)),
        };
        if size(&record) != Some(PREFIX as u64 + length) {
            return Ok(None);
        }
        self.offset += PREFIX as u64 + length;
        Ok(Some(Entry { record, written_ms: u64_at(&head, 8), end: self.offset }))
    }
}

/// The body of the fuzz target, for a whole segment file with sequence number 1. Returns how many
/// entries are intact and where the last one ends; `None` if the header is not one of ours. The
/// entries found are encoded again and must give the same bytes.
#[doc(hidden)]
#[must_use]
pub fn fuzz_segment(bytes: &[u8]) -> Option<(usize, u64)> {
    let _ = read_confirmed(bytes);
    let Header::Ours { salt } = read_segment_header(bytes.first_chunk()?, 1) else {
        return None;
    };
    let mut scanner = Scanner::new(&bytes[HEADER as usize..], HEADER, bytes.len() as u64, salt);
    let (mut count, mut again) = (0, Vec::new());
    while let Some(entry) = scanner.next().expect("a slice does not end early") {
        let offset = HEADER + again.len() as u64;
        encode(&mut again, &entry.record, entry.written_ms, salt, offset);
        assert_eq!(entry.end, HEADER + again.len() as u64, "no gaps");
        count += 1;
    }
    let end = scanner.offset();
    assert_eq!(bytes[HEADER as usize..end as usize], again[..], "an entry has one form");
    Some((count, end))
}

/// Sets the checksums, which a fuzzer cannot guess: that of the header, and that of the entry at
/// `offset` if there can be one. Returns where that entry ends.
#[doc(hidden)]
pub fn fuzz_entry(bytes: &mut [u8], offset: usize) -> Option<usize> {
    let header: &mut [u8; HEADER as usize] = bytes.first_chunk_mut()?;
    *header = segment_header(1, u32_at(header, 24));
    let salt = u32_at(header, 24);
    let offset = offset.max(HEADER as usize);
    let entry = bytes.get_mut(offset..)?;
    let length = u32_at(entry.get(..ENTRY_HEADER)?, 0) as usize;
    let entry = entry.get_mut(..length.checked_add(PREFIX)?)?;
    if entry.len() <= ENTRY_HEADER {
        return None;
    }
    let crc = checksum(salt, offset as u64, entry);
    entry[4..8].copy_from_slice(&crc.to_le_bytes());
    Some(offset + entry.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &[u8], value: &[u8]) -> Record<Bytes> {
        let flags = Flags::new(3);
        Record {
            key: Key::new(Bytes::copy_from_slice(key)),
            value: Bytes::copy_from_slice(value),
            version: Version::new(0x0102_0304_0506_0708, 9),
            expires_at_ms: 77,
            flags: if value.is_empty() { flags.tombstone() } else { flags },
            attributes: Bytes::new(),
        }
    }

    /// The bytes are those in the table of `docs/hint-format.md`.
    #[test]
    fn the_bytes_are_those_of_the_document() {
        let mut bytes = Vec::new();
        let attributes = Bytes::from_static(&[1, 1, b'x']);
        encode(&mut bytes, &Record { attributes, ..record(b"key", b"") }, 5, 0xabcd, HEADER);
        let crc = u32_at(&bytes, 4);
        let expected: Vec<u8> = [
            &38_u32.to_le_bytes()[..],
            &crc.to_le_bytes(),
            &5_u64.to_le_bytes(),
            &0x0102_0304_0506_0708_u64.to_le_bytes(),
            &9_u16.to_le_bytes(),
            &3_u16.to_le_bytes(),
            &0b1001_u16.to_le_bytes(),
            &3_u16.to_le_bytes(),
            &77_u64.to_le_bytes(),
            b"key\x01\x01x",
        ]
        .concat();
        assert_eq!(bytes, expected);
        let summed: Vec<u8> = [&bytes[..4], &bytes[8..]].concat();
        assert_eq!(crc, crc32c::crc32c_append(0xabcd ^ 32, &summed));

        let header = segment_header(3, 0xabcd);
        assert_eq!((&header[..8], u32_at(&header, 8), u64_at(&header, 16)), (&b"KOLTSOHN"[..], 2, 3));
        assert_eq!(read_segment_header(&header, 3), Header::Ours { salt: 0xabcd });
        assert_eq!(read_segment_header(&header, 4), Header::Damaged, "renamed");
        assert_eq!(read_segment_header(&frame(MAGIC, 3, 3, 0), 3), Header::Newer(3));
        let mut damaged = header;
        damaged[8] = 3;
        assert_eq!(read_segment_header(&damaged, 3), Header::Damaged, "damage is not taken for a newer format");
    }

    #[test]
    fn a_position_is_read_back_or_not_believed() {
        let at = Position { sequence: 7, offset: 4096 };
        let bytes = confirmed(at);
        assert_eq!(read_confirmed(&bytes), Some(at));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_confirmed(&damaged), None);
        }
        assert_eq!(read_confirmed(&bytes[..31]), None);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let mut bytes = segment_header(1, 42).to_vec();
        for number in 0..3 {
            let offset = bytes.len() as u64;
            encode(&mut bytes, &record(&[b'k', number], &vec![7; usize::from(number) * 10]), 1, 42, offset);
        }
        assert_eq!(fuzz_segment(&bytes), Some((3, bytes.len() as u64)));
        for cut in 0..bytes.len() {
            let found = fuzz_segment(&bytes[..cut]);
            assert!(found.is_none_or(|(count, end)| count < 3 && end <= cut as u64));
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(fuzz_segment(&damaged).is_none_or(|(count, _)| count < 3), "bit {bit}");
        }
        let moved = [&bytes[..32], &bytes[32 + 42..]].concat();
        assert_eq!(fuzz_segment(&moved), Some((0, 32)), "an entry that is moved is none");
    }

    #[test]
    fn what_the_log_cannot_hold_has_no_size() {
        assert_eq!(size(&record(b"k", b"v")), Some(42));
        assert_eq!(size(&record(b"", b"v")), None);
        assert_eq!(size(&record(&[1; KEY_MAX + 1], b"v")), None);
        assert_eq!(size(&Record { version: Version::default(), ..record(b"k", b"v") }), None);
        assert_eq!(size(&Record { flags: Flags::new(1).tombstone(), ..record(b"k", b"v") }), None);
        assert_eq!(size(&Record { attributes: Bytes::from_static(&[1]), ..record(b"k", b"v") }), None);
    }
}

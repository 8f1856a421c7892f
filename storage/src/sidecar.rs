//! The sorted key order of a sealed segment, in a file beside it: quick recovery, sorted ranges, later anti-entropy.
//!
//! ```text
//! 0   8 bytes  "KOLTSOIX"               32  u32  entries            48  u64  oldest version's clock
//! 8   u32      format version, 2        36  u32  end of the records 56  u32  entries with a tombstone
//! 12  u32      CRC-32C of 16..128       40  u32  CRC-32C of entries 60  u32  entries with an expiry
//! 16  u64      sequence of the segment  44  u32  damaged places
//! 24  u32      salt of the segment      28  u32  zero
//! 64  u64      newest version's clock     72..128  zeros
//! 128          entries of 24 bytes, by key, the newest record of each key:
//!              u64 key hash, u64 version's clock,
//!              u64 from the low bits: 23 offset / 8, 23 size of the record / 8, 1 tombstone, 1 has an expiry, 16 node
//! ```
//!
//! The version is here and in the record, so that an older version is not taken for the newest where the record's header
//! is damaged.
//!
//! Written whole to a temporary name and renamed, only after the segment's own bytes were synced: a sidecar that is
//! there and intact means that its records are on disk. One that is not intact is ignored and made again.

use std::io;
use std::path::Path;

use koltso_model::Version;
use memmap2::Mmap;

use crate::env::Env;
use crate::hash::KeyHash;
use crate::record::{ALIGN, u32_at, u64_at};
use crate::segment::{SEGMENT_MAX, Segment, path_of};

const MAGIC: &[u8; 8] = b"KOLTSOIX";
const FORMAT: u32 = 2;
const HEADER: usize = 128;
/// Entries are written in pieces of this many bytes.
const BUFFER: usize = 64 << 10;
const ENTRY: usize = 24;
const PLACE_BITS: u32 = 23;
const PLACE_MASK: u64 = (1 << PLACE_BITS) - 1;
const TOMBSTONE: u64 = 1 << (2 * PLACE_BITS);
const EXPIRES: u64 = TOMBSTONE << 1;
const NODE_SHIFT: u32 = 2 * PLACE_BITS + 2;

const _: () = assert!(NODE_SHIFT + 16 == 64 && SEGMENT_MAX as u64 / ALIGN as u64 == 1 << PLACE_BITS);

/// One key of a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) hash: KeyHash,
    pub(crate) version: Version,
    pub(crate) offset: u32,
    pub(crate) size: u32,
    pub(crate) tombstone: bool,
    pub(crate) expires: bool,
}

#[derive(Debug)]
pub(crate) struct Sidecar {
    map: Mmap,
    count: u32,
    pub(crate) data_end: u32,
    pub(crate) damaged: u32,
    pub(crate) oldest_clock: u64,
    pub(crate) newest_clock: u64,
    pub(crate) tombstones: u32,
    pub(crate) expiring: u32,
}

impl Sidecar {
    /// Opens and verifies the sidecar of `segment`; `None` when there is none that can be trusted.
    #[allow(unsafe_code)]
    pub(crate) fn open(env: &dyn Env, folder: &Path, segment: &Segment) -> Option<Self> {
        let file = env.open_to_read(&path_of(folder, segment.sequence, "idx")).ok()?;
        let len = env.len(&file).ok()?;
        if len < HEADER as u64 || len > u64::from(u32::MAX) {
            return None;
        }
        // SAFETY: the file is written under another name and renamed here, never changed after; see the segment's
        // invariant 3 for what that cannot cover.
        let map = unsafe { env.map_unchanging(&file) }.ok()?;
        let head = &map[..HEADER];
        let (count, data_end) = (u32_at(head, 32), u32_at(head, 36));
        let intact = &head[..8] == MAGIC
            && u32_at(head, 8) == FORMAT
            && u32_at(head, 12) == crc32c::crc32c(&head[16..])
            && u64_at(head, 16) == segment.sequence
            && u32_at(head, 24) == segment.salt()
            && data_end <= segment.capacity()
            && len == HEADER as u64 + u64::from(count) * ENTRY as u64
            && u32_at(head, 40) == crc32c::crc32c(&map[HEADER..]);
        if !intact {
            return None;
        }
        let damaged = u32_at(head, 44);
        let (oldest_clock, newest_clock) = (u64_at(head, 48), u64_at(head, 64));
        let (tombstones, expiring) = (u32_at(head, 56), u32_at(head, 60));
        Some(Self { map, count, data_end, damaged, oldest_clock, newest_clock, tombstones, expiring })
    }

    /// Writes the sidecar of a segment whose records are `offsets`, sorted by key and newest first, one a key.
    pub(crate) fn write(
        env: &dyn Env,
        folder: &Path,
        segment: &Segment,
        offsets: &[u32],
        damaged: u32,
    ) -> io::Result<()> {
        let temporary = path_of(folder, segment.sequence, "idx-new");
        let result = Self::write_to(env, &temporary, segment, offsets, damaged)
            .and_then(|()| env.rename(&temporary, &path_of(folder, segment.sequence, "idx")));
        result.inspect_err(|_| {
            let _ = env.remove(&temporary);
        })
    }

    /// Entries first, a buffer at a time, then the header over the place that was left for it.
    fn write_to(env: &dyn Env, path: &Path, segment: &Segment, offsets: &[u32], damaged: u32) -> io::Result<()> {
        let file = env.create(path)?;
        let (mut out, mut at) = (Vec::with_capacity(BUFFER), HEADER as u64);
        let (mut count, mut entries_crc) = (0_u32, 0_u32);
        let (mut oldest, mut newest) = (u64::MAX, 0_u64);
        let (mut tombstones, mut expiring) = (0_u32, 0_u32);
        for &offset in offsets {
            let Ok(record) = segment.record(offset) else {
                continue;
            };
            oldest = oldest.min(record.version().clock);
            newest = newest.max(record.version().clock);
            // A record is smaller than its segment, so both numbers are below 2^23.
            let mut place = u64::from(offset / ALIGN as u32);
            place |= (((record.size() / ALIGN) as u64) & PLACE_MASK) << PLACE_BITS;
            place |= u64::from(record.version().node) << NODE_SHIFT;
            if record.is_tombstone() {
                place |= TOMBSTONE;
                tombstones += 1;
            }
            if record.expires_at_ms() != 0 {
                place |= EXPIRES;
                expiring += 1;
            }
            let mut entry = [0; ENTRY];
            entry[..8].copy_from_slice(&KeyHash::of(record.key()).0.to_le_bytes());
            entry[8..16].copy_from_slice(&record.version().clock.to_le_bytes());
            entry[16..].copy_from_slice(&place.to_le_bytes());
            entries_crc = crc32c::crc32c_append(entries_crc, &entry);
            count += 1;
            if out.len() + ENTRY > BUFFER {
                env.write_at(&file, &out, at)?;
                at += out.len() as u64;
                out.clear();
            }
            out.extend_from_slice(&entry);
        }
        env.write_at(&file, &out, at)?;
        let mut head = [0; HEADER];
        head[..8].copy_from_slice(MAGIC);
        head[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        head[16..24].copy_from_slice(&segment.sequence.to_le_bytes());
        head[24..28].copy_from_slice(&segment.salt().to_le_bytes());
        let numbers = [count, segment.written(), entries_crc, damaged];
        for (slot, number) in head[32..48].chunks_exact_mut(4).zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        head[48..56].copy_from_slice(&oldest.to_le_bytes());
        head[56..60].copy_from_slice(&tombstones.to_le_bytes());
        head[60..64].copy_from_slice(&expiring.to_le_bytes());
        head[64..72].copy_from_slice(&newest.to_le_bytes());
        let crc = crc32c::crc32c(&head[16..]);
        head[12..16].copy_from_slice(&crc.to_le_bytes());
        env.write_at(&file, &head, 0)
    }

    pub(crate) const fn len(&self) -> u32 {
        self.count
    }

    /// Entry `index`, below [`Sidecar::len`].
    #[inline]
    pub(crate) fn entry(&self, index: u32) -> Entry {
        let at = HEADER + index as usize * ENTRY;
        let bytes = &self.map[at..at + ENTRY];
        let place = u64_at(bytes, 16);
        Entry {
            hash: KeyHash(u64_at(bytes, 0)),
            version: Version::new(u64_at(bytes, 8), (place >> NODE_SHIFT) as u16),
            offset: (place & PLACE_MASK) as u32 * ALIGN as u32,
            size: ((place >> PLACE_BITS) & PLACE_MASK) as u32 * ALIGN as u32,
            tombstone: place & TOMBSTONE != 0,
            expires: place & EXPIRES != 0,
        }
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        (0..self.count).map(|index| self.entry(index))
    }

    /// The entry of a place, for what a damaged record there was. Walks all entries.
    pub(crate) fn entry_at(&self, offset: u32) -> Option<Entry> {
        self.entries().find(|entry| entry.offset == offset)
    }

    /// The first entry whose key is at or after `key`, by binary search over the keys in the segment.
    pub(crate) fn lower_bound(&self, segment: &Segment, key: &[u8]) -> u32 {
        lower_bound(segment, self.count, |index| self.entry(index).offset, key)
    }
}

/// The first of `count` sorted places whose key is at or after `key`. A place with a damaged key says nothing about the
/// order, so the search asks the nearest intact one to its left.
pub(crate) fn lower_bound(segment: &Segment, count: u32, offset_of: impl Fn(u32) -> u32, key: &[u8]) -> u32 {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        let intact = (low..=middle).rev().find_map(|index| {
            let offset = offset_of(index);
            let record = segment.record(offset).ok()?;
            segment.header_intact(offset, &record).then_some((index, record))
        });
        match intact {
            Some((index, record)) if record.key() >= key => high = index,
            _ => low = middle + 1,
        }
    }
    low
}

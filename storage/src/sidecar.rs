//! The sorted key order of a sealed segment, in a file beside it: quick recovery, sorted ranges,
//! and the keys of single partitions.
//!
//! ```text
//! 0   8 bytes  "KOLTSOIX"               32  u32  entries            56  u32  tombstones
//! 8   u32      format version, 3        36  u32  end of the records 60  u32  with an expiry
//! 12  u32      CRC-32C of 16..128       40  u32  CRC-32C of entries 64  u64  newest clock
//! 16  u64      sequence of the segment  44  u32  damaged places     72  u64  secret's fingerprint
//! 24  u32      salt of the segment      48  u64  oldest clock       80..128  zeros
//! 28  u32      CRC-32C of the directory
//! 128          entries of 24 bytes, by key, the newest record of each key:
//!              u64 from the low bits: 8 flags, 20 leaf of the digest, 36 index hash,
//!              u64 version's clock,
//!              u64 from the low bits: 23 offset / 8, 23 size of the record / 8, 1 has an expiry,
//!              1 zero, 16 node
//!              directory, 12 bytes an entry, by partition, those of one partition by key:
//!              u64 public hash of the key, u32 number of its entry
//! ```
//!
//! A start reads the entries; the directory is looked at, and its checksum compared, when somebody
//! asks for partitions.
//!
//! The version is here and in the record, so that an older version is not taken for the newest
//! where the record's header is damaged.
//!
//! Written whole to a temporary name and renamed, only after the segment's own bytes were synced: a
//! sidecar that is there and intact means that its records are on disk. One that is not intact is
//! ignored and made again.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use koltso_instrument::breathe;
use koltso_model::{Flags, KeyHash, PARTITIONS, Version};
use memmap2::Mmap;

use crate::bytes::{u32_at, u64_at};
use crate::digest::{self, Leaf};
use crate::env::Env;
use crate::fault::{self, Watched};
use crate::hash::IndexHash;
use crate::record::ALIGN;
use crate::secret::Secret;
use crate::segment::{SEGMENT_MAX, Segment, path_of};
use crate::wanted::Wanted;

const MAGIC: &[u8; 8] = b"KOLTSOIX";
const FORMAT: u32 = 3;
const HEADER: usize = 128;
/// Entries are written in pieces of this many bytes.
const BUFFER: usize = 64 << 10;
/// Bytes of an entry, and of one of the directory.
const ENTRY: usize = 24;
const DIRECTORY_ENTRY: usize = 12;
const LEAF_SHIFT: u32 = 8;
const PLACE_BITS: u32 = 23;
const PLACE_MASK: u64 = (1 << PLACE_BITS) - 1;
const EXPIRES: u64 = 1 << (2 * PLACE_BITS);
const NODE_SHIFT: u32 = 2 * PLACE_BITS + 2;

const _: () = assert!(NODE_SHIFT + 16 == 64 && SEGMENT_MAX as u64 / ALIGN as u64 == 1 << PLACE_BITS);
const _: () = assert!(IndexHash::UNUSED + 1 == 1 << (LEAF_SHIFT + digest::PLACE_BITS));
const _: () = assert!(Flags::KNOWN < 1 << LEAF_SHIFT);

/// One key of a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) hash: IndexHash,
    pub(crate) leaf: Leaf,
    /// Those that have a meaning to this build.
    pub(crate) flags: Flags,
    pub(crate) version: Version,
    pub(crate) offset: u32,
    pub(crate) size: u32,
    pub(crate) expires: bool,
}

impl Entry {
    /// Whether the record says that its key is absent, or will one day.
    pub(crate) const fn says_absent(&self) -> bool {
        self.flags.is_tombstone() || self.expires
    }
}

/// What is known of a record whose own header is damaged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) entry: Entry,
    /// `None` if the directory is damaged, too.
    key_hash: Option<KeyHash>,
}

impl Known {
    /// Whether it was a record of `key`, whose index hash is the same.
    pub(crate) fn is_of(&self, key: &[u8]) -> bool {
        let hash = KeyHash::of(key);
        self.key_hash.map_or(self.entry.leaf == Leaf::of(hash), |known| known == hash)
    }
}

#[derive(Debug)]
pub(crate) struct Sidecar {
    /// Before `map`, so that it is dropped before that is.
    watched: Watched,
    map: Mmap,
    count: u32,
    /// Whether the directory is what was written, once somebody has looked.
    directory_intact: OnceLock<bool>,
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
    pub(crate) fn open(env: &dyn Env, folder: &Path, secret: &Secret, segment: &Segment) -> Option<Self> {
        let file = env.open_to_read(&path_of(folder, segment.sequence, "idx")).ok()?;
        let len = env.len(&file).ok()?;
        if len < HEADER as u64 || len > fault::LEN_MAX as u64 {
            return None;
        }
        // SAFETY: the file is written under another name and renamed here, never changed after; see
        // the segment's invariant 3 for what that cannot cover.
        let map = unsafe { env.map_unchanging(&file) }.ok()?;
        let watched = Watched::new(map.as_ptr(), map.len());
        if map.len() as u64 != len {
            return None;
        }
        let head = &map[..HEADER];
        let (count, data_end) = (u32_at(head, 32), u32_at(head, 36));
        let intact = &head[..8] == MAGIC
            && u32_at(head, 8) == FORMAT
            && u32_at(head, 12) == crc32c::crc32c(&head[16..])
            && u64_at(head, 16) == segment.sequence
            && u32_at(head, 24) == segment.salt()
            && data_end <= segment.capacity()
            && u64_at(head, 72) == secret.fingerprint()
            && len == HEADER as u64 + u64::from(count) * (ENTRY + DIRECTORY_ENTRY) as u64
            && u32_at(head, 40) == crc32c::crc32c(&map[HEADER..HEADER + count as usize * ENTRY]);
        if !intact {
            return None;
        }
        let damaged = u32_at(head, 44);
        let (oldest_clock, newest_clock) = (u64_at(head, 48), u64_at(head, 64));
        let (tombstones, expiring) = (u32_at(head, 56), u32_at(head, 60));
        let directory_intact = OnceLock::new();
        Some(Self {
            watched,
            map,
            count,
            directory_intact,
            data_end,
            damaged,
            oldest_clock,
            newest_clock,
            tombstones,
            expiring,
        })
    }

    /// Writes the sidecar of a segment whose records are `offsets`, sorted by key and newest first,
    /// one a key.
    pub(crate) fn write(
        env: &dyn Env,
        folder: &Path,
        secret: &Secret,
        segment: &Segment,
        offsets: &[u32],
        damaged: u32,
    ) -> io::Result<()> {
        let temporary = path_of(folder, segment.sequence, "idx-new");
        let result = Self::write_to(env, &temporary, secret, segment, offsets, damaged)
            .and_then(|()| env.rename(&temporary, &path_of(folder, segment.sequence, "idx")));
        result.inspect_err(|_| {
            let _ = env.remove(&temporary);
        })
    }

    /// Entries and directory first, a buffer at a time, then the header over the place that was
    /// left for it.
    fn write_to(
        env: &dyn Env,
        path: &Path,
        secret: &Secret,
        segment: &Segment,
        offsets: &[u32],
        damaged: u32,
    ) -> io::Result<()> {
        let mut out = Pieces::new(env, path)?;
        let mut key_hashes: Vec<KeyHash> = Vec::with_capacity(offsets.len());
        let (mut oldest, mut newest) = (u64::MAX, 0_u64);
        let (mut tombstones, mut expiring) = (0_u32, 0_u32);
        for &offset in offsets {
            let Ok(record) = segment.record(offset) else {
                continue;
            };
            oldest = oldest.min(record.version().clock);
            newest = newest.max(record.version().clock);
            tombstones += u32::from(record.is_tombstone());
            expiring += u32::from(record.expires_at_ms() != 0);
            let key_hash = KeyHash::of(record.key());
            key_hashes.push(key_hash);
            let who = secret.hash(record.key()).bits()
                | (u64::from(Leaf::of(key_hash).bits()) << LEAF_SHIFT)
                | u64::from(record.flags().bits() & Flags::KNOWN);
            // A record is smaller than its segment, so both numbers are below 2^23.
            let mut place = u64::from(offset / ALIGN as u32);
            place |= (((record.size() / ALIGN) as u64) & PLACE_MASK) << PLACE_BITS;
            place |= u64::from(record.version().node) << NODE_SHIFT;
            if record.expires_at_ms() != 0 {
                place |= EXPIRES;
            }
            let mut entry = [0; ENTRY];
            entry[..8].copy_from_slice(&who.to_le_bytes());
            entry[8..16].copy_from_slice(&record.version().clock.to_le_bytes());
            entry[16..].copy_from_slice(&place.to_le_bytes());
            out.push(&entry)?;
        }
        let entries_crc = out.take_crc();
        for number in by_partition(&key_hashes) {
            let mut entry = [0; DIRECTORY_ENTRY];
            entry[..8].copy_from_slice(&key_hashes[number as usize].0.to_le_bytes());
            entry[8..].copy_from_slice(&number.to_le_bytes());
            out.push(&entry)?;
        }
        let directory_crc = out.take_crc();
        let mut head = [0; HEADER];
        head[..8].copy_from_slice(MAGIC);
        head[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        head[16..24].copy_from_slice(&segment.sequence.to_le_bytes());
        let numbers = [segment.salt(), directory_crc, key_hashes.len() as u32, segment.written(), entries_crc, damaged];
        for (slot, number) in head[24..48].chunks_exact_mut(4).zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        head[48..56].copy_from_slice(&oldest.to_le_bytes());
        head[56..60].copy_from_slice(&tombstones.to_le_bytes());
        head[60..64].copy_from_slice(&expiring.to_le_bytes());
        head[64..72].copy_from_slice(&newest.to_le_bytes());
        head[72..80].copy_from_slice(&secret.fingerprint().to_le_bytes());
        let crc = crc32c::crc32c(&head[16..]);
        head[12..16].copy_from_slice(&crc.to_le_bytes());
        out.finish(&head)
    }

    pub(crate) const fn len(&self) -> u32 {
        self.count
    }

    /// Pages that could not be had; keys are missing from the order then.
    pub(crate) fn faults(&self) -> u32 {
        self.watched.faults()
    }

    /// Entry `index`, below [`Sidecar::len`].
    #[inline]
    pub(crate) fn entry(&self, index: u32) -> Entry {
        let at = HEADER + index as usize * ENTRY;
        let bytes = &self.map[at..at + ENTRY];
        let (who, place) = (u64_at(bytes, 0), u64_at(bytes, 16));
        Entry {
            hash: IndexHash::from_bits(who),
            leaf: Leaf::from_bits((who >> LEAF_SHIFT) as u32),
            flags: Flags::from_bits(who as u16 & Flags::KNOWN),
            version: Version::new(u64_at(bytes, 8), (place >> NODE_SHIFT) as u16),
            offset: (place & PLACE_MASK) as u32 * ALIGN as u32,
            size: ((place >> PLACE_BITS) & PLACE_MASK) as u32 * ALIGN as u32,
            expires: place & EXPIRES != 0,
        }
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        (0..self.count).map(|index| self.entry(index))
    }

    /// What is known of the record at a place whose header is damaged. Walks everything.
    pub(crate) fn known_at(&self, offset: u32) -> Option<Known> {
        let number = self.entries().position(|entry| entry.offset == offset)? as u32;
        let key_hash = self.has_directory().then(|| self.directory().find(|&(_, of)| of == number)).flatten();
        Some(Known { entry: self.entry(number), key_hash: key_hash.map(|(hash, _)| hash) })
    }

    /// The numbers of the entries of some leaves, ascending, and so by key.
    pub(crate) fn numbers_of(&self, wanted: &Wanted) -> Vec<u32> {
        if !self.has_directory() {
            return (0..self.count).filter(|&number| wanted.has(self.entry(number).leaf)).collect();
        }
        let of = wanted.in_partitions();
        let places = of.into_iter().flat_map(|of| {
            breathe();
            self.first_of(of.start)..self.first_of(of.end)
        });
        let entries = places.map(|at| self.directory_entry(at)).filter(|&(hash, _)| wanted.has(Leaf::of(hash)));
        // Also one that lies with the right checksum names no entry behind the last one.
        let numbers = entries.map(|(_, number)| number).filter(|&number| number < self.count);
        let mut numbers: Vec<u32> = numbers.collect();
        numbers.sort_unstable();
        numbers
    }

    /// The file's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Whether all of it is what was written, as it is in memory now.
    pub(crate) fn is_intact(&self) -> bool {
        let (head, rest) = self.map.split_at(HEADER);
        let (entries, directory) = rest.split_at(self.count as usize * ENTRY);
        u32_at(head, 12) == crc32c::crc32c(&head[16..])
            && u32_at(head, 40) == crc32c::crc32c(entries)
            && u32_at(head, 28) == crc32c::crc32c(directory)
    }

    /// Puts the file on disk again as it is in memory.
    pub(crate) fn write_again(&self, env: &dyn Env, folder: &Path, segment: &Segment) -> io::Result<()> {
        // In its place: the mapping is of that file, and would go on with what the disk has of it.
        let path = path_of(folder, segment.sequence, "idx");
        let file = env.open(&path).or_else(|_| env.create(&path))?;
        env.write_at(&file, &self.map, 0)?;
        env.sync(&file)
    }

    /// Whether the directory is what was written.
    pub(crate) fn has_directory(&self) -> bool {
        *self.directory_intact.get_or_init(|| {
            let bytes = &self.map[HEADER + self.count as usize * ENTRY..];
            let intact = u32_at(&self.map, 28) == crc32c::crc32c(bytes);
            if !intact {
                tracing::warn!("the directory of a sidecar is damaged: its entries are looked at one by one");
            }
            intact
        })
    }

    /// Public hash of a key and number of its entry, at a place of the directory below
    /// [`Sidecar::len`].
    fn directory_entry(&self, at: u32) -> (KeyHash, u32) {
        let at = HEADER + self.count as usize * ENTRY + at as usize * DIRECTORY_ENTRY;
        let bytes = &self.map[at..at + DIRECTORY_ENTRY];
        (KeyHash(u64_at(bytes, 0)), u32_at(bytes, 8))
    }

    fn directory(&self) -> impl Iterator<Item = (KeyHash, u32)> + '_ {
        (0..self.count).map(|at| self.directory_entry(at))
    }

    /// The first place in the directory that belongs to a partition or to one behind it.
    fn first_of(&self, partition: usize) -> u32 {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.directory_entry(middle).0.partition() >= partition { high = middle } else { low = middle + 1 }
        }
        low
    }

    /// The first entry whose key is at or after `key`, by binary search over the keys in the
    /// segment.
    pub(crate) fn lower_bound(&self, segment: &Segment, key: &[u8]) -> u32 {
        lower_bound(segment, self.count, |index| self.entry(index).offset, key)
    }
}

/// The places of `key_hashes` by partition, those of one partition ascending.
fn by_partition(key_hashes: &[KeyHash]) -> Vec<u32> {
    let mut next = vec![0_u32; PARTITIONS + 1];
    for hash in key_hashes {
        next[hash.partition() + 1] += 1;
    }
    for partition in 0..PARTITIONS {
        next[partition + 1] += next[partition];
    }
    let mut sorted = vec![0; key_hashes.len()];
    for (number, hash) in key_hashes.iter().enumerate() {
        let place = &mut next[hash.partition()];
        sorted[*place as usize] = number as u32;
        *place += 1;
    }
    sorted
}

/// A file behind the place of its header, written in pieces.
struct Pieces<'a> {
    env: &'a dyn Env,
    file: File,
    at: u64,
    piece: Vec<u8>,
    crc: u32,
}

impl<'a> Pieces<'a> {
    fn new(env: &'a dyn Env, path: &Path) -> io::Result<Self> {
        Ok(Self { env, file: env.create(path)?, at: HEADER as u64, piece: Vec::with_capacity(BUFFER), crc: 0 })
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.piece.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.piece.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.env.write_at(&self.file, &self.piece, self.at)?;
        self.at += self.piece.len() as u64;
        self.piece.clear();
        Ok(())
    }

    /// The checksum of what was pushed since it was asked for last.
    fn take_crc(&mut self) -> u32 {
        std::mem::take(&mut self.crc)
    }

    fn finish(mut self, head: &[u8; HEADER]) -> io::Result<()> {
        self.flush()?;
        self.env.write_at(&self.file, head, 0)
    }
}

/// The first of `count` sorted places whose key is at or after `key`. A place with a damaged key
/// says nothing about the order, so the search asks the nearest intact one to its left.
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

//! The bodies of the fuzz targets `record` and `recovery`, over mutations of a real segment, for a
//! moment; and whole folders with files that are wrong although their checksums are right.
//!
//! `KOLTSO_FUZZ_SECONDS` runs them longer, `KOLTSO_SEED` repeats a run. With cargo-fuzz, `fuzz/`
//! guides them by coverage.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Seen, get, small, version};
use koltso_model::{Flags, Key, Record};
use koltso_storage::{Options, PARTITIONS, Store, Version, fuzz_record, fuzz_scan};
use koltso_testkit::fuzz::{mutate, time};
use koltso_testkit::random::{Random, seed_or};

const SEGMENT_HEADER: usize = 64;

/// A record with flags and attributes, some of which have no meaning.
fn with_attributes<'a>(key: &'a [u8], value: &'a [u8], version: Version) -> Record<&'a [u8]> {
    let (flags, attributes) = (Flags::from_bits(0x5508), &[1, 3, b'a', b'/', b'b', 99, 1, 0][..]);
    Record { key: Key::new(key), value, version, expires_at_ms: 0, flags, attributes }
}

/// A segment as the engine wrote it, its salt, and how many records are in it.
fn segment() -> (Vec<u8>, u32, usize) {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_size: 1 << 20, value_max: 64 << 10, ..Options::new(dir.path()) };
    let (store, _) = Store::open(options).unwrap();
    let mut writer = store.writer().unwrap();
    let mut rng = Random::seeded(7);
    for number in 0..60_u64 {
        let (key, value) = (format!("key-{}", number % 40).into_bytes(), rng.bytes((number * 13 % 400) as usize));
        let version = Version::new(number + 1, (number % 3) as u16);
        match number % 7 {
            3 => writer.delete(&key, version).unwrap(),
            0 | 4 => writer.apply(&with_attributes(&key, &value, version)).unwrap(),
            _ => writer.put(&key, &value, version, (number % 5) * 1_000).unwrap(),
        };
    }
    let log = common::files(dir.path(), "log").remove(0);
    let mut bytes = std::fs::read(log).unwrap();
    let end = bytes.iter().rposition(|&b| b != 0).unwrap() + 1;
    bytes.truncate(end.next_multiple_of(8) + 256);
    let salt = u32::from_le_bytes(bytes[24..28].try_into().unwrap());
    drop(writer);
    (bytes, salt, 60)
}

#[test]
fn recovery_survives_any_bytes_and_finds_no_more_than_was_written() {
    let mut rng = Random::seeded(seed_or("recovery", 1));
    let (bytes, salt, records) = segment();
    assert_eq!(fuzz_scan(&bytes, salt).0, records, "unharmed, it is read whole");
    let (begun, mut runs, mut least) = (Instant::now(), 0_u64, records);
    while begun.elapsed() < time() {
        let mut mutated = bytes.clone();
        mutate(&mut mutated, &mut rng);
        let (found, _, end) = fuzz_scan(&mutated, salt);
        // A record that is moved is none at its new place, so nothing can be found twice.
        assert!(found <= records, "{found} records found of {records}");
        assert!(end as usize <= mutated.len().max(SEGMENT_HEADER));
        least = least.min(found);
        runs += 1;
    }
    assert!(runs > 100 && least < records, "{runs} runs, none of which harmed anything");
}

#[test]
fn a_record_is_read_from_any_bytes_or_refused() {
    let mut rng = Random::seeded(seed_or("record", 2));
    let (bytes, salt, _) = segment();
    let seed = salt ^ SEGMENT_HEADER as u32;
    let record = &bytes[SEGMENT_HEADER..];
    let unharmed = fuzz_record(record, seed).unwrap();
    let (begun, mut refused) = (Instant::now(), 0_u64);
    while begun.elapsed() < time() {
        let mut mutated = record[..512].to_vec();
        mutate(&mut mutated, &mut rng);
        match fuzz_record(&mutated, seed) {
            // What was mutated lies behind its attributes.
            Some(found) => assert_eq!(found, unharmed),
            None => refused += 1,
        }
    }
    assert!(refused > 100);
}

/// Makes the checksums right again, so that what was mutated is believed: of the segment's header
/// and its records where they were, of the sidecar's header, entries and directory.
fn fix_segment(bytes: &mut [u8], offsets: &[usize]) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..64]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    let salt = u32::from_le_bytes(bytes[24..28].try_into().unwrap());
    for &at in offsets {
        let number = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let mut end = at + 32 + number(at + 18);
        if bytes[at + 31] & 0x80 != 0 {
            end += 2 + number(end);
        }
        if let Some(head) = bytes.get(at + 4..end) {
            let crc = crc32c::crc32c_append(salt ^ at as u32, head);
            bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

fn fix_sidecar(bytes: &mut [u8]) {
    if bytes.len() >= 128 {
        let directory = 128 + entries_of(bytes) * 24;
        let crc = crc32c::crc32c(&bytes[128..directory]);
        bytes[40..44].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[directory..]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[16..128]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    }
}

/// The number of entries of a sidecar.
fn entries_of(bytes: &[u8]) -> usize {
    u32::from_le_bytes(bytes[32..36].try_into().unwrap()) as usize
}

#[test]
fn files_that_lie_with_right_checksums_make_no_panic() {
    let mut rng = Random::seeded(seed_or("files_that_lie", 3));
    let dir = tempfile::tempdir().unwrap();
    let clean = dir.path().join("clean");
    let (store, _) = Store::open(small(&clean)).unwrap();
    let mut writer = store.writer().unwrap();
    for number in 0..200_u64 {
        let key = format!("key{}", number % 150).into_bytes();
        match number % 9 {
            3 => writer.delete(&key, version(number + 1)).unwrap(),
            4 => writer.apply(&with_attributes(&key, &rng.bytes(200), version(number + 1))).unwrap(),
            _ => writer.put(&key, &rng.bytes(200), version(number + 1), (number % 5) * 1_000).unwrap(),
        };
    }
    drop(writer);
    store.close().unwrap();
    drop(store);
    let logs = common::files(&clean, "log");
    let offsets: Vec<Vec<usize>> = logs
        .iter()
        .map(|log| {
            let bytes = fs::read(log.with_extension("idx")).unwrap();
            let place = |entry: &[u8]| u64::from_le_bytes(entry[16..24].try_into().unwrap());
            let entries = bytes[128..128 + entries_of(&bytes) * 24].chunks(24);
            entries.map(|entry| (place(entry) & ((1 << 23) - 1)) as usize * 8).collect()
        })
        .collect();
    let (begun, mut runs, mut refused) = (Instant::now(), 0_u64, 0_u64);
    while begun.elapsed() < 2 * time() || runs < 20 {
        runs += 1;
        let folder = dir.path().join(format!("{runs}"));
        common::copy_folder(&clean, &folder);
        let number = rng.below(logs.len() as u64) as usize;
        let log = folder.join(logs[number].file_name().unwrap());
        for _ in 0..=rng.below(5) {
            let at_record = offsets[number][rng.below(offsets[number].len() as u64) as usize];
            if rng.one_in(2) {
                // A field of a record, or of the segment's header.
                let mut bytes = fs::read(&log).unwrap();
                let at =
                    if rng.one_in(4) { 16 + rng.below(48) as usize } else { at_record + 4 + rng.below(40) as usize };
                bytes[at] ^= 1 << rng.below(8);
                fix_segment(&mut bytes, &offsets[number]);
                fs::write(&log, bytes).unwrap();
                if rng.one_in(2) {
                    let _ = fs::remove_file(log.with_extension("idx"));
                }
            } else if let Ok(mut bytes) = fs::read(log.with_extension("idx")) {
                // Anything in the sidecar but the sizes of the records: compaction believes these.
                // Whoever can write them with right checksums could as well delete the folder.
                let at = 16 + rng.below(bytes.len() as u64 - 16) as usize;
                let of_entries = 128..128 + entries_of(&bytes) * 24;
                let entry = of_entries.contains(&at).then(|| (at - 128) % 24);
                if entry.is_none_or(|at| !(18..=21).contains(&at)) && !(32..36).contains(&at) {
                    bytes[at] ^= 1 << rng.below(8);
                }
                fix_sidecar(&mut bytes);
                fs::write(log.with_extension("idx"), bytes).unwrap();
            }
        }
        let Ok((store, _)) = Store::open(small(&folder)) else {
            refused += 1;
            continue;
        };
        let _ = common::scan(&store, b"k", None, 1);
        if let Ok(mut listing) = store.partition_entries(0..PARTITIONS) {
            while listing.next(|key, _, _, _| assert!(!key.is_empty())).is_some() {}
        }
        let mut writer = store.writer().unwrap();
        for number in 0..150_u64 {
            let key = format!("key{number}").into_bytes();
            let _ = get(&store, &key, 1);
            if number % 3 == 0 {
                writer.put(&key, b"new", version(1 << 40), 0).unwrap();
                if let Seen::Value(newest, value) = get(&store, &key, 1)
                    && newest == version(1 << 40)
                {
                    assert_eq!(value, b"new");
                }
            }
        }
        let _ = store.stats();
        if runs.is_multiple_of(8) {
            std::thread::sleep(Duration::from_millis(250));
        }
        drop(writer);
        store.close().unwrap();
        drop(store);
        drop(Store::open(small(&folder)).map(|(store, _)| common::scan(&store, b"k", None, 1)));
        fs::remove_dir_all(folder).unwrap();
    }
    println!("{runs} runs, {refused} refused");
    assert!(refused < runs / 2);
}

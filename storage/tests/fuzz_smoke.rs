//! The bodies of the fuzz targets `record` and `recovery`, over mutations of a real segment, for a moment.
//!
//! `KOLTSO_FUZZ_SECONDS` runs them longer, `KOLTSO_SEED` repeats a run. With cargo-fuzz, `fuzz/` guides them by coverage.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::Rng;
use koltso_storage::{Options, Store, Version, fuzz_record, fuzz_scan};

const SEGMENT_HEADER: usize = 64;

fn time() -> Duration {
    let seconds = std::env::var("KOLTSO_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(1))
}

/// A segment as the engine wrote it, its salt, and how many records are in it.
fn segment() -> (Vec<u8>, u32, usize) {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_size: 1 << 20, value_max: 64 << 10, ..Options::new(dir.path()) };
    let (store, _) = Store::open(options).unwrap();
    let mut writer = store.writer().unwrap();
    let mut rng = Rng(7);
    for number in 0..60_u64 {
        let (key, value) = (format!("key-{}", number % 40).into_bytes(), rng.bytes((number * 13 % 400) as usize));
        let version = Version::new(number + 1, (number % 3) as u16);
        match number % 7 {
            3 => writer.delete(&key, version).unwrap(),
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

fn mutate(bytes: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..=rng.below(4) {
        if bytes.len() < 16 {
            return;
        }
        let at = rng.below(bytes.len() as u64 - 8) as usize;
        let len = (rng.below(200) as usize).min(bytes.len() - at);
        match rng.below(7) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at..at + len].fill(rng.next() as u8),
            2 => bytes[at..at + 8].copy_from_slice(&rng.next().to_le_bytes()),
            3 => bytes[at..at + 4].copy_from_slice(&[0, 1, 0x7f, 0xff].map(|b| b * (rng.below(2) as u8))),
            4 => bytes.truncate(at),
            5 => drop(bytes.splice(at..at, rng.bytes(len))),
            _ => {
                let copy = bytes[at..at + len].to_vec();
                let to = rng.below(bytes.len() as u64) as usize;
                drop(bytes.splice(to..to, copy));
            }
        }
    }
}

#[test]
fn recovery_survives_any_bytes_and_finds_no_more_than_was_written() {
    let mut rng = Rng(common::seed("recovery", 1));
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
    let mut rng = Rng(common::seed("record", 2));
    let (bytes, salt, _) = segment();
    let seed = salt ^ SEGMENT_HEADER as u32;
    let record = &bytes[SEGMENT_HEADER..];
    let unharmed = fuzz_record(record, seed).unwrap();
    let (begun, mut refused) = (Instant::now(), 0_u64);
    while begun.elapsed() < time() {
        let mut mutated = record[..512].to_vec();
        mutate(&mut mutated, &mut rng);
        match fuzz_record(&mutated, seed) {
            // What was mutated lies behind its key.
            Some(found) => assert_eq!(found, unharmed),
            None => refused += 1,
        }
    }
    assert!(refused > 100);
}

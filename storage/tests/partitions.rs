//! The listing of partitions while everything under it is replaced, and from a sidecar whose
//! directory is damaged. Beside a model it is in `model.rs`.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{FakeEnv, files, small, version};
use koltso_model::{Flags, Key, Record};
use koltso_storage::{KeyHash, Options, PARTITIONS, PartitionEntries, Store, Version, Writer};
use koltso_testkit::wait::soon;
use koltso_testkit::wall_ms;

type Listed = BTreeMap<Vec<u8>, (Version, Flags)>;

fn options(folder: &Path) -> Options {
    Options { env: FakeEnv::new(1 << 40), ..small(folder) }
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:05}").into_bytes()
}

fn open(store: &Store, partitions: std::ops::Range<usize>) -> PartitionEntries {
    let mut listing = store.partition_entries(partitions.clone());
    soon("the newest records are sorted", || {
        listing = store.partition_entries(partitions.clone());
        listing.is_ok()
    });
    listing.unwrap()
}

/// Takes up to `most` further entries; no key may come twice.
fn take(listing: &mut PartitionEntries, most: usize, into: &mut Listed) {
    for _ in 0..most {
        let Some((key, version, flags)) = listing.next(|key, version, flags, _| (key.to_vec(), version, flags)) else {
            return;
        };
        assert_eq!(into.insert(key.clone(), (version, flags)), None, "{key:?} twice");
    }
}

fn list(store: &Store, partitions: std::ops::Range<usize>) -> Listed {
    let mut listed = Listed::new();
    take(&mut open(store, partitions), usize::MAX, &mut listed);
    listed
}

fn write(writer: &mut Writer, number: u64, version: Version) {
    let flags = Flags::new(1 + (number % 5) as u8);
    let key = key(number);
    let record =
        Record { key: Key::new(&key[..]), value: &[1; 300][..], version, expires_at_ms: 0, flags, attributes: &[] };
    writer.apply(&record).unwrap();
}

#[test]
fn each_partition_has_its_keys_and_together_they_have_all() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(options(dir.path())).unwrap();
    let mut writer = store.writer().unwrap();
    for number in 0..1_500 {
        write(&mut writer, number, version(wall_ms()));
    }
    writer.delete(&key(7), version(wall_ms() + 60_000)).unwrap();
    let all = list(&store, 0..PARTITIONS);
    assert_eq!(all.len(), 1_500);
    assert!(all[&key(7)].1.is_tombstone());
    assert_eq!(all[&key(8)].1, Flags::new(4));
    let mut by_partition = Listed::new();
    for partition in 0..PARTITIONS {
        let listed = list(&store, partition..partition + 1);
        assert!(listed.keys().all(|key| KeyHash::of(key).partition() == partition));
        by_partition.extend(listed);
    }
    assert_eq!(by_partition, all);
    assert!(list(&store, PARTITIONS..usize::MAX).is_empty());
    let backwards = std::ops::Range { start: 9, end: 3 };
    assert!(list(&store, backwards).is_empty());
}

#[test]
fn a_listing_is_whole_while_compaction_moves_what_it_lists() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(options(dir.path())).unwrap();
    let mut writer = store.writer().unwrap();
    let start = wall_ms();
    // Every segment has keys that stay as they are, and others that are overwritten, so that all
    // are compacted.
    for number in 0..900 {
        write(&mut writer, number, version(start));
    }
    let mut listing = open(&store, 0..PARTITIONS);
    let mut listed = Listed::new();
    for round in 0..6 {
        take(&mut listing, 120, &mut listed);
        let before = store.stats().compacted_segments;
        soon("segments are compacted", || {
            for number in (0..900).filter(|number| number % 3 != 0) {
                write(&mut writer, number, version(start + 1 + round));
            }
            store.stats().compacted_segments > before + 4
        });
    }
    take(&mut listing, usize::MAX, &mut listed);
    for number in (0..900).step_by(3) {
        assert_eq!(listed.get(&key(number)).map(|(version, _)| *version), Some(version(start)), "key {number}");
    }
}

#[test]
fn a_damaged_directory_costs_time_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(options(dir.path())).unwrap();
    let mut writer = store.writer().unwrap();
    for number in 0..400 {
        write(&mut writer, number, version(number + 1));
    }
    drop(writer);
    store.close().unwrap();
    let whole = list(&store, 0..PARTITIONS);
    let few = list(&store, 100..900);
    drop(store);
    for sidecar in files(dir.path(), "idx") {
        let mut bytes = fs::read(&sidecar).unwrap();
        let entries = u32::from_le_bytes(bytes[32..36].try_into().unwrap()) as usize;
        let directory = 128 + entries * 24;
        assert_eq!(bytes.len(), directory + entries * 12);
        for byte in &mut bytes[directory..] {
            *byte ^= 0x5a;
        }
        fs::write(&sidecar, bytes).unwrap();
    }
    let (store, recovered) = Store::open(options(dir.path())).unwrap();
    assert_eq!((recovered.keys, recovered.scanned, recovered.damaged), (400, 0, 0));
    assert!(few.len() > 10);
    assert_eq!((list(&store, 0..PARTITIONS), list(&store, 100..900)), (whole, few));
}

//! Files of the log that are cut short while they are mapped: what is lost is damaged, and nothing
//! else.
//!
//! The process itself is the one that would end, so most of what is asserted is that it is still
//! there. What a disk that cannot read does is the same signal at the same place.

#![allow(missing_docs, unsafe_code, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use common::{Seen, files, get, scan, small, value_of, version};
use koltso_storage::{Options, Store, Writer};
use koltso_testkit::Random;
use koltso_testkit::wait::soon;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn cut(path: &Path, len: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:06}").into_bytes()
}

/// Writes records of about 1 KiB; what a model of the store has then.
fn write(writer: &mut Writer, random: &mut Random, numbers: std::ops::Range<u64>) -> Model {
    let mut model = Model::new();
    for number in numbers {
        let value = random.bytes(1_000);
        writer.put(&key(number), &value, version(number + 1), 0).unwrap();
        model.insert(key(number), value);
    }
    model
}

/// Never a value that is not the key's: what it has, or "damaged". The number of damaged ones.
fn assert_nothing_wrong_is_served(store: &Store, model: &Model) -> usize {
    let mut damaged = 0;
    for (key, value) in model {
        match get(store, key, 1) {
            Seen::Damaged => damaged += 1,
            Seen::Value(_, served) => assert!(served == *value, "{key:?} has a value that is not its own"),
            Seen::Absent => panic!("{key:?} is said to be absent"),
        }
    }
    for (key, value) in scan(store, b"", None, 1) {
        assert!(model.get(&key) == Some(&value), "{key:?} in a range");
    }
    damaged
}

#[test]
fn a_sealed_segment_that_is_cut_short_costs_its_records_and_they_can_be_written_again() {
    let mut random = Random::announced("a_sealed_segment_that_is_cut_short_costs_its_records");
    for dead_share in [1.1, 0.2] {
        let dir = tempfile::tempdir().unwrap();
        let options = || Options { compaction_dead_share: dead_share, ..small(dir.path()) };
        let (store, _) = Store::open(options()).unwrap();
        let mut writer = store.writer().unwrap();
        let mut model = write(&mut writer, &mut random, 0..400);
        soon("segments are sealed", || files(dir.path(), "idx").len() >= 4);
        assert_eq!(assert_nothing_wrong_is_served(&store, &model), 0);
        let logs = files(dir.path(), "log");
        cut(&logs[0], 20 << 10);
        cut(&logs[2], 0);
        let damaged = assert_nothing_wrong_is_served(&store, &model);
        assert!((60..=130).contains(&damaged), "{damaged} records damaged by cutting 44 and 64 KiB off");
        soon("the figures say so", || store.stats().lost_pages > 0 && store.stats().damaged_records >= damaged as u64);
        // As a client writes the key again, or a replica repairs it.
        let damaged: Vec<Vec<u8>> = model.keys().filter(|key| get(&store, key, 1) == Seen::Damaged).cloned().collect();
        for key in damaged {
            let value = random.bytes(900);
            writer.put(&key, &value, version(1_000), 0).unwrap();
            model.insert(key, value);
        }
        assert_eq!(assert_nothing_wrong_is_served(&store, &model), 0);
        // Compaction, if there is any, has had dead data to take from these very segments.
        model.extend(write(&mut writer, &mut random, 400..600));
        assert_eq!(assert_nothing_wrong_is_served(&store, &model), 0);
        assert_eq!(scan(&store, b"", None, 1).len(), model.len());
        drop(writer);
        store.close().unwrap();
        drop(store);
        let (store, _) = Store::open(options()).unwrap();
        assert_eq!(assert_nothing_wrong_is_served(&store, &model), 0, "after a restart");
    }
}

#[test]
fn a_log_that_is_cut_short_under_its_writer_goes_on_in_a_new_segment() {
    let mut random = Random::announced("a_log_that_is_cut_short_under_its_writer_goes_on_in_a_new_segment");
    for len in [0, 64, 5_000, 3 << 20] {
        let dir = tempfile::tempdir().unwrap();
        let options = || Options { segment_size: 8 << 20, compaction_dead_share: 1.1, ..small(dir.path()) };
        let (store, _) = Store::open(options()).unwrap();
        let mut writer = store.writer().unwrap();
        let mut model = write(&mut writer, &mut random, 0..2_000);
        let log = &files(dir.path(), "log")[0];
        cut(log, len);
        // Noticed by the first write that needs a page, or by the thread that provides.
        soon("it is noticed", || {
            writer.put(b"x", b"y", version(1), 0).unwrap();
            store.stats().lost_pages > 0
        });
        let after = write(&mut writer, &mut random, 2_000..3_000);
        for (key, value) in &after {
            assert_eq!(value_of(&store, key).as_ref(), Some(value), "written after the file was cut to {len}");
        }
        model.extend(after.clone());
        model.insert(b"x".to_vec(), b"y".to_vec());
        assert_nothing_wrong_is_served(&store, &model);
        drop(writer);
        store.close().unwrap();
        drop(store);
        let (store, _) = Store::open(options()).unwrap();
        for (key, value) in &after {
            assert_eq!(value_of(&store, key).as_ref(), Some(value), "after a restart");
        }
    }
}

#[test]
fn sidecars_that_are_cut_short_never_bring_a_deleted_key_back() {
    let mut random = Random::announced("sidecars_that_are_cut_short_never_bring_a_deleted_key_back");
    let dir = tempfile::tempdir().unwrap();
    let options = || Options { compaction_dead_share: 0.9, ..small(dir.path()) };
    let (store, _) = Store::open(options()).unwrap();
    let mut writer = store.writer().unwrap();
    let model = write(&mut writer, &mut random, 0..300);
    soon("segments are sealed", || files(dir.path(), "idx").len() >= 4);
    for sidecar in files(dir.path(), "idx") {
        cut(&sidecar, random.below(3) * 100);
    }
    assert_eq!(assert_nothing_wrong_is_served(&store, &model), 0);
    for partitions in [0..koltso_storage::PARTITIONS, 5..9] {
        soon("partitions can be read", || store.partition_entries(partitions.clone()).is_ok());
    }
    // Tombstones, in segments of their own that compaction would like to drop.
    for number in 0..300 {
        writer.delete(&key(number), version(10_000 + number)).unwrap();
    }
    write(&mut writer, &mut random, 1_000..1_300);
    std::thread::sleep(std::time::Duration::from_millis(500));
    drop(writer);
    store.close().unwrap();
    drop(store);
    let (store, _) = Store::open(options()).unwrap();
    for number in 0..300 {
        assert!(!matches!(get(&store, &key(number), 1), Seen::Value(..)), "key {number} is back");
    }
}

/// What the child of the test below is told by.
const FAULTS: &str = "KOLTSO_TEST_FAULTS_ELSEWHERE";

#[test]
fn a_fault_outside_of_the_log_ends_the_process_as_ever() {
    if std::env::var_os(FAULTS).is_some() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(small(dir.path())).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let map = memmap2::MmapOptions::new().len(4096).map_raw(&file).unwrap();
        file.set_len(0).unwrap();
        // SAFETY: within the mapping. It faults, which is the point.
        let byte = unsafe { std::ptr::read_volatile(map.as_ptr()) };
        drop(store);
        panic!("read {byte} where nothing is");
    }
    let name = "a_fault_outside_of_the_log_ends_the_process_as_ever";
    let output =
        Command::new(std::env::current_exe().unwrap()).args(["--exact", name]).env(FAULTS, "1").output().unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{}", String::from_utf8_lossy(&output.stdout));
}

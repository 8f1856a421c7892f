//! Positions and syncs: what counts as durable in each mode.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{FakeEnv, small, version};
use koltso_storage::{Options, Store, SyncMode};
use koltso_testkit::wait::soon;

fn options(folder: &Path, env: &Arc<FakeEnv>, sync: SyncMode) -> Options {
    Options { sync, env: env.clone(), compaction_dead_share: 1.1, ..small(folder) }
}

/// A store in a new folder; only syncs from now on are counted.
fn open(folder: &Path, env: &Arc<FakeEnv>, sync: SyncMode) -> Store {
    let (store, _) = Store::open(options(folder, env, sync)).unwrap();
    env.syncs.store(0, Ordering::SeqCst);
    store
}

#[test]
fn a_batch_covers_what_was_written_before_it_and_nothing_after() {
    let dir = tempfile::tempdir().unwrap();
    let env = FakeEnv::new(1 << 30);
    let store = open(dir.path(), &env, SyncMode::Always);
    let mut writer = store.writer().unwrap();
    assert_eq!((writer.position(), writer.durable()), (0, 0));
    writer.put(b"first", b"value", version(1), 0).unwrap();
    let position = writer.position();
    assert_eq!(position, 32 + 16, "header, key and value, up to a multiple of 8");
    let batch = writer.begin_sync();
    writer.put(b"second", b"value", version(1), 0).unwrap();
    assert_eq!((batch.position(), batch.segments().count()), (position, 1));
    assert_eq!(writer.durable(), 0);
    writer.complete_sync(&batch);
    assert_eq!(writer.durable(), position);
    assert!(writer.position() > position);
    // A late older batch takes nothing back.
    let newer = writer.begin_sync();
    writer.complete_sync(&newer);
    writer.complete_sync(&batch);
    assert_eq!(writer.durable(), writer.position());
}

#[test]
fn batches_across_rolls_name_every_file_that_holds_an_unsynced_record() {
    let dir = tempfile::tempdir().unwrap();
    let env = FakeEnv::new(1 << 30);
    let store = open(dir.path(), &env, SyncMode::Always);
    let mut writer = store.writer().unwrap();
    let mut synced = std::collections::BTreeSet::new();
    let mut batches = std::collections::VecDeque::new();
    for number in 0..400_u64 {
        writer.put(format!("key{number}").as_bytes(), &[1; 2_000], version(number + 1), 0).unwrap();
        if number % 7 == 0 {
            batches.push_back(writer.begin_sync());
        }
        if number % 21 == 0 {
            // Syncs in flight complete in any order: here the newest first.
            while let Some(batch) = batches.pop_back() {
                let files: Vec<u64> = batch.segments().collect();
                assert_eq!(files.iter().collect::<std::collections::BTreeSet<_>>().len(), files.len());
                synced.extend(files);
                writer.complete_sync(&batch);
                assert!(writer.durable() >= batch.position());
            }
            let again = writer.begin_sync();
            let last = again.segments().last().unwrap();
            assert!(synced.contains(&last));
            assert_eq!(again.segments().count(), 1, "what was rolled and synced is not synced again");
        }
    }
    assert!(store.stats().segments > 10);
    assert!(synced.len() as u64 >= store.stats().segments - 1);
    soon("only sealing synced", || env.syncs.load(Ordering::SeqCst) as usize == common::files(dir.path(), "idx").len());
}

#[test]
fn the_mode_every_so_often_syncs_in_time_and_only_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let env = FakeEnv::new(1 << 30);
    let interval = Duration::from_millis(60);
    let store = open(dir.path(), &env, SyncMode::Every(interval));
    let mut writer = store.writer().unwrap();
    let mut slowest = Duration::ZERO;
    for number in 0..8_u64 {
        writer.put(b"key", &[1; 200], version(number + 1), 0).unwrap();
        let (position, started) = (writer.position(), Instant::now());
        while writer.durable() < position {
            assert!(started.elapsed() < Duration::from_secs(5), "not synced");
            std::thread::sleep(Duration::from_millis(2));
        }
        slowest = slowest.max(started.elapsed());
    }
    println!("the slowest took {slowest:?}");
    assert!(slowest < interval + Duration::from_millis(400), "{slowest:?} where {interval:?} are promised");
    let syncs = env.syncs.load(Ordering::SeqCst);
    std::thread::sleep(interval * 4);
    assert_eq!(env.syncs.load(Ordering::SeqCst), syncs, "nothing new, nothing synced");
    assert!(store.stats().syncs >= 8);
}

#[test]
fn a_long_interval_does_not_make_stopping_slow_and_stopping_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let env = FakeEnv::new(1 << 30);
    let store = open(dir.path(), &env, SyncMode::Every(Duration::from_secs(600)));
    let mut writer = store.writer().unwrap();
    writer.put(b"key", b"value", version(1), 0).unwrap();
    let position = writer.position();
    assert_eq!(position, 40);
    drop(writer);
    let started = Instant::now();
    store.close().unwrap();
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(env.syncs.load(Ordering::SeqCst) >= 1);
}

#[test]
fn the_mode_os_leaves_the_active_segment_to_the_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let env = FakeEnv::new(1 << 30);
    let store = open(dir.path(), &env, SyncMode::Os);
    let mut writer = store.writer().unwrap();
    writer.put(b"key", b"value", version(1), 0).unwrap();
    std::thread::sleep(Duration::from_millis(250));
    assert_eq!((writer.durable(), env.syncs.load(Ordering::SeqCst)), (0, 0));
    writer.sync().unwrap();
    assert_eq!(writer.durable(), writer.position());
}

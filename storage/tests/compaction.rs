//! Space comes back, at a bounded rate, and nothing comes back that was deleted.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{FakeEnv, files, scan, small, value_of, version};
use koltso_storage::{Env, Lookup, Options, Store, Writer};
use koltso_testkit::random::{Random, seed_or as seed};
use koltso_testkit::wait::soon;
use koltso_testkit::wall_ms;

fn options(folder: &Path) -> Options {
    Options { env: FakeEnv::new(1 << 40), ..small(folder) }
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:06}").into_bytes()
}

/// Writes records that fill and roll the active segment, so that what lies in it gets sealed.
fn roll(writer: &mut Writer, ms: u64) {
    for number in 0..6 {
        writer.put(format!("roll{number}").as_bytes(), &[0; 15_000], version(ms), 0).unwrap();
    }
}

#[test]
fn after_all_keys_were_overwritten_the_disk_holds_at_most_twice_the_live_bytes() {
    let seed = seed("after_all_keys_were_overwritten_the_disk_holds_at_most_twice_the_live_bytes", 21);
    let dir = tempfile::tempdir().unwrap();
    // With the share that a server uses.
    let (store, _) = Store::open(Options { compaction_dead_share: 0.33, ..options(dir.path()) }).unwrap();
    let mut writer = store.writer().unwrap();
    let mut rng = Random::seeded(seed);
    let mut ms = 1;
    for _ in 0..3 {
        for _ in 0..6_000 {
            let key = key(rng.below(6_000));
            ms += 1;
            let len = 300 + rng.below(400);
            writer.put(&key, &rng.bytes(len as usize), version(ms), 0).unwrap();
        }
    }
    soon("compaction catches up", || {
        let stats = store.stats();
        stats.disk_bytes <= 2 * stats.live_bytes
    });
    println!("{:?}", store.stats());
    let before = scan(&store, b"k", None, 1);
    drop((writer, store));
    let (store, _) = Store::open(options(dir.path())).unwrap();
    assert!(scan(&store, b"k", None, 1) == before);
}

#[test]
fn tombstones_and_expired_records_go_after_the_grace_and_nothing_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let env = FakeEnv::at(1 << 40, 10_000);
    let grace = Duration::from_millis(300);
    let options = || Options { env: env.clone(), agreed_after: Some(grace), ..options(dir.path()) };
    let (store, _) = Store::open(options()).unwrap();
    let mut writer = store.writer().unwrap();
    // The values lie in other segments than their tombstones, and those segments live on: most in
    // them is not deleted.
    for number in 0..1_000 {
        writer.put(&key(number), &[1; 200], version(9_000 + number), 0).unwrap();
    }
    for number in (0..1_000).step_by(10) {
        writer.delete(&key(number), version(10_000)).unwrap();
        writer.put(&key(number + 5), &[2; 200], version(10_000), 10_100).unwrap();
    }
    roll(&mut writer, 10_001);
    let gone: Vec<u64> = (0..1_000).step_by(5).collect();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(store.stats().tombstones, 100, "kept for the grace time");
    env.now_ms.store(20_000, Ordering::SeqCst);
    // What has the older versions is compacted when enough in it is dead; then the tombstones can
    // go.
    soon("tombstones go", || {
        for number in 0..1_000 {
            if number % 5 != 0 {
                writer
                    .put(&key(number), &[3; 200], version(20_000 + env.now_ms.fetch_add(1, Ordering::SeqCst)), 0)
                    .unwrap();
            }
        }
        roll(&mut writer, 20_001);
        std::thread::sleep(Duration::from_millis(100));
        let stats = store.stats();
        println!("{stats:?}");
        stats.tombstones == 0 && stats.records == 800 + 6
    });
    for number in &gone {
        assert_eq!(value_of(&store, &key(*number)), None);
    }
    drop((writer, store));
    for start in 0..3 {
        let (store, _) = Store::open(options()).unwrap();
        for number in &gone {
            assert_eq!(value_of(&store, &key(*number)), None, "start {start}");
        }
        assert_eq!(scan(&store, b"k", Some(b"l"), env.now_ms()).len(), 800, "start {start}");
        if start == 1 {
            store.close().unwrap();
        }
    }
}

#[test]
fn a_tombstone_stays_while_an_older_version_lies_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    // Nothing is compacted for its dead share alone, so the older version stays where it is.
    let options = || Options { compaction_dead_share: 0.6, ..options(dir.path()) };
    let (store, _) = Store::open(options()).unwrap();
    let mut writer = store.writer().unwrap();
    let ms = wall_ms() - 100_000;
    writer.put(b"deleted", b"older", version(ms), 0).unwrap();
    for number in 0..400 {
        writer.put(&key(number), &[1; 300], version(ms + 1), 0).unwrap();
    }
    // A segment of which nearly all is dead, and the tombstone in it.
    writer.delete(b"deleted", version(ms + 2)).unwrap();
    for round in 0..20 {
        writer.put(b"churn", &[round; 15_000], version(ms + 3 + u64::from(round)), 0).unwrap();
    }
    soon("the segment with the tombstone is compacted", || store.stats().compacted_segments >= 1);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(store.stats().tombstones, 1, "the older version would come back at the next start");
    drop((writer, store));
    for _ in 0..2 {
        let (store, _) = Store::open(options()).unwrap();
        assert_eq!(value_of(&store, b"deleted"), None);
        store.close().unwrap();
    }
}

#[test]
fn deleted_keys_stay_deleted_whatever_arrives_late_and_however_it_is_compacted() {
    let seed = seed("deleted_keys_stay_deleted_whatever_arrives_late_and_however_it_is_compacted", 31);
    let dir = tempfile::tempdir().unwrap();
    let grace = Duration::from_millis(60);
    let options = || Options { agreed_after: Some(grace), ..options(dir.path()) };
    let mut rng = Random::seeded(seed);
    let mut deleted = std::collections::BTreeSet::new();
    for round in 0..common::rounds(6) {
        let (store, _) = Store::open(options()).unwrap();
        for &number in &deleted {
            assert_eq!(value_of(&store, &key(number)), None, "round {round}");
        }
        let mut writers = [store.writer().unwrap(), store.writer().unwrap()];
        for step in 0..2_500_u64 {
            let number = rng.below(500);
            let ms = wall_ms();
            let writer = &mut writers[rng.below(2) as usize];
            match rng.below(10) {
                0..=3 if !deleted.contains(&number) => {
                    let len = rng.below(500);
                    writer.put(&key(number), &rng.bytes(len as usize), version(ms), 0).unwrap();
                }
                4 => {
                    writer.delete(&key(number), koltso_storage::Version::new((ms << 16) | 0xffff, 1)).unwrap();
                    deleted.insert(number);
                }
                // A version from before every delete of this run, late but within the grace time:
                // it never wins.
                5 if deleted.contains(&number) => {
                    writer.delete(&key(number), koltso_storage::Version::new((ms << 16) | 0xfffe, 1)).unwrap();
                    let late = koltso_storage::Version::new(((ms - 20) << 16) | 1, 0);
                    writer.put(&key(number), &[9; 100], late, 0).unwrap();
                }
                _ => {
                    writer.put(b"churn", &rng.bytes(400), version(ms), 0).unwrap();
                }
            }
            if step % 500 == 0 {
                std::thread::sleep(Duration::from_millis(30));
            }
        }
        for &number in &deleted {
            assert_eq!(value_of(&store, &key(number)), None, "round {round}");
        }
        drop(writers);
        std::thread::sleep(Duration::from_millis(100));
        if rng.one_in(2) {
            store.close().unwrap();
        }
    }
}

#[test]
fn many_small_segments_become_few() {
    let dir = tempfile::tempdir().unwrap();
    for start in 0..24_u64 {
        let (store, _) = Store::open(Options { compaction_dead_share: 1.1, ..options(dir.path()) }).unwrap();
        let mut writer = store.writer().unwrap();
        for number in 0..5 {
            writer.put(&key(start * 5 + number), &[start as u8; 100], version(start + 1), 0).unwrap();
        }
    }
    let (store, _) = Store::open(options(dir.path())).unwrap();
    // Seven may stay that were sealed too late for the rest, beside the one that compaction writes:
    // fewer than eight are left alone.
    soon("small segments are brought together", || files(dir.path(), "log").len() <= 8);
    assert_eq!(scan(&store, b"k", None, 1).len(), 120);
    drop(store);
    let (store, recovered) = Store::open(options(dir.path())).unwrap();
    assert_eq!(recovered.keys, 120);
    assert_eq!(scan(&store, b"k", None, 1).len(), 120);
}

#[test]
fn compaction_keeps_to_its_rate() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(Options { compaction_dead_share: 1.1, ..options(dir.path()) }).unwrap();
    let mut writer = store.writer().unwrap();
    for round in 0..2_u64 {
        for number in (0..8_000).filter(|number| round == 0 || number % 2 == 0) {
            writer.put(&key(number), &[round as u8; 470], version(round + 1), 0).unwrap();
        }
    }
    drop(writer);
    store.close().unwrap();
    drop(store);
    // 4 MiB and more to read at 2 MiB a second.
    let started = Instant::now();
    let (store, _) = Store::open(Options { compaction_rate: 2 << 20, ..options(dir.path()) }).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let moved = store.stats().compacted_bytes as f64 / started.elapsed().as_secs_f64();
    println!("{moved:.0} bytes a second");
    assert!(moved < 3e6, "{moved:.0} bytes a second where two million are allowed");
    assert!(moved > 2e5, "{moved:.0} bytes a second is hardly compaction");
    // A slow rate does not make stopping slow.
    let stopping = Instant::now();
    store.close().unwrap();
    assert!(stopping.elapsed() < Duration::from_secs(1));
}

#[test]
fn records_from_a_time_of_larger_segments_do_not_stop_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let large =
        Options { segment_size: 1 << 20, value_max: 512 << 10, compaction_dead_share: 1.1, ..options(dir.path()) };
    let (store, _) = Store::open(large).unwrap();
    let mut writer = store.writer().unwrap();
    for number in 0..10 {
        writer.put(&key(number), &[1; 300 << 10], version(1), 0).unwrap();
    }
    for number in (0..10).filter(|number| number % 2 == 0) {
        writer.put(&key(number), &[2; 1_000], version(2), 0).unwrap();
    }
    drop(writer);
    store.close().unwrap();
    drop(store);
    let (store, _) = Store::open(options(dir.path())).unwrap();
    let mut writer = store.writer().unwrap();
    for round in 0..300_u64 {
        writer.put(b"churn", &[3; 2_000], version(round + 1), 0).unwrap();
    }
    soon("the others are compacted", || store.stats().compacted_segments > 3);
    for number in 0..10 {
        let len = if number % 2 == 0 { 1_000 } else { 300 << 10 };
        assert_eq!(value_of(&store, &key(number)).unwrap().len(), len);
    }
    assert!(matches!(writer.put(b"k", &[0; 17 << 10], version(1), 0), Err(koltso_storage::WriteError::Value { .. })));
}

/// A cursor holds segments that are given back meanwhile, and their slots get other segments: it
/// still finds each key once, and never a version from before its start.
#[test]
fn a_range_is_right_while_everything_under_it_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(options(dir.path())).unwrap();
    let mut writer = store.writer().unwrap();
    let mut clock = 0;
    // In the same order and sizes each time, so the same keys lie at the same offsets.
    let mut write = |writer: &mut Writer| {
        clock += 1;
        for number in 0..500 {
            writer.put(&key(number), &[clock as u8; 300], version(clock), 0).unwrap();
        }
        clock as u8
    };
    write(&mut writer);
    let at_start = write(&mut writer);
    let mut cursor = common::cursor(&store, b"k", None);
    let mut found = 0;
    while let Some((key_found, byte)) = cursor.next(1, |key, value| match value {
        koltso_storage::Value::Inline(bytes) => (key.to_vec(), bytes[0]),
        koltso_storage::Value::Large(_) => panic!("none is large"),
    }) {
        assert_eq!(key_found, key(found));
        assert!(byte >= at_start, "{byte} where {at_start} was there before the range began");
        found += 1;
        if found % 100 == 0 {
            let before = store.stats().compacted_segments;
            soon("old segments go", || {
                write(&mut writer);
                store.stats().compacted_segments > before + 4
            });
        }
        if found == 400 {
            for number in 450..500 {
                writer.delete(&key(number), version(1_000)).unwrap();
            }
            let before = store.stats().compacted_segments;
            soon("old segments go", || {
                write(&mut writer);
                store.stats().compacted_segments > before + 4
            });
        }
    }
    assert_eq!(found, 450, "the others were deleted before the range came to them");
}

/// A version that arrives twice is in the log twice; the copy that lost must not stand for the key
/// when the segment is compacted, or the segment would stay for ever.
#[test]
fn versions_that_arrived_twice_do_not_keep_their_segment() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(options(dir.path())).unwrap();
    let mut writer = store.writer().unwrap();
    for round in 0..40 {
        for number in 0..20 {
            writer.put(&key(number), &[1; 100], version(number + 1), 0).unwrap();
        }
        if round == 39 {
            roll(&mut writer, 1);
        }
    }
    let first = files(dir.path(), "log").remove(0);
    soon("the segment is compacted", || !first.exists());
    assert_eq!(scan(&store, b"k", Some(b"l"), 1).len(), 20);
}

/// In a cluster what has expired is remembered until replicas agree, but nobody gets to see its value.
#[test]
fn expired_values_give_their_bytes_back_while_they_are_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Options { agreed_after: None, ..options(dir.path()) };
    let (store, _) = Store::open(options()).unwrap();
    let mut writer = store.writer().unwrap();
    let expires = wall_ms() + 300;
    for number in 0..1_000 {
        writer.put(&key(number), &[7; 2_000], version(number + 1), expires).unwrap();
    }
    writer.put(b"stays", &[8; 2_000], version(1), 0).unwrap();
    soon("it takes less than a tenth of the space", || {
        let stats = store.stats();
        stats.live_bytes + stats.dead_bytes < 200_000
    });
    let now = wall_ms();
    let remembered = |store: &Store, number: u64| {
        store.get(&key(number), now, |found| match found {
            Lookup::Absent(Some(it)) => it.version == version(number + 1),
            other => panic!("{other:?}"),
        })
    };
    assert!((0..1_000).all(|number| remembered(&store, number)), "an older version could come back");
    assert_eq!(value_of(&store, b"stays"), Some(vec![8; 2_000]));
    drop(writer);
    store.close().unwrap();
    drop(store);
    let (store, _) = Store::open(options()).unwrap();
    assert!((0..1_000).all(|number| remembered(&store, number)), "after a restart");
}

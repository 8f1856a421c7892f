//! What says "absent" goes when replicas have agreed on it and not before, and nothing comes back.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use common::{rounds, scan, small, value_of, version};
use koltso_model::{Flags, Key, Record};
use koltso_storage::{KeyHash, Newest, Options, PARTITIONS, Store, Version, Writer};
use koltso_testkit::random::{Random, seed_or as seed};
use koltso_testkit::wait::soon;

const FROM: u8 = 3;

fn options(folder: &Path) -> Options {
    Options { agreed_after: None, ..small(folder) }
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:06}").into_bytes()
}

fn write(writer: &mut Writer, key: &[u8], value: &[u8], version: Version, expires_at_ms: u64, flags: Flags) {
    let record = Record { key: Key::new(key), value, version, expires_at_ms, flags, attributes: &[][..] };
    writer.apply(&record).unwrap();
}

/// Fills and rolls the active segment, so that what lies in it gets sealed, with values of which
/// some are dead soon and compaction moves the others, so that its segments are sealed, too.
fn roll(writer: &mut Writer) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    for _ in 0..30 {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let key = format!("roll{}", number % 41);
        write(writer, key.as_bytes(), &[0; 3_000], version(1_000_000 + number), 0, Flags::new(1));
    }
}

fn agree(store: &Store, clock: u64) {
    store.agreements().begin(clock);
    for partition in 0..PARTITIONS {
        let arrivals = store.agreements().arrivals(FROM, partition);
        assert!(store.agreements().reached(FROM, partition, arrivals, clock));
    }
}

fn is_known(store: &Store, key: &[u8]) -> bool {
    store.newest(key, |found| !matches!(found, Newest::None))
}

/// Writes values, and then deletes or has expired what stands for them in other segments.
fn with_absent_keys(writer: &mut Writer) {
    let flags = Flags::new(FROM);
    for number in 0..300 {
        write(writer, &key(number), &[1; 200], version(number + 1), 0, flags);
    }
    roll(writer);
    for number in 0..300 {
        match number % 2 {
            0 => write(writer, &key(number), &[], version(1_000 + number), 0, flags.tombstone()),
            _ => write(writer, &key(number), &[2; 200], version(1_000 + number), 5_000, flags),
        }
    }
    roll(writer);
}

#[test]
fn what_says_absent_stays_until_replicas_agree_and_then_nothing_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(options(dir.path())).unwrap();
    let mut writer = store.writer().unwrap();
    with_absent_keys(&mut writer);
    // Half of it is older than what was agreed on.
    std::thread::sleep(Duration::from_millis(300));
    assert!((0..300).all(|number| is_known(&store, &key(number))), "nobody has agreed on anything");
    assert_eq!(store.forgotten(), 0);

    agree(&store, version(1_149).clock);
    soon("what was agreed on goes", || {
        roll(&mut writer);
        (0..150).all(|number| !is_known(&store, &key(number)))
    });
    assert!((150..300).all(|number| is_known(&store, &key(number))), "newer than what was agreed on");
    assert_eq!(store.forgotten(), version(1_149).clock);

    // A start knows of no agreements, and what was forgotten.
    drop((writer, store));
    let (store, _) = Store::open(options(dir.path())).unwrap();
    assert_eq!(store.forgotten(), version(1_149).clock);
    assert!((150..300).all(|number| is_known(&store, &key(number))));
    let mut writer = store.writer().unwrap();
    roll(&mut writer);
    std::thread::sleep(Duration::from_millis(300));
    assert!((150..300).all(|number| is_known(&store, &key(number))), "nobody has agreed since the start");
    agree(&store, version(2_000).clock);
    soon("the rest goes", || {
        roll(&mut writer);
        (0..300).all(|number| !is_known(&store, &key(number)))
    });
    assert_eq!(store.forgotten(), version(1_299).clock, "the newest that was dropped");
    drop(writer);
    store.close().unwrap();
    drop(store);
    let (store, _) = Store::open(options(dir.path())).unwrap();
    // What was forgotten where it lay may be found again, as what says "absent". What it had replaced is not.
    assert!(scan(&store, b"k", Some(b"l"), 5_001).is_empty());
    assert_eq!(store.forgotten(), version(1_299).clock);
}

#[test]
fn what_comes_late_is_not_covered_by_what_was_agreed_before() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(options(dir.path())).unwrap();
    let mut writer = store.writer().unwrap();
    let flags = Flags::new(FROM);
    agree(&store, version(2_000).clock);
    let at = |number: u64| KeyHash::of(&key(number)).partition();
    write(&mut writer, &key(1), b"value", version(1), 0, flags);
    assert_eq!(store.agreements().bound(FROM, at(1)), version(2_000).clock, "it is none that is dropped");
    write(&mut writer, &key(2), b"", version(2), 0, flags.tombstone());
    write(&mut writer, &key(3), b"value", version(3), 9, flags);
    write(&mut writer, &key(4), b"", version(2_001), 0, flags.tombstone());
    assert_eq!([2, 3].map(|number| store.agreements().bound(FROM, at(number))), [0, 0]);
    assert_eq!([1, 2, 3, 4].map(|number| store.agreements().arrivals(FROM, at(number))), [0, 1, 1, 0]);
    assert_eq!(store.agreements().bound(FROM, at(4)), version(2_000).clock, "it is newer");
    roll(&mut writer);
    std::thread::sleep(Duration::from_millis(400));
    assert!((1..=4).all(|number| is_known(&store, &key(number))));
    agree(&store, version(2_000).clock);
    soon("they go once replicas have agreed on them", || {
        roll(&mut writer);
        !is_known(&store, &key(2)) && !is_known(&store, &key(3))
    });
    assert!(is_known(&store, &key(1)) && is_known(&store, &key(4)));
}

#[test]
fn strays_go_when_those_that_keep_them_agree() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(options(dir.path())).unwrap();
    let keeps = |partition: usize| partition.is_multiple_of(2);
    store.agreements().keep_only(|from, partition| from != FROM || keeps(partition));
    let mut writer = store.writer().unwrap();
    for number in 0..400 {
        let flags = if number % 10 == 0 { Flags::new(FROM).tombstone() } else { Flags::new(FROM) };
        write(&mut writer, &key(number), b"value", version(number + 1), 0, flags);
    }
    roll(&mut writer);
    std::thread::sleep(Duration::from_millis(300));
    assert!((0..400).all(|number| is_known(&store, &key(number))), "nobody has agreed");
    agree(&store, version(300).clock);
    let stays = |number: u64| {
        let is_old = number < 300;
        let absent = number.is_multiple_of(10);
        !is_old || (keeps(KeyHash::of(&key(number)).partition()) && !absent)
    };
    soon("strays and tombstones go", || {
        roll(&mut writer);
        (0..400).all(|number| is_known(&store, &key(number)) == stays(number))
    });
    assert_eq!(store.forgotten(), version(291).clock, "values of others are not forgotten deletes");
    drop(writer);
    store.close().unwrap();
    drop(store);
    let (store, _) = Store::open(options(dir.path())).unwrap();
    // (Of what went, some may be back, if its segment was being compacted.)
    assert!((0..400).all(|number| is_known(&store, &key(number)) || !stays(number)));
}

#[test]
fn the_newest_record_of_a_key_is_told_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(Options { value_max: 1 << 20, segment_size: 2 << 20, ..options(dir.path()) }).unwrap();
    let mut writer = store.writer().unwrap();
    let newest = |key: &[u8]| {
        store.newest(key, |found| match found {
            Newest::Record(record) => Some(record.owned()),
            Newest::None => None,
            Newest::Damaged => panic!("damaged"),
        })
    };
    assert_eq!(newest(b"key"), None);
    let value = vec![7; 300_000];
    let type_ = [1, 10, b't', b'e', b'x', b't', b'/', b'p', b'l', b'a', b'i', b'n'];
    for (ms, value, expires_at_ms, flags, attributes) in [
        (1, &b"value"[..], 0, Flags::new(2), &[][..]),
        (2, b"", 0, Flags::new(2).tombstone(), &[]),
        (3, b"gone", 5, Flags::from_bits(0x4a0a), &type_),
        (4, &value, 0, Flags::new(FROM), &type_),
    ] {
        let record =
            Record { key: Key::new(&b"key"[..]), value, version: version(ms), expires_at_ms, flags, attributes };
        writer.apply(&record).unwrap();
        assert_eq!(newest(b"key"), Some(record.owned()));
    }
}

/// A writer deletes keys whose deletes come late, in one partition, while another thread comes to
/// agreements by what it sees, and compaction drops whatever it may: only what was in
/// an agreement is ever dropped.
#[test]
fn only_what_was_agreed_on_is_ever_dropped_whatever_comes_late() {
    let seed = seed("only_what_was_agreed_on_is_ever_dropped_whatever_comes_late", 5);
    for round in 0..rounds(2) {
        late(seed.wrapping_add(round));
    }
}

fn late(seed: u64) {
    const DELETES: usize = 300;
    let mut random = Random::seeded(seed);
    let dir = tempfile::tempdir().unwrap();
    let options = || Options { reap_interval: Duration::from_millis(1), ..options(dir.path()) };
    let (store, _) = Store::open(options()).unwrap();
    let partition = random.below(PARTITIONS as u64) as usize;
    let in_partition = |key: &Vec<u8>| KeyHash::of(key).partition() == partition;
    let keys: Vec<Vec<u8>> = (0..).map(key).filter(in_partition).take(DELETES).collect();
    let clock = version(1_000).clock;
    let (written, agreed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let is_done = || written.load(Ordering::SeqCst) == DELETES;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random::seeded(seed ^ 1);
            let mut writer = store.writer().unwrap();
            for (number, key) in keys.iter().enumerate() {
                write(&mut writer, key, b"value", Version::new(1, 1), 0, Flags::new(1));
                let flags = Flags::new(FROM).tombstone();
                write(&mut writer, key, b"", Version::new(number as u64 + 2, 1), 0, flags);
                if random.one_in(10) {
                    roll(&mut writer);
                    std::thread::sleep(Duration::from_millis(random.below(300)));
                }
                written.store(number + 1, Ordering::SeqCst);
            }
        });
        scope.spawn(|| {
            let mut random = Random::seeded(seed ^ 2);
            while !is_done() {
                let agreements = store.agreements();
                agreements.begin(clock);
                let arrivals = agreements.arrivals(FROM, partition);
                // The other replicas have the same as this one has now.
                let seen = keys.iter().rposition(|key| is_known(&store, key)).map_or(0, |last| last + 1);
                agreed.fetch_max(seen, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(random.below(30)));
                agreements.reached(FROM, partition, arrivals, clock);
                std::thread::sleep(Duration::from_millis(random.below(800)));
            }
        });
        while !is_done() {
            let written = written.load(Ordering::SeqCst);
            let dropped = keys[..written].iter().rposition(|key| !is_known(&store, key));
            let agreed = agreed.load(Ordering::SeqCst);
            assert!(dropped.is_none_or(|number| number < agreed), "{dropped:?} was dropped, {agreed} were agreed on");
        }
    });
    let left = keys.iter().filter(|key| is_known(&store, key)).count();
    println!("seed {seed}: {left} of {DELETES} are left, {:?}", store.stats());
    assert!(left < DELETES, "nothing was dropped meanwhile");
    drop(store);
    let (store, _) = Store::open(options()).unwrap();
    assert!(keys.iter().all(|key| value_of(&store, key).is_none()), "something came back");
}

/// A few deletes among much that is live: no compaction comes by for them.
#[test]
fn what_was_agreed_on_is_forgotten_where_little_else_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let lazy = || Options { compaction_dead_share: 0.9, ..options(dir.path()) };
    let (store, _) = Store::open(lazy()).unwrap();
    let mut writer = store.writer().unwrap();
    let (flags, gone) = (Flags::new(FROM), |number: u64| number % 20 == 7);
    for number in 0..400 {
        write(&mut writer, &key(number), &[1; 3_000], version(number + 1), 0, flags);
        if gone(number) {
            write(&mut writer, &key(number), &[], version(1_000 + number), 0, flags.tombstone());
        }
    }
    let is_forgotten =
        |store: &Store| (0..400).filter(|&number| gone(number)).all(|number| !is_known(store, &key(number)));
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(store.stats().tombstones, 20, "nobody has agreed on anything");
    agree(&store, version(1_200).clock);
    soon("those are forgotten that were agreed on", || store.stats().tombstones == 10);
    agree(&store, version(2_000).clock);
    soon("all are, in sealed segments and in the active one", || is_forgotten(&store));
    let stats = store.stats();
    assert_eq!((stats.tombstones, stats.compacted_segments, stats.records), (0, 0, 380));
    assert_eq!(store.forgotten(), version(1_387).clock);
    // A start finds the deletes again, and what they deleted does not come back.
    drop((writer, store));
    let (store, _) = Store::open(lazy()).unwrap();
    assert_eq!(scan(&store, b"k", Some(b"l"), 1).len(), 380);
    agree(&store, version(2_000).clock);
    soon("they are forgotten again", || is_forgotten(&store));
    assert_eq!(scan(&store, b"k", Some(b"l"), 1).len(), 380);
}

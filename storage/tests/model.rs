//! The engine beside a map with the same rule, newest version wins: random operations over small
//! segments, with clean stops, crashes and copies taken while it runs, and with compaction working
//! all the time.
//!
//! Repeat a failure with the printed `KOLTSO_SEED`; `KOLTSO_TEST_LONG=1` runs twenty times as long.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{FakeEnv, Seen, copy_folder, cursor, get, rounds, scan, small};
use koltso_model::{Flags, Key, digest_word};
use koltso_storage::{Applied, KeyHash, Options, PARTITIONS, Store, Value, Version, Writer, leaf_of};
use koltso_testkit::random::{Random, seed_or as seed};
use koltso_testkit::wait::soon;

#[derive(Clone, Debug)]
struct Record {
    version: Version,
    value: Option<Vec<u8>>,
    expires_at_ms: u64,
}

#[derive(Default)]
struct Model {
    records: BTreeMap<Vec<u8>, Record>,
}

impl Model {
    fn apply(&mut self, key: &[u8], record: Record) -> Applied {
        match self.records.get(key) {
            Some(old) if old.version >= record.version => Applied::Superseded(old.version),
            _ => {
                self.records.insert(key.to_vec(), record);
                Applied::Newest
            }
        }
    }

    fn get(&self, key: &[u8], now_ms: u64) -> Seen {
        match self.records.get(key) {
            Some(Record { version, value: Some(value), expires_at_ms })
                if *expires_at_ms == 0 || *expires_at_ms > now_ms =>
            {
                Seen::Value(*version, value.clone())
            }
            _ => Seen::Absent,
        }
    }

    fn live(&self, start: &[u8], end: Option<&[u8]>, now_ms: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
        let from = self.records.range(start.to_vec()..).take_while(|(key, _)| end.is_none_or(|end| &key[..] < end));
        from.filter_map(|(key, _)| match self.get(key, now_ms) {
            Seen::Value(_, value) => Some((key.clone(), value)),
            _ => None,
        })
        .collect()
    }
}

fn key_of(rng: &mut Random) -> Vec<u8> {
    // Few keys, many of them prefixes of others, some long.
    let number = rng.below(300);
    match number % 7 {
        0 => vec![b'a'; 1 + number as usize / 7],
        1 => format!("key/{number:04}/{}", "x".repeat(number as usize)).into_bytes(),
        2 => (number as u32).to_le_bytes().to_vec(),
        _ => format!("key{number}").into_bytes(),
    }
}

fn value_of(rng: &mut Random) -> Vec<u8> {
    let len = match rng.below(20) {
        0 => 0,
        1 => 15_000 + rng.below(1_300),
        2..=4 => rng.below(3_000),
        _ => rng.below(120),
    };
    rng.bytes(len as usize)
}

type Leaves = BTreeMap<(u8, usize, usize), u64>;

/// The leaves of the digests that are not 0, by `from`, partition and number.
fn leaves(store: &Store) -> Leaves {
    let digests = store.digests();
    let partitions = digests.in_use().flat_map(|from| (0..PARTITIONS).map(move |partition| (from, partition)));
    let of = |(from, partition)| digests.leaves(from, partition).unwrap().map(|leaf| ((from, partition), leaf));
    let all = partitions.flat_map(|place| of(place).into_iter().enumerate());
    all.filter(|(_, (_, word))| *word != 0)
        .map(|(leaf, ((from, partition), word))| ((from, partition, leaf), word))
        .collect()
}

/// The same, of what is listed.
fn listed_leaves(store: &Store) -> Leaves {
    let Ok(mut listing) = store.partition_entries(0..PARTITIONS) else {
        return Leaves::new();
    };
    let mut leaves = Leaves::new();
    while let Some((place, word)) = listing.next(|key, version, flags, _| {
        let hash = KeyHash::of(key);
        ((flags.from(), hash.partition(), leaf_of(hash)), digest_word(version))
    }) {
        *leaves.entry(place).or_default() ^= word;
    }
    leaves.retain(|_, word| *word != 0);
    leaves
}

fn apply(writer: &mut Writer, key: &[u8], value: &[u8], version: Version, expires_at_ms: u64, flags: Flags) -> Applied {
    let record = koltso_model::Record { key: Key::new(key), value, version, expires_at_ms, flags, attributes: &[][..] };
    writer.apply(&record).unwrap()
}

/// The listing of partitions: what is live is in it once, with its version; so are tombstones and
/// expired records until compaction drops them, and nothing else.
fn compare_partitions(store: &Store, model: &Model, now: u64, when: &str) {
    let list = |partitions: std::ops::Range<usize>| {
        let mut listing = store.partition_entries(partitions.clone());
        soon("the newest records are sorted", || {
            listing = store.partition_entries(partitions.clone());
            listing.is_ok()
        });
        let mut listing = listing.unwrap();
        let mut found: Vec<_> =
            std::iter::from_fn(|| listing.next(|key, version, flags, _| (key.to_vec(), version, flags.is_tombstone())))
                .collect();
        found.sort();
        found
    };
    let all = list(0..PARTITIONS);
    assert!(all.windows(2).all(|pair| pair[0].0 != pair[1].0), "{when}: a key is listed twice");
    for (key, version, tombstone) in &all {
        let record = &model.records[key];
        assert_eq!((*version, *tombstone), (record.version, record.value.is_none()), "{when}: {key:?}");
    }
    for (key, _) in model.live(&[0], None, now) {
        assert!(all.binary_search_by(|(listed, ..)| listed.cmp(&key)).is_ok(), "{when}: {key:?} is not listed");
    }
    // Compaction may drop something between the two.
    soon("the digests are those of what is listed", || listed_leaves(store) == leaves(store));
    // Their leaves alone, in a few partitions.
    let some: BTreeMap<u16, [u64; 4]> =
        all.iter().step_by(1 + all.len() / 5).fold(BTreeMap::new(), |mut some, (key, ..)| {
            let (hash, leaf) = (KeyHash::of(key), leaf_of(KeyHash::of(key)));
            some.entry(hash.partition() as u16).or_insert([0; 4])[leaf / 64] |= 1 << (leaf % 64);
            some
        });
    let some: Vec<_> = some.into_iter().collect();
    let is_wanted = |key: &[u8]| {
        let (hash, leaf) = (KeyHash::of(key), leaf_of(KeyHash::of(key)));
        some.iter().any(|(of, set)| usize::from(*of) == hash.partition() && set[leaf / 64] & (1 << (leaf % 64)) != 0)
    };
    soon("leaves list what partitions do", || {
        let Ok(mut listing) = store.leaf_entries(&some) else { return false };
        let found: Vec<_> = std::iter::from_fn(|| listing.next(|key, version, _, _| (key.to_vec(), version))).collect();
        let wanted: Vec<_> =
            list(0..PARTITIONS).into_iter().filter(|(key, ..)| is_wanted(key)).map(|(k, v, _)| (k, v)).collect();
        found == wanted
    });
    // Single ones, and one with its neighbours.
    for (key, ..) in all.iter().step_by(1 + all.len() / 5) {
        let partition = KeyHash::of(key).partition();
        for wanted in [partition..partition + 1, partition.saturating_sub(100)..partition + 100] {
            let of_them = |listed: &&(Vec<u8>, Version, bool)| wanted.contains(&KeyHash::of(&listed.0).partition());
            let live = |listed: &&(Vec<u8>, Version, bool)| model.get(&listed.0, now) != Seen::Absent;
            let expected: Vec<_> = all.iter().filter(of_them).filter(live).cloned().collect();
            let found: Vec<_> = list(wanted.clone()).iter().filter(live).cloned().collect();
            assert_eq!(found, expected, "{when}: partitions {wanted:?}");
        }
    }
}

fn compare(store: &Store, model: &Model, now: u64, when: &str) {
    compare_partitions(store, model, now, when);
    for key in model.records.keys() {
        assert_eq!(get(store, key, now), model.get(key, now), "{when}: key {:?}", String::from_utf8_lossy(key));
    }
    let (found, wanted) = (scan(store, &[0], None, now), model.live(&[0], None, now));
    let missing: Vec<_> = wanted.iter().filter(|record| !found.contains(record)).map(|(key, _)| key).collect();
    assert!(
        found == wanted,
        "{when}: a range of {} records where {} are live, without {missing:?}",
        found.len(),
        wanted.len()
    );
}

/// All replicas have what this one has, up to a clock.
fn agree(store: &Store, clock: u64) {
    let agreements = store.agreements();
    agreements.begin(clock);
    for (from, partition) in (1..=3).flat_map(|from| (0..PARTITIONS).map(move |partition| (from, partition))) {
        assert!(agreements.reached(from, partition, agreements.arrivals(from, partition), clock));
    }
}

/// `grace_ms` is how far back a version may arrive late and still lose; compaction keeps tombstones
/// that long.
fn run(seed: u64, steps: u64, sync: koltso_storage::SyncMode) {
    let mut rng = Random::seeded(seed);
    let mut clock = 1_000_000;
    let dir = tempfile::tempdir().unwrap();
    let grace_ms = 50;
    // Whether replicas say what may go, or time does.
    let told = rng.one_in(2);
    let env = FakeEnv::at(1 << 40, clock);
    let options = |folder: &std::path::Path| Options {
        sync,
        env: env.clone(),
        agreed_after: (!told).then(|| std::time::Duration::from_millis(grace_ms)),
        ..small(folder)
    };
    let mut folder = dir.path().join("0");
    let (mut store, _) = Store::open(options(&folder)).unwrap();
    let mut writers: Vec<Writer> = (0..3).map(|_| store.writer().unwrap()).collect();
    let mut model = Model::default();
    for step in 0..steps {
        if rng.one_in(3) {
            clock += rng.below(3);
            env.now_ms.store(clock, Ordering::SeqCst);
        }
        if told && rng.one_in(100) {
            agree(&store, (clock - grace_ms) << 16);
        }
        // A fraction of the millisecond that does not ascend with the steps, and is the same for
        // none of them.
        let mut version = Version::new((clock << 16) | (step.wrapping_mul(0x9e37) & 0xffff), 1);
        if rng.one_in(8) {
            // Late, but within the grace time.
            version = Version::new(((clock - rng.below(grace_ms - 5)) << 16) | rng.below(0xffff), 2);
        }
        let key = key_of(&mut rng);
        let flags = Flags::new(1 + rng.below(3) as u8);
        match rng.below(1_000) {
            0..=599 => {
                let value = value_of(&mut rng);
                let expires_at_ms = if rng.one_in(10) { clock + rng.below(60) } else { 0 };
                let writer = &mut writers[rng.below(3) as usize];
                let applied = apply(writer, &key, &value, version, expires_at_ms, flags);
                let wanted = model.apply(&key, Record { version, value: Some(value), expires_at_ms });
                assert_eq!(applied, wanted, "step {step}");
            }
            600..=749 => {
                let writer = &mut writers[rng.below(3) as usize];
                let applied = apply(writer, &key, &[], version, 0, flags.tombstone());
                let wanted = model.apply(&key, Record { version, value: None, expires_at_ms: 0 });
                assert_eq!(applied, wanted, "step {step}");
            }
            750..=949 => assert_eq!(get(&store, &key, clock), model.get(&key, clock), "step {step}"),
            950..=979 => {
                let end = key_of(&mut rng);
                let end = rng.one_in(2).then_some(&end[..]);
                let (found, wanted) = (scan(&store, &key, end, clock), model.live(&key, end, clock));
                assert!(found == wanted, "step {step}: a range of {} where {} are live", found.len(), wanted.len());
            }
            980..=990 => std::thread::sleep(std::time::Duration::from_millis(rng.below(4))),
            991..=993 => {
                // A crash: what the copy holds is what a machine would find.
                let old = std::mem::replace(&mut folder, dir.path().join(format!("{step}")));
                copy_folder(&old, &folder);
                writers.clear();
                drop(store);
                let (again, recovered) = Store::open(options(&folder)).unwrap();
                // Compaction may have been in the middle of a record while its log was copied.
                println!("step {step}: {recovered:?}");
                store = again;
                let _ = std::fs::remove_dir_all(old);
                compare(&store, &model, clock, &format!("step {step}, from a copy"));
                writers = (0..3).map(|_| store.writer().unwrap()).collect();
            }
            994..=996 => {
                writers.clear();
                drop(store);
                let (again, recovered) = Store::open(options(&folder)).unwrap();
                assert_eq!((recovered.damaged, recovered.torn_bytes), (0, 0), "step {step}");
                store = again;
                compare(&store, &model, clock, &format!("step {step}, after a drop"));
                writers = (0..3).map(|_| store.writer().unwrap()).collect();
            }
            _ => {
                writers.clear();
                store.close().unwrap();
                drop(store);
                let (again, recovered) = Store::open(options(&folder)).unwrap();
                assert_eq!((recovered.damaged, recovered.scanned), (0, 0), "step {step}");
                store = again;
                compare(&store, &model, clock, &format!("step {step}, after a clean stop"));
                writers = (0..3).map(|_| store.writer().unwrap()).collect();
            }
        }
    }
    compare(&store, &model, clock, "at the end");
    let stats = store.stats();
    println!("at the end: {stats:?}");
    writers.clear();
    store.close().unwrap();
}

#[test]
fn random_operations_end_as_in_a_map() {
    let seed = seed("random_operations_end_as_in_a_map", 1);
    for round in 0..rounds(4) {
        run(seed.wrapping_add(round), 6_000, koltso_storage::SyncMode::Os);
    }
}

#[test]
fn random_operations_with_syncs_end_as_in_a_map() {
    let seed = seed("random_operations_with_syncs_end_as_in_a_map", 100);
    for round in 0..rounds(1) {
        let interval = std::time::Duration::from_millis(20);
        run(seed.wrapping_add(round), 4_000, koltso_storage::SyncMode::Every(interval));
    }
}

/// The newest version of a key whose write has returned: a reader that begins later sees this one
/// or a newer one.
struct Shelf {
    newest_acknowledged: AtomicU64,
}

fn stamped(key: u64, version: u64, len: usize) -> Vec<u8> {
    let mut value = [key.to_le_bytes(), version.to_le_bytes()].concat();
    value.resize(16 + len, (key ^ version) as u8);
    value
}

fn check_stamp(key: u64, version: Version, value: &[u8]) {
    assert!(value.len() >= 16);
    assert_eq!(value[..8], key.to_le_bytes(), "another key's value");
    assert_eq!(value[8..16], version.clock.to_le_bytes(), "another version's value");
    assert!(value[16..].iter().all(|&b| b == (key ^ version.clock) as u8), "half a value");
}

#[test]
fn writers_readers_ranges_and_compaction_do_not_disturb_each_other() {
    const KEYS: u64 = 400;
    let seed = seed("writers_readers_ranges_and_compaction_do_not_disturb_each_other", 7);
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(small_large(dir.path())).unwrap();
    let store = Arc::new(store);
    // Beside the busy keys lie some that nobody touches: every range has each exactly once.
    let mut writer = store.writer().unwrap();
    for number in 0..1_000_u64 {
        let key = format!("still/{number:05}");
        writer.put(key.as_bytes(), &stamped(number, 1, (number % 900) as usize), Version::new(1, 0), 0).unwrap();
    }
    let shelves: Arc<Vec<Shelf>> =
        Arc::new((0..KEYS).map(|_| Shelf { newest_acknowledged: AtomicU64::new(0) }).collect());
    let clock = Arc::new(AtomicU64::new(2));
    let stop = Arc::new(AtomicBool::new(false));
    let busy = |key: u64| format!("{}/{key:05}", if key.is_multiple_of(2) { "busy" } else { "zeal" }).into_bytes();
    let deadline = std::time::Duration::from_millis(2_500 * rounds(1));
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let (store, shelves, clock, stop) = (store.clone(), shelves.clone(), clock.clone(), stop.clone());
            scope.spawn(move || {
                let mut rng = Random::seeded(seed ^ (thread << 32));
                let mut writer = store.writer().unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let key = rng.below(KEYS);
                    let version = clock.fetch_add(1, Ordering::SeqCst);
                    let len = if rng.one_in(200) { 20_000 } else { rng.below(400) };
                    let value = stamped(key, version, len as usize);
                    writer.put(&busy(key), &value, Version::new(version, 0), 0).unwrap();
                    shelves[key as usize].newest_acknowledged.fetch_max(version, Ordering::SeqCst);
                    if version.is_multiple_of(64) {
                        // The engine's threads are nice; on two cores they would get little else.
                        std::thread::sleep(std::time::Duration::from_millis(2));
                    }
                }
            });
        }
        for thread in 0..2_u64 {
            let (store, shelves, stop) = (store.clone(), shelves.clone(), stop.clone());
            scope.spawn(move || {
                let mut rng = Random::seeded(seed ^ (thread << 40));
                let mut last = vec![0; KEYS as usize];
                while !stop.load(Ordering::Relaxed) {
                    if rng.one_in(500) {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                    let key = rng.below(KEYS);
                    let least =
                        shelves[key as usize].newest_acknowledged.load(Ordering::SeqCst).max(last[key as usize]);
                    match get(&store, &busy(key), 1) {
                        Seen::Absent => assert_eq!(least, 0, "an acknowledged value is gone"),
                        Seen::Damaged => panic!("nothing was damaged"),
                        Seen::Value(version, value) => {
                            check_stamp(key, version, &value);
                            assert!(version.clock >= least, "version {} after {least}", version.clock);
                            last[key as usize] = version.clock;
                        }
                    }
                }
            });
        }
        let (shelves, stop_here) = (shelves.clone(), stop.clone());
        let store_here = store.clone();
        scope.spawn(move || {
            let mut ranges = 0;
            while !stop_here.load(Ordering::Relaxed) {
                let least: Vec<u64> =
                    shelves.iter().map(|shelf| shelf.newest_acknowledged.load(Ordering::SeqCst)).collect();
                let mut cursor = cursor(&store_here, b"a", None);
                let (mut still, mut seen, mut last) = (0, 0, Vec::new());
                let mut steps = 0;
                loop {
                    steps += 1;
                    if ranges % 3 == 1 && steps % 500 == 0 {
                        let _ = cursor.refresh();
                    }
                    let record = cursor.next(1, |key, value| match value {
                        Value::Inline(bytes) => (key.to_vec(), bytes.to_vec()),
                        Value::Large(large) => (key.to_vec(), large.verify().unwrap().as_ref().to_vec()),
                    });
                    let Some((key, value)) = record else { break };
                    assert!(key > last, "out of order");
                    let number = u64::from_le_bytes(value[..8].try_into().unwrap());
                    let version = u64::from_le_bytes(value[8..16].try_into().unwrap());
                    check_stamp(number, Version::new(version, 0), &value);
                    if key.starts_with(b"still/") {
                        assert_eq!(key, format!("still/{still:05}").into_bytes(), "untouched keys, each once");
                        still += 1;
                    } else {
                        assert_eq!(key, busy(number));
                        assert!(version >= least[number as usize], "a range goes back behind what was acknowledged");
                        seen += 1;
                    }
                    last = key;
                }
                assert_eq!(still, 1_000);
                let written = least.iter().filter(|&&version| version > 0).count();
                assert!(seen >= written, "{seen} of {written} busy keys");
                ranges += 1;
            }
            assert!(ranges > 3, "only {ranges} ranges");
        });
        std::thread::sleep(deadline);
        stop.store(true, Ordering::SeqCst);
    });
    let stats = store.stats();
    println!("{stats:?}");
    assert!(stats.compacted_segments > 5, "compaction did not take part");
    drop(writer);
    drop(store);
    let (store, recovered) = Store::open(small_large(dir.path())).unwrap();
    assert_eq!(recovered.damaged, 0);
    for (key, shelf) in shelves.iter().enumerate() {
        let least = shelf.newest_acknowledged.load(Ordering::SeqCst);
        match get(&store, &busy(key as u64), 1) {
            Seen::Value(version, value) => {
                check_stamp(key as u64, version, &value);
                assert_eq!(version.clock, least);
            }
            other => assert_eq!((other, least), (Seen::Absent, 0)),
        }
    }
}

fn small_large(folder: &std::path::Path) -> Options {
    Options { env: FakeEnv::new(1 << 40), value_max: 32 << 10, segment_size: 128 << 10, ..small(folder) }
}

//! Bits that flipped on disk: a damaged record is never served and always counted, and everything
//! else goes on.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use common::{Seen, files, find, get, rounds, scan, small, value_of, version};
use koltso_storage::{Applied, Options, Store};
use koltso_testkit::eventually;
use koltso_testkit::random::{Random, seed_or as seed};
use koltso_testkit::wait::soon;

/// Nothing is compacted by itself.
fn quiet(folder: &Path) -> Options {
    Options { compaction_dead_share: 1.1, ..small(folder) }
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:05}").into_bytes()
}

/// Writes what `write` does into a fresh folder, then stops cleanly or as in a crash.
fn written(folder: &Path, seal: bool, write: impl FnOnce(&mut koltso_storage::Writer)) {
    let (store, _) = Store::open(quiet(folder)).unwrap();
    let mut writer = store.writer().unwrap();
    write(&mut writer);
    drop(writer);
    if seal {
        store.close().unwrap();
    }
}

/// Flips a bit of the `skip`th place in the folder's segments where `needle` is, `before` bytes
/// before it.
fn flip(folder: &Path, needle: &[u8], skip: usize, before: usize) {
    let mut left = skip;
    for log in files(folder, "log") {
        let bytes = fs::read(&log).unwrap();
        let mut from = 0;
        while let Some(at) = find(&bytes[from..], needle) {
            let at = from + at;
            if left == 0 {
                let place = at - before;
                let file = fs::OpenOptions::new().write(true).open(&log).unwrap();
                file.write_all_at(&[bytes[place] ^ 0x10], place as u64).unwrap();
                return;
            }
            left -= 1;
            from = at + 1;
        }
    }
    panic!("not found");
}

/// Bytes before the key: the whole header, each field once.
const FIELDS: [(usize, &str); 8] = [
    (32, "header checksum"),
    (28, "value checksum"),
    (24, "clock"),
    (16, "node"),
    (14, "key length"),
    (12, "value length"),
    (8, "expiry"),
    (0, "key"),
];

#[test]
fn a_record_with_any_field_damaged_is_not_served_and_the_others_are() {
    for seal in [true, false] {
        for (before, field) in FIELDS.into_iter().chain([(usize::MAX, "value")]) {
            let what = format!("{field}, sealed {seal}");
            let dir = tempfile::tempdir().unwrap();
            written(dir.path(), seal, |writer| {
                for number in 0..300 {
                    let value = format!("value-of-{number:05}").repeat(10);
                    writer.put(&key(number), value.as_bytes(), version(number + 1), 0).unwrap();
                }
            });
            match before {
                usize::MAX => flip(dir.path(), b"value-of-00150", 3, 0),
                before => flip(dir.path(), &key(150), 0, before),
            }
            let (store, recovered) = Store::open(quiet(dir.path())).unwrap();
            assert_eq!(recovered.scanned, if seal { 0 } else { recovered.segments }, "{what}");
            for number in (0..300).filter(|&number| number != 150) {
                let value = format!("value-of-{number:05}").repeat(10);
                assert_eq!(value_of(&store, &key(number)), Some(value.into_bytes()), "{what}: {number}");
            }
            let seen = get(&store, &key(150), 1);
            // Without a sidecar nobody knows whose a damaged header was.
            let known = seal || field == "value";
            assert_eq!(seen, if known { Seen::Damaged } else { Seen::Absent }, "{what}");
            assert_eq!(store.stats().damaged_records, 1, "{what}");
            let found = scan(&store, b"k", None, 1);
            assert_eq!(found.len(), 299, "{what}");
            assert!(found.iter().all(|(found, _)| *found != key(150)), "{what}");
            assert_eq!(scan(&store, &key(140), Some(&key(160)), 1).len(), 19, "{what}");
            // From the damaged key itself, and from a key beside it.
            assert_eq!(scan(&store, &key(150), Some(&key(152)), 1).len(), 1, "{what}");

            // A new version ends it, also after the next start.
            let mut writer = store.writer().unwrap();
            let applied = writer.put(&key(150), b"again", version(1_000), 0).unwrap();
            assert_eq!(applied, Applied::Newest, "{what}");
            assert_eq!(value_of(&store, &key(150)), Some(b"again".to_vec()), "{what}");
            drop(writer);
            store.close().unwrap();
            drop(store);
            let (store, _) = Store::open(quiet(dir.path())).unwrap();
            assert_eq!(value_of(&store, &key(150)), Some(b"again".to_vec()), "{what}, after a start");
            assert_eq!(scan(&store, b"k", None, 1).len(), 300, "{what}");
        }
    }
}

#[test]
fn an_older_version_is_not_served_in_place_of_a_damaged_newer_one() {
    for seal in [true, false] {
        // In the order of writing and the other way round, in one segment and in two.
        for (order, apart) in [([1, 2], false), ([2, 1], false), ([1, 2], true), ([2, 1], true)] {
            for (before, field) in [(usize::MAX, "value"), (32, "header"), (14, "key length"), (0, "key")] {
                let what = format!("{field} damaged, sealed {seal}, order {order:?}, two segments {apart}");
                if !seal && field != "value" {
                    // See the recovery table: nobody knows whose the record was.
                    continue;
                }
                let dir = tempfile::tempdir().unwrap();
                written(dir.path(), seal, |writer| {
                    for (count, ms) in order.into_iter().enumerate() {
                        writer.put(b"the-key", format!("version-{ms}").as_bytes(), version(ms), 0).unwrap();
                        for filler in 0..if apart && count == 0 { 300 } else { 3 } {
                            writer.put(format!("filler{filler}").as_bytes(), &[1; 300], version(50), 0).unwrap();
                        }
                    }
                });
                if apart {
                    assert!(files(dir.path(), "log").len() > 1);
                }
                match before {
                    usize::MAX => flip(dir.path(), b"version-2", 0, 0),
                    before => flip(dir.path(), b"the-keyversion-2", 0, before),
                }
                for start in 0..3 {
                    let (store, _) = Store::open(quiet(dir.path())).unwrap();
                    assert_eq!(get(&store, b"the-key", 1), Seen::Damaged, "{what}, start {start}");
                    assert!(scan(&store, b"t", None, 1).is_empty(), "{what}");
                    // A version that is older still loses; it arrives a second time.
                    let mut writer = store.writer().unwrap();
                    assert_eq!(
                        writer.put(b"the-key", b"version-1", version(1), 0).unwrap(),
                        Applied::Superseded(version(2)),
                        "{what}"
                    );
                    assert_eq!(get(&store, b"the-key", 1), Seen::Damaged, "{what}");
                    drop(writer);
                    store.close().unwrap();
                }
                // A replica's copy, with the very version, repairs it for good.
                let (store, _) = Store::open(quiet(dir.path())).unwrap();
                let mut writer = store.writer().unwrap();
                let applied = writer.put(b"the-key", b"version-2", version(2), 0).unwrap();
                assert_eq!(applied, Applied::Newest, "{what}");
                assert_eq!(value_of(&store, b"the-key"), Some(b"version-2".to_vec()), "{what}");
                drop((writer, store));
                for start in 0..2 {
                    let (store, _) = Store::open(quiet(dir.path())).unwrap();
                    assert_eq!(value_of(&store, b"the-key"), Some(b"version-2".to_vec()), "{what}, start {start}");
                    assert_eq!(scan(&store, b"t", None, 1).len(), 1, "{what}");
                    store.close().unwrap();
                }
            }
        }
    }
}

#[test]
fn damage_in_a_large_value_is_found_when_it_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    let options = |folder| Options { value_max: 100 << 10, segment_size: 256 << 10, ..quiet(folder) };
    let (store, _) = Store::open(options(dir.path())).unwrap();
    let mut writer = store.writer().unwrap();
    let value = b"a large value. ".repeat(5_000);
    writer.put(b"large", &value, version(1), 0).unwrap();
    writer.put(b"other", &value, version(1), 0).unwrap();
    drop(writer);
    store.close().unwrap();
    drop(store);
    flip(dir.path(), b"a large value. ", 4_321, 0);
    let (store, _) = Store::open(options(dir.path())).unwrap();
    assert_eq!(get(&store, b"large", 1), Seen::Damaged);
    assert_eq!(value_of(&store, b"other"), Some(value));
    assert_eq!(store.stats().damaged_records, 1);
    assert_eq!(scan(&store, b"a", None, 1).len(), 1);
}

#[test]
fn compaction_keeps_a_segment_with_a_damaged_live_record_until_it_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), true, |writer| {
        // Most is overwritten, so that compaction wants the segment.
        for number in 0..200 {
            writer.put(&key(number), &[1; 250], version(number + 1), 0).unwrap();
        }
        for number in 10..200 {
            writer.put(&key(number), &[2; 250], version(number + 1_000), 0).unwrap();
        }
    });
    let first = files(dir.path(), "log").remove(0);
    flip(dir.path(), &key(5), 0, 20);
    let (store, _) = Store::open(small(dir.path())).unwrap();
    soon("the others are moved", || store.stats().compacted_bytes > 0);
    std::thread::sleep(std::time::Duration::from_millis(600));
    assert!(first.exists(), "the damaged record's segment was given back");
    assert_eq!(get(&store, &key(5), 1), Seen::Damaged);
    let moved = store.stats().compacted_bytes;
    for number in (0..200).filter(|&number| number != 5) {
        assert!(value_of(&store, &key(number)).is_some());
    }
    let mut writer = store.writer().unwrap();
    writer.put(&key(5), b"again", version(9_000), 0).unwrap();
    soon("the segment goes", || !first.exists());
    assert_eq!(value_of(&store, &key(5)), Some(b"again".to_vec()));
    assert_eq!(store.stats().compacted_bytes, moved, "it was not read over and over");
    drop(writer);
    store.close().unwrap();
    drop(store);
    let (store, _) = Store::open(small(dir.path())).unwrap();
    assert_eq!(scan(&store, b"k", None, 1).len(), 200);
}

#[test]
fn a_damaged_segment_header_costs_that_segment_only() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), true, |writer| {
        for number in 0..600 {
            writer.put(&key(number), &[1; 250], version(number + 1), 0).unwrap();
        }
    });
    let logs = files(dir.path(), "log");
    assert!(logs.len() >= 3);
    for (at, what) in
        [(0, "magic"), (8, "format"), (12, "checksum"), (17, "sequence"), (25, "salt"), (29, "capacity"), (40, "rest")]
    {
        let bytes = fs::read(&logs[1]).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&logs[1]).unwrap();
        file.write_all_at(&[bytes[at] ^ 4], at as u64).unwrap();
        let (store, recovered) = Store::open(quiet(dir.path())).unwrap();
        assert_eq!((recovered.damaged, recovered.segments), (1, logs.len() as u64 - 1), "{what}");
        let left = scan(&store, b"k", None, 1).len();
        assert!(left > 300 && left < 600, "{what}: {left}");
        assert!(logs[1].exists(), "{what}: a file that nobody understands is left alone");
        drop(store);
        file.write_all_at(&[bytes[at]], at as u64).unwrap();
    }
    let (store, recovered) = Store::open(quiet(dir.path())).unwrap();
    assert_eq!((recovered.damaged, scan(&store, b"k", None, 1).len()), (0, 600));
    drop(store);
    let file = fs::OpenOptions::new().write(true).open(&logs[1]).unwrap();
    let mut header = fs::read(&logs[1]).unwrap()[..64].to_vec();
    header[8..12].copy_from_slice(&3_u32.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..]);
    header[12..16].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&header, 0).unwrap();
    assert!(matches!(Store::open(quiet(dir.path())), Err(koltso_storage::OpenError::NewerSegment { .. })));
}

/// Whoever has a replica learns whose record is damaged, whatever of it is, and with the very version
/// from there all is as before.
#[test]
fn a_damaged_record_is_told_and_repaired_and_its_segment_can_go() {
    for (before, knows_key) in [(usize::MAX, true), (32, false), (0, false)] {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), true, |writer| {
            for number in 0..200 {
                let value = format!("value-of-{number:05}").repeat(10);
                writer.put(&key(number), value.as_bytes(), version(number + 1), 0).unwrap();
            }
        });
        match before {
            usize::MAX => flip(dir.path(), b"value-of-00150", 3, 0),
            before => flip(dir.path(), &key(150), 0, before),
        }
        let first = files(dir.path(), "log").remove(0);
        let (store, _) = Store::open(small(dir.path())).unwrap();
        assert_eq!(store.next_damaged(), None, "nobody has looked");
        for _ in 0..3 {
            assert_eq!(get(&store, &key(150), 1), Seen::Damaged);
        }
        let hash = koltso_storage::KeyHash::of(&key(150));
        let expected = koltso_storage::DamagedRecord {
            key: knows_key.then(|| key(150)),
            from: 1,
            partition: hash.partition(),
            leaf: koltso_storage::leaf_of(hash),
            version: version(151),
        };
        assert_eq!((store.next_damaged(), store.next_damaged()), (Some(expected), None));
        assert_eq!(get(&store, &key(150), 1), Seen::Damaged);
        assert_eq!(store.next_damaged(), None, "it was told a moment ago");
        let root = store.digests().root(1, hash.partition());

        let mut writer = store.writer().unwrap();
        let value = "value-of-00150".repeat(10);
        writer.put(&key(150), value.as_bytes(), version(151), 0).unwrap();
        assert_eq!(value_of(&store, &key(150)), Some(value.clone().into_bytes()));
        assert_eq!(store.digests().root(1, hash.partition()), root, "the same records");
        soon("the repair is noticed", || store.stats().repaired_records == 1);
        // Half of the segment is dead from here on: it is no longer left alone.
        for number in 0..150 {
            writer.put(&key(number), &[3; 100], version(9_000 + number), 0).unwrap();
        }
        soon("its segment goes", || !first.exists());
        assert_eq!((store.stats().damaged_records, store.stats().repaired_records), (1, 1));
        drop(writer);
        store.close().unwrap();
        drop(store);
        let (store, _) = Store::open(small(dir.path())).unwrap();
        assert_eq!(scan(&store, b"k", None, 1).len(), 200);
        assert_eq!(value_of(&store, &key(150)), Some(value.into_bytes()));
    }
}

/// The only replica that could be asked may have been away.
#[test]
fn a_damaged_record_that_nobody_repaired_is_told_again() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), true, |writer| {
        for number in 0..200 {
            let value = format!("value-of-{number:05}").repeat(10);
            writer.put(&key(number), value.as_bytes(), version(number + 1), 0).unwrap();
        }
    });
    flip(dir.path(), b"value-of-00150", 3, 0);
    let (store, _) = Store::open(small(dir.path())).unwrap();
    assert_eq!(get(&store, &key(150), 1), Seen::Damaged);
    let first = store.next_damaged();
    assert!(first.is_some());
    let mut again = None;
    eventually("it is told again, though nobody reads it", Duration::from_secs(60), || {
        again = store.next_damaged();
        again.is_some()
    });
    assert_eq!(again, first);
    store.writer().unwrap().put(&key(150), "value-of-00150".repeat(10).as_bytes(), version(151), 0).unwrap();
    soon("the repair is noticed", || store.stats().repaired_records == 1);
    assert_eq!(store.next_damaged(), None);
}

/// Random damage, random operations: whatever is served was written, and nothing panics.
#[test]
fn random_flips_never_make_a_wrong_answer() {
    let seed = seed("random_flips_never_make_a_wrong_answer", 11);
    for round in 0..rounds(40) {
        let mut rng = Random::seeded(seed.wrapping_add(round));
        let dir = tempfile::tempdir().unwrap();
        let mut written_values: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
        let mut clock = 0;
        for generation in 0..3 {
            let (store, _) = Store::open(small(dir.path())).unwrap();
            let mut writer = store.writer().unwrap();
            for _ in 0..400 {
                clock += 1;
                let key = key(rng.below(150));
                if rng.one_in(10) {
                    writer.delete(&key, version(clock)).unwrap();
                } else {
                    let len = rng.below(700) as usize;
                    let value = rng.bytes(len);
                    writer.put(&key, &value, version(clock), 0).unwrap();
                    written_values.entry(key).or_default().push(value);
                }
            }
            check(&store, &written_values);
            drop(writer);
            if rng.one_in(2) {
                store.close().unwrap();
            }
            drop(store);
            for _ in 0..rng.below(6) {
                let mut all = files(dir.path(), "log");
                all.extend(files(dir.path(), "idx"));
                let path = &all[rng.below(all.len() as u64) as usize];
                let mut bytes = fs::read(path).unwrap();
                let used = bytes.iter().rposition(|&b| b != 0).map_or(1, |last| last + 1);
                match rng.below(5) {
                    0 => bytes.truncate(rng.below(bytes.len() as u64 + 1) as usize),
                    1 => {
                        let at = rng.below(used as u64) as usize;
                        let len = (rng.below(5_000) as usize).min(bytes.len() - at);
                        let noise = rng.bytes(len);
                        bytes[at..at + len].copy_from_slice(&noise);
                    }
                    _ => bytes[rng.below(used as u64) as usize] ^= 1 << rng.below(8),
                }
                fs::write(path, bytes).unwrap();
            }
            println!("round {round}, generation {generation}");
        }
        let (store, _) = Store::open(small(dir.path())).unwrap();
        check(&store, &written_values);
        store.close().unwrap();
    }
}

fn check(store: &Store, written: &BTreeMap<Vec<u8>, Vec<Vec<u8>>>) {
    for (key, values) in written {
        if let Seen::Value(_, value) = get(store, key, 1) {
            assert!(values.contains(&value), "a value that nobody wrote");
        }
    }
    let found = scan(store, b"k", None, 1);
    assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0), "a range in order, each key once");
    for (key, value) in found {
        assert!(written[&key].contains(&value), "a value that nobody wrote");
    }
}

//! Crashes between any two bytes: a torn tail at every place, and every state in which a sidecar
//! can be left.
//!
//! What must hold: each record whose write had returned is there, nothing half-written is, and the
//! store goes on.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{Seen, copy_folder, files, find, get, rounds, scan, small, value_of, version};
use koltso_storage::{Options, Store};
use koltso_testkit::random::{Random, seed_or as seed};
use koltso_testkit::wait::soon;

const RECORDS: u64 = 12;

fn key(number: u64) -> Vec<u8> {
    format!("key-{number}").into_bytes()
}

fn value(number: u64) -> Vec<u8> {
    vec![number as u8 + 1; 3 + number as usize * 5]
}

/// Writes records and drops the store as a crash would; returns the only segment's bytes.
fn one_unsealed(folder: &Path) -> Vec<u8> {
    let (store, _) = Store::open(small(folder)).unwrap();
    let mut writer = store.writer().unwrap();
    for number in 0..RECORDS {
        writer.put(&key(number), &value(number), version(number + 1), 0).unwrap();
    }
    drop((writer, store));
    let logs = files(folder, "log");
    assert_eq!(logs.len(), 1);
    fs::read(&logs[0]).unwrap()
}

fn record_size(number: u64) -> usize {
    (32 + key(number).len() + value(number).len()).next_multiple_of(8)
}

/// Opens the folder with this content of its segment, and expects the first `whole` records, and
/// that writing goes on.
fn expect(folder: &Path, content: &[u8], whole: u64, what: &str) {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir(folder).unwrap();
    fs::write(folder.join("FORMAT"), "koltso 2\n").unwrap();
    fs::write(folder.join("0000000000000001.log"), content).unwrap();
    let (store, recovered) = Store::open(small(folder)).unwrap();
    assert_eq!((recovered.keys, recovered.damaged), (whole, 0), "{what}");
    for number in 0..RECORDS {
        assert_eq!(value_of(&store, &key(number)), (number < whole).then(|| value(number)), "{what}");
    }
    assert_eq!(scan(&store, b"k", None, 1).len() as u64, whole, "{what}");
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_off_at_the_last_whole_record() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = one_unsealed(&dir.path().join("whole"));
    let last = bytes.iter().rposition(|&b| b != 0).unwrap() + 1;
    let last_two = record_size(RECORDS - 1) + record_size(RECORDS - 2);
    let end = last.next_multiple_of(8);
    let ends = [end - last_two, end - record_size(RECORDS - 1), end];
    let copy = dir.path().join("torn");
    let mut rng = Random::seeded(3);
    for cut in ends[0]..last {
        // Records whose every byte lies before the cut are whole; padding does not count.
        let whole = RECORDS
            - if cut >= last {
                0
            } else if cut >= ends[1] {
                1
            } else {
                2
            };
        // The padding of the record before is zeros, so a cut within it leaves that record whole.
        let mut zeros = bytes.clone();
        zeros[cut..].fill(0);
        let value_end = ends[1] - (record_size(RECORDS - 2) - 32 - key(10).len() - value(10).len());
        let whole = if cut >= value_end && cut < ends[1] { whole + 1 } else { whole };
        expect(&copy, &zeros, whole, &format!("zeros from {cut}"));

        let mut garbage = bytes.clone();
        let noise = rng.bytes((end - cut) + 200);
        garbage[cut..cut + noise.len()].copy_from_slice(&noise);
        // Noise differs from what was there at least somewhere in the torn record.
        expect(
            &copy,
            &garbage,
            whole.min(RECORDS - if cut >= ends[1] { 1 } else { 2 } + u64::from(cut >= value_end && cut < ends[1])),
            &format!("garbage from {cut}"),
        );

        expect(&copy, &bytes[..cut], whole, &format!("the file ends at {cut}"));
    }
}

#[test]
fn a_record_is_written_so_that_a_kill_between_any_two_bytes_leaves_none_or_all() {
    // Key and value first, the header after them: the last record with only some of its bytes
    // there.
    let dir = tempfile::tempdir().unwrap();
    let bytes = one_unsealed(&dir.path().join("whole"));
    let end = bytes.iter().rposition(|&b| b != 0).unwrap() + 1;
    let start = end.next_multiple_of(8) - record_size(RECORDS - 1);
    let copy = dir.path().join("torn");
    for missing in 1..32 {
        let mut torn = bytes.clone();
        torn[start..start + missing].fill(0);
        expect(&copy, &torn, RECORDS - 1, &format!("the first {missing} bytes of the header are not there"));
    }
}

#[test]
fn a_torn_tail_is_never_written_over_and_later_records_survive_the_next_crash() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("store");
    let mut bytes = one_unsealed(&folder);
    let end = bytes.iter().rposition(|&b| b != 0).unwrap();
    bytes[end - 3..=end].fill(0x5a);
    fs::write(&files(&folder, "log")[0], &bytes).unwrap();
    for round in 0..5_u64 {
        let (store, recovered) = Store::open(small(&folder)).unwrap();
        assert_eq!(recovered.keys, RECORDS - 1 + round);
        assert_eq!(recovered.damaged, 0);
        let mut writer = store.writer().unwrap();
        writer.put(format!("later-{round}").as_bytes(), b"v", version(100 + round), 0).unwrap();
    }
}

/// A clean stop with several sealed segments.
fn sealed(folder: &Path) -> u64 {
    let (store, _) = Store::open(Options { compaction_dead_share: 1.1, ..small(folder) }).unwrap();
    let mut writer = store.writer().unwrap();
    let mut rng = Random::seeded(9);
    for number in 0..600 {
        writer.put(format!("key{number:05}").as_bytes(), &rng.bytes(300), version(number + 1), 0).unwrap();
    }
    drop(writer);
    store.close().unwrap();
    600
}

fn open_and_check(folder: &Path, what: &str, scanned: Option<u64>) {
    let (store, recovered) = Store::open(Options { compaction_dead_share: 1.1, ..small(folder) }).unwrap();
    assert_eq!((recovered.keys, recovered.damaged, recovered.torn_bytes), (600, 0, 0), "{what}");
    if let Some(scanned) = scanned {
        assert_eq!(recovered.scanned, scanned, "{what}");
    }
    let mut rng = Random::seeded(9);
    for number in 0..600 {
        let key = format!("key{number:05}");
        assert_eq!(value_of(&store, key.as_bytes()), Some(rng.bytes(300)), "{what}: {key}");
    }
    assert_eq!(scan(&store, b"k", None, 1).len(), 600, "{what}");
    store.close().unwrap();
    assert_eq!(files(folder, "idx").len(), recovered.segments as usize, "{what}");
    assert!(files(folder, "idx-new").is_empty(), "{what}");
    drop(store);
    let (_, recovered) = Store::open(small(folder)).unwrap();
    assert_eq!((recovered.keys, recovered.scanned), (600, 0), "{what}, opened again");
}

#[test]
fn a_sidecar_that_is_missing_torn_flipped_or_of_another_segment_is_made_again() {
    let seed = seed("a_sidecar_that_is_missing_torn_flipped_or_of_another_segment_is_made_again", 5);
    let mut rng = Random::seeded(seed);
    let dir = tempfile::tempdir().unwrap();
    let clean = dir.path().join("clean");
    sealed(&clean);
    let sidecars = files(&clean, "idx");
    assert!(sidecars.len() >= 3);
    open_and_check(&copied(&clean, dir.path(), "as it is"), "as it is", Some(0));

    for round in 0..rounds(24) {
        let what = ["missing", "cut short", "a flipped bit", "another segment's", "longer", "empty", "not yet renamed"]
            [round as usize % 7];
        let folder = copied(&clean, dir.path(), &format!("{round}"));
        let sidecars = files(&folder, "idx");
        let path = &sidecars[rng.below(sidecars.len() as u64) as usize];
        let mut bytes = fs::read(path).unwrap();
        match what {
            "missing" => fs::remove_file(path).unwrap(),
            "cut short" => {
                bytes.truncate(rng.below(bytes.len() as u64) as usize);
                fs::write(path, bytes).unwrap();
            }
            "a flipped bit" => {
                // Of the directory behind the entries a start asks nothing: see `partitions.rs`.
                let entries = u32::from_le_bytes(bytes[32..36].try_into().unwrap());
                let bit = rng.below(u64::from(128 + entries * 24) * 8);
                bytes[bit as usize / 8] ^= 1 << (bit % 8);
                fs::write(path, bytes).unwrap();
            }
            "another segment's" => {
                let other = sidecars.iter().find(|other| *other != path).unwrap();
                fs::copy(other, path).unwrap();
            }
            "longer" => {
                bytes.extend(rng.bytes(48));
                fs::write(path, bytes).unwrap();
            }
            "empty" => fs::write(path, "").unwrap(),
            _ => {
                bytes.truncate(bytes.len() / 2);
                fs::remove_file(path).unwrap();
                fs::write(path.with_extension("idx-new"), bytes).unwrap();
            }
        }
        println!("round {round}: {what}");
        // A flipped bit in the unused bytes of the header may be none that matters, but it has a
        // checksum too.
        open_and_check(&folder, what, Some(1));
        fs::remove_dir_all(folder).unwrap();
    }
}

fn copied(from: &Path, to: &Path, name: &str) -> std::path::PathBuf {
    let to = to.join(name);
    copy_folder(from, &to);
    to
}

#[test]
fn what_a_crash_leaves_between_two_steps_is_tidied_up() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("store");
    sealed(&folder);
    // A file that was made and not written, one that has its size and no byte, a sidecar whose
    // segment is gone.
    fs::write(folder.join("00000000000000f0.log"), "").unwrap();
    fs::File::create(folder.join("00000000000000f1.log")).unwrap().set_len(64 << 10).unwrap();
    fs::write(folder.join("00000000000000f2.idx"), "left over").unwrap();
    fs::write(folder.join("00000000000000f3.idx-new"), "left over").unwrap();
    fs::write(folder.join("notes.txt"), "not ours").unwrap();
    open_and_check(&folder, "left-overs", Some(0));
    for gone in ["00000000000000f0.log", "00000000000000f1.log", "00000000000000f2.idx", "00000000000000f3.idx-new"] {
        assert!(!folder.join(gone).exists(), "{gone}");
    }
    assert!(folder.join("notes.txt").exists());
}

#[test]
fn sequences_are_not_used_twice_over_a_left_over_sidecar() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("store");
    sealed(&folder);
    let last = files(&folder, "idx").pop().unwrap();
    let kept = fs::read(&last).unwrap();
    fs::remove_file(last.with_extension("log")).unwrap();
    let (store, first) = Store::open(small(&folder)).unwrap();
    let mut writer = store.writer().unwrap();
    writer.put(b"new", b"value", version(9_999), 0).unwrap();
    // As if the sidecar had not been tidied up: it is of the same sequence, but of another life.
    fs::write(&last, kept).unwrap();
    drop((writer, store));
    let (store, again) = Store::open(small(&folder)).unwrap();
    assert_eq!(again.keys, first.keys + 1);
    assert_eq!(value_of(&store, b"new"), Some(b"value".to_vec()));
}

/// Found by `power_loss/`: the kernel writes pages in any order, so a record that was not synced
/// may lack some of its sectors while one after it is whole. It must not stand in the way of what
/// had been acknowledged before it.
#[test]
fn a_record_that_lacks_sectors_gives_way_to_the_version_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let (store, _) = Store::open(small(&whole)).unwrap();
    let mut writer = store.writer().unwrap();
    let newer = Random::seeded(4).bytes(3_000);
    writer.put(b"key", b"acknowledged", version(1), 0).unwrap();
    writer.put(b"key", &newer, version(2), 0).unwrap();
    writer.put(b"other", b"whole", version(3), 0).unwrap();
    drop((writer, store));
    let bytes = fs::read(&files(&whole, "log")[0]).unwrap();
    let start = find(&bytes, &newer[..16]).unwrap();
    let header = start - 32 - 3;
    // Sectors of the value, one by one; then the one with the header, and half a sector.
    let mut holes: Vec<(usize, usize)> =
        (start.next_multiple_of(512)..start + newer.len()).step_by(512).map(|from| (from, from + 512)).collect();
    let last = holes.pop().unwrap();
    holes.extend([(last.0, last.0 + 8), (last.0 - 8, last.0), (header, header + 64), (header, start + newer.len())]);
    for (from, to) in holes {
        let folder = copied(&whole, dir.path(), &format!("{from}-{to}"));
        let mut torn = bytes.clone();
        torn[from..to].fill(0);
        fs::write(&files(&folder, "log")[0], torn).unwrap();
        for start in 0..3 {
            let (store, recovered) = Store::open(small(&folder)).unwrap();
            assert_eq!(recovered.damaged, 0, "{from}..{to}, start {start}");
            assert_eq!(value_of(&store, b"key"), Some(b"acknowledged".to_vec()), "{from}..{to}, start {start}");
            assert_eq!(value_of(&store, b"other"), Some(b"whole".to_vec()), "{from}..{to}, start {start}");
            if start == 1 {
                store.close().unwrap();
            }
        }
    }
}

/// Where in a segment of its own a value lies whose key follows one with a value of `before` bytes.
fn place_of_value(dir: &Path, before: usize, value: &[u8]) -> usize {
    let (folder, _) = with_flip(dir, before, value, None);
    let bytes = fs::read(&files(&folder, "log")[0]).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    find(&bytes, value).unwrap()
}

/// A store with an older and a newer version of "key", the newer one's value being `value`, and a
/// record after it. A bit is flipped `flip` bytes after the newer one's value begins. Where that
/// is.
fn with_flip(dir: &Path, before: usize, value: &[u8], flip: Option<isize>) -> (std::path::PathBuf, usize) {
    let folder = dir.join("flipped");
    let (store, _) = Store::open(small(&folder)).unwrap();
    let mut writer = store.writer().unwrap();
    writer.put(b"key", b"older", version(1), 0).unwrap();
    writer.put(b"before", &vec![7; before], version(2), 0).unwrap();
    writer.put(b"key", value, version(3), 0).unwrap();
    writer.put(b"after", b"whole", version(4), 0).unwrap();
    drop((writer, store));
    let log = files(&folder, "log").remove(0);
    let mut bytes = fs::read(&log).unwrap();
    let at = find(&bytes, value).unwrap();
    if let Some(flip) = flip {
        bytes[at.checked_add_signed(flip).unwrap()] ^= 4;
        fs::write(&log, bytes).unwrap();
    }
    (folder, at)
}

/// Zeros that no lost write can have left do not make a record torn whose bits have flipped: its
/// own ones at its end within a sector, and those of a header that says "never expires".
#[test]
fn a_flipped_bit_is_no_lost_write_where_the_record_has_zeros_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let start = |what: &str, folder: &Path, seen: &Seen| {
        let (store, recovered) = Store::open(small(folder)).unwrap();
        assert_eq!((recovered.damaged, recovered.torn_records, recovered.torn_bytes), (1, 0, 0), "{what}");
        assert_eq!(&get(&store, b"key", 1), seen, "{what}");
        assert_eq!(value_of(&store, b"after"), Some(b"whole".to_vec()), "{what}");
        drop(store);
        fs::remove_dir_all(folder).unwrap();
    };
    let zeros_at_its_end = [&[9; 100][..], &[0; 24]].concat();
    let (folder, at) = with_flip(dir.path(), 10, &zeros_at_its_end, Some(50));
    assert!(at / 512 == (at + 150) / 512, "the record and the one after it lie in one sector");
    start("zeros at the end of the value", &folder, &Seen::Damaged);

    // The header's last word is the expiry with the flags. A sector begins before it, or after it.
    let value = &[9; 700];
    let at = place_of_value(dir.path(), 0, value);
    for word in [-8 - 3, -3] {
        // Records begin at multiples of 8, so the one before pushes it as far as it is longer.
        let begins = at.checked_add_signed(word).unwrap();
        let (folder, _) = with_flip(dir.path(), begins.next_multiple_of(512) - begins, value, Some(100));
        let bytes = fs::read(&files(&folder, "log")[0]).unwrap();
        let moved = find(&bytes, &value[101..]).unwrap() - 101;
        assert!(moved.checked_add_signed(word).unwrap().is_multiple_of(512));
        start(&format!("zeros in the header, {word}"), &folder, &Seen::Damaged);
    }

    // Of a damaged header nobody knows whose it was; the value is intact, so nothing of it is
    // missing.
    let zeros_in_it = [&[9; 100][..], &[0; 1_200], &[9; 100]].concat();
    let (folder, _) = with_flip(dir.path(), 10, &zeros_in_it, Some(-2));
    start("a header before zeros", &folder, &Seen::Value(version(1), b"older".to_vec()));
}

/// Where a value's own zeros lie as a lost write would leave them, nobody can tell the two apart.
/// The older version counts, as after a lost write, and everybody is told.
#[test]
fn a_record_that_is_taken_for_torn_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut value = vec![9; 1_500];
    let at = place_of_value(dir.path(), 10, &value);
    let edge = at.next_multiple_of(512) - at;
    value[edge..edge + 8].fill(0);
    let (folder, _) = with_flip(dir.path(), 10, &value, Some(5));
    let (store, recovered) = Store::open(small(&folder)).unwrap();
    assert_eq!((recovered.damaged, recovered.torn_records), (0, 1));
    assert_eq!(recovered.torn_bytes, (32 + 3 + 1_500_u64).next_multiple_of(8));
    assert_eq!(store.stats().torn_records, 1);
    assert_eq!(value_of(&store, b"key"), Some(b"older".to_vec()));
    store.close().unwrap();
    drop(store);
    // It was said. From now on the segment has a sidecar, in which the record is not.
    let (store, recovered) = Store::open(small(&folder)).unwrap();
    assert_eq!((recovered.damaged, recovered.torn_records), (0, 0));
    assert_eq!(value_of(&store, b"key"), Some(b"older".to_vec()));
}

/// The file of a segment that was being made when the power was lost: its header, or a part of it,
/// is not there, and neither is anything else, since the header is on disk before the first record.
#[test]
fn a_segment_whose_header_never_got_to_the_disk_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    for zeros in [0..512, 0..8, 24..512] {
        let folder = dir.path().join(format!("{}-{}", zeros.start, zeros.end));
        one_unsealed(&folder);
        let log = files(&folder, "log").remove(0);
        let mut bytes = fs::read(&log).unwrap();
        bytes[64..].fill(0);
        bytes[zeros].fill(0);
        fs::write(&log, bytes).unwrap();
        let (store, recovered) = Store::open(small(&folder)).unwrap();
        assert_eq!((recovered.keys, recovered.damaged), (0, 0));
        assert!(!log.exists());
        let mut writer = store.writer().unwrap();
        writer.put(b"again", b"1", version(1), 0).unwrap();
    }
}

/// A disk that has lost a sector may give back zeros for it. What had been synced behind the header
/// was removed then, and nobody was told.
#[test]
fn a_segment_that_has_lost_its_header_is_damage_and_is_never_removed() {
    let dir = tempfile::tempdir().unwrap();
    for (zeros, what) in [(0..512, "sector"), (0..64, "header"), (0..8, "magic"), (24..32, "salt"), (8..16, "format")] {
        let folder = dir.path().join(what);
        let bytes = one_unsealed(&folder);
        let log = files(&folder, "log").remove(0);
        let mut lost = bytes.clone();
        lost[zeros].fill(0);
        fs::write(&log, &lost).unwrap();
        for start in 0..3_u64 {
            let (store, recovered) = Store::open(small(&folder)).unwrap();
            assert_eq!((recovered.damaged, recovered.unreadable_segments), (1, 1), "{what}, start {start}");
            assert_eq!(recovered.nameless, 0, "{what}, start {start}");
            let stats = store.stats();
            assert_eq!((stats.damaged_records, stats.unreadable_segments), (1, 1), "{what}, start {start}");
            assert_eq!(recovered.keys, start.min(1), "{what}, start {start}");
            // Writing goes on beside it, and in no file of its name.
            let mut writer = store.writer().unwrap();
            writer.put(b"again", b"1", version(100 + start), 0).unwrap();
            drop(writer);
            store.close().unwrap();
            assert_eq!(fs::read(&log).unwrap(), lost, "{what}, start {start}");
        }
        // The sector is back, or somebody has repaired it.
        fs::write(&log, &bytes).unwrap();
        let (store, recovered) = Store::open(small(&folder)).unwrap();
        assert_eq!((recovered.damaged, recovered.keys), (0, RECORDS + 1), "{what}");
        assert_eq!(value_of(&store, &key(3)), Some(value(3)), "{what}");
    }
}

/// What is in it is older than what says that it is deleted, and may be back at the next start.
#[test]
fn while_a_segment_cannot_be_read_no_tombstone_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("store");
    let bytes = one_unsealed(&folder);
    let log = files(&folder, "log").remove(0);
    let mut lost = bytes.clone();
    lost[..512].fill(0);
    fs::write(&log, &lost).unwrap();
    let (store, _) = Store::open(small(&folder)).unwrap();
    let mut writer = store.writer().unwrap();
    for number in 0..RECORDS {
        writer.delete(&key(number), version(100 + number)).unwrap();
    }
    // Enough that is dead for compaction to have a look at all of it.
    for number in 0..600 {
        writer.put(b"filler", &[1; 1_000], version(200 + number), 0).unwrap();
    }
    soon("compaction takes part", || store.stats().compacted_segments > 3);
    drop(writer);
    store.close().unwrap();
    drop(store);
    fs::write(&log, &bytes).unwrap();
    let (store, _) = Store::open(small(&folder)).unwrap();
    for number in 0..RECORDS {
        assert_eq!(value_of(&store, &key(number)), None, "key {number} is back");
    }
}

#[test]
fn a_segment_cut_short_serves_what_is_left_and_reports_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("store");
    sealed(&folder);
    let log = files(&folder, "log").remove(0);
    let bytes = fs::read(&log).unwrap();
    let cut = find(&bytes, b"key00060").unwrap();
    fs::write(&log, &bytes[..cut]).unwrap();
    let (store, _) = Store::open(Options { compaction_dead_share: 1.1, ..small(&folder) }).unwrap();
    let found = scan(&store, b"k", None, 1);
    assert!(found.len() < 600 && found.len() >= 60);
    for number in 0..60 {
        assert!(value_of(&store, format!("key{number:05}").as_bytes()).is_some());
    }
    assert_eq!(common::get(&store, b"key00061", 1), common::Seen::Damaged);
    assert!(store.stats().damaged_records > 0);
}

#[test]
fn a_writer_that_outlives_the_stop_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(small(dir.path())).unwrap();
    let mut writer = store.writer().unwrap();
    writer.put(b"before", b"1", version(1), 0).unwrap();
    store.close().unwrap();
    writer.put(b"after", b"2", version(2), 0).unwrap();
    drop((writer, store));
    let (store, recovered) = Store::open(small(dir.path())).unwrap();
    assert_eq!(recovered.keys, 2);
    assert_eq!(value_of(&store, b"after"), Some(b"2".to_vec()));
}

/// The first start seals the segment, and then nothing in it tells of them any more.
#[test]
fn that_records_of_unknown_keys_are_lost_is_told_until_somebody_takes_note() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, _) = with_flip(dir.path(), 10, &[9; 100], Some(-20));
    for start in 0..3 {
        let (store, recovered) = Store::open(small(&folder)).unwrap();
        assert_eq!(recovered.nameless, 1, "start {start}");
        assert_eq!(value_of(&store, b"key"), Some(b"older".to_vec()), "nobody knows that there was a newer one");
        if start == 2 {
            store.loss_is_known();
        }
        store.close().unwrap();
    }
    let (store, recovered) = Store::open(small(&folder)).unwrap();
    assert_eq!(recovered.nameless, 0, "somebody has taken note");
    drop(store);
    // Whose key is known answers "damaged", and is not lost unnoticed.
    fs::remove_dir_all(&folder).unwrap();
    let (folder, _) = with_flip(dir.path(), 10, &[9; 100], Some(50));
    let (_store, recovered) = Store::open(small(&folder)).unwrap();
    assert_eq!((recovered.damaged, recovered.nameless), (1, 0));
}

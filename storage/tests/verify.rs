//! A data folder is verified without changing anything, and whatever is damaged in it is found.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use common::{files, rounds, small, version};
use koltso_storage::{FolderError, Options, RealEnv, Store, Verified, VerifyError, verify};
use koltso_testkit::random::{Random, seed_or as seed};

fn quiet(folder: &Path) -> Options {
    Options { compaction_dead_share: 1.1, ..small(folder) }
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:05}").into_bytes()
}

/// Some sealed segments and, unless it ends cleanly, some that are not.
fn written(folder: &Path, cleanly: bool) {
    let (store, _) = Store::open(quiet(folder)).unwrap();
    let mut writer = store.writer().unwrap();
    for number in 0..500 {
        match number % 10 {
            0 => writer.delete(&key(number / 2), version(number + 1)).unwrap(),
            1 => writer.put(&key(number / 2), &[1; 300], version(number + 1), 5).unwrap(),
            _ => writer.put(&key(number), &[2; 300], version(number + 1), 0).unwrap(),
        };
    }
    drop(writer);
    if cleanly {
        store.close().unwrap();
    }
}

/// Everything in a folder: names, lengths, times and contents.
fn state(folder: &Path) -> BTreeMap<String, (SystemTime, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of = |path: &Path| (path.metadata().unwrap().modified().unwrap(), fs::read(path).unwrap());
    entries.map(|path| (path.display().to_string(), of(&path))).collect()
}

/// What is found in a folder, which stays as it is.
fn found(folder: &Path) -> Verified {
    let before = state(folder);
    let verified = verify(&RealEnv, folder).unwrap();
    assert!(state(folder) == before, "something was changed");
    verified
}

#[test]
fn a_whole_folder_has_no_flaw() {
    for cleanly in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), cleanly);
        let verified = found(dir.path());
        assert_eq!((verified.flaw_count, verified.flaws.len()), (0, 0), "{verified:?}");
        assert_eq!(verified.records, 500);
        assert!(verified.segments >= 3 && (verified.sealed == verified.segments) == cleanly, "{verified:?}");
        // A copy without its lock.
        fs::remove_file(dir.path().join("LOCK")).unwrap();
        assert_eq!(found(dir.path()), verified);
    }
}

#[test]
fn a_folder_that_is_none_or_in_use_or_newer_is_refused_and_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    assert!(matches!(verify(&RealEnv, &missing), Err(VerifyError::Folder(FolderError::Io { .. }))));
    assert!(!missing.exists());
    let foreign = dir.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    assert!(matches!(verify(&RealEnv, &foreign), Err(VerifyError::Folder(FolderError::Foreign(_)))));
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 0);
    let folder = dir.path().join("data");
    let (store, _) = Store::open(quiet(&folder)).unwrap();
    assert!(matches!(verify(&RealEnv, &folder), Err(VerifyError::Folder(FolderError::InUse(_)))));
    drop(store);
    fs::write(folder.join("FORMAT"), "koltso 3\n").unwrap();
    assert!(matches!(verify(&RealEnv, &folder), Err(VerifyError::Folder(FolderError::NewerFormat { .. }))));
}

/// Each byte that the engine wrote is covered, but for those of which nothing depends: zeros of the
/// padding, and bytes that nobody can tell from a record that was being written.
#[test]
fn every_flipped_bit_of_what_was_written_is_found() {
    let seed = seed("every_flipped_bit_of_what_was_written_is_found", 3);
    let mut random = Random::seeded(seed);
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), true);
    let all: Vec<_> = files(dir.path(), "log").into_iter().chain(files(dir.path(), "idx")).collect();
    for _ in 0..rounds(150) {
        let path = &all[random.below(all.len() as u64) as usize];
        let whole = fs::read(path).unwrap();
        let mut damaged = whole.clone();
        let at = loop {
            let at = random.below(whole.len() as u64) as usize;
            // (A byte that is zero may be padding, or behind the end.)
            if whole[at] != 0 {
                break at;
            }
        };
        damaged[at] ^= 1 << random.below(8);
        fs::write(path, &damaged).unwrap();
        let verified = found(dir.path());
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(verified.flaws.iter().any(|flaw| flaw.file == name), "{name}, byte {at}: {verified:?}");
        fs::write(path, &whole).unwrap();
    }
    assert_eq!(found(dir.path()).flaw_count, 0);
}

#[test]
fn places_are_named_and_files_that_are_missing_or_short() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), true);
    let log = files(dir.path(), "log").remove(0);
    let whole = fs::read(&log).unwrap();
    let at = common::find(&whole, &key(5)).unwrap();
    let mut damaged = whole.clone();
    damaged[at + 20] ^= 1;
    fs::write(&log, damaged).unwrap();
    let flaws = found(dir.path()).flaws;
    assert_eq!(flaws.len(), 1, "{flaws:?}");
    assert_eq!((flaws[0].offset, flaws[0].what.as_str()), (Some(at as u64 - 32), "the value of a record is damaged"));

    fs::write(&log, &whole[..8192]).unwrap();
    let flaws = found(dir.path()).flaws;
    assert!(flaws.iter().any(|flaw| flaw.what == "the file was cut short"), "{flaws:?}");
    assert!(flaws.iter().any(|flaw| flaw.what.contains("that the sidecar names")), "{flaws:?}");
    fs::write(&log, &whole).unwrap();
    fs::remove_file(dir.path().join("SECRET")).unwrap();
    assert_eq!(found(dir.path()).flaws[0].file, "SECRET");
}

/// As a power loss leaves it: what was being written is torn, not damaged.
#[test]
fn a_torn_end_is_no_flaw() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), false);
    let end_of = |log: &Path| fs::read(log).unwrap().iter().rposition(|&byte| byte != 0).unwrap();
    // The one that was being written: not a sealed one, and not a spare, which has nothing in it. (Its number need
    // not be the highest: a spare that comes late is used after one that was made meanwhile.)
    let is_open = |log: &Path| !log.with_extension("idx").exists() && end_of(log) > 1_000;
    let log = files(dir.path(), "log").into_iter().find(|log| is_open(log)).unwrap();
    let (last, mut bytes) = (end_of(&log), fs::read(&log).unwrap());
    bytes[last - 100..=last].fill(0);
    fs::write(&log, bytes).unwrap();
    let verified = found(dir.path());
    assert_eq!((verified.flaw_count, verified.records), (0, 499), "{verified:?}");
    assert!(verified.torn_bytes > 0);
}

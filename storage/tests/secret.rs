//! The secret of a data folder: made with it, kept, missed when it is gone, and replaced where
//! nothing depends on it.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{copy_folder, files, scan, small, value_of, version};
use koltso_storage::{Folder, FolderError, OpenError, Options, Store};

const KEYS: u64 = 300;

fn options(folder: &Path) -> Options {
    Options { compaction_dead_share: 1.1, ..small(folder) }
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:05}").into_bytes()
}

fn fill(folder: &Path) -> Store {
    let (store, _) = Store::open(options(folder)).unwrap();
    let mut writer = store.writer().unwrap();
    for number in 0..KEYS {
        writer.put(&key(number), &[number as u8; 500], version(number + 1), 0).unwrap();
    }
    store
}

/// A folder with several sealed segments.
fn sealed(folder: &Path) {
    fill(folder).close().unwrap();
    assert!(files(folder, "idx").len() >= 2);
}

fn assert_whole(store: &Store, what: &str) {
    for number in 0..KEYS {
        assert_eq!(value_of(store, &key(number)), Some(vec![number as u8; 500]), "{what}: key {number}");
    }
    assert_eq!(scan(store, b"k", None, 1).len() as u64, KEYS, "{what}");
}

/// Names, contents and permissions.
fn everything(folder: &Path) -> Vec<(String, Vec<u8>, u32)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut all: Vec<_> = entries
        .map(|entry| {
            let permissions = entry.metadata().unwrap().permissions().mode();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap(), permissions)
        })
        .collect();
    all.sort();
    all
}

/// Opening is refused with one sentence that has all of `words`, and nothing in the folder changes.
fn assert_refused(folder: &Path, words: &[&str], expected: impl Fn(&FolderError) -> bool) {
    let before = everything(folder);
    let error = match Store::open(options(folder)) {
        Err(OpenError::Folder(error)) => error,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("the folder was opened"),
    };
    assert!(expected(&error), "{error:?}");
    let sentence = error.to_string();
    for word in words.iter().copied().chain([folder.to_str().unwrap(), "SECRET"]) {
        assert!(sentence.contains(word), "{word:?} is not in: {sentence}");
    }
    assert!(!sentence.contains('\n') && !sentence.contains("  "), "{sentence}");
    assert!(everything(folder) == before, "something was touched");
}

#[test]
fn each_folder_has_a_secret_of_its_own_that_stays_and_is_its_owners() {
    let dir = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
    sealed(&one);
    sealed(&other);
    let secret = fs::read(one.join("SECRET")).unwrap();
    assert_eq!((&secret[..8], secret.len()), (&b"KOLTSOKY"[..], 32));
    assert_ne!(secret[16..], fs::read(other.join("SECRET")).unwrap()[16..]);
    for path in
        [&one.join("SECRET"), &one.join("FORMAT"), &one.join("LOCK"), &files(&one, "log")[0], &files(&one, "idx")[0]]
    {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
    }
    assert_eq!(fs::metadata(&one).unwrap().permissions().mode() & 0o777, 0o700);
    let (store, recovered) = Store::open(options(&one)).unwrap();
    assert_eq!((recovered.keys, recovered.scanned), (KEYS, 0));
    assert_whole(&store, "from sidecars");
    assert_eq!(fs::read(one.join("SECRET")).unwrap(), secret);
}

#[test]
fn a_secret_that_is_gone_is_missed_while_there_are_sidecars() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("data");
    sealed(&folder);
    fs::remove_file(folder.join("SECRET")).unwrap();
    assert_refused(&folder, &["*.idx"], |error| matches!(error, FolderError::SecretMissing(_)));
    // The way out that the sentence names.
    let sidecars = files(&folder, "idx");
    for sidecar in &sidecars {
        fs::remove_file(sidecar).unwrap();
    }
    let (store, recovered) = Store::open(options(&folder)).unwrap();
    assert_eq!((recovered.keys, recovered.scanned), (KEYS, sidecars.len() as u64));
    assert_whole(&store, "with a new secret");
    store.close().unwrap();
    drop(store);
    let (store, recovered) = Store::open(options(&folder)).unwrap();
    assert_eq!((recovered.keys, recovered.scanned), (KEYS, 0));
    assert_whole(&store, "with a new secret, from sidecars");
}

#[test]
fn a_secret_that_is_cut_short_or_damaged_is_refused_with_or_without_sidecars() {
    let dir = tempfile::tempdir().unwrap();
    let clean = dir.path().join("clean");
    sealed(&clean);
    for with_sidecars in [true, false] {
        let folder = dir.path().join(if with_sidecars { "with" } else { "without" });
        copy_folder(&clean, &folder);
        for sidecar in files(&folder, "idx").iter().filter(|_| !with_sidecars) {
            fs::remove_file(sidecar).unwrap();
        }
        let path = folder.join("SECRET");
        let secret = fs::read(&path).unwrap();
        let damaged = |error: &FolderError| matches!(error, FolderError::SecretDamaged(_));
        for len in [0, 1, 16, 31] {
            fs::write(&path, &secret[..len]).unwrap();
            assert_refused(&folder, &["damaged", "*.idx"], damaged);
        }
        for byte in [0, 9, 13, 16, 31] {
            let mut bytes = secret.clone();
            bytes[byte] ^= 4;
            fs::write(&path, bytes).unwrap();
            assert_refused(&folder, &["damaged", "*.idx"], damaged);
        }
        // Put back from a copy.
        fs::write(&path, &secret).unwrap();
        let (store, recovered) = Store::open(options(&folder)).unwrap();
        assert_eq!((recovered.keys, recovered.scanned == 0), (KEYS, with_sidecars));
        assert_whole(&store, "put back");
    }
}

#[test]
fn a_secret_that_others_may_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("data");
    sealed(&folder);
    for permissions in [0o640, 0o604, 0o602] {
        fs::set_permissions(folder.join("SECRET"), fs::Permissions::from_mode(permissions)).unwrap();
        assert_refused(&folder, &["chmod 600"], |error| matches!(error, FolderError::SecretOpen(_)));
    }
    fs::set_permissions(folder.join("SECRET"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_whole(&Store::open(options(&folder)).unwrap().0, "closed again");
}

#[test]
fn sidecars_of_another_secret_are_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let [folder, other] = ["data", "other"].map(|name| dir.path().join(name));
    sealed(&folder);
    drop(Folder::take(&other).unwrap());
    fs::copy(other.join("SECRET"), folder.join("SECRET")).unwrap();
    let sidecars = files(&folder, "idx").len() as u64;
    let (store, recovered) = Store::open(options(&folder)).unwrap();
    assert_eq!((recovered.keys, recovered.scanned), (KEYS, sidecars));
    assert_whole(&store, "read through");
    store.close().unwrap();
    drop(store);
    assert_eq!(Store::open(options(&folder)).unwrap().1.scanned, 0);
}

#[test]
fn a_start_that_ends_while_the_folder_is_made_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    drop(fill(&whole));
    let secret = fs::read(whole.join("SECRET")).unwrap();
    for (name, present) in
        [("new", ["SECRET-new", "LOCK"]), ("half", ["SECRET", "LOCK"]), ("format", ["SECRET", "FORMAT"])]
    {
        let folder = dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        for file in present {
            // Of all files that can be left, only a whole one is called SECRET.
            fs::write(folder.join(file), if file == "SECRET" { &secret[..] } else { b"" }).unwrap();
            fs::set_permissions(folder.join(file), fs::Permissions::from_mode(0o600)).unwrap();
        }
        let store = fill(&folder);
        assert_whole(&store, name);
        assert!(!folder.join("SECRET-new").exists());
        assert_eq!(fs::read_to_string(folder.join("FORMAT")).unwrap(), "koltso 2\n");
    }
    // Somebody else's file of that name.
    let foreign = dir.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("SECRET"), "of somebody else").unwrap();
    let before = everything(&foreign);
    assert!(matches!(Store::open(options(&foreign)), Err(OpenError::Folder(FolderError::Foreign(_)))));
    assert!(everything(&foreign) == before);
}

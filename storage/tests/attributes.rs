//! Flags and attributes are part of a record: they come back as written, also where this build has
//! no meaning for them, from the log, from a sealed segment, after compaction and after a start.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{FakeEnv, files, small, version};
use koltso_model::{AttributeError, Attributes, Flags, Key, Record};
use koltso_storage::{Applied, Lookup, Options, Store, Value, WriteError, Writer};
use koltso_testkit::wait::soon;
use koltso_testkit::wall_ms;

/// A media type, and an attribute of a kind that has no meaning.
const ATTRIBUTES: &[u8] = &[1, 10, b't', b'e', b'x', b't', b'/', b'p', b'l', b'a', b'i', b'n', 200, 3, 9, 8, 7];
/// All bits that have no meaning to a record, and `from` = 3.
const FLAGS: Flags = Flags::from_bits(0x7f08);

/// Everything that a read gives, with bytes of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    flags: Flags,
    attributes: Vec<u8>,
    expires_at_ms: u64,
    value: Vec<u8>,
}

fn options(folder: &Path) -> Options {
    Options { env: FakeEnv::new(1 << 40), segment_size: 128 << 10, value_max: 64 << 10, ..small(folder) }
}

fn record<'a>(key: &'a [u8], value: &'a [u8], ms: u64) -> Record<&'a [u8]> {
    Record {
        key: Key::new(key),
        value,
        version: version(ms),
        expires_at_ms: 1 << 47,
        flags: FLAGS,
        attributes: ATTRIBUTES,
    }
}

fn see(store: &Store, key: &[u8]) -> Option<Seen> {
    let (mut seen, large) = store.get(key, 1, |read| match read {
        Lookup::Found(found) => {
            let (value, large) = match found.value {
                Value::Inline(bytes) => (bytes.to_vec(), None),
                Value::Large(large) => (Vec::new(), Some(large)),
            };
            let (flags, attributes) = (found.flags, found.attributes.to_vec());
            (Some(Seen { flags, attributes, expires_at_ms: found.expires_at_ms, value }), large)
        }
        Lookup::Absent(_) | Lookup::Damaged => (None, None),
    });
    if let (Some(seen), Some(large)) = (&mut seen, large) {
        assert_eq!(large.attributes(), seen.attributes, "known before the value is verified");
        let pinned = large.verify()?;
        assert_eq!(pinned.attributes(), seen.attributes);
        seen.value = pinned.as_ref().to_vec();
    }
    seen
}

fn expected(value: &[u8]) -> Option<Seen> {
    let (flags, attributes) = (FLAGS, ATTRIBUTES.to_vec());
    Some(Seen { flags, attributes, expires_at_ms: 1 << 47, value: value.to_vec() })
}

/// Writes records that fill and roll the active segment, so that what lies in it gets sealed.
fn roll(writer: &mut Writer, ms: u64) {
    for number in 0..16 {
        writer.put(format!("roll{number}").as_bytes(), &[0; 15_000], version(ms), 0).unwrap();
    }
}

#[test]
fn flags_and_attributes_survive_sealing_compaction_and_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(options(dir.path())).unwrap();
    let mut writer = store.writer().unwrap();
    let large = vec![7; 40_000];
    let values = [(&b"small"[..], &b"value"[..]), (b"empty", b""), (b"large", &large)];
    for (key, value) in values {
        assert_eq!(writer.apply(&record(key, value, 5)).unwrap(), Applied::Newest);
        assert_eq!(see(&store, key), expected(value));
    }
    roll(&mut writer, 6);
    let first = files(dir.path(), "log").remove(0);
    soon("the segment with them is compacted", || {
        roll(&mut writer, wall_ms());
        !first.exists()
    });
    for (key, value) in values {
        assert_eq!(see(&store, key), expected(value), "after compaction");
    }
    drop((writer, store));
    let (store, _) = Store::open(options(dir.path())).unwrap();
    for (key, value) in values {
        assert_eq!(see(&store, key), expected(value), "after a start without sidecars");
    }
    store.close().unwrap();
    drop(store);
    let (store, recovered) = Store::open(options(dir.path())).unwrap();
    assert_eq!(recovered.scanned, 0);
    for (key, value) in values {
        assert_eq!(see(&store, key), expected(value), "after a start from sidecars");
    }
}

#[test]
fn a_tombstone_is_remembered_with_its_flags() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(options(dir.path())).unwrap();
    let mut writer = store.writer().unwrap();
    let flags = FLAGS.tombstone();
    writer.apply(&Record { flags, expires_at_ms: 0, value: &[], ..record(b"key", b"", 5) }).unwrap();
    let seen = store.get(b"key", 1, |read| match read {
        Lookup::Absent(Some(tombstone)) => (tombstone.version, tombstone.flags),
        other => panic!("{other:?}"),
    });
    assert_eq!(seen, (version(5), flags));
    assert_eq!(store.stats().tombstones, 1);
}

#[test]
fn attributes_that_are_none_are_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(options(dir.path())).unwrap();
    let mut writer = store.writer().unwrap();
    let before = writer.position();
    for (attributes, error) in [
        (&[1, 2, 0][..], AttributeError::Length(1)),
        (&[2, 0, 1, 0], AttributeError::Order(1)),
        (&[0; koltso_model::ATTRIBUTES_MAX + 1], AttributeError::TooLong(koltso_model::ATTRIBUTES_MAX + 1)),
    ] {
        assert_eq!(Attributes::parse(attributes), Err(error));
        let refused = writer.apply(&Record { attributes, ..record(b"key", b"value", 5) }).unwrap_err();
        assert!(matches!(refused, WriteError::Attributes(e) if e == error), "{refused}");
    }
    assert_eq!(writer.position(), before);
    // As many bytes as there can be.
    let mut most = Vec::new();
    for kind in 0..8 {
        most.extend_from_slice(&[kind, 126]);
        most.extend_from_slice(&[kind; 126]);
    }
    assert_eq!(most.len(), koltso_model::ATTRIBUTES_MAX);
    let key = [b'k'; koltso_storage::KEY_MAX];
    writer.apply(&Record { attributes: &most, ..record(&key, b"value", 5) }).unwrap();
    assert_eq!(see(&store, &key).unwrap().attributes, most);
}

/// Each byte of the attributes and of their length, one after the other: the key answers "damaged",
/// before and after a start.
#[test]
fn damaged_attributes_are_noticed_wherever_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let clean = dir.path().join("clean");
    let (store, _) = Store::open(options(&clean)).unwrap();
    let mut writer = store.writer().unwrap();
    writer.apply(&record(b"the-key", b"the-value", 5)).unwrap();
    writer.put(b"other", b"intact", version(5), 0).unwrap();
    drop(writer);
    store.close().unwrap();
    drop(store);
    let name = files(&clean, "log").remove(0).file_name().unwrap().to_owned();
    let at = common::find(&fs::read(clean.join(&name)).unwrap(), b"the-key").unwrap() + b"the-key".len();
    for damaged in at..at + 2 + ATTRIBUTES.len() {
        let folder = dir.path().join(format!("{damaged}"));
        common::copy_folder(&clean, &folder);
        let mut bytes = fs::read(folder.join(&name)).unwrap();
        bytes[damaged] ^= 0x20;
        fs::write(folder.join(&name), bytes).unwrap();
        let (store, _) = Store::open(options(&folder)).unwrap();
        assert_eq!(common::get(&store, b"the-key", 1), common::Seen::Damaged, "byte {damaged}");
        assert_eq!(common::value_of(&store, b"other").as_deref(), Some(&b"intact"[..]));
        drop(store);
        // Without a sidecar nobody can say whose it was: it is counted, and not served.
        for sidecar in files(&folder, "idx") {
            fs::remove_file(sidecar).unwrap();
        }
        let (store, recovered) = Store::open(options(&folder)).unwrap();
        assert_eq!((see(&store, b"the-key"), recovered.damaged > 0), (None, true), "byte {damaged}");
        assert_eq!(common::value_of(&store, b"other").as_deref(), Some(&b"intact"[..]));
        drop(store);
        fs::remove_dir_all(folder).unwrap();
    }
}

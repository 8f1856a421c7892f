//! Keys that a client made so that they collide in the public hash cost no more than others.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{value_of, version};
use koltso_storage::{KeyHash, Options, Store, SyncMode};

const KEYS: u64 = 50_000;

/// Ordinary keys of the same length.
fn ordinary(number: u64) -> Vec<u8> {
    let mut key = format!("{number:032x}").into_bytes();
    key.reverse();
    key
}

/// XXH3-64 multiplies the first 8 bytes of a key of 17 to 32, less those of its secret, with the
/// next 8: where they are the secret's own, the next 8 do not matter.
fn colliding(number: u64) -> Vec<u8> {
    let mut key = vec![0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe];
    key.extend(number.to_le_bytes());
    key.extend([0; 16]);
    key
}

/// Inserting, reading and starting again, each the best of three.
fn times(make: fn(u64) -> Vec<u8>) -> [Duration; 3] {
    let keys: Vec<Vec<u8>> = (0..KEYS).map(make).collect();
    let mut best = [Duration::MAX; 3];
    for _ in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let options = || Options { sync: SyncMode::Os, ..Options::new(dir.path()) };
        let (store, _) = Store::open(options()).unwrap();
        let mut writer = store.writer().unwrap();
        let mut timed = |what: usize, work: &mut dyn FnMut()| {
            let started = Instant::now();
            work();
            best[what] = best[what].min(started.elapsed());
        };
        timed(0, &mut || {
            for key in &keys {
                writer.put(key, b"value", version(1), 0).unwrap();
            }
        });
        timed(1, &mut || {
            for key in &keys {
                assert_eq!(value_of(&store, key).as_deref(), Some(&b"value"[..]));
            }
        });
        drop(writer);
        store.close().unwrap();
        drop(store);
        timed(2, &mut || {
            let (_, recovered) = Store::open(options()).unwrap();
            assert_eq!((recovered.keys, recovered.scanned), (KEYS, 0));
        });
    }
    best
}

#[test]
fn keys_made_to_collide_in_the_public_hash_are_as_quick_as_others() {
    assert!((0..KEYS).all(|number| KeyHash::of(&colliding(number)) == KeyHash::of(&colliding(0))));
    let (others, made) = (times(ordinary), times(colliding));
    for (what, (others, made)) in ["insert", "read", "start"].iter().zip(others.iter().zip(&made)) {
        println!("{what}: {others:?} for ordinary keys, {made:?} for keys made to collide");
        // In a chain, each of these steps took over a thousand times as long.
        assert!(*made < *others * 8 + Duration::from_millis(100), "{what}: {made:?} where others take {others:?}");
    }
}

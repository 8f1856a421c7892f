//! Keys that a client made so that they collide in the public hash cost no more than others.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{FakeEnv, value_of, version};
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

/// How much longer keys made to collide may take than others.
const RATIO_MAX: f64 = 1.5;
/// Rounds of both, by turns, at least and at most. A machine that does something else meanwhile only
/// ever adds time, so the shortest ones are compared, of more rounds if they have to be.
const ROUNDS: std::ops::RangeInclusive<usize> = 3..=25;
const STEPS: [&str; 3] = ["insert", "read", "start"];

/// Inserting, reading and starting again.
fn times(keys: &[Vec<u8>]) -> [Duration; 3] {
    let dir = tempfile::tempdir().unwrap();
    // What the disk takes is left out: it depends on who else uses it.
    let env = FakeEnv::new(1 << 40);
    let options = || Options { sync: SyncMode::Os, env: env.clone(), ..Options::new(dir.path()) };
    let (store, _) = Store::open(options()).unwrap();
    let mut writer = store.writer().unwrap();
    let timed = |work: &mut dyn FnMut()| {
        let started = Instant::now();
        work();
        started.elapsed()
    };
    let insert = timed(&mut || {
        for key in keys {
            writer.put(key, b"value", version(1), 0).unwrap();
        }
    });
    let read = timed(&mut || {
        for key in keys {
            assert_eq!(value_of(&store, key).as_deref(), Some(&b"value"[..]));
        }
    });
    drop(writer);
    store.close().unwrap();
    drop(store);
    let mut opened = None;
    let start = timed(&mut || opened = Some(Store::open(options()).unwrap()));
    let (_, recovered) = opened.unwrap();
    assert_eq!((recovered.keys, recovered.scanned), (KEYS, 0));
    [insert, read, start]
}

#[test]
fn keys_made_to_collide_in_the_public_hash_are_as_quick_as_others() {
    assert!((0..KEYS).all(|number| KeyHash::of(&colliding(number)) == KeyHash::of(&colliding(0))));
    let [others, made] = [ordinary, colliding].map(|make| (0..KEYS).map(make).collect::<Vec<_>>());
    let mut least = [[Duration::MAX; 3]; 2];
    let mut ratios = [f64::MAX; 3];
    for round in 1..=*ROUNDS.end() {
        for (least, keys) in least.iter_mut().zip([&others, &made]) {
            for (least, time) in least.iter_mut().zip(times(keys)) {
                *least = time.min(*least);
            }
        }
        for (step, what) in STEPS.into_iter().enumerate() {
            let [others, made] = [least[0][step], least[1][step]];
            ratios[step] = made.as_secs_f64() / others.as_secs_f64();
            println!("round {round}, {what}: {others:?} for ordinary keys, {made:?} for keys made to collide");
        }
        // In a chain, each of the steps took over a thousand times as long, in every round.
        if round >= *ROUNDS.start() && ratios.iter().all(|&ratio| ratio <= RATIO_MAX) {
            return;
        }
    }
    panic!("keys made to collide take longer: {STEPS:?} {ratios:.2?} times as long as others, {least:?}");
}

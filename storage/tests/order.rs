//! The order of a range where keys begin with the same bytes, and where one is the beginning of
//! another.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::{scan, small, value_of, version};
use koltso_storage::Store;

/// Keys that are zeros but for one byte, of all lengths about those of the prefixes by which
/// segments (16 bytes) and cursors (8 bytes) are sorted.
fn keys() -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    for len in (1..=10).chain(14..=19).chain([33]) {
        keys.push(vec![0; len]);
        for at in [0, len / 2, len - 1] {
            for byte in [1, 0xff] {
                let mut key = vec![0; len];
                key[at] = byte;
                keys.push(key);
            }
        }
    }
    keys.sort();
    keys.dedup();
    keys
}

#[test]
fn keys_that_begin_alike_come_in_the_order_of_their_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(small(folder.path())).unwrap();
    let mut writer = store.writer().unwrap();
    let mut model = BTreeMap::new();
    for round in 1..=3_u64 {
        // In another order each time, so that equal keys lie apart.
        for (number, key) in keys().into_iter().enumerate().rev().filter(|(number, _)| number % 4 != round as usize) {
            let value = format!("{round} {number}").into_bytes();
            writer.put(&key, &value, version(round * 1000 + number as u64), 0).unwrap();
            model.insert(key, value);
        }
        let expected: Vec<_> = model.clone().into_iter().collect();
        assert!(scan(&store, &[0], None, 0) == expected, "of what is not sealed, round {round}");
    }
    for (key, value) in &model {
        assert_eq!(value_of(&store, key).as_ref(), Some(value));
    }
    // Segments of the model's size seal many times over while this is written.
    for filler in 0..2000_u64 {
        writer.put(&[[7].as_slice(), &filler.to_be_bytes()].concat(), &[7; 500], version(9000 + filler), 0).unwrap();
    }
    let expected: Vec<_> = model.into_iter().collect();
    let found = scan(&store, &[0], Some(&[7]), 0);
    let expected: Vec<_> = expected.into_iter().filter(|(key, _)| key[..] < [7][..]).collect();
    assert!(found == expected, "of what is sealed");
    drop(writer);
    store.close().unwrap();
    drop(store);
    let (store, _) = Store::open(small(folder.path())).unwrap();
    assert!(scan(&store, &[0], Some(&[7]), 0) == expected, "after a start");
}

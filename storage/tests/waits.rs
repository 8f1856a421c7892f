//! What the engine's threads wait for is counted under its name: a stripe that is held, the log's
//! sync.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::mpsc;
use std::time::{Duration, Instant};

use koltso_instrument::waits::{Kind, Snapshot, difference, snapshot};
use koltso_storage::{Lookup, Options, Store, Stored, SyncMode, Value, Version};

fn found(before: &Snapshot, kind: Kind, name: &str) -> (i64, i64) {
    let all = difference(before, &snapshot());
    let named = all.iter().filter(|waited| waited.kind == kind && waited.name == Some(name));
    named.fold((0, 0), |(count, ns), waited| (count + waited.count, ns + waited.delay_ns))
}

#[test]
fn a_held_stripe_and_a_sync_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(Options { sync: SyncMode::Os, ..Options::new(dir.path()) }).unwrap();
    let mut writer = store.writer().unwrap();
    writer.put(b"key", b"value", Version::new(1, 0), 0).unwrap();
    let before = snapshot();
    let mut seen_ns = 0;
    std::thread::scope(|scope| {
        // A reader that is slow under the lock, and a writer of the same key.
        let (holds, is_held) = mpsc::channel();
        scope.spawn({
            let store = &store;
            move || {
                for _ in 0..20 {
                    store.get(b"key", 1, |found| {
                        assert!(matches!(found, Lookup::Found(Stored { value: Value::Inline(_), .. })));
                        holds.send(()).unwrap();
                        std::thread::sleep(Duration::from_millis(4));
                    });
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        for clock in 2..22 {
            is_held.recv().unwrap();
            let began = Instant::now();
            writer.put(b"key", b"another", Version::new(clock, 0), 0).unwrap();
            seen_ns += began.elapsed().as_nanos() as i64;
        }
    });
    let (count, ns) = found(&before, Kind::Lock, "index stripe");
    println!("{count} waits of {ns} ns; the writes took {seen_ns} ns");
    // On a busy machine the writer may come when the lock is free again.
    assert!(
        (10..=40).contains(&count) && ns > 20_000_000 && ns < seen_ns + seen_ns / 5 + 5_000_000,
        "{count}, {ns} ns"
    );

    assert_eq!(found(&before, Kind::Wait, "sync of the log").0, 0);
    let began = Instant::now();
    for clock in 100..200 {
        writer.put(b"key", &[1; 100_000], Version::new(clock, 0), 0).unwrap();
        writer.sync().unwrap();
    }
    let (count, ns) = found(&before, Kind::Wait, "sync of the log");
    assert!(count > 0 && ns > 0 && ns <= began.elapsed().as_nanos() as i64 + 10_000, "{count}, {ns} ns");
}

//! What the engine does without a server around it: `cargo bench -p koltso-storage [-- NAME…]`.
//!
//! A plain program, not a statistics package: each figure is the best and the median of a few runs
//! over fresh data, so it can also be run under `perf`. `KOLTSO_BENCH_DIR` chooses the disk (a
//! temporary folder otherwise).
//!
//! | name | what |
//! |---|---|
//! | append | records of 176 bytes in the log (8-byte keys, 128-byte values, 8 bytes of padding and version), new keys |
//! | overwrite | the same over 100 000 keys that exist |
//! | get | random keys of 1 M, 128-byte values, in memory |
//! | range | all of 1 M records of 100 bytes, from sealed segments, copied out |
//! | recover | open with 3 M keys of 8 bytes: sealed, and as after kill -9; files in the page cache |
//! | compact | compaction without a rate limit over segments of which half is dead |

#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use koltso_storage::{Lookup, Options, Store, Stored, SyncMode, Value, Version, Writer};

const KEYS: u64 = 1_000_000;

fn options(folder: &Path) -> Options {
    Options { sync: SyncMode::Os, compaction_dead_share: 1.1, ..Options::new(folder) }
}

fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 27)
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let base = std::env::var_os("KOLTSO_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        Self(tempfile::tempdir_in(base).unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Runs a few times; `run` returns how many things it did and how long that took.
fn report(name: &str, unit: &str, runs: usize, mut run: impl FnMut() -> (u64, Duration)) {
    let mut rates: Vec<f64> = Vec::new();
    for _ in 0..runs {
        let (count, took) = run();
        rates.push(count as f64 / took.as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    let (best, median) = (rates[rates.len() - 1], rates[rates.len() / 2]);
    println!("{name:<28} best {best:>14.0} {unit}/s  median {median:>14.0} {unit}/s  ({:.0} ns each)", 1e9 / median);
}

fn load(writer: &mut Writer, keys: u64, value: &[u8], clock: u64) {
    for number in 0..keys {
        writer.put(&mix(number).to_be_bytes(), value, Version::new(clock, 0), 0).unwrap();
    }
}

fn append() {
    report("append", "records", 5, || {
        let folder = Folder::new();
        let (store, _) = Store::open(options(folder.path())).unwrap();
        let mut writer = store.writer().unwrap();
        let started = Instant::now();
        load(&mut writer, KEYS, &[7; 136], 1);
        (KEYS, started.elapsed())
    });
}

fn overwrite() {
    let folder = Folder::new();
    let (store, _) = Store::open(options(folder.path())).unwrap();
    let mut writer = store.writer().unwrap();
    load(&mut writer, 100_000, &[7; 136], 1);
    let mut clock = 1;
    let mut worst = Duration::ZERO;
    report("overwrite", "records", 5, || {
        let started = Instant::now();
        for number in 0..KEYS {
            clock += 1;
            let key = mix(mix(number) % 100_000).to_be_bytes();
            let before = (number % 64 == 0).then(Instant::now);
            writer.put(&key, &[8; 136], Version::new(clock, 0), 0).unwrap();
            worst = before.map_or(worst, |before| worst.max(before.elapsed()));
        }
        (KEYS, started.elapsed())
    });
    println!("{:<28} {worst:?} (one in 64 was timed), stalls {}", "  slowest put", store.stats().stalls);
}

fn get() {
    let folder = Folder::new();
    let (store, _) = Store::open(options(folder.path())).unwrap();
    let mut writer = store.writer().unwrap();
    load(&mut writer, KEYS, &[7; 128], 1);
    for (name, among) in [("get, of 1 M keys", KEYS), ("get, of 100 k keys", 100_000)] {
        report(name, "records", 5, || {
            let started = Instant::now();
            let mut sum = 0;
            for number in 0..KEYS {
                let key = mix(mix(number ^ 0x55) % among).to_be_bytes();
                sum += store.get(&key, 1, |found| match found {
                    Lookup::Found(Stored { value: Value::Inline(bytes), .. }) => bytes[0] as u64,
                    _ => panic!("it is there"),
                });
            }
            assert_eq!(sum, 7 * KEYS);
            (KEYS, started.elapsed())
        });
    }
    report("get, absent", "records", 5, || {
        let started = Instant::now();
        let absent = (0..KEYS).filter(|number| {
            store.get(&mix(number ^ (1 << 40)).to_be_bytes(), 1, |found| matches!(found, Lookup::Absent(_)))
        });
        assert_eq!(absent.count() as u64, KEYS);
        (KEYS, started.elapsed())
    });
}

fn range() {
    for (name, sorted, seal) in [
        ("range, sealed, random order", false, true),
        ("range, sealed, in order", true, true),
        ("range, active", false, false),
    ] {
        let folder = Folder::new();
        let (store, _) = Store::open(options(folder.path())).unwrap();
        let mut writer = store.writer().unwrap();
        for number in 0..KEYS {
            let key = format!("record/{:012}", if sorted { number } else { mix(number) % 1_000_000_000_000 });
            writer.put(key.as_bytes(), &[7; 100], Version::new(1, 0), 0).unwrap();
        }
        drop(writer);
        if seal {
            store.close().unwrap();
        }
        let mut copied = Vec::with_capacity(1 << 16);
        report(name, "records", 5, || {
            let started = Instant::now();
            let mut cursor = loop {
                if let Ok(cursor) = store.scan(b"record/", Some(b"record0")) {
                    break cursor;
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            let mut count = 0;
            while let Some(()) = cursor.next(1, |key, value| {
                if copied.len() > 60_000 {
                    copied.clear();
                }
                copied.extend_from_slice(key);
                if let Value::Inline(bytes) = value {
                    copied.extend_from_slice(bytes);
                }
            }) {
                count += 1;
            }
            assert!(count > KEYS - 100);
            (count, started.elapsed())
        });
    }
}

fn recover() {
    const MANY: u64 = 3_000_000;
    for (name, seal) in [("recover 3 M keys, sealed", true), ("recover 3 M keys, unsealed", false)] {
        let folder = Folder::new();
        {
            let (store, _) = Store::open(options(folder.path())).unwrap();
            let mut writer = store.writer().unwrap();
            load(&mut writer, MANY, &[7; 16], 1);
            drop(writer);
            if seal {
                store.close().unwrap();
            }
        }
        report(name, "keys", 5, || {
            if !seal {
                for entry in std::fs::read_dir(folder.path()).unwrap() {
                    let path = entry.unwrap().path();
                    if path.extension().is_some_and(|e| e == "idx") {
                        std::fs::remove_file(path).unwrap();
                    }
                }
            }
            let started = Instant::now();
            let (store, recovered) = Store::open(options(folder.path())).unwrap();
            let took = started.elapsed();
            assert_eq!((recovered.keys, recovered.scanned == 0), (MANY, seal));
            println!("{:<28} {took:?}, {} segments", "  open", recovered.segments);
            drop(store);
            (MANY, took)
        });
    }
}

fn compact() {
    report("compact", "bytes moved", 3, || {
        let folder = Folder::new();
        {
            let (store, _) = Store::open(options(folder.path())).unwrap();
            let mut writer = store.writer().unwrap();
            load(&mut writer, KEYS, &[7; 136], 1);
            for number in (0..KEYS).step_by(2) {
                writer.put(&mix(number).to_be_bytes(), &[8; 136], Version::new(2, 0), 0).unwrap();
            }
            drop(writer);
            store.close().unwrap();
        }
        let eager = Options { compaction_dead_share: 0.33, compaction_rate: u64::MAX, ..options(folder.path()) };
        let (store, _) = Store::open(eager).unwrap();
        let started = Instant::now();
        let (mut moved, mut took) = (0, Duration::from_millis(1));
        while started.elapsed() < Duration::from_secs(20) {
            let stats = store.stats();
            if stats.compacted_bytes > moved {
                (moved, took) = (stats.compacted_bytes, started.elapsed());
            }
            if stats.dead_bytes * 5 < stats.live_bytes {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        (moved, took)
    });
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let all: [(&str, fn()); 6] = [
        ("append", append),
        ("overwrite", overwrite),
        ("get", get),
        ("range", range),
        ("recover", recover),
        ("compact", compact),
    ];
    for (name, bench) in all {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            bench();
        }
    }
}

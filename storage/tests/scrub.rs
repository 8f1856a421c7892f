//! The scrub finds what the disk has damaged, once an interval, and disturbs nothing.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{FakeEnv, files, find, small, value_of, version};
use koltso_storage::{Env, Options, RealEnv, Store};
use koltso_testkit::wait::soon;

fn quiet(folder: &Path) -> Options {
    Options { compaction_dead_share: 1.1, ..small(folder) }
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:05}").into_bytes()
}

/// Five sealed segments or so.
fn written(folder: &Path) {
    let (store, _) = Store::open(quiet(folder)).unwrap();
    let mut writer = store.writer().unwrap();
    for number in 0..800 {
        let value = format!("value-of-{number:05}").repeat(20);
        writer.put(&key(number), value.as_bytes(), version(number + 1), 0).unwrap();
    }
    drop(writer);
    store.close().unwrap();
}

fn a_round(store: &Store) {
    let before = store.stats().scrub.ended_ms;
    std::thread::sleep(Duration::from_millis(2));
    store.scrub_now();
    soon("everything is read", || store.stats().scrub.ended_ms > before && !store.stats().scrub.hurry);
}

#[test]
fn what_nobody_reads_is_found_damaged_and_what_is_dead_is_not() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    let logs = files(dir.path(), "log");
    let flip = |number: u64| {
        let needle = format!("value-of-{number:05}");
        let of =
            |log: &std::path::PathBuf| find(&fs::read(log).unwrap(), needle.as_bytes()).map(|at| (log.clone(), at));
        let (log, at) = logs.iter().find_map(of).unwrap();
        let byte = fs::read(&log).unwrap()[at];
        OpenOptions::new().write(true).open(&log).unwrap().write_all_at(&[byte ^ 1], at as u64).unwrap();
    };
    for number in [3, 400, 799] {
        flip(number);
    }
    let (store, _) = Store::open(quiet(dir.path())).unwrap();
    let mut writer = store.writer().unwrap();
    writer.put(&key(400), b"newer", version(9_000), 0).unwrap();
    assert_eq!(store.stats().damaged_records, 0, "nobody has looked");
    a_round(&store);
    assert_eq!(store.stats().damaged_records, 2, "what stands for a key");
    let told: Vec<_> = std::iter::from_fn(|| store.next_damaged()).filter_map(|record| record.key).collect();
    assert_eq!(told, [key(3), key(799)]);
    assert!(store.stats().scrub.bytes == 0 && store.stats().scrub.healed == 0, "{:?}", store.stats().scrub);
    a_round(&store);
    assert_eq!(store.stats().damaged_records, 2, "each is counted once");
}

/// A disk on which the places of these bytes are damaged until they are written again. What is in
/// memory is whole.
struct Rotten {
    needles: Vec<Vec<u8>>,
    written_again: Mutex<Vec<bool>>,
}

impl Env for Rotten {
    fn read_some_at(&self, file: &fs::File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = RealEnv.read_some_at(file, bytes, offset)?;
        for (needle, healed) in self.needles.iter().zip(&*self.written_again.lock().unwrap()) {
            if let (Some(at), false) = (find(&bytes[..len], needle), healed) {
                bytes[at] ^= 1;
            }
        }
        Ok(len)
    }

    fn write_at(&self, file: &fs::File, bytes: &[u8], offset: u64) -> io::Result<()> {
        for (needle, healed) in self.needles.iter().zip(&mut *self.written_again.lock().unwrap()) {
            *healed |= find(bytes, needle).is_some();
        }
        RealEnv.write_at(file, bytes, offset)
    }
}

#[test]
fn what_is_damaged_on_disk_alone_is_written_again_from_memory() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    // A value, and an entry of a sidecar.
    let sidecar = files(dir.path(), "idx").remove(1);
    let before = fs::read(&sidecar).unwrap();
    let needles = vec![b"value-of-00007".repeat(20), before[300..340].to_vec()];
    let env = Arc::new(Rotten { needles, written_again: Mutex::new(vec![false; 2]) });
    let (store, _) = Store::open(Options { env: env.clone(), ..quiet(dir.path()) }).unwrap();
    a_round(&store);
    let stats = store.stats();
    assert_eq!((stats.damaged_records, stats.scrub.healed), (0, 2), "{stats:?}");
    assert_eq!(*env.written_again.lock().unwrap(), [true, true]);
    assert_eq!(fs::read(&sidecar).unwrap(), before);
    a_round(&store);
    assert_eq!(store.stats().scrub.healed, 2, "once");
    assert_eq!(value_of(&store, &key(7)), Some(b"value-of-00007".repeat(20)));
}

/// Files that can be read past the cache, or not.
struct Watching {
    inner: Arc<FakeEnv>,
    direct: bool,
}

impl Env for Watching {
    fn now_ms(&self) -> u64 {
        self.inner.now_ms()
    }

    fn sync(&self, _file: &fs::File) -> io::Result<()> {
        Ok(())
    }

    fn open_past_cache(&self, path: &Path) -> io::Result<fs::File> {
        if self.direct { RealEnv.open_past_cache(path) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }
}

/// Half of the bytes when half of the interval is over, whichever way they are read; a restart goes
/// on there.
#[test]
fn the_rate_is_even_and_a_restart_goes_on() {
    for direct in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path());
        let clock = FakeEnv::at(1 << 40, 1_000_000);
        let options = || Options {
            env: Arc::new(Watching { inner: clock.clone(), direct }),
            scrub_interval: Duration::from_secs(1_000),
            ..quiet(dir.path())
        };
        let (store, _) = Store::open(options()).unwrap();
        soon("a round begins", || store.stats().scrub.bytes > 0);
        let all = { store.stats().scrub.bytes + store.stats().scrub.left_bytes };
        std::thread::sleep(Duration::from_millis(300));
        assert!(store.stats().scrub.bytes < all / 4, "{:?}", store.stats().scrub);
        store.pause_scrub(true);
        clock.now_ms.store(1_500_000, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(500));
        assert!(store.stats().scrub.paused && store.stats().scrub.bytes < all / 4, "it was told to pause");
        store.pause_scrub(false);
        soon("half of it is read", || store.stats().scrub.bytes >= all / 2 - all / 8);
        std::thread::sleep(Duration::from_millis(300));
        assert!(store.stats().scrub.bytes < all * 7 / 8, "{:?} of {all}", store.stats().scrub);
        drop(store);
        let (store, _) = Store::open(options()).unwrap();
        soon("it goes on", || store.stats().scrub.bytes > all / 4);
        assert_eq!(store.stats().scrub.began_ms, 1_000_000, "the same round");
        clock.now_ms.store(2_000_001, Ordering::SeqCst);
        soon("the round ends", || store.stats().scrub.ended_ms == 2_000_001);
        assert_eq!(store.stats().damaged_records, 0);
    }
}

#[test]
fn with_nothing_to_read_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { scrub_interval: Duration::from_secs(1_000), ..quiet(dir.path()) };
    let (store, _) = Store::open(options).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(!dir.path().join("SCRUB").exists(), "written several times a second");
    store.scrub_now();
    soon("a round over nothing is over", || !store.stats().scrub.hurry);
    assert_eq!(store.stats().scrub.ended_ms, 0);
}

/// On a disk that was full, of which everything had been deleted, no space came back: the scrub,
/// which rests for days between two pieces, held all the segments of its round.
#[test]
fn segments_that_compaction_gives_back_are_not_held() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    let options = Options { scrub_interval: Duration::from_secs(30 * 86_400), ..small(dir.path()) };
    let (store, _) = Store::open(options).unwrap();
    soon("a round begins", || store.stats().scrub.bytes > 0);
    let segments = store.stats().segments;
    let mut writer = store.writer().unwrap();
    for number in 0..800 {
        writer.delete(&key(number), version(10_000 + number)).unwrap();
    }
    soon("compaction gives all old segments back", || store.stats().compacted_segments >= segments);
    let folder = dir.path().to_str().unwrap().to_owned();
    let held = || {
        let of = |link: io::Result<fs::DirEntry>| fs::read_link(link.ok()?.path()).ok();
        let files: Vec<_> = fs::read_dir("/proc/self/fd").unwrap().filter_map(of).collect();
        let is_held = |file: &&std::path::PathBuf| {
            let name = file.to_string_lossy();
            name.starts_with(&folder) && name.ends_with("(deleted)")
        };
        files.iter().filter(is_held).count()
    };
    soon("nobody holds them", || held() == 0);
    assert_eq!(store.stats().damaged_records, 0);
}

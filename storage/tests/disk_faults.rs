//! Disks that are full and disks that break: what is refused, what goes on, and what comes back.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{FakeEnv, Seen, get, scan, small, value_of, version};
use koltso_storage::{Applied, Env, Options, RealEnv, Space, Store, SyncMode, WriteError, Writer};
use koltso_testkit::files::SmallDisk;
use koltso_testkit::wait::soon;
use koltso_testkit::wall_ms;

const MIB: u64 = 1 << 20;

fn options(folder: &Path, env: &Arc<FakeEnv>) -> Options {
    Options { env: env.clone(), compaction_dead_share: 1.1, ..small(folder) }
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:06}").into_bytes()
}

/// Writes until the disk is full; the number of records written.
fn fill(writer: &mut Writer, from: u64) -> u64 {
    for number in from.. {
        match writer.put(&key(number), &[7; 1_000], version(wall_ms()), 0) {
            Ok(applied) => assert_eq!(applied, Applied::Newest),
            Err(WriteError::DiskFull) => return number,
            Err(e) => panic!("{e}"),
        }
    }
    unreachable!()
}

/// As `fill`, until sealing has given back what was left over behind the segments' ends.
fn fill_for_good(writer: &mut Writer) -> u64 {
    let mut written = fill(writer, 0);
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let before = written;
        written = fill(writer, before);
        if written == before {
            return written;
        }
    }
}

#[test]
fn a_full_disk_refuses_writes_serves_reads_and_takes_writes_again_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let env = FakeEnv::new(8 * MIB);
    let (store, _) = Store::open(options(dir.path(), &env)).unwrap();
    let mut writer = store.writer().unwrap();
    let written = fill_for_good(&mut writer);
    assert!(written > 3_000, "{written}");
    assert!(store.stats().disk_full && !store.has_failed());
    for number in 0..written {
        assert_eq!(value_of(&store, &key(number)), Some(vec![7; 1_000]));
    }
    assert_eq!(value_of(&store, &key(written)), None, "what was refused is not there");
    assert_eq!(scan(&store, b"k", None, 1).len() as u64, written);
    for _ in 0..100 {
        assert!(matches!(writer.put(b"x", &[1; 2_000], version(wall_ms()), 0), Err(WriteError::DiskFull)));
    }

    env.free.fetch_add(4 * MIB, Ordering::SeqCst);
    assert_eq!(writer.put(b"again", b"there is room", version(wall_ms()), 0).unwrap(), Applied::Newest);
    soon("the figure follows", || !store.stats().disk_full);
    let more = fill(&mut writer, written);
    assert!(more > written + 1_000);
    drop(writer);
    env.free.fetch_add(MIB, Ordering::SeqCst);
    store.close().unwrap();
    drop(store);
    let (store, recovered) = Store::open(options(dir.path(), &env)).unwrap();
    assert_eq!(recovered.damaged, 0);
    assert_eq!(scan(&store, b"k", None, 1).len() as u64, more);
}

#[test]
fn a_full_disk_still_takes_deletes() {
    let dir = tempfile::tempdir().unwrap();
    let env = FakeEnv::new(64 * MIB);
    let (store, _) = Store::open(Options { segment_size: 4 << 20, ..options(dir.path(), &env) }).unwrap();
    let mut writer = store.writer().unwrap();
    let written = fill_for_good(&mut writer);
    for number in 0..written {
        writer.delete(&key(number), version(wall_ms() + 1)).unwrap();
        if number % 1_000 == 0 {
            let refused = writer.put(b"x", b"what is ready for deletes is not for values", version(wall_ms()), 0);
            assert!(matches!(refused, Err(WriteError::DiskFull)), "after {number} deletes");
        }
    }
    assert_eq!(scan(&store, b"k", None, 1).len(), 0);
}

#[test]
fn a_disk_that_fills_between_question_and_allocation_is_an_error_too() {
    let dir = tempfile::tempdir().unwrap();
    let env = FakeEnv::new(64 * MIB);
    let (store, _) = Store::open(options(dir.path(), &env)).unwrap();
    let mut writer = store.writer().unwrap();
    env.lies.store(true, Ordering::SeqCst);
    env.free.store(300 << 10, Ordering::SeqCst);
    let written = fill(&mut writer, 0);
    assert!(written > 10);
    assert_eq!(scan(&store, b"k", None, 1).len() as u64, written);
    env.free.store(MIB, Ordering::SeqCst);
    assert_eq!(writer.put(b"again", b"room", version(wall_ms()), 0).unwrap(), Applied::Newest);
    soon("refused segments leave no files", || common::files(dir.path(), "log").len() as u64 == store.stats().segments);
}

#[test]
fn a_full_disk_at_the_start_is_readable() {
    let dir = tempfile::tempdir().unwrap();
    let env = FakeEnv::new(8 * MIB);
    let (store, _) = Store::open(options(dir.path(), &env)).unwrap();
    let mut writer = store.writer().unwrap();
    let written = fill(&mut writer, 0);
    drop(writer);
    drop(store);
    env.free.store(0, Ordering::SeqCst);
    let (store, _) = Store::open(options(dir.path(), &env)).unwrap();
    assert!(store.writer().is_err());
    assert_eq!(scan(&store, b"k", None, 1).len() as u64, written);
    env.free.store(2 * MIB, Ordering::SeqCst);
    let mut writer = store.writer().unwrap();
    writer.put(b"again", b"room", version(wall_ms()), 0).unwrap();
}

#[test]
fn compaction_empties_a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    // The fake's blocks do not come back by unlinking, so this one counts what the files occupy.
    let env = Arc::new(Counting { folder: dir.path().to_path_buf(), total: 16 * MIB });
    let options = Options { env, compaction_dead_share: 0.2, ..small(dir.path()) };
    let (store, _) = Store::open(options).unwrap();
    let mut writer = store.writer().unwrap();
    // 1 MiB live, written over and over: far more than the disk holds.
    let deadline = Instant::now() + Duration::from_secs(25);
    let (mut done, mut refused) = (0_u64, 0);
    while done < 40_000 {
        match writer.put(&key(done % 1_000), &[done as u8; 1_000], version(wall_ms() + done), 0) {
            Ok(_) => done += 1,
            Err(WriteError::DiskFull) => {
                refused += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(e) => panic!("{e}"),
        }
        assert!(Instant::now() < deadline, "{done} written, {refused} refused, {:?}", store.stats());
    }
    println!("{refused} refused, {:?}", store.stats());
    assert_eq!(scan(&store, b"k", None, 1).len(), 1_000);
}

struct Counting {
    folder: std::path::PathBuf,
    total: u64,
}

impl Counting {
    fn free(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let all = std::fs::read_dir(&self.folder).unwrap().filter_map(|e| e.ok()?.metadata().ok());
        self.total.saturating_sub(all.map(|m| m.blocks() * 512).sum())
    }
}

impl Env for Counting {
    fn allocate(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        if self.free() < len {
            return Err(io::ErrorKind::StorageFull.into());
        }
        RealEnv.allocate(file, offset, len)
    }

    fn sync(&self, _file: &File) -> io::Result<()> {
        Ok(())
    }

    fn space(&self, _folder: &Path) -> io::Result<Space> {
        Ok(Space { free: self.free(), total: self.total })
    }
}

#[test]
fn after_a_failed_sync_nothing_is_written_or_acknowledged_until_the_store_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let env = FakeEnv::new(1 << 30);
    let options = || Options { sync: SyncMode::Always, ..options(dir.path(), &env) };
    let (store, _) = Store::open(options()).unwrap();
    let mut writer = store.writer().unwrap();
    let mut other = store.writer().unwrap();
    writer.put(b"synced", b"1", version(1), 0).unwrap();
    writer.sync().unwrap();
    assert_eq!(writer.durable(), writer.position());
    writer.put(b"not synced", b"2", version(2), 0).unwrap();
    let (durable, batch) = (writer.durable(), writer.begin_sync());
    env.sync_fails.store(true, Ordering::SeqCst);
    assert!(matches!(writer.sync(), Err(WriteError::Failed)));
    assert!(store.has_failed() && store.stats().failed);
    // The kernel reports an error once; the next sync succeeds, and that means nothing.
    env.sync_fails.store(false, Ordering::SeqCst);
    assert!(matches!(writer.sync(), Err(WriteError::Failed)));
    writer.complete_sync(&batch);
    assert_eq!(writer.durable(), durable, "acknowledged after a failed sync");
    assert!(matches!(writer.put(b"k", b"v", version(3), 0), Err(WriteError::Failed)));
    assert!(matches!(other.delete(b"k", version(3)), Err(WriteError::Failed)));
    assert_eq!(get(&store, b"synced", 1), Seen::Value(version(1), b"1".to_vec()), "reads go on");
    drop((writer, other));
    assert!(store.close().is_err());
    drop(store);
    assert!(common::files(dir.path(), "idx").is_empty(), "a sidecar says that its records are on disk");
    let (store, _) = Store::open(options()).unwrap();
    let mut writer = store.writer().unwrap();
    writer.put(b"again", b"3", version(4), 0).unwrap();
    writer.sync().unwrap();
    assert_eq!(value_of(&store, b"synced"), Some(b"1".to_vec()));
}

#[test]
fn a_sync_that_fails_in_the_background_stops_writing_as_well() {
    for mode in [SyncMode::Every(Duration::from_millis(20)), SyncMode::Os] {
        let dir = tempfile::tempdir().unwrap();
        let env = FakeEnv::new(1 << 30);
        let (store, _) = Store::open(Options { sync: mode, ..options(dir.path(), &env) }).unwrap();
        let mut writer = store.writer().unwrap();
        env.sync_fails.store(true, Ordering::SeqCst);
        // With `Os` it is the sealing thread that notices.
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut number = 0;
        loop {
            number += 1;
            match writer.put(&key(number), &[1; 2_000], version(number), 0) {
                Err(WriteError::Failed) => break,
                result => drop(result.unwrap()),
            }
            assert!(Instant::now() < deadline, "{mode:?}: {:?}", store.stats());
            std::thread::sleep(Duration::from_millis(1));
        }
        env.sync_fails.store(false, Ordering::SeqCst);
        let durable = writer.durable();
        std::thread::sleep(Duration::from_millis(150));
        assert_eq!(writer.durable(), durable, "{mode:?}");
        assert!(common::files(dir.path(), "idx").is_empty(), "{mode:?}: sealed after the disk had failed");
        assert!(value_of(&store, &key(1)).is_some());
    }
}

/// The sealing thread's sync waits until it is let go; that of the writer fails.
#[derive(Default)]
struct Meanwhile {
    sealing: AtomicBool,
    go_on: AtomicBool,
    fails: AtomicBool,
}

impl Env for Meanwhile {
    fn sync(&self, _file: &File) -> io::Result<()> {
        if std::thread::current().name() == Some("koltso-seal") {
            self.sealing.store(true, Ordering::SeqCst);
            soon("the writer's sync fails", || self.go_on.load(Ordering::SeqCst));
            return Ok(());
        }
        if self.fails.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }
}

/// The kernel reports an error to one of two syncs, and the other one succeeds.
#[test]
fn a_segment_is_not_sealed_when_another_sync_has_failed_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let env = Arc::new(Meanwhile::default());
    let options = Options { sync: SyncMode::Always, env: env.clone(), ..small(dir.path()) };
    let (store, _) = Store::open(options).unwrap();
    let mut writer = store.writer().unwrap();
    for number in 0..50 {
        writer.put(&key(number), &[1; 3_000], version(number + 1), 0).unwrap();
    }
    soon("a rolled segment is synced", || env.sealing.load(Ordering::SeqCst));
    env.fails.store(true, Ordering::SeqCst);
    assert!(matches!(writer.sync(), Err(WriteError::Failed)));
    env.go_on.store(true, Ordering::SeqCst);
    drop(writer);
    drop(store);
    assert!(common::files(dir.path(), "idx").is_empty(), "a sidecar says that its records are on disk");
}

/// As Linux does it: a page of a file could not be written, which is reported once to each open
/// file description. The sealing thread is the first to be told, and says so late.
#[derive(Default)]
struct ToldOnce {
    state: std::sync::Mutex<Told>,
    /// The sealing thread goes on.
    go_on: AtomicBool,
}

#[derive(Default)]
struct Told {
    armed: bool,
    /// The file that lacks a page (its inode).
    lost: Option<u64>,
    /// Descriptors on which that was reported.
    told: Vec<i32>,
    /// Files that others had synced well before that.
    before: Vec<u64>,
}

impl ToldOnce {
    fn state(&self) -> std::sync::MutexGuard<'_, Told> {
        self.state.lock().unwrap()
    }
}

impl Env for ToldOnce {
    fn sync(&self, file: &File) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::MetadataExt;
        let (inode, descriptor) = (file.metadata()?.ino(), file.as_raw_fd());
        let mut state = self.state();
        if !state.armed {
            return Ok(());
        }
        let is_sealing = std::thread::current().name() == Some("koltso-seal");
        if is_sealing && state.lost.is_none() {
            // So that another descriptor of the same description is known by its position.
            io::Seek::seek(&mut &*file, io::SeekFrom::Start(77))?;
            state.lost = Some(inode);
            state.told.push(descriptor);
            drop(state);
            soon("the sealing thread goes on", || self.go_on.load(Ordering::SeqCst));
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if state.lost.is_none() {
            state.before.push(inode);
        }
        if state.lost == Some(inode) && !state.told.contains(&descriptor) {
            state.told.push(descriptor);
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }
}

/// Writes until a segment was rolled and the sealing thread was told that a page of it is lost,
/// which nobody else knows yet.
fn lose_a_page(env: &ToldOnce, writer: &mut Writer) {
    env.state().armed = true;
    for number in 0..30 {
        writer.put(&key(number), &[1; 3_000], version(number + 1), 0).unwrap();
    }
    soon("a rolled segment is synced", || env.state().lost.is_some());
}

#[test]
fn an_error_that_the_sealing_thread_was_told_first_is_told_to_the_owner_as_well() {
    for by_batch in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let env = Arc::new(ToldOnce::default());
        let options = Options { sync: SyncMode::Always, env: env.clone(), ..small(dir.path()) };
        let (store, _) = Store::open(options).unwrap();
        let mut writer = store.writer().unwrap();
        lose_a_page(&env, &mut writer);
        let batch = writer.begin_sync();
        assert_eq!(batch.segments().count(), 2, "the rolled one and the active one");
        if by_batch {
            // As a group commit does it.
            let synced: Vec<io::Result<()>> = batch
                .segments()
                .map(|segment| {
                    let mut file = batch.take_file(segment).unwrap();
                    assert_eq!(io::Seek::stream_position(&mut file).unwrap(), 0, "the sealing thread's description");
                    env.sync(&file)
                })
                .collect();
            assert!(synced.iter().any(Result::is_err), "{synced:?}");
        } else {
            assert!(matches!(writer.sync(), Err(WriteError::Failed)), "acknowledged what is lost");
            assert!(store.has_failed());
        }
        assert_eq!(writer.durable(), 0);
        env.go_on.store(true, Ordering::SeqCst);
    }
}

#[test]
fn of_the_threads_that_share_a_file_each_knows_what_another_was_told() {
    let interval = Duration::from_millis(300);
    let raced = (0..20).any(|_| {
        let dir = tempfile::tempdir().unwrap();
        let env = Arc::new(ToldOnce::default());
        let options = Options { sync: SyncMode::Every(interval), env: env.clone(), ..small(dir.path()) };
        let (store, _) = Store::open(options).unwrap();
        let mut writer = store.writer().unwrap();
        writer.put(b"first", b"value", version(1), 0).unwrap();
        soon("it is synced", || writer.durable() == writer.position());
        let durable = writer.durable();
        lose_a_page(&env, &mut writer);
        // The syncing thread comes meanwhile.
        std::thread::sleep(interval * 2);
        env.go_on.store(true, Ordering::SeqCst);
        soon("the failure is known", || store.has_failed());
        std::thread::sleep(interval);
        let state = env.state();
        // Else it was synced before it was lost.
        let raced = !state.before.contains(&state.lost.unwrap());
        assert!(!raced || writer.durable() == durable, "acknowledged what is lost");
        raced
    });
    assert!(raced, "the machine is too busy: the syncing thread was always the first");
}

/// A lack of descriptors when a folder is to be synced passes, and no disk has failed.
#[test]
fn compaction_without_descriptors_waits_and_goes_on() {
    struct Short(AtomicBool, std::sync::atomic::AtomicU64);
    impl Env for Short {
        fn sync(&self, _file: &File) -> io::Result<()> {
            Ok(())
        }

        fn sync_folder(&self, _folder: &Path) -> io::Result<()> {
            if self.0.load(Ordering::SeqCst) {
                self.1.fetch_add(1, Ordering::SeqCst);
                return Err(io::Error::from_raw_os_error(libc::EMFILE));
            }
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let env = Arc::new(Short(false.into(), 0.into()));
    let (store, _) = Store::open(Options { sync: SyncMode::Os, env: env.clone(), ..small(dir.path()) }).unwrap();
    let mut writer = store.writer().unwrap();
    env.0.store(true, Ordering::SeqCst);
    let mut clock = 0;
    soon("compaction asks for the folder", || {
        clock += 1;
        writer.put(&key(clock % 8), &[1; 3_000], version(clock), 0).unwrap();
        env.1.load(Ordering::SeqCst) > 0
    });
    soon("the shortage is counted", || store.stats().resource_errors > 0);
    assert!(!store.has_failed(), "a shortage is no failure");
    writer.put(b"key", b"value", version(1_000_000), 0).unwrap();
    assert_eq!(store.stats().compacted_segments, 0);
    env.0.store(false, Ordering::SeqCst);
    soon("compaction goes on", || store.stats().compacted_segments > 0);
}

/// A file system of 48 MiB, as root: everything real.
#[test]
fn a_small_file_system_is_filled_emptied_and_filled_again() {
    let Some(disk) = SmallDisk::mount(48) else { return };
    let folder = disk.path().join("data");
    // As the server opens it: large segments, large values.
    let options = || Options { agreed_after: Some(Duration::ZERO), compaction_rate: 1 << 30, ..Options::new(&folder) };
    let (store, _) = Store::open(options()).unwrap();
    let mut writers = [store.writer().unwrap(), store.writer().unwrap()];
    let mut ms = wall_ms() - 10_000_000;
    let mut written = 0_u64;
    'full: loop {
        for writer in &mut writers {
            ms += 1;
            match writer.put(&key(written), &[3; 4_000], version(ms), 0) {
                Ok(_) => written += 1,
                Err(WriteError::DiskFull) => break 'full,
                Err(e) => panic!("{e}"),
            }
        }
    }
    println!("{written} records of 4 KB, {:?}", store.stats());
    assert!(written * 4_000 > 24 * MIB, "only {written} records fitted");
    assert_eq!(scan(&store, b"k", None, 1).len() as u64, written);
    // Nothing in it is dead, so compaction alone cannot help; deletes are still taken, and then it
    // can.
    let deadline = Instant::now() + Duration::from_secs(15);
    let mut number = 0;
    while number < written {
        ms += 1;
        match writers[number as usize % 2].delete(&key(number), version(ms)) {
            Ok(_) => number += 1,
            Err(WriteError::DiskFull) => std::thread::sleep(Duration::from_millis(20)),
            Err(e) => panic!("{e}"),
        }
        assert!(Instant::now() < deadline, "stuck at {number} of {written}: {:?}", store.stats());
    }
    soon("space comes back", || store.stats().disk_bytes < 16 * MIB);
    let deadline = Instant::now() + Duration::from_secs(15);
    let mut again = 0;
    while again < 1_000 {
        ms += 1;
        match writers[0].put(&key(again), &[4; 10_000], version(ms), 0) {
            Ok(_) => again += 1,
            // Compaction may still be at work on what was deleted.
            Err(WriteError::DiskFull) => std::thread::sleep(Duration::from_millis(20)),
            Err(e) => panic!("{e}"),
        }
        let space = RealEnv.space(&folder);
        assert!(Instant::now() < deadline, "stuck at {again}: {:?}, {space:?}", store.stats());
    }
    drop(writers);
    store.close().unwrap();
    drop(store);
    let (store, _) = Store::open(options()).unwrap();
    assert_eq!(scan(&store, b"k", None, 1).len(), 1_000);
    // A value that is larger than what a segment of this disk is rolled at.
    let mut writer = store.writer().unwrap();
    writer.put(b"large", &vec![5; 4 << 20], version(ms + 1), 0).unwrap();
    assert_eq!(value_of(&store, b"large").unwrap().len(), 4 << 20);
}

/// Each of several logs would have to go on in a segment of its own, and there is not room for as
/// many among what deletes may use.
#[test]
fn deletes_are_taken_on_a_full_disk_however_full_the_logs_are() {
    let Some(disk) = SmallDisk::mount(48) else { return };
    let folder = disk.path().join("data");
    // Nothing is compacted: what is dead is not worth it.
    let options = Options { compaction_dead_share: 1.1, compaction_rate: 1, ..Options::new(&folder) };
    let (store, _) = Store::open(options).unwrap();
    let mut writers: Vec<_> = (0..4).map(|_| store.writer().unwrap()).collect();
    let mut ms = wall_ms() - 10_000_000;
    let mut written = 0_u64;
    for size in [4_000, 1_000, 40] {
        for writer in &mut writers {
            loop {
                ms += 1;
                match writer.put(&key(written), &vec![3; size], version(ms), 0) {
                    Ok(_) => written += 1,
                    Err(WriteError::DiskFull) => break,
                    Err(e) => panic!("{e}"),
                }
            }
        }
    }
    for number in 0..4_000 {
        ms += 1;
        let deleted = writers[number as usize % 4].delete(&key(number), version(ms));
        assert!(deleted.is_ok(), "{deleted:?} after {number} deletes of {written}: {:?}", store.stats());
    }
}

/// The provisioning thread gets on with a segment just when the writer has found that too little of
/// it is ready.
struct Race {
    writer: std::thread::ThreadId,
    /// The writer asks for room.
    asked: std::sync::atomic::AtomicBool,
    /// Slices that the provisioning thread has allocated since.
    made: std::sync::atomic::AtomicUsize,
}

impl Race {
    fn is_writer(&self) -> bool {
        std::thread::current().id() == self.writer
    }
}

impl Env for Race {
    fn allocate(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        let waits = offset > 0 && !self.is_writer();
        let begun = Instant::now();
        while waits && !self.asked.load(Ordering::SeqCst) && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        RealEnv.allocate(file, offset, len)?;
        if waits {
            self.made.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    fn sync(&self, _file: &File) -> io::Result<()> {
        Ok(())
    }

    fn space(&self, folder: &Path) -> io::Result<Space> {
        // (The first slices are asked for before there is a writer.)
        if self.is_writer() && self.made.load(Ordering::SeqCst) == 0 && folder.join("writing").exists() {
            self.asked.store(true, Ordering::SeqCst);
            soon("the last slice is allocated", || self.made.load(Ordering::SeqCst) > 0);
            // It is published a moment after.
            std::thread::sleep(Duration::from_millis(200));
        }
        RealEnv.space(folder)
    }
}

#[test]
fn a_writer_that_finds_its_segment_made_ready_meanwhile_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let env = Arc::new(Race { writer: std::thread::current().id(), asked: false.into(), made: 0.into() });
    // Two slices a segment: the second is the last.
    let options = Options { env: env.clone(), segment_size: 2 << 20, ..small(dir.path()) };
    let (store, _) = Store::open(options).unwrap();
    let mut writer = store.writer().unwrap();
    std::fs::write(dir.path().join("writing"), b"").unwrap();
    for number in 0..100 {
        assert_eq!(writer.put(&key(number), &[7; 15_000], version(wall_ms()), 0).unwrap(), Applied::Newest);
    }
    assert!(env.asked.load(Ordering::SeqCst), "the writer never waited for the provisioning thread");
    assert_eq!(scan(&store, b"k", None, 1).len(), 100);
}

/// A disk on which there is room for no sidecar.
struct NoRoomForSidecars;

impl Env for NoRoomForSidecars {
    fn give_way(&self) {}

    fn create(&self, path: &Path) -> io::Result<File> {
        if path.extension().is_some_and(|extension| extension == "idx-new") {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        RealEnv.create(path)
    }
}

/// The first segment could not be sealed, and those behind it were not even sorted: a range waited for
/// room on the disk.
#[test]
fn ranges_are_read_while_no_segment_can_be_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(small(dir.path())).unwrap();
    let mut writers: Vec<_> = (0..3).map(|_| store.writer().unwrap()).collect();
    for number in 0..90_u64 {
        let key = format!("key{number:03}");
        writers[number as usize % 3].put(key.as_bytes(), b"value", version(number + 1), 0).unwrap();
    }
    drop((writers, store));
    let (store, recovered) = Store::open(Options { env: Arc::new(NoRoomForSidecars), ..small(dir.path()) }).unwrap();
    assert_eq!(recovered.scanned, 3);
    assert_eq!(scan(&store, b"k", Some(b"l"), 1).len(), 90);
}

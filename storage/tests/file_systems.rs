//! File systems that lack something, and disks that answer with errors.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::{files, scan, small, value_of, version};
use koltso_storage::{Env, Options, RealEnv, Store, WriteError, Writer};
use koltso_testkit::wait::soon;

fn key(number: u64) -> Vec<u8> {
    format!("key{number:06}").into_bytes()
}

/// A file system that cannot reserve blocks, as ext3, and on which a hole takes none.
struct WithoutFallocate(i32);

impl Env for WithoutFallocate {
    fn allocate(&self, _file: &File, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(self.0))
    }

    fn release(&self, _file: &File, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(self.0))
    }

    fn sync(&self, _file: &File) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn without_fallocate_room_is_made_by_writing_zeros() {
    for errno in [libc::EOPNOTSUPP, libc::ENOSYS] {
        let dir = tempfile::tempdir().unwrap();
        let options = || {
            let env = Arc::new(WithoutFallocate(errno));
            Options { env, segment_size: 4 << 20, value_max: 1 << 20, ..small(dir.path()) }
        };
        let (store, _) = Store::open(options()).unwrap();
        let mut writer = store.writer().unwrap();
        let occupied = |path: &Path| {
            use std::os::unix::fs::MetadataExt;
            std::fs::metadata(path).unwrap().blocks() * 512
        };
        assert!(occupied(&files(dir.path(), "log")[0]) >= 1 << 20, "the first megabyte has no blocks");
        for number in 0..3_000 {
            writer.put(&key(number), &[number as u8; 4_000], version(number + 1), 0).unwrap();
        }
        // Faster than anybody provides: the writer makes the room itself.
        for number in 0..8 {
            writer.put(&key(10_000 + number), &[7; 1 << 20], version(number + 1), 0).unwrap();
        }
        drop(writer);
        drop(store);
        let (store, recovered) = Store::open(options()).unwrap();
        assert_eq!((recovered.damaged, recovered.torn_bytes), (0, 0));
        assert_eq!(scan(&store, b"key", None, 1).len(), 3_008);
        assert_eq!(value_of(&store, &key(2_999)), Some(vec![2_999_u64 as u8; 4_000]));
    }
}

/// Everything that can be asked of a disk while it is written to, by the number of the call.
const CALLS: [&str; 7] = ["create_new", "open", "set_len", "allocate", "write_durably", "map", "space"];

/// One of [`CALLS`] fails with an error while it is armed.
struct Failing {
    call: AtomicUsize,
    errno: i32,
    armed: AtomicBool,
}

impl Failing {
    fn meets(&self, name: &str) -> io::Result<()> {
        if self.armed.load(Ordering::SeqCst) && CALLS[self.call.load(Ordering::SeqCst)] == name {
            return Err(io::Error::from_raw_os_error(self.errno));
        }
        Ok(())
    }
}

impl Env for Failing {
    fn create_new(&self, path: &Path) -> io::Result<File> {
        self.meets("create_new")?;
        RealEnv.create_new(path)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        self.meets("open")?;
        RealEnv.open(path)
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        self.meets("set_len")?;
        RealEnv.set_len(file, len)
    }

    fn allocate(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        self.meets("allocate")?;
        RealEnv.allocate(file, offset, len)
    }

    fn write_durably(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.meets("write_durably")?;
        RealEnv.write_at(file, bytes, offset)
    }

    fn map(&self, file: &File, len: usize) -> io::Result<memmap2::MmapRaw> {
        self.meets("map")?;
        RealEnv.map(file, len)
    }

    fn sync(&self, _file: &File) -> io::Result<()> {
        Ok(())
    }

    fn space(&self, folder: &Path) -> io::Result<koltso_storage::Space> {
        self.meets("space")?;
        RealEnv.space(folder)
    }
}

/// Writes until it is refused: with what.
fn refusal(writer: &mut Writer) -> WriteError {
    (0..10_000).find_map(|number| writer.put(&key(number), &[1; 4_000], version(number + 1), 0).err()).expect("refused")
}

#[test]
fn an_error_of_any_call_is_told_apart_from_a_full_disk_and_passes() {
    for (errno, is_right) in [
        (libc::EIO, (|e| matches!(e, WriteError::Io(_))) as fn(&WriteError) -> bool),
        (libc::EROFS, |e| matches!(e, WriteError::Io(_))),
        (libc::EFBIG, |e| matches!(e, WriteError::Io(_))),
        (libc::ENOMEM, |e| matches!(e, WriteError::Resources(_))),
        (libc::EMFILE, |e| matches!(e, WriteError::Resources(_))),
        (libc::ENFILE, |e| matches!(e, WriteError::Resources(_))),
        (libc::ENOSPC, |e| matches!(e, WriteError::DiskFull)),
        (libc::EDQUOT, |e| matches!(e, WriteError::DiskFull)),
    ] {
        for (number, call) in CALLS.iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let env = Arc::new(Failing { call: number.into(), errno, armed: false.into() });
            let options = Options { env: env.clone(), ..small(dir.path()) };
            let (store, _) = Store::open(options).unwrap();
            let mut writer = store.writer().unwrap();
            env.armed.store(true, Ordering::SeqCst);
            let error = refusal(&mut writer);
            assert!(is_right(&error), "error {errno} of {call}: {error:?}");
            assert!(!store.has_failed(), "error {errno} of {call}: no sync has failed");
            env.armed.store(false, Ordering::SeqCst);
            writer.put(b"again", b"value", version(1), 0).unwrap();
            soon("refused segments leave no files", || files(dir.path(), "log").len() as u64 == store.stats().segments);
        }
    }
}

#[test]
fn a_store_opens_on_a_disk_without_any_room_and_takes_writes_when_there_is_some() {
    let dir = tempfile::tempdir().unwrap();
    let env = common::FakeEnv::new(8 << 20);
    let options = || Options { env: env.clone(), compaction_dead_share: 1.1, ..small(dir.path()) };
    let (store, _) = Store::open(options()).unwrap();
    let mut writer = store.writer().unwrap();
    for number in 0..100 {
        writer.put(&key(number), &[7; 1_000], version(number + 1), 0).unwrap();
    }
    drop(writer);
    drop(store);
    env.free.store(0, Ordering::SeqCst);
    let (store, _) = Store::open(options()).unwrap();
    let mut writers: Vec<Writer> = (0..3).map(|_| store.writer_on_a_full_disk().unwrap()).collect();
    assert!(store.stats().disk_full);
    assert_eq!(scan(&store, b"key", None, 1).len(), 100);
    for writer in &mut writers {
        for _ in 0..10 {
            assert!(matches!(writer.put(b"x", b"y", version(1), 0), Err(WriteError::DiskFull)));
            assert!(matches!(writer.delete(b"x", version(1)), Err(WriteError::DiskFull)));
        }
        assert_eq!((writer.position(), writer.durable()), (0, 0));
        writer.sync().unwrap();
    }
    env.free.store(6 << 20, Ordering::SeqCst);
    for (number, writer) in (0..).zip(&mut writers) {
        writer.put(&key(1_000 + number), b"room", version(1), 0).unwrap();
    }
    soon("the figure follows", || !store.stats().disk_full);
    drop(writers);
    store.close().unwrap();
    drop(store);
    let (store, _) = Store::open(options()).unwrap();
    assert_eq!(scan(&store, b"key", None, 1).len(), 103);
}

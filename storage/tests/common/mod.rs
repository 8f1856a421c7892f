//! What the scenario tests share beyond koltso-testkit: options for small stores, and an
//! environment that can be broken.

#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use koltso_storage::{Env, Lookup, Options, RealEnv, Space, Store, SyncMode, Value, Version};
use koltso_testkit::wait::soon;

/// How many rounds: `short`, or twenty times as many with `KOLTSO_TEST_LONG=1`.
pub fn rounds(short: u64) -> u64 {
    koltso_testkit::volume(short, short * 20)
}

pub fn version(ms: u64) -> Version {
    Version::new(ms << 16, 0)
}

/// A small store: segments of 64 KiB that are rolled all the time, compaction as eager as it can
/// be.
pub fn small(folder: &Path) -> Options {
    Options {
        sync: SyncMode::Os,
        value_max: 16 << 10,
        segment_size: 64 << 10,
        compaction_rate: 1 << 30,
        compaction_dead_share: 0.2,
        agreed_after: Some(Duration::ZERO),
        reap_interval: Duration::from_millis(100),
        ..Options::new(folder)
    }
}

/// What a reader sees of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Absent,
    Damaged,
    Value(Version, Vec<u8>),
}

pub fn get(store: &Store, key: &[u8], now_ms: u64) -> Seen {
    enum Out {
        Done(Seen),
        Large(Version, koltso_storage::Unverified),
    }
    let out = store.get(key, now_ms, |found| match found {
        Lookup::Absent(_) => Out::Done(Seen::Absent),
        Lookup::Damaged => Out::Done(Seen::Damaged),
        Lookup::Found(found) => match found.value {
            Value::Inline(bytes) => Out::Done(Seen::Value(found.version, bytes.to_vec())),
            Value::Large(large) => Out::Large(found.version, large),
        },
    });
    match out {
        Out::Done(seen) => seen,
        Out::Large(version, large) => {
            large.verify().map_or(Seen::Damaged, |pin| Seen::Value(version, pin.as_ref().to_vec()))
        }
    }
}

pub fn value_of(store: &Store, key: &[u8]) -> Option<Vec<u8>> {
    match get(store, key, 1) {
        Seen::Value(_, value) => Some(value),
        _ => None,
    }
}

/// Opens a range, waiting for the sealing thread where that is needed.
pub fn cursor(store: &Store, start: &[u8], end: Option<&[u8]>) -> koltso_storage::Cursor {
    let mut opened = None;
    soon("a range can be opened", || {
        opened = store.scan(start, end).ok();
        opened.is_some()
    });
    opened.unwrap()
}

/// A whole range. Large values are verified, and left out when they are damaged.
pub fn scan(store: &Store, start: &[u8], end: Option<&[u8]>, now_ms: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut cursor = cursor(store, start, end);
    let mut found = Vec::new();
    while let Some(record) = cursor.next(now_ms, |key, value| match value {
        Value::Inline(bytes) => Some((key.to_vec(), bytes.to_vec())),
        Value::Large(large) => Some((key.to_vec(), large.verify()?.as_ref().to_vec())),
    }) {
        found.extend(record);
    }
    found
}

/// Copies the files of a folder, as a crash at this moment would leave them, while nothing is
/// written. Compaction may go on: a copy during which a segment went is none that a crash could
/// leave, so it is made again.
pub fn copy_folder(from: &Path, to: &Path) {
    loop {
        std::fs::create_dir_all(to).unwrap();
        let before = files(from, "log");
        let mut whole = true;
        for entry in std::fs::read_dir(from).unwrap() {
            let name = entry.unwrap().file_name();
            match std::fs::copy(from.join(&name), to.join(&name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => panic!("{e}"),
                result => whole &= result.is_ok(),
            }
        }
        if whole && files(from, "log") == before {
            return;
        }
        std::fs::remove_dir_all(to).unwrap();
    }
}

/// The folder's files with this extension, by name.
pub fn files(folder: &Path, extension: &str) -> Vec<std::path::PathBuf> {
    let all = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let mut found: Vec<_> = all.filter(|p| p.extension().is_some_and(|e| e == extension)).collect();
    found.sort();
    found
}

pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// An environment that does what the machine does, until it is told to fail. Its syncs cost
/// nothing: no power is lost in these tests (see `power_loss/` for those where it is).
///
/// Fault model: allocation answers "full" once `free` bytes are used up, and `space` agrees; a sync
/// fails while `sync_fails`, and as with Linux the next one may succeed although the bytes are
/// lost.
pub struct FakeEnv {
    pub total: u64,
    /// Bytes that may still be allocated. A release does not give them back.
    pub free: AtomicU64,
    pub sync_fails: AtomicBool,
    pub syncs: AtomicU64,
    /// `space` still claims that there is room, as when somebody else took it between question and
    /// allocation.
    pub lies: AtomicBool,
    /// The wall clock; the machine's while it is 0.
    pub now_ms: AtomicU64,
}

impl FakeEnv {
    pub fn new(total: u64) -> Arc<Self> {
        Self::at(total, 0)
    }

    /// With a wall clock of its own.
    pub fn at(total: u64, now_ms: u64) -> Arc<Self> {
        Arc::new(Self {
            total,
            free: AtomicU64::new(total),
            sync_fails: AtomicBool::new(false),
            syncs: AtomicU64::new(0),
            lies: AtomicBool::new(false),
            now_ms: AtomicU64::new(now_ms),
        })
    }
}

impl Env for FakeEnv {
    /// A test waits for its background work, whatever else runs on the machine.
    fn give_way(&self) {}

    fn allocate(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        let taken = self.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |free| free.checked_sub(len));
        taken.map_err(|_| io::Error::from(io::ErrorKind::StorageFull))?;
        RealEnv.allocate(file, offset, len)
    }

    fn write_durably(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        RealEnv.write_at(file, bytes, offset)
    }

    fn sync(&self, _file: &File) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        if self.sync_fails.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(())
    }

    fn sync_folder(&self, _folder: &Path) -> io::Result<()> {
        Ok(())
    }

    fn space(&self, _folder: &Path) -> io::Result<Space> {
        let free = if self.lies.load(Ordering::Relaxed) { self.total } else { self.free.load(Ordering::SeqCst) };
        Ok(Space { free, total: self.total })
    }

    fn now_ms(&self) -> u64 {
        match self.now_ms.load(Ordering::SeqCst) {
            0 => koltso_testkit::wall_ms(),
            now_ms => now_ms,
        }
    }
}

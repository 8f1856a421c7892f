//! Which threads give space back: nice ones, which give way to all others, unless writers will soon
//! wait for that space.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::{small, version};
use koltso_storage::{Env, Options, RealEnv, Space, Store, Writer};
use koltso_testkit::skip::{Remedy, skip};
use koltso_testkit::wait::soon;

const MIB: u64 = 1 << 20;
const TOTAL: u64 = 1024 * MIB;
/// An eighth of the disk is what makes it short of room.
const AMPLE: u64 = 512 * MIB;
const SHORT: u64 = 64 * MIB;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Sealed,
    GivenBack,
}

/// A disk that has as much room as a test says, and knows who sealed and removed segments.
struct Watching {
    free: AtomicU64,
    /// The niceness of who opened the store.
    usual: i32,
    /// What was done, and whether by a thread that is nicer than usual.
    done: Mutex<Vec<(Done, bool)>>,
}

/// That of the calling thread.
#[allow(unsafe_code)]
fn niceness() -> i32 {
    // SAFETY: a plain system call; on Linux it concerns the calling thread.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

impl Watching {
    fn with(free: u64) -> Arc<Self> {
        Arc::new(Self { free: AtomicU64::new(free), usual: niceness(), done: Mutex::default() })
    }

    fn note(&self, done: Done, path: &Path, extension: &str) {
        if path.extension().is_some_and(|it| it == extension) {
            self.done.lock().unwrap().push((done, niceness() > self.usual));
        }
    }

    fn count(&self, what: Done, nice: bool) -> usize {
        self.done.lock().unwrap().iter().filter(|done| **done == (what, nice)).count()
    }
}

impl Env for Watching {
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note(Done::Sealed, to, "idx");
        RealEnv.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.note(Done::GivenBack, path, "log");
        RealEnv.remove(path)
    }

    fn sync(&self, _file: &File) -> io::Result<()> {
        Ok(())
    }

    fn space(&self, _folder: &Path) -> io::Result<Space> {
        Ok(Space { free: self.free.load(Ordering::SeqCst), total: TOTAL })
    }
}

/// Whether a thread can be told to be nicer than this one.
fn can_be_nicer() -> bool {
    niceness() < 19 || {
        skip("the tests run at niceness 19", Remedy::Machine("tests that run at a lower niceness"));
        false
    }
}

struct Overwriting {
    env: Arc<Watching>,
    writer: Writer,
    clock: u64,
    _store: Store,
    _folder: tempfile::TempDir,
}

impl Overwriting {
    fn on(free: u64) -> Self {
        let (folder, env) = (tempfile::tempdir().unwrap(), Watching::with(free));
        let (store, _) = Store::open(Options { env: env.clone(), ..small(folder.path()) }).unwrap();
        Self { env, writer: store.writer().unwrap(), clock: 0, _store: store, _folder: folder }
    }

    /// Overwrites a few keys until as much has been sealed and given back by threads of a kind.
    fn until(&mut self, what: &str, nice: bool, count: usize) {
        soon(what, || {
            for _ in 0..100 {
                self.clock += 1;
                let key = [b'k', (self.clock % 10) as u8];
                self.writer.put(&key, &[1; 3_000], version(self.clock), 0).unwrap();
            }
            [Done::Sealed, Done::GivenBack].iter().all(|done| self.env.count(*done, nice) >= count)
        });
    }
}

#[test]
fn space_is_given_back_by_threads_that_give_way_to_all_others_while_there_is_room() {
    if !can_be_nicer() {
        return;
    }
    let mut store = Overwriting::on(AMPLE);
    store.until("nice threads give space back", true, 20);
    assert!(store.env.done.lock().unwrap().iter().all(|(_, nice)| *nice), "{:?}", store.env.done);
}

#[test]
fn on_a_disk_that_is_short_of_room_space_is_given_back_as_urgently_as_values_are_written() {
    if !can_be_nicer() {
        return;
    }
    let mut store = Overwriting::on(SHORT);
    store.until("prompt threads give space back", false, 20);
    assert!(store.env.done.lock().unwrap().iter().all(|(_, nice)| !*nice), "{:?}", store.env.done);
}

#[test]
fn who_gives_space_back_changes_as_the_room_does() {
    if !can_be_nicer() {
        return;
    }
    let mut store = Overwriting::on(AMPLE);
    for _ in 0..3 {
        for (free, nice) in [(AMPLE, true), (SHORT, false)] {
            store.env.free.store(free, Ordering::SeqCst);
            store.env.done.lock().unwrap().clear();
            store.until(if nice { "the nice threads are back" } else { "the prompt threads take over" }, nice, 5);
        }
    }
}

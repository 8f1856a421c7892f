//! Group commit of one core, for `--sync always`: one sync of the log confirms every write that was
//! in flight.
//!
//! A write appends its record and waits. Whenever a request waits, a task of the core syncs what
//! has been appended, through io_uring if the core runs on it. While a sync runs, further writes
//! gather for the next one.
//!
//! The time that the requests waited goes into the profile of waits, once per sync for all of them,
//! from two or three readings of the clock: when the first request wants the sync, when it begins
//! and when it ends. The requests in between are assumed to have arrived evenly, so the sum is off
//! by at most half the time in which they gathered, which is at most half a sync for each. It is
//! that much too small if all clients answer at once to the previous sync, and right if requests
//! arrive at random times.
//!
//! Owner: one core. Bounds: the waiters are requests in flight, which are bounded. Invariants: a
//! wait ends with `Ok` only after a sync that began after its record was appended; after a failed
//! sync every wait ends with an error, for good.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use koltso_instrument::waited_for;
use koltso_storage::{SyncBatch, Writer};
use monoio::fs::File;

/// The core's writer; `None` once the core has drained.
pub type SharedWriter = Rc<RefCell<Option<Writer>>>;

/// The group commit of a core.
#[derive(Default)]
pub struct Commit {
    durable: Cell<u64>,
    wanted: Cell<u64>,
    /// The position that the running sync will make durable.
    syncing: Cell<u64>,
    gathering: Cell<Option<Gathering>>,
    failed: Cell<bool>,
    stopped: Cell<bool>,
    waiters: RefCell<Vec<Waker>>,
    committer: Cell<Option<Waker>>,
}

/// The requests that wait for the next sync.
#[derive(Clone, Copy)]
struct Gathering {
    count: u32,
    /// When the first of them arrived.
    since: Instant,
}

impl Gathering {
    /// How long all of them together have waited when their sync ends.
    fn waited(self, sync_began: Instant, sync_ended: Instant) -> Duration {
        let gathered = sync_began.saturating_duration_since(self.since);
        (gathered / 2 + sync_ended.saturating_duration_since(sync_began)).saturating_mul(self.count)
    }
}

/// The log could not be synced, so the write is not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotDurable;

/// Completes when everything up to a position of the log is on disk.
pub struct Durable {
    commit: Rc<Commit>,
    position: u64,
}

impl Future for Durable {
    type Output = Result<(), NotDurable>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let commit = &self.commit;
        if commit.durable.get() >= self.position {
            return Poll::Ready(Ok(()));
        }
        if commit.failed.get() {
            return Poll::Ready(Err(NotDurable));
        }
        commit.waiters.borrow_mut().push(cx.waker().clone());
        Poll::Pending
    }
}

impl Commit {
    /// Waits for a request until everything up to `position` of the core's log is on disk. The sync
    /// is asked for at once, not when the future is first polled.
    pub fn durable(self: &Rc<Self>, position: u64) -> Durable {
        // A request whose position the running sync will reach has written nothing new, and its
        // wait is not counted.
        if position > self.durable.get().max(self.syncing.get()) && !self.failed.get() {
            let first = || Gathering { count: 0, since: Instant::now() };
            let gathering = self.gathering.get().unwrap_or_else(first);
            self.gathering.set(Some(Gathering { count: gathering.count + 1, ..gathering }));
        }
        self.reached(position)
    }

    /// As [`Commit::durable`], for somebody who waits beside the requests.
    pub fn reached(self: &Rc<Self>, position: u64) -> Durable {
        if position > self.wanted.get() {
            self.wanted.set(position);
            if let Some(waker) = self.committer.take() {
                waker.wake();
            }
        }
        Durable { commit: self.clone(), position }
    }

    /// Ends [`run`] once no request waits.
    pub fn stop(&self) {
        self.stopped.set(true);
        if let Some(waker) = self.committer.take() {
            waker.wake();
        }
    }

    /// Waits until a write needs a sync; `false` if the task is to stop.
    async fn wanted(&self) -> bool {
        poll_fn(|cx| {
            if self.wanted.get() > self.durable.get() && !self.failed.get() {
                return Poll::Ready(true);
            }
            if self.stopped.get() {
                return Poll::Ready(false);
            }
            self.committer.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    fn wake_all(&self) {
        let waiters = std::mem::take(&mut *self.waiters.borrow_mut());
        waiters.into_iter().for_each(Waker::wake);
    }
}

/// Syncs the core's log whenever a request waits for it. This is a task of the core.
pub async fn run(commit: Rc<Commit>, writer: SharedWriter) {
    // Of the segments that are being written: one or two. They are opened with their segments, so a
    // sync never fails for want of a descriptor.
    let mut files: HashMap<u64, File> = HashMap::new();
    while commit.wanted().await {
        let Some(batch) = writer.borrow().as_ref().map(Writer::begin_sync) else {
            return;
        };
        commit.syncing.set(batch.position());
        let gathered = commit.gathering.take().map(|gathering| (gathering, Instant::now()));
        let synced = sync(&batch, &mut files).await;
        if let Some((gathering, began)) = gathered {
            waited_for(&"group commit", gathering.waited(began, Instant::now()), gathering.count);
        }
        if let Some(writer) = writer.borrow().as_ref() {
            match synced {
                Ok(()) => {
                    writer.complete_sync(&batch);
                    if writer.durable() >= batch.position() {
                        commit.durable.set(batch.position());
                    } else {
                        commit.failed.set(true);
                    }
                }
                Err(e) => {
                    writer.fail(&e);
                    commit.failed.set(true);
                }
            }
        }
        commit.wake_all();
    }
}

async fn sync(batch: &SyncBatch, files: &mut HashMap<u64, File>) -> std::io::Result<()> {
    files.retain(|id, _| batch.segments().any(|wanted| wanted == *id));
    for id in batch.segments() {
        let file = match files.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => match batch.take_file(id) {
                Some(file) => place.insert(File::from_std(file)?),
                // It was sealed meanwhile.
                None => continue,
            },
        };
        file.sync_data().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use koltso_profiling::capture::{Capture, Event};
    use koltso_profiling::locks;
    use koltso_profiling::symbols::Symbols;
    use koltso_profiling::text;
    use koltso_storage::{Options, Store, SyncMode, Version};

    use super::*;
    use koltso_model::{Flags, Key, Operation, Outcome, Record};

    use crate::replica::{Executed, Replica};

    /// Of the samples whose leaf is this label: how many waits, how many nanoseconds, and whether
    /// functions of `module` waited.
    fn found(capture: &Capture, label: &str, module: &str) -> (i64, i64, bool) {
        let names = |stack| capture.stack_at(stack).iter().map(|id| &*capture.frame_at(*id).function);
        let all: Vec<_> = capture.samples.iter().filter(|sample| names(sample.stack).next() == Some(label)).collect();
        let is_there = all.iter().all(|sample| names(sample.stack).nth(1).is_some_and(|name| name.contains(module)));
        (all.iter().map(|s| s.values[0]).sum(), all.iter().map(|s| s.values[1]).sum(), is_there)
    }

    #[test]
    fn what_requests_waited_for_the_disk_is_in_block_under_its_name() {
        const CLIENTS: u64 = 8;
        const WRITES: u64 = 25;
        let dir = tempfile::tempdir().expect("a folder");
        let (store, _) = Store::open(Options { sync: SyncMode::Always, ..Options::new(dir.path()) }).expect("a store");
        let store = Arc::new(store);
        let before = locks::snapshot();
        // What the requests measure, each for itself.
        let waited = Rc::new(Cell::new(Duration::ZERO));
        let mut runtime =
            monoio::RuntimeBuilder::<monoio::FusionDriver>::new().enable_timer().build().expect("a runtime");
        runtime.block_on(async {
            let (writer, whole) = (store.writer().expect("room"), Arc::new(AtomicBool::new(true)));
            let replica = Rc::new(Replica::new(store.clone(), writer, SyncMode::Always, whole));
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let (replica, waited) = (replica.clone(), waited.clone());
                    monoio::spawn(async move {
                        for write in 1..=WRITES {
                            let version = Version::new(write, 0);
                            let key = client.to_be_bytes();
                            let record = Record {
                                key: Key::new(&key[..]),
                                value: &[7; 40_000][..],
                                version,
                                expires_at_ms: 0,
                                flags: Flags::new(1),
                                attributes: &[][..],
                            };
                            let write = Operation::Write(record);
                            let began = Instant::now();
                            let Executed::Later(later) = replica.execute(&write, 0, |_| ()) else {
                                panic!("confirmed before it was on disk")
                            };
                            assert_eq!(later.await, Outcome::Applied);
                            waited.set(waited.get() + began.elapsed());
                        }
                    })
                })
                .collect();
            for client in clients {
                client.await;
            }
            // Nothing new was written: everything is on disk, and this is no wait.
            replica.durable().expect("always").await.expect("a disk");
            replica.close();
        });
        let after = locks::snapshot();
        let block = locks::difference(Event::Block, &before, &after, &mut Symbols::new());
        let (count, delay_ns, is_there) = found(&block, "wait:group commit", "commit::");
        let share = delay_ns as f64 / waited.get().as_nanos() as f64;
        println!("{count} waits of {delay_ns} ns, {share:.2} of what the requests saw");
        // Fewer would mean that a request was forgotten; a few more or less that a sync took less
        // than a sample's interval.
        assert!(
            (count - (CLIENTS * WRITES) as i64).abs() <= 5 && is_there,
            "{count} waits, in {}",
            text::folded(&block, 1)
        );
        assert!((0.5..1.6).contains(&share), "{share} of what the requests saw");
        let mutex = locks::difference(Event::Mutex, &before, &after, &mut Symbols::new());
        assert_eq!(found(&mutex, "wait:group commit", "").0, 0);
    }

    #[test]
    fn a_group_waits_from_when_it_gathered_on_average() {
        let began = Instant::now() + Duration::from_secs(1);
        let ms = Duration::from_millis;
        let alone = Gathering { count: 1, since: began };
        assert_eq!(alone.waited(began, began + ms(8)), ms(8));
        let many = Gathering { count: 100, since: began - ms(4) };
        assert_eq!(many.waited(began, began + ms(8)), ms(1000));
    }
}

//! A core's replica: the one place where an operation is done in this node's own store.
//!
//! - `commit.rs`: the group commit of the mode "always".
//! - `clock.rs`: the wall clock, and the process's hybrid logical clock with its bound on disk.
//!
//! Clients' requests that this node can answer alone, the core's coordinator and the peers that
//! coordinate all come through [`Replica::execute`]. The outcome is there at once, or later: in the
//! mode "always" a write is confirmed after the core's next sync of its log.
//!
//! Owner: one core. After [`Replica::close`] nothing is written. Invariant: a value is given out
//! only after its checksum was compared, a small value's under the lock of the key's stripe and a
//! large value's outside of any lock.

pub mod clock;
mod commit;

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use koltso_model::{Flags, Found, Key, Operation, Outcome, Record, Refused, Version, Want};
use koltso_storage::{Applied, Lookup, Store, Stored, SyncMode, Unverified, Value, WriteError, Writer};

use self::commit::{Commit, Durable, NotDurable, SharedWriter};

/// A core's hold on the store: reads of everything, and writes to the core's own log.
pub struct Replica {
    store: Arc<Store>,
    /// `None` once the core has drained.
    writer: SharedWriter,
    /// The core's group commit; `None` except in the mode "always".
    commit: Option<Rc<Commit>>,
    /// Whether this node has what it confirmed. Until then it answers no reads.
    whole: Arc<AtomicBool>,
}

/// Bytes that a read found.
#[derive(Debug)]
pub enum Contents<'a> {
    /// Bytes that lie in the log, valid only during the call that passes them on.
    Borrowed(&'a [u8]),
    /// Bytes that are valid as long as somebody holds them.
    Shared(Bytes),
}

impl Contents<'_> {
    /// The bytes as ones that may be kept. Borrowed bytes are copied.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Self::Shared(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Contents<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// What became of an operation.
pub enum Executed<R> {
    /// The operation is done, and the caller's closure made this of its outcome.
    Now(R),
    /// The operation is done, but its outcome must be told to nobody before this future has it.
    Later(Later),
}

/// A future of a write's outcome that waits for the disk.
pub struct Later {
    superseded: Option<Version>,
    durable: Durable,
}

impl Later {
    /// The version of a newer record, if the write came too late: for deciding what to do next, not
    /// for passing on.
    pub const fn superseded(&self) -> Option<Version> {
        self.superseded
    }
}

impl Future for Later {
    type Output = Outcome<Bytes>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome<Bytes>> {
        Pin::new(&mut self.durable).poll(cx).map(|durable| match durable {
            Ok(()) => self.superseded.map_or(Outcome::Applied, Outcome::Superseded),
            Err(NotDurable) => Outcome::Refused(Refused::Failed),
        })
    }
}

/// The refusal that a replica answers with when the store could not do a write.
const fn refused(error: &WriteError) -> Refused {
    match error {
        WriteError::DiskFull => Refused::DiskFull,
        WriteError::Value { .. } => Refused::TooLarge,
        WriteError::Resources(_) => Refused::NoResources,
        WriteError::Io(_) => Refused::DiskError,
        WriteError::Failed | WriteError::Key { .. } | WriteError::Attributes(_) => Refused::Failed,
    }
}

impl Replica {
    /// Takes a core's writer; in the mode "always" it also starts the core's group commit. Must be
    /// called on the core's runtime.
    pub fn new(store: Arc<Store>, writer: Writer, sync: SyncMode, whole: Arc<AtomicBool>) -> Self {
        let writer = Rc::new(RefCell::new(Some(writer)));
        let commit = (sync == SyncMode::Always).then(|| {
            let commit = Rc::new(Commit::default());
            monoio::spawn(commit::run(commit.clone(), writer.clone()));
            commit
        });
        Self { store, writer, commit, whole }
    }

    /// The store, for ranges and figures.
    #[inline]
    pub const fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Whether this node has what it confirmed, so that what it finds, or does not find, is an
    /// answer.
    #[inline]
    pub fn answers_reads(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
    }

    /// Does an operation. `then` is given the outcome if that is there at once; it must be short,
    /// since it may run under the lock of the key's stripe.
    #[inline]
    pub fn execute<R>(
        &self,
        operation: &Operation<&[u8]>,
        now_ms: u64,
        then: impl FnOnce(Outcome<Contents<'_>>) -> R,
    ) -> Executed<R> {
        match operation {
            Operation::Read { .. } if !self.answers_reads() => {
                Executed::Now(then(Outcome::Refused(Refused::Rebuilding)))
            }
            Operation::Read { key, want } => Executed::Now(self.read(key, *want, now_ms, then)),
            Operation::Write(record) => match self.confirm(self.write(record)) {
                Executed::Now(outcome) => Executed::Now(then(outcome.map(Contents::Shared))),
                Executed::Later(later) => Executed::Later(later),
            },
        }
    }

    #[inline]
    fn read<R>(&self, key: &Key<&[u8]>, want: Want, now_ms: u64, then: impl FnOnce(Outcome<Contents<'_>>) -> R) -> R {
        enum Done<R> {
            Here(R),
            Large(Version, u64, Flags, Unverified),
        }
        // One of the two places below calls it: the first under the stripe's lock, the second
        // without.
        let mut then = Some(then);
        let mut finish = |outcome: Outcome<Contents<'_>>| then.take().expect("an outcome is given once")(outcome);
        let read = self.store.get(key.bytes(), now_ms, |read| {
            Done::Here(finish(match read {
                Lookup::Absent(tombstone) => Outcome::Absent(tombstone),
                Lookup::Damaged => Outcome::Damaged,
                Lookup::Found(stored) => {
                    let Stored { version, expires_at_ms, flags, attributes, value } = stored;
                    let value_len = value.len() as u32;
                    let value = match value {
                        Value::Inline(bytes) if want == Want::Value => Some(Contents::Borrowed(bytes)),
                        Value::Large(value) if want == Want::Value => {
                            return Done::Large(version, expires_at_ms, flags, value);
                        }
                        _ => None,
                    };
                    let attributes = Contents::Borrowed(attributes);
                    Outcome::Found(Found { version, expires_at_ms, flags, attributes, value_len, value })
                }
            }))
        });
        match read {
            Done::Here(result) => result,
            Done::Large(version, expires_at_ms, flags, value) => finish(match value.verify() {
                None => Outcome::Damaged,
                Some(pinned) => {
                    let attributes = Contents::Shared(Bytes::copy_from_slice(pinned.attributes()));
                    let bytes = Bytes::from_owner(pinned);
                    let (value_len, value) = (bytes.len() as u32, Some(Contents::Shared(bytes)));
                    Outcome::Found(Found { version, expires_at_ms, flags, attributes, value_len, value })
                }
            }),
        }
    }

    /// Appends a record and publishes it. The outcome may be told only after [`Replica::confirm`].
    #[inline]
    fn write(&self, record: &Record<&[u8]>) -> Outcome<Bytes> {
        let mut writer = self.writer.borrow_mut();
        let Some(writer) = writer.as_mut() else {
            return Outcome::Refused(Refused::NotReady);
        };
        match writer.apply(record) {
            Ok(Applied::Superseded(standing)) if standing > record.version => Outcome::Superseded(standing),
            Ok(Applied::Newest | Applied::Superseded(_)) => Outcome::Applied,
            Err(error) => Outcome::Refused(refused(&error)),
        }
    }

    /// Confirms what [`Replica::write`] did: at once, or in the mode "always" when it is on disk.
    /// A superseded record waits, too, since its outcome counts as a confirmation: the record that
    /// won may be in another core's log, which is not synced yet.
    #[inline]
    fn confirm(&self, outcome: Outcome<Bytes>) -> Executed<Outcome<Bytes>> {
        match (&self.commit, &outcome) {
            (Some(commit), Outcome::Applied | Outcome::Superseded(_)) => {
                let (superseded, durable) = (outcome.version(), commit.durable(self.position()));
                Executed::Later(Later { superseded, durable })
            }
            _ => Executed::Now(outcome),
        }
    }

    /// A future that is ready when everything written so far is on disk; `None` except in the mode
    /// "always".
    #[inline]
    pub fn durable(&self) -> Option<Durable> {
        Some(self.commit.as_ref()?.reached(self.position()))
    }

    /// How far the core's log has been written; without a writer nothing was written that would
    /// have to be waited for.
    fn position(&self) -> u64 {
        self.writer.borrow().as_ref().map_or(0, Writer::position)
    }

    /// Lets go of the writer, so that the store can be closed.
    pub fn close(&self) {
        self.writer.borrow_mut().take();
        if let Some(commit) = &self.commit {
            commit.stop();
        }
    }
}

//! An embeddable key-value engine: an append-only, memory-mapped log with an in-memory index.
//!
//! Keys are 1 to 4096 bytes, values up to a maximum that the opener chooses (16 MiB by default).
//! Each record has a [`Version`]; the newest wins, in whatever order versions arrive. Deletes are
//! tombstones, values can expire. What was written survives the end of the process at any instant;
//! what survives a power loss is the [`SyncMode`].
//!
//! The engine knows no network and no async runtime. What it asks of the system stands behind the
//! trait [`Env`], the wall clock of its background work included; readers say what time it is. It
//! is shared between threads: each thread that writes has a [`Writer`] with a log of its own; reads
//! go from any thread to any record.
//!
//! ```
//! use koltso_storage::{Lookup, Options, Store, Version};
//!
//! # let dir = tempfile::tempdir()?;
//! let (store, _) = Store::open(Options::new(dir.path()))?;
//! let mut writer = store.writer()?;
//! writer.put(b"planet", b"Mars", Version::new(1, 0), 0)?;
//! let length = store.get(b"planet", 0, |found| match found {
//!     Lookup::Found(found) => found.value.len(),
//!     Lookup::Absent(_) | Lookup::Damaged => 0,
//! });
//! assert_eq!(length, 4);
//! drop(writer);
//! store.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What is left out, and what that costs: no transactions over several keys, no compare-and-set, no
//! compression. The index is in memory, 10 to 20 bytes a key. Data larger than memory works by
//! paging, and then a read can stall its thread for a page fault. The bytes on disk are in
//! `docs/log-format.md`.

mod agreements;
mod background;
mod bytes;
mod compact;
mod damage;
mod digest;
mod digest_check;
mod dropping;
mod entry;
mod env;
mod error;
mod fault;
mod folder;
mod forgotten;
mod hash;
mod header;
mod health;
mod index;
mod indexed;
mod log;
mod logs;
mod lookup;
mod lost;
mod mending;
mod options;
mod order;
mod pace;
mod partition;
mod parts;
mod past_cache;
mod provision;
mod read_ahead;
mod record;
mod recovery;
mod retention;
mod room;
mod scan;
pub mod schedule;
mod scrub;
mod scrub_state;
mod seal_queue;
mod sealing;
mod secret;
mod segment;
mod segments;
mod sidecar;
mod slab;
mod stats;
mod store;
mod syncing;
mod table;
mod threads;
mod verify;
mod wanted;

pub use agreements::Agreements;
pub use digest::{Digests, leaf_of};
pub use env::{Env, FolderEntry, RealEnv, Space, open_own};
pub use error::{OpenError, WriteError};
pub use folder::{FOLDER_FORMAT, Folder, FolderError};
pub use index::Applied;
pub use koltso_model::{KEY_MAX, KeyHash, PARTITIONS, VALUE_MAX_LIMIT, Version};
pub use log::Writer;
pub use logs::SyncBatch;
pub use lookup::{INLINE_MAX, Lookup, Newest, Pinned, Stored, Unverified, Value};
pub use mending::DamagedRecord;
pub use options::{Options, SyncMode};
pub use partition::PartitionEntries;
#[doc(hidden)]
pub use record::fuzz_record;
pub use recovery::Recovered;
#[doc(hidden)]
pub use recovery::fuzz_scan;
pub use scan::{Cursor, ScanError, Step};
pub use scrub_state::ScrubStats;
pub use stats::{DigestStats, Stats};
pub use store::Store;
pub use verify::{Flaw, Verified, VerifyError, verify};

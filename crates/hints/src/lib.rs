//! Hinted handoff: the writes that a peer missed are kept on disk, within bounds, and replayed at a
//! bounded rate when the peer is back.
//!
//! A [`Keeper`] has one thread for each peer, which is the only owner of the peer's hint log: it
//! appends the hints that [`Keeper::keep`] queues, reads the oldest ones back, has them sent through
//! a [`Target`] and forgets those that were confirmed. Another thread waits for the peer's answers,
//! and one for the disk to sync. How to reach a peer is up to the caller ([`Dial`]); nothing here
//! knows a socket, and the time of day comes from the caller.
//!
//! What is promised: hints go to a peer in the order in which they were kept. A hint that was
//! appended is replayed at least once unless a bound, a full disk or damage takes it; the peer then
//! *needs repair*, which the log says, which is counted, and which the disk remembers until the
//! caller says that the peer was compared and has all ([`Keeper::repaired`]). Replaying a hint twice
//! is harmless, since versions decide.
//!
//! What is left out, and what that costs: a kill loses the hints in the queue (those of about a
//! millisecond), and a power loss takes those of about the last second without any mark; comparing
//! the replicas finds them. Hints for a node that has left the cluster stay on disk. The bytes on
//! disk are described in `docs/hint-format.md`.

mod courier;
mod entry;
mod keeper;
mod log;
mod queue;
mod syncer;
mod worker;

pub use entry::{ENTRY_MAX, FORMAT};
#[doc(hidden)]
pub use entry::{fuzz_entry, fuzz_segment};
pub use keeper::{Dial, Figures, Keeper, Options, PeerAddress, Target, folder_name};
pub use koltso_cluster::replay::{RETRY_MAX_MICROS, Verdict, WINDOW_BYTES};
pub use log::HintError;
pub use queue::{QUEUE_BYTES_MAX, QUEUE_MAX};
pub use worker::BATCH_BYTES;

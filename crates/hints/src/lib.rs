//! Hinted handoff: what a peer missed is kept on disk, bounded, and replayed when the peer is back, at a bounded rate.
//!
//! A [`Keeper`] has one thread a peer, which owns the peer's hint log wholly: it appends what [`Keeper::keep`] queues, reads
//! the oldest hints back, sends them through a [`Target`] and forgets what was confirmed. How a peer is reached is the
//! caller's affair ([`Dial`]); nothing here knows a socket, and the time of day comes from the caller.
//!
//! What is promised: hints go to a peer in the order in which they were kept; a hint that was appended is replayed at least
//! once unless a bound, a full disk or damage takes it, and then the peer *needs repair*, which is said in the log, counted,
//! and remembered on disk until an operator removes the file. Replaying twice is harmless: versions decide.
//!
//! What is left out, and what that costs: hints in the queue are lost by a kill (those of about a millisecond), and a power
//! loss takes those of about the last second, which nothing marks; a later read repairs what it meets. Hints of a node that
//! left the cluster stay on disk. The bytes on disk are in `docs/hint-format.md`.

mod entry;
mod keeper;
mod log;

pub use entry::{ENTRY_MAX, FORMAT};
#[doc(hidden)]
pub use entry::{fuzz_entry, fuzz_segment};
pub use keeper::{
    BATCH_BYTES, Confirmed, Dial, Figures, Keeper, Options, Peer, QUEUE_BYTES_MAX, QUEUE_MAX, RETRY_MAX, Target,
    WINDOW_BYTES, folder_name,
};
pub use log::HintError;

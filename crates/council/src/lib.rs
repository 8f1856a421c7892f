//! The council of a cluster: its members agree on one small numbered [`Document`] (who the members
//! are, who holds data, the plan that moves partitions) through Raft, by the library openraft.
//!
//! ```text
//!  propose(epoch, change) ─▶ leader ─▶ logs of a majority ─▶ applied ─▶ document ─▶ changes()
//!        whoever does not lead forwards it                 epoch + 1, on disk
//! ```
//!
//! Owner: a tokio current-thread runtime; all calls are made on it. The crate starts no thread and
//! opens no socket: messages go through [`Transport`], and come in through [`Council::serve`].
//! Files are written and synced where they are needed, which blocks the runtime for as long as the
//! disk takes.
//!
//! Bounds: [`MESSAGE_BYTES_MAX`] a message, [`DOCUMENT_BYTES_MAX`] the document, [`VOTERS_MAX`]
//! voters, [`PROPOSE_MAX`] for a proposal, [`TEXT_BYTES_MAX`] each address and zone.
//!
//! Invariants:
//! 1. The epochs of the documents that a cluster agrees on follow each other by one, and two
//!    different documents never have one epoch. (After [`recover`] that holds for what is agreed on
//!    from then on.)
//! 2. A change is made only to the document with the epoch that it was proposed for.
//! 3. What [`Council::propose`] has returned is in the logs of a majority of the voters, on disk.
//! 4. A member never goes back to an older document, not even after a crash.
//!
//! Deliberately absent: authentication (the transport's), reads that ask a majority (a document is
//! as new as this member knows), the replacement of a voter that is dead but still a member,
//! pre-votes.
//!
//! Tested in `tests/`: `councils.rs` by scenarios, `random.rs` by seeded faults, `damage.rs` by
//! damaged files and hostile messages.

mod council;
mod document;
mod machine;
mod messages;
mod network;
mod raft;
mod recovery;
mod store;
mod voters;
mod wire;

pub use council::{
    COMPACT_AFTER, Council, First, Me, PROPOSE_MAX, ProposeError, Settings, StartError, Timings, Transport,
};
pub use document::{Change, DOCUMENT_BYTES_MAX, Document, ENDED_MAX, EndedPlan, Ending, TEXT_BYTES_MAX};
pub use messages::MESSAGE_BYTES_MAX;
pub use recovery::{RECOVERY_LEAP, RecoverError, Report, recover};
pub use store::StoreError;
pub use voters::VOTERS_MAX;

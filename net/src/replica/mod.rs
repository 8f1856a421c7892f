//! The replica protocol between the nodes of a cluster, over monoio: binary frames, many in flight
//! on few connections.
//!
//! [`frame`], [`handshake`], [`redial`] and [`Features`] are pure. [`Link`] is the asking side: one
//! connection from a core to a peer. [`serve`] is the answering side; it answers through a
//! [`ReplicaService`], which may take its time for each request. [`blocking`] is for threads without
//! a runtime: it asks, and answers those who compare replicas. `docs/replica-protocol.md` describes
//! the bytes, and what they protect against.
//!
//! Owner: everything here lives on one core, and [`blocking`] on one thread. Every length, queue
//! and wait has a bound, which is named in the file that has it.
//!
//! Deliberately absent: storage, placement, quorums, health of peers, deadlines of requests,
//! encryption. Tested in each file, in `tests/replica/` over real sockets on both drivers, and by
//! the fuzz targets `replica_frames` and `replica_exchange`.

mod acquaintances;
pub mod blocking;
mod epoch;
mod features;
pub mod frame;
pub mod handshake;
mod link;
mod lost;
mod outbox;
pub mod redial;
mod secrets;
mod server;
mod service;
mod strangers;
mod sys;
mod wire;

pub use acquaintances::{Acquaintances, Introduction, Judged, NoMemory};
pub use epoch::Epoch;
pub use features::Features;
pub use frame::{Reply, Request};
pub use handshake::{Identity, PeerIdentity, Purpose, Skew};
pub use koltso_model::NodeId;
pub use link::{
    CONNECT_TIMEOUT, Full, HOLD_MAX, LOCATE_TIMEOUT, Link, LinkConfig, LinkHandler, LinkState, Locate, OUTBOX_MAX,
};
pub use lost::LostReason;
pub use redial::DIAL_GAP;
pub use secrets::Secrets;
#[cfg(test)]
pub(crate) use server::serve_over;
pub use server::{AcceptConfig, MemberAddresses, STRANGERS_MAX, serve};
pub use service::{DeferredReply, ReplicaEvent, ReplicaService, Replies, UNANSWERED_MAX};

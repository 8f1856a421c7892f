//! The replica protocol between the nodes of a cluster: binary frames, many in flight on few connections, over monoio.
//!
//! [`frame`] and [`handshake`] are pure. [`Link`] asks: one connection from a core to a peer. [`serve`] answers.
//! [`blocking`] asks from a thread without a runtime. `docs/replica-protocol.md` has the bytes, and what they protect
//! against.
//!
//! Owner: everything here lives on one core, [`blocking`] on one thread. Every length, queue and wait has a bound,
//! named in the file that has it.
//!
//! Deliberately absent: storage, placement, quorums, health of peers, deadlines of requests, encryption. Tested in each
//! file, in `tests/replica.rs` over real sockets on both drivers, and by the `replica_frames` fuzz target.

pub mod blocking;
pub mod frame;
pub mod handshake;
mod link;
mod lost;
mod outbox;
mod server;
mod sys;
mod wire;

pub use frame::{Refused, Reply, Request, Stamp};
pub use handshake::{Identity, Skew};
pub use link::{CONNECT_TIMEOUT, DIAL_GAP, Full, HOLD_MAX, Link, LinkConfig, LinkHandler, LinkState, OUTBOX_MAX};
pub use lost::LostReason;
pub use server::{AcceptConfig, ReplicaEvent, ReplicaService, Replies, STRANGERS_MAX, serve};

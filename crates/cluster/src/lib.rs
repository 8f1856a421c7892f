//! The decisions of a cluster, as functions from events to actions: where keys live, when a request
//! has enough replicas, which peer is ailing, what a peer has missed.
//!
//! What nodes say to each other are the values of `koltso-model`: an `Operation` goes to a replica,
//! an `Outcome` comes back.
//!
//! Nothing here does I/O, looks at a clock, starts a thread or draws a random number: time and
//! replies come in, messages and answers go out, as values. The program joins it with sockets and
//! the engine (`src/member/`); the simulator in `tests/simulation.rs` joins the same code with a
//! virtual network, one seed and no threads.
//!
//! - [`member`]: one core's part in a cluster, whole; what the program and the simulator drive.
//! - [`membership`]: who the members are, and their numbers.
//! - [`placement`]: key → partition → ranked nodes; [`plan`]: how partitions move to others;
//!   [`mover`]: when their next stage begins.
//! - [`coordinator`]: PUT, DELETE and GET with `ack` of `from`.
//! - [`health`]: latency, silence, circuits, probes, the hedge budget.
//! - [`clock`]: versions; [`renewal`]: what a write does about a newer one.
//! - [`plausibility`], [`skew`]: what is not believed of a peer; [`wall`]: what is not believed of
//!   the machine's own clock.
//! - [`standing`]: whether a node has what it confirmed, and whom it remembers.
//! - [`exchange`]: how replicas become equal without any read.
//! - [`replay`]: how a peer gets what it missed, at which [`pace`]; [`backlog`]: the bound of what
//!   waits for that; [`budget`]: how much of the network and the disks all that may take.

pub mod backlog;
pub mod budget;
pub mod clock;
pub mod coordinator;
pub mod exchange;
pub mod health;
pub mod member;
pub mod membership;
pub mod mover;
pub mod pace;
pub mod placement;
pub mod plan;
pub mod plausibility;
pub mod renewal;
pub mod replay;
pub mod skew;
pub mod standing;
pub mod wall;

use koltso_model::WallTime;

/// The moment at which an event happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Microseconds of a monotonic clock with any origin: deadlines and latencies.
    pub micros: u64,
    /// The wall clock: versions and expiry.
    pub wall: WallTime,
}

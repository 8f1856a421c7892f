//! What the tests of all crates share. Only tests depend on it; `.ci/run` proves that.
//!
//! - [`random`]: the one generator. A random test prints its seed first and takes it back from
//!   `KOLTSO_SEED`.
//! - [`wait`]: conditions that are polled, with generous ends.
//! - [`fuzz`]: what the short fuzz runs within `cargo test` have in common.
//! - [`client`]: a small HTTP/1.1 client that sees bytes: it sends whatever a test wants sent, and
//!   reads answers by their framing.
//! - [`server`]: starts `koltso serve`, waits for its ready line, ends it (SIGKILL, SIGTERM) and
//!   looks at it from outside (`/proc`, `/status`). A server never outlives its guard.
//! - [`cluster`]: several servers as one cluster, their ends, pauses and returns, and what each of
//!   them says and holds.
//! - [`attack`]: what strangers do to a server, all at once.
//! - [`load`]: a steady open-loop load with latencies counted from when a request was due.
//! - [`files`]: what a test does to a data folder behind the server's back.
//! - [`mod@skip`]: a test that cannot run here says so where everybody sees it.
//! - [`layers`]: whether the modules of a folder import each other in one direction.
//! - [`json`] and [`metrics`] read what a server says, [`process`] sends signals.
//!
//! Invariants:
//! 1. Everything that waits has a deadline, so no test hangs.
//! 2. A condition is polled, never slept for, unless the passing of time is itself what is tested.
//! 3. Nothing here knows how the server is made: only SPEC.md, the flags and the names in the data
//!    folder.
#![allow(missing_docs, reason = "most helpers' names say all of it, and each module begins with what it is for")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

pub mod attack;
pub mod client;
pub mod cluster;
pub mod files;
pub mod fuzz;
pub mod json;
pub mod layers;
pub mod load;
pub mod metrics;
pub mod process;
pub mod random;
pub mod server;
pub mod skip;
pub mod wait;

pub use client::{Client, Response, encode, entity};
pub use cluster::Cluster;
pub use random::Random;
pub use server::{Launch, Server};
pub use skip::{Remedy, skip};
pub use wait::{eventually, wall_ms};

/// Whether the long variants of the tests are asked for (`KOLTSO_TEST_LONG=1`).
pub fn long() -> bool {
    std::env::var("KOLTSO_TEST_LONG").is_ok_and(|value| value == "1")
}

/// `short` in an ordinary run, `long_` when long runs are asked for.
pub fn volume<T>(short: T, long_: T) -> T {
    if long() { long_ } else { short }
}

//! The harness of the black-box suite: the real binary, real sockets, real signals.
//!
//! - `server`: starts `koltso serve`, waits for its ready line, ends it (SIGKILL, SIGTERM) and looks at it from outside
//!   (`/proc`, `/status`). A server never outlives its guard.
//! - `client`: a small HTTP/1.1 client that sees bytes: it sends whatever a test wants sent, and reads answers by their framing.
//! - `cluster`: several servers as one cluster, their ends, pauses and returns, and what each of them says and holds.
//! - `load`: a steady open-loop load with latencies counted from when a request was due.
//! - `random`: splitmix64. A random test prints its seed first and takes it back from `KOLTSO_SEED`.
//! - `files`: what a test does to a data folder behind the server's back.
//!
//! Invariants:
//! 1. Everything that waits has a deadline, so no test hangs.
//! 2. Nothing here knows how the server is made: only SPEC.md, the flags and the names in the data folder.
//! 3. A condition is polled, never slept for, unless the passing of time is itself what is tested.
// Each test file is a crate of its own and uses a part of this.
#![allow(dead_code, unused_imports, missing_docs, unreachable_pub, clippy::unwrap_used)]

pub mod client;
pub mod cluster;
pub mod files;
pub mod load;
pub mod random;
pub mod server;

use std::time::{Duration, Instant};

pub use client::{Client, Response, encode, entity};
pub use cluster::Cluster;
pub use random::Random;
pub use server::{Launch, Server};

/// Whether the long variants of the tests are asked for (`KOLTSO_TEST_LONG=1`).
pub fn long() -> bool {
    std::env::var("KOLTSO_TEST_LONG").is_ok_and(|value| value == "1")
}

/// `short` in an ordinary run, `long` when long runs are asked for.
pub fn volume<T>(short: T, long_: T) -> T {
    if long() { long_ } else { short }
}

/// Polls `condition` until it holds; panics with `what` after `within`.
pub fn eventually(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    while !condition() {
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

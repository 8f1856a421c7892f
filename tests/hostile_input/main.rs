//! Input that nobody sends by mistake, and clients that behave badly: none of it takes memory
//! beyond the stated bounds, stops other clients, crashes the server or makes it execute what it
//! was not asked for.
//!
//! The bound on anonymous memory is `ANONYMOUS_KIB_MAX`, whatever clients do.
#![allow(missing_docs, clippy::unwrap_used)]

mod clients;
mod closing;
mod overload;
mod requests;
mod smuggling;

use koltso_testkit::{Client, Server};

/// What the server may hold in anonymous memory while clients attack it: 150 MB.
const ANONYMOUS_KIB_MAX: u64 = 150 * 1000;

#[track_caller]
fn assert_memory_bounded(server: &Server, during: &str) {
    let kib = server.anonymous_kib();
    assert!(kib < ANONYMOUS_KIB_MAX, "{during}: {kib} KiB of anonymous memory");
}

/// Sends as much of `bytes` as the other side takes.
fn send_what_goes(client: &mut Client, bytes: &[u8]) {
    // The server may refuse and close in the middle: what it answered is what counts.
    let _ = client.send(bytes);
}

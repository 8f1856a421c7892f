//! SPEC.md section 2 through real sockets: every line of it that names an answer has a test here,
//! named after the promise.
//!
//! Ranges are in `range.rs`, what is not HTTP at all in `hostile_input/`, /status and /metrics in
//! `command_line/`.
#![allow(missing_docs, clippy::unwrap_used)]

mod entity;
mod etag;
mod heads;
mod http;
mod parts;
mod paths;
mod preconditions;
mod representations;
mod sites;
mod ttl;
mod values;

use std::time::Duration;

use koltso_testkit::{Client, Response};

const KEY_MAX: usize = 4096;
const VALUE_MAX: usize = 16 << 20;

/// After an answer the connection is either ended, as announced, or good for another request.
#[track_caller]
fn assert_usable_or_announced(client: &mut Client, response: &Response, what: &str) {
    if response.says_close() {
        assert!(client.is_ended(Duration::from_secs(5)), "{what}: 'Connection: close', but the connection stays open");
    } else {
        client.get("absent").expect(404, &format!("a GET on the same connection after {what}"));
    }
}

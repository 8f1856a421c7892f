//! The commands, one module each: a node, a whole cluster on this machine, a client of a node,
//! load, profiles.

use std::io::Write;

pub mod bench;
pub mod client;
pub mod http_client;
pub mod local;
pub mod profile;
pub mod serve;

/// Writes a line to standard error, in one call: the nodes of `koltso local` share it, and pieces
/// of their lines would mix. Nothing can be said about a line that cannot be written, so it is
/// lost.
pub fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

//! Nobody who is not a member can end, stall or fill up a node: few descriptors, bodies that never
//! come, pages that nobody reads, and all of it at once. What others get meanwhile is what counts.
#![allow(missing_docs, clippy::unwrap_used)]

mod addresses;
mod bodies;
mod descriptors;
mod everything;
mod pages;

use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use koltso_testkit::metrics::sample;
use koltso_testkit::server::free_port;
use koltso_testkit::{Client, Launch};

/// A start with these limits of files and sockets, soft and hard.
fn limited(data: &Path, soft: u32, hard: u32, flags: &str) -> Launch {
    let shell = format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\"");
    Launch::on(data).flags("--threads 1").flags(flags).within(&["sh", "-c", &shell])
}

/// Connections that say nothing; some may be closed by the other side.
fn silent(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    (0..count).filter_map(|_| TcpStream::connect(address).ok()).collect()
}

/// An address for `--admin-listen`.
fn admin_address() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

/// How often a limit was hit, as the page at this address says.
#[track_caller]
fn hits(address: SocketAddr, limit: &str) -> u64 {
    let answer = Client::connect(address).unwrap().request("GET", "/metrics", &[], None).expect(200, "GET /metrics");
    sample(&answer, &format!("koltso_limits_hit_total{{limit=\"{limit}\"}}")) as u64
}

//! Ten thousand idle connections must be cheap: measures the resident memory that idle connections
//! cost.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Driver, Server, eventually, limits};

/// Idle connections opened, and closed, by the test; two descriptors each.
const COUNT: usize = 2000;
/// The promise, in bytes a connection, client side of the test included.
const BYTES_MAX: usize = 8 * 1024;

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

// Only one driver: what a connection holds is the same on both, and a second server in this process
// would live on the memory that the first has freed.
#[test]
fn an_idle_connection_costs_less_than_8_kib_after_a_burst_too() {
    let server = Server::start(Driver::Uring, limits());
    server.connect().assert_open();
    let before = resident();
    let mut clients = Vec::with_capacity(COUNT);
    for _ in 0..COUNT {
        let mut client = server.connect();
        client.get(&format!("/x?{}", "y".repeat(6000)));
        assert_eq!(client.response().status, 200);
        clients.push(client.socket);
    }
    eventually("all there", || server.shared.connections() >= COUNT);
    let each = resident().saturating_sub(before) / COUNT;
    println!("{each} bytes a connection");
    assert!((4096..BYTES_MAX).contains(&each), "{each} bytes a connection");
}

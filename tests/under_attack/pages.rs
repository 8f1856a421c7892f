//! `/status` and its sisters are served whoever else holds connections to them.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::{admin_address, hits, silent};
use koltso_testkit::server::raise_descriptor_limit;
use koltso_testkit::{Client, Server, eventually, volume};

/// Shorter than the patience of the server with those who are silent.
const SOON: Duration = Duration::from_secs(8);

#[track_caller]
fn assert_served(address: SocketAddr, what: &str) {
    let begun = Instant::now();
    let mut client = Client::connect(address).unwrap().patience(SOON);
    client.request("GET", "/status", &[], None).expect(200, what);
    assert!(begun.elapsed() < SOON, "{what}: {:?}", begun.elapsed());
}

#[test]
fn silent_sockets_at_the_admin_listener_keep_nobody_from_the_pages() {
    raise_descriptor_limit();
    let admin = admin_address();
    let mut server = Server::fresh(&format!("--threads 1 --admin-listen {admin}"));
    let mut held = Vec::new();
    for count in [70, 300, volume(1500, 10_000)] {
        held.extend(silent(admin, count));
        assert_served(admin, "/status beside silent sockets at the admin listener");
        assert_served(server.address(), "/status at the data port meanwhile");
    }
    assert!(hits(admin, "pages") > 0, "some had to give way");
    assert!(server.descriptors_open() < 700, "{} descriptors", server.descriptors_open());
    // In time they are closed, whether anybody else comes or not.
    let of_server = || server.descriptors_open();
    eventually("all silent ones are closed", Duration::from_secs(30), || of_server() < 100);
    server.assert_serves();
}

#[test]
fn heads_that_never_end_and_answers_that_nobody_reads_keep_nobody_from_the_pages() {
    raise_descriptor_limit();
    let admin = admin_address();
    let mut server = Server::fresh(&format!("--threads 1 --admin-listen {admin}"));
    let many = volume(400, 2000);
    for address in [admin, server.address()] {
        let ask = |bytes: &[u8]| {
            let mut socket = TcpStream::connect(address).unwrap();
            // It may be closed in favour of others.
            let _ = socket.write_all(bytes);
            socket
        };
        let whole = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let halves: Vec<TcpStream> = (0..many).map(|_| ask(&whole[..30])).collect();
        assert_served(address, "/status beside half heads");
        let unread: Vec<TcpStream> = (0..many).map(|_| ask(whole)).collect();
        assert_served(address, "/status beside answers that nobody reads");
        // All that were asked for at once on a connection that nobody reads.
        let pipelined: Vec<TcpStream> = (0..many).map(|_| ask(&whole.repeat(20))).collect();
        assert_served(address, "/status beside pipelined requests");
        assert_served(admin, "/status at the admin listener");
        drop((halves, unread, pipelined));
    }
    server.assert_serves();
}

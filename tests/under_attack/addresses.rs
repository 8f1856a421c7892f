//! The share of one address, `--max-connections-per-address`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::{admin_address, hits};
use koltso_testkit::client::get_bytes;
use koltso_testkit::json::json_number;
use koltso_testkit::{Client, Launch, Remedy, Server, eventually, skip};

const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const SOON: Duration = Duration::from_secs(10);

#[test]
fn one_address_has_its_share_of_connections_and_of_requests_in_flight() {
    let admin = admin_address();
    let mut server = Server::fresh(&format!("--threads 1 --max-connections-per-address 3 --admin-listen {admin}"));
    server.connect().store("large", vec![b'v'; 8 << 20]);
    let open = || hits(admin, "connections_per_address");
    eventually("the first one is gone", SOON, || server.established() == 0);
    let mut mine: Vec<Client> = (0..3).map(|_| server.connect()).collect();
    eventually("three are open", SOON, || server.established() == 3);
    assert!(server.connect().is_ended(SOON), "a fourth of three connections");
    assert_eq!(open(), 1);
    let mut other = Client::connect_from(server.address(), OTHER).unwrap();
    other.get("absent").expect(404, "a client from elsewhere");
    // Two whose answers nobody takes, and two more that come together: one too many.
    mine[0].send(&get_bytes("large").repeat(2)).unwrap();
    mine[1].send(&get_bytes("large").repeat(2)).unwrap();
    let mut refused = None;
    eventually("another request of the address is refused", SOON, || {
        mine[2].send(&get_bytes("absent").repeat(2)).unwrap();
        mine[2].read("GET").expect(404, "the third request in flight");
        let answer = mine[2].read("GET");
        refused = (answer.status == 503).then_some(answer);
        refused.is_some()
    });
    let refused = refused.unwrap();
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(refused.text().contains("of your address"), "{}", refused.text());
    assert!(hits(admin, "in_flight_per_address") > 0);
    other.get("absent").expect(404, "a client from elsewhere");
    assert_eq!(other.value("large").map(|value| value.len()), Some(8 << 20));
    // Its own health and pages are for everybody.
    mine[2].request("GET", "/health", &[], None).expect(200, "GET /health");
    drop(mine);
    eventually("they are gone", SOON, || server.established() == 1);
    server.assert_serves();
}

/// An address of this machine that is not loopback.
fn outer_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    // No packet leaves: this asks for a route.
    socket.connect(("192.0.2.1", 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[test]
fn the_share_is_half_of_all_and_for_loopback_all() {
    let Some(outer) = outer_address() else {
        return skip("this machine has no address beside loopback", Remedy::Machine("a network"));
    };
    let (admin, folder) = (admin_address(), tempfile::tempdir().unwrap());
    let flags = format!("--threads 1 --max-connections 4 --admin-listen {admin}");
    let mut server = Launch::on(&folder.path().join("data")).host("0.0.0.0").flags(&flags).start();
    let status = Client::connect(admin).unwrap().request("GET", "/status", &[], None).expect(200, "GET /status").text();
    assert_eq!(json_number(&status, "max_connections_per_address"), 2);
    let outside = SocketAddr::new(outer, server.port());
    let open = |count| eventually("they are open", SOON, || server.established() == count);
    let from_outside: Vec<Client> = (0..2).map(|_| Client::connect_from(outside, outer).unwrap()).collect();
    open(2);
    assert!(Client::connect_from(outside, outer).unwrap().is_ended(SOON), "a third of two from one address");
    assert_eq!(hits(admin, "connections_per_address"), 1);
    drop(from_outside);
    open(0);
    let from_here: Vec<Client> = (0..4).map(|_| server.connect()).collect();
    open(4);
    assert!(server.connect().is_ended(SOON), "a fifth of four");
    assert_eq!((hits(admin, "connections_per_address"), hits(admin, "connections")), (1, 1));
    drop(from_here);
    open(0);
    server.assert_serves();
}

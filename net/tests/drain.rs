//! Draining: from another thread, on both drivers; idle connections at once, busy ones in time,
//! stuck ones by force.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpStream;
use std::time::Duration;

use common::{DRIVERS, Server, eventually, limits};

#[test]
fn a_server_without_connections_stops_at_once_and_refuses_new_ones() {
    for driver in DRIVERS {
        let mut server = Server::start(driver, limits());
        server.connect().assert_open();
        eventually("closed", || server.shared.connections() == 0);
        assert!(server.stop() < Duration::from_millis(300));
        assert!(TcpStream::connect(server.address).is_err());
    }
}

#[test]
fn drained_before_it_began_it_returns() {
    for driver in DRIVERS {
        let mut server = Server::start(driver, limits());
        assert!(server.stop() < Duration::from_millis(300));
    }
}

#[test]
fn idle_connections_close_at_once_and_requests_in_flight_are_answered() {
    for driver in DRIVERS {
        let mut server = Server::start(driver, limits());
        let (mut idle, mut never, mut busy) = (server.connect(), server.connect(), server.connect());
        let (mut reading, mut heading) = (server.connect(), server.connect());
        heading.send("GET /head HTTP/1.1\r\nHo");
        idle.assert_open();
        reading.send("PUT /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\na");
        busy.get("/later?ms=250").get("/more");
        eventually("all there", || server.shared.connections() == 5);
        std::thread::sleep(Duration::from_millis(50));
        let drain = std::thread::spawn({
            let shared = server.shared.clone();
            move || shared.drain()
        });
        idle.assert_closed();
        never.assert_closed();
        heading.send("st: t\r\n\r\n");
        assert_eq!(heading.response().header("connection"), Some("close"));
        heading.assert_closed();
        reading.send("bc");
        let response = reading.response();
        assert_eq!((&response.body[..], response.header("connection")), (&b"abc"[..], Some("close")));
        reading.assert_closed();
        assert_eq!(busy.response().status, 200);
        assert_eq!(busy.response().text(), "GET /more ");
        busy.assert_closed();
        drain.join().unwrap();
        drop((idle, never, reading, heading, busy));
        assert!(server.stop() < Duration::from_millis(400));
        assert_eq!(server.shared.connections(), 0);
    }
}

#[test]
fn what_does_not_end_is_cut_off() {
    for driver in DRIVERS {
        let mut server = Server::start(driver, limits());
        let mut stuck = server.connect();
        stuck.get("/value?n=30000000");
        let mut endless = server.connect();
        endless.get("/stream?n=1000000&wait=5");
        eventually("both there", || server.shared.connections() == 2);
        std::thread::sleep(Duration::from_millis(50));
        let took = server.stop();
        assert!((500..1400).contains(&took.as_millis()), "{took:?}");
        assert_eq!(server.shared.connections(), 0);
    }
}

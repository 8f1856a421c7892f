//! One address cannot take all connections, or all requests in flight.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use common::{Client, DRIVERS, Server, eventually, limits};
use koltso_net::server::{Event, Limits};

fn on_both(limits: &Limits, test: impl Fn(&Server)) {
    for driver in DRIVERS {
        test(&Server::start(driver, limits.clone()));
    }
}

const OTHER: [u8; 4] = [127, 0, 0, 2];

#[test]
fn connections_of_one_address_past_its_limit_are_closed_and_others_get_in() {
    on_both(&Limits { loopback_max: 2, ..limits() }, |server| {
        let mut mine: Vec<Client> = (0..2).map(|_| server.connect()).collect();
        mine.iter_mut().for_each(Client::assert_open);
        assert!(server.connect().is_ended(), "a third of two connections");
        assert_eq!(server.seen.count(Event::AddressConnections), 1);
        assert_eq!(server.seen.count(Event::ConnectionLimit), 0);
        let mut others: Vec<Client> = (0..2).map(|_| server.connect_from(OTHER)).collect();
        others.iter_mut().for_each(Client::assert_open);
        mine.iter_mut().for_each(Client::assert_open);
        assert_eq!(server.shared.connections(), 4);
        mine.pop();
        eventually("a place", || server.shared.connections() == 3);
        server.connect().assert_open();
        assert!(server.connect_from(OTHER).is_ended());
    });
}

#[test]
fn an_address_of_this_machine_may_have_all_connections_unless_it_is_limited() {
    on_both(&Limits { connections_max: 4, address_max: 2, loopback_max: 4, ..limits() }, |server| {
        let mut mine: Vec<Client> = (0..4).map(|_| server.connect()).collect();
        mine.iter_mut().for_each(Client::assert_open);
        assert!(server.connect().is_ended());
        assert_eq!(server.seen.count(Event::ConnectionLimit), 1);
        assert_eq!(server.seen.count(Event::AddressConnections), 0);
    });
}

#[test]
fn requests_in_flight_of_one_address_past_its_limit_are_503_and_others_are_served() {
    on_both(&Limits { loopback_max: 2, ..limits() }, |server| {
        let (mut a, mut other) = (server.connect(), server.connect_from(OTHER));
        let begun = Instant::now();
        let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: t\r\n\r\n");
        let two = get("/later?ms=400").repeat(2);
        // In one piece, since a connection reads on only when it has answered.
        a.send(two.clone() + &get("/third"));
        let answered = [a.response(), a.response(), a.response()].map(|response| response.status);
        assert_eq!(answered, [200, 200, 503]);
        let mut b = server.connect();
        a.send(&two);
        eventually("two are in flight", || {
            b.get("/x");
            let response = b.response();
            assert!(response.status == 200 || response.header("retry-after") == Some("1"), "{response:?}");
            response.status == 503 && response.text().contains("2 requests of your address")
        });
        other.assert_open();
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert_eq!([a.response(), a.response()].map(|response| response.status), [200, 200]);
        b.assert_open();
        assert!(server.seen.count(Event::AddressRequests) >= 2);
        assert_eq!(server.seen.count(Event::Overloaded), 0);
        // However a connection ends, its requests are given back.
        a.send(&two);
        drop(a);
        eventually("gone", || server.shared.connections() == 2);
        b.assert_open();
    });
}

#[test]
fn addresses_of_ipv6_count_with_their_64() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        return koltso_testkit::skip("this machine has no ::1", koltso_testkit::Remedy::Machine("IPv6 on loopback"));
    };
    drop(listener);
    for driver in DRIVERS {
        let server = Server::start_at("[::1]:0".parse().unwrap(), driver, Limits { loopback_max: 1, ..limits() });
        let mut first = server.connect();
        first.assert_open();
        assert!(server.connect().is_ended());
        assert_eq!(server.seen.count(Event::AddressConnections), 1);
        first.assert_open();
    }
}

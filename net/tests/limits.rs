//! Every limit filled, over real sockets, and the counters at zero again afterwards.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read;
use std::time::{Duration, Instant};

use common::{Server, eventually, limits};
use koltso_net::server::{Event, Limits};

fn on_both(limits: &Limits, test: impl Fn(&Server)) {
    for driver in common::DRIVERS {
        test(&Server::start(driver, limits.clone()));
    }
}

fn short() -> Limits {
    Limits { request_timeout: Duration::from_millis(150), idle_timeout: Duration::from_millis(400), ..limits() }
}

#[test]
fn connections_past_the_limit_are_closed_at_accept_and_places_come_back() {
    on_both(&Limits { connections_max: 3, ..limits() }, |server| {
        let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
        clients.iter_mut().for_each(|client| client.assert_open());
        let mut fourth = server.connect();
        let mut byte = [0];
        assert!(matches!(fourth.socket.read(&mut byte), Ok(0) | Err(_)));
        assert_eq!(server.seen.count(Event::ConnectionLimit), 1);
        assert_eq!(server.shared.connections(), 3);
        clients.iter_mut().for_each(|client| client.assert_open());
        clients.pop();
        eventually("a place", || server.shared.connections() == 2);
        server.connect().assert_open();
    });
}

#[test]
fn a_head_over_the_limit_is_431() {
    on_both(&limits(), |server| {
        let mut client = server.connect();
        client.send(format!("GET / HTTP/1.1\r\nHost: t\r\nX: {}\r\n\r\n", "x".repeat(15_000)));
        assert_eq!(client.response().status, 200);
        client.send(format!("GET / HTTP/1.1\r\nHost: t\r\nX: {}", "x".repeat(100_000)));
        let response = client.response();
        assert_eq!(response.status, 431);
        assert!(response.text().contains("16384 bytes"));
        client.assert_closed();
        assert_eq!(server.seen.count(Event::HeaderTooLarge), 1);
    });
}

#[test]
fn a_request_that_dribbles_in_is_408() {
    on_both(&short(), |server| {
        for start in [
            "GET /abc",
            "PUT /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 500\r\n\r\nab",
            "PUT /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nab",
        ] {
            let mut client = server.connect();
            client.assert_open();
            let begun = Instant::now();
            client.send(start);
            // Progress does not help: the time counts from the first byte.
            let mut dribble = client.socket.try_clone().unwrap();
            let dribbling = std::thread::spawn(move || {
                for _ in 0..40 {
                    std::thread::sleep(Duration::from_millis(10));
                    let _ = std::io::Write::write_all(&mut dribble, b"x");
                }
            });
            let response = client.response();
            assert_eq!((response.status, response.header("connection")), (408, Some("close")));
            assert!(response.text().contains("150 ms"));
            assert_ne!(client.socket.read(&mut [0]).unwrap_or(0), 1);
            assert!((140..450).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
            dribbling.join().unwrap();
        }
        assert_eq!(server.seen.count(Event::RequestTimeout), 3);
        assert_eq!(server.seen.count(Event::IdleTimeout), 0);
    });
}

#[test]
fn idle_connections_are_closed_silently_and_busy_ones_are_not() {
    on_both(&short(), |server| {
        let (mut idle, mut busy, mut never) = (server.connect(), server.connect(), server.connect());
        idle.assert_open();
        for _ in 0..12 {
            busy.assert_open();
            std::thread::sleep(Duration::from_millis(50));
        }
        idle.assert_closed();
        never.assert_closed();
        busy.get("/later?ms=700");
        assert_eq!(busy.response().status, 200);
        busy.assert_open();
        assert_eq!(server.seen.count(Event::IdleTimeout), 2);
        assert_eq!(server.seen.count(Event::RequestTimeout), 0);
    });
}

#[test]
fn a_client_that_takes_nothing_of_its_answer_is_cut_off_and_one_that_is_slow_is_not() {
    on_both(&short(), |server| {
        let (mut stuck, mut slow) = (server.connect(), server.connect());
        stuck.get("/value?n=30000000");
        slow.get("/value?n=12000000");
        let (mut piece, mut total) = (vec![0; 600_000], 0);
        let begun = Instant::now();
        while total < 12_000_000 {
            total += slow.socket.read(&mut piece).unwrap();
            std::thread::sleep(Duration::from_millis(15));
        }
        assert!(begun.elapsed() > Duration::from_millis(300), "not slow: {:?}", begun.elapsed());
        eventually("cut off", || server.seen.count(Event::WriteTimeout) == 1);
        eventually("closed", || server.shared.connections() == 1);
        assert_eq!(server.seen.finished().len(), 1);
        drop(stuck);
    });
}

#[test]
fn requests_in_flight_past_the_limit_are_503_at_once() {
    on_both(&Limits { requests_in_flight_max: 2, ..limits() }, |server| {
        let (mut a, mut b, mut c) = (server.connect(), server.connect(), server.connect());
        a.get("/later?ms=300");
        b.get("/later?ms=300");
        std::thread::sleep(Duration::from_millis(50));
        let begun = Instant::now();
        c.get("/x");
        let response = c.response();
        assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
        assert!(begun.elapsed() < Duration::from_millis(200));
        c.send("PUT /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\n");
        assert_eq!(c.response().status, 503);
        c.send("abc");
        assert_eq!((a.response().status, b.response().status), (200, 200));
        c.assert_open();
        assert_eq!(server.seen.count(Event::Overloaded), 2);

        // Whatever way requests end, their places come back.
        a.get("/later?ms=30").get("/later?ms=30");
        drop(a);
        eventually("a gone", || server.shared.connections() == 2);
        b.get("/stream?n=50&wait=2");
        assert_eq!(b.response().body.len(), 50_000);
        b.get("/later").get("/later");
        assert_eq!((b.response().status, b.response().status), (200, 200));
        c.assert_open();
    });
}

#[test]
fn bodies_past_the_budget_are_503_and_the_budget_comes_back() {
    let budget = Limits { body_bytes_max: 100_000, body_max: 1_000_000, ..limits() };
    on_both(&budget, |server| {
        let put = |n: usize| format!("PUT /echo HTTP/1.1\r\nHost: t\r\nContent-Length: {n}\r\n\r\n");
        // What is here counts; what is only announced does not.
        let mut holder = server.connect();
        holder.send(put(90_000)).send(vec![b'x'; 89_000]);
        eventually("received", || server.seen.bytes_in() > 89_000);
        let mut other = server.connect();
        other.send(put(80_000)).send(vec![b'x'; 40_000]);
        let response = other.response();
        assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
        assert!(response.text().contains("100000 bytes"));
        let mut chunks = server.connect();
        chunks.send("PUT /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n");
        chunks.send(vec![b'x'; 65_535]);
        let response = chunks.response();
        assert_eq!((response.status, response.header("connection")), (503, Some("close")));
        chunks.assert_closed();
        drop(holder);
        eventually("gone", || server.shared.connections() <= 1);
        let mut again = server.connect();
        again.send(put(95_000)).send(vec![b'x'; 95_000]);
        assert_eq!(again.response().body.len(), 95_000);
        assert_eq!(server.seen.count(Event::Overloaded), 2);
    });
}

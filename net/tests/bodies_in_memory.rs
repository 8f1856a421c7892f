//! What bodies take of a core's memory: bytes count when they are here, and those who stop in the
//! middle do not keep others out.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Client, DRIVERS, Server, eventually, limits, pattern};
use koltso_net::server::{Event, Limits};

fn on_both(limits: &Limits, test: impl Fn(&Server)) {
    for driver in DRIVERS {
        test(&Server::start(driver, limits.clone()));
    }
}

fn put(length: usize) -> String {
    format!("PUT /echo HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\n")
}

const CHUNKED: &str = "PUT /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn bodies_that_are_only_announced_keep_nobody_out() {
    on_both(&limits(), |server| {
        let silent: Vec<Client> = (0..34)
            .map(|index| {
                let mut client = server.connect();
                client.send(if index % 2 == 0 { put(16 << 20) } else { format!("{CHUNKED}1000000\r\n") });
                client
            })
            .collect();
        eventually("all are admitted", || *server.seen.admitted.lock().unwrap() == silent.len());
        let mut other = server.connect();
        for size in [20_000, 1_000_000, 16 << 20] {
            let body = pattern(size);
            other.send(put(size)).send(&body);
            let response = other.response();
            assert!(response.status == 200 && response.body == body, "{size}: {}", response.status);
        }
        assert_eq!(server.seen.count(Event::Overloaded), 0);
    });
}

#[test]
fn bodies_that_stop_half_way_give_way_to_those_that_go_on() {
    on_both(&Limits { body_bytes_max: 1_000_000, request_timeout: Duration::from_secs(60), ..limits() }, |server| {
        let mut stopped: Vec<Client> = (0..3)
            .map(|index| {
                let mut client = server.connect();
                if index == 0 {
                    client.send(CHUNKED).send("493e0\r\n").send(pattern(290_000));
                } else {
                    client.send(put(400_000)).send(pattern(290_000));
                }
                client
            })
            .collect();
        eventually("received", || server.seen.bytes_in() > 870_000);
        let body = pattern(500_000);
        let begun = Instant::now();
        koltso_testkit::eventually("another one is served", Duration::from_secs(30), || {
            let mut other = server.connect();
            other.send(put(body.len())).send(&body);
            let response = other.response();
            assert!(response.status == 200 || response.header("retry-after") == Some("1"), "{}", response.status);
            response.status == 200 && response.body == body
        });
        assert!(begun.elapsed() < Duration::from_secs(30), "long before --request-timeout");
        let mut gave_way = 0;
        for client in &mut stopped {
            if let Some(response) = client.response_if_any() {
                assert_eq!(response.status, 503);
                assert!(response.text().contains("Nothing of the body came"), "{}", response.text());
                gave_way += 1;
            }
        }
        assert!((1..=2).contains(&gave_way), "{gave_way} of three gave way to one");
    });
}

#[test]
fn a_body_that_goes_on_is_not_ended_for_others() {
    on_both(&Limits { body_bytes_max: 100_000, request_timeout: Duration::from_secs(60), ..limits() }, |server| {
        let mut holder = server.connect();
        let body = pattern(95_000);
        holder.send(put(body.len())).send(&body[..60_000]);
        eventually("received", || server.seen.bytes_in() > 60_000);
        let begun = Instant::now();
        let mut sent = 60_000;
        while begun.elapsed() < Duration::from_secs(5) {
            holder.send(&body[sent..sent + 250]);
            sent += 250;
            let mut other = server.connect();
            other.send(put(80_000));
            assert_eq!(other.response().status, 503);
            std::thread::sleep(Duration::from_millis(50));
        }
        holder.send(&body[sent..]);
        assert!(holder.response().body == body);
        let mut other = server.connect();
        other.send(put(80_000)).send(pattern(80_000));
        assert_eq!(other.response().status, 200);
    });
}

#[test]
fn what_comes_slower_than_the_least_rate_is_408() {
    on_both(&Limits { request_timeout: Duration::from_secs(120), ..limits() }, |server| {
        let begun = Instant::now();
        let mut clients: Vec<Client> = ["GET /abc", &put(100_000), &format!("{CHUNKED}fffff\r\n")]
            .iter()
            .map(|start| {
                let mut client = server.connect();
                client.send(start);
                client
            })
            .collect();
        let mut honest = server.connect();
        let body = pattern(100_000);
        honest.send(put(body.len()));
        let mut sent = 0;
        while server.seen.count(Event::SlowRequest) < clients.len() {
            assert!(begun.elapsed() < Duration::from_secs(60), "never");
            for client in &mut clients {
                // The last ones may meet an end.
                let _ = std::io::Write::write_all(&mut client.socket, b"x");
            }
            honest.send(&body[sent..sent + 300]);
            sent += 300;
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(begun.elapsed() >= Duration::from_secs(5), "{:?}", begun.elapsed());
        for client in &mut clients {
            let response = client.response();
            assert_eq!((response.status, response.header("connection")), (408, Some("close")));
            assert!(response.text().contains("1024 bytes a second"), "{}", response.text());
        }
        honest.send(&body[sent..]);
        assert!(honest.response().body == body, "6 kB a second are enough");
        assert_eq!(server.seen.count(Event::RequestTimeout), 0);
    });
}

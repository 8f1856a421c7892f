//! Streamed bodies: both framings, fairness, waiting, aborting.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read;
use std::time::{Duration, Instant};

use common::{Server, eventually, limits};

fn on_both(test: impl Fn(&Server)) {
    for driver in common::DRIVERS {
        test(&Server::start(driver, limits()));
    }
}

#[test]
fn a_stream_is_chunked_or_delimited_by_the_end() {
    on_both(|server| {
        let mut client = server.connect();
        client.get("/stream?n=300&size=5001").get("/after");
        let response = client.response();
        assert_eq!(response.header("transfer-encoding"), Some("chunked"));
        assert_eq!(response.body, vec![b'x'; 300 * 5001]);
        assert_eq!(client.response().text(), "GET /after ");

        let mut client = server.connect();
        client.send("GET /stream?n=300&size=5001 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let response = client.response();
        assert_eq!(response.header("connection"), Some("close"));
        assert_eq!(response.body, vec![b'x'; 300 * 5001]);
    });
}

#[test]
fn a_slow_reader_and_a_fast_one_leave_turns_to_others() {
    on_both(|server| {
        let mut slow = server.connect();
        slow.get("/stream?n=2000&size=50000");
        let mut fast = server.connect();
        fast.get("/stream?n=20000&size=50000");
        let reader = std::thread::spawn(move || {
            let (mut buffer, mut total) = (vec![0; 1 << 20], 0_usize);
            while total < 1_000_000_000 {
                total += fast.socket.read(&mut buffer).unwrap();
            }
        });
        std::thread::sleep(Duration::from_millis(20));
        let mut client = server.connect();
        let begun = Instant::now();
        let mut asked = 0;
        // A timer has to fire too while the core is never idle.
        while !reader.is_finished() && asked < 20 {
            client.get("/later?ms=2");
            assert_eq!(client.response().status, 200);
            asked += 1;
        }
        assert!(asked > 3, "only {asked} answers while the fast reader read");
        assert!(begun.elapsed() / asked < Duration::from_millis(150), "{:?}", begun.elapsed() / asked);
        reader.join().unwrap();
        drop(slow);
    });
}

#[test]
fn a_source_that_waits_sends_what_it_has_before() {
    on_both(|server| {
        let mut client = server.connect();
        let begun = Instant::now();
        client.get("/stream?n=4&size=10&wait=60");
        let mut buffer = [0; 4096];
        let n = client.socket.read(&mut buffer).unwrap();
        assert!(buffer[..n].ends_with(b"a\r\nxxxxxxxxxx\r\n"), "{}", buffer[..n].escape_ascii());
        assert!(begun.elapsed() < Duration::from_millis(55));
        let mut rest = Vec::new();
        while !rest.ends_with(b"0\r\n\r\n") {
            let n = client.socket.read(&mut buffer).unwrap();
            rest.extend_from_slice(&buffer[..n]);
        }
        assert!(begun.elapsed() > Duration::from_millis(200));
        client.assert_open();
    });
}

#[test]
fn an_aborted_stream_cannot_be_taken_for_a_whole_one() {
    on_both(|server| {
        let mut client = server.connect();
        client.get("/stream?n=2&size=10&abort=1");
        let mut all = Vec::new();
        client.socket.read_to_end(&mut all).unwrap();
        assert!(all.ends_with(b"x\r\n") && !all.ends_with(b"0\r\n\r\n"));

        let mut client = server.connect();
        client.send("GET /stream?n=2&size=10&abort=1 HTTP/1.0\r\n\r\n");
        let error = client.socket.read_to_end(&mut all).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        eventually("closed", || server.shared.connections() == 0);
        assert!(server.seen.finished().is_empty());
    });
}

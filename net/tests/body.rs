//! Request bodies over real sockets: in the buffer, collected, chunked, expected, refused.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Server, eventually, limits, pattern};
use koltso_net::server::{Event, Limits};

fn on_both(limits: &Limits, test: impl Fn(&Server)) {
    for driver in common::DRIVERS {
        test(&Server::start(driver, limits.clone()));
    }
}

fn put(path: &str, headers: &str) -> String {
    format!("PUT {path} HTTP/1.1\r\nHost: t\r\n{headers}\r\n\r\n")
}

#[test]
fn bodies_of_every_size_come_back_whole_and_the_next_request_is_found() {
    on_both(&limits(), |server| {
        let mut client = server.connect();
        for size in [1, 4000, 4096, 5000, 65_535, 65_536, 65_537, 200_000, 3_000_000] {
            let body = pattern(size);
            client.get("/before").send(put("/echo", &format!("Content-Length: {size}"))).send(&body);
            let mut writer = client.socket.try_clone().unwrap();
            assert_eq!(client.response().status, 200);
            assert!(client.response().body == body, "{size}");
            std::io::Write::write_all(&mut writer, b"GET /after HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
            assert_eq!(client.response().text(), "GET /after ");
        }
    });
}

#[test]
fn chunked_bodies_of_every_size_and_what_follows_in_the_same_segment() {
    on_both(&limits(), |server| {
        let mut client = server.connect();
        for (size, chunk) in [(0, 1), (1, 1), (3000, 7), (100_000, 1000), (2_000_000, 70_001)] {
            let body = pattern(size);
            let mut bytes = put("/echo", "Transfer-Encoding: chunked").into_bytes();
            for piece in body.chunks(chunk) {
                bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                bytes.extend_from_slice(piece);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\nGET /after HTTP/1.1\r\nHost: t\r\n\r\n");
            client.send(bytes);
            assert!(client.response().body == body, "{size} by {chunk}");
            assert_eq!(client.response().text(), "GET /after ");
        }
    });
}

#[test]
fn an_answer_that_comes_later_is_not_lost_to_what_follows_its_body() {
    on_both(&limits(), |server| {
        // The first request of the core: no buffer has been used before.
        let mut client = server.connect();
        client.send(put("/later?ms=20", "Transfer-Encoding: chunked") + "5\r\nhel");
        std::thread::sleep(Duration::from_millis(30));
        client.send("lo\r\n0\r\n\r\nGET /after HTTP/1.1\r\nHost: t\r\n\r\n");
        assert_eq!(client.response().text(), "PUT /later ms=20");
        assert_eq!(client.response().text(), "GET /after ");
    });
}

#[test]
fn continue_is_sent_only_to_a_client_that_waits_and_after_earlier_answers() {
    on_both(&limits(), |server| {
        let expecting = put("/echo", "Expect: 100-continue\r\nContent-Length: 5");
        let mut client = server.connect();
        client.send(format!("GET /first HTTP/1.1\r\nHost: t\r\n\r\n{expecting}"));
        assert_eq!(client.response().text(), "GET /first ");
        assert_eq!(client.response().status, 100);
        client.send("hello");
        assert_eq!(client.response().body, b"hello");

        client.send(format!("{expecting}he"));
        std::thread::sleep(Duration::from_millis(30));
        client.send("llo");
        let response = client.response();
        assert_eq!((response.status, &response.body[..]), (200, &b"hello"[..]));
        client.assert_open();
    });
}

#[test]
fn a_refused_body_is_read_over_if_it_is_small_and_closes_otherwise() {
    on_both(&limits(), |server| {
        let mut client = server.connect();
        client.send(put("/refuse", "Content-Length: 60000"));
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (401, None));
        client.send(vec![b'x'; 60_000]).assert_open();
        eventually("both finished", || server.seen.finished() == [77, 0]);

        client.send(put("/refuse", "Content-Length: 5\r\nExpect: 100-continue"));
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (401, Some("close")));
        client.assert_closed();

        let mut client = server.connect();
        client.send(put("/refuse", "Content-Length: 1000000")).send(vec![b'x'; 500_000]);
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (401, Some("close")));
        client.assert_closed();
    });
}

#[test]
fn admit_is_not_asked_when_the_body_is_here() {
    on_both(&limits(), |server| {
        let mut client = server.connect();
        client.send(put("/refuse", "Content-Length: 3") + "abc");
        assert_eq!(client.response().body, b"abc");
        assert_eq!(*server.seen.admitted.lock().unwrap(), 0);
        client.send(put("/echo", "Content-Length: 3"));
        eventually("asked", || *server.seen.admitted.lock().unwrap() == 1);
        client.send("abc");
        assert_eq!(client.response().body, b"abc");
    });
}

#[test]
fn a_body_over_the_limit_is_413_and_the_client_sees_it_though_it_goes_on_sending() {
    let limits = Limits { body_max: 1000, ..limits() };
    on_both(&limits, |server| {
        let mut client = server.connect();
        client.send(put("/echo", "Content-Length: 1000")).send(pattern(1000));
        assert_eq!(client.response().body, pattern(1000));

        client.send(put("/echo", "Content-Length: 1001")).send(vec![b'x'; 600_000]);
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (413, Some("close")));
        assert!(response.text().contains("1001 bytes") && response.text().contains("1000 bytes"));
        client.assert_closed();

        let mut client = server.connect();
        client.send(put("/echo", "Transfer-Encoding: chunked")).send("3e8\r\n").send(pattern(1000));
        std::thread::sleep(Duration::from_millis(20));
        client.send("\r\n1\r\n").send(vec![b'x'; 300_000]);
        let response = client.response();
        assert_eq!(response.status, 413);
        assert!(response.text().contains("1000 bytes"));
        client.assert_closed();
        assert_eq!(server.seen.count(Event::BodyTooLarge), 2);
    });
}

#[test]
fn bad_chunks_are_400() {
    on_both(&limits(), |server| {
        let mut client = server.connect();
        client.send(put("/echo", "Transfer-Encoding: chunked") + "3\r\nabcd\r\n0\r\n\r\n");
        assert_eq!(client.response().status, 400);
        client.assert_closed();
        let mut client = server.connect();
        client.send(put("/echo", "Transfer-Encoding: chunked") + "3\r\nab");
        std::thread::sleep(Duration::from_millis(20));
        client.send("c\r\nzz\r\n");
        assert_eq!(client.response().status, 400);
        client.assert_closed();
    });
}

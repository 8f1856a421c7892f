//! The connection loop over real sockets: order, batches, versions, hand-off.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use common::{Server, eventually, limits, pattern};
use koltso_net::server::Event;

fn on_both(test: impl Fn(&Server)) {
    for driver in common::DRIVERS {
        test(&Server::start(driver, limits()));
    }
}

#[test]
fn pipelined_answers_keep_the_order_whatever_their_kind() {
    on_both(|server| {
        let targets = [
            "/a",
            "/later?ms=60",
            "/value?n=100000",
            "/b",
            "/later?n=5000&ms=1",
            "/stream?n=5&size=700",
            "/c",
            "/later?x=1",
            "/value?n=0",
            "/echo",
            "/later?ms=30&y=1",
            "/stream?n=0",
            "/z",
        ];
        let all: String = targets
            .iter()
            .enumerate()
            .map(|(tag, target)| {
                let and = if target.contains('?') { '&' } else { '?' };
                format!("GET {target}{and}tag={tag} HTTP/1.1\r\nHost: t\r\n\r\n")
            })
            .collect();
        let mut client = server.connect();
        client.send(all);
        for (tag, target) in targets.iter().enumerate() {
            let response = client.response();
            assert_eq!(response.status, 200);
            assert!(response.header("date").is_some_and(|date| date.len() == 29));
            match *target {
                "/value?n=100000" => assert_eq!(response.body, pattern(100_000)),
                "/later?n=5000&ms=1" => assert_eq!(response.body, pattern(5000)),
                "/stream?n=5&size=700" => assert_eq!(response.body, vec![b'x'; 3500]),
                "/value?n=0" | "/echo" | "/stream?n=0" => assert_eq!(response.body, b""),
                target => {
                    let path = target.split('?').next().unwrap();
                    assert!(response.text().starts_with(&format!("GET {path} ")), "{}", response.text());
                    assert!(response.text().ends_with(&format!("tag={tag}")), "{}", response.text());
                }
            }
        }
        client.assert_open();
        eventually("all finished", || server.seen.finished().len() == targets.len() + 1);
        let expected: Vec<u16> =
            (0..13_u16).map(|tag| if [1, 4, 7, 10].contains(&tag) { tag + 1000 } else { tag }).chain([0]).collect();
        assert_eq!(server.seen.finished(), expected);
    });
}

#[test]
fn a_request_may_come_byte_by_byte() {
    on_both(|server| {
        let mut client = server.connect();
        let bytes = b"\r\nPUT /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n2\r\nde\r\n0\r\nT: t\r\n\r\nPUT /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\nwxyz";
        for byte in bytes {
            client.send([*byte]);
            std::thread::sleep(Duration::from_micros(300));
        }
        assert_eq!(client.response().body, b"abcde");
        assert_eq!(client.response().body, b"wxyz");
        client.assert_open();
    });
}

#[test]
fn large_pipelined_answers_are_not_all_held_at_once() {
    on_both(|server| {
        let mut client = server.connect();
        let count = 60;
        client.send("GET /value?n=300000 HTTP/1.1\r\nHost: t\r\n\r\n".repeat(count));
        for _ in 0..count {
            assert_eq!(client.response().body.len(), 300_000);
        }
        client.assert_open();
    });
}

#[test]
fn many_small_pipelined_requests() {
    on_both(|server| {
        let mut client = server.connect();
        let mut writer = client.socket.try_clone().unwrap();
        let count = 20_000;
        let sender = std::thread::spawn(move || {
            for block in 0..count / 100 {
                let text: String =
                    (0..100).map(|at| format!("GET /p?{} HTTP/1.1\r\nHost: t\r\n\r\n", block * 100 + at)).collect();
                writer.write_all(text.as_bytes()).unwrap();
            }
        });
        for at in 0..count {
            assert_eq!(client.response().text(), format!("GET /p {at}"));
        }
        sender.join().unwrap();
    });
}

#[test]
fn a_slow_reader_of_a_large_value_gets_all_of_it_and_delays_nobody() {
    on_both(|server| {
        let mut slow = server.connect();
        slow.get("/value?n=10000000");
        let begun = Instant::now();
        for _ in 0..50 {
            server.connect().assert_open();
        }
        assert!(begun.elapsed() < Duration::from_secs(2));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(slow.response().body, pattern(10_000_000));
        slow.assert_open();
    });
}

#[test]
fn head_requests_get_no_body() {
    on_both(|server| {
        let mut client = server.connect();
        for (target, length) in [("/echo", "0"), ("/value?n=9000", "9000"), ("/later?n=700", "700")] {
            client.send(format!("HEAD {target} HTTP/1.1\r\nHost: t\r\n\r\n"));
            let response = client.response_to(true);
            assert_eq!(response.header("content-length"), Some(length), "{target}");
        }
        client.send("HEAD /stream?n=3 HTTP/1.1\r\nHost: t\r\n\r\n");
        assert_eq!(client.response_to(true).header("transfer-encoding"), Some("chunked"));
        client.assert_open();
    });
}

#[test]
fn connections_close_when_either_side_says_so() {
    on_both(|server| {
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
        assert_eq!(client.response().header("connection"), Some("close"));
        client.assert_closed();

        let mut client = server.connect();
        client.send("GET / HTTP/1.0\r\n\r\n");
        assert_eq!(client.response().header("connection"), Some("close"));
        client.assert_closed();

        let mut client = server.connect();
        client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(client.response().header("connection"), Some("keep-alive"));
        client.assert_open();

        let mut client = server.connect();
        client.get("/close");
        assert_eq!(client.response().header("connection"), Some("close"));
        client.assert_closed();
    });
}

#[test]
fn a_half_closed_client_gets_its_answers() {
    on_both(|server| {
        let mut client = server.connect();
        client.get("/later?ms=30").get("/b");
        client.socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(client.response().status, 200);
        assert_eq!(client.response().text(), "GET /b ");
        client.assert_closed();
    });
}

#[test]
fn malformed_requests_are_answered_after_the_good_ones_and_close() {
    on_both(|server| {
        let mut client = server.connect();
        client.get("/good").send("GET /bad HTTP/1.1\r\n\r\nGET /never HTTP/1.1\r\nHost: t\r\n\r\n");
        assert_eq!(client.response().text(), "GET /good ");
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (400, Some("close")));
        assert!(response.text().contains("0 Host headers"));
        client.assert_closed();
        assert_eq!(server.seen.count(Event::BadRequest), 1);
    });
}

#[test]
fn end_of_input_in_a_request_closes_silently() {
    on_both(|server| {
        for bytes in ["GET / HT", "PUT /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\nab"] {
            let mut client = server.connect();
            client.send(bytes);
            client.socket.shutdown(std::net::Shutdown::Write).unwrap();
            client.assert_closed();
        }
        eventually("both closed", || server.seen.count(Event::Closed) == 2);
        assert_eq!(server.shared.connections(), 0);
    });
}

#[test]
fn hand_off_gives_the_socket_and_every_byte_from_its_request_on() {
    on_both(|server| {
        let request = "GET /hand-off?q HTTP/1.1\r\nHost: t\r\n\r\nGET /next HT";
        let chunked = "PUT /hand-off HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n";
        let early = "PUT /hand-off-early HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\nabc";
        let whole = format!("{chunked}3\r\nabc\r\n0\r\n\r\nrest");
        for bytes in [request, early, &whole] {
            let mut client = server.connect();
            client.get("/before").get("/later?ms=5").send(bytes);
            assert_eq!(client.response().text(), "GET /before ");
            assert_eq!(client.response().status, 200);
            eventually("handed off", || !server.seen.handed_off.lock().unwrap().is_empty());
            let (mut socket, read) = server.seen.handed_off.lock().unwrap().pop().unwrap();
            assert_eq!(read.escape_ascii().to_string(), bytes.as_bytes().escape_ascii().to_string());
            eventually("no longer counted", || server.shared.connections() == 0);

            socket.set_nonblocking(false).unwrap();
            client.send("later bytes");
            let mut came = [0; 11];
            socket.read_exact(&mut came).unwrap();
            assert_eq!(&came, b"later bytes");
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").unwrap();
            assert_eq!(client.response().text(), "hi");
        }
    });
}

#[test]
fn hand_off_of_a_collected_chunked_body_frames_it_again() {
    on_both(|server| {
        let head = "PUT /hand-off HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut client = server.connect();
        client.send(head).send("3\r\nabc\r\n");
        std::thread::sleep(Duration::from_millis(20));
        client.send("2\r\nde\r\n0\r\n\r\nrest");
        eventually("handed off", || !server.seen.handed_off.lock().unwrap().is_empty());
        let (_, read) = server.seen.handed_off.lock().unwrap().pop().unwrap();
        assert_eq!(String::from_utf8(read).unwrap(), format!("{head}5\r\nabcde\r\n0\r\n\r\nrest"));
    });
}

#[test]
fn a_request_that_changes_something_waits_for_those_before_it_and_those_behind_it_for_it() {
    on_both(|server| {
        let pause = 60;
        for (methods, waits) in [("GET PUT", 2), ("PUT GET", 2), ("PUT DELETE", 2), ("GET GET PUT GET", 3)] {
            let batch: String = methods
                .split(' ')
                .map(|method| format!("{method} /later?ms={pause} HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n"))
                .collect();
            let begun = Instant::now();
            let mut client = server.connect();
            client.send(batch);
            for method in methods.split(' ') {
                let response = client.response();
                assert!(response.text().starts_with(method), "{methods}: {}", response.text());
            }
            let least = Duration::from_millis(pause * waits);
            assert!(begun.elapsed() >= least, "{methods}: {:?} for {waits} waits", begun.elapsed());
        }
    });
}

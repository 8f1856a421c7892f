//! An answer that comes before its request has been read is never lost: the server closes in stages
//! (RFC 9112 section 9.6).

use std::io::Read;
use std::time::Duration;

use koltso_testkit::client::{put_bytes, request_bytes};
use koltso_testkit::{Server, entity};

const ROUNDS: usize = 10;

/// Writes all of a request before it reads anything, as most clients do, over and over.
#[track_caller]
fn assert_always(server: &Server, request: &[u8], status: u16, what: &str) {
    for round in 0..ROUNDS {
        let mut client = server.connect();
        client.send(request).unwrap_or_else(|e| panic!("{what}, round {round}: the request could not be written: {e}"));
        client.read("PUT").expect(status, &format!("{what}, round {round}"));
        assert!(client.is_ended(Duration::from_secs(5)), "{what}, round {round}: the connection stays open");
    }
}

#[test]
fn a_refusal_before_the_body_was_read_is_never_lost() {
    let mut server = Server::fresh("");
    let six = vec![b'v'; 6 << 20];
    assert_always(&server, &request_bytes("PUT", "/v0/entity?id=", &[], Some(&six)), 400, "a bad id with 6 MiB");
    assert_always(&server, &request_bytes("POST", &entity("a"), &[], Some(&six)), 405, "a method that is not there");
    assert_always(&server, &request_bytes("PUT", "/status", &[], Some(&six)), 405, "the control plane");
    let upgrade = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABk")];
    let as_java = request_bytes("PUT", "/status", &upgrade, Some(&six));
    assert_always(&server, &as_java, 405, "the control plane, which is offered HTTP/2");
    assert_always(&server, &request_bytes("PUT", &entity("a"), &[("If-Match", "*")], Some(&six)), 501, "a condition");
    assert_always(&server, &request_bytes("PUT", &entity("a"), &[("Host", "b")], Some(&six)), 400, "two hosts");
    let chunked = [
        &b"PUT /v0/entity?id= HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n600000\r\n"[..],
        &six,
        b"\r\n0\r\n\r\n",
    ]
    .concat();
    assert_always(&server, &chunked, 400, "a bad id with 6 MiB in chunks");
    server.assert_serves();
}

#[test]
fn a_value_that_is_too_large_is_413_also_for_clients_that_do_not_ask() {
    let server = Server::fresh("");
    assert_always(&server, &put_bytes("a", &vec![b'v'; (16 << 20) + 1]), 413, "16 MiB and a byte");
    let server = Server::fresh("--max-value 32MiB");
    assert_always(&server, &put_bytes("a", &vec![b'v'; (32 << 20) + 1]), 413, "32 MiB and a byte");
}

#[test]
fn an_overloaded_server_says_so_also_to_clients_that_do_not_ask() {
    let server = Server::fresh("--max-in-flight-bytes 1MiB --threads 1");
    assert_always(&server, &put_bytes("a", &vec![b'v'; 12 << 20]), 503, "12 MiB where 1 MiB may be in flight");
}

#[test]
fn what_comes_after_a_request_that_closes_destroys_no_answer() {
    let server = Server::fresh("");
    let value = vec![b'v'; 1 << 20];
    server.connect().store("large", &value);
    let close = [("Connection", "close")];
    let requests = [
        (request_bytes("GET", &entity("large"), &close, None), "HTTP/1.1"),
        (format!("GET {} HTTP/1.0\r\n\r\n", entity("large")).into_bytes(), "HTTP/1.0"),
        (request_bytes("GET", "/v0/entities?start=a", &close, None), "a range"),
        (b"GET /v0/entities?start=a HTTP/1.0\r\n\r\n".to_vec(), "a range over HTTP/1.0"),
        (request_bytes("GET", "/debug/pprof/", &close, None), "the control plane"),
    ];
    for (request, what) in requests {
        for round in 0..ROUNDS {
            let mut client = server.connect();
            client.send(&request).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            client.send(b"\r\n").unwrap();
            std::thread::sleep(Duration::from_millis(20));
            let answer = client.read("GET").expect(200, &format!("{what}, round {round}"));
            assert!(what == "the control plane" || answer.body.ends_with(&value), "{what}, round {round}: it is cut");
        }
    }
}

#[test]
fn a_slow_reader_gets_all_of_an_answer_that_closes() {
    let server = Server::fresh("");
    let value = vec![b'v'; 4 << 20];
    server.connect().store("large", &value);
    let mut client = server.connect();
    client.send(&request_bytes("GET", &entity("large"), &[("Connection", "close")], None)).unwrap();
    // Longer than the server waits for a client that is silent.
    std::thread::sleep(Duration::from_millis(2500));
    assert!(client.read("GET").expect(200, "GET").body == value);
}

#[test]
fn a_client_that_never_stops_sending_is_cut_off() {
    let mut server = Server::fresh("--request-timeout 2s");
    let mut client = server.connect();
    client.send(b"PUT /v0/entity?id= HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n").unwrap();
    let piece = vec![b'v'; 64 << 10];
    let mut sent = 0_usize;
    while client.send(&piece).is_ok() {
        sent += piece.len();
        assert!(sent < 1 << 30, "a server that refused goes on reading");
    }
    let _ = client.stream().read(&mut [0; 10]);
    // One that dribbles is cut off, too.
    let mut client = server.connect();
    client.send(b"PUT /v0/entity?id= HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n").unwrap();
    client.read("PUT").expect(400, "a bad id");
    let begun = std::time::Instant::now();
    while client.send(b"v").is_ok() {
        std::thread::sleep(Duration::from_millis(100));
        assert!(begun.elapsed() < Duration::from_secs(10), "a client that dribbles holds its connection");
    }
    server.assert_serves();
}

//! What two readers of one stream could understand differently.

use std::time::Duration;

use crate::send_what_goes;
use koltso_testkit::client::get_bytes;
use koltso_testkit::{Server, entity};

/// The request that must never be executed, hidden in a body or behind broken framing.
fn smuggled(key: &str) -> String {
    format!("PUT /v0/entity?id={key} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nX")
}

#[test]
fn conflicting_lengths_are_refused_and_nothing_is_smuggled() {
    let mut server = Server::fresh("");
    // Headers about the body's length, and the statuses that are right.
    let shapes: &[(&str, &[u16])] = &[
        ("Content-Length: 5\r\nContent-Length: 5", &[400]),
        ("Content-Length: 5\r\nContent-Length: 6", &[400]),
        ("Content-Length: 5\r\ncontent-length: 0", &[400]),
        ("Content-Length: 5, 5", &[400]),
        ("Content-Length: 5,6", &[400]),
        ("Content-Length: +5", &[400]),
        ("Content-Length: -5", &[400]),
        ("Content-Length: 0x5", &[400]),
        ("Content-Length: 5 5", &[400]),
        ("Content-Length: 5a", &[400]),
        ("Content-Length: 5.0", &[400]),
        ("Content-Length: five", &[400]),
        ("Content-Length:", &[400]),
        ("Content-Length: 18446744073709551616", &[400, 413]),
        ("Content-Length: 18446744073709551621", &[400, 413]),
        ("Content-Length: 99999999999999999999999999999999", &[400, 413]),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", &[400]),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", &[400]),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0", &[400]),
        ("Content-Length: 5\r\nTransfer-Encoding: identity", &[400, 501]),
        ("Transfer-Encoding: identity", &[501]),
        ("Transfer-Encoding: gzip, chunked", &[501]),
        ("Transfer-Encoding: chunked, gzip", &[400, 501]),
        ("Transfer-Encoding: chunked, chunked", &[400, 501]),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", &[400, 501]),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", &[400, 501]),
        ("Transfer-Encoding: xchunked", &[501]),
        ("Transfer-Encoding: chunke", &[501]),
        ("Transfer-Encoding: \"chunked\"", &[400, 501]),
        ("Transfer-Encoding: chunked;q=1", &[400, 501]),
        ("Transfer-Encoding:", &[400, 501]),
        ("Transfer-Encoding : chunked", &[400]),
        ("Content-Length : 5", &[400]),
        ("Content-Length\t: 5", &[400]),
        ("Transfer-Encoding: \x0bchunked", &[400, 501]),
        ("Transfer-Encoding: chunked\x0b", &[400, 501]),
        ("X: 1\r\n Content-Length: 5", &[400]),
        ("X: 1\r\n\tTransfer-Encoding: chunked", &[400]),
        (" Content-Length: 5", &[400]),
        ("X: a\rContent-Length: 5", &[400]),
        ("X: a\0b\r\nContent-Length: 5", &[400]),
        ("X\0: a\r\nContent-Length: 5", &[400]),
        (": empty name\r\nContent-Length: 5", &[400]),
        ("no colon at all\r\nContent-Length: 5", &[400]),
        ("Content Length: 5", &[400]),
    ];
    for (index, (headers, statuses)) in shapes.iter().enumerate() {
        let key = format!("smuggled-{index}");
        // Read as five bytes, as chunks or as nothing, another request follows; only a close is
        // safe.
        let bytes = format!(
            "PUT /v0/entity?id=outer-{index} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n0\r\n\r\n{}",
            smuggled(&key),
        );
        let mut client = server.connect();
        send_what_goes(&mut client, bytes.as_bytes());
        let answers = client.read_all();
        let first = answers.first().unwrap_or_else(|| panic!("{headers:?}: no answer"));
        assert!(statuses.contains(&first.status), "{headers:?}: {} {}", first.status, first.text());
        assert_eq!(answers.len(), 1, "{headers:?}: the connection went on after it");
        assert!(client.is_ended(Duration::from_secs(1)), "{headers:?}: the connection stays open");
        server.ask("GET", &entity(&key)).expect(404, &format!("the smuggled request behind {headers:?}"));
        server
            .ask("GET", &entity(format!("outer-{index}")))
            .expect(404, &format!("the refused request of {headers:?}"));
    }
    server.assert_serves();
}

#[test]
fn a_body_is_never_taken_for_a_request() {
    let mut server = Server::fresh("--max-value 100KiB");
    server.connect().store("present", "v");
    // Requests whose body nobody wants, or that are refused: the body is read as a body, or the
    // connection ends.
    let cases: &[(&str, &str, &str, u16)] = &[
        ("GET", "/v0/entity?id=present", "", 200),
        ("HEAD", "/v0/entity?id=present", "", 200),
        ("GET", "/v0/entity?id=absent", "", 404),
        ("DELETE", "/v0/entity?id=absent", "", 202),
        ("PUT", "/v0/entity?id=", "", 400),
        ("PUT", "/v0/entity?id=a&ack=7", "", 400),
        ("PUT", "/nowhere", "", 400),
        ("POST", "/v0/entity?id=a", "", 405),
        ("PUT", "/v0/entities?start=a", "", 405),
        ("PUT", "/health", "", 405),
        ("PUT", "/status", "", 405),
        ("GET", "/health", "", 200),
        ("GET", "/status", "", 200),
        ("GET", "/metrics", "", 200),
        ("GET", "/v0/entities?start=a", "", 200),
        ("PUT", "/v0/entity?id=a", "Expect: something\r\n", 417),
        ("GET", "/v0/entity?id=present", "If-None-Match: *\r\n", 304),
    ];
    for (index, (method, target, headers, status)) in cases.iter().enumerate() {
        for chunked in [false, true] {
            let key = format!("smuggled-{index}-{chunked}");
            let hidden = smuggled(&key);
            let framed = if chunked {
                format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len())
            } else {
                format!("Content-Length: {}\r\n\r\n{hidden}", hidden.len())
            };
            let mut client = server.connect();
            let bytes = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{headers}{framed}");
            send_what_goes(&mut client, bytes.as_bytes());
            send_what_goes(&mut client, &get_bytes("present"));
            client.end_sending();
            let what = format!("{method} {target}, chunked: {chunked}");
            client.read(method).expect(*status, &what);
            let after = client.read_all();
            assert!(after.len() <= 1, "{what}: {} answers to what follows", after.len());
            if let Some(answer) = after.first() {
                assert_eq!((answer.status, &answer.body[..]), (200, &b"v"[..]), "{what}: the request after the body");
            }
            server.ask("GET", &entity(&key)).expect(404, &what);
        }
    }
    server.assert_serves();
}

#[test]
fn the_body_of_a_request_refused_by_its_size_is_never_taken_for_a_request() {
    let mut server = Server::fresh("--max-value 1000");
    let hidden = smuggled("smuggled");
    let mut body = hidden.repeat(40);
    let mut client = server.connect();
    let head = format!("PUT /v0/entity?id=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    send_what_goes(&mut client, (head + &body).as_bytes());
    client.read("PUT").expect(413, "a body that is too large");
    client.end_sending();
    assert!(client.read_all().is_empty(), "answers to what was in the body");
    body = hidden.repeat(20);
    let mut client = server.connect();
    let head = "PUT /v0/entity?id=a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    send_what_goes(&mut client, format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).as_bytes());
    client.read("PUT").expect(413, "a chunk that is too large");
    client.end_sending();
    assert!(client.read_all().is_empty(), "answers to what was in the chunk");
    server.ask("GET", &entity("smuggled")).expect(404, "what was in a refused body");
    server.assert_serves();
}

#[test]
fn chunk_framing_hides_no_request() {
    let mut server = Server::fresh("");
    let hidden = smuggled("smuggled");
    let length = hidden.len();
    // Chunk lines that a lenient reader ends elsewhere than a strict one.
    let bodies = [
        format!("1;\n{hidden}\r\nX\r\n0\r\n\r\n"),
        format!("1\n X\r\n0\r\n\r\n{hidden}"),
        format!("1 \rX\r\n0\r\n\r\n{hidden}"),
        format!("{length:x}\n{hidden}\r\n0\r\n\r\n"),
        format!("0 x\r\n\r\n{hidden}"),
        format!("00000000000000000000000000000000000000\x0b\r\n\r\n{hidden}"),
        format!("-0\r\n\r\n{hidden}"),
        format!("1\r\nXY0\r\n\r\n{hidden}"),
        format!("100000000000000000\r\n\r\n{hidden}"),
        format!("ffffffffffffffff\r\n{hidden}"),
    ];
    for body in bodies {
        let mut client = server.connect();
        let head = "PUT /v0/entity?id=outer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        send_what_goes(&mut client, (head.to_owned() + &body).as_bytes());
        client.end_sending();
        let answers = client.read_all();
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        assert!(statuses == [400] || statuses == [413], "{body:?}: {statuses:?}");
        server.ask("GET", &entity("smuggled")).expect(404, &body);
        server.ask("GET", &entity("outer")).expect(404, &body);
    }
    server.assert_serves();
}

#[test]
fn chunked_over_http_1_0_hides_no_request() {
    let mut server = Server::fresh("");
    let mut client = server.connect();
    let head =
        "PUT /v0/entity?id=outer HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    send_what_goes(&mut client, (head.to_owned() + &smuggled("smuggled")).as_bytes());
    client.end_sending();
    let answers = client.read_all();
    // RFC 9112 section 6.1: its framing is faulty, and the connection has to be closed.
    assert!(answers.len() <= 1, "the connection goes on");
    server.ask("GET", &entity("smuggled")).expect(404, "behind chunks in HTTP/1.0");
    server.assert_serves();
}

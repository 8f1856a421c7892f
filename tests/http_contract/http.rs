//! HTTP itself: framing, pipelining, versions, expectations.

use std::time::Duration;

use crate::assert_usable_or_announced;
use koltso_testkit::client::{Framing, get_bytes, put_bytes, request_bytes};
use koltso_testkit::{Random, Server, entity, volume};

#[test]
fn a_request_without_a_valid_host_is_400() {
    let server = Server::fresh("");
    let first = |bytes: &[u8]| {
        let mut client = server.connect();
        client.send(bytes).unwrap();
        client.read("GET")
    };
    first(b"GET /health HTTP/1.1\r\n\r\n").expect(400, "HTTP/1.1 without Host");
    first(b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").expect(400, "two Host headers");
    first(b"GET /health HTTP/1.1\r\nHost:\r\n\r\n").expect(200, "an empty Host is one");
    for host in
        ["bad host", "a/b", "u@h", "a,b", "a:port", "ключ", ":80", "[::1", "a:65536", "a?b", "a, b", "a:1:2", "[x]:1"]
    {
        first(format!("GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).expect(400, host);
        first(format!("GET /health HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).expect(400, host);
        if !host.contains(['/', '?', ' ']) {
            first(format!("GET http://{host}/health HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).expect(400, host);
        }
    }
    for host in ["localhost", "127.0.0.1:1", "[::1]:1", "LOCALHOST"] {
        first(format!("GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).expect(200, host);
    }
    first(b"GET /health HTTP/1.1\r\nhOsT: localhost\r\n\r\n").expect(200, "names of headers have no case");
}

#[test]
fn a_connection_is_kept_until_the_client_says_close() {
    let server = Server::fresh("");
    let mut client = server.connect();
    for index in 0..300 {
        let key = format!("k{}", index % 7);
        client.store(&key, index.to_string());
        let got = client.get(&key).expect(200, "GET");
        assert!(!got.says_close());
        assert_eq!(got.body, index.to_string().into_bytes());
    }
    for close in ["close", "Close", "close, x-other"] {
        let mut client = server.connect();
        client.store("k", "v");
        let last = client.request("GET", &entity("k"), &[("Connection", close)], None).expect(200, "GET");
        assert!(last.says_close(), "the answer to 'Connection: {close}' says so too");
        assert!(client.is_ended(Duration::from_secs(5)), "the connection stays open after 'Connection: {close}'");
    }
}

#[test]
fn nothing_is_executed_after_connection_close() {
    let server = Server::fresh("");
    let close = request_bytes("GET", &entity("absent"), &[("Connection", "close")], None);
    // RFC 9112 section 9.6: no further request of that connection is processed.
    let mut client = server.connect();
    client.send(&[&close[..], &put_bytes("after", b"v")].concat()).unwrap();
    client.read("GET").expect(404, "GET with 'Connection: close'");
    assert!(client.read_all().is_empty(), "an answer after 'Connection: close'");
    let mut client = server.connect();
    client.send(&[&b"GET /health HTTP/1.0\r\n\r\n"[..], &put_bytes("after", b"v")].concat()).unwrap();
    client.read("GET").expect(200, "GET over HTTP/1.0");
    assert!(client.read_all().is_empty(), "an answer after the only one of HTTP/1.0");
    server.ask("GET", &entity("after")).expect(404, "a PUT behind a request that closes");
}

#[test]
fn answers_to_pipelined_requests_come_in_order() {
    let mut random = Random::announced("answers_to_pipelined_requests_come_in_order");
    let server = Server::fresh("");
    let mut client = server.connect();
    let mut model = std::collections::BTreeMap::new();
    for _ in 0..volume(15, 150) {
        let mut batch = Vec::new();
        let mut expected = Vec::new();
        for _ in 0..random.between(1, 120) {
            let key = format!("p{}", random.below(20));
            match random.below(12) {
                0..=3 => {
                    let length = *random.choose(&[0, 1, 10, 100, 5000, 40_000]);
                    let value = random.bytes(length);
                    batch.extend_from_slice(&put_bytes(&key, &value));
                    model.insert(key, value);
                    expected.push(("PUT", 201, None));
                }
                4 => {
                    batch.extend_from_slice(&request_bytes("DELETE", &entity(&key), &[], None));
                    model.remove(&key);
                    expected.push(("DELETE", 202, None));
                }
                5 => {
                    batch.extend_from_slice(&request_bytes("HEAD", &entity(&key), &[], None));
                    expected.push(("HEAD", if model.contains_key(&key) { 200 } else { 404 }, None));
                }
                6 => {
                    batch.extend_from_slice(&request_bytes("GET", "/health", &[], None));
                    expected.push(("GET", 200, None));
                }
                7 => {
                    let value = random.bytes(60);
                    let head = format!(
                        "PUT {} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
                        entity(&key)
                    );
                    batch.extend_from_slice(head.as_bytes());
                    for piece in value.chunks(25) {
                        batch.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                        batch.extend_from_slice(piece);
                        batch.extend_from_slice(b"\r\n");
                    }
                    batch.extend_from_slice(b"0\r\n\r\n");
                    model.insert(key, value);
                    expected.push(("PUT", 201, None));
                }
                8 => {
                    batch.extend_from_slice(&request_bytes("GET", "/v0/entities?start=p&end=q", &[], None));
                    let body: Vec<u8> =
                        model.iter().flat_map(|(key, value)| [key.as_bytes(), b"\n", value].concat()).collect();
                    expected.push(("GET", 200, Some(body)));
                }
                _ => {
                    batch.extend_from_slice(&get_bytes(&key));
                    match model.get(&key) {
                        Some(value) => expected.push(("GET", 200, Some(value.clone()))),
                        None => expected.push(("GET", 404, None)),
                    }
                }
            }
        }
        // Writing and reading at once, for a batch and its answers may be larger than the socket's
        // buffers.
        let mut sender = client.stream().try_clone().unwrap();
        let writing = std::thread::spawn(move || std::io::Write::write_all(&mut sender, &batch));
        for (index, (method, status, body)) in expected.iter().enumerate() {
            let response = client.read(method).expect(*status, &format!("answer {index}, to {method}"));
            if let Some(body) = body {
                assert!(response.body == *body, "answer {index}, to {method}: another value");
            }
        }
        writing.join().unwrap().unwrap();
    }
}

#[test]
fn answers_to_a_pipelined_batch_leave_in_one_write() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store("key", "value");
    client.send(&get_bytes("key")).unwrap();
    let size = client.read_once().unwrap();
    client.read("GET").expect(200, "GET");
    let batch = get_bytes("key").repeat(16);
    let (mut whole, rounds) = (0, 40);
    for _ in 0..rounds {
        client.send(&batch).unwrap();
        whole += usize::from(client.read_once().unwrap() == 16 * size);
        for _ in 0..16 {
            client.read("GET").expect(200, "GET");
        }
    }
    assert!(whole * 2 > rounds, "only {whole} of {rounds} batches of 16 answers came in one piece");
}

#[test]
fn a_request_may_arrive_byte_by_byte() {
    let server = Server::fresh("");
    let mut client = server.connect();
    let mut bytes = put_bytes("slow", b"slowly");
    bytes.extend_from_slice(&get_bytes("slow"));
    for byte in bytes {
        client.send(&[byte]).unwrap();
    }
    client.read("PUT").expect(201, "PUT byte by byte");
    assert_eq!(client.read("GET").expect(200, "GET byte by byte").body, b"slowly");
}

#[test]
fn empty_lines_before_a_request_are_skipped() {
    let server = Server::fresh("");
    let mut client = server.connect();
    // RFC 9112 section 2.2: at least one CRLF before the request line ought to be ignored.
    client.send(b"\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    client.read("GET").expect(200, "a request after an empty line");
    client.send(b"\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    client.read("GET").expect(200, "a second request after an empty line");
}

#[test]
fn http_1_0_closes_by_default() {
    let server = Server::fresh("");
    server.connect().store("key", "value");
    let mut client = server.connect();
    client.send(format!("GET {} HTTP/1.0\r\n\r\n", entity("key")).as_bytes()).unwrap();
    let got = client.read("GET").expect(200, "GET over HTTP/1.0");
    assert_eq!(got.body, b"value");
    assert_ne!(got.framing, Framing::Chunked);
    assert!(client.is_ended(Duration::from_secs(5)), "HTTP/1.0 without keep-alive stays open");

    let mut client = server.connect();
    client.send(b"PUT /v0/entity?id=old HTTP/1.0\r\nContent-Length: 3\r\n\r\nold").unwrap();
    client.read("PUT").expect(201, "PUT over HTTP/1.0");
    assert!(client.is_ended(Duration::from_secs(5)));
    assert_eq!(server.connect().value("old").as_deref(), Some(&b"old"[..]));
}

#[test]
fn http_1_0_with_keep_alive_stays_in_step() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.send(b"PUT /v0/entity?id=a HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nv").unwrap();
    let first = client.read("PUT").expect(201, "PUT over HTTP/1.0 with keep-alive");
    // Keeping it is the server's choice, and announced: an HTTP/1.0 client counts on closing
    // otherwise.
    if first.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("keep-alive")) {
        client.send(b"GET /v0/entity?id=a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
        assert_eq!(client.read("GET").expect(200, "GET after it").body, b"v");
    } else {
        assert!(client.is_ended(Duration::from_secs(5)), "neither announced as kept nor closed");
    }
}

#[test]
fn other_http_versions_are_refused() {
    let mut server = Server::fresh("");
    for version in ["HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "HTTP/3", "HTTPS/1.1", "http/1.1", ""] {
        let mut client = server.connect();
        client.send(format!("GET /health {version}\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        client.end_sending();
        match client.try_read("GET") {
            Ok(Some(answer)) => {
                let fine = matches!(answer.status, 400 | 505) || version == "HTTP/1.2" && answer.status == 200;
                assert!(fine, "{version:?}: {}", answer.status);
            }
            Ok(None) => panic!("{version:?}: closed without an answer"),
            Err(error) => panic!("{version:?}: {error}"),
        }
    }
    server.assert_serves();
}

#[test]
fn expect_100_continue_is_answered_before_the_body() {
    let server = Server::fresh("--max-value 1000");
    let mut client = server.connect();
    for round in 0..3 {
        let value = format!("continued {round}");
        let head = format!(
            "PUT {} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            entity("key"),
            value.len(),
        );
        client.send(head.as_bytes()).unwrap();
        client.read("PUT").expect(100, "Expect: 100-continue");
        client.send(value.as_bytes()).unwrap();
        client.read("PUT").expect(201, "the body after 100");
        assert_eq!(client.value("key"), Some(value.into_bytes()));
    }
    // Chunked, and the name of the expectation in other letters.
    client
        .send(b"PUT /v0/entity?id=c HTTP/1.1\r\nHost: localhost\r\nExpect: 100-Continue\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    client.read("PUT").expect(100, "Expect: 100-Continue with chunks");
    client.send(b"3\r\nabc\r\n0\r\n\r\n").unwrap();
    client.read("PUT").expect(201, "the chunks after 100");
    assert_eq!(client.value("c").as_deref(), Some(&b"abc"[..]));
    // A body that comes at once makes the 100 unnecessary, but it may still come.
    client
        .send(b"PUT /v0/entity?id=d HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nat")
        .unwrap();
    let mut answer = client.read("PUT");
    if answer.status == 100 {
        answer = client.read("PUT");
    }
    answer.expect(201, "a body that did not wait for 100");
    assert_eq!(client.value("d").as_deref(), Some(&b"at"[..]));
}

#[test]
fn a_request_that_is_refused_anyway_gets_no_100() {
    let server = Server::fresh("--max-value 1000");
    let refused = [
        ("/v0/entity?id=a", 1001, 413),
        ("/v0/entity?id=", 10, 400),
        ("/v0/entity?id=a&ack=9", 10, 400),
        ("/nowhere", 10, 400),
    ];
    for (target, length, status) in refused {
        let mut client = server.connect();
        let head = format!(
            "PUT {target} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        );
        client.send(head.as_bytes()).unwrap();
        client.read("PUT").expect(status, target);
    }
}

#[test]
fn an_unknown_expectation_is_417() {
    let server = Server::fresh("");
    for expectation in ["200-ok", "100-continue-please", "x=1"] {
        let mut client = server.connect();
        let response = client.request("GET", "/health", &[("Expect", expectation)], None).expect(417, expectation);
        assert_usable_or_announced(&mut client, &response, expectation);
    }
}

#[test]
fn http_1_0_gets_no_interim_answer() {
    let server = Server::fresh("");
    let mut client = server.connect();
    // RFC 9110 section 10.1.1: an expectation of 100 in an HTTP/1.0 request is ignored.
    client.send(b"PUT /v0/entity?id=a HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nv").unwrap();
    client.read("PUT").expect(201, "PUT over HTTP/1.0 with Expect");
}

#[test]
fn chunked_request_bodies_are_values() {
    let server = Server::fresh("");
    let head = b"PUT /v0/entity?id=key HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let long = [&b"FFFF\r\n"[..], &[b'x'; 0xffff], b"\r\n000a\r\n0123456789\r\n0\r\n\r\n"].concat();
    let long_value = [&[b'x'; 0xffff][..], b"0123456789"].concat();
    let bodies: &[(&[u8], &[u8])] = &[
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n", b"abc"),
        (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"a;name=value\r\n0123456789\r\n0;last\r\n\r\n", b"0123456789"),
        (b"a;name=\"quoted; value\"\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"a ; name = value;other\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"3\r\nabc\r\n0\r\nX-Trailer: one\r\nX-Other: two\r\n\r\n", b"abc"),
        (b"0003\r\nabc\r\n000\r\n\r\n", b"abc"),
        (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
        (b"7\r\n0\r\n\r\nab\r\n0\r\n\r\n", b"0\r\n\r\nab"),
        (&long, &long_value),
    ];
    let mut client = server.connect();
    for (body, value) in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        client.send(&[head, *body].concat()).unwrap();
        client.read("PUT").expect(201, &shown);
        assert!(client.value("key").as_deref() == Some(*value), "{shown:?}");
    }
    // Byte by byte, each in a segment of its own, with another request at its heels.
    for (body, value) in &bodies[..8] {
        client.store("key", "reset");
        for byte in [&head[..], body, &get_bytes("key")].concat() {
            client.send(&[byte]).unwrap();
        }
        client.read("PUT").expect(201, "a chunked body byte by byte");
        assert!(client.read("GET").body == *value, "a chunked body byte by byte");
    }
}

#[test]
fn a_large_chunked_body_of_random_pieces_is_one_value() {
    let mut random = Random::announced("a_large_chunked_body_of_random_pieces_is_one_value");
    let server = Server::fresh("");
    let mut client = server.connect();
    let value = random.bytes(3 << 20);
    client.send(b"PUT /v0/entity?id=key HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    let mut at = 0;
    while at < value.len() {
        let most = *random.choose(&[1, 100, 5000, 200_000]);
        let size = random.between(1, most).min(value.len() - at);
        client.send(&[format!("{size:x}\r\n").as_bytes(), &value[at..at + size], b"\r\n"].concat()).unwrap();
        at += size;
    }
    client.send(b"0\r\n\r\n").unwrap();
    client.read("PUT").expect(201, "PUT of 3 MiB in chunks");
    assert!(client.value("key").as_ref() == Some(&value));
}

#[test]
fn a_malformed_chunk_is_400_and_stores_nothing() {
    let mut server = Server::fresh("");
    let bodies: &[&[u8]] = &[
        b"x\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b";ext\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5 5\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"5\t\r\nhello\r\n0\r\n\r\n",
        b"5;\r\nhello\r\n0\r\n\r\n",
        b"5;a \r\nhello\r\n0\r\n\r\n",
        b"5;a=\"b\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0 \r\n\r\n",
        b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    ];
    for body in bodies {
        let mut client = server.connect();
        let head = b"PUT /v0/entity?id=broken HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.send(&[head, *body].concat()).unwrap();
        client.end_sending();
        let shown = String::from_utf8_lossy(body).into_owned();
        let answer = client.read("PUT");
        let too_large = body.starts_with(b"ffff") && answer.status == 413;
        assert!(answer.status == 400 || too_large, "{shown:?}: {}", answer.status);
        assert!(client.is_ended(Duration::from_secs(5)), "{shown:?}: the connection goes on after broken framing");
        server.ask("GET", &entity("broken")).expect(404, &shown);
    }
    server.assert_serves();
}

#[test]
fn a_trailer_without_a_name_is_400_and_one_with_a_name_is_skipped() {
    let server = Server::fresh("");
    let ask = |trailers: &str| {
        let mut client = server.connect();
        let head = "PUT /v0/entity?id=a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.send(format!("{head}1\r\nv\r\n0\r\n{trailers}\r\n").as_bytes()).unwrap();
        client.read("PUT")
    };
    for wrong in ["no colon\r\n", ": no name\r\n", "A : b\r\n", "A: b\r\n folded\r\n", "\tA: b\r\n", "A\0: b\r\n"] {
        ask(wrong).expect(400, wrong);
        server.ask("GET", "/v0/entity?id=a").expect(404, wrong);
    }
    for fine in ["", "A: b\r\n", "A:\r\nContent-Length: 7\r\n", "A: \t\u{e9} \r\n"] {
        ask(fine).expect(201, fine);
    }
}

#[test]
fn a_client_that_ends_its_output_gets_all_its_answers() {
    let server = Server::fresh("");
    server.connect().store("a", "value");
    for target in ["/", "/v0/entity?id=a", "/v0/entities?start=a", "/health", "/status", "/metrics", "/debug/pprof/"] {
        for version in ["1.0", "1.1"] {
            let mut client = server.connect();
            client.send(format!("GET {target} HTTP/{version}\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
            client.end_sending();
            client.read("GET").expect(200, &format!("{target} over HTTP/{version}"));
            assert!(client.is_ended(Duration::from_secs(10)), "{target} over HTTP/{version}");
        }
    }
    let mut client = server.connect();
    client.send(b"PUT /status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf").unwrap();
    client.end_sending();
    client.read("PUT").expect(405, "a body that is not whole");
    assert!(client.is_ended(Duration::from_secs(10)), "a body that is not whole");
}

#[test]
fn expectations_are_a_list() {
    let server = Server::fresh("");
    for (list, status) in [("", 201), (",", 201), ("100-continue, ,100-Continue", 100), ("100-continue, x", 417)] {
        let mut client = server.connect();
        let head = "PUT /v0/entity?id=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n";
        client.send(format!("{head}Expect: {list}\r\n\r\n").as_bytes()).unwrap();
        if status == 201 {
            client.send(b"v").unwrap();
        }
        client.read("PUT").expect(status, list);
    }
}

#[test]
fn an_absolute_form_target_is_understood() {
    let server = Server::fresh("");
    let mut client = server.connect();
    let base = server.url();
    client
        .request("PUT", &format!("{base}{}", entity("absolute/key")), &[], Some(b"v"))
        .expect(201, "PUT with absolute-form");
    assert_eq!(client.value("absolute/key").as_deref(), Some(&b"v"[..]));
    let got = client.request("GET", "http://localhost:80/v0/entity?id=absolute/key", &[], None);
    assert_eq!(got.expect(200, "GET with absolute-form").body, b"v");
    client.request("GET", "HTTP://localhost/health", &[], None).expect(200, "the scheme has no case");
    client.request("GET", "http://localhost/nowhere", &[], None).expect(400, "an unknown path in absolute-form");
}

#[test]
fn a_fragment_on_the_wire_is_400() {
    let server = Server::fresh("");
    server.connect().store("a", "v");
    for target in ["/v0/entity?id=a#f", "/v0/entity#?id=a", "/health#", "http://localhost/v0/entity?id=a#f"] {
        let mut client = server.connect();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        client.read("GET").expect(400, target);
    }
    server.ask("GET", "/v0/entity?id=a%23f").expect(404, "an escaped one is part of the key");
}

#[test]
fn a_fragment_or_a_blank_in_the_target_is_no_reason_to_crash() {
    let mut server = Server::fresh("");
    for target in ["/v0/entity?id=a#b", "*", "v0/entity?id=a", "/v0/entity?id=a b", "?", "http://", "http:///", "://"] {
        let mut client = server.connect();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        client.end_sending();
        if let Some(answer) = client.try_read("GET").unwrap() {
            assert!(matches!(answer.status, 400 | 404), "{target}: {}", answer.status);
        }
    }
    server.assert_serves();
}

#[test]
fn a_body_where_none_is_needed_is_read_and_ignored() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store("key", "value");
    for method in ["GET", "DELETE"] {
        let response = client.request(method, &entity(format!("other-{method}")), &[], Some(b"an unneeded body"));
        response.expect(if method == "GET" { 404 } else { 202 }, method);
        assert_eq!(client.value("key").as_deref(), Some(&b"value"[..]), "the connection stays in step after {method}");
    }
}

#[test]
fn answers_name_their_length_in_every_case() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store("key", "value");
    let requests = [
        ("PUT", entity("key"), 201),
        ("GET", entity("key"), 200),
        ("GET", entity("absent"), 404),
        ("GET", "/health".to_owned(), 200),
    ];
    for (method, target, status) in requests {
        let response = client.request(method, &target, &[], (method == "PUT").then_some(b"v")).expect(status, &target);
        assert!(matches!(response.framing, Framing::Length(_)), "{method} {target}: {:?}", response.framing);
        assert_eq!(response.minor_version, 1);
        assert!(!response.reason.is_empty(), "{method} {target}: no reason phrase");
    }
}

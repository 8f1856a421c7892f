//! Input that nobody sends by mistake, and clients that behave badly: none of it takes memory beyond the stated bounds,
//! stops other clients, crashes the server or makes it execute what it was not asked for.
//!
//! The bound on anonymous memory is `ANONYMOUS_KIB_MAX`, whatever clients do.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use koltso_testkit::client::{get_bytes, put_bytes, request_bytes};
use koltso_testkit::metrics::sample;
use koltso_testkit::server::{free_port, raise_descriptor_limit};
use koltso_testkit::{Client, Random, Server, entity, eventually, volume};

/// What the server may hold in anonymous memory while clients attack it: 150 MB.
const ANONYMOUS_KIB_MAX: u64 = 150 * 1000;

#[track_caller]
fn assert_memory_bounded(server: &Server, during: &str) {
    let kib = server.anonymous_kib();
    assert!(kib < ANONYMOUS_KIB_MAX, "{during}: {kib} KiB of anonymous memory");
}

/// Sends as much of `bytes` as the other side takes.
fn send_what_goes(client: &mut Client, bytes: &[u8]) {
    // The server may refuse and close in the middle: what it answered is what counts.
    let _ = client.send(bytes);
}

// --- bytes that are no request ---

#[test]
fn random_bytes_end_in_an_error_or_a_close_never_in_a_crash() {
    let mut random = Random::announced("random_bytes_end_in_an_error_or_a_close_never_in_a_crash");
    let mut server = Server::fresh("--max-value 1MiB");
    server.connect().store("kept", "value");
    let valid = [
        put_bytes("fuzz", b"some value"),
        get_bytes("fuzz"),
        b"PUT /v0/entity?id=fuzz HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            .to_vec(),
        request_bytes("GET", "/v0/entities?start=f&end=g&limit=3", &[("If-None-Match", "\"x\"")], None),
        request_bytes("PUT", "/v0/entity?id=fuzz&ttl=5&ack=1&from=1", &[("Expect", "100-continue")], Some(b"v")),
    ];
    for round in 0..volume(400, 20_000) {
        let most = *random.choose(&[20, 300, 4000, 30_000]);
        let length = random.between(1, most);
        let bytes = match random.below(4) {
            0 => random.bytes(length),
            1 => (0..length)
                .map(|_| *random.choose(b"GETPUT /v0entity?id=%&\r\n: HTP1.0\tContent-Length5\0\x7f\xff"))
                .collect(),
            _ => {
                let mut bytes = random.choose(&valid).clone();
                bytes.extend_from_slice(&random.choose(&valid).clone());
                for _ in 0..random.between(1, 6) {
                    let at = random.below(bytes.len());
                    match random.below(4) {
                        0 => bytes[at] = random.next().to_le_bytes()[0],
                        1 => bytes.truncate(at + 1),
                        2 => bytes.insert(at, *random.choose(b"\r\n :%0,;\0")),
                        _ => drop(bytes.remove(at)),
                    }
                    if bytes.is_empty() {
                        bytes.push(b'G');
                    }
                }
                bytes
            }
        };
        let mut client = server.connect();
        send_what_goes(&mut client, &bytes);
        client.end_sending();
        // Whatever comes is HTTP, and the connection ends.
        loop {
            match client.try_read("GET") {
                Ok(Some(answer)) => assert!((100..600).contains(&answer.status), "round {round}"),
                Ok(None) => break,
                Err(error) => {
                    // A mutated HEAD would be misread here, but no method is mutated into it; a reset is an end, too.
                    let ended = matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
                    assert!(ended, "round {round}: {error} after {:?}", String::from_utf8_lossy(&bytes));
                    break;
                }
            }
        }
    }
    assert_eq!(server.connect().value("kept").as_deref(), Some(&b"value"[..]));
    assert_memory_bounded(&server, "random bytes");
    server.assert_serves();
}

#[test]
fn half_a_request_changes_nothing() {
    let mut server = Server::fresh("");
    let chunked =
        b"PUT /v0/entity?id=half HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3\r\nyou\r\n0\r\n\r\n".to_vec();
    for whole in [put_bytes("half", b"value"), chunked] {
        for length in 0..whole.len() {
            let mut client = server.connect();
            client.send(&whole[..length]).unwrap();
            client.end_sending();
            for answer in client.read_all() {
                assert!(answer.status >= 400, "{length} of {} bytes: {}", whole.len(), answer.status);
            }
            if length % 8 == 0 || length + 8 > whole.len() {
                server.ask("GET", &entity("half")).expect(404, &format!("{length} of {} bytes", whole.len()));
            }
        }
    }
    server.assert_serves();
}

// --- what two readers could understand differently ---

/// The request that must never be executed, hidden in a body or behind broken framing.
fn smuggled(key: &str) -> String {
    format!("PUT /v0/entity?id={key} HTTP/1.1\r\nHost: k\r\nContent-Length: 1\r\n\r\nX")
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
        // Read as five bytes, as chunks or as nothing, another request follows; only a close is safe.
        let bytes = format!(
            "PUT /v0/entity?id=outer-{index} HTTP/1.1\r\nHost: k\r\n{headers}\r\n\r\n0\r\n\r\n{}",
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
    // Requests whose body nobody wants, or that are refused: the body is read as a body, or the connection ends.
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
            let bytes = format!("{method} {target} HTTP/1.1\r\nHost: k\r\n{headers}{framed}");
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
    let head = format!("PUT /v0/entity?id=a HTTP/1.1\r\nHost: k\r\nContent-Length: {}\r\n\r\n", body.len());
    send_what_goes(&mut client, (head + &body).as_bytes());
    client.read("PUT").expect(413, "a body that is too large");
    client.end_sending();
    assert!(client.read_all().is_empty(), "answers to what was in the body");
    body = hidden.repeat(20);
    let mut client = server.connect();
    let head = "PUT /v0/entity?id=a HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\n";
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
        let head = "PUT /v0/entity?id=outer HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\n";
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

// --- limits of a header ---

#[test]
fn a_header_block_beyond_16_kib_is_431() {
    let mut server = Server::fresh("");
    let with_header_of = |total: usize| {
        let head = "GET /health HTTP/1.1\r\nHost: k\r\nX-Padding: ";
        format!("{head}{}\r\n\r\n", "p".repeat(total - head.len() - 4))
    };
    for total in [8 << 10, (16 << 10) - 64] {
        let mut client = server.connect();
        client.send(with_header_of(total).as_bytes()).unwrap();
        client.read("GET").expect(200, &format!("a header block of {total} bytes"));
        client.get("absent").expect(404, "a request after a large header");
    }
    for total in [(16 << 10) + 1, 17 << 10, 40 << 10] {
        let mut client = server.connect();
        send_what_goes(&mut client, with_header_of(total).as_bytes());
        client.read("GET").expect(431, &format!("a header block of {total} bytes"));
        assert!(client.is_ended(Duration::from_secs(5)), "the connection goes on after 431");
    }
    // It is the block that is limited: a large one before it in the same write does not count.
    let mut client = server.connect();
    let ten = with_header_of(10 << 10).repeat(5);
    client.send(ten.as_bytes()).unwrap();
    for _ in 0..5 {
        client.read("GET").expect(200, "pipelined requests with large headers");
    }
    server.assert_serves();
}

#[test]
fn a_header_of_1_mb_is_431_and_takes_no_memory() {
    let mut server = Server::fresh("");
    let line = format!("X-Padding: {}\r\n", "p".repeat(4000));
    for filler in [line.repeat(250), "p".repeat(1_000_000)] {
        let mut clients: Vec<Client> = (0..20).map(|_| server.connect()).collect();
        for client in &mut clients {
            send_what_goes(client, b"GET /health HTTP/1.1\r\nHost: k\r\nX-Long: ");
            send_what_goes(client, filler.as_bytes());
        }
        assert_memory_bounded(&server, "headers of 1 MB");
        for client in &mut clients {
            client.read("GET").expect(431, "a header of 1 MB");
        }
    }
    // A request line without an end.
    let mut client = server.connect();
    send_what_goes(&mut client, format!("GET /{}", "x".repeat(1_000_000)).as_bytes());
    let answer = client.read("GET");
    assert!(matches!(answer.status, 400 | 414 | 431), "a target of 1 MB: {}", answer.status);
    server.assert_serves();
}

#[test]
fn many_small_headers_within_16_kib_are_no_reason_to_crash() {
    let mut server = Server::fresh("");
    for count in [50, 63, 64, 65, 100, 128, 129, 1000, 2600] {
        let mut client = server.connect();
        let headers = "a:b\r\n".repeat(count);
        send_what_goes(&mut client, format!("GET /health HTTP/1.1\r\nHost: k\r\n{headers}\r\n").as_bytes());
        let status = client.read("GET").status;
        assert!(status == 200 || status == 431 && count > 60, "{count} headers: {status}");
    }
    server.assert_serves();
}

// --- clients that are slow, silent, or gone ---

/// Sends `bytes` one by one, `pause` between two, until the server ends it or `within` is over; the answer and when it came.
fn dribble(client: &mut Client, bytes: &[u8], pause: Duration) -> (u16, Duration) {
    let start = Instant::now();
    let mut sender = client.stream().try_clone().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || {
        for byte in bytes {
            if sender.write_all(&[byte]).is_err() {
                return;
            }
            std::thread::sleep(pause);
        }
    });
    let status = client.read("PUT").status;
    let after = start.elapsed();
    let _ = client.stream().shutdown(std::net::Shutdown::Both);
    writer.join().unwrap();
    (status, after)
}

#[test]
fn a_request_that_dribbles_in_is_408() {
    let mut server = Server::fresh("--request-timeout 1s --idle-timeout 60s");
    let header = request_bytes("PUT", &entity("dribbled"), &[("X-Padding", &"p".repeat(200))], Some(b"v"));
    let body =
        [&b"PUT /v0/entity?id=dribbled HTTP/1.1\r\nHost: k\r\nContent-Length: 300\r\n\r\n"[..], &[b'v'; 300]].concat();
    let chunks = [
        &b"PUT /v0/entity?id=dribbled HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\n"[..],
        &b"1\r\nv\r\n".repeat(80),
    ]
    .concat();
    let pause = Duration::from_millis(40);
    std::thread::scope(|scope| {
        let cases = [("a header", header), ("a body", body), ("chunks", chunks)];
        let threads: Vec<_> = cases
            .into_iter()
            .map(|(what, bytes)| {
                let mut client = server.connect();
                scope.spawn(move || (what, dribble(&mut client, &bytes, pause)))
            })
            .collect();
        // Dribbling clients cost the others nothing.
        let mut other = server.connect();
        for index in 0..50 {
            let start = Instant::now();
            other.store("other", index.to_string());
            assert!(
                start.elapsed() < Duration::from_secs(1),
                "PUT took {:?} beside dribbling clients",
                start.elapsed()
            );
        }
        for thread in threads {
            let (what, (status, after)) = thread.join().unwrap();
            assert_eq!(status, 408, "{what} that dribbles in");
            let (low, high) = (Duration::from_millis(900), Duration::from_secs(5));
            assert!((low..high).contains(&after), "{what}: 408 after {after:?} with --request-timeout 1s");
        }
    });
    server.ask("GET", &entity("dribbled")).expect(404, "what never came in whole");
    server.assert_serves();
}

#[test]
fn a_body_or_header_that_never_comes_is_408() {
    let mut server = Server::fresh("--request-timeout 1s --idle-timeout 60s");
    let starts: [&[u8]; 6] = [
        b"PUT /v0/entity?id=never HTTP/1.1\r\nHost: k\r\nContent-Length: 10\r\n\r\n",
        b"PUT /v0/entity?id=never HTTP/1.1\r\nHost: k\r\nContent-Length: 10\r\n\r\nhalf",
        b"PUT /v0/entity?id=never HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"PUT /v0/entity?id=never HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"GET /v0/entity?id=never HTTP/1.1\r\nHost: k\r\n",
        b"G",
    ];
    let start = Instant::now();
    let mut clients: Vec<Client> = starts
        .iter()
        .map(|bytes| {
            let mut client = server.connect();
            client.send(bytes).unwrap();
            client
        })
        .collect();
    for (client, bytes) in clients.iter_mut().zip(starts) {
        let shown = String::from_utf8_lossy(bytes).into_owned();
        client.read("PUT").expect(408, &shown);
        assert!(start.elapsed() >= Duration::from_millis(900), "{shown:?}: 408 after {:?}", start.elapsed());
        assert!(client.is_ended(Duration::from_secs(5)), "{shown:?}: the connection stays open after 408");
    }
    assert!(start.elapsed() < Duration::from_secs(6), "408 took {:?} with --request-timeout 1s", start.elapsed());
    // A second request on a kept connection has the same deadline.
    let mut client = server.connect();
    client.store("k", "v");
    client.send(starts[1]).unwrap();
    client.read("PUT").expect(408, "a body that never comes on a kept connection");
    server.assert_serves();
}

#[test]
fn an_idle_connection_is_closed_after_the_idle_timeout() {
    let server = Server::fresh("--idle-timeout 1s --request-timeout 60s");
    let start = Instant::now();
    let mut used = server.connect();
    used.store("k", "v");
    assert!(used.is_ended(Duration::from_secs(6)), "a kept connection outlives --idle-timeout 1s");
    assert!(start.elapsed() >= Duration::from_millis(900), "closed after {:?}", start.elapsed());
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_stop_nobody() {
    let limit = raise_descriptor_limit();
    let wanted = usize::try_from(limit.saturating_sub(1000)).unwrap().min(10_000);
    if wanted < 10_000 {
        println!("only {wanted} connections: the limit of open files is {limit}");
    }
    let mut server = Server::fresh("--max-connections 10100 --idle-timeout 120s --request-timeout 120s");
    server.connect().store("key", "value");
    let empty = server.anonymous_kib();
    let mut idle = Vec::with_capacity(wanted);
    let mut slowest = Duration::ZERO;
    let mut other = server.connect();
    for index in 0..wanted {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        match index % 4 {
            // Silent from the start, in the middle of a header, and kept after an answer.
            0 | 1 => {}
            2 => stream.write_all(b"GET /v0/entity?id=k").unwrap(),
            _ => {
                stream.write_all(&get_bytes("key")).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                assert!(stream.read(&mut [0; 1000]).unwrap() > 0);
            }
        }
        idle.push(stream);
        if index % 100 == 0 {
            let start = Instant::now();
            assert_eq!(other.value("key").as_deref(), Some(&b"value"[..]));
            slowest = slowest.max(start.elapsed());
        }
    }
    eventually("the server accepts them all", Duration::from_secs(20), || server.established() > wanted);
    assert_eq!(server.connect().value("key").as_deref(), Some(&b"value"[..]), "a new client beside {wanted} idle ones");
    for _ in 0..200 {
        let start = Instant::now();
        other.store("key", "value");
        slowest = slowest.max(start.elapsed());
    }
    let kib = server.anonymous_kib();
    println!("{wanted} idle connections: {empty} KiB -> {kib} KiB of anonymous memory, slowest request {slowest:?}");
    assert_memory_bounded(&server, "10 000 idle connections");
    assert!(slowest < Duration::from_secs(1), "a request took {slowest:?} beside idle connections");
    drop(idle);
    eventually("the connections are gone", Duration::from_secs(20), || server.descriptors_open() < 200);
    server.assert_serves();
}

#[test]
fn connections_past_the_maximum_are_closed_at_accept() {
    const MAX: usize = 50;
    let mut server = Server::fresh(&format!("--max-connections {MAX} --idle-timeout 120s"));
    let mut held: Vec<Client> = (0..MAX)
        .map(|_| {
            let mut client = server.connect();
            client.get("absent").expect(404, "a connection within the maximum");
            client
        })
        .collect();
    for extra in 0..20 {
        let mut client = server.connect();
        assert!(client.is_ended(Duration::from_secs(5)), "connection {} is open", MAX + 1 + extra);
    }
    for client in &mut held {
        client.get("absent").expect(404, "a connection within the maximum, afterwards");
    }
    // A place that is free again is given to the next.
    held.pop();
    let again = || {
        let mut client = server.connect();
        client.send(&get_bytes("absent")).is_ok()
            && matches!(client.try_read("GET"), Ok(Some(answer)) if answer.status == 404)
    };
    eventually("a place is free again", Duration::from_secs(5), again);
    held.clear();
    eventually("all places are free again", Duration::from_secs(5), || server.established() == 0);
    server.assert_serves();
}

#[test]
fn clients_that_never_read_a_large_answer_are_ended_and_cost_no_memory() {
    const CLIENTS: usize = 50;
    let timeout = Duration::from_secs(2);
    let mut server = Server::fresh("--request-timeout 2s --idle-timeout 2s");
    let value = Random::seeded(50).bytes(16 << 20);
    server.connect().store("large", &value);
    server.connect().store("small", "value");
    let start = Instant::now();
    let stuck: Vec<Client> = (0..CLIENTS)
        .map(|_| {
            let mut client = server.connect();
            client.send(&get_bytes("large")).unwrap();
            client
        })
        .collect();
    let mut slowest = Duration::ZERO;
    let mut other = server.connect();
    while start.elapsed() < timeout {
        let sent = Instant::now();
        assert_eq!(other.value("small").as_deref(), Some(&b"value"[..]));
        slowest = slowest.max(sent.elapsed());
        assert_memory_bounded(&server, "clients that do not read");
    }
    assert!(slowest < Duration::from_secs(1), "a request took {slowest:?} beside clients that do not read");
    drop(other);
    eventually("their connections are ended within the request timeout", timeout * 4, || server.established() == 0);
    println!("ended after {:?}, {} KiB of anonymous memory", start.elapsed(), server.anonymous_kib());
    // What arrived until then is a part of the right value, and not all of it.
    for client in stuck.into_iter().take(5) {
        let mut received = Vec::new();
        let _ = client.stream().try_clone().unwrap().read_to_end(&mut received);
        assert!(received.len() < value.len(), "a client that did not read got everything");
    }
    assert!(server.connect().value("large").as_ref() == Some(&value), "a client that reads gets it all");
    server.assert_serves();
}

#[test]
fn a_slow_but_steady_reader_gets_its_whole_answer() {
    let server = Server::fresh("--request-timeout 1s --idle-timeout 1s");
    let value = Random::seeded(51).bytes(16 << 20);
    server.connect().store("large", &value);
    let mut client = server.connect();
    client.send(&get_bytes("large")).unwrap();
    client.read_head("GET").unwrap().unwrap().expect(200, "GET of 16 MiB");
    let mut received = Vec::new();
    let start = Instant::now();
    while received.len() < value.len() {
        let step = (400 << 10).min(value.len() - received.len());
        client.read_rest(&mut received, step);
        std::thread::sleep(Duration::from_millis(60));
    }
    assert!(received == value);
    assert!(start.elapsed() > Duration::from_secs(2), "this reader was not slow");
}

#[test]
fn a_flood_of_pipelined_requests_without_reading_is_held_back() {
    let mut server = Server::fresh("--request-timeout 3s");
    let value = vec![b'v'; 1 << 20];
    server.connect().store("mib", &value);
    let batch = get_bytes("mib").repeat(100);
    let clients: Vec<TcpStream> = (0..10)
        .map(|_| {
            let client = server.connect();
            client.stream().set_nonblocking(true).unwrap();
            client.stream().try_clone().unwrap()
        })
        .collect();
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < Duration::from_secs(2) {
        for mut client in &clients {
            sent += client.write(&batch).unwrap_or(0);
        }
        assert_memory_bounded(&server, "a flood of requests");
        std::thread::sleep(Duration::from_millis(2));
    }
    println!(
        "{} requests for 1 MiB sent, {} KiB of anonymous memory",
        sent / get_bytes("mib").len(),
        server.anonymous_kib()
    );
    server.assert_serves();
}

#[test]
fn clients_that_leave_midway_leave_nothing_behind() {
    let mut random = Random::announced("clients_that_leave_midway_leave_nothing_behind");
    let mut server = Server::fresh("");
    let value = random.bytes(4 << 20);
    server.connect().store("large", &value);
    server.assert_serves();
    eventually("only the listeners are left", Duration::from_secs(5), || server.established() == 0);
    let before = server.descriptors_open();
    let put = put_bytes("left", &vec![b'v'; 100_000]);
    for round in 0..volume(300, 5000) {
        let mut client = server.connect();
        match round % 5 {
            0 => client.send(&put[..random.between(1, 60)]).unwrap(),
            1 => client.send(&put[..random.between(100, put.len() - 1)]).unwrap(),
            // Leaves with the answer unread, which makes the kernel send a reset.
            2 => client.send(&get_bytes("large").repeat(3)).unwrap(),
            3 => {
                client.send(&get_bytes("large")).unwrap();
                client.stream().read_exact(&mut vec![0; random.between(1, 1 << 20)]).unwrap();
            }
            _ => client.send(&request_bytes("GET", "/v0/entities?start=a", &[], None)).unwrap(),
        }
    }
    eventually("their connections are gone", Duration::from_secs(15), || {
        server.established() == 0 && server.descriptors_open() <= before + 2
    });
    server.ask("GET", &entity("left")).expect(404, "a body that broke off is no value");
    assert_memory_bounded(&server, "clients that leave midway");
    server.assert_serves();
}

// --- too much at once ---

#[test]
fn past_the_requests_in_flight_the_answer_is_503_at_once() {
    const MAX: usize = 4;
    let mut server = Server::fresh(&format!("--threads 1 --max-in-flight {MAX} --request-timeout 30s"));
    let value = Random::seeded(4).bytes(16 << 20);
    server.connect().store("large", &value);
    // A request whose answer is not taken is in flight.
    let mut pending: Vec<Client> = (0..MAX).map(|_| server.connect()).collect();
    for client in &mut pending {
        client.send(&get_bytes("large")).unwrap();
    }
    let mut client = server.connect();
    let mut refused = None;
    eventually("the requests are in flight", Duration::from_secs(5), || {
        let start = Instant::now();
        let answer = client.get("absent");
        assert!(start.elapsed() < Duration::from_secs(1), "{} after {:?}", answer.status, start.elapsed());
        if answer.says_close() {
            client = server.connect();
        }
        refused = (answer.status == 503).then_some(answer);
        refused.is_some()
    });
    let refused = refused.unwrap();
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(refused.text().ends_with('\n'));
    // Those that were taken are finished, and after them there is room again.
    for client in &mut pending {
        assert!(client.read("GET").expect(200, "a request that was in flight").body == value);
    }
    let mut client = server.connect();
    client.get("absent").expect(404, "a request when there is room again");
    server.assert_serves();
}

#[test]
fn past_the_bytes_in_flight_the_answer_is_503_at_once() {
    let mut server = Server::fresh("--threads 1 --max-value 1MiB --max-in-flight-bytes 1MiB --request-timeout 30s");
    let value = vec![b'v'; 900_000];
    let bytes = put_bytes("first", &value);
    let mut first = server.connect();
    first.send(&bytes[..800_000]).unwrap();
    // The first body is on its way when the server has nothing more to read of it.
    let mut refused = None;
    eventually("the bytes are in flight", Duration::from_secs(5), || {
        let mut second = server.connect();
        let start = Instant::now();
        send_what_goes(&mut second, &put_bytes("second", &value));
        let answer = second.read("PUT");
        assert!(start.elapsed() < Duration::from_secs(2), "{} after {:?}", answer.status, start.elapsed());
        refused = (answer.status == 503).then_some(answer);
        refused.is_some()
    });
    assert_eq!(refused.unwrap().header("retry-after"), Some("1"));
    first.send(&bytes[800_000..]).unwrap();
    first.read("PUT").expect(201, "the body that was in flight");
    let mut client = server.connect();
    client.put("third", &value).expect(201, "a body when there is room again");
    assert!(client.value("first").as_ref() == Some(&value));
    server.assert_serves();
}

#[test]
fn many_large_bodies_at_once_stay_within_the_bytes_in_flight() {
    let mut server = Server::fresh("--threads 2 --max-in-flight-bytes 32MiB --request-timeout 30s");
    server.assert_serves();
    let before = server.anonymous_kib();
    let value = vec![b'v'; 15 << 20];
    let peak = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..24)
            .map(|index| {
                let mut client = server.connect();
                let bytes = put_bytes(format!("large{index}"), &value);
                // A refused client that does not read while it sends can be left in its send; its answer is there all the same.
                client.stream().set_write_timeout(Some(Duration::from_secs(5))).unwrap();
                scope.spawn(move || {
                    send_what_goes(&mut client, &bytes);
                    client.try_read("PUT").ok().flatten().map(|answer| answer.status)
                })
            })
            .collect();
        let mut peak = 0;
        while !clients.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            peak = peak.max(server.anonymous_kib());
            std::thread::sleep(Duration::from_millis(2));
        }
        let statuses: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        println!("24 bodies of 15 MiB at once: {statuses:?}, peak {peak} KiB of anonymous memory");
        assert!(statuses.contains(&Some(201)), "none of them was stored: {statuses:?}");
        assert!(statuses.iter().all(|status| matches!(status, None | Some(201 | 503))), "{statuses:?}");
        peak
    });
    // Two cores of 32 MiB each; a buffer that grows by doubling may have twice the room of what it holds.
    let bound = before + (2 * 2 * 32 + 24) * 1024;
    assert!(peak < bound, "{peak} KiB of anonymous memory, more than {bound}");
    server.assert_serves();
}

// --- every limit is seen ---

#[test]
fn every_limit_that_is_hit_counts_in_its_metric() {
    let admin: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let mut server = Server::fresh(&format!(
        "--threads 1 --max-connections 3 --max-value 1000000 --request-timeout 1s --idle-timeout 1s --max-in-flight 1 \
         --max-in-flight-bytes 1500000 --admin-listen {admin}"
    ));
    let hits = |limit: &str| -> u64 {
        let answer = Client::connect(admin).unwrap().request("GET", "/metrics", &[], None).expect(200, "GET /metrics");
        sample(&answer, &format!("koltso_limits_hit_total{{limit=\"{limit}\"}}")) as u64
    };
    server.connect().store("large", vec![b'v'; 1_000_000]);
    let provoke = |limit: &str, provocation: &dyn Fn()| {
        eventually("the connections before are gone", Duration::from_secs(5), || server.established() == 0);
        let before = hits(limit);
        provocation();
        eventually(&format!("{limit} is counted"), Duration::from_secs(5), || hits(limit) > before);
    };
    provoke("header_size", &|| {
        let mut client = server.connect();
        send_what_goes(&mut client, &request_bytes("GET", "/health", &[("X", &"x".repeat(17_000))], None));
        client.read("GET").expect(431, "a header block of 17 000 bytes");
    });
    provoke("body_size", &|| {
        let mut client = server.connect();
        client.send(b"PUT /v0/entity?id=a HTTP/1.1\r\nHost: k\r\nContent-Length: 1000001\r\n\r\n").unwrap();
        client.read("PUT").expect(413, "a body that is too large");
    });
    provoke("request_timeout", &|| {
        let mut client = server.connect();
        client.send(b"GET /health HTTP/1.1\r\n").unwrap();
        client.read("GET").expect(408, "a header that never ends");
    });
    provoke("idle_timeout", &|| {
        let mut client = server.connect();
        client.get("absent").expect(404, "GET");
        assert!(client.is_ended(Duration::from_secs(5)));
    });
    provoke("bad_request", &|| {
        let mut client = server.connect();
        client.send(b"no request at all\r\n\r\n").unwrap();
        client.read("GET").expect(400, "what is no request");
    });
    provoke("connections", &|| {
        let held: Vec<Client> = (0..3).map(|_| server.connect()).collect();
        eventually("three connections are open", Duration::from_secs(1), || server.established() >= 3);
        assert!(server.connect().is_ended(Duration::from_secs(5)), "a fourth of three connections");
        drop(held);
    });
    // Enough pipelined answers of 1 MB that the kernel's buffers do not take them all.
    let fills = get_bytes("large").repeat(16);
    provoke("in_flight", &|| {
        let mut stuck = server.connect();
        stuck.send(&fills).unwrap();
        let mut other = server.connect();
        eventually("another request is refused", Duration::from_secs(1), || other.get("absent").status == 503);
    });
    provoke("write_timeout", &|| {
        let mut stuck = server.connect();
        stuck.send(&fills).unwrap();
        eventually("the client that does not read is ended", Duration::from_secs(8), || server.established() == 0);
    });
    server.assert_serves();
}

//! Bytes that are no request, and headers beyond their limits.

use std::io::ErrorKind;
use std::time::Duration;

use crate::{assert_memory_bounded, send_what_goes};
use koltso_testkit::client::{get_bytes, put_bytes, request_bytes};
use koltso_testkit::{Client, Random, Server, entity, volume};

// --- bytes that are no request ---

#[test]
fn random_bytes_end_in_an_error_or_a_close_never_in_a_crash() {
    let mut random = Random::announced("random_bytes_end_in_an_error_or_a_close_never_in_a_crash");
    let mut server = Server::fresh("--max-value 1MiB");
    server.connect().store("kept", "value");
    let valid = [
        put_bytes("fuzz", b"some value"),
        get_bytes("fuzz"),
        b"PUT /v0/entity?id=fuzz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
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
                    // A mutated HEAD would be misread here, but no method is mutated into it; a
                    // reset is an end, too.
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
        b"PUT /v0/entity?id=half HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3\r\nyou\r\n0\r\n\r\n".to_vec();
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

// --- limits of a header ---

#[test]
fn a_header_block_beyond_16_kib_is_431() {
    let mut server = Server::fresh("");
    let with_header_of = |total: usize| {
        let head = "GET /health HTTP/1.1\r\nHost: localhost\r\nX-Padding: ";
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
            send_what_goes(client, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: ");
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
        send_what_goes(&mut client, format!("GET /health HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes());
        let status = client.read("GET").status;
        assert!(status == 200 || status == 431 && count > 60, "{count} headers: {status}");
    }
    server.assert_serves();
}

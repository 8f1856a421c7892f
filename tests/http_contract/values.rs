//! Which keys and values there may be.

use crate::{KEY_MAX, VALUE_MAX, assert_usable_or_announced};
use koltso_testkit::{Random, Server, entity, volume};

#[test]
fn a_key_is_1_to_4096_bytes() {
    let server = Server::fresh("");
    let mut client = server.connect();
    for length in [1, 2, KEY_MAX - 1, KEY_MAX] {
        let key = "k".repeat(length);
        client.put(&key, length.to_string()).expect(201, &format!("PUT of a key of {length} bytes"));
        assert_eq!(client.value(&key), Some(length.to_string().into_bytes()), "a key of {length} bytes");
    }
    // Three characters a byte in the target: the limit counts bytes of the key.
    let binary = vec![0xff; KEY_MAX];
    client.put(&binary, "binary").expect(201, "PUT of 4096 encoded bytes");
    assert_eq!(client.value(&binary).as_deref(), Some(&b"binary"[..]));
}

#[test]
fn a_key_of_4097_bytes_is_400() {
    let server = Server::fresh("");
    let key = "k".repeat(KEY_MAX + 1);
    for method in ["GET", "HEAD", "PUT", "DELETE"] {
        let mut client = server.connect();
        let body = (method == "PUT").then_some(&b"v"[..]);
        let response = client.request(method, &entity(&key), &[], body).expect(400, method);
        assert_usable_or_announced(&mut client, &response, "a key of 4097 bytes");
    }
    server.ask("GET", &entity(vec![0xff; KEY_MAX + 1])).expect(400, "4097 encoded bytes");
}

#[test]
fn an_empty_or_missing_id_is_400() {
    let server = Server::fresh("");
    for target in
        ["/v0/entity", "/v0/entity?", "/v0/entity?id=", "/v0/entity?id", "/v0/entity?ack=1&from=1", "/v0/entity?ID=a"]
    {
        for method in ["GET", "HEAD", "PUT", "DELETE"] {
            let mut client = server.connect();
            let body = (method == "PUT").then_some(&b"v"[..]);
            let response = client.request(method, target, &[], body).expect(400, &format!("{method} {target}"));
            assert_usable_or_announced(&mut client, &response, target);
        }
    }
}

#[test]
fn a_duplicate_id_is_400_and_empty_pairs_are_nothing() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store("a", "1");
    server.ask("GET", "/v0/entity?id=a&id=a").expect(400, "id twice");
    server.ask("GET", "/v0/entity?id=a&id=b").expect(400, "two different ids");
    for target in ["/v0/entity?&&id=a&", "/v0/entity?id=a&&ack=1"] {
        assert_eq!(server.ask("GET", target).expect(200, target).body, b"1", "{target}");
    }
}

#[test]
fn keys_are_any_bytes_percent_decoded() {
    let server = Server::fresh("");
    let mut client = server.connect();
    for byte in 0..=255_u8 {
        client.store([byte], format!("byte {byte}"));
        client.store([b'k', byte, b'k'], format!("within {byte}"));
    }
    for byte in 0..=255_u8 {
        assert_eq!(client.value([byte]), Some(format!("byte {byte}").into_bytes()));
        assert_eq!(client.value([b'k', byte, b'k']), Some(format!("within {byte}").into_bytes()));
        let lower_case = format!("/v0/entity?id=%{byte:02x}");
        assert_eq!(client.request("GET", &lower_case, &[], None).body, format!("byte {byte}").into_bytes());
    }
    // Characters that RFC 3986 lets stand in a query unescaped.
    for character in "/?:@!$'()*,;-._~".chars() {
        let target = format!("/v0/entity?id=k{character}k");
        let got = client.request("GET", &target, &[], None).expect(200, &target);
        assert_eq!(got.body, format!("within {}", u32::from(character)).into_bytes(), "{target}");
    }
    // `=` within a value: the first one ends the name.
    assert_eq!(client.request("GET", "/v0/entity?id=k=k", &[], None).body, b"within 61");
}

#[test]
fn a_plus_stays_a_plus() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.request("PUT", "/v0/entity?id=a+b", &[], Some(b"plus")).expect(201, "PUT a+b");
    assert_eq!(client.value("a+b").as_deref(), Some(&b"plus"[..]));
    assert_eq!(client.value("a b"), None, "a plus is no blank");
}

#[test]
fn an_invalid_percent_escape_is_400() {
    let server = Server::fresh("");
    for id in ["%", "a%", "a%4", "%4", "%zz", "%4g", "%g4", "%%41", "a%-1", "%+1", "%u0041"] {
        server.ask("GET", &format!("/v0/entity?id={id}")).expect(400, id);
        server.ask("GET", &format!("/v0/entities?start={id}")).expect(400, id);
        server.ask("GET", &format!("/v0/entities?start=a&end={id}")).expect(400, id);
    }
}

#[test]
fn a_value_of_16_mib_is_stored_and_one_byte_more_is_413() {
    let mut server = Server::fresh("");
    let mut client = server.connect();
    let value = Random::seeded(16).bytes(VALUE_MAX);
    client.put("large", &value).expect(201, "PUT of 16 MiB");
    assert!(client.value("large").as_ref() == Some(&value), "16 MiB come back as they went in");
    // The length is enough to refuse it: no byte of the body has to be sent.
    let mut client = server.connect();
    let head =
        format!("PUT {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", entity("larger"), VALUE_MAX + 1);
    client.send(head.as_bytes()).unwrap();
    client.read("PUT").expect(413, "PUT of 16 MiB and a byte");
    server.ask("GET", &entity("larger")).expect(404, "GET of what was refused");
    server.assert_serves();
}

#[test]
fn max_value_bounds_bodies_by_length_and_by_chunks() {
    for (flag, limit) in [("--max-value 1000", 1000), ("--max-value 1KiB", 1024), ("--max-value 1", 1)] {
        let server = Server::fresh(flag);
        let chunked = |key: &str, size: usize| {
            let mut bytes =
                format!("PUT {} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", entity(key))
                    .into_bytes();
            for piece in vec![b'c'; size].chunks(300) {
                bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                bytes.extend_from_slice(piece);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
            let mut client = server.connect();
            client.send(&bytes).unwrap();
            let response = client.read("PUT");
            assert_usable_or_announced(&mut client, &response, "a chunked body");
            response
        };
        let with_length = |key: &str, size: usize| {
            let mut client = server.connect();
            let response = client.put(key, vec![b'l'; size]);
            assert_usable_or_announced(&mut client, &response, "a body with Content-Length");
            response
        };
        with_length("a", limit).expect(201, "as long as allowed, by Content-Length");
        with_length("b", limit + 1).expect(413, "a byte too long, by Content-Length");
        chunked("c", limit).expect(201, "as long as allowed, by chunks");
        chunked("d", limit + 1).expect(413, "a byte too long, by chunks");
        for (key, size) in [("a", Some(limit)), ("b", None), ("c", Some(limit)), ("d", None)] {
            assert_eq!(server.connect().value(key).map(|value| value.len()), size, "{flag}, {key}");
        }
    }
}

#[test]
fn values_are_any_bytes_of_any_length() {
    let mut random = Random::announced("values_are_any_bytes_of_any_length");
    let server = Server::fresh("");
    let mut client = server.connect();
    let mut expected = Vec::new();
    for index in 0..volume(120, 2000) {
        let length = *random.choose(&[0, 1, 7, 8, 9, 127, 128, 4095, 4096, 4097, 65_535, 65_536, 70_000, 300_001]);
        let (key, value) = (format!("{index}-{}", random.word(5)), random.bytes(length));
        client.store(&key, &value);
        expected.push((key, value));
    }
    for (key, value) in &expected {
        assert!(client.value(key).as_ref() == Some(value), "{key} of {} bytes", value.len());
    }
}

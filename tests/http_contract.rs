//! SPEC.md section 2 through real sockets: every line of it that names an answer has a test here, named after the promise.
//!
//! Ranges are in `range.rs`, what is not HTTP at all in `hostile_input.rs`, /status and /metrics in `command_line.rs`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use koltso_testkit::client::{Framing, get_bytes, put_bytes, request_bytes};
use koltso_testkit::{Client, Random, Response, Server, entity, eventually, volume};

const KEY_MAX: usize = 4096;
const VALUE_MAX: usize = 16 << 20;

/// After an answer the connection is either ended, as announced, or good for another request.
#[track_caller]
fn assert_usable_or_announced(client: &mut Client, response: &Response, what: &str) {
    if response.says_close() {
        assert!(client.is_ended(Duration::from_secs(5)), "{what}: 'Connection: close', but the connection stays open");
    } else {
        client.get("absent").expect(404, &format!("a GET on the same connection after {what}"));
    }
}

// --- entity: the methods and their answers ---

#[test]
fn put_answers_201_and_get_returns_the_value() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.put("key", "value").expect(201, "PUT");
    let got = client.get("key").expect(200, "GET");
    assert_eq!(got.body, b"value");
    assert_eq!(got.framing, Framing::Length(5));
    assert_eq!(server.ask("GET", &entity("key")).body, b"value", "over another connection");
}

#[test]
fn get_of_a_key_that_never_was_is_404() {
    let server = Server::fresh("");
    server.ask("GET", &entity("nothing")).expect(404, "GET of an absent key");
}

#[test]
fn put_is_an_upsert() {
    let server = Server::fresh("");
    let mut client = server.connect();
    for value in ["first", "second, which is longer", "3"] {
        client.store("key", value);
        assert_eq!(client.value("key").as_deref(), Some(value.as_bytes()));
    }
}

#[test]
fn an_empty_value_is_a_value() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.put("length", "").expect(201, "PUT with Content-Length: 0");
    client.request("PUT", &entity("none"), &[], None).expect(201, "PUT without any body");
    client
        .send(b"PUT /v0/entity?id=chunked HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        .unwrap();
    client.read("PUT").expect(201, "PUT with an empty chunked body");
    for key in ["length", "none", "chunked"] {
        let got = client.get(key).expect(200, key);
        assert_eq!((got.framing, got.body.len()), (Framing::Length(0), 0), "{key}");
    }
}

#[test]
fn delete_is_202_also_where_the_key_never_was() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.delete("never").expect(202, "DELETE of a key that never was");
    client.store("key", "value");
    client.delete("key").expect(202, "DELETE");
    client.get("key").expect(404, "GET after DELETE");
    client.delete("key").expect(202, "DELETE of a deleted key");
    client.get("key").expect(404, "GET after two DELETE");
    client.store("key", "again");
    assert_eq!(client.value("key").as_deref(), Some(&b"again"[..]));
}

#[test]
fn head_answers_as_get_without_the_body() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store("key", "twelve bytes");
    let (head, get) = (client.head("key"), client.get("key"));
    assert_eq!((head.status, get.status), (200, 200));
    assert_eq!(head.header("content-length"), Some("12"));
    assert_eq!(head.header("etag"), get.header("etag"));
    assert!(head.header("etag").is_some());
    client.head("absent").expect(404, "HEAD of an absent key");
    assert_eq!(client.value("key").as_deref(), Some(&b"twelve bytes"[..]), "the connection stays in step after HEAD");
    client.delete("key").expect(202, "DELETE");
    client.head("key").expect(404, "HEAD of a deleted key");
}

#[test]
fn a_write_that_was_acknowledged_is_seen_over_every_connection() {
    let server = Server::fresh("");
    let mut readers: Vec<Client> = (0..8).map(|_| server.connect()).collect();
    let mut writer = server.connect();
    for version in 0..volume(150, 1500) {
        let value = version.to_string();
        writer.store("shared", &value);
        for (index, reader) in readers.iter_mut().enumerate() {
            let seen = reader.value("shared").map(|bytes| String::from_utf8(bytes).unwrap());
            assert_eq!(seen.as_ref(), Some(&value), "reader {index}");
        }
    }
}

// --- keys and values ---

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
fn a_duplicate_id_is_400_and_unknown_parameters_are_ignored() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store("a", "1");
    server.ask("GET", "/v0/entity?id=a&id=a").expect(400, "id twice");
    server.ask("GET", "/v0/entity?id=a&id=b").expect(400, "two different ids");
    for target in [
        "/v0/entity?id=a&colour=red",
        "/v0/entity?x&id=a",
        "/v0/entity?&&id=a&",
        "/v0/entity?id=a&=",
        "/v0/entity?limit=x&id=a",
    ] {
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
    let head = format!("PUT {} HTTP/1.1\r\nHost: k\r\nContent-Length: {}\r\n\r\n", entity("larger"), VALUE_MAX + 1);
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
                format!("PUT {} HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\n", entity(key)).into_bytes();
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

// --- ack and from on a single node ---

#[test]
fn a_single_node_takes_one_of_one_and_nothing_else() {
    let server = Server::fresh("");
    let mut client = server.connect();
    for query in ["ack=1&from=1", "from=1&ack=1", "ack=1", "from=1"] {
        let target = format!("{}&{query}", entity("key"));
        client.request("PUT", &target, &[], Some(b"v")).expect(201, query);
        client.request("GET", &target, &[], None).expect(200, query);
        client.request("HEAD", &target, &[], None).expect(200, query);
        client.request("DELETE", &target, &[], None).expect(202, query);
    }
    let wrong = [
        "ack=0",
        "ack=2",
        "from=0",
        "from=2",
        "ack=1&from=2",
        "ack=2&from=1",
        "ack=2&from=2",
        "ack=0&from=1",
        "ack=1&from=0",
        "ack=",
        "from=",
        "ack",
        "ack=x",
        "from=x",
        "ack=1.0",
        "ack=-1",
        "from=-1",
        "ack=1x",
        "ack=%201",
        "ack=1&from=",
        "ack=4294967297",
        "ack=18446744073709551617",
        "from=18446744073709551617",
        "ack=0x1",
    ];
    for query in wrong {
        let target = format!("{}&{query}", entity("refused"));
        for method in ["PUT", "GET", "HEAD", "DELETE"] {
            let mut client = server.connect();
            let body = (method == "PUT").then_some(&b"v"[..]);
            let response = client.request(method, &target, &[], body).expect(400, &format!("{method} with {query}"));
            assert_usable_or_announced(&mut client, &response, query);
        }
    }
    client.get("refused").expect(404, "nothing was written by what was refused");
}

// --- ttl ---

#[test]
fn after_its_ttl_a_key_is_absent_everywhere() {
    let mut server = Server::fresh("");
    let mut client = server.connect();
    client.store("t0", "before");
    client.store("t2", "after");
    let ttl = Duration::from_millis(400);
    let sent = Instant::now();
    client.request("PUT", "/v0/entity?id=t1&ttl=400", &[], Some(b"passing")).expect(201, "PUT with ttl");
    let accepted = Instant::now();
    // Alive before its time: only answers that surely were given before then count.
    let mut seen_alive = 0;
    loop {
        let got = client.get("t1");
        let listed = client.range("start=t0&end=t9").len();
        if sent.elapsed() >= ttl {
            break;
        }
        assert_eq!((got.status, listed), (200, 3), "absent {:?} after PUT, before its ttl", sent.elapsed());
        seen_alive += 1;
    }
    assert!(seen_alive > 0, "this machine is too slow to see the key alive");
    // Gone after it, to the millisecond.
    while accepted.elapsed() < ttl + Duration::from_millis(2) {
        std::thread::sleep(Duration::from_millis(1));
    }
    client.get("t1").expect(404, "GET after the ttl");
    client.head("t1").expect(404, "HEAD after the ttl");
    let keys: Vec<_> = client.range("start=t0&end=t9").into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, [b"t0", b"t2"], "a range after the ttl");
    for end in [Server::kill, Server::terminate] {
        end(&mut server);
        server.start_again();
        let mut client = server.connect();
        client.get("t1").expect(404, "GET after a restart");
        assert_eq!(client.range("start=t0&end=t9").len(), 2, "a range after a restart");
    }
    let mut client = server.connect();
    client.store("t1", "back");
    assert_eq!(client.value("t1").as_deref(), Some(&b"back"[..]), "an expired key can be written again");
}

#[test]
fn a_ttl_survives_a_restart_and_goes_on() {
    let mut server = Server::fresh("");
    let mut client = server.connect();
    client.request("PUT", "/v0/entity?id=soon&ttl=2500", &[], Some(b"s")).expect(201, "PUT with ttl=2500");
    let accepted = Instant::now();
    client.request("PUT", "/v0/entity?id=later&ttl=3600000", &[], Some(b"l")).expect(201, "PUT with ttl=1h");
    server.kill();
    server.start_again();
    let mut client = server.connect();
    client.get("later").expect(200, "a key with an hour left, after a restart");
    let got = client.get("soon");
    if accepted.elapsed() < Duration::from_millis(2400) {
        assert_eq!(got.status, 200, "{:?} after PUT with ttl=2500 and a restart", accepted.elapsed());
    }
    eventually("the key expires after the restart", Duration::from_secs(5), || client.get("soon").status == 404);
    client.get("later").expect(200, "a key with an hour left");
}

#[test]
fn an_overwrite_replaces_the_ttl_too() {
    let server = Server::fresh("");
    let mut client = server.connect();
    for key in ["stays", "goes"] {
        client.request("PUT", &format!("/v0/entity?id={key}&ttl=150"), &[], Some(b"1")).expect(201, "PUT with ttl");
    }
    client.store("stays", "2");
    client.request("PUT", "/v0/entity?id=longer&ttl=100", &[], Some(b"1")).expect(201, "PUT with ttl=100");
    client.request("PUT", "/v0/entity?id=longer&ttl=3600000", &[], Some(b"2")).expect(201, "PUT with ttl=1h");
    eventually("the ttl of the other key passes", Duration::from_secs(5), || client.get("goes").status == 404);
    assert_eq!(client.value("stays").as_deref(), Some(&b"2"[..]), "PUT without ttl after one with");
    assert_eq!(client.value("longer").as_deref(), Some(&b"2"[..]), "PUT with a longer ttl after one with a shorter");
}

#[test]
fn a_ttl_that_is_no_number_is_400() {
    let server = Server::fresh("");
    for ttl in ["", "x", "-1", "1.5", "1s", "%20", "1e3", "0x10", "99999999999999999999999999"] {
        let target = format!("/v0/entity?id=refused&ttl={ttl}");
        let mut client = server.connect();
        let response = client.request("PUT", &target, &[], Some(b"v")).expect(400, &target);
        assert_usable_or_announced(&mut client, &response, &target);
    }
    server.ask("GET", &entity("refused")).expect(404, "nothing was written");
}

#[test]
fn a_ttl_beyond_the_end_of_time_does_not_wrap() {
    let mut server = Server::fresh("");
    for ttl in ["18446744073709551615", "9223372036854775807", "4611686018427387904", "281474976710656", "4294967296"] {
        let mut client = server.connect();
        let target = format!("/v0/entity?id=long&ttl={ttl}");
        match client.request("PUT", &target, &[], Some(b"v")).status {
            201 => assert_eq!(server.ask("GET", &entity("long")).status, 200, "accepted with ttl={ttl}, then absent"),
            400 => {}
            status => panic!("PUT with ttl={ttl}: {status}"),
        }
    }
    server.assert_serves();
}

// --- ETag ---

#[test]
fn the_etag_is_strong_and_changes_with_every_version() {
    let mut server = Server::fresh("");
    let mut client = server.connect();
    let mut seen = Vec::new();
    for value in ["one", "two", "two", "one"] {
        client.store("key", value);
        let tag = client.get("key").header("etag").expect("200 carries an ETag").to_owned();
        assert!(tag.len() > 2 && tag.starts_with('"') && tag.ends_with('"'), "a strong tag, not {tag}");
        assert_eq!(client.get("key").header("etag"), Some(&*tag), "the same version has the same tag");
        assert_eq!(client.head("key").header("etag"), Some(&*tag), "HEAD has the tag of GET");
        assert!(!seen.contains(&tag), "{tag} was the tag of an earlier version");
        seen.push(tag);
    }
    client.delete("key").expect(202, "DELETE");
    assert_eq!(client.get("key").expect(404, "GET of a deleted key").header("etag"), None);
    client.store("key", "one");
    let tag = client.get("key").header("etag").unwrap().to_owned();
    assert!(!seen.contains(&tag), "a tag came back after DELETE");
    server.kill();
    server.start_again();
    assert_eq!(
        server.ask("GET", &entity("key")).header("etag"),
        Some(&*tag),
        "the tag of a version survives a restart"
    );
}

#[test]
fn if_none_match_gets_304() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store("key", "value");
    let tag = client.get("key").header("etag").unwrap().to_owned();
    let matching = [
        tag.clone(),
        "*".to_owned(),
        format!("\"other\", {tag}"),
        format!("{tag}, \"other\""),
        format!("\"a\",{tag},\"b\""),
        format!("W/{tag}"),
    ];
    let different =
        ["\"other\"".to_owned(), "\"other\", \"another\"".to_owned(), "\"\"".to_owned(), format!("\"x{}", &tag[1..])];
    for method in ["GET", "HEAD"] {
        for condition in &matching {
            let answer = client.request(method, &entity("key"), &[("If-None-Match", condition)], None);
            let answer = answer.expect(304, &format!("{method}, If-None-Match: {condition}"));
            assert_eq!(answer.header("etag"), Some(&*tag), "304 carries the tag");
        }
        for condition in &different {
            let answer = client.request(method, &entity("key"), &[("If-None-Match", condition)], None);
            answer.expect(200, &format!("{method}, If-None-Match: {condition}"));
        }
        for condition in ["*", &tag] {
            let answer = client.request(method, &entity("absent"), &[("If-None-Match", condition)], None);
            answer.expect(404, &format!("{method} of an absent key, If-None-Match: {condition}"));
        }
    }
    client.store("key", "newer");
    let answer = client
        .request("GET", &entity("key"), &[("If-None-Match", &tag)], None)
        .expect(200, "the tag of an older version");
    assert_eq!(answer.body, b"newer");
    client.delete("key").expect(202, "DELETE");
    client.request("GET", &entity("key"), &[("If-None-Match", &tag)], None).expect(404, "the tag of a deleted key");
}

// --- paths and methods ---

#[test]
fn a_method_that_a_path_does_not_know_is_405_with_allow() {
    let server = Server::fresh("");
    let cases = [
        ("/v0/entity?id=a", "GET, HEAD, PUT, DELETE", &["POST", "PATCH", "OPTIONS", "TRACE", "PURGE", "get"][..]),
        ("/v0/entities?start=a", "GET", &["PUT", "POST", "DELETE", "PATCH", "HEAD", "OPTIONS"]),
    ];
    for (target, allow, methods) in cases {
        for method in methods {
            let mut client = server.connect();
            let response = client.request(method, target, &[], Some(b"")).expect(405, &format!("{method} {target}"));
            assert_eq!(response.header("allow"), Some(allow), "{method} {target}");
            assert_usable_or_announced(&mut client, &response, method);
        }
    }
    for path in ["/health", "/metrics", "/status"] {
        let response = server.ask("DELETE", path).expect(405, path);
        let allow = response.header("allow").unwrap_or_else(|| panic!("DELETE {path}: 405 without Allow"));
        assert!(allow.split(',').any(|method| method.trim() == "GET"), "DELETE {path}: Allow: {allow}");
    }
    server.ask("GET", &entity("a")).expect(404, "nothing was written");
}

#[test]
fn a_path_that_does_not_exist_is_400() {
    let server = Server::fresh("");
    let paths = [
        "/",
        "/v0",
        "/v0/",
        "/v0/entity/",
        "/v0/entity/a",
        "/v0/entityx?id=a",
        "/v0/entities/",
        "/v1/entity?id=a",
        "/V0/entity?id=a",
        "/v0/ENTITY?id=a",
        "/favicon.ico",
        "//v0/entity?id=a",
        "/v0//entity?id=a",
        "/healthz",
        "/v0/../v0/entity?id=a",
        "/?id=a",
    ];
    for path in paths {
        for method in ["GET", "PUT", "DELETE", "POST"] {
            let mut client = server.connect();
            let response = client.request(method, path, &[], Some(b"")).expect(400, &format!("{method} {path}"));
            assert_usable_or_announced(&mut client, &response, path);
        }
    }
    server.ask("GET", &entity("a")).expect(404, "nothing was written");
}

#[test]
fn health_is_200_once_the_node_serves() {
    let server = Server::fresh("");
    server.ask("GET", "/health").expect(200, "GET /health");
    server.ask("GET", "/health?from=balancer").expect(200, "GET /health with a query");
}

#[test]
fn error_bodies_are_one_plain_sentence_about_this_request() {
    let server = Server::fresh("--max-value 1000");
    let long_key = entity("k".repeat(KEY_MAX + 1));
    let too_large = vec![b'v'; 1001];
    // Method, target, body, status, and what the sentence has to name.
    type Case<'a> = (&'a str, &'a str, Option<&'a [u8]>, u16, &'a str);
    let cases: &[Case] = &[
        ("GET", "/v0/entity", None, 400, "id"),
        ("GET", "/v0/entity?id=", None, 400, "id"),
        ("GET", "/v0/entity?id=a&id=b", None, 400, "id"),
        ("GET", "/v0/entity?id=%zz", None, 400, "%"),
        ("GET", &long_key, None, 400, "4096"),
        ("GET", "/v0/entity?id=a&ack=x", None, 400, "ack"),
        ("GET", "/v0/entity?id=a&ack=2", None, 400, "ack"),
        ("GET", "/v0/entity?id=a&from=7", None, 400, "from"),
        ("PUT", "/v0/entity?id=a&ttl=soon", Some(b"v"), 400, "ttl"),
        ("PUT", "/v0/entity?id=a", Some(&too_large), 413, "1000"),
        ("GET", "/v0/entities", None, 400, "start"),
        ("GET", "/v0/entities?start=a&limit=x", None, 400, "limit"),
        ("GET", "/v0/entities?start=a&limit=0", None, 400, "limit"),
        ("GET", "/v9/nowhere", None, 400, "/v9/nowhere"),
        ("POST", "/v0/entity?id=a", Some(b""), 405, "POST"),
        ("GET", "/v0/entity?id=absent", None, 404, ""),
    ];
    let mut sentences = Vec::new();
    for &(method, target, body, status, names) in cases {
        let shown = &target[..target.len().min(60)];
        let response = server.connect().request(method, target, &[], body).expect(status, shown);
        let text = response.text();
        let sentence =
            text.strip_suffix('\n').unwrap_or_else(|| panic!("{method} {shown}: no line end after {text:?}"));
        assert!(!sentence.contains('\n'), "{method} {shown}: more than one line: {text:?}");
        assert!((10..=300).contains(&sentence.len()), "{method} {shown}: no sentence: {text:?}");
        assert!(!sentence.contains(['{', '<']), "{method} {shown}: not plain: {text:?}");
        assert!(sentence.contains(names), "{method} {shown}: does not name {names:?}: {text:?}");
        let kind = response.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("text/plain"), "{method} {shown}: Content-Type {kind:?}");
        sentences.push((shown, text));
    }
    // Mistakes that differ are told apart.
    for pair in [(0, 2), (0, 3), (0, 4), (5, 7), (8, 9), (10, 11), (13, 14)] {
        assert_ne!(sentences[pair.0].1, sentences[pair.1].1, "{} and {}", sentences[pair.0].0, sentences[pair.1].0);
    }
}

#[test]
fn what_comes_from_a_request_into_an_error_body_stays_one_line() {
    let mut server = Server::fresh("");
    for target in
        ["/%0a%0dx", "/v0/entity?id=a&ack=%0a1", "/v0/entity?id=a&ack=1%0d%0aX:%20y", "/v0/entities?start=a&limit=%0a"]
    {
        let response = server.ask("GET", target).expect(400, target);
        let text = response.text();
        assert_eq!(text.matches(['\n', '\r']).count(), 1, "{target}: {text:?}");
        assert!(text.ends_with('\n'), "{target}: {text:?}");
    }
    let long = format!("/{}", "x".repeat(12_000));
    let text = server.ask("GET", &long).expect(400, "a long unknown path").text();
    assert!(text.len() < 1000, "a long path is not repeated in full: {} bytes", text.len());
    server.assert_serves();
}

// --- HTTP itself ---

#[test]
fn a_request_without_host_is_400() {
    let server = Server::fresh("");
    let first = |bytes: &[u8]| {
        let mut client = server.connect();
        client.send(bytes).unwrap();
        client.read("GET")
    };
    first(b"GET /health HTTP/1.1\r\n\r\n").expect(400, "HTTP/1.1 without Host");
    first(b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").expect(400, "two Host headers");
    first(b"GET /health HTTP/1.1\r\nHost:\r\n\r\n").expect(200, "an empty Host is one");
    first(b"GET /health HTTP/1.1\r\nhOsT: a\r\n\r\n").expect(200, "names of headers have no case");
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
                    let head =
                        format!("PUT {} HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\n", entity(&key));
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
        // Writing and reading at once, for a batch and its answers may be larger than the socket's buffers.
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
    client.send(b"\r\nGET /health HTTP/1.1\r\nHost: k\r\n\r\n").unwrap();
    client.read("GET").expect(200, "a request after an empty line");
    client.send(b"\r\nGET /health HTTP/1.1\r\nHost: k\r\n\r\n").unwrap();
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
    // Keeping it is the server's choice, and announced: an HTTP/1.0 client counts on closing otherwise.
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
        client.send(format!("GET /health {version}\r\nHost: k\r\n\r\n").as_bytes()).unwrap();
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
            "PUT {} HTTP/1.1\r\nHost: k\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
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
        .send(b"PUT /v0/entity?id=c HTTP/1.1\r\nHost: k\r\nExpect: 100-Continue\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    client.read("PUT").expect(100, "Expect: 100-Continue with chunks");
    client.send(b"3\r\nabc\r\n0\r\n\r\n").unwrap();
    client.read("PUT").expect(201, "the chunks after 100");
    assert_eq!(client.value("c").as_deref(), Some(&b"abc"[..]));
    // A body that comes at once makes the 100 unnecessary, but it may still come.
    client
        .send(b"PUT /v0/entity?id=d HTTP/1.1\r\nHost: k\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nat")
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
        let head =
            format!("PUT {target} HTTP/1.1\r\nHost: k\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n");
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
    let head = b"PUT /v0/entity?id=key HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\n";
    let long = [&b"FFFF\r\n"[..], &[b'x'; 0xffff], b"\r\n000a\r\n0123456789\r\n0\r\n\r\n"].concat();
    let long_value = [&[b'x'; 0xffff][..], b"0123456789"].concat();
    let bodies: &[(&[u8], &[u8])] = &[
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n", b"abc"),
        (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"a;name=value\r\n0123456789\r\n0;last\r\n\r\n", b"0123456789"),
        (b"a;name=\"quoted; value\"\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
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
    client.send(b"PUT /v0/entity?id=key HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
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
        b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    ];
    for body in bodies {
        let mut client = server.connect();
        let head = b"PUT /v0/entity?id=broken HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\n";
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
fn an_absolute_form_target_is_understood() {
    let server = Server::fresh("");
    let mut client = server.connect();
    let base = server.url();
    client
        .request("PUT", &format!("{base}{}", entity("absolute/key")), &[], Some(b"v"))
        .expect(201, "PUT with absolute-form");
    assert_eq!(client.value("absolute/key").as_deref(), Some(&b"v"[..]));
    let got = client.request("GET", "http://elsewhere.example:80/v0/entity?id=absolute/key", &[], None);
    assert_eq!(got.expect(200, "GET with absolute-form").body, b"v");
    client.request("GET", "HTTP://h/health", &[], None).expect(200, "the scheme has no case");
    client.request("GET", "http://h/nowhere", &[], None).expect(400, "an unknown path in absolute-form");
}

#[test]
fn a_fragment_or_a_blank_in_the_target_is_no_reason_to_crash() {
    let mut server = Server::fresh("");
    for target in ["/v0/entity?id=a#b", "*", "v0/entity?id=a", "/v0/entity?id=a b", "?", "http://", "http:///", "://"] {
        let mut client = server.connect();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: k\r\n\r\n").as_bytes()).unwrap();
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

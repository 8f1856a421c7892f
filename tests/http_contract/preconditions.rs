//! Preconditions: a read is judged by them, a write is refused as long as it cannot be.

use koltso_testkit::client::request_bytes;
use koltso_testkit::{Server, entity};

#[test]
fn a_write_under_a_condition_is_501_and_changes_nothing() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store("there", "old");
    let tag = client.get("there").header("etag").unwrap().to_owned();
    let date = "Thu, 01 Jan 1970 00:00:00 GMT";
    let conditions = [
        ("If-None-Match", "*"),
        ("If-Match", "*"),
        ("If-Match", "\"x\""),
        ("If-Match", &tag),
        ("If-None-Match", &tag),
        ("if-match", ""),
        ("If-Unmodified-Since", date),
        ("If-Modified-Since", date),
    ];
    for (name, value) in conditions {
        for key in ["there", "absent"] {
            let what = format!("{key}, {name}: {value}");
            client.request("PUT", &entity(key), &[(name, value)], Some(b"new")).expect(501, &format!("PUT {what}"));
            client.request("DELETE", &entity(key), &[(name, value)], None).expect(501, &format!("DELETE {what}"));
        }
        // Before the body has come, too.
        let mut other = server.connect();
        let head = request_bytes("PUT", &entity("there"), &[(name, value), ("Expect", "100-continue")], Some(b"new"));
        other.send(&head[..head.len() - 3]).unwrap();
        other.read("PUT").expect(501, name);
    }
    assert_eq!(client.value("there").as_deref(), Some(&b"old"[..]));
    client.get("absent").expect(404, "nothing was written");
}

#[test]
fn if_match_on_a_read_is_evaluated() {
    let server = Server::fresh("");
    let mut client = server.connect();
    for value in ["value".to_owned(), "x".repeat(100_000)] {
        client.store("key", &value);
        let tag = client.get("key").header("etag").unwrap().to_owned();
        let old = "\"0000000000000001-0001\"";
        let cases = [
            (vec![("If-Match", old)], 412),
            (vec![("If-Match", "W/\"x\"")], 412),
            (vec![("If-Match", &*tag)], 200),
            (vec![("If-Match", "*")], 200),
            (vec![("If-Match", old), ("If-Match", &tag)], 200),
            (vec![("If-Match", old), ("If-None-Match", &tag)], 412),
            (vec![("If-Match", &tag), ("If-None-Match", &tag)], 304),
            (vec![("If-None-Match", old), ("If-None-Match", &tag)], 304),
            (vec![("If-None-Match", old), ("If-None-Match", "\"y\"")], 200),
            (vec![("If-Unmodified-Since", "Thu, 01 Jan 1970 00:00:00 GMT")], 412),
            (vec![("If-Unmodified-Since", "Fri, 31 Dec 9999 23:59:59 GMT")], 200),
            (vec![("If-Unmodified-Since", "soon")], 200),
        ];
        for (headers, status) in cases {
            for method in ["GET", "HEAD"] {
                client.request(method, &entity("key"), &headers, None).expect(status, &format!("{method} {headers:?}"));
                let absent = client.request(method, &entity("absent"), &headers, None);
                absent.expect(404, &format!("{method} of an absent key, {headers:?}"));
            }
        }
    }
    let range = "/v0/entities?start=a";
    client.request("GET", range, &[("If-Match", "\"x\"")], None).expect(412, "a range has no tag");
    client.request("GET", range, &[("If-Match", "*")], None).expect(200, "a range is there");
}

#[test]
fn a_condition_on_what_has_no_tag_is_evaluated_too() {
    let server = Server::fresh("");
    for path in ["/", "/health", "/status", "/metrics", "/debug/pprof/", "/v0/entities?start=a"] {
        for method in ["GET", "HEAD"] {
            let asked = |headers: &[(&str, &str)], status| {
                let answer = server.connect().request(method, path, headers, None);
                answer.expect(status, &format!("{method} {path} with {headers:?}"))
            };
            asked(&[("If-Match", "\"x\"")], 412);
            asked(&[("If-Match", "\"x\""), ("If-Match", "*")], 200);
            asked(&[("If-None-Match", "\"x\"")], 200);
            assert!(asked(&[("If-None-Match", "*")], 304).body.is_empty());
        }
    }
    for path in ["/nowhere", "/debug/nowhere", "/health?x", "/status?x"] {
        server.connect().request("GET", path, &[("If-Match", "\"x\"")], None).expect(400, path);
    }
}

#[test]
fn a_put_of_a_part_is_400() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store("key", "whole");
    for range in ["bytes 524288-524290/524291", "bytes 0-2/3", "bytes */3", "x"] {
        let answer = client.request("PUT", &entity("key"), &[("Content-Range", range)], Some(b"tail"));
        assert!(answer.expect(400, range).text().contains("Content-Range"));
    }
    assert_eq!(client.value("key").as_deref(), Some(&b"whole"[..]), "a part was stored as the value");
}

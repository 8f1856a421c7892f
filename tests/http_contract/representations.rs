//! What an answer says about a value: its tag, its type and coding, and what caches may do.

use std::time::Duration;

use koltso_testkit::{Server, entity, eventually, files};

#[test]
fn an_answer_to_put_carries_the_tag_of_the_version() {
    for flags in ["", "--sync always"] {
        let server = Server::fresh(flags);
        let mut client = server.connect();
        for value in ["one".to_owned(), "two".to_owned(), "x".repeat(200_000)] {
            let put = client.put("key", &value).expect(201, "PUT");
            let tag = put.header("etag").expect("201 carries an ETag").to_owned();
            assert_eq!(client.get("key").header("etag"), Some(&*tag));
            client.request("GET", &entity("key"), &[("If-None-Match", &tag)], None).expect(304, "the tag of the PUT");
        }
        assert_eq!(client.delete("key").expect(202, "DELETE").header("etag"), None);
    }
}

#[test]
fn content_type_and_encoding_are_kept_and_given_back() {
    let mut server = Server::fresh("");
    let mut client = server.connect();
    let longest = format!("text/{}", "x".repeat(122));
    let cases = [
        ("text/plain", ""),
        ("application/json; charset=utf-8", "gzip"),
        ("", "br"),
        (&longest, &"g".repeat(127)),
        ("application/octet-stream", "identity"),
    ];
    for size in [0, 20, 100_000] {
        let value = vec![b'v'; size];
        for (index, (kind, coding)) in cases.iter().enumerate() {
            let headers: Vec<(&str, &str)> = [("Content-Type", *kind), ("content-encoding", *coding)]
                .into_iter()
                .filter(|(_, value)| !value.is_empty())
                .collect();
            let key = format!("{size}-{index}");
            client.request("PUT", &entity(&key), &headers, Some(&value)).expect(201, &key);
        }
    }
    for round in ["at once", "after a restart"] {
        let mut client = server.connect();
        for size in [0, 20, 100_000] {
            for (index, (kind, coding)) in cases.iter().enumerate() {
                let key = format!("{size}-{index}");
                for method in ["GET", "HEAD"] {
                    let got = client.request(method, &entity(&key), &[], None).expect(200, &key);
                    let kind = if kind.is_empty() { "application/octet-stream" } else { kind };
                    assert_eq!(got.header("content-type"), Some(kind), "{method} {key} {round}");
                    assert_eq!(
                        got.header("content-encoding"),
                        Some(*coding).filter(|c| !c.is_empty()),
                        "{key} {round}"
                    );
                    assert_eq!(got.header("content-length"), Some(&*size.to_string()), "{key} {round}");
                    assert!(method == "HEAD" || got.body == vec![b'v'; size], "{key} {round}");
                }
            }
        }
        let part = client.request("GET", &entity("100000-1"), &[("Range", "bytes=5-9")], None).expect(206, "a part");
        assert_eq!((part.header("content-encoding"), &part.body[..]), (Some("gzip"), &b"vvvvv"[..]));
        server.kill();
        server.start_again();
    }
    let mut client = server.connect();
    client.store("20-0", "another");
    assert_eq!(
        client.get("20-0").header("content-type"),
        Some("application/octet-stream"),
        "a PUT replaces everything"
    );
}

#[test]
fn content_types_survive_compaction_and_what_comes_after_it() {
    let mut server = Server::fresh("--threads 1 --sync os --compaction-rate 1GiB");
    let mut client = server.connect();
    let typed = [("Content-Type", "text/x-kept"), ("Content-Encoding", "br")];
    for size in [0, 20, 100_000] {
        client.request("PUT", &entity(format!("typed-{size}")), &typed, Some(&vec![b'v'; size])).expect(201, "PUT");
    }
    let (segment, _) = files::find_in_logs(server.data(), b"text/x-kept").swap_remove(0);
    // What fills the segment around them is overwritten, until the segment is worth compacting.
    let filler = vec![b'f'; 1 << 20];
    for number in 0..240 {
        client.store(format!("filler-{}", number % 30), &filler);
    }
    eventually("the segment of the typed values is compacted", Duration::from_secs(60), || !segment.exists());
    for end in [None, Some(Server::kill as fn(&mut Server)), Some(Server::terminate)] {
        if let Some(end) = end {
            end(&mut server);
            server.start_again();
        }
        for size in [0, 20, 100_000] {
            let key = format!("typed-{size}");
            let got = server.connect().get(&key).expect(200, &key);
            assert_eq!(got.header("content-type"), Some("text/x-kept"), "{key}");
            assert_eq!(got.header("content-encoding"), Some("br"), "{key}");
            assert!(got.body == vec![b'v'; size], "{key}");
        }
    }
}

#[test]
fn content_codings_of_several_lines_are_one_list() {
    let server = Server::fresh("");
    let mut client = server.connect();
    let headers = [("Content-Encoding", "gzip"), ("Content-Encoding", "br , zstd")];
    client.request("PUT", &entity("key"), &headers, Some(b"v")).expect(201, "PUT");
    assert_eq!(client.get("key").header("content-encoding"), Some("gzip, br, zstd"));
}

#[test]
fn what_cannot_be_kept_of_a_value_is_400() {
    let server = Server::fresh("");
    let long = "x".repeat(128);
    let cases = [
        vec![("Content-Type", &*long)],
        vec![("Content-Encoding", &*long)],
        vec![("Content-Encoding", &long[..64]), ("Content-Encoding", &long[..63])],
        vec![("Content-Type", "a/b"), ("Content-Type", "c/d")],
    ];
    for headers in cases {
        server.connect().request("PUT", &entity("key"), &headers, Some(b"v")).expect(400, &format!("{headers:?}"));
    }
    server.ask("GET", &entity("key")).expect(404, "nothing was written");
    // Nobody else minds.
    server.connect().request("GET", &entity("key"), &[("Content-Type", &long)], None).expect(404, "GET with a type");
}

#[test]
fn answers_say_what_caches_and_browsers_may_do() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store("key", "value");
    let tag = client.get("key").header("etag").unwrap().to_owned();
    let cases = [
        ("GET", entity("key"), vec![], 200, Some("no-cache")),
        ("HEAD", entity("key"), vec![], 200, Some("no-cache")),
        ("GET", entity("key"), vec![("Range", "bytes=0-1")], 206, Some("no-cache")),
        ("GET", entity("key"), vec![("If-None-Match", &*tag)], 304, Some("no-cache")),
        ("GET", "/v0/entities?start=a".to_owned(), vec![], 200, Some("no-cache")),
        ("GET", "/health".to_owned(), vec![], 200, Some("no-store")),
        // What is not there now may be there at once.
        ("GET", entity("absent"), vec![], 404, Some("no-store")),
        ("GET", "/nowhere".to_owned(), vec![], 400, Some("no-store")),
        ("POST", entity("key"), vec![], 405, Some("no-store")),
        ("PUT", entity("key"), vec![], 201, None),
        ("DELETE", entity("other"), vec![], 202, None),
        ("OPTIONS", "*".to_owned(), vec![], 204, None),
        ("GET", "/status".to_owned(), vec![], 200, Some("no-store")),
        ("GET", "/metrics".to_owned(), vec![], 200, Some("no-store")),
        ("GET", "/debug/pprof/".to_owned(), vec![], 200, Some("no-store")),
        ("GET", "/debug/nowhere".to_owned(), vec![], 400, Some("no-store")),
    ];
    for (method, target, headers, status, cache) in cases {
        let what = format!("{method} {target}");
        let answer = server.connect().request(method, &target, &headers, None).expect(status, &what);
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{what}");
        assert_eq!(answer.header("cache-control"), cache, "{what}");
    }
    let mut client = server.connect();
    client.send(b"nonsense\r\n\r\n").unwrap();
    assert_eq!(client.read("GET").expect(400, "nonsense").header("x-content-type-options"), Some("nosniff"));
}

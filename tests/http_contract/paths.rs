//! Other paths and methods, and what an error says.

use crate::{KEY_MAX, assert_usable_or_announced};
use koltso_testkit::{Server, entity};

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

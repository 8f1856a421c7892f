//! Other paths and methods, and what an error says.

use crate::{KEY_MAX, assert_usable_or_announced};
use koltso_testkit::{Server, entity};

#[test]
fn a_method_that_a_path_does_not_know_is_405_with_allow() {
    let server = Server::fresh("");
    let cases = [
        ("/v0/entity?id=a", "GET, HEAD, PUT, DELETE", &["POST", "PATCH", "TRACE", "CONNECT"][..]),
        ("/v0/entities?start=a", "GET, HEAD", &["PUT", "POST", "DELETE", "PATCH", "TRACE"]),
        ("/health", "GET, HEAD", &["PUT", "POST", "DELETE"]),
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
fn a_method_that_http_does_not_know_is_501() {
    let server = Server::fresh("");
    for target in ["/v0/entity?id=a", "/v0/entities?start=a", "/health", "/status", "/metrics"] {
        for method in ["PURGE", "get", "PROPFIND", "Put"] {
            let response = server.connect().request(method, target, &[], None);
            assert!(response.expect(501, &format!("{method} {target}")).text().contains(method));
        }
    }
}

#[test]
fn options_of_any_path_is_204_with_allow() {
    let server = Server::fresh("");
    let cases = [
        ("/v0/entity", "PUT"),
        ("/v0/entity?id=a", "DELETE"),
        ("/v0/entities?start=a", "HEAD"),
        ("/health", "GET"),
        ("/status", "GET"),
        ("/metrics", "GET"),
        ("/debug/pprof/", "GET"),
        ("/", "HEAD"),
        ("*", ""),
        ("/nowhere", ""),
        ("http://localhost", ""),
        ("http://localhost/v0/entity", "PUT"),
    ];
    for (target, known) in cases {
        let response = server.connect().request("OPTIONS", target, &[], None).expect(204, target);
        let allow = response.header("allow").unwrap_or_else(|| panic!("OPTIONS {target}: 204 without Allow"));
        assert!(known.is_empty() || allow.split(", ").any(|method| method == known), "OPTIONS {target}: {allow}");
        assert_eq!(response.header("content-length"), None, "OPTIONS {target}");
        let mut client = server.connect();
        client.send(format!("OPTIONS {target} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        client.read("OPTIONS").expect(204, &format!("OPTIONS {target} over HTTP/1.0, as HAProxy checks"));
    }
    let mut client = server.connect();
    let response = client.request("OPTIONS", "/v0/entity", &[], Some(b"a body")).expect(204, "OPTIONS with a body");
    assert_usable_or_announced(&mut client, &response, "OPTIONS with a body");
    server.connect().request("GET", "*", &[], None).expect(400, "GET *");
}

#[test]
fn head_is_wherever_get_is() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store("a", "value");
    for target in ["/v0/entities?start=a", "/health", "/v0/entity?id=a"] {
        let head = client.request("HEAD", target, &[], None).expect(200, target);
        let get = client.request("GET", target, &[], None).expect(200, target);
        for name in ["content-type", "content-length", "transfer-encoding", "cache-control", "etag"] {
            assert_eq!(head.header(name), get.header(name), "{name} of {target}");
        }
    }
    client.request("HEAD", "/v0/entities?start=a&limit=0", &[], None).expect(400, "HEAD of a wrong range");
    client.request("HEAD", "/v0/entities?start=a", &[], Some(b"a body")).expect(200, "HEAD with a body");
    client.get("a").expect(200, "the connection stays in step");
    for path in ["/status", "/metrics", "/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/captures"] {
        server.ask("HEAD", path).expect(200, path);
    }
}

#[test]
fn paths_and_names_of_parameters_may_be_percent_encoded() {
    let server = Server::fresh("");
    server.connect().store("a", "value");
    for target in ["/v0/%65ntity?%69d=a", "/%76%30/entity?id=%61", "/v0/entit%79?i%64=a&%61ck=1", "/v0/entity?%69%64=a"]
    {
        assert_eq!(server.ask("GET", target).expect(200, target).body, b"value", "{target}");
    }
    let mut client = server.connect();
    client.request("PUT", "/v0/%65ntity?%69d=b&%74tl=100000", &[], Some(b"v")).expect(201, "PUT");
    client.request("GET", "/v0/%65ntities?%73tart=a&%6cimit=1", &[], None).expect(200, "a range");
    for path in ["/h%65alth", "/st%61tus", "/m%65trics", "/d%65bug/pprof/"] {
        server.ask("GET", path).expect(200, path);
    }
    // An escaped slash is no slash, and what is no escape is nothing at all.
    for target in
        ["/v0%2Fentity?id=a", "/v0/%65ntit%7?id=a", "/v0/entity%00?id=a", "/v0/entity?%69d%=a", "/v0/entity?%6"]
    {
        server.ask("GET", target).expect(400, target);
    }
    for target in ["/v0/entity?id=a&%69d=a", "/v0/entity?%69d=a&i%64=b"] {
        assert!(server.ask("GET", target).expect(400, target).text().contains("id"), "{target}");
    }
}

#[test]
fn a_parameter_that_the_path_does_not_know_is_400_and_named() {
    let server = Server::fresh("");
    server.connect().store("a", "value");
    let cases = [
        ("/v0/entity?id=a&akc=3&fro=3", "akc"),
        ("/v0/entity?id=a&ID=b", "ID"),
        ("/v0/entity?id=a&start=b", "start"),
        ("/v0/entity?id=a&=", "``"),
        ("/v0/entity?x&id=a", "`x`"),
        ("/v0/entities?lmit=1", "lmit"),
        ("/v0/entities?start=a&id=b", "id"),
        ("/health?verbose=1", "verbose"),
        ("/status?pretty", "pretty"),
        ("/metrics?name=x", "name"),
        ("/debug/pprof/profile?second=1", "second"),
    ];
    for (target, name) in cases {
        let text = server.ask("GET", target).expect(400, target).text();
        assert!(text.contains(name), "{target}: {text:?} does not name {name}");
    }
    let mut client = server.connect();
    client.request("PUT", "/v0/entity?id=b&tttl=5", &[], Some(b"v")).expect(400, "PUT");
    client.get("b").expect(404, "nothing was written");
    let long = format!("/v0/entity?id=a&{}=1", "x".repeat(5000));
    assert!(server.ask("GET", &long).expect(400, "a long name").text().len() < 200);
}

#[test]
fn a_path_that_does_not_exist_is_400() {
    let server = Server::fresh("");
    let paths = [
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

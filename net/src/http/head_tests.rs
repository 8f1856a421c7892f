use proptest::prelude::*;

use super::*;

const MAX: usize = 16 * 1024;

fn complete(bytes: &[u8]) -> Head<'_> {
    match parse(bytes, MAX) {
        Parsed::Complete(head) => head,
        other => panic!("{} gave {other:?}", bytes.escape_ascii()),
    }
}

fn status(bytes: &[u8]) -> u16 {
    match parse(bytes, MAX) {
        Parsed::Bad(bad) => {
            assert!(bad.sentence.ends_with('.'), "{}", bad.sentence);
            bad.status
        }
        other => panic!("{} gave {other:?}", bytes.escape_ascii()),
    }
}

/// The status for a request with these header lines.
fn with(headers: &str) -> u16 {
    status(format!("PUT /x HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n").as_bytes())
}

#[test]
fn a_whole_head() {
    let bytes = b"PUT /v0/entity?id=a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\nif-none-match: \"t\"\r\n\
        Authorization: Bearer q\r\nExpect: 100-Continue\r\nConnection: foo, Close\r\n\r\nbody";
    let head = complete(bytes);
    assert_eq!((head.method, head.method_name), (Method::Put, "PUT"));
    assert_eq!((head.path, head.query), ("/v0/entity", "id=a?b"));
    assert_eq!(head.body, Framing::Length(12));
    assert_eq!(head.value(Seen::IF_NONE_MATCH), Some(&b"\"t\""[..]));
    assert_eq!(head.authorization, Some(&b"Bearer q"[..]));
    assert!(head.expect_continue && !head.keep_alive);
    assert_eq!(&bytes[head.head_len..], b"body");
}

#[test]
fn methods_are_case_sensitive_and_the_name_stays() {
    for (name, method) in [("DELETE", Method::Delete), ("get", Method::Other), ("PATCH", Method::Other)] {
        let bytes = format!("{name} / HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = complete(bytes.as_bytes());
        assert_eq!((head.method, head.method_name), (method, name));
    }
}

#[test]
fn targets() {
    for (target, path, query) in [
        ("/", "/", ""),
        ("/a?", "/a", ""),
        ("http://h:1/a?q", "/a", "q"),
        ("HTTPS://h", "/", ""),
        ("http://h?q=/", "/", "q=/"),
    ] {
        let bytes = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = complete(bytes.as_bytes());
        assert_eq!((head.path, head.query), (path, query), "{target}");
    }
    for target in ["*", "host:80", "ftp://h/", "http:///x", "x/y"] {
        assert_eq!(status(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()), 400, "{target}");
    }
}

#[test]
fn a_fragment_is_refused_and_the_star_belongs_to_options() {
    for target in ["/a#b", "/#", "/a?b#c", "http://h/#", "#"] {
        assert_eq!(status(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()), 400, "{target}");
    }
    for (target, path) in [("*", "*"), ("http://h", "*"), ("http://h/", "/"), ("/a", "/a")] {
        let bytes = format!("OPTIONS {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = complete(bytes.as_bytes());
        assert_eq!((head.method, head.path), (Method::Options, path), "{target}");
    }
    assert_eq!(status(b"OPTIONS ** HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
}

#[test]
fn the_host_is_valid_and_that_of_the_target_wins() {
    assert_eq!(complete(b"GET / HTTP/1.1\r\nHost: a:1\r\n\r\n").host, "a:1");
    assert_eq!(complete(b"GET http://b/ HTTP/1.1\r\nHost: a:1\r\n\r\n").host, "b");
    assert_eq!(complete(b"GET / HTTP/1.0\r\n\r\n").host, "");
    for host in ["a b", "a/b", "u@h", "a,b", "a:x", "\u{e9}", ":1"] {
        assert_eq!(status(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()), 400, "{host}");
    }
    for target in ["http://u@h/", "http://a,b/", "http://:1/", "http://a:x/"] {
        assert_eq!(status(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()), 400, "{target}");
    }
}

#[test]
fn the_lines_of_a_list_are_joined_and_other_lines_stand_once() {
    let bytes =
        b"\r\nGET /if-match: HTTP/1.1\r\nHost: a\r\nIf-Match: \"a,b\" , \"c\"\r\nX-If-Match: \"x\"\r\nif-match:\r\n\
        IF-MATCH:\t\"d\" \r\n\r\nIf-Match: \"body\"";
    let head = complete(bytes);
    let tags: Vec<&[u8]> = head.elements(Seen::IF_MATCH).expect("there are lines").collect();
    assert_eq!(tags, [&b"\"a,b\""[..], b"\"c\"", b"\"d\""]);
    assert!(head.elements(Seen::IF_NONE_MATCH).is_none() && head.value(Seen::RANGE).is_none());
    assert_eq!(with("Range: bytes=0-1\r\nRange: bytes=0-1"), 400);
    assert_eq!(with("Content-Type: a/b\r\nContent-Type: a/b"), 400);
    assert_eq!(with("Origin: a\r\nOrigin: b"), 400);
}

#[test]
fn keep_alive_by_version_and_tokens() {
    for (version, connection, expected) in [
        ("1.1", "", true),
        ("1.1", "close", false),
        ("1.1", "keep-alive, close", false),
        ("1.0", "", false),
        ("1.0", "Keep-Alive", true),
        ("1.0", "keep-alive, close", false),
    ] {
        let bytes = format!("GET / HTTP/{version}\r\nHost: a\r\nConnection: {connection}\r\n\r\n");
        assert_eq!(complete(bytes.as_bytes()).keep_alive, expected, "{version} {connection}");
    }
}

#[test]
fn framing_that_could_be_read_two_ways_is_refused() {
    for (headers, expected) in [
        ("Content-Length: 1\r\nContent-Length: 1", 400),
        ("Content-Length: 1\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0", 400),
        ("Content-Length: +1", 400),
        ("Content-Length: 1, 1", 400),
        ("Content-Length:", 400),
        ("Content-Length: 0x1", 400),
        ("Content-Length: 18446744073709551616", 400),
        ("Transfer-Encoding: gzip, chunked", 501),
        ("Transfer-Encoding: identity", 501),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding : chunked", 400),
        ("Content-Length : 1", 400),
        ("X: a\r\n folded", 400),
        ("X: a\0b", 400),
        ("X: a\rb", 400),
        ("X y: a", 400),
        (": a", 400),
    ] {
        assert_eq!(with(headers), expected, "{headers:?}");
    }
    assert_eq!(status(b"PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
    let chunked = b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n";
    assert_eq!(complete(chunked).body, Framing::Chunked);
    let most = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\n\r\n";
    assert_eq!(complete(most).body, Framing::Length(u64::MAX));
    let zero = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(complete(zero).body, Framing::None);
}

#[test]
fn host_version_and_expectation() {
    assert_eq!(status(b"GET / HTTP/1.1\r\n\r\n"), 400);
    assert_eq!(with("Host: b"), 400);
    assert_eq!(complete(b"GET / HTTP/1.0\r\n\r\n").version, Version::Http10);
    assert_eq!(with("Expect: 200-ok"), 417);
    assert_eq!(with("Expect: 100-continue, 200-ok"), 417);
    for (list, expected) in [("", false), (",", false), (" ,100-Continue,", true), ("100-continue, 100-continue", true)]
    {
        let bytes = format!("PUT / HTTP/1.1\r\nHost: a\r\nExpect: {list}\r\nContent-Length: 1\r\n\r\n");
        assert_eq!(complete(bytes.as_bytes()).expect_continue, expected, "{list:?}");
    }
    assert!(!complete(b"PUT / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").expect_continue);
    assert_eq!(status(b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"), 505);
    assert_eq!(status(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505);
    assert_eq!(status(b"GET / HTTP/x\r\n\r\n"), 400);
    assert_eq!(status(b"GET /\r\n\r\n"), 400);
    assert_eq!(with("Authorization: a\r\nAuthorization: b"), 400);
}

#[test]
fn limits_are_exact() {
    let head = |bytes: usize| {
        let frame = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(bytes - frame)).into_bytes()
    };
    assert_eq!(complete(&head(MAX)).head_len, MAX);
    assert_eq!(status(&head(MAX + 1)), 431);
    assert!(matches!(parse(&head(MAX + 9)[..MAX], MAX), Parsed::Partial));
    assert_eq!(status(&head(MAX + 9)[..MAX + 1]), 431);

    let lines =
        |lines: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(lines - 1)).into_bytes();
    complete(&lines(64));
    assert_eq!(status(&lines(65)), 431);
}

proptest! {
    #[test]
    fn any_prefix_is_partial_and_the_rest_changes_nothing(
        path in "/[a-z0-9]{0,20}", value in "[ -~]{0,40}", length in 1_u64..1000, tail: Vec<u8>,
    ) {
        let whole = format!("PUT {path} HTTP/1.1\r\nHost: h\r\nX-A: {value}\r\nContent-Length: {length}\r\n\r\n");
        for cut in 0..whole.len() {
            prop_assert!(matches!(parse(&whole.as_bytes()[..cut], MAX), Parsed::Partial));
        }
        let mut bytes = whole.clone().into_bytes();
        bytes.extend_from_slice(&tail);
        let head = complete(&bytes);
        prop_assert_eq!(head.head_len, whole.len());
        prop_assert_eq!(head.path, path);
        prop_assert_eq!(head.body, Framing::Length(length));
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>, line in "[ -~\r\n]{0,200}") {
        let _ = parse(&bytes, MAX);
        let _ = parse(line.as_bytes(), MAX);
        let _ = parse(format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n").as_bytes(), MAX);
    }
}

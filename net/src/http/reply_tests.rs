use std::time::UNIX_EPOCH;

use super::*;

const DATE: &str = "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nX-Content-Type-Options: nosniff\r\n";

fn context(head: bool, version: Version, keep_alive: bool) -> ReplyContext {
    let date = Date::new(UNIX_EPOCH);
    ReplyContext { version, head, keep_alive, ..ReplyContext::unread(&date) }
}

fn written(context: ReplyContext, write: impl Fn(&mut Reply<'_>)) -> String {
    let mut out = Vec::new();
    write(&mut Reply::new(&mut out, context));
    String::from_utf8(out).expect("text")
}

#[test]
fn a_value() {
    let expected = format!(
        "HTTP/1.1 200 OK\r\n{DATE}Content-Type: application/octet-stream\r\nCache-Control: no-cache\r\n\
         Accept-Ranges: bytes\r\nETag: \"7\"\r\nContent-Length: 5\r\n\r\n"
    );
    let get = context(false, Version::Http11, true);
    assert_eq!(written(get, |reply| reply.value(b"\"7\"", b"hello")), expected.clone() + "hello");
    assert_eq!(written(get, |reply| reply.value_head(b"\"7\"", 5)), expected);
    let head = context(true, Version::Http11, true);
    assert_eq!(written(head, |reply| reply.value(b"\"7\"", b"hello")), expected);
}

#[test]
fn a_part_and_what_a_value_says_of_itself() {
    let value = Representation {
        etag: b"\"7\"",
        content_type: b"text/plain",
        content_encoding: b"gzip",
        length: 9,
        part: Some(Part { first: 2, last: 4 }),
    };
    let head = |value: Representation<'_>| {
        let mut out = Vec::new();
        context(false, Version::Http11, true).representation_head(&mut out, &value);
        String::from_utf8(out).expect("text")
    };
    assert_eq!(
        head(value),
        format!(
            "HTTP/1.1 206 Partial Content\r\n{DATE}Content-Type: text/plain\r\nCache-Control: no-cache\r\n\
             Accept-Ranges: bytes\r\nETag: \"7\"\r\nContent-Encoding: gzip\r\nContent-Range: bytes 2-4/9\r\n\
             Content-Length: 3\r\n\r\n"
        )
    );
    let hostile = Representation { content_type: b"a\r\nX: y", content_encoding: b"\0", part: None, ..value };
    let plain = written(context(false, Version::Http11, true), |reply| reply.value_head(b"\"7\"", 9));
    assert_eq!(head(hostile), plain, "what cannot be a header line is left out");
}

#[test]
fn connection_header_says_what_the_version_does_not() {
    let begin = |version, keep_alive| written(context(false, version, keep_alive), |reply| reply.empty(201));
    let with = |line| format!("HTTP/1.1 201 Created\r\n{DATE}{line}Content-Length: 0\r\n\r\n");
    assert_eq!(begin(Version::Http11, true), with(""));
    assert_eq!(begin(Version::Http11, false), with("Connection: close\r\n"));
    assert_eq!(begin(Version::Http10, true), with("Connection: keep-alive\r\n"));
    assert_eq!(begin(Version::Http10, false), with("Connection: close\r\n"));
    let closed = written(context(false, Version::Http11, true), |reply| {
        reply.close();
        reply.empty(201);
    });
    assert_eq!(closed, with("Connection: close\r\n"));
}

#[test]
fn errors_are_one_sentence() {
    let get = context(false, Version::Http11, true);
    let expected = format!(
        "HTTP/1.1 504 Not Enough Replicas\r\n{DATE}Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n\
         Content-Length: 4\r\n\r\n"
    );
    assert_eq!(written(get, |reply| reply.error(504, "No.")), expected.clone() + "No.\n");
    let head = context(true, Version::Http11, true);
    assert_eq!(written(head, |reply| reply.error(504, "No.")), expected);
    let allow = written(get, |reply| reply.error_with(405, "Allow", "GET, PUT", "No."));
    assert!(allow.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"));
    assert!(allow.contains("\r\nAllow: GET, PUT\r\n"));
}

#[test]
fn bodies_that_must_not_be() {
    let get = context(false, Version::Http11, true);
    assert_eq!(written(get, |reply| reply.empty(204)), format!("HTTP/1.1 204 No Content\r\n{DATE}\r\n"));
    assert_eq!(
        written(get, |reply| reply.not_modified(b"\"7\"")),
        format!("HTTP/1.1 304 Not Modified\r\n{DATE}Cache-Control: no-cache\r\nETag: \"7\"\r\n\r\n")
    );
}

#[test]
fn streams_are_chunked_or_close() {
    let head = |version| written(context(false, version, true), |reply| reply.stream_head("a/b"));
    assert_eq!(
        head(Version::Http11),
        format!(
            "HTTP/1.1 200 OK\r\n{DATE}Content-Type: a/b\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
    );
    assert_eq!(
        head(Version::Http10),
        format!("HTTP/1.1 200 OK\r\n{DATE}Connection: close\r\nContent-Type: a/b\r\nCache-Control: no-cache\r\n\r\n")
    );
}

#[test]
fn a_code_without_a_phrase_still_parses() {
    let odd = written(context(false, Version::Http11, true), |reply| reply.empty(299));
    assert!(odd.starts_with("HTTP/1.1 299 Unknown\r\nDate: "));
}

#[test]
fn an_extra_line_goes_with_every_answer() {
    let mut get = context(false, Version::Http11, true);
    get.set_extra(ExtraLine::ratio("Replicas", 2, 64));
    for answer in [written(get, |reply| reply.empty(201)), written(get, |reply| reply.error(504, "No."))] {
        assert!(answer.contains("\r\nReplicas: 2/64\r\n"), "{answer}");
    }
}

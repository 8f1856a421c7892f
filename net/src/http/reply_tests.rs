use std::time::UNIX_EPOCH;

use super::*;

const DATE: &str = "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n";

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
        "HTTP/1.1 200 OK\r\n{DATE}Content-Type: application/octet-stream\r\nETag: \"7\"\r\nContent-Length: 5\r\n\r\n"
    );
    let get = context(false, Version::Http11, true);
    assert_eq!(written(get, |reply| reply.value(b"\"7\"", b"hello")), expected.clone() + "hello");
    assert_eq!(written(get, |reply| reply.value_head(b"\"7\"", 5)), expected);
    let head = context(true, Version::Http11, true);
    assert_eq!(written(head, |reply| reply.value(b"\"7\"", b"hello")), expected);
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
        "HTTP/1.1 504 Not Enough Replicas\r\n{DATE}Content-Type: text/plain; charset=utf-8\r\nContent-Length: 4\r\n\r\n"
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
        format!("HTTP/1.1 304 Not Modified\r\n{DATE}ETag: \"7\"\r\n\r\n")
    );
}

#[test]
fn streams_are_chunked_or_close() {
    let head = |version| written(context(false, version, true), |reply| reply.stream_head("a/b"));
    assert_eq!(
        head(Version::Http11),
        format!("HTTP/1.1 200 OK\r\n{DATE}Content-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n")
    );
    assert_eq!(
        head(Version::Http10),
        format!("HTTP/1.1 200 OK\r\n{DATE}Connection: close\r\nContent-Type: a/b\r\n\r\n")
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

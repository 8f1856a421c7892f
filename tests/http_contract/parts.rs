//! `Range`: a part of a value.

use koltso_testkit::{Random, Server, entity};

#[test]
fn a_single_range_is_206_with_that_part() {
    let mut random = Random::announced("a_single_range_is_206_with_that_part");
    let server = Server::fresh("");
    let mut client = server.connect();
    // Copied under the lock, copied behind the head, and sent from where it lies.
    for length in [10, 5_000, 3_000_000] {
        let value = random.bytes(length);
        client.store("key", &value);
        let tag = client.get("key").header("etag").unwrap().to_owned();
        let cases = [
            ("bytes=0-9".to_owned(), 0, 10),
            ("bytes=3-3".to_owned(), 3, 4),
            ("bytes=1-".to_owned(), 1, length),
            ("bytes=-4".to_owned(), length - 4, length),
            ("bytes=-99999999".to_owned(), 0, length),
            ("BYTES=2-99999999999999999999999".to_owned(), 2, length),
            (format!("bytes={}-", length - 1), length - 1, length),
        ];
        for (range, from, to) in cases {
            let got = client.request("GET", &entity("key"), &[("Range", &range)], None).expect(206, &range);
            assert!(got.body == value[from..to], "{range} of {length}");
            let expected = format!("bytes {from}-{}/{length}", to - 1);
            assert_eq!(got.header("content-range"), Some(&*expected), "{range} of {length}");
            assert_eq!(got.header("etag"), Some(&*tag), "{range} of {length}");
            assert_eq!(got.header("accept-ranges"), Some("bytes"));
            let head =
                client.request("HEAD", &entity("key"), &[("Range", &range)], None).expect(200, "only GET has ranges");
            assert_eq!(head.header("content-length"), Some(&*length.to_string()));
        }
    }
}

#[test]
fn a_range_behind_the_value_is_416_with_its_length() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store("key", "ten bytes!");
    client.store("empty", "");
    for (key, length, ranges) in
        [("key", 10, &["bytes=10-", "bytes=99-100", "bytes=-0"][..]), ("empty", 0, &["bytes=0-"])]
    {
        for range in ranges {
            let answer = client.request("GET", &entity(key), &[("Range", range)], None).expect(416, range);
            assert_eq!(answer.header("content-range"), Some(&*format!("bytes */{length}")), "{range}");
        }
    }
    client.request("GET", &entity("absent"), &[("Range", "bytes=10-")], None).expect(404, "a range of nothing");
}

#[test]
fn several_ranges_and_what_cannot_be_read_are_the_whole_value() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store("key", "ten bytes!");
    for range in ["bytes=0-1,3-4", "bytes=0-1, 99-", "lines=0-1", "bytes=5-2", "bytes=x", "bytes=", "0-1"] {
        let got = client.request("GET", &entity("key"), &[("Range", range)], None).expect(200, range);
        assert_eq!(got.body, b"ten bytes!", "{range}");
        assert_eq!(got.header("content-range"), None, "{range}");
    }
    let twice = [("Range", "bytes=0-1"), ("Range", "bytes=3-4")];
    server.connect().request("GET", &entity("key"), &twice, None).expect(400, "two lines of Range");
    client.request("PUT", &entity("key"), &[("Range", "bytes=0-1")], Some(b"new")).expect(201, "PUT has no ranges");
    assert_eq!(client.value("key").as_deref(), Some(&b"new"[..]));
}

#[test]
fn if_range_is_heeded() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store("key", "ten bytes!");
    let tag = client.get("key").header("etag").unwrap().to_owned();
    let weak = format!("W/{tag}");
    for (condition, status) in
        [(&*tag, 206), ("\"other\"", 200), (&weak, 200), ("Thu, 01 Jan 1970 00:00:00 GMT", 200), ("*", 200)]
    {
        let headers = [("Range", "bytes=0-2"), ("If-Range", condition)];
        let got = client.request("GET", &entity("key"), &headers, None).expect(status, condition);
        assert_eq!(got.body.len(), if status == 206 { 3 } else { 10 }, "{condition}");
    }
    let headers = [("Range", "bytes=99-"), ("If-Range", "\"other\"")];
    client.request("GET", &entity("key"), &headers, None).expect(200, "another version has no part that is behind it");
    let headers = [("Range", "bytes=0-2"), ("If-None-Match", &tag)];
    client.request("GET", &entity("key"), &headers, None).expect(304, "conditions come before ranges");
}

//! What HEAD says is what GET says.

use koltso_testkit::{Random, Server, entity};

/// The head of an answer but for the time at which it was sent.
fn said(response: &koltso_testkit::Response) -> (u16, Vec<(String, String)>) {
    let lines = response.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("date"));
    (response.status, lines.cloned().collect())
}

#[test]
fn whatever_is_asked_head_says_what_get_says() {
    let mut random = Random::announced("whatever_is_asked_head_says_what_get_says");
    let server = Server::fresh("--cors-origin http://page.example");
    let mut client = server.connect();
    let typed = [("Content-Type", "text/plain"), ("Content-Encoding", "gzip")];
    client.request("PUT", &entity("typed"), &typed, Some(b"value")).expect(201, "a value with a type");
    client.store("small", "value");
    client.store("empty", "");
    client.store("large", vec![b'v'; 100_000]);
    let tag = client.get("small").header("etag").unwrap().to_owned();
    let targets = [
        "/v0/entity?id=typed",
        "/v0/entity?id=small",
        "/v0/entity?id=empty",
        "/v0/entity?id=large",
        "/v0/entity?id=absent",
        "/v0/entity?id=",
        "/v0/entity",
        "/v0/entity?id=small&ack=2",
        "/v0/entity?id=small&x=1",
        "/v0/entities?start=a",
        "/v0/entities?start=a&limit=0",
        "/v0/entities",
        "/health",
        "/health?x",
        "/nowhere",
        "/v0/%65ntity?id=small",
        "/v0/entity?id=%4",
        "/v0/entit%zz",
    ];
    let lines: [(&str, &str); 11] = [
        ("If-None-Match", &tag),
        ("If-None-Match", "*"),
        ("If-None-Match", "\"x\""),
        ("If-Match", &tag),
        ("If-Match", "\"x\""),
        ("If-Unmodified-Since", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("If-Modified-Since", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("Origin", "http://page.example"),
        ("Origin", "http://evil.example"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Accept", "text/html"),
    ];
    for _ in 0..1500 {
        let target = *random.choose(&targets);
        let mut headers: Vec<(&str, &str)> = Vec::new();
        for _ in 0..random.below(3) {
            let line = *random.choose(&lines);
            if headers.iter().all(|(name, _)| *name != line.0) {
                headers.push(line);
            }
        }
        let [head, get] = ["HEAD", "GET"].map(|method| {
            let mut client = server.connect();
            let answer = client.request(method, target, &headers, None);
            // The connection stays in step, or ends.
            if !answer.says_close() {
                client.get("small").expect(200, target);
            }
            answer
        });
        assert_eq!(said(&head), said(&get), "{target} with {headers:?}");
        assert!(head.body.is_empty(), "{target} with {headers:?}");
    }
}

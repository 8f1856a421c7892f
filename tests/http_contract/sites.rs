//! Names that a listener answers to, and pages of other sites.

use koltso_testkit::{Client, Response, Server, entity};

/// The answer to a request for `host` with these lines.
fn ask(server: &Server, method: &str, target: &str, host: &str, lines: &str) -> Response {
    let mut client = server.connect();
    client.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n").as_bytes()).unwrap();
    client.read(method)
}

fn targets() -> [String; 5] {
    [
        entity("a"),
        "/v0/entities?start=a".to_owned(),
        "/health".to_owned(),
        "/status".to_owned(),
        "/debug/pprof/".to_owned(),
    ]
}

#[test]
fn a_listener_on_loopback_answers_to_its_names_only() {
    let server = Server::fresh("--allowed-host db.example,other.example");
    server.connect().store("a", "v");
    let origin = "Origin: http://evil.example\r\n";
    for target in targets() {
        for host in
            ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]", "a.localhost", "db.example", "DB.example:80", ""]
        {
            ask(&server, "GET", &target, host, "").expect(200, &format!("{target}, {host}"));
        }
        for host in ["evil.example", "evil.example:1337", "10.0.0.1", "localhost.evil.example", "db.example.evil"] {
            let text = ask(&server, "GET", &target, host, origin).expect(403, &format!("{target}, {host}")).text();
            assert!(text.contains("--allowed-host"), "{text}");
        }
        ask(&server, "GET", &format!("http://evil.example{target}"), "localhost", "").expect(403, &target);
    }
    ask(&server, "PUT", &entity("b"), "evil.example", "Content-Length: 0\r\n").expect(403, "PUT");
    ask(&server, "DELETE", &entity("a"), "evil.example", "").expect(403, "DELETE");
    ask(&server, "OPTIONS", "*", "evil.example", "").expect(403, "OPTIONS");
    server.ask("GET", &entity("a")).expect(200, "nothing was deleted");
    server.ask("GET", &entity("b")).expect(404, "nothing was written");
}

#[test]
fn requests_from_pages_of_other_sites_are_403() {
    let server = Server::fresh("");
    server.connect().store("a", "v");
    for target in targets() {
        ask(&server, "GET", &target, "localhost", "Sec-Fetch-Site: cross-site\r\n").expect(403, &target);
        for site in ["same-origin", "same-site", "none"] {
            ask(&server, "GET", &target, "localhost", &format!("Sec-Fetch-Site: {site}\r\n")).expect(200, site);
        }
    }
    let capture = "/debug/pprof/flamegraph?seconds=1";
    ask(&server, "GET", capture, "localhost", "Sec-Fetch-Site: cross-site\r\n").expect(403, "a capture");
    let preflight =
        "Origin: https://page.example\r\nSec-Fetch-Site: cross-site\r\nAccess-Control-Request-Method: PUT\r\n";
    ask(&server, "OPTIONS", &entity("a"), "localhost", preflight).expect(403, "a preflight");
    let plain = ask(&server, "GET", &entity("a"), "localhost", "Origin: https://page.example\r\n").expect(200, "GET");
    assert_eq!(plain.header("access-control-allow-origin"), None);
}

#[test]
fn pages_of_allowed_origins_may_use_the_server() {
    let server = Server::fresh("--cors-origin https://page.example,http://localhost:8080");
    server.connect().store("a", "v");
    let page = "Origin: https://page.example\r\nSec-Fetch-Site: cross-site\r\n";
    let assert_allowed = |answer: &Response, what: &str| {
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://page.example"), "{what}");
        assert_eq!(answer.header("vary"), Some("Origin"), "{what}");
    };
    for target in targets() {
        assert_allowed(&ask(&server, "GET", &target, "localhost", page).expect(200, &target), &target);
        let preflight = format!("{page}Access-Control-Request-Method: GET\r\n");
        let answer = ask(&server, "OPTIONS", &target, "localhost", &preflight).expect(204, &target);
        assert_allowed(&answer, &target);
        assert!(
            answer.header("access-control-allow-methods").is_some_and(|allowed| allowed.contains("PUT")),
            "{target}"
        );
        assert!(answer.header("access-control-allow-headers").is_some_and(|allowed| allowed.contains("If-Match")));
    }
    assert_allowed(&ask(&server, "GET", &entity("absent"), "localhost", page).expect(404, "404"), "an error");
    // Also where the body comes behind the head.
    let mut client = server.connect();
    let head = format!(
        "PUT {} HTTP/1.1\r\nHost: localhost\r\n{page}Content-Length: 3\r\nExpect: 100-continue\r\n\r\n",
        entity("b")
    );
    client.send(head.as_bytes()).unwrap();
    client.read("PUT").expect(100, "PUT");
    client.send(b"new").unwrap();
    assert_allowed(&client.read("PUT").expect(201, "PUT"), "PUT");
    let evil = "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n";
    ask(&server, "GET", &entity("a"), "localhost", evil).expect(403, "another origin");
    let nobody = ask(&server, "GET", &entity("a"), "localhost", "").expect(200, "no origin");
    assert_eq!((nobody.header("vary"), nobody.header("access-control-allow-origin")), (Some("Origin"), None));
    let mut client: Client = server.connect();
    assert_eq!(client.value("b").as_deref(), Some(&b"new"[..]));
}

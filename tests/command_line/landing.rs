//! `/`, the page for a person who opens the address, and what all pages have in common.

use koltso_testkit::{Client, Launch, Response, Server};

use crate::any_listen;

const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

fn open(server: &Server, accept: &str) -> Response {
    server.connect().request("GET", "/", &[("Accept", accept)], None).expect(200, "GET /")
}

#[test]
fn a_person_who_opens_the_address_sees_what_this_is() {
    let server = Server::fresh("--threads 1");
    let host = server.address().to_string();
    let (page, text) = (open(&server, BROWSER), open(&server, "*/*"));
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(text.header("content-type"), Some("text/plain; charset=utf-8"));
    let plain = server.ask("GET", "/").expect(200, "without Accept");
    assert_eq!(plain.text(), text.text());
    for answer in [&page, &text] {
        let said = answer.text();
        for word in ["Koltso", env!("CARGO_PKG_VERSION"), "serving", "/status", "/metrics", "/debug/pprof/", "/health"]
        {
            assert!(said.contains(word), "{word} is not in\n{said}");
        }
        assert!(said.contains("curl -T FILE ") && said.contains("http://localhost/v0/entity?id=KEY"), "{said}");
        assert_eq!(answer.header("vary"), Some("Accept"));
    }
    assert!(page.text().contains("<!doctype html>") && !text.text().contains('<'));
    // It is whole in itself.
    for word in ["<script", " src=", "url(", "@import", "http-equiv"] {
        assert!(!page.text().contains(word), "{word}");
    }
    for link in page.text().split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()) {
        server.ask("GET", &link).expect(200, &link);
    }
    for (method, target, status) in
        [("HEAD", "/", 200), ("OPTIONS", "/", 204), ("GET", "/?x=1", 400), ("PUT", "/", 405)]
    {
        let answer = server.ask(method, target).expect(status, &format!("{method} {target}"));
        assert!(method != "HEAD" || answer.body.is_empty());
        assert!(
            !matches!(status, 204 | 405) || answer.header("allow") == Some("GET, HEAD"),
            "{:?}",
            answer.header("allow")
        );
    }
    let mut foreign = server.connect();
    foreign.send(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n").unwrap();
    foreign.read("GET").expect(403, "by a name of somebody else");
    let mut old = server.connect();
    old.send(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert!(old.read("GET").expect(200, "HTTP/1.0 without a host").text().contains(&host));
}

#[test]
fn the_landing_page_says_nothing_that_needs_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let admin = any_listen();
    let closed = Launch::on(&folder.path().join("data"))
        .host("0.0.0.0")
        .flags(&format!("--threads 1 --admin-listen {admin}"))
        .start();
    for accept in [BROWSER, "*/*"] {
        let said = open(&closed, accept).text();
        assert!(said.contains("serving") && said.contains("--admin-token-file"), "{said}");
        assert!(!said.contains(env!("CARGO_PKG_VERSION")) && !said.contains("href=\"/status\""), "{said}");
    }
    // The listener of the control plane has it, too, and names the API's.
    let mut client = Client::connect(admin.parse().unwrap()).unwrap();
    let said = client.request("GET", "/", &[("Accept", BROWSER)], None).expect(200, "at its own listener").text();
    assert!(said.contains(env!("CARGO_PKG_VERSION")) && said.contains("href=\"/status\""), "{said}");
    assert!(said.contains(&format!(":{}/v0/entity", closed.port())), "{said}");
}

#[test]
fn every_page_of_the_control_plane_is_guarded_in_a_browser() {
    let server = Server::fresh("--threads 1");
    let targets = [
        "/",
        "/status",
        "/metrics",
        "/debug/pprof/",
        "/debug/pprof/captures",
        "/debug/pprof/cmdline",
        "/debug/pprof/heap",
        "/debug/pprof/flamegraph?event=heap",
        "/debug/pprof/heap?format=svg",
        "/debug/pprof/nonsense",
        "/status?x",
        "/debug/pprof/stalls",
    ];
    for target in targets {
        let answer = server.connect().request("GET", target, &[("Accept", BROWSER)], None);
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{target}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{target}");
        let policy = answer.header("content-security-policy").unwrap_or_default();
        assert!(
            policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{target}: {policy}"
        );
        assert!(answer.header("content-type").is_some(), "{target}");
    }
    for (target, allow) in [
        ("/status", "GET, HEAD"),
        ("/debug/pprof/", "GET, HEAD"),
        ("/debug/pprof/captures", "GET, HEAD"),
        ("/debug/pprof/profile", "GET"),
        ("/debug/pprof/symbol", "GET, HEAD, POST"),
    ] {
        let options = server.ask("OPTIONS", target).expect(204, target);
        assert_eq!(options.header("allow"), Some(allow), "OPTIONS {target}");
        assert_eq!(server.ask("PUT", target).expect(405, target).header("allow"), Some(allow), "PUT {target}");
        let head = server.ask("HEAD", target);
        assert_eq!(head.status, if allow == "GET" { 405 } else { 200 }, "HEAD {target}");
        assert!(head.body.is_empty(), "HEAD {target}");
    }
}

//! `/status`, `/metrics` and `/health`, also beyond loopback.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::any_listen;
use koltso_testkit::client::{Framing, get_bytes, put_bytes};
use koltso_testkit::json::{json_number, json_object, json_string, json_value};
use koltso_testkit::metrics::samples;
use koltso_testkit::{Client, Launch, Random, Response, Server, entity, eventually, files, volume};

// --- the control plane ---

#[test]
fn status_is_json_with_the_figures_of_the_node() {
    let server = Server::fresh("--max-value 123456");
    let mut client = server.connect();
    client.store_all((0..10).map(|index| (format!("k{index}"), vec![b'v'; 1000])), 10);
    client.delete("k3").expect(202, "DELETE");
    let response = server.ask("GET", "/status").expect(200, "GET /status");
    assert!(response.header("content-type").unwrap_or_default().starts_with("application/json"));
    let status = response.text();
    assert_eq!(json_string(&status, "state"), "serving");
    assert!(!json_string(&status, "version").is_empty());
    assert!(json_value(&status, "node").len() > 2);
    assert!(["io_uring", "epoll"].contains(&json_string(&status, "runtime")));
    let storage = json_object(&status, "storage");
    assert_eq!(json_number(storage, "records"), 9);
    assert!((9000..12_000).contains(&json_number(storage, "live_bytes")), "{storage}");
    assert!(json_number(storage, "dead_bytes") >= 1000, "{storage}");
    assert!(json_number(storage, "segments") >= 1, "{storage}");
    assert_eq!(json_number(storage, "damaged_records"), 0);
    assert!(json_object(&status, "config").contains("123456"), "the configuration in force: {status}");
}

#[test]
fn metrics_are_prometheus_text_and_count_requests() {
    let server = Server::fresh("");
    let mut client = server.connect();
    let before = samples(&server.ask("GET", "/metrics").expect(200, "GET /metrics"));
    assert!(before.len() > 5, "{before:?}");
    for index in 0..100 {
        client.store(format!("k{index}"), "value");
    }
    for _ in 0..57 {
        client.get("absent").expect(404, "GET");
    }
    // Whatever the names are: something grew by 100, and something by 57. Cores may publish with a
    // delay.
    eventually("the requests are counted", Duration::from_secs(10), || {
        let after = samples(&server.ask("GET", "/metrics").expect(200, "GET /metrics"));
        let growth = |name: &str, value: f64| {
            value - before.iter().find(|(other, _)| other == name).map_or(0.0, |(_, value)| *value)
        };
        let grew_by = |count: f64| after.iter().any(|(name, value)| (growth(name, *value) - count).abs() < 0.5);
        grew_by(100.0) && grew_by(57.0)
    });
}

#[test]
fn answers_of_the_control_plane_close_the_connection() {
    let server = Server::fresh("");
    for path in ["/status", "/metrics"] {
        let mut client = server.connect();
        client.store("key", "value");
        // After other requests on the same connection, which is handed over with whatever was read.
        let answer = client.request("GET", path, &[], None).expect(200, path);
        assert!(answer.says_close() || answer.framing == Framing::UntilClose, "{path}");
        assert!(client.is_ended(Duration::from_secs(5)), "{path}: the connection stays open");
        // In one write with a request before it.
        let mut client = server.connect();
        client
            .send(
                &[
                    &put_bytes("key", b"newer")[..],
                    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes(),
                ]
                .concat(),
            )
            .unwrap();
        client.read("PUT").expect(201, "PUT before it");
        client.read("GET").expect(200, path);
        // Over HTTP/1.0.
        let mut client = server.connect();
        client.send(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        client.read("GET").expect(200, path);
    }
    assert_eq!(server.connect().value("key").as_deref(), Some(&b"newer"[..]));
}

#[test]
fn the_control_plane_answers_while_the_data_plane_is_saturated() {
    let server = Server::fresh("--sync os");
    server.connect().store("large", vec![b'v'; 200_000]);
    let stop = AtomicBool::new(false);
    let slowest = std::thread::scope(|scope| {
        for thread in 0..6 {
            let mut client = server.connect();
            let stop = &stop;
            scope.spawn(move || {
                let batch: Vec<u8> = (0..64)
                    .flat_map(|index| {
                        if index % 4 == 0 {
                            get_bytes("large")
                        } else {
                            put_bytes(format!("load-{thread}-{index}"), &[b'v'; 500])
                        }
                    })
                    .collect();
                while !stop.load(Ordering::Relaxed) {
                    client.send(&batch).unwrap();
                    for _ in 0..64 {
                        let status = client.read("PUT").status;
                        assert!(matches!(status, 200 | 201 | 503), "{status}");
                    }
                }
            });
        }
        let outcome = std::panic::catch_unwind(|| {
            let (start, mut slowest) = (Instant::now(), Duration::ZERO);
            while start.elapsed() < volume(Duration::from_secs(3), Duration::from_secs(20)) {
                for path in ["/status", "/metrics", "/health"] {
                    let sent = Instant::now();
                    server.ask("GET", path).expect(200, path);
                    slowest = slowest.max(sent.elapsed());
                }
            }
            slowest
        });
        stop.store(true, Ordering::Relaxed);
        outcome
    });
    let slowest = slowest.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    println!("slowest answer of the control plane under load: {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
}

#[test]
fn status_and_metrics_are_served_when_every_request_is_refused() {
    let server = Server::fresh("--threads 1 --max-in-flight 1 --request-timeout 30s");
    let value = Random::seeded(1).bytes(16 << 20);
    server.connect().store("large", &value);
    // An answer that is not taken keeps its request in flight.
    let mut pending = server.connect();
    pending.send(&get_bytes("large")).unwrap();
    eventually("the one request is in flight", Duration::from_secs(5), || {
        server.ask("GET", &entity("absent")).status == 503
    });
    server.ask("GET", "/status").expect(200, "GET /status");
    server.ask("GET", "/metrics").expect(200, "GET /metrics");
    server.ask("GET", "/health").expect(200, "GET /health");
    assert!(pending.read("GET").expect(200, "the request in flight").body == value);
}

// --- beyond loopback ---

fn with_token(server: &Server, path: &str, authorization: &str) -> Response {
    server.connect().request("GET", path, &[("Authorization", authorization)], None)
}

#[test]
fn beyond_loopback_the_control_plane_is_closed_without_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let server = Launch::on(&folder.path().join("data")).host("0.0.0.0").start();
    for path in ["/status", "/metrics"] {
        let answer = server.ask("GET", path).expect(403, path);
        assert!(answer.text().ends_with('\n') && answer.text().len() > 10, "{path}: {:?}", answer.text());
        with_token(&server, path, "Bearer anything").expect(403, path);
    }
    server.ask("GET", "/health").expect(200, "GET /health");
    server.connect().store("key", "value");
}

#[test]
fn beyond_loopback_the_control_plane_opens_with_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    files::write_secret(&token, "correct-horse-battery\n");
    let flags = format!("--admin-token-file {}", token.display());
    let server = Launch::on(&folder.path().join("data")).host("0.0.0.0").flags(&flags).start();
    for path in ["/status", "/metrics"] {
        with_token(&server, path, "Bearer correct-horse-battery").expect(200, path);
        with_token(&server, path, "bearer correct-horse-battery").expect(200, "the scheme has no case");
        let missing = server.ask("GET", path);
        assert!(matches!(missing.status, 401 | 403), "{path} without the token: {}", missing.status);
        for wrong in [
            "Bearer wrong",
            "Bearer",
            "Bearer ",
            "Bearer correct-horse-battery2",
            "Bearer correct-horse-batter",
            "Bearer CORRECT-HORSE-BATTERY",
            "Bearer correct-horse-battery\tx",
        ] {
            with_token(&server, path, wrong).expect(401, &format!("{path} with {wrong:?}"));
        }
        let basic = with_token(&server, path, "Basic Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5").status;
        assert!(matches!(basic, 401 | 403), "{path} with another scheme: {basic}");
        let refused = with_token(&server, path, "Bearer wrong");
        // RFC 9110 section 15.5.2: a 401 says how to authenticate.
        assert!(refused.header("www-authenticate").is_some(), "401 without WWW-Authenticate");
        assert!(!refused.text().contains("correct-horse"));
    }
    server.connect().store("key", "value");
}

#[test]
fn an_empty_token_file_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    files::write_secret(&token, "\n");
    let flags = format!("--admin-token-file {}", token.display());
    match Launch::on(&folder.path().join("data")).host("0.0.0.0").flags(&flags).try_start() {
        Ok(server) => {
            for authorization in ["Bearer ", "Bearer", "Bearer \t"] {
                let status = with_token(&server, "/status", authorization).status;
                assert!(matches!(status, 401 | 403), "{authorization:?} with an empty token file: {status}");
            }
        }
        Err(refusal) => assert_eq!(refusal.status.code(), Some(2), "{}", refusal.stderr),
    }
}

#[test]
fn the_control_plane_may_have_a_listener_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let admin: SocketAddr = any_listen().parse().unwrap();
    let server =
        Launch::on(&folder.path().join("data")).host("0.0.0.0").flags(&format!("--admin-listen {admin}")).start();
    for path in ["/status", "/metrics"] {
        Client::connect(admin).unwrap().request("GET", path, &[], None).expect(200, path);
        server.ask("GET", path).expect(403, path);
    }
    let stray = Client::connect(admin).unwrap().request("GET", &entity("key"), &[], None);
    assert!(matches!(stray.status, 400 | 404), "the data plane on the listener of the control plane: {}", stray.status);
}

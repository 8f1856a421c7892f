//! What SIGTERM finishes, and what it does not wait for.

use std::time::{Duration, Instant};

use koltso_testkit::client::{put_bytes, request_bytes};
use koltso_testkit::{Client, Launch, Random, Server, entity, eventually};

#[test]
fn sigterm_finishes_what_is_in_flight_and_exits_0() {
    let mut server = Server::fresh("");
    let large = Random::seeded(3).bytes(16 << 20);
    server.connect().store("large", &large);
    let mut writer = server.connect();
    let bytes = put_bytes("late", b"in two parts");
    writer.send(&bytes[..bytes.len() - 6]).unwrap();
    let mut reader = server.connect();
    reader.send(&koltso_testkit::client::get_bytes("large")).unwrap();
    let mut idle = server.connect().patience(Duration::from_secs(5));
    idle.get("absent").expect(404, "GET before the drain");
    // The reader's answer has begun when its head is there.
    let head = reader.read_head("GET").unwrap().unwrap().expect(200, "GET of 16 MiB");
    assert_eq!(head.header("content-length"), Some("16777216"));

    server.signal(libc::SIGTERM);
    let address = server.address();
    eventually("no new connection is taken", Duration::from_secs(5), || std::net::TcpStream::connect(address).is_err());
    // An idle connection is closed, or told that the node drains.
    if idle.send(&request_bytes("GET", "/health", &[], None)).is_ok()
        && let Ok(Some(answer)) = idle.try_read("GET")
    {
        answer.expect(503, "GET /health while draining");
    }
    writer.send(&bytes[bytes.len() - 6..]).unwrap();
    writer.read("PUT").expect(201, "a PUT whose body came in during the drain");
    let mut received = Vec::new();
    reader.patience(Duration::from_secs(10)).read_rest(&mut received, large.len());
    assert!(received == large, "an answer that was on its way at SIGTERM arrives in whole");
    let status = server.wait(Duration::from_secs(5));
    assert_eq!(status.code(), Some(0), "{status}\n{}", server.log());
    server.start_again();
    assert_eq!(server.connect().value("late").as_deref(), Some(&b"in two parts"[..]));
}

#[test]
fn a_drain_waits_neither_for_idle_clients_nor_longer_than_10_seconds() {
    let mut server = Server::fresh("");
    let mut idle: Vec<Client> = (0..20).map(|_| server.connect()).collect();
    for client in &mut idle[..10] {
        client.store("key", "value");
    }
    let start = Instant::now();
    server.terminate();
    assert!(start.elapsed() < Duration::from_secs(3), "idle clients held up the drain for {:?}", start.elapsed());

    server.start_again_with("--request-timeout 60s");
    assert_eq!(server.connect().value("key").as_deref(), Some(&b"value"[..]));
    let mut never = server.connect();
    never.send(b"PUT /v0/entity?id=never HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf").unwrap();
    let mut taken = server.connect();
    taken.get("key").expect(200, "GET");
    let start = Instant::now();
    server.terminate();
    assert!(
        start.elapsed() < Duration::from_secs(13),
        "a body that never comes held up the drain for {:?}",
        start.elapsed()
    );
    server.start_again();
    server.ask("GET", &entity("never")).expect(404, "a body that never came");
}

#[test]
fn sighup_drains_as_sigterm_does_and_sigusr1_and_sigusr2_do_nothing() {
    let folder = tempfile::tempdir().unwrap();
    // Also where the tests themselves run under nohup.
    let launch = Launch::on(&folder.path().join("data")).within(&["env", "--default-signal=HUP"]);
    let mut server = launch.start();
    let mut writer = server.connect();
    let bytes = put_bytes("late", b"in two parts");
    writer.send(&bytes[..bytes.len() - 6]).unwrap();
    for signal in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGXFSZ, libc::SIGPIPE] {
        server.signal(signal);
    }
    // (They have been delivered once something that came after them was answered.)
    server.connect().store("key", "value");
    server.assert_serves();
    server.signal(libc::SIGHUP);
    let address = server.address();
    eventually("no new connection is taken", Duration::from_secs(10), || {
        std::net::TcpStream::connect(address).is_err()
    });
    writer.send(&bytes[bytes.len() - 6..]).unwrap();
    writer.read("PUT").expect(201, "a PUT whose body came in during the drain");
    let status = server.wait(Duration::from_secs(10));
    assert_eq!(status.code(), Some(0), "{status}\n{}", server.log());
    server.start_again();
    assert_eq!(server.connect().value("late").as_deref(), Some(&b"in two parts"[..]));
}

#[test]
fn under_nohup_a_hangup_does_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let launch = Launch::on(&folder.path().join("data"));
    let mut server = launch.within(&["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"]).start();
    server.signal(libc::SIGHUP);
    server.assert_serves();
    server.terminate();
}

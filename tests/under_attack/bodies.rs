//! What clients announce, and what they hold back.

use std::time::{Duration, Instant};

use koltso_testkit::client::put_bytes;
use koltso_testkit::{Client, Server, eventually};

#[test]
fn heads_that_announce_the_largest_body_and_nothing_more_keep_nobody_out() {
    let mut server = Server::fresh("--threads 1");
    let before = server.anonymous_kib();
    let silent: Vec<Client> = (0..300)
        .map(|index| {
            let mut client = server.connect();
            let head = if index % 3 == 0 { "Transfer-Encoding: chunked" } else { "Content-Length: 16777216" };
            let bytes = format!("PUT /v0/entity?id=never{index} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n");
            client.send(bytes.as_bytes()).unwrap();
            // Some go a step further: a byte of the body.
            client.send(if index % 2 == 0 { b"" } else { b"1" }).unwrap();
            client
        })
        .collect();
    let mut client = server.connect();
    for size in [20_000, 1 << 20, 16 << 20] {
        client.put(format!("of{size}"), vec![b'v'; size]).expect(201, "a PUT beside bodies that never come");
    }
    let grown = server.anonymous_kib().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB of anonymous memory for {} silent bodies", silent.len());
    drop(silent);
    server.assert_serves();
}

#[test]
fn bodies_that_stop_half_way_do_not_hold_the_memory_for_bodies() {
    let mut server = Server::fresh("--threads 1 --max-in-flight-bytes 32MiB --request-timeout 60s --idle-timeout 60s");
    let value = vec![b'v'; 10 << 20];
    let stopped: Vec<Client> = (0..3)
        .map(|index| {
            let mut client = server.connect();
            client.send(&put_bytes(format!("stopped{index}"), &value)[..9 << 20]).unwrap();
            client
        })
        .collect();
    let begun = Instant::now();
    eventually("a body is taken", Duration::from_secs(30), || {
        let mut client = server.connect();
        let _ = client.send(&put_bytes("whole", &value));
        matches!(client.try_read("PUT"), Ok(Some(answer)) if answer.status == 201)
    });
    assert!(begun.elapsed() < Duration::from_secs(20), "long before --request-timeout: {:?}", begun.elapsed());
    drop(stopped);
    server.assert_serves();
}

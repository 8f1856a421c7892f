//! Clients that are slow, silent, or gone.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::assert_memory_bounded;
use koltso_testkit::client::{get_bytes, put_bytes, request_bytes};
use koltso_testkit::server::raise_descriptor_limit;
use koltso_testkit::{Client, Random, Server, entity, eventually, volume};

/// Sends `bytes` one by one, `pause` between two, until the server ends it or `within` is over; the
/// answer and when it came.
fn dribble(client: &mut Client, bytes: &[u8], pause: Duration) -> (u16, Duration) {
    let start = Instant::now();
    let mut sender = client.stream().try_clone().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || {
        for byte in bytes {
            if sender.write_all(&[byte]).is_err() {
                return;
            }
            std::thread::sleep(pause);
        }
    });
    let status = client.read("PUT").status;
    let after = start.elapsed();
    let _ = client.stream().shutdown(std::net::Shutdown::Both);
    writer.join().unwrap();
    (status, after)
}

#[test]
fn a_request_that_dribbles_in_is_408() {
    let mut server = Server::fresh("--request-timeout 1s --idle-timeout 60s");
    let header = request_bytes("PUT", &entity("dribbled"), &[("X-Padding", &"p".repeat(200))], Some(b"v"));
    let body =
        [&b"PUT /v0/entity?id=dribbled HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300\r\n\r\n"[..], &[b'v'; 300]]
            .concat();
    let chunks = [
        &b"PUT /v0/entity?id=dribbled HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"[..],
        &b"1\r\nv\r\n".repeat(80),
    ]
    .concat();
    let pause = Duration::from_millis(40);
    std::thread::scope(|scope| {
        let cases = [("a header", header), ("a body", body), ("chunks", chunks)];
        let threads: Vec<_> = cases
            .into_iter()
            .map(|(what, bytes)| {
                let mut client = server.connect();
                scope.spawn(move || (what, dribble(&mut client, &bytes, pause)))
            })
            .collect();
        // Dribbling clients cost the others nothing.
        let mut other = server.connect();
        for index in 0..50 {
            let start = Instant::now();
            other.store("other", index.to_string());
            assert!(
                start.elapsed() < Duration::from_secs(1),
                "PUT took {:?} beside dribbling clients",
                start.elapsed()
            );
        }
        for thread in threads {
            let (what, (status, after)) = thread.join().unwrap();
            assert_eq!(status, 408, "{what} that dribbles in");
            let (low, high) = (Duration::from_millis(900), Duration::from_secs(5));
            assert!((low..high).contains(&after), "{what}: 408 after {after:?} with --request-timeout 1s");
        }
    });
    server.ask("GET", &entity("dribbled")).expect(404, "what never came in whole");
    server.assert_serves();
}

#[test]
fn a_body_or_header_that_never_comes_is_408() {
    let mut server = Server::fresh("--request-timeout 1s --idle-timeout 60s");
    let starts: [&[u8]; 6] = [
        b"PUT /v0/entity?id=never HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n",
        b"PUT /v0/entity?id=never HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf",
        b"PUT /v0/entity?id=never HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"PUT /v0/entity?id=never HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"GET /v0/entity?id=never HTTP/1.1\r\nHost: localhost\r\n",
        b"G",
    ];
    let start = Instant::now();
    let mut clients: Vec<Client> = starts
        .iter()
        .map(|bytes| {
            let mut client = server.connect();
            client.send(bytes).unwrap();
            client
        })
        .collect();
    for (client, bytes) in clients.iter_mut().zip(starts) {
        let shown = String::from_utf8_lossy(bytes).into_owned();
        client.read("PUT").expect(408, &shown);
        assert!(start.elapsed() >= Duration::from_millis(900), "{shown:?}: 408 after {:?}", start.elapsed());
        assert!(client.is_ended(Duration::from_secs(5)), "{shown:?}: the connection stays open after 408");
    }
    assert!(start.elapsed() < Duration::from_secs(6), "408 took {:?} with --request-timeout 1s", start.elapsed());
    // A second request on a kept connection has the same deadline.
    let mut client = server.connect();
    client.store("k", "v");
    client.send(starts[1]).unwrap();
    client.read("PUT").expect(408, "a body that never comes on a kept connection");
    server.assert_serves();
}

#[test]
fn an_idle_connection_is_closed_after_the_idle_timeout() {
    let server = Server::fresh("--idle-timeout 1s --request-timeout 60s");
    let start = Instant::now();
    let mut used = server.connect();
    used.store("k", "v");
    assert!(used.is_ended(Duration::from_secs(6)), "a kept connection outlives --idle-timeout 1s");
    assert!(start.elapsed() >= Duration::from_millis(900), "closed after {:?}", start.elapsed());
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_stop_nobody() {
    let limit = raise_descriptor_limit();
    let wanted = usize::try_from(limit.saturating_sub(1000)).unwrap().min(10_000);
    if wanted < 10_000 {
        println!("only {wanted} connections: the limit of open files is {limit}");
    }
    let mut server = Server::fresh("--max-connections 10100 --idle-timeout 120s --request-timeout 120s");
    server.connect().store("key", "value");
    let empty = server.anonymous_kib();
    let mut idle = Vec::with_capacity(wanted);
    let mut slowest = Duration::ZERO;
    let mut other = server.connect();
    for index in 0..wanted {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        match index % 4 {
            // Silent from the start, in the middle of a header, and kept after an answer.
            0 | 1 => {}
            2 => stream.write_all(b"GET /v0/entity?id=k").unwrap(),
            _ => {
                stream.write_all(&get_bytes("key")).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                assert!(stream.read(&mut [0; 1000]).unwrap() > 0);
            }
        }
        idle.push(stream);
        if index % 100 == 0 {
            let start = Instant::now();
            assert_eq!(other.value("key").as_deref(), Some(&b"value"[..]));
            slowest = slowest.max(start.elapsed());
        }
    }
    eventually("the server accepts them all", Duration::from_secs(20), || server.established() > wanted);
    assert_eq!(server.connect().value("key").as_deref(), Some(&b"value"[..]), "a new client beside {wanted} idle ones");
    for _ in 0..200 {
        let start = Instant::now();
        other.store("key", "value");
        slowest = slowest.max(start.elapsed());
    }
    let kib = server.anonymous_kib();
    println!("{wanted} idle connections: {empty} KiB -> {kib} KiB of anonymous memory, slowest request {slowest:?}");
    assert_memory_bounded(&server, "10 000 idle connections");
    assert!(slowest < Duration::from_secs(1), "a request took {slowest:?} beside idle connections");
    drop(idle);
    eventually("the connections are gone", Duration::from_secs(20), || server.descriptors_open() < 200);
    server.assert_serves();
}

#[test]
fn connections_past_the_maximum_are_closed_at_accept() {
    const MAX: usize = 50;
    let mut server = Server::fresh(&format!("--max-connections {MAX} --idle-timeout 120s"));
    let mut held: Vec<Client> = (0..MAX)
        .map(|_| {
            let mut client = server.connect();
            client.get("absent").expect(404, "a connection within the maximum");
            client
        })
        .collect();
    for extra in 0..20 {
        let mut client = server.connect();
        assert!(client.is_ended(Duration::from_secs(5)), "connection {} is open", MAX + 1 + extra);
    }
    for client in &mut held {
        client.get("absent").expect(404, "a connection within the maximum, afterwards");
    }
    // A place that is free again is given to the next.
    held.pop();
    let again = || {
        let mut client = server.connect();
        client.send(&get_bytes("absent")).is_ok()
            && matches!(client.try_read("GET"), Ok(Some(answer)) if answer.status == 404)
    };
    eventually("a place is free again", Duration::from_secs(5), again);
    held.clear();
    eventually("all places are free again", Duration::from_secs(5), || server.established() == 0);
    server.assert_serves();
}

#[test]
fn clients_that_never_read_a_large_answer_are_ended_and_cost_no_memory() {
    const CLIENTS: usize = 50;
    let timeout = Duration::from_secs(2);
    let mut server = Server::fresh("--request-timeout 2s --idle-timeout 2s");
    let value = Random::seeded(50).bytes(16 << 20);
    server.connect().store("large", &value);
    server.connect().store("small", "value");
    let start = Instant::now();
    let stuck: Vec<Client> = (0..CLIENTS)
        .map(|_| {
            let mut client = server.connect();
            client.send(&get_bytes("large")).unwrap();
            client
        })
        .collect();
    let mut slowest = Duration::ZERO;
    let mut other = server.connect();
    while start.elapsed() < timeout {
        let sent = Instant::now();
        assert_eq!(other.value("small").as_deref(), Some(&b"value"[..]));
        slowest = slowest.max(sent.elapsed());
        assert_memory_bounded(&server, "clients that do not read");
    }
    assert!(slowest < Duration::from_secs(1), "a request took {slowest:?} beside clients that do not read");
    drop(other);
    eventually("their connections are ended within the request timeout", timeout * 4, || server.established() == 0);
    println!("ended after {:?}, {} KiB of anonymous memory", start.elapsed(), server.anonymous_kib());
    // What arrived until then is a part of the right value, and not all of it.
    for client in stuck.into_iter().take(5) {
        let mut received = Vec::new();
        let _ = client.stream().try_clone().unwrap().read_to_end(&mut received);
        assert!(received.len() < value.len(), "a client that did not read got everything");
    }
    assert!(server.connect().value("large").as_ref() == Some(&value), "a client that reads gets it all");
    server.assert_serves();
}

#[test]
fn a_slow_but_steady_reader_gets_its_whole_answer() {
    let server = Server::fresh("--request-timeout 1s --idle-timeout 1s");
    let value = Random::seeded(51).bytes(16 << 20);
    server.connect().store("large", &value);
    let mut client = server.connect();
    client.send(&get_bytes("large")).unwrap();
    client.read_head("GET").unwrap().unwrap().expect(200, "GET of 16 MiB");
    let mut received = Vec::new();
    let start = Instant::now();
    while received.len() < value.len() {
        let step = (400 << 10).min(value.len() - received.len());
        client.read_rest(&mut received, step);
        std::thread::sleep(Duration::from_millis(60));
    }
    assert!(received == value);
    assert!(start.elapsed() > Duration::from_secs(2), "this reader was not slow");
}

#[test]
fn a_flood_of_pipelined_requests_without_reading_is_held_back() {
    let mut server = Server::fresh("--request-timeout 3s");
    let value = vec![b'v'; 1 << 20];
    server.connect().store("mib", &value);
    let batch = get_bytes("mib").repeat(100);
    let clients: Vec<TcpStream> = (0..10)
        .map(|_| {
            let client = server.connect();
            client.stream().set_nonblocking(true).unwrap();
            client.stream().try_clone().unwrap()
        })
        .collect();
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < Duration::from_secs(2) {
        for mut client in &clients {
            sent += client.write(&batch).unwrap_or(0);
        }
        assert_memory_bounded(&server, "a flood of requests");
        std::thread::sleep(Duration::from_millis(2));
    }
    println!(
        "{} requests for 1 MiB sent, {} KiB of anonymous memory",
        sent / get_bytes("mib").len(),
        server.anonymous_kib()
    );
    server.assert_serves();
}

#[test]
fn clients_that_leave_midway_leave_nothing_behind() {
    let mut random = Random::announced("clients_that_leave_midway_leave_nothing_behind");
    let mut server = Server::fresh("");
    let value = random.bytes(4 << 20);
    server.connect().store("large", &value);
    server.assert_serves();
    eventually("only the listeners are left", Duration::from_secs(5), || server.established() == 0);
    let before = server.descriptors_open();
    let put = put_bytes("left", &vec![b'v'; 100_000]);
    for round in 0..volume(300, 5000) {
        let mut client = server.connect();
        match round % 5 {
            0 => client.send(&put[..random.between(1, 60)]).unwrap(),
            1 => client.send(&put[..random.between(100, put.len() - 1)]).unwrap(),
            // Leaves with the answer unread, which makes the kernel send a reset.
            2 => client.send(&get_bytes("large").repeat(3)).unwrap(),
            3 => {
                client.send(&get_bytes("large")).unwrap();
                client.stream().read_exact(&mut vec![0; random.between(1, 1 << 20)]).unwrap();
            }
            _ => client.send(&request_bytes("GET", "/v0/entities?start=a", &[], None)).unwrap(),
        }
    }
    eventually("their connections are gone", Duration::from_secs(15), || {
        server.established() == 0 && server.descriptors_open() <= before + 2
    });
    server.ask("GET", &entity("left")).expect(404, "a body that broke off is no value");
    assert_memory_bounded(&server, "clients that leave midway");
    server.assert_serves();
}

//! Too much at once, and that every limit which is hit is counted.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::send_what_goes;
use koltso_testkit::client::{get_bytes, put_bytes, request_bytes};
use koltso_testkit::metrics::sample;
use koltso_testkit::server::free_port;
use koltso_testkit::{Client, Random, Server, eventually};

// --- too much at once ---

#[test]
fn past_the_requests_in_flight_the_answer_is_503_at_once() {
    const MAX: usize = 4;
    let mut server = Server::fresh(&format!("--threads 1 --max-in-flight {MAX} --request-timeout 30s"));
    let value = Random::seeded(4).bytes(16 << 20);
    server.connect().store("large", &value);
    // A request whose answer is not taken is in flight.
    let mut pending: Vec<Client> = (0..MAX).map(|_| server.connect()).collect();
    for client in &mut pending {
        client.send(&get_bytes("large")).unwrap();
    }
    let mut client = server.connect();
    let mut refused = None;
    eventually("the requests are in flight", Duration::from_secs(5), || {
        let start = Instant::now();
        let answer = client.get("absent");
        assert!(start.elapsed() < Duration::from_secs(1), "{} after {:?}", answer.status, start.elapsed());
        if answer.says_close() {
            client = server.connect();
        }
        refused = (answer.status == 503).then_some(answer);
        refused.is_some()
    });
    let refused = refused.unwrap();
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(refused.text().ends_with('\n'));
    // Those that were taken are finished, and after them there is room again.
    for client in &mut pending {
        assert!(client.read("GET").expect(200, "a request that was in flight").body == value);
    }
    let mut client = server.connect();
    client.get("absent").expect(404, "a request when there is room again");
    server.assert_serves();
}

#[test]
fn past_the_bytes_in_flight_the_answer_is_503_at_once() {
    let mut server = Server::fresh("--threads 1 --max-value 1MiB --max-in-flight-bytes 1MiB --request-timeout 30s");
    let value = vec![b'v'; 900_000];
    let bytes = put_bytes("first", &value);
    let mut first = server.connect();
    first.send(&bytes[..800_000]).unwrap();
    // Bytes count when they are received: the first body is the one that holds the memory when it is
    // there before another one comes, and until then it may itself be the one too many.
    let mut refused = None;
    eventually("the bytes are in flight", Duration::from_secs(5), || {
        if first.has_more(Duration::from_millis(5)) {
            first.read("PUT").expect(503, "the first body, beside another one");
            first = server.connect();
            first.send(&bytes[..800_000]).unwrap();
        }
        let mut second = server.connect();
        let start = Instant::now();
        send_what_goes(&mut second, &put_bytes("second", &value));
        let answer = second.read("PUT");
        assert!(start.elapsed() < Duration::from_secs(2), "{} after {:?}", answer.status, start.elapsed());
        refused = (answer.status == 503).then_some(answer);
        refused.is_some()
    });
    assert_eq!(refused.unwrap().header("retry-after"), Some("1"));
    first.send(&bytes[800_000..]).unwrap();
    first.read("PUT").expect(201, "the body that was in flight");
    let mut client = server.connect();
    client.put("third", &value).expect(201, "a body when there is room again");
    assert!(client.value("first").as_ref() == Some(&value));
    server.assert_serves();
}

#[test]
fn many_large_bodies_at_once_stay_within_the_bytes_in_flight() {
    let mut server = Server::fresh("--threads 2 --max-in-flight-bytes 32MiB --request-timeout 30s");
    server.assert_serves();
    let before = server.anonymous_kib();
    let value = vec![b'v'; 15 << 20];
    let peak = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..24)
            .map(|index| {
                let mut client = server.connect();
                let bytes = put_bytes(format!("large{index}"), &value);
                // A refused client that does not read while it sends can be left in its send; its
                // answer is there all the same.
                client.stream().set_write_timeout(Some(Duration::from_secs(5))).unwrap();
                scope.spawn(move || {
                    send_what_goes(&mut client, &bytes);
                    client.try_read("PUT").ok().flatten().map(|answer| answer.status)
                })
            })
            .collect();
        let mut peak = 0;
        while !clients.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            peak = peak.max(server.anonymous_kib());
            std::thread::sleep(Duration::from_millis(2));
        }
        let statuses: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        println!("24 bodies of 15 MiB at once: {statuses:?}, peak {peak} KiB of anonymous memory");
        assert!(statuses.contains(&Some(201)), "none of them was stored: {statuses:?}");
        assert!(statuses.iter().all(|status| matches!(status, None | Some(201 | 503))), "{statuses:?}");
        peak
    });
    // Two cores of 32 MiB each; a buffer that grows by doubling may have twice the room of what it
    // holds.
    let bound = before + (2 * 2 * 32 + 24) * 1024;
    assert!(peak < bound, "{peak} KiB of anonymous memory, more than {bound}");
    server.assert_serves();
}

#[test]
fn a_body_that_is_only_announced_costs_no_memory() {
    let mut server = Server::fresh("--threads 1 --max-in-flight-bytes 256MiB --request-timeout 30s");
    server.assert_serves();
    let before = server.anonymous_kib();
    let value = vec![b'v'; 15 << 20];
    let waiting: Vec<_> = (0..16)
        .map(|index| {
            let mut client = server.connect();
            client.send(&put_bytes(format!("announced{index}"), &value)[..100_000]).unwrap();
            client
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let grown = server.anonymous_kib().saturating_sub(before);
    println!("16 bodies of 15 MiB of which 100 kB came: {grown} KiB of anonymous memory");
    assert!(grown < 16 << 10, "{grown} KiB of anonymous memory for 1.6 MB");
    drop(waiting);
    server.assert_serves();
}

// --- every limit is seen ---

#[test]
fn every_limit_that_is_hit_counts_in_its_metric() {
    let admin: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let mut server = Server::fresh(&format!(
        "--threads 1 --max-connections 3 --max-value 1000000 --request-timeout 1s --idle-timeout 1s --max-in-flight 1 \
         --max-in-flight-bytes 1500000 --admin-listen {admin}"
    ));
    let hits = |limit: &str| -> u64 {
        let answer = Client::connect(admin).unwrap().request("GET", "/metrics", &[], None).expect(200, "GET /metrics");
        sample(&answer, &format!("koltso_limits_hit_total{{limit=\"{limit}\"}}")) as u64
    };
    server.connect().store("large", vec![b'v'; 1_000_000]);
    let provoke = |limit: &str, provocation: &dyn Fn()| {
        eventually("the connections before are gone", Duration::from_secs(5), || server.established() == 0);
        let before = hits(limit);
        provocation();
        eventually(&format!("{limit} is counted"), Duration::from_secs(5), || hits(limit) > before);
    };
    provoke("header_size", &|| {
        let mut client = server.connect();
        send_what_goes(&mut client, &request_bytes("GET", "/health", &[("X", &"x".repeat(17_000))], None));
        client.read("GET").expect(431, "a header block of 17 000 bytes");
    });
    provoke("body_size", &|| {
        let mut client = server.connect();
        client.send(b"PUT /v0/entity?id=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000001\r\n\r\n").unwrap();
        client.read("PUT").expect(413, "a body that is too large");
    });
    provoke("request_timeout", &|| {
        let mut client = server.connect();
        client.send(b"GET /health HTTP/1.1\r\n").unwrap();
        client.read("GET").expect(408, "a header that never ends");
    });
    provoke("idle_timeout", &|| {
        let mut client = server.connect();
        client.get("absent").expect(404, "GET");
        assert!(client.is_ended(Duration::from_secs(5)));
    });
    provoke("bad_request", &|| {
        let mut client = server.connect();
        client.send(b"no request at all\r\n\r\n").unwrap();
        client.read("GET").expect(400, "what is no request");
    });
    provoke("connections", &|| {
        let held: Vec<Client> = (0..3).map(|_| server.connect()).collect();
        eventually("three connections are open", Duration::from_secs(1), || server.established() >= 3);
        assert!(server.connect().is_ended(Duration::from_secs(5)), "a fourth of three connections");
        drop(held);
    });
    // Enough pipelined answers of 1 MB that the kernel's buffers do not take them all.
    let fills = get_bytes("large").repeat(16);
    provoke("in_flight", &|| {
        let mut stuck = server.connect();
        stuck.send(&fills).unwrap();
        let mut other = server.connect();
        eventually("another request is refused", Duration::from_secs(1), || other.get("absent").status == 503);
    });
    provoke("write_timeout", &|| {
        let mut stuck = server.connect();
        stuck.send(&fills).unwrap();
        eventually("the client that does not read is ended", Duration::from_secs(8), || server.established() == 0);
    });
    server.assert_serves();
}

//! Times to live.

use std::time::{Duration, Instant};

use crate::assert_usable_or_announced;
use koltso_testkit::{Server, entity, eventually};

#[test]
fn after_its_ttl_a_key_is_absent_everywhere() {
    let mut server = Server::fresh("");
    let mut client = server.connect();
    client.store("t0", "before");
    client.store("t2", "after");
    let ttl = Duration::from_millis(400);
    let sent = Instant::now();
    client.request("PUT", "/v0/entity?id=t1&ttl=400", &[], Some(b"passing")).expect(201, "PUT with ttl");
    let accepted = Instant::now();
    // Alive before its time: only answers that surely were given before then count.
    let mut seen_alive = 0;
    loop {
        let got = client.get("t1");
        let listed = client.range("start=t0&end=t9").len();
        if sent.elapsed() >= ttl {
            break;
        }
        assert_eq!((got.status, listed), (200, 3), "absent {:?} after PUT, before its ttl", sent.elapsed());
        seen_alive += 1;
    }
    assert!(seen_alive > 0, "this machine is too slow to see the key alive");
    // Gone after it, to the millisecond.
    while accepted.elapsed() < ttl + Duration::from_millis(2) {
        std::thread::sleep(Duration::from_millis(1));
    }
    client.get("t1").expect(404, "GET after the ttl");
    client.head("t1").expect(404, "HEAD after the ttl");
    let keys: Vec<_> = client.range("start=t0&end=t9").into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, [b"t0", b"t2"], "a range after the ttl");
    for end in [Server::kill, Server::terminate] {
        end(&mut server);
        server.start_again();
        let mut client = server.connect();
        client.get("t1").expect(404, "GET after a restart");
        assert_eq!(client.range("start=t0&end=t9").len(), 2, "a range after a restart");
    }
    let mut client = server.connect();
    client.store("t1", "back");
    assert_eq!(client.value("t1").as_deref(), Some(&b"back"[..]), "an expired key can be written again");
}

#[test]
fn a_ttl_survives_a_restart_and_goes_on() {
    let mut server = Server::fresh("");
    let mut client = server.connect();
    client.request("PUT", "/v0/entity?id=soon&ttl=2500", &[], Some(b"s")).expect(201, "PUT with ttl=2500");
    let accepted = Instant::now();
    client.request("PUT", "/v0/entity?id=later&ttl=3600000", &[], Some(b"l")).expect(201, "PUT with ttl=1h");
    server.kill();
    server.start_again();
    let mut client = server.connect();
    client.get("later").expect(200, "a key with an hour left, after a restart");
    let got = client.get("soon");
    if accepted.elapsed() < Duration::from_millis(2400) {
        assert_eq!(got.status, 200, "{:?} after PUT with ttl=2500 and a restart", accepted.elapsed());
    }
    eventually("the key expires after the restart", Duration::from_secs(5), || client.get("soon").status == 404);
    client.get("later").expect(200, "a key with an hour left");
}

#[test]
fn an_overwrite_replaces_the_ttl_too() {
    let server = Server::fresh("");
    let mut client = server.connect();
    for key in ["stays", "goes"] {
        client.request("PUT", &format!("/v0/entity?id={key}&ttl=150"), &[], Some(b"1")).expect(201, "PUT with ttl");
    }
    client.store("stays", "2");
    client.request("PUT", "/v0/entity?id=longer&ttl=100", &[], Some(b"1")).expect(201, "PUT with ttl=100");
    client.request("PUT", "/v0/entity?id=longer&ttl=3600000", &[], Some(b"2")).expect(201, "PUT with ttl=1h");
    eventually("the ttl of the other key passes", Duration::from_secs(5), || client.get("goes").status == 404);
    assert_eq!(client.value("stays").as_deref(), Some(&b"2"[..]), "PUT without ttl after one with");
    assert_eq!(client.value("longer").as_deref(), Some(&b"2"[..]), "PUT with a longer ttl after one with a shorter");
}

#[test]
fn a_ttl_that_is_no_number_is_400() {
    let server = Server::fresh("");
    for ttl in ["", "x", "-1", "1.5", "1s", "%20", "1e3", "0x10", "99999999999999999999999999"] {
        let target = format!("/v0/entity?id=refused&ttl={ttl}");
        let mut client = server.connect();
        let response = client.request("PUT", &target, &[], Some(b"v")).expect(400, &target);
        assert_usable_or_announced(&mut client, &response, &target);
    }
    server.ask("GET", &entity("refused")).expect(404, "nothing was written");
}

#[test]
fn a_ttl_beyond_the_end_of_time_does_not_wrap() {
    let mut server = Server::fresh("");
    for ttl in ["18446744073709551615", "9223372036854775807", "4611686018427387904", "281474976710656", "4294967296"] {
        let mut client = server.connect();
        let target = format!("/v0/entity?id=long&ttl={ttl}");
        match client.request("PUT", &target, &[], Some(b"v")).status {
            201 => assert_eq!(server.ask("GET", &entity("long")).status, 200, "accepted with ttl={ttl}, then absent"),
            400 => {}
            status => panic!("PUT with ttl={ttl}: {status}"),
        }
    }
    server.assert_serves();
}

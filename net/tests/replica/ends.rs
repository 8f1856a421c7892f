//! Peers that stop reading, fall silent, go, come back, or drain.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::{
    DRIVERS, EPOCHS, LIMITS, PING, Server, When, assert_ended, closed, frame_of, identity, link_by, link_to, on_both,
    pattern, put, raw, raw_peer, read, reply_from, shared_put, until,
};
use bytes::Bytes;
use koltso_model::{KeyHash, Outcome};
use koltso_net::replica::frame::{Parsed, encode_reply, parse_request};
use koltso_net::replica::{DIAL_GAP, Full, LinkState, Locate, OUTBOX_MAX, ReplicaEvent, Reply};
use koltso_testkit::wall_ms;

#[test]
fn a_peer_that_stops_reading_fills_a_bounded_queue() {
    on_both(|_| async move {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (address, peer) = raw_peer(move |mut socket| {
            wait.recv().unwrap();
            let (mut bytes, mut buffer, mut next) = (Vec::new(), vec![0; 1 << 20], 0);
            loop {
                let count = socket.read(&mut buffer).unwrap_or(0);
                if count == 0 {
                    return;
                }
                bytes.extend_from_slice(&buffer[..count]);
                let mut at = 0;
                while let Parsed::Complete { frame, len } = parse_request(&bytes[at..], LIMITS) {
                    assert_eq!(frame.number, next);
                    next += 1;
                    at += len;
                }
                bytes.drain(..at);
                let mut out = Vec::new();
                if let Some(last) = u64::checked_sub(next, 1) {
                    encode_reply(&mut out, last, EPOCHS.1, KeyHash(0), &Reply::Outcome(Outcome::Applied));
                }
                if socket.write_all(&out).is_err() {
                    return;
                }
            }
        });
        let (link, seen) = link_to(address);
        until("up", || link.state() == LinkState::Up).await;
        let value = Bytes::from(pattern(1 << 20));
        let mut number = 0;
        let mut full = 0;
        while full < 20 {
            let queued = match number % 2 {
                0 => link.execute(number, &shared_put(b"large", value.clone())),
                _ => link.request(number, &put(b"small", &value[..1000])),
            };
            match queued {
                Ok(()) => number += 1,
                Err(Full) => {
                    full += 1;
                    monoio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            assert!(link.queued_bytes() <= OUTBOX_MAX + (1 << 20) + 100);
        }
        assert_eq!((link.state(), seen.lost.borrow().len()), (LinkState::Up, 0));
        let before = seen.progress.get();
        go.send(()).unwrap();
        until("sent", || link.queued_bytes() == 0).await;
        assert!(seen.progress.get() > before);
        until("answered", || seen.replies.borrow().last().is_some_and(|last| last.0 == number - 1)).await;
        closed(&link, &seen).await;
        peer.join().unwrap();
    });
}

#[test]
fn an_asker_that_takes_no_replies_is_not_read_from() {
    let both = DRIVERS.map(|driver| {
        std::thread::spawn(move || {
            let server = Server::start(driver);
            let mut socket = raw(server.address);
            socket.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            let requests = frame_of(1, &read(b"100000", true)).repeat(100);
            let mut taken = 0;
            while socket.write_all(&requests).is_ok() {
                taken += requests.len();
                assert!(taken < 64 << 20, "the server takes requests without end");
            }
            // The server still answers others.
            let mut other = raw(server.address);
            other.write_all(&frame_of(2, &PING)).unwrap();
            assert_eq!(reply_from(&mut other).0, 2);
            // After a while it gives this one up.
            let begun = Instant::now();
            while !server.has(&ReplicaEvent::Closed) {
                assert!(begun.elapsed() < Duration::from_secs(10), "never given up");
                std::thread::sleep(Duration::from_millis(20));
            }
            assert!(begun.elapsed() > Duration::from_secs(4));
        })
    });
    for one in both {
        one.join().unwrap();
    }
}

#[test]
fn a_link_comes_back_after_its_peer() {
    on_both(|driver| async move {
        let mut server = Server::start(driver);
        let address = server.address;
        let (link, seen) = link_to(address);
        for round in 1..=3 {
            until("up", || link.state() == LinkState::Up).await;
            link.request(round, &PING).unwrap();
            until("answered", || seen.replies.borrow().len() == round as usize).await;
            assert_eq!(seen.connected.get(), round as usize);
            let before = seen.lost.borrow().len();
            server.stop();
            until("lost", || seen.lost.borrow().len() > before).await;
            assert_eq!(seen.lost.borrow()[before], "the connection was closed");
            until("tried again", || seen.lost.borrow().len() > before + 1).await;
            assert_eq!(seen.lost.borrow()[before + 1], "the connection was refused");
            server = Server::with(driver, address, identity(2), When::Now, wall_ms);
            link.dial_now();
        }
        until("up", || link.state() == LinkState::Up).await;
        closed(&link, &seen).await;
    });
}

/// A name: asked at each dial, and answered when it is looked at for the second time.
#[derive(Debug, Default)]
struct Name {
    leads_to: Mutex<Option<SocketAddr>>,
    asked: AtomicU64,
    looked: AtomicU64,
}

impl Locate for Name {
    fn ask(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn found(&self, ticket: u64) -> Option<Result<SocketAddr, String>> {
        assert_eq!(ticket, self.asked.load(Ordering::Relaxed), "each dial asks anew");
        let again = self.looked.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        again.then(|| self.leads_to.lock().unwrap().ok_or_else(|| "its name leads nowhere".to_owned()))
    }
}

#[test]
fn a_peer_is_dialed_wherever_its_name_leads_by_then() {
    on_both(|driver| async move {
        let name = Arc::new(Name::default());
        let (link, seen) = link_by(name.clone(), identity(1));
        until("it is nowhere", || seen.lost.borrow().len() == 1).await;
        assert_eq!(seen.lost.borrow()[0], "its name leads nowhere");
        for round in 1..=2 {
            let mut server = Server::start(driver);
            *name.leads_to.lock().unwrap() = Some(server.address);
            link.dial_now();
            until("up", || link.state() == LinkState::Up).await;
            assert_eq!(seen.connected.get(), round);
            server.stop();
            until("lost", || link.state() != LinkState::Up).await;
        }
        closed(&link, &seen).await;
    });
}

#[test]
fn requests_hurry_a_redial_but_not_too_much() {
    on_both(|_| async move {
        // Bound, and nobody listens.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        let nobody = socket.local_addr().unwrap().as_socket().unwrap();
        let (link, seen) = link_to(nobody);
        // Alone: 50, 100, 200, 400 ms, each half at least.
        monoio::time::sleep(Duration::from_millis(500)).await;
        let alone = seen.lost.borrow().len();
        assert!((2..=6).contains(&alone), "{alone}");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(400) {
            link.request(1, &PING).unwrap();
            monoio::time::sleep(Duration::from_millis(1)).await;
        }
        let most = begun.elapsed().as_millis() / DIAL_GAP.as_millis() + 2;
        let hurried = seen.lost.borrow().len() - alone;
        assert!(hurried > 5 && hurried as u128 <= most, "{hurried}");
        assert!(seen.lost.borrow().iter().all(|why| why == "the connection was refused"));
        assert_eq!(seen.connected.get(), 0);
        closed(&link, &seen).await;
    });
}

#[test]
fn who_says_nothing_is_given_up_after_a_second() {
    on_both(|driver| async move {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server::start(driver);
        let mut stranger = TcpStream::connect(server.address).unwrap();
        stranger.write_all(b"KOLTSORP").unwrap();
        let (link, seen) = link_to(silent.local_addr().unwrap());
        let begun = Instant::now();
        until("lost", || !seen.lost.borrow().is_empty()).await;
        assert_eq!(seen.lost.borrow()[0], "there was no answer in time");
        assert!((900..1500).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
        closed(&link, &seen).await;
        assert_ended(&mut stranger);
        server.wait_for(&ReplicaEvent::Refused("there was no handshake in time".to_owned()));
    });
}

#[test]
fn a_drain_ends_idle_connections_at_once_and_answers_what_was_read() {
    on_both(|driver| async move {
        let mut server = Server::answering(driver, When::After(100));
        let (link, seen) = link_to(server.address);
        let (idle, idle_seen) = link_to(server.address);
        let stranger = TcpStream::connect(server.address).unwrap();
        until("up", || link.state() == LinkState::Up && idle.state() == LinkState::Up).await;
        for number in 0..100 {
            link.request(number, &read(b"20000", true)).unwrap();
        }
        monoio::time::sleep(Duration::from_millis(30)).await;
        let stopping = std::thread::spawn(move || server.stop());
        until("lost", || !seen.lost.borrow().is_empty() && !idle_seen.lost.borrow().is_empty()).await;
        assert_eq!(seen.lost.borrow()[0], "the connection was closed");
        assert_eq!(idle_seen.lost.borrow()[0], "the connection was closed");
        assert_eq!(seen.replies.borrow().len(), 100);
        let took = stopping.join().unwrap();
        assert!(took < Duration::from_millis(600), "{took:?}");
        drop(stranger);
        closed(&link, &seen).await;
        closed(&idle, &idle_seen).await;
    });
}

#[test]
fn an_answer_that_is_given_up_ends_the_connection() {
    on_both(|driver| async move {
        let server = Server::answering(driver, When::After(5));
        let (link, seen) = link_to(server.address);
        link.request(1, &PING).unwrap();
        until("answered", || seen.replies.borrow().len() == 1).await;
        link.execute(2, &shared_put(b"lost", Bytes::new())).unwrap();
        until("lost", || !seen.lost.borrow().is_empty()).await;
        assert_eq!(seen.lost.borrow()[0], "the connection was closed");
        assert_eq!(seen.replies.borrow().len(), 1);
        closed(&link, &seen).await;
    });
}

#[test]
fn a_drain_ends_connections_whose_answers_never_come() {
    let both = DRIVERS.map(|driver| {
        std::thread::spawn(move || {
            let mut server = Server::answering(driver, When::EveryOther);
            let mut socket = raw(server.address);
            let requests = [1, 2].map(|number| frame_of(number, &read(b"x", true)));
            socket.write_all(&requests.concat()).unwrap();
            assert_eq!(reply_from(&mut socket), (1, "Absent(None)".to_owned()));
            let took = server.stop();
            assert!(took > Duration::from_secs(4), "it did not wait for the answer: {took:?}");
            assert!(took < Duration::from_secs(8), "{took:?}");
            assert_eq!(server.count(&ReplicaEvent::Closed), 1);
            assert_ended(&mut socket);
        })
    });
    for one in both {
        one.join().unwrap();
    }
}

#[test]
fn who_ends_its_side_still_gets_what_it_asked_for() {
    for driver in DRIVERS {
        let server = Server::answering(driver, When::After(100));
        let mut socket = raw(server.address);
        socket.write_all(&frame_of(7, &read(b"20000", true))).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(reply_from(&mut socket), (7, "20000 bytes, with them".to_owned()));
        assert_ended(&mut socket);
        server.wait_for(&ReplicaEvent::Closed);
    }
}

//! Strangers, broken peers and impostors: each is shown out with one sentence.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::{
    ATTRIBUTES, DRIVERS, EPOCHS, FLAGS, LIMITS, PING, STRANGERS, Server, VERSION, When, assert_ended, closed, delete,
    dialing, frame_of, identity, link_of, link_to, on, pattern, put, raw, raw_peer, read, record, reply_from, until,
};
use koltso_model::{Flags, Found, KeyHash, Operation, Outcome, Record, Refused, Tombstone};
use koltso_net::replica::frame::{HEADER, encode_reply};
use koltso_net::replica::handshake::Dialer;
use koltso_net::replica::{Identity, LinkState, Purpose, ReplicaEvent, Reply, Request, Secrets, frame};
use koltso_testkit::random::{Random, seed_or};
use koltso_testkit::wall_ms;

#[test]
fn strangers_and_broken_peers_are_closed_with_one_sentence() {
    for driver in DRIVERS {
        let server = Server::start(driver);
        let mut http = TcpStream::connect(server.address).unwrap();
        http.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_ended(&mut http);
        let sentence = "the other side does not speak the replica protocol, but HTTP";
        server.wait_for(&ReplicaEvent::Refused(sentence.to_owned()));

        let read = frame_of(1, &read(b"k", true));
        let mut flipped = read.clone();
        flipped[HEADER] ^= 1;
        let mut huge = read.clone();
        huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut reply = Vec::new();
        encode_reply(&mut reply, 1, EPOCHS.1, KeyHash(2), &Reply::Outcome(Outcome::Applied));
        let unknown = Record { flags: Flags::from_bits(1 << 9), ..record(&b"k"[..], &[], &[]) };
        let unknown = frame_of(1, &Request::Execute(Operation::Write(unknown)));
        let max = LIMITS.request_max() - HEADER;
        for (bytes, sentence) in [
            (flipped, "the checksum of a frame does not match its bytes".to_owned()),
            (huge, format!("a frame claims a body of {} bytes, and the longest has {max}", u32::MAX)),
            (reply, "a frame is of kind 129, which is not one that is expected here".to_owned()),
            (
                unknown,
                "a frame has a record with flags 0x200, and its sender did not announce that it knows them all"
                    .to_owned(),
            ),
        ] {
            let mut socket = raw(server.address);
            socket.write_all(&read).unwrap();
            assert_eq!(reply_from(&mut socket).0, 1);
            socket.write_all(&bytes).unwrap();
            assert_ended(&mut socket);
            server.wait_for(&ReplicaEvent::Violation { node: 1, sentence });
        }
    }
}

#[test]
fn half_frames_wait_for_their_other_half() {
    for driver in DRIVERS {
        let server = Server::start(driver);
        let mut socket = raw(server.address);
        let value = pattern(300_000);
        let mut bytes = frame_of(1, &put(b"k", &value));
        bytes.extend_from_slice(&frame_of(2, &read(b"k", true)));
        let end = bytes.len();
        for piece in [&bytes[..1], &bytes[1..33], &bytes[33..100_000], &bytes[100_000..end - 1], &bytes[end - 1..]] {
            socket.write_all(piece).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(reply_from(&mut socket), (1, "Applied".to_owned()));
        assert_eq!(reply_from(&mut socket), (2, "Absent(None)".to_owned()));
        // Half a frame, and the end.
        socket.write_all(&bytes[..50]).unwrap();
        drop(socket);
        server.wait_for(&ReplicaEvent::Closed);
    }
}

#[test]
fn a_peer_that_answers_nonsense_is_lost() {
    let mut short = Vec::new();
    let refused = Reply::Outcome(Outcome::Refused(Refused::NotReady));
    encode_reply(&mut short, 1, EPOCHS.1, KeyHash(5), &refused);
    let mut attributed = Vec::new();
    let found =
        Found { version: VERSION, expires_at_ms: 0, flags: FLAGS, attributes: &[9, 0][..], value_len: 0, value: None };
    encode_reply(&mut attributed, 1, EPOCHS.1, KeyHash(5), &Reply::Outcome(Outcome::Found(found)));
    let mut flipped = short.clone();
    flipped[20] ^= 1;
    let mut huge = short.clone();
    huge[4..8].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    let max = LIMITS.reply_max() - HEADER;
    let mut hated = short.clone();
    hated.extend_from_slice(&short);
    for (bytes, sentence, replies) in [
        (flipped, "it broke the protocol: the checksum of a frame does not match its bytes".to_owned(), 0),
        (
            huge,
            format!("it broke the protocol: a frame claims a body of {} bytes, and the longest has {max}", 0x7fff_ffff),
            0,
        ),
        (hated, "it broke the protocol: a reply is about another key".to_owned(), 0),
        (
            attributed,
            "it broke the protocol: a frame has an attribute of kind 9, and its sender did not announce that it knows it"
                .to_owned(),
            0,
        ),
        (short.clone(), "the connection was closed".to_owned(), 1),
        (short[..HEADER - 1].to_vec(), "the connection was closed".to_owned(), 0),
    ] {
        for driver in DRIVERS {
            let (bytes, sentence) = (bytes.clone(), sentence.clone());
            let (address, peer) = raw_peer(move |mut socket| {
                let mut buffer = vec![0; HEADER + 1];
                socket.read_exact(&mut buffer).unwrap();
                socket.write_all(&bytes).unwrap();
            });
            on(driver, move || async move {
                let (link, seen) = link_to(address);
                if sentence.ends_with("key") {
                    seen.hates.set(5);
                }
                link.request(1, &read(b"k", true)).unwrap();
                until("lost", || !seen.lost.borrow().is_empty()).await;
                assert_eq!(seen.lost.borrow()[0], sentence);
                assert_eq!(seen.replies.borrow().len(), replies);
                closed(&link, &seen).await;
            })
            .join()
            .unwrap();
            peer.join().unwrap();
        }
    }
}

#[test]
fn those_who_do_not_belong_together_say_so_on_both_sides() {
    type Change = fn(&mut Identity);
    let refused_there: [(Change, &str); 5] = [
        (|i| i.cluster = "other".into(), "node 2 and node 1 have different cluster names (--cluster-name)"),
        (|i| i.topology = 8, "the --cluster lists of node 2 and node 1 differ"),
        (|i| i.secrets = Secrets::default(), "node 2 has a secret, and node 1 has none"),
        (|i| i.node = 4, "node 4 is not in the --cluster list of node 2"),
        (|i| i.node = 2, "node 2 is connected to itself, or two nodes have the number 2"),
    ];
    for driver in DRIVERS {
        let server = Server::start(driver);
        let address = server.address;
        let lost = move |us: Identity, expected: String| {
            on(driver, move || async move {
                let (link, seen) = link_of(address, us);
                link.request(1, &PING).unwrap();
                until("lost", || !seen.lost.borrow().is_empty()).await;
                assert_eq!(seen.lost.borrow()[0], expected);
                closed(&link, &seen).await;
            })
            .join()
            .unwrap();
        };
        for (change, sentence) in refused_there {
            let mut us = identity(1);
            change(&mut us);
            lost(us, format!("it refused: {sentence}"));
            server.wait_for(&ReplicaEvent::Refused(sentence.to_owned()));
        }
        let mut us = identity(1);
        us.secrets = Secrets::new(vec![b"another".to_vec()]);
        let sentence = "node 1 and node 2 have different secrets";
        lost(us, sentence.to_owned());
        server.wait_for(&ReplicaEvent::Refused(format!("the other side refused: {sentence}")));

        // A newer version, by hand.
        let (us, mut hello) = (identity(1), Vec::new());
        Dialer::start(dialing(&us, Purpose::Requests), 0, &[0; 32], &mut hello);
        hello[8] = 200;
        let mut socket = TcpStream::connect(server.address).unwrap();
        socket.write_all(&hello).unwrap();
        let mut refusal = Vec::new();
        socket.read_to_end(&mut refusal).unwrap();
        let sentence = "node 2 speaks version 2 of the replica protocol, and the other side 200";
        assert!(refusal.ends_with(sentence.as_bytes()));
        server.wait_for(&ReplicaEvent::Refused(sentence.to_owned()));
        assert!(!server.events.lock().unwrap().iter().any(|event| matches!(event, ReplicaEvent::Connected(_))));

        // A clock that is ahead.
        let ahead = Server::with(driver, "127.0.0.1:0".parse().unwrap(), identity(2), When::Now, || wall_ms() + 60_000);
        let address = ahead.address;
        on(driver, move || async move {
            let (link, seen) = link_to(address);
            until("lost", || !seen.lost.borrow().is_empty()).await;
            let lost = seen.lost.borrow()[0].clone();
            assert!(lost.starts_with("the clock of node 2 is ") && lost.ends_with("the bound of 500 ms"), "{lost}");
            closed(&link, &seen).await;
        })
        .join()
        .unwrap();
    }
}

#[test]
fn strangers_are_few() {
    for driver in DRIVERS {
        let server = Server::start(driver);
        let strangers: Vec<_> = (0..STRANGERS).map(|_| TcpStream::connect(server.address).unwrap()).collect();
        while server.count(&ReplicaEvent::Accepted) < STRANGERS {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut one_more = TcpStream::connect(server.address).unwrap();
        assert_ended(&mut one_more);
        assert!(server.has(&ReplicaEvent::Limit));
        drop(strangers);
        while server.count(&ReplicaEvent::Closed) < STRANGERS {
            std::thread::sleep(Duration::from_millis(1));
        }
        raw(server.address);
    }
}

#[test]
fn a_flood_of_strangers_keeps_no_member_out() {
    for driver in DRIVERS {
        let server = Server::start(driver);
        let stop = AtomicBool::new(false);
        let (address, stop) = (server.address, &stop);
        std::thread::scope(|scope| {
            let flood = move |kind: usize| {
                let mut held = VecDeque::new();
                while !stop.load(Ordering::Relaxed) {
                    // Silent ones, ones that leave at once, and ones with something else to say.
                    let Ok(mut stranger) = TcpStream::connect(address) else { continue };
                    if kind == 1 {
                        let _ = stranger.write_all(b"KOLTSORP");
                    }
                    held.push_back(stranger);
                    if held.len() > [400, 400, 0][kind] {
                        held.pop_front();
                    }
                }
            };
            let floods: Vec<_> = (0..3).map(|kind| scope.spawn(move || flood(kind))).collect();
            while server.count(&ReplicaEvent::Limit) < 200 {
                std::thread::sleep(Duration::from_millis(1));
            }
            // A member comes, ten times.
            for number in 1..=10 {
                let got_in = on(driver, move || async move {
                    let (link, seen) = link_to(address);
                    link.request(number, &PING).unwrap();
                    until("connected", || {
                        let is_up = link.state() == LinkState::Up;
                        if link.state() == LinkState::Down {
                            link.dial_now();
                        }
                        is_up
                    })
                    .await;
                    closed(&link, &seen).await;
                })
                .join();
                if got_in.is_err() {
                    stop.store(true, Ordering::Relaxed);
                    panic!("{driver:?}: a member was kept out");
                }
            }
            stop.store(true, Ordering::Relaxed);
            floods.into_iter().for_each(|flood| flood.join().unwrap());
        });
    }
}

/// The body of the fuzz target `replica_frames`, over mutations of real frames, for a moment.
/// `KOLTSO_FUZZ_SECONDS` runs it longer, `KOLTSO_SEED` repeats a run.
#[test]
fn frames_from_any_bytes_are_read_or_refused() {
    let mut seeded = Random::seeded(seed_or("frames_from_any_bytes_are_read_or_refused", 3));
    let mut random = move |below: usize| seeded.below(below);
    let value = pattern(100);
    let mut real = frame_of(1, &put(b"key", &value));
    real.extend_from_slice(&frame_of(2, &read(b"key", true)));
    real.extend_from_slice(&frame_of(3, &delete(b"key")));
    real.extend_from_slice(&frame_of(4, &PING));
    let whole = frame::fuzz_frames(&real, LIMITS);
    let found = Found {
        version: VERSION,
        expires_at_ms: 5,
        flags: FLAGS,
        attributes: ATTRIBUTES,
        value_len: value.len() as u32,
        value: Some(&value[..]),
    };
    let gone = Tombstone { version: VERSION, flags: FLAGS.tombstone() };
    let mut replies = Vec::new();
    for outcome in [
        Outcome::Found(found),
        Outcome::Absent(Some(gone)),
        Outcome::Absent(None),
        Outcome::Superseded(VERSION),
        Outcome::Applied,
        Outcome::Refused(Refused::DiskFull),
    ] {
        encode_reply(&mut replies, 5, EPOCHS.1, KeyHash(6), &Reply::Outcome(outcome));
    }
    assert_eq!((whole, frame::fuzz_frames(&replies, LIMITS)), (4, 6));
    let (begun, time) = (Instant::now(), koltso_testkit::fuzz::time());
    let (mut harmed, mut runs) = (0, 0);
    while begun.elapsed() < time {
        let asked = random(2) == 0;
        let (mut bytes, whole) = if asked { (real.clone(), 4) } else { (replies.clone(), 6) };
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] ^= 1 << random(8),
                1 => bytes[at] = random(256) as u8,
                2 => bytes.truncate(at + 1),
                _ => bytes.insert(at, random(256) as u8),
            }
        }
        if random(2) == 0 && bytes.len() > HEADER {
            // As if it had been meant, so that the fields are looked at.
            let body = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
            let end = bytes.len().min(HEADER.saturating_add(body));
            let checksum = crc32c::crc32c(&bytes[4..end]);
            bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        }
        harmed += usize::from(frame::fuzz_frames(&bytes, LIMITS) < whole);
        runs += 1;
    }
    assert!(runs > 100 && harmed > runs / 2, "{harmed} of {runs}");
}

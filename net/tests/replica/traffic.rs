//! Requests and replies of links: many, large and small ones, in any order.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use crate::{
    DRIVERS, EPOCHS, PING, Server, VALUE_MAX, VERSION, When, closed, delete, dial_config, dialer, frame_of, hash,
    identity, introduction, link_of, link_to, on_both, pattern, put, raw_peer, read, shared_put, text_of, until,
};
use bytes::Bytes;
use koltso_model::KeyHash;
use koltso_net::replica::blocking::{Connection, DialConfig};
use koltso_net::replica::frame::encode_request;
use koltso_net::replica::{
    Features, Full, HOLD_MAX, Identity, LinkState, LostReason, OUTBOX_MAX, Purpose, ReplicaEvent, Reply,
    UNANSWERED_MAX, frame,
};
use koltso_testkit::wall_ms;

#[test]
fn many_in_flight_and_values_of_all_sizes() {
    for when in [When::Now, When::After(1), When::Reversed] {
        on_both(move |driver| async move {
            let mut server = Server::answering(driver, when);
            let (link, seen) = link_to(server.address);
            let mut expected = Vec::new();
            for number in 0..4000 {
                let (key, text) = match number % 5 {
                    0 => {
                        let length = if number % 500 == 0 { 3_000_000 } else { number * 13 % 50_000 };
                        let value = Bytes::from(pattern(length));
                        link.execute(number as u64, &shared_put(b"put", value)).unwrap();
                        (b"put".to_vec(), "Applied".to_owned())
                    }
                    1 => {
                        let length = if number % 500 == 1 { VALUE_MAX } else { number * 7 % 30_000 };
                        let key = length.to_string().into_bytes();
                        link.request(number as u64, &read(&key, true)).unwrap();
                        (key, format!("{length} bytes, with them"))
                    }
                    2 => {
                        link.request(number as u64, &read(b"x", true)).unwrap();
                        (b"x".to_vec(), "Absent(None)".to_owned())
                    }
                    3 => {
                        link.request(number as u64, &delete(b"d")).unwrap();
                        (b"d".to_vec(), format!("Superseded({VERSION:?})"))
                    }
                    _ => {
                        let value = pattern(100);
                        link.request(number as u64, &put(&[7; 4096], &value)).unwrap();
                        (vec![7; 4096], "Applied".to_owned())
                    }
                };
                let hash = hash(&key);
                expected.push((number as u64, hash, text));
                if number % 700 == 0 || link.queued_bytes() > OUTBOX_MAX - VALUE_MAX {
                    monoio::time::sleep(Duration::from_millis(3)).await;
                    until("room", || link.queued_bytes() < OUTBOX_MAX / 2).await;
                }
            }
            until("all replies", || seen.replies.borrow().len() == 4000).await;
            if when == When::Reversed {
                // Each batch in reverse, whatever was read at once.
                assert!(*seen.replies.borrow() != expected);
                seen.replies.borrow_mut().sort_unstable();
            }
            assert!(*seen.replies.borrow() == expected);
            assert!(seen.batches.get() < 4000 && seen.connected.get() == 1, "{}", seen.batches.get());
            assert_eq!(link.queued_bytes(), 0);
            assert!(link.skew().unwrap().offset_ms.abs() < 200);
            closed(&link, &seen).await;
            assert_eq!(seen.lost_once(), "the connection was ended on this side");
            server.stop();
            assert!(server.has(&ReplicaEvent::Connected(dialer(Purpose::Requests))));
            assert_eq!(server.count(&ReplicaEvent::Closed), 1);
        });
    }
}

#[test]
fn all_frames_of_a_turn_leave_together() {
    on_both(|_| async move {
        let (tell, told) = std::sync::mpsc::channel();
        let (address, peer) = raw_peer(move |mut socket| {
            let mut buffer = vec![0; 100_000];
            loop {
                let count = socket.read(&mut buffer).unwrap_or(0);
                tell.send(count).unwrap();
                if count == 0 {
                    return;
                }
            }
        });
        let (link, seen) = link_to(address);
        until("up", || link.state() == LinkState::Up).await;
        let mut tasks = Vec::new();
        for number in 0..50 {
            let link = Rc::clone(&link);
            tasks.push(monoio::spawn(async move {
                link.request(number, &PING).unwrap();
            }));
        }
        for task in tasks {
            task.await;
        }
        let received = told.recv().unwrap();
        assert_eq!(received, 50 * frame_of(0, &PING).len());
        closed(&link, &seen).await;
        assert_eq!(told.recv().unwrap(), 0);
        peer.join().unwrap();
    });
}

#[test]
fn small_requests_wait_for_the_replies_that_are_on_their_way() {
    on_both(|_| async move {
        let (tell, told) = std::sync::mpsc::channel();
        let (answer, answers) = std::sync::mpsc::channel::<u64>();
        let (address, peer) = raw_peer(move |mut socket| {
            let mut buffer = vec![0; 100_000];
            let mut replies = socket.try_clone().unwrap();
            let replying = std::thread::spawn(move || {
                for number in answers {
                    let mut out = Vec::new();
                    let pong = Reply::Pong { wall_ms: 0, clock: 0 };
                    frame::encode_reply(&mut out, number, EPOCHS.1, KeyHash(0), &pong);
                    replies.write_all(&out).unwrap();
                }
            });
            loop {
                let count = socket.read(&mut buffer).unwrap_or(0);
                tell.send(count).unwrap();
                if count == 0 {
                    return replying.join().unwrap();
                }
            }
        });
        let (link, seen) = link_to(address);
        until("up", || link.state() == LinkState::Up).await;
        let ping = PING;
        let length = frame_of(0, &ping).len();
        link.request(0, &ping).unwrap();
        until("the first leaves at once", || told.try_recv().is_ok_and(|count| count == length)).await;
        for number in 1..=3 {
            link.request(number, &ping).unwrap();
            monoio::time::sleep(Duration::from_millis(20)).await;
            assert!(told.try_recv().is_err(), "a request did not wait");
        }
        answer.send(0).unwrap();
        until("they leave with the reply", || told.try_recv().is_ok_and(|count| count == 3 * length)).await;
        link.request(4, &ping).unwrap();
        monoio::time::sleep(Duration::from_millis(20)).await;
        assert!(told.try_recv().is_err(), "a request did not wait");
        link.release();
        until("or when they are released", || told.try_recv().is_ok_and(|count| count == length)).await;
        link.request(5, &put(b"key", &pattern(HOLD_MAX))).unwrap();
        until("or when they are many bytes", || told.try_recv().is_ok_and(|count| count > HOLD_MAX)).await;
        drop(answer);
        closed(&link, &seen).await;
        peer.join().unwrap();
    });
}

#[test]
fn the_blocking_client_does_the_same() {
    let dial = |address, identity: &Identity, timeout| {
        let config = dial_config(address, identity, Purpose::Requests);
        Connection::dial(&DialConfig { timeout, ..config })
    };
    let second = Duration::from_secs(2);
    for driver in DRIVERS {
        let mut server = Server::start(driver);
        let mut connection = dial(server.address, &identity(1), second).unwrap();
        assert!(connection.skew().unwrap().offset_ms.abs() < 200);
        let mut frames = Vec::new();
        for number in 0..100 {
            encode_request(&mut frames, number, EPOCHS.0, &read(b"300000", number % 10 == 0));
        }
        connection.send(&frames).unwrap();
        for expected in 0..100 {
            let found = connection.receive(|frame| (frame.number, frame.key_hash.0, text_of(&frame.reply)));
            let what = if expected % 10 == 0 { "with" } else { "without" };
            let text = format!("300000 bytes, {what} them");
            assert_eq!(found.unwrap(), (expected, hash(b"300000"), text));
        }
        let mut other = identity(1);
        other.cluster = "other".to_owned();
        let error = dial(server.address, &other, second).unwrap_err();
        let sentence = "it refused: node 2 and node 1 have different cluster names (--cluster-name)";
        assert_eq!(error.to_string(), sentence);
        server.stop();
        assert!(matches!(connection.receive(|_| ()), Err(LostReason::Closed)));
        assert!(matches!(dial(server.address, &identity(1), second), Err(LostReason::ConnectRefused)));
    }
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = dial(silent.local_addr().unwrap(), &identity(1), Duration::from_millis(100)).unwrap_err();
    assert!(matches!(error, LostReason::Timeout), "{error:?}");
}

#[test]
fn answers_may_overtake_each_other_and_reading_stops_when_too_many_are_missing() {
    on_both(|driver| async move {
        let mut server = Server::answering(driver, When::EveryOther);
        let (link, seen) = link_to(server.address);
        // Every other one is never answered: these are two more than may be missing.
        let asked = 2 * UNANSWERED_MAX as u64 + 4;
        for number in 0..asked {
            link.request(number, &read(b"x", true)).unwrap();
            link.release();
        }
        let answered = UNANSWERED_MAX;
        until("what comes before the bound is answered", || seen.replies.borrow().len() == answered).await;
        // Neither of what is behind, nor pings.
        link.request(asked, &PING).unwrap();
        link.release();
        monoio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(seen.replies.borrow().len(), answered);
        assert!(seen.replies.borrow().iter().all(|(number, ..)| number % 2 == 0));
        // Other connections are served.
        let (other, other_seen) = link_to(server.address);
        other.request(0, &PING).unwrap();
        until("others are served", || other_seen.replies.borrow().len() == 1).await;
        closed(&other, &other_seen).await;
        // The asker goes, and the connection ends though its answers are still missing.
        closed(&link, &seen).await;
        server.stop();
        assert_eq!(server.count(&ReplicaEvent::Closed), 2);
    });
}

#[test]
fn a_record_that_a_node_does_not_understand_is_not_told() {
    on_both(|driver| async move {
        let address = "127.0.0.1:0".parse().unwrap();
        // A node of an earlier build, whose data have been written by this one.
        let earlier = Features(Features::KNOWN.0 & !Features::CONTENT_TYPE.0);
        let identity = Identity { features: earlier, ..identity(2) };
        let server = Server::with(driver, address, identity.clone(), When::Now, wall_ms);
        let (link, seen) = link_to(server.address);
        for (number, key) in [b"3".as_slice(), b"100000"].into_iter().enumerate() {
            link.request(number as u64, &read(key, true)).unwrap();
        }
        until("answered", || seen.replies.borrow().len() == 2).await;
        for (_, _, text) in &*seen.replies.borrow() {
            assert_eq!(text, "Refused(Failed)");
        }
        closed(&link, &seen).await;
        let (link, seen) = link_of(server.address, Identity { node: 1, introduction: introduction(1), ..identity });
        assert_eq!(link.execute(0, &shared_put(b"key", Bytes::new())), Err(Full));
        closed(&link, &seen).await;
    });
}

//! Connections for comparing replicas: steps of all kinds and sizes, and ends that lie, stall, or
//! are told to stop.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::by_hand::dialed_by_hand;
use crate::{
    ATTRIBUTES, DRIVERS, EPOCHS, FLAGS, PING, Server, VALUE_MAX, VERSION, assert_ended, dial_config, frame_of,
    identity, pattern, put, raw_peer, record,
};
use bytes::Bytes;
use koltso_model::{
    ExchangeReply, ExchangeRequest, Flags, Item, Key, LEAVES, LeafSet, Operation, Outcome, PARTITIONS, Record,
    Standing, Told, Version, Want,
};
use koltso_net::replica::blocking::{AnswerConfig, Answering, Connection, DialConfig};
use koltso_net::replica::frame::exchange::{
    Asked, EXCHANGE_BODY, RECORDS_MAX, encode_exchange, encode_exchange_reply, fuzz_exchange, record_bytes,
};
use koltso_net::replica::{Features, LostReason, Purpose, ReplicaEvent};
use koltso_testkit::random::{Random, seed_or};

const TOLD: Told = Told { standing: Standing::Rebuilding, settled: 1, forgotten: 2, agreed: 3, froms: 0b101 };

/// Answers what the server is given with what `answer` says, on a thread; how that ended.
fn answer_with(
    server: &Server,
    stop: &Arc<AtomicBool>,
    mut answer: impl FnMut(&ExchangeRequest) -> ExchangeReply + Send + 'static,
) -> JoinHandle<LostReason> {
    let (peer, socket, read_so_far) = server.given.recv_timeout(Duration::from_secs(5)).unwrap();
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let us = identity(2);
        let config = AnswerConfig { identity: &us, value_max: VALUE_MAX, stop };
        let mut answering = Answering::new(peer, socket, &read_so_far, &config);
        assert_eq!(*answering.peer(), peer);
        loop {
            let done = match answering.next_request() {
                Ok(Asked::Exchange(request)) => answering.reply(&answer(&request)),
                Ok(Asked::Execute(Operation::Read { .. })) => answering.answer(&Outcome::Absent(None)),
                Ok(Asked::Execute(Operation::Write(_))) => answering.answer(&Outcome::Applied),
                Ok(Asked::Ping { wall_ms, clock }) => answering.pong(wall_ms + 1, clock + 1),
                Err(why) => return why,
            };
            if let Err(why) = done {
                return why;
            }
        }
    })
}

fn shared_record(key: &str, value: usize) -> Record<Bytes> {
    record(Bytes::from(key.to_owned()), Bytes::from(pattern(value)), Bytes::from_static(ATTRIBUTES))
}

/// Steps of all kinds, small ones and the largest, with their answers.
fn steps() -> Vec<(ExchangeRequest, ExchangeReply)> {
    let all: Vec<u16> = (0..PARTITIONS as u16).collect();
    let item = Item { hash: 1, version: VERSION, from: 3, absent: true };
    let many = vec![shared_record("key", 0); RECORDS_MAX];
    let mut large = vec![shared_record("key", VALUE_MAX - 100)];
    assert!(large.iter().map(record_bytes).sum::<usize>() <= EXCHANGE_BODY);
    large.push(shared_record("last", VALUE_MAX));
    let given = |records: &[Record<Bytes>]| ExchangeReply::Given(records.iter().map(|r| r.value.is_empty()).collect());
    let roots = |from, count| {
        (ExchangeRequest::Roots { told: TOLD, from }, ExchangeReply::Roots { told: TOLD, roots: vec![7; count] })
    };
    vec![
        roots(0, 0),
        roots(64, PARTITIONS),
        (
            ExchangeRequest::Leaves { from: 3, byte: 7, partitions: all.clone() },
            ExchangeReply::Leaves(Bytes::from(pattern(PARTITIONS * LEAVES))),
        ),
        (
            ExchangeRequest::Items(all.iter().map(|&p| (p, [1; 4])).collect()),
            ExchangeReply::Items(vec![vec![item; 60]; PARTITIONS]),
        ),
        (
            ExchangeRequest::Fetch { places: (0..9).collect(), credit: 1 },
            ExchangeReply::Records(vec![None, Some(shared_record("key", 5))]),
        ),
        (
            ExchangeRequest::Fetch { places: vec![0, u32::MAX], credit: u32::MAX },
            ExchangeReply::Records(large.iter().cloned().map(Some).collect()),
        ),
        (ExchangeRequest::Give(many.clone()), given(&many)),
        (ExchangeRequest::Give(large.clone()), given(&large)),
        (ExchangeRequest::Agreed { from: 3, partitions: all }, ExchangeReply::Noted),
        (ExchangeRequest::Items(vec![(5, LeafSet::default())]), ExchangeReply::NotReady),
    ]
}

#[test]
fn steps_of_all_kinds_and_sizes_come_as_they_are() {
    for driver in DRIVERS {
        let server = Server::start(driver);
        let us = identity(1);
        let mut connection = Connection::dial(&dial_config(server.address, &us, Purpose::Exchange)).unwrap();
        let steps = steps();
        let mut script = steps.clone().into_iter();
        let answering = answer_with(&server, &Arc::default(), move |request| {
            let (asked, answer) = script.next().expect("no more is asked");
            assert!(*request == asked, "another request came");
            answer
        });
        for (request, reply) in steps {
            assert!(connection.exchange(&request).unwrap() == reply, "another reply came");
            // Requests for data and pings come in between.
            assert_eq!(connection.ping(1, 2).unwrap(), (2, 3));
            let read = Operation::Read { key: Key::new(&b"key"[..]), want: Want::Value };
            assert_eq!(connection.execute(&read).unwrap(), Some(Outcome::Absent(None)));
        }
        drop(connection);
        assert!(matches!(answering.join().unwrap(), LostReason::Closed));
    }
}

#[test]
fn a_record_that_a_node_does_not_understand_is_not_given() {
    let server = Server::start(DRIVERS[0]);
    let us = identity(1);
    let mut connection = Connection::dial(&dial_config(server.address, &us, Purpose::Exchange)).unwrap();
    let answering = answer_with(&server, &Arc::default(), |request| match request {
        ExchangeRequest::Give(records) => ExchangeReply::Given(records.iter().map(|_| true).collect()),
        _ => ExchangeReply::NotReady,
    });
    let odd = Record { flags: Flags::from_bits(1 << 9), ..shared_record("odd", 1) };
    let records = vec![shared_record("a", 1), odd.clone(), shared_record("b", 1), odd.clone()];
    let given = connection.exchange(&ExchangeRequest::Give(records)).unwrap();
    assert_eq!(given, ExchangeReply::Given(vec![true, false, true, false]));
    assert_eq!(connection.execute(&Operation::Write(odd.borrowed())).unwrap(), None);
    drop(connection);
    assert!(matches!(answering.join().unwrap(), LostReason::Closed));
}

fn asking(request: &ExchangeRequest) -> Vec<u8> {
    let mut out = Vec::new();
    encode_exchange(&mut out, 1, EPOCHS.0, request);
    out
}

fn answering(number: u64, reply: &ExchangeReply) -> Vec<u8> {
    let mut out = Vec::new();
    encode_exchange_reply(&mut out, number, EPOCHS.1, Features::KNOWN, reply);
    out
}

#[test]
fn a_peer_that_asks_nonsense_is_cut_off_with_a_sentence() {
    let roots = |from| ExchangeRequest::Roots { told: TOLD, from };
    let disorderly = ExchangeRequest::Leaves { from: 3, byte: 0, partitions: vec![2, 1] };
    let mut flipped = asking(&roots(1));
    flipped[50] ^= 1;
    let mut huge = asking(&roots(1));
    huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    for (bytes, sentence) in [
        (asking(&roots(65)), "a frame for comparing replicas has a number of replicas out of range"),
        (asking(&disorderly), "a frame for comparing replicas has partitions that do not ascend"),
        (flipped, "the checksum of a frame does not match its bytes"),
        (huge, "a frame claims a body of 4294967295 bytes, and the longest has"),
        (answering(1, &ExchangeReply::Noted), "a frame is of kind 136, which is not one that is expected here"),
    ] {
        for driver in DRIVERS {
            let server = Server::start(driver);
            let mut socket = dialed_by_hand(server.address, Purpose::Exchange);
            let answering = answer_with(&server, &Arc::default(), |_| ExchangeReply::NotReady);
            socket.write_all(&asking(&roots(1))).unwrap();
            socket.write_all(&bytes).unwrap();
            match answering.join().unwrap() {
                LostReason::Violation(said) => assert!(said.starts_with(sentence), "{said}"),
                other => panic!("{other}"),
            }
            // What came before was answered.
            let mut first = vec![0; 40];
            socket.read_exact(&mut first).unwrap();
            assert_eq!((first[32], first[33]), (136, 7));
            assert_ended(&mut socket);
        }
    }
}

#[test]
fn a_step_on_a_connection_for_something_else_is_a_violation() {
    for driver in DRIVERS {
        let server = Server::start(driver);
        let mut socket = dialed_by_hand(server.address, Purpose::Requests);
        socket.write_all(&asking(&ExchangeRequest::Roots { told: TOLD, from: 1 })).unwrap();
        assert_ended(&mut socket);
        let sentence = "a frame is of kind 4, which is not one that is expected here".to_owned();
        server.wait_for(&ReplicaEvent::Violation { node: 1, sentence });
        assert_eq!(server.given.try_iter().count(), 0);
    }
}

#[test]
fn an_answer_that_is_none_ends_the_connection() {
    let leaves = ExchangeRequest::Leaves { from: 3, byte: 0, partitions: vec![1, 2] };
    let something_else = "it broke the protocol: it answered a comparison with something else";
    let kind = "it broke the protocol: a frame is of kind 4, which is not one that is expected here";
    let mut half = answering(1, &ExchangeReply::Leaves(Bytes::from(vec![0; 2 * LEAVES])));
    half.truncate(100);
    for (bytes, sentence) in [
        (answering(1, &ExchangeReply::Noted), something_else),
        (answering(2, &ExchangeReply::Leaves(Bytes::from(vec![0; 2 * LEAVES]))), something_else),
        (answering(1, &ExchangeReply::Leaves(Bytes::from(vec![0; LEAVES]))), something_else),
        (asking(&leaves), kind),
        (half, "the connection was closed"),
    ] {
        let (address, peer) = raw_peer(move |mut socket| {
            socket.read_exact(&mut vec![0; asking_len()]).unwrap();
            socket.write_all(&bytes).unwrap();
        });
        let us = identity(1);
        let mut connection = Connection::dial(&dial_config(address, &us, Purpose::Exchange)).unwrap();
        assert_eq!(asking(&leaves).len(), asking_len());
        let error = connection.exchange(&leaves).unwrap_err();
        assert_eq!(error.to_string(), sentence);
        peer.join().unwrap();
    }
}

/// Bytes of a request for the leaves of two partitions.
const fn asking_len() -> usize {
    40 + 2 + 2 * 2
}

#[test]
fn a_stream_that_stops_half_way_ends_by_its_deadline() {
    let reply = answering(1, &ExchangeReply::Leaves(Bytes::from(vec![0; 2 * LEAVES])));
    for sent in [0, 10, 40, reply.len() - 1] {
        let bytes = reply[..sent].to_vec();
        let (address, peer) = raw_peer(move |mut socket| {
            socket.write_all(&bytes).unwrap();
            // Until the other side gives up.
            while socket.read(&mut [0; 1000]).is_ok_and(|count| count > 0) {}
        });
        let us = identity(1);
        let config = dial_config(address, &us, Purpose::Exchange);
        let timeout = Duration::from_millis(300);
        let mut connection = Connection::dial(&DialConfig { timeout, ..config }).unwrap();
        let begun = Instant::now();
        let error =
            connection.exchange(&ExchangeRequest::Leaves { from: 3, byte: 0, partitions: vec![1, 2] }).unwrap_err();
        assert!(matches!(error, LostReason::Timeout), "{error}");
        assert!(begun.elapsed() >= timeout);
        drop(connection);
        peer.join().unwrap();
    }
    // The answering side waits for the rest of a request for five seconds.
    let server = Server::start(DRIVERS[0]);
    let mut socket = dialed_by_hand(server.address, Purpose::Exchange);
    let answering = answer_with(&server, &Arc::default(), |_| ExchangeReply::NotReady);
    let begun = Instant::now();
    socket.write_all(&asking(&ExchangeRequest::Roots { told: TOLD, from: 1 })[..50]).unwrap();
    assert!(matches!(answering.join().unwrap(), LostReason::Timeout));
    assert!(begun.elapsed() >= Duration::from_secs(4));
}

#[test]
fn both_ends_stop_when_they_are_told_to() {
    let server = Server::start(DRIVERS[0]);
    let (stop, us) = (Arc::<AtomicBool>::default(), identity(1));
    let config = dial_config(server.address, &us, Purpose::Exchange);
    let mut connection = Connection::dial(&DialConfig { stop: Some(Arc::clone(&stop)), ..config }).unwrap();
    let (_, socket, _) = server.given.recv_timeout(Duration::from_secs(5)).unwrap();
    let asking = std::thread::spawn(move || connection.exchange(&ExchangeRequest::Give(Vec::new())).unwrap_err());
    // Nobody answers; without being told, it would wait for five seconds and time out.
    stop.store(true, Ordering::Relaxed);
    assert!(matches!(asking.join().unwrap(), LostReason::Stopped));
    drop(socket);

    stop.store(false, Ordering::Relaxed);
    let config = dial_config(server.address, &us, Purpose::Exchange);
    let _connection = Connection::dial(&config).unwrap();
    let answering = answer_with(&server, &stop, |_| ExchangeReply::NotReady);
    stop.store(true, Ordering::Relaxed);
    assert!(matches!(answering.join().unwrap(), LostReason::Stopped));
}

#[test]
fn a_peer_that_takes_nothing_of_its_answers_is_cut_off() {
    let server = Server::start(DRIVERS[0]);
    let mut socket = dialed_by_hand(server.address, Purpose::Exchange);
    let answering =
        answer_with(&server, &Arc::default(), |_| ExchangeReply::Leaves(Bytes::from(vec![0; PARTITIONS * LEAVES])));
    let leaves = asking(&ExchangeRequest::Leaves { from: 1, byte: 0, partitions: vec![1] });
    socket.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    // More than the buffers of both kernels hold, of answers and of requests.
    let asked = (0..100_000).take_while(|_| socket.write_all(&leaves).is_ok()).count();
    let why = answering.join().unwrap();
    // Whichever deadline is first: the kernel has one, too.
    assert!(matches!(why, LostReason::Timeout), "after {asked}: {why}");
}

/// The body of the fuzz target `replica_exchange`, over mutations of real frames, for a moment.
/// `KOLTSO_FUZZ_SECONDS` runs it longer, `KOLTSO_SEED` repeats a run.
#[test]
fn steps_from_any_bytes_are_read_or_refused() {
    let mut random = Random::seeded(seed_or("steps_from_any_bytes_are_read_or_refused", 3));
    let tombstone = Record {
        value: Bytes::new(),
        flags: FLAGS.tombstone(),
        version: Version::new(5, 2),
        ..shared_record("gone", 0)
    };
    let records = vec![shared_record("key", 20), tombstone];
    let item = Item { hash: 1, version: VERSION, from: 3, absent: true };
    let mut requests = Vec::new();
    for request in [
        ExchangeRequest::Roots { told: TOLD, from: 3 },
        ExchangeRequest::Leaves { from: 3, byte: 7, partitions: vec![1, 5, 4095] },
        ExchangeRequest::Items(vec![(1, [1; 4]), (7, [2; 4])]),
        ExchangeRequest::Fetch { places: vec![0, 3, 9], credit: 77 },
        ExchangeRequest::Give(records.clone()),
        ExchangeRequest::Agreed { from: 2, partitions: vec![3, 4] },
    ] {
        encode_exchange(&mut requests, 1, EPOCHS.0, &request);
    }
    requests.extend_from_slice(&frame_of(4, &PING));
    requests.extend_from_slice(&frame_of(5, &put(b"key", &pattern(20))));
    let mut replies = Vec::new();
    for reply in [
        ExchangeReply::Roots { told: TOLD, roots: vec![1, 2] },
        ExchangeReply::Leaves(Bytes::from(vec![7; LEAVES])),
        ExchangeReply::Items(vec![vec![item; 2], vec![]]),
        ExchangeReply::Records(vec![Some(records[0].clone()), None, Some(records[1].clone())]),
        ExchangeReply::Given(vec![true, false]),
        ExchangeReply::Noted,
        ExchangeReply::NotReady,
    ] {
        encode_exchange_reply(&mut replies, 1, EPOCHS.1, Features::KNOWN, &reply);
    }
    let limits = crate::LIMITS;
    assert_eq!((fuzz_exchange(&requests, limits), fuzz_exchange(&replies, limits)), (8, 7));
    let (begun, time) = (Instant::now(), koltso_testkit::fuzz::time());
    let (mut harmed, mut runs) = (0, 0);
    while begun.elapsed() < time {
        let (real, whole) = if random.below(2) == 0 { (&requests, 8) } else { (&replies, 7) };
        let mut bytes = real.clone();
        // One frame is harmed, as if it had been meant so that its fields are looked at.
        let mut at = 0;
        for _ in 0..random.below(whole) {
            at += 40 + u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        }
        let mut frame = bytes.split_off(at);
        let body = u32::from_le_bytes(frame[4..8].try_into().unwrap()) as usize;
        let behind = frame.split_off(40 + body);
        koltso_testkit::fuzz::mutate(&mut frame, &mut random);
        if random.below(4) > 0 && frame.len() >= 40 {
            let length = (frame.len() - 40) as u32;
            frame[4..8].copy_from_slice(&length.to_le_bytes());
            let checksum = crc32c::crc32c(&frame[4..]);
            frame[..4].copy_from_slice(&checksum.to_le_bytes());
        }
        bytes.extend_from_slice(&frame);
        bytes.extend_from_slice(&behind);
        harmed += usize::from(fuzz_exchange(&bytes, limits) < whole);
        runs += 1;
    }
    assert!(runs > 100 && harmed > runs / 10, "{harmed} of {runs}");
}

#[test]
fn a_socket_that_is_only_half_open_ends() {
    let server = Server::start(DRIVERS[0]);
    let mut socket: TcpStream = dialed_by_hand(server.address, Purpose::Exchange);
    let answering = answer_with(&server, &Arc::default(), |_| ExchangeReply::NotReady);
    socket.write_all(&asking(&ExchangeRequest::Roots { told: TOLD, from: 1 })).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    assert!(matches!(answering.join().unwrap(), LostReason::Closed));
    socket.read_exact(&mut [0; 40]).unwrap();
    assert_ended(&mut socket);
}

//! Links and replica servers over real sockets, on both drivers: what they do for each other, and what strangers,
//! broken peers and slow ones can do to them.
#![allow(clippy::unwrap_used, missing_docs)]

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use koltso_net::replica::blocking::Connection;
use koltso_net::replica::frame::{self, HEADER, Limits, Parsed, encode_reply, encode_request, parse_request};
use koltso_net::replica::handshake::{Acceptor, Dialer, Progress};
use koltso_net::replica::{
    AcceptConfig, DIAL_GAP, Full, HOLD_MAX, Identity, Link, LinkConfig, LinkHandler, LinkState, LostReason, OUTBOX_MAX,
    Refused, ReplicaEvent, ReplicaService, Replies, Reply, Request, STRANGERS_MAX, Stamp, serve,
};
use koltso_net::server::Shared;
use koltso_testkit::random::{Random, seed_or};
use koltso_testkit::wall_ms;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

const VALUE_MAX: usize = 4 << 20;
const LIMITS: Limits = Limits { value_max: VALUE_MAX };
const SKEW_MAX: Duration = Duration::from_millis(500);
const VERSION: Stamp = Stamp { clock: 77, node: 1 };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driver {
    Uring,
    Legacy,
}

const DRIVERS: [Driver; 2] = [Driver::Uring, Driver::Legacy];

/// Runs what `make` makes on a runtime in a thread of its own.
fn on<F: Future<Output = ()>>(driver: Driver, make: impl FnOnce() -> F + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(move || match driver {
        Driver::Uring => RuntimeBuilder::<IoUringDriver>::new()
            .enable_timer()
            .build()
            .expect("io_uring is needed for this test")
            .block_on(async { make().await }),
        Driver::Legacy => {
            RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().unwrap().block_on(async { make().await });
        }
    })
}

/// Runs it on both drivers, one after the other.
fn on_both<F: Future<Output = ()>>(make: impl FnOnce(Driver) -> F + Send + Copy + 'static) {
    for driver in DRIVERS {
        on(driver, move || make(driver)).join().unwrap();
    }
}

/// Waits until `happened`, 5 s at most.
async fn until(what: &str, happened: impl Fn() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < Duration::from_secs(5), "never: {what}");
        monoio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn identity(node: u16) -> Identity {
    Identity { cluster: "ring".to_owned(), topology: 7, topology_number: 1, node, secret: b"secret".to_vec() }
}

fn hash(key: &[u8]) -> u64 {
    key.iter().fold(1_u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 % 251) as u8).collect()
}

/// Answers by what the key says: a number is the length of a value.
struct TestService {
    events: Arc<Mutex<Vec<ReplicaEvent>>>,
    settle_ms: u64,
    unsettled: Cell<bool>,
}

impl ReplicaService for TestService {
    fn request(&self, from: u16, _: u64, request: Request<'_>, replies: &mut Replies<'_>) {
        assert_eq!(from, 1);
        match request {
            Request::Put { key, value, version, expires_at_ms } => {
                assert_eq!((version, expires_at_ms), (VERSION, 5));
                self.unsettled.set(self.unsettled.get() || key == b"unsettled");
                let reply = if *value == pattern(value.len()) { Reply::Applied } else { Reply::Damaged };
                replies.reply(hash(key), &reply);
            }
            Request::Delete { key, version } => replies.reply(hash(key), &Reply::Superseded(version)),
            Request::Read { key, value } => {
                match std::str::from_utf8(key).ok().and_then(|key| key.parse::<usize>().ok()) {
                    Some(length) if value => replies.large(hash(key), VERSION, 5, Bytes::from(pattern(length))),
                    Some(length) => {
                        let value_len = length as u32;
                        replies.reply(
                            hash(key),
                            &Reply::Found { version: VERSION, expires_at_ms: 5, value_len, value: None },
                        );
                    }
                    None => replies.reply(hash(key), &Reply::Absent(None)),
                }
            }
            Request::Ping { wall_ms, clock } => replies.reply(0, &Reply::Pong { wall_ms, clock }),
        }
    }

    fn settle(&self) -> Option<Pin<Box<dyn Future<Output = bool>>>> {
        let (ms, good) = (self.settle_ms, !self.unsettled.get());
        (ms > 0).then(|| -> Pin<Box<dyn Future<Output = bool>>> {
            Box::pin(async move {
                monoio::time::sleep(Duration::from_millis(ms)).await;
                good
            })
        })
    }

    fn event(&self, event: ReplicaEvent) {
        self.events.lock().unwrap().push(event);
    }
}

/// Node 2 of 1, 2, 3.
struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    events: Arc<Mutex<Vec<ReplicaEvent>>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(driver: Driver) -> Self {
        Self::with(driver, "127.0.0.1:0".parse().unwrap(), identity(2), 0, wall_ms)
    }

    fn with(driver: Driver, address: SocketAddr, identity: Identity, settle_ms: u64, wall_ms: fn() -> u64) -> Self {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener.set_reuse_address(true).unwrap();
        let begun = Instant::now();
        // The kernel takes io_uring's accepts down a moment after they were shut down.
        while let Err(error) = listener.bind(&address.into()) {
            assert!(begun.elapsed() < Duration::from_secs(3), "{error}");
            std::thread::sleep(Duration::from_millis(10));
        }
        listener.listen(128).unwrap();
        let listener: TcpListener = listener.into();
        let address = listener.local_addr().unwrap();
        let (shared, events) = (Shared::new(), Arc::<Mutex<Vec<ReplicaEvent>>>::default());
        let (its_shared, its_events) = (Arc::clone(&shared), Arc::clone(&events));
        let thread = on(driver, move || async move {
            let service = TestService { events: its_events, settle_ms, unsettled: Cell::new(false) };
            let (identity, members) = (Rc::new(identity), vec![1, 2, 3]);
            let config = AcceptConfig { identity, members, value_max: VALUE_MAX, wall_ms, connections_max: 200 };
            serve(listener, Rc::new(service), config, its_shared).await.unwrap();
        });
        Self { address, shared, events, thread: Some(thread) }
    }

    fn has(&self, event: &ReplicaEvent) -> bool {
        self.events.lock().unwrap().contains(event)
    }

    fn count(&self, event: &ReplicaEvent) -> usize {
        self.events.lock().unwrap().iter().filter(|seen| *seen == event).count()
    }

    fn wait_for(&self, event: &ReplicaEvent) {
        let begun = Instant::now();
        while !self.has(event) {
            assert!(begun.elapsed() < Duration::from_secs(5), "never: {event:?} in {:?}", self.events.lock().unwrap());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Drains and waits for `serve` to return; says how long it took.
    fn stop(&mut self) -> Duration {
        let begun = Instant::now();
        self.shared.drain();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        begun.elapsed()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

/// What a handler has seen.
#[derive(Default)]
struct Seen {
    link: RefCell<Option<Rc<Link<Seen>>>>,
    connected: Cell<usize>,
    replies: RefCell<Vec<(u64, u64, String)>>,
    batches: Cell<usize>,
    progress: Cell<usize>,
    lost: RefCell<Vec<String>>,
    /// A reply about this key is a violation.
    hates: Cell<u64>,
}

impl LinkHandler for Seen {
    fn connected(&self, peer: usize, _: Instant) {
        assert_eq!(peer, 9);
        assert_eq!(self.link().state(), LinkState::Up);
        self.connected.set(self.connected.get() + 1);
    }

    fn reply(&self, _: usize, _: Instant, number: u64, key_hash: u64, reply: Reply<'_>) -> Result<(), String> {
        if key_hash != 0 && key_hash == self.hates.get() {
            return Err("a reply is about another key".to_owned());
        }
        let text = match reply {
            Reply::Found { value: Some(value), version: VERSION, expires_at_ms: 5, value_len }
                if *value == pattern(value_len as usize) =>
            {
                format!("{value_len} bytes")
            }
            other => format!("{other:?}"),
        };
        self.replies.borrow_mut().push((number, key_hash, text));
        Ok(())
    }

    fn batch_end(&self, _: usize, _: Instant) {
        self.batches.set(self.batches.get() + 1);
    }

    fn progress(&self, _: usize, _: Instant) {
        self.progress.set(self.progress.get() + 1);
    }

    fn lost(&self, _: usize, why: &LostReason) {
        assert_eq!(self.link().queued_bytes(), 0);
        assert_eq!(self.link().state(), LinkState::Down);
        self.lost.borrow_mut().push(why.to_string());
    }
}

impl Seen {
    fn link(&self) -> Rc<Link<Seen>> {
        Rc::clone(self.link.borrow().as_ref().unwrap())
    }

    fn lost_once(&self) -> String {
        let lost = self.lost.borrow();
        assert_eq!(lost.len(), 1, "{lost:?}");
        lost[0].clone()
    }
}

fn link_of(address: SocketAddr, identity: Identity) -> (Rc<Link<Seen>>, Rc<Seen>) {
    let seen = Rc::<Seen>::default();
    let config = LinkConfig {
        peer: 9,
        address,
        peer_number: 2,
        identity: Rc::new(identity),
        value_max: VALUE_MAX,
        wall_ms,
        skew_max: SKEW_MAX,
    };
    let link = Link::new(config, Rc::clone(&seen));
    *seen.link.borrow_mut() = Some(Rc::clone(&link));
    monoio::spawn(Rc::clone(&link).run());
    (link, seen)
}

/// Node 1 asks node 2.
fn link_to(address: SocketAddr) -> (Rc<Link<Seen>>, Rc<Seen>) {
    link_of(address, identity(1))
}

async fn closed(link: &Link<Seen>, seen: &Seen) {
    let before = seen.lost.borrow().len();
    link.close();
    if link.state() != LinkState::Down {
        until("lost", || seen.lost.borrow().len() == before + 1).await;
    }
    assert_eq!(link.request(0, &Request::Ping { wall_ms: 0, clock: 0 }), Err(Full));
    *seen.link.borrow_mut() = None;
}

/// A connection whose handshake as node 1 was done by hand.
fn raw(address: SocketAddr) -> TcpStream {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (us, mut out, mut read) = (identity(1), Vec::new(), Vec::new());
    let mut dialer = Dialer::start(&us, 2, SKEW_MAX, wall_ms(), &[1; 32], &mut out);
    loop {
        socket.write_all(&out).unwrap();
        out.clear();
        let mut buffer = [0; 1000];
        let count = socket.read(&mut buffer).unwrap();
        read.extend_from_slice(&buffer[..count]);
        match dialer.feed(&read, Duration::ZERO, &mut out).unwrap() {
            Progress::More { consumed } => drop(read.drain(..consumed)),
            Progress::Done { .. } => {
                socket.write_all(&out).unwrap();
                return socket;
            }
        }
    }
}

/// A node 2 by hand: accepts once, shakes hands, and goes on as `then` likes.
fn raw_peer(then: impl FnOnce(TcpStream) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (us, mut out, mut read) = (identity(2), Vec::new(), Vec::new());
        let mut acceptor = Acceptor::new(&us, &[1, 2, 3], [2; 32]);
        loop {
            // Byte by byte, so that no frame is taken.
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            read.push(byte[0]);
            let fed = acceptor.feed(&read, wall_ms(), &mut out).unwrap();
            socket.write_all(&out).unwrap();
            out.clear();
            match fed {
                Progress::More { consumed } => drop(read.drain(..consumed)),
                Progress::Done { .. } => return then(socket),
            }
        }
    });
    (address, thread)
}

fn frame_of(number: u64, request: &Request<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    encode_request(&mut out, number, request);
    out
}

/// Reads one reply: its number and text.
fn reply_from(socket: &mut TcpStream) -> (u64, String) {
    let mut bytes = vec![0; HEADER];
    socket.read_exact(&mut bytes).unwrap();
    match frame::parse_reply(&bytes, LIMITS) {
        Parsed::Partial { need } => {
            bytes.resize(need, 0);
            socket.read_exact(&mut bytes[HEADER..]).unwrap();
        }
        Parsed::Complete { .. } => {}
        Parsed::Bad(violation) => panic!("{violation}"),
    }
    match frame::parse_reply(&bytes, LIMITS) {
        Parsed::Complete { frame: (number, _, reply), len } if len == bytes.len() => (number, format!("{reply:?}")),
        other => panic!("{other:?}"),
    }
}

fn assert_ended(socket: &mut TcpStream) {
    match socket.read(&mut [0; 100]) {
        Ok(0) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("more came: {other:?}"),
    }
}

#[test]
fn many_in_flight_and_values_of_all_sizes() {
    for settle_ms in [0, 1] {
        on_both(move |driver| async move {
            let mut server = Server::with(driver, "127.0.0.1:0".parse().unwrap(), identity(2), settle_ms, wall_ms);
            let (link, seen) = link_to(server.address);
            let mut expected = Vec::new();
            for number in 0..4000 {
                let (key, text) = match number % 5 {
                    0 => {
                        let length = if number % 500 == 0 { 3_000_000 } else { number * 13 % 50_000 };
                        let value = Bytes::from(pattern(length));
                        link.request_put(number as u64, b"put", value, VERSION, 5).unwrap();
                        (b"put".to_vec(), "Applied".to_owned())
                    }
                    1 => {
                        let length = if number % 500 == 1 { VALUE_MAX } else { number * 7 % 30_000 };
                        let key = length.to_string().into_bytes();
                        link.request(number as u64, &Request::Read { key: &key, value: true }).unwrap();
                        (key, format!("{length} bytes"))
                    }
                    2 => {
                        link.request(number as u64, &Request::Read { key: b"x", value: true }).unwrap();
                        (b"x".to_vec(), "Absent(None)".to_owned())
                    }
                    3 => {
                        link.request(number as u64, &Request::Delete { key: b"d", version: VERSION }).unwrap();
                        (b"d".to_vec(), format!("Superseded({VERSION:?})"))
                    }
                    _ => {
                        let value = pattern(100);
                        let put = Request::Put { key: &[7; 4096], value: &value, version: VERSION, expires_at_ms: 5 };
                        link.request(number as u64, &put).unwrap();
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
            assert!(*seen.replies.borrow() == expected);
            assert!(seen.batches.get() < 4000 && seen.connected.get() == 1, "{}", seen.batches.get());
            assert_eq!(link.queued_bytes(), 0);
            assert!(link.skew().unwrap().offset_ms.abs() < 200);
            closed(&link, &seen).await;
            assert_eq!(seen.lost_once(), "the connection was ended on this side");
            server.stop();
            assert!(server.has(&ReplicaEvent::Connected(1)));
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
                link.request(number, &Request::Ping { wall_ms: 1, clock: 2 }).unwrap();
            }));
        }
        for task in tasks {
            task.await;
        }
        let received = told.recv().unwrap();
        assert_eq!(received, 50 * frame_of(0, &Request::Ping { wall_ms: 1, clock: 2 }).len());
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
                    frame::encode_reply(&mut out, number, 0, &Reply::Pong { wall_ms: 0, clock: 0 });
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
        let ping = Request::Ping { wall_ms: 1, clock: 2 };
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
        let large = Request::Put {
            key: b"key",
            value: &pattern(HOLD_MAX),
            version: Stamp { clock: 1, node: 1 },
            expires_at_ms: 0,
        };
        link.request(5, &large).unwrap();
        until("or when they are many bytes", || told.try_recv().is_ok_and(|count| count > HOLD_MAX)).await;
        drop(answer);
        closed(&link, &seen).await;
        peer.join().unwrap();
    });
}

#[test]
fn strangers_and_broken_peers_are_closed_with_one_sentence() {
    for driver in DRIVERS {
        let server = Server::start(driver);
        let mut http = TcpStream::connect(server.address).unwrap();
        http.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_ended(&mut http);
        let sentence = "the other side does not speak the replica protocol, but HTTP";
        server.wait_for(&ReplicaEvent::Refused(sentence.to_owned()));

        let read = frame_of(1, &Request::Read { key: b"k", value: true });
        let mut flipped = read.clone();
        flipped[HEADER] ^= 1;
        let mut huge = read.clone();
        huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut reply = Vec::new();
        encode_reply(&mut reply, 1, 2, &Reply::Applied);
        let max = LIMITS.request_max() - HEADER;
        for (bytes, sentence) in [
            (flipped, "the checksum of a frame does not match its bytes".to_owned()),
            (huge, format!("a frame claims a body of {} bytes, and the longest has {max}", u32::MAX)),
            (reply, "a frame is of kind 129, which is not one that is expected here".to_owned()),
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
        let put = Request::Put { key: b"k", value: &value, version: VERSION, expires_at_ms: 5 };
        let mut bytes = frame_of(1, &put);
        bytes.extend_from_slice(&frame_of(2, &Request::Read { key: b"k", value: true }));
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
    encode_reply(&mut short, 1, 5, &Reply::Refused(Refused::NotReady));
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
        (short[..40.min(short.len())].to_vec(), "the connection was closed".to_owned(), 1),
        (short[..31].to_vec(), "the connection was closed".to_owned(), 0),
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
                link.request(1, &Request::Read { key: b"k", value: true }).unwrap();
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
        (|i| i.cluster = "other".into(), "node 2 is of cluster \"ring\", and node 1 of cluster \"other\""),
        (|i| i.topology = 8, "the --cluster lists of node 2 and node 1 differ"),
        (|i| i.secret.clear(), "node 2 has a secret, and node 1 has none"),
        (|i| i.node = 4, "node 4 is not in the --cluster list of node 2"),
        (|i| i.node = 2, "node 2 is connected to itself, or two nodes have the number 2"),
    ];
    for driver in DRIVERS {
        let server = Server::start(driver);
        let address = server.address;
        let lost = move |us: Identity, expected: String| {
            on(driver, move || async move {
                let (link, seen) = link_of(address, us);
                link.request(1, &Request::Ping { wall_ms: 0, clock: 0 }).unwrap();
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
        us.secret = b"another".to_vec();
        let sentence = "node 1 and node 2 have different secrets";
        lost(us, sentence.to_owned());
        server.wait_for(&ReplicaEvent::Refused(format!("the other side refused: {sentence}")));

        // A newer version, by hand.
        let (us, mut hello) = (identity(1), Vec::new());
        Dialer::start(&us, 2, SKEW_MAX, 0, &[0; 32], &mut hello);
        hello[8] = 200;
        let mut socket = TcpStream::connect(server.address).unwrap();
        socket.write_all(&hello).unwrap();
        let mut refusal = Vec::new();
        socket.read_to_end(&mut refusal).unwrap();
        let sentence = "node 2 speaks version 1 of the replica protocol, and the other side 200";
        assert!(refusal.ends_with(sentence.as_bytes()));
        server.wait_for(&ReplicaEvent::Refused(sentence.to_owned()));
        assert!(!server.events.lock().unwrap().iter().any(|event| matches!(event, ReplicaEvent::Connected(_))));

        // A clock that is ahead.
        let ahead = Server::with(driver, "127.0.0.1:0".parse().unwrap(), identity(2), 0, || wall_ms() + 60_000);
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
                while let Parsed::Complete { frame: (number, _), len } = parse_request(&bytes[at..], LIMITS) {
                    assert_eq!(number, next);
                    next += 1;
                    at += len;
                }
                bytes.drain(..at);
                let mut out = Vec::new();
                if let Some(last) = u64::checked_sub(next, 1) {
                    encode_reply(&mut out, last, 0, &Reply::Applied);
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
            let request = Request::Put { key: b"small", value: &value[..1000], version: VERSION, expires_at_ms: 5 };
            let queued = match number % 2 {
                0 => link.request_put(number, b"large", value.clone(), VERSION, 5),
                _ => link.request(number, &request),
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
            let requests = frame_of(1, &Request::Read { key: b"100000", value: true }).repeat(100);
            let mut taken = 0;
            while socket.write_all(&requests).is_ok() {
                taken += requests.len();
                assert!(taken < 64 << 20, "the server takes requests without end");
            }
            // The server still answers others.
            let mut other = raw(server.address);
            other.write_all(&frame_of(2, &Request::Ping { wall_ms: 1, clock: 2 })).unwrap();
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
            link.request(round, &Request::Ping { wall_ms: 1, clock: 2 }).unwrap();
            until("answered", || seen.replies.borrow().len() == round as usize).await;
            assert_eq!(seen.connected.get(), round as usize);
            let before = seen.lost.borrow().len();
            server.stop();
            until("lost", || seen.lost.borrow().len() > before).await;
            assert_eq!(seen.lost.borrow()[before], "the connection was closed");
            until("tried again", || seen.lost.borrow().len() > before + 1).await;
            assert_eq!(seen.lost.borrow()[before + 1], "the connection was refused");
            server = Server::with(driver, address, identity(2), 0, wall_ms);
            link.dial_now();
        }
        until("up", || link.state() == LinkState::Up).await;
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
            link.request(1, &Request::Ping { wall_ms: 1, clock: 2 }).unwrap();
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
fn strangers_are_few() {
    for driver in DRIVERS {
        let server = Server::start(driver);
        let strangers: Vec<_> = (0..STRANGERS_MAX).map(|_| TcpStream::connect(server.address).unwrap()).collect();
        while server.count(&ReplicaEvent::Accepted) < STRANGERS_MAX {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut one_more = TcpStream::connect(server.address).unwrap();
        assert_ended(&mut one_more);
        assert!(server.has(&ReplicaEvent::Limit));
        drop(strangers);
        while server.count(&ReplicaEvent::Closed) < STRANGERS_MAX {
            std::thread::sleep(Duration::from_millis(1));
        }
        raw(server.address);
    }
}

#[test]
fn a_drain_ends_idle_connections_at_once_and_answers_what_was_read() {
    on_both(|driver| async move {
        let mut server = Server::with(driver, "127.0.0.1:0".parse().unwrap(), identity(2), 100, wall_ms);
        let (link, seen) = link_to(server.address);
        let (idle, idle_seen) = link_to(server.address);
        let stranger = TcpStream::connect(server.address).unwrap();
        until("up", || link.state() == LinkState::Up && idle.state() == LinkState::Up).await;
        for number in 0..100 {
            link.request(number, &Request::Read { key: b"20000", value: true }).unwrap();
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
fn replies_that_did_not_settle_do_not_leave() {
    on_both(|driver| async move {
        let server = Server::with(driver, "127.0.0.1:0".parse().unwrap(), identity(2), 5, wall_ms);
        let (link, seen) = link_to(server.address);
        link.request(1, &Request::Ping { wall_ms: 1, clock: 2 }).unwrap();
        until("answered", || seen.replies.borrow().len() == 1).await;
        link.request_put(2, b"unsettled", Bytes::new(), VERSION, 5).unwrap();
        until("lost", || !seen.lost.borrow().is_empty()).await;
        assert_eq!(seen.lost.borrow()[0], "the connection was closed");
        assert_eq!(seen.replies.borrow().len(), 1);
        closed(&link, &seen).await;
    });
}

#[test]
fn the_blocking_client_does_the_same() {
    let dial = |address, identity: &Identity, timeout| {
        Connection::dial(address, identity, 2, VALUE_MAX, wall_ms, SKEW_MAX, timeout)
    };
    let second = Duration::from_secs(2);
    for driver in DRIVERS {
        let mut server = Server::start(driver);
        let mut connection = dial(server.address, &identity(1), second).unwrap();
        assert!(connection.skew().unwrap().offset_ms.abs() < 200);
        let mut frames = Vec::new();
        for number in 0..100 {
            encode_request(&mut frames, number, &Request::Read { key: b"300000", value: number % 10 == 0 });
        }
        connection.send(&frames).unwrap();
        for expected in 0..100 {
            let found = connection.receive(|number, key_hash, reply| {
                let Reply::Found { value_len: 300_000, value, .. } = reply else { panic!("{reply:?}") };
                assert!(value.is_none_or(|value| *value == pattern(300_000)));
                (number, key_hash, value.is_some())
            });
            assert_eq!(found.unwrap(), (expected, hash(b"300000"), expected % 10 == 0));
        }
        let mut other = identity(1);
        other.cluster = "other".to_owned();
        let error = dial(server.address, &other, second).unwrap_err();
        let sentence = "it refused: node 2 is of cluster \"ring\", and node 1 of cluster \"other\"";
        assert_eq!(error.to_string(), sentence);
        server.stop();
        assert!(matches!(connection.receive(|_, _, _| ()), Err(LostReason::Closed)));
        assert!(matches!(dial(server.address, &identity(1), second), Err(LostReason::ConnectRefused)));
    }
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = dial(silent.local_addr().unwrap(), &identity(1), Duration::from_millis(100)).unwrap_err();
    assert!(matches!(error, LostReason::Timeout), "{error:?}");
}

/// The body of the fuzz target `replica_frames`, over mutations of real frames, for a moment. `KOLTSO_FUZZ_SECONDS`
/// runs it longer, `KOLTSO_SEED` repeats a run.
#[test]
fn frames_from_any_bytes_are_read_or_refused() {
    let mut seeded = Random::seeded(seed_or("frames_from_any_bytes_are_read_or_refused", 3));
    let mut random = move |below: usize| seeded.below(below);
    let value = pattern(100);
    let mut real = frame_of(1, &Request::Put { key: b"key", value: &value, version: VERSION, expires_at_ms: 5 });
    real.extend_from_slice(&frame_of(2, &Request::Read { key: b"key", value: true }));
    real.extend_from_slice(&frame_of(3, &Request::Delete { key: b"key", version: VERSION }));
    real.extend_from_slice(&frame_of(4, &Request::Ping { wall_ms: 1, clock: 2 }));
    let whole = frame::fuzz_frames(&real, LIMITS);
    assert_eq!(whole, 4);
    let (begun, time) = (Instant::now(), koltso_testkit::fuzz::time());
    let (mut harmed, mut runs) = (0, 0);
    while begun.elapsed() < time {
        let mut bytes = real.clone();
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

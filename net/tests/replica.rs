//! Links and replica servers over real sockets, on both drivers: what they do for each other, and what strangers,
//! broken peers and slow ones can do to them.
#![allow(clippy::unwrap_used, missing_docs)]

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use koltso_model::{Flags, Found, Key, KeyHash, Operation, Outcome, Record, Refused, Tombstone, Version, Want};
use koltso_net::replica::blocking::Connection;
use koltso_net::replica::frame::{
    self, HEADER, Limits, Parsed, ReplyFrame, encode_reply, encode_request, parse_request,
};
use koltso_net::replica::handshake::{Acceptor, Dialer, Progress};
use koltso_net::replica::{
    AcceptConfig, DIAL_GAP, DeferredReply, Features, Full, HOLD_MAX, Identity, Link, LinkConfig, LinkHandler,
    LinkState, LostReason, NodeId, OUTBOX_MAX, ReplicaEvent, ReplicaService, Replies, Reply, Request, STRANGERS_MAX,
    UNANSWERED_MAX, serve,
};
use koltso_net::server::Shared;
use koltso_testkit::random::{Random, seed_or};
use koltso_testkit::wall_ms;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

const VALUE_MAX: usize = 4 << 20;
const LIMITS: Limits = Limits { value_max: VALUE_MAX, features: Features::KNOWN };
const SKEW_MAX: Duration = Duration::from_millis(500);
const VERSION: Version = Version::new(77, 1);
/// Of the membership of those who ask, and of those who answer.
const EPOCHS: (u64, u64) = (1, 1);
const FLAGS: Flags = Flags::new(3).conditional();
const ATTRIBUTES: &[u8] = &[1, 4, b't', b'e', b'x', b't'];

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
    Identity {
        cluster: "ring".to_owned(),
        topology: 7,
        topology_number: 1,
        node,
        id: NodeId(node.into()),
        features: Features::KNOWN,
        secret: b"secret".to_vec(),
    }
}

fn hash(key: &[u8]) -> u64 {
    KeyHash::of(key).0
}

fn record<B: AsRef<[u8]>>(key: B, value: B, attributes: B) -> Record<B> {
    Record { key: Key::new(key), value, version: VERSION, expires_at_ms: 5, flags: FLAGS, attributes }
}

fn put<'a>(key: &'a [u8], value: &'a [u8]) -> Request<'a> {
    Request::Execute(Operation::Write(record(key, value, ATTRIBUTES)))
}

/// As [`put`], with bytes that need not be copied.
fn shared_put(key: &'static [u8], value: Bytes) -> Operation<Bytes> {
    Operation::Write(record(Bytes::from_static(key), value, Bytes::from_static(ATTRIBUTES)))
}

fn delete(key: &[u8]) -> Request<'_> {
    let flags = FLAGS.tombstone();
    Request::Execute(Operation::Write(Record { flags, expires_at_ms: 0, ..record(key, &[][..], &[]) }))
}

fn read(key: &[u8], value: bool) -> Request<'_> {
    let want = if value { Want::Value } else { Want::Version };
    Request::Execute(Operation::Read { key: Key::new(key), want })
}

const PING: Request<'static> = Request::Ping { wall_ms: 1, clock: 2 };

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 % 251) as u8).collect()
}

/// When the answers to operations come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Now,
    /// So many milliseconds after their batch, all together.
    After(u64),
    /// When the batch is over, the last one first.
    Reversed,
    /// Every other one at once, the others never.
    EveryOther,
}

/// Answers by what the key says: a number is the length of a value. It is never asked to answer `lost`.
struct TestService {
    events: Arc<Mutex<Vec<ReplicaEvent>>>,
    when: When,
    deferred: RefCell<Vec<(DeferredReply, Outcome<Bytes>)>>,
    asked: Cell<u64>,
}

impl TestService {
    fn outcome(operation: &Operation<&[u8]>) -> Outcome<Bytes> {
        match operation {
            Operation::Write(record) if record.flags.is_tombstone() => Outcome::Superseded(record.version),
            Operation::Write(record) => {
                assert_eq!((record.version, record.expires_at_ms, record.flags), (VERSION, 5, FLAGS));
                assert_eq!(record.attributes, ATTRIBUTES);
                if record.value == pattern(record.value.len()) { Outcome::Applied } else { Outcome::Damaged }
            }
            Operation::Read { key, want } => {
                match std::str::from_utf8(key.bytes()).ok().and_then(|key| key.parse::<usize>().ok()) {
                    None => Outcome::Absent(None),
                    Some(length) => Outcome::Found(Found {
                        version: VERSION,
                        expires_at_ms: 5,
                        flags: FLAGS,
                        attributes: Bytes::from_static(ATTRIBUTES),
                        value_len: length as u32,
                        value: (*want == Want::Value).then(|| Bytes::from(pattern(length))),
                    }),
                }
            }
        }
    }
}

impl ReplicaService for TestService {
    fn request(&self, from: u16, epoch: u64, request: Request<'_>, replies: &mut Replies<'_>) {
        assert_eq!((from, epoch), (1, EPOCHS.0));
        let operation = match request {
            Request::Ping { wall_ms, clock } => return replies.pong(wall_ms, clock),
            Request::Execute(operation) => operation,
        };
        self.asked.set(self.asked.get() + 1);
        let outcome = Self::outcome(&operation);
        let now = match self.when {
            When::Now => true,
            When::After(_) | When::Reversed => false,
            When::EveryOther => self.asked.get() % 2 == 1,
        };
        if !now {
            let deferred = replies.later();
            if operation.key().bytes() != b"lost" {
                self.deferred.borrow_mut().push((deferred, outcome));
            }
            return;
        }
        match outcome {
            Outcome::Found(Found { value: Some(ref value), ref attributes, .. }) => {
                let Outcome::Found(found) = &outcome else { unreachable!() };
                assert_eq!(attributes, ATTRIBUTES);
                replies.answer_shared(found, value.clone());
            }
            outcome => replies.answer(&outcome),
        }
    }

    fn batch_end(&self) {
        match self.when {
            When::Now | When::EveryOther => {}
            When::After(ms) => {
                let deferred = self.deferred.take();
                monoio::spawn(async move {
                    monoio::time::sleep(Duration::from_millis(ms)).await;
                    deferred.into_iter().for_each(|(deferred, outcome)| deferred.answer(outcome));
                });
            }
            When::Reversed => {
                self.deferred.take().into_iter().rev().for_each(|(deferred, outcome)| deferred.answer(outcome));
            }
        }
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
        Self::answering(driver, When::Now)
    }

    fn answering(driver: Driver, when: When) -> Self {
        Self::with(driver, "127.0.0.1:0".parse().unwrap(), identity(2), when, wall_ms)
    }

    fn with(driver: Driver, address: SocketAddr, identity: Identity, when: When, wall_ms: fn() -> u64) -> Self {
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
            let (deferred, asked) = (RefCell::default(), Cell::new(0));
            let service = TestService { events: its_events, when, deferred, asked };
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

/// A reply in short.
fn text_of(reply: &Reply<'_>) -> String {
    match reply {
        Reply::Outcome(Outcome::Found(found)) => {
            let about = (found.version, found.expires_at_ms, found.flags, found.attributes);
            assert_eq!(about, (VERSION, 5, FLAGS, ATTRIBUTES));
            assert!(found.value.is_none_or(|value| *value == pattern(found.value_len as usize)));
            let what = if found.value.is_some() { "with" } else { "without" };
            format!("{} bytes, {what} them", found.value_len)
        }
        Reply::Outcome(outcome) => format!("{outcome:?}"),
        Reply::Pong { .. } => "pong".to_owned(),
    }
}

impl LinkHandler for Seen {
    fn connected(&self, peer: usize, _: Instant) {
        assert_eq!(peer, 9);
        assert_eq!(self.link().state(), LinkState::Up);
        self.connected.set(self.connected.get() + 1);
    }

    fn reply(&self, _: usize, _: Instant, frame: ReplyFrame<'_>) -> Result<(), String> {
        let ReplyFrame { number, epoch, key_hash: KeyHash(key_hash), reply } = frame;
        assert_eq!(epoch, EPOCHS.1);
        if key_hash != 0 && key_hash == self.hates.get() {
            return Err("a reply is about another key".to_owned());
        }
        self.replies.borrow_mut().push((number, key_hash, text_of(&reply)));
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
    assert_eq!(link.request(0, &PING), Err(Full));
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
    encode_request(&mut out, number, EPOCHS.0, request);
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
        Parsed::Complete { frame, len } if len == bytes.len() => (frame.number, text_of(&frame.reply)),
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
        let sentence = "it refused: node 2 is of cluster \"ring\", and node 1 of cluster \"other\"";
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
        let (link, seen) = link_of(server.address, Identity { node: 1, ..identity });
        assert_eq!(link.execute(0, &shared_put(b"key", Bytes::new())), Err(Full));
        closed(&link, &seen).await;
    });
}

/// The body of the fuzz target `replica_frames`, over mutations of real frames, for a moment. `KOLTSO_FUZZ_SECONDS`
/// runs it longer, `KOLTSO_SEED` repeats a run.
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

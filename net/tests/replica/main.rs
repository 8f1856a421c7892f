//! Links and replica servers over real sockets, on both drivers: what they do for each other, and
//! what strangers, broken peers and slow ones can do to them.
#![allow(clippy::unwrap_used, missing_docs)]

mod by_hand;
mod comparing;
mod ends;
mod strangers;
mod traffic;
mod verdicts;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::by_hand::{assert_ended, dial_config, dialer, dialing, frame_of, raw, raw_peer, reply_from};
use bytes::Bytes;
use koltso_model::{Flags, Found, Key, KeyHash, Operation, Outcome, Record, Version, Want};
use koltso_net::replica::frame::{Limits, ReplyFrame};
use koltso_net::replica::{
    AcceptConfig, Acquaintances, DeferredReply, Epoch, Features, Full, Identity, Introduction, Link, LinkConfig,
    LinkHandler, LinkState, Locate, LostReason, NoMemory, NodeId, PeerIdentity, Purpose, ReplicaEvent, ReplicaService,
    Replies, Reply, Request, Secrets, serve,
};
use koltso_net::server::Shared;
use koltso_testkit::wall_ms;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

const VALUE_MAX: usize = 4 << 20;
const LIMITS: Limits = Limits { value_max: VALUE_MAX, features: Features::KNOWN };
const SKEW_MAX: Duration = Duration::from_millis(500);
const VERSION: Version = Version::new(77, 1);
/// Of the membership of those who ask, and of those who answer.
const EPOCHS: (u64, u64) = (1, 1);
/// The most connections without a handshake.
const STRANGERS: usize = 64;
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

fn introduction(node: u16) -> Introduction {
    Introduction { id: NodeId(node.into()), starts: 3, lived_ms: 4, process: 5 }
}

fn identity(node: u16) -> Identity {
    Identity {
        cluster: "ring".to_owned(),
        topology: 7,
        epoch: Epoch::new(1),
        node,
        introduction: introduction(node),
        features: Features::KNOWN,
        secrets: Secrets::new(vec![b"secret".to_vec()]),
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

/// Answers by what the key says: a number is the length of a value. It is never asked to answer
/// `lost`.
struct TestService {
    events: Arc<Mutex<Vec<ReplicaEvent>>>,
    when: When,
    deferred: RefCell<Vec<(DeferredReply, Outcome<Bytes>)>>,
    asked: Cell<u64>,
    given: Sender<Given>,
}

/// A connection for comparing replicas: who is there, its socket, and what was read of it.
type Given = (PeerIdentity, TcpStream, Vec<u8>);

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

    fn exchange(&self, peer: PeerIdentity, socket: TcpStream, read_so_far: Vec<u8>) {
        assert_eq!(peer.purpose, Purpose::Exchange);
        // Its owner may have gone.
        let _ = self.given.send((peer, socket, read_so_far));
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
    given: Receiver<Given>,
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
        Self::remembering(driver, address, identity, when, wall_ms, Arc::new(NoMemory))
    }

    fn remembering(
        driver: Driver,
        address: SocketAddr,
        identity: Identity,
        when: When,
        wall_ms: fn() -> u64,
        acquaintances: Arc<dyn Acquaintances>,
    ) -> Self {
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
        let (its_given, given) = mpsc::channel();
        let thread = on(driver, move || async move {
            let (deferred, asked) = (RefCell::default(), Cell::new(0));
            let service = TestService { events: its_events, when, deferred, asked, given: its_given };
            let (identity, members) = (Rc::new(identity), Rc::new(RefCell::new(vec![1, 2, 3])));
            let config = AcceptConfig {
                identity,
                members,
                acquaintances,
                value_max: VALUE_MAX,
                wall_ms,
                connections_max: 200,
                strangers_max: STRANGERS,
                addresses: Rc::new(vec![[127, 0, 0, 1].into()]),
            };
            serve(listener, Rc::new(service), config, its_shared).await.unwrap();
        });
        Self { address, shared, events, given, thread: Some(thread) }
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
    who: Cell<Option<PeerIdentity>>,
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
    fn connected(&self, peer: usize, who: &PeerIdentity, _: Instant) {
        assert_eq!((peer, who.node, who.purpose), (9, 2, Purpose::Requests));
        assert!(self.replies.borrow().is_empty() || self.connected.get() > 0, "an answer came before");
        self.who.set(Some(*who));
        assert_eq!(self.link().state(), LinkState::Up);
        self.connected.set(self.connected.get() + 1);
    }

    fn reply(&self, _: usize, _: Instant, frame: ReplyFrame<'_>, buffer: Option<&Bytes>) -> Result<(), String> {
        let ReplyFrame { number, epoch, key_hash: KeyHash(key_hash), reply } = frame;
        assert_eq!(epoch, EPOCHS.1);
        if key_hash != 0 && key_hash == self.hates.get() {
            return Err("a reply is about another key".to_owned());
        }
        if let Reply::Outcome(Outcome::Found(found)) = &reply
            && let Some(value) = found.value
        {
            let lies = buffer.map(|buffer| buffer.slice_ref(value).len());
            assert_eq!(lies.is_some(), value.len() > 64 * 1024, "a large value has a buffer of its own");
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
    link_by(Arc::new(address), identity)
}

fn link_by(address: Arc<dyn Locate>, identity: Identity) -> (Rc<Link<Seen>>, Rc<Seen>) {
    link_remembering(address, identity, Arc::new(NoMemory))
}

fn link_remembering(
    address: Arc<dyn Locate>,
    identity: Identity,
    acquaintances: Arc<dyn Acquaintances>,
) -> (Rc<Link<Seen>>, Rc<Seen>) {
    let seen = Rc::<Seen>::default();
    let config = LinkConfig {
        peer: 9,
        address,
        peer_number: 2,
        identity: Rc::new(identity),
        acquaintances,
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

//! Both protocols over a transport that changes every byte: whatever got past it would be nonsense
//! to the other end.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use koltso_model::{Flags, Found, Key, Operation, Outcome as ModelOutcome, Version, Want};
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use super::*;
use crate::connections::Shared;
use crate::http::{Head, Reply};
use crate::replica::frame::{self, Limits as FrameLimits, Parsed};
use crate::replica::handshake::{Dialer, Dialing, Progress};
use crate::replica::{
    AcceptConfig, Epoch, Features, Identity, Introduction, NoMemory, Purpose, ReplicaEvent, ReplicaService, Replies,
    Request, Secrets, serve_over,
};
use crate::server::{self, Admit, Answered, Event, Fill, Limits, Outcome, Service, Sink, Source};

const KEY: u8 = 0x5a;

fn scrambled(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|byte| byte ^ KEY).collect()
}

/// Any transport, or one of its sides, with all bytes changed.
struct Scrambled<T>(T);

impl<T: Receive> Receive for Scrambled<T> {
    async fn receive<B: IoBufMut>(&mut self, buffer: B) -> BufResult<usize, B> {
        let (result, mut buffer) = self.0.receive(buffer).await;
        if let Ok(count) = result {
            // SAFETY: the kernel has written so many bytes there, and nobody else has the buffer.
            #[allow(unsafe_code)]
            let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.write_ptr(), count) };
            bytes.iter_mut().for_each(|byte| *byte ^= KEY);
        }
        (result, buffer)
    }
}

impl<T: Transmit> Transmit for Scrambled<T> {
    async fn transmit<B: IoBuf>(&mut self, bytes: B) -> BufResult<usize, B> {
        // SAFETY: so many bytes are initialised, and `bytes` lives longer than the slice.
        #[allow(unsafe_code)]
        let copy = scrambled(unsafe { std::slice::from_raw_parts(bytes.read_ptr(), bytes.bytes_init()) });
        (self.0.transmit(copy).await.0, bytes)
    }

    fn transmit_now(&mut self, bytes: &[u8], more: bool) -> io::Result<usize> {
        self.0.transmit_now(&scrambled(bytes), more)
    }

    fn transmit_parts_now(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let copies: Vec<Vec<u8>> = parts.iter().map(|part| scrambled(part)).collect();
        let parts: Vec<IoSlice<'_>> = copies.iter().map(|copy| IoSlice::new(copy)).collect();
        self.0.transmit_parts_now(&parts)
    }
}

impl<T: Transport> Transport for Scrambled<T> {
    type Receiver = Scrambled<T::Receiver>;
    type Transmitter = Scrambled<T::Transmitter>;

    fn fd(&self) -> RawFd {
        self.0.fd()
    }

    fn split(self) -> (Self::Receiver, Self::Transmitter) {
        let (receiver, transmitter) = self.0.split();
        (Scrambled(receiver), Scrambled(transmitter))
    }

    fn end_output(&mut self) {
        self.0.end_output();
    }

    fn into_socket(self) -> TcpStream {
        self.0.into_socket()
    }
}

/// A client of a server over such a transport.
struct Client(TcpStream);

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).expect("somebody listens");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        Self(socket)
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(&scrambled(bytes)).expect("the server is there");
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut buffer = vec![0; 1 << 16];
        let count = self.0.read(&mut buffer).expect("an answer");
        scrambled(&buffer[..count])
    }

    /// What comes until these bytes are the end of it.
    fn receive_until(&mut self, end: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        while !all.ends_with(end) {
            let more = self.receive();
            assert!(!more.is_empty(), "the end, after {}", all.escape_ascii());
            all.extend_from_slice(&more);
        }
        all
    }
}

/// A server of one core on either driver.
struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start<F: Future<Output = io::Result<()>>>(
        uring: bool,
        make: impl FnOnce(TcpListener, Arc<Shared>) -> F + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (address, shared) = (listener.local_addr().expect("bound"), Shared::new());
        let its_shared = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let main = async move { make(listener, its_shared).await.expect("a listener that works") };
            if uring {
                let runtime = RuntimeBuilder::<IoUringDriver>::new().enable_timer().build();
                runtime.expect("io_uring is needed for this test").block_on(main);
            } else {
                RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().expect("epoll").block_on(main);
            }
        });
        Self { address, shared, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.drain();
        let ended = self.thread.take().expect("it is dropped once").join();
        assert!(std::thread::panicking() || ended.is_ok(), "the server panicked");
    }
}

const LARGE: usize = 3 << 20;

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 % 251) as u8).collect()
}

/// Answers in each of the ways that there are.
struct EveryWay;

struct Once(bool);

impl Source for Once {
    fn fill(&mut self, sink: &mut Sink<'_>) -> Fill {
        if std::mem::replace(&mut self.0, true) {
            return Fill::End;
        }
        sink.chunk_value(b"piece ", Bytes::from_static(b"by piece"));
        Fill::More
    }
}

impl Service for EveryWay {
    type Admitted = ();

    fn admit(&self, _: &Head<'_>, _: &mut Reply<'_>) -> Admit<()> {
        Admit::Body(())
    }

    fn call(&self, head: &Head<'_>, _: &[u8], reply: &mut Reply<'_>) -> Outcome {
        match head.path {
            "/large" => {
                reply.value_head(b"\"l\"", LARGE as u64);
                Outcome::Value(Bytes::from(pattern(LARGE)))
            }
            "/later" => {
                let context = reply.context();
                Outcome::when(Box::pin(monoio::time::sleep(Duration::from_millis(1))), move |(), out| {
                    context.value(out, b"\"t\"", b"later");
                    Answered::default()
                })
            }
            "/stream" => {
                reply.stream_head("text/plain");
                Outcome::Stream(Box::new(Once(false)))
            }
            _ => {
                reply.value(b"\"v\"", b"small");
                Outcome::Done
            }
        }
    }

    fn call_admitted(&self, (): (), body: Bytes, reply: &mut Reply<'_>) -> Outcome {
        reply.value(b"\"b\"", if *body == pattern(LARGE) { b"as it was" } else { b"different" });
        Outcome::Done
    }

    fn finished(&self, _: u16, _: Duration) {}

    fn event(&self, _: Event) {}

    fn hand_off(&self, _: TcpStream, _: Vec<u8>) {}
}

#[test]
fn no_byte_of_http_gets_past_the_transport() {
    for uring in [true, false] {
        let server = Server::start(uring, |listener, shared| async move {
            let carry = |stream| Scrambled(Tcp::new(stream));
            server::serve_over(listener, Rc::new(EveryWay), Limits::default(), shared, carry).await
        });
        let mut client = Client::connect(server.address);
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n").into_bytes();
        for (path, end) in [
            ("/small", b"small".to_vec()),
            ("/large", pattern(LARGE)),
            ("/later", b"later".to_vec()),
            ("/stream", b"e\r\npiece by piece\r\n0\r\n\r\n".to_vec()),
        ] {
            client.send(&get(path));
            assert!(client.receive_until(&end).starts_with(b"HTTP/1.1 200 OK\r\n"), "{path}");
        }
        client.send(format!("PUT / HTTP/1.1\r\nHost: t\r\nContent-Length: {LARGE}\r\n\r\n").as_bytes());
        client.send(&pattern(LARGE));
        client.receive_until(b"as it was");
        client.send(b"nonsense\r\n\r\n");
        assert!(client.receive().starts_with(b"HTTP/1.1 400 "));
    }
}

/// Has a value of [`LARGE`] bytes under every key, and tells of it later.
struct LaterReplica;

impl ReplicaService for LaterReplica {
    fn request(&self, _: u16, _: u64, request: Request<'_>, replies: &mut Replies<'_>) {
        match request {
            Request::Ping { wall_ms, clock } => replies.pong(wall_ms, clock),
            Request::Execute(_) => {
                let deferred = replies.later();
                monoio::spawn(async move {
                    monoio::time::sleep(Duration::from_millis(5)).await;
                    deferred.answer(ModelOutcome::Found(Found {
                        version: Version::new(7, 1),
                        expires_at_ms: 0,
                        flags: Flags::new(1),
                        attributes: Bytes::new(),
                        value_len: LARGE as u32,
                        value: Some(Bytes::from(pattern(LARGE))),
                    }));
                });
            }
        }
    }

    fn event(&self, _: ReplicaEvent) {}
}

fn identity(node: u16) -> Identity {
    Identity {
        cluster: "ring".to_owned(),
        topology: 7,
        epoch: Epoch::new(1),
        node,
        introduction: Introduction::default(),
        features: Features::KNOWN,
        secrets: Secrets::new(vec![b"secret".to_vec()]),
    }
}

#[test]
fn no_byte_of_the_replica_protocol_gets_past_the_transport() {
    for uring in [true, false] {
        let server = Server::start(uring, |listener, shared| async move {
            let config = AcceptConfig {
                identity: Rc::new(identity(2)),
                members: Rc::new(RefCell::new(vec![1, 2])),
                acquaintances: Arc::new(NoMemory),
                value_max: LARGE,
                wall_ms: || 0,
                connections_max: 10,
                strangers_max: 10,
                addresses: Rc::new(Vec::new()),
            };
            serve_over(listener, Rc::new(LaterReplica), config, shared, |stream| Scrambled(Tcp::new(stream))).await
        });
        let mut client = Client::connect(server.address);
        let (us, mut out, mut read) = (identity(1), Vec::new(), Vec::new());
        let dialing = Dialing {
            identity: &us,
            acquaintances: &NoMemory,
            expected: 2,
            purpose: Purpose::Requests,
            skew_max: Duration::from_secs(1),
        };
        let mut dialer = Dialer::start(dialing, 0, &[1; 32], &mut out);
        let begun = Instant::now();
        loop {
            client.send(&std::mem::take(&mut out));
            read.extend_from_slice(&client.receive());
            match dialer.feed(&read, begun.elapsed(), &mut out).expect("they belong together") {
                Progress::More { consumed } => drop(read.drain(..consumed)),
                Progress::Done { .. } => break,
            }
        }
        let read_of = Operation::Read { key: Key::new(&b"key"[..]), want: Want::Value };
        frame::encode_request(&mut out, 1, 1, &Request::Execute(read_of));
        frame::encode_request(&mut out, 2, 1, &Request::Ping { wall_ms: 1, clock: 2 });
        client.send(&out);
        let limits = FrameLimits { value_max: LARGE, features: Features::KNOWN };
        let (mut bytes, mut numbers) = (Vec::new(), Vec::new());
        while numbers.len() < 2 {
            match frame::parse_reply(&bytes, limits) {
                Parsed::Complete { frame, len } => {
                    numbers.push(frame.number);
                    if let frame::Reply::Outcome(ModelOutcome::Found(found)) = frame.reply {
                        assert!(found.value == Some(&pattern(LARGE)[..]));
                    }
                    drop(bytes.drain(..len));
                }
                Parsed::Partial { .. } => {
                    let more = client.receive();
                    assert!(!more.is_empty(), "the end");
                    bytes.extend_from_slice(&more);
                }
                Parsed::Bad(violation) => panic!("{violation}"),
            }
        }
        assert_eq!(numbers, [2, 1], "the ping is answered at once");
    }
}

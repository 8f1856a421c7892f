//! A server with a service for tests, on either driver.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use koltso_net::http::{Head, Reply, query};
use koltso_net::server::{Admit, Answered, Event, Fill, Limits, Outcome, Service, Shared, Sink, Source, serve};
use koltso_testkit::Response;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

pub fn eventually(what: &str, done: impl FnMut() -> bool) {
    koltso_testkit::eventually(what, Duration::from_secs(5), done);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    Uring,
    Legacy,
}

pub const DRIVERS: [Driver; 2] = [Driver::Uring, Driver::Legacy];

/// What the service has seen.
#[derive(Default)]
pub struct Seen {
    pub events: Mutex<Vec<Event>>,
    pub finished: Mutex<Vec<u16>>,
    pub handed_off: Mutex<Vec<(TcpStream, Vec<u8>)>>,
    pub admitted: Mutex<usize>,
}

impl Seen {
    pub fn count(&self, event: Event) -> usize {
        self.events.lock().unwrap().iter().filter(|seen| **seen == event).count()
    }

    /// Bytes that the server has received.
    pub fn bytes_in(&self) -> usize {
        let bytes = |event: &Event| if let Event::BytesIn(count) = event { *count } else { 0 };
        self.events.lock().unwrap().iter().map(bytes).sum()
    }

    pub fn finished(&self) -> Vec<u16> {
        self.finished.lock().unwrap().clone()
    }
}

pub struct TestService(Arc<Seen>);

pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 % 251) as u8).collect()
}

/// What the service makes of a request's head.
pub struct Parsed {
    method: String,
    path: String,
    query: String,
}

impl Parsed {
    fn of(head: &Head<'_>) -> Self {
        Self { method: head.method_name.to_owned(), path: head.path.to_owned(), query: head.query.to_owned() }
    }

    fn number(&self, name: &str, default: usize) -> usize {
        let found = query::pairs(&self.query).find(|(known, _)| *known == name);
        found.map_or(default, |(_, value)| value.parse().unwrap())
    }
}

impl Service for TestService {
    type Admitted = Parsed;

    fn admit(&self, head: &Head<'_>, reply: &mut Reply<'_>) -> Admit<Parsed> {
        *self.0.admitted.lock().unwrap() += 1;
        match head.path {
            "/refuse" => {
                reply.tag(77);
                reply.error(401, "Not you.");
                Admit::Answered
            }
            "/hand-off-early" => Admit::HandOff,
            _ => Admit::Body(Parsed::of(head)),
        }
    }

    fn call(&self, head: &Head<'_>, body: &[u8], reply: &mut Reply<'_>) -> Outcome {
        Self::answer(&Parsed::of(head), body, reply)
    }

    fn call_admitted(&self, admitted: Parsed, body: Bytes, reply: &mut Reply<'_>) -> Outcome {
        Self::answer(&admitted, &body, reply)
    }

    fn finished(&self, tag: u16, _: Duration) {
        self.0.finished.lock().unwrap().push(tag);
    }

    fn event(&self, event: Event) {
        self.0.events.lock().unwrap().push(event);
    }

    fn hand_off(&self, socket: TcpStream, read_so_far: Vec<u8>) {
        self.0.handed_off.lock().unwrap().push((socket, read_so_far));
    }
}

impl TestService {
    fn answer(request: &Parsed, body: &[u8], reply: &mut Reply<'_>) -> Outcome {
        let number = |name, default| request.number(name, default);
        let tag = number("tag", 0) as u16;
        reply.tag(tag);
        let n = number("n", 0);
        let text = format!("{} {} {}", request.method, request.path, request.query);
        match &*request.path {
            "/echo" | "/refuse" => reply.value(b"\"e\"", body),
            "/value" => {
                reply.value_head(b"\"v\"", n as u64);
                return Outcome::Value(Bytes::from(pattern(n)));
            }
            "/later" => {
                let (context, ms) = (reply.context(), number("ms", 0));
                let pause = Box::pin(async move {
                    if ms > 0 {
                        monoio::time::sleep(Duration::from_millis(ms as u64)).await;
                    }
                });
                return Outcome::when(pause, move |(), out| {
                    let mut answered = Answered { tag: tag + 1000, value: None };
                    if n > 0 {
                        context.value_head(out, b"\"l\"", n as u64);
                        answered.value = Some(Bytes::from(pattern(n)));
                    } else {
                        context.text(out, 200, &text);
                    }
                    answered
                });
            }
            "/stream" => {
                reply.stream_head("text/plain");
                return Outcome::Stream(Box::new(Pieces {
                    left: n,
                    size: number("size", 1000),
                    wait: number("wait", 0) as u64,
                    abort: number("abort", 0) == 1,
                }));
            }
            "/hand-off" => return Outcome::HandOff,
            "/close" => {
                reply.close();
                reply.text(200, &text);
            }
            _ => reply.text(200, &text),
        }
        Outcome::Done
    }
}

/// `left` chunks of `size` bytes of `x`, every other one as a value.
struct Pieces {
    left: usize,
    size: usize,
    wait: u64,
    abort: bool,
}

impl Source for Pieces {
    fn fill(&mut self, sink: &mut Sink<'_>) -> Fill {
        while self.left > 0 {
            self.left -= 1;
            if self.left.is_multiple_of(2) {
                sink.chunk_value(b"x", Bytes::from(vec![b'x'; self.size - 1]));
            } else {
                sink.chunk(&[b"x", &vec![b'x'; self.size - 1]]);
            }
            if self.wait > 0 {
                return Fill::Wait(Duration::from_millis(self.wait));
            }
            if sink.len() >= 64 * 1024 {
                return Fill::More;
            }
        }
        if self.abort { Fill::Abort } else { Fill::End }
    }
}

pub struct Server {
    pub address: SocketAddr,
    pub shared: Arc<Shared>,
    pub seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

pub fn limits() -> Limits {
    Limits { drain_timeout: Duration::from_millis(500), ..Limits::default() }
}

impl Server {
    pub fn start(driver: Driver, limits: Limits) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), driver, limits)
    }

    pub fn start_at(address: SocketAddr, driver: Driver, limits: Limits) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (shared, seen) = (Shared::new(), Arc::<Seen>::default());
        let (its_shared, its_seen) = (Arc::clone(&shared), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            let server = serve(listener, Rc::new(TestService(its_seen)), limits, its_shared);
            match driver {
                Driver::Uring => RuntimeBuilder::<IoUringDriver>::new()
                    .enable_timer()
                    .build()
                    .expect("io_uring is needed for this test")
                    .block_on(server),
                Driver::Legacy => {
                    RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().unwrap().block_on(server)
                }
            }
            .unwrap();
        });
        Self { address, shared, seen, thread: Some(thread) }
    }

    pub fn connect(&self) -> Client {
        Client::over(koltso_testkit::Client::connect(self.address).unwrap())
    }

    /// From another address of this machine.
    pub fn connect_from(&self, from: [u8; 4]) -> Client {
        Client::over(koltso_testkit::Client::connect_from(self.address, from.into()).unwrap())
    }

    /// Drains and waits for `serve` to return; says how long it took.
    pub fn stop(&mut self) -> Duration {
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

/// A client for chains of sending and reading, over the shared one.
pub struct Client {
    /// The same connection, for what a test does to it besides.
    pub socket: TcpStream,
    inner: koltso_testkit::Client,
}

impl Client {
    fn over(inner: koltso_testkit::Client) -> Self {
        let socket = inner.stream().try_clone().unwrap();
        Self { socket, inner }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.inner.send(bytes.as_ref()).unwrap();
        self
    }

    pub fn get(&mut self, target: &str) -> &mut Self {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: t\r\n\r\n"))
    }

    pub fn response(&mut self) -> Response {
        self.response_to(false)
    }

    /// Reads one answer; `head` if the request was a `HEAD`.
    pub fn response_to(&mut self, head: bool) -> Response {
        self.inner.read(if head { "HEAD" } else { "GET" })
    }

    /// The answer that has come; `None` if the server waits.
    pub fn response_if_any(&mut self) -> Option<Response> {
        self.inner.has_more(Duration::from_millis(300)).then(|| self.inner.read("GET"))
    }

    /// The server has ended the connection, without an answer.
    pub fn is_ended(&mut self) -> bool {
        self.inner.is_ended(Duration::from_secs(10))
    }

    /// The server has closed in an orderly way and sent nothing more.
    pub fn assert_closed(&mut self) {
        let more = self.inner.try_read("GET").expect("an orderly end");
        assert!(more.is_none(), "more came: {more:?}");
    }

    /// The server still answers on this connection.
    pub fn assert_open(&mut self) {
        assert_eq!(self.get("/still-open").response().status, 200);
    }
}

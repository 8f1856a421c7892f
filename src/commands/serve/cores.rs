//! Data cores: each is one thread with one monoio runtime and a listener of its own, pinned to a
//! processor unless `--no-pin` is given.
//!
//! The ring is made with the flags that measured best or, if the kernel does not know them, with
//! fewer. If io_uring is refused (as in a default container), or can be had and not be used, the cores
//! run on epoll.

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, mem};

use koltso_net::server::{self, Limits};
use koltso_storage::schedule;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use socket2::{Domain, Protocol, Socket, Type};

use crate::counters::CoreMetrics;
use crate::front::http::Api;
use crate::node::{Node, Runtime};
use crate::stalls::{self, Turn};

/// The most connections that the kernel holds until a core accepts them.
const BACKLOG: i32 = 4096;
/// Entries of a ring; if there are more operations than this at once, they are submitted in several
/// steps.
const RING_ENTRIES: u32 = 1024;
/// A smaller ring is not made.
const RING_ENTRIES_MIN: u32 = 256;
/// How long the kernel may have no memory for a ring until that is reported as an error.
const RING_PATIENCE: Duration = Duration::from_secs(2);
/// How long an address may be in use before that is reported as an error.
const BIND_PATIENCE: Duration = Duration::from_secs(1);
/// How often a core checks whether the storage is open.
const OPEN_POLL: Duration = Duration::from_millis(2);
/// How often a core measures how late its timers come.
const LAG_EVERY: Duration = Duration::from_millis(100);

/// A ring whose task work runs when the core enters the kernel anyway, without an interrupt: it
/// takes a third less kernel time for a request.
fn best_ring() -> io_uring::Builder {
    let mut builder = io_uring::IoUring::builder();
    builder.setup_coop_taskrun().setup_single_issuer().setup_taskrun_flag();
    builder
}

/// Makes a ring as the cores do and has it do nothing, once: a sandbox may allow a ring to be made
/// and not to be used.
fn try_ring(builder: &io_uring::Builder) -> io::Result<()> {
    let mut ring = with_memory(|entries| builder.build(entries))?;
    let nothing = io_uring::opcode::Nop::new().build();
    #[allow(unsafe_code)]
    // SAFETY: the entry refers to no memory.
    let pushed = unsafe { ring.submission().push(&nothing) };
    pushed.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    match ring.completion().next() {
        Some(done) if done.result() >= 0 => Ok(()),
        Some(done) => Err(io::Error::from_raw_os_error(-done.result())),
        None => Err(io::Error::other("a ring completes nothing")),
    }
}

/// Makes a ring with as many entries as there is memory for. The kernel wants pages in a row, of which a
/// machine with memory to spare can have none for a moment.
fn with_memory<R>(make: impl Fn(u32) -> io::Result<R>) -> io::Result<R> {
    let begun = Instant::now();
    let mut entries = RING_ENTRIES;
    loop {
        match make(entries) {
            Err(e) if e.raw_os_error() == Some(libc::ENOMEM) && entries > RING_ENTRIES_MIN => entries /= 2,
            Err(e) if e.raw_os_error() == Some(libc::ENOMEM) && begun.elapsed() < RING_PATIENCE => {
                thread::sleep(Duration::from_millis(20));
                entries = RING_ENTRIES;
            }
            result => return result,
        }
    }
}

/// The runtime that this machine allows, and why it is epoll if it is.
pub fn detect_runtime() -> (Runtime, Option<io::Error>) {
    if try_ring(&best_ring()).is_ok() {
        return (Runtime::IoUring("COOP_TASKRUN SINGLE_ISSUER TASKRUN_FLAG"), None);
    }
    match try_ring(&io_uring::IoUring::builder()) {
        Ok(()) if monoio::utils::detect_uring() => (Runtime::IoUring("default"), None),
        Ok(()) => (Runtime::Epoll, Some(io::Error::other("it lacks operations that the server needs"))),
        Err(e) => (Runtime::Epoll, Some(e)),
    }
}

/// Binds `count` listeners, one for each core, to the same address. The first is bound alone, so
/// that an address which any other process uses is an error, although the kernel would let
/// processes of one user share it.
pub fn bind(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let listen = |socket: Socket| {
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    patiently(|| reserve_once(address, count)?.into_iter().map(listen).collect())
}

/// Binds as [`bind`] does, but nobody can connect yet: the caller must call `listen` on each
/// socket.
pub fn reserve(address: SocketAddr, count: usize) -> io::Result<Vec<Socket>> {
    patiently(|| reserve_once(address, count))
}

fn patiently<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    // The kernel ends io_uring's accepts a moment after their process has ended: a restart waits
    // for that.
    let begun = Instant::now();
    loop {
        match bind() {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < BIND_PATIENCE => {
                thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

fn reserve_once(address: SocketAddr, count: usize) -> io::Result<Vec<Socket>> {
    let open = |address: SocketAddr, shared: bool| -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    let first = open(address, false)?;
    first.set_reuse_port(true)?;
    let bound = first.local_addr()?.as_socket().unwrap_or(address);
    let mut sockets = vec![first];
    for _ in 1..count {
        sockets.push(open(bound, true)?);
    }
    Ok(sockets)
}

/// The numbers of the processors that this process may use.
#[allow(unsafe_code)]
fn allowed() -> Vec<usize> {
    // SAFETY: the set is plain data on the stack, and the call is given its size.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        if libc::sched_getaffinity(0, mem::size_of_val(&set), &mut set) != 0 {
            return Vec::new();
        }
        (0..libc::CPU_SETSIZE as usize).filter(|&cpu| libc::CPU_ISSET(cpu, &set)).collect()
    }
}

/// Keeps the calling thread on one processor.
#[allow(unsafe_code)]
fn pin(processor: usize) {
    // SAFETY: as above; the set has one member, which `allowed` has found.
    let result = unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, mem::size_of_val(&set), &set)
    };
    if result != 0 {
        tracing::warn!("a core could not be pinned to processor {processor}: {}", io::Error::last_os_error());
    }
}

fn limits(node: &Node) -> Limits {
    let config = &node.config;
    Limits {
        body_max: config.max_value,
        connections_max: config.max_connections,
        address_max: config.address_max(),
        loopback_max: config.loopback_max(),
        request_timeout: config.request_timeout,
        idle_timeout: config.idle_timeout,
        requests_in_flight_max: config.max_in_flight,
        body_bytes_max: config.max_in_flight_bytes,
        ..Limits::default()
    }
}

/// Serves until the drain is over. This is the future given to a core's `block_on`.
async fn serve(node: Arc<Node>, core: usize, listener: TcpListener) -> io::Result<()> {
    match node.stalls.as_ref().map(|stalls| stalls::turn(stalls, core)) {
        Some(turn) => turn.clone().run(serve_with(node, core, listener, Some(turn))).await,
        None => serve_with(node, core, listener, None).await,
    }
}

async fn serve_with(node: Arc<Node>, core: usize, listener: TcpListener, turn: Option<Rc<Turn>>) -> io::Result<()> {
    let limits = limits(&node);
    let shared = node.connections.clone();
    let api = Rc::new(Api::new(node.clone(), core, turn.clone()));
    monoio::spawn(measure_lag(node.metrics[core].clone(), turn));
    monoio::spawn(join_when_open(api.clone()));
    let result = server::serve(listener, api.clone(), limits, shared).await;
    api.close().await;
    result
}

/// Opens the storage for peers as soon as possible, not only when the first request of a client
/// comes.
async fn join_when_open(api: Rc<Api>) {
    while !api.is_open() {
        monoio::time::sleep(OPEN_POLL).await;
    }
}

async fn measure_lag(metrics: Arc<CoreMetrics>, turn: Option<Rc<Turn>>) {
    loop {
        let due = Instant::now() + LAG_EVERY;
        monoio::time::sleep(LAG_EVERY).await;
        let now = Instant::now();
        if let Some(turn) = &turn {
            turn.begin_quietly(now);
        }
        metrics.lagged(now.saturating_duration_since(due));
    }
}

fn run(node: Arc<Node>, core: usize, listener: TcpListener) -> io::Result<()> {
    match node.runtime {
        Runtime::IoUring(flags) => {
            let ring = || if flags == "default" { io_uring::IoUring::builder() } else { best_ring() };
            let builder = |entries| RuntimeBuilder::<IoUringDriver>::new().uring_builder(ring()).with_entries(entries);
            let mut runtime = with_memory(|entries| builder(entries).enable_timer().build())?;
            runtime.block_on(serve(node, core, listener))
        }
        Runtime::Epoll => {
            RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?.block_on(serve(node, core, listener))
        }
    }
}

/// Starts the threads of the cores. Each thread ends when its drain is over.
pub fn spawn(node: &Arc<Node>, listeners: Vec<TcpListener>) -> io::Result<Vec<JoinHandle<io::Result<()>>>> {
    let processors = allowed();
    let mut threads = Vec::new();
    for (core, listener) in listeners.into_iter().enumerate() {
        let node = node.clone();
        // If there are more cores than processors, they would only fight over them: the scheduler
        // decides then.
        let pinned = !node.config.no_pin && node.config.threads <= processors.len();
        let processor = processors.get(core).copied().filter(|_| pinned);
        let body = move || {
            if let Some(processor) = processor {
                pin(processor);
            }
            schedule::ask_for_short_slices();
            run(node, core, listener)
        };
        threads.push(thread::Builder::new().name(format!("koltso-core-{core}")).spawn(body)?);
    }
    Ok(threads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// How many entries were asked for, if those attempts found no memory.
    fn asked(without_memory: usize) -> (Vec<u32>, io::Result<u32>) {
        let asked = RefCell::new(Vec::new());
        let made = with_memory(|entries| {
            asked.borrow_mut().push(entries);
            let has_memory = asked.borrow().len() > without_memory;
            has_memory.then_some(entries).ok_or(io::Error::from_raw_os_error(libc::ENOMEM))
        });
        (asked.into_inner(), made)
    }

    #[test]
    fn a_moment_without_memory_ends_no_core() {
        assert_eq!(asked(0).0, [1024]);
        assert_eq!(asked(2).0, [1024, 512, 256]);
        let (entries, made) = asked(4);
        assert_eq!((&entries[..], made.ok()), (&[1024, 512, 256, 1024, 512][..], Some(512)));
        let code = |made: io::Result<u32>| made.err().and_then(|e| e.raw_os_error());
        let began = Instant::now();
        assert_eq!(code(asked(usize::MAX).1), Some(libc::ENOMEM));
        assert!(began.elapsed() >= RING_PATIENCE);
        let refused = with_memory(|_| Err(io::Error::from_raw_os_error(libc::EPERM)));
        assert_eq!(code(refused), Some(libc::EPERM));
    }
}

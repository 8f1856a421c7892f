//! What strangers do to a server all at once: connections that say nothing, requests that dribble
//! in, answers that nobody reads, a flood at the replica port. Used by a test with small numbers
//! and, through `examples/attack.rs`, by `scripts/attack.sh` with large ones.
//!
//! Whatever is cut off comes back. Sockets end with a reset, so that no port of this machine waits
//! for its minute.

use std::collections::VecDeque;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::entity;

/// How often those who dribble send a byte.
const DRIBBLE_EVERY: Duration = Duration::from_secs(1);
/// How many strangers at the replica port stay, until others come after them.
const STRANGERS_STAY: usize = 2000;

/// How much of what.
#[derive(Clone, Copy, Debug)]
pub struct Attack {
    /// Connections that say nothing.
    pub idle: usize,
    /// Connections whose request comes at a byte a second: heads, bodies and chunks in turn.
    pub dribbling: usize,
    /// Connections that ask for the value `large` again and again, and read nothing.
    pub unread: usize,
    /// Connections a second at the replica port.
    pub strangers: u64,
}

/// A running attack; it ends with this guard.
pub struct Attackers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Connections that were made, again after an end, too: all but those of the flood, and those.
    counts: Arc<[AtomicU64; 2]>,
}

/// What one thread does until it is told to stop, and where it counts.
type Part = Box<dyn FnOnce(&AtomicBool, &[AtomicU64; 2]) + Send>;

fn connect(address: SocketAddr, receive_buffer: Option<usize>) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect_timeout(&address.into(), Duration::from_secs(1))?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Whether the other side has ended the connection, as far as is known without waiting.
fn is_over(socket: &TcpStream) -> bool {
    match socket.peek(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

/// Keeps so many connections open; each of them begins with what `first` says and goes on, once a
/// second, with what `more` does.
fn keep(
    (count, made): (usize, &AtomicU64),
    stop: &AtomicBool,
    open: impl Fn() -> std::io::Result<TcpStream>,
    first: impl Fn(usize) -> Vec<u8>,
    more: impl Fn(&mut TcpStream) -> bool,
) {
    let mut sockets: Vec<Option<TcpStream>> = (0..count).map(|_| None).collect();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        for (index, place) in sockets.iter_mut().enumerate() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            match place {
                Some(socket) => {
                    if !more(socket) {
                        *place = None;
                    }
                }
                None => {
                    *place = open().ok().filter(|mut socket| {
                        let text = first(index);
                        text.is_empty() || socket.write_all(&text).is_ok()
                    });
                    made.fetch_add(u64::from(place.is_some()), Ordering::Relaxed);
                }
            }
            // Spread over the second.
            if index % 50 == 49 {
                let due = DRIBBLE_EVERY.mul_f64((index + 1) as f64 / count as f64);
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
            }
        }
        std::thread::sleep(DRIBBLE_EVERY.saturating_sub(begun.elapsed()));
    }
}

fn dribbling_head(index: usize) -> Vec<u8> {
    match index % 3 {
        0 => b"GET /v0/enti".to_vec(),
        1 => b"PUT /v0/entity?id=slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16777216\r\n\r\n".to_vec(),
        _ => b"PUT /v0/entity?id=slow HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\n"
            .to_vec(),
    }
}

fn flood(address: SocketAddr, a_second: u64, stop: &AtomicBool, made: &AtomicU64) {
    let (begun, mut held) = (Instant::now(), VecDeque::new());
    let mut count = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        if let Ok(mut stranger) = connect(address, None) {
            count += 1;
            made.fetch_add(1, Ordering::Relaxed);
            match count % 3 {
                0 => drop(stranger),
                rest => {
                    if rest == 1 {
                        let _ = stranger.write_all(b"KOLTSORP and nothing more");
                    }
                    held.push_back(stranger);
                }
            }
        }
        if held.len() > STRANGERS_STAY {
            held.pop_front();
        }
        if count.is_multiple_of(32) {
            let due = Duration::from_secs_f64(count as f64 / a_second as f64);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
        }
    }
}

impl Attack {
    /// Begins to attack the HTTP port, and the replica port if it is given.
    pub fn begin(self, http: SocketAddr, replica: Option<SocketAddr>) -> Attackers {
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let mut threads = Vec::new();
        let mut spawn = |run: Part| {
            let (stop, counts) = (Arc::clone(&stop), Arc::clone(&counts));
            threads.push(std::thread::spawn(move || run(&stop, &counts)));
        };
        spawn(Box::new(move |stop, counts| {
            keep((self.idle, &counts[0]), stop, || connect(http, None), |_| Vec::new(), |socket| !is_over(socket));
        }));
        spawn(Box::new(move |stop, counts| {
            let more = |socket: &mut TcpStream| socket.write_all(b"x").is_ok() && !is_over(socket);
            keep((self.dribbling, &counts[0]), stop, || connect(http, None), dribbling_head, more);
        }));
        spawn(Box::new(move |stop, counts| {
            let get = format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", entity("large")).into_bytes();
            // What it takes is what the kernel takes: of a cut the next write tells.
            let more = |socket: &mut TcpStream| socket.write_all(b"\r\n").is_ok();
            keep((self.unread, &counts[0]), stop, || connect(http, Some(4096)), |_| get.repeat(8), more);
        }));
        if let Some(replica) = replica.filter(|_| self.strangers > 0) {
            spawn(Box::new(move |stop, counts| flood(replica, self.strangers, stop, &counts[1])));
        }
        Attackers { stop, threads, counts }
    }
}

impl Attackers {
    /// Connections that were made at the HTTP port, and strangers at the replica port.
    pub fn made(&self) -> (u64, u64) {
        (self.counts[0].load(Ordering::Relaxed), self.counts[1].load(Ordering::Relaxed))
    }
}

impl Drop for Attackers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            assert!(thread.join().is_ok() || std::thread::panicking(), "an attacker panicked");
        }
    }
}

/// Fills the pipe that is a process's standard error, if nobody reads it: whatever the process logs
/// from then on has no place to go.
pub fn fill_standard_error(pid: u32) -> std::io::Result<()> {
    let path = format!("/proc/{pid}/fd/2");
    let mut pipe = std::fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    loop {
        match pipe.write(&[b'\n'; 4096]) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// A shell command that becomes the one behind it, with a standard error that is read until the
/// ready line and never after it.
pub const STUCK_LOG: [&str; 3] =
    ["bash", "-c", "exec \"$0\" \"$@\" 2> >(sed -u '/ready http/q' >&2; exec tail --pid=$$ -f /dev/null 2>&-)"];

//! The event loop of one thread of the load: its connections are on one epoll, which the sockets
//! and one timer wake.
//!
//! Sockets are registered once and edge-triggered: a request and its answer cost one write, one
//! read and one wait. The timer is a timerfd with an absolute time, exact to some ten microseconds,
//! whereas the timeout of epoll has whole milliseconds. Nothing spins.
//!
//! Invariants:
//! 1. A connection has at most one request in flight and at most one entry among the wakes.
//! 2. A request that failed is sent again on a new connection, and its latency counts from when it
//!    was first due.
//! 3. After the end nothing is sent; requests in flight are waited for, at most for the timeout.
//!
//! Bounds: a connection that fails is tried again every `RETRY_PAUSE`; a read takes at most
//! `READ_MAX` bytes at once. Tested in `tests/bench.rs`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::answer::{Answer, Reader};
use super::pace::Pace;
use super::tally::{Failure, Tally};
use super::work::{LoadRequest, Templates, Work};

const MS: u64 = 1_000_000;
/// Nanoseconds between a failure and the next try of that connection.
const RETRY_PAUSE: u64 = 100 * MS;
/// Nanoseconds between two checks for timeouts, when the rate is sampled too.
const TICK: u64 = 100 * MS;
const READ_MAX: usize = 64 << 10;
const EVENTS_MAX: usize = 256;
const TIMER: u64 = u64::MAX;

/// Nanoseconds of the monotonic clock.
pub fn clock() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The moments of a run in nanoseconds of the monotonic clock, the same for all threads.
#[derive(Clone, Copy)]
pub struct Times {
    /// When the first request is due.
    pub begin: u64,
    /// From when on latencies are recorded.
    pub record: u64,
    /// From when on nothing is sent.
    pub end: u64,
    /// How long an answer may take, in nanoseconds.
    pub timeout: u64,
}

/// What all threads of the load share with the main thread.
#[derive(Default)]
pub struct RunState {
    /// Set to end the run at once.
    pub stop: AtomicBool,
    pub answers: AtomicU64,
    pub failures: AtomicU64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The connection has no socket until its wake.
    Down,
    Connecting {
        since: u64,
    },
    /// The connection waits until its next request may be sent.
    Idle,
    Busy {
        since: u64,
    },
    /// The run is over for this connection.
    Over,
}

/// A connection to one of the nodes.
pub struct Connection {
    node: usize,
    pace: Pace,
    state: State,
    socket: Option<TcpStream>,
    reader: Reader,
    request: Option<LoadRequest>,
    written: usize,
    /// Writing failed; the answer may still say why.
    broken: bool,
    woken: bool,
}

/// A node of the system under load.
pub struct LoadNode {
    pub address: SocketAddr,
    pub templates: Templates,
}

/// One thread of the load.
pub struct EventLoop<'a> {
    epoll: OwnedFd,
    timer: OwnedFd,
    armed: u64,
    times: Times,
    nodes: Vec<LoadNode>,
    work: Work,
    connections: Vec<Connection>,
    wakes: BinaryHeap<Reverse<(u64, usize)>>,
    buffer: Vec<u8>,
    tally: Tally,
    shared: &'a RunState,
    /// The number of answers and of failures at the last tick, and when that was.
    ticked: (u64, u64, u64),
}

impl<'a> EventLoop<'a> {
    /// A thread that has no connections yet.
    pub fn new(times: Times, nodes: Vec<LoadNode>, work: Work, shared: &'a RunState) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN | EventFlags::ET)?;
        Ok(Self {
            epoll,
            timer,
            armed: 0,
            times,
            nodes,
            work,
            connections: Vec::new(),
            wakes: BinaryHeap::new(),
            buffer: vec![0; READ_MAX],
            tally: Tally::new(),
            shared,
            ticked: (0, 0, 0),
        })
    }

    /// Adds a connection to the node with the index `node`; it connects at the time `connects`.
    pub fn add(&mut self, node: usize, connects: u64, pace: Pace) {
        let index = self.connections.len();
        self.connections.push(Connection {
            node,
            pace,
            state: State::Down,
            socket: None,
            reader: Reader::new(),
            request: None,
            written: 0,
            broken: false,
            woken: false,
        });
        self.wake(index, connects);
    }

    /// Runs until the end and returns the counts.
    pub fn run(mut self) -> io::Result<Tally> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        self.ticked.2 = clock();
        loop {
            let now = clock();
            self.attend(now);
            if now >= self.ticked.2 + TICK && !self.tick(now) {
                return Ok(self.tally);
            }
            self.arm()?;
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            for event in events.drain(..) {
                let (data, flags) = (event.data, event.flags);
                if data.u64() != TIMER {
                    self.event(data.u64() as usize, flags);
                }
            }
        }
    }

    fn wake(&mut self, index: usize, at: u64) {
        if !self.connections[index].woken {
            self.connections[index].woken = true;
            self.wakes.push(Reverse((at, index)));
        }
    }

    /// Serves every connection whose time has come.
    fn attend(&mut self, now: u64) {
        while let Some(&Reverse((at, index))) = self.wakes.peek() {
            if at > now {
                return;
            }
            self.wakes.pop();
            self.connections[index].woken = false;
            match self.connections[index].state {
                State::Down if now >= self.times.end => self.connections[index].state = State::Over,
                State::Down => self.connect(index, now),
                State::Idle => self.proceed(index, now),
                State::Connecting { .. } | State::Busy { .. } | State::Over => {}
            }
        }
    }

    /// Handles timeouts and samples the rate; returns whether the run goes on.
    fn tick(&mut self, now: u64) -> bool {
        let (answers, failures, since) = self.ticked;
        if since >= self.times.record && now <= self.times.end {
            let seconds = (now - since) as f64 / 1e9;
            self.tally.rates.push((self.tally.answers - answers) as f64 / seconds);
        }
        for index in 0..self.connections.len() {
            match self.connections[index].state {
                State::Connecting { since } if now > since + self.times.timeout => {
                    self.fail(index, Failure::Connect, now);
                }
                State::Busy { since } if now > since + self.times.timeout => self.fail(index, Failure::Timeout, now),
                State::Down | State::Idle if now >= self.times.end => self.close(index),
                _ => {}
            }
        }
        self.ticked = (self.tally.answers, self.tally.all_failures(), now);
        self.shared.answers.fetch_add(self.ticked.0 - answers, Ordering::Relaxed);
        self.shared.failures.fetch_add(self.ticked.1 - failures, Ordering::Relaxed);
        let over = self.connections.iter().all(|connection| connection.state == State::Over);
        !over && !self.shared.stop.load(Ordering::Relaxed)
    }

    /// Sets the timer to what comes first.
    fn arm(&mut self) -> io::Result<()> {
        let tick = self.ticked.2 + TICK;
        let at = self.wakes.peek().map_or(tick, |&Reverse((at, _))| at.min(tick));
        // A timer that has expired would have to be set again even to the same time, but `attend`
        // has handled that time already.
        if at != self.armed {
            self.armed = at;
            let value = Timespec { tv_sec: (at / 1_000_000_000) as i64, tv_nsec: (at % 1_000_000_000) as i64 };
            let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
            timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
        }
        Ok(())
    }

    fn connect(&mut self, index: usize, now: u64) {
        self.connections[index].state = State::Connecting { since: now };
        if self.open(index).is_err() {
            self.fail(index, Failure::Connect, now);
        }
    }

    fn open(&mut self, index: usize) -> io::Result<()> {
        let connection = &mut self.connections[index];
        let address = self.nodes[connection.node].address;
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => return Err(e),
            _ => {}
        }
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, &socket, EventData::new_u64(index as u64), flags)?;
        connection.socket = Some(socket.into());
        Ok(())
    }

    fn event(&mut self, index: usize, flags: EventFlags) {
        let now = clock();
        let connection = &mut self.connections[index];
        let Some(socket) = &connection.socket else { return };
        match connection.state {
            State::Connecting { .. } => match socket.take_error() {
                Ok(None) if flags.contains(EventFlags::OUT) && !flags.contains(EventFlags::ERR) => {
                    connection.state = State::Idle;
                    self.proceed(index, now);
                }
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return self.fail(index, Failure::Connect, now),
            },
            State::Busy { .. } if flags.contains(EventFlags::OUT) => self.write(index),
            _ => {}
        }
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            self.read(index, flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR));
        }
    }

    /// Sends the next request of an idle connection, or waits until it may be sent.
    fn proceed(&mut self, index: usize, now: u64) {
        let connection = &mut self.connections[index];
        let at = connection.pace.due();
        if now.max(at) >= self.times.end {
            return self.close(index);
        }
        if at > now {
            return self.wake(index, at);
        }
        if connection.request.is_none() {
            connection.request = Some(self.work.next());
        }
        connection.state = State::Busy { since: now };
        connection.written = 0;
        connection.broken = false;
        self.write(index);
    }

    fn write(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let (Some(request), Some(socket)) = (connection.request, &mut connection.socket) else { return };
        let bytes = self.nodes[connection.node].templates.fill(request);
        while connection.written < bytes.len() && !connection.broken {
            match socket.write(&bytes[connection.written..]) {
                Ok(count) => connection.written += count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // A server that refuses a body may answer and close before it has received all
                    // of it: the answer says more than the broken pipe. It is read at the event
                    // that reports the end.
                    connection.broken = true;
                }
            }
        }
    }

    fn read(&mut self, index: usize, ended: bool) {
        loop {
            let connection = &mut self.connections[index];
            let Some(socket) = &mut connection.socket else { return };
            let result = socket.read(&mut self.buffer);
            let now = clock();
            let count = match result {
                Ok(0) => return self.ended(index, now),
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) if connection.broken => return self.fail(index, Failure::Write, now),
                Err(_) if connection.state == State::Idle => return self.ended(index, now),
                Err(_) => return self.fail(index, Failure::Read, now),
            };
            self.tally.bytes += count as u64;
            let busy = matches!(connection.state, State::Busy { .. });
            match connection.reader.feed(&self.buffer[..count]) {
                Ok(Some(answer)) if busy => self.answered(index, answer, now),
                Ok(None) if busy => {}
                _ => return self.fail(index, Failure::Malformed, now),
            }
            // The answer may have ended the connection, and a new one that is not open yet may have
            // taken its place.
            let open = matches!(self.connections[index].state, State::Idle | State::Busy { .. });
            if !open || (count < READ_MAX && !ended) {
                return;
            }
        }
    }

    /// The peer has closed the connection.
    fn ended(&mut self, index: usize, now: u64) {
        let connection = &mut self.connections[index];
        match connection.state {
            State::Idle => self.reconnect(index, now),
            State::Busy { .. } => match connection.reader.closed() {
                Some(answer) => self.answered(index, answer, now),
                None if connection.broken => self.fail(index, Failure::Write, now),
                None => self.fail(index, Failure::Closed, now),
            },
            _ => self.fail(index, Failure::Connect, now),
        }
    }

    fn answered(&mut self, index: usize, answer: Answer, now: u64) {
        let connection = &mut self.connections[index];
        self.tally.answered(answer.status, now);
        if let Some(refusal) = connection.reader.refusal() {
            self.tally.refused(answer.status, refusal);
        }
        if now >= self.times.record {
            self.tally.latency.saturating_record((now - connection.pace.due()) / 1000);
        }
        connection.pace.answered();
        connection.state = State::Idle;
        let request = connection.request.take();
        let whole = request.is_some_and(|r| self.nodes[connection.node].templates.fill(r).len() == connection.written);
        if answer.closes || !whole { self.reconnect(index, now) } else { self.proceed(index, now) }
    }

    /// Replaces a connection that the server has closed.
    fn reconnect(&mut self, index: usize, now: u64) {
        self.close(index);
        if now < self.times.end {
            self.tally.reconnects += 1;
            self.connect(index, now);
        }
    }

    fn fail(&mut self, index: usize, failure: Failure, now: u64) {
        self.tally.failed(failure);
        self.close(index);
        if now < self.times.end {
            if failure != Failure::Connect {
                self.tally.reconnects += 1;
            }
            self.connections[index].state = State::Down;
            self.wake(index, now + RETRY_PAUSE);
        }
    }

    fn close(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        connection.socket = None;
        connection.reader.reset();
        connection.state = State::Over;
    }
}

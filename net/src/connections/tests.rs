//! Seats, sweeps and drains of a protocol that only exists here.
#![allow(clippy::unwrap_used)]

use std::os::unix::net::UnixStream;

use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Asking,
    Answering,
    Done,
}

struct Test {
    connections: Connections<Self>,
    events: RefCell<Vec<&'static str>>,
    ticks: Cell<usize>,
}

#[derive(Default)]
struct Woken(Cell<usize>);

impl Wake for Woken {
    fn wake(&self) {
        self.0.set(self.0.get() + 1);
    }
}

impl Host for Test {
    type Phase = Phase;
    type Waits = Woken;
    type Event = &'static str;
    const PROTOCOL: &'static str = "test";

    fn connections(&self) -> &Connections<Self> {
        &self.connections
    }

    fn judge(&self, seat: &Seat<Self>, _: Instant, age: Duration, draining: bool) -> Verdict<&'static str> {
        match seat.phase() {
            Phase::Asking if draining => Verdict::CutInput(None),
            Phase::Asking if age >= Duration::from_secs(2) => Verdict::CutInput(Some("asked too long")),
            Phase::Answering if age >= Duration::from_secs(2) => Verdict::CutAll(Some("answered too long")),
            _ => Verdict::Wait,
        }
    }

    fn event(&self, event: &'static str) {
        self.events.borrow_mut().push(event);
    }

    fn closed(&self) {}

    fn short(&self) {}

    fn tick(&self) {
        self.ticks.set(self.ticks.get() + 1);
    }
}

impl Test {
    fn new() -> Self {
        let times = Times { sweep_interval: Duration::from_secs(1), drain_timeout: Duration::from_secs(1) };
        let connections = Connections::new(Shared::new(), times);
        Self { connections, events: RefCell::default(), ticks: Cell::new(0) }
    }

    /// A seat that has been in `phase` for `age`.
    fn seat(&self, socket: &UnixStream, phase: Phase, age: Duration) -> (usize, Rc<Seat<Self>>) {
        let since = Instant::now().checked_sub(age).unwrap();
        let seat = Rc::new(Seat {
            fd: socket.as_raw_fd(),
            phase: Cell::new(phase),
            since: Cell::new(since),
            expired: Cell::new(None),
            cut: Cell::new(false),
            waits: Woken::default(),
        });
        (self.connections.insert(Rc::clone(&seat)), seat)
    }
}

/// Whether the other end sees that this one has been shut down for reading (its writes fail),
/// and for writing (its reads end).
fn ends(other: &UnixStream) -> (bool, bool) {
    use std::io::{Read, Write};
    other.set_nonblocking(true).unwrap();
    let (mut write, mut read) = (other, other);
    (write.write(b"x").is_err(), matches!(read.read(&mut [0; 10]), Ok(0)))
}

#[test]
fn a_deadline_strikes_once_and_ends_what_is_pending() {
    let test = Test::new();
    let sockets: Vec<_> = (0..4).map(|_| UnixStream::pair().unwrap()).collect();
    let long = Duration::from_secs(3);
    let (_, asking) = test.seat(&sockets[0].0, Phase::Asking, long);
    let (_, answering) = test.seat(&sockets[1].0, Phase::Answering, long);
    let (_, fresh) = test.seat(&sockets[2].0, Phase::Asking, Duration::ZERO);
    let (_, done) = test.seat(&sockets[3].0, Phase::Done, long);
    for _ in 0..2 {
        sweep(&test);
        assert_eq!(*test.events.borrow(), ["asked too long", "answered too long"]);
    }
    let seen: Vec<_> = sockets.iter().map(|(_, other)| ends(other)).collect();
    assert_eq!(seen, [(true, false), (true, true), (false, false), (false, false)]);
    assert!(asking.has_expired(Phase::Asking) && !asking.is_cut() && asking.waits().0.get() == 0);
    assert!(answering.is_cut() && answering.waits().0.get() == 1);
    assert!(!fresh.is_cut() && !done.is_cut());
    // A connection that goes on after that has deadlines again.
    asking.set(Phase::Answering, Instant::now().checked_sub(long).unwrap());
    sweep(&test);
    assert!(asking.is_cut() && test.events.borrow().len() == 3);
    assert_eq!(test.ticks.get(), 3);
}

#[test]
fn a_sweep_ends_many_connections_in_turns_and_forgets_none() {
    let test = Test::new();
    let sockets: Vec<_> = (0..20).map(|_| UnixStream::pair().unwrap()).collect();
    let age = |index: usize| if index == 7 { Duration::ZERO } else { Duration::from_secs(3) };
    let seats: Vec<_> = sockets
        .iter()
        .enumerate()
        .map(|(index, (socket, _))| test.seat(socket, Phase::Answering, age(index)))
        .collect();
    test.connections.remove(seats[3].0);
    let cut = || seats.iter().filter(|(_, seat)| seat.is_cut()).count();
    let next = sweep_some(&test, 0, (usize::MAX, 8));
    assert_eq!((cut(), test.events.borrow().len()), (8, 8));
    let next = sweep_some(&test, next.unwrap(), (5, 8));
    assert!((9..=13).contains(&cut()), "five were looked at");
    assert_eq!(sweep_some(&test, next.unwrap(), (usize::MAX, usize::MAX)), None);
    assert_eq!(cut(), 18, "all but the fresh one and the one that has left");
    assert!(!seats[7].1.is_cut() && !seats[3].1.is_cut());
}

#[test]
fn a_drain_ends_what_waits_for_requests() {
    let test = Test::new();
    let (socket, other) = UnixStream::pair().unwrap();
    let (_, seat) = test.seat(&socket, Phase::Asking, Duration::ZERO);
    test.connections.shared.drain();
    sweep(&test);
    assert_eq!((ends(&other), seat.is_cut()), ((true, false), false));
    test.connections.cut_all();
    assert!(seat.is_cut() && seat.waits().0.get() == 1);
    assert!(test.events.borrow().is_empty());
}

#[test]
fn seats_are_used_again() {
    let test = Test::new();
    let (socket, _other) = UnixStream::pair().unwrap();
    let (first, _) = test.seat(&socket, Phase::Done, Duration::ZERO);
    let (second, _) = test.seat(&socket, Phase::Done, Duration::ZERO);
    assert_ne!(first, second);
    test.connections.remove(first);
    assert_eq!(test.connections.count.get(), 1);
    assert_eq!(test.seat(&socket, Phase::Done, Duration::ZERO).0, first);
    assert_eq!(test.connections.seats.borrow().len(), 2);
}

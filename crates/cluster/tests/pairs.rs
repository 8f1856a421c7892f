//! Two writes of one key one after the other, through different nodes with one wall clock: the
//! second is read, always.
//!
//! Three members, `ack=1 from=3`, the second write 50 µs after the first; every message takes as
//! long as chance says, so that the second write mostly reaches the replicas before the first, and
//! neither coordinator has seen the other's write. Then a read with 3/3. With a counter below the
//! milliseconds in place of their fraction, one pair in some was ordered by the nodes' numbers.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use koltso_cluster::Now;
use koltso_cluster::clock::HybridClock;
use koltso_cluster::coordinator::{Answer, RequestId, Settings, Token};
use koltso_cluster::member::{Clocks, Host, Member, Observer, QueueFull};
use koltso_cluster::placement::{NodeIndex, Topology};
use koltso_model::{Flags, Found, Key, Operation, Outcome, Quorum, Record, Version, WallTime, Want};
use koltso_testkit::Random;

const NODES: usize = 3;
const KEY: Bytes = Bytes::from_static(b"planet");

/// Requests on their way: from, to, and what.
type Sent = (usize, usize, RequestId, Operation<Bytes>);

#[derive(Default)]
struct Net {
    sent: Vec<Sent>,
    answers: VecDeque<(Token, Answer)>,
    /// What each node stores.
    stored: [Option<Record<Bytes>>; NODES],
}

fn apply(stored: &mut Option<Record<Bytes>>, operation: &Operation<Bytes>) -> Outcome<Bytes> {
    match operation {
        Operation::Write(record) => match stored {
            Some(newer) if newer.version > record.version => Outcome::Superseded(newer.version),
            _ => {
                *stored = Some(record.clone());
                Outcome::Applied
            }
        },
        Operation::Read { want, .. } => stored.as_ref().map_or(Outcome::Absent(None), |record| {
            Outcome::Found(Found {
                version: record.version,
                expires_at_ms: 0,
                flags: record.flags,
                attributes: Bytes::new(),
                value_len: record.value.len() as u32,
                value: (*want == Want::Value).then(|| record.value.clone()),
            })
        }),
    }
}

struct NetHost<'a> {
    net: &'a mut Net,
    node: usize,
}

impl Host for NetHost<'_> {
    fn execute(&mut self, _: Now, _: RequestId, operation: &Operation<Bytes>) -> Option<Outcome<Bytes>> {
        Some(apply(&mut self.net.stored[self.node], operation))
    }

    fn send(&mut self, to: NodeIndex, id: RequestId, operation: &Operation<Bytes>) -> Result<(), QueueFull> {
        self.net.sent.push((self.node, to.at(), id, operation.clone()));
        Ok(())
    }

    fn ping(&mut self, _: NodeIndex, _: RequestId, _: Clocks) {}

    fn answer(&mut self, token: Token, answer: Answer) {
        self.net.answers.push_back((token, answer));
    }

    fn hint(&mut self, to: NodeIndex, record: Record<Bytes>) {
        panic!("nothing fails here, and {to:?} is to get a hint of {record:?}");
    }

    fn persist_clock(&mut self, _: u64) {
        unreachable!("these clocks have no bound");
    }
}

struct Trio {
    net: Net,
    members: Vec<Member>,
    observers: Vec<Observer>,
    micros: u64,
}

impl Trio {
    fn new() -> Self {
        let names: Vec<String> = (0..NODES).map(|node| format!("http://node-{node}:1337")).collect();
        let clocks: Vec<_> = (0..NODES).map(|_| Arc::new(HybridClock::default())).collect();
        let settings = Settings { deadline_micros: 1_000_000, in_flight_max: 16, in_flight_bytes_max: 1 << 20 };
        let member = |node: usize| {
            let topology = Arc::new(Topology::new(&names, &names[node]).unwrap());
            Member::new(topology, settings, clocks[node].clone())
        };
        let mut trio = Self {
            net: Net::default(),
            members: (0..NODES).map(member).collect(),
            observers: clocks.iter().cloned().map(Observer::new).collect(),
            micros: 1_700_000_000_000_000,
        };
        let now = trio.now();
        for node in 0..NODES {
            for peer in (0..NODES).filter(|&peer| peer != node) {
                trio.members[node].connected(now, NodeIndex(peer as u8));
            }
        }
        trio
    }

    fn now(&self) -> Now {
        Now { micros: self.micros, wall: WallTime::since_epoch(Duration::from_micros(self.micros)) }
    }

    fn write(&mut self, node: usize, value: &'static str) -> Answer {
        let (key, value) = (Key::new(KEY), Bytes::from_static(value.as_bytes()));
        let (version, attributes) = (Version::default(), Bytes::new());
        let record = Record { key, value, version, expires_at_ms: 0, flags: Flags::new(3), attributes };
        let quorum = Quorum::new(1, 3).unwrap();
        let host = &mut NetHost { net: &mut self.net, node };
        let now = Now { micros: self.micros, wall: WallTime::since_epoch(Duration::from_micros(self.micros)) };
        self.members[node].write(now, 0, record, quorum, host).unwrap();
        self.net.answers.pop_front().expect("this node's own copy is enough").1
    }

    /// Delivers everything that is on its way, in an order of chance.
    fn deliver(&mut self, random: &mut Random) {
        while !self.net.sent.is_empty() {
            let next = random.below(self.net.sent.len());
            let (from, to, id, operation) = self.net.sent.swap_remove(next);
            self.micros += 10;
            let now = self.now();
            if let Operation::Write(record) = &operation {
                self.observers[to].admit(now.wall, record).unwrap();
            }
            let outcome = apply(&mut self.net.stored[to], &operation);
            let (host, peer) = (&mut NetHost { net: &mut self.net, node: from }, NodeIndex(to as u8));
            let hash = operation.key().hash();
            self.members[from].replied(now, peer, id, hash, outcome.borrowed(), None).unwrap();
            self.members[from].carry_out(now, host);
        }
    }

    fn read(&mut self, node: usize, random: &mut Random) -> Answer {
        let (now, quorum) = (self.now(), Quorum::new(3, 3).unwrap());
        let host = &mut NetHost { net: &mut self.net, node };
        self.members[node].read(now, 1, Key::new(KEY), Want::Value, quorum, host).unwrap();
        self.deliver(random);
        self.net.answers.pop_front().expect("all replicas answer").1
    }
}

#[test]
fn the_second_of_two_writes_fifty_microseconds_apart_is_read() {
    let mut random = Random::announced("pairs");
    let mut trio = Trio::new();
    let mut order: BTreeMap<(usize, usize), u32> = BTreeMap::new();
    for pair in 0..100_000 {
        trio.micros += random.between(1_u64, 5_000);
        let first = random.below(NODES);
        let second = (first + random.between(1, NODES - 1)) % NODES;
        trio.net.stored = Default::default();
        assert_eq!(trio.write(first, "first").result, Ok(Outcome::Applied));
        trio.micros += 50;
        assert_eq!(trio.write(second, "second").result, Ok(Outcome::Applied));
        *order.entry((first, second)).or_default() += 1;
        trio.deliver(&mut random);
        let answer = trio.read(random.below(NODES), &mut random);
        let Ok(Outcome::Found(found)) = answer.result else { panic!("pair {pair}: {answer:?}") };
        assert_eq!(found.value.as_deref(), Some(&b"second"[..]), "pair {pair}, through {first} and {second}");
    }
    assert_eq!(order.len(), NODES * (NODES - 1), "through every two nodes");
}

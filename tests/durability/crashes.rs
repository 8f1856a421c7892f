//! What was acknowledged survives every end of the process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use koltso_testkit::client::{put_bytes, request_bytes};
use koltso_testkit::{Client, Random, Server, entity, volume};

/// One write to a key: the sequence number, and whether it was a DELETE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Write {
    sequence: u64,
    deletes: bool,
}

impl Write {
    const NONE: Write = Write { sequence: 0, deletes: true };

    fn value(self, key: &str) -> Option<Vec<u8>> {
        if self.deletes {
            return None;
        }
        let mut random =
            Random::seeded(self.sequence.wrapping_mul(31).wrapping_add(u64::from(key.as_bytes()[key.len() - 1])));
        let padding = match self.sequence % 50 {
            0 => 120_000,
            1..=5 => 9_000,
            _ => random.below(1500),
        };
        let mut value = format!("{key} {} ", self.sequence).into_bytes();
        value.extend_from_slice(&random.bytes(padding));
        Some(value)
    }
}

/// What one writer knows of its own keys: the last acknowledged write, and those after it that may
/// or may not have happened.
struct Ledger {
    name: String,
    sequence: u64,
    keys: BTreeMap<String, Vec<Write>>,
}

impl Ledger {
    fn new(name: usize) -> Ledger {
        let keys = (0..150).map(|index| (format!("writer{name}/{index:03}"), vec![Write::NONE])).collect();
        Ledger { name: format!("writer{name}"), sequence: 0, keys }
    }

    /// Writes until the connection ends; counts acknowledgements in `acknowledged`.
    fn write_until_it_ends(&mut self, server: std::net::SocketAddr, random: &mut Random, acknowledged: &AtomicU64) {
        let Ok(mut client) = Client::connect(server) else { return };
        loop {
            let (mut bytes, mut sent) = (Vec::new(), Vec::new());
            for _ in 0..*random.choose(&[1, 1, 4, 32]) {
                self.sequence += 1;
                let key = format!("{}/{:03}", self.name, random.below(150));
                let write = Write { sequence: self.sequence, deletes: random.one_in(6) };
                match write.value(&key) {
                    Some(value) => bytes.extend_from_slice(&put_bytes(&key, &value)),
                    None => bytes.extend_from_slice(&request_bytes("DELETE", &entity(&key), &[], None)),
                }
                self.keys.get_mut(&key).unwrap().push(write);
                sent.push((key, write));
            }
            if client.send(&bytes).is_err() {
                return;
            }
            for (key, write) in sent {
                let Ok(Some(answer)) = client.try_read("PUT") else { return };
                let expected = if write.deletes { 202 } else { 201 };
                assert_eq!(answer.status, expected, "{key}: {}", answer.text());
                self.keys.get_mut(&key).unwrap().retain(|other| other.sequence >= write.sequence);
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Each key holds the last acknowledged write or one that was in flight after it; from now on,
    /// that one.
    fn verify(&mut self, client: &mut Client, when: &str) {
        for (key, writes) in &mut self.keys {
            let found = client.value(key);
            let Some(write) = writes.iter().find(|write| write.value(key) == found) else {
                let shown = found.map(|value| String::from_utf8_lossy(&value[..value.len().min(40)]).into_owned());
                panic!("{when}: {key} has {shown:?}, acknowledged and in flight: {writes:?}");
            };
            *writes = vec![*write];
        }
    }
}

/// Rounds of load from four writers, each ended in its middle by `end`; after each, every ledger is
/// verified.
fn rounds_of_load(test: &str, flags: &str, rounds: usize, end: fn(&mut Server, &mut Random)) {
    let mut random = Random::announced(test);
    let mut server = Server::fresh(flags);
    let mut ledgers: Vec<Ledger> = (0..4).map(Ledger::new).collect();
    let total = AtomicU64::new(0);
    for round in 0..rounds {
        let address = server.address();
        std::thread::scope(|scope| {
            for ledger in &mut ledgers {
                let mut random = random.fork();
                let total = &total;
                scope.spawn(move || ledger.write_until_it_ends(address, &mut random, total));
            }
            std::thread::sleep(Duration::from_millis(u64::try_from(random.between(50, 700)).unwrap()));
            end(&mut server, &mut random);
        });
        server.start_again();
        let mut client = server.connect();
        for ledger in &mut ledgers {
            ledger.verify(&mut client, &format!("{flags}, round {round}"));
        }
    }
    println!("{test} ({flags}): {} acknowledged writes in {rounds} rounds", total.load(Ordering::Relaxed));
    assert!(total.load(Ordering::Relaxed) > 100, "too little was written to say anything");
    assert_eq!(server.storage_figure("damaged_records"), 0, "killing damages nothing");
}

#[test]
fn what_was_acknowledged_survives_kill_9_with_sync_os() {
    rounds_of_load("kill_9_with_sync_os", "--sync os", volume(7, 100), |server, _| server.kill());
}

#[test]
fn what_was_acknowledged_survives_kill_9_with_sync_always() {
    rounds_of_load("kill_9_with_sync_always", "--sync always", volume(7, 100), |server, _| server.kill());
}

#[test]
fn what_was_acknowledged_survives_kill_9_with_sync_every_50_ms() {
    rounds_of_load("kill_9_with_sync_50ms", "--sync 50ms", volume(4, 50), |server, _| server.kill());
}

#[test]
fn what_was_acknowledged_survives_kill_9_during_start_and_during_drain() {
    rounds_of_load("kill_9_during_start_and_drain", "", volume(5, 50), |server, random| {
        if random.one_in(2) {
            server.signal(libc::SIGTERM);
            std::thread::sleep(Duration::from_micros(u64::try_from(random.below(30_000)).unwrap()));
        }
        server.kill();
        for _ in 0..3 {
            server.start_and_kill(Duration::from_micros(u64::try_from(random.below(120_000)).unwrap()));
        }
    });
}

#[test]
fn what_was_acknowledged_survives_sigterm_under_load() {
    rounds_of_load("sigterm_under_load", "", volume(4, 50), |server, _| server.terminate());
}

//! Random runs: writes with any number of replicas, and faults of all kinds beside them. When the
//! faults are over, all replicas become equal without any read, with what was acknowledged.
//!
//! `KOLTSO_TEST_LONG=1` makes it fifty runs; `KOLTSO_SEED` repeats one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use koltso_testkit::cluster::{Cluster, Quorum, Records};
use koltso_testkit::random::{asked_seed, seed};
use koltso_testkit::{Random, files, volume};

use crate::{CONVERGED_WITHIN, three};

const NODES: usize = 3;
const KEYS: u64 = 60;
const STEPS: u32 = 40;
const QUORUMS: [Quorum; 5] = [(2, 3), (2, 3), (3, 3), (2, 2), (1, 3)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Paused,
    Ended,
}

struct Run {
    cluster: Cluster,
    random: Random,
    states: [State; NODES],
    /// What each key may have in the end.
    possible: BTreeMap<Vec<u8>, BTreeSet<Option<Vec<u8>>>>,
    /// Whether a node has lost something that it had confirmed: two that do so at once may be all.
    has_lost: bool,
    writes: u32,
    did: Vec<String>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let cluster = three();
        let (random, states, possible) = (Random::seeded(seed), [State::Running; NODES], BTreeMap::new());
        Self { cluster, random, states, possible, has_lost: false, writes: 0, did: Vec::new() }
    }

    fn did(&mut self, what: String) {
        self.did.push(what);
    }

    fn of(&self, state: State) -> Vec<usize> {
        (0..NODES).filter(|&index| self.states[index] == state).collect()
    }

    /// A write by one of the nodes that answer; who is not answered does not know what came of it.
    fn write(&mut self) {
        let running = self.of(State::Running);
        let Some(&node) = (!running.is_empty()).then(|| self.random.choose(&running)) else { return };
        let mut client = self.cluster.client(node).patience(Duration::from_secs(30));
        for _ in 0..self.random.between(1, 30) {
            self.writes += 1;
            let key = format!("key{:02}", self.random.below(KEYS)).into_bytes();
            let quorum = *self.random.choose(&QUORUMS);
            let possible = self.possible.entry(key.clone()).or_insert_with(|| [None].into());
            let (value, answer) = if self.random.one_in(4) {
                (None, client.delete_of(&key, quorum))
            } else {
                let value = format!("{} {}", self.writes, "x".repeat(self.random.below(300))).into_bytes();
                let answer = client.put_of(&key, &value, quorum);
                (Some(value), answer)
            };
            // What one of three confirms can be lost with it.
            let lasts = quorum.0 * 2 > quorum.1;
            if matches!(answer.status, 201 | 202) && lasts {
                possible.clear();
            } else {
                assert!([201, 202, 503, 504].contains(&answer.status), "{} {}", answer.status, answer.text());
            }
            possible.insert(value);
        }
        // A write that was not confirmed is older than one by another node from another millisecond.
        std::thread::sleep(Duration::from_millis(3));
    }

    /// A value whose time is soon over: in the end it is absent, or what came after it is there.
    fn write_for_a_moment(&mut self) {
        let running = self.of(State::Running);
        let Some(&node) = running.first() else { return };
        let key = format!("key{:02}", self.random.below(KEYS)).into_bytes();
        let target = format!("/v0/entity?id={}&ttl=1500&ack=2&from=3", String::from_utf8_lossy(&key));
        let mut client = self.cluster.client(node).patience(Duration::from_secs(30));
        let answer = client.request("PUT", &target, &[], Some(b"for a moment"));
        let possible = self.possible.entry(key).or_insert_with(|| [None].into());
        if answer.status == 201 {
            possible.clear();
        }
        possible.insert(None);
    }

    fn end(&mut self, index: usize) {
        if self.states[index] == State::Paused {
            self.cluster.resume(index);
        }
        if self.states[index] != State::Ended {
            self.cluster.kill(index);
        }
        self.states[index] = State::Ended;
    }

    fn fault(&mut self) {
        let index = self.random.below(NODES);
        match self.random.below(10) {
            0..3 => {
                self.did(format!("kill {index}"));
                self.end(index);
            }
            3 if self.states[index] == State::Running => {
                self.did(format!("pause {index}"));
                self.cluster.pause(index);
                self.states[index] = State::Paused;
            }
            4 => {
                self.did(format!("kill {index}, its hints are lost"));
                self.end(index);
                let _ = std::fs::remove_dir_all(self.cluster.hints(index));
            }
            5 | 6 if !self.has_lost && self.all_are_whole() => {
                self.has_lost = true;
                self.end(index);
                if self.random.one_in(2) {
                    self.did(format!("kill {index}, its folder is empty"));
                    std::fs::remove_dir_all(self.cluster.data(index)).unwrap();
                } else {
                    self.damage(index);
                }
            }
            7 if self.states[index] == State::Running => {
                self.did(format!("end {index}"));
                self.cluster.terminate(index);
                self.states[index] = State::Ended;
            }
            _ => {
                self.did(format!("{index} is well"));
                self.heal(index);
            }
        }
    }

    /// Bits flip in a stopped node's logs.
    fn damage(&mut self, index: usize) {
        let logs = files::with_extension(self.cluster.data(index), "log");
        assert!(!logs.is_empty(), "a node that was whole has no log");
        for _ in 0..self.random.between(1, 5) {
            let log = self.random.choose(&logs).clone();
            let bytes = std::fs::read(&log).unwrap();
            let written = bytes.iter().rposition(|&byte| byte != 0).unwrap_or(0) as u64 + 1;
            let at = self.random.below(written);
            self.did(format!("kill {index}, a bit flips at {at} of {}", log.display()));
            files::flip(&log, at, 1 << self.random.below(8_u8));
        }
    }

    fn heal(&mut self, index: usize) {
        match self.states[index] {
            State::Running => return,
            State::Paused => self.cluster.resume(index),
            State::Ended => self.cluster.start(index),
        }
        self.states[index] = State::Running;
    }

    fn all_are_whole(&self) -> bool {
        self.of(State::Running).len() == NODES
            && (0..NODES).all(|index| self.cluster.status(index)["standing"] == "whole")
    }

    /// What is wrong, if anything is.
    fn wrong(&self) -> Result<(), String> {
        for index in 0..NODES {
            let status = self.cluster.status(index);
            if status["standing"] != "whole" {
                return Err(format!("node {index} is {}", status["standing"]));
            }
        }
        let holdings: Vec<Records> = (0..NODES).map(|index| self.cluster.records(index, "key")).collect();
        for (key, possible) in &self.possible {
            let values: Vec<Option<&Vec<u8>>> = holdings.iter().map(|records| records.get(key)).collect();
            let there: BTreeSet<&Vec<u8>> = values.iter().copied().flatten().collect();
            let name = String::from_utf8_lossy(key);
            let copies = values.iter().flatten().count();
            let value = match (there.len(), copies) {
                (0, _) => None,
                (1, 2..) => Some(there.into_iter().next().unwrap().clone()),
                _ => return Err(format!("{name}: {values:?}")),
            };
            if !possible.contains(&value) {
                return Err(format!("{name} has {value:?} everywhere, and may have {possible:?}"));
            }
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            match self.random.below(10) {
                0..5 => self.write(),
                5 => self.write_for_a_moment(),
                6..9 => self.fault(),
                _ => std::thread::sleep(Duration::from_millis(self.random.below(1_500))),
            }
        }
        for index in 0..NODES {
            self.heal(index);
        }
        let began = Instant::now();
        loop {
            match self.wrong() {
                Ok(()) => return Ok(()),
                Err(wrong) if began.elapsed() > CONVERGED_WITHIN => return Err(wrong),
                Err(_) => std::thread::sleep(Duration::from_millis(500)),
            }
        }
    }
}

#[test]
fn every_random_run_converges() {
    let first = seed("every_random_run_converges");
    let count = if asked_seed().is_some() { 1 } else { volume(2, 50) };
    for seed in first..first + count {
        let mut run = Run::new(seed);
        let began = Instant::now();
        if let Err(wrong) = run.run() {
            let logs: Vec<String> = (0..NODES).map(|index| run.cluster.log(index)).collect();
            panic!("KOLTSO_SEED={seed}: {wrong}\n{}\n{}", run.did.join("\n"), logs.join("\n---\n"));
        }
        println!("KOLTSO_SEED={seed}: {} writes, {} faults, {:?}", run.writes, run.did.len(), began.elapsed());
    }
}

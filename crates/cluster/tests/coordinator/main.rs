//! The coordinator's promises, one scenario each.
//!
//! A script line is an event, and after `->` all that the coordinator does about it, in any order.
//! Nodes are named by their rank for the key: with 2/3, the replicas are A, B and C. Values are
//! named by their versions. Pings are left out, except by `ping`.
//!
//! ```text
//! up B C                             there are connections
//! lost B                             the connection has ended
//! failed B                           its oldest request was not sent
//! pong B
//! A: applied, newer 9, full, broken, rebuilding, behind  a reply to the oldest request of that node
//! A: has 5, deleted 5, nothing, damaged
//! again B: applied                   one more reply to the last one replied to
//! put 2/3 at 50, delete, get, head
//! in flight 1                        so many operations are there
//! why B Stale, C Damaged             what was wrong with answers, at the last shortage
//! wait 10                            10 ms pass, with a tick every ms
//! finish                             the node stops
//! stage Copying                      the move from A, B and C to B, C and D goes on
//! replace B                          B has left, and another node is in its place, learned at once
//! ```

#![allow(missing_docs, clippy::unwrap_used)]

mod ailing_peers;
mod moving;
mod reads;
mod rebuilding;
mod writes;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use koltso_cluster::Now;
use koltso_cluster::coordinator::{Action, Coordinator, Full, RequestId, Settings};
use koltso_cluster::membership::Membership;
use koltso_cluster::placement::{NodeIndex, NodeSet, Topology};
use koltso_cluster::plan::{BATCHES, Stage};
use koltso_model::{
    Flags, Found, Key, KeyHash, NodeId, Operation, Outcome, Quorum, Record, Refused, Tombstone, Version, WallTime, Want,
};

const KEY: Bytes = Bytes::from_static(b"planet");
/// What every value carries.
const ATTRIBUTES: Bytes = Bytes::from_static(&[1, 4, b't', b'e', b'x', b't']);
/// What a replica says of itself: a key has had three replicas.
const FLAGS: Flags = Flags::new(3);
const DEADLINE_MS: u64 = 1000;

struct Scene {
    coordinator: Coordinator,
    ranked: Vec<NodeIndex>,
    topology: Arc<Topology>,
    micros: u64,
    tokens: u64,
    waiting: BTreeMap<char, VecDeque<(RequestId, Operation<Bytes>)>>,
    last: BTreeMap<char, (RequestId, Operation<Bytes>)>,
    actions: Vec<Action>,
    /// What was wrong with the answers that were of no use, at the last shortage.
    useless: Vec<String>,
    pings: bool,
    /// The last ping of each.
    pinged: BTreeMap<char, RequestId>,
}

fn version(clock: u64) -> Version {
    Version::new(clock, 0)
}

fn value(version: Version) -> Bytes {
    Bytes::from(format!("value {}", version.clock))
}

impl Scene {
    /// `nodes` nodes, of which this one is that of rank `me`.
    fn new(nodes: usize, me: char, in_flight_max: usize) -> Self {
        let names: Vec<String> = (0..nodes).map(|node| format!("http://10.0.0.{node}:1337")).collect();
        let any = Topology::new(&names, &names[0]).unwrap();
        let ranked = any.readers(KeyHash::of(&KEY), nodes as u8).nodes.to_vec();
        let name = any.name(ranked[me as usize - 'A' as usize]);
        let topology = Arc::new(Topology::new(&names, name).unwrap());
        let settings = Settings { deadline_micros: DEADLINE_MS * 1000, in_flight_max, in_flight_bytes_max: 64 << 20 };
        let coordinator = Coordinator::new(topology.clone(), settings);
        Self {
            coordinator,
            ranked,
            topology,
            micros: 0,
            tokens: 0,
            waiting: BTreeMap::new(),
            last: BTreeMap::new(),
            actions: Vec::new(),
            useless: Vec::new(),
            pings: false,
            pinged: BTreeMap::new(),
        }
    }

    /// Four nodes, of which A, B and C hold data, and B, C and D are to.
    fn moving(me: char) -> Self {
        let mut scene = Self::new(4, me, 64);
        let set = |letters: &str| letters.chars().map(|letter| scene.node(letter)).collect();
        let all = scene.topology.membership();
        let mut members = all.planned(set("ABC")).unwrap();
        for stage in [Stage::Copying, Stage::Joint, Stage::Moved] {
            members = members.advanced(&every_batch(stage)).unwrap();
        }
        members = members.planned(set("BCD")).unwrap();
        scene.change(members);
        scene
    }

    fn change(&mut self, members: Membership) {
        self.topology = Arc::new(self.topology.followed_by(Arc::new(members)));
        self.coordinator.adopt(self.now(), self.topology.clone(), &mut self.actions);
    }

    /// Learns at once that a node has left, and that another one has its place and is a replica.
    fn replace(&mut self, letter: char) {
        let place = self.node(letter);
        let all = self.topology.membership();
        let moved = |members: Membership, to| {
            let stages = [Stage::Copying, Stage::Joint, Stage::Moved].map(every_batch);
            stages.iter().fold(members.planned(to).unwrap(), |members, stage| members.advanced(stage).unwrap())
        };
        let others = all.holders().without(NodeSet::default().with(place));
        let without = moved((**all).clone(), others).left(place).unwrap();
        let replaced = (0..1000).map(|other| {
            let joined = without.joined(NodeId(9), &format!("http://10.0.1.{other}:1337"), "").unwrap();
            moved(joined, all.holders())
        });
        let is_replica = |members: &Membership| {
            let topology = self.topology.followed_by(Arc::new(members.clone()));
            topology.readers(KeyHash::of(&KEY), 3).nodes.contains(&place)
        };
        let members = replaced.into_iter().find(is_replica).unwrap();
        self.change(members);
    }

    fn now(&self) -> Now {
        Now { micros: self.micros, wall: WallTime::from_ms(self.micros / 1000) }
    }

    fn node(&self, letter: char) -> NodeIndex {
        self.ranked[letter as usize - 'A' as usize]
    }

    fn letter(&self, node: NodeIndex) -> char {
        (b'A' + self.ranked.iter().position(|&ranked| ranked == node).unwrap() as u8) as char
    }

    fn begin(&mut self, what: &str, counts: &str, clock: u64) -> Result<(), Full> {
        let (ack, from) = counts.split_once('/').unwrap();
        let quorum = Quorum::new(ack.parse().unwrap(), from.parse().unwrap()).unwrap();
        self.tokens += 1;
        let (now, token) = (self.now(), self.tokens);
        let want = if what == "head" { Want::Version } else { Want::Value };
        if matches!(what, "get" | "head") {
            return self.coordinator.read(now, token, Key::new(KEY), want, quorum, &mut self.actions);
        }
        let (version, tombstone) = (version(clock), what == "delete");
        let value = if tombstone { Bytes::new() } else { value(version) };
        let flags = Flags::new(quorum.from());
        let flags = if tombstone { flags.tombstone() } else { flags };
        let attributes = if tombstone { Bytes::new() } else { ATTRIBUTES };
        let record = Record { key: Key::new(KEY), value, version, expires_at_ms: 0, flags, attributes };
        self.coordinator.write(now, token, record, quorum, &mut self.actions)
    }

    fn reply(&mut self, letter: char, words: &[&str], again: bool) {
        let (id, operation) = if again {
            self.last[&letter].clone()
        } else {
            let waiting = self.waiting.get_mut(&letter).and_then(VecDeque::pop_front);
            waiting.unwrap_or_else(|| panic!("nothing was asked of {letter}"))
        };
        self.last.insert(letter, (id, operation.clone()));
        let number = || version(words[1].parse().unwrap());
        let outcome = match words[0] {
            "applied" => Outcome::Applied,
            "newer" => Outcome::Superseded(number()),
            "full" => Outcome::Refused(Refused::DiskFull),
            "broken" => Outcome::Refused(Refused::Failed),
            "rebuilding" => Outcome::Refused(Refused::Rebuilding),
            "behind" => Outcome::Refused(Refused::Behind),
            "nothing" => Outcome::Absent(None),
            "deleted" => Outcome::Absent(Some(Tombstone { version: number(), flags: FLAGS })),
            "damaged" => Outcome::Damaged,
            "has" => {
                let value = value(number());
                let wanted = matches!(operation, Operation::Read { want: Want::Value, .. });
                Outcome::Found(Found {
                    version: number(),
                    expires_at_ms: 0,
                    flags: FLAGS,
                    attributes: ATTRIBUTES,
                    value_len: value.len() as u32,
                    value: wanted.then_some(value),
                })
            }
            other => panic!("{other} is no reply"),
        };
        let (now, node) = (self.now(), self.node(letter));
        self.coordinator.replied(now, node, id, outcome, &mut self.actions);
    }

    /// Gives the writes that are done again their versions: one above what a replica had.
    fn renew(&mut self) {
        let (renewals, others) =
            std::mem::take(&mut self.actions).into_iter().partition(|action| matches!(action, Action::Renew { .. }));
        self.actions = others;
        for action in renewals {
            let Action::Renew { id, above } = action else { unreachable!("partitioned just now") };
            self.coordinator.renew(self.now(), id, version(above.clock + 1), &mut self.actions);
        }
    }

    fn event(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let letters: Vec<char> = words[1..].iter().filter_map(|word| word.chars().next()).collect();
        let now = self.now();
        match words[0] {
            "up" => letters.iter().for_each(|&letter| self.coordinator.connected(now, self.node(letter))),
            "lost" => {
                let node = self.node(letters[0]);
                self.waiting.remove(&letters[0]);
                self.coordinator.lost(now, node, &mut self.actions);
            }
            "failed" => {
                let (id, _) = self.waiting.get_mut(&letters[0]).unwrap().pop_front().unwrap();
                self.coordinator.failed(now, self.node(letters[0]), id, &mut self.actions);
            }
            "pong" => {
                let id = self.pinged[&letters[0]];
                self.coordinator.probed(now, self.node(letters[0]), id);
            }
            "wait" => {
                for _ in 0..words[1].parse().unwrap() {
                    self.micros += 1000;
                    self.coordinator.tick(self.now(), &mut self.actions);
                }
            }
            "in" => assert_eq!(self.coordinator.in_flight(), words[2].parse().unwrap(), "{line}"),
            "why" => assert_eq!(self.useless.join(", "), words[1..].join(" "), "{line}"),
            "stage" => {
                let all = [Stage::Copying, Stage::Joint, Stage::Moved];
                let stage = all.into_iter().find(|stage| format!("{stage:?}") == words[1]).unwrap();
                let members = self.topology.membership().advanced(&every_batch(stage)).unwrap();
                self.change(members);
            }
            "replace" => self.replace(letters[0]),
            "finish" => self.coordinator.finish(&mut self.actions),
            "ping" => self.pings = true,
            "again" => self.reply(letters[0], &words[2..], true),
            "put" | "delete" | "get" | "head" => {
                let clock = words.get(3).map_or(50, |clock| clock.parse().unwrap());
                self.begin(words[0], words[1], clock).unwrap();
            }
            node => self.reply(node.chars().next().unwrap(), &words[1..], false),
        }
    }

    /// What was done since the last call.
    fn done(&mut self) -> Vec<String> {
        let mut done = Vec::new();
        self.renew();
        for action in std::mem::take(&mut self.actions) {
            done.push(match action {
                Action::Send { to, id, operation } => {
                    let letter = self.letter(to);
                    self.waiting.entry(letter).or_default().push_back((id, operation.clone()));
                    match (operation, id.0 as u8) {
                        (Operation::Write(record), 0) => format!("write {letter} {}", record.version.clock),
                        (Operation::Write(record), 1) => format!("renew {letter} {}", record.version.clock),
                        (Operation::Write(record), _) if record.flags.is_tombstone() => {
                            assert_eq!(record.flags, FLAGS.tombstone(), "a repair passes the flags on");
                            format!("repair {letter} deleted {}", record.version.clock)
                        }
                        (Operation::Write(record), _) => {
                            assert_eq!(record.value, value(record.version), "a repair brings the version's own value");
                            assert_eq!((record.flags, &record.attributes), (FLAGS, &ATTRIBUTES));
                            format!("repair {letter} {}", record.version.clock)
                        }
                        (Operation::Read { want: Want::Value, .. }, 2) => format!("fetch {letter}"),
                        (Operation::Read { want: Want::Value, .. }, _) => format!("value {letter}"),
                        (Operation::Read { want: Want::Version, .. }, _) => format!("version {letter}"),
                    }
                }
                Action::Renew { .. } => unreachable!("given their versions just now"),
                Action::Probe { to, id } => {
                    self.pinged.insert(self.letter(to), id);
                    if !self.pings {
                        continue;
                    }
                    format!("ping {}", self.letter(to))
                }
                Action::Hint { to, record } => format!("hint {} {}", self.letter(to), record.version.clock),
                Action::Answer { token, answer } => {
                    assert!(token <= self.tokens);
                    match answer.result {
                        Ok(Outcome::Applied) => "written".to_owned(),
                        Ok(Outcome::Absent(_)) => "absent".to_owned(),
                        Ok(Outcome::Found(Found { version, value: None, attributes, .. })) => {
                            assert_eq!(attributes, ATTRIBUTES);
                            format!("version is {}", version.clock)
                        }
                        Ok(Outcome::Found(Found { version, value: Some(found), attributes, .. })) => {
                            assert_eq!((found, attributes), (value(version), ATTRIBUTES));
                            format!("found {}", version.clock)
                        }
                        Ok(outcome) => panic!("{outcome:?} is no answer"),
                        Err(shortage) => {
                            let mut missing: Vec<_> = shortage.missing.iter().map(|&n| self.letter(n)).collect();
                            missing.sort_unstable();
                            let useless =
                                shortage.useless.iter().map(|&(n, why)| format!("{} {why:?}", self.letter(n)));
                            self.useless = useless.collect();
                            self.useless.sort_unstable();
                            let missing: String = missing.into_iter().collect();
                            let full = if shortage.disk_full { " disk full" } else { "" };
                            format!("needs {} misses {missing}{full}", shortage.needed)
                        }
                    }
                }
            });
        }
        done.sort();
        done
    }
}

fn every_batch(stage: Stage) -> Vec<(usize, Stage)> {
    (0..BATCHES).map(|batch| (batch, stage)).collect()
}

/// Plays a script to a coordinator that is A of `nodes` nodes, or another.
fn play_as(me: char, nodes: usize, script: &str) {
    play_in(Scene::new(nodes, me, 64), script);
}

fn play_moving_as(me: char, script: &str) {
    play_in(Scene::moving(me), script);
}

fn play_moving(script: &str) {
    play_moving_as('A', script);
}

fn play_in(mut scene: Scene, script: &str) {
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (event, expected) = line.split_once("->").unwrap_or((line, ""));
        scene.event(event.trim());
        let mut expected: Vec<&str> = expected.split(',').map(str::trim).filter(|text| !text.is_empty()).collect();
        expected.sort_unstable();
        assert_eq!(scene.done(), expected, "at: {line}");
    }
}

fn play(nodes: usize, script: &str) {
    play_as('A', nodes, script);
}

//! Clients: what they ask, of whom, and what is made of their answers.

use bytes::Bytes;
use koltso_cluster::coordinator::Answer;
use koltso_model::{Flags, Found, Key, Outcome, Quorum, Record, Version, Want};

use super::check::{Failure, Op, What, value_of};
use super::plan::Mode;
use super::world::{Event, GRACE, MS, SECOND, Work, World, quorum};

impl World {
    fn pick_quorum(&mut self) -> Quorum {
        if matches!(self.plan.mode, Mode::Available | Mode::Steady) {
            return if self.plan.ailing_max == 2 { quorum(3, 5) } else { quorum(2, 3) };
        }
        let nodes = self.plan.from_max;
        let usual = self.plan.writes_only || self.random.below(10) < 7;
        let from = if usual { nodes.min(3) } else { self.random.between(1, nodes) };
        let ack = if self.random.below(10) < 8 { from / 2 + 1 } else { self.random.between(1, from) };
        quorum(ack, from)
    }

    pub fn invoke(&mut self, client: Option<usize>, node: usize, key: usize, what: What, quorum: Quorum) -> usize {
        self.invoke_at(self.now, client, node, key, what, quorum)
    }

    pub fn invoke_at(
        &mut self,
        at: u64,
        client: Option<usize>,
        node: usize,
        key: usize,
        what: What,
        quorum: Quorum,
    ) -> usize {
        let excused = self.nodes[node].ailing > 0 || self.now < self.nodes[node].well_at;
        let token = self.history.invoke(Op {
            client,
            node,
            key,
            what,
            ack: quorum.ack(),
            from: quorum.from(),
            invoked: self.now,
            begun: None,
            ended: None,
            abandoned: false,
            floor: Version::default(),
            expires_at_ms: 0,
            weak: false,
            blind: false,
            version: Version::default(),
            first: None,
            excused,
            unsure: false,
        });
        self.say(Some(key), || format!("{token} begins at {node}: {what:?} {quorum:?}"));
        self.nodes[node].open.insert(token);
        self.on(node, at, Work::Begin(token));
        token
    }

    pub fn client(&mut self, client: usize) {
        if self.now >= self.clients_stop {
            return;
        }
        let live: Vec<usize> = (0..self.plan.nodes).filter(|&node| self.nodes[node].up).collect();
        if live.is_empty() {
            let at = self.now + 10 * MS;
            return self.at(at, Event::Client(client));
        }
        let node = *self.random.choose(&live);
        let key = self.random.below(self.plan.keys);
        let what = self.pick_what();
        let quorum = self.pick_quorum();
        self.invoke(Some(client), node, key, what, quorum);
    }

    fn pick_what(&mut self) -> What {
        match self.random.below(if self.plan.writes_only { 11 } else { 20 }) {
            // Deletes are what long runs are about.
            4..9 if self.plan.exchanges => What::Delete,
            0..9 => What::Put,
            9 | 10 => What::Delete,
            11 => What::Get(Want::Version),
            _ => What::Get(Want::Value),
        }
    }

    pub fn arrival(&mut self, node: usize) {
        if self.now >= self.clients_stop {
            return;
        }
        if self.nodes[node].up {
            let key = self.random.below(self.plan.keys);
            let what = self.pick_what();
            self.invoke(None, node, key, what, quorum(2, 3));
        }
        let at = self.now + SECOND / self.plan.rate;
        self.at(at, Event::Arrival(node));
    }

    pub fn client_goes_on(&mut self, client: Option<usize>) {
        if let Some(client) = client {
            let at = self.now + self.random.around(self.plan.think);
            self.at(at, Event::Client(client));
        }
    }

    pub fn begin(&mut self, node: usize, token: usize) {
        if self.plan.exchanges {
            self.tick_soon(node);
        }
        let op = &mut self.history.ops[token];
        op.begun = Some(self.now);
        op.blind = self.undoubted == Some(node);
        let (key, counts, client, excused) = (op.key, quorum(op.ack, op.from), op.client, op.excused);
        let (what, name) = (op.what, Key::new(self.keys[key].clone()));
        self.beginning = Some(token);
        let begun = match what {
            What::Get(want) => {
                self.nodes[node].reads += 1;
                self.with_member(node, |member, now, host| member.read(now, token as u64, name, want, counts, host))
            }
            what => {
                let flags = Flags::new(counts.from());
                let (value, flags) = match what {
                    What::Delete => (Bytes::new(), flags.tombstone()),
                    _ => (value_of(token), flags),
                };
                let (version, attributes) = (Version::default(), Bytes::new());
                let expires_at_ms = if flags.is_tombstone() { 0 } else { self.expiry(node) };
                self.history.ops[token].expires_at_ms = expires_at_ms;
                let record = Record { key: name, value, version, expires_at_ms, flags, attributes };
                self.with_member(node, |member, now, host| member.write(now, token as u64, record, counts, host))
            }
        };
        let asked = self.beginning.take().is_none();
        if begun.is_ok() {
            if !asked {
                self.fail("answered by the deadline", Some(key), format!("{token} asks nobody"));
            }
            return;
        }
        self.stats.refused_full += 1;
        if !excused && self.plan.mode == Mode::Steady {
            self.fail("one ailing node costs nothing", Some(key), format!("{token} is refused for want of room"));
        }
        if asked || self.nodes[node].member().coordinator().in_flight() < self.plan.in_flight_max {
            self.fail("bounds", Some(key), format!("{token} was refused with room, or after it was begun"));
        }
        self.history.ops[token].ended = Some(self.now);
        self.nodes[node].open.remove(&token);
        self.client_goes_on(client);
    }

    /// When a new value runs out, in ms; 0 for never. In the runs without exchange all stay.
    fn expiry(&mut self, node: usize) -> u64 {
        let runs_out = self.plan.exchanges && self.random.one_in(5_u64);
        if runs_out { self.clocks(node).wall.ms() + self.random.between(1_000, 100_000) } else { 0 }
    }

    pub fn answered(&mut self, node: usize, token: usize, answer: Answer) {
        let op = self.history.ops[token].clone();
        self.say(Some(op.key), || format!("{token} is answered at {node}: {answer:?}"));
        self.note(6 ^ (token as u64) << 4 ^ u64::from(answer.answered));
        if !op.open() || op.node != node {
            return self.fail("answered once", Some(op.key), format!("{token} at {node}: {answer:?}, {op:?}"));
        }
        self.history.ops[token].ended = Some(self.now);
        self.nodes[node].open.remove(&token);
        self.stats.answered += 1;
        let took = self.now - op.invoked;
        if !op.excused {
            self.stats.latencies.push(took);
        }
        let judged = match (&answer.result, op.what) {
            (Ok(Outcome::Applied), What::Put | What::Delete) => {
                self.look_inside(token, op.ack, self.history.ops[token].version);
                self.history.written(token)
            }
            (Ok(Outcome::Found(Found { version, value, .. })), What::Get(_)) => {
                if op.quorum() {
                    self.look_inside(token, op.from / 2 + 1, *version);
                }
                self.history.found(token, *version, value.as_ref())
            }
            (Ok(Outcome::Absent(_)), What::Get(_)) => {
                let slack = if self.plan.jumps() { 30_000 } else { 1_000 };
                self.history.absent(token, self.now_ms() + slack)
            }
            (Err(shortage), _) => {
                self.stats.not_enough += 1;
                self.history.ops[token].unsure = true;
                let may_be = |missing: usize| self.may_hold(missing, op.key, op.from.into());
                let foreign = shortage.missing.iter().any(|missing| !may_be(missing.at()));
                let alone = matches!(self.plan.mode, Mode::Available | Mode::Steady) && !op.excused;
                let grace = self.healed && op.invoked > self.plan.faults_until + GRACE;
                if foreign || shortage.needed != u32::from(op.ack) {
                    self.fail("says what is missing", Some(op.key), format!("{token}: {shortage:?}"));
                } else if alone {
                    self.fail("one ailing node costs nothing", Some(op.key), format!("{token}: {shortage:?}"));
                } else if grace && !self.scrubs.contains(&token) && !self.finals.contains(&token) {
                    self.fail("a healthy cluster succeeds", Some(op.key), format!("{token}: {shortage:?}"));
                }
                Ok(())
            }
            (Ok(outcome), what) => Err(Failure {
                check: "answered once",
                key: Some(op.key),
                text: format!("{token} was {what:?} and got {outcome:?}"),
            }),
        };
        self.must(judged);
        self.client_goes_on(op.client);
    }

    /// So many of the replicas have this version now, or a newer one.
    fn look_inside(&mut self, token: usize, needed: u8, version: Version) {
        if !self.plan.looks_inside {
            return;
        }
        let op = &self.history.ops[token];
        let key = op.key;
        let replicas = &self.ranked[key][..usize::from(op.from)];
        let have = |&&node: &&usize| self.nodes[node].store.version(&self.keys[key]) >= Some(version);
        let holders = replicas.iter().filter(have).count();
        if holders < usize::from(needed) {
            let text = format!("{token} is answered, and {holders} of {needed} replicas have {version:?}");
            self.fail("enough replicas have it", Some(key), text);
        }
    }
}

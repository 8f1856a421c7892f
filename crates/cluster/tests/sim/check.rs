//! What must be true of the history, judged while it happens.
//!
//! Versions are the serialization order. For each key, `from` and number of replicas there is a
//! *floor*: the newest version that so many replicas of `from` are known to have. An acknowledged
//! write raises it for its `ack`, a quorum read for a quorum. An operation whose `ack` must meet
//! one of these replicas may not fall below the floor at its beginning: (a) a read returns the last
//! acknowledged write or something newer, (b) nor anything older than an earlier quorum read, (c) a
//! write ends with a greater version. (d) Deletes are writes. (e) What is read, repaired or hinted
//! was written by somebody.
//!
//! An answer "absent" has no version. It is taken for the oldest delete at or above the floor,
//! which is the most lenient reading.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use koltso_model::{Record, Version, Want};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Put,
    Delete,
    Get(Want),
}

/// An operation of a client. Its token is its place in the history.
#[derive(Clone, Debug)]
pub struct Op {
    pub client: Option<usize>,
    pub node: usize,
    pub key: usize,
    pub what: What,
    pub ack: u8,
    pub from: u8,
    pub invoked: u64,
    /// When the coordinator got it, by virtual time.
    pub begun: Option<u64>,
    pub ended: Option<u64>,
    /// The client gave up: its node crashed.
    pub abandoned: bool,
    /// The floor when it was invoked.
    pub floor: Version,
    /// When its value runs out, in ms since the Unix epoch; 0 for never.
    pub expires_at_ms: u64,
    /// What it alone was confirmed by is lost: it promises less.
    pub weak: bool,
    /// Its node did not know yet that its folder is an earlier one.
    pub blind: bool,
    /// The version it is written with.
    pub version: Version,
    /// The version that it had before, if it was renewed.
    pub first: Option<Version>,
    /// Its node ailed at some time meanwhile.
    pub excused: bool,
    /// It ended without enough, or never: some replica may have it.
    pub unsure: bool,
}

impl Op {
    pub fn quorum(&self) -> bool {
        self.ack > self.from / 2
    }

    pub fn open(&self) -> bool {
        self.ended.is_none() && !self.abandoned
    }
}

/// A check that did not hold: which, about which key, and how.
#[derive(Clone, Debug)]
pub struct Failure {
    pub check: &'static str,
    pub key: Option<usize>,
    pub text: String,
}

#[derive(Default)]
pub struct History {
    pub ops: Vec<Op>,
    /// `floors[key][from][replicas]`.
    floors: Vec<Vec<Vec<Version>>>,
    /// Versions that quorum reads returned, by key.
    returned: Vec<BTreeSet<Version>>,
    written: HashMap<(usize, Version), (usize, bool)>,
    deletes: Vec<BTreeSet<Version>>,
    /// How many replicas each version is to have, by key.
    froms: Vec<BTreeMap<Version, u8>>,
    /// When the values run out that do, in ms since the Unix epoch, by key.
    expiring: Vec<BTreeMap<Version, u64>>,
    /// The widest `from` that was used, by key.
    pub widest: Vec<u8>,
}

pub fn value_of(token: usize) -> Bytes {
    Bytes::copy_from_slice(&(token as u64).to_le_bytes())
}

impl History {
    pub fn new(keys: usize, nodes: usize) -> Self {
        Self {
            floors: vec![vec![vec![Version::default(); nodes + 1]; nodes + 1]; keys],
            returned: vec![BTreeSet::new(); keys],
            deletes: vec![BTreeSet::new(); keys],
            froms: vec![BTreeMap::new(); keys],
            expiring: vec![BTreeMap::new(); keys],
            widest: vec![0; keys],
            ..Self::default()
        }
    }

    pub fn invoke(&mut self, mut op: Op) -> usize {
        let floors = &self.floors[op.key][usize::from(op.from)];
        let met = usize::from(op.from - op.ack) + 1;
        op.floor = floors[met..].iter().copied().max().unwrap_or_default();
        self.widest[op.key] = self.widest[op.key].max(op.from);
        self.ops.push(op);
        self.ops.len() - 1
    }

    /// A write is sent with this version, for the first time or again.
    pub fn versioned(&mut self, token: usize, version: Version) -> Result<(), Failure> {
        let op = &mut self.ops[token];
        if op.version == version {
            return Ok(());
        }
        let fail = |text| Err(Failure { check: "versions", key: Some(op.key), text });
        if version < op.version {
            return fail(format!("{token} went back from {:?} to {version:?}", op.version));
        }
        if op.version != Version::default() && op.first.replace(op.version).is_some() {
            return fail(format!("{token} was renewed twice"));
        }
        op.version = version;
        let delete = op.what == What::Delete;
        if let Some((other, _)) = self.written.insert((op.key, version), (token, delete)) {
            return fail(format!("{token} and {other} were both written as {version:?}"));
        }
        if delete {
            self.deletes[op.key].insert(version);
        }
        self.froms[op.key].insert(version, op.from);
        if op.expires_at_ms != 0 {
            self.expiring[op.key].insert(version, op.expires_at_ms);
        }
        Ok(())
    }

    /// (e): the record is one that somebody writes; who.
    pub fn writer(&self, key: usize, record: &Record<Bytes>) -> Result<usize, Failure> {
        match self.written.get(&(key, record.version)) {
            Some(&(token, delete))
                if delete == record.flags.is_tombstone() && (delete || record.value == value_of(token))
                    // A repair brings what has run out as a delete.
                    || record.flags.is_tombstone() && self.expiring[key].contains_key(&record.version) =>
            {
                Ok(token)
            }
            other => Err(Failure {
                check: "nobody wrote it",
                key: Some(key),
                text: format!("{record:?}, of this version is known: {other:?}"),
            }),
        }
    }

    /// Whether a node coordinated the write of a version.
    pub fn is_coordinator(&self, key: usize, version: Version, node: usize) -> bool {
        self.written.get(&(key, version)).is_some_and(|&(token, _)| self.ops[token].node == node)
    }

    fn raise(&mut self, key: usize, from: u8, replicas: u8, version: Version) {
        let floor = &mut self.floors[key][usize::from(from)][usize::from(replicas)];
        *floor = version.max(*floor);
    }

    /// Writes whose value was read at two places in the order, with another between them: a write
    /// that was renewed is there twice, and order by version does not notice that.
    pub fn twice(&self) -> u64 {
        let renewed = self.ops.iter().filter_map(|op| Some((&self.returned[op.key], op.first?, op.version)));
        let seen_twice = renewed.filter(|(returned, first, last)| {
            returned.contains(first) && returned.contains(last) && returned.range(first..last).count() > 1
        });
        seen_twice.count() as u64
    }

    pub fn written(&mut self, token: usize) -> Result<(), Failure> {
        let op = &self.ops[token];
        let (key, from, ack, version) = (op.key, op.from, op.ack, op.version);
        if version <= op.floor {
            return Err(Failure {
                check: "a later write is newer",
                key: Some(key),
                text: format!("{token} ended with {version:?}, and {:?} was there before it began", op.floor),
            });
        }
        if !op.weak || op.quorum() && from > 1 {
            self.raise(key, from, ack, version);
        }
        Ok(())
    }

    pub fn found(&mut self, token: usize, version: Version, value: Option<&Bytes>) -> Result<(), Failure> {
        let op = &self.ops[token];
        let (key, from) = (op.key, op.from);
        let fail = |check, text| Err(Failure { check, key: Some(key), text });
        match self.written.get(&(key, version)) {
            Some(&(writer, false)) if value.is_none_or(|value| *value == value_of(writer)) => {}
            other => {
                return fail("nobody wrote it", format!("{token} read {value:?} as {version:?}, known: {other:?}"));
            }
        }
        if op.what == What::Get(Want::Value) && value.is_none() {
            return fail("nobody wrote it", format!("{token} wanted the value and got none"));
        }
        if version < op.floor && !op.blind {
            let text = format!("{token} read {version:?}, and {:?} was there before it began", op.floor);
            return fail("reads do not go back", text);
        }
        if op.quorum() && !op.blind && self.is_of(key, version, from) {
            self.returned[key].insert(version);
            self.raise(key, from, from / 2 + 1, version);
        }
        Ok(())
    }

    /// Whether a version has so many replicas. Where a read brought it to more, they hand it on and
    /// drop it.
    fn is_of(&self, key: usize, version: Version, from: u8) -> bool {
        self.written.get(&(key, version)).is_some_and(|&(token, _)| self.ops[token].from >= from)
    }

    /// A node lost what it had. Of what less than a quorum confirmed, it may have been the last to
    /// have it; `concerns`: whether it was among the replicas of a `from`.
    ///
    /// With a version of one replica goes what it had replaced there. `second_lost`: the only other
    /// replica of what had two lost it before, and was rebuilt from the one that had the newer version.
    pub fn weaken(&mut self, key: usize, second_lost: bool, concerns: impl Fn(usize) -> bool) {
        let alone = self.floors[key][1][1];
        for from in (1..self.floors[key].len()).filter(|&from| concerns(from)) {
            self.floors[key][from][..=(from / 2).max(usize::from(from == 1))].fill(Version::default());
        }
        if concerns(1) && second_lost {
            let replaced = self.floors[key].get_mut(2).into_iter().flatten().filter(|floor| **floor < alone);
            replaced.for_each(|floor| *floor = Version::default());
        }
        for op in self.ops.iter_mut().rev().filter(|op| op.key == key && op.open()) {
            let floors = &self.floors[key][usize::from(op.from)];
            let met = usize::from(op.from - op.ack) + 1;
            op.floor = op.floor.min(floors[met..].iter().copied().max().unwrap_or_default());
            op.weak |= concerns(usize::from(op.from));
        }
    }

    /// The oldest version at or above a floor by which a key is absent.
    fn absent_since(&self, key: usize, floor: Version, now_ms: u64) -> Option<Version> {
        let deleted = self.deletes[key].range(floor..).next().copied();
        let mut expired = self.expiring[key].range(floor..).filter(|(_, at)| **at <= now_ms);
        let expired = expired.next().map(|(&version, _)| version);
        [deleted, expired].into_iter().flatten().min()
    }

    /// The newest version that the replicas have of a key, in the end; the default for none.
    pub fn ends_with(&self, key: usize, found: Version, now_ms: u64) -> Result<(), Failure> {
        let floors = self.floors[key].iter().flatten().copied();
        let floor = floors.max().unwrap_or_default();
        if found >= floor || self.absent_since(key, floor, now_ms).is_some() && found == Version::default() {
            return Ok(());
        }
        let text = format!("the replicas end with {found:?}, and {floor:?} was there");
        Err(Failure { check: "nothing is lost", key: Some(key), text })
    }

    pub fn absent(&mut self, token: usize, now_ms: u64) -> Result<(), Failure> {
        let op = &self.ops[token];
        let (key, from, floor, quorum) = (op.key, op.from, op.floor, op.quorum());
        // A later write may have fewer replicas: the others drop what they have of the key then.
        if op.blind || self.froms[key].range(floor..).any(|(_, &narrower)| narrower < from) {
            return Ok(());
        }
        if floor == Version::default() {
            return Ok(());
        }
        let Some(delete) = self.absent_since(key, floor, now_ms) else {
            return Err(Failure {
                check: "reads do not go back",
                key: Some(key),
                text: format!("{token} found nothing, and {floor:?} was there before it began"),
            });
        };
        if quorum && self.is_of(key, delete, from) {
            self.raise(key, from, from / 2 + 1, delete);
        }
        Ok(())
    }
}

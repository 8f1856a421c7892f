//! What must be true of the history, judged while it happens.
//!
//! Versions are the serialization order. For each key and `from`, the *floor* is the newest version that an operation with a
//! quorum was told about: the final version of an acknowledged write, or the version that a read returned. A quorum
//! operation that begins later may not fall below the floor at its beginning:
//! (a) a read returns the last acknowledged write or something newer, (b) nor anything older than an earlier read, (c) a
//! write ends with a greater version. (d) Deletes are writes. (e) What is read, repaired or hinted was written by somebody.
//!
//! An answer "absent" has no version. It is taken for the oldest delete at or above the floor, which is the most lenient
//! reading.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use koltso_cluster::message::{Record, Want};
use koltso_storage::Version;

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
    /// The version it is written with.
    pub version: Version,
    pub renewals: u32,
    /// Its node ailed at some time meanwhile.
    pub excused: bool,
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
    /// `floors[key][from]`.
    floors: Vec<Vec<Version>>,
    written: HashMap<(usize, Version), (usize, bool)>,
    deletes: Vec<BTreeSet<Version>>,
    /// The widest `from` that was used, by key.
    pub widest: Vec<u8>,
}

pub fn value_of(token: usize) -> Bytes {
    Bytes::copy_from_slice(&(token as u64).to_le_bytes())
}

impl History {
    pub fn new(keys: usize, nodes: usize) -> Self {
        Self {
            floors: vec![vec![Version::default(); nodes + 1]; keys],
            deletes: vec![BTreeSet::new(); keys],
            widest: vec![0; keys],
            ..Self::default()
        }
    }

    pub fn invoke(&mut self, mut op: Op) -> usize {
        op.floor = self.floors[op.key][usize::from(op.from)];
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
        op.renewals += u32::from(op.version != Version::default());
        if op.renewals > 1 {
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
        Ok(())
    }

    /// (e): the record is one that somebody writes; who.
    pub fn writer(&self, key: usize, record: &Record) -> Result<usize, Failure> {
        match self.written.get(&(key, record.version)) {
            Some(&(token, delete)) if delete == record.tombstone && (delete || record.value == value_of(token)) => {
                Ok(token)
            }
            other => Err(Failure {
                check: "nobody wrote it",
                key: Some(key),
                text: format!("{record:?}, of this version is known: {other:?}"),
            }),
        }
    }

    fn raise(&mut self, key: usize, from: u8, version: Version) {
        let floor = &mut self.floors[key][usize::from(from)];
        *floor = version.max(*floor);
    }

    pub fn written(&mut self, token: usize) -> Result<(), Failure> {
        let op = &self.ops[token];
        let (key, from, version) = (op.key, op.from, op.version);
        if !op.quorum() {
            return Ok(());
        }
        if version <= op.floor {
            return Err(Failure {
                check: "a later write is newer",
                key: Some(key),
                text: format!("{token} ended with {version:?}, and {:?} was there before it began", op.floor),
            });
        }
        self.raise(key, from, version);
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
        if !op.quorum() {
            return Ok(());
        }
        if version < op.floor {
            let text = format!("{token} read {version:?}, and {:?} was there before it began", op.floor);
            return fail("reads do not go back", text);
        }
        self.raise(key, from, version);
        Ok(())
    }

    pub fn absent(&mut self, token: usize) -> Result<(), Failure> {
        let op = &self.ops[token];
        let (key, from, floor) = (op.key, op.from, op.floor);
        if !op.quorum() || floor == Version::default() {
            return Ok(());
        }
        let Some(&delete) = self.deletes[key].range(floor..).next() else {
            return Err(Failure {
                check: "reads do not go back",
                key: Some(key),
                text: format!("{token} found nothing, and {floor:?} was there before it began"),
            });
        };
        self.raise(key, from, delete);
        Ok(())
    }
}

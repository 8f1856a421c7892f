//! A node's storage: what survives a crash.

use std::collections::BTreeMap;

use bytes::Bytes;
use koltso_model::{Found, Outcome, Record, Refused, Tombstone, Version, Want};
use koltso_storage::{Applied, Env, Lookup, Options, Store, Stored, SyncMode, Value, Writer};
use tempfile::TempDir;

use super::holdings::is_absent;
use super::plan::{Mutation, Storage};

/// The real time at which all runs begin, in ms since the Unix epoch.
pub const EPOCH_MS: u64 = 1_700_000_000_000;

#[derive(Clone, Debug)]
pub struct Slot {
    record: Record<Bytes>,
    damaged: bool,
    /// What stood before, and until when: for a mutation.
    before: (u64, Option<Record<Bytes>>),
}

pub enum SimStore {
    /// Applies by the same rule as the real one: the newest version wins, equal versions are the
    /// same write (which repairs a damaged record), deletes are remembered, the version of a
    /// damaged record is known.
    Memory(BTreeMap<Bytes, Slot>),
    Real(Box<Real>),
}

pub struct Real {
    // In this order: the writer goes before its store, the folder last.
    open: Option<(Writer, Store)>,
    /// As recovery found it.
    newest_clock: u64,
    folder: TempDir,
}

/// An environment in which no time passes for the engine.
struct Stopped;

impl Env for Stopped {
    fn now_ms(&self) -> u64 {
        EPOCH_MS
    }
}

fn options(folder: &TempDir) -> Options {
    Options {
        sync: SyncMode::Os,
        segment_size: 1 << 20,
        value_max: 64 << 10,
        // Background work goes by real time, of which a run has none.
        agreed_after: None,
        env: std::sync::Arc::new(Stopped),
        ..Options::new(folder.path())
    }
}

impl SimStore {
    pub fn new(storage: Storage) -> Self {
        match storage {
            Storage::Memory => Self::Memory(BTreeMap::new()),
            Storage::Real => {
                let mut real = Real { open: None, newest_clock: 0, folder: tempfile::tempdir().unwrap() };
                real.reopen();
                Self::Real(Box::new(real))
            }
        }
    }

    /// The process has ended and begun again.
    pub fn reopen(&mut self) {
        if let Self::Real(real) = self {
            real.reopen();
        }
    }

    /// The version that stands, whether its value is readable or not.
    pub fn version(&self, key: &[u8]) -> Option<Version> {
        match self {
            Self::Memory(map) => map.get(key).map(|slot| slot.record.version),
            Self::Real(real) => real.version(key),
        }
    }

    pub fn record(&self, key: &[u8]) -> Option<&Record<Bytes>> {
        match self {
            Self::Memory(map) => map.get(key).map(|slot| &slot.record),
            Self::Real(_) => None,
        }
    }

    /// The newest record of each key; none of the real engine.
    pub fn records(&self) -> impl Iterator<Item = &Record<Bytes>> {
        let map = match self {
            Self::Memory(map) => Some(map),
            Self::Real(_) => None,
        };
        map.into_iter().flat_map(BTreeMap::values).map(|slot| &slot.record)
    }

    pub fn remove(&mut self, key: &[u8]) {
        if let Self::Memory(map) = self {
            map.remove(key);
        }
    }

    /// What is on its disk now.
    pub fn copy(&self) -> Self {
        match self {
            Self::Memory(map) => Self::Memory(map.clone()),
            Self::Real(_) => panic!("nobody copies the folder of the real engine"),
        }
    }

    /// The newest clock in it, which a clock goes on above after a restart.
    pub fn newest_clock(&self) -> u64 {
        match self {
            Self::Memory(map) => map.values().map(|slot| slot.record.version.clock).max().unwrap_or(0),
            Self::Real(real) => real.newest_clock,
        }
    }

    pub fn is_damaged(&self, key: &[u8]) -> bool {
        matches!(self, Self::Memory(map) if map.get(key).is_some_and(|slot| slot.damaged))
    }

    pub fn damage(&mut self, key: &[u8]) {
        if let Self::Memory(map) = self
            && let Some(slot) = map.get_mut(key)
        {
            slot.damaged = true;
        }
    }

    /// Forgets what was written at or after this moment. (Of each key, one version before the last
    /// is known.)
    pub fn forget(&mut self, since: u64) {
        let Self::Memory(map) = self else {
            return;
        };
        for slot in map.values_mut().filter(|slot| slot.before.0 >= since) {
            if let Some(before) = slot.before.1.take() {
                slot.record = before;
            }
        }
    }

    pub fn write(&mut self, record: &Record<Bytes>, now: u64, mutation: Mutation) -> Outcome<Bytes> {
        let map = match self {
            Self::Memory(map) => map,
            Self::Real(real) => return real.write(record),
        };
        if mutation == Mutation::NoTombstones && record.flags.is_tombstone() {
            map.remove(record.key.bytes());
            return Outcome::Applied;
        }
        if let Some(slot) = map.get(record.key.bytes())
            && slot.record.version > record.version
            && mutation != Mutation::OlderOverNewer
        {
            return Outcome::Superseded(slot.record.version);
        }
        let before = map.remove(record.key.bytes()).map(|slot| slot.record);
        map.insert(record.key.shared().clone(), Slot { record: record.clone(), damaged: false, before: (now, before) });
        Outcome::Applied
    }

    pub fn read(&self, key: &[u8], want: Want, now_ms: u64) -> Outcome<Bytes> {
        let map = match self {
            Self::Memory(map) => map,
            Self::Real(real) => return real.read(key, want),
        };
        match map.get(key) {
            None => Outcome::Absent(None),
            Some(slot) if slot.damaged => Outcome::Damaged,
            Some(slot) if is_absent(&slot.record, now_ms) => {
                Outcome::Absent(Some(Tombstone { version: slot.record.version, flags: slot.record.flags }))
            }
            Some(slot) => Outcome::Found(Found {
                version: slot.record.version,
                expires_at_ms: slot.record.expires_at_ms,
                flags: slot.record.flags,
                attributes: slot.record.attributes.clone(),
                value_len: slot.record.value.len() as u32,
                value: (want == Want::Value).then(|| slot.record.value.clone()),
            }),
        }
    }

    pub fn keys(&self) -> Vec<Bytes> {
        match self {
            Self::Memory(map) => map.keys().cloned().collect(),
            Self::Real(_) => Vec::new(),
        }
    }
}

impl Real {
    fn reopen(&mut self) {
        if let Some((writer, store)) = self.open.take() {
            drop(writer);
            drop(store);
        }
        let (store, recovered) = Store::open(options(&self.folder)).unwrap();
        self.newest_clock = recovered.newest_clock;
        self.open = Some((store.writer().unwrap(), store));
    }

    fn store(&self) -> &Store {
        &self.open.as_ref().unwrap().1
    }

    fn version(&self, key: &[u8]) -> Option<Version> {
        self.store().get(key, EPOCH_MS, |found| match found {
            Lookup::Found(found) => Some(found.version),
            Lookup::Absent(tombstone) => tombstone.map(|tombstone| tombstone.version),
            Lookup::Damaged => panic!("nothing damages the real engine here"),
        })
    }

    fn write(&mut self, record: &Record<Bytes>) -> Outcome<Bytes> {
        let writer = &mut self.open.as_mut().unwrap().0;
        match writer.apply(&record.borrowed()) {
            Ok(Applied::Newest) => Outcome::Applied,
            Ok(Applied::Superseded(version)) if version > record.version => Outcome::Superseded(version),
            Ok(Applied::Superseded(version)) => {
                assert_eq!(version, record.version);
                Outcome::Applied
            }
            Err(_) => Outcome::Refused(Refused::Failed),
        }
    }

    fn read(&self, key: &[u8], want: Want) -> Outcome<Bytes> {
        self.store().get(key, EPOCH_MS, |found| match found {
            Lookup::Absent(tombstone) => Outcome::Absent(tombstone),
            Lookup::Damaged => Outcome::Damaged,
            Lookup::Found(Stored { version, expires_at_ms, flags, attributes, value }) => {
                let (attributes, value_len) = (Bytes::copy_from_slice(attributes), value.len() as u32);
                let value = match value {
                    Value::Inline(bytes) => Bytes::copy_from_slice(bytes),
                    Value::Large(pin) => Bytes::copy_from_slice(pin.verify().unwrap().as_ref()),
                };
                let value = (want == Want::Value).then_some(value);
                Outcome::Found(Found { version, expires_at_ms, flags, attributes, value_len, value })
            }
        })
    }
}

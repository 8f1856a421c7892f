//! What was written, what was acknowledged, and what a store may therefore hold after a loss of
//! power.

use std::collections::BTreeMap;
use std::sync::Arc;

use koltso_storage::Version;

use crate::common::Seen;

/// A write that was begun.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// `None` for a delete.
    pub value: Option<Arc<[u8]>>,
    /// 0 for never.
    pub expires_at_ms: u64,
}

impl Attempt {
    fn is_absent(&self, now_ms: u64) -> bool {
        self.value.is_none() || (self.expires_at_ms != 0 && self.expires_at_ms <= now_ms)
    }
}

/// The newest version of each key that is sure to be on disk.
pub type Acknowledged = BTreeMap<Vec<u8>, Version>;

/// See the module.
#[derive(Clone, Default)]
pub struct History {
    attempts: BTreeMap<Vec<u8>, BTreeMap<Version, Attempt>>,
    pub acknowledged: Acknowledged,
}

impl History {
    /// A write begins: from now on it may be found.
    pub fn begin(&mut self, key: &[u8], version: Version, attempt: Attempt) {
        self.attempts.entry(key.to_vec()).or_default().insert(version, attempt);
    }

    /// A write is on disk.
    pub fn acknowledge(&mut self, key: &[u8], version: Version) {
        let newest = self.acknowledged.entry(key.to_vec()).or_insert(version);
        *newest = version.max(*newest);
    }

    pub fn keys(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.attempts.keys()
    }

    pub fn attempt(&self, key: &[u8], version: Version) -> Option<&Attempt> {
        self.attempts.get(key)?.get(&version)
    }

    /// Whether a store may show `seen` for a key at `now_ms`, if of it `acknowledged` was on disk;
    /// a sentence if not.
    pub fn judge(&self, key: &[u8], acknowledged: Option<Version>, seen: &Seen, now_ms: u64) -> Result<(), String> {
        match seen {
            Seen::Damaged => Err("it is damaged".into()),
            Seen::Value(version, value) => {
                let Some(attempt) = self.attempt(key, *version) else {
                    return Err(format!("{version:?} was never written"));
                };
                if attempt.value.as_deref() != Some(value) {
                    return Err(format!("{version:?} has another value than was written"));
                }
                if attempt.is_absent(now_ms) {
                    return Err(format!("{version:?} has expired"));
                }
                match acknowledged.filter(|acknowledged| acknowledged > version) {
                    Some(newer) => Err(format!("{version:?} is there, and {newer:?} was on disk")),
                    None => Ok(()),
                }
            }
            Seen::Absent => {
                let Some(acknowledged) = acknowledged else {
                    return Ok(());
                };
                let mut newer = self.attempts.get(key).into_iter().flat_map(|all| all.range(acknowledged..));
                if newer.any(|(_, attempt)| attempt.is_absent(now_ms)) {
                    return Ok(());
                }
                Err(format!("it is gone, and {acknowledged:?} was on disk"))
            }
        }
    }
}

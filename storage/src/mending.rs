//! Damaged records as whoever repairs them has to know them: whose they were, and whether they still
//! stand for their keys.

use koltso_model::{KeyHash, Version};

use crate::damage::Spot;
use crate::digest::leaf_of;
use crate::parts::Parts;

/// Damaged places that are looked at in one go, whether they still stand for their keys.
const LOOKS: usize = 64;

/// A damaged record, which a replica may have whole. The very version repairs it when it is applied
/// again; so does a newer one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedRecord {
    /// `None` where not even the key can be read: it is the one with this version in the leaf.
    pub key: Option<Vec<u8>>,
    /// How many replicas it is to have, 1 to 64.
    pub from: u8,
    /// Its partition, below [`PARTITIONS`](koltso_model::PARTITIONS).
    pub partition: usize,
    /// Its leaf in the digest of the partition, below [`LEAVES`](koltso_model::LEAVES).
    pub leaf: usize,
    /// Its version.
    pub version: Version,
}

enum Found {
    Stands(DamagedRecord),
    Gone,
    /// Nobody knows whose it was, so the index does not name it.
    Unknown,
}

/// The damaged record that has waited longest to be repaired.
pub(crate) fn next(parts: &Parts) -> Option<DamagedRecord> {
    while let Some(spot) = parts.damage.take() {
        if let Found::Stands(record) = look_at(parts, spot) {
            return Some(record);
        }
    }
    None
}

/// Notes which of the damaged places stand for nothing any more, and has the others wait again;
/// looks at some of them.
pub(crate) fn settle(parts: &Parts) {
    for spot in parts.damage.some(LOOKS) {
        match look_at(parts, spot) {
            Found::Gone => parts.damage.repaired(spot),
            Found::Stands(_) => parts.damage.wait_again(spot),
            Found::Unknown => {}
        }
    }
}

fn look_at(parts: &Parts, (sequence, offset): Spot) -> Found {
    let Some(segment) = parts.segments.find(sequence) else { return Found::Gone };
    let record = segment.record(offset).ok().filter(|record| segment.header_intact(offset, record));
    let (hash, damaged) = match record {
        Some(record) => {
            let key_hash = KeyHash::of(record.key());
            let damaged = DamagedRecord {
                key: Some(record.key().to_vec()),
                from: record.flags().from(),
                partition: key_hash.partition(),
                leaf: leaf_of(key_hash),
                version: record.version(),
            };
            (parts.index.hash(record.key()), damaged)
        }
        None => {
            let Some(known) = segment.sidecar().and_then(|sidecar| sidecar.known_at(offset)) else {
                return Found::Unknown;
            };
            let damaged = DamagedRecord {
                key: None,
                from: known.entry.flags.from(),
                partition: known.entry.leaf.partition(),
                leaf: known.entry.leaf.number(),
                version: known.entry.version,
            };
            (known.entry.hash, damaged)
        }
    };
    if parts.index.lock(hash).names(hash, &segment, offset) { Found::Stands(damaged) } else { Found::Gone }
}

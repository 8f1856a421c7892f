//! Encodes steps of a comparison as bytes.

use koltso_model::{ExchangeReply, ExchangeRequest, KEY_MAX, Record, Standing, Told};

use super::super::encode::finish;
use super::super::{EXPIRY_BITS, HEADER};
use super::{ABSENT, EXCHANGE, EXCHANGED, RECORDS_MAX, which};
use crate::replica::Features;

/// Appends a request of a comparison.
///
/// # Panics
/// If it is more than a frame has room for, or a record has no valid key: callers must have checked
/// that.
pub fn encode_exchange(out: &mut Vec<u8>, number: u64, epoch: u64, request: &ExchangeRequest) {
    let at = out.len();
    out.resize(at + HEADER, 0);
    let marks = match request {
        ExchangeRequest::Roots { told, from } => {
            put_told(out, told);
            out.push(*from);
            which::ROOTS
        }
        ExchangeRequest::Leaves { from, byte, partitions } => {
            out.extend_from_slice(&[*from, *byte]);
            put_partitions(out, partitions);
            which::LEAVES
        }
        ExchangeRequest::Items(leaves) => {
            for (partition, leaves) in leaves {
                out.extend_from_slice(&partition.to_le_bytes());
                leaves.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
            }
            which::ITEMS
        }
        ExchangeRequest::Fetch { places, credit } => {
            assert!(places.len() <= RECORDS_MAX, "at most {RECORDS_MAX} places are asked for at once");
            out.extend_from_slice(&credit.to_le_bytes());
            places.iter().for_each(|place| out.extend_from_slice(&place.to_le_bytes()));
            which::FETCH
        }
        ExchangeRequest::Give(records) => {
            assert!(records.len() <= RECORDS_MAX, "at most {RECORDS_MAX} records are given at once");
            records.iter().for_each(|record| put_record(out, record));
            which::GIVE
        }
        ExchangeRequest::Agreed { from, partitions } => {
            out.push(*from);
            put_partitions(out, partitions);
            which::AGREED
        }
    };
    finish(out, at, (number, epoch), EXCHANGE, marks);
}

/// Appends a reply. A record with more than `features`, those that this node has announced, is told
/// as none.
///
/// # Panics
/// In the same cases as [`encode_exchange`].
pub fn encode_exchange_reply(out: &mut Vec<u8>, number: u64, epoch: u64, features: Features, reply: &ExchangeReply) {
    let at = out.len();
    out.resize(at + HEADER, 0);
    let marks = match reply {
        ExchangeReply::Roots { told, roots } => {
            put_told(out, told);
            roots.iter().for_each(|root| out.extend_from_slice(&root.to_le_bytes()));
            which::ROOTS
        }
        ExchangeReply::Leaves(bytes) => {
            out.extend_from_slice(bytes);
            which::LEAVES
        }
        ExchangeReply::Items(partitions) => {
            for items in partitions {
                out.extend_from_slice(&(items.len() as u32).to_le_bytes());
                for item in items {
                    out.extend_from_slice(&item.hash.to_le_bytes());
                    out.extend_from_slice(&item.version.clock.to_le_bytes());
                    out.extend_from_slice(&item.version.node.to_le_bytes());
                    out.push(item.from | if item.absent { ABSENT } else { 0 });
                }
            }
            which::ITEMS
        }
        ExchangeReply::Records(records) => {
            assert!(records.len() <= RECORDS_MAX, "at most {RECORDS_MAX} places were asked for");
            for record in records {
                match record {
                    Some(record) if features.cover(record.flags, &record.attributes) => put_record(out, record),
                    _ => out.extend_from_slice(&[0; 2]),
                }
            }
            which::RECORDS
        }
        ExchangeReply::Given(given) => {
            out.extend(given.iter().map(|&given| u8::from(given)));
            which::GIVEN
        }
        ExchangeReply::Noted => which::NOTED,
        ExchangeReply::NotReady => which::NOT_READY,
    };
    finish(out, at, (number, epoch), EXCHANGED, marks);
}

pub(super) const fn standing_code(standing: Standing) -> u8 {
    match standing {
        Standing::New => 0,
        Standing::Whole => 1,
        Standing::Rebuilding => 2,
    }
}

fn put_told(out: &mut Vec<u8>, told: &Told) {
    out.push(standing_code(told.standing));
    for number in [told.settled, told.forgotten, told.agreed, told.froms] {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

fn put_partitions(out: &mut Vec<u8>, partitions: &[u16]) {
    partitions.iter().for_each(|partition| out.extend_from_slice(&partition.to_le_bytes()));
}

fn put_record<B: AsRef<[u8]>>(out: &mut Vec<u8>, record: &Record<B>) {
    let Record { key, value, version, expires_at_ms, flags, attributes } = record.borrowed();
    let key = key.slice();
    assert!((1..=KEY_MAX).contains(&key.len()), "a key has 1 to {KEY_MAX} bytes, and not {}", key.len());
    assert!(expires_at_ms >> EXPIRY_BITS == 0, "an expiry has {EXPIRY_BITS} bits, and {expires_at_ms} has more");
    out.extend_from_slice(&(key.len() as u16).to_le_bytes());
    out.extend_from_slice(&(attributes.len() as u16).to_le_bytes());
    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    out.extend_from_slice(&version.clock.to_le_bytes());
    out.extend_from_slice(&version.node.to_le_bytes());
    out.extend_from_slice(&flags.bits().to_le_bytes());
    out.extend_from_slice(&expires_at_ms.to_le_bytes()[..6]);
    for part in [key, attributes, value] {
        out.extend_from_slice(part);
    }
}

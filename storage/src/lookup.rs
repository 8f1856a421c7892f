//! What a reader gets: nothing, or everything about a record, with its value verified where it lies
//! or, if that is large, pinned and to be verified.
//!
//! Invariant: what stands before the value was compared with its checksum under the stripe's lock,
//! the value itself before anybody gets its bytes.

use std::sync::Arc;

use koltso_model::{Flags, Key, Tombstone, Version};

use crate::damage::DamageLog;
use crate::index::Locked;
use crate::indexed::IndexedSegment;
use crate::record::Record;

/// Values up to this many bytes are read where they lie, under the stripe's lock; larger ones are
/// pinned.
pub const INLINE_MAX: usize = 16 << 10;

/// What a look-up found.
#[derive(Debug)]
pub enum Lookup<'a> {
    /// No value: never written, deleted or expired. With what is remembered of the delete or of the
    /// expired value.
    Absent(Option<Tombstone>),
    /// The only record of the key is damaged. It was reported and is not served.
    Damaged,
    /// The newest version.
    Found(Stored<'a>),
}

/// A value with everything that is stored beside it.
#[derive(Debug)]
pub struct Stored<'a> {
    /// Its version.
    pub version: Version,
    /// Milliseconds since the Unix epoch; 0 for never.
    pub expires_at_ms: u64,
    /// As written, those without a meaning to this build included.
    pub flags: Flags,
    /// As written; empty for none. Those of a large value are also in [`Unverified::attributes`],
    /// for after the lock.
    pub attributes: &'a [u8],
    /// The value.
    pub value: Value<'a>,
}

/// A value that was found.
#[derive(Debug)]
pub enum Value<'a> {
    /// A small one, verified.
    Inline(&'a [u8]),
    /// A large one, pinned and not verified yet.
    Large(Unverified),
}

impl Value<'_> {
    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Inline(bytes) => bytes.len(),
            Self::Large(pin) => pin.0.len as usize,
        }
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The newest record of a key, for whoever copies it.
#[derive(Debug)]
pub enum Newest<'a> {
    /// There is none.
    None,
    /// It is damaged, which was reported.
    Damaged,
    /// As it was written, verified.
    Record(koltso_model::Record<&'a [u8]>),
}

/// A large value of which nobody has compared the checksum. [`Unverified::verify`] is the only exit
/// of its bytes.
pub struct Unverified(Pinned, Arc<DamageLog>);

impl std::fmt::Debug for Unverified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Unverified").field(&self.0).finish()
    }
}

impl Unverified {
    /// The record's attributes, which are verified already; empty for none.
    #[must_use]
    pub fn attributes(&self) -> &[u8] {
        self.0.attributes()
    }

    /// Compares the checksum (about 0.1 ms a megabyte; hold no lock). `None` if the value is
    /// damaged, which is reported.
    #[must_use]
    pub fn verify(self) -> Option<Pinned> {
        let Self(pin, damage) = self;
        let intact = pin.segment.record(pin.record).is_ok_and(|record| record.value_intact());
        if !intact {
            damage.found(&pin.segment, pin.record);
            return None;
        }
        Some(pin)
    }
}

/// A value in the log that stays where it is while this exists, also when compaction has moved on.
#[derive(Debug)]
pub struct Pinned {
    segment: Arc<IndexedSegment>,
    record: u32,
    start: u32,
    len: u32,
}

impl Pinned {
    /// The record's attributes; empty for none.
    #[must_use]
    pub fn attributes(&self) -> &[u8] {
        self.segment.record(self.record).map_or(&[], |record| record.attributes())
    }
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        &self.segment.tail_bytes(self.start)[..self.len as usize]
    }
}

/// The record at a place that the index names, or named a moment ago and which is held.
pub(crate) fn newest<'a>(damage: &DamageLog, segment: &'a IndexedSegment, offset: u32) -> Newest<'a> {
    let whole = segment.record(offset).ok().filter(|it| segment.header_intact(offset, it) && it.value_intact());
    let Some(record) = whole else {
        damage.found(segment, offset);
        return Newest::Damaged;
    };
    Newest::Record(koltso_model::Record {
        key: Key::new(record.key()),
        value: record.value(),
        version: record.version(),
        expires_at_ms: record.expires_at_ms(),
        flags: record.flags(),
        attributes: record.attributes(),
    })
}

/// What a reader at `now_ms` gets from a record that the index names. The lock of its stripe is
/// held.
#[inline]
pub(crate) fn lookup<'a>(
    damage: &Arc<DamageLog>,
    segment: &'a IndexedSegment,
    offset: u32,
    record: &Record<'a>,
    now_ms: u64,
) -> Lookup<'a> {
    let (version, flags) = (record.version(), record.flags());
    if record.is_absent(now_ms) {
        return Lookup::Absent(Some(Tombstone { version, flags }));
    }
    let bytes = record.value();
    let value = if bytes.len() > INLINE_MAX {
        let start = offset + record.value_start() as u32;
        let pin = Pinned { segment: Locked::pin(segment), record: offset, start, len: bytes.len() as u32 };
        Value::Large(Unverified(pin, damage.clone()))
    } else if record.value_intact() {
        Value::Inline(bytes)
    } else {
        damage.found(segment, offset);
        return Lookup::Damaged;
    };
    let (expires_at_ms, attributes) = (record.expires_at_ms(), record.attributes());
    Lookup::Found(Stored { version, expires_at_ms, flags, attributes, value })
}

//! What a replica is asked to do with a key, and what comes of it.

use bytes::Bytes;

use crate::{Flags, Key, Record, Version};

/// How much of a record a read asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The newest version with its value.
    Value,
    /// Everything but the value.
    Version,
}

/// What a replica is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<B> {
    /// Take this record, unless a newer one is there.
    Write(Record<B>),
    /// Say what is there.
    Read {
        /// Under which key.
        key: Key<B>,
        /// How much of it.
        want: Want,
    },
}

impl<B: AsRef<[u8]>> Operation<B> {
    /// The key that it is about.
    #[must_use]
    #[inline]
    pub const fn key(&self) -> &Key<B> {
        match self {
            Self::Write(record) => &record.key,
            Self::Read { key, .. } => key,
        }
    }

    /// The same operation, its bytes borrowed.
    #[must_use]
    #[inline]
    pub fn borrowed(&self) -> Operation<&[u8]> {
        match self {
            Self::Write(record) => Operation::Write(record.borrowed()),
            Self::Read { key, want } => Operation::Read { key: key.borrowed(), want: *want },
        }
    }
}

/// A value that was found, or all about it but its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<B> {
    /// Its version.
    pub version: Version,
    /// Milliseconds since the Unix epoch; 0 for never.
    pub expires_at_ms: u64,
    /// As stored.
    pub flags: Flags,
    /// As stored; empty for none.
    pub attributes: B,
    /// Bytes of the value, also where the value itself is not here.
    pub value_len: u32,
    /// The value, if it was asked for.
    pub value: Option<B>,
}

impl<B: AsRef<[u8]>> Found<B> {
    /// The same, its bytes borrowed.
    #[must_use]
    #[inline]
    pub fn borrowed(&self) -> Found<&[u8]> {
        Found {
            version: self.version,
            expires_at_ms: self.expires_at_ms,
            flags: self.flags,
            attributes: self.attributes.as_ref(),
            value_len: self.value_len,
            value: self.value.as_ref().map(AsRef::as_ref),
        }
    }
}

/// What is remembered of a value that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// Of the delete, or of the value whose time has run out.
    pub version: Version,
    /// As stored.
    pub flags: Flags,
}

/// What came of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<B> {
    /// The record is the newest of its key now, or was already.
    Applied,
    /// A newer version was there: this one.
    Superseded(Version),
    /// It was not done.
    Refused(Refused),
    /// The key has a value.
    Found(Found<B>),
    /// The key has no value; with what is remembered of one that it had.
    Absent(Option<Tombstone>),
    /// There is a record, and its checksum does not match.
    Damaged,
}

impl<B> Outcome<B> {
    /// The version that a replica says it has.
    #[must_use]
    pub const fn version(&self) -> Option<Version> {
        match self {
            Self::Superseded(version) => Some(*version),
            Self::Found(found) => Some(found.version),
            Self::Absent(Some(tombstone)) => Some(tombstone.version),
            Self::Applied | Self::Refused(_) | Self::Absent(None) | Self::Damaged => None,
        }
    }

    /// The same outcome with its bytes held in another way.
    #[must_use]
    pub fn map<C>(self, mut hold: impl FnMut(B) -> C) -> Outcome<C> {
        match self {
            Self::Applied => Outcome::Applied,
            Self::Superseded(version) => Outcome::Superseded(version),
            Self::Refused(why) => Outcome::Refused(why),
            Self::Absent(tombstone) => Outcome::Absent(tombstone),
            Self::Damaged => Outcome::Damaged,
            Self::Found(found) => Outcome::Found(Found {
                version: found.version,
                expires_at_ms: found.expires_at_ms,
                flags: found.flags,
                attributes: hold(found.attributes),
                value_len: found.value_len,
                value: found.value.map(hold),
            }),
        }
    }
}

impl<B: AsRef<[u8]>> Outcome<B> {
    /// The same outcome, its bytes borrowed.
    #[must_use]
    #[inline]
    pub fn borrowed(&self) -> Outcome<&[u8]> {
        match self {
            Self::Applied => Outcome::Applied,
            Self::Superseded(version) => Outcome::Superseded(*version),
            Self::Refused(why) => Outcome::Refused(*why),
            Self::Absent(tombstone) => Outcome::Absent(*tombstone),
            Self::Damaged => Outcome::Damaged,
            Self::Found(found) => Outcome::Found(found.borrowed()),
        }
    }
}

impl Outcome<&[u8]> {
    /// The same outcome with bytes of its own.
    #[must_use]
    pub fn owned(self) -> Outcome<Bytes> {
        self.map(Bytes::copy_from_slice)
    }
}

/// Why a replica did not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its disk is full; it will be able to when there is room.
    DiskFull,
    /// Its disk failed to sync: it writes nothing until it was started again.
    Failed,
    /// Its disk answered with an error, which may pass.
    DiskError,
    /// It has no file descriptors or no memory left.
    NoResources,
    /// The value is larger than the format allows; it will never take it.
    TooLarge,
    /// It is still starting, or already stopping.
    NotReady,
    /// It may lack what it once confirmed, and does not answer reads until it has compared what it
    /// has with enough others. It takes writes.
    Rebuilding,
    /// Whoever asks does not know of a change of the members, by which the key may have other replicas.
    Behind,
    /// No replica says this: its answer came, and the node that asked has no room for the value.
    Busy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_knows_its_version_and_keeps_everything_when_it_is_owned() {
        let found = Found {
            version: Version::new(5, 1),
            expires_at_ms: 3,
            flags: Flags::new(2),
            attributes: &[1, 0][..],
            value_len: 2,
            value: Some(&b"ab"[..]),
        };
        let outcome = Outcome::Found(found);
        assert_eq!(outcome.version(), Some(Version::new(5, 1)));
        let Outcome::Found(owned) = outcome.owned() else { panic!("still found") };
        assert_eq!((owned.value.as_deref(), &owned.attributes[..]), (Some(&b"ab"[..]), &[1, 0][..]));
        assert_eq!((owned.version, owned.flags, owned.value_len), (found.version, found.flags, 2));
        assert_eq!(owned.borrowed(), found);
        assert_eq!(Outcome::<&[u8]>::Absent(None).version(), None);
    }
}

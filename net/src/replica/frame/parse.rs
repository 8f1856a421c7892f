//! Parses requests and replies from bytes.

use koltso_model::{
    Attributes, Flags, Found, KEY_MAX, Key, KeyHash, Operation, Outcome, Record, Tombstone, Version, Want,
};

use super::{
    ABSENT, APPLIED, DAMAGED, EXPIRY_BITS, FIXED_MAX, FOUND, HEADER, Limits, PING, PONG, Parsed, READ, REFUSED, Reply,
    ReplyFrame, Request, RequestFrame, SUPERSEDED, Violation, WRITE, encode_reply, encode_request, refusal_of,
};

/// A frame whose lengths and checksum have been verified, but none of its other fields.
pub(super) struct Frame<'a> {
    pub(super) number: u64,
    pub(super) key_hash: u64,
    pub(super) epoch: u64,
    pub(super) kind: u8,
    pub(super) marks: u8,
    pub(super) key_len: u16,
    pub(super) node: u16,
    pub(super) flags: u16,
    pub(super) body: &'a [u8],
}

#[inline]
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

#[inline]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[inline]
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The frame at the beginning of `bytes`, with its lengths and checksum verified.
#[inline]
pub(super) fn open(bytes: &[u8], frame_max: usize) -> Parsed<Frame<'_>> {
    if bytes.len() < HEADER {
        return Parsed::Partial { need: HEADER };
    }
    let (len, max) = (u32_at(bytes, 4), frame_max - HEADER);
    if len as usize > max {
        return Parsed::Bad(Violation::TooLong { len, max });
    }
    let key_len = u16_at(bytes, 34);
    if key_len as usize > KEY_MAX {
        return Parsed::Bad(Violation::KeyTooLong(key_len));
    }
    let len = HEADER + len as usize;
    let Some(frame) = bytes.get(..len) else {
        return Parsed::Partial { need: len };
    };
    if crc32c::crc32c(&frame[4..]) != u32_at(frame, 0) {
        return Parsed::Bad(Violation::Checksum);
    }
    let frame = Frame {
        number: u64_at(frame, 8),
        key_hash: u64_at(frame, 16),
        epoch: u64_at(frame, 24),
        kind: frame[32],
        marks: frame[33],
        key_len,
        node: u16_at(frame, 36),
        flags: u16_at(frame, 38),
        body: &frame[HEADER..],
    };
    Parsed::Complete { frame, len }
}

/// Version, expiry, flags and attributes, and the bytes behind the attributes.
struct Dated<'a> {
    version: Version,
    expires_at_ms: u64,
    flags: Flags,
    attributes: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Frame<'a> {
    #[inline]
    fn known_marks(&self, known: u8) -> Result<(), Violation> {
        if self.marks & !known == 0 { Ok(()) } else { Err(Violation::Marks { kind: self.kind, marks: self.marks }) }
    }

    /// Checks that a field that this kind does not have is zero.
    #[inline]
    pub(super) fn zero(&self, field: impl Into<u64>) -> Result<(), Violation> {
        if field.into() == 0 { Ok(()) } else { Err(Violation::NotZero(self.kind)) }
    }

    /// Checks that the body has `len` bytes.
    #[inline]
    fn has(&self, len: usize) -> Result<(), Violation> {
        if self.body.len() == len { Ok(()) } else { Err(Violation::Shape(self.kind)) }
    }

    /// Splits what follows the first `fixed` bytes of a request's body into the key and the rest.
    #[inline]
    fn key(&self, fixed: usize) -> Result<(&'a [u8], &'a [u8]), Violation> {
        if self.key_len == 0 {
            return Err(Violation::EmptyKey(self.kind));
        }
        self.body
            .get(fixed..)
            .and_then(|rest| rest.split_at_checked(self.key_len as usize))
            .ok_or(Violation::Shape(self.kind))
    }

    /// The flags, if the sender announced that it knows them.
    #[inline]
    fn record_flags(&self, limits: Limits) -> Result<Flags, Violation> {
        let flags = Flags::from_bits(self.flags);
        if limits.features.has_flags(flags) { Ok(flags) } else { Err(Violation::UnknownFlags(self.flags)) }
    }

    /// Reads the first 16 bytes of the body, and the attributes at the beginning of `behind`.
    #[inline]
    fn dated(&self, behind: &'a [u8], limits: Limits) -> Result<Dated<'a>, Violation> {
        let (clock, word) = (u64_at(self.body, 0), u64_at(self.body, 8));
        let len = (word >> EXPIRY_BITS) as usize;
        let (attributes, rest) = behind.split_at_checked(len).ok_or(Violation::Shape(self.kind))?;
        if len > 0 {
            check_attributes(attributes, limits)?;
        }
        Ok(Dated {
            version: Version::new(clock, self.node),
            expires_at_ms: word & ((1 << EXPIRY_BITS) - 1),
            flags: self.record_flags(limits)?,
            attributes,
            rest,
        })
    }
}

#[cold]
pub(super) fn check_attributes(bytes: &[u8], limits: Limits) -> Result<(), Violation> {
    let attributes = Attributes::parse(bytes).map_err(Violation::Attributes)?;
    match attributes.iter().find(|(kind, _)| !limits.features.has_attribute(*kind)) {
        None => Ok(()),
        Some((kind, _)) => Err(Violation::UnknownAttribute(kind)),
    }
}

#[inline]
pub(super) fn value_within(value_len: usize, limits: Limits) -> Result<(), Violation> {
    if value_len <= limits.value_max {
        Ok(())
    } else {
        Err(Violation::ValueTooLong { len: value_len, max: limits.value_max })
    }
}

/// Parses the request at the beginning of `bytes`.
#[inline]
#[must_use]
pub fn parse_request(bytes: &[u8], limits: Limits) -> Parsed<RequestFrame<'_>> {
    match open(bytes, limits.request_max()) {
        Parsed::Complete { frame, len } => match request(&frame, limits) {
            Ok(request) => {
                Parsed::Complete { frame: RequestFrame { number: frame.number, epoch: frame.epoch, request }, len }
            }
            Err(violation) => Parsed::Bad(violation),
        },
        Parsed::Partial { need } => Parsed::Partial { need },
        Parsed::Bad(violation) => Parsed::Bad(violation),
    }
}

#[inline]
pub(super) fn request<'a>(frame: &Frame<'a>, limits: Limits) -> Result<Request<'a>, Violation> {
    if !(WRITE..=PING).contains(&frame.kind) {
        return Err(Violation::Kind(frame.kind));
    }
    frame.zero(frame.key_hash)?;
    match frame.kind {
        WRITE => {
            frame.known_marks(0)?;
            let (key, behind) = frame.key(16)?;
            let dated = frame.dated(behind, limits)?;
            value_within(dated.rest.len(), limits)?;
            if dated.flags.is_tombstone() && !dated.rest.is_empty() {
                return Err(Violation::TombstoneWithValue(WRITE));
            }
            Ok(Request::Execute(Operation::Write(Record {
                key: Key::new(key),
                value: dated.rest,
                version: dated.version,
                expires_at_ms: dated.expires_at_ms,
                flags: dated.flags,
                attributes: dated.attributes,
            })))
        }
        READ => {
            frame.known_marks(1)?;
            frame.zero(frame.node | frame.flags)?;
            let (key, _) = frame.key(0)?;
            frame.has(key.len())?;
            let want = if frame.marks == 1 { Want::Value } else { Want::Version };
            Ok(Request::Execute(Operation::Read { key: Key::new(key), want }))
        }
        PING => {
            frame.known_marks(0)?;
            frame.zero(frame.node | frame.flags | frame.key_len)?;
            frame.has(16)?;
            Ok(Request::Ping { wall_ms: u64_at(frame.body, 0), clock: u64_at(frame.body, 8) })
        }
        kind => Err(Violation::Kind(kind)),
    }
}

/// Parses the reply at the beginning of `bytes`.
#[inline]
#[must_use]
pub fn parse_reply(bytes: &[u8], limits: Limits) -> Parsed<ReplyFrame<'_>> {
    match open(bytes, limits.reply_max()) {
        Parsed::Complete { frame, len } => match reply(&frame, limits) {
            Ok(reply) => {
                let Frame { number, epoch, key_hash, .. } = frame;
                Parsed::Complete { frame: ReplyFrame { number, epoch, key_hash: KeyHash(key_hash), reply }, len }
            }
            Err(violation) => Parsed::Bad(violation),
        },
        Parsed::Partial { need } => Parsed::Partial { need },
        Parsed::Bad(violation) => Parsed::Bad(violation),
    }
}

#[inline]
fn reply<'a>(frame: &Frame<'a>, limits: Limits) -> Result<Reply<'a>, Violation> {
    let &Frame { kind, marks, node, body, .. } = frame;
    if !(APPLIED..=PONG).contains(&kind) {
        return Err(Violation::Kind(kind));
    }
    frame.zero(frame.key_len)?;
    let no_record = || frame.zero(node | frame.flags);
    Ok(Reply::Outcome(match kind {
        APPLIED | DAMAGED => {
            frame.known_marks(0)?;
            no_record()?;
            frame.has(0)?;
            if kind == APPLIED { Outcome::Applied } else { Outcome::Damaged }
        }
        SUPERSEDED => {
            frame.known_marks(0)?;
            frame.zero(frame.flags)?;
            frame.has(8)?;
            Outcome::Superseded(Version::new(u64_at(body, 0), node))
        }
        REFUSED => {
            no_record()?;
            frame.has(0)?;
            Outcome::Refused(refusal_of(marks).ok_or(Violation::Marks { kind, marks })?)
        }
        FOUND => Outcome::Found(found(frame, limits)?),
        ABSENT => {
            frame.known_marks(1)?;
            if marks == 1 {
                frame.has(8)?;
                let version = Version::new(u64_at(body, 0), node);
                Outcome::Absent(Some(Tombstone { version, flags: frame.record_flags(limits)? }))
            } else {
                no_record()?;
                frame.has(0)?;
                Outcome::Absent(None)
            }
        }
        PONG => {
            frame.known_marks(0)?;
            no_record()?;
            frame.has(16)?;
            return Ok(Reply::Pong { wall_ms: u64_at(body, 0), clock: u64_at(body, 8) });
        }
        kind => return Err(Violation::Kind(kind)),
    }))
}

#[inline]
fn found<'a>(frame: &Frame<'a>, limits: Limits) -> Result<Found<&'a [u8]>, Violation> {
    frame.known_marks(1)?;
    let (_, behind) = frame.body.split_at_checked(FIXED_MAX).ok_or(Violation::Shape(FOUND))?;
    let value_len = u32_at(frame.body, 16);
    value_within(value_len as usize, limits)?;
    let dated = frame.dated(behind, limits)?;
    let follows = frame.marks == 1;
    if dated.rest.len() != if follows { value_len as usize } else { 0 } {
        return Err(Violation::Shape(FOUND));
    }
    if dated.flags.is_tombstone() {
        return Err(Violation::TombstoneWithValue(FOUND));
    }
    Ok(Found {
        version: dated.version,
        expires_at_ms: dated.expires_at_ms,
        flags: dated.flags,
        attributes: dated.attributes,
        value_len,
        value: follows.then_some(dated.rest),
    })
}

/// Parses any bytes in both directions, checks what must hold of the outcome, and encodes what was
/// parsed again, for fuzzing. Returns how many frames were complete.
///
/// # Panics
/// If something that must hold does not.
#[doc(hidden)]
pub fn fuzz_frames(bytes: &[u8], limits: Limits) -> usize {
    let (mut whole, mut again) = (0, Vec::new());
    let mut rest = bytes;
    while let Some(len) = fuzz_one(rest, parse_request(rest, limits), limits.request_max(), |frame| {
        again.clear();
        encode_request(&mut again, frame.number, frame.epoch, &frame.request);
        assert_eq!(again, rest[..again.len()], "a request has one encoding");
        if let Request::Execute(operation) = &frame.request {
            assert!(limits.features.cover_operation(operation), "what was not announced is refused");
            let key = operation.key();
            assert_eq!(key.hash(), KeyHash::of(key.bytes()));
        }
        again.len()
    }) {
        rest = &rest[len..];
        whole += 1;
    }
    let mut rest = bytes;
    while let Some(len) = fuzz_one(rest, parse_reply(rest, limits), limits.reply_max(), |frame| {
        again.clear();
        encode_reply(&mut again, frame.number, frame.epoch, frame.key_hash, &frame.reply);
        assert_eq!(again, rest[..again.len()], "a reply has one encoding");
        if let Reply::Outcome(outcome) = &frame.reply {
            assert!(limits.features.cover_outcome(outcome), "what was not announced is refused");
        }
        again.len()
    }) {
        rest = &rest[len..];
        whole += 1;
    }
    whole
}

pub(super) fn fuzz_one<T>(
    bytes: &[u8],
    parsed: Parsed<T>,
    max: usize,
    write: impl FnOnce(T) -> usize,
) -> Option<usize> {
    match parsed {
        Parsed::Complete { frame, len } => {
            assert!(len >= HEADER && len <= bytes.len() && len <= max);
            assert_eq!(write(frame), len);
            Some(len)
        }
        Parsed::Partial { need } => {
            assert!(need > bytes.len() && need <= max, "{need}");
            None
        }
        Parsed::Bad(_) => None,
    }
}

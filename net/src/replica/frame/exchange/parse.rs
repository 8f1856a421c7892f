//! Parses steps of a comparison from bytes.

use bytes::Bytes;
use koltso_model::{
    ExchangeReply, ExchangeRequest, Flags, Item, KEY_MAX, Key, LEAVES, LeafSet, NODES_MAX, Operation, PARTITIONS,
    Record, Standing, Told, Version,
};

use super::super::parse::{Frame, check_attributes, fuzz_one, open, request, value_within};
use super::super::{Limits, Parsed, Request, Violation, encode_request};
use super::encode::standing_code;
use super::{
    ABSENT, Asked, EXCHANGE, EXCHANGED, ExchangeFrame, ITEM_BYTES, LEAVES_OF, RECORD_FIXED, RECORDS_MAX,
    encode_exchange, encode_exchange_reply, which,
};

/// Parses the request at the beginning of `bytes`, on a connection for comparing replicas.
#[must_use]
pub fn parse_asked(bytes: &[u8], limits: Limits) -> Parsed<ExchangeFrame<Asked>> {
    parse(bytes, limits, |frame| match frame.kind {
        EXCHANGE => exchange(frame, limits).map(Asked::Exchange),
        _ => request(frame, limits).map(|request| match request {
            Request::Execute(Operation::Write(record)) => Asked::Execute(Operation::Write(record.owned())),
            Request::Execute(Operation::Read { key, want }) => {
                Asked::Execute(Operation::Read { key: key.owned(), want })
            }
            Request::Ping { wall_ms, clock } => Asked::Ping { wall_ms, clock },
        }),
    })
}

/// Parses the reply to a step of a comparison at the beginning of `bytes`.
#[must_use]
pub fn parse_exchange_reply(bytes: &[u8], limits: Limits) -> Parsed<ExchangeFrame<ExchangeReply>> {
    parse(bytes, limits, |frame| match frame.kind {
        EXCHANGED => exchanged(frame, limits),
        kind => Err(Violation::Kind(kind)),
    })
}

fn parse<T>(
    bytes: &[u8],
    limits: Limits,
    read: impl FnOnce(&Frame<'_>) -> Result<T, Violation>,
) -> Parsed<ExchangeFrame<T>> {
    match open(bytes, limits.exchange_max()) {
        Parsed::Complete { frame, len } => match read(&frame) {
            Ok(what) => {
                Parsed::Complete { frame: ExchangeFrame { number: frame.number, epoch: frame.epoch, what }, len }
            }
            Err(violation) => Parsed::Bad(violation),
        },
        Parsed::Partial { need } => Parsed::Partial { need },
        Parsed::Bad(violation) => Parsed::Bad(violation),
    }
}

fn wrong<T>(what: &'static str) -> Result<T, Violation> {
    Err(Violation::Exchange(what))
}

/// Reads a body from its beginning to its end.
struct Body<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Body<'a> {
    fn of(frame: &Frame<'a>) -> Result<Self, Violation> {
        frame.zero(frame.key_hash)?;
        frame.zero(frame.key_len | frame.node | frame.flags)?;
        Ok(Self { bytes: frame.body, at: 0 })
    }

    const fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Violation> {
        if count > self.left() {
            return wrong("ends too early");
        }
        self.at += count;
        Ok(&self.bytes[self.at - count..self.at])
    }

    fn u8(&mut self) -> Result<u8, Violation> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Result<u16, Violation> {
        self.take(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, Violation> {
        self.take(4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    fn u64(&mut self) -> Result<u64, Violation> {
        self.take(8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    }

    fn u48(&mut self) -> Result<u64, Violation> {
        let mut bytes = [0; 8];
        bytes[..6].copy_from_slice(self.take(6)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn end<T>(&self, what: T) -> Result<T, Violation> {
        if self.left() == 0 { Ok(what) } else { wrong("has bytes behind its end") }
    }

    /// How many parts of `size` bytes the rest is, at most `max`.
    fn parts(&self, size: usize, max: usize) -> Result<usize, Violation> {
        let count = self.left() / size;
        if !self.left().is_multiple_of(size) {
            return wrong("has a part that is cut off");
        }
        if count > max {
            return wrong("has more parts than there can be");
        }
        Ok(count)
    }

    fn told(&mut self) -> Result<Told, Violation> {
        let code = self.u8()?;
        let all = [Standing::New, Standing::Whole, Standing::Rebuilding];
        let Some(standing) = all.into_iter().find(|standing| standing_code(*standing) == code) else {
            return wrong("has a standing that there is not");
        };
        let (settled, forgotten, agreed, froms) = (self.u64()?, self.u64()?, self.u64()?, self.u64()?);
        Ok(Told { standing, settled, forgotten, agreed, froms })
    }

    /// A `from`, at least this.
    fn from(&mut self, least: u8) -> Result<u8, Violation> {
        let from = self.u8()?;
        if (least..=NODES_MAX as u8).contains(&from) {
            Ok(from)
        } else {
            wrong("has a number of replicas out of range")
        }
    }

    fn partition(&mut self, last: Option<u16>) -> Result<u16, Violation> {
        let partition = self.u16()?;
        if partition as usize >= PARTITIONS {
            return wrong("has a partition that there is not");
        }
        if last.is_some_and(|last| last >= partition) {
            return wrong("has partitions that do not ascend");
        }
        Ok(partition)
    }

    fn partitions(&mut self) -> Result<Vec<u16>, Violation> {
        let mut partitions: Vec<u16> = Vec::with_capacity(self.parts(2, PARTITIONS)?);
        while self.left() > 0 {
            partitions.push(self.partition(partitions.last().copied())?);
        }
        Ok(partitions)
    }

    /// A record, whose bytes are those of `shared`, which is the body; `None` where there is none.
    fn record(&mut self, shared: &Bytes, limits: Limits) -> Result<Option<Record<Bytes>>, Violation> {
        let key_len = self.u16()?;
        if key_len == 0 {
            return Ok(None);
        }
        if key_len as usize > KEY_MAX {
            return Err(Violation::KeyTooLong(key_len));
        }
        let (attributes_len, value_len) = (self.u16()? as usize, self.u32()? as usize);
        value_within(value_len, limits)?;
        let version = Version::new(self.u64()?, self.u16()?);
        let (flags, expires_at_ms) = (Flags::from_bits(self.u16()?), self.u48()?);
        if !limits.features.has_flags(flags) {
            return Err(Violation::UnknownFlags(flags.bits()));
        }
        let mut part = |len: usize| {
            let at = self.at;
            self.take(len).map(|_| shared.slice(at..at + len))
        };
        let (key, attributes, value) = (part(key_len as usize)?, part(attributes_len)?, part(value_len)?);
        if !attributes.is_empty() {
            check_attributes(&attributes, limits)?;
        }
        if flags.is_tombstone() && !value.is_empty() {
            return wrong("has a tombstone and a value in one");
        }
        Ok(Some(Record { key: Key::new(key), value, version, expires_at_ms, flags, attributes }))
    }

    /// Records up to the end, each of at least `least` bytes.
    fn records(&mut self, least: usize, limits: Limits) -> Result<Vec<Option<Record<Bytes>>>, Violation> {
        // A record holds on to the bytes of all of them, so nobody should keep one for long.
        let shared = Bytes::copy_from_slice(self.bytes);
        let mut records = Vec::with_capacity((self.left() / least).min(RECORDS_MAX));
        while self.left() > 0 {
            if records.len() == RECORDS_MAX {
                return wrong("has more parts than there can be");
            }
            records.push(self.record(&shared, limits)?);
        }
        Ok(records)
    }
}

fn exchange(frame: &Frame<'_>, limits: Limits) -> Result<ExchangeRequest, Violation> {
    let mut body = Body::of(frame)?;
    match frame.marks {
        which::ROOTS => {
            let (told, from) = (body.told()?, body.from(0)?);
            body.end(ExchangeRequest::Roots { told, from })
        }
        which::LEAVES => {
            let (from, byte) = (body.from(1)?, body.u8()?);
            if byte > 7 {
                return wrong("asks for a byte of eight that there is not");
            }
            Ok(ExchangeRequest::Leaves { from, byte, partitions: body.partitions()? })
        }
        which::ITEMS => {
            let mut leaves: Vec<(u16, LeafSet)> = Vec::with_capacity(body.parts(LEAVES_OF, PARTITIONS)?);
            while body.left() > 0 {
                let partition = body.partition(leaves.last().map(|(last, _)| *last))?;
                let mut set = LeafSet::default();
                for word in &mut set {
                    *word = body.u64()?;
                }
                leaves.push((partition, set));
            }
            Ok(ExchangeRequest::Items(leaves))
        }
        which::FETCH => {
            let credit = body.u32()?;
            let mut places: Vec<u32> = Vec::with_capacity(body.parts(4, RECORDS_MAX)?);
            while body.left() > 0 {
                let place = body.u32()?;
                if places.last().is_some_and(|last| *last >= place) {
                    return wrong("has places that do not ascend");
                }
                places.push(place);
            }
            Ok(ExchangeRequest::Fetch { places, credit })
        }
        which::GIVE => {
            let records: Option<Vec<_>> = body.records(RECORD_FIXED, limits)?.into_iter().collect();
            records.map_or_else(
                || wrong("gives no record where one should be"),
                |records| Ok(ExchangeRequest::Give(records)),
            )
        }
        which::AGREED => Ok(ExchangeRequest::Agreed { from: body.from(1)?, partitions: body.partitions()? }),
        marks => Err(Violation::Marks { kind: EXCHANGE, marks }),
    }
}

fn exchanged(frame: &Frame<'_>, limits: Limits) -> Result<ExchangeReply, Violation> {
    let mut body = Body::of(frame)?;
    match frame.marks {
        which::ROOTS => {
            let told = body.told()?;
            let mut roots = Vec::with_capacity(body.parts(8, PARTITIONS)?);
            while body.left() > 0 {
                roots.push(body.u64()?);
            }
            Ok(ExchangeReply::Roots { told, roots })
        }
        which::LEAVES => {
            body.parts(LEAVES, PARTITIONS)?;
            Ok(ExchangeReply::Leaves(Bytes::copy_from_slice(body.bytes)))
        }
        which::ITEMS => {
            let mut partitions = Vec::new();
            while body.left() > 0 {
                if partitions.len() == PARTITIONS {
                    return wrong("has more parts than there can be");
                }
                partitions.push(items(&mut body)?);
            }
            Ok(ExchangeReply::Items(partitions))
        }
        which::RECORDS => Ok(ExchangeReply::Records(body.records(2, limits)?)),
        which::GIVEN => {
            let count = body.parts(1, RECORDS_MAX)?;
            let bytes = body.take(count)?;
            if bytes.iter().any(|byte| *byte > 1) {
                return wrong("says neither yes nor no");
            }
            Ok(ExchangeReply::Given(bytes.iter().map(|byte| *byte == 1).collect()))
        }
        which::NOTED => body.end(ExchangeReply::Noted),
        which::NOT_READY => body.end(ExchangeReply::NotReady),
        marks => Err(Violation::Marks { kind: EXCHANGED, marks }),
    }
}

/// The items of one partition.
fn items(body: &mut Body<'_>) -> Result<Vec<Item>, Violation> {
    let count = body.u32()? as usize;
    if count > body.left() / ITEM_BYTES {
        return wrong("ends too early");
    }
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        let (hash, version) = (body.u32()?, Version::new(body.u64()?, body.u16()?));
        let byte = body.u8()?;
        let from = byte & !ABSENT;
        if !(1..=NODES_MAX as u8).contains(&from) {
            return wrong("has a number of replicas out of range");
        }
        items.push(Item { hash, version, from, absent: byte & ABSENT != 0 });
    }
    Ok(items)
}

/// Parses any bytes in both directions and encodes what was parsed again, for fuzzing. Returns how
/// many frames were complete.
///
/// # Panics
/// If something that must hold does not.
#[doc(hidden)]
pub fn fuzz_exchange(bytes: &[u8], limits: Limits) -> usize {
    let (mut whole, mut again) = (0, Vec::new());
    let mut rest = bytes;
    while let Some(len) = fuzz_one(rest, parse_asked(rest, limits), limits.exchange_max(), |frame| {
        again.clear();
        let (number, epoch) = (frame.number, frame.epoch);
        match &frame.what {
            Asked::Exchange(request) => encode_exchange(&mut again, number, epoch, request),
            Asked::Execute(operation) => {
                encode_request(&mut again, number, epoch, &Request::Execute(operation.borrowed()));
            }
            &Asked::Ping { wall_ms, clock } => {
                encode_request(&mut again, number, epoch, &Request::Ping { wall_ms, clock });
            }
        }
        if let Asked::Exchange(ExchangeRequest::Give(records)) = &frame.what {
            let covers = |record: &Record<Bytes>| limits.features.cover(record.flags, &record.attributes);
            assert!(records.iter().all(covers), "what was not announced is refused");
        }
        assert_eq!(again, rest[..again.len()], "a request has one encoding");
        again.len()
    }) {
        rest = &rest[len..];
        whole += 1;
    }
    let mut rest = bytes;
    while let Some(len) = fuzz_one(rest, parse_exchange_reply(rest, limits), limits.exchange_max(), |frame| {
        again.clear();
        encode_exchange_reply(&mut again, frame.number, frame.epoch, limits.features, &frame.what);
        assert_eq!(again, rest[..again.len()], "a reply has one encoding");
        again.len()
    }) {
        rest = &rest[len..];
        whole += 1;
    }
    whole
}

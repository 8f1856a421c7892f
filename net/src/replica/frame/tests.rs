//! Frames encoded and parsed, cut, with flipped bits, and made up.

use koltso_model::{Flags, Found, Key, Record, Tombstone, Version, Want};
use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { value_max: 300, features: Features::KNOWN };
/// A peer of a later build.
const ALL: Limits = Limits { features: Features(u64::MAX), ..LIMITS };

#[derive(Debug, Clone)]
struct Made {
    kind: u8,
    key: Vec<u8>,
    value: Vec<u8>,
    attributes: Vec<u8>,
    with: bool,
    numbers: [u64; 5],
    node: u16,
    flags: u16,
}

prop_compose! {
    fn attributes()(
        kinds in prop::collection::btree_set(0_u8..48, 0..4),
        bytes in prop::collection::vec(any::<u8>(), 0..127),
    ) -> Vec<u8> {
        let mut out = Vec::new();
        for kind in kinds {
            out.extend_from_slice(&[kind, bytes.len() as u8]);
            out.extend_from_slice(&bytes);
        }
        out
    }
}

prop_compose! {
    fn made()(
        kind in 0_u8..11,
        key in prop::collection::vec(any::<u8>(), 1..80),
        value in prop::collection::vec(any::<u8>(), 0..=300),
        attributes in attributes(),
        with: bool,
        numbers: [u64; 5],
        node: u16,
        flags: u16,
    ) -> Made {
        Made { kind, key, value, attributes, with, numbers, node, flags }
    }
}

impl Made {
    fn version(&self) -> Version {
        Version::new(self.numbers[0], self.node)
    }

    fn expires_at_ms(&self) -> u64 {
        self.numbers[1] >> 16
    }

    /// The flags of the record without that of a tombstone.
    fn flags(&self) -> Flags {
        Flags::from_bits(self.flags & !1)
    }

    fn key_hash(&self) -> KeyHash {
        KeyHash(self.numbers[2])
    }

    fn record(&self, tombstone: bool) -> Record<&[u8]> {
        Record {
            key: Key::new(&self.key),
            value: if tombstone { &[] } else { &self.value },
            version: self.version(),
            expires_at_ms: self.expires_at_ms(),
            flags: if tombstone { self.flags().tombstone() } else { self.flags() },
            attributes: &self.attributes,
        }
    }

    fn found(&self) -> Found<&[u8]> {
        Found {
            version: self.version(),
            expires_at_ms: self.expires_at_ms(),
            flags: self.flags(),
            attributes: &self.attributes,
            value_len: self.value.len() as u32,
            value: self.with.then_some(&self.value),
        }
    }

    fn request(&self) -> Option<Request<'_>> {
        Some(match self.kind {
            0 | 1 => Request::Execute(Operation::Write(self.record(self.kind == 1))),
            2 => {
                let want = if self.with { Want::Value } else { Want::Version };
                Request::Execute(Operation::Read { key: Key::new(&self.key), want })
            }
            3 => Request::Ping { wall_ms: self.numbers[1], clock: self.numbers[2] },
            _ => return None,
        })
    }

    fn reply(&self) -> Reply<'_> {
        let tombstone = || Tombstone { version: self.version(), flags: Flags::from_bits(self.flags) };
        Reply::Outcome(match self.kind {
            4 => Outcome::Applied,
            5 => Outcome::Superseded(self.version()),
            6 => Outcome::Refused(REFUSALS[self.node as usize % REFUSALS.len()]),
            7 => Outcome::Found(self.found()),
            8 => Outcome::Absent(self.with.then(tombstone)),
            9 => Outcome::Damaged,
            _ => return Reply::Pong { wall_ms: self.numbers[1], clock: self.numbers[2] },
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let [_, _, _, number, epoch] = self.numbers;
        match self.request() {
            Some(request) => encode_request(out, number, epoch, &request),
            None => encode_reply(out, number, epoch, self.key_hash(), &self.reply()),
        }
    }

    /// Parses in the direction of this frame; returns its length, how many bytes are needed, or
    /// what is wrong.
    fn parse(&self, bytes: &[u8]) -> Parsed<()> {
        fn forget<T>(parsed: Parsed<T>) -> Parsed<()> {
            match parsed {
                Parsed::Complete { len, .. } => Parsed::Complete { frame: (), len },
                Parsed::Partial { need } => Parsed::Partial { need },
                Parsed::Bad(violation) => Parsed::Bad(violation),
            }
        }
        if self.kind < 4 { forget(parse_request(bytes, ALL)) } else { forget(parse_reply(bytes, ALL)) }
    }
}

proptest! {
    #[test]
    fn there_and_back(made in made(), behind: Vec<u8>) {
        let mut bytes = Vec::new();
        made.encode(&mut bytes);
        let len = bytes.len();
        bytes.extend_from_slice(&behind);
        let [_, _, _, number, epoch] = made.numbers;
        match made.request() {
            Some(request) => {
                let frame = RequestFrame { number, epoch, request };
                prop_assert_eq!(parse_request(&bytes, ALL), Parsed::Complete { frame, len });
                prop_assert!(matches!(parse_reply(&bytes[..len], ALL), Parsed::Bad(_)));
            }
            None => {
                let frame = ReplyFrame { number, epoch, key_hash: made.key_hash(), reply: made.reply() };
                prop_assert_eq!(parse_reply(&bytes, ALL), Parsed::Complete { frame, len });
                prop_assert!(matches!(parse_request(&bytes[..len], ALL), Parsed::Bad(_)));
            }
        }
    }

    #[test]
    fn what_was_not_announced_is_refused(made in made(), features: u64) {
        let mut bytes = Vec::new();
        made.encode(&mut bytes);
        let features = Features(features);
        let limits = Limits { features, ..LIMITS };
        let read = match made.request() {
            Some(request) => parse_request(&bytes, limits).is_complete_as(|frame| frame.request == request),
            None => parse_reply(&bytes, limits).is_complete_as(|frame| frame.reply == made.reply()),
        };
        let announced = match (made.request(), made.reply()) {
            (Some(Request::Execute(operation)), _) => features.cover_operation(&operation),
            (None, Reply::Outcome(outcome)) => features.cover_outcome(&outcome),
            _ => true,
        };
        prop_assert_eq!(read, announced);
    }

    #[test]
    fn cut_anywhere_it_is_partial_and_says_what_it_needs(made in made()) {
        let mut bytes = Vec::new();
        made.encode(&mut bytes);
        for cut in 0..bytes.len() {
            let need = if cut < HEADER { HEADER } else { bytes.len() };
            prop_assert_eq!(made.parse(&bytes[..cut]), Parsed::Partial { need });
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed(made in made(), at: prop::sample::Index, bit in 0..8) {
        let mut bytes = Vec::new();
        made.encode(&mut bytes);
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        match made.parse(&bytes) {
            Parsed::Complete { .. } => prop_assert!(false, "byte {at} does not matter"),
            // The length has grown, within its bound.
            Parsed::Partial { .. } => prop_assert!((4..8).contains(&at)),
            Parsed::Bad(_) => {}
        }
    }

    #[test]
    fn any_bytes_with_a_right_checksum_are_read_or_refused(
        mut bytes in prop::collection::vec(any::<u8>(), HEADER..400),
        small: bool,
    ) {
        let len = (bytes.len() - HEADER) as u32;
        bytes[4..8].copy_from_slice(&len.to_le_bytes());
        if small {
            bytes[32] %= 140;
            bytes[33] %= 3;
            bytes[16..24].fill(0);
            bytes[35] = 0;
            bytes[39] = 0;
            // Attributes of up to 255 bytes, if the body is long enough for them.
            if let Some(byte) = bytes.get_mut(HEADER + 15) {
                *byte = 0;
            }
        }
        let checksum = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        fuzz_frames(&bytes, LIMITS);
    }

    #[test]
    fn split_values_are_the_same_bytes(made in made()) {
        let [_, _, _, number, epoch] = made.numbers;
        let made = Made { with: true, ..made };
        let (record, found, value) = (made.record(false), made.found(), &made.value[..]);
        let (mut whole, mut split) = (Vec::new(), Vec::new());
        encode_request(&mut whole, number, epoch, &Request::Execute(Operation::Write(record)));
        encode_write_head(&mut split, number, epoch, &record);
        split.extend_from_slice(value);
        encode_reply(&mut whole, number, epoch, made.key_hash(), &Reply::Outcome(Outcome::Found(found)));
        encode_found_head(&mut split, number, epoch, made.key_hash(), &Found { value: None, ..found }, value);
        split.extend_from_slice(value);
        prop_assert_eq!(whole, split);
    }
}

impl<T> Parsed<T> {
    /// Whether the frame is complete and is what the test expects.
    fn is_complete_as(&self, expected: impl FnOnce(&T) -> bool) -> bool {
        matches!(self, Self::Complete { frame, .. } if expected(frame))
    }
}

fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = crc32c::crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// A record with the value `value` under the key `k`.
fn written(value: &[u8]) -> Record<&[u8]> {
    let (key, version) = (Key::new(&b"k"[..]), Version::new(1, 2));
    Record { key, value, version, expires_at_ms: 0, flags: Flags::new(1), attributes: &[] }
}

fn write_of(record: Record<&[u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_request(&mut bytes, 1, 1, &Request::Execute(Operation::Write(record)));
    bytes
}

fn read_of_k() -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = Operation::Read { key: Key::new(&b"k"[..]), want: Want::Value };
    encode_request(&mut bytes, 1, 1, &Request::Execute(read));
    bytes
}

fn reply_of(outcome: Outcome<&[u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_reply(&mut bytes, 1, 1, KeyHash(2), &Reply::Outcome(outcome));
    bytes
}

/// A found value of this length, which does not follow.
fn found(value_len: u32) -> Found<&'static [u8]> {
    let (version, flags) = (Version::new(1, 2), Flags::new(1));
    Found { version, expires_at_ms: 0, flags, attributes: &[], value_len, value: None }
}

/// The frame with another byte at a position, and the checksum that belongs to it.
fn with(mut bytes: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    bytes[at] = byte;
    sealed(bytes)
}

#[test]
fn lengths_are_refused_before_anything_is_waited_for() {
    let mut bytes = read_of_k();
    bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let max = LIMITS.request_max() - HEADER;
    assert_eq!(parse_request(&bytes, LIMITS), Parsed::Bad(Violation::TooLong { len: u32::MAX, max }));
    bytes[4..8].copy_from_slice(&100_u32.to_le_bytes());
    bytes[34..36].copy_from_slice(&4097_u16.to_le_bytes());
    assert_eq!(parse_request(&bytes, LIMITS), Parsed::Bad(Violation::KeyTooLong(4097)));
}

#[test]
fn the_longest_of_everything_fits() {
    let (key, value) = (vec![7; KEY_MAX], vec![8; LIMITS.value_max]);
    let mut attributes = Vec::new();
    for kind in 0..8 {
        // 8 times 2 and 126 are the most for which there is room.
        attributes.extend_from_slice(&[kind, 126]);
        attributes.extend_from_slice(&[9; 126]);
    }
    assert_eq!(attributes.len(), ATTRIBUTES_MAX);
    let longest = Record {
        key: Key::new(&key[..]),
        value: &value,
        version: Version::new(u64::MAX, u16::MAX),
        expires_at_ms: (1 << EXPIRY_BITS) - 1,
        flags: Flags::from_bits(u16::MAX - 1),
        attributes: &attributes,
    };
    let bytes = write_of(longest);
    assert!(
        parse_request(&bytes, ALL)
            .is_complete_as(|frame| { frame.request == Request::Execute(Operation::Write(longest)) })
    );
    let value_len = value.len() as u32;
    let longest = Found { attributes: &attributes[..], value_len, value: Some(&value[..]), ..found(0) };
    assert!(
        parse_reply(&reply_of(Outcome::Found(longest)), ALL)
            .is_complete_as(|frame| { frame.reply == Reply::Outcome(Outcome::Found(longest)) })
    );
}

#[test]
fn what_is_wrong_behind_a_right_checksum_is_said() {
    let read = read_of_k();
    let tombstone = Record { flags: Flags::new(1).tombstone(), ..written(b"v") };
    let attributed = |attributes| write_of(Record { attributes, ..written(b"v") });
    for (bytes, expected) in [
        (write_of(written(&[7; 301])), Violation::ValueTooLong { len: 301, max: 300 }),
        (write_of(tombstone), Violation::TombstoneWithValue(WRITE)),
        (with(write_of(written(b"v")), 33, 1), Violation::Marks { kind: WRITE, marks: 1 }),
        (with(write_of(written(b"v")), 39, 1), Violation::UnknownFlags(0x100)),
        // Attributes that are longer than the frame, longer than any may be, malformed, or not
        // announced.
        (with(write_of(written(b"v")), HEADER + 14, 3), Violation::Shape(WRITE)),
        (with(write_of(written(&[0; 300])), HEADER + 15, 0xff), Violation::Shape(WRITE)),
        (attributed(&[1, 2, 0]), Violation::Attributes(AttributeError::Length(1))),
        (attributed(&[2, 0, 1, 0]), Violation::Attributes(AttributeError::Order(1))),
        (attributed(&[1, 0, 3, 0]), Violation::UnknownAttribute(3)),
        (attributed(&[200, 0]), Violation::UnknownAttribute(200)),
        (with(read.clone(), 16, 1), Violation::NotZero(READ)),
        (with(read.clone(), 32, 9), Violation::Kind(9)),
        (with(read.clone(), 33, 2), Violation::Marks { kind: READ, marks: 2 }),
        (with(read.clone(), 34, 0), Violation::EmptyKey(READ)),
        (with(read.clone(), 34, 2), Violation::Shape(READ)),
        (with(read.clone(), 36, 1), Violation::NotZero(READ)),
        (with(read, 38, 1), Violation::NotZero(READ)),
    ] {
        assert_eq!(parse_request(&bytes, LIMITS), Parsed::Bad(expected));
    }
    let long = Limits { value_max: 2000, ..LIMITS };
    let mut bytes = write_of(written(&[0; 1300]));
    bytes[HEADER + 14..HEADER + 16].copy_from_slice(&1025_u16.to_le_bytes());
    let too_long = Violation::Attributes(AttributeError::TooLong(1025));
    assert_eq!(parse_request(&sealed(bytes), long), Parsed::Bad(too_long));

    let said = reply_of;
    let gone = Tombstone { version: Version::new(1, 2), flags: Flags::new(1).tombstone() };
    let buried = Found { flags: Flags::new(1).tombstone(), ..found(5) };
    for (bytes, expected) in [
        (said(Outcome::Found(found(301))), Violation::ValueTooLong { len: 301, max: 300 }),
        (with(said(Outcome::Found(found(5))), 33, 1), Violation::Shape(FOUND)),
        (said(Outcome::Found(buried)), Violation::TombstoneWithValue(FOUND)),
        (said(Outcome::Found(Found { attributes: &[47, 0], ..found(5) })), Violation::UnknownAttribute(47)),
        (with(said(Outcome::Found(found(5))), 39, 0x80), Violation::UnknownFlags(0x8000)),
        (with(said(Outcome::Absent(Some(gone))), 39, 2), Violation::UnknownFlags(0x201)),
        (with(said(Outcome::Absent(Some(gone))), 33, 0), Violation::NotZero(ABSENT)),
        (with(said(Outcome::Absent(None)), 33, 1), Violation::Shape(ABSENT)),
        (with(said(Outcome::Superseded(gone.version)), 38, 1), Violation::NotZero(SUPERSEDED)),
        (with(said(Outcome::Applied), 36, 1), Violation::NotZero(APPLIED)),
        (with(said(Outcome::Applied), 34, 1), Violation::NotZero(APPLIED)),
        (with(said(Outcome::Refused(Refused::Failed)), 33, 9), Violation::Marks { kind: REFUSED, marks: 9 }),
        (with(said(Outcome::Refused(Refused::Failed)), 33, 0), Violation::Marks { kind: REFUSED, marks: 0 }),
    ] {
        assert_eq!(parse_reply(&bytes, LIMITS), Parsed::Bad(expected));
    }
}

#[test]
#[should_panic(expected = "only the node that asks has no room")]
fn no_node_tells_another_that_it_has_no_room_for_its_own_answer() {
    reply_of(Outcome::Refused(Refused::Busy));
}

#[test]
fn a_layout_is_pinned() {
    let mut bytes = Vec::new();
    let record = Record {
        key: Key::new(&b"key"[..]),
        value: &b"value"[..],
        version: Version::new(0x0102_0304_0506_0708, 0x0a0b),
        expires_at_ms: 0x22,
        flags: Flags::new(3).conditional(),
        attributes: &[1, 1, b'x'],
    };
    encode_request(&mut bytes, 0x11, 0x33, &Request::Execute(Operation::Write(record)));
    let mut expected = vec![0; 4];
    expected.extend_from_slice(&27_u32.to_le_bytes());
    expected.extend_from_slice(&[0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x33, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend_from_slice(&[1, 0, 3, 0, 0x0b, 0x0a, 0x0a, 0]);
    expected.extend_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1, 0x22, 0, 0, 0, 0, 0, 3, 0]);
    expected.extend_from_slice(b"key\x01\x01xvalue");
    assert_eq!(bytes, sealed(expected));
}

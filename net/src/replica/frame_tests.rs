//! Frames there and back, cut, flipped, and made up.

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { value_max: 300 };

#[derive(Debug, Clone)]
struct Made {
    kind: u8,
    key: Vec<u8>,
    value: Vec<u8>,
    with: bool,
    numbers: [u64; 4],
    node: u16,
}

prop_compose! {
    fn made()(
        kind in 0_u8..11,
        key in prop::collection::vec(any::<u8>(), 1..80),
        value in prop::collection::vec(any::<u8>(), 0..=300),
        with: bool,
        numbers: [u64; 4],
        node: u16,
    ) -> Made {
        Made { kind, key, value, with, numbers, node }
    }
}

impl Made {
    fn stamp(&self) -> Stamp {
        Stamp { clock: self.numbers[0], node: self.node }
    }

    fn request(&self) -> Option<Request<'_>> {
        let (key, [_, one, two, _]) = (&self.key[..], self.numbers);
        Some(match self.kind {
            0 => Request::Put { key, value: &self.value, version: self.stamp(), expires_at_ms: one },
            1 => Request::Delete { key, version: self.stamp() },
            2 => Request::Read { key, value: self.with },
            3 => Request::Ping { wall_ms: one, clock: two },
            _ => return None,
        })
    }

    fn reply(&self) -> Reply<'_> {
        let reasons = [Refused::DiskFull, Refused::Failed, Refused::TooLarge, Refused::NotReady];
        match self.kind {
            4 => Reply::Applied,
            5 => Reply::Superseded(self.stamp()),
            6 => Reply::Refused(reasons[self.node as usize % 4]),
            7 => Reply::Found {
                version: self.stamp(),
                expires_at_ms: self.numbers[1],
                value_len: self.value.len() as u32,
                value: self.with.then_some(&self.value),
            },
            8 => Reply::Absent(self.with.then_some(self.stamp())),
            9 => Reply::Damaged,
            _ => Reply::Pong { wall_ms: self.numbers[1], clock: self.numbers[2] },
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let number = self.numbers[3];
        match self.request() {
            Some(request) => encode_request(out, number, &request),
            None => encode_reply(out, number, self.numbers[2], &self.reply()),
        }
    }

    /// Parses in the direction of this frame: its length, what is needed, or what is wrong.
    fn parse(&self, bytes: &[u8]) -> Parsed<()> {
        fn forget<T>(parsed: Parsed<T>) -> Parsed<()> {
            match parsed {
                Parsed::Complete { len, .. } => Parsed::Complete { frame: (), len },
                Parsed::Partial { need } => Parsed::Partial { need },
                Parsed::Bad(violation) => Parsed::Bad(violation),
            }
        }
        if self.kind < 4 { forget(parse_request(bytes, LIMITS)) } else { forget(parse_reply(bytes, LIMITS)) }
    }
}

proptest! {
    #[test]
    fn there_and_back(made in made(), behind: Vec<u8>) {
        let mut bytes = Vec::new();
        made.encode(&mut bytes);
        let len = bytes.len();
        bytes.extend_from_slice(&behind);
        match made.request() {
            Some(request) => {
                prop_assert_eq!(parse_request(&bytes, LIMITS), Parsed::Complete { frame: (made.numbers[3], request), len });
                prop_assert!(matches!(parse_reply(&bytes[..len], LIMITS), Parsed::Bad(_)));
            }
            None => {
                let frame = (made.numbers[3], made.numbers[2], made.reply());
                prop_assert_eq!(parse_reply(&bytes, LIMITS), Parsed::Complete { frame, len });
                prop_assert!(matches!(parse_request(&bytes[..len], LIMITS), Parsed::Bad(_)));
            }
        }
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
            bytes[24] %= 140;
            bytes[25] %= 3;
            bytes[16..24].fill(0);
            bytes[27] = 0;
            bytes[30..32].fill(0);
        }
        let checksum = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        fuzz_frames(&bytes, LIMITS);
    }

    #[test]
    fn split_values_are_the_same_bytes(made in made()) {
        let (key, value, stamp, [_, expires, hash, number]) = (&made.key, &made.value, made.stamp(), made.numbers);
        let (mut whole, mut split) = (Vec::new(), Vec::new());
        let request = Request::Put { key, value, version: stamp, expires_at_ms: expires };
        encode_request(&mut whole, number, &request);
        encode_put_head(&mut split, number, key, value, stamp, expires);
        split.extend_from_slice(value);
        let value_len = value.len() as u32;
        let reply = Reply::Found { version: stamp, expires_at_ms: expires, value_len, value: Some(value) };
        encode_reply(&mut whole, number, hash, &reply);
        encode_found_head(&mut split, number, hash, stamp, expires, value);
        split.extend_from_slice(value);
        prop_assert_eq!(whole, split);
    }
}

fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = crc32c::crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn lengths_are_refused_before_anything_is_waited_for() {
    let mut bytes = Vec::new();
    encode_request(&mut bytes, 1, &Request::Read { key: b"k", value: true });
    bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let max = LIMITS.request_max() - HEADER;
    assert_eq!(parse_request(&bytes, LIMITS), Parsed::Bad(Violation::TooLong { len: u32::MAX, max }));
    bytes[4..8].copy_from_slice(&100_u32.to_le_bytes());
    bytes[26..28].copy_from_slice(&4097_u16.to_le_bytes());
    assert_eq!(parse_request(&bytes, LIMITS), Parsed::Bad(Violation::KeyTooLong(4097)));
}

#[test]
fn what_is_wrong_behind_a_right_checksum_is_said() {
    let mut put = Vec::new();
    let version = Stamp { clock: 1, node: 2 };
    encode_request(&mut put, 1, &Request::Put { key: b"k", value: &[7; 301], version, expires_at_ms: 0 });
    let found = |value_len: u32| {
        let mut bytes = Vec::new();
        encode_reply(&mut bytes, 1, 2, &Reply::Found { version, expires_at_ms: 0, value_len, value: None });
        bytes
    };
    let mut read = Vec::new();
    encode_request(&mut read, 1, &Request::Read { key: b"k", value: true });
    let with = |at: usize, byte: u8| {
        let mut bytes = read.clone();
        bytes[at] = byte;
        sealed(bytes)
    };
    for (bytes, expected) in [
        (put, Violation::ValueTooLong { len: 301, max: 300 }),
        (with(16, 1), Violation::NotZero(READ)),
        (with(24, 9), Violation::Kind(9)),
        (with(25, 2), Violation::Flags { kind: READ, flags: 2 }),
        (with(26, 0), Violation::EmptyKey(READ)),
        (with(26, 2), Violation::Shape(READ)),
        (with(28, 1), Violation::NotZero(READ)),
        (with(30, 1), Violation::NotZero(READ)),
    ] {
        assert_eq!(parse_request(&bytes, LIMITS), Parsed::Bad(expected));
    }
    assert_eq!(parse_reply(&found(301), LIMITS), Parsed::Bad(Violation::ValueTooLong { len: 301, max: 300 }));
    let mut short = found(5);
    short[25] = 1;
    assert_eq!(parse_reply(&sealed(short), LIMITS), Parsed::Bad(Violation::Shape(FOUND)));
}

#[test]
fn a_layout_is_pinned() {
    let mut bytes = Vec::new();
    let version = Stamp { clock: 0x0102_0304_0506_0708, node: 0x0a0b };
    encode_request(&mut bytes, 0x11, &Request::Put { key: b"key", value: b"value", version, expires_at_ms: 0x22 });
    let mut expected = vec![0; 4];
    expected.extend_from_slice(&24_u32.to_le_bytes());
    expected.extend_from_slice(&[0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3, 0, 0x0b, 0x0a, 0, 0]);
    expected.extend_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1, 0x22, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend_from_slice(b"keyvalue");
    assert_eq!(bytes, sealed(expected));
}

//! Steps of comparisons encoded and parsed, cut, with flipped bits, at their bounds, and past them.

use koltso_model::{
    Flags, Item, Key, LEAVES, LeafSet, PARTITIONS, Record, Standing, Told, VALUE_MAX_LIMIT, Version, encode_attribute,
};
use proptest::prelude::*;

use super::super::{Features, Parsed, Violation, encode_request, parse_reply, parse_request};
use super::*;
use crate::replica::Request;

const LIMITS: Limits = Limits { value_max: 300, features: Features::KNOWN };

fn standing() -> impl Strategy<Value = Standing> {
    prop::sample::select(vec![Standing::New, Standing::Whole, Standing::Rebuilding])
}

prop_compose! {
    fn told()(standing in standing(), numbers: [u64; 4]) -> Told {
        let [settled, forgotten, agreed, froms] = numbers;
        Told { standing, settled, forgotten, agreed, froms }
    }
}

prop_compose! {
    fn record()(
        key in prop::collection::vec(any::<u8>(), 1..50),
        value in prop::collection::vec(any::<u8>(), 0..=300),
        typed: bool,
        clock: u64,
        node: u16,
        expires in 0_u64..1 << 48,
        from in 1_u8..=64,
        is_tombstone: bool,
    ) -> Record<Bytes> {
        let mut attributes = Vec::new();
        if typed {
            encode_attribute(&mut attributes, koltso_model::Attribute::ContentType, b"text/plain");
        }
        let flags = Flags::new(from);
        Record {
            key: Key::new(Bytes::from(key)),
            value: if is_tombstone { Bytes::new() } else { Bytes::from(value) },
            version: Version::new(clock, node),
            expires_at_ms: expires,
            flags: if is_tombstone { flags.tombstone() } else { flags },
            attributes: Bytes::from(attributes),
        }
    }
}

prop_compose! {
    fn item()(hash: u32, clock: u64, node: u16, from in 1_u8..=64, absent: bool) -> Item {
        Item { hash, version: Version::new(clock, node), from, absent }
    }
}

fn partitions() -> impl Strategy<Value = Vec<u16>> {
    prop::collection::btree_set(0..PARTITIONS as u16, 0..50).prop_map(|set| set.into_iter().collect())
}

fn request() -> impl Strategy<Value = ExchangeRequest> {
    let records = prop::collection::vec(record(), 0..6);
    let places = prop::collection::btree_set(any::<u32>(), 0..50);
    prop_oneof![
        (told(), 0_u8..=64).prop_map(|(told, from)| ExchangeRequest::Roots { told, from }),
        (1_u8..=64, 0_u8..8, partitions()).prop_map(|(from, byte, partitions)| ExchangeRequest::Leaves {
            from,
            byte,
            partitions
        }),
        (partitions(), any::<LeafSet>())
            .prop_map(|(partitions, set)| ExchangeRequest::Items(partitions.into_iter().map(|p| (p, set)).collect())),
        (places, any::<u32>())
            .prop_map(|(places, credit)| ExchangeRequest::Fetch { places: places.into_iter().collect(), credit }),
        records.prop_map(ExchangeRequest::Give),
        (1_u8..=64, partitions()).prop_map(|(from, partitions)| ExchangeRequest::Agreed { from, partitions }),
    ]
}

fn reply() -> impl Strategy<Value = ExchangeReply> {
    let leaves = prop::collection::vec(any::<[u8; 32]>(), 0..8 * 4);
    prop_oneof![
        (told(), prop::collection::vec(any::<u64>(), 0..50))
            .prop_map(|(told, roots)| ExchangeReply::Roots { told, roots }),
        leaves.prop_map(|parts| {
            let whole = parts.len() / 8 * 8;
            ExchangeReply::Leaves(Bytes::from(parts[..whole].concat()))
        }),
        prop::collection::vec(prop::collection::vec(item(), 0..9), 0..9).prop_map(ExchangeReply::Items),
        prop::collection::vec(prop::option::of(record()), 0..6).prop_map(ExchangeReply::Records),
        prop::collection::vec(any::<bool>(), 0..50).prop_map(ExchangeReply::Given),
        Just(ExchangeReply::Noted),
        Just(ExchangeReply::NotReady),
    ]
}

fn asking(request: &ExchangeRequest) -> Vec<u8> {
    let mut out = Vec::new();
    encode_exchange(&mut out, 7, 9, request);
    out
}

fn answering(reply: &ExchangeReply) -> Vec<u8> {
    let mut out = Vec::new();
    encode_exchange_reply(&mut out, 7, 9, Features::KNOWN, reply);
    out
}

/// Both directions with one face: what was read, in the words of `Debug`.
fn read(bytes: &[u8], is_request: bool, limits: Limits) -> Parsed<String> {
    fn said<T: std::fmt::Debug>(parsed: Parsed<T>) -> Parsed<String> {
        match parsed {
            Parsed::Complete { frame, len } => Parsed::Complete { frame: format!("{frame:?}"), len },
            Parsed::Partial { need } => Parsed::Partial { need },
            Parsed::Bad(violation) => Parsed::Bad(violation),
        }
    }
    if is_request { said(parse_asked(bytes, limits)) } else { said(parse_exchange_reply(bytes, limits)) }
}

proptest! {
    #[test]
    fn there_and_back(request in request(), reply in reply(), behind: Vec<u8>) {
        let (mut bytes, what) = (asking(&request), Asked::Exchange(request));
        let len = bytes.len();
        bytes.extend_from_slice(&behind);
        let frame = ExchangeFrame { number: 7, epoch: 9, what };
        prop_assert_eq!(parse_asked(&bytes, LIMITS), Parsed::Complete { frame, len });
        let mut bytes = answering(&reply);
        let len = bytes.len();
        bytes.extend_from_slice(&behind);
        let frame = ExchangeFrame { number: 7, epoch: 9, what: reply };
        prop_assert_eq!(parse_exchange_reply(&bytes, LIMITS), Parsed::Complete { frame, len });
    }

    #[test]
    fn what_is_cut_needs_more_and_a_flipped_bit_is_noticed(
        request in request(),
        reply in reply(),
        is_request: bool,
        at: prop::sample::Index,
        bit in 0_u8..8,
    ) {
        let bytes = if is_request { asking(&request) } else { answering(&reply) };
        let at = at.index(bytes.len());
        match read(&bytes[..at], is_request, LIMITS) {
            Parsed::Partial { need } => prop_assert!(need > at && need <= bytes.len()),
            other => prop_assert!(false, "{:?}", other),
        }
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << bit;
        match read(&flipped, is_request, LIMITS) {
            Parsed::Bad(_) => {}
            // A length that grew.
            Parsed::Partial { need } => prop_assert!((4..8).contains(&at) && need > bytes.len()),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn on_other_connections_they_are_a_violation(request in request(), reply in reply()) {
        let (asked, answered) = (asking(&request), answering(&reply));
        prop_assert_eq!(parse_request(&asked, ALL_LENGTHS), Parsed::Bad(Violation::Kind(EXCHANGE)));
        prop_assert_eq!(parse_reply(&answered, ALL_LENGTHS), Parsed::Bad(Violation::Kind(EXCHANGED)));
        prop_assert_eq!(read(&asked, false, LIMITS), Parsed::Bad(Violation::Kind(EXCHANGE)));
        prop_assert_eq!(read(&answered, true, LIMITS), Parsed::Bad(Violation::Kind(EXCHANGED)));
    }

    #[test]
    fn any_body_is_survived(is_request: bool, marks in 0_u8..9, body: Vec<u8>) {
        let kind = if is_request { EXCHANGE } else { EXCHANGED };
        fuzz_exchange(&frame_of(kind, marks, &body), LIMITS);
    }
}

/// With which no frame of these tests is too long.
const ALL_LENGTHS: Limits = Limits { value_max: 1 << 20, features: Features::KNOWN };

fn frame_of(kind: u8, marks: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    out.extend_from_slice(body);
    super::super::encode::finish(&mut out, 0, (7, 9), kind, marks);
    out
}

/// The frame with these bytes at a place of its body, and a checksum as if that had been meant.
fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[HEADER + at..][..bytes.len()].copy_from_slice(bytes);
    let (kind, marks) = (frame[32], frame[33]);
    super::super::encode::finish(&mut frame, 0, (7, 9), kind, marks);
    frame
}

fn small_record() -> Record<Bytes> {
    Record {
        key: Key::new(Bytes::from_static(b"key")),
        value: Bytes::from_static(b"value"),
        version: Version::new(5, 1),
        expires_at_ms: 0,
        flags: Flags::new(3),
        attributes: Bytes::new(),
    }
}

#[test]
fn a_peer_that_lies_is_told_so_in_a_sentence() {
    let leaves = |from, byte, partitions: &[u16]| {
        asking(&ExchangeRequest::Leaves { from, byte, partitions: partitions.to_vec() })
    };
    let roots = |told, from| asking(&ExchangeRequest::Roots { told, from });
    let items = |partitions: &[u16]| {
        asking(&ExchangeRequest::Items(partitions.iter().map(|&p| (p, LeafSet::default())).collect()))
    };
    let fetch = |places: &[u32]| asking(&ExchangeRequest::Fetch { places: places.to_vec(), credit: 1 });
    let give = |record: Record<Bytes>| asking(&ExchangeRequest::Give(vec![record]));
    let agreed = |from, partitions: &[u16]| asking(&ExchangeRequest::Agreed { from, partitions: partitions.to_vec() });
    let none = small_record();
    let buried = Record { flags: none.flags.tombstone(), ..none.clone() };
    let range = "has a number of replicas out of range";
    let ascend = "has partitions that do not ascend";
    let nowhere = "has a partition that there is not";
    for (bytes, what) in [
        (with(roots(Told::default(), 3), 0, &[3]), "has a standing that there is not"),
        (roots(Told::default(), 65), range),
        (frame_of(EXCHANGE, which::ROOTS, &[0; 33]), "ends too early"),
        (frame_of(EXCHANGE, which::ROOTS, &[0; 35]), "has bytes behind its end"),
        (leaves(0, 0, &[1]), range),
        (leaves(65, 0, &[1]), range),
        (leaves(3, 8, &[1]), "asks for a byte of eight that there is not"),
        (leaves(3, 0, &[4096]), nowhere),
        (leaves(3, 0, &[5, 5]), ascend),
        (leaves(3, 0, &[5, 4]), ascend),
        (frame_of(EXCHANGE, which::LEAVES, &[3, 0, 1]), "has a part that is cut off"),
        (frame_of(EXCHANGE, which::LEAVES, &[3; 2 + 2 * 4097]), "has more parts than there can be"),
        (items(&[4096]), nowhere),
        (items(&[7, 7]), ascend),
        (frame_of(EXCHANGE, which::ITEMS, &[0; 35]), "has a part that is cut off"),
        (fetch(&[2, 2]), "has places that do not ascend"),
        (fetch(&[2, 1]), "has places that do not ascend"),
        (frame_of(EXCHANGE, which::FETCH, &[0; 4 + 4 * (RECORDS_MAX + 1)]), "has more parts than there can be"),
        (frame_of(EXCHANGE, which::GIVE, &[0; 2]), "gives no record where one should be"),
        (with(give(none.clone()), 4, &[6]), "ends too early"),
        (with(give(none.clone()), 4, &[4]), "ends too early"),
        (give(buried), "has a tombstone and a value in one"),
        (agreed(0, &[1]), range),
        (agreed(3, &[1, 1]), ascend),
    ] {
        assert_eq!(read(&bytes, true, LIMITS), Parsed::Bad(Violation::Exchange(what)), "{what}");
    }
    let item = Item { hash: 1, version: Version::new(2, 3), from: 4, absent: true };
    let items = |count| answering(&ExchangeReply::Items(vec![vec![item; count]]));
    for (bytes, what) in [
        (frame_of(EXCHANGED, which::ROOTS, &[0; 33 + 7]), "has a part that is cut off"),
        (frame_of(EXCHANGED, which::ROOTS, &[0; 33 + 8 * 4097]), "has more parts than there can be"),
        (frame_of(EXCHANGED, which::LEAVES, &[0; 255]), "has a part that is cut off"),
        (frame_of(EXCHANGED, which::LEAVES, &[0; 256 * 4097]), "has more parts than there can be"),
        (with(items(2), 0, &[3]), "ends too early"),
        (with(items(2), 0, &u32::MAX.to_le_bytes()), "ends too early"),
        (with(items(1), 4 + 14, &[65]), range),
        (with(items(1), 4 + 14, &[0x80]), range),
        (frame_of(EXCHANGED, which::ITEMS, &[0; 4 * 4097]), "has more parts than there can be"),
        (frame_of(EXCHANGED, which::RECORDS, &[0; 2 * (RECORDS_MAX + 1)]), "has more parts than there can be"),
        (frame_of(EXCHANGED, which::RECORDS, &[0; 3]), "ends too early"),
        (frame_of(EXCHANGED, which::GIVEN, &[2]), "says neither yes nor no"),
        (frame_of(EXCHANGED, which::GIVEN, &[1; RECORDS_MAX + 1]), "has more parts than there can be"),
        (frame_of(EXCHANGED, which::NOTED, &[0]), "has bytes behind its end"),
    ] {
        assert_eq!(read(&bytes, false, LIMITS), Parsed::Bad(Violation::Exchange(what)), "{what}");
    }
    let large = Record { value: Bytes::from(vec![0; 301]), ..none.clone() };
    let unknown = Record { flags: Flags::from_bits(1 << 9), ..none.clone() };
    let odd = Record { attributes: Bytes::from_static(&[9, 0]), ..none };
    for (bytes, violation) in [
        (give(large), Violation::ValueTooLong { len: 301, max: 300 }),
        (give(unknown), Violation::UnknownFlags(1 << 9)),
        (give(odd), Violation::UnknownAttribute(9)),
        (with(give(small_record()), 0, &4097_u16.to_le_bytes()), Violation::KeyTooLong(4097)),
        (frame_of(EXCHANGE, 0, &[]), Violation::Marks { kind: EXCHANGE, marks: 0 }),
        (frame_of(EXCHANGE, 7, &[]), Violation::Marks { kind: EXCHANGE, marks: 7 }),
    ] {
        assert_eq!(read(&bytes, true, LIMITS), Parsed::Bad(violation));
    }
    assert_eq!(
        read(&frame_of(EXCHANGED, 8, &[]), false, LIMITS),
        Parsed::Bad(Violation::Marks { kind: EXCHANGED, marks: 8 })
    );
    let mut long = frame_of(EXCHANGE, which::GIVE, &[]);
    long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let max = LIMITS.exchange_max() - HEADER;
    assert_eq!(read(&long, true, LIMITS), Parsed::Bad(Violation::TooLong { len: u32::MAX, max }));
    for field in [16, 35, 36, 38] {
        let mut bytes = frame_of(EXCHANGED, which::NOTED, &[]);
        bytes[field] = 1;
        let checksum = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(read(&bytes, false, LIMITS), Parsed::Bad(Violation::NotZero(EXCHANGED)), "{field}");
    }
}

#[test]
fn the_largest_of_each_fits() {
    let limits = Limits { value_max: VALUE_MAX_LIMIT, ..LIMITS };
    let all: Vec<u16> = (0..PARTITIONS as u16).collect();
    let largest = Record {
        key: Key::new(Bytes::from(vec![7; KEY_MAX])),
        value: Bytes::from(vec![7; VALUE_MAX_LIMIT]),
        ..small_record()
    };
    let mut full = vec![Record { value: Bytes::from(vec![1; 1 << 20]), ..small_record() }; 3];
    full.push(Record { value: Bytes::from(vec![1; (1 << 20) - 4 * RECORD_FIXED - 4 * 3]), ..small_record() });
    assert_eq!(full.iter().map(record_bytes).sum::<usize>(), EXCHANGE_BODY);
    full.push(largest);
    for request in [
        ExchangeRequest::Roots { told: Told::default(), from: 64 },
        ExchangeRequest::Leaves { from: 64, byte: 7, partitions: all.clone() },
        ExchangeRequest::Items(all.iter().map(|&p| (p, [u64::MAX; 4])).collect()),
        ExchangeRequest::Fetch { places: (0..RECORDS_MAX as u32).collect(), credit: u32::MAX },
        ExchangeRequest::Give(full.clone()),
        ExchangeRequest::Give(vec![small_record(); RECORDS_MAX]),
        ExchangeRequest::Agreed { from: 64, partitions: all },
    ] {
        let bytes = asking(&request);
        let frame = ExchangeFrame { number: 7, epoch: 9, what: Asked::Exchange(request) };
        assert!(parse_asked(&bytes, limits) == Parsed::Complete { frame, len: bytes.len() });
    }
    let item = Item { hash: u32::MAX, version: Version::new(u64::MAX, u16::MAX), from: 64, absent: true };
    let items = (EXCHANGE_BODY - 4 * PARTITIONS) / ITEM_BYTES / PARTITIONS;
    for reply in [
        ExchangeReply::Roots { told: Told::default(), roots: vec![u64::MAX; PARTITIONS] },
        ExchangeReply::Leaves(Bytes::from(vec![7; PARTITIONS * LEAVES])),
        ExchangeReply::Items(vec![vec![item; items]; PARTITIONS]),
        ExchangeReply::Records(full.into_iter().map(Some).collect()),
        ExchangeReply::Records(vec![None; RECORDS_MAX]),
        ExchangeReply::Given(vec![true; RECORDS_MAX]),
    ] {
        let bytes = answering(&reply);
        let frame = ExchangeFrame { number: 7, epoch: 9, what: reply };
        assert!(parse_exchange_reply(&bytes, limits) == Parsed::Complete { frame, len: bytes.len() });
    }
}

#[test]
fn a_record_that_a_node_does_not_understand_is_told_as_none() {
    let odd = Record { attributes: Bytes::from_static(&[9, 0]), ..small_record() };
    let told = answering(&ExchangeReply::Records(vec![Some(odd), Some(small_record())]));
    let frame = ExchangeFrame { number: 7, epoch: 9, what: ExchangeReply::Records(vec![None, Some(small_record())]) };
    assert_eq!(parse_exchange_reply(&told, LIMITS), Parsed::Complete { frame, len: told.len() });
}

#[test]
fn requests_for_data_and_pings_come_there_too() {
    let key = Key::new(&b"key"[..]);
    let mut bytes = Vec::new();
    let read = Operation::Read { key, want: koltso_model::Want::Value };
    encode_request(&mut bytes, 1, 9, &Request::Execute(read));
    encode_request(&mut bytes, 2, 9, &Request::Execute(Operation::Write(small_record().borrowed())));
    encode_request(&mut bytes, 3, 9, &Request::Ping { wall_ms: 4, clock: 5 });
    assert_eq!(fuzz_exchange(&bytes, LIMITS), 3);
    let mut rest = &bytes[..];
    for (number, what) in [
        (1, Asked::Execute(Operation::Read { key: key.owned(), want: koltso_model::Want::Value })),
        (2, Asked::Execute(Operation::Write(small_record()))),
        (3, Asked::Ping { wall_ms: 4, clock: 5 }),
    ] {
        match parse_asked(rest, LIMITS) {
            Parsed::Complete { frame, len } => {
                assert_eq!(frame, ExchangeFrame { number, epoch: 9, what });
                rest = &rest[len..];
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_reply_is_one_to_its_request() {
    use ExchangeReply as Reply;
    let partitions = vec![1, 2];
    let roots = |from| ExchangeRequest::Roots { told: Told::default(), from };
    let requests = [
        roots(3),
        ExchangeRequest::Leaves { from: 3, byte: 0, partitions: partitions.clone() },
        ExchangeRequest::Items(vec![(1, LeafSet::default()), (2, LeafSet::default())]),
        ExchangeRequest::Fetch { places: vec![1, 2], credit: 1 },
        ExchangeRequest::Give(vec![small_record(); 2]),
        ExchangeRequest::Agreed { from: 3, partitions },
    ];
    let replies = [
        Reply::Roots { told: Told::default(), roots: vec![1; 9] },
        Reply::Leaves(Bytes::from(vec![0; 512])),
        Reply::Items(vec![vec![]; 2]),
        Reply::Records(vec![None; 2]),
        Reply::Given(vec![true; 2]),
        Reply::Noted,
    ];
    for (asked, request) in requests.iter().enumerate() {
        for (answered, reply) in replies.iter().enumerate() {
            assert_eq!(answers(request, reply), asked == answered, "{request:?}: {reply:?}");
        }
        assert!(answers(request, &Reply::NotReady));
    }
    assert!(!answers(&roots(0), &replies[0]));
    let leading = |count| [Reply::Items(vec![vec![]; count]), Reply::Records(vec![None; count])];
    for (count, is_one) in [(0, false), (1, true), (2, true), (3, false)] {
        for (request, reply) in requests[2..4].iter().zip(leading(count)) {
            assert_eq!(answers(request, &reply), is_one, "{request:?}: {reply:?}");
        }
    }
    for wrong in [Reply::Leaves(Bytes::from(vec![0; 256])), Reply::Given(vec![true]), Reply::Given(vec![true; 3])] {
        assert!(requests.iter().all(|request| !answers(request, &wrong)), "{wrong:?}");
    }
}

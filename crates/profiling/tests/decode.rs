//! profile.proto read back: what survives, what other programs write, what is refused, and a short
//! fuzz run.
//!
//! `KOLTSO_FUZZ_SECONDS` makes that run longer, and `KOLTSO_SEED` repeats it. With cargo-fuzz, the
//! target `profile` is guided by coverage.

mod common;

use flate2::{Compression, write::GzEncoder};
use koltso_profiling::capture::{Capture, Event, FramePlace, ValueType};
use koltso_profiling::proto::message::Message;
use koltso_profiling::proto::{self, DecodeError, INFLATED_MAX, MESSAGE_MAX, message};
use koltso_profiling::{page, svg, text};
use koltso_testkit::fuzz::{mutate, time};
use koltso_testkit::random::{Random, seed_or};
use std::collections::{BTreeSet, HashSet};
use std::io::Write;
use std::time::Instant;

/// Files that Go 1.19 wrote: a loop of half a second, and 64 blocks of a MiB that are kept.
const GO_CPU: &[u8] = include_bytes!("data/go-cpu.pb.gz");
const GO_HEAP: &[u8] = include_bytes!("data/go-heap.pb.gz");

fn again(capture: &Capture) -> Capture {
    proto::decode(&proto::encode(capture)).expect("what was encoded is decoded")
}

fn threads(capture: &Capture) -> BTreeSet<String> {
    let folded = text::folded(capture, capture.default_type);
    folded.lines().map(|line| line.split(';').next().unwrap_or_default().to_owned()).collect()
}

fn places(capture: &Capture) -> HashSet<(String, FramePlace, Option<String>, u32)> {
    let of = |frame: &koltso_profiling::capture::Frame| {
        (frame.function.to_string(), frame.place, frame.file.as_deref().map(str::to_owned), frame.line)
    };
    capture.frames().iter().map(of).collect()
}

#[test]
fn what_was_encoded_comes_back() {
    for (name, mut capture) in [
        ("small", common::small()),
        ("hostile", common::hostile()),
        ("large", common::large(5_000, 20)),
        ("heap", common::heap()),
        ("empty", common::cpu()),
    ] {
        (capture.lost, capture.throttled, capture.dropped, capture.accounted_ns) = (3, 4, 5, 6_000_000);
        let back = again(&capture);
        for value in 0..capture.types.len() {
            // An inlined frame whose caller is not in the stack is not inlined any more: see
            // `lonely` in tests/common.
            let expected = text::folded(&capture, value).replace("lonely_[i]", "lonely");
            assert_eq!(text::folded(&back, value), expected, "{name}");
            assert_eq!(back.total(value), capture.total(value), "{name}");
        }
        assert_eq!(back.types, capture.types, "{name}");
        assert_eq!((back.event, back.default_type), (capture.event, capture.default_type), "{name}");
        assert_eq!(back.period, capture.period, "{name}");
        assert_eq!((back.began_unix_ms, back.duration_ns), (capture.began_unix_ms, capture.duration_ns), "{name}");
        assert_eq!((&back.engine, &back.mappings), (&capture.engine, &capture.mappings), "{name}");
        assert_eq!(threads(&back), threads(&capture), "{name}");
        assert_eq!(text::summary(&back), text::summary(&capture), "{name}");
        assert_eq!(back.accounted_ns, capture.accounted_ns, "{name}");
        // Reading and writing twice gives the same as once.
        assert_eq!(text::folded(&again(&back), 0), text::folded(&back, 0), "{name}");
        assert_eq!(text::summary(&again(&back)), text::summary(&back), "{name}");
    }
    let back = again(&common::small());
    assert_eq!(places(&back), places(&common::small()));
    assert!(back.frames().iter().any(|frame| frame.place == FramePlace::Label && &*frame.function == "lock:segments"));
}

#[test]
fn every_event_comes_back() {
    for event in [Event::Cpu, Event::Allocs, Event::Heap, Event::Mutex, Event::Block, Event::OffCpu, Event::Other] {
        let mut capture = Capture::new(event, 1, vec![ValueType::new("delay", "nanoseconds")], 0);
        common::add(&mut capture, 0, 0, "main;wait", [7, 0, 0, 0]);
        let back = again(&capture);
        assert_eq!(back.event, event);
        assert_eq!(text::folded(&back, 0), "unknown thread;main;wait 7\n", "without a thread");
    }
}

#[test]
fn profiles_of_go_are_shown() {
    let cpu = proto::decode(GO_CPU).expect("a profile");
    assert_eq!((cpu.event, &*cpu.types[cpu.default_type].name), (Event::Cpu, "cpu"));
    assert!(cpu.duration_ns > 400_000_000 && cpu.period.as_ref().is_some_and(|&(_, period)| period == 10_000_000));
    let folded = text::folded(&cpu, 0);
    assert!(folded.contains("all threads;runtime.main;main.main;main.spin"), "{folded}");
    assert_eq!(cpu.sample_count() as i64, cpu.total(0), "it says how many samples it has");
    let heap = proto::decode(GO_HEAP).expect("a profile");
    assert_eq!((heap.event, &*heap.types[heap.default_type].name), (Event::Heap, "inuse_space"));
    assert_eq!(heap.types.len(), 4);
    let top = text::top(&heap, heap.default_type);
    assert!(top.contains("main.grow") && top.starts_with("heap"), "{top}");
    for capture in [&cpu, &heap] {
        assert!(page::flamegraph(capture, "Go").contains("main.main"));
        assert!(svg::flamegraph(capture, "Go", capture.default_type).contains("main.main"));
    }
    assert!(page::diff(&cpu, &cpu, "Go").contains("main.spin"));
}

/// A profile such as other programs may write: not gzipped, ids in no order, no mapping, one
/// location without lines.
fn foreign() -> message::Profile {
    let strings =
        ["", "wall", "seconds", "work", "main", "/opt/lib/libwork.so", "thread_name", "pool-1", "a", "b", "c"];
    let types = [(8, 2), (9, 2), (10, 2), (3, 2), (1, 2)];
    message::Profile {
        sample_type: types.iter().map(|&(ty, unit)| message::ValueType { ty, unit }).collect(),
        sample: vec![message::Sample {
            location_id: vec![90, 7, 90_000],
            value: vec![1, 2, 3, 4, 5],
            label: vec![message::Label { key: 6, str: 7, ..message::Label::default() }],
        }],
        mapping: vec![message::Mapping { id: 44, memory_limit: 4096, filename: 5, ..message::Mapping::default() }],
        location: vec![
            message::Location {
                id: 90_000,
                line: vec![message::Line { function_id: 5, line: 9 }],
                ..Default::default()
            },
            message::Location { id: 7, line: vec![message::Line { function_id: 6, line: -1 }], ..Default::default() },
            message::Location { id: 90, mapping_id: 44, address: 0x123, ..Default::default() },
        ],
        function: vec![
            message::Function { id: 6, name: 3, ..Default::default() },
            message::Function { id: 5, system_name: 4, ..Default::default() },
        ],
        string_table: strings.iter().map(|&text| text.to_owned()).collect(),
        ..message::Profile::default()
    }
}

#[test]
fn profiles_of_others_are_shown() {
    let capture = proto::decode(&foreign().encode_to_vec()).expect("a profile");
    // The last type is the default; the types that do not fit come before it.
    let names: Vec<_> = capture.types.iter().map(|of| &*of.name).collect();
    assert_eq!((names, capture.default_type), (vec!["a", "b", "c", "wall"], 3));
    assert_eq!(capture.event, Event::Other);
    assert_eq!(text::folded(&capture, 3), "pool-1;main;work;[libwork.so] 5\n");
    assert!(capture.frames().iter().all(|frame| frame.place == FramePlace::User), "no labels");
    let chosen = message::Profile { default_sample_type: 9, ..foreign() };
    assert_eq!(proto::decode(&chosen.encode_to_vec()).expect("a profile").default_type, 1);
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).expect("a vector");
    gzip.finish().expect("a vector")
}

/// Many messages of one field, without the memory that they would take as messages.
fn field(number: u8, content: &[u8], count: usize) -> Vec<u8> {
    let mut one = vec![number << 3 | 2];
    let mut left = content.len();
    while left >= 0x80 {
        one.push(left as u8 | 0x80);
        left >>= 7;
    }
    one.push(left as u8);
    one.extend_from_slice(content);
    one.repeat(count)
}

#[test]
fn what_is_refused_is_one_sentence_with_the_number() {
    let with = |change: &dyn Fn(&mut message::Profile)| {
        let mut profile = foreign();
        change(&mut profile);
        profile.encode_to_vec()
    };
    let types = field(1, &[], 1);
    let all = |more: Vec<u8>| [types.clone(), more].concat();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", Vec::new(), "no types"),
        ("a text", b"main;work 17\nmain;idle 3\n".to_vec(), "no profile.proto"),
        ("a page", b"<!doctype html><html></html>".to_vec(), "no profile.proto"),
        ("half a gzip", proto::encode(&common::small())[..300].to_vec(), "gzip stream is damaged"),
        ("a gzip of nothing", gzipped(&[]), "no types"),
        ("a part cut short", vec![0x0a, 0x7f, 1], "127 bytes has 1 only"),
        ("an endless number", vec![0xff; 20], "ten bytes"),
        ("another kind of field", vec![0x10, 1], "field 2 is of another kind"),
        ("a bomb", gzipped(&vec![0; INFLATED_MAX + 1]), "larger than 256 MiB"),
        ("many types", field(1, &[], 65), "more than 64 types"),
        ("many samples", all(field(2, &[], (1 << 21) + 1)), "more than 2097152 samples"),
        ("many mappings", all(field(3, &[], 4097)), "more than 4096 mappings"),
        ("many locations", all(field(4, &[], (1 << 20) + 1)), "more than 1048576 locations"),
        ("many functions", all(field(5, &[], (1 << 20) + 1)), "more than 1048576 functions"),
        ("many strings", all(field(6, &[], (1 << 21) + 1)), "more than 2097152 strings"),
        ("a long string", all(field(6, &vec![b'x'; (64 << 10) + 1], 1)), "more than 65536 bytes in a string"),
        (
            "one long name for many frames",
            with(&|profile| {
                profile.string_table[1] = "x".repeat(60_000);
                profile.function[1].name = 1;
                let line = profile.location[0].line.clone();
                let location = |id| message::Location { id, address: id, line: line.clone(), ..Default::default() };
                profile.location.extend((1000..3000).map(location));
            }),
            "more than 67108864 bytes of names",
        ),
        ("a large sample", all(field(2, &vec![0x1a; MESSAGE_MAX + 1], 1)), "more than 1048576"),
        ("a value too few", with(&|profile| profile.sample[0].value.truncate(4)), "4 values, and the profile 5 types"),
        ("no such location", with(&|profile| profile.sample[0].location_id.push(91)), "location 91"),
        ("no such function", with(&|profile| profile.location[0].line[0].function_id = 77), "function 77"),
        ("no such mapping", with(&|profile| profile.location[0].mapping_id = 45), "mapping 45"),
        ("no such string", with(&|profile| profile.function[0].name = 1000), "string 1000"),
        ("a negative string", with(&|profile| profile.sample_type[0].unit = -1), "string 18446744073709551615"),
        ("huge values", with(&|profile| profile.sample[0].value[4] = i64::MIN), "type wall add up to more than 2^62"),
    ];
    for (what, bytes, part) in cases {
        // A capture is too long to be printed.
        let error = proto::decode(&bytes).map(drop).expect_err(what).to_string();
        assert!(error.contains(part) && !error.contains('\n') && error.len() < 300, "{what}: {error}");
    }
    let many: Vec<u8> = (0..(1u32 << 18) + 1)
        .flat_map(|id| {
            let mut location = Vec::new();
            message::Location { id: id.into(), address: id.into(), ..Default::default() }
                .encode_length_delimited(&mut location)
                .expect("room");
            [&[0x22], &*location].concat()
        })
        .collect();
    let frames = proto::decode(&all(many)).expect_err("many frames");
    assert!(matches!(frames, DecodeError::TooMany { what: "frames", most: 262_144 }), "{frames}");
}

/// Changes a field of the messages, so that the bytes remain a profile.
fn disturb(profile: &mut message::Profile, rng: &mut Random) {
    let odd = [0, 1, -1, 7, 1 << 31, 1 << 61, i64::MAX, i64::MIN, rng.next() as i64][rng.below(9)];
    let sample = rng.below(profile.sample.len());
    let location = rng.below(profile.location.len());
    let function = rng.below(profile.function.len());
    match rng.below(14) {
        0 => profile.sample[sample].value.iter_mut().for_each(|value| *value = odd),
        1 => profile.sample[sample].location_id = vec![location as u64 + 1; rng.below(1000)],
        2 => profile.sample[sample].location_id.push(odd as u64),
        3 => profile.sample[sample].label.iter_mut().for_each(|label| label.str = odd),
        4 => profile.location[location].line.clear(),
        5 => profile.location[location].line = vec![message::Line { function_id: 1, line: odd }; rng.below(500)],
        6 => profile.location[location].address = odd as u64,
        7 => profile.location[location].id = odd as u64,
        8 => profile.function[function].name = odd,
        9 => profile.duration_nanos = odd,
        10 => profile.time_nanos = odd,
        11 => profile.sample_type.push(message::ValueType { ty: odd, unit: 0 }),
        12 => profile.default_sample_type = odd,
        _ => profile.comment = vec![odd; 100],
    }
}

/// Checks that what was decoded can be shown in every form, and written and read again.
fn shown(capture: &Capture) {
    let value = capture.default_type;
    let html = page::flamegraph(capture, "fuzz");
    assert_eq!(html.matches("<script").count(), 2);
    assert!(text::top(capture, value).contains(" in all ("));
    assert!(text::perf_script(capture).lines().count() >= text::folded(capture, value).lines().count());
    let back = again(capture);
    assert_eq!((back.total(value), &back.types), (capture.total(value), &capture.types));
    assert!(page::diff(capture, &back, "fuzz").contains("\"kind\":\"diff\""));
}

#[test]
fn any_bytes_give_a_capture_or_a_sentence_and_no_panic() {
    let mut rng = Random::seeded(seed_or("profile.proto", 1));
    let profiles = [proto::profile(&common::small()), proto::profile(&common::heap()), foreign()];
    let (begun, mut runs, mut believed) = (Instant::now(), 0u32, 0u32);
    while begun.elapsed() < time() || runs < 200 {
        runs += 1;
        let mut profile = profiles[rng.below(profiles.len())].clone();
        if rng.below(2) == 0 {
            for _ in 0..=rng.below(3) {
                disturb(&mut profile, &mut rng);
            }
        }
        let mut bytes = profile.encode_to_vec();
        match rng.below(4) {
            0 => bytes = gzipped(&bytes),
            1 => {
                bytes = gzipped(&bytes);
                mutate(&mut bytes, &mut rng);
            }
            _ => mutate(&mut bytes, &mut rng),
        }
        match proto::decode(&bytes) {
            Ok(capture) => {
                believed += 1;
                shown(&capture);
            }
            Err(error) => {
                let sentence = error.to_string();
                assert!(sentence.len() > 10 && !sentence.contains('\n'), "{sentence:?}");
            }
        }
    }
    assert!(believed > 20 && believed < runs, "{believed} of {runs} believed");
}

//! profile.proto: its invariants, its exact names, and what the real `go tool pprof` makes of it.

mod common;

use flate2::read::GzDecoder;
use koltso_profiling::capture::Capture;
use koltso_profiling::proto::{
    self,
    message::{Message, Profile},
};
use std::collections::HashSet;
use std::io::Read;
use std::process::Command;

fn decoded(capture: &Capture) -> Profile {
    let mut bytes = Vec::new();
    GzDecoder::new(&*proto::encode(capture)).read_to_end(&mut bytes).expect("gzip");
    Profile::decode(&*bytes).expect("profile.proto")
}

/// Checks what the description of the format demands.
fn check(profile: &Profile) {
    let strings = profile.string_table.len() as i64;
    assert_eq!(profile.string_table[0], "");
    assert_eq!(profile.string_table.iter().collect::<HashSet<_>>().len() as i64, strings, "strings are there once");
    let text = |id: i64| assert!((0..strings).contains(&id));
    for (index, function) in profile.function.iter().enumerate() {
        assert_eq!(function.id, index as u64 + 1);
        text(function.name);
        text(function.filename);
    }
    for (index, mapping) in profile.mapping.iter().enumerate() {
        assert_eq!(mapping.id, index as u64 + 1);
        assert!(mapping.memory_start < mapping.memory_limit);
        text(mapping.filename);
        text(mapping.build_id);
    }
    for (index, location) in profile.location.iter().enumerate() {
        assert_eq!(location.id, index as u64 + 1);
        assert!(location.mapping_id <= profile.mapping.len() as u64);
        assert!(!location.line.is_empty());
        for line in &location.line {
            assert!((1..=profile.function.len() as u64).contains(&line.function_id));
        }
    }
    for sample in &profile.sample {
        assert_eq!(sample.value.len(), profile.sample_type.len());
        for id in &sample.location_id {
            assert!((1..=profile.location.len() as u64).contains(id));
        }
        for label in &sample.label {
            assert_eq!(profile.string_table[label.key as usize], "thread");
            assert_ne!(label.str, 0);
        }
    }
}

fn types(profile: &Profile) -> Vec<String> {
    let text = |id: i64| profile.string_table[id as usize].as_str();
    profile.sample_type.iter().map(|of| format!("{}/{}", text(of.ty), text(of.unit))).collect()
}

/// Runs `go tool pprof` on a profile; `None`, which is recorded as skipped, if there is no `go`.
fn pprof(capture: &Capture, options: &[&str]) -> Option<String> {
    koltso_testkit::skip::tool("go", "golang-go")?;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("profile.pb.gz");
    std::fs::write(&file, proto::encode(capture)).expect("a file");
    let mut command = Command::new("go");
    command.args(["tool", "pprof", "-symbolize=none"]).args(options).arg(&file).env("PPROF_TMPDIR", folder.path());
    let output = command.output().expect("go runs");
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{errors}");
    Some(out.into_owned())
}

#[test]
fn types_and_times_have_the_exact_names() {
    let profile = decoded(&common::small());
    check(&profile);
    let text = |id: i64| profile.string_table[id as usize].as_str();
    assert_eq!(types(&profile), ["samples/count", "cpu/nanoseconds"]);
    assert_eq!(text(profile.default_sample_type), "cpu");
    let period = profile.period_type.expect("a period");
    assert_eq!((text(period.ty), text(period.unit), profile.period), ("cpu", "nanoseconds", common::PERIOD));
    assert_eq!((profile.time_nanos, profile.duration_nanos), (1_790_000_000_000_000_000, 10_000_000_000));
    let profile = decoded(&common::heap());
    check(&profile);
    let all = ["alloc_objects/count", "alloc_space/bytes", "inuse_objects/count", "inuse_space/bytes"];
    assert_eq!(types(&profile), all);
    assert_eq!(profile.period, 524_288);
}

#[test]
fn inlined_frames_are_lines_of_the_location_of_the_frame_after_them() {
    let profile = decoded(&common::small());
    let text = |id: i64| profile.string_table[id as usize].as_str();
    let names = |location: u64| -> Vec<&str> {
        let lines = &profile.location[location as usize - 1].line;
        lines.iter().map(|line| text(profile.function[line.function_id as usize - 1].name)).collect()
    };
    let inlined = profile.sample.iter().find(|sample| names(sample.location_id[0]) == ["memchr"]).expect("the sample");
    let stack: Vec<_> = inlined.location_id.iter().map(|&id| names(id)).collect();
    assert_eq!(stack, [vec!["memchr"], vec!["parse", "serve"], vec!["run"], vec!["main"]]);
    assert_eq!(text(inlined.label[0].str), "koltso-core-0");
    let kernel = profile.sample.iter().find(|sample| names(sample.location_id[0]) == ["tcp_sendmsg"]).expect("it");
    let mapping = profile.location[kernel.location_id[0] as usize - 1].mapping_id;
    assert_eq!(text(profile.mapping[mapping as usize - 1].filename), "[kernel.kallsyms]");
    let main = profile.location[*kernel.location_id.last().expect("a root") as usize - 1].mapping_id;
    assert_eq!(text(profile.mapping[main as usize - 1].build_id), "00112233445566778899aabbccddeeff00112233");
}

#[test]
fn hostile_names_and_nothing_at_all_are_valid() {
    check(&decoded(&common::hostile()));
    let empty = decoded(&common::cpu());
    check(&empty);
    assert!(empty.sample.is_empty() && empty.string_table[empty.default_sample_type as usize] == "cpu");
    for capture in [common::hostile(), common::cpu()] {
        pprof(&capture, &["-raw"]);
        pprof(&capture, &["-top"]);
    }
}

#[test]
fn go_tool_pprof_reads_it() {
    let Some(top) = pprof(&common::small(), &["-top"]) else { return };
    assert!(top.contains("Type: cpu") && top.contains("Duration: 10s"), "{top}");
    let row = |name: &str| top.lines().find(|line| line.ends_with(name)).unwrap_or_else(|| panic!("{name}: {top}"));
    // These are 26 of 100 samples; recursion is counted once.
    let send: Vec<&str> = row(" tcp_sendmsg").split_whitespace().collect();
    assert_eq!((send[0], send[1], send[4]), ("26.03ms", "26.00%", "26.00%"), "{top}");
    assert_eq!(row(" recurse").split_whitespace().nth(4), Some("10.00%"), "{top}");
    let traces = pprof(&common::small(), &["-traces"]).expect("go is here");
    let flat: Vec<&str> = traces.lines().map(str::trim).collect();
    let at = flat.iter().position(|line| line.ends_with("memchr")).expect("the leaf");
    assert_eq!(flat[at + 1..at + 5], ["parse (inline)", "serve", "run", "main"], "{traces}");
    assert!(traces.contains("thread:koltso-core-0") || traces.contains("koltso-core-0"), "{traces}");
    let raw = pprof(&common::small(), &["-raw"]).expect("go is here");
    assert!(raw.contains("PeriodType: cpu nanoseconds") && raw.contains("Period: 1001001"), "{raw}");
    assert!(raw.contains("cpu/nanoseconds[dflt]") && raw.contains("[kernel.kallsyms]"), "{raw}");
    let heap = pprof(&common::heap(), &["-top", "-sample_index=alloc_space"]).expect("go is here");
    assert!(heap.contains("Type: alloc_space") && heap.contains("alloc::alloc::alloc"), "{heap}");
}

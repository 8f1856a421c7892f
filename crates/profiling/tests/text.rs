//! Folded stacks, perf-script text, the list for people, and the SVG.

mod common;

use common::{PERIOD, add};
use inferno::collapse::{Collapse, perf};
use koltso_profiling::{svg, text};
use std::collections::BTreeSet;

#[test]
fn folded_stacks_name_thread_root_and_leaf() {
    let folded = text::folded(&common::small(), 0);
    let expected = "\
koltso-core-0;main;run;serve;parse_[i];memchr 24
koltso-core-0;main;run;serve;write;entry_SYSCALL_64_[k];tcp_sendmsg_[k] 26
koltso-core-1;main;run;<core::iter::Map as core::iter::Iterator>::next_[i];lookup 10
koltso-core-1;main;run;compact;copy;memcpy 10
koltso-core-1;main;run;serve;recurse;recurse;recurse;memcpy 10
koltso-core-2;main;idle 10
koltso-core-2;main;run;lock:segments 10
";
    assert_eq!(folded, expected);
    let times = text::folded(&common::small(), 1);
    let times = times.lines().map(|line| line.rsplit_once(' ').expect("a value").1.parse::<i64>().expect("a number"));
    assert_eq!(times.sum::<i64>(), 100 * PERIOD);
}

#[test]
fn hostile_names_neither_split_stacks_nor_lines() {
    let capture = common::hostile();
    let folded = text::folded(&capture, 0);
    let sum: i64 =
        folded.lines().map(|line| line.rsplit_once(' ').expect("a value").1.parse::<i64>().expect("it")).sum();
    assert_eq!(sum, capture.total(0));
    assert!(folded.lines().any(|line| line.contains(";main;a:b:c 17_[k] 1")), "{folded}");
    for line in folded.lines().filter(|line| line.contains(";main;")) {
        assert_eq!(line.split(';').count(), 3, "{line}");
    }
    assert!(text::folded(&common::heap(), 3).lines().all(|line| !line.contains("shrink")), "no negative widths");
}

#[test]
fn perf_script_is_what_other_tools_read() {
    let capture = common::small();
    let script = text::perf_script(&capture);
    let head = "koltso-core-0 1000 [000]      0.005000:    1001001 cpu-clock: \n\t";
    assert!(script.starts_with(head), "{}", &script[..200]);
    assert!(script.contains(" tcp_sendmsg ([kernel.kallsyms])\n\t") && script.contains(" main (/usr/bin/koltso)\n\n"));
    assert!(script.contains(" parse (inlined)\n"));
    let mut folder = perf::Folder::from(perf::Options::default());
    let mut collapsed = Vec::new();
    folder.collapse(script.as_bytes(), &mut collapsed).expect("inferno reads it");
    let collapsed = String::from_utf8(collapsed).expect("text");
    // The stacks and times are the same; perf's readers do not know the marks.
    let ours: BTreeSet<String> =
        text::folded(&capture, 1).lines().map(|line| line.replace("_[k]", "").replace("_[i]", "")).collect();
    let theirs: BTreeSet<String> = collapsed.lines().map(str::to_owned).collect();
    assert_eq!(ours.len(), theirs.len(), "{collapsed}");
    for line in ours.iter().filter(|line| !line.contains('<')) {
        assert!(theirs.contains(line), "{line}\n{collapsed}");
    }
    let hostile = text::perf_script(&common::hostile());
    let heads = hostile.lines().filter(|line| line.ends_with(" cpu-clock: ")).count();
    let frames = hostile.lines().filter(|line| line.starts_with('\t')).count();
    let blank = hostile.lines().filter(|line| line.is_empty()).count();
    assert_eq!(
        (heads, blank, heads + blank + frames),
        (common::hostile().samples.len(), heads, hostile.lines().count())
    );
}

#[test]
fn the_list_counts_recursion_once_and_states_shares() {
    let mut capture = common::small();
    capture.lost = 7;
    let top = text::top(&capture, 1);
    assert!(top.starts_with("cpu over 10.0 s, 100 samples\nperf events"), "{top}");
    assert!(top.contains("7 samples lost by the kernel\n\n100 ms in all (cpu in nanoseconds)"), "{top}");
    assert!(top.contains("0 ns  0.00 %      10.0 ms 10.00 %  recurse\n"), "{top}");
    assert!(top.contains("26.0 ms 26.00 %      26.0 ms 26.00 %  tcp_sendmsg_[k]\n"), "{top}");
    assert!(top.contains("50.1 ms 50.00 %  koltso-core-0\n"), "{top}");
    assert!(text::top(&common::cpu(), 0).contains("0 in all"));
}

#[test]
fn amounts_have_three_digits_and_a_unit() {
    let cases =
        [(0, "0 ns"), (999, "999 ns"), (1_500, "1.50 µs"), (25_000_000, "25.0 ms"), (-3_210_000_000, "-3.21 s")];
    for (value, expected) in cases {
        assert_eq!(text::amount(value, "nanoseconds"), expected);
    }
    assert_eq!((text::amount(524_288, "bytes"), text::amount(17, "bytes")), ("512 KiB".into(), "17 B".into()));
    assert_eq!((text::amount(1_234_567, "count"), text::amount(-999, "count")), ("1 234 567".into(), "-999".into()));
}

#[test]
fn the_picture_tells_places_apart_and_survives_names() {
    let drawn = svg::flamegraph(&common::small(), "koltso & <cpu>", 1);
    assert!(drawn.contains("koltso &amp; &lt;cpu&gt;") && drawn.contains("nanoseconds"));
    assert!(drawn.contains("tcp_sendmsg (") && drawn.contains("lock:segments"));
    let hostile = svg::flamegraph(&common::hostile(), common::HOSTILE[0], 0);
    assert!(!hostile.contains("<img") && !hostile.contains("</script><script>"));
    assert!(svg::flamegraph(&common::cpu(), "<none>", 0).contains("no samples"));
    let mut negative = common::heap();
    negative.samples.clear();
    add(&mut negative, 0, 0, "main;shrink", [0, 0, -1, -10]);
    assert!(svg::flamegraph(&negative, "", 3).contains("no samples"));
}

#[test]
fn differences_compare_as_shares() {
    let (base, mut new) = (common::small(), common::small());
    for n in 0..100 {
        common::add(&mut new, 1, n, "main;run;compact;copy;memcpy", [1, common::PERIOD, 0, 0]);
    }
    let folded = text::folded_difference(&base, &new);
    let values = |stack: &str| -> (i64, i64) {
        let line = folded.lines().find(|line| line.contains(stack)).unwrap_or_else(|| panic!("{stack} in {folded}"));
        let mut numbers = line.rsplit(' ').map(|word| word.parse().expect("a number"));
        let after = numbers.next().expect("two numbers");
        (numbers.next().expect("two numbers"), after)
    };
    // 10 of 100 samples became 110 of 200; a stack that stayed the same is half of its share.
    assert_eq!(values("compact;copy;memcpy"), (20 * common::PERIOD, 110 * common::PERIOD));
    assert_eq!(values("main;idle"), (2 * values("main;idle").1, values("main;idle").1));
    assert!(svg::difference(&base, &new, "a < b").contains("compact"));
    assert!(svg::difference(&common::cpu(), &common::cpu(), "none").contains("no samples"));
}

//! The division of a capture: which rule decides, what adds up, and what is left out of the lists.

mod common;

use koltso_profiling::capture::{Capture, Event, ValueType};
use koltso_profiling::classify::{CoreRules, Division, ProfilerRules, Rules, TOP_MAX, divide};
use koltso_profiling::proto;

const RULES: Rules = Rules {
    classes: &[
        ("front", "serves"),
        ("store", "keeps"),
        ("wire", "sends"),
        ("loop", "turns"),
        ("profiler", "looks"),
        ("rest", ""),
    ],
    threads: &[("keeper", Some("store")), ("looker", Some("profiler")), ("core-", None)],
    modules: &[
        ("shop::front", Some("front")),
        ("shop::front::till", Some("store")),
        ("shop", None),
        ("store", Some("store")),
    ],
    cores: CoreRules { threads: "core-", kernel: &[("sendto", "wire"), ("tcp_send", "front")], otherwise: "loop" },
    profiler: ProfilerRules { class: "profiler", modules: &[("shop::looks", true), ("shop::looks::own", false)] },
    rest: "rest",
    own: &["shop", "store"],
};

/// Threads, each with its stack, root first, and a value.
fn division(event: Event, samples: &[(&str, &str, i64)]) -> Division {
    let mut capture = Capture::new(event, 0, vec![ValueType::new("delay", "nanoseconds")], 0);
    for (index, &(thread, stack, value)) in samples.iter().enumerate() {
        capture.threads.push(koltso_profiling::capture::Thread { tid: index as u32, name: thread.into() });
        common::add(&mut capture, index as u16, 0, stack, [value, 0, 0, 0]);
    }
    let divided = divide(&capture, 0, &RULES);
    // The same capture read from a file gives the same division.
    let back = proto::decode(&proto::encode(&capture)).expect("what was encoded is decoded");
    assert_eq!(divide(&back, 0, &RULES), divided);
    let sum: i64 = divided.shares.iter().map(|share| share.user + share.kernel).sum();
    assert_eq!(sum, divided.total);
    divided
}

fn share(division: &Division, class: &str) -> (i64, i64) {
    let found = division.shares.iter().find(|share| share.class == class).expect("a class");
    (found.user, found.kernel)
}

#[test]
fn the_first_rule_that_says_something_decides() {
    for (event, thread, stack, class, is_kernel) in [
        (Event::Cpu, "core-0", "main;shop::front::serve;core::fmt::write", "front", false),
        (Event::Cpu, "core-0", "main;shop::front::serve;sys_read_[k]", "front", true),
        (Event::Cpu, "core-0", "main;shop::front::till::put", "store", false),
        (Event::Cpu, "core-0", "main;shop::front::tillage::put", "front", false),
        (Event::Cpu, "core-0", "main;shop::front::serve;shop::other;x", "front", false),
        (Event::Cpu, "core-0", "main;shop::front::serve;store::put;x", "store", false),
        (Event::Cpu, "core-0", "main;shop::front::serve;store::put_[i];x", "front", false),
        (Event::Cpu, "core-0", "main;<shop::Other as store::Keeps>::put", "store", false),
        (Event::Cpu, "core-0", "main;<store::A as shop::front::B>::put", "store", false),
        (Event::Cpu, "core-0", "main;bookstore::put;restore", "loop", false),
        (Event::Cpu, "keeper-1", "main;shop::front::serve", "store", false),
        (Event::Cpu, "looker", "main;store::put", "profiler", false),
        (Event::Cpu, "core-0", "main;enter_[k];sendto_[k];tcp_send_[k]", "wire", true),
        (Event::Cpu, "core-0", "main;enter_[k];tcp_send_[k]", "front", true),
        // A function of the program may have the name of one of the kernel.
        (Event::Cpu, "core-0", "main;tcp_send", "loop", false),
        (Event::Cpu, "core-0", "main;enter_[k]", "loop", true),
        (Event::Cpu, "other", "main;enter_[k];tcp_send_[k]", "rest", true),
        (Event::Cpu, "other", "shop::looks::page", "rest", false),
        (Event::Allocs, "all", "shop::front::serve;shop::looks::page;alloc", "profiler", false),
        (Event::Heap, "all", "shop::looks::page;store::put;alloc", "profiler", false),
        (Event::Allocs, "all", "store::put;shop::looks::own;alloc", "store", false),
        (Event::Allocs, "all", "main;alloc", "rest", false),
    ] {
        let divided = division(event, &[(thread, stack, 5)]);
        let expected = if is_kernel { (0, 5) } else { (5, 0) };
        assert_eq!(share(&divided, class), expected, "{thread} {stack}: {divided:?}");
    }
}

#[test]
fn values_add_up_and_nothing_has_no_share() {
    let divided = division(
        Event::Cpu,
        &[
            ("core-0", "main;store::put", 3),
            ("core-1", "main;store::put", 4),
            ("core-0", "main;store::put", 0),
            ("core-0", "main;shop::front::serve", -9),
        ],
    );
    assert_eq!((divided.total, share(&divided, "store"), share(&divided, "front")), (7, (7, 0), (0, 0)));
    assert_eq!((&divided.top.rows[..], divided.top.total), (&[("store::put".to_owned(), 7)][..], 7));
    assert_eq!((divided.rooted.value, divided.rooted.stacks), (7, 2));
    let nothing = division(Event::Cpu, &[]);
    assert_eq!((nothing.total, nothing.shares.len(), nothing.top.rows.len()), (0, RULES.classes.len(), 0));
}

#[test]
fn lists_name_what_people_look_for() {
    let rows = |event, samples: &[(&str, &str, i64)]| division(event, samples).top;
    let text = |top: &koltso_profiling::classify::Top| {
        top.rows.iter().map(|(what, value)| format!("{what}: {value}")).collect::<Vec<_>>()
    };
    let cpu = rows(Event::Cpu, &[("a", "main;f;read_[k]", 3), ("b", "main;read_[k]", 2), ("looker", "main;f", 9)]);
    assert_eq!(text(&cpu), ["f: 9", "read (kernel): 5"], "captures are in the list, as CPU is");
    let allocs = rows(
        Event::Allocs,
        &[
            ("all", "main;store::put;alloc::raw_vec::grow;__rust_realloc", 3),
            ("all", "main;<&shop::A as X>::f;other::g;realloc", 2),
            ("all", "main;other::g;__send;realloc", 1),
            ("all", "mi_malloc", 7),
            ("all", "shop::looks::page;alloc", 90),
        ],
    );
    assert_eq!(
        text(&allocs),
        ["a stack without functions of ours: 7", "store::put: 3", "<&shop::A as X>::f: 2", "other::g: 1"]
    );
    assert_eq!((allocs.total, allocs.profiler), (13, 90));
    let waits = rows(Event::Block, &[("core-0", "main;store::put;lock:log", 3), ("looker", "main;lock:log", 8)]);
    assert_eq!((text(&waits), waits.profiler), (vec!["lock:log in store::put: 3".to_owned()], 8));
    let off = rows(
        Event::OffCpu,
        &[
            ("core-0", "main;store::put;fsync;do_syscall_64_[k];__x64_sys_fsync_[k];schedule_[k]", 3),
            ("core-1", "main;store::put;exit_to_user_mode_loop_[k];schedule_[k]", 2),
            ("keeper", "main;schedule_[k]", 100),
        ],
    );
    assert_eq!(text(&off), ["core-0, fsync, store::put: 3", "core-1, preempted, store::put: 2"]);
    assert_eq!((off.total, off.background), (5, 100));
}

#[test]
fn lists_are_bounded_and_stacks_that_are_cut_are_told() {
    let names: Vec<String> = (0..2 * TOP_MAX).map(|number| format!("start_thread;f{number:03}")).collect();
    let mut samples: Vec<(&str, &str, i64)> = names.iter().map(|name| ("a", &**name, 1)).collect();
    samples.extend([("b", "lost;leaf_[k]", 7), ("b", "alone", 3), ("c", "[libc.so.6];main;x", 5)]);
    let divided = division(Event::Cpu, &samples);
    assert_eq!((divided.top.rows.len(), divided.top.total), (TOP_MAX, 2 * TOP_MAX as i64 + 15));
    assert_eq!(divided.top.rows[0].0, "leaf (kernel)");
    assert_eq!((divided.rooted.value, divided.rooted.stacks), (2 * TOP_MAX as i64 + 5, 2 * TOP_MAX + 3));
    let others = [("b: lost … leaf_[k]".to_owned(), 7), ("b: alone".to_owned(), 3)];
    assert_eq!(divided.rooted.others, others);
}

#[test]
fn any_capture_is_divided() {
    for capture in [common::small(), common::hostile(), common::heap(), common::large(500, 20), common::cpu()] {
        for value in 0..capture.types.len() {
            let divided = divide(&capture, value, &RULES);
            let positive: i64 = capture.folded().iter().map(|sample| sample.values[value].max(0)).sum();
            assert_eq!(divided.total, positive);
            assert!(divided.rooted.value <= divided.total && divided.top.rows.len() <= TOP_MAX);
        }
    }
}

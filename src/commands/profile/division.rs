//! A saved profile divided by class: `koltso profile FILE --classes`, for people or, with `--json`,
//! for programs.
//!
//! The functions here only make text and JSON; `koltso_profiling::classify` divides, by the table
//! in `admin/classes.rs`. The document has, with values in `unit`:
//!
//! - `event`, `type`, `unit`, `seconds` (0 for a state such as the heap), `samples`, `lost`,
//!   `throttled`, `dropped`, `accounted_ns`, and `engine`, the sentence that says how it was
//!   captured;
//! - `total`, and `classes`: for each class `user` and `kernel`, by the innermost frame. All
//!   classes are there, and they add up to `total`;
//! - `top`: `rows` of `[what, value]`, the largest first; the `total` of all rows; and what is left
//!   out of them, `profiler` and `background`;
//! - `rooted`: the `value` of the stacks that reach the entry of their thread, how many different
//!   `stacks` there are, and the largest `others`, as rows.

use std::fmt::Write as _;

use koltso_profiling::capture::{Capture, Event};
use koltso_profiling::classify::{Division, divide};
use koltso_profiling::text::{amount, summary};
use serde_json::{Map, Value, json};

use crate::admin::classes::RULES;

/// The most rows of the list for people.
const ROWS_SHOWN: usize = 12;

/// The division as a JSON document, for programs.
pub fn document(capture: &Capture) -> String {
    let kind = &capture.types[capture.default_type];
    let Division { total, shares, top, rooted } = divide(capture, capture.default_type, &RULES);
    let classes: Map<String, Value> = shares
        .iter()
        .map(|share| (share.class.to_owned(), json!({ "user": share.user, "kernel": share.kernel })))
        .collect();
    let document = json!({
        "event": capture.event.name(),
        "type": kind.name,
        "unit": kind.unit,
        "seconds": capture.duration_ns as f64 / 1e9,
        "samples": capture.sample_count(),
        "lost": capture.lost,
        "throttled": capture.throttled,
        "dropped": capture.dropped,
        "accounted_ns": capture.accounted_ns,
        "engine": capture.engine,
        "total": total,
        "classes": classes,
        "top": { "rows": top.rows, "total": top.total, "profiler": top.profiler, "background": top.background },
        "rooted": { "value": rooted.value, "stacks": rooted.stacks, "others": rooted.others },
    });
    format!("{document:#}\n")
}

/// The division as text, for people.
pub fn text(capture: &Capture) -> String {
    let kind = &capture.types[capture.default_type];
    let division = divide(capture, capture.default_type, &RULES);
    let of_total = |value: i64| match division.total {
        0 => String::new(),
        total => format!("{:.1} %", 100.0 * value as f64 / total as f64),
    };
    let mut text = summary(capture);
    _ = writeln!(text, "\n{} in all ({} in {})\n", amount(division.total, &kind.unit), kind.name, kind.unit);
    _ = writeln!(text, "{:>12} {:>8} {:>8} {:>8}  class", "", "share", "program", "kernel");
    for share in division.shares.iter().filter(|share| share.user + share.kernel > 0) {
        let both = share.user + share.kernel;
        _ = writeln!(
            text,
            "{:>12} {:>8} {:>8} {:>8}  {:<12} {}",
            amount(both, &kind.unit),
            of_total(both),
            of_total(share.user),
            of_total(share.kernel),
            share.class,
            share.meaning
        );
    }
    let what = match capture.event {
        Event::Allocs | Event::Heap => "the functions that wanted it",
        Event::Mutex | Event::Block => "what was waited for, and where",
        Event::OffCpu => "threads that serve, why they were off, and where",
        _ => "functions themselves",
    };
    _ = writeln!(text, "\n{:>12} {:>8}  {what}", "", "share");
    for (row, value) in division.top.rows.iter().take(ROWS_SHOWN) {
        _ = writeln!(text, "{:>12} {:>8}  {row}", amount(*value, &kind.unit), of_total(*value));
    }
    let left_out = [(division.top.profiler, "for captures"), (division.top.background, "of threads that serve nobody")];
    for (value, whose) in left_out.into_iter().filter(|(value, _)| *value > 0) {
        _ = writeln!(text, "{:>12} {:>8}  left out of this list: {whose}", amount(value, &kind.unit), of_total(value));
    }
    text
}

#[cfg(test)]
mod tests {
    use koltso_profiling::capture::{Frame, FramePlace, Sample, Thread, ThreadIndex, ValueType};

    use super::*;

    fn capture(event: Event) -> Capture {
        let mut capture = Capture::new(event, 0, vec![ValueType::new("cpu", "nanoseconds")], 0);
        capture.engine = "perf events".to_owned();
        for (thread, names, value) in [
            ("koltso-core-0", &["koltso_net::http::head::try_parse"][..], 3_000_000),
            ("koltso-core-0", &["koltso_storage::log::Writer::put"], 1_000_000),
            ("koltso-capture", &["koltso_profiling::page::flamegraph"], 1_000_000),
            ("rest", &[], 5_000_000),
            ("koltso-core-0", &["koltso_net::http::head::try_parse", "nothing"], 0),
        ] {
            let index = ThreadIndex(capture.threads.len() as u16);
            capture.threads.push(Thread { tid: 1, name: thread.into() });
            let frame = |name: &&str| Frame {
                function: (*name).into(),
                file: None,
                line: 0,
                place: FramePlace::User,
                address: 1,
            };
            let frames: Vec<_> = names.iter().map(|name| capture.frame(frame(name)).expect("room")).collect();
            let stack = capture.stack(&frames).expect("room");
            capture.push(Sample { at_ns: 0, thread: index, cpu: 0, stack, values: [value, 0, 0, 0] });
        }
        capture
    }

    #[test]
    fn the_document_has_every_class_and_they_add_up() {
        let document: Value = serde_json::from_str(&document(&capture(Event::Cpu))).expect("JSON");
        assert_eq!((&document["event"], &document["unit"]), (&json!("cpu"), &json!("nanoseconds")));
        let classes = document["classes"].as_object().expect("classes");
        assert_eq!(classes.len(), RULES.classes.len());
        let value = |class: &str| classes[class]["user"].as_i64().expect("a number");
        assert_eq!(["HTTP", "storage", "profiler", "other"].map(value), [3_000_000, 1_000_000, 1_000_000, 5_000_000]);
        let sum: i64 = classes.keys().map(|class| value(class)).sum();
        assert_eq!((document["total"].as_i64(), document["samples"].as_i64()), (Some(sum), Some(5)));
        assert_eq!(document["top"]["rows"][0], json!(["?", 5_000_000]));
        assert_eq!(document["rooted"]["stacks"], json!(4));
    }

    #[test]
    fn the_text_says_shares_and_what_is_left_out() {
        let shown = text(&capture(Event::Cpu));
        for line in
            ["10.0 ms in all (cpu in nanoseconds)", "30.0 %    0.0 %  HTTP", "koltso_net::http::head::try_parse"]
        {
            assert!(shown.contains(line), "no {line:?} in\n{shown}");
        }
        let shown = text(&capture(Event::Block));
        assert!(shown.contains("left out of this list: for captures"), "{shown}");
        let shown = text(&capture(Event::OffCpu));
        assert!(shown.contains("left out of this list: of threads that serve nobody"), "{shown}");
        let nothing = Capture::new(Event::Heap, 0, vec![ValueType::new("inuse_space", "bytes")], 0);
        assert!(text(&nothing).contains("0 B in all"), "{}", text(&nothing));
    }
}

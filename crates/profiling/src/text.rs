//! Captures as text: folded stacks, perf-script output, and a list for people.
//!
//! Kernel frames end in `_[k]`, inlined ones in `_[i]`. Separators inside names are replaced, so
//! that readers can take every line in one way only. Values of 0 and less have no width and are
//! left out (the difference of two states of the heap has such values). Tested in `tests/text.rs`,
//! with inferno as another reader.

use crate::capture::{Capture, Frame, FramePlace, KERNEL_MAPPING, Sample, ThreadIndex};
use crate::threads;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

/// The most functions that [`top`] lists.
pub const TOP_MAX: usize = 200;
/// The most bytes of a perf-script text, the comment at its end aside.
pub const PERF_SCRIPT_MAX: usize = 128 << 20;

/// Folded stacks, `thread;root;…;leaf N`, one on each line, sorted. `value` is an index of
/// [`Capture::types`].
#[must_use]
pub fn folded(capture: &Capture, value: usize) -> String {
    let names: Vec<String> = capture.frames().iter().map(|frame| one_word(&marked(frame)).into_owned()).collect();
    let mut sums: BTreeMap<String, i64> = BTreeMap::new();
    for sample in capture.folded() {
        if sample.values[value] <= 0 {
            continue;
        }
        let mut line = one_word(&capture.thread_name(sample.thread)).into_owned();
        for id in capture.stack_at(sample.stack).iter().rev() {
            line.push(';');
            line.push_str(&names[id.0 as usize]);
        }
        *sums.entry(line).or_default() += sample.values[value];
    }
    let mut text = String::new();
    for (line, sum) in sums {
        _ = writeln!(text, "{line} {sum}");
    }
    text
}

/// What `perf script` prints, as FlameScope and `stackcollapse-perf.pl` read it: the samples in
/// order of time, with the seconds since the capture began and the leaf first. The period is the
/// value of the default type. A sample takes some kilobytes here: samples beyond
/// [`PERF_SCRIPT_MAX`] bytes are left out, and a comment at the end says how many they are.
#[must_use]
pub fn perf_script(capture: &Capture) -> String {
    perf_script_of(capture, PERF_SCRIPT_MAX)
}

fn perf_script_of(capture: &Capture, bytes_max: usize) -> String {
    let event = if capture.event.name() == "cpu" { "cpu-clock" } else { capture.event.name() };
    let lines: Vec<String> = capture.frames().iter().map(|frame| perf_line(capture, frame)).collect();
    let mut text = String::new();
    let mut left_out = 0_u64;
    for sample in capture.samples.iter().filter(|sample| sample.values[capture.default_type] > 0) {
        if text.len() >= bytes_max {
            left_out += 1;
            continue;
        }
        let Sample { at_ns, cpu, .. } = *sample;
        let tid = capture.threads.get(usize::from(sample.thread.0)).map_or(0, |thread| thread.tid);
        let name =
            capture.thread_name(sample.thread).replace(|char: char| char.is_whitespace() || ":;".contains(char), "_");
        _ = write!(text, "{name} {tid} [{:03}] ", if cpu == u16::MAX { 0 } else { cpu });
        _ = write!(text, "{:>6}.{:06}: ", at_ns / 1_000_000_000, at_ns / 1_000 % 1_000_000);
        _ = writeln!(text, "{:>10} {event}: ", sample.values[capture.default_type]);
        for id in capture.stack_at(sample.stack) {
            text.push_str(&lines[id.0 as usize]);
        }
        text.push('\n');
    }
    if left_out > 0 {
        _ = writeln!(text, "# {left_out} samples are left out: this text has room for {bytes_max} bytes");
    }
    text
}

/// The stacks of two captures with a value of each, `stack BASE NEW` on each line, as
/// `difffolded.pl` writes them. The values of the base are scaled to the total of the new capture,
/// so that they compare as shares.
#[must_use]
pub fn folded_difference(base: &Capture, new: &Capture) -> String {
    let of = &new.types[new.default_type];
    let place = base.types.iter().position(|other| other == of).unwrap_or(base.default_type);
    let mut sums: BTreeMap<String, [i64; 2]> = BTreeMap::new();
    for (side, text) in [folded(base, place), folded(new, new.default_type)].iter().enumerate() {
        for line in text.lines() {
            let (stack, value) = line.rsplit_once(' ').unwrap_or((line, "0"));
            sums.entry(stack.to_owned()).or_default()[side] = value.parse().unwrap_or(0);
        }
    }
    let total = |side: usize| sums.values().map(|values| values[side] as f64).sum::<f64>();
    let scale = if total(0) > 0.0 { total(1) / total(0) } else { 1.0 };
    let mut text = String::new();
    for (stack, [before, after]) in &sums {
        _ = writeln!(text, "{stack} {} {after}", (*before as f64 * scale).round() as i64);
    }
    text
}

fn perf_line(capture: &Capture, frame: &Frame) -> String {
    let module: &str = match frame.place {
        FramePlace::Kernel => KERNEL_MAPPING,
        FramePlace::Inlined => "inlined",
        FramePlace::Label => "label",
        FramePlace::User => capture
            .mappings
            .iter()
            .find(|mapping| (mapping.start..mapping.end).contains(&frame.address))
            .map_or("unknown", |mapping| &mapping.file),
    };
    let name = one_word(&frame.function);
    // Readers drop a frame whose name starts with a parenthesis.
    let name = if name.starts_with('(') { format!("_{name}") } else { name.into_owned() };
    let module = one_word(module).replace(['(', ')'], "_");
    format!("\t{:16x} {name} ({module})\n", frame.address)
}

/// The functions with the largest sums of a value, for people: self, total, and their shares.
#[must_use]
pub fn top(capture: &Capture, value: usize) -> String {
    let kind = &capture.types[value];
    let names: Vec<Cow<'_, str>> = capture.frames().iter().map(marked).collect();
    let mut sums: HashMap<&str, (i64, i64)> = HashMap::new();
    let mut threads: BTreeMap<ThreadIndex, i64> = BTreeMap::new();
    let mut seen: Vec<&str> = Vec::new();
    let mut total = 0;
    for sample in capture.folded() {
        let amount = sample.values[value];
        total += amount;
        *threads.entry(sample.thread).or_default() += amount;
        seen.clear();
        seen.extend(capture.stack_at(sample.stack).iter().map(|id| names[id.0 as usize].as_ref()));
        if let Some(&leaf) = seen.first() {
            sums.entry(leaf).or_default().0 += amount;
        }
        // A function that calls itself is counted once.
        seen.sort_unstable();
        seen.dedup();
        for &name in &seen {
            sums.entry(name).or_default().1 += amount;
        }
    }
    let mut rows: Vec<(&str, (i64, i64))> = sums.into_iter().collect();
    rows.sort_unstable_by_key(|&(name, (own, all))| (std::cmp::Reverse((own, all)), name));

    let mut text = summary(capture);
    _ = writeln!(text, "\n{} in all ({} in {})\n", amount(total, &kind.unit), kind.name, kind.unit);
    _ = writeln!(text, "{:>12} {:>7} {:>12} {:>7}  function", "self", "", "total", "");
    for (name, (own, all)) in rows.iter().take(TOP_MAX) {
        let (own_text, all_text) = (amount(*own, &kind.unit), amount(*all, &kind.unit));
        let (own_share, all_share) = (share(*own, total), share(*all, total));
        let name = name.replace(char::is_control, "?");
        _ = writeln!(text, "{own_text:>12} {own_share:>7} {all_text:>12} {all_share:>7}  {name}");
    }
    if rows.len() > TOP_MAX {
        _ = writeln!(text, "… and {} more functions", rows.len() - TOP_MAX);
    }
    let mut threads: Vec<(ThreadIndex, i64)> = threads.into_iter().collect();
    threads.sort_unstable_by_key(|&(thread, sum)| (std::cmp::Reverse(sum), thread));
    _ = writeln!(text, "\n{:>12} {:>7}  thread", "total", "");
    for (thread, sum) in threads {
        let name = capture.thread_name(thread).replace(char::is_control, "?");
        _ = writeln!(text, "{:>12} {:>7}  {name}", amount(sum, &kind.unit), share(sum, total));
    }
    text
}

/// What was captured, how, and what is missing from it, with one sentence on each line.
#[must_use]
pub fn summary(capture: &Capture) -> String {
    let mut text = capture.event.name().to_owned();
    if capture.duration_ns > 0 {
        _ = write!(text, " over {}", amount(i64::try_from(capture.duration_ns).unwrap_or(i64::MAX), "nanoseconds"));
    }
    _ = writeln!(text, ", {} samples", amount(i64::try_from(capture.sample_count()).unwrap_or(i64::MAX), "count"));
    if !capture.engine.is_empty() {
        _ = writeln!(text, "{}", capture.engine.replace(char::is_control, " "));
    }
    for (count, what) in [
        (capture.lost, "samples lost by the kernel"),
        (capture.throttled, "times throttled by the kernel"),
        (capture.dropped, "samples beyond the bounds of a capture"),
    ] {
        if count > 0 {
            _ = writeln!(text, "{count} {what}");
        }
    }
    text
}

/// A value with its unit, in three or four digits, for people.
#[must_use]
pub fn amount(value: i64, unit: &str) -> String {
    let scales: &[(f64, &str)] = match unit {
        "nanoseconds" => &[(1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns")],
        "bytes" => &[((1u64 << 30) as f64, "GiB"), ((1u64 << 20) as f64, "MiB"), (1024.0, "KiB"), (1.0, "B")],
        _ => {
            let digits = value.unsigned_abs().to_string();
            let mut text = String::from(if value < 0 { "-" } else { "" });
            for (index, digit) in digits.chars().enumerate() {
                if index > 0 && (digits.len() - index).is_multiple_of(3) {
                    text.push(' ');
                }
                text.push(digit);
            }
            return text;
        }
    };
    let size = value as f64;
    let &(scale, name) = scales.iter().find(|(scale, _)| size.abs() >= *scale).unwrap_or(&scales[scales.len() - 1]);
    let scaled = size / scale;
    let decimals = if scale == 1.0 || scaled.abs() >= 100.0 { 0 } else { 2 - usize::from(scaled.abs() >= 10.0) };
    format!("{scaled:.decimals$} {name}")
}

/// A time as people write it: `2026-11-25 18:50:01 UTC`.
#[must_use]
pub fn moment(unix_ms: u64) -> String {
    let text = threads::utc(unix_ms);
    format!("{} UTC", text.split_once('.').map_or(&*text, |(seconds, _)| seconds))
}

fn share(value: i64, total: i64) -> String {
    if total == 0 { String::new() } else { format!("{:.2} %", value as f64 * 100.0 / total as f64) }
}

/// A frame's name with the mark of its place.
pub(crate) fn marked(frame: &Frame) -> Cow<'_, str> {
    match frame.place {
        FramePlace::User | FramePlace::Label => Cow::Borrowed(&frame.function),
        FramePlace::Kernel => Cow::Owned(format!("{}_[k]", frame.function)),
        FramePlace::Inlined => Cow::Owned(format!("{}_[i]", frame.function)),
    }
}

/// The name without the characters that separate frames and lines in folded stacks; `?` if it is
/// empty.
fn one_word(name: &str) -> Cow<'_, str> {
    if name.is_empty() {
        return Cow::Borrowed("?");
    }
    if name.contains(|char: char| char == ';' || char.is_control()) {
        return Cow::Owned(name.replace(';', ":").replace(char::is_control, "?"));
    }
    Cow::Borrowed(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{Event, FrameId, ValueType};

    #[test]
    fn a_perf_script_ends_at_its_bound_and_says_what_is_left_out() {
        let mut capture = Capture::new(Event::Cpu, 0, vec![ValueType::new("cpu", "nanoseconds")], 0);
        let frame = Frame { function: "f".into(), file: None, line: 0, place: FramePlace::User, address: 1 };
        let ids: Vec<FrameId> = capture.frame(frame).into_iter().collect();
        let stack = capture.stack(&ids).expect("room");
        for at_ns in 0..100 {
            capture.push(Sample { at_ns, thread: ThreadIndex(0), cpu: 0, stack, values: [1; 4] });
        }
        let (whole, cut) = (perf_script(&capture), perf_script_of(&capture, 1000));
        assert!(whole.matches("cpu-clock").count() == 100 && !whole.contains('#'));
        let kept = cut.matches("cpu-clock").count();
        assert!(kept > 0 && cut.len() < 1200 && whole.starts_with(cut.split_once('#').expect("a comment").0));
        assert!(cut.ends_with(&format!("# {} samples are left out: this text has room for 1000 bytes\n", 100 - kept)));
    }
}

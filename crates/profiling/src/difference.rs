//! What changed between two captures, as text for people: the functions whose shares grew and
//! shrank most.
//!
//! Shares are of the totals, so captures of different lengths and loads compare; how much there was
//! in all is said at the top. CPU is that of the innermost function; what is allocated or waited
//! for is that of the innermost function that is not of a library (or of the lock with its name),
//! since all of it passes through a few functions there. Bound: [`ROWS_MAX`] functions of each
//! kind. Tested below and, through the command, in `tests/profile_command.rs`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::capture::{Capture, Event, FrameId, FramePlace};
use crate::folding::{is_library, is_runtime};
use crate::text::{amount, marked, summary};

/// The most functions that are listed as grown, and as shrunk.
pub const ROWS_MAX: usize = 20;
/// How many times as many samples one of the two may have before a reader is warned.
const SAMPLES_TIMES_MAX: u64 = 2;

/// What a reader of a difference has to know of its samples; `None` if there is nothing.
#[must_use]
pub fn caution(base: &Capture, new: &Capture) -> Option<String> {
    let counts = [base, new].map(Capture::sample_count);
    let (fewest, most) = (counts[0].min(counts[1]), counts[0].max(counts[1]));
    if most == 0 || most < fewest.saturating_mul(SAMPLES_TIMES_MAX) {
        return None;
    }
    let [before, after] = counts.map(|count| amount(i64::try_from(count).unwrap_or(i64::MAX), "count"));
    let each = match fewest {
        0 => "there is nothing to compare with".to_owned(),
        _ => format!(
            "a single sample is {:.2} % of the smaller one, so small changes say nothing",
            100.0 / fewest as f64
        ),
    };
    Some(format!("The base has {before} samples and the new one {after}: {each}."))
}

/// The place in `base` of the type of values that is shown of `new`; `None` if it has none of them.
fn place(base: &Capture, new: &Capture) -> Option<usize> {
    base.types.iter().position(|of| *of == new.types[new.default_type])
}

/// Shares of a function: of its own, and with what it called; in the base and in the new capture.
#[derive(Clone, Copy, Default)]
struct Shares {
    own: [f64; 2],
    all: [f64; 2],
}

impl Shares {
    fn change(&self) -> f64 {
        self.own[1] - self.own[0]
    }
}

/// The frame of a stack to which a value belongs.
fn owner(capture: &Capture, leaf_first: &[FrameId]) -> Option<FrameId> {
    let leaf = leaf_first.first().copied()?;
    if matches!(capture.event, Event::Cpu | Event::Stalls | Event::Other) {
        return Some(leaf);
    }
    let owns = |id: &FrameId| {
        let frame = capture.frame_at(*id);
        match frame.place {
            FramePlace::Label => true,
            FramePlace::Kernel => false,
            FramePlace::User | FramePlace::Inlined => !is_library(frame) && !is_runtime(frame),
        }
    };
    leaf_first.iter().copied().find(owns).or(Some(leaf))
}

fn shares<'a>(captures: [(&'a Capture, Option<usize>); 2]) -> BTreeMap<Cow<'a, str>, Shares> {
    let mut found: BTreeMap<Cow<'a, str>, Shares> = BTreeMap::new();
    for (side, (capture, place)) in captures.into_iter().enumerate() {
        let Some(place) = place else { continue };
        let total: f64 = capture.samples.iter().map(|sample| sample.values[place].max(0) as f64).sum();
        let names: Vec<Cow<'a, str>> = capture.frames().iter().map(marked).collect();
        let mut seen: Vec<&Cow<'a, str>> = Vec::new();
        for sample in capture.folded().iter().filter(|sample| sample.values[place] > 0) {
            let share = sample.values[place] as f64 / total;
            let stack = capture.stack_at(sample.stack);
            seen.clear();
            seen.extend(stack.iter().map(|id| &names[id.0 as usize]));
            if let Some(owner) = owner(capture, stack) {
                found.entry(names[owner.0 as usize].clone()).or_default().own[side] += share;
            }
            // A function that calls itself is counted once.
            seen.sort_unstable();
            seen.dedup();
            for &name in &seen {
                found.entry(name.clone()).or_default().all[side] += share;
            }
        }
    }
    found
}

/// The difference as text.
#[must_use]
pub fn text(base: &Capture, new: &Capture) -> String {
    let kind = &new.types[new.default_type];
    let (before, after) = (place(base, new), new.default_type);
    let mut text = String::new();
    for (which, capture, place) in [("base", base, before), ("new", new, Some(after))] {
        let total = place.map_or(0, |place| capture.total(place));
        let summary = summary(capture);
        let first = summary.lines().next().unwrap_or_default();
        _ = writeln!(
            text,
            "{which:<4}  {first}, {} in all ({} in {})",
            amount(total, &kind.unit),
            kind.name,
            kind.unit
        );
    }
    if let Some(caution) = caution(base, new) {
        _ = writeln!(text, "{caution}");
    }
    let shares = shares([(base, before), (new, Some(after))]);
    let mut rows: Vec<_> = shares.iter().filter(|(_, shares)| shares.change().abs() >= 0.00005).collect();
    rows.sort_by(|a, b| b.1.change().total_cmp(&a.1.change()).then_with(|| a.0.cmp(b.0)));
    let grown = rows.iter().take_while(|(_, shares)| shares.change() > 0.0).count();
    let (grew, shrank) = rows.split_at(grown);
    list(&mut text, "grew", grew.iter().copied());
    list(&mut text, "shrank", shrank.iter().rev().copied());
    text.push_str("\nShares are of each profile's total; changes are in points of a hundred.\n");
    text
}

fn list<'a>(text: &mut String, what: &str, rows: impl ExactSizeIterator<Item = (&'a Cow<'a, str>, &'a Shares)>) {
    let count = rows.len();
    if count == 0 {
        _ = writeln!(text, "\nNo function {what}.");
        return;
    }
    _ = writeln!(text, "\n{:>8} {:>8} {:>8}   {:>8} {:>8} {:>8}", "itself", "", "", "with all", "it calls", "");
    _ = writeln!(
        text,
        "{:>8} {:>8} {:>8}   {:>8} {:>8} {:>8}  what {what}",
        "base", "new", "change", "base", "new", "change"
    );
    for (name, shares) in rows.take(ROWS_MAX) {
        for ([before, after], gap) in [(shares.own, "  "), (shares.all, "")] {
            let [b, a] = [before, after].map(|share| format!("{:.2} %", share * 100.0));
            _ = write!(text, "{b:>8} {a:>8} {:>+8.2} {gap}", (after - before) * 100.0);
        }
        _ = writeln!(text, " {}", name.replace(char::is_control, "?"));
    }
    if count > ROWS_MAX {
        _ = writeln!(text, "… and {} more functions {what}", count - ROWS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{Event, Frame, FramePlace, Sample, ThreadIndex, ValueType};

    fn capture(stacks: &[(&[&str], i64)], taken: u64) -> Capture {
        let mut capture = Capture::new(Event::Cpu, 0, vec![ValueType::new("cpu", "nanoseconds")], 0);
        (capture.taken, capture.duration_ns) = (taken, 10_000_000_000);
        for (names, value) in stacks {
            let frame = |name: &&str| Frame {
                function: (*name).into(),
                file: None,
                line: 0,
                place: FramePlace::User,
                address: 0,
            };
            let ids: Vec<_> = names.iter().rev().map(|name| capture.frame(frame(name)).expect("room")).collect();
            let stack = capture.stack(&ids).expect("room");
            let values = [*value, 0, 0, 0];
            capture.push(Sample { at_ns: 0, thread: ThreadIndex(0), cpu: 0, stack, values });
        }
        capture
    }

    #[test]
    fn what_grew_and_shrank_is_listed_by_its_share() {
        let base = capture(&[(&["main", "read"], 50), (&["main", "write"], 50)], 100);
        // Twice as much in all: what only kept its share is not in the list.
        let new = capture(&[(&["main", "read"], 100), (&["main", "write"], 20), (&["main", "pack", "pack"], 80)], 150);
        let text = text(&base, &new);
        let line = |name: &str| text.lines().position(|line| line.ends_with(&format!(" {name}"))).expect(name);
        assert!(line("pack") < line("write") && !text.contains(" read\n") && !text.contains(" main\n"), "{text}");
        let words =
            |name: &str| text.lines().nth(line(name)).expect("it").split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words("pack"), "0.00 % 40.00 % +40.00 0.00 % 40.00 % +40.00 pack");
        assert_eq!(words("write"), "50.00 % 10.00 % -40.00 50.00 % 10.00 % -40.00 write");
        assert!(text.starts_with("base  cpu over 10.0 s, 100 samples, 100 ns in all"), "{text}");
        assert!(!text.contains("say nothing"), "{text}");
    }

    #[test]
    fn what_is_allocated_belongs_to_the_function_that_wanted_it() {
        let mut base = capture(&[(&["serve", "read", "alloc::alloc::alloc"], 10)], 9);
        let mut new = capture(&[(&["serve", "write", "<alloc::vec::Vec<T> as core::clone::Clone>::clone"], 10)], 9);
        (base.event, new.event) = (Event::Allocs, Event::Allocs);
        let text = text(&base, &new);
        assert!(text.contains("+100.00  write\n") && text.contains("-100.00  read\n"), "{text}");
        assert!(!text.contains(" alloc::alloc") && !text.contains("clone"), "{text}");
    }

    #[test]
    fn captures_with_very_different_samples_are_marked() {
        let of = |taken| capture(&[(&["main"], 1)], taken);
        let caution = |base, new| caution(&of(base), &of(new));
        let said = caution(82, 581).expect("a warning");
        assert!(said.contains("82 samples") && said.contains("581") && said.contains("1.22 %"), "{said}");
        assert!(caution(581, 82).is_some() && caution(100, 200).is_some() && caution(100, 199).is_none());
        assert!(text(&of(82), &of(581)).contains(&said));
        let none = Capture::new(Event::Cpu, 0, vec![ValueType::new("cpu", "nanoseconds")], 0);
        assert!(super::caution(&none, &none).is_none());
        assert!(super::caution(&none, &of(9)).is_some_and(|said| said.contains("nothing to compare with")));
        assert!(text(&none, &none).contains("No function grew.") && text(&none, &of(9)).contains(" main\n"));
    }

    #[test]
    fn a_base_with_other_values_has_no_shares() {
        let mut base = capture(&[(&["main"], 1)], 9);
        base.types = vec![ValueType::new("samples", "count")];
        let text = text(&base, &capture(&[(&["main"], 1)], 9));
        assert!(text.contains("0 ns in all") && text.contains("+100.00"), "{text}");
    }
}

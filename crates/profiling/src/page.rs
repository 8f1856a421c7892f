//! Interactive pages, each a single file that needs no network: flame graph, heatmap, difference of
//! two captures.
//!
//! A page is `assets/page.html` with the style, the scripts and the data inside; style and scripts
//! are the same for all kinds. The data is JSON with names, a prefix tree of stacks, and rows of
//! samples. Numbers are strings of 5-bit digits in the alphabet of URL-safe base64, low digit
//! first, with one more bit that says that another digit follows; signed numbers are in zigzag. The
//! tree has, for each node (parents first), how many levels it is above the child of the previous
//! node, then its frame. The stacks are nodes, as differences; for each there is how many frames at
//! its root are folded (`folding.rs`). A row has the milliseconds since the
//! previous row (in heatmaps only), the stack (as a difference, except in heatmaps), the thread,
//! and the columns of values, divided by their common divisor.
//!
//! Invariants: text that comes from names reaches the page only inside JSON strings without `<`,
//! `>` and `&`, or [`escaped`](crate::markup::escaped); the page denies itself the network
//! (Content-Security-Policy). Bound: [`NODES_MAX`]; the page says what was cut. The page leaves out
//! values of 0 and less, since they have no width. Tested in `tests/page.rs` and, in a real
//! browser, in `tests/browser.rs`.

use crate::capture::{Capture, FrameId, FramePlace, Sample};
use crate::markup;
use crate::svg::is_standard;
use crate::text;
use crate::{difference, folding};
use std::collections::HashMap;
use std::fmt::Write;

/// The most nodes of a page's tree: some ten megabytes, which a browser can still show. When the
/// tree is full, further stacks end at their last frame that is in it, and the page says how many
/// were cut.
pub const NODES_MAX: usize = 1 << 20;

const PAGE: &str = include_str!("../assets/page.html");
const STYLE: &str = include_str!("../assets/page.css");
const SCRIPTS: [&str; 4] = [
    include_str!("../assets/data.js"),
    include_str!("../assets/flame.js"),
    include_str!("../assets/heat.js"),
    include_str!("../assets/page.js"),
];

/// A page with a flame graph.
#[must_use]
pub fn flamegraph(capture: &Capture, title: &str) -> String {
    page("flame", &[capture], title)
}

/// A page with a heatmap over time; below it is the flame graph of the span that is selected in it.
#[must_use]
pub fn heatmap(capture: &Capture, title: &str) -> String {
    page("heat", &[capture], title)
}

/// A page with a flame graph of what changed between two captures of one event, as shares of their
/// totals.
///
/// Types of values that `base` does not have are shown as new.
#[must_use]
pub fn diff(base: &Capture, new: &Capture, title: &str) -> String {
    page("diff", &[base, new], title)
}

/// Makes a page. The types are those of the last capture; if there are two captures, the first is
/// the base.
fn page(kind: &str, captures: &[&Capture], title: &str) -> String {
    let data = data(kind, captures);
    let mut html = String::with_capacity(PAGE.len() + STYLE.len() + data.len() + (64 << 10));
    // One pass over the template: text that was filled in is not searched again.
    let mut rest = PAGE;
    while let Some((before, (key, after))) =
        rest.split_once("{{").and_then(|(before, tail)| Some((before, tail.split_once("}}")?)))
    {
        html.push_str(before);
        match key {
            "title" => html.push_str(&markup::escaped(title)),
            "style" => html.push_str(STYLE),
            "data" => html.push_str(&data),
            "script" => SCRIPTS.iter().for_each(|script| html.push_str(script)),
            _ => unreachable!("the template has no other keys"),
        }
        rest = after;
    }
    html.push_str(rest);
    html
}

fn data(kind: &str, captures: &[&Capture]) -> String {
    let timed = kind == "heat";
    let last = captures[captures.len() - 1];
    let mut forest = Forest::default();
    let sides: Vec<Vec<Row>> = captures.iter().map(|capture| forest.rows(capture, last, timed)).collect();
    let order = forest.order();
    let columns = Columns::of(&sides, last.types.len());

    let mut json = format!("{{\"kind\":\"{kind}\",\"event\":\"{}\",\"types\":[", last.event.name());
    for (index, (of, scale)) in last.types.iter().zip(&columns.scales).enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let column = columns.column_of[index];
        _ = write!(json, "{comma}[{},{},{scale},{column}]", quoted(&of.name), quoted(&of.unit));
    }
    _ = write!(json, "],\"type\":{},\"threads\":[", last.default_type);
    list(&mut json, forest.threads.iter().map(|name| quoted(name)));
    json.push_str("],\"frames\":[");
    list(&mut json, order.frames.iter().map(|&frame| quoted(&forest.frames[frame as usize])));
    let Order { tree, stacks, folds, .. } = &order;
    _ = write!(json, "],\"tree\":\"{tree}\",\"stacks\":\"{stacks}\",\"folds\":\"{folds}\",");
    if let [base, new] = captures
        && let Some(caution) = difference::caution(base, new)
    {
        _ = write!(json, "\"caution\":{},", quoted(&caution));
    }
    json.push_str("\"sides\":[");
    let sides = captures.iter().zip(sides).map(|(capture, rows)| {
        let mut notes: Vec<String> = text::summary(capture).lines().map(quoted).collect();
        if forest.cut > 0 {
            notes.push(quoted(&format!("{} stacks cut: the page has room for {NODES_MAX} nodes", forest.cut)));
        }
        let (began, ns) = (capture.began_unix_ms, capture.duration_ns);
        let rows = columns.rows(rows, &order, timed);
        format!("{{\"began\":{began},\"ns\":{ns},\"notes\":[{}],\"rows\":\"{rows}\"}}", notes.join(","))
    });
    list(&mut json, sides);
    json.push_str("]}");
    json
}

struct Row {
    at_ms: u64,
    node: u32,
    thread: u32,
    values: [i64; 4],
}

/// Stacks of one or more captures as one tree; node 0 is its root.
#[derive(Default)]
struct Forest {
    /// The letter of the frame's place, followed by its name.
    frames: Vec<String>,
    frame_ids: HashMap<String, u32>,
    threads: Vec<String>,
    /// The frame of each node; 0 for the root, which has none.
    node_frames: Vec<u32>,
    children: Vec<Vec<u32>>,
    node_ids: HashMap<(u32, u32), u32>,
    ends: Vec<bool>,
    /// For each node at which a stack ends, how many of its frames are folded.
    folds: Vec<u32>,
    /// How many stacks are not in the tree down to their leaf.
    cut: u64,
}

impl Forest {
    fn rows(&mut self, capture: &Capture, types: &Capture, timed: bool) -> Vec<Row> {
        if self.children.is_empty() {
            self.node(0, 0);
        }
        let frames: Vec<u32> = (0..capture.frames().len() as u32).map(|id| self.frame(capture, FrameId(id))).collect();
        let nodes: Vec<u32> = capture.stacks().iter().map(|stack| self.place(capture, stack, &frames)).collect();
        // The index of each type in this capture; a base may have been taken with other types.
        let places: Vec<Option<usize>> =
            types.types.iter().map(|of| capture.types.iter().position(|other| other == of)).collect();
        let mut samples: Vec<Sample> = if timed { capture.samples.clone() } else { capture.folded() };
        samples.sort_by_key(|sample| sample.at_ns);
        let mut rows: Vec<Row> = samples
            .iter()
            .map(|sample| {
                let node = nodes[sample.stack.0 as usize];
                self.ends[node as usize] = true;
                let mut values = [0; 4];
                for (value, place) in values.iter_mut().zip(&places) {
                    *value = place.map_or(0, |place| sample.values[place]);
                }
                let thread = self.thread(&capture.thread_name(sample.thread));
                Row { at_ms: sample.at_ns / 1_000_000, node, thread, values }
            })
            .collect();
        if !timed {
            // Here, stacks that differ in addresses only are one stack.
            rows.sort_by_key(|row| (row.node, row.thread));
            rows.dedup_by(|row, kept| {
                let same = (row.node, row.thread) == (kept.node, kept.thread);
                if same {
                    kept.values.iter_mut().zip(row.values).for_each(|(sum, value)| *sum += value);
                }
                same
            });
        }
        rows
    }

    /// The node of a stack, as [`Forest::path`] returns it; notes how much of the stack is folded.
    fn place(&mut self, capture: &Capture, stack: &[FrameId], frames: &[u32]) -> u32 {
        let (node, depth) = self.path(stack, frames);
        let folded = folding::folded(stack.iter().rev().map(|&id| capture.frame_at(id))) as u32;
        // Stacks that differ in files only are one: the least is folded.
        let known = &mut self.folds[node as usize];
        *known = folded.min(depth.saturating_sub(1)).min(*known);
        node
    }

    /// The node of a stack or, if the tree is full, of the part of it that is in the tree; and how
    /// many frames that has.
    fn path(&mut self, stack: &[FrameId], frames: &[u32]) -> (u32, u32) {
        let (mut node, mut depth) = (0, 0);
        for id in stack.iter().rev() {
            let frame = frames[id.0 as usize];
            node = match self.node_ids.get(&(node, frame)) {
                Some(&child) => child,
                None if self.node_frames.len() < NODES_MAX => self.node(node, frame),
                None => {
                    self.cut += 1;
                    return (node, depth);
                }
            };
            depth += 1;
        }
        (node, depth)
    }

    fn frame(&mut self, capture: &Capture, id: FrameId) -> u32 {
        let frame = capture.frame_at(id);
        let place = match frame.place {
            FramePlace::Kernel => 'k',
            FramePlace::Label => 'l',
            _ if is_standard(&frame.function) => 's',
            FramePlace::Inlined => 'i',
            FramePlace::User => 'u',
        };
        let name = format!("{place}{}", if frame.function.is_empty() { "?" } else { &frame.function });
        let next = self.frames.len() as u32;
        *self.frame_ids.entry(name).or_insert_with_key(|name| {
            self.frames.push(name.clone());
            next
        })
    }

    fn thread(&mut self, name: &str) -> u32 {
        let known = self.threads.iter().position(|thread| thread == name);
        known.unwrap_or_else(|| {
            self.threads.push(name.to_owned());
            self.threads.len() - 1
        }) as u32
    }

    fn node(&mut self, parent: u32, frame: u32) -> u32 {
        let node = self.node_frames.len() as u32;
        self.node_frames.push(frame);
        self.children.push(Vec::new());
        self.ends.push(false);
        self.folds.push(u32::MAX);
        if node > 0 {
            self.children[parent as usize].push(node);
            self.node_ids.insert((parent, frame), node);
        }
        node
    }

    /// Puts parents before children, and the frames that most nodes have first, since these then
    /// take the fewest digits.
    fn order(&self) -> Order {
        let mut counts = vec![(0u32, 0u32); self.frames.len()];
        counts.iter_mut().enumerate().for_each(|(frame, count)| count.1 = frame as u32);
        self.node_frames.iter().skip(1).for_each(|&frame| counts[frame as usize].0 += 1);
        counts.sort_unstable_by_key(|&(count, frame)| (std::cmp::Reverse(count), frame));
        let mut ranks = vec![0u64; counts.len()];
        counts.iter().enumerate().for_each(|(rank, &(_, frame))| ranks[frame as usize] = rank as u64);

        let mut order = Order {
            frames: counts.into_iter().map(|(_, frame)| frame).collect(),
            tree: String::new(),
            stacks: String::new(),
            folds: String::new(),
            stack_of: vec![0; self.node_frames.len()],
        };
        let (mut depth_before, mut seen, mut stacks, mut stack_before) = (0, 0u64, 0, 0);
        let mut todo = vec![(0u32, 0u64)];
        while let Some((node, depth)) = todo.pop() {
            if node > 0 {
                number(&mut order.tree, depth_before + 1 - depth);
                number(&mut order.tree, ranks[self.node_frames[node as usize] as usize]);
            }
            depth_before = depth;
            if self.ends[node as usize] {
                order.stack_of[node as usize] = stacks;
                stacks += 1;
                number(&mut order.stacks, seen - stack_before);
                number(&mut order.folds, self.folds[node as usize].into());
                stack_before = seen;
            }
            seen += 1;
            todo.extend(self.children[node as usize].iter().rev().map(|&child| (child, depth + 1)));
        }
        order
    }
}

struct Order {
    frames: Vec<u32>,
    tree: String,
    stacks: String,
    folds: String,
    stack_of: Vec<u64>,
}

/// The columns of values: types whose values differ only by a factor share a column.
struct Columns {
    scales: Vec<i64>,
    column_of: Vec<usize>,
    /// The type from which each column was made.
    sources: Vec<usize>,
}

impl Columns {
    fn of(sides: &[Vec<Row>], types: usize) -> Self {
        let rows = || sides.iter().flatten();
        let mut columns = Self { scales: Vec::new(), column_of: Vec::new(), sources: Vec::new() };
        for index in 0..types {
            let divisor = rows().fold(0, |divisor, row| gcd(divisor, row.values[index].unsigned_abs()));
            let scale = i64::try_from(divisor).unwrap_or(1).max(1);
            let same = |&source: &usize| {
                rows().all(|row| row.values[source] / columns.scales[source] == row.values[index] / scale)
            };
            let column = columns.sources.iter().position(same);
            columns.scales.push(scale);
            columns.column_of.push(column.unwrap_or_else(|| {
                columns.sources.push(index);
                columns.sources.len() - 1
            }));
        }
        columns
    }

    fn rows(&self, mut rows: Vec<Row>, order: &Order, timed: bool) -> String {
        if !timed {
            rows.sort_by_key(|row| (order.stack_of[row.node as usize], row.thread));
        }
        let mut text = String::new();
        let (mut at_before, mut stack_before) = (0, 0);
        for row in rows {
            let stack = order.stack_of[row.node as usize];
            if timed {
                number(&mut text, row.at_ms - at_before);
                number(&mut text, stack);
            } else {
                number(&mut text, stack - stack_before);
            }
            (at_before, stack_before) = (row.at_ms, stack);
            number(&mut text, u64::from(row.thread));
            for &source in &self.sources {
                let value = row.values[source] / self.scales[source];
                number(&mut text, ((value << 1) ^ (value >> 63)) as u64);
            }
        }
        text
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

fn number(text: &mut String, mut value: u64) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    loop {
        let more = if value >= 32 { 32 } else { 0 };
        text.push(char::from(DIGITS[(value % 32 + more) as usize]));
        value /= 32;
        if more == 0 {
            return;
        }
    }
}

fn list(json: &mut String, items: impl Iterator<Item = String>) {
    for (index, item) in items.enumerate() {
        if index > 0 {
            json.push(',');
        }
        json.push_str(&item);
    }
}

/// A JSON string that neither HTML nor a script could mistake for anything else.
fn quoted(text: &str) -> String {
    let mut json = String::from("\"");
    for char in text.chars() {
        match char {
            '"' | '\\' => json.extend(['\\', char]),
            '<' | '>' | '&' | '\'' | '\u{2028}' | '\u{2029}' => _ = write!(json, "\\u{:04x}", u32::from(char)),
            _ if char.is_control() => _ = write!(json, "\\u{:04x}", u32::from(char)),
            _ => json.push(char),
        }
    }
    json.push('"');
    json
}

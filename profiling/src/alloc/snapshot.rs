//! From counted stacks to captures.
//!
//! Owner: the thread that serves a profile; it may be slow and it allocates, also through the sampling allocator, which does not mind.
//! Invariant: cumulative values of later snapshots are not smaller; live ones are not negative.

use std::collections::HashMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::table::{self, OVERFLOW, Row};
use super::{OBJECT, RATE, STACKS_MAX, TABLE};
use crate::capture::{Capture, Event, Frame, FrameId, Place, Sample, Thread, ThreadIndex, ValueType};

/// Names for addresses.
pub trait Symbolise {
    /// Appends the frames of an address: inlined ones first, then the function they are inlined into. The address is as the stack has it:
    /// that of an instruction if `is_leaf`, else a return address, which names the call when 1 is subtracted. An address without a name
    /// is a frame too.
    fn frames(&mut self, address: u64, is_leaf: bool, out: &mut Vec<Frame>);
}

/// What had been allocated and freed at one moment.
#[derive(Clone, Debug)]
pub struct RawSnapshot {
    at: Instant,
    unix_ms: u64,
    rows: Vec<Row>,
}

/// What has been allocated and freed until now. Sums of different stacks are not of the very same instant.
#[must_use]
pub fn snapshot() -> RawSnapshot {
    RawSnapshot { at: Instant::now(), unix_ms: unix_ms(), rows: TABLE.rows() }
}

/// Everything allocated since the program began.
pub fn allocs(symbolise: &mut impl Symbolise) -> Capture {
    let now = snapshot();
    capture(Event::Allocs, now.unix_ms, 0, &[], &now.rows, symbolise)
}

/// What is live now, and also everything allocated since the program began.
pub fn heap(symbolise: &mut impl Symbolise) -> Capture {
    let now = snapshot();
    capture(Event::Heap, now.unix_ms, 0, &[], &now.rows, symbolise)
}

/// What was allocated between two snapshots, and by how much the live heap grew: live values are negative where it shrank. `event` is
/// [`Event::Allocs`] or [`Event::Heap`]; it says which value is shown first.
pub fn difference(event: Event, before: &RawSnapshot, after: &RawSnapshot, symbolise: &mut impl Symbolise) -> Capture {
    let duration = after.at.saturating_duration_since(before.at).as_nanos() as u64;
    capture(event, before.unix_ms, duration, &before.rows, &after.rows, symbolise)
}

fn capture(
    event: Event,
    began_unix_ms: u64,
    duration_ns: u64,
    before: &[Row],
    after: &[Row],
    symbolise: &mut impl Symbolise,
) -> Capture {
    let types = vec![
        ValueType::new("alloc_objects", "count"),
        ValueType::new("alloc_space", "bytes"),
        ValueType::new("inuse_objects", "count"),
        ValueType::new("inuse_space", "bytes"),
    ];
    let mut capture = Capture::new(event, began_unix_ms, types, if event == Event::Heap { 3 } else { 1 });
    capture.duration_ns = duration_ns;
    capture.period = Some((ValueType::new("space", "bytes"), RATE as i64));
    capture.engine = format!(
        "sampling allocator: one allocation in {} KiB on average, weighted to stand for all; at most {STACKS_MAX} distinct stacks",
        RATE / 1024
    );
    let mut stacks = Stacks::new(symbolise, "koltso_profiling::alloc::");
    for (row, [objects, space, freed_objects, freed_space]) in table::difference(before, after) {
        let whole = |objects: i64| (objects + OBJECT as i64 / 2).div_euclid(OBJECT as i64);
        let values = [whole(objects), space, whole(objects - freed_objects), space - freed_space];
        // A cumulative capture keeps what was freed: it tells of all that ever was.
        stacks.push(&mut capture, &row, &row.words, None, values);
    }
    capture
}

/// Makes samples of stacks; each address is looked up once.
pub(crate) struct Stacks<'a, S> {
    symbolise: &'a mut S,
    /// The module whose functions are the engine, not the program.
    engine: &'static str,
    known: HashMap<u64, Address>,
    frames: Vec<Frame>,
}

struct Address {
    frames: Box<[FrameId]>,
    is_engine: bool,
}

/// An engine's own frames are among so many innermost return addresses.
const ENGINE_FRAMES_MAX: usize = 8;

impl<'a, S: Symbolise> Stacks<'a, S> {
    pub(crate) fn new(symbolise: &'a mut S, engine: &'static str) -> Self {
        Self { symbolise, engine, known: HashMap::new(), frames: Vec::new() }
    }

    /// Adds a sample, unless it is all zeros. `addresses` are return addresses, innermost first.
    pub(crate) fn push(
        &mut self,
        capture: &mut Capture,
        row: &Row,
        addresses: &[u64],
        label: Option<&str>,
        values: [i64; 4],
    ) {
        if values == [0; 4] {
            return;
        }
        if capture.threads.is_empty() {
            // The engines that add up do not tell threads apart.
            capture.threads.push(Thread { tid: std::process::id(), name: "all".into() });
        }
        let mut labels = Vec::new();
        if row.slot == OVERFLOW {
            labels.push("stacks beyond the bound".to_owned());
            capture.dropped += values[0].unsigned_abs();
        }
        labels.extend(label.map(ToOwned::to_owned));
        let mut ids: Vec<FrameId> = labels.into_iter().filter_map(|name| capture.frame(named(name))).collect();
        for address in addresses {
            self.look_up(capture, *address);
        }
        let innermost = &addresses[..addresses.len().min(ENGINE_FRAMES_MAX)];
        let own = innermost.iter().rposition(|address| self.known[address].is_engine).map_or(0, |last| last + 1);
        for address in &addresses[own..] {
            ids.extend_from_slice(&self.known[address].frames);
        }
        if ids.is_empty() {
            ids.extend(capture.frame(named("no stack".to_owned())));
        }
        match capture.stack(&ids) {
            Some(stack) => capture.push(Sample { at_ns: 0, thread: ThreadIndex(0), cpu: u16::MAX, stack, values }),
            None => capture.dropped += 1,
        }
    }

    fn look_up(&mut self, capture: &mut Capture, address: u64) {
        if self.known.contains_key(&address) {
            return;
        }
        self.frames.clear();
        self.symbolise.frames(address, false, &mut self.frames);
        let is_own = |frame: &Frame| {
            let name = &frame.function;
            // The compiler's calls of the global allocator are of no interest either: `__rustc::__rust_alloc`.
            let last = name.rsplit("::").next().unwrap_or_default();
            let is_shim = ["__rust_", "__rg_", "__rdl_"].iter().any(|shim| last.starts_with(shim));
            is_shim || name.trim_start_matches('<').starts_with(self.engine)
        };
        let last_own = self.frames.iter().rposition(is_own);
        // A function of the program into which the engine is inlined keeps its own frame.
        let kept = last_own.map_or(0, |last| last + 1);
        let is_engine = last_own.is_some() && kept == self.frames.len();
        let kept = if is_engine { 0 } else { kept };
        let frames = self.frames.drain(kept..).filter_map(|frame| capture.frame(frame)).collect();
        self.known.insert(address, Address { frames, is_engine });
    }
}

fn named(name: String) -> Frame {
    Frame { function: name.into(), file: None, line: 0, place: Place::Label, address: 0 }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

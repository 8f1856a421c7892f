//! Turns counted stacks into captures.
//!
//! Owner: the thread that serves a profile. It may be slow, and it may allocate through the
//! sampling allocator. Invariant: cumulative values of a later snapshot are not smaller, and live
//! ones are not negative.

use std::collections::HashMap;
use std::time::Instant;

use koltso_instrument::table::{self, OVERFLOW, Row};

use super::{OBJECT, RATE, STACKS_MAX, TABLE};
use crate::capture::{Capture, Event, Frame, FrameId, FramePlace, Sample, StackId, Thread, ThreadIndex, ValueType};
use crate::threads;

/// Names for addresses.
pub trait Symbolise {
    /// Appends the frames of an address: inlined ones first, then the function into which they are
    /// inlined. If `is_leaf`, the address is that of an instruction; otherwise it is a return
    /// address, of which 1 must be subtracted to name the call. An address without a name is a
    /// frame too.
    fn frames(&mut self, address: u64, is_leaf: bool, out: &mut Vec<Frame>);
}

/// What had been allocated and freed up to one moment.
#[derive(Clone, Debug)]
pub struct RawSnapshot {
    pub(super) at: Instant,
    pub(super) unix_ms: u64,
    pub(super) rows: Vec<Row>,
}

/// What has been allocated and freed so far. The sums of different stacks are not all read at the
/// same instant.
#[must_use]
pub fn snapshot() -> RawSnapshot {
    RawSnapshot { at: Instant::now(), unix_ms: threads::unix_ms(), rows: TABLE.rows() }
}

/// Everything allocated since the program began.
pub fn allocs(symbolise: &mut impl Symbolise) -> Capture {
    let now = snapshot();
    capture(Event::Allocs, now.unix_ms, 0, &[], &now.rows, symbolise)
}

/// What is live now, together with everything allocated since the program began.
pub fn heap(symbolise: &mut impl Symbolise) -> Capture {
    let now = snapshot();
    capture(Event::Heap, now.unix_ms, 0, &[], &now.rows, symbolise)
}

/// What was allocated between two snapshots, and by how much the live heap grew; live values are
/// negative where it shrank. `event` is [`Event::Allocs`] or [`Event::Heap`] and says which value
/// is shown first.
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
    let mut capture = empty(event, began_unix_ms, duration_ns);
    let mut stacks = Stacks::new(symbolise, OWN_FRAMES);
    for (row, counts) in table::difference(before, after) {
        // A cumulative capture keeps what has been freed, since it is about everything that was
        // ever allocated.
        stacks.push(&mut capture, row.slot == OVERFLOW, &row.words, None, values(counts));
    }
    capture
}

pub(super) const OWN_FRAMES: OwnFrames =
    OwnFrames { names: "koltso_profiling::alloc::Sampling", sources: &["profiling/src/alloc/mod.rs"] };

/// A capture without samples.
pub(super) fn empty(event: Event, began_unix_ms: u64, duration_ns: u64) -> Capture {
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
    capture
}

/// The values of a sample, computed from the counts of a table.
pub(super) fn values([objects, space, freed_objects, freed_space]: [i64; 4]) -> [i64; 4] {
    let whole = |objects: i64| (objects + OBJECT as i64 / 2).div_euclid(OBJECT as i64);
    [whole(objects), space, whole(objects - freed_objects), space - freed_space]
}

/// Tells an engine's own frames from the program's: by the names of functions or, where debug
/// information has only their last segments, by the source files.
pub(crate) struct OwnFrames {
    pub(crate) names: &'static str,
    pub(crate) sources: &'static [&'static str],
}

impl OwnFrames {
    fn has(&self, frame: &Frame) -> bool {
        // The compiler's calls of the global allocator, such as `__rustc::__rust_alloc`, are of no
        // interest either. Not every such name is one of them: `__rust_begin_short_backtrace` is at
        // the root of a thread.
        let last = frame.function.rsplit("::").next().unwrap_or_default();
        let shim = ["__rust_", "__rg_", "__rdl_"].iter().find_map(|shim| last.strip_prefix(shim));
        shim.is_some_and(|call| ["alloc", "alloc_zeroed", "dealloc", "realloc"].contains(&call))
            || frame.function.trim_start_matches('<').starts_with(self.names)
            || frame.file.as_ref().is_some_and(|file| self.sources.iter().any(|source| file.contains(source)))
    }
}

/// Turns stacks into samples, and looks each address up only once.
pub(crate) struct Stacks<'a, S> {
    symbolise: &'a mut S,
    own: OwnFrames,
    known: HashMap<u64, Address>,
}

struct Address {
    /// The frames that have no id yet: all until the first sample with this address.
    frames: Vec<Frame>,
    ids: Vec<FrameId>,
    is_engine: bool,
}

/// An engine's own frames are among this many innermost return addresses.
const ENGINE_FRAMES_MAX: usize = 8;

impl<'a, S: Symbolise> Stacks<'a, S> {
    pub(crate) fn new(symbolise: &'a mut S, own: OwnFrames) -> Self {
        Self { symbolise, own, known: HashMap::new() }
    }

    /// Adds a sample unless its values are all 0. `addresses` are return addresses, innermost
    /// first; for what had no room in the table there are none, and `is_overflow` is set.
    pub(crate) fn push(
        &mut self,
        capture: &mut Capture,
        is_overflow: bool,
        addresses: &[u64],
        label: Option<&str>,
        values: [i64; 4],
    ) {
        if values == [0; 4] {
            return;
        }
        if is_overflow {
            // This is in the unit of the first value: objects or contentions.
            capture.dropped += values[0].unsigned_abs();
        }
        match self.stack(capture, is_overflow, addresses, label) {
            Some(stack) => capture.push(Sample { at_ns: 0, thread: ThreadIndex(0), cpu: u16::MAX, stack, values }),
            None => capture.dropped += 1,
        }
    }

    /// Adds a stack, given as to [`Stacks::push`], to the capture; `None` if the capture has no
    /// room for it.
    pub(crate) fn stack(
        &mut self,
        capture: &mut Capture,
        is_overflow: bool,
        addresses: &[u64],
        label: Option<&str>,
    ) -> Option<StackId> {
        if capture.threads.is_empty() {
            // The engines that only keep sums do not tell threads apart.
            capture.threads.push(Thread { tid: std::process::id(), name: "all".into() });
        }
        let mut labels = Vec::new();
        if is_overflow {
            labels.push("stacks beyond the bound".to_owned());
        }
        labels.extend(label.map(ToOwned::to_owned));
        let mut ids: Vec<FrameId> = labels.into_iter().filter_map(|name| capture.frame(named(name))).collect();
        for address in addresses {
            self.look_up(*address);
        }
        let innermost = &addresses[..addresses.len().min(ENGINE_FRAMES_MAX)];
        let own = innermost.iter().rposition(|address| self.known[address].is_engine).map_or(0, |last| last + 1);
        for address in &addresses[own..] {
            let known = self.known.get_mut(address).expect("looked up above");
            known.ids.extend(known.frames.drain(..).filter_map(|frame| capture.frame(frame)));
            ids.extend_from_slice(&known.ids);
        }
        if ids.is_empty() {
            ids.extend(capture.frame(named("no stack".to_owned())));
        }
        capture.stack(&ids)
    }

    fn look_up(&mut self, address: u64) {
        if self.known.contains_key(&address) {
            return;
        }
        let mut frames = Vec::new();
        self.symbolise.frames(address, false, &mut frames);
        let own = frames.iter().rposition(|frame| self.own.has(frame)).map_or(0, |last| last + 1);
        let is_engine = own > 0 && own == frames.len();
        if !is_engine {
            // A function of the program into which the engine is inlined keeps its own frame.
            frames.drain(..own);
        }
        self.known.insert(address, Address { frames, ids: Vec::new(), is_engine });
    }
}

fn named(name: String) -> Frame {
    Frame { function: name.into(), file: None, line: 0, place: FramePlace::Label, address: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Numbers;

    impl Symbolise for Numbers {
        fn frames(&mut self, address: u64, is_leaf: bool, out: &mut Vec<Frame>) {
            assert!(!is_leaf);
            let name = |name: &str, place| Frame { function: name.into(), file: None, line: 0, place, address };
            match address {
                1 => out.push(name("<koltso_profiling::alloc::Sampling<A> as GlobalAlloc>::alloc", FramePlace::User)),
                2 => {
                    let file = Some("/src/profiling/src/alloc/mod.rs".into());
                    out.push(Frame { file, ..name("alloc<A>", FramePlace::Inlined) });
                    out.push(name("__rustc::__rust_alloc", FramePlace::User));
                }
                3 => {
                    out.push(name("koltso_profiling::alloc::Sampling<A>::sampled_alloc", FramePlace::Inlined));
                    out.push(name("program", FramePlace::User));
                }
                12 => out.push(name("std::sys::backtrace::__rust_begin_short_backtrace", FramePlace::User)),
                _ => out.push(name(&address.to_string(), FramePlace::User)),
            }
        }
    }

    #[test]
    fn stacks_begin_in_the_program_and_what_had_no_room_is_told() {
        let row = |slot, words: &[u64], counts| Row { slot, words: words.into(), counts };
        let objects = |n: u64| n * OBJECT;
        let before = [row(4, &[1, 2, 10, 11], [objects(1), 100, 0, 0]), row(OVERFLOW, &[], [0; 4])];
        let after = [
            row(3, &[1, 3, 11, 12], [objects(2), 20, objects(2), 20]),
            row(4, &[1, 2, 10, 11], [objects(3), 300, objects(2), 200]),
            row(9, &[], [objects(1), 5, 0, 0]),
            row(OVERFLOW, &[], [objects(7), 70, 0, 0]),
        ];
        let capture = capture(Event::Heap, 5, 6, &before, &after, &mut Numbers);
        let told: Vec<(Vec<&str>, [i64; 4])> = capture
            .samples
            .iter()
            .map(|sample| {
                let stack = capture.stack_at(sample.stack).iter();
                (stack.map(|id| &*capture.frame_at(*id).function).collect(), sample.values)
            })
            .collect();
        let expected = vec![
            (vec!["program", "11", "std::sys::backtrace::__rust_begin_short_backtrace"], [2, 20, 0, 0]),
            (vec!["10", "11"], [2, 200, 0, 0]),
            (vec!["no stack"], [1, 5, 1, 5]),
            (vec!["stacks beyond the bound"], [7, 70, 7, 70]),
        ];
        assert_eq!(told, expected);
        assert_eq!((capture.dropped, capture.began_unix_ms, capture.duration_ns), (7, 5, 6));
    }
}

//! A capture: stacks with weights, as every engine makes them and every format reads them.
//!
//! Stacks and frames are interned: 17 000 samples of depth 30 are some hundred kilobytes. Owner: whoever holds it; plain data.
//! Bounds: [`FRAMES_MAX`], [`STACKS_MAX`] and [`SAMPLES_MAX`]; what is beyond is counted in [`Capture::dropped`].
//! Invariants: an id given out is an index that exists; a sample has one value for each of the [`Capture::types`].

use std::borrow::Cow;
use std::collections::HashMap;

/// Distinct frames of a capture.
pub const FRAMES_MAX: usize = 1 << 18;
/// Distinct stacks of a capture.
pub const STACKS_MAX: usize = 1 << 18;
/// Samples of a capture.
pub const SAMPLES_MAX: usize = 1 << 21;
/// Frames of one stack; deeper ones lose their root end.
pub const DEPTH_MAX: usize = 192;

/// What was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Time on a processor.
    Cpu,
    /// Bytes allocated.
    Allocs,
    /// Bytes that are live.
    Heap,
    /// Waits for instrumented locks.
    Mutex,
    /// Waits for locks, disks and other cores.
    Block,
    /// All time off the processor.
    OffCpu,
    /// Turns of an event loop that took too long.
    Stalls,
    /// Something else, which another program captured.
    Other,
}

impl Event {
    /// The event of a name, as [`Event::name`] gives it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        use Event::{Allocs, Block, Cpu, Heap, Mutex, OffCpu, Other, Stalls};
        [Cpu, Allocs, Heap, Mutex, Block, OffCpu, Stalls, Other].into_iter().find(|event| event.name() == name)
    }

    /// As URLs and file names have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Allocs => "allocs",
            Self::Heap => "heap",
            Self::Mutex => "mutex",
            Self::Block => "block",
            Self::OffCpu => "offcpu",
            Self::Stalls => "stalls",
            Self::Other => "profile",
        }
    }
}

/// What a number of a sample means, in the words that `go tool pprof`, Pyroscope and Parca know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueType {
    /// `cpu`, `alloc_space`, `delay`, …
    pub name: Cow<'static, str>,
    /// `nanoseconds`, `bytes`, `count`.
    pub unit: Cow<'static, str>,
}

impl ValueType {
    /// A type.
    #[must_use]
    pub const fn new(name: &'static str, unit: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), unit: Cow::Borrowed(unit) }
    }
}

/// Where a frame runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In the program or a library.
    User,
    /// In the program, inlined into its caller, which is the next frame of the stack.
    Inlined,
    /// In the kernel.
    Kernel,
    /// Nowhere: a name that says more than an address, such as `lock:NAME`.
    Label,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Demangled, without the hash; `[libc.so.6]` where only the file is known, `0x…` where nothing is.
    pub function: Box<str>,
    /// Source file, if known.
    pub file: Option<Box<str>>,
    /// Line in it, or 0.
    pub line: u32,
    /// Where it runs.
    pub place: Place,
    /// Address in the process, 0 if there is none. Return addresses have had 1 subtracted.
    pub address: u64,
}

/// A frame's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrameId(pub u32);

/// A stack's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(pub u32);

/// A thread's index in [`Capture::threads`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThreadIndex(pub u16);

/// One sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Nanoseconds since the capture began.
    pub at_ns: u64,
    /// Whose it is.
    pub thread: ThreadIndex,
    /// On which processor; `u16::MAX` where that is not known.
    pub cpu: u16,
    /// Its stack.
    pub stack: StackId,
    /// A value for each type; those beyond are 0.
    pub values: [i64; 4],
}

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Of the kernel.
    pub tid: u32,
    /// `koltso-core-0`, …
    pub name: Box<str>,
}

/// A mapping of the program, for tools that symbolise again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// Offset in the file.
    pub offset: u64,
    /// The file.
    pub file: Box<str>,
    /// GNU build id, in hex, or empty.
    pub build_id: Box<str>,
}

/// See the head of the file.
#[derive(Clone, Debug)]
pub struct Capture {
    /// What was captured.
    pub event: Event,
    /// Milliseconds since the Unix epoch.
    pub began_unix_ms: u64,
    /// How long it took; 0 for a state such as the live heap.
    pub duration_ns: u64,
    /// CPU time: what the kernel accounts to the process over the same span, to hold the samples' total against; 0 if not known.
    pub accounted_ns: u64,
    /// What the values are; 1 to 4.
    pub types: Vec<ValueType>,
    /// Which of them is shown unless told.
    pub default_type: usize,
    /// What one sample stands for, where samples come at a rate: CPU nanoseconds, allocated bytes.
    pub period: Option<(ValueType, i64)>,
    /// Threads.
    pub threads: Vec<Thread>,
    /// Samples, in order of time.
    pub samples: Vec<Sample>,
    /// Mappings.
    pub mappings: Vec<Mapping>,
    /// Which engine, and why, in one sentence for people.
    pub engine: String,
    /// How many samples were taken, where those of [`Capture::samples`] were added up before (in a file); 0 if they are as they were taken.
    pub taken: u64,
    /// Samples that the kernel lost.
    pub lost: u64,
    /// Times that the kernel throttled.
    pub throttled: u64,
    /// Samples beyond the bounds.
    pub dropped: u64,
    frames: Vec<Frame>,
    frame_ids: HashMap<Frame, FrameId>,
    stacks: Vec<Box<[FrameId]>>,
    stack_ids: HashMap<Box<[FrameId]>, StackId>,
}

impl Capture {
    /// An empty capture.
    #[must_use]
    pub fn new(event: Event, began_unix_ms: u64, types: Vec<ValueType>, default_type: usize) -> Self {
        assert!((1..=4).contains(&types.len()) && default_type < types.len());
        Self {
            event,
            began_unix_ms,
            duration_ns: 0,
            accounted_ns: 0,
            types,
            default_type,
            period: None,
            threads: Vec::new(),
            samples: Vec::new(),
            mappings: Vec::new(),
            engine: String::new(),
            taken: 0,
            lost: 0,
            throttled: 0,
            dropped: 0,
            frames: Vec::new(),
            frame_ids: HashMap::new(),
            stacks: Vec::new(),
            stack_ids: HashMap::new(),
        }
    }

    /// The id of a frame; `None` when there are [`FRAMES_MAX`].
    pub fn frame(&mut self, frame: Frame) -> Option<FrameId> {
        if let Some(&id) = self.frame_ids.get(&frame) {
            return Some(id);
        }
        if self.frames.len() >= FRAMES_MAX {
            return None;
        }
        let id = FrameId(self.frames.len() as u32);
        self.frames.push(frame.clone());
        self.frame_ids.insert(frame, id);
        Some(id)
    }

    /// The id of a stack, leaf first; `None` when there are [`STACKS_MAX`].
    pub fn stack(&mut self, leaf_first: &[FrameId]) -> Option<StackId> {
        let kept = &leaf_first[..leaf_first.len().min(DEPTH_MAX)];
        if let Some(&id) = self.stack_ids.get(kept) {
            return Some(id);
        }
        if self.stacks.len() >= STACKS_MAX {
            return None;
        }
        let id = StackId(self.stacks.len() as u32);
        self.stacks.push(kept.into());
        self.stack_ids.insert(kept.into(), id);
        Some(id)
    }

    /// Adds a sample, or counts it as dropped.
    pub fn push(&mut self, sample: Sample) {
        assert!((sample.stack.0 as usize) < self.stacks.len());
        if self.samples.len() >= SAMPLES_MAX {
            self.dropped += 1;
            return;
        }
        self.samples.push(sample);
    }

    /// A frame.
    #[must_use]
    pub fn frame_at(&self, id: FrameId) -> &Frame {
        &self.frames[id.0 as usize]
    }

    /// All frames.
    #[must_use]
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// A stack, leaf first.
    #[must_use]
    pub fn stack_at(&self, id: StackId) -> &[FrameId] {
        &self.stacks[id.0 as usize]
    }

    /// All stacks, leaf first.
    #[must_use]
    pub fn stacks(&self) -> &[Box<[FrameId]>] {
        &self.stacks
    }

    /// How many samples were taken.
    #[must_use]
    pub fn sample_count(&self) -> u64 {
        if self.taken > 0 { self.taken } else { self.samples.len() as u64 }
    }

    /// The sum of one value over all samples.
    #[must_use]
    pub fn total(&self, value: usize) -> i64 {
        self.samples.iter().map(|sample| sample.values[value]).sum()
    }

    /// Samples of one stack, thread and no particular time as one: what formats without time need. In order of stacks.
    #[must_use]
    pub fn folded(&self) -> Vec<Sample> {
        let mut sums: HashMap<(StackId, ThreadIndex), Sample> = HashMap::new();
        for sample in &self.samples {
            let key = (sample.stack, sample.thread);
            let sum = sums.entry(key).or_insert(Sample { at_ns: 0, cpu: u16::MAX, values: [0; 4], ..*sample });
            for (sum, value) in sum.values.iter_mut().zip(sample.values) {
                *sum += value;
            }
        }
        let mut folded: Vec<Sample> = sums.into_values().collect();
        folded.sort_unstable_by_key(|sample| (sample.stack, sample.thread));
        folded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_stacks_are_kept_once_and_samples_add_up() {
        let mut capture = Capture::new(Event::Cpu, 0, vec![ValueType::new("cpu", "nanoseconds")], 0);
        let frame = |name: &str| Frame { function: name.into(), file: None, line: 0, place: Place::User, address: 0 };
        let (main, leaf) = (capture.frame(frame("main")).expect("room"), capture.frame(frame("leaf")).expect("room"));
        assert_eq!(capture.frame(frame("main")), Some(main));
        let stack = capture.stack(&[leaf, main]).expect("room");
        assert_eq!(capture.stack(&[leaf, main]), Some(stack));
        for (at_ns, thread) in [(1, 0), (2, 0), (3, 1)] {
            let values = [10, 0, 0, 0];
            capture.push(Sample { at_ns, thread: ThreadIndex(thread), cpu: 0, stack, values });
        }
        assert_eq!((capture.total(0), capture.folded().len(), capture.folded()[0].values[0]), (30, 2, 20));
        assert_eq!(capture.frame_at(capture.stack_at(stack)[0]).function.as_ref(), "leaf");
    }
}

//! A capture: stacks with weights, as every engine makes them and every format reads them.
//!
//! Stacks and frames are interned: 17 000 samples of depth 30 take a few hundred kilobytes. A
//! capture is plain data, owned by whoever holds it. Bounds: [`FRAMES_MAX`], [`STACKS_MAX`] and
//! [`SAMPLES_MAX`]; what exceeds them is counted in [`Capture::dropped`]. Invariants: an id that
//! was given out is an index that exists; a sample has one value for each of the
//! [`Capture::types`]; a frame of the kernel has no address, since whoever reads a capture may be
//! somebody whom the kernel does not tell where it is in memory (`kptr_restrict`).

use std::borrow::Cow;
use std::collections::HashMap;

/// The most distinct frames of a capture.
pub const FRAMES_MAX: usize = 1 << 18;
/// The most distinct stacks of a capture.
pub const STACKS_MAX: usize = 1 << 18;
/// The most samples of a capture.
pub const SAMPLES_MAX: usize = 1 << 21;
/// The most frames of one stack; deeper stacks lose their root end.
pub const DEPTH_MAX: usize = 192;

/// The name of the mapping that contains kernel frames.
pub const KERNEL_MAPPING: &str = "[kernel.kallsyms]";

/// What was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Time on a processor.
    Cpu,
    /// Bytes allocated.
    Allocs,
    /// Bytes that are live (allocated and not yet freed).
    Heap,
    /// Waits for instrumented locks.
    Mutex,
    /// Waits for locks, disks and other cores.
    Block,
    /// All time off the processor.
    OffCpu,
    /// Turns of an event loop that took too long.
    Stalls,
    /// Something else that another program captured.
    Other,
}

impl Event {
    /// The event that has this name, as [`Event::name`] returns it; `None` if there is none.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        use Event::{Allocs, Block, Cpu, Heap, Mutex, OffCpu, Other, Stalls};
        [Cpu, Allocs, Heap, Mutex, Block, OffCpu, Stalls, Other].into_iter().find(|event| event.name() == name)
    }

    /// The name of the event in URLs and file names.
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

/// What one value of a sample means, in the words that `go tool pprof`, Pyroscope and Parca know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueType {
    /// What is counted: `cpu`, `alloc_space`, `delay`, …
    pub name: Cow<'static, str>,
    /// `nanoseconds`, `bytes` or `count`.
    pub unit: Cow<'static, str>,
}

impl ValueType {
    /// A type with names that are known at compile time.
    #[must_use]
    pub const fn new(name: &'static str, unit: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), unit: Cow::Borrowed(unit) }
    }
}

/// Where a frame runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FramePlace {
    /// In the program or a library.
    User,
    /// In the program, inlined into its caller, which is the next frame of the stack.
    Inlined,
    /// In the kernel.
    Kernel,
    /// Nowhere: the frame is a label that says more than an address would, such as `lock:NAME`.
    Label,
}

/// One frame of a stack.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// The function's name, demangled and without the hash; `[libc.so.6]` if only the file is
    /// known, `0x…` if nothing is.
    pub function: Box<str>,
    /// The source file; `None` if it is not known.
    pub file: Option<Box<str>>,
    /// The line in the source file; 0 if it is not known.
    pub line: u32,
    /// Where it runs.
    pub place: FramePlace,
    /// The address in the process; 0 if there is none, as in the kernel. A return address has had 1
    /// subtracted.
    pub address: u64,
}

/// The index of a frame in [`Capture::frames`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrameId(pub u32);

/// The index of a stack in [`Capture::stacks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(pub u32);

/// The index of a thread in [`Capture::threads`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThreadIndex(pub u16);

/// One sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Nanoseconds since the capture began.
    pub at_ns: u64,
    /// The thread that was sampled.
    pub thread: ThreadIndex,
    /// The processor it ran on; `u16::MAX` if that is not known.
    pub cpu: u16,
    /// The stack it was sampled with.
    pub stack: StackId,
    /// One value for each of the [`Capture::types`]; the rest are 0.
    pub values: [i64; 4],
}

/// A thread that was sampled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// The kernel's id of the thread.
    pub tid: u32,
    /// The thread's name, such as `koltso-core-0`.
    pub name: Box<str>,
}

/// A mapping of the program's code, for tools that look up symbols themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The first address.
    pub start: u64,
    /// The first address after it.
    pub end: u64,
    /// The offset of the first address in the file, in bytes.
    pub offset: u64,
    /// The path of the file; only the name if it is the program itself.
    pub file: Box<str>,
    /// The GNU build id in hex; empty if there is none.
    pub build_id: Box<str>,
}

/// Stacks with weights: see the head of the file.
#[derive(Clone, Debug)]
pub struct Capture {
    /// What was captured.
    pub event: Event,
    /// When the capture began, in milliseconds since the Unix epoch.
    pub began_unix_ms: u64,
    /// How long the capture took, in nanoseconds; 0 for a state such as the live heap.
    pub duration_ns: u64,
    /// The CPU time that the kernel accounts to the process over the same span, in nanoseconds, to
    /// compare the samples' total with; 0 if it is not known.
    pub accounted_ns: u64,
    /// What the values of a sample are; 1 to 4 types.
    pub types: Vec<ValueType>,
    /// The index of the type that is shown unless the reader asks for another.
    pub default_type: usize,
    /// What one sample stands for if samples come at a rate (CPU nanoseconds, allocated bytes);
    /// `None` if they do not.
    pub period: Option<(ValueType, i64)>,
    /// The threads that samples refer to.
    pub threads: Vec<Thread>,
    /// The samples, in order of time.
    pub samples: Vec<Sample>,
    /// The mappings of the program and its libraries.
    pub mappings: Vec<Mapping>,
    /// Which engine captured, and why it was chosen, in one sentence for people.
    pub engine: String,
    /// How many samples were taken if [`Capture::samples`] holds sums of them (as a file does); 0
    /// if it holds each sample as it was taken.
    pub taken: u64,
    /// How many samples the kernel lost.
    pub lost: u64,
    /// How often the kernel throttled the sampling.
    pub throttled: u64,
    /// How many samples were left out because they exceeded the bounds.
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

    /// The id of a frame, which is added if it is new; `None` if there are [`FRAMES_MAX`] others. A
    /// frame of the kernel loses its address here.
    pub fn frame(&mut self, mut frame: Frame) -> Option<FrameId> {
        if frame.place == FramePlace::Kernel {
            frame.address = 0;
        }
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

    /// The id of a stack, leaf first, which is added if it is new; `None` if there are
    /// [`STACKS_MAX`] others.
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

    /// Adds a sample, or counts it as dropped if there are [`SAMPLES_MAX`] already.
    pub fn push(&mut self, sample: Sample) {
        assert!((sample.stack.0 as usize) < self.stacks.len());
        if self.samples.len() >= SAMPLES_MAX {
            self.dropped += 1;
            return;
        }
        self.samples.push(sample);
    }

    /// The frame that has this id.
    #[must_use]
    pub fn frame_at(&self, id: FrameId) -> &Frame {
        &self.frames[id.0 as usize]
    }

    /// All frames.
    #[must_use]
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// A thread's name, or its number if it has none.
    #[must_use]
    pub fn thread_name(&self, thread: ThreadIndex) -> Cow<'_, str> {
        match self.threads.get(usize::from(thread.0)) {
            Some(thread) if thread.name.is_empty() => Cow::Owned(format!("thread {}", thread.tid)),
            Some(thread) => Cow::Borrowed(&thread.name),
            None => Cow::Borrowed("unknown thread"),
        }
    }

    /// The stack that has this id, leaf first.
    #[must_use]
    pub fn stack_at(&self, id: StackId) -> &[FrameId] {
        &self.stacks[id.0 as usize]
    }

    /// All stacks, leaf first.
    #[must_use]
    pub fn stacks(&self) -> &[Box<[FrameId]>] {
        &self.stacks
    }

    /// How many samples were taken, even if they have been added up since.
    #[must_use]
    pub fn sample_count(&self) -> u64 {
        if self.taken > 0 { self.taken } else { self.samples.len() as u64 }
    }

    /// The sum of the value with this index over all samples.
    #[must_use]
    pub fn total(&self, value: usize) -> i64 {
        self.samples.iter().map(|sample| sample.values[value]).sum()
    }

    /// The samples with those of the same stack and thread added up, in the order of stacks: what
    /// formats without a time axis need.
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
        let frame =
            |name: &str| Frame { function: name.into(), file: None, line: 0, place: FramePlace::User, address: 0 };
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

    #[test]
    fn frames_of_the_kernel_have_no_addresses() {
        let mut capture = Capture::new(Event::Cpu, 0, vec![ValueType::new("cpu", "nanoseconds")], 0);
        let at =
            |address| Frame { function: "tcp_sendmsg".into(), file: None, line: 0, place: FramePlace::Kernel, address };
        let ids = [0xffff_ffff_8100_0010, 0xffff_ffff_8100_0020].map(|address| capture.frame(at(address)));
        assert_eq!(ids[0], ids[1], "two places in a function are one frame");
        assert_eq!(capture.frames(), [at(0)]);
    }
}

//! What an engine has gathered before addresses get names: distinct chains of addresses, and
//! samples that point to them.
//!
//! Owner: the thread that captures. Bounds: [`capture::STACKS_MAX`] chains and
//! [`capture::SAMPLES_MAX`] samples; more are only counted. Invariant: the chain of a sample
//! exists.

use std::collections::HashMap;
use std::sync::Arc;

use crate::capture::{self, Capture, Frame, FrameId, FramePlace, Sample, StackId, Thread, ThreadIndex};
use crate::symbols::{self, Symbols};
use crate::threads::Names;

/// The index of a chain.
pub(crate) type Chain = u32;

/// A [`Sample`] whose thread and stack are not resolved yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw {
    pub(crate) at_ns: u64,
    pub(crate) tid: u32,
    pub(crate) cpu: u16,
    pub(crate) chain: Chain,
    pub(crate) values: [i64; 4],
}

// The memory that a sample takes while a capture is finished; docs/PROFILING.md tells users this
// figure.
const _: () = assert!(size_of::<Raw>() + size_of::<Sample>() == 104);

/// Chains and samples, not yet symbolised: see the head of the file.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) names: Names,
    pub(crate) dropped: u64,
    chains: Vec<Arc<[u64]>>,
    ids: HashMap<Arc<[u64]>, Chain>,
    samples: Vec<Raw>,
}

impl Collected {
    /// The id of a chain, leaf first, which is added if it is new; `None` if there are too many,
    /// which is counted.
    pub(crate) fn chain(&mut self, leaf_first: &[u64]) -> Option<Chain> {
        if let Some(&id) = self.ids.get(leaf_first) {
            return Some(id);
        }
        if self.chains.len() >= capture::STACKS_MAX {
            self.dropped += 1;
            return None;
        }
        let id = self.chains.len() as Chain;
        let chain: Arc<[u64]> = leaf_first.into();
        self.chains.push(chain.clone());
        self.ids.insert(chain, id);
        Some(id)
    }

    /// Adds a sample, or counts it if there are too many.
    pub(crate) fn push(&mut self, sample: Raw) {
        assert!((sample.chain as usize) < self.chains.len());
        if self.samples.len() >= capture::SAMPLES_MAX {
            self.dropped += 1;
            return;
        }
        self.names.see(sample.tid);
        self.samples.push(sample);
    }

    /// The samples so far.
    #[cfg(test)]
    pub(crate) fn samples(&self) -> &[Raw] {
        &self.samples
    }

    /// Takes out and returns the samples whose chain the function picks.
    pub(crate) fn remove_chains(&mut self, mut one_of_these: impl FnMut(&[u64]) -> bool) -> Vec<Raw> {
        let remove: Vec<bool> = self.chains.iter().map(|chain| one_of_these(chain)).collect();
        self.samples.extract_if(.., |raw| remove[raw.chain as usize]).collect()
    }

    /// Moves everything into a capture that began at `began_ns` of the monotonic clock, and gives
    /// addresses names.
    pub(crate) fn into_capture(mut self, capture: &mut Capture, began_ns: u64, symbols: &mut Symbols) {
        self.samples.sort_by_key(|sample| sample.at_ns);
        let stacks: Vec<Option<StackId>> = self.chains.iter().map(|chain| stack(capture, chain, symbols)).collect();
        let mut threads: HashMap<u32, Option<ThreadIndex>> = HashMap::new();
        capture.samples.reserve_exact(self.samples.len());
        for raw in &self.samples {
            let thread = *threads.entry(raw.tid).or_insert_with(|| {
                let index = u16::try_from(capture.threads.len()).ok()?;
                capture.threads.push(Thread { tid: raw.tid, name: self.names.name(raw.tid) });
                Some(ThreadIndex(index))
            });
            let (Some(stack), Some(thread)) = (stacks[raw.chain as usize], thread) else {
                capture.dropped += 1;
                continue;
            };
            let at_ns = raw.at_ns.saturating_sub(began_ns);
            capture.push(Sample { at_ns, thread, cpu: raw.cpu, stack, values: raw.values });
        }
        capture.dropped += self.dropped;
        capture.mappings = symbols.mappings();
    }
}

/// Adds a chain as a stack with names. An empty chain (of a thread that is about to end) gets a
/// frame that says so, since a stack is never empty.
fn stack(capture: &mut Capture, chain: &[u64], of: &mut Symbols) -> Option<StackId> {
    let mut ids: Vec<FrameId> = Vec::with_capacity(chain.len() + 8);
    for &address in chain {
        for frame in of.frames(address).iter() {
            // A kernel that hides its names becomes one frame, not one for each function without a
            // name.
            let again = |&last: &FrameId| *capture.frame_at(last).function == *symbols::NAMELESS_KERNEL;
            if *frame.function == *symbols::NAMELESS_KERNEL && ids.last().is_some_and(again) {
                continue;
            }
            ids.push(capture.frame(frame.clone())?);
        }
    }
    if ids.is_empty() {
        let function = "[no stack]".into();
        ids.push(capture.frame(Frame { function, file: None, line: 0, place: FramePlace::Label, address: 0 })?);
    }
    capture.stack(&ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{Event, ValueType};

    #[test]
    fn samples_and_chains_beyond_the_bounds_are_counted_and_not_kept() {
        let mut collected = Collected::default();
        let chain = collected.chain(&[1]).expect("room");
        for at_ns in 0..capture::SAMPLES_MAX as u64 + 5 {
            collected.push(Raw { at_ns, tid: 1, cpu: 0, chain, values: [1, 0, 0, 0] });
        }
        assert_eq!((collected.samples().len(), collected.dropped), (capture::SAMPLES_MAX, 5));
        for address in 0..capture::STACKS_MAX as u64 + 7 {
            collected.chain(&[address, 2]);
        }
        assert_eq!(collected.dropped, 5 + 8);
        let mut capture = Capture::new(Event::Cpu, 0, vec![ValueType::new("samples", "count")], 0);
        collected.chains.truncate(1);
        collected.into_capture(&mut capture, 0, &mut Symbols::new());
        assert_eq!((capture.samples.len(), capture.dropped), (capture::SAMPLES_MAX, 13));
        assert!(capture.samples.capacity() == capture::SAMPLES_MAX);
    }
}

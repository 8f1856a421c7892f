//! The stalls that are kept, for people and tools: as a capture, as a line for each, and where each
//! one was.
//!
//! Giving names to addresses is slow: the watcher's thread must not call these functions.

use std::fmt::Write as _;
use std::sync::Arc;

use super::{KEPT_MAX, Sample, Stall, Stalls};
use crate::capture::{self, Capture, Event, Frame, FrameId, FramePlace, ThreadIndex, ValueType};
use crate::symbols::Symbols;
use crate::threads;

/// The most frames of the program that say where a stall was.
const PLACE_FRAMES: usize = 3;
/// The place of a stall that was over before the watcher saw it, or whose thread gave no stack.
const NO_SAMPLES: &str = "[not sampled]";

/// All frames of a sample, innermost first.
fn frames(sample: &Sample, symbols: &mut Symbols) -> Vec<Frame> {
    let mut frames = Vec::with_capacity(sample.kernel.len() + sample.chain.len());
    for function in sample.kernel.iter() {
        frames.push(Frame { function: function.clone(), file: None, line: 0, place: FramePlace::Kernel, address: 0 });
    }
    for &address in sample.chain.iter() {
        frames.extend_from_slice(&symbols.frames(address));
    }
    frames
}

/// The kept stalls as a capture: each stall adds up to a count of 1 and to its whole duration in
/// nanoseconds.
#[must_use]
pub fn capture(stalls: &Stalls, symbols: &mut Symbols) -> Capture {
    let kept = stalls.list();
    let now_ms = threads::unix_ms();
    let began_ms = kept.iter().map(|stall| stall.began_unix_ms).min().unwrap_or(now_ms);
    let types = vec![ValueType::new("stalls", "count"), ValueType::new("duration", "nanoseconds")];
    let mut capture = Capture::new(Event::Stalls, began_ms, types, 1);
    capture.duration_ns = now_ms.saturating_sub(began_ms) * 1_000_000;
    capture.engine = format!(
        "signals to a core whose turn takes longer than {:?}, until it ends; the last {} of {} stalls ({KEPT_MAX} are kept at most), \
         in {} of which the core was not given the processor; the longest took {:.1?}",
        stalls.bound(),
        kept.len(),
        stalls.count(),
        stalls.kept_waiting(),
        stalls.longest(),
    );
    for stall in &kept {
        let known = capture.threads.iter().position(|thread| *thread == stall.thread);
        let index = known.unwrap_or_else(|| {
            capture.threads.push(stall.thread.clone());
            capture.threads.len() - 1
        });
        let since_ns = (stall.began_unix_ms - began_ms) * 1_000_000;
        let Ok(thread) = u16::try_from(index).map(ThreadIndex) else { continue };
        let mut add = |at_ns: u64, frames: Vec<Frame>, count: i64, stands_for_ns: u64| {
            let ids: Option<Vec<FrameId>> = frames.into_iter().map(|frame| capture.frame(frame)).collect();
            match ids.and_then(|ids| capture.stack(&ids)) {
                Some(stack) => {
                    let values = [count, stands_for_ns as i64, 0, 0];
                    capture.push(capture::Sample { at_ns: since_ns + at_ns, thread, cpu: u16::MAX, stack, values });
                }
                None => capture.dropped += 1,
            }
        };
        for (n, sample) in stall.samples.iter().enumerate() {
            add(sample.at_ns, frames(sample, symbols), i64::from(n == 0), sample.stands_for_ns);
        }
        if stall.samples.is_empty() {
            let label =
                Frame { function: NO_SAMPLES.into(), file: None, line: 0, place: FramePlace::Label, address: 0 };
            add(0, vec![label], 1, stall.duration.as_nanos() as u64);
        }
    }
    capture.samples.sort_by_key(|sample| sample.at_ns);
    capture.mappings = symbols.mappings();
    capture
}

/// A line for each stall, the newest first: when (UTC), which core, how long, how much of that the
/// core was not given the processor, where.
#[must_use]
pub fn text(stalls: &[Arc<Stall>], symbols: &mut Symbols) -> String {
    let mut text = String::new();
    for stall in stalls.iter().rev() {
        let at = threads::utc(stall.began_unix_ms);
        let (core, ms, place) = (stall.core, stall.duration.as_secs_f64() * 1e3, stall.place(symbols));
        let _ = writeln!(text, "{at}  core {core}  {ms:.1} ms  {}{place}", waited(stall));
    }
    text
}

/// What is said of the time in which a core was not given the processor, if that is worth a word.
fn waited(stall: &Stall) -> String {
    if stall.waited * 10 < stall.duration {
        return String::new();
    }
    format!("{:.1} ms of it without the processor  ", stall.waited.as_secs_f64() * 1e3)
}

impl Stall {
    /// Where most of the stall was spent: the innermost frames that most of its time shares. These
    /// are at most three frames of the program, each before its caller, and before them the
    /// kernel's function in which the thread was blocked.
    #[must_use]
    pub fn place(&self, symbols: &mut Symbols) -> String {
        let mut stacks: Vec<(Vec<Frame>, u64)> = Vec::with_capacity(self.samples.len());
        for sample in &self.samples {
            let mut root_first = frames(sample, symbols);
            root_first.reverse();
            stacks.push((root_first, sample.stands_for_ns));
        }
        let path = shared(stacks);
        let (kernel, program): (Vec<_>, Vec<_>) = path.iter().partition(|frame| frame.place == FramePlace::Kernel);
        let kernel = kernel.last().map(|frame| format!("{}_[k]", frame.function));
        let program = program.iter().rev().take(PLACE_FRAMES).map(|frame| frame.function.to_string());
        let names: Vec<String> = kernel.into_iter().chain(program).collect();
        if names.is_empty() { NO_SAMPLES.to_owned() } else { names.join(" < ") }
    }
}

/// The longest path from the root along which more than half of the weight lies.
fn shared(mut stacks: Vec<(Vec<Frame>, u64)>) -> Vec<Frame> {
    let total: u64 = stacks.iter().map(|(_, weight)| weight).sum();
    let mut path = Vec::new();
    loop {
        let level = path.len();
        let at = |stack: &(Vec<Frame>, u64)| stack.0.get(level).map(|frame| frame.function.clone());
        let mut weights: Vec<(Box<str>, u64)> = Vec::new();
        for stack in &stacks {
            let Some(name) = at(stack) else { continue };
            match weights.iter_mut().find(|(known, _)| *known == name) {
                Some((_, weight)) => *weight += stack.1,
                None => weights.push((name, stack.1)),
            }
        }
        let Some((name, _)) = weights.into_iter().find(|(_, weight)| weight * 2 > total) else { return path };
        stacks.retain(|stack| at(stack).as_ref() == Some(&name));
        path.push(stacks[0].0[level].clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(names: &str) -> Vec<Frame> {
        let frame = |name: &str| {
            let (name, place) =
                name.strip_suffix("_[k]").map_or((name, FramePlace::User), |name| (name, FramePlace::Kernel));
            Frame { function: name.into(), file: None, line: 0, place, address: 0 }
        };
        names.split(' ').map(frame).collect()
    }

    #[test]
    fn a_place_is_what_most_of_the_time_shares() {
        let path = |stacks: &[(&str, u64)]| -> Vec<String> {
            let path = shared(stacks.iter().map(|(names, weight)| (stack(names), *weight)).collect());
            path.iter().map(|frame| frame.function.to_string()).collect()
        };
        assert_eq!(
            path(&[("main serve put copy", 5), ("main serve put grow", 4), ("main other", 3)]),
            ["main", "serve", "put"]
        );
        assert_eq!(path(&[("main a", 1), ("main b", 1)]), ["main"]);
        assert_eq!(path(&[("main a", 1), ("main a b", 2)]), ["main", "a", "b"]);
        assert!(path(&[]).is_empty());
        assert!(path(&[("main", 0)]).is_empty());
    }
}

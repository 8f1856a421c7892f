//! The captures that run and those that are kept.
//!
//! Owner: the control plane, behind an `Arc`; captures run on threads of their own, never on a data
//! core. Bounds: two captures of a kind run at a time, and two more that were told to make room for
//! them. At most [`KEPT_MAX`] captures and about [`KEPT_BYTES_MAX`] bytes are kept; the oldest are
//! dropped first.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use koltso_instrument::Mutex;
use koltso_profiling::alloc;
use koltso_profiling::capture::{Capture, Event};
use koltso_profiling::engine::{CpuRequest, EngineError, capture_cpu};
use koltso_profiling::locks;
use koltso_profiling::offcpu::{OffCpuRequest, capture_off_cpu};
use koltso_profiling::stalls::{self, Stalls};
use koltso_profiling::symbols::Symbols;

use super::request::Asked;

/// The most captures that are kept.
pub const KEPT_MAX: usize = 16;
/// About how many bytes they may take.
pub const KEPT_BYTES_MAX: usize = 64 << 20;
/// The most captures of a kind that run at a time.
const RUNNING_MAX: usize = 2;
/// The most captures of a kind that were told to make room and are not finished yet.
const ENDING_MAX: usize = 2;
/// How often a thread that waits checks whether it should end.
const LOOK: Duration = Duration::from_millis(50);

struct Running {
    number: u64,
    event: Event,
    stop: Arc<AtomicBool>,
    /// Whether the capture was told to end early and has not ended yet.
    ending: bool,
}

/// A capture that is complete and kept.
#[derive(Clone)]
pub struct Kept {
    /// The number of the capture, which is never used again.
    pub id: u64,
    pub capture: Arc<Capture>,
    bytes: usize,
}

impl Kept {
    /// Whether the samples have times, so that a heatmap can be made.
    pub fn has_times(&self) -> bool {
        self.capture.samples.iter().any(|sample| sample.at_ns > 0) || self.capture.samples.is_empty()
    }
}

#[derive(Default)]
struct State {
    next: u64,
    running: Vec<Running>,
    kept: VecDeque<Kept>,
}

/// The captures of a node: see the head of the file.
pub struct Captures {
    state: Mutex<State>,
}

impl Default for Captures {
    fn default() -> Self {
        Self { state: Mutex::new(&"captures", State::default()) }
    }
}

/// Two captures of the kind run already.
#[derive(Debug, PartialEq, Eq)]
pub struct Busy;

/// A capture's place among those that run, held by the thread that makes it until it is done.
pub struct Turn {
    captures: Arc<Captures>,
    number: u64,
    /// Set to end the capture early.
    pub stop: Arc<AtomicBool>,
}

/// Ends a capture early when it is dropped, so that another one can run.
pub struct Ends {
    captures: Arc<Captures>,
    number: u64,
}

impl Drop for Ends {
    fn drop(&mut self) {
        let mut state = self.captures.state.lock();
        if let Some(running) = state.running.iter_mut().find(|running| running.number == self.number) {
            running.ending = true;
            running.stop.store(true, Ordering::Relaxed);
        }
    }
}

impl Turn {
    /// The guard for whoever waits for the capture.
    pub fn guard(&self) -> Ends {
        Ends { captures: self.captures.clone(), number: self.number }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.captures.state.lock().running.retain(|running| running.number != self.number);
    }
}

/// About how many bytes a capture takes in memory.
fn bytes_of(capture: &Capture) -> usize {
    let frames = capture.frames().iter().map(|frame| 160 + 2 * frame.function.len()).sum::<usize>();
    let stacks = capture.stacks().iter().map(|stack| 64 + 8 * stack.len()).sum::<usize>();
    frames + stacks + capture.samples.len() * size_of::<koltso_profiling::capture::Sample>()
}

impl Captures {
    /// Begins a capture; with `force`, the oldest of the kind makes room for it.
    ///
    /// # Errors
    /// [`Busy`] if there is no room.
    pub fn begin(self: &Arc<Self>, event: Event, force: bool) -> Result<Turn, Busy> {
        let mut state = self.state.lock();
        let of_kind = || state.running.iter().filter(|running| running.event == event);
        let is_full = of_kind().filter(|running| !running.ending).count() >= RUNNING_MAX;
        // Captures that are ending still have their threads and their memory.
        if is_full && !force || of_kind().count() >= RUNNING_MAX + ENDING_MAX {
            return Err(Busy);
        }
        if is_full
            && let Some(oldest) = state.running.iter_mut().find(|running| running.event == event && !running.ending)
        {
            oldest.ending = true;
            oldest.stop.store(true, Ordering::Relaxed);
        }
        state.next += 1;
        let (number, stop) = (state.next, Arc::new(AtomicBool::new(false)));
        state.running.push(Running { number, event, stop: stop.clone(), ending: false });
        Ok(Turn { captures: self.clone(), number, stop })
    }

    /// Keeps a capture.
    pub fn keep(&self, capture: Capture) -> Kept {
        let mut state = self.state.lock();
        state.next += 1;
        let kept = Kept { id: state.next, bytes: bytes_of(&capture), capture: Arc::new(capture) };
        state.kept.push_back(kept.clone());
        while state.kept.len() > KEPT_MAX || state.kept.iter().map(|kept| kept.bytes).sum::<usize>() > KEPT_BYTES_MAX {
            state.kept.pop_front();
        }
        kept
    }

    /// The captures that are kept, the oldest first.
    pub fn kept(&self) -> Vec<Kept> {
        self.state.lock().kept.iter().cloned().collect()
    }

    /// The kinds of the captures that run now, without those that were told to end.
    pub fn running(&self) -> Vec<Event> {
        self.state.lock().running.iter().filter(|running| !running.ending).map(|running| running.event).collect()
    }
}

/// Waits for this many seconds, or until `stop` is set.
fn wait(seconds: u32, stop: &AtomicBool) {
    let until = Instant::now() + Duration::from_secs(seconds.into());
    while Instant::now() < until && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
    }
}

fn not_watched() -> EngineError {
    EngineError::Forbidden { capability: "--stall-bound", detail: "with 0 nobody watches for stalls".to_owned() }
}

/// The stalls that are kept, one on each line.
///
/// # Errors
/// [`EngineError::Forbidden`] if stall detection is off.
pub fn list_stalls(watched: Option<&Stalls>) -> Result<String, EngineError> {
    let watched = watched.ok_or_else(not_watched)?;
    let list = stalls::text(&watched.list(), &mut Symbols::new());
    if list.is_empty() {
        return Ok(format!("No turn of a core has taken longer than {:?} yet.\n", watched.bound()));
    }
    Ok(list)
}

/// Makes a capture on the calling thread, which is blocked until the capture ends.
///
/// # Errors
/// See [`EngineError`].
pub fn capture(asked: &Asked, watched: Option<&Stalls>, stop: &Arc<AtomicBool>) -> Result<Capture, EngineError> {
    let mut names = Symbols::new();
    let mut capture = match (asked.event, asked.seconds) {
        (Event::Cpu, seconds) => {
            let seconds = seconds.unwrap_or(30);
            return capture_cpu(&CpuRequest { seconds, hz: asked.hz, stop: stop.clone() });
        }
        (Event::OffCpu, seconds) => {
            let seconds = seconds.unwrap_or(10);
            return capture_off_cpu(&OffCpuRequest { seconds, idle: false, stop: stop.clone() });
        }
        (Event::Allocs, Some(seconds)) if asked.timed => alloc::timeline(seconds, stop, &mut names),
        (Event::Allocs, None) => alloc::allocs(&mut names),
        (Event::Heap, None) => alloc::heap(&mut names),
        (event @ (Event::Allocs | Event::Heap), Some(seconds)) => {
            let before = alloc::snapshot();
            wait(seconds, stop);
            alloc::difference(event, &before, &alloc::snapshot(), &mut names)
        }
        (event @ (Event::Mutex | Event::Block), None) => locks::capture(event, &mut names),
        (event @ (Event::Mutex | Event::Block), Some(seconds)) => {
            let before = locks::snapshot();
            wait(seconds, stop);
            locks::difference(event, &before, &locks::snapshot(), &mut names)
        }
        (Event::Stalls, _) => stalls::capture(watched.ok_or_else(not_watched)?, &mut names),
        (Event::Other, _) => unreachable!("nobody can ask for it"),
    };
    // The counts that are always on have only addresses, and no mappings.
    capture.mappings = names.mappings();
    Ok(capture)
}

#[cfg(test)]
mod tests {
    use koltso_profiling::capture::ValueType;

    use super::*;

    #[test]
    fn two_of_a_kind_run_and_force_ends_the_oldest() {
        let captures = Arc::new(Captures::default());
        let first = captures.begin(Event::Cpu, false).expect("room");
        let second = captures.begin(Event::Cpu, false).expect("room");
        assert!(captures.begin(Event::Cpu, false).is_err());
        let other = captures.begin(Event::OffCpu, false).expect("another kind");
        let third = captures.begin(Event::Cpu, true).expect("forced");
        assert!(first.stop.load(Ordering::Relaxed) && !second.stop.load(Ordering::Relaxed));
        // Captures are not forced out faster than they end.
        let fourth = captures.begin(Event::Cpu, true).expect("forced");
        assert!(second.stop.load(Ordering::Relaxed) && captures.begin(Event::Cpu, true).is_err());
        assert_eq!(captures.running().len(), 3);
        drop((first, second, other));
        let fifth = captures.begin(Event::Cpu, true).expect("forced, there is room again");
        assert!(third.stop.load(Ordering::Relaxed));
        drop((third, fourth));
        assert_eq!(captures.running(), [Event::Cpu]);
        // When those who wait go away, their captures end and others can begin, but no more than
        // four threads are at work.
        let rest: Vec<Turn> = (0..3)
            .map(|_| {
                let turn = captures.begin(Event::Cpu, false).expect("a turn");
                drop(turn.guard());
                assert!(turn.stop.load(Ordering::Relaxed));
                turn
            })
            .collect();
        assert!(captures.begin(Event::Cpu, false).is_err() && captures.begin(Event::Cpu, true).is_err());
        drop(rest);
        assert_eq!(captures.running(), [Event::Cpu]);
        drop(fifth);
        assert!(captures.running().is_empty());
    }

    #[test]
    fn the_last_sixteen_are_kept() {
        let captures = Captures::default();
        let ids: Vec<u64> = (0..100)
            .map(|_| captures.keep(Capture::new(Event::Cpu, 0, vec![ValueType::new("cpu", "nanoseconds")], 0)).id)
            .collect();
        let kept: Vec<u64> = captures.kept().iter().map(|kept| kept.id).collect();
        assert_eq!(kept, ids[100 - KEPT_MAX..]);
    }

    #[test]
    fn large_captures_push_each_other_out_and_one_that_is_too_large_is_not_kept() {
        use koltso_profiling::capture::{Frame, FramePlace, Sample, ThreadIndex};
        let large = |samples: usize| {
            let mut capture = Capture::new(Event::Cpu, 0, vec![ValueType::new("cpu", "nanoseconds")], 0);
            let frame = Frame { function: "f".into(), file: None, line: 0, place: FramePlace::User, address: 1 };
            let frame = capture.frame(frame).expect("room");
            let stack = capture.stack(&[frame]).expect("room");
            let sample = Sample { at_ns: 0, thread: ThreadIndex(0), cpu: 0, stack, values: [1; 4] };
            (0..samples).for_each(|_| capture.push(sample));
            capture
        };
        let captures = Captures::default();
        let of_20_mb = 20_000_000 / size_of::<Sample>();
        let ids: Vec<u64> = (0..5).map(|_| captures.keep(large(of_20_mb)).id).collect();
        assert_eq!(captures.kept().iter().map(|kept| kept.id).collect::<Vec<_>>(), ids[2..]);
        // Whoever asked for it gets it all the same.
        let largest = captures.keep(large(4 * of_20_mb));
        assert_eq!(largest.capture.samples.len(), 4 * of_20_mb);
        assert!(captures.kept().is_empty());
    }
}

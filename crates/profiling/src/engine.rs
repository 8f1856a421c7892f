//! CPU captures: the best engine that the machine permits, and a sentence that says which it was, and why.
//!
//! perf events where they are permitted, else signals; never user-only perf events, which lose all time in system calls.
//! A capture runs on a thread of its own, which leaves the pin of its spawner and is nice; the caller waits for it.
//! Bounds: [`HZ_MAX`], [`SECONDS_MAX`]. Tested in `tests/engines.rs`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::capture::Capture;
use crate::symbols::Symbols;
use crate::{perf, signal, threads};

/// Samples a second of CPU time, at most: above, a sample costs more than it tells.
pub const HZ_MAX: u32 = 999;
/// The longest capture.
pub const SECONDS_MAX: u32 = 300;

/// A CPU capture.
#[derive(Clone, Debug)]
pub struct CpuRequest {
    /// For how long, 1 to [`SECONDS_MAX`].
    pub seconds: u32,
    /// Samples a second of each processor, 1 to [`HZ_MAX`].
    pub hz: u32,
    /// Ends the capture early, within 100 ms, with what there is.
    pub stop: Arc<AtomicBool>,
}

/// How CPU time is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuEngine {
    /// By the kernel, with its stacks.
    Perf,
    /// By a signal to the thread that runs, with user frames alone.
    Signals,
}

/// Why there is no capture.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The machine does not permit it, or lacks it: the operator can change that.
    #[error("{capability} is needed: {detail}")]
    Forbidden {
        /// What to grant.
        capability: &'static str,
        /// What the machine says.
        detail: String,
    },
    /// A number of the request is outside its range.
    #[error("{name}={value} is not in 1..={max}")]
    OutOfRange {
        /// Which.
        name: &'static str,
        /// As asked.
        value: u32,
        /// At most.
        max: u32,
    },
    /// So many captures of this kind run that there is no room for another.
    #[error("{0} captures of this kind run already")]
    Busy(usize),
    /// The system refused something else.
    #[error("the system: {0}")]
    Io(#[from] io::Error),
}

/// Notes which processors the program may use. Called at the start of `main`, before any thread pins itself.
pub fn remember_processors() {
    threads::remember_processors();
}

/// Makes the calling thread one that may be slow: on any processor that the program may use, and after everybody else.
pub fn step_aside() {
    threads::step_aside();
}

/// Which engine captures CPU time on this machine, and why, in one sentence for people.
#[must_use]
pub fn cpu_engine() -> (CpuEngine, String) {
    match perf::permitted() {
        Ok(()) => (CpuEngine::Perf, "perf events on every processor, kernel and user stacks".to_owned()),
        Err(error) => (
            CpuEngine::Signals,
            format!("timers and signals of each thread, user frames only, since perf events are refused: {error}"),
        ),
    }
}

/// Captures CPU time with the best engine there is. Blocks for as long.
pub fn capture_cpu(request: &CpuRequest) -> Result<Capture, EngineError> {
    let (engine, why) = cpu_engine();
    capture(engine, request, why)
}

/// Captures CPU time with one engine, whatever the others may be.
pub fn capture_cpu_by(engine: CpuEngine, request: &CpuRequest) -> Result<Capture, EngineError> {
    let why = match engine {
        CpuEngine::Perf => "perf events on every processor, kernel and user stacks, as asked for",
        CpuEngine::Signals => "timers and signals of each thread, user frames only, as asked for",
    };
    capture(engine, request, why.to_owned())
}

fn capture(engine: CpuEngine, request: &CpuRequest, why: String) -> Result<Capture, EngineError> {
    within("hz", request.hz, HZ_MAX)?;
    within("seconds", request.seconds, SECONDS_MAX)?;
    let mut capture = on_own_thread(|| match engine {
        CpuEngine::Perf => perf::capture(request),
        CpuEngine::Signals => signal::capture(request),
    })?;
    let note = std::mem::take(&mut capture.engine);
    let names = match engine {
        CpuEngine::Perf if !Symbols::kernel_named() => "; kernel functions have no names (CAP_SYSLOG, kptr_restrict)",
        _ => "",
    };
    let seconds = |ns: f64| ns / 1e9;
    capture.engine = format!(
        "{why}{names}{note}; samples add up to {:.3} s of CPU, the scheduler accounts {:.3} s; lost {}, throttled {}",
        seconds(capture.total(1) as f64),
        seconds(capture.accounted_ns as f64),
        capture.lost,
        capture.throttled
    );
    Ok(capture)
}

pub(crate) fn within(name: &'static str, value: u32, max: u32) -> Result<(), EngineError> {
    if (1..=max).contains(&value) { Ok(()) } else { Err(EngineError::OutOfRange { name, value, max }) }
}

/// Runs a capture on a thread that is nobody's core, and waits.
pub(crate) fn on_own_thread(run: impl FnOnce() -> Result<Capture, EngineError> + Send) -> Result<Capture, EngineError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("koltso-profiler".to_owned()).spawn_scoped(scope, || {
            threads::step_aside();
            run()
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

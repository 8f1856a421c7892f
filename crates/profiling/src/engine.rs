//! CPU captures: the best engine that the machine permits, and a sentence that says which one it
//! was, and why.
//!
//! It is perf events if they are permitted, otherwise signals; never user-only perf events, which
//! lose all time in system calls. A capture runs on a thread of its own, which is not pinned where
//! its spawner is and has a low priority, while the caller waits for it. Bounds: [`HZ_MAX`],
//! [`SECONDS_MAX`]. Tested in `tests/engines.rs`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::capture::Capture;
use crate::symbols::Symbols;
use crate::{perf, signal, threads};

/// The most samples for each second of CPU time; above this rate, a sample costs more than it
/// tells.
pub const HZ_MAX: u32 = 999;
/// The longest capture, in seconds.
pub const SECONDS_MAX: u32 = 300;

/// What to capture of CPU time.
#[derive(Clone, Debug)]
pub struct CpuRequest {
    /// How long to capture, 1 to [`SECONDS_MAX`].
    pub seconds: u32,
    /// Samples for each second of a processor's time, 1 to [`HZ_MAX`].
    pub hz: u32,
    /// Set to end the capture early, within 100 ms; the capture then has the samples taken so far.
    pub stop: Arc<AtomicBool>,
}

/// How CPU time is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuEngine {
    /// The kernel samples, with its own stacks too.
    Perf,
    /// A signal interrupts the running thread and samples the user frames only.
    Signals,
}

/// Why there is no capture.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The machine does not permit the capture or lacks what it needs: an operator can change that.
    #[error("{capability} is needed: {detail}")]
    Forbidden {
        /// What the operator has to grant.
        capability: &'static str,
        /// What the machine said.
        detail: String,
    },
    /// A number of the request is outside its range.
    #[error("{name}={value} is not in 1..={max}")]
    OutOfRange {
        /// The name of the number.
        name: &'static str,
        /// The value in the request.
        value: u32,
        /// The largest that is allowed.
        max: u32,
    },
    /// So many captures of this kind are running that there is no room for another.
    #[error("{0} captures of this kind run already")]
    Busy(usize),
    /// The system refused something else.
    #[error("the system: {0}")]
    Io(#[from] io::Error),
}

/// Notes which processors the program may use. Call it at the start of `main`, before any thread
/// pins itself.
pub fn remember_processors() {
    threads::remember_processors();
}

/// Lets the calling thread be slow: it may run on any processor that the program may use, and at a
/// low priority.
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

/// Captures CPU time with the best engine there is. Blocks until the capture ends.
pub fn capture_cpu(request: &CpuRequest) -> Result<Capture, EngineError> {
    let (engine, why) = cpu_engine();
    capture(engine, request, why)
}

/// Captures CPU time with the given engine, even if another would be better.
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
        "{why}{names}{note}; samples add up to {:.3} s of CPU, the scheduler accounts for {:.3} s; lost {}, throttled {}",
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

/// Runs a capture on a thread that does no other work, and waits for it.
pub(crate) fn on_own_thread(run: impl FnOnce() -> Result<Capture, EngineError> + Send) -> Result<Capture, EngineError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("koltso-profiler".to_owned()).spawn_scoped(scope, || {
            threads::step_aside();
            run()
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

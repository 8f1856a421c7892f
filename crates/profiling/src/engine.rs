//! CPU captures: the best engine that the machine permits, and a sentence that says which one it
//! was, and why.
//!
//! It is perf events if they are permitted, otherwise signals; never user-only perf events, which
//! lose all time in system calls. A capture runs on a thread of its own, which is not pinned where
//! its spawner is and has a low priority, while the caller waits for it. Bounds: [`HZ_MAX`],
//! [`SECONDS_MAX`]. Tested in `tests/engines.rs`.

use crate::capture::Capture;
pub use crate::cpu_request::{CpuRequest, EngineError, HZ_MAX, SECONDS_MAX};
use crate::symbols::Symbols;
use crate::{perf, signal, threads};

/// How CPU time is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuEngine {
    /// The kernel samples, with its own stacks too.
    Perf,
    /// A signal interrupts the running thread and samples the user frames only.
    Signals,
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

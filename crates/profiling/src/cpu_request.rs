//! What a caller asks of a CPU capture, and why it may not get it: shared by all engines.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

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

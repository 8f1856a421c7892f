//! x
use crate::capture::Capture;
use crate::engine::{CpuRequest, EngineError};
pub(crate) fn capture(_: &CpuRequest) -> Result<Capture, EngineError> {
    Err(EngineError::Busy(0))
}

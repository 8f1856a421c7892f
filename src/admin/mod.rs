//! The control plane: what an operator sees of a running node and asks of it, over HTTP, on a
//! thread of its own.

pub mod classes;
pub mod control;
mod crowd;
mod entrance;
pub mod guard;
pub mod headers;
pub mod home;
pub mod metrics;
pub mod pprof;
pub mod refusal;
pub mod status;
mod stream;

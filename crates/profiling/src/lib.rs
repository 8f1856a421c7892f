//! What a process can tell about itself: where its CPU time goes, who allocates, what waits; as
//! data, then as files and pages.
//!
//! [`capture`] is in the middle: every engine makes a [`capture::Capture`], and every format is a
//! function of one. The crate knows no HTTP and no runtime; a program that serves profiles calls it
//! from a thread that may be slow. [`engine`] and [`offcpu`] capture; [`stalls`] watches the
//! threads that a program registers.

pub mod alloc;
pub mod capture;
pub mod classify;
mod collect;
mod cpu_request;
pub mod difference;
pub mod engine;
mod folding;
pub mod locks;
pub mod markup;
pub mod offcpu;
pub mod page;
mod perf;
pub mod proto;
mod signal;
pub mod stalls;
pub mod svg;
pub mod symbols;
pub mod text;
mod threads;

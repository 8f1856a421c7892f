//! Named locks, named waits, and what they and the sampling allocator count stacks with.
//!
//! [`Mutex`] and [`RwLock`] are parking_lot's, with a name that profiles show; [`waiting`] and [`waited_for`] name what else threads and
//! requests wait for: the disk, another thread. Every crate of the program links this one, so it is small: what costs a waiter something
//! lies here, what makes a profile of it (symbols, captures, formats) in `koltso-profiling`.
//!
//! [`table`], [`walk`] and [`random`] are shared with the sampling allocator: they take no lock and do not allocate.
//! Deliberately absent: condition variables (parking_lot's take these guards), fairness, deadlock detection, poisoning.
#![deny(missing_docs)]

mod lock;
pub mod random;
pub mod table;
pub mod waits;
pub mod walk;

pub use lock::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use waits::{Name, waited_for, waiting};

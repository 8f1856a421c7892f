//! Named locks and named waits, and the tools with which they and the sampling allocator count
//! stacks.
//!
//! [`Mutex`] and [`RwLock`] are parking_lot's, with a name that profiles show. [`waiting`] and
//! [`waited_for`] name whatever else threads and requests wait for: the disk, another thread. Every
//! crate of the program links this one, so it is kept small: it holds only what runs in the thread
//! that waits. What turns the counts into a profile (symbols, captures, formats) is in
//! `koltso-profiling`.
//!
//! The sampling allocator also uses [`table`], [`walk`] and [`random`], which take no lock and do
//! not allocate. [`breathe`] keeps long work from holding up others. Deliberately absent: condition
//! variables (parking_lot's accept these guards), fairness, deadlock detection, poisoning.
#![deny(missing_docs)]

mod lock;
pub mod random;
pub mod table;
mod turns;
pub mod waits;
pub mod walk;

pub use lock::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use turns::{breathe, work_in_turns};
pub use waits::{Name, waited_for, waiting};

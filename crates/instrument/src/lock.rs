//! A mutex and a read-write lock with names, around parking_lot's.
//!
//! Taking a free lock is parking_lot's `try_lock` and nothing else (`benches/pair.rs`); who must wait is timed, see [`waits`](crate::waits).
//!
//! Layout: a name is a reference to a `&'static str`, one word and not two: the index's stripes, 56 bytes of mutex, then fill one
//! cache line. (A type for each name would take none, and make two types of two locks that change places.)
//! Owner: whoever holds the lock. Tested in `profiling/tests/locks.rs`, through the captures.

pub use parking_lot::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

use crate::waits::{Name, waited};

/// A mutual exclusion with a name; see the head of the file.
#[derive(Debug)]
pub struct Mutex<T> {
    name: Name,
    inner: parking_lot::Mutex<T>,
}

const _: () = assert!(size_of::<Mutex<[u64; 6]>>() == 64);

impl<T> Mutex<T> {
    /// A free mutex. The name is for people who read profiles; locks may share it.
    pub const fn new(name: Name, value: T) -> Self {
        Self { name, inner: parking_lot::Mutex::new(value) }
    }

    /// Takes the lock; waits for it.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        match self.inner.try_lock() {
            Some(guard) => guard,
            None => waited(self.name, || self.inner.lock()),
        }
    }

    /// Takes the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.inner.try_lock()
    }

    /// The value, without a lock: nobody else has the mutex.
    #[inline]
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }

    /// The value.
    #[inline]
    pub fn into_inner(self) -> T {
        self.inner.into_inner()
    }
}

/// A lock of many readers or one writer, with a name; see the head of the file.
#[derive(Debug)]
pub struct RwLock<T> {
    name: Name,
    inner: parking_lot::RwLock<T>,
}

impl<T> RwLock<T> {
    /// A free lock. The name is for people who read profiles; locks may share it.
    pub const fn new(name: Name, value: T) -> Self {
        Self { name, inner: parking_lot::RwLock::new(value) }
    }

    /// Takes the lock to read; waits for it.
    #[inline]
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        match self.inner.try_read() {
            Some(guard) => guard,
            None => waited(self.name, || self.inner.read()),
        }
    }

    /// Takes the lock to write; waits for it.
    #[inline]
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        match self.inner.try_write() {
            Some(guard) => guard,
            None => waited(self.name, || self.inner.write()),
        }
    }

    /// Takes the lock to read if no writer has it.
    #[inline]
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        self.inner.try_read()
    }

    /// Takes the lock to write if it is free.
    #[inline]
    pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
        self.inner.try_write()
    }

    /// The value, without a lock: nobody else has it.
    #[inline]
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }

    /// The value.
    #[inline]
    pub fn into_inner(self) -> T {
        self.inner.into_inner()
    }
}

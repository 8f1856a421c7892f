//! A mutex and a read-write lock with names, around parking_lot's.
//!
//! Taking a free lock is parking_lot's `try_lock` and nothing else (`benches/pair.rs` measures it).
//! Only a thread that must wait is timed, see [`waits`](crate::waits).
//!
//! Layout: a name is a reference to a `&'static str`, so it takes one word rather than two, and a
//! stripe of the index (a mutex of 56 bytes without its name) fills exactly one cache line.
//! Rejected: a type parameter for the name. It would take no space, but two locks that change
//! places would then have two types. Owner: whoever holds the lock. Tested through the captures in
//! `crates/profiling/tests/locks.rs`.

pub use parking_lot::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

use crate::waits::{Name, waited};

/// A mutex whose name appears in profiles.
#[derive(Debug)]
pub struct Mutex<T> {
    name: Name,
    inner: parking_lot::Mutex<T>,
}

const _: () = assert!(size_of::<Mutex<[u64; 6]>>() == 64);

impl<T> Mutex<T> {
    /// Makes a free mutex. The name is for people who read profiles; several locks may share one.
    pub const fn new(name: Name, value: T) -> Self {
        Self { name, inner: parking_lot::Mutex::new(value) }
    }

    /// Takes the lock, and waits until it is free.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        match self.inner.try_lock() {
            Some(guard) => guard,
            None => waited(self.name, || self.inner.lock()),
        }
    }

    /// Takes the lock if it is free; `None` if somebody holds it.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.inner.try_lock()
    }

    /// The value. It needs no lock, since `&mut self` proves that nobody else has the mutex.
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

/// A lock for many readers or one writer, whose name appears in profiles.
#[derive(Debug)]
pub struct RwLock<T> {
    name: Name,
    inner: parking_lot::RwLock<T>,
}

impl<T> RwLock<T> {
    /// Makes a free lock. The name is for people who read profiles; several locks may share one.
    pub const fn new(name: Name, value: T) -> Self {
        Self { name, inner: parking_lot::RwLock::new(value) }
    }

    /// Takes the lock for reading, and waits until no writer holds it.
    #[inline]
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        match self.inner.try_read() {
            Some(guard) => guard,
            None => waited(self.name, || self.inner.read()),
        }
    }

    /// Takes the lock for writing, and waits until nobody holds it.
    #[inline]
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        match self.inner.try_write() {
            Some(guard) => guard,
            None => waited(self.name, || self.inner.write()),
        }
    }

    /// Takes the lock for reading; `None` if a writer holds it.
    #[inline]
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        self.inner.try_read()
    }

    /// Takes the lock for writing; `None` if somebody holds it.
    #[inline]
    pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
        self.inner.try_write()
    }

    /// The value. It needs no lock, since `&mut self` proves that nobody else has it.
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

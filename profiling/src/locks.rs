//! Who waits for which lock: a mutex and a read-write lock with names, around parking_lot's.
//!
//! Taking a free lock is parking_lot's `try_lock` and nothing else. Who must wait is timed; waits are sampled by time, one sample for each
//! [`INTERVAL_NS`] that a thread has waited (longer waits are counted as they are), with the waiter's stack and, as its leaf, a label
//! `lock:NAME`. A shorter wait stands for as many of its kind as fit into the interval, so that sums are right on average.
//!
//! Owner: whoever holds the lock; the table of stacks is one a process. Bounds: [`STACKS_MAX`] distinct stacks in [`BYTES`], filled as
//! they appear; beyond that waits count, without their stack. Two snapshots are compared for the waits of a span of time.
//! Invariants: 1. the first two words of a counted stack are address and length of a `&'static str`. 2. A thread that waits takes no
//! lock for the profile and does not allocate.
//! Deliberately absent: who holds the lock meanwhile; waits below an interval of a thread that ends (they are right on average); condition
//! variables (parking_lot's take these guards).
//! Tested here and in `tests/locks.rs`.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::time::Instant;

use crate::alloc::table::{self, OVERFLOW, Row, Table};
use crate::alloc::{Engine, Stacks, Symbolise, random, seed, unix_ms, walk};
use crate::capture::{Capture, Event, ValueType};

pub use parking_lot::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

/// Waiting that makes a sample.
pub const INTERVAL_NS: u64 = 10_000;
/// Distinct stacks that are kept apart.
pub const STACKS_MAX: usize = 1024;
/// Memory of the table of stacks, all told.
pub const BYTES: usize = Waits::BYTES;

type Waits = Table<{ 2 * STACKS_MAX }, { 40 * STACKS_MAX }>;

const _: () = assert!(BYTES < 512 << 10);

/// Contentions in 1/[`CONTENTION`], nanoseconds.
static TABLE: Waits = Table::new();
const CONTENTION: u64 = 256;

thread_local! {
    /// Waited since the last sample; begins anywhere in an interval, so that threads that end early count on average.
    static WAITED_NS: Cell<u64> = const { Cell::new(0) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
}

/// A mutual exclusion with a name; see the head of the file.
#[derive(Debug)]
pub struct Mutex<T> {
    name: &'static str,
    inner: parking_lot::Mutex<T>,
}

impl<T> Mutex<T> {
    /// A free mutex. The name is for people who read profiles; locks may share it.
    pub const fn new(name: &'static str, value: T) -> Self {
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
    name: &'static str,
    inner: parking_lot::RwLock<T>,
}

impl<T> RwLock<T> {
    /// A free lock. The name is for people who read profiles; locks may share it.
    pub const fn new(name: &'static str, value: T) -> Self {
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

#[cold]
#[inline(never)]
fn waited<G>(name: &'static str, take: impl FnOnce() -> G) -> G {
    let began = Instant::now();
    let guard = take();
    record(name, began.elapsed().as_nanos() as u64);
    guard
}

#[inline(never)]
fn record(name: &'static str, waited_ns: u64) {
    let Some((contentions, delay_ns)) = weights(waited_ns) else { return };
    let mut words = [0; 2 + walk::FRAMES_MAX];
    // Invariant 1.
    words[0] = name.as_ptr().expose_provenance() as u64;
    words[1] = name.len() as u64;
    let depth = walk::walk(&mut words[2..]);
    TABLE.add(TABLE.slot(&words[..2 + depth]), [contentions, delay_ns, 0, 0]);
}

/// What a wait counts for: contentions in 1/[`CONTENTION`] and nanoseconds. A wait shorter than the interval is sampled with the probability
/// wait / interval, and weighted with the inverse.
fn weights(waited_ns: u64) -> Option<(u64, u64)> {
    if waited_ns >= INTERVAL_NS {
        return Some((CONTENTION, waited_ns));
    }
    if RANDOM.get() == 0 {
        RANDOM.set(seed());
        WAITED_NS.set(random(&RANDOM) % INTERVAL_NS);
    }
    let sum = WAITED_NS.get() + waited_ns;
    if sum < INTERVAL_NS {
        WAITED_NS.set(sum);
        return None;
    }
    WAITED_NS.set(sum - INTERVAL_NS);
    Some((CONTENTION * INTERVAL_NS / waited_ns, INTERVAL_NS))
}

/// Who had waited at one moment.
#[derive(Clone, Debug)]
pub struct RawSnapshot {
    at: Instant,
    unix_ms: u64,
    rows: Vec<Row>,
}

/// Who has waited until now.
#[must_use]
pub fn snapshot() -> RawSnapshot {
    RawSnapshot { at: Instant::now(), unix_ms: unix_ms(), rows: TABLE.rows() }
}

/// All waits since the program began.
pub fn mutex(symbolise: &mut impl Symbolise) -> Capture {
    let now = snapshot();
    capture(now.unix_ms, 0, &[], &now.rows, symbolise)
}

/// The waits that ended between two snapshots.
pub fn difference(before: &RawSnapshot, after: &RawSnapshot, symbolise: &mut impl Symbolise) -> Capture {
    let duration = after.at.saturating_duration_since(before.at).as_nanos() as u64;
    capture(before.unix_ms, duration, &before.rows, &after.rows, symbolise)
}

fn capture(
    began_unix_ms: u64,
    duration_ns: u64,
    before: &[Row],
    after: &[Row],
    symbolise: &mut impl Symbolise,
) -> Capture {
    let types = vec![ValueType::new("contentions", "count"), ValueType::new("delay", "nanoseconds")];
    let mut capture = Capture::new(Event::Mutex, began_unix_ms, types, 1);
    capture.duration_ns = duration_ns;
    capture.period = Some((ValueType::new("delay", "nanoseconds"), INTERVAL_NS as i64));
    capture.engine = format!(
        "named locks: a sample each {} µs that a thread has waited; at most {STACKS_MAX} distinct stacks",
        INTERVAL_NS / 1000
    );
    let mut stacks =
        Stacks::new(symbolise, Engine { names: "koltso_profiling::locks::", source: "profiling/src/locks.rs" });
    for (row, [contentions, delay_ns, ..]) in table::difference(before, after) {
        let values = [(contentions + CONTENTION as i64 / 2) / CONTENTION as i64, delay_ns, 0, 0];
        let label = (row.slot != OVERFLOW).then(|| format!("lock:{}", name_of(&row)));
        stacks.push(&mut capture, &row, row.words.get(2..).unwrap_or_default(), label.as_deref(), values);
    }
    capture
}

fn name_of(row: &Row) -> &'static str {
    let at = std::ptr::with_exposed_provenance(row.words[0] as usize);
    // SAFETY: invariant 1: `record` alone writes this table, and the row is published, so its words are complete.
    unsafe { std::str::from_utf8_unchecked(std::slice::from_raw_parts(at, row.words[1] as usize)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{Frame, Place};

    struct Addresses;

    impl Symbolise for Addresses {
        fn frames(&mut self, address: u64, _: bool, out: &mut Vec<Frame>) {
            let function = address.to_string().into();
            out.push(Frame { function, file: None, line: 0, place: Place::User, address });
        }
    }

    /// Another stack for each path: even and odd turns are in different functions.
    fn paths(path: u32, turns: u32) -> u32 {
        match (turns, path & 1) {
            (0, _) => {
                record("many", 20_000);
                0
            }
            (_, 0) => even(path >> 1, turns - 1),
            _ => odd(path >> 1, turns - 1),
        }
    }

    #[inline(never)]
    fn even(path: u32, turns: u32) -> u32 {
        std::hint::black_box(paths(path, turns))
    }

    #[inline(never)]
    fn odd(path: u32, turns: u32) -> u32 {
        std::hint::black_box(paths(path, turns)) + 1
    }

    #[test]
    fn stacks_beyond_the_bound_count_without_their_stack() {
        let before = snapshot();
        for path in 0..2 * STACKS_MAX as u32 {
            assert_eq!(paths(path, 12), path.count_ones());
        }
        let capture = difference(&before, &snapshot(), &mut Addresses);
        assert_eq!((capture.total(0), capture.total(1)), (2 * STACKS_MAX as i64, 40_000 * STACKS_MAX as i64));
        assert!(capture.stacks().len() <= STACKS_MAX + 1 && capture.dropped >= STACKS_MAX as u64);
        let is_known = |name: &str| ["lock:many", "stacks beyond the bound"].contains(&name);
        assert!(capture.stacks().iter().all(|stack| is_known(&capture.frame_at(stack[0]).function)));
    }

    #[test]
    fn short_waits_count_as_what_they_stand_for() {
        // One lock is waited for 1 µs, another 4 µs, now and then one for 50 µs: in an order without a period.
        let order: Cell<u64> = Cell::new(0);
        let (mut sampled, mut waits) = ([[0; 2]; 3], [[0; 2]; 3]);
        for i in 0_u64..300_000 {
            order.set(order.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(i | 1));
            let (lock, waited_ns) = match order.get() >> 33 & 127 {
                0 => (2, 50_000),
                1..80 => (0, 1000),
                _ => (1, 4000),
            };
            waits[lock] = [waits[lock][0] + CONTENTION, waits[lock][1] + waited_ns];
            if let Some((contentions, delay_ns)) = weights(waited_ns) {
                sampled[lock] = [sampled[lock][0] + contentions, sampled[lock][1] + delay_ns];
            }
        }
        for (sampled, waits) in sampled.iter().flatten().zip(waits.iter().flatten()) {
            let percent = 100.0 * (*sampled as f64 / *waits as f64 - 1.0);
            assert!(percent.abs() < 3.0, "{sampled} for {waits}");
        }
        assert_eq!(sampled[2], waits[2]);
        assert_eq!(weights(0), None);
    }
}

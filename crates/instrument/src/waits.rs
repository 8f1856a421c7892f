//! Who waited for what, counted by name and stack.
//!
//! There are two kinds: waits for a named lock, and named waits for anything else that holds up a
//! thread or a request, such as a sync, an allocation of disk space or a peer's reply. A thread
//! that has nothing to do (its queue is empty, or it is parked until somebody calls it) does not
//! wait in this sense.
//!
//! Waits are sampled by time: one sample for each [`INTERVAL_NS`] that a thread has waited. Longer
//! waits are all counted, with their true length. A shorter wait that is sampled stands for as many
//! of its kind as fit into the interval, so that sums are right on average. A wait that is not
//! sampled costs two readings of the clock, a sample some 0.1 µs more.
//!
//! Owner: two tables of the process, one for each kind, to which every thread adds. Bounds:
//! [`LOCK_STACKS_MAX`] and [`WAIT_STACKS_MAX`] distinct stacks in [`BYTES`] of zero pages, which
//! fill up as stacks appear; waits beyond that are counted without name and stack. Invariants: 1.
//! The first word of a counted stack is the address of a `&'static str`. 2. A thread that waits
//! takes no lock for the profile and does not allocate. 3. The counts in the tables only grow.
//! Deliberately absent: who holds the lock meanwhile; the last waits of a thread that ends, where
//! they add up to less than an interval (sums are still right on average). A wait inside a
//! [`waiting`] is part of it and is not counted again; a wait for a lock inside one is counted as
//! both. Tested here, in `tests/waits.rs` and, through the captures, in `crates/profiling/tests/locks.rs`.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::random::{random, seed};
use crate::table::{self, OVERFLOW, Row, Table};
use crate::walk;

/// The name that people read in a profile, such as `&"index stripe"`. It is one word long: see
/// `lock.rs`.
pub type Name = &'static &'static str;

/// Nanoseconds of waiting for each sample.
pub const INTERVAL_NS: u64 = 10_000;
/// Distinct stacks of waits for locks that are kept apart.
pub const LOCK_STACKS_MAX: usize = 1024;
/// Distinct stacks of other waits that are kept apart; few places wait for anything but locks.
pub const WAIT_STACKS_MAX: usize = 256;
/// Memory of both tables together, in bytes.
pub const BYTES: usize = Locks::BYTES + Waits::BYTES;

type Locks = Table<{ 2 * LOCK_STACKS_MAX }, { 40 * LOCK_STACKS_MAX }>;
type Waits = Table<{ 2 * WAIT_STACKS_MAX }, { 40 * WAIT_STACKS_MAX }>;

const _: () = assert!(BYTES < 576 << 10);

/// The counters of both tables are waits in 1/[`COUNT`], and nanoseconds. There are two tables so
/// that waits without room for their stack still keep their kind.
static LOCKS: Locks = Table::new();
static WAITS: Waits = Table::new();
const COUNT: u64 = 256;

thread_local! {
    /// Nanoseconds waited since the last sample. It starts at a random point of an interval, so
    /// that the waits of threads that end early are right on average.
    static WAITED_NS: Cell<u64> = const { Cell::new(0) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
    /// Whether the thread is inside a [`waiting`].
    static IS_WAITING: Cell<bool> = const { Cell::new(false) };
}

/// What a thread waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A lock.
    Lock,
    /// Anything else: the disk, a peer, another thread.
    Wait,
}

/// Calls `blocking` and counts the time it took as a wait, with the caller's stack.
#[inline(always)]
pub fn waiting<R>(name: Name, blocking: impl FnOnce() -> R) -> R {
    let wait = Waiting::begin(name);
    let result = blocking();
    drop(wait);
    result
}

/// Counts `count` waits that have ended and together took `total`: those of tasks or requests,
/// which have no stacks of their own. They are counted with the caller's stack.
#[inline(never)]
pub fn waited_for(name: Name, total: Duration, count: u32) {
    if count > 0 {
        record(Kind::Wait, name, total.as_nanos() as u64, count);
    }
}

/// A wait in progress. It ends when this is dropped, also by a panic.
struct Waiting {
    name: Name,
    /// When the wait began; `None` inside another one, which counts it.
    began: Option<Instant>,
}

impl Waiting {
    #[inline(never)]
    fn begin(name: Name) -> Self {
        let began = (!IS_WAITING.replace(true)).then(Instant::now);
        Self { name, began }
    }
}

impl Drop for Waiting {
    #[inline(never)]
    fn drop(&mut self) {
        if let Some(began) = self.began {
            IS_WAITING.set(false);
            record(Kind::Wait, self.name, began.elapsed().as_nanos() as u64, 1);
        }
    }
}

/// Takes a lock that is not free, and counts the time it took.
#[cold]
#[inline(never)]
pub(crate) fn waited<G>(name: Name, take: impl FnOnce() -> G) -> G {
    let began = Instant::now();
    let guard = take();
    record(Kind::Lock, name, began.elapsed().as_nanos() as u64, 1);
    guard
}

#[inline(never)]
fn record(kind: Kind, name: Name, waited_ns: u64, count: u32) {
    let Some((count, delay_ns)) = weights(waited_ns, count) else { return };
    let mut words = [0; 1 + walk::FRAMES_MAX];
    // Invariant 1.
    words[0] = std::ptr::from_ref(name).expose_provenance() as u64;
    let depth = walk::walk(&mut words[1..]);
    let words = &words[..1 + depth];
    let counts = [count, delay_ns, 0, 0];
    match kind {
        Kind::Lock => LOCKS.add(LOCKS.slot(words), counts),
        Kind::Wait => WAITS.add(WAITS.slot(words), counts),
    }
}

/// What some waits together count for: how many in 1/[`COUNT`], and nanoseconds. Waits shorter than
/// the interval are sampled with the probability waited / interval and weighted with its inverse;
/// `None` if they are not sampled.
fn weights(waited_ns: u64, count: u32) -> Option<(u64, u64)> {
    let count = COUNT * u64::from(count);
    if waited_ns >= INTERVAL_NS {
        return Some((count, waited_ns));
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
    Some((count * INTERVAL_NS / waited_ns, INTERVAL_NS))
}

/// The waits counted up to one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Private, because invariant 1 holds only for rows that this file made.
    locks: Vec<Row>,
    waits: Vec<Row>,
}

/// The waits counted so far. The sums of different stacks are not all read at the same instant.
#[must_use]
pub fn snapshot() -> Snapshot {
    Snapshot { locks: LOCKS.rows(), waits: WAITS.rows() }
}

/// The waits of one name from one stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waited {
    /// Whether they were waits for a lock or for something else.
    pub kind: Kind,
    /// The name of the lock or the wait; `None` for those beyond the bounds.
    pub name: Option<&'static str>,
    /// Return addresses, innermost first; the first few are in this crate.
    pub stack: Box<[u64]>,
    /// How many waits.
    pub count: i64,
    /// How long they took together, in nanoseconds.
    pub delay_ns: i64,
}

/// The waits that ended between `before` and `after`; with [`Snapshot::default`] as `before`, all
/// since the program began. A stack that was seen earlier is included even if it did not wait in
/// between.
#[must_use]
pub fn difference(before: &Snapshot, after: &Snapshot) -> Vec<Waited> {
    let waited = |kind| {
        move |(row, [count, delay_ns, ..]): (Row, [i64; 4])| Waited {
            kind,
            name: name_of(&row),
            stack: row.words.get(1..).unwrap_or_default().into(),
            count: (count + COUNT as i64 / 2) / COUNT as i64,
            delay_ns,
        }
    };
    let locks = table::difference(&before.locks, &after.locks).into_iter().map(waited(Kind::Lock));
    locks.chain(table::difference(&before.waits, &after.waits).into_iter().map(waited(Kind::Wait))).collect()
}

fn name_of(row: &Row) -> Option<&'static str> {
    if row.slot == OVERFLOW {
        return None;
    }
    let name = std::ptr::with_exposed_provenance::<&'static str>(row.words[0] as usize);
    // SAFETY: invariant 1: only `record` writes these tables, a `Snapshot` has no rows of others,
    // and its rows were published, so the word is complete. It was made from a static reference,
    // and so what it points to is static as well.
    Some(unsafe { *name })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives each path a stack of its own: even and odd turns are in different functions.
    fn paths(kind: Kind, path: u32, turns: u32) -> u32 {
        match (turns, path & 1) {
            (0, _) => {
                record(kind, if kind == Kind::Lock { &"many" } else { &"many waits" }, 20_000, 1);
                0
            }
            (_, 0) => even(kind, path >> 1, turns - 1),
            _ => odd(kind, path >> 1, turns - 1),
        }
    }

    #[inline(never)]
    fn even(kind: Kind, path: u32, turns: u32) -> u32 {
        std::hint::black_box(paths(kind, path, turns))
    }

    #[inline(never)]
    fn odd(kind: Kind, path: u32, turns: u32) -> u32 {
        std::hint::black_box(paths(kind, path, turns)) + 1
    }

    /// The distinct names, the number of rows, and the counts and nanoseconds: first of the rows
    /// with a name, then of those beyond the bounds.
    fn told(kind: Kind, before: &Snapshot) -> (Vec<Option<&'static str>>, usize, [i64; 2], [i64; 2]) {
        let (mut named, mut beyond) = ([0; 2], [0; 2]);
        let all = difference(before, &snapshot()).into_iter().filter(|waited| waited.kind == kind && waited.count != 0);
        let all: Vec<Waited> = all.filter(|waited| waited.name.is_none_or(|name| name.starts_with("many"))).collect();
        for waited in &all {
            let sums = if waited.name.is_some() { &mut named } else { &mut beyond };
            *sums = [sums[0] + waited.count, sums[1] + waited.delay_ns];
        }
        let mut names: Vec<_> = all.iter().map(|waited| waited.name).collect();
        names.sort_unstable();
        names.dedup();
        (names, all.len(), named, beyond)
    }

    #[test]
    fn stacks_beyond_the_bound_count_without_their_stack_and_keep_their_kind() {
        for (kind, name, bound) in [(Kind::Wait, "many waits", WAIT_STACKS_MAX), (Kind::Lock, "many", LOCK_STACKS_MAX)]
        {
            let before = snapshot();
            for path in 0..2 * bound as u32 {
                assert_eq!(paths(kind, path, 12), path.count_ones());
            }
            let (names, rows, named, beyond) = told(kind, &before);
            assert_eq!(names, [None, Some(name)]);
            assert_eq!([named[0] + beyond[0], named[1] + beyond[1]], [2 * bound as i64, 40_000 * bound as i64]);
            assert!(rows <= bound + 1 && beyond[0] >= bound as i64, "{rows} rows, {beyond:?}");
        }
    }

    #[test]
    fn short_waits_count_as_what_they_stand_for() {
        // One lock is waited for 1 µs, another 4 µs, now and then one for 50 µs, and five at once
        // for 3 µs together, in an order without a period.
        let mut order = 0_u64;
        let (mut sampled, mut waits) = ([[0; 2]; 4], [[0; 2]; 4]);
        for i in 0_u64..400_000 {
            order = order.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(i | 1);
            let (lock, waited_ns, count) = match order >> 33 & 127 {
                0 => (2, 50_000, 1),
                1..60 => (0, 1000, 1),
                60..90 => (3, 3000, 5),
                _ => (1, 4000, 1),
            };
            waits[lock] = [waits[lock][0] + COUNT * u64::from(count), waits[lock][1] + waited_ns];
            if let Some((count, delay_ns)) = weights(waited_ns, count) {
                sampled[lock] = [sampled[lock][0] + count, sampled[lock][1] + delay_ns];
            }
        }
        for (sampled, waits) in sampled.iter().flatten().zip(waits.iter().flatten()) {
            let percent = 100.0 * (*sampled as f64 / *waits as f64 - 1.0);
            assert!(percent.abs() < 3.0, "{sampled} for {waits}");
        }
        assert_eq!(sampled[2], waits[2]);
        assert_eq!(weights(0, 1), None);
    }
}

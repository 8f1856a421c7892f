//! Who waits for which lock, and for what else: captures of what `koltso-instrument` counts.
//!
//! A capture of [`Event::Mutex`] has the waits for named locks; one of [`Event::Block`] also has
//! the named waits for disks, peers and other threads. The leaf of a stack is a label, `lock:NAME`
//! or `wait:NAME`, called by the function that waited. Owner: the thread that serves a profile.
//! Bounds: those of the tables, see [`koltso_instrument::waits`]. Invariant: cumulative values of
//! later captures are not smaller. Tested in `tests/locks.rs`.

use std::time::Instant;

use koltso_instrument::waits::{self, Kind};

use crate::alloc::{OwnFrames, Stacks, Symbolise};
use crate::capture::{Capture, Event, ValueType};
use crate::threads;

/// The waits counted up to one moment.
#[derive(Clone, Debug)]
pub struct RawSnapshot {
    at: Instant,
    unix_ms: u64,
    waits: waits::Snapshot,
}

/// The waits counted so far.
#[must_use]
pub fn snapshot() -> RawSnapshot {
    RawSnapshot { at: Instant::now(), unix_ms: threads::unix_ms(), waits: waits::snapshot() }
}

/// All waits since the program began. `event` is [`Event::Mutex`] or [`Event::Block`].
///
/// # Panics
/// If `event` is another.
pub fn capture(event: Event, symbolise: &mut impl Symbolise) -> Capture {
    let now = snapshot();
    make(event, now.unix_ms, 0, &waits::Snapshot::default(), &now.waits, symbolise)
}

/// The waits that ended between two snapshots. `event` is [`Event::Mutex`] or [`Event::Block`].
///
/// # Panics
/// If `event` is another.
pub fn difference(event: Event, before: &RawSnapshot, after: &RawSnapshot, symbolise: &mut impl Symbolise) -> Capture {
    let duration = after.at.saturating_duration_since(before.at).as_nanos() as u64;
    make(event, before.unix_ms, duration, &before.waits, &after.waits, symbolise)
}

fn make(
    event: Event,
    began_unix_ms: u64,
    duration_ns: u64,
    before: &waits::Snapshot,
    after: &waits::Snapshot,
    symbolise: &mut impl Symbolise,
) -> Capture {
    assert!(matches!(event, Event::Mutex | Event::Block), "waits are captured as mutex or block");
    let contentions = ValueType::new("contentions", "count");
    let mut capture =
        Capture::new(event, began_unix_ms, vec![contentions.clone(), ValueType::new("delay", "nanoseconds")], 1);
    capture.duration_ns = duration_ns;
    // The same as in Go's mutex and block profiles.
    capture.period = Some((contentions, 1));
    let (of, bound) = match event {
        Event::Mutex => ("named locks", waits::LOCK_STACKS_MAX),
        _ => ("named locks and waits", waits::LOCK_STACKS_MAX + waits::WAIT_STACKS_MAX),
    };
    capture.engine = format!(
        "{of}: one sample for each {} µs that a thread has waited, weighted to stand for all; at most {bound} distinct stacks",
        waits::INTERVAL_NS / 1000
    );
    let own =
        OwnFrames { names: "koltso_instrument::", sources: &["instrument/src/lock.rs", "instrument/src/waits.rs"] };
    let mut stacks = Stacks::new(symbolise, own);
    for waited in waits::difference(before, after) {
        let prefix = match waited.kind {
            Kind::Lock => "lock",
            Kind::Wait if event == Event::Block => "wait",
            Kind::Wait => continue,
        };
        let label = waited.name.map(|name| format!("{prefix}:{name}"));
        let values = [waited.count, waited.delay_ns, 0, 0];
        stacks.push(&mut capture, waited.name.is_none(), &waited.stack, label.as_deref(), values);
    }
    capture
}

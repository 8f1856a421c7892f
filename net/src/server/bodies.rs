//! The bytes of bodies that a core has received and not served yet, and when they stop being taken.
//!
//! They count when they are here: what a client only announces is held against nobody, itself
//! excepted, since a body that cannot fit now is better refused before it is sent.
//!
//! Owner: one core. Tested in `tests/bodies_in_memory.rs`.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// After a look for bodies that could give way found too little, the next one is not before this: a
/// look costs as much as a sweep.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Default)]
pub(super) struct Bodies {
    bytes: Cell<usize>,
    /// When a look that was in vain was made.
    looked: Cell<Option<Instant>>,
}

impl Bodies {
    /// Whether there is room for `more` bytes within `max`.
    pub(super) fn has_room(&self, more: usize, max: usize) -> bool {
        self.bytes.get().saturating_add(more) <= max
    }

    pub(super) fn add(&self, more: usize) {
        self.bytes.set(self.bytes.get() + more);
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() - bytes);
    }

    /// Whether it is time to look for bodies that could give way.
    pub(super) fn may_look(&self, now: Instant) -> bool {
        self.looked.get().is_none_or(|then| now.saturating_duration_since(then) >= LOOK_PAUSE)
    }

    /// Notes a look that found too little.
    pub(super) fn looked_in_vain(&self, now: Instant) {
        self.looked.set(Some(now));
    }
}

//! How compaction takes its time: a bounded rate, unless the disk is short of room.

use std::time::Duration;

use crate::parts::Parts;
use crate::threads::Urgency;

/// Segments that are given back together: one sync for all of them.
pub(crate) const BATCH: usize = 16;
/// The rate is kept over pieces of this many bytes.
const PIECE: u64 = 256 << 10;

/// On a disk that is short of room, so many segments are taken before it is asked again which.
pub(crate) const HURRIED: usize = 4;

/// Keeps a bounded rate.
pub(crate) struct Pace {
    rate: u64,
    since_pause: u64,
    /// The disk is short of room: only what is written counts.
    pub(crate) hurry: bool,
    /// Of the thread that keeps it.
    urgency: Urgency,
}

impl Pace {
    /// For so many bytes a second, at least one.
    pub(crate) fn new(rate: u64, urgency: Urgency) -> Self {
        Self { rate: rate.max(1), since_pause: 0, hurry: false, urgency }
    }

    /// Finds out whether the disk is short of room by now.
    pub(crate) fn look_at_room(&mut self, parts: &Parts) {
        self.hurry = parts.room.look(parts.env(), parts.folder.path());
    }

    /// Whether the nice thread is to leave the rest to the other one.
    pub(crate) fn hands_over(&self, parts: &Parts) -> bool {
        self.urgency == Urgency::Nice && !parts.has_turn(self.urgency)
    }

    /// Whether what was begun is to be left as it is.
    pub(crate) fn stops(&self, parts: &Parts) -> bool {
        parts.threads.is_closing() || self.hands_over(parts)
    }

    /// Segments that are looked for at a time. With few, the next ones are found when older segments,
    /// which each expired record would be looked for in, are gone.
    pub(crate) const fn most(&self) -> usize {
        if self.hurry { HURRIED } else { BATCH }
    }

    /// For bytes that were looked at.
    pub(crate) fn look(&mut self, parts: &Parts, bytes: u64) {
        if self.since_pause + bytes >= PIECE {
            self.look_at_room(parts);
        }
        if !self.hurry {
            self.spend(parts, bytes);
        }
    }

    pub(crate) fn spend(&mut self, parts: &Parts, bytes: u64) {
        self.since_pause += bytes;
        if self.since_pause >= PIECE {
            parts.threads.pause(Duration::from_secs_f64(self.since_pause as f64 / self.rate as f64));
            self.since_pause = 0;
        }
    }
}

//! How far the scrub is: on disk, so that a restart goes on there, and for whoever asks.
//!
//! ```text
//! 0   8 bytes  "KOLTSOSC"          16  u64  when the round began, ms since the Unix epoch
//! 8   u32      format version, 1   24  u64  sequence of the last segment that it has read
//! 12  u32      CRC-32C of 16..56   32  u64  sequence of the last one that it is to read
//!                                  40  u64  bytes that it has read
//!                                  48  u64  when the round before ended, 0 for never
//! ```
//!
//! The file is written in place after each segment, without a sync. Without it, or where it is
//! damaged, a round begins anew.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::bytes::{u32_at, u64_at};
use crate::env::{self, Env};

pub(crate) const SCRUB_FILE: &str = "SCRUB";
const MAGIC: &[u8; 8] = b"KOLTSOSC";
const FORMAT: u32 = 1;
const SIZE: usize = 56;

/// A round of the scrub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Round {
    pub(crate) began_ms: u64,
    /// Sequence of the last segment that was read.
    pub(crate) done: u64,
    /// Sequence of the last segment of the round: later ones are younger than it.
    pub(crate) last: u64,
    pub(crate) bytes: u64,
    /// When the round before ended.
    pub(crate) before_ended_ms: u64,
}

impl Round {
    fn encode(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        let numbers = [self.began_ms, self.done, self.last, self.bytes, self.before_ended_ms];
        for (slot, number) in bytes[16..].chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[16..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The round that the folder's file tells of.
    pub(crate) fn read(env: &dyn Env, folder: &Path) -> Option<Self> {
        let bytes = env::read(env, &folder.join(SCRUB_FILE)).ok().filter(|bytes| bytes.len() == SIZE)?;
        let intact =
            &bytes[..8] == MAGIC && u32_at(&bytes, 8) == FORMAT && u32_at(&bytes, 12) == crc32c::crc32c(&bytes[16..]);
        let at = |number: usize| u64_at(&bytes, 16 + 8 * number);
        intact.then(|| Self { began_ms: at(0), done: at(1), last: at(2), bytes: at(3), before_ended_ms: at(4) })
    }

    pub(crate) fn write(&self, env: &dyn Env, folder: &Path) -> io::Result<()> {
        let path = folder.join(SCRUB_FILE);
        let file = env.open(&path).or_else(|_| env.create(&path))?;
        env.write_at(&file, &self.encode(), 0)
    }
}

/// What the scrub does, as others see and change it.
#[derive(Debug, Default)]
pub(crate) struct ScrubState {
    pub(crate) paused: AtomicBool,
    /// A round is to be read at once, without pauses but those of the highest rate.
    pub(crate) hurry: AtomicBool,
    pub(crate) began_ms: AtomicU64,
    pub(crate) bytes: AtomicU64,
    /// Bytes of the round that are left.
    pub(crate) left: AtomicU64,
    pub(crate) ended_ms: AtomicU64,
    /// Places that were damaged on disk and were written again from memory.
    pub(crate) healed: AtomicU64,
}

/// How the scrub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStats {
    /// It was told to pause.
    pub paused: bool,
    /// It reads as fast as it may.
    pub hurry: bool,
    /// When the round began, in ms since the Unix epoch; 0 if none has.
    pub began_ms: u64,
    /// Bytes of segments and sidecars that the round has read.
    pub bytes: u64,
    /// Bytes that the round has left, as far as is known.
    pub left_bytes: u64,
    /// When a round ended last, in ms since the Unix epoch; 0 if none has.
    pub ended_ms: u64,
    /// Places that were damaged on disk and not in memory, and were written again.
    pub healed: u64,
}

impl ScrubState {
    pub(crate) fn stats(&self) -> ScrubStats {
        let of = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        ScrubStats {
            paused: self.paused.load(Ordering::Relaxed),
            hurry: self.hurry.load(Ordering::Relaxed),
            began_ms: of(&self.began_ms),
            bytes: of(&self.bytes),
            left_bytes: of(&self.left),
            ended_ms: of(&self.ended_ms),
            healed: of(&self.healed),
        }
    }

    pub(crate) fn show(&self, round: &Round, left: u64) {
        self.began_ms.store(round.began_ms, Ordering::Relaxed);
        self.bytes.store(round.bytes, Ordering::Relaxed);
        self.left.store(left, Ordering::Relaxed);
        self.ended_ms.store(round.before_ended_ms, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::RealEnv;

    #[test]
    fn a_round_is_read_back_unless_its_file_is_damaged() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(Round::read(&RealEnv, dir.path()), None);
        let round = Round { began_ms: 1, done: 2, last: 3, bytes: 4, before_ended_ms: 5 };
        for round in [Round::default(), round] {
            round.write(&RealEnv, dir.path()).expect("written");
            assert_eq!(Round::read(&RealEnv, dir.path()), Some(round));
        }
        let path = dir.path().join(SCRUB_FILE);
        let bytes = std::fs::read(&path).expect("a file");
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, damaged).expect("written");
            assert_eq!(Round::read(&RealEnv, dir.path()), None, "bit {bit}");
        }
    }
}

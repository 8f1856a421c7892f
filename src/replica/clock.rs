//! The wall clock, and the process's hybrid logical clock with the file that keeps its bound.
//!
//! The clock itself is `koltso_cluster::clock`. Owner: one for the process, shared by all cores.
//!
//! In a cluster, what a node gave out may live on at its peers only, so its own log does not say
//! where to go on after a restart. Then a bound is kept in the file `clock` of the data folder
//! ([`Clock::persist_in`]): 16 bytes, little-endian, the bound (u64), the CRC-32C of the other 12
//! bytes (u32), the format 1 (u32).
//!
//! Invariants:
//! 1. Every version given out is greater than all given out or observed before, also when the wall
//!    clock stands still or goes back; with the file, also those of earlier lives.
//! 2. The bound is written before a clock above the one in the file is given out. (Where writing
//!    fails, that is said and the node goes on: better a risk at the next restart with a wall clock
//!    gone back than no writes now.)
//! 3. The bound of a life never decreases before `finish`.
//!
//! Deliberately absent: a sync at each bound. A power loss may bring back a bound that is as old as
//! the kernel's write-back (30 s); it only counts where the wall clock was set back by that much,
//! too.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use koltso_cluster::clock::{BeyondBound, HybridClock};
use koltso_instrument::{Mutex, waiting};
use koltso_model::WallTime;

/// How far a written bound is ahead: four times the pause between two calls of [`Clock::refresh`],
/// so that the cores do not write it themselves, and no more, since a node that was killed goes on
/// above it.
const AHEAD: u64 = WallTime::from_ms(400).0;
/// No honest bound is greater (the year 6429); sums of it and what is added here do not overflow.
const BOUND_MAX: u64 = 1 << 63;
/// The name in the data folder.
const FILE: &str = "clock";
const FILE_SIZE: usize = 16;
const FORMAT: u32 = 1;
/// Between two lines about a bound that cannot be written.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Milliseconds since the Unix epoch. (The kernel's coarse clock is cheaper by 15 ns and up to 4 ms
/// late: keys would expire before their time.)
#[inline]
pub fn now_ms() -> u64 {
    now_wall().ms()
}

/// The wall clock with its fraction of a millisecond: what versions are made of.
#[inline]
pub fn now_wall() -> WallTime {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(WallTime(0), WallTime::since_epoch)
}

/// How long ago, by the wall clock, the node lived that left this bound; 400 ms less after a kill,
/// since a bound is ahead. Zero where the wall clock has gone back.
pub const fn away(found_bound: u64, now_ms: u64) -> Duration {
    Duration::from_millis(now_ms.saturating_sub(WallTime(found_bound).ms()))
}

/// The bound that an earlier life left in a data folder, without touching anything: what [`away`]
/// is to be asked before [`Clock::persist_in`] makes the folder look alive. `None` where there is
/// none, or a damaged one.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn bound_in(folder: &Path) -> io::Result<Option<u64>> {
    match File::open(folder.join(FILE)) {
        Ok(file) => Ok(read(&file)?.ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The file's bytes are not what was written.
struct Damaged;

fn read(file: &File) -> io::Result<Result<u64, Damaged>> {
    let mut bytes = [0; FILE_SIZE];
    if file.metadata()?.len() != FILE_SIZE as u64 {
        return Ok(Err(Damaged));
    }
    file.read_exact_at(&mut bytes, 0)?;
    let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = bytes;
    let bound = u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]);
    Ok(if bytes == encoded(bound) && bound < BOUND_MAX { Ok(bound) } else { Err(Damaged) })
}

fn encoded(bound: u64) -> [u8; FILE_SIZE] {
    let mut bytes = [0; FILE_SIZE];
    bytes[..8].copy_from_slice(&bound.to_le_bytes());
    bytes[12..].copy_from_slice(&FORMAT.to_le_bytes());
    let check = crc32c::crc32c_append(crc32c::crc32c(&bytes[..8]), &bytes[12..]);
    bytes[8..12].copy_from_slice(&check.to_le_bytes());
    bytes
}

/// Where the bound is kept. Owner: whoever holds the clock's mutex.
#[derive(Debug)]
struct ClockFile {
    file: File,
    /// What is in the file; less than the clock's bound only after a failed write.
    written: u64,
    ahead: u64,
    /// The latest wall clock that a refresh saw: until then the node lived, whether it gave out
    /// clocks or not.
    alive: u64,
    complained: Option<Instant>,
}

impl ClockFile {
    fn write(&mut self, bound: u64) {
        match waiting(&"write of the clock's bound", || self.file.write_all_at(&encoded(bound), 0)) {
            Ok(()) => self.written = bound,
            Err(e) if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) => {
                self.complained = Some(Instant::now());
                tracing::error!(
                    "the clock's bound cannot be written: {e}; until it can, do not restart this node with its wall clock set back"
                );
            }
            Err(_) => {}
        }
    }
}

/// The clock and its file.
#[derive(Debug)]
pub struct Clock {
    hybrid: Arc<HybridClock>,
    file: Mutex<Option<ClockFile>>,
}

impl Default for Clock {
    /// A clock that persists nothing.
    fn default() -> Self {
        Self { hybrid: Arc::default(), file: Mutex::new(&"clock", None) }
    }
}

impl Clock {
    /// The clock without its file, for a core's member.
    pub const fn hybrid(&self) -> &Arc<HybridClock> {
        &self.hybrid
    }

    /// Goes on above a clock that was seen: in the log, or at a peer. (The bound follows when a
    /// clock is given out.)
    pub fn observe(&self, clock: u64) {
        self.hybrid.observe(clock);
    }

    /// The greatest clock given out or observed.
    pub fn last(&self) -> u64 {
        self.hybrid.last()
    }

    /// A new, greatest time.
    #[inline]
    pub fn next(&self, now: WallTime) -> u64 {
        loop {
            match self.hybrid.next(now) {
                Ok(clock) => return clock,
                Err(BeyondBound(needed)) => self.extend(needed),
            }
        }
    }

    /// Raises the bound to `needed` and as far ahead as usual. Whoever comes second finds it done.
    #[cold]
    pub fn extend(&self, needed: u64) {
        let mut file = self.file.lock();
        if needed <= self.hybrid.bound() {
            return;
        }
        if let Some(file) = &mut *file {
            let bound = needed.saturating_add(file.ahead);
            file.write(bound);
            // Invariant 2: other threads see the bound only now that it is written.
            self.hybrid.raise(bound);
        }
    }

    /// Starts to persist: reads the bound of an earlier life, goes on above it, and writes a new
    /// one. Returns the bound found; `None` at a first start, and with a warning where the file is
    /// damaged.
    ///
    /// To be called before the first clock is given out, and once the folder is known to be ours
    /// and [`away`] was asked.
    ///
    /// # Errors
    /// When the file cannot be made, read or written.
    pub fn persist_in(&self, folder: &Path, now_ms: u64) -> io::Result<Option<u64>> {
        self.persist(folder, now_ms, AHEAD)
    }

    fn persist(&self, folder: &Path, now_ms: u64, ahead: u64) -> io::Result<Option<u64>> {
        let path = folder.join(FILE);
        let fresh = !path.exists();
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
        let found = match read(&file)? {
            Ok(bound) => Some(bound),
            Err(Damaged) => {
                if !fresh {
                    tracing::warn!(
                        "the file {} is damaged: the wall clock counts, as at a first start",
                        path.display()
                    );
                    file.set_len(FILE_SIZE as u64)?;
                }
                None
            }
        };
        let mut slot = self.file.lock();
        self.observe(found.unwrap_or(0));
        let alive = WallTime::from_ms(now_ms).0;
        let bound = alive.max(self.last()).saturating_add(ahead);
        file.write_all_at(&encoded(bound), 0)?;
        file.sync_all()?;
        if fresh {
            File::open(folder)?.sync_all()?;
        }
        *slot = Some(ClockFile { file, written: bound, ahead, alive, complained: None });
        self.hybrid.lower(bound);
        Ok(found)
    }

    /// Keeps the bound ahead of the clock, so that the cores need not: to be called about every 100
    /// ms from a thread that may block. Nothing without `persist_in`.
    pub fn refresh(&self, now_ms: u64) {
        let mut slot = self.file.lock();
        let Some(file) = &mut *slot else {
            return;
        };
        file.alive = WallTime::from_ms(now_ms).0;
        let bound = file.alive.max(self.last()).saturating_add(file.ahead).max(self.hybrid.bound());
        // Where the wall clock has gone back there is nothing to raise, but perhaps a failed write
        // to make good.
        if bound > file.written {
            file.write(bound);
            self.hybrid.raise(bound);
        }
    }

    /// At a clean end, when nobody takes clocks any more: writes how far the clock and the node's
    /// life went, exactly.
    pub fn finish(&self) {
        let mut slot = self.file.lock();
        let Some(file) = &mut *slot else {
            return;
        };
        let bound = self.last().max(file.alive);
        self.hybrid.lower(bound);
        file.write(bound);
        if let Err(e) = file.file.sync_data() {
            tracing::warn!("the clock's bound could not be synced at the end: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const NOW: u64 = 1_700_000_000_000;

    /// The bound in the file; a read may see half of a write that goes on at the same time.
    fn on_disk(folder: &Path) -> u64 {
        (0..1000).find_map(|_| bound_in(folder).expect("read")).expect("intact")
    }

    #[test]
    fn a_restart_with_the_wall_clock_an_hour_back_goes_on_above() {
        let folder = tempfile::tempdir().expect("a folder");
        let clock = Clock::default();
        assert_eq!(clock.persist_in(folder.path(), NOW).expect("persists"), None);
        let given = clock.next(WallTime::from_ms(NOW));
        // Killed: the bound is ahead. After a clean end it is exact.
        let again = Clock::default();
        let found = again.persist_in(folder.path(), NOW - HOUR).expect("persists").expect("a bound");
        assert!(found >= given && found <= given + AHEAD, "{found} after {given}");
        let above = again.next(WallTime::from_ms(NOW - HOUR));
        assert!(above > found && above <= on_disk(folder.path()));
        again.finish();
        assert_eq!(on_disk(folder.path()), above);
        let third = Clock::default();
        assert_eq!(third.persist_in(folder.path(), NOW - HOUR).expect("persists"), Some(above));
        assert_eq!(third.next(WallTime(0)), above + 1);
    }

    #[test]
    fn a_node_that_writes_nothing_has_lived_until_its_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let clock = Clock::default();
        clock.persist_in(folder.path(), NOW).expect("persists");
        clock.refresh(NOW + HOUR);
        assert_eq!(on_disk(folder.path()), ((NOW + HOUR) << 16) + AHEAD);
        clock.finish();
        assert_eq!(away(on_disk(folder.path()), NOW + HOUR), Duration::ZERO);
        assert_eq!(away(on_disk(folder.path()), NOW + 3 * HOUR), Duration::from_millis(2 * HOUR));
        assert_eq!(away(on_disk(folder.path()), NOW), Duration::ZERO, "the wall clock has gone back");
    }

    #[test]
    fn asking_for_the_bound_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(bound_in(folder.path()).expect("read"), None);
        assert!(!folder.path().join(FILE).exists());
        Clock::default().persist_in(folder.path(), NOW).expect("persists");
        let before = std::fs::read(folder.path().join(FILE)).expect("read");
        assert_eq!(bound_in(folder.path()).expect("read"), Some((NOW << 16) + AHEAD));
        assert_eq!(std::fs::read(folder.path().join(FILE)).expect("read"), before);
    }

    #[test]
    fn a_torn_or_damaged_file_counts_as_absent_and_is_written_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE);
        let whole = encoded(NOW << 16);
        let mut cases = vec![Vec::new(), whole[..7].to_vec(), whole[..15].to_vec(), [&whole[..], b"x"].concat()];
        cases.extend([vec![0; 16], encoded(u64::MAX).to_vec()]);
        for at in 0..FILE_SIZE {
            let mut flipped = whole;
            flipped[at] ^= 1;
            cases.push(flipped.to_vec());
        }
        for bytes in cases {
            std::fs::write(&path, &bytes).expect("written");
            let clock = Clock::default();
            assert_eq!(clock.persist_in(folder.path(), 5).expect("persists"), None, "{bytes:?}");
            assert_eq!(clock.next(WallTime::from_ms(5)), 5 << 16, "{bytes:?}");
            assert_eq!(bound_in(folder.path()).expect("read"), Some((5 << 16) + AHEAD), "{bytes:?}");
        }
        std::fs::write(&path, whole).expect("written");
        assert_eq!(Clock::default().persist_in(folder.path(), 5).expect("persists"), Some(NOW << 16));
    }

    #[test]
    fn a_clock_seen_beyond_the_bound_is_covered_before_one_above_it_is_given_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let clock = Clock::default();
        clock.persist_in(folder.path(), NOW).expect("persists");
        clock.observe((NOW + HOUR) << 16);
        let next = clock.next(WallTime::from_ms(NOW));
        assert_eq!(next, ((NOW + HOUR) << 16) + 1);
        assert_eq!(on_disk(folder.path()), next + AHEAD);
        clock.observe((NOW + 2 * HOUR) << 16);
        clock.refresh(NOW);
        assert_eq!(on_disk(folder.path()), ((NOW + 2 * HOUR) << 16) + AHEAD);
        // The wall clock of a refresh that comes late changes nothing.
        clock.refresh(NOW - HOUR);
        assert_eq!(on_disk(folder.path()), ((NOW + 2 * HOUR) << 16) + AHEAD);
    }

    #[test]
    fn threads_that_cross_the_bound_at_once_never_get_a_clock_above_the_file() {
        for (ahead, rounds) in [(WallTime::from_ms(1).0, 30_000), (3, 5_000)] {
            let folder = tempfile::tempdir().expect("a folder");
            let clock = Clock::default();
            clock.persist(folder.path(), NOW, ahead).expect("persists");
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let (clock, path) = (&clock, folder.path());
                    scope.spawn(move || {
                        let mut last = 0;
                        for round in 0..rounds {
                            // A wall clock that jumps: ahead of the others, and back.
                            let next = clock.next(WallTime::from_ms(NOW + (round * 7 + thread) % 50 + round / 100));
                            assert!(next > last);
                            last = next;
                            let bound = on_disk(path);
                            assert!(next <= bound, "{next} was given out with {bound} in the file");
                            if thread == 0 && round % 1000 == 0 {
                                clock.refresh(NOW);
                            }
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn without_a_file_to_write_it_goes_on_in_memory_and_makes_good_later() {
        let folder = tempfile::tempdir().expect("a folder");
        let clock = Clock::default();
        clock.persist(folder.path(), NOW, 3).expect("persists");
        let read_only = File::open(folder.path().join(FILE)).expect("opened");
        let writable = std::mem::replace(&mut clock.file.lock().as_mut().expect("persists").file, read_only);
        let old = on_disk(folder.path());
        let mut last = 0;
        for _ in 0..100 {
            let next = clock.next(WallTime::from_ms(NOW));
            assert!(next > last);
            last = next;
        }
        assert_eq!(on_disk(folder.path()), old);
        assert!(clock.file.lock().as_ref().is_some_and(|file| file.complained.is_some() && file.written == old));
        clock.file.lock().as_mut().expect("persists").file = writable;
        clock.refresh(NOW - HOUR);
        assert!(on_disk(folder.path()) >= last);
    }

    #[test]
    fn recovery_leaves_the_clock_and_the_hints_alone() {
        use koltso_storage::{Folder, Options, Store};
        let dir = tempfile::tempdir().expect("a folder");
        let data = dir.path().join("data");
        for life in 0..2 {
            let folder = Folder::take(&data).expect("taken");
            let found = Clock::default().persist_in(folder.path(), NOW).expect("persists");
            assert_eq!(found.is_some(), life > 0);
            let hint = data.join("hints/0000000000000001.log");
            if life == 0 {
                std::fs::create_dir(data.join("hints")).expect("made");
                std::fs::write(&hint, "a hint").expect("written");
            }
            let (store, _) = Store::open_in(folder, Options::new(&data)).expect("opened");
            store.close().expect("closed");
            assert_eq!(std::fs::read(&hint).expect("there"), b"a hint");
            assert!(bound_in(&data).expect("read").is_some());
        }
    }
}

//! The wall clock, and the process's hybrid logical clock with the file that keeps its bound.
//!
//! The clock itself is `koltso_cluster::clock`. Owner: one for the process, shared by all cores.
//!
//! In a cluster, what a node gave out may live on at its peers only, so its own log does not say
//! where to go on after a restart. Then a bound is kept in the file `clock` of the data folder
//! ([`Clock::persist_in`]): 24 bytes, little-endian, the bound (u64), when the node was last known
//! to be alive in ms since the Unix epoch (u64), the CRC-32C of the other 20 bytes (u32), the format
//! 2 (u32). Format 1 had 16 bytes, without the second number; then the bound stands for it.
//!
//! The wall clock that the node goes by is `koltso_cluster::wall`'s: the monotonic clock and an
//! offset, which [`look`] follows, so that no reading of a core sees a jump. These few words are
//! static, since they are the machine's, and readers of the time are plain functions.
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

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use koltso_cluster::clock::{BeyondBound, HybridClock};
use koltso_cluster::wall::{BothClocks, WallNews, WallWatch, Witnesses};
use koltso_instrument::{Mutex, waiting};
use koltso_model::WallTime;
use koltso_storage::open_own;

/// How far a written bound is ahead: four times the pause between two calls of [`Clock::refresh`],
/// so that the cores do not write it themselves, and no more, since a node that was killed goes on
/// above it.
const AHEAD: u64 = WallTime::from_ms(400).0;
/// No honest bound is greater (the year 6429); sums of it and what is added here do not overflow.
const BOUND_MAX: u64 = 1 << 63;
/// The name in the data folder.
pub const FILE: &str = "clock";
const FILE_SIZE: usize = 24;
const LEN: u64 = FILE_SIZE as u64;
const FORMAT: u32 = 2;
/// The length of a file of format 1.
const LEN_1: u64 = 16;
/// Between two lines about a bound that cannot be written.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// The watch over the wall clock; `None` until somebody asks for the time.
static WATCH: std::sync::Mutex<Option<WallWatch>> = std::sync::Mutex::new(None);
/// What is added to the monotonic clock, in ns; [`NOT_BEGUN`] until somebody asks for the time.
static OFFSET: AtomicI64 = AtomicI64::new(NOT_BEGUN);
/// The first offset of the process, which nothing moves.
static FIRST_OFFSET: AtomicI64 = AtomicI64::new(0);
/// How far the machine's wall clock is ahead of the time gone by, in ms; 0 unless it has jumped.
static JUMP_MS: AtomicI64 = AtomicI64::new(0);
/// Nodes whose wall clock agrees with the machine's, since the last look, as bits by node.
static AGREE: AtomicU64 = AtomicU64::new(0);

const NOT_BEGUN: i64 = i64::MIN;
/// How often the clocks are read before the best of the pairs is taken: a thread that is not given
/// the processor between the two readings would see a step.
const READINGS: usize = 4;
/// A pair that was read within this is good enough, in ns.
const READ_WITHIN: u64 = 20_000;

/// The monotonic clock that counts suspension, too, so that a machine that slept has not jumped.
#[inline]
#[allow(unsafe_code)]
fn monotonic_nanos() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which lives on this stack. (It cannot fail: every Linux
    // that this program runs on has the clock.)
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn both_clocks() -> BothClocks {
    let mut best = BothClocks { monotonic: 0, wall: 0, error: u64::MAX };
    for _ in 0..READINGS {
        let before = monotonic_nanos();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let error = monotonic_nanos().saturating_sub(before);
        if error < best.error {
            best = BothClocks { monotonic: before, wall: wall.try_into().unwrap_or(u64::MAX), error };
        }
        if error <= READ_WITHIN {
            break;
        }
    }
    best
}

#[cold]
fn begin() -> i64 {
    let mut slot = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    let offset = slot.get_or_insert_with(|| WallWatch::starting(both_clocks())).offset();
    FIRST_OFFSET.store(offset, Ordering::Relaxed);
    OFFSET.store(offset, Ordering::Release);
    offset
}

#[inline]
fn offset() -> i64 {
    match OFFSET.load(Ordering::Acquire) {
        NOT_BEGUN => begin(),
        offset => offset,
    }
}

/// Milliseconds since the Unix epoch. (The kernel's coarse clock is cheaper by 15 ns and up to 4 ms
/// late: keys would expire before their time.)
#[inline]
pub fn now_ms() -> u64 {
    now_wall().ms()
}

/// The wall clock with its fraction of a millisecond, without its jumps: what versions are made of.
#[inline]
pub fn now_wall() -> WallTime {
    WallTime::since_epoch(Duration::from_nanos(monotonic_nanos().saturating_add_signed(offset())))
}

/// Milliseconds since the Unix epoch as the machine's wall clock has them, jumps included: what
/// peers are told, and what their clocks are compared with.
pub fn told_ms() -> u64 {
    now_ms().saturating_add_signed(jump_ms())
}

/// Milliseconds since the Unix epoch that no setting of the clock moves while the process lives: for
/// ages.
pub fn elapsed_ms() -> u64 {
    offset();
    monotonic_nanos().saturating_add_signed(FIRST_OFFSET.load(Ordering::Relaxed)) / 1_000_000
}

/// How far the machine's wall clock is ahead of the time that this node goes by, in ms; 0 unless it
/// has jumped.
#[inline]
pub fn jump_ms() -> i64 {
    JUMP_MS.load(Ordering::Relaxed)
}

/// A round trip found that the wall clock of a node, by its index, agrees with the machine's.
pub fn agreed(node: usize) {
    if jump_ms() != 0 {
        AGREE.fetch_or(1 << node, Ordering::Relaxed);
    }
}

/// Compares the wall clock with the monotonic one: to be called about every 100 ms. `nodes` of the
/// cluster, or 1.
pub fn look(nodes: usize) {
    offset();
    let agree = AGREE.swap(0, Ordering::Relaxed);
    let witnesses = if nodes == 1 { Witnesses::Alone } else { Witnesses::Peers { nodes: nodes as u32, agree } };
    let mut slot = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(watch) = &mut *slot else { return };
    let news = watch.look(both_clocks(), witnesses);
    OFFSET.store(watch.offset(), Ordering::Release);
    let jump = watch.jump().map_or(0, |nanos| match nanos / 1_000_000 {
        0 => nanos.signum(),
        ms => ms,
    });
    JUMP_MS.store(jump, Ordering::Relaxed);
    drop(slot);
    let said = |nanos: i64| {
        let direction = if nanos > 0 { "ahead" } else { "back" };
        format!("{:.1} s {direction}", nanos.unsigned_abs() as f64 / 1e9)
    };
    match news {
        Some(WallNews::Jumped(by)) => tracing::warn!(
            "the wall clock has jumped {}: this node goes on by the monotonic clock until the wall clock is right again",
            said(by)
        ),
        Some(WallNews::Healed) => tracing::info!("the wall clock is right again"),
        Some(WallNews::Adopted(by)) => {
            tracing::warn!("the wall clock stays {} of where it was, and is followed", said(by))
        }
        None => {}
    }
}

/// What an earlier life left in a data folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// No clock above it was given out.
    pub bound: u64,
    /// When the node was last known to be alive, in ms since the Unix epoch.
    pub alive_ms: u64,
}

/// What an earlier life left in a data folder, without touching anything. `None` where there is none, or a
/// damaged one.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn left_in(folder: &Path) -> io::Result<Option<Left>> {
    match open_own(OpenOptions::new().read(true), &folder.join(FILE)) {
        Ok(file) => Ok(read(&file)?.ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The file's bytes are not what was written.
struct Damaged;

fn read(file: &File) -> io::Result<Result<Left, Damaged>> {
    let mut bytes = [0; FILE_SIZE];
    let len = file.metadata()?.len();
    let bytes = match len {
        LEN => &mut bytes[..],
        LEN_1 => &mut bytes[..LEN_1 as usize],
        _ => return Ok(Err(Damaged)),
    };
    file.read_exact_at(bytes, 0)?;
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let bound = number(0);
    let (left, whole) = if len == LEN {
        let left = Left { bound, alive_ms: number(8) };
        (left, bytes == encoded(left))
    } else {
        (Left { bound, alive_ms: WallTime(bound).ms() }, bytes == encoded_1(bound))
    };
    Ok(if whole && bound < BOUND_MAX { Ok(left) } else { Err(Damaged) })
}

fn encoded(Left { bound, alive_ms }: Left) -> [u8; FILE_SIZE] {
    let mut bytes = [0; FILE_SIZE];
    bytes[..8].copy_from_slice(&bound.to_le_bytes());
    bytes[8..16].copy_from_slice(&alive_ms.to_le_bytes());
    bytes[20..].copy_from_slice(&FORMAT.to_le_bytes());
    let check = crc32c::crc32c_append(crc32c::crc32c(&bytes[..16]), &bytes[20..]);
    bytes[16..20].copy_from_slice(&check.to_le_bytes());
    bytes
}

fn encoded_1(bound: u64) -> [u8; LEN_1 as usize] {
    let mut bytes = [0; LEN_1 as usize];
    bytes[..8].copy_from_slice(&bound.to_le_bytes());
    bytes[12..].copy_from_slice(&1_u32.to_le_bytes());
    let check = crc32c::crc32c_append(crc32c::crc32c(&bytes[..8]), &bytes[12..]);
    bytes[8..12].copy_from_slice(&check.to_le_bytes());
    bytes
}

/// Where the bound is kept. Owner: whoever holds the clock's mutex.
#[derive(Debug)]
struct ClockFile {
    /// `None` until there is room on the disk to make it.
    file: Option<File>,
    folder: PathBuf,
    /// What is in the file; its bound is less than the clock's only after a failed write.
    written: Left,
    ahead: u64,
    /// The wall clock that the last refresh saw: until then the node lived, whether it gave out
    /// clocks or not.
    alive_ms: u64,
    complained: Option<Instant>,
}

impl ClockFile {
    fn write(&mut self, bound: u64) {
        let left = Left { bound, alive_ms: self.alive_ms };
        if let Err(e) = waiting(&"write of the clock's bound", || self.try_write(left))
            && self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY)
        {
            self.complained = Some(Instant::now());
            tracing::error!(
                "the clock's bound cannot be written: {e}; until it can, do not restart this node with its wall clock set back"
            );
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_all)
    }

    fn try_write(&mut self, left: Left) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(open(&self.folder)?),
        };
        file.write_all_at(&encoded(left), 0)?;
        self.written = left;
        Ok(())
    }
}

/// The file for reading and writing; it is made if there is none.
fn open(folder: &Path) -> io::Result<File> {
    open_own(OpenOptions::new().create(true).truncate(false).read(true).write(true), &folder.join(FILE))
}

/// An error for want of room on the disk, as a value: a node starts without it.
fn unless_full<T>(result: io::Result<T>) -> io::Result<Result<T, io::Error>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => Ok(Err(e)),
        Err(e) => Err(e),
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
    /// one. Returns what it found; `None` at a first start, and with a warning where the file is
    /// damaged.
    ///
    /// To be called before the first clock is given out, and once the folder is known to be ours
    /// and the file was read.
    ///
    /// # Errors
    /// When the file cannot be made, read or written, unless for want of room: then the node goes on
    /// without, as invariant 2 has it.
    pub fn persist_in(&self, folder: &Path, now_ms: u64) -> io::Result<Option<Left>> {
        self.persist(folder, now_ms, AHEAD)
    }

    fn persist(&self, folder: &Path, now_ms: u64, ahead: u64) -> io::Result<Option<Left>> {
        let path = folder.join(FILE);
        let fresh = fs::metadata(&path).map_or(true, |metadata| metadata.len() == 0);
        let opened = unless_full(open(folder))?;
        let found = match opened.as_ref().map(read) {
            Ok(found) => match found? {
                Ok(left) => Some(left),
                Err(Damaged) if fresh => None,
                Err(Damaged) => {
                    tracing::warn!(
                        "the file {} is damaged: the wall clock counts, as at a first start",
                        path.display()
                    );
                    unless_full(opened.as_ref().map_or(Ok(()), |file| file.set_len(LEN)))?.unwrap_or(());
                    None
                }
            },
            Err(_) => None,
        };
        let mut slot = self.file.lock();
        self.observe(found.map_or(0, |left| left.bound));
        let bound = WallTime::from_ms(now_ms).0.max(self.last()).saturating_add(ahead);
        let left = Left { bound, alive_ms: now_ms };
        let mut file = ClockFile {
            file: opened.ok(),
            folder: folder.to_path_buf(),
            written: Left { bound: 0, alive_ms: 0 },
            ahead,
            alive_ms: now_ms,
            complained: None,
        };
        let kept = file.try_write(left).and_then(|()| file.sync()).and_then(|()| match fresh {
            true => File::open(folder)?.sync_all(),
            false => Ok(()),
        });
        if let Err(e) = unless_full(kept)? {
            file.complained = Some(Instant::now());
            tracing::warn!(
                "the clock's bound cannot be kept: {e}; until it can, do not restart this node with its wall clock set back"
            );
        }
        *slot = Some(file);
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
        file.alive_ms = now_ms;
        let wall = WallTime::from_ms(now_ms).0;
        let bound = wall.max(self.last()).saturating_add(file.ahead).max(self.hybrid.bound());
        // Where the wall clock has gone back there is nothing to raise, but the node is alive, and
        // there is perhaps a failed write to make good.
        if file.written != (Left { bound, alive_ms: now_ms }) {
            file.write(bound);
            self.hybrid.raise(bound);
        }
    }

    /// Makes what was written survive a loss of power. Waits for the disk.
    pub fn sync(&self) {
        let slot = self.file.lock();
        let file = slot.as_ref().and_then(|file| file.file.as_ref()?.try_clone().ok());
        drop(slot);
        // What cannot be synced is said where it is written.
        let _ = file.map(|file| waiting(&"sync of the clock's bound", || file.sync_data()));
    }

    /// At a clean end, when nobody takes clocks any more: writes how far the clock and the node's
    /// life went, exactly.
    pub fn finish(&self) {
        let mut slot = self.file.lock();
        let Some(file) = &mut *slot else {
            return;
        };
        let bound = self.last().max(WallTime::from_ms(file.alive_ms).0);
        self.hybrid.lower(bound);
        file.write(bound);
        if let Err(e) = file.sync() {
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
    fn left(folder: &Path) -> Left {
        (0..1000).find_map(|_| left_in(folder).expect("read")).expect("intact")
    }

    fn on_disk(folder: &Path) -> u64 {
        left(folder).bound
    }

    fn bound_in(folder: &Path) -> io::Result<Option<u64>> {
        Ok(left_in(folder)?.map(|left| left.bound))
    }

    #[test]
    fn a_restart_with_the_wall_clock_an_hour_back_goes_on_above() {
        let folder = tempfile::tempdir().expect("a folder");
        let clock = Clock::default();
        assert_eq!(clock.persist_in(folder.path(), NOW).expect("persists"), None);
        let given = clock.next(WallTime::from_ms(NOW));
        // Killed: the bound is ahead. After a clean end it is exact.
        let again = Clock::default();
        let found = again.persist_in(folder.path(), NOW - HOUR).expect("persists").expect("a bound").bound;
        assert!(found >= given && found <= given + AHEAD, "{found} after {given}");
        let above = again.next(WallTime::from_ms(NOW - HOUR));
        assert!(above > found && above <= on_disk(folder.path()));
        again.finish();
        assert_eq!(on_disk(folder.path()), above);
        let third = Clock::default();
        let found = third.persist_in(folder.path(), NOW - HOUR).expect("persists");
        assert_eq!(found.map(|left| left.bound), Some(above));
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
        assert_eq!(left(folder.path()).alive_ms, NOW + HOUR);
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
        let whole = encoded(Left { bound: NOW << 16, alive_ms: NOW });
        let mut cases = vec![Vec::new(), whole[..7].to_vec(), whole[..23].to_vec(), [&whole[..], b"x"].concat()];
        cases.extend([whole[..15].to_vec(), whole[..16].to_vec(), vec![0; 16], vec![0; 24]]);
        cases.extend([encoded(Left { bound: u64::MAX, alive_ms: NOW }).to_vec(), encoded_1(u64::MAX).to_vec()]);
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
        let found = Clock::default().persist_in(folder.path(), 5).expect("persists");
        assert_eq!(found, Some(Left { bound: NOW << 16, alive_ms: NOW }));
    }

    #[test]
    fn a_file_of_format_1_is_read_and_written_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let old = encoded_1(NOW << 16);
        std::fs::write(folder.path().join(FILE), old).expect("written");
        let expected = Left { bound: NOW << 16, alive_ms: NOW };
        assert_eq!(left_in(folder.path()).expect("read"), Some(expected));
        let clock = Clock::default();
        assert_eq!(clock.persist_in(folder.path(), NOW + HOUR).expect("persists"), Some(expected));
        assert_eq!(left(folder.path()).alive_ms, NOW + HOUR);
        for at in 0..old.len() {
            let mut flipped = old;
            flipped[at] ^= 1;
            std::fs::write(folder.path().join(FILE), flipped).expect("written");
            assert_eq!(left_in(folder.path()).expect("read"), None);
        }
    }

    #[test]
    fn when_the_node_lived_is_told_by_its_clock_and_not_by_the_bound() {
        let folder = tempfile::tempdir().expect("a folder");
        let clock = Clock::default();
        clock.persist_in(folder.path(), NOW).expect("persists");
        // A version from a month ahead was seen, and one above it was given out; then it was killed.
        clock.observe((NOW + 720 * HOUR) << 16);
        clock.next(WallTime::from_ms(NOW));
        clock.refresh(NOW + HOUR);
        assert!(on_disk(folder.path()) > (NOW + 720 * HOUR) << 16);
        assert_eq!(left(folder.path()).alive_ms, NOW + HOUR);
        // The same if the wall clock itself was wrong and is right again.
        clock.refresh(NOW + 720 * HOUR);
        clock.refresh(NOW + 2 * HOUR);
        assert_eq!(left(folder.path()).alive_ms, NOW + 2 * HOUR);
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
        let writable = clock.file.lock().as_mut().expect("persists").file.replace(read_only);
        let old = on_disk(folder.path());
        let mut last = 0;
        for _ in 0..100 {
            let next = clock.next(WallTime::from_ms(NOW));
            assert!(next > last);
            last = next;
        }
        assert_eq!(on_disk(folder.path()), old);
        assert!(clock.file.lock().as_ref().is_some_and(|file| file.complained.is_some() && file.written.bound == old));
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

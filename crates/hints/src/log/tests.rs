//! The log beside a model: a queue of the hints that the log must give back.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::collections::VecDeque;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use koltso_model::{Flags, Key, Version};
use koltso_testkit::random::{Random, seed_or};
use tempfile::TempDir;

use super::*;
use crate::entry::{Header, Scanner};

const BOUNDS: Bounds = Bounds { bytes_max: 16 << 10, age_max_ms: 10_000, segment_size: 2 << 10 };
const WIDE: Bounds = Bounds { bytes_max: 1 << 30, age_max_ms: 10_000, segment_size: 2 << 10 };

/// A hint whose record follows from its number alone.
fn hint(number: u64) -> Record<Bytes> {
    let mut rng = Random::seeded(number);
    let len = if rng.below(40) == 0 { 3_000 } else { rng.below(300) };
    let tombstone = rng.below(5) == 0;
    let flags = Flags::new(number as u8 % 5 + 1);
    Record {
        key: Key::new(Bytes::copy_from_slice(&number.to_be_bytes())),
        value: if tombstone { Bytes::new() } else { vec![number as u8; len as usize].into() },
        version: Version::new(number + 1, rng.below(3) as u16),
        expires_at_ms: rng.below(2) * number,
        flags: if tombstone { flags.tombstone() } else { flags },
        attributes: if tombstone { Bytes::new() } else { Bytes::from(vec![1, 1, number as u8]) },
    }
}

fn hints(numbers: std::ops::Range<u64>) -> Vec<Record<Bytes>> {
    numbers.map(hint).collect()
}

fn number_of(record: &Record<Bytes>) -> u64 {
    let number = u64::from_be_bytes(record.key.bytes().try_into().unwrap());
    assert_eq!(*record, hint(number), "what was written comes back");
    number
}

fn open(folder: &Path, bounds: Bounds) -> Log {
    let mut log = Log::open(folder, "a peer", bounds).unwrap();
    // No test loses power.
    log.sync = |_| Ok(());
    log.load();
    log
}

/// What the log's owner does each second.
fn tick(log: &mut Log, now_ms: u64) {
    log.tick(now_ms);
    if let Some(batch) = log.begin_sync() {
        log.synced(batch.sync());
    }
}

/// Takes all hints out of a log.
fn drain(log: &mut Log) -> Vec<u64> {
    let mut numbers = Vec::new();
    while log.pending() > 0 {
        let window = log.window(7, 1 << 20).unwrap();
        numbers.extend(window.records.iter().map(number_of));
        log.confirm(&window, window.records.len());
    }
    numbers
}

fn copy(folder: &Path) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in fs::read_dir(folder).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    dir
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "hints")).collect();
    files.sort();
    files
}

/// The file, the end and the number of each intact entry.
fn on_disk(folder: &Path) -> Vec<(PathBuf, u64, u64)> {
    let mut entries = Vec::new();
    for path in segments(folder) {
        let bytes = fs::read(&path).unwrap();
        let sequence = sequence_of(path.file_name().unwrap().to_str().unwrap()).unwrap();
        let Header::Ours { salt } = entry::read_segment_header(bytes.first_chunk().unwrap(), sequence) else {
            panic!()
        };
        let mut scanner = Scanner::new(&bytes[HEADER as usize..], HEADER, bytes.len() as u64, salt);
        while let Some(found) = scanner.next().unwrap() {
            entries.push((path.clone(), found.end, number_of(&found.record)));
        }
    }
    entries
}

thread_local! {
    /// How many bytes can be written before the disk is full.
    static ROOM: Cell<Option<usize>> = const { Cell::new(None) };
}

fn faulty_write(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    match ROOM.get() {
        Some(room) if room < bytes.len() => {
            file.write_all_at(&bytes[..room], offset)?;
            Err(io::ErrorKind::StorageFull.into())
        }
        _ => file.write_all_at(bytes, offset),
    }
}

struct Model {
    rng: Random,
    dir: TempDir,
    log: Log,
    now_ms: u64,
    /// The number of the next hint.
    next: u64,
    /// The hints that the log must give back, in this order.
    pending: VecDeque<u64>,
    /// The value of `log.dropped()` that `pending` takes into account already.
    dropped: u64,
    /// Hints with lower numbers are confirmed.
    confirmed: u64,
}

impl Model {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path(), BOUNDS);
        log.write = faulty_write;
        let (pending, rng) = (VecDeque::new(), Random::seeded(seed));
        Self { rng, dir, log, now_ms: 1_000_000, next: 0, pending, dropped: 0, confirmed: 0 }
    }

    /// A bound may have taken the oldest hints.
    fn see_drops(&mut self, others: u64) {
        let dropped = self.log.dropped() - self.dropped - others;
        self.pending.drain(..dropped as usize);
        self.dropped = self.log.dropped();
        assert!(self.dropped == 0 || self.log.needs_repair());
    }

    fn append(&mut self) {
        let count = 1 + self.rng.below(20);
        self.log.append(&hints(self.next..self.next + count), self.now_ms);
        self.pending.extend(self.next..self.next + count);
        self.next += count;
        self.see_drops(0);
    }

    fn append_to_a_full_disk(&mut self) {
        // These are fewer bytes than an entry has, and sometimes more than a segment's header has.
        ROOM.set(Some(self.rng.below(40) as usize));
        self.log.append(&hints(self.next..self.next + 1), self.now_ms);
        ROOM.set(None);
        self.next += 1;
        self.see_drops(1);
    }

    fn replay(&mut self) {
        let count = 1 + self.rng.below(30);
        let bytes = self.rng.below(4_000);
        let window = self.log.window(count as u32, bytes).unwrap();
        let numbers: Vec<u64> = window.records.iter().map(number_of).collect();
        assert!(numbers.len() <= count as usize && numbers.is_empty() == self.pending.is_empty());
        assert!(numbers.iter().eq(self.pending.iter().take(numbers.len())), "the oldest, in order");
        let taken = self.rng.below(numbers.len() as u64 + 1) as usize;
        self.log.confirm(&window, taken);
        if let Some(last) = self.pending.drain(..taken).next_back() {
            self.confirmed = last + 1;
        }
    }

    fn tick(&mut self) {
        self.now_ms += if self.rng.one_in(20) { 11_000 } else { self.rng.below(1_000_u64) };
        tick(&mut self.log, self.now_ms);
        self.see_drops(0);
        assert!(
            self.log.pending() > 0 || segments(self.dir.path()).is_empty(),
            "nothing is left of what was confirmed"
        );
    }

    /// Opens what is on disk now. `survive` says which entries must be there unless they were
    /// confirmed.
    fn reopen(&mut self, survive: &[u64]) {
        let copy = copy(self.dir.path());
        let found = drain(&mut open(copy.path(), BOUNDS));
        let lost = survive.iter().filter(|number| **number >= self.confirmed && !found.contains(number));
        assert_eq!(lost.copied().collect::<Vec<u64>>(), [0_u64; 0], "not given back");
        assert!(found.is_sorted() && found.iter().all(|number| survive.contains(number)));
        self.log = open(self.dir.path(), BOUNDS);
        self.log.write = faulty_write;
        self.pending = found.into();
        self.dropped = 0;
        // Confirmed hints may be pending again, and are then confirmed again.
        self.confirmed = self.pending.front().map_or(self.confirmed, |first| self.confirmed.min(*first));
    }

    fn close_and_reopen(&mut self) {
        self.log.close();
        let survive: Vec<u64> = self.pending.iter().copied().collect();
        self.reopen(&survive);
        assert!(survive.iter().eq(&self.pending), "after an orderly end nothing is replayed twice");
    }

    fn kill(&mut self) {
        let survive: Vec<u64> = on_disk(self.dir.path()).into_iter().map(|(_, _, number)| number).collect();
        assert!(self.pending.iter().all(|number| survive.contains(number)), "what was appended is in the page cache");
        self.reopen(&survive);
    }

    fn kill_with_damage(&mut self) {
        let before = on_disk(self.dir.path());
        let files = segments(self.dir.path());
        if files.is_empty() {
            return;
        }
        let file = &files[self.rng.below(files.len() as u64) as usize];
        let mut bytes = fs::read(file).unwrap();
        let whole = bytes.len() as u64;
        let at = self.rng.below(whole);
        let (damaged_at, is_seen) = match self.rng.below(4) {
            0 => {
                bytes.truncate(at as usize);
                let is_boundary = at == 0 || at == HEADER || before.iter().any(|(f, end, _)| f == file && *end == at);
                (at, !is_boundary)
            }
            1 => {
                bytes[at as usize] ^= 1 << self.rng.below(8);
                (at, true)
            }
            2 => {
                bytes.extend((0..1 + self.rng.below(100)).map(|_| 7));
                (whole, true)
            }
            _ => {
                // Zeros that were there already are not damage.
                let differs = bytes[at as usize..].iter().position(|&byte| byte != 0);
                bytes[at as usize..].fill(0);
                bytes.extend([0; 50]);
                (differs.map_or(whole, |differs| at + differs as u64), true)
            }
        };
        fs::write(file, bytes).unwrap();
        if self.rng.below(3) == 0 {
            let _ = fs::write(self.dir.path().join(CONFIRMED), [3; 32]);
        }
        let header_is_hit = damaged_at < HEADER;
        let intact = |(f, end, _): &&(PathBuf, u64, u64)| f != file || (!header_is_hit && *end <= damaged_at);
        let must: Vec<u64> = before.iter().filter(intact).map(|entry| entry.2).collect();
        let position_is_behind = fs::read(self.dir.path().join(CONFIRMED))
            .ok()
            .and_then(|bytes| entry::read_confirmed(&bytes))
            .is_some_and(|at| self.log.path(at.sequence) > *file);
        self.reopen(&must);
        assert!(!is_seen || position_is_behind || self.log.needs_repair(), "damage is said");
    }
}

#[test]
fn what_was_appended_comes_back_in_order_until_it_is_confirmed() {
    let seed = seed_or("what_was_appended_comes_back_in_order_until_it_is_confirmed", 1);
    for round in 0..koltso_testkit::volume(20, 400) {
        let mut model = Model::new(seed.wrapping_mul(1_000).wrapping_add(round));
        for _ in 0..300 {
            match model.rng.below(16) {
                0..=5 => model.append(),
                6..=10 => model.replay(),
                11..=12 => model.tick(),
                13 => model.append_to_a_full_disk(),
                14 => model.close_and_reopen(),
                _ if model.rng.below(2) == 0 => model.kill(),
                _ => model.kill_with_damage(),
            }
            let log = &model.log;
            assert_eq!(log.pending(), model.pending.len() as u64);
            let sizes = segments(model.dir.path()).iter().map(|file| fs::metadata(file).unwrap().len()).sum::<u64>();
            assert_eq!(log.bytes(), sizes);
            assert!(sizes <= BOUNDS.bytes_max);
            assert_eq!(log.oldest_ms() > 0, log.pending() > 0);
            // A hint's clock is its number and one.
            let oldest = model.pending.front().map(|first| first + 1);
            assert!(log.oldest_clock().is_some() == oldest.is_some() && log.oldest_clock() <= oldest);
        }
        let pending: Vec<u64> = model.pending.iter().copied().collect();
        assert_eq!(drain(&mut model.log), pending);
    }
}

#[test]
fn past_the_bound_by_bytes_the_oldest_segments_go_and_the_peer_needs_repair() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), BOUNDS);
    log.append(&hints(0..20), 1);
    assert!(!log.needs_repair());
    log.append(&hints(20..500), 1);
    assert!(log.needs_repair() && log.bytes() <= BOUNDS.bytes_max && log.dropped() > 0);
    assert!(log.bytes() > BOUNDS.bytes_max / 2, "no more than need be");
    assert!(dir.path().join(NEEDS_REPAIR).exists());
    let dropped = log.dropped();
    assert_eq!(drain(&mut log), (dropped..500).collect::<Vec<u64>>());

    // The mark outlives the process, until an operator removes it.
    log.close();
    let mut log = open(dir.path(), BOUNDS);
    assert!(log.needs_repair());
    tick(&mut log, 1);
    assert!(log.needs_repair());
    fs::remove_file(dir.path().join(NEEDS_REPAIR)).unwrap();
    tick(&mut log, 1);
    assert!(!log.needs_repair() && !log.wants_tick());
}

#[test]
fn past_the_bound_by_age_the_oldest_segments_go() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), WIDE);
    for second in 0..10 {
        log.append(&hints(second..second + 1), second * 1_000);
    }
    assert!(segments(dir.path()).len() >= 4, "a segment is full when it is old");
    tick(&mut log, 10_000);
    assert_eq!((log.pending(), log.needs_repair()), (10, false));
    tick(&mut log, 15_500);
    let oldest = 10 - log.pending();
    assert!((4..=6).contains(&oldest), "{oldest} are gone");
    assert!(log.needs_repair() && log.dropped() == oldest);
    assert_eq!(drain(&mut log), (oldest..10).collect::<Vec<u64>>());
    // A clock that goes back does not make anything old.
    log.append(&hints(10..12), 20_000);
    tick(&mut log, 3);
    assert_eq!(log.pending(), 2);
}

#[test]
fn a_record_larger_than_everything_is_dropped_and_one_larger_than_a_segment_has_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), BOUNDS);
    let large = |len| Record { value: vec![0; len].into(), flags: Flags::new(1), ..hint(0) };
    log.append(&[large(17 << 10), large(10 << 10), large(1)], 1);
    assert_eq!((log.pending(), log.dropped(), log.needs_repair()), (2, 1, true));
    let window = log.window(8, 100).unwrap();
    assert_eq!(window.records, [large(10 << 10)], "at least one, whatever its size");
    log.append(&[Record { key: Key::new(Bytes::new()), ..large(1) }], 1);
    assert_eq!((log.pending(), log.dropped()), (2, 2), "no record of the API");
}

#[test]
fn a_newer_format_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), WIDE);
    log.append(&hints(0..3), 1);
    drop(log);
    let file = &segments(dir.path())[0];
    let mut bytes = fs::read(file).unwrap();
    bytes[8] = 3;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..32]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    fs::write(file, &bytes).unwrap();
    let error = Log::open(dir.path(), "a peer", WIDE).err().unwrap().to_string();
    assert!(error.contains("have format 3, and this build reads formats up to 2"), "{error}");
    assert_eq!(fs::read(file).unwrap(), bytes);
}

#[test]
fn a_torn_tail_is_cut_off_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), WIDE);
    log.append(&hints(0..5), 1);
    drop(log);
    let file = &segments(dir.path())[0];
    let len = fs::metadata(file).unwrap().len();
    OpenOptions::new().write(true).open(file).unwrap().set_len(len - 1).unwrap();
    let mut log = open(dir.path(), WIDE);
    assert_eq!((log.pending(), log.needs_repair()), (4, true));
    fs::remove_file(dir.path().join(NEEDS_REPAIR)).unwrap();
    drop(log);
    log = open(dir.path(), WIDE);
    assert_eq!((log.pending(), log.needs_repair()), (4, false));
    log.append(&hints(5..6), 1);
    assert_eq!(segments(dir.path()).len(), 2, "nobody appends to a segment after a restart");
    assert_eq!(drain(&mut log), [0, 1, 2, 3, 5]);
}

#[test]
fn a_position_that_is_not_between_entries_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), WIDE);
    log.append(&hints(0..5), 1);
    drop(log);
    let ends: Vec<u64> = on_disk(dir.path()).into_iter().map(|(_, end, _)| end).collect();
    for (offset, expected) in [
        (ends[1], &[2, 3, 4][..]),
        (ends[1] + 1, &[0, 1, 2, 3, 4]),
        (3, &[0, 1, 2, 3, 4]),
        (ends[3] - 1, &[0, 1, 2, 3, 4]),
        (ends[4], &[]),
        (u64::MAX, &[]),
    ] {
        let copy = copy(dir.path());
        let bytes = entry::confirmed(Position { sequence: 1, offset });
        fs::write(copy.path().join(CONFIRMED), bytes).unwrap();
        assert_eq!(drain(&mut open(copy.path(), WIDE)), expected, "{offset}");
    }
}

#[test]
fn damage_that_appears_while_it_runs_takes_the_rest_of_its_segment() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), WIDE);
    log.append(&hints(0..60), 1);
    let entries = on_disk(dir.path());
    let file = &segments(dir.path())[1];
    let of_file: Vec<&(PathBuf, u64, u64)> = entries.iter().filter(|entry| entry.0 == *file).collect();
    let (good, bad) = (of_file[0], of_file[1]);
    OpenOptions::new().write(true).open(file).unwrap().write_all_at(b"rot", bad.1 - 3).unwrap();
    let lost = of_file.len() as u64 - 1;
    let expected: Vec<u64> = (0..=good.2).chain(bad.2 + lost..60).collect();
    assert_eq!(drain(&mut log), expected);
    assert_eq!((log.dropped(), log.needs_repair()), (lost, true));
    // A file that somebody has removed, and the active segment.
    log.append(&hints(60..61), 1);
    log.window(1, 1).unwrap();
    log.reader = None;
    fs::remove_file(segments(dir.path()).last().unwrap()).unwrap();
    assert!(log.window(1, 1).unwrap().records.is_empty());
    log.append(&hints(61..62), 1);
    assert_eq!(drain(&mut log), [61]);
}

#[test]
fn a_number_is_not_used_again_while_a_position_names_it() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..4 {
        let mut log = open(dir.path(), WIDE);
        log.append(&hints(round * 10..round * 10 + 10), 1);
        let numbers = drain(&mut log);
        assert_eq!(numbers, (round * 10..round * 10 + 10).collect::<Vec<u64>>());
        if round % 2 == 0 {
            log.close();
        } else {
            log.persist_position();
        }
    }
}

#[test]
fn on_a_full_disk_hints_are_dropped_and_writing_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), WIDE);
    log.write = faulty_write;
    log.append(&hints(0..2), 1);
    for (room, number) in [(0, 2), (30, 3), (39, 4)] {
        ROOM.set(Some(room));
        log.append(&hints(number..number + 1), 1);
        ROOM.set(None);
    }
    assert_eq!((log.pending(), log.dropped(), log.needs_repair()), (2, 3, true));
    log.append(&hints(5..7), 1);
    drop(log);
    assert_eq!(drain(&mut open(dir.path(), WIDE)), [0, 1, 5, 6]);
}

#[test]
fn a_folder_that_cannot_be_opened_for_a_while_marks_nobody_and_is_synced_later() {
    thread_local!(static SYNCS: Cell<usize> = const { Cell::new(0) });
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("peer");
    fs::create_dir(&folder).unwrap();
    let mut log = open(&folder, WIDE);
    tick(&mut log, 1);
    log.append(&hints(0..2), 1);
    log.sync = |_| {
        SYNCS.set(SYNCS.get() + 1);
        Ok(())
    };
    let away = dir.path().join("away");
    fs::rename(&folder, &away).unwrap();
    tick(&mut log, 1);
    assert_eq!((SYNCS.get(), log.needs_repair(), log.pending()), (1, false, 2), "its file alone is synced");
    fs::rename(&away, &folder).unwrap();
    tick(&mut log, 1);
    assert_eq!((SYNCS.get(), log.needs_repair()), (2, false), "the folder is synced");
    tick(&mut log, 1);
    assert_eq!(SYNCS.get(), 2, "there is nothing left to sync");
}

#[test]
fn a_failed_sync_marks_the_peer() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), WIDE);
    log.append(&hints(0..2), 1);
    log.sync = |_| Err(io::ErrorKind::Other.into());
    tick(&mut log, 1);
    assert!(log.needs_repair() && log.pending() == 2);
}

/// What a batch has taken is not new any more, what comes meanwhile is.
#[test]
fn a_log_goes_on_while_it_is_synced() {
    thread_local!(static SYNCS: Cell<usize> = const { Cell::new(0) });
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), WIDE);
    log.sync = |_| {
        SYNCS.set(SYNCS.get() + 1);
        Ok(())
    };
    log.append(&hints(0..1), 1);
    let batch = log.begin_sync().unwrap();
    assert!(log.begin_sync().is_none());
    // Segments are filled, and one that the batch has is confirmed and removed.
    log.append(&hints(1..200), 1);
    let segments_now = segments(dir.path()).len();
    assert!(segments_now > 4);
    let window = log.window(1_000, 1 << 20).unwrap();
    log.confirm(&window, window.records.len());
    assert_eq!(segments(dir.path()).len(), segments_now - 1);
    log.synced(batch.sync());
    assert_eq!(SYNCS.get(), 2, "the first segment, though it is gone, and the folder");
    let batch = log.begin_sync().unwrap();
    log.synced(batch.sync());
    assert_eq!(SYNCS.get(), 2 + segments_now - 1 + 1, "those that were filled, the last one, and the folder");
    assert!(log.begin_sync().is_none() && !log.needs_repair());
    assert_eq!(drain(&mut log), (window.records.len() as u64..200).collect::<Vec<u64>>());
}

#[test]
fn a_bound_may_take_what_is_on_its_way() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), WIDE);
    log.append(&hints(0..3), 1);
    let window = log.window(2, 1 << 20).unwrap();
    tick(&mut log, 20_000);
    assert_eq!((log.pending(), log.dropped(), log.oldest_clock()), (0, 3, None));
    log.append(&hints(3..5), 20_000);
    log.confirm(&window, 2);
    assert_eq!(log.pending(), 2);
    assert_eq!(drain(&mut log), [3, 4]);
}

#[test]
fn the_oldest_clock_is_that_of_what_is_pending() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), WIDE);
    let clock = |log: &Log| log.oldest_clock();
    assert_eq!(clock(&log), None);
    // Hints come in another order than their clocks.
    for number in [7, 5, 9] {
        log.append(&[hint(number)], 1);
    }
    assert_eq!(clock(&log), Some(6));
    let window = log.window(1, 1 << 20).unwrap();
    log.confirm(&window, 1);
    log.close();
    let mut log = Log::open(dir.path(), "a peer", WIDE).unwrap();
    assert_eq!(clock(&log), Some(0), "nobody has looked yet");
    log.load();
    assert_eq!((clock(&log), log.pending()), (Some(6), 2));
    let window = log.window(1, 1 << 20).unwrap();
    log.confirm(&window, 1);
    log.close();
    let mut log = open(dir.path(), WIDE);
    assert_eq!(clock(&log), Some(10), "what was confirmed does not count");
    log.append(&[hint(20)], 1);
    drain(&mut log);
    assert_eq!(clock(&log), None);
    log.append(&[hint(12)], 1);
    assert_eq!(clock(&log), Some(13), "the segment is the same, and what was in it is confirmed");
}

#[test]
fn a_peer_that_was_repaired_needs_it_no_more_until_something_is_lost_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), WIDE);
    log.lose(1, "a test");
    let losses = log.losses();
    tick(&mut log, 1);
    assert!(log.needs_repair() && dir.path().join(NEEDS_REPAIR).exists() && log.losses() == losses);
    log.repaired();
    assert!(!log.needs_repair() && !dir.path().join(NEEDS_REPAIR).exists());
    tick(&mut log, 1);
    log.lose(0, "another");
    assert!(log.needs_repair() && dir.path().join(NEEDS_REPAIR).exists() && log.losses() > losses);
    drop(log);
    let mut log = open(dir.path(), WIDE);
    assert!(log.needs_repair(), "the disk remembers");
    log.repaired();
    drop(log);
    assert!(!open(dir.path(), WIDE).needs_repair());
}

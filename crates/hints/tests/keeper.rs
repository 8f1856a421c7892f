//! Keepers beside peers that are slow, that refuse, that fail half way, or that are not there.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use koltso_cluster::budget::Budget;
use koltso_hints::{
    Dial, Keeper, Options, PeerAddress, QUEUE_BYTES_MAX, QUEUE_MAX, Target, Verdict, WINDOW_BYTES, folder_name,
};
use koltso_model::{Flags, Key, Record, Version, WallTime};
use koltso_testkit::random::{Random, seed_or};
use koltso_testkit::wait::soon as until;
use koltso_testkit::wall_ms;
use parking_lot::{Condvar, Mutex};

const URLS: [&str; 3] = ["http://127.0.0.1:1337", "http://127.0.0.1:1338", "http://127.0.0.1:1339"];

/// What a peer does with the next window.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Takes,
    /// Takes this many and refuses the rest.
    Refuses(usize),
    /// Refuses every third record.
    RefusesSome,
    /// Will never take every third record, and takes the others.
    RefusesSomeForGood,
    /// Applies this many, then the connection breaks.
    Breaks(usize),
    Slow(Duration),
    AnswersTooFew,
}

#[derive(Default)]
struct State {
    up: bool,
    /// The moods of the next windows; after them it takes everything.
    moods: VecDeque<Mood>,
    /// Windows wait while this is set, for half a second each: then there is no answer.
    hangs: bool,
    /// The folder is an older copy, which a dial finds out.
    is_old_copy: bool,
    /// Whether a dial has found that out.
    is_disowned: bool,
    /// Windows wait while this is set, however long.
    is_stuck: bool,
    /// Windows that wait now.
    waiting: usize,
    taken: Vec<Record<Bytes>>,
    windows: Vec<usize>,
    dials: Vec<Instant>,
    connections: usize,
}

/// All peers of a test, which are one.
#[derive(Default)]
struct Net {
    state: Mutex<State>,
    changed: Condvar,
}

struct Connection(Arc<Net>);

struct Dialer(Arc<Net>);

impl Dial for Dialer {
    fn dial(&self, _: usize) -> Result<Box<dyn Target>, String> {
        let mut state = self.0.state.lock();
        state.dials.push(Instant::now());
        if !state.up {
            return Err("nobody is there".to_owned());
        }
        state.connections += 1;
        state.is_disowned |= state.is_old_copy;
        Ok(Box::new(Connection(self.0.clone())))
    }

    fn are_found_hints_good(&self) -> bool {
        !self.0.state.lock().is_disowned
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.state.lock().connections -= 1;
    }
}

impl Target for Connection {
    fn write(&mut self, records: &[Record<Bytes>]) -> Result<Vec<Verdict>, String> {
        let mut state = self.0.state.lock();
        state.waiting += 1;
        self.0.changed.wait_while(&mut state, |state| state.is_stuck);
        state.waiting -= 1;
        let deadline = Instant::now() + Duration::from_millis(500);
        while state.hangs {
            if self.0.changed.wait_until(&mut state, deadline).timed_out() {
                return Err("no answer".to_owned());
            }
        }
        if !state.up {
            return Err("the connection is gone".to_owned());
        }
        state.windows.push(records.len());
        let mood = state.moods.pop_front().unwrap_or(Mood::Takes);
        let count = match mood {
            Mood::Refuses(count) | Mood::Breaks(count) => count.min(records.len()),
            _ => records.len(),
        };
        let mut answers = vec![Verdict::Taken; count];
        if mood == Mood::RefusesSome {
            answers.iter_mut().skip(2).step_by(3).for_each(|answer| *answer = Verdict::NotNow);
        }
        if mood == Mood::RefusesSomeForGood {
            answers.iter_mut().skip(2).step_by(3).for_each(|answer| *answer = Verdict::Never);
        }
        let taken = records.iter().zip(&answers).filter(|(_, answer)| **answer == Verdict::Taken);
        state.taken.extend(taken.map(|(record, _)| record.clone()));
        match mood {
            Mood::Takes | Mood::RefusesSome | Mood::RefusesSomeForGood => {}
            Mood::Refuses(_) => answers.resize(records.len(), Verdict::NotNow),
            Mood::Breaks(_) => return Err("broken".to_owned()),
            Mood::AnswersTooFew => drop(answers.pop()),
            Mood::Slow(time) => {
                drop(state);
                std::thread::sleep(time);
            }
        }
        Ok(answers)
    }
}

/// Holds up whoever passes it.
struct Gate {
    /// Whether it is shut, and how many wait before it.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    const fn open() -> Self {
        Self { state: Mutex::new((false, 0)), changed: Condvar::new() }
    }

    fn pass(&self) {
        let mut state = self.state.lock();
        state.1 += 1;
        self.changed.wait_while(&mut state, |(shut, _)| *shut);
        state.1 -= 1;
    }

    fn hold(&self) {
        self.state.lock().0 = true;
    }

    fn let_go(&self) {
        self.state.lock().0 = false;
        self.changed.notify_all();
    }

    fn waiting(&self) -> usize {
        self.state.lock().1
    }
}

/// The time of day, for those who are to be stuck when they look at it.
static TIME: Gate = Gate::open();

fn held_ms() -> u64 {
    TIME.pass();
    wall_ms()
}

fn options() -> Options {
    Options { retry: Duration::from_millis(10), ..Options::new(wall_ms) }
}

fn peers<const N: usize>(nodes: [usize; N]) -> Vec<PeerAddress> {
    nodes.map(|node| PeerAddress { node, url: URLS[node].to_owned() }).to_vec()
}

fn start(folder: &Path, net: &Arc<Net>, options: Options) -> Arc<Keeper> {
    Keeper::start(folder, peers([1, 2]), Arc::new(Dialer(net.clone())), options).unwrap()
}

fn net(up: bool) -> Arc<Net> {
    let net = Net::default();
    net.state.lock().up = up;
    Arc::new(net)
}

fn record(number: u64, len: usize) -> Record<Bytes> {
    Record {
        key: Key::new(Bytes::copy_from_slice(&number.to_be_bytes())),
        value: vec![number as u8; len].into(),
        version: Version::new(number + 1, 0),
        expires_at_ms: 0,
        flags: Flags::new(3),
        attributes: Bytes::new(),
    }
}

fn number(record: &Record<Bytes>) -> u64 {
    u64::from_be_bytes(record.key.bytes().try_into().unwrap())
}

fn files(folder: &Path, node: usize) -> usize {
    let files = fs::read_dir(folder.join(folder_name(URLS[node]))).unwrap();
    files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|e| e == "hints")).count()
}

#[test]
fn what_a_peer_missed_reaches_it_in_order_when_it_is_back() {
    let (dir, net) = (tempfile::tempdir().unwrap(), net(false));
    let keeper = start(dir.path(), &net, options());
    for number in 0..1_000 {
        keeper.keep(1, record(number, 100));
    }
    until("an error is shown", || keeper.figures(1).last_error.is_some());
    let figures = keeper.figures(1);
    assert_eq!((figures.pending, figures.needs_repair, figures.dropped), (1_000, false, 0));
    assert_eq!(figures.last_error.as_deref(), Some("nobody is there"));
    assert!(wall_ms() - figures.oldest_ms < 60_000);
    assert_eq!(keeper.figures(2), koltso_hints::Figures::default(), "the other peer has missed nothing");
    net.state.lock().up = true;
    until("all is replayed", || keeper.figures(1).pending == 0);
    assert!(net.state.lock().taken.iter().map(number).eq(0..1_000));
    until("its files are gone", || keeper.figures(1).bytes == 0 && files(dir.path(), 1) == 0);
    let figures = keeper.figures(1);
    assert_eq!((figures.replayed, figures.oldest_ms, figures.last_error), (1_000, 0, None));
    keeper.stop();
    keeper.stop();
}

#[test]
fn hints_for_a_peer_that_goes_and_comes_wait_in_its_folder() {
    let (dir, net) = (tempfile::tempdir().unwrap(), net(false));
    let keeper = start(dir.path(), &net, options());
    (0..100).for_each(|number| keeper.keep(1, record(number, 100)));
    until("all are kept", || keeper.figures(1).pending == 100);
    keeper.peers_are(peers([2])).unwrap();
    keeper.keep(1, record(100, 100));
    keeper.keep(2, record(100, 100));
    assert_eq!(keeper.figures(1), koltso_hints::Figures::default(), "it is no peer");
    until("the one that stays keeps its own", || keeper.figures(2).pending == 1);
    keeper.peers_are(peers([1, 2])).unwrap();
    until("they are found", || keeper.figures(1).pending == 100);
    assert_eq!(keeper.figures(2).pending, 1);
    net.state.lock().up = true;
    until("all is replayed", || keeper.figures(1).pending + keeper.figures(2).pending == 0);
    assert_eq!(net.state.lock().taken.len(), 101);
    keeper.stop();
}

#[test]
fn after_a_change_of_peers_that_failed_another_one_is_as_good_as_ever() {
    let (dir, net) = (tempfile::tempdir().unwrap(), net(false));
    let keeper = start(dir.path(), &net, options());
    keeper.keep(1, record(0, 100));
    until("it is kept", || keeper.figures(1).pending == 1);
    fs::write(dir.path().join(folder_name(URLS[0])), "no folder").unwrap();
    keeper.peers_are(peers([0, 2])).unwrap_err();
    keeper.peers_are(peers([1, 2])).unwrap();
    keeper.keep(1, record(1, 100));
    keeper.keep(2, record(1, 100));
    until("all are kept", || (keeper.figures(1).pending, keeper.figures(2).pending) == (2, 1));
    assert_eq!((keeper.figures(1).dropped, keeper.figures(2).dropped), (0, 0));
    keeper.stop();
}

/// It is no delivery: the peer lacks these records, and says so by needing repair.
#[test]
fn a_hint_that_is_refused_for_good_is_lost_and_holds_up_no_other() {
    let (dir, net) = (tempfile::tempdir().unwrap(), net(false));
    let keeper = start(dir.path(), &net, options());
    for number in 0..6 {
        keeper.keep(1, record(number, 100));
    }
    until("all are kept", || keeper.figures(1).pending == 6);
    assert!(!keeper.figures(1).needs_repair);
    {
        let mut state = net.state.lock();
        state.moods = [Mood::RefusesSomeForGood].into();
        state.up = true;
    }
    until("nothing waits any more", || keeper.figures(1).pending == 0);
    let figures = keeper.figures(1);
    assert_eq!((figures.replayed, figures.dropped, figures.needs_repair), (4, 2, true));
    assert!(net.state.lock().taken.iter().map(number).eq([0, 1, 3, 4]));
    keeper.stop();
}

#[test]
fn refusals_breaks_and_wrong_answers_lose_nothing_and_let_nothing_overtake() {
    let (dir, net) = (tempfile::tempdir().unwrap(), net(true));
    let moods = [
        Mood::Refuses(0),
        Mood::Refuses(3),
        Mood::Breaks(0),
        Mood::Breaks(5),
        Mood::AnswersTooFew,
        Mood::Slow(Duration::from_millis(30)),
        Mood::Refuses(1),
        Mood::Takes,
        Mood::Breaks(100),
    ];
    net.state.lock().moods = moods.into();
    let keeper = start(dir.path(), &net, options());
    for number in 0..500 {
        keeper.keep(1, record(number, 100));
    }
    until("all is replayed", || keeper.figures(1).pending == 0);
    let state = net.state.lock();
    // Records that were applied but not confirmed come again; none is left out, and no new one
    // comes before its turn.
    let mut newest = 0;
    for number in state.taken.iter().map(number) {
        assert!(number <= newest, "{number} came after {newest}");
        newest = newest.max(number + 1);
    }
    assert_eq!(newest, 500);
    assert!(state.taken.len() > 500, "some came twice");
    assert!(state.moods.is_empty());
    assert!(state.dials.len() >= 4, "a connection that failed is not used again: {} dials", state.dials.len());
    drop(state);
    assert_eq!((keeper.figures(1).dropped, keeper.figures(1).needs_repair), (0, false));
    keeper.stop();
}

#[test]
fn a_refused_hint_holds_up_those_behind_it() {
    let (dir, net) = (tempfile::tempdir().unwrap(), net(false));
    net.state.lock().moods = [Mood::RefusesSome; 3].into();
    let keeper = start(dir.path(), &net, options());
    for number in 0..10 {
        keeper.keep(1, record(number, 100));
    }
    until("all is appended", || keeper.figures(1).bytes >= 10 * 148);
    net.state.lock().up = true;
    until("all is replayed", || keeper.figures(1).pending == 0);
    let numbers: Vec<u64> = net.state.lock().taken.iter().map(number).collect();
    // Windows have eight records; those behind a refused one come again with it.
    let windows = [&[0, 1, 3, 4, 6, 7][..], &[2, 3, 5, 6, 8, 9], &[4, 5, 7, 8], &[6, 7, 8, 9]].concat();
    assert_eq!(numbers, windows);
    assert_eq!((keeper.figures(1).replayed, keeper.figures(1).last_error), (10, None));
    keeper.stop();
}

#[test]
fn a_peer_that_is_away_is_dialled_less_and_less() {
    let (dir, net) = (tempfile::tempdir().unwrap(), net(false));
    let keeper = start(dir.path(), &net, Options { retry: Duration::from_millis(50), ..options() });
    // New hints do not make the keeper dial sooner.
    for number in 0..150 {
        keeper.keep(1, record(number, 100));
        std::thread::sleep(Duration::from_millis(10));
    }
    let dials = net.state.lock().dials.clone();
    assert!((3..=7).contains(&dials.len()), "{} dials in about 1.5 s", dials.len());
    let pauses: Vec<Duration> = dials.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.iter().zip([50, 100, 200, 400]).all(|(pause, least)| pause.as_millis() >= least), "{pauses:?}");
    keeper.stop();
}

#[test]
fn nothing_is_done_for_peers_that_miss_nothing() {
    let (dir, net) = (tempfile::tempdir().unwrap(), net(true));
    let keeper = start(dir.path(), &net, options());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(net.state.lock().dials.len(), 0);
    assert_eq!((files(dir.path(), 1), files(dir.path(), 2)), (0, 0));
    keeper.stop();
}

#[test]
fn a_hundred_thousand_hints_drain_quickly() {
    let (dir, net) = (tempfile::tempdir().unwrap(), net(false));
    let keeper = start(dir.path(), &net, options());
    for thousand in 0..100 {
        for number in 0..1_000 {
            keeper.keep(1, record(thousand * 1_000 + number, 128));
        }
        // Prevents an overflow of the queue on a machine with other things to do.
        while keeper.figures(1).pending > keeper.figures(1).bytes / 128 + 30_000 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let begun = Instant::now();
    net.state.lock().up = true;
    until("all is replayed", || keeper.figures(1).pending == 0);
    let took = begun.elapsed();
    println!("100000 hints in {} ms, {} windows", took.as_millis(), net.state.lock().windows.len());
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(keeper.figures(1).dropped, 0);
    let state = net.state.lock();
    assert!(state.taken.iter().map(number).eq(0..100_000));
    assert_eq!(state.windows.iter().max(), Some(&512));
    drop(state);
    keeper.stop();
}

/// Two peers and one budget, of which the first window of either takes all that was saved up.
#[test]
fn what_is_replayed_stays_within_the_budget() {
    const MIB: usize = 1 << 20;
    let (dir, net) = (tempfile::tempdir().unwrap(), net(false));
    let budget = Arc::new(Budget::new(8 * MIB as u64));
    let keeper = start(dir.path(), &net, Options { budget, ..options() });
    for number in 0..24 {
        keeper.keep(1 + number as usize % 2, record(number, MIB / 4));
    }
    until("all is appended", || keeper.figures(1).bytes + keeper.figures(2).bytes > 6 * MIB as u64);
    let begun = Instant::now();
    net.state.lock().up = true;
    until("all is replayed", || keeper.figures(1).pending + keeper.figures(2).pending == 0);
    // Of 6 MiB a tenth of a second's was saved up, and the last window of either is not waited for.
    let least = Duration::from_millis(750 - 100 - 2 * 125);
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
    keeper.stop();
}

#[test]
fn windows_are_bounded_by_bytes() {
    let (dir, net) = (tempfile::tempdir().unwrap(), net(false));
    let keeper = start(dir.path(), &net, options());
    let lens = [400 << 10, 400 << 10, 400 << 10, 3 << 20, 1, 1, 1];
    for (number, len) in (0..).zip(lens) {
        keeper.keep(1, record(number, len));
    }
    until("all is appended", || keeper.figures(1).bytes > 4 << 20);
    net.state.lock().up = true;
    until("all is replayed", || keeper.figures(1).pending == 0);
    const { assert!(2 * (400 << 10) < WINDOW_BYTES && WINDOW_BYTES < 3 * (400 << 10)) };
    assert_eq!(net.state.lock().windows, [2, 1, 1, 3]);
    keeper.stop();
}

#[test]
fn a_full_queue_drops_and_never_blocks() {
    const EXCESS: usize = 1_000;
    let fills = [(QUEUE_MAX, 10), (QUEUE_BYTES_MAX >> 20, 1 << 20)];
    for (room, len) in fills {
        let (dir, net) = (tempfile::tempdir().unwrap(), net(true));
        net.state.lock().is_stuck = true;
        let keeper = start(dir.path(), &net, Options { now_ms: held_ms, ..options() });
        keeper.keep(1, record(0, 10));
        until("a window is on its way", || net.state.lock().waiting == 1);
        // Until it is let go, the thread takes nothing from the queue, which is empty.
        TIME.hold();
        until("the thread is stuck", || TIME.waiting() == 1);
        let (value, begun) = (Bytes::from(vec![1; len - size_of::<u64>()]), Instant::now());
        for number in 1..=(room + EXCESS) as u64 {
            keeper.keep(1, Record { value: value.clone(), ..record(number, 0) });
        }
        let took = begun.elapsed();
        let figures = keeper.figures(1);
        assert_eq!((figures.pending, figures.dropped, figures.needs_repair), (1 + room as u64, EXCESS as u64, true));
        assert!(took < Duration::from_secs(2), "{took:?} for {room}");
        TIME.let_go();
        {
            net.state.lock().is_stuck = false;
            net.changed.notify_all();
        }
        until("the rest is replayed", || keeper.figures(1).pending == 0);
        let figures = keeper.figures(1);
        assert_eq!((figures.replayed, figures.dropped, figures.needs_repair), (1 + room as u64, EXCESS as u64, true));
        assert!(dir.path().join(folder_name(URLS[1])).join("needs-repair").exists());
        assert!(net.state.lock().taken.iter().map(number).eq(0..=room as u64));
        keeper.stop();
    }
}

#[test]
fn stop_leaves_nothing_in_the_queue_and_the_next_start_replays_it() {
    let (dir, down) = (tempfile::tempdir().unwrap(), net(false));
    let keeper = start(dir.path(), &down, options());
    for number in 0..20_000 {
        keeper.keep(1 + (number % 2) as usize, record(number, 100));
    }
    let begun = Instant::now();
    keeper.stop();
    assert!(begun.elapsed() < Duration::from_secs(2));
    keeper.keep(1, record(0, 1));
    assert_eq!((keeper.figures(1).dropped, keeper.figures(1).needs_repair), (1, true), "too late");

    let up = net(true);
    let keeper = start(dir.path(), &up, options());
    until("all is replayed", || keeper.figures(1).replayed == 10_000 && keeper.figures(2).replayed == 10_000);
    let mut numbers: Vec<u64> = up.state.lock().taken.iter().map(number).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..20_000));
    keeper.stop();
    assert_eq!(up.state.lock().connections, 0);

    // Confirmed hints are not replayed by the next keeper.
    let keeper = start(dir.path(), &up, options());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(keeper.figures(1).replayed, 0);
    keeper.stop();
}

/// What the old ones contain may have been deleted since, and the delete forgotten.
#[test]
fn hints_of_an_older_copy_are_given_up_and_new_ones_are_sent() {
    let (dir, net) = (tempfile::tempdir().unwrap(), net(false));
    let keeper = start(dir.path(), &net, options());
    (0..100).for_each(|number| keeper.keep(1, record(number, 100)));
    keeper.stop();
    let keeper = start(dir.path(), &net, options());
    (100..200).for_each(|number| keeper.keep(1, record(number, 100)));
    until("all are pending", || keeper.figures(1).pending == 200);
    {
        let mut state = net.state.lock();
        (state.up, state.is_old_copy) = (true, true);
    }
    until("nothing is pending", || keeper.figures(1).pending == 0);
    assert!(net.state.lock().taken.iter().map(number).eq(100..200));
    let figures = keeper.figures(1);
    assert_eq!((figures.replayed, figures.dropped, figures.needs_repair), (100, 100, true));
    keeper.stop();
}

#[test]
fn stop_does_not_wait_for_a_peer_that_hangs() {
    let (dir, net) = (tempfile::tempdir().unwrap(), net(true));
    net.state.lock().hangs = true;
    let keeper = start(dir.path(), &net, options());
    for number in 0..1_000 {
        keeper.keep(1, record(number, 100));
    }
    std::thread::sleep(Duration::from_millis(50));
    let begun = Instant::now();
    keeper.stop();
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(keeper.figures(1).pending, 1_000);
}

/// The disk syncs for as long as it likes: hints are written meanwhile, whole segments of them.
#[test]
fn hints_are_written_while_the_disk_syncs() {
    static DISK: Gate = Gate::open();
    static SYNCS: AtomicUsize = AtomicUsize::new(0);
    fn slow(_: &File) -> io::Result<()> {
        DISK.pass();
        SYNCS.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    let (dir, net) = (tempfile::tempdir().unwrap(), net(false));
    let keeper = start(dir.path(), &net, Options { sync: slow, segment_size: 16 << 10, ..options() });
    DISK.hold();
    keeper.keep(1, record(0, 100));
    until("the disk syncs", || DISK.waiting() == 1);
    for number in 1..1_000 {
        keeper.keep(1, record(number, 100));
    }
    until("all are in files", || keeper.figures(1).bytes >= 1_000 * 148 && files(dir.path(), 1) >= 8);
    // They are sent, too.
    net.state.lock().up = true;
    until("all is replayed", || keeper.figures(1).replayed == 1_000);
    assert_eq!((DISK.waiting(), SYNCS.load(Ordering::SeqCst)), (1, 0), "all that time one sync went on");
    net.state.lock().up = false;
    keeper.keep(2, record(0, 100));
    until("those for another peer are in a file, too", || keeper.figures(2).bytes >= 148);
    DISK.let_go();
    until("the other peer's are synced", || SYNCS.load(Ordering::SeqCst) >= 4);
    keeper.stop();
    assert!(!keeper.figures(1).needs_repair && !keeper.figures(2).needs_repair);
}

#[test]
fn hints_are_written_while_the_peer_does_not_answer() {
    let (dir, net) = (tempfile::tempdir().unwrap(), net(true));
    net.state.lock().is_stuck = true;
    let keeper = start(dir.path(), &net, options());
    keeper.keep(1, record(0, 100));
    until("a window is on its way", || net.state.lock().waiting == 1);
    for number in 1..1_000 {
        keeper.keep(1, record(number, 100));
    }
    until("all are in files", || keeper.figures(1).bytes >= 1_000 * 148);
    assert_eq!((net.state.lock().waiting, keeper.figures(1).pending), (1, 1_000));
    net.state.lock().is_stuck = false;
    net.changed.notify_all();
    until("all is replayed", || keeper.figures(1).pending == 0);
    assert!(net.state.lock().taken.iter().map(number).eq(0..1_000));
    keeper.stop();
}

/// Hints with clocks in any order, while somebody looks all the time.
#[test]
fn the_oldest_hint_counts_wherever_it_is() {
    let seed = seed_or("the_oldest_hint_counts_wherever_it_is", 1);
    let (dir, net) = (tempfile::tempdir().unwrap(), net(false));
    let keeper = start(dir.path(), &net, options());
    until("what an earlier process left was looked for", || keeper.oldest_ms().is_none());
    let (oldest_kept, done) = (AtomicU64::new(u64::MAX), AtomicBool::new(false));
    let looks = std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut looks = 0_u64;
            while !done.load(Ordering::SeqCst) {
                let kept = oldest_kept.load(Ordering::SeqCst);
                let oldest = keeper.oldest_ms().unwrap_or(u64::MAX);
                assert!(oldest <= kept, "{oldest}, and there is a hint of {kept}");
                looks += 1;
            }
            looks
        });
        let keepers: Vec<_> = (0..2)
            .map(|at| {
                let (keeper, oldest_kept) = (&keeper, &oldest_kept);
                scope.spawn(move || {
                    let mut random = Random::seeded(seed + at);
                    // The times fall, so that each hint is soon the oldest.
                    for step in 0..5_000_u64 {
                        let ms = 1_000_000 - step * 100 + random.below(1_000);
                        let version = Version::new(WallTime::from_ms(ms).0 + 1, 0);
                        keeper.keep(1 + at as usize, Record { version, ..record(step, 10) });
                        oldest_kept.fetch_min(ms, Ordering::SeqCst);
                        if random.one_in(200) {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                    }
                })
            })
            .collect();
        keepers.into_iter().for_each(|thread| thread.join().unwrap());
        done.store(true, Ordering::SeqCst);
        looking.join().unwrap()
    });
    assert!(looks > 100, "{looks} looks");
    until("all is appended", || keeper.figures(1).bytes.min(keeper.figures(2).bytes) >= 5_000 * 58);
    assert_eq!(keeper.oldest_ms(), Some(oldest_kept.load(Ordering::SeqCst)));
    net.state.lock().up = true;
    until("all is replayed", || keeper.figures(1).pending + keeper.figures(2).pending == 0);
    assert_eq!(keeper.oldest_ms(), None);
    keeper.stop();
}

/// The comparison that says so began when the peer needed repair for what it names.
#[test]
fn a_peer_is_repaired_unless_more_was_lost_meanwhile() {
    let (dir, net) = (tempfile::tempdir().unwrap(), net(false));
    let keeper = start(dir.path(), &net, options());
    assert_eq!(keeper.needs_repair(1), None);
    keeper.mark(1, "a test");
    until("it is marked", || keeper.needs_repair(1).is_some());
    let first = keeper.needs_repair(1).unwrap();
    keeper.mark(1, "a test, again");
    until("it is marked again", || keeper.needs_repair(1) > Some(first));
    let second = keeper.needs_repair(1).unwrap();
    let file = dir.path().join(folder_name(URLS[1])).join("needs-repair");
    keeper.repaired(1, first);
    // A hint behind it says that it was dealt with.
    keeper.keep(1, record(1, 1));
    until("that is over", || keeper.figures(1).bytes > 0);
    assert!(keeper.needs_repair(1) == Some(second) && keeper.figures(1).needs_repair && file.exists());
    keeper.repaired(1, second);
    until("it is repaired", || keeper.needs_repair(1).is_none());
    assert!(!keeper.figures(1).needs_repair && !file.exists());
    assert_eq!(keeper.needs_repair(2), None);
    keeper.stop();
}

/// The files are copied while the keeper runs, as a kill would leave them.
#[test]
fn what_was_appended_is_there_after_a_kill() {
    let (dir, down) = (tempfile::tempdir().unwrap(), net(false));
    let keeper = start(dir.path(), &down, options());
    for number in 0..5_000 {
        keeper.keep(1, record(number, 100));
    }
    until("all is appended", || keeper.figures(1).bytes >= 5_000 * 148);
    let copy = tempfile::tempdir().unwrap();
    let name = folder_name(URLS[1]);
    fs::create_dir(copy.path().join(&name)).unwrap();
    for file in fs::read_dir(dir.path().join(&name)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.path().join(&name).join(file.file_name())).unwrap();
    }
    let up = net(true);
    let after = start(copy.path(), &up, options());
    until("all is replayed", || after.figures(1).replayed == 5_000);
    assert!(up.state.lock().taken.iter().map(number).eq(0..5_000));
    after.stop();
    keeper.stop();
}

#[test]
fn a_keeper_that_is_dropped_ends_its_threads() {
    let (dir, net) = (tempfile::tempdir().unwrap(), net(true));
    let keeper = start(dir.path(), &net, options());
    keeper.keep(1, record(1, 1));
    drop(keeper);
    until("the hint is replayed or kept, and the thread is gone", || {
        Arc::strong_count(&net) == 1 && (net.state.lock().taken.len() == 1 || files(dir.path(), 1) == 1)
    });
}

#[test]
fn hints_past_their_age_are_dropped_while_the_peer_is_away() {
    let (dir, net) = (tempfile::tempdir().unwrap(), net(false));
    let keeper = start(dir.path(), &net, Options { age_max: Duration::from_millis(500), ..options() });
    for number in 0..10 {
        keeper.keep(1, record(number, 10));
    }
    until("they are dropped", || keeper.figures(1).dropped == 10);
    let figures = keeper.figures(1);
    assert_eq!((figures.pending, figures.bytes, figures.needs_repair), (0, 0, true));
    fs::remove_file(dir.path().join(folder_name(URLS[1])).join("needs-repair")).unwrap();
    until("the operator's word is taken", || !keeper.figures(1).needs_repair);
    keeper.stop();
}

/// Peers forget deletes in the end, so a write from before a delete must not come after that.
#[test]
fn hints_that_grew_too_old_while_their_holder_was_away_are_not_replayed() {
    fn hours_later() -> u64 {
        wall_ms() + 4 * 60 * 60 * 1000
    }
    let dir = tempfile::tempdir().unwrap();
    let net = net(false);
    let keeper = start(dir.path(), &net, options());
    (0..10).for_each(|n| keeper.keep(1, record(n, 100)));
    keeper.stop();
    net.state.lock().up = true;
    let keeper = start(dir.path(), &net, Options { now_ms: hours_later, ..options() });
    until("they are dropped", || keeper.figures(1).pending == 0 && keeper.figures(1).dropped == 10);
    assert!(keeper.figures(1).needs_repair);
    assert_eq!(net.state.lock().taken.len(), 0);
    keeper.stop();
}

#[test]
fn a_folder_that_cannot_be_written_costs_hints_and_not_the_process() {
    let (dir, net) = (tempfile::tempdir().unwrap(), net(false));
    let keeper = start(dir.path(), &net, options());
    let folder = dir.path().join(folder_name(URLS[1]));
    fs::remove_dir(&folder).unwrap();
    keeper.keep(1, record(1, 1));
    until("it is counted", || keeper.figures(1).dropped == 1);
    assert!(keeper.figures(1).needs_repair);
    fs::create_dir(&folder).unwrap();
    until("the mark is made as soon as it can be", || folder.join("needs-repair").exists());
    keeper.keep(1, record(2, 1));
    until("hints are kept again", || keeper.figures(1).pending == 1);
    keeper.stop();
}

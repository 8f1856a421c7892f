//! Power is lost at random instants: whatever the disk holds then, the store opens, and what a
//! completed sync covered is there.
//!
//! Random workloads (several writers, all sync modes, deletes, expiry, late versions, rolls,
//! sealing, compaction, closing and opening again) run over an environment that can make the image
//! of a power loss, see `sim.rs`. Each image is recovered by the engine as it ships, checked
//! against what was written and acknowledged, and recovered once more. Some workloads go on from an
//! image, so that a life begins with what the loss of another left.
//!
//! What must hold of each image:
//! 1. The store opens.
//! 2. Nothing that a completed sync covered is lost, changed or replaced by an older version, or
//!    answers "damaged".
//! 3. Nothing is there that was never written.
//! 4. A range and single reads agree, and a second recovery finds the same.
//! 5. Nothing is reported as damaged: bits do not flip here.
//!
//! `KOLTSO_POWER_IMAGES` says how many images the large test looks at, 10 000 otherwise. It prints
//! what it counted. The engine's threads run freely, so a seed repeats the workload and not the
//! instants. An image that fails is kept.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod faults;
mod history;
mod sim;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Seen, get, rounds, scan, small};
use history::{Acknowledged, Attempt, History};
use koltso_storage::{Env, Options, Store, SyncBatch, SyncMode, Version, Writer};
use koltso_testkit::random::{Random, seed_or as seed};
use koltso_testkit::wait::soon;
use sim::{Image, PowerEnv};

/// How far back a version may come late; compaction keeps tombstones that long.
const GRACE_MS: u64 = 50;
const KEYS: u64 = 24;
/// How large things are.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    segment: u32,
    value_max: usize,
}

/// A few records fill a segment.
const SMALL: Sizes = Sizes { segment: 16 << 10, value_max: 6 << 10 };
/// A segment has several slices of blocks, which are allocated one after the other.
const LARGE: Sizes = Sizes { segment: 3 << 20, value_max: 400 << 10 };

const WORKLOADS_AT_A_TIME: usize = 4;

/// Images that wait to be looked at.
const WAITING_MAX: usize = 24;

/// An image, and what was known when it was made.
struct Lost {
    acknowledged: Acknowledged,
    now_ms: u64,
    image: Image,
}

/// What the tests count.
#[derive(Debug, Default)]
struct Counts {
    workloads: u64,
    lives: u64,
    images: u64,
    without_folder: u64,
    segments: u64,
    scanned: u64,
    torn_bytes: u64,
    torn_records: u64,
    acknowledged: u64,
    compacted: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.workloads += other.workloads;
        self.lives += other.lives;
        self.images += other.images;
        self.without_folder += other.without_folder;
        self.segments += other.segments;
        self.scanned += other.scanned;
        self.torn_bytes += other.torn_bytes;
        self.torn_records += other.torn_records;
        self.acknowledged += other.acknowledged;
        self.compacted += other.compacted;
    }
}

/// An environment for looking at images: nothing is lost there, and time stands still.
struct Still(u64);

impl Env for Still {
    /// A test waits for its background work, whatever else runs on the machine.
    fn give_way(&self) {}

    fn write_durably(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(file, bytes, offset)
    }

    fn sync(&self, _file: &File) -> io::Result<()> {
        Ok(())
    }

    fn sync_folder(&self, _folder: &Path) -> io::Result<()> {
        Ok(())
    }

    fn now_ms(&self) -> u64 {
        self.0
    }
}

fn options(folder: &Path, env: Arc<dyn Env>, sync: SyncMode) -> Options {
    Options {
        sync,
        env,
        value_max: SMALL.value_max,
        segment_size: SMALL.segment,
        agreed_after: Some(Duration::from_millis(GRACE_MS)),
        reap_interval: Duration::from_millis(1),
        ..small(folder)
    }
}

/// In memory where that is possible: nothing here depends on a disk.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    tempfile::tempdir_in(base).unwrap()
}

/// A write that waits for its log to be on disk.
struct Waiting {
    position: u64,
    key: Vec<u8>,
    version: Version,
}

/// A writer, what it has not seen on disk yet, and a group commit in flight.
struct Client {
    writer: Writer,
    waiting: VecDeque<Waiting>,
    files: HashMap<u64, File>,
    sync: Option<(SyncBatch, Vec<u64>)>,
}

impl Client {
    fn new(store: &Store) -> Self {
        Self::with(store.writer().unwrap())
    }

    fn with(writer: Writer) -> Self {
        Self { writer, waiting: VecDeque::new(), files: HashMap::new(), sync: None }
    }

    /// Acknowledges what is durable.
    fn acknowledge(&mut self, history: &Mutex<History>) {
        let durable = self.writer.durable();
        while self.waiting.front().is_some_and(|waiting| waiting.position <= durable) {
            let done = self.waiting.pop_front().unwrap();
            history.lock().unwrap().acknowledge(&done.key, done.version);
        }
    }

    /// A step of a group commit, as a core does it: begin, one file after another, complete. Others
    /// go on in between.
    fn commit_some(&mut self, env: &PowerEnv) {
        let Some((batch, done)) = &mut self.sync else {
            self.sync = Some((self.writer.begin_sync(), Vec::new()));
            return;
        };
        self.files.retain(|id, _| batch.segments().any(|wanted| wanted == *id));
        let next = batch.segments().find(|id| !done.contains(id));
        match next {
            Some(id) => {
                if !self.files.contains_key(&id) {
                    self.files.extend(batch.take_file(id).map(|file| (id, file)));
                }
                if let Some(file) = self.files.get(&id) {
                    env.sync(file).unwrap();
                }
                done.push(id);
            }
            None => {
                self.writer.complete_sync(batch);
                self.sync = None;
            }
        }
    }
}

/// One workload and everything that comes of it.
struct Workload {
    random: Random,
    dir: tempfile::TempDir,
    history: Arc<Mutex<History>>,
    lost: Arc<Mutex<Vec<Lost>>>,
    clock: u64,
    step: u64,
    images: u64,
    sync: SyncMode,
    /// An image is made in the middle of one in so many calls.
    seen_one_in: u64,
    sizes: Sizes,
}

impl Workload {
    fn new(seed: u64) -> Self {
        let mut random = Random::seeded(seed);
        let sync = match random.below(5) {
            0 => SyncMode::Os,
            1 => SyncMode::Every(Duration::from_millis(random.between(1, 8))),
            _ => SyncMode::Always,
        };
        Self::of(random, sync)
    }

    fn of(random: Random, sync: SyncMode) -> Self {
        Self {
            random,
            dir: scratch(),
            history: Arc::default(),
            lost: Arc::default(),
            clock: 1_000_000,
            step: 0,
            images: 0,
            sync,
            seen_one_in: 12,
            sizes: SMALL,
        }
    }

    fn options(&self, folder: &Path, env: Arc<dyn Env>, sync: SyncMode) -> Options {
        let Sizes { segment, value_max } = self.sizes;
        Options { segment_size: segment, value_max, ..options(folder, env, sync) }
    }

    fn key(&mut self) -> Vec<u8> {
        match self.random.below(KEYS) {
            0 => vec![b'k'; 600],
            number => format!("key{number}").into_bytes(),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        let len = match self.random.below(12) {
            0 => 0,
            1 => self.random.between(self.sizes.value_max / 2, self.sizes.value_max),
            2..5 => self.random.below(1_500),
            _ => self.random.below(200),
        };
        self.random.bytes(len)
    }

    fn write(&mut self, client: &mut Client) {
        self.step += 1;
        let mut version = Version::new((self.clock << 16) | (self.step & 0xffff), 1);
        if self.random.one_in(8) {
            let late = self.clock - self.random.below(GRACE_MS - 5);
            version = Version::new((late << 16) | (self.step & 0xffff), 2);
        }
        let key = self.key();
        let (value, expires_at_ms) = match self.random.below(8) {
            0 | 1 => (None, 0),
            2 => (Some(self.value()), self.clock + self.random.below(40)),
            _ => (Some(self.value()), 0),
        };
        let attempt = Attempt { value: value.as_deref().map(Arc::from), expires_at_ms };
        self.history.lock().unwrap().begin(&key, version, attempt);
        match &value {
            Some(value) => client.writer.put(&key, value, version, expires_at_ms).unwrap(),
            None => client.writer.delete(&key, version).unwrap(),
        };
        client.waiting.push_back(Waiting { position: client.writer.position(), key, version });
    }

    /// Writes a value, or a tombstone, in order.
    fn put(&mut self, client: &mut Client, key: &[u8], value: Option<Vec<u8>>) {
        self.clock += 1;
        let version = Version::new(self.clock << 16, 1);
        let attempt = Attempt { value: value.as_deref().map(Arc::from), expires_at_ms: 0 };
        self.history.lock().unwrap().begin(key, version, attempt);
        match &value {
            Some(value) => client.writer.put(key, value, version, 0).unwrap(),
            None => client.writer.delete(key, version).unwrap(),
        };
        client.waiting.push_back(Waiting { position: client.writer.position(), key: key.to_vec(), version });
    }

    /// Writes records that others replace soon, some of which compaction has to move, and lets the
    /// grace time pass.
    fn churn(&mut self, client: &mut Client, env: &PowerEnv) {
        for _ in 0..8 {
            let filler = format!("filler{}", self.random.below(16_u64)).into_bytes();
            self.put(client, &filler, Some(vec![2; 2_000]));
        }
        client.writer.sync().unwrap();
        client.acknowledge(&self.history);
        self.clock += 2 * GRACE_MS;
        env.now_ms.store(self.clock, Ordering::SeqCst);
    }

    /// One life of the store, until its process ends one way or another.
    fn live(&mut self, folder: &Path, env: &Arc<PowerEnv>, counts: &mut Counts) {
        counts.lives += 1;
        let (store, _) = Store::open(self.options(folder, env.clone(), self.sync)).unwrap();
        let mut clients: Vec<Client> = (0..self.random.between(1, 3)).map(|_| Client::new(&store)).collect();
        for _ in 0..self.random.between(30, 160) {
            let chosen = self.random.below(clients.len());
            match self.random.below(40) {
                0..28 => self.write(&mut clients[chosen]),
                28..34 if self.sync == SyncMode::Always => clients[chosen].commit_some(env),
                34 if self.sync == SyncMode::Always => clients[chosen].writer.sync().unwrap(),
                // Now and then for so long that compaction has another look.
                35 if self.random.one_in(40) => std::thread::sleep(Duration::from_millis(210)),
                35 => std::thread::sleep(Duration::from_micros(self.random.below(3_000))),
                36 => clients[chosen] = Client::new(&store),
                _ => {
                    self.clock += self.random.below(20);
                    env.now_ms.store(self.clock, Ordering::SeqCst);
                }
            }
            // The mode "os" promises nothing but what a stop or a start has seen.
            if self.sync != SyncMode::Os {
                clients.iter_mut().for_each(|client| client.acknowledge(&self.history));
            }
            if self.random.one_in(5) {
                self.lose(env);
            }
            self.look(counts, 8);
        }
        let left: Vec<Waiting> = clients.drain(..).flat_map(|client| client.waiting).collect();
        if self.random.one_in(3) {
            store.close().unwrap();
            let mut history = self.history.lock().unwrap();
            left.iter().for_each(|write| history.acknowledge(&write.key, write.version));
        }
        counts.compacted += store.stats().compacted_segments;
        drop(store);
        self.lose(env);
        self.look(counts, 0);
    }

    /// Notes what a machine may find if the power is lost now.
    fn lose(&self, env: &PowerEnv) {
        lose(env, &self.history, &self.lost);
    }

    /// Looks at images until no more than `left` wait.
    fn look(&mut self, counts: &mut Counts, left: usize) {
        loop {
            let next = {
                let mut lost = self.lost.lock().unwrap();
                if lost.len() > left { lost.pop() } else { None }
            };
            let Some(next) = next else {
                return;
            };
            self.check(&next, counts);
        }
    }

    fn folder(&mut self) -> PathBuf {
        self.images += 1;
        self.dir.path().join(format!("image{}", self.images))
    }

    /// Recovers an image twice and compares it with what it has to hold.
    fn check(&mut self, lost: &Lost, counts: &mut Counts) {
        counts.images += 1;
        counts.acknowledged += lost.acknowledged.len() as u64;
        if !lost.image.has_folder {
            counts.without_folder += 1;
            assert!(lost.acknowledged.is_empty(), "the whole folder is gone");
            return;
        }
        let folder = self.folder();
        lost.image.write_to(&folder);
        if let Err(what) = self.try_check(lost, &folder, counts) {
            let kept = tempfile::Builder::new().prefix("koltso-power-loss-").tempdir().unwrap().keep().join("image");
            lost.image.write_to(&kept);
            panic!("{what}\nmode {:?}, at {}; the image is kept in {}", self.sync, lost.now_ms, kept.display());
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    fn try_check(&mut self, lost: &Lost, folder: &Path, counts: &mut Counts) -> Result<(), String> {
        let quiet = |folder: &Path| Options {
            compaction_dead_share: if self.images.is_multiple_of(8) { 0.2 } else { 1.1 },
            reap_interval: Duration::from_secs(3600),
            ..self.options(folder, Arc::new(Still(lost.now_ms)), self.sync)
        };
        let mut before: Option<BTreeMap<Vec<u8>, Seen>> = None;
        for start in 0..2 {
            let (store, found) = Store::open(quiet(folder)).map_err(|e| format!("it does not open: {e}"))?;
            if found.damaged > 0 {
                return Err(format!("start {start}: {} places are reported as damaged", found.damaged));
            }
            let history = self.history.lock().unwrap();
            let state: BTreeMap<Vec<u8>, Seen> =
                history.keys().map(|key| (key.clone(), get(&store, key, lost.now_ms))).collect();
            for (key, seen) in &state {
                let acknowledged = lost.acknowledged.get(key).copied();
                let verdict = history.judge(key, acknowledged, seen, lost.now_ms);
                verdict.map_err(|what| format!("start {start}, key {}: {what}", String::from_utf8_lossy(key)))?;
            }
            drop(history);
            if before.as_ref().is_some_and(|before| *before != state) {
                return Err(format!("a second recovery finds {state:?}, the first {before:?}"));
            }
            if start == 0 {
                counts.segments += found.segments;
                counts.scanned += found.scanned;
                counts.torn_bytes += found.torn_bytes;
                counts.torn_records += found.torn_records;
                if self.images.is_multiple_of(4) {
                    let in_range = scan(&store, &[0], None, lost.now_ms);
                    let single = state.iter().filter_map(|(key, seen)| match seen {
                        Seen::Value(_, value) => Some((key.clone(), value.clone())),
                        _ => None,
                    });
                    if !in_range.iter().cloned().eq(single) {
                        return Err(format!("a range of {} records for {state:?}", in_range.len()));
                    }
                    store.close().map_err(|e| format!("it does not close: {e}"))?;
                }
                before = Some(state);
            }
        }
        Ok(())
    }

    /// What is there after a start is on disk, and must stay.
    fn begin_again(&mut self, lost: &Lost, folder: &Path) {
        self.lost.lock().unwrap().clear();
        let copy = self.folder();
        lost.image.write_to(&copy);
        let (store, _) = Store::open(self.options(&copy, Arc::new(Still(lost.now_ms)), SyncMode::Os)).unwrap();
        let mut history = self.history.lock().unwrap();
        history.acknowledged = lost.acknowledged.clone();
        let keys: Vec<Vec<u8>> = history.keys().cloned().collect();
        for key in keys {
            if let Seen::Value(version, _) = get(&store, &key, lost.now_ms) {
                history.acknowledge(&key, version);
            }
        }
        drop(store);
        std::fs::remove_dir_all(copy).unwrap();
        lost.image.write_to(folder);
    }

    fn run(mut self, counts: &mut Counts) {
        counts.workloads += 1;
        let mut folder = self.dir.path().join("data0");
        let lives = self.random.between(1, 4);
        let mut env = self.env(&folder);
        for life in 1..=lives {
            self.live(&folder, &env, counts);
            if life < lives && self.random.one_in(2) {
                // The power is lost; otherwise only the process ends, and the kernel keeps all it
                // knows.
                self.lose(&env);
                let lost = self.lost.lock().unwrap().pop().unwrap();
                self.check(&lost, counts);
                if !lost.image.has_folder {
                    return;
                }
                folder = self.dir.path().join(format!("data{life}"));
                self.begin_again(&lost, &folder);
                env = self.env(&folder);
            }
        }
    }

    fn env(&mut self, folder: &Path) -> Arc<PowerEnv> {
        let (history, lost) = (self.history.clone(), self.lost.clone());
        let env = PowerEnv::new(folder, self.random.next(), self.clock);
        Arc::new(env.observed(self.seen_one_in, move |env| lose(env, &history, &lost)))
    }
}

/// In this order: what is acknowledged before the image is made is in it.
fn lose(env: &PowerEnv, history: &Mutex<History>, lost: &Mutex<Vec<Lost>>) {
    if lost.lock().unwrap().len() >= WAITING_MAX {
        return;
    }
    let acknowledged = history.lock().unwrap().acknowledged.clone();
    let image = env.image();
    let now_ms = env.now_ms();
    lost.lock().unwrap().push(Lost { acknowledged, now_ms, image });
}

/// Runs workloads until so many images were looked at, and more than so many bytes of them were torn,
/// which some workloads leave few of.
///
/// Workloads have nothing in common, so some of them run at a time.
fn lose_often(seed: u64, (images, torn_bytes): (u64, u64), workload: impl Fn(u64) -> Workload + Sync) -> Counts {
    let (counts, begun) = (Mutex::new((0, Counts::default())), Instant::now());
    let next = || {
        let (started, counts) = &mut *counts.lock().unwrap();
        let wanted = counts.images < images || (counts.torn_bytes <= torn_bytes && *started < 20);
        let seed = seed.wrapping_add(*started);
        *started += 1;
        wanted.then(|| {
            println!("workload of KOLTSO_SEED={seed}, after {} images", counts.images);
            seed
        })
    };
    std::thread::scope(|scope| {
        for _ in 0..WORKLOADS_AT_A_TIME {
            scope.spawn(|| {
                while let Some(seed) = next() {
                    let mut found = Counts::default();
                    workload(seed).run(&mut found);
                    counts.lock().unwrap().1.add(&found);
                }
            });
        }
    });
    let (_, counts) = counts.into_inner().unwrap();
    println!("{counts:?} in {:?}", begun.elapsed());
    counts
}

#[test]
fn whatever_a_power_loss_leaves_is_recovered() {
    let seed = seed("whatever_a_power_loss_leaves_is_recovered", 1);
    let wanted = std::env::var("KOLTSO_POWER_IMAGES").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000 * rounds(1));
    let counts = lose_often(seed, (wanted, 0), Workload::new);
    assert!(counts.acknowledged > counts.images && counts.scanned > counts.images && counts.torn_bytes > 0);
    assert!(counts.torn_records > 0, "no record was skipped");
    assert!(counts.compacted > 20, "compaction did not take part");
}

#[test]
fn segments_of_several_slices_are_recovered_as_well() {
    let seed = seed("segments_of_several_slices_are_recovered_as_well", 4);
    let counts = lose_often(seed, (120 * rounds(1), u64::from(LARGE.segment)), |seed| Workload {
        sizes: LARGE,
        ..Workload::new(seed)
    });
    assert!(counts.torn_bytes > u64::from(LARGE.segment), "{counts:?}");
}

/// Found by the test above: the folder's own name was not synced, and `FORMAT` could be there in
/// part, which made the folder somebody else's.
#[test]
fn a_first_start_may_lose_power_at_any_instant() {
    let seed = seed("a_first_start_may_lose_power_at_any_instant", 2);
    for round in 0..40 {
        let mut counts = Counts::default();
        let mut workload = Workload::of(Random::seeded(seed.wrapping_add(round)), SyncMode::Always);
        workload.seen_one_in = 1;
        let folder = workload.dir.path().join("data");
        let env = workload.env(&folder);
        let (store, _) = Store::open(options(&folder, env.clone(), workload.sync)).unwrap();
        let mut client = Client::new(&store);
        workload.write(&mut client);
        client.writer.sync().unwrap();
        client.acknowledge(&workload.history);
        for _ in 0..8 {
            workload.lose(&env);
        }
        drop((client, store));
        workload.look(&mut counts, 0);
        assert!(counts.images > 20, "{counts:?}");
    }
}

/// Found by the first test: compaction removed segments whose copies had no durable names, and
/// dropped tombstones while the names of segments with older versions could come back.
#[test]
fn compaction_in_the_mode_os_loses_nothing_that_was_on_disk() {
    let seed = seed("compaction_in_the_mode_os_loses_nothing_that_was_on_disk", 3);
    let counts = lose_often(seed, (500 * rounds(1), 0), |seed| Workload::of(Random::seeded(seed), SyncMode::Os));
    assert!(counts.compacted > 0, "{counts:?}");
}

/// The older version lies in a segment that compaction removed, the tombstone in one that it
/// removed after that. If the first name could come back without the second, so would the key.
#[test]
fn a_deleted_key_does_not_come_back_with_the_name_of_a_removed_segment() {
    let mut workload = Workload::of(Random::seeded(7), SyncMode::Always);
    workload.seen_one_in = 3;
    let folder = workload.dir.path().join("data");
    let env = workload.env(&folder);
    let (store, _) = Store::open(options(&folder, env.clone(), SyncMode::Always)).unwrap();
    let mut client = Client::new(&store);
    let mut counts = Counts::default();
    for round in 0..rounds(8) {
        let key = |number: u64| format!("round{round}/{number}").into_bytes();
        // Values in segments of their own, then their tombstones among others.
        for number in 0..10 {
            workload.put(&mut client, &key(number), Some(vec![1; 3_000]));
        }
        for number in 0..10 {
            workload.put(&mut client, &key(number), None);
        }
        // Compaction moves a tombstone that cannot go yet, so its log has to roll as well: it gets
        // something to move.
        soon("tombstones are dropped", || {
            workload.churn(&mut client, &env);
            workload.lose(&env);
            workload.look(&mut counts, 0);
            store.stats().tombstones < 10
        });
        for _ in 0..20 {
            workload.lose(&env);
            workload.look(&mut counts, 0);
        }
    }
    println!("{counts:?}");
    assert!(store.stats().compacted_segments > 20, "{:?}", store.stats());
}

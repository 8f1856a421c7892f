//! The engines against threads whose doings are known. Tests that need what the machine does not permit say so and pass.
//!
//! Shares are held against the threads' own CPU time (`schedstat`), so a busy machine does not matter. One test at a time: they share
//! the process that is measured.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use koltso_profiling::capture::{Capture, Place, Sample};
use koltso_profiling::engine::{self, CpuEngine, CpuRequest, EngineError};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

#[inline(never)]
fn burn(rounds: u64) -> u64 {
    let mut x = black_box(rounds) | 1;
    for _ in 0..rounds {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        x ^= x >> 29;
    }
    black_box(x)
}

#[inline(never)]
fn a_hot_leaf(rounds: u64) -> u64 {
    let mut x = black_box(rounds) | 1;
    for _ in 0..rounds {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        x ^= x >> 31;
    }
    black_box(x)
}

/// A thread that does something again and again, and its id.
struct Worker {
    stop: Arc<AtomicBool>,
    tid: u32,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn new(name: &str, mut turn: impl FnMut() + Send + 'static) -> Self {
        let (stop, tid) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopped, told) = (Arc::clone(&stop), Arc::clone(&tid));
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let own = std::fs::read_link("/proc/thread-self").expect("proc");
            let own = own.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            told.store(own.expect("a thread id"), Ordering::Release);
            while !stopped.load(Ordering::Relaxed) {
                turn();
            }
        });
        while tid.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        let tid = tid.load(Ordering::Acquire);
        Self { stop, tid, thread: Some(thread.expect("a thread")) }
    }

    fn cpu_ns(&self) -> u64 {
        let schedstat = std::fs::read_to_string(format!("/proc/self/task/{}/schedstat", self.tid)).expect("proc");
        schedstat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("nanoseconds")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
    }
}

/// All the time in `a_hot_leaf`.
fn hot() -> Worker {
    Worker::new("hot", || {
        black_box(a_hot_leaf(20_000));
    })
}

/// A quarter of the rounds in `a_hot_leaf`, the others in `burn`, in short turns of uneven length.
fn quarter() -> Worker {
    let mut turn = 0_u64;
    Worker::new("quarter", move || {
        turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let rounds = 2_000 + (turn >> 33) % 3_000;
        black_box(a_hot_leaf(rounds));
        black_box(burn(rounds * 3));
    })
}

fn request(seconds: u32, hz: u32) -> CpuRequest {
    CpuRequest { seconds, hz, stop: Arc::default() }
}

/// Whether perf events may be used; says so if not.
fn perf() -> bool {
    let (engine, why) = engine::cpu_engine();
    if engine != CpuEngine::Perf {
        println!("skipped: {why}");
    }
    engine == CpuEngine::Perf
}

fn of_thread<'a>(capture: &'a Capture, tid: u32) -> impl Iterator<Item = &'a Sample> {
    capture.samples.iter().filter(move |sample| capture.threads[usize::from(sample.thread.0)].tid == tid)
}

fn has(capture: &Capture, sample: &Sample, function: &str) -> bool {
    capture.stack_at(sample.stack).iter().any(|&frame| capture.frame_at(frame).function.contains(function))
}

fn sum<'a>(samples: impl Iterator<Item = &'a Sample>) -> f64 {
    samples.map(|sample| sample.values[1] as f64).sum()
}

fn print(capture: &Capture) {
    println!("{}", capture.engine);
    let mut folded = capture.folded();
    folded.sort_unstable_by_key(|sample| std::cmp::Reverse(sample.values[1]));
    for sample in folded.iter().take(6) {
        let names: Vec<_> =
            capture.stack_at(sample.stack).iter().map(|&frame| &*capture.frame_at(frame).function).collect();
        println!(
            "{:>11} {} {}",
            sample.values[1],
            capture.threads[usize::from(sample.thread.0)].name,
            names.join(" < ")
        );
    }
}

/// The share of all CPU time that is in `a_hot_leaf`, against what the threads' own time says.
fn shares(engine: CpuEngine, hz: u32, seconds: u32) {
    let (hot, quarter) = (hot(), quarter());
    let before = (hot.cpu_ns(), quarter.cpu_ns());
    let capture = engine::capture_cpu_by(engine, &request(seconds, hz)).expect("a capture");
    let used = ((hot.cpu_ns() - before.0) as f64, (quarter.cpu_ns() - before.1) as f64);
    let quarter_share = {
        // What a quarter of the rounds is in time, here and now.
        let time = |function: fn(u64) -> u64, rounds| {
            let best = (0..5).map(|_| {
                let began = Instant::now();
                black_box(function(rounds));
                began.elapsed()
            });
            best.min().expect("five").as_secs_f64()
        };
        let (leaf, other) = (time(a_hot_leaf, 400_000), time(burn, 1_200_000));
        leaf / (leaf + other)
    };
    print(&capture);
    let (mine, theirs) = (sum(of_thread(&capture, hot.tid)), sum(of_thread(&capture, quarter.tid)));
    let leaves = |tid| sum(of_thread(&capture, tid).filter(|sample| has(&capture, sample, "a_hot_leaf")));
    let all = mine + theirs;
    let found = (leaves(hot.tid) + leaves(quarter.tid)) / all;
    let expected = (used.0 + used.1 * quarter_share) / (used.0 + used.1);
    println!(
        "{engine:?} {hz} Hz: found {found:.3}, expected {expected:.3} (a quarter is {quarter_share:.3}), {all:.0} ns"
    );
    assert!((found - expected).abs() < 0.03, "found {found}, expected {expected}");
    assert!((mine / all - used.0 / (used.0 + used.1)).abs() < 0.03, "threads: {mine} and {theirs}, not {used:?}");

    let total = capture.total(1) as f64;
    let off = (total / capture.accounted_ns as f64 - 1.0).abs();
    // One sample more or less on each processor is nobody's fault.
    let grain = 2.0 * capture.period.expect("a period").1 as f64 / capture.accounted_ns as f64;
    assert!(off < 0.05 + grain, "samples add up to {total} ns, schedstat to {}", capture.accounted_ns);

    let rooted = capture.samples.iter().filter(|sample| {
        ["thread_start", "_start", "clone", "ret_from_fork"].iter().any(|root| has(&capture, sample, root))
    });
    let rooted = rooted.count() as f64 / capture.samples.len() as f64;
    assert!(rooted >= 0.95, "{rooted} of the stacks reach the thread's entry");
    assert!(capture.samples.is_sorted_by_key(|sample| sample.at_ns));
    assert!(capture.samples.iter().all(|sample| sample.at_ns <= capture.duration_ns + 50_000_000));
    assert_eq!(capture.dropped, 0);
}

#[test]
fn perf_finds_the_hot_leaf_at_99_hz() {
    let _alone = alone();
    if perf() {
        shares(CpuEngine::Perf, 99, 4);
    }
}

#[test]
fn perf_finds_the_hot_leaf_at_999_hz() {
    let _alone = alone();
    if perf() {
        shares(CpuEngine::Perf, 999, 2);
    }
}

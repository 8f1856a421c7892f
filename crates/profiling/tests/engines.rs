//! The engines, tested with threads whose work is known. Tests for which the machine lacks
//! permissions say so and pass.
//!
//! Shares are compared with the threads' own CPU time (`schedstat`), so a busy machine does not
//! matter. One test runs at a time, since they share the process that is measured.

use std::hint::black_box;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use koltso_profiling::capture::{Capture, FramePlace, Sample};
use koltso_profiling::engine::{self, CpuEngine, CpuRequest, EngineError};
use koltso_profiling::offcpu::{self, OffCpuRequest};
use koltso_profiling::symbols::Symbols;
use koltso_testkit::{Remedy, skip};

const KERNEL_NAMES: Remedy = Remedy::Machine("io_uring and kernel names: kernel.kptr_restrict of 0, or CAP_SYSLOG");

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

/// A thread that does the same work again and again, and its id.
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

/// Waits 50 ms for events that do not come.
#[allow(unsafe_code)]
fn idle_in_epoll() {
    // SAFETY: the descriptor is open between the calls, and there is room for the one event.
    unsafe {
        let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        libc::epoll_wait(epoll, &mut event, 1, 50);
        libc::close(epoll);
    }
}

/// Waits 50 ms for a completion; returns whether io_uring may be used.
#[allow(unsafe_code)]
fn idle_in_io_uring() -> bool {
    let Ok(mut ring) = io_uring::IoUring::new(2) else { return false };
    let time = io_uring::types::Timespec::new().nsec(50_000_000);
    let entry = io_uring::opcode::Timeout::new(&time).build();
    // SAFETY: the kernel reads the time when the entry is submitted, below, while it still exists.
    unsafe { ring.submission().push(&entry).expect("room") };
    ring.submit_and_wait(1).is_ok()
}

/// Spends all its time in `a_hot_leaf`.
fn hot() -> Worker {
    Worker::new("hot", || {
        black_box(a_hot_leaf(20_000));
    })
}

/// Spends a quarter of the rounds in `a_hot_leaf` and the others in `burn`, in short turns of
/// uneven length.
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

/// Whether perf events may be used; if not, that is recorded as skipped.
fn perf() -> bool {
    let (engine, why) = engine::cpu_engine();
    if engine != CpuEngine::Perf {
        skip(why, Remedy::Machine("perf events: CAP_PERFMON, or kernel.perf_event_paranoid of 0 or less"));
    }
    engine == CpuEngine::Perf
}

fn of_thread(capture: &Capture, tid: u32) -> impl Iterator<Item = &Sample> {
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

/// Compares the share of all CPU time that is in `a_hot_leaf` with what the threads' own CPU time
/// says.
///
/// It must agree within 3 points and 5 %. A sample is a throw of dice if others use the processors
/// too, so there may be several captures, whose sums count: the part of chance gets small, and
/// systematic errors stay.
fn shares(engine: CpuEngine, hz: u32, seconds: u32) {
    const TRIES: u32 = 6;
    let (hot, quarter) = (hot(), quarter());
    let mut sums = Sums::default();
    let mut wrong = None;
    for _ in 0..TRIES {
        measure(engine, hz, seconds, &hot, &quarter, &mut sums);
        wrong = sums.wrong();
        if wrong.is_none() {
            return;
        }
    }
    panic!("{wrong:?} after {TRIES} captures: {sums:?}");
}

/// Nanoseconds, by the samples and as they really are.
#[derive(Debug, Default)]
struct Sums {
    hot: f64,
    quarter: f64,
    leaf: f64,
    total: f64,
    used_hot: f64,
    used_quarter: f64,
    used_leaf: f64,
    accounted: f64,
}

impl Sums {
    fn wrong(&self) -> Option<String> {
        let (all, used) = (self.hot + self.quarter, self.used_hot + self.used_quarter);
        let (leaf, is) = (self.leaf / all, self.used_leaf / used);
        let (thread, is_thread) = (self.hot / all, self.used_hot / used);
        let total = self.total / self.accounted;
        let text =
            format!("leaf {leaf:.3}, is {is:.3}; thread {thread:.3}, is {is_thread:.3}; total {total:.3} of accounted");
        println!("{text}");
        let right = (leaf - is).abs() < 0.03 && (thread - is_thread).abs() < 0.03 && (total - 1.0).abs() < 0.05;
        (!right).then_some(text)
    }
}

fn measure(engine: CpuEngine, hz: u32, seconds: u32, hot: &Worker, quarter: &Worker, sums: &mut Sums) {
    let before = (hot.cpu_ns(), quarter.cpu_ns());
    let capture = engine::capture_cpu_by(engine, &request(seconds, hz)).expect("a capture");
    let used = ((hot.cpu_ns() - before.0) as f64, (quarter.cpu_ns() - before.1) as f64);
    // What a quarter of the rounds is in time, on this machine now: the shortest of many short
    // measurements, which nobody interrupted.
    let time = |function: fn(u64) -> u64, rounds| {
        let once = |_| {
            let began = Instant::now();
            black_box(function(rounds));
            began.elapsed()
        };
        (0..500).map(once).min().expect("some").as_secs_f64()
    };
    let (leaf, other) = (time(a_hot_leaf, 10_000), time(burn, 30_000));
    let a_quarter = leaf / (leaf + other);
    print(&capture);

    // These must hold each time.
    let roots = ["thread_start", "_start", "clone", "ret_from_fork"];
    let rooted = capture.samples.iter().filter(|sample| roots.iter().any(|root| has(&capture, sample, root)));
    let rooted = rooted.count() as f64 / capture.samples.len() as f64;
    assert!(rooted >= 0.95, "{rooted} of the stacks reach the thread's entry");
    assert!(capture.samples.is_sorted_by_key(|sample| sample.at_ns));
    assert!(capture.samples.iter().all(|sample| sample.at_ns <= capture.duration_ns + 50_000_000));
    assert_eq!((capture.dropped, capture.lost), (0, 0));

    let leaves = |tid| sum(of_thread(&capture, tid).filter(|sample| has(&capture, sample, "a_hot_leaf")));
    sums.hot += sum(of_thread(&capture, hot.tid));
    sums.quarter += sum(of_thread(&capture, quarter.tid));
    sums.leaf += leaves(hot.tid) + leaves(quarter.tid);
    sums.total += capture.total(1) as f64;
    sums.used_hot += used.0;
    sums.used_quarter += used.1;
    sums.used_leaf += used.0 + used.1 * a_quarter;
    sums.accounted += capture.accounted_ns as f64;
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

#[test]
fn signals_find_the_hot_leaf_at_99_hz() {
    let _alone = alone();
    shares(CpuEngine::Signals, 99, 4);
}

#[test]
fn signals_find_the_hot_leaf_at_999_hz() {
    let _alone = alone();
    shares(CpuEngine::Signals, 999, 2);
}

#[test]
fn system_calls_show_kernel_functions() {
    let _alone = alone();
    if !perf() {
        return;
    }
    if !Symbols::kernel_named() {
        return skip("the kernel names no functions", KERNEL_NAMES);
    }
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    let worker = Worker::new("writes", move || {
        let mut block = [0; 4096];
        writer.write_all(&block).expect("room");
        reader.read_exact(&mut block).expect("what was written");
    });
    let capture = engine::capture_cpu(&request(1, 499)).expect("a capture");
    print(&capture);
    let in_kernel = |sample: &&Sample| {
        let frames = capture.stack_at(sample.stack).iter().map(|&frame| capture.frame_at(frame));
        frames.clone().any(|frame| frame.place == FramePlace::Kernel && frame.function.contains("write"))
            && frames.clone().any(|frame| frame.place != FramePlace::Kernel)
    };
    let writes = sum(of_thread(&capture, worker.tid).filter(in_kernel));
    let all = sum(of_thread(&capture, worker.tid));
    assert!(writes > 0.1 * all, "{writes} ns of {all} in a kernel's write below the program's stack");
    assert_eq!(&*capture.threads.iter().find(|thread| thread.tid == worker.tid).expect("the thread").name, "writes");
    assert!(capture.mappings.iter().any(|mapping| mapping.file.contains("engines")));
}

#[test]
fn off_cpu_shows_who_waits_for_a_mutex_and_not_who_waits_for_work() {
    let _alone = alone();
    let ask = |idle| offcpu::capture_off_cpu(&OffCpuRequest { seconds: 1, idle, stop: Arc::default() });
    let lock = Arc::new(Mutex::new(()));
    let (mine, theirs) = (Arc::clone(&lock), Arc::clone(&lock));
    let holder = Worker::new("holder", move || {
        let guard = mine.lock().expect("no panic");
        std::thread::sleep(Duration::from_millis(20));
        drop(guard);
        std::thread::sleep(Duration::from_millis(2));
    });
    let waiter = Worker::new("waiter", move || {
        drop(theirs.lock().expect("no panic"));
    });
    let idler = Worker::new("idler", idle_in_epoll);
    let ring = Symbols::kernel_named() && idle_in_io_uring();
    let core = Worker::new("core", move || match ring {
        true => assert!(idle_in_io_uring()),
        false => std::thread::park_timeout(Duration::from_millis(50)),
    });
    let capture = match ask(false) {
        Ok(capture) => capture,
        Err(EngineError::Forbidden { capability, detail }) => {
            skip(format!("{capability}: {detail}"), Remedy::Root);
            assert!(!capability.is_empty() && !detail.is_empty());
            return;
        }
        Err(error) => panic!("{error}"),
    };
    print(&capture);
    let waited = sum(of_thread(&capture, waiter.tid).filter(|sample| has(&capture, sample, "futex")));
    let slept = sum(of_thread(&capture, holder.tid).filter(|sample| has(&capture, sample, "sleep")));
    assert!(waited > 0.4e9, "{waited} ns in the lock");
    assert!(slept > 0.7e9, "{slept} ns asleep");
    assert!(
        of_thread(&capture, waiter.tid)
            .any(|sample| has(&capture, sample, "mutex::lock") || has(&capture, sample, "Mutex"))
    );
    assert_eq!(of_thread(&capture, idler.tid).filter(|sample| has(&capture, sample, "epoll_wait")).count(), 0);
    let with_idle = ask(true).expect("permitted a moment ago");
    let idle = sum(of_thread(&with_idle, idler.tid).filter(|sample| has(&with_idle, sample, "epoll_wait")));
    assert!(idle > 0.7e9 && !with_idle.engine.contains("left out"), "{idle} ns in epoll_wait");
    if ring {
        let in_ring = |capture: &Capture| {
            sum(of_thread(capture, core.tid).filter(|sample| has(capture, sample, "io_cqring_wait")))
        };
        assert!(in_ring(&capture) == 0.0 && in_ring(&with_idle) > 0.7e9, "{} ns", in_ring(&with_idle));
    } else {
        skip("no waiting in io_uring, for want of kernel names or io_uring", KERNEL_NAMES);
    }
    let of_all = sum(of_thread(&capture, waiter.tid));
    assert!(of_all < 1.2e9, "one thread waits one second a second, not {of_all} ns");
}

#[test]
fn off_cpu_is_bounded_whatever_the_rate_of_switches() {
    let _alone = alone();
    // Two threads pass one byte back and forth: each hand-over is a switch.
    let ((mut from_one, mut to_two), (mut from_two, mut to_one)) =
        (std::io::pipe().expect("a pipe"), std::io::pipe().expect("a pipe"));
    let there = Worker::new("there", move || {
        // This fails when the other thread has gone.
        let _ = to_two.write_all(&[1]).and_then(|()| from_two.read_exact(&mut [0]));
    });
    let back = Worker::new("back", move || {
        let _ = from_one.read_exact(&mut [0]).and_then(|()| to_one.write_all(&[1]));
    });
    match offcpu::capture_off_cpu(&OffCpuRequest { seconds: 2, idle: false, stop: Arc::default() }) {
        Ok(capture) => {
            println!("{} samples; {}", capture.samples.len(), capture.engine);
            // The contents of each processor's ring may come on top, each second.
            let beyond = 2048 * std::thread::available_parallelism().expect("processors").get();
            assert!(capture.samples.len() < 3 * (offcpu::RATE_MAX as usize + beyond));
            for tid in [there.tid, back.tid] {
                let waited = sum(of_thread(&capture, tid));
                assert!(waited <= capture.duration_ns as f64 * 1.01, "{waited} ns in {}", capture.duration_ns);
            }
        }
        Err(error @ EngineError::Forbidden { .. }) => skip(error, Remedy::Root),
        Err(error) => panic!("{error}"),
    }
    // Both threads may end: whichever stops first closes its ends.
    there.stop.store(true, Ordering::Relaxed);
    back.stop.store(true, Ordering::Relaxed);
}

#[test]
fn a_stop_ends_a_capture_with_what_there_is() {
    let _alone = alone();
    let _hot = hot();
    for engine in [CpuEngine::Perf, CpuEngine::Signals] {
        if engine == CpuEngine::Perf && !perf() {
            continue;
        }
        let request = request(30, 99);
        let stop = Arc::clone(&request.stop);
        let began = Instant::now();
        let stopper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(700));
            stop.store(true, Ordering::Relaxed);
        });
        let capture = engine::capture_cpu_by(engine, &request).expect("a capture");
        stopper.join().expect("no panic");
        println!("{:?} for a capture of {} ms", began.elapsed(), capture.duration_ns / 1_000_000);
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        assert!(capture.duration_ns < 5_000_000_000 && !capture.samples.is_empty(), "{}", capture.engine);
    }
}

#[test]
fn two_captures_at_once_see_the_same() {
    let _alone = alone();
    let hot = hot();
    for engine in [CpuEngine::Perf, CpuEngine::Signals] {
        if engine == CpuEngine::Perf && !perf() {
            continue;
        }
        let other = std::thread::spawn(move || engine::capture_cpu_by(engine, &request(1, 199)));
        let one = engine::capture_cpu_by(engine, &request(1, 499)).expect("a capture");
        let other = other.join().expect("no panic").expect("another capture");
        for capture in [one, other] {
            let found = sum(of_thread(&capture, hot.tid).filter(|sample| has(&capture, sample, "a_hot_leaf")));
            assert!(found > 0.8 * sum(of_thread(&capture, hot.tid)) && found > 0.1e9, "{found} ns; {}", capture.engine);
        }
    }
}

#[test]
fn numbers_outside_their_range_are_refused() {
    for (seconds, hz, wrong) in [(0, 99, "seconds"), (301, 99, "seconds"), (1, 0, "hz"), (1, 1000, "hz")] {
        match engine::capture_cpu(&request(seconds, hz)) {
            Err(EngineError::OutOfRange { name, .. }) => assert_eq!(name, wrong),
            other => panic!("{other:?}"),
        }
    }
}

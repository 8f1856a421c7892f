//! Stalls of threads that are not real cores: counted, measured, named and bounded; and no wake-ups
//! while nothing happens.
//!
//! The watcher asks for stacks by signals, and a process has one asker: the tests take turns.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use koltso_profiling::capture::{Event, FramePlace};
use koltso_profiling::stalls::{KEPT_MAX, Stall, Stalls, TurnRecorder, capture, text};
use koltso_profiling::symbols::Symbols;
use koltso_testkit::{Remedy, skip};

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn turn(core: &TurnRecorder, quiet: bool, work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    core.began(began, quiet);
    work();
    let ended = Instant::now();
    core.ended(ended);
    ended - began
}

/// Runs a function on a thread that is registered as a core.
fn on_core<T: Send>(stalls: &Stalls, number: usize, run: impl FnOnce(&TurnRecorder) -> T + Send) -> T {
    std::thread::scope(|scope| {
        let body = || run(&stalls.join(number));
        let thread = std::thread::Builder::new().name(format!("test-core-{number}")).spawn_scoped(scope, body);
        thread.unwrap().join().unwrap()
    })
}

/// Waits until this many stalls are kept.
fn kept(stalls: &Stalls, count: usize) -> Vec<Arc<Stall>> {
    let begun = Instant::now();
    loop {
        let list = stalls.list();
        if list.len() >= count {
            return list;
        }
        assert!(begun.elapsed() < ms(5000), "{} of {count} stalls", list.len());
        std::thread::sleep(ms(2));
    }
}

#[inline(never)]
fn a_known_sleep(duration: Duration) {
    std::thread::sleep(duration);
    std::hint::black_box(());
}

#[inline(never)]
fn a_known_loop(duration: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < duration {
        // (No iterator: its inlined frames would leave no room for this function in a place.)
        let mut n = 0;
        while n < 100_000 {
            n = std::hint::black_box(n + 1);
        }
    }
}

#[test]
fn a_stall_is_counted_measured_and_named_whether_the_core_runs_or_waits() {
    let _alone = alone();
    let reported = Arc::new(Mutex::new(Vec::new()));
    let tells = reported.clone();
    let stalls = Stalls::watch(ms(20), move |stall| tells.lock().unwrap().push(stall.clone())).unwrap();
    let lasted = on_core(&stalls, 3, |core| {
        // The watcher may look at a core that has just joined up to 5 ms late.
        turn(core, false, || {});
        std::thread::sleep(ms(20));
        let slept = turn(core, false, || a_known_sleep(ms(200)));
        turn(core, false, || {});
        let looped = turn(core, false, || a_known_loop(ms(200)));
        kept(&stalls, 2);
        [slept, looped]
    });
    assert_eq!(stalls.count(), 2);
    assert_eq!(stalls.longest().as_millis(), lasted.iter().max().unwrap().as_millis());
    let list = stalls.list();
    assert_eq!(*reported.lock().unwrap(), list);
    let mut symbols = Symbols::new();
    for ((stall, lasted), function) in list.iter().zip(lasted).zip(["a_known_sleep", "a_known_loop"]) {
        assert_eq!((stall.core, &*stall.thread.name), (3, "test-core-3"));
        assert!(stall.duration.abs_diff(lasted) < ms(1), "{:?} for {lasted:?}", stall.duration);
        let place = stall.place(&mut symbols);
        assert!(place.contains(function), "{function}: {place}");
    }
    let text = text(&list, &mut symbols);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("a_known_loop") && lines[1].contains(" core 3 "), "{text}");

    let capture = capture(&stalls, &mut symbols);
    assert_eq!(
        (capture.event, capture.event.name(), &*capture.types[1].unit),
        (Event::Stalls, "stalls", "nanoseconds")
    );
    assert_eq!(capture.total(0), 2);
    let whole: u128 = list.iter().map(|stall| stall.duration.as_nanos()).sum();
    assert_eq!(u128::try_from(capture.total(1)).unwrap(), whole, "every nanosecond of a stall has a stack");
    // The function's share: the first sample also stands for the time before it.
    for function in ["a_known_sleep", "a_known_loop"] {
        let in_it = |stack: &[koltso_profiling::capture::FrameId]| {
            stack.iter().any(|&id| capture.frame_at(id).function.ends_with(function))
        };
        let samples = capture.samples.iter().filter(|sample| in_it(capture.stack_at(sample.stack)));
        let (count, share) = samples.fold((0, 0), |(n, sum), sample| (n + 1, sum + sample.values[1]));
        assert!(count > 2, "{function} has {count} samples of 180 ms");
        assert!(share > 190_000_000, "{function} has {share} ns of 200 ms");
    }
    let kernel_told = std::fs::read_to_string("/proc/self/stack").is_ok_and(|stack| stack.contains('+'));
    let in_kernel = capture.frames().iter().any(|f| f.place == FramePlace::Kernel && f.function.contains("nanosleep"));
    assert!(in_kernel || !kernel_told, "the kernel tells where a thread sleeps");
}

/// Nanoseconds for which the calling thread has waited for a processor; `None` if the kernel does
/// not say.
fn own_delay_ns() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Lets the calling thread and those that it starts run on one processor only.
#[allow(unsafe_code)]
fn stay_on_one_processor() {
    // SAFETY: a plain number; then the kernel reads a set of the size given, for which all zeros is a
    // value.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(usize::try_from(libc::sched_getcpu()).unwrap_or(0), &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &set), 0);
    }
}

/// How much a thread really waits in a turn is what the kernel says before and after it, and a stall
/// never claims more. That a machine is busy changes how many turns this takes, not what is found.
#[test]
fn a_core_that_is_not_given_the_processor_is_told_from_one_that_is_busy() {
    let _alone = alone();
    if own_delay_ns().is_none() {
        return skip("the kernel keeps no schedstat", Remedy::Machine("a kernel with CONFIG_SCHED_INFO"));
    }
    let stalls = Stalls::watch(ms(20), |_| {}).unwrap();
    let stop = AtomicBool::new(false);
    on_core(&stalls, 0, |core| {
        let mut taken = 0;
        let mut stall = |work: &dyn Fn()| {
            let before = own_delay_ns().unwrap();
            let lasted = turn(core, false, work);
            let really = Duration::from_nanos(own_delay_ns().unwrap() - before);
            taken += usize::from(lasted > ms(20));
            let stall = kept(&stalls, taken)[taken - 1].clone();
            assert!(stall.waited <= really && stall.waited <= stall.duration, "{stall:?} of {really:?}");
            (stall, really)
        };
        // Blocked, not waiting for a processor.
        let (slept, really) = stall(&|| a_known_sleep(ms(100)));
        assert!(!slept.was_kept_waiting() || really > ms(50), "{slept:?}");
        stay_on_one_processor();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        std::hint::black_box(0);
                    }
                });
            }
            let waited = (0..50).any(|_| stall(&|| a_known_loop(ms(200))).0.was_kept_waiting());
            stop.store(true, Ordering::Relaxed);
            assert!(waited, "four others on its processor, and no stall in 50 was for want of it");
        });
    });
    let waited = stalls.list().iter().filter(|stall| stall.was_kept_waiting()).count() as u64;
    assert_eq!(stalls.kept_waiting(), waited);
    let text = text(&stalls.list(), &mut Symbols::new());
    assert!(text.contains(" ms of it without the processor  "), "{text}");
}

#[test]
fn turns_below_the_bound_are_no_stalls_and_the_wait_between_them_is_none() {
    let _alone = alone();
    let stalls = Stalls::watch(ms(60), |_| {}).unwrap();
    on_core(&stalls, 0, |core| {
        for _ in 0..50 {
            turn(core, false, || {});
            std::thread::sleep(ms(2));
        }
        turn(core, true, || {});
        std::thread::sleep(ms(150));
    });
    assert_eq!((stalls.count(), stalls.list().len(), stalls.longest()), (0, 0, Duration::ZERO));
    assert_eq!(stalls.bound(), ms(60));
}

#[test]
fn the_last_stalls_are_kept_and_all_are_counted() {
    let _alone = alone();
    let stalls = Stalls::watch(ms(1), |_| {}).unwrap();
    let more = 6;
    on_core(&stalls, 0, |core| {
        let long_ago = Instant::now();
        for n in 0..KEPT_MAX + more {
            // The turn is over at once but began long ago: there is nothing to sample.
            core.began(long_ago, false);
            std::thread::sleep(Duration::from_micros(if n == 0 { 2000 } else { 200 }));
            core.ended(Instant::now());
        }
        let begun = Instant::now();
        while stalls.list().len() < KEPT_MAX {
            assert!(begun.elapsed() < ms(5000));
            std::thread::sleep(ms(2));
        }
    });
    assert_eq!(stalls.count(), (KEPT_MAX + more) as u64);
    assert_eq!(stalls.list().len(), KEPT_MAX);
    let capture = capture(&stalls, &mut Symbols::new());
    assert_eq!(capture.total(0), KEPT_MAX as i64);
}

/// The wake-ups of the watcher's thread, which is the only one of that name while a test runs
/// alone.
fn watcher_switches() -> u64 {
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        if std::fs::read_to_string(task.path().join("comm")).unwrap_or_default().trim() == "koltso-stalls" {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            return line.trim().parse().unwrap();
        }
    }
    panic!("no watcher");
}

#[test]
fn a_watcher_of_idle_cores_sleeps_and_wakes_for_a_turn() {
    let _alone = alone();
    let stalls = Stalls::watch(ms(20), |_| {}).unwrap();
    on_core(&stalls, 0, |core| {
        turn(core, false, || {});
        std::thread::sleep(ms(1500));
        let before = watcher_switches();
        for _ in 0..30 {
            // Turns for timers and peers do not wake it.
            turn(core, true, || {});
            std::thread::sleep(ms(100));
        }
        let idle = watcher_switches() - before;
        assert!(idle <= 1, "{idle} wake-ups in 3 s without a turn");
        // The first turn after that is watched already.
        turn(core, false, || a_known_sleep(ms(100)));
        let place = kept(&stalls, 1)[0].place(&mut Symbols::new());
        assert!(place.contains("a_known_sleep"), "{place}");
        let looks = watcher_switches();
        assert!(looks > before + 5);
        // So is one that has begun quietly.
        std::thread::sleep(ms(1500));
        core.began(Instant::now(), true);
        core.busy();
        a_known_sleep(ms(100));
        core.ended(Instant::now());
        let place = kept(&stalls, 2)[1].place(&mut Symbols::new());
        assert!(place.contains("a_known_sleep"), "{place}");
    });
}

#[test]
fn cores_come_and_go_while_others_stall() {
    let _alone = alone();
    let (stalls, stop) = (Stalls::watch(ms(5), |_| {}).unwrap(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    on_core(&stalls, 1, |core| turn(core, false, || a_known_sleep(ms(8))));
                }
            });
        }
        let begun = Instant::now();
        while stalls.count() < 40 {
            assert!(begun.elapsed() < ms(20_000), "{} stalls", stalls.count());
            std::thread::sleep(ms(10));
        }
        stop.store(true, Ordering::Relaxed);
    });
    for stall in stalls.list() {
        assert!(stall.duration >= ms(8) && stall.core == 1, "{stall:?}");
    }
}

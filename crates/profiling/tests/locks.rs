//! Named locks under contention, named waits, and which capture has which of them.
#![allow(clippy::unwrap_used)]

mod names;

use std::sync::Barrier;
use std::time::{Duration, Instant};

use koltso_instrument::{Mutex, RwLock, waited_for, waiting};
use koltso_profiling::capture::{Capture, Event, Sample, ValueType};
use koltso_profiling::locks;
use names::{Names, with};

static THIRTY: Mutex<u64> = Mutex::new(&"thirty", 0);
static SEVENTY: RwLock<u64> = RwLock::new(&"seventy", 0);

#[inline(never)]
fn waits_for_thirty() -> u64 {
    let began = Instant::now();
    *THIRTY.lock() += 1;
    began.elapsed().as_nanos() as u64
}

#[inline(never)]
fn waits_for_seventy(read: bool) -> u64 {
    let began = Instant::now();
    if read {
        assert!(*SEVENTY.read() < 1000)
    } else {
        *SEVENTY.write() += 1
    }
    began.elapsed().as_nanos() as u64
}

fn names_of<'a>(capture: &'a Capture, sample: &Sample) -> Vec<&'a str> {
    capture.stack_at(sample.stack).iter().map(|id| &*capture.frame_at(*id).function).collect()
}

#[test]
fn contended_locks_have_their_shares() {
    let before = locks::snapshot();
    let (taken, given) = (Barrier::new(2), Barrier::new(2));
    let (mut thirty_ns, mut seventy_ns) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..60 {
                let guard = THIRTY.lock();
                taken.wait();
                std::thread::sleep(Duration::from_millis(3));
                drop(guard);
                given.wait();
                let guard = SEVENTY.write();
                taken.wait();
                std::thread::sleep(Duration::from_millis(7));
                drop(guard);
                given.wait();
            }
        });
        for i in 0..60 {
            taken.wait();
            thirty_ns += waits_for_thirty();
            given.wait();
            taken.wait();
            seventy_ns += waits_for_seventy(i % 2 == 0);
            given.wait();
        }
    });
    let capture = locks::difference(Event::Mutex, &before, &locks::snapshot(), &mut Names);
    let (thirty, seventy) = (with(&capture, 1, "lock:thirty"), with(&capture, 1, "lock:seventy"));
    let share = 100.0 * thirty as f64 / (thirty + seventy) as f64;
    let expected = 100.0 * thirty_ns as f64 / (thirty_ns + seventy_ns) as f64;
    println!("{share:.2} %, as measured outside {expected:.2} %");
    assert!((share - expected).abs() < 3.0 && (20.0..40.0).contains(&share), "{share}, not {expected}");
    // On a busy machine a waiter may come when the lock is free again.
    let waits = (with(&capture, 0, "lock:thirty"), with(&capture, 0, "lock:seventy"));
    assert!((40..=60).contains(&waits.0) && (40..=60).contains(&waits.1), "{waits:?}");
    // The waiter's stack is below the label, and it is complete.
    assert_eq!((with(&capture, 1, "waits_for_thirty"), with(&capture, 1, "waits_for_seventy")), (thirty, seventy));
    assert_eq!(with(&capture, 1, "contended_locks_have_their_shares"), thirty + seventy);
    for sample in &capture.samples {
        let names = names_of(&capture, sample);
        assert!(names[0].starts_with("lock:") && !names[1].contains("koltso_instrument::"), "{names:?}");
    }
    assert!(capture.duration_ns > 600_000_000 && capture.dropped == 0);
}

#[test]
fn free_locks_leave_no_trace_and_do_what_locks_do() {
    static FREE: Mutex<Vec<u8>> = Mutex::new(&"free", Vec::new());
    (0..1000).for_each(|_| FREE.lock().push(1));
    let guard = FREE.try_lock().unwrap();
    assert!(FREE.try_lock().is_none());
    drop(guard);
    let mut lock = RwLock::new(&"free", 1);
    {
        let (one, two) = (lock.read(), lock.try_read().unwrap());
        assert!(*one + *two == 2 && lock.try_write().is_none());
    }
    *lock.write() += 1;
    *lock.try_write().unwrap() += 1;
    *lock.get_mut() += 1;
    assert_eq!(lock.into_inner(), 4);
    let mut mutex = Mutex::new(&"free", 1);
    *mutex.get_mut() += 1;
    assert_eq!(mutex.into_inner(), 2);
    assert_eq!(with(&locks::capture(Event::Mutex, &mut Names), 0, "lock:free"), 0);
}

#[test]
fn short_waits_add_up() {
    static SHORT: Mutex<u64> = Mutex::new(&"short", 0);
    let waited: u64 = std::thread::scope(|scope| {
        let contend = || {
            let mut waited_ns = 0;
            for i in 0..20_000 {
                let began = Instant::now();
                let mut guard = SHORT.lock();
                waited_ns += began.elapsed().as_nanos() as u64;
                *guard = (0..2000).fold(*guard, |sum, x| std::hint::black_box(sum ^ x));
                drop(guard);
                if i % 64 == 0 {
                    std::thread::yield_now();
                }
            }
            waited_ns
        };
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(contend)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let capture = locks::capture(Event::Mutex, &mut Names);
    let (contentions, delay) = (with(&capture, 0, "lock:short"), with(&capture, 1, "lock:short"));
    println!("{contentions} contentions, {delay} ns; outside {waited} ns, with 60000 uncontended calls");
    // The time measured outside includes the clock and the free locks.
    assert!(delay as u64 <= waited + waited / 20 + 100_000 && delay as u64 * 2 >= waited.saturating_sub(60_000 * 100));
    assert!(contentions <= 70_000);
}

#[inline(never)]
fn waits_for_a_disk(ms: u64) {
    waiting(&"planted disk", || std::thread::sleep(Duration::from_millis(ms)));
}

#[inline(never)]
fn tells_of_requests(turn: u64) {
    waited_for(&"planted requests", Duration::from_millis(7 * (turn + 1)), 10);
    // Prevents a tail call, which leaves no frame.
    std::hint::black_box(turn);
}

#[test]
fn named_waits_are_in_block_only_and_locks_in_both() {
    static BOTH: Mutex<u64> = Mutex::new(&"in both", 0);
    let before = locks::snapshot();
    let mut disk_ns = 0;
    std::thread::scope(|scope| {
        let guard = BOTH.lock();
        scope.spawn(|| *BOTH.lock() += 1);
        let began = Instant::now();
        (0..10).for_each(|_| waits_for_a_disk(3));
        disk_ns += began.elapsed().as_nanos() as i64;
        drop(guard);
        (0..10).for_each(tells_of_requests);
    });
    let after = locks::snapshot();
    let mutex = locks::difference(Event::Mutex, &before, &after, &mut Names);
    let block = locks::difference(Event::Block, &before, &after, &mut Names);
    for capture in [&mutex, &block] {
        let types = [ValueType::new("contentions", "count"), ValueType::new("delay", "nanoseconds")];
        let period = Some((types[0].clone(), 1));
        assert_eq!((&capture.types[..], &capture.period), (&types[..], &period));
        assert_eq!((capture.default_type, capture.dropped), (1, 0));
        assert!(with(capture, 1, "lock:in both") > 1_000_000 && with(capture, 0, "lock:in both") == 1);
    }
    assert_eq!((mutex.event, block.event), (Event::Mutex, Event::Block));
    assert!(mutex.frames().iter().all(|frame| !frame.function.starts_with("wait:")));
    assert_eq!(with(&mutex, 1, "waits_for_a_disk"), 0);

    let (disk, requests) = (with(&block, 1, "wait:planted disk"), with(&block, 1, "wait:planted requests"));
    assert_eq!((with(&block, 0, "wait:planted disk"), with(&block, 0, "wait:planted requests")), (10, 100));
    assert_eq!(requests, 7_000_000 * 55);
    // The shares as planted, and as measured outside.
    let share = |disk: i64| 100.0 * disk as f64 / (disk + requests) as f64;
    assert!((share(disk) - share(disk_ns)).abs() < 3.0, "{} %, not {} %", share(disk), share(disk_ns));
    assert_eq!((with(&block, 1, "waits_for_a_disk"), with(&block, 1, "tells_of_requests")), (disk, requests));
    for sample in &block.samples {
        let names = names_of(&block, sample);
        let waiter = match names[0] {
            "wait:planted disk" => "waits_for_a_disk",
            "wait:planted requests" => "tells_of_requests",
            _ => continue,
        };
        assert!(names[1].ends_with(waiter), "the label is on the waiter: {names:?}");
        assert!(names.iter().all(|name| !name.contains("koltso_instrument::")), "{names:?}");
    }
    // Cumulative values only grow.
    let (one, two) = (locks::capture(Event::Block, &mut Names), locks::capture(Event::Block, &mut Names));
    assert!(one.total(1) <= two.total(1) && with(&two, 1, "wait:planted") >= disk + requests);
}

#[test]
#[should_panic(expected = "mutex or block")]
fn other_events_are_refused() {
    let _ = locks::capture(Event::Cpu, &mut Names);
}

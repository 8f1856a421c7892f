//! What a CPU capture costs: CPU time of an operation with and without one, in interleaved slices.
//! Takes a few seconds.
//!
//! `cargo run --release -p koltso-profiling --example overhead -- [perf|signals] [hz] [compute|syscall]`

use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use koltso_profiling::engine::{self, CpuEngine, CpuRequest};

/// The number of slices of each kind.
const SLICES: usize = 6;
const SLICE: Duration = Duration::from_millis(300);

static OPERATIONS: AtomicU64 = AtomicU64::new(0);

fn compute() {
    let mut x = black_box(1_u64);
    for _ in 0..2000 {
        x = x.wrapping_mul(6_364_136_223_846_793_005) ^ (x >> 29);
    }
    black_box(x);
}

/// CPU nanoseconds of the process, including the capture's own thread.
fn cpu_ns() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("proc").flatten();
    let read = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok());
    read.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum()
}

fn slice() -> f64 {
    std::thread::sleep(Duration::from_millis(60));
    let before = (cpu_ns(), OPERATIONS.load(Ordering::Relaxed));
    std::thread::sleep(SLICE);
    (cpu_ns() - before.0) as f64 / (OPERATIONS.load(Ordering::Relaxed) - before.1) as f64
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn main() {
    engine::remember_processors();
    let arguments: Vec<String> = std::env::args().collect();
    let argument = |at: usize, default: &str| arguments.get(at).map_or(default, String::as_str).to_owned();
    let engine = if argument(1, "perf") == "signals" { CpuEngine::Signals } else { CpuEngine::Perf };
    let hz = argument(2, "99").parse().expect("a rate");
    let syscall = argument(3, "compute") == "syscall";
    std::thread::spawn(move || {
        let mut null = std::fs::File::options().write(true).open("/dev/null").expect("/dev/null");
        loop {
            if syscall {
                for _ in 0..20 {
                    null.write_all(&[0; 64]).expect("room");
                }
            } else {
                compute();
            }
            OPERATIONS.fetch_add(1, Ordering::Relaxed);
        }
    });
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..SLICES {
        without.push(slice());
        let stop = Arc::new(AtomicBool::new(false));
        let request = CpuRequest { seconds: 5, hz, stop: Arc::clone(&stop) };
        let capture = std::thread::spawn(move || engine::capture_cpu_by(engine, &request));
        with.push(slice());
        stop.store(true, Ordering::Relaxed);
        let capture = capture.join().expect("no panic").expect("a capture");
        assert!(!capture.samples.is_empty());
    }
    let (without, with) = (median(without), median(with));
    println!(
        "{engine:?} {hz} Hz: {without:.0} ns an operation without, {with:.0} with: {:+.2} %",
        (with / without - 1.0) * 100.0
    );
}

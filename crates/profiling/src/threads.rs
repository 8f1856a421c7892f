//! What an engine asks the kernel about its process (clocks, threads, processors, CPU time), and
//! how its own thread steps aside.
//!
//! Bounds: `/proc/self/task` is read for at most [`THREADS_MAX`] threads.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// The most threads that a capture tells apart: as many as a `ThreadIndex` can count.
pub(crate) const THREADS_MAX: usize = u16::MAX as usize;

/// How much nicer an engine's thread is than the program: a capture must not hold up what it shows.
const NICE: libc::c_int = 5;

/// The processors that the process might use before it pinned its threads.
static ALLOWED: OnceLock<libc::cpu_set_t> = OnceLock::new();

/// Notes the processors that the calling thread may use. A program that pins its threads calls it
/// at the start of `main`.
pub(crate) fn remember_processors() {
    if let Some(set) = affinity(0) {
        let _ = ALLOWED.set(set);
    }
}

fn affinity(tid: libc::pid_t) -> Option<libc::cpu_set_t> {
    // SAFETY: the structure is an array of bits, for which all zeros is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the size given, which is the size of the set.
    let done = unsafe { libc::sched_getaffinity(tid, size_of_val(&set), &mut set) };
    (done == 0).then_some(set)
}

/// Lets the calling thread run on every processor that the process was started with, nicer than
/// the program by [`NICE`].
///
/// A thread inherits the processors of the thread that spawned it. Without [`remember_processors`]
/// it gets those of the main thread.
pub(crate) fn step_aside() {
    if let Some(set) = ALLOWED.get().copied().or_else(|| affinity(std::process::id() as libc::pid_t)) {
        // SAFETY: the kernel reads a set of the size given. If it refuses, the thread stays where
        // it is.
        unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
    }
    // SAFETY: no memory is involved; 0 is the calling thread on Linux.
    unsafe {
        let now = libc::getpriority(libc::PRIO_PROCESS, 0);
        libc::setpriority(libc::PRIO_PROCESS, 0, now + NICE);
    }
}

fn clock(id: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    unsafe { libc::clock_gettime(id, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of perf events' timestamps.
pub(crate) fn monotonic_ns() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}

/// CPU nanoseconds of the process so far: the scheduler's own sum, as in
/// `/proc/self/task/*/schedstat`, but up to this moment for threads that are running, and including
/// threads that have ended.
pub(crate) fn process_cpu_ns() -> u64 {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// The nanoseconds to which a timer of the kernel rounds up: 1 if it has high-resolution timers,
/// otherwise a tick.
pub(crate) fn timer_resolution_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC, &mut time) };
    (time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64).max(1)
}

/// The kernel's id of the calling thread.
pub(crate) fn own_tid() -> u32 {
    // SAFETY: no memory is involved.
    unsafe { libc::gettid() as u32 }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A time in UTC as people write it: `2026-11-25 18:50:01.123`.
pub(crate) fn utc(unix_ms: u64) -> String {
    let seconds = (unix_ms / 1000) as libc::time_t;
    // SAFETY: all zeros is a value of this structure.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: the C library reads a time and writes a `tm`.
    unsafe { libc::gmtime_r(&seconds, &mut parts) };
    let (year, month) = (i64::from(parts.tm_year) + 1900, parts.tm_mon + 1);
    let (day, hour, minute, second) = (parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{:03}", unix_ms % 1000)
}

/// The name of the calling thread, or `thread TID` if it has none.
pub(crate) fn own_name() -> Box<str> {
    std::thread::current().name().map_or_else(|| format!("thread {}", own_tid()).into(), Into::into)
}

/// The functions of the kernel in which a thread is blocked, innermost first; none while it runs.
/// `None` if the kernel does not say (it tells only root).
pub(crate) fn kernel_stack(tid: u32) -> Option<Vec<Box<str>>> {
    const DEPTH: usize = 64;
    let text = std::fs::read_to_string(format!("/proc/self/task/{tid}/stack")).ok()?;
    Some(text.lines().filter_map(kernel_function).take(DEPTH).map(Into::into).collect())
}

/// The function in a line such as `[<0>] hrtimer_nanosleep+0x9a/0x1c0`.
fn kernel_function(line: &str) -> Option<&str> {
    let name = line.split_once("] ")?.1;
    let name = name.split_once('+').map_or(name, |(name, _)| name).trim();
    (!name.is_empty() && !name.starts_with("0x")).then_some(name)
}

/// How long a thread has waited for a processor so far, though it could have run: what the
/// scheduler accounts for in `/proc/self/task/TID/schedstat`. The file stays open, so that a look
/// costs one system call.
#[derive(Debug)]
pub(crate) struct RunDelay(std::fs::File);

impl RunDelay {
    /// Of a thread of this process; `None` if the kernel does not account for it.
    pub(crate) fn of(tid: u32) -> Option<Self> {
        let delay = Self(std::fs::File::open(format!("/proc/self/task/{tid}/schedstat")).ok()?);
        delay.ns().is_some().then_some(delay)
    }

    /// Nanoseconds so far. A wait that goes on is added when it ends.
    pub(crate) fn ns(&self) -> Option<u64> {
        let mut text = [0; 80];
        let length = std::os::unix::fs::FileExt::read_at(&self.0, &mut text, 0).ok()?;
        let text = std::str::from_utf8(&text[..length]).ok()?;
        text.split_ascii_whitespace().nth(1)?.parse().ok()
    }
}

/// The ids of the threads of the process.
pub(crate) fn tids() -> Vec<u32> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok()).take(THREADS_MAX).collect()
}

fn name(tid: u32) -> Option<Box<str>> {
    let name = std::fs::read_to_string(format!("/proc/self/task/{tid}/comm")).ok()?;
    Some(name.trim_end().into())
}

/// Names of threads. Each is read when its thread is first seen, since the thread may be gone at
/// the end.
#[derive(Debug, Default)]
pub(crate) struct Names(HashMap<u32, Option<Box<str>>>);

impl Names {
    /// Notes a thread and, the first time, its name.
    pub(crate) fn see(&mut self, tid: u32) {
        if self.0.len() < THREADS_MAX {
            self.0.entry(tid).or_insert_with(|| name(tid));
        }
    }

    /// The name that the thread has now or, if it has ended, the one that was noted: threads name
    /// themselves after they have begun.
    pub(crate) fn name(&self, tid: u32) -> Box<str> {
        let seen = self.0.get(&tid).and_then(Clone::clone);
        name(tid).or(seen).unwrap_or_else(|| format!("thread {tid}").into())
    }
}

/// The numbers of the processors that are online.
pub(crate) fn processors() -> Vec<u32> {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let found = parse_list(list.trim());
    if found.is_empty() {
        (0..std::thread::available_parallelism().map_or(1, |n| n.get() as u32)).collect()
    } else {
        found
    }
}

/// Reads a list such as `0-3,8`; parts that are not numbers are left out.
fn parse_list(list: &str) -> Vec<u32> {
    const PROCESSORS_MAX: u32 = 8192;
    let mut found = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            found.extend(first..=last.min(PROCESSORS_MAX));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors() {
        assert_eq!(parse_list("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(parse_list("0"), [0]);
        assert!(parse_list("").is_empty() && parse_list("x,3-1").is_empty());
        assert_eq!(parse_list("0-4294967295").len(), 8193);
    }

    #[test]
    fn times_and_functions_of_the_kernel_are_read() {
        assert_eq!(utc(1_795_632_601_023), "2026-11-25 18:50:01.023");
        assert_eq!(kernel_function("[<0>] hrtimer_nanosleep+0x9a/0x1c0"), Some("hrtimer_nanosleep"));
        assert_eq!(kernel_function("[<0>] 0xffffffffffffffff"), None);
        assert_eq!(kernel_function(""), None);
    }

    #[test]
    fn the_process_has_a_thread_with_a_name_and_time() {
        let mut names = Names::default();
        let tids = tids();
        names.see(tids[0]);
        assert!(!names.name(tids[0]).is_empty() && process_cpu_ns() > 0 && monotonic_ns() > 0);
    }
}

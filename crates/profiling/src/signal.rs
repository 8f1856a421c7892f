//! Stacks by signals. [`capture`] samples CPU time where perf events are not permitted: each thread
//! has a timer of its CPU time, and a handler walks the frame pointers. [`Asker`] asks one thread
//! for its stack now, whether it runs or is blocked.
//!
//! A timer fires at most once a tick (250 Hz on many kernels), so a sample weighs 1 + the
//! expirations that the timer overran: the total is right at any rate. Time in the kernel appears
//! at the user frame of the system call. Threads are looked for at the start and every 100 ms.
//!
//! Owner: the thread that calls [`capture`] or has the [`Asker`]; the handler runs on every thread.
//! Bounds: [`CAPTURES_MAX`] at once and one asker, [`SLOTS`] samples between two readings (the
//! asker has [`ASKED_SLOTS`]), [`DEPTH`] addresses of a stack; what does not fit is counted as
//! lost.
//!
//! Invariants:
//! 1. The handler neither allocates nor locks nor waits: it uses the atomics of a ring that is
//!    never freed, and the clock and the processor's number from the vDSO. It does not change
//!    `errno`.
//! 2. The handler reads only memory of its own thread's stack, between the stack pointer and the
//!    thread's top, which is where the C library keeps the thread's descriptor (for the main thread
//!    it is the end of `[stack]`). Programs that switch stacks themselves are not covered.
//! 3. The handler stays installed: without it, a late signal would end the process. It ignores
//!    signals of captures that are over.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::capture::{Capture, Event, ValueType};
use crate::collect::{Collected, Raw};
use crate::cpu_request::{CpuRequest, EngineError};
use crate::symbols::Symbols;
use crate::threads;

/// The most captures at once. Each has a ring of 4 MB, allocated when it is first needed. There are
/// more than may run, since one that was told to end keeps its ring until it has read it.
const CAPTURES_MAX: usize = 4;
/// The session of the asker, after those of the captures.
const ASKER: usize = CAPTURES_MAX;
/// Samples of a ring: 80 000 a second.
const SLOTS: usize = 4096;
/// Samples of the asker's ring: as many cores may answer at one moment. They take 34 KB.
const ASKED_SLOTS: usize = 32;
/// The most addresses of a stack; deeper stacks lose their root end.
const DEPTH: usize = 128;
/// The time between two readings of the ring.
const DRAIN: Duration = Duration::from_millis(50);
/// The largest stack, in bytes: a stack pointer farther than this from the top is on another stack.
const STACK_MAX: usize = 64 << 20;

/// A capture's ring, and whether the capture runs.
struct Session {
    taken: AtomicBool,
    /// The generation of the capture that runs, in 24 bits; 0 if none does.
    generation: AtomicU32,
    ring: OnceLock<Ring>,
}

static SESSIONS: [Session; CAPTURES_MAX + 1] =
    [const { Session { taken: AtomicBool::new(false), generation: AtomicU32::new(0), ring: OnceLock::new() } };
        CAPTURES_MAX + 1];
static GENERATIONS: AtomicU32 = AtomicU32::new(0);
/// The end of the main thread's stack; 0 if it is not known.
static MAIN_TOP: AtomicUsize = AtomicUsize::new(0);
static INSTALLED: Mutex<bool> = Mutex::new(false);

/// The value that a signal carries: for which capture and which thread it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cookie(u64);

impl Cookie {
    fn new(session: usize, generation: u32, tid: u32) -> Self {
        Self((session as u64) << 56 | u64::from(generation & 0xff_ffff) << 32 | u64::from(tid))
    }

    const fn session(self) -> usize {
        (self.0 >> 56) as usize
    }

    const fn generation(self) -> u32 {
        (self.0 >> 32) as u32 & 0xff_ffff
    }

    const fn tid(self) -> u32 {
        self.0 as u32
    }
}

/// A ring with many writers, one reader and no locks (after Dmitry Vyukov's bounded queue). A
/// slot's turn says who may touch it: a writer if it is `position`, the reader if it is `position +
/// 1`. The reader then gives the slot back for the next time round.
struct Ring {
    slots: Box<[Slot]>,
    head: AtomicU64,
    tail: AtomicU64,
    full: AtomicU64,
}

struct Slot {
    turn: AtomicU64,
    cookie: AtomicU64,
    at_ns: AtomicU64,
    /// Weight, processor and depth in 32, 16 and 16 bits.
    packed: AtomicU64,
    chain: [AtomicU64; DEPTH],
}

/// A sample as the handler took it.
struct Taken<'a> {
    cookie: Cookie,
    at_ns: u64,
    weight: u32,
    cpu: u16,
    chain: &'a [u64],
}

impl Ring {
    fn new(slots: usize) -> Self {
        let slot = |turn| Slot {
            turn: AtomicU64::new(turn),
            cookie: AtomicU64::new(0),
            at_ns: AtomicU64::new(0),
            packed: AtomicU64::new(0),
            chain: [const { AtomicU64::new(0) }; DEPTH],
        };
        let slots = (0..slots as u64).map(slot).collect();
        Self { slots, head: AtomicU64::new(0), tail: AtomicU64::new(0), full: AtomicU64::new(0) }
    }

    fn slot(&self, position: u64) -> &Slot {
        &self.slots[(position % self.slots.len() as u64) as usize]
    }

    /// Writes one sample, or counts it as lost; `walk` fills the chain and returns how deep it is.
    fn write(
        &self,
        cookie: Cookie,
        at_ns: u64,
        weight: u32,
        cpu: u16,
        walk: impl FnOnce(&[AtomicU64; DEPTH]) -> usize,
    ) {
        // About as many tries as threads can interfere with at one moment; after them the ring is
        // as good as full.
        for _ in 0..64 {
            let position = self.head.load(Ordering::Relaxed);
            let slot = self.slot(position);
            let turn = slot.turn.load(Ordering::Acquire);
            if turn < position {
                break;
            }
            let next = position + 1;
            if turn > position
                || self.head.compare_exchange_weak(position, next, Ordering::Relaxed, Ordering::Relaxed).is_err()
            {
                continue;
            }
            let depth = walk(&slot.chain);
            slot.cookie.store(cookie.0, Ordering::Relaxed);
            slot.at_ns.store(at_ns, Ordering::Relaxed);
            slot.packed.store(u64::from(weight) << 32 | u64::from(cpu) << 16 | depth as u64, Ordering::Relaxed);
            slot.turn.store(next, Ordering::Release);
            return;
        }
        self.full.fetch_add(weight.into(), Ordering::Relaxed);
    }

    /// Passes all samples that are in the ring to `each`. Only one thread may read at a time.
    fn read(&self, mut each: impl FnMut(Taken<'_>)) {
        let mut chain = [0; DEPTH];
        loop {
            let position = self.tail.load(Ordering::Relaxed);
            let slot = self.slot(position);
            if slot.turn.load(Ordering::Acquire) != position + 1 {
                return;
            }
            let packed = slot.packed.load(Ordering::Relaxed);
            let depth = (packed as u16 as usize).min(DEPTH);
            for (address, of_slot) in chain.iter_mut().zip(&slot.chain[..depth]) {
                *address = of_slot.load(Ordering::Relaxed);
            }
            each(Taken {
                cookie: Cookie(slot.cookie.load(Ordering::Relaxed)),
                at_ns: slot.at_ns.load(Ordering::Relaxed),
                weight: (packed >> 32) as u32,
                cpu: (packed >> 16) as u16,
                chain: &chain[..depth],
            });
            slot.turn.store(position + self.slots.len() as u64, Ordering::Release);
            self.tail.store(position + 1, Ordering::Relaxed);
        }
    }
}

/// The registers of a thread where the signal interrupted it.
#[derive(Clone, Copy)]
struct Registers {
    pc: usize,
    fp: usize,
    sp: usize,
}

/// Fills in addresses from frame pointers, leaf first: the leaf as it is, the others as the address
/// of the call. `read` is called only for aligned addresses in `sp..top`.
fn walk(at: Registers, top: usize, chain: &[AtomicU64; DEPTH], read: impl Fn(usize) -> usize) -> usize {
    chain[0].store(at.pc as u64, Ordering::Relaxed);
    let (mut depth, mut low, mut fp) = (1, at.sp, at.fp);
    while depth < DEPTH && fp >= low && fp.is_multiple_of(8) && fp < top && top - fp >= 16 {
        let (next, back) = (read(fp), read(fp + 8));
        if back < 4096 || back >> (usize::BITS - 1) == 1 {
            break;
        }
        chain[depth].store(back as u64 - 1, Ordering::Relaxed);
        (depth, low, fp) = (depth + 1, fp + 16, next);
    }
    depth
}

#[cfg(target_arch = "x86_64")]
fn registers(context: &libc::ucontext_t) -> Registers {
    let register = |index: i32| context.uc_mcontext.gregs[index as usize] as usize;
    Registers { pc: register(libc::REG_RIP), fp: register(libc::REG_RBP), sp: register(libc::REG_RSP) }
}

#[cfg(target_arch = "aarch64")]
fn registers(context: &libc::ucontext_t) -> Registers {
    let machine = &context.uc_mcontext;
    Registers { pc: machine.pc as usize, fp: machine.regs[29] as usize, sp: machine.sp as usize }
}

/// What the kernel says in the signal of a timer, or the asker in its own: a `siginfo_t`, of which
/// `libc` does not name the overrun. With `SI_QUEUE` the sender's process and user are in the
/// places of timer and overrun.
#[repr(C)]
struct Info {
    signo: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    padding: libc::c_int,
    timer: libc::c_int,
    overrun: libc::c_int,
    cookie: u64,
}

const _: () = assert!(size_of::<Info>() <= size_of::<libc::siginfo_t>());

extern "C" fn on_sigprof(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes both to a handler with SA_SIGINFO, and they are valid during the
    // call.
    let (info, context) = unsafe { (&*info.cast::<Info>(), &*context.cast::<libc::ucontext_t>()) };
    let cookie = Cookie(info.cookie);
    let overrun = match info.code {
        libc::SI_TIMER if cookie.session() != ASKER => info.overrun.max(0) as u32,
        libc::SI_QUEUE if cookie.session() == ASKER => 0,
        _ => return,
    };
    let Some(session) = SESSIONS.get(cookie.session()) else { return };
    // Invariant 3: the signal may be of a capture that is over.
    if cookie.generation() == 0 || session.generation.load(Ordering::Acquire) != cookie.generation() {
        return;
    }
    let Some(ring) = session.ring.get() else { return };
    let at = registers(context);
    // SAFETY: neither call takes or frees memory; both only read what the thread has (invariant 1).
    let (cpu, own) = unsafe { (libc::sched_getcpu(), libc::pthread_self()) };
    let main = MAIN_TOP.load(Ordering::Relaxed);
    let top = if (main.wrapping_sub(at.sp)) <= STACK_MAX { main } else { own as usize };
    // If the thread is on no stack that is known, the sample has the leaf only.
    let top = if top.wrapping_sub(at.sp) <= STACK_MAX { top } else { 0 };
    let weight = overrun.saturating_add(1);
    let cpu = u16::try_from(cpu).unwrap_or(u16::MAX);
    ring.write(cookie, threads::monotonic_ns(), weight, cpu, |chain| {
        // SAFETY: by invariant 2, `walk` asks only for addresses between this thread's stack
        // pointer and its top, all of which are mapped.
        walk(at, top, chain, |address| unsafe { std::ptr::with_exposed_provenance::<usize>(address).read_volatile() })
    });
}

/// Installs the handler once; fails if another part of the process handles SIGPROF.
fn install() -> io::Result<()> {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).and_then(|line| line.split(['-', ' ']).nth(1));
    let top = stack.and_then(|end| usize::from_str_radix(end, 16).ok());
    MAIN_TOP.store(top.unwrap_or(0), Ordering::Relaxed);
    // SAFETY: all zeros is a value of this structure.
    let (mut action, mut before): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `sigaction`.
    if unsafe { libc::sigaction(libc::SIGPROF, std::ptr::null(), &mut before) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if before.sa_sigaction != libc::SIG_DFL && before.sa_sigaction != libc::SIG_IGN {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another profiler of this process handles SIGPROF"));
    }
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigprof;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: by invariants 1 to 3 the handler may run at any point and for as long as the process
    // lives.
    if unsafe { libc::sigaction(libc::SIGPROF, &action, std::ptr::null_mut()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    *installed = true;
    Ok(())
}

/// A timer of one thread's CPU time.
struct Timer(libc::timer_t);

impl Timer {
    fn start(cookie: Cookie, period_ns: u64, first_ns: u64) -> io::Result<Self> {
        // The clock of a thread's CPU time, numbered as in the kernel: CPUCLOCK_PERTHREAD |
        // CPUCLOCK_SCHED.
        let clock = (!(cookie.tid() as libc::clockid_t) << 3) | 4 | 2;
        // SAFETY: all zeros is a value of this structure.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_value.sival_ptr = std::ptr::without_provenance_mut(cookie.0 as usize);
        event.sigev_signo = libc::SIGPROF;
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_notify_thread_id = cookie.tid() as libc::c_int;
        let mut id = std::ptr::null_mut();
        // SAFETY: the kernel reads an event and writes an id.
        if unsafe { libc::timer_create(clock, &mut event, &mut id) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let timer = Self(id);
        let time =
            |ns: u64| libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 };
        let times = libc::itimerspec { it_interval: time(period_ns), it_value: time(first_ns.max(1)) };
        // SAFETY: the timer exists, and the kernel reads the times.
        if unsafe { libc::timer_settime(timer.0, 0, &times, std::ptr::null_mut()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(timer)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer exists, and it is not used afterwards.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// A session that this capture has for itself until the lease is dropped.
struct Lease {
    index: usize,
    generation: u32,
}

impl Lease {
    /// Takes a free session of the range; [`EngineError::Busy`] if all are taken.
    fn take(sessions: std::ops::Range<usize>) -> Result<Self, EngineError> {
        let most = sessions.len();
        let free = |index: &usize| !SESSIONS[*index].taken.swap(true, Ordering::AcqRel);
        let index = sessions.into_iter().find(free).ok_or(EngineError::Busy(most))?;
        let generation = loop {
            let generation = GENERATIONS.fetch_add(1, Ordering::Relaxed) & 0xff_ffff;
            if generation != 0 {
                break generation;
            }
        };
        let lease = Self { index, generation };
        // Discards what came late for the previous capture.
        lease.ring().read(|_| {});
        lease.ring().full.store(0, Ordering::Relaxed);
        SESSIONS[index].generation.store(generation, Ordering::Release);
        Ok(lease)
    }

    fn ring(&self) -> &'static Ring {
        SESSIONS[self.index].ring.get_or_init(|| Ring::new(if self.index == ASKER { ASKED_SLOTS } else { SLOTS }))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        SESSIONS[self.index].generation.store(0, Ordering::Release);
        SESSIONS[self.index].taken.store(false, Ordering::Release);
    }
}

/// Captures on the calling thread until the request is over.
pub(crate) fn capture(request: &CpuRequest) -> Result<Capture, EngineError> {
    install()?;
    let lease = Lease::take(0..CAPTURES_MAX)?;
    let period_ns = 1_000_000_000 / u64::from(request.hz);
    let types = vec![ValueType::new("samples", "count"), ValueType::new("cpu", "nanoseconds")];
    let mut capture = Capture::new(Event::Cpu, threads::unix_ms(), types, 1);
    let (began, used) = (threads::monotonic_ns(), threads::process_cpu_ns());
    let until = began + Duration::from_secs(request.seconds.into()).as_nanos() as u64;
    let mut collected = Collected::default();
    let mut timers: HashMap<u32, Option<Timer>> = HashMap::new();
    let (mut refused, mut turn) = (0_u64, 0_u32);
    let drain = |collected: &mut Collected| {
        lease.ring().read(|taken| {
            if taken.cookie.generation() != lease.generation {
                return;
            }
            let Some(chain) = collected.chain(taken.chain) else { return };
            let weight = i64::from(taken.weight);
            let values = [weight, weight * period_ns as i64, 0, 0];
            collected.push(Raw { at_ns: taken.at_ns, tid: taken.cookie.tid(), cpu: taken.cpu, chain, values });
        });
    };
    while !request.stop.load(Ordering::Relaxed) {
        if turn.is_multiple_of(2) {
            let tids = threads::tids();
            timers.retain(|tid, _| tids.contains(tid));
            for tid in tids {
                timers.entry(tid).or_insert_with(|| {
                    // The first expiration is at a random point of a period, so that threads that
                    // use less CPU time than one period are neither all seen nor all missed.
                    let first = (u64::from(tid) ^ threads::monotonic_ns()).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
                    let cookie = Cookie::new(lease.index, lease.generation, tid);
                    let timer = Timer::start(cookie, period_ns, first % period_ns);
                    // A thread that has ended meanwhile is no loss.
                    refused += u64::from(timer.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EAGAIN)));
                    timer.ok()
                });
            }
        }
        turn = turn.wrapping_add(1);
        let left = Duration::from_nanos(until.saturating_sub(threads::monotonic_ns()));
        if left.is_zero() {
            break;
        }
        std::thread::sleep(left.min(DRAIN));
        drain(&mut collected);
    }
    drop(timers);
    capture.duration_ns = threads::monotonic_ns() - began;
    capture.accounted_ns = threads::process_cpu_ns() - used;
    drain(&mut collected);
    capture.lost = lease.ring().full.load(Ordering::Relaxed);
    drop(lease);
    if refused > 0 {
        capture.engine = format!("; {refused} threads got no timer (RLIMIT_SIGPENDING)");
    }
    capture.period = Some((ValueType::new("cpu", "nanoseconds"), period_ns as i64));
    collected.into_capture(&mut capture, began, &mut Symbols::new());
    Ok(capture)
}

/// Asks threads of this process for their stacks. There is one at a time in a process.
pub(crate) struct Asker(Lease);

impl Asker {
    pub(crate) fn new() -> Result<Self, EngineError> {
        install()?;
        Lease::take(ASKER..ASKER + 1).map(Self)
    }

    /// Asks a thread for its stack; a blocking system call in that thread may end with EINTR.
    /// `false` if there is no such thread. The answer comes when the thread is next on a processor;
    /// none comes if another of the profiler's signals was already on its way to it.
    pub(crate) fn ask(&self, tid: u32) -> bool {
        // SAFETY: all zeros is a value of this structure.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let cookie = Cookie::new(ASKER, self.0.generation, tid);
        let pid = std::process::id() as libc::c_int;
        let ours = Info {
            signo: libc::SIGPROF,
            errno: 0,
            code: libc::SI_QUEUE,
            padding: 0,
            timer: pid,
            overrun: 0,
            cookie: cookie.0,
        };
        // SAFETY: `Info` is not larger than this structure and is laid out like its beginning.
        unsafe { (&raw mut info).cast::<Info>().write(ours) };
        // SAFETY: the kernel reads one `siginfo_t`. `new` has installed the handler, and it stays
        // (invariant 3).
        unsafe {
            libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid as libc::c_int, libc::SIGPROF, &raw const info) == 0
        }
    }

    /// Passes the answers that have come to `each`: the thread, nanoseconds of the monotonic clock,
    /// and the stack with the leaf first.
    pub(crate) fn answers(&self, mut each: impl FnMut(u32, u64, &[u64])) {
        self.0.ring().read(|taken| {
            if taken.cookie.generation() == self.0.generation {
                each(taken.cookie.tid(), taken.at_ns, taken.chain);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_keep_what_they_are_given() {
        let cookie = Cookie::new(1, 0xff_1234, u32::MAX);
        assert_eq!((cookie.session(), cookie.generation(), cookie.tid()), (1, 0xff_1234, u32::MAX));
    }

    #[test]
    fn a_full_ring_counts_and_goes_on_after_a_reading() {
        let ring = Ring::new(SLOTS);
        for _ in 0..2 {
            for at in 0..SLOTS as u64 + 3 {
                ring.write(Cookie(7), at, 2, 1, |chain| {
                    chain[0].store(at + 100, Ordering::Relaxed);
                    1
                });
            }
            let mut expected = 0;
            ring.read(|taken| {
                assert_eq!(
                    (taken.at_ns, taken.chain, taken.weight, taken.cpu),
                    (expected, &[expected + 100][..], 2, 1)
                );
                expected += 1;
            });
            assert_eq!(expected, SLOTS as u64);
        }
        assert_eq!(ring.full.load(Ordering::Relaxed), 2 * 3 * 2);
    }

    /// Walks a stack of these words at 0x1000; a read outside of it panics.
    fn walked(words: &[usize], pc: usize, fp: usize) -> Vec<u64> {
        let chain = [const { AtomicU64::new(0) }; DEPTH];
        let depth = walk(Registers { pc, fp, sp: 0x1000 }, 0x1000 + words.len() * 8, &chain, |address| {
            words[(address - 0x1000) / 8]
        });
        chain[..depth].iter().map(|address| address.load(Ordering::Relaxed)).collect()
    }

    #[test]
    fn a_walk_follows_frames_and_stays_on_the_stack() {
        assert_eq!(walked(&[0x1010, 0x5001, 0, 0x6001], 0x4000, 0x1000), [0x4000, 0x5000, 0x6000]);
        // The frame pointer is below the stack, above it, at its last word, unaligned; then frames
        // in a circle, and return addresses that are not in user space.
        for fp in [0, 0xff8, 0x1018, 0x1020, 0x1004, usize::MAX, usize::MAX - 7] {
            assert_eq!(walked(&[0, 0x5001, 0, 0x6001], 0x4000, fp), [0x4000], "{fp:#x}");
        }
        assert_eq!(walked(&[0x1000, 0x5001], 0x4000, 0x1000), [0x4000, 0x5000]);
        assert_eq!(walked(&[0x1010, 0, 0, 0x6001], 0x4000, 0x1000), [0x4000]);
        assert_eq!(walked(&[0x9009; 2], 0x4000, 0x1000), [0x4000, 0x9008]);
    }
}

//! Stalls: turns of a core's loop that took longer than a bound. The core counts them exactly, and
//! a watcher beside it takes the stacks that name them.
//!
//! ```text
//! core:     began ─────────────────────────────────── ended: longer than the bound?
//!                                                     count it, tell the watcher
//! watcher:        looks every 10 ms ─ open for the bound? ─ stack ─ stack ─ …
//!                                                     keeps them with the stall, reports it
//! ```
//!
//! A core begins a turn when it finds something to do, and ends it before it waits again; both are
//! one store. A turn is also long if the core is not given the processor: how much of a stall was
//! that (`delay.rs`) is told apart. The watcher (`watch.rs`) is one thread, `koltso-stalls`.
//! `view.rs` makes captures and text of the stalls that are kept.
//!
//! Owner: a [`TurnRecorder`] stays on the thread that made it; everything else is shared. Bounds:
//! [`KEPT_MAX`] stalls and [`KEPT_BYTES_MAX`] bytes of their samples, of which the oldest are
//! dropped first; `MESSAGES_MAX` stalls that the watcher has not looked at yet, more of which are
//! only counted.
//!
//! Invariants:
//! 1. [`Stalls::count`] and [`Stalls::longest`] miss no turn that is over, whatever the watcher
//!    does.
//! 2. No core waits for the watcher: a core stores, and only if there is a stall or the watcher
//!    sleeps does it leave a message, if there is room.
//! 3. A thread is asked for its stack only while its turn is seen open, and never after its
//!    `TurnRecorder` is gone. (The turn may end in the microsecond after that: a core must be able
//!    to bear an EINTR of the system call in which it waits.)
//! 4. While no core has anything to do the watcher sleeps until one has.
//!
//! Deliberately absent: the runtime; the time that a core spends in its driver, where work and
//! waiting cannot be told apart. Tested in `tests/stalls.rs` and, with a real core, in the
//! program's `src/stalls.rs`.

mod delay;
mod view;
mod watch;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::delay::Delay;
pub use self::view::{capture, text};
use self::watch::{Message, Tracked, Watcher};
use crate::capture::Thread;
use crate::threads;

/// The most stalls that are kept.
pub const KEPT_MAX: usize = 64;
/// The most bytes that the samples of the kept stalls take.
pub const KEPT_BYTES_MAX: usize = 2 << 20;
/// The most stalls and wake-ups that wait for the watcher.
const MESSAGES_MAX: usize = 256;

/// Flag of [`Line::state`]: no turn is open.
const CLOSED: u64 = 1;
/// Flag of [`Line::state`]: the turn may have nothing to do, so it does not keep the watcher awake.
const QUIET: u64 = 2;
const FLAGS: u32 = 2;

/// All cores of a process and their stalls. Dropping it ends the watcher.
pub struct Stalls {
    shared: Arc<WatchState>,
    messages: SyncSender<Message>,
    /// The watcher's thread; `None` once it has been joined.
    watcher: Option<JoinHandle<()>>,
}

/// What cores, watcher and readers share.
struct WatchState {
    bound_ns: u64,
    /// Times are nanoseconds since this moment, which was `origin_ns` of the monotonic clock.
    origin: Instant,
    origin_ns: u64,
    /// Whether the watcher waits for a message and for nothing else.
    asleep: AtomicBool,
    /// Whether the watcher is to end.
    stop: AtomicBool,
    count: AtomicU64,
    longest_ns: AtomicU64,
    kept_waiting: AtomicU64,
    cores: Mutex<Vec<Tracked>>,
    kept: Mutex<VecDeque<Arc<Stall>>>,
}

/// The current turn of one core, written by the core and read by the watcher.
#[repr(align(64))]
struct Line {
    /// When the last turn began, shifted by [`FLAGS`], and the flags.
    state: AtomicU64,
    core: usize,
    thread: Thread,
}

/// Through this a core says when its turns begin and end.
pub struct TurnRecorder {
    line: Arc<Line>,
    shared: Arc<WatchState>,
    messages: SyncSender<Message>,
    delay: Delay,
    /// Keeps the value on the core's thread.
    _stays: std::marker::PhantomData<*const ()>,
}

/// One turn that took too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stall {
    /// When the turn began, in milliseconds since the Unix epoch.
    pub began_unix_ms: u64,
    /// The number of the core, as given to [`Stalls::join`].
    pub core: usize,
    /// The thread of the core.
    pub thread: Thread,
    /// How long the turn took.
    pub duration: Duration,
    /// For how much of that the core could have run and was not given a processor, at least; 0 if
    /// nobody knows.
    pub waited: Duration,
    samples: Vec<Sample>,
}

/// Where the core was at one moment of a stall.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sample {
    /// Nanoseconds since the turn began.
    at_ns: u64,
    /// The nanoseconds for which the sample stands: those since the previous sample and, for the
    /// last one, also those until the end of the turn.
    stands_for_ns: u64,
    /// The kernel's functions in which the thread was blocked, innermost first; empty if it was not
    /// blocked or the kernel does not tell.
    kernel: Arc<[Box<str>]>,
    /// The addresses of the user stack, leaf first.
    chain: Arc<[u64]>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WatchState {
    #[inline]
    fn ns(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.origin).as_nanos() as u64
    }
}

impl Stalls {
    /// Starts the watcher. A turn is a stall if it took longer than `bound`, which is at least a
    /// millisecond. The watcher's thread calls `report` with each stall and sees no turn until
    /// `report` returns.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn watch(bound: Duration, report: impl Fn(&Arc<Stall>) + Send + 'static) -> io::Result<Self> {
        let (messages, receiver) = sync_channel(MESSAGES_MAX);
        let shared = Arc::new(WatchState {
            bound_ns: (bound.as_nanos() as u64).max(1_000_000),
            origin: Instant::now(),
            origin_ns: threads::monotonic_ns(),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            count: AtomicU64::new(0),
            longest_ns: AtomicU64::new(0),
            kept_waiting: AtomicU64::new(0),
            cores: Mutex::default(),
            kept: Mutex::default(),
        });
        let watcher = Watcher::new(Arc::clone(&shared), receiver, Box::new(report));
        let watcher = std::thread::Builder::new().name("koltso-stalls".to_owned()).spawn(move || {
            threads::step_aside();
            watcher.run();
        })?;
        Ok(Self { shared, messages, watcher: Some(watcher) })
    }

    /// Registers the calling thread as core number `core`.
    #[must_use]
    pub fn join(&self, core: usize) -> TurnRecorder {
        let thread = Thread { tid: threads::own_tid(), name: threads::own_name() };
        let line = Arc::new(Line { state: AtomicU64::new(CLOSED), core, thread });
        locked(&self.shared.cores).push(Tracked::new(Arc::clone(&line)));
        let (shared, messages) = (Arc::clone(&self.shared), self.messages.clone());
        let delay = Delay::of_this_thread();
        TurnRecorder { line, shared, messages, delay, _stays: std::marker::PhantomData }
    }

    /// The bound: a turn that takes longer is a stall.
    #[must_use]
    pub fn bound(&self) -> Duration {
        Duration::from_nanos(self.shared.bound_ns)
    }

    /// The number of stalls so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.shared.count.load(Ordering::Relaxed)
    }

    /// The duration of the longest stall so far.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.shared.longest_ns.load(Ordering::Relaxed))
    }

    /// The number of stalls so far in which the core was not given the processor for most of the
    /// time. Unlike [`Stalls::count`] it leaves out those that the watcher could not be told of.
    #[must_use]
    pub fn kept_waiting(&self) -> u64 {
        self.shared.kept_waiting.load(Ordering::Relaxed)
    }

    /// The last [`KEPT_MAX`] stalls, in the order in which they ended.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Stall>> {
        locked(&self.shared.kept).iter().cloned().collect()
    }
}

impl TurnRecorder {
    /// A turn begins; none may be open. A `quiet` turn may have nothing to do: it is measured like
    /// any other but does not wake the watcher.
    #[inline]
    pub fn began(&self, now: Instant, quiet: bool) {
        let began_ns = self.shared.ns(now);
        self.delay.began(began_ns);
        let began = began_ns << FLAGS;
        let flag = if quiet { QUIET } else { 0 };
        self.line.state.store(began | flag, Ordering::Release);
        if !quiet {
            self.wake_if_asleep();
        }
    }

    /// The quiet turn that is open has something to do after all.
    #[inline]
    pub fn busy(&self) {
        let state = self.line.state.load(Ordering::Relaxed);
        self.line.state.store(state & !QUIET, Ordering::Release);
        self.wake_if_asleep();
    }

    #[inline]
    fn wake_if_asleep(&self) {
        // The watcher may be falling asleep now and not be woken by this turn: it looks once more
        // before it sleeps (`watch.rs`).
        if self.shared.asleep.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    /// The turn that is open ends: the core has done all that it found to do.
    #[inline]
    pub fn ended(&self, now: Instant) {
        let state = self.line.state.load(Ordering::Relaxed);
        self.line.state.store(state | CLOSED, Ordering::Release);
        let began_ns = state >> FLAGS;
        let lasted_ns = self.shared.ns(now).saturating_sub(began_ns);
        if lasted_ns > self.shared.bound_ns {
            self.stalled(began_ns, lasted_ns);
        }
    }

    #[cold]
    fn wake(&self) {
        if self.shared.asleep.swap(false, Ordering::Relaxed) {
            // If there is no room, one of the other messages wakes it.
            let _ = self.messages.try_send(Message::Awake);
        }
    }

    #[cold]
    fn stalled(&self, began_ns: u64, lasted_ns: u64) {
        self.shared.count.fetch_add(1, Ordering::Relaxed);
        self.shared.longest_ns.fetch_max(lasted_ns, Ordering::Relaxed);
        let waited = self.delay.stalled(began_ns, began_ns + lasted_ns);
        // Invariant 2: if there is no room, the stall is only counted.
        let _ = self.messages.try_send(Message::Stalled { line: Arc::clone(&self.line), began_ns, lasted_ns, waited });
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // If there is no room, one of the other messages wakes it.
        let _ = self.messages.try_send(Message::Awake);
        // If the watcher has panicked, the panic has been reported already.
        let _ = self.watcher.take().map(JoinHandle::join);
    }
}

impl Drop for TurnRecorder {
    fn drop(&mut self) {
        // The watcher asks for stacks while it holds this lock: invariant 3.
        locked(&self.shared.cores).retain(|tracked| !tracked.is(&self.line));
    }
}

impl Stall {
    /// Whether the core was not given the processor for most of the time: it is the machine that is
    /// busy, not the core.
    #[must_use]
    pub fn was_kept_waiting(&self) -> bool {
        self.waited > self.duration / 2
    }

    /// A stall that was not sampled, for texts about stalls.
    #[must_use]
    pub fn of(core: usize, duration: Duration, waited: Duration) -> Self {
        let thread = Thread { tid: 0, name: Box::default() };
        Self { began_unix_ms: 0, core, thread, duration, waited, samples: Vec::new() }
    }

    fn bytes(&self) -> usize {
        // An allocation that several samples share is divided between them.
        let chain = |sample: &Sample| size_of_val(&*sample.chain) / Arc::strong_count(&sample.chain);
        let kernel = |sample: &Sample| {
            let names: usize = sample.kernel.iter().map(|name| size_of::<Box<str>>() + name.len()).sum();
            names / Arc::strong_count(&sample.kernel)
        };
        let samples = self.samples.iter().map(|sample| size_of::<Sample>() + chain(sample) + kernel(sample));
        size_of::<Self>() + samples.sum::<usize>()
    }
}

impl std::fmt::Debug for Stalls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stalls").field("bound", &self.bound()).field("count", &self.count()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for TurnRecorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TurnRecorder").field("core", &self.line.core).finish_non_exhaustive()
    }
}

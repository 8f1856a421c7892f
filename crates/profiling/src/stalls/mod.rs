//! Stalls: turns of a core's loop that took longer than a bound, counted exactly by the core, and named by stacks from outside.
//!
//! ```text
//! core:     began ───────────────────────────────────────────── ended: longer than the bound? count it, tell the watcher
//! watcher:        looks every 10 ms ─ open for the bound? ─ stack ─ stack ─ … ─ keeps them with the stall, reports it
//! ```
//!
//! A core begins a turn when it finds something to do and ends it before it waits again; both are a store. The watcher
//! (`watch.rs`) is one thread, `koltso-stalls`. `view.rs` makes captures and text of what is kept.
//!
//! Owner: a [`Core`] stays on the thread that it was made on; everything else is shared. Bounds: [`KEPT_MAX`] stalls and
//! [`KEPT_BYTES_MAX`] bytes of their samples, the oldest go first; `MESSAGES_MAX` stalls that the watcher has not looked at, more are
//! counted only.
//!
//! Invariants:
//! 1. [`Stalls::count`] and [`Stalls::longest`] miss no turn that is over, whatever the watcher does.
//! 2. No core waits for the watcher: it stores, and only for a stall or a watcher that sleeps it leaves a message, if there is room.
//! 3. A thread is asked for its stack only while its turn is seen open, and never after its `Core` is gone. (The turn may end in the
//!    microsecond after that: a core has to bear an EINTR of the system call that it waits in.)
//! 4. While no core has anything to do the watcher sleeps until one has.
//!
//! Deliberately absent: the runtime; time that a core spends in its driver, where work and waiting cannot be told apart. Tested below, in
//! `tests/stalls.rs`, and with a real core in the program's `src/stalls.rs`.

mod view;
mod watch;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use self::view::{capture, text};
use self::watch::{Message, Tracked, Watcher};
use crate::capture::Thread;
use crate::threads;

/// Stalls that are kept.
pub const KEPT_MAX: usize = 64;
/// Bytes of their samples.
pub const KEPT_BYTES_MAX: usize = 2 << 20;
/// Stalls and wake-ups that wait for the watcher.
const MESSAGES_MAX: usize = 256;

/// A turn is not open: of [`Line::state`].
const CLOSED: u64 = 1;
/// It may have nothing to do: it does not keep the watcher awake.
const QUIET: u64 = 2;
const FLAGS: u32 = 2;

/// All cores of a process, and what they were caught at. The watcher ends with it.
pub struct Stalls {
    shared: Arc<Shared>,
    messages: SyncSender<Message>,
    /// Until it is joined.
    watcher: Option<JoinHandle<()>>,
}

/// What cores, watcher and readers share.
struct Shared {
    bound_ns: u64,
    /// Times are nanoseconds since then, which was `origin_ns` of the monotonic clock.
    origin: Instant,
    origin_ns: u64,
    /// The watcher waits for a message, and for nothing else.
    asleep: AtomicBool,
    /// The watcher is to end.
    stop: AtomicBool,
    count: AtomicU64,
    longest_ns: AtomicU64,
    cores: Mutex<Vec<Tracked>>,
    kept: Mutex<VecDeque<Arc<Stall>>>,
}

/// One core's present turn. Written by the core, read by the watcher.
#[repr(align(64))]
struct Line {
    /// When the last turn began, shifted by [`FLAGS`], and the flags.
    state: AtomicU64,
    core: usize,
    thread: Thread,
}

/// A core's own hold: it says when its turns begin and end.
pub struct Core {
    line: Arc<Line>,
    shared: Arc<Shared>,
    messages: SyncSender<Message>,
    /// A core is its thread.
    _stays: std::marker::PhantomData<*const ()>,
}

/// One turn that took too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stall {
    /// When the turn began, in milliseconds since the Unix epoch.
    pub began_unix_ms: u64,
    /// Which core's, as [`Stalls::join`] was told.
    pub core: usize,
    /// Its thread.
    pub thread: Thread,
    /// How long it took.
    pub duration: Duration,
    samples: Vec<Sample>,
}

/// Where the core was at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sample {
    /// Since the turn began.
    at_ns: u64,
    /// What it stands for: the time since the sample before it; the last one's also that until the end.
    stands_for_ns: u64,
    /// Innermost first; none if the thread was not blocked, or the kernel does not tell.
    kernel: Arc<[Box<str>]>,
    /// Leaf first.
    chain: Arc<[u64]>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    #[inline]
    fn ns(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.origin).as_nanos() as u64
    }
}

impl Stalls {
    /// Starts the watcher. A turn is a stall when it took longer than `bound`, a millisecond or more; `report` is told of each on the
    /// watcher's thread, which sees nothing meanwhile.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn watch(bound: Duration, report: impl Fn(&Arc<Stall>) + Send + 'static) -> io::Result<Self> {
        let (messages, receiver) = sync_channel(MESSAGES_MAX);
        let shared = Arc::new(Shared {
            bound_ns: (bound.as_nanos() as u64).max(1_000_000),
            origin: Instant::now(),
            origin_ns: threads::monotonic_ns(),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            count: AtomicU64::new(0),
            longest_ns: AtomicU64::new(0),
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

    /// The calling thread is core number `core` from now on.
    #[must_use]
    pub fn join(&self, core: usize) -> Core {
        let thread = Thread { tid: threads::own_tid(), name: threads::own_name() };
        let line = Arc::new(Line { state: AtomicU64::new(CLOSED), core, thread });
        locked(&self.shared.cores).push(Tracked::new(Arc::clone(&line)));
        let (shared, messages) = (Arc::clone(&self.shared), self.messages.clone());
        Core { line, shared, messages, _stays: std::marker::PhantomData }
    }

    /// Turns longer than this are stalls.
    #[must_use]
    pub fn bound(&self) -> Duration {
        Duration::from_nanos(self.shared.bound_ns)
    }

    /// Stalls so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.shared.count.load(Ordering::Relaxed)
    }

    /// The longest so far.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.shared.longest_ns.load(Ordering::Relaxed))
    }

    /// The last [`KEPT_MAX`], in order of their ends.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Stall>> {
        locked(&self.shared.kept).iter().cloned().collect()
    }
}

impl Core {
    /// A turn begins. A `quiet` one may have nothing to do: it is measured as any other, and does not wake the watcher. No turn is
    /// open.
    #[inline]
    pub fn began(&self, now: Instant, quiet: bool) {
        let began = self.shared.ns(now) << FLAGS;
        let flag = if quiet { QUIET } else { 0 };
        self.line.state.store(began | flag, Ordering::Release);
        if !quiet {
            self.wake_if_asleep();
        }
    }

    /// The quiet turn that is open has something to do.
    #[inline]
    pub fn busy(&self) {
        let state = self.line.state.load(Ordering::Relaxed);
        self.line.state.store(state & !QUIET, Ordering::Release);
        self.wake_if_asleep();
    }

    #[inline]
    fn wake_if_asleep(&self) {
        // The watcher may fall asleep just now and not be woken by this turn: it looks once more before it does (`watch.rs`).
        if self.shared.asleep.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    /// It has done all that there was. A turn is open.
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
            // If there is no room, there is something to wake it.
            let _ = self.messages.try_send(Message::Awake);
        }
    }

    #[cold]
    fn stalled(&self, began_ns: u64, lasted_ns: u64) {
        self.shared.count.fetch_add(1, Ordering::Relaxed);
        self.shared.longest_ns.fetch_max(lasted_ns, Ordering::Relaxed);
        // Invariant 2: counted, if no more.
        let _ = self.messages.try_send(Message::Stalled { line: Arc::clone(&self.line), began_ns, lasted_ns });
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // If there is no room, there is something to wake it.
        let _ = self.messages.try_send(Message::Awake);
        // A watcher that panicked has said so.
        let _ = self.watcher.take().map(JoinHandle::join);
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // The watcher asks for stacks under this lock: invariant 3.
        locked(&self.shared.cores).retain(|tracked| !tracked.is(&self.line));
    }
}

impl Stall {
    fn bytes(&self) -> usize {
        // What several samples share is counted in parts.
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

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("core", &self.line.core).finish_non_exhaustive()
    }
}

//! The watcher: it looks at all cores, asks one that stalls for its stack, and keeps what it
//! learns.
//!
//! It looks every [`LOOK`] while cores have something to do, and at the very moment at which a turn
//! that it has seen open reaches the bound. From then on it takes a stack every millisecond, or
//! every [`SPARSER`]th of the turn's age if that is longer, so that [`SAMPLES_MAX`] stacks cover
//! seven seconds. After [`IDLE`] without a turn it sleeps until one begins.
//!
//! To take a stack, the watcher sends the thread a signal (`signal.rs`), which the thread answers
//! when it is on a processor; right before, it reads in which kernel functions the thread is
//! blocked. Where signals are not available, stalls are kept without samples.
//!
//! Owner: one thread. Invariant: an answer that came after the end of a turn is in no stall.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::delay::Waited;
use super::{CLOSED, FLAGS, KEPT_BYTES_MAX, KEPT_MAX, Line, QUIET, Sample, Stall, WatchState, locked};
use crate::signal::Asker;
use crate::threads::{self, RunDelay};

const MS: u64 = 1_000_000;
/// Nanoseconds between two looks; twice the bound if that is less. A stall of twice the bound is
/// thus always seen, and a shorter one often. (Looks cost 15 µs each on a virtual machine: 0.15 %
/// of a core.)
const LOOK: u64 = 10 * MS;
/// Nanoseconds without a turn after which the watcher sleeps.
const IDLE: u64 = 1000 * MS;
/// The most samples of a stall.
const SAMPLES_MAX: usize = 200;
const SPARSER: u64 = 32;
/// Nanoseconds to wait for an answer. One that takes longer may have been lost, since another of
/// the profiler's signals was on its way to that thread.
const ANSWER: u64 = 50 * MS;

/// Called with every stall that was kept.
pub(super) type Report = Box<dyn Fn(&Arc<Stall>) + Send>;

/// What wakes the watcher.
pub(super) enum Message {
    /// A turn has begun while the watcher slept.
    Awake,
    /// A turn has ended that took longer than the bound.
    Stalled { line: Arc<Line>, began_ns: u64, lasted_ns: u64, waited: Waited },
}

/// A core, as the watcher knows it.
pub(super) struct Tracked {
    line: Arc<Line>,
    /// `None` if the kernel does not account for it.
    delay: Option<RunDelay>,
    /// The last turn that the watcher saw; `before` is the previous one, whose end it may not have
    /// been told yet.
    turn: Turn,
    before: Turn,
}

#[derive(Default)]
struct Turn {
    began_ns: u64,
    /// When to take the next sample.
    due_ns: u64,
    /// When the thread was asked and what the kernel said then; `None` if it has answered since, or
    /// was not asked.
    asked: Option<(u64, Arc<[Box<str>]>)>,
    /// How long the thread had waited for processors when the turn was first seen, in nanoseconds;
    /// `None` if it was over by then or the kernel does not say.
    waited_before_ns: Option<u64>,
    samples: Vec<Sample>,
}

impl Tracked {
    pub(super) fn new(line: Arc<Line>) -> Self {
        let delay = RunDelay::of(line.thread.tid);
        Self { line, delay, turn: Turn::default(), before: Turn::default() }
    }

    pub(super) fn is(&self, line: &Arc<Line>) -> bool {
        Arc::ptr_eq(&self.line, line)
    }
}

impl Turn {
    fn answered(&mut self, at_ns: u64, chain: &[u64]) {
        let kernel = self.asked.take().map_or_else(|| Arc::from([]), |(_, kernel)| kernel);
        // A core that waits for one thing stays at one place: its stack is kept once.
        let last = self.samples.last();
        let chain = last.filter(|last| *last.chain == *chain).map_or_else(|| chain.into(), |last| last.chain.clone());
        let kernel = last.filter(|last| last.kernel == kernel).map_or(kernel, |last| last.kernel.clone());
        self.samples.push(Sample { at_ns: at_ns - self.began_ns, stands_for_ns: 0, kernel, chain });
    }
}

pub(super) struct Watcher {
    shared: Arc<WatchState>,
    messages: Receiver<Message>,
    report: Report,
    /// Made at the first stall; `None` before that.
    asker: Option<Asker>,
    /// Whether signals are not available, since another part of the process handles them.
    no_asker: bool,
    /// Whether the kernel refuses to say where threads are blocked.
    no_kernel: bool,
    /// When a turn was last seen, in nanoseconds since the origin.
    active_ns: u64,
}

impl Watcher {
    pub(super) fn new(shared: Arc<WatchState>, messages: Receiver<Message>, report: Report) -> Self {
        Self { shared, messages, report, asker: None, no_asker: false, no_kernel: false, active_ns: 0 }
    }

    pub(super) fn run(mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            let wait_ns = self.look();
            let idle = self.shared.ns(Instant::now()).saturating_sub(self.active_ns) > IDLE;
            let message = if idle { self.sleep() } else { self.messages.recv_timeout(Duration::from_nanos(wait_ns)) };
            match message {
                Ok(message) => {
                    self.take(message);
                    // Cores that stall together end together. Take all their messages before the
                    // next look, which may see their next turns.
                    while let Ok(message) = self.messages.try_recv() {
                        self.take(message);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The sender lives until `stop` is set.
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Awake => self.active_ns = self.shared.ns(Instant::now()),
            Message::Stalled { line, began_ns, lasted_ns, waited } => self.ended(&line, (began_ns, lasted_ns), waited),
        }
    }

    /// Sleeps until a core has something to do.
    fn sleep(&mut self) -> Result<Message, RecvTimeoutError> {
        self.shared.asleep.store(true, Ordering::SeqCst);
        // A core that has not seen the flag yet has begun its turn by the time of the look below,
        // which sees it.
        let mut message = self.messages.recv_timeout(Duration::from_nanos(LOOK));
        if matches!(message, Err(RecvTimeoutError::Timeout)) {
            let before = self.active_ns;
            self.look();
            if self.active_ns == before {
                message = self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected);
            }
        }
        self.shared.asleep.store(false, Ordering::Relaxed);
        message
    }

    /// Looks at all cores once; returns the nanoseconds until the next look is due.
    fn look(&mut self) -> u64 {
        let shared = Arc::clone(&self.shared);
        let bound = shared.bound_ns;
        let now = shared.ns(Instant::now());
        let mut next = now + LOOK.min(2 * bound);
        let mut cores = locked(&shared.cores);
        self.answers(&mut cores);
        for tracked in cores.iter_mut() {
            let state = tracked.line.state.load(Ordering::Acquire);
            let (began_ns, open) = (state >> FLAGS, state & CLOSED == 0);
            if began_ns != tracked.turn.began_ns {
                let waited_before_ns = tracked.delay.as_ref().filter(|_| open).and_then(RunDelay::ns);
                let fresh = Turn { began_ns, due_ns: began_ns + bound + 1, waited_before_ns, ..Turn::default() };
                tracked.before = std::mem::replace(&mut tracked.turn, fresh);
                if state & QUIET == 0 {
                    self.active_ns = now;
                }
            }
            if open && state & QUIET == 0 {
                self.active_ns = now;
            }
            let (line, turn) = (&tracked.line, &mut tracked.turn);
            if !open || turn.samples.len() >= SAMPLES_MAX {
                continue;
            }
            let waits = turn.asked.as_ref().is_some_and(|(at, _)| now < at + ANSWER);
            if now >= turn.due_ns && !waits {
                let kernel = self.kernel_stack(line.thread.tid);
                // The turn may have ended meanwhile: invariant 3 of `mod.rs`.
                if line.state.load(Ordering::Acquire) == state && self.ask(line.thread.tid) {
                    turn.asked = Some((now, kernel));
                }
                turn.due_ns = now + MS.max(now.saturating_sub(began_ns) / SPARSER);
            }
            next = next.min(turn.due_ns.max(now + MS / 2));
        }
        next - now
    }

    fn kernel_stack(&mut self, tid: u32) -> Arc<[Box<str>]> {
        if !self.no_kernel {
            match threads::kernel_stack(tid) {
                Some(stack) => return stack.into(),
                None => self.no_kernel = true,
            }
        }
        Arc::from([])
    }

    fn ask(&mut self, tid: u32) -> bool {
        if self.asker.is_none() && !self.no_asker {
            self.asker = Asker::new().ok();
            self.no_asker = self.asker.is_none();
        }
        self.asker.as_ref().is_some_and(|asker| asker.ask(tid))
    }

    /// Adds the stacks that have come to the turns in which they were taken.
    fn answers(&self, cores: &mut [Tracked]) {
        let Some(asker) = &self.asker else { return };
        asker.answers(|tid, at_ns, chain| {
            let at_ns = at_ns.saturating_sub(self.shared.origin_ns);
            let Some(tracked) = cores.iter_mut().find(|tracked| tracked.line.thread.tid == tid) else { return };
            for turn in [&mut tracked.turn, &mut tracked.before] {
                if turn.began_ns <= at_ns && (turn.asked.is_some() || !turn.samples.is_empty()) {
                    return turn.answered(at_ns, chain);
                }
            }
        });
    }

    /// Keeps a stall and reports it.
    fn ended(&mut self, line: &Arc<Line>, (began_ns, lasted_ns): (u64, u64), waited: Waited) {
        let mut cores = locked(&self.shared.cores);
        self.answers(&mut cores);
        let tracked = cores.iter_mut().find(|tracked| tracked.is(line));
        let turn = tracked.and_then(|tracked| {
            [&mut tracked.turn, &mut tracked.before].into_iter().find(|turn| turn.began_ns == began_ns)
        });
        // The turn stays, in case the thread still answers a question about it; its samples move
        // into the stall.
        let before_ns = turn.as_ref().and_then(|turn| turn.waited_before_ns);
        let mut samples = turn.map(|turn| std::mem::take(&mut turn.samples)).unwrap_or_default();
        drop(cores);
        samples.retain(|sample| sample.at_ns <= lasted_ns);
        let mut before = 0;
        for sample in &mut samples {
            sample.stands_for_ns = sample.at_ns.saturating_sub(before);
            before = sample.at_ns.max(before);
        }
        if let Some(last) = samples.last_mut() {
            last.stands_for_ns += lasted_ns - before;
        }
        let ago_ns = self.shared.ns(Instant::now()).saturating_sub(began_ns);
        let stall = Arc::new(Stall {
            began_unix_ms: threads::unix_ms().saturating_sub(ago_ns / MS),
            core: line.core,
            thread: line.thread.clone(),
            duration: Duration::from_nanos(lasted_ns),
            waited: Duration::from_nanos(waited.with(before_ns).min(lasted_ns)),
            samples,
        });
        if stall.was_kept_waiting() {
            self.shared.kept_waiting.fetch_add(1, Ordering::Relaxed);
        }
        let mut kept = locked(&self.shared.kept);
        kept.push_back(Arc::clone(&stall));
        let mut bytes: usize = kept.iter().map(|stall| stall.bytes()).sum();
        while kept.len() > KEPT_MAX || (kept.len() > 1 && bytes > KEPT_BYTES_MAX) {
            bytes -= kept.pop_front().map_or(0, |oldest| oldest.bytes());
        }
        drop(kept);
        (self.report)(&stall);
    }
}

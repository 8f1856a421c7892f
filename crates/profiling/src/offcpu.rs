//! Time off the processor: every context switch of the process, with the stack of the thread that
//! left.
//!
//! A software event counts context switches in the thread that leaves and samples each with its
//! stack; records of switches say when a thread comes back, on whichever processor. In the time
//! between, the thread waited at that stack, or was ready to run and was not let run. Waiting for
//! work in io_uring or epoll is idleness: it is left out unless the caller asks for it, and the
//! capture says how much it was.
//!
//! Owner: a thread of its own, for which the caller waits. Bounds: [`RATE_MAX`] switches of the
//! process a second (the rest of that second is not captured, and the capture says so),
//! [`SECONDS_MAX`], one waiting stack for each thread. Left out: a thread that is blocked during
//! the whole capture and so never leaves a processor. A thread that still waits at the end counts
//! until then. This needs `CAP_PERFMON`; there is no other engine. Tested below (the pairing) and
//! in `tests/engines.rs`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::capture::{Capture, Event as What, ValueType};
use crate::collect::{Chain, Collected, Raw};
use crate::engine::{self, EngineError};
use crate::perf::abi::Attr;
use crate::perf::event::{self, Event};
use crate::perf::record::{self, Record, Records};
use crate::perf::{self, DRAIN_MS};
use crate::symbols::Symbols;
use crate::threads;

/// The longest capture, in seconds.
pub const SECONDS_MAX: u32 = 60;
/// Switches of the process that are captured in a second: they cost about 5 % of one processor.
pub const RATE_MAX: u32 = 20_000;
/// The kernel's functions that wait for work, and the C library's names for them, for a kernel
/// without names.
const IDLE: [&str; 6] = ["io_cqring_wait", "ep_poll", "do_epoll_wait", "do_epoll_pwait", "epoll_wait", "epoll_pwait"];

const SECOND_NS: u64 = 1_000_000_000;

/// What to capture of the time off the processor.
#[derive(Clone, Debug)]
pub struct OffCpuRequest {
    /// How long to capture, 1 to [`SECONDS_MAX`].
    pub seconds: u32,
    /// Whether to include the time that threads wait for work.
    pub idle: bool,
    /// Set to end the capture early, within 100 ms; the capture then has the samples taken so far.
    pub stop: Arc<AtomicBool>,
}

/// Captures time off the processor. Blocks until the capture ends.
pub fn capture_off_cpu(request: &OffCpuRequest) -> Result<Capture, EngineError> {
    engine::within("seconds", request.seconds, SECONDS_MAX)?;
    engine::on_own_thread(|| capture(request))
}

fn capture(request: &OffCpuRequest) -> Result<Capture, EngineError> {
    let mut events = perf::open(&Attr::switches())?;
    let types = vec![ValueType::new("contentions", "count"), ValueType::new("delay", "nanoseconds")];
    let mut capture = Capture::new(What::OffCpu, threads::unix_ms(), types, 1);
    let mut switches = Switches { pid: std::process::id(), own_tid: threads::own_tid(), ..Switches::default() };
    let (began, used) = (threads::monotonic_ns(), threads::process_cpu_ns());
    let until = began + SECOND_NS * u64::from(request.seconds);
    let (mut second, mut paused_ns) = (began, 0);
    let mut bytes = Vec::new();
    switch(&events, true)?;
    while !request.stop.load(Ordering::Relaxed) {
        let now = threads::monotonic_ns();
        if now >= until {
            break;
        }
        if now - second >= SECOND_NS {
            (second, switches.left) = (now, 0);
        }
        event::wait(&events, (until - now).div_ceil(1_000_000).min(DRAIN_MS.into()) as u32);
        switches.drain(&mut events, &mut bytes);
        if switches.left >= RATE_MAX {
            switch(&events, false)?;
            let from = threads::monotonic_ns();
            let resume = (second + SECOND_NS).min(until);
            while threads::monotonic_ns() < resume && !request.stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(DRAIN_MS.into()));
            }
            // Nobody has recorded which threads came back meanwhile.
            switches.drain(&mut events, &mut bytes);
            switches.forget();
            paused_ns += threads::monotonic_ns() - from;
            switch(&events, true)?;
        }
    }
    switch(&events, false)?;
    let ended = threads::monotonic_ns();
    capture.duration_ns = ended - began;
    capture.accounted_ns = threads::process_cpu_ns() - used;
    switches.drain(&mut events, &mut bytes);
    drop(events);
    switches.end(ended);
    (capture.lost, capture.throttled) = (switches.lost, switches.throttled);

    let mut symbols = Symbols::new();
    let mut idle_ns = 0;
    if !request.idle {
        // A compiler names a part of a function that it has split `do_epoll_wait.part.0`.
        let idle = |name: &str| IDLE.contains(&name.split_once('.').map_or(name, |(name, _)| name));
        let mut is_idle = |address: &u64| symbols.frames(*address).iter().any(|frame| idle(&frame.function));
        let removed = switches.collected.remove_chains(|chain| chain.iter().any(&mut is_idle));
        idle_ns = removed.iter().map(|raw| raw.values[1] as u64).sum();
    }
    switches.collected.into_capture(&mut capture, began, &mut symbols);
    let seconds = |ns: u64| ns as f64 / 1e9;
    let mut text = "context switches of every processor with the stacks that were left, by perf events".to_owned();
    if !request.idle {
        text += &format!("; {:.3} s of waiting for work in io_uring and epoll are left out", seconds(idle_ns));
    }
    if !Symbols::kernel_named() {
        text +=
            "; kernel functions have no names (CAP_SYSLOG, kptr_restrict), so waiting in io_uring is not told apart";
    }
    if paused_ns > 0 {
        text += &format!(
            "; {:.3} s were not captured: there were more than {RATE_MAX} switches a second",
            seconds(paused_ns)
        );
    }
    capture.engine = format!("{text}; lost {}, throttled {}", capture.lost, capture.throttled);
    Ok(capture)
}

fn switch(events: &[Event], on: bool) -> Result<(), EngineError> {
    events.iter().try_for_each(if on { Event::enable } else { Event::disable }).map_err(EngineError::Io)
}

/// A thread leaves a processor with its stack (`left`), or comes back (`None`).
#[derive(Clone, Copy, Debug)]
struct Turn {
    at_ns: u64,
    tid: u32,
    left: Option<(Chain, u16)>,
}

/// Pairs each leaving of a thread with its return.
#[derive(Debug, Default)]
struct Switches {
    pid: u32,
    /// The thread that captures: its own waits are left out.
    own_tid: u32,
    lost: u64,
    throttled: u64,
    /// How many times threads have left since the second began.
    left: u32,
    collected: Collected,
    /// Not paired yet, since another processor's ring may have earlier ones.
    turns: Vec<Turn>,
    away: HashMap<u32, (u64, Chain, u16)>,
    addresses: Vec<u64>,
}

impl Switches {
    fn drain(&mut self, events: &mut [Event], bytes: &mut Vec<u8>) {
        // Whatever is older than this is in the rings by now, on every processor.
        let horizon = threads::monotonic_ns();
        for event in events {
            bytes.clear();
            if !event.drain(bytes) {
                self.lost += 1;
            }
            self.read(bytes);
        }
        self.pair(horizon);
    }

    fn read(&mut self, bytes: &[u8]) {
        for record in Records(bytes) {
            match record {
                Record::Sample(sample) if sample.pid == self.pid && sample.tid != self.own_tid => {
                    self.left += 1;
                    record::addresses(sample.chain, &mut self.addresses);
                    let Some(chain) = self.collected.chain(&self.addresses) else { continue };
                    let left = Some((chain, u16::try_from(sample.cpu).unwrap_or(u16::MAX)));
                    self.turns.push(Turn { at_ns: sample.at_ns, tid: sample.tid, left });
                }
                Record::Switch { pid, tid, at_ns, out: false } if pid == self.pid => {
                    self.turns.push(Turn { at_ns, tid, left: None });
                }
                Record::Lost(records) => {
                    self.lost = self.lost.saturating_add(records);
                    // The return of any thread may be among the lost records: no time is better
                    // than a wrong one.
                    self.forget();
                }
                Record::Throttle => {
                    self.throttled += 1;
                    self.forget();
                }
                Record::Malformed => self.lost += 1,
                Record::Sample(_) | Record::Switch { .. } | Record::Other => {}
            }
        }
    }

    /// Pairs what happened before `horizon`, in order of time.
    fn pair(&mut self, horizon: u64) {
        self.turns.sort_by_key(|turn| turn.at_ns);
        let count = self.turns.partition_point(|turn| turn.at_ns < horizon);
        for turn in self.turns.drain(..count) {
            match turn.left {
                Some((chain, cpu)) => {
                    self.away.insert(turn.tid, (turn.at_ns, chain, cpu));
                }
                None => {
                    if let Some(away) = self.away.remove(&turn.tid) {
                        self.collected.push(waited(turn.tid, away, turn.at_ns));
                    }
                }
            }
        }
    }

    /// Forgets which threads are away.
    fn forget(&mut self) {
        self.turns.clear();
        self.away.clear();
    }

    /// Counts the threads that are still away as waiting until `now`.
    fn end(&mut self, now: u64) {
        self.pair(u64::MAX);
        for (tid, away) in std::mem::take(&mut self.away) {
            self.collected.push(waited(tid, away, now));
        }
    }
}

fn waited(tid: u32, (at_ns, chain, cpu): (u64, Chain, u16), until: u64) -> Raw {
    Raw { at_ns, tid, cpu, chain, values: [1, until.saturating_sub(at_ns) as i64, 0, 0] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaving_and_coming_pair_up_in_order_of_time_whichever_ring_they_are_in() {
        let mut switches = Switches::default();
        let chain = switches.collected.chain(&[1, 2]).expect("room");
        let out = |at_ns, tid| Turn { at_ns, tid, left: Some((chain, 0)) };
        let back = |at_ns, tid| Turn { at_ns, tid, left: None };
        // A return whose leaving was before the capture; two threads; a return read before its
        // leaving; one beyond the horizon.
        switches.turns = vec![back(5, 7), back(30, 7), out(10, 7), out(12, 8), out(200, 7)];
        switches.pair(100);
        let waits = |switches: &Switches| -> Vec<_> {
            switches.collected.samples().iter().map(|raw| (raw.tid, raw.at_ns, raw.values[1])).collect()
        };
        assert_eq!(waits(&switches), [(7, 10, 20)]);
        // Thread 8 and, from 200 on, thread 7 are still away at the end.
        switches.end(250);
        let mut waits = waits(&switches);
        waits.sort_unstable();
        assert_eq!(waits, [(7, 10, 20), (7, 200, 50), (8, 12, 238)]);
    }

    #[test]
    fn after_a_loss_nobody_is_away() {
        let mut switches = Switches::default();
        let chain = switches.collected.chain(&[1]).expect("room");
        switches.turns = vec![Turn { at_ns: 1, tid: 7, left: Some((chain, 0)) }];
        switches.pair(10);
        switches.forget();
        switches.turns = vec![Turn { at_ns: 20, tid: 7, left: None }];
        switches.end(30);
        assert!(switches.collected.samples().is_empty());
    }
}

//! CPU time by perf events: the kernel's own timer on each processor, kernel and user stacks, no
//! signals.
//!
//! There is one event for each processor and all its processes, since one for each thread costs
//! five times as much at a context switch; records of other processes are skipped by their process
//! id. This needs `CAP_PERFMON` (or `perf_event_paranoid` ≤ 0); kernel names need `CAP_SYSLOG`. The
//! user-only events that need no privilege are not used: they lose all time in system calls.
//!
//! Owner: the thread that calls [`capture`], which should not be a core's. Bounds: a ring of half a
//! megabyte for each processor, read every 50 ms; what does not fit is counted as lost. Tested in
//! `record.rs` (bytes) and in `tests/engines.rs`.

pub(crate) mod abi;
pub(crate) mod event;
pub(crate) mod record;

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::capture::{Capture, Event as What, ValueType};
use crate::collect::{Collected, Raw};
use crate::cpu_request::{CpuRequest, EngineError};
use crate::symbols::Symbols;
use crate::threads;
use abi::Attr;
use event::Event;
use record::{Record, Records};

/// Milliseconds between two readings of the rings.
pub(crate) const DRAIN_MS: u32 = 50;

/// Opens an event on each processor.
pub(crate) fn open(attr: &Attr) -> Result<Vec<Event>, EngineError> {
    let mut events = Vec::new();
    for cpu in threads::processors() {
        match Event::open(attr, cpu) {
            Ok(event) => events.push(event),
            // The processor was taken away after the list was read.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => return Err(refused(error)),
        }
    }
    if events.is_empty() {
        return Err(EngineError::Io(io::Error::other("no processor is online")));
    }
    Ok(events)
}

fn refused(error: io::Error) -> EngineError {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            let paranoid = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
            let detail = match paranoid.trim() {
                "" => "perf_event_open is not permitted".to_owned(),
                level => format!("perf_event_paranoid={level} and no CAP_PERFMON, or a seccomp filter"),
            };
            EngineError::Forbidden { capability: "CAP_PERFMON", detail }
        }
        Some(libc::ENOSYS | libc::ENOENT | libc::EOPNOTSUPP) => EngineError::Forbidden {
            capability: "CONFIG_PERF_EVENTS",
            detail: format!("this kernel has no perf events ({error})"),
        },
        _ => EngineError::Io(error),
    }
}

/// Checks whether events of all processors are permitted.
pub(crate) fn permitted() -> Result<(), EngineError> {
    let first = threads::processors().first().copied().unwrap_or(0);
    Event::open(&Attr::cpu(1), first).map(drop).map_err(refused)
}

/// The highest rate in Hz that the kernel permits now. It lowers the limit by itself when samples
/// take it too long, and refuses events above it.
fn rate_max() -> u32 {
    let limit = std::fs::read_to_string("/proc/sys/kernel/perf_event_max_sample_rate").ok();
    limit.and_then(|limit| limit.trim().parse().ok()).map_or(u32::MAX, |limit: u32| limit.max(1))
}

/// Captures on the calling thread until the request is over.
pub(crate) fn capture(request: &CpuRequest) -> Result<Capture, EngineError> {
    let hz = request.hz.min(rate_max());
    let mut events = open(&Attr::cpu(hz))?;
    let types = vec![ValueType::new("samples", "count"), ValueType::new("cpu", "nanoseconds")];
    let mut capture = Capture::new(What::Cpu, threads::unix_ms(), types, 1);
    let mut cpu = Cpu {
        pid: std::process::id(),
        resolution_ns: threads::timer_resolution_ns(),
        period_ns: 1_000_000_000 / u64::from(hz),
        ..Cpu::default()
    };
    let (began, used) = (threads::monotonic_ns(), threads::process_cpu_ns());
    events.iter().try_for_each(Event::enable).map_err(EngineError::Io)?;
    let until = began + Duration::from_secs(request.seconds.into()).as_nanos() as u64;
    let mut bytes = Vec::new();
    while !request.stop.load(Ordering::Relaxed) {
        let left_ms = until.saturating_sub(threads::monotonic_ns()).div_ceil(1_000_000);
        if left_ms == 0 {
            break;
        }
        event::wait(&events, left_ms.min(DRAIN_MS.into()) as u32);
        cpu.drain(&mut events, &mut bytes);
    }
    events.iter().try_for_each(Event::disable).map_err(EngineError::Io)?;
    capture.duration_ns = threads::monotonic_ns() - began;
    capture.accounted_ns = threads::process_cpu_ns() - used;
    cpu.drain(&mut events, &mut bytes);
    drop(events);
    (capture.lost, capture.throttled) = (cpu.lost, cpu.throttled);
    capture.period = Some((ValueType::new("cpu", "nanoseconds"), cpu.period_ns as i64));
    if hz < request.hz {
        capture.engine = format!("; {hz} Hz is what perf_event_max_sample_rate permits");
    }
    cpu.collected.into_capture(&mut capture, began, &mut Symbols::new());
    Ok(capture)
}

/// What has been read from the rings so far.
#[derive(Debug, Default)]
struct Cpu {
    pid: u32,
    resolution_ns: u64,
    period_ns: u64,
    lost: u64,
    throttled: u64,
    collected: Collected,
    addresses: Vec<u64>,
}

impl Cpu {
    fn drain(&mut self, events: &mut [Event], bytes: &mut Vec<u8>) {
        for event in events {
            bytes.clear();
            if !event.drain(bytes) {
                self.lost += 1;
            }
            self.read(bytes);
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        for record in Records(bytes) {
            match record {
                Record::Sample(sample) if sample.pid == self.pid => {
                    // This is the period that the kernel really set, rounded up to the resolution
                    // of its timer: if that is a tick, no shorter period fires, whatever was
                    // requested.
                    let period = sample.period.max(1).next_multiple_of(self.resolution_ns);
                    self.period_ns = period;
                    record::addresses(sample.chain, &mut self.addresses);
                    let Some(chain) = self.collected.chain(&self.addresses) else { continue };
                    self.collected.push(Raw {
                        at_ns: sample.at_ns,
                        tid: sample.tid,
                        cpu: u16::try_from(sample.cpu).unwrap_or(u16::MAX),
                        chain,
                        values: [1, period as i64, 0, 0],
                    });
                }
                Record::Lost(records) => self.lost = self.lost.saturating_add(records),
                Record::Throttle => self.throttled += 1,
                Record::Malformed => self.lost += 1,
                Record::Sample(_) | Record::Switch { .. } | Record::Other => {}
            }
        }
    }
}

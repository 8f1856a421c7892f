//! What `perf_event_open(2)` takes: the attribute and its numbers, from `linux/perf_event.h`.
//!
//! Written by hand instead of using a generated crate: it is two events, eleven numbers and one
//! structure of a stable ABI.

/// `PERF_TYPE_SOFTWARE`.
pub(crate) const TYPE_SOFTWARE: u32 = 1;
/// `PERF_COUNT_SW_CPU_CLOCK`: a high-resolution timer on each processor.
pub(crate) const SW_CPU_CLOCK: u64 = 0;
/// `PERF_COUNT_SW_CONTEXT_SWITCHES`: counted in the context of the thread that leaves.
pub(crate) const SW_CONTEXT_SWITCHES: u64 = 3;

/// `PERF_SAMPLE_IP | TID | TIME | CALLCHAIN | CPU | PERIOD`: the only layout that [`super::record`]
/// reads.
pub(crate) const SAMPLE_TYPE: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 5 | 1 << 7 | 1 << 8;

/// `PERF_RECORD_LOST`.
pub(crate) const RECORD_LOST: u32 = 2;
/// `PERF_RECORD_THROTTLE`.
pub(crate) const RECORD_THROTTLE: u32 = 5;
/// `PERF_RECORD_SAMPLE`.
pub(crate) const RECORD_SAMPLE: u32 = 9;
/// `PERF_RECORD_LOST_SAMPLES`.
pub(crate) const RECORD_LOST_SAMPLES: u32 = 13;
/// `PERF_RECORD_SWITCH_CPU_WIDE`.
pub(crate) const RECORD_SWITCH_CPU_WIDE: u32 = 15;
/// `PERF_RECORD_MISC_SWITCH_OUT`.
pub(crate) const MISC_SWITCH_OUT: u16 = 1 << 13;

/// `PERF_CONTEXT_KERNEL` (−128): the addresses that follow in a chain are the kernel's.
pub(crate) const CONTEXT_KERNEL: u64 = -128_i64 as u64;
/// `PERF_CONTEXT_USER` (−512): the addresses that follow in a chain are the process's.
pub(crate) const CONTEXT_USER: u64 = -512_i64 as u64;
/// `PERF_CONTEXT_MAX` (−4095): values from here up are marks, not addresses.
pub(crate) const CONTEXT_MAX: u64 = -4095_i64 as u64;

/// Flag bits of [`Attr::flags`].
pub(crate) mod flag {
    /// The event is disabled at first.
    pub(crate) const DISABLED: u64 = 1;
    /// The idle thread is not sampled.
    pub(crate) const EXCLUDE_IDLE: u64 = 1 << 7;
    /// `sample_period` is a frequency in Hz.
    pub(crate) const FREQ: u64 = 1 << 10;
    /// `wakeup` is in bytes.
    pub(crate) const WATERMARK: u64 = 1 << 14;
    /// All records, not only samples, end with thread, time and processor.
    pub(crate) const SAMPLE_ID_ALL: u64 = 1 << 18;
    /// Times are those of the clock [`super::Attr::clockid`].
    pub(crate) const USE_CLOCKID: u64 = 1 << 25;
    /// Context switches are recorded.
    pub(crate) const CONTEXT_SWITCH: u64 = 1 << 26;
}

/// `PERF_FLAG_FD_CLOEXEC`.
pub(crate) const FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
/// `PERF_EVENT_IOC_ENABLE`, `_IO('$', 0)`.
pub(crate) const IOC_ENABLE: u32 = 0x2400;
/// `PERF_EVENT_IOC_DISABLE`, `_IO('$', 1)`.
pub(crate) const IOC_DISABLE: u32 = 0x2401;

/// The offset of `data_head` in the first page of a ring.
pub(crate) const DATA_HEAD: usize = 1024;
/// The offset of `data_tail` in the first page of a ring.
pub(crate) const DATA_TAIL: usize = 1032;

/// `struct perf_event_attr`, version 5 (Linux 4.1). The kernel accepts structures shorter than its
/// own and goes by `size`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attr {
    pub(crate) kind: u32,
    pub(crate) size: u32,
    pub(crate) config: u64,
    pub(crate) period_or_freq: u64,
    pub(crate) sample_type: u64,
    pub(crate) read_format: u64,
    pub(crate) flags: u64,
    pub(crate) wakeup: u32,
    pub(crate) bp_type: u32,
    pub(crate) config1: u64,
    pub(crate) config2: u64,
    pub(crate) branch_sample_type: u64,
    pub(crate) sample_regs_user: u64,
    pub(crate) sample_stack_user: u32,
    pub(crate) clockid: i32,
    pub(crate) sample_regs_intr: u64,
    pub(crate) aux_watermark: u32,
    pub(crate) sample_max_stack: u16,
    pub(crate) reserved: u16,
}

const _: () = assert!(size_of::<Attr>() == 112 && core::mem::offset_of!(Attr, flags) == 40);
const _: () = assert!(core::mem::offset_of!(Attr, clockid) == 92);

impl Attr {
    /// Samples CPU time, `hz` times for each second of a processor's time.
    pub(crate) fn cpu(hz: u32) -> Self {
        let flags = flag::FREQ | flag::EXCLUDE_IDLE;
        Self { config: SW_CPU_CLOCK, period_or_freq: u64::from(hz), ..Self::common(flags) }
    }

    /// Samples each thread that leaves a processor, and records each that comes back.
    pub(crate) fn switches() -> Self {
        let flags = flag::CONTEXT_SWITCH | flag::SAMPLE_ID_ALL;
        Self { config: SW_CONTEXT_SWITCHES, period_or_freq: 1, ..Self::common(flags) }
    }

    fn common(flags: u64) -> Self {
        Self {
            kind: TYPE_SOFTWARE,
            size: size_of::<Self>() as u32,
            sample_type: SAMPLE_TYPE,
            flags: flags | flag::DISABLED | flag::WATERMARK | flag::USE_CLOCKID,
            wakeup: 128 * 1024,
            clockid: libc::CLOCK_MONOTONIC,
            ..Self::default()
        }
    }
}

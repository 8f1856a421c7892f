//! What `perf_event_open(2)` takes: the attribute and its numbers, from `linux/perf_event.h`.
//!
//! By hand rather than from a generated crate: two events, eleven numbers and one structure of stable ABI.

/// `PERF_TYPE_SOFTWARE`.
pub(crate) const TYPE_SOFTWARE: u32 = 1;
/// `PERF_COUNT_SW_CPU_CLOCK`: a high-resolution timer on each processor.
pub(crate) const SW_CPU_CLOCK: u64 = 0;
/// `PERF_COUNT_SW_CONTEXT_SWITCHES`: counted in the context of the thread that leaves.
pub(crate) const SW_CONTEXT_SWITCHES: u64 = 3;

/// `PERF_SAMPLE_IP | TID | TIME | CALLCHAIN | CPU | PERIOD`: the one layout that [`super::record`] reads.
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

/// `PERF_CONTEXT_KERNEL` (−128): what follows in a chain is the kernel's.
pub(crate) const CONTEXT_KERNEL: u64 = -128_i64 as u64;
/// `PERF_CONTEXT_USER` (−512): what follows in a chain is the process's.
pub(crate) const CONTEXT_USER: u64 = -512_i64 as u64;
/// `PERF_CONTEXT_MAX` (−4095): values from here up are marks, not addresses.
pub(crate) const CONTEXT_MAX: u64 = -4095_i64 as u64;

/// Flag bits of [`Attr::flags`].
pub(crate) mod flag {
    /// Starts disabled.
    pub(crate) const DISABLED: u64 = 1;
    /// No samples in the idle thread.
    pub(crate) const EXCLUDE_IDLE: u64 = 1 << 7;
    /// `sample_period` is a frequency.
    pub(crate) const FREQ: u64 = 1 << 10;
    /// `wakeup` is in bytes.
    pub(crate) const WATERMARK: u64 = 1 << 14;
    /// All records, not samples alone, end with thread, time and processor.
    pub(crate) const SAMPLE_ID_ALL: u64 = 1 << 18;
    /// Times are of [`super::Attr::clockid`].
    pub(crate) const USE_CLOCKID: u64 = 1 << 25;
    /// Records of context switches.
    pub(crate) const CONTEXT_SWITCH: u64 = 1 << 26;
}

/// `PERF_FLAG_FD_CLOEXEC`.
pub(crate) const FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
/// `PERF_EVENT_IOC_ENABLE`, `_IO('$', 0)`.
pub(crate) const IOC_ENABLE: u32 = 0x2400;
/// `PERF_EVENT_IOC_DISABLE`, `_IO('$', 1)`.
pub(crate) const IOC_DISABLE: u32 = 0x2401;

/// Where `data_head` is in the first page of a ring.
pub(crate) const DATA_HEAD: usize = 1024;
/// Where `data_tail` is in the first page of a ring.
pub(crate) const DATA_TAIL: usize = 1032;

/// `struct perf_event_attr`, version 5 (Linux 4.1): the kernel takes shorter ones than its own, by `size`.
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
    /// CPU time, `hz` times a second of each processor.
    pub(crate) fn cpu(hz: u32) -> Self {
        let flags = flag::FREQ | flag::EXCLUDE_IDLE;
        Self { config: SW_CPU_CLOCK, period_or_freq: u64::from(hz), ..Self::common(flags) }
    }

    /// Each time a thread leaves a processor, and each time one comes.
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

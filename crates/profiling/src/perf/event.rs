//! One perf event of one processor, with its ring.
//!
//! Owner: the thread that captures. Bound: a ring has at most [`PAGES_MAX`] pages.
//!
//! Invariants:
//! 1. `base` is a mapping of `length` bytes, shared with the kernel, from `open` until drop; nobody
//!    else has its address.
//! 2. The kernel writes into the data only outside `[tail, head)`; it learns of a new tail only
//!    after the bytes before it have been copied.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use super::abi::{self, Attr};
use super::record;

/// Pages of data in a ring: enough for half a second at 999 Hz and a kilobyte for each sample.
const PAGES_MAX: usize = 128;
/// The fewest pages that are tried if the kernel refuses to lock more memory.
const PAGES_MIN: usize = 16;

/// One event and its ring: see the head of the file.
#[derive(Debug)]
pub(crate) struct Event {
    fd: OwnedFd,
    base: *mut u8,
    length: usize,
    page: usize,
}

// SAFETY: by invariant 1 the mapping belongs to this value alone, on whichever thread it is.
unsafe impl Send for Event {}

impl Event {
    /// Opens the event on one processor, for all processes; it is disabled at first.
    pub(crate) fn open(attr: &Attr, cpu: u32) -> io::Result<Self> {
        // SAFETY: the kernel reads `attr.size` bytes of `attr`, which is that long.
        let fd =
            unsafe { libc::syscall(libc::SYS_perf_event_open, attr, -1, cpu as libc::c_int, -1, abi::FLAG_FD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just opened this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        // SAFETY: no memory is involved.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let mut pages = PAGES_MAX;
        loop {
            let length = (1 + pages) * page;
            // SAFETY: a new mapping, wherever the kernel puts it.
            let base = unsafe {
                let protection = libc::PROT_READ | libc::PROT_WRITE;
                libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0)
            };
            if base != libc::MAP_FAILED {
                return Ok(Self { fd, base: base.cast(), length, page });
            }
            let error = io::Error::last_os_error();
            // A smaller ring may be within what may be locked (RLIMIT_MEMLOCK,
            // perf_event_mlock_kb).
            if error.raw_os_error() != Some(libc::EPERM) || pages <= PAGES_MIN {
                return Err(error);
            }
            pages /= 2;
        }
    }

    /// The descriptor, for `poll`.
    pub(crate) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Starts the event.
    pub(crate) fn enable(&self) -> io::Result<()> {
        self.control(abi::IOC_ENABLE)
    }

    /// Stops the event.
    pub(crate) fn disable(&self) -> io::Result<()> {
        self.control(abi::IOC_DISABLE)
    }

    fn control(&self, request: u32) -> io::Result<()> {
        // SAFETY: this ioctl uses no memory, and the descriptor is open.
        if unsafe { libc::ioctl(self.fd.as_raw_fd(), request.into(), 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Moves the bytes in the ring to the end of `into`. `false` if the ring contradicts itself, in
    /// which case its bytes are discarded.
    pub(crate) fn drain(&mut self, into: &mut Vec<u8>) -> bool {
        // SAFETY: by invariant 1 both are in the first page, and they are aligned to 8.
        let (head, tail) = unsafe {
            (&*self.base.add(abi::DATA_HEAD).cast::<AtomicU64>(), &*self.base.add(abi::DATA_TAIL).cast::<AtomicU64>())
        };
        let (until, from) = (head.load(Ordering::Acquire), tail.load(Ordering::Relaxed));
        let spans = record::spans(self.length - self.page, from, until);
        for (offset, length) in spans.into_iter().flatten() {
            into.reserve(length);
            // SAFETY: by invariant 1, and since `spans` returns parts of the data, the source is
            // mapped; by invariant 2 the kernel does not write there now. The vector has just
            // reserved the room, and its memory is no part of the mapping.
            unsafe {
                let source = self.base.add(self.page + offset);
                std::ptr::copy_nonoverlapping(source, into.as_mut_ptr().add(into.len()), length);
                into.set_len(into.len() + length);
            }
        }
        tail.store(until, Ordering::Release);
        spans.is_some()
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: by invariant 1 the mapping is ours; it is not used afterwards.
        unsafe { libc::munmap(self.base.cast(), self.length) };
    }
}

/// Waits until one of the rings is a quarter full, at most for this many milliseconds.
pub(crate) fn wait(events: &[Event], milliseconds: u32) {
    let mut polled: Vec<libc::pollfd> =
        events.iter().map(|event| libc::pollfd { fd: event.fd(), events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: this is an array of this length, and it outlives the call.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, milliseconds as libc::c_int) };
    if polled.iter().any(|fd| fd.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0) {
        // An event whose processor was taken away is always ready: do not poll it in a busy loop.
        std::thread::sleep(std::time::Duration::from_millis(u64::from(milliseconds)));
    }
}

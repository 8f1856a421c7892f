//! Pages of mapped files that cannot be had: the file was cut short, or the disk cannot read them.
//!
//! The kernel answers such an access with SIGBUS, which would end the process for the sake of one
//! page. The handler here puts a page of zeros in its place and counts that for the mapping. What
//! reads there finds a record whose checksum does not match, which is damage as any other; what
//! writes there asks [`Watched::faults`] afterwards. A fault anywhere else goes to whoever had the
//! signal before, so what would have ended the process does so still.
//!
//! Owner: each mapping has a [`Watched`], which lives as long. Bounds: [`SLOTS`] mappings, a few
//! more than there can be segments and sidecars; one beyond that is not watched.
//!
//! Invariants:
//! 1. The handler reads atomics, calls `mmap` and keeps `errno`; it allocates and locks nothing.
//! 2. A slot names a range only while it is mapped: it is filled after mapping and emptied before
//!    unmapping. Start and length are one word, so no half of it is ever seen.
//!
//! Not covered: bytes that were compared with their checksum and are being copied or sent while
//! their file is cut short can end in zeros. (The kernel itself meets the hole as an error, and the
//! connection ends; but another reader may have put zeros there first.)
//!
//! Tested in `tests/cut_short.rs`, and on a running server in `tests/durability/`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use koltso_instrument::Mutex;

use crate::entry;

/// Two for each segment, and as many more as a store being opened beside one that closes may need.
const SLOTS: usize = 2 * entry::SLOTS + 4096;
/// A range is one word: the number of its first page (of 4 KiB), then as many bits for its length.
const PAGE: usize = 4096;
const LEN_BITS: u32 = 18;
/// The longest range that can be watched.
pub(crate) const LEN_MAX: usize = ((1 << LEN_BITS) - 1) * PAGE;

/// A mapping, as the handler sees it.
struct Slot {
    /// 0 for none.
    range: AtomicU64,
    faults: AtomicU32,
}

impl Slot {
    const fn empty() -> Self {
        Self { range: AtomicU64::new(0), faults: AtomicU32::new(0) }
    }

    fn range(&self) -> Option<std::ops::Range<usize>> {
        let range = self.range.load(Ordering::Acquire);
        let (start, pages) = ((range >> LEN_BITS) as usize, range as usize & ((1 << LEN_BITS) - 1));
        (range != 0).then(|| start * PAGE..(start + pages) * PAGE)
    }
}

/// Zeros, so that it costs the memory that is used of it.
static WATCHED: [Slot; SLOTS] = [const { Slot::empty() }; SLOTS];
/// All slots that are or were in use lie below it.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Pages that could not be had since the process began.
static TOTAL: AtomicU64 = AtomicU64::new(0);
/// The size of a page that can be mapped, a power of two.
static PAGE_SIZE: AtomicUsize = AtomicUsize::new(PAGE);
/// What is to be done about a SIGBUS that is none of ours.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
/// Slots below [`USED`] that are empty.
static FREE: OnceLock<Mutex<Vec<u32>>> = OnceLock::new();

fn free() -> &'static Mutex<Vec<u32>> {
    FREE.get_or_init(|| {
        catch();
        Mutex::new(&"watched mappings", Vec::new())
    })
}

/// A mapping in which a fault costs a page of zeros, for as long as this exists.
#[derive(Debug)]
pub(crate) struct Watched {
    /// `None` for a mapping that has no slot.
    slot: Option<u32>,
}

impl Watched {
    /// Watches what is mapped from `start` on, whole pages. Must be dropped before it is unmapped.
    pub(crate) fn new(start: *const u8, len: usize) -> Self {
        let (start, pages) = (start.addr() / PAGE, len.div_ceil(PAGE));
        if pages == 0 || pages * PAGE > LEN_MAX {
            return Self { slot: None };
        }
        let mut free = free().lock();
        let slot = free.pop().or_else(|| {
            let next = USED.load(Ordering::Relaxed);
            (next < SLOTS).then(|| {
                USED.store(next + 1, Ordering::Release);
                next as u32
            })
        });
        drop(free);
        if let Some(slot) = slot {
            let place = &WATCHED[slot as usize];
            place.faults.store(0, Ordering::Relaxed);
            place.range.store((start as u64) << LEN_BITS | pages as u64, Ordering::Release);
        }
        Self { slot }
    }

    /// Pages here that could not be had, and have been zeros since.
    #[inline]
    pub(crate) fn faults(&self) -> u32 {
        self.slot.map_or(0, |slot| WATCHED[slot as usize].faults.load(Ordering::Relaxed))
    }

    /// Counts one that was found by other means.
    pub(crate) fn found(&self) {
        if let Some(slot) = self.slot {
            WATCHED[slot as usize].faults.fetch_add(1, Ordering::Relaxed);
            TOTAL.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            WATCHED[slot as usize].range.store(0, Ordering::Release);
            free().lock().push(slot);
        }
    }
}

/// Pages that could not be had in any mapping since the process began.
pub(crate) fn total() -> u64 {
    TOTAL.load(Ordering::Relaxed)
}

/// Puts zeros in the place of a page, if it is one of a watched mapping.
#[allow(unsafe_code)]
fn cover(address: usize) -> bool {
    let used = USED.load(Ordering::Acquire);
    let mut found = WATCHED[..used].iter().filter_map(|slot| Some((slot, slot.range()?)));
    let Some((slot, range)) = found.find(|(_, range)| range.contains(&address)) else {
        return false;
    };
    let page_size = PAGE_SIZE.load(Ordering::Relaxed);
    let page = address & !(page_size - 1);
    // SAFETY: the page lies in a mapping that the faulting thread holds (invariant 2), and whose
    // bytes nobody takes for granted: they come from a disk.
    let zeros = |start: usize, len: usize| unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(start as *mut libc::c_void, len, protection, flags, -1, 0) != libc::MAP_FAILED
    };
    // A process may have only so many mappings, and each hole makes two: if there are none left, all
    // of this one is given up.
    let covered = zeros(page, page_size) || zeros(range.start, range.len());
    if covered {
        slot.faults.fetch_add(1, Ordering::Relaxed);
        TOTAL.fetch_add(1, Ordering::Relaxed);
    }
    covered
}

/// The handler of SIGBUS. Invariant 1.
#[allow(unsafe_code)]
extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a `siginfo_t`; `errno` is this thread's own.
    let (address, is_fault, errno) =
        unsafe { ((*info).si_addr().addr(), (*info).si_code > 0, *libc::__errno_location()) };
    if is_fault && cover(address) {
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
        return;
    }
    let Some(before) = BEFORE.get() else { return };
    match before.sa_sigaction {
        // SAFETY: plain calls. A fault comes again as soon as this returns; what somebody sent does
        // not, so it is sent again.
        libc::SIG_DFL | libc::SIG_IGN => unsafe {
            libc::sigaction(signal, before, std::ptr::null_mut());
            if !is_fault {
                libc::raise(signal);
            }
        },
        // SAFETY: the flag says which of its two types the handler has that was there before.
        handler => unsafe {
            if before.sa_flags & libc::SA_SIGINFO == 0 {
                let handler: extern "C" fn(libc::c_int) = std::mem::transmute(handler);
                handler(signal);
            } else {
                type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
                let handler: Handler = std::mem::transmute(handler);
                handler(signal, info, context);
            }
        },
    }
}

/// Takes the signal over, for the whole process. If that fails, a fault ends the process as ever.
#[allow(unsafe_code)]
fn catch() {
    // SAFETY: plain system calls with structures that live here, in which all zeros are valid.
    unsafe {
        if let Ok(size) = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)) {
            PAGE_SIZE.store(size, Ordering::Relaxed);
        }
        let (mut action, mut before): (libc::sigaction, libc::sigaction) = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) != 0 || BEFORE.set(before).is_err() {
            return;
        }
        action.sa_sigaction = on_bus_error as *const () as usize;
        // The thread's other stack, where it has one: the fault may be on its last page of this one.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        if libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) != 0 {
            tracing::warn!("SIGBUS cannot be caught: {}", std::io::Error::last_os_error());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use memmap2::{MmapOptions, MmapRaw};

    fn mapped(pages: usize) -> (std::fs::File, MmapRaw) {
        let file = tempfile::tempfile().expect("a file");
        file.set_len((pages * PAGE) as u64).expect("grown");
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![7; pages * PAGE], 0).expect("written");
        let map = MmapOptions::new().len(pages * PAGE).map_raw(&file).expect("mapped");
        (file, map)
    }

    #[allow(unsafe_code)]
    fn byte(map: &MmapRaw, at: usize) -> u8 {
        // SAFETY: within the mapping.
        unsafe { std::ptr::read_volatile(map.as_ptr().add(at)) }
    }

    #[test]
    fn a_page_that_is_gone_reads_as_zeros_and_is_counted_where_it_was() {
        let ((file, map), (_other_file, other)) = (mapped(8), mapped(8));
        let (watched, beside) = (Watched::new(map.as_ptr(), 8 * PAGE), Watched::new(other.as_ptr(), 8 * PAGE));
        file.set_len(2 * PAGE as u64).expect("cut");
        assert_eq!([byte(&map, 0), byte(&map, 2 * PAGE - 1), byte(&other, 5 * PAGE)], [7; 3]);
        assert_eq!(watched.faults(), 0);
        for (number, page) in [7, 2, 4].into_iter().enumerate() {
            assert_eq!([byte(&map, page * PAGE), byte(&map, page * PAGE + PAGE - 1)], [0; 2]);
            assert_eq!(watched.faults(), number as u32 + 1);
        }
        assert_eq!(beside.faults(), 0);
        assert!(total() >= 3);
    }

    #[test]
    fn a_slot_is_used_again_and_begins_at_zero() {
        let (file, map) = mapped(2);
        let watched = Watched::new(map.as_ptr(), 2 * PAGE);
        file.set_len(0).expect("cut");
        assert_eq!((byte(&map, 0), watched.faults()), (0, 1));
        let slot = watched.slot;
        drop(watched);
        // Other tests may take the slot first.
        let again: Vec<Watched> = (0..100).map(|_| Watched::new(map.as_ptr(), 2 * PAGE)).collect();
        assert!(again.iter().all(|watched| watched.faults() == 0));
        assert!(slot.is_some());
    }
}

//! Memory for the index's tables: slabs of equal blocks, so that a table takes what it needs and
//! not a size class more.
//!
//! Thousands of tables double at about the same time. A general allocator keeps what that leaves
//! behind in its pages, and grew an index of three million keys to 37 bytes a key where the tables
//! had 13. Here a slab has blocks of exactly one size, and the last block freed gives it back to
//! the kernel.
//!
//! Layout: a slab is 2 MiB at a multiple of 2 MiB (one huge page where the kernel gives one, which
//! also spares look-ups their TLB misses), its bookkeeping is outside. Larger tables are mapped by
//! themselves. The first touch of a slab makes the kernel clear 2 MiB, and in a virtual machine the
//! host find them: 7 to 26 ms were measured, with a stripe of the index locked. So slabs are made
//! ready in advance, by a thread that serves nobody ([`Slabs::provide`]). Owner: the index; calls
//! come only when a table grows. Bounds: at most one partly empty slab a size, as a rule, and of
//! those made ready one for eight in use, at least two. Invariants: a block is in one slab, and
//! either handed out or in that slab's free list; blocks are multiples of 64.

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use allocator_api2::alloc::{AllocError, Allocator};
use koltso_instrument::Mutex;

const SLAB: usize = 2 << 20;
/// Buckets of a table are cache lines.
const BLOCK_ALIGN: usize = 64;
/// Blocks up to this size share a slab, so that at most an eighth of it is cut off at its end.
const SHARED_MAX: usize = SLAB / 8;
/// Slabs made ready, at least and most. Two: the first keys of an empty index fill a size in no
/// time.
const READY_MIN: usize = 2;
const READY_MAX: usize = 8;

#[derive(Debug)]
struct Slab {
    block: usize,
    used: usize,
    /// Blocks from here on were never handed out.
    fresh: usize,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct State {
    /// By address.
    slabs: BTreeMap<usize, Slab>,
    /// Addresses of slabs with room, by block size.
    room: BTreeMap<usize, Vec<usize>>,
    /// Addresses of slabs for any size, which have their memory.
    ready: Vec<usize>,
}

/// A handle to the slabs; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Slabs(Arc<Mutex<State>>);

impl Default for Slabs {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(&"index memory", State::default())))
    }
}

fn block_of(layout: Layout) -> usize {
    layout.size().next_multiple_of(BLOCK_ALIGN)
}

fn mapped_of(layout: Layout) -> usize {
    layout.size().next_multiple_of(4096)
}

/// What Miri has in place of the system calls below: an allocation for each mapping, whole and
/// aligned to a slab.
#[cfg(miri)]
mod miri {
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::ptr::{self, NonNull};

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, super::SLAB).expect("a layout")
    }

    #[allow(unsafe_code)]
    pub(super) fn map(size: usize) -> std::io::Result<NonNull<u8>> {
        // SAFETY: no mapping is empty.
        NonNull::new(unsafe { alloc_zeroed(layout(size)) }).ok_or(std::io::ErrorKind::OutOfMemory.into())
    }

    #[allow(unsafe_code)]
    pub(super) fn unmap(at: usize, size: usize) {
        // SAFETY: a whole mapping, of this size, that nobody refers to any more.
        unsafe { dealloc(ptr::with_exposed_provenance_mut(at), layout(size)) }
    }

    pub(super) fn map_slab() -> std::io::Result<usize> {
        Ok(map(super::SLAB)?.as_ptr().expose_provenance())
    }
}
#[cfg(miri)]
use miri::{map, map_slab, unmap};

#[cfg(not(miri))]
#[allow(unsafe_code)]
fn map(size: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: a new private mapping at an address of the kernel's choice touches nothing that
    // exists.
    let at = unsafe {
        libc::mmap(
            ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(at.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
}

#[cfg(not(miri))]
#[allow(unsafe_code)]
fn unmap(at: usize, size: usize) {
    if size > 0 {
        // SAFETY: callers pass a mapping of `map` (or the ends of one) that nobody refers to any
        // more.
        let result = unsafe { libc::munmap(ptr::with_exposed_provenance_mut(at), size) };
        debug_assert_eq!(result, 0);
    }
}

/// Asks for a huge page. A kernel that has none to give uses small ones.
#[cfg(not(miri))]
#[allow(unsafe_code)]
fn advise_huge(at: usize) {
    // SAFETY: a hint about a mapping of this size that was just made.
    let _ = unsafe { libc::madvise(ptr::with_exposed_provenance_mut(at), SLAB, libc::MADV_HUGEPAGE) };
}

/// A slab at a multiple of its size: map twice as much, and give the ends back.
#[cfg(not(miri))]
fn map_slab() -> io::Result<usize> {
    let at = map(2 * SLAB)?.as_ptr().expose_provenance();
    let aligned = at.next_multiple_of(SLAB);
    unmap(at, aligned - at);
    unmap(aligned + SLAB, at + SLAB - aligned);
    advise_huge(aligned);
    Ok(aligned)
}

/// Has the kernel find the memory of a slab now.
#[allow(unsafe_code)]
fn touch(at: usize) {
    for page in (at..at + SLAB).step_by(4096) {
        // SAFETY: a mapping of this size that was just made and that nobody else knows.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(page).write_volatile(0) };
    }
}

impl Drop for State {
    fn drop(&mut self) {
        for at in self.ready.drain(..) {
            unmap(at, SLAB);
        }
    }
}

impl Slabs {
    /// Makes slabs ready for tables to come. Takes its time, so no thread that serves requests
    /// calls it.
    pub(crate) fn provide(&self) {
        loop {
            let state = self.0.lock();
            if state.ready.len() >= (state.slabs.len() / 8).clamp(READY_MIN, READY_MAX) {
                return;
            }
            drop(state);
            // Without memory now, whoever needs it will ask again, and be told.
            let Ok(at) = map_slab() else {
                return;
            };
            touch(at);
            self.0.lock().ready.push(at);
        }
    }
}

impl State {
    fn take(&mut self, block: usize) -> io::Result<usize> {
        let room = self.room.entry(block).or_default();
        let at = match room.last() {
            Some(&at) => at,
            None => {
                let at = self.ready.pop().map_or_else(map_slab, Ok)?;
                self.slabs.insert(at, Slab { block, used: 0, fresh: 0, free: Vec::new() });
                room.push(at);
                at
            }
        };
        let slab = self.slabs.get_mut(&at).expect("a slab with room exists");
        let number = slab.free.pop().map_or_else(
            || {
                slab.fresh += 1;
                slab.fresh - 1
            },
            |number| number as usize,
        );
        slab.used += 1;
        if slab.used == SLAB / block {
            room.pop();
        }
        Ok(at + number * block)
    }

    fn give(&mut self, address: usize, block: usize) {
        let at = address & !(SLAB - 1);
        let slab = self.slabs.get_mut(&at).expect("a block is given back to its slab");
        assert_eq!((slab.block, (address - at) % block), (block, 0), "a block of this slab");
        let room = self.room.entry(block).or_default();
        if slab.used == SLAB / block {
            room.push(at);
        }
        slab.used -= 1;
        slab.free.push(((address - at) / block) as u32);
        if slab.used == 0 {
            room.retain(|&slab| slab != at);
            self.slabs.remove(&at);
            unmap(at, SLAB);
        }
    }
}

// SAFETY: blocks are disjoint parts of live mappings, aligned to 64, at least as large as asked
// for, and stay where they are until they are given back; clones share one state, so any of them
// can give a block back. The state is behind a lock.
#[allow(unsafe_code)]
unsafe impl Allocator for Slabs {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        assert!(layout.align() <= BLOCK_ALIGN, "tables are aligned to cache lines");
        let block = block_of(layout);
        let at = if block <= SHARED_MAX {
            let address = self.0.lock().take(block).map_err(|_| AllocError)?;
            NonNull::new(ptr::with_exposed_provenance_mut(address)).ok_or(AllocError)?
        } else {
            map(mapped_of(layout)).map_err(|_| AllocError)?
        };
        Ok(NonNull::slice_from_raw_parts(at, layout.size()))
    }

    unsafe fn deallocate(&self, at: NonNull<u8>, layout: Layout) {
        let block = block_of(layout);
        let address = at.as_ptr().expose_provenance();
        if block <= SHARED_MAX {
            self.0.lock().give(address, block);
        } else {
            unmap(address, mapped_of(layout));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_disjoint_and_slabs_go_back() {
        let slabs = Slabs::default();
        let layout = Layout::from_size_align(9232, 16).expect("a layout");
        let blocks: Vec<_> = (0..500).map(|_| slabs.allocate(layout).expect("memory")).collect();
        assert_eq!(slabs.0.lock().slabs.len(), 3, "227 blocks fit a slab");
        let mut addresses: Vec<usize> = blocks.iter().map(|b| b.cast::<u8>().as_ptr().addr()).collect();
        addresses.sort_unstable();
        assert!(addresses.windows(2).all(|pair| pair[1] - pair[0] >= 9232));
        for (number, block) in blocks.into_iter().enumerate() {
            #[allow(unsafe_code)]
            // SAFETY: allocated above with this layout, written within it, given back once.
            unsafe {
                block.cast::<u8>().as_ptr().write_bytes(number as u8, 9232);
                slabs.deallocate(block.cast(), layout);
            }
        }
        assert_eq!(slabs.0.lock().slabs.len(), 0);
        assert!(slabs.0.lock().room.values().all(Vec::is_empty));
    }

    /// Slabs in use, and ready.
    fn counts(slabs: &Slabs) -> (usize, usize) {
        let state = slabs.0.lock();
        (state.slabs.len(), state.ready.len())
    }

    #[test]
    fn what_was_made_ready_is_used_first() {
        let slabs = Slabs::default();
        let layout = Layout::from_size_align(SHARED_MAX, 64).expect("a layout");
        slabs.provide();
        slabs.provide();
        let ready = slabs.0.lock().ready.clone();
        assert_eq!(ready.len(), 2);
        // Eight blocks a slab: the third slab is a new one.
        let blocks: Vec<_> = (0..24 * 8).map(|_| slabs.allocate(layout).expect("memory").cast::<u8>()).collect();
        assert_eq!([blocks[8].as_ptr().addr(), blocks[0].as_ptr().addr()], ready[..]);
        assert_eq!(counts(&slabs), (24, 0));
        for _ in 0..2 {
            slabs.provide();
            assert_eq!(slabs.0.lock().ready.len(), 3, "one for eight");
        }
        for block in blocks {
            #[allow(unsafe_code)]
            // SAFETY: allocated above with this layout, given back once.
            unsafe {
                slabs.deallocate(block, layout);
            }
        }
        assert_eq!(counts(&slabs), (0, 3));
    }
}

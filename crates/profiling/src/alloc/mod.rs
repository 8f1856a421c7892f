//! Who allocates, and who holds what is live: a global allocator that samples.
//!
//! [`Sampling`] wraps the allocator of the program and is always on. Each thread counts down the
//! bytes that it allocates; when an exponentially distributed gap (mean [`RATE`]) is used up, that
//! allocation becomes a sample: its stack is walked and counted with the weight
//! 1/(1−e^(−size/rate)), which makes the expected sums those of all allocations (Poisson sampling,
//! as in gperftools and Go).
//!
//! A sampled block comes from mimalloc at an address whose low 12 bits are 0x840, behind a header
//! of one cache line that names its stack. A free therefore tests 12 bits, which is all that 63 of
//! 64 blocks cost, and then one word in the same page.
//!
//! Owner: one static of the program; the process has one table of stacks. Bounds: [`BYTES`] of zero
//! pages that fill up as stacks appear ([`STACKS_MAX`] distinct stacks of 40 frames on average;
//! samples beyond that are counted without their stack). A sampled live block costs some 4 KiB of
//! alignment, in total less than 1 % of the live heap. Cost: 0.2 to 0.9 ns for an alloc/free pair
//! of 16 to 256 bytes and 1.0 to 1.5 ns at 4 KiB, samples included; a sample costs 50 ns and 3 ns
//! for each frame with warm caches (2 virtual cores, `benches/alloc_pair.rs`).
//!
//! Invariants:
//! 1. A header's tag is a secret ^ the block's address only between the sample and its release; the
//!    release clears it before the memory goes back. The secret is random and never leaves the
//!    process, so that other data equals the tag with a probability of 2^−64.
//! 2. A block with the residue is preceded by 64 bytes of the same page of memory, so they are
//!    mapped, whoever owns them.
//! 3. A sampled block is what `mi_malloc_aligned_at` returned, plus 64, which keeps any alignment
//!    up to 64; only `mi_free` takes it back.
//! 4. Nothing here allocates through the wrapper, takes a lock, panics, or has a thread-local with
//!    a destructor: any code may allocate, before `main` and while a thread ends. While a sample is
//!    taken the countdown is parked, so that nothing samples itself.
//!
//! A `realloc` counts as a free and an allocation of the whole new size. Deliberately absent:
//! blocks with an alignment above 64 in the live heap (the cumulative profile has them); which
//! thread allocated; memory that is mapped, or that C code allocates by itself. Tested in
//! `tests/allocs.rs` and `tests/bounds.rs`.
#![allow(unsafe_code)]

mod snapshot;
mod timeline;

pub(crate) use snapshot::{OwnFrames, Stacks};
pub use snapshot::{RawSnapshot, Symbolise, allocs, difference, heap, snapshot};
pub use timeline::{CELL_MS, SECONDS_MAX, timeline};

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ptr;

use koltso_instrument::random::{random, secret, seed};
use koltso_instrument::table::Table;
use koltso_instrument::walk;

/// Bytes from one sample to the next, on average.
pub const RATE: u64 = 512 * 1024;
/// The most distinct stacks that are kept apart.
pub const STACKS_MAX: usize = 8192;
/// Memory of the table of stacks, in bytes.
pub const BYTES: usize = Stacktable::BYTES;

type Stacktable = Table<{ 2 * STACKS_MAX }, { 40 * STACKS_MAX }>;

/// Its counters are alloc_objects, alloc_space, freed objects and freed space; objects in
/// 1/[`OBJECT`].
static TABLE: Stacktable = Table::new();
/// Parts of an object in which the table counts: a block of twice the rate stands for 1.16 objects.
const OBJECT: u64 = 256;

const PAGE: usize = 4096;
const RESIDUE: usize = 0x840;
const HEADER: usize = size_of::<Header>();
/// The offset at which mimalloc aligns: `p + OFFSET` is a multiple of [`PAGE`] exactly if `p +
/// HEADER` has the residue.
const OFFSET: usize = PAGE + HEADER - RESIDUE;
/// The countdown while a sample is taken: more than any thread allocates in that time.
const PARKED: i64 = i64::MAX / 2;

const _: () = assert!(HEADER == 64 && RESIDUE >= HEADER && RESIDUE.is_multiple_of(HEADER) && BYTES < 4 << 20);

thread_local! {
    /// Bytes until the next sample.
    static LEFT: Cell<i64> = const { Cell::new(0) };
    /// The state of the random gaps; 0 before the first.
    static RANDOM: Cell<u64> = const { Cell::new(0) };
}

/// The header in front of a sampled block.
#[repr(C, align(64))]
struct Header {
    /// See invariant 1.
    tag: u64,
    /// What the sample added to the counts of what was allocated; its release adds the same to what
    /// was freed.
    objects: u64,
    space: u64,
    slot: u32,
}

/// A global allocator that samples what `A` allocates: see the head of the file.
#[derive(Debug, Default)]
pub struct Sampling<A>(A);

impl<A> Sampling<A> {
    /// Wraps `inner`.
    pub const fn new(inner: A) -> Self {
        Self(inner)
    }
}

// SAFETY: unsampled blocks are `A`'s, which keeps the contract. Sampled ones are told apart by
// invariants 1 and 2, and are mimalloc's blocks of the requested size and alignment by invariant 3.
// Nothing unwinds (invariant 4).
unsafe impl<A: GlobalAlloc> GlobalAlloc for Sampling<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if counted_down(layout.size()) {
            // SAFETY: the caller's layout is not empty.
            return unsafe { self.sampled_alloc(layout, false) };
        }
        // SAFETY: the caller's contract.
        unsafe { self.0.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if counted_down(layout.size()) {
            // SAFETY: the caller's layout is not empty.
            return unsafe { self.sampled_alloc(layout, true) };
        }
        // SAFETY: the caller's contract.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if has_residue(block) && is_sampled(block) {
            // SAFETY: invariant 1: the block is sampled, and the caller gives it up.
            return unsafe { release(block) };
        }
        // SAFETY: the caller's contract; the block is `A`'s.
        unsafe { self.0.dealloc(block, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if has_residue(block) && is_sampled(block) {
            // SAFETY: the caller's contract, and the block is sampled.
            return unsafe { self.realloc_sampled(block, layout, size) };
        }
        if counted_down(size) {
            // SAFETY: the caller's contract, and the block is `A`'s.
            return unsafe { self.sampled_realloc(block, layout, size) };
        }
        // SAFETY: the caller's contract; the block is `A`'s.
        unsafe { self.0.realloc(block, layout, size) }
    }
}

impl<A: GlobalAlloc> Sampling<A> {
    /// The countdown has ended: takes a sample, unless it had not begun yet.
    ///
    /// # Safety
    /// The layout is not empty.
    #[cold]
    #[inline(never)]
    unsafe fn sampled_alloc(&self, layout: Layout, zeroed: bool) -> *mut u8 {
        if is_due(layout.size()) {
            // SAFETY: the layout is not empty.
            return unsafe { self.sample(layout, zeroed) };
        }
        // SAFETY: the layout is not empty.
        unsafe { if zeroed { self.0.alloc_zeroed(layout) } else { self.0.alloc(layout) } }
    }

    /// The countdown has ended at a `realloc` of an unsampled block: the new block is a sample, at
    /// another place.
    ///
    /// # Safety
    /// As `GlobalAlloc::realloc`, and the block is `A`'s.
    #[cold]
    #[inline(never)]
    unsafe fn sampled_realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !is_due(size) {
            // SAFETY: the caller's contract.
            return unsafe { self.0.realloc(block, layout, size) };
        }
        // SAFETY: by the caller's contract the new layout is valid and not empty, and both blocks
        // are at least as long as the smaller of the two. They do not overlap, since both are live.
        // The old one is `A`'s.
        unsafe {
            let new = self.sample(Layout::from_size_align_unchecked(size, layout.align()), false);
            if !new.is_null() {
                ptr::copy_nonoverlapping(block, new, layout.size().min(size));
                self.0.dealloc(block, layout);
            }
            new
        }
    }

    /// Moves a sampled block: a `realloc` of one always takes another place, since this place
    /// belongs to the sample.
    ///
    /// # Safety
    /// As `GlobalAlloc::realloc`, and the block is sampled.
    #[cold]
    #[inline(never)]
    unsafe fn realloc_sampled(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as in `sampled_realloc`, except that the old block is sampled.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                ptr::copy_nonoverlapping(block, new, layout.size().min(size));
                release(block);
            }
            new
        }
    }

    /// Allocates and counts a sample.
    ///
    /// # Safety
    /// The layout is not empty.
    #[inline(never)]
    unsafe fn sample(&self, layout: Layout, zeroed: bool) -> *mut u8 {
        // Invariant 4: `is_due` has parked the countdown.
        let mut frames = [0; walk::FRAMES_MAX];
        let depth = walk::walk(&mut frames);
        let slot = TABLE.slot(&frames[..depth]);
        let (objects, space) = weights(layout.size());
        // SAFETY: the layout is not empty.
        let block = unsafe { sampled_block(layout, zeroed, Header { tag: 0, objects, space, slot }) };
        let block = if let Some(block) = block {
            TABLE.add(slot, [objects, space, 0, 0]);
            block
        } else {
            // SAFETY: the layout is not empty.
            let block = unsafe { if zeroed { self.0.alloc_zeroed(layout) } else { self.0.alloc(layout) } };
            if !block.is_null() {
                // The block has no header, so its release will not be noticed; it counts as freed
                // now, so that the live heap never has it.
                TABLE.add(slot, [objects, space, objects, space]);
            }
            block
        };
        LEFT.set(gap());
        block
    }
}

/// A block with a header; `None` if there is no memory or the alignment is too large.
///
/// # Safety
/// The layout is not empty.
unsafe fn sampled_block(layout: Layout, zeroed: bool, header: Header) -> Option<*mut u8> {
    if layout.align() > HEADER {
        return None;
    }
    let bytes = layout.size() + HEADER;
    // SAFETY: these are plain calls of C functions, which accept any size and a power of two.
    let raw = unsafe {
        if zeroed {
            libmimalloc_sys::mi_zalloc_aligned_at(bytes, PAGE, OFFSET)
        } else {
            libmimalloc_sys::mi_malloc_aligned_at(bytes, PAGE, OFFSET)
        }
    };
    if raw.is_null() {
        return None;
    }
    if (raw.addr() + HEADER) % PAGE != RESIDUE {
        // mimalloc promises that this does not happen; a block that `dealloc` would not recognise
        // must not leave this function.
        // SAFETY: the block is mimalloc's, and nobody else has it.
        unsafe { libmimalloc_sys::mi_free(raw) };
        return None;
    }
    // SAFETY: the block has HEADER bytes more than the layout, and the residue gives it the
    // header's alignment.
    let block = unsafe {
        raw.cast::<Header>().write(header);
        raw.cast::<u8>().add(HEADER)
    };
    let tag = secret() ^ block.expose_provenance() as u64;
    // SAFETY: this is the header just written. Invariant 1 begins here.
    unsafe { raw.cast::<u64>().write_volatile(tag) };
    Some(block)
}

#[inline(always)]
fn has_residue(block: *mut u8) -> bool {
    block.addr() % PAGE == RESIDUE
}

/// Whether a block that has the residue is a sample.
#[inline]
fn is_sampled(block: *mut u8) -> bool {
    let secret = secret();
    if secret == 0 {
        return false;
    }
    let tag = ptr::with_exposed_provenance::<u64>(block.expose_provenance() - HEADER);
    // SAFETY: by invariant 2 the word is aligned and mapped. The invariant does not cover that the
    // word may belong to another block, to which another thread may be writing: a volatile read of
    // one machine word then returns some value, and invariant 1 says that it is not the tag.
    unsafe { tag.read_volatile() == secret ^ block.addr() as u64 }
}

/// Gives a sampled block back.
///
/// # Safety
/// The block is sampled and nobody uses it any more.
#[cold]
#[inline(never)]
unsafe fn release(block: *mut u8) {
    let raw = ptr::with_exposed_provenance_mut::<Header>(block.expose_provenance() - HEADER);
    // SAFETY: by invariants 1 and 3 the header is there, it is ours, and the memory is mimalloc's.
    // Invariant 1 ends here.
    unsafe {
        let Header { objects, space, slot, .. } = raw.read();
        raw.cast::<u64>().write_volatile(0);
        TABLE.add(slot, [0, 0, objects, space]);
        libmimalloc_sys::mi_free(raw.cast());
    }
}

/// What a sample of this size stands for: objects in 1/[`OBJECT`], and bytes.
fn weights(size: usize) -> (u64, u64) {
    let probability = -(-(size as f64) / RATE as f64).exp_m1();
    ((OBJECT as f64 / probability).round() as u64, (size as f64 / probability).round() as u64)
}

/// Counts an allocation; returns whether the countdown has ended.
#[inline(always)]
fn counted_down(size: usize) -> bool {
    // No layout exceeds isize::MAX, and LEFT is never negative: this does not wrap.
    let left = LEFT.get().wrapping_sub(size as i64);
    if left < 0 {
        return true;
    }
    LEFT.set(left);
    false
}

/// Whether the end of the countdown is a sample, which parks the countdown; otherwise this is the
/// thread's first allocation, which starts it.
fn is_due(size: usize) -> bool {
    if RANDOM.get() == 0 {
        RANDOM.set(seed());
        let left = gap().wrapping_sub(size as i64);
        if left >= 0 {
            LEFT.set(left);
            return false;
        }
    }
    LEFT.set(PARKED);
    true
}

/// Bytes to the next sample, exponentially distributed.
fn gap() -> i64 {
    // 53 bits, from (0, 1].
    let uniform = ((random(&RANDOM) >> 11) + 1) as f64 / (1u64 << 53) as f64;
    (-uniform.ln() * RATE as f64) as i64
}

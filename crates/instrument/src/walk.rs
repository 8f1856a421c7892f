//! The stack of the calling thread, by frame pointers.
//!
//! Needs `-C force-frame-pointers=yes`; a function without a frame pointer hides its direct caller
//! or ends the stack. Owner: the calling thread. A walk does not allocate through the global
//! allocator and takes none of our locks. A thread's first walk asks the C library for the limits
//! of its stack, which takes about a microsecond (some 50 µs in the main thread, for which the
//! library reads `/proc/self/maps`). Invariants: 1. every word that is read lies at an aligned
//! address between the stack pointer and the end of this thread's stack, which is mapped and
//! readable as long as the thread runs; 2. frame pointers rise, so the walk ends. What the words
//! mean is not covered: code without frame pointers may leave numbers that are not return
//! addresses, and they are only used as data.
#![allow(unsafe_code)]

use std::cell::Cell;

/// The most frames of a stack that are kept; deeper stacks lose their root end.
pub const FRAMES_MAX: usize = 128;

const WORD: usize = size_of::<usize>();

thread_local! {
    /// The first address of the stack and the first after it; (1, 0) if it is not known, (0, 0)
    /// until it is asked for.
    static LIMITS: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// Fills in return addresses, innermost first; the first lies in the caller of this function.
/// Returns how many there are.
#[inline(never)]
pub fn walk(frames: &mut [u64]) -> usize {
    if cfg!(miri) {
        // Miri has no registers.
        return 0;
    }
    let (mut frame, stack) = registers();
    let (low, high) = limits();
    if stack < low || stack >= high {
        // The thread is on a signal stack, or its stack's limits are not known.
        return 0;
    }
    let (mut lowest, mut count) = (stack, 0);
    while count < frames.len() && frame >= lowest && frame.is_multiple_of(WORD) && frame <= high - 2 * WORD {
        let at = std::ptr::with_exposed_provenance::<usize>(frame);
        // SAFETY: invariant 1, by the condition of the loop: [frame, frame + 16) lies in [stack,
        // high) and is aligned.
        let (caller, address) = unsafe { (at.read_volatile(), at.add(1).read_volatile()) };
        if address == 0 {
            break;
        }
        frames[count] = address as u64;
        count += 1;
        // Invariant 2.
        lowest = frame + 2 * WORD;
        frame = caller;
    }
    count
}

/// The frame pointer and the stack pointer.
#[inline(always)]
fn registers() -> (usize, usize) {
    let (frame, stack): (usize, usize);
    // SAFETY: copies two registers; touches neither memory nor flags.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("mov {}, rbp", "mov {}, rsp", out(reg) frame, out(reg) stack, options(nomem, nostack, preserves_flags));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("mov {}, x29", "mov {}, sp", out(reg) frame, out(reg) stack, options(nomem, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        (frame, stack) = (0, 0);
    }
    (frame, stack)
}

fn limits() -> (usize, usize) {
    let known = LIMITS.get();
    if known != (0, 0) {
        return known;
    }
    let asked = ask().unwrap_or((1, 0));
    LIMITS.set(asked);
    asked
}

fn ask() -> Option<(usize, usize)> {
    let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut low, mut bytes) = (std::ptr::null_mut(), 0);
    // SAFETY: glibc initialises the attributes when it returns 0, and only then are they read and
    // destroyed. They describe this thread, which is alive. Invariant 1 rests on what they say.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return None;
        }
        let told = libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut low, &raw mut bytes);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        if told != 0 {
            return None;
        }
    }
    let high = low.addr().checked_add(bytes)?;
    (bytes > 2 * WORD).then_some((low.addr(), high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn deep(depth: usize, frames: &mut [u64]) -> usize {
        let count = if depth == 0 { walk(frames) } else { deep(depth - 1, frames) };
        std::hint::black_box(count)
    }

    #[test]
    fn a_walk_has_a_frame_a_call_and_ends_at_its_bound() {
        let mut frames = [0; FRAMES_MAX];
        let shallow = deep(0, &mut frames);
        assert!(shallow > 3, "{shallow} frames: built without -C force-frame-pointers=yes?");
        assert_eq!(deep(10, &mut frames), shallow + 10);
        assert!(frames[3..9].iter().all(|frame| *frame == frames[3]), "recursion returns to one place");
        assert_eq!(deep(500, &mut frames), FRAMES_MAX);
        assert_eq!(deep(5, &mut frames[..2]), 2);
        assert_eq!(deep(5, &mut []), 0);
    }
}

//! The pages of large bodies, which go back to the kernel with the body where many are in flight on
//! a core.
//!
//! An allocator keeps for a while what was freed, a tenth of a second and longer. That costs nothing
//! where bodies follow one another, which take its place. But many that are received side by side
//! and end one after another leave their pages behind, a multiple of what the core counts, and that
//! is the memory which its bound promises. To clear pages again costs a third of a body of 1 MiB,
//! so only a core does it of whose memory for bodies a quarter is taken.
//!
//! Tested below, and in `tests/hostile_input/overload.rs` of the program.

use bytes::Bytes;

use crate::transport::sys;

/// What smaller bodies leave behind is used again soon.
const LARGE: usize = 1 << 20;

/// A buffer whose pages go back with it.
struct Returned(Vec<u8>);

impl AsRef<[u8]> for Returned {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Returned {
    fn drop(&mut self) {
        sys::return_pages(&mut self.0);
    }
}

/// A body that was collected, to be shared without being copied; `is_short`: its pages are needed
/// soon.
pub(super) fn shared(body: Vec<u8>, is_short: bool) -> Bytes {
    if is_short && body.capacity() >= LARGE { Bytes::from_owner(Returned(body)) } else { body.into() }
}

/// Lets go of a body that will not be whole.
pub(super) fn let_go(body: Vec<u8>, is_short: bool) {
    drop(shared(body, is_short));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_kib() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").expect("proc");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a figure");
        line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
    }

    #[test]
    fn pages_go_back_while_the_allocator_keeps_the_buffer() {
        // As an allocator that keeps it: the buffer is not freed.
        let mut kept = std::mem::ManuallyDrop::new(vec![7_u8; 64 << 20]);
        let before = resident_kib();
        sys::return_pages(&mut kept);
        let after = resident_kib();
        assert!(before - after > 60 << 10, "{before} KiB, then {after}");
        kept.clear();
        kept.resize(64 << 20, 9);
        assert!(kept.iter().all(|byte| *byte == 9), "it can be used again");
        drop(std::mem::ManuallyDrop::into_inner(kept));
    }

    #[test]
    fn what_is_shared_is_what_was_collected() {
        for (len, is_short) in [(0, true), (10, true), (LARGE - 1, true), (LARGE, true), (LARGE + 77, false)] {
            let body: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            assert_eq!(shared(body.clone(), is_short), body, "{len} bytes");
        }
    }
}

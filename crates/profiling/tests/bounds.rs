//! More stacks than the sampling allocator keeps apart. This is a process of its own, since a
//! process has one table.

use std::hint::black_box;

use koltso_profiling::alloc::{self as engine, STACKS_MAX, Sampling, Symbolise};
use koltso_profiling::capture::{Frame, FramePlace};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: Sampling<MiMalloc> = Sampling::new(MiMalloc);

struct Addresses;

impl Symbolise for Addresses {
    fn frames(&mut self, address: u64, _: bool, out: &mut Vec<Frame>) {
        let function = format!("{address:#x}").into();
        out.push(Frame { function, file: None, line: 0, place: FramePlace::User, address });
    }
}

/// So large that a gap is longer with the probability e^-64.
const BYTES: usize = 32 << 20;

/// Gives each path of 14 turns a stack of its own: even and odd turns are in different functions.
fn paths(path: u32, turns: u32) -> usize {
    match (turns, path & 1) {
        (0, _) => black_box(Vec::<u8>::with_capacity(BYTES)).capacity(),
        (_, 0) => even(path >> 1, turns - 1),
        _ => odd(path >> 1, turns - 1),
    }
}

#[inline(never)]
fn even(path: u32, turns: u32) -> usize {
    black_box(paths(path, turns))
}

#[inline(never)]
fn odd(path: u32, turns: u32) -> usize {
    black_box(paths(path, turns)) + 1
}

#[test]
fn stacks_beyond_the_bound_count_without_their_stack() {
    let count = 2 * STACKS_MAX;
    for _ in 0..2 {
        let before = engine::allocs(&mut Addresses);
        (0..count as u32).for_each(|path| assert!(paths(path, 14) >= BYTES));
        let after = engine::allocs(&mut Addresses);
        let (objects, bytes) = (after.total(0) - before.total(0), after.total(1) - before.total(1));
        assert!(bytes >= (count * BYTES) as i64 && objects >= count as i64, "{objects} objects, {bytes} bytes");
        assert!(bytes - ((count * BYTES) as i64) < 1 << 30);
        assert!(after.stacks().len() <= STACKS_MAX + 1);
        assert!(after.dropped - before.dropped >= (count - STACKS_MAX) as u64, "{}", after.dropped);
        let label = |frame: &Frame| &*frame.function == "stacks beyond the bound";
        assert!(after.frames().iter().any(label));
    }
    let heap = engine::heap(&mut Addresses);
    assert!(heap.total(3) < 1 << 30, "{} bytes live", heap.total(3));
}

//! What sampling costs an alloc/free pair, and what a sample costs: mimalloc bare and wrapped, in interleaved slices, the medians.

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::time::Instant;

use koltso_profiling::alloc::Sampling;
use mimalloc::MiMalloc;

const SLICES: usize = 61;
const PAIRS: u32 = 200_000;

fn main() {
    let wrapped = Sampling::new(MiMalloc);
    for size in [16, 64, 256, 4096] {
        let (mut bare_ns, mut wrapped_ns) = (Vec::new(), Vec::new());
        for _ in 0..SLICES {
            bare_ns.push(pair_ns(&MiMalloc, size, PAIRS));
            wrapped_ns.push(pair_ns(&wrapped, size, PAIRS));
        }
        let (bare, wrapped) = (median(bare_ns), median(wrapped_ns));
        println!("{size:5} bytes: {bare:6.2} ns bare, {wrapped:6.2} ns sampled, {:+.2} ns a pair", wrapped - bare);
    }
    // A gap is 64 MiB with the probability e^-128: each of these is a sample.
    let size = 64 << 20;
    let (mut bare_ns, mut wrapped_ns) = (Vec::new(), Vec::new());
    for _ in 0..SLICES {
        bare_ns.push(pair_ns(&MiMalloc, size, 100));
        wrapped_ns.push(pair_ns(&wrapped, size, 100));
    }
    println!(
        "a sample: {:+.0} ns with this short stack, {:+.0} ns at depth 27",
        median(wrapped_ns) - median(bare_ns),
        {
            let (mut bare_ns, mut wrapped_ns) = (Vec::new(), Vec::new());
            for _ in 0..SLICES {
                bare_ns.push(deep(20, &mut || pair_ns(&MiMalloc, size, 100)));
                wrapped_ns.push(deep(20, &mut || pair_ns(&wrapped, size, 100)));
            }
            median(wrapped_ns) - median(bare_ns)
        }
    );
}

#[inline(never)]
fn deep(depth: usize, then: &mut dyn FnMut() -> f64) -> f64 {
    let ns = if depth == 0 { then() } else { deep(depth - 1, then) };
    black_box(ns)
}

#[inline(never)]
fn pair_ns<A: GlobalAlloc>(allocator: &A, size: usize, pairs: u32) -> f64 {
    let layout = Layout::from_size_align(size, 8).expect("a small power of two");
    let began = Instant::now();
    for _ in 0..pairs {
        #[expect(unsafe_code, reason = "calls an allocator")]
        // SAFETY: the layout is not empty, and the block is freed once, as it was allocated.
        unsafe {
            let block = black_box(allocator.alloc(black_box(layout)));
            allocator.dealloc(block, layout);
        }
    }
    began.elapsed().as_nanos() as f64 / f64::from(pairs)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

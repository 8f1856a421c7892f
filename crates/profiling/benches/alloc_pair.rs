//! What sampling costs an alloc/free pair, and what a sample costs: mimalloc bare and wrapped, in
//! interleaved slices; prints the medians.

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::time::Instant;

use koltso_profiling::alloc::Sampling;
use mimalloc::MiMalloc;

const SLICES: usize = 61;
const PAIRS: u32 = 200_000;
const BATCH: usize = 4096;
const ROUNDS: usize = 50;

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
    let (mut bare_ns, mut wrapped_ns) = (Vec::new(), Vec::new());
    for _ in 0..SLICES {
        bare_ns.push(batch_ns(&MiMalloc));
        wrapped_ns.push(batch_ns(&wrapped));
    }
    let (bare, wrapped_batch) = (median(bare_ns), median(wrapped_ns));
    println!(
        "{BATCH} live blocks of 64 bytes: {bare:.2} ns bare, {wrapped_batch:.2} ns sampled, {:+.2} ns a pair",
        wrapped_batch - bare
    );
    // A gap is longer than 64 MiB with the probability e^-128: each of these is a sample.
    for depth in [0, 27] {
        let (mut bare_ns, mut wrapped_ns) = (Vec::new(), Vec::new());
        for _ in 0..SLICES {
            bare_ns.push(deep(depth, &mut || pair_ns(&MiMalloc, 64 << 20, 1000)));
            wrapped_ns.push(deep(depth, &mut || pair_ns(&wrapped, 64 << 20, 1000)));
        }
        let (bare, sampled) = (median(bare_ns), median(wrapped_ns));
        println!("a sample, {depth} frames deeper: {:+.0} ns (64 MiB: {bare:.0} ns bare)", sampled - bare);
    }
}

/// Many live blocks, freed in another order: one in 64 has the address of a sample.
#[inline(never)]
fn batch_ns<A: GlobalAlloc>(allocator: &A) -> f64 {
    let layout = Layout::from_size_align(64, 8).expect("a small power of two");
    let mut blocks = [std::ptr::null_mut(); BATCH];
    let began = Instant::now();
    for _ in 0..ROUNDS {
        for block in &mut blocks {
            #[expect(unsafe_code, reason = "calls an allocator")]
            // SAFETY: the layout is not empty.
            unsafe {
                *block = black_box(allocator.alloc(black_box(layout)));
            }
        }
        // 577 and the count have no common factor, so each block is visited once.
        for i in 0..BATCH {
            #[expect(unsafe_code, reason = "calls an allocator")]
            // SAFETY: the block was allocated above and is freed once.
            unsafe {
                allocator.dealloc(blocks[i * 577 % BATCH], layout);
            }
        }
    }
    began.elapsed().as_nanos() as f64 / (ROUNDS * BATCH) as f64
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

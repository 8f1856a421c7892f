//! The sampling allocator, used as the allocator of this very program.
#![allow(clippy::unwrap_used, unsafe_code)]

mod names;

use std::alloc::{GlobalAlloc, Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::cell::RefCell;
use std::hint::black_box;
use std::sync::mpsc;

use koltso_profiling::alloc::{self as engine, Sampling};
use koltso_profiling::capture::{Capture, Event, Frame};
use mimalloc::MiMalloc;
use names::{Names, with};

#[global_allocator]
static ALLOCATOR: Sampling<MiMalloc> = Sampling::new(MiMalloc);

const ALLOC_OBJECTS: usize = 0;
const ALLOC_SPACE: usize = 1;
const INUSE_OBJECTS: usize = 2;
const INUSE_SPACE: usize = 3;

fn over(work: impl FnOnce()) -> Capture {
    let before = engine::snapshot();
    work();
    engine::difference(Event::Allocs, &before, &engine::snapshot(), &mut Names)
}

#[track_caller]
fn close(got: i64, expected: i64, percent: i64) {
    assert!((got - expected).abs() * 100 <= expected.abs() * percent, "{got}, not {expected} within {percent} %");
}

fn is_engine(frame: &Frame) -> bool {
    frame.function.contains("__rust_alloc")
        || frame.file.as_ref().is_some_and(|file| file.contains("profiling/src/alloc/mod.rs"))
}

#[inline(never)]
fn site_of_thirty(bytes: usize) {
    drop(black_box(Vec::<u8>::with_capacity(bytes)));
}

#[inline(never)]
fn site_of_seventy(bytes: usize) {
    drop(black_box(Vec::<u8>::with_capacity(bytes)));
}

#[inline(never)]
fn thirty_and_seventy() {
    for i in 0..1_000_000 {
        // Allocates 1.2 to 40 KiB in pieces of different sizes.
        if i % 2 == 0 {
            site_of_thirty(1200 + i % 7)
        } else {
            site_of_seventy(2800 + i % 5)
        }
        if i % 100 == 0 {
            (0..2).for_each(|_| site_of_thirty(150_000));
            (0..1).for_each(|_| site_of_seventy(700_000));
        }
    }
}

#[test]
fn sites_have_their_shares_and_totals_are_unbiased() {
    let capture = over(thirty_and_seventy);
    let (thirty, seventy) =
        (with(&capture, ALLOC_SPACE, "site_of_thirty"), with(&capture, ALLOC_SPACE, "site_of_seventy"));
    let (true_thirty, true_seventy) = (500_000 * 1203 + 10_000 * 300_000, 500_000 * 2802 + 10_000 * 700_000);
    let share = 100.0 * thirty as f64 / (thirty + seventy) as f64;
    println!("share {share:.2} %, {} bytes for {}", thirty + seventy, true_thirty + true_seventy);
    assert!((share - 100.0 * true_thirty as f64 / (true_thirty + true_seventy) as f64).abs() < 3.0, "{share}");
    close(thirty + seventy, true_thirty + true_seventy, 5);
    // Everything that this function calls has it in its stack, so no stack has lost its root.
    close(with(&capture, ALLOC_SPACE, "thirty_and_seventy"), thirty + seventy, 1);
    // The innermost frame is not one of the engine's.
    for sample in &capture.samples {
        let leaf = capture.frame_at(capture.stack_at(sample.stack)[0]);
        assert!(!is_engine(leaf), "{leaf:?}");
    }
    assert_eq!(with(&capture, INUSE_SPACE, "site_of_thirty"), 0);
    assert_eq!(with(&capture, INUSE_OBJECTS, "site_of_seventy"), 0);
}

#[inline(never)]
fn small_objects() {
    for i in 0..30_000_000_u64 {
        drop(black_box(Box::new([i; 8])));
    }
}

#[test]
fn small_objects_are_counted_without_bias() {
    let capture = over(small_objects);
    close(with(&capture, ALLOC_SPACE, "small_objects"), 30_000_000 * 64, 8);
    close(with(&capture, ALLOC_OBJECTS, "small_objects"), 30_000_000, 8);
}

#[inline(never)]
fn held() -> Vec<Box<[u8]>> {
    (0..64 << 10).map(|_| black_box(vec![1_u8; 16 << 10].into_boxed_slice())).collect()
}

#[test]
fn the_live_heap_goes_down_when_another_thread_frees() {
    let mut all = held();
    let half = all.split_off(all.len() / 2);
    let total = 1 << 30;
    close(with(&engine::heap(&mut Names), INUSE_SPACE, "held"), total, 10);
    let freed = std::thread::spawn(move || drop(half));
    freed.join().unwrap();
    close(with(&engine::heap(&mut Names), INUSE_SPACE, "held"), total / 2, 15);
    drop(all);
    let heap = engine::heap(&mut Names);
    assert_eq!((with(&heap, INUSE_SPACE, "held"), with(&heap, INUSE_OBJECTS, "held")), (0, 0));
    close(with(&heap, ALLOC_SPACE, "held"), total, 10);
}

#[inline(never)]
fn grown(to: usize) -> Vec<u32> {
    let mut grown = Vec::new();
    (0..to as u32).for_each(|i| grown.push(i));
    grown
}

#[test]
fn a_realloc_is_a_free_and_an_alloc_and_keeps_the_bytes() {
    let mut live = Vec::new();
    let capture = over(|| {
        for i in 0..200 {
            let vec = grown(500_000);
            assert!(vec.iter().zip(0..).all(|(got, i)| *got == i));
            if i % 20 == 0 {
                live.push(vec);
            }
        }
    });
    // A vector starts with 16 bytes and is doubled until 2 MiB hold 500 000 numbers: that is 4 MiB
    // less 16 bytes for each vector.
    close(with(&capture, ALLOC_SPACE, "grown"), 200 * ((4 << 20) - 16), 10);
    let inuse = with(&engine::heap(&mut Names), INUSE_SPACE, "grown");
    close(inuse, 10 * (2 << 20), 25);
    live.iter_mut().for_each(|vec| vec.truncate(1000));
    live.iter_mut().for_each(Vec::shrink_to_fit);
    assert!(live.iter().all(|vec| vec.iter().zip(0..).all(|(got, i)| *got == i)));
    drop(live);
    assert_eq!(with(&engine::heap(&mut Names), INUSE_SPACE, "grown"), 0);
}

#[test]
fn zeroed_blocks_are_zero_and_alignments_are_kept() {
    for round in 0..300 {
        for shift in 0..=16 {
            let layout = Layout::from_size_align((1 << shift) + 700_000 * (round % 2), 1 << shift).unwrap();
            // SAFETY: the layout is not empty; each block is freed once with its layout, and read
            // and written within it.
            unsafe {
                let dirty = alloc(layout);
                assert!(dirty.addr().is_multiple_of(layout.align()));
                dirty.write_bytes(0xA5, layout.size());
                let zero = alloc_zeroed(layout);
                assert!(zero.addr().is_multiple_of(layout.align()));
                assert!(std::slice::from_raw_parts(zero, layout.size()).iter().all(|byte| *byte == 0));
                let moved = realloc(dirty, layout, layout.size() + 1);
                assert!(moved.addr().is_multiple_of(layout.align()));
                assert!(std::slice::from_raw_parts(moved, layout.size()).iter().all(|byte| *byte == 0xA5));
                dealloc(moved, Layout::from_size_align(layout.size() + 1, layout.align()).unwrap());
                dealloc(zero, layout);
            }
        }
    }
    // An impossible size is refused and counted nowhere.
    let huge = Layout::from_size_align(isize::MAX as usize - 63, 64).unwrap();
    // SAFETY: the layout is not empty, and nothing is allocated.
    unsafe { assert!(ALLOCATOR.alloc(huge).is_null()) }
}

#[test]
fn blocks_at_the_residue_that_are_no_samples_are_freed_as_usual() {
    // For powers of two below a page, one block in 4096 / size has the residue, in memory that
    // contains whatever the program has written.
    let mut blocks: Vec<Box<[u64; 8]>> = (0..100_000).map(|i| Box::new([i; 8])).collect();
    // The most confusing content that a block can have for the next one is that block's address.
    for block in &mut blocks {
        **block = [std::ptr::from_ref(&**block).addr() as u64 + 64; 8];
    }
    let addresses = blocks.iter().filter(|block| std::ptr::from_ref(&***block).addr() % 4096 == 0x840).count();
    assert!(addresses > 500, "{addresses}");
    drop(blocks);
}

#[inline(never)]
fn hammered(seed: u64) -> Vec<u8> {
    let mut vec = black_box(vec![seed as u8; 100 + (seed % 5000) as usize]);
    vec.extend_from_slice(&[seed as u8; 900]);
    vec
}

struct AtTheEnd(Vec<u8>);

impl Drop for AtTheEnd {
    fn drop(&mut self) {
        // The destructor of a thread-local, which allocates and frees while the thread ends.
        for i in 0..2000 {
            self.0 = hammered(i);
        }
    }
}

#[test]
fn ten_threads_hammer_free_each_others_blocks_and_end() {
    thread_local!(static LAST: RefCell<Option<AtTheEnd>> = const { RefCell::new(None) });
    let before = engine::snapshot();
    let (to, from) = mpsc::sync_channel::<Vec<u8>>(64);
    let freeing = std::thread::spawn(move || from.into_iter().for_each(|vec| assert_eq!(vec[0], vec[vec.len() - 1])));
    std::thread::scope(|scope| {
        for thread in 0..10 {
            let to = to.clone();
            scope.spawn(move || {
                LAST.set(Some(AtTheEnd(Vec::new())));
                for i in 0..20_000 {
                    let vec = hammered(i * 31 + thread);
                    if i % 4 == 0 { to.send(vec).unwrap() } else { drop(vec) }
                }
            });
        }
        (0..20).for_each(|_| drop(engine::heap(&mut Names)));
    });
    drop(to);
    freeing.join().unwrap();
    for _ in 0..200 {
        std::thread::spawn(|| LAST.set(Some(AtTheEnd(hammered(7))))).join().unwrap();
    }
    let capture = engine::difference(Event::Heap, &before, &engine::snapshot(), &mut Names);
    assert_eq!(with(&capture, INUSE_SPACE, "hammered"), 0);
    assert!(with(&capture, ALLOC_SPACE, "hammered") > 1 << 30);
    assert!(with(&capture, ALLOC_SPACE, "AtTheEnd") > 0);
    // Taking a sample is never sampled itself.
    assert!(!capture.frames().iter().any(is_engine));
}

#[test]
fn cumulative_values_only_grow_and_types_have_their_names() {
    let (first, second) = (engine::allocs(&mut Names), engine::allocs(&mut Names));
    for value in [ALLOC_OBJECTS, ALLOC_SPACE] {
        assert!(first.total(value) <= second.total(value) && first.total(value) > 0);
    }
    let names: Vec<_> = first.types.iter().map(|t| (&*t.name, &*t.unit)).collect();
    let expected =
        [("alloc_objects", "count"), ("alloc_space", "bytes"), ("inuse_objects", "count"), ("inuse_space", "bytes")];
    assert_eq!(names, expected);
    assert_eq!((first.default_type, engine::heap(&mut Names).default_type), (1, 3));
    assert_eq!(first.period.as_ref().map(|&(_, bytes)| bytes), Some(524_288));
}

/// Runs before `main`, when neither the runtime nor this thread's sampling has begun.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = {
    extern "C" fn before_main() {
        (0..1000).for_each(|_| site_before_main());
    }
    before_main
};

#[inline(never)]
fn site_before_main() {
    drop(black_box(Vec::<u8>::with_capacity(1 << 20)));
}

#[test]
fn allocations_before_main_count() {
    close(with(&engine::allocs(&mut Names), ALLOC_SPACE, "site_before_main"), 1000 << 20, 10);
}

/// An allocator that itself allocates.
struct Nested;

#[inline(never)]
fn in_a_sample() {
    drop(black_box(Vec::<u8>::with_capacity(64 << 20)));
}

// SAFETY: the blocks are mimalloc's.
unsafe impl GlobalAlloc for Nested {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        in_a_sample();
        // SAFETY: the caller's contract.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { MiMalloc.dealloc(block, layout) }
    }
}

#[inline(never)]
fn outer_of_nested() {
    let sampling = Sampling::new(Nested);
    // A gap is longer than 64 MiB with the probability e^-128, and this alignment makes the sample
    // use the inner allocator.
    let layout = Layout::from_size_align(64 << 20, 4096).unwrap();
    // SAFETY: the layout is not empty, and the block is freed once.
    unsafe { sampling.dealloc(black_box(sampling.alloc(layout)), layout) }
}

#[test]
fn what_is_allocated_while_a_sample_is_taken_is_no_sample() {
    let capture = over(|| (0..100).for_each(|_| outer_of_nested()));
    assert_eq!(with(&capture, ALLOC_SPACE, "outer_of_nested"), 100 * (64 << 20));
    assert_eq!(with(&capture, ALLOC_OBJECTS, "outer_of_nested"), 100);
    assert_eq!(with(&capture, ALLOC_SPACE, "in_a_sample"), 0);
    // Blocks with such an alignment are not in the live heap.
    assert_eq!(with(&capture, INUSE_SPACE, "outer_of_nested"), 0);
}

#[inline(never)]
fn burst_of_allocations() {
    (0..40).for_each(|_| drop(black_box(Vec::<u8>::with_capacity(3 << 20))));
}

#[test]
fn a_timeline_tells_when_and_adds_up() {
    let before = engine::snapshot();
    let burst = std::thread::spawn(|| {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let at = std::time::Instant::now();
        burst_of_allocations();
        at
    });
    let began = std::time::Instant::now();
    let capture = engine::timeline(1, &std::sync::atomic::AtomicBool::new(false), &mut Names);
    let at_ms = (burst.join().unwrap() - began).as_millis() as i64;
    let whole = engine::difference(Event::Allocs, &before, &engine::snapshot(), &mut Names);
    let of = |capture: &Capture| with(capture, ALLOC_SPACE, "burst_of_allocations");
    close(of(&capture), 40 * (3 << 20), 25);
    assert_eq!(of(&capture), of(&whole), "each sample is in one cell");
    assert!(with(&capture, INUSE_SPACE, "burst_of_allocations") == 0, "all was freed");
    assert!(capture.duration_ns >= 1_000_000_000 && capture.dropped == 0);
    // The whole burst is in the cells around its time, apart from what a busy machine delays.
    let near = capture.samples.iter().filter(|sample| {
        let stack = capture.stack_at(sample.stack).iter();
        stack.into_iter().any(|id| capture.frame_at(*id).function.contains("burst_of_allocations"))
    });
    for sample in near {
        let ms = (sample.at_ns / 1_000_000) as i64;
        assert!((ms - at_ms).abs() < 200, "a sample at {ms} ms of a burst at {at_ms} ms");
    }
    // Told to stop, it ends with the samples it has.
    let stop = std::sync::atomic::AtomicBool::new(true);
    assert!(engine::timeline(300, &stop, &mut Names).duration_ns < 1_000_000_000);
}

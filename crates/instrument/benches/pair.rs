//! What a name costs a lock that is free: parking_lot's `lock` and ours in interleaved slices, with
//! the best and the median of each.
//!
//! `cargo bench -p koltso-instrument`

use std::hint::black_box;
use std::time::Instant;

use koltso_instrument::Mutex;

const SLICES: usize = 401;
const PAIRS: u32 = 50_000;

fn ns(mut pair: impl FnMut()) -> f64 {
    let began = Instant::now();
    (0..PAIRS).for_each(|_| pair());
    began.elapsed().as_nanos() as f64 / f64::from(PAIRS)
}

fn main() {
    let (bare, named) = (parking_lot::Mutex::new(0_u64), Mutex::new(&"a pair", 0_u64));
    let (mut bare_ns, mut named_ns) = (Vec::new(), Vec::new());
    for _ in 0..SLICES {
        bare_ns.push(ns(|| *black_box(&bare).lock() += 1));
        named_ns.push(ns(|| *black_box(&named).lock() += 1));
    }
    for (name, mut of) in [("parking_lot", bare_ns), ("named", named_ns)] {
        of.sort_by(f64::total_cmp);
        println!("{name:<12} best {:.2} ns, median {:.2} ns a lock and unlock", of[0], of[SLICES / 2]);
    }
}

//! Random numbers for sampling, a thread at a time, and the secret of the process they begin with.
//!
//! No lock, no allocation, no thread-local of its own: the allocator calls this. Not for keys or nonces.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use std::thread::LocalKey;

/// Random, not 0; 0 until the first [`seed`].
static SECRET: AtomicU64 = AtomicU64::new(0);

/// A random number that stays the same in this process and never leaves it; 0 until the first [`seed`].
#[inline]
#[must_use]
pub fn secret() -> u64 {
    SECRET.load(Relaxed)
}

/// The next number: xorshift64*. The state is not 0.
#[inline]
pub fn random(state: &'static LocalKey<Cell<u64>>) -> u64 {
    let mut x = state.get();
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    state.set(x);
    x.wrapping_mul(0x2545_F491_4F6C_DD1D)
}

/// A state for [`random`]: another at each call, not 0. Makes the secret if there is none.
#[must_use]
pub fn seed() -> u64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let mut secret = SECRET.load(Acquire);
    if secret == 0 {
        let mut bytes = [0; 8];
        // SAFETY: the buffer is as long as is said.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
        // Early in the life of a machine: where the loader put us is random too.
        let fresh = if got == 8 { u64::from_ne_bytes(bytes) } else { mixed((&raw const bytes).addr() as u64) };
        secret = match SECRET.compare_exchange(0, fresh.max(1), AcqRel, Acquire) {
            Ok(_) => fresh.max(1),
            Err(theirs) => theirs,
        };
    }
    let call = CALLS.fetch_add(1, Relaxed);
    mixed(secret.wrapping_add(call.wrapping_mul(0x9E37_79B9_7F4A_7C15))).max(1)
}

/// The finaliser of splitmix64.
const fn mixed(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        static STATE: Cell<u64> = const { Cell::new(0) };
    }

    #[test]
    fn seeds_and_numbers_differ_and_the_secret_stays() {
        let (one, two) = (seed(), seed());
        let secret_then = secret();
        assert!(one != two && one != 0 && two != 0 && secret_then != 0);
        STATE.set(one);
        let mut numbers: Vec<u64> = (0..1000).map(|_| random(&STATE)).collect();
        let ones: u32 = numbers.iter().map(|number| number.count_ones()).sum();
        assert!((31_000..33_000).contains(&ones), "{ones} of 64000 bits, seed {one}");
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!((numbers.len(), secret()), (1000, secret_then));
    }
}

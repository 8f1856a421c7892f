//! Random numbers for sampling, with one state per thread, and the secret of the process that seeds
//! them.
//!
//! The allocator calls these functions, so they take no lock, do not allocate and have no
//! thread-local of their own. The numbers are not fit for keys or nonces.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use std::thread::LocalKey;

/// A random number, never 0 once made; 0 until the first [`seed`].
static SECRET: AtomicU64 = AtomicU64::new(0);

/// A random number that stays the same for the life of the process and never leaves it; 0 until the
/// first [`seed`].
#[inline]
#[must_use]
pub fn secret() -> u64 {
    SECRET.load(Relaxed)
}

/// The next number of xorshift64*. The state must not be 0.
#[inline]
pub fn random(state: &'static LocalKey<Cell<u64>>) -> u64 {
    let mut x = state.get();
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    state.set(x);
    x.wrapping_mul(0x2545_F491_4F6C_DD1D)
}

/// A state for [`random`]: different at each call, never 0. The first call also makes the secret.
#[must_use]
pub fn seed() -> u64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let mut secret = SECRET.load(Acquire);
    if secret == 0 {
        let mut bytes = [0; 8];
        // SAFETY: the kernel writes at most the length of the buffer, which is passed with it.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
        // Early in the life of a machine the kernel has no random numbers yet; the address at which
        // the loader put the stack is random too.
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

//! What the tests of all crates share. Only tests depend on it; `.ci/run` proves that.
//!
//! - [`random`]: the one generator. A random test prints its seed first and takes it back from `KOLTSO_SEED`.
//! - [`wait`]: conditions that are polled, with generous ends.
//!
//! Invariants:
//! 1. Everything that waits has a deadline, so no test hangs.
//! 2. A condition is polled, never slept for, unless the passing of time is itself what is tested.

pub mod random;
pub mod wait;

pub use random::Random;
pub use wait::eventually;

/// Whether the long variants of the tests are asked for (`KOLTSO_TEST_LONG=1`).
pub fn long() -> bool {
    std::env::var("KOLTSO_TEST_LONG").is_ok_and(|value| value == "1")
}

/// `short` in an ordinary run, `long_` when long runs are asked for.
pub fn volume<T>(short: T, long_: T) -> T {
    if long() { long_ } else { short }
}

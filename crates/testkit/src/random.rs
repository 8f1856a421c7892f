//! The one source of chance of all tests: splitmix64 (Steele, Lea and Flood 2014), small, seedable,
//! and good enough to choose keys, faults and moments.
//!
//! A random test takes its seed from [`seed`] or [`seed_or`], which print it, so that a failure
//! says how to repeat it: `KOLTSO_SEED=n cargo test …`. The numbers that a seed gives do not change
//! from version to version: found seeds are kept as named tests.

use std::time::{Duration, UNIX_EPOCH};

const SEED_VARIABLE: &str = "KOLTSO_SEED";

/// The seed that the environment asks for.
///
/// # Panics
/// When `KOLTSO_SEED` is set to something that is no number of 64 bits.
pub fn asked_seed() -> Option<u64> {
    let text = std::env::var(SEED_VARIABLE).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{SEED_VARIABLE}={text:?} is no number below 2^64")))
}

/// The seed of a random test: `KOLTSO_SEED` if set, the clock otherwise. Prints it.
pub fn seed(test: &str) -> u64 {
    seed_or(test, UNIX_EPOCH.elapsed().map_or(0, seed_of_time))
}

/// The same for a test that runs one known seed unless it is asked for another.
pub fn seed_or(test: &str, default: u64) -> u64 {
    let seed = asked_seed().unwrap_or(default);
    println!("{test}: {SEED_VARIABLE}={seed}");
    seed
}

fn seed_of_time(time: Duration) -> u64 {
    u64::from(time.subsec_nanos()) ^ (time.as_secs() << 30)
}

/// A scrambled `number`: the last step of splitmix64.
pub fn mixed(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A stream of random numbers. One seed gives one stream.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A stream from [`seed`], which is printed.
    pub fn announced(test: &str) -> Random {
        Random(seed(test))
    }

    /// The stream of `seed`.
    pub fn seeded(seed: u64) -> Random {
        Random(seed)
    }

    /// An independent stream, for another thread or another part of a test.
    pub fn fork(&mut self) -> Random {
        Random(self.next())
    }

    /// The next 64 bits.
    #[allow(clippy::should_implement_trait, reason = "a stream without an end needs no Option")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// A number below `bound`, which is not 0.
    pub fn below<N: Whole>(&mut self, bound: N) -> N {
        N::from_u64(self.next() % bound.to_u64())
    }

    /// A number of `low..=high`.
    pub fn between<N: Whole>(&mut self, low: N, high: N) -> N {
        let (low, high) = (low.to_u64(), high.to_u64());
        N::from_u64(low + self.below(high - low + 1))
    }

    /// True once in `n` times.
    pub fn one_in<N: Whole>(&mut self, n: N) -> bool {
        self.below(n.to_u64()) == 0
    }

    /// True in `share` of a million cases.
    pub fn per_million(&mut self, share: u64) -> bool {
        share > 0 && self.below(1_000_000) < share
    }

    /// One of `items`, of which there is at least one.
    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// A number that is distributed exponentially, at most eight times its mean.
    pub fn around(&mut self, mean: u64) -> u64 {
        #[allow(clippy::cast_precision_loss, reason = "53 bits are as many as an f64 has")]
        let uniform = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let drawn = (-(1.0 - uniform).ln() * mean as f64) as u64;
        drawn.min(mean * 8)
    }

    /// `len` random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// `len` lower-case letters and digits.
    pub fn word(&mut self, len: usize) -> String {
        (0..len).map(|_| char::from(*self.choose(b"abcdefghijklmnopqrstuvwxyz0123456789"))).collect()
    }
}

/// A type of whole numbers that bounds may have; no bound is negative.
pub trait Whole: Copy {
    /// The number as 64 bits.
    fn to_u64(self) -> u64;
    /// The number again, from what is no larger than a bound of this type.
    fn from_u64(number: u64) -> Self;
}

macro_rules! whole {
    ($($number:ty)*) => {$(
        impl Whole for $number {
            fn to_u64(self) -> u64 {
                u64::try_from(self).expect("a bound that is not negative")
            }

            fn from_u64(number: u64) -> Self {
                Self::try_from(number).expect("no more than a bound of this type")
            }
        }
    )*};
}

whole!(u8 u16 u32 u64 usize i32);

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of the reference implementation for the seed 1234567.
    #[test]
    fn a_seed_gives_the_numbers_that_it_always_gave() {
        let mut random = Random::seeded(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn bounds_are_kept_and_reached() {
        let mut random = Random::seeded(1);
        let mut seen = [0_usize; 4];
        for _ in 0..1000 {
            seen[random.between(1_usize, 3)] += 1;
            assert!(random.around(10) <= 80);
            assert!(!random.per_million(0) && random.per_million(1_000_000));
        }
        assert_eq!(seen[0], 0);
        assert!(seen[1..].iter().all(|&count| count > 250), "{seen:?}");
    }

    #[test]
    fn forks_differ_and_lengths_are_exact() {
        let mut random = Random::seeded(2);
        assert_ne!(random.fork().next(), random.fork().next());
        for len in [0, 1, 8, 13] {
            assert_eq!((random.bytes(len).len(), random.word(len).len()), (len, len));
        }
    }
}

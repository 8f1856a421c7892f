//! What the load asks for: the order of the keys, the mix of operations, and the bytes of a
//! request.
//!
//! Keys and values are those of `scripts/lib.lua` and `scripts/load.py` (a key is `kkkkkkkk` and
//! eight digits, and its value ends in the same digits), so that each tool finds what another one
//! wrote.
//!
//! Owner: each thread of the load has one `Work`. Together they go through all keys, so that N
//! requests touch each of N keys once. The requests depend only on the seed. There is no I/O.

use std::fmt::Write as _;

/// The most keys: their numbers have eight digits.
pub const KEYS_MAX: u64 = 99_999_999;
const PREFIX: &str = "kkkkkkkk";
const DIGITS: usize = 8;

/// What a request does with its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Get,
    Put,
    Delete,
}

/// The shares of GET, PUT and DELETE among the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    pub get: u32,
    pub put: u32,
    pub delete: u32,
}

impl Mix {
    fn pick(self, random: &mut Random) -> Operation {
        let all = u64::from(self.get) + u64::from(self.put) + u64::from(self.delete);
        let dice = random.next() % all;
        if dice < u64::from(self.get) {
            Operation::Get
        } else if dice < u64::from(self.get) + u64::from(self.put) {
            Operation::Put
        } else {
            Operation::Delete
        }
    }
}

/// The generator splitmix64.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed(self.0)
    }
}

fn mixed(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// A shuffle of 0 to `count` - 1 that needs no memory: a Feistel network over the next power of
/// four, applied again until the result is below `count` (at worst four times on average).
#[derive(Clone)]
struct Shuffle {
    count: u64,
    half_bits: u32,
    keys: [u64; 4],
}

impl Shuffle {
    fn new(count: u64, seed: u64) -> Self {
        let mut random = Random(seed);
        let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
        Self { count, half_bits: bits.div_ceil(2).max(1), keys: [(); 4].map(|()| random.next()) }
    }

    fn at(&self, index: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let mut x = index % self.count;
        loop {
            let (mut left, mut right) = (x >> self.half_bits, x & mask);
            for key in self.keys {
                (left, right) = (right, left ^ (mixed(right ^ key) & mask));
            }
            x = (left << self.half_bits) | right;
            if x < self.count {
                return x;
            }
        }
    }
}

/// A request before it is formatted.
#[derive(Clone, Copy, Debug)]
pub struct LoadRequest {
    pub operation: Operation,
    pub key: u64,
}

/// The requests of one thread.
pub struct Work {
    mix: Mix,
    random: Random,
    shuffle: Shuffle,
    at: u64,
    step: u64,
}

impl Work {
    /// The requests of thread number `thread` out of `threads`.
    pub fn new(mix: Mix, keys: u64, seed: u64, thread: usize, threads: usize) -> Self {
        let random = Random(mixed(seed ^ mixed(thread as u64 + 1)));
        Self { mix, random, shuffle: Shuffle::new(keys, seed), at: thread as u64, step: threads as u64 }
    }

    /// The next request.
    pub fn next(&mut self) -> LoadRequest {
        let key = self.shuffle.at(self.at);
        self.at += self.step;
        LoadRequest { operation: self.mix.pick(&mut self.random), key }
    }
}

/// The requests to one node, complete except for the key.
pub struct Templates([Template; 3]);

struct Template {
    bytes: Vec<u8>,
    key_at: usize,
    /// How many digits of the key the value ends in.
    value_digits: usize,
}

impl Templates {
    /// The requests to the node `host`, with values of `size` bytes and `query` after the key.
    pub fn new(host: &str, size: usize, query: &str) -> Self {
        Self([Operation::Get, Operation::Put, Operation::Delete].map(|operation| {
            let method = match operation {
                Operation::Get => "GET",
                Operation::Put => "PUT",
                Operation::Delete => "DELETE",
            };
            let mut head = format!("{method} /v0/entity?id={PREFIX}");
            let key_at = head.len();
            let tail = if query.is_empty() { String::new() } else { format!("&{query}") };
            let _ = write!(head, "{:01$}{tail} HTTP/1.1\r\nHost: {host}\r\n", 0, DIGITS);
            let size = if operation == Operation::Put { size } else { 0 };
            if operation == Operation::Put {
                let _ = write!(head, "Content-Length: {size}\r\n");
            }
            head += "\r\n";
            let mut bytes = head.into_bytes();
            bytes.resize(bytes.len() + size, b'v');
            Template { bytes, key_at, value_digits: size.min(DIGITS) }
        }))
    }

    /// The bytes of a request.
    pub fn fill(&mut self, request: LoadRequest) -> &[u8] {
        let template = &mut self.0[request.operation as usize];
        let mut digits = [b'0'; DIGITS];
        let mut rest = request.key;
        for digit in digits.iter_mut().rev() {
            *digit += (rest % 10) as u8;
            rest /= 10;
        }
        template.bytes[template.key_at..][..DIGITS].copy_from_slice(&digits);
        let end = template.bytes.len();
        template.bytes[end - template.value_digits..].copy_from_slice(&digits[DIGITS - template.value_digits..]);
        &template.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_those_of_the_lua_scripts() {
        let mut templates = Templates::new("127.0.0.1:1337", 12, "ack=2&from=3");
        let mut text =
            |operation, key| String::from_utf8_lossy(templates.fill(LoadRequest { operation, key })).into_owned();
        let get = "GET /v0/entity?id=kkkkkkkk00001234&ack=2&from=3 HTTP/1.1\r\nHost: 127.0.0.1:1337\r\n\r\n";
        assert_eq!(text(Operation::Get, 1234), get);
        assert_eq!(text(Operation::Delete, 1234), get.replace("GET", "DELETE"));
        assert_eq!(
            text(Operation::Put, 99_999_999),
            "PUT /v0/entity?id=kkkkkkkk99999999&ack=2&from=3 HTTP/1.1\r\nHost: 127.0.0.1:1337\r\nContent-Length: 12\r\n\r\n\
             vvvv99999999"
        );
        let mut short = Templates::new("h", 3, "");
        let put = short.fill(LoadRequest { operation: Operation::Put, key: 12_345_678 });
        assert!(put.ends_with(b"\r\n\r\n678") && put.starts_with(b"PUT /v0/entity?id=kkkkkkkk12345678 HTTP/1.1\r\n"));
        let mut empty = Templates::new("h", 0, "");
        assert!(empty.fill(LoadRequest { operation: Operation::Put, key: 1 }).ends_with(b"Content-Length: 0\r\n\r\n"));
    }

    #[test]
    fn threads_together_touch_each_key_once_in_a_round() {
        for keys in [1, 2, 3, 10, 1000, 1024, 1025] {
            let mix = Mix { get: 1, put: 0, delete: 0 };
            let mut seen: Vec<u64> = Vec::new();
            for thread in 0..3 {
                let mut work = Work::new(mix, keys, 7, thread, 3);
                let share = (keys as usize + 2 - thread) / 3;
                seen.extend((0..share).map(|_| work.next().key));
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..keys).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_mix_has_its_shares() {
        let mut work = Work::new(Mix { get: 80, put: 15, delete: 5 }, 100, 1, 0, 1);
        let mut counts = [0; 3];
        (0..100_000).for_each(|_| counts[work.next().operation as usize] += 1);
        for (count, share) in counts.into_iter().zip([80_000_i32, 15_000, 5_000]) {
            assert!((count - share).abs() < 1000, "{counts:?}");
        }
    }
}

//! What the short fuzz runs within `cargo test` have in common: how long they go on, and how bytes
//! are harmed.

use std::time::Duration;

use crate::Random;

/// How long a fuzz run goes on: `KOLTSO_FUZZ_SECONDS`, or one second.
pub fn time() -> Duration {
    let seconds = std::env::var("KOLTSO_FUZZ_SECONDS").ok().map_or(1, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

/// Harms `bytes` in one to four ways: bits, bytes and runs of them changed, moved, doubled or
/// inserted, the end cut off.
pub fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        if bytes.len() < 16 {
            return;
        }
        let at = random.below(bytes.len() - 8);
        let len = random.below(200).min(bytes.len() - at);
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at..at + len].fill(random.next().to_le_bytes()[0]),
            2 => bytes[at..at + 8].copy_from_slice(&random.next().to_le_bytes()),
            3 => bytes[at..at + 4].copy_from_slice(&[0, 1, 0x7f, 0xff].map(|byte| byte * random.below(2_u8))),
            4 => bytes.truncate(at),
            5 => drop(bytes.splice(at..at, random.bytes(len))),
            // The largest number of base 128.
            6 => drop(bytes.splice(at..=at, [[0xff; 9].as_slice(), &[1]].concat())),
            _ => {
                let copy = bytes[at..at + len].to_vec();
                let to = random.below(bytes.len());
                drop(bytes.splice(to..to, copy));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_harmed_and_short_ones_are_let_be() {
        let mut random = Random::seeded(1);
        let whole = random.bytes(1000);
        let harmed = (0..100).filter(|_| {
            let mut bytes = whole.clone();
            mutate(&mut bytes, &mut random);
            bytes != whole
        });
        assert!(harmed.count() > 90);
        let mut short = vec![1; 15];
        mutate(&mut short, &mut random);
        assert_eq!(short, [1; 15]);
    }
}

//! The body of the fuzz target `hints`, run for a moment over mutations of real segments.
//!
//! `KOLTSO_FUZZ_SECONDS` makes it run longer, and `KOLTSO_SEED` repeats a run. With cargo-fuzz,
//! `fuzz/` guides it by coverage.

#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use koltso_hints::{Dial, Keeper, Options, PeerAddress, Target, fuzz_entry, fuzz_segment};
use koltso_model::{Flags, Key, Record, Version};
use koltso_testkit::fuzz::{mutate, time};
use koltso_testkit::random::{Random, seed_or};

const HEADER: usize = 32;
const HINTS: usize = 60;

struct Nobody;

impl Dial for Nobody {
    fn dial(&self, _: usize) -> Result<Box<dyn Target>, String> {
        Err("nobody is there".to_owned())
    }
}

/// A segment that a keeper has written, and the offset at which each entry begins.
fn segment() -> (Vec<u8>, Vec<usize>) {
    let dir = tempfile::tempdir().unwrap();
    let peer = PeerAddress { node: 0, url: "http://a:1".to_owned() };
    let keeper = Keeper::start(dir.path(), vec![peer], Arc::new(Nobody), Options::new(|| 1 << 40)).unwrap();
    let (mut begins, mut end) = (Vec::new(), HEADER);
    for number in 0..HINTS {
        let tombstone = number % 5 == 0;
        let value = if tombstone { Bytes::new() } else { vec![number as u8; number * 13 % 400].into() };
        let key = Bytes::from(format!("key-{number}"));
        begins.push(end);
        let flags = Flags::new(3);
        let flags = if tombstone { flags.tombstone() } else { flags };
        let attributes = Bytes::from(vec![1, 2, b'a', number as u8]);
        end += 40 + key.len() + attributes.len() + value.len();
        let version = Version::new(number as u64 + 1, number as u16 % 3);
        let expires_at_ms = number as u64 % 2 * 1_000;
        keeper.keep(0, Record { key: Key::new(key), value, version, expires_at_ms, flags, attributes });
    }
    keeper.stop();
    let bytes = std::fs::read(dir.path().join("a_1/0000000000000001.hints")).unwrap();
    assert_eq!(bytes.len(), end);
    (bytes, begins)
}

#[test]
fn a_segment_of_any_bytes_gives_its_intact_entries_and_no_panic() {
    let mut rng = Random::seeded(seed_or("a_segment_of_any_bytes_gives_its_intact_entries_and_no_panic", 1));
    let (bytes, begins) = segment();
    assert_eq!(fuzz_segment(&bytes), Some((HINTS, bytes.len() as u64)), "unharmed, it is read whole");
    let (begun, mut runs, mut believed, mut least) = (Instant::now(), 0_u64, 0_u64, HINTS);
    while begun.elapsed() < time() {
        runs += 1;
        let mut mutated = bytes.clone();
        if rng.below(2) == 0 {
            mutate(&mut mutated, &mut rng);
            // An entry that is moved is not valid at its new place, so nothing can be found twice.
            let found = fuzz_segment(&mutated).map_or(0, |(count, _)| count);
            assert!(found <= HINTS, "{found} entries found of {HINTS}");
            least = least.min(found);
        } else {
            // Changes a field of an entry and corrects the checksum: whatever is accepted must be
            // written again as the same bytes.
            let begin = begins[rng.below(HINTS)];
            mutated[begin + 4 + rng.below(40)] ^= 1 << rng.below(8);
            fuzz_entry(&mut mutated, begin);
            let (count, end) = fuzz_segment(&mutated).unwrap();
            assert!(count == HINTS || end == begin as u64, "all, or those before it");
            believed += u64::from(count == HINTS);
        }
    }
    assert!(runs > 100 && least < HINTS && believed > 10, "{runs} runs, {least} at least, {believed} believed");
}

//! A hint segment from any bytes: its entries are found in order, within its bounds, and have one
//! form.
//!
//! A fuzzer cannot guess checksums, so they are made right where the input asks for it: the
//! header's always, then entry by entry as long as the lowest bit of the entry's checksum is set.
#![no_main]

const HEADER: usize = 32;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = koltso_hints::fuzz_segment(data);
    let mut bytes = data.to_vec();
    let mut at = HEADER;
    while bytes.get(at + 4).is_some_and(|byte| byte & 1 != 0) {
        match koltso_hints::fuzz_entry(&mut bytes, at) {
            Some(end) => at = end,
            None => break,
        }
    }
    let found = koltso_hints::fuzz_segment(&bytes);
    assert!(found.is_none_or(|(_, end)| end <= bytes.len() as u64));
});

//! A segment from any bytes: its records are found in order, within its bounds.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = koltso_storage::fuzz_scan(data, 0x5eed);
});

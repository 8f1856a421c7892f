//! A record from any bytes: read or refused, never a panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = koltso_storage::fuzz_record(data, 0x5eed);
});

//! A path, or a part of a query, from any text.
#![no_main]

#[path = "../bodies/http.rs"]
#[allow(dead_code)]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = std::str::from_utf8(data).map(bodies::path);
});

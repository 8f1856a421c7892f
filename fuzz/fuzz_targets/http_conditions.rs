//! Conditions from any bytes: lines, of which the first bit says which condition they are.
#![no_main]

#[path = "../bodies/http.rs"]
#[allow(dead_code)]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bodies::conditions(data);
});

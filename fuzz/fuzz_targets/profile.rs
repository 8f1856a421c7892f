//! A profile.proto of any bytes, plain or gzipped: a capture that can be shown, written and read
//! again, or an error.
#![no_main]

use koltso_profiling::{page, proto, text};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(capture) = proto::decode(data) else { return };
    let value = capture.default_type;
    let _ = (text::top(&capture, value), page::flamegraph(&capture, "fuzz"));
    let again = proto::decode(&proto::encode(&capture)).expect("what was encoded is decoded");
    assert_eq!(again.total(value), capture.total(value));
});

//! A request head from any bytes. What is whole stays whole, and the same, when more follows.
#![no_main]

use koltso_net::http::head::parse;
use koltso_net::http::{Parsed, query};

const HEADER_MAX: usize = 16 * 1024;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Parsed::Complete(head) = parse(data, HEADER_MAX) else {
        return;
    };
    assert!(head.head_len <= data.len() && head.head_len <= HEADER_MAX);
    for (_, value) in query::pairs(head.query) {
        let _ = query::decode(value);
    }
    let Parsed::Complete(again) = parse(&data[..head.head_len], HEADER_MAX) else {
        panic!("a whole head is whole by itself");
    };
    assert_eq!((again.path, again.query, again.body), (head.path, head.query, head.body));
});

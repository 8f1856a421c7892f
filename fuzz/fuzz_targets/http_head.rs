//! A request head from any bytes. What is whole stays whole, and the same, when more follows; what
//! is taken out of it is what the connection may rely on: a host that ends nothing, a path whose two
//! forms are one, a part that lies within the value.
//!
//! The same body runs over generated heads in `net/src/http/head_tests.rs`.
#![no_main]

use koltso_net::http::conditions::{Conditions, Judged};
use koltso_net::http::head::parse;
use koltso_net::http::{Parsed, Seen, host, query};

const HEADER_MAX: usize = 16 * 1024;
const LENGTH: u64 = 1000;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Parsed::Complete(head) = parse(data, HEADER_MAX) else {
        return;
    };
    assert!(head.head_len <= data.len() && head.head_len <= HEADER_MAX);
    for (name, value) in query::pairs(head.query) {
        let _ = (query::decode(name), query::decode(value));
    }
    assert!(!head.path.contains(['#', '?']) && !head.query.contains('#'));
    if let Ok(path) = query::normalised(head.path) {
        assert_eq!(query::decode(&path), query::decode(head.path));
        assert_eq!(query::normalised(&path).as_deref(), Ok(&*path), "once is enough");
    }
    assert!(host::is_valid(head.host.as_bytes()) && !head.host.contains([' ', ',', '/', '@']));
    assert!(head.host.starts_with(host::name(head.host)));
    for line in [Seen::CONTENT_TYPE, Seen::CONTENT_ENCODING, Seen::ORIGIN, Seen::CONTENT_RANGE, Seen::IF_MATCH] {
        assert_eq!(head.values(line).next().is_some(), head.seen.has(line));
        for value in head.values(line) {
            assert!(!value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
        }
    }
    if let Some(conditions) = Conditions::of(&head)
        && let Judged::Part(part) = conditions.judge(b"\"0000000000000001-0001\"", 1, LENGTH)
    {
        assert!(part.first <= part.last && part.last < LENGTH);
    }
    let Parsed::Complete(again) = parse(&data[..head.head_len], HEADER_MAX) else {
        panic!("a whole head is whole by itself");
    };
    assert_eq!((again.path, again.query, again.body), (head.path, head.query, head.body));
    assert_eq!((again.host, again.seen), (head.host, head.seen));
});

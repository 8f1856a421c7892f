//! A chunked body from any bytes, whole and in two pieces: the same result.
#![no_main]

use koltso_net::http::chunked::Decoder;

const BODY_MAX: usize = 4096;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&split, data)) = data.split_first() else {
        return;
    };
    let mut whole = Vec::new();
    let at_once = Decoder::new(BODY_MAX).feed(data, &mut whole);
    assert!(whole.len() <= BODY_MAX);

    let (first, second) = data.split_at(usize::from(split).min(data.len()));
    let mut pieces = Vec::new();
    let mut decoder = Decoder::new(BODY_MAX);
    let in_pieces = match decoder.feed(first, &mut pieces) {
        Ok(progress) if !progress.done => {
            decoder.feed(second, &mut pieces).map(|p| (p.done, progress.consumed + p.consumed))
        }
        result => result.map(|p| (p.done, p.consumed)),
    };
    match (at_once, in_pieces) {
        (Ok(a), Ok((done, consumed))) => assert_eq!((a.done, a.consumed, whole), (done, consumed, pieces)),
        (Err(a), Err(b)) => assert_eq!(a.to_string(), b.to_string()),
        (a, b) => panic!("{a:?} at once, {b:?} in pieces"),
    }
});

//! Steps of comparing replicas, requests and replies, from any bytes. What is read has one encoding:
//! the bytes it was read from. Bit 0 of the first byte decides whether length and checksum of the
//! first frame are made right, so that its fields are looked at; bit 1 whether the peer has announced
//! all flags and attributes that there can be.
#![no_main]

use koltso_net::replica::Features;
use koltso_net::replica::frame::exchange::fuzz_exchange;
use koltso_net::replica::frame::{HEADER, Limits};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else {
        return;
    };
    let mut bytes = rest.to_vec();
    if first & 1 == 1 && bytes.len() >= HEADER {
        let body = (bytes.len() - HEADER) as u32;
        bytes[4..8].copy_from_slice(&body.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&checksum.to_le_bytes());
    }
    let features = if first & 2 == 0 { Features::KNOWN } else { Features(u64::MAX) };
    fuzz_exchange(&bytes, Limits { value_max: 1 << 16, features });
});

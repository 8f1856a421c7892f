//! Replica frames, requests and replies, from any bytes. What is read has one encoding: the bytes it was read from.
//! The first byte decides whether the checksum of the first frame is made right, so that its fields are looked at.
#![no_main]

use koltso_net::replica::frame::{HEADER, Limits, fuzz_frames};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else {
        return;
    };
    let mut bytes = rest.to_vec();
    if first & 1 == 1 && bytes.len() >= HEADER {
        let body = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
        let end = bytes.len().min(HEADER.saturating_add(body));
        let checksum = crc32c::crc32c(&bytes[4..end]);
        bytes[..4].copy_from_slice(&checksum.to_le_bytes());
    }
    fuzz_frames(&bytes, Limits { value_max: 1 << 16 });
});

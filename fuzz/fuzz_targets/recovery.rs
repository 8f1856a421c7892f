//! A segment from any bytes: its records are found in order, within its bounds.
//!
//! A fuzzer cannot guess checksums, so they are made right where the input asks for it: record by
//! record, as long as the lowest bit of the place's first byte is set (header) and the next one
//! (value).
#![no_main]

const SALT: u32 = 0x5eed;

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Bytes of the attributes behind a key that ends at `at`, their length included; `None` where that
/// does not fit.
fn attributes(bytes: &[u8], at: usize) -> Option<usize> {
    let len = bytes.get(at..at + 2)?;
    let len = usize::from(u16::from_le_bytes([len[0], len[1]]));
    (1..=koltso_model::ATTRIBUTES_MAX).contains(&len).then_some(2 + len)
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    let (mut at, mut whole) = (64, 0);
    while at + 32 <= bytes.len() {
        let (key, value) = ((number(&bytes, at + 16) >> 16) as usize, number(&bytes, at + 20) as usize);
        let has_attributes = bytes[at + 31] & 0x80 != 0;
        let block = if has_attributes { attributes(&bytes, at + 32 + key) } else { Some(0) };
        let Some(block) = block else {
            break;
        };
        let (begin, end) = (at + 32 + key + block, at + 32 + key + block + value);
        if key == 0 || value > koltso_storage::VALUE_MAX_LIMIT || end > bytes.len() {
            break;
        }
        let (header_right, value_right) = (bytes[at] & 1 != 0, bytes[at] & 2 != 0);
        if value_right {
            let crc = crc32c::crc32c(&bytes[begin..end]);
            bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        }
        if header_right {
            bytes[at + 8] |= 1;
            let crc = crc32c::crc32c_append(SALT ^ at as u32, &bytes[at + 4..begin]);
            bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
            whole += usize::from(value_right && key <= koltso_storage::KEY_MAX);
        }
        at = end.next_multiple_of(8);
    }
    let (found, ..) = koltso_storage::fuzz_scan(&bytes, SALT);
    assert!(found >= whole, "{found} records found, {whole} are there");
});

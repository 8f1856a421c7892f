//! Keys and values, which are any bytes, as people and programs can read them without a doubt.
//!
//! - **Escaped**, for people: what is UTF-8 stays, a control character is `\n`, `\r`, `\t` or
//!   `\xHH`, a byte that is no UTF-8 is `\xHH`, and a backslash is `\\`. A shell's `$'…'` reads it
//!   back.
//! - **JSON**, for programs: a field `key` or `value` with a string, or, where the bytes are no
//!   UTF-8, a field `key_base64` or `value_base64` instead, with RFC 4648's standard alphabet and
//!   padding.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

/// The bytes as one line of text.
pub fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                control if control.is_control() => escape(&mut text, control.encode_utf8(&mut [0; 4]).as_bytes()),
                other => text.push(other),
            }
        }
        escape(&mut text, chunk.invalid());
    }
    text
}

fn escape(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, "\\x{byte:02x}");
    }
}

/// Whether a terminal shows the bytes as they are: UTF-8 without control characters but line ends
/// and tabs.
pub fn is_text(bytes: &[u8]) -> bool {
    let shown = |character: char| !character.is_control() || "\n\r\t".contains(character);
    std::str::from_utf8(bytes).is_ok_and(|text| text.chars().all(shown))
}

/// Adds the bytes to a JSON object, under `name` or `name_base64`.
pub fn add(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), json!(text)),
        Err(_) => object.insert(format!("{name}_base64"), json!(base64(bytes))),
    };
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648 section 4.
pub fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 63;
            text.push(if digit <= group.len() { ALPHABET[value as usize].into() } else { '=' });
        }
    }
    text
}

/// The bytes of a text in base64, with or without its padding; `None` if it is none.
pub fn of_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let padded = text.len() == digits.len() || (text.len().is_multiple_of(4) && text.len() - digits.len() <= 2);
    let (mut bytes, mut bits, mut count) = (Vec::with_capacity(digits.len() * 3 / 4), 0_u32, 0);
    for digit in digits.bytes() {
        let value = ALPHABET.iter().position(|known| *known == digit)?;
        bits = bits << 6 | value as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    (padded && count < 6 && bits == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_those_of_a_shell_and_never_ambiguous() {
        for (bytes, text) in [
            (&b"plain key/1"[..], "plain key/1"),
            ("ключ".as_bytes(), "ключ"),
            (b"nl\nkey", "nl\\nkey"),
            (b"nl\\nkey", "nl\\\\nkey"),
            (b"\t\r\x1b[31m\x7f\0", "\\t\\r\\x1b[31m\\x7f\\x00"),
            (b"a\xFF\xFEb", "a\\xff\\xfeb"),
            ("\u{85}".as_bytes(), "\\xc2\\x85"),
            (b"", ""),
        ] {
            assert_eq!(escaped(bytes), text);
        }
        assert!(is_text("tab\tand ключ\r\n".as_bytes()) && !is_text(b"\x1b[31m") && !is_text(b"\xFF") && is_text(b""));
    }

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"foob", "Zm9vYg=="),
            (b"\xFF\xFE\x00", "//4A"),
        ] {
            assert_eq!(base64(bytes), text);
            assert_eq!(of_base64(text).as_deref(), Some(bytes), "{text}");
            assert_eq!(of_base64(text.trim_end_matches('=')).as_deref(), Some(bytes), "{text}");
        }
        for text in ["Z", "Zh==", "Zg=", "Zg===", "Z g=", "Zm9v====", "-_"] {
            assert_eq!(of_base64(text), None, "{text}");
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(of_base64(&base64(&all)), Some(all));
    }

    #[test]
    fn an_object_says_whether_it_is_text_or_base64() {
        let mut object = Map::new();
        add(&mut object, "key", b"nl\nkey");
        add(&mut object, "value", b"\xFF");
        assert_eq!(Value::Object(object).to_string(), "{\"key\":\"nl\\nkey\",\"value_base64\":\"/w==\"}");
    }
}

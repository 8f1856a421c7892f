//! Query strings: pairs split at `&` and the first `=`, and strict percent-decoding of either half.
//!
//! `+` stays a plus. A `%` without two hexadecimal digits is an error, never a literal. Decoding
//! allocates only if there is a `%`. Tested below.

use std::borrow::Cow;

/// A `%` that is not followed by two hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the percent escape at byte {at} is not % and two hexadecimal digits")]
pub struct BadEscape {
    /// The position of the `%` in the value, in bytes from 0.
    pub at: usize,
}

/// The raw `(name, value)` pairs of a query, in order. A pair without `=` has an empty value; empty
/// pairs are skipped.
#[inline]
pub fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = query;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let pair = match memchr(rest.as_bytes(), b'&') {
                Some(at) => {
                    let (pair, after) = (&rest[..at], &rest[at + 1..]);
                    rest = after;
                    pair
                }
                None => std::mem::take(&mut rest),
            };
            if pair.is_empty() {
                continue;
            }
            return Some(match memchr(pair.as_bytes(), b'=') {
                Some(at) => (&pair[..at], &pair[at + 1..]),
                None => (pair, ""),
            });
        }
        None
    })
}

#[inline]
fn memchr(bytes: &[u8], byte: u8) -> Option<usize> {
    bytes.iter().position(|b| *b == byte)
}

/// Decodes percent escapes to bytes.
///
/// # Errors
/// [`BadEscape`] for a `%` without two hexadecimal digits after it.
#[inline]
pub fn decode(value: &str) -> Result<Cow<'_, [u8]>, BadEscape> {
    let bytes = value.as_bytes();
    match memchr(bytes, b'%') {
        None => Ok(Cow::Borrowed(bytes)),
        Some(first) => decode_from(bytes, first).map(Cow::Owned),
    }
}

fn decode_from(bytes: &[u8], first: usize) -> Result<Vec<u8>, BadEscape> {
    let mut decoded = Vec::with_capacity(bytes.len());
    decoded.extend_from_slice(&bytes[..first]);
    let mut at = first;
    while let Some(&byte) = bytes.get(at) {
        if byte != b'%' {
            decoded.push(byte);
            at += 1;
            continue;
        }
        match (bytes.get(at + 1).and_then(hex), bytes.get(at + 2).and_then(hex)) {
            (Some(high), Some(low)) => decoded.push(high << 4 | low),
            _ => return Err(BadEscape { at }),
        }
        at += 3;
    }
    Ok(decoded)
}

/// Decodes the escapes of a path that stand for characters which need none: letters, digits, `-`,
/// `.`, `_` and `~`. The two forms are the same URL (RFC 3986 section 6.2.2.2), and only they: an
/// escaped slash is no slash.
///
/// # Errors
/// [`BadEscape`] for a `%` without two hexadecimal digits after it.
#[inline]
pub fn normalised(path: &str) -> Result<Cow<'_, str>, BadEscape> {
    match memchr(path.as_bytes(), b'%') {
        None => Ok(Cow::Borrowed(path)),
        Some(first) => normalised_from(path, first).map(Cow::Owned),
    }
}

fn normalised_from(path: &str, first: usize) -> Result<String, BadEscape> {
    let bytes = path.as_bytes();
    let mut normal = String::with_capacity(path.len());
    let mut from = 0;
    let mut next = Some(first);
    while let Some(at) = next {
        let (Some(high), Some(low)) = (bytes.get(at + 1).and_then(hex), bytes.get(at + 2).and_then(hex)) else {
            return Err(BadEscape { at });
        };
        let byte = high << 4 | low;
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            normal.push_str(&path[from..at]);
            normal.push(char::from(byte));
            from = at + 3;
        }
        next = memchr(&bytes[at + 3..], b'%').map(|further| at + 3 + further);
    }
    normal.push_str(&path[from..]);
    Ok(normal)
}

fn hex(digit: &u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn splits_at_ampersand_and_first_equals() {
        let all: Vec<_> = pairs("id=a=b&&ack&=x&from=").collect();
        assert_eq!(all, [("id", "a=b"), ("ack", ""), ("", "x"), ("from", "")]);
        assert_eq!(pairs("").count(), 0);
    }

    #[test]
    fn a_path_is_normalised_where_escapes_are_not_needed() {
        assert!(matches!(normalised("/v0/entity"), Ok(Cow::Borrowed("/v0/entity"))));
        assert_eq!(normalised("/v0/%65ntit%79%2d").as_deref(), Ok("/v0/entity-"));
        assert_eq!(normalised("/v0%2Fentity%zz"), Err(BadEscape { at: 12 }));
        assert_eq!(normalised("/v0%2fentit%79").as_deref(), Ok("/v0%2fentity"));
        assert_eq!(normalised("/%25%36%35").as_deref(), Ok("/%2565"));
        for (path, at) in [("%", 0), ("/a%4", 2), ("/%41%", 4), ("/%é", 1)] {
            assert_eq!(normalised(path), Err(BadEscape { at }), "{path}");
        }
    }

    #[test]
    fn decodes_strictly() {
        assert!(matches!(decode("a+b"), Ok(Cow::Borrowed(b"a+b"))));
        assert_eq!(decode("%00%fF+%25").as_deref(), Ok(&b"\0\xff+%"[..]));
        assert_eq!(decode("ab%4"), Err(BadEscape { at: 2 }));
        assert_eq!(decode("%"), Err(BadEscape { at: 0 }));
        assert_eq!(decode("%41%zz"), Err(BadEscape { at: 3 }));
        assert_eq!(decode("%+1"), Err(BadEscape { at: 0 }));
    }

    proptest! {
        #[test]
        fn escaping_every_byte_round_trips(bytes: Vec<u8>) {
            let escaped: String = bytes.iter().map(|b| format!("%{b:02x}")).collect();
            prop_assert_eq!(&*decode(&escaped).expect("valid"), &*bytes);
        }
    }
}

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

//! `Host` as RFC 9112 section 3.2 wants it: a name or an address, and a port if there is one.
//!
//! Pure functions over bytes. An empty value is valid: it is what a client sends that has no host.
//! A comma is refused, although a registered name could hold one: it stands for two lines that a
//! proxy has joined. Tested below.

use std::net::Ipv6Addr;

/// Whether a value of `Host` (or the authority of a URL, which has no user here) is valid.
#[must_use]
#[inline]
pub fn is_valid(value: &[u8]) -> bool {
    let Some(rest) = value.strip_prefix(b"[") else {
        let end = value.iter().position(|byte| *byte == b':').unwrap_or(value.len());
        let (name, port) = value.split_at(end);
        // A port without a name is of no use to anybody.
        return is_name(name) && is_port(port) && (!name.is_empty() || port.is_empty());
    };
    let Some(end) = rest.iter().position(|byte| *byte == b']') else {
        return false;
    };
    let address = std::str::from_utf8(&rest[..end]).ok().and_then(|text| text.parse::<Ipv6Addr>().ok());
    address.is_some() && is_port(&rest[end + 1..])
}

/// The name or address of a valid value, without the port; an IPv6 address keeps its brackets.
#[must_use]
#[inline]
pub fn name(value: &str) -> &str {
    let behind = value.rfind(']').unwrap_or(0);
    value[behind..].find(':').map_or(value, |at| &value[..behind + at])
}

/// A registered name: unreserved characters, sub-delimiters but the comma, and percent escapes.
#[inline]
fn is_name(name: &[u8]) -> bool {
    let plain = |byte: &u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'.' | b'-' | b'_' | b'~' | b'!' | b'$' | b'&'..=b'+' | b';' | b'=')
    };
    name.iter().all(plain) || escaped(name, plain)
}

#[cold]
fn escaped(mut name: &[u8], plain: impl Fn(&u8) -> bool) -> bool {
    while let Some((first, rest)) = name.split_first() {
        name = match (first, rest) {
            (b'%', [high, low, rest @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest,
            (byte, rest) if plain(byte) => rest,
            _ => return false,
        };
    }
    true
}

/// Nothing, or a colon and a number that a port can have; RFC 3986 lets the number be missing.
#[inline]
fn is_port(text: &[u8]) -> bool {
    let Some((colon, digits)) = text.split_first() else {
        return true;
    };
    let number = digits.iter().try_fold(0_u32, |number, digit| {
        let number = number * 10 + u32::from(digit.wrapping_sub(b'0'));
        (digit.is_ascii_digit() && number <= u32::from(u16::MAX)).then_some(number)
    });
    *colon == b':' && number.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_host_is_a_name_or_an_address_and_at_most_a_port() {
        for valid in [
            "",
            "a",
            "localhost:1337",
            "127.0.0.1",
            "127.0.0.1:80",
            "[::1]",
            "[::1]:8080",
            "my_service",
            "a.example.",
            "a:",
            "x%41y",
            "a:65535",
            "xn--e1afmkfd",
        ] {
            assert!(is_valid(valid.as_bytes()), "{valid}");
        }
        for wrong in [
            "bad host",
            "a/b",
            "u@h",
            "a,b",
            "a:port",
            "ключ",
            ":80",
            "a:1:2",
            "[::1",
            "[x]",
            "[::1]x",
            "::1",
            "a?b",
            "a#b",
            "a:65536",
            "a:-1",
            "a:+1",
            "a%4",
            "a%zz",
            "a\"b",
            "a<b",
            "[1.2.3.4]",
            "[]",
            "a\tb",
            "a\\b",
            "[::1]:x",
        ] {
            assert!(!is_valid(wrong.as_bytes()), "{wrong}");
        }
    }

    #[test]
    fn the_name_is_what_stands_before_the_port() {
        for (value, expected) in
            [("a:1", "a"), ("a", "a"), ("[::1]:2", "[::1]"), ("[::1]", "[::1]"), ("", ""), ("a:", "a")]
        {
            assert_eq!(name(value), expected, "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_and_a_valid_host_has_nothing_that_ends_it(bytes: Vec<u8>) {
            if is_valid(&bytes) {
                let text = std::str::from_utf8(&bytes).expect("a valid host is ASCII");
                prop_assert!(!text.contains(['/', '?', '#', '@', ' ', ',', '\r', '\n']));
                prop_assert!(text.starts_with(name(text)));
            }
        }
    }
}

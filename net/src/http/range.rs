//! `Range: bytes=…` (RFC 9110 section 14): which part of a value is asked for.
//!
//! One range is served; several are answered with the whole value, and so is what cannot be read,
//! both as the RFC allows: a client that wants less traffic must not be able to ask for more. Pure.
//! Tested below.

/// A part of a value, in bytes from 0, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The first byte.
    pub first: u64,
    /// The last byte, not before the first.
    pub last: u64,
}

impl Part {
    /// Bytes of the part.
    #[must_use]
    pub const fn length(self) -> u64 {
        self.last - self.first + 1
    }
}

/// What a range selects of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selected {
    /// All of it: there is more than one range, or none that can be understood.
    Whole,
    /// This part, which lies within the value.
    Part(Part),
    /// Nothing: the range lies behind the value.
    Nothing,
}

/// What `range` selects of a value of `length` bytes.
#[must_use]
pub fn select(range: &[u8], length: u64) -> Selected {
    one(range, length).unwrap_or(Selected::Whole)
}

fn one(range: &[u8], length: u64) -> Option<Selected> {
    let (unit, set) = range.split_at_checked(6)?;
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return None;
    }
    let mut ranges = super::head::elements(set);
    let (only, None) = (ranges.next()?, ranges.next()) else {
        return None;
    };
    let dash = only.iter().position(|byte| *byte == b'-')?;
    let (first, last) = (&only[..dash], &only[dash + 1..]);
    if first.is_empty() {
        let suffix = number(last)?;
        return Some(match suffix.min(length) {
            _ if suffix == 0 => Selected::Nothing,
            // Of a value without bytes, the last ones are all of it.
            0 => Selected::Whole,
            suffix => Selected::Part(Part { first: length - suffix, last: length - 1 }),
        });
    }
    if !last.is_empty() && is_less(last, first) {
        return None;
    }
    let first = number(first)?;
    let last = if last.is_empty() { u64::MAX } else { number(last)? };
    if first >= length {
        return Some(Selected::Nothing);
    }
    Some(Selected::Part(Part { first, last: last.min(length - 1) }))
}

/// Whether a number is less than another, however long they are.
fn is_less(a: &[u8], b: &[u8]) -> bool {
    let significant = |digits: &[u8]| digits.iter().position(|digit| *digit != b'0').unwrap_or(digits.len());
    let (a, b) = (&a[significant(a)..], &b[significant(b)..]);
    (a.len(), a) < (b.len(), b)
}

/// A number of digits only; one that does not fit is as large as one can be.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        Some(number.saturating_mul(10).saturating_add(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_single_range_selects_a_part() {
        for (range, first, last) in [
            ("bytes=0-9", 0, 9),
            ("bytes=0-0", 0, 0),
            ("bytes=99-", 99, 99),
            ("bytes=-1", 99, 99),
            ("bytes=-1000", 0, 99),
            ("bytes=50-1000", 50, 99),
            ("BYTES=1-2", 1, 2),
            ("bytes= 1-2 ,", 1, 2),
            ("bytes=0-99999999999999999999999", 0, 99),
            ("bytes=-99999999999999999999999", 0, 99),
        ] {
            assert_eq!(select(range.as_bytes(), 100), Selected::Part(Part { first, last }), "{range}");
        }
    }

    #[test]
    fn several_ranges_and_what_cannot_be_read_are_the_whole() {
        for range in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=5-2",
            "bytes=18446744073709551616-18446744073709551615",
            "bytes=0-1,3-4",
            "bytes=0-1, 99-",
            "lines=0-1",
            "bytes 0-1",
            "bytes=+1-2",
            "bytes=1-2-3",
            "bytes=0x1-2",
            "bytes=--1",
            "bytes=1",
            "bytes=1 - 2",
        ] {
            assert_eq!(select(range.as_bytes(), 100), Selected::Whole, "{range}");
        }
        assert_eq!(select(b"bytes=-5", 0), Selected::Whole);
    }

    #[test]
    fn a_range_behind_the_value_selects_nothing() {
        for (range, length) in [("bytes=100-", 100), ("bytes=0-", 0), ("bytes=0-0", 0), ("bytes=-0", 100)] {
            assert_eq!(select(range.as_bytes(), length), Selected::Nothing, "{range} of {length}");
        }
    }

    proptest! {
        #[test]
        fn a_part_always_lies_within_the_value(bytes: Vec<u8>, text in "bytes=[0-9,\\- ]{0,30}", length in 0_u64..1000) {
            for range in [&bytes[..], text.as_bytes()] {
                if let Selected::Part(part) = select(range, length) {
                    prop_assert!(part.first <= part.last && part.last < length);
                    prop_assert!(part.length() <= length);
                }
            }
        }
    }
}

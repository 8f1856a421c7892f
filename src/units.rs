//! Sizes and durations as people write them, the same wherever the program reads one: `16MiB`,
//! `64 KiB`, `1048576`; `250ms`, `10s`, `5m`, `1h`, `10d`.
//!
//! Bounds: a `u64` of bytes or of milliseconds; what does not fit is refused. Whoever reads a value
//! has a range of its own for it; the settings have theirs in `settings/table.rs`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub struct Size(pub u64);

/// A span of time, at least a millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub struct Span(pub Duration);

/// A whole number in plain digits, for a flag whose range another place decides.
///
/// # Errors
/// What it is, as a sentence.
pub fn whole<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse::<u64>().ok().filter(|_| digits).and_then(|number| number.try_into().ok());
    number.ok_or_else(|| "it is a whole number".to_owned())
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number = text[..digits].parse().ok()?;
    Some((number, text[digits..].trim()))
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = split(text.trim()).and_then(|(number, unit)| {
            let factor: u64 = match unit {
                "" | "B" => 1,
                "K" | "KiB" => 1 << 10,
                "M" | "MiB" => 1 << 20,
                "G" | "GiB" => 1 << 30,
                "kB" => 1_000,
                "MB" => 1_000_000,
                "GB" => 1_000_000_000,
                _ => return None,
            };
            number.checked_mul(factor)
        });
        parsed.map(Self).ok_or_else(|| format!("`{text}` is not a size such as 65536, 64KiB or 16MiB"))
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = split(text.trim()).and_then(|(number, unit)| {
            let factor: u64 = match unit {
                "ms" => 1,
                "s" => 1_000,
                "m" | "min" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return None,
            };
            number.checked_mul(factor)
        });
        match parsed {
            Some(0) => Err(format!("`{text}` is too short: the shortest duration is 1ms")),
            Some(ms) => Ok(Self(Duration::from_millis(ms))),
            None => Err(format!("`{text}` is not a duration such as 250ms, 10s, 5m, 1h or 10d")),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (factor, unit) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
            if self.0 >= factor && self.0.is_multiple_of(factor) {
                return write!(f, "{}{unit}", self.0 / factor);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        for (factor, unit) in [(3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
            if ms >= factor && ms.is_multiple_of(factor) {
                return write!(f, "{}{unit}", ms / factor);
            }
        }
        write!(f, "{ms}ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_read_and_print() {
        for (text, bytes) in
            [("0", 0), ("65536", 65536), ("64KiB", 65536), ("16 MiB", 16 << 20), ("1GB", 1_000_000_000)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for (text, ms) in [("250ms", 250), ("1s", 1000), ("5m", 300_000), ("2h", 7_200_000)] {
            let span: Span = text.parse().expect(text);
            assert_eq!((span.0.as_millis(), span.to_string().as_str()), (ms, text));
        }
        assert_eq!(Size(16 << 20).to_string(), "16MiB");
        for bad in ["", "x", "1.5MiB", "-1", "12 parsecs", "99999999999999999999", "18446744073709551615GiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        assert_eq!("10d".parse(), Ok(Span(Duration::from_secs(864_000))));
        for bad in ["", "1", "0s", "0d", "s", "1w", "-1s", "1.5s", "213503982335d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
        assert_eq!((whole::<u16>("65535"), whole::<u16>("0")), (Ok(65535), Ok(0)));
        for bad in ["", "+1", "-1", "1.0", "x", "65536"] {
            assert!(whole::<u16>(bad).is_err(), "{bad}");
        }
        assert!("0s".parse::<Span>().is_err_and(|sentence| sentence.contains("1ms")));
    }
}

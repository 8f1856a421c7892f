//! The arguments of the load as wrk2 reads them, and sentences about them in the units in which
//! they were given.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::work::Mix;
use crate::units::Span;

const SHARE_MAX: u32 = 1_000_000;

/// A value with its text, so that a sentence about it has the units in which it was given.
#[derive(Clone, Debug)]
pub struct AsGiven<T> {
    pub value: T,
    pub text: String,
}

/// As `read`, with the text.
pub fn as_given<T>(read: fn(&str) -> Result<T, String>) -> impl Fn(&str) -> Result<AsGiven<T>, String> + Clone {
    move |text| Ok(AsGiven { value: read(text)?, text: text.to_owned() })
}

/// Reads a number as wrk2 does: `10000`, `10k`, `1M`.
pub fn count(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let factor = match &text[digits..] {
        "" => 1,
        "k" | "K" => 1_000,
        "m" | "M" => 1_000_000,
        "g" | "G" => 1_000_000_000,
        _ => 0,
    };
    let number = text[..digits].parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    number.filter(|_| factor > 0).ok_or_else(|| format!("`{text}` is not a number such as 64, 10000 or 10k"))
}

/// `60s`, `1m`, `250ms`; a bare number is seconds, as wrk2 has it.
pub fn time(text: &str) -> Result<Duration, String> {
    match text.strip_suffix('s').unwrap_or(text).parse::<u32>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds.into())),
        Err(_) => text.parse().map(|Span(span)| span),
    }
}

/// Shares of GET and PUT, or of GET, PUT and DELETE.
pub fn mix(text: &str) -> Result<Mix, String> {
    let wrong = || format!("`{text}` is not a mix such as 80:20 (GET:PUT) or 80:15:5 (GET:PUT:DELETE)");
    let shares: Result<Vec<u32>, _> = text.split(':').map(str::parse).collect();
    let mix = match shares.map_err(|_| wrong())?[..] {
        [get, put] => Mix { get, put, delete: 0 },
        [get, put, delete] => Mix { get, put, delete },
        _ => return Err(wrong()),
    };
    let shares = [mix.get, mix.put, mix.delete];
    if shares.iter().all(|&s| s == 0) || shares.iter().any(|&s| s > SHARE_MAX) { Err(wrong()) } else { Ok(mix) }
}

/// The value if it is in a range, whose ends are written as `ends`.
pub fn within<T: PartialOrd + Copy>(
    name: &str,
    given: &AsGiven<T>,
    range: &RangeInclusive<T>,
    ends: (&dyn Display, &dyn Display),
) -> Result<T, String> {
    if range.contains(&given.value) {
        return Ok(given.value);
    }
    Err(format!("{name} {} is out of range: it is {} to {}", given.text, ends.0, ends.1))
}

/// As [`within`], for numbers.
pub fn number_within(name: &str, given: &AsGiven<u64>, range: &RangeInclusive<u64>) -> Result<u64, String> {
    within(name, given, range, (range.start(), range.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_times_and_mixes_are_read_as_wrk2_reads_them() {
        assert_eq!([count("64"), count("10k"), count("2M")], [Ok(64), Ok(10_000), Ok(2_000_000)]);
        for bad in ["", "k", "10x", "-1", "1.5k", "99999999999999999999", "99999999999999999G"] {
            assert!(count(bad).is_err(), "{bad}");
        }
        for (text, ms) in
            [("60s", 60_000), ("60", 60_000), ("1m", 60_000), ("250ms", 250), ("0s", 0), ("2h", 7_200_000)]
        {
            assert_eq!(time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "s", "1x", "-1s"] {
            assert!(time(bad).is_err(), "{bad}");
        }
        assert_eq!(mix("80:20"), Ok(Mix { get: 80, put: 20, delete: 0 }));
        assert_eq!(mix("80:15:5"), Ok(Mix { get: 80, put: 15, delete: 5 }));
        for bad in ["", "80", "0:0", "80:20:1:1", "a:b", "-1:2", "1:9999999"] {
            assert!(mix(bad).is_err(), "{bad}");
        }
    }
}

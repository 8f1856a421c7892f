//! The text of a `Date` header (RFC 9110, 5.6.7), formatted once a second.
//!
//! Owner: each core has one. The time is passed in. Tested below.

use std::time::{SystemTime, UNIX_EPOCH};

/// Length in bytes of an HTTP date such as `Sun, 06 Nov 1994 08:49:37 GMT`.
pub const DATE_LENGTH: usize = 29;

/// A cached HTTP date.
#[derive(Debug, Clone, Copy)]
pub struct Date {
    second: u64,
    text: [u8; DATE_LENGTH],
}

impl Date {
    /// The date of `now`.
    #[must_use]
    pub fn new(now: SystemTime) -> Self {
        let mut date = Self { second: u64::MAX, text: *b"Thu, 01 Jan 1970 00:00:00 GMT" };
        date.refresh(now);
        date
    }

    /// Formats the date again if the second has changed.
    pub fn refresh(&mut self, now: SystemTime) {
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if second == self.second {
            return;
        }
        self.second = second;
        // httpdate panics past the year 9999; with a clock that wrong the last good text stays.
        if second < 253_402_300_800 {
            let text = httpdate::fmt_http_date(now.max(UNIX_EPOCH));
            if let Ok(text) = text.as_bytes().try_into() {
                self.text = text;
            }
        }
    }

    /// The text of the date.
    #[must_use]
    pub fn text(&self) -> &[u8; DATE_LENGTH] {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn formats_and_refreshes() {
        let then = UNIX_EPOCH + Duration::from_millis(784_111_777_900);
        let mut date = Date::new(then);
        assert_eq!(date.text(), b"Sun, 06 Nov 1994 08:49:37 GMT");
        date.refresh(then + Duration::from_millis(50));
        assert_eq!(date.text(), b"Sun, 06 Nov 1994 08:49:37 GMT");
        date.refresh(then + Duration::from_millis(100));
        assert_eq!(date.text(), b"Sun, 06 Nov 1994 08:49:38 GMT");
    }

    #[test]
    fn absurd_clock_does_not_panic() {
        let mut date = Date::new(UNIX_EPOCH - Duration::from_secs(5));
        assert_eq!(date.text(), b"Thu, 01 Jan 1970 00:00:00 GMT");
        date.refresh(UNIX_EPOCH + Duration::from_secs(300_000_000_000));
        assert_eq!(date.text(), b"Thu, 01 Jan 1970 00:00:00 GMT");
    }
}

//! What a read depends on: preconditions (RFC 9110 section 13), and the part of the value that is
//! asked for (section 14).
//!
//! [`Conditions::of`] takes them out of a head, so that a read which is answered later can be judged
//! then; [`Conditions::judge`] says what is to be answered. Most requests have none, and none is what
//! they cost. Dates are compared in whole seconds, as they are sent. Tested below.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::head::{Head, Method, Seen};
use super::range::{self, Part, Selected};

/// What the `412` says about a representation that has no tag.
pub const NO_TAG: &str = "What is asked for has no tag that If-Match could name.";
/// The lines that a read is judged by.
const OF_READS: Seen =
    Seen::IF_MATCH.and(Seen::IF_NONE_MATCH).and(Seen::IF_UNMODIFIED_SINCE).and(Seen::IF_RANGE).and(Seen::RANGE);

/// The preconditions of a read and its range.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    if_match: Option<Vec<Box<[u8]>>>,
    if_none_match: Option<Vec<Box<[u8]>>>,
    unmodified_since: Option<SystemTime>,
    range: Option<Box<[u8]>>,
    if_range: Option<Box<[u8]>>,
}

/// What a read that found something is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// The whole value, `200`.
    Whole,
    /// A part of it, `206`.
    Part(Part),
    /// `304`.
    NotModified,
    /// `412`.
    Failed,
    /// `416`.
    Unsatisfiable,
}

impl Conditions {
    /// The conditions of a request; `None` if it has none.
    #[inline]
    #[must_use]
    pub fn of(head: &Head<'_>) -> Option<Box<Self>> {
        head.seen.has(OF_READS).then(|| Self::some(head))
    }

    #[cold]
    fn some(head: &Head<'_>) -> Box<Self> {
        let list = |line| head.elements(line).map(|elements| elements.map(Box::from).collect());
        let date = |line| {
            let text = std::str::from_utf8(head.value(line)?).ok()?;
            // RFC 9110 section 13.1.4: what is no date is ignored.
            httpdate::parse_http_date(text).ok()
        };
        Box::new(Self {
            if_match: list(Seen::IF_MATCH),
            if_none_match: list(Seen::IF_NONE_MATCH),
            unmodified_since: date(Seen::IF_UNMODIFIED_SINCE),
            // RFC 9110 section 14.2: only GET has ranges.
            range: head.value(Seen::RANGE).filter(|_| head.method == Method::Get).map(Box::from),
            if_range: head.value(Seen::IF_RANGE).map(Box::from),
        })
    }

    /// What is answered about a value with this tag, in its quotes, that was written `unix_ms`
    /// milliseconds after the epoch and has `length` bytes. In the order of RFC 9110 section 13.2.2.
    #[must_use]
    pub fn judge(&self, etag: &[u8], unix_ms: u64, length: u64) -> Judged {
        if let Some(tags) = &self.if_match {
            if !tags.iter().any(|tag| **tag == *b"*" || **tag == *etag) {
                return Judged::Failed;
            }
        } else if let Some(date) = self.unmodified_since {
            let date = date.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
            if unix_ms / 1000 > date.as_secs() {
                return Judged::Failed;
            }
        }
        if self.if_none_match.as_ref().is_some_and(|tags| tags.iter().any(|tag| is_weakly(tag, etag))) {
            return Judged::NotModified;
        }
        // The tag is strong, and there are no dates that a client could have from here.
        let current = self.if_range.as_ref().is_none_or(|tag| **tag == *etag);
        let Some(range) = self.range.as_ref().filter(|_| current) else {
            return Judged::Whole;
        };
        match range::select(range, length) {
            Selected::Whole => Judged::Whole,
            Selected::Part(part) => Judged::Part(part),
            Selected::Nothing => Judged::Unsatisfiable,
        }
    }
}

/// Whether an element of `If-None-Match` names the tag, by weak comparison.
fn is_weakly(element: &[u8], etag: &[u8]) -> bool {
    element == b"*" || element.strip_prefix(b"W/").unwrap_or(element) == etag
}

/// What is answered about a representation that has no tag.
#[must_use]
pub fn judge_untagged(head: &Head<'_>) -> Judged {
    untagged(head.elements(Seen::IF_MATCH), head.elements(Seen::IF_NONE_MATCH))
}

/// The same by the elements of `If-Match` and `If-None-Match`: only `*` can match what has no tag.
#[must_use]
pub fn untagged<'a, E: Iterator<Item = &'a [u8]>>(if_match: Option<E>, if_none_match: Option<E>) -> Judged {
    let names_any = |elements: Option<E>| elements.map(|mut elements| elements.any(|element| element == b"*"));
    match (names_any(if_match), names_any(if_none_match)) {
        (Some(false), _) => Judged::Failed,
        (_, Some(true)) => Judged::NotModified,
        _ => Judged::Whole,
    }
}

/// Whether a request has a condition that a write would have to be judged by.
#[must_use]
#[inline]
pub fn of_a_write(head: &Head<'_>) -> bool {
    head.seen.has(Seen::IF_MATCH.and(Seen::IF_NONE_MATCH).and(Seen::IF_UNMODIFIED_SINCE).and(Seen::IF_MODIFIED_SINCE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::{Parsed, parse};

    const TAG: &[u8] = b"\"7\"";

    /// What a GET with these lines is answered about a value of ten bytes, written 1.5 s after the
    /// epoch.
    fn judged_as(method: &str, lines: &str) -> Judged {
        let bytes = format!("{method} / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let Parsed::Complete(head) = parse(bytes.as_bytes(), 9999) else { panic!("{lines:?} is a head") };
        Conditions::of(&head).map_or(Judged::Whole, |conditions| conditions.judge(TAG, 1500, 10))
    }

    fn judged(lines: &str) -> Judged {
        judged_as("GET", lines)
    }

    #[test]
    fn tags_are_compared_as_the_rfc_says() {
        for matching in ["\"7\"", "*", "\"x\", W/\"7\"", "\"x\"\r\nIf-None-Match: \"7\"", "\"a,b\",\"7\"", ",\"7\","] {
            assert_eq!(judged(&format!("If-None-Match: {matching}\r\n")), Judged::NotModified, "{matching}");
        }
        for other in ["\"8\"", "", "7", "\"\"", "\"a,\"7\""] {
            assert_eq!(judged(&format!("If-None-Match: {other}\r\n")), Judged::Whole, "{other}");
        }
        for matching in ["\"7\"", "*", "\"x\", \"7\"", "W/\"7\", \"7\"", "\"x\"\r\nif-match: \"7\""] {
            assert_eq!(judged(&format!("If-Match: {matching}\r\n")), Judged::Whole, "{matching}");
        }
        for other in ["\"8\"", "", "W/\"7\"", "7"] {
            assert_eq!(judged(&format!("If-Match: {other}\r\n")), Judged::Failed, "{other}");
        }
        assert_eq!(judged("If-Match: \"8\"\r\nIf-None-Match: \"7\"\r\n"), Judged::Failed, "If-Match comes first");
    }

    #[test]
    fn a_date_before_the_write_fails_and_what_is_no_date_is_ignored() {
        let since = |date: &str| judged(&format!("If-Unmodified-Since: {date}\r\n"));
        assert_eq!(since("Thu, 01 Jan 1970 00:00:00 GMT"), Judged::Failed);
        assert_eq!(since("Thu, 01 Jan 1970 00:00:01 GMT"), Judged::Whole);
        assert_eq!(since("soon"), Judged::Whole);
        let both = "If-Match: \"7\"\r\nIf-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT\r\n";
        assert_eq!(judged(both), Judged::Whole, "a tag says more than a date");
    }

    #[test]
    fn a_range_is_heeded_for_get_while_if_range_names_the_tag() {
        let part = Judged::Part(Part { first: 0, last: 4 });
        assert_eq!(judged("Range: bytes=0-4\r\n"), part);
        assert_eq!(judged("Range: bytes=0-4\r\nIf-Range: \"7\"\r\n"), part);
        for other in ["\"8\"", "W/\"7\"", "Thu, 01 Jan 1970 00:00:01 GMT"] {
            assert_eq!(judged(&format!("Range: bytes=0-4\r\nIf-Range: {other}\r\n")), Judged::Whole, "{other}");
        }
        assert_eq!(judged("Range: bytes=10-\r\n"), Judged::Unsatisfiable);
        assert_eq!(judged("Range: bytes=10-\r\nIf-None-Match: \"7\"\r\n"), Judged::NotModified);
        assert_eq!(judged_as("HEAD", "Range: bytes=0-4\r\n"), Judged::Whole);
    }
}

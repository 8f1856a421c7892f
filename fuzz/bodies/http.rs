//! What has to be true of everything that is taken out of a request's head, whatever the bytes are.
//!
//! The bodies of the fuzz targets `http_head`, `http_path`, `http_host`, `http_range` and
//! `http_conditions`; `net/tests/http_fuzz.rs` runs the same over generated input. The grammars are
//! written here a second time, from the RFCs and in another way, so that a fault would have to be
//! made twice. Each returns whether the input got past the first check.

use koltso_net::http::conditions::{Conditions, Judged};
use koltso_net::http::head::parse;
use koltso_net::http::range::{Part, Selected, select};
use koltso_net::http::{Date, Head, Parsed, ReplyContext, Representation, Seen, host, query};

const HEADER_MAX: usize = 16 * 1024;
const LENGTH: u64 = 1000;
const TAG: &str = "\"0000000000000001-0001\"";

/// A request head. What is whole stays whole, and the same, when more follows; what is taken out of
/// it is what the connection may rely on.
pub(crate) fn head(data: &[u8]) -> bool {
    let Parsed::Complete(head) = parse(data, HEADER_MAX) else {
        return false;
    };
    assert!(head.head_len <= data.len() && head.head_len <= HEADER_MAX);
    assert!(!head.path.contains(['#', '?']) && !head.query.contains('#'));
    path(head.path);
    query_pairs(head.query);
    assert!(host(head.host.as_bytes()) && !head.host.contains([' ', ',', '/', '@']));
    for line in [Seen::CONTENT_TYPE, Seen::CONTENT_ENCODING, Seen::ORIGIN, Seen::CONTENT_RANGE, Seen::IF_MATCH] {
        assert_eq!(head.values(line).next().is_some(), head.seen.has(line));
        for value in head.values(line) {
            assert!(!value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
        }
    }
    if let Some(value) = head.value(Seen::CONTENT_TYPE) {
        assert_eq!(header_of_a_value(&head, value), value, "a type comes back as it was sent");
    }
    if let Some(conditions) = Conditions::of(&head)
        && let Judged::Part(part) = conditions.judge(TAG.as_bytes(), 1, LENGTH)
    {
        assert!(part.first <= part.last && part.last < LENGTH);
    }
    let Parsed::Complete(again) = parse(&data[..head.head_len], HEADER_MAX) else {
        panic!("a whole head is whole by itself");
    };
    assert_eq!((again.path, again.query, again.body), (head.path, head.query, head.body));
    assert_eq!((again.host, again.seen), (head.host, head.seen));
    true
}

/// The type in the answer about a value that was stored with this one.
fn header_of_a_value(head: &Head<'_>, content_type: &[u8]) -> Vec<u8> {
    let context = ReplyContext::new(head, &Date::new(std::time::UNIX_EPOCH));
    let mut out = Vec::new();
    let value = Representation { etag: TAG.as_bytes(), content_type, content_encoding: b"", part: None, length: 0 };
    context.representation_head(&mut out, &value);
    let text: Vec<&[u8]> = out.split(|byte| *byte == b'\n').collect();
    let mut types = text.iter().filter_map(|line| line.strip_prefix(b"Content-Type: "));
    let (Some(first), None) = (types.next(), types.next()) else {
        panic!("an answer has one type: {}", out.escape_ascii());
    };
    let first = first.strip_suffix(b"\r").expect("lines end in CR LF");
    // Without a type it is bytes.
    if content_type.is_empty() && first == b"application/octet-stream" { Vec::new() } else { first.to_vec() }
}

/// A path, or any other text with percent escapes. All ways to write one path are one.
pub(crate) fn path(text: &str) -> bool {
    let bad = first_bad_escape(text.as_bytes());
    assert_eq!(query::normalised(text).as_ref().err().map(|error| error.at), bad, "{text:?}");
    assert_eq!(query::decode(text).as_ref().err().map(|error| error.at), bad, "{text:?}");
    let (Ok(normal), Ok(decoded)) = (query::normalised(text), query::decode(text)) else {
        return false;
    };
    assert_eq!(query::decode(&normal), Ok(decoded.clone()), "{text:?} means something else than {normal:?}");
    assert_eq!(query::normalised(&normal).as_deref(), Ok(&*normal), "once is enough");
    let slashes = |text: &str| text.matches('/').count();
    assert_eq!(slashes(&normal), slashes(text), "an escaped slash is no slash: {text:?}");
    // Each unreserved character that is not part of an escape, written as an escape: the same path.
    let (mut escaped, mut rest) = (String::new(), text.chars());
    while let Some(one) = rest.next() {
        escaped.push(one);
        if one == '%' {
            escaped.extend(rest.by_ref().take(2));
        } else if is_unreserved(one) {
            escaped.pop();
            let (high, low) = (one as u32 / 16, one as u32 % 16);
            escaped.push_str(&if low % 2 == 0 { format!("%{high:x}{low:x}") } else { format!("%{high:X}{low:X}") });
        }
    }
    assert_eq!(query::normalised(&escaped).as_deref(), Ok(&*normal), "{escaped:?} is {text:?}");
    true
}

fn is_unreserved(one: char) -> bool {
    one.is_ascii_alphanumeric() || "-._~".contains(one)
}

/// Where the first `%` is that no two hexadecimal digits follow. Escapes do not overlap.
fn first_bad_escape(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < text.len() {
        let is_escape = || text.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        match text[at] {
            b'%' if is_escape() => at += 3,
            b'%' => return Some(at),
            _ => at += 1,
        }
    }
    None
}

/// The pairs of a query, which another way of splitting finds as well, whatever their escapes.
fn query_pairs(text: &str) {
    let others = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    assert!(query::pairs(text).eq(others), "{text:?}");
    for (name, value) in query::pairs(text) {
        path(name);
        path(value);
    }
}

/// A value of `Host`: valid if and only if the grammar has it (RFC 9110 section 7.2, RFC 3986
/// section 3.2.2), but for a comma in a name, a port without a name or above 65535, and addresses of
/// a future version, which are refused.
pub(crate) fn host(value: &[u8]) -> bool {
    let expected = std::str::from_utf8(value).is_ok_and(is_host);
    assert_eq!(host::is_valid(value), expected, "{}", value.escape_ascii());
    if let (true, Ok(text)) = (expected, std::str::from_utf8(value)) {
        let name = host::name(text);
        let port = text.strip_prefix(name).expect("the name stands first");
        assert!(port.is_empty() || port.starts_with(':') && port[1..].bytes().all(|byte| byte.is_ascii_digit()));
        assert!(host::is_valid(name.as_bytes()) && host::name(name) == name);
    }
    expected
}

fn is_host(text: &str) -> bool {
    let (name, port) = match text.rfind(']') {
        Some(end) => text.split_at(end + 1),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let is_port = match port.strip_prefix(':') {
        None => port.is_empty(),
        Some(digits) => {
            let significant = digits.trim_start_matches('0');
            digits.bytes().all(|byte| byte.is_ascii_digit())
                && (significant.len() < 5 || significant.len() == 5 && significant <= "65535")
        }
    };
    let is_name = match name.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        Some(address) => address.is_some_and(is_ipv6),
        None => {
            first_bad_escape(name.as_bytes()).is_none()
                && name.chars().all(|one| is_unreserved(one) || "%!$&'()*+;=".contains(one))
                && (!name.is_empty() || port.is_empty())
        }
    };
    is_port && is_name
}

fn is_ipv6(text: &str) -> bool {
    // Groups of a side of `::`; an IPv4 address counts for two and can only end the whole.
    let groups = |side: &str, is_last: bool| -> Option<usize> {
        if side.is_empty() {
            return Some(0);
        }
        let pieces: Vec<&str> = side.split(':').collect();
        let mut count = 0;
        for (index, piece) in pieces.iter().enumerate() {
            let is_group = (1..=4).contains(&piece.len()) && piece.bytes().all(|byte| byte.is_ascii_hexdigit());
            count += match () {
                () if is_group => 1,
                () if is_last && index + 1 == pieces.len() && is_ipv4(piece) => 2,
                () => return None,
            };
        }
        Some(count)
    };
    match text.split_once("::") {
        None => !text.is_empty() && groups(text, true) == Some(8),
        Some((before, after)) => groups(before, false).zip(groups(after, true)).is_some_and(|(a, b)| a + b <= 7),
    }
}

fn is_ipv4(text: &str) -> bool {
    let octets: Vec<&str> = text.split('.').collect();
    octets.len() == 4
        && octets.iter().all(|octet| {
            let is_number = (1..=3).contains(&octet.len()) && octet.bytes().all(|byte| byte.is_ascii_digit());
            is_number && (octet.len() == 1 || !octet.starts_with('0')) && octet.parse::<u16>().is_ok_and(|n| n < 256)
        })
}

/// A value of `Range`, about values of several lengths: what is selected is what the RFC says
/// (RFC 9110 section 14.1.2), and a part lies within the value.
pub(crate) fn range(text: &[u8]) -> bool {
    let mut is_single = false;
    for length in [0, 1, 2, 10, 1000, u64::from(u32::MAX) + 1, u64::MAX] {
        let selected = select(text, length);
        assert_eq!(selected, selects(text, length), "{} of {length} bytes", text.escape_ascii());
        if let Selected::Part(part) = selected {
            assert!(part.first <= part.last && part.last < length && part.length() <= length);
            is_single = true;
        }
    }
    is_single
}

fn selects(text: &[u8], length: u64) -> Selected {
    let Some(text) = std::str::from_utf8(text).ok().filter(|text| text.to_ascii_lowercase().starts_with("bytes="))
    else {
        return Selected::Whole;
    };
    let mut specs = text["bytes=".len()..].split(',').map(|spec| spec.trim_matches([' ', '\t', '\n', '\r', '\x0c']));
    let (Some(spec), None) = (specs.find(|spec| !spec.is_empty()), specs.find(|spec| !spec.is_empty())) else {
        return Selected::Whole;
    };
    let Some((first, last)) = spec.split_once('-') else {
        return Selected::Whole;
    };
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(first) || !is_number(last) || first.is_empty() && last.is_empty() {
        return Selected::Whole;
    }
    // Without leading zeros, what has more digits is more.
    let significant = |text: &'_ str| (text.trim_start_matches('0').len(), text.trim_start_matches('0').to_owned());
    // Larger than any length is as good as the largest number.
    let number = |text: &str| text.parse::<u128>().unwrap_or(if text.is_empty() { 0 } else { u128::MAX });
    let length = u128::from(length);
    let part = |first: u128, last: u128| {
        let within = |number: u128| u64::try_from(number).expect("within the value");
        Selected::Part(Part { first: within(first), last: within(last) })
    };
    match (first.is_empty(), last.is_empty()) {
        (true, _) if number(last) == 0 => Selected::Nothing,
        (true, _) if length == 0 => Selected::Whole,
        (true, _) => part(length.saturating_sub(number(last)), length - 1),
        (false, false) if significant(last) < significant(first) => Selected::Whole,
        _ if number(first) >= length => Selected::Nothing,
        (false, true) => part(number(first), length - 1),
        (false, false) => part(number(first), number(last).min(length - 1)),
    }
}

/// Lines of a head that are conditions (RFC 9110 section 13); the first bit of each says which one.
/// Where they are what the grammar has, they are judged in the order of section 13.2.2.
pub(crate) fn conditions(data: &[u8]) -> bool {
    let mut bytes = b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec();
    let mut lists: [Option<Vec<&[u8]>>; 2] = [None, None];
    for line in data.split(|byte| *byte == b'\n').take(8) {
        let Some((first, value)) = line.split_first() else { continue };
        let which = usize::from(first & 1);
        let name = ["If-None-Match", "if-MATCH"][which];
        bytes.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
        lists[which].get_or_insert_default().push(value);
    }
    bytes.extend_from_slice(b"Range: bytes=0-1\r\n\r\n");
    let Parsed::Complete(head) = parse(&bytes, HEADER_MAX) else {
        return false;
    };
    let judged = Conditions::of(&head).expect("there is a range").judge(TAG.as_bytes(), 0, LENGTH);
    let tags = |which: usize| lists[which].as_ref().map(|values| values.iter().map(|value| tags(value)).collect());
    let (none_match, if_match): (Option<Option<Vec<_>>>, Option<Option<Vec<_>>>) = (tags(0), tags(1));
    // A list that is none is nobody's to judge.
    let (Some(none_match), Some(if_match)) =
        (none_match.map_or(Some(None), |l| l.map(Some)), if_match.map_or(Some(None), |l| l.map(Some)))
    else {
        return false;
    };
    let strong = |lists: &Vec<Vec<String>>| lists.iter().flatten().any(|tag| tag == "*" || tag == TAG);
    let weak =
        |lists: &Vec<Vec<String>>| lists.iter().flatten().any(|tag| tag == "*" || tag.trim_start_matches("W/") == TAG);
    let expected = match () {
        () if if_match.as_ref().is_some_and(|lists| !strong(lists)) => Judged::Failed,
        () if none_match.as_ref().is_some_and(weak) => Judged::NotModified,
        () => Judged::Part(Part { first: 0, last: 1 }),
    };
    assert_eq!(judged, expected, "{}", bytes.escape_ascii());
    true
}

/// The entity tags of a line, or a `*`; `None` if it is neither.
fn tags(value: &[u8]) -> Option<Vec<String>> {
    let mut rest = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
    if rest == "*" {
        return Some(vec!["*".to_owned()]);
    }
    let mut tags = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return Some(tags);
        }
        let opaque = rest.strip_prefix("W/").unwrap_or(rest).strip_prefix('"')?;
        let end = opaque.find('"')?;
        let is_plain = opaque[..end].chars().all(|one| one == '!' || ('#'..='~').contains(&one) || one >= '\u{80}');
        let length = rest.len() - opaque.len() + end + 1;
        let (tag, after) = rest.split_at(length);
        let ends = after.trim_start_matches([' ', '\t']);
        if !is_plain || !(ends.is_empty() || ends.starts_with(',')) {
            return None;
        }
        tags.push(tag.to_owned());
        rest = after;
    }
}

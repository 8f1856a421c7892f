//! Parses what a request's query asks for, once, into values that are in range.

use std::borrow::Cow;

use koltso_model::{ATTRIBUTE_MAX, Attribute, KEY_MAX, NODES_MAX, Quorum, encode_attribute};
use koltso_net::http::{Conditions, Head, Method, Seen, conditions, query};

/// The longest `ttl`, in milliseconds: the log has 48 bits for a time of expiry.
const TTL_MAX: u64 = (1 << 47) - 1;

/// The answer to a request that cannot be served.
pub struct Refusal {
    /// The HTTP status code.
    pub status: u16,
    /// One plain sentence that says what was wrong with the request.
    pub sentence: Cow<'static, str>,
}

/// The refusal `400` with this sentence.
pub fn bad(sentence: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal { status: 400, sentence: sentence.into() }
}

/// The parameters of a request on `/v0/entity`.
pub struct Entity<'a> {
    /// 1 to [`KEY_MAX`] bytes.
    pub key: Cow<'a, [u8]>,
    /// `ack` of `from`, with the defaults filled in.
    pub quorum: Quorum,
    /// The `ttl` of a PUT, in milliseconds; ignored with other methods.
    pub ttl_ms: Option<u64>,
    /// What a PUT says of its value, as a record keeps it; empty for nothing.
    pub attributes: Vec<u8>,
    /// What a read depends on; `None` for nothing.
    pub conditions: Option<Box<Conditions>>,
}

/// The parameters of a request on `/v0/entities`.
pub struct Range {
    /// The range begins with this key, itself included.
    pub start: Vec<u8>,
    /// The range ends before this key; `None` for the end of all keys.
    pub end: Option<Vec<u8>>,
    /// The answer has at most this many records.
    pub limit: u64,
    /// How the answer has its records.
    pub framing: Records,
}

/// How an answer has records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Records {
    /// Key, `\n`, value: for people, and for keys without line ends.
    Lines,
    /// The lengths of the key and of the value, each in 4 bytes, little-endian; then the key and
    /// the value: for programs, whatever the bytes are.
    Lengths,
}

impl Records {
    /// The type of the answer's content.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Lines => "application/octet-stream",
            Self::Lengths => "application/vnd.koltso.records",
        }
    }
}

fn once<'a>(slot: &mut Option<&'a str>, name: &str, value: &'a str) -> Result<(), Refusal> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(bad(format!("The parameter {name} is given more than once."))),
    }
}

/// The parameters of a query, their names decoded. `take` says whether the path knows one.
fn parameters<'a>(text: &'a str, mut take: impl FnMut(&str, &'a str) -> Result<bool, Refusal>) -> Result<(), Refusal> {
    for (name, value) in query::pairs(text) {
        let is_known = if name.contains('%') {
            let decoded = query::decode(name).map_err(|e| bad(format!("The name of a parameter is wrong: {e}.")))?;
            // No parameter's name is anything but letters.
            std::str::from_utf8(&decoded).map_or(Ok(false), |name| take(name, value))?
        } else {
            take(name, value)?
        };
        if !is_known {
            let shown: String = name.chars().take(40).flat_map(char::escape_default).collect();
            return Err(bad(format!("The parameter `{shown}` is not known here.")));
        }
    }
    Ok(())
}

/// Checks that a path that knows no parameters is given none.
///
/// # Errors
/// A `400` that names the parameter.
pub fn without_parameters(head: &Head<'_>) -> Result<(), Refusal> {
    parameters(head.query, |_, _| Ok(false))
}

fn decoded<'a>(name: &str, value: &'a str) -> Result<Cow<'a, [u8]>, Refusal> {
    query::decode(value).map_err(|e| bad(format!("The parameter {name} is not percent-encoded: {e}.")))
}

fn number(name: &str, text: &str, least: u64, most: u64) -> Result<u64, Refusal> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u64>() {
        Ok(number) if digits && (least..=most).contains(&number) => Ok(number),
        _ => Err(bad(format!("The parameter {name} is a whole number from {least} to {most}, not `{text}`."))),
    }
}

fn key_of<'a>(name: &str, value: Option<&'a str>) -> Result<Cow<'a, [u8]>, Refusal> {
    let key = decoded(name, value.ok_or_else(|| bad(format!("The parameter {name} is missing.")))?)?;
    if key.is_empty() {
        return Err(bad(format!("The parameter {name} is empty, and a key has 1 to {KEY_MAX} bytes.")));
    }
    if key.len() > KEY_MAX {
        return Err(bad(format!("The {name} has {} bytes, and a key has 1 to {KEY_MAX}.", key.len())));
    }
    Ok(key)
}

impl<'a> Entity<'a> {
    /// The same parameters, with a key of their own.
    pub fn into_owned(self) -> Entity<'static> {
        let Self { key, quorum, ttl_ms, attributes, conditions } = self;
        Entity { key: Cow::Owned(key.into_owned()), quorum, ttl_ms, attributes, conditions }
    }

    /// Parses the query of a request to a cluster of `nodes` nodes, 1 to [`NODES_MAX`].
    ///
    /// # Errors
    /// A `400` that names the parameter or the header; a `501` for a write under a condition.
    pub fn of(head: &Head<'a>, nodes: u64) -> Result<Self, Refusal> {
        let (mut id, mut ack, mut from, mut ttl) = (None, None, None, None);
        parameters(head.query, |name, value| {
            match name {
                "id" => once(&mut id, name, value)?,
                "ack" => once(&mut ack, name, value)?,
                "from" => once(&mut from, name, value)?,
                "ttl" => once(&mut ttl, name, value)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let key = key_of("id", id)?;
        // The numbers fit a byte: they are at most the number of nodes.
        const { assert!(NODES_MAX <= u8::MAX as usize) };
        let from = from.map_or(Ok(nodes), |text| number("from", text, 1, nodes))? as u8;
        let majority = u64::from(Quorum::majority(from));
        let ack = ack.map_or(Ok(majority), |text| number("ack", text, 1, from.into()))? as u8;
        let quorum = Quorum::new(ack, from).expect("both were compared with their bounds");
        let ttl = ttl.filter(|_| head.method == Method::Put);
        let ttl_ms = ttl.map(|text| number("ttl", text, 1, TTL_MAX)).transpose()?;
        let (mut attributes, mut conditions) = (Vec::new(), None);
        if !head.seen.is_empty() {
            match head.method {
                Method::Put | Method::Delete => attributes = of_a_write(head)?,
                _ => conditions = Conditions::of(head),
            }
        }
        Ok(Self { key, quorum, ttl_ms, attributes, conditions })
    }
}

/// What a write's header says of the value, as a record keeps it.
#[cold]
fn of_a_write(head: &Head<'_>) -> Result<Vec<u8>, Refusal> {
    if conditions::of_a_write(head) {
        let sentence = "A write under a condition (If-Match, If-None-Match, If-Unmodified-Since, If-Modified-Since) is \
                        not supported yet, and nothing was done.";
        return Err(Refusal { status: 501, sentence: sentence.into() });
    }
    let mut attributes = Vec::new();
    if head.method != Method::Put {
        return Ok(attributes);
    }
    if head.seen.has(Seen::CONTENT_RANGE) {
        return Err(bad("A PUT replaces the whole value: it may not have Content-Range (RFC 9110 section 14.5)."));
    }
    let content_type = head.value(Seen::CONTENT_TYPE).unwrap_or_default();
    // What is given back anyway is not kept.
    if content_type != b"application/octet-stream" {
        attribute(&mut attributes, Attribute::ContentType, "Content-Type", content_type)?;
    }
    let codings: Vec<&[u8]> = head.elements(Seen::CONTENT_ENCODING).map_or_else(Vec::new, Iterator::collect);
    attribute(&mut attributes, Attribute::ContentEncoding, "Content-Encoding", &codings.join(&b", "[..]))?;
    Ok(attributes)
}

fn attribute(out: &mut Vec<u8>, attribute: Attribute, name: &str, value: &[u8]) -> Result<(), Refusal> {
    if value.len() > ATTRIBUTE_MAX {
        return Err(bad(format!("{name} has {} bytes, and at most {ATTRIBUTE_MAX} are kept.", value.len())));
    }
    if !value.is_empty() {
        encode_attribute(out, attribute, value);
    }
    Ok(())
}

impl Range {
    /// Parses the query of a request.
    ///
    /// # Errors
    /// A `400` that names the parameter.
    pub fn of(head: &Head<'_>) -> Result<Self, Refusal> {
        let (mut start, mut end, mut limit, mut format) = (None, None, None, None);
        parameters(head.query, |name, value| {
            match name {
                "start" => once(&mut start, name, value)?,
                "end" => once(&mut end, name, value)?,
                "limit" => once(&mut limit, name, value)?,
                "format" => once(&mut format, name, value)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let start = key_of("start", start)?.into_owned();
        let end = end.map(|text| decoded("end", text)).transpose()?.map(Cow::into_owned);
        let limit = limit.map_or(Ok(u64::MAX), |text| number("limit", text, 1, u64::MAX))?;
        let framing = match format {
            None | Some("lines") => Records::Lines,
            Some("lengths") => Records::Lengths,
            Some(_) => return Err(bad("The parameter format is lines or lengths.")),
        };
        Ok(Self { start, end, limit, framing })
    }
}

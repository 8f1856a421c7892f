//! Request heads: a byte slice in; [`Partial`](Parsed::Partial), [`Complete`](Parsed::Complete) or
//! [`Bad`](Parsed::Bad) out.
//!
//! httparse does the syntax; this file decides what the head means for the connection: target,
//! framing of the body, keep-alive, expectations. A well-formed request allocates nothing.
//!
//! Bounds: [`HEADERS_MAX`] header lines and `header_max` bytes; a head that exceeds either is
//! answered with `431`.
//!
//! Invariants, against request smuggling (RFC 9112, 6.3 and 11.2):
//! 1. A body has exactly one framing: one `Content-Length` of plain digits, or `Transfer-Encoding:
//!    chunked`, or none.
//! 2. Whatever could be read in two ways is refused and the connection closed; nothing is repaired.
//!
//! Tested below; the property tests feed arbitrary bytes and every prefix.

use std::borrow::Cow;

use super::chunked::ChunkedError;

/// The most header lines in a head.
pub const HEADERS_MAX: usize = 64;

/// A request method. For [`Method::Other`], `Head::method_name` has the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `GET`
    Get,
    /// `HEAD`
    Head,
    /// `PUT`
    Put,
    /// `DELETE`
    Delete,
    /// `POST`
    Post,
    /// Any other; methods are case-sensitive.
    Other,
}

impl Method {
    fn new(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "PUT" => Self::Put,
            "DELETE" => Self::Delete,
            "POST" => Self::Post,
            _ => Self::Other,
        }
    }

    /// Whether a request of this method changes nothing (RFC 9110 section 9.2.1).
    #[must_use]
    pub const fn is_safe(self) -> bool {
        matches!(self, Self::Get | Self::Head)
    }
}

/// The protocol version of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: connections close by default, and chunks do not exist.
    Http10,
    /// HTTP/1.1
    Http11,
}

/// How a request's body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// `Content-Length`, in bytes.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// A request head, borrowed from the read buffer.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// The method.
    pub method: Method,
    /// The method as it was sent.
    pub method_name: &'a str,
    /// The target up to the first `?`, not decoded; starts with `/`.
    pub path: &'a str,
    /// The target after the first `?`, not decoded.
    pub query: &'a str,
    /// The protocol version.
    pub version: Version,
    /// Whether the client keeps the connection open after the answer.
    pub keep_alive: bool,
    /// How the body is delimited.
    pub body: Framing,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expect_continue: bool,
    /// The value of `If-None-Match`, the first if there are several; `None` if there is none.
    pub if_none_match: Option<&'a [u8]>,
    /// The value of `Authorization`; `None` if there is none.
    pub authorization: Option<&'a [u8]>,
    /// Bytes of the head, including the empty line.
    pub head_len: usize,
}

/// A request that is answered with an error, after which the connection closes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRequest {
    /// The status code.
    pub status: u16,
    /// One plain sentence that says what was wrong with this request.
    pub sentence: Cow<'static, str>,
}

impl BadRequest {
    fn new(status: u16, sentence: impl Into<Cow<'static, str>>) -> Self {
        Self { status, sentence: sentence.into() }
    }
}

impl From<ChunkedError> for BadRequest {
    fn from(error: ChunkedError) -> Self {
        let status = match error {
            ChunkedError::TooLarge { .. } => 413,
            ChunkedError::TrailersTooLong => 431,
            _ => 400,
        };
        let mut sentence = error.to_string();
        sentence[..1].make_ascii_uppercase();
        sentence.push('.');
        Self::new(status, sentence)
    }
}

/// The result of parsing the bytes received so far.
#[derive(Debug)]
pub enum Parsed<'a> {
    /// The head is not complete yet.
    Partial,
    /// The head is complete.
    Complete(Head<'a>),
    /// The bytes are not a request that can be served.
    Bad(BadRequest),
}

/// Parses the head at the beginning of `bytes`. `header_max` bounds it in bytes.
#[inline]
#[must_use]
pub fn parse(bytes: &[u8], header_max: usize) -> Parsed<'_> {
    match try_parse(bytes, header_max) {
        Ok(Some(head)) => Parsed::Complete(head),
        Ok(None) => Parsed::Partial,
        Err(bad) => Parsed::Bad(bad),
    }
}

fn try_parse(bytes: &[u8], header_max: usize) -> Result<Option<Head<'_>>, BadRequest> {
    let mut storage = [const { std::mem::MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let head_len = match request.parse_with_uninit_headers(bytes, &mut storage) {
        Ok(httparse::Status::Complete(head_len)) if head_len <= header_max => head_len,
        Ok(httparse::Status::Partial) if bytes.len() <= header_max => return Ok(None),
        Ok(_) => return Err(too_large(header_max)),
        Err(error) => return Err(syntax(error, bytes)),
    };
    let (Some(method_name), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(BadRequest::new(400, "The request line is incomplete."));
    };
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let (path, query) = split_target(target)?;

    let mut fields = Fields::default();
    for header in request.headers.iter() {
        fields.take(header.name, header.value)?;
    }
    if fields.hosts != 1 && version == Version::Http11 || fields.hosts > 1 {
        return Err(BadRequest::new(
            400,
            format!("The request has {} Host headers and needs exactly one.", fields.hosts),
        ));
    }
    Ok(Some(Head {
        method: Method::new(method_name),
        method_name,
        path,
        query,
        version,
        keep_alive: match version {
            Version::Http10 => fields.keep_alive && !fields.close,
            Version::Http11 => !fields.close,
        },
        body: fields.framing(version)?,
        // A 1.0 client cannot understand an interim answer (RFC 9110, 10.1.1).
        expect_continue: fields.expect_continue && version == Version::Http11,
        if_none_match: fields.if_none_match,
        authorization: fields.authorization,
        head_len,
    }))
}

/// Splits an origin-form or absolute-form target into path and query.
#[inline]
fn split_target(target: &str) -> Result<(&str, &str), BadRequest> {
    let target = if target.starts_with('/') { target } else { after_authority(target)? };
    match target.bytes().position(|byte| byte == b'?') {
        None => Ok((target, "")),
        Some(0) => Ok(("/", &target[1..])),
        Some(at) => Ok((&target[..at], &target[at + 1..])),
    }
}

#[cold]
fn after_authority(target: &str) -> Result<&str, BadRequest> {
    let bytes = target.as_bytes();
    let scheme = ["http://", "https://"]
        .into_iter()
        .find(|scheme| bytes.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes())));
    let Some(scheme) = scheme else {
        return Err(BadRequest::new(400, "The request target is neither a path nor an absolute http URL."));
    };
    let rest = &target[scheme.len()..];
    let end = rest.bytes().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    if end == 0 {
        return Err(BadRequest::new(400, "The URL in the request line has no host."));
    }
    Ok(if end == rest.len() { "/" } else { &rest[end..] })
}

/// The parts of the header lines that the connection needs.
#[derive(Default)]
struct Fields<'a> {
    hosts: usize,
    keep_alive: bool,
    close: bool,
    length: Option<u64>,
    encoding: Option<&'a [u8]>,
    expect_continue: bool,
    if_none_match: Option<&'a [u8]>,
    authorization: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    #[inline]
    fn take(&mut self, name: &str, value: &'a [u8]) -> Result<(), BadRequest> {
        // The length tells most headers apart before any byte is compared.
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match name.len() {
            4 if is("host") => self.hosts += 1,
            6 if is("expect") => self.expect(value)?,
            10 if is("connection") => self.connection(value),
            13 if is("if-none-match") => {
                self.if_none_match.get_or_insert(value);
            }
            13 if is("authorization") => once(&mut self.authorization, value, "Authorization")?,
            14 if is("content-length") => self.length(value)?,
            17 if is("transfer-encoding") => once(&mut self.encoding, value, "Transfer-Encoding")?,
            _ => {}
        }
        Ok(())
    }

    fn connection(&mut self, value: &[u8]) {
        for token in value.split(|byte| *byte == b',') {
            let token = token.trim_ascii();
            self.close |= token.eq_ignore_ascii_case(b"close");
            self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    fn expect(&mut self, value: &[u8]) -> Result<(), BadRequest> {
        if !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(BadRequest::new(
                417,
                format!("The only expectation known here is 100-continue, not \"{}\".", shown(value)),
            ));
        }
        self.expect_continue = true;
        Ok(())
    }

    fn length(&mut self, value: &[u8]) -> Result<(), BadRequest> {
        let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let length = value
            .iter()
            .try_fold(0_u64, |length, digit| length.checked_mul(10)?.checked_add(u64::from(digit.wrapping_sub(b'0'))));
        let Some(length) = length.filter(|_| digits) else {
            return Err(BadRequest::new(
                400,
                format!("Content-Length \"{}\" is not a number of bytes below 2^64.", shown(value)),
            ));
        };
        once(&mut self.length, length, "Content-Length")
    }

    fn framing(&self, version: Version) -> Result<Framing, BadRequest> {
        let Some(encoding) = self.encoding else {
            return Ok(match self.length {
                None | Some(0) => Framing::None,
                Some(length) => Framing::Length(length),
            });
        };
        if self.length.is_some() {
            return Err(BadRequest::new(
                400,
                "The request has both Content-Length and Transfer-Encoding, which contradict each other.",
            ));
        }
        if version == Version::Http10 {
            return Err(BadRequest::new(400, "Transfer-Encoding does not exist in HTTP/1.0."));
        }
        if !encoding.eq_ignore_ascii_case(b"chunked") {
            return Err(BadRequest::new(
                501,
                format!("The only transfer encoding known here is chunked, not \"{}\".", shown(encoding)),
            ));
        }
        Ok(Framing::Chunked)
    }
}

/// Sets the field to `value`, or refuses the request if the field had a value already.
fn once<T>(field: &mut Option<T>, value: T, name: &str) -> Result<(), BadRequest> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(BadRequest::new(400, format!("The request has more than one {name} header."))),
    }
}

/// At most 64 bytes of a header value, escaped so that they can be part of a sentence.
fn shown(value: &[u8]) -> String {
    let cut = &value[..value.len().min(64)];
    let dots = if cut.len() < value.len() { "…" } else { "" };
    format!("{}{dots}", cut.escape_ascii())
}

fn too_large(header_max: usize) -> BadRequest {
    BadRequest::new(431, format!("The request head is larger than the limit of {header_max} bytes."))
}

#[cold]
fn syntax(error: httparse::Error, bytes: &[u8]) -> BadRequest {
    match error {
        httparse::Error::TooManyHeaders => {
            BadRequest::new(431, format!("The request has more headers than the limit of {HEADERS_MAX}."))
        }
        httparse::Error::Version => version_error(bytes),
        httparse::Error::HeaderName => BadRequest::new(
            400,
            "A header name is invalid: it is empty, folded, followed by a space, or holds a forbidden byte.",
        ),
        httparse::Error::HeaderValue => BadRequest::new(400, "A header value holds a control character."),
        httparse::Error::NewLine => BadRequest::new(400, "A line of the request head does not end in CR LF."),
        httparse::Error::Token => {
            BadRequest::new(400, "The request line is not a method, a target and a version with single spaces.")
        }
        httparse::Error::Status => BadRequest::new(400, "The request head is malformed."),
    }
}

/// `505` for a well-formed version other than 1.0 and 1.1, otherwise `400`.
fn version_error(bytes: &[u8]) -> BadRequest {
    let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).find(|line| !line.is_empty()).unwrap_or_default();
    let version = line.split(|byte| *byte == b' ').nth(2).unwrap_or_default();
    match version.strip_prefix(b"HTTP/") {
        Some([b'0'..=b'9', b'.', b'0'..=b'9'] | [b'0'..=b'9']) => {
            BadRequest::new(505, format!("HTTP/1.0 and HTTP/1.1 are spoken here, not {}.", shown(version)))
        }
        _ => BadRequest::new(400, "The request line does not end in an HTTP version."),
    }
}

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;

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
//! 3. A head that is [`Complete`](Parsed::Complete) has a valid `Host` or, over HTTP/1.0, none
//!    (`host.rs`), and no fragment in its target.
//!
//! Header lines that few requests have are not kept one by one: [`Seen`] says which there are, and
//! [`Head::values`] reads them again, all lines of a name, from the bytes that httparse has checked.
//!
//! Tested below; the property tests feed arbitrary bytes and every prefix.

use std::borrow::Cow;

use super::chunked::ChunkedError;
use super::host;

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
    /// `OPTIONS`
    Options,
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
            "OPTIONS" => Self::Options,
            _ => Self::Other,
        }
    }

    /// Whether a request of this method changes nothing (RFC 9110 section 9.2.1).
    #[must_use]
    pub const fn is_safe(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Options)
    }
}

macro_rules! seen {
    ($($name:ident = $bit:literal, $text:literal;)*) => {
        /// Which of the header lines a head has that are read by [`Head::values`].
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Seen(u16);

        impl Seen {
            $(
                #[doc = concat!("`", $text, "`")]
                pub const $name: Self = Self(1 << $bit);
            )*

            const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    _ => "",
                }
            }
        }
    };
}

seen! {
    IF_MATCH = 0, "if-match";
    IF_NONE_MATCH = 1, "if-none-match";
    IF_UNMODIFIED_SINCE = 2, "if-unmodified-since";
    IF_MODIFIED_SINCE = 3, "if-modified-since";
    IF_RANGE = 4, "if-range";
    RANGE = 5, "range";
    CONTENT_TYPE = 6, "content-type";
    CONTENT_ENCODING = 7, "content-encoding";
    CONTENT_RANGE = 8, "content-range";
    ORIGIN = 9, "origin";
    SEC_FETCH_SITE = 10, "sec-fetch-site";
    REQUEST_METHOD = 11, "access-control-request-method";
}

impl Seen {
    /// Lines that may stand once: to join those of two would make another value of them.
    const ONCE: Self = Self(
        Self::IF_RANGE.0
            | Self::RANGE.0
            | Self::CONTENT_TYPE.0
            | Self::CONTENT_RANGE.0
            | Self::ORIGIN.0
            | Self::SEC_FETCH_SITE.0
            | Self::IF_UNMODIFIED_SINCE.0
            | Self::IF_MODIFIED_SINCE.0,
    );

    /// Whether none of these lines is there.
    #[must_use]
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether any line of `lines` is there.
    #[must_use]
    #[inline]
    pub const fn has(self, lines: Self) -> bool {
        self.0 & lines.0 != 0
    }

    /// The lines of both.
    #[must_use]
    pub const fn and(self, lines: Self) -> Self {
        Self(self.0 | lines.0)
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
    /// The target up to the first `?`, not decoded; starts with `/`, or is the `*` of `OPTIONS`.
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
    /// The host that is asked, with its port if it has one: that of an absolute target, or else of
    /// `Host`. Empty if there is neither.
    pub host: &'a str,
    /// Which of the lines are there that [`Head::values`] reads.
    pub seen: Seen,
    /// The value of `Authorization`; `None` if there is none.
    pub authorization: Option<&'a [u8]>,
    /// Bytes of the head, including the empty line.
    pub head_len: usize,
    bytes: &'a [u8],
}

impl<'a> Head<'a> {
    /// Whether HTTP knows the method (RFC 9110 section 9, RFC 5789), so that it is a path that does
    /// not.
    #[must_use]
    pub fn is_method_known(&self) -> bool {
        self.method != Method::Other || matches!(self.method_name, "PATCH" | "TRACE" | "CONNECT")
    }

    /// The values of all lines of a name, in order. `line` is one of the constants of [`Seen`].
    pub fn values(&self, line: Seen) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let bytes = if self.seen.has(line) { self.bytes } else { &[] };
        // The first line is the request's, which has no name before a colon that could be meant.
        bytes.split(|byte| *byte == b'\n').skip_while(|line| line.trim_ascii().is_empty()).skip(1).filter_map(
            move |text| {
                let colon = text.iter().position(|byte| *byte == b':')?;
                text[..colon].eq_ignore_ascii_case(line.name().as_bytes()).then(|| text[colon + 1..].trim_ascii())
            },
        )
    }

    /// The value of a line that may stand once; `None` if there is none.
    #[must_use]
    pub fn value(&self, line: Seen) -> Option<&'a [u8]> {
        self.values(line).next()
    }

    /// The elements of a list, of all its lines; `None` if there is no line. Quoted strings are not
    /// taken apart.
    pub fn elements(&self, line: Seen) -> Option<impl Iterator<Item = &'a [u8]> + use<'a>> {
        self.seen.has(line).then(|| self.values(line).flat_map(elements))
    }
}

/// The elements of a list that are not empty (RFC 9110 section 5.6.1). A comma in a quoted string
/// ends no element.
pub fn elements(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    list.split(move |byte| {
        // Entity tags know no escapes (RFC 9110 section 8.8.3).
        quoted ^= *byte == b'"';
        *byte == b',' && !quoted
    })
    .map(<[u8]>::trim_ascii)
    .filter(|element| !element.is_empty())
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
    let (authority, path, query) = split_target(method_name, target)?;

    let mut fields = Fields::default();
    for header in request.headers.iter() {
        fields.take(header.name, header.value)?;
    }
    let host = fields.host(version)?;
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
        // RFC 9112 section 3.2.2: an absolute target wins.
        host: authority.unwrap_or(host),
        seen: fields.seen,
        authorization: fields.authorization,
        head_len,
        bytes: &bytes[..head_len],
    }))
}

/// Splits an origin-form or absolute-form target into authority, path and query.
#[inline]
fn split_target<'a>(method: &str, target: &'a str) -> Result<(Option<&'a str>, &'a str, &'a str), BadRequest> {
    if target.as_bytes().contains(&b'#') {
        return Err(BadRequest::new(400, "The request target has a fragment, which is not sent: write %23 for a #."));
    }
    let (authority, target) = if target.starts_with('/') { (None, target) } else { absolute(method, target)? };
    Ok(match target.bytes().position(|byte| byte == b'?') {
        None => (authority, target, ""),
        Some(0) => (authority, "/", &target[1..]),
        Some(at) => (authority, &target[..at], &target[at + 1..]),
    })
}

/// A target that does not begin with a slash: a URL, or the `*` of `OPTIONS`.
#[cold]
fn absolute<'a>(method: &str, target: &'a str) -> Result<(Option<&'a str>, &'a str), BadRequest> {
    if target == "*" && method == "OPTIONS" {
        return Ok((None, target));
    }
    let bytes = target.as_bytes();
    let scheme = ["http://", "https://"]
        .into_iter()
        .find(|scheme| bytes.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes())));
    let Some(scheme) = scheme else {
        return Err(BadRequest::new(400, "The request target is neither a path nor an absolute http URL."));
    };
    let rest = &target[scheme.len()..];
    let end = rest.bytes().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let authority = &rest[..end];
    if end == 0 || host::name(authority).is_empty() {
        return Err(BadRequest::new(400, "The URL in the request line has no host."));
    }
    if !host::is_valid(authority.as_bytes()) {
        return Err(BadRequest::new(400, "The host of the URL in the request line is not a name or an address."));
    }
    let path = match &rest[end..] {
        // RFC 9112 section 3.2.4: without a path and a query it is the server that is meant.
        "" if method == "OPTIONS" => "*",
        "" => "/",
        path => path,
    };
    Ok((Some(authority), path))
}

/// The parts of the header lines that the connection needs.
#[derive(Default)]
struct Fields<'a> {
    hosts: usize,
    host: &'a [u8],
    seen: Seen,
    keep_alive: bool,
    close: bool,
    length: Option<u64>,
    encoding: Option<&'a [u8]>,
    expect_continue: bool,
    authorization: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    #[inline]
    fn take(&mut self, name: &str, value: &'a [u8]) -> Result<(), BadRequest> {
        // The length tells most headers apart before any byte is compared.
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match name.len() {
            4 if is("host") => {
                self.hosts += 1;
                self.host = value;
            }
            5 if is("range") => self.see(Seen::RANGE)?,
            6 if is("expect") => self.expect(value)?,
            6 if is("origin") => self.see(Seen::ORIGIN)?,
            8 if is("if-match") => self.see(Seen::IF_MATCH)?,
            8 if is("if-range") => self.see(Seen::IF_RANGE)?,
            10 if is("connection") => self.connection(value),
            12 if is("content-type") => self.see(Seen::CONTENT_TYPE)?,
            13 if is("if-none-match") => self.see(Seen::IF_NONE_MATCH)?,
            13 if is("content-range") => self.see(Seen::CONTENT_RANGE)?,
            13 if is("authorization") => once(&mut self.authorization, value, "Authorization")?,
            14 if is("content-length") => self.length(value)?,
            14 if is("sec-fetch-site") => self.see(Seen::SEC_FETCH_SITE)?,
            16 if is("content-encoding") => self.see(Seen::CONTENT_ENCODING)?,
            17 if is("transfer-encoding") => once(&mut self.encoding, value, "Transfer-Encoding")?,
            17 if is("if-modified-since") => self.see(Seen::IF_MODIFIED_SINCE)?,
            19 if is("if-unmodified-since") => self.see(Seen::IF_UNMODIFIED_SINCE)?,
            29 if is("access-control-request-method") => self.see(Seen::REQUEST_METHOD)?,
            _ => {}
        }
        Ok(())
    }

    fn see(&mut self, line: Seen) -> Result<(), BadRequest> {
        if self.seen.has(line) && Seen::ONCE.has(line) {
            return Err(BadRequest::new(400, format!("The request has more than one {} header.", line.name())));
        }
        self.seen = self.seen.and(line);
        Ok(())
    }

    /// The value of `Host`, if there is one where one must be, and it is valid.
    #[inline]
    fn host(&self, version: Version) -> Result<&'a str, BadRequest> {
        if self.hosts != 1 && version == Version::Http11 || self.hosts > 1 {
            return Err(BadRequest::new(
                400,
                format!("The request has {} Host headers and needs exactly one.", self.hosts),
            ));
        }
        match std::str::from_utf8(self.host) {
            Ok(host) if host::is_valid(self.host) => Ok(host),
            _ => Err(BadRequest::new(
                400,
                format!("Host \"{}\" is not a name or an address with at most a port.", shown(self.host)),
            )),
        }
    }

    fn connection(&mut self, value: &[u8]) {
        for token in value.split(|byte| *byte == b',') {
            let token = token.trim_ascii();
            self.close |= token.eq_ignore_ascii_case(b"close");
            self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    fn expect(&mut self, value: &[u8]) -> Result<(), BadRequest> {
        for expectation in elements(value) {
            if !expectation.eq_ignore_ascii_case(b"100-continue") {
                return Err(BadRequest::new(
                    417,
                    format!("The only expectation known here is 100-continue, not \"{}\".", shown(expectation)),
                ));
            }
            self.expect_continue = true;
        }
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

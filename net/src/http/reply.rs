//! Answers as bytes, written into a buffer without allocation or formatting machinery.
//!
//! [`ReplyContext`] is what an answer must know about its request: a small copy that a future can
//! take along to write an answer later. [`Reply`] is the same, bound to the connection's output
//! buffer, for answers that are ready at once.
//!
//! Invariants:
//! 1. An answer is one status line, `Date`, `X-Content-Type-Options: nosniff`, `Connection` if it is
//!    needed, the headers, an empty line, the body.
//! 2. After `HEAD`, no byte of a body is written, though `Content-Length` says what `GET` would
//!    have sent.
//! 3. `204` and `304` have neither `Content-Length` nor a body.
//! 4. Every answer with a body says what caches may do with it: values are to be revalidated,
//!    sentences not to be kept.
//!
//! The status line says HTTP/1.1 even to HTTP/1.0 clients (RFC 9110, 6.2), but nothing is sent that
//! they would not understand. Tested below.

use super::date::{DATE_LENGTH, Date};
use super::head::{Head, Method, Version};
use super::range::Part;
use super::status;

const TYPE: &[u8] = b"Content-Type: ";
const OCTETS: &[u8] = b"application/octet-stream";
/// What stands between the content type of a value and its tag.
const OF_A_VALUE: &[u8] = b"\r\nCache-Control: no-cache\r\nAccept-Ranges: bytes\r\nETag: ";
/// The same, of a value without a content type of its own: the usual case, in one piece.
const OCTETS_OF_A_VALUE: &[u8] = b"Content-Type: application/octet-stream\r\nCache-Control: no-cache\r\n\
    Accept-Ranges: bytes\r\nETag: ";
const TEXT: &[u8] = b"Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n";

/// A value as its head describes it.
#[derive(Debug, Clone, Copy)]
pub struct Representation<'a> {
    /// The tag with its quotes.
    pub etag: &'a [u8],
    /// The media type; empty for `application/octet-stream`.
    pub content_type: &'a [u8],
    /// The codings; empty for none.
    pub content_encoding: &'a [u8],
    /// Bytes of the whole value.
    pub length: u64,
    /// The part that is sent; `None` for all of it.
    pub part: Option<Part>,
}

/// One more header line that the program wants in an answer whatever its status is. Making one does
/// not allocate.
#[derive(Debug, Clone, Copy)]
pub struct ExtraLine {
    bytes: [u8; ExtraLine::LENGTH_MAX],
    length: u8,
}

impl ExtraLine {
    /// The most bytes of the line, with its end.
    pub const LENGTH_MAX: usize = 40;
    const NONE: Self = Self { bytes: [0; Self::LENGTH_MAX], length: 0 };

    /// The line `name: a/b`.
    ///
    /// # Panics
    /// If the line would be longer than [`ExtraLine::LENGTH_MAX`]; the program chooses the name.
    #[must_use]
    pub fn ratio(name: &str, a: u32, b: u32) -> Self {
        let mut line = Self::NONE;
        let (mut first, mut second) = (itoa::Buffer::new(), itoa::Buffer::new());
        for part in [name, ": ", first.format(a), "/", second.format(b), "\r\n"] {
            let at = usize::from(line.length);
            line.bytes[at..at + part.len()].copy_from_slice(part.as_bytes());
            line.length += part.len() as u8;
        }
        line
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// What an answer must know about its request.
#[derive(Debug, Clone, Copy)]
pub struct ReplyContext {
    /// The client's version.
    pub version: Version,
    /// Whether the request is a `HEAD`, so that no body follows.
    pub head: bool,
    /// Whether the connection stays open after the answer.
    pub keep_alive: bool,
    date: [u8; DATE_LENGTH],
    extra: ExtraLine,
    lines: &'static str,
}

impl ReplyContext {
    /// The context of an answer to `request`, sent at `date`.
    #[inline]
    #[must_use]
    pub fn new(request: &Head<'_>, date: &Date) -> Self {
        Self {
            version: request.version,
            head: request.method == Method::Head,
            keep_alive: request.keep_alive,
            date: *date.text(),
            extra: ExtraLine::NONE,
            lines: "",
        }
    }

    /// The context of an answer to something that could not be read as a request.
    #[must_use]
    pub fn unread(date: &Date) -> Self {
        let (date, extra, lines) = (*date.text(), ExtraLine::NONE, "");
        Self { version: Version::Http11, head: false, keep_alive: false, date, extra, lines }
    }

    /// Makes the answer one of another time.
    pub fn set_date(&mut self, date: &Date) {
        self.date = *date.text();
    }

    /// Adds whole header lines to the answer, whatever it will be, each with its CR LF.
    pub fn set_lines(&mut self, lines: &'static str) {
        self.lines = lines;
    }

    /// What [`set_lines`](Self::set_lines) set; empty for nothing.
    #[must_use]
    pub const fn lines(&self) -> &'static str {
        self.lines
    }

    /// Adds a header line to the answer, whatever it will be.
    pub fn set_extra(&mut self, line: ExtraLine) {
        self.extra = line;
    }

    /// Begins an answer: status line, `Date`, `Connection`. Headers follow with
    /// [`header`](Self::header), then [`end`](Self::end) or [`end_with_body`](Self::end_with_body).
    #[inline]
    pub fn begin(&self, out: &mut Vec<u8>, code: u16) {
        match status::beginning(code) {
            Some(beginning) => out.extend_from_slice(beginning),
            None => {
                out.extend_from_slice(b"HTTP/1.1 ");
                number(out, code.into());
                out.extend_from_slice(b" Unknown\r\nDate: ");
            }
        }
        out.extend_from_slice(&self.date);
        out.extend_from_slice(match (self.keep_alive, self.version) {
            (true, Version::Http11) => b"\r\nX-Content-Type-Options: nosniff\r\n".as_slice(),
            (true, Version::Http10) => b"\r\nX-Content-Type-Options: nosniff\r\nConnection: keep-alive\r\n",
            (false, _) => b"\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n",
        });
        out.extend_from_slice(self.extra.as_bytes());
        if !self.lines.is_empty() {
            out.extend_from_slice(self.lines.as_bytes());
        }
    }

    /// Writes one header line. Name and value must be free of CR, LF and NUL: they come from the
    /// program, not from the client.
    #[inline]
    pub fn header(&self, out: &mut Vec<u8>, name: &str, value: &[u8]) {
        debug_assert!(!value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }

    /// Ends the head of an answer whose framing has been written, or that has none.
    #[inline]
    pub fn end(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\r\n");
    }

    /// Ends the head with `Content-Length` and writes the body, unless the request is a `HEAD`.
    #[inline]
    pub fn end_with_body(&self, out: &mut Vec<u8>, body: &[u8]) {
        self.end_with_length(out, body.len() as u64);
        if !self.head {
            out.extend_from_slice(body);
        }
    }

    /// Ends the head with `Content-Length`; the caller sends the body separately.
    #[inline]
    pub fn end_with_length(&self, out: &mut Vec<u8>, length: u64) {
        out.extend_from_slice(b"Content-Length: ");
        number(out, length);
        out.extend_from_slice(b"\r\n\r\n");
    }

    /// Writes an answer without a body.
    #[inline]
    pub fn empty(&self, out: &mut Vec<u8>, code: u16) {
        self.begin(out, code);
        match code {
            204 | 304 => self.end(out),
            _ => self.end_with_length(out, 0),
        }
    }

    /// Writes an error: one plain sentence as text.
    pub fn error(&self, out: &mut Vec<u8>, code: u16, sentence: &str) {
        self.begin(out, code);
        self.end_error(out, sentence);
    }

    /// Writes an error with one more header, such as `Allow` or `Retry-After`.
    pub fn error_with(&self, out: &mut Vec<u8>, code: u16, name: &str, value: &str, sentence: &str) {
        self.begin(out, code);
        self.header(out, name, value.as_bytes());
        self.end_error(out, sentence);
    }

    fn end_error(&self, out: &mut Vec<u8>, sentence: &str) {
        out.extend_from_slice(TEXT);
        self.end_with_length(out, sentence.len() as u64 + 1);
        if !self.head {
            out.extend_from_slice(sentence.as_bytes());
            out.push(b'\n');
        }
    }

    /// Writes a `200` with a value. `etag` is the tag with its quotes.
    #[inline]
    pub fn value(&self, out: &mut Vec<u8>, etag: &[u8], body: &[u8]) {
        self.value_head(out, etag, body.len() as u64);
        if !self.head {
            out.extend_from_slice(body);
        }
    }

    /// Writes the head of a `200` with a value that is sent separately. `etag` is the tag with its
    /// quotes.
    #[inline]
    pub fn value_head(&self, out: &mut Vec<u8>, etag: &[u8], content_length: u64) {
        self.begin(out, 200);
        out.extend_from_slice(OCTETS_OF_A_VALUE);
        out.extend_from_slice(etag);
        out.extend_from_slice(b"\r\n");
        self.end_with_length(out, content_length);
    }

    /// Writes the head of a `200`, or a `206` for a part, with a value that is more than bytes and a
    /// tag. Bytes that may not be in a header line, which no client of this server can have sent,
    /// are left out with their line.
    pub fn representation_head(&self, out: &mut Vec<u8>, value: &Representation<'_>) {
        self.begin(out, if value.part.is_some() { 206 } else { 200 });
        let given =
            |text: &[u8]| !text.is_empty() && text.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..));
        out.extend_from_slice(TYPE);
        out.extend_from_slice(if given(value.content_type) { value.content_type } else { OCTETS });
        out.extend_from_slice(OF_A_VALUE);
        out.extend_from_slice(value.etag);
        out.extend_from_slice(b"\r\n");
        if given(value.content_encoding) {
            self.header(out, "Content-Encoding", value.content_encoding);
        }
        if let Some(part) = value.part {
            out.extend_from_slice(b"Content-Range: bytes ");
            number(out, part.first);
            out.push(b'-');
            number(out, part.last);
            out.push(b'/');
            number(out, value.length);
            out.extend_from_slice(b"\r\n");
        }
        self.end_with_length(out, value.part.map_or(value.length, Part::length));
    }

    /// Writes a `416`: `length` is that of the whole value.
    pub fn unsatisfiable(&self, out: &mut Vec<u8>, length: u64, sentence: &str) {
        self.begin(out, 416);
        out.extend_from_slice(b"Content-Range: bytes */");
        number(out, length);
        out.extend_from_slice(b"\r\n");
        self.end_error(out, sentence);
    }

    /// Writes an answer without a body to a write that made the version with this tag, which has its
    /// quotes.
    #[inline]
    pub fn written(&self, out: &mut Vec<u8>, code: u16, etag: &[u8]) {
        self.begin(out, code);
        out.extend_from_slice(b"ETag: ");
        out.extend_from_slice(etag);
        out.extend_from_slice(b"\r\nContent-Length: 0\r\n\r\n");
    }

    /// Writes the answer to `OPTIONS`: the methods that the target knows, and whole further lines.
    pub fn options(&self, out: &mut Vec<u8>, allow: &str, lines: &str) {
        self.begin(out, 204);
        out.extend_from_slice(lines.as_bytes());
        self.header(out, "Allow", allow.as_bytes());
        self.end(out);
    }

    /// Writes the head of a `200` whose length is not known: the body is chunked or, for an
    /// HTTP/1.0 client, ends with the connection.
    pub fn stream_head(&self, out: &mut Vec<u8>, content_type: &str) {
        let delimited_by_close = Self { keep_alive: self.keep_alive && self.version == Version::Http11, ..*self };
        delimited_by_close.begin(out, 200);
        self.header(out, "Content-Type", content_type.as_bytes());
        out.extend_from_slice(b"Cache-Control: no-cache\r\n");
        if self.version == Version::Http11 {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        self.end(out);
    }

    /// Writes a `304`; `etag` is the tag with its quotes.
    pub fn not_modified(&self, out: &mut Vec<u8>, etag: &[u8]) {
        self.begin(out, 304);
        out.extend_from_slice(b"Cache-Control: no-cache\r\n");
        self.header(out, "ETag", etag);
        self.end(out);
    }

    /// Writes an answer that is text for people.
    pub fn text(&self, out: &mut Vec<u8>, code: u16, text: &str) {
        self.begin(out, code);
        out.extend_from_slice(TEXT);
        self.end_with_body(out, text.as_bytes());
    }
}

#[inline]
fn number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// An answer on its way into the connection's output buffer.
#[derive(Debug)]
pub struct Reply<'a> {
    out: &'a mut Vec<u8>,
    context: ReplyContext,
    tag: u16,
}

impl<'a> Reply<'a> {
    /// An answer that will be appended to `out`.
    #[inline]
    #[must_use]
    pub fn new(out: &'a mut Vec<u8>, context: ReplyContext) -> Self {
        Self { out, context, tag: 0 }
    }

    /// A copy of the context, with which the answer can be written later.
    #[inline]
    #[must_use]
    pub fn context(&self) -> ReplyContext {
        self.context
    }

    /// Sets the mark that `Service::finished` gets; it is 0 until it is set.
    #[inline]
    pub fn tag(&mut self, tag: u16) {
        self.tag = tag;
    }

    /// The mark of the answer.
    #[inline]
    #[must_use]
    pub fn tagged(&self) -> u16 {
        self.tag
    }

    /// Adds a header line to the answer. Call it before the answer is written.
    #[inline]
    pub fn set_extra(&mut self, line: ExtraLine) {
        self.context.set_extra(line);
    }

    /// Adds whole header lines to the answer; see [`ReplyContext::set_lines`]. Call it before the
    /// answer is written.
    #[inline]
    pub fn set_lines(&mut self, lines: &'static str) {
        self.context.set_lines(lines);
    }

    /// Closes the connection after this answer. Call it before the answer is written.
    pub fn close(&mut self) {
        self.context.keep_alive = false;
    }

    /// The output buffer, for what the methods here do not cover; see [`ReplyContext::begin`].
    #[inline]
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        self.out
    }

    /// Begins an answer; see [`ReplyContext::begin`].
    #[inline]
    pub fn begin(&mut self, code: u16) {
        self.context.begin(self.out, code);
    }

    /// Writes one header line; see [`ReplyContext::header`].
    #[inline]
    pub fn header(&mut self, name: &str, value: &[u8]) {
        self.context.header(self.out, name, value);
    }

    /// Ends the head with `Content-Length` and writes the body; see
    /// [`ReplyContext::end_with_body`].
    #[inline]
    pub fn end_with_body(&mut self, body: &[u8]) {
        self.context.end_with_body(self.out, body);
    }

    /// Ends the head with `Content-Length` for a body sent as `Outcome::Value`.
    #[inline]
    pub fn end_with_length(&mut self, length: u64) {
        self.context.end_with_length(self.out, length);
    }

    /// Writes an answer without a body.
    #[inline]
    pub fn empty(&mut self, code: u16) {
        self.context.empty(self.out, code);
    }

    /// Writes an error: one plain sentence as text.
    pub fn error(&mut self, code: u16, sentence: &str) {
        self.context.error(self.out, code, sentence);
    }

    /// Writes an error with one more header, such as `Allow` or `Retry-After`.
    pub fn error_with(&mut self, code: u16, name: &str, value: &str, sentence: &str) {
        self.context.error_with(self.out, code, name, value, sentence);
    }

    /// Writes a `200` with a value, which is copied into the buffer. `etag` is the tag with its
    /// quotes.
    #[inline]
    pub fn value(&mut self, etag: &[u8], body: &[u8]) {
        self.context.value(self.out, etag, body);
    }

    /// Writes the head of a `200` whose value follows as `Outcome::Value`. `etag` is the tag with
    /// its quotes.
    #[inline]
    pub fn value_head(&mut self, etag: &[u8], content_length: u64) {
        self.context.value_head(self.out, etag, content_length);
    }

    /// Writes the head of a `200` whose body follows as `Outcome::Stream`.
    pub fn stream_head(&mut self, content_type: &str) {
        self.context.stream_head(self.out, content_type);
    }

    /// Writes the answer to `OPTIONS`; see [`ReplyContext::options`].
    pub fn options(&mut self, allow: &str, lines: &str) {
        self.context.options(self.out, allow, lines);
    }

    /// Writes a `304`; `etag` is the tag with its quotes.
    pub fn not_modified(&mut self, etag: &[u8]) {
        self.context.not_modified(self.out, etag);
    }

    /// Writes an answer that is text for people.
    pub fn text(&mut self, code: u16, text: &str) {
        self.context.text(self.out, code, text);
    }
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;

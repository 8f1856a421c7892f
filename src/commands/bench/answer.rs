//! Reads HTTP/1.x answers from bytes as they arrive: the status, where the answer ends, and whether
//! the connection stays open after it.
//!
//! Bounds: a head has at most 64 KiB and 64 fields; a body is counted and not kept, but for the
//! first [`SENTENCE_MAX`] bytes of a refusal that has a length. There is no I/O. Interim answers
//! (1xx) are skipped.

const HEAD_MAX: usize = 64 << 10;
const FIELDS_MAX: usize = 64;
/// The most hexadecimal digits of a chunk size.
const CHUNK_DIGITS_MAX: u8 = 15;
/// The most bytes of a refusal that are kept, to be shown.
pub const SENTENCE_MAX: usize = 400;

/// The bytes are not an HTTP answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// A complete answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub closes: bool,
}

enum State {
    Head,
    Length(u64),
    Chunks(Chunks),
    UntilClose,
}

enum Chunks {
    Size {
        size: u64,
        digits: u8,
    },
    Extension {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataEnd,
    /// In the trailer; `line` says whether the current line has any bytes.
    Trailer {
        line: bool,
    },
}

/// Reads one answer after another.
pub struct Reader {
    head: Vec<u8>,
    state: State,
    answer: Answer,
    refusal: Refusal,
}

/// What is known of an answer whose status is 400 or more.
#[derive(Default)]
pub struct Refusal {
    /// The beginning of the body.
    pub body: Vec<u8>,
    /// Whether its head is that of a node of Koltso: one sentence as text, which nothing keeps.
    pub is_of_a_node: bool,
}

impl Reader {
    /// A reader at the start of an answer.
    pub fn new() -> Self {
        let answer = Answer { status: 0, closes: false };
        Self { head: Vec::new(), state: State::Head, answer, refusal: Refusal::default() }
    }

    /// Starts again at the start of an answer.
    pub fn reset(&mut self) {
        self.head.clear();
        self.state = State::Head;
    }

    /// Takes in bytes, and returns the answer if they complete it. Only one request is in flight,
    /// so nothing may follow its answer.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<Option<Answer>, Malformed> {
        while !bytes.is_empty() {
            let used = match &mut self.state {
                State::Head => {
                    let used = self.head(bytes)?;
                    if let State::Length(0) = self.state {
                        return self.end(&bytes[used..]);
                    }
                    used
                }
                State::Length(left) => {
                    let used = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= used as u64;
                    if self.answer.status >= 400 {
                        let kept = used.min(SENTENCE_MAX - self.refusal.body.len());
                        self.refusal.body.extend_from_slice(&bytes[..kept]);
                    }
                    if *left == 0 {
                        return self.end(&bytes[used..]);
                    }
                    used
                }
                State::Chunks(chunks) => {
                    let (used, done) = chunks.feed(bytes)?;
                    if done {
                        return self.end(&bytes[used..]);
                    }
                    used
                }
                State::UntilClose => bytes.len(),
            };
            bytes = &bytes[used..];
        }
        Ok(None)
    }

    /// What the last answer says, if it is a refusal.
    pub fn refusal(&self) -> Option<&Refusal> {
        (self.answer.status >= 400).then_some(&self.refusal)
    }

    /// The peer has closed the connection, which completes an answer without a stated length.
    pub fn closed(&mut self) -> Option<Answer> {
        let ended = matches!(self.state, State::UntilClose);
        self.reset();
        ended.then_some(self.answer)
    }

    fn end(&mut self, rest: &[u8]) -> Result<Option<Answer>, Malformed> {
        self.reset();
        if rest.is_empty() { Ok(Some(self.answer)) } else { Err(Malformed) }
    }

    /// Reads the head from the bytes kept and from `bytes`; returns how many of these belong to it.
    fn head(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let kept = self.head.len();
        if kept > 0 {
            let room = HEAD_MAX - kept;
            self.head.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut parsed = httparse::Response::new(&mut fields);
        let all: &[u8] = if kept > 0 { &self.head } else { bytes };
        match parsed.parse(all).map_err(|_| Malformed)? {
            httparse::Status::Complete(length) => {
                let status = parsed.code.ok_or(Malformed)?;
                let (state, closes) = framing(status, parsed.version == Some(0), parsed.headers)?;
                if status >= 400 {
                    self.refusal.body.clear();
                    self.refusal.is_of_a_node = is_of_a_node(parsed.headers);
                }
                if status >= 200 {
                    (self.state, self.answer) = (state, Answer { status, closes });
                }
                self.head.clear();
                Ok(length - kept)
            }
            httparse::Status::Partial if all.len() >= HEAD_MAX => Err(Malformed),
            httparse::Status::Partial => {
                if kept == 0 {
                    self.head.extend_from_slice(bytes);
                }
                Ok(bytes.len())
            }
        }
    }
}

/// Whether a refusal's head is that of a node: see `HttpAnswer::is_refusal_of_a_node`.
fn is_of_a_node(fields: &[httparse::Header<'_>]) -> bool {
    let has = |name: &str, value: &[u8]| {
        fields.iter().any(|field| field.name.eq_ignore_ascii_case(name) && field.value.starts_with(value))
    };
    has("content-type", b"text/plain") && has("cache-control", b"no-store") && has("x-content-type-options", b"nosniff")
}

/// Where the body ends by RFC 9112 section 6.3, for answers to GET, PUT and DELETE, and whether the
/// connection closes after it.
fn framing(status: u16, old: bool, fields: &[httparse::Header<'_>]) -> Result<(State, bool), Malformed> {
    let (mut length, mut chunked, mut closes) = (None, false, old);
    for field in fields {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        let value = field.value.trim_ascii();
        if is("content-length") {
            let text = std::str::from_utf8(value).map_err(|_| Malformed)?;
            length = Some(text.parse().map_err(|_| Malformed)?);
        } else if is("transfer-encoding") {
            chunked = value.to_ascii_lowercase().ends_with(b"chunked");
        } else if is("connection") {
            let has = |word: &[u8]| value.split(|&b| b == b',').any(|w| w.trim_ascii().eq_ignore_ascii_case(word));
            closes = has(b"close") || (old && !has(b"keep-alive"));
        }
    }
    Ok(match (status, chunked, length) {
        (101, ..) => return Err(Malformed),
        (100..=199 | 204 | 304, ..) => (State::Length(0), closes),
        (_, true, _) => (State::Chunks(Chunks::Size { size: 0, digits: 0 }), closes),
        (_, false, Some(length)) => (State::Length(length), closes),
        (_, false, None) => (State::UntilClose, true),
    })
}

impl Chunks {
    /// Takes in bytes; returns how many it took, and whether the last chunk and the trailer are
    /// over.
    fn feed(&mut self, bytes: &[u8]) -> Result<(usize, bool), Malformed> {
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            at += 1;
            *self = match *self {
                Self::Size { size, digits } => match (char::from(byte).to_digit(16), byte) {
                    (Some(digit), _) if digits < CHUNK_DIGITS_MAX => {
                        Self::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
                    }
                    (None, b'\n') if digits > 0 => Self::begin(size),
                    (None, b'\r' | b';' | b' ' | b'\t') if digits > 0 => Self::Extension { size },
                    _ => return Err(Malformed),
                },
                Self::Extension { size } if byte == b'\n' => Self::begin(size),
                Self::Extension { size } => Self::Extension { size },
                Self::Data { left } => {
                    let used = (bytes.len() - at + 1).min(usize::try_from(left).unwrap_or(usize::MAX));
                    at += used - 1;
                    if used as u64 == left { Self::DataEnd } else { Self::Data { left: left - used as u64 } }
                }
                Self::DataEnd => match byte {
                    b'\r' => Self::DataEnd,
                    b'\n' => Self::Size { size: 0, digits: 0 },
                    _ => return Err(Malformed),
                },
                Self::Trailer { line: false } if byte == b'\n' => return Ok((at, true)),
                Self::Trailer { .. } if byte == b'\n' => Self::Trailer { line: false },
                Self::Trailer { line } => Self::Trailer { line: line || byte != b'\r' },
            };
        }
        Ok((at, false))
    }

    fn begin(size: u64) -> Self {
        if size == 0 { Self::Trailer { line: false } } else { Self::Data { left: size } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the text as a whole and cut in two at every byte, which must give the same result.
    fn read(text: &str) -> Result<Option<Answer>, Malformed> {
        let bytes = text.as_bytes();
        let whole = Reader::new().feed(bytes);
        for cut in 1..bytes.len() {
            let mut reader = Reader::new();
            let halves = match reader.feed(&bytes[..cut]) {
                Ok(None) => reader.feed(&bytes[cut..]),
                Ok(Some(_)) => Err(Malformed),
                Err(Malformed) => Err(Malformed),
            };
            assert_eq!(halves, whole, "{text:?} cut at {cut}");
        }
        whole
    }

    #[test]
    fn answers_end_where_their_framing_says() {
        let keeps = |status| Ok(Some(Answer { status, closes: false }));
        let closes = |status| Ok(Some(Answer { status, closes: true }));
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", keeps(200)),
            ("HTTP/1.1 201 Created\r\ncontent-length:0\r\n\r\n", keeps(201)),
            ("HTTP/1.1 304 Not Modified\r\n\r\n", keeps(304)),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", keeps(204)),
            ("HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno", closes(404)),
            ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", closes(200)),
            ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx", keeps(200)),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", keeps(200)),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nA;x=y\r\n0123456789\r\n0\r\nT: 1\r\n\r\n",
                keeps(200),
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", Ok(None)),
            ("HTTP/1.1 200 OK\r\n\r\nuntil the end", Ok(None)),
        ] {
            assert_eq!(read(text), expected, "{text:?}");
        }
        let mut open = Reader::new();
        assert_eq!(open.feed(b"HTTP/1.1 200 OK\r\n\r\nuntil"), Ok(None));
        assert_eq!(open.closed(), Some(Answer { status: 200, closes: true }));
        let mut cut_short = Reader::new();
        assert_eq!(cut_short.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell"), Ok(None));
        assert_eq!(cut_short.closed(), None);
    }

    #[test]
    fn the_beginning_of_a_refusal_is_kept_and_whose_it_is() {
        let node = "HTTP/1.1 400 Bad Request\r\nX-Content-Type-Options: nosniff\r\nContent-Type: text/plain\r\n\
             Cache-Control: no-store\r\nContent-Length: 9\r\n\r\nNo, 1 > 0";
        let mut reader = Reader::new();
        for part in [&node[..130], &node[130..]] {
            let _ = reader.feed(part.as_bytes());
        }
        let refusal = reader.refusal().expect("a refusal");
        assert!(refusal.body == b"No, 1 > 0" && refusal.is_of_a_node);
        let page = format!("HTTP/1.1 404 No\r\nContent-Length: 5000\r\n\r\n{}", "a".repeat(5000));
        assert_eq!(reader.feed(page.as_bytes()), Ok(Some(Answer { status: 404, closes: false })));
        let refusal = reader.refusal().expect("a refusal");
        assert!(refusal.body.len() == SENTENCE_MAX && !refusal.is_of_a_node);
        assert!(reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").is_ok() && reader.refusal().is_none());
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for text in [
            "SSH-2.0-OpenSSH_9.2\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1111111111111111\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        ] {
            assert_eq!(Reader::new().feed(text.as_bytes()), Err(Malformed), "{text:?}");
        }
        assert_eq!(Reader::new().feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxy"), Err(Malformed));
        let endless = format!("HTTP/1.1 200 OK\r\nA: {}", "a".repeat(HEAD_MAX));
        let mut reader = Reader::new();
        let results: Vec<_> = endless.as_bytes().chunks(1000).map(|chunk| reader.feed(chunk)).collect();
        assert!(results.contains(&Err(Malformed)));
    }
}

//! HTTP/1.1 for the commands that ask a server: one request and its answer, over a blocking socket.
//!
//! Owner: the command's thread. Every wait has a bound: [`CONNECT_WITHIN`] for each address, then
//! what [`Patience`] says. The head of an answer has at most [`HEAD_MAX`] bytes; the body is read
//! as the caller asks for it, and it ends by its length, with its last chunk, or with the
//! connection. A server that does not speak HTTP is recognised by its first bytes, and one that is
//! no node of Koltso by what it answers: see [`HttpAnswer::is_refusal_of_a_node`]. Absent:
//! keep-alive, redirects, TLS. Tested in `tests/command_line/` and `tests/profile_command.rs`.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::settings::{Grammar as _, HostPort, Url};
use crate::units::Span;

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const HEAD_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 64;
/// The longest line that states the size of a chunk, with its extensions, in bytes.
const CHUNK_LINE_MAX: u64 = 1024;

/// A server, named by its URL.
#[derive(Clone)]
pub struct Server(HostPort);

/// How long to wait for an answer.
#[derive(Clone, Copy)]
pub enum Patience {
    /// This long for the head of the answer, and then for each piece of the body.
    Idle(Duration),
    /// This long for the whole answer, counted from the connection on.
    Whole(Duration),
}

/// A request to a server.
pub struct HttpRequest<'a> {
    /// The method: GET, PUT, …
    pub method: &'a str,
    /// The path with its query.
    pub path: &'a str,
    /// Sent as `Authorization: Bearer`; `None` sends no such header.
    pub token: Option<&'a str>,
    /// The body, which may be empty.
    pub body: &'a [u8],
    /// How long to wait for the answer.
    pub patience: Patience,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No connection could be made.
    #[error("cannot connect to {url}: {}", refusal(.error))]
    Connect {
        /// The URL of the server.
        url: String,
        /// What the system said.
        error: io::Error,
    },
    /// The connection ended before the answer's head did.
    #[error("{0} closed the connection before it answered")]
    Closed(String),
    /// The bytes that came are not HTTP.
    #[error("{0} did not answer in HTTP: is this a node of Koltso?")]
    NotHttp(String),
    /// The answer took longer than allowed.
    #[error("{url} did not answer in time ({})", Span(*.within))]
    Late {
        /// The URL of the server.
        url: String,
        /// How long it had.
        within: Duration,
    },
    /// The socket failed.
    #[error("{url} did not answer: {error}")]
    Io {
        /// The URL of the server.
        url: String,
        /// What the system said.
        error: io::Error,
    },
}

fn refusal(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "nobody listens there; is the server running?".to_owned(),
        ErrorKind::TimedOut => format!("nobody answered within {}", Span(CONNECT_WITHIN)),
        _ => error.to_string(),
    }
}

/// A socket whose reads end at a given time.
struct Socket {
    stream: TcpStream,
    until: Option<Instant>,
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(until) = self.until {
                let rest = until.saturating_duration_since(Instant::now());
                if rest.is_zero() {
                    return Err(ErrorKind::TimedOut.into());
                }
                self.stream.set_read_timeout(Some(rest))?;
            }
            match self.stream.read(buf) {
                // The system does not restart a read with a timeout after a signal, which another
                // thread handles.
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // The kernel reports a socket's timeout with this error.
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
                result => return result,
            }
        }
    }
}

/// An answer whose head has been read.
pub struct HttpAnswer {
    /// The status code.
    pub status: u16,
    /// Whether the body comes in chunks.
    pub chunked: bool,
    length: Option<u64>,
    headers: Vec<(String, Vec<u8>)>,
    body: BufReader<Socket>,
    /// Where [`Read`] is.
    part: Part,
}

/// Where a reader of the body is.
enum Part {
    /// Before the first byte.
    Start,
    /// So many bytes are left of the chunk, or of the whole body.
    Left(u64),
    /// The body ends with the connection.
    UntilClose,
    /// The body is over.
    Over,
}

/// Why a body could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The server sent less than it announced, or sent it too slowly.
    #[error("the answer ended after {received} bytes: {error}")]
    Received {
        /// The bytes of the body received so far.
        received: u64,
        /// What the system said.
        error: io::Error,
    },
    /// The body is longer than the caller allows.
    #[error("the answer is longer than {0} bytes")]
    TooLong(u64),
    /// The body could not be written to its destination.
    #[error("{0}")]
    Write(io::Error),
}

impl Server {
    /// Takes the URL of a node.
    ///
    /// # Errors
    /// The end of a sentence that begins with the URL.
    pub fn of(url: &str) -> Result<Self, String> {
        Url.parse(OsStr::new(url)).map(Self)
    }

    /// The URL, with its scheme and port.
    pub fn url(&self) -> String {
        self.0.url()
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
        for address in self.0.to_string().to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT_WITHIN) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Sends a request and reads the head of its answer.
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn ask(&self, request: &HttpRequest<'_>) -> Result<HttpAnswer, AskError> {
        let url = self.url();
        let (Patience::Idle(within) | Patience::Whole(within)) = request.patience;
        let stream = self.connect().map_err(|error| AskError::Connect { url: url.clone(), error })?;
        let failed = |error: io::Error| match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => AskError::Late { url: url.clone(), within },
            ErrorKind::InvalidData => AskError::NotHttp(url.clone()),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                AskError::Closed(url.clone())
            }
            _ => AskError::Io { url: url.clone(), error },
        };
        self.exchange(stream, request).map_err(failed)
    }

    fn exchange(&self, stream: TcpStream, request: &HttpRequest<'_>) -> io::Result<HttpAnswer> {
        let (Patience::Idle(wait) | Patience::Whole(wait)) = request.patience;
        stream.set_read_timeout(Some(wait))?;
        stream.set_write_timeout(Some(wait))?;
        let until = Instant::now() + wait;
        let HttpRequest { method, path, body, .. } = request;
        let token = request.token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{token}Content-Length: {}\r\n\r\n",
            self.0,
            body.len()
        );
        (&stream).write_all(head.as_bytes())?;
        // A server that refuses a body answers before it has received all of it: the answer says
        // more than the broken pipe.
        let sent = (&stream).write_all(body);
        let mut answer = match read_head(BufReader::new(Socket { stream, until: Some(until) })) {
            Ok(answer) => answer,
            Err(error) => return Err(sent.err().unwrap_or(error)),
        };
        if matches!(request.patience, Patience::Idle(_)) {
            let socket = answer.body.get_mut();
            socket.until = None;
            socket.stream.set_read_timeout(Some(wait))?;
        }
        Ok(answer)
    }
}

/// Reads the head of an answer. Fails with `InvalidData` if it is not HTTP, and with
/// `UnexpectedEof` if it ends too early.
fn read_head(mut body: BufReader<Socket>) -> io::Result<HttpAnswer> {
    const BEGIN: &[u8] = b"HTTP/1.";
    let garbage = || io::Error::from(ErrorKind::InvalidData);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let read = body.fill_buf()?;
        if read.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let taken = read.iter().position(|&byte| byte == b'\n').map_or(read.len(), |at| at + 1);
        head.extend_from_slice(&read[..taken]);
        body.consume(taken);
        let known = head.len().min(BEGIN.len());
        if head[..known] != BEGIN[..known] || head.len() > HEAD_MAX {
            return Err(garbage());
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut headers);
    parsed.parse(&head).map_err(|_| garbage())?;
    let status = parsed.code.ok_or_else(garbage)?;
    let headers: Vec<(String, Vec<u8>)> =
        parsed.headers.iter().map(|header| (header.name.to_ascii_lowercase(), header.value.to_vec())).collect();
    let mut answer = HttpAnswer { status, chunked: false, length: None, headers, body, part: Part::Start };
    answer.chunked = answer.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    answer.length = answer.header("content-length").and_then(|value| value.parse().ok());
    Ok(answer)
}

impl HttpAnswer {
    /// The value of a header; `name` is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.and_then(|(_, value)| std::str::from_utf8(value).ok()).map(str::trim)
    }

    /// The first line of the body, if that is a short text.
    pub fn sentence(mut self) -> String {
        let mut text = Vec::new();
        // If the body is cut short, the part that came is better than nothing.
        let _ = self.copy(&mut text, 4096);
        let text = String::from_utf8_lossy(&text);
        text.lines().next().unwrap_or_default().trim().replace(char::is_control, " ")
    }

    /// Whether a node of Koltso answers errors so: with one sentence, which nothing keeps. Nearly
    /// every other server answers with a page, or lets it be kept.
    pub fn is_refusal_of_a_node(&self) -> bool {
        let is = |name: &str, value: &str| self.header(name).is_some_and(|header| header.starts_with(value));
        is("content-type", "text/plain") && is("cache-control", "no-store") && is("x-content-type-options", "nosniff")
    }

    /// Whether the answer has the tag of a version: `"`, the clock, `-`, the node, `"`.
    pub fn has_a_version(&self) -> bool {
        let tag = self.header("etag").map(|tag| tag.strip_prefix("W/").unwrap_or(tag));
        let tag = tag.and_then(|tag| tag.strip_prefix('"')?.strip_suffix('"'));
        let is_hex = |text: &str, digits| text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
        tag.and_then(|tag| tag.split_once('-')).is_some_and(|(clock, node)| is_hex(clock, 16) && is_hex(node, 4))
    }

    /// A sentence for an answer that is not a success: its status, and its body as the reason.
    pub fn refusal(self) -> String {
        let status = self.status;
        format!("the server answered {status}: {}", self.sentence())
    }

    /// Copies the body, which may have at most `most` bytes, and returns how many it had.
    ///
    /// # Errors
    /// See [`BodyError`]. The bytes written until then stay written.
    pub fn copy(&mut self, out: &mut dyn Write, most: u64) -> Result<u64, BodyError> {
        if !self.chunked {
            let length = self.length;
            let copied = copy(&mut self.body, out, length.unwrap_or(u64::MAX), 0, most)?;
            let cut = || io::Error::new(ErrorKind::UnexpectedEof, "the server closed the connection");
            return match length.filter(|&length| copied < length) {
                Some(_) => Err(BodyError::Received { received: copied, error: cut() }),
                None => Ok(copied),
            };
        }
        let mut received = 0;
        loop {
            let failed = |error| BodyError::Received { received, error };
            let size = self.chunk_size().map_err(failed)?;
            if size == 0 {
                return Ok(received);
            }
            let copied = copy(&mut self.body, out, size, received, most)?;
            received += copied;
            let failed = |error| BodyError::Received { received, error };
            if copied < size {
                return Err(failed(cut_short()));
            }
            self.chunk_end().map_err(failed)?;
        }
    }

    /// The next chunk, which may have at most `most` bytes; `None` after the last one.
    ///
    /// # Errors
    /// The body is cut short, or it is not made of chunks.
    pub fn chunk(&mut self, most: u64) -> io::Result<Option<Vec<u8>>> {
        let size = self.chunk_size()?;
        if size == 0 {
            return Ok(None);
        }
        if size > most {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("a part of {size} bytes, more than {most}")));
        }
        let mut chunk = Vec::new();
        if (&mut self.body).take(size).read_to_end(&mut chunk)? as u64 != size {
            return Err(cut_short());
        }
        self.chunk_end()?;
        Ok(Some(chunk))
    }

    fn chunk_size(&mut self) -> io::Result<u64> {
        let mut line = String::new();
        (&mut self.body).take(CHUNK_LINE_MAX).read_line(&mut line)?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        u64::from_str_radix(digits, 16).map_err(|_| cut_short())
    }

    fn chunk_end(&mut self) -> io::Result<()> {
        let mut end = [0; 2];
        self.body.read_exact(&mut end).map_err(|_| cut_short())?;
        if end == *b"\r\n" { Ok(()) } else { Err(cut_short()) }
    }
}

/// The body, whatever its framing. A body that is cut short is an error.
impl Read for HttpAnswer {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = match self.part {
                Part::Start if self.chunked => {
                    let size = self.chunk_size()?;
                    self.part = if size == 0 { Part::Over } else { Part::Left(size) };
                    continue;
                }
                Part::Start => {
                    self.part = self.length.map_or(Part::UntilClose, Part::Left);
                    continue;
                }
                Part::Left(0) if self.chunked => {
                    self.chunk_end()?;
                    self.part = Part::Start;
                    continue;
                }
                Part::Left(0) | Part::Over => return Ok(0),
                Part::UntilClose => return self.body.read(buf),
                Part::Left(left) => left,
            };
            let most = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = self.body.read(&mut buf[..most])?;
            if read == 0 && most > 0 {
                return Err(cut_short());
            }
            self.part = Part::Left(left - read as u64);
            return Ok(read);
        }
    }
}

fn cut_short() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "it is cut short")
}

/// Copies `count` bytes, or fewer if the stream ends before; `before` of the `most` bytes allowed
/// have been used already.
fn copy(from: &mut impl BufRead, out: &mut dyn Write, count: u64, before: u64, most: u64) -> Result<u64, BodyError> {
    let mut copied = 0;
    while copied < count {
        let read = match from.fill_buf() {
            Ok(read) => read,
            Err(error) => return Err(BodyError::Received { received: before + copied, error }),
        };
        if read.is_empty() {
            break;
        }
        let taken = read.len().min(usize::try_from(count - copied).unwrap_or(usize::MAX));
        if before + copied + taken as u64 > most {
            // If the caller wants a sentence, the part that fits is better than nothing.
            let fits = usize::try_from(most.saturating_sub(before + copied)).unwrap_or(0).min(taken);
            out.write_all(&read[..fits]).map_err(BodyError::Write)?;
            return Err(BodyError::TooLong(most));
        }
        out.write_all(&read[..taken]).map_err(BodyError::Write)?;
        from.consume(taken);
        copied += taken as u64;
    }
    Ok(copied)
}

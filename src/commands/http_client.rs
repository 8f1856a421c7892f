//! HTTP/1.1 for the commands that ask a server: one request, one answer, over a blocking socket.
//!
//! Owner: the command's thread. Every wait has a bound: [`CONNECT_WITHIN`] an address, then what [`Patience`] says. An answer's head has at
//! most [`HEAD_MAX`] bytes; its body is read as the caller asks, by its length, its chunks or to the end of the connection. A server
//! that says something else than HTTP is found out with its first bytes. Absent: keep-alive, redirects, TLS.
//! Tested in `tests/command_line.rs` and `tests/profile_command.rs`.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const HEAD_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 64;
const PORT: u16 = 1337;
/// A line that states the size of a chunk, with its extensions.
const CHUNK_LINE_MAX: u64 = 1024;

/// A server, by its URL.
pub struct Server {
    url: String,
    host: String,
    address: String,
}

/// How long to wait.
#[derive(Clone, Copy)]
pub enum Patience {
    /// For each piece of the answer.
    Idle(Duration),
    /// For all of it, from the connection on.
    Whole(Duration),
}

/// What is asked.
pub struct Request<'a> {
    /// GET, PUT, …
    pub method: &'a str,
    /// With its query.
    pub path: &'a str,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<&'a str>,
    /// The body; may be empty.
    pub body: &'a [u8],
    /// How long to wait.
    pub patience: Patience,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is no connection.
    #[error("cannot connect to {url}: {}", refusal(.error))]
    Connect {
        /// The server.
        url: String,
        /// Why.
        error: io::Error,
    },
    /// The connection ended before the answer's head did.
    #[error("{0} closed the connection before it answered")]
    Closed(String),
    /// What came is something else.
    #[error("{0} did not answer in HTTP: is this a node of Koltso?")]
    NotHttp(String),
    /// The time is over.
    #[error("{0} did not answer in time")]
    Late(String),
    /// The socket failed.
    #[error("{url} did not answer: {error}")]
    Io {
        /// The server.
        url: String,
        /// Why.
        error: io::Error,
    },
}

fn refusal(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "nobody listens there; is the server running?".to_owned(),
        _ => error.to_string(),
    }
}

/// A socket whose reads end in time.
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
                // A socket with a timeout is not read on after a signal, which is another thread's affair.
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // What the kernel calls a socket's timeout.
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
                result => return result,
            }
        }
    }
}

/// An answer whose head was read.
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Whether its body comes in chunks.
    pub chunked: bool,
    length: Option<u64>,
    headers: Vec<(String, Vec<u8>)>,
    body: BufReader<Socket>,
}

/// Why a body is not here.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The server sent less than it said, or too slowly.
    #[error("the answer ended after {received} bytes: {error}")]
    Received {
        /// What came of it.
        received: u64,
        /// Why.
        error: io::Error,
    },
    /// Longer than the caller wants.
    #[error("the answer is longer than {0} bytes")]
    TooLong(u64),
    /// It could not be written.
    #[error("{0}")]
    Write(io::Error),
}

impl Server {
    /// `None`: this is not `http://HOST[:PORT]`.
    pub fn of(url: &str) -> Option<Self> {
        let host = url.strip_prefix("http://")?.trim_end_matches('/');
        if host.is_empty() || host.contains(|c: char| "/?#@".contains(c) || c <= ' ') {
            return None;
        }
        let with_port = host.rsplit(']').next().unwrap_or(host).contains(':');
        let address = if with_port { host.to_owned() } else { format!("{host}:{PORT}") };
        Some(Self { url: format!("http://{host}"), host: host.to_owned(), address })
    }

    /// As it was given, without a slash at its end.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
        for address in self.address.to_socket_addrs()? {
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
    pub fn ask(&self, request: &Request<'_>) -> Result<Answer, AskError> {
        let url = self.url.clone();
        let stream = self.connect().map_err(|error| AskError::Connect { url: url.clone(), error })?;
        let failed = |error: io::Error| match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => AskError::Late(url.clone()),
            ErrorKind::InvalidData => AskError::NotHttp(url.clone()),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                AskError::Closed(url.clone())
            }
            _ => AskError::Io { url: url.clone(), error },
        };
        self.exchange(stream, request).map_err(failed)
    }

    fn exchange(&self, stream: TcpStream, request: &Request<'_>) -> io::Result<Answer> {
        let (Patience::Idle(wait) | Patience::Whole(wait)) = request.patience;
        stream.set_read_timeout(Some(wait))?;
        stream.set_write_timeout(Some(wait))?;
        let until = matches!(request.patience, Patience::Whole(_)).then(|| Instant::now() + wait);
        let Request { method, path, body, .. } = request;
        let token = request.token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{token}Content-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        (&stream).write_all(head.as_bytes())?;
        // A server that refuses a body answers before it is sent whole: the answer says more than the broken pipe.
        let sent = (&stream).write_all(body);
        let answer = read_head(BufReader::new(Socket { stream, until }));
        if answer.is_err() {
            sent?;
        }
        answer
    }
}

/// Fails as `InvalidData` where this is not HTTP, as `UnexpectedEof` where it ends too early.
fn read_head(mut body: BufReader<Socket>) -> io::Result<Answer> {
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
    let mut answer = Answer { status, chunked: false, length: None, headers, body };
    answer.chunked = answer.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    answer.length = answer.header("content-length").and_then(|value| value.parse().ok());
    Ok(answer)
}

impl Answer {
    /// The value of a header, whose name is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.and_then(|(_, value)| std::str::from_utf8(value).ok()).map(str::trim)
    }

    /// The first line of a short text.
    pub fn sentence(mut self) -> String {
        let mut text = Vec::new();
        // What came of it is better than nothing.
        let _ = self.copy(&mut text, 4096);
        let text = String::from_utf8_lossy(&text);
        text.lines().next().unwrap_or_default().trim().replace(char::is_control, " ")
    }

    /// The body of an answer that is no success, as the reason.
    pub fn refusal(self) -> String {
        let status = self.status;
        format!("the server answered {status}: {}", self.sentence())
    }

    /// Copies the body, which may have `most` bytes; how many it had.
    ///
    /// # Errors
    /// See [`BodyError`]. What was written until then stays written.
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

    /// The next chunk, which may have `most` bytes. `None` after the last.
    ///
    /// # Errors
    /// The body is cut short, or not made of chunks.
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

fn cut_short() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "it is cut short")
}

/// Copies at most `count` bytes, until the end; `before` of `most` are used already.
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
            // What fits is better than nothing where a sentence is looked for.
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

//! An HTTP/1.1 client that sees bytes.
//!
//! It sends exactly what it is given and reads one answer at a time by its framing (Content-Length,
//! chunked, or until the connection closes), so tests can pipeline, dribble, lie about lengths and
//! hang up. Every read has a deadline.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long an answer may take before the test fails, unless a test says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(usize),
    Chunked,
    UntilClose,
}

#[derive(Debug, Clone)]
pub struct Response {
    pub minor_version: u8,
    pub status: u16,
    pub reason: String,
    pub headers: Vec<(String, String)>,
    pub framing: Framing,
    pub body: Vec<u8>,
    /// The body as it was cut into chunks, where it was chunked.
    pub chunks: Vec<Vec<u8>>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn says_close(&self) -> bool {
        self.header("connection").is_some_and(|value| value.to_ascii_lowercase().contains("close"))
    }

    /// Fails the test unless the status is `status`; `what` says which request this answers.
    #[track_caller]
    pub fn expect(self, status: u16, what: &str) -> Response {
        assert!(
            self.status == status,
            "{what}: expected {status}, got {} {} with {:?}",
            self.status,
            self.reason,
            String::from_utf8_lossy(&self.body[..self.body.len().min(300)]),
        );
        self
    }
}

pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    patience: Duration,
}

/// A target for `/v0/entity` with `key` percent-encoded.
pub fn entity(key: impl AsRef<[u8]>) -> String {
    format!("/v0/entity?id={}", encode(key))
}

/// Percent-encodes everything but the unreserved characters of RFC 3986.
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    let mut text = String::new();
    for &byte in bytes.as_ref() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// The bytes of an ordinary HTTP/1.1 request; `body` None means no Content-Length at all.
pub fn request_bytes(method: &str, target: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    if let Some(body) = body {
        bytes.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
        bytes.extend_from_slice(body);
    } else {
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

pub fn put_bytes(key: impl AsRef<[u8]>, value: &[u8]) -> Vec<u8> {
    request_bytes("PUT", &entity(key), &[], Some(value))
}

pub fn get_bytes(key: impl AsRef<[u8]>) -> Vec<u8> {
    request_bytes("GET", &entity(key), &[], None)
}

impl Client {
    pub fn connect(address: SocketAddr) -> io::Result<Client> {
        Self::over(TcpStream::connect_timeout(&address, PATIENCE)?)
    }

    fn over(stream: TcpStream) -> io::Result<Client> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Client { stream, buffer: Vec::new(), start: 0, patience: PATIENCE })
    }

    /// As `connect`, from another address of this machine.
    pub fn connect_from(address: SocketAddr, from: IpAddr) -> io::Result<Client> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        socket.connect_timeout(&address.into(), PATIENCE)?;
        Self::over(socket.into())
    }

    pub fn patience(mut self, patience: Duration) -> Client {
        self.patience = patience;
        self
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub fn end_sending(&self) {
        // An error here means that the other side has gone already, which the next read says
        // better.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
    }

    /// Reads more bytes; `Ok(0)` is the end of the stream.
    fn fill(&mut self, deadline: Instant) -> io::Result<usize> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no complete answer in time"));
        }
        self.stream.set_read_timeout(Some(left))?;
        if self.start > 1 << 20 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let mut block = [0; 64 << 10];
        let count = loop {
            match self.stream.read(&mut block) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        let count = count.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "no complete answer in time"),
            _ => error,
        })?;
        self.buffer.extend_from_slice(&block[..count]);
        Ok(count)
    }

    /// Whether anything has come, or comes within this time; also the end.
    pub fn has_more(&mut self, within: Duration) -> bool {
        !self.unread().is_empty() || self.fill(Instant::now() + within).is_ok()
    }

    /// How many bytes one single read brings, when nothing was left unread before it.
    pub fn read_once(&mut self) -> io::Result<usize> {
        assert!(self.unread().is_empty(), "read_once after a partly read answer");
        self.fill(Instant::now() + self.patience)
    }

    fn fill_or_eof(&mut self, deadline: Instant) -> io::Result<()> {
        match self.fill(deadline)? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection closed in the middle of an answer")),
            _ => Ok(()),
        }
    }

    fn read_line(&mut self, deadline: Instant) -> io::Result<String> {
        loop {
            if let Some(end) = self.unread().windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&self.unread()[..end]).into_owned();
                self.consume(end + 2);
                return Ok(line);
            }
            self.fill_or_eof(deadline)?;
        }
    }

    /// Status line and headers of the next answer; None when the connection closed cleanly before
    /// its first byte.
    pub fn read_head(&mut self, method: &str) -> io::Result<Option<Response>> {
        let deadline = Instant::now() + self.patience;
        loop {
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut parsed = httparse::Response::new(&mut headers);
            let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
            match parsed.parse(&self.buffer[self.start..]) {
                Ok(httparse::Status::Complete(length)) => {
                    let status = parsed.code.unwrap();
                    let headers: Vec<(String, String)> = parsed
                        .headers
                        .iter()
                        .map(|header| (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned()))
                        .collect();
                    let mut response = Response {
                        minor_version: parsed.version.unwrap(),
                        status,
                        reason: parsed.reason.unwrap_or_default().to_owned(),
                        headers,
                        framing: Framing::UntilClose,
                        body: Vec::new(),
                        chunks: Vec::new(),
                    };
                    response.framing = if method == "HEAD" || status < 200 || status == 204 || status == 304 {
                        Framing::None
                    } else if let Some(encoding) = response.header("transfer-encoding") {
                        if !encoding.eq_ignore_ascii_case("chunked") {
                            return Err(bad(format!("Transfer-Encoding {encoding:?} in an answer")));
                        }
                        if response.header("content-length").is_some() {
                            return Err(bad("an answer with both Content-Length and Transfer-Encoding".to_owned()));
                        }
                        Framing::Chunked
                    } else if let Some(length) = response.header("content-length") {
                        let number =
                            length.parse().map_err(|_| bad(format!("Content-Length {length:?} in an answer")))?;
                        Framing::Length(number)
                    } else {
                        Framing::UntilClose
                    };
                    self.consume(length);
                    return Ok(Some(response));
                }
                Ok(httparse::Status::Partial) => {}
                Err(error) => {
                    let shown = String::from_utf8_lossy(&self.unread()[..self.unread().len().min(200)]).into_owned();
                    return Err(bad(format!("not an HTTP answer ({error}): {shown:?}")));
                }
            }
            if self.fill(deadline)? == 0 {
                if self.unread().is_empty() {
                    return Ok(None);
                }
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the connection closed within an answer's head",
                ));
            }
        }
    }

    /// The next chunk of a chunked answer; None after the last one.
    pub fn read_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + self.patience;
        let line = self.read_line(deadline)?;
        let size = usize::from_str_radix(line.split(';').next().unwrap().trim(), 16)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("chunk size {line:?}")))?;
        if size == 0 {
            while !self.read_line(deadline)?.is_empty() {}
            return Ok(None);
        }
        while self.unread().len() < size + 2 {
            self.fill_or_eof(deadline)?;
        }
        let chunk = self.unread()[..size].to_vec();
        if &self.unread()[size..size + 2] != b"\r\n" {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a chunk without its line end"));
        }
        self.consume(size + 2);
        Ok(Some(chunk))
    }

    fn read_body(&mut self, response: &mut Response) -> io::Result<()> {
        match response.framing {
            Framing::None => {}
            Framing::Length(length) => {
                let deadline = Instant::now() + self.patience;
                while self.unread().len() < length {
                    self.fill_or_eof(deadline)?;
                }
                response.body = self.unread()[..length].to_vec();
                self.consume(length);
            }
            Framing::Chunked => {
                while let Some(chunk) = self.read_chunk()? {
                    response.body.extend_from_slice(&chunk);
                    response.chunks.push(chunk);
                }
            }
            Framing::UntilClose => {
                let deadline = Instant::now() + self.patience;
                while self.fill(deadline)? > 0 {}
                response.body = self.unread().to_vec();
                self.consume(response.body.len());
            }
        }
        Ok(())
    }

    /// `count` bytes of a body whose head was read before, into `into`.
    #[track_caller]
    pub fn read_rest(&mut self, into: &mut Vec<u8>, count: usize) {
        let deadline = Instant::now() + self.patience;
        while self.unread().len() < count {
            if let Err(error) = self.fill_or_eof(deadline) {
                panic!("{} of {count} bytes of a body: {error}", self.unread().len());
            }
        }
        into.extend_from_slice(&self.buffer[self.start..self.start + count]);
        self.consume(count);
    }

    /// The next answer (also an interim one, as 100); None when the connection closed cleanly
    /// before its first byte.
    pub fn try_read(&mut self, method: &str) -> io::Result<Option<Response>> {
        let Some(mut response) = self.read_head(method)? else { return Ok(None) };
        self.read_body(&mut response)?;
        Ok(Some(response))
    }

    /// The next answer, which has to come.
    #[track_caller]
    pub fn read(&mut self, method: &str) -> Response {
        match self.try_read(method) {
            Ok(Some(response)) => response,
            Ok(None) => panic!("the connection closed without an answer to {method}"),
            Err(error) => panic!("no answer to {method}: {error}"),
        }
    }

    /// Reads answers until the connection ends in whatever way; what came before that.
    pub fn read_all(&mut self) -> Vec<Response> {
        let mut responses = Vec::new();
        while let Ok(Some(response)) = self.try_read("GET") {
            responses.push(response);
        }
        responses
    }

    /// Whether the server ends this connection within `within`, without sending anything more.
    pub fn is_ended(&mut self, within: Duration) -> bool {
        match self.fill(Instant::now() + within) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() != io::ErrorKind::TimedOut,
        }
    }

    #[track_caller]
    pub fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> Response {
        self.send(&request_bytes(method, target, headers, body)).expect("sending a request");
        self.read(method)
    }

    #[track_caller]
    pub fn get(&mut self, key: impl AsRef<[u8]>) -> Response {
        self.request("GET", &entity(key), &[], None)
    }

    #[track_caller]
    pub fn head(&mut self, key: impl AsRef<[u8]>) -> Response {
        self.request("HEAD", &entity(key), &[], None)
    }

    #[track_caller]
    pub fn put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Response {
        self.request("PUT", &entity(key), &[], Some(value.as_ref()))
    }

    #[track_caller]
    pub fn delete(&mut self, key: impl AsRef<[u8]>) -> Response {
        self.request("DELETE", &entity(key), &[], None)
    }

    /// `put` that has to be answered 201.
    #[track_caller]
    pub fn store(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.put(key, value).expect(201, "PUT");
    }

    /// The value of a key, None for 404; anything else fails the test.
    #[track_caller]
    pub fn value(&mut self, key: impl AsRef<[u8]>) -> Option<Vec<u8>> {
        let key = key.as_ref();
        let response = self.get(key);
        match response.status {
            200 => Some(response.body),
            404 => None,
            _ => panic!("GET of {:?}: {} {}", String::from_utf8_lossy(key), response.status, response.text()),
        }
    }

    /// Puts all records, `depth` of them a write; each has to be answered 201.
    #[track_caller]
    pub fn store_all<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &mut self,
        records: impl IntoIterator<Item = (K, V)>,
        depth: usize,
    ) {
        let mut records = records.into_iter();
        loop {
            let (mut batch, mut count) = (Vec::new(), 0);
            for (key, value) in records.by_ref().take(depth) {
                batch.extend_from_slice(&put_bytes(key, value.as_ref()));
                count += 1;
            }
            if count == 0 {
                return;
            }
            self.send(&batch).expect("sending a batch of PUT");
            for _ in 0..count {
                self.read("PUT").expect(201, "PUT in a batch");
            }
        }
    }

    /// Gets all keys, `depth` of them a write, and hands each answer to `check` in order.
    #[track_caller]
    pub fn fetch_all<K: AsRef<[u8]>>(
        &mut self,
        keys: impl IntoIterator<Item = K>,
        depth: usize,
        mut check: impl FnMut(&[u8], Response),
    ) {
        let mut keys = keys.into_iter();
        loop {
            let batch: Vec<K> = keys.by_ref().take(depth).collect();
            if batch.is_empty() {
                return;
            }
            let bytes: Vec<u8> = batch.iter().flat_map(|key| get_bytes(key.as_ref())).collect();
            self.send(&bytes).expect("sending a batch of GET");
            for key in batch {
                let response = self.read("GET");
                check(key.as_ref(), response);
            }
        }
    }

    /// A range as (key, value) pairs, for keys without a line end in them.
    #[track_caller]
    pub fn range(&mut self, query: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let response = self.request("GET", &format!("/v0/entities?{query}"), &[], None).expect(200, query);
        assert_eq!(response.framing, Framing::Chunked, "a range over HTTP/1.1 is chunked");
        response.chunks.iter().map(|chunk| split_record(chunk)).collect()
    }
}

/// A chunk of a range cut at its first line end.
#[track_caller]
pub fn split_record(chunk: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let end = chunk.iter().position(|&byte| byte == b'\n').expect("a chunk of a range has key, line end, value");
    (chunk[..end].to_vec(), chunk[end + 1..].to_vec())
}

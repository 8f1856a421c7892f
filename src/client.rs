//! `koltso get|put|delete|scan`: one request for people and scripts, over a blocking socket.
//!
//! Values go to standard output as they are. Exit codes: 0 done, 1 there is no such key, 2 anything else, with one
//! sentence on standard error.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::units::Span;

const TIMEOUT: Duration = Duration::from_secs(30);
const HEAD_MAX: usize = 64 << 10;

/// Which server, and how many replicas.
#[derive(Args)]
struct Target {
    /// The server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:1337")]
    url: String,
}

/// How many replicas have to answer.
#[derive(Args)]
struct Quorum {
    /// Replicas that must answer [default: the quorum of --from]
    #[arg(long, value_name = "N")]
    ack: Option<u32>,
    /// Replicas that are asked [default: all nodes]
    #[arg(long, value_name = "N")]
    from: Option<u32>,
}

/// `koltso get`
#[derive(Args)]
pub struct Get {
    /// The key
    key: String,
    #[command(flatten)]
    quorum: Quorum,
    #[command(flatten)]
    target: Target,
}

/// `koltso put`
#[derive(Args)]
pub struct Put {
    /// The key
    key: String,
    /// The value; standard input if it is left out or `-`
    value: Option<String>,
    /// The key is gone after this time, such as 10s
    #[arg(long, value_name = "DURATION")]
    ttl: Option<Span>,
    #[command(flatten)]
    quorum: Quorum,
    #[command(flatten)]
    target: Target,
}

/// `koltso delete`
#[derive(Args)]
pub struct Delete {
    /// The key
    key: String,
    #[command(flatten)]
    quorum: Quorum,
    #[command(flatten)]
    target: Target,
}

/// `koltso scan`: a line a record, KEY, tab, size of the value
#[derive(Args)]
pub struct Scan {
    /// The first key
    start: String,
    /// The end, not included
    end: Option<String>,
    /// The most records
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Print each key and each value on lines of their own instead of the size
    #[arg(long)]
    values: bool,
    #[command(flatten)]
    target: Target,
}

/// What a command came to.
pub enum Done {
    /// It was done.
    Yes,
    /// There is no such key.
    Absent,
}

/// Runs a command and says what went wrong, if anything did.
pub fn run(command: impl FnOnce() -> Result<Done, String>) -> ExitCode {
    match command() {
        Ok(Done::Yes) => ExitCode::SUCCESS,
        Ok(Done::Absent) => {
            eprintln!("koltso: there is no such key");
            ExitCode::from(1)
        }
        Err(sentence) => {
            eprintln!("koltso: {sentence}");
            ExitCode::from(2)
        }
    }
}

/// Everything but RFC 3986's unreserved characters as `%XX`.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(byte.into());
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// An answer whose head was read.
struct Answer {
    status: u16,
    length: Option<u64>,
    chunked: bool,
    body: BufReader<TcpStream>,
}

impl Target {
    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Result<Answer, String> {
        let host = self.url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        let host = host.filter(|host| !host.is_empty() && !host.contains(['/', ' ', '?']));
        let host = host.ok_or_else(|| format!("--url {} is not a URL such as http://127.0.0.1:1337", self.url))?;
        let address = if host.rsplit(']').next().unwrap_or(host).contains(':') {
            host.to_owned()
        } else {
            format!("{host}:1337")
        };
        self.exchange(&address, host, method, path, body).map_err(|e| match e.kind() {
            io::ErrorKind::ConnectionRefused => format!("nobody listens at {}: is the server running?", self.url),
            _ => format!("{} did not answer: {e}", self.url),
        })
    }

    fn exchange(&self, address: &str, host: &str, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
        let socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        (&socket).write_all(head.as_bytes())?;
        // A server that refuses a body answers before it is sent whole: the answer says more than the broken pipe.
        let sent = (&socket).write_all(body);
        let answer = read_head(BufReader::new(socket));
        if answer.is_err() {
            sent?;
        }
        answer
    }
}

fn read_head(mut body: BufReader<TcpStream>) -> io::Result<Answer> {
    let garbage = || io::Error::new(io::ErrorKind::InvalidData, "this is not an HTTP answer");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let read = (&mut body).take((HEAD_MAX - head.len()) as u64).read_until(b'\n', &mut head)?;
        if read == 0 {
            return Err(garbage());
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Response::new(&mut headers);
    parsed.parse(&head).map_err(|_| garbage())?;
    let find = |name: &str| parsed.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value);
    let length = find("content-length").and_then(|v| std::str::from_utf8(v).ok()?.trim().parse().ok());
    let chunked = find("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case(b"chunked"));
    let status = parsed.code.ok_or_else(garbage)?;
    Ok(Answer { status, length, chunked, body })
}

impl Answer {
    /// The body of an answer that is no success, as the reason.
    fn refusal(self) -> String {
        let mut text = String::new();
        let _ = self.body.take(4096).read_to_string(&mut text);
        format!("the server answered {}: {}", self.status, text.lines().next().unwrap_or_default())
    }

    /// Copies a body of known length to standard output.
    fn print(mut self) -> Result<(), String> {
        let wrong = |e: io::Error| format!("the value could not be read or written: {e}");
        let mut out = io::stdout().lock();
        match self.length {
            Some(length) => {
                let copied = io::copy(&mut self.body.take(length), &mut out).map_err(wrong)?;
                if copied != length {
                    return Err(format!("the server sent {copied} of {length} bytes and closed"));
                }
            }
            None => drop(io::copy(&mut self.body, &mut out).map_err(wrong)?),
        }
        out.flush().map_err(wrong)
    }

    /// The next chunk, which is one record. `None` after the last.
    fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let garbage = || io::Error::new(io::ErrorKind::InvalidData, "the list is cut short");
        let mut line = String::new();
        (&mut self.body).take(64).read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim_end(), 16).map_err(|_| garbage())?;
        let mut record = Vec::new();
        let read = (&mut self.body).take(size as u64 + 2).read_to_end(&mut record)?;
        if read != size + 2 {
            return Err(garbage());
        }
        record.truncate(size);
        Ok((size > 0).then_some(record))
    }
}

impl Quorum {
    fn query(&self) -> String {
        let pair = |name: &str, value: Option<u32>| value.map_or(String::new(), |v| format!("&{name}={v}"));
        pair("ack", self.ack) + &pair("from", self.from)
    }
}

fn entity(key: &str, quorum: &Quorum) -> String {
    format!("/v0/entity?id={}{}", encoded(key), quorum.query())
}

impl Get {
    /// Prints the value.
    pub fn run(self) -> Result<Done, String> {
        let answer = self.target.ask("GET", &entity(&self.key, &self.quorum), &[])?;
        match answer.status {
            200 => answer.print().map(|()| Done::Yes),
            404 => Ok(Done::Absent),
            _ => Err(answer.refusal()),
        }
    }
}

impl Put {
    /// Stores the value.
    pub fn run(self) -> Result<Done, String> {
        let value = match self.value.as_deref() {
            None | Some("-") => {
                let mut value = Vec::new();
                io::stdin().lock().read_to_end(&mut value).map_err(|e| format!("standard input: {e}"))?;
                value
            }
            Some(text) => text.as_bytes().to_vec(),
        };
        let ttl = self.ttl.map_or(String::new(), |span| format!("&ttl={}", span.0.as_millis()));
        let answer = self.target.ask("PUT", &(entity(&self.key, &self.quorum) + &ttl), &value)?;
        if answer.status == 201 { Ok(Done::Yes) } else { Err(answer.refusal()) }
    }
}

impl Delete {
    /// Deletes the key.
    pub fn run(self) -> Result<Done, String> {
        let answer = self.target.ask("DELETE", &entity(&self.key, &self.quorum), &[])?;
        if answer.status == 202 { Ok(Done::Yes) } else { Err(answer.refusal()) }
    }
}

impl Scan {
    /// Prints the records.
    pub fn run(self) -> Result<Done, String> {
        let mut path = format!("/v0/entities?start={}", encoded(&self.start));
        if let Some(end) = &self.end {
            path += &format!("&end={}", encoded(end));
        }
        if let Some(limit) = self.limit {
            path += &format!("&limit={limit}");
        }
        let mut answer = self.target.ask("GET", &path, &[])?;
        if answer.status != 200 || !answer.chunked {
            return Err(answer.refusal());
        }
        let wrong = |e: io::Error| format!("the list could not be read or written: {e}");
        let mut out = io::BufWriter::new(io::stdout().lock());
        while let Some(record) = answer.chunk().map_err(wrong)? {
            let at = record.iter().position(|&b| b == b'\n').unwrap_or(record.len());
            let (key, value) = (&record[..at], record.get(at + 1..).unwrap_or_default());
            let print = |out: &mut dyn Write| {
                out.write_all(key)?;
                if self.values {
                    out.write_all(b"\n")?;
                    out.write_all(value)?;
                    out.write_all(b"\n")
                } else {
                    writeln!(out, "\t{}", value.len())
                }
            };
            print(&mut out).map_err(wrong)?;
        }
        out.flush().map_err(wrong)?;
        Ok(Done::Yes)
    }
}

//! `koltso get|put|delete|scan`: sends one request, for people and scripts.
//!
//! Values go to standard output unchanged. Exit codes: 0 if it was done, 1 if there is no such key,
//! 2 for anything else, with one sentence on standard error.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::commands::http_client::{BodyError, HttpAnswer, HttpRequest, Patience, Server};
use crate::logging;
use crate::units::Span;

const TIMEOUT: Duration = Duration::from_secs(30);
/// The most bytes of a record in a list: a key and the largest value that a server may be
/// configured to accept.
const RECORD_MAX: u64 = 33 << 20;

/// Which server to ask.
#[derive(Args)]
struct ServerUrl {
    /// The server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:1337")]
    url: String,
}

/// How many replicas have to answer, and how many are asked.
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
    server: ServerUrl,
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
    server: ServerUrl,
}

/// `koltso delete`
#[derive(Args)]
pub struct Delete {
    /// The key
    key: String,
    #[command(flatten)]
    quorum: Quorum,
    #[command(flatten)]
    server: ServerUrl,
}

/// `koltso scan`: prints a line for each record: KEY, tab, size of the value
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
    server: ServerUrl,
}

/// How a command ended.
pub enum Done {
    /// It did what it was told to.
    Yes,
    /// There is no such key.
    Absent,
}

/// Runs a command and prints what went wrong, if anything did.
pub fn run(command: impl FnOnce() -> Result<Done, String>) -> ExitCode {
    match command() {
        Ok(Done::Yes) => ExitCode::SUCCESS,
        Ok(Done::Absent) => {
            logging::complain("there is no such key");
            ExitCode::from(1)
        }
        Err(sentence) => {
            logging::complain(&sentence);
            ExitCode::from(2)
        }
    }
}

/// Writes every byte as `%XX` except RFC 3986's unreserved characters and `/`.
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

impl ServerUrl {
    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Result<HttpAnswer, String> {
        let server = Server::of(&self.url)
            .ok_or_else(|| format!("--url {} is not a URL such as http://127.0.0.1:1337", self.url))?;
        let request = HttpRequest { method, path, token: None, body, patience: Patience::Idle(TIMEOUT) };
        server.ask(&request).map_err(|e| e.to_string())
    }
}

/// A reader of standard output that has seen enough and gone is no error.
fn written(result: io::Result<()>) -> Result<(), String> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("standard output: {error}")),
        _ => Ok(()),
    }
}

/// Copies a value to standard output.
fn print(mut answer: HttpAnswer) -> Result<(), String> {
    let mut out = io::stdout().lock();
    match answer.copy(&mut out, u64::MAX) {
        Ok(_) => written(out.flush()),
        Err(BodyError::Write(error)) => written(Err(error)),
        Err(error) => Err(format!("the value could not be read: {error}")),
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
        let answer = self.server.ask("GET", &entity(&self.key, &self.quorum), &[])?;
        match answer.status {
            200 => print(answer).map(|()| Done::Yes),
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
        let answer = self.server.ask("PUT", &(entity(&self.key, &self.quorum) + &ttl), &value)?;
        if answer.status == 201 { Ok(Done::Yes) } else { Err(answer.refusal()) }
    }
}

impl Delete {
    /// Deletes the key.
    pub fn run(self) -> Result<Done, String> {
        let answer = self.server.ask("DELETE", &entity(&self.key, &self.quorum), &[])?;
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
        let mut answer = self.server.ask("GET", &path, &[])?;
        if answer.status != 200 || !answer.chunked {
            return Err(answer.refusal());
        }
        let wrong = |e: io::Error| format!("the list could not be read: {e}");
        let mut out = io::BufWriter::new(io::stdout().lock());
        while let Some(record) = answer.chunk(RECORD_MAX).map_err(wrong)? {
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
            if let Err(error) = print(&mut out) {
                return written(Err(error)).map(|()| Done::Yes);
            }
        }
        written(out.flush()).map(|()| Done::Yes)
    }
}

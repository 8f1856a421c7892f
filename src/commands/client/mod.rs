//! `koltso get|put|delete|scan`: sends one request, for people and scripts.
//!
//! - `scan.rs`: the records of a range. `show.rs`: bytes as text, as JSON and in base64.
//!
//! Values go to standard output unchanged, unless that is a terminal, which gets a line end and
//! nothing that could change its state. Exit codes: 0 if it was done, 1 if there is no such key, 2
//! for anything else, with one sentence on standard error. A server whose answer no node would give
//! is asked about, by its URL: nobody should learn "no such key" from another web server.

mod scan;
mod show;

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use koltso_model::VALUE_MAX_LIMIT;
use serde_json::{Map, Value};

pub use self::scan::Scan;
use crate::commands::http_client::{BodyError, HttpAnswer, HttpRequest, Patience, Server};
use crate::logging;
use crate::units::{Span, whole};

/// The end of the help of commands that have keys.
const KEYS: &str = "Keys are any bytes, as the shell gives them ($'a\\nb', $'\\xff'), or base64 with --base64. \
Exit code 0: done; 1: there is no such key (get); 2: anything else, with one sentence.";

/// About 2700 years, far below what a node takes.
const TTL_MAX: Duration = Duration::from_secs(1_000_000 * 24 * 3600);

/// Which server to ask, and how long to wait for it.
#[derive(Args)]
pub struct Connection {
    /// The server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:1337", value_parser = server)]
    url: Server,
    /// How long to wait for the answer to begin, and then for each piece of it
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    timeout: Span,
}

/// How many replicas have to answer, and how many are asked.
#[derive(Args)]
struct Quorum {
    /// Replicas that must answer [default: the quorum of --from]
    #[arg(long, value_name = "N", value_parser = whole::<u32>)]
    ack: Option<u32>,
    /// Replicas that are asked [default: all nodes]
    #[arg(long, value_name = "N", value_parser = whole::<u32>)]
    from: Option<u32>,
}

/// A key, and how it is given.
#[derive(Args)]
struct GivenKey {
    /// The key
    key: OsString,
    /// KEY is given in base64
    #[arg(long)]
    base64: bool,
}

/// `koltso get`
#[derive(Args)]
#[command(after_help = KEYS)]
pub struct Get {
    #[command(flatten)]
    key: GivenKey,
    /// Print a JSON object: {"key":"a","value":"b","etag":"…","content_type":"…"}; what is no UTF-8
    /// is in base64, as key_base64 or value_base64
    #[arg(long)]
    json: bool,
    /// Print the value as it is to a terminal, too, even if it is no text
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    #[command(flatten)]
    quorum: Quorum,
    #[command(flatten)]
    connection: Connection,
}

/// `koltso put`
#[derive(Args)]
#[command(after_help = KEYS)]
pub struct Put {
    #[command(flatten)]
    key: GivenKey,
    /// The value; standard input if it is left out or `-`
    value: Option<OsString>,
    /// A file with the value
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    file: Option<PathBuf>,
    /// The key is gone after this time, such as 10s
    #[arg(long, value_name = "DURATION", value_parser = ttl)]
    ttl: Option<Span>,
    #[command(flatten)]
    quorum: Quorum,
    #[command(flatten)]
    connection: Connection,
}

/// `koltso delete`
#[derive(Args)]
#[command(after_help = KEYS)]
pub struct Delete {
    #[command(flatten)]
    key: GivenKey,
    #[command(flatten)]
    quorum: Quorum,
    #[command(flatten)]
    connection: Connection,
}

fn server(url: &str) -> Result<Server, String> {
    Server::of(url).map_err(|refusal| format!("it {refusal}"))
}

/// A time to live: a record has 48 bits for when it expires, in milliseconds since 1970.
fn ttl(text: &str) -> Result<Span, String> {
    let span: Span = text.parse()?;
    if span.0 <= TTL_MAX { Ok(span) } else { Err("the longest time to live is 1000000d".to_owned()) }
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
fn encoded(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(byte.into());
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// The bytes of a key that was given as the argument `name`.
fn key_bytes(name: &str, given: &OsStr, base64: bool) -> Result<Vec<u8>, String> {
    if !base64 {
        return Ok(given.as_bytes().to_vec());
    }
    let bytes = given.to_str().and_then(show::of_base64);
    bytes.ok_or_else(|| format!("{name} is not base64 such as Zm9v, as --base64 says"))
}

impl Connection {
    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Result<HttpAnswer, String> {
        let request = HttpRequest { method, path, token: None, body, patience: Patience::Idle(self.timeout.0) };
        self.url.ask(&request).map_err(|e| e.to_string())
    }

    /// The question that follows an answer of somebody else.
    fn is_it_a_node(&self, answer: &HttpAnswer) -> String {
        let url = self.url.url();
        format!("{url} answered {} as no node of Koltso does: is this a node of Koltso?", answer.status)
    }

    /// A sentence for an answer that is no success.
    fn refusal(&self, answer: HttpAnswer) -> String {
        if answer.is_refusal_of_a_node() { answer.refusal() } else { self.is_it_a_node(&answer) }
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

/// The whole value, in memory.
fn whole_value(answer: &mut HttpAnswer) -> Result<Vec<u8>, String> {
    let mut value = Vec::new();
    let copied = answer.copy(&mut value, VALUE_MAX_LIMIT as u64);
    copied.map_err(|error| format!("the value could not be read: {error}"))?;
    Ok(value)
}

/// Prints a value for a person: with a line end, and nothing that changes the terminal.
fn print_to_terminal(mut answer: HttpAnswer) -> Result<(), String> {
    let mut value = whole_value(&mut answer)?;
    if !show::is_text(&value) {
        return Err(format!(
            "the value has {} bytes, and not all are text: send it to a file, or give --json or --raw",
            value.len()
        ));
    }
    if value.last() != Some(&b'\n') {
        value.push(b'\n');
    }
    let mut out = io::stdout().lock();
    written(out.write_all(&value).and_then(|()| out.flush()))
}

impl Quorum {
    fn query(&self) -> String {
        let pair = |name: &str, value: Option<u32>| value.map_or(String::new(), |v| format!("&{name}={v}"));
        pair("ack", self.ack) + &pair("from", self.from)
    }
}

impl GivenKey {
    fn bytes(&self) -> Result<Vec<u8>, String> {
        key_bytes("KEY", &self.key, self.base64)
    }

    fn path(&self, quorum: &Quorum) -> Result<String, String> {
        Ok(format!("/v0/entity?id={}{}", encoded(&self.bytes()?), quorum.query()))
    }
}

impl Get {
    /// Prints the value.
    pub fn run(self) -> Result<Done, String> {
        let answer = self.connection.ask("GET", &self.key.path(&self.quorum)?, &[])?;
        match answer.status {
            200 if answer.has_a_version() => {}
            // Another server's 404 says nothing of a key.
            404 if answer.is_refusal_of_a_node() => {
                let question = self.connection.is_it_a_node(&answer);
                return if answer.sentence() == "There is no such key." { Ok(Done::Absent) } else { Err(question) };
            }
            _ => return Err(self.connection.refusal(answer)),
        }
        let done = match (self.json, !self.raw && io::stdout().is_terminal()) {
            (true, _) => self.print_json(answer),
            (false, true) => print_to_terminal(answer),
            (false, false) => print(answer),
        };
        done.map(|()| Done::Yes)
    }

    fn print_json(&self, mut answer: HttpAnswer) -> Result<(), String> {
        let value = whole_value(&mut answer)?;
        let mut object = Map::new();
        show::add(&mut object, "key", &self.key.bytes()?);
        show::add(&mut object, "value", &value);
        for (field, header) in
            [("etag", "etag"), ("content_type", "content-type"), ("content_encoding", "content-encoding")]
        {
            if let Some(text) = answer.header(header) {
                object.insert(field.to_owned(), text.into());
            }
        }
        written(writeln!(io::stdout().lock(), "{}", Value::Object(object)))
    }
}

impl Put {
    /// Stores the value.
    pub fn run(self) -> Result<Done, String> {
        let path = self.key.path(&self.quorum)?;
        let value = match (&self.file, self.value.as_deref()) {
            (Some(path), _) => {
                let from = |e| format!("--file {}: {e}", path.display());
                bounded(File::open(path).map_err(from)?).map_err(from)?
            }
            (None, None) => standard_input()?,
            (None, Some(text)) if text == "-" => standard_input()?,
            (None, Some(text)) => text.as_bytes().to_vec(),
        };
        let ttl = self.ttl.map_or(String::new(), |span| format!("&ttl={}", span.0.as_millis()));
        let answer = self.connection.ask("PUT", &(path + &ttl), &value)?;
        if answer.status == 201 && answer.has_a_version() {
            Ok(Done::Yes)
        } else {
            Err(self.connection.refusal(answer))
        }
    }
}

fn standard_input() -> Result<Vec<u8>, String> {
    if io::stdin().is_terminal() {
        logging::say("the value is read from the terminal; Ctrl-D at the beginning of a line ends it");
    }
    bounded(io::stdin().lock()).map_err(|e| format!("standard input: {e}"))
}

/// Reads a value, which no server takes if it is larger than that.
fn bounded(from: impl Read) -> io::Result<Vec<u8>> {
    let mut value = Vec::new();
    from.take(VALUE_MAX_LIMIT as u64 + 1).read_to_end(&mut value)?;
    if value.len() > VALUE_MAX_LIMIT {
        return Err(io::Error::other("the value is larger than 32MiB, the most that any server takes"));
    }
    Ok(value)
}

impl Delete {
    /// Deletes the key.
    pub fn run(self) -> Result<Done, String> {
        let answer = self.connection.ask("DELETE", &self.key.path(&self.quorum)?, &[])?;
        let is_of_a_node = answer.header("x-content-type-options").is_some();
        if answer.status == 202 && is_of_a_node { Ok(Done::Yes) } else { Err(self.connection.refusal(answer)) }
    }
}

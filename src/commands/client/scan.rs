//! `koltso scan`: the records of a range, a line each.
//!
//! The node is asked for records with their lengths (`format=lengths`), since a key may have line
//! ends in it. A node that does not know that parameter yet is asked again without it, and keys end
//! at the first line end then.
//!
//! Bounds: one record in memory at a time, of at most [`RECORD_MAX`] bytes; as much as the node
//! says is not taken before it has come.

use std::ffi::OsString;
use std::io::{self, Read, Write};

use clap::Args;
use serde_json::{Map, Value, json};

use super::{Connection, Done, KEYS, encoded, key_bytes, show, written};
use crate::commands::http_client::HttpAnswer;
use crate::units::whole;

/// The most bytes of a record in a list: a key and the largest value that a server may be
/// configured to accept.
const RECORD_MAX: u64 = 33 << 20;
const RECORDS: &str = "application/vnd.koltso.records";

/// `koltso scan`
#[derive(Args)]
#[command(after_help = KEYS)]
pub struct Scan {
    /// The first key; all keys if it is left out or empty
    #[arg(default_value = "", hide_default_value = true)]
    start: OsString,
    /// The end, not included
    end: Option<OsString>,
    /// The most records
    #[arg(long, value_name = "N", value_parser = whole::<u64>)]
    limit: Option<u64>,
    /// Print each value in the line after its key, instead of its size
    #[arg(long)]
    values: bool,
    /// Print a JSON object for each record: {"key":"a","size":1}, or with --values
    /// {"key":"a","value":"b"}; what is no UTF-8 is in base64, as key_base64 or value_base64
    #[arg(long)]
    json: bool,
    /// Print keys and values as they are, without escapes
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// START and END are given in base64
    #[arg(long)]
    base64: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Scan {
    /// Prints the records.
    pub fn run(self) -> Result<Done, String> {
        let start = key_bytes("START", &self.start, self.base64)?;
        // The smallest key of all: a key has at least one byte.
        let start = if start.is_empty() { vec![0] } else { start };
        let mut path = format!("/v0/entities?start={}", encoded(&start));
        if let Some(end) = &self.end {
            path += &format!("&end={}", encoded(&key_bytes("END", end, self.base64)?));
        }
        if let Some(limit) = self.limit {
            path += &format!("&limit={limit}");
        }
        let mut answer = self.connection.ask("GET", &format!("{path}&format=lengths"), &[])?;
        if answer.status == 400 {
            answer = self.connection.ask("GET", &path, &[])?;
        }
        let with_lengths = answer.header("content-type").is_some_and(|kind| kind == RECORDS);
        let lines = answer.header("content-type").is_some_and(|kind| kind == "application/octet-stream");
        match answer.status {
            200 if with_lengths => self.print(|| record_with_lengths(&mut answer)),
            200 if lines && answer.chunked => self.print(|| record_in_a_chunk(&mut answer)),
            _ => Err(self.connection.refusal(answer)),
        }
    }

    fn print(&self, mut next: impl FnMut() -> io::Result<Option<(Vec<u8>, Vec<u8>)>>) -> Result<Done, String> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        loop {
            let record = match next() {
                Ok(record) => record,
                Err(error) => {
                    written(out.flush())?;
                    return Err(format!("the list could not be read: {error}"));
                }
            };
            let Some((key, value)) = record else { break };
            if let Err(error) = self.line(&mut out, &key, &value) {
                return written(Err(error)).map(|()| Done::Yes);
            }
        }
        written(out.flush()).map(|()| Done::Yes)
    }

    fn line(&self, out: &mut dyn Write, key: &[u8], value: &[u8]) -> io::Result<()> {
        if self.json {
            let mut object = Map::new();
            show::add(&mut object, "key", key);
            if self.values {
                show::add(&mut object, "value", value);
            } else {
                object.insert("size".to_owned(), json!(value.len()));
            }
            return writeln!(out, "{}", Value::Object(object));
        }
        self.text(out, key)?;
        if !self.values {
            return writeln!(out, "\t{}", value.len());
        }
        out.write_all(b"\n")?;
        self.text(out, value)?;
        out.write_all(b"\n")
    }

    fn text(&self, out: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
        if self.raw { out.write_all(bytes) } else { out.write_all(show::escaped(bytes).as_bytes()) }
    }
}

/// The next record of an answer with lengths; `None` at its end.
fn record_with_lengths(answer: &mut HttpAnswer) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut lengths = [0; 8];
    let first = answer.read(&mut lengths)?;
    if first == 0 {
        return Ok(None);
    }
    answer.read_exact(&mut lengths[first..])?;
    let length = |at: usize| u64::from(u32::from_le_bytes([0, 1, 2, 3].map(|byte| lengths[at + byte])));
    let (key, value) = (length(0), length(4));
    if key + value > RECORD_MAX {
        let sentence = format!("a record of {} bytes, more than {RECORD_MAX}", key + value);
        return Err(io::Error::new(io::ErrorKind::InvalidData, sentence));
    }
    let mut take = |count: u64| {
        let mut bytes = Vec::new();
        let read = answer.by_ref().take(count).read_to_end(&mut bytes)? as u64;
        if read == count { Ok(bytes) } else { Err(io::Error::from(io::ErrorKind::UnexpectedEof)) }
    };
    Ok(Some((take(key)?, take(value)?)))
}

/// The next record of an answer with a chunk for each.
fn record_in_a_chunk(answer: &mut HttpAnswer) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let Some(mut key) = answer.chunk(RECORD_MAX)? else { return Ok(None) };
    let at = key.iter().position(|&b| b == b'\n').unwrap_or(key.len());
    let value = key.get(at + 1..).unwrap_or_default().to_vec();
    key.truncate(at);
    Ok(Some((key, value)))
}

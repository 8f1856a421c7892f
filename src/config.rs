//! What the server was told: flags, then the configuration file, then defaults; checked before anything is touched.
//!
//! Every flag of `serve` has the same name in the file (`max-value = "1MiB"`; underscores do too), and a flag wins over
//! the file. What is out of range is an error with the value and the range in it.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use koltso_storage::{SyncMode, VALUE_MAX_LIMIT};
use serde::Deserialize;

use crate::units::{Size, Span};

/// The most data cores.
const THREADS_MAX: usize = 256;

/// The flags of `serve`, as given.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Flags {
    /// Where to serve HTTP [default: 127.0.0.1:1337]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// The data folder [default: ./koltso-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Number of data cores, one thread each [default: the processors this process may use]
    #[arg(long, value_name = "CORES")]
    threads: Option<usize>,
    /// When writes reach the disk: `always` before they are acknowledged, a duration such as `1s` after that at the
    /// latest, `os` when the kernel likes [default: 1s]
    #[arg(long, value_name = "MODE")]
    sync: Option<String>,
    /// The largest value, up to 32MiB [default: 16MiB]
    #[arg(long, value_name = "SIZE")]
    max_value: Option<Size>,
    /// The most connections; past it, new ones are closed at accept [default: 10000]
    #[arg(long, value_name = "N")]
    max_connections: Option<usize>,
    /// A request must be whole within this time (408), and a client must take some of its answer [default: 10s]
    #[arg(long, value_name = "DURATION")]
    request_timeout: Option<Span>,
    /// A connection that sends nothing for this long is closed [default: 5m]
    #[arg(long, value_name = "DURATION")]
    idle_timeout: Option<Span>,
    /// The most requests in flight a core; past it 503 [default: 16384]
    #[arg(long, value_name = "N")]
    max_in_flight: Option<usize>,
    /// The most bytes of request bodies being received a core; past it 503 [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    max_in_flight_bytes: Option<Size>,
    /// A listener of their own for /status and /metrics
    #[arg(long, value_name = "HOST:PORT")]
    admin_listen: Option<String>,
    /// A file with the token that /status and /metrics ask for (`Authorization: Bearer TOKEN`)
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    /// Compaction reads at most this many bytes a second [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    compaction_rate: Option<Size>,
    /// A TOML file with any of these settings
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
}

/// A configuration that was checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The HTTP address.
    pub listen: SocketAddr,
    /// The data folder.
    pub data: PathBuf,
    /// Data cores.
    pub threads: usize,
    /// When the log is synced.
    pub sync: SyncMode,
    /// Bytes.
    pub max_value: usize,
    /// Connections of the process.
    pub max_connections: usize,
    /// From a request's first byte to its last.
    pub request_timeout: Duration,
    /// Between requests.
    pub idle_timeout: Duration,
    /// Requests a core.
    pub max_in_flight: usize,
    /// Bytes of bodies a core.
    pub max_in_flight_bytes: usize,
    /// A second listener for the control plane.
    pub admin_listen: Option<SocketAddr>,
    /// What the control plane asks for.
    pub admin_token: Option<String>,
    /// Bytes a second.
    pub compaction_rate: u64,
}

fn address(name: &str, text: &str) -> Result<SocketAddr, String> {
    let wrong = |why: &str| format!("--{name} {text}: {why}, give HOST:PORT such as 127.0.0.1:1337");
    if let Ok(address) = SocketAddr::from_str(text) {
        return Ok(address);
    }
    let mut found = text.to_socket_addrs().map_err(|e| wrong(&e.to_string()))?;
    found.next().ok_or_else(|| wrong("the name has no address"))
}

fn sync_mode(text: &str) -> Result<SyncMode, String> {
    match text {
        "os" => Ok(SyncMode::Os),
        "always" => Ok(SyncMode::Always),
        _ => Span::from_str(text)
            .map(|span| SyncMode::Every(span.0))
            .map_err(|_| format!("--sync {text} is none of os, always and a duration such as 1s")),
    }
}

fn in_range<T: PartialOrd + std::fmt::Display>(name: &str, value: T, least: T, most: T) -> Result<T, String> {
    if value < least || value > most {
        return Err(format!("--{name} {value} is out of range: it is {least} to {most}"));
    }
    Ok(value)
}

fn read_file(path: &Path) -> Result<Flags, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("--config {}: {e}", path.display()))?;
    let wrong = |e: toml::de::Error| {
        let message = e.message().split('\n').next().unwrap_or_default().to_owned();
        format!("--config {}: {message}", path.display())
    };
    let table: toml::Table = toml::from_str(&text).map_err(wrong)?;
    let dashed: toml::Table = table.into_iter().map(|(name, value)| (name.replace('_', "-"), value)).collect();
    dashed.try_into().map_err(wrong)
}

/// Processors that this process may use.
pub fn allowed_processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Flags {
    /// Reads the configuration file, fills in the defaults and checks everything.
    ///
    /// # Errors
    /// One sentence that says which setting is wrong and what it may be.
    pub fn check(self) -> Result<Config, String> {
        let file = self.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let listen = self.listen.or(file.listen).unwrap_or_else(|| "127.0.0.1:1337".to_owned());
        let admin_listen = self.admin_listen.or(file.admin_listen);
        let size = |name: &str, flag: Option<Size>, file: Option<Size>, default: u64, most: u64| {
            in_range(name, flag.or(file).unwrap_or(Size(default)).0, 1, most)
        };
        let max_value = size("max-value", self.max_value, file.max_value, 16 << 20, VALUE_MAX_LIMIT as u64)? as usize;
        let in_flight_bytes = (self.max_in_flight_bytes, file.max_in_flight_bytes);
        let max_in_flight_bytes =
            size("max-in-flight-bytes", in_flight_bytes.0, in_flight_bytes.1, 256 << 20, 1 << 40)? as usize;
        let compaction_rate = size("compaction-rate", self.compaction_rate, file.compaction_rate, 64 << 20, 1 << 40)?;
        let count = |name: &str, flag: Option<usize>, file: Option<usize>, default: usize, most: usize| {
            in_range(name, flag.or(file).unwrap_or(default), 1, most)
        };
        let span = |flag: Option<Span>, file: Option<Span>, default: u64| {
            flag.or(file).map_or(Duration::from_secs(default), |span| span.0)
        };
        let token_file = self.admin_token_file.or(file.admin_token_file);
        let admin_token = token_file.as_deref().map(read_token).transpose()?;
        Ok(Config {
            listen: address("listen", &listen)?,
            data: self.data.or(file.data).unwrap_or_else(|| PathBuf::from("koltso-data")),
            threads: count("threads", self.threads, file.threads, allowed_processors(), THREADS_MAX)?,
            sync: sync_mode(&self.sync.or(file.sync).unwrap_or_else(|| "1s".to_owned()))?,
            max_value,
            max_connections: count("max-connections", self.max_connections, file.max_connections, 10_000, 10_000_000)?,
            request_timeout: span(self.request_timeout, file.request_timeout, 10),
            idle_timeout: span(self.idle_timeout, file.idle_timeout, 300),
            max_in_flight: count("max-in-flight", self.max_in_flight, file.max_in_flight, 16_384, 1 << 30)?,
            max_in_flight_bytes,
            admin_listen: admin_listen.map(|text| address("admin-listen", &text)).transpose()?,
            admin_token,
            compaction_rate,
        })
    }
}

fn read_token(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("--admin-token-file {}: {e}", path.display()))?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("--admin-token-file {} does not hold one token of printable characters", path.display()));
    }
    Ok(token.to_owned())
}

/// The sync mode as its flag has it.
pub fn sync_text(mode: SyncMode) -> String {
    match mode {
        SyncMode::Os => "os".to_owned(),
        SyncMode::Always => "always".to_owned(),
        SyncMode::Every(interval) => Span(interval).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "listen = \"127.0.0.1:9\"\nmax_value = 77\nthreads = 3\nsync = \"os\"\n")
            .expect("written");
        let flags = Flags { config: Some(file.path().to_path_buf()), threads: Some(1), ..Flags::default() };
        let config = flags.check().expect("valid");
        assert_eq!((config.threads, config.max_value, config.sync), (1, 77, SyncMode::Os));
        assert_eq!((config.listen.port(), config.max_connections), (9, 10_000));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_range() {
        let wrong = |flags: Flags| flags.check().expect_err("out of range");
        let message = wrong(Flags { threads: Some(0), ..Flags::default() });
        assert!(message.contains("--threads 0") && message.contains("1 to 256"), "{message}");
        assert!(wrong(Flags { sync: Some("soon".into()), ..Flags::default() }).contains("soon"));
        assert!(wrong(Flags { listen: Some("nowhere".into()), ..Flags::default() }).contains("nowhere"));
        assert!(wrong(Flags { max_value: Some(Size(1 << 30)), ..Flags::default() }).contains("33554432"));
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "colour = 1\n").expect("written");
        let message = wrong(Flags { config: Some(file.path().to_path_buf()), ..Flags::default() });
        assert!(message.contains("colour"), "{message}");
    }
}

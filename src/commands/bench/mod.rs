//! `koltso bench`: load at a constant rate, with latencies counted from when each request was due.
//!
//! The arguments, the schedule and the report are those of wrk2, so that either tool can take the
//! other's place; the keys are those of `scripts/lib.lua`. The README says what differs: how exact
//! the timer is, how long the warm-up lasts, and that a request that fails is sent again.
//!
//! Owner: the main thread prints, and waits for the other threads and for Ctrl-C. Each thread of
//! the load has its own connections (`event_loop`) and its own counts (`tally`); it shares only a
//! flag to stop and two counters for the progress line.
//!
//! Bounds: those below, each with its sentence. The program ends at most the timeout and a second
//! after the duration. Exit codes: 0 if any answer was 2xx, 1 if none was, 2 for an error before
//! the run. Tested in each file and in `tests/bench.rs`.

mod answer;
mod event_loop;
mod given;
mod pace;
mod print;
mod tally;
mod work;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::logging;
use crate::settings::{Grammar as _, Url};
use crate::units::{Size, whole};
use crate::usage;
use event_loop::{EventLoop, LoadNode, RunState, Times, clock};
use given::{AsGiven, as_given, count, mix, number_within, time, within};
use pace::Pace;
use tally::{FAILURES, Failure, Tally};
use work::{KEYS_MAX, Mix, Templates, Work};

const THREADS: RangeInclusive<u64> = 1..=256;
/// A client address has no more ports than this for connections to one server.
const CONNECTIONS: RangeInclusive<u64> = 1..=60_000;
const RATE: RangeInclusive<u64> = 1..=100_000_000;
const DURATION: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(7 * 24 * 3600);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
const SIZE_MAX: u64 = 64 << 20;
/// wrk2 discards what it has recorded in its first ten seconds.
const WARMUP_MAX: Duration = Duration::from_secs(10);
const WARMUP_SHARE: u32 = 6;
/// Connections are made one after another, before the first request is due.
const CONNECT_EVERY: Duration = Duration::from_micros(50);
const CONNECT_AT_LEAST: Duration = Duration::from_millis(10);
/// Descriptors of this process that are not connections.
const OTHER_DESCRIPTORS: u64 = 64;

/// `koltso bench`
#[derive(Args)]
pub struct Bench {
    /// The servers; the connections are spread over them
    #[arg(value_name = "URL")]
    urls: Vec<String>,
    /// Threads
    #[arg(short = 't', long, value_name = "N", default_value = "2", value_parser = as_given(count))]
    threads: AsGiven<u64>,
    /// Connections, of all threads together
    #[arg(short = 'c', long, value_name = "N", default_value = "10", value_parser = as_given(count))]
    connections: AsGiven<u64>,
    /// Requests a second, of all connections together; required
    #[arg(short = 'R', long, value_name = "N", value_parser = as_given(count))]
    rate: Option<AsGiven<u64>>,
    /// How long, such as 60s or 1m
    #[arg(short = 'd', long, value_name = "DURATION", default_value = "10s", value_parser = as_given(time))]
    duration: AsGiven<Duration>,
    /// Print the whole percentile spectrum
    #[arg(short = 'L', long)]
    latency: bool,
    /// GET only, the default
    #[arg(long, group = "operation")]
    get: bool,
    /// PUT only
    #[arg(long, group = "operation")]
    put: bool,
    /// DELETE only
    #[arg(long, group = "operation")]
    delete: bool,
    /// Shares of GET and PUT, or of GET, PUT and DELETE, such as 80:20 or 80:15:5
    #[arg(long, value_name = "G:P[:D]", group = "operation", value_parser = mix)]
    mix: Option<Mix>,
    /// Number of different keys
    #[arg(long, value_name = "N", default_value = "100000", value_parser = as_given(count))]
    keys: AsGiven<u64>,
    /// Bytes in each value
    #[arg(long, value_name = "BYTES", default_value = "128")]
    size: Size,
    /// More of the query, such as "ack=2&from=3"
    #[arg(long, value_name = "QUERY", default_value = "")]
    query: String,
    /// Print one JSON document instead
    #[arg(long)]
    json: bool,
    /// Write the JSON document to a file, beside the report that is printed
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    json_file: Option<PathBuf>,
    /// How long to wait for an answer or a connection
    #[arg(short = 'T', long, value_name = "DURATION", default_value = "2s", value_parser = as_given(time))]
    timeout: AsGiven<Duration>,
    /// Record no latencies for this long at first [default: a sixth of the duration, 10s at most]
    #[arg(long, value_name = "DURATION", value_parser = as_given(time))]
    warmup: Option<AsGiven<Duration>>,
    /// Seed for the order of keys and operations
    #[arg(long, value_name = "N", default_value = "1", value_parser = whole::<u64>)]
    seed: u64,
}

/// A server, named by its URL.
struct LoadServer {
    url: String,
    host: String,
    address: SocketAddr,
}

impl LoadServer {
    fn of(url: &str) -> Result<Self, String> {
        let place = Url.parse(OsStr::new(url)).map_err(|refusal| format!("{url} {refusal}"))?;
        let address = place.resolve().map_err(|e| format!("the address of {url} cannot be found: {e}"))?;
        Ok(Self { url: place.url(), host: place.to_string(), address })
    }
}

/// A run whose arguments have been checked.
pub struct Plan {
    servers: Vec<LoadServer>,
    threads: usize,
    connections: usize,
    rate: u64,
    duration: Duration,
    warmup: Duration,
    timeout: Duration,
    mix: Mix,
    keys: u64,
    size: usize,
    query: String,
    seed: u64,
}

impl Bench {
    fn check(&self) -> Result<Plan, String> {
        let rate = self.rate.as_ref().ok_or("-R is missing: say how many requests a second, such as -R10000")?;
        if self.urls.is_empty() {
            return Err(usage::with::<Self>("bench", "a URL is missing, such as http://127.0.0.1:1337"));
        }
        let threads = number_within("-t", &self.threads, &THREADS)?;
        let connections = number_within("-c", &self.connections, &CONNECTIONS)?;
        if connections < threads {
            return Err(format!("-c {connections} is less than -t {threads}: each thread needs a connection"));
        }
        let duration = within("-d", &self.duration, &DURATION, (&"100ms", &"7d"))?;
        let warmup = match &self.warmup {
            Some(given) if given.value >= duration => {
                return Err(format!("--warmup {} leaves nothing of -d {}", given.text, self.duration.text));
            }
            Some(given) => given.value,
            None => WARMUP_MAX.min(duration / WARMUP_SHARE),
        };
        let query = self.query.trim_start_matches(['?', '&']);
        if query.contains(|c: char| c == '#' || !c.is_ascii_graphic()) {
            return Err(format!("--query `{query}` is not a query such as ack=2&from=3"));
        }
        if self.size.0 > SIZE_MAX {
            return Err(format!("--size {} is out of range: it is 0 to {}", self.size, Size(SIZE_MAX)));
        }
        let one = |get, put, delete| Mix { get, put, delete };
        Ok(Plan {
            servers: self.urls.iter().map(|url| LoadServer::of(url)).collect::<Result<_, _>>()?,
            threads: threads as usize,
            connections: connections as usize,
            rate: number_within("-R", rate, &RATE)?,
            duration,
            warmup,
            timeout: within("--timeout", &self.timeout, &TIMEOUT, (&"1ms", &"1h"))?,
            mix: match (self.put, self.delete, self.mix) {
                (_, _, Some(mix)) => mix,
                (true, ..) => one(0, 1, 0),
                (_, true, _) => one(0, 0, 1),
                _ => one(1, 0, 0),
            },
            keys: number_within("--keys", &self.keys, &(1..=KEYS_MAX))?,
            size: self.size.0 as usize,
            query: query.to_owned(),
            seed: self.seed,
        })
    }
}

impl Plan {
    fn urls(&self) -> Vec<&str> {
        self.servers.iter().map(|server| server.url.as_str()).collect()
    }

    fn times(&self) -> Times {
        let connecting = (CONNECT_EVERY * self.connections as u32).max(CONNECT_AT_LEAST);
        let begin = clock() + nanos(connecting);
        let (record, end) = (begin + nanos(self.warmup), begin + nanos(self.duration));
        Times { begin, record, end, timeout: nanos(self.timeout) }
    }

    /// A thread has every `threads`-th connection. The first request of connection i of c is due at
    /// i/c of the interval, so that all together are spread evenly.
    fn event_loop<'a>(&self, times: Times, thread: usize, shared: &'a RunState) -> io::Result<EventLoop<'a>> {
        let node = |server: &LoadServer| LoadNode {
            address: server.address,
            templates: Templates::new(&server.host, self.size, &self.query),
        };
        let work = Work::new(self.mix, self.keys, self.seed, thread, self.threads);
        let mut event_loop = EventLoop::new(times, self.servers.iter().map(node).collect(), work, shared)?;
        let interval = self.connections as f64 * 1e9 / self.rate as f64;
        for index in (thread..self.connections).step_by(self.threads) {
            let first = times.begin + (interval * index as f64 / self.connections as f64) as u64;
            let connecting = nanos(CONNECT_EVERY) * (self.connections - index) as u64;
            event_loop.add(index % self.servers.len(), times.begin - connecting, Pace::new(first, interval));
        }
        Ok(event_loop)
    }
}

fn nanos(span: Duration) -> u64 {
    span.as_nanos() as u64
}

/// Allows the process as many descriptors as the connections need.
fn allow_descriptors(connections: usize) -> Result<(), String> {
    let wanted = connections as u64 + OTHER_DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).map_err(|_| {
        let most = limit.maximum.unwrap_or_default();
        format!("-c {connections} needs {wanted} open files, and this process may have {most} (ulimit -n)")
    })
}

/// Runs the load and prints the results.
pub fn run(bench: Bench) -> ExitCode {
    match bench.run() {
        Ok(code) => code,
        Err(sentence) => {
            logging::complain(&sentence);
            ExitCode::from(2)
        }
    }
}

impl Bench {
    fn run(&self) -> Result<ExitCode, String> {
        let checked = self.check().map_err(|sentence| usage::after_a_flag::<Self>("bench", &sentence));
        let plan = Arc::new(checked?);
        allow_descriptors(plan.connections)?;
        let cannot = |e: io::Error| format!("the load cannot be run: {e}");
        // The file is created before the run, so that nobody waits a minute to learn that the
        // folder cannot be written to.
        let file = self.json_file.as_deref().map(|path| File::create(path).map_err(|e| unwritable(path, &e)));
        let mut file = file.transpose()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
        if !self.json {
            print(&print::head(&plan));
        }
        let (tally, seconds, interrupted) = runtime.block_on(load(&plan)).map_err(cannot)?;
        print(&if self.json {
            print::document(&plan, &tally, seconds, interrupted)
        } else {
            print::tail(&tally, seconds, self.latency)
        });
        if let (Some(file), Some(path)) = (&mut file, &self.json_file) {
            let document = print::document(&plan, &tally, seconds, interrupted);
            file.write_all(document.as_bytes()).map_err(|e| unwritable(path, &e))?;
        }
        if tally.successes() > 0 {
            return Ok(ExitCode::SUCCESS);
        }
        logging::complain(&format!("no request was answered 2xx: {}", reason(&tally, &plan.urls())));
        Ok(ExitCode::from(1))
    }
}

fn unwritable(path: &Path, error: &io::Error) -> String {
    format!("--json-file {} cannot be written: {error}", path.display())
}

/// Prints a text. A reader that has closed the pipe has seen enough.
fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Why no request succeeded: the failure that occurred most, with what the server says of it.
fn reason(tally: &Tally, urls: &[&str]) -> String {
    let urls = urls.join(", ");
    let said = |status: usize| {
        let sentence = u16::try_from(status).ok().and_then(|status| tally.sentences.get(&status));
        match sentence {
            Some(sentence) => format!(": {sentence}"),
            None if tally.has_strange_refusals => format!("; is {urls} a node of Koltso?"),
            None => String::new(),
        }
    };
    let answered = |status, count| format!("{count} answers had status {status}{}", said(status));
    let refusals = tally.statuses().map(|(status, count)| (count, answered(status, count)));
    let failures = FAILURES.iter().map(|&(name, failure)| {
        let count = tally.failures(failure);
        let question = match failure {
            Failure::Connect => format!("; does anybody listen at {urls}?"),
            Failure::Malformed => format!("; is {urls} a node of Koltso?"),
            _ => String::new(),
        };
        (count, format!("{count} failures of kind {name}{question}"))
    });
    let most = refusals.chain(failures).max_by_key(|&(count, _)| count).filter(|&(count, _)| count > 0);
    most.map_or("no request was due, or none ended".to_owned(), |(_, text)| text)
}

/// Runs all threads to their end; returns the counts, the seconds that they cover, and whether the
/// run was ended early.
async fn load(plan: &Arc<Plan>) -> io::Result<(Tally, f64, bool)> {
    // Before the first thread exists, so that no signal is missed.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let shared = Arc::new(RunState::default());
    let times = plan.times();
    let (sender, mut tallies) = mpsc::unbounded_channel();
    for index in 0..plan.threads {
        let (plan, flags, sender) = (plan.clone(), shared.clone(), sender.clone());
        let body = move || {
            let result = plan.event_loop(times, index, &flags).and_then(EventLoop::run);
            let _ = sender.send(result);
        };
        if let Err(e) = thread::Builder::new().name(format!("koltso-bench-{index}")).spawn(body) {
            shared.stop.store(true, Ordering::Relaxed);
            return Err(e);
        }
    }
    drop(sender);
    let mut progress = Progress::new(times);
    let mut second = tokio::time::interval(Duration::from_secs(1));
    let (mut sum, mut interrupted) = (Tally::new(), None);
    loop {
        tokio::select! {
            tally = tallies.recv() => match tally {
                Some(tally) => sum.add(&tally?),
                None => break,
            },
            _ = interrupt.recv() => interrupted = stop(&shared, interrupted),
            _ = terminate.recv() => interrupted = stop(&shared, interrupted),
            _ = second.tick() => progress.tell(&shared),
        }
    }
    // Answers that came after the end are counted, and so is the time they took.
    let end = interrupted.unwrap_or(times.end).max(sum.last_answer);
    let seconds = end.saturating_sub(times.begin).max(1) as f64 / 1e9;
    Ok((sum, seconds, interrupted.is_some()))
}

/// Ends the run; returns when it was first told to end.
fn stop(shared: &RunState, before: Option<u64>) -> Option<u64> {
    shared.stop.store(true, Ordering::Relaxed);
    before.or_else(|| Some(clock()))
}

/// Prints a line every second if somebody watches.
struct Progress {
    watched: bool,
    times: Times,
    told: (u64, u64),
}

impl Progress {
    fn new(times: Times) -> Self {
        Self { watched: io::stderr().is_terminal(), times, told: (0, clock()) }
    }

    fn tell(&mut self, shared: &RunState) {
        let (answers, now) = (shared.answers.load(Ordering::Relaxed), clock());
        let (before, since) = std::mem::replace(&mut self.told, (answers, now));
        let seconds = (now.saturating_sub(self.times.begin) + 500_000_000) / 1_000_000_000;
        if !self.watched || seconds == 0 {
            return;
        }
        let rate = (answers - before) as f64 * 1e9 / now.saturating_sub(since).max(1) as f64;
        let failures = shared.failures.load(Ordering::Relaxed);
        let warming = if now < self.times.record { ", warming up" } else { "" };
        let count = format!("{answers} in all, {failures} socket errors{warming}");
        logging::complain(&format!("{seconds} s: {rate:.0} requests/s, {count}"));
    }
}

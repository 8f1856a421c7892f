//! What a run of the load counted. Each thread has its own tally; they are added up when all
//! threads have ended.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::answer::Refusal;

/// A day in microseconds, with three digits: these are wrk2's bounds, so that its buckets are the
/// same as ours.
const LATENCY_MAX_US: u64 = 24 * 60 * 60 * 1_000_000;
const DIGITS: u8 = 3;
const STATUS_COUNT: usize = 1000;

/// Why a request got no answer on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection could not be made, or not in time.
    Connect,
    /// Reading from the socket failed.
    Read,
    /// Writing to the socket failed.
    Write,
    /// The answer was not complete in time.
    Timeout,
    /// The peer closed the connection before the answer was complete.
    Closed,
    /// The bytes that came are not an HTTP answer.
    Malformed,
}

/// All kinds of failure, with the names that they have in a report.
pub const FAILURES: [(&str, Failure); 6] = [
    ("connect", Failure::Connect),
    ("read", Failure::Read),
    ("write", Failure::Write),
    ("timeout", Failure::Timeout),
    ("closed", Failure::Closed),
    ("malformed", Failure::Malformed),
];

/// The counts of a run.
pub struct Tally {
    /// Microseconds from when a request was due to its answer, of the answers after the warm-up.
    pub latency: Histogram<u64>,
    /// Answers a second of one thread, each averaged over a tenth of a second after the warm-up.
    pub rates: Vec<f64>,
    pub answers: u64,
    /// All bytes that were read from the sockets.
    pub bytes: u64,
    /// How many connections were made again, because the server closed them or they were given up.
    pub reconnects: u64,
    /// When the last answer came, in nanoseconds of the monotonic clock.
    pub last_answer: u64,
    /// For each status of a refusal, the first line of the first one.
    pub sentences: BTreeMap<u16, String>,
    /// Some refusal was not that of a node of Koltso.
    pub has_strange_refusals: bool,
    statuses: Vec<u64>,
    failures: [u64; FAILURES.len()],
}

impl Tally {
    /// A tally that has counted nothing yet.
    pub fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX_US, DIGITS).expect("constant and valid bounds");
        Self {
            latency,
            rates: Vec::new(),
            answers: 0,
            bytes: 0,
            reconnects: 0,
            last_answer: 0,
            sentences: BTreeMap::new(),
            has_strange_refusals: false,
            statuses: vec![0; STATUS_COUNT],
            failures: [0; FAILURES.len()],
        }
    }

    /// Counts an answer.
    pub fn answered(&mut self, status: u16, now: u64) {
        self.answers += 1;
        self.last_answer = now;
        self.statuses[usize::from(status).min(STATUS_COUNT - 1)] += 1;
    }

    /// Keeps what the first refusal with a status says.
    pub fn refused(&mut self, status: u16, refusal: &Refusal) {
        self.has_strange_refusals |= !refusal.is_of_a_node;
        if refusal.is_of_a_node && !self.sentences.contains_key(&status) {
            let text = String::from_utf8_lossy(&refusal.body);
            let line = text.lines().next().unwrap_or_default().trim().replace(char::is_control, " ");
            self.sentences.insert(status, line);
        }
    }

    /// Counts a failure.
    pub fn failed(&mut self, failure: Failure) {
        self.failures[failure as usize] += 1;
    }

    /// How many failures of this kind there were.
    pub fn failures(&self, failure: Failure) -> u64 {
        self.failures[failure as usize]
    }

    /// How many failures there were.
    pub fn all_failures(&self) -> u64 {
        self.failures.iter().sum()
    }

    /// Each status that came, and how many answers had it.
    pub fn statuses(&self) -> impl Iterator<Item = (usize, u64)> {
        self.statuses.iter().copied().enumerate().filter(|&(_, count)| count > 0)
    }

    /// How many answers were 2xx.
    pub fn successes(&self) -> u64 {
        self.statuses[200..300].iter().sum()
    }

    /// How many answers were neither 2xx nor 3xx.
    pub fn refusals(&self) -> u64 {
        self.answers - self.statuses[200..400].iter().sum::<u64>()
    }

    /// Adds another thread's counts.
    pub fn add(&mut self, other: &Self) {
        self.latency.add(&other.latency).expect("the same bounds");
        self.rates.extend(&other.rates);
        self.answers += other.answers;
        self.bytes += other.bytes;
        self.reconnects += other.reconnects;
        self.last_answer = self.last_answer.max(other.last_answer);
        self.has_strange_refusals |= other.has_strange_refusals;
        for (&status, sentence) in &other.sentences {
            self.sentences.entry(status).or_insert_with(|| sentence.clone());
        }
        self.statuses.iter_mut().zip(&other.statuses).for_each(|(sum, count)| *sum += count);
        self.failures.iter_mut().zip(&other.failures).for_each(|(sum, count)| *sum += count);
    }
}

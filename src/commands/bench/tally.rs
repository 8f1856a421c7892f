//! What a load run counted. Each thread has its own tally; they are added up when all have ended.

use hdrhistogram::Histogram;

/// A day in microseconds, with three digits: wrk2's bounds, so that its buckets are ours.
const LATENCY_MAX_US: u64 = 24 * 60 * 60 * 1_000_000;
const DIGITS: u8 = 3;
const STATUS_COUNT: usize = 1000;

/// Why a request got no answer on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection, or not in time.
    Connect,
    /// Reading failed.
    Read,
    /// Writing failed.
    Write,
    /// No whole answer in time.
    Timeout,
    /// The peer closed before the answer was whole.
    Closed,
    /// What came is no HTTP answer.
    Malformed,
}

/// All of them, by the name they have in a report.
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
    /// Microseconds from when a request was due, of the answers after the warm-up.
    pub latency: Histogram<u64>,
    /// Answers a second of one thread, each over a tenth of a second after the warm-up.
    pub rates: Vec<f64>,
    pub answers: u64,
    /// All bytes that were read.
    pub bytes: u64,
    /// Connections made anew: closed by the server, or given up.
    pub reconnects: u64,
    /// When the last answer came.
    pub last_answer: u64,
    statuses: Vec<u64>,
    failures: [u64; FAILURES.len()],
}

impl Tally {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX_US, DIGITS).expect("constant and valid bounds");
        Self {
            latency,
            rates: Vec::new(),
            answers: 0,
            bytes: 0,
            reconnects: 0,
            last_answer: 0,
            statuses: vec![0; STATUS_COUNT],
            failures: [0; FAILURES.len()],
        }
    }

    /// An answer came.
    pub fn answered(&mut self, status: u16, now: u64) {
        self.answers += 1;
        self.last_answer = now;
        self.statuses[usize::from(status).min(STATUS_COUNT - 1)] += 1;
    }

    /// None came.
    pub fn failed(&mut self, failure: Failure) {
        self.failures[failure as usize] += 1;
    }

    /// How often it failed so.
    pub fn failures(&self, failure: Failure) -> u64 {
        self.failures[failure as usize]
    }

    /// How often it failed.
    pub fn all_failures(&self) -> u64 {
        self.failures.iter().sum()
    }

    /// Each status that came, and how often.
    pub fn statuses(&self) -> impl Iterator<Item = (usize, u64)> {
        self.statuses.iter().copied().enumerate().filter(|&(_, count)| count > 0)
    }

    /// Answers 2xx.
    pub fn successes(&self) -> u64 {
        self.statuses[200..300].iter().sum()
    }

    /// Answers neither 2xx nor 3xx.
    pub fn refusals(&self) -> u64 {
        self.answers - self.statuses[200..400].iter().sum::<u64>()
    }

    /// Takes another thread's counts in.
    pub fn add(&mut self, other: &Self) {
        self.latency.add(&other.latency).expect("the same bounds");
        self.rates.extend(&other.rates);
        self.answers += other.answers;
        self.bytes += other.bytes;
        self.reconnects += other.reconnects;
        self.last_answer = self.last_answer.max(other.last_answer);
        self.statuses.iter_mut().zip(&other.statuses).for_each(|(sum, count)| *sum += count);
        self.failures.iter_mut().zip(&other.failures).for_each(|(sum, count)| *sum += count);
    }
}

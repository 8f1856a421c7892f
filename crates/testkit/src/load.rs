//! A steady load from an open loop: each request has a moment when it is due, and its latency
//! counts from there, so a server that stalls is charged for every request that waited behind the
//! stall (no coordinated omission).
//!
//! Half of the requests are PUT, half GET of what the same worker wrote last, compared. Every
//! worker has keys of its own and one connection, to one of the given addresses. A failed request
//! is recorded, never retried.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::Client;
use crate::client::request_bytes;
use crate::cluster::{Quorum, entity_of};

const WORKERS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Report {
    /// Sorted.
    pub latencies: Vec<Duration>,
    pub failures: Vec<String>,
}

impl Report {
    /// The latency that a share of the requests did not exceed, in per mille.
    pub fn per_mille(&self, share: usize) -> Duration {
        let last = self.latencies.len().checked_sub(1).expect("latencies");
        self.latencies[(self.latencies.len() * share / 1000).min(last)]
    }

    pub fn longest(&self) -> Duration {
        *self.latencies.last().expect("latencies")
    }

    pub fn text(&self) -> String {
        format!(
            "{} requests, {} failed; p50 {:?}, p99 {:?}, p99.9 {:?}, longest {:?}",
            self.latencies.len(),
            self.failures.len(),
            self.per_mille(500),
            self.per_mille(990),
            self.per_mille(999),
            self.longest(),
        )
    }

    #[track_caller]
    pub fn assert_no_failures(&self, what: &str) {
        assert!(self.failures.is_empty(), "{what}: {}; the first: {}", self.text(), self.failures[0]);
    }
}

/// `rate` requests a second for `length`, while `during` does what is done to the cluster. The
/// prefix keeps the keys of two loads apart.
pub fn steady(
    prefix: &str,
    addresses: &[SocketAddr],
    quorum: Quorum,
    rate: u32,
    length: Duration,
    during: impl FnOnce(),
) -> Report {
    let start = Instant::now() + Duration::from_millis(50);
    let mut report = Report { latencies: Vec::new(), failures: Vec::new() };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let address = addresses[worker % addresses.len()];
                scope.spawn(move || work(&format!("{prefix}{worker}"), worker, address, quorum, rate, start, length))
            })
            .collect();
        during();
        for worker in workers {
            let (latencies, failures) = worker.join().expect("a worker of the load");
            report.latencies.extend(latencies);
            report.failures.extend(failures);
        }
    });
    report.latencies.sort_unstable();
    report
}

fn work(
    prefix: &str,
    worker: usize,
    address: SocketAddr,
    quorum: Quorum,
    rate: u32,
    start: Instant,
    length: Duration,
) -> (Vec<Duration>, Vec<String>) {
    let (mut latencies, mut failures) = (Vec::new(), Vec::new());
    let mut client: Option<Client> = None;
    let mut written: Option<(String, String)> = None;
    let connect = || Client::connect(address).map(|client| client.patience(PATIENCE));
    for turn in 0.. {
        let number = u32::try_from(turn * WORKERS + worker).unwrap();
        let after = Duration::from_secs(1) * number / rate;
        if after >= length {
            break;
        }
        let due = start + after;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let read = if turn % 2 == 1 { written.clone() } else { None };
        let outcome = (|| {
            if client.is_none() {
                client = Some(connect()?);
            }
            let client = client.as_mut().unwrap();
            let (method, bytes) = if let Some((key, _)) = &read {
                ("GET", request_bytes("GET", &entity_of(key, quorum), &[], None))
            } else {
                let key = format!("{prefix}-{}", turn % 50);
                let value = format!("value {turn} of {key}");
                let bytes = request_bytes("PUT", &entity_of(&key, quorum), &[], Some(value.as_bytes()));
                written = Some((key, value));
                ("PUT", bytes)
            };
            client.send(&bytes)?;
            let ended = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            client.try_read(method)?.ok_or_else(ended)
        })();
        latencies.push(due.elapsed());
        let at = start.elapsed();
        match (outcome, read) {
            (Ok(answer), Some((key, value))) if answer.status == 200 => {
                if answer.body != value.as_bytes() {
                    failures.push(format!("at {at:?} {address}: GET of {key}: {:?}, not {value:?}", answer.text()));
                }
            }
            (Ok(answer), None) if answer.status == 201 => {}
            (Ok(answer), _) => {
                failures.push(format!("at {at:?} {address}: {} {} {:?}", answer.status, answer.reason, answer.text()));
                written = None;
            }
            (Err(error), _) => {
                failures.push(format!("at {at:?} {address}: {error}"));
                (client, written) = (None, None);
            }
        }
    }
    (latencies, failures)
}

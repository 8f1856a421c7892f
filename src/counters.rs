//! What a data core counts: requests by kind and status with their latencies, connections, bytes,
//! limits that were hit, the lag of its loop.
//!
//! Each core counts for itself, in plain atomics that nobody else writes: a load and a store, no
//! locked instruction. `src/admin/metrics.rs` adds up the cores for `/metrics`, and tests it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use koltso_net::server::Event;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RequestKind {
    /// Anything that is none of the others: `/health`, unknown paths.
    Other,
    /// `GET /v0/entity`
    Get,
    /// `HEAD /v0/entity`
    Head,
    /// `PUT /v0/entity`
    Put,
    /// `DELETE /v0/entity`
    Delete,
    /// `GET /v0/entities`
    Range,
}

/// The kinds of request as labels, in the order of [`RequestKind`].
pub const OPERATIONS: [&str; 6] = ["other", "get", "head", "put", "delete", "range"];
/// The status codes with which the API answers; any other is counted as the last, 0.
pub const STATUSES: [u16; 23] =
    [200, 201, 202, 204, 206, 304, 400, 403, 404, 405, 408, 409, 412, 413, 416, 417, 431, 501, 503, 504, 507, 500, 0];
/// The upper bounds of the latency buckets, in microseconds.
pub const BOUNDS_US: [u64; 18] = [
    25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// Packs what `finished` needs to know about a request into the tag that travels with it.
#[inline]
pub const fn tag(kind: RequestKind, status: u16) -> u16 {
    kind as u16 * 1_000 + status
}

/// A number that only its core adds to.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    #[inline]
    fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed) + more, Ordering::Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many requests took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    /// By the bounds of [`BOUNDS_US`]; the last bucket has no bound.
    pub buckets: [Count; BOUNDS_US.len() + 1],
    /// All of them together, in nanoseconds.
    pub sum_ns: Count,
}

impl Histogram {
    #[inline]
    fn add(&self, elapsed: Duration) {
        let ns = elapsed.as_nanos() as u64;
        let us = ns / 1_000;
        let bucket = BOUNDS_US.iter().position(|&bound| us < bound).unwrap_or(BOUNDS_US.len());
        self.buckets[bucket].add(1);
        self.sum_ns.add(ns);
    }
}

/// The counters of one core.
#[derive(Debug, Default)]
pub struct CoreMetrics {
    /// The latencies, by the places in [`OPERATIONS`] and [`STATUSES`].
    pub latency: [[Histogram; STATUSES.len()]; OPERATIONS.len()],
    /// How late the event loop came round to a timer.
    pub loop_lag: Histogram,
    /// Connections accepted.
    pub accepted: Count,
    closed: Count,
    /// Bytes received from clients.
    pub bytes_in: Count,
    /// Bytes sent to clients.
    pub bytes_out: Count,
    /// How often each of [`LIMITS`] was hit.
    pub limits: [Count; LIMITS.len()],
}

/// The limits whose hits are counted, as labels.
pub const LIMITS: [&str; 12] = [
    "connections",
    "header_size",
    "body_size",
    "request_timeout",
    "idle_timeout",
    "write_timeout",
    "bad_request",
    "in_flight",
    "connections_per_address",
    "in_flight_per_address",
    "request_rate",
    "descriptors",
];

impl CoreMetrics {
    /// Counts a request that was answered, and the time it took.
    #[inline]
    pub fn finished(&self, tag: u16, elapsed: Duration) {
        let (operation, status) = (usize::from(tag / 1_000), tag % 1_000);
        let status = STATUSES.iter().position(|&s| s == status).unwrap_or(STATUSES.len() - 1);
        self.latency[operation.min(OPERATIONS.len() - 1)][status].add(elapsed);
    }

    /// Counts something that happened on a connection.
    #[inline]
    pub fn event(&self, event: Event) {
        let limit = match event {
            Event::BytesIn(n) => return self.bytes_in.add(n as u64),
            Event::BytesOut(n) => return self.bytes_out.add(n as u64),
            Event::Accepted => return self.accepted.add(1),
            Event::Closed => return self.closed.add(1),
            Event::ConnectionLimit => 0,
            Event::HeaderTooLarge => 1,
            Event::BodyTooLarge => 2,
            Event::RequestTimeout => 3,
            Event::IdleTimeout => 4,
            Event::WriteTimeout => 5,
            Event::BadRequest => 6,
            Event::Overloaded => 7,
            Event::AddressConnections => 8,
            Event::AddressRequests => 9,
            Event::SlowRequest => 10,
            Event::NoResources => 11,
        };
        self.limits[limit].add(1);
    }

    /// Counts that the event loop came round to a timer `late` after it was due.
    pub fn lagged(&self, late: Duration) {
        self.loop_lag.add(late);
    }
}

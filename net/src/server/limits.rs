//! What a server bounds, and by how much.

use std::time::Duration;

/// The limits of a server. Each says what happens when it is exceeded, which is also an
/// [`Event`](super::Event).
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a request head; a larger one is answered with `431`.
    pub header_max: usize,
    /// Bytes of a request body; a larger one is answered with `413`.
    pub body_max: usize,
    /// Connections of the process; further ones are closed at accept.
    pub connections_max: usize,
    /// Connections of one address (an IPv4 address, or a /64 of IPv6), which are closed at accept
    /// past it, and its requests in flight on a core, which are answered with `503` and
    /// `Retry-After: 1`.
    pub address_max: usize,
    /// The same for each address of this machine.
    pub loopback_max: usize,
    /// The longest time from a request's first byte to its last (`408`), and without progress in
    /// sending an answer (the connection is closed). A request that comes slower than 1 KiB a
    /// second for 5 s is ended before that (`408`).
    pub request_timeout: Duration,
    /// The longest time between requests; after it the connection is closed.
    pub idle_timeout: Duration,
    /// Requests of a core whose answers are not completely sent; further ones are answered with
    /// `503` and `Retry-After: 1`.
    pub requests_in_flight_max: usize,
    /// Bytes of request bodies that a core has received and not served yet. Past it, those of which
    /// nothing has come for 3 s give way, then further ones are answered with `503` and
    /// `Retry-After: 1`. What a client only announces does not count.
    pub body_bytes_max: usize,
    /// How long requests in flight may take after a drain has begun; then their connections are
    /// shut down.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_max: 16 * 1024,
            body_max: 16 * 1024 * 1024,
            connections_max: 10_000,
            address_max: 10_000,
            loopback_max: 10_000,
            request_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            requests_in_flight_max: 4096,
            body_bytes_max: 256 * 1024 * 1024,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

//! The server: accept loops, connections, deadlines, limits and drain, over monoio (io_uring or
//! epoll).
//!
//! Owner: [`serve`] runs on one core, and everything that it makes stays there; cores have only
//! [`Shared`] in common. The timer of the runtime must be enabled.
//!
//! Invariants:
//! 1. Answers leave in the order of their requests.
//! 2. No read, write or accept is dropped in flight: a deadline shuts the socket down, and the
//!    operation ends by itself.
//! 3. Everything that a connection holds is bounded: read buffer, output, body, requests in flight,
//!    time in each phase.
//!
//! Deliberately absent: a timer for each request, `select` over I/O, locks on a request's way, TLS.
//! Tested in `tests/` over real sockets on both drivers.

mod answers;
mod body;
mod connection;
mod core;
mod deadlines;
mod output;
mod requests;
mod service;
mod sink;

use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use monoio::net::TcpStream;

pub use service::{Admit, Answered, Event, Fill, Later, Outcome, Service, Source};
pub use sink::Sink;

use self::core::Core;
use crate::connections;
pub use crate::connections::Shared;
use crate::transport::{Tcp, Transport};

/// The limits of a server. Each says what happens when it is exceeded, which is also an [`Event`].
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a request head; a larger one is answered with `431`.
    pub header_max: usize,
    /// Bytes of a request body; a larger one is answered with `413`.
    pub body_max: usize,
    /// Connections of the process; further ones are closed at accept.
    pub connections_max: usize,
    /// The longest time from a request's first byte to its last (`408`), and without progress in
    /// sending an answer (the connection is closed).
    pub request_timeout: Duration,
    /// The longest time between requests; after it the connection is closed.
    pub idle_timeout: Duration,
    /// Requests of a core whose answers are not completely sent; further ones are answered with
    /// `503` and `Retry-After: 1`.
    pub requests_in_flight_max: usize,
    /// Bytes of request bodies that are being collected on a core; further bodies are answered with
    /// `503` and `Retry-After: 1`.
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
            request_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            requests_in_flight_max: 4096,
            body_bytes_max: 256 * 1024 * 1024,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Serves connections from `listener` on the current runtime until [`Shared::drain`] is called and
/// the requests in flight are done.
///
/// # Errors
/// Only if the listener cannot be used at all. If an accept fails, that is logged and the server
/// goes on.
pub async fn serve<S: Service>(
    listener: TcpListener,
    service: Rc<S>,
    limits: Limits,
    shared: Arc<Shared>,
) -> io::Result<()> {
    serve_over(listener, service, limits, shared, Tcp::new).await
}

/// As [`serve`], over what `carry` makes of accepted sockets.
pub(crate) async fn serve_over<S: Service, T: Transport>(
    listener: TcpListener,
    service: Rc<S>,
    limits: Limits,
    shared: Arc<Shared>,
    carry: impl Fn(TcpStream) -> T,
) -> io::Result<()> {
    let core = Rc::new(Core::new(service, limits, shared));
    connections::serve(&core, listener, |stream| core.accepted(stream, &carry)).await
}

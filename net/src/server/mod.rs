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
//! ```text
//! task       what a connection does next, until it ends
//! requests   from bytes to calls of the service      body    bodies that are still to come
//! output     sending, streaming, lingering
//! connection what a connection holds, and reading
//! calls      calls of the service, and the answers that the server gives by itself
//! next       what is to be done when nothing more can be handled at once
//! reservation   a body's share of the memory for bodies
//! core       what the connections of a core share    answers a batch before it is sent
//! receiving  how a request comes in                  bodies, asker   counts of a core
//! ```
//!
//! Files name only those below them.
//!
//! Deliberately absent: a timer for each request, `select` over I/O, locks on a request's way, TLS.
//! Tested in `tests/` over real sockets on both drivers.

mod answers;
mod asker;
mod bodies;
mod body;
mod calls;
mod connection;
mod core;
mod deadlines;
mod later;
mod limits;
mod next;
mod output;
mod pages;
mod receiving;
mod requests;
mod reservation;
mod service;
mod sink;
mod task;

use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;

use monoio::net::TcpStream;

pub use later::{Answered, Later};
pub use limits::Limits;
pub use service::{Admit, Event, Fill, Outcome, Service, Source};
pub use sink::Sink;

use self::connection::Connection;
use self::core::{HttpCore, HttpSeat};
use crate::connections;
pub use crate::connections::Shared;
use crate::transport::{Tcp, Transport};

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
    let core = Rc::new(HttpCore::new(service, limits, shared));
    let accepted = |stream, from| {
        if let Some(seat) = HttpSeat::take(&core, &stream, from) {
            monoio::spawn(Connection::new(seat, carry(stream)).run());
        }
    };
    connections::serve(&core, listener, accepted).await
}

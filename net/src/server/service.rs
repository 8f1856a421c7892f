//! What a program gives the server: a [`Service`], and the forms of its answers.
//!
//! Owner: everything here lives on one core and never leaves it. A panic in a service is not
//! caught: a broken invariant stops the whole process, not a part of it.

use std::future::Future;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::later::{Answered, Later, When};
use super::sink::Sink;
use crate::http::{Head, Reply};

/// The program behind the connections of one core.
///
/// A request that has arrived completely is passed to [`call`](Self::call). If the body is still to
/// come, the service sees the head in [`admit`](Self::admit) and makes of it whatever it needs to
/// serve the request in [`call_admitted`](Self::call_admitted): so a head is parsed once, and
/// nobody holds on to its buffer.
pub trait Service: 'static {
    /// What the service keeps of the head of a request whose body is still to come.
    type Admitted: 'static;

    /// Decides on a request whose body has not arrived completely, before the body is read.
    ///
    /// To refuse, write the final answer to `reply` and return [`Admit::Answered`]. The rest of a
    /// small body is read and discarded, and the connection kept; otherwise the answer says
    /// `Connection: close`.
    fn admit(&self, head: &Head<'_>, reply: &mut Reply<'_>) -> Admit<Self::Admitted>;

    /// Serves a complete request: writes the answer to `reply`, or says what follows.
    fn call(&self, head: &Head<'_>, body: &[u8], reply: &mut Reply<'_>) -> Outcome;

    /// Serves an admitted request whose body was collected in memory of its own, which the service
    /// may keep.
    fn call_admitted(&self, admitted: Self::Admitted, body: Bytes, reply: &mut Reply<'_>) -> Outcome;

    /// Whether a request is served even if `requests_in_flight_max` is reached: requests that
    /// people make when a server is overloaded, and those that are never in flight for long.
    fn is_urgent(&self, head: &Head<'_>) -> bool {
        let _ = head;
        false
    }

    /// An answer has been handed to the kernel completely. `tag` is what [`Reply::tag`] set (or
    /// [`Answered::tag`]), and `elapsed` the time since its request had been read completely.
    fn finished(&self, tag: u16, elapsed: Duration);

    /// Something has happened that metrics count.
    fn event(&self, event: Event);

    /// A task of the core continues after it has waited; `now` has just been read. This is the
    /// place for [`Turn::begin`](crate::turn::Turn::begin).
    #[inline]
    fn resumed(&self, now: Instant) {
        let _ = now;
    }

    /// Takes over a connection: the socket, and the bytes already read, starting with the request
    /// that asked for it. The socket may be blocking or not: set it.
    fn hand_off(&self, socket: TcpStream, read_so_far: Vec<u8>);
}

/// The decision on a request whose body is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit<A> {
    /// Read the body, then call the service with it and with this.
    Body(A),
    /// The answer is written, and the body is not needed.
    Answered,
    /// Give the connection to [`Service::hand_off`].
    HandOff,
}

/// The result of a call.
pub enum Outcome {
    /// The answer is complete in the buffer.
    Done,
    /// The head is in the buffer, with `Content-Length`; this value follows and is not copied. It
    /// is left out after `HEAD`.
    Value(Bytes),
    /// The answer comes later. Its work has been started: the server awaits the answers of a batch
    /// one after another. Until an answer that has not taken effect is there, the connection's next
    /// request is called only if both it and all that are awaited are safe.
    Later(Box<dyn Later>),
    /// The head is in the buffer, written by [`Reply::stream_head`]; the source makes the body. It
    /// is not run after `HEAD`.
    Stream(Box<dyn Source>),
    /// Give the connection to [`Service::hand_off`]; nothing has been written to the reply.
    HandOff,
}

impl Outcome {
    /// An answer that `write` makes from the future's result, until which the request may not have
    /// taken effect.
    pub fn when<F: Future + Unpin + 'static>(
        future: F,
        write: impl FnOnce(F::Output, &mut Vec<u8>) -> Answered + 'static,
    ) -> Self {
        Self::when_in_effect(false, future, write)
    }

    /// As [`when`](Self::when), of a request of which it is known whether it
    /// [took effect](Later::took_effect).
    pub fn when_in_effect<F: Future + Unpin + 'static>(
        took_effect: bool,
        future: F,
        write: impl FnOnce(F::Output, &mut Vec<u8>) -> Answered + 'static,
    ) -> Self {
        Self::Later(Box::new(When { took_effect, future, write: Some(write) }))
    }
}

/// A body of unknown length, produced piece by piece on the core, so that memory stays constant and
/// other connections get their turn between the pieces.
pub trait Source {
    /// Puts the next piece into `sink`: about 64 KiB, or less if there is no more.
    fn fill(&mut self, sink: &mut Sink<'_>) -> Fill;
}

/// What a source reports after a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// There is more.
    More,
    /// There is nothing yet: call again after this time, which is at least 1 ms. The bytes in the
    /// sink are sent before.
    Wait(Duration),
    /// The body is complete.
    End,
    /// The body cannot be finished: the connection is reset, so that the client notices.
    Abort,
}

/// Something that metrics count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A connection was accepted.
    Accepted,
    /// A connection has ended, or was handed off.
    Closed,
    /// A connection was closed at accept, since there were `connections_max` already.
    ConnectionLimit,
    /// A connection was closed at accept, since its address had `address_max` (or `loopback_max`)
    /// already.
    AddressConnections,
    /// A request was answered `503`, since its address had as many in flight on the core.
    AddressRequests,
    /// There were no descriptors, or no memory, for a connection, which waits in the kernel's queue.
    NoResources,
    /// A head was larger than `header_max` or had too many lines: `431`.
    HeaderTooLarge,
    /// A body was larger than `body_max`: `413`.
    BodyTooLarge,
    /// A request was not complete within `request_timeout`: `408`.
    RequestTimeout,
    /// A request came slower than the least rate: `408`.
    SlowRequest,
    /// A connection was idle for `idle_timeout` and has been closed.
    IdleTimeout,
    /// A client took nothing of its answer for `request_timeout`; its connection has been closed.
    WriteTimeout,
    /// The bytes were not a request that can be served: `400`, `417`, `501`, `505`.
    BadRequest,
    /// A request was answered `503` for `requests_in_flight_max` or `body_bytes_max`, or because there
    /// was no memory for its body.
    Overloaded,
    /// This many bytes were received.
    BytesIn(usize),
    /// This many bytes were handed to the kernel.
    BytesOut(usize),
}

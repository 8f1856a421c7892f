//! What a program gives the server: a [`Service`], and the shapes its answers take.
//!
//! Owner: everything here lives on one core and never leaves it. A panic in a service is not caught: a broken invariant
//! stops the process, not half of it.

use std::future::Future;
use std::net::TcpStream;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::http::{Head, Reply};

use super::sink::Sink;

/// The program behind the connections of one core.
///
/// A request that is here as a whole is given to [`call`](Self::call). Of one whose body is still to come the service
/// sees the head in [`admit`](Self::admit), and makes of it whatever it needs to serve the request in
/// [`call_admitted`](Self::call_admitted): so a head is parsed once, and nobody holds on to its buffer.
pub trait Service: 'static {
    /// What is left of the head of a request whose body is still to come.
    type Admitted: 'static;

    /// Decides on a request whose body is not yet wholly here, before the body is read.
    ///
    /// To refuse, write the final answer to `reply` and return [`Admit::Answered`]. The rest of a small body is read over
    /// and the connection kept; otherwise the answer says `Connection: close`.
    fn admit(&self, head: &Head<'_>, reply: &mut Reply<'_>) -> Admit<Self::Admitted>;

    /// Serves a whole request: writes the answer to `reply`, or says what follows.
    fn call(&self, head: &Head<'_>, body: &[u8], reply: &mut Reply<'_>) -> Outcome;

    /// Serves a request that was admitted, whose body was collected in memory of its own: the service may keep it.
    fn call_admitted(&self, admitted: Self::Admitted, body: Bytes, reply: &mut Reply<'_>) -> Outcome;

    /// Whether a request is served also when `requests_in_flight_max` is reached: what people look at when a server is
    /// overloaded, and what is never in flight for long.
    fn is_urgent(&self, head: &Head<'_>) -> bool {
        let _ = head;
        false
    }

    /// An answer has been handed to the kernel entirely. `tag` is what [`Reply::tag`] set (or [`Answered::tag`]), `elapsed`
    /// the time since its request had been read completely.
    fn finished(&self, tag: u16, elapsed: Duration);

    /// Something that metrics count.
    fn event(&self, event: Event);

    /// A task of the core goes on after it has waited; `now` has just been read. What [`Turn::begin`](crate::turn::Turn::begin)
    /// is for.
    #[inline]
    fn resumed(&self, now: Instant) {
        let _ = now;
    }

    /// Takes over a connection: the socket, and the bytes already read, starting with the request that asked for it.
    /// Whether the socket blocks is not said: set it.
    fn hand_off(&self, socket: TcpStream, read_so_far: Vec<u8>);
}

/// The decision on a request whose body is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit<A> {
    /// Read the body, then call with it and this.
    Body(A),
    /// The answer is written; the body is of no interest.
    Answered,
    /// Give the connection to [`Service::hand_off`].
    HandOff,
}

/// What became of a call.
pub enum Outcome {
    /// The answer is complete in the buffer.
    Done,
    /// The head is in the buffer, with `Content-Length`; this follows and is not copied. Left out after `HEAD`.
    Value(Bytes),
    /// The answer comes later. The work has been started: the server awaits those of a batch one after another.
    Later(Box<dyn Later>),
    /// The head is in the buffer, written by [`Reply::stream_head`]; the source makes the body. Not run after `HEAD`.
    Stream(Box<dyn Source>),
    /// Give the connection to [`Service::hand_off`]; nothing has been written to the reply.
    HandOff,
}

/// An answer that comes later. It writes itself to where it leaves from, so that it needs no buffer of its own.
pub trait Later {
    /// When the answer is there: writes the head, and the body if it is short, behind what is in `out`, with a
    /// [`ReplyContext`](crate::http::ReplyContext). Nothing is written before, and it is not called after.
    fn poll_answer(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Answered>;
}

/// What there is to know of an answer beside the bytes that were written.
#[derive(Debug, Default)]
pub struct Answered {
    /// A body that follows without being copied. Left out after `HEAD`.
    pub value: Option<Bytes>,
    /// The mark for [`Service::finished`].
    pub tag: u16,
}

/// A future, and how its result is written.
struct When<F, W> {
    future: F,
    /// Until it is ready.
    write: Option<W>,
}

impl<F: Future + Unpin, W: FnOnce(F::Output, &mut Vec<u8>) -> Answered> Later for When<F, W> {
    fn poll_answer(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Answered> {
        Pin::new(&mut self.future).poll(cx).map(|result| {
            let write = self.write.take().expect("nobody polls what has been ready");
            write(result, out)
        })
    }
}

impl Outcome {
    /// The answer is what `write` writes of the future's result.
    pub fn when<F: Future + Unpin + 'static>(
        future: F,
        write: impl FnOnce(F::Output, &mut Vec<u8>) -> Answered + 'static,
    ) -> Self {
        Self::Later(Box::new(When { future, write: Some(write) }))
    }
}

/// A body of unknown length, produced piece by piece on the core, so that memory stays flat and other connections get
/// their turn between the pieces.
pub trait Source {
    /// Puts the next piece into `sink`: about 64 KiB, less if there is no more.
    fn fill(&mut self, sink: &mut Sink<'_>) -> Fill;
}

/// What a source says after a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// There is more.
    More,
    /// Nothing yet: call again after this time, 1 ms at least. What is in the sink is sent before.
    Wait(Duration),
    /// That was all.
    End,
    /// The body cannot be finished: the connection is reset, so that the client notices.
    Abort,
}

/// Something that metrics count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A connection was accepted.
    Accepted,
    /// A connection is gone, or handed off.
    Closed,
    /// A connection was closed at accept: there were `connections_max` already.
    ConnectionLimit,
    /// A head was larger than `header_max` or had too many lines: `431`.
    HeaderTooLarge,
    /// A body was larger than `body_max`: `413`.
    BodyTooLarge,
    /// A request was not whole within `request_timeout`: `408`.
    RequestTimeout,
    /// A connection was idle for `idle_timeout` and has been closed.
    IdleTimeout,
    /// A client took nothing of its answer for `request_timeout`; the connection is gone.
    WriteTimeout,
    /// Something that is not a request that can be served: `400`, `417`, `501`, `505`.
    BadRequest,
    /// `503` for `requests_in_flight_max` or `body_bytes_max`.
    Overloaded,
    /// Bytes received.
    BytesIn(usize),
    /// Bytes handed to the kernel.
    BytesOut(usize),
}

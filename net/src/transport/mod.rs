//! What carries the bytes of a connection: plain TCP today.
//!
//! The connection loops of both protocols see [`Transport`] and no socket, so that something else,
//! such as TLS, can lie in between. What they do with a descriptor is to shut it down when a
//! deadline strikes, which ends whatever is pending on it, whatever carries the bytes.
//!
//! Owner: a connection's tasks. Invariant: no operation is dropped in flight, since its buffer is
//! the kernel's until it ends.
//!
//! Deliberately absent: buffers, deadlines, and how a connection comes about. Tested through the
//! protocols, and below with a transport that changes every byte: what got past it would be read as
//! nonsense.

pub(crate) mod sys;
mod tcp;

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::RawFd;

use monoio::BufResult;
use monoio::buf::{IoBuf, IoBufMut};

pub(crate) use self::tcp::Tcp;

/// The side on which bytes come in.
pub(crate) trait Receive: 'static {
    /// Receives what has come, waiting until there is something. 0: the end.
    fn receive<B: IoBufMut>(&mut self, buffer: B) -> impl Future<Output = BufResult<usize, B>>;
}

/// The side on which bytes go out.
pub(crate) trait Transmit: 'static {
    /// Sends what is taken, waiting until something is.
    fn transmit<B: IoBuf>(&mut self, bytes: B) -> impl Future<Output = BufResult<usize, B>>;

    /// Sends what is taken without waiting; an error of the kind `WouldBlock` if nothing is. With
    /// `more`, the last segment waits for the bytes that follow at once.
    fn transmit_now(&mut self, bytes: &[u8], more: bool) -> io::Result<usize>;

    /// As [`transmit_now`](Self::transmit_now), for several parts one after the other; at most
    /// [`PARTS_MAX`] of them are looked at.
    fn transmit_parts_now(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize>;
}

/// The most parts of one [`Transmit::transmit_parts_now`].
pub(crate) const PARTS_MAX: usize = 64;

/// A connected stream of bytes in both directions.
pub(crate) trait Transport: Receive + Transmit {
    /// The receiving side alone.
    type Receiver: Receive;
    /// The sending side alone.
    type Transmitter: Transmit;

    /// The descriptor of the socket below, which is open as long as this is or one of its sides.
    fn fd(&self) -> RawFd;

    /// Both sides, so that each can wait while the other one works.
    fn split(self) -> (Self::Receiver, Self::Transmitter);

    /// Tells the other side that nothing more will come.
    fn end_output(&mut self);

    /// The socket, to be given away with what was received so far. No operation may be in flight.
    fn into_socket(self) -> TcpStream;
}

/// Whether an operation that failed this way can be tried again.
pub(crate) fn may_go_on(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests;

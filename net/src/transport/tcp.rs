//! Plain TCP: each operation is one of the driver's, or one system call on the descriptor.

use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};

use monoio::BufResult;
use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent, OwnedReadHalf, OwnedWriteHalf, Splitable};
use monoio::net::TcpStream;

use super::{Receive, Transmit, Transport, sys};

/// A TCP connection as it is.
pub(crate) struct Tcp {
    stream: TcpStream,
    fd: RawFd,
}

impl Tcp {
    /// Of a connected socket.
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { fd: stream.as_raw_fd(), stream }
    }
}

/// The receiving side.
pub(crate) struct TcpReceiver(OwnedReadHalf<TcpStream>);

/// The sending side.
pub(crate) struct TcpTransmitter {
    half: OwnedWriteHalf<TcpStream>,
    fd: RawFd,
}

fn send(fd: RawFd, bytes: &[u8], more: bool) -> io::Result<usize> {
    sys::send_now(fd, bytes, if more { libc::MSG_MORE } else { 0 })
}

impl Receive for Tcp {
    #[inline]
    fn receive<B: IoBufMut>(&mut self, buffer: B) -> impl Future<Output = BufResult<usize, B>> {
        self.stream.read(buffer)
    }
}

impl Transmit for Tcp {
    #[inline]
    fn transmit<B: IoBuf>(&mut self, bytes: B) -> impl Future<Output = BufResult<usize, B>> {
        self.stream.write(bytes)
    }

    #[inline]
    fn transmit_now(&mut self, bytes: &[u8], more: bool) -> io::Result<usize> {
        send(self.fd, bytes, more)
    }

    #[inline]
    fn transmit_parts_now(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        sys::send_parts_now(self.fd, parts)
    }
}

impl Transport for Tcp {
    type Receiver = TcpReceiver;
    type Transmitter = TcpTransmitter;

    fn fd(&self) -> RawFd {
        self.fd
    }

    fn split(self) -> (TcpReceiver, TcpTransmitter) {
        let (reader, half) = self.stream.into_split();
        (TcpReceiver(reader), TcpTransmitter { half, fd: self.fd })
    }

    fn end_output(&mut self) {
        sys::shutdown(self.fd, libc::SHUT_WR);
    }

    fn into_socket(self) -> std::net::TcpStream {
        sys::into_std(self.stream)
    }
}

impl Receive for TcpReceiver {
    #[inline]
    fn receive<B: IoBufMut>(&mut self, buffer: B) -> impl Future<Output = BufResult<usize, B>> {
        self.0.read(buffer)
    }
}

impl Transmit for TcpTransmitter {
    #[inline]
    fn transmit<B: IoBuf>(&mut self, bytes: B) -> impl Future<Output = BufResult<usize, B>> {
        self.half.write(bytes)
    }

    #[inline]
    fn transmit_now(&mut self, bytes: &[u8], more: bool) -> io::Result<usize> {
        send(self.fd, bytes, more)
    }

    #[inline]
    fn transmit_parts_now(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        sys::send_parts_now(self.fd, parts)
    }
}

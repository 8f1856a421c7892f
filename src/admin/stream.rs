//! A socket of the control plane: bytes that were read before come first, a client that does not
//! take its answer is given up, and one that has only ended its output gets its answer.
//!
//! Owner: one connection's task, which keeps the socket for its end. Bound: whoever takes less than
//! [`LEAST_TAKEN`] bytes in [`WINDOW`] while more wait for it. Tested in
//! `tests/under_attack/pages.rs`.

use std::cell::Cell;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// The time over which a client's rate is judged.
const WINDOW: Duration = Duration::from_secs(5);
/// The least bytes that it must take in that time.
const LEAST_TAKEN: usize = 5 * 1024;

/// See the module.
pub struct Stream {
    /// Bytes that were read already.
    prefix: Vec<u8>,
    taken: usize,
    socket: Rc<TcpStream>,
    /// When the window ends, and how many bytes were taken in it; `None` until the client makes us
    /// wait.
    window: Option<(Pin<Box<Sleep>>, usize)>,
    /// Whether the end of the client's output is no reason to leave its request unanswered.
    is_patient: Rc<Cell<bool>>,
}

impl Stream {
    /// While `is_patient` is set, the end of the client's output is not told: hyper would drop the
    /// request.
    pub const fn new(prefix: Vec<u8>, socket: Rc<TcpStream>, is_patient: Rc<Cell<bool>>) -> Self {
        Self { prefix, taken: 0, socket, window: None, is_patient }
    }

    /// Whether a client that makes us wait is too slow.
    fn is_too_slow(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            let (end, taken) = self.window.get_or_insert_with(|| (Box::pin(sleep(WINDOW)), 0));
            if end.as_mut().poll(cx).is_pending() {
                return false;
            }
            if *taken < LEAST_TAKEN {
                return true;
            }
            self.window = None;
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let rest = &self.prefix[self.taken..];
        if !rest.is_empty() {
            let count = rest.len().min(buffer.remaining());
            buffer.put_slice(&rest[..count]);
            self.taken += count;
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            match self.socket.try_read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Nothing more comes: the answer, after which the connection ends, is what goes on.
                Ok(0) if self.is_patient.get() => return Poll::Pending,
                read => {
                    buffer.advance(read?);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            if self.socket.poll_write_ready(cx)?.is_pending() {
                let is_too_slow = self.is_too_slow(cx);
                return if is_too_slow { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) } else { Poll::Pending };
            }
            match self.socket.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    if let (Ok(count), Some((_, taken))) = (&written, &mut self.window) {
                        *taken += count;
                    }
                    return Poll::Ready(written);
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(end_output(&self.socket))
    }
}

/// Tells the client that nothing more will come.
pub fn end_output(socket: &TcpStream) -> io::Result<()> {
    SockRef::from(socket).shutdown(Shutdown::Write)
}

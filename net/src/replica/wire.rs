//! What both ends of a connection do with their socket: read into a buffer that grows for large frames, and send an
//! outbox.
//!
//! Bounds: a buffer grows as data comes, up to the largest frame and [`READ_SIZE`]; what a length only claims costs
//! nothing. Invariant: no read or write is dropped in flight; to end one, its socket is shut down.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::RawFd;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent};

use super::outbox::{Outbox, Segment};

/// The read buffer of a connection.
pub(crate) const READ_SIZE: usize = 64 * 1024;
/// A peer that acknowledges nothing for this long is cut off: its connection ends.
pub(crate) const USER_TIMEOUT: Duration = Duration::from_secs(5);
/// A handshake must be complete in this time.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);
/// On epoll, reads after which everybody else gets a turn.
const READS_A_TURN: u32 = 16;
/// A yield in this many gives the turn to the timers, too: while the queue of tasks is never empty, monoio looks at
/// none.
const YIELDS_A_SLEEP: u32 = 32;

/// Bytes that were read and are not handled yet.
pub(crate) struct Inbox {
    buffer: Vec<u8>,
    start: usize,
    reads: u32,
    legacy: bool,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self { buffer: Vec::with_capacity(READ_SIZE), start: 0, reads: 0, legacy: monoio::utils::is_legacy() }
    }

    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// The first `count` bytes are handled.
    #[inline]
    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
    }

    /// Reads more. 0: the end. A frame that is begun has `need` bytes, more than are here.
    pub(crate) async fn read(&mut self, stream: &mut impl AsyncReadRent, need: usize) -> io::Result<usize> {
        if self.legacy {
            // A ready read never gives up the turn there.
            self.reads = self.reads.wrapping_add(1);
            if self.reads.is_multiple_of(READS_A_TURN * YIELDS_A_SLEEP) {
                monoio::time::sleep(Duration::from_millis(1)).await;
            } else if self.reads.is_multiple_of(READS_A_TURN) {
                monoio::spawn(std::future::ready(())).await;
            }
        }
        if self.buffer.capacity() > READ_SIZE && need <= READ_SIZE {
            // The large frames are done with.
            let rest = std::mem::replace(&mut self.buffer, Vec::with_capacity(READ_SIZE));
            self.buffer.extend_from_slice(&rest[self.start..]);
        } else if self.start > 0 {
            self.buffer.drain(..self.start);
        }
        self.start = 0;
        if self.buffer.len() == self.buffer.capacity() {
            // Doubled at most, and only behind what has really come.
            let more = need.saturating_sub(self.buffer.len()).clamp(READ_SIZE, self.buffer.len().max(READ_SIZE));
            self.buffer.reserve_exact(more);
        }
        loop {
            let buffer = std::mem::take(&mut self.buffer);
            let (from, to) = (buffer.len(), buffer.capacity());
            let (result, buffer) = stream.read(buffer.slice_mut(from..to)).await;
            self.buffer = buffer.into_inner();
            match result {
                Err(error) if may_go_on(&error) => {}
                result => return result,
            }
        }
    }
}

/// Sends all of `outbox` and empties it: directly, and as long as the socket is full through the driver. `progress` is
/// told each time the kernel took something of what had to wait.
#[inline]
pub(crate) async fn send_all(
    stream: &mut impl AsyncWriteRent,
    fd: RawFd,
    outbox: &mut Outbox,
    mut progress: impl FnMut(usize),
) -> io::Result<()> {
    while !outbox.send_now(fd)? {
        let (result, count) = match outbox.next() {
            None => break,
            Some(Segment::Bytes(from, to)) => {
                let (result, slice) = stream.write(std::mem::take(&mut outbox.bytes).slice(from..to)).await;
                outbox.bytes = slice.into_inner();
                (result, to - from)
            }
            Some(Segment::Value(value)) => {
                let count = value.len();
                (stream.write(value).await.0, count)
            }
        };
        match result {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => {
                debug_assert!(sent <= count);
                outbox.advance(sent);
                progress(sent);
            }
            Err(error) if may_go_on(&error) => {}
            Err(error) => return Err(error),
        }
    }
    outbox.clear();
    Ok(())
}

/// The operation can be tried again.
pub(crate) fn may_go_on(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Wakes one task of the same core, which runs after all that are ready by then. Rings before anybody waits are kept,
/// as one.
#[derive(Default)]
pub(crate) struct Bell {
    rung: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
}

impl Bell {
    #[inline]
    pub(crate) fn ring(&self) {
        if !self.rung.replace(true)
            && let Some(waker) = self.waiting.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// Forgets a ring.
    pub(crate) fn hush(&self) {
        self.rung.set(false);
    }

    /// Waits for a ring.
    #[inline]
    pub(crate) async fn wait(&self) {
        poll_fn(|context| self.poll_rung(context)).await;
    }

    /// As [`wait`](Self::wait), for those who wait for something else, too.
    #[inline]
    pub(crate) fn poll_rung(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.rung.replace(false) {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        match &mut *waiting {
            Some(waker) if waker.will_wake(context.waker()) => {}
            waiting => *waiting = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Waits for a ring, and no longer than until then.
    pub(crate) async fn wait_until(&self, then: Instant) {
        let left = then.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let mut sleep = pin!(monoio::time::sleep(left));
        let mut ring = pin!(self.wait());
        poll_fn(|context| {
            if ring.as_mut().poll(context).is_ready() || sleep.as_mut().poll(context).is_ready() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

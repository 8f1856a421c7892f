//! What both ends of a connection do with their socket: they read into a buffer that grows for
//! large frames, and send an outbox.
//!
//! Bounds: once [`READ_SIZE`] bytes of a large frame have come, the buffer grows to the length that
//! it claims, at most that of the largest frame. Invariant: no read or write is dropped in flight;
//! to end one, its socket is shut down.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use monoio::buf::{IoBuf, IoBufMut};

use super::outbox::{Outbox, Segment};
use crate::transport::{Receive, Transmit, may_go_on};

/// Bytes of a connection's read buffer.
pub(crate) const READ_SIZE: usize = 64 * 1024;
/// Bytes of the buffer of a connection that has not said who it is: more than a handshake has.
const STRANGER_SIZE: usize = 1024;
/// A peer that acknowledges nothing for this long is cut off: its connection ends.
pub(crate) const USER_TIMEOUT: Duration = Duration::from_secs(5);
/// A handshake must be complete in this time.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);
/// On epoll, the number of reads after which all other tasks get their turn.
const READS_A_TURN: u32 = 16;
/// One in this many yields also lets the timers run: while the queue of tasks is never empty,
/// monoio checks none.
const YIELDS_A_SLEEP: u32 = 32;

/// The bytes that were read and are not handled yet.
pub(crate) struct Inbox {
    buffer: Vec<u8>,
    start: usize,
    reads: u32,
    legacy: bool,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self::with_capacity(READ_SIZE)
    }

    /// For a handshake; [`grow`](Self::grow) it after that.
    pub(crate) fn of_stranger() -> Self {
        Self::with_capacity(STRANGER_SIZE)
    }

    fn with_capacity(bytes: usize) -> Self {
        Self { buffer: Vec::with_capacity(bytes), start: 0, reads: 0, legacy: monoio::utils::is_legacy() }
    }

    /// Makes the buffer as large as that of any connection to a node.
    pub(crate) fn grow(&mut self) {
        self.buffer.reserve_exact(READ_SIZE.saturating_sub(self.buffer.len()));
    }

    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Marks the first `count` bytes as handled.
    #[inline]
    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
    }

    /// Takes out the frame of `len` bytes at the beginning with the buffer that it lies in, if it
    /// is complete and too long for an ordinary buffer.
    #[inline]
    pub(crate) fn take_large(&mut self, len: usize) -> Option<Bytes> {
        (len > READ_SIZE && self.bytes().len() >= len).then(|| self.take(len))
    }

    fn take(&mut self, len: usize) -> Bytes {
        let (start, end) = (self.start, self.start + len);
        let mut rest = Vec::with_capacity(READ_SIZE);
        rest.extend_from_slice(&self.buffer[end..]);
        self.start = 0;
        let mut buffer = std::mem::replace(&mut self.buffer, rest);
        buffer.truncate(end);
        Bytes::slice(&Bytes::from(buffer), start..)
    }

    /// Reads more; returns 0 at the end. A frame that has begun has `need` bytes, more than have
    /// been read.
    pub(crate) async fn read(&mut self, receiver: &mut impl Receive, need: usize) -> io::Result<usize> {
        if self.legacy {
            // On epoll, a read that is ready never gives up the turn.
            self.reads = self.reads.wrapping_add(1);
            if self.reads.is_multiple_of(READS_A_TURN * YIELDS_A_SLEEP) {
                monoio::time::sleep(Duration::from_millis(1)).await;
            } else if self.reads.is_multiple_of(READS_A_TURN) {
                monoio::spawn(std::future::ready(())).await;
            }
        }
        if self.buffer.capacity() > READ_SIZE && need <= READ_SIZE {
            // The large frames have been handled.
            let rest = std::mem::replace(&mut self.buffer, Vec::with_capacity(READ_SIZE));
            self.buffer.extend_from_slice(&rest[self.start..]);
        } else if self.start > 0 {
            self.buffer.drain(..self.start);
        }
        self.start = 0;
        if self.buffer.len() == self.buffer.capacity() {
            // In one step, since a buffer that doubles leaves as much garbage as it has bytes. What
            // is claimed and does not come is never touched: it costs addresses, not memory.
            let more = need.saturating_sub(self.buffer.len());
            self.buffer.reserve_exact(more.max(READ_SIZE));
        }
        loop {
            let buffer = std::mem::take(&mut self.buffer);
            let (from, to) = (buffer.len(), buffer.capacity());
            let (result, buffer) = receiver.receive(buffer.slice_mut(from..to)).await;
            self.buffer = buffer.into_inner();
            match result {
                Err(error) if may_go_on(&error) => {}
                result => return result,
            }
        }
    }
}

/// Sends all of `outbox` and empties it: directly at first, and through the driver as long as the
/// socket is full. Calls `progress` each time the kernel has taken some of the bytes that had to
/// wait.
#[inline]
pub(crate) async fn send_all(
    transmitter: &mut impl Transmit,
    outbox: &mut Outbox,
    mut progress: impl FnMut(usize),
) -> io::Result<()> {
    while !outbox.send_now(transmitter)? {
        let (result, count) = match outbox.next() {
            None => break,
            Some(Segment::Bytes(from, to)) => {
                let (result, slice) = transmitter.transmit(std::mem::take(&mut outbox.bytes).slice(from..to)).await;
                outbox.bytes = slice.into_inner();
                (result, to - from)
            }
            Some(Segment::Value(value)) => {
                let count = value.len();
                (transmitter.transmit(value).await.0, count)
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

/// Wakes one task of the same core, which runs after all tasks that are ready by then. Rings that
/// come while nobody waits are kept, as one.
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

    /// Forgets a ring that nobody has waited for yet.
    pub(crate) fn hush(&self) {
        self.rung.set(false);
    }

    /// Waits for a ring.
    #[inline]
    pub(crate) async fn wait(&self) {
        poll_fn(|context| self.poll_rung(context)).await;
    }

    /// Polls as [`wait`](Self::wait) does, for tasks that wait for something else, too.
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

    /// Waits for a ring, but not longer than until `then`.
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

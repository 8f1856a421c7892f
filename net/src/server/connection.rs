//! What a connection holds, and how it reads.
//!
//! Owner: the connection's task (`task.rs`). Bounds: a read buffer of [`READ_MIN`] to [`READ_MAX`]
//! bytes; the rest is in `answers.rs` and `body.rs`.
//!
//! Invariant: `buffer[start..]` has been read and not yet handled; while a request's body is
//! collected it begins with that request's head.
//!
//! Tested in `tests/connection.rs`.

use std::time::Instant;

use monoio::buf::IoBufMut;

use super::answers::Answers;
use super::core::HttpSeat;
use super::deadlines::Phase;
use super::receiving::Why;
use super::service::Service;
use crate::transport::{Transport, may_go_on};

/// Bytes of an idle connection's read buffer: ten thousand of them take 40 MB.
pub(super) const READ_MIN: usize = 4 * 1024;
/// Bytes of a busy connection's read buffer.
pub(super) const READ_MAX: usize = 64 * 1024;

/// The client has gone or was cut off; there is nobody to answer.
pub(super) struct Gone;

pub(super) struct Connection<S: Service, T> {
    /// Before `transport`, so that the core forgets the descriptor before it is closed.
    pub(super) seat: HttpSeat<S>,
    pub(super) transport: T,
    pub(super) buffer: Vec<u8>,
    pub(super) start: usize,
    /// How many bytes after `start` are known not to be a complete head.
    pub(super) scanned: usize,
    /// When the first byte of the request at `start` came; `None` if the request was complete then.
    request_since: Option<Instant>,
    pub(super) answers: Answers,
    /// The last reading of the clock: when the batch had been read, then when it had been sent.
    pub(super) now: Instant,
}

impl<S: Service, T: Transport> Connection<S, T> {
    pub(super) fn new(seat: HttpSeat<S>, transport: T) -> Self {
        Self {
            seat,
            transport,
            buffer: Vec::with_capacity(READ_MIN),
            start: 0,
            scanned: 0,
            request_since: None,
            answers: Answers::default(),
            now: Instant::now(),
        }
    }

    /// Reads more into the buffer, behind the bytes that are not handled yet.
    #[inline]
    pub(super) async fn fill(&mut self) -> Result<(), Gone> {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            if self.buffer.capacity() > READ_MIN {
                self.buffer = Vec::with_capacity(READ_MIN);
            }
            self.seat.set(Phase::Idle, self.now);
        } else {
            self.buffer.drain(..self.start);
            self.scanned = self.buffer.len();
            self.reading();
            if self.buffer.len() == self.buffer.capacity() {
                let room = self.buffer.capacity().min(READ_MAX.max(self.seat.core().limits.header_max + 1));
                self.buffer.reserve_exact(room);
            }
        }
        self.start = 0;
        self.read().await
    }

    /// Makes one read into the free part of the buffer.
    #[inline]
    pub(super) async fn read(&mut self) -> Result<(), Gone> {
        loop {
            let buffer = std::mem::take(&mut self.buffer);
            let (from, to) = (buffer.len(), buffer.capacity());
            let (result, buffer) = self.transport.receive(buffer.slice_mut(from..to)).await;
            self.buffer = buffer.into_inner();
            self.resumed();
            match result {
                Ok(0) => return Err(Gone),
                Ok(more) => {
                    self.seat.received(more);
                    return Ok(());
                }
                Err(error) if may_go_on(&error) => {}
                Err(_) => return Err(Gone),
            }
        }
    }

    /// Continues after a wait: reads the clock, and tells the service.
    #[inline]
    pub(super) fn resumed(&mut self) {
        self.now = Instant::now();
        self.seat.core().service.resumed(self.now);
    }

    /// From now on the connection waits for the rest of a request; the time counts from its first
    /// byte.
    pub(super) fn reading(&mut self) {
        let since = *self.request_since.get_or_insert(self.now);
        self.seat.set(Phase::Reading, since);
    }

    /// Marks the first `length` bytes after `start` as handled.
    #[inline]
    pub(super) fn consume(&mut self, length: usize) {
        self.start += length;
        self.scanned = 0;
        self.request_since = None;
    }

    /// Why the request that has begun is given up; `None` if it is not.
    pub(super) fn request_expired(&self) -> Option<Why> {
        if self.start < self.buffer.len() { self.seat.request_expired() } else { None }
    }
}

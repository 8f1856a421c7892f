//! One connection: reads, handles every complete request in the buffer as one batch, sends the
//! answers, and starts again.
//!
//! ```text
//! read ─▶ handle ─▶ Read: flush, read again         (all whole requests are answered)
//!            ▲  ├─▶ Flush: flush, go on             (the batch is full)
//!            │  ├─▶ Body: collect the body, go on   (body.rs)
//!            │  ├─▶ Skip: read over it, go on       (body.rs)
//!            └──┼── Stream: stream, go on           (output.rs)
//!               ├─▶ Close, Linger: flush, end
//!               └─▶ HandOff: flush, give the socket away
//! ```
//!
//! Owner: one task. Bounds: a read buffer of [`READ_MIN`] to [`READ_MAX`] bytes; the rest is in
//! `answers.rs` and `body.rs`.
//!
//! Invariants:
//! 1. `buffer[start..]` has been read and not yet handled; while a request's body is collected it
//!    begins with that request's head.
//! 2. Nothing is read before the answers to all handled requests are sent, so a client that does
//!    not read holds one batch.
//!
//! A request costs no allocation, no timer and no lock; a batch costs two readings of the clock.
//! Tested in `tests/connection.rs`.

use std::time::Instant;

use monoio::buf::IoBufMut;

use super::answers::Answers;
use super::body::Awaited;
use super::core::Seat;
use super::deadlines::Phase;
use super::output::may_go_on;
use super::{Event, Service, Source};
use crate::http::ReplyContext;
use crate::transport::Transport;

/// Bytes of an idle connection's read buffer: ten thousand of them take 40 MB.
pub(super) const READ_MIN: usize = 4 * 1024;
/// Bytes of a busy connection's read buffer.
pub(super) const READ_MAX: usize = 64 * 1024;
/// On epoll, the number of batches after which all other tasks get their turn.
const BATCHES_A_TURN: u32 = 16;

/// The client has gone or was cut off; there is nobody to answer.
pub(super) struct Gone;

pub(super) struct Connection<S: Service, T> {
    /// Before `transport`, so that the core forgets the descriptor before it is closed.
    pub(super) seat: Seat<S>,
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

/// What to do when no more requests can be handled at once.
pub(super) enum Next<S: Service> {
    Read,
    Flush,
    Body(Box<Awaited<S>>),
    /// The request was answered: `length` bytes from its first one must still be read and
    /// discarded.
    Skip {
        length: usize,
    },
    Stream {
        source: Box<dyn Source>,
        context: ReplyContext,
        tag: u16,
    },
    Close,
    Linger,
    HandOff(Vec<u8>),
}

impl<S: Service, T: Transport> Connection<S, T> {
    pub(super) fn new(seat: Seat<S>, transport: T) -> Self {
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

    /// Runs the connection until it ends.
    pub(super) async fn run(mut self) {
        let mut batches = 0_u32;
        loop {
            match self.fill().await {
                Ok(()) => {}
                Err(Gone) if self.request_expired() => return self.refuse_late().await,
                Err(Gone) => return,
            }
            let mut next = self.handle();
            loop {
                next = match next {
                    Next::Read => {
                        if self.flush().await.is_err() {
                            return;
                        }
                        break;
                    }
                    Next::Flush => {
                        if self.flush().await.is_err() {
                            return;
                        }
                        self.seat.set(Phase::Working, self.now);
                        self.seat.core().yield_turn().await;
                        self.resumed();
                        self.handle()
                    }
                    Next::Body(awaited) => match self.body(*awaited).await {
                        Ok(Some(next)) => next,
                        Ok(None) => self.handle(),
                        Err(Gone) if self.request_expired() => return self.refuse_late().await,
                        Err(Gone) => return,
                    },
                    Next::Skip { length } => match self.skip(length).await {
                        Ok(()) => self.handle(),
                        Err(Gone) if self.request_expired() => return self.refuse_late().await,
                        Err(Gone) => return,
                    },
                    Next::Stream { source, context, tag } => {
                        if self.stream(source, context, tag).await.is_err() {
                            return;
                        }
                        if !context.keep_alive {
                            return;
                        }
                        self.handle()
                    }
                    Next::Close => {
                        let _ = self.flush().await;
                        return;
                    }
                    Next::Linger => {
                        if self.flush().await.is_ok() {
                            self.linger().await;
                        }
                        return;
                    }
                    Next::HandOff(read_so_far) => {
                        if self.flush().await.is_ok() {
                            self.hand_off(read_so_far);
                        }
                        return;
                    }
                };
            }
            if self.seat.core().legacy {
                batches = batches.wrapping_add(1);
                if batches.is_multiple_of(BATCHES_A_TURN) {
                    self.seat.set(Phase::Working, self.now);
                    self.seat.core().yield_turn().await;
                }
            }
        }
    }

    /// Reads more into the buffer, behind the bytes that are not handled yet.
    #[inline]
    async fn fill(&mut self) -> Result<(), Gone> {
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
                    self.seat.core().service.event(Event::BytesIn(more));
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

    fn request_expired(&self) -> bool {
        self.start < self.buffer.len() && self.seat.request_expired()
    }
}

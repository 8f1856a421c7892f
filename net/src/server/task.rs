//! One connection: reads, handles every complete request in the buffer as one batch, sends the
//! answers, and starts again.
//!
//! ```text
//! read ─▶ handle ─▶ Read: flush, read again         (all whole requests are answered)
//!            ▲  ├─▶ Flush: flush, go on             (the batch is full)
//!            │  ├─▶ Body: collect the body, go on   (body.rs)
//!            │  ├─▶ Skip: read over it, go on       (body.rs)
//!            └──┼── Stream: stream, go on           (output.rs)
//!               ├─▶ Close: flush, linger, end
//!               └─▶ HandOff: flush, give the socket away
//! ```
//!
//! Invariants:
//! 1. Nothing is read before the answers to all handled requests are sent, so a client that does not
//!    read holds one batch.
//! 2. A connection that the server ends after an answer ends in stages: see `linger` in `output.rs`.
//!
//! A request costs no allocation, no timer and no lock; a batch costs two readings of the clock.
//! Tested in `tests/connection.rs`.

use std::borrow::Cow;
use std::rc::Rc;

use super::calls::refuse;
use super::connection::{Connection, Gone};
use super::deadlines::Phase;
use super::next::Next;
use super::service::Service;
use crate::http::ReplyContext;
use crate::http::head::BadRequest;
use crate::transport::Transport;

/// On epoll, the number of batches after which all other tasks get their turn.
const BATCHES_A_TURN: u32 = 16;

impl<S: Service, T: Transport> Connection<S, T> {
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
                            return self.linger().await;
                        }
                        self.handle()
                    }
                    Next::Close => {
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

    /// Answers that the request did not come in time, and ends the connection.
    pub(super) async fn refuse_late(mut self) {
        self.resumed();
        let core = Rc::clone(self.seat.core());
        let bad = BadRequest {
            status: 408,
            sentence: Cow::Owned(format!(
                "The request was not complete {} ms after its first byte.",
                core.limits.request_timeout.as_millis()
            )),
        };
        refuse(&core, &mut self.answers, ReplyContext::unread(&core.date()), &bad);
        if self.flush().await.is_ok() {
            self.linger().await;
        }
    }

    /// Gives the socket to the service.
    pub(super) fn hand_off(self, read_so_far: Vec<u8>) {
        let service = Rc::clone(&self.seat.core().service);
        drop(self.seat);
        service.hand_off(self.transport.into_socket(), read_so_far);
    }
}

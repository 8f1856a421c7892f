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

use super::calls::{overloaded, refuse};
use super::connection::{Connection, Gone};
use super::core::Overload;
use super::deadlines::Phase;
use super::next::Next;
use super::receiving::{LEAST_RATE, WINDOW, Why};
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
                Err(Gone) => return self.gone().await,
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
                        Err(Gone) => return self.gone().await,
                    },
                    Next::Skip { length } => match self.skip(length).await {
                        Ok(()) => self.handle(),
                        Err(Gone) => return self.gone().await,
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

    /// Ends the connection. If its request did not come in time, that is answered.
    async fn gone(mut self) {
        let Some(why) = self.request_expired() else { return };
        self.resumed();
        let core = Rc::clone(self.seat.core());
        let context = ReplyContext::unread(&core.date());
        let late = |sentence| BadRequest { status: 408, sentence: Cow::Owned(sentence) };
        match why {
            Why::GaveWay => overloaded(&self.seat, &mut self.answers, context, Overload::Stalled),
            Why::Late => {
                let ms = core.limits.request_timeout.as_millis();
                let bad = late(format!("The request was not complete {ms} ms after its first byte."));
                refuse(&core, &mut self.answers, context, &bad);
            }
            Why::TooSlow => {
                let bad = late(format!(
                    "The request came at less than {LEAST_RATE} bytes a second for {} s.",
                    WINDOW.as_secs()
                ));
                refuse(&core, &mut self.answers, context, &bad);
            }
        }
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

//! Requests whose body is not wholly in the read buffer: asks the service, then collects the body.
//!
//! Bounds: `body_max` a body, `body_bytes_max` a core, `request_timeout` from the request's first byte. Memory grows as data
//! arrives, doubling from [`FIRST_STEP`] to [`DOUBLED_MAX`] and then the rest: a `Content-Length` alone costs a reservation on
//! paper and no memory.
//!
//! Tested in `tests/body.rs` and `tests/limits.rs`.

use std::rc::Rc;

use monoio::buf::IoBufMut;
use monoio::io::AsyncReadRent;

use super::connection::{Connection, Gone, Next};
use super::core::Reservation;
use super::output::may_go_on;
use super::requests::{Called, Overload, call, overloaded, refuse};
use super::{Admit, Event, Service};
use crate::http::chunked::Decoder;
use crate::http::head::{self, BadRequest};
use crate::http::{Framing, Head, Parsed, Reply, ReplyContext};

/// The first allocation for a body.
const FIRST_STEP: usize = 64 * 1024;
/// A body that has come so far gets the rest of its memory at once.
const DOUBLED_MAX: usize = 1024 * 1024;
/// Free room behind the head while a chunked body is decoded through the read buffer.
const CHUNK_ROOM: usize = 16 * 1024;
/// The rest of a refused body is read over up to this size; past it the connection closes.
const SKIP_MAX: u64 = 64 * 1024;

/// The decision before the body.
enum Plan<S: Service> {
    Collect {
        body: Expected,
        head_len: usize,
        ask: bool,
        reservation: Reservation<S>,
    },
    /// Answered: read over the rest of the request.
    Skip {
        length: usize,
    },
    Next(Next),
}

/// How the body ends.
enum Expected {
    Length(usize),
    Chunks,
}

impl<S: Service> Connection<S> {
    /// Serves the request at `start`. `None`: it has been served, go on with the buffer.
    pub(super) async fn body(&mut self) -> Result<Option<Next>, Gone> {
        match self.plan() {
            Plan::Next(next) => Ok(Some(next)),
            Plan::Skip { length } => {
                self.flush().await?;
                self.skip(length).await?;
                Ok(None)
            }
            Plan::Collect { body, head_len, ask, reservation } => {
                self.flush().await?;
                self.answers = self.seat.core.take_answers();
                if ask {
                    let mut interim = b"HTTP/1.1 100 Continue\r\n\r\n".to_vec();
                    self.send(&mut interim, false).await?;
                }
                match body {
                    Expected::Length(length) => self.collect(head_len, length, reservation).await,
                    Expected::Chunks => self.decode(head_len, reservation).await,
                }
            }
        }
    }

    fn plan(&mut self) -> Plan<S> {
        let core = Rc::clone(&self.seat.core);
        let bytes = &self.buffer[self.start..];
        // It has been parsed a moment ago, but a head borrows the buffer and cannot wait for the rest.
        let Parsed::Complete(head) = head::parse(bytes, core.limits.header_max) else {
            unreachable!("a head that was whole stays whole");
        };
        let here = bytes.len() - head.head_len;
        let ask = head.expect_continue && here == 0;
        let mut reservation = Reservation::new(&core);
        let (body, reserved, left) = match head.body {
            Framing::Length(length) => {
                let length = length as usize;
                (Expected::Length(length), reservation.grow(length), length as u64 - here as u64)
            }
            _ => (Expected::Chunks, reservation.grow(here), u64::MAX),
        };
        let mut context = ReplyContext::new(&head, &core.date());
        let open = context.keep_alive && !core.shared.draining();
        // A client that waits for 100 may or may not send the body after a refusal: only closing is unambiguous.
        context.keep_alive = open && left <= SKIP_MAX && !ask;
        let mut reply = Reply::new(&mut self.answers.bytes, context);
        if core.requests_full() {
            overloaded(&core, &mut self.answers, context, Overload::Requests);
        } else if !reserved {
            overloaded(&core, &mut self.answers, context, Overload::Bodies);
        } else {
            match core.service.admit(&head, &mut reply) {
                Admit::Body => {
                    return Plan::Collect { body, head_len: head.head_len, ask, reservation };
                }
                Admit::HandOff => return Plan::Next(Next::HandOff(bytes.to_vec())),
                Admit::Answered => {
                    context = reply.context();
                    let tag = reply.tagged();
                    self.seat.begin_request();
                    self.answers.tags.push(tag);
                }
            }
        }
        match head.body {
            Framing::Length(length) if context.keep_alive => Plan::Skip { length: head.head_len + length as usize },
            _ => Plan::Next(Next::Linger),
        }
    }

    /// Reads over `length` bytes from `start`.
    async fn skip(&mut self, length: usize) -> Result<(), Gone> {
        let mut left = length;
        loop {
            let here = self.buffer.len() - self.start;
            if here >= left {
                self.consume(left);
                return Ok(());
            }
            left -= here;
            self.reading();
            self.buffer.clear();
            self.start = 0;
            self.read().await?;
        }
    }

    /// Collects a body of known length.
    async fn collect(
        &mut self,
        head_len: usize,
        length: usize,
        reservation: Reservation<S>,
    ) -> Result<Option<Next>, Gone> {
        let body_at = self.start + head_len;
        let mut body = Vec::with_capacity(length.min(FIRST_STEP.max(self.buffer.len() - body_at)));
        body.extend_from_slice(&self.buffer[body_at..]);
        self.buffer.truncate(body_at);
        self.reading();
        while body.len() < length {
            if body.len() == body.capacity() {
                // By doubling at first, so that nobody gets memory for a promise; then all of it at once, which is reserved anyway: each
                // doubling leaves a large block to the allocator, which keeps it for a while.
                let rest = length - body.len();
                body.reserve_exact(if body.len() < DOUBLED_MAX { body.len().min(rest) } else { rest });
            }
            let (from, to) = (body.len(), body.capacity().min(length));
            let (result, slice) = self.stream.read(body.slice_mut(from..to)).await;
            body = slice.into_inner();
            match result {
                Ok(0) => return Err(Gone),
                Ok(more) => self.seat.core.service.event(Event::BytesIn(more)),
                Err(error) if may_go_on(&error) => {}
                Err(_) => return Err(Gone),
            }
        }
        self.resumed();
        let next = self.call_with(head_len, &body, head_len);
        drop(reservation);
        Ok(next)
    }

    /// Collects a chunked body: raw bytes come behind the head in the read buffer and are decoded from there.
    async fn decode(&mut self, head_len: usize, mut reservation: Reservation<S>) -> Result<Option<Next>, Gone> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let core = Rc::clone(&self.seat.core);
        let mut decoder = Decoder::new(core.limits.body_max);
        let mut body = Vec::new();
        loop {
            let progress = match decoder.feed(&self.buffer[head_len..], &mut body) {
                Ok(progress) => progress,
                Err(error) => return Ok(Some(self.refuse_body(head_len, &error.into()))),
            };
            if progress.done {
                return Ok(self.call_with(head_len, &body, head_len + progress.consumed));
            }
            if !reservation.grow(body.capacity()) {
                let context = self.context_of(head_len);
                overloaded(&core, &mut self.answers, context, Overload::Bodies);
                return Ok(Some(Next::Linger));
            }
            self.buffer.truncate(head_len);
            if self.buffer.capacity() - head_len < CHUNK_ROOM {
                self.buffer.reserve_exact(CHUNK_ROOM);
            }
            self.reading();
            self.read().await?;
        }
    }

    /// Calls the service with a body that was collected; the request takes `length` bytes of the read buffer.
    fn call_with(&mut self, head_len: usize, body: &[u8], length: usize) -> Option<Next> {
        let core = Rc::clone(&self.seat.core);
        let bytes = &self.buffer[self.start..self.start + head_len];
        let Parsed::Complete(head) = head::parse(bytes, core.limits.header_max) else {
            unreachable!("a head that was whole stays whole");
        };
        let mut context = ReplyContext::new(&head, &core.date());
        context.keep_alive &= !core.shared.draining();
        match call(&core, &mut self.seat, &mut self.answers, context, &head, body) {
            Called::Next => {
                self.consume(length);
                None
            }
            Called::HandOff => {
                let mut read = bytes.to_vec();
                frame_again(&head, body, &mut read);
                read.extend_from_slice(&self.buffer[self.start + length..]);
                Some(Next::HandOff(read))
            }
            Called::Other(next) => {
                self.consume(length);
                Some(self.close_or_linger(next))
            }
        }
    }

    fn refuse_body(&mut self, head_len: usize, bad: &BadRequest) -> Next {
        let context = self.context_of(head_len);
        refuse(&self.seat.core, &mut self.answers, context, bad)
    }

    /// The context of the last answer, to the request at `start`.
    fn context_of(&self, head_len: usize) -> ReplyContext {
        let core = &self.seat.core;
        let mut context = match head::parse(&self.buffer[self.start..self.start + head_len], core.limits.header_max) {
            Parsed::Complete(head) => ReplyContext::new(&head, &core.date()),
            _ => ReplyContext::unread(&core.date()),
        };
        context.keep_alive = false;
        context
    }
}

/// Writes a collected body as it could have come.
fn frame_again(head: &Head<'_>, body: &[u8], out: &mut Vec<u8>) {
    if head.body != Framing::Chunked {
        out.extend_from_slice(body);
        return;
    }
    if !body.is_empty() {
        out.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
        out.extend_from_slice(body);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
}

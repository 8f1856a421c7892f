//! Requests whose body is not completely in the read buffer: collects or discards the body.
//!
//! Bounds: `body_max` for a body, `body_bytes_max` for a core, `request_timeout` from the request's
//! first byte. A body of known length gets a buffer of that length once [`FIRST_PIECE`] of it have
//! come, and is not copied from then on. Memory that the system does not have is a `503`.
//!
//! Tested in `tests/body.rs`, `tests/bodies_in_memory.rs` and `tests/limits.rs`.

use std::rc::Rc;

use monoio::buf::IoBufMut;

use super::calls::{call, overloaded, refuse};
use super::connection::{Connection, Gone};
use super::core::Overload;
use super::next::{Awaited, Called, Next};
use super::pages;
use super::service::Service;
use crate::http::chunked::Decoder;
use crate::http::{Framing, Reply, ReplyContext};
use crate::transport::{Transport, may_go_on};

/// Bytes of free room behind the head while a chunked body is decoded through the read buffer.
const CHUNK_ROOM: usize = 16 * 1024;
/// Until so many bytes of a body have come, no more are allocated: a head that announces the largest
/// body costs its sender more than it costs the server.
const FIRST_PIECE: usize = 256 * 1024;
/// The most bytes of one read, which are counted when they are here.
const READ_MAX: usize = 1024 * 1024;

/// What became of a chunked body.
enum Decoded<S: Service> {
    /// It is complete, and took so many bytes behind the head.
    Whole { consumed: usize },
    /// The connection's last answer is made.
    Ended(Next<S>),
}

impl<S: Service, T: Transport> Connection<S, T> {
    /// Serves the request at `start`. `None` means that it has been served, and the buffer can be
    /// handled further.
    pub(super) async fn body(&mut self, awaited: Awaited<S>) -> Result<Option<Next<S>>, Gone> {
        self.flush().await?;
        self.answers = self.seat.core().take_answers();
        if awaited.ask {
            let mut interim = b"HTTP/1.1 100 Continue\r\n\r\n".to_vec();
            self.send(&mut interim, false).await?;
        }
        match awaited.framing {
            Framing::Length(length) => self.collect(awaited, length as usize).await,
            _ => self.decode(awaited).await,
        }
    }

    /// Sends the answer, and reads and discards `length` bytes from `start`.
    pub(super) async fn skip(&mut self, length: usize) -> Result<(), Gone> {
        self.flush().await?;
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
    async fn collect(&mut self, mut awaited: Awaited<S>, length: usize) -> Result<Option<Next<S>>, Gone> {
        let mut body = Vec::new();
        match self.receive_into(&mut body, &mut awaited, length).await {
            Ok(None) => {
                self.resumed();
                let head_len = awaited.head_len;
                Ok(self.call_with(awaited, body, head_len))
            }
            ended => {
                pages::let_go(body, self.is_short());
                ended
            }
        }
    }

    /// Receives a body of known length; `None` once it is whole.
    async fn receive_into(
        &mut self,
        body: &mut Vec<u8>,
        awaited: &mut Awaited<S>,
        length: usize,
    ) -> Result<Option<Next<S>>, Gone> {
        let body_at = self.start + awaited.head_len;
        let first = length.min(FIRST_PIECE.max(self.buffer.len() - body_at));
        if body.try_reserve_exact(first).is_err() {
            return Ok(Some(self.give_up(awaited, Overload::Memory)));
        }
        body.extend_from_slice(&self.buffer[body_at..]);
        self.buffer.truncate(body_at);
        self.reading();
        while body.len() < length {
            if body.len() == body.capacity() && body.try_reserve_exact(length - body.len()).is_err() {
                return Ok(Some(self.give_up(awaited, Overload::Memory)));
            }
            let (from, to) = (body.len(), length.min(body.capacity()).min(body.len() + READ_MAX));
            let (result, slice) = self.transport.receive(std::mem::take(body).slice_mut(from..to)).await;
            *body = slice.into_inner();
            match result {
                Ok(0) => return Err(Gone),
                Ok(more) => {
                    self.seat.received(more);
                    if !awaited.reservation.grow(body.len()) {
                        return self.no_room(awaited).map(Some);
                    }
                }
                Err(error) if may_go_on(&error) => {}
                Err(_) => return Err(Gone),
            }
        }
        Ok(None)
    }

    /// Whether bodies have a good part of the memory that the core has for them.
    fn is_short(&self) -> bool {
        let core = self.seat.core();
        !core.bodies.has_room(core.limits.body_bytes_max / 4 * 3, core.limits.body_bytes_max)
    }

    /// What becomes of a body that has no room: it is refused, unless it has given way before.
    #[cold]
    fn no_room(&mut self, awaited: &Awaited<S>) -> Result<Next<S>, Gone> {
        if self.seat.request_expired().is_some() {
            return Err(Gone);
        }
        Ok(self.give_up(awaited, Overload::Bodies))
    }

    /// Refuses a body of which a part has come.
    #[cold]
    fn give_up(&mut self, awaited: &Awaited<S>, why: Overload) -> Next<S> {
        let context = self.last_context(awaited.context);
        overloaded(&self.seat, &mut self.answers, context, why);
        Next::Close
    }

    /// Collects a chunked body: raw bytes are read into the buffer behind the head and decoded from
    /// there.
    async fn decode(&mut self, mut awaited: Awaited<S>) -> Result<Option<Next<S>>, Gone> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let mut body = Vec::new();
        match self.decode_into(&mut body, &mut awaited).await {
            Ok(Decoded::Whole { consumed }) => {
                let length = awaited.head_len + consumed;
                Ok(self.call_with(awaited, body, length))
            }
            Ok(Decoded::Ended(next)) => {
                pages::let_go(body, self.is_short());
                Ok(Some(next))
            }
            Err(Gone) => {
                pages::let_go(body, self.is_short());
                Err(Gone)
            }
        }
    }

    async fn decode_into(&mut self, body: &mut Vec<u8>, awaited: &mut Awaited<S>) -> Result<Decoded<S>, Gone> {
        let (core, head_len) = (Rc::clone(self.seat.core()), awaited.head_len);
        let mut decoder = Decoder::new(core.limits.body_max);
        loop {
            // What is decoded is no longer than what it is decoded from.
            if body.try_reserve(self.buffer.len() - head_len).is_err() {
                return Ok(Decoded::Ended(self.give_up(awaited, Overload::Memory)));
            }
            let progress = match decoder.feed(&self.buffer[head_len..], body) {
                Ok(progress) => progress,
                Err(error) => {
                    let context = self.last_context(awaited.context);
                    return Ok(Decoded::Ended(refuse(&core, &mut self.answers, context, &error.into())));
                }
            };
            if progress.done {
                return Ok(Decoded::Whole { consumed: progress.consumed });
            }
            if !awaited.reservation.grow(body.len()) {
                return self.no_room(awaited).map(Decoded::Ended);
            }
            self.buffer.truncate(head_len);
            if self.buffer.capacity() - head_len < CHUNK_ROOM {
                self.buffer.reserve_exact(CHUNK_ROOM);
            }
            self.reading();
            self.read().await?;
        }
    }

    /// Calls the service with a body that was collected; the request takes `length` bytes of the
    /// read buffer.
    fn call_with(&mut self, awaited: Awaited<S>, body: Vec<u8>, length: usize) -> Option<Next<S>> {
        let core = Rc::clone(self.seat.core());
        let Awaited { admitted, mut context, is_safe, is_urgent, framing, head_len, .. } = awaited;
        context.set_date(&core.date());
        context.keep_alive &= !core.draining();
        let body = pages::shared(body, self.is_short());
        let its_body = body.clone();
        let serve = |reply: &mut Reply<'_>| core.service.call_admitted(admitted, its_body, reply);
        match call(&mut self.seat, &mut self.answers, context, (is_safe, || is_urgent), serve) {
            Called::Next => {
                self.consume(length);
                None
            }
            Called::HandOff => {
                let mut read = self.buffer[self.start..self.start + head_len].to_vec();
                frame_again(framing, &body, &mut read);
                read.extend_from_slice(&self.buffer[self.start + length..]);
                Some(Next::HandOff(read))
            }
            Called::Other(next) => {
                self.consume(length);
                Some(next)
            }
        }
    }

    /// The context of a connection's last answer.
    fn last_context(&self, mut context: ReplyContext) -> ReplyContext {
        context.set_date(&self.seat.core().date());
        context.keep_alive = false;
        context
    }
}

/// Encodes a collected body in a way in which it could have come.
fn frame_again(framing: Framing, body: &[u8], out: &mut Vec<u8>) {
    if framing != Framing::Chunked {
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

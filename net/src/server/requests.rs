//! From bytes in the read buffer to calls of the service, and the answers that the connection gives
//! by itself.
//!
//! Nothing here waits: [`Connection::handle`] goes through the buffer until it needs something that
//! only the connection's task can do. Tested in `tests/connection.rs` and `tests/limits.rs`.

use std::borrow::Cow;
use std::rc::Rc;

use super::answers::Answers;
use super::body::plan;
use super::connection::{Connection, Next};
use super::core::{Core, Seat};
use super::{Event, Outcome, Service};
use crate::http::chunked::Decoder;
use crate::http::head::{self, BadRequest};
use crate::http::{Framing, Parsed, Reply, ReplyContext, Version};
use crate::transport::Transport;

/// The result of a call of the service.
pub(super) enum Called<S: Service> {
    /// The request is answered, and the connection goes on.
    Next,
    /// The request is answered, or about to be: see [`Next`].
    Other(Next<S>),
    /// The connection must be handed off, from the request's first byte on.
    HandOff,
}

impl<S: Service, T: Transport> Connection<S, T> {
    /// Handles complete requests from the buffer until there is none, the batch is full, or
    /// something else must be done.
    pub(super) fn handle(&mut self) -> Next<S> {
        if self.start == self.buffer.len() {
            return Next::Read;
        }
        let core = Rc::clone(self.seat.core());
        let limits = &core.limits;
        let date = core.date();
        if self.answers.is_new() {
            self.answers = core.take_answers();
        }
        loop {
            let bytes = &self.buffer[self.start..];
            if bytes.is_empty() {
                return Next::Read;
            }
            if self.answers.full() {
                return Next::Flush;
            }
            // A head ends with a line feed: without a new one there is no need to parse again, so a
            // client that sends byte by byte costs no more than any other.
            if self.scanned > 0 && bytes.len() <= limits.header_max && !bytes[self.scanned..].contains(&b'\n') {
                return Next::Read;
            }
            let head = match head::parse(bytes, limits.header_max) {
                Parsed::Complete(head) => head,
                Parsed::Partial => return Next::Read,
                Parsed::Bad(bad) => {
                    return refuse(&core, &mut self.answers, ReplyContext::unread(&date), &bad);
                }
            };
            let mut context = ReplyContext::new(&head, &date);
            context.keep_alive &= !core.draining();
            let rest = &bytes[head.head_len..];
            let decoded;
            let (body, body_len) = match head.body {
                Framing::None => (&[][..], 0),
                Framing::Length(length) if length > limits.body_max as u64 => {
                    let bad = too_large(length, limits.body_max);
                    return refuse(&core, &mut self.answers, context, &bad);
                }
                Framing::Length(length) if length <= rest.len() as u64 => {
                    let length = length as usize;
                    (&rest[..length], length)
                }
                Framing::Length(_) => return plan(&core, &mut self.seat, &mut self.answers, &head, bytes),
                Framing::Chunked => {
                    let mut data = Vec::new();
                    match Decoder::new(limits.body_max).feed(rest, &mut data) {
                        Ok(progress) if progress.done => {
                            decoded = data;
                            (&decoded[..], progress.consumed)
                        }
                        Ok(_) => return plan(&core, &mut self.seat, &mut self.answers, &head, bytes),
                        Err(error) => {
                            return refuse(&core, &mut self.answers, context, &error.into());
                        }
                    }
                }
            };
            let length = head.head_len + body_len;
            let is_urgent = || core.service.is_urgent(&head);
            let serve = |reply: &mut Reply<'_>| core.service.call(&head, body, reply);
            match call(&core, &mut self.seat, &mut self.answers, context, is_urgent, serve) {
                Called::Next => self.consume(length),
                Called::HandOff => return Next::HandOff(bytes.to_vec()),
                Called::Other(next) => {
                    self.consume(length);
                    return self.close_or_linger(next);
                }
            }
        }
    }

    /// If a connection closes with input left, it must linger; otherwise the answer may be lost.
    pub(super) fn close_or_linger(&self, next: Next<S>) -> Next<S> {
        match next {
            Next::Close if self.start < self.buffer.len() || self.seat.core().draining() => Next::Linger,
            next => next,
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

/// Lets the service `serve` a complete request.
#[inline]
pub(super) fn call<S: Service>(
    core: &Core<S>,
    seat: &mut Seat<S>,
    answers: &mut Answers,
    context: ReplyContext,
    is_urgent: impl FnOnce() -> bool,
    serve: impl FnOnce(&mut Reply<'_>) -> Outcome,
) -> Called<S> {
    if core.requests_full() && !is_urgent() {
        overloaded(core, answers, context, Overload::Requests);
        return if context.keep_alive { Called::Next } else { Called::Other(Next::Close) };
    }
    let mut reply = Reply::new(&mut answers.bytes, context);
    let outcome = serve(&mut reply);
    let (tag, context) = (reply.tagged(), reply.context());
    if let Outcome::HandOff = outcome {
        return Called::HandOff;
    }
    seat.begin_request();
    if let Outcome::Stream(source) = outcome {
        // A body that ends with the connection leaves no other choice.
        let keep_alive = context.keep_alive && (context.head || context.version == Version::Http11);
        let mut context = context;
        context.keep_alive = keep_alive;
        if !context.head {
            return Called::Other(Next::Stream { source, context, tag });
        }
        answers.tags.push(tag);
        return if keep_alive { Called::Next } else { Called::Other(Next::Close) };
    }
    answers.tags.push(tag);
    match outcome {
        Outcome::Value(value) if !context.head => answers.push_value(value),
        Outcome::Later(answer) => answers.push_later(answer, context.head),
        _ => {}
    }
    if context.keep_alive { Called::Next } else { Called::Other(Next::Close) }
}

/// Answers a request that cannot be served and ends the connection.
#[cold]
pub(super) fn refuse<S: Service>(
    core: &Core<S>,
    answers: &mut Answers,
    mut context: ReplyContext,
    bad: &BadRequest,
) -> Next<S> {
    match bad.status {
        // This was counted when the deadline struck.
        408 => {}
        413 => core.service.event(Event::BodyTooLarge),
        431 => core.service.event(Event::HeaderTooLarge),
        _ => core.service.event(Event::BadRequest),
    }
    context.keep_alive = false;
    context.error(&mut answers.bytes, bad.status, &bad.sentence);
    Next::Linger
}

#[derive(Clone, Copy)]
pub(super) enum Overload {
    Requests,
    Bodies,
}

/// Answers `503`: an answer now is better than a late one.
#[cold]
pub(super) fn overloaded<S: Service>(core: &Core<S>, answers: &mut Answers, context: ReplyContext, what: Overload) {
    core.service.event(Event::Overloaded);
    let sentence = match what {
        Overload::Requests => format!(
            "{} requests are in flight on this core, which is the limit; try again in a second.",
            core.limits.requests_in_flight_max
        ),
        Overload::Bodies => format!(
            "The request bodies being received on this core would pass the limit of {} bytes; try again in a second.",
            core.limits.body_bytes_max
        ),
    };
    context.error_with(&mut answers.bytes, 503, "Retry-After", "1", &sentence);
}

pub(super) fn too_large(length: u64, body_max: usize) -> BadRequest {
    BadRequest {
        status: 413,
        sentence: Cow::Owned(format!("The body of {length} bytes is larger than the limit of {body_max} bytes.")),
    }
}

//! From bytes in the read buffer to calls of the service.
//!
//! Nothing here waits: [`Connection::handle`] goes through the buffer until it needs something that
//! only the connection's task can do. Tested in `tests/connection.rs` and `tests/limits.rs`.

use std::rc::Rc;

use super::calls::{admit, call, refuse, too_large};
use super::connection::Connection;
use super::next::{Called, Next};
use super::service::Service;
use crate::http::chunked::Decoder;
use crate::http::head;
use crate::http::{Framing, Parsed, Reply, ReplyContext};
use crate::transport::Transport;

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
            let is_safe = head.method.is_safe();
            if self.answers.must_wait(is_safe) {
                return Next::Flush;
            }
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
                Framing::Length(_) => return admit(&core, &mut self.seat, &mut self.answers, &head, bytes),
                Framing::Chunked => {
                    let mut data = Vec::new();
                    match Decoder::new(limits.body_max).feed(rest, &mut data) {
                        Ok(progress) if progress.done => {
                            decoded = data;
                            (&decoded[..], progress.consumed)
                        }
                        Ok(_) => return admit(&core, &mut self.seat, &mut self.answers, &head, bytes),
                        Err(error) => {
                            return refuse(&core, &mut self.answers, context, &error.into());
                        }
                    }
                }
            };
            let length = head.head_len + body_len;
            let is_urgent = || core.service.is_urgent(&head);
            let serve = |reply: &mut Reply<'_>| core.service.call(&head, body, reply);
            match call(&mut self.seat, &mut self.answers, context, (is_safe, is_urgent), serve) {
                Called::Next => self.consume(length),
                Called::HandOff => return Next::HandOff(bytes.to_vec()),
                Called::Other(next) => {
                    self.consume(length);
                    return next;
                }
            }
        }
    }
}

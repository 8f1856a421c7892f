//! Calls of the service, and the answers that the server gives by itself.
//!
//! Nothing here waits or reads. Tested in `tests/limits.rs` and `tests/body.rs`.

use std::borrow::Cow;
use std::rc::Rc;

use super::answers::Answers;
use super::core::{HttpCore, HttpSeat, Overload};
use super::next::{Awaited, Called, Next};
use super::reservation::Reservation;
use super::service::{Admit, Event, Outcome, Service};
use crate::http::head::BadRequest;
use crate::http::{Framing, Head, Reply, ReplyContext, Version};

/// The rest of a refused body is read and discarded up to this size; if it is larger, the
/// connection closes.
const SKIP_MAX: u64 = 64 * 1024;

/// Decides on the request at the beginning of `bytes`, whose body is not complete there.
#[cold]
pub(super) fn admit<S: Service>(
    core: &Rc<HttpCore<S>>,
    seat: &mut HttpSeat<S>,
    answers: &mut Answers,
    head: &Head<'_>,
    bytes: &[u8],
) -> Next<S> {
    let here = bytes.len() - head.head_len;
    let ask = head.expect_continue && here == 0;
    let mut reservation = Reservation::new(core, seat.seat());
    let (fits, left) = match head.body {
        Framing::Length(length) => (reservation.could_be(length as usize), length - here as u64),
        _ => (true, u64::MAX),
    };
    let mut context = ReplyContext::new(head, &core.date());
    let open = context.keep_alive && !core.draining();
    // A client that waits for 100 may or may not send the body after a refusal: only closing is
    // unambiguous.
    context.keep_alive = open && left <= SKIP_MAX && !ask;
    if let Some(what) = seat.overload() {
        overloaded(seat, answers, context, what);
    } else if !fits || !reservation.grow(here) {
        overloaded(seat, answers, context, Overload::Bodies);
    } else {
        let mut reply = Reply::new(&mut answers.bytes, context);
        match core.service.admit(head, &mut reply) {
            Admit::Body(admitted) => {
                let (is_safe, is_urgent) = (head.method.is_safe(), core.service.is_urgent(head));
                let (framing, head_len) = (head.body, head.head_len);
                let lines = reply.context().lines();
                let mut context = ReplyContext::new(head, &core.date());
                context.set_lines(lines);
                let awaited = Awaited { admitted, context, is_safe, is_urgent, framing, head_len, ask, reservation };
                return Next::Body(Box::new(awaited));
            }
            Admit::HandOff => return Next::HandOff(bytes.to_vec()),
            Admit::Answered => {
                context = reply.context();
                let tag = reply.tagged();
                seat.begin_request();
                answers.tags.push(tag);
            }
        }
    }
    match head.body {
        Framing::Length(length) if context.keep_alive => Next::Skip { length: head.head_len + length as usize },
        _ => Next::Close,
    }
}

/// Lets the service `serve` a complete request.
#[inline]
pub(super) fn call<S: Service>(
    seat: &mut HttpSeat<S>,
    answers: &mut Answers,
    context: ReplyContext,
    (is_safe, is_urgent): (bool, impl FnOnce() -> bool),
    serve: impl FnOnce(&mut Reply<'_>) -> Outcome,
) -> Called<S> {
    if let Some(what) = seat.overload()
        && !is_urgent()
    {
        overloaded(seat, answers, context, what);
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
        Outcome::Later(answer) => answers.push_later(answer, context.head, is_safe),
        _ => {}
    }
    if context.keep_alive { Called::Next } else { Called::Other(Next::Close) }
}

/// Answers a request that cannot be served and ends the connection.
#[cold]
pub(super) fn refuse<S: Service>(
    core: &HttpCore<S>,
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
    Next::Close
}

/// Answers `503`: an answer now is better than a late one.
#[cold]
pub(super) fn overloaded<S: Service>(seat: &HttpSeat<S>, answers: &mut Answers, context: ReplyContext, what: Overload) {
    let core = seat.core();
    match what {
        Overload::OfAddress => core.service.event(Event::AddressRequests),
        // This was counted when it gave way.
        Overload::Stalled => {}
        _ => core.service.event(Event::Overloaded),
    }
    let sentence = match what {
        Overload::Requests => format!(
            "{} requests are in flight on this core, which is the limit; try again in a second.",
            core.limits.requests_in_flight_max
        ),
        Overload::OfAddress => format!(
            "{} requests of your address are in flight on this core, which is the limit; try again in a second.",
            seat.address_max()
        ),
        Overload::Bodies => format!(
            "The request bodies being received on this core would pass the limit of {} bytes; try again in a second.",
            core.limits.body_bytes_max
        ),
        Overload::Stalled => {
            "Nothing of the body came for a while, and others needed the memory that this core has for \
                              bodies; try again in a second."
                .to_owned()
        }
        Overload::Memory => "The node has no memory left for the body; try again in a second.".to_owned(),
    };
    context.error_with(&mut answers.bytes, 503, "Retry-After", "1", &sentence);
}

pub(super) fn too_large(length: u64, body_max: usize) -> BadRequest {
    BadRequest {
        status: 413,
        sentence: Cow::Owned(format!("The body of {length} bytes is larger than the limit of {body_max} bytes.")),
    }
}

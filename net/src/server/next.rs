//! What a connection does when it can handle no more requests at once.

use super::reservation::Reservation;
use super::service::{Service, Source};
use crate::http::{Framing, ReplyContext};

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
    /// The connection's last answer is in the batch.
    Close,
    HandOff(Vec<u8>),
}

/// The result of a call of the service.
pub(super) enum Called<S: Service> {
    /// The request is answered, and the connection goes on.
    Next,
    /// The request is answered, or about to be: see [`Next`].
    Other(Next<S>),
    /// The connection must be handed off, from the request's first byte on.
    HandOff,
}

/// A request whose body is still to come.
pub(super) struct Awaited<S: Service> {
    pub(super) admitted: S::Admitted,
    /// The context of the answer.
    pub(super) context: ReplyContext,
    /// Whether the request changes nothing.
    pub(super) is_safe: bool,
    pub(super) is_urgent: bool,
    pub(super) framing: Framing,
    pub(super) head_len: usize,
    /// Whether the client waits for `100 Continue`.
    pub(super) ask: bool,
    pub(super) reservation: Reservation<S>,
}

//! Answers that are not ready when a request has been handled.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;

/// An answer that comes later. It writes itself into the buffer from which it is sent, so that it
/// needs none of its own.
pub trait Later {
    /// Once the answer is ready, writes the head, and the body if it is short, behind what is in
    /// `out`, using a [`ReplyContext`](crate::http::ReplyContext). Nothing is written before that,
    /// and this is not called again after it.
    fn poll_answer(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Answered>;

    /// Whether what was asked is done already and only its confirmation is awaited, so that the
    /// connection's next requests need not wait for the answer to take effect after it.
    fn took_effect(&self) -> bool {
        false
    }
}

/// What the server must know about an answer beside the bytes that were written.
#[derive(Debug, Default)]
pub struct Answered {
    /// A body that follows without being copied; `None` if there is none. It is left out after
    /// `HEAD`.
    pub value: Option<Bytes>,
    /// The mark for [`Service::finished`](super::Service::finished).
    pub tag: u16,
}

/// A future, and the function that writes its result.
pub(super) struct When<F, W> {
    pub(super) took_effect: bool,
    pub(super) future: F,
    /// The function; `None` once it has been called.
    pub(super) write: Option<W>,
}

impl<F: Future + Unpin, W: FnOnce(F::Output, &mut Vec<u8>) -> Answered> Later for When<F, W> {
    fn poll_answer(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Answered> {
        Pin::new(&mut self.future).poll(cx).map(|result| {
            let write = self.write.take().expect("nobody polls what has been ready");
            write(result, out)
        })
    }

    fn took_effect(&self) -> bool {
        self.took_effect
    }
}

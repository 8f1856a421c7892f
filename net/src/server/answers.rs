//! The answers to a batch of requests, in order, before they are sent.
//!
//! Most are bytes in one buffer. Values that must not be copied, and answers that are not ready
//! yet, are parts beside it, each with the position in the buffer to which it belongs.
//!
//! Bounds: [`Answers::full`] says when the batch must be sent. Invariants:
//! 1. `at` of the parts never decreases.
//! 2. `pending` says what the answers to be awaited have not done yet; whoever would call the
//!    service asks [`Answers::must_wait`] first, so that requests take effect in their order.
//!
//! Tested through `tests/connection.rs`.

use bytes::Bytes;

use super::later::Later;

/// A batch is sent when it has this many bytes, including those of values.
const BATCH_BYTES_MAX: usize = 256 * 1024;
/// A batch is sent when it has this many parts.
const BATCH_PARTS_MAX: usize = 128;
/// Buffers larger than this many bytes are not kept.
const KEEP_MAX: usize = 64 * 1024;

pub(crate) enum Part {
    /// A value that is sent as it is.
    Value(Bytes),
    /// An answer to be awaited. `request` is the index of its tag; if `head` is set, its value is
    /// left out.
    Later { answer: Box<dyn Later>, request: usize, head: bool },
}

/// What the requests of a batch may still do, whose answers are awaited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pending {
    /// Nothing: each has taken effect.
    #[default]
    Nothing,
    /// They read.
    Reads,
    /// They change something.
    Writes,
}

#[derive(Default)]
pub(crate) struct Answers {
    pub(crate) bytes: Vec<u8>,
    pub(crate) parts: Vec<(usize, Part)>,
    /// The tags of the requests whose answers end in this batch.
    pub(crate) tags: Vec<u16>,
    value_bytes: usize,
    pending: Pending,
}

impl Answers {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.parts.is_empty()
    }

    /// How many bytes are known so far, including those of values.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() + self.value_bytes
    }

    #[inline]
    pub(crate) fn full(&self) -> bool {
        self.len() >= BATCH_BYTES_MAX || self.parts.len() >= BATCH_PARTS_MAX
    }

    pub(crate) fn push_value(&mut self, value: Bytes) {
        if !value.is_empty() {
            self.value_bytes += value.len();
            self.parts.push((self.bytes.len(), Part::Value(value)));
        }
    }

    /// Adds an answer that comes later. The tag of its request must have been pushed before.
    /// `is_safe` says whether the request changes nothing.
    pub(crate) fn push_later(&mut self, answer: Box<dyn Later>, head: bool, is_safe: bool) {
        if !answer.took_effect() {
            self.pending = self.pending.max(if is_safe { Pending::Reads } else { Pending::Writes });
        }
        let request = self.tags.len() - 1;
        self.parts.push((self.bytes.len(), Part::Later { answer, request, head }));
    }

    /// Whether the next request, which changes nothing if it `is_safe`, could take effect before one
    /// whose answer is awaited. The batch must be sent first.
    #[inline]
    pub(crate) fn must_wait(&self, is_safe: bool) -> bool {
        match self.pending {
            Pending::Nothing => false,
            Pending::Reads => !is_safe,
            Pending::Writes => true,
        }
    }

    /// Empties the batch and keeps its buffers.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.parts.clear();
        self.tags.clear();
        self.value_bytes = 0;
        self.pending = Pending::Nothing;
    }

    /// Whether it has no buffers yet, so that one of the core's may take its place.
    pub(crate) fn is_new(&self) -> bool {
        // A batch of answers that come later has parts and no bytes.
        self.bytes.capacity() == 0 && self.parts.capacity() == 0 && self.tags.capacity() == 0
    }

    pub(crate) fn worth_keeping(&self) -> bool {
        !self.is_new() && self.bytes.capacity() <= KEEP_MAX
    }
}

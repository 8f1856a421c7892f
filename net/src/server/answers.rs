//! The answers of a batch of requests, in order, before they leave.
//!
//! Most are bytes in one buffer. Values that must not be copied and answers that are not ready yet are parts beside it,
//! each with the place in the buffer where it belongs.
//!
//! Bounds: [`Answers::full`] says when the batch must leave. Invariant: `at` of the parts never decreases.
//! Tested through `tests/connection.rs`.

use bytes::Bytes;

use super::Later;

/// A batch leaves when it has this many bytes, counting the values it pins.
const BATCH_BYTES_MAX: usize = 256 * 1024;
/// A batch leaves when it has this many parts.
const BATCH_PARTS_MAX: usize = 128;
/// Buffers larger than this are not kept.
const KEEP_MAX: usize = 64 * 1024;

pub(crate) enum Part {
    /// Goes out as it is.
    Value(Bytes),
    /// To be awaited. `request` is the index of its tag; `head` leaves out its value.
    Later { answer: Box<dyn Later>, request: usize, head: bool },
}

#[derive(Default)]
pub(crate) struct Answers {
    pub(crate) bytes: Vec<u8>,
    pub(crate) parts: Vec<(usize, Part)>,
    /// The tags of the requests whose answers end in this batch.
    pub(crate) tags: Vec<u16>,
    value_bytes: usize,
}

impl Answers {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.parts.is_empty()
    }

    /// Bytes known so far, with those of values.
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

    /// The tag of the request has been pushed before.
    pub(crate) fn push_later(&mut self, answer: Box<dyn Later>, head: bool) {
        let request = self.tags.len() - 1;
        self.parts.push((self.bytes.len(), Part::Later { answer, request, head }));
    }

    /// Empties it; the buffers stay.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.parts.clear();
        self.tags.clear();
        self.value_bytes = 0;
    }

    /// It has no buffers yet: one of the core's may take its place.
    pub(crate) fn is_new(&self) -> bool {
        // A batch of answers that come later has parts and no bytes.
        self.bytes.capacity() == 0 && self.parts.capacity() == 0 && self.tags.capacity() == 0
    }

    pub(crate) fn worth_keeping(&self) -> bool {
        !self.is_new() && self.bytes.capacity() <= KEEP_MAX
    }
}

//! Where a [`Source`](super::Source) puts its pieces: they become HTTP chunks, or plain bytes for
//! HTTP/1.0.
//!
//! Large values are sent along without being copied. Tested below and in `tests/connection.rs`.

use bytes::Bytes;

use super::answers::Answers;

/// Takes the pieces of a streamed body.
pub struct Sink<'a> {
    answers: &'a mut Answers,
    chunked: bool,
    from: usize,
}

impl<'a> Sink<'a> {
    pub(crate) fn new(answers: &'a mut Answers, chunked: bool) -> Self {
        let from = answers.len();
        Self { answers, chunked, from }
    }

    /// Adds one chunk made of `parts`; adds nothing if they are all empty.
    pub fn chunk(&mut self, parts: &[&[u8]]) {
        let size = parts.iter().map(|part| part.len()).sum();
        if size == 0 {
            return;
        }
        self.begin(size);
        for part in parts {
            self.answers.bytes.extend_from_slice(part);
        }
        self.end();
    }

    /// Adds one chunk made of `prefix`, which is copied, and `value`, which is not; adds nothing if
    /// both are empty.
    pub fn chunk_value(&mut self, prefix: &[u8], value: Bytes) {
        let size = prefix.len() + value.len();
        if size == 0 {
            return;
        }
        self.begin(size);
        self.answers.bytes.extend_from_slice(prefix);
        self.answers.push_value(value);
        self.end();
    }

    /// The number of bytes added during this fill, including frames and values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.answers.len() - self.from
    }

    /// Whether nothing has been added during this fill.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn begin(&mut self, size: usize) {
        if !self.chunked {
            return;
        }
        // The hexadecimal digits, from the right; 16 are enough for 64 bits.
        let (mut digits, mut at, mut rest) = ([0_u8; 16], 16, size);
        while rest > 0 {
            at -= 1;
            digits[at] = b"0123456789abcdef"[rest & 15];
            rest >>= 4;
        }
        self.answers.bytes.extend_from_slice(&digits[at..]);
        self.answers.bytes.extend_from_slice(b"\r\n");
    }

    fn end(&mut self) {
        if self.chunked {
            self.answers.bytes.extend_from_slice(b"\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_chunks_and_skips_empty_ones() {
        let mut answers = Answers::default();
        let mut sink = Sink::new(&mut answers, true);
        sink.chunk(&[b"key", b"\n", &[b'v'; 0x1234]]);
        sink.chunk(&[b"", b""]);
        sink.chunk_value(b"", Bytes::new());
        let framed = 4 + 2 + 0x1238 + 2;
        assert_eq!(sink.len(), framed);
        sink.chunk_value(b"k\n", Bytes::from_static(b"value"));
        assert_eq!(sink.len(), framed + 12);
        assert!(answers.bytes.starts_with(b"1238\r\nkey\nvvv"));
        assert!(answers.bytes.ends_with(b"\r\n7\r\nk\n\r\n"));
    }

    #[test]
    fn raw_for_http10() {
        let mut answers = Answers::default();
        let mut sink = Sink::new(&mut answers, false);
        assert!(sink.is_empty());
        sink.chunk(&[b"a", b"b"]);
        assert_eq!(answers.bytes, b"ab");
    }
}

//! Frames that wait to be sent: one buffer, and large values beside it that are not copied.
//!
//! Invariants:
//! 1. The stream is `bytes` with each part inserted at its position; the positions never decrease.
//! 2. `sent` is how much of the stream has been sent; `part` and `part_sent` say where that is, so
//!    that no send looks at what has been sent already.
//!
//! Deliberately absent: a bound, since its users have one. Tested below.

use std::io::{self, IoSlice};

use bytes::Bytes;

use super::sys;
use crate::transport::{PARTS_MAX, Transmit};

/// Values larger than this many bytes are not copied: at about this size a copy costs as much as
/// another part of a send.
pub(crate) const COPY_MAX: usize = 16 * 1024;
/// Buffers larger than this many bytes are not kept.
const KEEP_MAX: usize = 256 * 1024;

#[derive(Default)]
pub(crate) struct Outbox {
    pub(crate) bytes: Vec<u8>,
    parts: Vec<(usize, Bytes)>,
    part_bytes: usize,
    /// How many bytes of the buffer have been sent.
    sent: usize,
    /// How many parts have been sent.
    part: usize,
    /// How many bytes of the next part have been sent.
    part_sent: usize,
}

/// What comes next in the stream.
pub(crate) enum Segment {
    /// The bytes of the buffer from the first position to the second.
    Bytes(usize, usize),
    /// The rest of a value.
    Value(Bytes),
}

impl Outbox {
    /// Bytes of the whole stream, sent or not: this is what is held in memory.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() + self.part_bytes
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.parts.is_empty()
    }

    /// Appends a value.
    pub(crate) fn push_value(&mut self, value: Bytes) {
        if value.len() <= COPY_MAX {
            self.bytes.extend_from_slice(&value);
        } else {
            self.part_bytes += value.len();
            self.parts.push((self.bytes.len(), value));
        }
    }

    /// Empties the outbox; a buffer of moderate size is kept.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEEP_MAX);
        self.parts.clear();
        (self.part_bytes, self.sent, self.part, self.part_sent) = (0, 0, 0, 0);
    }

    /// What must be sent next; `None` if everything has been sent.
    pub(crate) fn next(&self) -> Option<Segment> {
        match self.parts.get(self.part) {
            Some((at, value)) if *at == self.sent => Some(Segment::Value(value.slice(self.part_sent..))),
            Some((at, _)) => Some(Segment::Bytes(self.sent, *at)),
            None if self.sent < self.bytes.len() => Some(Segment::Bytes(self.sent, self.bytes.len())),
            None => None,
        }
    }

    /// Notes that the next `count` bytes of the stream have been sent.
    #[inline]
    pub(crate) fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let until = self.parts.get(self.part).map_or(self.bytes.len(), |(at, _)| *at);
            let step = count.min(until - self.sent);
            self.sent += step;
            count -= step;
            if self.sent == until
                && let Some((_, value)) = self.parts.get(self.part)
            {
                let step = count.min(value.len() - self.part_sent);
                self.part_sent += step;
                count -= step;
                if self.part_sent == value.len() {
                    self.part += 1;
                    self.part_sent = 0;
                }
            } else {
                assert_eq!(count, 0, "no more is sent than there is");
            }
        }
    }

    /// Sends what the socket takes now; returns whether that was everything.
    ///
    /// # Errors
    /// The connection is lost.
    #[inline]
    pub(crate) fn send_now(&mut self, transmitter: &mut impl Transmit) -> io::Result<bool> {
        loop {
            let sent = if self.part == self.parts.len() {
                if self.sent == self.bytes.len() {
                    return Ok(true);
                }
                sys::replica_send(transmitter, &self.bytes[self.sent..])
            } else {
                self.send_parts(transmitter)
            };
            match sent {
                Ok(count) => self.advance(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    fn send_parts(&self, transmitter: &mut impl Transmit) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); PARTS_MAX];
        let (mut count, mut from) = (0, self.sent);
        let mut push = |bytes| {
            if count == slices.len() {
                return;
            }
            slices[count] = IoSlice::new(bytes);
            count += 1;
        };
        for (index, (at, value)) in self.parts.iter().enumerate().skip(self.part).take(PARTS_MAX / 2) {
            push(&self.bytes[from..*at]);
            push(if index == self.part { &value[self.part_sent..] } else { value });
            from = *at;
        }
        if self.parts.len() - self.part < PARTS_MAX / 2 {
            push(&self.bytes[from..]);
        }
        sys::replica_sendmsg(transmitter, &slices[..count])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;
    use std::os::fd::{AsRawFd, RawFd};
    use std::os::unix::net::UnixStream;

    use monoio::BufResult;
    use monoio::buf::IoBuf;

    use super::*;

    /// A socket that is only sent to without waiting.
    struct Raw(RawFd);

    impl Transmit for Raw {
        async fn transmit<B: IoBuf>(&mut self, _: B) -> BufResult<usize, B> {
            unreachable!("nobody waits here")
        }

        fn transmit_now(&mut self, bytes: &[u8], _: bool) -> io::Result<usize> {
            crate::transport::sys::send_now(self.0, bytes, 0)
        }

        fn transmit_parts_now(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
            crate::transport::sys::send_parts_now(self.0, parts)
        }
    }

    fn filled(values: usize) -> (Outbox, Vec<u8>) {
        let (mut outbox, mut expected) = (Outbox::default(), Vec::new());
        for number in 0..values {
            let head = vec![number as u8; number % 3];
            let size = [10, COPY_MAX + 1, 0, 3 * COPY_MAX][number % 4];
            let value = Bytes::from(vec![number as u8 ^ 0x80; size]);
            outbox.bytes.extend_from_slice(&head);
            expected.extend_from_slice(&head);
            expected.extend_from_slice(&value);
            outbox.push_value(value);
        }
        outbox.bytes.push(7);
        expected.push(7);
        (outbox, expected)
    }

    #[test]
    fn segments_are_the_stream_whatever_the_steps() {
        for step in [1, 7, 1000, COPY_MAX, 10 * COPY_MAX] {
            let (mut outbox, expected) = filled(9);
            assert_eq!(outbox.len(), expected.len());
            let mut seen = Vec::new();
            while let Some(segment) = outbox.next() {
                let bytes = match segment {
                    Segment::Bytes(from, to) => outbox.bytes[from..to].to_vec(),
                    Segment::Value(value) => value.to_vec(),
                };
                assert!(!bytes.is_empty());
                let count = step.min(bytes.len());
                seen.extend_from_slice(&bytes[..count]);
                outbox.advance(count);
            }
            assert!(seen == expected, "in steps of {step}");
            outbox.clear();
            assert!(outbox.is_empty() && outbox.next().is_none());
            assert_eq!(outbox.len(), 0);
        }
    }

    #[test]
    fn a_socket_gets_the_stream_as_it_takes_it() {
        for values in [0, 1, 9, 200] {
            let (mut outbox, expected) = filled(values);
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            let (mut seen, mut buffer) = (Vec::new(), vec![0; 100_000]);
            loop {
                let all = outbox.send_now(&mut Raw(ours.as_raw_fd())).unwrap();
                while let Ok(count) = theirs.read(&mut buffer) {
                    seen.extend_from_slice(&buffer[..count]);
                }
                if all {
                    break;
                }
            }
            assert!(seen == expected, "{values} values");
            drop(theirs);
            outbox.clear();
            outbox.bytes.push(1);
            assert!(outbox.send_now(&mut Raw(ours.as_raw_fd())).is_err());
        }
    }
}

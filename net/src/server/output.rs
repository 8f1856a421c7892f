//! A connection's output: sending a batch of answers, streaming a body, lingering before a close.
//!
//! The usual batch is one write through the driver. On io_uring it shares a system call with the
//! writes of other connections, which was measured to be about 5 % cheaper than a `send` of its
//! own; submitting the next read with it brought no further gain. A head before a value is sent at
//! once with `MSG_MORE`, so that both share a segment. A write takes at most [`WRITE_MAX`] bytes,
//! so that progress renews the deadline.
//!
//! Bounds: a batch (see `answers.rs`) and the values that it holds. Tested in `tests/connection.rs`
//! and `tests/stream.rs`.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use monoio::buf::{IoBuf, IoBufMut};

use super::answers::Part;
use super::connection::{Connection, Gone};
use super::deadlines::{LINGER, Phase};
use super::service::{Event, Fill, Service, Source};
use super::sink::Sink;
use crate::http::{ReplyContext, Version};
use crate::transport::{Transport, may_go_on, sys};

/// The most bytes of one write.
const WRITE_MAX: usize = 1024 * 1024;
/// The most bytes that are read and discarded while lingering: twice the largest body that any
/// server of this kind can be set to take (32 MiB), so that whoever sends one that is too large by
/// no more than that has the answer. More costs the client its connection.
const LINGER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The size of the buffer for them.
const LINGER_BUFFER: usize = 16 * 1024;

impl<S: Service, T: Transport> Connection<S, T> {
    /// Sends the answers of the batch and tells the service. Does nothing if the batch has no
    /// answers.
    #[inline]
    pub(super) async fn flush(&mut self) -> Result<(), Gone> {
        if !self.answers.is_empty() {
            if self.answers.parts.is_empty() {
                let mut bytes = std::mem::take(&mut self.answers.bytes);
                // The batch has been read just now, so there is no need to read the clock again.
                bytes = self.send_rest(bytes, 0, self.now).await?;
                self.answers.bytes = bytes;
            } else {
                self.send_parts().await?;
            }
            let before = self.now;
            self.resumed();
            let elapsed = self.now.saturating_duration_since(before);
            for tag in &self.answers.tags {
                self.seat.core().service.finished(*tag, elapsed);
            }
            self.seat.end_requests(self.answers.tags.len());
            self.answers.clear();
        }
        self.seat.core().give_answers(std::mem::take(&mut self.answers));
        Ok(())
    }

    /// Awaits the answers that are not ready and sends everything in order, with one write more
    /// than there are values.
    async fn send_parts(&mut self) -> Result<(), Gone> {
        // The list is reused, as the buffers are: in a cluster the usual batch is one answer that
        // comes later.
        let mut parts = std::mem::take(&mut self.answers.parts);
        let core = std::rc::Rc::clone(self.seat.core());
        let mut joined = core.take_answers();
        let mut from = 0;
        for (at, part) in parts.drain(..) {
            joined.bytes.extend_from_slice(&self.answers.bytes[from..at]);
            from = at;
            let value = match part {
                Part::Value(value) => Some(value),
                Part::Later { mut answer, request, head } => {
                    self.seat.set(Phase::Working, self.now);
                    let answered = poll_fn(|cx| answer.poll_answer(cx, &mut joined.bytes)).await;
                    self.answers.tags[request] = answered.tag;
                    answered.value.filter(|value| !head && !value.is_empty())
                }
            };
            if let Some(value) = value {
                self.send(&mut joined.bytes, true).await?;
                joined.bytes.clear();
                self.send_rest(value, 0, Instant::now()).await?;
            }
        }
        self.answers.parts = parts;
        joined.bytes.extend_from_slice(&self.answers.bytes[from..]);
        self.send(&mut joined.bytes, false).await?;
        joined.clear();
        core.give_answers(joined);
        Ok(())
    }

    /// Sends all of `bytes`. `more` says that more bytes follow at once.
    #[inline]
    pub(super) async fn send(&mut self, bytes: &mut Vec<u8>, more: bool) -> Result<(), Gone> {
        if bytes.is_empty() {
            return Ok(());
        }
        let sent = if more { self.send_now(bytes)? } else { 0 };
        if sent < bytes.len() {
            let now = Instant::now();
            // The connection may have waited for an answer that came later.
            self.seat.core().service.resumed(now);
            *bytes = self.send_rest(std::mem::take(bytes), sent, now).await?;
        }
        Ok(())
    }

    /// Sends what the socket takes without waiting, and tells the kernel that more follows.
    fn send_now(&mut self, bytes: &[u8]) -> Result<usize, Gone> {
        match self.transport.transmit_now(bytes, true) {
            Ok(sent) => {
                self.seat.core().service.event(Event::BytesOut(sent));
                Ok(sent)
            }
            Err(error) if may_go_on(&error) => Ok(0),
            Err(_) => Err(Gone),
        }
    }

    /// Sends the rest of `bytes` from `sent` on, as fast as the client reads.
    async fn send_rest<B: IoBuf>(&mut self, mut bytes: B, mut sent: usize, since: Instant) -> Result<B, Gone> {
        let length = bytes.bytes_init();
        self.seat.set(Phase::Writing, since);
        while sent < length {
            let slice = bytes.slice(sent..length.min(sent + WRITE_MAX));
            let (result, slice) = self.transport.transmit(slice).await;
            bytes = slice.into_inner();
            match result {
                Ok(0) => return Err(Gone),
                Ok(more) => {
                    sent += more;
                    self.seat.core().service.event(Event::BytesOut(more));
                    if sent < length {
                        self.seat.set(Phase::Writing, Instant::now());
                    }
                }
                Err(error) if may_go_on(&error) => {}
                Err(_) => return Err(Gone),
            }
        }
        self.seat.set(Phase::Working, self.now);
        Ok(bytes)
    }

    /// Streams a body, whose head is in the batch, piece by piece; after each piece all other tasks
    /// get their turn.
    pub(super) async fn stream(
        &mut self,
        mut source: Box<dyn Source>,
        context: ReplyContext,
        tag: u16,
    ) -> Result<(), Gone> {
        let chunked = context.version == Version::Http11;
        let read_at = self.now;
        loop {
            if self.answers.is_new() {
                self.answers = self.seat.core().take_answers();
            }
            match source.fill(&mut Sink::new(&mut self.answers, chunked)) {
                Fill::More => {
                    self.flush().await?;
                    self.seat.set(Phase::Working, self.now);
                    self.seat.core().yield_turn().await;
                    self.resumed();
                }
                Fill::Wait(pause) => {
                    self.flush().await?;
                    self.seat.set(Phase::Working, self.now);
                    monoio::time::sleep(pause.max(Duration::from_millis(1))).await;
                    self.resumed();
                }
                Fill::End => {
                    if chunked {
                        self.answers.bytes.extend_from_slice(b"0\r\n\r\n");
                    }
                    self.flush().await?;
                    self.seat.end_requests(1);
                    self.seat.core().service.finished(tag, read_at.elapsed());
                    return Ok(());
                }
                Fill::Abort => {
                    self.flush().await?;
                    if !chunked {
                        // The end of the connection would otherwise look like the end of the body.
                        sys::reset_on_close(self.transport.fd());
                    }
                    return Err(Gone);
                }
            }
        }
    }

    /// Ends the connection in stages (RFC 9112 section 9.6): ends the output, then reads and discards
    /// what the client still sends. Closing at once would make the kernel send a reset as soon as
    /// anything comes or is there unread, which can destroy the answer before the client has read
    /// it; and many clients read only when they have sent everything.
    ///
    /// Bounds: [`LINGER_BYTES_MAX`], [`LINGER`] without a byte, and `request_timeout` ([`LINGER`]
    /// while the server drains) in all.
    pub(super) async fn linger(mut self) {
        self.transport.end_output();
        let begun = Instant::now();
        let mut buffer = Vec::with_capacity(LINGER_BUFFER);
        let mut discarded = 0;
        loop {
            let now = Instant::now();
            let core = self.seat.core();
            let time_max = if core.draining() { LINGER } else { core.limits.request_timeout.max(LINGER) };
            if discarded >= LINGER_BYTES_MAX || now.duration_since(begun) >= time_max {
                break;
            }
            self.seat.set(Phase::Lingering, now);
            let (result, back) = self.transport.receive(buffer.slice_mut(0..LINGER_BUFFER)).await;
            buffer = back.into_inner();
            match result {
                // This is the end of the client's input, or the deadline, which looks the same. The
                // kernel still delivers what the client has not taken.
                Ok(0) => return,
                Ok(more) => discarded += more,
                Err(error) if may_go_on(&error) => {}
                Err(_) => return,
            }
        }
        // The client goes on sending. After an orderly close it could meet a window that never
        // opens again, and hang in its send until the kernel forgets the connection a minute later.
        // What it has received it can still read after a reset.
        sys::reset_on_close(self.transport.fd());
    }
}

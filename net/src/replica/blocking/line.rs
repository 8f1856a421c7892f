//! A blocking socket with the bytes that were read from it: what both ends on threads have in
//! common.
//!
//! Owner: one thread. Bounds: a read buffer of up to the largest frame and 64 KiB; a deadline for
//! each read and each send; with [`Line::stop`], waits end within [`STEP`] of being told to. A
//! frame that has begun must come, and be taken, at [`LEAST_RATE`] or faster, without a pause of the
//! line's `patience`.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use koltso_instrument::breathe;

use super::super::lost::LostReason;
use super::super::wire::READ_SIZE;

/// Bytes a second at which a frame must come or be taken: what leaves the largest one about two
/// minutes.
const LEAST_RATE: u64 = 256 * 1024;
/// The most bytes that one system call takes or gives: a kernel that is not preempted lets no data core
/// have the processor until a call is over, and one of a few MiB takes milliseconds.
const PIECE: usize = 64 << 10;
/// How often a wait looks whether it is to end.
const STEP: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Debug)]
pub(super) struct Line {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The longest pause within a frame.
    patience: Duration,
    stop: Option<Arc<AtomicBool>>,
}

impl Line {
    /// `read_so_far` are bytes that were read from the socket before.
    pub(super) fn new(
        stream: TcpStream,
        read_so_far: &[u8],
        patience: Duration,
        stop: Option<Arc<AtomicBool>>,
    ) -> Self {
        let mut buffer = vec![0; READ_SIZE.max(read_so_far.len())];
        buffer[..read_so_far.len()].copy_from_slice(read_so_far);
        Self { stream, buffer, start: 0, end: read_so_far.len(), patience, stop }
    }

    /// The socket, and what was read from it and is not consumed.
    pub(super) fn into_socket(self) -> (TcpStream, Vec<u8>) {
        let read = self.bytes().to_vec();
        (self.stream, read)
    }

    /// The longest pause within a frame.
    pub(super) const fn patience(&self) -> Duration {
        self.patience
    }

    /// What was read and is not consumed yet.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Marks the first `count` bytes as handled.
    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
    }

    /// How long a frame of `len` bytes may take at [`LEAST_RATE`], beside pauses.
    fn time_for(&self, len: usize) -> Duration {
        self.patience + Duration::from_millis(len as u64 * 1000 / LEAST_RATE)
    }

    /// Reads more bytes behind those that are there. A frame that has begun has `need` bytes, more
    /// than are there, and began to come at `since`; what has not begun may take until `idle_until`.
    ///
    /// # Errors
    /// The connection is lost, or nothing came in time.
    pub(super) fn read(&mut self, need: usize, since: Instant, idle_until: Instant) -> Result<(), LostReason> {
        self.make_room(need);
        let deadline = if self.start == self.end {
            idle_until
        } else {
            (since + self.time_for(need)).min(Instant::now() + self.patience)
        };
        loop {
            breathe();
            let left = self.left_until(deadline)?;
            self.stream.set_read_timeout(Some(left))?;
            let end = self.buffer.len().min(self.end + PIECE);
            match self.stream.read(&mut self.buffer[self.end..end]) {
                Ok(0) => return Err(LostReason::Closed),
                Ok(count) => {
                    self.end += count;
                    return Ok(());
                }
                Err(error) if may_go_on(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn make_room(&mut self, need: usize) {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == 0 && self.buffer.len() > READ_SIZE {
            self.buffer = vec![0; READ_SIZE];
        }
        if self.end == self.buffer.len() {
            let more = need.saturating_sub(self.end).clamp(READ_SIZE, self.end.max(READ_SIZE));
            self.buffer.resize(self.end + more, 0);
        }
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// The connection is lost, or the other side does not take them in time.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), LostReason> {
        let end = Instant::now() + self.time_for(bytes.len());
        let (mut rest, mut deadline) = (bytes, end.min(Instant::now() + self.patience));
        while !rest.is_empty() {
            breathe();
            let left = self.left_until(deadline)?;
            self.stream.set_write_timeout(Some(left))?;
            match self.stream.write(&rest[..rest.len().min(PIECE)]) {
                Ok(0) => return Err(LostReason::Closed),
                Ok(count) => {
                    rest = &rest[count..];
                    deadline = end.min(Instant::now() + self.patience);
                }
                Err(error) if may_go_on(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// How long to wait at most, until it is time to look around or too late.
    fn left_until(&self, deadline: Instant) -> Result<Duration, LostReason> {
        if self.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(LostReason::Stopped);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LostReason::Timeout);
        }
        // (A socket takes a timeout of zero for none, and std refuses it.)
        Ok(if self.stop.is_some() { left.min(STEP) } else { left })
    }
}

/// Whether a wait was only interrupted, or is over for now; its deadline decides. (The kernel says
/// `TimedOut` when it has given the connection up.)
fn may_go_on(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock)
}

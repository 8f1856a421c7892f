//! A client that blocks, for a thread beside the data plane that replays to a peer the writes that
//! the peer missed.
//!
//! Owner: one thread. Bounds: the caller's timeout for the connect, the handshake, each reply, and
//! each step of a send; a read buffer of up to the largest frame and 64 KiB. A peer does not go on
//! reading while its replies are not taken, so a caller that sends a lot before it receives
//! anything must leave no more than about a thousand requests unanswered.
//!
//! Tested in `tests/replica/`.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::features::Features;
use super::frame::{Limits, Parsed, ReplyFrame, parse_reply};
use super::handshake::{Dialer, Identity, NONCE, PeerIdentity, Progress, Skew};
use super::lost::LostReason;
use super::sys;
use super::wire::{READ_SIZE, USER_TIMEOUT};

/// A connection to a peer whose handshake is complete. After an error it cannot be used any more.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    limits: Limits,
    timeout: Duration,
    peer: Option<PeerIdentity>,
}

impl Connection {
    /// Connects and makes the handshake. Times and sizes are as in
    /// [`LinkConfig`](super::LinkConfig).
    ///
    /// # Errors
    /// The reasons that [`LinkHandler::lost`](super::LinkHandler::lost) gets.
    pub fn dial(
        address: SocketAddr,
        identity: &Identity,
        peer_number: u16,
        value_max: usize,
        wall_ms: fn() -> u64,
        skew_max: Duration,
        timeout: Duration,
    ) -> Result<Self, LostReason> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(timeout))?;
        sys::set_user_timeout(stream.as_raw_fd(), USER_TIMEOUT);
        let (buffer, limits) = (vec![0; READ_SIZE], Limits { value_max, features: Features::NONE });
        let mut connection = Self { stream, buffer, start: 0, end: 0, limits, timeout, peer: None };
        connection.shake_hands(identity, peer_number, wall_ms, skew_max)?;
        Ok(connection)
    }

    fn shake_hands(
        &mut self,
        identity: &Identity,
        peer_number: u16,
        wall_ms: fn() -> u64,
        skew_max: Duration,
    ) -> Result<(), LostReason> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(std::io::Error::other)?;
        let (begun, mut out) = (Instant::now(), Vec::new());
        let mut dialer = Dialer::start(identity, peer_number, skew_max, wall_ms(), &nonce, &mut out);
        loop {
            self.send(&out)?;
            out.clear();
            self.read(begun + self.timeout, 0)?;
            match dialer.feed(&self.buffer[self.start..self.end], begun.elapsed(), &mut out) {
                Ok(Progress::More { consumed }) => self.start += consumed,
                Ok(Progress::Done { consumed, peer }) => {
                    self.start += consumed;
                    self.limits.features = peer.features;
                    self.peer = Some(peer);
                    return self.send(&out);
                }
                Err(error) => {
                    // This is the sentence for the other side; if it cannot be sent, there is still
                    // the error on this side.
                    let _ = self.send(&out);
                    return Err(error.into());
                }
            }
        }
    }

    /// How far the peer's wall clock was off at the handshake.
    #[must_use]
    pub fn skew(&self) -> Option<Skew> {
        self.peer?.skew
    }

    /// Sends requests that [`encode_request`](super::frame::encode_request) has written.
    ///
    /// # Errors
    /// The connection is lost, or the peer took nothing within the timeout.
    pub fn send(&mut self, frames: &[u8]) -> Result<(), LostReason> {
        Ok(self.stream.write_all(frames)?)
    }

    /// Waits for one reply and passes it to `with`. Replies come in any order: their numbers say to
    /// which request they belong.
    ///
    /// # Errors
    /// The connection is lost, the reply was not complete within the timeout, or the bytes are not
    /// a reply.
    pub fn receive<R>(&mut self, with: impl FnOnce(ReplyFrame<'_>) -> R) -> Result<R, LostReason> {
        let deadline = Instant::now() + self.timeout;
        loop {
            match parse_reply(&self.buffer[self.start..self.end], self.limits) {
                Parsed::Complete { frame, len } => {
                    let result = with(frame);
                    self.start += len;
                    return Ok(result);
                }
                Parsed::Partial { need } => self.read(deadline, need)?,
                Parsed::Bad(violation) => return Err(violation.into()),
            }
        }
    }

    /// Reads more bytes behind those that are there, until `deadline`. A frame that has begun has
    /// `need` bytes.
    fn read(&mut self, deadline: Instant, need: usize) -> Result<(), LostReason> {
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
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LostReason::Timeout);
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(LostReason::Closed),
                Ok(count) => {
                    self.end += count;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

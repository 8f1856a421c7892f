//! Accepting connections until the drain, whatever fails and however many come.
//!
//! Bounds: a flood of connections gets at most about half of the core's time. Where descriptors or
//! memory are short, the loop tries again after [`ACCEPT_PAUSE`]: what waits meanwhile stays in the
//! kernel's queue.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use monoio::net::TcpStream;

use super::shared::Shared;

/// The pause after a failed accept: long enough for descriptors to become free, too short to be
/// noticed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// After so many connections the loop rests, if they came as fast as they could be taken.
const ACCEPTS_A_TURN: u32 = 64;
/// A turn that takes at least this long has had pauses of its own: 8000 connections a second.
const TURN_MIN: Duration = Duration::from_millis(8);
/// The rest. It must be a timer: while there is always a task that is ready, monoio runs none.
const REST: Duration = Duration::from_millis(1);

/// Rests between turns while connections come in a flood.
struct Pace {
    accepted: u32,
    turn: Instant,
}

impl Pace {
    fn begin() -> Self {
        Self { accepted: 0, turn: Instant::now() }
    }

    async fn keep(&mut self) {
        self.accepted += 1;
        if self.accepted < ACCEPTS_A_TURN {
            return;
        }
        if self.turn.elapsed() < TURN_MIN {
            monoio::time::sleep(REST).await;
        }
        *self = Self::begin();
    }
}

/// Whether the system lacked descriptors or memory for a connection.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS))
}

/// Passes each connection and where it comes from to `accepted`. `short` is told when there are no
/// descriptors or no memory for one.
pub(super) async fn accept_until_drained(
    listener: TcpListener,
    shared: &Shared,
    accepted: impl Fn(TcpStream, IpAddr),
    short: impl Fn(),
) -> io::Result<()> {
    // io_uring waits in a blocking accept, and reports EAGAIN from a non-blocking one; epoll is the
    // other way round.
    listener.set_nonblocking(monoio::utils::is_legacy())?;
    shared.register(&listener)?;
    let listener = monoio::net::TcpListener::from_std(listener)?;

    let mut pace = Pace::begin();
    let mut complained: Option<Instant> = None;
    while !shared.draining() {
        match listener.accept().await {
            Ok((stream, from)) if !shared.draining() => {
                accepted(stream, SocketAddr::ip(&from));
                pace.keep().await;
            }
            Ok(_) => {}
            Err(_) if shared.draining() => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if is_shortage(&error) {
                    short();
                }
                if complained.is_none_or(|then| then.elapsed() >= Duration::from_secs(1)) {
                    tracing::warn!(%error, "cannot accept connections");
                    complained = Some(Instant::now());
                }
                monoio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    Ok(())
}

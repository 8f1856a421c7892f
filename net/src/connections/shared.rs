//! What all cores share: the numbers of connections, and the flag that starts a drain.
//!
//! Owner: the process, behind an `Arc`; every method may be called from any thread. Tested in
//! `tests/drain.rs` on both drivers.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use koltso_instrument::Mutex;

use super::addresses::{Addresses, Full, Origin, Room};
use crate::transport::sys;

/// What the cores of a server share. A process has one, which every call of
/// [`serve`](crate::server::serve) gets.
#[derive(Debug)]
pub struct Shared {
    connections: AtomicUsize,
    addresses: Addresses,
    draining: AtomicBool,
    /// Duplicates of the listening sockets, so that their descriptors stay ours until `drain` has
    /// used them.
    listeners: Mutex<Vec<TcpListener>>,
}

impl Shared {
    /// No connections are open, and nothing drains.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let listeners = Mutex::new(&"listeners", Vec::new());
        let (connections, draining) = (AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(Self { connections, addresses: Addresses::new(), draining, listeners })
    }

    /// Stops accepting on all cores and lets them finish the requests in flight. Returns at once;
    /// `serve` returns when all is done.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        let mut listeners = self.listeners.lock();
        for listener in listeners.drain(..) {
            // This ends a pending accept with an error, on io_uring and on epoll.
            sys::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR);
        }
    }

    /// Whether [`drain`](Self::drain) has been called.
    #[inline]
    #[must_use]
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The number of connections that are open now, on all cores.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Registers a duplicate of a listening socket. If a drain has begun, the socket is shut down
    /// at once.
    pub(crate) fn register(&self, listener: &TcpListener) -> std::io::Result<()> {
        let duplicate = listener.try_clone()?;
        let mut listeners = self.listeners.lock();
        if self.draining.load(Ordering::SeqCst) {
            sys::shutdown(duplicate.as_raw_fd(), libc::SHUT_RDWR);
        } else {
            listeners.push(duplicate);
        }
        Ok(())
    }

    /// Counts a connection, if there is room.
    pub(super) fn enter(&self, room: Room) -> Result<(), Full> {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= room.max {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return Err(Full::All);
        }
        match room.of_origin {
            Some((origin, max)) if !self.addresses.enter(origin, max) => {
                self.connections.fetch_sub(1, Ordering::Relaxed);
                Err(Full::Origin)
            }
            _ => Ok(()),
        }
    }

    /// Forgets a connection, and that it came from `origin`, if that was counted.
    pub(super) fn leave(&self, origin: Option<Origin>) {
        if let Some(origin) = origin {
            self.addresses.leave(origin);
        }
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

//! What all cores share: the number of connections, and the order to drain.
//!
//! Owner: the process, behind an `Arc`; every method may be called from any thread.
//! Tested in `tests/drain.rs` on both drivers.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use koltso_instrument::Mutex;

use super::sys;

/// One for the process; every call of [`serve`](super::serve) gets it.
#[derive(Debug)]
pub struct Shared {
    connections: AtomicUsize,
    draining: AtomicBool,
    /// Duplicates of the listening sockets, so that their numbers stay ours until `drain` has used them.
    listeners: Mutex<Vec<TcpListener>>,
}

impl Shared {
    /// No connections, not draining.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let listeners = Mutex::new(&"listeners", Vec::new());
        Arc::new(Self { connections: AtomicUsize::new(0), draining: AtomicBool::new(false), listeners })
    }

    /// Stops accepting on all cores and lets them finish what is in flight. Returns at once; `serve` returns when done.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        let mut listeners = self.listeners.lock();
        for listener in listeners.drain(..) {
            // A pending accept ends with an error, on io_uring and on epoll.
            sys::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR);
        }
    }

    /// [`drain`](Self::drain) has been called.
    #[inline]
    #[must_use]
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Connections open now, of all cores.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Registers a duplicate of a listening socket. If draining has begun, it is shut down at once.
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

    /// Counts a connection, unless there are `max`.
    pub(crate) fn enter(&self, max: usize) -> bool {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        if before >= max {
            self.connections.fetch_sub(1, Ordering::Relaxed);
        }
        before < max
    }

    pub(crate) fn leave(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

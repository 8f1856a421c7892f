//! The system calls of the replica protocol that neither std nor monoio offers on a borrowed
//! descriptor.
//!
//! Those that send are not inlined, so that a profile can tell the cost of replication from that of
//! clients.
//!
//! Invariant 1: a descriptor passed here is open and ours: its owner is borrowed by the caller, or
//! the owner marks it as gone before closing it.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use crate::transport::Transmit;
pub(crate) use crate::transport::sys::shutdown;

/// Sends what is taken now.
#[inline(never)]
pub(crate) fn replica_send(transmitter: &mut impl Transmit, bytes: &[u8]) -> io::Result<usize> {
    transmitter.transmit_now(bytes, false)
}

/// Sends what is taken now of several parts.
#[inline(never)]
pub(crate) fn replica_sendmsg(transmitter: &mut impl Transmit, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
    transmitter.transmit_parts_now(parts)
}

/// Whether a connect has ended, with success or not.
pub(crate) fn connect_ended(fd: RawFd) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: reads and writes one `pollfd`, during the call only; does not wait; invariant 1.
    #[allow(unsafe_code)]
    let ready = unsafe { libc::poll(&mut poll, 1, 0) };
    if ready < 0 { Err(io::Error::last_os_error()) } else { Ok(ready > 0) }
}

/// Ends the connection if the peer acknowledges nothing, or keeps its window shut, for this long.
pub(crate) fn set_user_timeout(fd: RawFd, timeout: Duration) {
    let milliseconds = libc::c_uint::try_from(timeout.as_millis()).unwrap_or(libc::c_uint::MAX);
    // A socket that refuses this still works; the protocol above it has deadlines of its own.
    // SAFETY: reads one `c_uint`, whose size is given, during the call only; invariant 1.
    #[allow(unsafe_code)]
    unsafe {
        libc::setsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_USER_TIMEOUT,
            std::ptr::from_ref(&milliseconds).cast(),
            size_of::<libc::c_uint>() as libc::socklen_t,
        )
    };
}

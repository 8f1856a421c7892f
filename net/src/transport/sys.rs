//! The system calls that neither std nor monoio offers on a borrowed descriptor.
//!
//! Invariant 1: a descriptor passed here is open and ours, because its owner is borrowed, or still
//! in the core's table of deadlines, from which a connection removes itself before it closes its
//! socket.

use std::io;
use std::os::fd::RawFd;

use super::PARTS_MAX;

/// Shuts down one or both directions of a socket, which ends pending operations on it.
pub(crate) fn shutdown(fd: RawFd, how: libc::c_int) {
    // An error means that the peer was faster: there is nothing left to do.
    // SAFETY: takes no memory; invariant 1.
    #[allow(unsafe_code)]
    unsafe {
        libc::shutdown(fd, how)
    };
}

/// Sends what fits into the socket's buffer now.
///
/// It uses `syscall`, because the C library's `send` is a cancellation point and uses the frame
/// pointer for that. A quarter of the samples of a loaded node are below it, and would have no
/// stack of ours.
#[inline(always)]
pub(crate) fn send_now(fd: RawFd, bytes: &[u8], flags: libc::c_int) -> io::Result<usize> {
    let (flags, nobody) = (flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL, std::ptr::null::<libc::sockaddr>());
    // SAFETY: reads `bytes.len()` bytes from a live slice, during the call only; there is no
    // address; invariant 1.
    #[allow(unsafe_code)]
    let sent = unsafe { libc::syscall(libc::SYS_sendto, fd, bytes.as_ptr(), bytes.len(), flags, nobody, 0) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Sends what fits of several parts, at most [`PARTS_MAX`]. It uses `syscall`, as [`send_now`]
/// does.
#[inline(always)]
pub(crate) fn send_parts_now(fd: RawFd, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
    let parts = &parts[..parts.len().min(PARTS_MAX)];
    // SAFETY: all zeros is a valid `msghdr`: no name, no parts, no control data.
    #[allow(unsafe_code)]
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_ptr().cast_mut().cast();
    message.msg_iovlen = parts.len() as _;
    // SAFETY: `IoSlice` has the layout of `iovec`, by its documentation; the kernel only reads the
    // slices, which are live during the call; invariant 1.
    #[allow(unsafe_code)]
    let sent =
        unsafe { libc::syscall(libc::SYS_sendmsg, fd, &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Gives the whole pages of a buffer back to the kernel; its bytes, up to its capacity, are anything
/// afterwards.
pub(crate) fn return_pages(buffer: &mut Vec<u8>) {
    /// The largest page of the machines that Linux runs on: smaller ones are parts of it.
    const PAGE: usize = 64 << 10;
    buffer.clear();
    let room = buffer.spare_capacity_mut();
    let skipped = room.as_ptr().align_offset(PAGE);
    let len = room.len().saturating_sub(skipped) / PAGE * PAGE;
    if len == 0 {
        return;
    }
    // An error means that the pages stay, which is as if nobody had asked.
    // SAFETY: whole pages of the buffer's own room, of which no byte counts as initialised; it is
    // private memory of the process, which reads as zeros from here on.
    #[allow(unsafe_code)]
    unsafe {
        libc::madvise(room[skipped..].as_mut_ptr().cast(), len, libc::MADV_DONTNEED)
    };
}

/// Makes the close that follows a reset, so that the peer cannot take what it has received for the
/// whole.
pub(crate) fn reset_on_close(fd: RawFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: reads one `linger`, whose size is given, during the call only; invariant 1.
    #[allow(unsafe_code)]
    unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            std::ptr::from_ref(&linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
}

/// Turns a socket of monoio into one of std. No operation on it may be in flight.
pub(crate) fn into_std(stream: monoio::net::TcpStream) -> std::net::TcpStream {
    use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
    // SAFETY: `into_raw_fd` gives up ownership of an open descriptor, which passes to the
    // `OwnedFd`.
    #[allow(unsafe_code)]
    let owned = unsafe { OwnedFd::from_raw_fd(stream.into_raw_fd()) };
    owned.into()
}

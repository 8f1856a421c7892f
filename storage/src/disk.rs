//! What the engine asks of the disk beyond reading and writing, behind one small trait so that tests can make it fail.
//!
//! What is assumed of the disk: after `sync` returned, the file's bytes survive a power loss; sectors that were being
//! written at that moment may hold anything (every record has checksums); a rename is atomic.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use koltso_instrument::waiting;

/// The part of the outside world that can run out or break.
pub trait Disk: Send + Sync + 'static {
    /// Reserves blocks for `len` bytes of `file` from `offset`, so that writing there through a mapping cannot fail.
    ///
    /// # Errors
    /// `StorageFull` when there is no room; nothing is written then.
    fn allocate(&self, file: &File, offset: u64, len: u64) -> io::Result<()>;
    /// Gives the blocks of a range back; it reads as zeros from then on.
    ///
    /// # Errors
    /// Where the file system cannot; callers may ignore it.
    fn release(&self, file: &File, offset: u64, len: u64) -> io::Result<()>;
    /// Puts the file's bytes on stable storage (`fdatasync`).
    ///
    /// # Errors
    /// Whatever the device said. The engine acknowledges nothing after that.
    fn sync(&self, file: &File) -> io::Result<()>;
    /// Room in the file system of `folder`.
    ///
    /// # Errors
    /// Where the file system cannot be asked.
    fn space(&self, folder: &Path) -> io::Result<Space>;
}

/// Room in a file system, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// What an unprivileged writer may still allocate.
    pub free: u64,
    /// The file system's size.
    pub total: u64,
}

/// The machine's disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

#[allow(unsafe_code)]
fn fallocate(file: &File, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    loop {
        // SAFETY: a plain system call on a descriptor that `file` keeps open.
        let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

impl Disk for RealDisk {
    fn allocate(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        fallocate(file, libc::FALLOC_FL_KEEP_SIZE, offset, len)
    }

    fn release(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        fallocate(file, libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE, offset, len)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    #[allow(unsafe_code)]
    fn space(&self, folder: &Path) -> io::Result<Space> {
        let path = std::ffi::CString::new(folder.as_os_str().as_encoded_bytes())?;
        let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: `path` is a C string and `stat` has room for the answer.
        let result = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so it filled the structure.
        let stat = unsafe { stat.assume_init() };
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space { free: bytes(stat.f_bavail), total: bytes(stat.f_blocks) })
    }
}

/// Makes a new, removed or renamed name in `folder` survive a power loss.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    waiting(&"sync of a folder", || File::open(folder)?.sync_all())
}

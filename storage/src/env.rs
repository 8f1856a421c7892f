//! The outside world, behind one trait: files and folders, mapping, room, syncs, the wall clock and
//! random numbers.
//!
//! Each method does by default what the machine does, so [`RealEnv`] is empty and a test's
//! environment overrides what it breaks or watches. Nothing here is called for a read or for a
//! write that finds its place ready: those go through the mapping. (Threads, their pauses and hints
//! about memory stay where they are: nothing that they do can be lost.)
//!
//! What is assumed of the disk, and which test looks at what follows from it, is in
//! `docs/log-format.md`.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use memmap2::{Mmap, MmapOptions, MmapRaw};

use crate::schedule;

/// Permissions of files.
const OWNER_ONLY: u32 = 0o600;
/// The permissions of everybody but the owner.
const OTHERS: u32 = 0o077;
/// How far below a data folder there are folders of ours (those of the hints of each peer).
const DEPTH: u32 = 2;

/// Everything that the engine asks of the system. Errors are what the system said.
#[allow(clippy::missing_errors_doc)]
pub trait Env: Send + Sync + 'static {
    /// Makes a folder in one that is there, for its owner only.
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(path)
    }

    /// What lies in a folder, in no order.
    fn list(&self, folder: &Path) -> io::Result<Vec<FolderEntry>> {
        let entry = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            // A file that went meanwhile has no length; its name is still what the folder said.
            let len = entry.metadata().map_or(0, |metadata| metadata.len());
            Ok(FolderEntry { name: entry.file_name(), len })
        };
        fs::read_dir(folder)?.map(entry).collect()
    }

    /// Makes a file that must not exist yet, for reading and writing by its owner only. Its name is
    /// durable after [`Env::sync_folder`].
    fn create_new(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).mode(OWNER_ONLY).open(path)
    }

    /// Makes a file for its owner only, or empties the one that is there.
    fn create(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        open_own(options.read(true).write(true).create(true).truncate(true), path)
    }

    /// Opens a file for reading and writing, which no symbolic link leads to.
    fn open(&self, path: &Path) -> io::Result<File> {
        open_own(OpenOptions::new().read(true).write(true), path)
    }

    /// Opens a file for reading only, which no symbolic link leads to.
    fn open_to_read(&self, path: &Path) -> io::Result<File> {
        open_own(OpenOptions::new().read(true), path)
    }

    /// Opens a file, makes it if need be, and locks it (`flock`) for as long as the file is open.
    fn lock(&self, path: &Path) -> Result<File, TryLockError> {
        let file = open_own(OpenOptions::new().create(true).truncate(false).write(true), path);
        let file = file.map_err(TryLockError::Error)?;
        file.try_lock()?;
        Ok(file)
    }

    /// Opens a file to be read past the page cache, in pieces that begin, in the file and in memory,
    /// at multiples of 4096; `InvalidInput` where the file system cannot do that.
    fn open_past_cache(&self, path: &Path) -> io::Result<File> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_DIRECT;
        OpenOptions::new().read(true).custom_flags(flags).open(path)
    }

    /// Reads some bytes; 0 at the end of the file.
    fn read_some_at(&self, file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(bytes, offset)
    }

    /// Which pages of 4096 bytes are in memory, of `len` bytes from `offset` on.
    fn cached(&self, file: &File, offset: u64, len: u64) -> io::Result<Vec<bool>> {
        cached(file, offset, len)
    }

    /// Has the page cache let go what it has of a range.
    fn let_go(&self, file: &File, offset: u64, len: u64) {
        let_go(file, offset, len);
    }

    /// Gives a file another name in its folder, in one step; what had that name is gone.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    /// Removes a name. The file lives on while it is open or mapped.
    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    /// Makes new, removed and renamed names in a folder survive a power loss.
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    /// The file's length, in bytes.
    fn len(&self, file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }

    /// Who may do what with the file, as bits of `st_mode` (0o777).
    fn permissions(&self, path: &Path) -> io::Result<u32> {
        Ok(fs::metadata(path)?.mode() & 0o777)
    }

    /// Takes the permissions of others away from a folder and the files and folders in it, where they
    /// have any; from how many.
    fn restrict(&self, folder: &Path) -> io::Result<u64> {
        restrict(folder, DEPTH)
    }

    /// Bytes that the file occupies on disk.
    fn occupied(&self, file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.blocks() * 512)
    }

    /// Makes the file this long; what is new reads as zeros.
    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    /// Fills `bytes` from the file.
    fn read_at(&self, file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        file.read_exact_at(bytes, offset)
    }

    /// Writes all `bytes` to the file.
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    /// Writes all `bytes` to the file, and returns when they and its length are on disk.
    fn write_durably(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)?;
        file.sync_data()
    }

    /// Where the last bytes that the file system knows of end, at most `len`; what follows is a
    /// hole and reads as zeros.
    fn data_end(&self, file: &File, len: u64) -> u64 {
        let mut end = 0;
        while end < len {
            match seek(file, end, libc::SEEK_DATA) {
                Ok(data) => match seek(file, data, libc::SEEK_HOLE) {
                    Ok(hole) => end = hole,
                    Err(_) => return len,
                },
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return end,
                Err(_) => return len,
            }
        }
        len
    }

    /// Reserves blocks for `len` bytes of `file` from `offset`, so that writing there through a
    /// mapping cannot fail. Nothing is written when there is no room.
    fn allocate(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        fallocate(file, libc::FALLOC_FL_KEEP_SIZE, offset, len)
    }

    /// Gives the blocks of a range back; it reads as zeros from then on. Callers may ignore that a
    /// file system cannot.
    fn release(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        fallocate(file, libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE, offset, len)
    }

    /// Puts the file's bytes and its length on stable storage (`fdatasync`). After an error the
    /// engine acknowledges nothing any more.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// Maps the first `len` bytes of a file for reading and writing.
    fn map(&self, file: &File, len: usize) -> io::Result<MmapRaw> {
        MmapOptions::new().len(len).map_raw(file)
    }

    /// Maps the first `len` bytes of a file for reading, also where it is shorter.
    fn map_to_read(&self, file: &File, len: usize) -> io::Result<MmapRaw> {
        MmapOptions::new().len(len).map_raw_read_only(file)
    }

    /// Maps a whole file for reading.
    ///
    /// # Safety
    /// The file does not change while the mapping lives.
    #[allow(unsafe_code)]
    unsafe fn map_unchanging(&self, file: &File) -> io::Result<Mmap> {
        // SAFETY: the caller's promise.
        unsafe { Mmap::map(file) }
    }

    /// Room in the file system of `folder`.
    fn space(&self, folder: &Path) -> io::Result<Space> {
        space(folder)
    }

    /// The wall clock, in milliseconds since the Unix epoch: background work has to know what has
    /// expired.
    fn now_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }

    /// The calling thread does what nobody waits for, and gives way to those that serve.
    fn give_way(&self) {
        schedule::be_nice();
    }

    /// A number that nobody can foretell.
    fn random(&self) -> u64 {
        RandomState::new().build_hasher().finish()
    }
}

/// The machine that the process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealEnv;

impl Env for RealEnv {}

/// A file or folder in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderEntry {
    /// Its name, without the folder's.
    pub name: OsString,
    /// Its length in bytes.
    pub len: u64,
}

/// Room in a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What an unprivileged writer may still allocate.
    pub free: u64,
    /// The file system's size.
    pub total: u64,
}

/// Opens a file of a data folder; a new one is made for its owner only. What somebody has put there
/// in its place is not followed (a symbolic link) and not waited for (a pipe): it is an error that
/// says so.
///
/// # Errors
/// What the system said, or what the file is.
pub fn open_own(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let opened = options.mode(OWNER_ONLY).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|e| match e.raw_os_error() {
        Some(libc::ELOOP) => io::Error::other(format!(
            "{} is a symbolic link, and none is followed in a data folder: put the file itself there",
            path.display()
        )),
        // A pipe that nobody reads.
        Some(libc::ENXIO) => is_no_file(path),
        _ => e,
    })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(is_no_file(path)) }
}

fn is_no_file(path: &Path) -> io::Error {
    io::Error::other(format!("{} is not a file", path.display()))
}

fn restrict(folder: &Path, depth: u32) -> io::Result<u64> {
    let mut changed = u64::from(take_from_others(folder, &fs::metadata(folder)?)?);
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Of the entry itself, where it is a link.
        let metadata = match entry.metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        changed += match (metadata.is_dir(), metadata.is_file()) {
            (true, _) if depth > 0 => restrict(&entry.path(), depth - 1)?,
            (_, true) => u64::from(take_from_others(&entry.path(), &metadata)?),
            _ => 0,
        };
    }
    Ok(changed)
}

/// Whether there was something to take away.
fn take_from_others(path: &Path, metadata: &fs::Metadata) -> io::Result<bool> {
    let open = metadata.mode() & OTHERS != 0;
    if open {
        fs::set_permissions(path, fs::Permissions::from_mode(metadata.mode() & 0o777 & !OTHERS))?;
    }
    Ok(open)
}

/// The whole content of a file.
pub(crate) fn read(env: &dyn Env, path: &Path) -> io::Result<Vec<u8>> {
    let file = env.open_to_read(path)?;
    let mut bytes = vec![0; env.len(&file)? as usize];
    env.read_at(&file, &mut bytes, 0)?;
    Ok(bytes)
}

#[allow(unsafe_code)]
fn cached(file: &File, offset: u64, len: u64) -> io::Result<Vec<bool>> {
    let map = MmapOptions::new().offset(offset).len(len as usize).map_raw_read_only(file)?;
    let mut pages = vec![0_u8; (len as usize).div_ceil(4096)];
    // SAFETY: the whole mapping, and a byte for each of its pages (of 4096 bytes or more).
    let result = unsafe { libc::mincore(map.as_mut_ptr().cast(), map.len(), pages.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(pages.into_iter().map(|page| page & 1 == 1).collect())
}

#[allow(unsafe_code)]
fn let_go(file: &File, offset: u64, len: u64) {
    // SAFETY: a plain system call on a descriptor that `file` keeps open.
    let _ = unsafe { libc::posix_fadvise(file.as_raw_fd(), offset as i64, len as i64, libc::POSIX_FADV_DONTNEED) };
}

#[allow(unsafe_code)]
fn seek(file: &File, offset: u64, whence: libc::c_int) -> io::Result<u64> {
    // SAFETY: a plain system call on a descriptor that `file` keeps open.
    let at = unsafe { libc::lseek(file.as_raw_fd(), offset as i64, whence) };
    u64::try_from(at).map_err(|_| io::Error::last_os_error())
}

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

#[allow(unsafe_code)]
fn space(folder: &Path) -> io::Result<Space> {
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

//! What a test does to a data folder behind the server's back: find bytes, flip them, cut files,
//! compare, copy, mount.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;
use std::{fs, io};

use tempfile::{NamedTempFile, TempDir};

use crate::skip::{Remedy, skip};

/// Every file of a folder whose name ends in `.extension`, sorted by name, folders below included.
pub fn with_extension(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(with_extension(&path, extension));
        } else if path.extension().is_some_and(|other| other == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Where `bytes` occurs in the `*.log` files of a folder: file and offset, each place.
pub fn find_in_logs(folder: &Path, bytes: &[u8]) -> Vec<(PathBuf, u64)> {
    let mut places = Vec::new();
    for path in with_extension(folder, "log") {
        for at in find_all(&path, bytes) {
            places.push((path.clone(), at));
        }
    }
    places
}

/// A search in blocks: a segment may be far larger than what was written to it.
fn find_all(path: &Path, bytes: &[u8]) -> Vec<u64> {
    const BLOCK: usize = 4 << 20;
    let file = fs::File::open(path).unwrap();
    let mut places = Vec::new();
    let (mut base, mut window) = (0_u64, Vec::new());
    loop {
        let mut block = vec![0; BLOCK];
        let count = file.read_at(&mut block, base + u64::try_from(window.len()).unwrap()).unwrap();
        window.extend_from_slice(&block[..count]);
        let mut at = 0;
        while let Some(hit) = find(&window[at..], bytes) {
            places.push(base + u64::try_from(at + hit).unwrap());
            at += hit + 1;
        }
        if count == 0 {
            return places;
        }
        // Keeps one byte less than the pattern, so that a hit across two blocks is seen once and
        // only once.
        let keep = window.len().min(bytes.len() - 1);
        let gone = window.len() - keep;
        window.drain(..gone);
        base += u64::try_from(gone).unwrap();
    }
}

fn find(window: &[u8], bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(first) = window[from..].iter().position(|&byte| byte == bytes[0]) {
        let at = from + first;
        if window[at..].starts_with(bytes) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// Changes the byte at `offset` by XOR with `mask`.
pub fn flip(path: &Path, offset: u64, mask: u8) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0] ^= mask;
    file.write_all_at(&byte, offset).unwrap();
}

pub fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

/// Writes a file that only its owner may read, whatever the mask is.
pub fn write_secret(path: &Path, content: impl AsRef<[u8]>) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

pub fn cut(path: &Path, len: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

/// Copies a folder; holes stay holes, so that a preallocated segment costs what was written to it.
pub fn copy_folder(from: &Path, to: &Path) {
    let done = Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to).status().unwrap();
    assert!(done.success(), "cp of {} failed", from.display());
}

/// Everything below a path with size and time of change: two equal listings mean that nothing was
/// touched.
pub fn listing(path: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Vec::new() };
    let mut all = vec![(path.to_path_buf(), meta.len(), meta.modified().unwrap())];
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            all.extend(listing(&entry.unwrap().path()));
        }
    }
    all.sort();
    all
}

/// A small file system of its own; unmounted with this guard.
pub struct SmallDisk {
    folder: Option<TempDir>,
    /// What is mounted, unless it is memory.
    _image: Option<NamedTempFile>,
}

impl SmallDisk {
    /// One in memory. None, recorded as skipped, where mounting is not permitted.
    #[track_caller]
    pub fn mount(mib: u32) -> Option<SmallDisk> {
        Self::mounted("tmpfs", &format!("size={mib}m"), "koltso-test", None)
    }

    /// One of this type, such as `ext3`, in a file. None, recorded as skipped, where it cannot be
    /// made or mounted.
    #[track_caller]
    pub fn of_type(kind: &str, mib: u64) -> Option<SmallDisk> {
        let image = NamedTempFile::new().unwrap();
        image.as_file().set_len(mib << 20).unwrap();
        let make = format!("mkfs.{kind}");
        match Command::new(&make).arg(image.path()).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                skip(format!("{make} fails: {}", String::from_utf8_lossy(&output.stderr)), Remedy::Root);
                return None;
            }
            Err(error) => {
                skip(format!("cannot run {make}: {error}"), Remedy::Package("e2fsprogs"));
                return None;
            }
        }
        let path = image.path().display().to_string();
        Self::mounted(kind, "loop", &path, Some(image))
    }

    #[track_caller]
    fn mounted(kind: &str, options: &str, what: &str, image: Option<NamedTempFile>) -> Option<SmallDisk> {
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new("mount").args(["-t", kind, "-o", options, what]).arg(folder.path()).output();
        match output {
            Ok(output) if output.status.success() => Some(SmallDisk { folder: Some(folder), _image: image }),
            Ok(output) => {
                skip(format!("cannot mount a {kind}: {}", String::from_utf8_lossy(&output.stderr)), Remedy::Root);
                None
            }
            Err(error) => {
                skip(format!("cannot run mount: {error}"), Remedy::Package("mount"));
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.as_ref().unwrap().path()
    }

    pub fn resize(&self, mib: u32) {
        let done =
            Command::new("mount").args(["-o", &format!("remount,size={mib}m")]).arg(self.path()).status().unwrap();
        assert!(done.success(), "remount with {mib} MiB failed");
    }

    /// Takes all the room that is left, as somebody else's file does; it comes back with the file.
    /// Once more, it takes what there is since.
    pub fn fill(&self) -> PathBuf {
        let path = self.path().join("of-somebody-else");
        let file = fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
        let block = vec![1; 64 << 10];
        let (mut at, mut size) = (file.metadata().unwrap().len(), block.len());
        while size > 0 {
            match file.write_at(&block[..size], at) {
                Ok(written) => at += u64::try_from(written).unwrap(),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
                    size /= 2;
                }
            }
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let folder = self.folder.take().unwrap();
        // Lazy: whatever still holds a file there (a server that a failed test leaves behind) does
        // not keep the mount visible.
        let _ = Command::new("umount").arg("-l").arg(folder.path()).status();
        drop(folder);
    }
}

/// A limit on what a process writes to its disk, by a control group of its own; lifted when dropped.
/// What is written to the page cache is not limited, what a sync writes is.
pub struct ThrottledDisk {
    group: PathBuf,
    device: String,
}

impl ThrottledDisk {
    /// None, recorded as skipped, where there are no such control groups, or `folder` is on no disk.
    #[track_caller]
    pub fn of(pid: u32, folder: &Path) -> Option<ThrottledDisk> {
        const ALL: &str = "/sys/fs/cgroup/blkio";
        let device = fs::metadata(folder).unwrap().dev();
        let device = format!("{}:{}", libc::major(device), libc::minor(device));
        let group = Path::new(ALL).join(format!("koltso-test-{pid}"));
        let disk = ThrottledDisk { group, device };
        let made = fs::create_dir(&disk.group)
            .and_then(|()| fs::write(disk.group.join("cgroup.procs"), pid.to_string()))
            .and_then(|()| disk.set(u64::MAX));
        match made {
            Ok(()) => Some(disk),
            Err(error) => {
                skip(format!("no limit on a disk of {ALL}: {error}"), Remedy::Root);
                None
            }
        }
    }

    fn set(&self, bytes_a_second: u64) -> io::Result<()> {
        let limit = format!("{} {bytes_a_second}", self.device);
        fs::write(self.group.join("blkio.throttle.write_bps_device"), limit)
    }

    /// Lets no byte through from now on: a sync does not end.
    pub fn stop(&self) {
        self.set(1).unwrap();
    }

    /// Lets everything through again.
    pub fn release(&self) {
        self.set(0).unwrap();
    }
}

impl Drop for ThrottledDisk {
    fn drop(&mut self) {
        let _ = self.set(0);
        // A group can be removed once nobody is in it.
        for pid in fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write("/sys/fs/cgroup/blkio/cgroup.procs", pid);
        }
        let _ = fs::remove_dir(&self.group);
    }
}

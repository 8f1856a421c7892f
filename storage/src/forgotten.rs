//! The newest clock of anything that said "absent" and was dropped, on disk before it is dropped.
//!
//! ```text
//! 0   8 bytes  "KOLTSOFG"          12  u32  CRC-32C of the others
//! 8   u32      format version, 1   16  u64  clock
//! ```
//!
//! Replicas ask for it: a delete that another one still remembers, and this one does not, is no
//! difference if it is not newer. The clock never goes back. There is no file while nothing was
//! dropped. It is written in place, so that a full disk is no obstacle to dropping; a disk writes so
//! little at once, and whoever finds it damaged all the same takes the newest clock that is known.
//!
//! Owner: compaction's thread writes, anybody reads. Bounds: 24 bytes; a sync for each compacted
//! segment at most.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::bytes::{u32_at, u64_at};
use crate::env::{self, Env};

pub(crate) const FORGOTTEN_FILE: &str = "FORGOTTEN";
const MAGIC: &[u8; 8] = b"KOLTSOFG";
const FORMAT: u32 = 1;
const SIZE: usize = 24;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Forgotten(AtomicU64);

fn encode(clock: u64) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[16..].copy_from_slice(&clock.to_le_bytes());
    let crc = crc(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn crc(bytes: &[u8; SIZE]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..])
}

/// What is in the folder's file: `None` if it is damaged, 0 if there is none, or one that was just
/// made when the process ended, since nothing is dropped before it is written.
pub(crate) fn read(env: &dyn Env, folder: &Path) -> io::Result<Option<u64>> {
    let bytes = match env::read(env, &folder.join(FORGOTTEN_FILE)) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Some(0)),
        Err(e) => return Err(e),
    };
    if bytes.is_empty() {
        return Ok(Some(0));
    }
    let Ok(bytes) = <[u8; SIZE]>::try_from(bytes) else { return Ok(None) };
    let intact = &bytes[..8] == MAGIC && u32_at(&bytes, 8) == FORMAT && u32_at(&bytes, 12) == crc(&bytes);
    Ok(intact.then(|| u64_at(&bytes, 16)))
}

impl Forgotten {
    /// From the folder's file. Where that is damaged, everything that is here may be older than
    /// what was dropped.
    pub(crate) fn open(env: &dyn Env, folder: &Path, newest_clock: u64) -> io::Result<Self> {
        let clock = read(env, folder)?.unwrap_or_else(|| {
            tracing::warn!(
                "the file {FORGOTTEN_FILE} in the data folder {} is damaged: deletes that others remember and this node \
                 does not count as forgotten",
                folder.display()
            );
            newest_clock
        });
        Ok(Self(AtomicU64::new(clock)))
    }

    pub(crate) fn clock(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Puts on disk that what is dropped is not newer than `clock`. One thread at a time.
    pub(crate) fn raise(&self, env: &dyn Env, folder: &Path, clock: u64) -> io::Result<()> {
        if clock <= self.clock() {
            return Ok(());
        }
        let path = folder.join(FORGOTTEN_FILE);
        match env.open(&path) {
            Ok(file) => env.write_durably(&file, &encode(clock), 0)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let file = env.create(&path)?;
                env.write_durably(&file, &encode(clock), 0)?;
                env.sync_folder(folder)?;
            }
            Err(e) => return Err(e),
        }
        self.0.store(clock, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::RealEnv;

    #[test]
    fn it_is_on_disk_and_never_goes_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let open = || Forgotten::open(&RealEnv, dir.path(), 77).expect("read");
        let forgotten = open();
        assert_eq!(forgotten.clock(), 0, "nothing was dropped");
        forgotten.raise(&RealEnv, dir.path(), 5).expect("written");
        forgotten.raise(&RealEnv, dir.path(), 3).expect("no change");
        assert_eq!((forgotten.clock(), open().clock()), (5, 5));

        let path = dir.path().join(FORGOTTEN_FILE);
        let bytes = std::fs::read(&path).expect("a file");
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, damaged).expect("written");
            assert_eq!(open().clock(), 77, "bit {bit}");
        }
        std::fs::write(&path, &bytes[..20]).expect("written");
        assert_eq!(open().clock(), 77);
        std::fs::write(&path, b"").expect("written");
        assert_eq!(open().clock(), 0, "made just before the process ended");
    }
}

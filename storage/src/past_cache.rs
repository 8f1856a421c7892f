//! Reading files as they are on disk, and leaving the page cache as it was.
//!
//! Past the cache (`O_DIRECT`) where the file system can do that: what is in memory says nothing of
//! the disk, and what is read once pushes out nothing. Elsewhere pages that were not in memory before
//! are let go after.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::env::Env;

/// Bytes that are read at once.
pub(crate) const PIECE: usize = 1 << 20;
/// What the place in a file, in memory, and the length have to be multiples of.
const ALIGN: usize = 4096;

/// A file that is read from its start to its end.
pub(crate) struct PastCache<'a> {
    env: &'a dyn Env,
    file: File,
    is_direct: bool,
    buffer: Vec<u8>,
}

impl<'a> PastCache<'a> {
    pub(crate) fn open(env: &'a dyn Env, path: &Path) -> io::Result<Self> {
        let (file, is_direct) = match env.open_past_cache(path) {
            Ok(file) => (file, true),
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => (env.open_to_read(path)?, false),
            Err(e) => return Err(e),
        };
        Ok(Self { env, file, is_direct, buffer: vec![0; PIECE + ALIGN] })
    }

    /// Up to [`PIECE`] bytes from a multiple of that on; fewer at the end of the file.
    pub(crate) fn read(&mut self, offset: u64) -> io::Result<&[u8]> {
        let start = self.buffer.as_ptr().align_offset(ALIGN);
        let piece = &mut self.buffer[start..start + PIECE];
        let mut len = 0;
        let cached = if self.is_direct { Vec::new() } else { self.env.cached(&self.file, offset, PIECE as u64)? };
        while len < PIECE {
            match self.env.read_some_at(&self.file, &mut piece[len..], offset + len as u64) {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            // Past the cache, the end of the file may lie between two places that can be read at.
            if self.is_direct && !len.is_multiple_of(ALIGN) {
                break;
            }
        }
        for page in (0..len.div_ceil(ALIGN)).filter(|&page| cached.get(page) == Some(&false)) {
            self.env.let_go(&self.file, offset + (page * ALIGN) as u64, ALIGN as u64);
        }
        Ok(&piece[..len])
    }
}

//! The header of a segment file: its bytes, and what a file is whose header is not what it should be.

use std::fs::File;
use std::io;

use crate::env::Env;

/// Bytes before the first record.
pub(crate) const SEGMENT_HEADER: u32 = 64;
/// The largest segment: an index entry has 23 bits for an offset in units of 8 bytes.
pub(crate) const SEGMENT_MAX: u32 = 1 << 26;
/// A segment is a multiple of this.
pub(crate) const PAGE: u32 = 4096;
/// A file is read in pieces of this many bytes.
const BUFFER: usize = 64 << 10;

const MAGIC: &[u8; 8] = b"KOLTSOSG";
const FORMAT: u32 = 2;

/// Why a file is not a segment of ours.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("it has no intact segment header")]
    Damaged,
    /// It was being made when the process ended or the power was lost, and there is nothing in it.
    #[error("its header was not written")]
    Unwritten,
    #[error("its segment format is {0}, and this build knows formats up to {FORMAT}")]
    Newer(u32),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The header's bytes.
pub(crate) fn encode(sequence: u64, salt: u32, capacity: u32) -> [u8; SEGMENT_HEADER as usize] {
    let mut header = [0; SEGMENT_HEADER as usize];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    header[16..24].copy_from_slice(&sequence.to_le_bytes());
    header[24..28].copy_from_slice(&salt.to_le_bytes());
    header[28..32].copy_from_slice(&capacity.to_le_bytes());
    let crc = header_crc(&header);
    header[12..16].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Of everything but the checksum itself. All formats have it at this place, so that one flipped
/// bit does not make a newer format, which would keep the store from opening.
fn header_crc(header: &[u8; SEGMENT_HEADER as usize]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..])
}

/// Salt and capacity from the header of a segment's file.
pub(crate) fn read(env: &dyn Env, file: &File, sequence: u64) -> Result<(u32, u32), HeaderError> {
    let mut bytes = [0; SEGMENT_HEADER as usize];
    if env.len(file)? < u64::from(SEGMENT_HEADER) {
        return Err(HeaderError::Unwritten);
    }
    env.read_at(file, &mut bytes, 0)?;
    let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (format, salt, capacity) = (u32_at(8), u32_at(24), u32_at(28));
    if &bytes[..8] == MAGIC && format > FORMAT && u32_at(12) == header_crc(&bytes) {
        return Err(HeaderError::Newer(format));
    }
    let size_fits = (PAGE..=SEGMENT_MAX).contains(&capacity) && capacity.is_multiple_of(PAGE);
    if !size_fits || bytes != encode(sequence, salt, capacity) {
        // None of these words is zero in a header. That alone says nothing of what is behind
        // it: a disk may give back zeros for what it has lost.
        let lacks_words = bytes[..32].chunks_exact(8).any(|word| word == [0; 8]);
        let is_unwritten = lacks_words && is_blank(env, file, 32)?;
        return Err(if is_unwritten { HeaderError::Unwritten } else { HeaderError::Damaged });
    }
    Ok((salt, capacity))
}

/// Whether a file has nothing but zeros from `start` on.
fn is_blank(env: &dyn Env, file: &File, start: u64) -> io::Result<bool> {
    let end = env.data_end(file, env.len(file)?);
    let mut buffer = vec![0; BUFFER];
    for at in (start..end).step_by(buffer.len()) {
        let piece = (end - at).min(buffer.len() as u64) as usize;
        env.read_at(file, &mut buffer[..piece], at)?;
        if buffer[..piece].iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

//! The secret of a data folder, which keys the hash of the index.
//!
//! ```text
//! 0   8 bytes  "KOLTSOKY"          12  u32       CRC-32C of the others
//! 8   u32      format version, 1   16  16 bytes  the secret, random
//! ```
//!
//! The hash is SipHash-1-3 (Aumasson, Bernstein, *SipHash: a fast short-input PRF*, 2012). It is
//! made with the folder and never changes. Nothing but sidecars depends on it, and these name it by
//! its fingerprint, so a folder without sidecars can get another one; with them it is missed, since
//! whoever lost it may have lost more.
//!
//! Bounds: 32 bytes, readable for the folder's owner only. Tested in `tests/secret.rs`.

use std::io;
use std::path::Path;

use siphasher::sip::SipHasher13;

use crate::bytes::u32_at;
use crate::env::{self, Env};
use crate::hash::IndexHash;

/// The file's name in the data folder.
pub(crate) const SECRET_FILE: &str = "SECRET";
/// What it is called while it is written.
pub(crate) const SECRET_NEW_FILE: &str = "SECRET-new";

const MAGIC: &[u8; 8] = b"KOLTSOKY";
const FORMAT: u32 = 1;
const SIZE: usize = 32;
/// Permissions of others than the owner.
const OTHERS: u32 = 0o077;

/// A folder's secret, ready to hash with.
#[derive(Clone)]
pub(crate) struct Secret(SipHasher13);

/// What is in the place of a secret.
#[derive(Debug)]
pub(crate) enum NoSecret {
    Missing,
    Damaged,
    /// Others than the owner may read or write the file.
    Open,
    Io(io::Error),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        Self(SipHasher13::new_with_key(b"0123456789abcdef"))
    }

    /// Hashes a key for the index.
    #[inline]
    pub(crate) fn hash(&self, key: &[u8]) -> IndexHash {
        IndexHash::from_bits(self.0.hash(key))
    }

    /// A number that differs from that of any other secret, and says nothing about this one: the
    /// hash of no bytes, which no key is.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.0.hash(&[])
    }

    /// Reads the folder's secret.
    pub(crate) fn read(env: &dyn Env, folder: &Path) -> Result<Self, NoSecret> {
        let path = folder.join(SECRET_FILE);
        let read = || -> io::Result<(Vec<u8>, u32)> { Ok((env::read(env, &path)?, env.permissions(&path)?)) };
        match read() {
            Ok((_, permissions)) if permissions & OTHERS != 0 => Err(NoSecret::Open),
            Ok((bytes, _)) => Self::parse(&bytes).ok_or(NoSecret::Damaged),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(NoSecret::Missing),
            Err(e) => Err(NoSecret::Io(e)),
        }
    }

    /// Makes a secret and puts it into the folder, where it is durable after that.
    pub(crate) fn make(env: &dyn Env, folder: &Path) -> io::Result<Self> {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&env.random().to_le_bytes());
        key[8..].copy_from_slice(&env.random().to_le_bytes());
        let temporary = folder.join(SECRET_NEW_FILE);
        let file = env.create(&temporary)?;
        env.write_at(&file, &encode(&key), 0)?;
        env.sync(&file)?;
        env.rename(&temporary, &folder.join(SECRET_FILE))?;
        env.sync_folder(folder)?;
        Ok(Self(SipHasher13::new_with_key(&key)))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; SIZE] = bytes.try_into().ok()?;
        let intact = &bytes[..8] == MAGIC && u32_at(bytes, 8) == FORMAT && u32_at(bytes, 12) == checksum(bytes);
        let key: &[u8; 16] = bytes.last_chunk()?;
        intact.then(|| Self(SipHasher13::new_with_key(key)))
    }
}

fn encode(key: &[u8; 16]) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[16..].copy_from_slice(key);
    let crc = checksum(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn checksum(bytes: &[u8; SIZE]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..])
}

#[cfg(test)]
mod tests {
    use koltso_model::KeyHash;

    use super::*;

    #[test]
    fn every_flipped_bit_and_every_missing_byte_of_the_file_is_noticed() {
        let bytes = encode(&[7; 16]);
        let secret = Secret::parse(&bytes).expect("intact");
        assert_eq!(secret.fingerprint(), Secret(SipHasher13::new_with_key(&[7; 16])).fingerprint());
        for bit in 0..SIZE * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Secret::parse(&damaged).is_none(), "bit {bit} went unnoticed");
        }
        for len in 0..SIZE {
            assert!(Secret::parse(&bytes[..len]).is_none(), "{len} bytes");
        }
        assert!(Secret::parse(&[&bytes[..], &[0]].concat()).is_none());
    }

    /// The bytes 0..n under the key 00 01 .. 0f, computed from the paper by a program that gives
    /// its vectors for SipHash-2-4.
    #[test]
    fn the_hash_is_siphash_1_3() {
        let key: [u8; 16] = std::array::from_fn(|at| at as u8);
        let hasher = SipHasher13::new_with_key(&key);
        assert_eq!(hasher.hash(&[]), 0xabac_0158_050f_c4dc);
        assert_eq!(hasher.hash(&key[..1]), 0xc9f4_9bf3_7d57_ca93);
        assert_eq!(hasher.hash(&key[..15]), 0xd320_d86d_2a51_9956);
    }

    #[test]
    fn keys_made_against_the_public_hash_are_spread_by_the_keyed_one() {
        let secret = Secret::for_test();
        let mut stripes = std::collections::HashSet::new();
        for number in 0..1000_u64 {
            let mut key = [0; 32];
            // The first bytes of XXH3's own secret: what they are multiplied with does not matter
            // any more.
            key[..8].copy_from_slice(&[0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe]);
            key[8..16].copy_from_slice(&number.to_le_bytes());
            assert_eq!(KeyHash::of(&key), KeyHash::of(&[&key[..8], &[0; 24]].concat()));
            stripes.insert(secret.hash(&key).stripe());
        }
        assert!(stripes.len() > 800, "{} stripes for 1000 keys", stripes.len());
    }
}

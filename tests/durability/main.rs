//! SPEC.md section 4 from outside: what was acknowledged survives kill -9, torn tails, flipped
//! bits, lost sidecars and full disks.
//!
//! Values are made from key and sequence number, so a test knows of each value which write it came
//! from.
#![allow(missing_docs, clippy::unwrap_used)]

mod crashes;
mod cut_short;
mod damage;
mod disks;
mod draining;
mod files_of_others;
mod full_disk;
mod scrub;

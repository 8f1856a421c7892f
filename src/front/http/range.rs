//! A range as a streamed body: one chunk a record, each `key`, `\n`, `value`, or with their lengths
//! in front ([`Records`]).
//!
//! Owner: one connection of one core. Bounds: about 64 KiB a piece and 1024 records looked at, then
//! the core's other connections have their turn; the segments it holds are let go about once a
//! second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use koltso_instrument::waited_for;
use koltso_net::server::{Fill, Sink, Source};
use koltso_storage::{Cursor, Step, Store, Value};

use super::request::{Range, Records};
use crate::replica::clock::now_ms;

/// Bytes of a piece.
const PIECE: usize = 64 << 10;
/// Records looked at for a piece, live or not.
const LOOKS: u32 = 1024;
/// A cursor that is older lets its segments go, so that a slow reader does not keep compaction's
/// space.
const CURSOR_AGE_MAX: Duration = Duration::from_secs(1);
/// Pause while the newest records are being sorted.
const NOT_READY_PAUSE: Duration = Duration::from_millis(5);

/// The body of a range.
pub struct RangeSource {
    store: Arc<Store>,
    start: Vec<u8>,
    end: Option<Vec<u8>>,
    left: u64,
    framing: Records,
    begun: Instant,
    /// How long to wait for the sealing thread.
    patience: Duration,
    /// It does.
    waits: bool,
    cursor: Option<(Cursor, Instant)>,
}

impl RangeSource {
    /// The records of a range.
    pub fn new(store: Arc<Store>, range: Range, patience: Duration) -> Self {
        let Range { start, end, limit, framing } = range;
        Self { store, start, end, left: limit, framing, begun: Instant::now(), patience, waits: false, cursor: None }
    }
}

/// The lengths of a key and a value, as [`Records::Lengths`] has them.
fn lengths(key: usize, value: usize) -> [u8; 8] {
    let mut lengths = [0; 8];
    // Both are far below 4 GiB: the log has 32 bits for a value's length.
    lengths[..4].copy_from_slice(&(key as u32).to_le_bytes());
    lengths[4..].copy_from_slice(&(value as u32).to_le_bytes());
    lengths
}

impl Source for RangeSource {
    fn fill(&mut self, sink: &mut Sink<'_>) -> Fill {
        let (cursor, opened) = match &mut self.cursor {
            Some(cursor) => cursor,
            slot => match self.store.scan(&self.start, self.end.as_deref()) {
                Ok(cursor) => {
                    if self.waits {
                        waited_for(&"sorting for a range", self.begun.elapsed(), 1);
                    }
                    slot.insert((cursor, Instant::now()))
                }
                Err(_) if self.begun.elapsed() < self.patience => {
                    self.waits = true;
                    return Fill::Wait(NOT_READY_PAUSE);
                }
                Err(e) => {
                    tracing::warn!("a range was given up: {e}");
                    return Fill::Abort;
                }
            },
        };
        // If the sealing thread is behind just now, the next piece tries again.
        if opened.elapsed() > CURSOR_AGE_MAX && cursor.refresh().is_ok() {
            *opened = Instant::now();
        }
        let now_ms = now_ms();
        let mut looks = LOOKS;
        let framing = self.framing;
        while self.left > 0 && sink.len() < PIECE && looks > 0 {
            let step = cursor.step(now_ms, &mut looks, |key, value| {
                let lengths = lengths(key.len(), value.len());
                let (before, behind): (&[u8], &[u8]) = match framing {
                    Records::Lines => (b"", b"\n"),
                    Records::Lengths => (&lengths, b""),
                };
                match value {
                    Value::Inline(bytes) => {
                        sink.chunk(&[before, key, behind, bytes]);
                        None
                    }
                    Value::Large(value) => Some(([before, key, behind].concat(), value)),
                }
            });
            match step {
                Step::End => return Fill::End,
                Step::Pause => break,
                Step::Record(None) => self.left -= 1,
                Step::Record(Some((prefix, value))) => {
                    // A damaged one is left out, and reported.
                    if let Some(value) = value.verify() {
                        sink.chunk_value(&prefix, Bytes::from_owner(value));
                        self.left -= 1;
                    }
                }
            }
        }
        if self.left == 0 { Fill::End } else { Fill::More }
    }
}

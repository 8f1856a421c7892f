//! Hints that are read back, sent, and confirmed.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use bytes::Bytes;
use koltso_model::Record;

use super::{Log, READ_BUFFER, Segment};
use crate::entry::Scanner;

/// Hints that were read back, to be sent and then confirmed.
#[derive(Debug, Default)]
pub(crate) struct Window {
    sequence: u64,
    pub records: Vec<Record<Bytes>>,
    /// For each record, where its entry ends and when it was written.
    ends: Vec<(u64, u64)>,
}

impl Log {
    /// The oldest hints, up to `count_max` and `bytes_max`, at least one if there is any. Drops
    /// damage that it meets.
    ///
    /// # Errors
    /// The segment cannot be opened now.
    pub(crate) fn window(&mut self, count_max: u32, bytes_max: u64) -> io::Result<Window> {
        while self.pending > 0 {
            let segment = *self.segments.front().expect("pending hints are in a segment");
            let (window, damage) = match self.read(&segment, count_max, bytes_max) {
                Ok(window) => (window, "damage".to_owned()),
                Err(e) if e.kind() == io::ErrorKind::NotFound => (Window::default(), e.to_string()),
                Err(e) => return Err(e),
            };
            if !window.records.is_empty() {
                return Ok(window);
            }
            self.say_damage(segment.sequence, self.confirmed, segment.end - self.confirmed);
            self.drop_first(&damage);
        }
        Ok(Window::default())
    }

    /// Reads hints from the position on. Returns errors of opening only; an entry that cannot be
    /// read ends the window.
    fn read(&mut self, segment: &Segment, count_max: u32, bytes_max: u64) -> io::Result<Window> {
        if self.reader.as_ref().is_none_or(|(sequence, _)| *sequence != segment.sequence) {
            self.reader = Some((segment.sequence, File::open(self.path(segment.sequence))?));
        }
        let (_, file) = self.reader.as_ref().expect("just opened");
        let mut input = file;
        input.seek(SeekFrom::Start(self.confirmed))?;
        let input = BufReader::with_capacity(READ_BUFFER, input.take(segment.end - self.confirmed));
        let mut scanner = Scanner::new(input, self.confirmed, segment.end, segment.salt);
        let mut window = Window { sequence: segment.sequence, ..Window::default() };
        while window.records.len() < count_max as usize {
            let Ok(Some(found)) = scanner.next() else { break };
            if found.end - self.confirmed > bytes_max && !window.records.is_empty() {
                break;
            }
            window.records.push(found.record);
            window.ends.push((found.end, found.written_ms));
        }
        Ok(window)
    }

    /// Notes that the peer has the first `count` records of the window, which must be the last one
    /// that was read. A bound may have taken its segment meanwhile: they were counted as lost then.
    pub(crate) fn confirm(&mut self, window: &Window, count: usize) {
        let Some(&(end, written_ms)) = count.checked_sub(1).and_then(|last| window.ends.get(last)) else { return };
        let Some(segment) = self.segments.front_mut().filter(|segment| segment.sequence == window.sequence) else {
            return;
        };
        assert!(end > self.confirmed, "confirmed in order");
        segment.pending -= count as u64;
        self.pending -= count as u64;
        (self.confirmed, self.confirmed_ms, self.position_changed) = (end, written_ms, true);
        self.remove_confirmed();
    }
}

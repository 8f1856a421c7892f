//! Reading a segment in the order of its bytes without waiting for each page.

use crate::indexed::IndexedSegment;

/// Segments that are read from one end to the other are asked for in pieces of this many bytes.
const READ_AHEAD: u32 = 1 << 20;

/// Has the kernel read what comes next in a segment that is read in the order of its bytes.
#[derive(Default)]
pub(crate) struct ReadAhead {
    asked: u32,
}

impl ReadAhead {
    /// Somebody is about to read at this offset, which is behind those before.
    pub(crate) fn at(&mut self, segment: &IndexedSegment, offset: u32) {
        if offset >= self.asked {
            let end = offset.saturating_add(READ_AHEAD).min(segment.written());
            segment.will_need(offset, end);
            self.asked = end;
        }
    }
}

//! The records of a perf ring, read from plain bytes, without pointers and system calls.
//!
//! The bytes are treated as hostile: a size below a header's or beyond the remaining bytes ends the
//! reading (one [`Record::Malformed`]); a record too short for its kind, or a chain longer than its
//! record, is [`Record::Malformed`] and is stepped over. Tested below, on bytes.

use super::abi;
use crate::symbols::is_kernel;

/// `struct perf_event_header`.
const HEADER: usize = 8;
/// Bytes at the end of a record that is not a sample: pid, tid, time, cpu.
const SAMPLE_ID: usize = 24;

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    /// A sample.
    Sample(Sample<'a>),
    /// The kernel lost this many records.
    Lost(u64),
    /// The kernel found the rate too high and paused the event.
    Throttle,
    /// A thread left the processor (`out`) or came back.
    Switch { pid: u32, tid: u32, at_ns: u64, out: bool },
    /// A record of a kind that nobody here needs.
    Other,
    /// A record that contradicts the ABI.
    Malformed,
}

/// A sample with the fields of [`abi::SAMPLE_TYPE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample<'a> {
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) at_ns: u64,
    pub(crate) cpu: u32,
    pub(crate) period: u64,
    /// The call chain, eight bytes for each entry; [`addresses`] reads it.
    pub(crate) chain: &'a [u8],
}

/// Where `[tail, head)` is in a ring of `size` bytes: two spans of offset and length. `None` if
/// that is more bytes than the ring has.
pub(crate) fn spans(size: usize, tail: u64, head: u64) -> Option<[(usize, usize); 2]> {
    let length = head.wrapping_sub(tail);
    if size == 0 || length > size as u64 {
        return None;
    }
    let (start, length) = ((tail % size as u64) as usize, length as usize);
    let first = length.min(size - start);
    Some([(start, first), (0, length - first)])
}

/// Reads the records in these bytes one by one.
pub(crate) struct Records<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        if self.0.is_empty() {
            return None;
        }
        let size = u16_at(self.0, 6).map_or(0, usize::from);
        if size < HEADER || size > self.0.len() {
            self.0 = &[];
            return Some(Record::Malformed);
        }
        let (record, rest) = self.0.split_at(size);
        self.0 = rest;
        Some(read(record).unwrap_or(Record::Malformed))
    }
}

fn read(record: &[u8]) -> Option<Record<'_>> {
    let (kind, misc) = (u32_at(record, 0)?, u16_at(record, 4)?);
    let body = &record[HEADER..];
    Some(match kind {
        abi::RECORD_SAMPLE => {
            let entries = u64_at(body, 40)?;
            let chain = &body[48..];
            if entries > (chain.len() / 8) as u64 {
                return None;
            }
            Record::Sample(Sample {
                pid: u32_at(body, 8)?,
                tid: u32_at(body, 12)?,
                at_ns: u64_at(body, 16)?,
                cpu: u32_at(body, 24)?,
                period: u64_at(body, 32)?,
                chain: &chain[..entries as usize * 8],
            })
        }
        abi::RECORD_LOST => Record::Lost(u64_at(body, 8)?),
        abi::RECORD_LOST_SAMPLES => Record::Lost(u64_at(body, 0)?),
        abi::RECORD_THROTTLE => Record::Throttle,
        abi::RECORD_SWITCH_CPU_WIDE => {
            let id = &body[body.len().checked_sub(SAMPLE_ID)?..];
            Record::Switch {
                pid: u32_at(id, 0)?,
                tid: u32_at(id, 4)?,
                at_ns: u64_at(id, 8)?,
                out: misc & abi::MISC_SWITCH_OUT != 0,
            }
        }
        _ => Record::Other,
    })
}

/// The addresses of a chain, leaf first, kernel before user. On every 64-bit machine that Linux
/// runs on, the upper half of the address space is the kernel's, so each address says whose it is
/// ([`is_kernel`]).
///
/// Return addresses become those of the call (1 is subtracted). The address at which the processor
/// was interrupted and the one at which the thread entered the kernel stay as they are.
pub(crate) fn addresses(chain: &[u8], into: &mut Vec<u64>) {
    #[derive(PartialEq)]
    enum Context {
        None,
        Kernel,
        User,
    }
    into.clear();
    let (mut context, mut first) = (Context::None, true);
    for entry in chain.chunks_exact(8) {
        let value = u64_at(entry, 0).unwrap_or(0);
        if value >= abi::CONTEXT_MAX {
            context = match value {
                abi::CONTEXT_KERNEL => Context::Kernel,
                abi::CONTEXT_USER => Context::User,
                _ => Context::None,
            };
            first = true;
            continue;
        }
        if context == Context::None || value < 4096 || is_kernel(value) != (context == Context::Kernel) {
            continue;
        }
        into.push(if first { value } else { value - 1 });
        first = false;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u32, misc: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = kind.to_ne_bytes().to_vec();
        bytes.extend(misc.to_ne_bytes());
        bytes.extend(((HEADER + body.len()) as u16).to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    fn sample(entries: u64, chain: &[u64]) -> Vec<u8> {
        let mut body = 0x1234_u64.to_ne_bytes().to_vec();
        for half in [7_u32, 8] {
            body.extend(half.to_ne_bytes());
        }
        for whole in [99, 3, 1_001_001, entries] {
            body.extend(u64::to_ne_bytes(whole));
        }
        body.extend(chain.iter().flat_map(|entry| entry.to_ne_bytes()));
        record(abi::RECORD_SAMPLE, 0, &body)
    }

    #[test]
    fn a_sample_is_read_and_its_chain_split_at_the_marks() {
        let kernel = 0xffff_ffff_8100_0000;
        let bytes = sample(7, &[abi::CONTEXT_KERNEL, kernel, kernel + 9, abi::CONTEXT_USER, 0x40_0000, 0x40_1000, 0]);
        let Some(Record::Sample(sample)) = Records(&bytes).next() else { panic!("no sample") };
        assert_eq!((sample.pid, sample.tid, sample.at_ns, sample.cpu, sample.period), (7, 8, 99, 3, 1_001_001));
        let mut found = Vec::new();
        addresses(sample.chain, &mut found);
        assert_eq!(found, [kernel, kernel + 8, 0x40_0000, 0x40_0fff]);
    }

    #[test]
    fn addresses_outside_their_context_are_left_out() {
        let chain: Vec<u8> =
            [5 << 20, abi::CONTEXT_USER, u64::MAX << 40, 8192, abi::CONTEXT_KERNEL, 8192, abi::CONTEXT_MAX, 8192]
                .iter()
                .flat_map(|entry| entry.to_ne_bytes())
                .collect();
        let mut found = vec![1];
        addresses(&chain, &mut found);
        assert_eq!(found, [8192]);
    }

    #[test]
    fn switches_losses_and_throttling_are_read() {
        let mut id = Vec::new();
        for half in [0_u32, 0, 7, 8] {
            id.extend(half.to_ne_bytes());
        }
        id.extend(55_u64.to_ne_bytes());
        id.extend(1_u64.to_ne_bytes());
        let mut bytes = record(abi::RECORD_SWITCH_CPU_WIDE, abi::MISC_SWITCH_OUT, &id);
        bytes.extend(record(abi::RECORD_SWITCH_CPU_WIDE, 0, &id));
        bytes.extend(record(abi::RECORD_LOST, 0, &[&1_u64.to_ne_bytes()[..], &17_u64.to_ne_bytes()].concat()));
        bytes.extend(record(abi::RECORD_LOST_SAMPLES, 0, &3_u64.to_ne_bytes()));
        bytes.extend(record(abi::RECORD_THROTTLE, 0, &[0; 24]));
        bytes.extend(record(4711, 0, &[]));
        let records: Vec<_> = Records(&bytes).collect();
        let switch = |out| Record::Switch { pid: 7, tid: 8, at_ns: 55, out };
        assert_eq!(
            records,
            [switch(true), switch(false), Record::Lost(17), Record::Lost(3), Record::Throttle, Record::Other]
        );
    }

    #[test]
    fn hostile_sizes_neither_panic_nor_loop() {
        // A size of 0, one smaller than a header, and two larger than the bytes there are; then
        // half a header.
        for size in [0_u16, 7, 9, u16::MAX] {
            let mut bytes = record(abi::RECORD_SAMPLE, 0, &[]);
            bytes[6..].copy_from_slice(&size.to_ne_bytes());
            assert_eq!(Records(&bytes).collect::<Vec<_>>(), [Record::Malformed], "{size}");
            assert_eq!(Records(&bytes[..5]).collect::<Vec<_>>(), [Record::Malformed]);
        }
        // A chain that claims to be longer than its record, by one entry or by as many as a number
        // allows; the record after it is still read.
        for entries in [3, u64::MAX, u64::MAX / 8 + 1] {
            let bytes = [sample(entries, &[1, 2]), record(abi::RECORD_THROTTLE, 0, &[])].concat();
            assert_eq!(Records(&bytes).collect::<Vec<_>>(), [Record::Malformed, Record::Throttle], "{entries}");
        }
        // Every kind, cut at every length.
        for kind in 0..32 {
            for length in 0..64 {
                let bytes = record(kind, u16::MAX, &[0xff; 64][..length]);
                assert_eq!(Records(&bytes).count(), 1);
            }
        }
    }

    #[test]
    fn spans_wrap_around_and_refuse_more_than_the_ring() {
        assert_eq!(spans(4096, 0, 100), Some([(0, 100), (0, 0)]));
        assert_eq!(spans(4096, 4000, 4200), Some([(4000, 96), (0, 104)]));
        assert_eq!(spans(4096, 8192 + 10, 8192 + 10), Some([(10, 0), (0, 0)]));
        assert_eq!(spans(4096, 10, 10 + 4096), Some([(10, 4086), (0, 10)]));
        assert_eq!(spans(4096, u64::MAX - 95, 4), Some([(4000, 96), (0, 4)]));
        assert_eq!(spans(4096, 10, 10 + 4097), None);
        assert_eq!(spans(4096, 10, 9), None);
        assert_eq!(spans(0, 0, 0), None);
    }
}

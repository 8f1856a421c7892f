//! profile.proto, gzipped: the format that `go tool pprof`, Pyroscope and Parca read. [`decode()`]
//! reads it back.
//!
//! The messages are those of <https://github.com/google/pprof/blob/main/proto/profile.proto>. The
//! crate `pprof` supplies their types and codec, generated, so that no build needs `protoc`;
//! nothing else of that crate is used. Stacks have the leaf first; frames inlined at one address
//! are lines of one location, the innermost first; kernel frames have a mapping of their own and no
//! addresses; the thread's name is the label `thread`. Invariants: string 0 is empty; every id that
//! is used is defined; ids start at 1, and 0 means none. A capture without samples is a valid
//! profile. Absent: the times of samples, for which the format has no field. The first comment is
//! the engine's sentence; a second one, which begins with [`NOTE`], has what else the format has no
//! field for. Tested in `tests/proto.rs`, also with the real `go tool pprof`, and in
//! `tests/decode.rs`.

mod decode;

pub use decode::{DecodeError, INFLATED_MAX, MESSAGE_MAX, decode};
/// The messages of profile.proto.
pub use pprof::protos as message;

use crate::capture::{Capture, Frame, FrameId, FramePlace, KERNEL_MAPPING, ThreadIndex, ValueType};
use flate2::{Compression, write::GzEncoder};
use message::Message;
use std::collections::HashMap;
use std::io::Write;

/// The beginning of the comment that says what was captured and what is missing from it: `koltso
/// event=cpu samples=2970 lost=0 …`.
pub const NOTE: &str = "koltso ";

/// Encodes a capture as a gzipped profile.
#[must_use]
pub fn encode(capture: &Capture) -> Vec<u8> {
    let bytes = profile(capture).encode_to_vec();
    let mut gzip = GzEncoder::new(Vec::with_capacity(bytes.len() / 3), Compression::fast());
    gzip.write_all(&bytes).and_then(|()| gzip.finish()).expect("a vector takes every byte")
}

/// The profile of a capture, as a message.
#[must_use]
pub fn profile(capture: &Capture) -> message::Profile {
    let mut builder = Builder { strings: vec![String::new()], ..Builder::default() };
    builder.string_ids.insert(String::new(), 0);
    let types = capture.types.iter().map(|of| builder.value_type(of)).collect();
    builder.mappings(capture);
    let locations: Vec<Vec<u64>> = capture.stacks().iter().map(|stack| builder.locations(capture, stack)).collect();
    let key = builder.string("thread");
    let threads: Vec<i64> = (0..capture.threads.len())
        .map(|index| builder.string(&capture.thread_name(ThreadIndex(index as u16))))
        .collect();
    let samples = capture.folded().into_iter().map(|sample| {
        let name = threads.get(usize::from(sample.thread.0)).copied();
        message::Sample {
            location_id: locations[sample.stack.0 as usize].clone(),
            value: sample.values[..capture.types.len()].to_vec(),
            label: name.map(|str| message::Label { key, str, num: 0, num_unit: 0 }).into_iter().collect(),
        }
    });
    let samples = samples.collect();
    let period_type = capture.period.as_ref().map(|(of, _)| builder.value_type(of));
    let engine = (!capture.engine.is_empty()).then(|| builder.string(&capture.engine));
    let comment = engine.into_iter().chain([builder.string(&note(capture))]).collect();
    let default_sample_type = builder.string(&capture.types[capture.default_type].name);
    message::Profile {
        sample_type: types,
        sample: samples,
        mapping: builder.mapping,
        location: builder.location,
        function: builder.function,
        string_table: builder.strings,
        time_nanos: i64::try_from(capture.began_unix_ms).unwrap_or(0).saturating_mul(1_000_000),
        duration_nanos: i64::try_from(capture.duration_ns).unwrap_or(i64::MAX),
        period_type,
        period: capture.period.as_ref().map_or(0, |&(_, period)| period),
        comment,
        default_sample_type,
        ..message::Profile::default()
    }
}

fn note(capture: &Capture) -> String {
    let Capture { lost, throttled, dropped, accounted_ns, .. } = capture;
    let (event, samples) = (capture.event.name(), capture.sample_count());
    format!(
        "{NOTE}event={event} samples={samples} lost={lost} throttled={throttled} dropped={dropped} \
         accounted_ns={accounted_ns}"
    )
}

#[derive(Default)]
struct Builder {
    strings: Vec<String>,
    string_ids: HashMap<String, i64>,
    mapping: Vec<message::Mapping>,
    kernel_mapping: u64,
    location: Vec<message::Location>,
    location_ids: HashMap<Box<[FrameId]>, u64>,
    function: Vec<message::Function>,
    function_ids: HashMap<(i64, i64), u64>,
}

impl Builder {
    fn string(&mut self, text: &str) -> i64 {
        if let Some(&id) = self.string_ids.get(text) {
            return id;
        }
        let id = self.strings.len() as i64;
        self.strings.push(text.to_owned());
        self.string_ids.insert(text.to_owned(), id);
        id
    }

    fn value_type(&mut self, of: &ValueType) -> message::ValueType {
        message::ValueType { ty: self.string(&of.name), unit: self.string(&of.unit) }
    }

    /// Adds the program's mappings, then the kernel's if there is a kernel frame. They claim to be
    /// symbolised; otherwise tools would look for the binary on the machine where they run, which
    /// may have another one.
    fn mappings(&mut self, capture: &Capture) {
        let described = message::Mapping {
            has_functions: true,
            has_filenames: true,
            has_line_numbers: true,
            has_inline_frames: true,
            ..message::Mapping::default()
        };
        for mapping in &capture.mappings {
            let (filename, build_id) = (self.string(&mapping.file), self.string(&mapping.build_id));
            self.mapping.push(message::Mapping {
                id: self.mapping.len() as u64 + 1,
                memory_start: mapping.start,
                memory_limit: mapping.end,
                file_offset: mapping.offset,
                filename,
                build_id,
                ..described.clone()
            });
        }
        if capture.frames().iter().any(|frame| frame.place == FramePlace::Kernel) {
            self.kernel_mapping = self.mapping.len() as u64 + 1;
            let filename = self.string(KERNEL_MAPPING);
            self.mapping.push(message::Mapping {
                id: self.kernel_mapping,
                // It holds the one address that all frames of the kernel have: none.
                memory_start: 0,
                memory_limit: 1,
                filename,
                ..described
            });
        }
    }

    /// The locations of a stack: inlined frames belong to the location of the frame after them.
    fn locations(&mut self, capture: &Capture, stack: &[FrameId]) -> Vec<u64> {
        stack
            .split_inclusive(|&id| capture.frame_at(id).place != FramePlace::Inlined)
            .map(|frames| self.location(capture, frames))
            .collect()
    }

    fn location(&mut self, capture: &Capture, frames: &[FrameId]) -> u64 {
        if let Some(&id) = self.location_ids.get(frames) {
            return id;
        }
        let outermost =
            capture.frame_at(*frames.last().expect("pieces of a split that includes its mark are not empty"));
        let line = frames.iter().map(|&frame| self.line(capture.frame_at(frame))).collect();
        let id = self.location.len() as u64 + 1;
        self.location.push(message::Location {
            id,
            mapping_id: self.mapping_of(capture, outermost),
            // A label has no address.
            address: if outermost.place == FramePlace::Label { 0 } else { outermost.address },
            line,
            is_folded: false,
        });
        self.location_ids.insert(frames.into(), id);
        id
    }

    fn mapping_of(&self, capture: &Capture, frame: &Frame) -> u64 {
        match frame.place {
            FramePlace::Kernel => self.kernel_mapping,
            FramePlace::Label => 0,
            FramePlace::User | FramePlace::Inlined => {
                let holds = |mapping: &crate::capture::Mapping| (mapping.start..mapping.end).contains(&frame.address);
                capture.mappings.iter().position(holds).map_or(0, |index| index as u64 + 1)
            }
        }
    }

    fn line(&mut self, frame: &Frame) -> message::Line {
        let name = self.string(&frame.function);
        let filename = frame.file.as_deref().map_or(0, |file| self.string(file));
        let next = self.function.len() as u64 + 1;
        let id = *self.function_ids.entry((name, filename)).or_insert(next);
        if id == next {
            // There is no system name: `go tool pprof` takes a name that is also the system name
            // for one that it should simplify as C++, and makes `::serve` of `<Core as
            // Service>::serve`.
            self.function.push(message::Function { id, name, system_name: 0, filename, start_line: 0 });
        }
        message::Line { function_id: id, line: i64::from(frame.line) }
    }
}

//! Reads profile.proto back into a [`Capture`]: files that [`super::encode`] wrote, and those of Go
//! and other programs.
//!
//! The input may be hostile. The codec of the message types decodes a profile as a whole and knows
//! no bound, and a message of two bytes may take a hundred once decoded. So the outer message is
//! walked by hand and its parts are decoded one by one, which limits the memory to a few times the
//! size of the input. Bounds: [`INFLATED_MAX`], [`MESSAGE_MAX`], those below and those of
//! [`Capture`]; each has its sentence. Values of one type may add up to 2^62, so that no sum of
//! them overflows.
//!
//! What comes back: types, period, times, mappings, threads by their label, marks of kernel and
//! inlined frames and, from our own files, the engine's sentence, the counts of what is missing,
//! and labels. The format does not hold the times, processors and thread ids of samples. Of more
//! than four types, the default one and the first others are kept. Tested in `tests/decode.rs`, and
//! by the fuzz target `profile`.

use crate::capture::{
    Capture, DEPTH_MAX, Event, FRAMES_MAX, Frame, FrameId, FramePlace, Mapping, SAMPLES_MAX, STACKS_MAX, Sample,
    Thread, ThreadIndex, ValueType,
};
use crate::proto::NOTE;
use crate::proto::message::{self, Message};
use flate2::read::MultiGzDecoder;
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Read;

/// The most bytes of an unpacked profile.
pub const INFLATED_MAX: usize = 256 << 20;
/// The most bytes of one sample, location, function or mapping; a stack of 190 frames takes less
/// than a kilobyte.
pub const MESSAGE_MAX: usize = 1 << 20;
/// The most locations, and the most functions.
const LOCATIONS_MAX: usize = 1 << 20;
const STRINGS_MAX: usize = 1 << 21;
/// The most bytes of one string; the longest names of generic functions have a few thousand.
const STRING_MAX: usize = 64 << 10;
/// The most bytes of all names of frames, each counted for every frame that has it.
const NAMES_MAX: usize = 64 << 20;
const MAPPINGS_MAX: usize = 4096;
const TYPES_MAX: usize = 64;
/// The most threads that are told apart; the samples of further ones belong to an unknown thread.
const THREADS_MAX: usize = 4096;
/// The most values that a sample of a capture can have.
const VALUES_MAX: usize = 4;
const SUM_MAX: u64 = 1 << 62;
const COMMENTS_MAX: usize = 64;

/// Why bytes cannot be shown as a profile.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The gzip stream is damaged or cut short.
    #[error("the gzip stream is damaged: {0}")]
    Gzip(#[source] std::io::Error),
    /// The profile has more than [`INFLATED_MAX`] bytes.
    #[error("the profile is larger than {} MiB unpacked", INFLATED_MAX >> 20)]
    TooLarge,
    /// The bytes are not messages, or not those of a profile.
    #[error("this is no profile.proto: {0}")]
    Malformed(String),
    /// The profile exceeds a bound.
    #[error("the profile has more than {most} {what}")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// The bound.
        most: usize,
    },
    /// The profile refers to something that it does not have.
    #[error("the profile names {what} {id}, which it does not have")]
    Missing {
        /// `location`, `function`, `mapping` or `string`.
        what: &'static str,
        /// The number by which the profile refers to it.
        id: u64,
    },
    /// The profile has no types, and without them values mean nothing.
    #[error("the profile has no types of values: this is no profile.proto, or an empty one")]
    NoTypes,
    /// A sample has too many or too few values.
    #[error("a sample has {found} values, and the profile {types} types")]
    Values {
        /// The number of values that the sample has.
        found: usize,
        /// The number of types that the profile has.
        types: usize,
    },
    /// The values are so large that sums of them would overflow.
    #[error("the values of type {name} add up to more than 2^62")]
    Sum {
        /// The type of the values.
        name: String,
    },
}

/// The capture that a profile describes; `bytes` may be gzipped or plain.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode(bytes: &[u8]) -> Result<Capture, DecodeError> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return if bytes.len() > INFLATED_MAX { Err(DecodeError::TooLarge) } else { Parts::of(bytes)?.capture() };
    }
    let mut inflated = Vec::new();
    MultiGzDecoder::new(bytes).take(INFLATED_MAX as u64 + 1).read_to_end(&mut inflated).map_err(DecodeError::Gzip)?;
    if inflated.len() > INFLATED_MAX {
        return Err(DecodeError::TooLarge);
    }
    Parts::of(&inflated)?.capture()
}

fn malformed(what: impl ToString) -> DecodeError {
    DecodeError::Malformed(what.to_string())
}

fn message<M: Message + Default>(bytes: &[u8]) -> Result<M, DecodeError> {
    if bytes.len() > MESSAGE_MAX {
        return Err(malformed(format!("a part has {} bytes, more than {MESSAGE_MAX}", bytes.len())));
    }
    M::decode(bytes).map_err(malformed)
}

/// Adds an item unless the list has `most` already.
fn push<T>(list: &mut Vec<T>, item: T, what: &'static str, most: usize) -> Result<(), DecodeError> {
    if list.len() >= most {
        return Err(DecodeError::TooMany { what, most });
    }
    list.push(item);
    Ok(())
}

/// What a field holds: of the kinds that exist, profile.proto has these two.
enum Content<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> Result<u64, DecodeError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or_else(|| malformed("it ends within a number"))?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(malformed("a number has more than ten bytes"))
}

fn split<'a>(bytes: &mut &'a [u8], count: u64) -> Result<&'a [u8], DecodeError> {
    let whole = usize::try_from(count).ok().and_then(|count| bytes.split_at_checked(count));
    let (part, rest) = whole.ok_or_else(|| malformed(format!("a part of {count} bytes has {} only", bytes.len())))?;
    *bytes = rest;
    Ok(part)
}

/// The next field: its number and what it holds, which is `None` for a kind that no field of a
/// profile has.
fn field<'a>(bytes: &mut &'a [u8]) -> Result<(u64, Option<Content<'a>>), DecodeError> {
    let key = varint(bytes)?;
    let content = match key & 7 {
        0 => Some(Content::Number(varint(bytes)?)),
        1 => split(bytes, 8).map(|_| None)?,
        2 => {
            let count = varint(bytes)?;
            Some(Content::Bytes(split(bytes, count)?))
        }
        5 => split(bytes, 4).map(|_| None)?,
        kind => return Err(malformed(format!("a field has the unknown wire type {kind}"))),
    };
    Ok((key >> 3, content))
}

/// A profile in pieces, most of which are not decoded yet.
#[derive(Default)]
struct Parts<'a> {
    types: Vec<message::ValueType>,
    samples: Vec<&'a [u8]>,
    mappings: Vec<message::Mapping>,
    locations: Vec<&'a [u8]>,
    functions: Vec<&'a [u8]>,
    /// Bytes that are not UTF-8 are replaced, since programs in other languages have such names.
    strings: Vec<Cow<'a, str>>,
    time_nanos: i64,
    duration_nanos: i64,
    period_type: Option<message::ValueType>,
    period: i64,
    comments: Vec<i64>,
    default_type: i64,
}

impl<'a> Parts<'a> {
    fn of(mut bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut parts = Self::default();
        while !bytes.is_empty() {
            match field(&mut bytes)? {
                (1, Some(Content::Bytes(of))) => push(&mut parts.types, message(of)?, "types", TYPES_MAX)?,
                (2, Some(Content::Bytes(sample))) => push(&mut parts.samples, sample, "samples", SAMPLES_MAX)?,
                (3, Some(Content::Bytes(mapping))) => {
                    push(&mut parts.mappings, message(mapping)?, "mappings", MAPPINGS_MAX)?;
                }
                (4, Some(Content::Bytes(location))) => {
                    push(&mut parts.locations, location, "locations", LOCATIONS_MAX)?;
                }
                (5, Some(Content::Bytes(function))) => {
                    push(&mut parts.functions, function, "functions", LOCATIONS_MAX)?;
                }
                (6, Some(Content::Bytes(text))) if text.len() > STRING_MAX => {
                    return Err(DecodeError::TooMany { what: "bytes in a string", most: STRING_MAX });
                }
                (6, Some(Content::Bytes(text))) => {
                    push(&mut parts.strings, String::from_utf8_lossy(text), "strings", STRINGS_MAX)?;
                }
                (9, Some(Content::Number(nanos))) => parts.time_nanos = nanos.cast_signed(),
                (10, Some(Content::Number(nanos))) => parts.duration_nanos = nanos.cast_signed(),
                (11, Some(Content::Bytes(of))) => parts.period_type = Some(message(of)?),
                (12, Some(Content::Number(period))) => parts.period = period.cast_signed(),
                (13, Some(Content::Number(comment))) => parts.comment(comment),
                (13, Some(Content::Bytes(mut packed))) => {
                    while !packed.is_empty() {
                        let comment = varint(&mut packed)?;
                        parts.comment(comment);
                    }
                }
                (14, Some(Content::Number(string))) => parts.default_type = string.cast_signed(),
                // Fields of later versions, and drop_frames and keep_frames, which the writer has
                // applied already.
                (15.. | 7..=8, _) => {}
                (number, _) => return Err(malformed(format!("field {number} is of another kind"))),
            }
        }
        Ok(parts)
    }

    /// Notes a comment; those beyond the bound are not needed.
    fn comment(&mut self, string: u64) {
        if self.comments.len() < COMMENTS_MAX {
            self.comments.push(string.cast_signed());
        }
    }

    fn string(&self, id: i64) -> Result<Cow<'_, str>, DecodeError> {
        let found = usize::try_from(id).ok().and_then(|id| self.strings.get(id));
        // A profile without strings may have no table.
        let found = found.map(|text| &**text).or((id == 0).then_some(""));
        found.map(Cow::Borrowed).ok_or(DecodeError::Missing { what: "string", id: id.cast_unsigned() })
    }

    fn value_type(&self, of: &message::ValueType) -> Result<ValueType, DecodeError> {
        let (name, unit) = (self.string(of.ty)?.into_owned(), self.string(of.unit)?.into_owned());
        Ok(ValueType { name: name.into(), unit: unit.into() })
    }

    fn capture(self) -> Result<Capture, DecodeError> {
        let all: Vec<ValueType> = self.types.iter().map(|of| self.value_type(of)).collect::<Result<_, _>>()?;
        if all.is_empty() {
            return Err(DecodeError::NoTypes);
        }
        let wanted = self.string(self.default_type)?;
        let default = all.iter().position(|of| of.name == wanted).unwrap_or(all.len() - 1);
        let mut kept: Vec<usize> = (0..all.len().min(VALUES_MAX)).collect();
        if default >= VALUES_MAX {
            kept[VALUES_MAX - 1] = default;
        }
        let default_type = default.min(VALUES_MAX - 1);

        let comments: Vec<Cow<'_, str>> = self.comments.iter().map(|&id| self.string(id)).collect::<Result<_, _>>()?;
        let note = comments.iter().find_map(|comment| comment.strip_prefix(NOTE)).map(Note::of);
        let types: Vec<ValueType> = kept.iter().map(|&index| all[index].clone()).collect();
        let event = note.as_ref().map_or_else(|| event_of(&types[default_type]), |note| note.event);
        let began_unix_ms = u64::try_from(self.time_nanos / 1_000_000).unwrap_or(0);
        let mut capture = Capture::new(event, began_unix_ms, types, default_type);
        capture.duration_ns = u64::try_from(self.duration_nanos).unwrap_or(0);
        capture.period =
            self.period_type.as_ref().map(|of| self.value_type(of)).transpose()?.map(|of| (of, self.period));
        if let Some(engine) = comments.iter().find(|comment| !comment.starts_with(NOTE)) {
            capture.engine = engine.to_string();
        }

        let stacks = self.frames(&mut capture, note.is_some())?;
        self.samples(&mut capture, &stacks, &kept, note.is_some())?;
        match note {
            Some(note) => {
                capture.taken = note.samples;
                (capture.lost, capture.throttled, capture.dropped) = (note.lost, note.throttled, note.dropped);
                capture.accounted_ns = note.accounted_ns;
            }
            None => {
                let counts = capture.types.iter().position(|of| of.name == "samples" && of.unit == "count");
                capture.taken = counts.map_or(0, |value| u64::try_from(capture.total(value)).unwrap_or(0));
            }
        }
        Ok(capture)
    }

    /// The frames of each location, the innermost first.
    fn frames(&self, capture: &mut Capture, ours: bool) -> Result<HashMap<u64, Box<[FrameId]>>, DecodeError> {
        let mut functions = HashMap::with_capacity(self.functions.len());
        for &bytes in &self.functions {
            let function: message::Function = message(bytes)?;
            functions.insert(function.id, function);
        }
        let mut mappings = HashMap::with_capacity(self.mappings.len());
        for mapping in &self.mappings {
            let file = self.string(mapping.filename)?;
            // Files that perf itself writes say `[kernel.kallsyms]_stext`.
            let kernel = file.starts_with("[kernel");
            if !kernel && mapping.memory_start < mapping.memory_limit {
                capture.mappings.push(Mapping {
                    start: mapping.memory_start,
                    end: mapping.memory_limit,
                    offset: mapping.file_offset,
                    file: file.as_ref().into(),
                    build_id: self.string(mapping.build_id)?.into(),
                });
            }
            mappings.insert(mapping.id, (file, kernel));
        }

        let mut names_bytes = 0;
        let mut stacks = HashMap::with_capacity(self.locations.len());
        for &bytes in &self.locations {
            let location: message::Location = message(bytes)?;
            let mapping = match location.mapping_id {
                0 => None,
                id => Some(mappings.get(&id).ok_or(DecodeError::Missing { what: "mapping", id })?),
            };
            let place = match mapping {
                Some((_, true)) => FramePlace::Kernel,
                // In other programs' files this is a function whose address they do not know.
                None if ours && location.address == 0 => FramePlace::Label,
                _ => FramePlace::User,
            };
            let mut frames = Vec::with_capacity(location.line.len().clamp(1, DEPTH_MAX));
            for (index, line) in location.line.iter().take(DEPTH_MAX).enumerate() {
                let id = line.function_id;
                let function = functions.get(&id).ok_or(DecodeError::Missing { what: "function", id })?;
                let (name, file) = (self.string(function.name)?, self.string(function.filename)?);
                let name = if name.is_empty() { self.string(function.system_name)? } else { name };
                let place = if index + 1 < location.line.len() { FramePlace::Inlined } else { place };
                names_bytes += name.len() + file.len();
                if names_bytes > NAMES_MAX {
                    return Err(DecodeError::TooMany { what: "bytes of names", most: NAMES_MAX });
                }
                frames.push(Frame {
                    function: name.as_ref().into(),
                    file: (!file.is_empty()).then(|| file.as_ref().into()),
                    line: u32::try_from(line.line).unwrap_or(0),
                    place,
                    address: location.address,
                });
            }
            if frames.is_empty() {
                let file = mapping.map_or("", |(file, _)| file.rsplit('/').next().unwrap_or_default());
                let function = match file {
                    "" => format!("{:#x}", location.address),
                    file if file.starts_with('[') => file.to_owned(),
                    file => format!("[{file}]"),
                };
                frames.push(Frame { function: function.into(), file: None, line: 0, place, address: location.address });
            }
            let ids: Option<Box<[FrameId]>> = frames.into_iter().map(|frame| capture.frame(frame)).collect();
            stacks.insert(location.id, ids.ok_or(DecodeError::TooMany { what: "frames", most: FRAMES_MAX })?);
        }
        Ok(stacks)
    }

    fn samples(
        &self,
        capture: &mut Capture,
        stacks: &HashMap<u64, Box<[FrameId]>>,
        kept: &[usize],
        ours: bool,
    ) -> Result<(), DecodeError> {
        let mut threads: HashMap<Cow<'_, str>, ThreadIndex> = HashMap::new();
        let (mut sums, mut stack) = ([0u64; VALUES_MAX], Vec::with_capacity(DEPTH_MAX));
        let unknown = ThreadIndex(u16::MAX);
        for &bytes in &self.samples {
            let sample: message::Sample = message(bytes)?;
            if sample.value.len() != self.types.len() {
                return Err(DecodeError::Values { found: sample.value.len(), types: self.types.len() });
            }
            let mut values = [0; 4];
            for ((value, sum), &index) in values.iter_mut().zip(&mut sums).zip(kept) {
                *value = sample.value[index];
                *sum = sum.saturating_add(value.unsigned_abs());
            }
            stack.clear();
            for &id in &sample.location_id {
                let frames = stacks.get(&id).ok_or(DecodeError::Missing { what: "location", id })?;
                stack.extend(frames.iter().take(DEPTH_MAX - stack.len()));
            }
            let too_many = DecodeError::TooMany { what: "different stacks", most: STACKS_MAX };
            let stack = capture.stack(&stack).ok_or(too_many)?;
            let thread = match self.thread(&sample)? {
                None => unknown,
                Some(name) => match threads.get(&name) {
                    Some(&index) => index,
                    None if threads.len() >= THREADS_MAX => unknown,
                    None => {
                        let index = ThreadIndex(threads.len() as u16);
                        capture.threads.push(Thread { tid: 0, name: name.as_ref().into() });
                        threads.insert(name, index);
                        index
                    }
                },
            };
            capture.push(Sample { at_ns: 0, thread, cpu: u16::MAX, stack, values });
        }
        if let Some(index) = sums.iter().position(|&sum| sum > SUM_MAX) {
            return Err(DecodeError::Sum { name: capture.types[index].name.to_string() });
        }
        // Go does not tell threads apart, so it would mislead to call one of them unknown.
        if threads.is_empty() && !ours && !capture.samples.is_empty() {
            capture.threads.push(Thread { tid: 0, name: "all threads".into() });
            capture.samples.iter_mut().for_each(|sample| sample.thread = ThreadIndex(0));
        }
        Ok(())
    }

    fn thread(&self, sample: &message::Sample) -> Result<Option<Cow<'_, str>>, DecodeError> {
        for label in &sample.label {
            if label.str != 0 && ["thread", "thread_name", "thread name"].contains(&&*self.string(label.key)?) {
                return self.string(label.str).map(Some);
            }
        }
        Ok(None)
    }
}

/// The event that a type of values belongs to if the file does not say. Go's mutex and block
/// profiles have the same types.
fn event_of(shown: &ValueType) -> Event {
    match &*shown.name {
        "cpu" => Event::Cpu,
        "alloc_space" | "alloc_objects" => Event::Allocs,
        "inuse_space" | "inuse_objects" => Event::Heap,
        "contentions" | "delay" => Event::Block,
        _ => Event::Other,
    }
}

/// What a comment of ours says, taken from its words.
struct Note {
    event: Event,
    samples: u64,
    lost: u64,
    throttled: u64,
    dropped: u64,
    accounted_ns: u64,
}

impl Note {
    /// A number that is missing or malformed is 0.
    fn of(text: &str) -> Self {
        let word = |name: &str| text.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let number = |name: &str| word(name).and_then(|text| text.parse().ok()).unwrap_or(0);
        Self {
            event: word("event").and_then(Event::from_name).unwrap_or(Event::Other),
            samples: number("samples"),
            lost: number("lost"),
            throttled: number("throttled"),
            dropped: number("dropped"),
            accounted_ns: number("accounted_ns"),
        }
    }
}

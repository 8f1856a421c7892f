//! Frames of the replica protocol: bytes to requests and replies, and back.
//!
//! ```text
//!  0 u32 checksum: CRC-32C of everything behind it        Put         clock u64, expires u64, key, value
//!  4 u32 length of the body, which follows the header     Delete      clock u64, key
//!  8 u64 number of the request                            Read        key                   flag 1: with the value
//! 16 u64 hash of the key; 0 in requests                   Ping, Pong  wall clock u64, clock u64
//! 24 u8  kind                                             Superseded  clock u64
//! 25 u8  flags                                            Refused     -                     flags: the reason
//! 26 u16 length of the key                                Found       clock u64, expires u64, value length u32,
//! 28 u16 node of the version                                          zero u32, value       flag 1: value follows
//! 30 u16 zero                                             Absent      clock u64 or nothing  flag 1: a tombstone's
//! ```
//!
//! Little-endian. A field that a kind does not have is zero, so that a frame has one encoding only.
//!
//! Bounds: a key has 1 to [`KEY_MAX`] bytes, a value at most [`Limits::value_max`]; lengths are compared with these
//! before anything else is looked at, then comes the checksum. A frame costs no allocation in either direction.
//!
//! Deliberately absent: I/O, compression, the meaning of versions. Tested below and by the `replica_frames` fuzz
//! target.

/// Bytes of the header.
pub const HEADER: usize = 32;
/// Bytes of the largest key.
pub const KEY_MAX: usize = 4096;

/// What lies in a body before key and value, at most.
const FIXED_MAX: usize = 24;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const READ: u8 = 3;
const PING: u8 = 4;
const APPLIED: u8 = 129;
const SUPERSEDED: u8 = 130;
const REFUSED: u8 = 131;
const FOUND: u8 = 132;
const ABSENT: u8 = 133;
const DAMAGED: u8 = 134;
const PONG: u8 = 135;

/// A version on the wire: a hybrid logical clock, and the node as tie-break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// The clock of the node that took the write.
    pub clock: u64,
    /// That node.
    pub node: u16,
}

/// What one node asks another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// Store a value, unless there is something newer.
    Put {
        /// 1 to [`KEY_MAX`] bytes.
        key: &'a [u8],
        /// At most [`Limits::value_max`] bytes.
        value: &'a [u8],
        /// The version of the write.
        version: Stamp,
        /// Milliseconds since the Unix epoch; 0: never.
        expires_at_ms: u64,
    },
    /// Store a tombstone, unless there is something newer.
    Delete {
        /// 1 to [`KEY_MAX`] bytes.
        key: &'a [u8],
        /// The version of the deletion.
        version: Stamp,
    },
    /// What is stored?
    Read {
        /// 1 to [`KEY_MAX`] bytes.
        key: &'a [u8],
        /// With the value; `false`: its version only.
        value: bool,
    },
    /// Is anybody there?
    Ping {
        /// The wall clock of the asker, milliseconds since the Unix epoch.
        wall_ms: u64,
        /// The hybrid logical clock of the asker.
        clock: u64,
    },
}

/// The answer to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply<'a> {
    /// The write is stored.
    Applied,
    /// Something as new or newer was there: this version.
    Superseded(Stamp),
    /// Nothing was done.
    Refused(Refused),
    /// There is a value.
    Found {
        /// Its version.
        version: Stamp,
        /// Milliseconds since the Unix epoch; 0: never.
        expires_at_ms: u64,
        /// Bytes of the value, also when it is not sent.
        value_len: u32,
        /// The value, if it was asked for.
        value: Option<&'a [u8]>,
    },
    /// There is none; with the version of the tombstone, if there is one.
    Absent(Option<Stamp>),
    /// There is something, and its checksum does not match.
    Damaged,
    /// Somebody is there.
    Pong {
        /// The wall clock of the answerer, milliseconds since the Unix epoch.
        wall_ms: u64,
        /// The hybrid logical clock of the answerer.
        clock: u64,
    },
}

/// Why nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Refused {
    /// The disk is full.
    DiskFull = 1,
    /// The disk failed.
    Failed = 2,
    /// The value is larger than the node takes.
    TooLarge = 3,
    /// The node is still starting, or already stopping.
    NotReady = 4,
}

impl Refused {
    fn from_wire(code: u8) -> Option<Self> {
        [Self::DiskFull, Self::Failed, Self::TooLarge, Self::NotReady].into_iter().find(|reason| *reason as u8 == code)
    }
}

/// What a parser accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the largest value.
    pub value_max: usize,
}

impl Limits {
    /// Bytes of the largest request with its header.
    #[must_use]
    pub fn request_max(&self) -> usize {
        HEADER + FIXED_MAX + KEY_MAX + self.value_max
    }

    /// Bytes of the largest reply with its header.
    #[must_use]
    pub fn reply_max(&self) -> usize {
        HEADER + FIXED_MAX + self.value_max
    }
}

/// What a parser found at the beginning of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<T> {
    /// A whole frame.
    Complete {
        /// What it says.
        frame: T,
        /// Bytes it takes.
        len: usize,
    },
    /// The beginning of a frame.
    Partial {
        /// Bytes there must be before it is worth looking again; more than there are, and never more than the longest
        /// frame has.
        need: usize,
    },
    /// No frame. What follows cannot be read either.
    Bad(Violation),
}

/// What is wrong with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Longer than any frame.
    #[error("a frame claims a body of {len} bytes, and the longest has {max}")]
    TooLong {
        /// What it claims.
        len: u32,
        /// The bound.
        max: usize,
    },
    /// A key longer than any.
    #[error("a frame claims a key of {0} bytes, and a key has at most {KEY_MAX}")]
    KeyTooLong(u16),
    /// Bytes were changed on their way, or this is no frame.
    #[error("the checksum of a frame does not match its bytes")]
    Checksum,
    /// A kind that is not known in this direction.
    #[error("a frame is of kind {0}, which is not one that is expected here")]
    Kind(u8),
    /// Flags which the kind does not have.
    #[error("a frame of kind {kind} has flags {flags:#x}, which are not known")]
    Flags {
        /// The kind.
        kind: u8,
        /// The flags.
        flags: u8,
    },
    /// Fields that contradict each other.
    #[error("a frame of kind {0} has fields that do not fit its length")]
    Shape(u8),
    /// A request about no key.
    #[error("a frame of kind {0} has an empty key")]
    EmptyKey(u8),
    /// A value longer than any.
    #[error("a frame has a value of {len} bytes, and a value has at most {max}")]
    ValueTooLong {
        /// What it has.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// Something where there should be nothing.
    #[error("a frame of kind {0} has something in a field that must be zero")]
    NotZero(u8),
}

/// The fields of a header that differ from kind to kind.
#[derive(Clone, Copy, Default)]
struct Fields {
    number: u64,
    key_hash: u64,
    kind: u8,
    flags: u8,
    key_len: u16,
    node: u16,
}

/// Appends a frame. `value` is covered by length and checksum; it is appended only if `copy`.
#[inline]
fn encode(out: &mut Vec<u8>, fields: Fields, fixed: &[u8], key: &[u8], value: &[u8], copy: bool) {
    let body = fixed.len() + key.len() + value.len();
    let length = u32::try_from(body).expect("a value has fewer bytes than u32 can say");
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&length.to_le_bytes());
    header[8..16].copy_from_slice(&fields.number.to_le_bytes());
    header[16..24].copy_from_slice(&fields.key_hash.to_le_bytes());
    header[24] = fields.kind;
    header[25] = fields.flags;
    header[26..28].copy_from_slice(&fields.key_len.to_le_bytes());
    header[28..30].copy_from_slice(&fields.node.to_le_bytes());
    let at = out.len();
    out.reserve(HEADER + if copy { body } else { body - value.len() });
    out.extend_from_slice(&header);
    out.extend_from_slice(fixed);
    out.extend_from_slice(key);
    let checksum = if copy {
        out.extend_from_slice(value);
        crc32c::crc32c(&out[at + 4..])
    } else {
        crc32c::crc32c_append(crc32c::crc32c(&out[at + 4..]), value)
    };
    out[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
}

#[inline]
fn key_len(key: &[u8]) -> u16 {
    assert!((1..=KEY_MAX).contains(&key.len()), "a key has 1 to {KEY_MAX} bytes, and not {}", key.len());
    key.len() as u16
}

#[inline]
fn two(first: u64, second: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&first.to_le_bytes());
    bytes[8..].copy_from_slice(&second.to_le_bytes());
    bytes
}

/// Appends a request.
///
/// # Panics
/// If the key is empty or longer than [`KEY_MAX`], or the value does not fit into a frame: the caller has checked.
#[inline]
pub fn encode_request(out: &mut Vec<u8>, number: u64, request: &Request<'_>) {
    let fields = Fields { number, ..Fields::default() };
    match *request {
        Request::Put { key, value, version, expires_at_ms } => {
            let fields = Fields { kind: PUT, key_len: key_len(key), node: version.node, ..fields };
            encode(out, fields, &two(version.clock, expires_at_ms), key, value, true);
        }
        Request::Delete { key, version } => {
            let fields = Fields { kind: DELETE, key_len: key_len(key), node: version.node, ..fields };
            encode(out, fields, &version.clock.to_le_bytes(), key, &[], true);
        }
        Request::Read { key, value } => {
            let fields = Fields { kind: READ, key_len: key_len(key), flags: u8::from(value), ..fields };
            encode(out, fields, &[], key, &[], true);
        }
        Request::Ping { wall_ms, clock } => {
            encode(out, Fields { kind: PING, ..fields }, &two(wall_ms, clock), &[], &[], true);
        }
    }
}

/// Appends a [`Request::Put`] but for the bytes of the value, which have to follow.
///
/// # Panics
/// As [`encode_request`].
pub fn encode_put_head(out: &mut Vec<u8>, number: u64, key: &[u8], value: &[u8], version: Stamp, expires_at_ms: u64) {
    let fields = Fields { number, kind: PUT, key_len: key_len(key), node: version.node, ..Fields::default() };
    encode(out, fields, &two(version.clock, expires_at_ms), key, value, false);
}

/// Appends a reply. `key_hash` is that of the request's key, 0 for [`Reply::Pong`].
///
/// # Panics
/// If a value does not fit into a frame, or is not as long as is said.
#[inline]
pub fn encode_reply(out: &mut Vec<u8>, number: u64, key_hash: u64, reply: &Reply<'_>) {
    let fields = Fields { number, key_hash, ..Fields::default() };
    match *reply {
        Reply::Applied => encode(out, Fields { kind: APPLIED, ..fields }, &[], &[], &[], true),
        Reply::Superseded(Stamp { clock, node }) => {
            encode(out, Fields { kind: SUPERSEDED, node, ..fields }, &clock.to_le_bytes(), &[], &[], true);
        }
        Reply::Refused(reason) => {
            encode(out, Fields { kind: REFUSED, flags: reason as u8, ..fields }, &[], &[], &[], true);
        }
        Reply::Found { version, expires_at_ms, value_len, value } => {
            assert!(value.is_none_or(|value| value.len() == value_len as usize), "the value is as long as is said");
            let fields = Fields { kind: FOUND, flags: u8::from(value.is_some()), node: version.node, ..fields };
            encode(out, fields, &found(version, expires_at_ms, value_len), &[], value.unwrap_or_default(), true);
        }
        Reply::Absent(None) => encode(out, Fields { kind: ABSENT, ..fields }, &[], &[], &[], true),
        Reply::Absent(Some(Stamp { clock, node })) => {
            encode(out, Fields { kind: ABSENT, flags: 1, node, ..fields }, &clock.to_le_bytes(), &[], &[], true);
        }
        Reply::Damaged => encode(out, Fields { kind: DAMAGED, ..fields }, &[], &[], &[], true),
        Reply::Pong { wall_ms, clock } => {
            encode(out, Fields { kind: PONG, ..fields }, &two(wall_ms, clock), &[], &[], true);
        }
    }
}

/// Appends a [`Reply::Found`] with a value but for the bytes of the value, which have to follow.
///
/// # Panics
/// If the value does not fit into a frame.
pub fn encode_found_head(
    out: &mut Vec<u8>,
    number: u64,
    key_hash: u64,
    version: Stamp,
    expires_at_ms: u64,
    value: &[u8],
) {
    let value_len = u32::try_from(value.len()).expect("a value has fewer bytes than u32 can say");
    let fields = Fields { number, key_hash, kind: FOUND, flags: 1, node: version.node, ..Fields::default() };
    encode(out, fields, &found(version, expires_at_ms, value_len), &[], value, false);
}

#[inline]
fn found(version: Stamp, expires_at_ms: u64, value_len: u32) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..16].copy_from_slice(&two(version.clock, expires_at_ms));
    bytes[16..20].copy_from_slice(&value_len.to_le_bytes());
    bytes
}

#[inline]
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

#[inline]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[inline]
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The frame at the beginning of `bytes`, its lengths and checksum verified.
#[inline]
fn open(bytes: &[u8], frame_max: usize) -> Parsed<(Fields, &[u8])> {
    if bytes.len() < HEADER {
        return Parsed::Partial { need: HEADER };
    }
    let (len, max) = (u32_at(bytes, 4), frame_max - HEADER);
    if len as usize > max {
        return Parsed::Bad(Violation::TooLong { len, max });
    }
    let fields = Fields {
        number: u64_at(bytes, 8),
        key_hash: u64_at(bytes, 16),
        kind: bytes[24],
        flags: bytes[25],
        key_len: u16_at(bytes, 26),
        node: u16_at(bytes, 28),
    };
    if fields.key_len as usize > KEY_MAX {
        return Parsed::Bad(Violation::KeyTooLong(fields.key_len));
    }
    let len = HEADER + len as usize;
    let Some(frame) = bytes.get(..len) else {
        return Parsed::Partial { need: len };
    };
    if crc32c::crc32c(&frame[4..]) != u32_at(frame, 0) {
        return Parsed::Bad(Violation::Checksum);
    }
    if u16_at(frame, 30) != 0 {
        return Parsed::Bad(Violation::NotZero(fields.kind));
    }
    Parsed::Complete { frame: (fields, &frame[HEADER..]), len }
}

impl Fields {
    #[inline]
    fn flags(&self, known: u8) -> Result<(), Violation> {
        if self.flags & !known == 0 { Ok(()) } else { Err(Violation::Flags { kind: self.kind, flags: self.flags }) }
    }

    #[inline]
    fn zero(&self, fields: u64) -> Result<(), Violation> {
        if fields == 0 { Ok(()) } else { Err(Violation::NotZero(self.kind)) }
    }

    /// The body is `fixed` bytes and nothing else.
    #[inline]
    fn only(&self, body: &[u8], fixed: usize) -> Result<(), Violation> {
        if body.len() == fixed { Ok(()) } else { Err(Violation::Shape(self.kind)) }
    }

    /// Splits what is behind the first `fixed` bytes of a request's body into key and value.
    #[inline]
    fn key<'a>(&self, body: &'a [u8], fixed: usize) -> Result<(&'a [u8], &'a [u8]), Violation> {
        if self.key_len == 0 {
            return Err(Violation::EmptyKey(self.kind));
        }
        body.get(fixed..)
            .and_then(|rest| rest.split_at_checked(self.key_len as usize))
            .ok_or(Violation::Shape(self.kind))
    }
}

#[inline]
fn value_within(value_len: usize, limits: Limits) -> Result<(), Violation> {
    if value_len <= limits.value_max {
        Ok(())
    } else {
        Err(Violation::ValueTooLong { len: value_len, max: limits.value_max })
    }
}

/// The request at the beginning of `bytes`, with its number.
#[inline]
#[must_use]
pub fn parse_request(bytes: &[u8], limits: Limits) -> Parsed<(u64, Request<'_>)> {
    match open(bytes, limits.request_max()) {
        Parsed::Complete { frame: (fields, body), len } => match request(&fields, body, limits) {
            Ok(request) => Parsed::Complete { frame: (fields.number, request), len },
            Err(violation) => Parsed::Bad(violation),
        },
        Parsed::Partial { need } => Parsed::Partial { need },
        Parsed::Bad(violation) => Parsed::Bad(violation),
    }
}

#[inline]
fn request<'a>(fields: &Fields, body: &'a [u8], limits: Limits) -> Result<Request<'a>, Violation> {
    if !(PUT..=PING).contains(&fields.kind) {
        return Err(Violation::Kind(fields.kind));
    }
    fields.zero(fields.key_hash)?;
    match fields.kind {
        PUT => {
            fields.flags(0)?;
            let (key, value) = fields.key(body, 16)?;
            value_within(value.len(), limits)?;
            let version = Stamp { clock: u64_at(body, 0), node: fields.node };
            Ok(Request::Put { key, value, version, expires_at_ms: u64_at(body, 8) })
        }
        DELETE => {
            fields.flags(0)?;
            let (key, rest) = fields.key(body, 8)?;
            fields.only(rest, 0)?;
            Ok(Request::Delete { key, version: Stamp { clock: u64_at(body, 0), node: fields.node } })
        }
        READ => {
            fields.flags(1)?;
            fields.zero(u64::from(fields.node))?;
            let (key, rest) = fields.key(body, 0)?;
            fields.only(rest, 0)?;
            Ok(Request::Read { key, value: fields.flags == 1 })
        }
        PING => {
            fields.flags(0)?;
            fields.zero(u64::from(fields.node) | u64::from(fields.key_len))?;
            fields.only(body, 16)?;
            Ok(Request::Ping { wall_ms: u64_at(body, 0), clock: u64_at(body, 8) })
        }
        kind => Err(Violation::Kind(kind)),
    }
}

/// The reply at the beginning of `bytes`, with its number and the hash of the key it is about.
#[inline]
#[must_use]
pub fn parse_reply(bytes: &[u8], limits: Limits) -> Parsed<(u64, u64, Reply<'_>)> {
    match open(bytes, limits.reply_max()) {
        Parsed::Complete { frame: (fields, body), len } => match reply(&fields, body, limits) {
            Ok(reply) => Parsed::Complete { frame: (fields.number, fields.key_hash, reply), len },
            Err(violation) => Parsed::Bad(violation),
        },
        Parsed::Partial { need } => Parsed::Partial { need },
        Parsed::Bad(violation) => Parsed::Bad(violation),
    }
}

#[inline]
fn reply<'a>(fields: &Fields, body: &'a [u8], limits: Limits) -> Result<Reply<'a>, Violation> {
    let &Fields { kind, flags, node, .. } = fields;
    if !(APPLIED..=PONG).contains(&kind) {
        return Err(Violation::Kind(kind));
    }
    fields.zero(u64::from(fields.key_len))?;
    let no_node = || fields.zero(u64::from(node));
    match kind {
        APPLIED | DAMAGED => {
            fields.flags(0)?;
            no_node()?;
            fields.only(body, 0)?;
            Ok(if kind == APPLIED { Reply::Applied } else { Reply::Damaged })
        }
        SUPERSEDED => {
            fields.flags(0)?;
            fields.only(body, 8)?;
            Ok(Reply::Superseded(Stamp { clock: u64_at(body, 0), node }))
        }
        REFUSED => {
            no_node()?;
            fields.only(body, 0)?;
            Refused::from_wire(flags).map(Reply::Refused).ok_or(Violation::Flags { kind, flags })
        }
        FOUND => {
            fields.flags(1)?;
            let (_, value) = body.split_at_checked(FIXED_MAX).ok_or(Violation::Shape(kind))?;
            let value_len = u32_at(body, 16);
            value_within(value_len as usize, limits)?;
            fields.zero(u64::from(u32_at(body, 20)))?;
            fields.only(value, if flags == 1 { value_len as usize } else { 0 })?;
            Ok(Reply::Found {
                version: Stamp { clock: u64_at(body, 0), node },
                expires_at_ms: u64_at(body, 8),
                value_len,
                value: (flags == 1).then_some(value),
            })
        }
        ABSENT => {
            fields.flags(1)?;
            if flags == 1 {
                fields.only(body, 8)?;
                return Ok(Reply::Absent(Some(Stamp { clock: u64_at(body, 0), node })));
            }
            no_node()?;
            fields.only(body, 0)?;
            Ok(Reply::Absent(None))
        }
        PONG => {
            fields.flags(0)?;
            no_node()?;
            fields.only(body, 16)?;
            Ok(Reply::Pong { wall_ms: u64_at(body, 0), clock: u64_at(body, 8) })
        }
        kind => Err(Violation::Kind(kind)),
    }
}

/// Reads any bytes in both directions, checks what must hold of the outcome, and writes what was read again, for
/// fuzzing. Returns how many frames were whole.
///
/// # Panics
/// If something that must hold does not.
#[doc(hidden)]
pub fn fuzz_frames(bytes: &[u8], limits: Limits) -> usize {
    let (mut whole, mut again) = (0, Vec::new());
    let mut rest = bytes;
    while let Some(len) = fuzz_one(rest, parse_request(rest, limits), limits.request_max(), |(number, request)| {
        again.clear();
        encode_request(&mut again, number, &request);
        assert_eq!(again, rest[..again.len()], "a request has one encoding");
        again.len()
    }) {
        rest = &rest[len..];
        whole += 1;
    }
    let mut rest = bytes;
    while let Some(len) = fuzz_one(rest, parse_reply(rest, limits), limits.reply_max(), |(number, key_hash, reply)| {
        again.clear();
        encode_reply(&mut again, number, key_hash, &reply);
        assert_eq!(again, rest[..again.len()], "a reply has one encoding");
        again.len()
    }) {
        rest = &rest[len..];
        whole += 1;
    }
    whole
}

fn fuzz_one<T>(bytes: &[u8], parsed: Parsed<T>, max: usize, write: impl FnOnce(T) -> usize) -> Option<usize> {
    match parsed {
        Parsed::Complete { frame, len } => {
            assert!(len >= HEADER && len <= bytes.len() && len <= max);
            assert_eq!(write(frame), len);
            Some(len)
        }
        Parsed::Partial { need } => {
            assert!(need > bytes.len() && need <= max, "{need}");
            None
        }
        Parsed::Bad(_) => None,
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;

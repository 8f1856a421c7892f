//! Encodes requests and replies as bytes.

use koltso_model::{ATTRIBUTES_MAX, Found, KEY_MAX, KeyHash, Operation, Outcome, Record, Version, Want};

use super::{
    ABSENT, APPLIED, DAMAGED, EXPIRY_BITS, FOUND, HEADER, PING, PONG, READ, REFUSED, Reply, Request, SUPERSEDED, WRITE,
    refusal_code,
};

/// The fields of a header that differ from kind to kind.
#[derive(Clone, Copy, Default)]
struct Fields {
    number: u64,
    epoch: u64,
    key_hash: u64,
    kind: u8,
    marks: u8,
    key_len: u16,
    node: u16,
    flags: u16,
}

/// Appends a frame whose body is `fixed`, then `parts`. `value` is the last part: length and
/// checksum cover it, but it is appended only if `copy` is set.
#[inline]
fn encode(out: &mut Vec<u8>, fields: Fields, fixed: &[u8], parts: [&[u8]; 2], value: &[u8], copy: bool) {
    let [key, attributes] = parts;
    let body = fixed.len() + key.len() + attributes.len() + value.len();
    let length = u32::try_from(body).expect("a value has fewer bytes than u32 can say");
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&length.to_le_bytes());
    header[8..16].copy_from_slice(&fields.number.to_le_bytes());
    header[16..24].copy_from_slice(&fields.key_hash.to_le_bytes());
    header[24..32].copy_from_slice(&fields.epoch.to_le_bytes());
    header[32] = fields.kind;
    header[33] = fields.marks;
    header[34..36].copy_from_slice(&fields.key_len.to_le_bytes());
    header[36..38].copy_from_slice(&fields.node.to_le_bytes());
    header[38..40].copy_from_slice(&fields.flags.to_le_bytes());
    let at = out.len();
    out.reserve(HEADER + if copy { body } else { body - value.len() });
    out.extend_from_slice(&header);
    out.extend_from_slice(fixed);
    out.extend_from_slice(key);
    if !attributes.is_empty() {
        out.extend_from_slice(attributes);
    }
    let checksum = if copy {
        out.extend_from_slice(value);
        crc32c::crc32c(&out[at + 4..])
    } else {
        crc32c::crc32c_append(crc32c::crc32c(&out[at + 4..]), value)
    };
    out[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
}

/// Completes a frame whose body is all that follows the space for its header at `at`.
pub(super) fn finish(out: &mut [u8], at: usize, (number, epoch): (u64, u64), kind: u8, marks: u8) {
    let frame = &mut out[at..];
    let length = u32::try_from(frame.len() - HEADER).expect("a body has fewer bytes than u32 can say");
    frame[4..8].copy_from_slice(&length.to_le_bytes());
    frame[8..16].copy_from_slice(&number.to_le_bytes());
    frame[24..32].copy_from_slice(&epoch.to_le_bytes());
    (frame[32], frame[33]) = (kind, marks);
    let checksum = crc32c::crc32c(&frame[4..]);
    frame[..4].copy_from_slice(&checksum.to_le_bytes());
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

/// The clock, the expiry and the length of the attributes.
#[inline]
fn dated(version: Version, expires_at_ms: u64, attributes: &[u8]) -> [u8; 16] {
    assert!(expires_at_ms >> EXPIRY_BITS == 0, "an expiry has {EXPIRY_BITS} bits, and {expires_at_ms} has more");
    assert!(attributes.len() <= ATTRIBUTES_MAX, "attributes have at most {ATTRIBUTES_MAX} bytes");
    two(version.clock, expires_at_ms | (attributes.len() as u64) << EXPIRY_BITS)
}

/// Appends a request.
///
/// # Panics
/// If a part of it is longer than a frame has room for, or the key is empty: callers must have
/// checked that.
#[inline]
pub fn encode_request(out: &mut Vec<u8>, number: u64, epoch: u64, request: &Request<'_>) {
    let fields = Fields { number, epoch, ..Fields::default() };
    match request {
        Request::Execute(Operation::Write(record)) => write(out, fields, record, true),
        Request::Execute(Operation::Read { key, want }) => {
            let key = key.slice();
            let marks = u8::from(*want == Want::Value);
            encode(out, Fields { kind: READ, key_len: key_len(key), marks, ..fields }, &[], [key, &[]], &[], true);
        }
        Request::Ping { wall_ms, clock } => {
            encode(out, Fields { kind: PING, ..fields }, &two(*wall_ms, *clock), [&[], &[]], &[], true);
        }
    }
}

/// Appends an [`Operation::Write`] without the bytes of the value, which must follow.
///
/// # Panics
/// In the same cases as [`encode_request`].
pub fn encode_write_head(out: &mut Vec<u8>, number: u64, epoch: u64, record: &Record<&[u8]>) {
    write(out, Fields { number, epoch, ..Fields::default() }, record, false);
}

#[inline]
fn write(out: &mut Vec<u8>, fields: Fields, record: &Record<&[u8]>, copy: bool) {
    let key = record.key.slice();
    let (node, flags) = (record.version.node, record.flags.bits());
    let fields = Fields { kind: WRITE, key_len: key_len(key), node, flags, ..fields };
    let dated = dated(record.version, record.expires_at_ms, record.attributes);
    encode(out, fields, &dated, [key, record.attributes], record.value, copy);
}

/// Appends a reply. `key_hash` is that of the request's key; 0 for [`Reply::Pong`].
///
/// # Panics
/// If a part of it does not fit into a frame, a value is not as long as `value_len` says, or a
/// refusal has a reason that no node gives to another.
#[inline]
pub fn encode_reply(out: &mut Vec<u8>, number: u64, epoch: u64, key_hash: KeyHash, reply: &Reply<'_>) {
    let fields = Fields { number, epoch, key_hash: key_hash.0, ..Fields::default() };
    let plain = |out: &mut Vec<u8>, fields, fixed: &[u8]| encode(out, fields, fixed, [&[], &[]], &[], true);
    match reply {
        Reply::Outcome(Outcome::Applied) => plain(out, Fields { kind: APPLIED, ..fields }, &[]),
        Reply::Outcome(Outcome::Superseded(Version { clock, node })) => {
            plain(out, Fields { kind: SUPERSEDED, node: *node, ..fields }, &clock.to_le_bytes());
        }
        Reply::Outcome(Outcome::Refused(why)) => {
            let marks = refusal_code(*why).expect("only the node that asks has no room for a value");
            plain(out, Fields { kind: REFUSED, marks, ..fields }, &[]);
        }
        Reply::Outcome(Outcome::Found(found)) => {
            let value = found.value.unwrap_or_default();
            assert!(
                found.value.is_none() || value.len() == found.value_len as usize,
                "the value is as long as is said"
            );
            write_found(out, fields, found, u8::from(found.value.is_some()), value, true);
        }
        Reply::Outcome(Outcome::Absent(None)) => plain(out, Fields { kind: ABSENT, ..fields }, &[]),
        Reply::Outcome(Outcome::Absent(Some(tombstone))) => {
            let (Version { clock, node }, flags) = (tombstone.version, tombstone.flags.bits());
            plain(out, Fields { kind: ABSENT, marks: 1, node, flags, ..fields }, &clock.to_le_bytes());
        }
        Reply::Outcome(Outcome::Damaged) => plain(out, Fields { kind: DAMAGED, ..fields }, &[]),
        Reply::Pong { wall_ms, clock } => plain(out, Fields { kind: PONG, ..fields }, &two(*wall_ms, *clock)),
    }
}

/// Appends an [`Outcome::Found`] with `value`, without the bytes of the value, which must follow.
/// What `found` says about a value and its length is ignored.
///
/// # Panics
/// If a part of it does not fit into a frame.
pub fn encode_found_head<B: AsRef<[u8]>>(
    out: &mut Vec<u8>,
    number: u64,
    epoch: u64,
    key_hash: KeyHash,
    found: &Found<B>,
    value: &[u8],
) {
    let value_len = u32::try_from(value.len()).expect("a value has fewer bytes than u32 can say");
    let fields = Fields { number, epoch, key_hash: key_hash.0, ..Fields::default() };
    let found = Found {
        version: found.version,
        expires_at_ms: found.expires_at_ms,
        flags: found.flags,
        attributes: found.attributes.as_ref(),
        value_len,
        value: None,
    };
    write_found(out, fields, &found, 1, value, false);
}

#[inline]
fn write_found(out: &mut Vec<u8>, fields: Fields, found: &Found<&[u8]>, marks: u8, value: &[u8], copy: bool) {
    let mut fixed = [0; 20];
    fixed[..16].copy_from_slice(&dated(found.version, found.expires_at_ms, found.attributes));
    fixed[16..].copy_from_slice(&found.value_len.to_le_bytes());
    let fields = Fields { kind: FOUND, marks, node: found.version.node, flags: found.flags.bits(), ..fields };
    encode(out, fields, &fixed, [&[], found.attributes], value, copy);
}

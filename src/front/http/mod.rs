//! The HTTP API on a data core: what a request asks for, done in the engine or given to the core's coordinator, without
//! leaving the core.
//!
//! What this node can answer alone (it is a replica, and one answer or one copy is enough) it does from the socket to the log
//! and back; everything else in a cluster goes through `member::Core`. Owner: one core. Nothing here blocks but the stripe locks of the index and, where the provisioning thread was
//! outrun, an allocation. Whatever belongs to the control plane is handed over with its socket.
//! Tested through real sockets in `tests/http_contract.rs`.

pub mod range;

use std::borrow::Cow;
use std::cell::OnceCell;
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use koltso_cluster::message::{Record, Want};
use koltso_net::http::{Head, Method, Reply, query};
use koltso_net::server::{Admit, Answered, Event, Outcome, Service};
use koltso_storage::{KEY_MAX, Lookup, Unverified, Value, Version, WriteError};

use crate::admin::control::Handover;
use crate::admin::metrics::{CoreMetrics, Operation, tag};
use crate::front::http::range::RangeSource;
use crate::member::clock::now_ms;
use crate::member::{self, Pending, Submitted, replicas_line};
use crate::node::Node;
use crate::node::commit;
use crate::node::replica::{Engine, Written};
use crate::node::stalls::Turn;

/// Expiry is 48 bits of milliseconds in the log.
const TTL_MAX: u64 = (1 << 47) - 1;

/// The service of one core.
pub struct Api {
    node: Arc<Node>,
    metrics: Arc<CoreMetrics>,
    /// Which of the node's writers is this core's.
    core: usize,
    /// Unless nobody looks for stalls.
    turn: Option<Rc<Turn>>,
    local: OnceCell<Local>,
}

/// What the core has once the engine is open.
struct Local {
    engine: Rc<Engine>,
    /// In a cluster of more than one node.
    cluster: Option<Rc<member::Core>>,
    /// This node's number in versions.
    number: u16,
}

/// A request that cannot be served, as its answer.
struct Refusal {
    status: u16,
    sentence: Cow<'static, str>,
}

fn bad(sentence: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal { status: 400, sentence: sentence.into() }
}

/// What a request on `/v0/entity` names.
struct Target<'a> {
    key: Cow<'a, [u8]>,
    /// Replicas that must answer, of those that are asked.
    ack: u8,
    from: u8,
    ttl_ms: Option<u64>,
}

fn once<'a>(slot: &mut Option<&'a str>, name: &str, value: &'a str) -> Result<(), Refusal> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(bad(format!("The parameter {name} is given more than once."))),
    }
}

fn decoded<'a>(name: &str, value: &'a str) -> Result<Cow<'a, [u8]>, Refusal> {
    query::decode(value).map_err(|e| bad(format!("The parameter {name} is not percent-encoded: {e}.")))
}

fn number(name: &str, text: &str, least: u64, most: u64) -> Result<u64, Refusal> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u64>() {
        Ok(number) if digits && (least..=most).contains(&number) => Ok(number),
        _ => Err(bad(format!("The parameter {name} is a whole number from {least} to {most}, not `{text}`."))),
    }
}

fn key_of<'a>(name: &str, value: Option<&'a str>) -> Result<Cow<'a, [u8]>, Refusal> {
    let key = decoded(name, value.ok_or_else(|| bad(format!("The parameter {name} is missing.")))?)?;
    if key.is_empty() {
        return Err(bad(format!("The parameter {name} is empty, and a key has 1 to {KEY_MAX} bytes.")));
    }
    if key.len() > KEY_MAX {
        return Err(bad(format!("The {name} has {} bytes, and a key has 1 to {KEY_MAX}.", key.len())));
    }
    Ok(key)
}

fn target<'a>(head: &Head<'a>, nodes: u64) -> Result<Target<'a>, Refusal> {
    let (mut id, mut ack, mut from, mut ttl) = (None, None, None, None);
    for (name, value) in query::pairs(head.query) {
        match name {
            "id" => once(&mut id, name, value)?,
            "ack" => once(&mut ack, name, value)?,
            "from" => once(&mut from, name, value)?,
            "ttl" => once(&mut ttl, name, value)?,
            _ => {}
        }
    }
    let key = key_of("id", id)?;
    let from = from.map_or(Ok(nodes), |text| number("from", text, 1, nodes))?;
    let ack = ack.map_or(Ok(from / 2 + 1), |text| number("ack", text, 1, from))?;
    let ttl = ttl.filter(|_| head.method == Method::Put);
    let ttl_ms = ttl.map(|text| number("ttl", text, 1, TTL_MAX)).transpose()?;
    // There are at most 64 nodes.
    Ok(Target { key, ack: ack as u8, from: from as u8, ttl_ms })
}

/// The strong tag of a version, with its quotes.
pub fn etag(version: Version) -> [u8; 23] {
    let mut tag = *b"\"0000000000000000-0000\"";
    let hex = |slot: &mut [u8], mut number: u64| {
        for digit in slot.iter_mut().rev() {
            *digit = b"0123456789abcdef"[(number & 15) as usize];
            number >>= 4;
        }
    };
    hex(&mut tag[1..17], version.clock);
    hex(&mut tag[18..22], version.node.into());
    tag
}

/// Whether `If-None-Match` names the tag. Weak comparison, RFC 9110 section 13.1.2.
pub fn matches(if_none_match: Option<&[u8]>, etag: &[u8]) -> bool {
    let Some(list) = if_none_match else {
        return false;
    };
    list.split(|&b| b == b',').map(<[u8]>::trim_ascii).any(|tag| {
        let tag = tag.strip_prefix(b"W/").unwrap_or(tag);
        tag == b"*" || tag == etag
    })
}

fn operation(method: Method) -> Operation {
    match method {
        Method::Get => Operation::Get,
        Method::Head => Operation::Head,
        Method::Put => Operation::Put,
        Method::Delete => Operation::Delete,
        Method::Post | Method::Other => Operation::Other,
    }
}

/// Where a path leads.
enum Route {
    Entity,
    Entities,
    Health,
    Control,
    Nowhere,
}

fn route(path: &str) -> Route {
    match path {
        "/v0/entity" => Route::Entity,
        "/v0/entities" => Route::Entities,
        "/health" => Route::Health,
        "/status" | "/metrics" => Route::Control,
        path if path.starts_with("/debug/") => Route::Control,
        _ => Route::Nowhere,
    }
}

impl Api {
    /// The service of core number `core`.
    pub fn new(node: Arc<Node>, core: usize, turn: Option<Rc<Turn>>) -> Self {
        let metrics = node.metrics[core].clone();
        Self { node, metrics, core, turn, local: OnceCell::new() }
    }

    /// Ends the core's part in the cluster and lets go of the writer, so that the store can be closed. No request comes any
    /// more.
    pub async fn close(&self) {
        if let Some(local) = self.local.get() {
            if let Some(cluster) = &local.cluster {
                cluster.close().await;
            }
            local.engine.close();
        }
    }

    /// Whether the engine is open, and the core serves peers, too. The first call after the opening sees to that.
    pub fn is_open(&self) -> bool {
        self.local().is_some()
    }

    /// The engine, once it is open. The first call after that takes the core's writer and joins the cluster.
    #[inline]
    fn local(&self) -> Option<&Local> {
        match self.local.get() {
            Some(local) => Some(local),
            None => self.join(),
        }
    }

    #[cold]
    fn join(&self) -> Option<&Local> {
        let (store, writer) = self.node.take_writer(self.core)?;
        let engine = Rc::new(Engine::new(store, writer, self.node.config.sync));
        let cluster = self.node.cluster.as_ref().map(|cluster| {
            member::Core::start(&self.node, cluster, self.core, engine.clone(), self.turn.clone())
                .expect("the replica address was bound at the start, and nobody else can listen there")
        });
        let number = self.node.cluster.as_ref().map_or(0, |cluster| cluster.number());
        self.node.core_joined();
        Some(self.local.get_or_init(|| Local { engine, cluster, number }))
    }

    fn refuse(&self, operation: Operation, refusal: &Refusal, reply: &mut Reply<'_>) -> Outcome {
        reply.tag(tag(operation, refusal.status));
        if refusal.status == 503 {
            reply.error_with(503, "Retry-After", "1", &refusal.sentence);
        } else {
            reply.error(refusal.status, &refusal.sentence);
        }
        Outcome::Done
    }

    fn nowhere(&self, head: &Head<'_>, reply: &mut Reply<'_>) -> Outcome {
        let path: String = head.path.chars().take(100).collect();
        let sentence = format!("The path {path} does not exist; keys are at /v0/entity?id=KEY.");
        self.refuse(Operation::Other, &bad(sentence), reply)
    }

    fn not_allowed(&self, head: &Head<'_>, allow: &str, reply: &mut Reply<'_>) -> Outcome {
        reply.tag(tag(Operation::Other, 405));
        let method: String = head.method_name.chars().take(32).collect();
        let sentence = format!("The path {} knows {allow}, not {method}.", head.path);
        reply.error_with(405, "Allow", allow, &sentence);
        Outcome::Done
    }

    fn health(&self, head: &Head<'_>, reply: &mut Reply<'_>) -> Outcome {
        if !matches!(head.method, Method::Get | Method::Head) {
            return self.not_allowed(head, "GET, HEAD", reply);
        }
        match self.node.unhealthy() {
            None => {
                reply.tag(tag(Operation::Other, 200));
                reply.text(200, "ok\n");
                Outcome::Done
            }
            Some(sentence) => self.refuse(Operation::Other, &Refusal { status: 503, sentence: sentence.into() }, reply),
        }
    }

    fn entity(&self, head: &Head<'_>, body: &[u8], reply: &mut Reply<'_>) -> Outcome {
        let operation = operation(head.method);
        if operation == Operation::Other {
            return self.not_allowed(head, "GET, HEAD, PUT, DELETE", reply);
        }
        let target = match target(head, self.node.nodes()) {
            Ok(target) => target,
            Err(refusal) => return self.refuse(operation, &refusal, reply),
        };
        let Some(local) = self.local() else {
            return self.refuse(operation, &recovering(), reply);
        };
        let Some(cluster) = &local.cluster else {
            return match head.method {
                Method::Put => self.write(local, operation, &target, Some(body), reply),
                Method::Delete => self.write(local, operation, &target, None, reply),
                _ => self.read(local, operation, &target.key, head, reply),
            };
        };
        let mine = cluster.is_replica(&target.key, target.from);
        match head.method {
            Method::Put | Method::Delete => {
                let value = (head.method == Method::Put).then_some(body);
                if mine && target.from == 1 {
                    reply.set_extra(replicas_line(1, 1));
                    return self.write(local, operation, &target, value, reply);
                }
                let now = now_ms();
                let version = Version::new(self.node.clock.next(now), local.number);
                let mut bytes = Vec::with_capacity(target.key.len() + body.len());
                bytes.extend_from_slice(&target.key);
                bytes.extend_from_slice(value.unwrap_or_default());
                let bytes = Bytes::from(bytes);
                let record = Record {
                    key: bytes.slice(..target.key.len()),
                    value: bytes.slice(target.key.len()..),
                    version,
                    expires_at_ms: expiry(&target, now),
                    tombstone: value.is_none(),
                };
                let submitted = cluster.write(record, (target.ack, target.from));
                self.submitted(submitted, operation, head, reply)
            }
            _ => {
                if mine && target.ack == 1 {
                    reply.set_extra(replicas_line(1, 1));
                    if let Some(outcome) = self.read_intact(local, operation, &target.key, head, reply) {
                        return outcome;
                    }
                }
                let want = if head.method == Method::Head { Want::Version } else { Want::Value };
                let key = Bytes::copy_from_slice(&target.key);
                let submitted = cluster.read(key, want, (target.ack, target.from));
                self.submitted(submitted, operation, head, reply)
            }
        }
    }

    /// The answer of the coordinator, now or later.
    fn submitted(
        &self,
        submitted: Result<Submitted, koltso_cluster::coordinator::Full>,
        operation: Operation,
        head: &Head<'_>,
        reply: &mut Reply<'_>,
    ) -> Outcome {
        let Some(cluster) = &self.node.cluster else {
            unreachable!("without a cluster nothing is submitted");
        };
        let pending = |reply: &Reply<'_>| {
            let if_none_match = head.if_none_match.map(Box::from);
            Pending { context: reply.context(), operation, if_none_match }
        };
        match submitted {
            Ok(Submitted::Answered(answer)) => {
                let (tag, value) = pending(reply).write(cluster, &answer, reply.buffer());
                reply.tag(tag);
                value.map_or(Outcome::Done, Outcome::Value)
            }
            Ok(Submitted::Waits(ticket)) => {
                let (pending, cluster) = (pending(reply), cluster.clone());
                Outcome::when(ticket, move |answer, out| {
                    let (tag, value) = pending.write(&cluster, &answer, out);
                    Answered { value, tag }
                })
            }
            Err(koltso_cluster::coordinator::Full) => {
                self.metrics.event(Event::Overloaded);
                let sentence = "Too many replicated operations are in flight on this core (--max-in-flight, \
                                --max-in-flight-bytes); try again in a second.";
                self.refuse(operation, &Refusal { status: 503, sentence: sentence.into() }, reply)
            }
        }
    }

    fn read(&self, local: &Local, operation: Operation, key: &[u8], head: &Head<'_>, reply: &mut Reply<'_>) -> Outcome {
        self.read_intact(local, operation, key, head, reply).unwrap_or_else(|| {
            reply.tag(tag(operation, 504));
            let sentence =
                "The only replica asked has a damaged record for this key, so none of the 1 needed answered.";
            reply.error(504, sentence);
            Outcome::Done
        })
    }

    /// What this node has. `None`, and nothing written, if that is a damaged record.
    #[inline]
    fn read_intact(
        &self,
        local: &Local,
        operation: Operation,
        key: &[u8],
        head: &Head<'_>,
        reply: &mut Reply<'_>,
    ) -> Option<Outcome> {
        enum Read {
            Written,
            Damaged,
            Large([u8; 23], Unverified),
        }
        let read = local.engine.store().get(key, now_ms(), |found| match found {
            Lookup::Found(version, value) => {
                let etag = etag(version);
                if matches(head.if_none_match, &etag) {
                    reply.tag(tag(operation, 304));
                    reply.not_modified(&etag);
                    return Read::Written;
                }
                match value {
                    Value::Inline(bytes) => {
                        reply.tag(tag(operation, 200));
                        reply.value(&etag, bytes);
                        Read::Written
                    }
                    Value::Large(value) => Read::Large(etag, value),
                }
            }
            Lookup::Absent(_) => {
                reply.tag(tag(operation, 404));
                reply.error(404, "There is no such key.");
                Read::Written
            }
            Lookup::Damaged => Read::Damaged,
        });
        match read {
            Read::Written => Some(Outcome::Done),
            Read::Damaged => None,
            Read::Large(etag, value) => self.large(operation, &etag, value, reply),
        }
    }

    /// A large value goes out from the mapping, after its checksum was compared outside of any lock.
    fn large(&self, operation: Operation, etag: &[u8], value: Unverified, reply: &mut Reply<'_>) -> Option<Outcome> {
        let bytes = Bytes::from_owner(value.verify()?);
        reply.tag(tag(operation, 200));
        reply.value_head(etag, bytes.len() as u64);
        Some(Outcome::Value(bytes))
    }

    fn write(
        &self,
        local: &Local,
        operation: Operation,
        target: &Target<'_>,
        value: Option<&[u8]>,
        reply: &mut Reply<'_>,
    ) -> Outcome {
        let now = now_ms();
        let expires_at_ms = expiry(target, now);
        let write = || {
            let version = Version::new(self.node.clock.next(now), local.number);
            local.engine.write(&target.key, value, version, expires_at_ms)
        };
        let written = match write() {
            // Somebody whose clock is ahead was here: this write is later, and has to be newer.
            Ok(Written::Superseded(newer)) => {
                self.node.clock.observe(newer.clock);
                write()
            }
            written => written,
        };
        if let Err(error) = written {
            return self.refuse(operation, &refusal_of(&error), reply);
        }
        let status = if value.is_some() { 201 } else { 202 };
        let tag = tag(operation, status);
        let Some(durable) = local.engine.durable() else {
            reply.tag(tag);
            reply.empty(status);
            return Outcome::Done;
        };
        let context = reply.context();
        Outcome::when(durable, move |durable, out| {
            let refusal = match durable {
                Ok(()) => {
                    context.empty(out, status);
                    return Answered { value: None, tag };
                }
                Err(commit::NotDurable) => refusal_of(&WriteError::Failed),
            };
            context.error_with(out, 503, "Retry-After", "1", &refusal.sentence);
            Answered { value: None, tag: crate::admin::metrics::tag(operation, refusal.status) }
        })
    }

    fn entities(&self, head: &Head<'_>, reply: &mut Reply<'_>) -> Outcome {
        if head.method != Method::Get {
            return self.not_allowed(head, "GET", reply);
        }
        let range = match range(head) {
            Ok(range) => range,
            Err(refusal) => return self.refuse(Operation::Range, &refusal, reply),
        };
        let Some(local) = self.local() else {
            return self.refuse(Operation::Range, &recovering(), reply);
        };
        reply.tag(tag(Operation::Range, 200));
        reply.stream_head("application/octet-stream");
        let (start, end, limit) = range;
        let deadline = self.node.config.request_timeout;
        Outcome::Stream(Box::new(RangeSource::new(local.engine.store().clone(), start, end, limit, deadline)))
    }
}

type Range = (Vec<u8>, Option<Vec<u8>>, u64);

fn range(head: &Head<'_>) -> Result<Range, Refusal> {
    let (mut start, mut end, mut limit) = (None, None, None);
    for (name, value) in query::pairs(head.query) {
        match name {
            "start" => once(&mut start, name, value)?,
            "end" => once(&mut end, name, value)?,
            "limit" => once(&mut limit, name, value)?,
            _ => {}
        }
    }
    let start = key_of("start", start)?.into_owned();
    let end = end.map(|text| decoded("end", text)).transpose()?.map(Cow::into_owned);
    let limit = limit.map_or(Ok(u64::MAX), |text| number("limit", text, 1, u64::MAX))?;
    Ok((start, end, limit))
}

/// The millisecond of the acceptance has begun already: the next one is the first that has the whole time.
fn expiry(target: &Target<'_>, now: u64) -> u64 {
    target.ttl_ms.map_or(0, |ttl| now + 1 + ttl)
}

fn recovering() -> Refusal {
    Refusal { status: 503, sentence: "The node is still recovering its data.".into() }
}

fn refusal_of(error: &WriteError) -> Refusal {
    let status = match error {
        WriteError::Key { .. } => 400,
        WriteError::Value { .. } => 413,
        WriteError::DiskFull => 507,
        WriteError::Failed => 503,
    };
    let mut sentence = error.to_string();
    sentence[..1].make_ascii_uppercase();
    sentence.push_str(match error {
        WriteError::DiskFull => ": the write was not done, and writes come back when there is room.",
        _ => ".",
    });
    Refusal { status, sentence: sentence.into() }
}

impl Service for Api {
    fn admit(&self, head: &Head<'_>, reply: &mut Reply<'_>) -> Admit {
        let outcome = match route(head.path) {
            Route::Control => return Admit::HandOff,
            Route::Nowhere => self.nowhere(head, reply),
            Route::Entity if operation(head.method) == Operation::Other => self.entity(head, &[], reply),
            Route::Entity => match target(head, self.node.nodes()) {
                Ok(_) if self.local().is_none() => self.refuse(operation(head.method), &recovering(), reply),
                Ok(_) => return Admit::Body,
                Err(refusal) => self.refuse(operation(head.method), &refusal, reply),
            },
            Route::Entities | Route::Health => return Admit::Body,
        };
        debug_assert!(matches!(outcome, Outcome::Done));
        Admit::Answered
    }

    #[inline]
    fn call(&self, head: &Head<'_>, body: &[u8], reply: &mut Reply<'_>) -> Outcome {
        match route(head.path) {
            Route::Entity => self.entity(head, body, reply),
            Route::Entities => self.entities(head, reply),
            Route::Health => self.health(head, reply),
            Route::Control => Outcome::HandOff,
            Route::Nowhere => self.nowhere(head, reply),
        }
    }

    fn is_urgent(&self, head: &Head<'_>) -> bool {
        matches!(route(head.path), Route::Control | Route::Health)
    }

    #[inline]
    fn finished(&self, tag: u16, elapsed: Duration) {
        self.metrics.finished(tag, elapsed);
    }

    #[inline]
    fn event(&self, event: Event) {
        self.metrics.event(event);
    }

    #[inline]
    fn resumed(&self, now: Instant) {
        if let Some(turn) = &self.turn {
            turn.begin(now);
        }
    }

    fn hand_off(&self, socket: TcpStream, read_so_far: Vec<u8>) {
        self.node.hand_over(Handover { socket, read_so_far });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_compared_as_the_rfc_says() {
        let tag = etag(Version::new(0x1234, 7));
        assert_eq!(&tag, b"\"0000000000001234-0007\"");
        assert!(matches(Some(b"*"), &tag));
        assert!(matches(Some(b"\"x\", W/\"0000000000001234-0007\""), &tag));
        assert!(!matches(Some(b"\"0000000000001234-0008\""), &tag));
        assert!(!matches(None, &tag));
    }
}

//! The HTTP front of a data core: routes a request, parses it, has it dispatched, and writes the
//! answer.
//!
//! - `request.rs`: what the query asks for.
//! - `answer.rs`: what an outcome is in HTTP.
//! - `range.rs`: a range as a streamed body.
//!
//! Owner: one core. Nothing here blocks but the stripe locks of the index and what invariant 7 in
//! `docs/ARCHITECTURE.md` lists. Whatever belongs to the control plane is handed
//! over with its socket. Tested through real sockets in `tests/http_contract/`.

mod answer;
mod range;
mod request;

use std::cell::OnceCell;
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use koltso_cluster::coordinator::Full;
use koltso_model::{Key, Want};
use koltso_net::http::{Head, Method, Reply};
use koltso_net::server::{Admit, Event, Outcome, Service};

use self::answer::Asked;
use self::range::RangeSource;
use self::request::{Entity, Range, Refusal, bad};
use crate::counters::{CoreMetrics, RequestKind, tag};
use crate::member;
use crate::node::dispatch::{Action, ClientRequest, Dispatch, Dispatched};
use crate::node::{Handover, Node};
use crate::replica::clock::jump_ms;
use crate::replica::{Contents, Replica};
use crate::stalls::Turn;

/// The service of one core.
pub struct Api {
    node: Arc<Node>,
    metrics: Arc<CoreMetrics>,
    /// Which of the node's writers is this core's.
    core: usize,
    /// `None` when stall detection is off (`--stall-bound 0`).
    turn: Option<Rc<Turn>>,
    /// Empty until the store is open.
    dispatch: OnceCell<Dispatch>,
}

fn kind(method: Method) -> RequestKind {
    match method {
        Method::Get => RequestKind::Get,
        Method::Head => RequestKind::Head,
        Method::Put => RequestKind::Put,
        Method::Delete => RequestKind::Delete,
        Method::Post | Method::Other => RequestKind::Other,
    }
}

/// What `/v0/entity` knows.
const ENTITY_METHODS: &str = "GET, HEAD, PUT, DELETE";

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
        Self { node, metrics, core, turn, dispatch: OnceCell::new() }
    }

    /// Ends the core's part in the cluster and lets go of the writer, so that the store can be
    /// closed. No request comes any more.
    pub async fn close(&self) {
        if let Some(dispatch) = self.dispatch.get() {
            dispatch.close().await;
        }
    }

    /// Whether the store is open, and the core serves peers, too. The first call after the opening
    /// sees to that.
    pub fn is_open(&self) -> bool {
        self.dispatch().is_some()
    }

    /// Where requests go, once the store is open. The first call after that takes the core's writer
    /// and joins the cluster.
    #[inline]
    fn dispatch(&self) -> Option<&Dispatch> {
        match self.dispatch.get() {
            Some(dispatch) => Some(dispatch),
            None => self.join(),
        }
    }

    #[cold]
    fn join(&self) -> Option<&Dispatch> {
        let (store, writer) = self.node.take_writer(self.core)?;
        let Node { config, clock, .. } = &*self.node;
        let replica = Rc::new(Replica::new(store, writer, config.sync));
        let cluster = self.node.cluster.as_ref().map(|cluster| {
            member::MemberDriver::start((config, clock), cluster, self.core, replica.clone(), self.turn.clone())
                .expect("the replica address was bound at the start, and nobody else can listen there")
        });
        self.node.core_joined();
        Some(self.dispatch.get_or_init(|| Dispatch::new(self.node.clone(), replica, cluster)))
    }

    fn refuse(&self, kind: RequestKind, refusal: &Refusal, reply: &mut Reply<'_>) -> Outcome {
        reply.tag(tag(kind, refusal.status));
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
        self.refuse(RequestKind::Other, &bad(sentence), reply)
    }

    fn not_allowed(&self, head: &Head<'_>, allow: &str, reply: &mut Reply<'_>) -> Outcome {
        reply.tag(tag(RequestKind::Other, 405));
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
                reply.tag(tag(RequestKind::Other, 200));
                reply.text(200, "ok\n");
                Outcome::Done
            }
            Some(sentence) => {
                self.refuse(RequestKind::Other, &Refusal { status: 503, sentence: sentence.into() }, reply)
            }
        }
    }

    fn entity(&self, head: &Head<'_>, body: &[u8], reply: &mut Reply<'_>) -> Outcome {
        let kind = kind(head.method);
        if kind == RequestKind::Other {
            return self.not_allowed(head, ENTITY_METHODS, reply);
        }
        match Entity::of(head, self.node.nodes()) {
            Ok(entity) => self.serve_entity(kind, &entity, head.if_none_match, Contents::Borrowed(body), reply),
            Err(refusal) => self.refuse(kind, &refusal, reply),
        }
    }

    fn serve_entity(
        &self,
        kind: RequestKind,
        entity: &Entity<'_>,
        if_none_match: Option<&[u8]>,
        body: Contents<'_>,
        reply: &mut Reply<'_>,
    ) -> Outcome {
        let action = match kind {
            RequestKind::Put => Action::Put { value: body, ttl_ms: entity.ttl_ms },
            RequestKind::Delete => Action::Delete,
            RequestKind::Head => Action::Read(Want::Version),
            _ => Action::Read(Want::Value),
        };
        let Some(dispatch) = self.dispatch() else {
            return self.refuse(kind, &recovering(), reply);
        };
        let cluster = self.node.cluster.as_deref();
        if cluster.is_some()
            && matches!(kind, RequestKind::Put | RequestKind::Delete)
            && let Some(refusal) = clock_ahead()
        {
            return self.refuse(kind, &refusal, reply);
        }
        let context = reply.context();
        let asked = Asked { context, kind, if_none_match, cluster };
        let request = ClientRequest { key: Key::new(&*entity.key), quorum: entity.quorum, action };
        match dispatch.dispatch(request, |answer| asked.answer(answer, reply.buffer())) {
            Ok(Dispatched::Now(answered)) => {
                reply.tag(answered.tag);
                answered.value.map_or(Outcome::Done, Outcome::Value)
            }
            Ok(Dispatched::Later(answer)) => {
                let (cluster, if_none_match) = (self.node.cluster.clone(), if_none_match.map(Box::<[u8]>::from));
                Outcome::when(answer, move |answer, out| {
                    let (cluster, if_none_match) = (cluster.as_deref(), if_none_match.as_deref());
                    Asked { context, kind, if_none_match, cluster }.answer(answer.shared(), out)
                })
            }
            Err(Full) => {
                self.metrics.event(Event::Overloaded);
                let sentence = "Too many replicated operations are in flight on this core (--max-in-flight, \
                                --max-in-flight-bytes); try again in a second.";
                self.refuse(kind, &Refusal { status: 503, sentence: sentence.into() }, reply)
            }
        }
    }

    fn entities(&self, head: &Head<'_>, reply: &mut Reply<'_>) -> Outcome {
        if head.method != Method::Get {
            return self.not_allowed(head, "GET", reply);
        }
        match Range::of(head) {
            Ok(range) => self.serve_range(range, reply),
            Err(refusal) => self.refuse(RequestKind::Range, &refusal, reply),
        }
    }

    fn serve_range(&self, range: Range, reply: &mut Reply<'_>) -> Outcome {
        let Some(dispatch) = self.dispatch() else {
            return self.refuse(RequestKind::Range, &recovering(), reply);
        };
        reply.tag(tag(RequestKind::Range, 200));
        reply.stream_head("application/octet-stream");
        let store = dispatch.replica().store().clone();
        Outcome::Stream(Box::new(RangeSource::new(store, range, self.node.config.request_timeout)))
    }
}

/// Why this node makes no versions now: its wall clock has jumped ahead.
fn clock_ahead() -> Option<Refusal> {
    let ahead = jump_ms();
    (ahead > 0).then(|| {
        let seconds = ahead / 1000;
        let sentence = format!(
            "The wall clock of this node has jumped {seconds} s ahead, and it takes no writes until the clock is right \
             again or the other nodes agree with it; send them to another node."
        );
        Refusal { status: 503, sentence: sentence.into() }
    })
}

fn recovering() -> Refusal {
    Refusal { status: 503, sentence: "The node is still recovering its data.".into() }
}

/// A request that was parsed before its body came.
pub enum Admitted {
    /// On `/v0/entity`.
    Entity {
        /// By its method.
        kind: RequestKind,
        /// From its query.
        entity: Entity<'static>,
        /// From its head.
        if_none_match: Option<Box<[u8]>>,
    },
    /// On `/v0/entities`.
    Range(Range),
}

impl Service for Api {
    type Admitted = Admitted;

    fn admit(&self, head: &Head<'_>, reply: &mut Reply<'_>) -> Admit<Admitted> {
        let outcome = match route(head.path) {
            Route::Control => return Admit::HandOff,
            Route::Nowhere => self.nowhere(head, reply),
            Route::Entity if kind(head.method) == RequestKind::Other => self.not_allowed(head, ENTITY_METHODS, reply),
            Route::Entity => match Entity::of(head, self.node.nodes()) {
                Ok(_) if self.dispatch().is_none() => self.refuse(kind(head.method), &recovering(), reply),
                Ok(entity) => {
                    let (kind, if_none_match) = (kind(head.method), head.if_none_match.map(Box::from));
                    return Admit::Body(Admitted::Entity { kind, entity: entity.into_owned(), if_none_match });
                }
                Err(refusal) => self.refuse(kind(head.method), &refusal, reply),
            },
            Route::Entities if head.method != Method::Get => self.not_allowed(head, "GET", reply),
            Route::Entities => match Range::of(head) {
                Ok(range) => return Admit::Body(Admitted::Range(range)),
                Err(refusal) => self.refuse(RequestKind::Range, &refusal, reply),
            },
            Route::Health => self.health(head, reply),
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

    fn call_admitted(&self, admitted: Admitted, body: Bytes, reply: &mut Reply<'_>) -> Outcome {
        match admitted {
            Admitted::Entity { kind, entity, if_none_match } => {
                self.serve_entity(kind, &entity, if_none_match.as_deref(), Contents::Shared(body), reply)
            }
            Admitted::Range(range) => self.serve_range(range, reply),
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

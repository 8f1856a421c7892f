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
use koltso_net::http::conditions::{self, Judged};
use koltso_net::http::{Head, Method, Reply, Seen, query};
use koltso_net::server::{Admit, Event, Outcome, Service};

use self::answer::Asked;
use self::range::RangeSource;
use self::request::{Entity, Range, Refusal, bad, without_parameters};
use crate::counters::{CoreMetrics, RequestKind, tag};
use crate::member;
use crate::node::access::{Asker, PREFLIGHT};
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
        Method::Post | Method::Options | Method::Other => RequestKind::Other,
    }
}

/// What `/v0/entity` knows.
const ENTITY_METHODS: &str = "GET, HEAD, PUT, DELETE";
/// What paths know that are only read.
const READ_METHODS: &str = "GET, HEAD";

/// Where a path leads.
enum Route {
    Entity,
    Entities,
    Health,
    /// The landing page.
    Home,
    Control,
    Nowhere,
}

#[inline]
fn route(path: &str) -> Route {
    if path.contains('%') { route_escaped(path) } else { route_normalised(path) }
}

#[cold]
fn route_escaped(path: &str) -> Route {
    query::normalised(path).map_or(Route::Nowhere, |path| route_normalised(&path))
}

#[inline]
fn route_normalised(path: &str) -> Route {
    match path {
        "/v0/entity" => Route::Entity,
        "/v0/entities" => Route::Entities,
        "/health" => Route::Health,
        "/" => Route::Home,
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
        let replica = Rc::new(Replica::new(store, writer, config.sync, self.node.whole()));
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
        let method: String = head.method_name.chars().take(32).collect();
        if !head.is_method_known() {
            let sentence = format!("{method} is not a method of HTTP.");
            return self.refuse(RequestKind::Other, &Refusal { status: 501, sentence: sentence.into() }, reply);
        }
        reply.tag(tag(RequestKind::Other, 405));
        let sentence = format!("The path {} knows {allow}, not {method}.", head.path);
        reply.error_with(405, "Allow", allow, &sentence);
        Outcome::Done
    }

    /// Answers `OPTIONS`, which asks for nothing but what there is and, from a browser, what a page
    /// may do.
    fn options(&self, head: &Head<'_>, route: &Route, allowed_origin: bool, reply: &mut Reply<'_>) -> Outcome {
        reply.tag(tag(RequestKind::Other, 204));
        let allow = match route {
            Route::Entity => ENTITY_METHODS,
            Route::Nowhere => "OPTIONS",
            Route::Entities | Route::Health | Route::Home | Route::Control => READ_METHODS,
        };
        let is_preflight = allowed_origin && head.seen.has(Seen::REQUEST_METHOD);
        reply.options(allow, if is_preflight { PREFLIGHT } else { "" });
        Outcome::Done
    }

    /// Whether the request comes by a name, and from a place, that the listener answers; if so,
    /// whether it comes from a page of an allowed origin.
    #[inline]
    fn access(&self, head: &Head<'_>, reply: &mut Reply<'_>) -> Result<bool, Refusal> {
        let mut asker = Asker { host: head.host, origin: None, site: None };
        if !head.seen.is_empty() {
            (asker.origin, asker.site) = (head.value(Seen::ORIGIN), head.value(Seen::SEC_FETCH_SITE));
        }
        match self.node.access.judge(&asker) {
            Ok(admission) => {
                if !admission.lines.is_empty() {
                    reply.set_lines(admission.lines);
                }
                Ok(admission.is_allowed_origin)
            }
            Err(sentence) => Err(Refusal { status: 403, sentence: sentence.into() }),
        }
    }

    fn health(&self, head: &Head<'_>, reply: &mut Reply<'_>) -> Outcome {
        if !matches!(head.method, Method::Get | Method::Head) {
            return self.not_allowed(head, READ_METHODS, reply);
        }
        if let Err(refusal) = without_parameters(head) {
            return self.refuse(RequestKind::Other, &refusal, reply);
        }
        match self.node.unhealthy() {
            None => self.untagged(RequestKind::Other, head, reply, |reply| {
                reply.tag(tag(RequestKind::Other, 200));
                reply.text(200, "ok\n");
                Outcome::Done
            }),
            Some(sentence) => {
                self.refuse(RequestKind::Other, &Refusal { status: 503, sentence: sentence.into() }, reply)
            }
        }
    }

    /// Hands over a request for the landing page, which the control plane makes. Load balancers ask
    /// this path for its `OPTIONS`, which are answered before.
    #[cold]
    fn home(&self, head: &Head<'_>, reply: &mut Reply<'_>) -> Outcome {
        if let Err(refusal) = without_parameters(head) {
            return self.refuse(RequestKind::Other, &refusal, reply);
        }
        if !matches!(head.method, Method::Get | Method::Head) {
            return self.not_allowed(head, READ_METHODS, reply);
        }
        Outcome::HandOff
    }

    fn entity(&self, head: &Head<'_>, body: &[u8], reply: &mut Reply<'_>) -> Outcome {
        let kind = kind(head.method);
        if kind == RequestKind::Other {
            return self.not_allowed(head, ENTITY_METHODS, reply);
        }
        match Entity::of(head, self.node.replicas_max()) {
            Ok(entity) => self.serve_entity(kind, entity, Contents::Borrowed(body), reply),
            Err(refusal) => self.refuse(kind, &refusal, reply),
        }
    }

    fn serve_entity(
        &self,
        kind: RequestKind,
        entity: Entity<'_>,
        body: Contents<'_>,
        reply: &mut Reply<'_>,
    ) -> Outcome {
        let action = match kind {
            RequestKind::Put => Action::Put { value: body, ttl_ms: entity.ttl_ms, attributes: &entity.attributes },
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
        let asked = Asked { context, kind, conditions: entity.conditions.as_deref(), cluster };
        let request = ClientRequest { key: Key::new(&*entity.key), quorum: entity.quorum, action };
        match dispatch.dispatch(request, |answer| asked.answer(answer, reply.buffer())) {
            Ok(Dispatched::Now(answered)) => {
                reply.tag(answered.tag);
                answered.value.map_or(Outcome::Done, Outcome::Value)
            }
            Ok(Dispatched::Later(answer)) => {
                let (cluster, conditions) = (self.node.cluster.clone(), entity.conditions);
                let took_effect = answer.took_effect();
                Outcome::when_in_effect(took_effect, answer, move |answer, out| {
                    let (cluster, conditions) = (cluster.as_deref(), conditions.as_deref());
                    Asked { context, kind, conditions, cluster }.answer(answer.shared(), out)
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

    /// Answers about what has no tag, if the conditions of the request allow it.
    fn untagged(
        &self,
        kind: RequestKind,
        head: &Head<'_>,
        reply: &mut Reply<'_>,
        answer: impl FnOnce(&mut Reply<'_>) -> Outcome,
    ) -> Outcome {
        match conditions::judge_untagged(head) {
            Judged::Failed => self.refuse(kind, &Refusal { status: 412, sentence: conditions::NO_TAG.into() }, reply),
            Judged::NotModified => {
                reply.tag(tag(kind, 304));
                reply.empty(304);
                Outcome::Done
            }
            _ => answer(reply),
        }
    }

    fn entities(&self, head: &Head<'_>, reply: &mut Reply<'_>) -> Outcome {
        if !matches!(head.method, Method::Get | Method::Head) {
            return self.not_allowed(head, READ_METHODS, reply);
        }
        match Range::of(head) {
            Ok(range) => self.untagged(RequestKind::Range, head, reply, |reply| self.serve_range(range, reply)),
            Err(refusal) => self.refuse(RequestKind::Range, &refusal, reply),
        }
    }

    fn serve_range(&self, range: Range, reply: &mut Reply<'_>) -> Outcome {
        let Some(dispatch) = self.dispatch() else {
            return self.refuse(RequestKind::Range, &recovering(), reply);
        };
        if !dispatch.replica().answers_reads() {
            return self.refuse(RequestKind::Range, &may_lack_records(), reply);
        }
        reply.tag(tag(RequestKind::Range, 200));
        reply.stream_head(range.framing.content_type());
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

fn may_lack_records() -> Refusal {
    let sentence = "This node may lack records until it has compared its data with the other nodes (koltso status shows \
                    how far it is): ask another one for the range.";
    Refusal { status: 503, sentence: sentence.into() }
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
        /// From its head.
        entity: Entity<'static>,
    },
    /// On `/v0/entities`.
    Range(Range),
}

impl Service for Api {
    type Admitted = Admitted;

    fn admit(&self, head: &Head<'_>, reply: &mut Reply<'_>) -> Admit<Admitted> {
        let allowed_origin = match self.access(head, reply) {
            Ok(allowed_origin) => allowed_origin,
            Err(refusal) => {
                self.refuse(kind(head.method), &refusal, reply);
                return Admit::Answered;
            }
        };
        let outcome = match route(head.path) {
            Route::Control => return Admit::HandOff,
            route if head.method == Method::Options => self.options(head, &route, allowed_origin, reply),
            Route::Nowhere => self.nowhere(head, reply),
            Route::Entity if kind(head.method) == RequestKind::Other => self.not_allowed(head, ENTITY_METHODS, reply),
            Route::Entity => match Entity::of(head, self.node.replicas_max()) {
                Ok(_) if self.dispatch().is_none() => self.refuse(kind(head.method), &recovering(), reply),
                Ok(entity) => {
                    return Admit::Body(Admitted::Entity { kind: kind(head.method), entity: entity.into_owned() });
                }
                Err(refusal) => self.refuse(kind(head.method), &refusal, reply),
            },
            Route::Entities => match Range::of(head) {
                Ok(range) if head.method == Method::Get && conditions::judge_untagged(head) == Judged::Whole => {
                    return Admit::Body(Admitted::Range(range));
                }
                // A refusal, or a head: neither needs the body.
                _ => match self.entities(head, reply) {
                    Outcome::Stream(_) => Outcome::Done,
                    outcome => outcome,
                },
            },
            Route::Health => self.health(head, reply),
            Route::Home => match self.home(head, reply) {
                Outcome::HandOff => return Admit::HandOff,
                outcome => outcome,
            },
        };
        debug_assert!(matches!(outcome, Outcome::Done));
        Admit::Answered
    }

    #[inline]
    fn call(&self, head: &Head<'_>, body: &[u8], reply: &mut Reply<'_>) -> Outcome {
        let allowed_origin = match self.access(head, reply) {
            Ok(allowed_origin) => allowed_origin,
            Err(refusal) => return self.refuse(kind(head.method), &refusal, reply),
        };
        match route(head.path) {
            Route::Control => Outcome::HandOff,
            route if head.method == Method::Options => self.options(head, &route, allowed_origin, reply),
            Route::Entity => self.entity(head, body, reply),
            Route::Entities => self.entities(head, reply),
            Route::Health => self.health(head, reply),
            Route::Home => self.home(head, reply),
            Route::Nowhere => self.nowhere(head, reply),
        }
    }

    fn call_admitted(&self, admitted: Admitted, body: Bytes, reply: &mut Reply<'_>) -> Outcome {
        match admitted {
            Admitted::Entity { kind, entity } => self.serve_entity(kind, entity, Contents::Shared(body), reply),
            Admitted::Range(range) => self.serve_range(range, reply),
        }
    }

    fn is_urgent(&self, head: &Head<'_>) -> bool {
        matches!(route(head.path), Route::Control | Route::Home | Route::Health)
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

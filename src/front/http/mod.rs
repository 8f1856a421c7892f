//! The HTTP front of a data core: routes a request, parses it, has it dispatched, and writes the answer.
//!
//! - `request.rs`: what the query asks for.
//! - `answer.rs`: what an outcome is in HTTP.
//! - `range.rs`: a range as a streamed body.
//!
//! Owner: one core. Nothing here blocks but the stripe locks of the index and, where the provisioning thread was outrun, an
//! allocation. Whatever belongs to the control plane is handed over with its socket.
//! Tested through real sockets in `tests/http_contract/`.

mod answer;
mod range;
mod request;

use std::cell::OnceCell;
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use koltso_cluster::coordinator::Full;
use koltso_model::{Key, Want};
use koltso_net::http::{Head, Method, Reply};
use koltso_net::server::{Admit, Event, Outcome, Service};

use self::answer::Asked;
use self::range::RangeSource;
use self::request::{Entity, Range, Refusal, bad};
use crate::admin::metrics::{CoreMetrics, RequestKind, tag};
use crate::member;
use crate::node::dispatch::{Action, ClientRequest, Dispatch, Dispatched};
use crate::node::replica::{Contents, Replica};
use crate::node::stalls::Turn;
use crate::node::{Handover, Node};

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

    /// Ends the core's part in the cluster and lets go of the writer, so that the store can be closed. No request comes any
    /// more.
    pub async fn close(&self) {
        if let Some(dispatch) = self.dispatch.get() {
            dispatch.close().await;
        }
    }

    /// Whether the store is open, and the core serves peers, too. The first call after the opening sees to that.
    pub fn is_open(&self) -> bool {
        self.dispatch().is_some()
    }

    /// Where requests go, once the store is open. The first call after that takes the core's writer and joins the cluster.
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
        let replica = Rc::new(Replica::new(store, writer, self.node.config.sync));
        let cluster = self.node.cluster.as_ref().map(|cluster| {
            member::MemberDriver::start(&self.node, cluster, self.core, replica.clone(), self.turn.clone())
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
        let entity = match Entity::of(head, self.node.nodes()) {
            Ok(entity) => entity,
            Err(refusal) => return self.refuse(kind, &refusal, reply),
        };
        let action = match head.method {
            Method::Put => Action::Put { value: Contents::Borrowed(body), ttl_ms: entity.ttl_ms },
            Method::Delete => Action::Delete,
            Method::Head => Action::Read(Want::Version),
            _ => Action::Read(Want::Value),
        };
        let Some(dispatch) = self.dispatch() else {
            return self.refuse(kind, &recovering(), reply);
        };
        let cluster = self.node.cluster.as_deref();
        let (context, if_none_match) = (reply.context(), head.if_none_match);
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
        let range = match Range::of(head) {
            Ok(range) => range,
            Err(refusal) => return self.refuse(RequestKind::Range, &refusal, reply),
        };
        let Some(dispatch) = self.dispatch() else {
            return self.refuse(RequestKind::Range, &recovering(), reply);
        };
        reply.tag(tag(RequestKind::Range, 200));
        reply.stream_head("application/octet-stream");
        let store = dispatch.replica().store().clone();
        Outcome::Stream(Box::new(RangeSource::new(store, range, self.node.config.request_timeout)))
    }
}

fn recovering() -> Refusal {
    Refusal { status: 503, sentence: "The node is still recovering its data.".into() }
}

impl Service for Api {
    fn admit(&self, head: &Head<'_>, reply: &mut Reply<'_>) -> Admit {
        let outcome = match route(head.path) {
            Route::Control => return Admit::HandOff,
            Route::Nowhere => self.nowhere(head, reply),
            Route::Entity if kind(head.method) == RequestKind::Other => self.not_allowed(head, ENTITY_METHODS, reply),
            Route::Entity => match Entity::of(head, self.node.nodes()) {
                Ok(_) if self.dispatch().is_none() => self.refuse(kind(head.method), &recovering(), reply),
                Ok(_) => return Admit::Body,
                Err(refusal) => self.refuse(kind(head.method), &refusal, reply),
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

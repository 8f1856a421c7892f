//! The control plane: `/`, `/status`, `/metrics` and `/debug/pprof/`, on one thread of its own that
//! may be slow.
//!
//! A data core that gets a request for it hands over the socket with the bytes it has read; axum
//! serves from there. Every answer closes the connection, so that the client's next request goes to
//! a data core again. The runtime is tokio-uring, a tokio runtime whose file operations go through
//! io_uring, or plain tokio if io_uring is refused.
//!
//! Access: `guard.rs` says who needs a token.
//!
//! Bounds: those of each entrance (`entrance.rs`).

use std::net::TcpListener;
use std::sync::Arc;
use std::{io, thread};

use axum::Router;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderName, Method, StatusCode, Version, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use koltso_net::http::conditions::{self, Judged};
use koltso_net::http::head::elements;
use koltso_net::http::{host, query};
use tokio::sync::mpsc;

use crate::admin::entrance::Entrance;
use crate::admin::guard::Guard;
use crate::admin::headers::{add_common, add_lines};
use crate::admin::home::Home;
use crate::admin::metrics::Scrape;
use crate::admin::pprof;
use crate::admin::refusal::{refuse, wrong_method};
use crate::admin::status;
use crate::logging;
use crate::node::access::{Access, Admission, Asker, PREFLIGHT};
use crate::node::{Handover, Node};
use crate::signals::Ends;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

#[derive(Clone)]
struct App {
    node: Arc<Node>,
    /// The routes of the profiles; all listeners share one set of captures.
    debug: Router,
    /// Whether this listener serves only the control plane (`--admin-listen`).
    dedicated: bool,
    /// What a listener of its own answers to.
    access: Option<Arc<Access>>,
}

/// Judges who asks, as the data plane does.
fn judge(app: &App, request: &Request) -> Result<Admission, (StatusCode, String)> {
    let headers = request.headers();
    let bytes = |name| headers.get(name).map(header::HeaderValue::as_bytes);
    let named = headers.get_all(header::HOST).iter().count();
    let host = bytes(header::HOST).unwrap_or_default();
    let host = std::str::from_utf8(host).ok().filter(|host| host::is_valid(host.as_bytes()));
    let is_needed = request.version() == Version::HTTP_11;
    let Some(host) = host.filter(|_| named == 1 || named == 0 && !is_needed) else {
        let sentence = "The request needs exactly one Host, a name or an address.";
        return Err((StatusCode::BAD_REQUEST, sentence.to_owned()));
    };
    let host = request.uri().authority().map_or(host, axum::http::uri::Authority::as_str);
    let (origin, site) = (bytes(header::ORIGIN), bytes(SEC_FETCH_SITE));
    let access = app.access.as_deref().unwrap_or(&app.node.access);
    access.judge(&Asker { host, origin, site }).map_err(|sentence| (StatusCode::FORBIDDEN, sentence))
}

async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    match Guard::of(&app.node.config, app.dedicated).admit(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => *refusal,
    }
}

/// Methods that HTTP knows (RFC 9110 section 9, RFC 5789).
fn is_known(method: &Method) -> bool {
    let known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::OPTIONS,
        Method::PATCH,
        Method::TRACE,
        Method::CONNECT,
    ];
    known.contains(method)
}

/// The answer to a request that no path decides on; `None` if its path does.
fn for_any_path(request: &Request) -> Option<Response> {
    if request.method() == Method::OPTIONS {
        let allow = pprof::methods(request.uri().path()).unwrap_or("GET, HEAD");
        return Some((StatusCode::NO_CONTENT, [(header::ALLOW, allow)]).into_response());
    }
    (!is_known(request.method())).then(|| {
        let method: String = request.method().as_str().chars().take(32).collect();
        refuse(StatusCode::NOT_IMPLEMENTED, &format!("{method} is not a method of HTTP."))
    })
}

/// What the conditions of a read say about a page, which has no tag.
fn judge_conditions(request: &Request) -> Judged {
    let headers = request.headers();
    let list = |name: HeaderName| {
        let lines = headers.get_all(&name).iter();
        headers.contains_key(&name).then(|| lines.flat_map(|value| elements(value.as_bytes())))
    };
    conditions::untagged(list(header::IF_MATCH), list(header::IF_NONE_MATCH))
}

async fn close_after(State(app): State<App>, request: Request, next: Next) -> Response {
    let is_profile = request.uri().path().starts_with("/debug/pprof");
    let is_preflight =
        request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let judged = judge_conditions(&request);
    let mut response = match judge(&app, &request) {
        Err((status, sentence)) => refuse(status, &sentence),
        Ok(admission) => {
            let mut response = match for_any_path(&request) {
                Some(response) => response,
                None => next.run(request).await,
            };
            // A condition counts where there is something that it could be about (RFC 9110 section 13.2.1).
            match judged {
                Judged::Failed if response.status() == StatusCode::OK => {
                    response = refuse(StatusCode::PRECONDITION_FAILED, conditions::NO_TAG);
                }
                Judged::NotModified if response.status() == StatusCode::OK => {
                    response = StatusCode::NOT_MODIFIED.into_response();
                }
                _ => {}
            }
            add_lines(response.headers_mut(), admission.lines);
            if is_preflight && admission.is_allowed_origin {
                add_lines(response.headers_mut(), PREFLIGHT);
            }
            response
        }
    };
    if is_profile && (response.status().is_client_error() || response.status().is_server_error()) {
        // `go tool pprof` prints the sentence of an error with this header, including those of the
        // guard.
        response.headers_mut().insert(pprof::GO_PPROF, header::HeaderValue::from_static("1"));
    }
    response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    add_common(response.headers_mut());
    response
}

/// Refuses the first parameter of a path that knows none.
fn without_parameters(path: &str, query: Option<&str>) -> Option<Response> {
    let (name, _) = query::pairs(query?).next()?;
    let shown: String = name.chars().take(40).flat_map(char::escape_default).collect();
    Some(refuse(StatusCode::BAD_REQUEST, &format!("The parameter `{shown}` is not known here: {path} has none.")))
}

async fn metrics(State(app): State<App>, RawQuery(query): RawQuery) -> Response {
    if let Some(refusal) = without_parameters("/metrics", query.as_deref()) {
        return refusal;
    }
    let node = &app.node;
    let scrape = Scrape {
        cores: node.metrics.clone(),
        connections: node.connections.connections() as u64,
        storage: node.store().map(|store| store.stats()),
        cluster: node.cluster.clone(),
        stalls: node.stalls.as_ref().map(|stalls| (stalls.count(), stalls.kept_waiting(), stalls.longest())),
        pages_limit_hit: node.page_limit_hits(),
        log_lines: (logging::lines_lost(), logging::lines_left_out()),
    };
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], scrape.text()).into_response()
}

async fn status(State(app): State<App>, RawQuery(query): RawQuery) -> Response {
    if let Some(refusal) = without_parameters("/status", query.as_deref()) {
        return refusal;
    }
    let text = status::document(&app.node);
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// `POST /debug/scrub?state=paused|running|now`.
async fn scrub(State(app): State<App>, RawQuery(query): RawQuery) -> Response {
    let mut pairs = query::pairs(query.as_deref().unwrap_or_default());
    let state = match (pairs.next(), pairs.next()) {
        (Some(("state", state)), None) => state,
        _ => return refuse(StatusCode::BAD_REQUEST, SCRUB_PARAMETER),
    };
    let Some(store) = app.node.store() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "The node is recovering.");
    };
    match state {
        "paused" => store.pause_scrub(true),
        "running" => store.pause_scrub(false),
        "now" => store.scrub_now(),
        _ => return refuse(StatusCode::BAD_REQUEST, SCRUB_PARAMETER),
    }
    StatusCode::NO_CONTENT.into_response()
}

const SCRUB_PARAMETER: &str = "The parameter `state` is `paused`, `running` or `now`.";

/// The landing page, which is free.
async fn home(State(app): State<App>, RawQuery(query): RawQuery, request: Request) -> Response {
    if let Some(refusal) = without_parameters("/", query.as_deref()) {
        return refusal;
    }
    let node = &app.node;
    let api = node.config.listen.to_string();
    let given = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let given = request.uri().authority().map(axum::http::uri::Authority::as_str).or(given);
    let here = given.filter(|host| !host.is_empty()).unwrap_or(&api);
    let host = if app.dedicated { &api } else { here };
    let guard = Guard::of(&node.config, app.dedicated);
    Home { host, here, state: node.state(), guard }.answer(request.headers())
}

fn router(app: &App) -> Router {
    let nowhere = || async { refuse(StatusCode::BAD_REQUEST, "There is no such path; see /status and /metrics.") };
    let wrong = || async { wrong_method("GET, HEAD") };
    Router::new()
        .route("/metrics", get(metrics).fallback(wrong))
        .route("/status", get(status).fallback(wrong))
        .route("/debug/scrub", post(scrub).fallback(|| async { wrong_method("POST") }))
        .with_state(app.clone())
        .merge(app.debug.clone())
        .fallback(nowhere)
        .layer(middleware::from_fn_with_state(app.clone(), guard))
        // Behind the guard, whose layer is only before what was there when it was added.
        .route("/", get(home).fallback(wrong).with_state(app.clone()))
        .layer(middleware::from_fn_with_state(app.clone(), close_after))
}

async fn run(node: Arc<Node>, mut handovers: mpsc::Receiver<Handover>, own: Option<TcpListener>, places: usize) {
    let app = App { node: node.clone(), debug: pprof::router(node.clone()), dedicated: false, access: None };
    if let Some(listener) = own {
        let access = node.config.admin_listen.map(|address| Arc::new(Access::new(&node.config, address)));
        let dedicated = router(&App { dedicated: true, access, ..app.clone() });
        tokio::task::spawn_local(Entrance::new(node.clone(), dedicated, places).accept(listener));
    }
    tokio::task::spawn_local(drain_on_signal(node.clone()));
    let data_port = Entrance::new(node, router(&app), places);
    while let Some(handover) = handovers.recv().await {
        data_port.admit(handover).await;
    }
}

/// Starts the drain when a signal asks for it; the data cores then end, and with them the process.
async fn drain_on_signal(node: Arc<Node>) {
    match Ends::catch() {
        Ok(mut ends) => ends.next().await,
        Err(e) => {
            tracing::error!("signals cannot be caught, and the server will not drain: {e}");
            return;
        }
    }
    tracing::info!("draining: finishing what is in flight");
    node.connections.drain();
}

/// Starts the thread of the control plane, which runs until the process ends. Each entrance has room
/// for `places` connections.
pub fn spawn(
    node: Arc<Node>,
    handovers: mpsc::Receiver<Handover>,
    (own, places): (Option<TcpListener>, usize),
    uring: bool,
) -> io::Result<()> {
    let body = move || {
        if uring {
            match tokio_uring::Runtime::new(&tokio_uring::builder()) {
                Ok(runtime) => return runtime.block_on(run(node, handovers, own, places)),
                Err(e) => tracing::warn!("the control plane runs without io_uring: {e}"),
            }
        }
        let local = tokio::task::LocalSet::new();
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => local.block_on(&runtime, run(node, handovers, own, places)),
            Err(e) => tracing::error!("the control plane cannot run: {e}"),
        }
    };
    thread::Builder::new().name("koltso-control".to_owned()).spawn(body)?;
    Ok(())
}

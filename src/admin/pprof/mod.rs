//! `/debug/pprof/`: profiles of this process, with the paths of Go's `net/http/pprof`.
//!
//! - `request.rs`: what a request asks for.
//! - `captures.rs`: which captures run and which are kept.
//! - `index.rs`: the page that lists them.
//!
//! A capture runs on a thread of its own, never on a data core, and ends early if its client goes
//! away. Tested in `tests/profiles/`.

mod captures;
mod index;
mod request;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{HeaderName, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use bytes::Bytes;
use koltso_profiling::capture::{Capture, Event};
use koltso_profiling::engine::{EngineError, step_aside};
use koltso_profiling::symbols::{Symbols, is_kernel};
use koltso_profiling::{page, proto, svg, text};
use tokio::sync::{Semaphore, oneshot};

use self::captures::{Busy, Captures, KEPT_MAX, Kept};
use self::request::Format;
use crate::admin::refusal::{refuse, wrong_method};
use crate::node::Node;

/// The header of every error below `/debug/pprof`, which makes `go tool pprof` print the sentence.
/// The control plane adds it, also to the errors of its guard.
pub const GO_PPROF: HeaderName = HeaderName::from_static("x-go-pprof");
const CAPTURE: HeaderName = HeaderName::from_static("x-koltso-capture");

/// What the handlers share.
#[derive(Clone)]
struct Debug {
    captures: Arc<Captures>,
    node: Arc<Node>,
    /// Permits to give a kept capture in another form: a large capture takes memory while that is
    /// made.
    formats: Arc<Semaphore>,
}

/// How many forms of kept captures are made at a time; further requests wait.
const FORMATS_MAX: usize = 2;

const HTML: &str = "text/html; charset=utf-8";
const SVG: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";

fn title(capture: &Capture) -> String {
    let seconds = capture.duration_ns as f64 / 1e9;
    if capture.duration_ns == 0 {
        format!("Koltso: {}", capture.event.name())
    } else {
        format!("Koltso: {}, {seconds:.1} s", capture.event.name())
    }
}

fn give(kept: &Kept, format: Format) -> Response {
    let capture = &*kept.capture;
    let value = capture.default_type;
    let (kind, body) = match format {
        Format::Pprof => ("application/octet-stream", proto::encode(capture)),
        Format::Html => (HTML, page::flamegraph(capture, &title(capture)).into_bytes()),
        Format::Heatmap => (HTML, page::heatmap(capture, &title(capture)).into_bytes()),
        Format::Svg => (SVG, svg::flamegraph(capture, &title(capture), value).into_bytes()),
        Format::Folded => (TEXT, text::folded(capture, value).into_bytes()),
        Format::PerfScript => (TEXT, text::perf_script(capture).into_bytes()),
        Format::Text => (TEXT, text::top(capture, value).into_bytes()),
    };
    let mut response =
        ([(header::CONTENT_TYPE, kind.to_owned()), (CAPTURE, kept.id.to_string())], body).into_response();
    if format == Format::Pprof {
        // For browsers, which save it.
        let name = format!("attachment; filename=\"koltso-{}-{}.pb.gz\"", capture.event.name(), kept.id);
        if let Ok(name) = header::HeaderValue::try_from(name) {
            response.headers_mut().insert(header::CONTENT_DISPOSITION, name);
        }
    }
    response
}

fn failed(error: &EngineError) -> Response {
    let mut sentence = error.to_string();
    sentence[..1].make_ascii_uppercase();
    sentence.push('.');
    match error {
        EngineError::Forbidden { .. } => refuse(StatusCode::NOT_IMPLEMENTED, &sentence),
        EngineError::OutOfRange { .. } => refuse(StatusCode::BAD_REQUEST, &sentence),
        EngineError::Busy(_) => busy(&sentence),
        EngineError::Io { .. } => refuse(StatusCode::INTERNAL_SERVER_ERROR, &sentence),
    }
}

fn busy(sentence: &str) -> Response {
    let mut response = refuse(StatusCode::CONFLICT, sentence);
    response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("10"));
    response
}

/// Does what takes time (waiting, symbols, formats) on a thread of its own, so that the control
/// plane can go on answering.
async fn on_thread(work: impl FnOnce() -> Response + Send + 'static) -> Response {
    let (sender, made) = oneshot::channel();
    // If the client has gone away, nobody receives the response.
    let body = move || {
        step_aside();
        _ = sender.send(work());
    };
    if let Err(e) = std::thread::Builder::new().name("koltso-capture".to_owned()).spawn(body) {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, &format!("No thread can be started for the capture: {e}."));
    }
    made.await.unwrap_or_else(|_| refuse(StatusCode::INTERNAL_SERVER_ERROR, "The capture ended without a result."))
}

/// Like [`on_thread`], but waits until fewer than [`FORMATS_MAX`] others are at work.
async fn on_thread_of_few(few: &Arc<Semaphore>, work: impl FnOnce() -> Response + Send + 'static) -> Response {
    let Ok(turn) = few.clone().acquire_owned().await else {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, "The server is going down.");
    };
    on_thread(move || {
        let response = work();
        drop(turn);
        response
    })
    .await
}

async fn profile(
    State(Debug { captures, node, .. }): State<Debug>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    let asked = match request::parse(&name, query.as_deref().unwrap_or_default()) {
        None => return no_such().await,
        Some(Err(sentence)) => return refuse(StatusCode::BAD_REQUEST, &sentence),
        Some(Ok(asked)) => asked,
    };
    if (asked.event, asked.format) == (Event::Stalls, Format::Text) {
        let list = move || self::captures::list_stalls(node.stalls.as_ref()).map_or_else(|e| failed(&e), plain);
        return on_thread(list).await;
    }
    let turn = match captures.begin(asked.event, asked.force) {
        Ok(turn) => turn,
        Err(Busy) => {
            return busy("Two captures of this kind run already; force=true ends the oldest of them.");
        }
    };
    // If this future is dropped, the client has gone away and the capture ends early; its turn
    // lasts until its thread is done.
    let _ends = turn.guard();
    on_thread(move || match self::captures::capture(&asked, node.stalls.as_ref(), &turn.stop) {
        Ok(capture) => give(&captures.keep(capture), asked.format),
        Err(error) => failed(&error),
    })
    .await
}

fn kept(captures: &Captures, id: u64) -> Result<Kept, String> {
    let found = captures.kept().into_iter().find(|kept| kept.id == id);
    found.ok_or_else(|| {
        format!("Capture {id} is not kept (the last {KEPT_MAX} are); /debug/pprof/captures lists those that are.")
    })
}

async fn diff(State(Debug { captures, formats, .. }): State<Debug>, RawQuery(query): RawQuery) -> Response {
    let pair = request::parse_diff(&query.unwrap_or_default())
        .and_then(|(base, new, format)| Ok((kept(&captures, base)?, kept(&captures, new)?, format)));
    match pair {
        Ok((base, new, _)) if base.capture.event != new.capture.event => {
            refuse(StatusCode::BAD_REQUEST, "The two captures are of different kinds.")
        }
        Ok((base, new, format)) => {
            let title = format!("Koltso: {}, capture {} against {}", new.capture.event.name(), new.id, base.id);
            let work = move || {
                let (base, new) = (&base.capture, &new.capture);
                match format {
                    Format::Svg => given(SVG, svg::difference(base, new, &title)),
                    Format::Folded => plain(text::folded_difference(base, new)),
                    _ => given(HTML, page::diff(base, new, &title)),
                }
            };
            on_thread_of_few(&formats, work).await
        }
        Err(sentence) => refuse(StatusCode::BAD_REQUEST, &sentence),
    }
}

/// Answers with one capture by its number, `captures?id=N&format=…`, or with the list of them.
async fn list(State(Debug { captures, formats, .. }): State<Debug>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    if !query.is_empty() {
        let asked = request::parse_again(&query).and_then(|(id, format)| Ok((kept(&captures, id)?, format)));
        return match asked {
            Ok((kept, Format::Heatmap)) if !kept.has_times() => {
                refuse(StatusCode::BAD_REQUEST, &format!("Capture {} has no times, which a heatmap needs.", kept.id))
            }
            Ok((kept, format)) => on_thread_of_few(&formats, move || give(&kept, format)).await,
            Err(sentence) => refuse(StatusCode::BAD_REQUEST, &sentence),
        };
    }
    plain(index::list(&captures))
}

fn given(kind: &'static str, text: String) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

fn plain(text: String) -> Response {
    given(TEXT, text)
}

/// Names addresses of this process for tools that have no symbols; as in Go, the addresses are in
/// the query or in the body of a POST.
async fn symbol(method: Method, RawQuery(query): RawQuery, body: Bytes) -> Response {
    let text = if method == Method::POST { String::from_utf8(body.into()).ok() } else { query.or(Some(String::new())) };
    let addresses = match text.ok_or_else(|| "Addresses are hexadecimal and joined by +.".to_owned()) {
        Ok(text) => request::parse_addresses(&text),
        Err(sentence) => Err(sentence),
    };
    match addresses {
        Err(sentence) => refuse(StatusCode::BAD_REQUEST, &sentence),
        Ok(addresses) => {
            // Go writes this line if it has any symbols; the number means nothing.
            let mut text = "num_symbols: 1\n".to_owned();
            let work = move || {
                let mut symbols = Symbols::new();
                for address in addresses {
                    // Names for addresses of the kernel would tell where it is in memory.
                    let frames = (!is_kernel(address)).then(|| symbols.frames(address));
                    let function =
                        frames.iter().flat_map(|frames| frames.last()).next().map_or("", |frame| &frame.function);
                    text.push_str(&format!("{address:#x}\t{function}\n"));
                }
                plain(text)
            };
            on_thread(work).await
        }
    }
}

async fn cmdline(RawQuery(query): RawQuery) -> Response {
    if let Err(sentence) = request::parse_nothing("cmdline", &query.unwrap_or_default()) {
        return refuse(StatusCode::BAD_REQUEST, &sentence);
    }
    let arguments: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    plain(arguments.join("\0"))
}

async fn home(State(Debug { captures, .. }): State<Debug>, RawQuery(query): RawQuery) -> Response {
    if let Err(sentence) = request::parse_nothing("", &query.unwrap_or_default()) {
        return refuse(StatusCode::BAD_REQUEST, &sentence);
    }
    let policy = (header::CONTENT_SECURITY_POLICY, index::POLICY);
    ([(header::CONTENT_TYPE, HTML), policy], index::page(&captures)).into_response()
}

async fn no_such() -> Response {
    refuse(StatusCode::NOT_FOUND, "There is no such profile; /debug/pprof/ lists them.")
}

/// Paths below `/debug/pprof/` that only show what is there.
const SHOWN: [&str; 5] =
    ["/debug/pprof", "/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/captures", "/debug/pprof/diff"];
const SYMBOL: &str = "/debug/pprof/symbol";

/// The methods of a path of the profiles, as in `Allow`; `None` for other paths. HEAD would cost a
/// whole capture where there is one.
pub fn methods(path: &str) -> Option<&'static str> {
    match path {
        SYMBOL => Some("GET, HEAD, POST"),
        _ if SHOWN.contains(&path) => Some("GET, HEAD"),
        _ => path.starts_with("/debug/pprof/").then_some("GET"),
    }
}

/// Refuses HEAD where its answer would cost a whole capture.
async fn no_head(request: Request, next: Next) -> Response {
    match methods(request.uri().path()) {
        Some(known @ "GET") if request.method() == Method::HEAD => wrong_method(known),
        _ => next.run(request).await,
    }
}

/// The routes of the profiles. The control plane merges them with its own and puts its guard before
/// them.
pub fn router(node: Arc<Node>) -> Router {
    let wrong = || async { wrong_method("GET, HEAD") };
    let wrong_for_capture = || async { wrong_method("GET") };
    let wrong_for_symbol = || async { wrong_method("GET, HEAD, POST") };
    Router::new()
        .route(SYMBOL, get(symbol).post(symbol).fallback(wrong_for_symbol))
        .route("/debug/pprof/", get(home).fallback(wrong))
        .route("/debug/pprof", get(home).fallback(wrong))
        .route("/debug/pprof/cmdline", get(cmdline).fallback(wrong))
        .route("/debug/pprof/captures", get(list).fallback(wrong))
        .route("/debug/pprof/diff", get(diff).fallback(wrong))
        .route("/debug/pprof/{name}", get(profile).fallback(wrong_for_capture))
        .route("/debug/pprof/{name}/{*rest}", any(no_such))
        .route("/debug/pprof/{name}/", any(no_such))
        .layer(middleware::from_fn(no_head))
        .with_state(Debug { captures: Arc::default(), node, formats: Arc::new(Semaphore::new(FORMATS_MAX)) })
}

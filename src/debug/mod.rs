//! `/debug/pprof/`: what the process can tell about itself, as Go's `net/http/pprof` has it.
//!
//! - `request.rs`: what is asked for. `captures.rs`: what runs and what is kept.
//!
//! A capture runs on a thread of its own, never on a data core; a client that goes away ends it. Tested in `tests/profiles.rs`.

mod captures;
mod request;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use koltso_net::http::query;
use koltso_profiling::capture::Capture;
use koltso_profiling::engine::{EngineError, cpu_engine};
use koltso_profiling::{page, proto, svg, text};
use tokio::sync::oneshot;

use self::captures::{Busy, Captures, Kept};
use self::request::Format;

const GO_PPROF: HeaderName = HeaderName::from_static("x-go-pprof");
const CAPTURE: HeaderName = HeaderName::from_static("x-koltso-capture");

/// A refusal, which `go tool pprof` prints.
fn refuse(status: StatusCode, sentence: &str) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (GO_PPROF, "1")];
    (status, headers, format!("{sentence}\n")).into_response()
}

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
        Format::Html => ("text/html; charset=utf-8", page::flamegraph(capture, &title(capture)).into_bytes()),
        Format::Heatmap => ("text/html; charset=utf-8", page::heatmap(capture, &title(capture)).into_bytes()),
        Format::Svg => ("image/svg+xml", svg::flamegraph(capture, &title(capture), value).into_bytes()),
        Format::Folded => ("text/plain; charset=utf-8", text::folded(capture, value).into_bytes()),
        Format::PerfScript => ("text/plain; charset=utf-8", text::perf_script(capture).into_bytes()),
        Format::Text => ("text/plain; charset=utf-8", text::top(capture, value).into_bytes()),
    };
    ([(header::CONTENT_TYPE, kind.to_owned()), (CAPTURE, kept.id.to_string())], body).into_response()
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

async fn profile(
    State(captures): State<Arc<Captures>>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    let asked = match request::parse(&name, query.as_deref().unwrap_or_default()) {
        None => return refuse(StatusCode::NOT_FOUND, "There is no such profile; /debug/pprof/ lists them."),
        Some(Err(sentence)) => return refuse(StatusCode::BAD_REQUEST, &sentence),
        Some(Ok(asked)) => asked,
    };
    let turn = match captures.begin(asked.event, asked.force) {
        Ok(turn) => turn,
        Err(Busy) => {
            return busy("Two captures of this kind run already; force=true ends the oldest of them.");
        }
    };
    let (sender, made) = oneshot::channel();
    let stop = turn.stop.clone();
    // What takes time, symbols and formats too, happens there.
    let work = move || {
        let response = match self::captures::capture(&asked, &stop) {
            Ok(capture) => give(&captures.keep(capture), asked.format),
            Err(error) => failed(&error),
        };
        // A client that went away wants nothing.
        let _ = sender.send(response);
    };
    if let Err(e) = std::thread::Builder::new().name("koltso-capture".to_owned()).spawn(work) {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, &format!("No thread can be started for the capture: {e}."));
    }
    // If this future is dropped, the turn is, and the capture ends.
    let response = made.await;
    drop(turn);
    response.unwrap_or_else(|_| refuse(StatusCode::INTERNAL_SERVER_ERROR, "The capture ended without a result."))
}

fn kept_by(captures: &Captures, query: &str, name: &str) -> Result<Kept, String> {
    let mut ids = query::pairs(query).filter(|(known, _)| *known == name).map(|(_, value)| value);
    let id = ids.next().and_then(|text| text.parse().ok());
    let found = id.and_then(|id: u64| captures.kept().into_iter().find(|kept| kept.id == id));
    found.ok_or_else(|| {
        format!("The parameter {name} is the number of a capture that is kept; /debug/pprof/captures lists them.")
    })
}

async fn diff(State(captures): State<Arc<Captures>>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let pair = kept_by(&captures, &query, "base").and_then(|base| Ok((base, kept_by(&captures, &query, "new")?)));
    match pair {
        Ok((base, new)) if base.capture.event != new.capture.event => {
            refuse(StatusCode::BAD_REQUEST, "The two captures are of different kinds.")
        }
        Ok((base, new)) => {
            let title = format!("Koltso: {}, capture {} against {}", new.capture.event.name(), new.id, base.id);
            Html(page::diff(&base.capture, &new.capture, &title)).into_response()
        }
        Err(sentence) => refuse(StatusCode::BAD_REQUEST, &sentence),
    }
}

/// One capture again, by its number: `captures?id=N&format=…`, or the list of them.
async fn list(State(captures): State<Arc<Captures>>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    if !query.is_empty() {
        return match kept_by(&captures, &query, "id") {
            Ok(kept) => give(&kept, Format::Html),
            Err(sentence) => refuse(StatusCode::BAD_REQUEST, &sentence),
        };
    }
    let mut rows = String::new();
    for kept in captures.kept() {
        let line = format!(
            "{}\t{}\t{:.1} s\t{} samples\n",
            kept.id,
            kept.capture.event.name(),
            kept.capture.duration_ns as f64 / 1e9,
            kept.capture.samples.len()
        );
        rows.push_str(&line);
    }
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], rows).into_response()
}

async fn cmdline() -> Response {
    let arguments: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], arguments.join("\0")).into_response()
}

async fn index(State(captures): State<Arc<Captures>>) -> Response {
    let (_, engine) = cpu_engine();
    let running: Vec<&str> = captures.running().iter().map(|event| event.name()).collect();
    let mut kept = String::new();
    for one in captures.kept().iter().rev() {
        let (id, event) = (one.id, one.capture.event.name());
        let seconds = one.capture.duration_ns as f64 / 1e9;
        kept.push_str(&format!("<li><a href=\"captures?id={id}\">{id}</a> {event}, {seconds:.1} s"));
        let before =
            captures.kept().into_iter().rev().find(|other| other.id < id && other.capture.event == one.capture.event);
        if let Some(base) = before {
            kept.push_str(&format!(", <a href=\"diff?base={}&amp;new={id}\">against {}</a>", base.id, base.id));
        }
        kept.push_str("</li>\n");
    }
    let running = if running.is_empty() { "none".to_owned() } else { running.join(", ") };
    let body = format!(
        include_str!("index.html"),
        engine = page::escaped(&engine),
        running = running,
        kept = if kept.is_empty() { "<li>none yet</li>" } else { &kept },
    );
    Html(body).into_response()
}

/// The routes, to be joined with those of the control plane and behind its guard.
pub fn router() -> Router {
    let wrong = || async {
        let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, "This path knows GET only.");
        response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET"));
        response
    };
    Router::new()
        .route("/debug/pprof/", get(index).fallback(wrong))
        .route("/debug/pprof", get(index).fallback(wrong))
        .route("/debug/pprof/cmdline", get(cmdline).fallback(wrong))
        .route("/debug/pprof/captures", get(list).fallback(wrong))
        .route("/debug/pprof/diff", get(diff).fallback(wrong))
        .route("/debug/pprof/{name}", get(profile).fallback(wrong))
        .with_state(Arc::new(Captures::default()))
}

//! Asks a node for a profile: one request, whose answer comes when the capture is over.
//!
//! Bounds: the answer must come within `--timeout` after the end of the capture, and it has at most
//! [`ANSWER_MAX`] bytes. If the node refuses, its sentence is passed on.

use std::time::Duration;

use super::output::{Form, Output, told};
use super::watch::{Progress, end_on_signals};
use crate::commands::http_client::{BodyError, HttpAnswer, HttpRequest, Patience, Server};
use crate::logging;

const ANSWER_MAX: u64 = 1 << 30;
/// The time allowed for the list of captures, which is short.
const LIST_WITHIN: Duration = Duration::from_secs(10);
const LIST_MAX: u64 = 1 << 20;

/// The capture to ask for.
pub struct Ask {
    /// The node to ask.
    pub server: Server,
    /// What to capture: `cpu`, `heap`, …
    pub event: &'static str,
    /// For how many seconds; `None` asks for what the node has counted since its start.
    pub seconds: Option<u32>,
    /// Samples for each second of a processor's time; `None` for events other than `cpu`.
    pub hz: Option<u32>,
    /// Whether to show the samples over time.
    pub heatmap: bool,
    /// Whether the oldest capture of this kind is ended if there are two already.
    pub force: bool,
    /// The token of the node; `None` if the user gave none.
    pub token: Option<String>,
    /// How long to wait for the answer after the end of the capture.
    pub timeout: Duration,
}

impl Ask {
    /// The path and the query of the request.
    pub fn path(&self, form: Form) -> String {
        let profile = if self.event == "cpu" { "profile" } else { self.event };
        let mut path = match self.heatmap {
            true => format!("/debug/pprof/heatmap?event={}", self.event),
            false => format!("/debug/pprof/{profile}?format={}", form.parameter()),
        };
        if let Some(seconds) = self.seconds {
            path += &format!("&seconds={seconds}");
        }
        if let Some(hz) = self.hz {
            path += &format!("&hz={hz}");
        }
        if self.force {
            path += "&force=true";
        }
        path
    }

    fn request<'a>(&'a self, path: &'a str, within: Duration) -> HttpRequest<'a> {
        let (token, patience) = (self.token.as_deref(), Patience::Whole(within));
        HttpRequest { method: "GET", path, token, body: &[], patience }
    }
}

/// Lets the node capture, and writes what it sends.
///
/// # Errors
/// One sentence that says what went wrong.
pub fn capture(ask: &Ask, form: Form, mut output: Output) -> Result<(), String> {
    let url = &ask.server.url();
    end_on_signals(output.temporary())?;
    let mut progress = Progress::begin(ask.event, url, ask.seconds);
    let within = Duration::from_secs(ask.seconds.unwrap_or(0).into()) + ask.timeout;
    let mut answer = ask.server.ask(&ask.request(&ask.path(form), within)).map_err(|e| e.to_string())?;
    if answer.status != 200 {
        return Err(refused(url, answer));
    }
    let is_page = answer.header("content-type").is_some_and(|kind| kind.starts_with("text/html"));
    let id = answer.header("x-koltso-capture").map(str::to_owned);
    // Each capture has a number, pages included.
    if id.is_none() && is_page {
        return Err(format!("{url} answered with a page and not with a profile: is this a node of Koltso?"));
    }
    if output.temporary().is_none() {
        // The profile and the progress line may go to the same terminal.
        progress.end();
    }
    let bytes = match answer.copy(&mut output, ANSWER_MAX) {
        Ok(bytes) => bytes,
        Err(BodyError::Write(error)) => return output.failure(&error).map_or(Ok(()), Err),
        Err(error) => return Err(format!("{url} broke off: {error}")),
    };
    progress.end();
    let name = output.name();
    output.finish()?;
    let samples = id.as_deref().and_then(|id| samples_of(ask, id));
    logging::say(&told(&name, bytes, samples, id.as_deref()));
    Ok(())
}

/// A sentence for a refusal: the server's own if it is one that knows this path.
fn refused(url: &str, answer: HttpAnswer) -> String {
    let status = answer.status;
    let is_text = answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain"));
    // Servers in Go answer with a text, too, where they know no such path.
    if !is_text || (status == 404 && answer.header("cache-control").is_none()) {
        return format!("{url} answered {status} and does not say why: is this a node of Koltso?");
    }
    let known = (400..500).contains(&status) || status == 501;
    let sentence = if known { answer.sentence() } else { answer.refusal() };
    if sentence.is_empty() { format!("{url} answered {status}") } else { sentence }
}

/// How many samples a capture has, taken from the node's list of captures; `None` if the list does
/// not say.
fn samples_of(ask: &Ask, id: &str) -> Option<u64> {
    let mut answer = ask.server.ask(&ask.request("/debug/pprof/captures", LIST_WITHIN)).ok()?;
    let mut list = Vec::new();
    if answer.status != 200 || answer.copy(&mut list, LIST_MAX).is_err() {
        return None;
    }
    let list = String::from_utf8(list).ok()?;
    let mut fields = list.lines().map(|line| line.split('\t')).find(|fields| fields.clone().next() == Some(id))?;
    fields.find_map(|field| field.strip_suffix(" samples")?.parse().ok())
}

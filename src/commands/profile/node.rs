//! A node is asked for a profile: one request, whose answer comes when the capture is over.
//!
//! Bounds: the answer is here `--timeout` after the capture's time, and has at most [`ANSWER_MAX`] bytes. What a node refuses, it says in
//! one sentence, which is passed on.

use std::time::Duration;

use super::output::{Form, Output, told};
use super::watch::{Progress, end_on_signals};
use crate::commands::http_client::{Answer, BodyError, Patience, Request, Server};

const ANSWER_MAX: u64 = 1 << 30;
/// For the list of captures, which takes no time.
const LIST_WITHIN: Duration = Duration::from_secs(10);
const LIST_MAX: u64 = 1 << 20;

/// What is asked.
pub struct Ask {
    /// The node.
    pub server: Server,
    /// `cpu`, `heap`, …
    pub event: &'static str,
    /// For how long; `None`: what the node has counted.
    pub seconds: Option<u32>,
    /// Samples a second.
    pub hz: Option<u32>,
    /// Over time.
    pub heatmap: bool,
    /// The oldest capture of the kind gives way.
    pub force: bool,
    /// For nodes that want one.
    pub token: Option<String>,
    /// How long to wait after the capture's time.
    pub timeout: Duration,
}

impl Ask {
    /// The path and query.
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

    fn request<'a>(&'a self, path: &'a str, within: Duration) -> Request<'a> {
        let (token, patience) = (self.token.as_deref(), Patience::Whole(within));
        Request { method: "GET", path, token, body: &[], patience }
    }
}

/// Captures, and writes what came.
///
/// # Errors
/// One sentence.
pub fn capture(ask: &Ask, form: Form, mut output: Output) -> Result<(), String> {
    let url = ask.server.url();
    end_on_signals(output.temporary())?;
    let mut progress = Progress::begin(ask.event, url, ask.seconds);
    let within = Duration::from_secs(ask.seconds.unwrap_or(0).into()) + ask.timeout;
    let mut answer = ask.server.ask(&ask.request(&ask.path(form), within)).map_err(|e| e.to_string())?;
    if answer.status != 200 {
        return Err(refused(url, answer));
    }
    let is_page = answer.header("content-type").is_some_and(|kind| kind.starts_with("text/html"));
    let id = answer.header("x-koltso-capture").map(str::to_owned);
    if id.is_none() && is_page && form != Form::Html {
        return Err(format!("{url} answered with a page and not with a profile: is this a node of Koltso?"));
    }
    if output.temporary().is_none() {
        // Both may be the same terminal.
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
    eprintln!("{}", told(&name, bytes, samples, id.as_deref()));
    Ok(())
}

/// What the server says of it, which is a sentence where it knows this path.
fn refused(url: &str, answer: Answer) -> String {
    let status = answer.status;
    let is_text = answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain"));
    if !is_text {
        return format!("{url} answered {status} and does not say why: is this a node of Koltso?");
    }
    let known = (400..500).contains(&status) || status == 501;
    let sentence = if known { answer.sentence() } else { answer.refusal() };
    if sentence.is_empty() { format!("{url} answered {status}") } else { sentence }
}

/// How many samples a capture has, by the node's list of captures; `None` if it does not tell.
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

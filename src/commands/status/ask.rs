//! Asks the nodes of a cluster for their `/status`: those that were named, then all others that
//! these know, each by a thread.
//!
//! Bounds: `within` for each of the two rounds, whatever the nodes do; 4 MiB an answer. A thread
//! that is left over ends by itself when connecting has taken too long.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::commands::http_client::{HttpAnswer, HttpRequest, Patience, Server};
use crate::units::Span;

const STATUS_MAX: u64 = 4 << 20;

/// What a node says of itself, or why it does not.
pub type Said = Result<Value, String>;

/// A node of the cluster, by the name that it has there.
pub struct Asked {
    /// Its URL in the cluster.
    pub node: String,
    /// What it says.
    pub said: Said,
}

/// Whom to ask, and how.
pub struct Asker {
    /// The nodes that were named.
    pub given: Vec<Server>,
    /// Their token.
    pub token: Option<String>,
    /// How long to wait for each.
    pub within: Duration,
}

/// Whether a document is a node's `/status`.
fn is_of_a_node(document: &Value) -> bool {
    ["node", "version", "state"].iter().all(|field| document[field].is_string())
}

fn read(server: &Server, mut answer: HttpAnswer) -> Said {
    let url = server.url();
    let no_node = |status| format!("{url} answered {status} as no node of Koltso does: is this a node of Koltso?");
    if answer.status != 200 {
        let status = answer.status;
        let is_refusal = answer.is_refusal_of_a_node() || status == 401;
        return Err(if is_refusal { format!("{url}: {}", answer.refusal()) } else { no_node(status) });
    }
    let mut text = Vec::new();
    answer.copy(&mut text, STATUS_MAX).map_err(|error| format!("{url} broke off: {error}"))?;
    let document = serde_json::from_slice(&text).ok().filter(is_of_a_node);
    document.ok_or_else(|| no_node(200))
}

impl Asker {
    /// What each of some servers says, in their order.
    fn ask_all(&self, servers: Vec<Server>) -> Vec<Said> {
        let (sender, answers) = mpsc::channel();
        let count = servers.len();
        let late = |server: &Server| Err(format!("{} did not answer in time ({})", server.url(), Span(self.within)));
        let mut said: Vec<Said> = servers.iter().map(late).collect();
        for (number, server) in servers.into_iter().enumerate() {
            let (sender, token, within) = (sender.clone(), self.token.clone(), self.within);
            let ask = move || {
                let patience = Patience::Whole(within);
                let request =
                    HttpRequest { method: "GET", path: "/status", token: token.as_deref(), body: &[], patience };
                let answer = server.ask(&request).map_err(|error| error.to_string());
                let _ = sender.send((number, answer.and_then(|answer| read(&server, answer))));
            };
            if let Err(error) = thread::Builder::new().name("koltso-status".to_owned()).spawn(ask) {
                said[number] = Err(format!("a thread could not be started: {error}"));
            }
        }
        let until = Instant::now() + self.within;
        for _ in 0..count {
            match answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((number, answer)) => said[number] = answer,
                Err(_) => break,
            }
        }
        said
    }

    /// Asks everybody.
    ///
    /// # Errors
    /// Nobody of those that were named answered: what the first of them did instead.
    pub fn ask(&self) -> Result<Vec<Asked>, String> {
        let (mut known, mut first_error) = (Vec::<Asked>::new(), None);
        for said in self.ask_all(self.given.clone()) {
            match said {
                Ok(document) => {
                    let node = document["node"].as_str().unwrap_or_default().to_owned();
                    if known.iter().all(|asked| asked.node != node) {
                        known.push(Asked { node, said: Ok(document) });
                    }
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        if known.is_empty() {
            return Err(first_error.unwrap_or_else(|| "nobody was asked".to_owned()));
        }
        let listed = |asked: &Asked| match &asked.said {
            Ok(document) => document["cluster"]["nodes"].as_array().cloned().unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let mut others: Vec<String> =
            known.iter().flat_map(listed).filter_map(|node| node.as_str().map(str::to_owned)).collect();
        others.sort();
        others.dedup();
        others.retain(|node| known.iter().all(|asked| asked.node != *node));
        let servers = others.iter().filter_map(|node| Server::of(node).ok()).collect();
        for (node, said) in others.into_iter().zip(self.ask_all(servers)) {
            known.push(Asked { node, said });
        }
        known.sort_by(|one, other| one.node.cmp(&other.node));
        Ok(known)
    }
}

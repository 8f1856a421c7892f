//! `/`: what somebody sees who opens the server's address. It says what this is, how the node is,
//! how to store and read, and where to look further: as a page where the client takes one, else as
//! text.
//!
//! It is free for everybody who reaches the listener. So where the other paths are not, it says
//! nothing that `/health` does not. Tested in `tests/command_line/landing.rs`.

use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use koltso_profiling::markup::escaped;

use crate::admin::guard::Guard;

/// The page has no scripts, and leads only to this server.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the page says.
pub struct Home<'a> {
    /// The host of the API, with its port, as the client knows it.
    pub host: &'a str,
    /// The host that was asked, with its port: the API's, or that of the control plane's own
    /// listener.
    pub here: &'a str,
    /// One word for what the node is doing.
    pub state: &'a str,
    /// Who may see the rest.
    pub guard: Guard<'a>,
}

const LINKS: [(&str, &str, &str); 4] = [
    ("/status", "Status", "the node, its cluster and its settings, as JSON"),
    ("/metrics", "Metrics", "for Prometheus"),
    ("/debug/pprof/", "Profiles", "what the processors, the memory and the locks are used for"),
    ("/health", "Health", "200 while the node serves"),
];

/// Whether the client asks for HTML (RFC 9110 section 12.5.1); `*/*` does not.
fn takes_html(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_html = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("text/html"));
        let is_refused = |part: &str| {
            let weight = part.split_once('=').filter(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
            weight.is_some_and(|(_, weight)| weight.trim().parse::<f32>().is_ok_and(|weight| weight == 0.0))
        };
        is_html && !parts.any(is_refused)
    })
}

impl Home<'_> {
    /// The answer to a request with these header lines.
    pub fn answer(&self, headers: &HeaderMap) -> Response {
        const VARY: (HeaderName, &str) = (header::VARY, "Accept");
        if !takes_html(headers) {
            return ([(header::CONTENT_TYPE, "text/plain; charset=utf-8"), VARY], self.text()).into_response();
        }
        let mut response = ([(header::CONTENT_TYPE, "text/html; charset=utf-8"), VARY], self.html()).into_response();
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        response
    }

    fn version(&self) -> &'static str {
        if self.guard == Guard::Open { concat!(" ", env!("CARGO_PKG_VERSION")) } else { "" }
    }

    /// What to know about the links; empty if they are open.
    fn note(&self) -> &'static str {
        match self.guard {
            Guard::Open => "",
            Guard::Token(_) => {
                "Status, metrics and profiles ask for this server's token: any user name, and the token as the password."
            }
            Guard::Closed => {
                "Status, metrics and profiles are closed here: this server listens beyond loopback and has neither a \
                 token for them (--admin-token-file) nor a listener of their own (--admin-listen)."
            }
        }
    }

    /// What to type, and what it does.
    fn commands(&self) -> [(String, &'static str); 4] {
        let entity = format!("'http://{}/v0/entity?id=KEY'", self.host);
        [
            (format!("curl -T FILE {entity}"), "store a file under a key"),
            (format!("curl {entity}"), "read it"),
            (format!("curl -X DELETE {entity}"), "delete it"),
            (format!("curl 'http://{}/v0/entities?start=A'", self.host), "this node's records from a key on"),
        ]
    }

    fn text(&self) -> String {
        let mut text =
            format!("Koltso{}, a distributed key-value server. This node is {}.\n\n", self.version(), self.state);
        let commands = self.commands();
        let width = commands.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
        for (command, what) in commands {
            text.push_str(&format!("  {command:<width$}  {what}\n"));
        }
        text.push('\n');
        for (path, _, what) in LINKS {
            let url = format!("http://{}{path}", self.here);
            text.push_str(&format!("  {url:<width$}  {what}\n"));
        }
        if !self.note().is_empty() {
            text.push_str(&format!("\n{}\n", self.note()));
        }
        text
    }

    fn html(&self) -> String {
        let links = LINKS.map(|(path, name, what)| {
            let is_closed = self.guard == Guard::Closed && path != "/health";
            let (element, link) = if is_closed { ("div", String::new()) } else { ("a", format!(" href=\"{path}\"")) };
            format!("<{element} class=\"card\"{link}><b>{name}</b><span>{what}</span></{element}>\n")
        });
        let commands = self
            .commands()
            .map(|(command, what)| format!("<dt>{}</dt><dd><code>{}</code></dd>\n", escaped(what), escaped(&command)));
        let note = if self.note().is_empty() { String::new() } else { format!("<p>{}</p>", escaped(self.note())) };
        format!(
            include_str!("home.html"),
            version = self.version(),
            state = self.state,
            links = links.concat(),
            note = note,
            commands = commands.concat(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_is_given_where_accept_has_it() {
        let takes = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::ACCEPT, HeaderValue::from_static(line));
            }
            takes_html(&headers)
        };
        for lines in [
            &["text/html"][..],
            &["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"],
            &["application/json", "TEXT/HTML ; charset=utf-8"],
            &["text/html;q=0.1"],
        ] {
            assert!(takes(lines), "{lines:?}");
        }
        for lines in
            [&[][..], &["*/*"], &["text/*"], &["text/html;q=0"], &["text/html; Q=0.000"], &["text/htmlx"], &["a,,;;q"]]
        {
            assert!(!takes(lines), "{lines:?}");
        }
    }

    #[test]
    fn a_host_is_only_text() {
        let home = Home { host: "<b>&'", here: "x", state: "serving", guard: Guard::Closed };
        let html = home.html();
        assert!(html.contains("http://&lt;b&gt;&amp;&#39;/v0/entity") && !html.contains("<b>&"), "{html}");
        assert!(!html.contains("href=\"/status\"") && html.contains("href=\"/health\""), "{html}");
    }
}

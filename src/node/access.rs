//! Who a listener answers: which names it goes by, and which pages in browsers may use it.
//!
//! A listener on loopback trusts whoever reaches it, and any page that a browser on this machine
//! shows can make that browser reach it: under a name of its own that it has pointed at 127.0.0.1
//! (DNS rebinding), or as a request from another site. So such a listener answers only to loopback
//! names, the node's own and those of `--allowed-host`; and every listener refuses what a browser
//! marks `Sec-Fetch-Site: cross-site`, unless `--cors-origin` allows its origin.
//!
//! Pure; the data plane and the control plane ask the same [`Access`]. Tested below and in
//! `tests/http_contract/sites.rs`.

use std::net::{IpAddr, SocketAddr};

use koltso_net::http::host;

use crate::settings::Config;

/// What a listener answers to.
pub struct Access {
    /// In lower case, beside the loopback names; `None` for any name.
    names: Option<Vec<String>>,
    origins: Vec<Origin>,
}

/// An origin whose pages may use the server.
struct Origin {
    text: String,
    /// The header lines of answers to it.
    lines: &'static str,
}

/// Lines of answers to pages of allowed origins, behind the origin.
const EXPOSED: &str = "\r\nVary: Origin\r\nAccess-Control-Expose-Headers: ETag, Accept-Ranges, Content-Range, \
                       Content-Encoding, Retry-After, Koltso-Replicas\r\n";
/// What a server that allows some origin says to everybody else, for the sake of caches.
const VARIES: &str = "Vary: Origin\r\n";
/// The further lines of the answer to a preflight (Fetch section 3.2.3).
pub const PREFLIGHT: &str = "Access-Control-Allow-Methods: GET, HEAD, PUT, DELETE\r\n\
     Access-Control-Allow-Headers: Authorization, Content-Type, Content-Encoding, If-Match, If-None-Match, If-Range, \
     If-Unmodified-Since, Range\r\nAccess-Control-Max-Age: 600\r\n";

/// What a request says about where it comes from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asker<'a> {
    /// The host that is asked, with its port; empty for none.
    pub host: &'a str,
    /// The value of `Origin`.
    pub origin: Option<&'a [u8]>,
    /// The value of `Sec-Fetch-Site`.
    pub site: Option<&'a [u8]>,
}

/// A request that may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Whole header lines for the answer.
    pub lines: &'static str,
    /// Whether a page of an allowed origin asks.
    pub is_allowed_origin: bool,
}

/// Whether only this machine reaches the address.
pub fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Names that every machine gives itself (RFC 6761 section 6.3), and loopback addresses.
fn is_loopback_name(name: &str) -> bool {
    if name == "127.0.0.1" || name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let local = name.len() > 10 && name.as_bytes()[name.len() - 10..].eq_ignore_ascii_case(b".localhost");
    local
        || name.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

impl Access {
    /// Of a listener at `address`.
    pub fn new(config: &Config, address: SocketAddr) -> Self {
        let names =
            is_loopback(address).then(|| config.own_hosts.iter().chain(&config.allowed_hosts).cloned().collect());
        // Once for each listener of the process, so that an answer only copies them.
        let lines = |origin: &String| &*format!("Access-Control-Allow-Origin: {origin}{EXPOSED}").leak();
        let origin = |text: &String| Origin { text: text.clone(), lines: lines(text) };
        Self { names, origins: config.cors_origins.iter().map(origin).collect() }
    }

    /// Whether the request may be answered.
    ///
    /// # Errors
    /// The sentence of a `403`.
    #[inline]
    pub fn judge(&self, asker: &Asker<'_>) -> Result<Admission, String> {
        let name = host::name(asker.host);
        if let Some(names) = &self.names
            && !(is_loopback_name(name) || self.is_of(names, name))
        {
            return Err(wrong_name(name));
        }
        if self.origins.is_empty() && asker.site.is_none() {
            return Ok(Admission { lines: "", is_allowed_origin: false });
        }
        self.judge_site(asker)
    }

    fn is_of(&self, names: &[String], name: &str) -> bool {
        name.is_empty() || names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    #[cold]
    fn judge_site(&self, asker: &Asker<'_>) -> Result<Admission, String> {
        let allowed = asker
            .origin
            .and_then(|asking| self.origins.iter().find(|origin| origin.text.as_bytes().eq_ignore_ascii_case(asking)));
        if let Some(origin) = allowed {
            return Ok(Admission { lines: origin.lines, is_allowed_origin: true });
        }
        if asker.site.is_some_and(|site| site.eq_ignore_ascii_case(b"cross-site")) {
            return Err(
                "The request comes from a page of another site, whose origin --cors-origin does not allow.".to_owned()
            );
        }
        Ok(Admission { lines: if self.origins.is_empty() { "" } else { VARIES }, is_allowed_origin: false })
    }
}

#[cold]
fn wrong_name(name: &str) -> String {
    let name: String = name.chars().take(100).collect();
    format!("This server listens on loopback and does not go by the name {name}; --allowed-host adds one.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(names: Option<&[&str]>, origins: &[&str]) -> Access {
        let names = names.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        let origin = |text: &&str| Origin { text: (*text).to_owned(), lines: "X: y\r\n" };
        Access { names, origins: origins.iter().map(origin).collect() }
    }

    #[test]
    fn a_listener_on_loopback_answers_to_its_names_only() {
        let access = access(Some(&["node1.example"]), &[]);
        let may = |host| access.judge(&Asker { host, ..Asker::default() }).is_ok();
        for host in [
            "",
            "localhost",
            "LocalHost:1337",
            "localhost.",
            "a.localhost",
            "127.0.0.1:80",
            "127.9.8.7",
            "[::1]",
            "[::1]:1",
            "[::ffff:127.0.0.1]",
            "node1.example:1337",
            "NODE1.example",
        ] {
            assert!(may(host), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]",
            "evillocalhost",
            ".localhost",
            "0.0.0.0",
            "node1.example.evil",
            "127.1.evil",
        ] {
            assert!(!may(host), "{host}");
        }
    }

    #[test]
    fn pages_of_other_sites_need_an_allowed_origin() {
        let asker = |origin, site| Asker { host: "a.example", origin, site };
        let cross = Some(&b"cross-site"[..]);
        let page = Some(&b"https://page.example"[..]);
        let closed = access(None, &[]);
        assert!(closed.judge(&asker(None, cross)).is_err() && closed.judge(&asker(page, cross)).is_err());
        assert_eq!(closed.judge(&asker(page, Some(b"same-origin"))).map(|admission| admission.lines), Ok(""));
        let open = access(None, &["https://page.example"]);
        assert_eq!(open.judge(&asker(page, cross)), Ok(Admission { lines: "X: y\r\n", is_allowed_origin: true }));
        assert_eq!(open.judge(&asker(None, None)), Ok(Admission { lines: VARIES, is_allowed_origin: false }));
        assert!(open.judge(&asker(Some(b"https://evil.example"), cross)).is_err());
        assert!(open.judge(&asker(Some(b"null"), cross)).is_err());
    }
}

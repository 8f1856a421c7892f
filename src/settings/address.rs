//! Hosts, ports and URLs, in the one spelling that this program writes.
//!
//! Parsing asks nobody; only [`HostPort::resolve`] and [`resolve`] look a name up, and they block.

use std::fmt;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

/// The host of a URL or of an address, in lower case, and the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

impl HostPort {
    /// `None` for anything but HOST:PORT. Port 0 is one: who listens there gets any free port.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits)?;
        let host = if let Some(inner) = host.strip_prefix('[') {
            format!("[{}]", inner.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?)
        } else {
            let valid = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            if host.is_empty() || !host.bytes().all(valid) {
                return None;
            }
            host.to_ascii_lowercase()
        };
        Some(Self { host, port })
    }

    /// As [`HostPort::parse`], of an address that somebody can connect to, so not of port 0.
    pub fn parse_peer(text: &str) -> Option<Self> {
        Self::parse(text).filter(|address| address.port > 0)
    }

    /// The host and port of a URL without a path, whose scheme is `http` or left out.
    pub fn parse_url(url: &str) -> Option<Self> {
        let rest = match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return None,
            None => url,
        };
        Self::parse_peer(rest.strip_suffix('/').unwrap_or(rest))
    }

    pub fn url(&self) -> String {
        format!("http://{self}")
    }

    /// The address, if the host is one in digits.
    pub fn in_digits(&self) -> Option<SocketAddr> {
        self.to_string().parse().ok()
    }

    /// The address, where nobody else has a say in it: in digits, or `localhost`.
    pub fn known(&self) -> Option<SocketAddr> {
        if self.host == "localhost" { self.resolve().ok() } else { self.in_digits() }
    }

    /// Whether the host can be a name at all (RFC 1035 section 2.3.4).
    pub fn can_be_resolved(&self) -> bool {
        let name = self.host.strip_suffix('.').unwrap_or(&self.host);
        self.host.starts_with('[') || (name.len() <= 253 && name.split('.').all(|label| matches!(label.len(), 1..=63)))
    }

    /// Where it leads now. Blocks.
    pub fn resolve(&self) -> io::Result<SocketAddr> {
        first_of(&self.to_string())
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Where HOST:PORT leads. An IPv6 address may have a scope here (`[fe80::1%2]:1337`).
pub fn resolve(text: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_str(text).or_else(|_| first_of(text))
}

fn first_of(text: &str) -> io::Result<SocketAddr> {
    let mut found = text.to_socket_addrs()?;
    found.next().ok_or_else(|| io::Error::other("the name has no address"))
}

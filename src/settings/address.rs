//! Hosts, ports and URLs: one grammar wherever the program reads one, and one spelling that it
//! writes.
//!
//! `[http://]HOST:PORT[/]`. Whatever a person may have meant beyond that is refused with what is
//! missing or too much, so that the same text is never taken for one thing here and for another
//! there: a URL without a port would mean 80 to some programs and 1337 to others.
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
    /// Reads an address to listen at. Port 0 is one: who listens there gets any free port.
    ///
    /// # Errors
    /// What is missing or too much, as a clause.
    pub fn read(text: &str) -> Result<Self, String> {
        let (host, port) = split(authority(text)?)?;
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        let wrong = || format!("the port {port} is not a number up to 65535");
        let port = port.parse().ok().filter(|_| digits).ok_or_else(wrong)?;
        Ok(Self { host: host_of(host)?, port })
    }

    /// Reads the address of somebody to whom one can connect, so not port 0.
    ///
    /// # Errors
    /// As [`HostPort::read`].
    pub fn read_peer(text: &str) -> Result<Self, String> {
        let address = Self::read(text)?;
        if address.port == 0 { Err("nobody can connect to port 0".to_owned()) } else { Ok(address) }
    }

    /// As [`HostPort::read`], where nobody asks what is wrong.
    pub fn parse(text: &str) -> Option<Self> {
        Self::read(text).ok()
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

/// HOST:PORT of a URL or of an address.
fn authority(text: &str) -> Result<&str, String> {
    let rest = match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => {
            return Err("TLS is not built into this version, so it begins with http://".to_owned());
        }
        Some(_) => return Err("it begins with http:// or with the host".to_owned()),
        None => text,
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.contains('@') {
        return Err("it has to be without a user".to_owned());
    }
    match path {
        "" | "/" => Ok(authority),
        _ => Err("it has to be without a path".to_owned()),
    }
}

fn split(authority: &str) -> Result<(&str, &str), String> {
    let example = |host: &str| format!("its port is missing, as in {host}:1337");
    match authority.rsplit_once(':') {
        _ if authority.is_empty() => Err("its host and port are missing".to_owned()),
        Some(("", _)) => {
            Err("its host is missing: 127.0.0.1 is this machine alone, 0.0.0.0 listens to all its networks".to_owned())
        }
        Some((host, _)) if host.contains(':') && !host.starts_with('[') => {
            Err("an IPv6 address stands in brackets, as in [::1]:1337".to_owned())
        }
        Some((host, "")) => Err(example(host)),
        Some((host, port)) if !port.contains(']') => Ok((host, port)),
        _ => Err(example(authority)),
    }
}

fn host_of(host: &str) -> Result<String, String> {
    if let Some(inner) = host.strip_prefix('[') {
        let address = inner.strip_suffix(']').and_then(|inner| inner.parse::<Ipv6Addr>().ok());
        return address.map(|address| format!("[{address}]")).ok_or_else(|| format!("{host} is no IPv6 address"));
    }
    let valid = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    if host.bytes().all(valid) {
        Ok(host.to_ascii_lowercase())
    } else {
        Err("its host has a character that no name has".to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_grammar_and_one_spelling() {
        for (text, url) in [
            ("127.0.0.1:1337", "http://127.0.0.1:1337"),
            ("http://127.0.0.1:1337/", "http://127.0.0.1:1337"),
            ("HTTP://DB.Example:80", "http://db.example:80"),
            ("localhost:1", "http://localhost:1"),
            ("[::1]:1337", "http://[::1]:1337"),
            ("http://[0:0::1]:1337", "http://[::1]:1337"),
        ] {
            assert_eq!(HostPort::read_peer(text).map(|address| address.url()), Ok(url.to_owned()), "{text}");
        }
        assert_eq!(HostPort::read("a:0").map(|address| address.port), Ok(0));
    }

    #[test]
    fn what_is_missing_or_too_much_is_said() {
        for (text, why) in [
            ("https://a:1", "TLS is not built into this version"),
            ("ftp://a:1", "http://"),
            ("", "host and port are missing"),
            ("http://", "host and port are missing"),
            ("a", "as in a:1337"),
            ("http://127.0.0.1", "as in 127.0.0.1:1337"),
            ("http://a:", "as in a:1337"),
            ("[::1]", "as in [::1]:1337"),
            (":1337", "host is missing"),
            ("http://:1337", "host is missing"),
            ("::1", "brackets"),
            ("::1:1337", "brackets"),
            ("[::g]:1", "no IPv6 address"),
            ("[::1:1", "no IPv6 address"),
            ("a:70000", "port 70000"),
            ("a:+1", "port +1"),
            ("a:b", "port b"),
            ("a:0", "port 0"),
            ("http://a:1/v0", "without a path"),
            ("a:1?x", "without a path"),
            ("http://me:secret@a:1", "without a user"),
            ("a b:1", "a character"),
            ("a,b:1", "a character"),
        ] {
            let said = HostPort::read_peer(text).expect_err(text);
            assert!(said.contains(why) && !said.contains("secret"), "{text}: {said}");
        }
    }
}

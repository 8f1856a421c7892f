//! The grammars of addresses, URLs and names of hosts, and of lists of them; `address.rs` has the
//! one spelling below them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::marker::PhantomData;

use koltso_net::http::host;
use toml::de::DeValue;

use super::address::HostPort;
use super::grammar::{Allowed, Grammar};

/// HOST:PORT, to listen at. An IPv6 address may have a scope here (`[fe80::1%2]:1337`).
pub struct Address;

impl Allowed for Address {
    fn allowed(&self) -> String {
        "HOST:PORT such as 127.0.0.1:1337".to_owned()
    }
}

impl Grammar for Address {
    type Value = String;

    fn parse(&self, text: &OsStr) -> Result<String, String> {
        let text = text.to_str().ok_or_else(|| self.refused())?;
        if text.parse::<std::net::SocketAddr>().is_ok() {
            return Ok(text.to_owned());
        }
        HostPort::read(text).map(|address| address.to_string()).map_err(|why| format!("{}: {why}", self.refused()))
    }
}

/// The URL of a node.
pub struct Url;

impl Allowed for Url {
    fn allowed(&self) -> String {
        "a URL such as http://127.0.0.1:1337".to_owned()
    }
}

impl Grammar for Url {
    type Value = HostPort;

    fn parse(&self, text: &OsStr) -> Result<HostPort, String> {
        let text = text.to_str().ok_or_else(|| self.refused())?;
        HostPort::read_peer(text).map_err(|why| format!("{}: {why}", self.refused()))
    }
}

/// The URLs of nodes, with commas between them; in the file also a list. The value has them by URL,
/// so sorted and without doubles: the same on every node, whatever order it was given.
pub struct Urls {
    /// The most URLs.
    pub most: usize,
}

impl Allowed for Urls {
    fn allowed(&self) -> String {
        "a list of URLs such as http://a:1337,http://b:1337".to_owned()
    }

    fn of_unquoted(&self, value: &DeValue<'_>) -> Option<String> {
        let urls: Option<Vec<&str>> = value.as_array()?.iter().map(|item| item.get_ref().as_str()).collect();
        Some(urls?.join(","))
    }
}

impl Grammar for Urls {
    type Value = BTreeMap<String, HostPort>;

    fn parse(&self, text: &OsStr) -> Result<Self::Value, String> {
        let text = text.to_str().ok_or_else(|| self.refused())?;
        let mut nodes = BTreeMap::new();
        for item in text.split(',').map(str::trim) {
            let shown = super::said::shortened(&format!("{item:?}"));
            let node =
                Url.parse(OsStr::new(item)).map_err(|refusal| format!("is no list of URLs: {shown} {refusal}"))?;
            if nodes.insert(node.url(), node).is_some() {
                return Err(format!("names {item} twice"));
            }
        }
        if nodes.len() > self.most {
            return Err(format!("has {} nodes, and a cluster has 1 to {}", nodes.len(), self.most));
        }
        Ok(nodes)
    }
}

/// What a list has as its items, in the one spelling that is compared.
pub trait Item: Sync {
    /// What one is, with an example.
    const ALLOWED: &'static str;

    /// One item, in lower case; `None` if the text is none.
    fn parse(text: &str) -> Option<String>;
}

/// The name of a host, without a port.
pub struct HostName;

impl Item for HostName {
    const ALLOWED: &'static str = "a list of names such as db.example,10.0.0.1, without ports";

    fn parse(text: &str) -> Option<String> {
        let valid = !text.is_empty() && host::is_valid(text.as_bytes()) && host::name(text) == text;
        valid.then(|| text.to_ascii_lowercase())
    }
}

/// The origin of a page: a scheme, a host, and a port if it is not the scheme's own.
pub struct PageOrigin;

impl Item for PageOrigin {
    const ALLOWED: &'static str = "a list of origins such as https://console.example,http://localhost:8080";

    fn parse(text: &str) -> Option<String> {
        let (scheme, authority) = text.split_once("://")?;
        let of_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        let valid = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(of_scheme)
            && !host::name(authority).is_empty()
            && host::is_valid(authority.as_bytes());
        valid.then(|| text.to_ascii_lowercase())
    }
}

/// Items with commas between them; in the file also a list.
pub struct ListOf<I>(pub PhantomData<fn() -> I>);

impl<I: Item> Allowed for ListOf<I> {
    fn allowed(&self) -> String {
        I::ALLOWED.to_owned()
    }

    fn of_unquoted(&self, value: &DeValue<'_>) -> Option<String> {
        let items: Option<Vec<&str>> = value.as_array()?.iter().map(|item| item.get_ref().as_str()).collect();
        Some(items?.join(","))
    }
}

impl<I: Item> Grammar for ListOf<I> {
    type Value = Vec<String>;

    fn parse(&self, text: &OsStr) -> Result<Self::Value, String> {
        let items = text.to_str().and_then(|text| text.split(',').map(|item| I::parse(item.trim())).collect());
        items.ok_or_else(|| self.refused())
    }
}

#[cfg(test)]
mod tests {
    use super::super::grammar::AnyGrammar as _;
    use super::*;

    #[test]
    fn lists_of_hosts_and_origins_are_in_lower_case_and_have_nothing_behind_them() {
        let hosts = ListOf::<HostName>(PhantomData);
        assert_eq!(hosts.parse(OsStr::new("A.example, [::1]")), Ok(vec!["a.example".to_owned(), "[::1]".to_owned()]));
        for text in ["", "a:1", "a/b", "a,", "u@h"] {
            assert!(hosts.check(OsStr::new(text)).is_err(), "{text:?}");
        }
        let origins = ListOf::<PageOrigin>(PhantomData);
        assert_eq!(origins.parse(OsStr::new("HTTPS://A.example:8")), Ok(vec!["https://a.example:8".to_owned()]));
        for text in ["", "*", "null", "a.example", "https://", "https://a/", "https://a,", "://a", "https://a\r\nX: y"]
        {
            assert!(origins.check(OsStr::new(text)).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_list_of_urls_has_no_order_and_no_doubles() {
        let urls = Urls { most: 3 };
        let keys = |text: &str| urls.parse(OsStr::new(text)).map(|nodes| nodes.into_keys().collect::<Vec<_>>());
        let sorted = vec!["http://a:1".to_owned(), "http://b:2".to_owned()];
        assert_eq!(keys("HTTP://B:2/, a:01"), Ok(sorted));
        assert!(keys("a:1,a:1/").is_err_and(|why| why.contains("twice")));
        assert!(keys("a:1,b:1,c:1,d:1").is_err_and(|why| why.contains("4 nodes")));
        assert!(keys("a:1,").is_err_and(|why| why.contains("\"\" is not a URL")));
    }
}

//! Who has how many connections, so that one address cannot take all of them.
//!
//! An IPv4 address counts by itself, an IPv6 address with its /64, since whoever has one of these
//! addresses usually has them all (RFC 6177).
//!
//! Owner: [`Shared`](super::Shared), for all cores; touched at accept and at the end of a
//! connection, never for a request. Bound: an entry for each address that has a connection.
//!
//! Tested below and in `tests/addresses.rs`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use koltso_instrument::Mutex;

/// Where connections come from, as far as they count together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// One address.
    V4(Ipv4Addr),
    /// A /64, by its first address.
    V6(Ipv6Addr),
}

impl Origin {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        }
    }

    /// Whether it is this machine.
    pub(crate) const fn is_loopback(self) -> bool {
        match self {
            Self::V4(address) => address.is_loopback(),
            // The /64 of `::1`, in which there is nobody else.
            Self::V6(first) => first.is_unspecified(),
        }
    }
}

/// How many connections there may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Those of all cores together.
    pub(crate) max: usize,
    /// Where the connection comes from, and how many may come from there; `None` for any number.
    pub(crate) of_origin: Option<(Origin, usize)>,
}

/// There are too many connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// In all.
    All,
    /// From where this one comes.
    Origin,
}

/// The connections of each origin.
#[derive(Debug)]
pub(super) struct Addresses(Mutex<HashMap<Origin, usize>>);

impl Addresses {
    pub(super) fn new() -> Self {
        Self(Mutex::new(&"connections by address", HashMap::new()))
    }

    /// Counts a connection and returns `true`, unless its origin has `max` already.
    pub(super) fn enter(&self, origin: Origin, max: usize) -> bool {
        let mut counts = self.0.lock();
        let count = counts.get(&origin).copied().unwrap_or(0);
        if count >= max {
            return false;
        }
        counts.insert(origin, count + 1);
        true
    }

    pub(super) fn leave(&self, origin: Origin) {
        if let Entry::Occupied(mut count) = self.0.lock().entry(origin) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        Origin::of(text.parse().expect("an address"))
    }

    #[test]
    fn an_ipv4_address_counts_alone_and_an_ipv6_address_with_its_64() {
        assert_eq!(origin("10.0.0.1"), origin("::ffff:10.0.0.1"));
        assert_ne!(origin("10.0.0.1"), origin("10.0.0.2"));
        assert_eq!(origin("2001:db8:0:1::1"), origin("2001:db8:0:1:ffff::2"));
        assert_ne!(origin("2001:db8:0:1::1"), origin("2001:db8:0:2::1"));
        for (text, is_loopback) in [("127.0.0.1", true), ("127.9.8.7", true), ("::1", true), ("::ffff:127.0.0.1", true)]
            .into_iter()
            .chain([("10.0.0.1", false), ("2001:db8::1", false), ("fe80::1", false)])
        {
            assert_eq!(origin(text).is_loopback(), is_loopback, "{text}");
        }
    }

    #[test]
    fn places_come_back_and_no_empty_entry_is_kept() {
        let addresses = Addresses::new();
        let (a, b) = (origin("10.0.0.1"), origin("10.0.0.2"));
        assert!(addresses.enter(a, 2) && addresses.enter(a, 2) && !addresses.enter(a, 2));
        assert!(addresses.enter(b, 2) && !addresses.enter(b, 0));
        addresses.leave(a);
        assert!(addresses.enter(a, 2));
        for origin in [a, a, b] {
            addresses.leave(origin);
        }
        assert!(addresses.0.lock().is_empty());
    }
}

//! What all nodes of a cluster know, and strangers do not.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// None, one, or two while one takes the other's place: a node proves that it knows the first, and
/// believes a peer that knows any of them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets(Vec<Vec<u8>>);

impl Secrets {
    /// The first is used, all are accepted.
    #[must_use]
    pub const fn new(secrets: Vec<Vec<u8>>) -> Self {
        Self(secrets)
    }

    /// Whether there is none: nothing is proven then.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tag of a text by the secret that is used.
    pub(super) fn tag(&self, parts: &[&[u8]]) -> [u8; 32] {
        mac(self.0.first().map_or(&[], Vec::as_slice), parts).finalize().into_bytes().into()
    }

    /// Whether a tag is one of the text by any of the secrets. Takes the same time for each tag that is not.
    pub(super) fn accept(&self, parts: &[&[u8]], tag: &[u8]) -> bool {
        let is_by = |secret: &[u8]| mac(secret, parts).verify_slice(tag).is_ok();
        if self.0.is_empty() { is_by(&[]) } else { self.0.iter().any(|secret| is_by(secret)) }
    }
}

fn mac(secret: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key may have any length");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // They must not be in any log.
        write!(f, "{} secrets", self.0.len())
    }
}

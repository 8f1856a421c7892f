//! What a record carries beside its value, such as its content type.
//!
//! ```text
//! attribute:  u8 kind    u8 length    bytes
//! ```
//!
//! Attributes stand one after the other, in ascending order of their kinds, each kind once. A kind
//! that a build does not know is kept as it is. Bounds: [`ATTRIBUTE_MAX`] bytes an attribute,
//! [`ATTRIBUTES_MAX`] all together.

/// The most bytes of one attribute, without kind and length.
pub const ATTRIBUTE_MAX: usize = 127;
/// The most bytes of a record's attributes, kinds and lengths included.
pub const ATTRIBUTES_MAX: usize = 1024;

/// The kinds that have a meaning. Kinds are never given a second meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Attribute {
    /// The media type of the value (RFC 9110 section 8.3), as the client sent it.
    ContentType = 1,
    /// The codings of the value (RFC 9110 section 8.4), as the client sent them.
    ContentEncoding = 2,
}

/// Why bytes are no attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttributeError {
    /// More than [`ATTRIBUTES_MAX`] bytes.
    #[error("the attributes have {0} bytes, and a record has at most {ATTRIBUTES_MAX}")]
    TooLong(usize),
    /// An attribute that ends behind the bytes, or is longer than [`ATTRIBUTE_MAX`].
    #[error("an attribute of kind {0} has a length that does not fit")]
    Length(u8),
    /// A kind twice, or out of order.
    #[error("an attribute of kind {0} is not in ascending order of kinds")]
    Order(u8),
}

/// A record's attributes, checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Checks bytes from outside.
    ///
    /// # Errors
    /// See [`AttributeError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, AttributeError> {
        if bytes.len() > ATTRIBUTES_MAX {
            return Err(AttributeError::TooLong(bytes.len()));
        }
        let mut rest = bytes;
        let mut last = None;
        while let Some((&kind, behind)) = rest.split_first() {
            if last.is_some_and(|last| last >= kind) {
                return Err(AttributeError::Order(kind));
            }
            let (&len, behind) = behind.split_first().ok_or(AttributeError::Length(kind))?;
            let len = usize::from(len);
            if len > ATTRIBUTE_MAX || len > behind.len() {
                return Err(AttributeError::Length(kind));
            }
            rest = &behind[len..];
            last = Some(kind);
        }
        Ok(Self(bytes))
    }

    /// Kind and bytes of each attribute, those of unknown kinds included.
    pub fn iter(self) -> impl Iterator<Item = (u8, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (&[kind, len], behind) = rest.split_first_chunk::<2>()?;
            let (bytes, behind) = behind.split_at_checked(usize::from(len))?;
            rest = behind;
            Some((kind, bytes))
        })
    }

    /// The bytes of an attribute, if the record has it.
    #[must_use]
    pub fn get(self, attribute: Attribute) -> Option<&'a [u8]> {
        self.iter().find(|(kind, _)| *kind == attribute as u8).map(|(_, bytes)| bytes)
    }
}

/// Appends an attribute; attributes are appended in ascending order of their kinds.
///
/// # Panics
/// If it is longer than [`ATTRIBUTE_MAX`]: the caller has checked.
pub fn encode_attribute(out: &mut Vec<u8>, attribute: Attribute, bytes: &[u8]) {
    assert!(bytes.len() <= ATTRIBUTE_MAX, "an attribute has at most {ATTRIBUTE_MAX} bytes, not {}", bytes.len());
    out.push(attribute as u8);
    out.push(bytes.len() as u8);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_read_back_and_unknown_kinds_stay() {
        let mut bytes = Vec::new();
        encode_attribute(&mut bytes, Attribute::ContentType, b"text/plain");
        encode_attribute(&mut bytes, Attribute::ContentEncoding, b"");
        bytes.extend_from_slice(&[200, 2, 7, 7]);
        let attributes = Attributes::parse(&bytes).expect("well formed");
        assert_eq!(attributes.get(Attribute::ContentType), Some(&b"text/plain"[..]));
        assert_eq!(attributes.get(Attribute::ContentEncoding), Some(&b""[..]));
        assert_eq!(attributes.iter().last(), Some((200, &[7, 7][..])));
        assert_eq!(Attributes::default().get(Attribute::ContentType), None);
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let refused = |bytes: &[u8]| Attributes::parse(bytes).expect_err("malformed");
        assert_eq!(refused(&[1]), AttributeError::Length(1));
        assert_eq!(refused(&[1, 2, 0]), AttributeError::Length(1));
        assert_eq!(refused(&[1, 128]), AttributeError::Length(1));
        assert_eq!(refused(&[2, 0, 1, 0]), AttributeError::Order(1));
        assert_eq!(refused(&[1, 0, 1, 0]), AttributeError::Order(1));
        assert_eq!(refused(&[0; ATTRIBUTES_MAX + 1]), AttributeError::TooLong(ATTRIBUTES_MAX + 1));
    }
}

//! Who may see the control plane.
//!
//! A token that is configured (`--admin-token-file`) is always needed, on loopback too. Without one
//! a listener is open if only this machine reaches it or if it is the control plane's own
//! (`--admin-listen`), and closed otherwise.
//!
//! A token comes in the one line `Authorization`, as `Bearer TOKEN` or, so that a browser can ask a
//! person for it, as the password of `Basic` with any user name (RFC 6750, RFC 7617). It is never
//! taken from a URL, which ends up in histories and logs. Its comparison takes the same time
//! whatever was given. What was given is repeated nowhere.
//!
//! Pure. Tested below and in `tests/command_line/tokens.rs`.

use std::hint::black_box;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;

use crate::admin::refusal::refuse;
use crate::node::access::is_loopback;
use crate::settings::Config;

/// What a browser may ask a person for, and what a program sends. RFC 9110 section 11.6.1 advises
/// against both in one line, which some browsers cannot read. The first is what browsers choose.
const CHALLENGES: [&str; 2] = ["Basic realm=\"Koltso\", charset=\"UTF-8\"", "Bearer realm=\"Koltso\""];

/// Who a listener of the control plane answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard<'a> {
    /// Everybody who reaches it.
    Open,
    /// Whoever has this token.
    Token(&'a [u8]),
    /// Nobody.
    Closed,
}

impl<'a> Guard<'a> {
    /// Of the API's listener or, if `is_dedicated`, of the control plane's own.
    pub fn of(config: &'a Config, is_dedicated: bool) -> Self {
        match &config.admin_token {
            Some(token) => Self::Token(token.as_bytes()),
            None if is_dedicated || is_loopback(config.listen) => Self::Open,
            None => Self::Closed,
        }
    }

    /// Whether a request with these header lines may be answered.
    ///
    /// # Errors
    /// The refusal, if it may not.
    pub fn admit(self, headers: &HeaderMap) -> Result<(), Box<Response>> {
        let token = match self {
            Self::Open => return Ok(()),
            Self::Token(token) => token,
            Self::Closed => {
                let sentence =
                    "This server listens beyond loopback, so this path needs --admin-token-file or --admin-listen.";
                return Err(Box::new(refuse(StatusCode::FORBIDDEN, sentence)));
            }
        };
        let mut lines = headers.get_all(header::AUTHORIZATION).iter().map(HeaderValue::as_bytes);
        let sentence = match (lines.next(), lines.next()) {
            (None, _) => {
                "This path needs the token: send Authorization: Bearer TOKEN, or the token as a password with any user name."
            }
            (Some(line), None) if given(line).is_some_and(|given| is_same(&given, token)) => return Ok(()),
            (Some(_), None) => "The token is not the one of this server.",
            // As the data plane refuses it.
            (Some(_), Some(_)) => {
                let sentence = "The request has more than one Authorization header.";
                return Err(Box::new(refuse(StatusCode::BAD_REQUEST, sentence)));
            }
        };
        let mut response = refuse(StatusCode::UNAUTHORIZED, sentence);
        for challenge in CHALLENGES {
            response.headers_mut().append(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        Err(Box::new(response))
    }
}

/// The token in a line `Authorization`; `None` if there is none in it.
fn given(line: &[u8]) -> Option<Vec<u8>> {
    let at = line.iter().position(|byte| *byte == b' ')?;
    let (scheme, credentials) = (&line[..at], line[at..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"Bearer") {
        return Some(credentials.to_vec());
    }
    if !scheme.eq_ignore_ascii_case(b"Basic") {
        return None;
    }
    let decoded = from_base64(credentials)?;
    // The user name ends at the first colon; the password may have more of them.
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some(decoded[colon + 1..].to_vec())
}

/// Decodes base64 (RFC 4648 section 4), with or without its padding; `None` if it is anything else.
fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    let digits = &text[..text.len() - padding];
    if padding > 2 || padding > 0 && !text.len().is_multiple_of(4) || digits.len() % 4 == 1 {
        return None;
    }
    let mut decoded = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (bits, count) = (bits << 6 | u32::from(value), count + 6);
        if count >= 8 {
            count -= 8;
            decoded.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(decoded)
}

/// Compares all of `given` with the token, whatever differs, so that the time taken reveals neither
/// where the first difference is nor how long the token is.
fn is_same(given: &[u8], token: &[u8]) -> bool {
    let mut difference = usize::from(given.len() != token.len());
    for (at, byte) in given.iter().enumerate() {
        difference |= black_box(usize::from(byte ^ token[at % token.len()]));
    }
    difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "correct:horse battery";

    fn status(lines: &[&[u8]]) -> u16 {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::AUTHORIZATION, HeaderValue::from_bytes(line).expect("a value"));
        }
        Guard::Token(TOKEN.as_bytes()).admit(&headers).map_or_else(|refusal| refusal.status().as_u16(), |()| 200)
    }

    #[test]
    fn the_token_comes_as_bearer_or_as_a_password() {
        for line in [
            "Bearer correct:horse battery",
            "bearer correct:horse battery",
            "BEARER   correct:horse battery",
            "Basic YW55Ym9keTpjb3JyZWN0OmhvcnNlIGJhdHRlcnk=",
            "basic YW55Ym9keTpjb3JyZWN0OmhvcnNlIGJhdHRlcnk",
            "Basic OmNvcnJlY3Q6aG9yc2UgYmF0dGVyeQ==",
        ] {
            assert_eq!(status(&[line.as_bytes()]), 200, "{line}");
        }
        for line in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer correct:horse batterx",
            "Bearer correct:horse battery2",
            "Bearer correct:horse batter",
            "Bearer CORRECT:HORSE BATTERY",
            "Bearer correct:horse batterycorrect:horse battery",
            "Bearer horse battery",
            "Token correct:horse battery",
            "correct:horse battery",
            "Basic Y29ycmVjdDpob3JzZSBiYXR0ZXJ5",
            "Basic",
            "Basic ",
            "Basic ====",
            "Basic YW55Ym9keTpjb3JyZWN0OmhvcnNlIGJhdHRlcnk==",
            "Basic YW55Ym9keTpjb3JyZWN0OmhvcnNlIGJhdHRlcnk= x",
            "Basic %%%",
            "Basic Y",
        ] {
            assert_eq!(status(&[line.as_bytes()]), 401, "{line}");
        }
        assert_eq!(status(&[b"Bearer \xFF\xFE"]), 401);
        let right = b"Bearer correct:horse battery";
        assert_eq!((status(&[]), status(&[right, right]), status(&[b"Bearer x", right])), (401, 400, 400));
    }

    #[test]
    fn base64_is_read_as_it_was_written() {
        for (text, bytes) in
            [("", ""), ("Zg==", "f"), ("Zg", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmE=", "fooba")]
        {
            assert_eq!(from_base64(text.as_bytes()).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!(from_base64(b"+/+/").as_deref(), Some(&[0xFB, 0xFF, 0xBF][..]));
        for text in ["=", "Zg=", "Z", "Zg===", "Zm9vY", "Z g=", "Zg==Zg==", "-_-_"] {
            assert_eq!(from_base64(text.as_bytes()), None, "{text}");
        }
    }
}

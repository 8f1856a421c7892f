//! The header lines that answers of the control plane share.

use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// What a page that this server made may do: nothing but run what is inside it. Others may not show
/// it in a frame.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                           base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// The policy of whatever is no page.
const POLICY: &str = "default-src 'none'; frame-ancestors 'none'";

/// Adds whole header lines, as the data plane keeps them.
pub fn add_lines(headers: &mut HeaderMap, lines: &'static str) {
    for (name, value) in lines.lines().filter_map(|line| line.split_once(": ")) {
        if let (Ok(name), value) = (HeaderName::try_from(name), HeaderValue::from_static(value)) {
            headers.insert(name, value);
        }
    }
}

/// Adds what every answer has: it is not stored, it is what it says it is, and it may do no more in
/// a browser than it needs to. A page that needs more has set its own policy before.
pub fn add_common(headers: &mut HeaderMap) {
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let policy = if kind.starts_with(b"text/html") || kind.starts_with(b"image/svg") { PAGE_POLICY } else { POLICY };
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(policy));
}

//! How the control plane refuses a request: with one plain sentence.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Answers with this status and one sentence.
pub fn refuse(status: StatusCode, sentence: &str) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], format!("{sentence}\n")).into_response()
}

/// Answers 405 for a path that allows only the methods `known`, which are listed as in `Allow`.
pub fn wrong_method(known: &'static str) -> Response {
    let sentence = format!("This path knows {} only.", known.replace(", ", " and "));
    let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, &sentence);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(known));
    response
}

//! How the control plane refuses: with one plain sentence.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// A refusal as one sentence.
pub fn refuse(status: StatusCode, sentence: &str) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], format!("{sentence}\n")).into_response()
}

/// 405 at a path that knows only the methods `known`, as `Allow` lists them.
pub fn wrong_method(known: &'static str) -> Response {
    let sentence = format!("This path knows {} only.", known.replace(", ", " and "));
    let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, &sentence);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(known));
    response
}

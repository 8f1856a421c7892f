//! The beginning of an answer for each status code: the status line and the name of the `Date`
//! header, in one piece.
//!
//! The API has a phrase of its own for 504, `Not Enough Replicas`.

macro_rules! beginnings {
    ($($code:literal $phrase:literal,)*) => {
        /// The bytes up to the date, or `None` for a code that is not in the table.
        pub(crate) fn beginning(code: u16) -> Option<&'static [u8]> {
            Some(match code {
                $($code => concat!("HTTP/1.1 ", $code, " ", $phrase, "\r\nDate: ").as_bytes(),)*
                _ => return None,
            })
        }
    };
}

beginnings! {
    200 "OK",
    201 "Created",
    202 "Accepted",
    204 "No Content",
    206 "Partial Content",
    301 "Moved Permanently",
    302 "Found",
    304 "Not Modified",
    307 "Temporary Redirect",
    400 "Bad Request",
    401 "Unauthorized",
    403 "Forbidden",
    404 "Not Found",
    405 "Method Not Allowed",
    406 "Not Acceptable",
    408 "Request Timeout",
    409 "Conflict",
    410 "Gone",
    411 "Length Required",
    412 "Precondition Failed",
    413 "Content Too Large",
    414 "URI Too Long",
    415 "Unsupported Media Type",
    416 "Range Not Satisfiable",
    417 "Expectation Failed",
    421 "Misdirected Request",
    422 "Unprocessable Content",
    428 "Precondition Required",
    429 "Too Many Requests",
    431 "Request Header Fields Too Large",
    500 "Internal Server Error",
    501 "Not Implemented",
    502 "Bad Gateway",
    503 "Service Unavailable",
    504 "Not Enough Replicas",
    505 "HTTP Version Not Supported",
    507 "Insufficient Storage",
}

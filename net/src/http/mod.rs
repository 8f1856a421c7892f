//! HTTP/1.1 as bytes: request heads, query strings, chunked bodies, answers.
//!
//! Owner: none; these are functions and small state machines. Bounds: every length that comes from
//! outside is compared with a limit given by the caller. Absent: I/O, clock, randomness. Tested in
//! each file, with property tests where the input is hostile.

pub mod chunked;
pub mod conditions;
pub mod date;
pub mod head;
pub mod host;
pub mod query;
pub mod range;
pub mod reply;
mod status;

pub use conditions::Conditions;
pub use date::Date;
pub use head::{BadRequest, Framing, Head, Method, Parsed, Seen, Version};
pub use reply::{ExtraLine, Reply, ReplyContext, Representation};

//! HTTP/1.1 over monoio for Koltso: bytes in, requests and answers out.
//!
//! Two layers. [`http`] is pure: parsers and writers over byte slices, without I/O, clock or randomness. [`server`] is the
//! thin asynchronous code around it: one accept loop and many connections on each core, with their deadlines and limits.
//! The program that uses the crate implements [`server::Service`] and calls [`server::serve`] on every core.
//!
//! Deliberately absent: routes, storage, TLS, HTTP/2, a thread of its own. Nothing here knows what a key is.
//!
//! Tested in each file, in `tests/` over real sockets on both of monoio's drivers, and by `examples/constant.rs` for speed.

pub mod http;
pub mod replica;
pub mod server;

//! HTTP/1.1 and the replica protocol over monoio for Koltso: bytes in, requests and answers out.
//!
//! Two layers. [`http`] and, in [`replica`], frames and handshake are pure: parsers and writers over byte slices,
//! without I/O, clock or randomness. [`server`] and the rest of [`replica`] are the thin asynchronous code around them,
//! with their deadlines and limits. The program that uses the crate implements [`server::Service`] for clients,
//! [`replica::ReplicaService`] for other nodes that ask, [`replica::LinkHandler`] for what they answer, and runs all of
//! it on every core.
//!
//! Deliberately absent: routes, storage, quorums, TLS, HTTP/2, a thread of its own. Nothing here knows where a key
//! belongs. [`turn`] tells how long a core goes without a look at its sockets.
//!
//! Tested in each file, in `tests/` over real sockets on both of monoio's drivers, and by `examples/constant.rs` for
//! speed.

pub mod http;
pub mod replica;
pub mod server;
pub mod turn;

//! HTTP/1.1 and the replica protocol over monoio for Koltso: bytes in, requests and answers out.
//!
//! There are two layers. [`http`] and, in [`replica`], frames and handshake are pure: parsers and
//! writers over byte slices, without I/O, clock or randomness. [`server`] and the rest of
//! [`replica`] are the thin asynchronous code around them, with their deadlines and limits. A
//! program that uses the crate implements [`server::Service`] for clients,
//! [`replica::ReplicaService`] for the requests of other nodes and [`replica::LinkHandler`] for
//! their answers, and runs all of it on every core.
//!
//! Deliberately absent: routes, storage, quorums, TLS, HTTP/2, threads. Nothing here knows where a
//! key belongs. [`turn`] measures how long a core goes without looking at its sockets.
//!
//! Tested in each file and, over real sockets on both of monoio's drivers, in `tests/`;
//! `examples/constant.rs` measures the speed.

mod connections;
pub mod http;
pub mod replica;
pub mod server;
mod transport;
pub mod turn;

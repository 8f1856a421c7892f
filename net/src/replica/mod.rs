//! The replica protocol: binary frames between nodes, many in flight on few connections, over monoio.
pub mod frame;
pub mod handshake;

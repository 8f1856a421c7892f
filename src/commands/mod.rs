//! The commands other than `serve`: clients of a node, load, profiles, and a whole cluster on this machine.

pub mod bench;
pub mod client;
pub mod http_client;
pub mod local;
pub mod profile;

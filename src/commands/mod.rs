//! The commands, one module each: a node, a whole cluster on this machine, a client of a node,
//! load, profiles, how a cluster is, a data folder.

pub mod bench;
pub mod client;
pub mod http_client;
pub mod local;
pub mod profile;
pub mod serve;
pub mod status;
pub mod verify;

//! What the server was told: flags, then environment variables, then the configuration file, then
//! defaults; all of it checked before anything is touched.
//!
//! - `table.rs`: every setting, once. `grammar.rs`: what values look like, one grammar a kind.
//! - `flags.rs`, `variables.rs`, `file.rs`: the table as flags, variables and keys. `said.rs`: a
//!   value and where it was given, which every error names. `similar.rs`: "did you mean".
//! - `given.rs`: which of them wins. `check.rs`: what needs more than one setting, or the machine.
//! - `config.rs`: the result, plain values. `local.rs`: the settings of the nodes of `koltso
//!   local`.
//! - `address.rs`: hosts, ports and URLs. `secret.rs`: files with secrets.
//!
//! Bounds: 64 nodes, a file of 1 MiB, a secret of 16 to 4096 bytes; the others are in the table.
//! Tests: in each file, `tests.rs`, and `tests/command_line/` with real processes.

mod address;
mod check;
mod config;
mod file;
mod flags;
mod given;
mod grammar;
mod local;
mod said;
mod secret;
mod similar;
mod table;
mod variables;

#[cfg(test)]
mod tests;

pub use config::{Cluster, Config};
pub use flags::{Flags, SharedFlags};
pub use grammar::stall_bound_text;
pub use local::NodeSettings;
pub use secret::read_token;
pub use table::in_force;
pub use variables::is_ours as is_variable;

/// The most nodes of a cluster: each has connections to each other one.
pub const NODES_MAX: usize = 64;
/// From a node's HTTP port to its replica port, unless the file says otherwise.
pub const REPLICA_PORT_OFFSET: u16 = 10_000;

//! The settings of the server: a flag wins over an environment variable, a variable over the
//! configuration file, and the file over the default. All are checked before anything is touched.
//!
//! - `table.rs` has every setting once. `grammar.rs` and `places.rs` have one grammar for each kind
//!   of value.
//! - `flags.rs`, `variables.rs` and `file.rs` derive flags, variables and keys from the table.
//!   `said.rs` is a value with the place where it was given, which every error names.
//! - `given.rs` decides which value wins. `check.rs` has the checks that need several settings or
//!   the machine. `config.rs` is the result: plain values.
//! - `local.rs` makes the settings of the nodes of `koltso local`. `address.rs` parses hosts, ports
//!   and URLs. `secret.rs` reads files with secrets.
//!
//! Bounds: 64 nodes, a file of 1 MiB, a secret of 16 to 4096 bytes; the others are in the table.
//! Tests: in each file, in `tests.rs`, and with real processes in `tests/settings.rs`.

mod address;
mod check;
mod config;
mod file;
mod flags;
mod given;
mod grammar;
mod local;
mod places;
mod said;
mod secret;
mod table;
mod variables;

#[cfg(test)]
mod tests;

pub use address::HostPort;
pub use config::{Cluster, Config};
pub use flags::{Flags, SharedFlags};
pub use grammar::{Grammar, off_or_text};
pub use local::NodeSettings;
pub use places::Url;
pub use secret::read_token;
pub use table::in_force;
pub use variables::is_ours as is_variable;

/// From a node's HTTP port to its replica port, unless the file says otherwise.
pub const REPLICA_PORT_OFFSET: u16 = 10_000;

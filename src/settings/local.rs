//! The settings of the nodes that `koltso local` starts on this machine.
//!
//! `local` reads flags, variables and file as `serve` does, and gives each node all of its settings
//! as flags. So a node needs neither the file nor the variables, and `local` removes the variables
//! from the environment of its nodes.

use std::ffi::OsString;
use std::path::PathBuf;

use super::check::check;
use super::config::Config;
use super::flags::SharedFlags;
use super::given::Given;
use super::said::Said;
use super::table::{CLUSTER, DATA, LISTEN, LOG_NAME, Local, NO_PIN, NODE, TABLE};

/// One of the nodes.
pub struct NodeSettings {
    /// The arguments of its `serve`.
    pub args: Vec<OsString>,
    /// What these arguments amount to.
    pub config: Config,
}

fn refused(said: &str) -> String {
    format!("{said} is not for koltso local, which chooses the addresses: give --port and --nodes")
}

/// The settings of each node.
pub(super) fn nodes(given: &Given, ports: &[u16]) -> Result<Vec<NodeSettings>, String> {
    let chosen = TABLE.iter().filter(|setting| setting.local == Local::Chosen);
    if let Some(said) = chosen.filter_map(|setting| given.said(setting)).next() {
        return Err(refused(&Said::without_value(said)));
    }
    if let Some(address) = given.replica_addresses.first() {
        return Err(refused(&address.place));
    }
    let base: PathBuf = given.value(&DATA)?;
    let name = given.optional(&LOG_NAME)?.map_or(String::new(), |name| name + " ");
    let listen = |port: u16| format!("127.0.0.1:{port}");
    let urls: Vec<String> = ports.iter().map(|&port| format!("http://{}", listen(port))).collect();
    let node = |(index, &port): (usize, &u16)| {
        let mut node = given.clone();
        node.set(&LISTEN, listen(port));
        node.set(&DATA, base.join(format!("node-{}", index + 1)));
        node.set(&LOG_NAME, format!("{name}node {}", index + 1));
        if node.said(&NO_PIN).is_none() {
            // The nodes share the processors.
            node.set(&NO_PIN, "true");
        }
        if let [_, _, ..] = ports {
            node.set(&CLUSTER, urls.join(","));
            node.set(&NODE, &urls[index]);
        }
        Ok(NodeSettings { args: node.to_args(), config: check(&node)? })
    };
    ports.iter().enumerate().map(node).collect()
}

impl SharedFlags {
    /// The settings of each node of a cluster on this machine, one a port: node 1 first, with its
    /// data in a folder `node-1` of the data folder. The second value are warnings for the log.
    ///
    /// # Errors
    /// One sentence for what is wrong, or for a setting that all nodes would get and only one can
    /// use.
    pub fn nodes(self, ports: &[u16]) -> Result<(Vec<NodeSettings>, Vec<String>), String> {
        let given = Given::gather(self.0, std::env::vars_os(), |setting| setting.local != Local::Chosen)?;
        let nodes = nodes(&given, ports)?;
        Ok((nodes, given.warnings))
    }
}

//! The result: settings that were checked, as plain values.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use koltso_net::replica::Secrets;
use koltso_storage::SyncMode;

use super::address::HostPort;
use crate::logging::LogSettings;

/// A configuration that was checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The HTTP address.
    pub listen: SocketAddr,
    /// The data folder.
    pub data: PathBuf,
    /// Number of data cores.
    pub threads: usize,
    /// When the log is synced.
    pub sync: SyncMode,
    /// The largest value, in bytes.
    pub max_value: usize,
    /// The most connections of the process.
    pub max_connections: usize,
    /// The most connections of one address, and its requests in flight on a core; `None` if that was
    /// not said.
    pub max_connections_per_address: Option<usize>,
    /// From a request's first byte to its last.
    pub request_timeout: Duration,
    /// Between two requests of a connection.
    pub idle_timeout: Duration,
    /// The most requests in flight, a core.
    pub max_in_flight: usize,
    /// The most bytes of bodies in flight, a core.
    pub max_in_flight_bytes: usize,
    /// The names of this node in the settings, in lower case.
    pub own_hosts: Vec<String>,
    /// Further names to which a listener on loopback answers, in lower case.
    pub allowed_hosts: Vec<String>,
    /// Origins whose pages may use the server, in lower case.
    pub cors_origins: Vec<String>,
    /// A second listener for the control plane.
    pub admin_listen: Option<SocketAddr>,
    /// The token that the control plane asks for.
    pub admin_token: Option<String>,
    /// Bytes a second.
    pub compaction_rate: u64,
    /// In this time everything is read once; `None` for never (`--scrub-interval 0`).
    pub scrub_interval: Option<Duration>,
    /// A turn of a core's loop that takes longer is a stall. `None` when stall detection is off
    /// (`--stall-bound 0`).
    pub stall_bound: Option<Duration>,
    /// What is logged, and how.
    pub log: LogSettings,
    /// Whether the cores are left to the scheduler instead of being pinned to processors.
    pub no_pin: bool,
    /// The cluster, if this node is not alone.
    pub cluster: Option<Cluster>,
}

impl Config {
    /// The most connections of an address beyond this machine.
    pub fn address_max(&self) -> usize {
        self.max_connections_per_address.unwrap_or(self.max_connections.div_ceil(2))
    }

    /// The most connections of an address of this machine. Who comes from there is a proxy or a load
    /// generator, which stands for many clients, or somebody who has easier ways to do harm.
    pub fn loopback_max(&self) -> usize {
        self.max_connections_per_address.unwrap_or(self.max_connections)
    }
}

/// The cluster, as every node sees it, and which of its nodes this is.
#[derive(Clone)]
pub struct Cluster {
    /// Nodes of a cluster with another name are not ours.
    pub name: String,
    /// All nodes, sorted by URL: at least 2, at most [`NODES_MAX`](koltso_model::NODES_MAX).
    pub nodes: Vec<Member>,
    /// Index of this node in `nodes`.
    pub me: usize,
    /// Where this node listens to the others.
    pub replica_listen: SocketAddr,
    /// What the nodes prove to each other to know.
    pub secrets: Secrets,
    /// How long a coordinator waits for replicas.
    pub replica_timeout: Duration,
    /// Bytes a second for what replicas miss.
    pub repair_rate: u64,
}

impl fmt::Debug for Cluster {
    /// Everything but the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("name", &self.name)
            .field("nodes", &self.nodes)
            .field("me", &self.me)
            .field("replica_listen", &self.replica_listen)
            .field("replica_timeout", &self.replica_timeout)
            .field("repair_rate", &self.repair_rate)
            .finish_non_exhaustive()
    }
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// `http://host:port`, the host in lower case, without a slash at the end.
    pub url: String,
    /// Where it listens to the other nodes; a name is looked up at each dial.
    pub replica: HostPort,
}

//! **The table of settings.** Everything else follows from it: the flags of `serve` and `local`,
//! the environment variables, the keys of the file, what `/status` shows as configuration, and the
//! table in the README, which a test compares with this one.
//!
//! A setting `max-value` is the flag `--max-value`, the variable `KOLTSO_MAX_VALUE` and the key
//! `max-value` (or `max_value`) of the file. How to add one is in docs/ARCHITECTURE.md.
//!
//! Invariants, tested in `tests.rs`: names are unique, also as variables; every default and every
//! end of a range is a value of its grammar; every setting reaches [`Config`] from each place.

use std::marker::PhantomData;

use koltso_model::NODES_MAX;
use serde_json::{Value as Json, json};
use tracing::Level;

use super::config::{Cluster, Config};
use super::grammar::{
    AnyGrammar, Count, FilePath, LEVELS, Name, OffOr, OneOf, Switch, SyncModes, Within, level_text, off_or_text,
    sync_text,
};
use super::places::{Address, HostName, ListOf, PageOrigin, Url, Urls};
use crate::logging::Format;
use crate::units::{Size, Span};

/// One row of the table.
pub struct Setting<G: ?Sized> {
    /// As a flag, without its dashes; as a key of the file.
    pub name: &'static str,
    /// What stands for the value in help and README.
    pub value: &'static str,
    pub default: Default,
    /// One sentence without its period; in it, `code` is marked as in Markdown.
    pub help: &'static str,
    pub group: Group,
    pub local: Local,
    pub status: Status,
    pub grammar: G,
}

/// Any row of the table.
pub type AnySetting = Setting<dyn AnyGrammar>;

/// What holds when nobody says anything.
pub enum Default {
    /// Nothing: the setting is off.
    Off,
    /// This value.
    Is(&'static str),
    /// What `check.rs` makes of other settings, in words.
    Follows(&'static str),
    /// A value that depends on the machine, in words and computed.
    Computed(&'static str, fn() -> String),
}

/// The headings of help and README.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Node,
    Storage,
    Limits,
    Cluster,
    Administration,
}

impl Group {
    pub fn heading(self) -> &'static str {
        match self {
            Self::Node => "The node",
            Self::Storage => "Storage",
            Self::Limits => "Limits",
            Self::Cluster => "Cluster",
            Self::Administration => "Seeing inside",
        }
    }
}

/// What `koltso local` does with a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    /// It gives the same to all its nodes.
    Same,
    /// It makes a value for each node from what it is given, or from nothing.
    Derived,
    /// It chooses the value itself: a flag or a key is refused, a variable is ignored with a
    /// warning.
    Chosen,
}

/// What `/status` shows of a setting, and under which name.
pub enum Status {
    /// Nothing.
    Absent,
    /// The value in force, under the setting's name with underscores.
    Value(fn(&Config) -> Json),
    /// Something else, such as whether there is a secret.
    Named(&'static str, fn(&Config) -> Json),
}

/// Processors that this process may use.
fn allowed_processors() -> String {
    std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).to_string()
}

/// The most data cores; as in the table.
const THREADS_MAX: usize = 256;

/// A value of the cluster; null on a node that is alone.
fn of_cluster(config: &Config, value: fn(&Cluster) -> Json) -> Json {
    config.cluster.as_ref().map_or(Json::Null, value)
}

fn size(bytes: u64) -> Json {
    Size(bytes).to_string().into()
}

fn span(duration: std::time::Duration) -> Json {
    Span(duration).to_string().into()
}

macro_rules! settings {
    ($($setting:ident: $grammar:ty = $row:expr;)*) => {
        $(pub static $setting: Setting<$grammar> = $row;)*
        /// All settings, in the order of help, README and `/status`.
        pub static TABLE: &[&AnySetting] = &[$(&$setting),*];
    };
}

settings! {
    LISTEN: Address = Setting {
        name: "listen",
        value: "HOST:PORT",
        default: Default::Is("127.0.0.1:1337"),
        help: "Where to serve HTTP",
        group: Group::Node,
        local: Local::Chosen,
        status: Status::Value(|config| config.listen.to_string().into()),
        grammar: Address,
    };

    ALLOWED_HOST: ListOf<HostName> = Setting {
        name: "allowed-host",
        value: "NAME,NAME,…",
        default: Default::Off,
        help: "Further names that a request may ask for where the node listens on loopback; it answers to those of \
               loopback and its own, and to others with `403`",
        group: Group::Node,
        local: Local::Same,
        status: Status::Value(|config| config.allowed_hosts.as_slice().into()),
        grammar: ListOf(PhantomData),
    };

    CORS_ORIGIN: ListOf<PageOrigin> = Setting {
        name: "cors-origin",
        value: "ORIGIN,ORIGIN,…",
        default: Default::Off,
        help: "Origins whose pages may use the server from a browser; what a browser marks as a request from another \
               site is otherwise answered with `403`",
        group: Group::Node,
        local: Local::Same,
        status: Status::Value(|config| config.cors_origins.as_slice().into()),
        grammar: ListOf(PhantomData),
    };

    DATA: FilePath = Setting {
        name: "data",
        value: "DIR",
        default: Default::Is("./koltso-data"),
        help: "The data folder; one process at a time uses it",
        group: Group::Node,
        local: Local::Derived,
        status: Status::Value(|config| config.data.display().to_string().into()),
        grammar: FilePath,
    };

    THREADS: Within<Count> = Setting {
        name: "threads",
        value: "CORES",
        default: Default::Computed("the number of processors that it may use", allowed_processors),
        help: "Number of data cores; each is a thread that is pinned to a processor",
        group: Group::Node,
        local: Local::Same,
        status: Status::Value(|config| config.threads.into()),
        grammar: Within::new("1", "256"),
    };

    NO_PIN: Switch = Setting {
        name: "no-pin",
        value: "true|false",
        default: Default::Is("false"),
        help: "Leave the cores to the scheduler instead of pinning each to a processor",
        group: Group::Node,
        local: Local::Derived,
        status: Status::Value(|config| config.no_pin.into()),
        grammar: Switch,
    };

    CONFIG: FilePath = Setting {
        name: "config",
        value: "FILE",
        default: Default::Off,
        help: "A TOML file with any of these settings except this one",
        group: Group::Node,
        local: Local::Same,
        status: Status::Absent,
        grammar: FilePath,
    };

    SYNC: SyncModes = Setting {
        name: "sync",
        value: "MODE",
        default: Default::Is("1s"),
        help: "When writes reach the disk. `always`: before they are acknowledged (group commit). A duration: at most \
               this long afterwards, so a power loss costs at most that much. `os`: when the kernel decides",
        group: Group::Storage,
        local: Local::Same,
        status: Status::Value(|config| sync_text(config.sync).into()),
        grammar: SyncModes(Within::new("1ms", "365d")),
    };

    MAX_VALUE: Within<Size> = Setting {
        name: "max-value",
        value: "SIZE",
        default: Default::Is("16MiB"),
        help: "The largest value; a larger one is answered with `413`",
        group: Group::Storage,
        local: Local::Same,
        status: Status::Value(|config| size(config.max_value as u64)),
        grammar: Within::new("1", "32MiB"),
    };

    COMPACTION_RATE: Within<Size> = Setting {
        name: "compaction-rate",
        value: "SIZE",
        default: Default::Is("64MiB"),
        help: "The most bytes a second that compaction reads",
        group: Group::Storage,
        local: Local::Same,
        status: Status::Value(|config| size(config.compaction_rate)),
        grammar: Within::new("1", "1024GiB"),
    };

    SCRUB_INTERVAL: OffOr = Setting {
        name: "scrub-interval",
        value: "DURATION",
        default: Default::Is("30d"),
        help: "In this time all that is stored is read once from the disk, at an even rate, and compared with its \
               checksums; `0` turns this off",
        group: Group::Storage,
        local: Local::Same,
        status: Status::Value(|config| off_or_text(config.scrub_interval).into()),
        grammar: OffOr(Within::new("1m", "3650d")),
    };

    MAX_CONNECTIONS: Within<Count> = Setting {
        name: "max-connections",
        value: "N",
        default: Default::Is("10000"),
        help: "The most connections; further ones are closed at accept. Fewer where the process may not open as many \
               files (`ulimit -n`), which the start says",
        group: Group::Limits,
        local: Local::Same,
        status: Status::Value(|config| config.max_connections.into()),
        grammar: Within::new("1", "10000000"),
    };

    MAX_CONNECTIONS_PER_ADDRESS: Within<Count> = Setting {
        name: "max-connections-per-address",
        value: "N",
        default: Default::Follows("half of `--max-connections`, and all of them for loopback"),
        help: "The most connections of one address, and of its requests in flight on each core; an IPv6 address counts \
               with its /64. Further connections are closed at accept, further requests get `503` at once",
        group: Group::Limits,
        local: Local::Same,
        status: Status::Value(|config| config.address_max().into()),
        grammar: Within::new("1", "10000000"),
    };

    REQUEST_TIMEOUT: Within<Span> = Setting {
        name: "request-timeout",
        value: "DURATION",
        default: Default::Is("10s"),
        help: "How long a request may take to arrive completely, and a client to take some of its answer. A request \
               that is late or, for 5 s, comes at less than 1 KiB a second is answered with `408`",
        group: Group::Limits,
        local: Local::Same,
        status: Status::Value(|config| span(config.request_timeout)),
        grammar: Within::new("1ms", "365d"),
    };

    IDLE_TIMEOUT: Within<Span> = Setting {
        name: "idle-timeout",
        value: "DURATION",
        default: Default::Is("5m"),
        help: "A connection that sends nothing for this long is closed",
        group: Group::Limits,
        local: Local::Same,
        status: Status::Value(|config| span(config.idle_timeout)),
        grammar: Within::new("1ms", "365d"),
    };

    MAX_IN_FLIGHT: Within<Count> = Setting {
        name: "max-in-flight",
        value: "N",
        default: Default::Is("16384"),
        help: "The most requests in flight on each core; further ones get `503` at once",
        group: Group::Limits,
        local: Local::Same,
        status: Status::Value(|config| config.max_in_flight.into()),
        grammar: Within::new("1", "1073741824"),
    };

    MAX_IN_FLIGHT_BYTES: Within<Size> = Setting {
        name: "max-in-flight-bytes",
        value: "SIZE",
        default: Default::Is("256MiB"),
        help: "The most bytes of request bodies that each core has received and not served yet; past it, bodies of which \
               nothing comes for 3 s give way, and further requests get `503` at once",
        group: Group::Limits,
        local: Local::Same,
        status: Status::Value(|config| size(config.max_in_flight_bytes as u64)),
        grammar: Within::new("1", "1024GiB"),
    };

    CLUSTER: Urls = Setting {
        name: "cluster",
        value: "URL,URL,…",
        default: Default::Off,
        help: "The HTTP addresses of all nodes of the cluster, in any order, the same on all of them; at most 64",
        group: Group::Cluster,
        local: Local::Chosen,
        status: Status::Value(|config| {
            of_cluster(config, |cluster| cluster.nodes.iter().map(|node| node.url.as_str()).collect())
        }),
        grammar: Urls { most: NODES_MAX },
    };

    NODE: Url = Setting {
        name: "node",
        value: "URL",
        default: Default::Follows("the one that matches `--listen`"),
        help: "Which node of `--cluster` this is; without `--listen`, it also serves HTTP at this address",
        group: Group::Cluster,
        local: Local::Chosen,
        status: Status::Absent,
        grammar: Url,
    };

    REPLICA_LISTEN: Address = Setting {
        name: "replica-listen",
        value: "HOST:PORT",
        default: Default::Follows("the host of `--node` with its port plus 10000"),
        help: "Where to listen for the other nodes",
        group: Group::Cluster,
        local: Local::Chosen,
        status: Status::Value(|config| of_cluster(config, |cluster| json!(cluster.replica_listen))),
        grammar: Address,
    };

    CLUSTER_SECRET_FILE: FilePath = Setting {
        name: "cluster-secret-file",
        value: "FILE",
        default: Default::Off,
        help: "A file with the secret that all nodes share, at least 16 bytes; required if they talk beyond loopback. Two lines of text are two secrets: the first is used, both are accepted",
        group: Group::Cluster,
        local: Local::Same,
        status: Status::Named("cluster_secret", |config| {
            of_cluster(config, |cluster| (!cluster.secrets.is_empty()).into())
        }),
        grammar: FilePath,
    };

    CLUSTER_NAME: Name = Setting {
        name: "cluster-name",
        value: "NAME",
        default: Default::Is("koltso"),
        help: "The cluster's name: nodes of another one are turned away",
        group: Group::Cluster,
        local: Local::Same,
        status: Status::Value(|config| of_cluster(config, |cluster| cluster.name.as_str().into())),
        grammar: Name { most: 64 },
    };

    REPLICA_TIMEOUT: Within<Span> = Setting {
        name: "replica-timeout",
        value: "DURATION",
        default: Default::Is("1s"),
        help: "How long to wait for replicas before answering `504`",
        group: Group::Cluster,
        local: Local::Same,
        status: Status::Value(|config| of_cluster(config, |cluster| span(cluster.replica_timeout))),
        grammar: Within::new("10ms", "60s"),
    };

    REPAIR_RATE: Within<Size> = Setting {
        name: "repair-rate",
        value: "SIZE",
        default: Default::Is("64MiB"),
        help: "The most bytes a second that a node spends on replicas that miss something: hints and repair together",
        group: Group::Cluster,
        local: Local::Same,
        status: Status::Value(|config| of_cluster(config, |cluster| size(cluster.repair_rate))),
        // Below the least, a value of the largest size would hold up a peer for minutes.
        grammar: Within::new("64KiB", "1024GiB"),
    };

    ADMIN_LISTEN: Address = Setting {
        name: "admin-listen",
        value: "HOST:PORT",
        default: Default::Off,
        help: "A separate listener for `/status`, `/metrics` and `/debug`; beyond loopback these need it or a token",
        group: Group::Administration,
        local: Local::Chosen,
        status: Status::Value(|config| config.admin_listen.map(|address| address.to_string()).into()),
        grammar: Address,
    };

    ADMIN_TOKEN_FILE: FilePath = Setting {
        name: "admin-token-file",
        value: "FILE",
        default: Default::Off,
        help: "A file with the token that these then require everywhere, of 16 characters or more: `Authorization: Bearer \
               TOKEN`, or as a password with any user name",
        group: Group::Administration,
        local: Local::Same,
        status: Status::Named("admin_token", |config| config.admin_token.is_some().into()),
        grammar: FilePath,
    };

    STALL_BOUND: OffOr = Setting {
        name: "stall-bound",
        value: "DURATION",
        default: Default::Is("5ms"),
        help: "How long a core may go without a look at its sockets. A longer time is a stall, which is counted and \
               shown with what the core did; `0` turns this off",
        group: Group::Administration,
        local: Local::Same,
        status: Status::Value(|config| off_or_text(config.stall_bound).into()),
        grammar: OffOr(Within::new("1ms", "60s")),
    };

    LOG_LEVEL: OneOf<Level> = Setting {
        name: "log-level",
        value: "LEVEL",
        default: Default::Is("info"),
        help: "What is logged on standard error: `error`, `warn`, `info`, `debug` or `trace`, each with those before it",
        group: Group::Administration,
        local: Local::Same,
        status: Status::Value(|config| level_text(config.log.level).into()),
        grammar: OneOf(&LEVELS),
    };

    LOG_FORMAT: OneOf<Format> = Setting {
        name: "log-format",
        value: "FORMAT",
        default: Default::Is("text"),
        help: "Whether a line of the log is a `text`, or a `json` object with `ts`, `level`, `target`, `message` and \
               `fields`",
        group: Group::Administration,
        local: Local::Same,
        status: Status::Value(|config| if config.log.format == Format::Json { "json" } else { "text" }.into()),
        grammar: OneOf(&[("text", Format::Text), ("json", Format::Json)]),
    };

    LOG_NAME: Name = Setting {
        name: "log-name",
        value: "NAME",
        default: Default::Off,
        help: "A name at the beginning of each line of the log, as `node 1` in those of `koltso local`",
        group: Group::Administration,
        local: Local::Derived,
        status: Status::Value(|config| config.log.name.clone().into()),
        grammar: Name { most: 64 },
    };
}

impl AnySetting {
    /// The sentence of help and README, with the range where there is one.
    pub fn meaning(&self) -> String {
        match self.grammar.range() {
            Some(range) => format!("{} ({range})", self.help),
            None => self.help.to_owned(),
        }
    }
}

/// The configuration in force, as `/status` shows it.
pub fn in_force(config: &Config) -> Json {
    let shown = TABLE.iter().filter_map(|setting| match setting.status {
        Status::Absent => None,
        Status::Value(of) => Some((setting.name.replace('-', "_"), of(config))),
        Status::Named(name, of) => Some((name.to_owned(), of(config))),
    });
    let addresses =
        of_cluster(config, |cluster| cluster.nodes.iter().map(|node| json!(node.replica.to_string())).collect());
    Json::Object(shown.chain([("replica_addresses".to_owned(), addresses)]).collect())
}

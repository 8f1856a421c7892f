//! What the server was told: flags, then the configuration file, then defaults; checked before anything is touched.
//!
//! Every flag of `serve` has the same name in the file (`max-value = "1MiB"`; underscores do too), and a flag wins over
//! the file. What is out of range is an error with the value and the range in it.
//!
//! The cluster: all nodes are given the same URLs in any order; sorted, they are the same list with the same indices
//! everywhere. Names are resolved once, here. Bounds: 64 nodes, a secret of 16 to 4096 bytes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use koltso_storage::{SyncMode, VALUE_MAX_LIMIT};
use serde::{Deserialize, Deserializer};

use crate::units::{Size, Span};

/// The most data cores.
const THREADS_MAX: usize = 256;
/// The most nodes of a cluster: each has connections to each other one.
pub const NODES_MAX: usize = 64;
/// From a node's HTTP port to its replica port, unless the file says otherwise.
pub const REPLICA_PORT_OFFSET: u16 = 10_000;
/// Bytes of the secret that the nodes share: 128 bits cannot be guessed.
const SECRET_MIN: usize = 16;
const SECRET_MAX: usize = 4096;
const CLUSTER_NAME_MAX: usize = 64;
const LISTEN_DEFAULT: &str = "127.0.0.1:1337";
const DATA_DEFAULT: &str = "koltso-data";
const STALL_BOUND_DEFAULT: Duration = Duration::from_millis(5);

/// The value of `--cluster`: URLs with commas between them; in the file also a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Urls(pub Vec<String>);

impl Urls {
    fn split(text: &str) -> Self {
        Self(text.split(',').map(|url| url.trim().to_owned()).collect())
    }
}

impl FromStr for Urls {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::split(text))
    }
}

impl fmt::Display for Urls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

impl<'de> Deserialize<'de> for Urls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "cluster is a list of URLs, or a string with commas between them")]
        enum TextOrList {
            Text(String),
            List(Vec<String>),
        }
        Ok(match TextOrList::deserialize(deserializer)? {
            TextOrList::Text(text) => Self::split(&text),
            TextOrList::List(list) => Self(list),
        })
    }
}

/// The flags of `serve`, as given.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Flags {
    /// Where to serve HTTP [default: 127.0.0.1:1337]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// The data folder [default: ./koltso-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Number of data cores, one thread each [default: the processors this process may use]
    #[arg(long, value_name = "CORES")]
    threads: Option<usize>,
    /// When writes reach the disk: `always` before they are acknowledged, a duration such as `1s` after that at the
    /// latest, `os` when the kernel likes [default: 1s]
    #[arg(long, value_name = "MODE")]
    sync: Option<String>,
    /// The largest value, up to 32MiB [default: 16MiB]
    #[arg(long, value_name = "SIZE")]
    max_value: Option<Size>,
    /// The most connections; past it, new ones are closed at accept [default: 10000]
    #[arg(long, value_name = "N")]
    max_connections: Option<usize>,
    /// A request must be whole within this time (408), and a client must take some of its answer [default: 10s]
    #[arg(long, value_name = "DURATION")]
    request_timeout: Option<Span>,
    /// A connection that sends nothing for this long is closed [default: 5m]
    #[arg(long, value_name = "DURATION")]
    idle_timeout: Option<Span>,
    /// The most requests in flight a core; past it 503 [default: 16384]
    #[arg(long, value_name = "N")]
    max_in_flight: Option<usize>,
    /// The most bytes of request bodies being received a core; past it 503 [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    max_in_flight_bytes: Option<Size>,
    /// A listener of their own for /status and /metrics
    #[arg(long, value_name = "HOST:PORT")]
    admin_listen: Option<String>,
    /// A file with the token that /status and /metrics ask for (`Authorization: Bearer TOKEN`)
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    /// Compaction reads at most this many bytes a second [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    compaction_rate: Option<Size>,
    /// A turn of a core's loop that takes longer is a stall: counted, and shown with its stacks; 1ms to 60s, `0` to leave
    /// that out [default: 5ms]
    #[arg(long, value_name = "DURATION")]
    stall_bound: Option<String>,
    /// Leave the cores to the scheduler instead of pinning each to a processor
    #[arg(long)]
    #[serde(default)]
    no_pin: bool,
    /// The HTTP addresses of all nodes of the cluster, in any order; the same on all of them
    #[arg(long, value_name = "URL,URL,…")]
    cluster: Option<Urls>,
    /// Which of them this node is [default: the one that matches --listen]
    #[arg(long, value_name = "URL")]
    node: Option<String>,
    /// Where to listen to the other nodes [default: the node's host with its port plus 10000]
    #[arg(long, value_name = "HOST:PORT")]
    replica_listen: Option<String>,
    /// A file with the secret that the nodes share, at least 16 bytes; needed beyond loopback
    #[arg(long, value_name = "FILE")]
    cluster_secret_file: Option<PathBuf>,
    /// The cluster's name: nodes of another one are turned away [default: koltso]
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<String>,
    /// How long to wait for replicas before answering 504, 10ms to 60s [default: 1s]
    #[arg(long, value_name = "DURATION")]
    replica_timeout: Option<Span>,
    /// In a cluster: how long deleted keys are remembered, so that a node which was away for less does not bring them
    /// back [default: 240h]
    #[arg(long, value_name = "DURATION")]
    tombstone_grace: Option<Span>,
    /// Only in the file: the replica addresses of nodes that have another than HTTP port + 10000, by URL.
    #[arg(skip)]
    #[serde(default)]
    replica_addresses: BTreeMap<String, String>,
    /// A TOML file with any of these settings
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
}

/// A configuration that was checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The HTTP address.
    pub listen: SocketAddr,
    /// The data folder.
    pub data: PathBuf,
    /// Data cores.
    pub threads: usize,
    /// When the log is synced.
    pub sync: SyncMode,
    /// Bytes.
    pub max_value: usize,
    /// Connections of the process.
    pub max_connections: usize,
    /// From a request's first byte to its last.
    pub request_timeout: Duration,
    /// Between requests.
    pub idle_timeout: Duration,
    /// Requests a core.
    pub max_in_flight: usize,
    /// Bytes of bodies a core.
    pub max_in_flight_bytes: usize,
    /// A second listener for the control plane.
    pub admin_listen: Option<SocketAddr>,
    /// What the control plane asks for.
    pub admin_token: Option<String>,
    /// Bytes a second.
    pub compaction_rate: u64,
    /// A turn of a core's loop that takes longer is a stall; `None`: nobody looks.
    pub stall_bound: Option<Duration>,
    /// The cores are not pinned to processors.
    pub no_pin: bool,
    /// The cluster, if this node is not alone.
    pub cluster: Option<Cluster>,
}

/// The cluster, as every node sees it, and which of its nodes this is.
#[derive(Clone)]
pub struct Cluster {
    /// Nodes of a cluster with another name are not ours.
    pub name: String,
    /// All nodes, sorted by URL: at least 2, at most [`NODES_MAX`].
    pub nodes: Vec<Member>,
    /// Index of this node in `nodes`.
    pub me: usize,
    /// Where to listen to the others.
    pub replica_listen: SocketAddr,
    /// What the nodes prove to each other to know; empty: nothing.
    pub secret: Vec<u8>,
    /// How long a coordinator waits for replicas.
    pub replica_timeout: Duration,
    /// How long tombstones are kept.
    pub tombstone_grace: Duration,
}

impl fmt::Debug for Cluster {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("name", &self.name)
            .field("nodes", &self.nodes)
            .field("me", &self.me)
            .field("replica_listen", &self.replica_listen)
            .field("replica_timeout", &self.replica_timeout)
            .field("tombstone_grace", &self.tombstone_grace)
            .finish_non_exhaustive()
    }
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// `http://host:port`, the host in lower case, without a slash at the end.
    pub url: String,
    /// Where it listens to the other nodes.
    pub replica: SocketAddr,
}

/// The host of a URL or address, in the one way we write it, and the port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// `None` for anything but HOST:PORT with a port that can be connected to.
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|&port: &u16| digits && port > 0)?;
        let host = if let Some(inner) = host.strip_prefix('[') {
            format!("[{}]", inner.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?)
        } else {
            let valid = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            if host.is_empty() || !host.bytes().all(valid) {
                return None;
            }
            host.to_ascii_lowercase()
        };
        Some(Self { host, port })
    }

    /// As `parse`, of a URL whose scheme is `http` or left out.
    fn of_url(name: &str, url: &str) -> Result<Self, String> {
        let rest = match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => Some(rest),
            Some(_) => None,
            None => Some(url),
        };
        let parsed = rest.and_then(|rest| Self::parse(rest.strip_suffix('/').unwrap_or(rest)));
        parsed.ok_or_else(|| format!("{name} {url:?} is not a URL such as http://127.0.0.1:1337"))
    }

    fn url(&self) -> String {
        format!("http://{self}")
    }

    fn resolve(&self) -> std::io::Result<SocketAddr> {
        let mut found = self.to_string().to_socket_addrs()?;
        found.next().ok_or_else(|| std::io::Error::other("the name has no address"))
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The nodes of `--cluster` by URL, so sorted and without doubles.
fn members(urls: &Urls) -> Result<BTreeMap<String, HostPort>, String> {
    let mut members = BTreeMap::new();
    for text in &urls.0 {
        let node = HostPort::of_url("--cluster", text)?;
        if members.insert(node.url(), node).is_some() {
            return Err(format!("--cluster names {text} twice"));
        }
    }
    if members.is_empty() || members.len() > NODES_MAX {
        return Err(format!("--cluster has {} nodes, and a cluster has 1 to {NODES_MAX}", members.len()));
    }
    Ok(members)
}

/// What was asked for of the cluster, by flag or file.
struct ClusterFlags {
    urls: Option<Urls>,
    node: Option<String>,
    replica_listen: Option<String>,
    replica_addresses: BTreeMap<String, String>,
    secret_file: Option<PathBuf>,
    name: Option<String>,
    replica_timeout: Option<Span>,
    tombstone_grace: Option<Span>,
}

impl ClusterFlags {
    /// The cluster, and where to listen for HTTP. `listen` is what was asked for.
    fn check(self, listen: Option<&str>) -> Result<(Option<Cluster>, SocketAddr), String> {
        let name = self.name.unwrap_or_else(|| "koltso".to_owned());
        let printable = name.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        if name.is_empty() || name.len() > CLUSTER_NAME_MAX || !printable {
            return Err(format!(
                "--cluster-name {name:?} is not a name of 1 to {CLUSTER_NAME_MAX} printable ASCII characters"
            ));
        }
        let range = |name: &str, span: Option<Span>, default: Duration, least: Duration, most: Duration| {
            in_range(name, span.unwrap_or(Span(default)), Span(least), Span(most)).map(|span| span.0)
        };
        let second = Duration::from_secs(1);
        let replica_timeout =
            range("replica-timeout", self.replica_timeout, second, Duration::from_millis(10), second * 60)?;
        // A hundred years: sums of it and the time stay in the 48 bits that versions have for milliseconds.
        let hour = second * 3600;
        let tombstone_grace = range("tombstone-grace", self.tombstone_grace, hour * 240, second, hour * 876_000)?;
        let Some(urls) = self.urls else {
            let alone = |given: bool, name: &str| {
                if given { Err(format!("{name} needs --cluster, the list of all nodes")) } else { Ok(()) }
            };
            alone(self.node.is_some(), "--node")?;
            alone(self.replica_listen.is_some(), "--replica-listen")?;
            alone(self.secret_file.is_some(), "--cluster-secret-file")?;
            alone(!self.replica_addresses.is_empty(), "[replica-addresses]")?;
            return Ok((None, address("listen", listen.unwrap_or(LISTEN_DEFAULT))?));
        };
        let members = members(&urls)?;
        let mut replica_addresses = BTreeMap::new();
        for (url, text) in &self.replica_addresses {
            let url = HostPort::of_url("[replica-addresses]", url)?.url();
            if !members.contains_key(&url) {
                return Err(format!("[replica-addresses] {url} is not one of the nodes of --cluster"));
            }
            let wrong = || format!("[replica-addresses] {url}: {text:?} is not HOST:PORT such as 127.0.0.1:11337");
            if replica_addresses.insert(url.clone(), HostPort::parse(text).ok_or_else(wrong)?).is_some() {
                return Err(format!("[replica-addresses] names {url} twice"));
            }
        }
        let (me, listen) = self_among(&members, self.node.as_deref(), listen)?;
        let mut nodes: Vec<Member> = Vec::with_capacity(members.len());
        for (url, node) in members {
            let replica = match replica_addresses.remove(&url) {
                Some(replica) => replica,
                None => HostPort {
                    port: node.port.checked_add(REPLICA_PORT_OFFSET).ok_or_else(|| {
                        format!("{url} has no replica port: {} + {REPLICA_PORT_OFFSET} is above 65535, give its address in [replica-addresses]", node.port)
                    })?,
                    host: node.host,
                },
            };
            let resolved = replica
                .resolve()
                .map_err(|e| format!("the replica address {replica} of {url} cannot be resolved: {e}"))?;
            if let Some(other) = nodes.iter().find(|other| other.replica == resolved) {
                return Err(format!("{} and {url} have one replica address, {resolved}", other.url));
            }
            nodes.push(Member { url, replica: resolved });
        }
        let replica_listen = match &self.replica_listen {
            Some(text) => address("replica-listen", text)?,
            None => nodes[me].replica,
        };
        let secret = self.secret_file.as_deref().map(read_secret).transpose()?.unwrap_or_default();
        // A node alone has no replica listener.
        if nodes.len() == 1 {
            return Ok((None, listen));
        }
        if secret.is_empty() && !replica_listen.ip().to_canonical().is_loopback() {
            return Err(format!(
                "the replica listener {replica_listen} is reachable beyond loopback: give --cluster-secret-file"
            ));
        }
        Ok((Some(Cluster { name, nodes, me, replica_listen, secret, replica_timeout, tombstone_grace }), listen))
    }
}

/// Which node this is, and where it listens.
fn self_among(
    members: &BTreeMap<String, HostPort>,
    node: Option<&str>,
    listen: Option<&str>,
) -> Result<(usize, SocketAddr), String> {
    if let Some(node) = node {
        let wanted = HostPort::of_url("--node", node)?;
        let me = members.values().position(|member| *member == wanted);
        let me = me.ok_or_else(|| format!("--node {} is not one of the nodes of --cluster", wanted.url()))?;
        return Ok((me, address("listen", listen.unwrap_or(&wanted.to_string()))?));
    }
    let listen = listen.unwrap_or(LISTEN_DEFAULT);
    let bound = address("listen", listen)?;
    let written = HostPort::parse(listen);
    // As it is written, or else by where it leads: `localhost:1337` matches `http://127.0.0.1:1337`.
    let me = members.values().position(|member| Some(member) == written.as_ref()).or_else(|| {
        members.values().position(|member| member.port == bound.port() && member.resolve().is_ok_and(|to| to == bound))
    });
    let me =
        me.ok_or_else(|| format!("--listen {listen} is not one of the nodes of --cluster: say which with --node"))?;
    Ok((me, bound))
}

fn read_secret(path: &Path) -> Result<Vec<u8>, String> {
    let wrong = |e: std::io::Error| format!("--cluster-secret-file {}: {e}", path.display());
    let mut secret = Vec::new();
    let file = std::fs::File::open(path).map_err(wrong)?;
    file.take(SECRET_MAX as u64 + 2).read_to_end(&mut secret).map_err(wrong)?;
    if secret.last() == Some(&b'\n') {
        secret.pop();
    }
    if secret.len() < SECRET_MIN || secret.len() > SECRET_MAX {
        let path = path.display();
        return Err(format!(
            "--cluster-secret-file {path} does not hold a secret of {SECRET_MIN} to {SECRET_MAX} bytes"
        ));
    }
    Ok(secret)
}

fn address(name: &str, text: &str) -> Result<SocketAddr, String> {
    let wrong = |why: &str| format!("--{name} {text}: {why}, give HOST:PORT such as 127.0.0.1:1337");
    if let Ok(address) = SocketAddr::from_str(text) {
        return Ok(address);
    }
    let mut found = text.to_socket_addrs().map_err(|e| wrong(&e.to_string()))?;
    found.next().ok_or_else(|| wrong("the name has no address"))
}

fn sync_mode(text: &str) -> Result<SyncMode, String> {
    match text {
        "os" => Ok(SyncMode::Os),
        "always" => Ok(SyncMode::Always),
        _ => Span::from_str(text)
            .map(|span| SyncMode::Every(span.0))
            .map_err(|_| format!("--sync {text} is none of os, always and a duration such as 1s")),
    }
}

fn in_range<T: PartialOrd + std::fmt::Display>(name: &str, value: T, least: T, most: T) -> Result<T, String> {
    if value < least || value > most {
        return Err(format!("--{name} {value} is out of range: it is {least} to {most}"));
    }
    Ok(value)
}

fn read_file(path: &Path) -> Result<Flags, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("--config {}: {e}", path.display()))?;
    let wrong = |e: toml::de::Error| {
        let message = e.message().split('\n').next().unwrap_or_default();
        // Serde would go on with all of two dozen names.
        let (message, help) = match message.split_once(", expected one of") {
            Some((unknown, _)) if unknown.starts_with("unknown field") => (unknown, "; koltso serve --help lists them"),
            _ => (message, ""),
        };
        format!("--config {}: {message}{help}", path.display())
    };
    let table: toml::Table = toml::from_str(&text).map_err(wrong)?;
    let dashed: toml::Table = table.into_iter().map(|(name, value)| (name.replace('_', "-"), value)).collect();
    dashed.try_into().map_err(wrong)
}

/// Processors that this process may use.
pub fn allowed_processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Flags {
    /// These flags as arguments of `serve`: parsed again, they are the same. (Derived from what was understood, not from
    /// what was typed. The pattern has no `..`, so that a flag cannot be forgotten here.)
    pub fn to_args(&self) -> Vec<OsString> {
        let Self {
            listen,
            data,
            threads,
            sync,
            max_value,
            max_connections,
            request_timeout,
            idle_timeout,
            max_in_flight,
            max_in_flight_bytes,
            admin_listen,
            admin_token_file,
            compaction_rate,
            stall_bound,
            no_pin,
            cluster,
            node,
            replica_listen,
            cluster_secret_file,
            cluster_name,
            replica_timeout,
            tombstone_grace,
            // Only in the file, which is passed on.
            replica_addresses: _,
            config,
        } = self;
        let text = |name: &str, value: Option<&dyn fmt::Display>| value.map(|v| format!("--{name}={v}").into());
        let path = |name: &str, value: Option<&PathBuf>| {
            value.map(|value| {
                let mut argument = OsString::from(format!("--{name}="));
                argument.push(value);
                argument
            })
        };
        fn shown<T: fmt::Display>(value: &Option<T>) -> Option<&dyn fmt::Display> {
            value.as_ref().map(|value| value as &dyn fmt::Display)
        }
        let arguments = [
            text("listen", shown(listen)),
            path("data", data.as_ref()),
            text("threads", shown(threads)),
            text("sync", shown(sync)),
            text("max-value", shown(max_value)),
            text("max-connections", shown(max_connections)),
            text("request-timeout", shown(request_timeout)),
            text("idle-timeout", shown(idle_timeout)),
            text("max-in-flight", shown(max_in_flight)),
            text("max-in-flight-bytes", shown(max_in_flight_bytes)),
            text("admin-listen", shown(admin_listen)),
            path("admin-token-file", admin_token_file.as_ref()),
            text("compaction-rate", shown(compaction_rate)),
            text("stall-bound", shown(stall_bound)),
            no_pin.then(|| "--no-pin".into()),
            text("cluster", shown(cluster)),
            text("node", shown(node)),
            text("replica-listen", shown(replica_listen)),
            path("cluster-secret-file", cluster_secret_file.as_ref()),
            text("cluster-name", shown(cluster_name)),
            text("replica-timeout", shown(replica_timeout)),
            text("tombstone-grace", shown(tombstone_grace)),
            path("config", config.as_ref()),
        ];
        arguments.into_iter().flatten().collect()
    }

    /// The flags of each node of a cluster on this machine, one a port: node 1 first, with its data in a folder `node-1` of
    /// the data folder. The nodes share the processors, so they are not pinned.
    ///
    /// # Errors
    /// One sentence for a setting that all nodes would get and only one can use.
    pub fn on_this_machine(&self, ports: &[u16]) -> Result<Vec<Self>, String> {
        let file = self.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        for (name, given) in [
            ("--listen", self.listen.is_some() || file.listen.is_some()),
            ("--cluster", self.cluster.is_some() || file.cluster.is_some()),
            ("--node", self.node.is_some() || file.node.is_some()),
            ("--replica-listen", self.replica_listen.is_some() || file.replica_listen.is_some()),
            ("[replica-addresses]", !file.replica_addresses.is_empty()),
            ("--admin-listen", self.admin_listen.is_some() || file.admin_listen.is_some()),
        ] {
            if given {
                return Err(format!(
                    "{name} is not for koltso local, which chooses the addresses: give --port and --nodes"
                ));
            }
        }
        let base = self.data.clone().or(file.data).unwrap_or_else(|| PathBuf::from(DATA_DEFAULT));
        let listen = |port: u16| format!("127.0.0.1:{port}");
        let urls = Urls(ports.iter().map(|&port| format!("http://{}", listen(port))).collect());
        let node = |(index, &port): (usize, &u16)| Self {
            listen: Some(listen(port)),
            data: Some(base.join(format!("node-{}", index + 1))),
            cluster: (ports.len() > 1).then(|| urls.clone()),
            node: (ports.len() > 1).then(|| urls.0[index].clone()),
            no_pin: true,
            ..self.clone()
        };
        Ok(ports.iter().enumerate().map(node).collect())
    }

    /// Reads the configuration file, fills in the defaults and checks everything.
    ///
    /// # Errors
    /// One sentence that says which setting is wrong and what it may be.
    pub fn check(self) -> Result<Config, String> {
        let file = self.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let cluster = ClusterFlags {
            urls: self.cluster.or(file.cluster),
            node: self.node.or(file.node),
            replica_listen: self.replica_listen.or(file.replica_listen),
            replica_addresses: file.replica_addresses,
            secret_file: self.cluster_secret_file.or(file.cluster_secret_file),
            name: self.cluster_name.or(file.cluster_name),
            replica_timeout: self.replica_timeout.or(file.replica_timeout),
            tombstone_grace: self.tombstone_grace.or(file.tombstone_grace),
        };
        let (cluster, listen) = cluster.check(self.listen.or(file.listen).as_deref())?;
        let admin_listen = self.admin_listen.or(file.admin_listen);
        let size = |name: &str, flag: Option<Size>, file: Option<Size>, default: u64, most: u64| {
            in_range(name, flag.or(file).unwrap_or(Size(default)).0, 1, most)
        };
        let max_value = size("max-value", self.max_value, file.max_value, 16 << 20, VALUE_MAX_LIMIT as u64)? as usize;
        let in_flight_bytes = (self.max_in_flight_bytes, file.max_in_flight_bytes);
        let max_in_flight_bytes =
            size("max-in-flight-bytes", in_flight_bytes.0, in_flight_bytes.1, 256 << 20, 1 << 40)? as usize;
        let compaction_rate = size("compaction-rate", self.compaction_rate, file.compaction_rate, 64 << 20, 1 << 40)?;
        let count = |name: &str, flag: Option<usize>, file: Option<usize>, default: usize, most: usize| {
            in_range(name, flag.or(file).unwrap_or(default), 1, most)
        };
        let span = |flag: Option<Span>, file: Option<Span>, default: u64| {
            flag.or(file).map_or(Duration::from_secs(default), |span| span.0)
        };
        let token_file = self.admin_token_file.or(file.admin_token_file);
        let admin_token = token_file.as_deref().map(|path| read_token("--admin-token-file", path)).transpose()?;
        Ok(Config {
            listen,
            data: self.data.or(file.data).unwrap_or_else(|| PathBuf::from(DATA_DEFAULT)),
            threads: count("threads", self.threads, file.threads, allowed_processors(), THREADS_MAX)?,
            sync: sync_mode(&self.sync.or(file.sync).unwrap_or_else(|| "1s".to_owned()))?,
            max_value,
            max_connections: count("max-connections", self.max_connections, file.max_connections, 10_000, 10_000_000)?,
            request_timeout: span(self.request_timeout, file.request_timeout, 10),
            idle_timeout: span(self.idle_timeout, file.idle_timeout, 300),
            max_in_flight: count("max-in-flight", self.max_in_flight, file.max_in_flight, 16_384, 1 << 30)?,
            max_in_flight_bytes,
            admin_listen: admin_listen.map(|text| address("admin-listen", &text)).transpose()?,
            admin_token,
            compaction_rate,
            stall_bound: stall_bound(self.stall_bound.or(file.stall_bound).as_deref())?,
            no_pin: self.no_pin || file.no_pin,
            cluster,
        })
    }
}

/// A turn of a core takes microseconds; a minute of it is a dead core.
fn stall_bound(text: Option<&str>) -> Result<Option<Duration>, String> {
    const RANGE: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);
    match text {
        None => Ok(Some(STALL_BOUND_DEFAULT)),
        Some("0") => Ok(None),
        Some(text) => match text.parse::<Span>() {
            Ok(Span(bound)) if RANGE.contains(&bound) => Ok(Some(bound)),
            _ => Err(format!("--stall-bound {text} is neither 0 nor a duration from 1ms to 60s")),
        },
    }
}

/// The token in the file of a flag.
pub fn read_token(flag: &str, path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{flag} {}: {e}", path.display()))?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("{flag} {} does not hold one token of printable characters", path.display()));
    }
    Ok(token.to_owned())
}

/// The sync mode as its flag has it.
pub fn sync_text(mode: SyncMode) -> String {
    match mode {
        SyncMode::Os => "os".to_owned(),
        SyncMode::Always => "always".to_owned(),
        SyncMode::Every(interval) => Span(interval).to_string(),
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;

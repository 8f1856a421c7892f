//! The checks that need several settings or the machine: where addresses lead, what the named files
//! contain, and which cluster the nodes form. The result is a [`Config`].
//!
//! Every node of a cluster gets the same URLs in any order. Sorted, they are the same list with the
//! same indices on every node. Only this node's own name is resolved here; those of the others are
//! when they are dialed, so that a name server that is away, or a machine that is gone, keeps no node
//! from starting.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::address::{HostPort, resolve};
use super::config::{Cluster, Config, Member};
use super::given::Given;
use super::grammar::{FilePath, Grammar};
use super::places::{Address, Url};
use super::said::Said;
use super::secret::{read_own_token, read_secrets};
use super::table::{
    ADMIN_LISTEN, ADMIN_TOKEN_FILE, ALLOWED_HOST, CLUSTER, CLUSTER_NAME, CLUSTER_SECRET_FILE, COMPACTION_RATE,
    CORS_ORIGIN, DATA, IDLE_TIMEOUT, LISTEN, LOG_FORMAT, LOG_LEVEL, LOG_NAME, MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_ADDRESS, MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES, MAX_VALUE, NO_PIN, NODE, REPAIR_RATE,
    REPLICA_LISTEN, REPLICA_TIMEOUT, REQUEST_TIMEOUT, SCRUB_INTERVAL, STALL_BOUND, SYNC, Setting, THREADS,
};
use super::{Flags, REPLICA_PORT_OFFSET};
use crate::logging::LogSettings;

/// The nodes of `--cluster` by URL.
type Nodes = BTreeMap<String, HostPort>;

impl Flags {
    /// Reads the environment and the configuration file, too, fills in the defaults and checks
    /// everything. The second value are warnings for the log, which may be about the log.
    ///
    /// # Errors
    /// One sentence that says which setting is wrong, where it was given, and what it may be.
    pub fn check(self) -> Result<(Config, Vec<String>), String> {
        let given = Given::gather(self.0, std::env::vars_os(), |_| true)?;
        let config = check(&given)?;
        Ok((config, given.warnings))
    }
}

/// Fills in the defaults and checks what the grammars cannot.
pub(super) fn check(given: &Given) -> Result<Config, String> {
    let (cluster, listen) = cluster(given)?;
    // Bounds in the table keep them all below 2^41, and a `usize` has 64 bits where this runs.
    let count = |number: u64| number as usize;
    Ok(Config {
        listen,
        data: given.value(&DATA)?,
        threads: count(given.value(&THREADS)?.0),
        sync: given.value(&SYNC)?,
        max_value: count(given.value(&MAX_VALUE)?.0),
        max_connections: count(given.value(&MAX_CONNECTIONS)?.0),
        max_connections_per_address: given.optional(&MAX_CONNECTIONS_PER_ADDRESS)?.map(|max| count(max.0)),
        request_timeout: given.value(&REQUEST_TIMEOUT)?.0,
        idle_timeout: given.value(&IDLE_TIMEOUT)?.0,
        max_in_flight: count(given.value(&MAX_IN_FLIGHT)?.0),
        max_in_flight_bytes: count(given.value(&MAX_IN_FLIGHT_BYTES)?.0),
        own_hosts: own_hosts(given, cluster.as_ref())?,
        allowed_hosts: given.optional(&ALLOWED_HOST)?.unwrap_or_default(),
        cors_origins: given.optional(&CORS_ORIGIN)?.unwrap_or_default(),
        admin_listen: address(given, &ADMIN_LISTEN)?,
        admin_token: in_file(given, &ADMIN_TOKEN_FILE, read_own_token)?,
        compaction_rate: given.value(&COMPACTION_RATE)?.0,
        scrub_interval: given.value(&SCRUB_INTERVAL)?,
        stall_bound: given.value(&STALL_BOUND)?,
        log: LogSettings {
            level: given.value(&LOG_LEVEL)?,
            format: given.value(&LOG_FORMAT)?,
            name: given.optional(&LOG_NAME)?,
        },
        no_pin: given.value(&NO_PIN)?,
        cluster,
    })
}

/// The hosts by which the settings call this node.
fn own_hosts(given: &Given, cluster: Option<&Cluster>) -> Result<Vec<String>, String> {
    let of_url = |url: &str| HostPort::parse(url).map(|address| address.host);
    let listen = given.value(&LISTEN)?;
    let node = given.optional(&NODE)?.map(|node| node.host);
    let member = cluster.and_then(|cluster| of_url(&cluster.nodes[cluster.me].url));
    Ok(HostPort::parse(&listen).map(|address| address.host).into_iter().chain(node).chain(member).collect())
}

/// Reads the file that a setting names; `None` if the setting was not given.
fn in_file<T>(
    given: &Given,
    setting: &Setting<FilePath>,
    read: fn(&str, &std::path::Path) -> Result<T, String>,
) -> Result<Option<T>, String> {
    let Some(said) = given.said(setting) else { return Ok(None) };
    let path = setting.grammar.parse(&said.text)?;
    read(&said.to_string(), &path).map(Some)
}

/// Where the address leads that was given for a setting; `None` if none was.
fn address(given: &Given, setting: &Setting<Address>) -> Result<Option<SocketAddr>, String> {
    let (Some(said), Some(text)) = (given.said(setting), given.optional(setting)?) else { return Ok(None) };
    resolve(&text).map(Some).map_err(|e| format!("{said} cannot be resolved: {e}"))
}

/// The address to listen at for HTTP: the one that was given, or else `default`.
fn listen_at(given: &Given, default: &str) -> Result<SocketAddr, String> {
    match address(given, &LISTEN)? {
        Some(address) => Ok(address),
        None => resolve(default).map_err(|e| format!("{default} cannot be resolved: {e}")),
    }
}

/// The cluster, if there is one, and the address to listen at for HTTP.
fn cluster(given: &Given) -> Result<(Option<Cluster>, SocketAddr), String> {
    let Some(urls) = given.optional(&CLUSTER)? else {
        let needs = |what: &str| format!("{what} needs --{}, the list of all nodes", CLUSTER.name);
        let of_a_cluster = [given.said(&NODE), given.said(&REPLICA_LISTEN), given.said(&CLUSTER_SECRET_FILE)];
        if let Some(said) = of_a_cluster.into_iter().flatten().next() {
            return Err(needs(&said.without_value()));
        }
        if let Some(address) = given.replica_addresses.first() {
            return Err(needs(&address.place));
        }
        let listen = given.value(&LISTEN)?;
        return Ok((None, listen_at(given, &listen)?));
    };
    let (me, listen) = self_among(&urls, given)?;
    let nodes = members(urls, given)?;
    let replica_listen = match address(given, &REPLICA_LISTEN)? {
        Some(address) => address,
        None => {
            let Member { url, replica } = &nodes[me];
            replica.resolve().map_err(|e| format!("the replica address {replica} of {url} cannot be resolved: {e}"))?
        }
    };
    let secrets = in_file(given, &CLUSTER_SECRET_FILE, read_secrets)?.unwrap_or_default();
    // A node alone has no replica listener.
    if nodes.len() == 1 {
        return Ok((None, listen));
    }
    if secrets.is_empty() && !replica_listen.ip().to_canonical().is_loopback() {
        return Err(format!(
            "the replica listener {replica_listen} is reachable beyond loopback: give --{}",
            CLUSTER_SECRET_FILE.name
        ));
    }
    let cluster = Cluster {
        name: given.value(&CLUSTER_NAME)?,
        nodes,
        me,
        replica_listen,
        secrets,
        replica_timeout: given.value(&REPLICA_TIMEOUT)?.0,
        repair_rate: given.value(&REPAIR_RATE)?.0,
    };
    Ok((Some(cluster), listen))
}

/// The index of this node in the cluster, and the address at which it listens for HTTP.
fn self_among(nodes: &Nodes, given: &Given) -> Result<(usize, SocketAddr), String> {
    if let Some(wanted) = given.optional(&NODE)? {
        let me = nodes.values().position(|node| *node == wanted);
        let named = || given.said(&NODE).map(Said::to_string).unwrap_or_default();
        let me = me.ok_or_else(|| format!("{} is not one of the nodes of --{}", named(), CLUSTER.name))?;
        return Ok((me, listen_at(given, &wanted.to_string())?));
    }
    let listen = given.value(&LISTEN)?;
    let bound = listen_at(given, &listen)?;
    let written = HostPort::parse(&listen);
    // As it is written, or else by where it leads: `localhost:1337` matches
    // `http://127.0.0.1:1337`.
    let me = nodes.values().position(|node| Some(node) == written.as_ref()).or_else(|| {
        nodes.values().position(|node| node.port == bound.port() && node.resolve().is_ok_and(|to| to == bound))
    });
    let named = || given.said(&LISTEN).map_or_else(|| format!("--listen {listen} (the default)"), Said::to_string);
    let me = me.ok_or_else(|| {
        format!("{} is not one of the nodes of --{}: say which with --{}", named(), CLUSTER.name, NODE.name)
    })?;
    Ok((me, bound))
}

/// The replica addresses of the file by the URLs of their nodes.
fn replica_addresses(nodes: &Nodes, given: &Given) -> Result<Nodes, String> {
    let mut addresses = BTreeMap::new();
    for line in &given.replica_addresses {
        let place = &line.place;
        let url = Url.parse(line.url.as_ref()).map_err(|refusal| format!("{place} {:?} {refusal}", line.url))?.url();
        if !nodes.contains_key(&url) {
            return Err(format!("{place} {url} is not one of the nodes of --{}", CLUSTER.name));
        }
        let wrong = |why| format!("{place} {url}: {:?} is not HOST:PORT such as 127.0.0.1:11337: {why}", line.address);
        let address = HostPort::read_peer(&line.address).map_err(wrong)?;
        if addresses.insert(url.clone(), address).is_some() {
            return Err(format!("{place} names {url} twice"));
        }
    }
    Ok(addresses)
}

/// The nodes with their replica addresses, in the order of their URLs.
fn members(urls: Nodes, given: &Given) -> Result<Vec<Member>, String> {
    let mut addresses = replica_addresses(&urls, given)?;
    let mut members: Vec<Member> = Vec::with_capacity(urls.len());
    for (url, node) in urls {
        let replica = match (addresses.remove(&url), node.port.checked_add(REPLICA_PORT_OFFSET)) {
            (Some(address), _) => address,
            (None, Some(port)) => HostPort { host: node.host, port },
            (None, None) => {
                return Err(format!(
                    "{url} has no replica port: {} + {REPLICA_PORT_OFFSET} is above 65535, give its address in \
                     [replica-addresses] of the file of --config",
                    node.port
                ));
            }
        };
        if !replica.can_be_resolved() {
            return Err(format!("the replica address {replica} of {url} cannot be resolved: that is no name"));
        }
        let known = replica.known();
        let is_same = |other: &HostPort| *other == replica || (known.is_some() && other.known() == known);
        if let Some(other) = members.iter().find(|other| is_same(&other.replica)) {
            return Err(format!("{} and {url} have one replica address, {replica}", other.url));
        }
        members.push(Member { url, replica });
    }
    Ok(members)
}

//! `koltso serve`: from the flags to a serving node, and back down when it is told to stop.
//!
//! The order matters. Everything that can be wrong in the settings is found before anything is
//! touched: flags first, then the address, then the folder. Listeners accept requests while the log
//! is recovered, and answer 503. At the end the cores finish what is in flight, the log is synced
//! and sealed, and the process exits with 0.

pub mod cores;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use koltso_cluster::membership::Membership;
use koltso_model::VALUE_MAX_LIMIT;
use koltso_net::replica::STRANGERS_MAX;
use koltso_storage::{Env, Folder, Options, Store};
use tokio::sync::mpsc;

use crate::admin::control;
use crate::descriptors::{self, Needs, Shares};
use crate::logging;
use crate::member::Cluster;
use crate::member::members_file;
use crate::node::{Node, Runtime};
use crate::replica::clock::{self, now_ms};
use crate::settings::{Config, Flags};
use crate::signals;
use crate::stalls;
use crate::usage;

/// How often the bound of the clock is written.
const CLOCK_EVERY: Duration = Duration::from_millis(100);
/// The peers are checked after this many writes of the bound.
const CLOCKS_A_LOOK: u32 = 10;

/// What went wrong before the node served, in one sentence; the exit code is 2.
struct Refused(String);

impl From<String> for Refused {
    fn from(sentence: String) -> Self {
        Self(sentence)
    }
}

/// Runs a node until it is told to stop.
pub fn run(flags: Flags) -> ExitCode {
    match serve(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Refused(sentence)) => {
            logging::complain(&sentence);
            ExitCode::from(2)
        }
    }
}

/// Divides the descriptors that the process may open; says so if that leaves fewer for clients than
/// they were to have. The listeners are open by now.
fn share_descriptors(config: &Config) -> Result<Shares, Refused> {
    let limit = descriptors::raise();
    let shares = descriptors::share(
        limit,
        Needs {
            // Where there is no /proc, about what is open.
            open: descriptors::count_open().unwrap_or(4 + 2 * config.threads),
            cores: config.threads,
            peers: config.cluster.as_ref().map_or(0, |cluster| cluster.nodes.len() - 1),
            admin_listeners: usize::from(config.admin_listen.is_some()),
            connections: config.max_connections,
            strangers_max: STRANGERS_MAX,
        },
    )?;
    if shares.connections < config.max_connections {
        tracing::warn!(
            "at most {} connections are taken and not {} (--max-connections): this process may open {limit} files and \
             sockets (ulimit -n), and {} of them are kept for its files, peers and pages",
            shares.connections,
            config.max_connections,
            limit - shares.connections
        );
    }
    Ok(shares)
}

/// Gives freed memory back to the system.
#[allow(unsafe_code)]
fn give_memory_back() {
    // SAFETY: mimalloc is the allocator of this program (`main.rs`), and collecting is allowed on
    // any of its threads.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// Allows huge pages again. The allocator is built not to use them, since it would fill them only
/// in part, and thereby forbids them to the whole process; the index asks for them and fills them.
#[allow(unsafe_code)]
fn allow_huge_pages() {
    // SAFETY: this system call takes no pointers.
    let _ = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0) };
}

fn options(config: &Config) -> Options {
    Options {
        sync: config.sync,
        // `--max-value` binds clients, whose bodies the listeners compare with it. Peers bring what
        // their clients may write.
        value_max: VALUE_MAX_LIMIT,
        compaction_rate: config.compaction_rate,
        scrub_interval: config.scrub_interval.unwrap_or_default(),
        memory_freed: give_memory_back,
        // If this node is alone it makes all versions itself, and none arrives later than a core may
        // be held up by its disk.
        agreed_after: config.cluster.is_none().then_some(Duration::from_secs(10)),
        env: Arc::new(Machine),
        ..Options::new(&config.data)
    }
}

/// The machine, with the wall clock that the node goes by: a jump must not make the store forget
/// deletes.
struct Machine;

impl Env for Machine {
    fn now_ms(&self) -> u64 {
        now_ms()
    }
}

fn cannot_use_clock(data: &Path, e: &std::io::Error) -> Refused {
    Refused(format!("the file clock in the data folder {} cannot be used: {e}", data.display()))
}

/// Compares the wall clock with the monotonic one. In a cluster it continues versions above those of
/// an earlier life, and keeps the bound of the clock ahead of it, so that no core has to do that; the
/// same thread looks after the peers. This must be called when
/// nothing can keep the node from serving any more: a start that fails must not make the node look
/// as if it had been there.
fn go_on_with_the_clock(node: &Arc<Node>) -> Result<(), Refused> {
    let data = &node.config.data;
    if node.cluster.is_some() {
        node.clock.persist_in(data, now_ms()).map_err(|e| cannot_use_clock(data, &e))?;
    }
    let node = node.clone();
    let keep = move || {
        loop {
            for _ in 0..CLOCKS_A_LOOK {
                std::thread::sleep(CLOCK_EVERY);
                clock::look(node.nodes());
                node.clock.refresh(now_ms());
            }
            if let Some(cluster) = &node.cluster {
                cluster.look_after();
            }
        }
    };
    let spawned = std::thread::Builder::new().name("koltso-clock".to_owned()).spawn(keep);
    spawned.map_err(cannot_start)?;
    Ok(())
}

fn cannot_start(e: std::io::Error) -> Refused {
    Refused(format!("the server's threads cannot be started: {e}"))
}

/// The line before the ready line.
fn say_what_starts(node: &Node, store: &Store) {
    let data = std::path::absolute(&node.config.data).unwrap_or_else(|_| node.config.data.clone());
    let (records, members) = (store.stats().records, node.config.cluster.as_ref().map_or(1, |it| it.nodes.len()));
    let count = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    tracing::info!(
        "koltso {}, data folder {}, engine {}, {}, {}",
        env!("CARGO_PKG_VERSION"),
        data.display(),
        node.runtime.name(),
        count(records, "record"),
        count(members as u64, "member")
    );
}

fn serve(flags: Flags) -> Result<(), Refused> {
    let checked = flags.check().map_err(|sentence| usage::after_a_flag::<Flags>("serve", &sentence));
    let (mut config, warnings) = checked?;
    logging::configure(&config.log);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    allow_huge_pages();
    signals::prepare();
    let in_use = |name: &str, address, e| format!("the address {address} of --{name} cannot be used: {e}");
    let listeners = cores::bind(config.listen, config.threads).map_err(|e| in_use("listen", config.listen, e))?;
    let admin = match config.admin_listen {
        None => None,
        Some(address) => {
            let listener = cores::bind(address, 1).map_err(|e| in_use("admin-listen", address, e))?.remove(0);
            listener.set_nonblocking(true).map_err(|e| in_use("admin-listen", address, e))?;
            Some(listener)
        }
    };
    if !config.listen.ip().to_canonical().is_loopback() {
        tracing::warn!("anybody who reaches {} (--listen) can read and write everything here", config.listen);
    }
    if let Some(address) = listeners.first().and_then(|listener| listener.local_addr().ok()) {
        config.listen = address;
    }
    let reserved = match config.cluster.clone() {
        None => None,
        Some(settings) => {
            let address = settings.replica_listen;
            let sockets = cores::reserve(address, config.threads).map_err(|e| in_use("replica-listen", address, e))?;
            // Before anything is touched: a list that is no cluster.
            Membership::first(&Cluster::urls(&settings)).map_err(|e| e.to_string())?;
            Some((settings, sockets))
        }
    };
    let shares = share_descriptors(&config)?;
    config.max_connections = shares.connections;
    let folder = Folder::take(&config.data).map_err(|e| e.to_string())?;
    let id = members_file::identity_in(&config.data).map_err(|e| e.to_string())?;
    let cluster = match reserved {
        None => None,
        Some((settings, sockets)) => {
            let (urls, me) = (Cluster::urls(&settings), settings.nodes[settings.me].url.clone());
            let members = members_file::members_in(&config.data, &urls, &me, id).map_err(|e| e.to_string())?;
            let cluster = Cluster::new(settings, (members, id), config.threads, sockets, shares.strangers);
            Some(Arc::new(cluster.map_err(cannot_start)?))
        }
    };

    let (runtime, refusal) = cores::detect_runtime();
    match runtime {
        Runtime::Epoll => tracing::warn!(
            "io_uring is refused here (a container's seccomp profile?): serving over epoll, slower{}",
            refusal.map_or_else(String::new, |e| format!("; {e}"))
        ),
        Runtime::IoUring("default") => tracing::warn!("this kernel lacks the ring flags of 6.0: io_uring costs more"),
        Runtime::IoUring(_) => {}
    }
    let (sender, handovers) = mpsc::channel(shares.handovers);
    let stalls = config.stall_bound.map(stalls::watch).transpose().map_err(cannot_start)?;
    let node = Arc::new(Node::new((config, id), runtime, cluster, stalls, sender));
    control::spawn(node.clone(), handovers, (admin, shares.pages), runtime != Runtime::Epoll).map_err(cannot_start)?;
    let threads = cores::spawn(&node, listeners).map_err(cannot_start)?;

    let started = Instant::now();
    let (store, found) = Store::open_in(folder, options(&node.config)).map_err(|e| e.to_string())?;
    if found.segments > 0 {
        tracing::info!(
            "recovered {} keys from {} segments ({} without a sidecar) in {} ms",
            found.keys,
            found.segments,
            found.scanned,
            started.elapsed().as_millis()
        );
    }
    if found.torn_bytes > 0 {
        tracing::warn!(
            "cut off {} bytes of records that were half written when the process ended; {} of the records had whole ones \
             after them, and an older version counts in their place",
            found.torn_bytes,
            found.torn_records
        );
    }
    node.clock.observe(found.newest_clock);
    let store = Arc::new(store);
    let writers = (0..node.config.threads).map(|_| store.writer_on_a_full_disk()).collect::<Result<Vec<_>, _>>();
    let writers = writers.map_err(|e| format!("no segment can be made in the data folder: {e}"))?;
    let members = node.cluster.as_ref().map(|cluster| &cluster.membership);
    members_file::keep(&node.config.data, id, members).map_err(|e| e.to_string())?;
    if let Some(cluster) = &node.cluster {
        let data = &node.config.data;
        // Before the clock makes the folder look alive.
        let left = clock::left_in(data).map_err(|e| cannot_use_clock(data, &e))?;
        let before = (found.segments > 0, left.map_or(0, |left| left.alive_ms));
        let lost = (found.nameless > 0, store.unreadable_segments());
        cluster.start_standing(data, before, lost, &node.clock).map_err(|e| e.to_string())?;
        let cannot = |e| format!("the hints in the data folder cannot be used: {e}");
        cluster.start_hints(&node.config.data).map_err(cannot)?;
        cluster.start_repair(&store, &node.clock, node.config.sync).map_err(cannot_start)?;
    }
    if node.cluster.as_ref().and_then(|cluster| cluster.standing()).is_none_or(|standing| standing.is_kept()) {
        store.loss_is_known();
    }
    go_on_with_the_clock(&node)?;
    node.open(store.clone(), writers);
    while !node.all_joined() && !threads.iter().any(std::thread::JoinHandle::is_finished) {
        std::thread::sleep(Duration::from_millis(1));
    }
    // (A core that has ended already could not serve: what stopped it is said below.)
    if node.all_joined() {
        say_what_starts(&node, &store);
        logging::say(&format!("ready http://{}", node.config.listen));
    }

    for thread in threads {
        match thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(Refused(format!("a core could not serve: {e}"))),
            Err(_) => std::process::abort(),
        }
    }
    node.drop_writers();
    if let Some(hints) = node.cluster.as_ref().and_then(|cluster| cluster.hints()) {
        hints.stop();
    }
    if let Some(repair) = node.cluster.as_ref().and_then(|cluster| cluster.repair()) {
        repair.stop();
    }
    if let Some(standing) = node.cluster.as_ref().and_then(|cluster| cluster.standing()) {
        standing.finish();
    }
    node.clock.finish();
    store.close().map_err(|e| format!("the log could not be synced at the end: {e}"))?;
    tracing::info!("stopped");
    Ok(())
}

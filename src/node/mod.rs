//! One node of the process: what its cores and its control plane share.
//!
//! The storage is opened late: listeners accept requests before that and answer that the node is
//! recovering. Owner: the process, behind an `Arc`.

pub mod access;
pub mod dispatch;

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use koltso_instrument::Mutex;
use koltso_model::{NodeId, Standing};
use koltso_net::server::Shared;
use koltso_profiling::stalls::Stalls;
use koltso_storage::{Store, Writer};
use tokio::sync::mpsc;

use self::access::Access;
use crate::counters::CoreMetrics;
use crate::member::Cluster;
use crate::replica::clock::Clock;
use crate::settings::Config;

/// A connection on its way from a data core to the control plane.
pub struct Handover {
    /// The socket.
    pub socket: TcpStream,
    /// The bytes that were read from it, beginning with the request.
    pub read_so_far: Vec<u8>,
}

/// How the data cores wait for the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// io_uring, with the ring flags of this kernel.
    IoUring(&'static str),
    /// epoll, where io_uring is refused.
    Epoll,
}

impl Runtime {
    /// The name of the runtime in `/status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::IoUring(_) => "io_uring",
            Self::Epoll => "epoll",
        }
    }
}

struct OpenStore {
    store: Arc<Store>,
    /// The writer of each core; `None` once the core has taken it.
    writers: Mutex<Vec<Option<Writer>>>,
}

/// A node: see the head of the file.
pub struct Node {
    /// The settings of the node.
    pub config: Config,
    /// The identity of its data folder.
    pub id: NodeId,
    /// The clock that makes its versions.
    pub clock: Arc<Clock>,
    /// The open connections, and the flag that starts the drain.
    pub connections: Arc<Shared>,
    /// The counters of each core.
    pub metrics: Vec<Arc<CoreMetrics>>,
    /// What the HTTP listener answers to.
    pub access: Access,
    /// How the cores run.
    pub runtime: Runtime,
    /// The cluster that the node is a member of; `None` if it is the only node.
    pub cluster: Option<Arc<Cluster>>,
    /// The stalls of its cores; `None` when stall detection is off (`--stall-bound 0`).
    pub stalls: Option<Stalls>,
    /// How many cores have taken their writer and serve peers.
    joined: AtomicUsize,
    engine: OnceLock<OpenStore>,
    control: mpsc::Sender<Handover>,
    page_limit_hits: AtomicU64,
}

impl Node {
    /// A node whose storage is not open yet.
    pub fn new(
        (config, id): (Config, NodeId),
        runtime: Runtime,
        cluster: Option<Arc<Cluster>>,
        stalls: Option<Stalls>,
        control: mpsc::Sender<Handover>,
    ) -> Self {
        let metrics = (0..config.threads).map(|_| Arc::default()).collect();
        let access = Access::new(&config, config.listen);
        Self {
            config,
            id,
            clock: Arc::default(),
            connections: Shared::new(),
            metrics,
            access,
            runtime,
            cluster,
            stalls,
            joined: AtomicUsize::new(0),
            engine: OnceLock::new(),
            control,
            page_limit_hits: AtomicU64::new(0),
        }
    }

    /// The number of nodes in the cluster; 1 without one.
    pub fn nodes(&self) -> usize {
        self.cluster.as_ref().map_or(1, |cluster| cluster.topology.nodes())
    }

    /// The most replicas that a key can have; 1 without a cluster.
    pub fn replicas_max(&self) -> u64 {
        self.cluster.as_ref().map_or(1, |cluster| cluster.topology.replicas_max() as u64)
    }

    /// Whether this node has what it confirmed, for the replicas of its cores, which look at it
    /// before each read. One without a cluster has.
    pub fn whole(&self) -> Arc<AtomicBool> {
        let standing = self.cluster.as_ref().and_then(|cluster| cluster.standing());
        standing.map_or_else(|| Arc::new(AtomicBool::new(true)), |standing| standing.whole().clone())
    }

    /// How its data stands; `None` until the store is open.
    pub fn standing(&self) -> Option<Standing> {
        match &self.cluster {
            Some(cluster) => cluster.standing().map(|standing| standing.standing()),
            None => self.store().map(|_| Standing::Whole),
        }
    }

    /// Notes that one more core serves requests and peers.
    pub fn core_joined(&self) {
        self.joined.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether all cores serve requests and peers.
    pub fn all_joined(&self) -> bool {
        self.joined.load(Ordering::Acquire) >= self.config.threads
    }

    /// Makes the opened storage available to the cores, which serve requests from now on. May be
    /// called once.
    pub fn open(&self, store: Arc<Store>, writers: Vec<Writer>) {
        let writers = Mutex::new(&"writers", writers.into_iter().map(Some).collect());
        let opened = self.engine.set(OpenStore { store, writers });
        assert!(opened.is_ok(), "the engine is opened once");
    }

    /// The store; `None` until it is open.
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.engine.get().map(|engine| &engine.store)
    }

    /// The store and the writer of a core; `None` if the store is not open yet or the core has
    /// taken its writer before.
    pub fn take_writer(&self, core: usize) -> Option<(Arc<Store>, Writer)> {
        let engine = self.engine.get()?;
        let writer = engine.writers.lock().get_mut(core)?.take()?;
        Some((engine.store.clone(), writer))
    }

    /// Drops the writers that no core took, so that the store can be closed.
    pub fn drop_writers(&self) {
        if let Some(engine) = self.engine.get() {
            engine.writers.lock().clear();
        }
    }

    /// One word for what the node is doing now.
    pub fn state(&self) -> &'static str {
        match self.store() {
            _ if self.connections.draining() => "draining",
            None => "recovering",
            Some(store) if store.has_failed() => "failed",
            Some(_) if !self.all_joined() => "recovering",
            Some(_) => "serving",
        }
    }

    /// Why `/health` does not answer 200, in a sentence; `None` if it does.
    pub fn unhealthy(&self) -> Option<&'static str> {
        match self.state() {
            "serving" => None,
            "draining" => Some("The node is draining: it finishes what is in flight and stops."),
            "failed" => Some("The disk failed: the node serves reads, and writes only after it was started again."),
            _ => Some("The node is still recovering its data."),
        }
    }

    /// A connection to the control plane was closed in favour of others.
    pub fn page_limit_hit(&self) {
        self.page_limit_hits.fetch_add(1, Ordering::Relaxed);
    }

    /// How often that happened.
    pub fn page_limit_hits(&self) -> u64 {
        self.page_limit_hits.load(Ordering::Relaxed)
    }

    /// Passes a connection to the control plane; closes it if as many as that takes are on their way
    /// already.
    pub fn hand_over(&self, handover: Handover) {
        if self.control.try_send(handover).is_err() {
            self.page_limit_hit();
            tracing::warn!("the control plane is overloaded: a connection to it was closed");
        }
    }
}

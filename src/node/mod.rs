//! One node of the process: what its cores and its control plane share.
//!
//! The engine comes late: listeners serve before it is open, and say so. Owner: the process, behind an `Arc`.

pub mod commit;
pub mod dispatch;
pub mod replica;
pub mod stalls;

use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use koltso_instrument::Mutex;
use koltso_net::server::Shared;
use koltso_profiling::stalls::Stalls;
use koltso_storage::{Store, Writer};
use tokio::sync::mpsc;

use crate::admin::metrics::CoreMetrics;
use crate::member::Cluster;
use crate::member::clock::Clock;
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
    /// As `/status` names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::IoUring(_) => "io_uring",
            Self::Epoll => "epoll",
        }
    }
}

struct Engine {
    store: Arc<Store>,
    /// One a core, until the core takes it.
    writers: Mutex<Vec<Option<Writer>>>,
}

/// The node.
pub struct Node {
    /// What it was told.
    pub config: Config,
    /// Its versions.
    pub clock: Clock,
    /// Its connections, and the order to drain.
    pub connections: Arc<Shared>,
    /// One a core.
    pub metrics: Vec<Arc<CoreMetrics>>,
    /// How the cores run.
    pub runtime: Runtime,
    /// The cluster that it is a member of, if there are more members.
    pub cluster: Option<Arc<Cluster>>,
    /// Where its cores were held up, unless nobody looks.
    pub stalls: Option<Stalls>,
    /// Cores that have taken their writer and serve peers.
    joined: AtomicUsize,
    engine: OnceLock<Engine>,
    control: mpsc::Sender<Handover>,
}

impl Node {
    /// A node whose engine is not open yet.
    pub fn new(
        config: Config,
        runtime: Runtime,
        cluster: Option<Arc<Cluster>>,
        stalls: Option<Stalls>,
        control: mpsc::Sender<Handover>,
    ) -> Self {
        let metrics = (0..config.threads).map(|_| Arc::default()).collect();
        Self {
            config,
            clock: Clock::default(),
            connections: Shared::new(),
            metrics,
            runtime,
            cluster,
            stalls,
            joined: AtomicUsize::new(0),
            engine: OnceLock::new(),
            control,
        }
    }

    /// Number of nodes in the cluster.
    pub fn nodes(&self) -> u64 {
        self.cluster.as_ref().map_or(1, |cluster| cluster.topology.nodes() as u64)
    }

    /// A core serves requests and peers from now on.
    pub fn core_joined(&self) {
        self.joined.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether all do.
    pub fn all_joined(&self) -> bool {
        self.joined.load(Ordering::Acquire) >= self.config.threads
    }

    /// The engine is open: from now on requests are served. Once.
    pub fn open(&self, store: Arc<Store>, writers: Vec<Writer>) {
        let writers = Mutex::new(&"writers", writers.into_iter().map(Some).collect());
        let opened = self.engine.set(Engine { store, writers });
        assert!(opened.is_ok(), "the engine is opened once");
    }

    /// The engine, once it is open.
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.engine.get().map(|engine| &engine.store)
    }

    /// The engine and a core's writer; the writer can be taken once.
    pub fn take_writer(&self, core: usize) -> Option<(Arc<Store>, Writer)> {
        let engine = self.engine.get()?;
        let writer = engine.writers.lock().get_mut(core)?.take()?;
        Some((engine.store.clone(), writer))
    }

    /// Lets go of the writers that no core took, so that the store can be closed.
    pub fn drop_writers(&self) {
        if let Some(engine) = self.engine.get() {
            engine.writers.lock().clear();
        }
    }

    /// One word on what the node does now.
    pub fn state(&self) -> &'static str {
        match self.store() {
            _ if self.connections.draining() => "draining",
            None => "recovering",
            Some(store) if store.has_failed() => "failed",
            Some(_) if !self.all_joined() => "recovering",
            Some(_) => "serving",
        }
    }

    /// Why `/health` is not 200, in a sentence.
    pub fn unhealthy(&self) -> Option<&'static str> {
        match self.state() {
            "serving" => None,
            "draining" => Some("The node is draining: it finishes what is in flight and stops."),
            "failed" => Some("The disk failed: the node serves reads, and writes only after it was started again."),
            _ => Some("The node is still recovering its data."),
        }
    }

    /// Gives a connection to the control plane. If that has a thousand waiting already, the connection is closed.
    pub fn hand_over(&self, handover: Handover) {
        if self.control.try_send(handover).is_err() {
            tracing::warn!("the control plane is overloaded: a connection to it was closed");
        }
    }
}

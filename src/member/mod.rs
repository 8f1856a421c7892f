//! This node as a member of a cluster: the decisions of `koltso-cluster` joined with links, the
//! engine and the disk.
//!
//! - `driver.rs`: one core's member, its links to the peers, the clients that wait.
//! - `replica.rs`: what this node does for peers that coordinate.
//! - `figures.rs`: what comparing replicas with each peer has come to.
//! - `missing.rs`: what a node that rebuilds waits for, where that is more than time.
//! - `members_file.rs`: the identity of the data folder, and the numbers of the members, on disk.
//! - `names.rs`: where the peers are, looked up at each dial.
//! - `peers.rs`: what is known of the peers, for `/status`, `/metrics` and the log.
//! - `repair/`: comparing replicas, and repairing them.
//! - `replay.rs`: the connections over which missed writes are replayed.
//! - `standing.rs`: whether this node has what it confirmed, and whom it remembers.
//! - `urls.rs`: what a sentence between nodes says of numbers, with URLs for them.
//!
//! Every core has a coordinator and one link to each peer of its own, so that no request is handed
//! from core to core.

mod driver;
mod figures;
pub mod members_file;
mod missing;
mod names;
mod peers;
mod repair;
mod replay;
mod replica;
pub mod standing;
mod urls;

use std::net::{IpAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use koltso_cluster::budget::Budget;
use koltso_cluster::membership::Membership;
use koltso_cluster::placement::{NodeIndex, Topology};
use koltso_hints::Keeper;
use koltso_instrument::Mutex;
use koltso_model::Standing;
use koltso_net::replica::{Epoch, Features, Identity, NodeId, PeerIdentity};
use koltso_net::server::Shared;
use koltso_storage::{Store, SyncMode};
use socket2::Socket;

pub use self::driver::{MemberDriver, Submitted, Ticket};
pub use self::figures::{RepairFigures, Repairs, standing_name};
use self::members_file::MembersError;
use self::missing::{Missing, Others};
use self::names::PeerName;
pub use self::peers::{PeerFigures, PeerState, Peers};
pub use self::repair::Repair;
pub use self::standing::{OwnStanding, Starting};
use self::urls::UrlsByNumber;

use crate::replica::clock::Clock;
use crate::settings;

/// Replica connections that the kernel holds until a core accepts them.
const BACKLOG: i32 = 1024;

/// What the cores share.
pub struct Cluster {
    /// What it was told.
    pub config: settings::Cluster,
    /// Who the members are.
    pub membership: Membership,
    /// Who is where.
    pub topology: Arc<Topology>,
    /// The identity of this node's data folder.
    id: NodeId,
    /// What is known of the peers.
    pub peers: Peers,
    /// What comparing with each of them has come to.
    pub repairs: Repairs,
    /// Connections of peers to this node, and the order to end them.
    pub shared: Arc<Shared>,
    /// Where the nodes are, by index; this node's own is not asked.
    names: Vec<Arc<PeerName>>,
    /// The most connections of a core that have not said who they are.
    strangers_max: usize,
    /// What hints and repair may send and write together, `--repair-rate`.
    pub budget: Arc<Budget>,
    /// The moment from which time is counted where it is told in µs.
    pub origin: Instant,
    hints: OnceLock<Arc<Keeper>>,
    standing: OnceLock<Arc<OwnStanding>>,
    /// What was logged last of what it misses to become whole.
    said_missing: Mutex<Option<(String, Instant)>>,
    repair: OnceLock<Arc<Repair>>,
    /// Bound, one a core. Nobody can connect before its core serves.
    listeners: Mutex<Vec<Option<Socket>>>,
}

impl Cluster {
    /// The cluster of a checked configuration and its members, with one bound socket a core, each of
    /// which has room for `strangers_max` connections that have not said who they are.
    ///
    /// # Errors
    /// The threads that look up names cannot be started.
    pub fn new(
        config: settings::Cluster,
        (membership, id): (Membership, NodeId),
        cores: usize,
        sockets: Vec<Socket>,
        strangers_max: usize,
    ) -> std::io::Result<Self> {
        let urls = Self::urls(&config);
        let names = config.nodes.iter().enumerate().map(|(at, node)| PeerName::of(at, &node.replica));
        let names = names.collect::<std::io::Result<_>>()?;
        let topology = Topology::of(&membership, &urls[config.me]);
        assert_eq!(topology.me().at(), config.me, "the configuration is sorted as the topology is");
        let peers = Peers::new(urls, &topology.numbers().collect::<Vec<_>>(), topology.me(), cores);
        let repairs = Repairs::new(topology.places());
        let listeners = Mutex::new(&"replica listeners", sockets.into_iter().map(Some).collect());
        let topology = Arc::new(topology);
        let (budget, origin) = (Arc::new(Budget::new(config.repair_rate)), Instant::now());
        let (shared, hints) = (Shared::new(), OnceLock::new());
        Ok(Self {
            config,
            membership,
            topology,
            id,
            peers,
            repairs,
            shared,
            names,
            strangers_max,
            budget,
            origin,
            hints,
            standing: OnceLock::new(),
            said_missing: Mutex::new(&"log lines about a rebuild", None),
            repair: OnceLock::new(),
            listeners,
        })
    }

    /// Reads from the data folder how this node stands and whom it remembers, counts the start, and
    /// goes on to write it down. `lived_ms`, and what it has and has lost, are of the folder before this
    /// start: see [`Starting`].
    ///
    /// # Errors
    /// See [`MembersError`].
    pub fn start_standing(
        &self,
        folder: &std::path::Path,
        (has_records, lived_ms): (bool, u64),
        (has_lost, unreadable): (bool, Vec<u64>),
        clock: &Arc<Clock>,
    ) -> Result<(), MembersError> {
        let members = self.topology.peers().map(|node| self.topology.number(node)).collect();
        let starting = Starting { folder, id: self.id, has_records, has_lost, unreadable, lived_ms };
        let standing = Arc::new(OwnStanding::open(starting, members, self.urls_by_number())?);
        standing.start_writing(clock.clone()).map_err(|error| MembersError::io("standing", folder, error))?;
        assert!(self.standing.set(standing).is_ok(), "the folder is started once");
        Ok(())
    }

    /// How this node stands, and whom it remembers; `None` until the store is open.
    pub fn standing(&self) -> Option<&Arc<OwnStanding>> {
        self.standing.get()
    }

    /// What this node waits for to become whole, where it rebuilds and that is more than time.
    pub fn missing(&self) -> Option<Missing> {
        if self.standing()?.standing() != Standing::Rebuilding {
            return None;
        }
        let mut others = Others::default();
        for node in self.topology.peers() {
            let standing = self.repairs.of(node).standing;
            match (standing, self.peers.state(node)) {
                (Some(Standing::Whole), PeerState::Up | PeerState::Open) => others.whole += 1,
                (Some(Standing::Rebuilding), PeerState::Up | PeerState::Open) => {}
                _ => others.unknown += 1,
            }
        }
        missing::missing(self.topology.nodes(), others)
    }

    /// A handshake with a peer is complete, and nothing that follows it has been handled.
    fn met(&self, peer: &PeerIdentity) {
        if let Some(standing) = self.standing() {
            standing.met(peer);
        }
    }

    /// Starts to keep hints in the data folder, and to replay those that are there.
    ///
    /// # Errors
    /// What the disk said.
    pub fn start_hints(self: &Arc<Self>, data: &std::path::Path) -> std::io::Result<()> {
        let keeper = replay::start(self, data)?;
        assert!(self.hints.set(keeper).is_ok(), "hints are started once");
        Ok(())
    }

    /// Starts to compare with the peers, and to answer those that compare with this node.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start_repair(
        self: &Arc<Self>,
        store: &Arc<Store>,
        clock: &Arc<Clock>,
        sync: SyncMode,
    ) -> std::io::Result<()> {
        let repair = Repair::start(self.clone(), store.clone(), clock.clone(), sync)?;
        assert!(self.repair.set(repair).is_ok(), "repair is started once");
        Ok(())
    }

    /// What compares replicas.
    pub fn repair(&self) -> Option<&Arc<Repair>> {
        self.repair.get()
    }

    /// A sentence between nodes, with URLs for numbers.
    fn translated(&self, sentence: &str) -> String {
        self.urls_by_number().translated(sentence)
    }

    /// What keeps the hints.
    pub fn hints(&self) -> Option<&Arc<Keeper>> {
        self.hints.get()
    }

    /// What is to be looked at about once a second: a peer that is away for longer than hints are
    /// kept has missed more than they hold.
    pub fn look_after(&self) {
        if let Some(Missing { sentence, for_good: true }) = self.missing()
            && peers::worth_a_line(&self.said_missing, &sentence)
        {
            tracing::error!("{sentence}");
        }
        let Some(hints) = self.hints.get() else {
            return;
        };
        for node in self.topology.peers() {
            let lived_ms = self.peers.lived_ms(node);
            if let Some(standing) = self.standing().filter(|_| lived_ms > 0 && self.peers.state(node) == PeerState::Up)
            {
                standing.heard(self.topology.number(node), lived_ms);
            }
            let needs_repair = hints.figures(node.at()).needs_repair;
            if !needs_repair && self.peers.away(node) > replay::age_max() {
                hints.mark(node.at(), "it was away for longer than hints are kept");
            }
        }
    }

    /// This node's number in versions.
    pub fn number(&self) -> u16 {
        self.topology.number(self.topology.me())
    }

    /// The addresses of the nodes in a configuration.
    pub fn urls(config: &settings::Cluster) -> Vec<String> {
        config.nodes.iter().map(|member| member.url.clone()).collect()
    }

    /// Who this node says it is.
    pub fn identity(&self) -> Identity {
        Identity {
            cluster: self.config.name.clone(),
            topology: self.topology.id(),
            epoch: Epoch::new(self.topology.epoch()),
            node: self.number(),
            introduction: self.acquaintances().introduction(),
            features: Features::KNOWN,
            secrets: self.config.secrets.clone(),
        }
    }

    /// Whom this node remembers. Nobody connects before the store is open.
    fn acquaintances(&self) -> Arc<OwnStanding> {
        self.standing.get().expect("the folder is started before anybody connects").clone()
    }

    /// What nodes are called for people.
    fn urls_by_number(&self) -> UrlsByNumber {
        UrlsByNumber::new(self.topology.numbers().zip(Self::urls(&self.config)))
    }

    /// The peer with this number.
    pub fn by_number(&self, number: u16) -> Option<NodeIndex> {
        self.topology.by_number(number)
    }

    /// Whether a member was at this address when it was last looked for.
    fn has_member_at(&self, address: IpAddr) -> bool {
        self.names.iter().any(|name| name.is_at(address))
    }

    /// A core's listener, from now on open to peers.
    fn listen(&self, core: usize) -> std::io::Result<Option<TcpListener>> {
        let Some(socket) = self.listeners.lock().get_mut(core).and_then(Option::take) else {
            return Ok(None);
        };
        socket.listen(BACKLOG)?;
        Ok(Some(socket.into()))
    }
}

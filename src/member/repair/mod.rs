//! Comparing replicas and repairing them, on threads of its own: what `koltso_cluster::exchange`
//! decides, joined with the store and with connections that block, so that no data core ever walks
//! digests or lists partitions.
//!
//! - `asking.rs`: the thread `koltso-repair-N`, which compares with peer N.
//! - `answering.rs`: the thread `koltso-answer-N`, which answers peer N when that compares.
//! - `mending.rs`: the thread `koltso-mend`, which fetches what was found damaged.
//! - `holdings.rs`: what this node has, for both.
//!
//! Owner: the process, behind an `Arc`. Bounds: two threads a peer and one; those of the machines; the rate
//! of `--repair-rate`, which hints share. They work in short turns, so that data cores come first. What
//! is written here goes to a log of its own.

mod answering;
mod asking;
mod holdings;
mod mending;

use std::collections::VecDeque;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use koltso_cluster::exchange::board::{Board, Look};
use koltso_cluster::exchange::pair::Pair;
use koltso_cluster::exchange::{Agreeing, Holdings};
use koltso_cluster::placement::NodeIndex;
use koltso_instrument::{Mutex, work_in_turns};
use koltso_model::{Record, Standing, Told, Version, WallTime};
use koltso_net::replica::PeerIdentity;
use koltso_storage::{Store, SyncMode, Writer};

use self::holdings::Here;
use super::Cluster;
use crate::replica::clock::{Clock, now_wall};

/// The most connections of a peer that are answered: over one it compares, over another it fetches
/// what was found damaged there.
const ANSWERED_MAX: usize = 2;
/// How long a thread sleeps before it looks whether it is to end.
const STEP: Duration = Duration::from_millis(200);

/// What the threads share.
pub struct Repair {
    cluster: Arc<Cluster>,
    store: Arc<Store>,
    clock: Arc<Clock>,
    /// What is written has to be on disk before it is confirmed.
    syncs: bool,
    board: Mutex<Board>,
    /// Made with the first record that comes.
    writer: Mutex<Option<Writer>>,
    /// Up to which clock this node has what it should have, see [`Told::agreed`].
    agreed: AtomicU64,
    /// Keys of a partition, about: from it follows how much is listed at once.
    keys_a_partition: AtomicU64,
    /// Since when this node rebuilds, as the board knows it.
    doubted_since: AtomicU64,
    /// How often it has become whole: the peers are told at once.
    became_whole: AtomicU64,
    stop: Arc<AtomicBool>,
    /// By node, what ends the threads that answer it, the oldest first.
    answers: Mutex<Vec<VecDeque<Arc<AtomicBool>>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// The board, locked for each call: nobody holds it while it lists or waits for a peer.
struct Shared<'a>(&'a Mutex<Board>);

impl Agreeing for Shared<'_> {
    fn heard(&mut self, peer: NodeIndex, told: Told, epoch: u64) {
        self.0.lock().heard(peer, told, epoch);
    }

    fn look(&mut self, now: WallTime, holdings: &mut dyn Holdings) -> Look {
        self.0.lock().look(now, holdings)
    }

    fn equal(&mut self, peer: NodeIndex, from: u8, partitions: &[(u16, u32)], look: Look, holdings: &mut dyn Holdings) {
        self.0.lock().equal(peer, from, partitions, look, holdings);
    }

    fn equal_with_itself(&mut self, look: Look, holdings: &mut dyn Holdings) {
        self.0.lock().equal_with_itself(look, holdings);
    }

    fn in_use(&mut self, own_froms: u64) -> u64 {
        self.0.lock().in_use(own_froms)
    }

    fn returned(&mut self, peer: NodeIndex, place: (&Bytes, u16), from: u8, version: Version) -> Option<Record<Bytes>> {
        self.0.lock().returned(peer, place, from, version)
    }
}

impl Repair {
    /// Starts to compare with all peers.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(
        cluster: Arc<Cluster>,
        store: Arc<Store>,
        clock: Arc<Clock>,
        sync: SyncMode,
    ) -> std::io::Result<Arc<Self>> {
        let topology = cluster.topology.clone();
        let me = topology.me();
        let of_mine = topology.clone();
        store.agreements().keep_only(move |from, partition| of_mine.replicas_of(partition, from).contains(me));
        let repair = Arc::new(Self {
            board: Mutex::new(&"agreements of replicas", Board::new(topology.clone())),
            writer: Mutex::new(&"log of repairs", None),
            agreed: AtomicU64::new(0),
            keys_a_partition: AtomicU64::new(0),
            doubted_since: AtomicU64::new(0),
            became_whole: AtomicU64::new(0),
            stop: Arc::new(AtomicBool::new(false)),
            answers: Mutex::new(&"threads that answer", vec![VecDeque::new(); topology.places()]),
            threads: Mutex::new(&"threads of repair", Vec::new()),
            syncs: sync == SyncMode::Always,
            cluster,
            store,
            clock,
        });
        repair.look_at_standing();
        for peer in topology.peers() {
            let asking = asking::Asking::new(repair.clone(), Pair::new(topology.clone(), peer));
            repair.spawn(format!("koltso-repair-{}", peer.at()), move || asking.run())?;
        }
        let mending = mending::Mending::new(repair.clone());
        repair.spawn("koltso-mend", move || mending.run())?;
        Ok(repair)
    }

    fn spawn(&self, name: impl Into<String>, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(|| {
            work_in_turns();
            run();
        })?;
        let mut threads = self.threads.lock();
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }

    /// Takes over a connection on which a peer compares with this node, or fetches what was damaged
    /// there. The oldest one ends, if there are more than [`ANSWERED_MAX`].
    pub fn answer(self: &Arc<Self>, peer: PeerIdentity, socket: TcpStream, read_so_far: Vec<u8>) {
        let Some(node) = self.cluster.by_number(peer.node).filter(|_| !self.stop.load(Ordering::Relaxed)) else {
            return;
        };
        let stop = Arc::new(AtomicBool::new(false));
        {
            let answered = &mut self.answers.lock()[node.at()];
            // Those that have ended have given theirs back.
            answered.retain(|stop| Arc::strong_count(stop) > 1);
            if answered.len() >= ANSWERED_MAX
                && let Some(before) = answered.pop_front()
            {
                before.store(true, Ordering::Relaxed);
            }
            answered.push_back(stop.clone());
        }
        let repair = self.clone();
        let answering = move || answering::run(&repair, node, (peer, socket, read_so_far), stop);
        if let Err(error) = self.spawn(format!("koltso-answer-{}", node.at()), answering) {
            tracing::warn!(
                "{} compares and gets no answer: no thread can be started: {error}",
                self.cluster.peers.url(node)
            );
        }
    }

    /// Ends the threads, and gives up what they write with: before the store is closed.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        for answer in self.answers.lock().iter().flatten() {
            answer.store(true, Ordering::Relaxed);
        }
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            assert!(thread.join().is_ok() || std::thread::panicking(), "a thread of repair had panicked");
        }
        *self.writer.lock() = None;
    }

    fn board(&self) -> Shared<'_> {
        Shared(&self.board)
    }

    fn here(self: &Arc<Self>) -> Here {
        Here::new(self.clone())
    }

    /// Time that hints and repairs count together, in µs.
    fn micros(&self) -> u64 {
        self.cluster.origin.elapsed().as_micros() as u64
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Sleeps, unless `stop` says that it is to end.
    fn rest(&self, time: Duration, stop: &AtomicBool) {
        let until = Instant::now() + time;
        while !stop.load(Ordering::Relaxed) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(STEP));
        }
    }

    /// So many bytes were sent and received: how long the rate asks to rest.
    fn spend(&self, bytes: u64) -> Duration {
        Duration::from_micros(self.cluster.budget.spend(self.micros(), bytes))
    }

    /// How long it would have to rest before anything more is sent.
    fn owes(&self) -> Duration {
        self.spend(0)
    }

    /// So many bytes were sent and received: rests as long as the rate asks for.
    fn pay(&self, bytes: u64) {
        self.rest(self.spend(bytes), &self.stop);
    }

    /// Follows what handshakes have made of this node's standing.
    fn look_at_standing(&self) {
        let Some(standing) = self.cluster.standing() else { return };
        let since = standing.since_ms();
        let mut board = self.board.lock();
        if since > 0 && self.doubted_since.swap(since, Ordering::Relaxed) != since {
            board.doubts(now_wall());
        }
        board.stands(standing.standing(), now_wall());
    }

    /// After a round: what follows from what was agreed on.
    fn conclude(&self, froms: u64) {
        self.look_at_standing();
        if let Some(writer) = self.writer.lock().as_mut() {
            writer.roll_if_dead();
        }
        let Some(standing) = self.cluster.standing() else { return };
        let (agreed, progress) = {
            let board = self.board.lock();
            let progress = (standing.standing() != Standing::Whole).then(|| board.progress(froms));
            (board.agreed(froms), progress)
        };
        self.agreed.store(agreed, Ordering::Relaxed);
        if standing.standing() == Standing::Rebuilding && progress.is_some_and(|progress| progress.is_done()) {
            standing.became_whole();
            self.board.lock().stands(Standing::Whole, now_wall());
            self.became_whole.fetch_add(1, Ordering::Relaxed);
        }
    }
}

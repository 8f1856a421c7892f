//! The network: connections that break, stall and are made again, and what travels over them.
//!
//! Of each node to each peer there are two connections, as in the program: one of its core, with an
//! outbox and redialing as `koltso_net::replica::redial` decides, and one of its keeper of hints,
//! which dials when a replay says so.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use koltso_cluster::coordinator::RequestId;
use koltso_cluster::member::{Clocks, QueueFull};
use koltso_cluster::placement::NodeIndex;
use koltso_model::{ExchangeReply, ExchangeRequest, KeyHash, Operation, Outcome, Record};
use koltso_net::replica::redial::{Redial, has_room};

use super::plan::{Mode, Plan};
use super::world::{MS, SECOND, Work, World};

/// The bounds of queues when all is well: a queue that is full is a fault.
const AMPLE: usize = 32 << 10;
/// Connections on which nothing is acknowledged for so long are given up, where cuts last that long.
const USER_TIMEOUT: u64 = 5 * SECOND;
/// How long a dial waits for a peer that does not answer.
const DIAL_PATIENCE: u64 = 500 * MS;

#[derive(Clone, Debug)]
pub enum Msg {
    Request {
        epoch: u64,
        id: RequestId,
        operation: Operation<Bytes>,
    },
    Reply {
        id: RequestId,
        key_hash: KeyHash,
        outcome: Outcome<Bytes>,
    },
    Ping {
        id: RequestId,
        clocks: Clocks,
    },
    Pong {
        id: RequestId,
        clocks: Clocks,
    },
    Hint {
        window: u64,
        at: usize,
        record: Record<Bytes>,
    },
    HintReply {
        window: u64,
        at: usize,
        outcome: Outcome<Bytes>,
    },
    /// With the epoch of the asker.
    Exchange(u64, ExchangeRequest),
    ExchangeReply(ExchangeReply),
    /// The record of a key that is damaged at the asker.
    Lookup(Bytes),
    Found(Option<Record<Bytes>>),
}

impl Msg {
    pub fn is_answer(&self) -> bool {
        matches!(
            self,
            Self::Reply { .. } | Self::Pong { .. } | Self::HintReply { .. } | Self::ExchangeReply(_) | Self::Found(_)
        )
    }

    /// About the bytes of its frame.
    fn size(&self) -> usize {
        48 + match self {
            Self::Request { operation: Operation::Write(record), .. } | Self::Hint { record, .. } => record.len(),
            Self::Request { operation: Operation::Read { key, .. }, .. } => key.bytes().len(),
            _ => 0,
        }
    }
}

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Core,
    Hints,
    Exchange,
}

impl Lane {
    pub const COUNT: usize = 3;
    pub const ALL: [Self; Self::COUNT] = [Self::Core, Self::Hints, Self::Exchange];
}

/// Where a message travels: the connection that `asker` made to `peer`, in its life number `epoch`.
#[derive(Clone, Copy, Debug)]
pub struct Via {
    pub asker: usize,
    pub peer: usize,
    pub lane: Lane,
    pub epoch: u32,
}

/// What the asker knows of its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Down,
    Dialing,
    Up,
}

#[derive(Default)]
pub struct Link {
    pub epoch: u32,
    /// It works, whatever the asker knows.
    pub up: bool,
    pub phase: Phase,
    redial: Redial,
    /// Which dial is the next one: a pause that was cut short leaves an event behind.
    attempt: u64,
    begun: u64,
    up_since: u64,
    outbox: VecDeque<Msg>,
    outbox_bytes: usize,
    socket_bytes: usize,
    /// When the last message of each direction arrives.
    last: [u64; 2],
    stalled: VecDeque<Msg>,
}

impl Link {
    pub fn forget(&mut self) {
        self.up = false;
        self.phase = Phase::Down;
        self.attempt += 1;
        self.outbox.clear();
        self.stalled.clear();
        (self.outbox_bytes, self.socket_bytes) = (0, 0);
    }
}

impl World {
    pub fn link(&mut self, asker: usize, peer: usize, lane: Lane) -> &mut Link {
        let index = (asker * self.plan.nodes + peer) * Lane::COUNT + lane as usize;
        &mut self.links[index]
    }

    fn via(&mut self, asker: usize, peer: usize, lane: Lane) -> Via {
        let epoch = self.link(asker, peer, lane).epoch;
        Via { asker, peer, lane, epoch }
    }

    fn is_cut(&self, one: usize, other: usize) -> bool {
        self.cut[one * self.plan.nodes + other] > 0
    }

    pub fn peers(&self, node: usize) -> impl Iterator<Item = usize> + use<> {
        (0..self.plan.nodes).filter(move |&peer| peer != node)
    }

    // ---- messages ----

    /// Queues a request of a core.
    pub fn queue(&mut self, asker: usize, peer: usize, msg: Msg) -> Result<(), QueueFull> {
        let most = if self.healed { AMPLE } else { self.plan.outbox_max };
        let link = self.link(asker, peer, Lane::Core);
        if !has_room(link.outbox_bytes, most) {
            self.stats.outbox_full += 1;
            return Err(QueueFull);
        }
        link.outbox_bytes += msg.size();
        link.outbox.push_back(msg);
        match link.phase {
            Phase::Up => self.flush(asker, peer),
            Phase::Down => self.dial_now(asker, peer),
            Phase::Dialing => {}
        }
        Ok(())
    }

    /// Gives the kernel what it takes of an outbox.
    pub fn flush(&mut self, asker: usize, peer: usize) {
        let (via, most) = (self.via(asker, peer, Lane::Core), if self.healed { AMPLE } else { self.plan.socket_max });
        loop {
            let link = self.link(asker, peer, Lane::Core);
            if link.phase != Phase::Up || link.socket_bytes >= most {
                return;
            }
            let Some(msg) = link.outbox.pop_front() else { return };
            let size = msg.size();
            link.outbox_bytes -= size;
            link.socket_bytes += size;
            self.transmit(via, msg);
        }
    }

    /// A request has left the kernels' buffers.
    fn drained(&mut self, via: Via, size: usize) {
        let link = self.link(via.asker, via.peer, via.lane);
        link.socket_bytes = link.socket_bytes.saturating_sub(size);
        let waited = !link.outbox.is_empty();
        let asker = &self.nodes[via.asker];
        if via.lane == Lane::Core && waited && asker.up && !asker.paused {
            let now = self.clocks(via.asker);
            if let Some(member) = &mut self.nodes[via.asker].member {
                member.heard(now, NodeIndex(via.peer as u8));
            }
            self.flush(via.asker, via.peer);
        }
    }

    /// Puts a message on its way, if the connection works.
    pub fn transmit(&mut self, via: Via, msg: Msg) {
        let harsh = self.plan.mode == Mode::Harsh && !self.healed && via.lane == Lane::Core;
        let link = self.link(via.asker, via.peer, via.lane);
        if !link.up || link.epoch != via.epoch {
            return;
        }
        if harsh && self.random.per_million(self.plan.lost) {
            if !msg.is_answer() {
                self.drained(via, msg.size());
            }
            return;
        }
        if harsh && self.random.per_million(self.plan.doubled) {
            self.travel(via, msg.clone());
        }
        self.travel(via, msg);
    }

    fn travel(&mut self, via: Via, msg: Msg) {
        let (least, mean, tail) = self.plan.delay;
        let mut at = self.now + least + self.random.around(mean);
        if self.random.per_million(tail) && !self.healed {
            // A round trip beyond the silence that opens a circuit is an ailing peer: one more than
            // `Available` allows.
            let longest = if self.plan.mode == Mode::Available { 40 * MS } else { 80 * MS };
            at += self.random.below(longest);
        }
        let harsh = self.plan.mode == Mode::Harsh && !self.healed && via.lane == Lane::Core;
        let back = msg.is_answer();
        let link = self.link(via.asker, via.peer, via.lane);
        let last = &mut link.last[usize::from(back)];
        if !harsh {
            at = at.max(*last);
        }
        *last = at.max(*last);
        let to = if back { via.asker } else { via.peer };
        self.on(to, at, Work::Deliver(via, msg));
    }

    /// A message arrives: it waits where the connection is cut, and is gone with one that broke.
    pub fn deliver(&mut self, node: usize, via: Via, msg: Msg) {
        let cut = self.is_cut(via.asker, via.peer);
        let link = self.link(via.asker, via.peer, via.lane);
        if !link.up || link.epoch != via.epoch {
            return;
        }
        if cut {
            link.stalled.push_back(msg);
            return;
        }
        if msg.is_answer() {
            if link.phase == Phase::Up {
                self.heard(node, via, msg);
            }
            return;
        }
        let service = if via.lane == Lane::Exchange { None } else { self.service(node) };
        match service {
            Some(at) => self.on(node, at, Work::Serve(via, msg)),
            None => self.take(node, via, msg),
        }
    }

    /// A node takes a request from its socket and serves it. Those behind it wait in the socket.
    pub fn take(&mut self, node: usize, via: Via, msg: Msg) {
        let link = self.link(via.asker, via.peer, via.lane);
        if link.up && link.epoch == via.epoch {
            self.drained(via, msg.size());
        }
        self.serve(node, via, msg);
    }

    // ---- connections ----

    /// Whether a dial would succeed; if not, how long it takes to fail.
    fn reaches(&mut self, asker: usize, peer: usize) -> Result<(), u64> {
        let node = &self.nodes[peer];
        if node.up && !node.paused && !self.is_cut(asker, peer) {
            return Ok(());
        }
        // A machine without the process refuses at once.
        let refused = !node.up && !node.vanished && !self.is_cut(asker, peer);
        Err(if refused { self.random.below(2 * MS) } else { DIAL_PATIENCE })
    }

    fn attempt(&mut self, asker: usize, peer: usize, lane: Lane) {
        let now = self.now;
        let trip = 2 * self.plan.delay.0 + self.random.around(self.plan.delay.1);
        let reached = self.reaches(asker, peer);
        let link = self.link(asker, peer, lane);
        link.epoch += 1;
        link.phase = Phase::Dialing;
        link.begun = now;
        link.up = reached.is_ok();
        link.last = [now; 2];
        link.socket_bytes = 0;
        link.stalled.clear();
        let via = self.via(asker, peer, lane);
        match reached {
            Ok(()) => self.on(asker, now + trip, Work::Connected(via)),
            Err(takes) => self.on(asker, now + takes, Work::Lost(via)),
        }
    }

    /// Lets all links of a node that has started dial.
    pub fn dial_all(&mut self, node: usize) {
        for peer in self.peers(node) {
            let link = self.link(node, peer, Lane::Core);
            link.redial = Redial::default();
            let attempt = link.attempt;
            let at = self.now;
            self.on(node, at, Work::Dial { peer, attempt });
        }
    }

    pub fn dial(&mut self, node: usize, peer: usize, attempt: u64) {
        let link = self.link(node, peer, Lane::Core);
        if link.phase == Phase::Down && link.attempt == attempt {
            link.attempt += 1;
            self.attempt(node, peer, Lane::Core);
        }
    }

    /// A request, or the peer's arrival, ends the pause before the next attempt.
    pub fn dial_now(&mut self, node: usize, peer: usize) {
        let now = self.now;
        let link = self.link(node, peer, Lane::Core);
        if link.phase == Phase::Down {
            link.attempt += 1;
            let (attempt, gap) = (link.attempt, Redial::gap(Duration::from_micros(now - link.begun)));
            self.on(node, now + gap.as_micros() as u64, Work::Dial { peer, attempt });
        }
    }

    /// The keeper of hints dials.
    pub fn dial_for_hints(&mut self, node: usize, peer: usize) {
        self.attempt(node, peer, Lane::Hints);
    }

    /// The exchange dials.
    pub fn dial_for_exchange(&mut self, node: usize, peer: usize) {
        self.attempt(node, peer, Lane::Exchange);
    }

    /// The keeper of hints hangs up.
    pub fn hang_up(&mut self, node: usize, peer: usize) {
        self.link(node, peer, Lane::Hints).forget();
    }

    pub fn connected(&mut self, via: Via) {
        let now = self.now;
        let link = self.link(via.asker, via.peer, via.lane);
        // One that broke meanwhile is noticed by what follows that.
        if link.phase != Phase::Dialing || link.epoch != via.epoch || !link.up {
            return;
        }
        // The handshake waits for both, and for a network between them.
        let waits = self.plan.exchanges && (self.nodes[via.peer].paused || self.is_cut(via.asker, via.peer));
        if waits || self.plan.exchanges && !self.meet(via) {
            self.link(via.asker, via.peer, via.lane).up = false;
            let at = now + DIAL_PATIENCE;
            return self.on(via.asker, at, Work::Lost(via));
        }
        let link = self.link(via.asker, via.peer, via.lane);
        link.phase = Phase::Up;
        link.up_since = now;
        self.say(None, || format!("{} is connected to {} ({:?})", via.asker, via.peer, via.lane));
        match via.lane {
            Lane::Core => {}
            Lane::Hints => return self.hints_connected(via.asker, via.peer),
            Lane::Exchange => return self.exchange_connected(via.asker, via.peer),
        }
        if self.plan.exchanges {
            self.exchange_now(via.asker, via.peer);
        }
        let clocks = self.clocks(via.asker);
        if let Some(member) = &mut self.nodes[via.asker].member {
            member.connected(clocks, NodeIndex(via.peer as u8));
        }
        self.nodes[via.peer].arrivals |= 1 << via.asker;
        self.flush(via.asker, via.peer);
    }

    pub fn lost(&mut self, via: Via) {
        let now = self.now;
        let chance = self.random.next() as u32;
        let link = self.link(via.asker, via.peer, via.lane);
        if link.phase == Phase::Down || link.epoch != via.epoch {
            return;
        }
        let up_for = (link.phase == Phase::Up).then(|| Duration::from_micros(now - link.up_since));
        link.forget();
        self.say(None, || format!("{} notices that it lost {} ({:?})", via.asker, via.peer, via.lane));
        match via.lane {
            Lane::Core => {}
            Lane::Hints => return self.hints_failed(via.asker, via.peer),
            Lane::Exchange => return self.exchange_lost(via.asker, via.peer),
        }
        let link = self.link(via.asker, via.peer, via.lane);
        let pause = link.redial.ended(up_for, chance);
        let pause = pause.max(Redial::gap(Duration::from_micros(now - link.begun)));
        let attempt = link.attempt;
        self.on(via.asker, now + pause.as_micros() as u64, Work::Dial { peer: via.peer, attempt });
        let peer = NodeIndex(via.peer as u8);
        self.with_member(via.asker, |member, now, host| member.lost(now, peer, host));
    }

    /// A connection is gone, with everything in flight. The asker learns of it in `notice` µs.
    fn break_lane(&mut self, asker: usize, peer: usize, lane: Lane, notice: u64) {
        let link = self.link(asker, peer, lane);
        if !link.up {
            return;
        }
        link.up = false;
        link.stalled.clear();
        let via = self.via(asker, peer, lane);
        self.note(3 ^ (asker as u64) << 8 ^ (peer as u64) << 16 ^ (lane as u64) << 24);
        self.say(None, || format!("the connection {asker}→{peer} ({lane:?}) breaks, noticed in {notice}"));
        if self.nodes[asker].up {
            let at = self.now + notice;
            self.on(asker, at, Work::Lost(via));
        }
    }

    pub fn break_link(&mut self, asker: usize, peer: usize, notice: u64) {
        for lane in Lane::ALL {
            self.break_lane(asker, peer, lane, notice);
        }
    }

    /// A process has ended, and its own ends of connections with it.
    pub fn forget_links(&mut self, asker: usize) {
        for peer in self.peers(asker) {
            for lane in Lane::ALL {
                self.link(asker, peer, lane).forget();
            }
        }
    }

    pub fn cut_link(&mut self, asker: usize, peer: usize, lasts: u64) {
        self.cut[asker * self.plan.nodes + peer] += 1;
        // Some die of it, and that is noticed only when something was not acknowledged for seconds.
        if self.plan.exchanges && lasts > USER_TIMEOUT || self.random.one_in(3) {
            let notice = self.random.between(SECOND, 5 * SECOND);
            let notice = unless_answered(&self.plan, notice, lasts);
            self.break_link(asker, peer, notice);
        }
    }

    pub fn uncut_link(&mut self, asker: usize, peer: usize) {
        let index = asker * self.plan.nodes + peer;
        self.cut[index] -= 1;
        if self.cut[index] > 0 {
            return;
        }
        for lane in Lane::ALL {
            let via = self.via(asker, peer, lane);
            for msg in std::mem::take(&mut self.link(asker, peer, lane).stalled) {
                self.travel(via, msg);
            }
        }
    }

    /// Connections that died and were not noticed yet: now they are.
    pub fn notice_all(&mut self) {
        for asker in 0..self.plan.nodes {
            for peer in self.peers(asker) {
                for lane in Lane::ALL {
                    let link = self.link(asker, peer, lane);
                    if link.phase != Phase::Down && !link.up {
                        let via = self.via(asker, peer, lane);
                        self.work(asker, Work::Lost(via));
                    }
                }
            }
        }
    }
}

/// A peer that is back answers what it gets over a dead connection with a reset. In the modes with
/// one fault at a time, that is at once, so that one does not outlast itself.
pub fn unless_answered(plan: &Plan, notice: u64, lasts: u64) -> u64 {
    if matches!(plan.mode, Mode::Available | Mode::Steady) { notice.min(lasts) } else { notice }
}

//! What a run is: everything about it that is not decided event by event, made from the seed.

use koltso_cluster::mover::MoverSettings;
use koltso_cluster::placement::{NodeIndex, NodeSet};
use koltso_model::PARTITIONS;
use koltso_testkit::Random;
use koltso_testkit::random::mixed;

/// Which promises a run is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Connections as TCP has them: in order, and whole or broken. Any number of faults at once.
    Stream,
    /// Each message may be lost, doubled or overtaken: safety only.
    Harsh,
    /// One node of 3 to 5 ails at a time, or two of 5 where 3/5 is asked for: the others must not
    /// notice.
    Available,
    /// As `Available`, with one fault chosen and clients that send at a constant rate.
    Steady,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    Memory,
    /// `koltso_storage` in a temporary folder, opened again after each crash.
    Real,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Pause,
    /// With the reset that a dying process sends.
    Crash,
    /// Without, as a machine dies.
    Vanish,
    CutNode,
    CutPair,
    /// Only the connection that the first made to the second.
    CutLink,
    Slow,
    Full,
    /// Its disk answers some writes with an error, and the next may succeed.
    DiskErrors,
    Damage,
    Break,
    /// The wall clock of its machine jumps, and is right again at the end. Not in the usual mixture:
    /// the node goes by [`WallWatch`](koltso_cluster::wall::WallWatch) where it is in the plan.
    Jump,
    /// A crash that takes the folder with it. With exchange only, as all below: while all others have
    /// what they confirmed.
    Empty,
    /// A crash after which an earlier copy of the folder is put in its place.
    PutBack,
    /// Hints are gone, and nobody knows.
    LoseHints,
}

/// A defect put in on purpose, to see that the checks notice. Not in what ships: in the engine, the
/// host or the keeper of the simulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    None,
    /// A node confirms its own writes and does not do them.
    ConfirmsWithoutApplying,
    /// The last write that comes wins.
    OlderOverNewer,
    /// "There is a newer one" is passed on as "done".
    SupersededIsApplied,
    /// Repairs are confirmed and not done.
    IgnoresRepairs,
    /// After a restart the clock begins at the wall clock, which may be behind.
    ForgetsClock,
    /// A crash takes the writes of the last 20 ms that were confirmed.
    LosesWhatItConfirmed,
    /// Hints are confirmed and not applied.
    IgnoresHints,
    /// A delete forgets the key, instead of remembering that it is deleted.
    NoTombstones,
    /// What peers write does not advance the clock.
    IgnoresServedClocks,
    /// The bound of the clock is raised and not written.
    BoundNotPersisted,
    /// Hints are forgotten when they are sent.
    ForgetsUnconfirmedHints,
    /// Hints that the peer cannot take now count as taken.
    PassesRefusedHints,
    /// The answers to a window are taken for those of other hints.
    ConfirmsTheWrongHints,
    /// A queue of hints that overflowed does not say so.
    HidesOverflow,
    /// A reply counts for another replica, too.
    CountsRepliesTwice,
    /// A node goes by its machine's wall clock, whatever that does.
    FollowsJumps,
    /// A node that is not whole answers reads.
    ReadsWhileRebuilding,
    /// Deletes are forgotten after a while, whoever has them.
    ForgetsAlone,
    /// The last of the records that are given is not written.
    DropsTheLastGiven,
    /// The asker does not tell what is equal.
    NeverTellsAgreed,
    /// A rebuilding node is whole when a part of its partitions is compared.
    WholeTooSoon,
    /// Whoever is told that it is not who it was goes on as if it were.
    IgnoresDoubts,
    /// Digests do not follow writes.
    DigestsMissWrites,
    /// Replicas answer whoever may have other replicas in mind.
    AnswersThoseBehind,
    /// Partitions move before those to which they move have what was confirmed.
    MovesTooSoon,
    /// What was received before a stage in which reads ask both counts as if it had been since.
    SkipsJoint,
    /// When a plan is done, replicas answer those who do not know of it.
    ForgetsFence,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub mode: Mode,
    pub storage: Storage,
    pub mutation: Mutation,
    /// Whether the checks may look into the engines, or at the history only.
    pub looks_inside: bool,
    pub nodes: usize,
    /// Who holds data at first, and whether that changes.
    pub holders: NodeSet,
    pub moves: bool,
    /// How plans are driven.
    pub mover: MoverSettings,
    /// The most replicas that clients ask for: never fewer nodes hold data.
    pub from_max: u8,
    /// Nodes that ail at a time, in [`Mode::Available`].
    pub ailing_max: usize,
    pub keys: usize,
    pub clients: usize,
    /// Mean time between a client's answer and its next request, in µs.
    pub think: u64,
    /// Faults happen until then, in µs.
    pub faults_until: u64,
    /// Mean time between faults, in µs.
    pub fault_every: u64,
    pub faults: Vec<Kind>,
    /// One way, in µs: the least, the mean on top of it, and how many of a million take up to 80 ms
    /// longer.
    pub delay: (u64, u64, u64),
    /// Of a million messages, in [`Mode::Harsh`].
    pub lost: u64,
    pub doubled: u64,
    /// Each wall clock's offset in ms and drift in millionths.
    pub clocks: Vec<(i64, i64)>,
    /// The most that a wall clock is off when it is set, in ms.
    pub skew_max: u64,
    /// How far ahead the bound of a clock is written, in its units.
    pub clock_ahead: u64,
    pub in_flight_max: usize,
    /// Hints that wait to be appended, and bytes that wait in an outbox.
    pub hints_max: usize,
    pub outbox_max: usize,
    /// Bytes on their way that the kernels of a connection hold; the rest waits in its outbox.
    pub socket_max: usize,
    /// One `from` and no reads, so that only hints bring what was missed.
    pub writes_only: bool,
    /// Nodes compare what they have, and become equal without any read.
    pub exchanges: bool,
    /// Keys lie in the first so many partitions.
    pub partitions: usize,
    /// Requests per second of each healthy node, in [`Mode::Steady`].
    pub rate: u64,
}

fn all_of(nodes: usize) -> NodeSet {
    (0..nodes as u8).map(NodeIndex).collect()
}

impl Plan {
    /// Whether wall clocks jump in it.
    pub fn jumps(&self) -> bool {
        self.faults.contains(&Kind::Jump)
    }

    pub fn new(seed: u64, mode: Mode) -> Self {
        let mut random = Random::seeded(mixed(seed ^ 0x706c_616e));
        let alone = matches!(mode, Mode::Available | Mode::Steady);
        let nodes = match mode {
            Mode::Steady => 3,
            Mode::Available => *random.choose(&[3, 3, 4, 5]),
            _ => random.between(2, 5) as usize,
        };
        let ailing_max = if mode == Mode::Available && nodes == 5 { random.between(1, 2) as usize } else { 1 };
        let all = [
            Kind::Pause,
            Kind::Crash,
            Kind::Vanish,
            Kind::CutNode,
            Kind::CutPair,
            Kind::CutLink,
            Kind::Slow,
            Kind::Full,
            Kind::DiskErrors,
            Kind::Damage,
            Kind::Break,
        ];
        // Each run has its own mixture, so that rare combinations come up.
        let mut faults: Vec<Kind> = all.iter().copied().filter(|_| random.one_in(2_u64)).collect();
        if alone {
            faults =
                vec![Kind::Pause, Kind::Crash, Kind::Vanish, Kind::CutNode, Kind::Slow, Kind::Full, Kind::DiskErrors];
        }
        // Two clocks may differ by half a second.
        let skew = *random.choose(&[0_u64, 5, 240]);
        let clocks = (0..nodes)
            .map(|_| (random.between(0, 2 * skew) as i64 - skew as i64, random.between(0, 1000) as i64 - 500));
        let clocks = clocks.collect();
        Self {
            seed,
            mode,
            storage: Storage::Memory,
            mutation: Mutation::None,
            looks_inside: true,
            nodes,
            holders: all_of(nodes),
            moves: false,
            mover: MoverSettings { at_once: 1, patience_micros: 0, gone_micros: 0 },
            from_max: nodes as u8,
            ailing_max,
            keys: random.between(1, 5) as usize,
            clients: random.between(2, 10) as usize,
            think: *random.choose(&[500, 2_000, 8_000, 20_000]),
            faults_until: random.between(1_000_000, 2_500_000),
            fault_every: *random.choose(&[20_000, 80_000, 250_000]),
            faults,
            delay: (random.between(20, 200), *random.choose(&[20, 100, 1_000]), *random.choose(&[0, 1_000, 20_000])),
            lost: *random.choose(&[0, 2_000, 50_000]),
            doubled: *random.choose(&[0, 2_000, 100_000]),
            clocks,
            in_flight_max: *random.choose(&[6, 512, 512]),
            outbox_max: if alone { 32 << 10 } else { *random.choose(&[400, 32 << 10]) },
            socket_max: if alone { 16 << 10 } else { *random.choose(&[200, 16 << 10]) },
            skew_max: 240,
            clock_ahead: *random.choose(&[3, 1 << 16, 400 << 16]),
            hints_max: *random.choose(&[20, 5_000, 5_000]),
            writes_only: false,
            exchanges: false,
            partitions: PARTITIONS,
            rate: 0,
        }
    }

    /// A run of minutes, in which others come to hold the data, and others again.
    pub fn moving(seed: u64) -> Self {
        let plan = Self::converging(seed);
        let mut random = Random::seeded(mixed(seed ^ 0x6d6f_7669_6e67));
        let nodes = *random.choose(&[3, 4, 5, 6]);
        let from_max = random.between(1, nodes.min(4) as u64 - 1) as u8;
        let holders = (0..random.between(from_max.into(), nodes as u64) as u8).map(NodeIndex).collect();
        let offsets = plan.clocks.iter().copied().cycle();
        let excluded = [Kind::Empty, Kind::PutBack, Kind::Damage];
        Self {
            nodes,
            holders,
            from_max,
            moves: true,
            mover: MoverSettings {
                at_once: random.between(2, 8) as usize,
                patience_micros: *random.choose(&[0, 0, 300_000, 3_000_000, 12_000_000]),
                gone_micros: *random.choose(&[1_000_000, 5_000_000, 20_000_000]),
            },
            clocks: offsets.take(nodes).collect(),
            faults: plan.faults.iter().copied().filter(|kind| !excluded.contains(kind)).collect(),
            think: *random.choose(&[30_000, 100_000, 1_000_000]),
            ..plan
        }
    }

    /// A run of minutes, at whose end all replicas must be equal without any read.
    pub fn converging(seed: u64) -> Self {
        let mut random = Random::seeded(mixed(seed ^ 0x636f_6e76_6572_6765));
        let plan = Self::new(seed, Mode::Stream);
        let nodes = *random.choose(&[2, 3, 3, 3, 4, 5, 7]);
        let all = [Kind::Empty, Kind::PutBack, Kind::LoseHints];
        let mut faults = plan.faults.clone();
        faults.extend(all.iter().copied().filter(|_| random.one_in(2_u64)));
        if random.one_in(4_u64) {
            faults.push(Kind::Jump);
        }
        // So that they stay within the bound that is checked for minutes, they drift less, and are set
        // more exactly: two that are off by 0.24 s each drift beyond it in ten minutes all the same.
        let offsets = plan.clocks.iter().map(|&(offset, drift)| (offset * 5 / 6, drift / 10)).cycle();
        Self {
            exchanges: true,
            partitions: 8,
            looks_inside: false,
            nodes,
            holders: all_of(nodes),
            from_max: nodes as u8,
            keys: random.between(1, 8) as usize,
            clients: random.between(1, 3) as usize,
            think: *random.choose(&[300_000, 1_000_000, 4_000_000]),
            faults_until: *random.choose(&[30_000_000, 100_000_000, 250_000_000]),
            fault_every: *random.choose(&[1_500_000, 6_000_000, 20_000_000]),
            faults,
            clocks: offsets.take(nodes).collect(),
            skew_max: plan.skew_max * 5 / 6,
            hints_max: *random.choose(&[2, 20, 5_000]),
            ..plan
        }
    }
}

//! Members under a virtual network, with one seed a run: see `sim/mod.rs`.
//!
//! Each test runs some seeds, from 0, or from `KOLTSO_SEED`: CI takes a new one each time, and
//! prints it. `KOLTSO_SIM_SEEDS=n` runs so many of each kind (1 repeats a failure),
//! `KOLTSO_SIM_SECONDS=n` as many as the time allows. A failure shows the last 60 events of its
//! key, or `KOLTSO_SIM_LINES`.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod sim;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use koltso_testkit::random::asked_seed;
use sim::plan::{Kind, Mode, Mutation, Plan, Storage};

use sim::stats::Stats;
use sim::world::{Report, run};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs a plan; where a check fails, again with a trace, of which the last events of the key are
/// shown.
fn must_hold(plan: &Plan) -> Stats {
    let explain = || format!("KOLTSO_SEED={} KOLTSO_SIM_SEEDS=1 with {plan:?}", plan.seed);
    let report = catch_unwind(AssertUnwindSafe(|| run(plan, false)));
    let report: Report = report.unwrap_or_else(|_| panic!("the run panicked: {}", explain()));
    let Some(failure) = report.failure else {
        return report.stats;
    };
    let trace = run(plan, true).trace;
    let concerned = |key: Option<usize>| failure.key.is_none() || key.is_none() || key == failure.key;
    let shown: Vec<&str> = trace.iter().filter(|(key, _)| concerned(*key)).map(|(_, text)| text.as_str()).collect();
    let last = shown.len().saturating_sub(number("KOLTSO_SIM_LINES").unwrap_or(60) as usize);
    panic!("{}: {}\n{}\n{}", failure.check, failure.text, explain(), shown[last..].join("\n"));
}

/// Some seeds of one kind: a fixed number, as many as are asked for, or as many as the time allows.
fn seeds(usual: u64, plan: impl Fn(u64) -> Plan) -> Stats {
    let (begun, mut sums, mut ran) = (Instant::now(), Stats::default(), 0_u64);
    let time = number("KOLTSO_SIM_SECONDS").map(Duration::from_secs);
    let count = number("KOLTSO_SIM_SEEDS").unwrap_or(usual);
    let first = asked_seed().unwrap_or(0);
    while time.map_or(ran < count, |time| begun.elapsed() < time) {
        sums.add(&must_hold(&plan(first.wrapping_add(ran))));
        ran += 1;
    }
    println!("{ran} seeds from KOLTSO_SEED={first} in {:?}: {}", begun.elapsed(), sums.summary());
    sums
}

#[test]
fn connections_break_and_nodes_fail() {
    seeds(100, |seed| Plan::new(seed, Mode::Stream));
}

#[test]
fn messages_are_lost_doubled_and_overtaken() {
    seeds(100, |seed| Plan::new(seed, Mode::Harsh));
}

#[test]
fn an_ailing_minority_costs_its_peers_nothing() {
    let sums = seeds(80, |seed| Plan::new(seed, Mode::Available));
    let Stats { timed, slow, .. } = sums;
    assert!(slow * 10_000 <= timed, "{slow} of {timed} took more than 300 ms");
}

/// Found by the simulation: its slow nodes took all requests from their sockets at once, so that
/// askers had no bound of what was unanswered, and went on serving those slowly when they were well.
#[test]
fn a_slow_node_leaves_requests_in_its_sockets() {
    for seed in [184, 250] {
        must_hold(&Plan {
            faults: vec![Kind::Slow],
            clients: 10,
            think: 500,
            in_flight_max: 6,
            ..Plan::new(seed, Mode::Available)
        });
    }
}

/// Found by the simulation: a read whose repair was refused waited for a slow replica, which was
/// asked and never silent, and did not ask the one that was left.
#[test]
fn a_refused_repair_is_made_up_for_by_another_replica() {
    must_hold(&Plan::new(8_811_055_002_499, Mode::Available));
    for seed in 0..30 {
        must_hold(&Plan { faults: vec![Kind::Slow, Kind::DiskErrors], ..Plan::new(seed, Mode::Available) });
    }
}

/// No reads here that would repair: without crashes, hints alone bring every replica what it
/// missed, unless its peers know that it lacks something.
#[test]
fn what_a_replica_missed_comes_as_hints() {
    let faults = [Kind::Pause, Kind::CutNode, Kind::CutPair, Kind::Break, Kind::Full, Kind::DiskErrors];
    seeds(100, |seed| hints_only(seed, &faults, 100_000));
    // With peers that refuse some hints of a window, and with a queue that overflows while the
    // keeper waits for its peer.
    seeds(30, disk_errors);
    let sums = seeds(50, |seed| hints_only(seed, &faults, 8));
    assert!(sums.hints_dropped > 0 || number("KOLTSO_SIM_SEEDS").is_some());
}

fn hints_only(seed: u64, faults: &[Kind], hints_max: usize) -> Plan {
    Plan {
        writes_only: true,
        faults: faults.to_vec(),
        keys: 200,
        hints_max,
        in_flight_max: 512,
        // The final reads come in a burst, and a repair behind an answer that finds its outbox full
        // is not sent again.
        outbox_max: 32 << 10,
        socket_max: 16 << 10,
        ..Plan::new(seed, Mode::Stream)
    }
}

/// Disks that answer some writes with an error, so that a peer takes some hints of a window and
/// refuses others; and clients that seldom write a key twice, so that no later write makes up for a
/// hint that is lost.
fn disk_errors(seed: u64) -> Plan {
    Plan { keys: 1_000, think: 8_000, ..hints_only(seed, &[Kind::DiskErrors], 100_000) }
}

/// What is lost and nobody hints, and nobody reads: emptied folders and copies of earlier ones, hints
/// that are dropped or die with their holders, damage. Within a minute all replicas are equal, and
/// then deletes are forgotten and do not come back.
#[test]
fn replicas_converge_without_reads() {
    let sums = seeds(40, Plan::converging);
    // Two copies that took each other for the older one, nodes that are replicas of nothing, one that
    // remembered whom another had replaced since, and one that read what it was told after it had been paused.
    for found_by in [21_001_546, 22_001_685, 209_000_369, 219_001_884] {
        must_hold(&Plan::converging(found_by));
    }
    // A value that came as a hint to one of its replicas after a delete with a narrower `from` was compared.
    // Then the same at nodes that had the delete for others.
    for found_by in [91_001_307, 121_008_508] {
        must_hold(&away(found_by));
    }
    seeds(10, away);
    seeds(10, emptied);
    assert!(sums.rebuilt > 0 && sums.forgotten > 0 || number("KOLTSO_SIM_SEEDS").is_some());
}

/// Others come to hold the data, and others again, with plans that are cancelled at any point, while clients
/// write and read and nodes fail.
#[test]
fn data_moves_while_the_cluster_serves() {
    let sums = seeds(40, Plan::moving);
    // A member was paused that alone had records of one replica: those to which they moved had never heard of
    // any, and took what they compared of others for all. Then a disk was full, and a partition was taken for
    // equal whose differences were young, and older than its stage.
    for found_by in [1_771, 901_134] {
        must_hold(&Plan::moving(found_by));
    }
    assert!(sums.plans > 0 && sums.behind > 0 || number("KOLTSO_SIM_SEEDS").is_some());
}

fn jumps(seed: u64) -> Plan {
    let faults = vec![Kind::Jump, Kind::Jump, Kind::Pause, Kind::CutNode, Kind::Crash, Kind::Break];
    Plan { faults, ..Plan::new(seed, Mode::Stream) }
}

#[test]
fn a_wall_clock_that_jumps_drags_nothing_along() {
    seeds(60, jumps);
    seeds(30, |seed| hints_only(seed, &[Kind::Jump, Kind::Pause, Kind::CutNode], 100_000));
}

#[test]
fn the_real_engine_does_as_the_simulated_one() {
    let faults = vec![Kind::Crash, Kind::Vanish, Kind::Pause, Kind::CutNode];
    seeds(6, |seed| Plan { storage: Storage::Real, faults: faults.clone(), ..Plan::new(seed, Mode::Stream) });
}

#[test]
fn a_seed_is_a_trace() {
    for mode in [Mode::Stream, Mode::Harsh, Mode::Available] {
        for seed in 0..2 {
            let plan = Plan::new(seed, mode);
            assert_eq!(run(&plan, false).hash, run(&plan, true).hash, "{plan:?}");
        }
    }
}

/// 2000 requests a second at the two healthy nodes; networks that are quick, slow, and quick with a
/// tail of 80 ms.
#[test]
fn steady_clients_do_not_notice_that_a_node_ails() {
    for (seed, kind) in
        [Kind::Pause, Kind::Vanish, Kind::Crash, Kind::CutNode, Kind::Slow, Kind::Full, Kind::DiskErrors]
            .into_iter()
            .enumerate()
    {
        for (round, delay) in [(50, 100, 0), (200, 600, 0), (100, 100, 1_000)].into_iter().enumerate() {
            let plan = Plan {
                keys: 500,
                clients: 0,
                rate: 1000,
                faults: vec![kind],
                faults_until: 1_500_000,
                delay,
                // Less than the writes of the deadline, or even of the time until a circuit opens.
                in_flight_max: if round == 0 { 128 } else { 512 },
                hints_max: 100_000,
                clocks: vec![(0, 0); 3],
                ..Plan::new((seed * 10 + round) as u64, Mode::Steady)
            };
            let mut latencies = must_hold(&plan).latencies;
            latencies.sort_unstable();
            let at = |share: usize| latencies[(latencies.len() - 1) * share / 1000];
            println!(
                "{kind:?}, delay {delay:?}: {} requests, µs: median {}, p99 {}, p999 {}, max {}",
                latencies.len(),
                at(500),
                at(990),
                at(999),
                at(1000)
            );
            assert!(at(990) <= 60_000 && at(1000) <= 400_000);
        }
    }
}

/// Runs a defect with up to `most` seeds, until a check notices it, by what clients and peers can
/// see alone.
fn must_be_noticed(mutation: Mutation, most: u64, plan: impl Fn(u64) -> Plan) {
    let found = (0..most).find_map(|seed| {
        let plan = Plan { mutation, looks_inside: false, ..plan(seed) };
        Some((seed, run(&plan, false).failure?))
    });
    let (seed, failure) = found.unwrap_or_else(|| panic!("{mutation:?} is not noticed"));
    println!("{mutation:?}: seed {seed}: {}: {}", failure.check, failure.text);
}

fn stream(seed: u64) -> Plan {
    Plan::new(seed, Mode::Stream)
}

fn crashes(seed: u64) -> Plan {
    Plan { faults: vec![Kind::Crash], fault_every: 50_000, ..stream(seed) }
}

fn emptied(seed: u64) -> Plan {
    let faults = vec![Kind::Empty, Kind::PutBack, Kind::CutPair, Kind::Crash, Kind::LoseHints];
    Plan { faults, fault_every: 3_000_000, faults_until: 100_000_000, ..Plan::converging(seed) }
}

/// Nodes that are away for long, and miss what is deleted.
fn away(seed: u64) -> Plan {
    let faults = vec![Kind::CutNode, Kind::CutPair, Kind::Crash, Kind::LoseHints];
    Plan { faults, fault_every: 6_000_000, faults_until: 250_000_000, keys: 12, ..Plan::converging(seed) }
}

macro_rules! noticed {
    ($($name:ident: $mutation:ident within $most:literal of $plan:expr;)*) => {$(
        #[test]
        fn $name() {
            must_be_noticed(Mutation::$mutation, $most, $plan);
        }
    )*};
}

noticed! {
    a_confirmation_without_a_write_is_noticed: ConfirmsWithoutApplying within 5 of stream;
    an_older_record_over_a_newer_is_noticed: OlderOverNewer within 5 of stream;
    a_superseded_write_that_is_not_renewed_is_noticed: SupersededIsApplied within 5 of stream;
    repairs_that_are_not_done_are_noticed: IgnoresRepairs within 5 of stream;
    forgotten_tombstones_are_noticed: NoTombstones within 5 of stream;
    lost_confirmed_writes_are_noticed: LosesWhatItConfirmed within 60 of crashes;
    a_forgotten_clock_is_noticed: ForgetsClock within 150 of crashes;
    hints_that_are_not_applied_are_noticed: IgnoresHints within 20 of
        |seed| hints_only(seed, &[Kind::Pause, Kind::CutNode], 100_000);
    a_clock_that_ignores_peers_writes_is_noticed: IgnoresServedClocks within 20 of stream;
    a_bound_that_is_not_persisted_is_noticed: BoundNotPersisted within 150 of crashes;
    hints_forgotten_before_they_are_confirmed_are_noticed: ForgetsUnconfirmedHints within 20 of
        |seed| hints_only(seed, &[Kind::Pause, Kind::CutNode, Kind::Break], 100_000);
    hints_that_pass_a_refused_one_are_noticed: PassesRefusedHints within 20 of
        |seed| hints_only(seed, &[Kind::Full], 100_000);
    confirmations_of_other_hints_are_noticed: ConfirmsTheWrongHints within 10 of disk_errors;
    an_overflow_that_nobody_is_told_of_is_noticed: HidesOverflow within 20 of
        |seed| hints_only(seed, &[Kind::Pause, Kind::CutNode], 8);
    a_jump_that_is_followed_is_noticed: FollowsJumps within 20 of jumps;
    a_reply_that_counts_twice_is_noticed: CountsRepliesTwice within 5 of stream;
    reads_of_a_rebuilding_node_are_noticed: ReadsWhileRebuilding within 600 of emptied;
    deletes_that_are_forgotten_alone_are_noticed: ForgetsAlone within 100 of away;
    a_record_that_is_given_and_dropped_is_noticed: DropsTheLastGiven within 20 of Plan::converging;
    an_asker_that_tells_nothing_is_noticed: NeverTellsAgreed within 5 of Plan::converging;
    a_node_that_is_whole_too_soon_is_noticed: WholeTooSoon within 400 of
        |seed| Plan { think: 100_000, clients: 3, ..emptied(seed) };
    doubts_that_are_ignored_are_noticed: IgnoresDoubts within 1000 of emptied;
    replicas_that_answer_those_behind_are_noticed: AnswersThoseBehind within 1000 of Plan::moving;
    partitions_that_move_too_soon_are_noticed: MovesTooSoon within 100 of Plan::moving;
    reads_that_skip_both_replica_sets_are_noticed: SkipsJoint within 1000 of Plan::moving;
    a_forgotten_fence_is_noticed: ForgetsFence within 1000 of Plan::moving;
    digests_that_miss_writes_are_noticed: DigestsMissWrites within 20 of Plan::converging;
}

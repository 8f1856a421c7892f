//! The coordinator under a virtual network, with one seed a run: see `sim/mod.rs`.
//!
//! `KOLTSO_SEED=n` runs one seed of each kind, `KOLTSO_SIM_SECONDS=n` goes on with new ones for so long. A failure shows the
//! last 60 events of its key, or `KOLTSO_SIM_LINES`.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod sim;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use sim::plan::{Kind, Mode, Mutation, Plan, Storage};
use sim::world::{Report, Stats, run};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs a plan; where a check fails, again with a trace, of which the last events of the key are shown.
fn must_hold(plan: &Plan) -> Stats {
    let explain = || format!("KOLTSO_SEED={} with {plan:?}", plan.seed);
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

/// Some seeds of one kind: a fixed number, one, or as many as the time allows.
fn seeds(count: u64, plan: impl Fn(u64) -> Plan) -> Stats {
    if let Some(seed) = number("KOLTSO_SEED") {
        let stats = must_hold(&plan(seed));
        println!("{}", stats.summary());
        return stats;
    }
    let (begun, mut sums, mut ran) = (Instant::now(), Stats::default(), 0_u64);
    let time = number("KOLTSO_SIM_SECONDS").map(Duration::from_secs);
    let first =
        if time.is_some() { Duration::as_nanos(&std::time::UNIX_EPOCH.elapsed().unwrap()) as u64 >> 10 } else { 0 };
    while time.map_or(ran < count, |time| begun.elapsed() < time) {
        sums.add(&must_hold(&plan(first + ran)));
        ran += 1;
    }
    println!("{ran} seeds from {first} in {:?}: {}", begun.elapsed(), sums.summary());
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
    let slow = sums.latencies.iter().filter(|&&took| took > 300_000).count();
    assert!(slow * 10_000 <= sums.latencies.len(), "{slow} of {} took more than 300 ms", sums.latencies.len());
}

/// No reads here that would repair: without crashes, hints alone bring every replica what it missed.
#[test]
fn what_a_replica_missed_comes_as_hints() {
    let faults = vec![Kind::Pause, Kind::CutNode, Kind::CutPair, Kind::Break];
    seeds(100, |seed| hints_only(seed, &faults));
}

fn hints_only(seed: u64, faults: &[Kind]) -> Plan {
    Plan {
        writes_only: true,
        faults: faults.to_vec(),
        keys: 200,
        hints_max: 100_000,
        in_flight_max: 512,
        ..Plan::new(seed, Mode::Stream)
    }
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

/// 2000 requests a second at the two healthy nodes; networks that are quick, slow, and quick with a tail of 80 ms.
#[test]
fn steady_clients_do_not_notice_that_a_node_ails() {
    for (seed, kind) in
        [Kind::Pause, Kind::Vanish, Kind::Crash, Kind::CutNode, Kind::Slow, Kind::Full].into_iter().enumerate()
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

/// Each defect is found within so many seeds, by the history alone.
#[test]
fn the_checks_notice_defects() {
    for (mutation, most) in [
        (Mutation::ConfirmsWithoutApplying, 5),
        (Mutation::OlderOverNewer, 5),
        (Mutation::SupersededIsApplied, 5),
        (Mutation::IgnoresRepairs, 5),
        (Mutation::NoTombstones, 5),
        (Mutation::LosesWhatItConfirmed, 60),
        (Mutation::ForgetsClock, 150),
        (Mutation::IgnoresHints, 20),
    ] {
        let found = (0..most).find_map(|seed| {
            let plan = match mutation {
                Mutation::IgnoresHints => hints_only(seed, &[Kind::Pause, Kind::CutNode]),
                Mutation::ForgetsClock | Mutation::LosesWhatItConfirmed => {
                    Plan { faults: vec![Kind::Crash], fault_every: 50_000, ..Plan::new(seed, Mode::Stream) }
                }
                _ => Plan::new(seed, Mode::Stream),
            };
            let plan = Plan { mutation, looks_inside: false, ..plan };
            Some((seed, run(&plan, false).failure?))
        });
        let (seed, failure) = found.unwrap_or_else(|| panic!("{mutation:?} is not noticed"));
        println!("{mutation:?}: seed {seed}: {}: {}", failure.check, failure.text);
    }
}

//! What grows with the number of nodes, computed with the placement and the mover that ship: copies that
//! move against the fewest possible, evenness, changes that a plan takes, sizes and times.
//!
//! The figures of `docs/SCALING.md` are what this prints:
//! `cargo test -p koltso-cluster --test scale -- --nocapture --test-threads 1`.
//! Nothing here is random, and no time is asserted.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Instant;

use koltso_cluster::membership::{MemberNode, Membership};
use koltso_cluster::mover::{Mover, MoverSettings, Telling, cost};
use koltso_cluster::placement::{NodeIndex, NodeSet, Topology};
use koltso_cluster::plan::{BATCHES, Stage};
use koltso_model::{NodeId, PARTITIONS};

const MS: u64 = 1_000;
const SECOND: u64 = 1_000 * MS;
/// As many replicas as all tables here are for.
const FROM: u8 = 3;
const SETTINGS: MoverSettings = MoverSettings { at_once: 4, patience_micros: 10 * SECOND, gone_micros: 5 * SECOND };
/// Steps in which a cluster grows.
const STEPS: [usize; 4] = [6, 12, 24, 60];

fn url(node: usize) -> String {
    format!("http://10.0.{}.{}:1337", node / 250, node % 250)
}

/// Zones of equal sizes, zones of which the first is as large as the others together, or none.
#[derive(Clone, Copy, Debug)]
enum Zones {
    Equal,
    Unequal,
    None,
}

impl Zones {
    fn of(self, node: usize) -> &'static str {
        match (self, node % 6) {
            (Self::None, _) => "",
            (Self::Equal, place) => ["a", "b", "c", "a", "b", "c"][place],
            (Self::Unequal, place) => ["a", "b", "c", "a", "b", "a"][place],
        }
    }
}

fn first(count: usize, zones: Zones) -> Membership {
    let node = |node: usize| MemberNode::listed(NodeId::NONE, node as u16, url(node), zones.of(node).to_owned());
    Membership::from_parts(1, (0..count).map(node).collect(), Vec::new()).unwrap()
}

/// With so many members, of which the new ones hold no data yet.
fn joined(members: &Membership, count: usize, zones: Zones) -> Membership {
    let known = members.nodes().len();
    (known..count).fold(members.clone(), |members, node| {
        members.joined(NodeId(node as u128 + 1), &url(node), zones.of(node)).unwrap()
    })
}

fn topology(members: &Membership) -> Topology {
    Topology::of(members, &members.nodes()[0].url)
}

/// Copies by place.
fn copies(members: &Membership) -> BTreeMap<NodeIndex, usize> {
    let topology = topology(members);
    let mut copies = BTreeMap::new();
    for node in (0..PARTITIONS).flat_map(|partition| topology.replicas_of(partition, FROM).iter()) {
        *copies.entry(node).or_default() += 1;
    }
    copies
}

/// The most copies of a node, of all and of those of the same zone, against their mean.
fn evenness(members: &Membership) -> (f64, f64) {
    let copies = copies(members);
    let against_mean = |of: &mut dyn Iterator<Item = NodeIndex>| {
        let copies: Vec<usize> = of.map(|node| copies.get(&node).copied().unwrap_or(0)).collect();
        *copies.iter().max().unwrap() as f64 * copies.len() as f64 / copies.iter().sum::<usize>() as f64
    };
    let zone = |node: NodeIndex| &members.nodes().iter().find(|member| member.place == node).unwrap().zone;
    let within = members
        .holders()
        .iter()
        .map(|holder| against_mean(&mut members.holders().iter().filter(|&node| zone(node) == zone(holder))));
    (against_mean(&mut members.holders().iter()), within.fold(0.0, f64::max))
}

/// Drives a plan to its end: members receive a batch `filling` after it began to be filled and `comparing`
/// after it became joint, both by its number; those in `dead` tell nothing. Returns the membership, and
/// changes, and how long it took, in s.
fn driven(
    mut members: Membership,
    dead: NodeSet,
    filling: impl Fn(usize) -> u64,
    comparing: impl Fn(usize) -> u64,
) -> (Membership, usize, u64) {
    let (mut mover, mut now, mut changes) = (Mover::new(SETTINGS), 0, 0);
    let mut began = [0; BATCHES];
    while let Some(plan) = members.plan() {
        let received = (0..BATCHES).filter(|&batch| match plan.batches[batch].stage {
            Stage::Copying => now >= began[batch] + filling(batch),
            Stage::Joint => now >= began[batch] + comparing(batch),
            Stage::Current | Stage::Moved => false,
        });
        let telling = Telling { epoch: members.epoch(), received: received.fold(0, |all, batch| all | 1 << batch) };
        for node in members.nodes().iter().filter(|node| !dead.contains(node.place)) {
            mover.told(now, node.number, telling);
        }
        if let Some(change) = mover.next(now, &members, false) {
            change.iter().for_each(|&(batch, _)| began[batch] = now);
            members = members.advanced(&change).unwrap();
            changes += 1;
        }
        now += 50 * MS;
        assert!(now < 3_600 * SECOND, "{:?}", mover.progress(now, &members));
    }
    (members, changes, now / SECOND)
}

/// Bytes of a membership's fields: what a document takes without its framing.
fn document(members: &Membership) -> usize {
    let node = |node: &MemberNode| 16 + 2 + 1 + 8 + node.url.len() + node.zone.len();
    let all: usize = members.nodes().iter().chain(members.former()).map(node).sum();
    8 + 8 + 8 + all + if members.plan().is_some() { 8 + BATCHES * 9 } else { 0 }
}

#[test]
fn a_cluster_grows_and_moves_no_more_than_it_must() {
    for zones in [Zones::Equal, Zones::Unequal, Zones::None] {
        let mut members = first(STEPS[0], zones);
        for count in &STEPS[1..] {
            let before = joined(&members, *count, zones);
            let cost = cost(&before, before.members(), FROM);
            let planned = before.planned(before.members()).unwrap();
            let begun = Instant::now();
            let of = topology(&planned);
            let took = begun.elapsed();
            let begun = Instant::now();
            let followed = of.followed_by(std::sync::Arc::new(planned.clone()));
            let again = begun.elapsed();
            let bytes = document(&planned);
            let (_, at_once, _) = driven(planned.clone(), NodeSet::default(), |_| 0, |_| 0);
            let uneven = |batch: usize| SECOND + (batch * 37 % BATCHES) as u64 * 400 * MS;
            let (after, changes, _) = driven(planned, NodeSet::default(), uneven, |batch| uneven(batch) / 8);
            let (all, within) = evenness(&after);
            println!(
                "{zones:?}: {} to {count} nodes: {} copies of {} move (least {}), {} to {} changes, document {bytes} \
                 bytes, rankings {} KiB, topology {took:.1?}, again {again:.1?}; max/mean {all:.3}, in a zone \
                 {within:.3}",
                members.nodes().len(),
                cost.total(),
                PARTITIONS * usize::from(FROM),
                cost.least,
                at_once,
                changes,
                followed.partitions() * (members.nodes().len() + count) / 1024,
            );
            assert_eq!(cost.total(), cost.least, "only the new nodes are given anything");
            assert_eq!(at_once, BATCHES / SETTINGS.at_once + 2);
            assert!(changes <= 2 * BATCHES, "{changes}");
            assert!(within < 1.0 + 0.06 * (*count as f64).sqrt(), "{within}");
            assert!(bytes < 64 << 10 && after.plan().is_none());
            members = after;
        }
    }
}

#[test]
fn a_zone_dies_and_comes_back_or_does_not() {
    for zones in [Zones::Equal, Zones::Unequal, Zones::None] {
        let members = first(60, zones);
        let dead: NodeSet = match zones {
            // As many as a zone has.
            Zones::None => members.nodes().iter().map(|node| node.place).step_by(3).collect(),
            _ => members.nodes().iter().filter(|node| node.zone == "b").map(|node| node.place).collect(),
        };
        let of = topology(&members);
        let has_quorum =
            |partition: &usize| of.replicas_of(*partition, FROM).without(dead).len() > usize::from(FROM / 2);
        let kept = (0..PARTITIONS).filter(has_quorum).count();
        // They are taken for lost, and come back as other nodes.
        let rest = members.members().without(dead);
        let (removal, back) = (cost(&members, rest, FROM), |left: &Membership| cost(left, left.members(), FROM));
        let (left, changes, _) = driven(members.planned(rest).unwrap(), dead, |_| SECOND, |_| SECOND);
        println!(
            "{zones:?}: {} of 60 die: {:.1} % of the keys keep 2/3; removed: {} copies (least {}), {changes} changes, \
             max/mean {:.3}; added again: {} copies (least {})",
            dead.len(),
            kept as f64 * 100.0 / PARTITIONS as f64,
            removal.total(),
            removal.least,
            evenness(&left).0,
            back(&left).total(),
            back(&left).least,
        );
        assert_eq!(left.holders(), rest, "nobody waits for the dead");
        match zones {
            Zones::None => assert!(kept < PARTITIONS),
            _ => assert_eq!(kept, PARTITIONS, "each partition has one replica in each zone"),
        }
    }
}

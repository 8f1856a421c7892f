//! What the mover may do, must do and waits for.

use proptest::prelude::*;

use super::*;
use crate::placement::Topology;

const SECOND: u64 = 1_000_000;
const SETTINGS: MoverSettings = MoverSettings { at_once: 4, patience_micros: 10 * SECOND, gone_micros: 3 * SECOND };
const ALL: u64 = u64::MAX;

fn members(count: usize) -> Membership {
    let urls: Vec<String> = (0..count).map(|node| format!("http://node-{node:02}:1")).collect();
    Membership::first(&urls).expect("valid")
}

fn places(places: impl IntoIterator<Item = u8>) -> NodeSet {
    places.into_iter().map(NodeIndex).collect()
}

/// All of these members hold the data.
fn held_by(count: usize, holders: NodeSet) -> Membership {
    let members = members(count);
    if holders == members.holders() {
        return members;
    }
    let planned = members.planned(holders).expect("valid");
    [Stage::Copying, Stage::Joint, Stage::Moved].into_iter().fold(planned, |members, stage| {
        members.advanced(&(0..BATCHES).map(|batch| (batch, stage)).collect::<Vec<_>>()).expect("the next stage")
    })
}

/// A mover, the membership that it drives, and a time.
struct Drive {
    mover: Mover,
    members: Membership,
    partitions: usize,
    now: u64,
    changes: usize,
}

impl Drive {
    fn new(settings: MoverSettings, members: Membership, partitions: usize) -> Self {
        let mover = Mover::of_partitions(settings, partitions);
        Self { mover, members, partitions, now: SECOND, changes: 0 }
    }

    fn number(&self, place: u8) -> u16 {
        number_at(&self.members, NodeIndex(place)).expect("a member")
    }

    fn tell(&mut self, place: u8, received: u64) {
        let (number, epoch) = (self.number(place), self.members.epoch());
        self.mover.told(self.now, number, Telling { epoch, received });
    }

    fn tell_all_but(&mut self, silent: NodeSet, received: u64) {
        for node in self.members.members().without(silent).iter() {
            self.tell(node.0, received);
        }
    }

    fn next(&mut self) -> Option<Vec<(usize, Stage)>> {
        let change = self.mover.next(self.now, &self.members, false);
        self.make(change)
    }

    fn next_paused(&mut self) -> Option<Vec<(usize, Stage)>> {
        let change = self.mover.next(self.now, &self.members, true);
        self.make(change)
    }

    fn make(&mut self, change: Option<Vec<(usize, Stage)>>) -> Option<Vec<(usize, Stage)>> {
        if let Some(change) = &change {
            self.members = self.members.advanced(change).expect("the next stages");
            self.changes += 1;
        }
        change
    }

    /// By batch: who becomes a replica of what it is none of, as placement has it while all are filled.
    fn receivers(&self) -> Vec<NodeSet> {
        let plan = self.members.plan().expect("a plan");
        let planned = held_by(self.members.nodes().len(), self.members.holders()).planned(plan.target);
        let all: Vec<_> = (0..BATCHES).map(|batch| (batch, Stage::Copying)).collect();
        let filling = planned.and_then(|planned| planned.advanced(&all)).expect("valid");
        let topology = Topology::of_partitions(&filling, &filling.nodes()[0].url, self.partitions);
        let mut receivers = vec![NodeSet::default(); BATCHES];
        for (partition, from) in (0..self.partitions).flat_map(|partition| (1..=6).map(move |from| (partition, from))) {
            let new = topology.replicas_of(partition, from).without(topology.sources_of(partition, from));
            receivers[batch_of(partition)] = receivers[batch_of(partition)].and(new);
        }
        receivers
    }

    fn stages(&self) -> [usize; 4] {
        let plan = self.members.plan().expect("a plan");
        [Stage::Current, Stage::Copying, Stage::Joint, Stage::Moved].map(|stage| plan.at(stage).count())
    }
}

#[test]
fn a_plan_ends_in_few_changes_when_all_tell_at_once() {
    let planned = held_by(6, places(0..3)).planned(places(0..6)).expect("valid");
    let mut drive = Drive::new(SETTINGS, planned, 256);
    while drive.members.plan().is_some() {
        drive.tell_all_but(NodeSet::default(), ALL);
        assert!(drive.next().is_some(), "all have told all: {:?}", drive.stages());
    }
    assert_eq!(drive.members.holders(), places(0..6));
    // Four begin with each change, and the last go through two stages more.
    assert_eq!(drive.changes, BATCHES / SETTINGS.at_once + 2);
}

#[test]
fn what_is_ready_waits_a_while_for_others_of_its_stage_and_what_begins_does_with_it() {
    let planned = held_by(4, places(0..3)).planned(places([0, 1, 3])).expect("valid");
    let mut drive = Drive::new(SETTINGS, planned, 64);
    drive.tell_all_but(NodeSet::default(), 0);
    assert_eq!(drive.next().map(|change| change.len()), Some(4));
    drive.tell_all_but(NodeSet::default(), 0b0001);
    assert_eq!(drive.next(), None, "three others are still being filled");
    drive.now += GATHER_MICROS - 1;
    drive.tell_all_but(NodeSet::default(), 0b0011);
    assert_eq!(drive.next(), None);
    drive.now += 1;
    let began = vec![(0, Stage::Joint), (1, Stage::Joint), (4, Stage::Copying), (5, Stage::Copying)];
    assert_eq!(drive.next(), Some(began));
    // The epoch is another one: nobody has told it.
    assert_eq!(drive.next(), None);
    drive.tell_all_but(NodeSet::default(), 0b1111);
    // All that are joint are ready, and of those that are filled two.
    assert_eq!(drive.next(), None);
    drive.tell_all_but(NodeSet::default(), 0b11_1111);
    let all = drive.next().expect("all are ready");
    assert_eq!(all.len(), 2 + 4 + 4, "{all:?}");
}

#[test]
fn a_change_waits_for_members_that_live_and_not_for_ever() {
    let planned = held_by(4, places(0..3)).planned(places([0, 1, 3])).expect("valid");
    let mut drive = Drive::new(SETTINGS, planned.clone(), 64);
    let (late, now) = (places([2]), drive.now);
    drive.tell_all_but(late, 0);
    assert_eq!(drive.next(), None, "it may live: nothing is known of it");
    let why = |drive: &mut Drive| drive.mover.progress(drive.now, &drive.members).waited_for;
    let number = drive.number(2);
    assert_eq!(why(&mut drive), [WaitedFor { number, why: WaitReason::Behind, batches: 0 }]);
    drive.now += SETTINGS.gone_micros;
    assert!(drive.next().is_some(), "it says nothing, and nothing is to be put there");
    // It lives, and does not learn of the change.
    let mut drive = Drive::new(SETTINGS, planned.clone(), 64);
    let behind = Telling { epoch: planned.epoch() - 1, received: 0 };
    while drive.now < now + SETTINGS.patience_micros {
        drive.tell_all_but(late, 0);
        drive.mover.told(drive.now, number, behind);
        assert_eq!(drive.next(), None);
        drive.now += SECOND / 2;
    }
    drive.mover.told(drive.now, number, behind);
    assert!(drive.next().is_some());
    // Without patience nobody is waited for.
    let mut drive = Drive::new(MoverSettings { patience_micros: 0, ..SETTINGS }, planned, 64);
    assert!(drive.next().is_some());
}

#[test]
fn a_dead_member_that_receives_nothing_is_not_waited_for() {
    let planned = held_by(5, places(0..4)).planned(places([0, 1, 2, 4])).expect("valid");
    let mut drive = Drive::new(SETTINGS, planned, 64);
    while drive.members.plan().is_some() {
        drive.now += SECOND;
        drive.tell_all_but(places([3]), ALL);
        drive.next();
        assert!(drive.changes <= BATCHES && drive.now < 200 * SECOND);
    }
}

#[test]
fn a_dead_member_blocks_only_the_batches_that_it_receives() {
    let planned = held_by(4, places(0..4)).planned(places([0, 1, 2])).expect("valid");
    let mut drive = Drive::new(SETTINGS, planned, 64);
    let dead = NodeIndex(0);
    for _ in 0..400 {
        drive.now += SECOND;
        drive.tell_all_but(NodeSet::default().with(dead), ALL);
        drive.next();
    }
    let plan = drive.members.plan().expect("it cannot end").clone();
    // It holds up as many as are filled at a time, and those behind them.
    for batch in plan.at(Stage::Copying) {
        assert!(drive.mover.gaining[batch].contains(dead) || drive.mover.gaining[batch].is_empty());
    }
    for batch in plan.at(Stage::Moved) {
        assert!(!drive.mover.gaining[batch].contains(dead));
    }
    assert!(plan.at(Stage::Moved).count() > 0 && plan.at(Stage::Joint).count() == 0, "{:?}", drive.stages());
    let (number, progress) = (drive.number(0), drive.mover.progress(drive.now, &drive.members));
    assert_eq!(progress.waited_for, [WaitedFor { number, why: WaitReason::Silent, batches: 4 }]);
    assert!(progress.share() > 0.0 && progress.share() < 1.0);
    // It comes back.
    while drive.members.plan().is_some() {
        drive.now += SECOND;
        drive.tell_all_but(NodeSet::default(), ALL);
        drive.next();
        assert!(drive.now < 600 * SECOND);
    }
}

#[test]
fn batches_in_which_nothing_moves_wait_for_nobody() {
    // The first eight partitions have keys, so the other batches have nothing.
    let planned = held_by(4, places(0..3)).planned(places([0, 1, 3])).expect("valid");
    let mut drive = Drive::new(SETTINGS, planned, 8);
    drive.tell_all_but(NodeSet::default(), 0);
    assert_eq!(drive.next().map(|change| change.len()), Some(4 + 56));
    drive.now += 5 * SECOND;
    drive.tell_all_but(NodeSet::default(), 0);
    assert_eq!(drive.next(), None, "they make no change of their own");
    while drive.members.plan().is_some() {
        drive.tell_all_but(NodeSet::default(), ALL);
        assert!(drive.next().is_some());
    }
    assert_eq!(drive.changes, 4);
    // Where nothing moves at all, they go alone.
    let planned = held_by(4, places(0..3)).planned(places([0, 1, 3])).expect("valid");
    let mut drive = Drive::new(MoverSettings { patience_micros: 0, ..SETTINGS }, planned, 0);
    while drive.members.plan().is_some() {
        assert_eq!(drive.next().map(|change| change.len()), Some(BATCHES));
    }
    assert_eq!(drive.changes, 3);
}

#[test]
fn while_paused_only_what_is_joint_ends() {
    let planned = held_by(4, places(0..3)).planned(places([0, 1, 3])).expect("valid");
    let mut drive = Drive::new(SETTINGS, planned, 64);
    drive.tell_all_but(NodeSet::default(), ALL);
    assert_eq!(drive.next_paused(), None);
    for _ in 0..2 {
        drive.tell_all_but(NodeSet::default(), ALL);
        drive.next();
    }
    assert_eq!(drive.stages(), [56, 4, 4, 0]);
    drive.tell_all_but(NodeSet::default(), ALL);
    assert_eq!(drive.next_paused().map(|change| change.len()), Some(4));
    drive.tell_all_but(NodeSet::default(), ALL);
    assert_eq!((drive.next_paused(), drive.stages()), (None, [56, 4, 0, 4]));
    assert_eq!(drive.next().map(|change| change.len()), Some(8));
}

#[test]
fn a_member_that_restarts_knows_less_again() {
    let planned = held_by(4, places(0..3)).planned(places([0, 1, 3])).expect("valid");
    let mut drive = Drive::new(MoverSettings { patience_micros: 0, ..SETTINGS }, planned, 64);
    drive.next();
    drive.tell_all_but(NodeSet::default(), ALL);
    let number = drive.number(3);
    drive.mover.told(drive.now, number, Telling { epoch: drive.members.epoch() - 1, received: ALL });
    drive.now += SECOND;
    assert_eq!(drive.next(), None, "it told it of an epoch before this stage");
    drive.tell(3, 0);
    assert_eq!(drive.next(), None);
    drive.tell(3, ALL);
    assert!(drive.next().is_some());
}

#[test]
fn tellings_of_strangers_are_bounded() {
    let mut mover = Mover::new(SETTINGS);
    for number in 0..u16::MAX {
        mover.told(0, number, Telling::default());
    }
    assert_eq!(mover.heard.len(), TOLD_MAX);
    mover.next(0, &members(3), false);
    assert_eq!(mover.heard.len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever is told by whom and when, and however often the plan is taken back.
    #[test]
    fn stages_go_on_only_when_the_rule_allows_and_always_come_to_an_end(
        (before, after) in (1_u64..64, 1_u64..64),
        partitions in 1_usize..130,
        (at_once, patience) in (1_usize..70, 0_u64..3),
        what in prop::collection::vec((0_u8..12, any::<u64>()), 0..200),
    ) {
        prop_assume!(before != after);
        let planned = held_by(6, NodeSet(before)).planned(NodeSet(after)).expect("valid");
        let settings = MoverSettings { at_once, patience_micros: patience * SECOND, ..SETTINGS };
        let mut drive = Drive::new(settings, planned, partitions);
        // What each told last.
        let mut last = [Telling::default(); 6];
        let mut paused = false;
        let mut receivers = drive.receivers();
        for (kind, drawn) in what {
            let place = (drawn % 6) as u8;
            match kind {
                0 => drive.now += drawn % (2 * SECOND),
                1 => paused = !paused,
                2 if drawn % 8 == 0 => if let Ok(members) = drive.members.cancelled() {
                    drive.members = members;
                    if drive.members.plan().is_some() {
                        receivers = drive.receivers();
                    }
                },
                2..6 => {
                    let epoch = drive.members.epoch();
                    let epoch = if drawn & 64 == 0 { epoch } else { drawn >> 8 & 7 };
                    let received = if drawn & 128 == 0 { ALL } else { drawn.rotate_left(17) | drawn };
                    last[usize::from(place)] = Telling { epoch: epoch.min(drive.members.epoch()), received };
                    let number = drive.number(place);
                    drive.mover.told(drive.now, number, last[usize::from(place)]);
                }
                _ => {
                    let before = drive.members.clone();
                    let Some(plan) = before.plan() else { break };
                    let change = drive.mover.next(drive.now, &before, paused);
                    for &(batch, stage) in change.iter().flatten() {
                        prop_assert!(stage == Stage::Moved || !paused, "paused");
                        let began = plan.batches[batch].began;
                        let may = |node: NodeIndex| {
                            let told = last[node.at()];
                            told.epoch >= began && told.received & (1 << batch) != 0
                        };
                        prop_assert!(stage == Stage::Copying || receivers[batch].iter().all(may), "{} too soon", batch);
                    }
                    drive.make(change);
                }
            }
        }
        // They all tell all, sooner or later.
        for _ in 0..BATCHES * 4 {
            if drive.members.plan().is_none() {
                return Ok(());
            }
            drive.tell_all_but(NodeSet::default(), ALL);
            prop_assert!(drive.next().is_some(), "stuck at {:?}", drive.stages());
        }
        prop_assert!(false, "it takes too many changes");
    }

    #[test]
    fn what_a_plan_costs_is_what_members_have_to_be_given(before in 1_u64..64, after in 1_u64..64, from in 1_u8..5) {
        let members = held_by(6, NodeSet(before));
        let cost = cost(&members, NodeSet(after), from);
        prop_assert!(cost.total() >= cost.least);
        prop_assert!(cost.copies.iter().all(|&(node, _)| NodeSet(after).contains(node)));
        if before == after {
            prop_assert_eq!((cost.total(), cost.least), (0, 0));
        } else {
            let planned = members.planned(NodeSet(after)).expect("valid");
            let all: Vec<_> = (0..BATCHES).map(|batch| (batch, Stage::Copying)).collect();
            let topology = Topology::of(&planned.advanced(&all).expect("valid"), &planned.nodes()[0].url);
            let of = |partition| topology.replicas_of(partition, from).without(topology.sources_of(partition, from));
            let given: usize = (0..PARTITIONS).map(|partition| of(partition).len()).sum();
            prop_assert_eq!(cost.total() as usize, given);
        }
    }
}

#[test]
fn a_node_more_costs_about_its_share_and_hardly_more_than_it_must() {
    let members = held_by(10, places(0..9));
    let cost = cost(&members, places(0..10), 3);
    assert_eq!(cost.copies.len(), 1, "only the new one is given anything");
    assert_eq!(cost.total(), cost.least);
    let share = f64::from(cost.total()) / (PARTITIONS as f64 * 3.0 / 10.0);
    assert!((0.9..1.1).contains(&share), "{share}");
}

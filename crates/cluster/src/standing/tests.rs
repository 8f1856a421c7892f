//! A cluster of memories and nothing else: nodes that start, meet, are emptied, copied and put back
//! in any order.

use koltso_model::{NodeId, Standing};
use proptest::prelude::*;
use std::collections::BTreeMap;

use super::{Judged, Memory, News, OLDER_BY_MS, Process, Remembered};

/// What a node has on disk.
#[derive(Clone)]
struct Folder {
    id: NodeId,
    starts: u32,
    /// As the clock's file has it.
    lived_ms: u64,
    standing: (Standing, u64),
    remembered: BTreeMap<u16, Remembered>,
}

struct Node {
    folder: Folder,
    process: Process,
    memory: Memory,
}

/// All nodes live, and meet when they are told to.
struct Cluster {
    nodes: Vec<Node>,
    now_ms: u64,
    drawn: u64,
}

impl Cluster {
    fn new(count: usize) -> Self {
        let mut cluster = Self { nodes: Vec::new(), now_ms: 1_000_000_000, drawn: 0 };
        for number in 0..count {
            let folder = cluster.empty();
            let node = cluster.started(number, count, folder);
            cluster.nodes.push(node);
        }
        cluster
    }

    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.drawn
    }

    fn empty(&mut self) -> Folder {
        let id = NodeId::made(self.now_ms, u128::from(self.draw()) << 64);
        Folder { id, starts: 0, lived_ms: 0, standing: (Standing::New, 0), remembered: BTreeMap::new() }
    }

    fn started(&mut self, number: usize, count: usize, mut folder: Folder) -> Node {
        folder.starts += 1;
        let process = Process { id: folder.id, starts: folder.starts, lived_ms: folder.lived_ms, run: self.draw() };
        let others = (0..count as u16).filter(|&other| usize::from(other) != number).collect();
        let memory = Memory::new(folder.id, folder.standing, others, folder.remembered.clone());
        Node { folder, process, memory }
    }

    /// Time passes. Everybody lives, hears of whom it has met, and writes that down.
    fn live(&mut self, ms: u64) {
        self.now_ms += ms;
        for node in &mut self.nodes {
            for number in 0..64 {
                node.memory.heard(number, self.now_ms);
            }
            node.folder.lived_ms = self.now_ms;
            node.folder.standing = node.memory.kept();
            node.folder.remembered = node.memory.remembered().collect();
        }
    }

    fn start(&mut self, number: usize, folder: Folder) {
        let count = self.nodes.len();
        self.nodes[number] = self.started(number, count, folder);
    }

    fn restart(&mut self, number: usize) {
        let folder = self.nodes[number].folder.clone();
        self.start(number, folder);
    }

    fn wipe(&mut self, number: usize) {
        let folder = self.empty();
        self.start(number, folder);
    }

    /// A handshake: both judge before either knows how it was judged.
    fn meet(&mut self, one: usize, other: usize) {
        let judge = |judging: usize, judged: usize| {
            let process = self.nodes[judged].process;
            (process, self.nodes[judging].memory.judge(judged as u16, &process))
        };
        let ((other_process, of_other), (one_process, of_one)) = (judge(one, other), judge(other, one));
        if [of_one, of_other].contains(&Judged::TwoPlaces) {
            return;
        }
        let now_ms = self.now_ms;
        let doubt = |judged, by: usize, of: usize| {
            (judged == Judged::Changed).then(|| self.nodes[by].memory.heard_ms(of as u16))
        };
        let (of_one, of_other) = (doubt(of_one, other, one), doubt(of_other, one, other));
        self.nodes[one].memory.met(other as u16, other_process, of_one, now_ms);
        self.nodes[other].memory.met(one as u16, one_process, of_other, now_ms);
    }

    fn meet_all(&mut self) {
        let count = self.nodes.len();
        for (one, other) in (0..count).flat_map(|one| (0..one).map(move |other| (one, other))) {
            self.meet(one, other);
        }
    }

    /// A node is rebuilt, and tells everybody.
    fn rebuilt(&mut self, number: usize) {
        self.nodes[number].memory.became_whole();
        self.tell_all();
    }

    fn tell_all(&mut self) {
        let count = self.nodes.len();
        for (one, other) in (0..count).flat_map(|one| (0..count).map(move |other| (one, other))) {
            let (process, standing) = (self.nodes[other].process, self.nodes[other].memory.standing());
            if one != other {
                self.nodes[one].memory.told(other as u16, process, standing, self.now_ms);
            }
        }
    }

    fn standings(&self) -> Vec<Standing> {
        self.nodes.iter().map(|node| node.memory.standing()).collect()
    }

    #[track_caller]
    fn assert_rebuilding(&self, expected: &[usize]) {
        let rebuilding: Vec<usize> =
            (0..self.nodes.len()).filter(|&at| self.standings()[at] == Standing::Rebuilding).collect();
        assert_eq!(rebuilding, expected);
        assert!(!self.standings().contains(&Standing::New), "{:?}", self.standings());
    }
}

/// A cluster that has been there for a while.
fn formed(count: usize) -> Cluster {
    let mut cluster = Cluster::new(count);
    cluster.meet_all();
    cluster.live(60_000);
    cluster.assert_rebuilding(&[]);
    cluster
}

#[test]
fn a_node_without_others_is_whole_at_once() {
    let memory = Memory::new(NodeId(1), (Standing::New, 0), Vec::new(), BTreeMap::new());
    assert_eq!(memory.standing(), Standing::Whole);
}

#[test]
fn a_first_start_is_whole_with_a_majority_and_not_before() {
    let mut cluster = Cluster::new(5);
    cluster.meet(0, 1);
    assert_eq!(cluster.standings(), [Standing::New; 5]);
    cluster.meet(0, 2);
    assert_eq!(cluster.standings()[0], Standing::Whole);
    assert_eq!(cluster.standings()[1..], [Standing::New; 4]);
    cluster.meet_all();
    cluster.assert_rebuilding(&[]);
}

#[test]
fn a_restart_is_the_same_node_and_an_emptied_one_is_not() {
    let mut cluster = formed(3);
    cluster.restart(1);
    cluster.meet_all();
    cluster.assert_rebuilding(&[]);
    cluster.wipe(2);
    assert_eq!(cluster.standings()[2], Standing::New);
    cluster.meet(2, 0);
    assert_eq!(cluster.standings()[2], Standing::Rebuilding, "before it has met a majority");
    // It stays so through restarts, until it is rebuilt, and is remembered from then on.
    cluster.live(1000);
    cluster.restart(2);
    cluster.meet_all();
    cluster.assert_rebuilding(&[2]);
    cluster.rebuilt(2);
    cluster.assert_rebuilding(&[]);
    cluster.live(1000);
    cluster.restart(2);
    cluster.restart(0);
    cluster.meet_all();
    cluster.assert_rebuilding(&[]);
}

#[test]
fn all_restarted_at_once_are_all_the_same() {
    let mut cluster = formed(3);
    // A power loss: what others heard is synced, and what the clock's file had is up to ten seconds
    // old.
    for number in 0..3 {
        cluster.nodes[number].folder.lived_ms -= 12_000;
        cluster.restart(number);
    }
    cluster.meet_all();
    cluster.assert_rebuilding(&[]);
    // The clocks of all were wrong, and are set back by an hour.
    cluster.live(1000);
    cluster.now_ms -= 3_600_000;
    for _ in 0..3 {
        cluster.live(1000);
        for number in 0..3 {
            cluster.restart(number);
        }
        cluster.meet_all();
        cluster.assert_rebuilding(&[]);
    }
}

#[test]
fn an_older_copy_is_noticed_however_it_was_made() {
    for (restarts, lives_ms) in [(0, 7 * 86_400_000), (1, 5), (1, 7 * 86_400_000), (3, 100)] {
        for stopped in [false, true] {
            let mut cluster = formed(3);
            if stopped {
                cluster.live(1000);
            }
            let copy = cluster.nodes[1].folder.clone();
            if stopped {
                cluster.restart(1);
                cluster.meet_all();
            }
            for _ in 0..restarts {
                cluster.live(lives_ms);
                cluster.restart(1);
                cluster.meet_all();
            }
            cluster.live(lives_ms);
            cluster.start(1, copy);
            cluster.meet_all();
            cluster.assert_rebuilding(&[1]);
            cluster.rebuilt(1);
            cluster.live(1000);
            cluster.restart(1);
            cluster.meet_all();
            cluster.assert_rebuilding(&[]);
        }
    }
}

/// Found by the property below: both had been replaced, and the older folder of one is put back.
#[test]
fn an_old_copy_of_the_folder_before_does_not_doubt_those_who_were_replaced_either() {
    let mut cluster = formed(2);
    let copy = cluster.nodes[0].folder.clone();
    for number in [0, 1] {
        cluster.wipe(number);
        cluster.meet_all();
        cluster.rebuilt(number);
        cluster.live(OLDER_BY_MS + 1);
    }
    cluster.start(0, copy);
    cluster.meet_all();
    cluster.assert_rebuilding(&[0]);
}

#[test]
fn a_copy_put_back_that_has_missed_nothing_is_the_same_node() {
    let mut cluster = formed(3);
    cluster.live(1000);
    let copy = cluster.nodes[1].folder.clone();
    cluster.now_ms += 86_400_000;
    cluster.start(1, copy);
    cluster.meet_all();
    cluster.assert_rebuilding(&[]);
}

#[test]
fn starts_that_a_full_disk_keeps_from_being_counted_are_later_ones() {
    let mut cluster = formed(3);
    for _ in 0..3 {
        cluster.live(1000);
        cluster.nodes[1].folder.starts -= 1;
        cluster.restart(1);
        cluster.meet_all();
        cluster.assert_rebuilding(&[]);
    }
}

#[test]
fn an_old_copy_does_not_doubt_those_who_were_replaced_meanwhile() {
    let mut cluster = formed(3);
    let copy = cluster.nodes[0].folder.clone();
    cluster.live(86_400_000);
    cluster.wipe(2);
    cluster.meet_all();
    cluster.rebuilt(2);
    cluster.live(6 * 86_400_000);
    cluster.start(0, copy);
    cluster.meet(0, 2);
    cluster.meet_all();
    cluster.assert_rebuilding(&[0]);
    // What it hears from the others it remembers.
    cluster.tell_all();
    cluster.rebuilt(0);
    cluster.live(1000);
    for number in 0..3 {
        cluster.restart(number);
    }
    cluster.meet_all();
    cluster.assert_rebuilding(&[]);
}

/// Found by the simulation: a node was replaced while another was away, which came back as a copy
/// from before that. Both were rebuilding, and the third could make neither whole.
#[test]
fn the_doubt_of_one_that_is_rebuilding_is_taken_back() {
    let mut cluster = formed(3);
    let copy = cluster.nodes[0].folder.clone();
    cluster.wipe(2);
    cluster.meet(2, 1);
    cluster.rebuilt(2);
    cluster.live(OLDER_BY_MS + 1);
    cluster.restart(2);
    cluster.meet(2, 1);
    // Node 2 has never met node 0, and cannot know that this is a copy.
    cluster.start(0, copy);
    cluster.meet(0, 2);
    cluster.meet(0, 1);
    cluster.assert_rebuilding(&[0, 2]);
    cluster.tell_all();
    cluster.assert_rebuilding(&[0]);
}

/// Found by the simulation: each took the other for an older copy, and neither gave in. So the delete that
/// one of them lacked was undone.
#[test]
fn of_two_that_doubt_each_other_the_older_memory_gives_in() {
    let mut cluster = formed(2);
    let copy = cluster.nodes[0].folder.clone();
    cluster.live(OLDER_BY_MS + 1);
    cluster.start(0, copy);
    cluster.meet(0, 1);
    cluster.assert_rebuilding(&[0]);
    // It remembers node 0 as it was before.
    cluster.live(1000);
    let copy = cluster.nodes[1].folder.clone();
    cluster.rebuilt(0);
    cluster.live(OLDER_BY_MS + 1);
    cluster.start(1, copy);
    cluster.meet(1, 0);
    cluster.assert_rebuilding(&[1]);
}

#[test]
fn whoever_tells_something_is_heard_of() {
    let mut cluster = formed(2);
    let copy = cluster.nodes[1].folder.clone();
    cluster.now_ms += OLDER_BY_MS + 1;
    cluster.tell_all();
    cluster.start(1, copy);
    cluster.meet(1, 0);
    cluster.assert_rebuilding(&[1]);
}

#[test]
fn two_of_three_emptied_are_both_rebuilding_whomever_they_meet_first() {
    for first in [(1, 2), (0, 1), (0, 2)] {
        let mut cluster = formed(3);
        cluster.wipe(1);
        cluster.wipe(2);
        cluster.meet(first.0, first.1);
        cluster.meet_all();
        cluster.assert_rebuilding(&[1, 2]);
    }
}

#[test]
fn a_folder_at_two_places_is_noticed_by_itself_and_by_others() {
    let mut cluster = formed(3);
    let copy = cluster.nodes[1].folder.clone();
    cluster.start(2, copy);
    let process = cluster.nodes[2].process;
    assert_eq!(cluster.nodes[1].memory.judge(2, &process), Judged::TwoPlaces);
    assert_eq!(cluster.nodes[0].memory.judge(2, &process), Judged::TwoPlaces);
    assert_eq!(cluster.nodes[0].memory.met(2, process, Some(0), cluster.now_ms), News::None);
    assert_eq!(cluster.nodes[0].memory.standing(), Standing::Whole);
}

#[test]
fn the_answer_of_an_earlier_process_does_not_speak_for_a_later_one() {
    let mut cluster = formed(3);
    let before = cluster.nodes[2].process;
    cluster.wipe(2);
    cluster.meet(0, 2);
    let (memory, now_ms) = (&mut cluster.nodes[0].memory, cluster.now_ms);
    assert_eq!(memory.told(2, before, Standing::Whole, now_ms), News::None);
    let emptied = cluster.nodes[2].process;
    assert_eq!(cluster.nodes[0].memory.judge(2, &emptied), Judged::Changed);
    assert_eq!(cluster.nodes[0].memory.told(2, emptied, Standing::Rebuilding, now_ms), News::None);
    assert_eq!(cluster.nodes[0].memory.judge(2, &emptied), Judged::Changed);
}

#[test]
fn the_bound_of_an_older_copy_is_where_it_says() {
    let known = Process { id: NodeId(2), starts: 5, lived_ms: 100, run: 1 };
    let remembered = [(7, Remembered { process: known, heard_ms: 1_000_000 })].into();
    let memory = Memory::new(NodeId(1), (Standing::Whole, 0), vec![7], remembered);
    let after = |starts, lived_ms| memory.judge(7, &Process { starts, lived_ms, run: 2, ..known });
    assert_eq!(after(6, 1_000_000 - OLDER_BY_MS), Judged::Known);
    assert_eq!(after(6, 1_000_000 - OLDER_BY_MS - 1), Judged::Changed);
    assert_eq!(after(5, 1_000_000), Judged::Known);
    assert_eq!(after(4, 1_000_000), Judged::Changed);
    assert_eq!(memory.judge(7, &known), Judged::Known, "the same process, however long it lives");
    assert_eq!(memory.judge(7, &Process { run: 3, ..known }), Judged::Changed, "a copy from before its start");
}

/// Found by the simulation: a node was rebuilt while another one was away, which remembers whoever was
/// there before; and a third one has to be rebuilt, which needs the first.
#[test]
fn a_doubt_from_before_a_rebuilding_that_is_done_moves_nobody() {
    let mut cluster = formed(3);
    cluster.live(10 * OLDER_BY_MS);
    let heard_ms = cluster.nodes[2].memory.heard_ms(0);
    cluster.now_ms += 10 * OLDER_BY_MS;
    cluster.wipe(0);
    cluster.meet(0, 1);
    cluster.assert_rebuilding(&[0]);
    cluster.nodes[0].memory.became_whole();
    let (process, standing) = (cluster.nodes[0].process, cluster.nodes[0].memory.standing());
    cluster.nodes[1].memory.told(0, process, standing, cluster.now_ms);
    assert_eq!(cluster.nodes[2].memory.heard_ms(0), heard_ms, "it is away");
    for _ in 0..2 {
        cluster.meet(0, 2);
        cluster.assert_rebuilding(&[]);
        cluster.live(1);
        cluster.restart(0);
    }
    cluster.meet(0, 2);
    cluster.tell_all();
    // Whoever is remembered as it was later than that is doubted as before.
    let older = cluster.nodes[0].folder.clone();
    cluster.live(10 * OLDER_BY_MS);
    cluster.start(0, older);
    cluster.meet(0, 2);
    cluster.assert_rebuilding(&[0]);
}

#[test]
fn a_rebuilding_that_began_by_a_clock_that_was_ahead_answers_no_doubt() {
    let now_ms = 1_000_000;
    let doubted = |began_ms| {
        let mut memory = Memory::new(NodeId(1), (Standing::Whole, began_ms), vec![7], [].into());
        let process = Process { id: NodeId(2), starts: 5, lived_ms: now_ms, run: 1 };
        memory.met(7, process, Some(now_ms - 10), now_ms);
        memory.standing()
    };
    assert_eq!(doubted(now_ms - 9), Standing::Whole);
    assert_eq!(doubted(now_ms - 10), Standing::Rebuilding);
    assert_eq!(doubted(now_ms + 1), Standing::Rebuilding);
}

proptest! {
    #[test]
    fn a_first_start_ends_whole_whatever_the_order(
        count in 1_usize..6,
        meetings in prop::collection::vec((0_usize..6, 0_usize..6), 0..40),
    ) {
        let mut cluster = Cluster::new(count);
        let mut met = vec![std::collections::BTreeSet::new(); count];
        for (one, other) in meetings.into_iter().filter(|&(one, other)| one != other && one.max(other) < count) {
            cluster.meet(one, other);
            met[one].insert(other);
            met[other].insert(one);
            for (number, met) in met.iter().enumerate() {
                let whole = met.len() + 1 > count / 2;
                let expected = if whole { Standing::Whole } else { Standing::New };
                prop_assert_eq!(cluster.standings()[number], expected);
            }
        }
    }

    /// Whatever was done to some of the nodes: whoever lacks something is rebuilding once it has met
    /// one that remembers it, and nobody else is.
    #[test]
    fn an_emptied_or_older_node_is_never_whole_once_it_met_one_that_remembers_it(
        count in 2_usize..6,
        history in prop::collection::vec((0_u8..4, 0_usize..6, 1_u64..100_000), 0..12),
        done in prop::collection::vec((0_u8..3, 0_usize..6), 1..4),
        meetings in prop::collection::vec((0_usize..6, 0_usize..6), 0..30),
    ) {
        let mut cluster = formed(count);
        let copies: Vec<Folder> = cluster.nodes.iter().map(|node| node.folder.clone()).collect();
        for (what, number, ms) in history {
            let number = number % count;
            match what {
                0 => cluster.restart(number),
                1 => {
                    cluster.wipe(number);
                    cluster.meet_all();
                    cluster.rebuilt(number);
                }
                _ => {}
            }
            cluster.meet_all();
            cluster.live(ms);
        }
        cluster.live(OLDER_BY_MS + 1);
        cluster.assert_rebuilding(&[]);
        let mut lacking = vec![false; count];
        for (what, number) in done {
            let number = number % count;
            match what {
                0 => cluster.restart(number),
                1 => cluster.wipe(number),
                _ => cluster.start(number, copies[number].clone()),
            }
            lacking[number] |= what != 0;
        }
        let mut meetings: Vec<_> =
            meetings.into_iter().filter(|&(one, other)| one != other && one.max(other) < count).collect();
        meetings.extend((0..count).flat_map(|one| (0..one).map(move |other| (one, other))));
        let mut met_one_that_remembers = vec![false; count];
        for (one, other) in meetings {
            cluster.meet(one, other);
            met_one_that_remembers[one] |= !lacking[other];
            met_one_that_remembers[other] |= !lacking[one];
            for number in 0..count {
                if lacking[number] && met_one_that_remembers[number] {
                    prop_assert_eq!(cluster.standings()[number], Standing::Rebuilding);
                }
                if !lacking[number] {
                    prop_assert_eq!(cluster.standings()[number], Standing::Whole, "{} lacks nothing", number);
                }
            }
        }
    }
}

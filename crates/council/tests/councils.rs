//! What a council promises, as scenarios on a network in memory and real folders.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Cluster, SECOND, eventually, run};
use koltso_cluster::plan::{BATCHES, Stage};
use koltso_council::{Change, Ending, ProposeError, RECOVERY_LEAP, RecoverError, StartError, recover};
use koltso_model::NodeId;
use koltso_testkit::random::Random;
use tokio::time::{Instant, sleep};

#[test]
fn a_single_node_forms_a_cluster_and_goes_on_after_a_restart() {
    run(async {
        let mut cluster = Cluster::formed(&mut Random::announced("single"), &[""]).await;
        let made = cluster.change(0, Change::MoveRate(Some(5))).await;
        assert_eq!((made.move_rate, cluster.document(0)), (Some(5), made.clone()));
        cluster.kill(0).await;
        cluster.start(0).await;
        assert_eq!(cluster.document(0), made, "it knows its document without asking anybody");
        cluster.change(0, Change::MoveRate(None)).await;
    });
}

#[test]
fn all_members_of_a_first_list_form_one_cluster() {
    run(async {
        for count in 2..=7 {
            let cluster = Cluster::formed(&mut Random::announced("all"), &vec![""; count]).await;
            let document = cluster.document(0);
            assert_ne!(document.cluster, NodeId::NONE);
            assert_eq!((document.membership.nodes().len(), document.membership.holders().len()), (count, count));
            assert_eq!(document.epoch(), 1 + count as u64, "each has claimed its place once");
            cluster.voters(0, &(1..=count.min(5) as u16).collect::<Vec<_>>()).await;
            assert_eq!(cluster.history().len(), count + 1);
        }
    });
}

#[test]
fn a_majority_of_a_first_list_forms_a_cluster_and_the_others_come_later() {
    run(async {
        let mut cluster = Cluster::new(&mut Random::announced("majority"), &["", "", "", "", ""], 5);
        for at in [4, 1] {
            cluster.start(at).await;
        }
        sleep(5 * SECOND).await;
        assert!(cluster.running().iter().all(|&at| cluster.council(at).document().is_none()), "two of five");
        assert_eq!(cluster.council(1).propose(1, Change::Pause(true)).await, Err(ProposeError::NoMajority));
        cluster.start(2).await;
        cluster.settle().await;
        let formed = cluster.document(1).cluster;
        cluster.start_all().await;
        cluster.settle().await;
        assert_eq!(cluster.document(0).cluster, formed);
    });
}

#[test]
fn a_lost_leader_is_replaced_within_three_seconds() {
    run(async {
        let mut cluster = Cluster::formed(&mut Random::announced("leader"), &["", "", "", "", ""]).await;
        for _ in 0..6 {
            let (leader, _) = cluster.leader(&cluster.running()).await;
            cluster.kill(leader).await;
            let (next, took) = cluster.leader(&cluster.running()).await;
            assert!(took < 3 * SECOND, "{took:?}");
            cluster.change(next, Change::Pause(true)).await;
            cluster.start(leader).await;
            cluster.settle().await;
        }
    });
}

#[test]
fn without_a_majority_a_proposal_says_so_and_changes_nothing() {
    run(async {
        let cluster = Cluster::formed(&mut Random::announced("minority"), &["", "", "", "", ""]).await;
        let (leader, _) = cluster.leader(&[0, 1, 2, 3, 4]).await;
        let other = (leader + 1) % 5;
        let epoch = cluster.document(leader).epoch();
        cluster.cut_off(&[leader, other]);
        // At once it may not know yet; it is told within the time that is promised.
        for at in [leader, other] {
            let began = Instant::now();
            let error = cluster.council(at).propose(epoch + 7, Change::Pause(true)).await.unwrap_err();
            assert!(matches!(error, ProposeError::NoMajority | ProposeError::Unknown), "{error}");
            assert!(began.elapsed() <= 3 * SECOND + SECOND / 10, "{:?}", began.elapsed());
        }
        sleep(3 * SECOND).await;
        for at in [leader, other] {
            let began = Instant::now();
            let error = cluster.council(at).propose(epoch, Change::Pause(true)).await;
            assert_eq!(error, Err(ProposeError::NoMajority));
            assert!(began.elapsed() < SECOND / 5, "it is known by now: {:?}", began.elapsed());
            assert!(error.unwrap_err().to_string().contains("nothing was changed"));
        }
        assert_eq!(cluster.council(leader).leader(), None);
        let majority: Vec<usize> = (0..5).filter(|at| ![leader, other].contains(at)).collect();
        let (next, _) = cluster.leader(&majority).await;
        cluster.change(next, Change::Pause(true)).await;
        cluster.heal();
        cluster.settle().await;
        assert_eq!(cluster.document(leader).epoch(), epoch + 1);
    });
}

#[test]
fn of_two_operators_at_once_exactly_one_wins() {
    run(async {
        let cluster = Cluster::formed(&mut Random::announced("two operators"), &["", "", ""]).await;
        for round in 0..20 {
            let epoch = cluster.document(0).epoch();
            eventually("all know it", || (0..3).all(|at| cluster.document(at).epoch() == epoch)).await;
            let one = cluster.propose_at(round % 3, epoch, Change::MoveRate(Some(1)));
            let other = cluster.propose_at((round + 1) % 3, epoch, Change::MoveRate(Some(2)));
            let (one, other) = (one.await.unwrap(), other.await.unwrap());
            let (made, refused) = if one.is_ok() { (one, other) } else { (other, one) };
            assert_eq!(refused, Err(ProposeError::Behind { epoch: epoch + 1 }));
            assert_eq!(made.unwrap().epoch(), epoch + 1);
            cluster.settle().await;
        }
    });
}

#[test]
fn a_change_that_is_not_possible_is_refused_with_the_reason() {
    run(async {
        let cluster = Cluster::formed(&mut Random::announced("refused"), &["", "", ""]).await;
        let epoch = cluster.document(0).epoch();
        for at in 0..3 {
            let refused = cluster.council(at).propose(epoch, Change::Leave { number: 1 }).await;
            assert!(matches!(&refused, Err(ProposeError::Refused(why)) if why.contains("drain")), "{refused:?}");
        }
        assert_eq!(cluster.document(0).epoch(), epoch);
    });
}

#[test]
fn a_node_joins_by_its_identity_gets_data_gives_it_back_and_leaves() {
    run(async {
        let mut cluster = Cluster::new(&mut Random::announced("join"), &["", "", "", ""], 3);
        for at in 0..4 {
            cluster.start(at).await;
        }
        eventually("the first are formed", || cluster.council(0).document().is_some()).await;
        assert_eq!((cluster.council(3).number(), cluster.council(3).document()), (None, None));
        assert_eq!(cluster.council(3).propose(1, Change::Cancel).await, Err(ProposeError::NoMajority));
        cluster.change(1, cluster.join(3)).await;
        cluster.settle().await;
        let number = cluster.council(3).number().unwrap();
        assert_eq!(cluster.document(3).membership.at("http://node-3:1").unwrap().number, number);
        let all = cluster.numbers(&[0, 1, 2, 3]);
        cluster.voters(3, &all).await;
        // It may propose as everybody else.
        let before = cluster.numbers(&[0, 1, 2]);
        for target in [all, before.clone()] {
            cluster.change(3, Change::Plan { target }).await;
            for stage in [Stage::Copying, Stage::Joint, Stage::Moved] {
                let batches = (0..BATCHES).map(|batch| (batch, stage)).collect();
                cluster.change(3, Change::Advance { batches }).await;
            }
        }
        let endings: Vec<Ending> = cluster.document(3).ended.iter().map(|ended| ended.how).collect();
        assert_eq!(endings, [Ending::Done, Ending::Done]);
        cluster.change(0, Change::Leave { number }).await;
        cluster.voters(0, &before).await;
        eventually("it hears of it", || cluster.document(3).membership.at("http://node-3:1").is_none()).await;
        // It does not disturb the others, although it votes by what it knows.
        let epoch = cluster.document(0).epoch();
        sleep(10 * SECOND).await;
        assert!((0..3).all(|at| cluster.council(at).leader().is_some_and(|leader| leader != number)));
        cluster.change(2, Change::Pause(true)).await;
        assert_eq!(cluster.document(2).epoch(), epoch + 1);
        // And it may come back, as who it was.
        cluster.change(0, cluster.join(3)).await;
        cluster.settle().await;
        assert_eq!(cluster.council(3).number(), Some(number));
    });
}

#[test]
fn a_leader_that_leaves_is_followed_by_another() {
    run(async {
        let cluster = Cluster::formed(&mut Random::announced("leader leaves"), &["", "", "", ""]).await;
        let (leader, _) = cluster.leader(&[0, 1, 2, 3]).await;
        let number = cluster.council(leader).number().unwrap();
        let others: Vec<usize> = (0..4).filter(|&at| at != leader).collect();
        let target = cluster.numbers(&others);
        cluster.change(leader, Change::Plan { target: target.clone() }).await;
        for stage in [Stage::Copying, Stage::Joint, Stage::Moved] {
            let batches = (0..BATCHES).map(|batch| (batch, stage)).collect();
            cluster.change(leader, Change::Advance { batches }).await;
        }
        cluster.change(leader, Change::Leave { number }).await;
        eventually("another leads", || cluster.leader_among(&others).is_some()).await;
        let (next, _) = cluster.leader(&others).await;
        cluster.voters(next, &target).await;
        cluster.change(next, Change::Pause(true)).await;
    });
}

#[test]
fn a_dead_voter_that_is_removed_is_replaced_by_another_member() {
    run(async {
        let mut cluster = Cluster::formed(&mut Random::announced("dead one leaves"), &[""; 6]).await;
        let all = cluster.numbers(&[0, 1, 2, 3, 4, 5]);
        cluster.voters(0, &all[..5]).await;
        let dead = (0..6).find(|&at| cluster.council(at).number() == Some(all[1])).unwrap();
        cluster.kill(dead).await;
        let (leader, _) = cluster.leader(&cluster.running()).await;
        sleep(5 * SECOND).await;
        assert_eq!(cluster.council(leader).voters(), &all[..5], "as long as it is a member, it may come back");
        let others: Vec<u16> = all.iter().copied().filter(|&number| number != all[1]).collect();
        cluster.change(leader, Change::Plan { target: others.clone() }).await;
        for stage in [Stage::Copying, Stage::Joint, Stage::Moved] {
            let batches = (0..BATCHES).map(|batch| (batch, stage)).collect();
            cluster.change(leader, Change::Advance { batches }).await;
        }
        cluster.change(leader, Change::Leave { number: all[1] }).await;
        cluster.voters(leader, &others).await;
        // If it comes back, it is told that it has left, or nothing, and disturbs nobody.
        let epoch = cluster.document(leader).epoch();
        cluster.start(dead).await;
        sleep(10 * SECOND).await;
        assert_eq!(cluster.leader_among(&[dead]), None);
        cluster.change(leader, Change::Pause(true)).await;
        assert_eq!(cluster.document(leader).epoch(), epoch + 1);
    });
}

/// What is agreed on goes on, whoever leaves: of {1..5} with two dead, a live one that left votes until
/// the dead have been removed, or are back.
#[test]
fn a_live_voter_that_leaves_while_others_are_dead_costs_no_majority() {
    run(async {
        let mut cluster = Cluster::formed(&mut Random::announced("live one leaves"), &[""; 5]).await;
        let (leader, _) = cluster.leader(&cluster.running()).await;
        let others: Vec<usize> = (0..5).filter(|&at| at != leader).collect();
        let (leaves, dead) = (others[0], &others[1..3]);
        let number = cluster.council(leaves).number().unwrap();
        let all = cluster.numbers(&[0, 1, 2, 3, 4]);
        for &at in dead {
            cluster.kill(at).await;
        }
        let stay: Vec<u16> = all.iter().copied().filter(|&other| other != number).collect();
        cluster.change(leader, Change::Plan { target: stay.clone() }).await;
        for stage in [Stage::Copying, Stage::Joint, Stage::Moved] {
            let batches = (0..BATCHES).map(|batch| (batch, stage)).collect();
            cluster.change(leader, Change::Advance { batches }).await;
        }
        cluster.change(leader, Change::Leave { number }).await;
        sleep(10 * SECOND).await;
        cluster.change(leader, Change::Pause(true)).await;
        assert_eq!(cluster.council(leader).voters(), all);
        for &at in dead {
            cluster.start(at).await;
        }
        cluster.voters(leader, &stay).await;
        cluster.change(leader, Change::Pause(false)).await;
    });
}

#[test]
fn a_node_joins_while_a_voter_is_dead_and_a_dead_one_gets_no_vote() {
    run(async {
        let mut cluster = Cluster::new(&mut Random::announced("dead voter"), &["", "", "", "", ""], 3);
        for at in 0..4 {
            cluster.start(at).await;
        }
        eventually("the first are formed", || cluster.council(0).document().is_some()).await;
        let (leader, _) = cluster.leader(&[0, 1, 2]).await;
        let dead = (leader + 1) % 3;
        let three = cluster.numbers(&[0, 1, 2]);
        cluster.kill(dead).await;
        // Node 4 has never run.
        cluster.change(leader, cluster.join(4)).await;
        cluster.change(leader, cluster.join(3)).await;
        eventually("it is a member", || cluster.council(3).number().is_some()).await;
        cluster.settle().await;
        let mut four = three;
        four.extend(cluster.council(3).number());
        four.sort_unstable();
        cluster.voters(leader, &four).await;
        sleep(5 * SECOND).await;
        assert_eq!(cluster.council(leader).voters(), four);
        // Once it runs, it votes.
        cluster.start(4).await;
        cluster.start(dead).await;
        cluster.settle().await;
        cluster.voters(leader, &cluster.numbers(&[0, 1, 2, 3, 4])).await;
    });
}

#[test]
fn voters_are_spread_over_the_zones_also_when_one_is_added_later() {
    run(async {
        let zones = ["a", "a", "a", "a", "a", "b"];
        let mut cluster = Cluster::new(&mut Random::announced("zones"), &[&zones[..], &["c"]].concat(), 6);
        cluster.start_all().await;
        eventually("they are formed", || cluster.council(0).document().is_some()).await;
        let of = |cluster: &Cluster, some: &[usize]| -> Vec<u16> {
            let document = cluster.document(0);
            let number = |&at: &usize| document.membership.at(&cluster.nodes[at].url).unwrap().number;
            let mut numbers: Vec<u16> = some.iter().map(number).collect();
            numbers.sort_unstable();
            numbers
        };
        cluster.voters(0, &of(&cluster, &[0, 1, 2, 3, 5])).await;
        cluster.change(0, cluster.join(6)).await;
        cluster.settle().await;
        cluster.voters(0, &of(&cluster, &[0, 1, 2, 5, 6])).await;
        // Nothing changes any more.
        sleep(10 * SECOND).await;
        assert_eq!(cluster.council(0).voters(), of(&cluster, &[0, 1, 2, 5, 6]));
    });
}

#[test]
fn a_member_that_starts_at_another_address_is_known_by_its_identity() {
    run(async {
        let mut cluster = Cluster::formed(&mut Random::announced("address"), &["", "", ""]).await;
        let before = cluster.document(0).membership.at("http://node-2:1").unwrap().clone();
        cluster.kill(2).await;
        (cluster.nodes[2].url, cluster.nodes[2].replica) = ("http://moved:1".to_owned(), "moved:2".to_owned());
        cluster.start(2).await;
        cluster.settle().await;
        let after = cluster.document(0).membership.at("http://moved:1").unwrap().clone();
        assert_eq!((after.number, after.place, after.seed), (before.number, before.place, before.seed));
        let (leader, _) = cluster.leader(&[0, 1, 2]).await;
        cluster.kill(if leader == 2 { 0 } else { leader }).await;
        let running = cluster.running();
        let (next, _) = cluster.leader(&running).await;
        cluster.change(next, Change::Pause(true)).await;
    });
}

#[test]
fn a_folder_of_another_and_an_empty_one_at_a_known_address_are_noticed() {
    run(async {
        let mut cluster = Cluster::formed(&mut Random::announced("wiped"), &["", "", ""]).await;
        cluster.kill(2).await;
        cluster.nodes[2].id = NodeId(77);
        assert!(matches!(cluster.try_start(2).await, Err(StartError::Foreign { number, .. }) if number > 0));
        std::fs::remove_dir_all(cluster.folder(2)).unwrap();
        // It takes itself for a new cluster's, and nobody takes it for the member that it is not.
        cluster.start(2).await;
        let epoch = cluster.document(0).epoch();
        sleep(10 * SECOND).await;
        assert_eq!(cluster.council(2).document(), None);
        assert_eq!((cluster.document(0).epoch(), cluster.document(1).epoch()), (epoch, epoch));
        cluster.change(1, Change::Pause(true)).await;
        cluster.kill(2).await;
        cluster.nodes[2].is_first = false;
        (cluster.nodes[2].url, cluster.nodes[2].replica) = ("http://unlisted:1".into(), "unlisted:2".into());
        std::fs::remove_dir_all(cluster.folder(2)).unwrap();
        cluster.nodes[2].is_first = true;
        assert!(matches!(cluster.try_start(2).await, Err(StartError::NotListed(url)) if url == "http://unlisted:1"));
    });
}

#[test]
fn all_go_on_after_all_were_killed() {
    run(async {
        let mut cluster = Cluster::formed(&mut Random::announced("restart"), &["", "", "", ""]).await;
        for rate in 1..5 {
            let made = cluster.change(0, Change::MoveRate(Some(rate))).await;
            for at in 0..4 {
                cluster.kill(at).await;
            }
            cluster.start_all().await;
            cluster.settle().await;
            assert_eq!(cluster.document(3), made);
        }
    });
}

#[test]
fn a_member_that_was_away_past_the_compaction_gets_a_snapshot() {
    run(async {
        let mut cluster = Cluster::formed(&mut Random::announced("snapshot"), &["", "", ""]).await;
        let (leader, _) = cluster.leader(&[0, 1, 2]).await;
        let away = (leader + 1) % 3;
        cluster.kill(away).await;
        for rate in 0..1200 {
            cluster.change(leader, Change::MoveRate(Some(1 + rate))).await;
        }
        let log = cluster.folder(leader).join("log");
        let lines = std::fs::read_to_string(&log).unwrap().lines().count();
        assert!(lines < 700, "{lines} lines: the log is compacted");
        cluster.start(away).await;
        cluster.settle().await;
        assert_eq!(cluster.document(away).move_rate, Some(1200));
        // What came as a snapshot is on its disk.
        for at in 0..3 {
            cluster.kill(at).await;
        }
        cluster.start(away).await;
        assert_eq!(cluster.document(away).move_rate, Some(1200));
        cluster.start_all().await;
        cluster.settle().await;
        cluster.change(away, Change::MoveRate(None)).await;
    });
}

#[test]
fn a_survivor_of_a_lost_majority_is_recovered_and_goes_on_with_the_others() {
    run(async {
        let mut cluster = Cluster::formed(&mut Random::announced("recover"), &["", "", "", "", ""]).await;
        cluster.change(0, Change::MoveRate(Some(9))).await;
        cluster.settle().await;
        let before = cluster.document(3);
        let numbers = cluster.numbers(&[0, 1, 2, 3, 4]);
        assert!(matches!(recover(&cluster.folder(3), &[]), Err(RecoverError::Store(_))), "it runs");
        for at in 0..5 {
            cluster.kill(at).await;
        }
        let stranger = (1..).find(|number| !numbers.contains(number)).unwrap();
        assert!(matches!(recover(&cluster.folder(3), &[stranger]), Err(RecoverError::Stranger(_))));
        assert!(matches!(recover(&cluster.folder(3).join("none"), &[]), Err(RecoverError::NoDocument)));
        let survivor = before.membership.at("http://node-4:1").unwrap().number;
        let me = before.membership.at("http://node-3:1").unwrap().number;
        let report = recover(&cluster.folder(3), &[survivor]).unwrap();
        assert_eq!((report.number, report.agreed_epoch), (me, before.epoch()));
        assert_eq!(report.epoch, before.epoch() + RECOVERY_LEAP);
        assert_eq!(report.absent.len(), 3);
        cluster.start(4).await;
        sleep(3 * SECOND).await;
        cluster.start(3).await;
        cluster.settle().await;
        let after = cluster.document(4);
        assert_eq!((after.cluster, after.move_rate, after.epoch()), (before.cluster, Some(9), report.epoch));
        assert_eq!(after.membership.holders(), before.membership.holders());
        assert_eq!(after.membership.fence(), report.epoch);
        let mut both = vec![me, survivor];
        both.sort_unstable();
        cluster.voters(3, &both).await;
        cluster.change(4, Change::Pause(true)).await;
        // Whoever comes back takes over the document, and is a voter again.
        cluster.start(0).await;
        cluster.settle().await;
        assert!(cluster.document(0).paused);
        // An interrupted recovery may be repeated.
        cluster.kill(3).await;
        recover(&cluster.folder(3), &[survivor]).unwrap();
        recover(&cluster.folder(3), &[survivor]).unwrap();
    });
}

#[test]
fn a_council_that_was_stopped_has_closed_its_files_and_starts_again() {
    run(async {
        let mut cluster = Cluster::formed(&mut Random::announced("stop"), &["", ""]).await;
        cluster.stop(0).await;
        cluster.start(0).await;
        cluster.settle().await;
        cluster.change(0, Change::Pause(true)).await;
    });
}

#[test]
fn after_its_disk_has_failed_a_member_says_so_and_promises_nothing_more() {
    run(async {
        let cluster = Cluster::formed(&mut Random::announced("disk"), &[""]).await;
        let epoch = cluster.document(0).epoch();
        // The next document finds no folder.
        std::fs::remove_dir_all(cluster.folder(0)).unwrap();
        let error = cluster.council(0).propose(epoch, Change::Pause(true)).await.unwrap_err();
        assert!(matches!(error, ProposeError::Unknown | ProposeError::Stopped), "{error}");
        assert_eq!(cluster.document(0).epoch(), epoch, "it is not on disk");
        let error = cluster.council(0).propose(epoch, Change::Pause(true)).await;
        assert_eq!(error, Err(ProposeError::Stopped));
        assert_eq!(cluster.council(0).leader(), None);
    });
}

//! A node whose disk is stuck while its process, its memory and its network are well (SPEC.md section
//! 5, "An ailing node slows down nobody").
//!
//! Needs root and control groups that limit a disk; skipped where they are not to be had.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use koltso_testkit::cluster::Quorum;
use koltso_testkit::files::ThrottledDisk;
use koltso_testkit::{Cluster, eventually};

const QUORUM: Quorum = (2, 3);
/// The node whose disk gets stuck.
const AILING: usize = 2;

/// Ends the load when it is dropped, so that a failed assertion does, too.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads that the node could answer from memory go on meanwhile: they must not hide that it confirms
/// no write.
#[test]
fn a_node_whose_disk_is_stuck_is_noticed_under_reads_and_writes() {
    let cluster = Cluster::with(3, "--sync always");
    let Some(disk) = ThrottledDisk::of(cluster.server(AILING).pid(), cluster.data(AILING)) else { return };
    let mine = (0..)
        .map(|number| format!("read-{number}"))
        .filter(|key| {
            cluster.client(0).put_of(key, "value", (1, 1)).expect(201, "PUT 1/1");
            cluster.holders(key) == [AILING]
        })
        .take(3)
        .collect::<Vec<_>>();
    cluster.client(0).put_of("before", "value", (3, 3)).expect(201, "PUT 3/3");

    let over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let reader = || {
            let mut client = cluster.client(0);
            let mut number = 0;
            while !over.load(Ordering::Relaxed) {
                let answer = client.get_of(&mine[number % mine.len()], (1, 1));
                assert!(answer.status == 200 || answer.status == 504, "{}", answer.status);
                number += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let writer = || {
            let (mut client, mut longest, mut count) = (cluster.client(0), Duration::ZERO, 0);
            while !over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                client.put_of(format!("write-{count}"), "value", QUORUM).expect(201, "PUT 2/3");
                longest = longest.max(begun.elapsed());
                count += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            (longest, count)
        };
        let readers: Vec<_> = (0..4).map(|_| threads.spawn(reader)).collect();
        let writing = threads.spawn(writer);

        let ending = Ending(&over);
        std::thread::sleep(Duration::from_millis(300));
        assert!(cluster.sees(0, AILING), "{}", cluster.peer(0, AILING));
        disk.stop();
        eventually("a stuck disk is noticed", Duration::from_secs(1), || cluster.peer(0, AILING)["circuit"] == "open");
        // Neither a late pong nor a late answer lets the node back in.
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            let peer = cluster.peer(0, AILING);
            assert!(peer["circuit"] == "open", "{peer}");
            std::thread::sleep(Duration::from_millis(20));
        }
        disk.release();
        eventually("the node is back", Duration::from_secs(5), || cluster.sees(0, AILING));
        drop(ending);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        let (longest, count) = writing.join().unwrap();
        assert!(longest < Duration::from_millis(500), "a PUT 2/3 took {longest:?} beside a stuck disk");
        eventually("what it missed arrives", Duration::from_secs(10), || cluster.hints_pending(0, AILING) == 0);
        assert_eq!(cluster.records(AILING, "write-").len(), count);
    });
}

//! A node whose disk is full while the others repair it.

use koltso_testkit::cluster::{Cluster, Records};
use koltso_testkit::files::SmallDisk;
use koltso_testkit::{Launch, Random, eventually};

use crate::{CONVERGED_WITHIN, QUORUM, all_have};

/// It refuses what it has no room for, says so, and goes on serving what it has; nobody gives anything
/// up for delivered; and it gets what it lacks when there is room.
#[test]
fn a_full_disk_is_repaired_when_there_is_room_again() {
    let Some(disk) = SmallDisk::mount(64) else { return };
    let mut random = Random::announced("a_full_disk_is_repaired_when_there_is_room_again");
    let cluster = Cluster::planned(3, |index, launch, urls| {
        let port = urls[index].rsplit(':').next().unwrap().parse().unwrap();
        let small = Launch::on(&disk.path().join("data")).port(port).flags(&Cluster::flags_of(urls));
        Some(if index == 2 { small } else { launch })
    });
    cluster.wait_up();
    // More than it has room for.
    let mut records: Records =
        (0..400).map(|number| (format!("key{number:03}").into_bytes(), random.bytes(200_000))).collect();
    cluster.client(0).store_all_of(&records, QUORUM);
    eventually("its disk is full", CONVERGED_WITHIN, || cluster.status(2)["storage"]["disk_full"] == true);
    // Comparing has found out what it lacks, and cannot bring it.
    let differs = |index: usize| cluster.peer(index, 2)["repair"]["rounds"].as_u64().unwrap_or(0) > 2;
    eventually("it is compared with", CONVERGED_WITHIN, || {
        differs(0) || differs(1) || { cluster.peer(2, 0)["repair"]["rounds"].as_u64().unwrap_or(0) > 2 }
    });
    assert!(cluster.records(2, "key").len() < records.len(), "everything found room");
    for (key, value) in records.iter().take(20) {
        assert_eq!(cluster.client(1).value_of(key, QUORUM).as_ref(), Some(value), "a quorum read beside a full disk");
    }
    // A log has to be rolled before compaction can give its space back.
    for key in records.keys().step_by(2).cloned().collect::<Vec<_>>() {
        cluster.client(0).delete_of(&key, QUORUM).expect(202, "DELETE 2/3");
        records.remove(&key);
    }
    all_have(&cluster, "key", &records, "after a half was deleted");
    assert_eq!(cluster.status(2)["standing"], "whole", "a full disk is no reason to doubt a node");
}

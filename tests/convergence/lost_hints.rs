//! What no hint tells of any more is found by comparing.

use koltso_testkit::cluster::numbered;
use koltso_testkit::volume;

use crate::{QUORUM, all_have, lose_hints, store, store_at_quorum, three};

#[test]
fn what_a_node_missed_comes_to_it_though_all_hints_are_lost() {
    let mut cluster = three();
    let mut records = numbered("key", 2000, "first");
    store(&cluster, &records);
    cluster.kill(2);
    let changed = numbered("key", 300, "second");
    store_at_quorum(&cluster, 0, &changed);
    records.extend(changed);
    for key in numbered("key", 400, "").into_keys().skip(300) {
        cluster.client(1).delete_of(&key, QUORUM).expect(202, "DELETE 2/3");
        records.remove(&key);
    }
    for holder in [0, 1] {
        lose_hints(&mut cluster, holder);
    }
    cluster.start_all();
    cluster.wait_up();
    all_have(&cluster, "key", &records, "after both holders of hints lost them");
}

#[test]
fn a_single_key_that_differs_is_found() {
    let mut cluster = three();
    let mut records = numbered("key", 3000, "first");
    store(&cluster, &records);
    cluster.kill(0);
    let changed = numbered("key", 1, "second");
    store_at_quorum(&cluster, 1, &changed);
    records.extend(changed);
    for holder in [1, 2] {
        lose_hints(&mut cluster, holder);
    }
    cluster.start_all();
    all_have(&cluster, "key", &records, "one of 3000 keys");
}

#[test]
fn holders_that_are_killed_right_after_an_acknowledged_write_leave_no_stale_replica() {
    let mut cluster = three();
    let mut records = numbered("key", 100, "first");
    store(&cluster, &records);
    for round in 0..volume(3, 20) {
        cluster.kill(2);
        let changed = numbered("key", 100, &format!("round {round}"));
        store_at_quorum(&cluster, round % 2, &changed);
        cluster.kill(0);
        cluster.kill(1);
        records.extend(changed);
        cluster.start_all();
        all_have(&cluster, "key", &records, "after both holders were killed");
    }
}

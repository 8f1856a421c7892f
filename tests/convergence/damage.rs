//! A damaged record is fetched from another replica at once, by whomever it was found.

use koltso_testkit::cluster::numbered;
use koltso_testkit::{eventually, files};

use crate::{CONVERGED_WITHIN, all_have, store, three};

#[test]
fn a_damaged_value_is_fetched_from_another_replica() {
    let mut cluster = three();
    let records = numbered("key", 300, "first");
    store(&cluster, &records);
    let (_, value) = records.iter().nth(100).unwrap();
    cluster.terminate(1);
    let places = files::find_in_logs(cluster.data(1), value);
    for (file, at) in places {
        files::flip(&file, at + 3, 1);
    }
    cluster.start(1);
    // A range leaves it out, and finds it so.
    assert_eq!(cluster.records(1, "key").len(), records.len() - 1);
    all_have(&cluster, "key", &records, "after a bit of a value flipped");
    let repaired = || cluster.server(1).storage_figure("repaired_records");
    eventually("it is counted", CONVERGED_WITHIN, || repaired() > 0);
}

/// Nobody can say which keys were in there, so the node's word that a key is absent is worth nothing
/// until it has everything again.
#[test]
fn a_node_that_has_lost_a_segment_answers_no_reads_until_it_has_all_again() {
    let mut cluster = three();
    let records = numbered("key", 300, "first");
    store(&cluster, &records);
    let (_, value) = records.iter().nth(100).unwrap();
    cluster.kill(1);
    let (file, _) = files::find_in_logs(cluster.data(1), value).remove(0);
    files::overwrite(&file, 0, &[0; 512]);
    cluster.start(1);
    assert!(cluster.log(1).contains("nobody can say whose they were"), "{}", cluster.log(1));
    let mut client = cluster.client(1);
    for (key, value) in records.iter().take(50) {
        assert_eq!(client.value_of(key, crate::QUORUM).as_ref(), Some(value), "a quorum read at once");
    }
    eventually("it is whole again", CONVERGED_WITHIN, || cluster.status(1)["standing"] == "whole");
    all_have(&cluster, "key", &records, "after a segment was lost");
}

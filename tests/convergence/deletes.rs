//! Deletes stay deleted, and are forgotten once all replicas agree.

use koltso_testkit::cluster::{Records, numbered};
use koltso_testkit::{eventually, files};

use crate::{CONVERGED_WITHIN, QUORUM, all_have, lose_hints, store, three};

#[test]
fn a_node_that_slept_through_deletes_brings_none_back() {
    let mut cluster = three();
    let (kept, deleted) = (numbered("kept", 300, "first"), numbered("gone", 300, "first"));
    store(&cluster, &kept);
    store(&cluster, &deleted);
    cluster.kill(1);
    for key in deleted.keys() {
        cluster.client(0).delete_of(key, QUORUM).expect(202, "DELETE 2/3");
    }
    for holder in [0, 2] {
        lose_hints(&mut cluster, holder);
    }
    cluster.start_all();
    all_have(&cluster, "gone", &Records::new(), "what was deleted meanwhile");
    all_have(&cluster, "kept", &kept, "what was not");
}

#[test]
fn a_folder_of_the_time_before_the_deletes_brings_none_back() {
    let mut cluster = three();
    let (kept, deleted) = (numbered("kept", 300, "first"), numbered("gone", 300, "first"));
    store(&cluster, &kept);
    store(&cluster, &deleted);
    cluster.terminate(2);
    let copy = tempfile::tempdir().unwrap();
    files::copy_folder(cluster.data(2), &copy.path().join("data"));
    cluster.start(2);
    cluster.wait_up();
    for key in deleted.keys() {
        cluster.client(0).delete_of(key, (3, 3)).expect(202, "DELETE 3/3");
    }
    cluster.kill(2);
    std::fs::remove_dir_all(cluster.data(2)).unwrap();
    files::copy_folder(&copy.path().join("data"), cluster.data(2));
    cluster.start(2);
    let whole = || cluster.status(2)["standing"] == "whole";
    eventually("it is whole again", CONVERGED_WITHIN, whole);
    all_have(&cluster, "gone", &Records::new(), "what the old copy still had");
    all_have(&cluster, "kept", &kept, "what was not deleted");
}

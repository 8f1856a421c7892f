//! Deletes stay deleted, and are forgotten once all replicas agree.

use std::time::Duration;

use koltso_testkit::cluster::{Records, numbered};
use koltso_testkit::{eventually, files, volume};

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

/// With all of it but the segments that are being written.
const SPACE_BACK_WITHIN: Duration = Duration::from_secs(600);

#[test]
fn what_was_deleted_is_forgotten_and_its_space_comes_back() {
    let padded = |(key, value): (Vec<u8>, Vec<u8>)| (key, [value, vec![b'.'; 20_000]].concat());
    let deleted: Records = numbered("gone", 400, "first").into_iter().map(padded).collect();
    let kept = numbered("kept", 100, "first");
    let rounds = |rounds: u32| {
        for _ in 0..rounds {
            let mut cluster = three();
            store(&cluster, &deleted);
            store(&cluster, &kept);
            cluster.kill(1);
            for key in deleted.keys() {
                cluster.client(0).delete_of(key, QUORUM).expect(202, "DELETE 2/3");
            }
            for holder in [0, 2] {
                lose_hints(&mut cluster, holder);
            }
            cluster.start_all();
            cluster.wait_up();
            eventually("every delete is forgotten by all", SPACE_BACK_WITHIN, || {
                (0..3).all(|index| {
                    let storage = &cluster.status(index)["storage"];
                    storage["tombstones"] == 0 && storage["live_bytes"].as_u64().is_some_and(|bytes| bytes < 100_000)
                })
            });
            all_have(&cluster, "gone", &Records::new(), "what was deleted and forgotten");
            all_have(&cluster, "kept", &kept, "what was not");
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..volume(1, 4) {
            scope.spawn(|| rounds(volume(1, 5)));
        }
    });
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

//! A record goes to the replicas of its own `from`, and from nowhere else does an older one come.

use koltso_testkit::cluster::{Records, numbered};
use koltso_testkit::eventually;

use crate::{CONVERGED_WITHIN, store, three};

#[test]
fn a_key_whose_from_has_changed_has_one_value_everywhere() {
    let cluster = three();
    let wide = numbered("key", 60, "wide");
    store(&cluster, &wide);
    let narrow = numbered("key", 60, "narrow");
    cluster.client(1).store_all_of(&narrow, (1, 1));
    // The nodes that are no replicas any more had the older value: they get the newer one, or lose
    // theirs.
    let has_an_old_value = |index: usize| {
        let records: Records = cluster.records(index, "key");
        records.into_iter().any(|(key, value)| narrow.get(&key) != Some(&value))
    };
    eventually("nobody has the older value", CONVERGED_WITHIN, || !(0..3).any(has_an_old_value));
    for (key, value) in &narrow {
        assert_eq!(cluster.client(0).value_of(key, (1, 1)).as_ref(), Some(value));
    }
}

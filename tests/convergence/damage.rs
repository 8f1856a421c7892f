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

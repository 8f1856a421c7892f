//! All of it at once, with a log that is stuck: a client that behaves well does not notice, and
//! memory stays within its bounds. `scripts/attack.sh` measures latencies with larger numbers.

use std::time::Duration;

use koltso_testkit::attack::{Attack, STUCK_LOG, fill_standard_error};
use koltso_testkit::server::raise_descriptor_limit;
use koltso_testkit::{Cluster, Launch, eventually, load, volume};

/// Memory for connections, the values that nobody reads included, which are in the log's pages.
const GROWTH_KIB_MAX: u64 = 96 << 10;

#[test]
fn a_client_that_behaves_well_is_served_while_strangers_do_all_they_can() {
    raise_descriptor_limit();
    let mut cluster = Cluster::of(3);
    cluster.terminate(0);
    cluster.change(0, |launch: Launch| launch.within(&STUCK_LOG));
    cluster.start(0);
    cluster.wait_up();
    cluster.client(0).store("large", vec![b'v'; 4 << 20]);
    let load = |prefix, seconds| {
        let length = Duration::from_secs(seconds);
        load::steady(prefix, &[cluster.address(0)], (2, 3), 200, length, || ())
    };
    let alone = load("alone", 3);
    alone.assert_no_failures("alone");
    fill_standard_error(cluster.server(0).pid()).unwrap();
    let before = cluster.server(0).anonymous_kib();
    let attack = Attack { idle: volume(1000, 4000), dribbling: 150, unread: 50, strangers: volume(1500, 5000) };
    let attackers = attack.begin(cluster.address(0), Some(cluster.replica_address(0)));
    let connections = attack.idle + attack.dribbling + attack.unread;
    eventually("they are there", Duration::from_secs(60), || attackers.made().0 >= connections as u64);
    let attacked = load("attacked", volume(8, 30));
    let (made, strangers) = attackers.made();
    let grown = cluster.server(0).anonymous_kib().saturating_sub(before);
    println!("alone: {}\nattacked: {}", alone.text(), attacked.text());
    println!("{made} connections, {strangers} strangers, {grown} KiB");
    attacked.assert_no_failures("attacked");
    // Everybody here shares a few processors, and with whatever else runs: only what is far off counts.
    let bound = alone.per_mille(500) * 10 + Duration::from_millis(500);
    assert!(attacked.per_mille(500) < bound, "{}, alone {}", attacked.text(), alone.text());
    assert!(strangers > 1000, "{strangers} strangers are no flood");
    assert!(grown < GROWTH_KIB_MAX, "{grown} KiB of anonymous memory for strangers");
    drop(attackers);
    cluster.wait_up();
}

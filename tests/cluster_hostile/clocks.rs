//! Clocks that are off.

use std::path::Path;
use std::time::Duration;

use crate::{QUORUM, SAID_WITHIN, assert_no_panic, lines_with};
use koltso_testkit::{Client, Cluster, Launch, Remedy, eventually, skip};

/// libfaketime, or None, recorded as skipped.
fn faketime() -> Option<&'static str> {
    const PLACES: [&str; 4] = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib64/faketime/libfaketimeMT.so.1",
        "/usr/lib/faketime/libfaketimeMT.so.1",
    ];
    let found = PLACES.into_iter().find(|place| Path::new(place).exists());
    if found.is_none() {
        skip("there is no libfaketime", Remedy::Package("faketime"));
    }
    found
}

/// The wall clock off by `offset`, such as `+1d` or `-0.4`; the monotonic one stays right.
fn off_by(launch: Launch, library: &str, offset: &str) -> Launch {
    launch
        .usual_environment()
        .environment("LD_PRELOAD", library)
        .environment("FAKETIME", offset)
        .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .environment("DONT_FAKE_MONOTONIC", "1")
}

#[test]
fn a_clock_that_is_a_day_off_is_refused_and_harms_nobody() {
    let Some(library) = faketime() else { return };
    for offset in ["+1d", "-1d"] {
        let cluster = Cluster::planned(3, |index, launch, _| {
            Some(if index == 2 { off_by(launch, library, offset) } else { launch })
        });
        eventually("the right ones see each other", Duration::from_secs(10), || {
            cluster.sees(0, 1) && cluster.sees(1, 0)
        });
        for index in [0, 1] {
            eventually("a clock that is off is in the log", SAID_WITHIN, || {
                !lines_with(&cluster.log(index), &["clock"]).is_empty()
            });
        }
        let refused = |index: usize, peer: usize| cluster.peer(index, peer)["refused"].is_string();
        eventually("and in /status", SAID_WITHIN, || refused(0, 2) || refused(2, 0));
        // Nothing that the node with the wrong clock says may reach the others' clocks: later
        // writes still win.
        for turn in 0..50 {
            cluster.client(2).put_of("key", "from the wrong time", (1, 3)).expect(201, "PUT 1/3 at the node alone");
            let value = format!("{turn}");
            cluster.client(turn % 2).put_of("key", &value, QUORUM).expect(201, "PUT 2/3 beside it");
            let got = cluster.client((turn + 1) % 2).value_of("key", QUORUM);
            assert_eq!(got.as_deref(), Some(value.as_bytes()), "{offset}");
        }
        cluster.client(2).put_of("key", "value", QUORUM).expect(504, "PUT 2/3 through the node with the wrong clock");
        for index in 0..3 {
            let lines = lines_with(&cluster.log(index), &["clock"]).len();
            assert!(lines <= 20, "{lines} lines about clocks in the log of node {index}");
        }
        assert_no_panic(&cluster);
    }
}

#[test]
fn the_later_write_wins_although_clocks_differ_within_the_bound() {
    let Some(library) = faketime() else { return };
    let cluster = Cluster::planned(3, |index, launch, _| {
        Some(match index {
            0 => launch,
            1 => off_by(launch, library, "+0.15"),
            _ => off_by(launch, library, "-0.15"),
        })
    });
    cluster.wait_up();
    let mut clients: Vec<Client> = (0..3).map(|index| cluster.client(index)).collect();
    for turn in 0..150_usize {
        let value = format!("{turn}");
        clients[turn % 3].put_of("skewed", &value, QUORUM).expect(201, "PUT");
        let got = clients[(turn / 3 + turn) % 3].value_of("skewed", QUORUM);
        let got = got.map(|got| String::from_utf8_lossy(&got).into_owned());
        assert_eq!(got.as_deref(), Some(value.as_str()), "written through node {}", turn % 3);
    }
    // A write, then a delete by a node that is behind, then a write by the one that is further
    // behind.
    for turn in 0..30 {
        let key = format!("skewed-{turn}");
        clients[1].put_of(&key, "first", QUORUM).expect(201, "PUT");
        clients[0].delete_of(&key, QUORUM).expect(202, "DELETE");
        assert_eq!(clients[1].value_of(&key, QUORUM), None, "{key}: deleted by a node that is behind");
        clients[2].put_of(&key, "last", QUORUM).expect(201, "PUT");
        assert_eq!(clients[1].value_of(&key, QUORUM).as_deref(), Some(&b"last"[..]), "{key}");
    }
}

#[test]
fn a_restart_never_takes_versions_back() {
    let Some(library) = faketime() else { return };
    // Node 0 coordinates writes of a key that it does not hold, so only its own persisted bound
    // tells it where it was.
    let mut cluster = Cluster::of(2);
    let ends: [fn(&mut Cluster, usize); 2] = [Cluster::kill, Cluster::terminate];
    for (round, end) in ends.into_iter().enumerate() {
        let keys: Vec<String> = (0..60).map(|index| format!("bound-{round}-{index}")).collect();
        let mut client = cluster.client(0);
        for key in &keys {
            client.put_of(key, "first", (1, 1)).expect(201, "PUT");
        }
        end(&mut cluster, 0);
        cluster.change(0, |launch| off_by(launch, library, "-0.45"));
        cluster.start(0);
        // At once: the clock of the restarted process is behind what it was.
        let mut client = cluster.client(0);
        let mut written = 0;
        for key in &keys {
            if client.put_of(key, "second", (1, 1)).status == 201 {
                let got = client.value_of(key, (1, 1));
                assert_eq!(got.as_deref(), Some(&b"second"[..]), "{key} after a restart with a clock that went back");
                written += 1;
            }
        }
        assert!(written > 0, "no key could be written after the restart");
        end(&mut cluster, 0);
        cluster.change(0, Launch::usual_environment);
        cluster.start(0);
        cluster.wait_up();
    }
}

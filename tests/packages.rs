//! The end-to-end test: every package that Debian knows goes in, comes out, is listed, and survives
//! kill -9.
//!
//! The data is `apt-cache dumpavail` (some 60 000 records of 0.3 to 20 KB); where it is missing, a
//! data set of the same shape is made from a seed, and said so.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use koltso_testkit::client::put_bytes;
use koltso_testkit::{Client, Random, Server, eventually};

const CONNECTIONS: usize = 4;
const DEPTH: usize = 32;

type Records = BTreeMap<String, Vec<u8>>;

/// All records of `apt-cache dumpavail`, by `debian/PACKAGE`; of several versions of a package, the
/// last.
fn packages() -> Records {
    let dump = Command::new("apt-cache").arg("dumpavail").output();
    let text = dump.map(|output| output.stdout).unwrap_or_default();
    let mut records = Records::new();
    for record in String::from_utf8_lossy(&text).split("\n\n").map(str::trim).filter(|record| !record.is_empty()) {
        let name = record.lines().find_map(|line| line.strip_prefix("Package: "));
        let name = name.unwrap_or_else(|| panic!("a record without Package: {record}"));
        records.insert(format!("debian/{name}"), record.as_bytes().to_vec());
    }
    if records.len() > 1000 {
        return records;
    }
    println!("==================================================================================================");
    println!(
        "apt-cache has {} packages here (is `apt-get update` done?): a generated data set takes their place",
        records.len()
    );
    println!("==================================================================================================");
    generated()
}

fn generated() -> Records {
    let mut random = Random::seeded(60_000);
    let mut records = Records::new();
    let word = |random: &mut Random| {
        let length = random.between(2, 11);
        random.word(length)
    };
    for name in ["bash", "bash-completion", "basilisk2", "bastet", "bat", "batctl"] {
        records.insert(format!("debian/{name}"), format!("Package: {name}\nVersion: 1").into_bytes());
    }
    while records.len() < 60_000 {
        let name = format!("{}-{}", word(&mut random), word(&mut random));
        let size = if random.one_in(40) { random.between(2000, 20_000) } else { random.between(300, 1500) };
        let mut text = format!("Package: {name}\nDescription:");
        while text.len() < size {
            text.push(' ');
            text.push_str(&word(&mut random));
        }
        records.insert(format!("debian/{name}"), text.into_bytes());
    }
    records
}

/// The records of one of the connections.
fn share(records: &Records, connection: usize) -> impl Iterator<Item = (&String, &Vec<u8>)> {
    records.iter().skip(connection).step_by(CONNECTIONS)
}

fn assert_all_found(server: &Server, records: &Records, right: impl Fn(&str, &[u8], &[u8]) -> bool + Sync) {
    std::thread::scope(|scope| {
        for connection in 0..CONNECTIONS {
            let (mut client, right) = (server.connect(), &right);
            scope.spawn(move || {
                client.fetch_all(share(records, connection).map(|(key, _)| key), DEPTH, |key, response| {
                    let key = std::str::from_utf8(key).unwrap();
                    let response = response.expect(200, key);
                    assert!(right(key, &records[key], &response.body), "another value of {key}");
                });
            });
        }
    });
}

#[test]
fn all_debian_packages_are_stored_listed_and_survive_kill_9() {
    let records = packages();
    let bytes: usize = records.values().map(Vec::len).sum();
    let mut server = Server::fresh("");
    println!("{} records, {} MB", records.len(), bytes / 1_000_000);

    let start = Instant::now();
    std::thread::scope(|scope| {
        for connection in 0..CONNECTIONS {
            let (mut client, records) = (server.connect(), &records);
            scope.spawn(move || client.store_all(share(records, connection), DEPTH));
        }
    });
    println!("stored in {:?}", start.elapsed());
    assert_eq!(server.storage_figure("records"), u64::try_from(records.len()).unwrap());

    let start = Instant::now();
    assert_all_found(&server, &records, |_, first, found| first == found);
    println!("each read back in {:?}", start.elapsed());

    let listed = server.connect().range("start=debian/bash&end=debian/bat");
    let expected: Vec<(Vec<u8>, Vec<u8>)> = records
        .range("debian/bash".to_owned().."debian/bat".to_owned())
        .map(|(key, value)| (key.clone().into_bytes(), value.clone()))
        .collect();
    assert!(!expected.is_empty());
    assert!(listed == expected, "{} records from bash to bat, not {}", listed.len(), expected.len());
    println!("{} packages from bash to bat", listed.len());

    // Another run with new values, killed in its middle.
    let renewed = |value: &[u8]| [value, b"\nKoltso-Run: 2"].concat();
    let acknowledged = AtomicUsize::new(0);
    let counts: Vec<(usize, usize)> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..CONNECTIONS)
            .map(|connection| {
                let (mut client, records, acknowledged) = (server.connect(), &records, &acknowledged);
                scope.spawn(move || {
                    let (mut sent, mut answered) = (0, 0);
                    let all: Vec<_> = share(records, connection).collect();
                    for batch in all.chunks(DEPTH) {
                        let bytes: Vec<u8> =
                            batch.iter().flat_map(|(key, value)| put_bytes(key, &renewed(value))).collect();
                        sent += batch.len();
                        if client.send(&bytes).is_err() {
                            return (sent, answered);
                        }
                        for _ in batch {
                            match client.try_read("PUT") {
                                Ok(Some(answer)) => drop(answer.expect(201, "PUT of the second run")),
                                _ => return (sent, answered),
                            }
                            answered += 1;
                            acknowledged.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    (sent, answered)
                })
            })
            .collect();
        eventually("a third of the second run", Duration::from_secs(60), || {
            acknowledged.load(Ordering::Relaxed) > records.len() / 3
        });
        server.kill();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    let total: usize = counts.iter().map(|(_, answered)| answered).sum();
    println!("killed after {total} acknowledged records of the second run");
    assert!(total < records.len(), "the second run was over before the kill");

    let start = Instant::now();
    server.start_again();
    println!("started again in {:?}", start.elapsed());
    // What a key has to hold: the new value where it was acknowledged, the old one where it was not
    // sent, either in between.
    let mut place: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for connection in 0..CONNECTIONS {
        for (index, (key, _)) in share(&records, connection).enumerate() {
            place.insert(key, (connection, index));
        }
    }
    assert_all_found(&server, &records, |key, first, found| {
        let (connection, index) = place[key];
        let (sent, answered) = counts[connection];
        let (is_old, is_new) = (found == first, found == renewed(first));
        if index < answered {
            is_new
        } else if index < sent {
            is_old || is_new
        } else {
            is_old
        }
    });
    assert_eq!(server.storage_figure("records"), u64::try_from(records.len()).unwrap());
    let keys: Vec<String> = Client::connect(server.address())
        .unwrap()
        .range("start=debian/bash&end=debian/bat")
        .into_iter()
        .map(|(key, _)| String::from_utf8(key).unwrap())
        .collect();
    assert!(keys.iter().eq(records.range("debian/bash".to_owned().."debian/bat".to_owned()).map(|(key, _)| key)));
}

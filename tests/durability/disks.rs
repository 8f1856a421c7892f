//! Full disks, and space that comes back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use koltso_testkit::files::SmallDisk;
use koltso_testkit::{Client, Launch, Random, Server, eventually, files, volume};

#[test]
fn a_full_disk_is_507_reads_go_on_and_writes_come_back_with_space() {
    let Some(disk) = SmallDisk::mount(48) else { return };
    let mut random = Random::announced("a_full_disk_is_507");
    let mut server = Launch::on(&disk.path().join("data")).flags("--threads 2").start();
    let mut client = server.connect();
    let mut stored = BTreeMap::new();
    // Until it is full for values of 64 KiB over this connection; the other core may have room
    // left.
    let full = (0..2000).find_map(|index| {
        let (key, value) = (format!("fill-{index:04}"), random.bytes(64 << 10));
        let answer = client.put(&key, &value);
        match answer.status {
            201 => {
                stored.insert(key, value);
                None
            }
            507 => Some(answer),
            status => panic!("PUT on a filling disk: {status} {}\n{}", answer.text(), server.log()),
        }
    });
    let full = full.expect("2000 values of 64 KiB fit on 48 MiB");
    assert!(full.text().ends_with('\n') && full.text().len() > 10, "{:?}", full.text());
    println!("full after {} values of 64 KiB on 48 MiB", stored.len());
    // Half of the disk for live data is little, but a segment and room for compaction may be set
    // aside a core.
    assert!(stored.len() >= 160, "only {} values of 64 KiB fit on 48 MiB", stored.len());
    let check = |client: &mut Client, stored: &BTreeMap<String, Vec<u8>>, when: &str| {
        for (key, value) in stored {
            assert!(client.value(key).as_ref() == Some(value), "{when}: {key}");
        }
        assert_eq!(client.range("start=fill").len(), stored.len(), "{when}: the range");
    };
    check(&mut server.connect(), &stored, "on a full disk");
    server.ask("GET", "/health");
    // A DELETE needs a little space; refused or not, the answer is true.
    for key in stored.keys().take(10).cloned().collect::<Vec<_>>() {
        let answer = client.delete(&key);
        match answer.status {
            202 => drop(stored.remove(&key)),
            507 => {}
            status => panic!("DELETE on a full disk: {status} {}", answer.text()),
        }
    }
    check(&mut server.connect(), &stored, "after DELETE on a full disk");
    // Killed on a full disk, it starts on a full disk.
    server.kill();
    server.start_again();
    check(&mut server.connect(), &stored, "after kill -9 and a start on the full disk");

    disk.resize(128);
    let mut client = server.connect();
    let value = random.bytes(64 << 10);
    eventually("writes come back with space", Duration::from_secs(5), || {
        if client.stream().peer_addr().is_err() {
            client = server.connect();
        }
        match client.put("fill-more", &value).status {
            201 => true,
            507 => false,
            status => panic!("PUT on a disk that has space again: {status}"),
        }
    });
    stored.insert("fill-more".to_owned(), value);
    for index in 0..100 {
        let (key, value) = (format!("fill-new-{index}"), random.bytes(64 << 10));
        client.store(&key, &value);
        stored.insert(key, value);
    }
    check(&mut client, &stored, "after the disk has grown");
    assert_eq!(server.storage_figure("damaged_records"), 0);
    server.terminate();
    server.start_again();
    check(&mut server.connect(), &stored, "after a clean restart");
}

#[test]
fn overwriting_for_ever_fits_on_a_small_disk() {
    let Some(disk) = SmallDisk::mount(48) else { return };
    let mut random = Random::announced("overwriting_for_ever_fits_on_a_small_disk");
    let mut server = Launch::on(&disk.path().join("data")).flags("--threads 2").start();
    let mut client = server.connect();
    let mut stored = BTreeMap::new();
    let (mut refused, mut written) = (0, 0);
    let start = Instant::now();
    // 3 MB of live data, more than six times the disk of writes.
    while written < volume(300 << 20, 3000 << 20) {
        let (key, value) = (format!("hot-{:02}", random.below(48)), random.bytes(64 << 10));
        eventually("compaction gives space back", Duration::from_secs(20), || {
            let answer = client.put(&key, &value);
            match answer.status {
                201 => true,
                507 => {
                    refused += 1;
                    false
                }
                status => panic!("PUT: {status} {}", answer.text()),
            }
        });
        written += value.len();
        stored.insert(key, value);
    }
    println!("{} MB on a disk of 48 MiB in {:?}; 507 {refused} times", written / 1_000_000, start.elapsed());
    for restart in [None, Some(Server::kill as fn(&mut Server)), Some(Server::terminate)] {
        if let Some(end) = restart {
            end(&mut server);
            server.start_again();
        }
        let mut client = server.connect();
        for (key, value) in &stored {
            assert!(client.value(key).as_ref() == Some(value), "{key}");
        }
    }
    server.connect().store("hot-00", "still writable");
    assert_eq!(server.storage_figure("damaged_records"), 0);
}

/// Found by a review: the group commit needed a descriptor for its first sync of a segment, and
/// without one it said that the disk had failed, for good.
#[test]
fn a_server_without_descriptors_refuses_what_needs_them_and_recovers() {
    let mut random = Random::announced("a_server_without_descriptors_refuses_what_needs_them_and_recovers");
    let mut server = Server::fresh("--sync always --threads 1");
    let mut client = server.connect();
    let allowed = server.limit_descriptors(1);
    let mut stored = BTreeMap::new();
    client.store("first", "the first sync of the log");
    // Until the segment of 64 MiB is full and there is no other.
    let refused = (0..40).find_map(|index| {
        let (key, value) = (format!("fill-{index:02}"), random.bytes(4 << 20));
        let answer = client.put(&key, &value);
        match answer.status {
            201 => {
                stored.insert(key, value);
                None
            }
            503 => Some(answer),
            status => panic!("PUT without descriptors: {status} {}\n{}", answer.text(), server.log()),
        }
    });
    let refused = refused.expect("a new segment needs descriptors");
    assert!(stored.len() >= 10 && refused.text().contains("no file descriptors"), "{}", refused.text());
    server.limit_descriptors(allowed);
    let mut client = server.connect();
    eventually("writes are taken again", Duration::from_secs(10), || client.put("again", "value").status == 201);
    assert!(server.status().contains("\"failed\": false"), "{}", server.status());
    assert!(server.storage_figure("resource_errors") > 0);
    server.kill();
    server.start_again();
    let mut client = server.connect();
    for (key, value) in &stored {
        assert!(client.value(key).as_ref() == Some(value), "{key}");
    }
    assert_eq!(client.value("again").as_deref(), Some(&b"value"[..]));
}

#[test]
fn the_storage_figures_follow_overwrites_and_deletes() {
    let server = Server::fresh("--sync os");
    let mut client = server.connect();
    let value = Random::seeded(9).bytes(20_000);
    let keys: Vec<String> = (0..1000).map(|index| format!("key-{index:04}")).collect();
    for _ in 0..volume(6, 20) {
        client.store_all(keys.iter().map(|key| (key, &value)), 50);
    }
    for key in &keys[100..] {
        client.delete(key).expect(202, "DELETE");
    }
    assert_eq!(server.storage_figure("records"), 100);
    let live = server.storage_figure("live_bytes");
    assert!((2_000_000..4_000_000).contains(&live), "{live} live bytes for 100 records of 20 000");
    assert!(server.storage_figure("dead_bytes") > 0 || server.storage_figure("segments") < 3, "{}", server.status());
    for key in &keys[..100] {
        assert!(client.value(key).as_ref() == Some(&value), "{key}");
    }
}

/// What the files of a folder really take on the disk.
fn allocated_bytes(folder: &Path) -> u64 {
    let blocks =
        |path: &PathBuf| std::fs::metadata(path).map_or(0, |meta| std::os::unix::fs::MetadataExt::blocks(&meta));
    ["log", "idx"]
        .iter()
        .flat_map(|extension| files::with_extension(folder, extension))
        .map(|path| blocks(&path) * 512)
        .sum()
}

#[test]
fn space_comes_back_after_overwrites() {
    // The compaction of a test of seconds must not be the bounded one of a server that lives for
    // months.
    let mut server = Server::fresh("--sync os --threads 2 --compaction-rate 1GiB");
    let mut random = Random::announced("space_comes_back");
    let keys: Vec<String> = (0..4000).map(|index| format!("key-{index:04}")).collect();
    let mut client = server.connect();
    let mut stored = BTreeMap::new();
    for _ in 0..4 {
        for key in &keys {
            stored.insert(key.clone(), random.bytes(10_000));
        }
        client.store_all(stored.iter(), 50);
    }
    // Twice the live data, and what is set aside for the segments being written.
    let bound = 2 * 4000 * 10_000 + (48 << 20);
    eventually("the disk holds little more than live data", Duration::from_secs(30), || {
        allocated_bytes(server.data()) <= bound
    });
    for restart in [None, Some(Server::kill as fn(&mut Server)), Some(Server::terminate)] {
        if let Some(end) = restart {
            end(&mut server);
            server.start_again();
        }
        let mut client = server.connect();
        for (key, value) in &stored {
            assert!(client.value(key).as_ref() == Some(value), "{key} after compaction");
        }
    }
}

/// PUT until it is stored, as long as that takes a few seconds at most: compaction may lag behind.
#[track_caller]
fn store_with_patience(client: &mut Client, target: &str, value: &[u8], what: &str) {
    eventually(what, Duration::from_secs(15), || {
        let answer = client.request("PUT", target, &[], Some(value));
        match answer.status {
            201 => true,
            507 => {
                std::thread::sleep(Duration::from_millis(20));
                false
            }
            status => panic!("PUT {target}: {status} {}", answer.text()),
        }
    });
}

#[test]
fn the_space_of_deleted_records_comes_back_on_a_small_disk() {
    let Some(disk) = SmallDisk::mount(64) else { return };
    let mut server = Launch::on(&disk.path().join("data")).flags("--threads 2").start();
    let value = Random::seeded(11).bytes(50_000);
    // 20 MB in, 20 MB out, five times over: without the space of what was deleted, the third round
    // is refused for ever.
    for round in 0..volume(5, 50) {
        let mut client = server.connect();
        for index in 0..400 {
            let target = format!("/v0/entity?id=r{round}-{index}");
            store_with_patience(&mut client, &target, &value, "the space of deleted records");
        }
        for index in 0..400 {
            client.delete(format!("r{round}-{index}")).expect(202, "DELETE");
        }
        assert_eq!(client.range("start=r").len(), 0);
    }
    server.kill();
    server.start_again();
    assert_eq!(server.connect().range("start=r").len(), 0, "deleted records came back");
    assert_eq!(server.storage_figure("records"), 0);
}

#[test]
fn the_space_of_expired_records_comes_back_on_a_small_disk() {
    let Some(disk) = SmallDisk::mount(64) else { return };
    let mut server = Launch::on(&disk.path().join("data")).flags("--threads 2").start();
    let value = Random::seeded(12).bytes(50_000);
    // As a cache does: new keys all the time, each for a moment.
    let mut client = server.connect();
    for index in 0..volume(2500, 25_000) {
        let target = format!("/v0/entity?id=passing-{index}&ttl=300");
        store_with_patience(&mut client, &target, &value, &format!("the space of expired records, at record {index}"));
    }
    let all_gone = |client: &mut Client| client.range("start=passing").is_empty();
    eventually("the last of them expires", Duration::from_secs(2), || all_gone(&mut client));
    server.kill();
    server.start_again();
    assert!(all_gone(&mut server.connect()), "expired records came back");
}

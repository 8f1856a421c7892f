//! Starts, ends and space on disks that somebody else fills.

use std::fs;
use std::time::{Duration, Instant};

use koltso_testkit::cluster::Quorum;
use koltso_testkit::files::SmallDisk;
use koltso_testkit::{Cluster, Launch, Random, eventually};

#[test]
fn a_node_that_was_killed_before_others_filled_the_disk_starts_and_serves_reads() {
    let Some(disk) = SmallDisk::mount(64) else { return };
    let mut random = Random::announced("a_node_that_was_killed_before_others_filled_the_disk_starts");
    let mut server = Launch::on(&disk.path().join("data")).flags("--threads 2").start();
    let mut client = server.connect();
    let values: Vec<Vec<u8>> = (0..100).map(|_| random.bytes(20_000)).collect();
    for (number, value) in values.iter().enumerate() {
        client.store(format!("key-{number:03}"), value);
    }
    server.kill();
    let filler = disk.fill();
    for end in ["kill -9", "SIGTERM"] {
        server.start_again();
        let mut client = server.connect();
        for (number, value) in values.iter().enumerate() {
            assert!(client.value(format!("key-{number:03}")).as_ref() == Some(value), "key {number}, before {end}");
        }
        assert_eq!(client.range("start=key-&end=key.").len(), 100);
        // What the process that was killed had set aside is given back, and taken by others as well.
        eventually("writes are refused", Duration::from_secs(10), || {
            disk.fill();
            let answer = client.put("new", [1; 100_000]);
            assert!(answer.status == 201 || answer.text().contains("disk is full"), "{}", answer.text());
            answer.status == 507
        });
        assert!(server.status().contains("\"disk_full\": true"), "{}", server.status());
        if end == "SIGTERM" { server.terminate() } else { server.kill() }
    }
    server.start_again();
    let mut client = server.connect();
    fs::remove_file(filler).unwrap();
    eventually("writes are taken when there is room", Duration::from_secs(10), || {
        client.put("new", "value").status == 201
    });
    for number in 0..100 {
        client.store(format!("more-{number}"), random.bytes(20_000));
    }
    server.terminate();
    server.start_again();
    assert_eq!(server.connect().range("start=key-&end=more.").len(), 200);
    assert_eq!(server.storage_figure("damaged_records"), 0);
}

#[test]
fn a_node_of_a_cluster_starts_on_a_full_disk_and_says_what_it_cannot_keep() {
    const QUORUM: Quorum = (2, 3);
    let Some(disk) = SmallDisk::mount(64) else { return };
    let folder = disk.path().join("data");
    // Its folder is on the small disk by way of a link: the data folder itself may be one.
    let mut cluster = Cluster::planned(3, |index, launch, _| {
        if index == 2 {
            fs::create_dir_all(&folder).unwrap();
            std::os::unix::fs::symlink(&folder, launch.data()).unwrap();
        }
        Some(launch)
    });
    cluster.wait_up();
    for number in 0..50 {
        cluster.client(0).put_of(format!("key-{number}"), "value", (3, 3)).expect(201, "PUT 3/3");
    }
    // Also without the files that it would have to make: the bound of its clock, and its hints.
    for without in [false, true] {
        cluster.kill(2);
        if without {
            fs::remove_file(folder.join("clock")).unwrap();
            fs::remove_dir_all(folder.join("hints")).unwrap();
        }
        let filler = disk.fill();
        cluster.start(2);
        cluster.wait_up();
        for number in 0..50 {
            let answer = cluster.client(2).get_of(format!("key-{number}"), (1, 3));
            assert_eq!(answer.body, b"value", "{}", answer.status);
        }
        cluster.client(0).put_of("by the others", "value", QUORUM).expect(201, "PUT 2/3");
        cluster.client(2).get_of("by the others", QUORUM).expect(200, "GET 2/3 through the node with the full disk");
        fs::remove_file(filler).unwrap();
        eventually("it takes writes again", Duration::from_secs(20), || {
            cluster.client(2).put_of("again", "value", (3, 3)).status == 201
        });
    }
    cluster.terminate(2);
    assert!(folder.join("clock").exists(), "it was made when there was room");
}

#[test]
fn expired_values_give_way_before_a_write_is_refused() {
    let Some(disk) = SmallDisk::mount(64) else { return };
    let mut random = Random::announced("expired_values_give_way_before_a_write_is_refused");
    let server = Launch::on(&disk.path().join("data")).flags("--threads 1").start();
    let mut client = server.connect();
    let value = random.bytes(2_000);
    // Three times the disk, of which 5 MB live at a time.
    let (begun, mut refused, total) = (Instant::now(), 0, 96_000_u64);
    for number in 0..total {
        let target = format!("/v0/entity?id=ttl-{number}&ttl=1000");
        match client.request("PUT", &target, &[], Some(&value)).status {
            201 => {}
            507 => refused += 1,
            status => panic!("PUT: {status}"),
        }
        let due = Duration::from_micros(number * 400);
        if let Some(early) = due.checked_sub(begun.elapsed()) {
            std::thread::sleep(early);
        }
    }
    println!("{total} values in {:?}, {refused} refused", begun.elapsed());
    assert_eq!(refused, 0, "{}", server.status());
}

/// These have no extents, and so no way to reserve blocks.
#[test]
fn a_file_system_without_fallocate_works() {
    for kind in ["ext3", "ext2"] {
        let Some(disk) = SmallDisk::of_type(kind, 96) else { continue };
        let mut random = Random::announced("a_file_system_without_fallocate_works");
        let mut server = Launch::on(&disk.path().join("data")).flags("--threads 1 --sync always").start();
        assert!(server.log().contains("has no fallocate"), "{kind}: {}", server.log());
        let mut client = server.connect();
        let mut values = Vec::new();
        let full = (0..600).find(|number| {
            let value = random.bytes(200_000);
            let answer = client.put(format!("key-{number:03}"), &value);
            match answer.status {
                201 => values.push(value),
                507 => return true,
                status => panic!("{kind}: PUT {number}: {status} {}", answer.text()),
            }
            false
        });
        assert!(full.is_some_and(|number| number > 150), "{kind}: full after {full:?} of 96 MiB");
        for end in 0..2 {
            for (number, value) in values.iter().enumerate() {
                assert!(client.value(format!("key-{number:03}")).as_ref() == Some(value), "{kind}: key {number}");
            }
            if end == 0 {
                server.kill()
            } else {
                server.terminate()
            }
            server.start_again();
            client = server.connect();
        }
        assert_eq!(server.storage_figure("damaged_records"), 0);
        for number in 0..values.len() {
            client.delete(format!("key-{number:03}")).expect(202, "DELETE on a full disk");
        }
        eventually("space comes back", Duration::from_secs(30), || client.put("again", "value").status == 201);
    }
}

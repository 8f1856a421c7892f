//! Files that somebody cuts short, or a disk that cannot read them, under a running server.

use std::collections::BTreeMap;
use std::time::Duration;

use koltso_testkit::metrics::sample;
use koltso_testkit::{Client, Cluster, Random, Server, eventually, files};

fn store_some(client: &mut Client, random: &mut Random, count: usize) -> BTreeMap<String, Vec<u8>> {
    let stored: BTreeMap<String, Vec<u8>> = (0..count)
        .map(|number| (format!("key-{number:04}"), random.bytes(if number % 20 == 0 { 100_000 } else { 2_000 })))
        .collect();
    client.store_all(stored.iter().map(|(key, value)| (key.clone(), value.clone())), 50);
    stored
}

#[test]
fn a_segment_cut_short_under_a_running_server_is_504_for_its_keys_alone() {
    let mut random = Random::announced("a_segment_cut_short_under_a_running_server_is_504_for_its_keys_alone");
    let mut server = Server::fresh("--threads 1");
    let mut client = server.connect();
    let stored = store_some(&mut client, &mut random, 400);
    let log = files::with_extension(server.data(), "log").into_iter().next().unwrap();
    let (last, value) = stored.last_key_value().unwrap();
    let (_, at) = files::find_in_logs(server.data(), value)[0];
    // The second half of what was written.
    let keep = at / 2;
    files::cut(&log, keep);
    client.get(last).expect(504, "GET of a key that is gone");
    let mut lost = Vec::new();
    for (key, value) in &stored {
        let answer = client.get(key);
        match answer.status {
            200 => assert!(answer.body == *value, "{key} has a value that is not its own"),
            504 => lost.push(key.clone()),
            status => panic!("GET of {key}: {status}"),
        }
    }
    assert!(lost.len() > 100 && lost.len() < 300, "{} of 400 keys lost with half of the file", lost.len());
    let listed = client.range("start=key-").len();
    assert!(listed <= stored.len() - lost.len(), "{listed}");
    eventually("/status says so", Duration::from_secs(10), || server.storage_figure("lost_pages") > 0);
    assert!(server.storage_figure("damaged_records") >= lost.len() as u64);
    assert!(sample(&server.ask("GET", "/metrics"), "koltso_storage_lost_pages") > 0.0);
    eventually("and the log", Duration::from_secs(10), || {
        server.log().contains("the file was cut short, or the disk fails")
    });
    // What is lost can be written again, and all of it survives.
    for key in &lost {
        client.store(key, "again");
        assert_eq!(client.value(key).as_deref(), Some(&b"again"[..]));
    }
    server.assert_serves();
    server.terminate();
    server.start_again();
    let mut client = server.connect();
    for (key, value) in &stored {
        let expected = if lost.contains(key) { b"again" } else { value.as_slice() };
        assert!(client.value(key).as_deref() == Some(expected), "{key} after a restart");
    }
}

#[test]
fn every_file_of_a_data_folder_may_be_emptied_under_a_running_server() {
    let mut random = Random::announced("every_file_of_a_data_folder_may_be_emptied_under_a_running_server");
    let mut server = Server::fresh("--threads 1");
    let stored = store_some(&mut server.connect(), &mut random, 200);
    // With sidecars, too.
    server.terminate();
    server.start_again();
    let mut client = server.connect();
    client.store("after", "the start");
    for extension in ["idx", "log"] {
        for file in files::with_extension(server.data(), extension) {
            files::cut(&file, 0);
        }
        for (key, value) in &stored {
            let answer = client.get(key);
            assert!(
                answer.status == 504 || (answer.status == 200 && answer.body == *value),
                "{key}: {}",
                answer.status
            );
        }
        client.range("start=a");
        eventually("writes go on", Duration::from_secs(10), || client.put("more", "writes").status == 201);
        assert_eq!(client.value("more").as_deref(), Some(&b"writes"[..]), "after {extension}");
        server.assert_serves();
    }
}

#[test]
fn what_one_node_lost_is_answered_and_repaired_from_the_others() {
    let mut random = Random::announced("what_one_node_lost_is_answered_and_repaired_from_the_others");
    let cluster = Cluster::of(3);
    let mut client = cluster.client(0);
    for number in 0..100 {
        client.put_of(format!("key-{number}"), random.bytes(3_000), (3, 3)).expect(201, "PUT 3/3");
    }
    for log in files::with_extension(cluster.data(0), "log") {
        files::cut(&log, 4096);
    }
    for number in 0..100 {
        let answer = client.get_of(format!("key-{number}"), (2, 3)).expect(200, "GET 2/3 with a replica's file gone");
        assert_eq!(answer.body.len(), 3_000);
    }
    eventually("the node has them again", Duration::from_secs(20), || {
        let mut own = cluster.client(0);
        (0..100).all(|number| {
            own.get_of(format!("key-{number}"), (2, 3));
            own.get_of(format!("key-{number}"), (1, 3)).status == 200
        })
    });
    assert_eq!(cluster.records(0, "key-").len(), 100);
}

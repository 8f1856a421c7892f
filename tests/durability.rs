//! SPEC.md section 4 from outside: what was acknowledged survives kill -9, torn tails, flipped bits, lost sidecars and full disks.
//!
//! Values are made from key and sequence number, so a test knows of each value which write it came from.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use koltso_testkit::client::{put_bytes, request_bytes};
use koltso_testkit::files::{self, SmallDisk};
use koltso_testkit::{Client, Launch, Random, Server, entity, eventually, volume};

// --- writers that remember ---

/// One write to a key: the sequence number, and whether it was a DELETE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Write {
    sequence: u64,
    deletes: bool,
}

impl Write {
    const NONE: Write = Write { sequence: 0, deletes: true };

    fn value(self, key: &str) -> Option<Vec<u8>> {
        if self.deletes {
            return None;
        }
        let mut random =
            Random::seeded(self.sequence.wrapping_mul(31).wrapping_add(u64::from(key.as_bytes()[key.len() - 1])));
        let padding = match self.sequence % 50 {
            0 => 120_000,
            1..=5 => 9_000,
            _ => random.below(1500),
        };
        let mut value = format!("{key} {} ", self.sequence).into_bytes();
        value.extend_from_slice(&random.bytes(padding));
        Some(value)
    }
}

/// What one writer knows of its own keys: the last acknowledged write, and those after it that may or may not have happened.
struct Ledger {
    name: String,
    sequence: u64,
    keys: BTreeMap<String, Vec<Write>>,
}

impl Ledger {
    fn new(name: usize) -> Ledger {
        let keys = (0..150).map(|index| (format!("writer{name}/{index:03}"), vec![Write::NONE])).collect();
        Ledger { name: format!("writer{name}"), sequence: 0, keys }
    }

    /// Writes until the connection ends; counts acknowledgements in `acknowledged`.
    fn write_until_it_ends(&mut self, server: std::net::SocketAddr, random: &mut Random, acknowledged: &AtomicU64) {
        let Ok(mut client) = Client::connect(server) else { return };
        loop {
            let (mut bytes, mut sent) = (Vec::new(), Vec::new());
            for _ in 0..*random.choose(&[1, 1, 4, 32]) {
                self.sequence += 1;
                let key = format!("{}/{:03}", self.name, random.below(150));
                let write = Write { sequence: self.sequence, deletes: random.one_in(6) };
                match write.value(&key) {
                    Some(value) => bytes.extend_from_slice(&put_bytes(&key, &value)),
                    None => bytes.extend_from_slice(&request_bytes("DELETE", &entity(&key), &[], None)),
                }
                self.keys.get_mut(&key).unwrap().push(write);
                sent.push((key, write));
            }
            if client.send(&bytes).is_err() {
                return;
            }
            for (key, write) in sent {
                let Ok(Some(answer)) = client.try_read("PUT") else { return };
                let expected = if write.deletes { 202 } else { 201 };
                assert_eq!(answer.status, expected, "{key}: {}", answer.text());
                self.keys.get_mut(&key).unwrap().retain(|other| other.sequence >= write.sequence);
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Each key holds the last acknowledged write or one that was in flight after it; from now on, that one.
    fn verify(&mut self, client: &mut Client, when: &str) {
        for (key, writes) in &mut self.keys {
            let found = client.value(key);
            let Some(write) = writes.iter().find(|write| write.value(key) == found) else {
                let shown = found.map(|value| String::from_utf8_lossy(&value[..value.len().min(40)]).into_owned());
                panic!("{when}: {key} has {shown:?}, acknowledged and in flight: {writes:?}");
            };
            *writes = vec![*write];
        }
    }
}

/// Rounds of load from four writers, each ended in its middle by `end`; after each, every ledger is verified.
fn rounds_of_load(test: &str, flags: &str, rounds: usize, end: fn(&mut Server, &mut Random)) {
    let mut random = Random::announced(test);
    let mut server = Server::fresh(flags);
    let mut ledgers: Vec<Ledger> = (0..4).map(Ledger::new).collect();
    let total = AtomicU64::new(0);
    for round in 0..rounds {
        let address = server.address();
        std::thread::scope(|scope| {
            for ledger in &mut ledgers {
                let mut random = random.fork();
                let total = &total;
                scope.spawn(move || ledger.write_until_it_ends(address, &mut random, total));
            }
            std::thread::sleep(Duration::from_millis(u64::try_from(random.between(50, 700)).unwrap()));
            end(&mut server, &mut random);
        });
        server.start_again();
        let mut client = server.connect();
        for ledger in &mut ledgers {
            ledger.verify(&mut client, &format!("{flags}, round {round}"));
        }
    }
    println!("{test} ({flags}): {} acknowledged writes in {rounds} rounds", total.load(Ordering::Relaxed));
    assert!(total.load(Ordering::Relaxed) > 100, "too little was written to say anything");
    assert_eq!(server.storage_figure("damaged_records"), 0, "killing damages nothing");
}

#[test]
fn what_was_acknowledged_survives_kill_9_with_sync_os() {
    rounds_of_load("kill_9_with_sync_os", "--sync os", volume(7, 100), |server, _| server.kill());
}

#[test]
fn what_was_acknowledged_survives_kill_9_with_sync_always() {
    rounds_of_load("kill_9_with_sync_always", "--sync always", volume(7, 100), |server, _| server.kill());
}

#[test]
fn what_was_acknowledged_survives_kill_9_with_sync_every_50_ms() {
    rounds_of_load("kill_9_with_sync_50ms", "--sync 50ms", volume(4, 50), |server, _| server.kill());
}

#[test]
fn what_was_acknowledged_survives_kill_9_during_start_and_during_drain() {
    rounds_of_load("kill_9_during_start_and_drain", "", volume(5, 50), |server, random| {
        if random.one_in(2) {
            server.signal(libc::SIGTERM);
            std::thread::sleep(Duration::from_micros(u64::try_from(random.below(30_000)).unwrap()));
        }
        server.kill();
        for _ in 0..3 {
            server.start_and_kill(Duration::from_micros(u64::try_from(random.below(120_000)).unwrap()));
        }
    });
}

#[test]
fn what_was_acknowledged_survives_sigterm_under_load() {
    rounds_of_load("sigterm_under_load", "", volume(4, 50), |server, _| server.terminate());
}

// --- draining ---

#[test]
fn sigterm_finishes_what_is_in_flight_and_exits_0() {
    let mut server = Server::fresh("");
    let large = Random::seeded(3).bytes(16 << 20);
    server.connect().store("large", &large);
    let mut writer = server.connect();
    let bytes = put_bytes("late", b"in two parts");
    writer.send(&bytes[..bytes.len() - 6]).unwrap();
    let mut reader = server.connect();
    reader.send(&koltso_testkit::client::get_bytes("large")).unwrap();
    let mut idle = server.connect().patience(Duration::from_secs(5));
    idle.get("absent").expect(404, "GET before the drain");
    // The reader's answer has begun when its head is there.
    let head = reader.read_head("GET").unwrap().unwrap().expect(200, "GET of 16 MiB");
    assert_eq!(head.header("content-length"), Some("16777216"));

    server.signal(libc::SIGTERM);
    let address = server.address();
    eventually("no new connection is taken", Duration::from_secs(5), || std::net::TcpStream::connect(address).is_err());
    // An idle connection is closed, or told that the node drains.
    if idle.send(&request_bytes("GET", "/health", &[], None)).is_ok()
        && let Ok(Some(answer)) = idle.try_read("GET")
    {
        answer.expect(503, "GET /health while draining");
    }
    writer.send(&bytes[bytes.len() - 6..]).unwrap();
    writer.read("PUT").expect(201, "a PUT whose body came in during the drain");
    let mut received = Vec::new();
    reader.patience(Duration::from_secs(10)).read_rest(&mut received, large.len());
    assert!(received == large, "an answer that was on its way at SIGTERM arrives in whole");
    let status = server.wait(Duration::from_secs(5));
    assert_eq!(status.code(), Some(0), "{status}\n{}", server.log());
    server.start_again();
    assert_eq!(server.connect().value("late").as_deref(), Some(&b"in two parts"[..]));
}

#[test]
fn a_drain_waits_neither_for_idle_clients_nor_longer_than_10_seconds() {
    let mut server = Server::fresh("");
    let mut idle: Vec<Client> = (0..20).map(|_| server.connect()).collect();
    for client in &mut idle[..10] {
        client.store("key", "value");
    }
    let start = Instant::now();
    server.terminate();
    assert!(start.elapsed() < Duration::from_secs(3), "idle clients held up the drain for {:?}", start.elapsed());

    server.start_again_with("--request-timeout 60s");
    assert_eq!(server.connect().value("key").as_deref(), Some(&b"value"[..]));
    let mut never = server.connect();
    never.send(b"PUT /v0/entity?id=never HTTP/1.1\r\nHost: k\r\nContent-Length: 10\r\n\r\nhalf").unwrap();
    let mut taken = server.connect();
    taken.get("key").expect(200, "GET");
    let start = Instant::now();
    server.terminate();
    assert!(
        start.elapsed() < Duration::from_secs(13),
        "a body that never comes held up the drain for {:?}",
        start.elapsed()
    );
    server.start_again();
    server.ask("GET", &entity("never")).expect(404, "a body that never came");
}

// --- torn tails ---

/// Records written one after another over one connection, so that they follow each other in one log.
fn consecutive_records(client: &mut Client, random: &mut Random, count: usize) -> Vec<(String, Vec<u8>)> {
    let records: Vec<(String, Vec<u8>)> = (0..count)
        .map(|index| {
            let length = random.between(40, 600);
            (format!("record-{index:03}-{}", random.word(8)), random.bytes(length))
        })
        .collect();
    for (key, value) in &records {
        client.store(key, value);
    }
    records
}

/// The one place of these bytes in the logs of a folder.
fn place_of(folder: &Path, bytes: &[u8]) -> (PathBuf, u64) {
    let places = files::find_in_logs(folder, bytes);
    assert_eq!(places.len(), 1, "the bytes are in the logs once: {places:?}");
    places.into_iter().next().unwrap()
}

#[test]
fn a_torn_tail_is_cut_off_at_the_last_whole_record() {
    let mut random = Random::announced("a_torn_tail_is_cut_off_at_the_last_whole_record");
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original");
    let mut server = Launch::on(&original).flags("--sync os").start();
    let mut records = consecutive_records(&mut server.connect(), &mut random, 60);
    server.kill();
    let (last_key, last_value) = records.pop().unwrap();
    let (log, at) = place_of(&original, &last_value);
    let name = log.strip_prefix(&original).unwrap().to_path_buf();
    let length = u64::try_from(last_value.len()).unwrap();
    let key_at = place_of(&original, last_key.as_bytes()).1;

    type Tear<'a> = (&'a str, Box<dyn Fn(&Path) + 'a>);
    let tears: Vec<Tear> = vec![
        ("cut after a byte of the value", Box::new(|path| files::cut(path, at + 1))),
        ("cut in the middle of the value", Box::new(|path| files::cut(path, at + length / 2))),
        ("cut before the value's last byte", Box::new(|path| files::cut(path, at + length - 1))),
        ("cut in the key", Box::new(|path| files::cut(path, key_at + 3))),
        ("cut before the key", Box::new(|path| files::cut(path, key_at))),
        ("cut in the header", Box::new(|path| files::cut(path, key_at - 5))),
        ("zeros over the value's end", Box::new(|path| files::overwrite(path, at + length - 20, &[0; 20]))),
        ("zeros over the value", Box::new(|path| files::overwrite(path, at, &vec![0; last_value.len()]))),
        (
            "zeros from the key on",
            Box::new(|path| files::overwrite(path, key_at, &vec![0; last_key.len() + last_value.len()])),
        ),
        ("a bit of the value's last byte", Box::new(|path| files::flip(path, at + length - 1, 1))),
        ("a bit of the value's first byte", Box::new(|path| files::flip(path, at, 128))),
        ("a bit of the key", Box::new(|path| files::flip(path, key_at + 2, 4))),
    ];
    for (index, (what, tear)) in tears.iter().enumerate() {
        let copy = folder.path().join(format!("case{index}"));
        files::copy_folder(&original, &copy);
        tear(&copy.join(&name));
        let mut server = Launch::on(&copy).start();
        for restarted in [false, true] {
            let mut client = server.connect();
            for (key, value) in &records {
                assert!(client.value(key).as_ref() == Some(value), "{what}, restarted: {restarted}: {key}");
            }
            if restarted {
                assert_eq!(client.value(&last_key).as_deref(), Some(&b"again"[..]), "{what}: written after it");
                assert_eq!(client.value("further").as_deref(), Some(&b"value"[..]), "{what}: written after it");
            } else {
                client.get(&last_key).expect(404, &format!("{what}: the torn record"));
                assert_eq!(client.range("start=record").len(), records.len(), "{what}: the range");
                client.store(&last_key, "again");
                client.store("further", "value");
                server.kill();
                server.start_again();
            }
        }
        drop(server);
        std::fs::remove_dir_all(&copy).unwrap();
    }
}

// --- damage ---

#[test]
fn a_flipped_bit_in_a_value_is_reported_and_never_served() {
    let mut random = Random::announced("a_flipped_bit_in_a_value_is_reported_and_never_served");
    for end in [Server::kill, Server::terminate] {
        let mut server = Server::fresh("");
        let records = consecutive_records(&mut server.connect(), &mut random, 60);
        end(&mut server);
        let (bad_key, bad_value) = &records[30];
        let (log, at) = place_of(server.data(), bad_value);
        files::flip(&log, at + u64::try_from(random.below(bad_value.len())).unwrap(), 1 << random.below(8));
        server.start_again();
        for start in ["first", "second"] {
            let mut client = server.connect();
            for (key, value) in &records {
                if key == bad_key {
                    let answer = client.get(key).expect(504, &format!("{start} start: GET of the damaged record"));
                    assert_ne!(&answer.body, value);
                } else {
                    assert!(client.value(key).as_ref() == Some(value), "{start} start: {key}");
                }
            }
            let listed: Vec<_> = client.range("start=record");
            let expected: Vec<_> = records
                .iter()
                .filter(|(key, _)| key != bad_key)
                .map(|(key, value)| (key.clone().into_bytes(), value.clone()))
                .collect();
            assert!(listed == expected, "{start} start: {} records in the range, not {}", listed.len(), expected.len());
            assert!(server.storage_figure("damaged_records") > 0, "{start} start: /status does not report it");
            end(&mut server);
            server.start_again();
        }
        // A new version makes the key whole again.
        let mut client = server.connect();
        client.store(bad_key, "new");
        assert_eq!(client.value(bad_key).as_deref(), Some(&b"new"[..]));
        server.kill();
        server.start_again();
        assert_eq!(server.connect().value(bad_key).as_deref(), Some(&b"new"[..]), "after another restart");
    }
}

#[test]
fn a_bit_flipped_under_a_running_server_is_not_served() {
    let mut random = Random::announced("a_bit_flipped_under_a_running_server_is_not_served");
    let mut server = Server::fresh("");
    let records = consecutive_records(&mut server.connect(), &mut random, 20);
    let (bad_key, bad_value) = &records[10];
    let (log, at) = place_of(server.data(), bad_value);
    files::flip(&log, at + 7, 16);
    let mut client = server.connect();
    client.get(bad_key).expect(504, "GET of a record damaged under the server");
    for (key, value) in records.iter().filter(|(key, _)| key != bad_key) {
        assert!(client.value(key).as_ref() == Some(value), "{key}");
    }
    assert!(server.storage_figure("damaged_records") > 0, "/status does not report it");
    server.assert_serves();
}

#[test]
fn one_flipped_byte_anywhere_costs_one_record_at_most() {
    let mut random = Random::announced("one_flipped_byte_anywhere_costs_one_record_at_most");
    let folder = tempfile::tempdir().unwrap();
    for (state, end) in [("killed", Server::kill as fn(&mut Server)), ("stopped", Server::terminate)] {
        let original = folder.path().join(state);
        let mut server = Launch::on(&original).start();
        let records = consecutive_records(&mut server.connect(), &mut random, 60);
        end(&mut server);
        // From the end of one record's value to the key of a later one: headers, keys, values, whatever lies between.
        let (log, first) = place_of(&original, &records[28].1);
        let first = first + u64::try_from(records[28].1.len()).unwrap();
        let (same_log, last) = place_of(&original, records[32].0.as_bytes());
        assert_eq!(log, same_log);
        let (_, key_at) = place_of(&original, records[29].0.as_bytes());
        // Every other byte of one header, and some places anywhere.
        let mut positions: Vec<u64> = (first..key_at).step_by(volume(3, 1)).collect();
        positions.extend((0..volume(6, 100)).map(|_| first + random.next() % (last - first)));
        let mut lost_in_all = 0;
        for position in positions {
            let copy = folder.path().join("case");
            files::copy_folder(&original, &copy);
            let mask = 1 << random.below(8);
            files::flip(&copy.join(log.strip_prefix(&original).unwrap()), position, mask);
            let server = Launch::on(&copy).start();
            let mut client = server.connect();
            let mut lost = Vec::new();
            for (key, value) in &records {
                let answer = client.get(key);
                match answer.status {
                    200 => assert!(answer.body == *value, "{state}, byte {position}: a wrong value of {key}"),
                    404 | 504 => lost.push(key),
                    status => panic!("{state}, byte {position}: {status} for {key}"),
                }
            }
            let what = format!(
                "{state}: bits {mask:#x} of byte {position} ({} after the key)",
                position.wrapping_sub(key_at).cast_signed()
            );
            assert!(lost.len() <= 1, "{what} cost {} records: {lost:?}\n{}", lost.len(), server.log());
            assert_eq!(client.range("start=record").len(), records.len() - lost.len(), "{what}: the range");
            lost_in_all += lost.len();
            drop(server);
            std::fs::remove_dir_all(&copy).unwrap();
        }
        assert!(lost_in_all > 0, "{state}: no flipped byte was noticed");
    }
}

#[test]
fn a_damaged_or_missing_sidecar_changes_nothing() {
    let mut random = Random::announced("a_damaged_or_missing_sidecar_changes_nothing");
    let mut server = Server::fresh("--sync os");
    let mut records = BTreeMap::new();
    // Writes, overwrites and deletes until at least two sidecars are there.
    let mut sidecars = Vec::new();
    for round in 0..20 {
        let mut client = server.connect();
        let batch: Vec<(String, Vec<u8>)> = (0..400)
            .map(|_| {
                let length = *random.choose(&[10, 1000, 20_000, 60_000]);
                (format!("key-{:04}", random.below(1500)), random.bytes(length))
            })
            .collect();
        client.store_all(batch.iter().map(|(key, value)| (key, value)), 20);
        records.extend(batch);
        for _ in 0..30 {
            let key = format!("key-{:04}", random.below(1500));
            client.delete(&key).expect(202, "DELETE");
            records.remove(&key);
        }
        server.terminate();
        sidecars = files::with_extension(server.data(), "idx");
        if sidecars.len() >= 2 && round >= 2 {
            break;
        }
        server.start_again();
    }
    assert!(!sidecars.is_empty(), "no sidecar after {} bytes", records.values().map(Vec::len).sum::<usize>());
    println!("{} sidecars, {} records", sidecars.len(), records.len());

    type Harm = fn(&[PathBuf], &mut Random);
    let harms: [(&str, Harm); 7] = [
        ("removed", |all, _| all.iter().for_each(|path| std::fs::remove_file(path).unwrap())),
        ("emptied", |all, _| all.iter().for_each(|path| files::cut(path, 0))),
        ("cut in half", |all, _| all.iter().for_each(|path| files::cut(path, path.metadata().unwrap().len() / 2))),
        ("one byte short", |all, _| {
            all.iter().for_each(|path| files::cut(path, path.metadata().unwrap().len().saturating_sub(1)))
        }),
        ("a flipped bit each", |all, random| {
            for path in all {
                let length = path.metadata().unwrap().len();
                files::flip(path, random.next() % length, 1 << random.below(8));
            }
        }),
        ("random bytes", |all, random| {
            for path in all {
                std::fs::write(path, random.bytes(3000)).unwrap();
            }
        }),
        ("the sidecar of another segment", |all, _| {
            let copies: Vec<Vec<u8>> = all.iter().map(|path| std::fs::read(path).unwrap()).collect();
            for (index, path) in all.iter().enumerate() {
                std::fs::write(path, &copies[(index + 1) % copies.len()]).unwrap();
            }
        }),
    ];
    for (what, harm) in harms {
        let sidecars = files::with_extension(server.data(), "idx");
        harm(&sidecars, &mut random);
        server.start_again();
        let mut client = server.connect();
        for index in 0..1500 {
            let key = format!("key-{index:04}");
            assert!(client.value(&key).as_ref() == records.get(&key), "sidecars {what}: {key}");
        }
        let listed = client.range("start=key");
        assert!(
            listed
                .iter()
                .map(|(key, value)| (key.as_slice(), value))
                .eq(records.iter().map(|(key, value)| (key.as_bytes(), value))),
            "sidecars {what}: the range has {} records, not {}",
            listed.len(),
            records.len(),
        );
        server.terminate();
    }
}

// --- full disks ---

#[test]
fn a_full_disk_is_507_reads_go_on_and_writes_come_back_with_space() {
    let Some(disk) = SmallDisk::mount(48) else { return };
    let mut random = Random::announced("a_full_disk_is_507");
    let mut server = Launch::on(&disk.path().join("data")).flags("--threads 2").start();
    let mut client = server.connect();
    let mut stored = BTreeMap::new();
    // Until it is full for values of 64 KiB over this connection; the other core may have room left.
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
    // Half of the disk for live data is little, but a segment and room for compaction may be set aside a core.
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
    // The compaction of a test of seconds must not be the bounded one of a server that lives for months.
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
    // 20 MB in, 20 MB out, five times over: without the space of what was deleted, the third round is refused for ever.
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

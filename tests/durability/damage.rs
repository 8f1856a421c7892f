//! Torn tails and flipped bits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use koltso_testkit::{Client, Launch, Random, Server, files, metrics, volume};

// --- torn tails ---

/// Records written one after another over one connection, so that they follow each other in one
/// log.
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

/// The disk gives back zeros for a sector that it has lost.
#[test]
fn a_segment_whose_first_sector_is_zeros_is_reported_and_stays() {
    let mut random = Random::announced("a_segment_whose_first_sector_is_zeros_is_reported_and_stays");
    let mut server = Server::fresh("--sync always");
    let records = consecutive_records(&mut server.connect(), &mut random, 60);
    server.kill();
    let (log, _) = place_of(server.data(), &records[30].1);
    let whole = std::fs::read(&log).unwrap();
    files::overwrite(&log, 0, &[0; 512]);
    let lost = std::fs::read(&log).unwrap();
    for start in ["first", "second"] {
        server.start_again();
        let mut client = server.connect();
        for (key, _) in &records {
            client.get(key).expect(404, "GET of what nobody can read");
        }
        assert_eq!(server.storage_figure("unreadable_segments"), 1, "{start} start: /status does not report it");
        assert!(server.storage_figure("damaged_records") > 0, "{start} start: /status does not report it");
        let shown = metrics::sample(&server.ask("GET", "/metrics"), "koltso_storage_unreadable_segments");
        assert!((shown - 1.0).abs() < f64::EPSILON, "{start} start: /metrics says {shown}");
        assert!(server.log().contains("has no intact header"), "{start} start: {}", server.log());
        server.terminate();
        assert!(std::fs::read(&log).unwrap() == lost, "{start} start: the file was changed");
    }
    std::fs::write(&log, whole).unwrap();
    server.start_again();
    let mut client = server.connect();
    for (key, value) in &records {
        assert!(client.value(key).as_ref() == Some(value), "{key}, after the sector was back");
    }
    assert_eq!(server.storage_figure("unreadable_segments"), 0);
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
        // From the end of one record's value to the key of a later one: headers, keys, values,
        // whatever lies between.
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

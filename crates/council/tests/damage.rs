//! What becomes of damaged files and of hostile messages.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::{Cluster, SECOND, eventually, run};
use koltso_council::{Change, MESSAGE_BYTES_MAX, StartError, StoreError};
use koltso_testkit::random::Random;
use tokio::time::sleep;

/// A cluster of which one node has a log of some lines, and is not running.
async fn with_a_node_down(random: &mut Random, nodes: usize) -> Cluster {
    let mut cluster = Cluster::formed(random, &vec![""; nodes]).await;
    for rate in 1..6 {
        cluster.change(0, Change::MoveRate(Some(rate))).await;
    }
    cluster.settle().await;
    cluster.kill(0).await;
    cluster
}

#[test]
fn a_write_that_a_crash_has_torn_is_cut_off() {
    run(async {
        let mut cluster = with_a_node_down(&mut Random::announced("torn"), 1).await;
        let log = cluster.folder(0).join("log");
        let whole = fs::read(&log).unwrap();
        let last_line = whole[..whole.len() - 1].iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
        let line = whole[last_line..].to_vec();
        for length in 1..line.len() {
            fs::write(&log, [&whole[..], &line[..length]].concat()).unwrap();
            cluster.start(0).await;
            cluster.kill(0).await;
        }
        // Sectors that never arrived are zeros.
        let mut zeros = line.clone();
        zeros[10..].fill(0);
        *zeros.last_mut().unwrap() = b'\n';
        fs::write(&log, [&whole[..], &zeros].concat()).unwrap();
        cluster.start(0).await;
        eventually("it leads", || cluster.council(0).is_leader()).await;
        assert_eq!(cluster.document(0).move_rate, Some(5));
        cluster.change(0, Change::Pause(true)).await;
    });
}

#[test]
fn a_member_that_lost_the_end_of_its_log_has_it_from_the_others() {
    run(async {
        let mut cluster = with_a_node_down(&mut Random::announced("truncated"), 3).await;
        let log = cluster.folder(0).join("log");
        for cut in [1, 7, 60, 200] {
            let whole = fs::read(&log).unwrap();
            fs::write(&log, &whole[..whole.len() - cut]).unwrap();
            cluster.start(0).await;
            cluster.settle().await;
            cluster.change(0, Change::MoveRate(Some(cut as u64))).await;
            cluster.settle().await;
            cluster.kill(0).await;
        }
    });
}

#[test]
fn damage_is_an_error_with_a_sentence_that_names_the_file() {
    run(async {
        let mut random = Random::announced("damage");
        let mut cluster = with_a_node_down(&mut random, 1).await;
        for name in ["log", "document"] {
            let path = cluster.folder(0).join(name);
            let whole = fs::read(&path).unwrap();
            // Of the last line of the log, a lost end is a torn write.
            let last =
                whole[..whole.len() - 1].iter().rposition(|&byte| byte == b'\n').map_or(whole.len(), |at| at + 1);
            for _ in 0..300 {
                let at = random.below(if name == "log" { last } else { whole.len() });
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << random.below(8_u64);
                fs::write(&path, &damaged).unwrap();
                let error = cluster.try_start(0).await.expect_err("it is damaged");
                let text = error.to_string();
                assert!(matches!(error, StartError::Store(StoreError::Damaged { .. })), "byte {at}: {text}");
                assert!(text.contains(&format!("council/{name} is damaged")) && text.contains("join again"), "{text}");
            }
            for length in [0, 1, whole.len() / 2] {
                fs::write(&path, &whole[..length]).unwrap();
                // A log that ends in the middle of a line, or after one, has lost what it had
                // promised: that cannot be told from a torn write. The document behind it can.
                if name == "document" || length < 2 {
                    assert!(cluster.try_start(0).await.is_err(), "{name} of {length} bytes");
                }
            }
            fs::write(&path, &whole).unwrap();
        }
        let log = cluster.folder(0).join("log");
        let aside = cluster.folder(0).join("aside");
        fs::rename(&log, &aside).unwrap();
        let error = cluster.try_start(0).await.unwrap_err().to_string();
        assert!(error.contains("log is damaged (it is missing"), "{error}");
        let later = fs::read_to_string(&aside).unwrap().replacen("\"version\":1", "\"version\":2", 1);
        let (first, rest) = later.split_once('\n').unwrap();
        let first = format!("{:08x} {}", crc32c::crc32c(&first.as_bytes()[9..]), &first[9..]);
        fs::write(&log, format!("{first}\n{rest}")).unwrap();
        let error = cluster.try_start(0).await.unwrap_err();
        assert!(matches!(error, StartError::Store(StoreError::Format { format: 2, .. })), "{error}");
        fs::rename(&aside, &log).unwrap();
        cluster.start(0).await;
        for name in ["log", "document", "lock"] {
            let mode = fs::metadata(cluster.folder(0).join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(fs::metadata(cluster.folder(0)).unwrap().permissions().mode() & 0o777, 0o700);
        let second = cluster.settings(0);
        struct Nowhere;
        impl koltso_council::Transport for Nowhere {
            fn call(
                &self,
                _: u16,
                _: &str,
                _: Vec<u8>,
            ) -> std::pin::Pin<Box<dyn Future<Output = Result<Vec<u8>, String>> + Send>> {
                Box::pin(async { Err("nowhere".to_owned()) })
            }
        }
        let error = koltso_council::Council::start(second, std::sync::Arc::new(Nowhere)).await.err().unwrap();
        assert!(matches!(error, StartError::Store(StoreError::InUse(_))), "{error}");
    });
}

#[test]
fn random_bytes_get_an_error_and_change_nothing() {
    run(async {
        let mut random = Random::announced("random bytes");
        let mut cluster = Cluster::new(&mut random, &["", "", "", ""], 3);
        cluster.start_all().await;
        eventually("they are formed", || cluster.council(0).document().is_some()).await;
        cluster.leader(&[0, 1, 2]).await;
        let is_error = |answer: &[u8]| String::from_utf8_lossy(answer).contains("error");
        for round in 0..3000 {
            let at = round % 4;
            let length = random.below(300_usize);
            let bytes = match round % 3 {
                0 => random.bytes(length),
                1 => random.word(length).into_bytes(),
                _ => (0..length).map(|_| *random.choose(b"{}[]\",:0123456789-eEtrufalsn")).collect(),
            };
            assert!(is_error(&cluster.council(at).serve(None, &bytes).await));
        }
        for bytes in [vec![b'['; 100_000], vec![b' '; MESSAGE_BYTES_MAX + 1], vec![0; MESSAGE_BYTES_MAX]] {
            assert!(is_error(&cluster.council(0).serve(Some(1), &bytes).await));
        }
        cluster.change(0, Change::Pause(true)).await;
    });
}

#[test]
fn messages_that_were_changed_on_the_way_end_nobody() {
    run(async {
        let mut random = Random::announced("changed messages");
        let cluster = Cluster::formed(&mut random, &["", "", ""]).await;
        for rate in 1..20 {
            cluster.change(0, Change::MoveRate(Some(rate))).await;
        }
        let tapped = cluster.tapped();
        assert!(tapped.len() > 100, "{}", tapped.len());
        // The target is a cluster that has not begun: whatever it takes for true is about itself.
        for _ in 0..20 {
            let mut target = Cluster::new(&mut random, &[""; 3], 3);
            target.start(0).await;
            for _ in 0..200 {
                let mut bytes = random.choose(&tapped).clone();
                for _ in 0..random.below(4_u64) {
                    let at = random.below(bytes.len());
                    match random.below(4_u64) {
                        0 => bytes[at] = *random.choose(b"0123456789"),
                        1 => drop(bytes.remove(at)),
                        2 => bytes.insert(at, *random.choose(b"0123456789,\"[]{}")),
                        _ => bytes[at] ^= 1 << random.below(8_u64),
                    }
                }
                let answer = target.council(0).serve(None, &bytes).await;
                let text = String::from_utf8(answer).unwrap();
                assert!(!text.contains("has stopped"), "{text} by {}", String::from_utf8_lossy(&bytes));
            }
            sleep(SECOND / 10).await;
        }
        cluster.change(1, Change::Pause(true)).await;
    });
}

//! What a cluster does with bad input: lists that do not fit, strangers and impostors at the
//! replica port, secrets and clocks that differ, damaged hints. Each gets one clear sentence,
//! nothing crashes, nothing acknowledged is lost.
#![allow(missing_docs, clippy::unwrap_used)]

mod clocks;
mod hints;
mod impostors;
mod lists;
mod names;
mod secrets;
mod standing;
mod strangers;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use koltso_testkit::cluster::Quorum;
use koltso_testkit::{Cluster, Launch, files};

const QUORUM: Quorum = (2, 3);
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(10);

/// What a sentence about a peer has to reach: the log, soon.
const SAID_WITHIN: Duration = Duration::from_secs(5);

fn lines_with(log: &str, words: &[&str]) -> Vec<String> {
    let fits = |line: &&str| words.iter().any(|word| line.to_lowercase().contains(&word.to_lowercase()));
    log.lines().filter(fits).map(str::to_owned).collect()
}

#[track_caller]
fn assert_no_panic(cluster: &Cluster) {
    for index in 0..cluster.count() {
        let log = cluster.log(index);
        assert!(!log.contains("panicked"), "node {index} panicked:\n{log}");
    }
}

/// A start that must be refused: exit code 2 and one sentence with one of the words; nothing is
/// left on disk.
#[track_caller]
fn assert_refused(port: u16, flags: &str, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    match Launch::on(&data).port(port).flags("--threads 1 --no-pin").flags(flags).try_start() {
        Ok(_) => panic!("a start with {flags} was not refused"),
        Err(refusal) => {
            assert_eq!(refusal.status.code(), Some(2), "{flags}: {}", refusal.stderr);
            let lines: Vec<&str> = refusal.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
            assert_eq!(lines.len(), 1, "{flags}: one sentence, not {lines:?}");
            assert_eq!(lines_with(lines[0], words).len(), 1, "{flags}: {:?} says nothing of {words:?}", lines[0]);
        }
    }
    assert!(!data.exists(), "{flags}: the data folder was touched");
}

fn secret_file(folder: &Path, name: &str, secret: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(name);
    files::write_secret(&path, secret);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn listen_as(cluster: &Cluster, index: usize) -> TcpListener {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match TcpListener::bind(cluster.replica_address(index)) {
            Ok(listener) => return listener,
            // The kernel lets go of what a killed process held a moment later.
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

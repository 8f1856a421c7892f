//! Who may read what a node writes, what it does not follow, and whose folder it is.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use koltso_testkit::server::free_port;
use koltso_testkit::{Cluster, Launch, eventually, files};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

/// Everything in a folder, the folder itself included.
fn everything(folder: &Path) -> Vec<PathBuf> {
    files::listing(folder).into_iter().map(|(path, ..)| path).collect()
}

#[track_caller]
fn assert_owners_only(folder: &Path) {
    for path in everything(folder) {
        let wanted = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(&path), wanted, "{} is {:o}", path.display(), mode(&path));
    }
}

/// As a shell with this mask starts it.
fn masked(launch: Launch, mask: &str) -> Launch {
    launch.within(&["sh", "-c", &format!("umask {mask}; exec \"$@\""), "sh"])
}

#[test]
fn files_and_folders_are_their_owners_alone_whatever_the_mask() {
    for mask in ["000", "022", "077", "277"] {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("above/data");
        let mut server = masked(Launch::on(&data), mask).start();
        server.connect().store("key", "value");
        assert_owners_only(&folder.path().join("above"));
        server.terminate();
        assert_owners_only(&data);
    }
}

#[test]
fn the_files_of_a_cluster_are_their_owners_alone_as_well() {
    let mut cluster = Cluster::planned(3, |_, launch, _| Some(masked(launch, "000")));
    cluster.wait_up();
    cluster.kill(2);
    for number in 0..50 {
        cluster.client(0).put_of(format!("key-{number}"), "value", (2, 3)).expect(201, "PUT 2/3");
    }
    eventually("hints are in files", std::time::Duration::from_secs(20), || {
        (0..2).any(|index| !files::with_extension(&cluster.hints(index), "hints").is_empty())
    });
    cluster.terminate(0);
    for index in 0..3 {
        assert_owners_only(cluster.data(index));
        assert!(cluster.data(index).join("clock").is_file() && cluster.data(index).join("members").is_file());
    }
}

#[test]
fn what_others_could_read_is_taken_from_them_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Launch::on(&folder.path().join("data")).start();
    server.connect().store("key", "value");
    server.terminate();
    for path in everything(server.data()) {
        // (The secret is refused then, see the test of that.)
        if path.file_name().is_some_and(|name| name != "SECRET") {
            let open = if path.is_dir() { 0o755 } else { 0o644 };
            fs::set_permissions(&path, fs::Permissions::from_mode(open)).unwrap();
        }
    }
    server.start_again();
    assert_owners_only(server.data());
    assert!(server.log().contains("permissions were taken away"), "{}", server.log());
    server.terminate();
    server.start_again();
    assert!(!server.log().contains("permissions"), "{}", server.log());
}

#[test]
fn a_symbolic_link_in_the_data_folder_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (port, other) = (free_port(), free_port());
    let flags = format!("--cluster http://127.0.0.1:{port},http://127.0.0.1:{other}");
    let launch = Launch::on(&data).port(port).flags(&flags);
    let mut server = launch.start();
    server.connect().put_of("key", "value", (1, 2)).expect(201, "PUT 1/2");
    server.kill();
    let log = files::with_extension(&data, "log").pop().unwrap();
    let log = log.file_name().unwrap().to_str().unwrap();
    let elsewhere = folder.path().join("elsewhere");
    for name in [log, "FORMAT", "SECRET", "LOCK", "clock", "identity", "members", "hints"] {
        let (inside, moved) = (data.join(name), elsewhere.join(name));
        fs::create_dir_all(&elsewhere).unwrap();
        fs::rename(&inside, &moved).unwrap();
        symlink(&moved, &inside).unwrap();
        let before = (files::listing(&data), files::listing(&elsewhere));
        let refusal = launch.try_start().map(drop).expect_err("a link was followed");
        assert_eq!(refusal.status.code(), Some(2), "{name}: {}", refusal.stderr);
        assert!(refusal.stderr.contains("symbolic link"), "{name}: {}", refusal.stderr);
        // (The clock is the last thing that can refuse a start, when there is a new segment.)
        if !["clock", "hints"].contains(&name) {
            assert_eq!((files::listing(&data), files::listing(&elsewhere)), before, "{name}");
        }
        fs::remove_file(&inside).unwrap();
        fs::rename(&moved, &inside).unwrap();
    }
    launch.start_after_an_end();
}

#[test]
fn the_folder_of_another_node_is_refused_and_both_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let ports = [free_port(), free_port(), free_port()];
    let urls: Vec<String> = ports.iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
    let start =
        |data: &Path, index: usize| Launch::on(data).port(ports[index]).flags(&Cluster::flags_of(&urls)).try_start();
    let (second, third) = (folder.path().join("node-2"), folder.path().join("node-3"));
    for (data, index) in [(&second, 1), (&third, 2)] {
        let mut server = start(data, index).unwrap_or_else(|refusal| panic!("{}", refusal.stderr));
        server.connect().put_of("key", "value", (1, 3)).expect(201, "PUT 1/3");
        server.terminate();
    }
    let before = files::listing(&third);
    let refusal = start(&third, 1).map(drop).expect_err("the folder of node 3 was taken by node 2");
    assert_eq!(refusal.status.code(), Some(2), "{}", refusal.stderr);
    for named in [&urls[2], &urls[1], &third.display().to_string()] {
        assert!(refusal.stderr.contains(named.as_str()), "{}", refusal.stderr);
    }
    assert_eq!(files::listing(&third), before, "something was touched");
    // Their own are fine, and so is that of a node that was alone before.
    for (data, index) in [(&second, 1), (&third, 2)] {
        drop(start(data, index).unwrap_or_else(|refusal| panic!("{}", refusal.stderr)));
    }
    let alone = folder.path().join("alone");
    let mut server = Launch::on(&alone).start();
    server.connect().store("key", "value");
    server.terminate();
    drop(server);
    let server = start(&alone, 0).unwrap_or_else(|refusal| panic!("{}", refusal.stderr));
    server.connect().get_of("key", (1, 3)).expect(200, "GET 1/3 of what it had when it was alone");
}

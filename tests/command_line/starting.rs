//! How a server starts and ends, and what it refuses to start on.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::{any_listen, assert_refused, run, serve};
use koltso_testkit::json::json_string;
use koltso_testkit::{Client, Launch, Random, Server, eventually, files};

// --- starting ---

#[test]
fn one_ready_line_after_which_health_is_200() {
    let server = Server::fresh("");
    server.ask("GET", "/health").expect(200, "GET /health after the ready line");
    let ready = format!("ready {}", server.url());
    let lines = server.log().lines().filter(|line| line.trim_end().ends_with(&ready)).count();
    assert_eq!(lines, 1, "the log:\n{}", server.log());
}

#[test]
fn a_new_folder_is_made_with_its_format() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("deep/er/data");
    let mut server = Launch::on(&data).start();
    assert_eq!(std::fs::read_to_string(data.join("FORMAT")).unwrap(), "koltso 2\n");
    assert!(data.join("LOCK").exists());
    server.connect().store("key", "value");
    assert!(!files::with_extension(&data, "log").is_empty());
    server.terminate();
    server.start_again();
    assert_eq!(server.connect().value("key").as_deref(), Some(&b"value"[..]));
}

#[test]
fn an_empty_folder_that_exists_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let server = Launch::on(folder.path()).start();
    server.connect().store("key", "value");
}

#[test]
fn a_wrong_flag_is_one_sentence_and_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let listen = any_listen();
    let flags: &[&[&str]] = &[
        &["--frobnicate"],
        &["--frobnicate", "3"],
        &["surplus"],
        &["--sync", "never"],
        &["--sync=-1s"],
        &["--sync", "10"],
        &["--sync"],
        &["--max-value", "twelve"],
        &["--max-value", "-1"],
        &["--max-value", "12parsecs"],
        &["--max-value", "99999999999999999999MiB"],
        &["--max-connections", "many"],
        &["--max-connections", "0"],
        &["--request-timeout", "soon"],
        &["--idle-timeout", "1 fortnight"],
        &["--max-in-flight", "x"],
        &["--max-in-flight-bytes", "x"],
        &["--threads", "0"],
        &["--threads", "two"],
        &["--listen", "127.0.0.1:1"],
        &["--admin-listen", "nowhere"],
        &["--admin-token-file", "/nonexistent/token"],
        &["--config", "/nonexistent/koltso.toml"],
    ];
    for more in flags {
        let sentence = assert_refused(&format!("{more:?}"), &serve(&listen, &data, more), folder.path());
        assert!(!data.exists(), "{more:?}: the folder was made");
        // It says which flag or what about it was wrong.
        let named =
            more.iter().flat_map(|word| word.split('=')).any(|word| sentence.contains(word.trim_start_matches('-')));
        assert!(named || sentence.contains("twice") || sentence.contains("multiple"), "{more:?}: {sentence}");
    }
    for listen in ["", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", "nonsense:port", "127.0.0.1:13x"] {
        assert_refused(&format!("--listen {listen:?}"), &serve(listen, &data, &[]), folder.path());
    }
    assert_refused("an unknown command", &["frobnicate"], folder.path());
    assert_refused("a wrong flag of get", &["get", "key", "--frobnicate"], folder.path());
    assert_refused("get without a key", &["get"], folder.path());
}

#[test]
fn help_and_version_go_to_standard_output_with_exit_0() {
    for args in [&["--help"][..], &["serve", "--help"], &["--version"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
    }
    let help = String::from_utf8(run(&["serve", "--help"]).stdout).unwrap();
    for flag in [
        "--listen",
        "--data",
        "--threads",
        "--sync",
        "--config",
        "--max-value",
        "--max-connections",
        "--request-timeout",
    ] {
        assert!(help.contains(flag), "serve --help does not name {flag}");
    }
}

#[test]
fn an_unusable_folder_is_one_sentence_and_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "not a folder").unwrap();
    let listen = any_listen();
    let below = file.join("data");
    for data in [&*file, &below, Path::new("/proc/koltso-data"), Path::new("/dev/null")] {
        let sentence = assert_refused(&format!("{}", data.display()), &serve(&listen, data, &[]), folder.path());
        assert!(sentence.contains(data.to_str().unwrap()), "{} is not named: {sentence}", data.display());
    }
}

#[test]
fn a_folder_of_something_else_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("thesis.txt"), "ten years of work").unwrap();
    assert_refused("a folder of somebody else", &serve(&any_listen(), &data, &[]), folder.path());
    std::fs::remove_file(data.join("thesis.txt")).unwrap();
    std::fs::create_dir(data.join("photos")).unwrap();
    assert_refused("a folder with a folder in it", &serve(&any_listen(), &data, &[]), folder.path());
}

#[test]
fn a_folder_of_an_older_newer_or_unknown_format_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut server = Launch::on(&data).start();
    server.connect().store("key", "value");
    server.terminate();
    for format in [
        "koltso 1\n",
        "koltso 3\n",
        "koltso 10\n",
        "koltso 4294967297\n",
        "koltso 99999999999999999999\n",
        "koltso x\n",
        "",
        "redis 1\n",
        "koltso 2 and more\n",
    ] {
        std::fs::write(data.join("FORMAT"), format).unwrap();
        let sentence = assert_refused(&format!("FORMAT {format:?}"), &serve(&any_listen(), &data, &[]), folder.path());
        assert!(sentence.contains(data.to_str().unwrap()), "FORMAT {format:?}: the folder is not named: {sentence}");
    }
    std::fs::write(data.join("FORMAT"), "koltso 2\n").unwrap();
    server.start_again();
    assert_eq!(server.connect().value("key").as_deref(), Some(&b"value"[..]));
}

#[test]
fn a_folder_whose_secret_is_gone_cut_short_or_damaged_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut server = Launch::on(&data).start();
    server.connect().store("key", "value");
    server.terminate();
    let path = data.join("SECRET");
    let secret = std::fs::read(&path).unwrap();
    let mut flipped = secret.clone();
    flipped[20] ^= 1;
    let refused = |what: &str| {
        let sentence = assert_refused(what, &serve(&any_listen(), &data, &[]), folder.path());
        for part in [data.to_str().unwrap(), "SECRET", "*.idx"] {
            assert!(sentence.contains(part), "{what}: {part} is not named: {sentence}");
        }
    };
    for (what, bytes) in [("empty", &[][..]), ("cut short", &secret[..20]), ("a flipped bit", &flipped)] {
        std::fs::write(&path, bytes).unwrap();
        refused(what);
    }
    std::fs::remove_file(&path).unwrap();
    refused("gone");
    // What the sentence says to do.
    for sidecar in files::with_extension(&data, "idx") {
        std::fs::remove_file(sidecar).unwrap();
    }
    server.start_again();
    assert_eq!(server.connect().value("key").as_deref(), Some(&b"value"[..]));
}

/// Its file `clock` says until when a node lived. A start that is refused must not renew it: a node
/// whose starts fail for longer than its peers remember deletes would come back with deleted keys.
#[test]
fn a_member_of_a_cluster_that_cannot_open_its_segments_leaves_its_folder_alone() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut server = Launch::on(&data).start();
    server.connect().store("key", "value");
    server.terminate();
    let segment = std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().path());
    let segment = segment.filter(|path| path.extension().is_some_and(|name| name == "log")).min().unwrap();
    // docs/log-format.md: the format at 8, and at 12 the checksum of the other bytes of the header.
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[8..12].copy_from_slice(&1000_u32.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..64]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&segment, bytes).unwrap();
    let listen = any_listen();
    let list = format!("http://{listen},http://127.0.0.1:1");
    let args = serve(&listen, &data, &["--cluster", &list]);
    let sentence = assert_refused("a segment of a newer format", &args, folder.path());
    assert!(sentence.contains("format"), "{sentence}");
}

/// Waits until the server has stopped changing its folder by itself (preparing segments, syncing).
fn settle(data: &Path) {
    let mut last = (Instant::now(), files::listing(data));
    eventually("the folder of an idle server is at rest", Duration::from_secs(20), || {
        let now = files::listing(data);
        if now != last.1 {
            last = (Instant::now(), now);
        }
        last.0.elapsed() > Duration::from_millis(1500)
    });
}

#[test]
fn a_folder_that_another_process_holds_is_exit_2_and_goes_on_serving() {
    let mut server = Server::fresh("");
    server.connect().store("key", "value");
    settle(server.data());
    let data = server.data().to_path_buf();
    let sentence = assert_refused("a held folder", &serve(&any_listen(), &data, &[]), &data);
    assert!(sentence.contains(data.to_str().unwrap()), "the folder is not named: {sentence}");
    assert_eq!(server.connect().value("key").as_deref(), Some(&b"value"[..]));
    // The lock is the process's, not the file's: it goes with kill -9.
    server.kill();
    server.start_again();
    server.assert_serves();
}

#[test]
fn an_address_in_use_is_one_sentence_and_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    // By another koltso, whose sockets can be shared with those of the same user (SO_REUSEPORT).
    let mut server = Server::fresh("");
    let listen = server.address().to_string();
    let sentence = assert_refused("another koltso listens", &serve(&listen, &data, &[]), folder.path());
    assert!(sentence.contains(&listen) && sentence.to_lowercase().contains("in use"), "{sentence}");
    assert!(!data.exists(), "the folder was made");
    for _ in 0..20 {
        server.assert_serves();
    }
    // By something else.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = other.local_addr().unwrap().to_string();
    if other.local_addr().unwrap().port() < 55_000 {
        assert_refused("something else listens", &serve(&listen, &data, &[]), folder.path());
    }
    // With a folder that has data in it.
    let mut second = Server::fresh("");
    second.terminate();
    let data = second.data().to_path_buf();
    assert_refused("in use, with an old folder", &serve(&server.address().to_string(), &data, &[]), &data);
    // An address that is not of this machine.
    assert_refused(
        "an address of another machine",
        &serve("192.0.2.1:12345", &folder.path().join("data"), &[]),
        folder.path(),
    );
}

#[test]
fn a_start_right_after_an_end_gets_the_address() {
    let mut server = Server::fresh("");
    for round in 0..10 {
        let mut clients: Vec<Client> = (0..5).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.store("key", "value");
        }
        if round % 2 == 0 {
            server.kill();
        } else {
            server.terminate();
        }
        // A supervisor restarts at once, while clients still hold their ends of the old
        // connections.
        if let Err(refusal) = server.try_start_again() {
            panic!("round {round}: {}; {}", refusal.status, refusal.stderr);
        }
        for _ in 0..5 {
            assert_eq!(server.connect().value("key").as_deref(), Some(&b"value"[..]), "round {round}");
        }
    }
}

// --- ending ---

#[test]
fn sigint_drains_as_sigterm_does() {
    let mut server = Server::fresh("");
    server.connect().store("key", "value");
    server.signal(libc::SIGINT);
    let status = server.wait(Duration::from_secs(10));
    assert_eq!(status.code(), Some(0), "after SIGINT: {status}");
    server.start_again();
    assert_eq!(server.connect().value("key").as_deref(), Some(&b"value"[..]));
}

#[test]
fn the_log_of_an_uneventful_life_has_no_warnings_of_panics() {
    let mut server = Server::fresh("");
    server.assert_serves();
    server.terminate();
    let log = server.log();
    assert!(!log.contains("panicked"), "{log}");
}

// --- where io_uring is refused ---

#[test]
fn a_ring_that_can_be_made_and_not_used_is_noticed_at_the_start() {
    let (setup, enter, register) = (libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register);
    for (first, last, errno, runtime) in [
        (setup, setup, libc::ENOSYS, "epoll"),
        (setup, setup, libc::ENOMEM, "epoll"),
        (enter, enter, libc::EPERM, "epoll"),
        (enter, enter, libc::ENOSYS, "epoll"),
        (enter, register, libc::EACCES, "epoll"),
        // Which nothing needs.
        (register, register, libc::EPERM, "io_uring"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let launch = Launch::on(&folder.path().join("data")).flags("--sync always");
        let mut server = launch.refuse_calls(first, last, errno).start();
        assert_eq!(json_string(&server.status(), "runtime"), runtime, "calls {first} to {last}: {}", server.log());
        if runtime == "epoll" {
            let error = std::io::Error::from_raw_os_error(errno).to_string();
            let said = server.log().lines().any(|line| line.contains("io_uring is refused") && line.contains(&error));
            assert!(said && server.log().contains("engine epoll"), "{}", server.log());
        }
        server.assert_serves();
        server.terminate();
    }
}

#[test]
fn where_io_uring_is_refused_the_same_is_served_on_epoll() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Launch::on(&folder.path().join("data")).refuse_io_uring().start();
    assert_eq!(json_string(&server.status(), "runtime"), "epoll");
    let said = server.log().lines().filter(|line| line.contains("io_uring")).count();
    assert_eq!(said, 1, "one line says that it runs without io_uring:\n{}", server.log());
    let value = Random::seeded(8).bytes(16 << 20);
    for _ in 0..2 {
        let mut client = server.connect();
        client.store("large", &value);
        assert!(client.value("large").as_ref() == Some(&value));
        client.store_all((0..2000).map(|index| (format!("k{index:04}"), vec![b'v'; index])), 100);
        assert_eq!(client.range("start=k&end=l").len(), 2000);
        client
            .send(
                b"PUT /v0/entity?id=c HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n",
            )
            .unwrap();
        client.read("PUT").expect(100, "Expect: 100-continue");
        client.send(b"v").unwrap();
        client.read("PUT").expect(201, "PUT after 100");
        server.ask("GET", "/metrics").expect(200, "GET /metrics");
        server.terminate();
        server.start_again_with("--sync always --request-timeout 1s");
    }
    let mut client = server.connect();
    assert!(client.value("large").as_ref() == Some(&value), "after restarts");
    client.send(b"GET /v0/entity?id=a HTTP/1.1\r\n").unwrap();
    client.read("GET").expect(408, "a header that never ends");
    server.kill();
    server.start_again();
    assert_eq!(server.connect().range("start=k&end=l").len(), 2000);
}

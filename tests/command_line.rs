//! SPEC.md section 3 from outside: flags, configuration, exit codes, the commands for people and scripts, and the control plane.
//!
//! "Nothing on disk is touched" is checked by a listing of names, sizes and times before and after.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use koltso_testkit::client::{Framing, get_bytes, put_bytes};
use koltso_testkit::json::{json_number, json_object, json_string, json_value};
use koltso_testkit::metrics::samples;
use koltso_testkit::server::free_port;
use koltso_testkit::{Client, Launch, Random, Response, Server, allowed, entity, eventually, files, volume};

const BINARY: &str = env!("CARGO_BIN_EXE_koltso");

/// Runs the binary to its end, with a deadline.
#[track_caller]
fn run_with_input(args: &[&str], input: &[u8]) -> Output {
    const WITHIN: Duration = Duration::from_secs(30);
    let mut child = Command::new(BINARY)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    // The command may end without reading its input.
    std::thread::spawn(move || drop(stdin.write_all(&input)));
    fn collect(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = from.read_to_end(&mut bytes);
            bytes
        })
    }
    let (stdout, stderr) = (collect(child.stdout.take().unwrap()), collect(child.stderr.take().unwrap()));
    let deadline = Instant::now() + WITHIN;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{args:?} did not end within {WITHIN:?}: {}", String::from_utf8_lossy(&stderr.join().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

#[track_caller]
fn run(args: &[&str]) -> Output {
    run_with_input(args, b"")
}

#[track_caller]
fn assert_one_sentence(what: &str, output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    let sentence =
        stderr.strip_suffix('\n').unwrap_or_else(|| panic!("{what}: no line end on standard error: {stderr:?}"));
    assert!(!sentence.contains('\n'), "{what}: more than one line on standard error: {stderr:?}");
    assert!((10..=400).contains(&sentence.len()), "{what}: no sentence: {stderr:?}");
    assert!(!sentence.contains('\x1b'), "{what}: colours where no terminal is: {stderr:?}");
    sentence.to_owned()
}

/// Exit code 2, one sentence, and nothing below `watched` touched; the sentence.
#[track_caller]
fn assert_refused(what: &str, args: &[&str], watched: &Path) -> String {
    let before = files::listing(watched);
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{what}: {}; {stderr}", output.status);
    assert!(output.stdout.is_empty(), "{what}: {:?}", String::from_utf8_lossy(&output.stdout));
    let after = files::listing(watched);
    assert_eq!(before, after, "{what}: the disk was touched; {stderr}");
    assert_one_sentence(what, &output)
}

/// Arguments of a `serve` on a port of its own.
fn serve<'a>(listen: &'a str, data: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["serve", "--listen", listen, "--data", data.to_str().unwrap()];
    args.extend_from_slice(more);
    args
}

fn any_listen() -> String {
    format!("127.0.0.1:{}", free_port())
}

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

/// Its file `clock` says until when a node lived. A start that is refused must not renew it: a node whose starts fail for
/// longer than its peers remember deletes would come back with deleted keys.
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
        // A supervisor restarts at once, while clients still hold their ends of the old connections.
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

// --- configuration ---

#[test]
fn the_config_file_has_the_names_of_the_flags_and_flags_win() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("koltso.toml");
    let largest = |flags: &str| {
        let data = folder.path().join(format!("data-{}", free_port()));
        let server = Launch::on(&data).flags(&format!("--config {} {flags}", config.display())).start();
        let mut sizes =
            [1000, 1500, 2500].into_iter().filter(|&size| server.connect().put("key", vec![b'v'; size]).status == 201);
        sizes.next_back()
    };
    for name in ["max-value", "max_value"] {
        std::fs::write(&config, format!("{name} = \"1KiB\"\n")).unwrap();
        assert_eq!(largest(""), Some(1000), "{name} in the file");
        assert_eq!(largest("--max-value 2000"), Some(1500), "a flag wins over {name} in the file");
    }
    std::fs::write(&config, "# nothing but a comment\n").unwrap();
    assert_eq!(largest(""), Some(2500), "an empty file");
    std::fs::write(
        &config,
        "max-connections = 100\nsync = \"always\"\nrequest_timeout = \"5s\"\nthreads = 1\nmax-in-flight = 100\n",
    )
    .unwrap();
    assert_eq!(largest(""), Some(2500), "a file with several settings");
}

#[test]
fn listen_and_data_may_come_from_the_config_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("koltso.toml");
    let (listen, data) = (any_listen(), folder.path().join("from-config"));
    std::fs::write(&config, format!("listen = \"{listen}\"\ndata = {:?}\n", data.to_str().unwrap())).unwrap();
    let mut child = Command::new(BINARY)
        .args(["serve", "--config", config.to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let address: SocketAddr = listen.parse().unwrap();
    let outcome = std::panic::catch_unwind(|| {
        eventually("the server listens where the file says", Duration::from_secs(20), || {
            Client::connect(address).is_ok_and(|mut client| client.put("key", "value").status == 201)
        });
        assert!(data.join("FORMAT").exists(), "the data is not where the file says");
    });
    child.kill().unwrap();
    child.wait().unwrap();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_wrong_config_file_is_one_sentence_and_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    let (config, data, listen) = (folder.path().join("koltso.toml"), folder.path().join("data"), any_listen());
    let cases = [
        ("max-walue = \"1MiB\"\n", "max-walue"),
        ("[storage]\nsegments = 3\n", "storage"),
        ("max-value = \"1MiB\n", ""),
        ("max-value = \"lots\"\n", "lots"),
        ("max-connections = \"many\"\n", ""),
        ("threads = -1\n", ""),
        ("sync = 3\n", ""),
        ("= 3\n", ""),
        ("max-value = \"1MiB\"\nmax-value = \"2MiB\"\n", ""),
    ];
    for (text, named) in cases {
        std::fs::write(&config, text).unwrap();
        let args = serve(&listen, &data, &["--config", config.to_str().unwrap()]);
        let sentence = assert_refused(text, &args, folder.path());
        assert!(sentence.contains(named), "{text:?}: {sentence}");
        assert!(!data.exists(), "{text:?}: the folder was made");
    }
    assert_refused(
        "a folder as config",
        &serve(&listen, &data, &["--config", folder.path().to_str().unwrap()]),
        folder.path(),
    );
}

// --- get, put, delete, scan ---

#[track_caller]
fn assert_success(output: &Output, what: &str) {
    assert_eq!(output.status.code(), Some(0), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn put_get_and_delete_are_commands() {
    let server = Server::fresh("");
    let url = server.url();
    let mut client = server.connect();
    assert_success(&run(&["put", "key", "value", "--url", &url]), "put KEY VALUE");
    assert_eq!(client.value("key").as_deref(), Some(&b"value"[..]));
    let got = run(&["get", "key", "--url", &url]);
    assert_success(&got, "get KEY");
    assert_eq!(got.stdout, b"value", "the value and nothing else");
    // From standard input, as bytes.
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    assert_success(&run_with_input(&["put", "from-input", "--url", &url], &bytes), "put KEY < INPUT");
    assert_success(&run_with_input(&["put", "from-dash", "-", "--url", &url], &bytes), "put KEY - < INPUT");
    for key in ["from-input", "from-dash"] {
        let got = run(&["get", key, "--url", &url]);
        assert_success(&got, key);
        assert!(got.stdout == bytes, "{key}: {} bytes", got.stdout.len());
    }
    assert_success(&run_with_input(&["put", "empty", "--url", &url], b""), "put KEY < /dev/null");
    assert_eq!(client.value("empty").as_deref(), Some(&b""[..]));
    // Keys are whatever a shell can give.
    for key in ["a b", "a+b", "100%", "%41", "a&b=c?d#e", "ключ", "/path/like", "\"quoted\"", "line\nend"] {
        assert_success(&run(&["put", key, key, "--url", &url]), key);
        assert_eq!(client.value(key).as_deref(), Some(key.as_bytes()), "{key}");
        assert_eq!(run(&["get", key, "--url", &url]).stdout, key.as_bytes(), "{key}");
    }
    assert_success(&run(&["delete", "key", "--url", &url]), "delete KEY");
    assert_eq!(client.value("key"), None);
    assert_success(&run(&["delete", "key", "--url", &url]), "delete of an absent key");
    let absent = run(&["get", "key", "--url", &url]);
    assert_eq!(absent.status.code(), Some(1), "get of an absent key");
    assert!(absent.stdout.is_empty());
}

#[test]
fn commands_say_what_went_wrong() {
    let server = Server::fresh("--max-value 1000");
    let url = server.url();
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let refused = [
        (run(&["get", "key", "--url", &nobody]), "nobody listens"),
        (run(&["put", "key", "value", "--url", &nobody]), "nobody listens"),
        (run(&["scan", "a", "--url", &nobody]), "nobody listens"),
        (run(&["get", "key", "--url", "nonsense"]), "no URL"),
        (run(&["get", "", "--url", &url]), "an empty key"),
        (run(&["put", &"k".repeat(4097), "v", "--url", &url]), "a long key"),
        (run_with_input(&["put", "key", "--url", &url], &[b'v'; 1001]), "a large value"),
    ];
    for (output, what) in refused {
        assert!(output.status.code().is_some_and(|code| code != 0), "{what}: {}", output.status);
        assert!(output.stdout.is_empty(), "{what}");
        assert_one_sentence(what, &output);
    }
}

#[test]
fn scan_lists_keys_and_sizes_or_values() {
    let server = Server::fresh("");
    let url = server.url();
    let mut client = server.connect();
    for (key, value) in [("a", "1"), ("b", "22"), ("b b", "333"), ("c", ""), ("d", "55555")] {
        client.store(key, value);
    }
    let scan = |args: &[&str]| {
        let output = run(&[&["scan"], args, &["--url", &url]].concat());
        assert_success(&output, &format!("scan {args:?}"));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(scan(&["a"]), "a\t1\nb\t2\nb b\t3\nc\t0\nd\t5\n");
    assert_eq!(scan(&["b", "d"]), "b\t2\nb b\t3\nc\t0\n");
    assert_eq!(scan(&["b", "--limit", "2"]), "b\t2\nb b\t3\n");
    assert_eq!(scan(&["b", "d", "--limit", "1"]), "b\t2\n");
    assert_eq!(scan(&["b", "d", "--values"]), "b\n22\nb b\n333\nc\n\n");
    assert_eq!(scan(&["x"]), "");
    client.store_all((0..5000).map(|index| (format!("many-{index:04}"), vec![b'v'; index % 100])), 100);
    let many = scan(&["many"]);
    assert_eq!(many.lines().count(), 5000);
    assert!(many.lines().enumerate().all(|(index, line)| line == format!("many-{index:04}\t{}", index % 100)));
}

// --- the control plane ---

#[test]
fn status_is_json_with_the_figures_of_the_node() {
    let server = Server::fresh("--max-value 123456");
    let mut client = server.connect();
    client.store_all((0..10).map(|index| (format!("k{index}"), vec![b'v'; 1000])), 10);
    client.delete("k3").expect(202, "DELETE");
    let response = server.ask("GET", "/status").expect(200, "GET /status");
    assert!(response.header("content-type").unwrap_or_default().starts_with("application/json"));
    let status = response.text();
    assert_eq!(json_string(&status, "state"), "serving");
    assert!(!json_string(&status, "version").is_empty());
    assert!(json_value(&status, "node").len() > 2);
    assert!(["io_uring", "epoll"].contains(&json_string(&status, "runtime")));
    let storage = json_object(&status, "storage");
    assert_eq!(json_number(storage, "records"), 9);
    assert!((9000..12_000).contains(&json_number(storage, "live_bytes")), "{storage}");
    assert!(json_number(storage, "dead_bytes") >= 1000, "{storage}");
    assert!(json_number(storage, "segments") >= 1, "{storage}");
    assert_eq!(json_number(storage, "damaged_records"), 0);
    assert!(json_object(&status, "config").contains("123456"), "the configuration in force: {status}");
}

#[test]
fn metrics_are_prometheus_text_and_count_requests() {
    let server = Server::fresh("");
    let mut client = server.connect();
    let before = samples(&server.ask("GET", "/metrics").expect(200, "GET /metrics"));
    assert!(before.len() > 5, "{before:?}");
    for index in 0..100 {
        client.store(format!("k{index}"), "value");
    }
    for _ in 0..57 {
        client.get("absent").expect(404, "GET");
    }
    // Whatever the names are: something grew by 100, and something by 57. Cores may publish with a delay.
    eventually("the requests are counted", Duration::from_secs(10), || {
        let after = samples(&server.ask("GET", "/metrics").expect(200, "GET /metrics"));
        let growth = |name: &str, value: f64| {
            value - before.iter().find(|(other, _)| other == name).map_or(0.0, |(_, value)| *value)
        };
        let grew_by = |count: f64| after.iter().any(|(name, value)| (growth(name, *value) - count).abs() < 0.5);
        grew_by(100.0) && grew_by(57.0)
    });
}

#[test]
fn answers_of_the_control_plane_close_the_connection() {
    let server = Server::fresh("");
    for path in ["/status", "/metrics"] {
        let mut client = server.connect();
        client.store("key", "value");
        // After other requests on the same connection, which is handed over with whatever was read.
        let answer = client.request("GET", path, &[], None).expect(200, path);
        assert!(answer.says_close() || answer.framing == Framing::UntilClose, "{path}");
        assert!(client.is_ended(Duration::from_secs(5)), "{path}: the connection stays open");
        // In one write with a request before it.
        let mut client = server.connect();
        client
            .send(
                &[&put_bytes("key", b"newer")[..], format!("GET {path} HTTP/1.1\r\nHost: k\r\n\r\n").as_bytes()]
                    .concat(),
            )
            .unwrap();
        client.read("PUT").expect(201, "PUT before it");
        client.read("GET").expect(200, path);
        // Over HTTP/1.0.
        let mut client = server.connect();
        client.send(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        client.read("GET").expect(200, path);
    }
    assert_eq!(server.connect().value("key").as_deref(), Some(&b"newer"[..]));
}

#[test]
fn the_control_plane_answers_while_the_data_plane_is_saturated() {
    let server = Server::fresh("--sync os");
    server.connect().store("large", vec![b'v'; 200_000]);
    let stop = AtomicBool::new(false);
    let slowest = std::thread::scope(|scope| {
        for thread in 0..6 {
            let mut client = server.connect();
            let stop = &stop;
            scope.spawn(move || {
                let batch: Vec<u8> = (0..64)
                    .flat_map(|index| {
                        if index % 4 == 0 {
                            get_bytes("large")
                        } else {
                            put_bytes(format!("load-{thread}-{index}"), &[b'v'; 500])
                        }
                    })
                    .collect();
                while !stop.load(Ordering::Relaxed) {
                    client.send(&batch).unwrap();
                    for _ in 0..64 {
                        let status = client.read("PUT").status;
                        assert!(matches!(status, 200 | 201 | 503), "{status}");
                    }
                }
            });
        }
        let outcome = std::panic::catch_unwind(|| {
            let (start, mut slowest) = (Instant::now(), Duration::ZERO);
            while start.elapsed() < volume(Duration::from_secs(3), Duration::from_secs(20)) {
                for path in ["/status", "/metrics", "/health"] {
                    let sent = Instant::now();
                    server.ask("GET", path).expect(200, path);
                    slowest = slowest.max(sent.elapsed());
                }
            }
            slowest
        });
        stop.store(true, Ordering::Relaxed);
        outcome
    });
    let slowest = slowest.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    println!("slowest answer of the control plane under load: {slowest:?}");
    assert!(slowest < allowed(Duration::from_secs(2)), "{slowest:?}");
}

#[test]
fn status_and_metrics_are_served_when_every_request_is_refused() {
    let server = Server::fresh("--threads 1 --max-in-flight 1 --request-timeout 30s");
    let value = Random::seeded(1).bytes(16 << 20);
    server.connect().store("large", &value);
    // An answer that is not taken keeps its request in flight.
    let mut pending = server.connect();
    pending.send(&get_bytes("large")).unwrap();
    eventually("the one request is in flight", Duration::from_secs(5), || {
        server.ask("GET", &entity("absent")).status == 503
    });
    server.ask("GET", "/status").expect(200, "GET /status");
    server.ask("GET", "/metrics").expect(200, "GET /metrics");
    server.ask("GET", "/health").expect(200, "GET /health");
    assert!(pending.read("GET").expect(200, "the request in flight").body == value);
}

// --- where io_uring is refused ---

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
            .send(b"PUT /v0/entity?id=c HTTP/1.1\r\nHost: k\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
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

// --- beyond loopback ---

fn with_token(server: &Server, path: &str, authorization: &str) -> Response {
    server.connect().request("GET", path, &[("Authorization", authorization)], None)
}

#[test]
fn beyond_loopback_the_control_plane_is_closed_without_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let server = Launch::on(&folder.path().join("data")).host("0.0.0.0").start();
    for path in ["/status", "/metrics"] {
        let answer = server.ask("GET", path).expect(403, path);
        assert!(answer.text().ends_with('\n') && answer.text().len() > 10, "{path}: {:?}", answer.text());
        with_token(&server, path, "Bearer anything").expect(403, path);
    }
    server.ask("GET", "/health").expect(200, "GET /health");
    server.connect().store("key", "value");
}

#[test]
fn beyond_loopback_the_control_plane_opens_with_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "correct-horse\n").unwrap();
    let flags = format!("--admin-token-file {}", token.display());
    let server = Launch::on(&folder.path().join("data")).host("0.0.0.0").flags(&flags).start();
    for path in ["/status", "/metrics"] {
        with_token(&server, path, "Bearer correct-horse").expect(200, path);
        with_token(&server, path, "bearer correct-horse").expect(200, "the scheme has no case");
        let missing = server.ask("GET", path);
        assert!(matches!(missing.status, 401 | 403), "{path} without the token: {}", missing.status);
        for wrong in [
            "Bearer wrong",
            "Bearer",
            "Bearer ",
            "Bearer correct-horse2",
            "Bearer correct-hors",
            "Bearer CORRECT-HORSE",
            "Bearer correct-horse\tx",
        ] {
            with_token(&server, path, wrong).expect(401, &format!("{path} with {wrong:?}"));
        }
        let basic = with_token(&server, path, "Basic Y29ycmVjdC1ob3JzZQ==").status;
        assert!(matches!(basic, 401 | 403), "{path} with another scheme: {basic}");
        let refused = with_token(&server, path, "Bearer wrong");
        // RFC 9110 section 15.5.2: a 401 says how to authenticate.
        assert!(refused.header("www-authenticate").is_some(), "401 without WWW-Authenticate");
        assert!(!refused.text().contains("correct-horse"));
    }
    server.connect().store("key", "value");
}

#[test]
fn an_empty_token_file_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "\n").unwrap();
    let flags = format!("--admin-token-file {}", token.display());
    match Launch::on(&folder.path().join("data")).host("0.0.0.0").flags(&flags).try_start() {
        Ok(server) => {
            for authorization in ["Bearer ", "Bearer", "Bearer \t"] {
                let status = with_token(&server, "/status", authorization).status;
                assert!(matches!(status, 401 | 403), "{authorization:?} with an empty token file: {status}");
            }
        }
        Err(refusal) => assert_eq!(refusal.status.code(), Some(2), "{}", refusal.stderr),
    }
}

#[test]
fn the_control_plane_may_have_a_listener_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let admin: SocketAddr = any_listen().parse().unwrap();
    let server =
        Launch::on(&folder.path().join("data")).host("0.0.0.0").flags(&format!("--admin-listen {admin}")).start();
    for path in ["/status", "/metrics"] {
        Client::connect(admin).unwrap().request("GET", path, &[], None).expect(200, path);
        server.ask("GET", path).expect(403, path);
    }
    let stray = Client::connect(admin).unwrap().request("GET", &entity("key"), &[], None);
    assert!(matches!(stray.status, 400 | 404), "the data plane on the listener of the control plane: {}", stray.status);
}
